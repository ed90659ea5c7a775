//! The log engine on the real disk, beside the floor of one raw write and one fdatasync a group, measured in the same
//! run. `cargo bench --bench storage -- 1000000` (keys; the default is 1,000,000, some 7 GB of disk), with the names of the
//! phases that are wanted: `updates`, `kills`, `reads`, `cold`, `overwrite`; without, all.
//!
//! A *group of G* is one task that submits G read-modify-writes on random keys, waits until all are durable, and repeats.
//! *Clients* are tasks in a closed loop of their own: each changes one key, waits until that is durable, and goes on.
//! Bytes a user byte are those of the log and, behind the plus, of snapshots. CPU is that of the whole process (user and system), so the disk's threads are in it, and the bench's own making of
//! keys.

#![allow(clippy::disallowed_methods)] // a bench works on real files and takes real time

use std::io::BufRead as _;
use std::ops::Bound;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use ringdove::dynamo::merkle::MerkleKey;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::{ActorMint, Caps, Content, Overwrite, Write};
use ringdove::io::{RealClock, RealDisk};
use ringdove::storage::{
    Change, Direction, Durability, LogPosition, Recovery, SaltSeed, Slot, Stats, Store, StoreConfig, Table,
};
use ringdove::types::{Incarnation, Key, Namespace, Wall, WriteId};

mod measure;

use measure::{RECORD, appends, chill, cpu, percentile, resident, row};

/// The program's.
#[cfg(not(madsim))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE: usize = 580;
const USER_BYTES: u64 = 32 + VALUE as u64;

fn config() -> StoreConfig {
    StoreConfig::new(PartitionCount::new(256).expect("a power of two"), MerkleKey([1; 16]))
}

fn slot(n: u64) -> Slot {
    let key = Key::new(format!("user-{:027}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes());
    let key = key.expect("a short key");
    let partition = config().partitions.partition_of(Namespace(0), &key);
    Slot { table: Table::Data, partition, namespace: Namespace(0), key }
}

async fn open(dir: &Path, config: StoreConfig) -> (Store, Duration) {
    let (store, took, _) = open_told(dir, config).await;
    (store, took)
}

async fn open_told(dir: &Path, config: StoreConfig) -> (Store, Duration, Recovery) {
    let began = Instant::now();
    let disk = Arc::new(RealDisk::new().expect("threads"));
    let opened = Store::open(
        disk,
        Arc::new(RealClock::new()),
        dir,
        Incarnation(began.elapsed().subsec_nanos().into()),
        SaltSeed(1),
        config,
    );
    let (store, recovery) = opened.await.expect("a store");
    (store, began.elapsed(), recovery)
}

/// One node's: all parts of a run are one start of it.
static MINT: LazyLock<Mutex<ActorMint>> =
    LazyLock::new(|| Mutex::new(ActorMint::new(Incarnation(u64::MAX / 3))));

async fn rewrite(store: &Store, slot: &Slot, value: &Bytes) -> LogPosition {
    let write = Write {
        write_id: WriteId(u128::from(u64::MAX) << 40),
        content: Content::Value(value.clone()),
        meta: None,
        expires_at: None,
    };
    let change = |entry: &mut ringdove::storage::Entry| {
        let put = entry.copy.put(
            &mut MINT.lock().expect("no panic"),
            Overwrite::Current,
            write,
            Wall(1 << 40),
            &Caps::default(),
        );
        put.expect("within the caps");
        (Change::Write, ())
    };
    let (_, position) = store.update(slot, Durability::Sync, change).await.expect("an update");
    position
}

/// One task, `operations` in groups; which keys hangs on the seed.
async fn groups(store: &Store, keys: u64, group: u64, operations: u64, seed: u64) {
    let value = Bytes::from(vec![42; VALUE]);
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..operations / group {
        let mut last = LogPosition::default();
        for _ in 0..group {
            let slot = slot(chance.random_range(0..keys));
            last = last.max(rewrite(store, &slot, &value).await);
        }
        store.wait_synced(last).await.expect("durable");
    }
}

/// `clients` in a closed loop, together `operations`; how long each commit took.
async fn clients(store: &Store, keys: u64, clients: u64, operations: u64, ordered: bool) -> Vec<Duration> {
    let value = Bytes::from(vec![42; VALUE]);
    let mut tasks = Vec::new();
    for client in 0..clients {
        let (store, value) = (store.clone(), value.clone());
        tasks.push(tokio::spawn(async move {
            let mut chance = ChaCha8Rng::seed_from_u64(client << 32 | clients << 1 | u64::from(ordered));
            let mut times = Vec::new();
            let mut n = client;
            while n < operations {
                let key = if ordered { n } else { chance.random_range(0..keys) };
                let began = Instant::now();
                let position = rewrite(&store, &slot(key), &value).await;
                store.wait_synced(position).await.expect("durable");
                times.push(began.elapsed());
                n += clients;
            }
            times
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a client"));
    }
    times
}

fn written(stats: &Stats) -> u64 {
    stats.written_bytes + stats.snapshot_bytes
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn fresh(dir: &Path) -> PathBuf {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).expect("a directory");
    dir.to_owned()
}

/// A store that is left alone: no snapshot, no compaction.
fn alone() -> StoreConfig {
    StoreConfig { snapshot_bytes_min: u64::MAX / 2, dead_percent_max: 101, ..config() }
}

/// One row of read-modify-writes beside the floor of this moment.
async fn rewrites(dir: &Path, store: &Store, what: &str, keys: u64, group: u64, operations: u64) {
    let (raw, raw_cpu) = appends(dir, usize::try_from(group).expect("small"), 2.0);
    let (cpu_before, began, before) = (cpu(), Instant::now(), store.stats());
    groups(store, keys, group, operations, group).await;
    let rate = operations as f64 / began.elapsed().as_secs_f64();
    let (spent, after) = (cpu() - cpu_before, store.stats());
    let a_byte = |bytes: u64| bytes as f64 / (operations * USER_BYTES) as f64;
    row(
        &format!("groups of {group}, {what}"),
        &format!(
            "{rate:>8.0}/s {:>5.2} µs CPU  floor {raw:>7.0}/s ({:>3.0}%) {:.2} µs CPU  {:>4.0} a group  {:.3} + {:.3} bytes/byte, {} snapshots",
            spent.as_secs_f64() * 1e6 / operations as f64,
            rate / raw * 100.0,
            raw_cpu.as_secs_f64() * 1e6,
            operations as f64 / (after.groups - before.groups) as f64,
            a_byte(after.written_bytes - before.written_bytes),
            a_byte(after.snapshot_bytes - before.snapshot_bytes),
            after.snapshots - before.snapshots,
        ),
    );
}

fn load(dir: &Path, keys: u64) {
    runtime().block_on(async {
        let before = resident();
        let (store, _) = open(dir, StoreConfig { cache_bytes: 0, dead_percent_max: 101, ..config() }).await;
        let (cpu_before, began) = (cpu(), Instant::now());
        clients(&store, keys, 1024, keys, true).await;
        let (took, spent, stats) = (began.elapsed(), cpu() - cpu_before, store.stats());
        row(
            &format!("load {keys} keys, 1024 clients"),
            &format!(
                "{:>8.0}/s {:>5.2} µs CPU  {:.3} + {:.3} bytes/byte",
                keys as f64 / took.as_secs_f64(),
                spent.as_secs_f64() * 1e6 / keys as f64,
                stats.written_bytes as f64 / (keys * USER_BYTES) as f64,
                stats.snapshot_bytes as f64 / (keys * USER_BYTES) as f64,
            ),
        );
        row(
            "memory of the index",
            &format!(
                "{} bytes a key allocated, {} bytes a key resident",
                stats.index_bytes / keys,
                (resident() - before) / keys
            ),
        );
        store.close().await.expect("closed");
    });
}

/// The same with and without snapshots. With them a row goes on for two of them, by the rule for when one is due.
fn updates(dir: &Path, keys: u64) {
    runtime().block_on(async {
        let (store, _) = open(dir, alone()).await;
        for group in [64, 256, 1024] {
            rewrites(dir, &store, "no snapshots", keys, group, keys / 2).await;
        }
        store.close().await.expect("closed");
        let (store, _) = open(dir, StoreConfig { dead_percent_max: 101, ..config() }).await;
        store.snapshot().await.expect("a snapshot");
        let config = config();
        let due = config.snapshot_bytes_min.max(config.snapshot_factor * store.stats().snapshot_bytes);
        for group in [64, 256, 1024] {
            rewrites(dir, &store, "with snapshots", keys, group, 2 * due / RECORD as u64).await;
        }
        store.close().await.expect("closed");
    });
}

/// Another process opens the store, writes, and is killed with signal 9: just before its snapshot is due, which is the
/// most that a start may have to replay, and half way there.
fn kills(dir: &Path, keys: u64) {
    for of_ten in [5, 9] {
        let child = std::env::current_exe().expect("this program");
        let mut child = std::process::Command::new(child);
        child.arg("--writer").arg(dir).args([keys.to_string(), of_ten.to_string()]);
        let mut child = child.stdout(std::process::Stdio::piped()).spawn().expect("a process");
        let mut line = String::new();
        let out = child.stdout.take().expect("its output");
        std::io::BufReader::new(out).read_line(&mut line).expect("a line");
        child.kill().expect("it runs");
        assert_eq!(child.wait().expect("it ended").signal(), Some(9), "{line}");
        runtime().block_on(async {
            let (cpu_before, what) = (cpu(), format!("open after kill -9, {of_ten}0% of the way"));
            let (store, took, recovery) = open_told(dir, alone()).await;
            let spent = cpu() - cpu_before;
            row(
                &what,
                &format!(
                    "{:>8.3} s {:.3} s CPU  {} records, {} MiB replayed",
                    took.as_secs_f64(),
                    spent.as_secs_f64(),
                    recovery.records,
                    recovery.bytes >> 20,
                ),
            );
            assert_eq!(store.len(Table::Data) as u64, keys);
            store.close().await.expect("closed");
        });
    }
}

/// The process that is killed: says so when it has written `of_ten` tenths of the bytes between two snapshots, and
/// goes on.
fn writer(dir: &Path, keys: u64, of_ten: u64) {
    runtime().block_on(async {
        let (store, _) = open(dir, StoreConfig { dead_percent_max: 101, ..config() }).await;
        store.snapshot().await.expect("a snapshot");
        let (config, before) = (config(), store.stats());
        let due = config.snapshot_bytes_min.max(config.snapshot_factor * before.snapshot_bytes);
        let mut told = false;
        // Always other keys: segments of records that were all written again go at once.
        for seed in of_ten << 32.. {
            groups(&store, keys, 1024, 1024, seed).await;
            if !told && store.stats().written_bytes - before.written_bytes > due / 10 * of_ten {
                told = true;
                row("far enough", "");
            }
            assert_eq!(store.stats().snapshots, 1, "killed too late: the next snapshot is written");
        }
    });
}

/// Reads everything in order, page by page; with the values, each page's before the next page.
async fn scan(store: &Store, keys: u64, values: bool) {
    let began = Instant::now();
    let mut found = 0;
    for partition in config().partitions.partitions() {
        let mut last: Option<(Namespace, Key)> = None;
        loop {
            let from =
                last.as_ref().map_or(Bound::Unbounded, |(namespace, key)| Bound::Excluded((*namespace, key)));
            let page = store.scan(Table::Data, partition, from, Direction::Ascending, 512);
            found += page.keys.len();
            if values {
                for key in &page.keys {
                    let (namespace, key) = (key.namespace, key.key.clone());
                    let slot = Slot { table: Table::Data, partition, namespace, key };
                    assert!(store.read(&slot).await.expect("a read").is_some(), "it is there");
                }
            }
            let Some(end) = page.keys.last().filter(|_| page.keys.len() == 512) else { break };
            last = Some((end.namespace, end.key.clone()));
        }
    }
    assert_eq!(found as u64, keys);
    let what = if values { "scan with values" } else { "scan of keys" };
    row(what, &format!("{:>8.0}/s", found as f64 / began.elapsed().as_secs_f64()));
}

fn reads(dir: &Path, keys: u64) {
    runtime().block_on(async {
        // A stop like a node's, with its snapshot if one is due.
        let (store, _) = open(dir, StoreConfig { dead_percent_max: 101, ..config() }).await;
        store.close().await.expect("closed");
        let (store, took) = open(dir, alone()).await;
        row("open after a clean stop", &format!("{:>8.3} s", took.as_secs_f64()));
        scan(&store, keys, false).await;
        // Warm from here on: all of it is in the page cache.
        scan(&store, keys, true).await;
        store.close().await.expect("closed");
        let (store, _) = open(dir, alone()).await;
        let mut chance = ChaCha8Rng::seed_from_u64(1);
        let slots: Vec<Slot> = (0..100_000).map(|_| slot(chance.random_range(0..keys))).collect();
        for what in ["get, random, not cached", "get, random, again (some cached)"] {
            let mut times = Vec::with_capacity(slots.len());
            let (cpu_before, began) = (cpu(), Instant::now());
            for slot in &slots {
                let began = Instant::now();
                let entry = store.read(slot).await.expect("a read");
                assert!(entry.is_some(), "every key is there");
                times.push(began.elapsed());
            }
            let (took, spent) = (began.elapsed(), cpu() - cpu_before);
            row(
                what,
                &format!(
                    "{:>8.0}/s {:>5.2} µs CPU  p99 {:?}",
                    slots.len() as f64 / took.as_secs_f64(),
                    spent.as_secs_f64() * 1e6 / slots.len() as f64,
                    percentile(&mut times, 990)
                ),
            );
        }
        store.close().await.expect("closed");
    });
}

/// Gets of cold records, many at once, beside threads that read as much at random places of the same files.
fn cold(dir: &Path, keys: u64) {
    let (all, at_once) = (keys / 20, 64);
    let raw = [4, 16, at_once].map(|readers| measure::reads(dir, readers, all));
    runtime().block_on(async {
        let (store, _) = open(dir, StoreConfig { cache_bytes: 0, ..alone() }).await;
        chill(dir);
        let began = Instant::now();
        let readers: Vec<_> = (0..at_once as u64)
            .map(|reader| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut chance = ChaCha8Rng::seed_from_u64(reader);
                    for _ in 0..all / at_once as u64 {
                        let slot = slot(chance.random_range(0..keys));
                        assert!(store.read(&slot).await.expect("a read").is_some(), "every key is there");
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.expect("a reader");
        }
        row(
            &format!("get, cold, {at_once} at once"),
            &format!(
                "{:>8.0}/s  threads alone: {:.0}/s by 4, {:.0}/s by 16, {:.0}/s by {at_once}",
                all as f64 / began.elapsed().as_secs_f64(),
                raw[0],
                raw[1],
                raw[2],
            ),
        );
        store.close().await.expect("closed");
    });
}

/// Overwrites the whole store many times over, with the settings of a node: what compaction costs.
fn overwrite(dir: &Path, keys: u64) {
    for (name, dead) in [("without compaction", 101), ("with compaction", config().dead_percent_max)] {
        let dir = fresh(&dir.join("overwrite"));
        runtime().block_on(async {
            let (at_once, rounds) = (256, 5);
            let (store, _) = open(&dir, StoreConfig { dead_percent_max: dead, ..config() }).await;
            clients(&store, keys, at_once, keys, true).await;
            let (raw, _) = appends(&dir, usize::try_from(at_once).expect("small"), 2.0);
            let (before, began) = (store.stats(), Instant::now());
            // The most space that it takes at any moment.
            let most = Arc::new(AtomicU64::default());
            let watching = tokio::spawn({
                let (store, most) = (store.clone(), most.clone());
                async move {
                    loop {
                        let now = store.stats();
                        most.fetch_max(now.log_bytes * 100 / now.live_bytes.max(1), Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            });
            let mut times = clients(&store, keys, at_once, keys * rounds, false).await;
            let (after, took) = (store.stats(), began.elapsed());
            watching.abort();
            row(
                &format!("{rounds} x {keys} overwrites, {name}"),
                &format!(
                    "{:>8.0}/s  floor {raw:>7.0}/s  p50 {:?}  p99 {:?}  {:.2} bytes/byte  space {:.2}, at most {:.2}",
                    (keys * rounds) as f64 / took.as_secs_f64(),
                    percentile(&mut times, 500),
                    percentile(&mut times, 990),
                    (written(&after) - written(&before)) as f64 / (keys * rounds * USER_BYTES) as f64,
                    after.log_bytes as f64 / after.live_bytes as f64,
                    most.load(Ordering::Relaxed) as f64 / 100.0,
                ),
            );
            store.close().await.expect("closed");
        });
        let _ = std::fs::remove_dir_all(&dir);
    }
}

type Phase = fn(&Path, u64);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [writer_, dir, keys, of_ten] = &args[..]
        && writer_ == "--writer"
    {
        let number = |text: &str| text.parse().expect("a number");
        return writer(Path::new(dir), number(keys), number(of_ten));
    }
    let keys = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let names: Vec<&String> = args.iter().filter(|arg| arg.parse::<u64>().is_err()).collect();
    let dir = fresh(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-storage"));
    load(&dir, keys);
    let phases: [(&str, Phase); 4] =
        [("updates", updates), ("kills", kills), ("reads", reads), ("cold", cold)];
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    for (name, phase) in phases {
        if wanted(name) {
            phase(&dir, keys);
        }
    }
    if wanted("overwrite") {
        overwrite(&fresh(&dir), keys);
    }
    let _ = std::fs::remove_dir_all(&dir);
}
