//! What the fuzz targets do with bytes that could have come from a socket. Not part of the library's interface: `fuzz/`
//! and `tests/fuzzing` run the same bodies.
//!
//! ```text
//!   frames    a byte stream in small pieces and in one: the same frames, which read back as they are written
//!   parts     parts of messages in any order: whole ones are what was sent, and hold no more room than there is
//!   handshake, client, peer   a body of one of these kinds, in either version: it reads back as it is written
//!   layouts   a history from a peer: joined with one that is held it is refused, or gives a sound one
//!   token     a context: it opens for its own key alone, and seals to the same bytes
//! ```
//! Nothing may panic, and nothing may take memory out of proportion to the bytes (`tests/fuzzing` counts). What
//! stands behind a checksum or a MAC would be out of a fuzzer's reach, so the first byte of an input chooses whether
//! these are made right.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, ReadBuf};

use super::budget::Budget;
use super::codec;
use super::envelope::{self, FRAME_HEAD_LEN, FRAME_LEN_MAX, Frame, FrameHead};
use super::frame::{FrameReader, Incoming, ReadLimits};
use super::message::{Hello, KINDS, Message, OfferLayouts, Spoken, VERSION, VERSION_MIN, written_again};
use super::parts::{FEATURE_PARTS, Joined, Joiner, PART, Part, Whole, split};
use crate::dynamo::layout::{Layout, LayoutHistory, Member};
use crate::dynamo::ring::PartitionCount;
use crate::dynamo::version::{Token, TokenError, TokenSecret};
use crate::io::{BoxFuture, Clock};
use crate::types::{ClusterId, Key, Mono, Namespace, NodeId, RequestId};

/// In the first byte: make checksums or the MAC right.
const RESEAL: u8 = 1;
/// In the first byte of a stream: what comes in parts is joined.
const JOIN: u8 = 2;
/// Room for frames above 64 KiB, and for messages in parts: small, so that it runs out.
const ROOM: usize = 128 * 1024;
const NOW: Mono = Mono::from_origin(Duration::ZERO);

/// A clock on which no time passes: what is read here is there at once, or never comes.
struct NoTime;

impl Clock for NoTime {
    fn mono(&self) -> Duration {
        Duration::ZERO
    }

    fn wall(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep_until(&self, _deadline: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Bytes that come in pieces of at most so many.
struct Pieces {
    left: Bytes,
    most: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let len = self.most.min(buffer.remaining()).min(self.left.len());
        buffer.put_slice(&self.left.split_to(len));
        Poll::Ready(Ok(()))
    }
}

/// What came of a stream.
#[derive(Debug, PartialEq)]
enum Came {
    Whole(Frame),
    NoRoom(FrameHead),
    /// The connection is over, for this reason.
    Over(String),
}

fn read(bytes: &Bytes, most: usize, joins: bool) -> Vec<Came> {
    let budget = Budget::new(ROOM);
    let mut reader = FrameReader::new(Box::new(Pieces { left: bytes.clone(), most }));
    let mut joiner = Joiner::new(Budget::new(ROOM), if joins { FEATURE_PARTS } else { 0 });
    let limits = ReadLimits { len_max: FRAME_LEN_MAX, within: Duration::from_secs(1), budget: Some(&budget) };
    let mut came = Vec::new();
    loop {
        let next = reader.next(&NoTime, limits).now_or_never().expect("all that comes is there");
        let next = match next {
            Ok(Some(Incoming::Whole(frame, room))) => joiner.take(frame, NOW, room),
            Ok(Some(Incoming::NoRoom(head))) => Ok(Joined::NoRoom(head)),
            Ok(None) => break,
            Err(error) => Err(error),
        };
        match next {
            Ok(Joined::Whole(Whole { frame, .. })) => came.push(Came::Whole(frame)),
            Ok(Joined::NoRoom(head)) => came.push(Came::NoRoom(head)),
            Ok(Joined::Waiting) => {}
            Err(error) => {
                came.push(Came::Over(error.to_string()));
                break;
            }
        }
    }
    assert_eq!(budget.used(), 0, "nothing is held, so no room may be taken");
    came
}

/// A byte stream. The second byte says how small the pieces are in which it comes. How many frames came.
///
/// # Panics
/// When something is wrong with the reader.
pub fn frames(input: &[u8]) -> usize {
    let [flags, most, bytes @ ..] = input else { return 0 };
    let mut bytes = bytes.to_vec();
    if flags & RESEAL != 0 {
        reseal(&mut bytes);
    }
    let (bytes, joins) = (Bytes::from(bytes), flags & JOIN != 0);
    let came = read(&bytes, usize::MAX, joins);
    assert_eq!(read(&bytes, usize::from(*most) + 1, joins), came, "what comes does not depend on the pieces");
    let mut count = 0;
    for frame in came.iter().filter_map(|came| if let Came::Whole(frame) = came { Some(frame) } else { None })
    {
        let encoded = frame.encode();
        assert_eq!(Frame::decode(&encoded).as_ref(), Ok(frame));
        // What is sent in parts comes together again.
        let sent: Vec<u8> = split(frame, FEATURE_PARTS).concat();
        let again = read_all(&sent.into());
        let is_part = frame.head.kind & 0x7fff == PART;
        assert!(is_part || again.as_ref() == Some(frame), "it was split and comes together as {again:?}");
        count += 1;
    }
    count
}

/// The one frame of a stream without bounds of room.
fn read_all(bytes: &Bytes) -> Option<Frame> {
    let mut reader = FrameReader::new(Box::new(Pieces { left: bytes.clone(), most: usize::MAX }));
    let mut joiner = Joiner::new(Budget::new(usize::MAX), FEATURE_PARTS);
    let limits = ReadLimits { len_max: FRAME_LEN_MAX, within: Duration::from_secs(1), budget: None };
    while let Ok(Some(Incoming::Whole(frame, room))) = reader.next(&NoTime, limits).now_or_never()? {
        match joiner.take(frame, NOW, room).ok()? {
            Joined::Whole(whole) => return Some(whole.frame),
            Joined::Waiting => {}
            Joined::NoRoom(_) => return None,
        }
    }
    None
}

/// Makes the checksums of frames right, as far as their lengths lead.
pub fn reseal(bytes: &mut [u8]) {
    let mut offset = 0;
    while let Some(prefix) = bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>()) {
        let left = bytes.len() - offset;
        let Ok(len) = envelope::message_len(*prefix, FRAME_HEAD_LEN, left) else { return };
        envelope::seal(&mut bytes[offset..offset + len], 0);
        offset += len;
    }
}

/// Parts of messages, each as seven bytes: request id, kind, total (u16), bytes that come (u16), what they are. How
/// many messages came together.
///
/// # Panics
/// When something is wrong with the joiner.
pub fn parts(input: &[u8]) -> usize {
    let budget = Budget::new(ROOM);
    let mut joiner = Joiner::new(budget.clone(), FEATURE_PARTS);
    let mut sent: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut count = 0;
    for step in input.chunks_exact(7) {
        let (id, kind) = (u64::from(step[0]), u16::from(step[1]));
        let total = u32::from(u16::from_le_bytes([step[2], step[3]]));
        let bytes = vec![step[6]; usize::from(u16::from_le_bytes([step[4], step[5]]))];
        let mut body = Vec::new();
        let part = Part { kind, total, bytes: bytes.clone().into() };
        codec::encode_into(&part, &mut body).expect("a part can be written");
        assert_eq!(codec::decode::<Part>(&body), Ok(part));
        let head = FrameHead { kind: PART, request_id: RequestId(id), ..FrameHead::default() };
        sent.entry(id).or_default().extend_from_slice(&bytes);
        match joiner.take(Frame { head, body: body.into() }, NOW, None) {
            Ok(Joined::Whole(Whole { frame, .. })) => {
                assert_eq!(frame.head, FrameHead { kind, ..head });
                assert_eq!(Some(frame.body.to_vec()), sent.remove(&id), "the whole is its parts, in order");
                count += 1;
            }
            Ok(Joined::Waiting) => {
                // The last part of what was refused gives nothing either.
                if sent[&id].len() == total as usize {
                    sent.remove(&id);
                }
            }
            Ok(Joined::NoRoom(head)) => {
                assert!(budget.used() + total as usize > ROOM, "there was room");
                assert_eq!(head.kind, kind);
                if sent[&id].len() == total as usize {
                    sent.remove(&id);
                }
            }
            Err(_) => break,
        }
        assert!(budget.used() <= ROOM, "more is held than there is room for");
    }
    drop(joiner);
    assert_eq!(budget.used(), 0, "nothing is held, so no room may be taken");
    count
}

/// A body of one of these kinds: the first byte says which, the second in which version. Whether it was one.
fn body(input: &[u8], is_meant: impl Fn(u16) -> bool) -> bool {
    let [kind, version, body @ ..] = input else { return false };
    let kinds: Vec<u16> = KINDS.iter().map(|(kind, ..)| *kind).filter(|kind| is_meant(*kind)).collect();
    let kind = kinds[usize::from(*kind) % kinds.len()];
    let version = VERSION_MIN + *version % (VERSION - VERSION_MIN + 1);
    written_again(kind, version, body).is_some()
}

/// A body of the handshake. Whether it was one.
///
/// # Panics
/// When something is wrong with the messages.
pub fn handshake(input: &[u8]) -> bool {
    if let Some(hello) = input.get(2..).and_then(|body| codec::decode::<Hello>(body).ok())
        && let Some(version) = Spoken::default().common(&hello)
    {
        assert!((VERSION_MIN..=VERSION).contains(&version), "it is none of ours");
        assert!((hello.version_min..=hello.version_max).contains(&version), "it is none of theirs");
    }
    body(input, |kind| kind & 0x7f00 == 0)
}

/// A body of a client's request or of its answer. Whether it was one.
///
/// # Panics
/// When something is wrong with the messages.
pub fn client(input: &[u8]) -> bool {
    body(input, |kind| kind & 0x7f00 == 0x0100)
}

/// A body of a node's request to another or of its answer. Whether it was one.
///
/// # Panics
/// When something is wrong with the messages.
pub fn peer(input: &[u8]) -> bool {
    body(input, |kind| kind & 0x7f00 == 0x0200)
}

/// Three layouts that follow each other, oldest first.
pub fn some_layouts() -> Vec<Arc<Layout>> {
    let member = |id: u64| Member {
        id: NodeId(id),
        peer_addr: format!("127.0.0.1:{id}"),
        client_addr: format!("127.0.0.1:10{id}"),
        zone: String::new(),
        capacity: 1,
    };
    let q = PartitionCount::new(8).expect("a power of two");
    let first = Layout::first(q, 2, (1..=3).map(member).collect()).expect("a sound layout");
    let second = first.next((1..=4).map(member).collect()).expect("a sound layout");
    let third = second.next((2..=4).map(member).collect()).expect("a sound layout");
    [first, second, third].into_iter().map(Arc::new).collect()
}

/// The layouts that a peer offers. Whether they are a history.
///
/// # Panics
/// When something is wrong with layouts and their history.
pub fn layouts(input: &[u8]) -> bool {
    let Ok(OfferLayouts { active }) = OfferLayouts::decode(VERSION, input) else { return false };
    for layout in &active {
        assert_eq!(layout.validate(), Ok(()), "what was read is sound");
    }
    let known = some_layouts();
    for held in 1..=known.len() {
        let mut history = LayoutHistory::new(known[0].clone());
        for layout in &known[1..held] {
            history.adopt(layout.clone()).expect("they follow each other");
        }
        let before = history.clone();
        for layout in &active {
            let last = history.clone();
            if history.adopt(layout.clone()).is_err() {
                assert_eq!(history, last, "what is refused changes nothing");
            }
            is_sound(&history);
        }
        if let Ok(offered) = LayoutHistory::try_from(active.clone()) {
            let mut joined = before.clone();
            if joined.catch_up(&offered).is_err() {
                assert_eq!(joined, before, "what is refused changes nothing");
            }
            is_sound(&joined);
            let once = joined.clone();
            let _ = joined.catch_up(&offered);
            assert_eq!(joined, once, "what is known already changes nothing");
        }
    }
    LayoutHistory::try_from(active).is_ok()
}

fn is_sound(history: &LayoutHistory) {
    let again = LayoutHistory::try_from(history.active().to_vec());
    assert_eq!(again.as_ref(), Ok(history), "a history is a chain");
}

/// A context token, under the secret of the tests. Whether it opens.
///
/// # Panics
/// When something is wrong with tokens.
pub fn token(input: &[u8]) -> bool {
    let Some((flags, bytes)) = input.split_first() else { return false };
    let (key, other) = (some_key(b"dove"), some_key(b"crow"));
    let ours =
        Token { secret: &TokenSecret([7; 32]), cluster: ClusterId(5), namespace: Namespace(0), key: &key };
    let mut bytes = bytes.to_vec();
    if flags & RESEAL != 0 {
        resign(&mut bytes, &ours);
    }
    let Ok(context) = ours.open(&bytes) else { return false };
    assert_eq!(ours.seal(&context).as_ref(), Ok(&bytes), "there is one token for a context");
    assert_eq!(Token { key: &other, ..ours }.open(&bytes), Err(TokenError::OtherKey));
    assert_eq!(Token { cluster: ClusterId(6), ..ours }.open(&bytes), Err(TokenError::OtherCluster));
    let elsewhere = Token { secret: &TokenSecret([8; 32]), ..ours };
    assert_eq!(elsewhere.open(&bytes), Err(TokenError::Damaged), "a MAC of another secret");
    true
}

fn some_key(bytes: &'static [u8]) -> Key {
    Key::new(bytes).expect("a short key")
}

/// Makes version, cluster, key and MAC of a token right, so that what it says of itself is all that can be wrong.
fn resign(token: &mut [u8], of: &Token<'_>) {
    let empty = of.seal(&crate::dynamo::version::VersionVector::new()).expect("an empty context fits");
    // Version, cluster, namespace, key hash; behind them the number of entries.
    let (head, mac) = (29, 16);
    if token.len() < head + 2 + mac {
        return;
    }
    token[..head].copy_from_slice(&empty[..head]);
    let (sealed, tag) = token.split_at_mut(token.len() - mac);
    let mut hasher = blake3::Hasher::new_keyed(&of.secret.0);
    hasher.update(sealed);
    hasher.update(of.key.as_bytes());
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..mac]);
}
