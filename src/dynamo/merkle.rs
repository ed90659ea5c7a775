//! The Merkle tree of a partition, by which two replicas find the keys that they hold differently.
//!
//! Model (Dynamo §4.7, §6.2: one tree a key range). A **leaf** covers an equal part of the partition's range of the hash
//! space and is the xor of one keyed 64-bit hash for each key in it:
//!
//! ```text
//! item(namespace, key, version hash) = SipHash-1-3 under the cluster's Merkle key over
//!     namespace u32 LE, length of the key in bytes u32 LE, the key, version hash u64 LE
//! leaf = xor of its items, 0 when empty          node above = xor of its two children
//!
//! key hash:  pppppppp llllllllll ……              p: log2 Q bits name the partition
//!                                                l: the next k bits name one of 2^k leaves
//! ```
//!
//! Why xor all the way up, and not a hash of hashes. An update changes each node on the way to the root by the same 64
//! bits, so there is no lock on a subtree and no lazy state, and every hash of the tree is right at all times. Only
//! every fourth level is stored, besides the leaves; a node between is the xor of at most 8 stored ones. An update is
//! thus two short hashes and at most 6 xors, whatever the number of keys: O(1). A node is then the xor of the items below it, exactly as a leaf is, so **a tree with 2^k leaves
//! cut off at level j is the tree with 2^j leaves**: peers whose leaf counts differ compare down to the smaller one,
//! without conversion. Two different sets of items have equal xor by chance once in 2^64, and not on purpose, because
//! nobody outside the cluster has the key (an unkeyed xor can be made to collide by linear algebra).
//!
//! Invariants
//! - `hash(level, i)` = `hash(level+1, 2i) ^ hash(level+1, 2i+1)`.
//! - The tree is a function of the set of (namespace, key, version hash): the order of updates leaves no trace.
//!   The caller gives every update the *true* old version hash, under the key's lock; a wrong one stays in the tree
//!   for ever, is seen as a difference that never heals, and is cured by a rebuild.
//!
//! Size: some 8.5 bytes a leaf. [`LeafBits::for_keys`] follows the partition's size with [`KEYS_PER_LEAF`] keys a leaf, the
//! amount that an exchange lists to find one differing key. [`MerkleTree::shrink`] is a cut; growing needs the keys
//! again ([`MerkleTree::new`] and an update for each), since a leaf does not know which half its items are in.
//!
//! Comparing is top-down by [`Descent`], which holds no tree and talks to nobody: it says which hashes to ask for and
//! takes them. It costs one hash when the trees are equal; else, for d differing leaves of 2^k, at most
//! `1 + d × 2^4 × ⌈k/4⌉` hashes in about ⌈k/4⌉ rounds: the difference counts, not the data.
//!
//! Deliberately absent: the keys themselves (the storage index has them), time, expiry, and any promise that two hashes
//! were read at one moment: a peer's tree may change between rounds, which can only show or hide differences that the
//! next exchange sees.

use std::fmt;
use std::hash::Hasher;
use std::ops::RangeInclusive;

use siphasher::sip::SipHasher13;

use super::ring::PartitionCount;
use crate::types::{Key, Namespace, PartitionId};

/// Keys of a leaf that [`LeafBits::for_keys`] aims at.
pub const KEYS_PER_LEAF: u64 = 32;
/// Most leaves: 2^20 (some 9 MiB a tree).
pub const LEAF_BITS_MAX: u32 = 20;
/// Levels that a descent goes down in one round, and from one stored level of a tree to the next.
pub const LEVELS_PER_ROUND: u32 = 4;
/// Most hashes asked for in one round.
pub const HASHES_PER_ROUND_MAX: usize = 4096;

// Partition bits and leaf bits are both taken from the 64 bits of the key hash.
const _: () = assert!(super::ring::PARTITIONS_MAX.trailing_zeros() + LEAF_BITS_MAX < 64);
const _: () = assert!(HASHES_PER_ROUND_MAX >= 1 << LEVELS_PER_ROUND);

/// Why hashes of a peer, or saved leaves, cannot be used. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MerkleError {
    /// More leaves than 2^[`LEAF_BITS_MAX`].
    #[error("2^{bits} leaves are too many, at most 2^{LEAF_BITS_MAX} are possible; use fewer")]
    TooManyLeaves {
        /// log2 of the leaves.
        bits: u32,
    },
    /// Another number of leaves than the tree has.
    #[error("{found} leaves were given for a tree of {expected}; rebuild the tree from the keys")]
    LeafCount {
        /// Leaves of the tree.
        expected: usize,
        /// Leaves given.
        found: usize,
    },
    /// A cut to more leaves than there are.
    #[error("a tree of 2^{from} leaves cannot be cut to 2^{to}; rebuild it from the keys to grow")]
    Grows {
        /// log2 of the leaves there are.
        from: u32,
        /// log2 of the leaves wanted.
        to: u32,
    },
    /// A level or index that the tree has not.
    #[error(
        "the tree of 2^{bits} leaves has no node {index} at level {level}; agree on the leaf count again"
    )]
    NoSuchNode {
        /// log2 of the leaves.
        bits: u32,
        /// Level asked for, 0 for the root.
        level: u32,
        /// Place asked for.
        index: u32,
    },
    /// A peer answered with another number of hashes than it was asked for.
    #[error("the peer sent {found} hashes instead of {expected}; end this exchange and start over")]
    HashCount {
        /// Hashes asked for.
        expected: usize,
        /// Hashes received.
        found: usize,
    },
}

/// The cluster's secret key of leaf hashes, from the cluster descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MerkleKey(pub [u8; 16]);

impl fmt::Debug for MerkleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MerkleKey(…)")
    }
}

/// log2 of a tree's leaves, 0 to [`LEAF_BITS_MAX`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeafBits(u32);

impl LeafBits {
    /// Checks the bound.
    pub fn new(bits: u32) -> Result<LeafBits, MerkleError> {
        if bits > LEAF_BITS_MAX {
            return Err(MerkleError::TooManyLeaves { bits });
        }
        Ok(LeafBits(bits))
    }

    /// The fewest leaves with at most [`KEYS_PER_LEAF`] of `keys` in each on average, within the bound. A caller
    /// that resizes should wait until this differs by two from what it has, so that a partition at a border does
    /// not rebuild back and forth.
    pub fn for_keys(keys: u64) -> LeafBits {
        let leaves = keys.div_ceil(KEYS_PER_LEAF).max(1);
        let bits = leaves.checked_next_power_of_two().map_or(64, u64::trailing_zeros);
        LeafBits(bits.min(LEAF_BITS_MAX))
    }

    /// log2 of the leaves.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number of leaves.
    pub const fn leaves(self) -> usize {
        1 << self.0
    }

    /// The leaf of a key hash among the leaves of its partition.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "at most LEAF_BITS_MAX bits are left")]
    pub const fn leaf_of(self, q: PartitionCount, key_hash: u64) -> u32 {
        // In two steps, because a shift by 64 (one leaf) would overflow.
        ((key_hash << q.bits()) >> 1 >> (63 - self.0)) as u32
    }

    /// The key hashes of a leaf: what an exchange lists when the leaf differs, also against a peer with another leaf
    /// count. `None` when partition or leaf do not exist.
    pub fn range(self, q: PartitionCount, partition: PartitionId, leaf: u32) -> Option<RangeInclusive<u64>> {
        let of_partition = q.range(partition)?;
        if leaf as usize >= self.leaves() {
            return None;
        }
        let shift = 64 - q.bits() - self.0;
        let first = of_partition.start() | (u64::from(leaf) << shift);
        Some(first..=first | ((1 << shift) - 1))
    }
}

/// The tree of one partition. `Clone` copies all hashes.
#[derive(Clone)]
pub struct MerkleTree {
    /// Keyed and empty; every item starts from a copy.
    hasher: SipHasher13,
    q: PartitionCount,
    bits: LeafBits,
    /// The stored levels one after the other: 0, 4, 8, … as far as they are above the leaves, then the leaves.
    nodes: Vec<u64>,
}

impl MerkleTree {
    /// The tree of no keys.
    pub fn new(key: &MerkleKey, q: PartitionCount, bits: LeafBits) -> MerkleTree {
        let nodes = stored_levels(bits).map(|(_, level)| 1 << level).sum();
        MerkleTree { hasher: SipHasher13::new_with_key(&key.0), q, bits, nodes: vec![0; nodes] }
    }

    /// The tree with these leaves, as [`leaves`](Self::leaves) gave them to an index snapshot.
    pub fn from_leaves(
        key: &MerkleKey,
        q: PartitionCount,
        bits: LeafBits,
        leaves: &[u64],
    ) -> Result<MerkleTree, MerkleError> {
        // Before the tree takes memory: the number of leaves is only a claim.
        if leaves.len() != bits.leaves() {
            return Err(MerkleError::LeafCount { expected: bits.leaves(), found: leaves.len() });
        }
        let mut tree = MerkleTree::new(key, q, bits);
        for (start, level) in stored_levels(bits) {
            for (leaf, hash) in leaves.iter().enumerate() {
                tree.nodes[start + (leaf >> (bits.0 - level))] ^= hash;
            }
        }
        Ok(tree)
    }

    /// log2 of the leaves.
    pub fn bits(&self) -> LeafBits {
        self.bits
    }

    /// Tells the tree that a key's record changed: `None` stands for no record. `key_hash` is the key's place on the
    /// ring, which the caller has already; it must be of this tree's partition.
    #[inline]
    pub fn update(
        &mut self,
        namespace: Namespace,
        key: &Key,
        key_hash: u64,
        old: Option<u64>,
        new: Option<u64>,
    ) {
        if old == new {
            return;
        }
        let bytes = key.as_bytes();
        let mut hasher = self.hasher;
        // The same bytes as the two u32 one after the other; a whole word keeps the hasher on its fast path.
        hasher.write_u64((u64::from(namespace.0) | (bytes.len() as u64) << 32).to_le());
        hasher.write(bytes);
        let item = |version_hash: u64| hasher.hash(&version_hash.to_le_bytes());
        let change = old.map_or(0, item) ^ new.map_or(0, item);
        let leaf = self.bits.leaf_of(self.q, key_hash) as usize;
        for (start, level) in stored_levels(self.bits) {
            self.nodes[start + (leaf >> (self.bits.0 - level))] ^= change;
        }
    }

    /// The hash over all keys; 0 when there are none.
    pub fn root(&self) -> u64 {
        self.nodes[0]
    }

    /// The hash of one node: level 0 is the root, level `bits` the leaves.
    pub fn hash(&self, level: u32, index: u32) -> Result<u64, MerkleError> {
        if level > self.bits.0 || index >> level != 0 {
            return Err(MerkleError::NoSuchNode { bits: self.bits.0, level, index });
        }
        let (start, stored) =
            stored_levels(self.bits).find(|&(_, stored)| stored >= level).expect("the leaves are stored");
        let wide = stored - level;
        let first = start + ((index as usize) << wide);
        Ok(self.nodes[first..first + (1 << wide)].iter().fold(0, |xor, hash| xor ^ hash))
    }

    /// The hashes of several nodes of one level: the answer to [`Descent::ask`].
    pub fn hashes(&self, level: u32, indices: &[u32]) -> Result<Vec<u64>, MerkleError> {
        indices.iter().map(|&index| self.hash(level, index)).collect()
    }

    /// The hashes of a node's two children.
    pub fn children(&self, level: u32, index: u32) -> Result<[u64; 2], MerkleError> {
        let below = level.saturating_add(1);
        let left = index.wrapping_mul(2);
        // Reports the node that was asked for, not one that overflowed.
        self.hash(level, index)?;
        Ok([self.hash(below, left)?, self.hash(below, left + 1)?])
    }

    /// All leaves in order, for an index snapshot.
    pub fn leaves(&self) -> &[u64] {
        &self.nodes[self.nodes.len() - self.bits.leaves()..]
    }

    /// Cuts the tree to fewer leaves.
    pub fn shrink(&mut self, bits: LeafBits) -> Result<(), MerkleError> {
        if bits > self.bits {
            return Err(MerkleError::Grows { from: self.bits.0, to: bits.0 });
        }
        // Levels down to the new leaves stay; the new leaves themselves may lie between two stored ones.
        let leaves: Vec<u64> = self
            .leaves()
            .chunks(1 << (self.bits.0 - bits.0))
            .map(|c| c.iter().fold(0, |x, y| x ^ y))
            .collect();
        let (start, _) = stored_levels(bits).last().expect("the leaves are stored");
        self.nodes.truncate(start);
        self.nodes.extend(leaves);
        self.nodes.shrink_to_fit();
        self.bits = bits;
        Ok(())
    }
}

/// The levels that are stored for so many leaves, from the root, each with the place where it starts.
#[inline]
fn stored_levels(bits: LeafBits) -> impl Iterator<Item = (usize, u32)> {
    let mut next = Some((0, 0));
    std::iter::from_fn(move || {
        let (start, level) = next?;
        next = (level < bits.0).then(|| (start + (1 << level), (level + LEVELS_PER_ROUND).min(bits.0)));
        Some((start, level))
    })
}

impl fmt::Debug for MerkleTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MerkleTree {{ leaves: {}, root: {:016x} }}", self.bits.leaves(), self.root())
    }
}

/// The hashes that one side of a comparison wants of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Level of the nodes, 0 for the root.
    pub level: u32,
    /// Their places in that level; 1 to [`HASHES_PER_ROUND_MAX`].
    pub indices: Vec<u32>,
}

/// The top-down comparison of two trees, seen from one side. [`ask`](Self::ask) → the peer's
/// [`MerkleTree::hashes`] → [`on_hashes`](Self::on_hashes), until there is nothing to ask.
#[derive(Debug, Clone)]
pub struct Descent {
    /// The leaf count at which the comparison ends: the smaller of the two trees'.
    bits: LeafBits,
    /// Nodes still to compare, by level. Deeper ones go first, so that the list stays short however many differ.
    pending: Vec<Vec<u32>>,
    differing: Vec<u32>,
    hashes: u64,
}

impl Descent {
    /// Begins to compare two trees of one partition with these leaf counts.
    pub fn new(mine: LeafBits, theirs: LeafBits) -> Descent {
        let bits = mine.min(theirs);
        let mut pending = vec![Vec::new(); bits.0 as usize + 1];
        pending[0].push(0);
        Descent { bits, pending, differing: Vec::new(), hashes: 0 }
    }

    /// What to ask the peer for next; `None` when the comparison is done. The same until hashes arrive.
    pub fn ask(&self) -> Option<Ask> {
        let (level, pending) =
            self.pending.iter().enumerate().rev().find(|(_, pending)| !pending.is_empty())?;
        let indices = pending[pending.len().saturating_sub(HASHES_PER_ROUND_MAX)..].to_vec();
        Some(Ask { level: u32::try_from(level).expect("at most LEAF_BITS_MAX"), indices })
    }

    /// Takes the peer's hashes, in the order asked for, and compares them with this side's tree.
    pub fn on_hashes(&mut self, mine: &MerkleTree, theirs: &[u64]) -> Result<(), MerkleError> {
        let asked = self.ask();
        let (level, indices) = asked.map_or((0, Vec::new()), |ask| (ask.level, ask.indices));
        if theirs.len() != indices.len() {
            return Err(MerkleError::HashCount { expected: indices.len(), found: theirs.len() });
        }
        let own = mine.hashes(level, &indices)?;
        let pending = &mut self.pending[level as usize];
        pending.truncate(pending.len() - indices.len());
        self.hashes += theirs.len() as u64;
        let below = (level + LEVELS_PER_ROUND).min(self.bits.0);
        for (index, (own, their)) in indices.into_iter().zip(own.into_iter().zip(theirs)) {
            if own == *their {
                continue;
            }
            if level == self.bits.0 {
                self.differing.push(index);
            } else {
                let wide = below - level;
                self.pending[below as usize].extend((index << wide)..((index + 1) << wide));
            }
        }
        Ok(())
    }

    /// The leaf count that [`finish`](Self::finish) numbers leaves by.
    pub fn bits(&self) -> LeafBits {
        self.bits
    }

    /// Hashes received so far.
    pub fn hashes(&self) -> u64 {
        self.hashes
    }

    /// The leaves found to differ, ascending, numbered by [`bits`](Self::bits).
    pub fn finish(mut self) -> Vec<u32> {
        self.differing.sort_unstable();
        self.differing
    }
}

/// Where two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The leaf count by which leaves are numbered: the smaller of the two trees'.
    pub bits: LeafBits,
    /// The leaves that differ, ascending.
    pub leaves: Vec<u32>,
    /// Hashes that went from one side to the other.
    pub hashes: u64,
    /// Questions that were asked.
    pub rounds: u32,
}

/// Compares two trees at hand, hash by hash as over the network.
pub fn diff(mine: &MerkleTree, theirs: &MerkleTree) -> Result<Difference, MerkleError> {
    let mut descent = Descent::new(mine.bits, theirs.bits);
    let mut rounds = 0;
    while let Some(ask) = descent.ask() {
        descent.on_hashes(mine, &theirs.hashes(ask.level, &ask.indices)?)?;
        rounds += 1;
    }
    let (bits, hashes) = (descent.bits, descent.hashes);
    Ok(Difference { bits, leaves: descent.finish(), hashes, rounds })
}

#[cfg(test)]
mod tests;
