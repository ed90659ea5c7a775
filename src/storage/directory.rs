//! A data directory's own facts: whose it is and of which cluster. Written when it is made, replaced as a whole
//! when the layout changes, never updated in place.
//!
//! `node.meta` is one disk record in the envelope: format version, node id, cluster descriptor, the active
//! layouts. A new one is written beside it, synced, and renamed over it.
//!
//! `clean` is the clean-shutdown mark: one disk record with the position up to which the log was synced. It proves
//! that position and so shortens recovery; it is believed for no more than that, and removed, durably, before
//! anything else is written.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::StorageError;
use super::format::{KIND_CLEAN, KIND_META, Salted, append_record, seed_of};
use super::segment::PROVEN_MAX;
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::Layout;
use crate::io::{DirLock, Disk, File};
use crate::net::codec;
use crate::net::envelope::{self, PREFIX_LEN};
use crate::types::NodeId;

pub(super) const NAME: &str = "node.meta";
const NAME_NEW: &str = "node.meta.new";
pub(super) const CLEAN_NAME: &str = "clean";
pub(super) const LOCK_NAME: &str = "LOCK";
/// The layout of files in a data directory that this build reads and writes.
pub const FORMAT: u32 = 5;
/// Most bytes of `node.meta`: eight layouts of 65,536 partitions fit.
const LEN_MAX: u64 = 64 * 1024 * 1024;
/// Most bytes of the mark.
const CLEAN_LEN_MAX: u64 = 64;

/// What a data directory says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeMeta {
    /// [`FORMAT`].
    pub format: u32,
    /// The node whose directory it is.
    pub node: NodeId,
    /// The cluster that the node is a member of.
    pub descriptor: ClusterDescriptor,
    /// The layouts that were active when it was written, newest first.
    pub layouts: Vec<Layout>,
}

/// Makes `dir` a data directory, or replaces what it says of itself. Durable on return.
///
/// # Errors
/// When the disk fails; the directory is then as it was.
pub async fn write(disk: &dyn Disk, dir: &Path, meta: &NodeMeta) -> Result<(), StorageError> {
    disk.create_dir_all(dir).await.map_err(StorageError::io("create", dir))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).await.map_err(StorageError::io("sync", parent))?;
    }
    let file = write_new(disk, dir, meta).await?;
    file.sync_data().await.map_err(StorageError::io("sync", dir))?;
    name_new(disk, dir).await?;
    disk.sync_dir(dir).await.map_err(StorageError::io("sync", dir))
}

/// Writes what the directory is to say of itself beside what it says. To be synced, then named by [`name_new`], then the
/// directory to be synced: by `write` where nobody else uses it, by the store where it is open.
pub(super) async fn write_new(
    disk: &dyn Disk,
    dir: &Path,
    meta: &NodeMeta,
) -> Result<Arc<dyn File>, StorageError> {
    let path = dir.join(NAME_NEW);
    let mut record = Vec::new();
    append_record(&mut record, seed_of(Salted::plain(0), 0), KIND_META, meta)?;
    let file = disk.open(&path, true).await.map_err(StorageError::io("create", &path))?;
    file.set_len(0).await.map_err(StorageError::io("write", &path))?;
    file.write_at(0, record.into()).await.map_err(StorageError::io("write", &path))?;
    Ok(file)
}

/// Puts what [`write_new`] wrote in the place of what stood there.
pub(super) async fn name_new(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(NAME_NEW);
    disk.rename(&path, &dir.join(NAME)).await.map_err(StorageError::io("rename", &path))
}

/// Keeps other processes out of the directory, until the lock is dropped or the process ends.
///
/// # Errors
/// `InUse` when another holds it.
pub async fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DirLock>, StorageError> {
    disk.lock(&dir.join(LOCK_NAME)).await.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StorageError::InUse(dir.display().to_string()),
        _ => StorageError::io("lock", dir)(error),
    })
}

/// What the directory says of itself; none when it is no data directory.
///
/// # Errors
/// `OtherFormat` when another build wrote it, `BadDirectory` when it is damaged, `Io` when the disk fails.
pub async fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<NodeMeta>, StorageError> {
    let path = dir.join(NAME);
    let file = match disk.open(&path, false).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::io("open", &path)(error)),
    };
    let size = file.size().await.map_err(StorageError::io("read", &path))?;
    let damaged = |what: String| {
        let path = path.display();
        StorageError::BadDirectory(format!(
            "{path} is damaged ({what}): restore it from a backup of this node"
        ))
    };
    if size > LEN_MAX {
        return Err(damaged(format!("{size} bytes long")));
    }
    let len = usize::try_from(size).expect("at most 64 MiB");
    let bytes: Bytes = file.read_at(0, len).await.map_err(StorageError::io("read", &path))?;
    let opened = envelope::open(&bytes, PREFIX_LEN, seed_of(Salted::plain(0), 0))
        .map_err(|error| damaged(error.to_string()))?;
    if opened.kind != KIND_META {
        return Err(damaged("another record stands there".to_owned()));
    }
    let body = &bytes[opened.body];
    // The format number comes first in the body, so that it can be told even when the rest has changed.
    let found = codec::decode_first::<u32>(body).map_err(|error| damaged(error.to_string()))?;
    if found != FORMAT {
        return Err(StorageError::OtherFormat { path: path.display().to_string(), found });
    }
    codec::decode(body).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Leaves the mark: the log is synced up to `position`, and nothing is written after this.
pub(super) async fn write_clean(disk: &dyn Disk, dir: &Path, position: u64) -> Result<(), StorageError> {
    let path = dir.join(CLEAN_NAME);
    let mut record = Vec::new();
    append_record(&mut record, seed_of(Salted::plain(0), 0), KIND_CLEAN, &position)?;
    let file = disk.open(&path, true).await.map_err(StorageError::io("create", &path))?;
    file.set_len(0).await.map_err(StorageError::io("cut", &path))?;
    file.write_at(0, record.into()).await.map_err(StorageError::io("write", &path))?;
    file.sync_data().await.map_err(StorageError::io("sync", &path))?;
    disk.sync_dir(dir).await.map_err(StorageError::io("sync", dir))
}

/// The position of the mark; none when there is no whole one.
pub(super) async fn read_clean(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>, StorageError> {
    let path = dir.join(CLEAN_NAME);
    let file = match disk.open(&path, false).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::io("open", &path)(error)),
    };
    let len = file.size().await.map_err(StorageError::io("read", &path))?.min(CLEAN_LEN_MAX);
    let len = usize::try_from(len).expect("a few bytes");
    let bytes = file.read_at(0, len).await.map_err(StorageError::io("read", &path))?;
    let opened = envelope::open(&bytes, PREFIX_LEN, seed_of(Salted::plain(0), 0)).ok();
    let opened = opened.filter(|opened| opened.kind == KIND_CLEAN);
    let position = opened.and_then(|opened| codec::decode(&bytes[opened.body]).ok());
    Ok(position.filter(|position| *position <= PROVEN_MAX))
}

/// Takes the mark away, durably, if there is a file of its name.
pub(super) async fn remove_clean(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(CLEAN_NAME);
    match disk.remove(&path).await {
        Ok(()) => disk.sync_dir(dir).await.map_err(StorageError::io("sync", dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::io("remove", &path)(error)),
    }
}
