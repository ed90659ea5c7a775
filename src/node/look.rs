//! What this node shows of itself to who looks into the cluster.

use super::metrics::Look;
use super::replica::storage_refusal;
use super::{Inner, Node};
use crate::net::message::{Refusal, TreeView, Trees, TreesReply};
use crate::storage::{LogPosition, Table};
use crate::types::PartitionId;

/// Partitions that are visited in one step.
const LOOK: usize = 256;

impl Node {
    /// The Merkle trees of this node's partitions, all of durable records.
    ///
    /// # Errors
    /// When it is no primary of the partition asked for, or a record never gets durable.
    pub async fn trees(&self, asked: Trees) -> Result<TreesReply, Refusal> {
        let inner = &self.inner;
        inner.metrics.looks(Look::Trees).one();
        let partitions: Vec<PartitionId> = match asked.partition {
            Some(partition) => {
                inner.holds_partition(partition)?;
                vec![partition]
            }
            None => inner.descriptor.partitions.partitions().collect(),
        };
        let mut trees = Vec::new();
        let mut position = LogPosition::default();
        for some in partitions.chunks(LOOK) {
            for partition in some {
                if inner.preference_of(*partition).is_primary(inner.id) {
                    let (tree, end) = inner.tree_of(*partition);
                    position = position.max(end);
                    trees.push(tree);
                }
            }
            tokio::task::yield_now().await;
        }
        inner.store.wait_synced(position).await.map_err(|error| storage_refusal(&error))?;
        Ok(TreesReply { trees })
    }
}

impl Inner {
    fn tree_of(&self, partition: PartitionId) -> (TreeView, LogPosition) {
        let ((root, bits), of_tree) =
            self.store.with_tree(partition, |tree| (tree.root(), tree.bits().get()));
        let (state, of_state) = self.store.partition_state(partition);
        let tree = TreeView {
            partition,
            root,
            bits,
            keys: self.store.keys_in(Table::Data, partition) as u64,
            refilled: state.refilled,
            fence: state.fence,
            committed: state.committed,
        };
        (tree, of_tree.max(of_state))
    }
}
