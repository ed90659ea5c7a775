//! A data directory's own facts: whose it is and of which cluster. Written when it is made, replaced as a whole
//! when the layout changes, never updated in place.
//!
//! `node.meta` is one disk record in the envelope: format version, node id, cluster descriptor, the active
//! layouts. A new one is written beside it, synced, and renamed over it.

use std::io;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{StorageError, encode, seed_of};
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::Layout;
use crate::io::Disk;
use crate::net::codec;
use crate::net::envelope::{self, PREFIX_LEN};
use crate::types::NodeId;

const NAME: &str = "node.meta";
const NAME_NEW: &str = "node.meta.new";
const KIND_META: u16 = 3;
/// The layout of files in a data directory that this build reads and writes.
pub const FORMAT: u32 = 1;
/// Most bytes of `node.meta`: eight layouts of 65,536 partitions fit.
const LEN_MAX: u64 = 64 * 1024 * 1024;

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
    let path = dir.join(NAME_NEW);
    let record = encode(0, KIND_META, meta)?;
    let file = disk.open(&path, true).await.map_err(StorageError::io("create", &path))?;
    file.set_len(0).await.map_err(StorageError::io("write", &path))?;
    file.write_at(0, record.into()).await.map_err(StorageError::io("write", &path))?;
    file.sync_data().await.map_err(StorageError::io("sync", &path))?;
    disk.rename(&path, &dir.join(NAME)).await.map_err(StorageError::io("rename", &path))?;
    disk.sync_dir(dir).await.map_err(StorageError::io("sync", dir))
}

/// What the directory says of itself; none when it is no data directory.
///
/// # Errors
/// `BadDirectory` when it says something that this build cannot read.
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
    let opened =
        envelope::open(&bytes, PREFIX_LEN, seed_of(0)).map_err(|error| damaged(error.to_string()))?;
    // The format number comes first in the body, so that it can be told even when the rest has changed.
    let meta = codec::decode::<NodeMeta>(&bytes[opened.body]).map_err(|error| damaged(error.to_string()))?;
    if meta.format != FORMAT {
        let (path, format) = (path.display(), meta.format);
        return Err(StorageError::BadDirectory(format!(
            "{path} has format {format}, this build reads {FORMAT}: use the build that wrote it"
        )));
    }
    Ok(Some(meta))
}
