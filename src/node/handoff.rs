//! Hinted handoff: what this node keeps for others goes to them when they are back (Dynamo §4.6).
//!
//! ```text
//!   a fallback                          the primary
//!   read guest (record, hash h) ──Store─▶ merge, sync
//!                               ◀──ok────
//!   under the key's lock: still hash h?  yes: strike the target; the last one gone: remove the record
//!                                        no: it has changed meanwhile: the next round sends it again
//! ```
//! A round comes once an interval and goes through all targets at once, each as far as it can be reached; a round that breaks off goes on
//! where it was, because what was delivered is gone.
//!
//! The order of things against crashes and races
//! - **Compare and strike**: a put may add to the record between reading it and the answer. Struck without a look, what it
//!   added would be lost with the copy.
//! - The target answers when its own disk has the record. A crash between its answer and the strike sends it twice; merging
//!   it again changes nothing.
//! - The record's local actor ends with the copy: the next write here begins under a new one (DESIGN §3).
//! - A fallback and the primary that it stands in for count once towards W (`dynamo::quorum`), so handing over never leaves
//!   fewer copies than were promised.
//! - A target that is no primary any more is replaced by those that are. A node that became a primary turns its
//!   guest record into data.
//!
//! An accepted guest is never dropped: limits act where guests come in ([`Inner::takes_guest`]). `tests/handoff_model` searches
//! this order, beside the put machine, for a lost write, and finds one as soon as a step of it is left out.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use rand::RngExt;

use super::fences::fences_of;
use super::{Inner, Node, lock};
use crate::dynamo::reaping::Fences;
use crate::net::message::{self as net, HintWhy, HintsFor, HintsReply, Refusal, RefusalCode};
use crate::storage::{Change, Durability, Entry, Owed, Slot, StorageError, Table};
use crate::types::{Mono, NodeId};

/// Keys looked up at a time.
const PAGE: usize = 256;
/// Records on their way to one target.
const AT_ONCE: usize = 16;
/// A strike is durable within this time: one that a crash undoes is done again.
const STRUCK_WITHIN: Duration = Duration::from_millis(100);

/// What is known of the records kept for others.
#[derive(Debug, Default)]
pub(super) struct Handoff {
    targets: Mutex<BTreeMap<NodeId, Waiting>>,
    /// Guest records held: counted each round, and one more for each that came in since.
    guests: AtomicU64,
}

#[derive(Debug, Clone)]
struct Waiting {
    since: Mono,
    why: HintWhy,
}

impl Node {
    /// For whom this node keeps records, and why they wait. Visits each partition.
    pub fn hints(&self) -> HintsReply {
        let inner = &self.inner;
        let now = inner.now();
        let waiting = lock(&inner.handoff.targets).clone();
        let told = |target: NodeId| {
            let (count, bytes) = inner.store.owed_size(target);
            let (since, why) = waiting
                .get(&target)
                .map_or((now, HintWhy::New), |waiting| (waiting.since, waiting.why.clone()));
            let age_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
            HintsFor { target, count, bytes, age_ms, why }
        };
        let targets = inner.store.targets().into_iter().map(told).collect();
        HintsReply { targets, guests_max: inner.config.guests_max }
    }
}

impl Inner {
    /// Whether a record may come in here: a guest of which there is no copy yet needs room.
    ///
    /// # Errors
    /// `HintsFull` when too many are kept; nothing was done.
    pub(super) async fn takes_guest(&self, slot: &Slot) -> Result<(), Refusal> {
        // What cannot be read is there.
        if slot.table == Table::Data || !matches!(self.store.read(slot).await, Ok(None)) {
            return Ok(());
        }
        let (held, max) = (self.handoff.guests.load(Ordering::Relaxed), self.config.guests_max);
        if held < max && !buggify!("hints-full") {
            self.handoff.guests.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.metrics.guests_refused.one();
        let message = format!("{} keeps {held} records for other nodes and takes at most {max}", self.id);
        Err(Refusal::new(RefusalCode::HintsFull, message))
    }

    /// Hands over what is kept for others, round by round.
    pub(super) async fn hand_off(&self) -> Infallible {
        loop {
            // Spread, so that not all who kept something for a node come to it at once.
            let pause = self.config.handoff_interval.mul_f64(lock(&self.rng).random_range(0.75..1.25));
            self.io.clock.sleep_until((self.now() + pause).since_origin()).await;
            self.hand_off_round().await;
        }
    }

    async fn hand_off_round(&self) {
        let targets = self.store.targets();
        self.handoff.guests.store(self.store.len(Table::Guest) as u64, Ordering::Relaxed);
        let (now, down) = (self.now(), self.down());
        {
            let mut waiting = lock(&self.handoff.targets);
            waiting.retain(|target, _| targets.contains(target));
            for target in &targets {
                let why = if down.contains(target) { HintWhy::Down } else { HintWhy::Moving };
                let since = waiting.get(target).map_or(now, |waiting| waiting.since);
                waiting.insert(*target, Waiting { since, why });
            }
        }
        let reachable = targets.into_iter().filter(|target| !down.contains(target));
        let mut rounds: FuturesUnordered<_> = reachable
            .map(|target| async move { (target, Box::pin(self.hand_off_to(target)).await) })
            .collect();
        while let Some((target, ended)) = rounds.next().await {
            let why = match ended {
                Ok(()) => HintWhy::New,
                Err(why) => {
                    self.metrics.handoff_failures.one();
                    tracing::debug!(%target, %why, "handing over ended early");
                    HintWhy::Failed(why)
                }
            };
            if let Some(waiting) = lock(&self.handoff.targets).get_mut(&target) {
                waiting.why = why;
            }
        }
    }

    /// Hands a node what is kept for it, once through.
    ///
    /// # Errors
    /// When it ended early, with the reason.
    async fn hand_off_to(&self, target: NodeId) -> Result<(), String> {
        let began = self.now();
        let (mut sent, mut after): (u64, Option<Owed>) = (0, None);
        loop {
            let page = self.store.owed_to(target, after.as_ref(), PAGE);
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            let mut moving =
                stream::iter(page).map(|owed| self.hand_over(target, owed.slot)).buffer_unordered(AT_ONCE);
            while let Some(bytes) = moving.next().await {
                sent += bytes?;
            }
            let due = sent as f64 / self.config.handoff_bytes_per_second.max(1) as f64;
            self.io.clock.sleep_until((began + Duration::from_secs_f64(due)).since_origin()).await;
        }
    }

    /// Hands over one record; about how many bytes that were.
    ///
    /// # Errors
    /// When the target, or the own disk, cannot be used now.
    pub(super) async fn hand_over(&self, target: NodeId, slot: Slot) -> Result<u64, String> {
        let (entry, version_hash, state) = match self.store.read_with_state(&slot).await {
            Ok((Some((entry, version_hash)), state)) => (entry, version_hash, state),
            Ok((None, _)) => return Ok(0),
            // It stays, and shows as damaged. What it held, the other replicas have, or nobody.
            Err(StorageError::Corrupt(_)) => return Ok(0),
            Err(error) => return Err(error.to_string()),
        };
        let list = self.preference_of(slot.partition);
        if slot.table == Table::Guest && list.is_primary(self.id) {
            return self.turn_into_data(&slot, &entry, version_hash, fences_of(&state)).await;
        }
        if !list.is_primary(target) {
            let primaries: Vec<NodeId> = list.primaries().filter(|node| *node != self.id).collect();
            return self.retarget(&slot, target, &primaries).await;
        }
        point!("handoff-sent");
        let (sync, errand) = (net::Durability::Sync, self.errand());
        let sent = self.send_own(target, &slot, &[], sync, None, errand).await;
        let Some((record, version_hash)) = sent.map_err(|error| error.to_string())? else { return Ok(0) };
        point!("handoff-acked");
        let struck = self.strike(&slot, target, version_hash).await.map_err(|error| error.to_string())?;
        self.metrics.guests_delivered.one();
        if !struck {
            self.metrics.guests_outrun.one();
        }
        Ok(record.size_bytes() as u64)
    }

    /// Strikes a target off a record that is still the one that it acknowledged; whether it is.
    async fn strike(&self, slot: &Slot, target: NodeId, version_hash: u64) -> Result<bool, StorageError> {
        let strike = |entry: &mut Entry| {
            let same = entry.copy.record.version_hash() == version_hash || canary!(StrikeUnseen);
            if !same || !entry.targets.contains(&target) {
                return (Change::Keep, same);
            }
            entry.targets.retain(|other| *other != target);
            let gone = slot.table == Table::Guest && entry.targets.is_empty();
            (if gone { Change::Remove } else { Change::Write }, true)
        };
        let (same, _) = self.store.update(slot, Durability::Interval(STRUCK_WITHIN), strike).await?;
        point!("guest-struck");
        Ok(same)
    }

    /// A layout has made others the primaries of the key: it is kept for them.
    async fn retarget(&self, slot: &Slot, gone: NodeId, primaries: &[NodeId]) -> Result<u64, String> {
        let retarget = |entry: &mut Entry| {
            if !entry.targets.contains(&gone) {
                return (Change::Keep, ());
            }
            entry.targets.retain(|other| *other != gone);
            entry.add_targets(primaries);
            fact!(Retargeted { node: self.id, slot, gone, primaries });
            (Change::Write, ())
        };
        let retargeted = self.store.update(slot, Durability::Sync, retarget).await;
        retargeted.map(|_| 0).map_err(|error| error.to_string())
    }

    /// This node has become a primary of the key: its guest record, read under `fences`, becomes data, still owed to whom it was.
    async fn turn_into_data(
        &self,
        guest: &Slot,
        entry: &Entry,
        version_hash: u64,
        fences: Fences,
    ) -> Result<u64, String> {
        let data = Slot { table: Table::Data, ..guest.clone() };
        let targets: Vec<NodeId> = entry.targets.iter().copied().filter(|node| *node != self.id).collect();
        // It does not leave the node, but it is a copy like one that comes from another: since it was read the guest may have been
        // given up, and the fence raised over it.
        let kept =
            self.store_own(&data, &targets, &entry.copy.record, net::Durability::Sync, fences, None).await;
        kept.map_err(|why| why.into_refusal().message)?;
        point!("guest-turned-data");
        fact!(TurnedIntoData { node: self.id, slot: guest });
        let remove = |entry: &mut Entry| {
            let same = entry.copy.record.version_hash() == version_hash;
            (if same { Change::Remove } else { Change::Keep }, ())
        };
        let removed = self.store.update(guest, Durability::Sync, remove).await;
        removed.map(|_| 0).map_err(|error| error.to_string())
    }
}
