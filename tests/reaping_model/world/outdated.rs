//! What a node does with copies that are older than what the others have agreed to forget, step by step; and guests that a
//! node still keeps when it has become a primary.

use std::collections::BTreeSet;

use ringdove::dynamo::reaping::{Admission, Fences};
use ringdove::dynamo::version::{Dot, Record};

use super::{PRIMARIES, World};

/// Copies are being given up.
pub(super) struct GivingUp {
    pub(super) theirs: Fences,
    pub(super) known: u64,
    pub(super) step: Step,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Step {
    Data,
    Guest,
    Fence,
}

impl World {
    pub(super) fn is_giving_up(&self, node: usize) -> bool {
        self.nodes[node].giving_up.is_some()
    }

    /// Whether it begins now: no other task is in the middle of it.
    pub(super) fn begin_giving_up(&mut self, node: usize, theirs: Fences, known: u64) -> bool {
        let before = self.nodes[node].giving_up.take();
        if before.as_ref().is_some_and(|before| before.step != Step::Data) {
            self.nodes[node].giving_up = before;
            return false;
        }
        // One that could not go on begins again.
        let known = before.map_or(known, |before| before.known.max(known));
        self.nodes[node].giving_up = Some(GivingUp { theirs, known, step: Step::Data });
        true
    }

    /// Does the next step of giving up; false when there is none, or nobody can be asked: then it begins again.
    pub(super) fn go_on(&mut self, node: usize) -> bool {
        let Some(GivingUp { theirs, known, step }) = &self.nodes[node].giving_up else { return false };
        let (theirs, known, step) = (*theirs, *known, *step);
        let disk = &self.nodes[node].disk;
        let left = match step {
            Step::Data => self.left_of(node, &disk.copy.record, known),
            Step::Guest => self.left_of(node, &disk.guest, known),
            Step::Fence => Some(Record::new()),
        };
        let Some(left) = left else {
            self.nodes[node].giving_up = Some(GivingUp { theirs, known, step: Step::Data });
            return false;
        };
        let next = match step {
            Step::Data => {
                self.nodes[node].disk.copy.record = left;
                self.cleared(node);
                Step::Guest
            }
            Step::Guest => {
                self.nodes[node].disk.guest = left;
                Step::Fence
            }
            Step::Fence => {
                let fences = &mut self.nodes[node].disk.fences;
                fences.raised = fences.raised.max(theirs.raised).max(known);
                let told = if self.rules.vote_is_no_commit { theirs.committed } else { known };
                fences.committed = fences.committed.max(told);
                self.nodes[node].giving_up = None;
                return true;
            }
        };
        self.nodes[node].giving_up = Some(GivingUp { theirs, known, step: next });
        true
    }

    /// What is left of a copy once it was given up; none where nobody can be asked.
    fn left_of(&self, node: usize, record: &Record, known: u64) -> Option<Record> {
        let mint = &self.nodes[node].mint;
        let ours = |dot: Dot| mint.is_ours(dot.actor);
        if record.siblings().iter().all(|sibling| ours(sibling.dot)) {
            return Some(record.clone());
        }
        let others: Vec<usize> = (0..PRIMARIES).filter(|other| *other != node).collect();
        let is_good =
            |other: &&usize| self.nodes[**other].disk.fences.raised >= known && !self.is_giving_up(**other);
        let good: Vec<usize> = others.iter().filter(is_good).copied().collect();
        if good.is_empty() {
            return None;
        }
        if good.iter().any(|other| self.record(*other) == record) {
            return Some(record.clone());
        }
        let alive: BTreeSet<Dot> = good
            .iter()
            .flat_map(|other| self.record(*other).siblings().iter().map(|sibling| sibling.dot))
            .collect();
        let claimed = |dot: &Dot| {
            good.iter().any(|other| {
                let other = self.record(*other);
                other.context().covers(*dot) && !other.siblings().iter().any(|sibling| sibling.dot == *dot)
            })
        };
        let all = good.len() == others.len();
        let writes = record.siblings().iter().any(|sibling| ours(sibling.dot));
        let unclaimed = alive.iter().copied().filter(|dot| all && !writes && !claimed(dot)).collect();
        Some(record.only(|dot| ours(dot) || alive.contains(&dot), &unclaimed))
    }

    /// A primary takes what another node holds as a guest, as it does while it is none.
    pub(super) fn keep(&mut self, from: usize, to: usize) -> bool {
        let (record, fences) = (self.record(from).clone(), self.nodes[from].disk.fences);
        let own = self.nodes[to].disk.fences;
        let is_shut = self.is_giving_up(from) || self.is_giving_up(to) && self.rules.closed_meanwhile;
        if to >= PRIMARIES || record.is_empty() || is_shut || own.admit(fences) != Admission::Take {
            return false;
        }
        self.nodes[to].disk.guest.merge(&record);
        true
    }

    /// A primary reads its guest.
    pub(super) fn read_guest(&mut self, node: usize) -> bool {
        let node = &mut self.nodes[node];
        node.turning = (!node.disk.guest.is_empty()).then(|| (node.disk.guest.clone(), node.disk.fences));
        node.turning.is_some()
    }

    /// And has it as data.
    pub(super) fn turn(&mut self, node: usize) -> bool {
        let is_shut = self.is_giving_up(node) && self.rules.closed_meanwhile;
        let this = &mut self.nodes[node];
        let Some((record, read_under)) = this.turning.take() else { return false };
        let own = this.disk.fences;
        let fences = if self.rules.turned_as_read { read_under } else { own };
        if is_shut || own.admit(fences) != Admission::Take {
            return false;
        }
        this.disk.copy.merge(&this.mint, &record);
        if this.disk.guest == record {
            this.disk.guest = Record::new();
        }
        true
    }
}
