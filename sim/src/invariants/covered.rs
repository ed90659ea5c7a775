//! (d) Whatever was acknowledged as `sync` is held for certain by some disk, or a successor of it is, at every moment. The
//! fault plan destroys no disk; where one does, it must say so here first.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::dynamo::version::{Dot, VersionVector};
use ringdove::storage::Slot;
use ringdove::types::WriteId;

use super::acks::holders;
use crate::holdings::Holdings;

/// What was acknowledged, by the slots that may hold it: for each actor the last dot, which stands for those before.
#[derive(Default)]
pub(super) struct Covered {
    acked: BTreeMap<Vec<Slot>, VersionVector>,
    told: BTreeSet<(Vec<Slot>, Dot)>,
}

impl Covered {
    pub(super) fn acked(&mut self, slots: [Option<Slot>; 2], _: WriteId, dot: Dot) {
        self.acked.entry(slots.into_iter().flatten().collect()).or_default().include(dot);
    }

    /// Of a key this much need not be held any more.
    pub(super) fn forgotten(&mut self, slot: &Slot, gone: &VersionVector) {
        for (slots, acked) in &mut self.acked {
            if slots.iter().any(|known| (known.namespace, &known.key) == (slot.namespace, &slot.key)) {
                let kept = acked.entries().filter(|(actor, counter)| gone.get(*actor) < *counter);
                *acked = kept.map(|(actor, counter)| Dot { actor, counter }).collect();
            }
        }
    }

    /// What fewer than `w` disks hold, in words.
    pub(super) fn on_fewer_than(&self, disks: &BTreeMap<String, Holdings>, w: usize) -> Vec<String> {
        let mut thin = Vec::new();
        for (slots, acked) in &self.acked {
            let slots: Vec<Option<Slot>> = slots.iter().cloned().map(Some).collect();
            for (actor, counter) in acked.entries() {
                let dot = Dot { actor, counter };
                let on = holders(disks, &slots, dot);
                if on.len() < w {
                    let key =
                        slots.iter().flatten().next().map(|slot| slot.key.to_string()).unwrap_or_default();
                    thin.push(format!(
                        "the write {dot:?} of {key} is on {} disks alone: {}",
                        on.len(),
                        on.join(", ")
                    ));
                }
            }
        }
        thin
    }

    /// What no disk holds, in words; each once.
    pub(super) fn missing(&mut self, disks: &BTreeMap<String, Holdings>) -> Vec<String> {
        let mut missing = Vec::new();
        for (slots, acked) in &self.acked {
            let held: Vec<&VersionVector> = disks
                .values()
                .flat_map(|disk| slots.iter().filter_map(|slot| disk.get(slot)))
                .map(|entry| entry.copy.record.context())
                .collect();
            for (actor, counter) in acked.entries() {
                let dot = Dot { actor, counter };
                if !held.iter().any(|context| context.covers(dot)) && self.told.insert((slots.clone(), dot)) {
                    let key = slots.first().map(|slot| slot.key.to_string()).unwrap_or_default();
                    missing.push(format!("no disk holds the acknowledged write {dot:?} of {key} any more"));
                }
            }
        }
        missing
    }
}
