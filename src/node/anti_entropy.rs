//! Anti-entropy: the primaries of a partition compare what they hold and give each other what differs (Dynamo §4.7).
//!
//! ```text
//!   this node                                        another primary
//!   TreeHashes root, then the nodes below that differ ─▶  its hashes, all of durable records
//!   LeafKeys of the leaves that differ ─────────────────▶  their keys with version hashes
//!   for each key that differs: Fetch ───────────────────▶  its record
//!       merge, make durable; Store the result, if the other lacks something of it ─▶
//! ```
//! Once an interval each partition of this node is compared with every other primary. Equal partitions cost one message and no
//! look at any record; the cost follows the difference.
//!
//! **Refilled.** A partition that may have lost something is read through first (*scrub*), so that each damaged copy is known,
//! and fetched from the others; then it is compared with *every* other primary. If no further damage was met since the scrub
//! ended, it counts as refilled. One exchange that fails makes all exchanges begin again: what that primary alone holds is not known.
//! The scrub stands meanwhile: a partition that waits for a primary that is down is not read again every round, but for the copies
//! that the others could not mend, until further damage is met anywhere on this node.
//!
//! The bad orders
//! - Damage found while the exchanges run: storage resets *refilled* and counts a doubt; the count is compared under the
//!   partition's lock where the flag is set.
//! - A tree's hash stands for records that are not durable, and a crash takes them back: hashes are sent once the log is
//!   synced up to the position at which they were read.
//! - A record changes between the listing and the fetch: both are merged, and nothing is ever removed here.
//! - A damaged copy keeps its place in the tree, so trees are equal although it cannot be read: hence the scrub, which comes
//!   round for every partition, slowly.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Bound;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use rand::RngExt;

use super::metrics::Door;
use super::replica::storage_refusal;
use super::{Inner, Request, lock};
use crate::dynamo::merkle::{Descent, HASHES_PER_ROUND_MAX, LeafBits, MerkleTree};
use crate::dynamo::preference::PreferenceList;
use crate::dynamo::ring::key_hash;
use crate::net::link::CallError;
use crate::net::message::{
    Compared, Durability, Ended, Fetch, FetchReply, HeldEntry, LISTED_MAX, LeafKeys, LeafKeysReply, Refusal,
    RefusalCode, TreeHashes, TreeHashesReply,
};
use crate::storage::{Change, Direction, LogPosition, Slot, StorageError, Table};
use crate::types::{Key, Mono, Namespace, NodeId, PartitionId, TraceId};

const _: () = assert!(HASHES_PER_ROUND_MAX <= LISTED_MAX);

/// Keys that are made equal at once.
const AT_ONCE: usize = 8;
/// Keys looked at in one step.
const LOOK: usize = 1024;

/// What a comparison does about what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Both sides get the merge.
    Both,
    /// The other gets what this node has, and this node nothing.
    Push,
}

/// Damaged copies of a partition that are remembered; when there are more, all of it is read again.
const UNMENDED_MAX: usize = 256;

/// What the reading of a partition came to that waits to refill.
#[derive(Debug, Clone)]
pub(super) struct Scrubbed {
    /// The store's count of damage when it ended.
    doubts: u64,
    /// The copies that nobody could give then.
    unmended: Vec<Slot>,
}

/// Keeps to a limit of bytes a second.
pub(super) struct Budget {
    began: Mono,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(now: Mono) -> Budget {
        Budget { began: now, bytes: 0 }
    }
}

impl Inner {
    /// Compares and repairs, round by round.
    pub(super) async fn anti_entropy(&self) -> Infallible {
        let mut scrub_at: BTreeMap<PartitionId, Mono> = BTreeMap::new();
        loop {
            let mut ours: Vec<PartitionId> = self
                .descriptor
                .partitions
                .partitions()
                .filter(|partition| self.preference_of(*partition).is_primary(self.id))
                .collect();
            // Those first that cannot be counted on, then those in which a write found nobody to keep it; in order otherwise.
            let dirty = lock(&self.dirty).clone();
            ours.sort_by_key(|partition| {
                (self.store.partition_state(*partition).0.refilled, !dirty.contains(partition))
            });
            let share =
                self.config.anti_entropy_interval / u32::try_from(ours.len().max(1)).unwrap_or(u32::MAX);
            for partition in &ours {
                let wait = share.mul_f64(lock(&self.rng).random_range(0.5..1.5));
                self.io.clock.sleep_until((self.now() + wait).since_origin()).await;
                if !self.preference_of(*partition).is_primary(self.id) {
                    // A layout has come since the round began.
                    continue;
                }
                let scrub_interval = self.config.scrub_interval;
                let due = *scrub_at.entry(*partition).or_insert_with(|| {
                    // As if the last ones had been spread over the interval before this start.
                    self.now() + scrub_interval.mul_f64(lock(&self.rng).random_range(0.0..1.0))
                }) <= self.now();
                // Before the look: what comes in from here on may be missed by it.
                let was_dirty = lock(&self.dirty).remove(partition);
                match Box::pin(self.repair_partition(*partition, due, &mut Vec::new())).await {
                    Ok(()) if due => drop(scrub_at.insert(*partition, self.now() + scrub_interval)),
                    Ok(()) => {}
                    Err(why) => {
                        if was_dirty {
                            lock(&self.dirty).insert(*partition);
                        }
                        self.metrics.exchanges_failed.one();
                        if self.is_news("not compared", 0) {
                            tracing::warn!(%partition, %why, "not compared with every other primary; more such lines come a minute later");
                        }
                    }
                }
            }
            if ours.is_empty() {
                let later = self.now() + self.config.anti_entropy_interval;
                self.io.clock.sleep_until(later.since_origin()).await;
            }
        }
    }

    /// Compares a partition with every other primary; `scrub`: reads all of it before. Enters in `told` how it went with
    /// each, also when it is given up midway.
    ///
    /// # Errors
    /// When one of them could not be compared with, or a damaged record is nowhere to be had. The others were.
    pub(super) async fn repair_partition(
        &self,
        partition: PartitionId,
        scrub: bool,
        told: &mut Vec<Compared>,
    ) -> Result<(), String> {
        let epoch = self.epoch.get();
        let list = self.preference_of(partition);
        let others: Vec<NodeId> = list.primaries().filter(|node| *node != self.id).collect();
        let was_refilled = self.store.partition_state(partition).0.refilled;
        let mut scrubbed = Ok(());
        let mut doubts = self.store.doubts();
        if scrub || !was_refilled {
            let before = lock(&self.scrubbed).remove(&partition);
            let before = before.filter(|before| !scrub && before.doubts == doubts);
            let unmended = match before {
                Some(Scrubbed { unmended, .. }) => self.mend(unmended, &others).await,
                None => {
                    let unmended = self.scrub(partition, &others).await;
                    // Not before: the damage that it met is mended, or stands in the list.
                    doubts = self.store.doubts();
                    unmended
                }
            };
            scrubbed = match unmended {
                Ok(unmended) => {
                    let many = unmended.len();
                    if !was_refilled && many <= UNMENDED_MAX {
                        lock(&self.scrubbed).insert(partition, Scrubbed { doubts, unmended });
                    }
                    let left = || format!("{many} damaged records are nowhere to be had");
                    if many == 0 { Ok(()) } else { Err(left()) }
                }
                Err(why) => Err(why),
            };
        }
        let down = self.down();
        let (mut failure, mut missed) = (Ok(()), Vec::new());
        told.extend(others.into_iter().map(Compared::not_yet));
        for made in told {
            let other = made.other;
            let compared = if down.contains(&other) {
                Err("it is down".to_owned())
            } else {
                self.exchange(partition, other, Flow::Both, made).await
            };
            match compared {
                Ok(()) => {
                    made.ended = Ended::Done;
                    self.metrics.exchanges.one();
                    if made.keys > 0 {
                        point!("exchange-repaired");
                        tracing::info!(%partition, %other, keys = made.keys, bytes = made.bytes, "made equal");
                    }
                }
                Err(why) => {
                    failure = failure.and(Err(format!("{other}: {why}")));
                    missed.push(other);
                    made.ended = Ended::Failed(why);
                }
            }
        }
        scrubbed?;
        let enough = missed.is_empty() || self.may_miss(&list, &missed, &down);
        if !was_refilled && enough {
            let refilled = |state: &mut crate::storage::PartitionState| {
                let same = self.store.doubts() == doubts && self.epoch.get() == epoch;
                state.refilled |= same;
                (if same { Change::Write } else { Change::Keep }, same)
            };
            let (same, position) =
                self.store.update_partition(partition, refilled).await.map_err(|error| error.to_string())?;
            self.store.wait_synced(position).await.map_err(|error| error.to_string())?;
            if same {
                lock(&self.scrubbed).remove(&partition);
                point!("partition-refilled");
                self.metrics.partitions_refilled.one();
                tracing::info!(%partition, "refilled: it was compared with every other primary");
            }
        }
        failure
    }

    /// Whether a partition counts as refilled although these primaries could not be compared with: they are down and on
    /// their way out, and of each layout as many others were as every write of the default W is found at one of.
    fn may_miss(&self, list: &PreferenceList, missed: &[NodeId], down: &[NodeId]) -> bool {
        let current = lock(&self.layouts).history.current().clone();
        let are_leaving = missed.iter().all(|node| current.member(*node).is_none() && down.contains(node));
        let compared = |primaries: &Vec<NodeId>| {
            primaries.iter().filter(|node| **node != self.id && !missed.contains(node)).count()
        };
        let n = self.descriptor.replicas as usize;
        let w = n / 2 + 1;
        are_leaving && list.layouts.iter().skip(1).all(|layout| compared(layout) > n - w)
    }

    /// Makes a partition equal with another primary's.
    pub(super) async fn exchange(
        &self,
        partition: PartitionId,
        other: NodeId,
        flow: Flow,
        made: &mut Compared,
    ) -> Result<(), String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let fences = self.fences(partition).await.map_err(|error| words(&error))?;
        let ask_root = TreeHashes { partition, level: 0, indices: vec![0], fences };
        let mut reply: TreeHashesReply = self.ask(other, &ask_root).await?;
        self.raise_fence(partition, reply.fences).await.map_err(|error| words(&error))?;
        let fences = self.fences(partition).await.map_err(|error| words(&error))?;
        let theirs = LeafBits::new(reply.bits).map_err(|error| words(&error))?;
        let (mine, _) = self.store.with_tree(partition, |tree| tree.bits());
        let mut descent = Descent::new(mine, theirs);
        while let Some(ask) = descent.ask() {
            if ask.level > 0 {
                let message = TreeHashes { partition, level: ask.level, indices: ask.indices, fences };
                reply = self.ask(other, &message).await?;
            }
            let (taken, _) = self.store.with_tree(partition, |tree| descent.on_hashes(tree, &reply.hashes));
            taken.map_err(|error| words(&error))?;
        }
        let bits = descent.bits();
        let mut pace = Budget::new(self.now());
        for leaves in descent.finish().chunks(LISTED_MAX) {
            point!("exchange-differs");
            self.exchange_leaves(partition, other, flow, bits, leaves, made, &mut pace).await?;
        }
        Ok(())
    }

    /// Waits until all that another primary's tree shows is on its disk.
    pub(super) async fn root_of(&self, partition: PartitionId, other: NodeId) -> Result<(), String> {
        let fences = self.fences(partition).await.map_err(|error| error.to_string())?;
        let ask = TreeHashes { partition, level: 0, indices: vec![0], fences };
        self.ask::<TreeHashesReply>(other, &ask).await.map(|_| ())
    }

    #[allow(clippy::too_many_arguments)] // what one comparison goes by
    async fn exchange_leaves(
        &self,
        partition: PartitionId,
        other: NodeId,
        flow: Flow,
        bits: LeafBits,
        leaves: &[u32],
        made: &mut Compared,
        pace: &mut Budget,
    ) -> Result<(), String> {
        let mut after: Option<(Namespace, Key)> = None;
        loop {
            let message =
                LeafKeys { partition, bits: bits.get(), leaves: leaves.to_vec(), after: after.clone() };
            let theirs: LeafKeysReply = self.ask(other, &message).await?;
            let last = theirs.keys.last().map(|held| (held.namespace, held.key.clone()));
            if theirs.more && last <= after {
                return Err("it lists no further keys and says that there are".to_owned());
            }
            let until = if theirs.more { last.clone() } else { None };
            let mut differing: BTreeMap<(Namespace, Key), u64> =
                theirs.keys.into_iter().map(|held| ((held.namespace, held.key), held.version_hash)).collect();
            let mut from = after;
            loop {
                let (mine, more, _) = self.leaf_keys(partition, bits, leaves, from, until.as_ref()).await;
                from = mine.last().map(|held| (held.namespace, held.key.clone()));
                for held in mine {
                    let key = (held.namespace, held.key);
                    if differing.get(&key) == Some(&held.version_hash) {
                        differing.remove(&key);
                    } else {
                        differing.entry(key).or_insert(0);
                    }
                }
                if !more {
                    break;
                }
            }
            let slots = differing.into_keys().map(|(namespace, key)| self.slot(Table::Data, namespace, &key));
            let slots: Vec<Slot> = slots.collect();
            made.keys += slots.len() as u64;
            self.metrics.exchange_keys.add(slots.len() as u64);
            let mut working =
                stream::iter(slots).map(|slot| self.make_equal(slot, other, flow)).buffer_unordered(AT_ONCE);
            while let Some(bytes) = working.next().await {
                let bytes = bytes?;
                made.bytes += bytes;
                self.keep_pace(pace, bytes).await;
            }
            if !theirs.more {
                return Ok(());
            }
            after = last;
        }
    }

    /// Gives this node and another primary the merge of their copies of one key; about how many bytes went either way.
    async fn make_equal(&self, slot: Slot, other: NodeId, flow: Flow) -> Result<u64, String> {
        let words = |error: StorageError| storage_refusal(&error).message;
        let unless = match self.store.read_with_hash(&slot).await {
            Ok(found) => found.map(|(_, version_hash)| version_hash),
            Err(StorageError::Corrupt(_)) => None,
            Err(error) => return Err(words(error)),
        };
        if flow == Flow::Push && unless.is_none() {
            return Ok(0);
        }
        let fetch = Fetch { namespace: slot.namespace, key: slot.key.clone(), unless };
        let (theirs, fences) = match self.call(other, &fetch, self.errand()).await {
            Ok(FetchReply { record: None, .. }) => return Ok(0),
            Ok(FetchReply { record, fences, .. }) => (record.unwrap_or_default(), fences),
            // What it cannot read is not there for it: it is written over with this node's copy.
            Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Corrupt => Default::default(),
            Err(error) => return Err(error.to_string()),
        };
        let mut bytes = 0;
        if !theirs.is_empty() && flow == Flow::Both {
            bytes += theirs.size_bytes() as u64;
            let kept = self.store_own(&slot, &[], &theirs, Durability::Sync, fences, None).await;
            kept.map_err(|why| why.into_refusal().message)?;
            self.metrics.exchange_pulled.one();
        }
        let Some(entry) = self.store.read(&slot).await.map_err(words)? else { return Ok(bytes) };
        let record = entry.copy.record;
        if record != theirs {
            let sent = self.send_own(other, &slot, &[], Durability::Sync, None, self.errand()).await;
            if let Some((record, _)) = sent.map_err(|error| error.to_string())? {
                bytes += record.size_bytes() as u64;
                self.metrics.exchange_pushed.one();
            }
        }
        Ok(bytes)
    }

    /// Reads every record of a partition, and has the other primaries' copies of those that cannot be read; those that
    /// are still damaged in the end, at most one more than [`UNMENDED_MAX`] of them.
    ///
    /// # Errors
    /// When the storage fails.
    async fn scrub(&self, partition: PartitionId, others: &[NodeId]) -> Result<Vec<Slot>, String> {
        let mut after: Option<(Namespace, Key)> = None;
        let mut pace = Budget::new(self.now());
        let mut left = Vec::new();
        let is_told = self.is_news("scrub", 0);
        if is_told {
            tracing::info!(%partition, records = self.store.keys_in(Table::Data, partition), "reading a partition in search of damage");
        }
        let (mut records, mut damaged) = (0_u64, 0_u64);
        loop {
            let from = match &after {
                Some((namespace, key)) => Bound::Excluded((*namespace, key)),
                None => Bound::Unbounded,
            };
            let page = self.store.scan(Table::Data, partition, from, Direction::Ascending, LOOK);
            let Some(last) = page.keys.last() else { break };
            after = Some((last.namespace, last.key.clone()));
            for found in page.keys {
                let slot = Slot { table: Table::Data, partition, namespace: found.namespace, key: found.key };
                self.metrics.scrubbed.one();
                records += 1;
                match self.store.verify(&slot).await {
                    Ok(()) => {}
                    Err(StorageError::Corrupt(_)) => {
                        damaged += 1;
                        let unmended = self.mend(vec![slot], others).await?;
                        left.extend(unmended.into_iter().take(UNMENDED_MAX + 1 - left.len()));
                    }
                    Err(error) => return Err(error.to_string()),
                }
                self.keep_pace(&mut pace, found.bytes as u64).await;
            }
            tokio::task::yield_now().await;
        }
        if damaged > 0 {
            let nowhere = left.len();
            tracing::warn!(%partition, records, damaged, nowhere, "a partition was read: damaged records, and those that no other primary has");
        } else if is_told {
            tracing::info!(%partition, records, "a partition was read: no damage");
        }
        Ok(left)
    }

    /// Has the other primaries' copies of records that cannot be read; those that still cannot.
    ///
    /// # Errors
    /// When the storage fails.
    async fn mend(&self, damaged: Vec<Slot>, others: &[NodeId]) -> Result<Vec<Slot>, String> {
        let mut left = Vec::new();
        for slot in damaged {
            for other in others {
                if let Err(why) = self.make_equal(slot.clone(), *other, Flow::Both).await {
                    tracing::debug!(key = %slot.key, %other, %why, "a damaged copy is not repaired yet");
                }
            }
            match self.store.verify(&slot).await {
                Ok(()) => {}
                Err(StorageError::Corrupt(_)) => left.push(slot),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(left)
    }

    pub(super) async fn keep_pace(&self, pace: &mut Budget, bytes: u64) {
        pace.bytes += bytes;
        let seconds = pace.bytes as f64 / self.config.anti_entropy_bytes_per_second.max(1) as f64;
        let due = pace.began + Duration::from_secs_f64(seconds);
        if due > self.now() {
            self.io.clock.sleep_until(due.since_origin()).await;
        }
    }

    /// A request of this node's own, for nobody.
    pub(super) fn errand(&self) -> Request {
        let now = self.now();
        Request {
            door: Door::Peer,
            received: now,
            deadline: now + self.config.timeout,
            trace_id: TraceId::default(),
        }
    }

    async fn ask<A: crate::net::message::Message>(
        &self,
        other: NodeId,
        message: &impl crate::net::message::Message,
    ) -> Result<A, String> {
        self.call(other, message, self.errand()).await.map_err(|error| error.to_string())
    }

    /// Keys of these leaves (in order) from behind `after`, up to `until` if that is given: at most [`LISTED_MAX`], whether
    /// there are more, and the position that they depend on.
    async fn leaf_keys(
        &self,
        partition: PartitionId,
        bits: LeafBits,
        leaves: &[u32],
        mut after: Option<(Namespace, Key)>,
        until: Option<&(Namespace, Key)>,
    ) -> (Vec<HeldEntry>, bool, LogPosition) {
        let q = self.descriptor.partitions;
        let (mut keys, mut position) = (Vec::new(), LogPosition::default());
        loop {
            let from = match &after {
                Some((namespace, key)) => Bound::Excluded((*namespace, key)),
                None => Bound::Unbounded,
            };
            let page = self.store.scan(Table::Data, partition, from, Direction::Ascending, LOOK);
            position = position.max(page.position);
            let is_last = page.keys.len() < LOOK;
            after = page.keys.last().map(|last| (last.namespace, last.key.clone()));
            for found in page.keys {
                if until.is_some_and(|(namespace, key)| (found.namespace, &found.key) > (*namespace, key)) {
                    return (keys, false, position);
                }
                let leaf = bits.leaf_of(q, key_hash(found.namespace, &found.key));
                if leaves.binary_search(&leaf).is_err() {
                    continue;
                }
                if keys.len() == LISTED_MAX {
                    return (keys, true, position);
                }
                let (namespace, key, version_hash) = (found.namespace, found.key, found.version_hash);
                keys.push(HeldEntry { namespace, key, version_hash });
            }
            if is_last {
                return (keys, false, position);
            }
            tokio::task::yield_now().await;
        }
    }

    fn compares(&self, partition: PartitionId) -> Result<(), Refusal> {
        let q = self.descriptor.partitions;
        if partition.0 < q.get() && self.preference_of(partition).is_primary(self.id) {
            return Ok(());
        }
        let message = format!("{} is not a primary of {partition}", self.id);
        Err(Refusal::new(RefusalCode::WrongLayout, message))
    }

    /// What another primary is answered about a partition's tree.
    pub(super) async fn answer_tree(&self, asked: &TreeHashes) -> Result<TreeHashesReply, Refusal> {
        let bad = |message: String| Refusal::new(RefusalCode::BadRequest, message);
        self.compares(asked.partition)?;
        let raised = self.raise_fence(asked.partition, asked.fences).await;
        raised.map_err(|error| storage_refusal(&error))?;
        let fences = self.fences(asked.partition).await.map_err(|error| storage_refusal(&error))?;
        let look = |tree: &MerkleTree| (tree.bits().get(), tree.hashes(asked.level, &asked.indices));
        let ((bits, hashes), position) = self.store.with_tree(asked.partition, look);
        let hashes = hashes.map_err(|error| bad(error.to_string()))?;
        self.store.wait_synced(position).await.map_err(|error| storage_refusal(&error))?;
        Ok(TreeHashesReply { bits, hashes, fences })
    }

    /// What another primary is answered about the keys of some leaves.
    pub(super) async fn answer_leaf_keys(&self, asked: LeafKeys) -> Result<LeafKeysReply, Refusal> {
        let bad = |message: String| Refusal::new(RefusalCode::BadRequest, message);
        self.compares(asked.partition)?;
        let bits = LeafBits::new(asked.bits).map_err(|error| bad(error.to_string()))?;
        if !asked.leaves.is_sorted() {
            return Err(bad("leaves are named in order".to_owned()));
        }
        let LeafKeys { partition, leaves, after, .. } = asked;
        let (keys, more, position) = self.leaf_keys(partition, bits, &leaves, after, None).await;
        self.store.wait_synced(position).await.map_err(|error| storage_refusal(&error))?;
        Ok(LeafKeysReply { keys, more })
    }
}
