//! Resurrection: what was deleted stays deleted, and what has expired stays away.
//!
//! Definition. No read g returns a put s as a value (alive, hidden or not) where
//! - s lies in past(d) of an acknowledged deletion d that g had to know: because g is a `final` read that was
//!   invoked after d completed, unless at least d's `copies` losses on distinct nodes came after d was invoked; or
//!   because d and g meet the precondition of [`crate::regular`]; or because g itself claims to have seen d's dot;
//! - s has expired for certain: even the latest moment at which it may expire, and the bound on clocks, lie before
//!   the earliest that g's node may have had on its clock.
//!
//! A deletion of unknown outcome forbids nothing.
//! Judged: pairs (deletion, read) that meet one of the three, and pairs (returned put with a time to live, read with
//! a clock). Source: promise P4 of the design; tombstones that are collected too early are Cassandra's and Riak's
//! known way to bring back data. Cost: the pasts of each key, and for each read its deletions.

use crate::bits;
use crate::durability::{Losses, copies};
use crate::history::{F, History, NONE, Op, Outcome};
use crate::pasts::{Key, Options, must_have_expired};
use crate::quorum;
use crate::verdict::{Findings, Verdict, Witness};

/// Judges every read.
pub fn check(history: &History, options: &Options) -> Verdict {
    let mut findings = Findings::default();
    let losses = Losses::of(history);
    let mut key = Key::new(history, options);
    let mut alive = Vec::new();
    for (number, ops) in history.by_key().iter() {
        if let Err(reason) = key.load(number, ops) {
            findings.ran_out(reason);
            continue;
        }
        let deletions: Vec<u32> =
            key.deletions.iter().copied().filter(|d| key.op(*d).outcome == Outcome::Ok).collect();
        for at in &key.reads {
            let read = &history.ops[*at as usize];
            alive.clear();
            let live = history.returned(read).iter().filter(|entry| !entry.dead());
            alive.extend(live.filter_map(|entry| key.number(entry.id())));
            expired(&key, *at, read, &alive, &mut findings);
            for deletion in &deletions {
                let op = key.op(*deletion);
                if op.invoke > read.complete {
                    break;
                }
                if !had_to_know(history, op, read, &losses) {
                    continue;
                }
                findings.judged += 1;
                for put in alive.iter().filter(|put| bits::has(key.past(*deletion), **put)) {
                    let (put, deletion) = (key.writes[*put as usize], key.writes[*deletion as usize]);
                    findings.violation(read.complete, || Witness {
                        text: format!(
                            "{} returned {}, which {} had seen and deleted; that was acknowledged at index {}",
                            history.say(*at),
                            history.say(put),
                            history.say(deletion),
                            history.index(op.complete)
                        ),
                        ops: vec![put, deletion, *at],
                    });
                }
            }
        }
    }
    findings.verdict()
}

fn had_to_know(history: &History, deletion: &Op, read: &Op, losses: &Losses) -> bool {
    let last = read.f == F::Final && deletion.ended_before(read.invoke);
    if last && losses.hit(deletion, deletion.invoke, read.complete) < copies(deletion) {
        return true;
    }
    if quorum::meets(deletion, read, losses) {
        return true;
    }
    let (Some((actor, counter)), true) = (history.dot(deletion.dot), read.covers != NONE) else {
        return false;
    };
    history.contexts.get(read.covers).iter().any(|(claimed, upto)| *claimed == actor && counter <= *upto)
}

fn expired(key: &Key<'_>, at: u32, read: &Op, alive: &[u32], findings: &mut Findings) {
    let history = key.history;
    let clock = history.extra(read).clock;
    for put in alive {
        let op = key.op(*put);
        if clock.is_none() || op.f != F::Put || crate::pasts::expiry(history, op).is_none() {
            continue;
        }
        findings.judged += 1;
        if must_have_expired(history, op, clock, key.options.clock_skew_ms) {
            let put = key.writes[*put as usize];
            findings.violation(read.complete, || Witness {
                text: format!(
                    "{} returned {}, which had expired by more than the bound on clocks",
                    history.say(at),
                    history.say(put)
                ),
                ops: vec![put, at],
            });
        }
    }
}
