//! The interface of the engine, and what its tasks share.
//!
//! A store has two tasks of its own: the appender (`log`) and the housekeeper, which writes snapshots and compacts,
//! one thing at a time. Both end with [`Store::close`].

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};
use tokio::select;
use tokio::sync::Mutex as AsyncMutex;
use xxhash_rust::xxh3::xxh3_64;

use super::compaction::TABLES;
use super::format::{
    EntryBody, EntryRef, KIND_ENTRY, KIND_REMOVE, KIND_STATE, PartitionSet, StartBody, StateBody,
    append_record, open_record,
};
use super::index::{Direction, Place, index_key, split_key};
use super::log::{Limits, Log};
use super::partition::{Partition, Shape};
use super::recovery::{Recovery, recover};
use super::segment::{Segment, Segments};
use super::{
    Change, Durability, Entry, LogPosition, PartitionState, Slot, StorageError, Table, compaction, directory,
    snapshot,
};
use crate::dynamo::merkle::{MerkleKey, MerkleTree};
use crate::dynamo::ring::PartitionCount;
use crate::io::{Clock, DirLock, Disk};
use crate::net::codec;
use crate::sync::Watched;
use crate::types::{Incarnation, Key, Namespace, NodeId, PartitionId};

const LOCK_NAME: &str = "LOCK";
/// Key locks; two keys share one at times, which costs only waiting.
const LOCKS: usize = 1024;
/// Shards of the cache. A fixed number: the machine's cores must not be seen in a simulation.
const CACHE_SHARDS: usize = 8;
/// Rough bytes of a cached entry besides its record.
const CACHED_BYTES: u64 = 200;
/// Damaged records that are remembered for each partition; more are counted no further.
const DAMAGED_MAX: usize = 10_000;
/// Before housekeeping that failed is tried again.
const HOUSEKEEPING_PAUSE: Duration = Duration::from_secs(1);
/// Keys of a page at most.
const PAGE_MAX: usize = 4096;

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Partitions of the cluster's ring (Q).
    pub partitions: PartitionCount,
    /// Key of the Merkle trees' leaf hashes.
    pub merkle_key: MerkleKey,
    /// A segment that has reached this length is closed. Default 128 MiB; sane 16 MiB to 1 GiB. A store keeps one
    /// file open for each.
    pub segment_bytes: u64,
    /// Bytes of entries kept decoded in memory. Default 64 MiB.
    pub cache_bytes: u64,
    /// Most bytes that wait for the disk; above, updates wait. Default 32 MiB.
    pub gathered_bytes_max: usize,
    /// A write or sync that takes longer makes updates fail with `Stalled`. Default 10 s.
    pub stall_max: Duration,
    /// A snapshot is written when the log has grown by this since the last one, and by `snapshot_factor` times the
    /// last one's size. Default 64 MiB.
    pub snapshot_bytes_min: u64,
    /// See `snapshot_bytes_min`. Larger: less written; smaller: a shorter restart after a crash. Default 3.
    pub snapshot_factor: u64,
    /// Compaction begins when this share of the log is dead, in percent. Default 45: some 1.8 bytes on the disk for
    /// each that is needed.
    pub dead_percent_max: u32,
    /// Bytes that compaction reads a second; more when clients write faster than that gives space back. Default
    /// 64 MiB.
    pub compaction_bytes_per_second: u64,
}

impl StoreConfig {
    /// The defaults for a cluster.
    pub fn new(partitions: PartitionCount, merkle_key: MerkleKey) -> StoreConfig {
        const MIB: u64 = 1024 * 1024;
        StoreConfig {
            partitions,
            merkle_key,
            segment_bytes: 128 * MIB,
            cache_bytes: 64 * MIB,
            gathered_bytes_max: 32 * 1024 * 1024,
            stall_max: Duration::from_secs(10),
            snapshot_bytes_min: 64 * MIB,
            snapshot_factor: 3,
            dead_percent_max: 45,
            compaction_bytes_per_second: 64 * MIB,
        }
    }
}

/// One key of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// The key's namespace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// `Record::version_hash` of its record.
    pub version_hash: u64,
    /// Bytes of its record in the log.
    pub bytes: usize,
}

/// Some keys in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// At most as many as asked for. The last one is the cursor to go on from; fewer than asked for are the last.
    pub keys: Vec<Scanned>,
    /// To be waited for before the keys are shown to anybody.
    pub position: LogPosition,
}

/// An entry that is owed to a node: also the cursor to go on from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owed {
    /// The entry.
    pub slot: Slot,
}

/// Figures of a store, for `storage stats` and metrics. Counts are since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries of the node's own partitions.
    pub data_keys: u64,
    /// Guest entries.
    pub guest_keys: u64,
    /// Segments on the disk.
    pub segments: u64,
    /// Their bytes.
    pub log_bytes: u64,
    /// Bytes of the records that are needed.
    pub live_bytes: u64,
    /// Bytes of the indexes in memory.
    pub index_bytes: u64,
    /// Bytes of decoded entries in memory.
    pub cached_bytes: u64,
    /// Commit groups, each with one fdatasync.
    pub groups: u64,
    /// Bytes written to the log, compaction included.
    pub written_bytes: u64,
    /// Of these, by compaction.
    pub copied_bytes: u64,
    /// Bytes of segments removed.
    pub removed_bytes: u64,
    /// Snapshots written.
    pub snapshots: u64,
    /// Their bytes.
    pub snapshot_bytes: u64,
    /// Damaged records by partition.
    pub damaged: BTreeMap<PartitionId, u64>,
}

/// Places are unique numbers; their bits only have to be spread. Never random: the order of eviction can be seen.
#[derive(Default)]
pub(super) struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }
    fn write_u64(&mut self, place: u64) {
        let mixed = place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[derive(Clone)]
pub(super) struct ByBytes;

impl Weighter<u64, Arc<Entry>> for ByBytes {
    fn weight(&self, _place: &u64, entry: &Arc<Entry>) -> u64 {
        entry.copy.record.size_bytes() as u64 + CACHED_BYTES
    }
}

/// A record never changes where it stands, so the position is the key and nothing is ever stale.
type EntryCache = Cache<u64, Arc<Entry>, ByBytes, BuildHasherDefault<PlaceHasher>>;

#[derive(Default)]
struct Counters {
    copied: AtomicU64,
    removed: AtomicU64,
    snapshots: AtomicU64,
    snapshot_bytes: AtomicU64,
}

pub(super) struct Inner {
    pub(super) config: StoreConfig,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) dir: PathBuf,
    pub(super) log: Log,
    pub(super) segments: Arc<Segments>,
    partitions: Vec<Mutex<Partition>>,
    /// The record of this start and its place.
    pub(super) started: Mutex<(StartBody, u64, usize)>,
    keys: Vec<AsyncMutex<()>>,
    cache: EntryCache,
    /// Where a replay would begin, by the snapshot on the disk; 0 without one.
    snapshot_from: AtomicU64,
    /// The last snapshot's size.
    snapshot_len: AtomicU64,
    /// The next snapshot is due when the log is here.
    snapshot_due: AtomicU64,
    /// Positions of records found damaged.
    damaged: Mutex<BTreeMap<PartitionId, BTreeSet<u64>>>,
    /// Victims that could not go, with the live bytes they had: tried again when these change.
    pinned: Mutex<BTreeMap<u64, u64>>,
    counters: Counters,
    /// One snapshot or compaction at a time.
    housekeeping: AsyncMutex<()>,
    closing: AtomicBool,
    ended: Watched<u32>,
    /// Given back by `close`, when the tasks have ended.
    dir_lock: Mutex<Option<Box<dyn DirLock>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The store of one node. Cheap to clone; its tasks end after [`Store::close`].
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Opens the store of a directory that [`directory`] knows, and writes down that this start goes by
    /// `incarnation`. When it returns, everything it will serve is durable, and the incarnation too.
    ///
    /// # Errors
    /// When the directory is in use or the disk fails. Nothing acknowledged is changed.
    pub async fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        incarnation: Incarnation,
        config: StoreConfig,
    ) -> Result<(Store, Recovery), StorageError> {
        let dir_lock = disk.lock(&dir.join(LOCK_NAME)).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => StorageError::InUse(dir.display().to_string()),
            _ => StorageError::io("lock", dir)(error),
        })?;
        let shape = Shape { partitions: config.partitions, merkle_key: config.merkle_key };
        let found = Box::pin(recover(disk.as_ref(), dir, shape, incarnation)).await?;
        let report = found.report;
        tracing::info!(
            dir = %dir.display(),
            segments = report.segments,
            records = report.records,
            bytes = report.bytes,
            cut = report.cut,
            rewritten = report.rewritten,
            corrupt = report.corrupt,
            snapshot = report.snapshot,
            clean = report.clean,
            "storage recovered"
        );
        let limits = Limits {
            segment_bytes: config.segment_bytes,
            gathered_bytes: config.gathered_bytes_max,
            stall_max: config.stall_max,
        };
        let segments = found.segments;
        let log =
            Log::new(disk.clone(), clock.clone(), dir.to_owned(), limits, segments.clone(), found.start);
        // After damage the index as it is now is worth more than what a replay would find again.
        let due = if report.corrupt > 0 || report.maybe_rotten {
            0
        } else {
            found.snapshot_from + config.snapshot_bytes_min.max(found.snapshot_bytes * config.snapshot_factor)
        };
        let inner = Arc::new(Inner {
            cache: cache(config.cache_bytes),
            config,
            disk,
            clock,
            dir: dir.to_owned(),
            log,
            segments,
            partitions: found.partitions.into_iter().map(Mutex::new).collect(),
            started: Mutex::new(found.started),
            keys: (0..LOCKS).map(|_| AsyncMutex::new(())).collect(),
            snapshot_from: AtomicU64::new(found.snapshot_from),
            snapshot_len: AtomicU64::new(found.snapshot_bytes),
            snapshot_due: AtomicU64::new(due),
            damaged: Mutex::default(),
            pinned: Mutex::default(),
            counters: Counters::default(),
            housekeeping: AsyncMutex::new(()),
            closing: AtomicBool::new(false),
            ended: Watched::new(0),
            dir_lock: Mutex::new(Some(dir_lock)),
        });
        for housekeeper in [false, true] {
            let inner = inner.clone();
            tokio::spawn(async move {
                if housekeeper {
                    inner.keep_house().await;
                } else {
                    inner.log.run().await;
                }
                inner.ended.modify(|ended| {
                    *ended += 1;
                    true
                });
            });
        }
        inner.log.maintenance.notify_one();
        Ok((Store { inner }, report))
    }

    /// The entry of a slot, none when there is none. Waits until what it returns is durable, unless it was written
    /// with an interval.
    ///
    /// # Errors
    /// `Corrupt` when the entry is damaged: that is not "there is none". `Latched` or `DiskFull` when it depends on
    /// a write that failed.
    pub async fn read(&self, slot: &Slot) -> Result<Option<Entry>, StorageError> {
        self.read_with_state(slot).await.map(|(entry, _)| entry)
    }

    /// As [`Store::read`], with the state of the partition at the moment when the entry was looked up.
    pub async fn read_with_state(
        &self,
        slot: &Slot,
    ) -> Result<(Option<Entry>, PartitionState), StorageError> {
        let inner = &self.inner;
        let loaded = inner.load(slot, true).await?;
        if loaded.wait > inner.log.synced() {
            inner.log.wait_synced(loaded.wait).await?;
        }
        Ok((loaded.entry.map(Arc::unwrap_or_clone), loaded.state))
    }

    /// Reads, changes and writes one entry, alone under its key's lock. `change` gets the entry, an empty one
    /// when there is none. The position is durable once [`Store::wait_synced`] says so; when `change` kept the
    /// entry it is the position of what stands there.
    ///
    /// # Errors
    /// When the entry cannot be read, the store is latched, full or stalled (then `change` was not called), or the
    /// entry cannot be encoded; the entry is as it was.
    pub async fn update<R>(
        &self,
        slot: &Slot,
        durability: Durability,
        change: impl FnOnce(&mut Entry) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        self.update_with_state(slot, durability, |entry, _| change(entry)).await
    }

    /// As [`Store::update`]; `change` sees the partition's state too, in one order with all changes of that state.
    pub async fn update_with_state<R>(
        &self,
        slot: &Slot,
        durability: Durability,
        change: impl FnOnce(&mut Entry, &PartitionState) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        self.inner.update(slot, durability, false, change).await
    }

    /// As [`Store::update`], but an entry that is damaged is taken as absent: for writing back what other replicas
    /// hold, never for a put (it would make a dot on a copy that has forgotten some).
    pub async fn replace_damaged<R>(
        &self,
        slot: &Slot,
        change: impl FnOnce(&mut Entry) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        self.inner.update(slot, Durability::Sync, true, |entry, _| change(entry)).await
    }

    /// The state of a partition, and the position that it, and everything else in the log by now, depends on.
    ///
    /// # Panics
    /// When the partition is not below Q.
    pub fn partition_state(&self, partition: PartitionId) -> (PartitionState, LogPosition) {
        let locked = lock(self.inner.partition(partition).expect("a partition below Q"));
        (locked.state, LogPosition(self.inner.log.end().0))
    }

    /// Changes the state of a partition. Always `Durability::Sync`.
    ///
    /// # Errors
    /// When the store is latched, full or stalled; the state is as it was.
    pub async fn update_partition<R>(
        &self,
        partition: PartitionId,
        change: impl FnOnce(&mut PartitionState) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        let inner = &self.inner;
        inner.log.admit().await?;
        let mut locked = lock(inner.partition(partition).expect("a partition below Q"));
        let mut state = locked.state;
        let (change, value) = change(&mut state);
        match change {
            Change::Keep => {
                let end = locked.state_place.map_or(0, |(position, len)| position + len as u64);
                return Ok((value, LogPosition(end)));
            }
            Change::Remove => state = PartitionState::default(),
            Change::Write => {}
        }
        let end = inner.set_state(&mut locked, partition, state)?;
        Ok((value, LogPosition(end)))
    }

    /// Shows the Merkle tree of a partition's data. The position is that of the log at that moment: a hash is sent
    /// only after it is synced.
    ///
    /// # Panics
    /// When the partition is not below Q.
    pub fn with_tree<R>(
        &self,
        partition: PartitionId,
        look: impl FnOnce(&MerkleTree) -> R,
    ) -> (R, LogPosition) {
        let locked = lock(self.inner.partition(partition).expect("a partition below Q"));
        let end = self.inner.log.end().0;
        (look(locked.tree()), LogPosition(end))
    }

    /// Up to `limit` keys (at most 4,096) of a partition in order, from a bound in the direction of the scan. From the
    /// index alone; writers wait for one page at most.
    ///
    /// # Panics
    /// When the partition is not below Q.
    pub fn scan(
        &self,
        table: Table,
        partition: PartitionId,
        from: Bound<(Namespace, &Key)>,
        direction: Direction,
        limit: usize,
    ) -> Page {
        let limit = limit.min(PAGE_MAX);
        let from = from.map(|(namespace, key)| index_key(namespace, key));
        let locked = lock(self.inner.partition(partition).expect("a partition below Q"));
        let mut keys = Vec::with_capacity(limit.min(locked.index(table).len()));
        let mut position = locked.removed_until;
        if limit > 0 {
            locked.index(table).scan(from.as_ref().map(|from| &**from), direction, |id, place| {
                if let Some((namespace, key)) = split_key(id) {
                    if place.awaits_sync() {
                        position = position.max(place.end());
                    }
                    keys.push(Scanned { namespace, key, version_hash: place.hash, bytes: place.len() });
                }
                keys.len() < limit
            });
        }
        Page { keys, position: LogPosition(position) }
    }

    /// The nodes that something is kept for.
    pub fn targets(&self) -> BTreeSet<NodeId> {
        self.inner.partitions.iter().flat_map(|partition| lock(partition).targets()).collect()
    }

    /// Up to `limit` entries (guests, and own copies with targets) that are kept for a node, from behind `after` on, in
    /// an order of their own. Fewer than asked for are the last.
    pub fn owed_to(&self, node: NodeId, after: Option<&Owed>, limit: usize) -> Vec<Owed> {
        let first = after.map_or(0, |owed| owed.slot.partition.0);
        let mut found = Vec::new();
        for (number, partition) in (0..).zip(&self.inner.partitions).skip(first as usize) {
            let partition_id = PartitionId(number);
            let slot = after.map(|owed| &owed.slot).filter(|slot| slot.partition == partition_id);
            let after = slot.map(|slot| (slot.table, index_key(slot.namespace, &slot.key)));
            let after = after.as_ref().map(|(table, id)| (*table, &**id));
            let owed = lock(partition).owed_to(node, after, limit - found.len());
            found.extend(owed.into_iter().map(|(table, namespace, key)| Owed {
                slot: Slot { table, partition: partition_id, namespace, key },
            }));
            if found.len() >= limit {
                break;
            }
        }
        found
    }

    /// Waits until everything before the position is durable. Hurries a group that has time.
    ///
    /// # Errors
    /// `Latched` when it never will be, as far as this process can know; `DiskFull` when it is not known when.
    pub async fn wait_synced(&self, position: LogPosition) -> Result<(), StorageError> {
        self.inner.log.wait_synced(position.0).await
    }

    /// Waits until the store has latched: a write or sync failed. Never returns while all is well.
    pub async fn failed(&self) -> String {
        self.inner.log.failed().await
    }

    /// Keys in a table.
    pub fn len(&self, table: Table) -> usize {
        self.inner.partitions.iter().map(|partition| lock(partition).index(table).len()).sum()
    }

    /// Whether a table has no key.
    pub fn is_empty(&self, table: Table) -> bool {
        self.len(table) == 0
    }

    /// Figures. Visits every partition and segment, not every key.
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut stats = Stats {
            cached_bytes: inner.cache.weight(),
            groups: counted(&inner.log.counters.groups),
            written_bytes: counted(&inner.log.counters.bytes),
            copied_bytes: counted(&inner.counters.copied),
            removed_bytes: counted(&inner.counters.removed),
            snapshots: counted(&inner.counters.snapshots),
            snapshot_bytes: counted(&inner.counters.snapshot_bytes),
            damaged: lock(&inner.damaged).iter().map(|(id, places)| (*id, places.len() as u64)).collect(),
            ..Stats::default()
        };
        for partition in &inner.partitions {
            let partition = lock(partition);
            stats.data_keys += partition.index(Table::Data).len() as u64;
            stats.guest_keys += partition.index(Table::Guest).len() as u64;
            stats.index_bytes +=
                TABLES.map(|table| partition.index(table).bytes() as u64).iter().sum::<u64>();
        }
        for segment in inner.segments.all() {
            stats.segments += 1;
            stats.log_bytes += segment.len();
            stats.live_bytes += segment.live();
        }
        stats
    }

    /// Writes a snapshot now, after what the housekeeper is doing.
    ///
    /// # Errors
    /// When the disk fails; the last snapshot stays.
    pub async fn snapshot(&self) -> Result<(), StorageError> {
        let _alone = self.inner.housekeeping.lock().await;
        self.inner.write_snapshot().await
    }

    /// Makes everything durable, writes a snapshot if much would have to be replayed, leaves the clean-shutdown mark
    /// and gives the directory free. Other clones of the store refuse from then on.
    ///
    /// # Errors
    /// `Latched` or `DiskFull` when that fails.
    pub async fn close(&self) -> Result<(), StorageError> {
        let inner = &self.inner;
        let end = inner.log.close();
        let synced = inner.log.wait_synced(end).await;
        inner.closing.store(true, Ordering::Relaxed);
        inner.log.maintenance.notify_one();
        inner.ended.wait_for(|ended| (*ended == 2).then_some(())).await;
        let marked = match synced {
            Ok(()) => inner.leave(end).await,
            Err(error) => Err(error),
        };
        lock(&inner.dir_lock).take();
        marked
    }
}

fn cache(bytes: u64) -> EntryCache {
    let mut options = OptionsBuilder::new();
    let items = usize::try_from(bytes / 1024).unwrap_or(usize::MAX).max(64);
    options.estimated_items_capacity(items).weight_capacity(bytes).shards(CACHE_SHARDS);
    let options = options.build().expect("both capacities are given");
    let lifecycle = quick_cache::sync::DefaultLifecycle::default();
    Cache::with_options(options, ByBytes, BuildHasherDefault::default(), lifecycle)
}

/// Checks a record and reads it.
fn decode(slot: &Slot, place: Place, segment: &Segment, bytes: &[u8]) -> Result<Entry, String> {
    let opened = open_record(bytes, segment.seed(place.position)).ok_or("its checksum is wrong")?;
    if opened.kind != KIND_ENTRY {
        return Err("a record of another kind stands there".to_owned());
    }
    let body: EntryBody = codec::decode(&bytes[opened.body]).map_err(|error| error.to_string())?;
    if body.slot != *slot {
        return Err("another key stands there".to_owned());
    }
    Ok(body.entry)
}

/// What stands in a slot.
struct Loaded {
    entry: Option<Arc<Entry>>,
    /// A reader must wait for this position.
    wait: u64,
    state: PartitionState,
}

impl Inner {
    pub(super) fn partition(&self, partition: PartitionId) -> Option<&Mutex<Partition>> {
        self.partitions.get(usize::try_from(partition.0).ok()?)
    }

    fn of(&self, slot: &Slot) -> MutexGuard<'_, Partition> {
        lock(self.partition(slot.partition).expect("slots are of partitions below Q"))
    }

    /// Reads a slot's entry. `keep`: in the cache too.
    async fn load(&self, slot: &Slot, keep: bool) -> Result<Loaded, StorageError> {
        let id = index_key(slot.namespace, &slot.key);
        loop {
            let (place, state, removed) = {
                let partition = self.of(slot);
                (partition.index(slot.table).get(&id), partition.state, partition.removed_until)
            };
            let Some(place) = place else {
                return Ok(Loaded { entry: None, wait: removed, state });
            };
            let wait = if place.awaits_sync() { place.end() } else { 0 };
            let loaded = |entry| Loaded { entry: Some(entry), wait, state };
            if let Some(entry) = self.cache.get(&place.position) {
                return Ok(loaded(entry));
            }
            let damage = match self.entry_at(slot, place).await {
                Ok(entry) => {
                    let entry = Arc::new(entry);
                    if keep && place.end() <= self.log.synced() {
                        self.cache.insert(place.position, entry.clone());
                    }
                    return Ok(loaded(entry));
                }
                Err(damage) => damage,
            };
            // Compaction may have moved the record and removed the file in the meantime.
            if self.of(slot).index(slot.table).get(&id) == Some(place) {
                self.note_corrupt(slot.partition, place.position);
                return Err(StorageError::Corrupt(format!("position {}: {damage}", place.position)));
            }
        }
    }

    fn unsynced(&self, place: Place) -> Option<Bytes> {
        if place.end() <= self.log.synced() {
            return None;
        }
        self.log.unsynced(place.position, place.len())
    }

    /// Reads and checks the record at a place.
    async fn entry_at(&self, slot: &Slot, place: Place) -> Result<Entry, String> {
        let segment = self.segments.find(place.position).ok_or("its segment is gone")?;
        if let Some(bytes) = self.unsynced(place) {
            return decode(slot, place, &segment, &bytes);
        }
        let file = segment.file().ok_or("its segment was never written")?;
        let offset = place.position - segment.base;
        let mut buffer = vec![0; place.len()];
        if file.read_now(offset, &mut buffer) {
            return decode(slot, place, &segment, &buffer);
        }
        let bytes = file.read_at(offset, place.len()).await.map_err(|error| error.to_string())?;
        decode(slot, place, &segment, &bytes)
    }

    async fn update<R>(
        &self,
        slot: &Slot,
        durability: Durability,
        replace_damaged: bool,
        change: impl FnOnce(&mut Entry, &PartitionState) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        self.log.admit().await?;
        let hash = xxh3_64(slot.key.as_bytes());
        let stripe = usize::try_from(hash % LOCKS as u64).expect("less than LOCKS");
        let _locked = self.keys[stripe].lock().await;
        let mut entry = match self.load(slot, false).await {
            Ok(loaded) => loaded.entry.map(Arc::unwrap_or_clone).unwrap_or_default(),
            Err(StorageError::Corrupt(_)) if replace_damaged => Entry::default(),
            Err(error) => return Err(error),
        };
        // Looked at before a dot is made: a latched or full store must refuse, not append.
        self.log.check()?;
        let id = index_key(slot.namespace, &slot.key);
        let mut partition = self.of(slot);
        // Under the key's lock only compaction can have touched it, which moves the same bytes.
        let standing = partition.index(slot.table).get(&id);
        let (change, value) = change(&mut entry, &partition.state);
        let end = match (change, standing) {
            (Change::Keep, Some(place)) => place.end(),
            (Change::Keep | Change::Remove, None) => partition.removed_until,
            (Change::Write, _) => self.write(&mut partition, slot, &id, &entry, durability, standing)?,
            (Change::Remove, Some(place)) => self.remove(&mut partition, slot, &id, place)?,
        };
        Ok((value, LogPosition(end)))
    }

    /// Gathers an entry and points the index at it; the position behind it.
    fn write(
        &self,
        partition: &mut Partition,
        slot: &Slot,
        id: &[u8],
        entry: &Entry,
        durability: Durability,
        standing: Option<Place>,
    ) -> Result<u64, StorageError> {
        let reveals = standing.is_some_and(|old| old.awaits_sync() && old.end() > self.log.synced());
        let due = match durability {
            Durability::Interval(within) if !reveals => Some(self.clock.mono() + within),
            Durability::Interval(_) | Durability::Sync => None,
        };
        let (position, len, segment) =
            self.log.append(slot.partition, due.unwrap_or_default(), |out, seed| {
                append_record(out, seed, KIND_ENTRY, &EntryRef { slot, entry })
            })?;
        let place = Place::new(position, len, entry.copy.record.version_hash(), due.is_none());
        partition.set(slot.table, slot.namespace, &slot.key, id, place, &entry.targets);
        segment.add_live(len as u64);
        self.release(standing);
        Ok(place.end())
    }

    /// Gathers a removal and takes the key out of the index; the position behind it.
    fn remove(
        &self,
        partition: &mut Partition,
        slot: &Slot,
        id: &[u8],
        standing: Place,
    ) -> Result<u64, StorageError> {
        let (position, len, segment) = self.log.append(slot.partition, Duration::ZERO, |out, seed| {
            append_record(out, seed, KIND_REMOVE, slot)
        })?;
        partition.unset(slot.table, slot.namespace, &slot.key, id);
        partition.removed_until = position + len as u64;
        segment.add_removal(len as u64);
        self.release(Some(standing));
        Ok(position + len as u64)
    }

    /// The record is not the newest of its key any more.
    fn release(&self, old: Option<Place>) {
        if let Some(old) = old {
            self.segments.release(old.position, old.len());
            self.cache.remove(&old.position);
        }
    }

    fn set_state(
        &self,
        partition: &mut Partition,
        number: PartitionId,
        state: PartitionState,
    ) -> Result<u64, StorageError> {
        let body = StateBody { partition: number, state };
        let (position, len, segment) = self
            .log
            .append(number, Duration::ZERO, |out, seed| append_record(out, seed, KIND_STATE, &body))?;
        partition.state = state;
        segment.add_live(len as u64);
        if let Some((position, len)) = partition.state_place.replace((position, len)) {
            self.segments.release(position, len);
        }
        Ok(position + len as u64)
    }

    /// A needed record cannot be read: counted once, and the partition does not count as refilled.
    fn note_corrupt(&self, partition: PartitionId, position: u64) {
        {
            let mut damaged = lock(&self.damaged);
            let places = damaged.entry(partition).or_default();
            if places.len() >= DAMAGED_MAX || !places.insert(position) {
                return;
            }
        }
        tracing::error!(%partition, position, "corruption: a record cannot be read as it was written");
        if let Some(locked) = self.partition(partition) {
            let mut locked = lock(locked);
            let state = PartitionState { refilled: false, ..locked.state };
            if locked.state != state && self.set_state(&mut locked, partition, state).is_err() {
                // A latched store serves no strict read either; the next start finds the damage again.
                locked.state = state;
            }
        }
    }

    /// Compaction met damage: the entries that stand there are noted. The others of the group are not concerned.
    pub(super) fn note_damage(&self, segment: &Segment, from: u64, to: u64, group: &PartitionSet) {
        let range = segment.base + from..segment.base + to;
        for (number, partition) in (0..).map(PartitionId).zip(&self.partitions) {
            if !group.contains(number) && range.end - range.start < 64 {
                continue;
            }
            let mut places = Vec::new();
            for table in TABLES {
                let leaves = lock(partition).index(table).share();
                let inside = leaves.iter().flat_map(|leaf| leaf.iter()).map(|(_, place)| place.position);
                places.extend(inside.filter(|position| range.contains(position)));
            }
            for position in places {
                self.note_corrupt(number, position);
            }
        }
    }

    pub(super) fn snapshot_from(&self) -> u64 {
        self.snapshot_from.load(Ordering::Relaxed)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    pub(super) fn is_pinned(&self, segment: &Segment) -> bool {
        lock(&self.pinned).get(&segment.id) == Some(&segment.live())
    }

    pub(super) fn pin(&self, segment: &Segment) {
        lock(&self.pinned).insert(segment.id, segment.live());
    }

    pub(super) fn copied(&self, bytes: usize) {
        self.counters.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn compacted(&self, bytes: u64) {
        self.counters.removed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The housekeeper: looks after each group, and does one thing at a time.
    async fn keep_house(&self) {
        while !self.is_closing() {
            self.log.maintenance.notified().await;
            while !self.is_closing() {
                let alone = self.housekeeping.lock().await;
                let done = if self.log.synced() >= self.snapshot_due.load(Ordering::Relaxed) {
                    self.write_snapshot().await
                } else if let Some((victim, hurry)) = compaction::victim(self) {
                    compaction::compact(self, &victim, hurry).await
                } else {
                    break;
                };
                match done {
                    Ok(()) => {}
                    Err(StorageError::Latched(_)) => return,
                    Err(error) => {
                        drop(alone);
                        tracing::warn!(%error, "housekeeping failed: tried again later");
                        self.pause(HOUSEKEEPING_PAUSE).await;
                        break;
                    }
                }
            }
        }
    }

    /// Waits, but not for longer than the store is open.
    async fn pause(&self, pause: Duration) {
        let until = self.clock.mono() + pause;
        while !self.is_closing() {
            select! {
                biased;
                () = self.clock.sleep_until(until) => return,
                () = self.log.maintenance.notified() => {}
            }
        }
    }

    async fn write_snapshot(&self) -> Result<(), StorageError> {
        let (body, position, len) = *lock(&self.started);
        let start = Some((body, position, len));
        let min = self.config.snapshot_bytes_min;
        // Also when it fails: not again at once.
        self.snapshot_due.store(self.log.synced() + min, Ordering::Relaxed);
        let written =
            snapshot::write(self.disk.as_ref(), &self.dir, &self.log, &self.partitions, start).await?;
        let due = written.from + min.max(written.bytes * self.config.snapshot_factor);
        self.snapshot_from.store(written.from, Ordering::Relaxed);
        self.snapshot_len.store(written.bytes, Ordering::Relaxed);
        self.snapshot_due.store(due, Ordering::Relaxed);
        self.counters.snapshots.fetch_add(1, Ordering::Relaxed);
        self.counters.snapshot_bytes.fetch_add(written.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The last things before the directory is given free: nothing else is written any more.
    async fn leave(&self, end: u64) -> Result<(), StorageError> {
        let replayed = self.log.synced().saturating_sub(self.snapshot_from());
        if replayed > self.config.snapshot_bytes_min {
            self.write_snapshot().await?;
        }
        directory::write_clean(self.disk.as_ref(), &self.dir, end.min(self.log.synced())).await
    }
}
