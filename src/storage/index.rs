//! The ordered index of one partition and table: where each key's newest record stands.
//!
//! A B+ tree of two levels: leaves of up to [`LEAF_ENTRIES_MAX`] keys packed end to end, and above them the lower
//! bound of each. Every key of the store is in memory, so bytes count: a 32-byte key costs some 80 bytes here with
//! everything, against 130 in a `BTreeMap<Box<[u8]>, _>` (node slack, a heap block and its rounding a key).
//!
//! A lookup is most of what an update costs in memory, and in an index of any size each comparison of whole keys is
//! a cache miss. So both levels keep the *head* of each key: the eight bytes behind what all keys of that run have in
//! common, as a number. A search goes over these, which lie side by side; whole keys are compared only where heads are
//! equal. (Poor man's normalized keys: Graefe, Larson, *B-tree indexes and CPU caches*, 2001.) That a key has those
//! first bytes in common with a run is looked at last, and not at all when the whole key was found: most keys that are
//! looked up are there.
//!
//! Leaves are shared and copied on write: a snapshot takes the leaves of a partition in one moment by counting them
//! up, and writers go on. Leaves are freed when they become empty; half-empty ones are not joined.
//!
//! Keys here are *index keys*: namespace (big-endian u32), then the key, so that bytewise order is the order of
//! `(namespace, key)`.

use std::cmp::Ordering;
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use super::format::RECORD_LEN_MAX;
use crate::types::{KEY_LEN_MAX, Key, Namespace};

/// Most keys of a leaf.
pub(super) const LEAF_ENTRIES_MAX: usize = 64;
/// Most bytes of a leaf's keys, unless it has but one.
const LEAF_KEY_BYTES_MAX: usize = 64 * 1024;
/// By how many keys a leaf grows at a time.
const GROWTH: usize = 8;
/// Bytes of the namespace in an index key.
const NAMESPACE_LEN: usize = 4;
/// How many bytes an index key may have: a key has at least one.
pub(super) const INDEX_KEY_LEN: RangeInclusive<usize> = NAMESPACE_LEN + 1..=NAMESPACE_LEN + KEY_LEN_MAX;

const AWAITS_SYNC: u32 = 1 << 31;
/// Flag in `len`: the record holds something that may be reaped one day.
const REAPABLE: u32 = 1 << 30;
const FLAGS: u32 = AWAITS_SYNC | REAPABLE;

const _: () = assert!(RECORD_LEN_MAX < REAPABLE as usize);

/// Where a record stands, and the hash of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the record's first byte.
    pub(super) position: u64,
    /// Version hash of the record (`Record::version_hash`).
    pub(super) hash: u64,
    len: u32,
}

impl Place {
    /// `awaits_sync`: whether a reader must wait until the record is synced.
    pub(super) fn new(position: u64, len: usize, hash: u64, awaits_sync: bool) -> Place {
        let len = u32::try_from(len).expect("records are shorter than RECORD_LEN_MAX");
        assert!(len < REAPABLE, "the highest bits are taken");
        Place { position, hash, len: if awaits_sync { len | AWAITS_SYNC } else { len } }
    }

    /// The same of a record that may be reaped one day (`Record::is_reapable`), or not.
    pub(super) fn with_reapable(self, reapable: bool) -> Place {
        Place { len: if reapable { self.len | REAPABLE } else { self.len & !REAPABLE }, ..self }
    }

    /// Whether the record may be reaped one day.
    pub(super) fn is_reapable(self) -> bool {
        self.len & REAPABLE != 0
    }

    /// Bytes of the record.
    pub(super) fn len(self) -> usize {
        (self.len & !FLAGS) as usize
    }

    /// The position behind the record.
    pub(super) fn end(self) -> u64 {
        self.position + self.len() as u64
    }

    /// Whether a reader must wait until the record is synced.
    pub(super) fn awaits_sync(self) -> bool {
        self.len & AWAITS_SYNC != 0
    }
}

/// The index key of a key.
pub(super) fn index_key(namespace: Namespace, key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NAMESPACE_LEN + key.as_bytes().len());
    bytes.extend_from_slice(&namespace.0.to_be_bytes());
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

/// The key of an index key; none when the bytes are none.
pub(super) fn split_key(index_key: &[u8]) -> Option<(Namespace, Key)> {
    let (namespace, key) = index_key.split_first_chunk::<NAMESPACE_LEN>()?;
    Some((Namespace(u32::from_be_bytes(*namespace)), Key::new(key.to_vec()).ok()?))
}

/// How many first bytes two keys have in common.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// The eight bytes behind the first `skip`, as a number that orders as they do; a shorter key ends in zeros.
fn head(key: &[u8], skip: usize) -> u64 {
    let rest = &key[skip..];
    if let Some(whole) = rest.first_chunk::<8>() {
        return u64::from_be_bytes(*whole);
    }
    let mut bytes = [0; 8];
    bytes[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(bytes)
}

/// Where a key is in a run of keys, or where it belongs. `heads` are the run's, behind the first `skip` bytes, which
/// all of its keys have in common; `at` gives a key of the run.
fn search<'a>(
    heads: &[u64],
    skip: usize,
    key: &[u8],
    at: impl Fn(usize) -> &'a [u8],
) -> Result<usize, usize> {
    if heads.is_empty() {
        return Err(0);
    }
    let mut low = 0;
    if key.len() >= skip {
        let head = head(key, skip);
        low = below(heads, head);
        // Equal heads: longer keys that agree so far, and shorter ones whose zeros are not their own.
        let mut high = low + heads[low..].iter().take_while(|other| **other == head).count();
        while low < high {
            let middle = low.midpoint(high);
            match at(middle).cmp(key) {
                Ordering::Equal => return Ok(middle),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
    }
    // With other first bytes than the run's, `low` means nothing.
    match key[..skip.min(key.len())].cmp(&at(0)[..skip]) {
        Ordering::Less => Err(0),
        Ordering::Equal => Err(low),
        Ordering::Greater => Err(heads.len()),
    }
}

/// How many of these, which are in order, are less than `head`. A short run is counted through: its cache lines come
/// all at once then, and not one after the other, as each step of a binary search asks for them.
fn below(heads: &[u64], head: u64) -> usize {
    if heads.len() > 2 * LEAF_ENTRIES_MAX {
        return heads.partition_point(|other| *other < head);
    }
    heads.iter().map(|other| usize::from(*other < head)).sum()
}

/// Columns of a leaf's words, and what stands in them.
const COLUMNS: usize = 4;
/// `Place::position`.
const POSITION: usize = 1;
/// `Place::hash`.
const HASH: usize = 2;
/// Where the key ends in the leaf's keys, and in the upper half what `Place::len` holds.
const END: usize = 3;

/// A run of keys in order with their places.
///
/// Two blocks of memory and no more: in a large index each block that a lookup comes to costs a miss of the cache and,
/// what is worse, one of the page table's. The leaf itself lies among its neighbours in the index. The blocks are shared
/// and copied on write.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaf {
    /// Columns of as many words as there is room for keys. The first holds the heads: of each key, behind the first
    /// `skip` bytes.
    words: Arc<[u64]>,
    /// All keys end to end, and room for more.
    keys: Arc<[u8]>,
    len: u32,
    /// All keys have so many first bytes in common, or more.
    skip: u32,
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).expect("a leaf of keys is below 4 GiB")
}

impl Leaf {
    fn len(&self) -> usize {
        self.len as usize
    }

    fn room(&self) -> usize {
        self.words.len() / COLUMNS
    }

    fn column(&self, column: usize) -> &[u64] {
        &self.words[column * self.room()..][..self.len()]
    }

    fn start(&self, at: usize) -> usize {
        if at == 0 { 0 } else { self.end(at - 1) }
    }

    fn end(&self, at: usize) -> usize {
        let end = self.words[END * self.room() + at] & u64::from(u32::MAX);
        usize::try_from(end).expect("the lower half")
    }

    /// Bytes of all keys.
    fn used(&self) -> usize {
        self.start(self.len())
    }

    fn key(&self, at: usize) -> &[u8] {
        &self.keys[self.start(at)..self.end(at)]
    }

    fn place(&self, at: usize) -> Place {
        let (room, words) = (self.room(), &self.words);
        let len = words[END * room + at] >> 32;
        let (position, hash) = (words[POSITION * room + at], words[HASH * room + at]);
        Place { position, hash, len: u32::try_from(len).expect("the upper half") }
    }

    fn set_place(&mut self, at: usize, place: Place) {
        let (room, end) = (self.room(), self.end(at) as u64);
        let words = Arc::make_mut(&mut self.words);
        words[POSITION * room + at] = place.position;
        words[HASH * room + at] = place.hash;
        words[END * room + at] = u64::from(place.len) << 32 | end;
    }

    fn skip(&self) -> usize {
        self.skip as usize
    }

    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        search(self.column(0), self.skip(), key, |at| self.key(at))
    }

    /// A leaf of these keys of this one with room for so many, and for so many bytes of keys.
    fn part(&self, range: std::ops::Range<usize>, room: usize, bytes: usize) -> Leaf {
        let (from, to) = (self.start(range.start), self.start(range.end));
        let mut words = vec![0; COLUMNS * room];
        for column in 0..COLUMNS {
            words[column * room..][..range.len()].copy_from_slice(&self.column(column)[range.clone()]);
        }
        words[END * room..][..range.len()].iter_mut().for_each(|end| *end -= from as u64);
        let mut keys = vec![0; bytes];
        keys[..to - from].copy_from_slice(&self.keys[from..to]);
        Leaf { words: words.into(), keys: keys.into(), len: narrow(range.len()), skip: self.skip }
    }

    /// Takes the heads anew, behind all that the first and the last key have in common.
    fn behead(&mut self) {
        let Some(last) = self.len().checked_sub(1) else { return };
        let skip = common(self.key(0), self.key(last));
        self.skip = narrow(skip);
        for at in 0..self.len() {
            let head = head(self.key(at), skip);
            Arc::make_mut(&mut self.words)[at] = head;
        }
    }

    fn insert(&mut self, at: usize, key: &[u8], place: Place) {
        let (len, used) = (self.len(), self.used());
        let full = len == self.room();
        if full || used + key.len() > self.keys.len() {
            let room = if full { len + GROWTH } else { self.room() };
            // Of keys as long as this one.
            *self = self.part(0..len, room, used + key.len() * (room - len));
        }
        let shared = if len == 0 { key.len() } else { common(&self.key(0)[..self.skip()], key) };
        let (room, from) = (self.room(), self.start(at));
        let keys = Arc::make_mut(&mut self.keys);
        keys.copy_within(from..used, from + key.len());
        keys[from..from + key.len()].copy_from_slice(key);
        let words = Arc::make_mut(&mut self.words);
        for column in 0..COLUMNS {
            let column = &mut words[column * room..][..len + 1];
            column.copy_within(at..len, at + 1);
        }
        let ends = &mut words[END * room..][..len + 1];
        ends[at] = from as u64;
        ends[at..].iter_mut().for_each(|end| *end += key.len() as u64);
        self.len += 1;
        self.set_place(at, place);
        if shared < self.skip() || len == 0 {
            self.behead();
        } else {
            let head = head(key, self.skip());
            Arc::make_mut(&mut self.words)[at] = head;
        }
    }

    fn remove(&mut self, at: usize) -> Place {
        let (place, room, len) = (self.place(at), self.room(), self.len());
        let (range, used) = (self.start(at)..self.end(at), self.used());
        Arc::make_mut(&mut self.keys).copy_within(range.end..used, range.start);
        let words = Arc::make_mut(&mut self.words);
        for column in 0..COLUMNS {
            words[column * room..][..len].copy_within(at + 1.., at);
        }
        let ends = &mut words[END * room..][at..len - 1];
        ends.iter_mut().for_each(|end| *end -= range.len() as u64);
        self.len -= 1;
        // What many removals leave behind must not weigh what it weighed before.
        if self.len() + self.len() / 2 + GROWTH / 2 < room {
            *self = self.part(0..self.len(), self.len(), self.used());
        }
        place
    }

    fn split_off(&mut self, at: usize) -> Leaf {
        let (len, cut, used) = (self.len(), self.start(at), self.used());
        let mut right = self.part(at..len, len - at, used - cut);
        // Random inserts fill a half up again; sequential ones never come back to a left half.
        *self = self.part(0..at, at, cut);
        self.behead();
        right.behead();
        right
    }

    /// All keys with their places, in order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], Place)> {
        (0..self.len()).map(|at| (self.key(at), self.place(at)))
    }

    /// Bytes of its blocks, with the counters of those who share them.
    fn bytes(&self) -> usize {
        size_of_val(&*self.words) + self.keys.len() + 4 * size_of::<usize>()
    }
}

/// Which way a scan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From smaller to larger keys.
    Ascending,
    /// From larger to smaller keys.
    Descending,
}

/// Where a key was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    leaf: usize,
    at: usize,
}

/// An ordered map from index keys to places.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// In order. A leaf holds the keys from its bound to the next leaf's; the first one's is empty.
    leaves: Vec<Leaf>,
    /// The lower bounds of all leaves but the first.
    bounds: Vec<Box<[u8]>>,
    /// Of each bound, behind the first `skip` bytes, which all of them have in common.
    heads: Vec<u64>,
    skip: usize,
    len: usize,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The number of the leaf that a key is in, or belongs in. With no leaf it is 0.
    fn leaf_of(&self, key: &[u8]) -> usize {
        // The bounds begin with the second leaf's.
        match search(&self.heads, self.skip, key, |at| &self.bounds[at]) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    /// The leaf of a key that has the first bytes which all bounds have in common. Of any other key it is any leaf, and
    /// none where only whole bounds can tell. Spares a look at a whole bound.
    fn guess(&self, key: &[u8]) -> Option<usize> {
        let head = head(key.get(self.skip..)?, 0);
        let number = below(&self.heads, head);
        (self.heads.get(number) != Some(&head)).then_some(number)
    }

    /// Where a key is, with its place.
    pub(super) fn find(&self, key: &[u8]) -> Option<(Spot, Place)> {
        let within = |leaf: usize| {
            let at = self.leaves.get(leaf)?.search(key).ok()?;
            Some((Spot { leaf, at }, self.leaves[leaf].place(at)))
        };
        // A key that is found is found, whatever led there.
        self.guess(key).and_then(within).or_else(|| within(self.leaf_of(key)))
    }

    /// Gives the key of a spot another place. Nothing may have been put in or taken out since the spot was found.
    pub(super) fn replace(&mut self, spot: Spot, place: Place) {
        self.leaves[spot.leaf].set_place(spot.at, place);
    }

    /// Takes the heads of the bounds anew.
    fn behead(&mut self) {
        let (Some(first), Some(last)) = (self.bounds.first(), self.bounds.last()) else { return };
        self.skip = common(first, last);
        self.heads.clear();
        self.heads.extend(self.bounds.iter().map(|bound| head(bound, self.skip)));
    }

    /// Puts a leaf behind the leaf `before`.
    fn insert_leaf(&mut self, before: usize, leaf: Leaf) {
        let bound: Box<[u8]> = leaf.key(0).into();
        let shared = self.bounds.first().map_or(0, |first| common(&first[..self.skip], &bound));
        let head_here = (shared == self.skip && !self.bounds.is_empty()).then(|| head(&bound, self.skip));
        self.bounds.insert(before, bound);
        self.leaves.insert(before + 1, leaf);
        match head_here {
            // The more the bounds have in common the more their heads tell: looked at again when they double.
            Some(head) if !self.bounds.len().is_power_of_two() => self.heads.insert(before, head),
            _ => self.behead(),
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Place> {
        self.find(key).map(|(_, place)| place)
    }

    /// Sets a key's place; the one it had.
    pub(super) fn insert(&mut self, key: &[u8], place: Place) -> Option<Place> {
        let number = self.leaf_of(key);
        let Some(leaf) = self.leaves.get_mut(number) else {
            assert!(self.leaves.is_empty(), "every key belongs in a leaf");
            let mut leaf = Leaf::default();
            leaf.insert(0, key, place);
            self.leaves.push(leaf);
            self.len = 1;
            return None;
        };
        let at = match leaf.search(key) {
            Ok(at) => {
                let old = leaf.place(at);
                leaf.set_place(at, place);
                return Some(old);
            }
            Err(at) => at,
        };
        leaf.insert(at, key, place);
        self.len += 1;
        if leaf.len() > 1 && (leaf.len() > LEAF_ENTRIES_MAX || leaf.used() > LEAF_KEY_BYTES_MAX) {
            // Keys that arrive in order would leave halves behind for ever.
            let cut = if at + 1 == leaf.len() { at } else { leaf.len() / 2 };
            let right = leaf.split_off(cut);
            self.insert_leaf(number, right);
        }
        None
    }

    /// Takes a key out; the place it had.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Place> {
        let number = self.leaf_of(key);
        let leaf = self.leaves.get_mut(number)?;
        let at = leaf.search(key).ok()?;
        let place = leaf.remove(at);
        self.len -= 1;
        if self.len == 0 {
            *self = Index::default();
        } else if leaf.len() == 0 && number > 0 {
            self.leaves.remove(number);
            self.bounds.remove(number - 1);
            self.heads.remove(number - 1);
        }
        Some(place)
    }

    /// Visits keys in order from a bound, until `visit` says that it has enough.
    pub(super) fn scan(
        &self,
        from: Bound<&[u8]>,
        direction: Direction,
        mut visit: impl FnMut(&[u8], Place) -> bool,
    ) {
        let start = match from {
            Bound::Included(key) | Bound::Excluded(key) => Some(key),
            Bound::Unbounded => None,
        };
        let excluded = matches!(from, Bound::Excluded(_));
        match direction {
            Direction::Ascending => {
                // The first key may stand in the leaf whose bound is below the start.
                let first = start.map_or(0, |key| self.leaf_of(key));
                for leaf in self.leaves.iter().skip(first) {
                    let skip = start.map_or(0, |key| match leaf.search(key) {
                        Ok(at) => at + usize::from(excluded),
                        Err(at) => at,
                    });
                    for at in skip..leaf.len() {
                        if !visit(leaf.key(at), leaf.place(at)) {
                            return;
                        }
                    }
                }
            }
            Direction::Descending => {
                let last = start.map_or(self.leaves.len(), |key| self.leaf_of(key) + 1);
                for leaf in self.leaves.iter().take(last).rev() {
                    let end = start.map_or(leaf.len(), |key| match leaf.search(key) {
                        Ok(at) => at + usize::from(!excluded),
                        Err(at) => at,
                    });
                    for at in (0..end).rev() {
                        if !visit(leaf.key(at), leaf.place(at)) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The leaves as they are at this moment, in order; costs two counters each. Writers copy what they change.
    pub(super) fn share(&self) -> Vec<Leaf> {
        self.leaves.clone()
    }

    /// Adds a key behind all others, as a snapshot lists them.
    ///
    /// # Errors
    /// None when the key is not behind them.
    pub(super) fn push(&mut self, key: &[u8], place: Place) -> Option<()> {
        if let Some(leaf) = self.leaves.last()
            && leaf.len() > 0
            && leaf.key(leaf.len() - 1) >= key
        {
            return None;
        }
        self.insert(key, place);
        Some(())
    }

    /// Bytes in memory, roughly: what is allocated, without the allocator's rounding.
    pub(super) fn bytes(&self) -> usize {
        // The leaf, and its bound's head and pointer.
        let around = size_of::<Leaf>() + 3 * size_of::<usize>();
        let bounds: usize = self.bounds.iter().map(|bound| bound.len()).sum();
        self.leaves.iter().map(|leaf| leaf.bytes() + around).sum::<usize>() + bounds
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn place(n: u64) -> Place {
        Place::new(n, 1, n, false)
    }

    #[test]
    fn keys_order_by_namespace_and_then_bytewise() {
        let key = |bytes: &[u8]| Key::new(bytes.to_vec()).unwrap();
        let low = index_key(Namespace(1), &key(&[0xff; 9]));
        let high = index_key(Namespace(256), &key(&[0]));
        assert!(low < high);
        assert_eq!(split_key(&high), Some((Namespace(256), key(&[0]))));
        assert_eq!(split_key(&[0, 0, 0, 1]), None);
    }

    #[test]
    fn a_32_byte_key_costs_less_than_100_bytes() {
        let mut index = Index::default();
        for n in 0..4000u64 {
            let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            index.insert(format!("....{scattered:032x}").as_bytes(), place(n));
        }
        assert!(index.bytes() / index.len() < 100, "{}", index.bytes() / index.len());
    }

    #[test]
    fn what_is_taken_out_weighs_nothing() {
        let mut index = Index::default();
        let key = |n: u64| format!("....{:032x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes();
        for n in 0..40_000 {
            index.insert(&key(n), place(n));
        }
        let before = index.bytes();
        for n in (0..40_000).filter(|n| n % 10 > 0) {
            index.remove(&key(n));
        }
        assert!(index.bytes() < before / 4, "{} of {before} bytes for a tenth of the keys", index.bytes());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Vec<u8>),
        Remove(Vec<u8>),
        Scan(Vec<u8>, bool, bool),
        Share,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Short ones that end in zeros of their own, and some that agree for longer than a head.
        let short = || proptest::collection::vec(0u8..6, 0..4);
        let key = move || {
            (0..14usize, any::<bool>(), short()).prop_map(|(shared, long, end)| {
                let mut key = if long { vec![2; shared] } else { Vec::new() };
                key.extend(end);
                key
            })
        };
        let step = prop_oneof![
            6 => key().prop_map(Step::Insert),
            3 => key().prop_map(Step::Remove),
            1 => (key(), any::<bool>(), any::<bool>()).prop_map(|(key, down, open)| Step::Scan(key, down, open)),
            1 => Just(Step::Share),
        ];
        proptest::collection::vec(step, 0..600)
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map(steps in steps()) {
            let mut index = Index::default();
            let mut model = BTreeMap::new();
            let mut shared = None;
            for (n, step) in steps.into_iter().enumerate() {
                let n = n as u64;
                match step {
                    Step::Insert(key) => {
                        let found = index.find(&key);
                        prop_assert_eq!(found.map(|(_, place)| place), model.get(&key).copied());
                        match found.filter(|_| n.is_multiple_of(2)) {
                            Some((spot, _)) => index.replace(spot, place(n)),
                            None => prop_assert_eq!(index.insert(&key, place(n)), model.get(&key).copied()),
                        }
                        model.insert(key, place(n));
                    }
                    Step::Remove(key) => prop_assert_eq!(index.remove(&key), model.remove(&key)),
                    Step::Scan(key, down, open) => {
                        let from = if open { Bound::Excluded(&key[..]) } else { Bound::Included(&key[..]) };
                        let mut found = Vec::new();
                        let direction = if down { Direction::Descending } else { Direction::Ascending };
                        index.scan(from, direction, |key, place| {
                            found.push((key.to_vec(), place));
                            found.len() < 50
                        });
                        let range = if down { (Bound::Unbounded, from) } else { (from, Bound::Unbounded) };
                        let inside = model.range::<[u8], _>(range).map(|(key, place)| (key.clone(), *place));
                        let expected: Vec<_> =
                            if down { inside.rev().take(50).collect() } else { inside.take(50).collect() };
                        prop_assert_eq!(found, expected);
                    }
                    Step::Share => shared = Some((index.share(), model.clone())),
                }
                prop_assert_eq!(index.len(), model.len());
            }
            // What was shared is as it was then.
            if let Some((leaves, model)) = shared {
                let all: Vec<_> = leaves.iter().flat_map(|leaf| leaf.iter()).map(|(k, p)| (k.to_vec(), p)).collect();
                prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
