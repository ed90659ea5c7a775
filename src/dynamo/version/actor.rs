//! Who may count: the live actor of a local copy, and the node's mint of new ones.
//!
//! The rule of the module (`version`, invariant 3) is carried by three small things:
//!
//! - [`LocalHeader`] stands beside the record in this node's store and names the actor under which the node
//!   last made a dot on this copy. It is never sent, never hashed, never taken from a peer, and goes when the
//!   copy goes: a copy received again starts without one.
//! - [`ActorMint`] knows the incarnation of this start. An actor of another incarnation is dead.
//! - The mint's *floor*: when a local append fails after its dot has left the node, the dot is in the world
//!   and not on this disk, so the copy no longer contains every dot of its actor. All actors of this start are
//!   ended at once by raising the floor: simple, bounded, and as rare as a failing disk.

use serde::{Deserialize, Serialize};

use super::record::{Caps, Merged, Overwrite, PutDone, PutError, Record, Write};
use crate::types::{ActorId, Incarnation, Wall};

/// What this node alone knows about its copy of a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalHeader {
    actor: Option<ActorId>,
}

/// Makes actors for one start of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorMint {
    incarnation: Incarnation,
    epoch_next: u64,
    epoch_floor: u64,
}

impl ActorMint {
    /// A mint for this start. The incarnation must be fresh random bits, durable before any dot leaves.
    pub fn new(incarnation: Incarnation) -> ActorMint {
        ActorMint { incarnation, epoch_next: 1, epoch_floor: 1 }
    }

    /// The incarnation of this start.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether the actor may still count.
    pub fn is_live(&self, actor: ActorId) -> bool {
        actor.incarnation == self.incarnation && actor.epoch >= self.epoch_floor
    }

    /// Ends every actor minted so far: a local append failed after its dot had left. Never undone.
    pub fn end_all(&mut self) {
        self.epoch_floor = self.epoch_next;
    }

    /// Goes on under another incarnation: somebody knew a dot of ours that we do not, so this node's state has
    /// been lost or copied, and with a copied process even the epochs may be in use elsewhere. The incarnation
    /// must be fresh random bits, durable before any dot leaves.
    pub fn renew(&mut self, incarnation: Incarnation) {
        *self = ActorMint::new(incarnation);
    }

    fn mint(&mut self) -> ActorId {
        let actor = ActorId { incarnation: self.incarnation, epoch: self.epoch_next };
        self.epoch_next += 1;
        actor
    }
}

/// One local copy of one record: what a node's store keeps for a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalCopy {
    /// Never leaves the node.
    pub header: LocalHeader,
    /// What peers and readers are given.
    pub record: Record,
}

/// Why a put made no dot. The copy is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LocalPutError {
    /// A cap would be passed.
    #[error(transparent)]
    Cap(#[from] PutError),
    /// The context names a dot of this copy's live actor that the copy does not have: this node has forgotten
    /// a write of its own. The node mints a new incarnation, reports it, and the put may be tried again.
    #[error("a context names a later write of this node than its own copy has: the node has lost state")]
    ActorAhead,
}

impl LocalCopy {
    /// A copy of a key that this node knows nothing of, or a record just received.
    pub fn of(record: Record) -> LocalCopy {
        LocalCopy { header: LocalHeader::default(), record }
    }

    /// The actor under which the next dot on this copy would be made, if one is live.
    pub fn live_actor(&self, mint: &ActorMint) -> Option<ActorId> {
        self.header.actor.filter(|actor| mint.is_live(*actor))
    }

    /// Makes one dot on this copy, under its live actor or a newly minted one.
    ///
    /// # Errors
    /// When a cap would be passed, or the node finds that it has forgotten a dot of its own; no dot is made.
    pub fn put(
        &mut self,
        mint: &mut ActorMint,
        over: Overwrite<'_>,
        write: Write,
        now: Wall,
        caps: &Caps,
    ) -> Result<PutDone, LocalPutError> {
        let live = self.live_actor(mint);
        if let (Some(actor), Overwrite::Seen(context)) = (live, over)
            && context.get(actor) > self.record.context().get(actor)
        {
            return Err(LocalPutError::ActorAhead);
        }
        let actor = live.unwrap_or_else(|| mint.mint());
        let done = self.record.put(over, actor, write, now, caps)?;
        self.header.actor = Some(actor);
        Ok(done)
    }

    /// Takes over all that a peer's record knows. When it names a dot of the live actor that this copy does
    /// not have, the copy's actor ends and `actor_ahead` is set: the node has lost state, reports it and renews
    /// its mint.
    pub fn merge(&mut self, mint: &ActorMint, other: &Record) -> LocalMerged {
        let actor_ahead = self
            .live_actor(mint)
            .is_some_and(|actor| other.context().get(actor) > self.record.context().get(actor));
        if actor_ahead {
            self.header.actor = None;
        }
        LocalMerged { merged: self.record.merge(other), actor_ahead }
    }
}

/// What a merge into a local copy did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMerged {
    /// What happened to the record.
    pub merged: Merged,
    /// Whether the other record knew a dot of this copy's live actor that the copy does not have.
    pub actor_ahead: bool,
}
