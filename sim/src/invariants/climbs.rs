//! (c) What a disk holds of a key only grows: each record has seen all that the one before it had. What every member has
//! voted to let go is excepted (`forgetting`).

use ringdove::storage::{Entry, Slot, Table};

pub(super) fn judge(host: &str, slot: &Slot, before: &Entry, now: Option<&Entry>) -> Option<String> {
    let before = &before.copy.record;
    let Some(now) = now.map(|now| &now.copy.record) else {
        // What becomes of guests, (f) asks.
        return (slot.table == Table::Data)
            .then(|| format!("{host} removed its copy of {} without a vote", slot.key));
    };
    if before == now {
        return None;
    }
    let mut joined = before.clone();
    joined.merge(now);
    (joined != *now).then(|| {
        format!(
            "{host} wrote a record of {} ({:?}) that forgets: context {:?} after {:?}",
            slot.key,
            slot.table,
            now.context(),
            before.context()
        )
    })
}

pub(super) fn removed(host: &str, slot: &Slot, entry: &Entry) -> String {
    format!(
        "{host} removed the segment with its only durable copy of {} ({:?}): context {:?}",
        slot.key,
        slot.table,
        entry.copy.record.context()
    )
}
