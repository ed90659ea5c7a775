//! The engine's settings, with their defaults and sane ranges.

use std::time::Duration;

use crate::dynamo::merkle::MerkleKey;
use crate::dynamo::ring::PartitionCount;

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Partitions of the cluster's ring (Q).
    pub partitions: PartitionCount,
    /// Key of the Merkle trees' leaf hashes.
    pub merkle_key: MerkleKey,
    /// A segment that has reached this length is closed. Default 128 MiB; sane 16 MiB to 1 GiB. A store keeps one
    /// file open for each.
    pub segment_bytes: u64,
    /// Bytes of entries kept decoded in memory. Default 64 MiB.
    pub cache_bytes: u64,
    /// Most bytes that wait for the disk; above, updates wait. Default 32 MiB.
    pub gathered_bytes_max: usize,
    /// A write or sync that takes longer makes updates fail with `Stalled`. Default 10 s.
    pub stall_max: Duration,
    /// A snapshot is written when the log has grown by this since the last one, and by `snapshot_factor` times the
    /// last one's size. Default 128 MiB.
    pub snapshot_bytes_min: u64,
    /// See `snapshot_bytes_min`. Larger: less written; smaller: a shorter restart after a crash, which replays about
    /// a million records a second. Default 6.
    pub snapshot_factor: u64,
    /// Compaction begins when this share of the log is dead, in percent. Default 35: some 1.6 bytes on the disk for
    /// each that is needed, when clients leave the disk some time.
    pub dead_percent_max: u32,
    /// Bytes that compaction reads a second; more when clients write faster than that gives space back. Default
    /// 64 MiB.
    pub compaction_bytes_per_second: u64,
}

impl StoreConfig {
    /// The defaults for a cluster.
    pub fn new(partitions: PartitionCount, merkle_key: MerkleKey) -> StoreConfig {
        const MIB: u64 = 1024 * 1024;
        StoreConfig {
            partitions,
            merkle_key,
            segment_bytes: 128 * MIB,
            cache_bytes: 64 * MIB,
            gathered_bytes_max: 32 * 1024 * 1024,
            stall_max: Duration::from_secs(10),
            snapshot_bytes_min: 128 * MIB,
            snapshot_factor: 6,
            dead_percent_max: 35,
            compaction_bytes_per_second: 64 * MIB,
        }
    }
}
