//! `ringdove bench`: a load generator.
//!
//! It loads the keys where there is something to read, warms up, measures, and prints throughput, percentiles,
//! outcomes and, for node processes on this machine whose ids are given, processor time and memory. `load` says how
//! it measures. Its keys stay in the store, below `--prefix`. When nothing was done, or more than one operation in a hundred
//! was not, it ends with exit code 1: the figures are then those of a store in trouble.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use serde_json::{Value, json};

use super::connect::{Connect, failed, outcome_of, usage};
use super::export::draw_target;
use super::units::{self, bytes, grouped, table};
use super::{DONE, FAILED, complain, say};
use crate::client::{BatchWrite, Client, ReadOptions, WriteOptions};
use crate::io::RealClock;
use crate::net::message::{Context, Durability};
use crate::types::KEY_LEN_MAX;

use load::{Measured, Plan, Store, Times};
use machine::{SyncProbe, Usage, usage_of};

mod load;
mod machine;

/// Keys that are loaded in one batch.
const LOAD_BATCH: u64 = 200;
/// Batches on their way at once.
const LOAD_AT_ONCE: usize = 8;
/// More than one operation in so many that was not done makes the command fail.
const FAILED_ONE_IN: u64 = 100;
/// Largest value that nodes take by default.
const VALUE_LEN_MAX: u64 = 8 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    /// Writes alone, over what is there.
    Put,
    /// Reads alone.
    Get,
    /// Reads and writes.
    Mixed,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
    /// What to do.
    #[arg(value_enum)]
    workload: Workload,
    /// Clients: operations on their way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    clients: u16,
    /// Operations a second, started by the clock whether the store keeps up or not (open loop). Left out, each client
    /// asks when it has its answer (closed loop).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = units::positive)]
    duration: Duration,
    /// How long to run before that.
    #[arg(long, default_value = "2s", value_parser = units::duration)]
    warm_up: Duration,
    /// Number of keys; each operation takes one at random.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(0..=VALUE_LEN_MAX))]
    value_size: u64,
    /// Of a mixed load, how much is reads, 0 to 1.
    #[arg(long, default_value_t = 0.5, value_parser = fraction)]
    reads: f64,
    /// Replicas that must answer a read.
    #[arg(short, value_parser = units::replicas)]
    r: Option<u8>,
    /// Replicas that must hold a write.
    #[arg(short, value_parser = units::replicas)]
    w: Option<u8>,
    /// Count primaries alone, no fallbacks.
    #[arg(long)]
    strict: bool,
    /// When a replica counts: `sync` or `interval:100ms`.
    #[arg(long, value_parser = units::durability)]
    durability: Option<Durability>,
    /// Most connections to one node.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// What the keys begin with.
    #[arg(long, default_value = "bench/")]
    prefix: String,
    /// Do not write the keys before reading them.
    #[arg(long)]
    no_load: bool,
    /// Choice of keys and values: the same number, the same choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Process ids of nodes on this machine, for their processor time and memory.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Also measure how long a sync takes on the disk of this directory while the load runs.
    #[arg(long, value_name = "DIR")]
    probe_sync: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("a number from 0 to 1, like 0.9".to_owned()),
    }
}

pub(super) async fn run(args: Args) -> u8 {
    Box::pin(try_run(args)).await.unwrap_or_else(|code| code)
}

async fn try_run(args: Args) -> Result<u8, u8> {
    if args.prefix.len() + 10 > KEY_LEN_MAX {
        return Err(usage("--prefix leaves no room for the number behind it"));
    }
    for pid in &args.pids {
        if usage_of(&pid.to_string()).is_none() {
            return Err(usage(&format!("--pids: there is no process {pid} here whose usage can be read")));
        }
    }
    let client = args.connect.client_with(|config| {
        config.connections_per_node = usize::from(args.connections);
        config.in_flight_max = usize::from(args.clients) + LOAD_AT_ONCE;
    })?;
    client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let store = store(&args, client);
    if args.workload != Workload::Put && !args.no_load {
        fill(&args, &store).await?;
    }
    let probe = match &args.probe_sync {
        None => None,
        Some(dir) => {
            let started = SyncProbe::start(dir);
            Some(started.map_err(|error| usage(&format!("--probe-sync {}: {error}", dir.display())))?)
        }
    };
    if !args.json {
        complain(&format!(
            "{} for {} after {} of warm-up …",
            intent(&args),
            units::span(args.duration),
            units::span(args.warm_up)
        ));
    }
    let before = Arc::new(Mutex::new(Vec::new()));
    let (seen, pids) = (before.clone(), args.pids.clone());
    let begun = move || *lock(&seen) = usages(&pids);
    let measured = load::run(plan(&args), store, Arc::new(RealClock::new()), begun).await;
    let after = usages(&args.pids);
    let syncs = match probe {
        Some(probe) => probe.end().await,
        None => None,
    };
    let report = Report { args: &args, before: std::mem::take(&mut *lock(&before)), after, measured, syncs };
    if args.json {
        say(&report.json().to_string());
    } else {
        report.print();
    }
    let (done, failed) = (report.measured.done(), report.measured.failed());
    Ok(if done > 0 && failed <= (done + failed) / FAILED_ONE_IN { DONE } else { FAILED })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process first, then the nodes.
fn usages(pids: &[u32]) -> Vec<Option<Usage>> {
    let nodes = pids.iter().map(|pid| usage_of(&pid.to_string()));
    std::iter::once(usage_of("self")).chain(nodes).collect()
}

fn store(args: &Args, client: Client) -> Store {
    let read = ReadOptions { r: args.r, strict: args.strict, ..ReadOptions::default() };
    let write = WriteOptions {
        w: args.w,
        strict: args.strict,
        durability: args.durability,
        context: Some(Context::Current),
        ..WriteOptions::default()
    };
    let value_len = usize::try_from(args.value_size).unwrap_or(0);
    let block = load::block(args.seed, value_len);
    Store { client, keys: args.keys, prefix: args.prefix.clone(), value_len, block, read, write }
}

fn plan(args: &Args) -> Plan {
    Plan {
        reads: match args.workload {
            Workload::Put => 0.0,
            Workload::Get => 1.0,
            Workload::Mixed => args.reads,
        },
        workers: usize::from(args.clients),
        rate: args.rate.map(f64::from),
        warm_up: args.warm_up,
        duration: args.duration,
        seed: args.seed,
    }
}

fn intent(args: &Args) -> String {
    let what = match args.workload {
        Workload::Put => "puts".to_owned(),
        Workload::Get => "gets".to_owned(),
        Workload::Mixed => format!("{}% gets, the rest puts", args.reads * 100.0),
    };
    let how = match args.rate {
        None => format!("closed loop of {} clients", args.clients),
        Some(rate) => format!("open loop, {}/s over {} clients", grouped(rate.into()), args.clients),
    };
    format!("{what}, {how}, {} keys, values of {}", grouped(args.keys), bytes(args.value_size))
}

/// Writes every key once, to memory at first: it is not what is measured.
async fn fill(args: &Args, store: &Store) -> Result<(), u8> {
    use futures_util::StreamExt;
    let bar = ProgressBar::with_draw_target(Some(store.keys), draw_target(args.json));
    if let Ok(style) =
        ProgressStyle::with_template("loading {wide_bar} {human_pos} of {human_len} keys, {eta} left")
    {
        bar.set_style(style);
    }
    let options = WriteOptions { durability: Some(Durability::Interval(100)), ..store.write.clone() };
    let batch = |first: u64| {
        let mut chance = ChaCha8Rng::seed_from_u64(args.seed ^ first);
        let keys = first..(first + LOAD_BATCH).min(store.keys);
        let writes = keys.map(|number| BatchWrite {
            key: load::key(&store.prefix, number),
            value: Some(load::value(&store.block, store.value_len, &mut chance)),
            options: options.clone(),
        });
        writes.collect::<Vec<_>>()
    };
    let firsts = (0..store.keys).step_by(usize::try_from(LOAD_BATCH).unwrap_or(1));
    let mut work = futures_util::stream::iter(firsts)
        .map(|first| {
            let writes = batch(first);
            async move { store.client.multi_put(&writes, None).await }
        })
        .buffer_unordered(LOAD_AT_ONCE);
    let mut lost: BTreeMap<&'static str, (u64, String)> = BTreeMap::new();
    while let Some(outcomes) = work.next().await {
        bar.inc(u64::try_from(outcomes.len()).unwrap_or(0));
        for error in outcomes.into_iter().filter_map(Result::err) {
            let entry = lost.entry(outcome_of(&error)).or_insert_with(|| (0, error.to_string()));
            entry.0 += 1;
        }
    }
    bar.finish_and_clear();
    for (outcome, (count, error)) in &lost {
        complain(&format!("loading: {count} keys {outcome}: {error}"));
    }
    if lost.values().map(|(count, _)| count).sum::<u64>() == store.keys {
        return Err(FAILED);
    }
    Ok(())
}

struct Report<'a> {
    args: &'a Args,
    before: Vec<Option<Usage>>,
    after: Vec<Option<Usage>>,
    measured: Measured,
    syncs: Option<Histogram<u64>>,
}

const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

#[allow(clippy::cast_precision_loss)] // figures for people
impl Report<'_> {
    fn throughput(&self) -> f64 {
        self.measured.done() as f64 / self.measured.took.as_secs_f64().max(0.001)
    }

    /// Processor seconds and memory of this process, then of the nodes.
    fn costs(&self) -> Vec<Option<(f64, u64)>> {
        let cost = |(before, after): (&Option<Usage>, &Option<Usage>)| {
            let (before, after) = (before.as_ref()?, after.as_ref()?);
            Some((after.cpu_seconds - before.cpu_seconds, after.rss_bytes))
        };
        self.before.iter().zip(&self.after).map(cost).collect()
    }

    fn per_1000(&self, cpu_seconds: f64) -> f64 {
        cpu_seconds * 1000.0 / (self.measured.done() as f64).max(1.0)
    }

    /// Rows of the table of latencies: each operation with all its outcomes, and each class of them where there are several.
    fn times(&self) -> Vec<(String, Histogram<u64>)> {
        let mut rows = Vec::new();
        for (name, times) in [("get", &self.measured.reads), ("put", &self.measured.writes)] {
            rows.push((name.to_owned(), times.all()));
            if times.classes().count() > 1 || times.classes().any(|(class, _)| class != load::ANSWERED) {
                rows.extend(
                    times.classes().map(|(class, times)| (format!("  {name} {class}"), times.clone())),
                );
            }
        }
        rows.extend(self.syncs.clone().map(|syncs| ("fdatasync".to_owned(), syncs)));
        rows.retain(|(_, times)| !times.is_empty());
        rows
    }

    fn print(&self) {
        let done = self.measured.done();
        // It saturates, and is never negative.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = grouped(self.throughput().round() as u64);
        let failed = match self.measured.failed() {
            0 => String::new(),
            failed => format!("; {} failed", grouped(failed)),
        };
        say(&format!(
            "{} operations in {}: {rate}/s{failed}\n",
            grouped(done),
            units::span(self.measured.took)
        ));
        let time = |micros: u64| match micros {
            0..10_000 => format!("{:.2} ms", micros as f64 / 1000.0),
            _ => format!("{:.1} ms", micros as f64 / 1000.0),
        };
        let row = |(name, times): (String, Histogram<u64>)| {
            let at = PERCENTILES.iter().map(|(_, place)| time(times.value_at_percentile(*place)));
            [name, grouped(times.len())].into_iter().chain(at).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<String>> = self.times().into_iter().map(row).collect();
        say(&table(&["LATENCY", ">COUNT", ">p50", ">p90", ">p99", ">p99.9", ">MAX"], &rows));
        let note = match self.args.rate {
            None => "of a closed loop: while the store is slow, less is asked",
            Some(_) => "from the moment at which each should have begun; includes the timer's, up to 1 ms",
        };
        say(&format!("({note})\n"));
        let row = |(outcome, count): (&&str, &u64)| {
            vec![
                (*outcome).to_owned(),
                grouped(*count),
                self.measured.errors.get(*outcome).cloned().unwrap_or_default(),
            ]
        };
        let rows: Vec<Vec<String>> = self.measured.outcomes.iter().map(row).collect();
        say(&table(&["OUTCOME", ">COUNT", "FIRST MESSAGE"], &rows));
        let names =
            std::iter::once("bench".to_owned()).chain(self.args.pids.iter().map(|pid| format!("pid {pid}")));
        let mut total = 0.0;
        let mut rows = Vec::new();
        for (place, (name, cost)) in names.zip(self.costs()).enumerate() {
            let Some((cpu, rss)) = cost else {
                rows.push(vec![name, "ended".to_owned()]);
                continue;
            };
            total += if place > 0 { cpu } else { 0.0 };
            rows.push(vec![name, format!("{cpu:.2} s"), format!("{:.4} s", self.per_1000(cpu)), bytes(rss)]);
        }
        if rows.len() > 2 {
            rows.push(vec![
                "all nodes".to_owned(),
                format!("{total:.2} s"),
                format!("{:.4} s", self.per_1000(total)),
            ]);
        }
        if !rows.is_empty() {
            say(&format!("\n{}", table(&["PROCESS", ">CPU", ">CPU/1000 OPS", ">RSS"], &rows)));
        }
        if self.args.pids.is_empty() {
            complain("give the nodes' processes with --pids to see what they use");
        }
    }

    fn json(&self) -> Value {
        let args = self.args;
        let figures = |times: &Histogram<u64>| {
            let mut object = json!({ "count": times.len(), "mean": times.mean() });
            for (name, place) in PERCENTILES {
                object[name] = json!(times.value_at_percentile(place));
            }
            object
        };
        let by_outcome = |times: &Times| {
            let mut object = figures(&times.all());
            object["by_outcome"] =
                Value::from_iter(times.classes().map(|(class, times)| (class.to_owned(), figures(times))));
            object
        };
        let mut latency = json!({});
        for (name, times) in [("get", &self.measured.reads), ("put", &self.measured.writes)] {
            if times.classes().next().is_some() {
                latency[name] = by_outcome(times);
            }
        }
        if let Some(syncs) = &self.syncs {
            latency["fdatasync"] = figures(syncs);
        }
        let names = std::iter::once("bench".to_owned()).chain(args.pids.iter().map(ToString::to_string));
        let cost = |(name, cost): (String, Option<(f64, u64)>)| {
            json!({
                "process": name,
                "cpu_seconds": cost.map(|(cpu, _)| cpu),
                "cpu_seconds_per_1000": cost.map(|(cpu, _)| self.per_1000(cpu)),
                "rss_bytes": cost.map(|(_, rss)| rss),
            })
        };
        json!({
            "workload": format!("{:?}", args.workload).to_lowercase(),
            "loop": if args.rate.is_some() { "open" } else { "closed" },
            "rate": args.rate,
            "clients": args.clients,
            "keys": args.keys,
            "value_size": args.value_size,
            "r": args.r,
            "w": args.w,
            "strict": args.strict,
            "durability": args.durability.map(|durability| match durability {
                Durability::Sync => "sync".to_owned(),
                Durability::Interval(ms) => format!("interval:{ms}ms"),
            }),
            "seed": args.seed,
            "seconds": self.measured.took.as_secs_f64(),
            "operations": self.measured.done(),
            "failed": self.measured.failed(),
            "throughput": self.throughput(),
            "latency_us": latency,
            "outcomes": self.measured.outcomes,
            "errors": self.measured.errors,
            "processes": names.zip(self.costs()).map(cost).collect::<Vec<_>>(),
        })
    }
}
