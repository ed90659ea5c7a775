//! Who may count: the live actor of a local copy, and the node's mint of new ones.
//!
//! The rule of the module (`version`, invariant 3) is carried by three small things:
//!
//! - [`LocalHeader`] stands beside the record in this node's store and holds the last dot that the node made on
//!   this copy. It is never sent, never hashed, never taken from a peer, and goes when the copy goes: a copy
//!   received again starts without one. The actor may count on only while the record's context names exactly
//!   that dot as its latest: whoever exchanges or cuts the record beside a header ends the actor by that.
//! - [`ActorMint`] knows the incarnation of this start. An actor of another incarnation is dead.
//! - The mint's *floor*: when a local append fails after its dot has left the node, the dot is in the world
//!   and not on this disk, so the copy no longer contains every dot of its actor. All actors of this start are
//!   ended at once by raising the floor: simple, bounded, and as rare as a failing disk.

use serde::{Deserialize, Serialize};

use super::record::{Caps, Merged, Overwrite, PutDone, PutError, Record, Write};
use super::vector::{Dot, VersionVector};
use crate::types::{ActorId, Incarnation, Wall};

/// What this node alone knows about its copy of a record: the last dot that it made on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalHeader {
    last: Option<Dot>,
}

impl LocalHeader {
    /// What was kept with a copy: the last dot that this node made on it.
    pub fn new(last: Option<Dot>) -> LocalHeader {
        LocalHeader { last }
    }

    /// The last dot that this node made on the copy, if its actor did not end.
    pub fn last(&self) -> Option<Dot> {
        self.last
    }
}

/// Incarnations before the newest that a mint remembers.
const RENEWED_MAX: usize = 64;

/// Makes actors for one start of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorMint {
    incarnation: Incarnation,
    /// Those before it, since the start.
    renewed: Vec<Incarnation>,
    epoch_next: u64,
    epoch_floor: u64,
    /// Actors below it count as another's: see `disown`.
    ours_floor: u64,
}

impl ActorMint {
    /// A mint for this start. The incarnation must be fresh random bits, durable before any dot leaves.
    pub fn new(incarnation: Incarnation) -> ActorMint {
        ActorMint { incarnation, renewed: Vec::new(), epoch_next: 1, epoch_floor: 1, ours_floor: 1 }
    }

    /// The incarnation of this start.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether the actor is one of this start of the node (of the last incarnations, if it was renewed very often), and not
    /// disowned.
    pub fn is_ours(&self, actor: ActorId) -> bool {
        let is_of_now = actor.incarnation == self.incarnation && actor.epoch >= self.ours_floor;
        is_of_now || self.renewed.contains(&actor.incarnation)
    }

    /// Ends every actor minted so far, and what they made counts as written before this start: the node has been without a vote,
    /// and others may have forgotten it.
    pub fn disown(&mut self) {
        self.end_all();
        self.ours_floor = self.epoch_floor;
        self.renewed.clear();
    }

    /// Whether the actor may still count.
    pub fn is_live(&self, actor: ActorId) -> bool {
        canary!(ActorKept) || (actor.incarnation == self.incarnation && actor.epoch >= self.epoch_floor)
    }

    /// Ends every actor minted so far: a local append failed after its dot had left. Never undone.
    pub fn end_all(&mut self) {
        self.epoch_floor = self.epoch_next;
    }

    /// Goes on under another incarnation: somebody knew a dot of ours that we do not, so this node's state has
    /// been lost or copied, and with a copied process even the epochs may be in use elsewhere. The incarnation
    /// must be fresh random bits, durable before any dot leaves.
    pub fn renew(&mut self, incarnation: Incarnation) {
        let mut renewed = std::mem::take(&mut self.renewed);
        renewed.truncate(RENEWED_MAX - 1);
        renewed.insert(0, self.incarnation);
        *self = ActorMint { renewed, ..ActorMint::new(incarnation) };
    }

    /// Whether the context names an actor of this start that was never minted: a copied or rolled-back process
    /// counts under the same incarnation.
    fn is_overtaken_by(&self, context: &VersionVector) -> bool {
        context.latest_actor_of(self.incarnation).is_some_and(|actor| actor.epoch >= self.epoch_next)
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
    /// A context names a dot of this copy's live actor that the copy does not have, or an actor of this start
    /// that was never minted: this node has forgotten a write of its own, or another process counts under its
    /// incarnation. The node renews its mint, reports it, and the put may be tried again.
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
        let last = self.header.last?;
        let whole = self.record.context().get(last.actor) == last.counter;
        (whole && mint.is_live(last.actor)).then_some(last.actor)
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
        if let Overwrite::Seen(context) = over
            && self.is_behind(mint, context)
        {
            return Err(LocalPutError::ActorAhead);
        }
        if live.is_none() && mint.is_overtaken_by(self.record.context()) {
            return Err(LocalPutError::ActorAhead);
        }
        let actor = live.unwrap_or_else(|| mint.mint());
        let done = self.record.put(over, actor, write, now, caps)?;
        self.header.last = Some(done.dot);
        Ok(done)
    }

    /// Whether the context knows more of this copy's live actor, or of this start, than this node does.
    fn is_behind(&self, mint: &ActorMint, context: &VersionVector) -> bool {
        let forgotten =
            self.live_actor(mint).is_some_and(|actor| context.get(actor) > self.record.context().get(actor));
        forgotten || mint.is_overtaken_by(context)
    }

    /// Takes over all that a peer's record knows. When it names a dot of the live actor that this copy does
    /// not have, or an actor of this start that was never minted, the copy's actor ends and `actor_ahead` is
    /// set: the node has lost state or has a double, reports it and renews its mint.
    pub fn merge(&mut self, mint: &ActorMint, other: &Record) -> LocalMerged {
        let actor_ahead = self.is_behind(mint, other.context());
        if actor_ahead {
            self.header.last = None;
        }
        LocalMerged { merged: self.record.merge(other), actor_ahead }
    }
}

/// What a merge into a local copy did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMerged {
    /// What happened to the record.
    pub merged: Merged,
    /// Whether the other record knew more of this copy's live actor, or of this start, than this node does.
    pub actor_ahead: bool,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dynamo::version::Content;
    use crate::types::WriteId;

    fn put(copy: &mut LocalCopy, mint: &mut ActorMint, over: Overwrite<'_>) -> Result<Dot, LocalPutError> {
        let write = Write {
            write_id: WriteId(1),
            content: Content::Value(Bytes::new()),
            meta: None,
            expires_at: None,
        };
        copy.put(mint, over, write, Wall(0), &Caps::default()).map(|done| done.dot)
    }

    fn actor(incarnation: u64, epoch: u64) -> ActorId {
        ActorId { incarnation: Incarnation(incarnation), epoch }
    }

    fn dot(incarnation: u64, epoch: u64, counter: u64) -> Dot {
        Dot { actor: actor(incarnation, epoch), counter }
    }

    /// A record that has seen these dots and overwrote their values.
    fn seen(dots: &[Dot]) -> Record {
        Record::from_parts(dots.iter().copied().collect(), Vec::new()).unwrap()
    }

    #[test]
    fn one_copy_counts_on_under_one_actor_and_another_copy_under_another() {
        let mut mint = ActorMint::new(Incarnation(7));
        let (mut one, mut two) = (LocalCopy::default(), LocalCopy::default());
        assert_eq!(put(&mut one, &mut mint, Overwrite::Nothing), Ok(dot(7, 1, 1)));
        assert_eq!(put(&mut two, &mut mint, Overwrite::Nothing), Ok(dot(7, 2, 1)));
        assert_eq!(put(&mut one, &mut mint, Overwrite::Nothing), Ok(dot(7, 1, 2)));
    }

    #[test]
    fn an_actor_ends_with_its_start_its_copy_and_a_failed_append() {
        let mut mint = ActorMint::new(Incarnation(7));
        let mut copy = LocalCopy::default();
        put(&mut copy, &mut mint, Overwrite::Nothing).unwrap();
        assert_eq!(copy.live_actor(&mint), Some(actor(7, 1)));
        assert_eq!(LocalCopy::of(copy.record.clone()).live_actor(&mint), None, "received again");
        assert_eq!(copy.live_actor(&ActorMint::new(Incarnation(8))), None, "another start");

        mint.end_all();
        assert_eq!(copy.live_actor(&mint), None);
        assert_eq!(
            put(&mut copy, &mut mint, Overwrite::Nothing),
            Ok(dot(7, 2, 1)),
            "never the old one again"
        );
        assert_eq!(copy.live_actor(&mint), Some(actor(7, 2)), "and the new one lives");
    }

    #[test]
    fn a_header_beside_another_record_is_dead() {
        let mut mint = ActorMint::new(Incarnation(7));
        let mut copy = LocalCopy::default();
        put(&mut copy, &mut mint, Overwrite::Nothing).unwrap();
        let early = copy.record.clone();
        put(&mut copy, &mut mint, Overwrite::Current).unwrap();
        // Restored to an earlier record, cut to nothing of its own (reaping), or taken from a peer that knows more.
        for record in [early, seen(&[dot(3, 1, 1)]), seen(&[dot(7, 1, 3)])] {
            let mut wrong = LocalCopy { header: copy.header, record };
            assert_eq!(wrong.live_actor(&mint), None);
            let made = put(&mut wrong, &mut mint.clone(), Overwrite::Nothing).unwrap();
            assert_eq!(made, dot(7, 2, 1));
        }
    }

    #[test]
    fn a_put_on_a_context_that_knows_more_of_this_copy_is_refused() {
        let mut mint = ActorMint::new(Incarnation(7));
        let mut copy = LocalCopy::default();
        put(&mut copy, &mut mint, Overwrite::Nothing).unwrap();
        let (before, mint_before) = (copy.clone(), mint.clone());
        for ahead in [dot(7, 1, 2), dot(7, 2, 1), dot(7, u64::MAX, u64::MAX)] {
            let context = [dot(3, 1, 1), ahead, dot(9, 9, 9)].into_iter().collect();
            let refused = put(&mut copy, &mut mint, Overwrite::Seen(&context));
            assert_eq!(refused, Err(LocalPutError::ActorAhead));
            assert_eq!((&copy, &mint), (&before, &mint_before), "no dot, no change");

            // Under a fresh incarnation the same put is in order.
            let mut renewed = mint.clone();
            renewed.renew(Incarnation(8));
            let made = put(&mut copy.clone(), &mut renewed, Overwrite::Seen(&context));
            assert_eq!(made, Ok(dot(8, 1, 1)));
        }
        let context = [dot(7, 1, 1)].into_iter().collect();
        assert_eq!(put(&mut copy, &mut mint, Overwrite::Seen(&context)), Ok(dot(7, 1, 2)));
    }

    #[test]
    fn a_merge_that_knows_more_of_this_node_is_taken_over_ends_the_actor_and_is_reported() {
        let mut mint = ActorMint::new(Incarnation(7));
        let mut first = LocalCopy::default();
        put(&mut first, &mut mint, Overwrite::Nothing).unwrap();
        for ahead in [dot(7, 1, 2), dot(7, 2, 1), dot(7, u64::MAX, u64::MAX)] {
            let mut copy = first.clone();
            let done = copy.merge(&mint, &seen(&[ahead]));
            assert!(done.actor_ahead && done.merged.changed, "{ahead:?}");
            assert_eq!(copy.live_actor(&mint), None, "{ahead:?}");
            assert!(copy.record.context().covers(ahead));
        }
        // What it knows already, its other copies' actors and other nodes are nothing to report.
        put(&mut LocalCopy::default(), &mut mint, Overwrite::Nothing).unwrap();
        let mut copy = first.clone();
        let usual = seen(&[dot(3, 1, 1), dot(7, 1, 1), dot(7, 2, 5), dot(8, 9, 9)]);
        assert!(!copy.merge(&mint, &usual).actor_ahead);
        assert_eq!(copy.live_actor(&mint), Some(actor(7, 1)));
    }

    #[test]
    fn an_actor_of_this_start_that_was_never_minted_is_never_counted_on() {
        // A copied process minted (7, 1) and sent its record here, where the first put would mint (7, 1) too.
        let mut mint = ActorMint::new(Incarnation(7));
        let mut copy = LocalCopy::of(seen(&[dot(7, 1, 4)]));
        let refused = put(&mut copy, &mut mint, Overwrite::Nothing);
        assert_eq!(refused, Err(LocalPutError::ActorAhead));
        mint.renew(Incarnation(8));
        assert_eq!(put(&mut copy, &mut mint, Overwrite::Nothing), Ok(dot(8, 1, 1)));
    }

    #[test]
    fn a_refused_put_makes_no_dot() {
        let mut mint = ActorMint::new(Incarnation(7));
        let mut copy = LocalCopy::default();
        put(&mut copy, &mut mint, Overwrite::Nothing).unwrap();
        let before = copy.clone();
        let write = Write { write_id: WriteId(2), content: Content::Tombstone, meta: None, expires_at: None };
        let caps = Caps { siblings_max: 1, ..Caps::default() };
        let refused = copy.put(&mut mint, Overwrite::Nothing, write, Wall(0), &caps);
        assert_eq!(refused, Err(LocalPutError::Cap(PutError::TooManySiblings { siblings: 2, max: 1 })));
        assert_eq!(copy, before);
    }
}
