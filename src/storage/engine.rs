//! What the interface and the tasks of a store share, and what they do under its locks: reading a record, gathering an
//! entry and pointing the index at it, taking note of damage.
//!
//! Absent: waiting for the disk to sync (`log`), choosing what to compact (`compaction`).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};
use tokio::sync::Mutex as AsyncMutex;
use xxhash_rust::xxh3::xxh3_64;

use super::body::decode_entry;
use super::format::{
    KIND_ENTRY, KIND_STATE, PartitionSet, StartBody, StateBody, append_entry, append_record, append_removal,
    open_record,
};
use super::index::{Place, Spot, index_key};
use super::log::{Log, Need};
use super::partition::Partition;
use super::segment::{Segment, Segments};
use super::{
    Change, Durability, Entry, LogPosition, PartitionState, Slot, StorageError, StoreConfig, TABLES,
};
use crate::io::{Clock, DirLock, Disk};
use crate::sync::Watched;
use crate::types::PartitionId;

/// Key locks; two keys share one at times, which costs only waiting.
pub(super) const LOCKS: usize = 1024;
/// Shards of the cache. A fixed number: the machine's cores must not be seen in a simulation.
const CACHE_SHARDS: usize = 8;
/// Rough bytes of a cached entry besides its record.
const CACHED_BYTES: u64 = 200;
/// How often a read that the system refuses is tried again before the record counts as damaged.
const REREADS: u32 = 2;
/// Damaged records that are remembered for each partition; more are counted no further.
const DAMAGED_MAX: usize = 10_000;

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
pub(super) type EntryCache = Cache<u64, Arc<Entry>, ByBytes, BuildHasherDefault<PlaceHasher>>;

#[derive(Default)]
pub(super) struct Counters {
    pub(super) copied: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) snapshots: AtomicU64,
    pub(super) snapshot_bytes: AtomicU64,
    /// Entries that a read or update wanted, found decoded in memory, and not.
    pub(super) cache_hits: AtomicU64,
    pub(super) cache_misses: AtomicU64,
}

pub(super) struct Inner {
    pub(super) config: StoreConfig,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) dir: PathBuf,
    pub(super) log: Log,
    pub(super) segments: Arc<Segments>,
    pub(super) partitions: Vec<Mutex<Partition>>,
    /// The record of this start and its place.
    pub(super) started: Mutex<(StartBody, u64, usize)>,
    pub(super) keys: Vec<AsyncMutex<()>>,
    pub(super) cache: EntryCache,
    /// Where a replay would begin, by the snapshot on the disk; 0 without one.
    pub(super) snapshot_from: AtomicU64,
    /// The last snapshot's size.
    pub(super) snapshot_len: AtomicU64,
    /// The next snapshot is due when the log is here.
    pub(super) snapshot_due: AtomicU64,
    /// Positions of records found damaged.
    pub(super) damaged: Mutex<BTreeMap<PartitionId, BTreeSet<u64>>>,
    /// How often a partition lost its *refilled* mark, or would have, in this start.
    pub(super) doubts: AtomicU64,
    /// Victims that could not go, with the live bytes they had and whether their removals were needed: tried again when
    /// either changes.
    pub(super) pinned: Mutex<BTreeMap<u64, (u64, bool)>>,
    pub(super) counters: Counters,
    /// One snapshot or compaction at a time.
    pub(super) housekeeping: AsyncMutex<()>,
    pub(super) closing: AtomicBool,
    pub(super) ended: Watched<u32>,
    /// Given back by `close`, when the tasks have ended.
    pub(super) dir_lock: Mutex<Option<Box<dyn DirLock>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn cache(bytes: u64) -> EntryCache {
    let mut options = OptionsBuilder::new();
    let items = usize::try_from(bytes / 1024).unwrap_or(usize::MAX).max(64);
    options.estimated_items_capacity(items).weight_capacity(bytes).shards(CACHE_SHARDS);
    let options = options.build().expect("both capacities are given");
    let lifecycle = quick_cache::sync::DefaultLifecycle::default();
    Cache::with_options(options, ByBytes, BuildHasherDefault::default(), lifecycle)
}

/// Checks a record and reads it. Values are slices of `bytes`, which live as long as they do.
pub(super) fn decode(slot: &Slot, place: Place, segment: &Segment, bytes: &Bytes) -> Result<Entry, String> {
    let seed = segment.seed(place.position).ok_or("the head of its segment is lost")?;
    let opened = open_record(bytes, seed).ok_or("its checksum is wrong")?;
    if opened.kind != KIND_ENTRY {
        return Err("a record of another kind stands there".to_owned());
    }
    let entry = decode_entry(slot, &bytes.slice(opened.body)).map_err(|error| error.to_string())?;
    entry.ok_or_else(|| "another key stands there".to_owned())
}

/// What stands in a slot.
pub(super) struct Loaded {
    pub(super) entry: Option<Arc<Entry>>,
    /// `Record::version_hash` of the entry's record, 0 of none.
    pub(super) version_hash: u64,
    /// A reader must wait for this position.
    pub(super) wait: u64,
    pub(super) state: PartitionState,
    /// Behind the record of the state: to be waited for before the state is shown to anybody.
    pub(super) state_end: u64,
}

impl Inner {
    pub(super) fn partition(&self, partition: PartitionId) -> Option<&Mutex<Partition>> {
        self.partitions.get(usize::try_from(partition.0).ok()?)
    }

    fn of(&self, slot: &Slot) -> MutexGuard<'_, Partition> {
        lock(self.partition(slot.partition).expect("slots are of partitions below Q"))
    }

    /// Reads the entry of a slot, whose index key is `id`. `keep`: in the cache too.
    pub(super) async fn load(&self, slot: &Slot, id: &[u8], keep: bool) -> Result<Loaded, StorageError> {
        loop {
            let (place, state, state_end, removed) = {
                let partition = self.of(slot);
                let place = partition.index(slot.table).get(id);
                (place, partition.state, partition.state_end(), partition.removed_until)
            };
            let Some(place) = place else {
                return Ok(Loaded { entry: None, version_hash: 0, wait: removed, state, state_end });
            };
            let wait = if place.awaits_sync() { place.end() } else { 0 };
            let loaded =
                |entry| Loaded { entry: Some(entry), version_hash: place.hash, wait, state, state_end };
            if let Some(entry) = self.cache.get(&place.position)
                && !buggify!("cache-missed")
            {
                self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
                return Ok(loaded(entry));
            }
            self.counters.cache_misses.fetch_add(1, Ordering::Relaxed);
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
            if self.of(slot).index(slot.table).get(id) == Some(place) {
                self.note_corrupt(slot.partition, place.position);
                return Err(StorageError::Corrupt(format!("position {}: {damage}", place.position)));
            }
        }
    }

    /// Reads the entry of a slot from the disk, whatever is in memory.
    pub(super) async fn verify(&self, slot: &Slot) -> Result<(), StorageError> {
        let id = index_key(slot.namespace, &slot.key);
        let place = self.of(slot).index(slot.table).get(&id);
        if let Some(place) = place {
            self.cache.remove(&place.position);
        }
        self.load(slot, &id, false).await.map(|_| ())
    }

    /// What the index says of a slot: the version hash, and the position that a reader must wait for. None when there is
    /// no entry, or when it cannot be ruled out that the entry is known to be damaged.
    pub(super) fn look_up(&self, slot: &Slot) -> Option<(u64, u64)> {
        let id = index_key(slot.namespace, &slot.key);
        let place = self.of(slot).index(slot.table).get(&id)?;
        let damaged = lock(&self.damaged);
        let suspected = damaged
            .get(&slot.partition)
            .is_some_and(|places| places.len() >= DAMAGED_MAX || places.contains(&place.position));
        (!suspected).then(|| (place.hash, if place.awaits_sync() { place.end() } else { 0 }))
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
            // A copy: a value that lives on must not keep its whole group in memory.
            return decode(slot, place, &segment, &Bytes::copy_from_slice(&bytes));
        }
        let file = segment.file().ok_or("its segment was never written")?;
        let offset = place.position - segment.base;
        let mut buffer = vec![0; place.len()];
        if file.read_now(offset, &mut buffer) {
            return decode(slot, place, &segment, &buffer.into());
        }
        let mut failed = 0;
        let bytes = loop {
            match file.read_at(offset, place.len()).await {
                Ok(bytes) => break bytes,
                // What is taken for damage is written over by a repair; a cable that shook must not cost a copy.
                Err(error) if failed < REREADS => {
                    tracing::warn!(segment = segment.id, offset, %error, "a read failed: tried again");
                    failed += 1;
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        decode(slot, place, &segment, &bytes)
    }

    pub(super) async fn update<R>(
        &self,
        slot: &Slot,
        durability: Durability,
        replace_damaged: bool,
        change: impl FnOnce(&mut Entry, &PartitionState) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        self.log.admit().await?;
        let hash = xxh3_64(slot.key.as_bytes());
        let stripe = usize::try_from(hash % LOCKS as u64).expect("less than LOCKS");
        // Most often it is free; `lock` would spend the task's budget even then, and a task that submits many updates
        // would be sent to the back of the queue in the middle, its group split in two.
        let _locked = match self.keys[stripe].try_lock() {
            Ok(locked) => locked,
            Err(_) => self.keys[stripe].lock().await,
        };
        let id = index_key(slot.namespace, &slot.key);
        let mut entry = match self.load(slot, &id, false).await {
            Ok(loaded) => loaded.entry.map(Arc::unwrap_or_clone).unwrap_or_default(),
            Err(StorageError::Corrupt(_)) if replace_damaged => Entry::default(),
            Err(error) => return Err(error),
        };
        // Looked at before a dot is made: a latched or full store must refuse, not append.
        self.log.check()?;
        let mut partition = self.of(slot);
        // Under the key's lock only compaction can have touched it, which moves the same bytes.
        let standing = partition.index(slot.table).find(&id);
        let (change, value) = change(&mut entry, &partition.state);
        let end = match (change, standing) {
            (Change::Keep, Some((_, place))) => place.end(),
            (Change::Keep | Change::Remove, None) => partition.removed_until,
            (Change::Write, _) => self.write(&mut partition, slot, &id, &entry, durability, standing)?,
            (Change::Remove, Some((_, place))) => self.remove(&mut partition, slot, &id, place)?,
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
        found: Option<(Spot, Place)>,
    ) -> Result<u64, StorageError> {
        let standing = found.map(|(_, place)| place);
        let reveals = standing.is_some_and(|old| old.awaits_sync() && old.end() > self.log.synced());
        let due = match durability {
            Durability::Interval(within) if !reveals => Some(self.clock.mono() + within),
            Durability::Interval(_) | Durability::Sync => None,
        };
        let (position, len) =
            self.log.append(slot.partition, Need::Record, due.unwrap_or_default(), |out, seed| {
                append_entry(out, seed, slot, entry)
            })?;
        let record = &entry.copy.record;
        let place = Place::new(position, len, record.version_hash(), due.is_none())
            .with_reapable(record.is_reapable());
        partition.set(slot, id, found, place, &entry.targets);
        self.release(standing, place.end());
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
        let (position, len) =
            self.log.append(slot.partition, Need::Removal, Duration::ZERO, |out, seed| {
                append_removal(out, seed, slot)
            })?;
        let end = position + len as u64;
        partition.unset(slot, id);
        partition.removed_until = end;
        self.release(Some(standing), end);
        Ok(end)
    }

    /// The record is not the newest of its key any more; the one behind which `by` stands is.
    fn release(&self, old: Option<Place>, by: u64) {
        if let Some(old) = old {
            self.segments.release(old.position, old.len(), by);
            self.cache.remove(&old.position);
        }
    }

    pub(super) fn set_state(
        &self,
        partition: &mut Partition,
        number: PartitionId,
        state: PartitionState,
    ) -> Result<u64, StorageError> {
        let body = StateBody { partition: number, state };
        let (position, len) = self.log.append(number, Need::Record, Duration::ZERO, |out, seed| {
            append_record(out, seed, KIND_STATE, &body)
        })?;
        let end = position + len as u64;
        partition.state = state;
        if let Some((position, len)) = partition.state_place.replace((position, len)) {
            self.segments.release(position, len, end);
        }
        Ok(end)
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
        // Before the mark: whoever sets it compares this under the partition's lock.
        self.doubts.fetch_add(1, Ordering::SeqCst);
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
        let now = (segment.live(), super::compaction::removals_may_go(self, segment));
        lock(&self.pinned).get(&segment.id) == Some(&now)
    }

    pub(super) fn pin(&self, segment: &Segment) {
        let now = (segment.live(), super::compaction::removals_may_go(self, segment));
        lock(&self.pinned).insert(segment.id, now);
    }

    pub(super) fn copied(&self, bytes: usize) {
        self.counters.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn compacted(&self, bytes: u64) {
        self.counters.removed.fetch_add(bytes, Ordering::Relaxed);
    }
}
