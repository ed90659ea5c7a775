//! (c) What a disk holds of a key only grows: each record has seen all that the one before it had.

use ringdove::storage::{Entry, Slot};

pub(super) fn judge(host: &str, slot: &Slot, before: &Entry, now: &Entry) -> Option<String> {
    let (before, now) = (&before.copy.record, &now.copy.record);
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
