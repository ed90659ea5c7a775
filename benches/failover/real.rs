//! The measurements.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hdrhistogram::Histogram;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use ringdove::client::{Client, ClientConfig, ClientError, ReadOptions, WriteOptions};
use ringdove::io::{RealClock, TcpNet};
use ringdove::net::message::Context;
use ringdove::types::{Key, Namespace, NodeId};
use tokio::task::JoinSet;

use crate::processes::{Addresses, Cluster, free_addr, output};

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLIENTS: u64 = 64;
const KEYS: u64 = 100_000;
const VALUE: usize = 512;
/// How long before and after the kill.
const SIDE: Duration = Duration::from_secs(10);
const GUESTS: usize = 100_000;
const FOREGROUND_PACE: Duration = Duration::from_millis(2);

pub(super) fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|word| word == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        if wants("kill") {
            kill().await;
        }
        for nodes in [3, 5] {
            if wants("handoff") {
                handoff(nodes).await;
            }
        }
    });
}

async fn start(nodes: u64, chance: &mut ChaCha8Rng) -> (Cluster, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let addrs = (0..nodes).map(|_| {
        let (client, peer) = (free_addr(chance), free_addr(chance));
        Addresses { client, listen_peer: peer.clone(), peer }
    });
    let addrs = addrs.collect();
    (Cluster::start(dir.path(), 256, addrs, &["--log", "ringdove=warn"], chance).await, dir)
}

fn chance() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(std::process::id().into())
}

fn client(cluster: &Cluster, chance: &mut ChaCha8Rng) -> Client {
    let config = ClientConfig::new(cluster.client_addrs());
    Client::new(Arc::new(TcpNet), Arc::new(RealClock::new()), chance.random(), config)
}

fn key(number: u64) -> Key {
    Key::new(format!("bench/{number:010}").into_bytes()).expect("a short key")
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("sound bounds")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// How one put ended.
struct Ended {
    began: Instant,
    at: Instant,
    error: Option<ClientError>,
}

async fn kill() {
    let mut chance = chance();
    let (mut cluster, _dir) = start(3, &mut chance).await;
    let stop = Arc::new(AtomicBool::new(false));
    let client = client(&cluster, &mut chance);
    let workers: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (client, stop) = (client.clone(), stop.clone());
            let mut chance = ChaCha8Rng::seed_from_u64(chance.random());
            tokio::spawn(async move {
                let value = Bytes::from(vec![b'd'; VALUE]);
                let mut all = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let key = key(chance.random_range(0..KEYS));
                    let began = Instant::now();
                    let options = WriteOptions { context: Some(Context::Current), ..WriteOptions::default() };
                    let error = client.put(&key, value.clone(), &options).await.err();
                    all.push(Ended { began, at: Instant::now(), error });
                }
                all
            })
        })
        .collect();
    // What is warm after two seconds stays so.
    tokio::time::sleep(Duration::from_secs(2) + SIDE).await;
    let killed = Instant::now();
    cluster.nodes[1].kill();
    tokio::time::sleep(SIDE).await;
    stop.store(true, Ordering::SeqCst);
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.expect("a worker does not panic"));
    }

    let dead = &cluster.nodes[1].addrs.client;
    let (mut lost, mut others) = (0, Vec::new());
    let (mut before, mut after) = (histogram(), histogram());
    let mut done = Vec::new();
    for Ended { began, at, error } in all {
        match error {
            None => {
                done.push(at);
                let took = micros(at - began);
                if began >= killed {
                    after.saturating_record(took);
                } else if began + SIDE >= killed {
                    before.saturating_record(took);
                }
            }
            Some(ClientError::Unknown(why)) if why.starts_with(dead.as_str()) => lost += 1,
            Some(error) => others.push(((began - killed.min(began)).as_millis(), error.to_string())),
        }
    }
    done.sort_unstable();
    let around = |pair: &[Instant]| (pair[1] - pair[0], pair[1].saturating_duration_since(killed));
    let gap = done.windows(2).map(around).max().unwrap_or_default();
    println!("kill -9 of one of three nodes under {CLIENTS} clients, W=2, {VALUE}-byte puts:");
    let row = |what: &str, times: &Histogram<u64>| {
        let at = |place| ms(times.value_at_percentile(place));
        println!(
            "  10 s {what}: {} puts, p50 {:.2}, p99 {:.2}, p99.9 {:.2}, longest {:.1} ms",
            times.len(),
            at(50.0),
            at(99.0),
            at(99.9),
            at(100.0)
        );
    };
    row("before", &before);
    row("after ", &after);
    #[allow(clippy::cast_precision_loss)] // figures for people
    let times = after.value_at_percentile(99.0) as f64 / before.value_at_percentile(99.0).max(1) as f64;
    println!("  p99 after / before: {times:.2} (mark 3)");
    println!(
        "  longest gap without a successful put: {:.1} ms (mark 1000), {:?} after the kill",
        ms(micros(gap.0)),
        gap.1
    );
    println!("  unknown, in flight at the killed node: {lost}");
    println!("  errors of live nodes: {} (mark 0){}", others.len(), first_of(&others));
}

fn first_of(errors: &[(u128, String)]) -> String {
    errors.iter().take(3).map(|(at, error)| format!("\n    {at} ms after the kill: {error}")).collect()
}

/// Operations by the clock, until `stop`.
async fn foreground(client: Client, seed: u64, stop: Arc<AtomicBool>) -> (Histogram<u64>, u64) {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let value = Bytes::from(vec![b'd'; VALUE]);
    let (failed, mut running) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    let mut ticks = tokio::time::interval(FOREGROUND_PACE);
    let mut times = histogram();
    while !stop.load(Ordering::SeqCst) {
        let due = ticks.tick().await.into_std();
        let (client, value, failed) = (client.clone(), value.clone(), failed.clone());
        let (key, is_get) = (key(chance.random_range(0..KEYS)), chance.random());
        running.spawn(async move {
            let ended = if is_get {
                client.get(&key, &ReadOptions::default()).await.map(drop)
            } else {
                let options = WriteOptions { context: Some(Context::Current), ..WriteOptions::default() };
                client.put(&key, value, &options).await.map(drop)
            };
            if ended.is_err() {
                failed.fetch_add(1, Ordering::SeqCst);
            }
            due.elapsed()
        });
        while let Some(Ok(took)) = running.try_join_next() {
            times.saturating_record(micros(took));
        }
    }
    while let Some(Ok(took)) = running.join_next().await {
        times.saturating_record(micros(took));
    }
    (times, failed.load(Ordering::SeqCst))
}

/// Records kept for `target`, as `ringdove hints` says.
fn kept_for(cluster: &Cluster, target: NodeId) -> u64 {
    let told = output(&["hints", "--addr", &cluster.client_addrs().join(","), "--json"]);
    let hints: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
    let nodes = hints["nodes"].as_array().expect("a list");
    let targets = nodes.iter().filter_map(|node| node["targets"].as_array()).flatten();
    let ours = targets.filter(|hints| hints["target"] == target.to_string());
    ours.map(|hints| hints["count"].as_u64().expect("a number")).sum()
}

async fn handoff(nodes: u64) {
    let mut chance = chance();
    let (mut cluster, _dir) = start(nodes, &mut chance).await;
    let client = client(&cluster, &mut chance);
    let measured = |seed| {
        let stop = Arc::new(AtomicBool::new(false));
        (tokio::spawn(foreground(client.clone(), seed, stop.clone())), stop)
    };
    let (warming, stop) = measured(1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::SeqCst);
    let _ = warming.await;
    let (measuring, stop) = measured(2);
    tokio::time::sleep(SIDE).await;
    stop.store(true, Ordering::SeqCst);
    let (alone, alone_failed) = measuring.await.expect("it does not panic");

    let away = cluster.nodes.len() - 1;
    let id = cluster.nodes[away].id;
    cluster.nodes[away].stop();
    let layout = cluster.layout.clone();
    let is_its = |key: &Key| layout.is_primary(layout.q().partition_of(Namespace::default(), key), id);
    let keys = (0..).map(|number: u64| Key::new(format!("guest/{number:010}").into_bytes()).expect("short"));
    let keys = keys.filter(is_its).take(GUESTS);
    let value = Bytes::from(vec![b'g'; VALUE]);
    let began = Instant::now();
    let puts = stream::iter(keys).map(|key| {
        let (client, value) = (client.clone(), value.clone());
        async move {
            let options = WriteOptions { context: Some(Context::Current), ..WriteOptions::default() };
            while client.put(&key, value.clone(), &options).await.is_err() {}
        }
    });
    puts.buffer_unordered(256).collect::<()>().await;
    let put_in = began.elapsed();
    // What was put has reached whoever is to keep it once the stragglers have.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let kept = kept_for(&cluster, id);
    assert!(kept > 0, "nothing was kept for {id}");

    let (measuring, stop) = measured(3);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let starting = Instant::now();
    cluster.nodes[away].start();
    let (ready_in, ready) = (starting.elapsed(), Instant::now());
    let mut left = kept;
    while left > 0 && ready.elapsed() < Duration::from_secs(300) {
        // Counting visits every record that is kept, on every node: often, it would be what is measured.
        tokio::time::sleep(Duration::from_millis((left / 30).clamp(200, 3000))).await;
        left = kept_for(&cluster, id);
    }
    let took = ready.elapsed();
    stop.store(true, Ordering::SeqCst);
    let (during, during_failed) = measuring.await.expect("it does not panic");

    println!(
        "{kept} guests of {VALUE} bytes for one of {nodes} nodes, put in {:.1} s:",
        put_in.as_secs_f64()
    );
    println!(
        "  delivered {:.1} s after the node was ready (mark 20), which took {:.2} s; {left} left",
        took.as_secs_f64(),
        ready_in.as_secs_f64()
    );
    let row = |what: &str, times: &Histogram<u64>, failed: u64| {
        let at = |place| ms(times.value_at_percentile(place));
        println!(
            "  foreground {what}: {} operations, {failed} failed, p50 {:.2}, p99 {:.2}, longest {:.1} ms",
            times.len(),
            at(50.0),
            at(99.0),
            at(100.0)
        );
    };
    row("alone    ", &alone, alone_failed);
    row("meanwhile", &during, during_failed);
    #[allow(clippy::cast_precision_loss)] // figures for people
    let times = during.value_at_percentile(99.0) as f64 / alone.value_at_percentile(99.0).max(1) as f64;
    println!("  p99 meanwhile / alone: {times:.2} (mark 2)");
}
