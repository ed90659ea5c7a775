//! All checks by name, for whoever runs several: the command, a simulator's report.

use crate::history::History;
use crate::linearizability::{self, Model};
use crate::pasts::Options;
use crate::verdict::Verdict;
use crate::{
    causal, convergence, counter, durability, frontier, monotonic_writes, read_your_writes, regular,
    resurrection, set, set_full, staleness, thin_air, writes_follow_reads,
};

/// Something that judges a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// One of the checks of stores, by name.
    Named(&'static str),
    /// Linearizability by a model.
    Model(Model),
}

/// The checks that are no models, in the order in which they are best read: what is wrong in an earlier one is often
/// the cause of what is wrong in a later.
pub const NAMES: [&str; 12] = [
    "thin-air",
    "frontier",
    "durability",
    "convergence",
    "resurrection",
    "regular",
    "read-your-writes",
    "monotonic-writes",
    "writes-follow-reads",
    "set",
    "set-full",
    "counter",
];

/// What is measured, and fails nothing unless it is asked for as a check.
pub const MEASURED: [&str; 2] = ["monotonic-reads", "causal"];

impl Check {
    /// The check of this name.
    pub fn of(name: &str) -> Option<Check> {
        let model = Model::ALL.into_iter().find(|model| model.name() == name).map(Check::Model);
        model.or_else(|| {
            NAMES.iter().chain(&MEASURED).find(|known| **known == name).map(|known| Check::Named(known))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Check::Named(name) => name,
            Check::Model(model) => model.name(),
        }
    }

    /// Judges a history. With the verdict comes what it does not cover, if anything.
    pub fn run(self, history: &History, options: &Options) -> (Verdict, Option<String>) {
        let name = match self {
            Check::Model(model) => return (linearizability::check(history, model, options), None),
            Check::Named(name) => name,
        };
        let verdict = match name {
            "thin-air" => thin_air::check(history, options),
            "frontier" => {
                let report = frontier::check(history, options);
                let note = match report.claiming_reads {
                    0 => {
                        "no read makes claims: only thin air and overwritten siblings were judged".to_owned()
                    }
                    reads => format!("{reads} reads make claims"),
                };
                return (report.verdict, Some(note));
            }
            "durability" => durability::check(history, options),
            "convergence" => convergence::check(history, options),
            "resurrection" => resurrection::check(history, options),
            "regular" => regular::check(history, options),
            "read-your-writes" => read_your_writes::check(history, options),
            "monotonic-writes" => monotonic_writes::check(history, options),
            "writes-follow-reads" => writes_follow_reads::check(history, options),
            "set" => set::check(history, options),
            "set-full" => {
                let report = set_full::check(history, options);
                return (report.verdict, Some(format!("{} elements stale", report.stale)));
            }
            "counter" => counter::check(history, options),
            "monotonic-reads" => return (staleness::measure(history, options).monotonic_reads(), None),
            "causal" => {
                let causal::Report { cc, ccv, cm } = causal::check(history, options);
                let note = format!("convergent (CCv): {}; memory (CM): {}", ccv.word(), cm.word());
                return (cc, Some(note));
            }
            name => Verdict::Unknown { reason: format!("there is no check {name}") },
        };
        (verdict, None)
    }
}
