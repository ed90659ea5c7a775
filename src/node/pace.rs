//! How fast a busy node gets its work done, and so how long a request that comes now would wait.
//!
//! By Little's law a request that finds so many others in flight is done after about that many times the mean time
//! between two completions. That time says what the node *can* do only while it has enough to do, so it is measured
//! over windows in which at least [`BUSY`] operations were in flight all the time, and forgotten when they are fewer:
//! a node with a few slow requests is not overloaded, and nothing is turned away for what its replicas' slowness
//! says. The rate is averaged, not the time, so that one window in which the disk stalled does not outweigh those
//! around it.
//!
//! Source: the admission by estimated queueing delay that Little (1961) allows and that staged servers use (Welsh,
//! Culler, 2003). Absent: clocks, waiting, any judgement of single operations: a batch is one.

use std::time::Duration;

use crate::types::Mono;

/// With fewer in flight nobody is turned away, and nothing is learned.
pub(super) const BUSY: u64 = 64;
/// A rate is taken over at least this long.
const WINDOW: Duration = Duration::from_millis(100);
/// Share of the newest window in the average: one in so many.
const NEWEST: f64 = 0.25;

/// The pace of the last windows.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    /// When the window began, and what was done in it.
    window: Option<(Mono, u32)>,
    per_second: Option<f64>,
}

impl Pace {
    /// An operation is done; so many others are still in flight.
    pub(super) fn done(&mut self, now: Mono, in_flight: u64) {
        if in_flight < BUSY {
            *self = Pace::default();
            return;
        }
        let (began, done) = self.window.get_or_insert((now, 0));
        let took = now.since(*began);
        if took.is_zero() {
            return;
        }
        *done = done.saturating_add(1);
        if took >= WINDOW {
            let newest = f64::from(*done) / took.as_secs_f64();
            let average = self.per_second.map_or(newest, |before| before + (newest - before) * NEWEST);
            self.per_second = Some(average);
            self.window = Some((now, 0));
        }
    }

    /// How long until a request is done that comes while so many are in flight; none when that is not known.
    pub(super) fn wait(&self, in_flight: u64) -> Option<Duration> {
        let per_second = self.per_second.filter(|_| in_flight >= BUSY)?;
        #[allow(clippy::cast_precision_loss)] // an estimate, of at most a million
        let seconds = in_flight as f64 / per_second;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::default() + Duration::from_millis(ms)
    }

    /// One operation done every `ms`, from `from` on, for a second.
    fn second(pace: &mut Pace, from: u64, ms: usize, in_flight: u64) {
        for now in (from..=from + 1000).step_by(ms) {
            pace.done(at(now), in_flight);
        }
    }

    #[test]
    fn a_busy_node_knows_how_long_a_newcomer_waits() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait(4000), None, "nothing was done yet");
        second(&mut pace, 0, 2, 500);
        assert_eq!(pace.wait(1000), Some(Duration::from_secs(2)));
        assert_eq!(pace.wait(BUSY - 1), None);
        // It becomes ten times as slow.
        for from in 1..4 {
            second(&mut pace, from * 1001, 20, 500);
        }
        let wait = pace.wait(1000).unwrap();
        assert!((Duration::from_secs(18)..Duration::from_secs(21)).contains(&wait), "{wait:?}");
    }

    #[test]
    fn a_node_with_little_to_do_learns_nothing_and_forgets() {
        let mut pace = Pace::default();
        second(&mut pace, 0, 100, BUSY - 1);
        assert_eq!(pace.wait(4000), None, "a few slow requests are no overload");
        second(&mut pace, 2000, 2, BUSY);
        assert!(pace.wait(4000).is_some());
        pace.done(at(4000), BUSY - 1);
        assert_eq!(pace.wait(4000), None);
    }

    #[test]
    fn one_stall_is_not_taken_for_the_pace() {
        let mut pace = Pace::default();
        second(&mut pace, 0, 1, 500);
        // Five seconds without a completion, and the one that ended it.
        pace.done(at(6000), 500);
        let wait = pace.wait(1000).unwrap();
        assert!((Duration::from_secs(1)..Duration::from_millis(1400)).contains(&wait), "{wait:?}");
    }

    #[test]
    fn completions_of_one_moment_are_no_infinite_pace() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.done(at(5), 500);
        }
        assert_eq!(pace.wait(1000), None);
        pace.done(at(105), 500);
        assert_eq!(pace.wait(1000), Some(Duration::from_secs(100)));
    }
}
