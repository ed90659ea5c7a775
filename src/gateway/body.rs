//! Bodies: read within limits of length and time, and held within a budget of memory.
//!
//! The budget is taken as the bytes come in, never by what a length announces: who announces much and sends nothing
//! takes nothing from others. What finds no room is turned away at once; nobody waits for memory while holding some.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::select;

use super::Gateway;
use super::answer::{Refused, error};
use crate::net::budget::Reserved;
use crate::net::message::{Refusal, RefusalCode};

/// Bytes of a body that was refused which are read and thrown away, so that its sender comes to read the answer.
const DISCARD_MAX: usize = 32 * 1024 * 1024;
/// Time for that.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Bytes with their room in the budget.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _room: Reserved,
}

impl Held {
    fn new(bytes: Bytes, room: Reserved) -> Held {
        Held { bytes, _room: room }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Gateway {
    /// There is no room for more bytes.
    fn no_room(&self) -> Refused {
        self.counts.memory_refused.one();
        let message =
            "the node holds as many bytes of requests and answers as it may; nothing was done: try again";
        Refusal::new(RefusalCode::Overloaded, message).into()
    }

    /// An answer's body that keeps its room until the last byte has left.
    ///
    /// # Errors
    /// When too much is held: the request is turned away. Only for reads.
    pub(super) fn hold(&self, bytes: Bytes) -> Result<Body, Refused> {
        let room = self.budget.reserve(bytes.len()).ok_or_else(|| self.no_room())?;
        Ok(Body::from(Bytes::from_owner(Held::new(bytes, room))))
    }

    /// The whole body of a request, of `limit` bytes at most. Takes it only to read it.
    ///
    /// # Errors
    /// When it is longer, comes too slowly, finds no room, or breaks off. Nothing was done.
    pub(super) async fn read_body(
        &self,
        body: &mut Option<Body>,
        headers: &HeaderMap,
        limit: usize,
        what: &str,
    ) -> Result<Held, Refused> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let announced: Option<u64> = announced.and_then(|text| text.parse().ok());
        let too_large = || {
            let message = format!("{what} has more than {limit} bytes, which is the most that is taken");
            Refused::from(Refusal::new(RefusalCode::TooLarge, message))
        };
        if announced.is_some_and(|announced| announced > limit as u64) {
            return Err(too_large());
        }
        let mut pieces = body.take().unwrap_or_default().into_data_stream();
        let clock = &self.node.io().clock;
        let end = clock.mono() + self.config.body_time_max;
        let (mut bytes, mut room) = (BytesMut::new(), self.budget.nothing());
        loop {
            let piece = select! {
                biased;
                piece = pieces.next() => piece,
                () = clock.sleep_until(end.min(clock.mono() + self.config.stall_after)) => {
                    let message = format!("the body came too slowly, only {} bytes of it: send it again", bytes.len());
                    return Err(error(StatusCode::REQUEST_TIMEOUT, "slow-body", message));
                }
            };
            let piece = match piece {
                None => break,
                Some(Ok(piece)) => piece,
                Some(Err(_)) => {
                    let message = "the body broke off, or is not encoded as its headers say: send it again";
                    return Err(error(StatusCode::BAD_REQUEST, "bad-body", message));
                }
            };
            if bytes.len() + piece.len() > limit {
                self.discard(pieces).await;
                return Err(too_large());
            }
            if !room.grow(piece.len()) {
                drop((bytes, room));
                self.discard(pieces).await;
                return Err(self.no_room());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Held::new(bytes.freeze(), room))
    }

    /// What a request that had a body is answered. A body that nobody took is read to its end, for a little while.
    pub(super) async fn answered<T>(
        &self,
        answer: Result<T, Refused>,
        body: Option<Body>,
        headers: &HeaderMap,
    ) -> Result<T, Refused> {
        // Who waits for leave to send has sent nothing; reading would be the leave.
        if let Some(body) = body.filter(|_| !headers.contains_key(header::EXPECT)) {
            self.discard(body.into_data_stream()).await;
        }
        answer
    }

    /// Reads on for a little while: a socket that is closed with unread bytes in it is reset, and its client may
    /// never see why.
    async fn discard(&self, mut pieces: BodyDataStream) {
        let clock = &self.node.io().clock;
        let end = clock.sleep_until(clock.mono() + DISCARD_TIME);
        tokio::pin!(end);
        let mut bytes = 0;
        while bytes < DISCARD_MAX {
            let piece = select! {
                biased;
                () = &mut end => return,
                piece = pieces.next() => piece,
            };
            match piece {
                Some(Ok(piece)) => bytes += piece.len(),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::budget::Budget;

    #[test]
    fn bytes_keep_their_room_until_the_last_copy_is_gone() {
        let budget = Budget::new(10);
        let held = Held::new(Bytes::from(vec![0; 7]), budget.reserve(7).unwrap());
        let copy = Bytes::from_owner(held);
        let slice = copy.slice(1..3);
        drop(copy);
        assert_eq!(budget.used(), 7);
        drop(slice);
        assert_eq!(budget.used(), 0);
    }
}
