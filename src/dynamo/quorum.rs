//! Counting: which nodes have answered, and whether that is enough in every active layout.
//!
//! While a layout change is under way more than one layout is active, and a quorum must hold in each of them
//! (DESIGN §4; the joint quorums of Garage and of Raft's joint consensus): otherwise a write that W old owners
//! hold could be missed by R new ones.
//!
//! A node counts once, however many replies it sends or targets it stands for; and so does a primary, whoever stands in
//! for it. A fallback that keeps a copy for a primary hands it over and drops it: once the primary itself has
//! the write as well, both are one copy, and counted as two they would let a write of W=3 end on two disks. So what counts
//! is the largest number of nodes that can be paired each with a primary of its own.

use crate::types::NodeId;

/// One active layout: its primaries, and for whom of them each node that has answered can count.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    primaries: Vec<NodeId>,
    stands: Vec<(NodeId, Vec<NodeId>)>,
    have: usize,
}

impl Share {
    fn count(&mut self, node: NodeId, targets: impl Iterator<Item = NodeId>) -> bool {
        let targets: Vec<NodeId> = targets.filter(|target| self.primaries.contains(target)).collect();
        if targets.is_empty() {
            return false;
        }
        match self.stands.iter_mut().find(|(counted, _)| *counted == node) {
            Some((_, known)) if targets.iter().all(|target| known.contains(target)) => return true,
            Some((_, known)) => known.extend(targets),
            None => self.stands.push((node, targets)),
        }
        let mut paired = vec![None; self.primaries.len()];
        self.have = (0..self.stands.len()).filter(|at| self.pair(*at, &mut paired, &mut Vec::new())).count();
        true
    }

    /// Finds the node at `at` a primary, moving others to another one where that makes room (augmenting paths; Kuhn, 1955).
    fn pair(&self, at: usize, paired: &mut [Option<usize>], tried: &mut Vec<usize>) -> bool {
        let wanted = |slot: &usize| self.stands[at].1.contains(&self.primaries[*slot]);
        for slot in (0..self.primaries.len()).filter(wanted) {
            if tried.contains(&slot) {
                continue;
            }
            tried.push(slot);
            if paired[slot].is_none_or(|other| self.pair(other, paired, tried)) {
                paired[slot] = Some(at);
                return true;
            }
        }
        false
    }
}

/// The nodes that have answered, held against the primaries of every active layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    layouts: Vec<Share>,
    need: usize,
}

impl Tally {
    /// Nobody has answered yet; `need` are needed in each of `layouts` (the primaries of each).
    pub fn new(layouts: &[Vec<NodeId>], need: usize) -> Tally {
        let share =
            |primaries: &Vec<NodeId>| Share { primaries: primaries.clone(), stands: Vec::new(), have: 0 };
        Tally { layouts: layouts.iter().map(share).collect(), need }
    }

    /// Counts a node for itself, in every layout in which it is a primary.
    pub fn count_primary(&mut self, node: NodeId) {
        self.count_for(node, &[node]);
    }

    /// Counts a node in every layout in which one of `targets` is a primary: itself, or those for which it
    /// keeps a guest record.
    pub fn count_for(&mut self, node: NodeId, targets: &[NodeId]) {
        for share in &mut self.layouts {
            share.count(node, targets.iter().copied());
        }
    }

    /// Counts a node everywhere: a sloppy read takes any answer.
    pub fn count_anywhere(&mut self, node: NodeId) {
        for share in &mut self.layouts {
            let all = share.primaries.clone();
            share.count(node, all.into_iter());
        }
    }

    /// Whether enough nodes count in every active layout.
    pub fn is_met(&self) -> bool {
        !self.layouts.is_empty() && self.layouts.iter().all(|share| share.have >= self.need)
    }

    /// How many count in the layout that is worst off: the number to show beside `need`.
    pub fn have(&self) -> usize {
        self.layouts.iter().map(|share| share.have).min().unwrap_or(0)
    }

    /// How many are needed in each layout.
    pub fn need(&self) -> usize {
        self.need
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const F: NodeId = NodeId(4);
    const G: NodeId = NodeId(5);

    fn tally(need: usize) -> Tally {
        Tally::new(&[vec![A, B, C]], need)
    }

    /// The bad order: C is silent, F keeps its copy and answers, then C answers as well. F hands its copy to C and drops
    /// it: of three answers two disks are left.
    #[test]
    fn a_primary_and_who_stands_in_for_it_are_one_copy() {
        let mut tally = tally(3);
        tally.count_primary(A);
        tally.count_for(F, &[C]);
        tally.count_primary(C);
        assert_eq!((tally.have(), tally.is_met()), (2, false));
        tally.count_for(G, &[B]);
        assert!(tally.is_met());
    }

    #[test]
    fn a_fallback_that_coordinates_counts_for_whichever_primary_is_left() {
        let mut tally = tally(3);
        tally.count_for(F, &[A, B, C]);
        tally.count_primary(A);
        assert_eq!(tally.have(), 2);
        tally.count_primary(A);
        tally.count_primary(C);
        assert!(tally.is_met());
        tally.count_primary(B);
        assert_eq!(tally.have(), 3, "its copy goes to one of the three");
    }

    #[test]
    fn a_quorum_must_hold_in_every_layout() {
        let mut tally = Tally::new(&[vec![A, B], vec![B, C]], 2);
        tally.count_primary(A);
        tally.count_primary(B);
        assert_eq!((tally.have(), tally.is_met()), (1, false));
        tally.count_for(F, &[C]);
        assert!(tally.is_met());
        let mut anywhere = Tally::new(&[vec![A, B], vec![B, C]], 2);
        anywhere.count_anywhere(F);
        anywhere.count_anywhere(F);
        assert!(!anywhere.is_met(), "a node counts once");
        anywhere.count_anywhere(G);
        assert!(anywhere.is_met());
        assert!(!Tally::new(&[], 0).is_met(), "no layout, no quorum");
    }
}
