//! Checkers for histories of stores that answer with siblings. Knows nothing of any one store: it judges what
//! clients did and saw.
//!
//! *Truth* is what clients did: a write's past is what its writer had read. *Claims* are what a store says about
//! itself. Only truth justifies an absence.

mod bits;
pub mod build;
pub mod causal;
pub mod checks;
pub mod convergence;
pub mod counter;
pub mod durability;
pub mod event;
pub mod formats;
pub mod frontier;
pub mod history;
pub mod linearizability;
pub mod monotonic_writes;
pub mod pasts;
pub mod quorum;
pub mod read_your_writes;
pub mod regular;
pub mod resurrection;
mod sessions;
pub mod set;
pub mod set_full;
pub mod staleness;
pub mod thin_air;
pub mod timeline;
pub mod value;
pub mod verdict;
pub mod writes_follow_reads;

pub use pasts::Options;
pub use verdict::{Verdict, Witness};
