//! Cuts of links: who does not hear whom, and for how long.

use rand::RngExt;
use rand::seq::SliceRandom;

use super::{Draw, Kind, Links};
use crate::net::fault::{Lasting, NetFault};
use crate::plan::{Action, Why};

/// Both directions between the nodes that do not see each other in a ring of majorities: every node sees a majority, and no two
/// of them the same one. Each is cut off from the one opposite, or from the two where their number is odd. Three nodes have no such
/// ring: who sees two of three in a ring sees both others. There one of the three links is cut.
fn ring(nodes: &[String]) -> Links {
    let count = nodes.len();
    let cut = if count < 4 { 1 } else { count };
    let opposite = (0..cut).map(|at| (&nodes[at], &nodes[(at + count.div_ceil(2)) % count]));
    opposite.flat_map(|(a, b)| [(a.clone(), b.clone()), (b.clone(), a.clone())]).collect()
}

impl Draw {
    /// All links between a side and the rest, in both directions.
    pub(super) fn crossing(&self, side: &[String]) -> Links {
        let is_in = |host: &String| side.contains(host);
        let mut links = Vec::new();
        for from in &self.hosts {
            for to in &self.hosts {
                if is_in(from) != is_in(to) {
                    links.push((from.clone(), to.clone()));
                }
            }
        }
        links
    }

    pub(super) fn cut_for(&mut self, links: Links, at: u64, long: u64, why: Why) {
        for (from, to) in links {
            let fault = NetFault::Cut { from, to };
            let mended = fault.mended();
            self.put_as(at, why, Action::Net { fault });
            if let Some(fault) = mended {
                self.put(at + long, Action::Net { fault });
            }
        }
    }

    pub(super) fn cuts(&mut self, kind: Kind, at: u64) {
        let long = self.span(50, 5_000);
        match kind {
            Kind::Split | Kind::Minority => {
                let mut side = self.nodes.clone();
                side.shuffle(&mut self.chance);
                let (most, why) = match kind {
                    Kind::Split => (side.len() / 2, Why::Halves),
                    _ => (self.chance.random_range(1..=(side.len() - 1) / 2), Why::Minority),
                };
                side.truncate(most);
                // Clients fall to a side too.
                for client in &self.hosts[self.nodes.len()..] {
                    if self.chance.random_bool(0.5) {
                        side.push(client.clone());
                    }
                }
                let links = self.crossing(&side);
                self.cut_for(links, at, long, why);
            }
            Kind::Isolate => {
                let side = [self.node()];
                let links = self.crossing(&side);
                self.cut_for(links, at, long, Why::Isolate);
            }
            Kind::Bridge => {
                // Two halves that see one node, and each other through nobody.
                let mut nodes = self.nodes.clone();
                nodes.shuffle(&mut self.chance);
                let bridge = nodes.pop().expect("a cluster has nodes");
                let half = nodes[..nodes.len() / 2].to_vec();
                let of_nodes = |host: &String| self.nodes.contains(host) && *host != bridge;
                let mut links = self.crossing(&half);
                links.retain(|(from, to)| of_nodes(from) && of_nodes(to));
                self.cut_for(links, at, long, Why::Bridge);
            }
            Kind::Ring => {
                let mut nodes = self.nodes.clone();
                nodes.shuffle(&mut self.chance);
                self.cut_for(ring(&nodes), at, long, Why::Ring);
            }
            Kind::Swizzle => {
                // One by one off, and on again in another order.
                let mut nodes = self.nodes.clone();
                nodes.shuffle(&mut self.chance);
                let some = self.span(1, nodes.len() as u64);
                nodes.truncate(usize::try_from(some).expect("small"));
                let mut back = nodes.clone();
                back.shuffle(&mut self.chance);
                let (apart, between) = (self.span(10, 500), self.span(10, 500));
                let all_off = at + apart * nodes.len() as u64 + between;
                for (turn, node) in (0..).zip(&nodes) {
                    for (from, to) in self.crossing(std::slice::from_ref(node)) {
                        let cut = Action::Net { fault: NetFault::Cut { from, to } };
                        self.put_as(at + apart * turn, Why::Swizzle, cut);
                    }
                }
                for (turn, node) in (0..).zip(&back) {
                    for (from, to) in self.crossing(std::slice::from_ref(node)) {
                        // Its own cut of the link: that of the other end stands until that one is back.
                        let fault = NetFault::Mend { from, to, what: Lasting::Cut };
                        self.put(all_off + apart * turn, Action::Net { fault });
                    }
                }
            }
            Kind::Mute => {
                // It is heard and does not hear, or hears and is not heard: long enough for senders to give up.
                let node = self.node();
                let deaf = self.chance.random_bool(0.5);
                let mut links = self.crossing(std::slice::from_ref(&node));
                links.retain(|(from, to)| *(if deaf { to } else { from }) == node);
                let long = if self.chance.random_bool(0.5) { self.span(14_000, 25_000) } else { long };
                self.cut_for(links, at, long, Why::Mute);
            }
            Kind::Flap => {
                let (a, b) = self.pair();
                let (off, on) = (self.span(10, 300), self.span(10, 300));
                for turn in 0..self.span(3, 15) {
                    let links = vec![(a.clone(), b.clone()), (b.clone(), a.clone())];
                    self.cut_for(links, at + turn * (off + on), off, Why::Flap);
                }
            }
            _ => {
                let (a, b) = self.pair();
                let mut links = vec![(a.clone(), b.clone()), (b, a)];
                let why = if self.chance.random_bool(0.5) { Why::OneWay } else { Why::TwoWay };
                if why == Why::OneWay {
                    links.truncate(1);
                }
                self.cut_for(links, at, long, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::node_name;

    #[test]
    fn in_a_ring_everybody_sees_a_majority_and_from_four_nodes_on_none_the_same() {
        for count in 3..=9 {
            let nodes: Vec<String> = (1..=count).map(node_name).collect();
            let links = ring(&nodes);
            let seen = nodes.iter().map(|node| {
                let sees = |other: &&String| {
                    *other == node
                        || ![(node, *other), (*other, node)]
                            .iter()
                            .any(|(a, b)| links.contains(&((*a).clone(), (*b).clone())))
                };
                nodes.iter().filter(sees).collect::<Vec<_>>()
            });
            let mut seen: Vec<_> = seen.collect();
            for (node, sees) in nodes.iter().zip(&seen) {
                assert!(sees.len() > nodes.len() / 2, "{node} of {count} sees {sees:?}");
            }
            assert!(!links.is_empty());
            if count >= 4 {
                seen.sort();
                seen.dedup();
                assert_eq!(seen.len(), nodes.len(), "{seen:?}");
            }
        }
    }
}
