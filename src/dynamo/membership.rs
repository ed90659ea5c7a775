//! Whose heartbeat is how far: what gossip reconciles (Dynamo §4.8.1; R. van Renesse et al., *Efficient reconciliation and
//! flow control for anti-entropy protocols*, LADIS 2008, "scuttlebutt", for a state that is one number a node).
//!
//! ```text
//!   a ── all that a has heard ──▶ b: takes what is newer
//!   a ◀── what b knows newer ──── b
//!   a: takes it
//! ```
//! Each node counts its own heartbeats; everybody else only repeats the highest that was heard. A heartbeat is ordered by the
//! *generation* of its node first (its starts), so that one that began anew is ahead of all it said before.
//!
//! The bad orders
//! - A message arrives an hour late: what it says is lower than what is known, and nothing.
//! - A node starts from an older copy of its disk, and its generation is lower than what others remember: nobody would
//!   take its heartbeats. It goes above whatever it hears of itself ([`Membership::hear`]).
//!
//! Who is a member stands in the layout. What is said of others is not taken.
//!
//! Absent: clocks, suspicion ([`detector`](super::detector)), whom to talk to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::NodeId;

/// A heartbeat. Later ones are greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The node's starts, as far as it knows them.
    pub generation: u64,
    /// Heartbeats since.
    pub count: u64,
}

/// What one node has heard.
#[derive(Debug, Clone)]
pub struct Membership {
    me: NodeId,
    own: Heartbeat,
    others: BTreeMap<NodeId, Heartbeat>,
}

impl Membership {
    /// Has heard of nobody.
    pub fn new(me: NodeId, generation: u64) -> Membership {
        Membership { me, own: Heartbeat { generation, count: 0 }, others: BTreeMap::new() }
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
    }

    /// All that it has heard, with its own, in order.
    pub fn heard(&self) -> Vec<(NodeId, Heartbeat)> {
        let others = self.others.iter().filter(|(_, beat)| **beat > Heartbeat::default());
        let mut heard: Vec<_> = others.map(|(node, beat)| (*node, *beat)).collect();
        heard.push((self.me, self.own));
        heard.sort_unstable();
        heard
    }

    /// Takes what another has heard; the members of whom it is news.
    pub fn hear(&mut self, heard: &[(NodeId, Heartbeat)]) -> Vec<NodeId> {
        let mut news = Vec::new();
        for (node, beat) in heard {
            if *node == self.me {
                if *beat > self.own {
                    self.own = Heartbeat { generation: beat.generation.saturating_add(1), count: 0 };
                }
            } else if let Some(known) = self.others.get_mut(node).filter(|known| *beat > **known) {
                *known = *beat;
                news.push(*node);
            }
        }
        news
    }

    /// What this node knows newer than whoever has heard that.
    pub fn newer_than(&self, heard: &[(NodeId, Heartbeat)]) -> Vec<(NodeId, Heartbeat)> {
        let theirs: BTreeMap<NodeId, Heartbeat> = heard.iter().copied().collect();
        let is_newer = |(node, beat): &(NodeId, Heartbeat)| theirs.get(node).is_none_or(|their| beat > their);
        self.heard().into_iter().filter(is_newer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn of(me: NodeId, generation: u64) -> Membership {
        let mut membership = Membership::new(me, generation);
        membership.set_members([A, B, C]);
        membership
    }

    #[test]
    fn one_exchange_brings_both_up_to_date_and_tells_of_whom_it_was_news() {
        let (mut a, mut b) = (of(A, 1), of(B, 1));
        b.hear(&[(C, Heartbeat { generation: 3, count: 9 })]);
        a.hear(&[(C, Heartbeat { generation: 3, count: 4 })]);
        a.beat();
        b.beat();
        let said = a.heard();
        let answer = b.newer_than(&said);
        assert_eq!(b.hear(&said), [A], "of C it knows more");
        assert_eq!(a.hear(&answer), [B, C]);
        assert_eq!(a.heard(), b.heard());
        assert_eq!(a.hear(&answer), [], "what is known is no news");
    }

    #[test]
    fn what_comes_late_or_of_strangers_is_nothing() {
        let mut a = of(A, 1);
        let late = [(B, Heartbeat { generation: 1, count: 7 })];
        assert_eq!(a.hear(&[(B, Heartbeat { generation: 2, count: 0 })]), [B]);
        assert_eq!(a.hear(&late), [], "B has begun anew since");
        assert_eq!(a.hear(&[(NodeId(9), Heartbeat { generation: 1, count: 1 })]), []);
        a.set_members([C]);
        assert_eq!(a.heard(), [(A, Heartbeat { generation: 1, count: 0 })]);
    }

    /// The bad order: a node starts from an older copy of its disk and counts from a generation that others have passed.
    #[test]
    fn a_node_goes_above_what_others_remember_of_it() {
        let (mut restored, mut b) = (of(A, 2), of(B, 1));
        b.hear(&[(A, Heartbeat { generation: 5, count: 100 })]);
        restored.beat();
        let said = restored.heard();
        assert_eq!(b.hear(&said), [], "nobody would hear it");
        restored.hear(&b.newer_than(&said));
        restored.beat();
        assert_eq!(b.hear(&restored.heard()), [A]);
    }
}
