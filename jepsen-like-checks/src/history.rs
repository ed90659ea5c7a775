//! A history in memory: one fixed-size record an operation, and every distinct name, value, context and set of
//! siblings once.
//!
//! An [`Op`] is an invocation and what came of it. Numbers stand for names: everything that a check compares is
//! compared as a `u32`. Events are counted from 0 in the order of the input; that position, not a clock, is the
//! real time of the checks. [`History::index`] gives the index that the input itself had for it.
//!
//! Size: 64 bytes an operation, 16 more where the input has times, 16 more where it has a clock, and the tables.

use std::hash::Hasher;

use hashbrown::HashTable;
use rustc_hash::FxHasher;

/// No operation, id, value, context and so on.
pub const NONE: u32 = u32::MAX;

/// In [`Op::after`]: the write overwrote what its coordinator held.
pub const CURRENT: u32 = u32::MAX - 1;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum F {
    /// Reads a key: siblings, or one value.
    Get,
    /// Writes a key.
    Put,
    /// Removes a key's values.
    Delete,
    /// Reads one replica's, or the merged, state after all faults have ended.
    Final,
    /// Reads a register, set or counter.
    Read,
    /// Writes a register.
    Write,
    /// Compares and sets a register.
    Cas,
    /// Appends to a key.
    Append,
    /// Adds to a set or a counter.
    Add,
    /// Something that the checks do not know.
    Other,
}

impl F {
    /// The operation of this name.
    pub fn of(name: &str) -> F {
        match name {
            "get" => F::Get,
            "put" => F::Put,
            "delete" => F::Delete,
            "final" => F::Final,
            "read" => F::Read,
            "write" => F::Write,
            "cas" => F::Cas,
            "append" => F::Append,
            "add" => F::Add,
            _ => F::Other,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            F::Get => "get",
            F::Put => "put",
            F::Delete => "delete",
            F::Final => "final",
            F::Read => "read",
            F::Write => "write",
            F::Cas => "cas",
            F::Append => "append",
            F::Add => "add",
            F::Other => "other",
        }
    }
}

/// What came of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It happened.
    Ok,
    /// It did not.
    Fail,
    /// Nobody knows, be it that it said so or that it never ended.
    Info,
}

/// Flags of an [`Op`].
pub mod flag {
    /// Only the key's own replicas counted.
    pub const STRICT: u8 = 1;
    /// The write was durable before it was acknowledged.
    pub const SYNC: u8 = 2;
    /// The list holds siblings.
    pub const SIBLINGS: u8 = 4;
    /// The list holds values: a set was read.
    pub const ELEMENTS: u8 = 8;
    /// The completion said which writes it overwrote.
    pub const SAW: u8 = 16;
    /// A layout was given.
    pub const LAYOUT: u8 = 32;
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// The position of its invocation.
    pub invoke: u32,
    /// The position of its completion; [`NONE`] if it has none, or one that says nothing (`info`).
    pub complete: u32,
    /// Whose, in [`History::processes`].
    pub process: u32,
    /// Of which key, in [`History::keys`]; the same number for all where there are no keys.
    pub key: u32,
    /// A write's id in [`History::ids`].
    pub id: u32,
    /// The operation whose completion's context a write passed; [`CURRENT`]; or [`NONE`]: blind.
    pub after: u32,
    /// What it returned, in [`History::lists`].
    pub list: u32,
    /// The ids that it says it overwrote, in [`History::lists`].
    pub saw: u32,
    /// What the store says it had seen, in [`History::contexts`].
    pub covers: u32,
    /// The dot that the store says it gave, in [`History::dots`].
    pub dot: u32,
    /// What it wrote or read, in [`History::values`]; of a cas, what it expects.
    pub value: u32,
    /// Of a cas, what it sets.
    pub value2: u32,
    /// The layout's version, in [`History::layouts`].
    pub layout: u32,
    /// In [`History::extras`].
    pub extra: u32,
    /// What it does.
    pub f: F,
    /// What came of it.
    pub outcome: Outcome,
    /// See [`flag`].
    pub flags: u8,
    /// Replicas that a read asked for; 0 if not said, here and below.
    pub r: u8,
    /// Replicas that a write asked for.
    pub w: u8,
    /// Replicas of the key.
    pub n: u8,
    /// Replicas that held the write when it was acknowledged.
    pub copies: u8,
}

const _: () = assert!(size_of::<Op>() <= 64);

impl Op {
    /// Whether it is a write with an id.
    pub fn is_write(&self) -> bool {
        self.id != NONE && matches!(self.f, F::Put | F::Delete)
    }

    /// Whether it returned siblings (of a put: those beside its own).
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it is a read that was answered with siblings: a get, or a final state.
    pub fn is_sibling_read(&self) -> bool {
        self.outcome == Outcome::Ok && matches!(self.f, F::Get | F::Final) && self.has(flag::SIBLINGS)
    }

    /// Whether it ended before `position`.
    pub fn ended_before(&self, position: u32) -> bool {
        self.complete < position
    }
}

/// What few operations have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extra {
    /// Time to live in milliseconds.
    pub ttl: Option<u64>,
    /// The wall-clock millisecond at which the write expires.
    pub expires_at: Option<i64>,
    /// The wall clock of the node that answered.
    pub clock: Option<(i64, i64)>,
    /// The replica of a final state, in [`History::nodes`].
    pub node: Option<u32>,
}

/// The [`Extra`]s of operations. Where every answer has a clock and little else, each takes 16 bytes.
#[derive(Debug, Default)]
pub struct Extras {
    brief: Vec<Brief>,
    whole: Vec<Extra>,
}

/// A clock alone, or the number of something larger.
#[derive(Debug, Clone, Copy)]
struct Brief {
    clock_lo: i64,
    clock_width: u32,
    /// In [`Extras::whole`]; [`NONE`] if there is nothing but the clock.
    whole: u32,
}

const _: () = assert!(size_of::<Brief>() == 16);

impl Extras {
    /// That of a number; of [`NONE`], nothing.
    pub fn get(&self, number: u32) -> Extra {
        match self.brief.get(number as usize) {
            None => Extra::default(),
            Some(brief) if brief.whole != NONE => self.whole[brief.whole as usize],
            Some(brief) => {
                let clock = (brief.clock_lo, brief.clock_lo + i64::from(brief.clock_width));
                Extra { clock: Some(clock), ..Extra::default() }
            }
        }
    }

    /// Puts `extra` at a number that was given before, or at a new one for [`NONE`]; returns the number.
    pub(crate) fn set(&mut self, at: u32, extra: Extra) -> u32 {
        let width = |(lo, hi): (i64, i64)| u32::try_from(hi.checked_sub(lo)?).ok();
        let at = if at == NONE {
            self.brief.push(Brief { clock_lo: 0, clock_width: 0, whole: NONE });
            self.brief.len() - 1
        } else {
            at as usize
        };
        let brief = &mut self.brief[at];
        match extra {
            Extra { ttl: None, expires_at: None, clock: Some(clock), node: None }
                if brief.whole == NONE && width(clock).is_some() =>
            {
                (brief.clock_lo, brief.clock_width) = (clock.0, width(clock).unwrap_or(0));
            }
            _ if brief.whole == NONE => {
                brief.whole = number(self.whole.len());
                self.whole.push(extra);
            }
            _ => self.whole[brief.whole as usize] = extra,
        }
        number(at)
    }

    fn bytes(&self) -> (usize, usize) {
        (self.brief.capacity() * size_of::<Brief>(), self.whole.capacity() * size_of::<Extra>())
    }

    pub(crate) fn shrink(&mut self) {
        self.brief.shrink_to_fit();
        self.whole.shrink_to_fit();
    }

    fn clear(&mut self) {
        self.brief.clear();
        self.whole.clear();
    }
}

/// An event that belongs to no operation of a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// Where it stands.
    pub position: u32,
    /// Whose, in [`History::processes`].
    pub process: u32,
    /// Its name.
    pub f: String,
    /// Its value as EDN.
    pub value: String,
    /// Of `lost`: the node, in [`History::nodes`].
    pub node: u32,
    /// Of `lost`: whether what had been synced is lost too.
    pub disk: bool,
}

/// One sibling in a list: the id, the dot, and two flags in the id's top bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    bits: u32,
    /// In [`History::dots`].
    pub dot: u32,
}

impl Entry {
    const HIDDEN: u32 = 1 << 31;
    const DEAD: u32 = 1 << 30;
    /// Ids must be smaller.
    pub const ID_MAX: u32 = Self::DEAD - 1;

    /// An entry; `id` is at most [`Entry::ID_MAX`].
    pub fn new(id: u32, dot: u32, hidden: bool, dead: bool) -> Self {
        assert!(id <= Self::ID_MAX, "the builder refuses more ids");
        Entry { bits: id | u32::from(hidden) << 31 | u32::from(dead) << 30, dot }
    }

    /// The write's id, or a set's element in [`History::values`].
    pub fn id(self) -> u32 {
        self.bits & Self::ID_MAX
    }

    /// Held and not returned.
    pub fn hidden(self) -> bool {
        self.bits & Self::HIDDEN != 0
    }

    /// A tombstone.
    pub fn dead(self) -> bool {
        self.bits & Self::DEAD != 0
    }
}

/// Distinct texts by number.
#[derive(Debug, Default)]
pub struct Names {
    text: String,
    ends: Vec<usize>,
    table: HashTable<Hashed>,
}

/// A number and the hash of what it stands for, kept so that neither a table that grows nor a search that passes by
/// looks at the thing itself.
#[derive(Debug, Clone, Copy)]
struct Hashed {
    number: u32,
    hash: u32,
}

impl Hashed {
    /// Spreads the 32 bits over the 64 of which the table uses both ends.
    fn spread(hash: u32) -> u64 {
        u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

fn fold(hash: u64) -> u32 {
    u32::try_from(hash >> 32).unwrap_or(0)
}

fn hash_of(bytes: &[u8]) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    fold(hasher.finish().wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A count as a number of the model. The builder refuses histories that would not fit.
pub(crate) fn number(count: usize) -> u32 {
    u32::try_from(count).expect("the builder refuses what 32 bits do not count")
}

fn range(ends: &[usize], at: u32) -> std::ops::Range<usize> {
    let at = at as usize;
    let start = if at == 0 { 0 } else { ends[at - 1] };
    start..ends[at]
}

impl Names {
    /// The number of `name`, a new one if it is new.
    pub fn intern(&mut self, name: &str) -> u32 {
        let Names { text, ends, table } = self;
        let hash = hash_of(name.as_bytes());
        let bytes = text.as_bytes();
        let same = |at: &Hashed| at.hash == hash && bytes[range(ends, at.number)] == *name.as_bytes();
        if let Some(known) = table.find(Hashed::spread(hash), same) {
            return known.number;
        }
        let new = number(ends.len());
        text.push_str(name);
        ends.push(text.len());
        table.insert_unique(Hashed::spread(hash), Hashed { number: new, hash }, |at| Hashed::spread(at.hash));
        new
    }

    /// The number of `name`, if it has one.
    pub fn get(&self, name: &str) -> Option<u32> {
        let hash = hash_of(name.as_bytes());
        let same = |at: &Hashed| at.hash == hash && self.text[range(&self.ends, at.number)] == *name;
        self.table.find(Hashed::spread(hash), same).map(|at| at.number)
    }

    /// The name of a number that [`Names::intern`] gave.
    pub fn name(&self, number: u32) -> &str {
        &self.text[range(&self.ends, number)]
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.table.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn bytes(&self) -> usize {
        self.text.capacity() + self.ends.capacity() * 8 + self.table.allocation_size()
    }
}

/// Distinct sequences by number.
#[derive(Debug)]
pub struct Sequences<T> {
    items: Vec<T>,
    ends: Vec<u32>,
    table: HashTable<Hashed>,
}

impl<T> Default for Sequences<T> {
    fn default() -> Self {
        Sequences { items: Vec::new(), ends: Vec::new(), table: HashTable::new() }
    }
}

fn part<'t, T>(items: &'t [T], ends: &[u32], at: u32) -> &'t [T] {
    let at = at as usize;
    let start = if at == 0 { 0 } else { ends[at - 1] as usize };
    &items[start..ends[at] as usize]
}

fn hash_all<T: std::hash::Hash>(items: &[T]) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write_usize(items.len());
    for item in items {
        item.hash(&mut hasher);
    }
    fold(hasher.finish().wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl<T: Copy + Eq + std::hash::Hash> Sequences<T> {
    /// The number of `sequence`, a new one if it is new.
    pub fn intern(&mut self, sequence: &[T]) -> u32 {
        let Sequences { items, ends, table } = self;
        let hash = hash_all(sequence);
        let same = |at: &Hashed| at.hash == hash && part(items, ends, at.number) == sequence;
        if let Some(known) = table.find(Hashed::spread(hash), same) {
            return known.number;
        }
        let new = number(ends.len());
        items.extend_from_slice(sequence);
        ends.push(number(items.len()));
        table.insert_unique(Hashed::spread(hash), Hashed { number: new, hash }, |at| Hashed::spread(at.hash));
        new
    }

    /// The sequence of a number; that of [`NONE`] is empty.
    pub fn get(&self, number: u32) -> &[T] {
        if number == NONE { &[] } else { part(&self.items, &self.ends, number) }
    }

    fn clear(&mut self) {
        self.items.clear();
        self.ends.clear();
        self.table.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Items of all of them.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    fn bytes(&self) -> usize {
        self.items.capacity() * size_of::<T>() + self.ends.capacity() * 4 + self.table.allocation_size()
    }
}

/// A whole history.
#[derive(Debug, Default)]
pub struct History {
    /// The operations, by invocation.
    pub ops: Vec<Op>,
    /// What belongs to no operation of a client, by position.
    pub marks: Vec<Mark>,
    /// How many events there were.
    pub events: u32,
    /// Clients by their number, others as `:name`.
    pub processes: Names,
    /// Keys, as EDN.
    pub keys: Names,
    /// Values, as EDN.
    pub values: Names,
    /// Ids of writes.
    pub ids: Names,
    /// Actors of dots.
    pub actors: Names,
    /// Nodes.
    pub nodes: Names,
    /// Names of operations that are [`F::Other`], by their [`Op::value2`].
    pub other: Names,
    /// Sets of siblings or of elements; and of ids, with no dots.
    pub lists: Sequences<Entry>,
    /// Pairs (actor, all up to this counter), by actor.
    pub contexts: Sequences<(u32, u64)>,
    /// Dots: pairs (actor, counter), as sequences of one.
    pub dots: Sequences<(u32, u64)>,
    /// Layout versions.
    pub layouts: Sequences<u64>,
    /// What few operations have.
    pub extras: Extras,
    /// The operation that wrote each id; [`NONE`] for ids that were only read.
    pub writes: Vec<u32>,
    /// Nanoseconds of invocation and completion of each operation, where the input has them.
    pub times: Vec<(i64, i64)>,
    pub(crate) indexes: Indexes,
}

/// The input's own index of each position: mostly the position itself.
#[derive(Debug)]
pub(crate) enum Indexes {
    /// Index = position + this.
    Dense(u64),
    Listed(Vec<u64>),
}

impl Default for Indexes {
    fn default() -> Self {
        Indexes::Dense(0)
    }
}

impl Indexes {
    pub(crate) fn of(&self, position: u32) -> u64 {
        match self {
            Indexes::Dense(base) => base + u64::from(position),
            Indexes::Listed(indexes) => indexes[position as usize],
        }
    }

    /// The position of an index among the first `events`.
    pub(crate) fn position(&self, index: u64, events: u32) -> Option<u32> {
        match self {
            Indexes::Dense(base) => {
                let at = u32::try_from(index.checked_sub(*base)?).ok()?;
                (at < events).then_some(at)
            }
            Indexes::Listed(indexes) => indexes.binary_search(&index).ok().map(number),
        }
    }
}

impl History {
    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        // Each field by its name: a new one cannot be forgotten here.
        let History {
            ops,
            marks,
            events,
            processes,
            keys,
            values,
            ids,
            actors,
            nodes,
            other,
            lists,
            contexts,
            dots,
            layouts,
            extras,
            writes,
            times,
            indexes,
        } = self;
        for names in [processes, keys, values, ids, actors, nodes, other] {
            names.clear();
        }
        for pairs in [contexts, dots] {
            pairs.clear();
        }
        ops.clear();
        marks.clear();
        lists.clear();
        layouts.clear();
        extras.clear();
        writes.clear();
        times.clear();
        *events = 0;
        *indexes = Indexes::default();
    }

    /// The index that the input has for a position.
    pub fn index(&self, position: u32) -> u64 {
        self.indexes.of(position)
    }

    /// What an operation returned.
    pub fn returned(&self, op: &Op) -> &[Entry] {
        self.lists.get(op.list)
    }

    /// The operation that wrote an id.
    pub fn writer(&self, id: u32) -> Option<u32> {
        self.writes.get(id as usize).copied().filter(|op| *op != NONE)
    }

    /// What few operations have, of this one.
    pub fn extra(&self, op: &Op) -> Extra {
        self.extras.get(op.extra)
    }

    /// A dot's actor and counter.
    pub fn dot(&self, dot: u32) -> Option<(u32, u64)> {
        self.dots.get(dot).first().copied()
    }

    /// The operations of each key, in the order of their invocation.
    pub fn by_key(&self) -> ByKey {
        let mut starts = vec![0_u32; self.keys.len() + 1];
        for op in &self.ops {
            starts[op.key as usize + 1] += 1;
        }
        for key in 1..starts.len() {
            starts[key] += starts[key - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![0; self.ops.len()];
        for (at, op) in self.ops.iter().enumerate() {
            let place = &mut next[op.key as usize];
            order[*place as usize] = number(at);
            *place += 1;
        }
        ByKey { starts, order }
    }

    /// Bytes of the operations themselves, and of the tables of distinct things.
    pub fn bytes(&self) -> (usize, usize) {
        let (brief, whole) = self.extras.bytes();
        let ops = self.ops.capacity() * size_of::<Op>() + self.times.capacity() * 16 + brief;
        let names = [&self.processes, &self.keys, &self.values, &self.ids, &self.actors, &self.nodes];
        let tables = names.iter().map(|names| names.bytes()).sum::<usize>()
            + self.lists.bytes()
            + self.contexts.bytes()
            + self.dots.bytes()
            + self.writes.capacity() * 4
            + whole;
        (ops, tables)
    }

    /// An operation in words, for explanations: "w3 (put by process 2 at index 12)".
    pub fn say(&self, op: u32) -> String {
        let it = &self.ops[op as usize];
        let at = self.index(it.invoke);
        let who = self.processes.name(it.process);
        let f = if it.f == F::Other { self.other.name(it.value2) } else { it.f.name() };
        if it.id == NONE {
            format!("the {f} by process {who} at index {at}")
        } else {
            format!("{} ({f} by process {who} at index {at})", self.ids.name(it.id))
        }
    }
}

/// Operations grouped by key.
#[derive(Debug)]
pub struct ByKey {
    starts: Vec<u32>,
    order: Vec<u32>,
}

impl ByKey {
    /// Each key with its operations, in the order of their invocation.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.starts
            .windows(2)
            .enumerate()
            .map(|(key, ends)| (number(key), &self.order[ends[0] as usize..ends[1] as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_few_operations_have_is_kept() {
        let clocks = [
            None,
            Some((0, 0)),
            Some((-5, 1 << 31)),
            Some((0, 1 << 32)),
            Some((i64::MIN, i64::MAX)),
            Some((2, 1)),
        ];
        let mut all = Vec::new();
        for clock in clocks {
            for (ttl, expires_at, node) in
                [(None, None, None), (Some(1), None, None), (None, Some(2), None), (None, None, Some(3))]
            {
                all.push(Extra { ttl, expires_at, clock, node });
            }
        }
        for one in &all {
            let mut extras = Extras::default();
            assert_eq!(extras.get(NONE), Extra::default());
            let first = extras.set(NONE, *one);
            for two in &all {
                let second = extras.set(NONE, *two);
                assert_eq!([extras.get(first), extras.get(second)], [*one, *two]);
                assert_eq!(extras.set(second, *one), second);
                assert_eq!([extras.get(first), extras.get(second)], [*one, *one]);
            }
        }
    }
}
