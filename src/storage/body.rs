//! How an entry lies on the disk. The one body that is laid out by hand: it is nearly all of the log, plain bincode
//! spends 99 bytes on what this says in 59, and here a value is a slice of what was read, not a copy.
//!
//! ```text
//!   slot       flags u8 │ partition │ namespace, if flagged │ key length │ key
//!   entry      slot │ targets, if flagged: count, u64 each │ copy
//!   copy       Sole:  sibling                                  context and last dot are those of the one sibling
//!              else:  last dot, if Live │ context: count, dot each │ siblings: count, sibling each
//!   sibling    flags u8 │ dot │ write id 16 bytes │ written_at u64 │ expires_at u64, if flagged
//!              │ meta, if flagged: length, bincode │ value, unless a tombstone: length, bytes
//!   dot        incarnation u64 │ epoch │ counter
//! ```
//! Fixed integers are little-endian. All others are LEB128: seven bits a byte, lowest first, the highest bit says that
//! more follow, no more bytes than needed. A form that [`encode_entry`] would not have chosen is refused, so an entry
//! has one form.
//!
//! A removal's body is a slot alone.

use bytes::{BufMut, Bytes};

use super::index::INDEX_KEY_LEN;
use super::{Entry, Slot, Table};
use crate::dynamo::version::{Content, Dot, LocalCopy, LocalHeader, Meta, Record, Sibling, VersionVector};
use crate::net::codec::{self, CodecError};
use crate::types::{ActorId, Incarnation, Key, Namespace, NodeId, PartitionId, Wall, WriteId};

/// Flags of a slot and of the entry behind it.
mod flag {
    pub(super) const GUEST: u8 = 1;
    pub(super) const NAMESPACE: u8 = 2;
    pub(super) const TARGETS: u8 = 4;
    /// One sibling, whose dot is all of the context.
    pub(super) const SOLE: u8 = 8;
    /// The local header holds a last dot.
    pub(super) const LIVE: u8 = 16;
    pub(super) const ALL: u8 = 31;
}

/// Flags of a sibling.
mod kind {
    pub(super) const TOMBSTONE: u8 = 1;
    pub(super) const META: u8 = 2;
    pub(super) const EXPIRES: u8 = 4;
    pub(super) const ALL: u8 = 7;
}

/// Fewest bytes of a dot and of a sibling: a count that claims more than there can be is refused before it is believed.
const DOT_MIN: usize = 10;
const SIBLING_MIN: usize = 1 + DOT_MIN + 16 + 8;

/// Appends a slot alone.
pub(super) fn encode_slot(slot: &Slot, out: &mut Vec<u8>) {
    put_slot(slot, 0, out);
}

/// Appends an entry with its slot.
///
/// # Errors
/// When metadata cannot be encoded; `out` may have grown.
pub(super) fn encode_entry(slot: &Slot, entry: &Entry, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let (record, last) = (&entry.copy.record, entry.copy.header.last());
    let sole = sole_of(record, last);
    let targets = if entry.targets.is_empty() { 0 } else { flag::TARGETS };
    let live = if last.is_some() { flag::LIVE } else { 0 };
    put_slot(slot, targets | live | if sole.is_some() { flag::SOLE } else { 0 }, out);
    if !entry.targets.is_empty() {
        put_number(entry.targets.len() as u64, out);
        entry.targets.iter().for_each(|target| out.put_u64_le(target.0));
    }
    if let Some(sibling) = sole {
        return put_sibling(sibling, out);
    }
    if let Some(last) = last {
        put_dot(last, out);
    }
    put_number(record.context().len() as u64, out);
    record.context().entries().for_each(|(actor, counter)| put_dot(Dot { actor, counter }, out));
    put_number(record.siblings().len() as u64, out);
    record.siblings().iter().try_for_each(|sibling| put_sibling(sibling, out))
}

/// The only sibling of a record that has nothing else to say.
fn sole_of(record: &Record, last: Option<Dot>) -> Option<&Sibling> {
    let [sibling] = record.siblings() else { return None };
    let Dot { actor, counter } = sibling.dot;
    let alone = record.context().len() == 1 && record.context().get(actor) == counter;
    (alone && last.is_none_or(|last| last == sibling.dot)).then_some(sibling)
}

fn put_slot(slot: &Slot, flags: u8, out: &mut Vec<u8>) {
    let guest = if slot.table == Table::Guest { flag::GUEST } else { 0 };
    let named = if slot.namespace.0 > 0 { flag::NAMESPACE } else { 0 };
    out.push(flags | guest | named);
    put_number(slot.partition.0.into(), out);
    if named > 0 {
        put_number(slot.namespace.0.into(), out);
    }
    put_number(slot.key.as_bytes().len() as u64, out);
    out.put_slice(slot.key.as_bytes());
}

fn put_sibling(sibling: &Sibling, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let tombstone = if sibling.content == Content::Tombstone { kind::TOMBSTONE } else { 0 };
    let meta = if sibling.meta.is_some() { kind::META } else { 0 };
    let expires = if sibling.expires_at.is_some() { kind::EXPIRES } else { 0 };
    out.push(tombstone | meta | expires);
    put_dot(sibling.dot, out);
    out.put_u128_le(sibling.write_id.0);
    out.put_u64_le(sibling.written_at.0);
    if let Some(expires_at) = sibling.expires_at {
        out.put_u64_le(expires_at.0);
    }
    if let Some(meta) = &sibling.meta {
        let mut bytes = Vec::new();
        codec::encode_into(meta, &mut bytes)?;
        put_number(bytes.len() as u64, out);
        out.put_slice(&bytes);
    }
    if let Content::Value(value) = &sibling.content {
        put_number(value.len() as u64, out);
        out.put_slice(value);
    }
    Ok(())
}

fn put_dot(dot: Dot, out: &mut Vec<u8>) {
    out.put_u64_le(dot.actor.incarnation.0);
    put_number(dot.actor.epoch, out);
    put_number(dot.counter, out);
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Reads the slot at the beginning of a body.
///
/// # Errors
/// When there is none.
pub(super) fn decode_slot(body: &[u8]) -> Result<Slot, CodecError> {
    let mut reader = Reader { body, at: 0 };
    let (flags, partition, namespace, key) = reader.slot()?;
    let table = if flags & flag::GUEST > 0 { Table::Guest } else { Table::Data };
    let key = Key::new(key.to_vec()).map_err(|error| CodecError::Malformed(error.to_string()))?;
    Ok(Slot { table, partition, namespace, key })
}

/// As [`decode_slot`], for those who look into the index and no further: the index key goes to `id`, and nothing is
/// allocated for it.
///
/// # Errors
/// As there.
pub(super) fn decode_id(body: &[u8], id: &mut Vec<u8>) -> Result<(Table, PartitionId), CodecError> {
    let (flags, partition, namespace, key) = Reader { body, at: 0 }.slot()?;
    id.clear();
    id.extend_from_slice(&namespace.0.to_be_bytes());
    id.extend_from_slice(key);
    if !INDEX_KEY_LEN.contains(&id.len()) {
        return Err(malformed("a key of a length that none has"));
    }
    Ok((if flags & flag::GUEST > 0 { Table::Guest } else { Table::Data }, partition))
}

/// Reads the entry of a slot; its values are slices of `body`. `None` when the entry is another slot's.
///
/// # Errors
/// When the body is not what [`encode_entry`] makes.
pub(super) fn decode_entry(slot: &Slot, body: &Bytes) -> Result<Option<Entry>, CodecError> {
    let mut reader = Reader { body, at: 0 };
    let (flags, partition, namespace, key) = reader.slot()?;
    let table = if flags & flag::GUEST > 0 { Table::Guest } else { Table::Data };
    if (table, partition, namespace, key) != (slot.table, slot.partition, slot.namespace, slot.key.as_bytes())
    {
        return Ok(None);
    }
    let mut targets = Vec::new();
    if flags & flag::TARGETS > 0 {
        let count = reader.count(8)?;
        for _ in 0..count {
            targets.push(NodeId(reader.word()?));
        }
    }
    if targets.is_empty() != (flags & flag::TARGETS == 0) {
        return Err(malformed("targets that are none"));
    }
    let live = flags & flag::LIVE > 0;
    let (last, context, siblings) = if flags & flag::SOLE > 0 {
        let sibling = reader.sibling(body)?;
        let context = VersionVector::from_iter([sibling.dot]);
        (live.then_some(sibling.dot), context, vec![sibling])
    } else {
        let last = if live { Some(reader.dot()?) } else { None };
        let count = reader.count(DOT_MIN)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let dot = reader.dot()?;
            entries.push((dot.actor, dot.counter));
        }
        let context =
            VersionVector::try_from(entries).map_err(|error| CodecError::Malformed(error.to_string()))?;
        let count = reader.count(SIBLING_MIN)?;
        let mut siblings = Vec::with_capacity(count);
        for _ in 0..count {
            siblings.push(reader.sibling(body)?);
        }
        (last, context, siblings)
    };
    if reader.at != body.len() {
        return Err(CodecError::Trailing(body.len() - reader.at));
    }
    let record =
        Record::from_parts(context, siblings).map_err(|error| CodecError::Malformed(error.to_string()))?;
    if sole_of(&record, last).is_some() != (flags & flag::SOLE > 0) {
        return Err(malformed("a longer form than its own"));
    }
    Ok(Some(Entry { copy: LocalCopy { header: LocalHeader::new(last), record }, targets }))
}

fn malformed(what: &str) -> CodecError {
    CodecError::Malformed(what.to_owned())
}

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.body.len());
        let end = end.ok_or_else(|| malformed("it ends too early"))?;
        let bytes = &self.body[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, CodecError> {
        Ok(self.bytes(1)?[0])
    }

    fn word(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.bytes(8)?.try_into().expect("8 bytes")))
    }

    fn number(&mut self) -> Result<u64, CodecError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // A last byte of zero says nothing: the number had a shorter form.
                return if byte == 0 && shift > 0 { Err(malformed("a padded number")) } else { Ok(number) };
            }
        }
        Err(malformed("a number above 64 bits"))
    }

    fn number_u32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.number()?).map_err(|_| malformed("a number above 32 bits"))
    }

    /// A length, or a count of things of at least `each` bytes: never more than the rest can hold.
    fn count(&mut self, each: usize) -> Result<usize, CodecError> {
        let count = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if count > (self.body.len() - self.at) / each {
            return Err(malformed("a count of more than there is"));
        }
        Ok(count)
    }

    fn slot(&mut self) -> Result<(u8, PartitionId, Namespace, &'a [u8]), CodecError> {
        let flags = self.byte()?;
        if flags & !flag::ALL > 0 {
            return Err(malformed("unknown flags"));
        }
        let partition = PartitionId(self.number_u32()?);
        let namespace = if flags & flag::NAMESPACE > 0 { self.number_u32()? } else { 0 };
        if (namespace == 0) != (flags & flag::NAMESPACE == 0) {
            return Err(malformed("a longer form than its own"));
        }
        let len = self.count(1)?;
        Ok((flags, partition, Namespace(namespace), self.bytes(len)?))
    }

    fn dot(&mut self) -> Result<Dot, CodecError> {
        let incarnation = Incarnation(self.word()?);
        let actor = ActorId { incarnation, epoch: self.number()? };
        Ok(Dot { actor, counter: self.number()? })
    }

    fn sibling(&mut self, body: &Bytes) -> Result<Sibling, CodecError> {
        let flags = self.byte()?;
        if flags & !kind::ALL > 0 {
            return Err(malformed("unknown flags of a sibling"));
        }
        let dot = self.dot()?;
        let write_id = WriteId(u128::from_le_bytes(self.bytes(16)?.try_into().expect("16 bytes")));
        let written_at = Wall(self.word()?);
        let expires_at = if flags & kind::EXPIRES > 0 { Some(Wall(self.word()?)) } else { None };
        let meta = if flags & kind::META > 0 {
            let len = self.count(1)?;
            Some(Box::new(codec::decode::<Meta>(self.bytes(len)?)?))
        } else {
            None
        };
        let content = if flags & kind::TOMBSTONE > 0 {
            Content::Tombstone
        } else {
            let len = self.count(1)?;
            let from = self.at;
            self.bytes(len)?;
            Content::Value(body.slice(from..from + len))
        };
        Ok(Sibling { dot, write_id, content, meta, expires_at, written_at })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::storage::index::index_key;

    fn dots() -> impl Strategy<Value = Dot> {
        // Few actors, so that contexts cover more than their siblings' dots.
        (0..3_u64, prop_oneof![0..3_u64, any::<u64>()], prop_oneof![1..4_u64, 1..u64::MAX]).prop_map(
            |(incarnation, epoch, counter)| Dot {
                actor: ActorId { incarnation: Incarnation(incarnation.wrapping_mul(u64::MAX / 2)), epoch },
                counter,
            },
        )
    }

    fn siblings() -> impl Strategy<Value = Sibling> {
        let content = prop_oneof![
            4 => vec(any::<u8>(), 0..300).prop_map(|bytes| Content::Value(bytes.into())),
            1 => Just(Content::Tombstone),
        ];
        let meta =
            option::weighted(0.3, (option::of("[a-z/]{0,9}"), vec(("[a-z]{1,4}", "[a-z]{0,4}"), 0..3)));
        (dots(), any::<u128>(), content, meta, option::of(any::<u64>()), any::<u64>()).prop_map(
            |(dot, id, content, meta, expires_at, written_at)| Sibling {
                dot,
                write_id: WriteId(id),
                content,
                meta: meta.map(|(content_type, pairs)| {
                    Box::new(Meta { content_type, pairs: pairs.into_iter().collect() })
                }),
                expires_at: expires_at.map(Wall),
                written_at: Wall(written_at),
            },
        )
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let targets = vec((0..9_u64).prop_map(NodeId), 0..3);
        (vec(siblings(), 0..3), vec(dots(), 0..3), option::of(dots()), any::<bool>(), targets).prop_map(
            |(mut siblings, seen, last, own, targets)| {
                siblings.sort();
                siblings.dedup_by_key(|sibling| sibling.dot);
                let dots = siblings.iter().map(|sibling| sibling.dot);
                // As often as not it is the common case: one sibling, its dot everywhere.
                let (seen, last) =
                    if own { (Vec::new(), siblings.first().map(|first| first.dot)) } else { (seen, last) };
                let context = dots.chain(seen).collect();
                let record = Record::from_parts(context, siblings).unwrap();
                let mut entry =
                    Entry { copy: LocalCopy { header: LocalHeader::new(last), record }, targets: Vec::new() };
                entry.add_targets(&targets);
                entry
            },
        )
    }

    fn slots() -> impl Strategy<Value = Slot> {
        (any::<bool>(), any::<u32>(), prop_oneof![Just(0), any::<u32>()], vec(any::<u8>(), 1..200)).prop_map(
            |(guest, partition, namespace, key)| Slot {
                table: if guest { Table::Guest } else { Table::Data },
                partition: PartitionId(partition),
                namespace: Namespace(namespace),
                key: Key::new(key).unwrap(),
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(slot in slots(), entry in entries(), other in slots()) {
            let mut body = Vec::new();
            encode_entry(&slot, &entry, &mut body).unwrap();
            let body = Bytes::from(body);
            prop_assert_eq!(decode_slot(&body), Ok(slot.clone()));
            let mut id = vec![9; 9];
            prop_assert_eq!(decode_id(&body, &mut id), Ok((slot.table, slot.partition)));
            prop_assert_eq!(id, index_key(slot.namespace, &slot.key));
            prop_assert_eq!(decode_entry(&slot, &body), Ok(Some(entry)));
            if other != slot {
                prop_assert_eq!(decode_entry(&other, &body), Ok(None));
            }
            for len in 0..body.len() {
                prop_assert!(decode_entry(&slot, &body.slice(..len)).is_err(), "cut to {}", len);
            }
            let mut removal = Vec::new();
            encode_slot(&slot, &mut removal);
            prop_assert_eq!(decode_slot(&removal), Ok(slot));
        }

        /// Whatever is read has one form: what is written of it is what was read.
        #[test]
        fn any_bytes_are_refused_or_are_the_one_form(
            slot in slots(), entry in entries(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut body = Vec::new();
            encode_entry(&slot, &entry, &mut body).unwrap();
            let at = at.index(body.len());
            body[at] = byte;
            let body = Bytes::from(body);
            let Ok(slot) = decode_slot(&body) else { return Ok(()) };
            if let Ok(Some(entry)) = decode_entry(&slot, &body) {
                let mut again = Vec::new();
                encode_entry(&slot, &entry, &mut again).unwrap();
                // Metadata is bincode, which has longer forms of its own; the length says which was read.
                if !entry.copy.record.siblings().iter().any(|sibling| sibling.meta.is_some()) {
                    prop_assert_eq!(&again[..], &body[..]);
                }
            }
        }
    }

    #[test]
    fn the_common_entry_costs_59_bytes_beside_key_and_value() {
        let actor = ActorId { incarnation: Incarnation(u64::MAX), epoch: 1_000_000 };
        let sibling = Sibling {
            dot: Dot { actor, counter: 1 },
            write_id: WriteId(u128::MAX),
            content: Content::Value(Bytes::from(vec![7; 580])),
            meta: None,
            expires_at: None,
            written_at: Wall(u64::MAX),
        };
        let record = Record::from_parts([sibling.dot].into_iter().collect(), vec![sibling.clone()]).unwrap();
        let copy = LocalCopy { header: LocalHeader::new(Some(sibling.dot)), record };
        let slot = Slot {
            table: Table::Data,
            partition: PartitionId(200),
            namespace: Namespace(0),
            key: Key::new(vec![1; 32]).unwrap(),
        };
        let mut body = Vec::new();
        encode_entry(&slot, &Entry { copy, targets: Vec::new() }, &mut body).unwrap();
        assert_eq!(body.len() + crate::net::envelope::PREFIX_LEN - 612, 59);
    }
}
