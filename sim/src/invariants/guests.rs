//! (f) What is kept for another node goes only once that node has it on its disk for certain.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::dynamo::version::VersionVector;
use ringdove::storage::{Entry, Slot, Table};

use crate::holdings::Holdings;

#[allow(clippy::too_many_arguments)] // all that a disk's change is judged by
pub(super) fn judge(
    disks: &BTreeMap<String, Holdings>,
    destroyed: &BTreeSet<String>,
    has_let_go: impl Fn(&str) -> bool,
    host: &str,
    slot: &Slot,
    before: &Entry,
    now: Option<&Entry>,
    gone: Option<&VersionVector>,
) -> Vec<String> {
    let kept = |target| now.is_some_and(|now| now.targets.contains(target));
    let data = Slot { table: Table::Data, ..slot.clone() };
    let context = before.copy.record.context();
    let has = |target: &str| {
        let held =
            disks.get(target).and_then(|disk| disk.get(&data)).map(|entry| entry.copy.record.context());
        context.entries().all(|(actor, counter)| {
            // It had it, and let it go by a vote.
            held.is_some_and(|held| held.get(actor) >= counter)
                || gone.is_some_and(|gone| gone.get(actor) >= counter)
        })
    };
    let struck = before.targets.iter().filter(|target| !kept(target)).map(ToString::to_string);
    struck
        .filter(|target| !has_let_go(target))
        .filter(|target| !has(target) && !destroyed.contains(target) && !destroyed.contains(host))
        .map(|target| {
            format!(
                "{host} keeps {} ({:?}) no more for {target}, whose disk does not hold it: context {context:?}",
                slot.key, slot.table
            )
        })
        .collect()
}
