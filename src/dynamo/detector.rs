//! Who seems to be down: a phi-accrual failure detector over heartbeats, and what traffic shows sooner.
//!
//! A detector gives each peer a *suspicion* that grows with the time since its last heartbeat, measured against how
//! its heartbeats used to come; the caller's threshold turns it into up or down. The view is this node's alone, for
//! routing and handoff. It never changes who owns what.
//!
//! # The model of the intervals
//!
//! phi = −log10 P(the next heartbeat comes later than now). With intervals that are exponentially distributed with
//! the observed mean this is `silence / (mean × ln 10)`. A normal distribution, as in the paper, is too sure of itself
//! once messages get lost: an interval of two heartbeats is nine standard deviations away, and a threshold of 8 fires
//! after some three seconds. Heartbeats every second, ±20% jitter, 10% of them lost, 10⁶ node-seconds a row
//! (`cargo run --release --example detector_table`):
//!
//! ```text
//!   model        threshold   false accusations   seconds to notice: median   most
//!   exponential        2.0                  40                         5.1    5.6
//!   exponential        2.5                   1                         6.4    7.1
//!   exponential        3.0                   0                         7.7    8.5
//!   exponential        3.5                   0                         8.9    9.9
//!   exponential        3.8                   0                         9.7   10.7
//!   exponential        4.0                   0                        10.2   11.3
//!   exponential        4.5                   0                        11.5   12.7
//!   normal             8.0                5323                         3.0    4.5
//!   normal            12.0                2609                         3.4    5.2
//!   normal            16.0                1431                         3.7    5.8
//! ```
//! The default is 3.8 with the exponential model: one heartbeat more of patience than the lowest that accuses nobody
//! wrongly in 10⁶ seconds, and still below twelve seconds with a look once a second.
//!
//! # What traffic shows
//!
//! - A *refused* connection: no process listens there. Down at once, until it is heard again.
//! - Calls that time out, [`TIMEOUTS_MAX`] in a row with no answer in between: down at once although heartbeats come (a
//!   *gray* failure: they pass and data stalls). Heartbeats do not lift this; an answer does, or the end of the
//!   penalty, after which the node is tried again.
//! - Calls that are given too little time to say anything one by one: as long as not a byte comes from the peer that they ask, each
//!   [`SILENCE_MIN`] counts as one call that timed out. A peer that is merely slow goes on sending its late answers, and
//!   is not accused for them.
//!
//! # Damping
//!
//! A peer that goes down for the n-th time in ten minutes is down for at least 2ⁿ⁻² intervals, 32 at most; the first
//! return is at once. A peer that flaps so costs a request now and then, not a storm of repairs.
//!
//! # When it was us
//!
//! [`Detector::tick`] is to be called once an interval. When it comes late by more than [`DetectorConfig::stall_after`]
//! this node was paused or starved: silence that fell into the gap says nothing about others. All silences are
//! shortened by the gap, and nobody is accused for two intervals. What else wakes up before that tick, as calls whose time was up
//! meanwhile, accuses nobody either: a tick that is overdue by as much counts like one that came late.
//!
//! Absent: the network, clocks (every call takes `now`), randomness, ownership, membership.
//!
//! Source: N. Hayashibara et al., *The φ accrual failure detector*, SRDS 2004; Dynamo §4.8.3; Lifeguard (A. Dadgar et
//! al., 2018) for suspecting oneself first.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::{Mono, NodeId};

/// Calls in a row that a peer may leave unanswered.
pub const TIMEOUTS_MAX: u32 = 3;
/// What was not answered for less time than this says nothing of a peer.
pub const SILENCE_MIN: Duration = Duration::from_millis(400);
/// Intervals that a mean is taken over.
const WINDOW: usize = 100;
/// Times of going down that damping remembers.
const FALLS_MAX: usize = 8;
/// For how long it does.
const FALLS_WITHIN: Duration = Duration::from_secs(600);
/// A penalty is at most 2 to the power of this many intervals.
const PENALTY_BITS_MAX: u32 = 5;
/// Intervals after a stall of this node in which nobody is accused.
const GRACE_INTERVALS: u32 = 2;

/// Settings of a detector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectorConfig {
    /// Time between two heartbeats of a node. Default 1 s; the same on all nodes.
    pub interval: Duration,
    /// The phi from which on a peer is down. Default 3.8; sane 2 to 16: below, single lost heartbeats accuse (40 times in
    /// 10⁶ seconds at 2); above, a dead node is asked for more than forty intervals. The table of the module says more.
    pub threshold: f64,
    /// A tick that comes so much later than the last one says that this node was stalled. Default 3 s; above
    /// `interval`.
    pub stall_after: Duration,
}

impl Default for DetectorConfig {
    fn default() -> DetectorConfig {
        DetectorConfig {
            interval: Duration::from_secs(1),
            threshold: 3.8,
            stall_after: Duration::from_secs(3),
        }
    }
}

/// Why a peer is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its heartbeats stay away.
    Silent,
    /// It refused a connection.
    Refused,
    /// It left calls unanswered.
    Unanswered,
}

/// What a peer is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// To be asked.
    Up,
    /// To be left out where there is a choice.
    Down(Reason),
    /// It is heard again and sits out its penalty: left out like one that is down.
    Damped,
}

impl View {
    /// Whether it is to be asked.
    pub fn is_up(self) -> bool {
        self == View::Up
    }
}

#[derive(Debug, Clone)]
struct Peer {
    last: Mono,
    intervals: VecDeque<Duration>,
    sum: Duration,
    down: Option<Reason>,
    unanswered: u32,
    /// Until when silence is counted in `unanswered`.
    counted: Mono,
    falls: VecDeque<Mono>,
    /// Down or damped until then, whatever is heard.
    until: Mono,
}

impl Peer {
    fn new(now: Mono) -> Peer {
        Peer {
            last: now,
            intervals: VecDeque::new(),
            sum: Duration::ZERO,
            down: None,
            unanswered: 0,
            counted: now,
            falls: VecDeque::new(),
            until: now,
        }
    }

    /// Mean interval, with one of the configured length thrown in: few samples prove little.
    fn mean(&self, interval: Duration) -> Duration {
        let count = u32::try_from(self.intervals.len()).expect("at most WINDOW");
        ((self.sum + interval) / (count + 1)).max(interval / 2)
    }

    fn phi(&self, now: Mono, interval: Duration) -> f64 {
        let mean = self.mean(interval).as_secs_f64();
        now.since(self.last).as_secs_f64() / (mean * std::f64::consts::LN_10)
    }

    fn fall(&mut self, now: Mono, reason: Reason, interval: Duration) {
        if self.down.replace(reason).is_some() {
            return;
        }
        while self.falls.front().is_some_and(|fall| now.since(*fall) > FALLS_WITHIN) {
            self.falls.pop_front();
        }
        let before = u32::try_from(self.falls.len()).expect("at most FALLS_MAX");
        // One that does not answer must not come back with its next heartbeat.
        let least = u32::from(reason == Reason::Unanswered) * GRACE_INTERVALS;
        let damping = if before == 0 { 0 } else { 1 << (before - 1).min(PENALTY_BITS_MAX) };
        self.until = now + interval * least.max(damping);
        self.falls.push_back(now);
        if self.falls.len() > FALLS_MAX {
            self.falls.pop_front();
        }
    }

    fn view(&self, now: Mono) -> View {
        match self.down {
            Some(reason) => View::Down(reason),
            None if now < self.until => View::Damped,
            None => View::Up,
        }
    }
}

/// One node's view of its peers.
#[derive(Debug, Clone)]
pub struct Detector {
    config: DetectorConfig,
    peers: BTreeMap<NodeId, Peer>,
    ticked: Mono,
    /// No accusations before.
    grace: Mono,
}

impl Detector {
    /// Knows nobody yet.
    pub fn new(config: DetectorConfig, now: Mono) -> Detector {
        Detector { config, peers: BTreeMap::new(), ticked: now, grace: now }
    }

    /// Goes by these peers from now on. New ones are up, and have from now on to be heard.
    pub fn set_peers(&mut self, now: Mono, peers: impl IntoIterator<Item = NodeId>) {
        let mut old = std::mem::take(&mut self.peers);
        self.peers =
            peers.into_iter().map(|id| (id, old.remove(&id).unwrap_or_else(|| Peer::new(now)))).collect();
    }

    /// A heartbeat of a peer that was not heard before came, from itself or through others.
    pub fn heartbeat(&mut self, now: Mono, node: NodeId) {
        let interval = self.config.interval;
        // What was counted as silence is no sample of how heartbeats come.
        let longest = interval.mul_f64(self.config.threshold * std::f64::consts::LN_10);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let since = now.since(peer.last).min(longest);
        peer.last = now;
        peer.sum += since;
        peer.intervals.push_back(since);
        if peer.intervals.len() > WINDOW
            && let Some(first) = peer.intervals.pop_front()
        {
            peer.sum -= first;
        }
        let gray = peer.down == Some(Reason::Unanswered) && now < peer.until;
        if !gray {
            peer.down = None;
            peer.unanswered = 0;
        }
    }

    /// A call to a peer was answered.
    pub fn answered(&mut self, now: Mono, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.unanswered = 0;
            if peer.down == Some(Reason::Unanswered) {
                peer.down = None;
                peer.until = peer.until.min(now);
            }
        }
    }

    /// Whether this node seems to have been stalled, though no tick has told so yet: calls whose time was up meanwhile may come
    /// before the timer.
    fn is_late(&self, now: Mono) -> bool {
        now.since(self.ticked) > self.config.stall_after
    }

    /// A peer refused a connection.
    pub fn refused(&mut self, now: Mono, node: NodeId) {
        if self.is_late(now) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.fall(now, Reason::Refused, self.config.interval);
        }
    }

    /// A call to a peer was not answered in its time.
    pub fn timed_out(&mut self, now: Mono, node: NodeId) {
        if now < self.grace || self.is_late(now) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.unanswered = peer.unanswered.saturating_add(1);
            if peer.unanswered >= TIMEOUTS_MAX {
                peer.fall(now, Reason::Unanswered, self.config.interval);
            }
        }
    }

    /// A call to a peer was given up; nothing at all has come from it, though it was asked, since `since`.
    pub fn silent(&mut self, now: Mono, node: NodeId, since: Mono) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if now.since(since.max(peer.counted)) >= SILENCE_MIN {
            peer.counted = now;
            self.timed_out(now, node);
        }
    }

    /// Looks at everybody's silence; to be called once an interval. True when it finds that this node was stalled.
    pub fn tick(&mut self, now: Mono) -> bool {
        let gap = now.since(self.ticked);
        self.ticked = now;
        let stalled = gap > self.config.stall_after;
        if stalled {
            self.grace = now + self.config.interval * GRACE_INTERVALS;
            for peer in self.peers.values_mut() {
                // Never later than now: a heartbeat may have been taken in just before.
                peer.last = (peer.last + gap).min(now);
            }
        }
        if now < self.grace {
            return stalled;
        }
        let DetectorConfig { interval, threshold, .. } = self.config;
        for peer in self.peers.values_mut() {
            if peer.phi(now, interval) >= threshold {
                peer.fall(now, Reason::Silent, interval);
            }
        }
        stalled
    }

    /// What a peer is taken for. One that is not known is down.
    pub fn view(&self, now: Mono, node: NodeId) -> View {
        self.peers.get(&node).map_or(View::Down(Reason::Silent), |peer| peer.view(now))
    }

    /// The suspicion of a peer at a moment; zero for one that is not known.
    pub fn phi(&self, now: Mono, node: NodeId) -> f64 {
        self.peers.get(&node).map_or(0.0, |peer| peer.phi(now, self.config.interval))
    }

    /// When a peer was last heard, for those that are known.
    pub fn last_heard(&self, node: NodeId) -> Option<Mono> {
        self.peers.get(&node).map(|peer| peer.last)
    }

    /// All peers with what they are taken for, in order.
    pub fn views(&self, now: Mono) -> impl Iterator<Item = (NodeId, View)> + '_ {
        self.peers.iter().map(move |(id, peer)| (*id, peer.view(now)))
    }
}

#[cfg(test)]
mod tests;
