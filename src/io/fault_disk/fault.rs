//! Faults as data: what may go wrong, when it is to, how often it did and how often anybody saw it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

/// A fault to arm. A path means the file, or every file below the directory; `/` means the whole disk.
/// `nth` counts the operations of that kind from now on; 1 is the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The nth sync (of a file or directory) fails. What was unsynced stays readable until power is lost or
    /// the pages are evicted, and later syncs succeed without writing it.
    SyncError {
        /// Where.
        path: PathBuf,
        /// When.
        nth: u32,
    },
    /// The nth sync succeeds and makes nothing durable. A later one that tells the truth does.
    SyncLie {
        /// Where.
        path: PathBuf,
        /// When.
        nth: u32,
    },
    /// The nth read fails with EIO; the next one succeeds.
    ReadError {
        /// Where.
        path: PathBuf,
        /// When.
        nth: u32,
    },
    /// The nth read comes back short, which `read_at` reports as `UnexpectedEof` although the bytes are there.
    ShortRead {
        /// Where.
        path: PathBuf,
        /// When.
        nth: u32,
    },
    /// The nth write reaches another place of the medium than the one it was for.
    MisdirectedWrite {
        /// Where.
        path: PathBuf,
        /// When.
        nth: u32,
        /// The file whose bytes it overwrites; it is not lengthened.
        to: PathBuf,
        /// Where in that file.
        offset: u64,
    },
    /// At once: the 512 bytes around `offset` cannot be read until they are written over.
    BadSector {
        /// The file.
        path: PathBuf,
        /// Any byte of the sector.
        offset: u64,
    },
    /// At once: one bit changes on the medium. Pages that are clean show it, as if they had been evicted.
    BitFlip {
        /// The file.
        path: PathBuf,
        /// The byte; beyond the end nothing happens.
        offset: u64,
        /// The bit, 0 to 7.
        bit: u8,
    },
    /// At once: the file ends at `len`, if it was longer.
    Truncate {
        /// The file.
        path: PathBuf,
        /// Its new length.
        len: u64,
    },
}

/// The kinds that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// An unsynced write (or change of length) was lost with the power. Effective: its place was read, or the
    /// length asked for.
    LostWrite,
    /// Some sectors of an unsynced write were lost with the power, others not.
    TornWrite,
    /// An unsynced write outlived the power loss that took an earlier one. Effective: it was read.
    ReorderedWrite,
    /// An unsynced creation, rename or removal was undone by a power loss. Effective: the name was looked up.
    LostName,
    /// A sync failed. Effective: bytes or names that it gave up were missed, after an eviction or power loss.
    SyncError,
    /// A sync lied. Effective: bytes or names that it vouched for were missed after a power loss.
    SyncLie,
    /// A read failed, or a sector went bad. Effective: a read failed.
    ReadError,
    /// A bit flipped. Effective: it was read.
    BitFlip,
    /// A write went astray. Effective: a read found it, or missed it where it belongs.
    MisdirectedWrite,
    /// The disk was full. Effective at once: a write failed.
    NoSpace,
    /// A path was made slow. Effective: an operation took longer.
    Slow,
    /// A path was stalled. Effective: an operation had to wait.
    Stall,
    /// A read came back short. Effective at once.
    ShortRead,
    /// A file lost its end. Effective: the lost part was read, or the length asked for.
    Truncate,
    /// The disk went back to an older image. Effective: something that differs was read or looked up.
    Rollback,
    /// The disk was emptied. Effective: a name that was on it was looked up.
    Wipe,
}

impl FaultKind {
    /// Every kind, in the order of the counts.
    pub const ALL: [FaultKind; 16] = [
        FaultKind::LostWrite,
        FaultKind::TornWrite,
        FaultKind::ReorderedWrite,
        FaultKind::LostName,
        FaultKind::SyncError,
        FaultKind::SyncLie,
        FaultKind::ReadError,
        FaultKind::BitFlip,
        FaultKind::MisdirectedWrite,
        FaultKind::NoSpace,
        FaultKind::Slow,
        FaultKind::Stall,
        FaultKind::ShortRead,
        FaultKind::Truncate,
        FaultKind::Rollback,
        FaultKind::Wipe,
    ];
}

/// How often one kind of fault took place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// It happened to the disk.
    pub fired: u64,
    /// And changed what an operation returned. Never more than `fired`.
    pub effective: u64,
}

/// The counts of all kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultCounts([Count; FaultKind::ALL.len()]);

impl FaultCounts {
    /// Of one kind.
    pub fn of(&self, kind: FaultKind) -> Count {
        self.0[kind as usize]
    }

    /// All kinds with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (FaultKind, Count)> {
        FaultKind::ALL.into_iter().zip(self.0)
    }

    /// Adds another disk's counts.
    pub fn add(&mut self, other: &FaultCounts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            mine.fired += theirs.fired;
            mine.effective += theirs.effective;
        }
    }
}

/// How often faults come by chance: probabilities an operation. All zero by default.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// A sync fails; each unsynced write was written or given up, evenly.
    pub sync_error: f64,
    /// A sync lies.
    pub sync_lie: f64,
    /// A read fails.
    pub read_error: f64,
    /// A read comes back short.
    pub short_read: f64,
    /// A write goes to a random sector of a random file.
    pub misdirected_write: f64,
    /// With a sync of a file, a random bit of that file flips.
    pub bit_flip: f64,
    /// With a read of a file, its clean pages are evicted before.
    pub evict: f64,
}

/// One fault that took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hit {
    kind: FaultKind,
    id: u64,
}

/// The counts, and the faults that nobody has seen yet.
#[derive(Clone, Default)]
pub(super) struct Ledger {
    pub(super) counts: FaultCounts,
    unseen: BTreeSet<u64>,
    next: u64,
}

impl Ledger {
    pub(super) fn fire(&mut self, kind: FaultKind) -> Hit {
        let hit = Hit { kind, id: self.next };
        self.next += 1;
        self.counts.0[kind as usize].fired += 1;
        self.unseen.insert(hit.id);
        hit
    }

    pub(super) fn is_unseen(&self, hit: Hit) -> bool {
        self.unseen.contains(&hit.id)
    }

    pub(super) fn saw(&mut self, hit: Hit) {
        if self.unseen.remove(&hit.id) {
            self.counts.0[hit.kind as usize].effective += 1;
        }
    }

    /// A fault that is its own effect: the operation returned it.
    pub(super) fn fire_seen(&mut self, kind: FaultKind) {
        let hit = self.fire(kind);
        self.saw(hit);
    }
}

/// Faults by chance, and the generator that they are drawn from.
#[derive(Clone)]
pub(super) struct Chance {
    pub(super) rates: Rates,
    pub(super) random: Xoshiro256PlusPlus,
}

impl Chance {
    /// Draws only where there is something to draw for: a rate of zero moves no other draw.
    pub(super) fn happens(&mut self, rate: impl FnOnce(&Rates) -> f64) -> bool {
        let rate = rate(&self.rates);
        rate > 0.0 && self.random.random_bool(rate.min(1.0))
    }
}
