//! The answering side: accepts connections, shakes hands, runs the handler for each request.
//!
//! Everything is bounded: connections, requests in flight on each, frames before and after the handshake, the
//! queue of answers of each and of all together. A client that sends without reading fills its own queue and is
//! then not read from; one that takes nothing for the stall limit, or asks for nothing for the idle limit, is
//! dropped. Garbage costs its sender the connection and nothing else.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::budget::Budget;
use super::envelope::{FRAME_LEN_MAX, Frame, FrameHead};
use super::frame::{FrameReader, Incoming, Outgoing, ReadLimits, queue, write_frames};
use super::link::HANDSHAKE_LEN_MAX;
use super::message::{
    HANDSHAKE_VERSION, Hello, MAGIC, Message, Refusal, RefusalCode, Spoken, Welcome, is_read, is_spoken,
    kind_name,
};
use super::parts::{Joined, Joiner, Whole, split};
use crate::io::{BoxFuture, Clock, Listener, Stream};
use crate::sync::Watched;
use crate::types::Mono;

/// What a port does.
pub trait Service: Send + Sync + 'static {
    /// Judges who wants in; magic and version are already checked.
    ///
    /// # Errors
    /// What the caller is told before the connection is closed.
    fn greet(&self, hello: &Hello, version: u8) -> Result<Welcome, Refusal>;

    /// Carries out one request, which came in at `received`. The answer's request id is filled in by the caller.
    fn handle(self: Arc<Self>, request: Frame, received: Mono) -> BoxFuture<'static, Frame>;
}

/// Bounds of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones are refused with `Unavailable`. Default 10,000.
    pub connections_max: usize,
    /// Requests in flight on one connection; further ones are not read. Default 256.
    pub in_flight_max: usize,
    /// Most bytes of a request's frame. Default [`FRAME_LEN_MAX`].
    pub frame_len_max: usize,
    /// Most bytes of requests above 64 KiB that are held at a time, on all connections together; further ones are
    /// refused as overload. Above `frame_len_max`. Default 256 MiB.
    pub request_bytes_max: usize,
    /// Most bytes of answers that wait on one connection; a client that leaves more unread is disconnected. Above a
    /// quarter of it no further request is read from the connection. Default 128 MiB.
    pub answer_bytes_max: usize,
    /// Most bytes of answers that wait on all connections together: a read whose answer finds no room is refused as
    /// overload, and any other request whose answer finds none loses its connection. Default 128 MiB.
    pub unread_bytes_max: usize,
    /// A connection on which nothing was asked for this long, and nothing is in progress, is closed; none: never. At
    /// least `stall_after`. Default 1 h.
    pub idle_after: Option<Duration>,
    /// Time for a handshake. Default 5 s.
    pub handshake: Duration,
    /// A connection that takes no byte of its answers for this long, or takes this long for a frame that it has begun,
    /// is closed. Default 20 s.
    pub stall_after: Duration,
    /// How long requests in flight may take after the stop signal. Default 5 s.
    pub drain: Duration,
    /// Versions and features offered. Default: all that this build has.
    pub spoken: Spoken,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 10_000,
            in_flight_max: 256,
            frame_len_max: FRAME_LEN_MAX,
            request_bytes_max: 256 * 1024 * 1024,
            answer_bytes_max: 128 * 1024 * 1024,
            unread_bytes_max: 128 * 1024 * 1024,
            idle_after: Some(Duration::from_secs(3600)),
            handshake: Duration::from_secs(5),
            stall_after: Duration::from_secs(20),
            drain: Duration::from_secs(5),
            spoken: Spoken::default(),
        }
    }
}

/// What a port has in hand. Made with its limits, for who serves it and who watches it.
#[derive(Debug)]
pub struct Load {
    connections: AtomicUsize,
    requests: Arc<Budget>,
    unread: Arc<Budget>,
}

impl Load {
    /// Nothing yet.
    pub fn new(limits: &Limits) -> Arc<Load> {
        Arc::new(Load {
            connections: AtomicUsize::new(0),
            requests: Budget::new(limits.request_bytes_max),
            unread: Budget::new(limits.unread_bytes_max),
        })
    }

    /// Open connections, those that are being refused included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Bytes of requests above 64 KiB that are held.
    pub fn request_bytes(&self) -> usize {
        self.requests.used()
    }

    /// Bytes of answers that wait to be written.
    pub fn unread_bytes(&self) -> usize {
        self.unread.used()
    }
}

/// Pause after a failed accept: with no file descriptor left the next try would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `stop` is true, then waits until those that are open have drained. What it has in hand
/// meanwhile stands in `load`.
pub async fn serve(
    mut listener: Box<dyn Listener>,
    service: Arc<dyn Service>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    load: Arc<Load>,
    stop: Arc<Watched<bool>>,
) {
    // Every connection holds a sender; the receiver sees the end once all are gone.
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = select! {
            biased;
            () = stopped(&stop) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                clock.sleep_until(clock.mono() + ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = Connection {
            service: service.clone(),
            clock: clock.clone(),
            limits,
            stop: stop.clone(),
            budget: load.requests.clone(),
            unread: load.unread.clone(),
            full: load.connections.fetch_add(1, Ordering::SeqCst) >= limits.connections_max,
        };
        let (load, alive) = (load.clone(), alive.clone());
        tokio::spawn(async move {
            let peer = stream.peer_addr.clone();
            if let Err(reason) = connection.run(stream).await {
                tracing::debug!(%peer, %reason, "connection closed");
            }
            load.connections.fetch_sub(1, Ordering::SeqCst);
            drop(alive);
        });
    }
    drop(listener);
    drop(alive);
    let _ = all_gone.recv().await;
}

async fn stopped(stop: &Watched<bool>) {
    stop.wait_for(|stop| stop.then_some(())).await;
}

struct Connection {
    service: Arc<dyn Service>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    stop: Arc<Watched<bool>>,
    budget: Arc<Budget>,
    unread: Arc<Budget>,
    full: bool,
}

/// When something was last asked for on a connection.
struct Activity {
    last: Mutex<Mono>,
    permits: Arc<Semaphore>,
    in_flight_max: usize,
}

impl Activity {
    fn touch(&self, now: Mono) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Waits until nothing was asked for this long and nothing is in progress.
    async fn idle(&self, clock: &dyn Clock, after: Option<Duration>) {
        let Some(after) = after else { return pending().await };
        loop {
            let now = Mono::from_origin(clock.mono());
            // One permit is that of the request which is waited for.
            let busy = self.permits.available_permits() + 1 < self.in_flight_max;
            let since = if busy { now } else { *self.last.lock().unwrap_or_else(PoisonError::into_inner) };
            if now.since(since) >= after {
                return;
            }
            clock.sleep_until((since + after).since_origin()).await;
        }
    }
}

impl Connection {
    async fn run(mut self, stream: Stream) -> Result<(), String> {
        let Stream { reader, mut writer, .. } = stream;
        let mut reader = FrameReader::new(reader);
        let deadline = self.clock.mono() + self.limits.handshake;
        let clock = self.clock.clone();
        let shaken = select! {
            biased;
            shaken = self.shake_hands(&mut reader, writer.as_mut()) => shaken,
            () = clock.sleep_until(deadline) => Err("no handshake in time".to_owned()),
        };
        let welcome = shaken?;

        let (outgoing, to_write) = queue(self.limits.in_flight_max, self.limits.answer_bytes_max);
        let (dead, mut died) = oneshot::channel::<()>();
        let (timer, stall_after) = (self.clock.clone(), self.limits.stall_after);
        tokio::spawn(async move {
            let _dead = dead; // dropped when writing ends, for whatever reason
            let _ = write_frames(writer, to_write, timer.as_ref(), stall_after).await;
        });

        let in_flight_max = self.limits.in_flight_max;
        let permits = Arc::new(Semaphore::new(in_flight_max));
        let last = Mutex::new(Mono::from_origin(clock.mono()));
        let activity = Activity { last, permits: permits.clone(), in_flight_max };
        let idle = activity.idle(clock.as_ref(), self.limits.idle_after);
        tokio::pin!(idle);
        let mut joiner = Joiner::new(self.budget.clone(), welcome.features);
        let limits = ReadLimits {
            len_max: self.limits.frame_len_max,
            within: stall_after,
            budget: Some(&self.budget),
        };
        let ended = loop {
            let ready = async {
                outgoing.below(self.limits.answer_bytes_max / 4).await;
                let permit = permits.clone().acquire_owned().await;
                let begun = reader.begun().await;
                activity.touch(Mono::from_origin(clock.mono()));
                match begun {
                    Ok(()) => (permit, reader.next(clock.as_ref(), limits).await),
                    Err(error) => (permit, Err(error.into())),
                }
            };
            let (permit, request) = select! {
                biased;
                () = stopped(&self.stop) => break Ok(()),
                _ = &mut died => return Err("the other side takes no answers".to_owned()),
                (permit, request) = ready => (permit, request),
                () = &mut idle => break Err("nothing was asked for too long".to_owned()),
            };
            let Ok(permit) = permit else { break Ok(()) };
            let received = Mono::from_origin(clock.mono());
            let joined = match request {
                Ok(Some(Incoming::Whole(frame, room))) => joiner.take(frame, received, room),
                Ok(Some(Incoming::NoRoom(head))) => Ok(Joined::NoRoom(head)),
                Ok(None) => break Ok(()),
                Err(error) => Err(error),
            };
            let asked = match joined {
                Ok(Joined::Whole(whole)) => Asked::Request(whole),
                Ok(Joined::NoRoom(head)) => Asked::NoRoom(head),
                Ok(Joined::Waiting) => continue,
                Err(error) => break Err(error.to_string()),
            };
            let (service, agreed, timer) = (self.service.clone(), welcome.clone(), self.clock.clone());
            let (outgoing, unread) = (outgoing.clone(), self.unread.clone());
            tokio::spawn(async move {
                if let Asked::Request(whole) = &asked {
                    released(timer.as_ref(), whole.frame.head.kind).await;
                }
                carry_out(service, asked, agreed, outgoing, unread, permit).await;
            });
        };
        drop(outgoing);
        // Let the requests in flight end, so that what was carried out is also answered.
        let all = u32::try_from(self.limits.in_flight_max).unwrap_or(u32::MAX);
        select! {
            biased;
            _ = permits.acquire_many(all) => {}
            _ = &mut died => {}
            () = clock.sleep_until(clock.mono() + self.limits.drain) => {}
        }
        ended
    }

    async fn shake_hands(
        &mut self,
        reader: &mut FrameReader,
        writer: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<Welcome, String> {
        let limits = ReadLimits { len_max: HANDSHAKE_LEN_MAX, within: self.limits.handshake, budget: None };
        let frame = reader.next(self.clock.as_ref(), limits).await;
        let Some(Incoming::Whole(frame, _)) = frame.map_err(|error| error.to_string())? else {
            return Err("closed before the handshake".to_owned());
        };
        let hello = Hello::from_frame(&frame).map_err(|error| error.to_string())?;
        if hello.magic != MAGIC {
            return Err("wrong magic: this port speaks ringdove's binary protocol".to_owned());
        }
        let judged = self.judge(&hello);
        let request_id = frame.head.request_id;
        let head = FrameHead { version: HANDSHAKE_VERSION, request_id, ..FrameHead::default() };
        let answer = match &judged {
            Ok(welcome) => welcome.to_frame(head),
            Err(refusal) => refusal.to_frame(head),
        };
        let answer = answer.map_err(|error| error.to_string())?;
        let lost = |error: std::io::Error| error.to_string();
        writer.write_all(&answer.encode()).await.map_err(lost)?;
        writer.flush().await.map_err(lost)?;
        match judged {
            Ok(welcome) => Ok(welcome),
            Err(refusal) => {
                let _ = writer.shutdown().await;
                Err(format!("refused: {}", refusal.message))
            }
        }
    }

    fn judge(&self, hello: &Hello) -> Result<Welcome, Refusal> {
        if self.full {
            let message = format!("{} connections are open, no more are taken", self.limits.connections_max);
            return Err(Refusal::new(RefusalCode::Unavailable, message));
        }
        let spoken = self.limits.spoken;
        let Some(version) = spoken.common(hello) else {
            let (min, max) = (hello.version_min, hello.version_max);
            let Spoken { version_min, version_max, .. } = spoken;
            let message = format!(
                "this node speaks the protocol's versions {version_min} to {version_max}, the caller {min} to {max}"
            );
            return Err(Refusal::new(RefusalCode::UnsupportedVersion, message));
        };
        let welcome = self.service.greet(hello, version)?;
        Ok(Welcome { features: spoken.features & hello.features, ..welcome })
    }
}

/// What is to be answered.
enum Asked {
    Request(Whole),
    /// A request of which only the head is left.
    NoRoom(FrameHead),
}

/// Between two looks at whether requests of a kind still have to wait.
const WITHHELD: Duration = Duration::from_millis(5);

/// Waits while requests of this kind are withheld, which only a simulator does.
#[allow(unused_variables)] // in production the condition is `false`
async fn released(clock: &dyn Clock, kind: u16) {
    while withheld!(kind) {
        clock.sleep_until(clock.mono() + WITHHELD).await;
    }
}

/// When a request for which there was no room may come again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Answers one request. Its permit and its room are given back when the answer is on its way.
async fn carry_out(
    service: Arc<dyn Service>,
    asked: Asked,
    agreed: Welcome,
    outgoing: Outgoing,
    unread: Arc<Budget>,
    _permit: OwnedSemaphorePermit,
) {
    let version = agreed.version;
    let (head, answer, _room) = match asked {
        Asked::NoRoom(head) => {
            let message = "the node holds too many large requests; nothing was done: try again";
            let refusal = Refusal::new(RefusalCode::Overloaded, message).with_retry_after(RETRY_AFTER);
            (head, refuse(&of_version(head, version), &refusal), None)
        }
        Asked::Request(Whole { frame, room, .. }) if frame.head.version != version => {
            let message =
                format!("the connection goes by version {version}, the frame by {}", frame.head.version);
            let refusal = Refusal::new(RefusalCode::UnsupportedVersion, message);
            (frame.head, refuse(&of_version(frame.head, version), &refusal), room)
        }
        Asked::Request(Whole { frame, received, room }) => {
            (frame.head, service.handle(frame, received).await, room)
        }
    };
    let frames_of = |answer: Frame| {
        let FrameHead { kind, layout, .. } = answer.head;
        let FrameHead { request_id, trace_id, .. } = head;
        let head = FrameHead { kind, version, request_id, layout, trace_id, ..FrameHead::default() };
        split(&Frame { head, ..answer }, agreed.features)
    };
    let is_refusal = answer.head.kind == Refusal::KIND;
    let frames = frames_of(answer);
    let sent = match unread.reserve(frames.iter().map(Bytes::len).sum()) {
        // A refusal is small, and there are no more of them than requests in flight.
        room if room.is_some() || is_refusal => outgoing.send_with(frames, room).await,
        _ if is_read(head.kind) => {
            let message = "the node holds too many answers that are not taken: try again";
            let refusal = Refusal::new(RefusalCode::Overloaded, message).with_retry_after(RETRY_AFTER);
            outgoing.send(frames_of(refuse(&of_version(head, version), &refusal))).await
        }
        // A refusal would say that nothing was done.
        _ => {
            outgoing.overflow();
            return;
        }
    };
    // Who does not take answers has lost the connection.
    let _ = sent;
}

/// A frame to be refused, as if it were of the connection's version.
fn of_version(head: FrameHead, version: u8) -> Frame {
    Frame { head: FrameHead { version, ..head }, body: Bytes::new() }
}

/// The frame that refuses a request; its head is filled in by the connection.
pub fn refuse(request: &Frame, refusal: &Refusal) -> Frame {
    answer(request, refusal)
}

/// The frame that answers a request, in the request's version; its head is filled in by the connection.
pub fn answer(request: &Frame, message: &impl Message) -> Frame {
    let head = FrameHead { version: request.head.version, ..FrameHead::default() };
    message.to_frame(head).unwrap_or_else(|error| {
        let refusal = Refusal::new(RefusalCode::TooLarge, format!("the answer cannot be sent: {error}"));
        refusal.to_frame(head).expect("a refusal fits a frame")
    })
}

/// What a request of a kind that the port does not take is answered.
pub fn unknown_operation(request: &Frame, kind: u16) -> Frame {
    let name = kind_name(kind);
    let version = request.head.version;
    let message = if name == "unknown" || is_spoken(kind, version) {
        format!("this port does not take operation {kind:#06x} ({name})")
    } else {
        format!("version {version} of the protocol has no {name}")
    };
    refuse(request, &Refusal::new(RefusalCode::UnknownOperation, message))
}
