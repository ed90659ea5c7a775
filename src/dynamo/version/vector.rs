//! Dots and version vectors: one event, and a set of events without gaps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{ActorId, Incarnation};

/// The one event that made a value: the `counter`-th write of `actor`. Counters start at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who made it: one local copy of one record on one node.
    pub actor: ActorId,
    /// Its number among that actor's writes, from 1.
    pub counter: u64,
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({:?}, {})", self.actor, self.counter)
    }
}

/// For each actor the number up to which *all* its dots are included. Sorted by actor, counters at least 1,
/// so equal vectors are equal bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<(ActorId, u64)>", into = "Vec<(ActorId, u64)>")]
pub struct VersionVector(Vec<(ActorId, u64)>);

/// Entries that are not a version vector: out of order, named twice, or a counter of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version vector: entries must be sorted by actor, each once, with counters from 1")]
pub struct NotAVector;

impl TryFrom<Vec<(ActorId, u64)>> for VersionVector {
    type Error = NotAVector;
    fn try_from(entries: Vec<(ActorId, u64)>) -> Result<VersionVector, NotAVector> {
        let ordered = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let counted = entries.iter().all(|entry| entry.1 > 0);
        if ordered && counted { Ok(VersionVector(entries)) } else { Err(NotAVector) }
    }
}

impl From<VersionVector> for Vec<(ActorId, u64)> {
    fn from(vector: VersionVector) -> Self {
        vector.0
    }
}

impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|entry| (&entry.0, &entry.1))).finish()
    }
}

impl VersionVector {
    /// The vector that includes nothing.
    pub const fn new() -> VersionVector {
        VersionVector(Vec::new())
    }

    /// The number up to which the actor's dots are included; 0 for an actor it does not name.
    pub fn get(&self, actor: ActorId) -> u64 {
        match self.0.binary_search_by_key(&actor, |entry| entry.0) {
            Ok(at) => self.0[at].1,
            Err(_) => 0,
        }
    }

    /// Whether the dot is included.
    pub fn covers(&self, dot: Dot) -> bool {
        dot.counter <= self.get(dot.actor)
    }

    /// Whether everything that `other` includes is included here.
    pub fn includes(&self, other: &VersionVector) -> bool {
        let mut own = self.0.iter();
        other.0.iter().all(|(actor, counter)| {
            own.by_ref()
                .find(|entry| entry.0 >= *actor)
                .is_some_and(|entry| entry.0 == *actor && entry.1 >= *counter)
        })
    }

    /// Includes the dot **and all before it** of the same actor.
    pub fn include(&mut self, dot: Dot) {
        if dot.counter == 0 {
            return;
        }
        match self.0.binary_search_by_key(&dot.actor, |entry| entry.0) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(dot.counter),
            Err(at) => self.0.insert(at, (dot.actor, dot.counter)),
        }
    }

    /// The actor of the incarnation with the highest epoch that is named.
    pub fn latest_actor_of(&self, incarnation: Incarnation) -> Option<ActorId> {
        let end = self.0.partition_point(|entry| entry.0.incarnation <= incarnation);
        let actor = self.0[..end].last()?.0;
        (actor.incarnation == incarnation).then_some(actor)
    }

    /// How many actors the join with `other` names.
    pub fn joined_len(&self, other: &VersionVector) -> usize {
        self.0.len() + other.0.iter().filter(|entry| self.get(entry.0) == 0).count()
    }

    /// Includes all that `other` includes: the least vector above both.
    pub fn join(&mut self, other: &VersionVector) {
        if self.includes(other) {
            return; // the common case, without an allocation
        }
        let mut unread = self.0.len();
        let mut to = self.joined_len(other);
        self.0.reserve_exact(to - unread);
        self.0.resize(to, other.0[0]);
        // From the back: `to` never falls below `unread`, so no entry is overwritten before it is read.
        for &(actor, counter) in other.0.iter().rev() {
            while unread > 0 && self.0[unread - 1].0 > actor {
                (to, unread) = (to - 1, unread - 1);
                self.0[to] = self.0[unread];
            }
            to -= 1;
            self.0[to] = match unread.checked_sub(1).map(|last| self.0[last]) {
                Some((own, own_counter)) if own == actor => {
                    unread -= 1;
                    (actor, own_counter.max(counter))
                }
                _ => (actor, counter),
            };
        }
        assert_eq!(to, unread, "what is left stands where it belongs");
    }

    /// The entries in order of actor.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (ActorId, u64)> + '_ {
        self.0.iter().copied()
    }

    /// How many actors it names.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it includes nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<T: IntoIterator<Item = Dot>>(dots: T) -> VersionVector {
        let mut vector = VersionVector::new();
        for dot in dots {
            vector.include(dot);
        }
        vector
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn dot() -> impl Strategy<Value = Dot> {
        (0..3_u64, 0..3_u64, 0..5_u64).prop_map(|(incarnation, epoch, counter)| Dot {
            actor: ActorId { incarnation: Incarnation(incarnation), epoch },
            counter,
        })
    }

    /// A vector, and the set of dots that it stands for: each dot with all before it.
    fn both() -> impl Strategy<Value = (VersionVector, BTreeSet<Dot>)> {
        vec(dot(), 0..12).prop_map(|dots| {
            let set = dots
                .iter()
                .flat_map(|dot| (1..=dot.counter).map(|counter| Dot { actor: dot.actor, counter }))
                .collect();
            (dots.into_iter().collect(), set)
        })
    }

    proptest! {
        #[test]
        fn a_vector_is_a_set_of_dots_without_gaps(
            (left, left_set) in both(), (right, right_set) in both(), dot in dot(),
        ) {
            prop_assert_eq!(left.covers(dot), dot.counter == 0 || left_set.contains(&dot));
            let counted = left_set.iter().filter(|other| other.actor == dot.actor).count();
            prop_assert_eq!(left.get(dot.actor), counted as u64);
            prop_assert_eq!(left.includes(&right), left_set.is_superset(&right_set));
            prop_assert_eq!(left == right, left_set == right_set);
            prop_assert_eq!(left.is_empty(), left_set.is_empty());
            let actors = |set: &BTreeSet<Dot>| set.iter().map(|dot| dot.actor).collect::<BTreeSet<_>>();
            prop_assert_eq!(left.len(), actors(&left_set).len());

            let union: BTreeSet<Dot> = left_set.union(&right_set).copied().collect();
            let mut joined = left.clone();
            joined.join(&right);
            prop_assert_eq!(joined.len(), left.joined_len(&right));
            prop_assert_eq!(&joined, &union.iter().copied().collect());
            prop_assert!(VersionVector::try_from(Vec::from(joined)).is_ok(), "sorted, each once, from 1");

            let latest = actors(&left_set).into_iter().rfind(|actor| actor.incarnation == dot.actor.incarnation);
            prop_assert_eq!(left.latest_actor_of(dot.actor.incarnation), latest);
        }

        #[test]
        fn only_sorted_entries_with_counters_are_a_vector(dots in vec(dot(), 0..4)) {
            let entries: Vec<_> = dots.iter().map(|dot| (dot.actor, dot.counter)).collect();
            let sound = dots.is_sorted_by(|a, b| a.actor < b.actor) && dots.iter().all(|dot| dot.counter > 0);
            prop_assert_eq!(VersionVector::try_from(entries).is_ok(), sound);
        }
    }
}
