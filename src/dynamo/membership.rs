//! Whose heartbeat is how far: what gossip reconciles (Dynamo §4.8.1; R. van Renesse et al., *Efficient reconciliation and
//! flow control for anti-entropy protocols*, LADIS 2008, "scuttlebutt", for a state that is one number a node).
//!
//! ```text
//!   a ── all that a has heard ──▶ b: takes what is newer
//!   a ◀── what b knows newer ──── b
//!   a: takes it
//! ```
//! Each node counts its own heartbeats; everybody else only repeats the highest that was heard. A heartbeat is ordered by the
//! *generation* of its node first, which grows with its starts, so that one that began anew is ahead of all it said before.
//!
//! The bad orders
//! - A message arrives an hour late: what it says is lower than what is known, and nothing.
//! - A node starts from an older copy of its disk, and its generation is lower than what others remember: nobody would
//!   take its heartbeats. It goes above whatever it hears of itself ([`Membership::hear`]).
//! - A copy of its directory runs beside it, a *double*. Both would go above each other for ever, and both coordinate writes
//!   under one id. The lower one has to stop, and only that.
//!
//! # Memory or double
//!
//! A node that hears itself higher than it is cannot tell by that whether another process lives: the others remember for
//! ever, each a little less or more, and messages of its own past may still be on their way. So neither a higher heartbeat nor one
//! that advances is evidence. An answer to a question that nobody can have heard before is:
//!
//! ```text
//!   lower                                    others                        higher, if it lives
//!   hears itself at (g, _), g odd
//!   draws an even G > g: the challenge ────▶ ... ────────────────────────▶ hears itself at (G, _), G even
//!   hears G + 1, and stops ◀──────────────── ... ◀──────────────────────── goes to G + 1: the answer
//!   or nothing, and goes on as G + 1
//! ```
//! Only who has heard G can say G + 1, and G is drawn at random after this start: no memory, and no message of an earlier life,
//! has it but by chance (2⁻³²). Who answers goes on. So, of two processes, the one that was the lower when they met stops.
//!
//! - A start begins with an odd generation, and a challenge becomes odd after [`ANSWER_WITHIN`] heartbeats. An even one is
//!   heard from a process that asks, or from one that ended while it asked; answering the latter costs nothing.
//! - Both hear themselves higher: one of the two heartbeats was told first, and its process cannot have been the lower then
//!   without asking. So at most one of them asks first, and the other answers.
//! - Two that are cut off from each other both go on. When they meet again the lower is found as above; it may be the one whose
//!   disk is newer.
//! - The stopped one is started again while the other one runs: it counts from its starts, far below the other's answer.
//! - A program of before this rule goes to one above what it hears: it answers, and never stops.
//!
//! Garbage, from whoever reaches the peer port, makes a node go higher and stops nothing. There is no defence against who
//! listens to the gossip and answers on purpose: peers are trusted.
//!
//! Who is a member stands in the layout. What is said of others is not taken.
//!
//! Absent: clocks, chance (a draw is an argument), suspicion ([`detector`](super::detector)), whom to talk to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::NodeId;

/// Own heartbeats for which a challenge stands. Gossip brings an answer within a few.
pub const ANSWER_WITHIN: u64 = 60;
/// A heartbeat of a generation above this is garbage: no number of starts and challenges leads there.
pub const GENERATION_MAX: u64 = 1 << 62;

/// A heartbeat. Later ones are greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Grows with the node's starts, as far as it knows them, and above all that it hears of itself. Even in a challenge.
    pub generation: u64,
    /// Heartbeats since.
    pub count: u64,
}

impl Heartbeat {
    fn is_challenge(self) -> bool {
        self.generation.is_multiple_of(2)
    }
}

/// What there was to hear.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The members of whom it was news.
    pub news: Vec<NodeId>,
    /// Whether another process lives under this node's id and is the higher of the two: this one has to stop.
    pub is_double: bool,
}

/// What one node has heard.
#[derive(Debug, Clone)]
pub struct Membership {
    me: NodeId,
    own: Heartbeat,
    /// The challenge was answered. Nothing is raised any more.
    is_double: bool,
    others: BTreeMap<NodeId, Heartbeat>,
}

impl Membership {
    /// Has heard of nobody. `starts`: of the node, this one among them.
    pub fn new(me: NodeId, starts: u64) -> Membership {
        let generation = starts.min(GENERATION_MAX / 4) * 2 + 1;
        let own = Heartbeat { generation, count: 0 };
        Membership { me, own, is_double: false, others: BTreeMap::new() }
    }

    /// Goes by these other members from now on.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = NodeId>) {
        let mut old = std::mem::take(&mut self.others);
        let others = members.into_iter().filter(|node| *node != self.me);
        self.others = others.map(|node| (node, old.remove(&node).unwrap_or_default())).collect();
    }

    /// One more heartbeat of this node.
    pub fn beat(&mut self) {
        self.own.count += 1;
        if self.own.is_challenge() && self.own.count > ANSWER_WITHIN && !self.is_double {
            self.own = Heartbeat { generation: self.own.generation + 1, count: 0 };
        }
    }

    /// All that it has heard, with its own, in order.
    pub fn heard(&self) -> Vec<(NodeId, Heartbeat)> {
        let others = self.others.iter().filter(|(_, beat)| **beat > Heartbeat::default());
        let mut heard: Vec<_> = others.map(|(node, beat)| (*node, *beat)).collect();
        heard.push((self.me, self.own));
        heard.sort_unstable();
        heard
    }

    /// Takes what another has heard. `draw` gives a random number when one is needed.
    pub fn hear(&mut self, heard: &[(NodeId, Heartbeat)], mut draw: impl FnMut() -> u32) -> Heard {
        let mut news = Vec::new();
        for (node, beat) in heard.iter().filter(|(_, beat)| beat.generation <= GENERATION_MAX) {
            if *node == self.me {
                self.hear_own(*beat, &mut draw);
            } else if let Some(known) = self.others.get_mut(node).filter(|known| *beat > **known) {
                *known = *beat;
                news.push(*node);
            }
        }
        Heard { news, is_double: self.is_double }
    }

    fn hear_own(&mut self, beat: Heartbeat, draw: &mut impl FnMut() -> u32) {
        if beat <= self.own || self.is_double {
            return;
        }
        if self.own.is_challenge() && beat.generation == self.own.generation + 1 {
            self.is_double = true;
            return;
        }
        let generation = if beat.is_challenge() {
            beat.generation + 1
        } else {
            beat.generation + 1 + 2 * u64::from(draw())
        };
        self.own = Heartbeat { generation, count: 0 };
    }

    /// What this node knows newer than whoever has heard that.
    pub fn newer_than(&self, heard: &[(NodeId, Heartbeat)]) -> Vec<(NodeId, Heartbeat)> {
        let theirs: BTreeMap<NodeId, Heartbeat> = heard.iter().copied().collect();
        let is_newer = |(node, beat): &(NodeId, Heartbeat)| theirs.get(node).is_none_or(|their| beat > their);
        self.heard().into_iter().filter(is_newer).collect()
    }
}

#[cfg(test)]
mod tests;
