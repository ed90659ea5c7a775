//! One link to each other node, opened when first needed and again after it broke.
//!
//! A node that cannot be reached is *down* for a while (100 ms, doubling to 3 s, less up to a half by chance): calls to it fail at once, and
//! the coordinator goes past it. The first call after that tries again. This local view routes
//! beside the failure detector's; it never changes who owns what.

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

#[derive(Default)]
struct Peer {
    link: Option<Arc<Link>>,
    down: Option<Down>,
}

#[derive(Clone, Copy)]
struct Down {
    until: Mono,
    back_off: Duration,
}

/// What is known of one peer. Who opens its link holds `opening`, so that one dial serves all who wait.
#[derive(Default)]
struct Slot {
    peer: Mutex<Peer>,
    opening: AsyncMutex<()>,
}

impl Slot {
    fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The links of one node to the others.
pub struct Peers {
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    hello: Hello,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
    jitter: Mutex<ChaCha8Rng>,
}

impl Peers {
    /// No link is open yet.
    pub fn new(net: Arc<dyn Net>, clock: Arc<dyn Clock>, hello: Hello, seed: u64) -> Peers {
        let jitter = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        Peers { net, clock, hello, slots: Mutex::new(BTreeMap::new()), jitter }
    }

    fn now(&self) -> Mono {
        Mono::from_origin(self.clock.mono())
    }

    fn slot(&self, node: NodeId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(node).or_default().clone()
    }

    /// The nodes that calls fail to at once, in order.
    pub fn down(&self) -> Vec<NodeId> {
        let now = self.now();
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let is_down = |slot: &Slot| slot.peer().down.is_some_and(|down| now < down.until);
        slots.iter().filter(|(_, slot)| is_down(slot)).map(|(node, _)| *node).collect()
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
        let received = link.received();
        let answer = link.call(self.clock.as_ref(), request, head, deadline).await;
        let dead = match &answer {
            Err(CallError::MaybeDelivered(_)) => link.is_broken() || link.received() == received,
            Err(CallError::NotSent(_)) => link.is_broken(),
            _ => false,
        };
        if dead {
            // Nothing at all came while we waited: open a new link next time rather than trust this one.
            let mut peer = slot.peer();
            if peer.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, &link)) {
                peer.link = None;
            }
        }
        answer
    }

    async fn link(
        &self,
        slot: &Slot,
        node: NodeId,
        addr: &str,
        deadline: Mono,
    ) -> Result<Arc<Link>, CallError> {
        if let Some(link) = self.open_link(slot)? {
            return Ok(link);
        }
        // Whoever opens it may have more time than this call.
        let time_is_up = self.clock.sleep_until(deadline.since_origin());
        let _opening = select! {
            biased;
            opening = slot.opening.lock() => opening,
            () = time_is_up => {
                let message = "the connection to it is still being opened for another call";
                return Err(CallError::NotSent(message.to_owned()));
            }
        };
        if let Some(link) = self.open_link(slot)? {
            return Ok(link);
        }
        let began = self.now();
        let latest = deadline.min(began + OPEN_MAX);
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
        match opened {
            Ok(link) => {
                let link = Arc::new(link);
                peer.link = Some(link.clone());
                if peer.down.take().is_some() {
                    tracing::info!(%node, "reachable again");
                }
                Ok(link)
            }
            // Nothing is known of the node: it was the caller who had no time.
            Err(error @ OpenError::TimedOut { .. }) if deadline < began + OPEN_MAX => {
                Err(CallError::NotSent(error.to_string()))
            }
            Err(error) => {
                let back_off = peer.down.map_or(BACK_OFF_MIN, |down| (down.back_off * 2).min(BACK_OFF_MAX));
                if peer.down.is_none() {
                    tracing::warn!(%node, %error, "not reachable");
                }
                // Spread, so that the nodes that lost one do not all come back to it at the same moment.
                let half = back_off / 2;
                let spread = {
                    let mut jitter = self.jitter.lock().unwrap_or_else(PoisonError::into_inner);
                    half.mul_f64(jitter.random_range(0.0..1.0))
                };
                peer.down = Some(Down { until: now + half + spread, back_off });
                Err(CallError::NotSent(error.to_string()))
            }
        }
    }

    /// The link that stands, none when one must be opened.
    fn open_link(&self, slot: &Slot) -> Result<Option<Arc<Link>>, CallError> {
        let mut peer = slot.peer();
        if peer.link.as_ref().is_some_and(|link| link.is_broken()) {
            peer.link = None;
        }
        if let Some(link) = &peer.link {
            return Ok(Some(link.clone()));
        }
        match peer.down {
            Some(down) if self.now() < down.until => Err(CallError::NotSent("the node is down".to_owned())),
            _ => Ok(None),
        }
    }

    /// Closes every link.
    pub fn close(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use std::io;

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
        // The other one gives up opening after its own limit, with other words.
        let Err(CallError::NotSent(why)) = first else { panic!("{first:?}") };
        assert!(why.contains("still being opened"), "{why}");
    }
}
