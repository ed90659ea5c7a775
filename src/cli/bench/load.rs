//! The load itself: workers that read and write, and what they measure.
//!
//! ```text
//!   closed loop   each worker: ask ─ answer ─ ask ─ answer …            latency: from asking
//!   open loop     each worker takes the next place of the schedule      latency: from the moment in the schedule
//!                 0, 1/rate, 2/rate, … and waits for its moment
//! ```
//! In the open loop an operation that could not begin in time, because all workers were held up, counts its waiting:
//! a stall shows in as many operations as it delayed, as it does for users (no coordinated omission). A closed loop
//! asks less while the store is slow; its percentiles are those of its own clients and nobody else's.
//! Every operation has its time taken, whatever its outcome: a store that answers some at once and lets the others run into
//! their timeout is not a fast one.
//! Operations that begin during the warm-up are made and not measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt, SeedableRng};

use super::machine::micros;
use crate::cli::connect::outcome_of;
use crate::client::{Client, ClientError, ReadOptions, WriteOptions};
use crate::io::Clock;
use crate::types::Key;

/// Random bytes that values are cut from: nothing that compresses, and no work for each value.
const BLOCK_LEN: usize = 1024 * 1024;

/// What is loaded.
pub(super) trait Service: Clone + Send + Sync + 'static {
    /// Carries out one operation; the word for how it went.
    fn operation(
        &self,
        is_read: bool,
        chance: &mut ChaCha8Rng,
    ) -> impl Future<Output = Result<&'static str, ClientError>> + Send;
}

/// What to do.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Of all operations, how many are reads: 0 to 1.
    pub(super) reads: f64,
    pub(super) workers: usize,
    /// Operations a second, none for the closed loop.
    pub(super) rate: Option<f64>,
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

/// Times in microseconds, by the class of the outcome: `done`, or the word of the error.
#[derive(Default)]
pub(super) struct Times(BTreeMap<&'static str, Histogram<u64>>);

/// The class of what was answered as it was meant.
pub(super) const ANSWERED: &str = "done";

impl Times {
    fn enter(&mut self, class: &'static str, time: Duration) {
        self.0.entry(class).or_insert_with(histogram).saturating_record(micros(time).max(1));
    }

    fn add(&mut self, other: &Times) {
        for (class, times) in &other.0 {
            self.0.entry(class).or_insert_with(histogram).add(times).expect("all have the same bounds");
        }
    }

    /// Those of all outcomes together.
    pub(super) fn all(&self) -> Histogram<u64> {
        let mut all = histogram();
        for times in self.0.values() {
            all.add(times).expect("all have the same bounds");
        }
        all
    }

    /// By class, in the order of their words.
    pub(super) fn classes(&self) -> impl Iterator<Item = (&'static str, &Histogram<u64>)> {
        self.0.iter().map(|(class, times)| (*class, times))
    }

    fn count(&self, is_done: bool) -> u64 {
        self.classes()
            .filter(|(class, _)| (*class == ANSWERED) == is_done)
            .map(|(_, times)| times.len())
            .sum()
    }
}

/// What came of it.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) reads: Times,
    pub(super) writes: Times,
    /// By word, errors and findings alike.
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    /// The first error of each kind.
    pub(super) errors: BTreeMap<&'static str, String>,
    /// From the end of the warm-up to the last answer.
    pub(super) took: Duration,
}

/// 1 µs to 10 min at three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are sound")
}

impl Measured {
    fn add(&mut self, other: Measured) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        for (outcome, error) in other.errors {
            self.errors.entry(outcome).or_insert(error);
        }
        self.took = self.took.max(other.took);
    }

    /// Operations that were answered as they were meant.
    pub(super) fn done(&self) -> u64 {
        self.reads.count(true) + self.writes.count(true)
    }

    /// Operations that were not.
    pub(super) fn failed(&self) -> u64 {
        self.reads.count(false) + self.writes.count(false)
    }
}

/// The store, and which of its keys are read and written.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) client: Client,
    pub(super) keys: u64,
    pub(super) prefix: String,
    pub(super) value_len: usize,
    pub(super) block: Bytes,
    pub(super) read: ReadOptions,
    pub(super) write: WriteOptions,
}

impl Service for Store {
    async fn operation(&self, is_read: bool, chance: &mut ChaCha8Rng) -> Result<&'static str, ClientError> {
        let key = key(&self.prefix, chance.random_range(0..self.keys));
        if is_read {
            let reply = self.client.get(&key, &self.read).await?;
            return Ok(match reply.values.len() {
                0 => "absent",
                1 => "found",
                _ => "siblings",
            });
        }
        let value = value(&self.block, self.value_len, chance);
        let reply = self.client.put(&key, value, &self.write).await?;
        Ok(if reply.siblings.is_empty() { "written" } else { "written-beside-siblings" })
    }
}

/// The key of a number.
pub(super) fn key(prefix: &str, number: u64) -> Key {
    Key::new(format!("{prefix}{number:010}").into_bytes()).expect("the prefix was checked")
}

/// Random bytes to cut values from.
pub(super) fn block(seed: u64, value_len: usize) -> Bytes {
    let mut bytes = vec![0; BLOCK_LEN + value_len];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

/// A value out of the block.
pub(super) fn value(block: &Bytes, len: usize, chance: &mut ChaCha8Rng) -> Bytes {
    let from = chance.random_range(0..BLOCK_LEN);
    block.slice(from..from + len)
}

/// Runs the load; `begun` is called when the warm-up is over.
pub(super) async fn run(
    plan: Plan,
    service: impl Service,
    clock: Arc<dyn Clock>,
    begun: impl FnOnce() + Send + 'static,
) -> Measured {
    let next = Arc::new(AtomicU64::new(0));
    let start = clock.mono();
    let measure_from = start + plan.warm_up;
    let end = measure_from + plan.duration;
    let mut workers = Vec::with_capacity(plan.workers);
    for worker in 0..plan.workers {
        let chance = ChaCha8Rng::seed_from_u64(plan.seed.wrapping_add(1 + worker as u64));
        let (plan, service, clock, next) = (plan.clone(), service.clone(), clock.clone(), next.clone());
        let worker = Worker { plan, service, clock, next, chance, start, measure_from, end };
        workers.push(tokio::spawn(worker.work()));
    }
    clock.sleep_until(measure_from).await;
    begun();
    let mut all = Measured::default();
    for worker in workers {
        if let Ok(measured) = worker.await {
            all.add(measured);
        }
    }
    all
}

/// One client. Moments are those of its clock.
struct Worker<S> {
    plan: Plan,
    service: S,
    clock: Arc<dyn Clock>,
    next: Arc<AtomicU64>,
    chance: ChaCha8Rng,
    start: Duration,
    measure_from: Duration,
    end: Duration,
}

impl<S: Service> Worker<S> {
    async fn work(mut self) -> Measured {
        let mut measured = Measured::default();
        loop {
            let begin = self.moment().await;
            if begin >= self.end {
                return measured;
            }
            let is_read = self.plan.reads > 0.0 && self.chance.random_bool(self.plan.reads);
            let outcome = self.service.operation(is_read, &mut self.chance).await;
            let now = self.clock.mono();
            if begin < self.measure_from {
                continue;
            }
            measured.took = now.saturating_sub(self.measure_from);
            let (class, word) = match &outcome {
                Ok(word) => (ANSWERED, *word),
                Err(error) => (outcome_of(error), outcome_of(error)),
            };
            let times = if is_read { &mut measured.reads } else { &mut measured.writes };
            times.enter(class, now.saturating_sub(begin));
            *measured.outcomes.entry(word).or_default() += 1;
            if let Err(error) = outcome {
                measured.errors.entry(word).or_insert_with(|| error.to_string());
            }
        }
    }

    /// When the next operation begins, or should have begun.
    async fn moment(&self) -> Duration {
        let Some(rate) = self.plan.rate else { return self.clock.mono() };
        let place = self.next.fetch_add(1, Ordering::SeqCst);
        #[allow(clippy::cast_precision_loss)] // places of some hours at most
        let moment = self.start + Duration::from_secs_f64(place as f64 / rate);
        if moment < self.end {
            self.clock.sleep_until(moment).await;
        }
        moment
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::io::BoxFuture;

    const MS: Duration = Duration::from_millis(1);

    /// Time that passes when somebody sleeps or works.
    #[derive(Debug, Default)]
    struct Stepped(Mutex<Duration>);

    impl Stepped {
        fn pass(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }
    }

    impl Clock for Stepped {
        fn mono(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn wall(&self) -> Duration {
            self.mono()
        }

        fn sleep_until(&self, moment: Duration) -> BoxFuture<'static, ()> {
            let mut now = self.0.lock().unwrap();
            *now = moment.max(*now);
            Box::pin(std::future::ready(()))
        }
    }

    /// Answers after a millisecond; the hundredth operation takes a second, and fails if it shall.
    #[derive(Clone)]
    struct Stalls {
        clock: Arc<Stepped>,
        asked: Arc<AtomicU64>,
        fails: bool,
    }

    impl Service for Stalls {
        async fn operation(&self, _: bool, _: &mut ChaCha8Rng) -> Result<&'static str, ClientError> {
            if self.asked.fetch_add(1, Ordering::SeqCst) != 100 {
                self.clock.pass(MS);
                return Ok("written");
            }
            self.clock.pass(1000 * MS);
            if self.fails { Err(ClientError::Unknown("no answer".to_owned())) } else { Ok("written") }
        }
    }

    async fn measured(rate: Option<f64>, fails: bool) -> Measured {
        let clock = Arc::new(Stepped::default());
        let service = Stalls { clock: clock.clone(), asked: Arc::default(), fails };
        let (warm_up, duration) = (Duration::ZERO, 4000 * MS);
        run(Plan { reads: 0.0, workers: 1, rate, warm_up, duration, seed: 1 }, service, clock, || {}).await
    }

    fn slower_than(times: &Histogram<u64>, time: Duration) -> u64 {
        times.len() - times.count_between(0, micros(time))
    }

    #[tokio::test]
    async fn an_open_loop_counts_the_waiting_of_all_that_a_stall_delays() {
        let measured = measured(Some(100.0), false).await;
        let times = measured.writes.all();
        assert_eq!((times.len(), measured.done()), (400, 400), "as many as the clock said");
        // A stall of a second at 100/s delays some hundred operations, half of them by more than half of it.
        let late = slower_than(&times, 500 * MS);
        assert!((45..=60).contains(&late), "{late} later than 500 ms");
        assert!(times.value_at_percentile(99.0) > 800_000);
    }

    #[tokio::test]
    async fn a_closed_loop_sees_a_stall_once() {
        let measured = measured(None, false).await;
        assert_eq!(slower_than(&measured.writes.all(), 500 * MS), 1);
    }

    #[tokio::test]
    async fn a_failed_operation_has_its_time_among_the_others_and_a_row_of_its_own() {
        let measured = measured(None, true).await;
        assert_eq!(measured.failed(), 1);
        assert_eq!(measured.writes.all().max() / 1_000_000, 1);
        let classes: Vec<(&str, u64)> =
            measured.writes.classes().map(|(class, times)| (class, times.len())).collect();
        assert_eq!(classes, [(ANSWERED, measured.done()), ("unknown", 1)]);
        assert_eq!(measured.outcomes["unknown"], 1);
        assert!(measured.errors["unknown"].contains("no answer"));
    }
}
