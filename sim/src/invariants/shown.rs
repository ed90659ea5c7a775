//! (e) What a node shows of its copy is on its disk for certain: a power loss a moment later takes back nothing that
//! somebody has built on. Judged where every write is `sync`: a write that asked for less may be shown before.

use std::collections::BTreeMap;

use ringdove::dynamo::version::{Record, VersionVector};
use ringdove::storage::{Entry, Slot, Table};
use ringdove::types::NodeId;

use crate::holdings::Holdings;

pub(super) fn judge(
    disks: &BTreeMap<String, Holdings>,
    node: NodeId,
    slot: &Slot,
    record: &Record,
    gone: Option<&VersionVector>,
) -> Option<String> {
    if record.is_empty() {
        return None;
    }
    // Since it was read it may have been taken away by a vote.
    let gone = |actor, counter| gone.is_some_and(|gone| gone.get(actor) >= counter);
    let seen = |entry: &Entry| {
        let context = entry.copy.record.context();
        record
            .context()
            .entries()
            .all(|(actor, counter)| context.get(actor) >= counter || gone(actor, counter))
    };
    let durable = disks.get(&node.to_string()).and_then(|disk| disk.get(slot));
    // Or handed over, between the look and the moment when the fence that goes with it was durable.
    let data = Slot { table: Table::Data, ..slot.clone() };
    let handed_over = || disks.values().filter_map(|disk| disk.get(&data)).any(seen);
    let holds = durable.is_some_and(seen)
        || record.context().entries().all(|(actor, counter)| gone(actor, counter))
        || (slot.table == Table::Guest && handed_over());
    (!holds).then(|| {
        let there = durable.map(|entry| entry.copy.record.context());
        format!(
            "{node} shows {} ({:?}) at {:?}, and its disk holds {there:?}",
            slot.key,
            slot.table,
            record.context()
        )
    })
}
