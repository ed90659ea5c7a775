//! The operations that clients ask for, with their answers.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bounded::up_to;
use super::handshake::Refusal;
use super::options::{Condition, Context, Durability, Expiry, Order, Quorum, Resolve};
use crate::dynamo::detector::Reason;
use crate::dynamo::layout::history::ACTIVE_MAX;
use crate::dynamo::layout::{Layout, MEMBERS_MAX, Member};
use crate::dynamo::reaping::Against;
use crate::dynamo::ring::PARTITIONS_MAX;
use crate::dynamo::version::{Dot, Meta};
use crate::types::{ClusterId, Key, LayoutRef, Namespace, NodeId, PartitionId, Wall, WriteId};

/// Most operations of one batch.
pub const BATCH_ITEMS_MAX: usize = 1000;
/// Most keys of one page of a scan.
pub const SCAN_ITEMS_MAX: usize = 1000;

/// Reads a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Keyspace; 0.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// Quorum wanted.
    pub quorum: Quorum,
    /// Which of several values.
    pub resolve: Resolve,
}

impl Get {
    /// A read with the node's defaults.
    pub fn new(key: Key) -> Get {
        let (namespace, quorum) = (Namespace::default(), Quorum::default());
        Get { namespace, key, quorum, resolve: Resolve::Siblings }
    }
}

/// One value of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The operation that wrote it.
    pub write_id: WriteId,
    /// The event that made it, for people and checkers; counter 0 when the node did not say (version 1).
    pub dot: Dot,
    /// Its bytes.
    pub value: Bytes,
    /// What its writer said about it.
    pub meta: Option<Box<Meta>>,
    /// When it expires.
    pub expires_at: Option<Wall>,
    /// When it was written, by its coordinator's clock.
    pub written_at: Wall,
}

/// A sibling whose value a reply does not hold. Its context covers it all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden {
    /// The operation that wrote it.
    pub write_id: WriteId,
    /// The event that made it.
    pub dot: Dot,
    /// Why it is not shown.
    pub why: HiddenWhy,
}

/// Why a sibling is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HiddenWhy {
    /// It is a deletion.
    Tombstone,
    /// It has expired.
    Expired,
    /// The reader asked for the newest alone, and it is not.
    Older,
    /// It is the same write as one that is shown, made a second time.
    SameWrite,
}

/// How the replicas did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// Nodes asked.
    pub asked: u32,
    /// Primaries that answered (reads) or hold it as the write asked for (writes).
    pub primaries: Vec<NodeId>,
    /// Fallbacks that did.
    pub fallbacks: Vec<NodeId>,
    /// The layout by which they were chosen; none when the node did not say (version 1).
    pub layout: LayoutRef,
}

/// All concurrent values of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetReply {
    /// The live values; none when the key does not exist.
    pub values: Vec<Version>,
    /// The other siblings; not told by version 1.
    pub hidden: Vec<Hidden>,
    /// Tombstones among the siblings.
    pub tombstones: u32,
    /// Expired siblings.
    pub expired: u32,
    /// Covers everything returned here, and what it overwrote. Give it to the put that replaces these values.
    pub context: Bytes,
    /// Who answered.
    pub replicas: Replicas,
}

/// Writes or deletes a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Keyspace; 0.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// The operation's id, 128 random bits. The same id sent twice is one write to its readers.
    pub write_id: WriteId,
    /// The value; none deletes.
    pub value: Option<Bytes>,
    /// Kept with the value; at most 4 KiB of names and values together.
    pub meta: Option<Box<Meta>>,
    /// When it expires; a deletion never does.
    pub expiry: Expiry,
    /// What it overwrites.
    pub context: Context,
    /// What must hold for it to be made.
    pub condition: Condition,
    /// Quorum wanted.
    pub quorum: Quorum,
    /// When a replica counts; left out: the node's default.
    pub durability: Option<Durability>,
    /// Whether the reply shall hold the value as it was stored.
    pub return_record: bool,
    /// Set by a node that passes the request on, so that nobody passes it on again.
    pub forwarded: bool,
}

impl Put {
    /// A write that overwrites nothing, with the node's defaults.
    pub fn new(key: Key, write_id: WriteId, value: impl Into<Bytes>) -> Put {
        Put {
            namespace: Namespace::default(),
            key,
            write_id,
            value: Some(value.into()),
            meta: None,
            expiry: Expiry::Never,
            context: Context::Nothing,
            condition: Condition::None,
            quorum: Quorum::default(),
            durability: None,
            return_record: false,
            forwarded: false,
        }
    }

    /// A deletion of what a read at R sees, with the node's defaults.
    pub fn delete(key: Key, write_id: WriteId) -> Put {
        Put { value: None, context: Context::Read, ..Put::new(key, write_id, Bytes::new()) }
    }
}

/// How a write ended; a write that did not happen is answered with a [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutOutcome {
    /// W replicas hold it as durably as it asked for.
    Applied,
    /// It exists somewhere, or may; whether W replicas hold it is not known. It must not be taken for failed.
    Unknown {
        /// Replicas known to hold it.
        have: u32,
        /// Replicas needed.
        need: u32,
        /// For people.
        reason: String,
    },
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutReply {
    /// Applied or unknown.
    pub outcome: PutOutcome,
    /// The event that it became, when the coordinator can say.
    pub dot: Option<Dot>,
    /// The operations whose values it overwrote: in the coordinator's copy, and in what a deletion or a write under a
    /// condition read first. What a context given by the client covers beyond that is not listed.
    pub overwrote: Vec<WriteId>,
    /// Every other live value that stands beside it now.
    pub siblings: Vec<Version>,
    /// The value as it was stored, if `return_record` asked for it.
    pub written: Option<Version>,
    /// Covers the write and every sibling named here; empty when the coordinator cannot say.
    pub context: Bytes,
    /// Who holds it.
    pub replicas: Replicas,
}

/// Reads several keys, each for itself: there is no common snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiGet {
    /// Up to [`BATCH_ITEMS_MAX`].
    #[serde(deserialize_with = "up_to::<_, _, BATCH_ITEMS_MAX>")]
    pub gets: Vec<Get>,
}

/// What became of each read, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiGetReply {
    /// As a [`Get`] alone would have been answered. `TooLarge` where the reply has no room for it: ask again.
    #[serde(deserialize_with = "up_to::<_, _, BATCH_ITEMS_MAX>")]
    pub replies: Vec<Result<GetReply, Refusal>>,
}

/// Writes or deletes several keys, each for itself: it is no transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiPut {
    /// Up to [`BATCH_ITEMS_MAX`], each key once.
    #[serde(deserialize_with = "up_to::<_, _, BATCH_ITEMS_MAX>")]
    pub puts: Vec<Put>,
}

/// What became of each write, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiPutReply {
    /// As a [`Put`] alone would have been answered.
    #[serde(deserialize_with = "up_to::<_, _, BATCH_ITEMS_MAX>")]
    pub replies: Vec<Result<PutReply, Refusal>>,
}

/// Reads a page of the live keys of a range, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// Keyspace; 0.
    pub namespace: Namespace,
    /// First key of the range; empty: from the smallest.
    pub from: Bytes,
    /// The range ends before this key; empty: with the largest.
    pub to: Bytes,
    /// Which way.
    pub order: Order,
    /// The cursor of the page before; none for the first page.
    pub after: Option<Key>,
    /// Most keys of the page, 1 to [`SCAN_ITEMS_MAX`].
    pub limit: u32,
    /// Refilled primaries from which each partition is read, 1 to N. Left out: 1.
    pub r: Option<u8>,
    /// Which of several values.
    pub resolve: Resolve,
    /// Leave the values' bytes out.
    pub keys_only: bool,
    /// Pass over what cannot be read. Otherwise a page ends before it.
    pub partial: bool,
}

impl Scan {
    /// All keys, a hundred a page.
    pub fn all() -> Scan {
        Scan {
            namespace: Namespace::default(),
            from: Bytes::new(),
            to: Bytes::new(),
            order: Order::Ascending,
            after: None,
            limit: 100,
            r: None,
            resolve: Resolve::Siblings,
            keys_only: false,
            partial: false,
        }
    }

    /// All keys that begin with these bytes.
    pub fn prefix(prefix: &[u8]) -> Scan {
        // The smallest key that is larger than all of them: the prefix without its last 0xff bytes, and the byte
        // before those one larger. Nothing but 0xff: there is none.
        let kept = prefix.iter().rposition(|byte| *byte != u8::MAX).map_or(0, |at| at + 1);
        let mut to = prefix[..kept].to_vec();
        if let Some(last) = to.last_mut() {
            *last += 1;
        }
        Scan { from: Bytes::copy_from_slice(prefix), to: to.into(), ..Scan::all() }
    }
}

/// A key of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanItem {
    /// The key.
    pub key: Key,
    /// Its live values, at least one.
    pub values: Vec<Version>,
    /// Covers the values and what they overwrote.
    pub context: Bytes,
}

/// A page of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanReply {
    /// The live keys in order. May be fewer than asked for, even none, with more to come.
    #[serde(deserialize_with = "up_to::<_, _, SCAN_ITEMS_MAX>")]
    pub items: Vec<ScanItem>,
    /// Whether the range goes on: the next page is asked for with `cursor` as its `after`.
    pub more: bool,
    /// The last key that the page has passed; none when it has passed none and there was no page before.
    pub cursor: Option<Key>,
    /// Partitions that could not be read, in order; none: the page is complete. Unless `partial` was asked for, the
    /// page ends before the first key that could be of one of them, and the same cursor may be tried again.
    #[serde(deserialize_with = "up_to::<_, _, { PARTITIONS_MAX as usize }>")]
    pub missing: Vec<PartitionId>,
    /// The layout by which replicas were chosen.
    pub layout: LayoutRef,
}

/// Asks for the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLayout;

/// The layouts that are active at the node, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutReply {
    /// Newest first.
    #[serde(deserialize_with = "up_to::<_, _, ACTIVE_MAX>")]
    pub active: Vec<Arc<Layout>>,
}

/// Asks for a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping;

/// Gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong;

/// Asks how the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status;

/// Asks for whom the node keeps records, and why these still wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints;

/// What a node keeps for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintsReply {
    /// By target, in order.
    pub targets: Vec<HintsFor>,
    /// Guest records that the node takes at most.
    pub guests_max: u64,
    /// What has been kept for longer than this, in ms, should be looked into.
    pub age_warn_ms: u64,
}

/// Has the cluster's members changed, or asks what that would move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeMembers {
    /// New members.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub add: Vec<Member>,
    /// Members that go.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub remove: Vec<NodeId>,
    /// Whether it is meant; else the reply only shows what would be.
    pub apply: bool,
}

/// The layout with the changed members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeMembersReply {
    /// The layout.
    pub layout: Arc<Layout>,
    /// Replicas of partitions that are at another node than before.
    pub moves: u32,
    /// Whether the node goes by it now, durably. The others learn it from each other.
    pub applied: bool,
}

/// Asks how far the node is with forgetting what was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaping;

/// Rounds that a reply tells of.
pub const REAP_ROUNDS_MAX: usize = 32;
/// Kinds of refusals that a reply tells of.
pub const REAP_AGAINST_MAX: usize = 8 * MEMBERS_MAX;

/// The rounds of reaping that a node has led since its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapingReply {
    /// Records here of which something may be taken away one day.
    pub reapable: u64,
    /// How long ago something must have been deleted or have expired, in ms.
    pub grace_ms: u64,
    /// Members that are away: no round can end well until they are back.
    #[serde(deserialize_with = "up_to::<_, _, MEMBERS_MAX>")]
    pub away: Vec<NodeId>,
    /// Rounds.
    pub rounds: u64,
    /// Keys that were voted on.
    pub keys: u64,
    /// Keys that all members agreed to.
    pub agreed: u64,
    /// Who was against how many keys, and why.
    #[serde(deserialize_with = "up_to::<_, _, REAP_AGAINST_MAX>")]
    pub against: Vec<(NodeId, Against, u64)>,
    /// The last rounds, newest first.
    #[serde(deserialize_with = "up_to::<_, _, REAP_ROUNDS_MAX>")]
    pub last: Vec<ReapRound>,
}

/// One round of reaping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapRound {
    /// The partition.
    pub partition: PartitionId,
    /// Its fence.
    pub fence: u64,
    /// How long ago it ended, in ms.
    pub ago_ms: u64,
    /// Keys that were voted on.
    pub keys: u32,
    /// Keys that all members agreed to.
    pub agreed: u32,
    /// Who was against how many keys, and why.
    #[serde(deserialize_with = "up_to::<_, _, REAP_AGAINST_MAX>")]
    pub against: Vec<(NodeId, Against, u64)>,
}

/// What a node keeps for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintsFor {
    /// The other one.
    pub target: NodeId,
    /// Records: guests, and own copies of which it is noted that the target lacks them.
    pub count: u64,
    /// Their bytes on the disk.
    pub bytes: u64,
    /// Milliseconds since something has been kept for it without a break: since this start of the node kept the first record, or since
    /// the oldest of some of those was written that it found when it started.
    pub age_ms: u64,
    /// Why they wait.
    pub why: HintWhy,
}

/// Why records wait for their target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HintWhy {
    /// They came after the last round.
    New,
    /// They are on their way.
    Moving,
    /// The target is not reachable.
    Down,
    /// The last round ended early, for this reason.
    Failed(String),
    /// So many of them cannot be read any more. They go once all primaries of their keys have been asked.
    Damaged(u64),
}

/// What a node takes another for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The other one.
    pub node: NodeId,
    /// Up or down, and why.
    pub state: PeerState,
    /// Suspicion (phi) in thousandths: it grows while nothing is heard.
    pub phi_thousandths: u32,
    /// Milliseconds since its last heartbeat was heard.
    pub heard_ms_ago: u64,
}

/// Whether a node is asked, as another one sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerState {
    /// It is.
    Up,
    /// Connecting to it has failed just now.
    Unreachable,
    /// It is not.
    Down(PeerDown),
    /// It is heard again, and was down so often of late that it has to wait.
    Damped,
}

/// Why a node is taken for down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerDown {
    /// Its heartbeats stay away.
    Silent,
    /// It refused a connection.
    Refused,
    /// It left calls unanswered.
    Unanswered,
}

impl From<Reason> for PeerDown {
    fn from(reason: Reason) -> PeerDown {
        match reason {
            Reason::Silent => PeerDown::Silent,
            Reason::Refused => PeerDown::Refused,
            Reason::Unanswered => PeerDown::Unanswered,
        }
    }
}

/// How a node is, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Version of its program.
    pub program: String,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// Whether it is about to stop.
    pub stopping: bool,
    /// The layout it goes by.
    pub layout: LayoutRef,
    /// Peers that it leaves out where there is a choice, in order.
    pub peers_down: Vec<NodeId>,
    /// What it takes each other member for, in order; empty for the first interval.
    pub peers: Vec<PeerView>,
    /// Partitions of which it is a primary.
    pub partitions: u32,
    /// Of these, those whose data it holds for certain.
    pub partitions_refilled: u32,
    /// Keys it holds as a primary.
    pub data_keys: u64,
    /// Keys it keeps for others.
    pub guest_keys: u64,
    /// Bytes of its log on the disk.
    pub log_bytes: u64,
    /// Of these, those that are needed.
    pub live_bytes: u64,
    /// Records that cannot be read.
    pub damaged_records: u64,
    /// Client operations in progress.
    pub in_flight: u64,
}
