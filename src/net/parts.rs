//! Large messages in parts, so that a record of many megabytes does not hold up what is small.
//!
//! ```text
//!   request 7, 1 MB ─▶ Part(7) Part(7) … Part(7)      request 8 ─▶ its frame, between two of them
//! ```
//!
//! A part is a frame of kind 0x0003 (0x8003 in answers) under the request id of the whole: its kind, its length, and the
//! next of its bytes. The parts of one message come in order; the last is the one that completes the length. Both sides
//! have said that they know parts by feature bit 0 of the handshake.
//!
//! Room for the whole is reserved when its first part comes. When there is none, the message is refused then, and its
//! other parts are dropped as they come: a refusal is never late, and nobody waits for room while holding some.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::budget::{Budget, Reserved};
use super::codec::{self, BODY_LEN_MAX};
use super::envelope::{Frame, FrameHead};
use super::frame::ReadError;
use crate::types::Mono;

/// Feature bit: large messages come in parts.
pub const FEATURE_PARTS: u64 = 1;
/// Kind of a request's part; with the highest bit set of an answer's.
pub const PART: u16 = 0x0003;
/// Most bytes of the whole in one part. A body that is no longer is sent whole.
pub const PART_LEN: usize = 256 * 1024;
/// Messages in parts at a time on one connection.
const AT_ONCE_MAX: usize = 256;

/// The body of a part.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) kind: u16,
    pub(super) total: u32,
    pub(super) bytes: Bytes,
}

/// The frames that carry a message: itself, or its parts.
pub(super) fn split(frame: &Frame, features: u64) -> Vec<Bytes> {
    if features & FEATURE_PARTS == 0 || frame.body.len() <= PART_LEN {
        return vec![frame.encode()];
    }
    let total = u32::try_from(frame.body.len()).expect("a body is below 4 GiB");
    let kind = PART | (frame.head.kind & 0x8000);
    let parts = (0..frame.body.len()).step_by(PART_LEN).map(|from| {
        let bytes = frame.body.slice(from..frame.body.len().min(from + PART_LEN));
        let mut body = Vec::with_capacity(bytes.len() + 16);
        let part = Part { kind: frame.head.kind, total, bytes };
        codec::encode_into(&part, &mut body).expect("a part has no form that cannot be written");
        Frame { head: FrameHead { kind, ..frame.head }, body: body.into() }.encode()
    });
    parts.collect()
}

/// A message that has come in as a whole.
pub(super) struct Whole {
    pub(super) frame: Frame,
    /// When its first byte came.
    pub(super) received: Mono,
    /// Its room, if it took any worth counting.
    pub(super) room: Option<Reserved>,
}

/// What a frame turned out to be.
pub(super) enum Joined {
    /// A whole message.
    Whole(Whole),
    /// A part; more are to come.
    Waiting,
    /// The first part of a message for which there is no room. The head is the message's.
    NoRoom(FrameHead),
}

struct Partial {
    head: FrameHead,
    total: usize,
    received: Mono,
    /// None: refused, its parts are dropped.
    bytes: Option<(BytesMut, Reserved)>,
    have: usize,
}

/// Puts parts together, for one connection.
pub(super) struct Joiner {
    budget: std::sync::Arc<Budget>,
    features: u64,
    partial: BTreeMap<u64, Partial>,
}

impl Joiner {
    pub(super) fn new(budget: std::sync::Arc<Budget>, features: u64) -> Joiner {
        Joiner { budget, features, partial: BTreeMap::new() }
    }

    /// Takes a frame that came at `now` and holds `room`.
    ///
    /// # Errors
    /// When it is a part that does not fit its message: the connection is over.
    pub(super) fn take(
        &mut self,
        frame: Frame,
        now: Mono,
        room: Option<Reserved>,
    ) -> Result<Joined, ReadError> {
        if frame.head.kind & 0x7fff != PART || self.features & FEATURE_PARTS == 0 {
            return Ok(Joined::Whole(Whole { frame, received: now, room }));
        }
        let part: Part = codec::decode(&frame.body).map_err(|error| ReadError::Part(error.to_string()))?;
        let wrong = |why: &str| Err(ReadError::Part(why.to_owned()));
        let id = frame.head.request_id.0;
        let total = part.total as usize;
        let is_first = !self.partial.contains_key(&id);
        if is_first {
            if total > BODY_LEN_MAX || part.bytes.is_empty() {
                return wrong("a message that is too long, or a part without bytes");
            }
            if self.partial.len() >= AT_ONCE_MAX {
                return wrong("too many messages in parts at a time");
            }
            // The room grows with what has come; what is reserved is all of it.
            let bytes = self.budget.reserve(total).map(|room| (BytesMut::new(), room));
            let head = FrameHead { kind: part.kind, ..frame.head };
            self.partial.insert(id, Partial { head, total, received: now, bytes, have: 0 });
        }
        let partial = self.partial.get_mut(&id).expect("it stands there, or was entered just now");
        partial.have += part.bytes.len();
        if partial.head.kind != part.kind || partial.total != total || partial.have > total {
            return wrong("parts that do not belong together");
        }
        if let Some((bytes, _)) = &mut partial.bytes {
            bytes.extend_from_slice(&part.bytes);
        }
        let (is_refused, is_done) = (partial.bytes.is_none(), partial.have == total);
        let head = partial.head;
        if is_done {
            let done = self.partial.remove(&id).expect("it was just seen");
            if let Some((bytes, room)) = done.bytes {
                let frame = Frame { head: done.head, body: bytes.freeze() };
                return Ok(Joined::Whole(Whole { frame, received: done.received, room: Some(room) }));
            }
        }
        Ok(if is_first && is_refused { Joined::NoRoom(head) } else { Joined::Waiting })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RequestId;

    const NOW: Mono = Mono::from_origin(std::time::Duration::from_secs(3));

    fn frame(id: u64, len: usize) -> Frame {
        let body: Vec<u8> = (0..=250).cycle().take(len).collect();
        let head = FrameHead { kind: 0x0202, version: 2, request_id: RequestId(id), ..FrameHead::default() };
        Frame { head, body: body.into() }
    }

    fn parts(frame: &Frame) -> Vec<Frame> {
        split(frame, FEATURE_PARTS).iter().map(|bytes| Frame::decode(bytes).unwrap()).collect()
    }

    #[test]
    fn parts_of_several_messages_between_each_other_give_the_messages_back() {
        let budget = Budget::new(10 * PART_LEN);
        let mut joiner = Joiner::new(budget.clone(), FEATURE_PARTS);
        let (one, two) = (frame(1, 3 * PART_LEN + 5), frame(2, 2 * PART_LEN));
        assert_eq!((parts(&one).len(), parts(&two).len(), parts(&frame(3, PART_LEN)).len()), (4, 2, 1));
        let mixed = parts(&one).into_iter().zip(parts(&two)).flat_map(|(one, two)| [one, two]);
        let rest = parts(&one).into_iter().skip(2);
        let mut whole = Vec::new();
        for part in mixed.chain(rest) {
            if let Joined::Whole(done) = joiner.take(part, NOW, None).unwrap() {
                whole.push(done);
            }
        }
        let frames: Vec<&Frame> = whole.iter().map(|whole| &whole.frame).collect();
        assert_eq!(frames, [&two, &one]);
        assert_eq!(budget.used(), one.body.len() + two.body.len());
        drop(whole);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_message_without_room_is_refused_once_and_holds_nothing() {
        let budget = Budget::new(PART_LEN);
        let mut joiner = Joiner::new(budget.clone(), FEATURE_PARTS);
        let large = frame(1, 3 * PART_LEN);
        let mut refused = 0;
        for part in parts(&large) {
            match joiner.take(part, NOW, None).unwrap() {
                Joined::NoRoom(head) => {
                    assert_eq!(head, large.head);
                    refused += 1;
                }
                Joined::Waiting => {}
                Joined::Whole(_) => panic!("there was no room for it"),
            }
        }
        assert_eq!((refused, budget.used(), joiner.partial.len()), (1, 0, 0));
    }

    #[test]
    fn parts_that_do_not_belong_together_end_the_connection() {
        let part = |total: u32, bytes: usize| {
            let mut body = Vec::new();
            let part = Part { kind: 0x0202, total, bytes: vec![0; bytes].into() };
            codec::encode_into(&part, &mut body).unwrap();
            Frame { head: FrameHead { kind: PART, ..frame(1, 0).head }, body: body.into() }
        };
        let over: &[&[Frame]] = &[
            &[part(u32::MAX, 5)],
            &[part(10, 0)],
            &[part(10, 11)],
            &[part(10, 5), part(11, 5)],
            &[part(10, 5), part(10, 6)],
            &[Frame { body: Bytes::from_static(b"?"), ..part(10, 5) }],
        ];
        for frames in over {
            let mut joiner = Joiner::new(Budget::new(PART_LEN), FEATURE_PARTS);
            let results: Vec<_> = frames.iter().map(|part| joiner.take(part.clone(), NOW, None)).collect();
            assert!(results.last().unwrap().is_err());
            assert!(results.iter().rev().skip(1).all(Result::is_ok));
        }
        // Without the feature a part is a message like any other, of a kind that nobody takes.
        let mut joiner = Joiner::new(Budget::new(PART_LEN), 0);
        assert!(matches!(joiner.take(part(10, 5), NOW, None), Ok(Joined::Whole(_))));
    }
}
