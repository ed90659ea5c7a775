//! The bodies of the fuzz targets (`fuzz/`), run on arbitrary bytes and on mutated valid files, and on what comes from
//! sockets (`wire`): nothing panics, and nothing takes memory out of proportion to the input. This test has a process of its own because it counts every
//! allocation.
//!
//! `RINGDOVE_FUZZ_RUNS=1000000 cargo test --release --test fuzzing mutated -- --nocapture` goes on for longer.

#![cfg(not(madsim))]
#![allow(clippy::disallowed_methods)] // a test writes files and reads its settings

use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringdove::dynamo::layout::{Layout, Member};
use ringdove::dynamo::merkle::MerkleKey;
use ringdove::dynamo::version::{ActorMint, Caps, Content, Overwrite, Write};
use ringdove::io::{Disk, MemoryDisk, RealClock};
use ringdove::storage::fuzzing::{self, Files, Outcome};
use ringdove::storage::{Change, Durability, SaltSeed, Slot, Store, StoreConfig, Table, directory};
use ringdove::types::{Incarnation, Key, Namespace, NodeId, PartitionId, Wall, WriteId};

mod counting;
mod wire;

/// Mutated directories of one run, unless `RINGDOVE_FUZZ_RUNS` asks for more.
const RUNS: u64 = 6_000;
/// Most bytes that a look and two starts may hold at once: for each byte of the files, and whatever the files are. What
/// costs most is a snapshot's list of targets, of which one byte is enough for an entry in a tree.
const MEMORY_EACH: usize = 200;
const MEMORY_LEAST: usize = 4 * 1024 * 1024;
/// The same where `node.meta` is not whole, or says something else: there may be 65,536 partitions.
const MEMORY_UNKNOWN: usize = 64 * 1024 * 1024;

/// Runs a body and judges the memory that it took.
fn weighed(least: usize, bytes: usize, what: &str, body: impl FnOnce() -> Outcome) -> Outcome {
    let (outcome, peak) = counting::peak(body);
    let most = least + MEMORY_EACH * bytes;
    assert!(peak <= most, "{what}: {peak} bytes of memory for {bytes} bytes of files, at most {most}");
    outcome
}

fn slot(key: &str, table: Table) -> Slot {
    let key = Key::new(key.as_bytes().to_vec()).unwrap();
    let partition = fuzzing::descriptor().partitions.partition_of(Namespace(0), &key);
    Slot { table, partition, namespace: Namespace(0), key }
}

/// A directory with everything in it: entries of all forms, guests, removals, states, a snapshot, several segments.
async fn written(clean: bool, snapshot: bool) -> Files {
    let (disk, dir) = (MemoryDisk::new(), Path::new("/data"));
    let members: Vec<Member> = (1..=3)
        .map(|id| Member {
            id: NodeId(id),
            peer_addr: format!("127.0.0.1:{id}"),
            client_addr: format!("127.0.0.1:10{id}"),
            zone: String::new(),
            capacity: 1,
        })
        .collect();
    let descriptor = fuzzing::descriptor();
    let layout = Layout::first(descriptor.partitions, 3, members).unwrap();
    let config = StoreConfig {
        segment_bytes: 900,
        snapshot_bytes_min: u64::MAX / 2,
        dead_percent_max: 101,
        ..StoreConfig::new(descriptor.partitions, MerkleKey(descriptor.merkle_key))
    };
    let meta =
        directory::NodeMeta { format: directory::FORMAT, node: NodeId(1), descriptor, layouts: vec![layout] };
    directory::write(&disk, dir, &meta).await.unwrap();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let opened =
        Store::open(shared, Arc::new(RealClock::new()), dir, Incarnation(1), SaltSeed(1), config).await;
    let (store, _) = opened.unwrap();
    for n in 0..30_u64 {
        let table = if n % 4 == 1 { Table::Guest } else { Table::Data };
        // Some keys are the snapshot's alone.
        let slot = slot(&format!("key{}", if n < 15 { n } else { n % 9 }), table);
        let position = if n % 10 == 7 {
            store.update(&slot, Durability::Sync, |_| (Change::Remove, ())).await.unwrap().1
        } else if n % 10 == 9 {
            let raise = |state: &mut ringdove::storage::PartitionState| {
                (state.fence, state.refilled) = (n, true);
                (Change::Write, ())
            };
            store.update_partition(PartitionId(2), raise).await.unwrap().1
        } else {
            let content = if n % 6 == 5 { Content::Tombstone } else { Content::Value(vec![b'v'; 40].into()) };
            let write = Write { write_id: WriteId(n.into()), content, meta: None, expires_at: Some(Wall(n)) };
            let overwrite = if n % 3 == 0 { Overwrite::Nothing } else { Overwrite::Current };
            let put = |entry: &mut ringdove::storage::Entry| {
                let mut mint = ActorMint::new(Incarnation(n % 3));
                entry.copy.put(&mut mint, overwrite, write, Wall(n), &Caps::default()).unwrap();
                entry.add_targets(&[NodeId(2), NodeId(n)][..usize::try_from(n % 3).unwrap()]);
                (Change::Write, ())
            };
            store.update(&slot, Durability::Sync, put).await.unwrap().1
        };
        store.wait_synced(position).await.unwrap();
        if snapshot && n == 15 {
            store.snapshot().await.unwrap();
        }
    }
    if clean {
        store.close().await.unwrap();
    }
    files_of(&disk, dir).await
}

async fn files_of(disk: &MemoryDisk, dir: &Path) -> Files {
    let mut files = Files::new();
    for name in disk.list(dir).await.unwrap() {
        let file = disk.open(&dir.join(&name), false).await.unwrap();
        let len = usize::try_from(file.size().await.unwrap()).unwrap();
        files.insert(name, file.read_at(0, len).await.unwrap().to_vec());
    }
    files
}

fn directories() -> Vec<Files> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        vec![written(true, true).await, written(false, true).await, written(true, false).await]
    })
}

fn size(files: &Files) -> usize {
    files.values().map(Vec::len).sum()
}

/// What the checksums of a file start from; none for files without.
fn id_of(name: &str) -> Option<u64> {
    match name {
        "index.snap" => Some(u64::MAX),
        "node.meta" | "clean" => Some(0),
        name => name.strip_suffix(".log")?.parse().ok(),
    }
}

/// Changes some bytes as rot, torn writes and fuzzers do.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Xoshiro256PlusPlus) {
    const ODD: [u64; 14] = [
        0,
        1,
        127,
        128,
        250,
        251,
        255,
        0xffff,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 61,
        1 << 62,
        u64::MAX / 2,
        u64::MAX,
    ];
    for _ in 0..random.random_range(1..4) {
        let len = bytes.len();
        let at = random.random_range(0..=len);
        let (from, to) = (at, random.random_range(at..=len.min(at + 64)));
        match random.random_range(0..9) {
            0 if at < len => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < len => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(from..to)),
            4 => {
                let again = bytes[from..to].to_vec();
                bytes.splice(at..at, again);
            }
            5 if !others.is_empty() => {
                let other = &others[random.random_range(0..others.len())];
                let cut = random.random_range(0..=other.len());
                let until = other.len().min(cut + random.random_range(0..200));
                bytes.splice(from..to, other[cut..until].iter().copied());
            }
            width => {
                let odd = ODD[random.random_range(0..ODD.len())].to_le_bytes();
                let width = [1, 4, 8, 8][width % 4].min(len - at);
                bytes[at..at + width].copy_from_slice(&odd[..width]);
            }
        }
    }
}

/// A directory of which one file, sometimes two, are not as they were written.
fn mutated(directories: &[Files], seed: u64) -> (Files, String) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut files = directories[random.random_range(0..directories.len())].clone();
    let others: Vec<Vec<u8>> = files.values().cloned().collect();
    let mut told = String::new();
    for _ in 0..random.random_range(1..3) {
        let names: Vec<String> = files.keys().filter(|name| id_of(name).is_some()).cloned().collect();
        let name = names[random.random_range(0..names.len())].clone();
        let bytes = files.get_mut(&name).unwrap();
        mutate(bytes, &others, &mut random);
        let reseal = random.random_bool(0.6);
        if reseal {
            fuzzing::reseal(bytes, id_of(&name).unwrap(), usize::MAX);
        }
        told.push_str(&format!("{name}, resealed {reseal}; "));
        if random.random_bool(0.05) {
            // Names are input too.
            let renamed = ["0000000000.log", "18446744073709551615.log", "00000000002.log", "9999999999.log"]
                [random.random_range(0..4)];
            let bytes = files.remove(&name).unwrap();
            told.push_str(&format!("as {renamed}; "));
            files.insert(renamed.to_owned(), bytes);
        }
    }
    (files, told)
}

#[test]
fn mutated_directories_are_opened_or_refused_within_bounds() {
    let runs = std::env::var("RINGDOVE_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
    let first = std::env::var("RINGDOVE_FUZZ_SEED").map_or(0, |seed| seed.parse().unwrap());
    let directories = directories();
    for files in &directories {
        let outcome = weighed(MEMORY_LEAST, size(files), "whole", || fuzzing::run(files));
        assert!(outcome.opened && outcome.entries > 5 && outcome.read == outcome.entries, "{outcome:?}");
        assert_eq!(outcome.clean_snapshot, files.contains_key("index.snap"));
    }
    let (mut opened, mut some_lost, mut entries, mut failed) = (0, 0, 0, Vec::new());
    for seed in first..first + runs {
        let (files, told) = mutated(&directories, seed);
        let when = format!("RINGDOVE_FUZZ_SEED={seed} RINGDOVE_FUZZ_RUNS=1: {told}");
        let least = if told.contains("node.meta") { MEMORY_UNKNOWN } else { MEMORY_LEAST };
        let tried = catch_unwind(|| weighed(least, size(&files), &when, || fuzzing::run(&files)));
        let Ok(outcome) = tried else {
            eprintln!("at {when}");
            failed.push(seed);
            // Each tells something; the first ones tell enough.
            if failed.len() < 20 {
                continue;
            } else {
                break;
            };
        };
        opened += u64::from(outcome.opened);
        some_lost += u64::from(outcome.read < outcome.entries);
        entries += outcome.entries;
    }
    assert!(failed.is_empty(), "seeds {failed:?}");
    println!("{runs} mutated directories: {opened} opened, {some_lost} with entries lost, {entries} entries");
    // Enough of them come far.
    assert!(opened > runs / 2 && some_lost > runs / 50, "{opened} opened, {some_lost} with entries lost");
}

/// Valid files for the fuzzers to begin from, in `fuzz/corpus`.
#[test]
#[ignore = "writes files"]
fn a_corpus_is_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (n, files) in directories().into_iter().enumerate() {
        for (name, bytes) in files {
            let (target, flags) = match name.as_str() {
                "node.meta" => ("node_meta", [0, 1]),
                "index.snap" => ("snapshot", [0, 1]),
                "0000000001.log" => ("segment", [1, 3]),
                _ => continue,
            };
            std::fs::create_dir_all(root.join(target)).unwrap();
            for flags in flags {
                let input: Vec<u8> = std::iter::once(flags).chain(bytes.iter().copied()).collect();
                std::fs::write(root.join(target).join(format!("{n}-{flags}")), input).unwrap();
            }
        }
    }
}

/// Each target is an entry of a tree that leads from nodes to keys; a copy of the key in each would be 80 MB here.
#[test]
fn a_long_key_kept_for_many_nodes_costs_what_it_weighs() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guest = slot(&"k".repeat(4000), Table::Guest);
    let many: Vec<NodeId> = (0..20_000).map(NodeId).collect();
    let (disk, dir) = (MemoryDisk::new(), Path::new("/data"));
    let files = runtime.block_on(async {
        let meta = directory::NodeMeta {
            format: directory::FORMAT,
            node: NodeId(1),
            descriptor: fuzzing::descriptor(),
            layouts: Vec::new(),
        };
        let config = StoreConfig::new(meta.descriptor.partitions, MerkleKey(meta.descriptor.merkle_key));
        directory::write(&disk, dir, &meta).await.unwrap();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let opened =
            Store::open(shared, Arc::new(RealClock::new()), dir, Incarnation(1), SaltSeed(1), config).await;
        let store = opened.unwrap().0;
        let keep = |entry: &mut ringdove::storage::Entry| {
            entry.add_targets(&many);
            (Change::Write, ())
        };
        let (_, position) = store.update(&guest, Durability::Sync, keep).await.unwrap();
        store.wait_synced(position).await.unwrap();
        let tail = files_of(&disk, dir).await;
        store.snapshot().await.unwrap();
        store.close().await.unwrap();
        [tail, files_of(&disk, dir).await]
    });
    for files in files {
        let outcome = weighed(MEMORY_LEAST, size(&files), "many targets", || fuzzing::run(&files));
        assert_eq!(outcome.read, 1);
    }
}

fn each_body(input: &[u8]) {
    let len = input.len() + 1024;
    weighed(MEMORY_UNKNOWN, len, "node.meta", || fuzzing::node_meta(input));
    weighed(MEMORY_LEAST, len, "a segment", || fuzzing::segment(input));
    weighed(MEMORY_LEAST, len, "a snapshot", || fuzzing::snapshot(input));
}

/// Bytes that have the form of a record as far as lengths, kind and version go; the targets make its checksum right.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..120);
    let kind = prop_oneof![1..9_u16, 16..21_u16, any::<u16>()];
    (kind, body).prop_map(|(kind, body)| {
        let len = u32::try_from(body.len()).unwrap();
        let mut bytes = (len + 12).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_refused_within_bounds(input in proptest::collection::vec(any::<u8>(), 0..2000)) {
        each_body(&input);
    }

    #[test]
    fn arbitrary_records_are_refused_within_bounds(
        flags in 0..8_u8,
        records in proptest::collection::vec(record(), 0..8),
    ) {
        let input: Vec<u8> = std::iter::once(flags | 1).chain(records.into_iter().flatten()).collect();
        each_body(&input);
    }
}
