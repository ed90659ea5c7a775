//! What a request may ask for besides its key. What it leaves out is the node's default.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::Wall;

/// What a request wants of the quorum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Answers (reads) needed, 1 to N. Left out: a majority of N.
    pub r: Option<u8>,
    /// Durable copies (writes) needed, 1 to N. Left out: a majority of N.
    pub w: Option<u8>,
    /// Count primaries alone.
    pub strict: bool,
}

/// What a write says it overwrites.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Context {
    /// Nothing: a new sibling.
    #[default]
    Nothing,
    /// What the reader of this token had seen.
    Token(Bytes),
    /// Whatever the coordinator holds. Concurrent writes elsewhere stay siblings.
    Current,
    /// Deletes only: read first, at R, and delete what that read saw.
    Read,
}

/// What must hold for a write to be made. It is looked at on max(R, W) replicas, and the write overwrites exactly
/// what they showed; its [`Context`] must be `Nothing`. Two such writes at the same time may both succeed, and
/// their values become siblings: this is not compare-and-swap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// The key has no value. A tombstone is none, and neither is a value that has expired.
    Absent,
    /// Nobody has written or deleted the key since the reader of this token saw it.
    Match(Bytes),
}

/// When a value stops to be there. Coordinators judge it by their own wall clocks, so it holds within the clocks'
/// skew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expiry {
    /// Never.
    #[default]
    Never,
    /// At this moment.
    At(Wall),
    /// This many milliseconds, at least 1, after the coordinator has taken the write, by its wall clock.
    After(u64),
}

/// Longest interval of a [`Durability::Interval`], in milliseconds.
pub const INTERVAL_MS_MAX: u32 = 60_000;

/// When a replica counts towards W.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// When its disk has it.
    Sync,
    /// When its memory has it; its disk has it within this many milliseconds, 1 to [`INTERVAL_MS_MAX`]. Lost if
    /// not one of the W replicas stays up for that long.
    Interval(u32),
}

/// What a read returns of several concurrent values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolve {
    /// All of them.
    #[default]
    Siblings,
    /// The one that was written last, by the coordinators' clocks; nothing when that is a deletion. The others are
    /// named as hidden, and the context covers them too: a write with it overwrites them unseen.
    Lww,
}

/// Which way a scan goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// From smaller to larger keys, bytewise.
    #[default]
    Ascending,
    /// From larger to smaller.
    Descending,
}
