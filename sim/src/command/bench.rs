//! `cargo sim bench`: how fast the simulator is, in simulated seconds for a second of processor time.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args as Flags;
use sim::plan::{Action, Entry, Plan};
use sim::play::{Options, Phase, play};
use sim::report::Report;
use sim::settings::{Mix, RunSettings};

use super::worker::cpu_time;
use super::{FAILED, Stop, say};

/// How often a start is measured.
const STARTS: usize = 20;

#[derive(Flags)]
pub(crate) struct Args {
    /// How many seeds of the default swarm.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
}

/// What a run came to, and what it took.
struct Timed {
    report: Report,
    /// Checks included.
    all: Duration,
    /// From nothing to nodes that serve.
    start: Duration,
    /// From the first operation to the heal.
    load: Duration,
}

fn timed(plan: &Plan) -> Result<Timed, Stop> {
    let phases: Arc<Mutex<Vec<(Phase, Duration)>>> = Arc::default();
    let of_run = phases.clone();
    let begin = cpu_time();
    let note = move |phase| of_run.lock().expect("no panic").push((phase, cpu_time()));
    let options = Options { on_phase: Some(Box::new(note)), ..Options::default() };
    let played = play(plan, options).map_err(|why| Stop(FAILED, why))?;
    let end = cpu_time();
    let phases = phases.lock().expect("no panic");
    let at = |phase| phases.iter().find(|(of, _)| *of == phase).map_or(end, |(_, at)| *at);
    let (load, heal) = (at(Phase::Load), at(Phase::Heal));
    Ok(Timed {
        report: played.report,
        all: end.saturating_sub(begin),
        start: load.saturating_sub(begin),
        load: heal.saturating_sub(load),
    })
}

/// Processor time from nothing to five nodes that serve, the median of some runs.
fn start_up() -> Result<Duration, Stop> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        times.push(timed(&idle(1))?.start);
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

/// What is asked of a default seed: operations, and seconds under faults.
const OPERATIONS: RangeInclusive<u64> = 2_000..=5_000;
const SECONDS: RangeInclusive<u64> = 20..=40;

fn is_of_the_size(report: &Report) -> bool {
    let operations: u64 = report.tally.operations.values().sum();
    OPERATIONS.contains(&operations) && SECONDS.contains(&report.tally.load.as_secs())
}

fn rate(what: &str, timed: &Timed, mark: u64) {
    let (simulated, cpu) = (timed.report.tally.load.as_secs_f64(), timed.load);
    say(format!(
        "{what:<48} {simulated:>8.1} simulated s in {:>7.3} CPU s: {:>7.0} a CPU second (mark {mark})",
        cpu.as_secs_f64(),
        simulated / cpu.as_secs_f64().max(1e-9)
    ));
}

/// The median and the 99th percentile.
fn percentiles(times: &mut [Duration]) -> Option<(f64, f64)> {
    times.sort();
    let last = times.len().checked_sub(1)?;
    let at = |percent: usize| times[last * percent / 100].as_secs_f64();
    Some((at(50), at(99)))
}

pub(crate) fn run(args: &Args) -> Result<u8, Stop> {
    let empty = timed(&idle(1))?.all;
    // What is idle is the time before the heal, when no client asks for anything.
    rate("5 idle nodes", &timed(&idle(3_600))?, 3_000);
    say(format!(
        "{:<48} {:>8.1} ms of CPU (mark 5); {:.1} with an idle second, the rest at the end and the checks",
        format!("start-up of 5 nodes, median of {STARTS}"),
        start_up()?.as_secs_f64() * 1e3,
        empty.as_secs_f64() * 1e3
    ));
    // 10 clients, each 20 operations a second.
    let loaded = timed(&Plan::of(3, five(10, 1_200)))?;
    let operations: u64 = loaded.report.tally.operations.values().sum();
    let a_second = operations as f64 / loaded.report.tally.load.as_secs_f64().max(1e-9);
    rate(&format!("5 nodes, {operations} operations at {a_second:.0}/s, faults"), &loaded, 100);
    let (mut times, mut of_the_size) = (Vec::new(), Vec::new());
    for seed in 0..args.seeds {
        let Timed { report, all: cpu, .. } = timed(&Plan::draw(seed))?;
        if !report.failures.is_empty() {
            return Err(Stop(FAILED, format!("seed {seed} fails: a bench of what is broken says nothing")));
        }
        times.push(cpu);
        if is_of_the_size(&report) {
            of_the_size.push(cpu);
        }
    }
    let (all, asked) = (times.len(), of_the_size.len());
    for (what, times) in [
        (format!("{all} default seeds, checks included"), &mut times),
        (format!("{asked} of them, 2,000-5,000 operations in 20-40 s"), &mut of_the_size),
    ] {
        if let Some((median, p99)) = percentiles(times) {
            say(format!("{what:<48} median {median:.2} CPU s, p99 {p99:.2} (marks 0.6 and 3)"));
        } else {
            say(format!("{what:<48} none: nothing is known"));
        }
    }
    Ok(0)
}
