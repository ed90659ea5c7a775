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
    /// Who says so: the name of a check or of an invariant, `convergence-in-time`, `panic`, `time-limit`, `determinism`.
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
}

impl Tally {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Tally) {
        self.runs += other.runs;
        self.events += other.events;
        self.simulated += other.simulated;
        self.starts += other.starts;
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
        let with = self.operations.iter().filter(|(name, _)| name.ends_with(outcome));
        with.map(|(_, count)| count).sum()
    }
}
