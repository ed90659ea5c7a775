//! The log engine on the real disk, beside the floor of one raw write and one fdatasync a group, measured in the same
//! run. `cargo bench --bench storage -- 1000000` (keys; the default is 1,000,000, some 2.5 GB of disk).
//!
//! A *group of G* is one task that submits G read-modify-writes on random keys, waits until all are durable, and repeats.
//! *Clients* are tasks in a closed loop of their own: each changes one key, waits until that is durable, and goes on.
//! CPU is that of the whole process (user and system), so the disk's threads are in it, and the bench's own making of
//! keys.

#![allow(clippy::disallowed_methods)] // a bench works on real files and takes real time

use std::io::Write as _;
use std::ops::Bound;
use std::path::{Path, PathBuf};
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
    Change, Direction, Durability, LogPosition, SaltSeed, Slot, Stats, Store, StoreConfig, Table,
};
use ringdove::types::{Incarnation, Key, Namespace, Wall, WriteId};

const VALUE: usize = 580;
const USER_BYTES: u64 = 32 + VALUE as u64;
/// Bytes of a record in the log, for the floor.
const RECORD: usize = 672;

fn config() -> StoreConfig {
    StoreConfig::new(PartitionCount::new(256).expect("a power of two"), MerkleKey([1; 16]))
}

fn slot(n: u64) -> Slot {
    let key = Key::new(format!("user-{:027}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes());
    let key = key.expect("a short key");
    let partition = config().partitions.partition_of(Namespace(0), &key);
    Slot { table: Table::Data, partition, namespace: Namespace(0), key }
}

/// User and system time of the process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
    Duration::from_millis(ticks * 10)
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn row(what: &str, figures: &str) {
    println!("{what:<44} {figures}");
    let _ = std::io::stdout().flush();
}

fn percentile(times: &mut [Duration], of_thousand: usize) -> Duration {
    times.sort_unstable();
    times
        .get((times.len() * of_thousand / 1000).min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

/// Operations a second, and CPU for one of them.
fn floor(dir: &Path, group: usize, seconds: f64) -> (f64, Duration) {
    use std::os::unix::fs::FileExt;
    let path = dir.join("floor");
    let file = std::fs::File::create(&path).expect("a file");
    let bytes = vec![7; group * RECORD];
    let (mut offset, mut groups) = (0, 0);
    let (cpu_before, began) = (cpu(), Instant::now());
    while began.elapsed().as_secs_f64() < seconds {
        file.write_all_at(&bytes, offset).expect("space");
        file.sync_data().expect("a disk");
        offset += bytes.len() as u64;
        groups += 1;
    }
    let rate = (groups * group) as f64 / began.elapsed().as_secs_f64();
    let each = (cpu() - cpu_before).div_f64((groups * group) as f64);
    std::fs::remove_file(&path).expect("it is there");
    (rate, each)
}

async fn open(dir: &Path, config: StoreConfig) -> (Store, Duration) {
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
    let (store, _) = opened.await.expect("a store");
    (store, began.elapsed())
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

/// One task, `operations` in groups.
async fn groups(store: &Store, keys: u64, group: u64, operations: u64) {
    let value = Bytes::from(vec![42; VALUE]);
    let mut chance = ChaCha8Rng::seed_from_u64(group);
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

fn updates(dir: &Path, keys: u64) {
    let quiet = StoreConfig { dead_percent_max: 101, ..config() };
    runtime().block_on(async {
        let before = resident();
        let (store, _) = open(dir, StoreConfig { cache_bytes: 0, ..quiet.clone() }).await;
        let began = Instant::now();
        clients(&store, keys, 1024, keys, true).await;
        let stats = store.stats();
        row(
            &format!("load {keys} keys, groups of 1024"),
            &format!(
                "{:>9.0}/s  {:.3} bytes written a user byte ({:.3} with snapshots)",
                keys as f64 / began.elapsed().as_secs_f64(),
                stats.written_bytes as f64 / (keys * USER_BYTES) as f64,
                written(&stats) as f64 / (keys * USER_BYTES) as f64,
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
        for group in [64, 256, 1024] {
            let (raw, raw_cpu) = floor(dir, usize::try_from(group).expect("small"), 2.0);
            let operations = (keys / 4).max(group * 20);
            let (cpu_before, began, before) = (cpu(), Instant::now(), store.stats());
            groups(&store, keys, group, operations).await;
            let rate = operations as f64 / began.elapsed().as_secs_f64();
            let after = store.stats();
            row(
                &format!("read-modify-write, groups of {group}"),
                &format!(
                    "{rate:>9.0}/s  {:>5.2} µs CPU  floor {raw:>9.0}/s ({:>3.0}%) {:.2} µs CPU  {:.0} a group  {:.3} bytes/byte",
                    (cpu() - cpu_before).as_secs_f64() * 1e6 / operations as f64,
                    rate / raw * 100.0,
                    raw_cpu.as_secs_f64() * 1e6,
                    operations as f64 / (after.groups - before.groups) as f64,
                    (written(&after) - written(&before)) as f64 / (operations * USER_BYTES) as f64,
                ),
            );
        }
    });
    // The runtime is gone, and with it the store, as after kill -9; the page cache stays.
    runtime().block_on(async {
        let (store, took) = open(dir, quiet.clone()).await;
        row("open after a kill", &format!("{:>9.3} s", took.as_secs_f64()));
        reads(&store, keys).await;
        store.close().await.expect("closed");
        let (store, took) = open(dir, quiet).await;
        row("open after a clean stop", &format!("{:>9.3} s", took.as_secs_f64()));
        store.close().await.expect("closed");
    });
}

async fn reads(store: &Store, keys: u64) {
    let mut chance = ChaCha8Rng::seed_from_u64(1);
    let slots: Vec<Slot> = (0..100_000).map(|_| slot(chance.random_range(0..keys))).collect();
    // Twice: the first pass warms the page cache.
    for pass in 0..2 {
        let mut times = Vec::with_capacity(slots.len());
        let began = Instant::now();
        for slot in &slots {
            let began = Instant::now();
            let entry = store.read(slot).await.expect("a read");
            assert!(entry.is_some(), "every key is there");
            times.push(began.elapsed());
        }
        let rate = slots.len() as f64 / began.elapsed().as_secs_f64();
        let what = if pass == 0 { "get, random, first pass" } else { "get, random, again (some cached)" };
        row(what, &format!("{rate:>9.0}/s  p99 {:?}", percentile(&mut times, 990)));
    }
    let began = Instant::now();
    let mut found = 0;
    for partition in config().partitions.partitions() {
        let mut last: Option<(Namespace, Key)> = None;
        loop {
            let from =
                last.as_ref().map_or(Bound::Unbounded, |(namespace, key)| Bound::Excluded((*namespace, key)));
            let page = store.scan(Table::Data, partition, from, Direction::Ascending, 512);
            found += page.keys.len();
            let Some(end) = page.keys.last().filter(|_| page.keys.len() == 512) else { break };
            last = Some((end.namespace, end.key.clone()));
        }
    }
    assert_eq!(found as u64, keys);
    row("scan of all keys", &format!("{:>9.0} keys/s", found as f64 / began.elapsed().as_secs_f64()));
}

/// Overwrites a small store many times over: what compaction costs.
fn overwrite(dir: &Path, keys: u64) {
    for (name, dead) in [("without compaction", 101), ("with compaction", config().dead_percent_max)] {
        let dir = fresh(&dir.join("overwrite"));
        runtime().block_on(async {
            let sized = StoreConfig { segment_bytes: 8 << 20, dead_percent_max: dead, ..config() };
            let (store, _) = open(&dir, sized).await;
            clients(&store, keys, 256, keys, true).await;
            let before = store.stats();
            let rounds = 5;
            let mut times = clients(&store, keys, 256, keys * rounds, false).await;
            let after = store.stats();
            row(
                &format!("{rounds} x {keys} overwrites, {name}"),
                &format!(
                    "p50 {:?}  p99 {:?}  {:.2} bytes/byte  space {:.2}",
                    percentile(&mut times, 500),
                    percentile(&mut times, 990),
                    (written(&after) - written(&before)) as f64 / (keys * rounds * USER_BYTES) as f64,
                    after.log_bytes as f64 / after.live_bytes as f64,
                ),
            );
            store.close().await.expect("closed");
        });
        let _ = std::fs::remove_dir_all(&dir);
    }
}

fn main() {
    let keys = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let dir = fresh(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-storage"));
    updates(&dir, keys);
    let _ = fresh(&dir);
    overwrite(&dir, keys / 5);
    let _ = std::fs::remove_dir_all(&dir);
}
