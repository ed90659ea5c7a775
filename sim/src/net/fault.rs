//! Faults of the network, as data, and what a link does while they last.
//!
//! A fault is of one direction of one pair of hosts. The contract of a connection holds under all of them: bytes are late,
//! or the connection ends; they are never reordered or doubled within it. The one exception is `corrupt`, which the
//! checksums of the frames are for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use ringdove::net::message::{Fetch, FetchReply, Get, GetReply, Message, Put, PutReply, Store, StoreReply};

use crate::seed::Stream;

/// One fault, or its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum NetFault {
    /// Nothing arrives any more from one host at another.
    Cut {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
    },
    /// Everything that was done to a link ends; what waits arrives in order.
    Heal {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
    },
    /// All connections between two hosts are reset, for both; what was on the way is gone.
    Reset {
        /// One.
        from: String,
        /// The other.
        to: String,
    },
    /// One side forgets its connections with the other, as after a lost NAT entry: the other side is told when it sends.
    HalfOpen {
        /// Who forgets.
        from: String,
        /// Who is not told.
        to: String,
    },
    /// So many of a hundred segments are lost and sent again: after 200 ms, then twice as long each time; a segment that
    /// is lost six times resets its connection.
    Loss {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
        /// Of a hundred; 0 ends it.
        percent: u32,
    },
    /// Every segment takes so much longer.
    Slow {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
        /// By how much; 0 ends it.
        ms: u64,
    },
    /// The link carries no more than this.
    Bandwidth {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
        /// KiB in a second; 0 is without a limit.
        kib_s: u64,
    },
    /// The nth segment of data from now on arrives with one byte changed.
    Corrupt {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
        /// Which one, from 1.
        nth: u32,
    },
    /// The nth segment of data from now on is lost and its connection reset: what it answered has been done.
    ReplyLost {
        /// The sender of the reply.
        from: String,
        /// Who waits for it.
        to: String,
        /// Which one, from 1.
        nth: u32,
    },
    /// The connections that exist now stand still in this direction; new ones work. The heal lets them go on.
    Hold {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
    },
    /// Segments of no more than 600 bytes stand still, and what is behind them in their connection; large ones pass.
    SmallStall {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
    },
    /// Frames of one kind take so much longer, and what is behind them in their connection with them.
    SlowFrames {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
        /// Which.
        frames: FrameKind,
        /// By how much; 0 ends it.
        ms: u64,
    },
    /// Segments of more than 600 bytes stand still, and what is behind them in their connection; small ones pass.
    LargeStall {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
    },
}

impl NetFault {
    /// Its name in summaries.
    pub fn name(&self) -> &'static str {
        match self {
            NetFault::Cut { .. } => "cut",
            NetFault::Heal { .. } => "heal",
            NetFault::Reset { .. } => "reset",
            NetFault::HalfOpen { .. } => "half-open",
            NetFault::Loss { .. } => "loss",
            NetFault::Slow { .. } => "slow-link",
            NetFault::Bandwidth { .. } => "bandwidth",
            NetFault::Corrupt { .. } => "corrupt",
            NetFault::ReplyLost { .. } => "reply-lost",
            NetFault::Hold { .. } => "hold",
            NetFault::LargeStall { .. } => "large-stall",
            NetFault::SmallStall { .. } => "small-stall",
            NetFault::SlowFrames { .. } => "slow-frames",
        }
    }

    /// Sender and receiver.
    pub fn link(&self) -> (&str, &str) {
        match self {
            NetFault::Cut { from, to }
            | NetFault::Heal { from, to }
            | NetFault::Reset { from, to }
            | NetFault::HalfOpen { from, to }
            | NetFault::Loss { from, to, .. }
            | NetFault::Slow { from, to, .. }
            | NetFault::Bandwidth { from, to, .. }
            | NetFault::Corrupt { from, to, .. }
            | NetFault::ReplyLost { from, to, .. }
            | NetFault::Hold { from, to }
            | NetFault::SlowFrames { from, to, .. }
            | NetFault::SmallStall { from, to }
            | NetFault::LargeStall { from, to } => (from, to),
        }
    }
}

/// Kinds of frames that can be slowed down alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// A client's read, or its answer.
    Get,
    /// The answer.
    GetReply,
    /// A client's write, or one that a node forwards.
    Put,
    /// The answer.
    PutReply,
    /// A copy that a coordinator asks a replica for.
    Fetch,
    /// The answer.
    FetchReply,
    /// A copy that a replica is to keep: replication and repair.
    Store,
    /// The answer.
    StoreReply,
}

impl FrameKind {
    /// All of them.
    pub const ALL: [FrameKind; 8] = [
        FrameKind::Get,
        FrameKind::GetReply,
        FrameKind::Put,
        FrameKind::PutReply,
        FrameKind::Fetch,
        FrameKind::FetchReply,
        FrameKind::Store,
        FrameKind::StoreReply,
    ];

    /// Its number in a frame's head.
    pub fn number(self) -> u16 {
        match self {
            FrameKind::Get => Get::KIND,
            FrameKind::GetReply => GetReply::KIND,
            FrameKind::Put => Put::KIND,
            FrameKind::PutReply => PutReply::KIND,
            FrameKind::Fetch => Fetch::KIND,
            FrameKind::FetchReply => FetchReply::KIND,
            FrameKind::Store => Store::KIND,
            FrameKind::StoreReply => StoreReply::KIND,
        }
    }
}

/// Segments longer than this stand still under `large-stall`.
pub(super) const LARGE: usize = 600;
/// The first retransmission.
const RETRY: Duration = Duration::from_millis(200);
/// Losses of one segment after which its connection is reset.
const LOSSES_MAX: u32 = 6;

/// One direction between two hosts.
pub(super) struct Link {
    pub(super) chance: Stream,
    pub(super) cut: bool,
    pub(super) large_stall: bool,
    pub(super) small_stall: bool,
    /// A kind of frames that is slow, and by how much.
    slow_frames: Option<(u16, Duration)>,
    /// When the last cut ended.
    pub(super) cut_ended: Option<Duration>,
    loss_percent: u32,
    slow: Duration,
    /// Bytes a second; 0 is without a limit.
    bandwidth: u64,
    /// When the last byte under the limit has left.
    free_at: Duration,
    corrupt_in: u32,
    reset_in: u32,
}

/// What a link does to one segment of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Whole,
    /// A byte is changed: which one, modulo the length.
    Corrupt(u64),
    /// It never arrives, and the connection is reset.
    Reset,
}

/// How often each fault was set, and did something.
pub type Counts = BTreeMap<&'static str, (u64, u64)>;

impl Link {
    pub(super) fn new(chance: Stream) -> Link {
        Link {
            chance,
            cut: false,
            large_stall: false,
            small_stall: false,
            slow_frames: None,
            cut_ended: None,
            loss_percent: 0,
            slow: Duration::ZERO,
            bandwidth: 0,
            free_at: Duration::ZERO,
            corrupt_in: 0,
            reset_in: 0,
        }
    }

    /// Sets what lasts or is counted; the rest is of connections.
    pub(super) fn set(&mut self, fault: &NetFault, now: Duration) {
        match *fault {
            NetFault::Cut { .. } => self.cut = true,
            NetFault::Heal { .. } => self.heal(now),
            NetFault::Loss { percent, .. } => self.loss_percent = percent.min(95),
            NetFault::Slow { ms, .. } => self.slow = Duration::from_millis(ms),
            NetFault::Bandwidth { kib_s, .. } => self.bandwidth = kib_s * 1024,
            NetFault::Corrupt { nth, .. } => self.corrupt_in = nth,
            NetFault::ReplyLost { nth, .. } => self.reset_in = nth,
            NetFault::LargeStall { .. } => self.large_stall = true,
            NetFault::SmallStall { .. } => self.small_stall = true,
            NetFault::SlowFrames { frames, ms, .. } => {
                self.slow_frames = (ms > 0).then(|| (frames.number(), Duration::from_millis(ms)));
            }
            NetFault::Reset { .. } | NetFault::HalfOpen { .. } | NetFault::Hold { .. } => {}
        }
    }

    pub(super) fn heal(&mut self, now: Duration) {
        if std::mem::take(&mut self.cut) {
            self.cut_ended = Some(now);
        }
        self.small_stall = false;
        self.slow_frames = None;
        self.large_stall = false;
        self.loss_percent = 0;
        self.slow = Duration::ZERO;
        self.bandwidth = 0;
        self.corrupt_in = 0;
        self.reset_in = 0;
    }

    /// How much later a segment arrives in which frames of these kinds begin.
    pub(super) fn later_by_kind(&self, begun: &[u16], counts: &mut Counts) -> Duration {
        match self.slow_frames {
            Some((kind, later)) if begun.contains(&kind) => {
                effective(counts, "slow-frames");
                later
            }
            _ => Duration::ZERO,
        }
    }

    /// How much later than usual a segment of `len` bytes arrives that is sent `now`; nothing when it is lost too often.
    pub(super) fn later(&mut self, now: Duration, len: usize, counts: &mut Counts) -> Option<Duration> {
        let mut later = self.slow;
        if !self.slow.is_zero() {
            effective(counts, "slow-link");
        }
        if self.bandwidth > 0 {
            let time = Duration::from_secs_f64((len + 60) as f64 / self.bandwidth as f64);
            self.free_at = self.free_at.max(now) + time;
            later += self.free_at - now;
            effective(counts, "bandwidth");
        }
        if self.loss_percent > 0 {
            let mut wait = RETRY;
            for losses in 0.. {
                if losses == LOSSES_MAX {
                    return None;
                }
                if !rand::RngExt::random_ratio(&mut self.chance, self.loss_percent, 100) {
                    break;
                }
                effective(counts, "loss");
                later += wait;
                wait *= 2;
            }
        }
        Some(later)
    }

    /// What becomes of the next segment of data.
    pub(super) fn fate(&mut self, counts: &mut Counts) -> Fate {
        let due = |left: &mut u32| {
            let hits = *left == 1;
            *left = left.saturating_sub(1);
            hits
        };
        if due(&mut self.reset_in) {
            effective(counts, "reply-lost");
            return Fate::Reset;
        }
        if due(&mut self.corrupt_in) {
            effective(counts, "corrupt");
            return Fate::Corrupt(rand::RngExt::random(&mut self.chance));
        }
        Fate::Whole
    }
}

pub(super) fn effective(counts: &mut Counts, name: &'static str) {
    counts.entry(name).or_default().1 += 1;
}

pub(super) fn fired(counts: &mut Counts, name: &'static str) {
    counts.entry(name).or_default().0 += 1;
}
