//! (b) When a `sync` write is acknowledged, W distinct disks hold it for certain, or something that has seen it.

use std::collections::BTreeMap;

use ringdove::dynamo::version::Dot;
use ringdove::storage::Slot;
use ringdove::types::{Key, NodeId, WriteId};

use crate::holdings::Holdings;

/// The disks that hold the dot, or its future, in one of the slots.
pub(super) fn holders<'a>(
    disks: &'a BTreeMap<String, Holdings>,
    slots: &[Option<Slot>],
    dot: Dot,
) -> Vec<&'a str> {
    let holds = |disk: &Holdings| {
        let mut entries = slots.iter().flatten().filter_map(|slot| disk.get(slot));
        entries.any(|entry| entry.copy.record.context().covers(dot))
    };
    disks.iter().filter(|(_, disk)| holds(disk)).map(|(host, _)| host.as_str()).collect()
}

pub(super) fn say(
    coordinator: NodeId,
    key: &Key,
    write_id: WriteId,
    dot: Dot,
    w: usize,
    on: &[&str],
) -> String {
    format!(
        "{coordinator} acknowledged {:032x} of {key} (dot {dot:?}) with w={w}, and only {} disks hold it: {}",
        write_id.0,
        on.len(),
        on.join(", ")
    )
}
