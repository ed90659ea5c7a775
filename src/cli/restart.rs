//! When a node that failed is started again: a pure value, used by `serve` for a node in its own process and by
//! `cluster` for the processes that it looks after.
//!
//! A failure is a latched store, or a process that ended by itself. One may be bad luck; three in ten minutes are a
//! disk or a program that will not get better by trying, and every try writes to that disk. So the node is started
//! again after a pause that doubles, and after the third failure it stays down until a person has looked.
//!
//! Never reads a clock: `now` is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Mono;

/// A node that fails this often within [`WINDOW`] stays down.
pub(super) const FAILURES_MAX: usize = 3;
/// How long a failure counts.
pub(super) const WINDOW: Duration = Duration::from_secs(600);
/// The pause after the first failure that counts; it doubles with each further one.
const PAUSE: Duration = Duration::from_secs(1);

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start it again after this pause.
    Again(Duration),
    /// Leave it down.
    StayDown,
}

/// The failures of one node that count.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    failures: VecDeque<Mono>,
}

impl Restarts {
    /// The node has failed now. `now` never goes back.
    pub(super) fn failed(&mut self, now: Mono) -> Verdict {
        while self.failures.front().is_some_and(|first| now.since(*first) >= WINDOW) {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let count = self.failures.len();
        if count >= FAILURES_MAX {
            return Verdict::StayDown;
        }
        Verdict::Again(PAUSE * (1 << (count - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(seconds))
    }

    fn again(seconds: u64) -> Verdict {
        Verdict::Again(Duration::from_secs(seconds))
    }

    #[test]
    fn the_third_failure_in_ten_minutes_leaves_a_node_down() {
        let mut restarts = Restarts::default();
        assert_eq!(restarts.failed(at(50)), again(1));
        assert_eq!(restarts.failed(at(51)), again(2));
        assert_eq!(restarts.failed(at(649)), Verdict::StayDown);
    }

    #[test]
    fn a_failure_counts_for_ten_minutes_and_no_longer() {
        let mut restarts = Restarts::default();
        assert_eq!(restarts.failed(at(0)), again(1));
        assert_eq!(restarts.failed(at(500)), again(2));
        // The first one is over.
        assert_eq!(restarts.failed(at(600)), again(2));
        assert_eq!(restarts.failed(at(1099)), Verdict::StayDown);
    }

    #[test]
    fn a_node_that_fails_now_and_then_is_started_for_ever() {
        let mut restarts = Restarts::default();
        for hour in 0..10_000 {
            assert_eq!(restarts.failed(at(hour * 3600)), again(1));
        }
        assert!(restarts.failures.len() <= FAILURES_MAX);
    }
}
