//! (e) What a node shows of its copy is on its disk for certain: a power loss a moment later takes back nothing that
//! somebody has built on. Judged where every write is `sync`: a write that asked for less may be shown before.

use std::collections::BTreeMap;

use ringdove::dynamo::version::{Record, VersionVector};
use ringdove::storage::Slot;
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
    let durable = disks.get(&node.to_string()).and_then(|disk| disk.get(slot));
    let holds = durable.is_some_and(|entry| {
        let context = entry.copy.record.context();
        record.context().entries().all(|(actor, counter)| {
            // Since it was read it may have been taken away by a vote.
            context.get(actor) >= counter || gone.is_some_and(|gone| gone.get(actor) >= counter)
        })
    });
    let forgotten = || {
        record.context().entries().all(|(actor, counter)| gone.is_some_and(|gone| gone.get(actor) >= counter))
    };
    let holds = holds || forgotten();
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
