//! The Dynamo paper, pure.
#![forbid(unsafe_code)]

pub mod version;
