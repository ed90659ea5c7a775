//! Convergence: after faults have ended, all replicas of a key hold the same.
//!
//! Definition. All `final` reads of a key that name their `node` returned the same siblings, with the same
//! tombstones among them; and the same `covers`, where two of them make claims. Of several reads of one node the
//! last counts. Whether a sibling is hidden is the reader's view and does not count.
//! Precondition: at least two nodes were read. Judged: pairs (first node, other node) of a key.
//! Source: strong convergence of Shapiro, Preguiça, Baquero, Zawirski (2011); promise P2 of the design.
//! Cost: sorting what was returned.

use std::collections::BTreeMap;

use crate::history::{F, History, NONE};
use crate::pasts::Options;
use crate::verdict::{Findings, Verdict, Witness};

/// Judges the final states of each key's replicas.
pub fn check(history: &History, _: &Options) -> Verdict {
    let mut findings = Findings::default();
    for (key, ops) in history.by_key().iter() {
        let mut states: BTreeMap<u32, u32> = BTreeMap::new();
        for at in ops {
            let op = &history.ops[*at as usize];
            if op.f == F::Final
                && op.is_sibling_read()
                && let Some(node) = history.extra(op).node
            {
                states.insert(node, *at);
            }
        }
        let mut states = states.into_iter();
        let Some((_, first)) = states.next() else { continue };
        let mine = state(history, first);
        // The first node that makes claims: not every node need make them.
        let mut claimant = first;
        for (other, at) in states {
            findings.judged += 1;
            let theirs = state(history, at);
            let [claimed, claims] = [claimant, at].map(|at| history.ops[at as usize].covers);
            let (one, what) = if mine != theirs {
                (first, format!("{} and {}", show(history, &mine), show(history, &theirs)))
            } else if claimed == NONE {
                claimant = at;
                continue;
            } else if claims != NONE && claims != claimed {
                (claimant, "different contexts".to_owned())
            } else {
                continue;
            };
            let node = history.extra(&history.ops[one as usize]).node;
            let op = &history.ops[at as usize];
            findings.violation(op.complete, || Witness {
                text: format!(
                    "nodes {} and {} end with {what} for key {}",
                    node.map_or("?", |node| history.nodes.name(node)),
                    history.nodes.name(other),
                    history.keys.name(key)
                ),
                ops: vec![one, at],
            });
        }
    }
    findings.verdict()
}

fn state(history: &History, at: u32) -> Vec<(u32, bool)> {
    let op = &history.ops[at as usize];
    let mut ids: Vec<_> = history.returned(op).iter().map(|entry| (entry.id(), entry.dead())).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn show(history: &History, state: &[(u32, bool)]) -> String {
    let show =
        |(id, dead): &(u32, bool)| format!("{}{}", history.ids.name(*id), if *dead { " (dead)" } else { "" });
    format!("{{{}}}", state.iter().map(show).collect::<Vec<_>>().join(", "))
}
