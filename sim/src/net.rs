//! SimNet: hosts named by strings, connections that keep TCP's contract and no more, links that can be cut.
//!
//! What a connection does
//! - Within a connection nothing is lost, reordered or doubled. Every write becomes a segment; a segment takes
//!   a random time from the stream of its link and never overtakes the one before it.
//! - A direction holds at most [`NetTimes::send_buffer`] bytes on the way and [`NetTimes::recv_buffer`] bytes
//!   arrived and unread; a full direction leaves the writer pending. Writes and reads may be short.
//! - SYN, SYN-ACK, FIN and reset are segments like any other. So all of this holds over a cut link by itself:
//!   they wait in line and arrive in order after the heal.
//!
//! ```text
//!    writer ── send buffer ──▶ segments on the way ──▶ (cut? host off? reader full? then stay) ──▶ inbox ── reader
//!                              each due at its time                          in order, one timer for the first
//! ```
//!
//! Faults
//! - **Cut** (one way or both): segments in that direction stay where they are. Connecting hangs until the
//!   caller gives up. An idle connection notices nothing.
//! - **Death of a process**: its host closes the sockets. The other side reads what was written before, then
//!   `ConnectionReset`, after the heal if the link is cut.
//! - **Power loss**: what was on the way from the host is gone, and the other side hears nothing. What it
//!   sends waits until the host is back, and is then answered with a reset.
//! - A handle of an earlier life answers `ConnectionAborted` and delivers nothing.
//!
//! - **Cut one way**: what arrives is not acknowledged, since acknowledgements go the other way. It stays in the sender's
//!   buffer, which fills, and the writer stands still. After [`UNACKED_MAX`] the sender gives the connection up with a
//!   reset that the receiver does not hear of; a heal before that acknowledges all at once.
//!
//! - **Loss**: a segment that is lost six times never arrives, and holds up what is behind it. Its sender gives the connection
//!   up at the end of its retries, 12.6 s after it was sent; the receiver hears of that when it sends, if it ever does.
//!
//! Kinder than TCP: an acknowledgement costs nothing; retransmission is immediate at the heal; a lone connection never
//! breaks by itself.
//!
//! Here are the handles that a host's program holds, each with the life that made it. The state they act on, and
//! the way of a segment, is in `wires`; what faults do to it in `trouble`.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use ringdove::io::{BoxFuture, Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::world::Life;

pub mod fault;
mod frames;
mod trouble;
mod wires;

pub use trouble::UNACKED_MAX;
pub use wires::{Connection, Network};

use wires::{Conn, Listening, Segment, Side, State, Wires, close, free_addr, host_of};

/// Times and sizes of the network.
#[derive(Debug, Clone)]
pub struct NetTimes {
    /// Shortest and longest ordinary delay of a segment, evenly drawn.
    pub delay: (Duration, Duration),
    /// One segment in so many is slow: its delay is ten times as long.
    pub slow_one_in: u32,
    /// Bytes a direction holds on the way.
    pub send_buffer: usize,
    /// Bytes that have arrived and are not read yet; a segment that does not fit waits.
    pub recv_buffer: usize,
    /// One read or write in so many is cut short.
    pub short_one_in: u32,
    /// Connections that wait to be accepted; a further one is refused.
    pub backlog: usize,
}

impl Default for NetTimes {
    fn default() -> NetTimes {
        NetTimes {
            delay: (Duration::from_micros(100), Duration::from_millis(2)),
            slow_one_in: 100,
            send_buffer: 256 * 1024,
            recv_buffer: 256 * 1024,
            short_one_in: 8,
            backlog: 128,
        }
    }
}

fn aborted() -> io::Error {
    io::Error::new(ErrorKind::ConnectionAborted, "the host's life that made this handle is over")
}

/// The network of one life of one host.
#[derive(Clone)]
pub struct SimNet {
    net: Network,
    life: Life,
}

impl SimNet {
    pub(crate) fn new(net: Network, life: Life) -> SimNet {
        SimNet { net, life }
    }

    fn bind(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let (host, port) = host_of(addr)?;
        if !self.life.is_on() {
            return Err(aborted());
        }
        if host != self.life.host() {
            let what = format!("{addr} is not an address of {}", self.life.host());
            return Err(io::Error::new(ErrorKind::AddrNotAvailable, what));
        }
        let mut wires = self.net.lock();
        let addr = if port == 0 { free_addr(&mut wires, host)? } else { addr.to_owned() };
        if wires.listening.contains_key(&addr) {
            return Err(ErrorKind::AddrInUse.into());
        }
        let id = wires.next_listener;
        wires.next_listener += 1;
        wires.listening.insert(addr.clone(), Listening { id, ..Listening::default() });
        drop(wires);
        self.net.record(host, "net-listen", &addr);
        Ok(Box::new(SimListener { net: self.net.clone(), life: self.life.clone(), addr, id }))
    }

    /// Sends the SYN.
    fn dial(&self, addr: &str) -> io::Result<Dialing> {
        let (host, _) = host_of(addr)?;
        if !self.life.is_on() {
            return Err(aborted());
        }
        let mut wires = self.net.lock();
        if !wires.hosts.contains_key(host) {
            return Err(io::Error::new(ErrorKind::NotFound, format!("no host is called {host}")));
        }
        let own = self.life.host();
        let from = free_addr(&mut wires, own)?;
        let id = wires.next_conn;
        wires.next_conn += 1;
        let sides = [Side::new(wires.number(own), from), Side::new(wires.number(host), addr.to_owned())];
        let (pipes, held) = (Default::default(), Default::default());
        wires.conns.insert(id, Conn { sides, pipes, held, misled: [false; 2], broken: false });
        self.net.send(&mut wires, id, 0, Segment::Syn);
        drop(wires);
        self.net.record(own, "net-connect", format_args!("c{id} to {addr}"));
        Ok(Dialing { net: self.net.clone(), life: self.life.clone(), id, done: false })
    }
}

impl Net for SimNet {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move { self.bind(addr) })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { self.dial(addr)?.await })
    }
}

/// Waits for the answer to a SYN; dropped before, it takes the SYN back or resets what became of it.
struct Dialing {
    net: Network,
    life: Life,
    id: u64,
    done: bool,
}

impl Future for Dialing {
    type Output = io::Result<Stream>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        if !self.life.is_on() {
            return Poll::Ready(Err(aborted()));
        }
        let net = self.net.clone();
        let mut wires = net.lock();
        let Some(conn) = wires.conns.get_mut(&self.id) else {
            return Poll::Ready(Err(ErrorKind::ConnectionRefused.into()));
        };
        let result = match conn.sides[0].state {
            State::Connecting => {
                conn.sides[0].read_waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // A reset that came right behind the answer shows at the first read, as with TCP.
            State::Open | State::Reset => open_stream(&net, &wires, self.id, 0, &self.life)
                .ok_or_else(|| ErrorKind::ConnectionReset.into()),
            State::Refused | State::Closed => {
                let id = self.id;
                net.sweep(&mut wires, id);
                Err(ErrorKind::ConnectionRefused.into())
            }
        };
        self.done = true;
        Poll::Ready(result)
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        if !self.done && self.life.is_on() {
            let mut wires = self.net.lock();
            self.net.hang_up(&mut wires, self.id, 0);
        }
    }
}

struct SimListener {
    net: Network,
    life: Life,
    addr: String,
    id: u64,
}

impl SimListener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        if !self.life.is_on() {
            return Poll::Ready(Err(aborted()));
        }
        let mut wires = self.net.lock();
        let Some(listening) = wires.listening.get_mut(&self.addr).filter(|l| l.id == self.id) else {
            return Poll::Ready(Err(aborted()));
        };
        let Some(id) = listening.backlog.pop_front() else {
            listening.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        Poll::Ready(open_stream(&self.net, &wires, id, 1, &self.life).ok_or_else(aborted))
    }
}

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(std::future::poll_fn(|cx| self.poll_accept(cx)))
    }

    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        // The end of a life has taken its listeners away; a later life may listen here now.
        if !self.life.is_on() {
            return;
        }
        let mut wires = self.net.lock();
        if wires.listening.get(&self.addr).is_some_and(|l| l.id == self.id)
            && let Some(listening) = wires.listening.remove(&self.addr)
        {
            for id in listening.backlog {
                if let Some(conn) = wires.conns.get_mut(&id) {
                    close(&mut conn.sides[1]);
                    self.net.send(&mut wires, id, 1, Segment::Reset);
                    self.net.sweep(&mut wires, id);
                }
            }
        }
    }
}

/// One half of one side.
struct End {
    net: Network,
    id: u64,
    side: usize,
    life: Life,
    reader: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if self.life.is_on() {
            self.net.drop_half(self.id, self.side, self.reader);
        }
    }
}

struct Reader(End);
struct Writer(End);

/// The halves of one side of a connection.
fn open_stream(net: &Network, wires: &Wires, id: u64, side: usize, life: &Life) -> Option<Stream> {
    let conn = wires.conns.get(&id)?;
    let end = |reader| End { net: net.clone(), id, side, life: life.clone(), reader };
    Some(Stream {
        reader: Box::new(Reader(end(true))),
        writer: Box::new(Writer(end(false))),
        peer_addr: conn.sides[1 - side].addr.clone(),
    })
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let End { net, id, side, life, .. } = &self.0;
        let (id, side) = (*id, *side);
        if !life.is_on() {
            return Poll::Ready(Err(aborted()));
        }
        let mut wires = net.lock();
        let Some(conn) = wires.conns.get_mut(&id) else {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        };
        let this = &mut conn.sides[side];
        if this.inbox_bytes == 0 || buf.remaining() == 0 {
            if buf.remaining() == 0 || this.ended {
                return Poll::Ready(Ok(()));
            }
            if this.state != State::Open {
                return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
            }
            this.read_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let there = this.inbox_bytes.min(buf.remaining());
        let mut left = net.share(&mut wires, id, side, there);
        let Some(conn) = wires.conns.get_mut(&id) else { return Poll::Pending };
        let this = &mut conn.sides[side];
        this.inbox_bytes -= left;
        while let Some(first) = this.inbox.front_mut() {
            let part = first.len().min(left);
            buf.put_slice(&first[..part]);
            first.advance(part);
            left -= part;
            if first.is_empty() {
                this.inbox.pop_front();
            }
            if left == 0 {
                break;
            }
        }
        // There may be room now for a segment that was held back.
        let pipe = &conn.pipes[1 - side];
        if pipe.timer.is_none()
            && let Some((due, _)) = pipe.segments.front()
        {
            let due = *due;
            net.arm(&mut wires, id, 1 - side, due);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let End { net, id, side, life, .. } = &self.0;
        let (id, side) = (*id, *side);
        if !life.is_on() {
            return Poll::Ready(Err(aborted()));
        }
        let mut wires = net.lock();
        let Some(conn) = wires.conns.get_mut(&id) else {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        };
        let this = &mut conn.sides[side];
        if this.finished {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        if this.state != State::Open {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = net.0.times.send_buffer.saturating_sub(conn.pipes[side].bytes);
        if room == 0 {
            let unacked = conn.pipes[side].unacked > 0;
            let this = &mut conn.sides[side];
            this.write_waker = Some(cx.waker().clone());
            if unacked {
                net.count_unacked(&mut wires);
            }
            return Poll::Pending;
        }
        let taken = net.share(&mut wires, id, side, buf.len().min(room));
        net.send(&mut wires, id, side, Segment::Data(Bytes::copy_from_slice(&buf[..taken])));
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(if self.0.life.is_on() { Ok(()) } else { Err(aborted()) })
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let End { net, id, side, life, .. } = &self.0;
        let (id, side) = (*id, *side);
        if !life.is_on() {
            return Poll::Ready(Err(aborted()));
        }
        let mut wires = net.lock();
        let Some(conn) = wires.conns.get_mut(&id) else {
            return Poll::Ready(Err(ErrorKind::NotConnected.into()));
        };
        let this = &mut conn.sides[side];
        if !this.finished && this.state == State::Open {
            this.finished = true;
            net.send(&mut wires, id, side, Segment::Fin);
        }
        Poll::Ready(Ok(()))
    }
}
