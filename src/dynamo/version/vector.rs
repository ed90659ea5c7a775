//! Dots and version vectors: one event, and a set of events without gaps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::ActorId;

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

    /// Includes all that `other` includes: the least vector above both.
    pub fn join(&mut self, other: &VersionVector) {
        if other.0.is_empty() {
            return;
        }
        let mut joined = Vec::with_capacity(self.0.len().max(other.0.len()));
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            match (left.peek(), right.peek()) {
                (Some(&&a), Some(&&b)) => match a.0.cmp(&b.0) {
                    std::cmp::Ordering::Less => {
                        joined.push(a);
                        left.next();
                    }
                    std::cmp::Ordering::Greater => {
                        joined.push(b);
                        right.next();
                    }
                    std::cmp::Ordering::Equal => {
                        joined.push((a.0, a.1.max(b.1)));
                        left.next();
                        right.next();
                    }
                },
                (Some(_), None) => {
                    joined.extend(left);
                    break;
                }
                (None, _) => {
                    joined.extend(right);
                    break;
                }
            }
        }
        self.0 = joined;
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
