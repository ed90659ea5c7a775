//! (a) One dot names one write of one key, with one content, for ever: judged where a node makes it, and wherever it is found on
//! a disk. A dot that nobody ever made durable counts too: its maker may have shown it.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::dynamo::version::{Content, Dot, Record, Sibling};
use ringdove::storage::{Entry, Slot};
use ringdove::types::{Key, Namespace, NodeId, WriteId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Every dot that was made or seen on a disk, and what it names.
#[derive(Default)]
pub(super) struct Dots(BTreeMap<(Namespace, Key), BTreeMap<Dot, Named>>);

/// What a dot names.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Named {
    write_id: WriteId,
    /// Of everything else in the sibling.
    content: u64,
}

impl Named {
    fn of(sibling: &Sibling) -> Named {
        let value: (u64, &[u8]) = match &sibling.content {
            Content::Tombstone => (0, &[]),
            Content::Value(value) => (1, value),
        };
        let beside = (sibling.expires_at, sibling.written_at, &sibling.meta);
        let beside = xxh3_64_with_seed(format!("{beside:?}").as_bytes(), value.0);
        Named { write_id: sibling.write_id, content: xxh3_64_with_seed(value.1, beside) }
    }
}

impl Dots {
    /// A node makes a dot; what is wrong with that.
    pub(super) fn made(&mut self, node: NodeId, slot: &Slot, dot: Dot, record: &Record) -> Option<String> {
        let known = self.0.entry((slot.namespace, slot.key.clone())).or_default();
        let Some(sibling) = record.siblings().iter().find(|sibling| sibling.dot == dot) else {
            return Some(format!("{node} makes dot {dot:?} of {}, and its copy does not have it", slot.key));
        };
        let named = Named::of(sibling);
        let first = known.insert(dot, named)?;
        Some(format!(
            "{node} makes dot {dot:?} of {} for write {:032x}, and it was made before, for {:032x}",
            slot.key, named.write_id.0, first.write_id.0
        ))
    }

    /// Learns the dots of a record on a disk; says which it knew as another write's, or with another content.
    pub(super) fn learn(&mut self, host: &str, slot: &Slot, entry: &Entry) -> Option<String> {
        let known = self.0.entry((slot.namespace, slot.key.clone())).or_default();
        let mut wrong = None;
        for sibling in entry.copy.record.siblings() {
            let named = Named::of(sibling);
            let first = *known.entry(sibling.dot).or_insert(named);
            if first.write_id != named.write_id {
                wrong = Some(format!(
                    "{host} holds dot {:?} of {} as write {:032x}, and it was {:032x} before",
                    sibling.dot, slot.key, named.write_id.0, first.write_id.0
                ));
            } else if first != named {
                wrong = Some(format!(
                    "{host} holds dot {:?} of {} (write {:032x}) with another content than it had before",
                    sibling.dot, slot.key, named.write_id.0
                ));
            }
        }
        wrong
    }

    /// Every write that became a dot anywhere.
    pub(super) fn writes(&self) -> BTreeSet<WriteId> {
        self.0.values().flat_map(BTreeMap::values).map(|named| named.write_id).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ringdove::dynamo::version::{ActorMint, Caps, LocalCopy, Overwrite, Write};
    use ringdove::storage::Table;
    use ringdove::types::{Incarnation, PartitionId, Wall};

    use super::*;

    fn slot() -> Slot {
        Slot {
            table: Table::Data,
            partition: PartitionId(0),
            namespace: Namespace::default(),
            key: Key::new(b"k".to_vec()).unwrap(),
        }
    }

    fn copy(id: u128, value: &'static str) -> (LocalCopy, Dot) {
        let mut copy = LocalCopy::default();
        let mut mint = ActorMint::new(Incarnation(7));
        let write = Write {
            write_id: WriteId(id),
            content: Content::Value(Bytes::from_static(value.as_bytes())),
            meta: None,
            expires_at: None,
        };
        let done = copy.put(&mut mint, Overwrite::Nothing, write, Wall(5), &Caps::default()).unwrap();
        (copy, done.dot)
    }

    fn entry(copy: LocalCopy) -> Entry {
        Entry { copy, ..Entry::default() }
    }

    #[test]
    fn a_dot_is_made_once_also_where_no_disk_ever_had_it() {
        let (first, dot) = copy(1, "a");
        let mut dots = Dots::default();
        assert_eq!(dots.made(NodeId(1), &slot(), dot, &first.record), None);
        // The same node after a restart that forgot it, under another write or the same one.
        for id in [2, 1] {
            let (again, dot) = copy(id, "a");
            assert!(dots.made(NodeId(1), &slot(), dot, &again.record).unwrap().contains("made before"));
        }
    }

    #[test]
    fn one_dot_has_one_content_on_all_disks() {
        let (first, dot) = copy(1, "a");
        let mut dots = Dots::default();
        assert_eq!(dots.made(NodeId(1), &slot(), dot, &first.record), None);
        assert_eq!(dots.learn("n1", &slot(), &entry(first)), None);
        let other_bytes = dots.learn("n2", &slot(), &entry(copy(1, "b").0));
        assert!(other_bytes.unwrap().contains("another content"));
        assert!(dots.learn("n2", &slot(), &entry(copy(2, "a").0)).unwrap().contains("as write"));
        assert_eq!(dots.writes(), [WriteId(1)].into());
    }
}
