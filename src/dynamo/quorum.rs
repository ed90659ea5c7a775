//! Counting: which nodes have answered, and whether that is enough in every active layout.
//!
//! While a layout change is under way more than one layout is active, and a quorum must hold in each of them
//! (DESIGN §4; the joint quorums of Garage and of Raft's joint consensus): otherwise a write that W old owners
//! hold could be missed by R new ones. A node counts once, however many replies it sends or targets it stands
//! for.

use crate::types::NodeId;

/// The nodes that have answered, held against the primaries of every active layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// For each active layout its primaries and those of `counted` that count there.
    layouts: Vec<(Vec<NodeId>, Vec<NodeId>)>,
    counted: Vec<NodeId>,
    need: usize,
}

impl Tally {
    /// Nobody has answered yet; `need` are needed in each of `layouts` (the primaries of each).
    pub fn new(layouts: &[Vec<NodeId>], need: usize) -> Tally {
        let layouts = layouts.iter().map(|primaries| (primaries.clone(), Vec::new())).collect();
        Tally { layouts, counted: Vec::new(), need }
    }

    /// Counts a node for itself, in every layout in which it is a primary.
    pub fn count_primary(&mut self, node: NodeId) {
        self.count_for(node, &[node]);
    }

    /// Counts a node in every layout in which one of `targets` is a primary: itself, or those for which it
    /// keeps a guest record.
    pub fn count_for(&mut self, node: NodeId, targets: &[NodeId]) {
        let mut counts = false;
        for (primaries, counted) in &mut self.layouts {
            let stands_in = targets.iter().any(|target| primaries.contains(target));
            if stands_in && !counted.contains(&node) {
                counted.push(node);
            }
            counts |= stands_in;
        }
        if counts && !self.counted.contains(&node) {
            self.counted.push(node);
        }
    }

    /// Counts a node everywhere: a sloppy read takes any answer.
    pub fn count_anywhere(&mut self, node: NodeId) {
        for (_, counted) in &mut self.layouts {
            if !counted.contains(&node) {
                counted.push(node);
            }
        }
        if !self.counted.contains(&node) {
            self.counted.push(node);
        }
    }

    /// Whether enough nodes count in every active layout.
    pub fn is_met(&self) -> bool {
        !self.layouts.is_empty() && self.layouts.iter().all(|(_, counted)| counted.len() >= self.need)
    }

    /// Whether these further nodes, if all of them came to count for themselves, could meet it.
    pub fn could_be_met_by(&self, pending: &[(NodeId, Vec<NodeId>)]) -> bool {
        let mut best = self.clone();
        for (node, targets) in pending {
            best.count_for(*node, targets);
        }
        best.is_met()
    }

    /// The nodes that count somewhere, in the order of their answers.
    pub fn counted(&self) -> &[NodeId] {
        &self.counted
    }

    /// How many count in the layout that is worst off: the number to show beside `need`.
    pub fn have(&self) -> usize {
        self.layouts.iter().map(|(_, counted)| counted.len()).min().unwrap_or(0)
    }

    /// How many are needed in each layout.
    pub fn need(&self) -> usize {
        self.need
    }
}
