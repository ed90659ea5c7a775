//! Connections: accepted up to a limit, each with limits of its own, and drained when the node stops.
//!
//! What hyper refuses before it is a request (a head that is no HTTP: 400, a path over 65,534 bytes: 414, a head over
//! 128 KiB or 100 fields: 431) has no body, and costs its sender the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{Semaphore, mpsc};

use super::Gateway;
use crate::io::{BoxFuture, Clock};

/// Most bytes of a request's head: a path of 64 KiB and a context of some 1,800 actors.
const HEAD_BYTES_MAX: usize = 128 * 1024;
/// Pause after a failed accept: with no file descriptor left the next try would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection above the limit is told.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
Ringdove-Error: overloaded\r\nConnection: close\r\nContent-Length: 112\r\n\r\n\
{\"error\":\"overloaded\",\"message\":\"the node has too many connections; nothing was done: try again\",\"applied\":\"no\"}";

/// Accepts connections until the node stops, then waits until those that are open have drained.
pub(super) async fn accept(gateway: Arc<Gateway>, listener: TcpListener, routes: Router) {
    let (clock, stop) = (gateway.node.io().clock.clone(), gateway.node.stopping());
    let stopped = || stop.wait_for(|stop| stop.then_some(()));
    // Every connection holds a sender; the receiver sees the end once all are gone.
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = select! {
            biased;
            () = stopped() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                clock.sleep_until(clock.mono() + ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = gateway.places.clone().try_acquire_owned() else {
            gateway.counts.connections_refused.one();
            let _ = stream.try_write(FULL);
            continue;
        };
        let (gateway, routes, alive) = (gateway.clone(), routes.clone(), alive.clone());
        tokio::spawn(async move {
            serve(&gateway, stream, routes).await;
            drop((place, alive));
        });
    }
    drop(listener);
    drop(alive);
    let _ = all_gone.recv().await;
}

/// Places for so many connections.
pub(super) fn places(connections_max: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)))
}

async fn serve(gateway: &Gateway, stream: TcpStream, routes: Router) {
    let (clock, stop, config) = (gateway.node.io().clock.clone(), gateway.node.stopping(), gateway.config);
    // Answers are small and wait for nothing; without it a pipelined one waits for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let stream = Impatient { stream, clock: clock.clone(), stall_after: config.stall_after, timer: None };
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(config.head_time_max).max_buf_size(HEAD_BYTES_MAX);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(connection);
    let ended = select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.wait_for(|stop| stop.then_some(())) => {
            connection.as_mut().graceful_shutdown();
            select! {
                biased;
                ended = connection.as_mut() => ended,
                () = clock.sleep_until(clock.mono() + config.drain) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection closed");
    }
}

/// A socket that gives up on a reader who takes nothing.
struct Impatient<S> {
    stream: S,
    clock: Arc<dyn Clock>,
    stall_after: Duration,
    /// Runs while a write is pending.
    timer: Option<BoxFuture<'static, ()>>,
}

impl<S> Impatient<S> {
    /// What a write gives; an error when it has been pending for too long.
    fn judge(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.timer = None;
            return wrote;
        }
        let timer = self.timer.get_or_insert_with(|| {
            let end = self.clock.mono() + self.stall_after;
            self.clock.sleep_until(end)
        });
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.judge(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::io::RealClock;

    #[test]
    fn the_answer_to_one_connection_too_many_is_whole() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{} bytes", body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["applied"], "no");
    }

    #[tokio::test]
    async fn a_reader_who_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(16);
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let stall_after = Duration::from_millis(300);
        let mut stream = Impatient { stream: near, clock, stall_after, timer: None };
        let writing = tokio::spawn(async move {
            stream.write_all(&[7; 64]).await.unwrap();
            stream.write_all(&[8; 64]).await.unwrap_err().kind()
        });
        // Each piece that is taken gives it time again.
        let mut taken = [0; 64];
        far.read_exact(&mut taken).await.unwrap();
        assert_eq!(taken, [7; 64]);
        assert_eq!(writing.await.unwrap(), io::ErrorKind::TimedOut);
    }
}
