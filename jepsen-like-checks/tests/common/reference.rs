//! What the checks must say, written for being obviously right: sets, loops over everything, no cleverness.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use jepsen_like_checks::Options;
use jepsen_like_checks::history::{CURRENT, F, History, NONE, Op, Outcome, flag};

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

fn elements(history: &History, op: &Op) -> Vec<u32> {
    ids(history, op.list)
}

/// Judges each key alone.
fn per_key(history: &History, judge: impl Fn(u32) -> Answer) -> Answer {
    let mut all = All::default();
    for key in 0..u32::try_from(history.keys.len()).unwrap() {
        if let Some(answer) = judge(key) {
            all.judge(answer);
        }
    }
    all.answer()
}

fn set_reads(history: &History, key: u32) -> Vec<&Op> {
    let reads = history.ops.iter().filter(|op| op.key == key && op.f == F::Read && op.outcome == Outcome::Ok);
    reads.filter(|op| op.has(flag::ELEMENTS)).collect()
}

pub fn set(history: &History, _: &Options) -> Answer {
    per_key(history, |key| set_of(history, key))
}

fn set_of(history: &History, key: u32) -> Answer {
    let mut all = All::default();
    let reads = set_reads(history, key);
    let last = reads.iter().max_by_key(|op| op.complete)?;
    let there = elements(history, last);
    let adds: Vec<&Op> = history.ops.iter().filter(|op| op.key == key && op.f == F::Add).collect();
    for add in &adds {
        if add.outcome == Outcome::Ok && add.complete < last.invoke {
            all.judge(there.contains(&add.value) || !rule("set: lost"));
        }
    }
    for element in there {
        let may = |add: &&&Op| add.value == element && !failed(add) && add.invoke < last.complete;
        all.judge(adds.iter().any(|add| may(&add)) || !rule("set: unexpected"));
    }
    all.answer()
}

pub fn set_full(history: &History, _: &Options) -> Answer {
    per_key(history, |key| set_full_of(history, key))
}

/// Elements that some read lacked that could tell, and that are in the last one.
pub fn stale(history: &History) -> u64 {
    let mut stale = 0;
    for key in 0..u32::try_from(history.keys.len()).unwrap() {
        let reads = set_reads(history, key);
        let ops: Vec<&Op> = history.ops.iter().filter(|op| op.key == key).collect();
        let adds = ops.iter().filter(|op| op.f == F::Add && !failed(op)).map(|op| op.value);
        let seen = reads.iter().flat_map(|read| elements(history, read));
        for element in adds.chain(seen).collect::<BTreeSet<u32>>() {
            let has = |op: &Op| elements(history, op).contains(&element);
            let tells = |op: &&&Op| match op.f {
                F::Add => op.value == element && op.outcome == Outcome::Ok,
                _ => reads.iter().any(|read| read.invoke == op.invoke) && has(op),
            };
            let Some(known) = ops.iter().filter(tells).map(|op| op.complete).min() else { continue };
            let later: Vec<&&Op> = reads.iter().filter(|read| read.invoke > known).collect();
            let last = later.iter().max_by_key(|read| read.invoke);
            stale += u64::from(last.is_some_and(|last| has(last)) && later.iter().any(|read| !has(read)));
        }
    }
    stale
}

fn set_full_of(history: &History, key: u32) -> Answer {
    let mut all = All::default();
    let reads = set_reads(history, key);
    let adds: Vec<&Op> =
        history.ops.iter().filter(|op| op.key == key && op.f == F::Add && !failed(op)).collect();
    for read in &reads {
        let has = elements(history, read);
        for element in &has {
            let added = adds.iter().any(|add| add.value == *element && add.invoke < read.complete);
            all.judge(added && has.iter().filter(|other| *other == element).count() == 1);
        }
    }
    let mut universe: BTreeSet<u32> = adds.iter().map(|add| add.value).collect();
    universe.extend(reads.iter().flat_map(|read| elements(history, read)));
    for element in universe {
        let by_add = adds.iter().filter(|add| add.value == element && add.outcome == Outcome::Ok);
        let with: Vec<&&Op> =
            reads.iter().filter(|read| elements(history, read).contains(&element)).collect();
        let known = by_add.map(|add| add.complete).chain(with.iter().map(|read| read.complete)).min();
        let Some(known) = known else { continue };
        let later: Vec<&&Op> = reads.iter().filter(|read| read.invoke > known).collect();
        let Some(last) = later.iter().max_by_key(|read| read.invoke) else { continue };
        // It is lost if the last read of all that could tell lacks it.
        all.judge(elements(history, last).contains(&element) || !rule("set-full: last read"));
    }
    all.answer()
}

pub fn counter(history: &History, _: &Options) -> Answer {
    per_key(history, |key| counter_of(history, key))
}

fn counter_of(history: &History, key: u32) -> Answer {
    let mut all = All::default();
    let int = |op: &Op| history.values.name(op.value).parse::<i64>().unwrap();
    for read in history
        .ops
        .iter()
        .filter(|op| op.key == key && op.f == F::Read && op.outcome == Outcome::Ok && op.value != NONE)
    {
        let (mut low, mut high) = (0, 0);
        for add in history.ops.iter().filter(|op| op.key == key && op.f == F::Add && !failed(op)) {
            let must = add.outcome == Outcome::Ok && add.complete < read.invoke;
            let may = add.invoke < read.complete;
            let value = int(add);
            let negative = value < 0 && rule("counter: negative adds");
            low += if must || (may && negative) { value } else { 0 };
            high += if must || (may && value > 0) { value } else { 0 };
        }
        all.judge((low <= int(read) || !rule("counter: lower bound")) && int(read) <= high);
    }
    all.answer()
}

/// The whole object at once: every key's value.
type State = Vec<(u32, String)>;

fn read_state(state: &State, key: u32) -> String {
    state.iter().find(|(known, _)| *known == key).map_or("nil".to_owned(), |(_, value)| value.clone())
}

fn write_state(state: &State, key: u32, value: String) -> State {
    let mut state: State = state.iter().filter(|(known, _)| *known != key).cloned().collect();
    state.push((key, value));
    state
}

fn apply(history: &History, op: &Op, state: &State) -> Option<State> {
    let value = |value: u32| history.values.name(value).to_owned();
    let now = read_state(state, op.key);
    match op.f {
        F::Read | F::Get => {
            let read = value(op.value);
            (now == read || (now == "nil" && read == "\"\"")).then(|| state.clone())
        }
        F::Write | F::Put => Some(write_state(state, op.key, value(op.value))),
        F::Cas => (now == value(op.value)).then(|| write_state(state, op.key, value(op.value2))),
        F::Append => {
            let before = if now == "nil" { "\"\"".to_owned() } else { now };
            Some(write_state(state, op.key, format!("{before}{}", value(op.value)).replace("\"\"", "")))
        }
        _ => None,
    }
}

/// Linearizability by trying every order.
pub fn linearizable(history: &History, _: &Options) -> Answer {
    let pure = |op: &Op| matches!(op.f, F::Read | F::Get);
    let ops: Vec<&Op> = history
        .ops
        .iter()
        .filter(|op| !(failed(op) || pure(op) && op.outcome == Outcome::Info))
        .filter(|op| op.outcome == Outcome::Ok || rule("linearizable: unknown may happen"))
        .collect();
    if !ops.iter().any(|op| op.outcome == Outcome::Ok) {
        return None;
    }
    fn go(history: &History, ops: &[&Op], done: &mut Vec<bool>, state: &State) -> bool {
        if ops.iter().zip(done.iter()).all(|(op, done)| *done || op.outcome != Outcome::Ok) {
            return true;
        }
        for at in 0..ops.len() {
            let waits = |other: usize| {
                !done[other]
                    && ops[other].outcome == Outcome::Ok
                    && ops[other].complete < ops[at].invoke
                    && rule("linearizable: real time")
            };
            if done[at] || (0..ops.len()).any(waits) {
                continue;
            }
            if let Some(next) = apply(history, ops[at], state) {
                done[at] = true;
                if go(history, ops, done, &next) {
                    return true;
                }
                done[at] = false;
            }
        }
        false
    }
    Some(go(history, &ops, &mut vec![false; ops.len()], &State::new()))
}

/// CC, CCv and CM by their definitions: some causal order, and for each operation some order of its past that
/// explains it (its own reads alone for CC; its process's for CM; one order for all for CCv).
pub fn causal(history: &History) -> [bool; 3] {
    let ops: Vec<&Op> = history
        .ops
        .iter()
        .filter(|op| match op.f {
            F::Get => op.outcome == Outcome::Ok,
            _ => !failed(op),
        })
        .collect();
    let n = ops.len();
    let po = |a: usize, b: usize| ops[a].process == ops[b].process && a < b;
    let mut answer = [false; 3];
    let mut program = 0;
    for (a, b) in (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|(a, b)| po(*a, *b)) {
        program |= 1 << (a * ORDER_MAX + b);
    }
    // Values are written once: what was read has its writer before it in every order that explains the read.
    let reads = (0..n).filter(|at| ops[*at].f == F::Get && !nil(history, ops[*at]));
    for read in reads.filter(|_| rule("causal: reads (CC)")) {
        let wrote = |op: &&Op| op.f != F::Get && (op.key, op.value) == (ops[read].key, ops[read].value);
        let Some(writer) = ops.iter().position(wrote) else { return [false; 3] };
        program |= 1 << (writer * ORDER_MAX + read);
    }
    for relation in partial_orders(n).iter().filter(|relation| *relation & program == program) {
        let before = |a: usize, b: usize| relation >> (a * ORDER_MAX + b) & 1 == 1;
        // Whether the past of `o` in this order explains the reads that count.
        let explains = |o: usize, order: &[usize], counts: &dyn Fn(usize) -> bool| {
            let mut state = [NONE; 2];
            for at in order.iter().filter(|at| **at == o || before(**at, o)) {
                let (op, now) = (ops[*at], &mut state[ops[*at].key as usize]);
                if op.f != F::Get {
                    *now = op.value;
                } else if counts(*at) && op.value != *now && !(*now == NONE && nil(history, op)) {
                    return false;
                }
            }
            true
        };
        let own = |o: usize| move |at: usize| at == o && rule("causal: reads (CC)");
        let earlier =
            |o: usize| move |at: usize| at == o || (po(at, o) && rule("causal: earlier reads (CM)"));
        // For each operation, whether some order explains it at each level.
        let (mut cc, mut cm) = (vec![false; n], vec![false; n]);
        let mut ccv = false;
        linear(n, &before, &mut Vec::new(), &mut |order| {
            for o in 0..n {
                cc[o] = cc[o] || explains(o, order, &own(o));
                cm[o] = cm[o] || explains(o, order, &earlier(o));
            }
            ccv = ccv || (0..n).all(|o| explains(o, order, &own(o)));
        });
        let each = cc.iter().all(|explained| *explained);
        answer[0] |= each;
        answer[1] |= ccv || (each && !rule("causal: one order for all (CCv)"));
        answer[2] |= cm.iter().all(|explained| *explained);
        if answer == [true; 3] {
            break;
        }
    }
    answer
}

fn nil(history: &History, op: &Op) -> bool {
    history.values.name(op.value) == "nil"
}

/// Every order of all things that keeps `before`.
fn linear(
    n: usize,
    before: &dyn Fn(usize, usize) -> bool,
    order: &mut Vec<usize>,
    each: &mut dyn FnMut(&[usize]),
) {
    if order.len() == n {
        each(order);
        return;
    }
    for next in (0..n).filter(|next| !order.contains(next)).collect::<Vec<_>>() {
        if (0..n).all(|other| !before(other, next) || order.contains(&other)) {
            order.push(next);
            linear(n, before, order, each);
            order.pop();
        }
    }
}

/// The largest number of things that [`partial_orders`] orders.
const ORDER_MAX: usize = 6;

/// Every strict partial order of `n` things: bit `a * ORDER_MAX + b` is a before b.
fn partial_orders(n: usize) -> Rc<Vec<u64>> {
    thread_local! {
        static KNOWN: RefCell<BTreeMap<usize, Rc<Vec<u64>>>> = const { RefCell::new(BTreeMap::new()) };
    }
    assert!(n <= ORDER_MAX);
    if n == 0 {
        return Rc::new(vec![0]);
    }
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&n).cloned()) {
        return known;
    }
    // One thing more: before some, behind some, and what follows from that must be there already.
    let (new, mut all) = (n - 1, Vec::new());
    for smaller in partial_orders(new).iter() {
        for (behind, front) in (0_u32..1 << new).flat_map(|a| (0_u32..1 << new).map(move |b| (a, b))) {
            let mut relation = *smaller;
            for at in 0..new {
                relation |= u64::from(behind >> at & 1) << (new * ORDER_MAX + at);
                relation |= u64::from(front >> at & 1) << (at * ORDER_MAX + new);
            }
            let before = |a: usize, b: usize| relation >> (a * ORDER_MAX + b) & 1 == 1;
            let pairs = (0..n).flat_map(|a| (0..n).map(move |b| (a, b)));
            let strict = pairs
                .filter(|(a, b)| before(*a, *b))
                .all(|(a, b)| !before(b, a) && (0..n).all(|c| !before(b, c) || before(a, c)));
            if strict {
                all.push(relation);
            }
        }
    }
    let all = Rc::new(all);
    KNOWN.with_borrow_mut(|known| known.insert(n, all.clone()));
    all
}

#[test]
fn there_are_as_many_partial_orders_as_is_known() {
    let counts: Vec<usize> = (0..=5).map(|n| partial_orders(n).len()).collect();
    assert_eq!(counts, [1, 1, 3, 19, 219, 4231]);
}

/// Causality of siblings, by a closure over pairs.
pub fn causal_siblings(history: &History, options: &Options) -> Answer {
    let ops = &history.ops;
    let counts = |op: &Op| (op.is_write() && !failed(op)) || (op.f == F::Get && op.is_sibling_read());
    let mut co: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (b, op) in ops.iter().enumerate().filter(|(_, op)| counts(op)) {
        for (a, other) in ops.iter().enumerate().filter(|(_, op)| counts(op)) {
            let po = other.process == op.process && a < b;
            let rf = op.f == F::Get
                && ids(history, op.list)
                    .iter()
                    .any(|id| history.writer(*id) == Some(u32::try_from(a).unwrap()));
            let context = op.f != F::Get && op.after as usize == a && rule("causal: contexts");
            if po || rf || context {
                co.insert((a, b));
            }
        }
    }
    loop {
        let more: Vec<(usize, usize)> = co
            .iter()
            .flat_map(|(a, b)| co.iter().filter(move |(c, _)| c == b).map(move |(_, d)| (*a, *d)))
            .collect();
        let before = co.len();
        co.extend(more);
        if co.len() == before {
            break;
        }
    }
    if co.iter().any(|(a, b)| a == b) {
        return Some(false);
    }
    let mut all = All::default();
    for (at, read) in reads(history).filter(|(_, read)| read.f == F::Get) {
        all.judge(true);
        for id in ids(history, read.list) {
            let right = history.writer(id).is_some_and(|writer| {
                let write = &ops[writer as usize];
                write.key == read.key && !failed(write) && write.invoke < read.complete
            });
            all.judge(right);
        }
        let shown = returned(history, read);
        for (write, op) in ops.iter().enumerate() {
            if op.is_write()
                && op.f == F::Put
                && op.key == read.key
                && !failed(op)
                && co.contains(&(write, at))
            {
                let right = shown.contains(&write)
                    || accounted(history, write, &shown, read.complete, clock(history, read), options);
                all.judge(right);
            }
        }
    }
    all.answer()
}
