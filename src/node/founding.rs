//! The data directory of a member of a cluster that has never held data.
//!
//! A node counts for strict reads and scans only when it *has refilled*: exchanged with every other primary since it
//! may last have lost something. In a cluster that is just being founded nobody holds anything, so every primary has
//! all there is, and that is written down here, once. A directory that is made for an existing cluster, or for a node
//! that has lost its own, must not be made by this.

use std::path::Path;
use std::sync::Arc;

use super::NodeError;
use crate::dynamo::merkle::MerkleKey;
use crate::io::{Clock, Disk};
use crate::storage::directory::{self, NodeMeta};
use crate::storage::{Change, LogPosition, SaltSeed, Store, StoreConfig};
use crate::types::Incarnation;

/// Makes `dir` the directory of `meta.node`, whose partitions under `meta.layouts` count as refilled. `incarnation` is
/// fresh random bits. Durable on return; until then it is no data directory, and the call may be repeated.
///
/// # Errors
/// When the disk fails, or `dir` is in use.
pub async fn found(
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: &Path,
    meta: &NodeMeta,
    incarnation: Incarnation,
) -> Result<(), NodeError> {
    disk.create_dir_all(dir).await.map_err(|error| NodeError::NotFounded {
        dir: dir.display().to_string(),
        reason: error.to_string(),
    })?;
    let config = StoreConfig::new(meta.descriptor.partitions, MerkleKey(meta.descriptor.merkle_key));
    // No client's value gets into the segments of this start, so their salts are no secret.
    let salts = SaltSeed(incarnation.0);
    let opened = Store::open(disk.clone(), clock, dir, incarnation, salts, config);
    let (store, _) = Box::pin(opened).await?;
    let mut end = LogPosition::default();
    for partition in meta.descriptor.partitions.partitions() {
        if meta.layouts.iter().any(|layout| layout.is_primary(partition, meta.node)) {
            let refill = store.update_partition(partition, |state| {
                state.refilled = true;
                (Change::Write, ())
            });
            end = refill.await?.1;
        }
    }
    store.wait_synced(end).await?;
    store.close().await?;
    // Last: what has no node.meta is no data directory.
    Ok(directory::write(disk.as_ref(), dir, meta).await?)
}
