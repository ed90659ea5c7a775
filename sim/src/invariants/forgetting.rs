//! (g) What a vote lets go is gone everywhere: at the moment when a primary takes something away, no disk holds anything
//! that could bring it back.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::dynamo::version::{Dot, Record, VersionVector};
use ringdove::storage::{Entry, Slot, Table};
use ringdove::types::{Key, Namespace, NodeId, PartitionId};

use crate::holdings::Holdings;

/// What may be forgotten, and by whom.
#[derive(Default)]
pub(super) struct Forgetting {
    /// Host, slot, and the version hashes before and after.
    steps: BTreeSet<(String, Slot, u64, u64)>,
    /// By key: what contexts may have lost.
    gone: BTreeMap<(Namespace, Key), VersionVector>,
    /// Partitions whose copies a host has given up.
    given_up: BTreeSet<(String, PartitionId)>,
}

impl Forgetting {
    /// A primary takes something away; what is wrong with that.
    pub(super) fn reaped(
        &mut self,
        disks: &BTreeMap<String, Holdings>,
        excused: &BTreeSet<String>,
        (node, slot): (NodeId, &Slot),
        before: &Record,
        after: &Record,
    ) -> Vec<String> {
        let step = (node.to_string(), slot.clone(), before.version_hash(), after.version_hash());
        self.steps.insert(step);
        let gone = self.gone.entry((slot.namespace, slot.key.clone())).or_default();
        for (actor, counter) in before.context().entries() {
            if after.context().get(actor) < counter {
                gone.include(Dot { actor, counter });
            }
        }
        let mut wrong = Vec::new();
        for (host, disk) in disks.iter().filter(|(host, _)| !excused.contains(*host)) {
            for table in [Table::Data, Table::Guest] {
                let slot = Slot { table, ..slot.clone() };
                let siblings = disk.get(&slot).map_or(&[][..], |entry| entry.copy.record.siblings());
                let old = |dot: Dot| {
                    before.context().covers(dot) && !before.siblings().iter().any(|kept| kept.dot == dot)
                };
                for sibling in siblings.iter().filter(|sibling| old(sibling.dot)) {
                    wrong.push(format!(
                        "{node} takes away of {} what covers {:?}, which {host} still holds ({table:?})",
                        slot.key, sibling.dot
                    ));
                }
            }
        }
        wrong
    }

    pub(super) fn gave_up(&mut self, node: NodeId, partition: PartitionId) {
        self.given_up.insert((node.to_string(), partition));
    }

    /// Whether a disk may go from one record to another that has seen less, or to none.
    pub(super) fn allows(&self, host: &str, slot: &Slot, before: &Entry, now: Option<&Entry>) -> bool {
        let none = Record::new();
        let now = now.map_or(&none, |now| &now.copy.record);
        let (before, now) = (before.copy.record.version_hash(), now.version_hash());
        self.steps.contains(&(host.to_owned(), slot.clone(), before, now))
            || self.given_up.contains(&(host.to_owned(), slot.partition))
    }

    /// Whether contexts may have lost a dot of a key.
    pub(super) fn may_be_gone(&self, namespace: Namespace, key: &Key, dot: Dot) -> bool {
        self.gone.get(&(namespace, key.clone())).is_some_and(|gone| gone.covers(dot))
    }

    /// What contexts of a key may have lost.
    pub(super) fn gone(&self, namespace: Namespace, key: &Key) -> Option<&VersionVector> {
        self.gone.get(&(namespace, key.clone()))
    }
}
