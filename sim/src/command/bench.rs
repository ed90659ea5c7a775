//! `cargo sim bench`: how fast the simulator is, in simulated seconds for a second of processor time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args as Flags;
use sim::plan::{Action, Entry, Plan};
use sim::play::{Options, play};
use sim::report::Report;
use sim::settings::{Mix, RunSettings};

use super::worker::cpu_time;
use super::{FAILED, Stop, WRONG, say};

/// How often a start is measured.
const STARTS: usize = 20;

#[derive(Flags)]
pub(crate) struct Args {
    /// How many seeds of the default swarm.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
}

fn timed(plan: &Plan) -> Result<(Report, Duration), Stop> {
    let before = cpu_time();
    let played = play(plan, Options::default()).map_err(|why| Stop(FAILED, why))?;
    Ok((played.report, cpu_time().saturating_sub(before)))
}

/// Processor time from nothing to five nodes that serve, the median of some runs.
fn start_up() -> Result<Duration, Stop> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let (before, taken) = (cpu_time(), Arc::new(Mutex::new(Duration::MAX)));
        let of_run = taken.clone();
        let note = move || *of_run.lock().expect("no panic") = cpu_time().saturating_sub(before);
        let options = Options { on_started: Some(Box::new(note)), ..Options::default() };
        play(&idle(1), options).map_err(|why| Stop(FAILED, why))?;
        times.push(*taken.lock().expect("no panic"));
    }
    times.sort();
    Ok(times[STARTS / 2])
}

/// Five nodes, three replicas, the sizes of the default swarm's middle.
fn five(clients: u32, operations: u32) -> RunSettings {
    RunSettings {
        nodes: 5,
        replicas: 3,
        partitions: 16,
        w: 2,
        r: 2,
        own_quorums: false,
        strict: true,
        interval_ms: 0,
        clients,
        operations,
        keys: 100,
        pause_us: 100_000,
        timeout_ms: 1_500,
        value_len_max: 400,
        mix: Mix { get: 5, put: 5, ..Mix::default() },
        // The product's defaults: the swarm's are short, so that each mechanism takes place in a run of seconds.
        gossip_ms: 1_000,
        handoff_ms: 1_000,
        anti_entropy_ms: 30_000,
        scrub_ms: 7 * 24 * 3_600_000,
        reap_ms: 60_000,
        grace_ms: 3_600_000,
        buggify: Vec::new(),
        ..RunSettings::draw(1)
    }
}

/// Only time passes.
fn idle(seconds: u64) -> Plan {
    let mut plan = Plan::of(1, RunSettings { keys: 1, ..five(1, 0) });
    plan.entries =
        vec![Entry { at_ms: Some(seconds * 1_000), when: None, why: None, action: Action::HealNet }];
    plan
}

fn rate(what: &str, report: &Report, cpu: Duration, mark: u64) {
    let simulated = report.tally.simulated.as_secs_f64();
    say(format!(
        "{what:<48} {simulated:>8.1} simulated s in {:>7.3} CPU s: {:>7.0} a CPU second (mark {mark})",
        cpu.as_secs_f64(),
        simulated / cpu.as_secs_f64().max(1e-9)
    ));
}

pub(crate) fn run(args: &Args) -> Result<u8, Stop> {
    let (_, empty) = timed(&idle(1))?;
    let (report, all) = timed(&idle(3_600))?;
    rate("5 idle nodes", &report, all.saturating_sub(empty), 3_000);
    say(format!(
        "{:<48} {:>8.1} ms of CPU (mark 5); {:.1} with an idle second, the rest at the end and the checks",
        format!("start-up of 5 nodes, median of {STARTS}"),
        start_up()?.as_secs_f64() * 1e3,
        empty.as_secs_f64() * 1e3
    ));
    // 10 clients, each 20 operations a second.
    let (report, cpu) = timed(&Plan::of(3, five(10, 1_200)))?;
    let operations: u64 = report.tally.operations.values().sum();
    rate(&format!("5 nodes, {operations} operations at 200/s, faults"), &report, cpu, 100);
    let mut times = Vec::new();
    for seed in 0..args.seeds {
        let (report, cpu) = timed(&Plan::draw(seed))?;
        if !report.failures.is_empty() {
            return Err(Stop(FAILED, format!("seed {seed} fails: a bench of what is broken says nothing")));
        }
        times.push(cpu);
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64();
    if times.is_empty() {
        return Err(Stop(WRONG, "no seeds".to_owned()));
    }
    say(format!(
        "{:<48} median {:.2} CPU s, p99 {:.2} (marks 0.6 and 3)",
        format!("{} default seeds, checks included", args.seeds),
        at(50),
        at(99)
    ));
    Ok(0)
}
