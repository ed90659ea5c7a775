//! Forgetting what was deleted: fences, and the vote by which all members agree (DESIGN §7).
//!
//! A tombstone may go once nobody is left who could bring back what it deleted. "All primaries hold it" is not enough: a
//! message an hour old, a guest on a node that was away, a backup that is restored each hold the value and not the
//! tombstone. So every member numbers each partition's rounds, and whatever a record is sent with is refused once the
//! receiver has voted in a later round than the sender had when it read it:
//!
//! ```text
//!   leader (a primary)        every member, itself among them
//!   Vote {fence e, keys} ──▶  raise the fence to e, durably; no to all if it was ≥ e already
//!                             primary: yes if it holds exactly this version, durably, and the grace has passed
//!                             other:   yes if it holds no copy in any form
//!   all yes:  Commit {e} ──▶  where it is still exactly this version, take it away; committed = e
//! ```
//!
//! - A record on the wire carries the sender's [`Fences`] as they were when the record was read, under the same lock. A
//!   receiver refuses what comes with a lower fence than its own. The sender raises its fence, *reads again* and sends what
//!   it holds then: if it had voted for the round, it does not hold the old value any more, and if it had not, its vote is no,
//!   because its fence is there already.
//! - Whose fence is below what another has committed did not take part in that vote with the disk it has now: the disk was
//!   restored, copied or is new. Its copy may be older than what was forgotten, and is treated as lost ([`Admission::CatchUp`]).
//! - Nothing rests on clocks, connections or deadlines. The grace only spares the work of votes that would fail.
//!
//! The bad orders, each of which lost a deletion in a random search without the rule behind it (`tests/reaping_model`)
//! - *The late message*: a replica takes a value sent before the vote, after it has removed the tombstone. Its fence is higher.
//! - *The guest*: a fallback keeps the value, is away during a vote of the primaries alone, and hands it over. Every **member**
//!   votes; one that is away delays reaping.
//! - *Raised twice*: a node is refused, raises its fence, sends the value again, then votes for the same round with a clean
//!   store, because the value has been handed over. It says no: its fence was at e before the vote.
//! - *The backup*: its fence is below what was committed; its copy is given up before it is sent or read.
//!
//! Under the same vote contexts are cut to the dots of the siblings: they grow by one actor for each start and each node that
//! coordinates, and what they cover is dead everywhere once everybody holds this version.
//!
//! Absent: who leads a round (any primary may; two at once refuse each other), and the removal itself (`node::reaping`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::version::{Content, Dot, Record, Sibling};
use crate::types::{NodeId, Wall};

/// How far a node is in a partition's rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fences {
    /// It takes no record that comes with a lower one.
    pub raised: u64,
    /// The newest round that it knows to have removed what it agreed on. Every member's fence was at least this.
    pub committed: u64,
}

/// What to do with a record that comes with another node's fences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Merge it.
    Take,
    /// Refuse it and name the own fences: it was read before a round that this node has voted in.
    Refuse,
    /// Give up the own copy of the partition first: a round was committed that this disk knows nothing of.
    CatchUp,
}

impl Fences {
    /// What a node that stands here does with a record that comes with `theirs`.
    pub fn admit(self, theirs: Fences) -> Admission {
        if self.raised < theirs.committed {
            Admission::CatchUp
        } else if theirs.raised < self.raised {
            Admission::Refuse
        } else {
            Admission::Take
        }
    }

    /// The higher of each of the two. They are not compared as a pair: of {6, 0} and {5, 5} neither may be lost.
    #[must_use]
    pub fn join(self, other: Fences) -> Fences {
        Fences { raised: self.raised.max(other.raised), committed: self.committed.max(other.committed) }
    }
}

/// The fences of copies that a read puts together. A round cuts contexts: a copy from before it may hold what was overwritten, and one
/// from behind it no longer say so. Who agreed to it had raised its fence before, so of two copies of which one is from behind a round
/// and one is not, that one comes with a lower *raised* than the round, and this one with a *committed* of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joint {
    /// The lowest *raised* of all copies, and of those of nodes without a vote.
    lowest: u64,
    voteless: u64,
    highest: u64,
    committed: u64,
}

impl Default for Joint {
    fn default() -> Joint {
        Joint { lowest: u64::MAX, voteless: u64::MAX, highest: 0, committed: 0 }
    }
}

impl Joint {
    /// A copy joins that was read under these fences, of a node whose vote rounds need or do not.
    pub fn join(&mut self, fences: Fences, has_vote: bool) {
        self.hear(fences);
        self.lowest = self.lowest.min(fences.raised);
        if !has_vote {
            self.voteless = self.voteless.min(fences.raised);
        }
    }

    /// Some node is there, whether or not a copy of it joins: what it does not hold, a round may have taken away.
    pub fn hear(&mut self, fences: Fences) {
        self.highest = self.highest.max(fences.raised);
        self.committed = self.committed.max(fences.committed);
    }

    /// Whether the copies may stand beside each other. Who has no vote is asked by no round, so for its copies any fence that
    /// others have raised may be of one that is done.
    pub fn is_sound(self) -> bool {
        self.lowest >= self.committed && self.voteless >= self.highest
    }

    /// What the copies come with, together.
    pub fn fences(self) -> Fences {
        Fences { raised: self.lowest, committed: self.committed }
    }
}

/// What a round may take away from a record: siblings, by their dots, and what its context names beyond the others.
/// None when there is nothing, or the grace has not passed. `now` is the judging node's wall clock.
pub fn reapable(record: &Record, now: Wall, grace: Duration) -> Option<Vec<Dot>> {
    let drop: Vec<Dot> =
        record.siblings().iter().filter(|sibling| has_passed(sibling, now, grace)).map(|s| s.dot).collect();
    let old = |sibling: &Sibling| sibling.written_at.plus(grace) <= now;
    let cut =
        || record.siblings().iter().all(old) && record.reaped(&[]).context().len() < record.context().len();
    (!drop.is_empty() || cut()).then_some(drop)
}

/// Whether a sibling was deleted or has expired longer than the grace ago.
fn has_passed(sibling: &Sibling, now: Wall, grace: Duration) -> bool {
    let since = match (&sibling.content, sibling.expires_at) {
        (Content::Tombstone, _) => sibling.written_at,
        (Content::Value(_), Some(expires_at)) => expires_at,
        (Content::Value(_), None) => return false,
    };
    since.plus(grace) <= now
}

/// How a member votes on one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeyVote {
    /// It holds exactly this version as a primary, or nothing at all as another member.
    Yes,
    /// It is a primary and holds another version, or none.
    Differs,
    /// It keeps a guest record of the key.
    Guest,
    /// By its clock the grace has not passed.
    TooSoon,
    /// It cannot read its copy.
    Unreadable,
}

/// A primary's vote on what it holds of a key, when asked to let go `drop` of exactly the version `version_hash`.
pub fn vote(held: &Record, version_hash: u64, drop: &[Dot], now: Wall, grace: Duration) -> KeyVote {
    if held.is_empty() || held.version_hash() != version_hash {
        return KeyVote::Differs;
    }
    // What is dropped must be what this node too would drop: the leader's clock may be wrong.
    match reapable(held, now, grace) {
        Some(own) if drop.iter().all(|dot| own.contains(dot)) => KeyVote::Yes,
        _ => KeyVote::TooSoon,
    }
}

/// Why a member did not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Against {
    /// It did not answer.
    Silent,
    /// Its fence was as high already.
    Fence,
    /// Its vote on a key.
    Key(KeyVote),
}

/// The votes on some keys of a partition. Each member's answer counts once; a late one of an earlier round is the
/// shell's to tell apart (answers come back to the call that asked).
#[derive(Debug, Clone)]
pub struct Ballot {
    agreed: Vec<bool>,
    waiting: BTreeSet<NodeId>,
    against: BTreeMap<(NodeId, Against), u64>,
}

impl Ballot {
    /// A vote of `members` on so many keys.
    pub fn new(keys: usize, members: impl IntoIterator<Item = NodeId>) -> Ballot {
        let waiting = members.into_iter().collect();
        Ballot { agreed: vec![true; keys], waiting, against: BTreeMap::new() }
    }

    /// Takes a member's votes, one for each key; another number of them agrees to nothing.
    pub fn votes(&mut self, from: NodeId, votes: &[KeyVote]) {
        if votes.len() != self.agreed.len() {
            return self.refused(from, Against::Fence);
        }
        if self.waiting.remove(&from) {
            for (agreed, vote) in self.agreed.iter_mut().zip(votes) {
                *agreed &= *vote == KeyVote::Yes;
                if *vote != KeyVote::Yes {
                    *self.against.entry((from, Against::Key(*vote))).or_default() += 1;
                }
            }
        }
    }

    /// A member agrees to nothing.
    pub fn refused(&mut self, from: NodeId, why: Against) {
        if self.waiting.remove(&from) {
            self.agreed.fill(false);
            *self.against.entry((from, why)).or_default() += self.agreed.len() as u64;
        }
    }

    /// The keys, by number, that every member agreed to. None while one has not voted.
    pub fn agreed(&self) -> Vec<usize> {
        let all = self.waiting.is_empty();
        (0..self.agreed.len()).filter(|at| all && self.agreed[*at]).collect()
    }

    /// Who was against how many keys, and why.
    pub fn against(&self) -> &BTreeMap<(NodeId, Against), u64> {
        &self.against
    }
}

#[cfg(test)]
mod tests;
