//! Sets, every read: an element that is known to be there does not vanish for good.
//!
//! Definition, for each key and element. It is **known** from the completion of its acknowledged `add`, or of the
//! first read that has it, whichever is earlier. Of the answered reads, let *present* be the last-invoked that has
//! it, and *absent* the last-invoked that lacks it.
//! - **lost**: *absent* was invoked after it was known, and after *present* (or there is no *present*);
//! - **stable**: *present* was invoked after *absent* (or there is no *absent*);
//! - **stale** if stable, yet some read that was invoked after it was known lacks it: counted, not a failure.
//!
//! Invalid: an element that is lost; one that a read has twice; one that a read has and that no add had begun to
//! add before the read completed and did not fail. Precondition: it is known and a read was invoked after that.
//! Judged: such elements, and pairs (read, element) for the other two.
//! Source: Jepsen's `set-full` checker; that it also refuses unexpected elements is ours.
//! Cost: the elements of all reads, and E/64 words for each read of a key with E elements.

use std::collections::BTreeMap;

use crate::bits;
use crate::history::{F, History, NONE, Outcome, number};
use crate::pasts::Options;
use crate::set::reads_a_set;
use crate::verdict::{Findings, Verdict, Witness};

/// The verdict, and what is no failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// Elements that are stable and were missing from a read that should have had them.
    pub stale: u64,
}

/// What is known of one element.
struct Element {
    value: u32,
    /// Its first add that did not fail.
    add: u32,
    /// The position from which it is known.
    known: u32,
    /// The read with the latest invocation that has it, and the one that lacks it.
    present: u32,
    absent: u32,
}

/// Judges every element.
pub fn check(history: &History, _: &Options) -> Report {
    let mut findings = Findings::default();
    let mut stale = 0;
    for (_, ops) in history.by_key().iter() {
        stale += one_key(history, ops, &mut findings);
    }
    Report { verdict: findings.verdict(), stale }
}

fn one_key(history: &History, ops: &[u32], findings: &mut Findings) -> u64 {
    let mut elements: Vec<Element> = Vec::new();
    let mut places: BTreeMap<u32, u32> = BTreeMap::new();
    let mut place_of = |elements: &mut Vec<Element>, value: u32| {
        *places.entry(value).or_insert_with(|| {
            elements.push(Element { value, add: NONE, known: NONE, present: NONE, absent: NONE });
            number(elements.len() - 1)
        })
    };
    let mut reads = Vec::new();
    for at in ops {
        let op = &history.ops[*at as usize];
        if reads_a_set(op) {
            reads.push(*at);
            for entry in history.returned(op) {
                let place = place_of(&mut elements, entry.id());
                let element = &mut elements[place as usize];
                element.known = element.known.min(op.complete);
            }
        }
        if op.f == F::Add && op.value != NONE && op.outcome != Outcome::Fail {
            let place = place_of(&mut elements, op.value);
            let element = &mut elements[place as usize];
            element.add = element.add.min(*at);
            if op.outcome == Outcome::Ok {
                element.known = element.known.min(op.complete);
            }
        }
    }
    // From the last read to the first: the first time that an element is met or missed is the last in time.
    let words = bits::words(elements.len());
    let (mut unmet, mut unmissed) = (vec![u64::MAX; words], vec![u64::MAX; words]);
    let mut has = vec![0; words];
    for at in reads.iter().rev() {
        let read = &history.ops[*at as usize];
        has.fill(0);
        for entry in history.returned(read) {
            let place = place_of(&mut elements, entry.id());
            let element = &elements[place as usize];
            findings.judged += 1;
            let value = history.values.name(element.value);
            let added = history.ops.get(element.add as usize).is_some_and(|add| add.invoke < read.complete);
            let twice = bits::has(&has, place);
            if twice || !added {
                findings.violation(read.complete, || Witness {
                    text: if twice {
                        format!("{} has {value} twice", history.say(*at))
                    } else {
                        format!(
                            "{} has {value}, which no add that did not fail had begun to add",
                            history.say(*at)
                        )
                    },
                    ops: vec![*at],
                });
            }
            bits::set(&mut has, place);
        }
        for word in 0..words {
            let (met, missed) = (unmet[word] & has[word], unmissed[word] & !has[word]);
            (unmet[word], unmissed[word]) = (unmet[word] & !met, unmissed[word] & !missed);
            let base = number(word) * 64;
            for bit in bits::ones(&[met]) {
                if let Some(element) = elements.get_mut((base + bit) as usize) {
                    element.present = *at;
                }
            }
            for bit in bits::ones(&[missed]) {
                if let Some(element) = elements.get_mut((base + bit) as usize) {
                    element.absent = *at;
                }
            }
        }
    }
    let mut stale = 0;
    for element in &elements {
        let invoked = |at: u32| history.ops.get(at as usize).map(|op| op.invoke);
        let (present, absent) = (invoked(element.present), invoked(element.absent));
        let known = element.known;
        if known == NONE || present.max(absent).is_none_or(|last| last < known) {
            continue;
        }
        findings.judged += 1;
        let missed = absent.filter(|absent| *absent > known);
        let Some(missed) = missed else { continue };
        if present.is_some_and(|present| present > missed) {
            stale += 1;
            continue;
        }
        let read = &history.ops[element.absent as usize];
        findings.violation(read.complete, || Witness {
            text: format!(
                "{} was known to be in the set from index {} on, and {} lacks it, as does every read after that",
                history.values.name(element.value),
                history.index(known),
                history.say(element.absent)
            ),
            ops: [element.add, element.present, element.absent].into_iter().filter(|at| *at != NONE).collect(),
        });
    }
    stale
}
