//! The fixed part before every body, on the wire and on the disk, and the extensions behind it.
//!
//! ```text
//!   offset  0        4        8       10       11     12         16
//!           length   crc32c   kind    version  flags  body len   … frames: 44 more bytes …   body   extensions
//!           u32      u32      u16     u8       u8     u32
//!
//!   frames: 16          24              28               36            44          60
//!           request id  remaining ms    layout version   layout hash   trace id
//!           u64         u32             u64              u64           16 bytes
//!
//!   extension: tag u16 (highest bit: critical), length u32, bytes
//! ```
//! All little-endian. `length` counts what follows it; the checksum covers what follows *it*. A frame's checksum
//! starts from 0, a disk record's from a seed that names its place, so that a record at a wrong place is seen.
//! Unknown extensions are skipped, unknown critical ones refuse the message.

use bytes::{BufMut, Bytes};

use super::codec::BODY_LEN_MAX;
use crate::types::{LayoutRef, RequestId, TraceId};

/// Bytes of the fixed part that frames and disk records share.
pub const PREFIX_LEN: usize = 16;
/// Bytes of a frame's fixed part.
pub const FRAME_HEAD_LEN: usize = 60;
/// Most bytes of a whole frame.
pub const FRAME_LEN_MAX: usize = FRAME_HEAD_LEN + BODY_LEN_MAX + EXTENSIONS_LEN_MAX;
/// Most bytes of a message's extensions.
pub const EXTENSIONS_LEN_MAX: usize = 64 * 1024;
/// Extensions with this bit in their tag must be understood.
pub const CRITICAL: u16 = 0x8000;

/// Why bytes are not a message. The connection is closed, or the disk record treated as damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The length field is below the fixed part or above the limit.
    #[error("a length of {len} bytes is outside {min} to {max}")]
    Length {
        /// What it says.
        len: usize,
        /// The least possible.
        min: usize,
        /// The limit in force.
        max: usize,
    },
    /// The bytes are not those that were written.
    #[error("checksum mismatch")]
    Checksum,
    /// Body or extensions run past the end.
    #[error("lengths inside the message do not add up")]
    Inconsistent,
    /// An extension that must be understood and is not.
    #[error("unknown critical extension {0:#06x}")]
    CriticalExtension(u16),
}

/// A frame's fixed part, without lengths and checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameHead {
    /// Which message the body is (`message`).
    pub kind: u16,
    /// Version of the protocol that the body is written in.
    pub version: u8,
    /// Reserved, zero.
    pub flags: u8,
    /// Pairs answers with requests.
    pub request_id: RequestId,
    /// Milliseconds that the asker will still wait, counted by the receiver from receipt; 0 in answers.
    pub remaining_ms: u32,
    /// The layout that the sender goes by.
    pub layout: LayoutRef,
    /// Follows a client's request through the nodes.
    pub trace_id: TraceId,
}

/// A frame with its body, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The fixed part.
    pub head: FrameHead,
    /// Bytes of the body.
    pub body: Bytes,
}

impl Frame {
    /// The frame's bytes on the wire.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_LEN_MAX`], which its encoder has checked.
    pub fn encode(&self) -> Bytes {
        assert!(self.body.len() <= BODY_LEN_MAX, "the codec lets no longer body through");
        let mut out = Vec::with_capacity(FRAME_HEAD_LEN + self.body.len());
        out.put_bytes(0, 8);
        out.put_u16_le(self.head.kind);
        out.put_u8(self.head.version);
        out.put_u8(self.head.flags);
        out.put_u32_le(len_u32(self.body.len()));
        out.put_u64_le(self.head.request_id.0);
        out.put_u32_le(self.head.remaining_ms);
        out.put_u64_le(self.head.layout.version);
        out.put_u64_le(self.head.layout.hash);
        out.put_slice(&self.head.trace_id.0);
        out.put_slice(&self.body);
        seal(&mut out, 0);
        out.into()
    }

    /// Reads a whole frame, its length field included.
    ///
    /// # Errors
    /// When the bytes are not a frame that [`Frame::encode`] of this or a newer version wrote.
    pub fn decode(bytes: &Bytes) -> Result<Frame, EnvelopeError> {
        let inner = open(bytes, FRAME_HEAD_LEN, 0)?;
        let head = bytes.first_chunk().expect("it was opened as a frame");
        Ok(Frame { head: Frame::head_of(head), body: bytes.slice(inner.body) })
    }

    /// What the fixed part of a frame says. The caller has checked the frame.
    pub(super) fn head_of(bytes: &[u8; FRAME_HEAD_LEN]) -> FrameHead {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        FrameHead {
            kind: u16::from_le_bytes([bytes[8], bytes[9]]),
            version: bytes[10],
            flags: bytes[11],
            request_id: RequestId(word(16)),
            remaining_ms: u32::from_le_bytes(bytes[24..28].try_into().expect("4 bytes")),
            layout: LayoutRef { version: word(28), hash: word(36) },
            trace_id: TraceId(bytes[44..60].try_into().expect("16 bytes")),
        }
    }
}

/// The shared part of a checked message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Which message it is.
    pub kind: u16,
    /// Version of its form.
    pub version: u8,
    /// Reserved.
    pub flags: u8,
    /// Where the body stands.
    pub body: std::ops::Range<usize>,
}

/// Reads the length field: how many bytes the whole message has, itself included.
///
/// # Errors
/// When it cannot be, or is above `max`: checked before anything is allocated.
pub fn message_len(prefix: [u8; 4], min: usize, max: usize) -> Result<usize, EnvelopeError> {
    let len = u32::from_le_bytes(prefix) as usize;
    let len = len.saturating_add(4);
    if len < min || len > max { Err(EnvelopeError::Length { len, min, max }) } else { Ok(len) }
}

/// Fills in length and checksum of a message whose other bytes stand.
///
/// # Panics
/// When the message is 4 GiB or longer.
pub fn seal(message: &mut [u8], seed: u32) {
    let len = len_u32(message.len() - 4);
    message[0..4].copy_from_slice(&len.to_le_bytes());
    let checksum = crc32c::crc32c_append(seed, &message[8..]);
    message[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Checks a whole message: length, checksum, extensions.
///
/// # Errors
/// When anything about it is not as [`seal`] left it.
pub fn open(message: &[u8], head_len: usize, seed: u32) -> Result<Opened, EnvelopeError> {
    let max = u32::MAX as usize;
    if message.len() < head_len {
        return Err(EnvelopeError::Length { len: message.len(), min: head_len, max });
    }
    let len = message_len([message[0], message[1], message[2], message[3]], head_len, max)?;
    if len != message.len() {
        return Err(EnvelopeError::Length { len, min: message.len(), max: message.len() });
    }
    let checksum = crc32c::crc32c_append(seed, &message[8..]);
    if checksum.to_le_bytes() != message[4..8] {
        return Err(EnvelopeError::Checksum);
    }
    let body_len = u32::from_le_bytes([message[12], message[13], message[14], message[15]]) as usize;
    let body_end = head_len.checked_add(body_len).filter(|end| *end <= message.len());
    let body_end = body_end.ok_or(EnvelopeError::Inconsistent)?;
    skip_extensions(&message[body_end..])?;
    Ok(Opened {
        kind: u16::from_le_bytes([message[8], message[9]]),
        version: message[10],
        flags: message[11],
        body: head_len..body_end,
    })
}

/// Walks over the extensions; none is known yet, so a critical one refuses the message.
fn skip_extensions(mut rest: &[u8]) -> Result<(), EnvelopeError> {
    if rest.len() > EXTENSIONS_LEN_MAX {
        return Err(EnvelopeError::Inconsistent);
    }
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(6).ok_or(EnvelopeError::Inconsistent)?;
        let tag = u16::from_le_bytes([head[0], head[1]]);
        let len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        rest = tail.get(len..).ok_or(EnvelopeError::Inconsistent)?;
        if tag & CRITICAL != 0 {
            return Err(EnvelopeError::CriticalExtension(tag));
        }
    }
    Ok(())
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("messages are shorter than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(body: &[u8]) -> Frame {
        let head = FrameHead {
            kind: 0x1234,
            version: 1,
            flags: 0,
            request_id: RequestId(7),
            remaining_ms: 1500,
            layout: LayoutRef { version: 3, hash: 0xdead_beef },
            trace_id: TraceId([9; 16]),
        };
        Frame { head, body: Bytes::copy_from_slice(body) }
    }

    fn with_extension(frame: &Frame, tag: u16, claim: u32, bytes: &[u8]) -> Bytes {
        let mut out = frame.encode().to_vec();
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&claim.to_le_bytes());
        out.extend_from_slice(bytes);
        seal(&mut out, 0);
        out.into()
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        let frame = frame(b"hello");
        let bytes = frame.encode();
        assert_eq!(bytes.len(), FRAME_HEAD_LEN + 5);
        assert_eq!(Frame::decode(&bytes), Ok(frame));
    }

    #[test]
    fn every_single_bit_flip_is_refused() {
        let bytes = frame(b"a body").encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&damaged.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn unknown_extensions_are_skipped_and_critical_ones_refused() {
        let frame = frame(b"body");
        assert_eq!(Frame::decode(&with_extension(&frame, 5, 3, b"abc")), Ok(frame.clone()));
        assert_eq!(
            Frame::decode(&with_extension(&frame, 5 | CRITICAL, 3, b"abc")),
            Err(EnvelopeError::CriticalExtension(0x8005))
        );
        assert_eq!(Frame::decode(&with_extension(&frame, 5, 4, b"abc")), Err(EnvelopeError::Inconsistent));
    }

    #[test]
    fn a_length_is_judged_before_anything_is_allocated() {
        let four_gib = message_len(u32::MAX.to_le_bytes(), FRAME_HEAD_LEN, FRAME_LEN_MAX);
        assert!(matches!(four_gib, Err(EnvelopeError::Length { .. })));
        assert!(message_len([0; 4], FRAME_HEAD_LEN, FRAME_LEN_MAX).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::decode(&bytes.into());
        }

        #[test]
        fn sealed_garbage_does_not_make_it_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), FRAME_HEAD_LEN..200)
        ) {
            seal(&mut bytes, 0);
            let _ = Frame::decode(&bytes.into());
        }
    }
}
