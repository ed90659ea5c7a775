//! What is asked by who looks into a cluster: the trees of its partitions, repairing one of them now.

use serde::{Deserialize, Serialize};

use super::bounded::up_to;
use crate::dynamo::layout::MEMBERS_MAX;
use crate::dynamo::ring::PARTITIONS_MAX;
use crate::types::{NodeId, PartitionId};

/// Asks a node for the Merkle trees of its partitions. Version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trees {
    /// This one alone, of which the node is a primary.
    pub partition: Option<PartitionId>,
}

/// What a node holds as a primary, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreesReply {
    /// In order.
    #[serde(deserialize_with = "up_to::<_, _, { PARTITIONS_MAX as usize }>")]
    pub trees: Vec<TreeView>,
}

/// A node's copy of a partition, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeView {
    /// Which.
    pub partition: PartitionId,
    /// The hash over all its keys and their versions, tombstones included; 0 when there are none. It does not depend on
    /// the number of leaves.
    pub root: u64,
    /// log2 of the tree's leaves.
    pub bits: u32,
    /// Keys.
    pub keys: u64,
    /// Whether the node has compared it with every other primary since it may last have lost something.
    pub refilled: bool,
    /// Records with a lower fence are refused.
    pub fence: u64,
    /// The newest fence whose reaping round is done.
    pub committed: u64,
}

/// Has a primary compare a partition with every other primary, now. Version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Which.
    pub partition: PartitionId,
}

/// How that went. When every comparison is done and none found a key that differed, all of them hold the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReply {
    /// With each of the other primaries.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub compared: Vec<Compared>,
    /// What is wrong besides: damaged records that no other primary has, say.
    pub trouble: Option<String>,
}

/// What comparing with another primary did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The other one.
    pub other: NodeId,
    /// Keys that differed.
    pub keys: u64,
    /// Bytes of the records that went either way.
    pub bytes: u64,
    /// How it ended.
    pub ended: Ended,
}

impl Compared {
    /// Nothing has been compared yet.
    pub fn not_yet(other: NodeId) -> Compared {
        Compared { other, keys: 0, bytes: 0, ended: Ended::Late }
    }
}

/// How a comparison ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// Everything that differed was merged on both sides.
    Done,
    /// The request's time was up. What was merged stays so: asked again, it goes on.
    Late,
    /// It could not go on, for this reason.
    Failed(String),
}
