//! The plans of the scenarios that are about one thing: how what was deleted could come back, and how the last copies could
//! go. Each lets that one thing happen over and over, and little else beside it.

use rand::RngExt;
use rand::seq::SliceRandom;

use super::destruction::{APART, BESIDE};
use super::{Draw, Kind};
use crate::net::fault::NetFault;
use crate::plan::{Action, Destruction, Why};
use crate::settings::RunSettings;

impl Draw {
    fn beside(&mut self, most: u64, settings: &RunSettings) {
        for _ in 0..self.span(0, most) {
            let kind = BESIDE[self.chance.random_range(0..BESIDE.len())];
            let at = self.chance.random_range(self.begin..self.end);
            self.one(kind, at, settings);
        }
    }

    /// One node after the other is away for ten times the grace and more, and comes back.
    pub(super) fn nodes_away(&mut self, settings: &RunSettings) {
        let mut at = self.begin + self.span(200, 1_500);
        while at + 1_000 < self.end {
            let node = self.node();
            let long = self.span(10, 16) * settings.grace_ms.max(100);
            match self.span(0, 3) {
                0 => {
                    let links = self.crossing(std::slice::from_ref(&node));
                    self.cut_for(links, at, long, Why::Isolate);
                }
                1 => {
                    self.put(at, Action::Pause { node: node.clone() });
                    self.put(at + long, Action::Resume { node });
                }
                2 => {
                    self.put(at, Action::Stop { node: node.clone() });
                    self.put(at + long, Action::Start { node });
                }
                _ => self.put(at, Action::PowerLoss { node, back_after_ms: Some(long) }),
            }
            // Everybody is back long enough for a round.
            at += long + self.span(1_000, 3_000);
        }
        self.beside(2, settings);
    }

    /// What nodes send each other is held, past rounds of reaping, and then delivered.
    pub(super) fn frames_held(&mut self, settings: &RunSettings) {
        for _ in 0..self.span(6, 16) {
            let mut nodes = self.nodes.clone();
            nodes.shuffle(&mut self.chance);
            let (from, to) = (nodes[0].clone(), nodes[1].clone());
            let at = self.chance.random_range(self.begin..self.end);
            let long = self.span(2, 12) * settings.reap_ms.max(settings.grace_ms).max(100);
            self.put_fault(at, long, NetFault::Hold { from, to });
        }
        self.beside(3, settings);
    }

    /// Directories are restored from backups that are older than rounds of reaping.
    pub(super) fn backups_restored(&mut self, settings: &RunSettings) {
        let rounds = self.span(2, 4);
        let long = (self.end - self.begin).clamp(6_000, 20_000) / rounds;
        let mut at = self.begin;
        for round in 0..rounds {
            let mut nodes = self.nodes.clone();
            nodes.shuffle(&mut self.chance);
            let many = self.chance.random_range(1..usize::from(settings.w).max(2));
            for node in nodes.into_iter().take(many) {
                let kept = at + self.span(0, long / 4);
                self.put(kept, Action::KeepImage { node: node.clone() });
                let back_after_ms = self.span(1, 1_500);
                let when = at + self.span(long / 2, long * 3 / 4);
                self.put(when, Action::Destroy { node, how: Destruction::Rollback, back_after_ms });
            }
            at += long;
            if round + 1 < rounds {
                self.put(at, Action::Converge);
                at += APART;
            }
        }
        self.beside(3, settings);
    }

    /// Every disk is wiped, the next when the last has refilled.
    pub(super) fn disks_wiped(&mut self, settings: &RunSettings) {
        let mut nodes = self.nodes.clone();
        nodes.shuffle(&mut self.chance);
        let long = (self.end - self.begin).clamp(4_000, 20_000) / nodes.len() as u64;
        let mut at = self.begin;
        for (turn, node) in (1..).zip(&nodes) {
            let (when, back_after_ms) = (at + self.span(long / 8, long * 3 / 4), self.span(1, 1_500));
            self.put(when, Action::Destroy { node: node.clone(), how: Destruction::Wipe, back_after_ms });
            at += long;
            if turn < nodes.len() {
                self.put(at, Action::Converge);
                at += APART;
            }
        }
        self.beside(2, settings);
    }

    /// A node is removed, up or down, and perhaps added again with the disk that it had.
    pub(super) fn member_away(&mut self, at: u64, settings: &RunSettings) -> u64 {
        let node = self.node();
        let long = self.span(1, 12) * settings.reap_ms.max(settings.grace_ms).clamp(100, 1_000);
        if self.chance.random_ratio(1, 3) {
            let back_after_ms = Some(self.span(10, 2 * long));
            self.put(at, Action::PowerLoss { node: node.clone(), back_after_ms });
        }
        let removed = at + self.span(1, 300);
        self.put(removed, Action::Remove { node: node.clone() });
        if self.chance.random_ratio(4, 5) {
            self.put(removed + long, Action::Add { node });
        }
        removed + long
    }

    /// Nodes are removed and added again, one after the other, a few at once now and then.
    pub(super) fn members_moved(&mut self, settings: &RunSettings) {
        let mut at = self.begin + self.span(200, 1_500);
        while at + 1_000 < self.end {
            let back = self.member_away(at, settings);
            at = if self.chance.random_ratio(1, 4) {
                at + self.span(1, 2_000)
            } else {
                back + self.span(500, 4_000)
            };
        }
        self.beside(3, settings);
    }

    /// All nodes are restarted one after the other, again and again.
    pub(super) fn rolling_restarts(&mut self, settings: &RunSettings) {
        for _ in 0..self.span(2, 5) {
            let at = self.chance.random_range(self.begin..self.end);
            self.one(Kind::RollingRestart, at, settings);
        }
        self.beside(2, settings);
    }
}
