//! Durability: an acknowledged write is in the final state, or something accounts for its absence.
//!
//! Definition. An acknowledged put may be missing from the final state of its key only if
//! - it is accounted for ([`crate::pasts`]): a write that saw it is there, a deletion saw it, or it or a write that
//!   saw it may have expired by the final read's clock; or
//! - at least `copies` `lost` events on distinct nodes came after it was invoked. A loss of a whole disk counts for
//!   every write; one of what was not synced yet, only for writes that were not `sync`. Where the store does not
//!   say how many copies it had, `w` of them; where that is not known either, one.
//!
//! The final state is what `final` reads returned, together: whether replicas agree is [`crate::convergence`]'s to
//! say. Precondition: a `final` read of the key that was invoked after the write completed.
//! Judged: pairs (acknowledged put, final state). Source: promise P1 of the design; Jepsen's set checker for the
//! form. Cost: the pasts of each key.

use std::collections::BTreeSet;

use crate::bits;
use crate::history::{F, History, NONE, Op, Outcome, flag, number};
use crate::pasts::{Key, Options};
use crate::verdict::{Findings, Verdict, Witness};

/// Judges every acknowledged put against the final state of its key.
pub fn check(history: &History, options: &Options) -> Verdict {
    let mut findings = Findings::default();
    let losses = Losses::of(history);
    let mut key = Key::new(history, options);
    for (number_of_key, ops) in history.by_key().iter() {
        if let Err(reason) = key.load(number_of_key, ops) {
            findings.ran_out(reason);
            continue;
        }
        let (mut present, mut reached) = (key.none(), key.none());
        let (mut first, mut end, mut clock, mut last) = (u32::MAX, 0, None, NONE);
        let (mut returned, mut seen) = (Vec::new(), Vec::new());
        for at in &key.reads {
            let read = &history.ops[*at as usize];
            if read.f != F::Final {
                continue;
            }
            key.observe(read, &mut returned, &mut seen);
            bits::join(&mut present, &returned);
            bits::join(&mut reached, &seen);
            // The latest clock of all: what may have expired for one of them may be missing.
            clock = match (clock, history.extra(read).clock) {
                (None, said) if last == NONE => said,
                (Some((lo, hi)), Some((lo2, hi2))) => Some((i64::min(lo, lo2), i64::max(hi, hi2))),
                _ => None,
            };
            (first, end, last) = (first.min(read.invoke), end.max(read.complete), *at);
        }
        if last == NONE {
            continue;
        }
        for write in 0..number(key.writes.len()) {
            let put = key.op(write);
            if put.f != F::Put || put.outcome != Outcome::Ok || !put.ended_before(first) {
                continue;
            }
            findings.judged += 1;
            if bits::has(&present, write)
                || bits::has(&reached, write)
                || key.accounted(write, &reached, &present, end, clock)
                || losses.hit(put, put.invoke, end) >= copies(put)
            {
                continue;
            }
            let write = key.writes[write as usize];
            findings.violation(put.complete, || Witness {
                text: format!(
                    "{} was acknowledged at index {} and is not in the final state of key {}; no write that saw \
                     it is there, and no deletion, expiry or loss accounts for it",
                    history.say(write),
                    history.index(put.complete),
                    history.keys.name(number_of_key)
                ),
                ops: vec![write, last],
            });
        }
    }
    findings.verdict()
}

/// On how many nodes a write was durable, as far as is known.
pub(crate) fn copies(write: &Op) -> usize {
    usize::from(if write.copies > 0 { write.copies } else { write.w.max(1) })
}

/// Disks that were lost.
pub(crate) struct Losses {
    /// (position, node, whether what was synced is lost too), by position.
    events: Vec<(u32, u32, bool)>,
}

impl Losses {
    pub(crate) fn of(history: &History) -> Self {
        let lost = history.marks.iter().filter(|mark| mark.f == "lost");
        Losses { events: lost.map(|mark| (mark.position, mark.node, mark.disk)).collect() }
    }

    /// On how many distinct nodes a loss hit a write between two positions.
    pub(crate) fn hit(&self, write: &Op, from: u32, to: u32) -> usize {
        let start = self.events.partition_point(|event| event.0 < from);
        let sync = write.has(flag::SYNC);
        let events = self.events[start..].iter().take_while(|event| event.0 < to);
        events.filter(|event| event.2 || !sync).map(|event| event.1).collect::<BTreeSet<u32>>().len()
    }

    /// Where the last loss of a disk before `end` stands.
    pub(crate) fn last_disk_before(&self, end: u32) -> Option<u32> {
        let before = self.events.partition_point(|event| event.0 < end);
        self.events[..before].iter().rev().find(|event| event.2).map(|event| event.0)
    }
}
