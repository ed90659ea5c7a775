//! One link to each other node, opened when first needed and again after it broke.
//!
//! A node that cannot be reached is *down*: calls to it fail at once, and the coordinator goes past it. It is dialled anew by the first
//! call after a while (100 ms, doubling to 3 s, less up to a half by chance), by a heartbeat of it that others pass on, and by an operation
//! that cannot do without it ([`Peers::reach`]), and stays down until it answers. This local view routes beside the failure
//! detector's; it never changes who owns what.
//!
//! A link is opened by a task of its own: callers in a hurry give up waiting for it without giving it up, so it is known of each
//! opening how long it has been without an answer. [`Peers::silent_since`] tells that, and the same of calls over a link on which
//! nothing at all comes: what one call of 40 ms cannot show, many of them do. A dial that is found to be late long after its time says
//! that this process was paused; the peer is dialled anew, and not taken for down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tokio::select;
use tokio::sync::Mutex as AsyncMutex;

use super::envelope::FrameHead;
use super::link::{CallError, Link, OpenError};
use super::message::{Hello, Message};
use crate::io::{Clock, Net};
use crate::types::{Mono, NodeId};

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(3);
/// Longest time for opening a link; a call with less time left gives up earlier.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// A dial that is given up so much after its time was given up by a process that did not run: it says nothing of the peer.
const LATE: Duration = Duration::from_millis(500);
/// So long what the last dial came to stands ([`Peers::reach`]).
const FRESH: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Peer {
    link: Option<Arc<Link>>,
    down: Option<Down>,
    /// Since when it has been asked, or dialled, without anything coming from it.
    silent: Option<Mono>,
}

#[derive(Clone, Copy)]
struct Down {
    until: Mono,
    back_off: Duration,
    /// When it was found out last.
    tried: Mono,
}

/// What is known of one peer. The task that opens its link holds `opening`, so that one dial serves all who wait.
#[derive(Default)]
struct Slot {
    peer: Mutex<Peer>,
    opening: Arc<AsyncMutex<()>>,
}

impl Slot {
    fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody dials it.
    fn is_opening(&self) -> bool {
        self.opening.try_lock().is_err()
    }
}

/// The links of one node to the others.
pub struct Peers {
    dialler: Arc<Dialler>,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
}

/// What opening a link takes.
struct Dialler {
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    hello: Hello,
    jitter: Mutex<ChaCha8Rng>,
    /// Nodes that have refused a dial, until somebody asks.
    refused: Mutex<Vec<NodeId>>,
}

impl Peers {
    /// No link is open yet.
    pub fn new(net: Arc<dyn Net>, clock: Arc<dyn Clock>, hello: Hello, seed: u64) -> Peers {
        let jitter = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        let dialler = Arc::new(Dialler { net, clock, hello, jitter, refused: Mutex::default() });
        Peers { dialler, slots: Mutex::new(BTreeMap::new()) }
    }

    fn now(&self) -> Mono {
        self.dialler.now()
    }

    fn slot(&self, node: NodeId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(node).or_default().clone()
    }

    /// The nodes that calls fail to at once, in order.
    pub fn down(&self) -> Vec<NodeId> {
        let now = self.now();
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let is_down =
            |slot: &Slot| slot.peer().down.is_some_and(|down| now < down.until || slot.is_opening());
        slots.iter().filter(|(_, slot)| is_down(slot)).map(|(node, _)| *node).collect()
    }

    /// The nodes that could not be reached when they were last dialled, in order, be it time to try again or not.
    pub fn unreached(&self) -> Vec<NodeId> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter(|(_, slot)| slot.peer().down.is_some()).map(|(node, _)| *node).collect()
    }

    /// Since when a node has been asked, or dialled, without a word from it; none when it was heard after that, or not asked.
    pub fn silent_since(&self, node: NodeId) -> Option<Mono> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&node).and_then(|slot| slot.peer().silent)
    }

    /// The nodes at which nobody listened when they were dialled since the last call of this, once for each dial. The failure
    /// detector remembers them longer than the next dial that succeeds.
    pub fn take_refused(&self) -> Vec<NodeId> {
        std::mem::take(&mut self.dialler.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests in flight to a node, and bytes that wait to be written to it; zero without a link.
    pub fn load(&self, node: NodeId) -> (usize, usize) {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(&node);
        slot.and_then(|slot| slot.peer().link.as_ref().map(|link| link.load())).unwrap_or_default()
    }

    /// Sends a request to a node at `addr` and waits for its answer, until `deadline` at the latest.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<A: Message>(
        &self,
        node: NodeId,
        addr: &str,
        request: &impl Message,
        head: FrameHead,
        deadline: Mono,
    ) -> Result<A, CallError> {
        let slot = self.slot(node);
        let link = self.link(&slot, node, addr, deadline).await?;
        let (asked, received) = (self.now(), link.received());
        let answer = link.call(self.dialler.clock.as_ref(), request, head, deadline).await;
        let nothing_came = link.received() == received;
        let dead = match &answer {
            Err(CallError::MaybeDelivered(_)) => link.is_broken() || nothing_came,
            Err(CallError::NotSent(_)) => link.is_broken(),
            _ => false,
        };
        let mut peer = slot.peer();
        if !nothing_came {
            peer.silent = None;
        } else if matches!(&answer, Err(CallError::MaybeDelivered(_))) && !link.is_broken() {
            peer.silent.get_or_insert(asked);
        }
        // Nothing at all came while we waited: open a new link next time rather than trust this one.
        if dead && peer.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, &link)) {
            peer.link = None;
        }
        drop(peer);
        answer
    }

    async fn link(
        &self,
        slot: &Arc<Slot>,
        node: NodeId,
        addr: &str,
        deadline: Mono,
    ) -> Result<Arc<Link>, CallError> {
        loop {
            if let Some(link) = self.open_link(slot, slot.is_opening())? {
                return Ok(link);
            }
            let time_is_up = self.dialler.clock.sleep_until(deadline.since_origin());
            let alone = select! {
                biased;
                alone = slot.opening.clone().lock_owned() => alone,
                () = time_is_up => {
                    let message = "the connection to it is still being opened";
                    return Err(CallError::NotSent(message.to_owned()));
                }
            };
            // It may have been opened, or given up, since the look. Who holds the lock and finds neither opens it: callers that
            // waited for one another to do so would wait for ever.
            if let Some(link) = self.open_link(slot, false)? {
                return Ok(link);
            }
            let (dialler, slot, addr) = (self.dialler.clone(), slot.clone(), addr.to_owned());
            tokio::spawn(async move {
                dialler.open(&slot, node, &addr).await;
                drop(alone);
            });
        }
    }

    /// There is news of a node: if it counts as down it is dialled at once, beside all calls. Until it answers it stays down: what
    /// others hear of it says nothing of the way to it.
    pub fn try_again(&self, node: NodeId, addr: &str) {
        let slot = self.slot(node);
        if slot.peer().down.is_some() {
            self.dial(&slot, node, addr);
        }
    }

    /// Dials those of these nodes that count as down, without regard to how long they are to be left alone, and waits until each
    /// has answered or failed, until `limit` at the latest. What was found out a moment ago is not asked again.
    pub async fn reach(&self, nodes: impl IntoIterator<Item = (NodeId, String)>, limit: Mono) {
        let mut dialled = Vec::new();
        for (node, addr) in nodes {
            let slot = self.slot(node);
            let is_known = |down: Down| self.now().since(down.tried) < FRESH;
            if slot.peer().down.is_none_or(is_known) {
                continue;
            }
            self.dial(&slot, node, &addr);
            dialled.push(slot);
        }
        let ended = async {
            for slot in dialled {
                drop(slot.opening.lock().await);
            }
        };
        select! {
            biased;
            () = ended => {}
            () = self.dialler.clock.sleep_until(limit.since_origin()) => {}
        }
    }

    /// Dials a node in a task of its own, unless somebody does so already.
    fn dial(&self, slot: &Arc<Slot>, node: NodeId, addr: &str) {
        let Ok(alone) = slot.opening.clone().try_lock_owned() else { return };
        let (dialler, slot, addr) = (self.dialler.clone(), slot.clone(), addr.to_owned());
        tokio::spawn(async move {
            dialler.open(&slot, node, &addr).await;
            drop(alone);
        });
    }

    /// The link that stands, none when one must be opened.
    fn open_link(&self, slot: &Slot, is_opening: bool) -> Result<Option<Arc<Link>>, CallError> {
        let mut peer = slot.peer();
        if peer.link.as_ref().is_some_and(|link| link.is_broken()) {
            peer.link = None;
        }
        if let Some(link) = &peer.link {
            return Ok(Some(link.clone()));
        }
        match peer.down {
            // Somebody dials it already: nobody waits for a node that was down until it has answered.
            Some(_) if is_opening => Err(CallError::NotSent("the node is down, and dialled anew".to_owned())),
            Some(down) if self.now() < down.until => Err(CallError::NotSent("the node is down".to_owned())),
            _ => Ok(None),
        }
    }

    /// Closes every link.
    pub fn close(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Dialler {
    fn now(&self) -> Mono {
        Mono::from_origin(self.clock.mono())
    }

    /// Opens a link, or takes note that the node cannot be reached.
    async fn open(&self, slot: &Slot, node: NodeId, addr: &str) {
        let began = self.now();
        slot.peer().silent.get_or_insert(began);
        let latest = began + OPEN_MAX;
        let opened = Link::open(self.net.as_ref(), &self.clock, addr, &self.hello, latest).await;
        let opened = opened.and_then(|link| {
            if link.welcome().node == node {
                return Ok(link);
            }
            let reason = format!("it is {}, {node} was expected there", link.welcome().node);
            Err(OpenError::Protocol { addr: addr.to_owned(), reason })
        });
        let now = self.now();
        let mut peer = slot.peer();
        let is_late = matches!(&opened, Err(OpenError::TimedOut { .. })) && now > latest + LATE;
        if is_late || !matches!(&opened, Err(OpenError::TimedOut { .. })) {
            peer.silent = None;
        }
        if is_late {
            return;
        }
        if matches!(&opened, Err(OpenError::Connect { refused: true, .. })) {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(node);
        }
        match opened {
            Ok(link) => {
                peer.link = Some(Arc::new(link));
                if peer.down.take().is_some() {
                    tracing::info!(%node, "reachable again");
                }
            }
            Err(error) => {
                // One that was dialled before its time is left alone no longer for that.
                let longer = |down: Down| match down.until <= began {
                    true => (down.back_off * 2).min(BACK_OFF_MAX),
                    false => down.back_off,
                };
                let back_off = peer.down.map_or(BACK_OFF_MIN, longer);
                if peer.down.is_none() {
                    tracing::warn!(%node, %error, "not reachable");
                }
                // Spread, so that the nodes that lost one do not all come back to it at the same moment.
                let half = back_off / 2;
                let spread = {
                    let mut jitter = self.jitter.lock().unwrap_or_else(PoisonError::into_inner);
                    half.mul_f64(jitter.random_range(0.0..1.0))
                };
                peer.down = Some(Down { until: now + half + spread, back_off, tried: now });
            }
        }
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::io::{BoxFuture, Listener, RealClock, Stream};
    use crate::net::envelope::FrameHead;
    use crate::net::link::hello;
    use crate::net::message::{Ping, Pong, Spoken};

    /// Nobody ever answers.
    struct Silence;

    impl Net for Silence {
        fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
            Box::pin(std::future::pending())
        }
        fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
            Box::pin(std::future::pending())
        }
    }

    /// Refuses the first connection, and leaves the others open. How many there were.
    #[derive(Default)]
    struct Refusal(AtomicUsize);

    impl Net for Refusal {
        fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
            Box::pin(std::future::pending())
        }
        fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }),
                _ => Box::pin(std::future::pending()),
            }
        }
    }

    #[tokio::test]
    async fn news_of_a_node_that_is_down_have_it_dialled_once_beside_the_calls() {
        let (net, clock) = (Arc::new(Refusal::default()), Arc::new(RealClock::new()));
        let hello = hello(Spoken::default(), None, None);
        let peers = Peers::new(net.clone(), clock.clone(), hello, 1);
        let dialled = async || {
            tokio::task::yield_now().await;
            net.0.load(Ordering::SeqCst)
        };
        peers.try_again(NodeId(2), "n2:1");
        assert_eq!(dialled().await, 0, "nobody has found it down");
        let call = async || {
            let deadline = Mono::from_origin(clock.mono()) + Duration::from_secs(1);
            peers.call::<Pong>(NodeId(2), "n2:1", &Ping, FrameHead::default(), deadline).await
        };
        assert!(call().await.is_err());
        assert_eq!(dialled().await, 1);
        for _ in 0..3 {
            peers.try_again(NodeId(2), "n2:1");
            assert_eq!(dialled().await, 2, "one is under way");
        }
        assert_eq!(peers.down(), [NodeId(2)], "however long it takes");
        let Err(CallError::NotSent(why)) = call().await else { panic!("nobody has answered") };
        assert!(why.starts_with("the node is down"), "{why}");
    }

    #[tokio::test]
    async fn who_cannot_do_without_a_node_that_is_down_has_it_dialled_and_waits_for_the_outcome() {
        let (net, clock) = (Arc::new(Refusal::default()), Arc::new(RealClock::new()));
        let peers = Peers::new(net.clone(), clock.clone(), hello(Spoken::default(), None, None), 1);
        let reach = async |within: Duration| {
            let limit = Mono::from_origin(clock.mono()) + within;
            peers.reach([(NodeId(2), "n2:1".to_owned())], limit).await;
            net.0.load(Ordering::SeqCst)
        };
        assert_eq!(reach(Duration::from_secs(60)).await, 0, "nobody has found it down");
        let deadline = Mono::from_origin(clock.mono()) + Duration::from_secs(60);
        let call = peers.call::<Pong>(NodeId(2), "n2:1", &Ping, FrameHead::default(), deadline);
        assert!(call.await.is_err());
        assert_eq!(peers.unreached(), [NodeId(2)]);
        clock.sleep_until(clock.mono() + FRESH).await;
        // Well before its back-off is over. The second dial never ends, and nobody waits longer than asked for.
        assert_eq!(reach(Duration::from_millis(1)).await, 2);
        assert_eq!(reach(Duration::from_millis(1)).await, 2, "one dial at a time");
        assert_eq!(peers.down(), [NodeId(2)]);
    }

    #[tokio::test]
    async fn a_call_in_a_hurry_does_not_wait_for_one_that_has_time() {
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let peers = Peers::new(Arc::new(Silence), clock.clone(), hello(Spoken::default(), None, None), 1);
        let now = || Mono::from_origin(clock.mono());
        let call = |time| {
            let deadline = now() + time;
            peers.call::<Pong>(NodeId(2), "silence:1", &Ping, FrameHead::default(), deadline)
        };
        let patient = call(Duration::from_secs(60));
        let hurried = async {
            tokio::task::yield_now().await;
            call(Duration::from_millis(50)).await
        };
        let first = select! {
            biased;
            patient = patient => patient,
            hurried = hurried => hurried,
        };
        // The other one hears that the node is down once opening has taken too long.
        let Err(CallError::NotSent(why)) = first else { panic!("{first:?}") };
        assert!(why.contains("still being opened"), "{why}");
    }

    #[tokio::test]
    async fn calls_in_a_hurry_leave_an_opening_alone_and_show_how_long_it_takes() {
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let peers = Peers::new(Arc::new(Silence), clock.clone(), hello(Spoken::default(), None, None), 1);
        let now = || Mono::from_origin(clock.mono());
        assert_eq!(peers.silent_since(NodeId(2)), None, "nobody has asked it");
        let began = now();
        for _ in 0..5 {
            let deadline = now() + Duration::from_millis(20);
            let call = peers.call::<Pong>(NodeId(2), "silence:1", &Ping, FrameHead::default(), deadline);
            assert!(matches!(call.await, Err(CallError::NotSent(_))));
        }
        let since = peers.silent_since(NodeId(2)).unwrap();
        assert!((began..began + Duration::from_millis(20)).contains(&since), "since the first of them");
        assert_eq!(peers.down(), [], "two seconds are its time");
        clock.sleep_until((since + OPEN_MAX + BACK_OFF_MIN / 4).since_origin()).await;
        assert_eq!(peers.down(), [NodeId(2)], "though nobody has waited so long");
    }

    /// The real clock, and a pause of the whole process.
    struct Paused(RealClock, AtomicUsize);

    impl Clock for Paused {
        fn mono(&self) -> Duration {
            self.0.mono() + Duration::from_secs(self.1.load(Ordering::SeqCst) as u64)
        }
        fn wall(&self) -> Duration {
            self.0.wall()
        }
        fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
            self.0.sleep_until(
                deadline.saturating_sub(Duration::from_secs(self.1.load(Ordering::SeqCst) as u64)),
            )
        }
    }

    #[tokio::test]
    async fn a_dial_that_a_pause_has_cut_short_says_nothing_of_the_peer() {
        let clock = Arc::new(Paused(RealClock::new(), AtomicUsize::new(0)));
        let peers = Peers::new(Arc::new(Silence), clock.clone(), hello(Spoken::default(), None, None), 1);
        let began = clock.mono();
        let deadline = Mono::from_origin(began + Duration::from_millis(50));
        let call = peers.call::<Pong>(NodeId(2), "silence:1", &Ping, FrameHead::default(), deadline);
        assert!(matches!(call.await, Err(CallError::NotSent(_))));
        clock.1.store(20, Ordering::SeqCst);
        clock.0.sleep_until(began + OPEN_MAX + LATE).await;
        assert_eq!(peers.down(), []);
        assert_eq!(peers.silent_since(NodeId(2)), None);
    }
}
