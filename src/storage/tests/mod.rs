//! What the engine's tests share. The disk is the fault-injecting one, through [`observed::TestDisk`] or bare.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::dynamo::merkle::MerkleKey;
use crate::dynamo::ring::PartitionCount;
use crate::dynamo::version::{ActorMint, Caps, Content, Overwrite, Write};
use crate::io::{Disk, RealClock};
use crate::types::{Incarnation, Wall, WriteId};

mod basics;
mod check;
mod compaction;
mod crash;
mod damage;
mod model;
mod observed;
mod power;
mod salt;
mod trouble;

use observed::{Loss, TestDisk};

const DIR: &str = "/data";

fn config() -> StoreConfig {
    StoreConfig::new(PartitionCount::new(8).unwrap(), MerkleKey([7; 16]))
}

/// Segments of a few records, a snapshot every few segments: everything happens often.
fn tiny() -> StoreConfig {
    StoreConfig {
        segment_bytes: 1500,
        snapshot_bytes_min: 3000,
        snapshot_factor: 1,
        dead_percent_max: 30,
        compaction_bytes_per_second: u64::MAX,
        ..config()
    }
}

/// No snapshot, no compaction.
fn quiet() -> StoreConfig {
    StoreConfig { snapshot_bytes_min: u64::MAX / 2, dead_percent_max: 101, ..config() }
}

fn slot(key: &str) -> Slot {
    let key = Key::new(key.as_bytes().to_vec()).unwrap();
    let partition = config().partitions.partition_of(Namespace(0), &key);
    Slot { table: Table::Data, partition, namespace: Namespace(0), key }
}

async fn open_with(disk: &TestDisk, config: StoreConfig) -> Result<(Store, Recovery), StorageError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Store::open(disk, Arc::new(RealClock::new()), Path::new(DIR), Incarnation(1), SaltSeed(1), config).await
}

async fn open(disk: &TestDisk) -> (Store, Recovery) {
    open_with(disk, quiet()).await.unwrap()
}

fn set(entry: &mut Entry, value: &str) {
    let write = Write {
        write_id: WriteId(1),
        content: Content::Value(value.as_bytes().to_vec().into()),
        meta: None,
        expires_at: None,
    };
    let mut mint = ActorMint::new(Incarnation(9));
    entry.copy.put(&mut mint, Overwrite::Current, write, Wall(1), &Caps::default()).unwrap();
}

/// Puts a value over what is there; its position, not durable yet.
async fn put(store: &Store, key: &str, value: &str) -> Result<LogPosition, StorageError> {
    put_with(store, key, value, Durability::Sync).await
}

async fn put_with(
    store: &Store,
    key: &str,
    value: &str,
    durability: Durability,
) -> Result<LogPosition, StorageError> {
    let change = |entry: &mut Entry| {
        set(entry, value);
        (Change::Write, ())
    };
    Ok(store.update(&slot(key), durability, change).await?.1)
}

/// Puts and waits.
async fn put_durable(store: &Store, key: &str, value: &str) {
    let position = put(store, key, value).await.unwrap();
    store.wait_synced(position).await.unwrap();
}

async fn remove(store: &Store, key: &str) -> Result<LogPosition, StorageError> {
    Ok(store.update(&slot(key), Durability::Sync, |_| (Change::Remove, ())).await?.1)
}

fn value_of(entry: &Entry) -> String {
    let [sibling] = entry.copy.record.siblings() else { panic!("one sibling") };
    let Content::Value(value) = &sibling.content else { panic!("a value") };
    String::from_utf8(value.to_vec()).unwrap()
}

async fn try_get(store: &Store, key: &str) -> Result<Option<String>, StorageError> {
    Ok(store.read(&slot(key)).await?.map(|entry| value_of(&entry)))
}

async fn get(store: &Store, key: &str) -> Option<String> {
    try_get(store, key).await.unwrap()
}

fn segment_paths(disk: &TestDisk) -> Vec<PathBuf> {
    let names = disk.names().into_iter().filter(|name| name.ends_with(".log"));
    names.map(|name| Path::new(DIR).join(name)).collect()
}

/// What the index says of a key.
fn hash_of(store: &Store, key: &str) -> u64 {
    let slot = slot(key);
    let from = std::ops::Bound::Included((slot.namespace, &slot.key));
    store.scan(slot.table, slot.partition, from, Direction::Ascending, 1).keys[0].version_hash
}

/// Everything that the index of a store says, and its Merkle leaves: equal for stores of equal contents.
fn contents(store: &Store) -> Vec<(PartitionId, Table, Key, u64)> {
    let mut all = Vec::new();
    for partition in config().partitions.partitions() {
        for table in [Table::Data, Table::Guest] {
            let page = store.scan(table, partition, std::ops::Bound::Unbounded, Direction::Ascending, 4096);
            all.extend(page.keys.into_iter().map(|key| (partition, table, key.key, key.version_hash)));
        }
    }
    all
}

fn roots(store: &Store) -> Vec<u64> {
    config().partitions.partitions().map(|id| store.with_tree(id, |tree| tree.root()).0).collect()
}

/// Polls until something holds; fails after some seconds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what}: not within five seconds");
}
