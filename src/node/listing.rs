//! A replica's side of a scan: the first keys of many partitions in one order, and copies of many keys.
//!
//! From the index alone. Each partition is looked through until its keys lie behind the `limit` best found so far,
//! so memory is bounded by the limit however many partitions there are, and partitions that hold few keys near the
//! beginning of the range cost one short look each.
//!
//! Absent: values, tombstones told from live keys, other nodes. A partition of which this node is no primary, or has
//! not refilled, is named and not answered for: what it lacks would be read as not there.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::Inner;
use super::fences::fences_of;
use super::replica::storage_refusal;
use crate::dynamo::reaping::Fences;
use crate::net::message::{
    FetchMany, FetchManyReply, HeldKey, Order, Refusal, SCAN_ITEMS_MAX, ScanKeys, ScanKeysReply,
};
use crate::storage::{Direction, LogPosition, Scanned, Table};
use crate::types::{Key, Namespace, PartitionId};

/// Keys of the first look into a partition; each further one is twice as long.
const LOOK_MIN: usize = 4;
const LOOK_MAX: usize = 256;
/// Partitions after which other tasks get a turn.
const TURN: usize = 64;
/// Bytes of keys in one answer, beyond which the last ones are left to the next page.
const KEY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of records in one answer, beyond which the rest is left to the next message.
const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A range of keys in an order, from behind a cursor.
#[derive(Debug, Clone)]
pub(super) struct Range {
    namespace: Namespace,
    from: Bytes,
    to: Bytes,
    order: Order,
    after: Option<Key>,
}

impl Range {
    pub(super) fn of(scan: &ScanKeys) -> Range {
        let ScanKeys { namespace, from, to, order, after, .. } = scan.clone();
        Range { namespace, from, to, order, after }
    }

    fn direction(&self) -> Direction {
        match self.order {
            Order::Ascending => Direction::Ascending,
            Order::Descending => Direction::Descending,
        }
    }

    /// Where in an index the range begins.
    fn start(&self) -> Bound<(Namespace, Key)> {
        let smallest = || Key::new(vec![0]).expect("one byte is a key");
        if let Some(after) = &self.after {
            return Bound::Excluded((self.namespace, after.clone()));
        }
        match self.order {
            // A bound that is longer than a key can be has no key at it; `has` says which lie inside.
            Order::Ascending => {
                Bound::Included((self.namespace, Key::new(self.from.clone()).unwrap_or_else(|_| smallest())))
            }
            Order::Descending => match (Key::new(self.to.clone()), self.namespace.0.checked_add(1)) {
                (Ok(to), _) => Bound::Excluded((self.namespace, to)),
                (Err(_), Some(next)) => Bound::Excluded((Namespace(next), smallest())),
                (Err(_), None) => Bound::Unbounded,
            },
        }
    }

    /// Whether a key is inside, bar the cursor.
    fn has(&self, namespace: Namespace, key: &Key) -> bool {
        let bytes = key.as_bytes();
        namespace == self.namespace && bytes >= &*self.from && (self.to.is_empty() || bytes < &*self.to)
    }

    /// Whether nothing behind this key in the order is inside.
    fn is_past(&self, namespace: Namespace, key: &Key) -> bool {
        let bytes = key.as_bytes();
        namespace != self.namespace
            || match self.order {
                Order::Ascending => !self.to.is_empty() && bytes >= &*self.to,
                Order::Descending => bytes < &*self.from,
            }
    }
}

/// The first keys in an order, at most so many.
struct First {
    order: Order,
    limit: usize,
    keys: BTreeMap<Key, (u64, u32)>,
    bytes: usize,
    /// Whether a key was left out.
    more: bool,
}

impl First {
    fn new(order: Order, limit: usize) -> First {
        First { order, limit, keys: BTreeMap::new(), bytes: 0, more: false }
    }

    /// Whether a key would be left out; then so would be all behind it.
    fn is_out(&self, key: &Key) -> bool {
        let full = self.keys.len() >= self.limit || (self.bytes >= KEY_BYTES_MAX && self.keys.len() > 1);
        full && match self.order {
            Order::Ascending => self.keys.last_key_value().is_some_and(|(last, _)| key > last),
            Order::Descending => self.keys.first_key_value().is_some_and(|(last, _)| key < last),
        }
    }

    fn enter(&mut self, found: Scanned) {
        self.bytes += found.key.as_bytes().len();
        let bytes = u32::try_from(found.bytes).unwrap_or(u32::MAX);
        self.keys.insert(found.key, (found.version_hash, bytes));
        while self.keys.len() > self.limit || (self.bytes > KEY_BYTES_MAX && self.keys.len() > 1) {
            let last = match self.order {
                Order::Ascending => self.keys.pop_last(),
                Order::Descending => self.keys.pop_first(),
            };
            self.bytes -= last.map_or(0, |(key, _)| key.as_bytes().len());
            self.more = true;
        }
    }

    fn into_keys(self) -> Vec<HeldKey> {
        let held = |(key, (version_hash, bytes))| HeldKey { key, version_hash, bytes };
        match self.order {
            Order::Ascending => self.keys.into_iter().map(held).collect(),
            Order::Descending => self.keys.into_iter().rev().map(held).collect(),
        }
    }
}

impl Inner {
    /// The first keys of these partitions that this node holds as a primary. What it says is durable.
    ///
    /// # Errors
    /// When the disk will not have it.
    pub(super) async fn list_own(&self, scan: &ScanKeys) -> Result<ScanKeysReply, Refusal> {
        let range = Range::of(scan);
        let limit = usize::try_from(scan.limit).unwrap_or(usize::MAX).clamp(1, SCAN_ITEMS_MAX);
        let mut first = First::new(scan.order, limit);
        let (mut unready, mut fences) = (Vec::new(), Vec::new());
        let mut position = LogPosition::default();
        for (turn, partition) in (1_usize..).zip(scan.partitions.iter().copied()) {
            if self.is_ready(partition) {
                position = position.max(self.look(partition, &range, &mut first));
                // Behind the look: a key that is not there because of a round, that round is committed by these.
                let (state, end) = self.store.partition_state(partition);
                if fences_of(&state) != Fences::default() {
                    position = position.max(end);
                    fences.push((partition, fences_of(&state)));
                }
            } else {
                unready.push(partition);
            }
            if turn % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        self.store.wait_synced(position).await.map_err(|error| storage_refusal(&error))?;
        Ok(ScanKeysReply { more: first.more, keys: first.into_keys(), unready, fences })
    }

    /// Whether this node holds all of a partition, as far as it knows.
    fn is_ready(&self, partition: PartitionId) -> bool {
        partition.0 < self.descriptor.partitions.get()
            && self.preference_of(partition).is_primary(self.id)
            && self.store.partition_state(partition).0.refilled
            && !self.is_stale(partition)
            // A round may have let go what a node without a vote still has.
            && self.has_vote()
    }

    fn look(&self, partition: PartitionId, range: &Range, first: &mut First) -> LogPosition {
        let (mut start, mut look) = (range.start(), LOOK_MIN);
        let mut position = LogPosition::default();
        loop {
            let from = start.as_ref().map(|(namespace, key)| (*namespace, key));
            let page = self.store.scan(Table::Data, partition, from, range.direction(), look);
            position = position.max(page.position);
            let is_last = page.keys.len() < look;
            let mut last = None;
            for found in page.keys {
                if range.is_past(found.namespace, &found.key) {
                    return position;
                }
                if first.is_out(&found.key) {
                    first.more = true;
                    return position;
                }
                last = Some((found.namespace, found.key.clone()));
                if range.has(found.namespace, &found.key) {
                    first.enter(found);
                }
            }
            match last {
                Some(last) if !is_last => start = Bound::Excluded(last),
                _ => return position,
            }
            look = (look * 2).min(LOOK_MAX);
        }
    }

    /// This node's copies of the first of these keys.
    pub(super) async fn fetch_many_own(&self, fetch: &FetchMany) -> FetchManyReply {
        let (mut records, mut bytes) = (Vec::new(), 0);
        for key in fetch.keys.iter().take(SCAN_ITEMS_MAX) {
            let record = self.fetch_own(fetch.namespace, key).await;
            bytes += record.as_ref().map_or(0, |(record, _)| record.size_bytes());
            if bytes > RECORD_BYTES_MAX && !records.is_empty() {
                break;
            }
            records.push(record.map_err(|error| storage_refusal(&error).code));
        }
        FetchManyReply { records }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Scanned {
        let key = Key::new(name.as_bytes().to_vec()).unwrap();
        Scanned { namespace: Namespace(0), key, version_hash: 1, bytes: 10 }
    }

    fn names(first: First) -> Vec<String> {
        first.into_keys().into_iter().map(|held| held.key.to_string()).collect()
    }

    #[test]
    fn the_first_keys_are_kept_in_either_order_and_the_rest_is_known_to_be_there() {
        for (order, expected) in [(Order::Ascending, ["a", "b"]), (Order::Descending, ["e", "d"])] {
            let mut first = First::new(order, 2);
            for name in ["c", "a", "e", "b", "d"] {
                if !first.is_out(&found(name).key) {
                    first.enter(found(name));
                }
            }
            assert!(first.more);
            assert_eq!(names(first), expected);
        }
        let mut all = First::new(Order::Ascending, 2);
        all.enter(found("a"));
        all.enter(found("b"));
        assert!(!all.more);
    }

    #[test]
    fn large_keys_are_bounded_by_their_bytes_and_one_is_always_kept() {
        let large =
            |n: u8| Scanned { key: Key::new(vec![n; crate::types::KEY_LEN_MAX]).unwrap(), ..found("x") };
        let mut first = First::new(Order::Ascending, 1000);
        for n in (0..200).rev() {
            first.enter(large(n));
        }
        assert!(first.more && first.bytes <= KEY_BYTES_MAX);
        assert_eq!(first.keys.len(), KEY_BYTES_MAX / crate::types::KEY_LEN_MAX);
        assert_eq!(first.into_keys()[0].key, large(0).key, "the smallest stay");
    }

    fn range(order: Order, from: &'static [u8], to: &'static [u8]) -> Range {
        let (from, to) = (Bytes::from_static(from), Bytes::from_static(to));
        Range { namespace: Namespace(3), from, to, order, after: None }
    }

    #[test]
    fn a_range_begins_inside_its_namespace() {
        let key = |bytes: &'static [u8]| Key::new(bytes).unwrap();
        let start = |order, from, to| range(order, from, to).start();
        let (up, down) = (Order::Ascending, Order::Descending);
        assert_eq!(start(up, b"", b"x"), Bound::Included((Namespace(3), key(&[0]))));
        assert_eq!(start(up, b"a", b"x"), Bound::Included((Namespace(3), key(b"a"))));
        assert_eq!(start(down, b"a", b"x"), Bound::Excluded((Namespace(3), key(b"x"))));
        assert_eq!(start(down, b"a", b""), Bound::Excluded((Namespace(4), key(&[0]))));
        assert!(range(up, b"a", b"x").has(Namespace(3), &key(b"a")));
        assert!(!range(up, b"a", b"x").has(Namespace(3), &key(b"x")));
        assert!(!range(up, b"a", b"x").has(Namespace(4), &key(b"b")));
        assert!(range(down, b"b", b"x").is_past(Namespace(3), &key(b"a")));
        assert!(!range(down, b"b", b"x").is_past(Namespace(3), &key(b"b")));
    }
}
