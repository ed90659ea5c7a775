//! One connection from the asking side: shaken hands over, then many requests in flight, answers in any order.
//!
//! What a caller must know after a failure is whether the request may have reached the other side, because a
//! put must never be sent twice once it may have (DESIGN §5). So [`CallError`] keeps *not sent* apart from
//! *maybe delivered*. From the moment a frame enters the queue of the writing task it counts as maybe delivered.
//!
//! A link never redials; when it breaks, everything in flight fails and the owner opens another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::sync::oneshot;

use super::budget::Budget;
use super::envelope::{FRAME_LEN_MAX, Frame, FrameHead};
use super::frame::{Closed, FrameReader, Incoming, Outgoing, ReadLimits, queue, write_frames};
use super::message::{AuthMethod, HANDSHAKE_VERSION, Hello, MAGIC, Message, Refusal, Spoken, Welcome};
use super::parts::{Joined, Joiner, Whole, split};
use crate::io::{Clock, Net, Stream};
use crate::types::{ClusterId, Mono, NodeId, RequestId};

/// Frames that wait for the writing task.
const QUEUE_LEN: usize = 128;
/// Requests in flight on one link.
const IN_FLIGHT_MAX: usize = 4096;
/// A connection that takes no byte for this long is given up.
const STALL_AFTER: Duration = Duration::from_secs(20);
/// Bytes of requests that may wait for a peer that does not read; more ends the link.
const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of answers in parts that may be held before they are whole; an answer above that is given up.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Most bytes of the frames of a handshake.
pub const HANDSHAKE_LEN_MAX: usize = 16 * 1024;

/// Why a link could not be opened. Nothing was asked for yet; another node, or a later moment, may do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection, or it broke during the handshake.
    #[error("cannot connect to {addr}: {reason}")]
    Connect {
        /// Where to.
        addr: String,
        /// The system's words.
        reason: String,
        /// Whether nobody listens there: the host answers, the process does not run.
        refused: bool,
    },
    /// No answer in time.
    #[error("{addr} does not answer")]
    TimedOut {
        /// Where to.
        addr: String,
    },
    /// The other side said no.
    #[error("{addr} refuses the connection: {}", refusal.message)]
    Refused {
        /// Where to.
        addr: String,
        /// What it said.
        refusal: Refusal,
    },
    /// A node of another cluster listens there.
    #[error("{addr} belongs to cluster {cluster}")]
    OtherCluster {
        /// Where to.
        addr: String,
        /// The cluster.
        cluster: ClusterId,
    },
    /// Something else listens there, or it is damaged.
    #[error("{addr} does not speak this protocol: {reason}")]
    Protocol {
        /// Where to.
        addr: String,
        /// What was wrong.
        reason: String,
    },
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request never left: it may be sent again, anywhere.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request may have been carried out.
    #[error("no answer: {0}")]
    MaybeDelivered(String),
    /// The other side refused: it was not carried out.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

type Writer = Box<dyn AsyncWrite + Send + Unpin>;
type Waiting = BTreeMap<u64, oneshot::Sender<Frame>>;

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    broken: AtomicBool,
    /// Frames that came in: a link that brings answers is alive, however slow one call is.
    received: AtomicU64,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails everything in flight, and everything that is asked later.
    fn fail(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.waiting().clear();
    }
}

/// The asking side of one connection. Dropping it closes the connection.
pub struct Link {
    outgoing: Outgoing,
    shared: Arc<Shared>,
    request_next: AtomicU64,
    welcome: Welcome,
    /// Dropped with the link, which ends its reading task.
    _closing: oneshot::Sender<()>,
}

/// Takes a request out of the waiting list when its caller goes away.
struct InFlight<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.id);
    }
}

/// The greeting of a node, or of a client when `node` is none.
pub fn hello(spoken: Spoken, cluster: Option<ClusterId>, node: Option<NodeId>) -> Hello {
    Hello {
        magic: MAGIC,
        version_min: spoken.version_min,
        version_max: spoken.version_max,
        features: spoken.features,
        auth: vec![AuthMethod::None],
        cluster,
        node,
    }
}

impl Link {
    /// Connects to `addr` and shakes hands, until `deadline` at the latest.
    ///
    /// # Errors
    /// When there is no connection, or the other side refuses it.
    pub async fn open(
        net: &dyn Net,
        clock: &Arc<dyn Clock>,
        addr: &str,
        hello: &Hello,
        deadline: Mono,
    ) -> Result<Link, OpenError> {
        let shaken = async {
            let connect = |error: std::io::Error| OpenError::Connect {
                addr: addr.to_owned(),
                reason: error.to_string(),
                refused: error.kind() == std::io::ErrorKind::ConnectionRefused,
            };
            let stream = net.connect(addr).await.map_err(connect)?;
            shake_hands(stream, clock.as_ref(), addr, hello).await
        };
        let (reader, writer, welcome) = select! {
            biased;
            shaken = shaken => shaken?,
            () = clock.sleep_until(deadline.since_origin()) => {
                return Err(OpenError::TimedOut { addr: addr.to_owned() });
            }
        };
        Ok(Link::start(reader, writer, clock, welcome))
    }

    fn start(mut reader: FrameReader, writer: Writer, clock: &Arc<dyn Clock>, welcome: Welcome) -> Link {
        let shared = Arc::new(Shared::default());
        let (outgoing, to_write) = queue(QUEUE_LEN, QUEUE_BYTES_MAX);
        let (closing, mut closed) = oneshot::channel::<()>();

        let (state, timer) = (shared.clone(), clock.clone());
        tokio::spawn(async move {
            let _ = write_frames(writer, to_write, timer.as_ref(), STALL_AFTER).await;
            state.fail();
        });
        let (state, timer) = (shared.clone(), clock.clone());
        let mut joiner = Joiner::new(Budget::new(ANSWER_BYTES_MAX), welcome.features);
        tokio::spawn(async move {
            let limits = ReadLimits { len_max: FRAME_LEN_MAX, within: STALL_AFTER, budget: None };
            loop {
                let read = select! {
                    biased;
                    _ = &mut closed => break,
                    read = reader.next(timer.as_ref(), limits) => read,
                };
                let Ok(Some(Incoming::Whole(frame, room))) = read else { break };
                state.received.fetch_add(1, Ordering::SeqCst);
                let now = Mono::from_origin(timer.mono());
                let frame = match joiner.take(frame, now, room) {
                    Ok(Joined::Whole(Whole { frame, .. })) => frame,
                    Ok(Joined::Waiting) => continue,
                    // Its asker is told that no answer came.
                    Ok(Joined::NoRoom(head)) => {
                        state.waiting().remove(&head.request_id.0);
                        continue;
                    }
                    Err(_) => break,
                };
                // An answer that nobody waits for any more is an ordinary event.
                if let Some(asker) = state.waiting().remove(&frame.head.request_id.0) {
                    let _ = asker.send(frame);
                }
            }
            state.fail();
        });
        Link { outgoing, shared, request_next: AtomicU64::new(1), welcome, _closing: closing }
    }

    /// What the other side said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Whether nothing can be asked over it any more.
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::SeqCst)
    }

    /// How many frames have come in so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }

    /// Requests in flight on it, and bytes that wait to be written.
    pub fn load(&self) -> (usize, usize) {
        (self.shared.waiting().len(), self.outgoing.waiting())
    }

    /// Sends a request and waits for its answer, until `deadline` at the latest. `head` gives layout and trace
    /// id; the rest of it is filled in here.
    ///
    /// # Errors
    /// See [`CallError`]; a [`Refusal`] comes back as an error.
    pub async fn call<A: Message>(
        &self,
        clock: &dyn Clock,
        request: &impl Message,
        head: FrameHead,
        deadline: Mono,
    ) -> Result<A, CallError> {
        let head = FrameHead { version: self.welcome.version, ..head };
        let frame = request.to_frame(head).map_err(|error| CallError::NotSent(error.to_string()))?;
        let frame = self.exchange(clock, frame, deadline).await?;
        let malformed = |error| CallError::MaybeDelivered(format!("unreadable answer: {error}"));
        if frame.head.kind == Refusal::KIND {
            return Err(CallError::Refused(Refusal::from_frame(&frame).map_err(malformed)?));
        }
        A::from_frame(&frame).map_err(malformed)
    }

    /// Sends a frame and waits for the one that answers it, until `deadline` at the latest. Request id and remaining
    /// time are filled in here.
    ///
    /// # Errors
    /// See [`CallError`]; never `Refused`, since nothing is read here.
    pub async fn exchange(
        &self,
        clock: &dyn Clock,
        frame: Frame,
        deadline: Mono,
    ) -> Result<Frame, CallError> {
        let id = self.request_next.fetch_add(1, Ordering::SeqCst);
        let remaining = deadline.since(Mono::from_origin(clock.mono())).as_millis();
        let remaining_ms = u32::try_from(remaining).unwrap_or(u32::MAX);
        let head = FrameHead { request_id: RequestId(id), remaining_ms, ..frame.head };
        let frame = Frame { head, ..frame };
        let (asker, answer) = oneshot::channel();
        let _in_flight = self.register(id, asker)?;
        let timer = clock.sleep_until(deadline.since_origin());
        tokio::pin!(timer);
        let mut frames = split(&frame, self.welcome.features);
        if frames.len() > 1 {
            // A message in parts goes out as a whole even if its asker leaves: cut off, it would hold room over there.
            let outgoing = self.outgoing.clone();
            let sending = async move { outgoing.send(std::mem::take(&mut frames)).await };
            let sent = tokio::spawn(sending);
            select! {
                biased;
                sent = sent => closed(sent.unwrap_or(Err(Closed)))?,
                () = &mut timer => return Err(CallError::MaybeDelivered("time ran out".to_owned())),
            }
        } else {
            select! {
                biased;
                sent = self.outgoing.send(frames) => closed(sent)?,
                () = &mut timer => return Err(CallError::NotSent("the connection is stalled".to_owned())),
            }
        }
        select! {
            biased;
            answer = answer => answer.map_err(|_| CallError::MaybeDelivered("the connection broke".to_owned())),
            () = &mut timer => Err(CallError::MaybeDelivered("time ran out".to_owned())),
        }
    }

    fn register(&self, id: u64, asker: oneshot::Sender<Frame>) -> Result<InFlight<'_>, CallError> {
        let mut waiting = self.shared.waiting();
        // Looked at under the lock: `fail` sets it before it empties the list under the same lock.
        if self.is_broken() {
            return Err(CallError::NotSent("the connection is closed".to_owned()));
        }
        if waiting.len() >= IN_FLIGHT_MAX {
            return Err(CallError::NotSent("too many requests in flight".to_owned()));
        }
        waiting.insert(id, asker);
        drop(waiting);
        Ok(InFlight { shared: &self.shared, id })
    }
}

/// What a closed queue means to who has queued nothing, or a message that is not whole.
fn closed(sent: Result<(), Closed>) -> Result<(), CallError> {
    sent.map_err(|Closed| CallError::NotSent("the connection is closed".to_owned()))
}

async fn shake_hands(
    stream: Stream,
    clock: &dyn Clock,
    addr: &str,
    hello: &Hello,
) -> Result<(FrameReader, Writer, Welcome), OpenError> {
    let Stream { reader, mut writer, .. } = stream;
    let mut reader = FrameReader::new(reader);
    let addr = || addr.to_owned();
    let protocol = |reason: String| OpenError::Protocol { addr: addr(), reason };
    let connect = |error: std::io::Error| OpenError::Connect {
        addr: addr(),
        reason: error.to_string(),
        refused: false,
    };

    let head = FrameHead { version: HANDSHAKE_VERSION, ..FrameHead::default() };
    let frame = hello.to_frame(head).map_err(|error| protocol(error.to_string()))?;
    writer.write_all(&frame.encode()).await.map_err(connect)?;
    writer.flush().await.map_err(connect)?;
    let limits = ReadLimits { len_max: HANDSHAKE_LEN_MAX, within: STALL_AFTER, budget: None };
    let answer = reader.next(clock, limits).await;
    let Some(Incoming::Whole(answer, _)) = answer.map_err(|error| protocol(error.to_string()))? else {
        return Err(protocol("it closed the connection".to_owned()));
    };
    if answer.head.kind == Refusal::KIND {
        let refusal = Refusal::from_frame(&answer).map_err(|error| protocol(error.to_string()))?;
        return Err(OpenError::Refused { addr: addr(), refusal });
    }
    let welcome = Welcome::from_frame(&answer).map_err(|error| protocol(error.to_string()))?;
    if !(hello.version_min..=hello.version_max).contains(&welcome.version) {
        return Err(protocol(format!("it chose version {}, which was not offered", welcome.version)));
    }
    if hello.cluster.is_some_and(|cluster| cluster != welcome.cluster) {
        return Err(OpenError::OtherCluster { addr: addr(), cluster: welcome.cluster });
    }
    Ok((reader, writer, welcome))
}
