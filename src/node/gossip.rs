//! Who is up, as this node sees it: heartbeats by gossip, and what traffic shows (Dynamo §4.8.2, §4.8.3).
//!
//! Once an interval a node counts its own heartbeat up and exchanges all that it has heard with a few others, chosen at
//! random, the silent ones among them. News of a node is a heartbeat of it to the failure detector; calls that are answered or
//! not tell it the rest. The view routes requests, handoff and comparisons. It never changes who owns what.
//!
//! A node that learns so that another process lives under its id, a copy of its directory, and is the lower one of the two,
//! stops: see [`membership`](crate::dynamo::membership). What it was doing it ends, as when it is told to stop.
//!
//! A node that wakes from a pause first takes what has come in before it accuses anybody: the detector notices the gap by
//! the lateness of this task.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use tokio::select;

use super::metrics::Door;
use super::{Inner, Node, Request, lock};
use crate::dynamo::detector::{SILENCE_MIN, View};
use crate::dynamo::membership::{Heard, Heartbeat};
use crate::dynamo::preference::{PreferenceList, Role};
use crate::dynamo::quorum::Tally;
use crate::net::link::CallError;
use crate::net::message::{Gossip, GossipReply, PeerState, PeerView};
use crate::types::{Mono, NodeId, TraceId};

/// Others that a node talks to each interval.
const FAN_OUT: usize = 3;
/// Calls that may be under way.
const UNDER_WAY_MAX: usize = 4 * FAN_OUT;
/// Time for a call, and for opening the connection before it.
const PATIENCE: Duration = Duration::from_secs(2);

impl Node {
    /// What this node takes the others for, in order.
    pub fn views(&self) -> Vec<PeerView> {
        let inner = &self.inner;
        let now = inner.now();
        let unreachable = inner.peers.down();
        let detector = lock(&inner.detector);
        let view = |(node, view): (NodeId, View)| {
            let state = match view {
                _ if unreachable.contains(&node) => PeerState::Unreachable,
                View::Up => PeerState::Up,
                View::Down(reason) => PeerState::Down(reason.into()),
                View::Damped => PeerState::Damped,
            };
            let heard = detector.last_heard(node).map_or(Duration::MAX, |heard| now.since(heard));
            // It saturates, and is never negative.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let phi_thousandths = (detector.phi(now, node) * 1000.0) as u32;
            let heard_ms_ago = u64::try_from(heard.as_millis()).unwrap_or(u64::MAX);
            PeerView { node, state, phi_thousandths, heard_ms_ago }
        };
        detector.views(now).map(view).collect()
    }
}

impl Inner {
    /// The nodes that are left out where there is a choice, in order: not reachable, or taken for down.
    pub(crate) fn down(&self) -> Vec<NodeId> {
        let mut down = self.peers.down();
        let now = self.now();
        let detector = lock(&self.detector);
        down.extend(detector.views(now).filter(|(_, view)| !view.is_up()).map(|(node, _)| node));
        drop(detector);
        down.sort_unstable();
        down.dedup();
        down
    }

    /// Makes sure of who is there, if `need` of these candidates are not without nodes that could not be reached when they were last
    /// dialled: those are dialled anew and waited for, as long as a silent primary would be. They may have started since; and of
    /// those that have not, an operation that cannot do without them knows before it begins.
    pub(super) async fn reach(&self, list: &PreferenceList, need: usize, strict: bool, deadline: Mono) {
        let unreached = self.peers.unreached();
        if unreached.is_empty() {
            return;
        }
        let mut tally = Tally::new(&list.layouts, need);
        for candidate in list.candidates.iter().filter(|candidate| !unreached.contains(&candidate.node)) {
            match (candidate.role, strict) {
                (Role::Primary, true) => tally.count_primary(candidate.node),
                (Role::Fallback, true) => {}
                (_, false) => tally.count_anywhere(candidate.node),
            }
        }
        if !tally.is_met() {
            let candidates = list.candidates.iter().map(|candidate| candidate.node);
            self.dial(candidates, deadline).await;
        }
    }

    /// Dials those of these nodes anew that could not be reached, and waits for them as long as for a silent primary.
    pub(super) async fn dial(&self, nodes: impl Iterator<Item = NodeId>, deadline: Mono) {
        let now = self.now();
        let limit = now + self.config.hint_after.min(deadline.since(now) / 2);
        let nodes = nodes.filter(|node| *node != self.id);
        self.peers.reach(nodes.filter_map(|node| Some((node, self.peer_addr(node)?))), limit).await;
    }

    /// Tells the detector who has refused a connection: the links forget it with the next one that is taken, and a process that
    /// ends again and again would be asked again each time at once.
    fn heed_refusals(&self, now: Mono) {
        for node in self.peers.take_refused() {
            lock(&self.detector).refused(now, node);
        }
    }

    /// Takes note of how a call went.
    pub(super) fn heard_back<A>(&self, node: NodeId, asked: Mono, answer: &Result<A, CallError>) {
        let now = self.now();
        self.heed_refusals(now);
        match answer {
            Ok(_) | Err(CallError::Refused(_)) => lock(&self.detector).answered(now, node),
            Err(CallError::MaybeDelivered(_)) if now.since(asked) >= SILENCE_MIN => {
                lock(&self.detector).timed_out(now, node);
            }
            // Alone it says nothing of the peer: what others say that were not answered either, does.
            Err(_) => {
                if let Some(since) = self.peers.silent_since(node) {
                    lock(&self.detector).silent(now, node, since);
                }
            }
        }
    }

    /// Beats and gossips, round by round.
    pub(super) async fn gossip(&self) -> Infallible {
        // A round does not wait for the calls of the one before: one to a silent node takes long.
        let mut under_way = FuturesUnordered::new();
        let interval = self.config.detector.interval;
        // Who has just started says so at once, and to many: others take it for down and could need it.
        let mut is_first = true;
        let mut told = BTreeMap::new();
        loop {
            let pause = if is_first { 0.0..0.05 } else { 0.8..1.2 };
            let pause = interval.mul_f64(lock(&self.rng).random_range(pause));
            let timer = self.io.clock.sleep_until((self.now() + pause).since_origin());
            tokio::pin!(timer);
            loop {
                select! {
                    biased;
                    () = &mut timer => break,
                    Some(()) = under_way.next() => {}
                }
            }
            let mut others = self.others();
            let now = self.now();
            self.heed_refusals(now);
            {
                let mut detector = lock(&self.detector);
                detector.set_peers(now, others.iter().copied());
                if detector.tick(now) {
                    self.metrics.stalls.one();
                    tracing::warn!(node = %self.id, "this node was stalled: it accuses nobody for a while");
                }
            }
            self.tell_views(now, &mut told);
            let heard = {
                let mut membership = lock(&self.membership);
                membership.set_members(others.iter().copied());
                membership.beat();
                membership.heard()
            };
            others.shuffle(&mut *lock(&self.rng));
            let many = if is_first { UNDER_WAY_MAX } else { FAN_OUT };
            others.truncate(many.min(UNDER_WAY_MAX - under_way.len()));
            is_first = false;
            let deadline = now + interval.max(PATIENCE);
            let request = Request { door: Door::Peer, received: now, deadline, trace_id: TraceId::default() };
            for other in others {
                let gossip = Gossip { heard: heard.clone() };
                under_way.push(async move {
                    let reply: Result<GossipReply, CallError> = self.call(other, &gossip, request).await;
                    if let Ok(GossipReply { newer }) = reply {
                        self.hear(&newer);
                    }
                });
            }
        }
    }

    /// Tells in the log who is taken for something else than at the last look. Once an interval at the most, and damping makes that seldom.
    fn tell_views(&self, now: Mono, told: &mut BTreeMap<NodeId, View>) {
        let detector = lock(&self.detector);
        for (peer, view) in detector.views(now) {
            let before = told.insert(peer, view).unwrap_or(View::Up);
            if before == view {
                continue;
            }
            let phi = detector.phi(now, peer);
            let heard_ms = detector.last_heard(peer).map(|heard| now.since(heard).as_millis());
            match view {
                View::Up => tracing::info!(%peer, "a peer is up again"),
                View::Damped => {
                    tracing::info!(%peer, "a peer is heard again; it was down so often that it is left out for a while");
                }
                View::Down(why) => tracing::warn!(%peer, ?why, phi, heard_ms, "a peer is taken for down"),
            }
        }
    }

    fn hear(&self, heard: &[(NodeId, Heartbeat)]) {
        let Heard { news, is_double } = lock(&self.membership).hear(heard, || lock(&self.rng).next_u32());
        if is_double && !self.is_double.get() {
            tracing::error!(node = %self.id, "another process runs under this id: this one is the lower and stops");
            self.is_double.set(true);
        }
        let now = self.now();
        for node in news {
            lock(&self.detector).heartbeat(now, node);
            if let Some(addr) = self.peer_addr(node) {
                self.peers.try_again(node, &addr);
            }
        }
    }

    /// What another node is answered that tells what it has heard.
    pub(super) fn answer_gossip(&self, gossip: &Gossip) -> GossipReply {
        let newer = lock(&self.membership).newer_than(&gossip.heard);
        self.hear(&gossip.heard);
        self.metrics.gossip.one();
        GossipReply { newer }
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use std::io::{self, ErrorKind};
    use std::sync::Arc;

    use super::super::testing::{open, open_on};
    use super::*;
    use crate::dynamo::detector::Reason;
    use crate::io::{BoxFuture, Listener, Net, Stream};
    use crate::net::message::{AskTransfers, AskTransfersReply};

    /// No process listens anywhere.
    struct Refusing;

    impl Net for Refusing {
        fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
            Box::pin(std::future::pending())
        }
        fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
            Box::pin(async { Err(ErrorKind::ConnectionRefused.into()) })
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_again_and_again_is_left_alone_for_a_while() {
        let node = open_on(Arc::new(Refusing), |_| {}).await;
        let inner = &node.inner;
        let peer = NodeId(2);
        lock(&inner.detector).set_peers(inner.now(), [peer]);
        let view = || lock(&inner.detector).view(inner.now(), peer);
        for returns_as in [View::Up, View::Damped] {
            let asked: Result<AskTransfersReply, _> = inner.call(peer, &AskTransfers, inner.errand()).await;
            assert!(asked.is_err());
            // Nobody waits for the dial of a node that was down; the next call, or tick, hears of it.
            inner.io.clock.sleep_until((inner.now() + Duration::from_millis(20)).since_origin()).await;
            inner.heed_refusals(inner.now());
            assert_eq!(view(), View::Down(Reason::Refused));
            // It has been started again, and is heard of.
            let now = inner.now();
            lock(&inner.detector).heartbeat(now, peer);
            assert_eq!(view(), returns_as);
            inner.io.clock.sleep_until((now + Duration::from_millis(150)).since_origin()).await;
        }
    }

    #[tokio::test]
    async fn the_threshold_that_is_set_reaches_the_detector() {
        let patient = open(|config| config.detector.threshold = 12.0).await;
        let mut detector = lock(&patient.inner.detector);
        let began = patient.inner.now();
        let peer = NodeId(2);
        detector.set_peers(began, [peer]);
        let second = Duration::from_secs(1);
        // A suspicion of 12 is reached after 12 × ln 10 = 27.6 intervals.
        for silent in 1..=27 {
            detector.tick(began + second * silent);
        }
        assert_eq!(detector.view(began + second * 27, peer), View::Up);
        detector.tick(began + second * 28);
        assert_eq!(detector.view(began + second * 28, peer), View::Down(Reason::Silent));
    }
}
