//! The index on disk: `index.snap`, so that a restart reads it and only the end of the log.
//!
//! ```text
//!   head {from, Q, newest start} │ for each partition: state and leaves │ runs of keys and places │ targets │ … │ end {synced}
//! ```
//! It is written while the log moves on. Each partition is taken in one moment of its own, all of them later than
//! `from`, a position that was read before the first. So the file holds everything before `from` and something of
//! what came after; replaying from `from` on, in order, leads to the same index whatever it holds already, since the
//! newest record of a key wins; and to the same Merkle leaves, since a partition's leaves are those of its index at
//! the moment when both were taken, and replay changes both by the same steps.
//!
//! Every record of the file has a checksum over its place; the file counts only with its end, only as a whole, and
//! only after everything that it points at was synced (`synced`, which therefore proves that position). It is written
//! beside the old one, synced, renamed, and the directory is synced. There is one: an older one would bring back what
//! was removed since, because compaction drops a removal record once the newest snapshot knows of it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};

use super::engine::lock;
use super::format::{
    KIND_SNAPSHOT, RECORD_LEN_MAX, SEGMENT_HEAD_LEN, Salted, StartBody, append_raw, append_record,
    open_record, seed_of,
};
use super::index::{INDEX_KEY_LEN, Leaf, Place};
use super::log::Log;
use super::partition::{Partition, Shape};
use super::segment::PROVEN_MAX;
use super::{PartitionState, StorageError, Table};
use crate::dynamo::merkle::{LeafBits, MerkleTree};
use crate::io::{Disk, File};
use crate::net::codec::{self, CodecError};
use crate::net::envelope::{PREFIX_LEN, message_len};
use crate::types::{NodeId, PartitionId};

pub(super) const NAME: &str = "index.snap";
pub(super) const NAME_NEW: &str = "index.snap.new";

const KIND_HEAD: u16 = KIND_SNAPSHOT;
const KIND_PARTITION: u16 = KIND_SNAPSHOT + 1;
/// 2 was a run that did not say what may be reaped.
const KIND_RUN: u16 = KIND_SNAPSHOT + 5;
const KIND_OWED: u16 = KIND_SNAPSHOT + 3;
const KIND_END: u16 = KIND_SNAPSHOT + 4;

/// Flag in the length of a record that may be reaped one day.
const REAPABLE: u32 = 1 << 31;
const _: () = assert!(RECORD_LEN_MAX < REAPABLE as usize);
/// In place of a segment's id in the checksums.
const ID: u64 = u64::MAX;
/// Bytes written at once.
const CHUNK: usize = 1024 * 1024;
/// Bytes of keys in a run.
const RUN: usize = 256 * 1024;
/// Bytes between syncs while writing, so that the last one does not hold up the log's.
const SYNC_EVERY: u64 = 4 * 1024 * 1024;
/// Bytes of keys and nodes in a record of what is owed, about: one key more may follow.
const OWED: usize = 256 * 1024;

#[derive(Serialize, Deserialize)]
struct Head {
    from: u64,
    partitions: u32,
    start: Option<(StartBody, u64, usize)>,
}

#[derive(Serialize, Deserialize)]
struct PartitionHead {
    partition: PartitionId,
    state: PartitionState,
    state_place: Option<(u64, usize)>,
    leaf_bits: u32,
    leaves: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct OwedBody {
    partition: PartitionId,
    owed: Vec<(Table, Bytes, Vec<NodeId>)>,
}

#[derive(Serialize, Deserialize)]
struct End {
    entries: u64,
    synced: u64,
}

/// What a snapshot says.
pub(super) struct Snapshot {
    pub(super) partitions: Vec<Partition>,
    /// Replay begins here.
    pub(super) from: u64,
    /// Everything before was synced when it was written.
    pub(super) synced: u64,
    /// The newest start, with the place of its record.
    pub(super) start: Option<(StartBody, u64, usize)>,
    /// Bytes of the file.
    pub(super) bytes: u64,
}

/// What became of writing one.
pub(super) struct Written {
    pub(super) from: u64,
    pub(super) bytes: u64,
}

struct Writer {
    file: Arc<dyn File>,
    offset: u64,
    buffer: Vec<u8>,
    synced: u64,
}

impl Writer {
    fn seed(&self) -> u32 {
        seed_of(Salted::plain(ID), self.offset + self.buffer.len() as u64)
    }

    fn put(&mut self, kind: u16, body: &impl Serialize) -> Result<(), CodecError> {
        let seed = self.seed();
        append_record(&mut self.buffer, seed, kind, body).map(|_| ())
    }

    fn put_raw(&mut self, kind: u16, body: &[u8]) -> Result<(), CodecError> {
        let seed = self.seed();
        append_raw(&mut self.buffer, seed, kind, body).map(|_| ())
    }

    async fn flush(&mut self, least: usize) -> io::Result<()> {
        if self.buffer.len() < least {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let len = bytes.len() as u64;
        self.file.write_at(self.offset, bytes).await?;
        self.offset += len;
        if self.offset - self.synced >= SYNC_EVERY {
            self.synced = self.offset;
            self.file.sync_data().await?;
        }
        Ok(())
    }
}

fn put_entry(run: &mut Vec<u8>, key: &[u8], place: Place) {
    run.put_u32_le(u32::try_from(key.len()).expect("a key has at most 64 KiB"));
    run.put_slice(key);
    run.put_u64_le(place.position);
    run.put_u64_le(place.hash);
    let len = u32::try_from(place.len()).expect("records are shorter than RECORD_LEN_MAX");
    run.put_u32_le(if place.is_reapable() { len | REAPABLE } else { len });
}

fn run_head(partition: PartitionId, table: Table) -> Vec<u8> {
    let mut run = Vec::with_capacity(RUN + 1024);
    run.put_u32_le(partition.0);
    run.put_u8(u8::from(table == Table::Guest));
    run
}

/// Writes a snapshot of all partitions and makes it the one that counts.
///
/// # Errors
/// When the disk fails or the log has latched; the old one counts then.
pub(super) async fn write(
    disk: &dyn Disk,
    dir: &Path,
    log: &Log,
    partitions: &[Mutex<Partition>],
    start: Option<(StartBody, u64, usize)>,
) -> Result<Written, StorageError> {
    point!("snapshot-begun");
    let path = dir.join(NAME_NEW);
    // Before the first partition is taken: see the module.
    let (_, from) = log.end();
    let file = disk.open(&path, true).await.map_err(StorageError::io("create", &path))?;
    file.set_len(0).await.map_err(StorageError::io("cut", &path))?;
    let mut writer = Writer { file, offset: 0, buffer: Vec::new(), synced: 0 };
    let failed = || StorageError::io("write", &path);
    let count = u32::try_from(partitions.len()).expect("Q is at most 65,536");
    writer.put(KIND_HEAD, &Head { from, partitions: count, start })?;
    let mut entries = 0;
    for (number, partition) in (0..).zip(partitions) {
        let number = PartitionId(number);
        let (head, tables, owed) = taken(number, partition);
        writer.put(KIND_PARTITION, &head)?;
        drop(head);
        for (table, leaves) in tables {
            let mut run = run_head(number, table);
            for leaf in leaves {
                for (key, place) in leaf.iter() {
                    put_entry(&mut run, key, place);
                    entries += 1;
                }
                if run.len() >= RUN {
                    writer.put_raw(KIND_RUN, &run)?;
                    run = run_head(number, table);
                    writer.flush(CHUNK).await.map_err(failed())?;
                }
            }
            if run.len() > run_head(number, table).len() {
                writer.put_raw(KIND_RUN, &run)?;
            }
        }
        // By their bytes and not by their number: keys may have 64 KiB, and a record has a limit.
        let (mut body, mut bytes) = (OwedBody { partition: number, owed: Vec::new() }, 0);
        for (table, id, targets) in owed {
            bytes += id.len() + targets.len() * size_of::<NodeId>();
            body.owed.push((table, id, targets));
            if bytes >= OWED {
                writer.put(KIND_OWED, &body)?;
                (body.owed, bytes) = (Vec::new(), 0);
                writer.flush(CHUNK).await.map_err(failed())?;
            }
        }
        if !body.owed.is_empty() {
            writer.put(KIND_OWED, &body)?;
        }
        writer.flush(CHUNK).await.map_err(failed())?;
        // Elsewhere requests wait for this executor.
        tokio::task::yield_now().await;
    }
    let (end, _) = log.end();
    log.wait_synced(end).await?;
    writer.put(KIND_END, &End { entries, synced: log.synced() })?;
    writer.flush(0).await.map_err(failed())?;
    writer.file.sync_data().await.map_err(StorageError::io("sync", &path))?;
    disk.rename(&path, &dir.join(NAME)).await.map_err(StorageError::io("rename", &path))?;
    point!("snapshot-named");
    log.sync_names().await.map_err(StorageError::io("sync", dir))?;
    Ok(Written { from, bytes: writer.offset })
}

type Tables = [(Table, Vec<Leaf>); 2];
type OwedList = Vec<(Table, Bytes, Vec<NodeId>)>;

/// One partition as it is at one moment.
fn taken(number: PartitionId, partition: &Mutex<Partition>) -> (PartitionHead, Tables, OwedList) {
    let partition = lock(partition);
    let head = PartitionHead {
        partition: number,
        state: partition.state,
        state_place: partition.state_place,
        leaf_bits: partition.tree().bits().get(),
        leaves: partition.tree().leaves().to_vec(),
    };
    let tables = [Table::Data, Table::Guest].map(|table| (table, partition.index(table).share()));
    let owed = partition
        .owed()
        .map(|(table, id, targets)| (table, Bytes::copy_from_slice(id), targets.to_vec()))
        .collect();
    (head, tables, owed)
}

/// Reads the snapshot. `Ok(None)`: there is none. `Ok(Some(Err))`: it does not count, for this reason.
///
/// # Errors
/// When the disk fails.
pub(super) async fn read(
    disk: &dyn Disk,
    dir: &Path,
    shape: Shape,
) -> Result<Option<Result<Snapshot, String>>, StorageError> {
    let path = dir.join(NAME);
    let file = match disk.open(&path, false).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::io("open", &path)(error)),
    };
    let size = file.size().await.map_err(StorageError::io("read", &path))?;
    Ok(Some(load(file.as_ref(), size, shape).await))
}

async fn load(file: &dyn File, size: u64, shape: Shape) -> Result<Snapshot, String> {
    let mut loading = Loading { shape, snapshot: None, entries: 0, end: 0, ended: false };
    let (mut offset, mut window_start, mut window) = (0, 0, Bytes::new());
    while offset < size {
        let mut len = PREFIX_LEN;
        // First the fixed part, then the whole record, through a window.
        for whole in [false, true] {
            let from = usize::try_from(offset - window_start).unwrap_or(usize::MAX);
            if from.saturating_add(len) > window.len() {
                let left = usize::try_from(size - offset).unwrap_or(usize::MAX);
                let wanted = left.min(len.max(4 * CHUNK));
                window = file.read_at(offset, wanted).await.map_err(|error| error.to_string())?;
                window_start = offset;
            }
            let from = usize::try_from(offset - window_start).expect("within the window");
            let bytes = window.get(from..from + len).ok_or("it ends in the middle of a record")?;
            if !whole {
                let left = usize::try_from(size - offset).unwrap_or(usize::MAX);
                let prefix = [bytes[0], bytes[1], bytes[2], bytes[3]];
                len = message_len(prefix, PREFIX_LEN, left).map_err(|error| error.to_string())?;
            }
        }
        let from = usize::try_from(offset - window_start).expect("within the window");
        let record = &window[from..from + len];
        let opened = open_record(record, seed_of(Salted::plain(ID), offset)).ok_or("a record is damaged")?;
        loading.take(opened.kind, &record[opened.body])?;
        offset += len as u64;
    }
    loading.finish(size)
}

struct Loading {
    shape: Shape,
    snapshot: Option<Snapshot>,
    entries: u64,
    /// Behind everything that it points at.
    end: u64,
    ended: bool,
}

impl Loading {
    fn take(&mut self, kind: u16, body: &[u8]) -> Result<(), String> {
        let words = |error: CodecError| error.to_string();
        if self.ended {
            return Err("it goes on behind its end".to_owned());
        }
        let Some(snapshot) = &mut self.snapshot else {
            let head: Head = codec::decode(body).map_err(words)?;
            if kind != KIND_HEAD || head.partitions != self.shape.partitions.get() {
                return Err("it is of another cluster".to_owned());
            }
            let partitions = (0..head.partitions).map(|_| Partition::new(self.shape)).collect();
            let (from, start) = (head.from, head.start);
            self.snapshot = Some(Snapshot { partitions, from, synced: 0, start, bytes: 0 });
            return Ok(());
        };
        let of = |partition: PartitionId| usize::try_from(partition.0).expect("a u32 is an index");
        let missing = || "it names a partition that does not exist".to_owned();
        match kind {
            KIND_PARTITION => {
                let head: PartitionHead = codec::decode(body).map_err(words)?;
                let bits = LeafBits::new(head.leaf_bits).map_err(|error| error.to_string())?;
                let (key, q) = (&self.shape.merkle_key, self.shape.partitions);
                let tree =
                    MerkleTree::from_leaves(key, q, bits, &head.leaves).map_err(|error| error.to_string())?;
                let partition = snapshot.partitions.get_mut(of(head.partition)).ok_or_else(missing)?;
                if let Some((position, len)) = head.state_place {
                    self.end = self.end.max(end_of(position, len).ok_or("a state has no place")?);
                }
                partition.state = head.state;
                partition.state_place = head.state_place;
                partition.set_tree(tree);
            }
            KIND_RUN => {
                let read = read_run(&mut snapshot.partitions, body);
                let (entries, end) = read.ok_or("a run of keys is malformed")?;
                self.entries += entries;
                self.end = self.end.max(end);
            }
            KIND_OWED => {
                let body: OwedBody = codec::decode(body).map_err(words)?;
                let partition = snapshot.partitions.get_mut(of(body.partition)).ok_or_else(missing)?;
                for (table, id, targets) in body.owed {
                    if !INDEX_KEY_LEN.contains(&id.len()) {
                        return Err("something is owed that is no key".to_owned());
                    }
                    partition.load_targets(table, &id, &targets);
                }
            }
            KIND_END => {
                let end: End = codec::decode(body).map_err(words)?;
                self.ended = end.entries == self.entries;
                snapshot.synced = end.synced;
                // All of it was synced before the end was written; replay may begin behind the head of a segment that was
                // not begun. A start must not take for known what it is about to write.
                let from_max = end.synced.saturating_add(SEGMENT_HEAD_LEN as u64);
                if snapshot.from > from_max || self.end > end.synced || end.synced > PROVEN_MAX {
                    return Err("it points behind what it says is synced".to_owned());
                }
            }
            _ => return Err(format!("it has a record of kind {kind}")),
        }
        Ok(())
    }

    fn finish(self, bytes: u64) -> Result<Snapshot, String> {
        match self.snapshot {
            Some(snapshot) if self.ended => Ok(Snapshot { bytes, ..snapshot }),
            _ => Err("its end is missing".to_owned()),
        }
    }
}

/// The position behind a record, if there may be one.
fn end_of(position: u64, len: usize) -> Option<u64> {
    position.checked_add(u64::try_from(len).ok().filter(|_| len <= RECORD_LEN_MAX)?)
}

/// Enters a run of keys; how many, and the position behind all that it points at.
fn read_run(partitions: &mut [Partition], mut run: &[u8]) -> Option<(u64, u64)> {
    if run.len() < 5 {
        return None;
    }
    let partition = partitions.get_mut(usize::try_from(run.get_u32_le()).ok()?)?;
    let table = if run.get_u8() == 0 { Table::Data } else { Table::Guest };
    let (mut entries, mut end) = (0, 0);
    while !run.is_empty() {
        let len = usize::try_from(run.try_get_u32_le().ok()?).ok()?;
        let (key, rest) = run.split_at_checked(len)?;
        run = rest;
        if run.len() < 20 || !INDEX_KEY_LEN.contains(&key.len()) {
            return None;
        }
        let (position, hash) = (run.get_u64_le(), run.get_u64_le());
        let flagged = run.get_u32_le();
        let len = usize::try_from(flagged & !REAPABLE).ok()?;
        let reapable = flagged & REAPABLE > 0;
        end = end.max(end_of(position, len)?);
        partition
            .index_mut(table)
            .push(key, Place::new(position, len, hash, false).with_reapable(reapable))?;
        partition.loaded(table, reapable);
        entries += 1;
    }
    Some((entries, end))
}
