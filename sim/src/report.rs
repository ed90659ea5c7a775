//! What came of a run, and what runs add up to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The run's seed.
    pub seed: u64,
    /// The hash over all events, in hexadecimal: equal for equal runs.
    pub trace_hash: String,
    /// What is wrong; nothing when the run is clean.
    pub failures: Vec<Failure>,
    /// What the run counts for.
    pub tally: Tally,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Who says so: the name of a check or of an invariant, `convergence-in-time`, `bounds`, `panic`, `time-limit`, `determinism`.
    pub by: String,
    /// In words; of a check the first witness.
    pub what: String,
}

/// Counts of one run, or of many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Events of the traces.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Starts of nodes.
    pub starts: u64,
    /// Operations by name and outcome: `put ok`, `get fail`.
    pub operations: BTreeMap<String, u64>,
    /// Faults: how often set, how often they did something.
    pub faults: BTreeMap<String, [u64; 2]>,
    /// How often each probe was hit.
    pub probes: BTreeMap<String, u64>,
    /// Pairs that each check judged.
    pub judged: BTreeMap<String, u64>,
    /// Simulated time under load: from the first operation to the heal.
    pub load: Duration,
    /// How convergence went; of many runs, of the one that needed the largest part of its time.
    pub convergence: Option<Convergence>,
}

/// How long the cluster took from the heal on until its primaries were equal, no guest was left, and all had refilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convergence {
    /// So long; as long as the bound where it did not converge.
    pub taken: Duration,
    /// At most: computed from the settings.
    pub within: Duration,
}

impl Convergence {
    /// The part of its time that it needed.
    pub fn share(&self) -> f64 {
        self.taken.as_secs_f64() / self.within.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// The outcome of a write that nobody knows the outcome of.
pub const UNKNOWN: &str = "unknown";
/// The same, where the client's own links were cut meanwhile.
pub const UNKNOWN_CUT_OFF: &str = "unknown, cut off";
/// More unknown outcomes than this, in percent of all writes, and a sweep shows little: clients that know nothing claim
/// nothing. Those of clients that were cut off do not count.
pub const UNKNOWN_PERCENT_MAX: u64 = 30;

impl Tally {
    /// Writes, those of unknown outcome, and those of clients that were cut off.
    pub fn unknown(&self) -> (u64, u64, u64) {
        let reads = ["get ", "scan ", "whole read "];
        let writes =
            self.operations.iter().filter(|(name, _)| !reads.iter().any(|read| name.starts_with(read)));
        let all = writes.map(|(_, count)| count).sum();
        (all, self.with_outcome(UNKNOWN), self.with_outcome(UNKNOWN_CUT_OFF))
    }

    /// Whether too little is known of what came of the writes.
    pub fn knows_too_little(&self) -> bool {
        let (all, unknown, cut_off) = self.unknown();
        unknown * 100 > (all - cut_off) * UNKNOWN_PERCENT_MAX
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Tally) {
        self.runs += other.runs;
        self.events += other.events;
        self.simulated += other.simulated;
        self.starts += other.starts;
        self.load += other.load;
        let slower =
            other.convergence.filter(|of| self.convergence.is_none_or(|own| own.share() < of.share()));
        self.convergence = slower.or(self.convergence);
        for (of, to) in [
            (&other.operations, &mut self.operations),
            (&other.probes, &mut self.probes),
            (&other.judged, &mut self.judged),
        ] {
            for (name, count) in of {
                *to.entry(name.clone()).or_default() += count;
            }
        }
        for (name, [fired, effective]) in &other.faults {
            self.fault(name, *fired, *effective);
        }
    }

    /// Counts a fault.
    pub fn fault(&mut self, name: &str, fired: u64, effective: u64) {
        let [all, did] = self.faults.entry(name.to_owned()).or_default();
        *all += fired;
        *did += effective;
    }

    /// Counts how often a probe was hit; also 0.
    pub fn probe(&mut self, name: &str, hits: u64) {
        *self.probes.entry(name.to_owned()).or_default() += hits;
    }

    /// Operations with this outcome.
    pub fn with_outcome(&self, outcome: &str) -> u64 {
        let with = self
            .operations
            .iter()
            .filter(|(name, _)| name.strip_suffix(outcome).is_some_and(|operation| operation.ends_with(' ')));
        with.map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_three_in_ten_unknown_writes_are_too_many_and_cut_off_clients_do_not_count() {
        let tally = |ok, unknown, cut_off| {
            let mut tally = Tally::default();
            for (outcome, count) in
                [("put ok", ok), ("put unknown", unknown), ("put unknown, cut off", cut_off)]
            {
                tally.operations.insert(outcome.to_owned(), count);
            }
            // Reads are never unknown, and make nothing better.
            tally.operations.insert("get ok".to_owned(), 1_000);
            tally
        };
        assert_eq!(tally(70, 30, 5).unknown(), (105, 30, 5));
        assert!(!tally(70, 30, 0).knows_too_little());
        assert!(tally(69, 31, 0).knows_too_little());
        assert!(!tally(70, 30, 500).knows_too_little());
        assert!(tally(69, 31, 500).knows_too_little());
        assert!(!tally(0, 0, 10).knows_too_little());
    }
}
