//! What has not converged, and why: of each key whose primaries differ, of each node that keeps something for others, that has
//! not refilled, or that goes by another layout.

use std::time::Duration;

use rand::Rng;
use ringdove::client::{Client, ClientConfig};
use ringdove::dynamo::version::Record;
use ringdove::net::message::HintsFor;
use ringdove::node::Node;
use ringdove::types::{Key, Namespace};

use crate::cluster::{Cluster, client_addr};
use crate::invariants::Watch;
use crate::seed;
use crate::settings::RunSettings;
use crate::workload::keys;
use crate::world::World;

/// One thing that is not as it is to be.
pub(super) struct Apart {
    /// What it is.
    pub(super) what: String,
    /// The key that it is about, where it is about one.
    pub(super) key: Option<Key>,
}

/// Keys that a report explains.
const EXPLAINED_MAX: usize = 3;
/// Time for the nodes to answer.
const PATIENCE: Duration = Duration::from_secs(3);

fn of(what: String) -> Apart {
    Apart { what, key: None }
}

/// All that is in the way of convergence, in words; nothing when the cluster has converged.
pub(super) fn apart(cluster: &Cluster, settings: &RunSettings, watch: &Watch) -> Vec<Apart> {
    let mut apart = Vec::new();
    let down: Vec<&str> =
        cluster.hosts().filter(|(_, host)| !host.is_running()).map(|(name, _)| name).collect();
    if !down.is_empty() {
        apart.push(of(format!("these nodes do not run: {}", down.join(", "))));
    }
    for (name, node) in nodes(cluster) {
        for HintsFor { target, count, why, age_ms, .. } in node.hints().targets {
            apart.push(of(format!(
                "{name} still keeps {count} records for {target}, since {:.1} s, because: {why:?}",
                Duration::from_millis(age_ms).as_secs_f64()
            )));
        }
    }
    let layout = cluster.layout();
    let merged = crate::workload::merged::keys().map(|(key, _)| key);
    for key in keys(settings).into_iter().map(|(key, _)| key).chain(merged) {
        let held = watch.held(Namespace::default(), &key);
        let partition = layout.q().partition_of(Namespace::default(), &key);
        let copies: Vec<_> = layout
            .primaries(partition)
            .iter()
            .map(|primary| held.get(&primary.to_string()).map(|entry| &entry.copy.record))
            .collect();
        if copies.windows(2).any(|pair| pair[0] != pair[1]) {
            let contexts: Vec<_> = copies.iter().map(|copy| copy.map(Record::context)).collect();
            let what = format!("the primaries of {key} ({partition}) hold different records: {contexts:?}");
            apart.push(Apart { what, key: Some(key) });
        }
    }
    for (name, node) in nodes(cluster) {
        let active = node.layouts().active;
        if active.len() > 1 || active[0].reference() != layout.reference() {
            let versions: Vec<u64> = active.iter().map(|layout| layout.reference().version).collect();
            apart.push(of(format!(
                "{name} goes by the layouts {versions:?}, not by {} alone",
                layout.reference().version
            )));
        }
        let held = if layout.member(node.id()).is_none() { node.storage_stats().data_keys } else { 0 };
        if held > 0 {
            apart.push(of(format!("{name} is no member any more and still holds {held} keys")));
        }
        let status = node.status();
        if status.partitions_refilled < status.partitions {
            let (has, of_all) = (status.partitions_refilled, status.partitions);
            apart.push(of(format!("{name} has refilled {has} of {of_all} partitions")));
        }
    }
    apart
}

fn nodes(cluster: &Cluster) -> impl Iterator<Item = (&str, Node)> {
    cluster.hosts().filter_map(|(name, _)| Some((name, cluster.node(name)?)))
}

/// The same with the reasons: of the first keys what the nodes themselves say (`ringdove explain`), and which partitions of
/// whom have not refilled.
pub(super) async fn explained(world: &World, cluster: &Cluster, apart: Vec<Apart>) -> Vec<String> {
    let mut words = Vec::new();
    let mut explained = 0;
    let unrefilled: Vec<String> = nodes(cluster)
        .map(|(name, node)| (name, node.status()))
        .filter(|(_, status)| status.partitions_refilled < status.partitions)
        .map(|(name, status)| format!("{name} {}/{}", status.partitions_refilled, status.partitions))
        .collect();
    let refilled = match unrefilled.is_empty() {
        true => "all partitions have refilled".to_owned(),
        false => format!("refilled: {}", unrefilled.join(", ")),
    };
    for Apart { what, key } in apart {
        let why = match key.filter(|_| explained < EXPLAINED_MAX) {
            None => String::new(),
            Some(key) => {
                explained += 1;
                let told = explain(world, cluster, &key).await;
                format!("; because: {}; {refilled}", told.join(" "))
            }
        };
        words.push(format!("{what}{why}"));
    }
    words
}

/// What a node says of a key, and why: asked as an operator does, from a host of its own.
async fn explain(world: &World, cluster: &Cluster, key: &Key) -> Vec<String> {
    let Some((name, node)) = nodes(cluster).next() else { return vec!["no node runs".to_owned()] };
    let (addr, of) = (client_addr(node.id()), key.clone());
    let running = world.host(&format!("asker-{key}")).start(move |io, start| async move {
        let mut bits = [0; 32];
        seed::stream(start.seed, "asker").fill_bytes(&mut bits);
        let client = Client::new(io.net.clone(), io.clock.clone(), bits, ClientConfig::new([addr]));
        client.explain(Namespace::default(), &of, Some(PATIENCE)).await.map_err(|error| error.to_string())
    });
    match running.output().await {
        Some(Ok(reply)) => reply.words,
        Some(Err(error)) => vec![format!("{name} does not say: {error}")],
        None => vec![format!("{name} was not asked to the end")],
    }
}
