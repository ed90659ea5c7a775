//! The search for an order: Wing and Gong's, with Lowe's cache of what was tried.
//!
//! Calls and returns stand in a list by time. An operation can be next if its call stands before the first return
//! that is left; it is taken out of the list, both its entries at once, and put back when that leads nowhere.
//! A pair (set of operations taken, state) that led nowhere once never leads anywhere.
//!
//! Four rules keep the search small, and each loses no order:
//! - a **read** that can be next and fits the state is taken at once and for good: in any order that goes on from
//!   here, moving it here changes no other operation's state;
//! - an operation of unknown outcome that would not change the state is left out: leaving it out is allowed;
//! - an append after which the content is no beginning of what a read that is left returned is not taken, once no
//!   write is left: content only grows then, so that read could never be taken;
//! - of several such operations that do the same, the one invoked first is taken first: exchanging two changes
//!   nothing but that the earlier one has more room.
//!
//! The set of operations taken is stored from the first word of bits that is not all ones; operations of unknown
//! outcome have a set of their own, or the oldest of them would keep that word at the beginning.

use hashbrown::HashTable;
use rustc_hash::FxHasher;
use std::hash::Hasher;

use crate::bits;
use crate::history::{NONE, number};
use crate::linearizability::models::{Call, Machine, Step};

/// What came of a search.
pub(crate) enum Found {
    /// There is an order.
    Order,
    /// There is none; where every attempt ended.
    None(Stuck),
    /// Not known: this ran out.
    RanOut(&'static str),
}

/// The operation that no attempt could get past.
#[derive(Debug, Clone)]
pub(crate) struct Stuck {
    /// Its place among the calls.
    pub(crate) call: u32,
    /// The states in which attempts stood before it, a few of them.
    pub(crate) states: Vec<u32>,
    /// Whether there were more.
    pub(crate) more: bool,
}

/// How many states an explanation lists.
const STATES_SHOWN: usize = 8;

/// How far to look for a read that says what an append must lead to.
const READS_WITHIN: usize = 64;

/// The list's sentinel.
const HEAD: u32 = 0;

/// A mutation that was taken, with what to restore.
struct Frame {
    call: u32,
    state: u32,
    /// How many reads had been taken before it.
    reads: usize,
}

struct Search<'c> {
    calls: &'c [Call],
    next: Vec<u32>,
    prev: Vec<u32>,
    /// The entries of each call: its invocation, and its return or [`HEAD`].
    call_entry: Vec<u32>,
    return_entry: Vec<u32>,
    /// The call of each entry, and whether the entry is its return.
    entry: Vec<(u32, bool)>,
    /// Where each call has its bit: among those that ended, or those of unknown outcome.
    bit: Vec<u32>,
    /// For each open call the one before it that does the same.
    twin: Vec<u32>,
    ended: Vec<u64>,
    open: Vec<u64>,
    base: usize,
    top: usize,
    open_top: usize,
    left: usize,
    /// Writes that are left, whatever their outcome.
    writes_left: usize,
    /// Tried pairs: (state, base), lengths, words.
    tried: Vec<u64>,
    table: HashTable<usize>,
}

/// Searches for an order of `calls`, which stand in the order of their invocation.
pub(crate) fn search(calls: &[Call], machine: &mut Machine<'_>, steps: &mut u64, memory: usize) -> Found {
    let mut search = Search::new(calls);
    let mut state = machine.initial();
    let mut frames: Vec<Frame> = Vec::new();
    let mut reads: Vec<u32> = Vec::new();
    let mut stuck = Stuck { call: NONE, states: Vec::new(), more: false };
    // Enters the state at hand: reads first, then look whether it is new.
    let mut entering = true;
    let mut at = HEAD;
    loop {
        if std::mem::take(&mut entering) {
            search.take_reads(state, &mut reads);
            if search.left == 0 {
                return Found::Order;
            }
            *steps = match steps.checked_sub(1) {
                Some(left) => left,
                None => return Found::RanOut("steps"),
            };
            at = if search.is_new(state) { search.next[HEAD as usize] } else { HEAD };
            if search.tried.len() * 8 + search.table.allocation_size() + machine.bytes() > memory {
                return Found::RanOut("memory");
            }
        }
        // Try what can be next, from `at` on.
        let mut taken = false;
        while at != HEAD {
            let (call, is_return) = search.entry[at as usize];
            if is_return {
                stuck.note(calls, call, state);
                break;
            }
            if let Some(new) = search.can_take(call, state, machine) {
                frames.push(Frame { call, state, reads: reads.len() });
                search.take(call);
                state = new;
                taken = true;
                break;
            }
            at = search.next[at as usize];
        }
        if taken {
            entering = true;
            continue;
        }
        let Some(frame) = frames.pop() else { return Found::None(stuck) };
        while reads.len() > frame.reads {
            let read = reads.pop().unwrap_or(NONE);
            search.put_back(read);
        }
        search.put_back(frame.call);
        state = frame.state;
        at = search.next[search.call_entry[frame.call as usize] as usize];
    }
}

impl Stuck {
    fn note(&mut self, calls: &[Call], call: u32, state: u32) {
        let end = |call: u32| calls[call as usize].complete;
        if self.call == NONE || end(call) > end(self.call) {
            *self = Stuck { call, states: vec![state], more: false };
        } else if call == self.call && !self.states.contains(&state) {
            if self.states.len() < STATES_SHOWN {
                self.states.push(state);
            } else {
                self.more = true;
            }
        }
    }
}

impl<'c> Search<'c> {
    fn new(calls: &'c [Call]) -> Self {
        let mut times: Vec<(u32, u32, bool)> = Vec::with_capacity(2 * calls.len());
        let (mut bit, mut twin) = (Vec::with_capacity(calls.len()), Vec::with_capacity(calls.len()));
        let (mut ended, mut open) = (0, 0);
        let mut opens: Vec<(Step, u32)> = Vec::new();
        for (at, call) in calls.iter().enumerate() {
            let at = number(at);
            times.push((call.invoke, at, false));
            if call.complete == NONE {
                bit.push(number(open));
                open += 1;
                let last = opens.iter_mut().find(|(step, _)| *step == call.step);
                twin.push(last.as_ref().map_or(NONE, |(_, twin)| *twin));
                match last {
                    Some((_, twin)) => *twin = at,
                    None => opens.push((call.step, at)),
                }
            } else {
                times.push((call.complete, at, true));
                bit.push(number(ended));
                ended += 1;
                twin.push(NONE);
            }
        }
        times.sort_unstable();
        let entries = times.len() + 1;
        let mut entry = vec![(NONE, false)];
        let (mut call_entry, mut return_entry) = (vec![HEAD; calls.len()], vec![HEAD; calls.len()]);
        for (_, call, is_return) in times {
            let place = if is_return { &mut return_entry } else { &mut call_entry };
            place[call as usize] = number(entry.len());
            entry.push((call, is_return));
        }
        let ring = |offset: usize| (0..entries).map(|at| number((at + offset) % entries)).collect();
        Search {
            calls,
            next: ring(1),
            prev: ring(entries - 1),
            call_entry,
            return_entry,
            entry,
            bit,
            twin,
            ended: vec![0; bits::words(ended) + 1],
            open: vec![0; bits::words(open) + 1],
            base: 0,
            top: 0,
            open_top: 0,
            left: ended,
            writes_left: calls.iter().filter(|call| matches!(call.step, Step::Write(_))).count(),
            tried: Vec::new(),
            table: HashTable::new(),
        }
    }

    fn unlink(&mut self, entry: u32) {
        let (before, behind) = (self.prev[entry as usize], self.next[entry as usize]);
        self.next[before as usize] = behind;
        self.prev[behind as usize] = before;
    }

    fn link(&mut self, entry: u32) {
        let (before, behind) = (self.prev[entry as usize], self.next[entry as usize]);
        self.next[before as usize] = entry;
        self.prev[behind as usize] = entry;
    }

    fn take(&mut self, call: u32) {
        let bit = self.bit[call as usize];
        let word = bit as usize / 64;
        self.unlink(self.call_entry[call as usize]);
        self.writes_left -= usize::from(matches!(self.calls[call as usize].step, Step::Write(_)));
        if self.calls[call as usize].complete == NONE {
            bits::set(&mut self.open, bit);
            self.open_top = self.open_top.max(word + 1);
            return;
        }
        self.unlink(self.return_entry[call as usize]);
        bits::set(&mut self.ended, bit);
        self.top = self.top.max(word);
        while self.ended[self.base] == u64::MAX {
            self.base += 1;
        }
        self.left -= 1;
    }

    fn put_back(&mut self, call: u32) {
        let bit = self.bit[call as usize];
        let word = bit as usize / 64;
        if self.calls[call as usize].complete == NONE {
            self.open[word] &= !(1 << (bit % 64));
            while self.open_top > 0 && self.open[self.open_top - 1] == 0 {
                self.open_top -= 1;
            }
        } else {
            self.link(self.return_entry[call as usize]);
            self.ended[word] &= !(1 << (bit % 64));
            self.base = self.base.min(word);
            while self.top > 0 && self.ended[self.top] == 0 {
                self.top -= 1;
            }
            self.left += 1;
        }
        self.link(self.call_entry[call as usize]);
        self.writes_left += usize::from(matches!(self.calls[call as usize].step, Step::Write(_)));
    }

    /// Takes every read that can be next and fits.
    fn take_reads(&mut self, state: u32, reads: &mut Vec<u32>) {
        let mut at = self.next[HEAD as usize];
        while at != HEAD {
            let (call, is_return) = self.entry[at as usize];
            if is_return {
                break;
            }
            let behind = self.next[at as usize];
            if self.calls[call as usize].step == Step::Read(state) {
                // Its return may be the very next entry, and goes too.
                let own = self.return_entry[call as usize] == behind;
                let behind = if own { self.next[behind as usize] } else { behind };
                self.take(call);
                reads.push(call);
                at = behind;
            } else {
                at = behind;
            }
        }
    }

    /// The state after a mutation, if it may be taken now.
    fn can_take(&self, call: u32, state: u32, machine: &mut Machine<'_>) -> Option<u32> {
        let it = &self.calls[call as usize];
        if matches!(it.step, Step::Read(_)) {
            return None;
        }
        if let (Step::Append(value), 0) = (it.step, self.writes_left)
            && let Some(read) = self.first_read()
            && !machine.leads_to(state, value, read)
        {
            return None;
        }
        let new = machine.step(state, it.step)?;
        if it.complete == NONE {
            let twin = self.twin[call as usize];
            let waits = twin != NONE && !bits::has(&self.open, self.bit[twin as usize]);
            if waits || new == state {
                return None;
            }
        }
        Some(new)
    }

    /// What the first read that is left returned, if one of the next few entries is a read.
    fn first_read(&self) -> Option<u32> {
        let mut at = self.next[HEAD as usize];
        for _ in 0..READS_WITHIN {
            let (call, is_return) = *self.entry.get(at as usize).filter(|_| at != HEAD)?;
            match self.calls[call as usize].step {
                Step::Read(returned) if !is_return => return Some(returned),
                _ => at = self.next[at as usize],
            }
        }
        None
    }

    /// Whether this set and state were not tried before; now they were.
    fn is_new(&mut self, state: u32) -> bool {
        let Search { tried, table, ended, open, base, top, open_top, .. } = self;
        let start = tried.len();
        let window = &ended[*base..(*top + 1).max(*base)];
        let opens = &open[..*open_top];
        tried.push(u64::from(state) << 32 | *base as u64);
        tried.push((window.len() as u64) << 32 | opens.len() as u64);
        tried.extend_from_slice(window);
        tried.extend_from_slice(opens);
        let hash = hash_words(&tried[start..]);
        if table.find(hash, |at| tried_at(tried, *at) == &tried[start..]).is_some() {
            tried.truncate(start);
            return false;
        }
        table.insert_unique(hash, start, |at| hash_words(tried_at(tried, *at)));
        true
    }
}

fn tried_at(tried: &[u64], at: usize) -> &[u64] {
    let lengths = tried[at + 1];
    let count = (lengths >> 32) + (lengths & u64::from(u32::MAX));
    &tried[at..at + 2 + usize::try_from(count).unwrap_or(0)]
}

fn hash_words(words: &[u64]) -> u64 {
    let mut hasher = FxHasher::default();
    for word in words {
        hasher.write_u64(*word);
    }
    hasher.finish()
}
