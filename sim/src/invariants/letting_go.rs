//! (f), of what a change of the layout takes from a node: a copy that it has as data goes only once each primary has it on its
//! disk for certain.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::dynamo::version::VersionVector;
use ringdove::storage::{Entry, Slot, Table};
use ringdove::types::{NodeId, PartitionId};

use crate::holdings::Holdings;

/// What nodes have said.
#[derive(Default)]
pub(super) struct LettingGo {
    /// By host and partition: whose it was when the host let it go.
    primaries: BTreeMap<(String, PartitionId), Vec<String>>,
    /// Guest records that are kept for others now, or as data.
    elsewhere: BTreeSet<(String, Slot)>,
}

impl LettingGo {
    pub(super) fn lets_go(&mut self, node: NodeId, partition: PartitionId, primaries: &[NodeId]) {
        let names = primaries.iter().map(ToString::to_string).collect();
        self.primaries.insert((node.to_string(), partition), names);
    }

    pub(super) fn gained(&mut self, node: NodeId, partition: PartitionId) {
        self.primaries.remove(&(node.to_string(), partition));
    }

    pub(super) fn goes_on_elsewhere(&mut self, node: NodeId, slot: &Slot) {
        self.elsewhere.insert((node.to_string(), slot.clone()));
    }

    /// Whether a host had a partition and let it go: others have what it had.
    pub(super) fn has_let_go(&self, host: &str, partition: PartitionId) -> bool {
        self.primaries.contains_key(&(host.to_owned(), partition))
    }

    /// Whether the targets of a guest record may go without having it.
    pub(super) fn has_other_keepers(&self, host: &str, slot: &Slot) -> bool {
        self.elsewhere.contains(&(host.to_owned(), slot.clone()))
    }

    /// What is wrong with the end of a copy; none when its partition was not let go.
    pub(super) fn judge(
        &self,
        disks: &BTreeMap<String, Holdings>,
        destroyed: &BTreeSet<String>,
        host: &str,
        slot: &Slot,
        before: &Entry,
        gone: Option<&VersionVector>,
    ) -> Option<Vec<String>> {
        if slot.table != Table::Data {
            return None;
        }
        let primaries = self.primaries.get(&(host.to_owned(), slot.partition))?;
        let context = before.copy.record.context();
        let lacks = |primary: &&String| {
            let held = disks.get(*primary).and_then(|disk| disk.get(slot));
            let held = held.map(|entry| entry.copy.record.context());
            let is_seen = |actor, counter| {
                held.is_some_and(|held| held.get(actor) >= counter)
                    || gone.is_some_and(|gone| gone.get(actor) >= counter)
            };
            !destroyed.contains(*primary)
                && !context.entries().all(|(actor, counter)| is_seen(actor, counter))
        };
        let told = |primary: &String| {
            format!(
                "{host} let {} ({}) go, which {primary} does not have: context {context:?}",
                slot.key, slot.partition
            )
        };
        Some(primaries.iter().filter(lacks).map(told).collect())
    }
}
