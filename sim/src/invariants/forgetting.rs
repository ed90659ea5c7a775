//! (h) What a vote lets go is gone everywhere: at the moment when a primary takes something away, no disk holds anything
//! that could bring it back.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::dynamo::version::{Dot, Record, VersionVector};
use ringdove::storage::{Entry, Slot, Table};
use ringdove::types::{Key, Namespace, NodeId, PartitionId};

use crate::holdings::Holdings;

/// What a record had seen before something was taken away, and the siblings that were left.
type Step = (VersionVector, BTreeSet<Dot>);

/// What may be forgotten, and by whom.
#[derive(Default)]
pub(super) struct Forgetting {
    /// By host and slot.
    steps: BTreeMap<(String, Slot), Vec<Step>>,
    /// By key: what contexts may have lost.
    gone: BTreeMap<(Namespace, Key), VersionVector>,
    /// Partitions whose copies a host has given up at some time.
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
        let kept = after.siblings().iter().map(|sibling| sibling.dot).collect();
        let steps = self.steps.entry((node.to_string(), slot.clone())).or_default();
        steps.push((before.context().clone(), kept));
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

    /// Whether a host has given copies of a partition up.
    pub(super) fn has_given_up(&self, host: &str, partition: PartitionId) -> bool {
        self.given_up.contains(&(host.to_owned(), partition))
    }

    /// Whether a disk may go, by one sync, from one record to another that has seen less, or to none: all that it has lost
    /// was taken away here by a vote, and nothing has come back.
    pub(super) fn allows(&self, host: &str, slot: &Slot, before: &Entry, now: Option<&Entry>) -> bool {
        if self.has_given_up(host, slot.partition) {
            return true;
        }
        let Some(steps) = self.steps.get(&(host.to_owned(), slot.clone())) else { return false };
        let none = Record::new();
        let (before, now) = (&before.copy.record, now.map_or(&none, |now| &now.copy.record));
        let stands = |record: &Record, dot: Dot| record.siblings().iter().any(|sibling| sibling.dot == dot);
        let entries = before.context().entries().all(|(actor, counter)| {
            now.context().get(actor) >= counter || steps.iter().any(|(seen, _)| seen.get(actor) >= counter)
        });
        let lost = before.siblings().iter().map(|sibling| sibling.dot).filter(|dot| !stands(now, *dot));
        let siblings = lost.into_iter().all(|dot| {
            now.context().covers(dot)
                || steps.iter().any(|(seen, kept)| seen.covers(dot) && !kept.contains(&dot))
        });
        let back = now.siblings().iter().map(|sibling| sibling.dot);
        let back = back.filter(|dot| before.context().covers(*dot) && !stands(before, *dot));
        entries && siblings && back.count() == 0
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
