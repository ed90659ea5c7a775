//! Makes a counterexample smaller: leaves out operations as long as no order explains the rest.
//!
//! Not every operation may be left out: without its write any read is wrong. What keeps the proof: what was invoked
//! after the operation that could not be passed; reads; and, of registers, all operations on a set of values that no
//! cas ties to other values. In an order of the whole history, leaving those out leaves an order of the rest. So if
//! the rest has none, neither has the whole.

use std::collections::BTreeMap;

use crate::history::NONE;
use crate::linearizability::Model;
use crate::linearizability::models::{Call, Machine, Step};
use crate::linearizability::search::{Found, Stuck, search};
use crate::pasts::Options;

/// Attempts at most, and the steps of each.
const ATTEMPTS: usize = 400;
const STEPS: u64 = 20_000;

/// A part of `calls` that still has no order.
pub(crate) fn shrink(
    calls: &[Call],
    stuck: &Stuck,
    model: Model,
    machine: &mut Machine<'_>,
    options: &Options,
) -> Vec<Call> {
    let end = calls[stuck.call as usize].complete;
    let mut kept: Vec<Call> = calls.iter().filter(|call| call.invoke < end).copied().collect();
    for call in &mut kept {
        if call.complete != NONE && call.complete > end {
            call.complete = NONE;
        }
    }
    kept.retain(|call| call.complete != NONE || !matches!(call.step, Step::Read(_)));
    let mut attempts = ATTEMPTS;
    let mut fails = |calls: &[Call]| {
        let Some(left) = attempts.checked_sub(1) else { return false };
        attempts = left;
        let mut steps = STEPS;
        matches!(search(calls, machine, &mut steps, options.memory), Found::None(_))
    };
    if model != Model::KvAppend {
        let groups = groups(&kept);
        let mut numbers: Vec<u32> = groups.values().copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        for group in numbers {
            let in_group = |call: &Call| groups.get(&value_of(call.step)) == Some(&group);
            let rest: Vec<Call> = kept.iter().filter(|call| !in_group(call)).copied().collect();
            if rest.len() < kept.len() && fails(&rest) {
                kept = rest;
            }
        }
    }
    let mut at = 0;
    while at < kept.len() {
        if matches!(kept[at].step, Step::Read(_)) {
            let mut rest = kept.clone();
            rest.remove(at);
            if fails(&rest) {
                kept = rest;
                continue;
            }
        }
        at += 1;
    }
    kept
}

fn value_of(step: Step) -> u32 {
    match step {
        Step::Read(value) | Step::Write(value) | Step::Cas(value, _) | Step::Append(value) => value,
    }
}

/// The values that a cas ties together, by the smallest of them.
fn groups(calls: &[Call]) -> BTreeMap<u32, u32> {
    let mut group: BTreeMap<u32, u32> = BTreeMap::new();
    for call in calls {
        let value = value_of(call.step);
        group.entry(value).or_insert(value);
        if let Step::Cas(_, new) = call.step {
            group.entry(new).or_insert(new);
            let (one, two) = (group[&value], group[&new]);
            let (low, high) = (one.min(two), one.max(two));
            for of in group.values_mut().filter(|of| **of == high) {
                *of = low;
            }
        }
    }
    group
}
