//! The preference list of a partition: whom to ask for its keys, and in which order.
//!
//! Model (Dynamo §4.3, §4.6): first the N **primaries**, then **fallbacks**, the members that stand in when primaries
//! cannot be reached, in the order in which a walk along the ring meets them. Each entry says which it is, because a
//! fallback may only hold guest records and never counts for a strict request. The paper's list skips nodes that are
//! down; ours does not: who is up is a local view, and the caller skips with it.
//!
//! ```text
//! layout 2 (current): p9 → n1 n4 n6        layouts     [[n4 n6 n1], [n2 n4 n1]]   (rotated, newest first)
//! layout 1 (active):  p9 → n1 n2 n4   →    candidates  n4 n6 n1 n2 | n3 n5
//!                                                      primaries   | fallbacks
//! ```
//!
//! Invariants
//! - Each node stands in the list once. The union of all active layouts' primaries comes first, those of the
//!   current layout leading; every member of the current layout that is no primary follows as a fallback.
//! - A node that only an older layout names, and not as a primary here, is no candidate: it is on its way out and must
//!   not take new guests.
//! - The list is a function of history and partition: all nodes that hold the same layouts have the same list.
//!
//! The primaries are rotated by the partition, so that the first of the list, which clients go to, is not the member
//! with the smallest id every time. It is not random per request: puts for one key go through one coordinator while
//! it is up, which keeps version vectors short.
//!
//! Cost: a walk over at most Q partitions, in practice a few more than members / N; callers keep the list until the
//! history changes.
//!
//! Deliberately absent: latency, load, zones near the client. The gateway and client may reorder primaries.

use super::layout::LayoutHistory;
use crate::types::{NodeId, PartitionId};

/// What a candidate may do for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Holds the partition under an active layout.
    Primary,
    /// Stands in for a primary that cannot be reached, with guest records.
    Fallback,
}

/// An entry of a preference list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
}

/// Whom to ask for the keys of one partition, in order; see the module's docs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceList {
    /// The partition.
    pub partition: PartitionId,
    /// The N primaries of each active layout in rotated order, newest layout first: a put needs W in each.
    pub layouts: Vec<Vec<NodeId>>,
    /// Every candidate once, all primaries before all fallbacks.
    pub candidates: Vec<Candidate>,
    /// How many of `candidates` are primaries.
    primaries: usize,
}

impl PreferenceList {
    /// The list of a partition under a history. Without candidates when the partition is not below Q.
    pub fn new(history: &LayoutHistory, partition: PartitionId) -> PreferenceList {
        let current = history.current();
        let layouts: Vec<Vec<NodeId>> = history
            .active()
            .iter()
            .map(|layout| {
                let mut primaries = layout.primaries(partition).to_vec();
                if !primaries.is_empty() {
                    let first = rotation(partition) % primaries.len();
                    primaries.rotate_left(first);
                }
                primaries
            })
            .collect();
        let mut candidates: Vec<Candidate> = Vec::with_capacity(current.members().len());
        for &node in layouts.iter().flatten() {
            if !contains(&candidates, node) {
                candidates.push(Candidate { node, role: Role::Primary });
            }
        }
        let primaries = candidates.len();
        let q = current.q().get();
        if partition.0 < q {
            let listed_members = candidates.iter().filter(|c| current.member(c.node).is_some()).count();
            let fallbacks = current.members().len() - listed_members;
            let mut add = |node: NodeId| {
                if !contains(&candidates, node) {
                    candidates.push(Candidate { node, role: Role::Fallback });
                }
                candidates.len() == primaries + fallbacks
            };
            let ring = (1..q).map(|step| PartitionId((partition.0 + step) % q));
            let along_the_ring = ring.flat_map(|p| current.primaries(p)).copied();
            // A member with a tiny capacity may hold no partition; it is met last.
            let rest = current.members().iter().map(|m| m.id);
            if fallbacks > 0 {
                let _ = along_the_ring.chain(rest).any(&mut add);
            }
        }
        PreferenceList { partition, layouts, candidates, primaries }
    }

    /// The primaries of all active layouts, the current one's first.
    pub fn primaries(&self) -> impl ExactSizeIterator<Item = NodeId> {
        self.candidates[..self.primaries].iter().map(|c| c.node)
    }

    /// The other members in ring order.
    pub fn fallbacks(&self) -> impl ExactSizeIterator<Item = NodeId> {
        self.candidates[self.primaries..].iter().map(|c| c.node)
    }

    /// Whether the node is a primary under any active layout.
    pub fn is_primary(&self, node: NodeId) -> bool {
        self.primaries().any(|primary| primary == node)
    }

    /// What the node is for this partition; `None` for a node that is no candidate.
    pub fn role(&self, node: NodeId) -> Option<Role> {
        self.candidates.iter().find(|c| c.node == node).map(|c| c.role)
    }
}

fn contains(candidates: &[Candidate], node: NodeId) -> bool {
    candidates.iter().any(|c| c.node == node)
}

/// By how much the primaries of a partition are rotated.
fn rotation(partition: PartitionId) -> usize {
    partition.0 as usize
}

#[cfg(test)]
impl PreferenceList {
    /// The list of partition 0 with these primaries in each active layout, and these fallbacks.
    pub(crate) fn for_test(layouts: &[&[u64]], fallbacks: &[u64]) -> PreferenceList {
        let layouts: Vec<Vec<NodeId>> =
            layouts.iter().map(|layout| layout.iter().map(|id| NodeId(*id)).collect()).collect();
        let mut candidates: Vec<Candidate> = Vec::new();
        for &node in layouts.iter().flatten() {
            if !contains(&candidates, node) {
                candidates.push(Candidate { node, role: Role::Primary });
            }
        }
        let primaries = candidates.len();
        candidates.extend(fallbacks.iter().map(|id| Candidate { node: NodeId(*id), role: Role::Fallback }));
        PreferenceList { partition: PartitionId(0), layouts, candidates, primaries }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Layout, Member};
    use super::super::ring::PartitionCount;
    use super::*;

    fn members(ids: impl IntoIterator<Item = u64>) -> Vec<Member> {
        ids.into_iter()
            .map(|id| Member {
                id: NodeId(id),
                peer_addr: format!("10.0.0.{id}:7000"),
                client_addr: format!("10.0.0.{id}:7001"),
                zone: String::new(),
                capacity: 1,
            })
            .collect()
    }

    fn layout(q: u32, nodes: u64) -> Layout {
        Layout::first(PartitionCount::new(q).unwrap(), 3, members(1..=nodes)).unwrap()
    }

    #[test]
    fn the_list_names_the_primaries_first_and_then_every_other_member_once() {
        let history = LayoutHistory::new(layout(256, 10));
        for p in history.current().q().partitions() {
            let list = PreferenceList::new(&history, p);
            let mut primaries: Vec<NodeId> = list.primaries().collect();
            assert_eq!(list.layouts, [primaries.clone()]);
            primaries.sort_unstable();
            assert_eq!(primaries, history.current().primaries(p));
            let mut all: Vec<NodeId> = list.primaries().chain(list.fallbacks()).collect();
            all.sort_unstable();
            assert_eq!(all, (1..=10).map(NodeId).collect::<Vec<_>>());
            for node in list.primaries() {
                assert!(list.is_primary(node) && list.role(node) == Some(Role::Primary));
            }
            for node in list.fallbacks() {
                assert!(!list.is_primary(node) && list.role(node) == Some(Role::Fallback));
            }
            assert_eq!(list.role(NodeId(99)), None);
        }
    }

    #[test]
    fn fallbacks_are_the_primaries_of_the_partitions_that_follow_on_the_ring() {
        let history = LayoutHistory::new(layout(256, 10));
        let list = PreferenceList::new(&history, PartitionId(255));
        let mut walked: Vec<NodeId> = list.primaries().collect();
        for step in 0..255 {
            for &node in history.current().primaries(PartitionId(step)) {
                if !walked.contains(&node) {
                    walked.push(node);
                }
            }
        }
        assert_eq!(list.candidates.iter().map(|c| c.node).collect::<Vec<_>>(), walked);
    }

    #[test]
    fn a_member_that_holds_no_partition_is_the_last_fallback() {
        let mut nodes = members(1..=5);
        nodes.iter_mut().skip(1).for_each(|m| m.capacity = 1_000_000);
        let history = LayoutHistory::new(Layout::first(PartitionCount::new(8).unwrap(), 3, nodes).unwrap());
        assert_eq!(history.current().partitions_of(NodeId(1)).count(), 0);
        for p in history.current().q().partitions() {
            let list = PreferenceList::new(&history, p);
            assert_eq!(list.fallbacks().len(), 2);
            assert_eq!(list.fallbacks().last(), Some(NodeId(1)));
        }
    }

    #[test]
    fn with_two_active_layouts_all_their_primaries_lead_and_the_newer_ones_first() {
        let mut history = LayoutHistory::new(layout(256, 6));
        // Node 1 leaves, node 7 comes.
        history.adopt(history.current().next(members(2..=7)).unwrap()).unwrap();
        let [newer, older] = history.active() else { panic!("two are active") };
        let mut union_above_n = 0;
        for p in newer.q().partitions() {
            let list = PreferenceList::new(&history, p);
            assert_eq!(list.layouts.len(), 2);
            for (rotated, layout) in list.layouts.iter().zip([newer, older]) {
                let mut sorted = rotated.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, layout.primaries(p));
            }
            let primaries: Vec<NodeId> = list.primaries().collect();
            assert_eq!(primaries[..3], list.layouts[0]);
            assert!(list.layouts[1].iter().all(|&node| list.is_primary(node)));
            union_above_n += usize::from(primaries.len() > 3);
            // The node that leaves is a primary where it was one, and never a fallback.
            assert_eq!(list.is_primary(NodeId(1)), older.is_primary(p, NodeId(1)));
            assert!(list.fallbacks().all(|node| node != NodeId(1)));
            assert!((2..=7).all(|id| list.role(NodeId(id)).is_some()), "every member is a candidate");
        }
        assert!(union_above_n > 100, "{union_above_n}");
    }

    #[test]
    fn first_places_spread_over_the_members() {
        for (q, nodes) in [(256, 3), (256, 5), (1024, 12), (4096, 100)] {
            let history = LayoutHistory::new(layout(q, nodes));
            let mut first = vec![0u32; usize::try_from(nodes).unwrap() + 1];
            for p in history.current().q().partitions() {
                let node = PreferenceList::new(&history, p).primaries().next().unwrap();
                first[usize::try_from(node.0).unwrap()] += 1;
            }
            let fair = f64::from(q) / (nodes as f64);
            let (least, most) = (first[1..].iter().min().unwrap(), first[1..].iter().max().unwrap());
            eprintln!("{nodes} nodes, Q={q}: {least}..{most} first places, {fair:.1} fair");
            assert!(f64::from(*least) > 0.5 * fair && f64::from(*most) < 1.6 * fair, "{first:?}");
        }
    }

    #[test]
    fn a_partition_beyond_q_has_no_candidates() {
        let history = LayoutHistory::new(layout(8, 4));
        assert!(PreferenceList::new(&history, PartitionId(8)).candidates.is_empty());
    }
}
