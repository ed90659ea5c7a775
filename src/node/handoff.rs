//! Hinted handoff: what this node keeps for others goes to them when they are back (Dynamo §4.6).
//!
//! ```text
//!   a fallback                          the primary
//!   read guest (record, hash h) ──Store─▶ merge, sync
//!                               ◀──ok────
//!   under the key's lock: still hash h?  yes: strike the target; the last one gone: remove the record
//!                                        no: it has changed meanwhile: the next round sends it again
//! ```
//! A round comes once an interval for each target that is up, beside those of the others; one that takes longer is let end first. A
//! round that breaks off goes on where it was, because what was delivered is gone.
//!
//! How long something has waited is told by the wall clock: since the first record was kept by this process, or was written, for the
//! oldest of a sample of those that were here when it started. Why it waits is judged at the moment of asking.
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
//! An accepted guest is never dropped: limits act where guests come in ([`Inner::takes_guest`]). What becomes of one that rots on the
//! disk is in `damaged`. `tests/handoff_model` searches
//! this order, beside the put machine, for a lost write, and finds one as soon as a step of it is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use rand::RngExt;
use tokio::select;

use super::fences::fences_of;
use super::{Inner, Node, lock};
use crate::dynamo::reaping::Fences;
use crate::net::message::{self as net, HintWhy, HintsFor, HintsReply, Refusal, RefusalCode};
use crate::storage::{Change, Durability, Entry, Owed, Slot, StorageError, Table};
use crate::types::{Mono, NodeId, Wall};

/// Keys looked up at a time.
const PAGE: usize = 256;
/// Records on their way to one target.
const AT_ONCE: usize = 16;
/// Targets that are handed something at once.
const TARGETS_AT_ONCE: usize = 32;
/// Records of a target that are looked at after a start.
const SAMPLED: usize = 64;
/// A strike is durable within this time: one that a crash undoes is done again.
const STRUCK_WITHIN: Duration = Duration::from_millis(100);

/// What is known of the records kept for others.
#[derive(Debug, Default)]
pub(super) struct Handoff {
    targets: Mutex<BTreeMap<NodeId, Waiting>>,
    /// Guest records held: counted once an interval, one more for each that came in since, one less for each that went.
    guests: AtomicU64,
    /// Records owed to others that are known to be damaged.
    pub(super) damaged: Mutex<BTreeSet<Slot>>,
}

/// What is kept for one target, from the first record to the last.
#[derive(Debug)]
struct Waiting {
    /// Since when, by the wall clock: it outlives this process in what is written on the records.
    since: Wall,
    /// Whether records were looked at that were here already.
    sampled: bool,
    /// When the last round began.
    begun: Option<Mono>,
    running: bool,
    /// Why the last round ended early.
    failed: Option<String>,
    /// Handed over.
    sent: Sent,
    /// It was told that it waits for too long.
    overdue: bool,
}

impl Waiting {
    fn new(since: Wall) -> Waiting {
        let (sampled, begun, running) = (false, None, false);
        Waiting { since, sampled, begun, running, failed: None, sent: Sent::default(), overdue: false }
    }

    fn age(&self, now: Wall) -> Duration {
        Duration::from_millis(now.0.saturating_sub(self.since.0))
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Sent {
    records: u64,
    bytes: u64,
}

impl Handoff {
    /// Takes note that something is kept for these nodes; those for which nothing was.
    fn came(&self, targets: &[NodeId], now: Wall) -> Vec<NodeId> {
        let mut waiting = lock(&self.targets);
        let new: Vec<NodeId> =
            targets.iter().copied().filter(|target| !waiting.contains_key(target)).collect();
        waiting.extend(new.iter().map(|target| (*target, Waiting::new(now))));
        new
    }

    pub(super) fn guest_gone(&self) {
        let less = |guests: u64| Some(guests.saturating_sub(1));
        let _ = self.guests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Node {
    /// For whom this node keeps records, and why they wait. Visits each partition.
    pub fn hints(&self) -> HintsReply {
        let inner = &self.inner;
        let (now, down) = (inner.wall(), inner.down());
        let waiting = lock(&inner.handoff.targets);
        let told = |target: NodeId| {
            let (count, bytes) = inner.store.owed_size(target);
            let known = waiting.get(&target);
            let why = match (inner.damaged_for(target), known) {
                (damaged @ 1.., _) => HintWhy::Damaged(damaged),
                _ if down.contains(&target) => HintWhy::Down,
                (_, Some(Waiting { running: true, .. })) => HintWhy::Moving,
                (_, Some(Waiting { failed: Some(why), .. })) => HintWhy::Failed(why.clone()),
                _ => HintWhy::New,
            };
            let age = known.map_or(Duration::ZERO, |waiting| waiting.age(now));
            HintsFor { target, count, bytes, age_ms: millis(age), why }
        };
        let targets = inner.store.targets().into_iter().map(told).collect();
        let (guests_max, age_warn_ms) = (inner.config.guests_max, millis(inner.config.hint_age_warn));
        HintsReply { targets, guests_max, age_warn_ms }
    }

    /// How many records are kept for each node, in order. Visits each partition.
    pub fn hints_kept(&self) -> Vec<(NodeId, u64)> {
        let store = &self.inner.store;
        store.targets().into_iter().map(|target| (target, store.owed_size(target).0)).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
        if self.is_news("hints full", 0) {
            tracing::warn!(held, max, "no more records are kept for other nodes: guests_max is reached");
        }
        let message = format!("{} keeps {held} records for other nodes and takes at most {max}", self.id);
        Err(Refusal::new(RefusalCode::HintsFull, message))
    }

    /// Takes note that something is kept for these nodes from now on.
    pub(super) fn keeps_for(&self, targets: &[NodeId]) {
        for target in self.handoff.came(targets, self.wall()) {
            if self.is_news("keeps", target.0) {
                tracing::info!(%target, "records are kept for it");
            }
        }
    }

    /// Hands over what is kept for others, each target round by round.
    pub(super) async fn hand_off(&self) -> Infallible {
        let mut rounds = FuturesUnordered::new();
        loop {
            // Spread, so that not all who kept something for a node come to it at once.
            let pause = self.config.handoff_interval.mul_f64(lock(&self.rng).random_range(0.75..1.25));
            let timer = self.io.clock.sleep_until((self.now() + pause).since_origin());
            tokio::pin!(timer);
            loop {
                select! {
                    biased;
                    () = &mut timer => break,
                    Some((target, ended)) = rounds.next() => self.round_ended(target, ended),
                }
            }
            self.handoff.guests.store(self.store.len(Table::Guest) as u64, Ordering::Relaxed);
            for target in self.rounds_due(TARGETS_AT_ONCE - rounds.len()).await {
                // One that is slow holds up no other.
                rounds.push(async move { (target, Box::pin(self.hand_off_to(target)).await) });
            }
        }
    }

    /// The targets of which a round begins now, at most so many: those first whose last one began longest ago.
    async fn rounds_due(&self, at_most: usize) -> Vec<NodeId> {
        let targets = self.store.targets();
        self.handoff.came(&targets.iter().copied().collect::<Vec<_>>(), self.wall());
        let unsampled: Vec<NodeId> = {
            let waiting = lock(&self.handoff.targets);
            waiting.iter().filter(|(_, waiting)| !waiting.sampled).map(|(target, _)| *target).collect()
        };
        for target in unsampled {
            let oldest = self.oldest_of(target).await;
            if let Some(waiting) = lock(&self.handoff.targets).get_mut(&target) {
                waiting.sampled = true;
                waiting.since = waiting.since.min(oldest.unwrap_or(waiting.since));
            }
        }
        let (now, wall, down) = (self.now(), self.wall(), self.down());
        let mut waiting = lock(&self.handoff.targets);
        waiting.retain(|target, waiting| {
            let is_left = waiting.running || targets.contains(target);
            let Sent { records, bytes } = waiting.sent;
            if !is_left && records > 0 && self.is_news("handed over", target.0) {
                tracing::info!(%target, records, bytes, "all that was kept for it is handed over");
            }
            is_left
        });
        for (target, waiting) in waiting.iter_mut() {
            if !waiting.overdue && waiting.age(wall) >= self.config.hint_age_warn {
                waiting.overdue = true;
                let (records, _) = self.store.owed_size(*target);
                let hours = waiting.age(wall).as_secs() / 3600;
                tracing::warn!(%target, records, hours, "records are kept for it longer than hint_age_warn: `ringdove hints`");
            }
        }
        let is_due = |target: &NodeId| targets.contains(target) && !down.contains(target);
        let mut due: Vec<(Option<Mono>, NodeId)> = waiting
            .iter()
            .filter(|(target, waiting)| !waiting.running && is_due(target))
            .map(|(target, waiting)| (waiting.begun, *target))
            .collect();
        due.sort_unstable();
        due.truncate(at_most);
        for (_, target) in &due {
            let waiting = waiting.get_mut(target).expect("it is one of them");
            waiting.running = true;
            waiting.begun = Some(now);
            if self.is_news("hands over", target.0) {
                let (records, bytes) = self.store.owed_size(*target);
                tracing::info!(%target, records, bytes, "handing over what is kept for it");
            }
        }
        due.into_iter().map(|(_, target)| target).collect()
    }

    /// When the oldest of some records that are kept for a node was written last: a process that has just started learns so how long
    /// they may have waited. To read all of them would take too long, and by their keys they come in no order of time.
    async fn oldest_of(&self, target: NodeId) -> Option<Wall> {
        let mut oldest: Option<Wall> = None;
        for owed in self.store.owed_to(target, None, SAMPLED) {
            // One that cannot be read says nothing of its age, and shows when it is to be handed over.
            let Ok(Some(entry)) = self.store.read(&owed.slot).await else { continue };
            let written = entry.copy.record.siblings().iter().map(|sibling| sibling.written_at).max();
            oldest = [oldest, written].into_iter().flatten().min();
        }
        oldest
    }

    fn round_ended(&self, target: NodeId, (sent, ended): (Sent, Result<(), String>)) {
        if ended.is_err() {
            self.metrics.handoff_failures.one();
        }
        if let Some(waiting) = lock(&self.handoff.targets).get_mut(&target) {
            waiting.running = false;
            waiting.sent.records += sent.records;
            waiting.sent.bytes += sent.bytes;
            waiting.failed = ended.as_ref().err().cloned();
        }
        if let Err(why) = ended
            && self.is_news("not handed over", target.0)
        {
            let (left, _) = self.store.owed_size(target);
            tracing::warn!(%target, sent = sent.records, left, %why, "handing over ended early, it goes on later");
        }
    }

    /// Hands a node what is kept for it, once through: what it was given, and with what reason it ended early, if it did.
    async fn hand_off_to(&self, target: NodeId) -> (Sent, Result<(), String>) {
        let began = self.now();
        let (mut sent, mut after): (Sent, Option<Owed>) = (Sent::default(), None);
        loop {
            let page = self.store.owed_to(target, after.as_ref(), PAGE);
            let Some(last) = page.last() else { return (sent, Ok(())) };
            after = Some(last.clone());
            let mut moving =
                stream::iter(page).map(|owed| self.hand_over(target, owed.slot)).buffer_unordered(AT_ONCE);
            while let Some(bytes) = moving.next().await {
                match bytes {
                    Ok(bytes) => {
                        sent.bytes += bytes;
                        sent.records += u64::from(bytes > 0);
                    }
                    Err(why) => return (sent, Err(why)),
                }
            }
            let due = sent.bytes as f64 / self.config.handoff_bytes_per_second.max(1) as f64;
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
            Ok((None, _)) => {
                self.note_sound(&slot);
                return Ok(0);
            }
            Err(StorageError::Corrupt(_)) => {
                self.note_damaged(&slot);
                if slot.table == Table::Guest {
                    return Box::pin(self.settle_guest(&slot)).await.or_else(|why| {
                        tracing::debug!(key = %slot.key, %why, "a damaged guest stays");
                        Ok(0)
                    });
                }
                // A primary's own copy is repaired by comparing, soon: damage takes the mark *refilled* away.
                return Ok(0);
            }
            Err(error) => return Err(error.to_string()),
        };
        self.note_sound(&slot);
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
                return (Change::Keep, (same, false));
            }
            entry.targets.retain(|other| *other != target);
            let gone = slot.table == Table::Guest && entry.targets.is_empty();
            (if gone { Change::Remove } else { Change::Write }, (true, gone))
        };
        let ((same, gone), _) = self.store.update(slot, Durability::Interval(STRUCK_WITHIN), strike).await?;
        point!("guest-struck");
        if gone {
            self.handoff.guest_gone();
        }
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
            (if same { Change::Remove } else { Change::Keep }, same)
        };
        let removed = self.store.update(guest, Durability::Sync, remove).await;
        let (gone, _) = removed.map_err(|error| error.to_string())?;
        if gone {
            self.handoff.guest_gone();
        }
        Ok(0)
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::super::testing::{open, written};
    use super::*;
    use crate::types::{Key, Namespace};

    const HOUR: Duration = Duration::from_secs(3600);

    /// Keeps a record for these nodes that was written an hour ago.
    async fn keep(inner: &Inner, key: &'static [u8], targets: &[NodeId]) {
        let slot = inner.slot(Table::Guest, Namespace::default(), &Key::new(key).unwrap());
        let at = Wall(inner.wall().0 - 3_600_000);
        let (record, sync) = (written(1, at), net::Durability::Sync);
        inner.store_own(&slot, targets, &record, sync, Fences::default(), None).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_kept_before_a_start_is_as_old_as_what_was_written() {
        let node = open(|config| config.hint_age_warn = HOUR / 2).await;
        keep(&node.inner, b"dove", &[NodeId(2)]).await;
        assert!(node.hints().targets[0].age_ms < 60_000, "as far as this start has seen");
        node.inner.rounds_due(TARGETS_AT_ONCE).await;
        let hints = node.hints();
        assert!(
            hints.targets[0].age_ms >= millis(HOUR) && hints.age_warn_ms == millis(HOUR / 2),
            "{hints:?}"
        );
        assert_eq!(node.hints_kept(), [(NodeId(2), 1)]);
    }

    #[tokio::test]
    async fn why_something_waits_is_judged_at_the_moment_of_asking() {
        let node = open(|_| {}).await;
        let inner = &node.inner;
        keep(inner, b"dove", &[NodeId(2)]).await;
        let why = || node.hints().targets.remove(0).why;
        assert_eq!(why(), HintWhy::New);
        inner.rounds_due(TARGETS_AT_ONCE).await;
        assert_eq!(why(), HintWhy::Moving);
        inner.round_ended(NodeId(2), (Sent::default(), Err("its disk is full".to_owned())));
        assert_eq!(why(), HintWhy::Failed("its disk is full".to_owned()));
        let mut detector = lock(&inner.detector);
        detector.set_peers(inner.now(), [NodeId(2)]);
        detector.refused(inner.now(), NodeId(2));
        drop(detector);
        assert_eq!(why(), HintWhy::Down, "no round has come since");
    }

    #[tokio::test]
    async fn a_target_that_takes_long_holds_up_no_other() {
        let node = open(|_| {}).await;
        let inner = &node.inner;
        keep(inner, b"dove", &[NodeId(2), NodeId(3)]).await;
        assert_eq!(inner.rounds_due(1).await, [NodeId(2)]);
        assert_eq!(inner.rounds_due(1).await, [NodeId(3)], "whose turn it is");
        assert_eq!(inner.rounds_due(TARGETS_AT_ONCE).await, []);
        inner.round_ended(NodeId(3), (Sent::default(), Ok(())));
        assert_eq!(inner.rounds_due(TARGETS_AT_ONCE).await, [NodeId(3)], "the other one has not ended");
    }

    #[tokio::test]
    async fn what_was_handed_over_makes_room_at_once() {
        let node = open(|config| config.guests_max = 1).await;
        let inner = &node.inner;
        let slot =
            |key: &'static [u8]| inner.slot(Table::Guest, Namespace::default(), &Key::new(key).unwrap());
        inner.takes_guest(&slot(b"dove")).await.unwrap();
        keep(inner, b"dove", &[NodeId(2)]).await;
        assert!(inner.takes_guest(&slot(b"rook")).await.is_err());
        let (_, version_hash) = inner.store.read_with_hash(&slot(b"dove")).await.unwrap().unwrap();
        assert!(inner.strike(&slot(b"dove"), NodeId(2), version_hash).await.unwrap());
        inner.takes_guest(&slot(b"rook")).await.unwrap();
    }
}
