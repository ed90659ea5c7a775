//! Sets: what was added and acknowledged is there at the end.
//!
//! Definition, for each key with `add` and `read` of whole sets: let g be the last answered read by completion.
//! Every element whose `add` was acknowledged before g was invoked is in g (else it is **lost**); every element of
//! g was added by an add that was invoked before g completed and did not fail (else it is **unexpected**).
//! Precondition: a read. Judged: pairs (acknowledged add, last read) and (element of the last read, its adds).
//! Source: Jepsen's `set` checker. Cost: a hash of the elements, linear.

use std::collections::BTreeMap;

use crate::history::{F, History, NONE, Op, Outcome, flag};
use crate::pasts::Options;
use crate::verdict::{Findings, Verdict, Witness};

/// Whether an operation is an answered read of a whole set.
pub(crate) fn reads_a_set(op: &Op) -> bool {
    op.f == F::Read && op.outcome == Outcome::Ok && op.has(flag::ELEMENTS)
}

/// Judges the last read of each key.
pub fn check(history: &History, _: &Options) -> Verdict {
    let mut findings = Findings::default();
    for (_, ops) in history.by_key().iter() {
        let all = || ops.iter().map(|at| (*at, &history.ops[*at as usize]));
        let Some((at, read)) = all().filter(|(_, op)| reads_a_set(op)).max_by_key(|(_, op)| op.complete)
        else {
            continue;
        };
        let there: std::collections::BTreeSet<u32> =
            history.returned(read).iter().map(|entry| entry.id()).collect();
        // The add of each element that could have put it there, the earliest.
        let mut added: BTreeMap<u32, u32> = BTreeMap::new();
        for (add_at, add) in all().filter(|(_, op)| op.f == F::Add && op.value != NONE) {
            if add.outcome != Outcome::Fail && add.invoke < read.complete {
                added.entry(add.value).or_insert(add_at);
            }
            if add.outcome == Outcome::Ok && add.ended_before(read.invoke) {
                findings.judged += 1;
                if !there.contains(&add.value) {
                    findings.violation(add.complete, || Witness {
                        text: format!(
                            "{} was added and acknowledged at index {}, and the last read, at index {}, lacks it",
                            history.values.name(add.value),
                            history.index(add.complete),
                            history.index(read.invoke)
                        ),
                        ops: vec![add_at, at],
                    });
                }
            }
        }
        for element in &there {
            findings.judged += 1;
            if !added.contains_key(element) {
                findings.violation(read.complete, || Witness {
                    text: format!(
                        "the last read, at index {}, has {}, which no add that did not fail had begun to add",
                        history.index(read.invoke),
                        history.values.name(*element)
                    ),
                    ops: vec![at],
                });
            }
        }
    }
    findings.verdict()
}
