//! Checkers for histories of stores that answer with siblings. Knows nothing of any one store: it judges what
//! clients did and saw.
//!
//! *Truth* is what clients did: a write's past is what its writer had read. *Claims* are what a store says about
//! itself. Only truth justifies an absence.
//!
//! A history is read by [`formats`] and held by [`history`]. So far there is one check, [`durability`].

pub mod build;
pub mod durability;
pub mod event;
pub mod formats;
pub mod history;
pub mod value;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong in this many judged operations, at least one.
    Valid {
        /// Operations that were judged.
        judged: usize,
    },
    /// At least one thing is wrong.
    Invalid {
        /// Operations that were judged.
        judged: usize,
        /// The smallest witness found, in words.
        witness: String,
    },
    /// Nothing could be judged. Never to be taken for valid.
    Unknown,
}
