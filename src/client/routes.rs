//! Where to go: the layouts that the client knows, and the addresses to try for a key, in order.
//!
//! For a key these are its primaries in the order of the preference list, then the other members, then the
//! addresses the client was configured with, which may name the same nodes by other names. Without a layout only
//! the last are left. All members take every request; going to a primary saves a hop and keeps contexts short.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dynamo::layout::{Layout, LayoutHistory};
use crate::dynamo::preference::PreferenceList;
use crate::types::{Key, LayoutRef, Namespace, NodeId, PartitionId};

/// A client port, `host:port`.
pub(super) type Addr = Arc<str>;

/// Whom an operation is for.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// The holders of a key.
    Key(Namespace, &'a Key),
    /// Whoever answers.
    Anyone,
    /// This node and no other.
    Node(&'a Addr),
}

pub(super) struct Routes {
    configured: Vec<Addr>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    history: Option<LayoutHistory>,
    addrs: BTreeMap<NodeId, Addr>,
    /// By partition, made when first asked for.
    lists: Vec<Option<Arc<[Addr]>>>,
    /// Members and configured addresses, for requests that any node can answer.
    anyone: Vec<Addr>,
    /// Requests for anyone so far: they go round.
    turn: usize,
    /// The newest layout by which a node goes, as far as was heard. Newer than what is known here: the next operation
    /// asks for it.
    heard: LayoutRef,
}

impl Routes {
    pub(super) fn new(addrs: &[String]) -> Routes {
        let configured: Vec<Addr> = addrs.iter().map(|addr| Addr::from(addr.as_str())).collect();
        let known = Known { anyone: configured.clone(), ..Known::default() };
        Routes { configured, known: Mutex::new(known) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses to try, in order.
    pub(super) fn candidates(&self, target: Target<'_>) -> Arc<[Addr]> {
        let mut known = self.known();
        let partition = match target {
            Target::Node(addr) => return [addr.clone()].into(),
            Target::Key(namespace, key) => {
                let history = known.history.as_ref();
                history.map(|history| history.current().q().partition_of(namespace, key))
            }
            Target::Anyone => None,
        };
        match partition {
            Some(partition) => known.list(partition, &self.configured),
            None => {
                known.turn = known.turn.wrapping_add(1);
                let mut anyone = known.anyone.clone();
                // Without a layout, in the order that the user gave.
                if known.history.is_some() && !anyone.is_empty() {
                    let first = known.turn % anyone.len();
                    anyone.rotate_left(first);
                }
                anyone.into()
            }
        }
    }

    /// The newest layout known; zeros without one.
    pub(super) fn reference(&self) -> LayoutRef {
        self.known().reference()
    }

    /// The active layouts known, newest first.
    pub(super) fn active(&self) -> Vec<Arc<Layout>> {
        self.known().history.as_ref().map_or_else(Vec::new, |history| history.active().to_vec())
    }

    /// Takes what a node says, unless it is older than what is known or no sound history. Whether there is a layout
    /// now.
    pub(super) fn adopt(&self, active: Vec<Arc<Layout>>) -> bool {
        let mut known = self.known();
        let Ok(history) = LayoutHistory::try_from(active) else { return known.history.is_some() };
        // Of two with one version the larger hash wins, here as everywhere. An equal one may have fewer that are
        // still active.
        if history.current().reference() >= known.reference() {
            known.take(history, &self.configured);
        }
        true
    }

    /// Hears by which layout a node goes.
    pub(super) fn hear(&self, layout: LayoutRef) {
        let mut known = self.known();
        known.heard = known.heard.max(layout);
    }

    /// Whether a layout must be asked for before anything else can be routed well.
    pub(super) fn needs_layout(&self) -> Need {
        let known = self.known();
        match &known.history {
            None => Need::First,
            Some(_) if known.heard > known.reference() => Need::Newer,
            Some(_) => Need::Nothing,
        }
    }

    /// Every address that may still be used.
    pub(super) fn all(&self) -> Vec<Addr> {
        self.known().anyone.clone()
    }

    /// The members of the newest layout with their client ports.
    pub(super) fn members(&self) -> BTreeMap<NodeId, Addr> {
        self.known().addrs.clone()
    }
}

/// What the client lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    First,
    Newer,
}

impl Known {
    fn reference(&self) -> LayoutRef {
        self.history.as_ref().map_or_else(LayoutRef::default, |history| history.current().reference())
    }

    fn take(&mut self, history: LayoutHistory, configured: &[Addr]) {
        // Newest first: an older layout tells only of members that are on their way out.
        self.addrs.clear();
        for member in history.active().iter().flat_map(|layout| layout.members()) {
            self.addrs.entry(member.id).or_insert_with(|| Addr::from(member.client_addr.as_str()));
        }
        self.anyone = distinct(self.addrs.values().chain(configured));
        self.lists = vec![None; history.current().q().get() as usize];
        self.history = Some(history);
    }

    fn list(&mut self, partition: PartitionId, configured: &[Addr]) -> Arc<[Addr]> {
        let Known { history: Some(history), addrs, lists, .. } = self else { return configured.into() };
        let Some(slot) = lists.get_mut(partition.0 as usize) else { return configured.into() };
        let make = || {
            let list = PreferenceList::new(history, partition);
            let nodes = list.candidates.iter().filter_map(|candidate| addrs.get(&candidate.node));
            distinct(nodes.chain(configured)).into()
        };
        slot.get_or_insert_with(make).clone()
    }
}

fn distinct<'a>(addrs: impl Iterator<Item = &'a Addr>) -> Vec<Addr> {
    let mut kept: Vec<Addr> = Vec::new();
    for addr in addrs {
        if !kept.contains(addr) {
            kept.push(addr.clone());
        }
    }
    kept
}
