//! The layout history: the current layout and the older ones whose transfers are not complete.
//!
//! Model (Garage's layout history): a new layout does not replace the old one at once. While data moves, both
//! are *active*: puts need W in each, strict gets R in each, so that what was acknowledged under one is found
//! under every other. When every primary of the newer layout has refilled, the older retires.
//!
//! ```text
//!  adopt(2)          adopt(3)            retire_below(2)  retire_below(3)
//!  [2 1]      →      [3 2 1]      →      [3 2]      →     [3]
//! ```
//!
//! Invariants
//! - The active layouts are a chain without gaps: each names the hash of the next older one as its parent.
//!   So a layout is never skipped while another node may still read and write by it alone.
//! - There is at least one and at most [`ACTIVE_MAX`].
//! - All have the same Q and N.
//! - The oldest is never replaced. It is in force: either the cluster began with it, or what came before it has
//!   retired, and then its primaries may hold the only copies.
//!
//! # Conflicts
//!
//! Two operators who act at once make two layouts of one version with one parent. **The larger hash wins
//! everywhere**, so nodes agree without talking, and both are named to the operator, whose other change is lost.
//! When the loser has successors, they go with it: they were made from a state that never came to be.
//! Nothing acknowledged is lost, because while the loser was active its parent was too, and each put had W there.
//! (For this a loser must still be in the chain above its parent, which is the reason for the last invariant. The
//! parent may retire only when *every* member of it and of its successor says that it holds the successor;
//! a node that holds the other child never says so.)
//!
//! A node that missed layouts does not adopt the newest alone; it takes a peer's whole history
//! ([`LayoutHistory::catch_up`]).
//!
//! Deliberately absent: who has completed which transfer (`node/transfer` asks and calls `retire_below`), and how
//! histories travel.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Layout, LayoutError};
use crate::types::{LayoutRef, NodeId, PartitionId};

/// Most layouts active at once. Every put needs W in each, so more than two is rare; the cap stops an operator
/// who changes members faster than data moves.
pub const ACTIVE_MAX: usize = 8;

/// What adopting a layout did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// The layout is active here already; nothing changed.
    AlreadyKnown,
    /// The layout followed from the current one and is current now.
    Newer,
    /// The layout was in conflict with one held and won by its larger hash. It is current now. Report both.
    Replaced {
        /// What is no longer held: the loser and the layouts that followed from it, newest first.
        lost: Vec<LayoutRef>,
    },
    /// Only from [`LayoutHistory::catch_up`]: this node was so far behind that its layouts have all retired; it
    /// holds the peer's history now.
    CaughtUp {
        /// What is no longer held, newest first.
        lost: Vec<LayoutRef>,
    },
}

/// The active layouts of a cluster, newest first; see the module's docs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Arc<Layout>>", into = "Vec<Arc<Layout>>")]
pub struct LayoutHistory {
    active: Vec<Arc<Layout>>,
}

impl LayoutHistory {
    /// A history that begins with this layout, in force.
    pub fn new(layout: impl Into<Arc<Layout>>) -> LayoutHistory {
        LayoutHistory { active: vec![layout.into()] }
    }

    /// The newest layout: new data goes by it, and every message names it.
    pub fn current(&self) -> &Arc<Layout> {
        self.active.first().expect("a history is never empty")
    }

    /// The current layout and the older ones whose transfers are not complete, newest first.
    pub fn active(&self) -> &[Arc<Layout>] {
        &self.active
    }

    /// The active layout with this name.
    pub fn find(&self, layout: LayoutRef) -> Option<&Arc<Layout>> {
        self.active.iter().find(|held| held.reference() == layout)
    }

    /// The oldest active layout, which is in force.
    pub fn oldest(&self) -> &Arc<Layout> {
        self.active.last().expect("a history is never empty")
    }

    /// Takes a layout that an operator made or a peer sent.
    ///
    /// On an error nothing changed. `Older` and `Conflict`: send the sender what is held here. `UnknownParent`:
    /// ask the sender for its history and [`catch_up`](Self::catch_up). `TooManyActive`: try again later.
    /// `ConflictWithOldest`: the sender must catch up with the history held here. `OtherShape`: an operator must look.
    pub fn adopt(&mut self, layout: impl Into<Arc<Layout>>) -> Result<Adopted, LayoutError> {
        let layout = layout.into();
        let current = self.current();
        if (layout.q(), layout.n()) != (current.q(), current.n()) {
            return Err(LayoutError::OtherShape { q: layout.q().get(), n: layout.n() });
        }
        let (offered, current) = (layout.reference(), current.reference());
        if offered.version < self.oldest().reference().version {
            return Err(LayoutError::Older { offered, current });
        }
        if offered.version > current.version {
            if layout.parent() != Some(current) {
                return Err(LayoutError::UnknownParent { offered, current });
            }
            if self.active.len() >= ACTIVE_MAX {
                return Err(LayoutError::TooManyActive { active: self.active.len() });
            }
            self.active.insert(0, layout);
            return Ok(Adopted::Newer);
        }
        // The chain has no gaps, so a layout of this version is held.
        let place = usize::try_from(current.version - offered.version).expect("at most ACTIVE_MAX");
        let held = self.active[place].reference();
        assert_eq!(held.version, offered.version, "the active layouts are a chain without gaps");
        if held == offered {
            return Ok(Adopted::AlreadyKnown);
        }
        if layout.parent() != self.active[place].parent() {
            // They differ further down already; that is where the conflict must be settled.
            return Err(LayoutError::UnknownParent { offered, current });
        }
        if place + 1 == self.active.len() {
            return Err(LayoutError::ConflictWithOldest { held, offered });
        }
        if offered.hash < held.hash {
            return Err(LayoutError::Conflict { held, offered });
        }
        let lost = self.active.drain(..=place).map(|lost| lost.reference()).collect();
        self.active.insert(0, layout);
        Ok(Adopted::Replaced { lost })
    }

    /// Joins a peer's whole history: for a node that was away, or that [`adopt`](Self::adopt) told `UnknownParent`.
    ///
    /// Where both hold layouts of the same versions, theirs are adopted oldest first by the rules of `adopt`, with
    /// one more: a layout that is in force at the peer wins over one that is not in force here, whatever the
    /// hashes, because what came before it has retired. What has retired at the peer retires here. On an error
    /// nothing changed; `Older`, `Conflict` and `ConflictWithOldest` mean that the peer should catch up with this
    /// node instead. When it answers `ConflictWithOldest` too, two clusters' worth of data exist under one name, and
    /// no rule can tell which to drop: an operator must.
    pub fn catch_up(&mut self, peer: &LayoutHistory) -> Result<Adopted, LayoutError> {
        let (mine, theirs) = (self.current(), peer.current());
        if (mine.q(), mine.n()) != (theirs.q(), theirs.n()) {
            return Err(LayoutError::OtherShape { q: theirs.q().get(), n: theirs.n() });
        }
        let (current, base) = (mine.reference(), peer.oldest().reference());
        if theirs.reference().version < self.oldest().reference().version {
            return Err(LayoutError::Older { offered: theirs.reference(), current });
        }
        let follows = peer.oldest().parent() == Some(current);
        if base.version > current.version && !follows {
            if let Some(offered) = peer.oldest().parent().filter(|p| p.version == current.version)
                && self.active.len() == 1
            {
                return Err(LayoutError::ConflictWithOldest { held: current, offered });
            }
            // Everything held here has retired there.
            return Ok(self.take_over(peer));
        }
        let mut joined = self.clone();
        let in_place = joined.active.iter().find(|held| held.reference().version == base.version);
        if let Some(held) = in_place.filter(|held| held.reference() != base) {
            let held = held.reference();
            if held == self.oldest().reference() {
                return Err(LayoutError::ConflictWithOldest { held, offered: base });
            }
            return Ok(self.take_over(peer));
        }
        let mut lost = Vec::new();
        let mut newer = false;
        for layout in peer.active.iter().rev() {
            if layout.reference().version < joined.oldest().reference().version {
                continue;
            }
            // The peer has retired what is below its oldest: make room before the cap counts.
            joined.retire_below(base.version);
            match joined.adopt(Arc::clone(layout))? {
                Adopted::AlreadyKnown | Adopted::CaughtUp { .. } => {}
                Adopted::Newer => newer = true,
                Adopted::Replaced { lost: replaced } => lost = replaced,
            }
        }
        joined.retire_below(base.version);
        *self = joined;
        Ok(if !lost.is_empty() {
            Adopted::Replaced { lost }
        } else if newer {
            Adopted::Newer
        } else {
            Adopted::AlreadyKnown
        })
    }

    fn take_over(&mut self, peer: &LayoutHistory) -> Adopted {
        let lost = self.active.iter().map(|held| held.reference()).filter(|&held| peer.find(held).is_none());
        let lost = lost.collect();
        self.active.clone_from(&peer.active);
        Adopted::CaughtUp { lost }
    }

    /// Partitions whose primary a node becomes by those of these layouts that `before` did not have, in order: what it holds of
    /// them, or nothing, says nothing until it has refilled. Where a predecessor is not known, all of the layout's.
    pub fn gained_since(&self, before: &LayoutHistory, node: NodeId) -> Vec<PartitionId> {
        let new = self.active.iter().filter(|layout| before.find(layout.reference()).is_none());
        let gained = new.flat_map(|layout| {
            let parent = layout.parent().and_then(|parent| self.find(parent).or_else(|| before.find(parent)));
            let had = move |partition| parent.is_some_and(|parent| parent.is_primary(partition, node));
            layout.partitions_of(node).filter(move |partition| !had(*partition))
        });
        gained.collect::<BTreeSet<PartitionId>>().into_iter().collect()
    }

    /// Ends the layouts below a version, but never the current one, when all transfers out of them are complete: every member of
    /// the layout of that version holds it, and has refilled what it gained. Transfers draw from all active layouts, so what is
    /// complete for one is complete for those before it, and what has retired at one node may retire everywhere.
    ///
    /// Returns the retired layouts, newest first; none when they have retired before, so that repeating is harmless.
    pub fn retire_below(&mut self, version: u64) -> Vec<LayoutRef> {
        let keep = self.active.iter().take_while(|held| held.reference().version >= version).count();
        self.active.drain(keep.max(1)..).map(|retired| retired.reference()).collect()
    }
}

impl TryFrom<Vec<Arc<Layout>>> for LayoutHistory {
    type Error = LayoutError;
    /// Checks the chain; the layouts are newest first.
    fn try_from(mut active: Vec<Arc<Layout>>) -> Result<LayoutHistory, LayoutError> {
        if active.len() > ACTIVE_MAX {
            return Err(LayoutError::TooManyActive { active: active.len() });
        }
        let Some(oldest) = active.pop() else { return Err(LayoutError::NoMembers) };
        let mut history = LayoutHistory::new(oldest);
        for layout in active.into_iter().rev() {
            let (offered, current) = (layout.reference(), history.current().reference());
            if history.adopt(layout)? != Adopted::Newer {
                return Err(LayoutError::UnknownParent { offered, current });
            }
        }
        Ok(history)
    }
}

impl From<LayoutHistory> for Vec<Arc<Layout>> {
    fn from(history: LayoutHistory) -> Vec<Arc<Layout>> {
        history.active
    }
}
