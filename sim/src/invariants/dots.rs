//! (a) One dot names one write of one key, for ever.

use std::collections::BTreeMap;

use ringdove::dynamo::version::Dot;
use ringdove::storage::{Entry, Slot};
use ringdove::types::{Key, Namespace, WriteId};

/// Every dot that was seen on a disk, and whose it is.
#[derive(Default)]
pub(super) struct Dots(BTreeMap<(Namespace, Key), BTreeMap<Dot, WriteId>>);

impl Dots {
    /// Learns the dots of a record; says which it knew as another write's.
    pub(super) fn learn(&mut self, host: &str, slot: &Slot, entry: &Entry) -> Option<String> {
        let id = (slot.namespace, slot.key.clone());
        let known = self.0.entry(id).or_default();
        let mut wrong = None;
        for sibling in entry.copy.record.siblings() {
            let first = *known.entry(sibling.dot).or_insert(sibling.write_id);
            if first != sibling.write_id {
                wrong = Some(format!(
                    "{host} holds dot {:?} of {} as write {:032x}, and it was {:032x} before",
                    sibling.dot, slot.key, sibling.write_id.0, first.0
                ));
            }
        }
        wrong
    }
}
