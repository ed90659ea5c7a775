//! Guest records that cannot be read any more.
//!
//! Damage to data is repaired from the other primaries (`anti_entropy`). A guest has no counterpart: what it held, some of the
//! primaries have, and they cannot be told from here who lacks it. It cannot be handed over either. For the promise it is a disk that
//! was lost: whatever was acknowledged with it is on other disks too, or may go (P1). So it is not repaired but *settled*:
//!
//! ```text
//!   this node                              every primary of the key
//!   Fetch ───────────────────────────────▶  all must answer, and none Corrupt
//!   the merge of all their copies
//!   Store the merge, under the fences that their answers came with ─▶  those that lack something of it
//!   still unreadable, under the key's lock?  remove it
//! ```
//! What it was kept for is so done by others: each primary has, durably, whatever any of them had after the damage was found.
//!
//! Rejected
//! - *Removing it at once.* It loses nothing that could be read. But until the primaries are one, a fallback that acknowledged a
//!   write would answer a read with *not there*; as long as it stands it answers `Corrupt`, and votes against reaping the key.
//! - *Keeping it until the partition was compared as a whole.* Fallbacks do not hear of that, and one key is enough.
//! - *Putting the merge in its place as a guest.* With all primaries there to be asked, they may as well have it.
//!
//! The bad orders
//! - A put comes in the middle: one that this node coordinates is refused, since a dot must not be made on a copy that cannot be read;
//!   one that it is sent is merged over the damaged copy, which then can be read, and stays.
//! - A round of reaping goes through between two of the answers: copies from before and behind it are not put together
//!   ([`Joint`]), and it is tried again.
//! - The local actor ends with the copy, as with one that was handed over: the next dot here has another one (DESIGN §3).
//! - A layout comes in the middle: whoever is a primary since was not asked, and it is tried again.
//!
//! Damage is met when a guest is handed over, and, while its target is away, by a scrub: every guest is read once in
//! `scrub_interval`.

use std::convert::Infallible;
use std::ops::Bound;
use std::time::Duration;

use rand::RngExt;

use super::anti_entropy::Budget;
use super::fences::fences_of;
use super::replica::storage_refusal;
use super::{Inner, lock};
use crate::dynamo::reaping::Joint;
use crate::dynamo::version::Record;
use crate::net::message::{Durability, Fetch, FetchReply, Store};
use crate::storage::{Change, Direction, Slot, StorageError, Table};
use crate::types::{Key, Namespace, NodeId, PartitionId};

/// Damaged records that are remembered; more are found again each time that they are met.
const REMEMBERED_MAX: usize = 1024;
/// Keys looked at in one step of a scrub.
const LOOK: usize = 256;
/// Between two steps of a scrub of guests, at the least.
const STEP_MIN: Duration = Duration::from_secs(1);

impl Inner {
    /// How many of the records that are owed to a node are known to be damaged.
    pub(super) fn damaged_for(&self, target: NodeId) -> u64 {
        let damaged = lock(&self.handoff.damaged);
        damaged.iter().filter(|slot| self.store.targets_of(slot).contains(&target)).count() as u64
    }

    /// A record that is owed to others was read, or is gone.
    pub(super) fn note_sound(&self, slot: &Slot) {
        lock(&self.handoff.damaged).remove(slot);
    }

    /// A record that is owed to others cannot be read.
    pub(super) fn note_damaged(&self, slot: &Slot) {
        let mut damaged = lock(&self.handoff.damaged);
        if damaged.len() < REMEMBERED_MAX && damaged.insert(slot.clone()) && self.is_news("damaged", 0) {
            tracing::warn!(key = %slot.key, partition = %slot.partition, "a record that is kept for others cannot be read");
        }
    }

    /// Makes the primaries of a guest that cannot be read one, and lets it go; about how many bytes that moved.
    ///
    /// # Errors
    /// When one of them cannot be asked or given something now: it stays.
    pub(super) async fn settle_guest(&self, slot: &Slot) -> Result<u64, String> {
        let epoch = self.epoch.get();
        let list = self.preference_of(slot.partition);
        let down = self.down();
        if let Some(away) = list.primaries().find(|node| down.contains(node)) {
            return Err(format!("{away} is down"));
        }
        let (namespace, key) = (slot.namespace, slot.key.clone());
        let fetch = Fetch { namespace, key: key.clone(), unless: None };
        let (mut found, mut merged, mut joint) = (Vec::new(), Record::new(), Joint::default());
        for primary in list.primaries() {
            let (record, fences) = if primary == self.id {
                let own = self.fetch_own(namespace, &key).await;
                own.map_err(|error| storage_refusal(&error).message)?
            } else {
                let reply: Result<FetchReply, _> = self.call(primary, &fetch, self.errand()).await;
                let FetchReply { record, fences, .. } =
                    reply.map_err(|error| format!("{primary}: {error}"))?;
                (record.unwrap_or_default(), fences)
            };
            joint.join(fences, self.votes(primary));
            merged.merge(&record);
            found.push((primary, record));
        }
        joint.hear(fences_of(&self.store.partition_state(slot.partition).0));
        if !joint.is_sound() {
            return Err("a round of reaping went through meanwhile".to_owned());
        }
        let mut bytes = 0;
        for (primary, record) in found {
            if record == merged {
                continue;
            }
            let (record, key, durability, fences) =
                (merged.clone(), key.clone(), Durability::Sync, joint.fences());
            let store = Store { namespace, key, record, guest_of: Vec::new(), durability, fences };
            bytes += merged.size_bytes() as u64;
            let stored = self.store_at(primary, &store, self.errand()).await;
            stored.map_err(|why| format!("{primary} does not take it: {why:?}"))?;
        }
        if self.epoch.get() != epoch {
            return Err("another layout has come meanwhile".to_owned());
        }
        // What could not be read is shown here as an empty entry; one that was written over since is not.
        let gone = self.store.replace_damaged(slot, |entry, _| match entry.copy.record.is_empty() {
            true => (Change::Remove, true),
            false => (Change::Keep, false),
        });
        if gone.await.map_err(|error| error.to_string())?.0 {
            point!("damaged-guest-settled");
            self.handoff.guest_gone();
            self.metrics.guests_lost.one();
            if self.is_news("settled", 0) {
                tracing::warn!(%key, "a guest that could not be read was let go: all primaries have what any had");
            }
        }
        self.note_sound(slot);
        Ok(bytes)
    }

    /// Reads every guest once in a while.
    pub(super) async fn scrub_guests(&self) -> Infallible {
        let partitions: Vec<PartitionId> = self.descriptor.partitions.partitions().collect();
        let (interval, q) = (self.config.scrub_interval, self.descriptor.partitions.get());
        let step = (interval / q).max(STEP_MIN.min(interval));
        let in_step = (f64::from(q) * step.as_secs_f64() / interval.as_secs_f64().max(1e-3)).ceil();
        // At most Q, and not negative.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let in_step = (in_step as usize).clamp(1, partitions.len());
        loop {
            for some in partitions.chunks(in_step) {
                let pause = step.mul_f64(lock(&self.rng).random_range(0.5..1.5));
                self.io.clock.sleep_until((self.now() + pause).since_origin()).await;
                for partition in some {
                    if self.store.keys_in(Table::Guest, *partition) > 0 {
                        self.scrub_guests_of(*partition).await;
                    }
                }
            }
        }
    }

    async fn scrub_guests_of(&self, partition: PartitionId) {
        let mut after: Option<(Namespace, Key)> = None;
        let mut budget = Budget::new(self.now());
        loop {
            let from = match &after {
                Some((namespace, key)) => Bound::Excluded((*namespace, key)),
                None => Bound::Unbounded,
            };
            let page = self.store.scan(Table::Guest, partition, from, Direction::Ascending, LOOK).keys;
            let Some(last) = page.last() else { return };
            after = Some((last.namespace, last.key.clone()));
            for found in page {
                let slot =
                    Slot { table: Table::Guest, partition, namespace: found.namespace, key: found.key };
                self.metrics.scrubbed.one();
                match self.store.verify(&slot).await {
                    Ok(()) => self.note_sound(&slot),
                    Err(StorageError::Corrupt(_)) => {
                        self.note_damaged(&slot);
                        if let Err(why) = self.settle_guest(&slot).await {
                            tracing::debug!(key = %slot.key, %why, "a damaged guest stays");
                        }
                    }
                    // The disk fails: the node stops for that.
                    Err(_) => return,
                }
                self.keep_pace(&mut budget, found.bytes as u64).await;
            }
        }
    }
}
