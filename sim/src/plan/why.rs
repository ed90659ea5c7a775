//! What an entry of a plan is a part of: the names that faults have in the literature, each counted by itself.

use serde::{Deserialize, Serialize};

/// A fault that is made of several entries, or of a special case of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// One direction between two hosts is cut.
    OneWay,
    /// Both directions are.
    TwoWay,
    /// The nodes fall into halves.
    Halves,
    /// Fewer than half of the nodes are cut off.
    Minority,
    /// Two halves that only one node sees.
    Bridge,
    /// Every node sees a majority, and none the same one.
    Ring,
    /// One node is cut off.
    Isolate,
    /// Nodes are cut off one by one, and come back in another order.
    Swizzle,
    /// A link goes off and on.
    Flap,
    /// A node that is heard and does not hear, or the reverse.
    Mute,
    /// All nodes are restarted, one after the other.
    RollingRestart,
    /// A node loses its power again and again.
    CrashLoop,
    /// A node loses its power while it recovers from losing it.
    CrashInRecovery,
    /// The power goes at a named point of node code.
    CrashAtPoint,
    /// The power goes at a sync.
    CrashAtSync,
    /// The power goes when two writes are unsynced.
    CrashAtTwoWrites,
    /// A duty cycle of pauses.
    SlowProcessor,
    /// A wall clock jumps once.
    Jump,
    /// A wall clock goes to and fro.
    Strobe,
}

impl Why {
    /// All of them.
    pub const ALL: [Why; 19] = [
        Why::OneWay,
        Why::TwoWay,
        Why::Halves,
        Why::Minority,
        Why::Bridge,
        Why::Ring,
        Why::Isolate,
        Why::Swizzle,
        Why::Flap,
        Why::Mute,
        Why::RollingRestart,
        Why::CrashLoop,
        Why::CrashInRecovery,
        Why::CrashAtPoint,
        Why::CrashAtSync,
        Why::CrashAtTwoWrites,
        Why::SlowProcessor,
        Why::Jump,
        Why::Strobe,
    ];

    /// Its name in summaries and plans.
    pub fn name(self) -> &'static str {
        match self {
            Why::OneWay => "one-way",
            Why::TwoWay => "two-way",
            Why::Halves => "halves",
            Why::Minority => "minority",
            Why::Bridge => "bridge",
            Why::Ring => "ring",
            Why::Isolate => "isolate",
            Why::Swizzle => "swizzle",
            Why::Flap => "flap",
            Why::Mute => "mute",
            Why::RollingRestart => "rolling-restart",
            Why::CrashLoop => "crash-loop",
            Why::CrashInRecovery => "crash-in-recovery",
            Why::CrashAtPoint => "crash-at-point",
            Why::CrashAtSync => "crash-at-sync",
            Why::CrashAtTwoWrites => "crash-at-two-writes",
            Why::SlowProcessor => "slow-processor",
            Why::Jump => "jump",
            Why::Strobe => "strobe",
        }
    }
}
