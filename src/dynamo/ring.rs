//! The ring: which partition a key belongs to.
//!
//! Model (Dynamo §4.2, §6.2 strategy 3): the 64-bit hash space is cut into Q equal ranges, the *partitions*, in
//! ascending order. Q is a power of two fixed when the cluster is made, so the partition of a key is the top
//! log2 Q bits of its hash and no table is searched. Who holds a partition is the layout's affair, not the
//! ring's: when members change, partitions change hands but no key changes its partition.
//!
//! Invariants
//! - The hash is a function of namespace and key alone: the same on every node, version and byte order. It is
//!   part of the cluster descriptor ([`HASH_NAME`]) and of every disk and wire format that orders by it.
//! - `range(p)` for `p` in `0..Q` are disjoint, ascending and cover `0..=u64::MAX`.
//!
//! What it deliberately does not do: no virtual nodes with random tokens (the paper's strategies 1 and 2, whose
//! ranges depend on membership and make a Merkle tree of a range costly), no order of keys within a partition,
//! and no defence against a client that picks keys of one partition on purpose: the hash is not keyed, because
//! clients compute it to go straight to a primary. (Merkle leaves are keyed; see `merkle`.)
//!
//! # Test vectors
//!
//! `key_hash(namespace, key)`; namespace 0 is the default, empty namespace.
//!
//! | namespace | key | hash |
//! |---|---|---|
//! | 0 | `"a"` | `0xe6c632b61e964e1f` |
//! | 0 | `"user:1001"` | `0x783864580ee66e90` |
//! | 7 | `"user:1001"` | `0xb1a447def00da72e` |
//! | 0xffffffff | `"user:1001"` | `0x326ff910dfea9f3c` |
//! | 0 | bytes 0, 1, … 255, 0, 1, … (1,000 bytes) | `0xd33dd80b46f60e50` |
//! | 0 | 65,536 bytes of 0xff | `0x18244f924ecf01a7` |

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::layout::LayoutError;
use crate::types::{Key, Namespace, PartitionId};

/// Names the ring's hash in the cluster descriptor. A node that knows another name cannot join.
pub const HASH_NAME: &str = "xxh3-64-seed-namespace";

/// Smallest Q.
pub const PARTITIONS_MIN: u32 = 8;
/// Largest Q.
pub const PARTITIONS_MAX: u32 = 65_536;
/// Q of a new cluster unless the operator says otherwise.
pub const PARTITIONS_DEFAULT: PartitionCount = PartitionCount(256);

const _: () = assert!(PARTITIONS_MIN.is_power_of_two() && PARTITIONS_MAX.is_power_of_two());
// partition_of shifts by 64 - log2 Q, which is below 64 only when Q is above one.
const _: () = assert!(PARTITIONS_MIN > 1);

/// The place of a key on the ring: XXH3-64 of the key's bytes with the namespace as the seed.
#[inline]
pub fn key_hash(namespace: Namespace, key: &Key) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), u64::from(namespace.0))
}

/// Q, the number of partitions of a cluster: a power of two from [`PARTITIONS_MIN`] to [`PARTITIONS_MAX`].
///
/// Choose it well above the largest number of members ever wanted (Dynamo: Q ≫ S): a node's load is a whole
/// number of partitions, so with fewer than some ten partitions a node the balance is coarse.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PartitionCount(u32);

impl PartitionCount {
    /// Checks that `q` is a power of two in range.
    pub fn new(q: u32) -> Result<PartitionCount, LayoutError> {
        if !(PARTITIONS_MIN..=PARTITIONS_MAX).contains(&q) {
            return Err(LayoutError::PartitionsOutOfRange { q });
        }
        if !q.is_power_of_two() {
            return Err(LayoutError::PartitionsNotPowerOfTwo { q });
        }
        Ok(PartitionCount(q))
    }

    /// The number of partitions.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// How many leading bits of the hash name the partition: log2 Q.
    pub const fn bits(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// The partition that a key belongs to.
    #[inline]
    pub fn partition_of(self, namespace: Namespace, key: &Key) -> PartitionId {
        self.partition_of_hash(key_hash(namespace, key))
    }

    /// The partition that a place on the ring belongs to.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 bits are left")]
    pub const fn partition_of_hash(self, hash: u64) -> PartitionId {
        PartitionId((hash >> (64 - self.bits())) as u32)
    }

    /// The hashes of a partition. `None` when the partition is not below Q.
    pub fn range(self, partition: PartitionId) -> Option<RangeInclusive<u64>> {
        if partition.0 >= self.0 {
            return None;
        }
        let shift = 64 - self.bits();
        let first = u64::from(partition.0) << shift;
        Some(first..=first | ((1 << shift) - 1))
    }

    /// All partitions in ring order.
    pub fn partitions(self) -> impl DoubleEndedIterator<Item = PartitionId> + ExactSizeIterator {
        (0..self.0).map(PartitionId)
    }
}

impl TryFrom<u32> for PartitionCount {
    type Error = LayoutError;
    fn try_from(q: u32) -> Result<PartitionCount, LayoutError> {
        PartitionCount::new(q)
    }
}

impl From<PartitionCount> for u32 {
    fn from(q: PartitionCount) -> u32 {
        q.0
    }
}

impl fmt::Debug for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Q={}", self.0)
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: impl Into<Vec<u8>>) -> Key {
        Key::new(bytes.into()).unwrap()
    }

    #[test]
    fn the_hash_of_a_key_never_changes() {
        let counting: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let vectors: [(u32, Key, u64); 6] = [
            (0, key("a"), 0xe6c6_32b6_1e96_4e1f),
            (0, key("user:1001"), 0x7838_6458_0ee6_6e90),
            (7, key("user:1001"), 0xb1a4_47de_f00d_a72e),
            (u32::MAX, key("user:1001"), 0x326f_f910_dfea_9f3c),
            (0, key(counting), 0xd33d_d80b_46f6_0e50),
            (0, key(vec![0xff; 65_536]), 0x1824_4f92_4ecf_01a7),
        ];
        let found: Vec<String> =
            vectors.iter().map(|(ns, k, _)| format!("{:#018x}", key_hash(Namespace(*ns), k))).collect();
        let wanted: Vec<String> = vectors.iter().map(|(_, _, h)| format!("{h:#018x}")).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn q_is_a_power_of_two_from_8_to_65536() {
        for q in [8, 16, 256, 4096, 65_536] {
            assert_eq!(PartitionCount::new(q).unwrap().get(), q);
        }
        for q in [0, 1, 2, 4, 131_072, u32::MAX] {
            assert_eq!(PartitionCount::new(q), Err(LayoutError::PartitionsOutOfRange { q }));
        }
        for q in [9, 100, 255, 257, 1000, 65_535] {
            assert_eq!(PartitionCount::new(q), Err(LayoutError::PartitionsNotPowerOfTwo { q }));
        }
    }

    #[test]
    fn partitions_are_equal_ranges_that_cover_the_hash_space_in_order() {
        for q in [8, 256, 65_536] {
            let q = PartitionCount::new(q).unwrap();
            let mut next = Some(0u64);
            for p in q.partitions() {
                let range = q.range(p).unwrap();
                assert_eq!(Some(*range.start()), next);
                assert_eq!(range.end() - range.start(), u64::MAX / u64::from(q.get()));
                assert_eq!(q.partition_of_hash(*range.start()), p);
                assert_eq!(q.partition_of_hash(*range.end()), p);
                next = range.end().checked_add(1);
            }
            assert_eq!(next, None, "the last range ends with the hash space");
            assert_eq!(q.range(PartitionId(q.get())), None);
        }
    }

    #[test]
    fn keys_spread_over_partitions_and_namespaces_move_them() {
        let q = PartitionCount::new(256).unwrap();
        let mut counts = [0u32; 256];
        let mut moved = 0;
        for i in 0..25_600 {
            let k = key(format!("key-{i}"));
            let p = q.partition_of(Namespace(0), &k);
            counts[p.0 as usize] += 1;
            moved += u32::from(q.partition_of(Namespace(1), &k) != p);
        }
        // 100 expected a partition, standard deviation 10.
        assert!(counts.iter().all(|c| (50..150).contains(c)), "{counts:?}");
        assert!(moved > 25_000, "{moved}");
    }
}
