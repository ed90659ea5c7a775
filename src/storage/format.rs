//! What stands in the files of the log: kinds of records, their checksums, the heads of segments and groups.
//!
//! ```text
//!   0000000007.log
//!   ┌──────────────┬──────────┬────────────┬────────┬────────┬───┬────────────┬────────┬───
//!   │ segment head │ the same │ group head │ record │ record │ … │ group head │ record │ …
//!   │ 56 bytes     │ 56 bytes │ 72 bytes   │        │        │   │            │        │
//!   └──────────────┴──────────┴────────────┴────────┴────────┴───┴────────────┴────────┴───
//!   position: base              base + 112                         = all before it is synced
//! ```
//! Each box is one message in the envelope (`net::envelope`). Its checksum starts from a seed over segment id and
//! offset, so that a record at a wrong place is seen, and over the segment's salt, random bits that its head tells:
//! behind damage every byte is tried as the beginning of a record (`walk`), and a client that knew the seed could put
//! a value that has a whole record in it. A candidate of his passes with a chance of 2^-32. Nothing of a segment can
//! be read without its salt, so the head stands there twice and is synced before anything follows it.
//!
//! A *position* counts bytes over all segments: a segment's base plus the offset in its file. The heads have fixed
//! lengths, so that what follows has its place before it is known how long the group will be.

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::body::{encode_entry, encode_slot};
use super::{Entry, PartitionState, Slot};
use crate::net::codec::{self, CodecError};
use crate::net::envelope::{self, Opened, PREFIX_LEN};
use crate::types::{Incarnation, PartitionId};

/// A slot and what is in it (`body`).
pub(super) const KIND_ENTRY: u16 = 1;
/// A start of the node.
pub(super) const KIND_START: u16 = 2;
/// `node.meta`.
pub(super) const KIND_META: u16 = 3;
/// Head of a segment.
pub(super) const KIND_SEGMENT: u16 = 4;
/// Head of a commit group.
pub(super) const KIND_GROUP: u16 = 5;
/// A slot that is empty from here on (`body`).
pub(super) const KIND_REMOVE: u16 = 6;
/// The state of one partition.
pub(super) const KIND_STATE: u16 = 7;
/// The clean-shutdown mark.
pub(super) const KIND_CLEAN: u16 = 8;
/// Kinds from here on are those of the snapshot.
pub(super) const KIND_SNAPSHOT: u16 = 16;

/// Bytes of one copy of a segment's head.
const HEAD_LEN: usize = PREFIX_LEN + 40;
/// Bytes of a segment's head, both copies.
pub(super) const SEGMENT_HEAD_LEN: usize = 2 * HEAD_LEN;
/// Bytes of a group's head.
pub(super) const GROUP_HEAD_LEN: usize = PREFIX_LEN + 56;
/// Most bytes of a whole record.
pub(super) const RECORD_LEN_MAX: usize = codec::BODY_LEN_MAX + PREFIX_LEN;
/// Bytes of the set of partitions in a group's head.
const PARTITIONS_LEN: usize = 32;

const RECORD_VERSION: u8 = 1;

/// The body of [`KIND_START`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartBody {
    pub(super) incarnation: Incarnation,
    /// Starts of this directory up to this one.
    pub(super) starts: u64,
}

/// The body of [`KIND_STATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateBody {
    pub(super) partition: PartitionId,
    pub(super) state: PartitionState,
}

/// What the checksums of a file hang on besides their places in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Salted {
    /// The segment's; files that are no segments have ids that no segment has.
    pub(super) id: u64,
    /// The segment's; 0 in what is read at fixed places only, and so cannot be in a value.
    pub(super) salt: u64,
}

impl Salted {
    /// Of a file that has no salt, and of the heads of segments.
    pub(super) fn plain(id: u64) -> Salted {
        Salted { id, salt: 0 }
    }
}

/// The checksum of what stands at `offset` of a file starts from here. With a salt it is a keyed hash: who has seen some
/// seeds knows no other. Without one it is as in every build before, which could else not tell each other's `node.meta`
/// from a damaged one.
pub(super) fn seed_of(of: Salted, offset: u64) -> u32 {
    if of.salt == 0 {
        let mut place = [0; 16];
        place[..8].copy_from_slice(&of.id.to_le_bytes());
        place[8..].copy_from_slice(&offset.to_le_bytes());
        return crc32c::crc32c(&place);
    }
    let hash = SipHasher13::new_with_keys(of.salt, of.id).hash(&offset.to_le_bytes());
    u32::try_from(hash >> 32).expect("the upper half")
}

/// Appends a record to `out`; `seed` is that of the place where it will stand. Gives its length.
///
/// # Errors
/// When the body cannot be encoded or is too large; `out` is as it was.
pub(super) fn append_record(
    out: &mut Vec<u8>,
    seed: u32,
    kind: u16,
    body: &impl Serialize,
) -> Result<usize, CodecError> {
    append_with(out, seed, kind, |out| codec::encode_into(body, out))
}

/// Appends a record of an entry with its slot.
///
/// # Errors
/// As [`append_record`].
pub(super) fn append_entry(
    out: &mut Vec<u8>,
    seed: u32,
    slot: &Slot,
    entry: &Entry,
) -> Result<usize, CodecError> {
    append_with(out, seed, KIND_ENTRY, |out| encode_entry(slot, entry, out))
}

/// Appends a removal.
///
/// # Errors
/// As [`append_record`].
pub(super) fn append_removal(out: &mut Vec<u8>, seed: u32, slot: &Slot) -> Result<usize, CodecError> {
    append_with(out, seed, KIND_REMOVE, |out| {
        encode_slot(slot, out);
        Ok(())
    })
}

/// Appends a record whose body is at hand as bytes.
pub(super) fn append_raw(out: &mut Vec<u8>, seed: u32, kind: u16, body: &[u8]) -> Result<usize, CodecError> {
    append_with(out, seed, kind, |out| {
        out.extend_from_slice(body);
        Ok(())
    })
}

fn append_with(
    out: &mut Vec<u8>,
    seed: u32,
    kind: u16,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
) -> Result<usize, CodecError> {
    let start = out.len();
    out.resize(start + PREFIX_LEN, 0);
    let encoded = body(out);
    let len = out.len() - start;
    let too_large = || CodecError::Unencodable(format!("{len} bytes, at most {RECORD_LEN_MAX} are kept"));
    if let Err(error) = encoded.and_then(|()| if len > RECORD_LEN_MAX { Err(too_large()) } else { Ok(()) }) {
        out.truncate(start);
        return Err(error);
    }
    seal(&mut out[start..], seed, kind);
    Ok(len)
}

/// Fills in the fixed part of a message whose body stands.
fn seal(message: &mut [u8], seed: u32, kind: u16) {
    let body_len = u32::try_from(message.len() - PREFIX_LEN).expect("checked: below 4 GiB");
    message[8..10].copy_from_slice(&kind.to_le_bytes());
    message[10] = RECORD_VERSION;
    message[12..16].copy_from_slice(&body_len.to_le_bytes());
    envelope::seal(message, seed);
}

/// Checks a whole record.
pub(super) fn open_record(bytes: &[u8], seed: u32) -> Option<Opened> {
    envelope::open(bytes, PREFIX_LEN, seed).ok().filter(|opened| opened.version == RECORD_VERSION)
}

/// Whether a record may begin with these bytes, and then its length: cheap, to be asked at every byte of a damaged
/// stretch. `max` is how many bytes there are.
pub(super) fn plausible_len(head: &[u8], max: usize) -> Option<usize> {
    let head: &[u8; PREFIX_LEN] = head.first_chunk()?;
    let len =
        envelope::message_len([head[0], head[1], head[2], head[3]], PREFIX_LEN, max.min(RECORD_LEN_MAX));
    let len = len.ok()?;
    let body_len = u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize;
    let kind = u16::from_le_bytes([head[8], head[9]]);
    let known = (KIND_ENTRY..=KIND_CLEAN).contains(&kind) && head[10] == RECORD_VERSION;
    (known && body_len <= len - PREFIX_LEN).then_some(len)
}

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) id: u64,
    /// Position of its first byte.
    pub(super) base: u64,
    /// Everything before this position was synced before the segment was made.
    pub(super) synced: u64,
    /// Random bits of this segment.
    pub(super) salt: u64,
    /// Id of the segment that ends at `base`; 0 when there is none. Ids may have gaps between them where nothing was ever
    /// kept, so that two segments lie end to end is told by this and not by their ids.
    pub(super) before: u64,
}

impl SegmentHead {
    /// What the checksums of the segment's records hang on.
    pub(super) fn salted(&self) -> Salted {
        Salted { id: self.id, salt: self.salt }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; SEGMENT_HEAD_LEN];
        for (copy, at) in out.chunks_mut(HEAD_LEN).zip([0, HEAD_LEN as u64]) {
            copy[16..24].copy_from_slice(&self.id.to_le_bytes());
            copy[24..32].copy_from_slice(&self.base.to_le_bytes());
            copy[32..40].copy_from_slice(&self.synced.to_le_bytes());
            copy[40..48].copy_from_slice(&self.salt.to_le_bytes());
            copy[48..56].copy_from_slice(&self.before.to_le_bytes());
            seal(copy, seed_of(Salted::plain(self.id), at), KIND_SEGMENT);
        }
        out
    }

    /// Reads the head of the segment that the file's name says this is, and whether both copies of it are whole.
    pub(super) fn decode(bytes: &[u8], id: u64) -> Option<(SegmentHead, bool)> {
        let copy = |at: usize| {
            let bytes = bytes.get(at..at + HEAD_LEN)?;
            let opened = open_record(bytes, seed_of(Salted::plain(id), at as u64))?;
            let (base, synced, salt) = (word(bytes, 24), word(bytes, 32), word(bytes, 40));
            let head = SegmentHead { id: word(bytes, 16), base, synced, salt, before: word(bytes, 48) };
            (opened.kind == KIND_SEGMENT && head.id == id).then_some(head)
        };
        let (first, second) = (copy(0), copy(HEAD_LEN));
        Some((first.or(second)?, first == second))
    }
}

/// The partitions with records in a group: exact up to Q = 256, above that by their number modulo 256, which names
/// too many and never too few.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PartitionSet([u8; PARTITIONS_LEN]);

impl PartitionSet {
    /// Every partition there is.
    pub(super) const ALL: PartitionSet = PartitionSet([0xff; PARTITIONS_LEN]);

    pub(super) fn insert(&mut self, partition: PartitionId) {
        let bit = partition.0 as usize % (PARTITIONS_LEN * 8);
        self.0[bit / 8] |= 1 << (bit % 8);
    }

    pub(super) fn contains(&self, partition: PartitionId) -> bool {
        let bit = partition.0 as usize % (PARTITIONS_LEN * 8);
        self.0[bit / 8] & (1 << (bit % 8)) != 0
    }

    pub(super) fn join(&mut self, other: &PartitionSet) {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own |= other);
    }
}

/// The head of a commit group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupHead {
    /// Where this head stands.
    pub(super) position: u64,
    /// Everything before this position was synced before a byte of this group was written.
    pub(super) synced: u64,
    /// Bytes of the records behind the head.
    pub(super) len: u32,
    /// How many they are.
    pub(super) records: u32,
    /// Whose they are.
    pub(super) partitions: PartitionSet,
}

impl GroupHead {
    /// Writes the head into the first [`GROUP_HEAD_LEN`] bytes of the group.
    pub(super) fn write(&self, group: &mut [u8], seed: u32) {
        let head = &mut group[..GROUP_HEAD_LEN];
        head[16..24].copy_from_slice(&self.position.to_le_bytes());
        head[24..32].copy_from_slice(&self.synced.to_le_bytes());
        head[32..36].copy_from_slice(&self.len.to_le_bytes());
        head[36..40].copy_from_slice(&self.records.to_le_bytes());
        head[40..40 + PARTITIONS_LEN].copy_from_slice(&self.partitions.0);
        seal(head, seed, KIND_GROUP);
    }

    /// Reads a message that was checked and is of [`KIND_GROUP`].
    pub(super) fn read(message: &[u8]) -> Option<GroupHead> {
        let half = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().expect("4 bytes"));
        (message.len() == GROUP_HEAD_LEN).then(|| GroupHead {
            position: word(message, 16),
            synced: word(message, 24),
            len: half(32),
            records: half(36),
            partitions: PartitionSet(message[40..40 + PARTITIONS_LEN].try_into().expect("32 bytes")),
        })
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_read_back_at_their_place_and_nowhere_else() {
        let head = SegmentHead { id: 7, base: 1 << 40, synced: 99, salt: 1 << 50, before: 5 };
        let bytes = head.encode();
        assert_eq!(bytes.len(), SEGMENT_HEAD_LEN);
        assert_eq!(SegmentHead::decode(&bytes, 7), Some((head, true)));
        assert_eq!(SegmentHead::decode(&bytes, 8), None);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(SegmentHead::decode(&bytes, 7), Some((head, false)), "byte {at}");
            let other = (at + HEAD_LEN) % SEGMENT_HEAD_LEN;
            bytes[other] ^= 1;
            assert_eq!(SegmentHead::decode(&bytes, 7), None, "bytes {at} and {other}");
        }

        let mut partitions = PartitionSet::default();
        partitions.insert(PartitionId(3));
        partitions.insert(PartitionId(65_535));
        assert!(partitions.contains(PartitionId(255)) && !partitions.contains(PartitionId(4)));
        let group = GroupHead { position: 5, synced: 4, len: 3, records: 2, partitions };
        let mut bytes = vec![0; GROUP_HEAD_LEN + 3];
        let of = head.salted();
        group.write(&mut bytes, seed_of(of, 96));
        let message = &bytes[..plausible_len(&bytes, bytes.len()).unwrap()];
        assert_eq!(open_record(message, seed_of(of, 96)).map(|opened| opened.kind), Some(KIND_GROUP));
        assert!(open_record(message, seed_of(of, 97)).is_none());
        assert!(open_record(message, seed_of(Salted { id: 6, ..of }, 96)).is_none());
        assert!(open_record(message, seed_of(Salted::plain(7), 96)).is_none());
        assert_eq!(GroupHead::read(message), Some(group));
    }

    #[test]
    fn what_a_directory_says_of_itself_is_readable_by_all_builds() {
        assert_eq!(seed_of(Salted::plain(0), 0), crc32c::crc32c(&[0; 16]));
    }

    #[test]
    fn a_refused_body_leaves_no_trace() {
        let mut out = vec![1, 2];
        let len = append_raw(&mut out, 0, KIND_ENTRY, &vec![0; RECORD_LEN_MAX]);
        assert!(len.is_err());
        assert_eq!(out, [1, 2]);
    }
}
