//! What a fence asks of every record that comes or goes (`dynamo::reaping`): how a node raises its own, sends again what was
//! refused, and gives up copies that are older than what the others have agreed to forget.
//!
//! The bad orders
//! - A node is refused, raises its fence, sends, and loses power: with the lower fence it had before it would agree to a round
//!   that what it sent contradicts. So a fence is durable before anything is sent with it.
//! - What was read before the raise is sent after it: the store is always read again.
//! - A new or replaced disk takes copies before it has heard of any fence, and would give them up when it does. A partition
//!   without any entry takes over the first fence that it meets; and siblings that this very start of the node has made are
//!   never given up: nobody can have agreed to forget them without it.
//! - A restored node hears of a higher fence from one that does not know yet that the round was committed. It raises its own, holding
//!   still what the round has removed, and nobody will ever see that it was behind. So no fence is raised by hearsay, and no vote given,
//!   before every other primary was asked once since the start: whoever led a round knows of the votes, or of the commit on its disk, or
//!   the round will never be committed.
//!   Once a start, and not at each new connection as peers elsewhere compare what they are: what a connection could bring later comes with
//!   every message. A record, an answer and a tree each carry their sender's fences, and are taken only after this node has caught up with
//!   them; and no disk goes back while its process runs, so who was level with a round when it was asked stays so. What a new
//!   connection may mean is that the *other* one has gone back. It asks everybody itself, at its start.
//! - A disk that has lost records in the middle may show older ones in their place, behind a fence that it has kept: a start that
//!   finds such a loss resets the fence (`storage::recovery`). Little may be lost, and on several disks: what another primary
//!   that is not outdated still holds is not given up, and where none can be asked, nothing is, and nothing is shown.
//! - A node that leaves, or is just coming, is not asked for its vote. By hearsay it would raise its fence to that of a round under way, and
//!   give away what the round lets go a moment later; and what it wrote itself can be forgotten without it. So for it what others
//!   have voted under is as good as committed, one that leaves drops an outdated partition whole, and one that comes disowns what it
//!   wrote before.
//! - What comes in while copies are given up comes in behind the look at its key, or before it: an old value would stay, under the fence
//!   that is raised in the end; a new one, for which its sender crosses this node off, would be given up because nobody else has it yet.
//!   So nothing comes in then, be it a message, or a guest that is to become data. Nor is the fence raised in between: it is what
//!   shows that the giving up is done.
//! - A write that reached nobody overwrote one that is alive. Given up, it must not leave its claim behind ([`Record::only`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Mutex;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use tokio::sync::Mutex as AsyncMutex;

use super::replica::storage_refusal;
use super::{Inner, Request, lock};
use crate::dynamo::reaping::Fences;
use crate::dynamo::version::{Dot, Record};
use crate::net::link::CallError;
use crate::net::message::{
    AskFences, AskFencesReply, Durability, Fetch, FetchReply, Refusal, RefusalCode, Store, StoreReply,
};
use crate::storage::{self, Change, Direction, Entry, PartitionState, Slot, StorageError, Table};
use crate::types::{NodeId, PartitionId};

/// How often a record is sent again because the fence was raised meanwhile.
const SENT_MAX: usize = 4;
/// Keys given up at once, and looked at in one step.
const AT_ONCE: usize = 16;
const PAGE: usize = 1024;

/// The fence that this disk must have known by what others say.
#[derive(Debug, Clone, Copy, Default)]
struct Needed {
    /// Of a node whose vote the rounds need: what is committed, and what it voted under itself.
    voter: u64,
    /// Of one that has none, because it leaves or is just coming. It is asked by none, so what others have voted under is as good as
    /// committed.
    other: u64,
}

impl Needed {
    fn of(self, has_vote: bool) -> u64 {
        if has_vote { self.voter } else { self.other }
    }
}

/// What a node knows of the fences of others.
#[derive(Default)]
pub(super) struct FenceWatch {
    /// Members that were asked since the start, and heeded.
    asked: Mutex<BTreeSet<NodeId>>,
    /// Under which fence members have voted last in rounds that this node led.
    heard: Mutex<BTreeMap<(PartitionId, NodeId), u64>>,
    /// One at a time.
    asking: AsyncMutex<()>,
    /// Partitions in which this node was refused for its fence and could not raise it.
    blocked: Mutex<BTreeSet<PartitionId>>,
    /// Partitions whose copies are being given up: nobody is shown any.
    stale: Mutex<BTreeMap<PartitionId, Needed>>,
    /// One at a time.
    catching_up: AsyncMutex<()>,
}

/// Why a copy was not merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotKept {
    /// The disk.
    Storage(StorageError),
    /// It was read before a round in which this node has voted.
    Fenced(Fences),
    /// A layout has come meanwhile under which this node is no primary.
    Moved,
    /// This node's copies of the partition are being given up.
    Outdated(PartitionId),
}

impl From<StorageError> for NotKept {
    fn from(error: StorageError) -> NotKept {
        NotKept::Storage(error)
    }
}

impl NotKept {
    /// As a refusal, where there is nobody who could raise a fence.
    pub(crate) fn into_refusal(self) -> Refusal {
        match self {
            NotKept::Storage(error) => storage_refusal(&error),
            NotKept::Moved => {
                let message = "a layout has come meanwhile under which this node is no primary of the key";
                Refusal::new(RefusalCode::WrongLayout, message)
            }
            NotKept::Outdated(partition) => {
                let message =
                    format!("{partition} is being brought up to what was agreed to be forgotten: try again");
                Refusal::new(RefusalCode::Unavailable, message)
            }
            NotKept::Fenced(_) => {
                let message = "the copy is older than what was agreed to be forgotten";
                Refusal::new(RefusalCode::Unavailable, message)
            }
        }
    }
}

/// What others hold of a key.
enum Elsewhere {
    /// One of them the very same.
    Same,
    Alive {
        /// The siblings of all of them.
        alive: BTreeSet<Dot>,
        /// Those that none of them has overwritten, where all were asked.
        unclaimed: BTreeSet<Dot>,
    },
}

/// What is answered for a partition whose copies are being given up.
pub(super) fn outdated(partition: PartitionId) -> StorageError {
    StorageError::Corrupt(format!("{partition} is older than what was agreed to be forgotten"))
}

/// A partition's state as it is shown to others.
pub(super) fn fences_of(state: &PartitionState) -> Fences {
    Fences { raised: state.fence, committed: state.committed }
}

impl Inner {
    /// This node's fences for a partition, durable.
    pub(super) async fn fences(&self, partition: PartitionId) -> Result<Fences, StorageError> {
        Ok(fences_of(&self.store.durable_state(partition).await?))
    }

    /// Whether this node's copies of a partition are being given up.
    pub(super) fn is_stale(&self, partition: PartitionId) -> bool {
        self.is_stale_at(partition, self.store.partition_state(partition).0.fence)
    }

    /// The same of a partition that is locked and has this fence.
    pub(super) fn is_stale_at(&self, partition: PartitionId, fence: u64) -> bool {
        let needed = lock(&self.fence_watch.stale).get(&partition).copied();
        needed.is_some_and(|needed| fence < needed.of(self.has_vote()))
    }

    /// Shows a partition again, if its fence is as high as it must have been.
    fn unhide(&self, partition: PartitionId) {
        if !self.is_stale(partition) {
            lock(&self.fence_watch.stale).remove(&partition);
        }
    }

    /// Nothing is shown of a partition until its fence is as high.
    fn hide(&self, partition: PartitionId, needed: Needed) {
        let mut stale = lock(&self.fence_watch.stale);
        let known = stale.entry(partition).or_default();
        known.voter = known.voter.max(needed.voter);
        known.other = known.other.max(needed.other);
    }

    /// Takes note of another node's fences: on return the own one is at least as high, durably, and no copy is left that is
    /// older than what was committed.
    /// # Errors
    /// Also while it cannot be known whether this node's disk is the one that voted last.
    pub(super) async fn raise_fence(&self, partition: PartitionId, to: Fences) -> Result<(), StorageError> {
        self.catch_up(partition, to).await?;
        if fences_of(&self.store.partition_state(partition).0).raised >= to.raised {
            return Ok(());
        }
        if !self.is_settled(partition) {
            self.compare_fences().await;
        }
        if !self.is_settled(partition) {
            lock(&self.fence_watch.blocked).insert(partition);
            let message = format!("{partition}: not every other primary has said yet how far it is");
            return Err(StorageError::Corrupt(message));
        }
        let (raised, position) = self
            .store
            .update_partition(partition, |state| {
                if self.is_stale_at(partition, state.fence) {
                    return (Change::Keep, Err(outdated(partition)));
                }
                if state.fence >= to.raised {
                    return (Change::Keep, Ok(false));
                }
                state.fence = to.raised;
                (Change::Write, Ok(true))
            })
            .await?;
        let raised = raised?;
        self.store.wait_synced(position).await?;
        if raised {
            point!("fence-raised");
            self.metrics.fences_raised.one();
        }
        Ok(())
    }

    /// Whether every other primary was asked since the start, so that the fence on this disk is known to be the last.
    pub(super) fn is_settled(&self, partition: PartitionId) -> bool {
        let asked = lock(&self.fence_watch.asked);
        self.preference_of(partition).primaries().all(|node| node == self.id || asked.contains(&node))
    }

    /// Every other primary must be asked again before a fence is raised or voted under.
    pub(super) fn forget_fences_asked(&self) {
        lock(&self.fence_watch.asked).clear();
    }

    /// Whether others refuse this node's copies for its fence, and it cannot raise it yet.
    pub(super) fn is_blocked(&self, partition: PartitionId) -> bool {
        let mut blocked = lock(&self.fence_watch.blocked);
        if blocked.contains(&partition) && self.is_settled(partition) {
            blocked.remove(&partition);
        }
        blocked.contains(&partition)
    }

    /// Takes note that a member has voted in a round that this node leads.
    pub(super) fn heard_vote(&self, partition: PartitionId, from: NodeId, fence: u64) {
        lock(&self.fence_watch.heard).insert((partition, from), fence);
    }

    /// Gives up this node's copies of a partition if a round was committed that its disk knows nothing of; a partition without
    /// copies takes over the fence.
    pub(super) async fn catch_up(&self, partition: PartitionId, theirs: Fences) -> Result<(), StorageError> {
        self.catch_up_to(partition, theirs, theirs.committed).await
    }

    /// As [`Inner::catch_up`], for a disk that must have known the fence `known`: of a commit, or of a vote of this node's own.
    async fn catch_up_to(
        &self,
        partition: PartitionId,
        theirs: Fences,
        known: u64,
    ) -> Result<(), StorageError> {
        let needed = Needed { voter: known, other: known.max(theirs.raised) };
        let known = needed.of(self.has_vote());
        let own = fences_of(&self.store.partition_state(partition).0);
        if own.raised < theirs.raised && self.store.raise_empty(partition, theirs.raised).await? {
            self.unhide(partition);
            return self.hear_commit(partition, theirs.committed).await;
        }
        if own.raised >= known {
            return self.hear_commit(partition, theirs.committed).await;
        }
        let _alone = self.fence_watch.catching_up.lock().await;
        if self.store.partition_state(partition).0.fence >= known {
            self.unhide(partition);
            return Ok(());
        }
        point!("copies-given-up");
        self.hide(partition, needed);
        // As long as it fails nothing is shown.
        let records = match self.stays() {
            true => self.give_up(partition, theirs, known).await?,
            false => self.give_all_up(partition, theirs, known).await?,
        };
        self.unhide(partition);
        self.metrics.copies_given_up.add(records);
        tracing::warn!(
            %partition,
            records,
            "the others have agreed to forget things of which this disk knows nothing: it was restored or has lost records; \
             what no other replica holds was given up, the partition is filled again from them"
        );
        Ok(())
    }

    /// Takes note of a commit that this node was not told of yet, before anything is taken from who was: a copy that is shown with a
    /// lower *committed* counts as uncut. What is merged from now on stands behind the note in the log, so nobody waits for it.
    async fn hear_commit(&self, partition: PartitionId, committed: u64) -> Result<(), StorageError> {
        if self.store.partition_state(partition).0.committed >= committed {
            return Ok(());
        }
        let note = |state: &mut PartitionState| {
            // Between the two the disk cannot have gone back: the fence was as high.
            if state.committed >= committed || state.fence < committed {
                return (Change::Keep, ());
            }
            state.committed = committed;
            (Change::Write, ())
        };
        self.store.update_partition(partition, note).await.map(|_| ())
    }

    /// Whether rounds need this node's vote: it is a member of every active layout. Of several, others may have retired all but
    /// the last already.
    pub(super) fn has_vote(&self) -> bool {
        self.votes(self.id)
    }

    /// As [`Inner::has_vote`], of any node, by this node's layouts.
    pub(super) fn votes(&self, node: NodeId) -> bool {
        lock(&self.layouts).history.active().iter().all(|layout| layout.member(node).is_some())
    }

    /// Whether the newest layout has this node.
    fn stays(&self) -> bool {
        lock(&self.layouts).history.current().member(self.id).is_some()
    }

    /// As [`Inner::give_up`] for a node that has left, or is leaving while others have retired the layout that had it: what others hold it need not give them, and what they do not hold it
    /// must not. Asking them for each key would begin again with each of their rounds.
    async fn give_all_up(
        &self,
        partition: PartitionId,
        theirs: Fences,
        known: u64,
    ) -> Result<u64, StorageError> {
        let epoch = self.epoch.get();
        if self.stays() {
            return self.give_up(partition, theirs, known).await;
        }
        fact!(GivenUp { node: self.id, partition });
        let mut records = 0;
        for table in [Table::Data, Table::Guest] {
            let gone = self.remove_all(table, partition, epoch).await;
            records += gone.map_err(StorageError::Corrupt)?;
        }
        // If something has come in meanwhile, the next comparison is about that.
        self.store.raise_empty(partition, theirs.raised.max(known)).await?;
        Ok(records)
    }

    async fn give_up(&self, partition: PartitionId, theirs: Fences, known: u64) -> Result<u64, StorageError> {
        // Not refilled first, the fence last: a crash between them does it all again.
        let (_, position) = self
            .store
            .update_partition(partition, |state| {
                state.refilled = false;
                (Change::Write, ())
            })
            .await?;
        self.store.wait_synced(position).await?;
        fact!(GivenUp { node: self.id, partition });
        let mut records = 0;
        for table in [Table::Data, Table::Guest] {
            let mut after = None;
            loop {
                let from = match &after {
                    Some((namespace, key)) => Bound::Excluded((*namespace, key)),
                    None => Bound::Unbounded,
                };
                let page = self.store.scan(table, partition, from, Direction::Ascending, PAGE).keys;
                let Some(last) = page.last() else { break };
                after = Some((last.namespace, last.key.clone()));
                let slots = page.into_iter().map(|found| {
                    let slot = Slot { table, partition, namespace: found.namespace, key: found.key };
                    self.give_up_one(slot, known)
                });
                let mut going = stream::iter(slots).buffer_unordered(AT_ONCE);
                while let Some(gone) = going.next().await {
                    records += u64::from(gone?);
                }
            }
        }
        let (_, position) = self
            .store
            .update_partition(partition, |state| {
                state.fence = state.fence.max(theirs.raised).max(known);
                // A vote of this node's own is not a commit: told to others as one, it would make them give up what they hold.
                state.committed = state.committed.max(theirs.committed);
                (Change::Write, ())
            })
            .await?;
        self.store.wait_synced(position).await?;
        Ok(records)
    }

    /// What the other primaries hold of a key of which this node holds a certain version.
    ///
    /// # Errors
    /// When none of them can be asked that is not outdated itself.
    async fn held_elsewhere(
        &self,
        slot: &Slot,
        version_hash: u64,
        committed: u64,
    ) -> Result<Elsewhere, StorageError> {
        let (mut found, mut silent) = (Vec::new(), false);
        let list = self.preference_of(slot.partition);
        let fetch = Fetch { namespace: slot.namespace, key: slot.key.clone(), unless: Some(version_hash) };
        for other in list.primaries().filter(|node| *node != self.id) {
            let reply: Result<FetchReply, CallError> = self.call(other, &fetch, self.errand()).await;
            let Some(FetchReply { record, .. }) = reply.ok().filter(|reply| reply.fences.raised >= committed)
            else {
                silent = true;
                continue;
            };
            found.push(match record {
                Some(record) => record,
                None => return Ok(Elsewhere::Same),
            });
        }
        if found.is_empty() {
            let message = "the copy may be older than what was agreed to be forgotten, and no other replica can be asked";
            return Err(StorageError::Corrupt(message.to_owned()));
        }
        let dots =
            |record: &Record| record.siblings().iter().map(|sibling| sibling.dot).collect::<BTreeSet<_>>();
        let alive: BTreeSet<Dot> = found.iter().flat_map(dots).collect();
        let is_claimed = |dot: &Dot| {
            found.iter().any(|record| record.context().covers(*dot) && !dots(record).contains(dot))
        };
        let unclaimed = alive.iter().copied().filter(|dot| !silent && !is_claimed(dot)).collect();
        Ok(Elsewhere::Alive { alive, unclaimed })
    }

    /// Gives up of one copy what no other primary holds, except for what this start of the node has written: that cannot have
    /// been forgotten without its vote (what it wrote without one, it has disowned).
    async fn give_up_one(&self, slot: Slot, committed: u64) -> Result<bool, StorageError> {
        let ours = |dot: Dot| self.mint().is_ours(dot.actor);
        let version_hash = match self.store.read_with_hash(&slot).await {
            Ok(Some((entry, version_hash))) => {
                let all_ours = entry.copy.record.siblings().iter().all(|sibling| ours(sibling.dot));
                if all_ours {
                    return Ok(false);
                }
                version_hash
            }
            Ok(None) => return Ok(false),
            // What cannot be read is taken for absent, and goes.
            Err(StorageError::Corrupt(_)) => {
                let gone = self.store.replace_damaged(&slot, |_, _| (Change::Remove, ())).await;
                return gone.map(|_| true);
            }
            Err(error) => return Err(error),
        };
        let (alive, unclaimed) = match self.held_elsewhere(&slot, version_hash, committed).await? {
            Elsewhere::Same => return Ok(false),
            Elsewhere::Alive { alive, unclaimed } => (alive, unclaimed),
        };
        let keep = |entry: &mut Entry, _: &PartitionState| {
            // What this start has written claims what it has overwritten.
            let claims = entry.copy.record.siblings().iter().any(|sibling| ours(sibling.dot));
            let unclaimed = if claims { &BTreeSet::new() } else { &unclaimed };
            let left = entry.copy.record.only(|dot| ours(dot) || alive.contains(&dot), unclaimed);
            if left == entry.copy.record {
                return (Change::Keep, false);
            }
            entry.copy.record = left;
            (if entry.copy.record.is_empty() { Change::Remove } else { Change::Write }, true)
        };
        let (gone, _) = self.store.update_with_state(&slot, storage::Durability::Sync, keep).await?;
        Ok(gone)
    }

    /// Sends a record that is in hand; whether it was kept. A fence that refused it has been raised here too.
    ///
    /// # Errors
    /// When the call fails, or the own disk.
    pub(super) async fn send(
        &self,
        node: NodeId,
        store: &Store,
        request: Request,
    ) -> Result<bool, CallError> {
        match self.call(node, store, request).await? {
            StoreReply::Kept => Ok(true),
            StoreReply::Fenced(theirs) => {
                self.metrics.fenced.one();
                let partition = self.descriptor.partitions.partition_of(store.namespace, &store.key);
                let raised = self.raise_fence(partition, theirs).await;
                raised.map(|()| false).map_err(|error| CallError::Refused(storage_refusal(&error)))
            }
        }
    }

    /// Sends what this node holds in a slot; what was sent, none when it holds nothing (any more). `covers`: a dot that the
    /// copy must have seen, else it counts as nothing.
    ///
    /// # Errors
    /// When the call fails, or the own disk.
    pub(super) async fn send_own(
        &self,
        node: NodeId,
        slot: &Slot,
        guest_of: &[NodeId],
        durability: Durability,
        covers: Option<Dot>,
        request: Request,
    ) -> Result<Option<(Record, u64)>, CallError> {
        let disk = |error: StorageError| CallError::Refused(storage_refusal(&error));
        for _ in 0..SENT_MAX {
            let (found, state) = self.store.read_with_state(slot).await.map_err(disk)?;
            let Some((entry, version_hash)) = found else { return Ok(None) };
            let record = entry.copy.record;
            if covers.is_some_and(|dot| !record.context().covers(dot)) {
                return Ok(None);
            }
            fact!(Shown { node: self.id, slot, record: &record });
            let store = Store {
                namespace: slot.namespace,
                key: slot.key.clone(),
                record: record.clone(),
                guest_of: guest_of.to_vec(),
                durability,
                fences: fences_of(&state),
            };
            if self.send(node, &store, request).await? {
                return Ok(Some((record, version_hash)));
            }
        }
        let message = format!("{node} raised its fence {SENT_MAX} times meanwhile; try again");
        Err(CallError::Refused(Refusal::new(RefusalCode::Unavailable, message)))
    }

    /// What another node is answered that has just started.
    pub(super) async fn answer_fences(&self, asked: AskFences) -> Result<AskFencesReply, Refusal> {
        let mut fences = Vec::new();
        for partition in self.descriptor.partitions.partitions() {
            let (state, _) = self.store.partition_state(partition);
            let heard = lock(&self.fence_watch.heard).get(&(partition, asked.node)).copied().unwrap_or(0);
            if state.fence > 0 || state.committed > 0 || heard > 0 {
                fences.push((partition, fences_of(&state), heard));
            }
        }
        // None of them may be taken back by a crash.
        let (_, position) = self.store.partition_state(PartitionId(0));
        self.store.wait_synced(position).await.map_err(|error| storage_refusal(&error))?;
        Ok(AskFencesReply { fences })
    }

    /// Asks members that were not asked since the start how far they are. What cannot be asked is asked again later.
    pub(super) async fn compare_fences(&self) {
        let _alone = self.fence_watch.asking.lock().await;
        let others = self.others();
        let asked = lock(&self.fence_watch.asked).clone();
        let down = self.down();
        let left = others.into_iter().filter(|node| !asked.contains(node) && !down.contains(node));
        let mut asking: FuturesUnordered<_> = left.map(|other| self.compare_with(other)).collect();
        while asking.next().await.is_some() {}
    }

    async fn compare_with(&self, other: NodeId) {
        let reply: Result<AskFencesReply, CallError> =
            self.call(other, &AskFences { node: self.id }, self.errand()).await;
        let Ok(AskFencesReply { fences }) = reply else { return };
        // From now on nothing is shown of what is outdated, however long the giving up takes.
        for (partition, theirs, heard) in &fences {
            let voter = theirs.committed.max(*heard);
            let needed = Needed { voter, other: voter.max(theirs.raised) };
            if partition.0 < self.descriptor.partitions.get()
                && self.store.partition_state(*partition).0.fence < needed.of(self.has_vote())
            {
                self.hide(*partition, needed);
            }
        }
        for (partition, theirs, heard) in fences {
            if partition.0 >= self.descriptor.partitions.get() {
                continue;
            }
            // A vote of ours that our disk does not know of: it may be committed at any moment.
            let known = theirs.committed.max(heard);
            if let Err(error) = self.catch_up_to(partition, theirs, known).await {
                tracing::debug!(%partition, %other, %error, "outdated copies are not given up yet");
                return;
            }
        }
        lock(&self.fence_watch.asked).insert(other);
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::super::testing::{open, written};
    use super::*;
    use crate::types::{Key, Namespace, Wall};

    #[tokio::test]
    async fn nothing_comes_into_a_partition_while_its_copies_are_given_up() {
        let node = open(|_| {}).await;
        let inner = &node.inner;
        let key = Key::new(&b"dove"[..]).unwrap();
        let slot = |table| inner.slot(table, Namespace::default(), &key);
        let (data, guest) = (slot(Table::Data), slot(Table::Guest));
        let take = async |slot: &Slot, by, raised| {
            let fences = Fences { raised, committed: 0 };
            inner.store_own(slot, &[NodeId(2)], &written(by, Wall(1)), Durability::Sync, fences, None).await
        };
        // It was none of the key's primaries once, and has become one.
        take(&guest, 1, 0).await.unwrap();
        inner.hide(data.partition, Needed { voter: 5, other: 5 });
        for raised in [0, 5, 7] {
            assert_eq!(take(&data, 2, raised).await, Err(NotKept::Outdated(data.partition)), "{raised}");
        }
        assert!(inner.hand_over(NodeId(2), guest.clone()).await.is_err());
        let higher = Fences { raised: 9, committed: 0 };
        lock(&inner.fence_watch.asked).extend([NodeId(2), NodeId(3)]);
        assert!(inner.raise_fence(data.partition, higher).await.is_err(), "it would end what is not done");
        assert!(inner.store.has(&guest).0 && !inner.store.has(&data).0);

        let raise = |state: &mut PartitionState| {
            state.fence = 5;
            (Change::Write, ())
        };
        inner.store.update_partition(data.partition, raise).await.unwrap();
        assert_eq!(take(&data, 2, 0).await, Err(NotKept::Fenced(Fences { raised: 5, committed: 0 })));
        inner.hand_over(NodeId(2), guest.clone()).await.unwrap();
        assert!(
            !inner.store.has(&guest).0 && inner.store.has(&data).0,
            "it was read under the fence that stands"
        );
    }
}
