//! Durability: an acknowledged write is in the final state, or a write of its future is.
//!
//! Definition. `past(w)` is what w's writer had read (`after`), and their pasts. A write may be missing from the
//! final state of its key only if some write that is there has it in its past.
//!
//! Precondition: the final state was read after all faults had ended, from all replicas. Deletions are writes
//! like any other: the caller lists them among the final ids when a read shows their tombstones.
//!
//! Cost: linear in the writes and the edges of `after`.

use std::collections::{BTreeMap, BTreeSet};

use crate::Verdict;

/// One write of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write<K, I> {
    /// The key.
    pub key: K,
    /// Unique in the history.
    pub id: I,
    /// Whether the store said that it is done.
    pub acknowledged: bool,
    /// The ids that its writer had read with the context that it passed.
    pub after: Vec<I>,
}

/// Judges each acknowledged write against the ids that the final read of its key returned.
pub fn check<K, I>(writes: &[Write<K, I>], finals: &BTreeMap<K, BTreeSet<I>>) -> Verdict
where
    K: Ord + std::fmt::Debug,
    I: Ord + Copy + std::fmt::Debug,
{
    let by_id: BTreeMap<I, &Write<K, I>> = writes.iter().map(|write| (write.id, write)).collect();
    let mut reached: BTreeSet<I> = finals.values().flatten().copied().collect();
    let mut todo: Vec<I> = reached.iter().copied().collect();
    while let Some(id) = todo.pop() {
        for past in by_id.get(&id).map_or(&[][..], |write| &write.after) {
            if reached.insert(*past) {
                todo.push(*past);
            }
        }
    }
    let mut judged = 0;
    for write in writes.iter().filter(|write| write.acknowledged) {
        judged += 1;
        if !reached.contains(&write.id) {
            let witness = format!(
                "{:?} of key {:?} was acknowledged and is not in the final read; no write that saw it is",
                write.id, write.key
            );
            return Verdict::Invalid { judged, witness };
        }
    }
    if judged == 0 { Verdict::Unknown } else { Verdict::Valid { judged } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(id: u32, acknowledged: bool, after: &[u32]) -> Write<&'static str, u32> {
        Write { key: "k", id, acknowledged, after: after.to_vec() }
    }

    fn finals(ids: &[u32]) -> BTreeMap<&'static str, BTreeSet<u32>> {
        BTreeMap::from([("k", ids.iter().copied().collect())])
    }

    #[test]
    fn a_write_that_is_there_or_was_overwritten_by_one_that_is_is_durable() {
        let writes = [write(1, true, &[]), write(2, true, &[1]), write(3, true, &[2]), write(4, true, &[])];
        assert_eq!(check(&writes, &finals(&[3, 4])), Verdict::Valid { judged: 4 });
    }

    #[test]
    fn a_write_that_only_a_lost_write_had_seen_is_lost() {
        let writes = [write(1, true, &[]), write(2, false, &[1]), write(3, true, &[])];
        assert!(matches!(check(&writes, &finals(&[3])), Verdict::Invalid { .. }));
        assert_eq!(check(&writes, &finals(&[2, 3])), Verdict::Valid { judged: 2 });
    }

    #[test]
    fn an_unacknowledged_write_may_be_missing_and_nothing_judged_is_unknown() {
        assert_eq!(check(&[write(1, false, &[])], &finals(&[])), Verdict::Unknown);
    }
}
