//! What a node keeps: one entry for each key, durable when it says so. The log is the database.
//!
//! ```text
//!   update ── key lock ── read ── partition lock: change, gather in the log, enter in the index ──▶ position
//!                                                   │
//!             log: gathered ──▶ one write, one fdatasync for all that waits ──▶ segments 0000000007.log …
//!                                                   │                             │ compaction: live records of
//!   read ── index ── memory, cache or one positioned read                         │ the deadest go to the end
//!                                                   └── snapshot: index, Merkle leaves, states, log position
//! ```
//!
//! Source: Bitcask (Sheehy, Smith, 2010), with an ordered index instead of a hash table, group commit, and per
//! record what a leaderless store needs: targets, version hash, partition state.
//!
//! | file | what it is |
//! |---|---|
//! | [`store`], `settings` | the interface: read, update, scan, guests by target, partition states |
//! | `engine` | what happens under the locks: reading a record, gathering one, pointing the index at it |
//! | `log` | the end of the log: gathering, the appender, latch, full disk, stall |
//! | `format`, `body` | kinds of records, checksums, heads of segments and groups; how an entry lies on the disk |
//! | `segment` | which files there are and how much of each is needed |
//! | `index`, `partition` | what is in memory: places, Merkle tree, targets, fence |
//! | `snapshot` | the index on disk, so that a restart reads it and the log's end |
//! | `recovery`, `walk` | what is found at start: proven, torn, rotten |
//! | `compaction`, `housekeeper` | gets space back; the task that does this and writes snapshots |
//! | [`inspect`], [`check`] | looks at a directory that no node runs on: figures, and every kind of damage |
//! | [`evidence`] | what synced bytes prove, for whoever does not believe the engine |
//! | [`directory`] | whose directory it is; the clean-shutdown mark |
//!
//! Invariants
//! - A read returns an entry only after the position it depends on is durable (promise P6): no reply reveals
//!   state that a crash can take back. Writes that asked for an interval are excepted.
//! - Once a write or sync has failed nothing is acknowledged any more ([`StorageError::Latched`]): what reads
//!   back may not be on the disk, and a later sync may succeed without writing it.
//! - What recovery serves is synced before it is served.
//! - No byte that a client chose is taken for a record, whatever is damaged around it: each segment's checksums hang on
//!   random bits that no client can learn.
//! - What was proven synced and cannot be read is corrupt, not absent: counted, reported by partition, never
//!   served. What follows it stays.
//! - A closed segment is never written to again, so a backup is the snapshot plus the closed segments.
//!
//! Lock order: key, then partition, then log, then segments. Only the first is held while waiting.
//!
//! Deliberately absent: the network, wall clocks, expiry (reaping decides by votes), transactions over several keys,
//! values in the index, encryption. Every key is in memory: some 76 bytes for a key of 32.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dynamo::version::LocalCopy;
use crate::net::codec::CodecError;
use crate::types::{Key, Namespace, NodeId, PartitionId};

mod body;
pub mod check;
mod compaction;
pub mod directory;
mod engine;
pub mod evidence;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod housekeeper;
mod index;
pub mod inspect;
mod log;
mod partition;
mod recovery;
mod segment;
mod settings;
mod snapshot;
pub mod store;
mod walk;

pub use index::Direction;
pub use recovery::Recovery;
pub use settings::StoreConfig;
pub use store::{Owed, Page, Scanned, Stats, Store};

/// Why storage cannot do what was asked. Whether state changed is said for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The system refused a file operation. Nothing was changed.
    #[error("{action} {path}: {reason}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// A write or sync failed before; the store takes nothing more. What was acknowledged is safe; restart
    /// the node, and look at the disk if it happens again.
    #[error("a write to the disk failed, the store is closed to further writes: {0}")]
    Latched(String),
    /// There is no space. An update that is answered so was not made; from a wait for a position it means that
    /// the outcome is unknown. Goes away by itself when there is space.
    #[error("the disk is full: free some space, writes go on by themselves then")]
    DiskFull,
    /// A sync has been pending for longer than the limit. An update that is answered so was not made; try
    /// again, elsewhere first.
    #[error("the disk has not answered for {0:?}")]
    Stalled(Duration),
    /// An entry cannot be read back as it was written. Nothing was changed.
    #[error("the copy of a key is damaged on disk: {0}")]
    Corrupt(String),
    /// Another process uses the directory.
    #[error("{0} is in use by another process: stop it, or choose another directory")]
    InUse(String),
    /// The directory is not one of ours, or damaged beyond a start.
    #[error("{0}")]
    BadDirectory(String),
    /// The directory is one that another build wrote.
    #[error("{path} has format {found}, this build reads {}: use the build that wrote it", directory::FORMAT)]
    OtherFormat {
        /// The file that says so.
        path: String,
        /// What it says.
        found: u32,
    },
    /// The value cannot be written. Nothing was changed.
    #[error(transparent)]
    Unencodable(#[from] CodecError),
}

impl StorageError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
        let path = path.display().to_string();
        move |error| StorageError::Io { action, path, reason: error.to_string() }
    }
}

/// Which of the node's two kinds of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Table {
    /// The node is a primary of the key.
    Data,
    /// Kept for primaries that were not reached.
    Guest,
}

/// All tables, for those who look at every entry.
const TABLES: [Table; 2] = [Table::Data, Table::Guest];

/// Where an entry is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot {
    /// Data or guest.
    pub table: Table,
    /// The key's partition.
    pub partition: PartitionId,
    /// The key's namespace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
}

/// What is kept for a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The record with its local header.
    pub copy: LocalCopy,
    /// Guest: the primaries it is for. Data: primaries that did not get it and for which no fallback was left.
    /// Sorted, each once.
    pub targets: Vec<NodeId>,
}

impl Entry {
    /// Adds primaries that this entry is owed to.
    pub fn add_targets(&mut self, targets: &[NodeId]) {
        self.targets.extend_from_slice(targets);
        self.targets.sort_unstable();
        self.targets.dedup();
    }
}

/// What an update leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// What was there is as it was.
    Keep,
    /// It is to be written.
    Write,
    /// The slot becomes empty. Of a partition's state: back to the default.
    Remove,
}

/// When an update is to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// As soon as the disk can. Whoever answers for it waits for its position, and so do reads of it.
    Sync,
    /// Within this time, or with the next update that is `Sync`. Reads do not wait for it. An update on top of one
    /// that is `Sync` and not durable yet becomes `Sync`, because it reveals it.
    Interval(Duration),
}

/// What a node keeps of a partition besides its entries. Durable like an entry. All of it is reset by a start that finds that
/// durable records of the partition may be lost: older ones may have come back in their place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// Records with a lower fence are refused (reaping).
    pub fence: u64,
    /// The newest fence whose round has removed what it agreed on.
    pub committed: u64,
    /// Whether the node has exchanged with every other primary since it may last have lost something. Reset by
    /// storage itself when it finds corruption or a suspicious cut.
    pub refilled: bool,
}

/// What the salts of the segments of one start are made from: random bits of this start that no client can learn.
#[derive(Clone, Copy)]
pub struct SaltSeed(pub u64);

/// A place in the log: everything before it is written in order. The default is the beginning, which is durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition(u64);

#[cfg(all(test, not(madsim)))]
#[allow(clippy::disallowed_methods)] // tests may damage files and wait
mod tests;
