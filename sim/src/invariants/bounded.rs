//! (g) Queues, machines and connections stay within what the settings allow, under load too, and come to nothing in the end.
//!
//! While the run goes on each node is looked at once a simulated second. In the end, when no client asks for anything, each
//! kind of use must come to nothing at some moment, not all at one: nodes go on asking each other one thing at a time.

use std::collections::BTreeMap;

use ringdove::node::NodeConfig;
use ringdove::node::metrics::Door;

use crate::cluster::Cluster;
use crate::net::Connection;
use crate::world::World;

/// One thing in use at a host, how much, and how much may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// At which host, and of what.
    pub of: String,
    /// How much.
    pub count: u64,
    /// At most.
    pub max: u64,
}

impl Use {
    fn new(of: String, count: u64, max: u64) -> Use {
        Use { of, count, max }
    }

    /// What is wrong with it.
    pub fn excess(&self) -> Option<String> {
        let Use { of, count, max } = self;
        (count > max).then(|| format!("{of}: {count}, at most {max}"))
    }
}

/// Calls that a link carries at a time, and bytes that wait for it: the node's own bounds (`ringdove::net::link`).
const CALLS_MAX: u64 = 4096;
const QUEUE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The count of guests is a round of handoff old, at the most: so many may have been let in beside each other meanwhile.
const GUESTS_BESIDE: u64 = 256;
/// Between two nodes, whichever opened it: each dials the other once, and a link that broke may not be closed yet while the
/// next one stands.
const BETWEEN_NODES_MAX: u64 = 4;

/// What the nodes use now, under load.
pub fn under_load(cluster: &Cluster) -> Vec<Use> {
    let mut used = Vec::new();
    for (name, _) in cluster.hosts() {
        let Some(node) = cluster.node(name) else { continue };
        let config: &NodeConfig = cluster.config();
        let mut add =
            |what: &str, count: u64, max: u64| used.push(Use::new(format!("{name} {what}"), count, max));
        add("requests in progress", node.metrics().in_flight(), config.in_flight_max as u64);
        add("guests", node.storage_stats().guest_keys, config.guests_max.saturating_add(GUESTS_BESIDE));
        for door in [Door::Binary, Door::Peer] {
            let Some(load) = node.port_load(door) else { continue };
            let limits = &config.limits;
            add("connections accepted", load.connections() as u64, limits.connections_max as u64);
            add("bytes of requests", load.request_bytes() as u64, limits.request_bytes_max as u64);
            add("bytes of answers", load.unread_bytes() as u64, limits.unread_bytes_max as u64);
        }
        for peer in node.peers() {
            let (calls, bytes) = node.peer_load(peer);
            add(&format!("calls to {peer}"), calls as u64, CALLS_MAX);
            add(&format!("bytes for {peer}"), bytes as u64, QUEUE_BYTES_MAX);
        }
    }
    used
}

/// What is in use at this moment although nobody asks for anything: by what it is, in words.
pub fn left_over(world: &World, cluster: &Cluster) -> BTreeMap<String, String> {
    let mut used = Vec::new();
    for (name, _) in cluster.hosts() {
        let Some(node) = cluster.node(name) else { continue };
        used.push(Use::new(format!("{name} requests in progress"), node.metrics().in_flight(), 0));
        for peer in node.peers() {
            let (calls, bytes) = node.peer_load(peer);
            used.push(Use::new(format!("{name} calls to {peer}"), calls as u64, 0));
            used.push(Use::new(format!("{name} bytes for {peer}"), bytes as u64, 0));
        }
        // On madsim's own network only the nodes know their connections, and each end of one is told.
        if world.tcp().is_some() {
            let accepted = |door| node.port_load(door).map_or(0, |load| load.connections() as u64);
            let peers = cluster.hosts().count() as u64 * BETWEEN_NODES_MAX / 2;
            used.push(Use::new(format!("{name} connections from clients"), accepted(Door::Binary), 0));
            used.push(Use::new(format!("{name} connections from nodes"), accepted(Door::Peer), peers));
        }
    }
    let is_node = |host: &str| cluster.host(host).is_some();
    used.extend(connections(&world.net().connections(), is_node));
    let (_, segments) = world.net().usage();
    let hosts = cluster.hosts().count() as u64;
    used.push(Use::new("segments under way".to_owned(), segments as u64, hosts * hosts));
    used.into_iter().filter_map(|used| Some((used.of.clone(), used.excess()?))).collect()
}

/// The connections that are left, by the hosts that they join. A client is gone and has none; of one that ended under a side's
/// hands, and of which the other was told nothing, that other side may know until it is idle for too long.
fn connections(all: &[Connection], is_node: impl Fn(&str) -> bool) -> Vec<Use> {
    let mut counts: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for Connection { hosts: [a, b], is_open, broken } in all {
        let [of_a, of_b] = [is_node(a), is_node(b)];
        if of_a && of_b {
            let pair = (a.min(b).as_str(), a.max(b).as_str());
            let count = counts.entry(pair).or_insert((0, BETWEEN_NODES_MAX));
            count.0 += u64::from(!broken);
            continue;
        }
        let at_client = (!of_a && is_open[0]) || (!of_b && is_open[1]);
        counts.entry((a, b)).or_default().0 += u64::from(at_client || !broken);
    }
    let told = |((a, b), (count, max))| Use::new(format!("connections of {a} and {b}"), count, max);
    counts.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(a: &str, b: &str, is_open: [bool; 2], broken: bool) -> Connection {
        Connection { hosts: [a.to_owned(), b.to_owned()], is_open, broken }
    }

    fn excess(all: &[Connection]) -> Vec<String> {
        connections(all, |host| host.starts_with('n')).iter().filter_map(Use::excess).collect()
    }

    #[test]
    fn a_client_that_is_gone_has_no_connection() {
        assert_eq!(
            excess(&[conn("c1", "n1", [true, true], false)]),
            ["connections of c1 and n1: 1, at most 0"]
        );
        // The node was never told that it is gone: a leak of the node's, unless the connection was broken off.
        assert_eq!(excess(&[conn("c1", "n1", [false, true], false)]).len(), 1);
        assert_eq!(excess(&[conn("c1", "n1", [false, true], true)]), [] as [String; 0]);
        assert_eq!(excess(&[conn("c1", "n1", [true, true], true)]).len(), 1, "the client's own side");
    }

    #[test]
    fn two_nodes_have_no_more_than_they_need() {
        let link = || conn("n1", "n2", [true, true], false);
        let back = || conn("n2", "n1", [true, true], false);
        assert_eq!(excess(&[link(), back(), link(), back()]), [] as [String; 0]);
        assert_eq!(
            excess(&[link(), back(), link(), back(), link()]),
            ["connections of n1 and n2: 5, at most 4"]
        );
    }

    #[test]
    fn a_use_is_in_excess_above_its_bound_alone() {
        assert_eq!(Use::new("n1 guests".to_owned(), 3, 3).excess(), None);
        assert_eq!(Use::new("n1 guests".to_owned(), 4, 3).excess().unwrap(), "n1 guests: 4, at most 3");
    }
}
