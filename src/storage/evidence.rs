//! What the bytes of a segment prove, read apart from the engine: no index, no positions that anybody remembers.
//!
//! The simulator gives it what a disk holds for certain and so knows which copies a power loss cannot take, without
//! believing the engine a word. Records are found as recovery finds them: by their checksums, over damage too.

use bytes::Bytes;

use super::body::{decode_entry, decode_slot};
use super::format::{
    GROUP_HEAD_LEN, KIND_ENTRY, KIND_REMOVE, SEGMENT_HEAD_LEN, SegmentHead, open_record, plausible_len,
    seed_of,
};
use super::{Entry, Slot, segment};
use crate::net::envelope::PREFIX_LEN;

/// One record of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it stands in the file.
    pub offset: u64,
    /// The slot that it is about.
    pub slot: Slot,
    /// What it leaves in the slot: nothing, where it is a removal.
    pub entry: Option<Entry>,
}

/// The segment that a file's name stands for; none if it is no segment's.
pub fn segment_of(name: &str) -> Option<u64> {
    segment::id_of(name)
}

/// The records of segment `id` in `bytes`, which stand at `from` in its file, and the offset behind the last whole one.
/// `head` is the file's beginning, at least as long as a segment's head. What is not whole yet is found by the next call,
/// from that offset on.
pub fn records(id: u64, head: &[u8], from: u64, bytes: &Bytes) -> (Vec<Found>, u64) {
    let Some((head, _)) = SegmentHead::decode(head, id) else {
        return (Vec::new(), from);
    };
    let (mut found, mut at, mut behind) = (Vec::new(), 0, 0);
    while bytes.len() - at >= PREFIX_LEN {
        let offset = from + at as u64;
        let whole = plausible_len(&bytes[at..], bytes.len() - at)
            .and_then(|len| Some((len, open_record(&bytes[at..at + len], seed_of(head.salted(), offset))?)));
        let Some((len, opened)) = whole else {
            at += 1;
            continue;
        };
        let body = bytes.slice(at..at + len).slice(opened.body);
        if (opened.kind == KIND_ENTRY || opened.kind == KIND_REMOVE)
            && let Ok(slot) = decode_slot(&body)
        {
            let entry = (opened.kind == KIND_ENTRY).then(|| decode_entry(&slot, &body).ok().flatten());
            match entry {
                Some(None) => {}
                Some(Some(entry)) => found.push(Found { offset, slot, entry: Some(entry) }),
                None => found.push(Found { offset, slot, entry: None }),
            }
        }
        at += len;
        behind = at;
    }
    (found, from + behind as u64)
}

/// Bytes at the beginning of a segment that [`records`] wants as its head.
pub const HEAD_LEN: usize = SEGMENT_HEAD_LEN;

// A group's head is a record of its own kind and is walked over like any other.
const _: () = assert!(GROUP_HEAD_LEN >= PREFIX_LEN);
