//! Plays a plan: start, faults under load, heal, convergence, final reads, judgement.
//!
//! ```text
//!   0 ms      200 ms                    plan's end, clients done    the heal               converged        + quiet, TTLs
//!   start ──▶ clients + nemesis ──────▶ everything healed, all up ─▶ within the bound:   ─▶ what is to   ─▶ reads at R=N,
//!             bounds each second                                     no guest, all equal,   expire does     twice ──▶ checks
//!                                                                    all refilled
//! ```
//!
//! History, trace, watch and counts live outside the runtime: a panic ends the run, and all that was seen before it is kept.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use jepsen_like_checks::Verdict;
use jepsen_like_checks::checks::{Check, NAMES};
use jepsen_like_checks::event::{Event, Kind, Payload, Sibling};
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::Content;
use ringdove::observe::{self, Canary};
use ringdove::types::{Namespace, Wall};

use crate::catalogue;
use crate::clock::EPOCH;
use crate::cluster::Cluster;
use crate::disk::DiskTimes;
use crate::history::{Recorder, claimed, event, id_of};
use crate::invariants::{Watch, bounded};
use crate::nemesis::Nemesis;
use crate::net::NetTimes;
use crate::plan::{LOAD_AT, Plan, client_name};
use crate::report::{Convergence, Failure, Report, Tally};
use crate::run::simulate;
use crate::settings::RunSettings;
use crate::tcp::Weather;
use crate::trace::Trace;
use crate::workload::{Session, keys};
use crate::world::{Running, Settings, World};

mod apart;
pub mod bound;

/// What to change about a run besides its plan.
#[derive(Default)]
pub struct Options {
    /// Where every event goes as a line, if anywhere.
    pub log: Option<Box<dyn io::Write + Send>>,
    /// Keep the events of the history.
    pub keep_history: bool,
    /// A mistake that all nodes make.
    pub canary: Option<Canary>,
    /// Something from outside the run that gets into an event all the same: a mistake that comparing two runs must find.
    pub planted: Option<String>,
    /// Called as each phase begins.
    pub on_phase: Option<Box<dyn FnMut(Phase) + Send>>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The nodes have started; the first operation is next.
    Load,
    /// The clients are done and the last entry has fired; the heal is next.
    Heal,
}

/// What a run leaves behind for those who look into it.
pub struct Played {
    /// The verdict.
    pub report: Report,
    /// The history's events, if they were kept.
    pub history: Recorder,
}

/// What is known of a run so far; outside its runtime, so that a panic leaves it.
#[derive(Clone, Default)]
struct Progress(Arc<Mutex<Rest>>);

#[derive(Default)]
struct Rest {
    unsettled: Vec<String>,
    /// Bounds that were passed under load; each once.
    excess: BTreeMap<String, String>,
    tally: Tally,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsettled(&self, what: impl IntoIterator<Item = String>) {
        self.lock().unsettled.extend(what);
    }

    /// What was counted up to now. A panic a moment later leaves this.
    fn count(&self, world: &World, cluster: &Cluster, nemesis: &Nemesis) {
        let mut tally = Tally { simulated: world.now(), starts: cluster.starts().into(), ..Tally::default() };
        if let Some(tcp) = world.tcp() {
            tally.probe("messages over madsim's network", tcp.messages());
        }
        tally.fault("reconfigure", 0, cluster.changed_starts().into());
        for (name, (fired, effective)) in nemesis.counts() {
            tally.fault(name, fired, effective);
        }
        for (name, (fired, effective)) in world.net().counts() {
            tally.fault(name, fired, effective);
        }
        for (_, host) in cluster.hosts() {
            for (name, (fired, effective)) in host.clock().counts() {
                tally.fault(name, fired, effective);
            }
            host.with_disk(|image| {
                for (kind, count) in image.counts().iter() {
                    tally.fault(&catalogue::disk_name(kind), count.fired, count.effective);
                }
            });
        }
        let rest = &mut *self.lock();
        tally.judged.insert("bounds".to_owned(), rest.tally.judged.get("bounds").copied().unwrap_or(0));
        tally.load = rest.tally.load;
        tally.convergence = rest.tally.convergence;
        rest.tally = tally;
    }
}

/// Plays a plan. A panic of the nodes or of the simulator is a failure of the run like any other, and all that was recorded
/// until then is there.
///
/// # Errors
/// With the reason why the plan cannot be played.
pub fn play(plan: &Plan, options: Options) -> Result<Played, String> {
    plan.check()?;
    let trace = match options.log {
        Some(log) => Trace::with_log(log),
        None => Trace::new(),
    };
    let history = Recorder::new(options.keep_history);
    let partitions = PartitionCount::new(plan.settings.partitions).map_err(|error| error.to_string())?;
    let watch = Watch::new(partitions, &trace, plan.settings.sync_keys(), options.canary);
    let us = |(low, high): (u64, u64)| (Duration::from_micros(low), Duration::from_micros(high));
    let settings = Settings {
        net: NetTimes {
            delay: us(plan.settings.delay_us),
            send_buffer: plan.settings.buffer_bytes,
            recv_buffer: plan.settings.buffer_bytes,
            ..NetTimes::default()
        },
        disk: DiskTimes { sync: us(plan.settings.sync_us), ..DiskTimes::default() },
        tcp: plan.settings.tcp.then_some(Weather { loss_percent: 0, latency_us: plan.settings.delay_us }),
        watch: Some(Arc::new(watch.clone())),
    };
    let (of_run, recorder) = (plan.clone(), history.clone());
    let scenario_watch = watch.clone();
    let progress = Progress::default();
    let of_phases = progress.clone();
    let ended = simulate(plan.seed, settings, trace.clone(), move |world| async move {
        observe::install(Some(scenario_watch.observer(&world, &of_run.settings.buggify)));
        let beside = (options.on_phase.unwrap_or_else(|| Box::new(|_| {})), options.planted);
        phases(world, of_run, recorder, scenario_watch, of_phases, beside).await;
        observe::install(None);
    });
    let mut rest = std::mem::take(&mut *progress.lock());
    let mut failures = Vec::new();
    let fails = |by: &str| {
        let by = by.to_owned();
        move |what| Failure { by: by.clone(), what }
    };
    failures.extend(ended.as_ref().err().map(|panicked| fails("panic")(panicked.message.clone())));
    let tally = &mut rest.tally;
    tally.runs = 1;
    tally.events = trace.events();
    for ((operation, outcome), count) in history.outcomes() {
        tally.operations.insert(format!("{operation} {outcome}"), count);
    }
    let seen = watch.seen();
    for (name, judged) in &seen.judged {
        tally.judged.insert((*name).to_owned(), *judged);
    }
    tally.judged.insert("values".to_owned(), history.values_judged());
    for point in observe::POINTS {
        tally.probe(&format!("point {point}"), seen.points.get(point).copied().unwrap_or(0));
    }
    for (name, hits) in history.probes() {
        tally.probe(name, hits);
    }
    for site in observe::SITES {
        tally.probe(&format!("site {site}"), seen.sites.get(site).copied().unwrap_or(0));
    }
    failures.extend(seen.violations.iter().cloned().map(fails("invariant")));
    failures.extend(rest.excess.into_values().map(fails("bounds")));
    // The first few say it all.
    failures.extend(rest.unsettled.into_iter().take(UNSETTLED_MAX).map(fails("convergence-in-time")));
    failures.extend(history.wrongs().into_iter().map(fails("client")));
    if ended.is_ok() {
        // A run that a panic cut short has no end to be judged by.
        judge(&plan.settings, &history, &mut failures, tally);
    }
    let trace_hash = format!("{:016x}", trace.hash());
    Ok(Played { report: Report { seed: plan.seed, trace_hash, failures, tally: rest.tally }, history })
}

/// The checks over the history.
fn judge(settings: &RunSettings, history: &Recorder, failures: &mut Vec<Failure>, tally: &mut Tally) {
    let judged = history.finish();
    let skew = 2 * settings.skew_ms_max + 1;
    let limits =
        jepsen_like_checks::Options { clock_skew_ms: skew, ..jepsen_like_checks::Options::default() };
    for name in NAMES {
        let check = Check::of(name).expect("a name of the checks");
        let (pairs, failure) = weigh(name, check.run(&judged, &limits).0);
        failures.extend(failure);
        tally.judged.insert(name.to_owned(), pairs);
    }
}

/// Pairs that a check judged, and what is wrong. What a run has no pair for is no failure; a check that gave up is one.
fn weigh(name: &str, verdict: Verdict) -> (u64, Option<Failure>) {
    let failure = |what| Some(Failure { by: name.to_owned(), what });
    match verdict {
        Verdict::Valid { judged } => (judged, None),
        Verdict::Invalid { judged, witness, .. } => (judged, failure(witness.to_string())),
        Verdict::Unknown { reason } if reason == Verdict::NOTHING_JUDGED => (0, None),
        Verdict::Unknown { reason } => (0, failure(format!("could not judge: {reason}"))),
    }
}

/// Things that did not come to rest that a report names.
const UNSETTLED_MAX: usize = 5;
/// After convergence, before the final reads: what is under way ends.
const QUIET: Duration = Duration::from_secs(6);
/// Whatever is under way has ended once within this time.
const AT_REST_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks at whether something is in use.
const AT_REST_LOOK: Duration = Duration::from_millis(100);
/// Between two looks at whether something has come to rest.
const LOOK: Duration = Duration::from_millis(250);
/// Between two looks at the bounds.
const BOUNDS_EVERY: Duration = Duration::from_secs(1);
/// Final reads are tried for so long: the cluster has converged, and two timeouts of 5 s find their answer.
const READ_WITHIN: Duration = Duration::from_secs(12);
/// And what they repaired is on the disks by then.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

async fn phases(
    world: World,
    plan: Plan,
    history: Recorder,
    watch: Watch,
    progress: Progress,
    (mut on_phase, planted): (Box<dyn FnMut(Phase) + Send>, Option<String>),
) {
    let settings = plan.settings.clone();
    let mut cluster = Cluster::new(&world, &settings);
    let mut nemesis = Nemesis::new(&world, &history, &watch, plan.entries.clone(), settings.w.into());
    cluster.start_all();
    rest(&world, &mut nemesis, &mut cluster, LOAD_AT - world.now()).await;
    on_phase(Phase::Load);
    if let Some(planted) = planted {
        world.record("sim", "planted", planted);
    }

    // Where nothing answers, an operation takes as long as its timeout: clients need not do all of theirs.
    let deadline = plan.end().max(LOAD_AT + settings.span() * 2) + Duration::from_secs(10);
    let clients: Vec<Running<u32>> = (1..=settings.clients)
        .map(|number| {
            let name = client_name(number);
            let (of, settings, history) = (world.clone(), settings.clone(), history.clone());
            let descriptor = cluster.descriptor().clone();
            world.host(&name.clone()).start(move |io, start| {
                Session::new(&of, io, start, &name, &settings, &descriptor, &history).run(deadline)
            })
        })
        .collect();
    let mut clients = std::pin::pin!(join_all(clients.into_iter().map(Running::output)));
    let too_late = deadline + Duration::from_millis(settings.timeout_ms * 50) + Duration::from_secs(60);
    let (mut are_done, mut looked) = (false, Duration::ZERO);
    while !nemesis.is_done() || !are_done {
        nemesis.carry_out(&mut cluster).await;
        tokio::select! {
            biased;
            _ = &mut clients, if !are_done => are_done = true,
            () = nemesis.woken(&cluster) => {}
        }
        if world.now() >= looked + BOUNDS_EVERY {
            looked = world.now();
            look_at_bounds(&world, &cluster, &progress);
            progress.count(&world, &cluster, &nemesis);
        }
        if nemesis.is_done() && world.now() > too_late {
            progress.unsettled(["the clients have not ended in time".to_owned()]);
            break;
        }
    }
    on_phase(Phase::Heal);
    progress.lock().tally.load = world.now() - LOAD_AT;
    progress.count(&world, &cluster, &nemesis);

    nemesis.heal(&mut cluster).await;
    let within = within(&cluster, &plan, &watch);
    let healed = world.now();
    let by = healed + within;
    // Nobody reads: what makes replicas equal here is handoff and anti-entropy alone.
    let left = loop {
        let left = apart::apart(&cluster, &settings, &watch);
        if left.is_empty() || world.now() >= by {
            break left;
        }
        rest(&world, &mut nemesis, &mut cluster, LOOK.min(by - world.now())).await;
    };
    let taken = world.now() - healed;
    progress.lock().tally.convergence = Some(Convergence { taken, within });
    if left.is_empty() {
        // From here on (b) counts no destroyed disk as holding what it lacks.
        watch.converged();
    }
    progress.unsettled(apart::explained(&world, &cluster, left).await);
    progress.count(&world, &cluster, &nemesis);

    // Whatever is to expire has expired before the replicas are compared, and so have the rounds that take it away.
    let expired = Duration::from_millis(settings.ttl_ms.1 + settings.skew_ms_max.unsigned_abs());
    let quiet = QUIET + if settings.mix.ttl > 0 { expired } else { Duration::ZERO };
    rest(&world, &mut nemesis, &mut cluster, quiet).await;
    let by = world.now() + within;
    while !apart::apart(&cluster, &settings, &watch).is_empty() && world.now() < by {
        rest(&world, &mut nemesis, &mut cluster, LOOK).await;
    }

    for round in 0..2 {
        let reader = world.host(&format!("reader{round}"));
        let (of, settings, history) = (world.clone(), settings.clone(), history.clone());
        let descriptor = cluster.descriptor().clone();
        let deadline = world.now() + READ_WITHIN;
        let reading = reader.start(move |io, start| async move {
            let mut session = Session::new(&of, io, start, "reader", &settings, &descriptor, &history);
            session.finals(deadline).await
        });
        progress.unsettled(nemesis.until(&mut cluster, reading.output()).await.unwrap_or_default());
        rest(&world, &mut nemesis, &mut cluster, REPAIRED_WITHIN).await;
    }
    watch.tick(world.now());
    let left = left_over(&world, &mut nemesis, &mut cluster).await;
    progress.unsettled(left.into_iter().map(|what| format!("still in use in the end: {what}")));
    history.never_applied(&watch.written());
    replicas(&world, &cluster, &plan, &history, &watch);
    progress.count(&world, &cluster, &nemesis);
}

/// For how long convergence may take from now on.
fn within(cluster: &Cluster, plan: &Plan, watch: &Watch) -> Duration {
    if let Some(ms) = plan.settings.converge_within_ms {
        return Duration::from_millis(ms);
    }
    let past = bound::Past {
        guests: watch.guests() as u64,
        records: watch.records_max() as u64,
        destroyed: watch.any_destroyed(),
        layouts: u32::try_from(cluster.layout().reference().version.saturating_sub(1)).unwrap_or(u32::MAX),
        falls: u32::try_from(plan.entries.len()).unwrap_or(u32::MAX),
    };
    bound::bound(&plan.settings, past)
}

/// (g) under load.
fn look_at_bounds(world: &World, cluster: &Cluster, progress: &Progress) {
    let rest = &mut *progress.lock();
    let used = bounded::under_load(cluster);
    *rest.tally.judged.entry("bounds".to_owned()).or_default() += used.len() as u64;
    for used in used {
        if let Some(excess) = used.excess() {
            let at = world.now().as_secs_f64();
            rest.excess.entry(used.of).or_insert_with(|| format!("{at:.6} s: {excess}"));
        }
    }
}

/// Lets so much time pass.
async fn rest(world: &World, nemesis: &mut Nemesis, cluster: &mut Cluster, time: Duration) {
    nemesis.until(cluster, world.sleep(time)).await;
}

/// (g) What is still in use although no client asks for anything, in words.
async fn left_over(world: &World, nemesis: &mut Nemesis, cluster: &mut Cluster) -> Vec<String> {
    let by = world.now() + AT_REST_WITHIN;
    let mut left = bounded::left_over(world, cluster);
    while !left.is_empty() && world.now() < by {
        rest(world, nemesis, cluster, AT_REST_LOOK).await;
        let still = bounded::left_over(world, cluster);
        left.retain(|what, _| still.contains_key(what));
    }
    left.into_values().collect()
}

/// Writes down what each primary's disk holds of each key, for the convergence check.
fn replicas(world: &World, cluster: &Cluster, plan: &Plan, history: &Recorder, watch: &Watch) {
    let partitions = cluster.layout().q();
    let wall = Wall(u64::try_from((EPOCH + world.now()).as_millis()).unwrap_or(u64::MAX));
    for (key, _) in keys(&plan.settings) {
        let held = watch.held(Namespace::default(), &key);
        let partition = partitions.partition_of(Namespace::default(), &key);
        for primary in cluster.layout().primaries(partition) {
            let node = primary.to_string();
            let process = history.process();
            history.push(
                world.now(),
                Event { node: Some(node.clone().into()), ..event(Kind::Invoke, process, "final", &key) },
            );
            let copy = held.get(&node);
            let siblings = copy.iter().flat_map(|entry| entry.copy.record.siblings()).map(|sibling| {
                let dead = sibling.content == Content::Tombstone || sibling.is_expired(wall);
                let (id, dot) = (id_of(sibling.write_id).into(), Some(claimed(sibling.dot)));
                Sibling { id, dot, dead, hidden: dead, ..Sibling::default() }
            });
            let value = Some(Payload::Siblings(siblings.collect()));
            let covers = copy.map(|entry| crate::history::covers(entry.copy.record.context()));
            let done =
                Event { value, covers, node: Some(node.into()), ..event(Kind::Ok, process, "final", &key) };
            history.push(world.now(), done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_gave_up_fails_the_run_and_one_without_pairs_does_not() {
        let nothing = Verdict::Unknown { reason: Verdict::NOTHING_JUDGED.to_owned() };
        assert_eq!(weigh("frontier", nothing), (0, None));
        let gave_up = Verdict::Unknown { reason: "the order needs more memory than the budget".to_owned() };
        let (judged, failure) = weigh("frontier", gave_up);
        let failure = failure.expect("a failure");
        assert_eq!((judged, failure.by.as_str()), (0, "frontier"));
        assert!(failure.what.contains("budget"), "{failure:?}");
        assert_eq!(weigh("frontier", Verdict::Valid { judged: 3 }), (3, None));
    }
}
