//! What a change of the layout sets in motion: new primaries refill, older layouts retire, former primaries let go
//! (DESIGN §4; Garage's layout history).
//!
//! ```text
//!   adopt [2 1]        gained partitions lose their *refilled* mark, durably, before node.meta has layout 2
//!   anti-entropy       compares them with every primary of both layouts: refilled
//!   nobody has anything left to move?   retire 1: node.meta has [2] alone
//!   holds data of a partition that no active layout gives it?   push it to each primary, then remove it
//! ```
//! The bad orders, each of which breaks a promise in `tests/layout_model` without the rule behind it
//! - **A write that only old primaries hold, after the new ones were compared.** A replica takes no message under another layout
//!   than its own, looked at once more where the copy is merged, so by the time it is compared under the new layout it takes nothing
//!   under the old one alone any more; and a put is answered only when it has W in each layout that is active then
//!   (`PutMachine::on_layout`).
//! - **A crash between the mark and the layout**: the mark first. A partition that is marked too early is refilled once more.
//! - **A comparison under the old layout ends after the mark was taken away, and sets it again**: it must end in the epoch in which
//!   it began; each change of the layouts begins another.
//! - **A former primary alone has something.** It lets go only after each primary has merged what it has. A removed node that comes
//!   back years later does the same; but what it missed of reaping it must give up first (`fences`).
//! - **A node is removed because it is gone for good.** It can say nothing any more. A leaving node that is down is waited for
//!   by nobody, if of each layout as many other primaries were compared as meet every write of the default W. What was
//!   written with a smaller W and is on that disk alone is gone with it, or comes back with it.
//! - **A layout retires while a node has not taken over its successor**: every member of the successor says under that
//!   layout that it has nothing left to move; who holds another one cannot say so.
//! - **A node is behind in retiring and compares with one that is no primary any more**, for ever: what has retired anywhere
//!   has retired.

use std::convert::Infallible;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::stream::{self, BufferUnordered};
use rand::RngExt;

use super::anti_entropy::Flow;
use super::layouts::AdoptError;
use super::{Inner, Node, lock};
use crate::dynamo::layout::{LayoutHistory, Member};
use crate::net::message::{
    AskTransfers, AskTransfersReply, ChangeMembers, ChangeMembersReply, Compared, Refusal, RefusalCode,
};
use crate::storage::{Change, Direction, Durability, LogPosition, Slot, StorageError, Table};
use crate::types::PartitionId;

/// Partitions on their way at once.
const AT_ONCE: usize = 8;
/// Keys removed between two looks at the layouts.
const PAGE: usize = 256;

/// Which state of its layouts the node is in: another number after each change.
#[derive(Debug, Default)]
pub(super) struct Epoch(AtomicU64);

impl Epoch {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn next(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Node {
    /// Makes the layout that follows when members come and go, and goes by it if it is meant.
    ///
    /// # Errors
    /// When such a layout cannot be; nothing changed.
    pub async fn change_members(&self, asked: ChangeMembers) -> Result<ChangeMembersReply, Refusal> {
        let bad = |message: String| Refusal::new(RefusalCode::BadRequest, message);
        if asked.add.is_empty() && asked.remove.is_empty() {
            return Err(bad("nobody comes and nobody goes: nothing changed".to_owned()));
        }
        let mut active = self.layouts().active;
        let current = active[0].clone();
        let mut members: Vec<Member> = current.members().to_vec();
        for node in &asked.remove {
            let before = members.len();
            members.retain(|member| member.id != *node);
            if members.len() == before {
                return Err(bad(format!("{node} is not a member, nothing changed: see `ringdove layout`")));
            }
        }
        members.extend(asked.add);
        let next = current.next(members).map_err(|error| bad(error.to_string()))?;
        let partitions = self.descriptor().partitions.partitions();
        let new_at = |partition: PartitionId| {
            let old = current.primaries(partition);
            next.primaries(partition).iter().filter(|node| !old.contains(node)).count()
        };
        let moves = u32::try_from(partitions.map(new_at).sum::<usize>()).unwrap_or(u32::MAX);
        let next = Arc::new(next);
        if asked.apply {
            active.insert(0, next.clone());
            self.adopt_layouts(active).await.map_err(|error| match error {
                AdoptError::Layout(error) => bad(error.to_string()),
                AdoptError::Storage(error) => super::replica::storage_refusal(&error),
            })?;
            tracing::info!(node = %self.id(), version = next.reference().version, moves, "the members change");
        }
        Ok(ChangeMembersReply { layout: next, moves, applied: asked.apply })
    }
}

impl Inner {
    /// Takes the *refilled* mark from what this node is to become a primary of; durable on return.
    pub(super) async fn begin_transfer(
        &self,
        before: &LayoutHistory,
        after: &LayoutHistory,
    ) -> Result<(), StorageError> {
        let _alone = self.letting_go.lock().await;
        self.epoch.next();
        let gained = after.gained_since(before, self.id);
        if gained.is_empty() {
            return Ok(());
        }
        // What the others have agreed to meanwhile, they must say first.
        self.forget_fences_asked();
        if before.active().iter().any(|layout| layout.member(self.id).is_none()) {
            // And they may have forgotten what this node wrote until now: it had no vote.
            self.mint().disown();
        }
        let mut last = None;
        for partition in gained {
            fact!(Gained { node: self.id, partition });
            let unmark = |state: &mut crate::storage::PartitionState| {
                let was = std::mem::replace(&mut state.refilled, false);
                (if was { Change::Write } else { Change::Keep }, ())
            };
            let ((), position) = self.store.update_partition(partition, unmark).await?;
            last = last.max(Some(position));
        }
        match last {
            Some(position) => self.store.wait_synced(position).await,
            None => Ok(()),
        }
    }

    /// How much this node has still to move: partitions to refill, or records to hand over when it is no member any more.
    fn transfers_left(&self) -> u32 {
        let current = lock(&self.layouts).history.current().clone();
        let left = if current.member(self.id).is_some() {
            let ours = current.q().partitions().filter(|partition| current.is_primary(*partition, self.id));
            ours.filter(|partition| !self.store.partition_state(*partition).0.refilled).count()
        } else {
            self.store.len(Table::Guest)
        };
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// What another node is answered that wants to know whether a layout may retire.
    pub(super) fn answer_transfers(&self) -> AskTransfersReply {
        let oldest = lock(&self.layouts).history.oldest().reference().version;
        AskTransfersReply { left: self.transfers_left(), oldest }
    }

    /// Retires layouts whose transfers are complete, and lets go of what other nodes hold now.
    pub(super) async fn transfer(&self) -> Infallible {
        loop {
            let pause = self.config.detector.interval.mul_f64(lock(&self.rng).random_range(0.75..1.25));
            self.io.clock.sleep_until((self.now() + pause).since_origin()).await;
            if lock(&self.layouts).history.active().len() > 1
                && let Err(why) = self.retire_layouts().await
            {
                tracing::debug!(%why, "older layouts stay");
            }
            let held = self.descriptor.partitions.partitions();
            let held = held.filter(|partition| {
                let is_mine = || self.preference_of(*partition).is_primary(self.id);
                self.store.keys_in(Table::Data, *partition) > 0 && !is_mine()
            });
            let mut going: BufferUnordered<_> = stream::iter(held)
                .map(|partition| Box::pin(self.let_go(partition)))
                .buffer_unordered(AT_ONCE);
            while let Some(gone) = going.next().await {
                if let Err(why) = gone {
                    self.metrics.exchanges_failed.one();
                    tracing::debug!(%why, "a partition that others hold now stays here");
                }
            }
        }
    }

    /// Retires all layouts but the current one if everybody has moved what there is to move, and those that have retired elsewhere.
    async fn retire_layouts(&self) -> Result<(), String> {
        let history = lock(&self.layouts).history.clone();
        let current = history.current().clone();
        let mut waits = match self.transfers_left() {
            0 => None,
            left => Some(format!("{left} are left here")),
        };
        let mut retired_below = history.oldest().reference().version;
        let down = self.down();
        for other in self.others() {
            if down.contains(&other) {
                // One that leaves, perhaps for good, is not waited for.
                if current.member(other).is_some() {
                    waits = Some(format!("{other} is down"));
                }
                continue;
            }
            match self.call::<AskTransfersReply>(other, &AskTransfers, self.errand()).await {
                Ok(AskTransfersReply { left, oldest }) => {
                    retired_below = retired_below.max(oldest);
                    if left > 0 {
                        waits = Some(format!("{left} are left at {other}"));
                    }
                }
                Err(error) => waits = Some(format!("{other}: {error}")),
            }
        }
        let _alone = self.adopting.lock().await;
        let mut history = lock(&self.layouts).history.clone();
        if history.current().reference() != current.reference() {
            return Err("another layout has come meanwhile".to_owned());
        }
        if waits.is_none() {
            retired_below = current.reference().version;
        }
        let retired = history.retire_below(retired_below);
        if !retired.is_empty() {
            self.go_by(history).await.map_err(|error| error.to_string())?;
            for layout in &retired {
                tracing::info!(node = %self.id, version = layout.version, "all has moved: the layout is retired");
            }
            self.metrics.layouts_retired.add(retired.len() as u64);
            point!("layout-retired");
        }
        waits.map_or(Ok(()), Err)
    }

    /// Gives each primary what this node holds of a partition of which it is none, then removes it.
    async fn let_go(&self, partition: PartitionId) -> Result<(), String> {
        let (epoch, doubts) = (self.epoch.get(), self.store.doubts());
        let list = self.preference_of(partition);
        if list.is_primary(self.id) {
            return Err(format!("{partition} is this node's again"));
        }
        for other in list.primaries() {
            if self.down().contains(&other) {
                return Err(format!("{other} is down"));
            }
            self.exchange(partition, other, Flow::Push, &mut Compared::not_yet(other)).await?;
            // What it was found to hold may be on its disk only after an interval; a tree is shown once all in it is.
            self.root_of(partition, other).await?;
        }
        if self.epoch.get() != epoch || self.store.doubts() != doubts {
            return Err("something has changed meanwhile".to_owned());
        }
        point!("partition-let-go");
        fact!(LetGo { node: self.id, partition, primaries: &list.primaries().collect::<Vec<_>>() });
        let removed = self.remove_all(Table::Data, partition, epoch).await?;
        self.metrics.partitions_let_go.one();
        tracing::info!(%partition, removed, "others hold this partition now, it was let go");
        Ok(())
    }

    /// Removes all copies of a partition, durably, as long as the layouts are those of this epoch; how many there were.
    pub(super) async fn remove_all(
        &self,
        table: Table,
        partition: PartitionId,
        epoch: u64,
    ) -> Result<u64, String> {
        let mut removed = 0_u64;
        loop {
            // Once a layout comes that makes this node a primary again, it keeps all that it has and all that comes.
            let _alone = self.letting_go.lock().await;
            if self.epoch.get() != epoch {
                return Err("another layout has come meanwhile".to_owned());
            }
            let page = self.store.scan(table, partition, Bound::Unbounded, Direction::Ascending, PAGE);
            if page.keys.is_empty() {
                return Ok(removed);
            }
            let mut last = LogPosition::default();
            for found in page.keys {
                let slot = Slot { table, partition, namespace: found.namespace, key: found.key };
                let gone = match self.store.update(&slot, Durability::Sync, |_| (Change::Remove, ())).await {
                    Err(StorageError::Corrupt(_)) => {
                        self.store.replace_damaged(&slot, |_, _| (Change::Remove, ())).await
                    }
                    gone => gone,
                };
                last = last.max(gone.map_err(|error| error.to_string())?.1);
                removed += 1;
            }
            self.store.wait_synced(last).await.map_err(|error| error.to_string())?;
        }
    }
}
