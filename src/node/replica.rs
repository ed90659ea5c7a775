//! This node's own copies: what it holds as a primary, and what it keeps for primaries that were not reached;
//! and the port on which its peers ask for them.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::fences::{NotKept, fences_of, outdated};
use super::metrics::{Door, Look};
use super::{Inner, Node, lock};
use crate::dynamo::get::{OwnCopy, ReplicaFailure};
use crate::dynamo::reaping::{Admission, Fences};
use crate::dynamo::version::{LocalPutError, Overwrite, PutDone, Record, VersionVector, Write};
use crate::io::BoxFuture;
use crate::net::envelope::Frame;
use crate::net::message::{
    self as net, AskFences, Commit, Fetch, FetchMany, FetchReply, Gossip, Hello, Join, LeafKeys, Message,
    MultiPut, OfferLayouts, OfferLayoutsReply, Put, Refusal, RefusalCode, ScanKeys, Store, StoreReply,
    TreeHashes, Vote, Welcome, kind_name,
};
use crate::net::serve::{Service, answer, refuse, unknown_operation};
use crate::storage::{
    Change, Direction, Durability, Entry, LogPosition, PartitionState, Slot, StorageError, Table,
};
use crate::types::{Key, LayoutRef, Mono, Namespace, NodeId, PartitionId};

/// What a put overwrites, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    Nothing,
    Seen(VersionVector),
    Current,
}

/// This node's answer to a read of its own.
pub(super) type Fetched = Result<(OwnCopy, Fences), ReplicaFailure>;

/// The dot is made: the record as it stands, not durable yet.
pub(crate) struct Applied {
    pub(crate) record: Record,
    pub(crate) done: PutDone,
    pub(crate) position: LogPosition,
    /// This node's fences at that moment, durable.
    pub(crate) fences: Fences,
}

impl Inner {
    pub(crate) fn slot(&self, table: Table, namespace: Namespace, key: &Key) -> Slot {
        let partition = self.descriptor.partitions.partition_of(namespace, key);
        Slot { table, partition, namespace, key: key.clone() }
    }

    /// Which table this node keeps a key's copy in.
    fn table(&self, namespace: Namespace, key: &Key) -> Table {
        if self.preference(namespace, key).0.is_primary(self.id) { Table::Data } else { Table::Guest }
    }

    /// This node's copy, durable; the empty record when it has none. With its fences.
    pub(crate) async fn fetch_own(
        &self,
        namespace: Namespace,
        key: &Key,
    ) -> Result<(Record, Fences), StorageError> {
        let slot = self.slot(self.table(namespace, key), namespace, key);
        self.not_stale(slot.partition)?;
        let (found, state) = self.store.read_with_state(&slot).await?;
        let record = found.map(|(entry, _)| entry.copy.record).unwrap_or_default();
        fact!(Shown { node: self.id, slot: &slot, record: &record });
        Ok((record, fences_of(&state)))
    }

    /// Nothing is shown of a partition whose copies are being given up.
    fn not_stale(&self, partition: PartitionId) -> Result<(), StorageError> {
        if self.is_stale(partition) {
            return Err(outdated(partition));
        }
        Ok(())
    }

    /// The same as the answer of a read at this node.
    pub(super) async fn fetch_at_hand(&self, namespace: Namespace, key: &Key) -> Fetched {
        let slot = self.slot(self.table(namespace, key), namespace, key);
        let failed = |error| failure_of(storage_refusal(&error).code);
        self.not_stale(slot.partition).map_err(failed)?;
        let (found, state) = self.store.read_with_state(&slot).await.map_err(failed)?;
        let (record, version_hash) = match found {
            Some((entry, version_hash)) => (entry.copy.record, Some(version_hash)),
            None => (Record::new(), None),
        };
        fact!(Shown { node: self.id, slot: &slot, record: &record });
        let copy = OwnCopy { node: self.id, record, version_hash, refilling: self.is_refilling(&slot) };
        Ok((copy, fences_of(&state)))
    }

    /// What a peer that holds a copy of version hash `unless` is answered.
    async fn answer_fetch(&self, fetch: &Fetch) -> Result<FetchReply, StorageError> {
        if let Some(version_hash) = fetch.unless {
            let slot = self.slot(self.table(fetch.namespace, &fetch.key), fetch.namespace, &fetch.key);
            self.not_stale(slot.partition)?;
            // Read before the look: what is held now is held under this fence or a higher one.
            let fences = self.fences(slot.partition).await?;
            if self.store.holds(&slot, version_hash).await? {
                return Ok(FetchReply { record: None, refilling: self.is_refilling(&slot), fences });
            }
        }
        let (record, fences) = self.fetch_own(fetch.namespace, &fetch.key).await?;
        let slot = self.slot(self.table(fetch.namespace, &fetch.key), fetch.namespace, &fetch.key);
        Ok(FetchReply { record: Some(record), refilling: self.is_refilling(&slot), fences })
    }

    /// Whether this node may lack something of a key of which it is a primary: then it counts in no strict read.
    fn is_refilling(&self, slot: &Slot) -> bool {
        slot.table == Table::Data && !self.store.partition_state(slot.partition).0.refilled
    }

    /// Makes one dot on this node's copy. When it returns, the append is under way.
    ///
    /// # Errors
    /// When no dot was made.
    pub(crate) async fn put_own(
        &self,
        slot: &Slot,
        targets: &[NodeId],
        over: Over,
        write: Write,
        durability: net::Durability,
    ) -> Result<Applied, Refusal> {
        loop {
            let now = self.wall();
            let updated = self.store.update_with_state(slot, stored(durability), |entry, state| {
                if self.has_moved(slot) {
                    return (Change::Keep, Err(NotMade::Moved));
                }
                let over = match &over {
                    Over::Nothing => Overwrite::Nothing,
                    Over::Seen(context) => Overwrite::Seen(context),
                    Over::Current => Overwrite::Current,
                };
                let done = entry.copy.put(&mut self.mint(), over, write.clone(), now, &self.config.caps);
                match done {
                    Ok(done) => {
                        fact!(Made { node: self.id, slot, dot: done.dot, record: &entry.copy.record });
                        entry.add_targets(targets);
                        (Change::Write, Ok((entry.copy.record.clone(), done, fences_of(state))))
                    }
                    Err(error) => (Change::Keep, Err(NotMade::Local(error))),
                }
            });
            let (put, position) = match updated.await {
                Ok(updated) => updated,
                // The dot may have been made, but it left neither the closure nor the node.
                Err(error) => {
                    self.mint().end_all();
                    return Err(storage_refusal(&error));
                }
            };
            match put {
                Ok((record, done, fences)) => {
                    point!("dot-made");
                    let position = self.reveals(slot, durability, position);
                    // A fence is durable before anything is sent with it; it nearly always is already.
                    if self.fences(slot.partition).await.is_err() {
                        self.mint().end_all();
                        return Ok(Applied { record, done, position, fences: Fences::default() });
                    }
                    return Ok(Applied { record, done, position, fences });
                }
                Err(NotMade::Moved) => return Err(NotKept::Moved.into_refusal()),
                Err(NotMade::Local(LocalPutError::ActorAhead)) => {
                    self.renew_incarnation().await.map_err(|error| storage_refusal(&error))?;
                }
                Err(NotMade::Local(LocalPutError::Cap(error))) => {
                    return Err(Refusal::new(RefusalCode::TooManySiblings, error.to_string()));
                }
            }
        }
    }

    /// Whether a slot of data is not this node's any more. Asked where the copy is changed, so that nothing comes into a
    /// partition after the layouts have changed that take it from here: what it holds then is what it gives away.
    fn has_moved(&self, slot: &Slot) -> bool {
        slot.table == Table::Data && !self.preference_of(slot.partition).is_primary(self.id)
    }

    /// What whoever answers for a write of this durability must wait for: its own position; or, when it need not
    /// be on the disk yet, that of an earlier write which the answer would reveal.
    fn reveals(&self, slot: &Slot, durability: net::Durability, position: LogPosition) -> LogPosition {
        match durability {
            net::Durability::Sync => position,
            net::Durability::Interval(_) => {
                let at = Bound::Included((slot.namespace, &slot.key));
                self.store.scan(slot.table, slot.partition, at, Direction::Ascending, 1).position
            }
        }
    }

    /// Merges a record, read by whoever holds it under `fences`, into this node's copy; as durable on return as is asked for.
    ///
    /// `under`: only while the node goes by this layout. Of what came under an earlier one, and is merged after this node was
    /// compared under the next, the new primaries never hear; a coordinator that still goes by the earlier one would count it.
    pub(crate) async fn store_own(
        &self,
        slot: &Slot,
        targets: &[NodeId],
        record: &Record,
        durability: net::Durability,
        fences: Fences,
        under: Option<LayoutRef>,
    ) -> Result<(), NotKept> {
        // An empty or outdated partition takes over the fence first.
        self.catch_up(slot.partition, fences).await?;
        let merge = |entry: &mut Entry, state: &PartitionState| {
            if self.has_moved(slot) || under.is_some_and(|layout| layout != self.layout_ref()) {
                return (Change::Keep, Err(NotKept::Moved));
            }
            if self.is_stale_at(slot.partition, state.fence) {
                return (Change::Keep, Err(NotKept::Outdated(slot.partition)));
            }
            let own = fences_of(state);
            if own.admit(fences) != Admission::Take && !canary!(FenceIgnored) {
                return (Change::Keep, Err(NotKept::Fenced(own)));
            }
            let known = entry.targets.len();
            entry.add_targets(targets);
            let done = entry.copy.merge(&self.mint(), record);
            if !done.merged.collisions.is_empty() {
                // A broken invariant, ours or a peer's: both contents are kept and people must know.
                tracing::error!(key = %slot.key, dots = ?done.merged.collisions, "one dot names two contents");
            }
            let changed = done.merged.changed || done.actor_ahead || entry.targets.len() != known;
            (if changed { Change::Write } else { Change::Keep }, Ok(done.actor_ahead))
        };
        let (ahead, position) = match self.store.update_with_state(slot, stored(durability), merge).await {
            // A copy that is damaged is taken as absent here, and written over: its local header is gone with it,
            // so its actor has ended.
            Err(StorageError::Corrupt(_)) => {
                point!("damaged-copy-replaced");
                let replaced = self.store.replace_damaged(slot, merge).await?;
                self.note_sound(slot);
                replaced
            }
            updated => updated?,
        };
        let ahead = match ahead {
            Ok(ahead) => ahead,
            Err(why) => {
                if matches!(why, NotKept::Fenced(_)) {
                    point!("record-fenced");
                    self.metrics.fenced_here.one();
                    self.store.wait_synced(position).await?;
                    self.fences(slot.partition).await?;
                }
                return Err(why);
            }
        };
        point!("copy-merged");
        if !targets.is_empty() {
            self.keeps_for(targets);
        }
        if ahead {
            self.renew_incarnation().await?;
        }
        if canary!(AckBeforeSync) {
            return Ok(());
        }
        Ok(self.store.wait_synced(self.reveals(slot, durability, position)).await?)
    }

    /// How a message under another layout is refused: with this node's layouts, so that the sender can catch up and send it again.
    fn goes_by_another(&self, theirs: LayoutRef) -> Refusal {
        self.metrics.wrong_layouts.one();
        let (ours, theirs) = (self.layout_ref().version, theirs.version);
        let message = format!("this node goes by layout {ours}, the caller by {theirs} or a conflicting one");
        let layouts = lock(&self.layouts).history.active().to_vec();
        Refusal { layouts, ..Refusal::new(RefusalCode::WrongLayout, message) }
    }

    /// Notes beside this node's own copy that `target` does not have it.
    pub(crate) async fn note_target(&self, slot: &Slot, target: NodeId) -> Result<(), StorageError> {
        let noted = self.store.update(slot, Durability::Sync, |entry| {
            // What a round has taken away meanwhile nobody lacks.
            if entry.copy.record.is_empty() {
                return (Change::Keep, false);
            }
            let known = entry.targets.len();
            entry.add_targets(&[target]);
            (if entry.targets.len() == known { Change::Keep } else { Change::Write }, true)
        });
        if noted.await?.0 {
            self.keeps_for(&[target]);
        }
        Ok(())
    }
}

/// Why no dot was made.
enum NotMade {
    Local(LocalPutError),
    /// The slot is not this node's any more.
    Moved,
}

/// The durability that storage is asked for.
fn stored(durability: net::Durability) -> Durability {
    match durability {
        net::Durability::Sync => Durability::Sync,
        net::Durability::Interval(ms) => Durability::Interval(Duration::from_millis(ms.into())),
    }
}

/// How a storage error is answered to whoever asked.
pub(crate) fn storage_refusal(error: &StorageError) -> Refusal {
    let code = match error {
        StorageError::Corrupt(_) => RefusalCode::Corrupt,
        StorageError::Unencodable(_) => RefusalCode::TooLarge,
        StorageError::DiskFull => RefusalCode::DiskFull,
        _ => RefusalCode::Unavailable,
    };
    Refusal::new(code, error.to_string())
}

/// What a replica's refusal means to the machine that asked it.
pub(crate) fn failure_of(code: RefusalCode) -> ReplicaFailure {
    match code {
        RefusalCode::Corrupt => ReplicaFailure::Corrupt,
        RefusalCode::WrongLayout => ReplicaFailure::WrongLayout,
        RefusalCode::HintsFull => ReplicaFailure::HintsFull,
        _ => ReplicaFailure::Unavailable,
    }
}

/// The peer port.
pub(super) struct PeerService {
    node: Node,
}

impl PeerService {
    pub(super) fn new(inner: Arc<Inner>) -> PeerService {
        PeerService { node: Node { inner } }
    }

    async fn answer(&self, frame: &Frame, received: Mono) -> Result<Frame, Refusal> {
        let node = &self.node.inner;
        if frame.head.kind == OfferLayouts::KIND {
            let OfferLayouts { active } = read(frame)?;
            let adopted = node.adopt(active).await;
            adopted.map_err(|error| Refusal::new(RefusalCode::WrongLayout, error.to_string()))?;
            return Ok(answer(frame, &OfferLayoutsReply { active: self.node.layouts().active }));
        }
        let theirs = frame.head.layout;
        if theirs != node.layout_ref() {
            return Err(node.goes_by_another(theirs));
        }
        let request = || {
            let remaining = Duration::from_millis(frame.head.remaining_ms.into());
            self.node.request_of(Door::Peer, received, Some(remaining), frame.head.trace_id)
        };
        match frame.head.kind {
            Fetch::KIND => {
                let reply = node.answer_fetch(&read(frame)?).await;
                Ok(answer(frame, &reply.map_err(|error| storage_refusal(&error))?))
            }
            Store::KIND => {
                let store: Store = read(frame)?;
                let table = node.table(store.namespace, &store.key);
                if table == Table::Guest && store.guest_of.is_empty() {
                    let message = format!("{} is not a primary of this key", node.id);
                    return Err(Refusal::new(RefusalCode::WrongLayout, message));
                }
                let targets: &[NodeId] = if table == Table::Guest { &store.guest_of } else { &[] };
                let slot = node.slot(table, store.namespace, &store.key);
                node.takes_guest(&slot).await?;
                let Store { record, durability, fences, .. } = &store;
                let kept = node.store_own(&slot, targets, record, *durability, *fences, Some(theirs)).await;
                Ok(answer(
                    frame,
                    &match kept {
                        Ok(()) => StoreReply::Kept,
                        Err(NotKept::Fenced(own)) => StoreReply::Fenced(own),
                        Err(NotKept::Moved) => return Err(node.goes_by_another(theirs)),
                        Err(why) => return Err(why.into_refusal()),
                    },
                ))
            }
            Put::KIND => {
                let put: Put = read(frame)?;
                let reply = self.node.put(Put { forwarded: true, ..put }, request()?).await?;
                Ok(answer(frame, &reply))
            }
            Gossip::KIND => Ok(answer(frame, &node.answer_gossip(&read(frame)?))),
            TreeHashes::KIND => Ok(answer(frame, &node.answer_tree(&read(frame)?).await?)),
            LeafKeys::KIND => Ok(answer(frame, &node.answer_leaf_keys(read(frame)?).await?)),
            Vote::KIND => Ok(answer(frame, &node.answer_vote(&read(frame)?).await?)),
            Commit::KIND => Ok(answer(frame, &node.answer_commit(&read(frame)?).await?)),
            AskFences::KIND => Ok(answer(frame, &node.answer_fences(read(frame)?).await?)),
            net::AskTransfers::KIND => Ok(answer(frame, &node.answer_transfers())),
            ScanKeys::KIND => Ok(answer(frame, &node.list_own(&read(frame)?).await?)),
            FetchMany::KIND => Ok(answer(frame, &node.fetch_many_own(&read(frame)?).await)),
            MultiPut::KIND => {
                let mut batch: MultiPut = read(frame)?;
                batch.puts.iter_mut().for_each(|put| put.forwarded = true);
                Ok(answer(frame, &self.node.multi_put(batch, request()?).await?))
            }
            Join::KIND => {
                let Join { node: joining } = read(frame)?;
                Ok(answer(frame, &node.welcome_member(joining)?))
            }
            net::Inspect::KIND => {
                node.metrics.looks(Look::Inspect).one();
                Ok(answer(frame, &node.inspect_own(&read(frame)?).await?))
            }
            kind => Ok(unknown_operation(frame, kind)),
        }
    }
}

/// The message of a frame.
///
/// # Errors
/// When it is malformed.
fn read<M: Message>(frame: &Frame) -> Result<M, Refusal> {
    M::from_frame(frame).map_err(Refusal::from)
}

impl Service for PeerService {
    fn greet(&self, hello: &Hello, version: u8) -> Result<Welcome, Refusal> {
        if hello.node.is_none() || hello.cluster.is_none() {
            let message = "this is the port for other nodes of the cluster: clients use the client port";
            return Err(Refusal::new(RefusalCode::BadRequest, message));
        }
        self.node.inner.greet(hello, version)
    }

    fn handle(self: Arc<Self>, request: Frame, received: Mono) -> BoxFuture<'static, Frame> {
        let span = tracing::debug_span!(
            "peer",
            node = %self.node.inner.id,
            message = kind_name(request.head.kind),
            trace = ?request.head.trace_id,
        );
        let work = async move {
            let answered = self.answer(&request, received).await;
            let mut frame = answered.unwrap_or_else(|refusal| refuse(&request, &refusal));
            frame.head.layout = self.node.inner.layout_ref();
            frame
        };
        Box::pin(work.instrument(span))
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::super::testing::open;
    use super::*;

    #[tokio::test]
    async fn a_copy_is_merged_under_the_layout_that_it_came_under_or_not_at_all() {
        let node = open(|_| {}).await;
        let inner = &node.inner;
        let slot = inner.slot(Table::Data, Namespace::default(), &Key::new(&b"dove"[..]).unwrap());
        let came_under = inner.layout_ref();
        let merge = async |under: LayoutRef| {
            let (record, durability) = (Record::new(), net::Durability::Sync);
            inner.store_own(&slot, &[], &record, durability, Fences::default(), Some(under)).await
        };
        merge(came_under).await.unwrap();
        let mut active = node.layouts().active;
        let mut members = active[0].members().to_vec();
        members.iter_mut().for_each(|member| member.capacity += 1);
        active.insert(0, Arc::new(active[0].next(members).unwrap()));
        node.adopt_layouts(active).await.unwrap();
        assert!(inner.preference_of(slot.partition).is_primary(inner.id), "still one of its primaries");
        assert_eq!(merge(came_under).await, Err(NotKept::Moved));
        merge(inner.layout_ref()).await.unwrap();
    }

    #[tokio::test]
    async fn no_target_is_noted_beside_a_copy_that_was_taken_away_meanwhile() {
        let node = open(|_| {}).await;
        let key = Key::new(&b"dove"[..]).unwrap();
        let slot = node.inner.slot(Table::Data, Namespace::default(), &key);
        node.inner.note_target(&slot, NodeId(2)).await.unwrap();
        assert!(!node.inner.store.has(&slot).0, "an entry without a copy");
        assert!(node.inner.store.targets().is_empty());
    }
}
