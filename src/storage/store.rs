//! The interface of the engine.
//!
//! A store has two tasks of its own: the appender (`log`) and the housekeeper (`housekeeper`). Both end with
//! [`Store::close`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

use super::directory::NodeMeta;
use super::engine::{Counters, Inner, LOCKS, cache, lock};
use super::format::{KIND_START, StartBody, append_record};
use super::index::{Direction, index_key, split_key};
use super::log::{Limits, Log, Need};
use super::partition::{Partition, Shape};
use super::recovery::{Recovery, recover};
use super::{
    Change, Durability, Entry, LogPosition, PartitionState, SaltSeed, Slot, StorageError, StoreConfig,
    TABLES, Table, directory,
};
use crate::dynamo::merkle::MerkleTree;
use crate::io::{Clock, Disk};
use crate::measure::Histogram;
use crate::sync::Watched;
use crate::types::{Incarnation, Key, Namespace, NodeId, PartitionId};

/// Keys of a page at most.
const PAGE_MAX: usize = 4096;

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
    /// Entries wanted that were found decoded in memory.
    pub cache_hits: u64,
    /// Entries wanted that were not: read from the disk, or from what the disk has not got yet.
    pub cache_misses: u64,
    /// Bytes that wait for the disk.
    pub gathered_bytes: u64,
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

/// The store of one node. Cheap to clone; its tasks end after [`Store::close`].
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

impl Store {
    /// Opens the store of a directory that [`directory`] knows, and writes down that this start goes by
    /// `incarnation` and makes its salts from `salts`; both must differ for every start of every node. When it returns, everything it will serve is durable, and the incarnation too.
    ///
    /// # Errors
    /// When the directory is in use or the disk fails. Nothing acknowledged is changed.
    pub async fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        incarnation: Incarnation,
        salts: SaltSeed,
        config: StoreConfig,
    ) -> Result<(Store, Recovery), StorageError> {
        let dir_lock = directory::lock(disk.as_ref(), dir).await?;
        let shape = Shape { partitions: config.partitions, merkle_key: config.merkle_key };
        let found = Box::pin(recover(disk.as_ref(), dir, shape, incarnation, salts)).await?;
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
            doubts: AtomicU64::new(0),
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
        self.read_with_hash(slot).await.map(|found| found.map(|(entry, _)| entry))
    }

    /// As [`Store::read_with_hash`], with the state of the partition at the moment when the entry was looked up, which is
    /// durable too.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read_with_state(
        &self,
        slot: &Slot,
    ) -> Result<(Option<(Entry, u64)>, PartitionState), StorageError> {
        let inner = &self.inner;
        let id = index_key(slot.namespace, &slot.key);
        let loaded = inner.load(slot, &id, true).await?;
        let wait = loaded.wait.max(loaded.state_end);
        if wait > inner.log.synced() {
            inner.log.wait_synced(wait).await?;
        }
        let found = loaded.entry.map(|entry| (Arc::unwrap_or_clone(entry), loaded.version_hash));
        Ok((found, loaded.state))
    }

    /// As [`Store::read`], the record's `version_hash` with it.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read_with_hash(&self, slot: &Slot) -> Result<Option<(Entry, u64)>, StorageError> {
        let inner = &self.inner;
        let id = index_key(slot.namespace, &slot.key);
        let loaded = inner.load(slot, &id, true).await?;
        if loaded.wait > inner.log.synced() {
            inner.log.wait_synced(loaded.wait).await?;
        }
        Ok(loaded.entry.map(|entry| (Arc::unwrap_or_clone(entry), loaded.version_hash)))
    }

    /// Whether a slot holds the record of this version hash, by the index alone: nothing is read. Waits as a read of it
    /// would. `false` also when the record is known to be damaged; damage that no read has met yet is not seen.
    ///
    /// # Errors
    /// `Latched` or `DiskFull` when it depends on a write that failed.
    pub async fn holds(&self, slot: &Slot, version_hash: u64) -> Result<bool, StorageError> {
        match self.inner.look_up(slot) {
            Some((hash, wait)) if hash == version_hash => {
                self.inner.log.wait_synced(wait).await.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Reads an entry from the disk, also when it is in memory, to see whether it still stands there.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn verify(&self, slot: &Slot) -> Result<(), StorageError> {
        self.inner.verify(slot).await
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
        change: impl FnOnce(&mut Entry, &PartitionState) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        self.inner.update(slot, Durability::Sync, true, change).await
    }

    /// The state of a partition, and the position that it, and everything else in the log by now, depends on.
    ///
    /// # Panics
    /// When the partition is not below Q.
    pub fn partition_state(&self, partition: PartitionId) -> (PartitionState, LogPosition) {
        let locked = lock(self.inner.partition(partition).expect("a partition below Q"));
        (locked.state, LogPosition(self.inner.log.end().0))
    }

    /// The state of a partition, durable.
    ///
    /// # Errors
    /// When the store has latched or is full, and the state depends on what it could not write.
    ///
    /// # Panics
    /// When the partition is not below Q.
    pub async fn durable_state(&self, partition: PartitionId) -> Result<PartitionState, StorageError> {
        let (state, end) = {
            let locked = lock(self.inner.partition(partition).expect("a partition below Q"));
            (locked.state, locked.state_end())
        };
        if end > self.inner.log.synced() {
            self.inner.log.wait_synced(end).await?;
        }
        Ok(state)
    }

    /// Starts of this directory so far, this one among them.
    pub fn starts(&self) -> u64 {
        lock(&self.inner.started).0.starts
    }

    /// How often damage was found since the start. Who sets *refilled* compares it inside the change: see
    /// [`Store::update_partition`].
    pub fn doubts(&self) -> u64 {
        self.inner.doubts.load(Ordering::SeqCst)
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
                return Ok((value, LogPosition(locked.state_end())));
            }
            Change::Remove => state = PartitionState::default(),
            Change::Write => {}
        }
        let end = inner.set_state(&mut locked, partition, state)?;
        Ok((value, LogPosition(end)))
    }

    /// Writes down that the node goes by another incarnation from now on: what [`Store::open`] did for the one before.
    ///
    /// # Errors
    /// When the store is latched, full or stalled; nothing was changed.
    pub async fn note_incarnation(&self, incarnation: Incarnation) -> Result<LogPosition, StorageError> {
        let inner = &self.inner;
        inner.log.admit().await?;
        let mut started = lock(&inner.started);
        let body = StartBody { incarnation, starts: started.0.starts };
        let (position, len) =
            inner.log.append(PartitionId(0), Need::Record, Duration::ZERO, |out, seed| {
                append_record(out, seed, KIND_START, &body)
            })?;
        let (_, old, old_len) = std::mem::replace(&mut *started, (body, position, len));
        let end = position + len as u64;
        inner.segments.release(old, old_len, end);
        Ok(LogPosition(end))
    }

    /// Replaces what the directory says of itself, while the store is open. Durable on return.
    ///
    /// # Errors
    /// When the disk fails: the directory says one or the other. A sync that fails latches the store: it gives up what others
    /// have written too, the name of a segment above all.
    pub async fn write_meta(&self, meta: &NodeMeta) -> Result<(), StorageError> {
        let inner = &self.inner;
        let new = directory::write_new(inner.disk.as_ref(), &inner.dir, meta).await?;
        new.sync_data().await.map_err(|error| {
            inner.log.latch(&error);
            StorageError::io("sync", &inner.dir)(error)
        })?;
        directory::name_new(inner.disk.as_ref(), &inner.dir).await?;
        inner.log.sync_names().await.map_err(StorageError::io("sync", &inner.dir))
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

    /// Up to `limit` keys of a partition's data, in order from behind `after` on, whose records may be reaped one day
    /// (`Record::is_reapable`). From the index alone.
    ///
    /// # Panics
    /// When the partition is not below Q.
    pub fn reapable(
        &self,
        partition: PartitionId,
        after: Option<&(Namespace, Key)>,
        limit: usize,
    ) -> Vec<(Namespace, Key)> {
        let from = match after {
            Some((namespace, key)) => Bound::Excluded(index_key(*namespace, key)),
            None => Bound::Unbounded,
        };
        let mut keys = Vec::new();
        let locked = lock(self.inner.partition(partition).expect("a partition below Q"));
        if locked.reapable() == 0 || limit == 0 {
            return keys;
        }
        locked.index(Table::Data).scan(
            from.as_ref().map(|from| &**from),
            Direction::Ascending,
            |id, place| {
                keys.extend(split_key(id).filter(|_| place.is_reapable()));
                keys.len() < limit
            },
        );
        keys
    }

    /// How many records may be reaped one day. Visits every partition.
    pub fn reapable_len(&self) -> usize {
        self.inner.partitions.iter().map(|partition| lock(partition).reapable()).sum()
    }

    /// Whether there is an entry in a slot, damaged or not, by the index alone; and the position to be waited for before
    /// that is told to anybody.
    pub fn has(&self, slot: &Slot) -> (bool, LogPosition) {
        let id = index_key(slot.namespace, &slot.key);
        let locked = lock(self.inner.partition(slot.partition).expect("slots are of partitions below Q"));
        let found = locked.index(slot.table).get(&id).is_some();
        (found, LogPosition(self.inner.log.end().0))
    }

    /// Raises the fence of a partition of which there is no entry at all; whether it did, durably on return.
    ///
    /// # Errors
    /// As [`Store::update_partition`].
    pub async fn raise_empty(&self, partition: PartitionId, fence: u64) -> Result<bool, StorageError> {
        let inner = &self.inner;
        let looked = |locked: &Partition| {
            locked.state.fence < fence && TABLES.iter().all(|table| locked.index(*table).len() == 0)
        };
        if !looked(&lock(inner.partition(partition).expect("a partition below Q"))) {
            return Ok(false);
        }
        inner.log.admit().await?;
        let end = {
            let mut locked = lock(inner.partition(partition).expect("a partition below Q"));
            if !looked(&locked) {
                return Ok(false);
            }
            let state = PartitionState { fence, ..locked.state };
            inner.set_state(&mut locked, partition, state)?
        };
        inner.log.wait_synced(end).await.map(|()| true)
    }

    /// The nodes that something is kept for.
    pub fn targets(&self) -> BTreeSet<NodeId> {
        let mut targets = BTreeSet::new();
        for partition in &self.inner.partitions {
            targets.extend(lock(partition).targets());
        }
        targets
    }

    /// For whom an entry is kept, damaged or not.
    pub fn targets_of(&self, slot: &Slot) -> Vec<NodeId> {
        let id = index_key(slot.namespace, &slot.key);
        let locked = lock(self.inner.partition(slot.partition).expect("slots are of partitions below Q"));
        locked.targets_of(slot.table, &id).to_vec()
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

    /// How many entries are kept for a node, and how many bytes they have on the disk. Visits each partition.
    pub fn owed_size(&self, node: NodeId) -> (u64, u64) {
        self.inner
            .partitions
            .iter()
            .map(|partition| lock(partition).owed_size(node))
            .fold((0, 0), |(count, bytes), (more, their_bytes)| (count + more, bytes + their_bytes))
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

    /// Keys of one partition in a table.
    ///
    /// # Panics
    /// When the partition is not below Q.
    pub fn keys_in(&self, table: Table, partition: PartitionId) -> usize {
        lock(self.inner.partition(partition).expect("a partition below Q")).index(table).len()
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
            cache_hits: counted(&inner.counters.cache_hits),
            cache_misses: counted(&inner.counters.cache_misses),
            gathered_bytes: inner.log.gathered() as u64,
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

    /// How long writing a commit group and syncing it took.
    pub fn sync_time(&self) -> &Histogram {
        &self.inner.log.counters.sync_time
    }

    /// Whether a write would be taken now.
    ///
    /// # Errors
    /// Why not: the disk is full or stalled, or the store has latched.
    pub fn writable(&self) -> Result<(), StorageError> {
        self.inner.log.check()
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
        let synced = match inner.log.wait_synced(end).await {
            Ok(()) => inner.log.sound(),
            unsynced => unsynced,
        };
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
