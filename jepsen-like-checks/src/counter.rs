//! Counters: a read lies between what must have been added and what may have been.
//!
//! Definition, for each key and answered read of an integer: the sum of all adds that were acknowledged before the
//! read was invoked must be in it; every add that was invoked before the read completed and did not fail may be.
//! So the read lies between (positive ones that must + negative ones that may) and (positive that may + negative
//! that must). Bounds only: that some subset of what may be there gives exactly this number is not asked.
//! Precondition: all adds of the key are integers. Judged: (read, key's adds), one a read.
//! Source: Jepsen's `counter` checker, extended to negative adds. Cost: one pass over the key's events, sorted.

use crate::history::{F, History, NONE, Op, Outcome, flag};
use crate::pasts::Options;
use crate::verdict::{Findings, Verdict, Witness};

fn int(history: &History, op: &Op) -> Option<i128> {
    if op.value == NONE || op.has(flag::ELEMENTS) { None } else { history.values.name(op.value).parse().ok() }
}

/// Judges every read.
pub fn check(history: &History, _: &Options) -> Verdict {
    let mut findings = Findings::default();
    for (_, ops) in history.by_key().iter() {
        one_key(history, ops, &mut findings);
    }
    findings.verdict()
}

fn one_key(history: &History, ops: &[u32], findings: &mut Findings) {
    // (position, rank of the event among those of one position, operation, whether it is the invocation)
    let mut events: Vec<(u32, u32, bool)> = Vec::new();
    for at in ops {
        let op = &history.ops[*at as usize];
        let add = op.f == F::Add && op.outcome != Outcome::Fail;
        if add && int(history, op).is_none() {
            return;
        }
        let read = op.f == F::Read && op.outcome == Outcome::Ok && int(history, op).is_some();
        if add || read {
            events.push((op.invoke, *at, true));
            if op.complete != NONE {
                events.push((op.complete, *at, false));
            }
        }
    }
    events.sort_unstable();
    // Sums of the positive and the negative adds that must, and that may, be there.
    let (mut must, mut may) = ([0_i128; 2], [0_i128; 2]);
    let mut open: std::collections::BTreeMap<u32, [i128; 2]> = std::collections::BTreeMap::new();
    for (position, at, invoked) in events {
        let op = &history.ops[at as usize];
        let Some(value) = int(history, op) else { continue };
        let sign = usize::from(value < 0);
        match (op.f, invoked) {
            (F::Add, true) => may[sign] = may[sign].saturating_add(value),
            (F::Add, false) => must[sign] = must[sign].saturating_add(value),
            (_, true) => {
                open.insert(at, must);
            }
            (_, false) => {
                let must = open.remove(&at).unwrap_or_default();
                let (low, high) = (must[0].saturating_add(may[1]), may[0].saturating_add(must[1]));
                findings.judged += 1;
                if value < low || high < value {
                    findings.violation(position, || Witness {
                        text: format!("{} returned {value}, outside of {low} to {high}", history.say(at)),
                        ops: vec![at],
                    });
                }
            }
        }
    }
}
