//! The layout: which members hold which partitions, and how one layout follows another.
//!
//! Model (Dynamo §6.2 strategy 3, §4.8.1): an operator adds and removes members; each change makes a new
//! [`Layout`] from the one before, which assigns every partition N primaries on distinct members, spread over
//! zones, balanced by capacity, with the fewest moves (`assign` has the rules and the algorithm). A layout is
//! a value that never changes. It has a version, the hash of its contents, and the hash of its parent.
//! [`history`] holds the current layout with those whose transfers are not complete (Garage's layout history).
//!
//! Invariants of every `Layout` value, made here or decoded ([`Layout::validate`] runs on decode, so bytes from
//! the network are a typed error or a sound layout, never a panic):
//! - members ascend by id, each with a capacity above zero;
//! - every partition has exactly N primaries, distinct members, ascending by id;
//! - version 1 has no parent, every later one has.
//!
//! Balance and spread over zones are **not** checked on decode: they are qualities of the assignment function,
//! and a later version of it may judge differently. Every node takes the assignment from the layout and never
//! computes it again, so two versions of this code agree on who holds what.
//!
//! # The hash
//!
//! XXH3-64 (seed 0) over the canonical form, integers little-endian:
//!
//! ```text
//! "ringdove layout 1"                       17 bytes
//! version u64, parent hash u64 (0: none), Q u32, N u32, number of members u32
//! for each member, ascending by id:
//!     id u64, capacity u32, then peer_addr, client_addr, zone: length in bytes u32, UTF-8 bytes
//! for each partition, ascending: N × index of a member u16, ascending
//! ```
//!
//! The hash tells layouts apart that were made by mistake, not by malice: it is not keyed, and only operators
//! and members, who hold the cluster's secret, hand layouts around.
//!
//! Deliberately absent: no clock, no randomness, no failure detector (a member that is down stays a member),
//! and no notion of who is the operator. N and Q are fixed for the cluster's life.

mod assign;
pub mod history;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

pub use self::history::{Adopted, LayoutHistory};
use super::ring::{PARTITIONS_MAX, PARTITIONS_MIN, PartitionCount};
use crate::types::{LayoutRef, NodeId, PartitionId};

/// Most members of a layout. Paths of the assignment cost the square of it, and indices are 16 bits wide.
pub const MEMBERS_MAX: usize = 1024;
/// Largest N. A quorum of more than a few is never wanted; the bound keeps a decoded layout small.
pub const REPLICAS_MAX: u32 = 16;
/// Longest address or zone name of a member, in bytes.
pub const MEMBER_TEXT_LEN_MAX: usize = 255;

const _: () = assert!(MEMBERS_MAX <= u16::MAX as usize);

/// Why a layout cannot be made, decoded or adopted. Nothing changed; each message says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Q is outside what the ring takes.
    #[error(
        "{q} partitions are out of range; choose a power of two from {PARTITIONS_MIN} to {PARTITIONS_MAX}"
    )]
    PartitionsOutOfRange {
        /// What was given.
        q: u32,
    },
    /// Q is in range but does not cut the hash space by whole bits.
    #[error("{q} partitions are not a power of two; choose {} or {}", .q.next_power_of_two() / 2, .q.next_power_of_two())]
    PartitionsNotPowerOfTwo {
        /// What was given.
        q: u32,
    },
    /// N is zero.
    #[error("N is 0; choose how many replicas each key has, usually 3")]
    ReplicasZero,
    /// N is above [`REPLICAS_MAX`].
    #[error("N is {n}, at most {REPLICAS_MAX} is possible; choose a smaller N, usually 3")]
    ReplicasTooMany {
        /// What was given.
        n: u32,
    },
    /// A partition needs N distinct members.
    #[error(
        "N is {n} but there are only {members} members; add members or start the cluster with a smaller N"
    )]
    ReplicasAboveMembers {
        /// Replicas of a partition.
        n: u32,
        /// Members given.
        members: usize,
    },
    /// The list of members is empty.
    #[error("a layout needs members; name at least N of them")]
    NoMembers,
    /// There are more than [`MEMBERS_MAX`] members.
    #[error("{members} members are too many, at most {MEMBERS_MAX} are possible; run several clusters")]
    TooManyMembers {
        /// Members given.
        members: usize,
    },
    /// A member could hold nothing.
    #[error("member {node} has capacity 0; give it a positive capacity, or remove it from the layout")]
    ZeroCapacity {
        /// The member.
        node: NodeId,
    },
    /// Two members have one id.
    #[error("member {node} is listed twice; every node needs an id of its own")]
    DuplicateNode {
        /// The id.
        node: NodeId,
    },
    /// An address or zone name is longer than [`MEMBER_TEXT_LEN_MAX`].
    #[error("member {node} has an address or zone of {len} bytes; at most {MEMBER_TEXT_LEN_MAX} are allowed")]
    MemberTextTooLong {
        /// The member.
        node: NodeId,
        /// Its length in bytes.
        len: usize,
    },
    /// The version is used up (2^64 - 1) or, decoded, zero.
    #[error("layout version {version} is not possible; discard this layout and fetch it again from a member")]
    VersionImpossible {
        /// The version.
        version: u64,
    },
    /// A decoded version 1 names a parent.
    #[error("layout version 1 names a parent; discard it and fetch the layout again from a member")]
    FirstHasParent,
    /// Decoded members are not sorted, so that their hash would not be canonical.
    #[error("member {node} is out of order; discard this layout and fetch it again from a member")]
    MembersOutOfOrder {
        /// The first member with a smaller id than the one before it.
        node: NodeId,
    },
    /// A decoded assignment has another size than Q times N.
    #[error("the layout assigns {found} replicas instead of {expected}; discard it and fetch it again")]
    AssignmentLength {
        /// Q times N.
        expected: usize,
        /// What was decoded.
        found: usize,
    },
    /// A decoded assignment names a member that does not exist.
    #[error(
        "partition {partition} is assigned to someone who is no member; discard this layout, fetch it again"
    )]
    NotAMember {
        /// The first such partition.
        partition: PartitionId,
    },
    /// A decoded partition's primaries are not distinct and ascending.
    #[error("partition {partition} has a repeated or unsorted primary; discard this layout, fetch it again")]
    PrimariesOutOfOrder {
        /// The first such partition.
        partition: PartitionId,
    },
    /// A layout with another Q or N than the one held: another cluster's.
    #[error("the layout has Q={q} and N={n}, which never change in a cluster; it belongs to another cluster")]
    OtherShape {
        /// The offered layout's partitions.
        q: u32,
        /// The offered layout's replicas.
        n: u32,
    },
    /// The offered layout is older than every layout held.
    #[error(
        "layout version {} is older than version {} held here; send its sender the current layout",
        .offered.version,
        .current.version
    )]
    Older {
        /// What was offered.
        offered: LayoutRef,
        /// What is current here.
        current: LayoutRef,
    },
    /// The offered layout's parent is not held, or another layout is held in its place.
    #[error(
        "layout version {} does not follow from version {} held here; fetch the sender's layout history and \
         catch up with that",
        .offered.version,
        .current.version
    )]
    UnknownParent {
        /// What was offered.
        offered: LayoutRef,
        /// What is current here.
        current: LayoutRef,
    },
    /// Two layouts of one version; the one held has the larger hash and stays.
    #[error(
        "two layouts have version {}: {:016x} is held and wins over {:016x}; send the sender the one held and \
         tell the operator, whose other change is lost",
        .held.version,
        .held.hash,
        .offered.hash
    )]
    Conflict {
        /// What is held and stays.
        held: LayoutRef,
        /// What was offered and loses.
        offered: LayoutRef,
    },
    /// Two layouts of one version; the one held has complete transfers, so data may be nowhere else.
    #[error(
        "two layouts have version {}: {:016x} is in force here and cannot be undone for {:016x}; let the nodes \
         that hold the other catch up with this history, or reset and join them again if they refuse",
        .held.version,
        .held.hash,
        .offered.hash
    )]
    ConflictWithOldest {
        /// What is held and stays.
        held: LayoutRef,
        /// What was offered.
        offered: LayoutRef,
    },
    /// As many layouts are active as are allowed.
    #[error(
        "{active} layouts are active; wait until transfers complete and the oldest retires, then try again"
    )]
    TooManyActive {
        /// Layouts that are active.
        active: usize,
    },
}

/// A node of the cluster as the layout sees it. Set by the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's id, unique in the layout.
    pub id: NodeId,
    /// Where peers reach it, `host:port`. At most [`MEMBER_TEXT_LEN_MAX`] bytes.
    pub peer_addr: String,
    /// Where clients of the binary API reach it, `host:port`.
    pub client_addr: String,
    /// What fails together: a rack, a room, a region. Members with equal names are one zone; the empty name is
    /// a name like others, so that without zones all are in one.
    pub zone: String,
    /// Relative weight in any unit, above zero: a member with twice the capacity holds twice the partitions,
    /// as far as each partition once and the zones allow.
    pub capacity: u32,
}

/// One assignment of all partitions to members. Never changes; share it by `Arc`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Layout {
    version: u64,
    parent_hash: u64,
    q: PartitionCount,
    n: u32,
    members: Vec<Member>,
    /// N primaries for each partition, one partition after the other.
    primaries: Vec<NodeId>,
    hash: u64,
}

/// A layout as it is encoded: members by index, the hash left out because it is computed.
#[derive(Clone, Serialize, Deserialize)]
struct Parts {
    version: u64,
    parent_hash: u64,
    q: PartitionCount,
    n: u32,
    members: Vec<Member>,
    primaries: Vec<u16>,
}

impl Layout {
    /// The first layout of a cluster, version 1. The order of `members` does not matter.
    pub fn first(q: PartitionCount, n: u32, members: Vec<Member>) -> Result<Layout, LayoutError> {
        Layout::assigned(1, 0, q, n, members, None)
    }

    /// The layout that follows this one when the members are to be `members`: Q and N stay, as few replicas as
    /// possible move. The order of `members` does not matter; they may also differ in capacity, zone or address.
    /// Members of unequal capacity may be off their share by one partition or 5%, whichever is more, where that
    /// saves moves; so one whose share is a single partition may hold none.
    pub fn next(&self, members: Vec<Member>) -> Result<Layout, LayoutError> {
        let version =
            self.version.checked_add(1).ok_or(LayoutError::VersionImpossible { version: self.version })?;
        Layout::assigned(version, self.hash, self.q, self.n, members, Some(self))
    }

    fn assigned(
        version: u64,
        parent_hash: u64,
        q: PartitionCount,
        n: u32,
        mut members: Vec<Member>,
        previous: Option<&Layout>,
    ) -> Result<Layout, LayoutError> {
        members.sort_by_key(|m| m.id);
        check_members(n, &members)?;
        let index = |id: &NodeId| members.binary_search_by_key(id, |m| m.id).ok();
        let previous: Vec<Vec<u16>> = q
            .partitions()
            .map(|p| match previous {
                Some(layout) => {
                    let held = layout.primaries(p).iter().filter_map(index);
                    held.map(|i| u16::try_from(i).expect("at most MEMBERS_MAX")).collect()
                }
                None => Vec::new(),
            })
            .collect();
        let owners = assign::assign(q.get(), n, &members, &previous);
        let primaries = owners.iter().flatten().map(|&i| members[usize::from(i)].id).collect();
        let layout = Layout::sealed(version, parent_hash, q, n, members, primaries);
        assert_eq!(layout.validate(), Ok(()), "a layout made here is sound");
        Ok(layout)
    }

    /// Computes the hash. The parts must be sound.
    fn sealed(
        version: u64,
        parent_hash: u64,
        q: PartitionCount,
        n: u32,
        members: Vec<Member>,
        primaries: Vec<NodeId>,
    ) -> Layout {
        let mut layout = Layout { version, parent_hash, q, n, members, primaries, hash: 0 };
        layout.hash = xxh3_64(&layout.canonical());
        layout
    }

    /// Checks all invariants that a decoded layout must have; `Deserialize` runs it. Errors name the first fault.
    pub fn validate(&self) -> Result<(), LayoutError> {
        if self.version == 0 {
            return Err(LayoutError::VersionImpossible { version: 0 });
        }
        if self.version == 1 && self.parent_hash != 0 {
            return Err(LayoutError::FirstHasParent);
        }
        check_members(self.n, &self.members)?;
        let expected = self.q.get() as usize * self.n as usize;
        if self.primaries.len() != expected {
            return Err(LayoutError::AssignmentLength { expected, found: self.primaries.len() });
        }
        for partition in self.q.partitions() {
            let primaries = self.primaries(partition);
            if !primaries.is_sorted_by(|a, b| a < b) {
                return Err(LayoutError::PrimariesOutOfOrder { partition });
            }
            if primaries.iter().any(|&id| self.member(id).is_none()) {
                return Err(LayoutError::NotAMember { partition });
            }
        }
        Ok(())
    }

    /// The canonical form that the hash is over; see the module's docs.
    fn canonical(&self) -> Vec<u8> {
        let length = |n: usize| u32::try_from(n).expect("bounded by MEMBERS_MAX and MEMBER_TEXT_LEN_MAX");
        let mut form = Vec::with_capacity(64 + 64 * self.members.len() + 2 * self.primaries.len());
        form.extend_from_slice(b"ringdove layout 1");
        form.extend_from_slice(&self.version.to_le_bytes());
        form.extend_from_slice(&self.parent_hash.to_le_bytes());
        form.extend_from_slice(&self.q.get().to_le_bytes());
        form.extend_from_slice(&self.n.to_le_bytes());
        form.extend_from_slice(&length(self.members.len()).to_le_bytes());
        for member in &self.members {
            form.extend_from_slice(&member.id.0.to_le_bytes());
            form.extend_from_slice(&member.capacity.to_le_bytes());
            for text in [&member.peer_addr, &member.client_addr, &member.zone] {
                form.extend_from_slice(&length(text.len()).to_le_bytes());
                form.extend_from_slice(text.as_bytes());
            }
        }
        for index in self.indices() {
            form.extend_from_slice(&index.to_le_bytes());
        }
        form
    }

    /// The primaries of all partitions as indices into the members.
    fn indices(&self) -> impl Iterator<Item = u16> {
        self.primaries.iter().map(|id| {
            let index = self.members.binary_search_by_key(id, |m| m.id).expect("primaries are members");
            u16::try_from(index).expect("at most MEMBERS_MAX")
        })
    }

    /// Names this layout: version and hash. Costs nothing, the hash is kept.
    pub fn reference(&self) -> LayoutRef {
        LayoutRef { version: self.version, hash: self.hash }
    }

    /// Names the layout this one was made from; `None` for the first.
    pub fn parent(&self) -> Option<LayoutRef> {
        (self.version > 1).then(|| LayoutRef { version: self.version - 1, hash: self.parent_hash })
    }

    /// The number of partitions, Q.
    pub fn q(&self) -> PartitionCount {
        self.q
    }

    /// The number of replicas of each key, N.
    pub fn n(&self) -> u32 {
        self.n
    }

    /// All members, ascending by id.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member with this id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.binary_search_by_key(&id, |m| m.id).ok().map(|i| &self.members[i])
    }

    /// The N primaries of a partition, ascending by id: an identity, not an order of preference (that is
    /// `preference`). Empty when the partition is not below Q.
    pub fn primaries(&self, partition: PartitionId) -> &[NodeId] {
        let first = partition.0 as usize * self.n as usize;
        self.primaries.get(first..first + self.n as usize).unwrap_or(&[])
    }

    /// Whether the node is a primary of the partition.
    pub fn is_primary(&self, partition: PartitionId, node: NodeId) -> bool {
        self.primaries(partition).contains(&node)
    }

    /// The partitions that a node is a primary of, in ring order. Looks at all Q.
    pub fn partitions_of(&self, node: NodeId) -> impl Iterator<Item = PartitionId> {
        self.q.partitions().filter(move |&p| self.is_primary(p, node))
    }
}

/// Checks N and the members, which must be sorted (a duplicate is told apart from a wrong order).
fn check_members(n: u32, members: &[Member]) -> Result<(), LayoutError> {
    if n == 0 {
        return Err(LayoutError::ReplicasZero);
    }
    if n > REPLICAS_MAX {
        return Err(LayoutError::ReplicasTooMany { n });
    }
    if members.is_empty() {
        return Err(LayoutError::NoMembers);
    }
    if members.len() > MEMBERS_MAX {
        return Err(LayoutError::TooManyMembers { members: members.len() });
    }
    for pair in members.windows(2) {
        if pair[0].id == pair[1].id {
            return Err(LayoutError::DuplicateNode { node: pair[1].id });
        }
        if pair[0].id > pair[1].id {
            return Err(LayoutError::MembersOutOfOrder { node: pair[1].id });
        }
    }
    for member in members {
        if member.capacity == 0 {
            return Err(LayoutError::ZeroCapacity { node: member.id });
        }
        for text in [&member.peer_addr, &member.client_addr, &member.zone] {
            if text.len() > MEMBER_TEXT_LEN_MAX {
                return Err(LayoutError::MemberTextTooLong { node: member.id, len: text.len() });
            }
        }
    }
    if members.len() < n as usize {
        return Err(LayoutError::ReplicasAboveMembers { n, members: members.len() });
    }
    Ok(())
}

impl TryFrom<Parts> for Layout {
    type Error = LayoutError;
    fn try_from(parts: Parts) -> Result<Layout, LayoutError> {
        let Parts { version, parent_hash, q, n, members, primaries } = parts;
        check_members(n, &members)?;
        let expected = q.get() as usize * n as usize;
        if primaries.len() != expected {
            return Err(LayoutError::AssignmentLength { expected, found: primaries.len() });
        }
        let primaries: Vec<NodeId> = primaries
            .chunks_exact(n as usize)
            .zip(q.partitions())
            .flat_map(|(chunk, partition)| chunk.iter().map(move |&i| (i, partition)))
            .map(|(i, partition)| {
                members.get(usize::from(i)).map(|m| m.id).ok_or(LayoutError::NotAMember { partition })
            })
            .collect::<Result<_, _>>()?;
        let layout = Layout::sealed(version, parent_hash, q, n, members, primaries);
        layout.validate()?;
        Ok(layout)
    }
}

impl From<Layout> for Parts {
    fn from(layout: Layout) -> Parts {
        let primaries = layout.indices().collect();
        let Layout { version, parent_hash, q, n, members, .. } = layout;
        Parts { version, parent_hash, q, n, members, primaries }
    }
}

impl fmt::Debug for Layout {
    /// Without the assignment, which has Q times N entries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layout")
            .field("version", &self.version)
            .field("hash", &format_args!("{:016x}", self.hash))
            .field("parent_hash", &format_args!("{:016x}", self.parent_hash))
            .field("q", &self.q)
            .field("n", &self.n)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// One replica that changes hands between two layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// The partition.
    pub partition: PartitionId,
    /// A primary of the older layout that is none in the newer; `None` only when N grew.
    pub from: Option<NodeId>,
    /// A primary of the newer layout that was none in the older; `None` only when N shrank.
    pub to: Option<NodeId>,
}

/// The replicas that change hands from one layout to another, by partition, then by id. Within a partition those
/// that leave are paired with those that come, both ascending by id; the pairs say how much moves, not who must
/// send: every primary of the older layout has the data. Empty when the assignments are equal.
pub fn diff(from: &Layout, to: &Layout) -> Result<Vec<Move>, LayoutError> {
    if from.q != to.q {
        return Err(LayoutError::OtherShape { q: to.q.get(), n: to.n });
    }
    let mut moves = Vec::new();
    for partition in to.q.partitions() {
        let (old, new) = (from.primaries(partition), to.primaries(partition));
        let mut leave = old.iter().copied().filter(|id| !new.contains(id));
        let mut come = new.iter().copied().filter(|id| !old.contains(id));
        loop {
            match (leave.next(), come.next()) {
                (None, None) => break,
                (from, to) => moves.push(Move { partition, from, to }),
            }
        }
    }
    Ok(moves)
}
