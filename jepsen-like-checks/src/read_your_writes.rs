//! Read your writes, for one key: a client's read sees what the same client has put before.
//!
//! Definition. For each pair of a put p and a read g of one process that meet the precondition, g returned p, or p
//! is accounted for by what g returned ([`crate::pasts`]).
//! Precondition: that of [`crate::quorum`], and one process. A store that pins a session to a replica could promise
//! more; a leaderless one promises this and no more.
//! Judged: the pairs that meet it. Source: Terry et al., Session guarantees for weakly consistent replicated data
//! (1994). Cost: that of [`crate::regular`], with a set for each process that writes the key.

use crate::history::History;
use crate::pasts::Options;
use crate::quorum::{Of, sweep};
use crate::verdict::{Findings, Verdict, Witness};

/// Judges every pair.
pub fn check(history: &History, options: &Options) -> Verdict {
    let mut findings = Findings::default();
    sweep(history, options, Of::Own, &mut findings, |findings, key, write, at| {
        let (write, read) = (key.writes[write as usize], &history.ops[at as usize]);
        findings.violation(read.complete, || Witness {
            text: format!(
                "process {} put {}, and its own {} returned neither it nor a write that saw it",
                history.processes.name(read.process),
                history.say(write),
                history.say(at)
            ),
            ops: vec![write, at],
        });
    });
    findings.verdict()
}
