//! Writes follow reads, for one key through `after`: what a client writes takes effect after what it had read.
//!
//! Definition. Let a process have read with g, and then begun t with g's context. No read returns a write that g
//! returned, or one of its past, beside t or a write that saw t.
//! Precondition: such a t, and a read that returns it or a write that saw it. Judged: pairs (read, returned write)
//! for which there is one. Source: Terry et al. (1994). Cost: twice the pasts of each key.

use crate::history::History;
use crate::pasts::Options;
use crate::sessions::{self, Knew};
use crate::verdict::Verdict;

/// Judges every read.
pub fn check(history: &History, options: &Options) -> Verdict {
    sessions::check(history, options, Knew::Reading, "whose writer had read it and passed that context")
}
