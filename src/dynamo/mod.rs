//! The Dynamo paper, pure.
#![forbid(unsafe_code)]

pub mod layout;
pub mod merkle;
pub mod preference;
pub mod ring;
pub mod version;
