//! What a plan may do to a disk that takes from it what it has synced.

use serde::{Deserialize, Serialize};

/// How a disk is destroyed, or a part of it. A file is named by its place among the segments of the log in the order of
/// their numbers, modulo how many there are at that moment; a place in it in thousandths of its length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum Destruction {
    /// The power goes, and the disk that comes back is empty. The operator makes a new directory for the member, as
    /// `ringdove init --replace` does.
    Wipe,
    /// The power goes, and the disk that comes back is what it was when it was last kept by `keep-image`.
    Rollback,
    /// The power goes, and a file lacks its end.
    Truncate {
        /// Which file.
        file: u32,
        /// What is left of it.
        thousandths: u32,
    },
    /// At once, under the running node: bits change at rest, one in each of some places.
    BitFlips {
        /// Which file.
        file: u32,
        /// Where in it, and which bit.
        places: Vec<(u32, u8)>,
    },
    /// At once, under the running node: a sector cannot be read any more until it is written over.
    BadSector {
        /// Which file.
        file: u32,
        /// Where in it.
        thousandths: u32,
    },
    /// Until the next convergence writes go astray and syncs lie by chance, drawn from a stream of its own.
    Decay {
        /// Writes of a thousand that go to another place.
        astray: u32,
        /// Syncs of a thousand that make nothing durable.
        lies: u32,
        /// Of the stream.
        seed: u64,
    },
    /// The nth write from now on reaches another place: its own is as it was, and bytes of another file are gone.
    Misdirect {
        /// Which write, from 1.
        nth: u32,
        /// Where it goes.
        file: u32,
        /// Where in that.
        thousandths: u32,
    },
    /// Some syncs succeed and make nothing durable; a later one that tells the truth does.
    SyncLie {
        /// The first of them, from 1.
        nth: u32,
        /// How many.
        syncs: u32,
    },
}

impl Destruction {
    /// Its name in summaries.
    pub fn name(&self) -> &'static str {
        match self {
            Destruction::Wipe => "wipe",
            Destruction::Rollback => "rollback",
            Destruction::Truncate { .. } => "truncate",
            Destruction::BitFlips { .. } => "bit-flips",
            Destruction::BadSector { .. } => "bad-sector",
            Destruction::Decay { .. } => "decay",
            Destruction::Misdirect { .. } => "misdirect",
            Destruction::SyncLie { .. } => "sync-lie",
        }
    }

    /// Whether the machine goes off with it.
    pub fn takes_the_power(&self) -> bool {
        matches!(self, Destruction::Wipe | Destruction::Rollback | Destruction::Truncate { .. })
    }
}
