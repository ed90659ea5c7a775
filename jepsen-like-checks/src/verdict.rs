//! What a check found, in words and as JSON.

use std::fmt;

use serde_json::json;

use crate::history::{History, NONE};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong in this many judged pairs, at least one.
    Valid {
        /// Pairs of operations whose precondition held. Each check's page says which pairs those are.
        judged: u64,
    },
    /// At least one thing is wrong.
    Invalid {
        /// Pairs that were judged.
        judged: u64,
        /// Pairs that are wrong.
        violations: u64,
        /// The smallest that was found.
        witness: Witness,
    },
    /// No pair was judged, or a budget ran out. Never to be taken for valid.
    Unknown {
        /// Which of the two.
        reason: String,
    },
}

/// A counterexample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// In words.
    pub text: String,
    /// The operations that it names, in [`History::ops`].
    pub ops: Vec<u32>,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Verdict {
    /// What to say where no pair was judged.
    pub const NOTHING_JUDGED: &str = "no pair of operations meets the precondition";

    /// `valid`, `invalid` or `unknown`.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Valid { .. } => "valid",
            Verdict::Invalid { .. } => "invalid",
            Verdict::Unknown { .. } => "unknown",
        }
    }

    /// Pairs that were judged.
    pub fn judged(&self) -> u64 {
        match self {
            Verdict::Valid { judged } | Verdict::Invalid { judged, .. } => *judged,
            Verdict::Unknown { .. } => 0,
        }
    }

    /// The verdict as a JSON object, with the witness's operations by process and index.
    pub fn to_json(&self, history: &History) -> serde_json::Value {
        match self {
            Verdict::Valid { judged } => json!({ "verdict": "valid", "judged": judged }),
            Verdict::Unknown { reason } => json!({ "verdict": "unknown", "reason": reason }),
            Verdict::Invalid { judged, violations, witness } => {
                let ops = witness.ops.iter().map(|at| {
                    let op = &history.ops[*at as usize];
                    json!({
                        "process": history.processes.name(op.process),
                        "f": op.f.name(),
                        "key": history.keys.name(op.key),
                        "id": (op.id != NONE).then(|| history.ids.name(op.id)),
                        "invoke": history.index(op.invoke),
                        "complete": (op.complete != NONE).then(|| history.index(op.complete)),
                    })
                });
                json!({
                    "verdict": "invalid",
                    "judged": judged,
                    "violations": violations,
                    "witness": { "text": witness.text, "operations": ops.collect::<Vec<_>>() },
                })
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Valid { judged } => write!(f, "valid, {judged} judged"),
            Verdict::Invalid { judged, violations, witness } => {
                write!(f, "INVALID, {violations} of {judged} judged: {witness}")
            }
            Verdict::Unknown { reason } => write!(f, "unknown: {reason}"),
        }
    }
}

/// Collects what a check finds and keeps the earliest counterexample.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) judged: u64,
    violations: u64,
    /// Where the earliest ends, and what it is.
    first: Option<(u32, Witness)>,
    ran_out: Option<String>,
}

impl Findings {
    /// Nothing found yet in so many.
    pub(crate) fn judging(judged: u64) -> Self {
        Findings { judged, ..Findings::default() }
    }

    /// A violation that is complete at `position`.
    pub(crate) fn violation(&mut self, position: u32, witness: impl FnOnce() -> Witness) {
        self.violations += 1;
        if self.first.as_ref().is_none_or(|(first, _)| position < *first) {
            self.first = Some((position, witness()));
        }
    }

    /// A budget ran out: what was not found proves nothing any more.
    pub(crate) fn ran_out(&mut self, reason: String) {
        self.ran_out.get_or_insert(reason);
    }

    pub(crate) fn verdict(self) -> Verdict {
        let Findings { judged, violations, first, ran_out } = self;
        match (first, ran_out) {
            (Some((_, witness)), _) => Verdict::Invalid { judged, violations, witness },
            (None, Some(reason)) => Verdict::Unknown { reason },
            (None, None) if judged == 0 => Verdict::Unknown { reason: Verdict::NOTHING_JUDGED.to_owned() },
            (None, None) => Verdict::Valid { judged },
        }
    }
}
