//! The ordered index of one partition and table: where each key's newest record stands.
//!
//! A B+ tree of two levels: a map of leaves by their lower bound, and leaves of up to [`LEAF_ENTRIES_MAX`] keys
//! packed end to end. Every key of the store is in memory, so bytes count: a 32-byte key costs some 75 bytes here
//! with everything, against 130 in a `BTreeMap<Box<[u8]>, _>` (node slack, a heap block and its rounding a key).
//!
//! Leaves are shared and copied on write: a snapshot takes the leaves of a partition in one moment by counting them
//! up, and writers go on. Leaves are freed when they become empty; half-empty ones are not joined.
//!
//! Keys here are *index keys*: namespace (big-endian u32), then the key, so that bytewise order is the order of
//! `(namespace, key)`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::types::{Key, Namespace};

/// Most keys of a leaf.
pub(super) const LEAF_ENTRIES_MAX: usize = 64;
/// Most bytes of a leaf's keys, unless it has but one.
const LEAF_KEY_BYTES_MAX: usize = 64 * 1024;
/// By how many keys a leaf grows at a time.
const GROWTH: usize = 8;
/// Bytes of the namespace in an index key.
const NAMESPACE_LEN: usize = 4;

const AWAITS_SYNC: u32 = 1 << 31;

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
        assert!(len < AWAITS_SYNC, "the highest bit is taken");
        Place { position, hash, len: if awaits_sync { len | AWAITS_SYNC } else { len } }
    }

    /// Bytes of the record.
    pub(super) fn len(self) -> usize {
        (self.len & !AWAITS_SYNC) as usize
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

/// A run of keys in order with their places.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaf {
    keys: Vec<u8>,
    /// Where each key ends in `keys`.
    ends: Vec<u32>,
    places: Vec<Place>,
}

impl Leaf {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn start(&self, at: usize) -> usize {
        if at == 0 { 0 } else { self.ends[at - 1] as usize }
    }

    fn key(&self, at: usize) -> &[u8] {
        &self.keys[self.start(at)..self.ends[at] as usize]
    }

    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    fn insert(&mut self, at: usize, key: &[u8], place: Place) {
        if self.places.len() == self.places.capacity() {
            let grown = self.len() + GROWTH;
            self.keys.reserve_exact(key.len() * GROWTH);
            self.ends.reserve_exact(grown - self.len());
            self.places.reserve_exact(grown - self.len());
        }
        if self.keys.len() + key.len() > self.keys.capacity() {
            self.keys.reserve_exact(key.len() * GROWTH);
        }
        let from = self.start(at);
        let old = self.keys.len();
        self.keys.resize(old + key.len(), 0);
        self.keys.copy_within(from..old, from + key.len());
        self.keys[from..from + key.len()].copy_from_slice(key);
        let len = u32::try_from(key.len()).expect("a key has at most 64 KiB");
        self.ends.insert(at, u32::try_from(from).expect("a leaf of keys is below 4 GiB"));
        self.ends[at..].iter_mut().for_each(|end| *end += len);
        self.places.insert(at, place);
    }

    fn remove(&mut self, at: usize) -> Place {
        let range = self.start(at)..self.ends[at] as usize;
        let len = u32::try_from(range.len()).expect("a key has at most 64 KiB");
        self.keys.drain(range);
        self.ends.remove(at);
        self.ends[at..].iter_mut().for_each(|end| *end -= len);
        self.places.remove(at)
    }

    fn split_off(&mut self, at: usize) -> Leaf {
        let cut = self.start(at);
        let mut ends: Vec<u32> = self.ends[at..].to_vec();
        let shift = u32::try_from(cut).expect("a leaf of keys is below 4 GiB");
        ends.iter_mut().for_each(|end| *end -= shift);
        let right = Leaf { keys: self.keys[cut..].to_vec(), ends, places: self.places[at..].to_vec() };
        self.keys.truncate(cut);
        self.ends.truncate(at);
        self.places.truncate(at);
        // Random inserts fill a half up again; sequential ones never come back to a left half.
        self.keys.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.places.shrink_to_fit();
        right
    }

    /// All keys with their places, in order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], Place)> {
        (0..self.len()).map(|at| (self.key(at), self.places[at]))
    }

    fn bytes(&self) -> usize {
        self.keys.capacity() + self.ends.capacity() * 4 + self.places.capacity() * size_of::<Place>()
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

/// An ordered map from index keys to places.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By lower bound: a leaf holds the keys from its bound to the next leaf's. The first leaf's bound is empty.
    leaves: BTreeMap<Box<[u8]>, Arc<Leaf>>,
    len: usize,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn leaf_of(&self, key: &[u8]) -> Option<&Arc<Leaf>> {
        let range = (Bound::Unbounded, Bound::Included(key));
        self.leaves.range::<[u8], _>(range).next_back().map(|(_, leaf)| leaf)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Place> {
        let leaf = self.leaf_of(key)?;
        leaf.search(key).ok().map(|at| leaf.places[at])
    }

    /// Sets a key's place; the one it had.
    pub(super) fn insert(&mut self, key: &[u8], place: Place) -> Option<Place> {
        let range = (Bound::Unbounded, Bound::Included(key));
        let Some((_, leaf)) = self.leaves.range_mut::<[u8], _>(range).next_back() else {
            assert!(self.leaves.is_empty(), "the first leaf's bound is empty");
            let mut leaf = Leaf::default();
            leaf.insert(0, key, place);
            self.leaves.insert(Box::default(), Arc::new(leaf));
            self.len = 1;
            return None;
        };
        let leaf = Arc::make_mut(leaf);
        let at = match leaf.search(key) {
            Ok(at) => return Some(std::mem::replace(&mut leaf.places[at], place)),
            Err(at) => at,
        };
        leaf.insert(at, key, place);
        self.len += 1;
        if leaf.len() > 1 && (leaf.len() > LEAF_ENTRIES_MAX || leaf.keys.len() > LEAF_KEY_BYTES_MAX) {
            // Keys that arrive in order would leave halves behind for ever.
            let cut = if at + 1 == leaf.len() { at } else { leaf.len() / 2 };
            let right = leaf.split_off(cut);
            self.leaves.insert(right.key(0).into(), Arc::new(right));
        }
        None
    }

    /// Takes a key out; the place it had.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Place> {
        let range = (Bound::Unbounded, Bound::Included(key));
        let (bound, leaf) = self.leaves.range_mut::<[u8], _>(range).next_back()?;
        let at = leaf.search(key).ok()?;
        let leaf = Arc::make_mut(leaf);
        let place = leaf.remove(at);
        self.len -= 1;
        if leaf.len() == 0 && !bound.is_empty() {
            let bound = bound.clone();
            self.leaves.remove(&bound);
        } else if self.len == 0 {
            self.leaves.clear();
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
                let first = start.map_or(Bound::Unbounded, |key| {
                    let range = (Bound::Unbounded, Bound::Included(key));
                    let bound = self.leaves.range::<[u8], _>(range).next_back();
                    bound.map_or(Bound::Unbounded, |(bound, _)| Bound::Included(&**bound))
                });
                for (_, leaf) in self.leaves.range::<[u8], _>((first, Bound::Unbounded)) {
                    let skip = start.map_or(0, |key| match leaf.search(key) {
                        Ok(at) => at + usize::from(excluded),
                        Err(at) => at,
                    });
                    for at in skip..leaf.len() {
                        if !visit(leaf.key(at), leaf.places[at]) {
                            return;
                        }
                    }
                }
            }
            Direction::Descending => {
                let last = start.map_or(Bound::Unbounded, Bound::Included);
                for (_, leaf) in self.leaves.range::<[u8], _>((Bound::Unbounded, last)).rev() {
                    let end = start.map_or(leaf.len(), |key| match leaf.search(key) {
                        Ok(at) => at + usize::from(!excluded),
                        Err(at) => at,
                    });
                    for at in (0..end).rev() {
                        if !visit(leaf.key(at), leaf.places[at]) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The leaves as they are at this moment, in order; costs a counter each. Writers copy what they change.
    pub(super) fn share(&self) -> Vec<Arc<Leaf>> {
        self.leaves.values().cloned().collect()
    }

    /// Adds a key behind all others, as a snapshot lists them.
    ///
    /// # Errors
    /// None when the key is not behind them.
    pub(super) fn push(&mut self, key: &[u8], place: Place) -> Option<()> {
        if let Some(last) = self.leaves.last_entry() {
            let leaf = last.get();
            if leaf.len() > 0 && leaf.key(leaf.len() - 1) >= key {
                return None;
            }
        }
        self.insert(key, place);
        Some(())
    }

    /// Bytes in memory, roughly: what is allocated, without the allocator's rounding.
    pub(super) fn bytes(&self) -> usize {
        // The leaf's counters, and its bound and pointer in the map.
        let around = size_of::<Leaf>() + 5 * size_of::<usize>();
        self.leaves.iter().map(|(bound, leaf)| leaf.bytes() + bound.len() + around).sum()
    }
}

#[cfg(test)]
mod tests {
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
    fn a_32_byte_key_costs_less_than_90_bytes() {
        let mut index = Index::default();
        for n in 0..4000u64 {
            let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            index.insert(format!("....{scattered:032x}").as_bytes(), place(n));
        }
        assert!(index.bytes() / index.len() < 90, "{}", index.bytes() / index.len());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Vec<u8>),
        Remove(Vec<u8>),
        Scan(Vec<u8>, bool, bool),
        Share,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = || proptest::collection::vec(0u8..6, 0..4);
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
                    Step::Insert(key) => prop_assert_eq!(index.insert(&key, place(n)), model.insert(key, place(n))),
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
