//! The writes of one key and what each had seen: the truth by which absences are judged.
//!
//! `past(w)` is what the completion returned whose context `w` passed, what `w` says it overwrote, and the pasts
//! of those. A write that passed a put's context saw that put's own id too. Siblings that were `hidden` or `dead`
//! in a reply count: its context covers them.
//!
//! A write is **loose** if it overwrote what its coordinator held (a `current` put, a delete without a token) and
//! no completion says what that was. It may have overwritten any write that was invoked before it ended, except
//! those that had seen it; an operation that never ended never stops being able to.
//!
//! **Accounted for.** Given what an observation reached (a set of writes; see each check), a write may be absent
//! from it if it lies in the reached set or in the past of a member, or if a loose member may have overwritten it.
//! Always reached are: deletions that did not fail and were invoked before the observation ended, whether or not
//! any claim holds their dot (a reaped tombstone leaves no trace); and writes with a time to live that may have
//! run out by the observation's clock, or that may have run out where it gives none.
//!
//! Cost: a row of bits for each write of a key, W²/8 bytes and W²/64 steps for W writes of one key.

use crate::bits;
use crate::history::{CURRENT, Entry, F, History, NONE, Op, Outcome, flag, number};

/// What checks can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How far wall clocks of nodes may be apart, in milliseconds.
    pub clock_skew_ms: i64,
    /// Bytes that one check may use beside the history.
    pub memory: usize,
    /// Steps that a search may take (states of a linearizability search, and the like).
    pub steps: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { clock_skew_ms: 10_000, memory: 1 << 30, steps: 200_000_000 }
    }
}

/// The number of each write among those of its key, by id.
pub(crate) struct Numbers(Vec<u32>);

impl Numbers {
    pub(crate) fn of(history: &History) -> Self {
        let mut next = vec![0_u32; history.keys.len()];
        let mut numbers = vec![NONE; history.ids.len()];
        for op in history.ops.iter().filter(|op| op.is_write()) {
            let next = &mut next[op.key as usize];
            numbers[op.id as usize] = *next;
            *next += 1;
        }
        Numbers(numbers)
    }
}

/// One key: its writes by number, their pasts, its reads.
pub(crate) struct Key<'h> {
    pub(crate) history: &'h History,
    pub(crate) options: &'h Options,
    numbers: Numbers,
    pub(crate) key: u32,
    /// The operation of each write, in the order of invocation.
    pub(crate) writes: Vec<u32>,
    /// Words of a set of writes.
    pub(crate) words: usize,
    past: Vec<u64>,
    /// Loose writes that did not fail.
    loose: Vec<u32>,
    /// Writes with a time to live that did not fail.
    mortal: Vec<u32>,
    /// Deletions that did not fail.
    pub(crate) deletions: Vec<u32>,
    /// For each deletion, it and those before it and all their pasts.
    deleted: Vec<u64>,
    /// Reads that were answered with siblings, in the order of invocation.
    pub(crate) reads: Vec<u32>,
}

/// When a write expires, at the earliest and at the latest. `None`: never.
pub(crate) fn expiry(history: &History, write: &Op) -> Option<(i64, i64)> {
    let extra = history.extra(write);
    if let Some(at) = extra.expires_at {
        return Some((at, at));
    }
    let ttl = i64::try_from(extra.ttl?).unwrap_or(i64::MAX);
    match extra.clock {
        Some((lo, hi)) if write.outcome == Outcome::Ok => {
            Some((lo.saturating_add(ttl), hi.saturating_add(ttl)))
        }
        _ => Some((i64::MIN, i64::MAX)),
    }
}

/// Whether the write may be gone for an observer with this clock.
pub(crate) fn may_have_expired(history: &History, write: &Op, clock: Option<(i64, i64)>, skew: i64) -> bool {
    match (expiry(history, write), clock) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some((earliest, _)), Some((_, hi))) => earliest <= hi.saturating_add(skew),
    }
}

/// Whether the write must be gone for an observer with this clock.
pub(crate) fn must_have_expired(history: &History, write: &Op, clock: Option<(i64, i64)>, skew: i64) -> bool {
    match (expiry(history, write), clock) {
        (Some((_, latest)), Some((lo, _))) => latest.saturating_add(skew) < lo,
        _ => false,
    }
}

impl<'h> Key<'h> {
    pub(crate) fn new(history: &'h History, options: &'h Options) -> Self {
        Key {
            history,
            options,
            numbers: Numbers::of(history),
            key: 0,
            writes: Vec::new(),
            words: 0,
            past: Vec::new(),
            loose: Vec::new(),
            mortal: Vec::new(),
            deletions: Vec::new(),
            deleted: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// The number of the write of this id, if this key has it.
    pub(crate) fn number(&self, id: u32) -> Option<u32> {
        let number = self.numbers.0[id as usize];
        let writer = self.history.writer(id)?;
        (number != NONE && self.history.ops[writer as usize].key == self.key).then_some(number)
    }

    /// The numbers of the writes that an operation returned.
    pub(crate) fn returned<'s>(&'s self, op: &Op) -> impl Iterator<Item = u32> + use<'s, 'h> {
        let siblings = if op.has(flag::SIBLINGS) { self.history.returned(op) } else { &[] };
        siblings.iter().filter_map(|entry: &Entry| self.number(entry.id()))
    }

    pub(crate) fn op(&self, write: u32) -> &'h Op {
        &self.history.ops[self.writes[write as usize] as usize]
    }

    /// past(write).
    pub(crate) fn past(&self, write: u32) -> &[u64] {
        let at = write as usize * self.words;
        &self.past[at..at + self.words]
    }

    /// An empty set of writes.
    pub(crate) fn none(&self) -> Vec<u64> {
        vec![0; self.words]
    }

    /// Takes the next key. False if its pasts would not fit the budget; only thin air can be judged then.
    pub(crate) fn load(&mut self, key: u32, ops: &[u32]) -> Result<(), String> {
        let history = self.history;
        self.key = key;
        for list in
            [&mut self.writes, &mut self.loose, &mut self.mortal, &mut self.deletions, &mut self.reads]
        {
            list.clear();
        }
        for at in ops {
            let op = &history.ops[*at as usize];
            if op.is_sibling_read() {
                self.reads.push(*at);
            }
            if !op.is_write() {
                continue;
            }
            let write = number(self.writes.len());
            self.writes.push(*at);
            if op.outcome == Outcome::Fail {
                continue;
            }
            if is_loose(op) {
                self.loose.push(write);
            }
            if expiry(history, op).is_some() {
                self.mortal.push(write);
            }
            if op.f == F::Delete {
                self.deletions.push(write);
            }
        }
        self.words = bits::words(self.writes.len());
        let size = self.words * self.writes.len();
        if (size + self.words * self.deletions.len()) * 8 > self.options.memory {
            let (key, count) = (history.keys.name(key), self.writes.len());
            return Err(format!("the {count} writes of key {key} need more memory than the budget"));
        }
        self.past.clear();
        self.past.resize(size, 0);
        let mut past = std::mem::take(&mut self.past);
        self.close(&mut past, bits::set, |_, _| {});
        self.past = past;
        self.deleted.clear();
        for at in 0..self.deletions.len() {
            let write = self.deletions[at];
            let before = self.deleted.len().saturating_sub(self.words);
            if at == 0 {
                self.deleted.resize(self.words, 0);
            } else {
                self.deleted.extend_from_within(before..);
            }
            let row = at * self.words;
            bits::set(&mut self.deleted[row..], write);
            let past = write as usize * self.words;
            bits::join(&mut self.deleted[row..], &self.past[past..past + self.words]);
        }
        Ok(())
    }

    /// Joins to each write's row those of its parents, what `of` adds for a parent, and what `own` adds for itself.
    /// A write sees what was there before it, so one pass in the order of invocation is enough, unless a store
    /// shows a write before it was invoked or two writes that saw each other; then it goes on until nothing changes.
    pub(crate) fn close(
        &self,
        rows: &mut [u64],
        of: impl Fn(&mut [u64], u32),
        own: impl Fn(&mut [u64], u32),
    ) {
        let words = self.words;
        let mut row = self.none();
        let mut changed = true;
        while std::mem::take(&mut changed) {
            let mut forward = false;
            for write in 0..number(self.writes.len()) {
                let at = write as usize * words;
                row.copy_from_slice(&rows[at..at + words]);
                own(&mut row, write);
                self.for_each_parent(self.op(write), |parent| {
                    forward |= parent >= write;
                    of(&mut row, parent);
                    bits::join(&mut row, &rows[parent as usize * words..][..words]);
                });
                let past = &mut rows[at..at + words];
                if past != row {
                    past.copy_from_slice(&row);
                    changed = true;
                }
            }
            if !forward {
                break;
            }
        }
    }

    /// Joins what deletions account for that were invoked before `end`.
    pub(crate) fn join_deleted(&self, into: &mut [u64], end: u32) {
        let count = self.deletions.partition_point(|write| self.op(*write).invoke < end);
        if let Some(last) = count.checked_sub(1) {
            bits::join(into, &self.deleted[last * self.words..][..self.words]);
        }
    }

    /// The writes that a read returned, and with them their pasts and what deletions account for.
    pub(crate) fn observe(&self, read: &Op, returned: &mut Vec<u64>, reached: &mut Vec<u64>) {
        for bits in [&mut *returned, &mut *reached] {
            bits.clear();
            bits.resize(self.words, 0);
        }
        for write in self.returned(read) {
            bits::set(returned, write);
            bits::set(reached, write);
            bits::join(reached, self.past(write));
        }
        self.join_deleted(reached, read.complete);
    }

    /// What a write saw directly.
    pub(crate) fn for_each_parent(&self, op: &Op, mut each: impl FnMut(u32)) {
        if let Some(context) =
            self.history.ops.get(op.after as usize).filter(|context| context.key == self.key)
        {
            if context.is_write()
                && let Some(own) = self.number(context.id)
            {
                each(own);
            }
            self.returned(context).for_each(&mut each);
        }
        for entry in self.history.lists.get(op.saw) {
            let Some(write) = self.number(entry.id()) else { continue };
            if self.op(write).invoke < op.complete {
                each(write);
            }
        }
    }

    /// Whether a write that a check misses is accounted for by something that is always reached, or by a loose
    /// write. `reached` holds what [`Key::observe`] found and perhaps more; `members`, writes that were seen but do not
    /// account for themselves. `end` is where the observation ended.
    pub(crate) fn accounted(
        &self,
        write: u32,
        reached: &[u64],
        members: &[u64],
        end: u32,
        clock: Option<(i64, i64)>,
    ) -> bool {
        if self.loose.is_empty() && self.mortal.is_empty() {
            // Deletions are in `reached` already; see `observe`.
            return bits::has(reached, write);
        }
        let mut all = reached.to_vec();
        self.reach_always(&mut all, end, clock);
        bits::has(&all, write)
            || self.loose.iter().any(|loose| {
                let op = self.op(*loose);
                *loose != write
                    && (bits::has(&all, *loose) || bits::has(members, *loose))
                    && self.op(write).invoke < op.complete
                    && !bits::has(self.past(write), *loose)
            })
    }

    /// Adds what is always reached.
    fn reach_always(&self, reached: &mut [u64], end: u32, clock: Option<(i64, i64)>) {
        let skew = self.options.clock_skew_ms;
        for write in self.deletions.iter().chain(&self.mortal) {
            let op = self.op(*write);
            let counts = op.f == F::Delete || may_have_expired(self.history, op, clock, skew);
            if counts && op.invoke < end {
                bits::set(reached, *write);
                bits::join(reached, self.past(*write));
            }
        }
    }
}

/// Whether nobody knows what the write overwrote.
pub(crate) fn is_loose(op: &Op) -> bool {
    let of_the_moment = op.after == CURRENT || (op.f == F::Delete && op.after == NONE);
    of_the_moment && !(op.outcome == Outcome::Ok && op.has(flag::SAW))
}
