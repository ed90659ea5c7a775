//! What is counted: numbers that only grow, and numbers by size.
//!
//! Atomics alone: counting never waits and never allocates. Nothing here reads a clock; who measures brings the
//! duration. Nothing here has a name either: whoever shows the numbers gives them theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// This many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets, in microseconds; a last bucket takes what is above.
pub const LATENCY_BOUNDS_US: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];
/// Upper bounds of the buckets of small counts; a last bucket takes what is above.
pub const COUNT_BOUNDS: [u64; 17] = [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 75, 100, 200, 500];

/// Numbers by size, in buckets with fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64; 17],
    buckets: [AtomicU64; 18],
    sum: AtomicU64,
}

impl Histogram {
    /// Empty, with these bounds, ascending.
    pub fn new(bounds: &'static [u64; 17]) -> Histogram {
        Histogram { bounds, buckets: Default::default(), sum: AtomicU64::new(0) }
    }

    /// Of durations, in microseconds.
    pub fn of_latency() -> Histogram {
        Histogram::new(&LATENCY_BOUNDS_US)
    }

    /// Of small counts.
    pub fn of_counts() -> Histogram {
        Histogram::new(&COUNT_BOUNDS)
    }

    /// Enters a number.
    pub fn enter(&self, number: u64) {
        let at = self.bounds.partition_point(|bound| *bound < number);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(number, Ordering::Relaxed);
    }

    /// Enters a duration, in whole microseconds.
    pub fn enter_time(&self, time: Duration) {
        self.enter(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// The upper bounds of all buckets but the last, ascending.
    pub fn bounds(&self) -> &'static [u64] {
        self.bounds
    }

    /// How many numbers lie in each bucket; one more than bounds.
    pub fn buckets(&self) -> Vec<u64> {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect()
    }

    /// How many numbers were entered.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The sum of all of them.
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_on_a_bound_belongs_below_it_and_the_largest_have_a_bucket() {
        let histogram = Histogram::of_latency();
        for number in [0, 100, 101, 30_000_000, 30_000_001, 1 << 40] {
            histogram.enter(number);
        }
        let buckets = histogram.buckets();
        assert_eq!((buckets[0], buckets[1], buckets[16], buckets[17]), (2, 1, 1, 2));
        assert_eq!(histogram.count(), 6);
    }
}
