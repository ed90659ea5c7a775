//! The record: all concurrent values of one key with their common causal context, and the two operations on
//! it, `put` and `merge`.
//!
//! Merge is commutative, associative and idempotent and never refuses (`tests` has the laws as properties):
//! replicas may exchange whole records in any order, any number of times. A sibling alone is never sent, since
//! a version vector cannot say "all up to 7 but not 5"; a record can, by not listing the value of 5.
//!
//! Expiry and tombstones are data here. Merge, put and the version hash never look at a clock; only
//! [`Record::view`] does, with the `now` that its caller gives.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::vector::{Dot, VersionVector};
use crate::types::{ActorId, Wall, WriteId};

/// Most bytes of a sibling's metadata, keys and values together.
pub const META_BYTES_MAX: usize = 4 * 1024;

/// What a write left behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Content {
    /// The bytes that were put.
    Value(Bytes),
    /// A deletion. It is kept until every member agrees that it can go (reaping).
    Tombstone,
}

/// What a client said about its value besides the bytes; at most [`META_BYTES_MAX`].
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Meta {
    /// MIME type, as a REST client gave it.
    pub content_type: Option<String>,
    /// Pairs of the user's own.
    pub pairs: BTreeMap<String, String>,
}

impl Meta {
    /// Bytes of all names and values.
    pub fn size_bytes(&self) -> usize {
        let pairs: usize = self.pairs.iter().map(|(name, value)| name.len() + value.len()).sum();
        pairs + self.content_type.as_ref().map_or(0, String::len)
    }
}

/// One of the concurrent values of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sibling {
    /// The event that made it.
    pub dot: Dot,
    /// The client's operation; the same on every sibling that one operation became.
    pub write_id: WriteId,
    /// The value, or that it was deleted.
    pub content: Content,
    /// What the client said about it.
    pub meta: Option<Box<Meta>>,
    /// From when on it reads as absent, by the answering coordinator's wall clock.
    pub expires_at: Option<Wall>,
    /// The coordinator's wall clock, or one more than the largest that it overwrote. For `resolve = lww`.
    pub written_at: Wall,
}

/// Everything a replica holds for one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRecord")]
pub struct Record {
    context: VersionVector,
    siblings: Vec<Sibling>,
}

/// A record as it comes from the wire or the disk, before its invariants are known to hold.
#[derive(Deserialize)]
#[serde(rename = "Record")]
struct RawRecord {
    context: VersionVector,
    siblings: Vec<Sibling>,
}

/// Parts that do not make a record. A peer or a disk is broken, or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// Siblings must be sorted and each stand once.
    #[error("not a record: siblings out of order")]
    SiblingsOutOfOrder,
    /// Every dot must be covered by the context.
    #[error("not a record: a sibling's dot is zero or not covered by the context")]
    DotOutsideContext,
}

impl TryFrom<RawRecord> for Record {
    type Error = NotARecord;
    fn try_from(raw: RawRecord) -> Result<Record, NotARecord> {
        Record::from_parts(raw.context, raw.siblings)
    }
}

/// What a put says it overwrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite<'a> {
    /// Nothing: the value becomes a new sibling.
    Nothing,
    /// What the holder of this context had seen.
    Seen(&'a VersionVector),
    /// Whatever the coordinator's own copy holds at this moment. Concurrent writes elsewhere stay siblings.
    Current,
}

/// The new value of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The client's operation.
    pub write_id: WriteId,
    /// Value or tombstone.
    pub content: Content,
    /// Metadata to keep with it.
    pub meta: Option<Box<Meta>>,
    /// When it expires.
    pub expires_at: Option<Wall>,
}

/// Limits that a coordinator puts on its own copy before it makes a dot. Merge knows none, so a copy may come to
/// stand above them; a put that leaves it no larger than it was is taken even then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Most siblings of a record after the put. Default 100, sane 2 to 1,000.
    pub siblings_max: usize,
    /// Most bytes of a record after the put, by [`Record::size_bytes`]. Default 32 MiB.
    pub record_bytes_max: usize,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps { siblings_max: 100, record_bytes_max: 32 * 1024 * 1024 }
    }
}

/// Why a put made no dot. The record is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// The put would leave more siblings than allowed.
    #[error(
        "the key has {siblings} concurrent values, at most {max} are allowed: read it and write back with its context"
    )]
    TooManySiblings {
        /// Siblings that the put would not overwrite, and itself.
        siblings: usize,
        /// The cap.
        max: usize,
    },
    /// The record would become too large.
    #[error(
        "the record would have {bytes} bytes, at most {max} are allowed: read it and write back with its context, or store less"
    )]
    RecordTooLarge {
        /// Size after the put.
        bytes: usize,
        /// The cap.
        max: usize,
    },
}

/// What a put did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutDone {
    /// The dot of the new sibling.
    pub dot: Dot,
    /// The operations whose siblings it removed from this copy, in order of their dots.
    pub overwrote: Vec<WriteId>,
}

/// What a merge did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// Whether this record is now another than before.
    pub changed: bool,
    /// Dots under which the two records held different contents. Always empty unless an invariant is broken;
    /// both contents are kept, and the caller reports it.
    pub collisions: Vec<Dot>,
}

/// What a reader is shown of a record at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View<'a> {
    /// Values that are neither deleted nor expired, in order of their dots; one for each write.
    pub values: Vec<&'a Sibling>,
    /// Tombstones among the siblings.
    pub tombstones: usize,
    /// Siblings whose time has passed.
    pub expired: usize,
}

impl Sibling {
    /// Bytes of value, metadata and bookkeeping.
    pub fn size_bytes(&self) -> usize {
        let value = match &self.content {
            Content::Value(bytes) => bytes.len(),
            Content::Tombstone => 0,
        };
        value + self.meta.as_ref().map_or(0, |meta| meta.size_bytes()) + SIBLING_BYTES
    }

    /// Whether the two are what one operation became under two dots.
    fn is_same_write(&self, other: &Sibling) -> bool {
        self.write_id == other.write_id
            && self.content == other.content
            && self.meta == other.meta
            && self.expires_at == other.expires_at
    }

    /// Whether it has expired at `now`.
    pub fn is_expired(&self, now: Wall) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// Rough bytes of a sibling besides value and metadata: dot 24, write id 16, times 18, lengths 6.
const SIBLING_BYTES: usize = 64;
/// Bytes of a vector's entry.
const ENTRY_BYTES: usize = 24;

impl Record {
    /// The record of a key that was never written.
    pub const fn new() -> Record {
        Record { context: VersionVector::new(), siblings: Vec::new() }
    }

    /// A record of these parts.
    ///
    /// # Errors
    /// When they break an invariant of the module.
    pub fn from_parts(context: VersionVector, siblings: Vec<Sibling>) -> Result<Record, NotARecord> {
        if !siblings.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(NotARecord::SiblingsOutOfOrder);
        }
        if !siblings.iter().all(|sibling| sibling.dot.counter > 0 && context.covers(sibling.dot)) {
            return Err(NotARecord::DotOutsideContext);
        }
        Ok(Record { context, siblings })
    }

    /// Everything the record has seen: its siblings and what they overwrote.
    pub fn context(&self) -> &VersionVector {
        &self.context
    }

    /// The concurrent values, tombstones included, in order of their dots.
    pub fn siblings(&self) -> &[Sibling] {
        &self.siblings
    }

    /// Whether nothing was ever written to it.
    pub fn is_empty(&self) -> bool {
        self.context.is_empty()
    }

    /// Rough size in memory and on the wire, in bytes.
    pub fn size_bytes(&self) -> usize {
        let siblings: usize = self.siblings.iter().map(Sibling::size_bytes).sum();
        siblings + self.context.len() * ENTRY_BYTES
    }

    /// Makes one dot: drops the siblings that `over` covers, adds the new one, joins the contexts.
    ///
    /// `actor` must be the live actor of this local copy ([`LocalCopy`] sees to that), `now` the coordinator's
    /// wall clock. `written_at` becomes the larger of `now` and one more than the largest it overwrites here,
    /// so that a causal successor is the newer one for `resolve = lww` even under a slow clock.
    ///
    /// # Errors
    /// When a cap would be passed; no dot is made then and the record is unchanged.
    ///
    /// [`LocalCopy`]: super::LocalCopy
    pub fn put(
        &mut self,
        over: Overwrite<'_>,
        actor: ActorId,
        write: Write,
        now: Wall,
        caps: &Caps,
    ) -> Result<PutDone, PutError> {
        let overwritten = |sibling: &Sibling| match over {
            Overwrite::Nothing => false,
            Overwrite::Seen(context) => context.covers(sibling.dot),
            Overwrite::Current => true,
        };
        if let Overwrite::Seen(context) = over {
            // A dot below the context would stand for two writes, and every peer would drop the new one unseen.
            assert!(
                context.get(actor) <= self.context.get(actor),
                "the context names the live actor's future"
            );
        }
        let written_at = self
            .siblings
            .iter()
            .filter(|sibling| overwritten(sibling))
            .fold(now, |at, sibling| at.max(Wall(sibling.written_at.0.saturating_add(1))));
        let dot = Dot { actor, counter: self.context.get(actor) + 1 };
        let sibling = Sibling {
            dot,
            write_id: write.write_id,
            content: write.content,
            meta: write.meta,
            expires_at: write.expires_at,
            written_at,
        };

        let kept = self.siblings.iter().filter(|sibling| !overwritten(sibling));
        let (count, bytes) = kept
            .fold((1, sibling.size_bytes()), |(count, bytes), kept| (count + 1, bytes + kept.size_bytes()));
        let entries = usize::from(dot.counter == 1)
            + match over {
                Overwrite::Seen(context) => self.context.joined_len(context),
                Overwrite::Nothing | Overwrite::Current => self.context.len(),
            };
        let bytes = bytes + entries * ENTRY_BYTES;
        // A put that does not make it worse is taken also above a cap: after merges it may be the way back.
        if count > caps.siblings_max && count > self.siblings.len() {
            return Err(PutError::TooManySiblings { siblings: count, max: caps.siblings_max });
        }
        if bytes > caps.record_bytes_max && bytes > self.size_bytes() {
            return Err(PutError::RecordTooLarge { bytes, max: caps.record_bytes_max });
        }

        let mut overwrote = Vec::new();
        self.siblings.retain(|sibling| {
            let gone = overwritten(sibling);
            if gone {
                overwrote.push(sibling.write_id);
            }
            !gone
        });
        if let Overwrite::Seen(context) = over {
            self.context.join(context);
        }
        self.context.include(dot);
        let at = self.siblings.partition_point(|other| *other < sibling);
        self.siblings.insert(at, sibling);
        Ok(PutDone { dot, overwrote })
    }

    /// Takes over all that `other` knows: keeps a sibling if both have its dot, or if the other has not seen
    /// its dot. Never refuses, whatever the size.
    pub fn merge(&mut self, other: &Record) -> Merged {
        let mut merged = Merged::default();
        if *self == *other || other.is_empty() {
            return merged;
        }
        if self.is_empty() {
            *self = other.clone();
            merged.changed = true;
            return merged;
        }

        let before = self.siblings.len();
        self.siblings
            .retain(|own| !other.context.covers(own.dot) || !with_dot(&other.siblings, own.dot).is_empty());
        let own_end = self.siblings.len();
        for theirs in &other.siblings {
            let same_dot = with_dot(&self.siblings[..own_end], theirs.dot);
            let new = match same_dot {
                [] => !self.context.covers(theirs.dot),
                contents => !contents.contains(theirs),
            };
            if same_dot.len() > 1 || (new && !same_dot.is_empty()) {
                merged.collisions.push(theirs.dot);
            }
            if new {
                self.siblings.push(theirs.clone());
            }
        }
        merged.changed = own_end < before || own_end < self.siblings.len();
        merged.collisions.dedup();
        self.siblings.sort();
        if !self.context.includes(&other.context) {
            self.context.join(&other.context);
            merged.changed = true;
        }
        if canary!(ContextDropped) {
            self.context = VersionVector::new();
            for sibling in &self.siblings {
                self.context.include(sibling.dot);
            }
        }
        merged
    }

    /// Whether it holds something that reaping may take away one day: a tombstone, a value that expires, or a context that
    /// names more than its siblings' actors.
    pub fn is_reapable(&self) -> bool {
        let passing =
            |sibling: &Sibling| sibling.content == Content::Tombstone || sibling.expires_at.is_some();
        self.siblings.iter().any(passing) || self.context.len() > self.actors()
    }

    /// How many actors made the siblings.
    fn actors(&self) -> usize {
        // Sorted by dot, and dots by actor.
        self.siblings.chunk_by(|one, next| one.dot.actor == next.dot.actor).count()
    }

    /// The record without the siblings under these dots, its context cut to the dots of those that are left. Only under a
    /// vote of all members (`dynamo::reaping`): what the context forgets, a copy elsewhere could bring back.
    pub fn reaped(&self, drop: &[Dot]) -> Record {
        let kept = self.siblings.iter().filter(|sibling| !drop.contains(&sibling.dot));
        let siblings: Vec<Sibling> = kept.cloned().collect();
        let context = siblings.iter().map(|sibling| sibling.dot).collect();
        Record { context, siblings }
    }

    /// What is left of a copy that may be older than what the others have agreed to forget: the siblings whose dots are to be
    /// kept, without the claim to have seen any of the others: one may be on its way somewhere, and alive. With it goes the
    /// claim to have seen what their actors wrote later; a vector cannot say less. So a sibling goes too whose actor wrote one
    /// before it that goes: a context that covers the later one covers both.
    ///
    /// `unclaimed`: what others hold and none of them has overwritten. Where a sibling goes, the claim to have overwritten one of these may
    /// have been its alone, and goes with it: at worst a value stands beside its successor, where otherwise it could be lost.
    pub fn only(&self, keep: impl Fn(Dot) -> bool, unclaimed: &BTreeSet<Dot>) -> Record {
        let stands = |dot: Dot| self.siblings.iter().any(|sibling| sibling.dot == dot);
        let mut gone: Vec<Dot> =
            self.siblings.iter().map(|sibling| sibling.dot).filter(|dot| !keep(*dot)).collect();
        if gone.is_empty() {
            return self.clone();
        }
        gone.extend(unclaimed.iter().filter(|dot| self.context.covers(**dot) && !stands(**dot)));
        let is_above_one =
            |dot: Dot| gone.iter().any(|other| other.actor == dot.actor && other.counter < dot.counter);
        let stays = |sibling: &&Sibling| keep(sibling.dot) && !is_above_one(sibling.dot);
        let siblings: Vec<Sibling> = self.siblings.iter().filter(stays).cloned().collect();
        if siblings.is_empty() {
            return Record::new();
        }
        let below = |(actor, counter): (ActorId, u64)| {
            let gone = gone.iter().filter(|gone| gone.actor == actor).map(|gone| gone.counter - 1);
            Dot { actor, counter: gone.fold(counter, u64::min) }
        };
        let context = self.context.entries().map(below).filter(|dot| dot.counter > 0).collect();
        Record { context, siblings }
    }

    /// 64-bit hash of the whole record in a canonical form: equal records have equal hashes on every node and
    /// build, at any time. XXH3-64 over, little-endian: the number of context entries (u32), each entry
    /// (incarnation, epoch, counter: u64); then for each sibling in order: dot (3 × u64), write id (u128), kind
    /// (u8: 0 value, 1 tombstone; 2 more if it expires, 4 more if it has metadata), `expires_at` (u64, 0 for none), `written_at` (u64), XXH3-64 of the value
    /// (0 for a tombstone), its length (u64), XXH3-64 of the metadata (0 for none).
    pub fn version_hash(&self) -> u64 {
        let mut form = Vec::with_capacity(4 + self.context.len() * 24 + self.siblings.len() * 81);
        let entries =
            u32::try_from(self.context.len()).expect("a context of 4 billion entries fits no memory");
        form.extend_from_slice(&entries.to_le_bytes());
        for (actor, counter) in self.context.entries() {
            push_dot(&mut form, Dot { actor, counter });
        }
        for sibling in &self.siblings {
            push_dot(&mut form, sibling.dot);
            form.extend_from_slice(&sibling.write_id.0.to_le_bytes());
            let (kind, hash, len) = match &sibling.content {
                Content::Value(bytes) => (0_u8, xxh3_64(bytes), bytes.len() as u64),
                Content::Tombstone => (1, 0, 0),
            };
            let kind =
                kind + 2 * u8::from(sibling.expires_at.is_some()) + 4 * u8::from(sibling.meta.is_some());
            form.push(kind);
            form.extend_from_slice(&sibling.expires_at.map_or(0, |at| at.0).to_le_bytes());
            form.extend_from_slice(&sibling.written_at.0.to_le_bytes());
            form.extend_from_slice(&hash.to_le_bytes());
            form.extend_from_slice(&len.to_le_bytes());
            form.extend_from_slice(&sibling.meta.as_ref().map_or(0, |meta| meta_hash(meta)).to_le_bytes());
        }
        xxh3_64(&form)
    }

    /// What a reader is shown at `now` (the answering coordinator's wall clock): the live values, siblings of
    /// one write folded into the one with the smallest dot. A client that reuses a write id for another value
    /// hides nothing by that: what is not the same value is shown.
    pub fn view(&self, now: Wall) -> View<'_> {
        let mut view = View::default();
        for sibling in &self.siblings {
            if sibling.content == Content::Tombstone {
                view.tombstones += 1;
            } else if sibling.is_expired(now) {
                view.expired += 1;
            } else if !view.values.iter().any(|shown| shown.is_same_write(sibling)) {
                view.values.push(sibling);
            }
        }
        view
    }

    /// The newest sibling by (`written_at`, dot), tombstones and expired ones included: `resolve = lww`. It is
    /// a view that the reader chooses; the others stay in the record.
    pub fn newest(&self) -> Option<&Sibling> {
        self.siblings.iter().max_by_key(|sibling| (sibling.written_at, sibling.dot))
    }
}

/// Those of the sorted siblings that stand under the dot: one at most, unless an invariant is broken.
fn with_dot(siblings: &[Sibling], dot: Dot) -> &[Sibling] {
    let start = siblings.partition_point(|sibling| sibling.dot < dot);
    let len = siblings[start..].iter().take_while(|sibling| sibling.dot == dot).count();
    &siblings[start..start + len]
}

fn push_dot(form: &mut Vec<u8>, dot: Dot) {
    form.extend_from_slice(&dot.actor.incarnation.0.to_le_bytes());
    form.extend_from_slice(&dot.actor.epoch.to_le_bytes());
    form.extend_from_slice(&dot.counter.to_le_bytes());
}

fn meta_hash(meta: &Meta) -> u64 {
    let mut form = Vec::with_capacity(meta.size_bytes() + 16 * (meta.pairs.len() + 1));
    let mut push = |text: Option<&str>| {
        form.extend_from_slice(&text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
        form.extend_from_slice(text.unwrap_or_default().as_bytes());
    };
    push(meta.content_type.as_deref());
    for (name, value) in &meta.pairs {
        push(Some(name));
        push(Some(value));
    }
    xxh3_64(&form)
}

#[cfg(test)]
mod tests;
