//! Connections to nodes: a few to each, opened when needed, again after they broke.
//!
//! ```text
//!   operation ──▶ least busy connection of the node ──▶ many requests in flight, answers in any order
//!                    └─ all busy, and fewer than the most allowed: one more is opened
//! ```
//! A node that cannot be reached is left alone for a while: 100 ms, doubling to 3 s, each shortened by up to half
//! at random so that the clients of a node that comes back do not all come at once. One dial at a time to each
//! node; who needs the first connection waits for it, everybody else goes on with those that stand.
//!
//! A node that has left a request unanswered, refused one for now, or could not say what became of a write, is *in doubt*
//! for a second: it may be paused, busy or cut off from the others, and still takes connections. Others are asked first.
//! Without that whoever makes an unknown write again comes to the same node, and finds out nothing until it is well. After that
//! second one request finds out how it is; the others go past it for another second, unless it has answered.
//!
//! The first node that answers says which cluster the client is for, unless its configuration did. From then on a node of
//! another one, as may come up at an address that was given to somebody else, is left alone like one that is down; nothing
//! is ever sent to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::Mutex as AsyncMutex;

use super::ClientError;
use super::error::other_cluster;
use super::routes::Addr;
use crate::io::{Clock, Net};
use crate::net::codec::CodecError;
use crate::net::envelope::{Frame, FrameHead};
use crate::net::link::{CallError, Link, OpenError, hello};
use crate::net::message::{RefusalCode, Spoken};
use crate::types::{ClusterId, Mono, TraceId};

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(3);
/// For so long others are asked before a node that is in doubt. Then one request finds out how it is.
const DOUBT: Duration = Duration::from_secs(1);
/// A request that had less time than this and was not answered says nothing of the node.
const SILENCE_MIN: Duration = Duration::from_millis(20);
/// Longest time for opening a connection; an operation with less time left gives up earlier.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// A connection with this many requests in flight is busy. Half of what a node reads from one at once.
const BUSY: usize = 128;

/// Why an exchange brought no frame.
#[derive(Debug)]
pub(super) enum Failed {
    /// The request cannot be said in the version that the node speaks.
    Unspeakable(String),
    /// Not a byte left.
    NotSent(String),
    /// The same, because a node of another cluster is there.
    OtherCluster(String),
    /// It may have been carried out.
    NoAnswer(String),
}

struct Down {
    until: Mono,
    back_off: Duration,
    why: Unopened,
}

/// Why no connection could be opened.
#[derive(Clone)]
struct Unopened {
    reason: String,
    /// A node of another cluster is there.
    is_other_cluster: bool,
}

impl From<Unopened> for Failed {
    fn from(why: Unopened) -> Failed {
        let Unopened { reason, is_other_cluster } = why;
        if is_other_cluster { Failed::OtherCluster(reason) } else { Failed::NotSent(reason) }
    }
}

struct Connection {
    link: Link,
    in_flight: AtomicUsize,
}

#[derive(Default)]
struct State {
    connections: Vec<Arc<Connection>>,
    down: Option<Down>,
    /// The node is in doubt, and nobody is to find out how it is until then.
    doubted_until: Option<Mono>,
}

/// One node.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    opening: AsyncMutex<()>,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request on its connection while it lasts.
struct Counted(Arc<Connection>);

impl Counted {
    fn new(connection: Arc<Connection>) -> Counted {
        connection.in_flight.fetch_add(1, Ordering::SeqCst);
        Counted(connection)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) struct Pool {
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    connections_per_node: usize,
    spoken: Spoken,
    /// Set by the first node that answers; from then on no node of another cluster is talked to.
    cluster: Mutex<Option<ClusterId>>,
    rng: Mutex<ChaCha8Rng>,
    traces: Mutex<ChaCha8Rng>,
    slots: Mutex<BTreeMap<Addr, Arc<Slot>>>,
}

impl Pool {
    pub(super) fn new(
        net: Arc<dyn Net>,
        clock: Arc<dyn Clock>,
        seed: [u8; 32],
        config: &super::ClientConfig,
    ) -> Pool {
        // A stream of its own: whether ids are asked for moves no name of a write, and no pause.
        let mut traces = ChaCha8Rng::from_seed(seed);
        traces.set_stream(1);
        Pool {
            net,
            clock,
            connections_per_node: config.connections_per_node.max(1),
            spoken: config.spoken,
            cluster: Mutex::new(config.cluster),
            rng: Mutex::new(ChaCha8Rng::from_seed(seed)),
            traces: Mutex::new(traces),
            slots: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> Mono {
        Mono::from_origin(self.clock.mono())
    }

    pub(super) async fn sleep_until(&self, moment: Mono) {
        self.clock.sleep_until(moment.since_origin()).await;
    }

    /// 128 random bits.
    pub(super) fn bits(&self) -> u128 {
        let mut bits = [0; 16];
        self.rng().fill_bytes(&mut bits);
        u128::from_le_bytes(bits)
    }

    /// `pause`, shortened by up to half.
    pub(super) fn jittered(&self, pause: Duration) -> Duration {
        pause.mul_f64(self.rng().random_range(0.5..=1.0))
    }

    /// A name for an operation that was given none, by which the logs of all nodes know it.
    pub(super) fn trace_id(&self) -> TraceId {
        let mut id = [0; 16];
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut id);
        TraceId(id)
    }

    fn rng(&self) -> MutexGuard<'_, ChaCha8Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster(&self) -> MutexGuard<'_, Option<ClusterId>> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<Addr, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, addr: &Addr) -> Arc<Slot> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(addr) {
            return slot.clone();
        }
        slots.entry(addr.clone()).or_default().clone()
    }

    /// Forgets nodes at other addresses than these. What is in flight with them goes on.
    pub(super) fn keep(&self, addrs: &[Addr]) {
        self.slots().retain(|addr, _| addrs.contains(addr));
    }

    /// The first of `candidates` that is neither to be avoided nor being left alone; when all those are in doubt, that for
    /// which the doubt is oldest.
    pub(super) fn pick<'a>(&self, candidates: &'a [Addr], avoid: &[Addr]) -> Option<&'a Addr> {
        let now = self.now();
        let slots = self.slots();
        let mut doubted: Option<(Mono, &Addr)> = None;
        for addr in candidates.iter().filter(|addr| !avoid.contains(addr)) {
            let Some(slot) = slots.get(addr) else { return Some(addr) };
            let mut state = slot.state();
            if state.down.as_ref().is_some_and(|down| now < down.until) {
                continue;
            }
            match state.doubted_until {
                None => return Some(addr),
                Some(until) if until <= now => {
                    state.doubted_until = Some(now + DOUBT);
                    return Some(addr);
                }
                Some(until) if doubted.is_none_or(|(oldest, _)| until < oldest) => {
                    doubted = Some((until, addr));
                }
                Some(_) => {}
            }
        }
        doubted.map(|(_, addr)| addr)
    }

    /// Asks others before this node for a while: it says nothing, or nothing that helps.
    pub(super) fn doubt(&self, addr: &Addr) {
        self.slot(addr).state().doubted_until = Some(self.now() + DOUBT);
    }

    /// Why the candidates that are left alone are. Waiting helps, unless each of them belongs to another cluster.
    pub(super) fn unreached(&self, candidates: &[Addr]) -> Option<ClientError> {
        let slots = self.slots();
        let why = |addr: &Addr| Some(slots.get(addr)?.state().down.as_ref()?.why.clone());
        let whys: Vec<Unopened> = candidates.iter().filter_map(why).collect();
        if whys.is_empty() {
            return None;
        }
        let all_others = whys.len() == candidates.len() && whys.iter().all(|why| why.is_other_cluster);
        let reasons = whys.into_iter().map(|why| why.reason).collect::<Vec<_>>().join("; ");
        Some(if all_others { other_cluster(&reasons) } else { ClientError::Unreachable(reasons) })
    }

    /// Sends what `request` makes for the connection's version and waits for the frame that answers it, until
    /// `deadline` at the latest.
    pub(super) async fn exchange(
        &self,
        addr: &Addr,
        request: impl Fn(FrameHead) -> Result<Frame, CodecError>,
        head: FrameHead,
        deadline: Mono,
    ) -> Result<Frame, Failed> {
        let slot = self.slot(addr);
        let connection = self.connection(&slot, addr, deadline).await?;
        let link = &connection.0.link;
        let head = FrameHead { version: link.welcome().version, ..head };
        let frame = request(head).map_err(|error| Failed::Unspeakable(error.to_string()))?;
        let (received, asked) = (link.received(), self.now());
        let answer = link.exchange(self.clock.as_ref(), frame, deadline).await;
        let (failed, dead) = match answer {
            Ok(frame) => {
                slot.state().doubted_until = None;
                return Ok(frame);
            }
            Err(CallError::NotSent(reason)) => {
                (Failed::NotSent(format!("{addr}: {reason}")), link.is_broken())
            }
            // Nothing at all came while we waited: the connection may be cut without knowing it.
            Err(error) => {
                let dead = link.is_broken() || link.received() == received;
                if link.is_broken() || self.now().since(asked) >= SILENCE_MIN {
                    self.doubt(addr);
                }
                (Failed::NoAnswer(format!("{addr}: {error}")), dead)
            }
        };
        if dead {
            let mut state = slot.state();
            state.connections.retain(|standing| !Arc::ptr_eq(standing, &connection.0));
        }
        Err(failed)
    }

    async fn connection(&self, slot: &Slot, addr: &Addr, deadline: Mono) -> Result<Counted, Failed> {
        loop {
            if let Some(standing) = standing(slot) {
                let busy = standing.in_flight.load(Ordering::SeqCst) >= BUSY;
                if !busy || slot.state().connections.len() >= self.connections_per_node {
                    return Ok(Counted::new(standing));
                }
                // Another is being opened already, or cannot be: this request goes on with what there is.
                let Ok(_opening) = slot.opening.try_lock() else { return Ok(Counted::new(standing)) };
                let opened = self.open(slot, addr, deadline).await;
                return Ok(Counted::new(opened.unwrap_or(standing)));
            }
            let opening = slot.opening.lock().await;
            if standing(slot).is_some() {
                // Whoever had the lock before has opened one. So many may have waited for it that it is busy by now.
                drop(opening);
                continue;
            }
            let now = self.now();
            if let Some(down) = slot.state().down.as_ref().filter(|down| now < down.until) {
                return Err(down.why.clone().into());
            }
            let opened = self.open(slot, addr, deadline).await;
            return opened.map(Counted::new).map_err(|why| {
                self.leave_alone(slot, why.clone());
                why.into()
            });
        }
    }

    async fn open(&self, slot: &Slot, addr: &Addr, deadline: Mono) -> Result<Arc<Connection>, Unopened> {
        let now = self.now();
        // Time for another node must be left.
        let limit = now + OPEN_MAX.min(deadline.since(now) / 2);
        let hello = hello(self.spoken, *self.cluster(), None);
        let opened = Link::open(self.net.as_ref(), &self.clock, addr, &hello, limit).await;
        let link = opened.map_err(|error| {
            let is_other_cluster = match &error {
                OpenError::OtherCluster { .. } => true,
                OpenError::Refused { refusal, .. } => refusal.code == RefusalCode::WrongCluster,
                _ => false,
            };
            Unopened { reason: error.to_string(), is_other_cluster }
        })?;
        // Two first connections at once may lead to two clusters: neither hello named one. The first to be here counts.
        let theirs = link.welcome().cluster;
        if *self.cluster().get_or_insert(theirs) != theirs {
            let reason = format!("{addr} belongs to cluster {theirs}");
            return Err(Unopened { reason, is_other_cluster: true });
        }
        let connection = Arc::new(Connection { link, in_flight: AtomicUsize::new(0) });
        let mut state = slot.state();
        state.connections.push(connection.clone());
        state.down = None;
        Ok(connection)
    }

    /// Leaves a node alone for a while.
    fn leave_alone(&self, slot: &Slot, why: Unopened) {
        let now = self.now();
        let mut state = slot.state();
        let longer = |down: &Down| (down.back_off * 2).min(BACK_OFF_MAX);
        let back_off = state.down.as_ref().map_or(BACK_OFF_MIN, longer);
        let until = now + self.jittered(back_off);
        state.down = Some(Down { until, back_off, why });
    }
}

/// The least busy connection that stands.
fn standing(slot: &Slot) -> Option<Arc<Connection>> {
    let mut state = slot.state();
    state.connections.retain(|connection| !connection.link.is_broken());
    let least = state.connections.iter().min_by_key(|connection| connection.in_flight.load(Ordering::SeqCst));
    least.cloned()
}
