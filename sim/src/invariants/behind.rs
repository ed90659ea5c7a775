//! Who may have missed votes, of which partitions: after a disk was destroyed, and while and after a node is no member.
//!
//! ```text
//!   destroyed ──────────────────────────────▶ refilled: up to date
//!   removed ──▶ seen to be no member ──▶ seen to be one again ──▶ refilled: up to date
//! ```
//! A refill before the layout has changed says nothing: it is of the member that the node still was. Nor does one before the
//! power loss that shows what a destroyed disk lacks.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::types::PartitionId;

/// What a refill must wait for to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Nothing,
    ToBeAbsent,
    ToBeMember,
}

/// By host.
#[derive(Default)]
pub(super) struct Behind(BTreeMap<String, (Waits, BTreeSet<PartitionId>)>);

impl Behind {
    /// What its disk holds is another than its node knows.
    pub(super) fn harmed(&mut self, host: &str) {
        let (_, refilled) =
            self.0.entry(host.to_owned()).or_insert_with(|| (Waits::Nothing, BTreeSet::new()));
        refilled.clear();
    }

    /// It is about to be added, or removed.
    pub(super) fn moves(&mut self, host: &str, add: bool) {
        let waits = if add { Waits::ToBeMember } else { Waits::ToBeAbsent };
        self.0.insert(host.to_owned(), (waits, BTreeSet::new()));
    }

    /// Who is a member by the newest layout.
    pub(super) fn members(&mut self, is_member: impl Fn(&str) -> bool) {
        for (host, (waits, refilled)) in &mut self.0 {
            *waits = match (*waits, is_member(host)) {
                (Waits::ToBeAbsent, false) => Waits::ToBeMember,
                (Waits::ToBeMember, true) => {
                    refilled.clear();
                    Waits::Nothing
                }
                (waits, _) => waits,
            };
        }
    }

    /// A partition was compared with every other primary.
    pub(super) fn refilled(&mut self, host: &str, partition: PartitionId) {
        if let Some((Waits::Nothing, refilled)) = self.0.get_mut(host) {
            refilled.insert(partition);
        }
    }

    /// Whether it may lack, of this partition, what the others have agreed to forget.
    pub(super) fn may_have_missed(&self, host: &str, partition: PartitionId) -> bool {
        self.0.get(host).is_some_and(|(_, refilled)| !refilled.contains(&partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(3);

    #[test]
    fn a_destroyed_disk_is_behind_until_its_partition_has_refilled() {
        let mut behind = Behind::default();
        assert!(!behind.may_have_missed("n1", P));
        behind.harmed("n1");
        assert!(behind.may_have_missed("n1", P));
        behind.refilled("n1", PartitionId(4));
        assert!(behind.may_have_missed("n1", P));
        behind.refilled("n1", P);
        assert!(!behind.may_have_missed("n1", P));
        // The power loss that shows what a lying sync has not left.
        behind.harmed("n1");
        assert!(behind.may_have_missed("n1", P));
    }

    #[test]
    fn a_removed_member_is_behind_until_it_has_refilled_as_a_member_again() {
        let mut behind = Behind::default();
        behind.moves("n1", false);
        behind.refilled("n1", P);
        assert!(behind.may_have_missed("n1", P), "as the member that it still was");
        behind.members(|_| true);
        behind.members(|_| false);
        behind.moves("n1", true);
        behind.members(|_| false);
        behind.refilled("n1", P);
        assert!(behind.may_have_missed("n1", P));
        behind.members(|_| true);
        assert!(behind.may_have_missed("n1", P));
        behind.refilled("n1", P);
        assert!(!behind.may_have_missed("n1", P));
    }
}
