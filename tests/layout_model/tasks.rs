//! What nodes do by themselves, in steps between which anything may happen: the orders of `node::anti_entropy` and
//! `node::transfer`, once more in their shortest form.

use ringdove::dynamo::version::Record;
use ringdove::types::LayoutRef;

use crate::world::{NODES, World, id, index};

/// A comparison with all other primaries.
pub(crate) struct Compare {
    epoch: u64,
    doubts: u64,
    left: Vec<usize>,
    /// What was fetched from the one that comes next.
    fetched: Option<Record>,
    missed: Vec<usize>,
}

/// A round of questions whether older layouts may go.
pub(crate) struct Retire {
    current: LayoutRef,
    left: Vec<usize>,
    waits: bool,
    below: u64,
}

/// How far it is with the primary that comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Trees,
    Copies,
    Root,
}

/// Handing over what is not this node's any more.
pub(crate) struct LetGo {
    epoch: u64,
    left: Vec<usize>,
    stage: Stage,
}

impl World {
    /// One step; whether there was one to take.
    pub(crate) fn compare(&mut self, node: usize) -> bool {
        let Some(mut compare) = self.nodes[node].compare.take() else {
            if !self.is_primary(node) {
                return false;
            }
            let left = self.list(node).primaries().map(index).filter(|other| *other != node).collect();
            let (epoch, doubts) = (self.nodes[node].epoch, self.nodes[node].doubts);
            self.nodes[node].compare =
                Some(Compare { epoch, doubts, left, fetched: None, missed: Vec::new() });
            return true;
        };
        let Some(&other) = compare.left.first() else {
            self.compared(node, &compare);
            return true;
        };
        match compare.fetched.take() {
            // An epoch that is over is noticed in the end; until then both sides give each other what they have.
            _ if self.is_down(node, other) || !self.settle(node, other) || !self.is_primary(other) => {
                compare.missed.push(other);
                compare.left.remove(0);
            }
            None => {
                self.write(other);
                compare.fetched = Some(self.nodes[other].record().clone());
            }
            Some(theirs) => {
                if self.is_primary(node) {
                    self.merge(node, &theirs);
                    self.write(node);
                    let record = self.nodes[node].record().clone();
                    self.merge(other, &record);
                    self.write(other);
                } else {
                    compare.missed.push(other);
                }
                compare.left.remove(0);
            }
        }
        self.nodes[node].compare = Some(compare);
        true
    }

    fn compared(&mut self, node: usize, compare: &Compare) {
        let same = self.nodes[node].epoch == compare.epoch || !self.rules.epoch_of_comparison;
        let same = same && self.nodes[node].doubts == compare.doubts;
        let enough = compare.missed.is_empty() || self.may_miss(node, &compare.missed);
        if same && (enough || !self.rules.enough) && !self.nodes[node].now.refilled {
            self.nodes[node].now.refilled = true;
            self.write(node);
            self.counts.refilled += 1;
        }
    }

    fn may_miss(&self, node: usize, missed: &[usize]) -> bool {
        let current = self.nodes[node].history.current();
        let are_leaving =
            missed.iter().all(|other| current.member(id(*other)).is_none() && self.is_down(node, *other));
        let compared = |primaries: &Vec<ringdove::types::NodeId>| {
            let with = |other: &usize| *other != node && !missed.contains(other);
            primaries.iter().map(|primary| index(*primary)).filter(with).count()
        };
        let w = self.n / 2 + 1;
        are_leaving && self.list(node).layouts.iter().skip(1).all(|layout| compared(layout) > self.n - w)
    }

    fn has_left(&self, node: usize) -> bool {
        let this = &self.nodes[node];
        this.history.current().is_primary(self.partition, id(node)) && !this.now.refilled
    }

    pub(crate) fn retire(&mut self, node: usize) -> bool {
        let Some(mut round) = self.nodes[node].retire.take() else {
            let history = &self.nodes[node].history;
            let current = history.current().reference();
            if history.active().len() == 1 {
                return false;
            }
            let members = history.active().iter().flat_map(|layout| layout.members());
            let mut left: Vec<usize> = members.map(|member| index(member.id)).collect();
            left.sort_unstable();
            left.dedup();
            left.retain(|other| *other != node);
            let below = history.oldest().reference().version;
            let waits = self.has_left(node);
            self.nodes[node].retire = Some(Retire { current, left, waits, below });
            return true;
        };
        let Some(other) = round.left.pop() else {
            self.retired(node, &round);
            return true;
        };
        if self.is_down(node, other) {
            round.waits |=
                self.nodes[node].history.current().member(id(other)).is_some() && self.rules.wait_for_members;
        } else if self.settle(node, other) {
            round.below = round.below.max(self.nodes[other].history.oldest().reference().version);
            round.waits |= self.has_left(other);
        } else {
            round.waits = true;
        }
        self.nodes[node].retire = Some(round);
        true
    }

    fn retired(&mut self, node: usize, round: &Retire) {
        let mut after = self.nodes[node].history.clone();
        if after.current().reference() != round.current {
            return;
        }
        let below = match round.waits && self.rules.ask_first {
            false => round.current.version,
            true if self.rules.hear_retired => round.below,
            true => return,
        };
        if !after.retire_below(below).is_empty() {
            self.go_by(node, after, false);
            self.counts.retired += 1;
        }
    }

    pub(crate) fn let_go(&mut self, node: usize) -> bool {
        let Some(mut going) = self.nodes[node].letting_go.take() else {
            if self.nodes[node].record().is_empty() || self.is_primary(node) {
                return false;
            }
            let left = self.list(node).primaries().map(index).collect();
            let epoch = self.nodes[node].epoch;
            self.nodes[node].letting_go = Some(LetGo { epoch, left, stage: Stage::Trees });
            return true;
        };
        let Some(&other) = going.left.first() else {
            if self.nodes[node].epoch == going.epoch || !self.rules.epoch_of_letting_go {
                self.nodes[node].now.copy = Default::default();
                self.write(node);
                self.counts.let_go += 1;
            }
            return true;
        };
        if self.is_down(node, other) || !self.settle(node, other) || !self.is_primary(other) {
            return true;
        }
        let same = self.nodes[node].record() == self.nodes[other].record();
        going.stage = match going.stage {
            Stage::Trees => {
                self.write(other);
                if same { Stage::Root } else { Stage::Copies }
            }
            Stage::Copies => {
                if !same {
                    let record = self.nodes[node].record().clone();
                    self.merge(other, &record);
                    self.write(other);
                }
                Stage::Root
            }
            Stage::Root => {
                if self.rules.root_of {
                    self.write(other);
                }
                going.left.remove(0);
                Stage::Trees
            }
        };
        self.nodes[node].letting_go = Some(going);
        true
    }
}

const _: () = assert!(NODES > 4, "enough for three replicas to move");
