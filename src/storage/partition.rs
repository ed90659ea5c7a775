//! What is in memory of one partition: both indexes, the Merkle tree over its data, who is owed what, its state.
//!
//! A partition is one lock. Under it a record is gathered in the log *and* entered here, so whoever holds it sees
//! both or neither: a snapshot that reads the log's end before it takes the lock finds here everything before that
//! end, and the fence is read and raised in one order with the records.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::index::{Direction, Index, Place, Spot, split_key};
use super::{PartitionState, Slot, Table};
use crate::dynamo::merkle::{LeafBits, MerkleKey, MerkleTree};
use crate::dynamo::ring::{PartitionCount, key_hash};
use crate::types::{Key, Namespace, NodeId};

/// Leaf counts that lie this far apart are worth a rebuild.
const BITS_APART: u32 = 2;

/// What all partitions share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) partitions: PartitionCount,
    pub(super) merkle_key: MerkleKey,
}

pub(super) struct Partition {
    shape: Shape,
    pub(super) state: PartitionState,
    /// The record that has the state: position and length.
    pub(super) state_place: Option<(u64, usize)>,
    data: Index,
    guests: Index,
    tree: MerkleTree,
    /// The targets of every entry that has some, by table and index key.
    owed: BTreeMap<(Table, Arc<[u8]>), Vec<NodeId>>,
    /// The same by target. Keys are shared: a copy for each target would let a short record take much memory.
    owed_to: BTreeSet<(NodeId, Table, Arc<[u8]>)>,
    /// Of the same how many there are, and how many bytes they have on the disk.
    owed_sums: BTreeMap<NodeId, (u64, u64)>,
    /// Behind the newest removal: until it is synced, "there is nothing" may be taken back by a crash.
    pub(super) removed_until: u64,
    /// Entries of the data that may be reaped one day.
    reapable: usize,
}

impl Partition {
    pub(super) fn new(shape: Shape) -> Partition {
        Partition {
            shape,
            state: PartitionState::default(),
            state_place: None,
            data: Index::default(),
            guests: Index::default(),
            tree: MerkleTree::new(&shape.merkle_key, shape.partitions, LeafBits::default()),
            owed: BTreeMap::new(),
            owed_to: BTreeSet::new(),
            owed_sums: BTreeMap::new(),
            removed_until: 0,
            reapable: 0,
        }
    }

    /// Behind the record of the state.
    pub(super) fn state_end(&self) -> u64 {
        self.state_place.map_or(0, |(position, len)| position + len as u64)
    }

    /// How many entries of the data may be reaped one day.
    pub(super) fn reapable(&self) -> usize {
        self.reapable
    }

    /// Counts an entry that a snapshot put into an index.
    pub(super) fn loaded(&mut self, table: Table, reapable: bool) {
        self.reapable += usize::from(reapable && table == Table::Data);
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn index(&self, table: Table) -> &Index {
        match table {
            Table::Data => &self.data,
            Table::Guest => &self.guests,
        }
    }

    pub(super) fn index_mut(&mut self, table: Table) -> &mut Index {
        match table {
            Table::Data => &mut self.data,
            Table::Guest => &mut self.guests,
        }
    }

    pub(super) fn tree(&self) -> &MerkleTree {
        &self.tree
    }

    /// Takes over the leaves of a snapshot.
    pub(super) fn set_tree(&mut self, tree: MerkleTree) {
        self.tree = tree;
    }

    /// Enters where an entry now stands; the place it had. `id` is the index key of the slot, `standing` what
    /// the index has of it, if that is known already.
    pub(super) fn set(
        &mut self,
        slot: &Slot,
        id: &[u8],
        standing: Option<(Spot, Place)>,
        place: Place,
        targets: &[NodeId],
    ) -> Option<Place> {
        let index = self.index_mut(slot.table);
        let old = match standing {
            Some((spot, old)) => {
                index.replace(spot, place);
                Some(old)
            }
            None => index.insert(id, place),
        };
        if slot.table == Table::Data {
            self.reapable += usize::from(place.is_reapable());
            self.reapable -= usize::from(old.is_some_and(Place::is_reapable));
            self.enter_leaf(slot, old.map(|old| old.hash), Some(place.hash));
        }
        self.set_targets(slot.table, id, targets, old.map_or(0, Place::len), place.len());
        old
    }

    /// Enters that there is no entry any more; the place it had.
    pub(super) fn unset(&mut self, slot: &Slot, id: &[u8]) -> Option<Place> {
        let old = self.index_mut(slot.table).remove(id)?;
        if slot.table == Table::Data {
            self.reapable -= usize::from(old.is_reapable());
            self.enter_leaf(slot, Some(old.hash), None);
        }
        self.set_targets(slot.table, id, &[], old.len(), 0);
        Some(old)
    }

    fn enter_leaf(&mut self, slot: &Slot, old: Option<u64>, new: Option<u64>) {
        let hash = key_hash(slot.namespace, &slot.key);
        self.tree.update(slot.namespace, &slot.key, hash, old, new);
        self.resize();
    }

    /// Enters whom an entry is kept for, which had `was` bytes on the disk and has `is` now.
    fn set_targets(&mut self, table: Table, id: &[u8], targets: &[NodeId], was: usize, is: usize) {
        if targets.is_empty() && self.owed.is_empty() {
            return;
        }
        let id: Arc<[u8]> = Arc::from(id);
        // Taken out first: what is put in must hold this one copy of the key.
        for target in self.owed.remove(&(table, id.clone())).into_iter().flatten() {
            if self.owed_to.remove(&(target, table, id.clone()))
                && let Some((count, bytes)) = self.owed_sums.get_mut(&target)
            {
                *count -= 1;
                *bytes = bytes.saturating_sub(was as u64);
                if *count == 0 {
                    self.owed_sums.remove(&target);
                }
            }
        }
        for target in targets {
            if self.owed_to.insert((*target, table, id.clone())) {
                let (count, bytes) = self.owed_sums.entry(*target).or_default();
                *count += 1;
                *bytes += is as u64;
            }
        }
        if !targets.is_empty() {
            self.owed.insert((table, id), targets.to_vec());
        }
    }

    /// Enters whom an entry is kept for that a snapshot put into an index.
    pub(super) fn load_targets(&mut self, table: Table, id: &[u8], targets: &[NodeId]) {
        let len = self.index(table).get(id).map_or(0, |place| place.len());
        self.set_targets(table, id, targets, len, len);
    }

    /// All targets there are, for a snapshot.
    pub(super) fn owed(&self) -> impl Iterator<Item = (Table, &[u8], &[NodeId])> {
        self.owed.iter().map(|((table, id), targets)| (*table, &**id, &**targets))
    }

    /// Whom an entry is kept for.
    pub(super) fn targets_of(&self, table: Table, id: &[u8]) -> &[NodeId] {
        self.owed.get(&(table, Arc::from(id))).map_or(&[], |targets| targets)
    }

    /// The nodes that are owed something.
    pub(super) fn targets(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.owed_sums.keys().copied()
    }

    /// How many entries are owed to a node, and how many bytes they have on the disk.
    pub(super) fn owed_size(&self, node: NodeId) -> (u64, u64) {
        self.owed_sums.get(&node).copied().unwrap_or_default()
    }

    /// Entries owed to a node, in order from behind `after`.
    pub(super) fn owed_to(
        &self,
        node: NodeId,
        after: Option<(Table, &[u8])>,
        limit: usize,
    ) -> Vec<(Table, Namespace, Key)> {
        let from = match after {
            Some((table, id)) => Bound::Excluded((node, table, Arc::from(id))),
            None => Bound::Included((node, Table::Data, Arc::default())),
        };
        let range = self.owed_to.range((from, Bound::Unbounded)).take_while(|(owed, ..)| *owed == node);
        let keys = range.filter_map(|(_, table, id)| {
            let (namespace, key) = split_key(id)?;
            Some((*table, namespace, key))
        });
        keys.take(limit).collect()
    }

    /// Keeps the leaf count near what the number of keys asks for.
    fn resize(&mut self) {
        let wanted = LeafBits::for_keys(self.data.len() as u64);
        let has = self.tree.bits();
        if wanted.get() >= has.get() + BITS_APART {
            self.rebuild(wanted);
        } else if wanted.get() + BITS_APART <= has.get() {
            self.tree.shrink(wanted).expect("to fewer leaves");
        }
    }

    /// Makes the tree anew from the index.
    fn rebuild(&mut self, bits: LeafBits) {
        let mut tree = MerkleTree::new(&self.shape.merkle_key, self.shape.partitions, bits);
        self.data.scan(Bound::Unbounded, Direction::Ascending, |id, place| {
            if let Some((namespace, key)) = split_key(id) {
                tree.update(namespace, &key, key_hash(namespace, &key), None, Some(place.hash));
            }
            true
        });
        self.tree = tree;
    }
}
