//! What is asked by who looks into a cluster: all there is of a key, the trees of its partitions, repairing one now.

use serde::{Deserialize, Serialize};

use super::bounded::up_to;
use super::client::PeerState;
use crate::dynamo::layout::MEMBERS_MAX;
use crate::dynamo::ring::PARTITIONS_MAX;
use crate::dynamo::version::Dot;
use crate::types::{ActorId, Incarnation, Key, LayoutRef, Namespace, NodeId, PartitionId, Wall, WriteId};

/// Siblings, and entries of a context, of one copy that are told. So the answer of the largest cluster fits a frame.
pub const TOLD_MAX: usize = 100;
/// Sentences of an explanation.
pub const WORDS_MAX: usize = 256;

/// Asks for all there is of a key, on every member, and why it is so. Version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explain {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
}

/// All there is of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainReply {
    /// The key's partition.
    pub partition: PartitionId,
    /// The layout by which members were chosen.
    pub layout: LayoutRef,
    /// The node that asked them: who is up is its view.
    pub asked: NodeId,
    /// Its wall clock, by which expiry is judged.
    pub now: Wall,
    /// In the order of the preference list, primaries first.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub members: Vec<MemberView>,
    /// What there is, why siblings stand, and why a replica is behind: a sentence each.
    #[serde(deserialize_with = "up_to::<_, _, WORDS_MAX>")]
    pub words: Vec<String>,
}

impl ExplainReply {
    /// The node under which an actor wrote, if one of those that answered knows it as its own: a start that left nothing
    /// on its node is forgotten.
    pub fn writer_of(&self, actor: ActorId) -> Option<NodeId> {
        let told = |member: &&MemberView| {
            member.told.as_ref().is_ok_and(|told| told.incarnations.contains(&actor.incarnation))
        };
        self.members.iter().find(told).map(|member| member.node)
    }
}

/// A member as the node that was asked sees it, and what it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The member.
    pub node: NodeId,
    /// Whether it is a primary of the key; else a fallback.
    pub is_primary: bool,
    /// Its zone, empty when it has none.
    pub zone: String,
    /// Whether it is asked.
    pub state: PeerState,
    /// Milliseconds since its last heartbeat was heard; the largest number: none was.
    pub heard_ms_ago: u64,
    /// What it holds, or why it does not say.
    pub told: Result<InspectReply, String>,
}

/// A node asks another for all that it has of a key. Version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
}

/// All that a node has of a key, durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectReply {
    /// Starts of the node that it knows of: this one, and those under which it last wrote on its copies.
    #[serde(deserialize_with = "up_to::<_, _, 4>")]
    pub incarnations: Vec<Incarnation>,
    /// Its copy as a primary.
    pub data: CopyView,
    /// Its copy for other nodes.
    pub guest: CopyView,
    /// Whether it has compared the key's partition with every other primary since it may last have lost something.
    pub refilled: bool,
    /// Records with a lower fence are refused.
    pub fence: u64,
    /// The newest fence whose reaping round is done.
    pub committed: u64,
    /// log2 of the leaves of the partition's Merkle tree.
    pub bits: u32,
    /// The leaf that the key is in.
    pub leaf: u32,
    /// That leaf's hash, over its keys with their versions.
    pub leaf_hash: u64,
}

/// A copy of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyView {
    /// There is none.
    Absent,
    /// It is there.
    Held(HeldCopy),
    /// It is there and cannot be read, for this reason.
    Unreadable(String),
}

/// A copy of a key, without the values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldCopy {
    /// `Record::version_hash`.
    pub version_hash: u64,
    /// The first [`TOLD_MAX`] entries of its context.
    #[serde(deserialize_with = "up_to::<_, _, TOLD_MAX>")]
    pub context: Vec<(ActorId, u64)>,
    /// How many there are.
    pub context_len: u32,
    /// The first [`TOLD_MAX`] siblings, in order of their dots.
    #[serde(deserialize_with = "up_to::<_, _, TOLD_MAX>")]
    pub siblings: Vec<SiblingView>,
    /// How many there are.
    pub siblings_len: u32,
    /// Of a guest: whom it is for. Of a primary's copy: which primaries lack it, as far as is noted.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub owed_to: Vec<NodeId>,
}

/// One of the concurrent values of a copy, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiblingView {
    /// The event that made it.
    pub dot: Dot,
    /// The operation that wrote it.
    pub write_id: WriteId,
    /// Bytes of its value; none: it is a tombstone.
    pub value_len: Option<u64>,
    /// When it was written, by its coordinator's clock.
    pub written_at: Wall,
    /// When it expires.
    pub expires_at: Option<Wall>,
}

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
