//! Plays a plan: start, faults under load, heal, quiesce, final reads, judgement.
//!
//! ```text
//!   0 ms      200 ms                    plan's end, clients done       + heal        + quiet
//!   start ──▶ clients + nemesis ──────▶ everything healed, all up ──▶ reads at R=N ──▶ reads at R=N ──▶ checks
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jepsen_like_checks::Verdict;
use jepsen_like_checks::checks::{Check, NAMES};
use jepsen_like_checks::event::{Event, Kind, Payload, Sibling};
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::Content;
use ringdove::net::message::HintsFor;
use ringdove::node::Node;
use ringdove::observe::{self, Canary};
use ringdove::types::{Namespace, Wall};

use crate::clock::EPOCH;
use crate::cluster::Cluster;
use crate::disk::DiskTimes;
use crate::history::{Recorder, claimed, event, id_of};
use crate::invariants::Watch;
use crate::nemesis::Nemesis;
use crate::net::NetTimes;
use crate::plan::{LOAD_AT, Plan, client_name};
use crate::report::{Failure, Report, Tally};
use crate::run::simulate;
use crate::settings::RunSettings;
use crate::tcp::Weather;
use crate::trace::Trace;
use crate::workload::{Session, keys};
use crate::world::{Running, Settings, World};

/// What to change about a run besides its plan.
#[derive(Default)]
pub struct Options {
    /// Where every event goes as a line, if anywhere.
    pub log: Option<Box<dyn io::Write + Send>>,
    /// Keep the events of the history.
    pub keep_history: bool,
    /// A mistake that all nodes make.
    pub canary: Option<Canary>,
    /// Called once, when the nodes have started and before the first operation.
    pub on_started: Option<Box<dyn FnOnce() + Send>>,
}

/// What a run leaves behind for those who look into it.
pub struct Played {
    /// The verdict.
    pub report: Report,
    /// The history's events, if they were kept.
    pub history: Recorder,
}

/// Plays a plan.
///
/// # Errors
/// With the message of the panic that ended it.
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
    let rest = simulate(plan.seed, settings, trace.clone(), move |world| async move {
        observe::install(Some(scenario_watch.observer(&world, &of_run.settings.buggify)));
        let rest = phases(world, of_run, recorder, scenario_watch, options.on_started).await;
        observe::install(None);
        rest
    });
    let rest = rest.map_err(|panicked| panicked.message)?;
    let mut tally = rest.tally;
    tally.runs = 1;
    tally.events = trace.events();
    for ((operation, outcome), count) in history.outcomes() {
        tally.operations.insert(format!("{operation} {outcome}"), count);
    }
    let seen = watch.seen();
    tally.judged.insert("acknowledgements".to_owned(), seen.acks);
    tally.judged.insert("durable records".to_owned(), seen.records);
    tally.judged.insert("copies shown".to_owned(), seen.shown);
    for point in observe::POINTS {
        tally.probe(&format!("point {point}"), seen.points.get(point).copied().unwrap_or(0));
    }
    for (name, hits) in history.probes() {
        tally.probe(name, hits);
    }
    for site in observe::SITES {
        tally.probe(&format!("site {site}"), seen.sites.get(site).copied().unwrap_or(0));
    }
    let mut failures: Vec<Failure> = seen
        .violations
        .iter()
        .map(|what| Failure { by: "invariant".to_owned(), what: what.clone() })
        .collect();
    // The first few say it all.
    let unsettled = rest.unsettled.into_iter().take(UNSETTLED_MAX);
    failures.extend(unsettled.map(|what| Failure { by: "convergence-in-time".to_owned(), what }));
    failures.extend(history.wrongs().into_iter().map(|what| Failure { by: "client".to_owned(), what }));
    judge(&plan.settings, &history, &mut failures, &mut tally);
    let trace_hash = format!("{:016x}", trace.hash());
    Ok(Played { report: Report { seed: plan.seed, trace_hash, failures, tally }, history })
}

/// The checks over the history.
fn judge(settings: &RunSettings, history: &Recorder, failures: &mut Vec<Failure>, tally: &mut Tally) {
    let judged = history.finish();
    let skew = 2 * settings.skew_ms_max + 1;
    let limits =
        jepsen_like_checks::Options { clock_skew_ms: skew, ..jepsen_like_checks::Options::default() };
    // What a run has no pair for is unknown and no failure.
    for name in NAMES {
        let check = Check::of(name).expect("a name of the checks");
        let pairs = match check.run(&judged, &limits).0 {
            Verdict::Valid { judged } => judged,
            Verdict::Invalid { judged, witness, .. } => {
                failures.push(Failure { by: name.to_owned(), what: witness.to_string() });
                judged
            }
            Verdict::Unknown { .. } => 0,
        };
        tally.judged.insert(name.to_owned(), pairs);
    }
}

/// Things that did not come to rest that a report names.
const UNSETTLED_MAX: usize = 5;

struct Rest {
    unsettled: Vec<String>,
    tally: Tally,
}

/// After the heal, every node must run by then.
const ALL_UP_WITHIN: Duration = Duration::from_secs(30);
/// A peer that was down is tried again within its back-off.
const QUIET: Duration = Duration::from_secs(6);
/// And what nodes keep for others is handed over by then.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(30);
/// Replicas are equal after three rounds of anti-entropy and this.
const CONVERGED_WITHIN: Duration = Duration::from_secs(20);
/// Whatever is under way has ended once within this time.
const AT_REST_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks at whether something is in use.
const AT_REST_LOOK: Duration = Duration::from_millis(100);
/// Between two looks at whether something has come to rest.
const LOOK: Duration = Duration::from_millis(250);
/// Final reads are tried for so long.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// And what they repaired is on the disks by then.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

async fn phases(
    world: World,
    plan: Plan,
    history: Recorder,
    watch: Watch,
    on_started: Option<Box<dyn FnOnce() + Send>>,
) -> Rest {
    let settings = plan.settings.clone();
    let mut cluster = Cluster::new(&world, &settings);
    let mut nemesis = Nemesis::new(&world, &history, &watch, plan.entries.clone(), settings.w.into());
    let mut unsettled = Vec::new();
    cluster.start_all();
    rest(&world, &mut nemesis, &mut cluster, LOAD_AT - world.now()).await;
    if let Some(started) = on_started {
        started();
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
    let mut are_done = false;
    while !nemesis.is_done() || !are_done {
        nemesis.carry_out(&mut cluster).await;
        tokio::select! {
            biased;
            _ = &mut clients, if !are_done => are_done = true,
            () = nemesis.woken(&cluster) => {}
        }
        if nemesis.is_done() && world.now() > too_late {
            unsettled.push("the clients have not ended in time".to_owned());
            break;
        }
    }

    nemesis.heal(&mut cluster).await;
    let by = world.now() + ALL_UP_WITHIN;
    while cluster.tend() > 0 && world.now() < by {
        nemesis.step(&mut cluster).await;
    }
    if cluster.tend() > 0 {
        let down: Vec<&str> =
            cluster.hosts().filter(|(_, host)| !host.is_running()).map(|(name, _)| name).collect();
        unsettled.push(format!("after the heal these nodes do not run: {}", down.join(", ")));
    }
    // Whatever is to expire has expired before the replicas are compared.
    let expired = Duration::from_millis(settings.ttl_ms.1 + settings.skew_ms_max.unsigned_abs());
    let quiet = QUIET + if settings.mix.ttl > 0 { expired } else { Duration::ZERO };
    rest(&world, &mut nemesis, &mut cluster, quiet).await;

    let by = world.now() + HANDED_OVER_WITHIN;
    while !kept(&cluster).is_empty() && world.now() < by {
        rest(&world, &mut nemesis, &mut cluster, LOOK).await;
    }
    unsettled.extend(kept(&cluster));
    // Nobody reads: what makes replicas equal here is anti-entropy alone.
    let rounds = Duration::from_millis(3 * settings.anti_entropy_ms) + CONVERGED_WITHIN;
    // What rotted unread only a scrub finds.
    let scrub = Duration::from_millis(if watch.any_destroyed() { 2 * settings.scrub_ms } else { 0 });
    let by = world.now() + rounds + scrub;
    while !apart(&cluster, &plan, &watch).is_empty() && world.now() < by {
        rest(&world, &mut nemesis, &mut cluster, LOOK).await;
    }
    unsettled.extend(apart(&cluster, &plan, &watch));

    for round in 0..2 {
        let reader = world.host(&format!("reader{round}"));
        let (of, settings, history) = (world.clone(), settings.clone(), history.clone());
        let descriptor = cluster.descriptor().clone();
        let deadline = world.now() + READ_WITHIN;
        let reading = reader.start(move |io, start| async move {
            let mut session = Session::new(&of, io, start, "reader", &settings, &descriptor, &history);
            session.finals(deadline).await
        });
        unsettled.extend(nemesis.until(&mut cluster, reading.output()).await.unwrap_or_default());
        rest(&world, &mut nemesis, &mut cluster, REPAIRED_WITHIN).await;
    }
    watch.tick(world.now());
    unsettled.extend(left_over(&world, &mut nemesis, &mut cluster).await);
    replicas(&world, &cluster, &plan, &history, &watch);
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
                tally.fault(&format!("disk {kind:?}"), count.fired, count.effective);
            }
        });
    }
    Rest { unsettled, tally }
}

/// Lets so much time pass.
async fn rest(world: &World, nemesis: &mut Nemesis, cluster: &mut Cluster, time: Duration) {
    nemesis.until(cluster, world.sleep(time)).await;
}

/// Which keys' primaries hold different records, and which nodes do not know that they have everything, in words.
fn apart(cluster: &Cluster, plan: &Plan, watch: &Watch) -> Vec<String> {
    let mut apart = Vec::new();
    let layout = cluster.layout();
    let merged = crate::workload::merged::keys().map(|(key, _)| key);
    for key in keys(&plan.settings).into_iter().map(|(key, _)| key).chain(merged) {
        let held = watch.held(Namespace::default(), &key);
        let partition = layout.q().partition_of(Namespace::default(), &key);
        let copies: Vec<_> = layout
            .primaries(partition)
            .iter()
            .map(|primary| held.get(&primary.to_string()).map(|entry| &entry.copy.record))
            .collect();
        if copies.windows(2).any(|pair| pair[0] != pair[1]) {
            let contexts: Vec<_> = copies.iter().map(|copy| copy.map(|copy| copy.context())).collect();
            apart.push(format!("the primaries of {key} ({partition}) hold different records: {contexts:?}"));
        }
    }
    for (name, node) in cluster.hosts().filter_map(|(name, _)| Some((name, cluster.node(name)?))) {
        let active = node.layouts().active;
        if active.len() > 1 || active[0].reference() != layout.reference() {
            let versions: Vec<u64> = active.iter().map(|layout| layout.reference().version).collect();
            apart.push(format!(
                "{name} goes by the layouts {versions:?}, not by {} alone",
                layout.reference().version
            ));
        }
        let held = if layout.member(node.id()).is_none() { node.storage_stats().data_keys } else { 0 };
        if held > 0 {
            apart.push(format!("{name} is no member any more and still holds {held} keys"));
        }
        let status = node.status();
        if status.partitions_refilled < status.partitions {
            let (has, of) = (status.partitions_refilled, status.partitions);
            apart.push(format!("{name} has refilled {has} of {of} partitions"));
        }
    }
    apart
}

/// What nodes still keep for others, in words.
fn kept(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.hosts().filter_map(|(name, _)| Some((name, cluster.node(name)?)));
    let told = |(name, node): (&str, Node)| {
        let hints = node.hints().targets;
        hints
            .into_iter()
            .map(move |hints| {
                let HintsFor { target, count, why, .. } = hints;
                format!("{name} still keeps {count} records for {target}: {why:?}")
            })
            .collect::<Vec<_>>()
    };
    nodes.flat_map(told).collect()
}

/// (g) What is still in use although no client asks for anything, in words. Nodes go on asking each other one thing at a
/// time, so each kind of use must come to nothing at some moment, not all at one.
async fn left_over(world: &World, nemesis: &mut Nemesis, cluster: &mut Cluster) -> Vec<String> {
    let by = world.now() + AT_REST_WITHIN;
    let mut left = in_use(world, cluster);
    while !left.is_empty() && world.now() < by {
        rest(world, nemesis, cluster, AT_REST_LOOK).await;
        let still = in_use(world, cluster);
        left.retain(|what, _| still.contains_key(what));
    }
    left.into_values().collect()
}

/// What is in use at this moment: what it is, and how much in words.
fn in_use(world: &World, cluster: &Cluster) -> BTreeMap<String, String> {
    let mut used = BTreeMap::new();
    for (name, _) in cluster.hosts() {
        let Some(node) = cluster.node(name) else { continue };
        let in_flight = node.metrics().in_flight();
        if in_flight > 0 {
            used.insert(name.to_owned(), format!("{name} still has {in_flight} requests in progress"));
        }
        for peer in node.peers() {
            let (calls, bytes) = node.peer_load(peer);
            if calls + bytes > 0 {
                let words = format!("{name} still has {calls} calls and {bytes} bytes under way to {peer}");
                used.insert(format!("{name} {peer}"), words);
            }
        }
    }
    let (connections, segments) = world.net().usage();
    let hosts = cluster.hosts().count();
    // Between nodes a few for each pair; of the clients, who are gone, none.
    let most = hosts * hosts * CONNECTIONS_MAX;
    if connections > most || segments > hosts * hosts {
        let words = format!("{connections} connections (at most {most}) and {segments} segments are left");
        used.insert("net".to_owned(), words);
    }
    used
}

/// Connections that two nodes may keep open.
const CONNECTIONS_MAX: usize = 4;

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
