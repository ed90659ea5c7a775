//! What is typed: `cargo sim run`, `plan`, `sweep`, and the worker that the others start.
//!
//! Exit codes: 0 all is well; 1 a check, an invariant or a run failed; 2 the command was wrong; 3 two runs of one seed
//! differ; 4 the simulator itself could not go on; 5 a budget ended a sweep with runs left undone, and none of those done failed.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringdove::observe::Canary;
use sim::plan::Plan;
use sim::scenario::Scenario;

mod bench;
mod jobs;
mod run;
mod summary;
mod sweep;
mod twice;
mod worker;

pub(crate) const FAILED: u8 = 1;
pub(crate) const WRONG: u8 = 2;
pub(crate) const DIFFERS: u8 = 3;
pub(crate) const BROKEN: u8 = 4;
pub(crate) const UNDONE: u8 = 5;

/// Deterministic simulation of a ringdove cluster.
#[derive(Parser)]
#[command(name = "cargo sim", bin_name = "cargo sim", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play one seed or one plan; the last line is the hash of everything that happened.
    Run(run::Args),
    /// Print the fault plan of a seed, as JSON, for editing.
    Plan {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// What it is drawn for: `swarm`, `tcp`, `destroy`, `away`, `held`, `backup`, `wiped`, `rolling`, `members`, `defaults`.
        #[arg(long, default_value = "swarm")]
        scenario: Scenario,
    },
    /// Play many seeds in worker processes.
    Sweep(sweep::Args),
    /// Measure how fast the simulator is.
    Bench(bench::Args),
    /// Play what is asked for on standard input, one line of JSON each; for the other commands.
    #[command(hide = true)]
    Worker,
}

/// Prints a line. A reader that has seen enough (a closed pipe) is nothing to fail about.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Why a command ended without doing what it was asked, and its exit code.
pub(crate) struct Stop(pub(crate) u8, pub(crate) String);

/// Adds what was being done to an error.
pub(crate) fn because(code: u8, what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Stop {
    move |error| Stop(code, format!("{what}: {error}"))
}

fn canary(name: &str) -> Result<Canary, String> {
    let known = || Canary::ALL.map(Canary::name).join(", ");
    let found = Canary::ALL.into_iter().find(|canary| canary.name() == name);
    found.ok_or_else(|| format!("there is no canary of this name; there are: {}", known()))
}

/// The flag of a scenario, for the lines that replay something; nothing for the swarm.
pub(crate) fn of(scenario: Scenario) -> String {
    if scenario == Scenario::Swarm { String::new() } else { format!(" --scenario {scenario}") }
}

/// Reads a plan.
pub(crate) fn plan_of(path: &PathBuf) -> Result<Plan, Stop> {
    let text = std::fs::read_to_string(path).map_err(because(WRONG, path.display()))?;
    let plan: Plan =
        serde_json::from_str(&text).map_err(|error| Stop(WRONG, format!("{}: {error}", path.display())))?;
    plan.check().map_err(|why| Stop(WRONG, format!("{}: {why}", path.display())))?;
    Ok(plan)
}

pub(crate) fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Plan { seed, scenario } => {
            let text = serde_json::to_string_pretty(&Plan::draw_for(scenario, seed)).expect("a plan is JSON");
            say(text);
            Ok(0)
        }
        Command::Sweep(args) => sweep::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Worker => worker::run(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(Stop(code, why)) => {
            eprintln!("cargo sim: {why}");
            ExitCode::from(code)
        }
    }
}
