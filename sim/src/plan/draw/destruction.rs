//! The plans of the scenario that destroys disks: rounds, each within the budget and each ended by a convergence.

use rand::RngExt;
use rand::seq::SliceRandom;

use super::{Draw, Kind};
use crate::plan::{Action, Destruction};
use crate::settings::RunSettings;

/// What happens beside it.
pub(super) const BESIDE: [Kind; 12] = [
    Kind::PowerLoss,
    Kind::Kill,
    Kind::Restart,
    Kind::RollingRestart,
    Kind::CrashLoop,
    Kind::Pause,
    Kind::Cut,
    Kind::Isolate,
    Kind::Reset,
    Kind::ReplyLost,
    Kind::SlowLink,
    Kind::SlowDisk,
];

/// Between the convergence, which takes seconds, and the next round.
pub(super) const APART: u64 = 500;

impl Draw {
    pub(super) fn rounds_of_destruction(&mut self, settings: &RunSettings) {
        let rounds = self.span(2, 4);
        let long = (self.end - self.begin).clamp(4_000, 20_000) / rounds;
        let mut at = self.begin;
        for round in 0..rounds {
            let mut nodes = self.nodes.clone();
            nodes.shuffle(&mut self.chance);
            // A rollback goes back to before the round, or into it.
            for node in &nodes {
                let kept = at + self.span(0, long / 2);
                self.put(kept, Action::KeepImage { node: node.clone() });
            }
            let many = self.chance.random_range(1..usize::from(settings.w).max(2));
            for node in nodes.into_iter().take(many) {
                for _ in 0..self.span(1, 2) {
                    let when = at + self.span(long / 8, long * 3 / 4);
                    self.destroy_one(&node, when, long);
                }
            }
            for _ in 0..self.span(0, 3) {
                let kind = BESIDE[self.chance.random_range(0..BESIDE.len())];
                let when = at + self.span(0, long * 3 / 4);
                self.one(kind, when, settings);
            }
            at += long;
            // The end of the run is the last convergence.
            if round + 1 < rounds {
                self.put(at, Action::Converge);
                at += APART;
            }
        }
    }

    fn destroy_one(&mut self, node: &str, at: u64, long: u64) {
        let (file, thousandths) = (self.small(0, 40), self.small(0, 999));
        let how = match self.span(0, 7) {
            0 => Destruction::Wipe,
            1 => Destruction::Rollback,
            2 => Destruction::Truncate { file, thousandths },
            3 => {
                let places =
                    (0..self.span(1, 8)).map(|_| (self.small(0, 999), self.chance.random_range(0..8)));
                Destruction::BitFlips { file, places: places.collect() }
            }
            4 => Destruction::BadSector { file, thousandths },
            5 => Destruction::Decay {
                astray: self.small(0, 100),
                lies: self.small(0, 300),
                seed: self.chance.random(),
            },
            6 => Destruction::Misdirect { nth: self.small(1, 30), file, thousandths },
            _ => Destruction::SyncLie { nth: self.small(1, 5), syncs: self.small(1, 60) },
        };
        let back_after_ms = self.span(1, 1_500);
        // What a lying sync lost, and what rotted, shows when the power has gone or the node starts again.
        let soon = if matches!(how, Destruction::SyncLie { .. } | Destruction::Decay { .. }) {
            300
        } else {
            long / 2
        };
        let after = (!how.takes_the_power()).then(|| self.span(1, soon));
        self.put(at, Action::Destroy { node: node.to_owned(), how, back_after_ms });
        if let Some(after) = after.filter(|_| self.chance.random_bool(0.8)) {
            self.put(
                at + after,
                Action::PowerLoss { node: node.to_owned(), back_after_ms: Some(back_after_ms) },
            );
        }
    }
}
