//! The network seam: named addresses in, ordered byte streams out; and TCP as its real implementation.
//!
//! A stream keeps TCP's contract and no more: bytes arrive in order, once, or the stream ends with an error.
//! An idle stream notices nothing when the link under it is cut. Dropping both halves closes it; bytes already
//! written may or may not arrive. Nothing here retries, frames or times out: callers do.
//!
//! `TcpNet` compiles unchanged on madsim's network simulator, which is why it uses `tokio::io::split` and not
//! the owned halves that only real tokio has.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::BoxFuture;

/// Opens and accepts connections.
pub trait Net: Send + Sync + 'static {
    /// Listens on `addr` (`host:port`; port 0 picks a free one, see [`Listener::local_addr`]).
    ///
    /// # Errors
    /// When the address is malformed, taken, or not of this host.
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;

    /// Connects to `addr` (`host:port`). May take for ever: the caller sets the time limit.
    ///
    /// # Errors
    /// When the address is malformed or nobody listens there.
    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>>;
}

/// A bound address from which connections are accepted. Dropping it frees the address.
pub trait Listener: Send + 'static {
    /// Waits for the next connection. Cancel-safe: no connection is lost when the future is dropped.
    ///
    /// # Errors
    /// A passing shortage (no file descriptors) or the loss of the socket; the caller waits and tries again.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>>;

    /// The address that is really bound, with its port.
    fn local_addr(&self) -> String;
}

/// One connection, in two halves so that one task reads while another writes.
pub struct Stream {
    /// Bytes from the other side; `Ok(0)` is an orderly end.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Bytes to the other side. A completed write means accepted here, not delivered there.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The other side's address, for log lines.
    pub peer_addr: String,
}

/// TCP with `TCP_NODELAY`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNet;

struct TcpListening {
    listener: TcpListener,
    addr: String,
}

fn stream_of(tcp: TcpStream, peer_addr: String) -> io::Result<Stream> {
    tcp.set_nodelay(true)?;
    let (reader, writer) = tokio::io::split(tcp);
    Ok(Stream { reader: Box::new(reader), writer: Box::new(writer), peer_addr })
}

#[allow(clippy::disallowed_methods)] // the seam that the bans point to
impl Net for TcpNet {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(addr).await?;
            let addr = listener.local_addr()?.to_string();
            Ok(Box::new(TcpListening { listener, addr }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { stream_of(TcpStream::connect(addr).await?, addr.to_owned()) })
    }
}

impl Listener for TcpListening {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let (tcp, peer) = self.listener.accept().await?;
            stream_of(tcp, peer.to_string())
        })
    }

    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}
