//! Monotonic writes, for one key through `after`: a client's writes take effect in its order.
//!
//! Definition. Let a process have put or deleted s, had that acknowledged, and then begun t with s in past(t). No
//! read returns s beside t, or beside a write that saw t.
//! Precondition: such a pair, and a read that returns t or a write that saw it. Judged: pairs (read, returned write)
//! for which there is one. Source: Terry et al. (1994). Cost: twice the pasts of each key.

use crate::history::History;
use crate::pasts::Options;
use crate::sessions::{self, Knew};
use crate::verdict::Verdict;

/// Judges every read.
pub fn check(history: &History, options: &Options) -> Verdict {
    sessions::check(
        history,
        options,
        Knew::Writing,
        "which the same process wrote after it, with its context",
    )
}
