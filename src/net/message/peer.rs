//! What nodes ask of each other, besides passing on a put.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bounded::up_to;
use super::client::SCAN_ITEMS_MAX;
use super::handshake::RefusalCode;
use super::options::{Durability, Order};
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::history::ACTIVE_MAX;
use crate::dynamo::layout::{Layout, MEMBERS_MAX};
use crate::dynamo::membership::Heartbeat;
use crate::dynamo::reaping::{Fences, KeyVote};
use crate::dynamo::ring::PARTITIONS_MAX;
use crate::dynamo::version::{Dot, Record};
use crate::types::{Key, Namespace, NodeId, PartitionId};

/// A node asks another for its copy of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// A copy of this `Record::version_hash` need not be sent: the asker holds the same. Since version 2; under
    /// version 1 every copy is sent.
    pub unless: Option<u64>,
}

/// A replica's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReply {
    /// The empty record when it has none; none when it is the one that need not be sent.
    pub record: Option<Record>,
    /// Whether it has lost data and not refilled since.
    pub refilling: bool,
    /// Its fences for the key's partition when it read the record. Since version 2.
    pub fences: Fences,
}

/// A node gives another a record to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// All siblings with their context.
    pub record: Record,
    /// The primaries to keep it for; empty when the receiver is a primary itself.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub guest_of: Vec<NodeId>,
    /// When it is answered. Version 1 knows `Sync` alone, which is never less.
    pub durability: Durability,
    /// The sender's fences for the key's partition when it read the record. Since version 2; version 1 means zeros.
    pub fences: Fences,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreReply {
    /// The record is as durable there as was asked for. The only answer that version 1 knows.
    Kept,
    /// It was read before a round of reaping in which the receiver has voted. The sender raises its fence to the receiver's,
    /// reads the record again, and sends it again if it still has it.
    Fenced(Fences),
}

/// A node asks another which keys it holds, of several partitions at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanKeys {
    /// Keyspace.
    pub namespace: Namespace,
    /// First key of the range; empty: from the smallest.
    pub from: Bytes,
    /// The range ends before this key; empty: with the largest.
    pub to: Bytes,
    /// Which way.
    pub order: Order,
    /// Only keys behind this one.
    pub after: Option<Key>,
    /// Most keys of the answer, all partitions together.
    pub limit: u32,
    /// The partitions, in order, each once.
    #[serde(deserialize_with = "up_to::<_, _, { PARTITIONS_MAX as usize }>")]
    pub partitions: Vec<PartitionId>,
}

/// A key that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldKey {
    /// The key.
    pub key: Key,
    /// `Record::version_hash` of its record.
    pub version_hash: u64,
    /// Bytes of its record on the disk.
    pub bytes: u32,
}

/// The first keys of all partitions together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanKeysReply {
    /// In order. Deleted ones too: the record tells.
    #[serde(deserialize_with = "up_to::<_, _, SCAN_ITEMS_MAX>")]
    pub keys: Vec<HeldKey>,
    /// Whether it holds keys behind the last of `keys`. When not, these are all.
    pub more: bool,
    /// Partitions that it does not answer for, because it is no primary of them or has not refilled; in order.
    #[serde(deserialize_with = "up_to::<_, _, { PARTITIONS_MAX as usize }>")]
    pub unready: Vec<PartitionId>,
    /// How far it is in the partitions that it was asked for and that something was ever forgotten in; in order.
    #[serde(deserialize_with = "up_to::<_, _, { PARTITIONS_MAX as usize }>")]
    pub fences: Vec<(PartitionId, Fences)>,
}

/// A node asks another for its copies of several keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchMany {
    /// Keyspace.
    pub namespace: Namespace,
    /// The keys.
    #[serde(deserialize_with = "up_to::<_, _, SCAN_ITEMS_MAX>")]
    pub keys: Vec<Key>,
}

/// Copies of the first of the keys: as many as there is room for, one at least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchManyReply {
    /// The record, empty when it has none, with the sender's fences as it was read; or why it cannot be had.
    #[serde(deserialize_with = "up_to::<_, _, SCAN_ITEMS_MAX>")]
    pub records: Vec<Result<(Record, Fences), RefusalCode>>,
}

/// A node tells another whose heartbeats it has heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossip {
    /// By node, in order, its own among them.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub heard: Vec<(NodeId, Heartbeat)>,
}

/// What the other one knows newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipReply {
    /// By node, in order.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub newer: Vec<(NodeId, Heartbeat)>,
}

/// Most hashes, leaves or keys in one message of anti-entropy.
pub const LISTED_MAX: usize = 4096;

/// A primary asks another about the Merkle tree of a partition that both hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeHashes {
    /// Which.
    pub partition: PartitionId,
    /// Level of the tree, 0 for the root.
    pub level: u32,
    /// Nodes of that level, at most [`LISTED_MAX`].
    #[serde(deserialize_with = "up_to::<_, _, LISTED_MAX>")]
    pub indices: Vec<u32>,
    /// The asker's fences for the partition.
    pub fences: Fences,
}

/// Hashes of durable records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeHashesReply {
    /// log2 of its tree's leaves.
    pub bits: u32,
    /// One for each that was asked for, in that order.
    #[serde(deserialize_with = "up_to::<_, _, LISTED_MAX>")]
    pub hashes: Vec<u64>,
    /// The node's fences for the partition.
    pub fences: Fences,
}

/// A primary asks another for its keys in leaves of a partition's Merkle tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafKeys {
    /// Which.
    pub partition: PartitionId,
    /// log2 of the leaves that `leaves` are numbered by.
    pub bits: u32,
    /// The leaves, ascending, at most [`LISTED_MAX`].
    #[serde(deserialize_with = "up_to::<_, _, LISTED_MAX>")]
    pub leaves: Vec<u32>,
    /// Only keys behind this one.
    pub after: Option<(Namespace, Key)>,
}

/// A key with the version that a node holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEntry {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// `Record::version_hash` of its record.
    pub version_hash: u64,
}

/// Keys of the leaves that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafKeysReply {
    /// In order of namespace and key, at most [`LISTED_MAX`]. Deleted ones too.
    #[serde(deserialize_with = "up_to::<_, _, LISTED_MAX>")]
    pub keys: Vec<HeldEntry>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// Most siblings that a round takes away from one record.
pub const DROPPED_MAX: usize = 1024;

/// A key that a round of reaping is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapKey {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// `Record::version_hash` of the one version that this is about.
    pub version_hash: u64,
    /// The siblings to take away; the context is cut to the dots of the others.
    #[serde(deserialize_with = "up_to::<_, _, DROPPED_MAX>")]
    pub drop: Vec<Dot>,
}

/// A primary asks a member whether these keys may be reaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The partition of all of the keys.
    pub partition: PartitionId,
    /// What the voter raises its fence to. If it stood there or higher before, it agrees to nothing.
    pub fence: u64,
    /// In order.
    #[serde(deserialize_with = "up_to::<_, _, LISTED_MAX>")]
    pub keys: Vec<ReapKey>,
}

/// A member's votes, durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// Its fences now.
    pub fences: Fences,
    /// One for each key, in that order; none at all when its fence stood as high before.
    #[serde(deserialize_with = "up_to::<_, _, LISTED_MAX>")]
    pub votes: Vec<KeyVote>,
}

/// Every member has agreed to these keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The partition of all of the keys.
    pub partition: PartitionId,
    /// The fence of the vote.
    pub fence: u64,
    /// In order. Primaries take them away where they still hold exactly this version.
    #[serde(deserialize_with = "up_to::<_, _, LISTED_MAX>")]
    pub keys: Vec<ReapKey>,
}

/// It is done, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReply {
    /// Keys of which something was taken away here.
    pub reaped: u32,
}

/// A node that has just started asks another how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskFences {
    /// Who asks.
    pub node: NodeId,
}

/// How far it is, in every partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskFencesReply {
    /// Partitions of which there is something to say, in order: its fences, and the highest fence that the asker has voted
    /// under in a round that this node led since its start (0: none).
    #[serde(deserialize_with = "up_to::<_, _, { PARTITIONS_MAX as usize }>")]
    pub fences: Vec<(PartitionId, Fences, u64)>,
}

/// A node that wants to retire a layout asks another what it has left to move under the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskTransfers;

/// How much it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskTransfersReply {
    /// Partitions that it has not refilled; at a node that is no member any more, records that it keeps for others.
    pub left: u32,
    /// Version of the oldest layout that is active there: those before it have retired.
    pub oldest: u64,
}

/// A node hands another the layouts that it goes by. Taken under any layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferLayouts {
    /// All that are active at the sender, newest first.
    #[serde(deserialize_with = "up_to::<_, _, ACTIVE_MAX>")]
    pub active: Vec<Arc<Layout>>,
}

/// They are taken over, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferLayoutsReply {
    /// All that are active at the receiver now, newest first.
    #[serde(deserialize_with = "up_to::<_, _, ACTIVE_MAX>")]
    pub active: Vec<Arc<Layout>>,
}

/// A member whose data directory is to be made asks what the cluster agreed on. On the peer port alone: the answer
/// holds the cluster's secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The member.
    pub node: NodeId,
}

/// What a new data directory needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinReply {
    /// For ever the same on all nodes.
    pub descriptor: ClusterDescriptor,
    /// The layouts that are active, newest first.
    #[serde(deserialize_with = "up_to::<_, _, ACTIVE_MAX>")]
    pub active: Vec<Layout>,
}
