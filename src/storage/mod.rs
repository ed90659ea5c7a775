//! What a node keeps: one entry for each key, durable when it says so.
//!
//! ```text
//!   update(slot, f) ── key lock ── read entry ── f ── encode ──▶ buffer ──▶ position
//!                                                                 │  the appender takes all that has gathered:
//!                                                                 ▼  one write, one fdatasync, then the next
//!   read(slot) ── index ── buffer or file ── wait until synced    records.log
//! ```
//!
//! The interface is the one that the log engine will have: read-modify-write of one key is atomic under its
//! lock, an update yields a log position, and `wait_synced` says when that position is durable. Behind it stands
//! a plain append file, `records.log`: never compacted, read as a whole at start. [`directory`] keeps the few
//! facts about the node itself.
//!
//! Invariants
//! - A read returns an entry only after the position it depends on is durable (promise P6): no reply reveals
//!   state that a crash can take back.
//! - Once a write or sync has failed nothing is acknowledged any more ([`StorageError::Latched`]): what reads
//!   back may not be on the disk, and a later sync may succeed without writing it.
//! - What recovery serves is synced before it is served.
//!
//! Not yet: compaction, segments, snapshots, telling corruption in the middle of the file from a torn tail
//! (everything from the first bad record on is cut, and logged).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, Notify};
use xxhash_rust::xxh3::xxh3_64;

use crate::dynamo::version::LocalCopy;
use crate::io::{DirLock, Disk, File};
use crate::net::codec::{self, CodecError};
use crate::net::envelope::{self, PREFIX_LEN};
use crate::sync::Watched;
use crate::types::{Incarnation, Key, Namespace, NodeId, PartitionId};

pub mod directory;

/// Why storage cannot do what was asked. Whether state changed is said for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The system refused a file operation. Nothing was changed.
    #[error("{action} {path}: {reason}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// A write or sync failed before; the store takes nothing more. What was acknowledged is safe; restart
    /// the node, and look at the disk if it happens again.
    #[error("a write to the disk failed, the store is closed to further writes: {0}")]
    Latched(String),
    /// An entry cannot be read back as it was written.
    #[error("the copy of a key is damaged on disk: {0}")]
    Corrupt(String),
    /// Another process uses the directory.
    #[error("{0} is in use by another process: stop it, or choose another directory")]
    InUse(String),
    /// The directory is not one of ours, or of a version that this build does not read.
    #[error("{0}")]
    BadDirectory(String),
    /// The value cannot be written. Nothing was changed.
    #[error(transparent)]
    Unencodable(#[from] CodecError),
}

impl StorageError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
        let path = path.display().to_string();
        move |error| StorageError::Io { action, path, reason: error.to_string() }
    }
}

/// Which of the node's two kinds of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Table {
    /// The node is a primary of the key.
    Data,
    /// Kept for primaries that were not reached.
    Guest,
}

/// Where an entry is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot {
    /// Data or guest.
    pub table: Table,
    /// The key's partition.
    pub partition: PartitionId,
    /// The key's namespace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
}

/// What is kept for a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The record with its local header.
    pub copy: LocalCopy,
    /// Guest: the primaries it is for. Data: primaries that did not get it and for which no fallback was left.
    /// Sorted, each once.
    pub targets: Vec<NodeId>,
}

impl Entry {
    /// Adds primaries that this entry is owed to.
    pub fn add_targets(&mut self, targets: &[NodeId]) {
        self.targets.extend_from_slice(targets);
        self.targets.sort_unstable();
        self.targets.dedup();
    }
}

/// What an update leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The entry is as it was.
    Keep,
    /// The entry is to be written.
    Write,
}

/// A place in the log: everything before it is written in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition(u64);

/// What recovery found, for the log line at start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whole records read.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes cut behind them.
    pub cut: u64,
    /// Starts of the node before this one.
    pub starts: u64,
}

const LOG_NAME: &str = "records.log";
const LOCK_NAME: &str = "LOCK";
const RECORD_VERSION: u8 = 1;
const KIND_ENTRY: u16 = 1;
const KIND_START: u16 = 2;
/// Read at once during recovery.
const RECOVERY_READ: usize = 1024 * 1024;
/// Key locks; two keys share one at times, which costs only waiting.
const LOCKS: usize = 256;

#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    len: usize,
}

impl Place {
    fn end(self) -> LogPosition {
        LogPosition(self.offset + self.len as u64)
    }
}

/// Bytes on their way to the file: a run of the log that cannot be read from it yet.
#[derive(Default)]
struct Run {
    start: u64,
    bytes: Bytes,
}

#[derive(Default)]
struct State {
    index: BTreeMap<Slot, Place>,
    /// Being written by the appender.
    writing: Run,
    /// Gathers while the appender writes; starts at `gathered_start`.
    gathered: Vec<u8>,
    gathered_start: u64,
    closing: bool,
}

/// How far the log is durable, or why it will not get further.
#[derive(Clone)]
enum Synced {
    UpTo(LogPosition),
    Failed(String),
}

struct Inner {
    file: Arc<dyn File>,
    path: String,
    state: Mutex<State>,
    work: Notify,
    synced: Watched<Synced>,
    locks: Vec<AsyncMutex<()>>,
    /// Given back by `close`, when the appender has ended.
    lock: Mutex<Option<Box<dyn DirLock>>>,
    ended: Watched<bool>,
}

/// The store of one node. Cheap to clone; the last clone's appender ends after [`Store::close`].
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Serialize, Deserialize)]
struct EntryBody {
    slot: Slot,
    entry: Entry,
}

#[derive(Serialize, Deserialize)]
struct StartBody {
    incarnation: Incarnation,
}

/// The checksum of a disk record starts from its place, so that one at a wrong place is seen.
fn seed_of(offset: u64) -> u32 {
    crc32c::crc32c(&offset.to_le_bytes())
}

fn encode(offset: u64, kind: u16, body: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    let mut record = vec![0; PREFIX_LEN];
    codec::encode_into(body, &mut record)?;
    let body_len = u32::try_from(record.len() - PREFIX_LEN)
        .map_err(|_| CodecError::Unencodable("4 GiB or more".to_owned()))?;
    record[8..10].copy_from_slice(&kind.to_le_bytes());
    record[10] = RECORD_VERSION;
    record[12..16].copy_from_slice(&body_len.to_le_bytes());
    envelope::seal(&mut record, seed_of(offset));
    Ok(record)
}

impl Store {
    /// Opens the store of a directory that [`directory`] knows, reading all of it, and writes down that this
    /// start goes by `incarnation`. When it returns, everything it will serve is durable, and the incarnation
    /// too.
    ///
    /// # Errors
    /// When the directory is in use or the disk fails. Nothing acknowledged is changed.
    pub async fn open(
        disk: &dyn Disk,
        dir: &Path,
        incarnation: Incarnation,
    ) -> Result<(Store, Recovery), StorageError> {
        let (inner, recovery) = Store::prepare(disk, dir, incarnation).await?;
        Ok((Store::start(inner), recovery))
    }

    async fn prepare(
        disk: &dyn Disk,
        dir: &Path,
        incarnation: Incarnation,
    ) -> Result<(Inner, Recovery), StorageError> {
        let lock = disk.lock(&dir.join(LOCK_NAME)).await.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => StorageError::InUse(dir.display().to_string()),
            _ => StorageError::io("lock", dir)(error),
        })?;
        let path = dir.join(LOG_NAME);
        let file = disk.open(&path, true).await.map_err(StorageError::io("open", &path))?;
        let (index, mut recovery, end) =
            recover(file.as_ref()).await.map_err(StorageError::io("read", &path))?;

        let size = file.size().await.map_err(StorageError::io("read", &path))?;
        recovery.cut = size - end;
        if recovery.cut > 0 {
            tracing::warn!(
                cut = recovery.cut,
                at = end,
                "records.log: cut what follows the last whole record"
            );
            file.set_len(end).await.map_err(StorageError::io("cut", &path))?;
        }
        let start = encode(end, KIND_START, &StartBody { incarnation })?;
        let end_after = end + start.len() as u64;
        file.write_at(end, start.into()).await.map_err(StorageError::io("write", &path))?;
        file.sync_data().await.map_err(StorageError::io("sync", &path))?;
        disk.sync_dir(dir).await.map_err(StorageError::io("sync", dir))?;

        let state = State { index, gathered_start: end_after, ..State::default() };
        let inner = Inner {
            file,
            path: path.display().to_string(),
            state: Mutex::new(state),
            work: Notify::new(),
            synced: Watched::new(Synced::UpTo(LogPosition(end_after))),
            locks: (0..LOCKS).map(|_| AsyncMutex::new(())).collect(),
            lock: Mutex::new(Some(lock)),
            ended: Watched::new(false),
        };
        Ok((inner, recovery))
    }

    fn start(inner: Inner) -> Store {
        let inner = Arc::new(inner);
        let appender = inner.clone();
        tokio::spawn(async move {
            appender.append().await;
            appender.ended.set(true);
        });
        Store { inner }
    }

    /// The entry of a slot, none when there is none. Waits until what it returns is durable.
    ///
    /// # Errors
    /// `Corrupt` when the entry is damaged: that is not "there is none". `Latched` when it depends on a write
    /// that failed.
    pub async fn read(&self, slot: &Slot) -> Result<Option<Entry>, StorageError> {
        let Some((entry, end)) = self.inner.load(slot).await? else { return Ok(None) };
        self.wait_synced(end).await?;
        Ok(Some(entry))
    }

    /// Reads, changes and writes one entry, alone under its key's lock. `change` gets the entry, an empty one
    /// when there is none. The position is durable once [`Store::wait_synced`] says so; when `change` kept the
    /// entry it is the position of what stands there.
    ///
    /// # Errors
    /// When the entry cannot be read (then `change` was not called), cannot be encoded, or the store is
    /// latched; the entry is as it was.
    pub async fn update<R>(
        &self,
        slot: &Slot,
        change: impl FnOnce(&mut Entry) -> (Change, R),
    ) -> Result<(R, LogPosition), StorageError> {
        let _locked = self.inner.lock_key(slot).await;
        let (mut entry, standing) = self.inner.load(slot).await?.unwrap_or_default();
        // Looked at before a dot is made: a latched store must refuse, not append.
        self.inner.check_latch()?;
        let (change, value) = change(&mut entry);
        match change {
            Change::Keep => Ok((value, standing)),
            Change::Write => Ok((value, self.inner.enqueue(slot, entry)?)),
        }
    }

    /// Writes an entry over one that cannot be read back. The damaged copy is lost with its local header, so the
    /// new one must come without one ([`LocalCopy::of`]): its actor has ended.
    ///
    /// # Errors
    /// As [`Store::update`]. `None` when the entry can be read after all: nothing was changed.
    pub async fn replace_damaged(
        &self,
        slot: &Slot,
        entry: Entry,
    ) -> Result<Option<LogPosition>, StorageError> {
        let _locked = self.inner.lock_key(slot).await;
        match self.inner.load(slot).await {
            Err(StorageError::Corrupt(what)) => {
                tracing::warn!(key = %slot.key, what, "a damaged copy is replaced by what peers hold");
                self.inner.check_latch()?;
                self.inner.enqueue(slot, entry).map(Some)
            }
            Err(error) => Err(error),
            Ok(_) => Ok(None),
        }
    }

    /// Waits until everything before the position is durable.
    ///
    /// # Errors
    /// `Latched` when it never will be, as far as this process can know.
    pub async fn wait_synced(&self, position: LogPosition) -> Result<(), StorageError> {
        let durable = |synced: &Synced| match synced {
            Synced::UpTo(durable) if *durable >= position => Some(Ok(())),
            Synced::UpTo(_) => None,
            Synced::Failed(reason) => Some(Err(StorageError::Latched(reason.clone()))),
        };
        self.inner.synced.wait_for(durable).await
    }

    /// Waits until the store has latched: a write or sync failed. Never returns while all is well.
    pub async fn failed(&self) -> String {
        let failed = |synced: &Synced| match synced {
            Synced::Failed(reason) => Some(reason.clone()),
            Synced::UpTo(_) => None,
        };
        self.inner.synced.wait_for(failed).await
    }

    /// Keys in a table.
    pub fn len(&self, table: Table) -> usize {
        self.inner.state().index.keys().filter(|slot| slot.table == table).count()
    }

    /// Whether a table has no key.
    pub fn is_empty(&self, table: Table) -> bool {
        self.len(table) == 0
    }

    /// Makes everything durable, ends the appender and gives the directory free. Other clones of the store
    /// refuse from then on.
    ///
    /// # Errors
    /// `Latched` when that fails.
    pub async fn close(&self) -> Result<(), StorageError> {
        let end = {
            let mut state = self.inner.state();
            state.closing = true;
            LogPosition(state.gathered_start + state.gathered.len() as u64)
        };
        self.inner.work.notify_one();
        let synced = self.wait_synced(end).await;
        self.inner.ended.wait_for(|ended| ended.then_some(())).await;
        self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        synced
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_latch(&self) -> Result<(), StorageError> {
        match self.synced.get() {
            Synced::Failed(reason) => Err(StorageError::Latched(reason)),
            Synced::UpTo(_) => Ok(()),
        }
    }

    async fn lock_key(&self, slot: &Slot) -> AsyncMutexGuard<'_, ()> {
        let hash = xxh3_64(slot.key.as_bytes());
        let stripe = usize::try_from(hash % LOCKS as u64).expect("less than LOCKS");
        self.locks[stripe].lock().await
    }

    /// The entry and the position behind it.
    async fn load(&self, slot: &Slot) -> Result<Option<(Entry, LogPosition)>, StorageError> {
        let (place, bytes) = {
            let state = self.state();
            let Some(place) = state.index.get(slot).copied() else { return Ok(None) };
            (place, state.unwritten(place))
        };
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => self.file.read_at(place.offset, place.len).await.map_err(|error| {
                StorageError::Corrupt(format!("{} at {}: {error}", self.path, place.offset))
            })?,
        };
        let damaged =
            |what: String| StorageError::Corrupt(format!("{} at {}: {what}", self.path, place.offset));
        let opened = envelope::open(&bytes, PREFIX_LEN, seed_of(place.offset))
            .map_err(|error| damaged(error.to_string()))?;
        let body: EntryBody =
            codec::decode(&bytes[opened.body]).map_err(|error| damaged(error.to_string()))?;
        if body.slot != *slot {
            return Err(damaged("another key stands there".to_owned()));
        }
        Ok(Some((body.entry, place.end())))
    }

    fn enqueue(&self, slot: &Slot, entry: Entry) -> Result<LogPosition, StorageError> {
        let mut state = self.state();
        if state.closing {
            return Err(StorageError::Latched("the store was closed".to_owned()));
        }
        let offset = state.gathered_start + state.gathered.len() as u64;
        let body = EntryBody { slot: slot.clone(), entry };
        let record = encode(offset, KIND_ENTRY, &body)?;
        let place = Place { offset, len: record.len() };
        state.gathered.extend_from_slice(&record);
        state.index.insert(body.slot, place);
        drop(state);
        self.work.notify_one();
        Ok(place.end())
    }

    /// The one task that writes: takes all that has gathered, writes it, syncs it, says so.
    async fn append(&self) {
        loop {
            let (start, bytes) = {
                let mut state = self.state();
                if state.gathered.is_empty() && state.closing {
                    return;
                }
                let bytes: Bytes = std::mem::take(&mut state.gathered).into();
                let start = state.gathered_start;
                state.gathered_start += bytes.len() as u64;
                state.writing = Run { start, bytes: bytes.clone() };
                (start, bytes)
            };
            if bytes.is_empty() {
                self.work.notified().await;
                continue;
            }
            let end = LogPosition(start + bytes.len() as u64);
            let written = async {
                self.file.write_at(start, bytes).await?;
                self.file.sync_data().await
            };
            match written.await {
                Ok(()) => {
                    self.state().writing = Run::default();
                    self.synced.set(Synced::UpTo(end));
                }
                Err(error) => {
                    tracing::error!(path = self.path, %error, "write failed: nothing more is acknowledged");
                    self.synced.set(Synced::Failed(error.to_string()));
                    return;
                }
            }
        }
    }
}

impl State {
    /// The bytes of a place that is not in the file yet.
    fn unwritten(&self, place: Place) -> Option<Bytes> {
        let within = |start: u64, len: usize| {
            let from = usize::try_from(place.offset.checked_sub(start)?).ok()?;
            (from + place.len <= len).then_some(from..from + place.len)
        };
        if let Some(range) = within(self.gathered_start, self.gathered.len()) {
            return Some(Bytes::copy_from_slice(&self.gathered[range]));
        }
        within(self.writing.start, self.writing.bytes.len()).map(|range| self.writing.bytes.slice(range))
    }
}

/// Reads the whole log: the index, what was found, and where the last whole record ends.
async fn recover(file: &dyn File) -> io::Result<(BTreeMap<Slot, Place>, Recovery, u64)> {
    let size = file.size().await?;
    let mut index = BTreeMap::new();
    let mut recovery = Recovery::default();
    let mut window = Run::default();
    let mut offset = 0;
    while let Some(record) = next_record(file, &mut window, offset, size).await? {
        let place = Place { offset, len: record.len() };
        let Ok(opened) = envelope::open(&record, PREFIX_LEN, seed_of(offset)) else { break };
        match opened.kind {
            KIND_ENTRY => {
                let Ok(body) = codec::decode::<EntryBody>(&record[opened.body]) else { break };
                index.insert(body.slot, place);
                recovery.records += 1;
            }
            KIND_START => recovery.starts += 1,
            _ => break,
        }
        offset = place.end().0;
    }
    recovery.bytes = offset;
    Ok((index, recovery, offset))
}

/// The bytes of the record at `offset`, none when no whole one can stand there.
async fn next_record(file: &dyn File, window: &mut Run, offset: u64, size: u64) -> io::Result<Option<Bytes>> {
    let left = size - offset;
    if left < PREFIX_LEN as u64 {
        return Ok(None);
    }
    let head = read_window(file, window, offset, PREFIX_LEN, size).await?;
    let max = usize::try_from(left).unwrap_or(usize::MAX);
    match envelope::message_len([head[0], head[1], head[2], head[3]], PREFIX_LEN, max) {
        Ok(len) => read_window(file, window, offset, len, size).await.map(Some),
        Err(_) => Ok(None),
    }
}

/// Reads through a window of the file, so that small records do not cost a read each. The caller has checked
/// that the file has `len` bytes at `offset`.
async fn read_window(
    file: &dyn File,
    window: &mut Run,
    offset: u64,
    len: usize,
    size: u64,
) -> io::Result<Bytes> {
    let from = usize::try_from(offset - window.start).unwrap_or(usize::MAX);
    if window.bytes.len() < from.saturating_add(len) {
        let left = usize::try_from(size - offset).unwrap_or(usize::MAX);
        let read = file.read_at(offset, left.min(len.max(RECOVERY_READ))).await?;
        *window = Run { start: offset, bytes: read };
    }
    let from = usize::try_from(offset - window.start).expect("within the window");
    Ok(window.bytes.slice(from..from + len))
}

#[cfg(all(test, not(madsim)))]
#[allow(clippy::disallowed_methods)] // tests may damage files and wait
mod tests;
