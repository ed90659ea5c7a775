//! All there is of one key: this node asks every member for what it has of it, and says in words what that means.
//!
//! ```text
//!   Explain ──▶ any node ──Inspect──▶ every member, all at once, within two seconds
//!                        ◀── its copies with their siblings, the partition's state, the leaf that the key is in
//!                        ──words──▶ why siblings stand, why a replica is behind
//! ```
//! Nothing is repaired and no value is sent. The answers are not of one moment: while the key is written to, replicas may
//! differ for that alone.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::select;

use super::metrics::Look;
use super::replica::storage_refusal;
use super::{Inner, Node, Request};
use crate::dynamo::layout::MEMBERS_MAX;
use crate::dynamo::ring::key_hash;
use crate::dynamo::version::{Content, Record};
use crate::net::message::{
    CopyView, Explain, ExplainReply, HeldCopy, Inspect, InspectReply, MemberView, PeerState, Refusal,
    SiblingView, TOLD_MAX,
};
use crate::storage::{StorageError, Table};
use crate::types::{Incarnation, NodeId};

use words::{Waits, words};

mod words;

/// Time for the answers of all members.
const PATIENCE: Duration = Duration::from_secs(2);

impl Node {
    /// Asks every member for what it has of a key.
    ///
    /// # Errors
    /// When there is no time for it, or too much else to do.
    pub async fn explain(&self, asked: Explain, request: Request) -> Result<ExplainReply, Refusal> {
        let inner = &self.inner;
        inner.metrics.looks(Look::Explain).one();
        let _in_flight = inner.admit(request)?;
        let Explain { namespace, key } = asked;
        let (list, layout) = inner.preference(namespace, &key);
        let mut nodes: Vec<NodeId> = list.candidates.iter().map(|candidate| candidate.node).collect();
        // Those that an older layout alone names may hold something still.
        let others = inner.others().into_iter().chain([inner.id]);
        let leaving: Vec<NodeId> = others.filter(|node| !nodes.contains(node)).collect();
        nodes.extend(leaving);
        nodes.truncate(MEMBERS_MAX);

        let inspect = &Inspect { namespace, key };
        let deadline = inner.late(request).min(inner.now() + PATIENCE);
        let request = Request { deadline, ..request };
        let mut asking: FuturesUnordered<_> = nodes
            .iter()
            .enumerate()
            .map(|(place, node)| async move { (place, inner.inspect(*node, inspect, request).await) })
            .collect();
        let mut told: Vec<Option<Result<InspectReply, String>>> = vec![None; nodes.len()];
        while let Some((place, reply)) = asking.next().await {
            told[place] = Some(reply);
        }
        let (views, layouts) = (self.views(), self.layouts().active);
        let member = |(node, told): (NodeId, Option<_>)| {
            let view = views.iter().find(|view| view.node == node);
            let zone =
                layouts.iter().find_map(|layout| layout.member(node)).map(|member| member.zone.clone());
            MemberView {
                node,
                is_primary: list.is_primary(node),
                zone: zone.unwrap_or_default(),
                state: view.map_or(PeerState::Up, |view| view.state),
                heard_ms_ago: view.map_or(0, |view| view.heard_ms_ago),
                told: told.unwrap_or_else(|| Err("it was not asked".to_owned())),
            }
        };
        let mut reply = ExplainReply {
            partition: list.partition,
            layout,
            asked: inner.id,
            now: inner.wall(),
            members: nodes.iter().copied().zip(told).map(member).collect(),
            words: Vec::new(),
        };
        let waits = Waits {
            handoff: inner.config.handoff_interval,
            anti_entropy: inner.config.anti_entropy_interval,
        };
        reply.words = words(&reply, waits);
        Ok(reply)
    }
}

impl Inner {
    async fn inspect(&self, node: NodeId, asked: &Inspect, request: Request) -> Result<InspectReply, String> {
        if node == self.id {
            return self.inspect_own(asked).await.map_err(|refusal| refusal.message);
        }
        select! {
            biased;
            told = self.call(node, asked, request) => told.map_err(|error| error.to_string()),
            // A call waits longer than its deadline while others try to open the connection.
            () = self.io.clock.sleep_until(request.deadline.since_origin()) => Err("no answer in time".to_owned()),
        }
    }

    /// All that this node has of a key.
    pub(super) async fn inspect_own(&self, asked: &Inspect) -> Result<InspectReply, Refusal> {
        let mut incarnations = vec![self.mint().incarnation()];
        let data = self.copy_of(Table::Data, asked, &mut incarnations).await?;
        let guest = self.copy_of(Table::Guest, asked, &mut incarnations).await?;
        let (partition, hash) = (
            self.descriptor.partitions.partition_of(asked.namespace, &asked.key),
            key_hash(asked.namespace, &asked.key),
        );
        let ((bits, leaf, leaf_hash), end) = self.store.with_tree(partition, |tree| {
            let leaf = tree.bits().leaf_of(self.descriptor.partitions, hash);
            let leaf_hash = tree.hash(tree.bits().get(), leaf).expect("the key has a leaf");
            (tree.bits().get(), leaf, leaf_hash)
        });
        let (state, of_state) = self.store.partition_state(partition);
        self.store.wait_synced(end.max(of_state)).await.map_err(|error| storage_refusal(&error))?;
        Ok(InspectReply {
            incarnations,
            data,
            guest,
            refilled: state.refilled,
            fence: state.fence,
            committed: state.committed,
            bits,
            leaf,
            leaf_hash,
        })
    }

    async fn copy_of(
        &self,
        table: Table,
        asked: &Inspect,
        incarnations: &mut Vec<Incarnation>,
    ) -> Result<CopyView, Refusal> {
        let slot = self.slot(table, asked.namespace, &asked.key);
        let (entry, version_hash) = match self.store.read_with_hash(&slot).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(CopyView::Absent),
            Err(StorageError::Corrupt(why)) => return Ok(CopyView::Unreadable(why)),
            Err(error) => return Err(storage_refusal(&error)),
        };
        let record = &entry.copy.record;
        fact!(Shown { node: self.id, slot: &slot, record });
        let last = entry.copy.header.last().map(|dot| dot.actor.incarnation);
        incarnations.extend(last.filter(|incarnation| !incarnations.contains(incarnation)));
        Ok(CopyView::Held(HeldCopy { owed_to: entry.targets, ..held(record, version_hash) }))
    }
}

/// A record without its values, as much of it as is told.
fn held(record: &Record, version_hash: u64) -> HeldCopy {
    let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
    let siblings = record.siblings().iter().take(TOLD_MAX).map(|sibling| SiblingView {
        dot: sibling.dot,
        write_id: sibling.write_id,
        value_len: match &sibling.content {
            Content::Value(bytes) => Some(bytes.len() as u64),
            Content::Tombstone => None,
        },
        written_at: sibling.written_at,
        expires_at: sibling.expires_at,
    });
    HeldCopy {
        version_hash,
        context: record.context().entries().take(TOLD_MAX).collect(),
        context_len: count(record.context().len()),
        siblings: siblings.collect(),
        siblings_len: count(record.siblings().len()),
        owed_to: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
