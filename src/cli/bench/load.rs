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
//! Operations that begin during the warm-up are made and not measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt, SeedableRng};

use super::machine::micros;
use crate::cli::connect::outcome_of;
use crate::client::{Client, ClientError, ReadOptions, WriteOptions};
use crate::types::Key;

/// Random bytes that values are cut from: nothing that compresses, and no work for each value.
const BLOCK_LEN: usize = 1024 * 1024;

/// What to do.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) client: Client,
    /// Of all operations, how many are reads: 0 to 1.
    pub(super) reads: f64,
    pub(super) keys: u64,
    pub(super) prefix: String,
    pub(super) value_len: usize,
    pub(super) workers: usize,
    /// Operations a second, none for the closed loop.
    pub(super) rate: Option<f64>,
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
    pub(super) read: ReadOptions,
    pub(super) write: WriteOptions,
    pub(super) seed: u64,
}

/// What came of it.
pub(super) struct Measured {
    /// Microseconds.
    pub(super) reads: Histogram<u64>,
    pub(super) writes: Histogram<u64>,
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
    fn new() -> Measured {
        Measured {
            reads: histogram(),
            writes: histogram(),
            outcomes: BTreeMap::new(),
            errors: BTreeMap::new(),
            took: Duration::ZERO,
        }
    }

    fn add(&mut self, other: Measured) {
        self.reads.add(&other.reads).expect("all have the same bounds");
        self.writes.add(&other.writes).expect("all have the same bounds");
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
        self.reads.len() + self.writes.len()
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
pub(super) async fn run(plan: Plan, begun: impl FnOnce() + Send + 'static) -> Measured {
    let next = Arc::new(AtomicU64::new(0));
    let block = block(plan.seed, plan.value_len);
    #[allow(clippy::disallowed_methods)] // not node code: it measures real time
    let start = Instant::now();
    let measure_from = start + plan.warm_up;
    let end = measure_from + plan.duration;
    let mut workers = Vec::with_capacity(plan.workers);
    for worker in 0..plan.workers {
        let (plan, next, block) = (plan.clone(), next.clone(), block.clone());
        let seed = plan.seed.wrapping_add(1 + worker as u64);
        workers.push(tokio::spawn(async move {
            let chance = ChaCha8Rng::seed_from_u64(seed);
            let worker = Worker { plan, next, block, chance, start, measure_from, end };
            worker.work().await
        }));
    }
    #[allow(clippy::disallowed_methods)] // not node code
    tokio::time::sleep_until(measure_from.into()).await;
    begun();
    let mut all = Measured::new();
    for worker in workers {
        if let Ok(measured) = worker.await {
            all.add(measured);
        }
    }
    all
}

struct Worker {
    plan: Plan,
    next: Arc<AtomicU64>,
    block: Bytes,
    chance: ChaCha8Rng,
    start: Instant,
    measure_from: Instant,
    end: Instant,
}

#[allow(clippy::disallowed_methods)] // not node code: it measures real time
impl Worker {
    async fn work(mut self) -> Measured {
        let mut measured = Measured::new();
        loop {
            let begin = self.moment().await;
            if begin >= self.end {
                return measured;
            }
            let is_read = self.plan.reads > 0.0 && self.chance.random_bool(self.plan.reads);
            let outcome = self.operation(is_read).await;
            let now = Instant::now();
            if begin < self.measure_from {
                continue;
            }
            measured.took = now - self.measure_from;
            match outcome {
                Ok(word) => {
                    let times = if is_read { &mut measured.reads } else { &mut measured.writes };
                    times.saturating_record(micros(now - begin).max(1));
                    *measured.outcomes.entry(word).or_default() += 1;
                }
                Err(error) => {
                    let word = outcome_of(&error);
                    *measured.outcomes.entry(word).or_default() += 1;
                    measured.errors.entry(word).or_insert_with(|| error.to_string());
                }
            }
        }
    }

    /// When the next operation begins, or should have begun.
    async fn moment(&self) -> Instant {
        let Some(rate) = self.plan.rate else { return Instant::now() };
        let place = self.next.fetch_add(1, Ordering::SeqCst);
        #[allow(clippy::cast_precision_loss)] // places of some hours at most
        let moment = self.start + Duration::from_secs_f64(place as f64 / rate);
        if moment < self.end {
            tokio::time::sleep_until(moment.into()).await;
        }
        moment
    }

    async fn operation(&mut self, is_read: bool) -> Result<&'static str, ClientError> {
        let Plan { client, prefix, keys, value_len, read, write, .. } = &self.plan;
        let key = key(prefix, self.chance.random_range(0..*keys));
        if is_read {
            let reply = client.get(&key, read).await?;
            return Ok(match reply.values.len() {
                0 => "absent",
                1 => "found",
                _ => "siblings",
            });
        }
        let value = value(&self.block, *value_len, &mut self.chance);
        let reply = client.put(&key, value, write).await?;
        Ok(if reply.siblings.is_empty() { "written" } else { "written-beside-siblings" })
    }
}
