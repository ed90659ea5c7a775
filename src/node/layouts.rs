//! The layouts a node goes by, and how they reach it: with the answer to whoever went by another.
//!
//! ```text
//!   a ── Store, layout 1 ──▶ b (layout 2)        a ── Store, layout 2 ──▶ b (layout 1)
//!   a ◀── WrongLayout, [2 1] ── b                a ◀── WrongLayout, [1] ── b
//!   a: catches up, writes node.meta              a: knows more than b
//!   a ── Store, layout 2 ──▶ b                   a ── OfferLayouts [2 1] ──▶ b: catches up, writes node.meta
//!                                                a ── Store, layout 2 ──▶ b
//! ```
//!
//! - Every peer message names the layout that its sender goes by, and one under another layout is refused before it
//!   is looked at: so it may be sent again, also a put.
//! - A node goes by a layout only once `node.meta` has it: it never forgets one that others have seen it go by.
//! - Clients are served whatever layout they name; every answer names the node's, and a client that sees another one
//!   asks for it.
//!
//! A put that is under way while the layout changes is answered once it has W in each layout that is active then, and a read
//! whose layout has changed is made again (`coordinator`). Guest records of a node that becomes a primary are turned into
//! data by `node::handoff`; how data moves and layouts retire is in `node::transfer`.

use std::sync::Arc;

use super::{Inner, Node, Request};
use crate::dynamo::layout::{Adopted, Layout, LayoutError, LayoutHistory};
use crate::dynamo::preference::PreferenceList;
use crate::net::link::CallError;
use crate::net::message::{Message, OfferLayouts, OfferLayoutsReply, RefusalCode};
use crate::storage::StorageError;
use crate::storage::directory::{FORMAT, NodeMeta};
use crate::types::{LayoutRef, NodeId, PartitionId};

/// How often one message is sent again because the layouts did not match. Two may change at once; more may not.
const TRIES: usize = 3;

/// Why a layout was not taken over. The node goes by what it went by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// It does not follow from what the node holds.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It could not be written down.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The layouts a node goes by, with the preference lists made from them so far: one costs a walk along the ring.
pub(super) struct Layouts {
    pub(super) history: LayoutHistory,
    lists: Vec<Option<Arc<PreferenceList>>>,
}

impl Layouts {
    pub(super) fn new(history: LayoutHistory) -> Layouts {
        let partitions = history.current().q().get() as usize;
        Layouts { history, lists: vec![None; partitions] }
    }

    pub(super) fn preference(&mut self, partition: PartitionId) -> Arc<PreferenceList> {
        let Layouts { history, lists } = self;
        lists[partition.0 as usize]
            .get_or_insert_with(|| Arc::new(PreferenceList::new(history, partition)))
            .clone()
    }
}

impl Node {
    /// Takes over a layout history that an operator or another node hands in, newest first, by the rules of
    /// [`LayoutHistory::catch_up`]. Durable when it returns; the layout that the node goes by then.
    ///
    /// # Errors
    /// When it does not fit what the node holds, or cannot be written down. Nothing changed.
    pub async fn adopt_layouts(&self, offered: Vec<Arc<Layout>>) -> Result<LayoutRef, AdoptError> {
        self.inner.adopt(offered).await
    }
}

impl Inner {
    pub(super) async fn adopt(&self, offered: Vec<Arc<Layout>>) -> Result<LayoutRef, AdoptError> {
        let offered = LayoutHistory::try_from(offered)?;
        // One at a time: what is written must be what is gone by.
        let _alone = self.adopting.lock().await;
        let mut history = super::lock(&self.layouts).history.clone();
        let (q, n) = (self.descriptor.partitions, self.descriptor.replicas);
        if (offered.current().q(), offered.current().n()) != (q, n) {
            let (q, n) = (offered.current().q().get(), offered.current().n());
            return Err(LayoutError::OtherShape { q, n }.into());
        }
        let before = history.clone();
        let adopted = history.catch_up(&offered)?;
        let current = history.current().reference();
        if history == before {
            return Ok(current);
        }
        self.begin_transfer(&before, &history).await?;
        if let Adopted::Replaced { lost } | Adopted::CaughtUp { lost } = &adopted
            && !lost.is_empty()
        {
            tracing::error!(node = %self.id, ?lost, ?current, "layouts were in conflict: the lost ones are void");
        }
        self.go_by(history).await?;
        self.metrics.layouts_adopted.one();
        point!("layout-adopted");
        tracing::info!(node = %self.id, version = current.version, "goes by another layout");
        Ok(current)
    }

    /// Goes by these layouts from now on, and after every crash. Called under `adopting`.
    pub(super) async fn go_by(&self, history: LayoutHistory) -> Result<(), StorageError> {
        let meta = NodeMeta {
            format: FORMAT,
            node: self.id,
            descriptor: self.descriptor.clone(),
            layouts: history.active().iter().map(|layout| Layout::clone(layout)).collect(),
        };
        self.store.write_meta(&meta).await?;
        let mut layouts = super::lock(&self.layouts);
        // First, and under the lock: who has looked at the epoch before the layouts sees that it has passed.
        self.epoch.next();
        *layouts = Layouts::new(history);
        Ok(())
    }

    /// Asks another node, over the link that stands to it or a new one. Settles a difference of layouts on the way.
    pub(crate) async fn call<A: Message>(
        &self,
        node: NodeId,
        message: &impl Message,
        request: Request,
    ) -> Result<A, CallError> {
        let addr = self.peer_addr(node).ok_or_else(|| CallError::NotSent("no layout names it".to_owned()))?;
        let mut tries = 0;
        loop {
            let asked = self.now();
            let answer = self.peers.call(node, &addr, message, self.head(request), request.deadline).await;
            self.heard_back(node, asked, &answer);
            match answer {
                // It was refused unread, so it may be sent again.
                Err(CallError::Refused(refusal))
                    if refusal.code == RefusalCode::WrongLayout
                        && !refusal.layouts.is_empty()
                        && tries < TRIES =>
                {
                    tries += 1;
                    if !self.settle(node, &addr, refusal.layouts.clone(), request).await {
                        return Err(CallError::Refused(refusal));
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Brings this node and another to one layout; whether they have one now.
    async fn settle(&self, node: NodeId, addr: &str, theirs: Vec<Arc<Layout>>, request: Request) -> bool {
        self.metrics.wrong_layouts.one();
        let their_current = theirs.first().map(|layout| layout.reference());
        match self.adopt(theirs).await {
            Ok(current) if Some(current) == their_current => return true,
            // This node knows what the other does not.
            Ok(_) => {}
            Err(AdoptError::Layout(
                LayoutError::Older { .. }
                | LayoutError::Conflict { .. }
                | LayoutError::ConflictWithOldest { .. },
            )) => {}
            Err(error) => {
                tracing::error!(%node, %error, "cannot take over its layouts");
                return false;
            }
        }
        let offer = OfferLayouts { active: super::lock(&self.layouts).history.active().to_vec() };
        let head = self.head(request);
        let answer = self.peers.call(node, addr, &offer, head, request.deadline).await;
        let reply: OfferLayoutsReply = match answer {
            Ok(reply) => reply,
            Err(error) => {
                tracing::warn!(%node, %error, "it does not take over this node's layouts");
                return false;
            }
        };
        // It may have joined ours with its own.
        let adopted = self.adopt(reply.active).await;
        adopted.inspect_err(|error| tracing::error!(%node, %error, "layouts cannot be settled")).is_ok()
    }
}
