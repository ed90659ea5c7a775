//! Faults of the network, as data, and what a link does while they last.
//!
//! A fault is of one direction of one pair of hosts. The contract of a connection holds under all of them: bytes are late,
//! or the connection ends; they are never reordered or doubled within it. The one exception is `corrupt`, which the
//! checksums of the frames are for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use ringdove::net::message::{
    AskFences, AskTransfers, Commit, Fetch, FetchMany, FetchReply, Get, GetReply, Gossip, LeafKeys, Message,
    OfferLayouts, Put, PutReply, ScanKeys, Store, StoreReply, TreeHashes, Vote,
};

use crate::plan::Why;
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
    /// One fault of a kind ends, the oldest on this link. Others go on: a link that was cut twice is whole when it was mended
    /// twice.
    Mend {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
        /// Of which kind.
        what: Lasting,
    },
    /// All connections between two hosts are reset from the middle, as by a firewall: what was on the way is gone, and each
    /// side hears of it as of anything else, over the link that leads to it.
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
    /// is lost six times never arrives. Its sender then gives the connection up, 12.6 s after it was sent; the receiver hears
    /// nothing of that.
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
    /// The nth segment of data from now on is lost, on connections that the receiver has opened, and its connection is reset
    /// from the middle: what it answered has been done.
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
            NetFault::Mend { .. } => "mend",
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
            | NetFault::Mend { from, to, .. }
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

    /// What mends it; nothing where it ends by itself.
    pub fn mended(&self) -> Option<NetFault> {
        let what = match self {
            NetFault::Cut { .. } => Lasting::Cut,
            NetFault::Loss { .. } => Lasting::Loss,
            NetFault::Slow { .. } => Lasting::Slow,
            NetFault::Bandwidth { .. } => Lasting::Bandwidth,
            NetFault::Hold { .. } => Lasting::Hold,
            NetFault::SmallStall { .. } => Lasting::SmallStall,
            NetFault::LargeStall { .. } => Lasting::LargeStall,
            NetFault::SlowFrames { .. } => Lasting::SlowFrames,
            NetFault::Heal { .. }
            | NetFault::Mend { .. }
            | NetFault::Reset { .. }
            | NetFault::HalfOpen { .. }
            | NetFault::Corrupt { .. }
            | NetFault::ReplyLost { .. } => return None,
        };
        let (from, to) = self.link();
        Some(NetFault::Mend { from: from.to_owned(), to: to.to_owned(), what })
    }

    /// Whether it makes something whole.
    pub fn is_an_end(&self) -> bool {
        matches!(self, NetFault::Heal { .. } | NetFault::Mend { .. })
    }
}

/// Faults of a link that last until they are mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lasting {
    /// [`NetFault::Cut`].
    Cut,
    /// [`NetFault::Loss`].
    Loss,
    /// [`NetFault::Slow`].
    Slow,
    /// [`NetFault::Bandwidth`].
    Bandwidth,
    /// [`NetFault::Hold`].
    Hold,
    /// [`NetFault::SmallStall`].
    SmallStall,
    /// [`NetFault::LargeStall`].
    LargeStall,
    /// [`NetFault::SlowFrames`].
    SlowFrames,
}

/// Every name under which something is counted on a link.
pub const NAMES: [&str; 15] = [
    "cut",
    "reset",
    "half-open",
    "loss",
    "loss-exhausted",
    "slow-link",
    "slow-tail",
    "bandwidth",
    "corrupt",
    "reply-lost",
    "hold",
    "large-stall",
    "small-stall",
    "slow-frames",
    "unacknowledged",
];

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
    /// Several copies that one node asks another for.
    FetchMany,
    /// A part of a scan.
    ScanKeys,
    /// What a node has heard of all others: the heartbeats.
    Gossip,
    /// The layouts that a node goes by.
    OfferLayouts,
    /// Hashes of a Merkle tree.
    TreeHashes,
    /// The keys below some leaves of one.
    LeafKeys,
    /// A vote in a round of reaping.
    Vote,
    /// What came of one.
    Commit,
    /// How far another node's fences are.
    AskFences,
    /// How far another node's transfers are.
    AskTransfers,
}

impl FrameKind {
    /// All of them.
    pub const ALL: [FrameKind; 18] = [
        FrameKind::Get,
        FrameKind::GetReply,
        FrameKind::Put,
        FrameKind::PutReply,
        FrameKind::Fetch,
        FrameKind::FetchReply,
        FrameKind::Store,
        FrameKind::StoreReply,
        FrameKind::FetchMany,
        FrameKind::ScanKeys,
        FrameKind::Gossip,
        FrameKind::OfferLayouts,
        FrameKind::TreeHashes,
        FrameKind::LeafKeys,
        FrameKind::Vote,
        FrameKind::Commit,
        FrameKind::AskFences,
        FrameKind::AskTransfers,
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
            FrameKind::FetchMany => FetchMany::KIND,
            FrameKind::ScanKeys => ScanKeys::KIND,
            FrameKind::Gossip => Gossip::KIND,
            FrameKind::OfferLayouts => OfferLayouts::KIND,
            FrameKind::TreeHashes => TreeHashes::KIND,
            FrameKind::LeafKeys => LeafKeys::KIND,
            FrameKind::Vote => Vote::KIND,
            FrameKind::Commit => Commit::KIND,
            FrameKind::AskFences => AskFences::KIND,
            FrameKind::AskTransfers => AskTransfers::KIND,
        }
    }
}

/// Segments longer than this stand still under `large-stall`.
pub(super) const LARGE: usize = 600;
/// The first retransmission.
const RETRY: Duration = Duration::from_millis(200);
/// Losses of one segment after which its connection is reset.
const LOSSES_MAX: u32 = 6;

/// One direction between two hosts. Of faults that last there may be several of a kind at once; each is mended by itself.
pub(super) struct Link {
    pub(super) chance: Stream,
    /// What each cut is called, where it has a name of its own.
    pub(super) cuts: Vec<Option<Why>>,
    pub(super) large_stalls: u32,
    pub(super) small_stalls: u32,
    /// Kinds of frames that are slow, and by how much.
    slow_frames: Vec<(u16, Duration)>,
    /// When the last cut ended.
    pub(super) cut_ended: Option<Duration>,
    loss_percent: Vec<u32>,
    slow: Vec<Duration>,
    /// Bytes a second.
    bandwidth: Vec<u64>,
    /// The numbers of the holds that last.
    pub(super) holds: Vec<u32>,
    /// When the last byte under the limit has left.
    free_at: Duration,
    corrupt_in: u32,
    reset_in: u32,
}

/// How a segment gets to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    /// So much later than usual.
    Later(Duration),
    /// Not at all, and its sender gives up after so long.
    Lost(Duration),
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

/// Takes the oldest away.
fn end_one<T>(all: &mut Vec<T>) -> Option<T> {
    (!all.is_empty()).then(|| all.remove(0))
}

/// One more; in plans of before a nothing ended all.
fn begin<T: PartialEq + Default>(all: &mut Vec<T>, one: T) {
    if one == T::default() {
        all.clear();
    } else {
        all.push(one);
    }
}

impl Link {
    pub(super) fn new(chance: Stream) -> Link {
        Link {
            chance,
            cuts: Vec::new(),
            large_stalls: 0,
            small_stalls: 0,
            slow_frames: Vec::new(),
            cut_ended: None,
            loss_percent: Vec::new(),
            slow: Vec::new(),
            bandwidth: Vec::new(),
            holds: Vec::new(),
            free_at: Duration::ZERO,
            corrupt_in: 0,
            reset_in: 0,
        }
    }

    pub(super) fn is_cut(&self) -> bool {
        !self.cuts.is_empty()
    }

    /// Sets what lasts or is counted, under the name that it goes by; the rest is of connections.
    pub(super) fn set(&mut self, fault: &NetFault, why: Option<Why>, now: Duration) {
        match *fault {
            NetFault::Cut { .. } => self.cuts.push(why),
            NetFault::Heal { .. } => self.heal(now),
            NetFault::Mend { what, .. } => self.mend(what, now),
            NetFault::Loss { percent, .. } => begin(&mut self.loss_percent, percent.min(95)),
            NetFault::Slow { ms, .. } => begin(&mut self.slow, Duration::from_millis(ms)),
            NetFault::Bandwidth { kib_s, .. } => begin(&mut self.bandwidth, kib_s * 1024),
            NetFault::Corrupt { nth, .. } => self.corrupt_in = nth,
            NetFault::ReplyLost { nth, .. } => self.reset_in = nth,
            NetFault::LargeStall { .. } => self.large_stalls += 1,
            NetFault::SmallStall { .. } => self.small_stalls += 1,
            NetFault::SlowFrames { ms: 0, .. } => self.slow_frames.clear(),
            NetFault::SlowFrames { frames, ms, .. } => {
                self.slow_frames.push((frames.number(), Duration::from_millis(ms)));
            }
            NetFault::Reset { .. } | NetFault::HalfOpen { .. } | NetFault::Hold { .. } => {}
        }
    }

    fn mend(&mut self, what: Lasting, now: Duration) {
        match what {
            Lasting::Cut => {
                if end_one(&mut self.cuts).is_some() {
                    self.cut_ended = Some(now);
                }
            }
            Lasting::Loss => drop(end_one(&mut self.loss_percent)),
            Lasting::Slow => drop(end_one(&mut self.slow)),
            Lasting::Bandwidth => drop(end_one(&mut self.bandwidth)),
            Lasting::Hold => drop(end_one(&mut self.holds)),
            Lasting::SmallStall => self.small_stalls = self.small_stalls.saturating_sub(1),
            Lasting::LargeStall => self.large_stalls = self.large_stalls.saturating_sub(1),
            Lasting::SlowFrames => drop(end_one(&mut self.slow_frames)),
        }
    }

    pub(super) fn heal(&mut self, now: Duration) {
        if self.is_cut() {
            self.cuts.clear();
            self.cut_ended = Some(now);
        }
        (self.small_stalls, self.large_stalls) = (0, 0);
        self.slow_frames.clear();
        self.loss_percent.clear();
        self.slow.clear();
        self.bandwidth.clear();
        self.holds.clear();
        (self.corrupt_in, self.reset_in) = (0, 0);
    }

    /// How much later a segment arrives in which frames of these kinds begin.
    pub(super) fn later_by_kind(&self, begun: &[u16], counts: &mut Counts) -> Duration {
        let of_these = self.slow_frames.iter().filter(|(kind, _)| begun.contains(kind));
        let later = of_these.map(|(_, later)| *later).max();
        if later.is_some() {
            effective(counts, "slow-frames");
        }
        later.unwrap_or_default()
    }

    /// How a segment of `len` bytes passes that is sent `now`.
    pub(super) fn passage(&mut self, now: Duration, len: usize, counts: &mut Counts) -> Passage {
        let mut later = self.slow.iter().max().copied().unwrap_or_default();
        if !later.is_zero() {
            effective(counts, "slow-link");
        }
        if let Some(bandwidth) = self.bandwidth.iter().min() {
            let time = Duration::from_secs_f64((len + 60) as f64 / *bandwidth as f64);
            self.free_at = self.free_at.max(now) + time;
            later += self.free_at - now;
            effective(counts, "bandwidth");
        }
        if let Some(percent) = self.loss_percent.iter().max() {
            let (mut wait, mut tried) = (RETRY, Duration::ZERO);
            for losses in 0.. {
                if losses == LOSSES_MAX {
                    fired(counts, "loss-exhausted");
                    return Passage::Lost(tried);
                }
                if !rand::RngExt::random_ratio(&mut self.chance, *percent, 100) {
                    break;
                }
                effective(counts, "loss");
                tried += wait;
                wait *= 2;
            }
            later += tried;
        }
        Passage::Later(later)
    }

    /// What becomes of the next segment of data, which is an answer where it goes to the one who has opened the connection.
    pub(super) fn fate(&mut self, is_answer: bool, counts: &mut Counts) -> Fate {
        let due = |left: &mut u32| {
            let hits = *left == 1;
            *left = left.saturating_sub(1);
            hits
        };
        if is_answer && due(&mut self.reset_in) {
            effective(counts, "reply-lost");
            return Fate::Reset;
        }
        if due(&mut self.corrupt_in) {
            return Fate::Corrupt(rand::RngExt::random(&mut self.chance));
        }
        Fate::Whole
    }
}

pub(crate) fn effective(counts: &mut Counts, name: &'static str) {
    counts.entry(name).or_default().1 += 1;
}

pub(crate) fn fired(counts: &mut Counts, name: &'static str) {
    counts.entry(name).or_default().0 += 1;
}
