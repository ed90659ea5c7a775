//! Looks at the data directory of a node that is not running, and changes nothing.
//!
//! ```text
//!   Disk ◀── ReadOnly (refuses every change, counts what is read) ◀── recovery::examine ──▶ index, states, segments
//!                                                                                            └─▶ Figures, check
//! ```
//! What a start would find is found by the same code: `recovery::examine` runs on a disk that refuses to change, so a look
//! leaves no trace even where that code is wrong. What a start would write again stands, here, where it was found.
//!
//! The directory's lock is taken, so that no node starts meanwhile. A directory without a lock file was never used, or
//! was copied without it; the file is not made, and if it is there in the end, what was seen means nothing.
//!
//! Deliberately absent: times (the seam has none; the age of a snapshot is told in bytes of the log), and anything that
//! repairs: a start does that, and the node's peers.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::Serialize;

use super::directory::{self, NodeMeta};
use super::format::SEGMENT_HEAD_LEN;
use super::partition::Shape;
use super::recovery::{Examined, examine};
use super::segment::{Segment, Segments, id_of};
use super::{StorageError, TABLES, Table, snapshot};
use crate::dynamo::merkle::MerkleKey;
use crate::dynamo::ring::{PARTITIONS_MAX, PartitionCount};
use crate::io::{BoxFuture, DirLock, Disk, File};
use crate::types::NodeId;

/// How far a look is. Shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes to read in all, as far as it is known yet; it may grow and shrink.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed).max(self.read())
    }

    pub(super) fn left(&self, bytes: u64) {
        self.total.store(self.read() + bytes, Ordering::Relaxed);
    }
}

/// Passes reads on and refuses everything else.
struct ReadOnly {
    disk: Arc<dyn Disk>,
    progress: Arc<Progress>,
}

struct ReadOnlyFile {
    file: Arc<dyn File>,
    progress: Arc<Progress>,
}

fn refuse<T: Send + 'static>() -> BoxFuture<'static, io::Result<T>> {
    let refused = io::Error::new(ErrorKind::ReadOnlyFilesystem, "a look at a directory changes nothing");
    Box::pin(std::future::ready(Err(refused)))
}

impl Disk for ReadOnly {
    fn create_dir_all(&self, _dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        refuse()
    }

    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
        if create {
            return refuse();
        }
        let (open, progress) = (self.disk.open(path, false), self.progress.clone());
        Box::pin(async move { Ok(Arc::new(ReadOnlyFile { file: open.await?, progress }) as Arc<dyn File>) })
    }

    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
        self.disk.list(dir)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> BoxFuture<'static, io::Result<()>> {
        refuse()
    }

    fn remove(&self, _path: &Path) -> BoxFuture<'static, io::Result<()>> {
        refuse()
    }

    fn sync_dir(&self, _dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        refuse()
    }

    fn lock(&self, _path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
        refuse()
    }
}

impl File for ReadOnlyFile {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        self.file.size()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        self.progress.read.fetch_add(len as u64, Ordering::Relaxed);
        self.file.read_at(offset, len)
    }

    fn write_at(&self, _offset: u64, _bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        refuse()
    }

    fn set_len(&self, _len: u64) -> BoxFuture<'static, io::Result<()>> {
        refuse()
    }

    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        refuse()
    }
}

/// A directory that is being looked at; no node can start on it while this is held.
pub(super) struct Look<'a> {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: &'a Path,
    pub(super) names: Vec<String>,
    pub(super) progress: Arc<Progress>,
    /// None when there was no lock file to lock.
    held: Option<Box<dyn DirLock>>,
}

impl<'a> Look<'a> {
    /// Begins a look.
    ///
    /// # Errors
    /// `BadDirectory` when no node's data is there, `InUse` when a node runs on it, `Io` when the disk fails.
    pub(super) async fn begin(
        disk: &Arc<dyn Disk>,
        dir: &'a Path,
        progress: &Arc<Progress>,
    ) -> Result<Look<'a>, StorageError> {
        let names = disk.list(dir).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => none_there(dir, "it is not there"),
            ErrorKind::NotADirectory => none_there(dir, "it is a file"),
            _ => StorageError::io("list", dir)(error),
        })?;
        let of_a_node =
            |name: &String| name == directory::NAME || name == snapshot::NAME || id_of(name).is_some();
        if !names.iter().any(of_a_node) {
            return Err(none_there(dir, "it has neither node.meta nor a segment"));
        }
        let mut held = None;
        if names.iter().any(|name| name == directory::LOCK_NAME) {
            held = Some(disk.lock(&dir.join(directory::LOCK_NAME)).await.map_err(
                |error| match error.kind() {
                    ErrorKind::WouldBlock => StorageError::InUse(dir.display().to_string()),
                    _ => StorageError::io("lock", dir)(error),
                },
            )?);
        }
        let disk: Arc<dyn Disk> = Arc::new(ReadOnly { disk: disk.clone(), progress: progress.clone() });
        // Again: now nobody changes them any more.
        let names = disk.list(dir).await.map_err(StorageError::io("list", dir))?;
        Ok(Look { disk, dir, names, progress: progress.clone(), held })
    }

    /// Ends the look.
    ///
    /// # Errors
    /// `InUse` when a node has come to use the directory: what was seen means nothing.
    pub(super) async fn end(self) -> Result<(), StorageError> {
        let names = self.disk.list(self.dir).await.map_err(StorageError::io("list", self.dir))?;
        if self.held.is_none() && names.iter().any(|name| name == directory::LOCK_NAME) {
            return Err(StorageError::InUse(self.dir.display().to_string()));
        }
        Ok(())
    }

    /// Bytes of a file of the directory.
    pub(super) async fn size(&self, name: &str) -> Result<u64, StorageError> {
        let path = self.dir.join(name);
        let file = self.disk.open(&path, false).await.map_err(StorageError::io("open", &path))?;
        file.size().await.map_err(StorageError::io("read", &path))
    }

    /// What a start would find, entries that it would write again included. Without what the directory says of itself
    /// the snapshot cannot be read, and partitions mean what the records say.
    pub(super) async fn examine(
        &self,
        meta: Option<&NodeMeta>,
    ) -> Result<(Examined, Arc<Segments>), StorageError> {
        let mut bytes = 0;
        for name in self.names.iter().filter(|name| id_of(name).is_some() || *name == snapshot::NAME) {
            bytes += self.size(name).await?;
        }
        self.progress.left(bytes);
        let shape = shape_of(meta);
        let mut examined = examine(self.disk.as_ref(), self.dir, &self.names, shape).await?;
        examined.enter_pending();
        // As they stand, with what a start would move to another file.
        let segments = Segments::default();
        for found in &examined.found {
            let there = found.limit.min(found.size);
            if there > SEGMENT_HEAD_LEN as u64 {
                let segment = Segment::with_file(found.id, found.base, found.salt, there, found.file.clone());
                segments.insert(Arc::new(segment));
            }
        }
        Ok((examined, Arc::new(segments)))
    }
}

/// What a store of this node would be opened with.
pub(super) fn shape_of(meta: Option<&NodeMeta>) -> Shape {
    let all = || PartitionCount::new(PARTITIONS_MAX).expect("the most there may be");
    Shape {
        partitions: meta.map_or_else(all, |meta| meta.descriptor.partitions),
        merkle_key: MerkleKey(meta.map_or([0; 16], |meta| meta.descriptor.merkle_key)),
    }
}

fn none_there(dir: &Path, why: &str) -> StorageError {
    StorageError::BadDirectory(format!("{} is no data directory: {why}", dir.display()))
}

/// Figures of a directory, for `storage stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// [`directory::FORMAT`] of the files.
    pub format: u32,
    /// The node whose directory it is.
    pub node: u64,
    /// The cluster that the node is a member of, as its id is printed.
    pub cluster: String,
    /// Partitions of the cluster's ring (Q).
    pub partitions: u32,
    /// Primaries of each (N).
    pub replicas: u32,
    /// Starts of a node on this directory.
    pub starts: u64,
    /// Whether it was shut down cleanly.
    pub clean: bool,
    /// Entries of the node's own partitions.
    pub data_keys: u64,
    /// Guest entries.
    pub guest_keys: u64,
    /// Entries, guests among them, that are kept for other nodes too.
    pub owed_keys: u64,
    /// The nodes that they are kept for.
    pub targets: Vec<NodeId>,
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub log_bytes: u64,
    /// Bytes of the records that are needed.
    pub live_bytes: u64,
    /// The others, heads included: what compaction may give back.
    pub dead_bytes: u64,
    /// Bytes that the indexes take in the memory of a node.
    pub index_bytes: u64,
    /// The index snapshot, if there is one that counts.
    pub snapshot: Option<SnapshotFigures>,
    /// Why the snapshot that is there does not count.
    pub snapshot_refused: Option<String>,
    /// Whole records that nothing proves to be on the disk: the next start writes them again.
    pub unproven_records: u64,
    /// Bytes behind the last whole record, of a write that a crash tore: the next start cuts them.
    pub torn_bytes: u64,
    /// Damage that a start would meet. `storage check` looks for all there is.
    pub damage: u64,
}

/// Figures of an index snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SnapshotFigures {
    /// Bytes of its file.
    pub bytes: u64,
    /// Bytes of the log written since: what a start replays.
    pub log_bytes_since: u64,
}

impl Figures {
    pub(super) fn of(meta: &NodeMeta, examined: &mut Examined, segments: &Segments) -> Figures {
        examined.replay.count_live(segments);
        let report = &examined.replay.report;
        let mut figures = Figures {
            format: meta.format,
            node: meta.node.0,
            cluster: meta.descriptor.cluster.to_string(),
            partitions: meta.descriptor.partitions.get(),
            replicas: meta.descriptor.replicas,
            starts: examined.replay.starts(),
            clean: report.clean,
            segments: report.segments,
            snapshot_refused: report.snapshot_refused.clone(),
            unproven_records: report.rewritten,
            torn_bytes: report.cut,
            damage: report.corrupt,
            ..Figures::default()
        };
        if report.snapshot {
            let end = segments.all().last().map_or(0, |newest| newest.end());
            let log_bytes_since = end.saturating_sub(examined.from);
            figures.snapshot = Some(SnapshotFigures { bytes: examined.snapshot_bytes, log_bytes_since });
        }
        let mut targets = std::collections::BTreeSet::new();
        for partition in &examined.replay.partitions {
            figures.data_keys += partition.index(Table::Data).len() as u64;
            figures.guest_keys += partition.index(Table::Guest).len() as u64;
            figures.index_bytes +=
                TABLES.map(|table| partition.index(table).bytes() as u64).iter().sum::<u64>();
            figures.owed_keys += partition.owed().count() as u64;
            targets.extend(partition.targets());
        }
        figures.targets = targets.into_iter().collect();
        for segment in segments.all() {
            figures.live_bytes += segment.live();
        }
        figures.log_bytes = examined.found.iter().map(|found| found.size).sum();
        figures.dead_bytes = figures.log_bytes.saturating_sub(figures.live_bytes);
        figures
    }
}

/// The figures of a directory. Reads what a start would read: the snapshot and the log behind it.
///
/// # Errors
/// `BadDirectory` when it is not one, or damaged beyond a start; `InUse` when a node runs on it; `Io` when the disk fails.
/// Nothing was changed.
pub async fn figures(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    progress: &Arc<Progress>,
) -> Result<Figures, StorageError> {
    let look = Look::begin(disk, dir, progress).await?;
    let meta = directory::read(look.disk.as_ref(), dir).await?;
    let meta = meta.ok_or_else(|| none_there(dir, "node.meta is missing"))?;
    let (mut examined, segments) = Box::pin(look.examine(Some(&meta))).await?;
    let figures = Figures::of(&meta, &mut examined, &segments);
    look.end().await?;
    Ok(figures)
}
