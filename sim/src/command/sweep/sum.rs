//! What a sweep adds up to, and its verdict.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use sim::catalogue;
use sim::report::{Failure, Tally};
use sim::scenario::Scenario;

use super::super::{DIFFERS, FAILED, UNDONE, say, summary};
use super::{DETERMINISM, Done, Item};

/// The counts, and the failures.
#[derive(Default, Serialize)]
pub(super) struct Sum {
    tally: Tally,
    /// The same of the seeds of each scenario: what is demanded of a scenario neither another one nor the corpus brings about.
    by_scenario: BTreeMap<Scenario, Tally>,
    failures: Vec<Failed>,
    pub(super) twice: u64,
    #[serde(skip)]
    cpu: Vec<Duration>,
    #[serde(skip)]
    names: Vec<(String, Option<String>, Duration)>,
}

#[derive(Clone, Serialize)]
struct Failed {
    name: String,
    failures: Vec<Failure>,
    replay: String,
}

impl Sum {
    pub(super) fn runs(&self) -> u64 {
        self.tally.runs
    }

    pub(super) fn simulated(&self) -> Duration {
        self.tally.simulated
    }

    pub(super) fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Adds one run.
    pub(super) fn add(&mut self, done: &Done, canary: Option<&str>) {
        let Done { item, report, cpu, twice } = done;
        self.tally.add(&report.tally);
        if let Item::Seed(scenario, _) = item {
            self.by_scenario.entry(*scenario).or_default().add(&report.tally);
        }
        self.cpu.push(*cpu);
        self.twice += u64::from(*twice);
        let why = report.failures.first().map(|failure| format!("{}: {}", failure.by, failure.what));
        self.names.push((item.name(), why, *cpu));
        if !report.failures.is_empty() {
            self.failures.push(Failed {
                name: item.name(),
                failures: report.failures.clone(),
                replay: item.again(&report.failures, canary),
            });
        }
    }

    /// What each scenario was to meet and did not.
    fn unmet(&self) -> Vec<String> {
        let of = |(scenario, tally): (&Scenario, &Tally)| {
            let unmet = catalogue::unmet(*scenario, tally);
            unmet.into_iter().map(move |what| format!("{scenario}: {what}")).collect::<Vec<_>>()
        };
        self.by_scenario.iter().flat_map(of).collect()
    }

    /// Says all of it; the exit code.
    pub(super) fn report(&self, took: Duration, left: usize, is_strict: bool) -> u8 {
        let mut cpu = self.cpu.clone();
        cpu.sort();
        let at = |percent: usize| {
            cpu.get((cpu.len().saturating_sub(1)) * percent / 100).copied().unwrap_or_default()
        };
        let _ = write!(std::io::stdout(), "{}", summary::screen(None, &self.tally));
        say(format!(
            "{} runs, {} of them twice, {:.0} s; CPU for a run: median {:.2} s, p99 {:.2} s",
            self.tally.runs,
            self.twice,
            took.as_secs_f64(),
            at(50).as_secs_f64(),
            at(99).as_secs_f64()
        ));
        let mut by: BTreeMap<&str, u64> = BTreeMap::new();
        for failure in self.failures.iter().flat_map(|failed| failed.failures.first()) {
            *by.entry(&failure.by).or_default() += 1;
        }
        for failed in &self.failures {
            let first = failed.failures.first().map(|failure| failure.by.as_str()).unwrap_or_default();
            say(format!("FAILED {} ({first}): {}", failed.name, failed.replay));
        }
        if left > 0 {
            say(format!("{left} runs are left undone; the same command with --resume goes on"));
        }
        if !self.failures.is_empty() {
            let words: Vec<String> = by.iter().map(|(by, count)| format!("{by} {count}")).collect();
            say(format!("{} runs failed: {}", self.failures.len(), words.join(", ")));
            return if by.contains_key(DETERMINISM) { DIFFERS } else { FAILED };
        }
        if self.tally.knows_too_little() {
            say(
                "too little is known: more writes than may be had an unknown outcome although their clients were not cut off",
            );
            return FAILED;
        }
        if left > 0 {
            // What is left may fail, and may be all that a strict sweep was to meet.
            say("incomplete: none of the runs that were done failed");
            return UNDONE;
        }
        let unmet = if is_strict { self.unmet() } else { Vec::new() };
        if !unmet.is_empty() {
            say(format!("over the whole sweep\n  {}", unmet.join("\n  ")));
            return FAILED;
        }
        say("clean");
        0
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a sum is JSON") + "\n"
    }

    pub(super) fn junit(&self) -> String {
        let escape = |text: &str| {
            let mut safe = String::new();
            for c in text.chars() {
                match c {
                    '&' => safe.push_str("&amp;"),
                    '<' => safe.push_str("&lt;"),
                    '>' => safe.push_str("&gt;"),
                    '"' => safe.push_str("&quot;"),
                    c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
                    c => safe.push(c),
                }
            }
            safe
        };
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        text += &format!(
            "<testsuite name=\"sim\" tests=\"{}\" failures=\"{}\">\n",
            self.names.len(),
            self.failures.len()
        );
        for (name, why, cpu) in &self.names {
            text += &format!(
                "  <testcase classname=\"sim\" name=\"{}\" time=\"{:.3}\"",
                escape(name),
                cpu.as_secs_f64()
            );
            match why {
                None => text += "/>\n",
                Some(why) => {
                    text += &format!(">\n    <failure message=\"{}\"/>\n  </testcase>\n", escape(why));
                }
            }
        }
        text + "</testsuite>\n"
    }
}
