//! What the checks must say, written for being obviously right: sets, loops over everything, no cleverness.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use jepsen_like_checks::Options;
use jepsen_like_checks::history::{CURRENT, F, History, NONE, Op, Outcome, flag};

mod orders;
mod sets;

pub use orders::*;
pub use sets::*;

type Set = BTreeSet<usize>;

thread_local! {
    static REMOVED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Whether a rule of the definitions is in force. [`without`] takes one away, to show that its absence is noticed.
fn rule(name: &'static str) -> bool {
    debug_assert!(RULES.iter().any(|(_, known)| *known == name), "{name}");
    REMOVED.get() != Some(name)
}

/// Runs something while one rule is not in force.
pub fn without<T>(name: &'static str, run: impl FnOnce() -> T) -> T {
    REMOVED.set(Some(name));
    let result = run();
    REMOVED.set(None);
    result
}

/// Every rule that can be taken away, with the check whose proof must notice.
pub const RULES: &[(&str, &str)] = &[
    ("thin-air", "thin air: failed writes"),
    ("thin-air", "thin air: real time"),
    ("frontier", "frontier: overwritten"),
    ("frontier", "frontier: claims"),
    ("frontier", "frontier: dots"),
    ("frontier-claims", "frontier: claims"),
    ("frontier-claims", "frontier: dots"),
    ("frontier-claims", "accounted: loose"),
    ("durability", "accounted: past"),
    ("durability", "durability: losses"),
    ("durability", "accounted: deletions"),
    ("convergence", "convergence: tombstones"),
    ("convergence-claims", "convergence: contexts"),
    ("resurrection", "resurrection: final"),
    ("resurrection", "resurrection: claims"),
    ("resurrection", "resurrection: expiry"),
    ("regular", "quorum: strict"),
    ("regular", "quorum: overlap"),
    ("regular", "quorum: layout"),
    ("regular", "quorum: losses"),
    ("regular", "accounted: expiry"),
    ("read-your-writes", "own writes"),
    ("monotonic-writes", "sessions: same process"),
    ("writes-follow-reads", "sessions: same process"),
    ("set", "set: lost"),
    ("set", "set: unexpected"),
    ("set-full", "set-full: last read"),
    ("counter", "counter: lower bound"),
    ("counter", "counter: negative adds"),
    ("register", "linearizable: real time"),
    ("cas-register", "linearizable: unknown may happen"),
    ("key-value", "linearizable: real time"),
    ("kv-append", "linearizable: real time"),
    ("staleness", "accounted: past"),
    ("staleness", "monotonic reads: same process"),
    ("causal", "causal: reads (CC)"),
    ("causal", "causal: one order for all (CCv)"),
    ("causal", "causal: earlier reads (CM)"),
    ("causal-siblings", "causal: contexts"),
];

/// `None`: nothing judged.
pub type Answer = Option<bool>;

/// Accumulates.
#[derive(Default)]
struct All {
    judged: bool,
    wrong: bool,
}

impl All {
    fn judge(&mut self, right: bool) {
        self.judged = true;
        self.wrong |= !right;
    }

    fn answer(self) -> Answer {
        if self.wrong { Some(false) } else { self.judged.then_some(true) }
    }
}

fn ids(history: &History, list: u32) -> Vec<u32> {
    history.lists.get(list).iter().map(|entry| entry.id()).collect()
}

fn failed(op: &Op) -> bool {
    op.outcome == Outcome::Fail
}

/// The writes of the same key that an operation returned.
pub fn returned(history: &History, op: &Op) -> Set {
    let writers = ids(history, op.list).into_iter().filter_map(|id| history.writer(id));
    writers.map(|at| at as usize).filter(|at| history.ops[*at].key == op.key).collect()
}

fn parents(history: &History, op: &Op) -> Set {
    let mut parents = Set::new();
    if op.after != NONE && op.after != CURRENT {
        let context = &history.ops[op.after as usize];
        if context.key == op.key {
            parents.extend(returned(history, context));
            if context.is_write() {
                parents.insert(op.after as usize);
            }
        }
    }
    for id in ids(history, op.saw) {
        if let Some(at) = history.writer(id) {
            let seen = &history.ops[at as usize];
            if seen.key == op.key && seen.invoke < op.complete {
                parents.insert(at as usize);
            }
        }
    }
    parents
}

pub fn past(history: &History, write: usize) -> Set {
    let mut past = Set::new();
    let mut todo: Vec<usize> = parents(history, &history.ops[write]).into_iter().collect();
    while let Some(at) = todo.pop() {
        if past.insert(at) {
            todo.extend(parents(history, &history.ops[at]));
        }
    }
    past
}

fn loose(op: &Op) -> bool {
    let moment = op.after == CURRENT || (op.f == F::Delete && op.after == NONE);
    op.is_write() && !failed(op) && moment && !(op.outcome == Outcome::Ok && op.has(flag::SAW))
}

fn expires(history: &History, op: &Op) -> Option<(i64, i64)> {
    let extra = history.extra(op);
    let ttl = i64::try_from(extra.ttl?).unwrap();
    match extra.clock {
        Some((lo, hi)) if op.outcome == Outcome::Ok => Some((lo + ttl, hi + ttl)),
        _ => Some((i64::MIN, i64::MAX)),
    }
}

fn may_be_gone(history: &History, op: &Op, clock: Option<(i64, i64)>, options: &Options) -> bool {
    let Some((earliest, _)) = expires(history, op) else { return false };
    clock.is_none_or(|(_, hi)| earliest <= hi + options.clock_skew_ms)
}

/// Whether `write` may be absent from an observation of `members`, other than by being one of them.
fn accounted(
    history: &History,
    write: usize,
    members: &Set,
    end: u32,
    clock: Option<(i64, i64)>,
    options: &Options,
) -> bool {
    let key = history.ops[write].key;
    let gone = |op: &Op| may_be_gone(history, op, clock, options) && rule("accounted: expiry");
    if gone(&history.ops[write]) && !failed(&history.ops[write]) && history.ops[write].invoke < end {
        return true;
    }
    let mut holders = members.clone();
    for (at, op) in history.ops.iter().enumerate() {
        let counts = op.is_write() && op.key == key && !failed(op) && op.invoke < end;
        if counts && ((op.f == F::Delete && rule("accounted: deletions")) || gone(op)) {
            holders.insert(at);
        }
    }
    let mut below = Set::new();
    for holder in &holders {
        below.extend(past(history, *holder));
    }
    (below.contains(&write) && rule("accounted: past"))
        || holders.union(&below).any(|at| {
            let op = &history.ops[*at];
            rule("accounted: loose")
                && loose(op)
                && *at != write
                && history.ops[write].invoke < op.complete
                && !past(history, write).contains(at)
        })
}

fn reads(history: &History) -> impl Iterator<Item = (usize, &Op)> {
    history.ops.iter().enumerate().filter(|(_, op)| op.is_sibling_read())
}

fn clock(history: &History, op: &Op) -> Option<(i64, i64)> {
    history.extra(op).clock
}

pub fn thin_air(history: &History, _: &Options) -> Answer {
    let mut all = All::default();
    for (_, read) in reads(history) {
        for id in ids(history, read.list) {
            let right = history.writer(id).is_some_and(|writer| {
                let write = &history.ops[writer as usize];
                write.key == read.key
                    && !(failed(write) && rule("thin air: failed writes"))
                    && (write.invoke < read.complete || !rule("thin air: real time"))
            });
            all.judge(right);
        }
    }
    all.answer()
}

/// (key, actor, counter, id) of every claim.
fn dots(history: &History) -> BTreeSet<(u32, u32, u64, u32)> {
    let mut dots = BTreeSet::new();
    for op in &history.ops {
        if op.is_write()
            && let Some((actor, counter)) = history.dot(op.dot)
        {
            dots.insert((op.key, actor, counter, op.id));
        }
        if op.outcome == Outcome::Ok && op.has(flag::SIBLINGS) {
            for entry in history.lists.get(op.list) {
                if let Some((actor, counter)) = history.dot(entry.dot) {
                    dots.insert((op.key, actor, counter, entry.id()));
                }
            }
        }
    }
    dots
}

pub fn frontier(history: &History, options: &Options) -> Answer {
    let mut all = All::default();
    if let Some(answer) = thin_air(history, options) {
        all.judge(answer);
    }
    let dots = dots(history);
    for one in &dots {
        all.judge(true);
        for two in &dots {
            let (same_dot, same_id) =
                ((one.0, one.1, one.2) == (two.0, two.1, two.2), (one.0, one.3) == (two.0, two.3));
            if same_dot != same_id && rule("frontier: dots") {
                all.judge(false);
            }
        }
    }
    for (_, read) in reads(history) {
        let shown = returned(history, read);
        for t in &shown {
            for s in &shown {
                if s != t {
                    all.judge(true);
                }
                if past(history, *t).contains(s) && rule("frontier: overwritten") {
                    all.judge(false);
                }
            }
        }
        if read.covers == NONE || !rule("frontier: claims") {
            continue;
        }
        let held: Set = (0..history.ops.len())
            .filter(|at| {
                let op = &history.ops[*at];
                let covered = |dot: &(u32, u32, u64, u32)| {
                    let claim = history.contexts.get(read.covers).iter().find(|(actor, _)| *actor == dot.1);
                    (dot.0, dot.3) == (read.key, op.id) && claim.is_some_and(|(_, upto)| dot.2 <= *upto)
                };
                op.is_write() && op.key == read.key && !failed(op) && dots.iter().any(covered)
            })
            .collect();
        let members: Set = shown.union(&held).copied().collect();
        for write in held.iter().filter(|at| history.ops[**at].f == F::Put) {
            let right = shown.contains(write)
                || accounted(history, *write, &members, read.complete, clock(history, read), options);
            all.judge(right);
        }
    }
    all.answer()
}

fn losses(history: &History, op: &Op, end: u32) -> usize {
    let sync = op.has(flag::SYNC);
    let hits = history.marks.iter().filter(|mark| {
        mark.f == "lost" && op.invoke < mark.position && mark.position < end && (mark.disk || !sync)
    });
    hits.map(|mark| mark.node).collect::<BTreeSet<_>>().len()
}

fn copies(op: &Op) -> usize {
    usize::from(if op.copies > 0 { op.copies } else { op.w.max(1) })
}

pub fn durability(history: &History, options: &Options) -> Answer {
    let mut all = All::default();
    for (at, put) in history.ops.iter().enumerate() {
        if !(put.is_write() && put.f == F::Put && put.outcome == Outcome::Ok) {
            continue;
        }
        let finals: Vec<&Op> =
            reads(history).map(|(_, op)| op).filter(|op| op.f == F::Final && op.key == put.key).collect();
        if finals.is_empty() || finals.iter().any(|read| read.invoke < put.complete) {
            continue;
        }
        let end = finals.iter().map(|read| read.complete).max().unwrap();
        let present: Set = finals.iter().flat_map(|read| returned(history, read)).collect();
        let clocks: Option<Vec<(i64, i64)>> = finals.iter().map(|read| clock(history, read)).collect();
        let clock = clocks.map(|clocks| {
            (
                clocks.iter().map(|clock| clock.0).min().unwrap(),
                clocks.iter().map(|clock| clock.1).max().unwrap(),
            )
        });
        let right = present.contains(&at)
            || accounted(history, at, &present, end, clock, options)
            || (losses(history, put, end) >= copies(put) && rule("durability: losses"));
        all.judge(right);
    }
    all.answer()
}

pub fn convergence(history: &History, _: &Options) -> Answer {
    let mut all = All::default();
    let finals: Vec<(usize, &Op)> = reads(history).filter(|(_, op)| op.f == F::Final).collect();
    let node = |op: &Op| history.extra(op).node;
    let last = |at: usize, op: &Op| {
        !finals.iter().any(|(b, other)| *b > at && other.key == op.key && node(other) == node(op))
    };
    let state = |op: &Op| -> BTreeSet<(u32, bool)> {
        history
            .lists
            .get(op.list)
            .iter()
            .map(|entry| (entry.id(), entry.dead() && rule("convergence: tombstones")))
            .collect()
    };
    let claims = |op: &Op| -> Option<BTreeSet<(u32, u64)>> {
        let claims = op.covers != NONE && rule("convergence: contexts");
        claims.then(|| history.contexts.get(op.covers).iter().copied().filter(|claim| claim.1 > 0).collect())
    };
    for (a, one) in &finals {
        for (b, two) in &finals {
            let comparable =
                node(one).is_some() && node(two).is_some() && node(one) != node(two) && one.key == two.key;
            if comparable && last(*a, one) && last(*b, two) {
                all.judge(state(one) == state(two));
                if let (Some(one), Some(two)) = (claims(one), claims(two)) {
                    all.judge(one == two);
                }
            }
        }
    }
    all.answer()
}

fn quorums_meet(history: &History, write: &Op, read: &Op) -> bool {
    let lost = history.marks.iter().any(|mark| {
        mark.f == "lost" && mark.disk && write.invoke < mark.position && mark.position < read.complete
    });
    write.outcome == Outcome::Ok
        && read.f == F::Get
        && write.complete < read.invoke
        && (write.has(flag::STRICT) && read.has(flag::STRICT) || !rule("quorum: strict"))
        && write.has(flag::SYNC)
        && (write.layout == read.layout || !rule("quorum: layout"))
        && write.n == read.n
        && write.n > 0
        && write.w > 0
        && read.r > 0
        && (write.w + read.r > write.n || !rule("quorum: overlap"))
        && !(lost && rule("quorum: losses"))
}

pub fn resurrection(history: &History, options: &Options) -> Answer {
    let mut all = All::default();
    for (_, read) in reads(history) {
        let dead: Set = history
            .lists
            .get(read.list)
            .iter()
            .filter(|entry| entry.dead())
            .filter_map(|entry| history.writer(entry.id()))
            .map(|at| at as usize)
            .collect();
        let alive: Set = returned(history, read).difference(&dead).copied().collect();
        for put in &alive {
            let op = &history.ops[*put];
            if let (Some((_, latest)), Some((lo, _)), F::Put) =
                (expires(history, op), clock(history, read), op.f)
            {
                all.judge(
                    latest.saturating_add(options.clock_skew_ms) >= lo || !rule("resurrection: expiry"),
                );
            }
        }
        for (at, deletion) in history.ops.iter().enumerate() {
            if deletion.f != F::Delete || deletion.key != read.key || deletion.outcome != Outcome::Ok {
                continue;
            }
            let at_the_end = read.f == F::Final
                && deletion.complete < read.invoke
                && losses(history, deletion, read.complete) < copies(deletion);
            let claimed = history.dot(deletion.dot).is_some_and(|(actor, counter)| {
                read.covers != NONE
                    && deletion.invoke < read.complete
                    && history
                        .contexts
                        .get(read.covers)
                        .iter()
                        .any(|claim| claim.0 == actor && counter <= claim.1)
            });
            if (at_the_end && rule("resurrection: final"))
                || (claimed && rule("resurrection: claims"))
                || quorums_meet(history, deletion, read)
            {
                all.judge(past(history, at).is_disjoint(&alive));
            }
        }
    }
    all.answer()
}

fn sees(history: &History, own: bool, options: &Options) -> Answer {
    let mut all = All::default();
    for (_, read) in reads(history) {
        let shown = returned(history, read);
        for (at, put) in history.ops.iter().enumerate() {
            let due = put.is_write()
                && put.f == F::Put
                && put.key == read.key
                && (!own || !rule("own writes") || put.process == read.process)
                && quorums_meet(history, put, read);
            if due {
                let seen = shown.contains(&at)
                    || accounted(history, at, &shown, read.complete, clock(history, read), options);
                all.judge(seen);
            }
        }
    }
    all.answer()
}

pub fn regular(history: &History, options: &Options) -> Answer {
    sees(history, false, options)
}

pub fn read_your_writes(history: &History, options: &Options) -> Answer {
    sees(history, true, options)
}

fn session(history: &History, before: impl Fn(usize) -> Set) -> Answer {
    let mut all = All::default();
    for (_, read) in reads(history) {
        let shown = returned(history, read);
        for t in &shown {
            let mut chain = past(history, *t);
            chain.insert(*t);
            let ordered: Set = chain.iter().flat_map(|w2| before(*w2)).collect();
            if !ordered.is_empty() {
                all.judge(ordered.is_disjoint(&shown));
            }
        }
    }
    all.answer()
}

pub fn monotonic_writes(history: &History, _: &Options) -> Answer {
    session(history, |t| {
        let op = &history.ops[t];
        let same = |s: &usize| {
            let earlier = &history.ops[*s];
            (earlier.process == op.process || !rule("sessions: same process"))
                && earlier.outcome == Outcome::Ok
                && earlier.complete < op.invoke
        };
        past(history, t).into_iter().filter(same).collect()
    })
}

pub fn writes_follow_reads(history: &History, _: &Options) -> Answer {
    session(history, |t| {
        let op = &history.ops[t];
        let mut known = Set::new();
        if op.after != NONE && op.after != CURRENT {
            let context = &history.ops[op.after as usize];
            let same = context.process == op.process || !rule("sessions: same process");
            if matches!(context.f, F::Get | F::Final) && same && context.key == op.key {
                for seen in returned(history, context) {
                    known.insert(seen);
                    known.extend(past(history, seen));
                }
            }
        }
        known
    })
}

/// Gets by the number of acknowledged puts they missed, added up; and (judged, went back) of monotonic reads.
pub fn staleness(history: &History, options: &Options) -> (u64, (u64, u64)) {
    let (mut missed, mut judged, mut back) = (0, 0, 0);
    for (_, read) in reads(history).filter(|(_, read)| read.f == F::Get) {
        let shown = returned(history, read);
        let lacks = |at: usize| {
            !shown.contains(&at)
                && !accounted(history, at, &shown, read.complete, clock(history, read), options)
        };
        for (at, put) in history.ops.iter().enumerate() {
            let acked =
                put.is_write() && put.f == F::Put && put.key == read.key && put.outcome == Outcome::Ok;
            missed += u64::from(acked && put.complete < read.invoke && lacks(at));
        }
        let earlier: Vec<&Op> = reads(history)
            .map(|(_, op)| op)
            .filter(|op| {
                (op.f, op.key) == (F::Get, read.key)
                    && op.invoke < read.invoke
                    && (op.process == read.process || !rule("monotonic reads: same process"))
            })
            .collect();
        judged += u64::from(!earlier.is_empty());
        let went_back = earlier
            .iter()
            .any(|op| returned(history, op).into_iter().any(|at| history.ops[at].f == F::Put && lacks(at)));
        back += u64::from(went_back);
    }
    (missed, (judged, back))
}
