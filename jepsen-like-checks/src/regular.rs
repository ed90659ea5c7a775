//! Regular register: a read sees every put that was acknowledged before it began, or what overwrote it.
//!
//! Definition. For each pair of a put p and a read g that meet the precondition, g returned p, or p is accounted
//! for by what g returned ([`crate::pasts`]): a write that saw p, a deletion, an expiry.
//! Precondition: that of [`crate::quorum`]. Judged: the pairs that meet it.
//! Source: Lamport, On interprocess communication (1986), with causal successors in place of later writes, and
//! without thin air, which has a check of its own. Cost: the pasts of each key, and W bits for each read and each
//! (layout, n, w) in use.

use crate::history::History;
use crate::pasts::Options;
use crate::quorum::{Of, sweep};
use crate::verdict::{Findings, Verdict, Witness};

/// Judges every pair.
pub fn check(history: &History, options: &Options) -> Verdict {
    let mut findings = Findings::default();
    sweep(history, options, Of::All, &mut findings, |findings, key, write, at| {
        let (write, end) = (key.writes[write as usize], history.ops[at as usize].complete);
        findings.violation(end, || Witness {
            text: format!(
                "{} was acknowledged at index {}, and {} began after that and returned neither it nor a write that \
                 saw it, although their quorums meet",
                history.say(write),
                history.index(history.ops[write as usize].complete),
                history.say(at)
            ),
            ops: vec![write, at],
        });
    });
    findings.verdict()
}
