//! Checkers for histories of stores that answer with siblings.
