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

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Mutex;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Mutex as AsyncMutex;

use super::replica::storage_refusal;
use super::{Inner, Request, lock};
use crate::dynamo::reaping::Fences;
use crate::dynamo::version::{Dot, Record};
use crate::net::link::CallError;
use crate::net::message::{AskFences, AskFencesReply, Durability, Refusal, RefusalCode, Store, StoreReply};
use crate::storage::{self, Change, Direction, Entry, PartitionState, Slot, StorageError, Table};
use crate::types::{NodeId, PartitionId};

/// How often a record is sent again because the fence was raised meanwhile.
const SENT_MAX: usize = 4;
/// Keys given up at once, and looked at in one step.
const AT_ONCE: usize = 16;
const PAGE: usize = 1024;

/// What a node knows of the fences of others.
#[derive(Default)]
pub(super) struct FenceWatch {
    /// Members that were asked since the start.
    asked: Mutex<BTreeSet<NodeId>>,
    /// Partitions whose copies are being given up: nobody is shown any.
    stale: Mutex<BTreeSet<PartitionId>>,
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
            NotKept::Fenced(_) => {
                let message = "the copy is older than what was agreed to be forgotten";
                Refusal::new(RefusalCode::Unavailable, message)
            }
        }
    }
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
        lock(&self.fence_watch.stale).contains(&partition)
    }

    /// Takes note of another node's fences: on return the own one is at least as high, durably, and no copy is left that is
    /// older than what was committed.
    pub(super) async fn raise_fence(&self, partition: PartitionId, to: Fences) -> Result<(), StorageError> {
        self.catch_up(partition, to).await?;
        let (raised, position) = self
            .store
            .update_partition(partition, |state| {
                if state.fence >= to.raised {
                    return (Change::Keep, false);
                }
                state.fence = to.raised;
                (Change::Write, true)
            })
            .await?;
        self.store.wait_synced(position).await?;
        if raised {
            point!("fence-raised");
            self.metrics.fences_raised.one();
        }
        Ok(())
    }

    /// Gives up this node's copies of a partition if a round was committed that its disk knows nothing of; a partition without
    /// copies takes over the fence.
    pub(super) async fn catch_up(&self, partition: PartitionId, theirs: Fences) -> Result<(), StorageError> {
        let own = fences_of(&self.store.partition_state(partition).0);
        if own.raised < theirs.raised && self.store.raise_empty(partition, theirs.raised).await? {
            return Ok(());
        }
        if own.raised >= theirs.committed {
            return Ok(());
        }
        let _alone = self.fence_watch.catching_up.lock().await;
        if self.store.partition_state(partition).0.fence >= theirs.committed {
            return Ok(());
        }
        point!("copies-given-up");
        lock(&self.fence_watch.stale).insert(partition);
        let given_up = self.give_up(partition, theirs).await;
        lock(&self.fence_watch.stale).remove(&partition);
        let records = given_up?;
        self.metrics.copies_given_up.add(records);
        tracing::warn!(
            %partition,
            records,
            "the others have agreed to forget things of which this disk knows nothing: it was restored or replaced; its \
             copies are given up and fetched again"
        );
        Ok(())
    }

    async fn give_up(&self, partition: PartitionId, theirs: Fences) -> Result<u64, StorageError> {
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
                    self.give_up_one(slot)
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
                state.fence = state.fence.max(theirs.raised).max(theirs.committed);
                state.committed = state.committed.max(theirs.committed);
                (Change::Write, ())
            })
            .await?;
        self.store.wait_synced(position).await?;
        Ok(records)
    }

    /// Gives up one copy, except for what this start of the node has written.
    async fn give_up_one(&self, slot: Slot) -> Result<bool, StorageError> {
        let keep = |entry: &mut Entry, _: &PartitionState| {
            let left = entry.copy.record.only(|dot: Dot| self.mint().is_ours(dot.actor.incarnation));
            if left == entry.copy.record {
                return (Change::Keep, false);
            }
            entry.copy.record = left;
            (if entry.copy.record.is_empty() { Change::Remove } else { Change::Write }, true)
        };
        // What cannot be read is taken for absent, and goes.
        let (gone, _) = match self.store.update_with_state(&slot, storage::Durability::Sync, keep).await {
            Err(StorageError::Corrupt(_)) => {
                self.store.replace_damaged(&slot, |_, _| (Change::Remove, true)).await?
            }
            gone => gone?,
        };
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
    pub(super) async fn answer_fences(&self) -> Result<AskFencesReply, Refusal> {
        let mut fences = Vec::new();
        for partition in self.descriptor.partitions.partitions() {
            let (state, _) = self.store.partition_state(partition);
            if state.fence > 0 || state.committed > 0 {
                fences.push((partition, fences_of(&state)));
            }
        }
        // None of them may be taken back by a crash.
        let (_, position) = self.store.partition_state(PartitionId(0));
        self.store.wait_synced(position).await.map_err(|error| storage_refusal(&error))?;
        Ok(AskFencesReply { fences })
    }

    /// Asks members that were not asked since the start how far they are. What cannot be asked is asked again later.
    pub(super) async fn compare_fences(&self) {
        let others = self.others();
        let asked = lock(&self.fence_watch.asked).clone();
        let down = self.down();
        for other in others.into_iter().filter(|node| !asked.contains(node) && !down.contains(node)) {
            let reply: Result<AskFencesReply, CallError> = self.call(other, &AskFences, self.errand()).await;
            let Ok(AskFencesReply { fences }) = reply else { continue };
            let mut heeded = Ok(());
            for (partition, theirs) in fences {
                if partition.0 < self.descriptor.partitions.get() && heeded.is_ok() {
                    heeded = self.catch_up(partition, theirs).await;
                }
            }
            if heeded.is_ok() {
                lock(&self.fence_watch.asked).insert(other);
            }
        }
    }
}
