//! Explaining a key, comparing trees, repairing a partition: on nodes that are kept from doing the latter by themselves.

use std::sync::Arc;
use std::time::Duration;

use ringdove::client::{Client, ClientConfig, ClientError, ReadOptions, RefusalCode};
use ringdove::dynamo::membership::Heartbeat;
use ringdove::io::{Disk, MemoryDisk};
use ringdove::net::link::CallError;
use ringdove::net::message::{
    Compared, Ended, Explain, Gossip, GossipReply, Put, PutOutcome, Quorum, Repair, Spoken, Trees,
};
use ringdove::types::{Namespace, NodeId, PartitionId};

use crate::support::{Cluster, PARTITIONS, key, member, write_id};

const LATER: Duration = Duration::from_secs(3600);

/// No node hears of another, hands over or compares unless it is asked to.
async fn start(count: u64) -> Cluster {
    Cluster::start_with(count, quiet).await
}

fn quiet(_: u64, config: &mut ringdove::node::NodeConfig) {
    config.detector.interval = LATER;
    config.handoff_interval = LATER;
    config.anti_entropy_interval = LATER * 1000;
}

/// The same, and node 1 has lost its disk.
async fn start_refilling() -> Cluster {
    let disk = |_| -> Arc<dyn Disk> { Arc::new(MemoryDisk::new()) };
    Cluster::start_after(3, quiet, disk, |id| id == 1).await
}

/// Writes `dove` at one node while none of the others can be reached.
async fn put_alone(cluster: &Cluster, at: usize, value: &'static str) {
    for id in 1..=3 {
        cluster.net.close(&member(id).peer_addr);
    }
    let quorum = Quorum { w: Some(1), ..Quorum::default() };
    let put = Put { quorum, ..Put::new(key("dove"), write_id(), value) };
    let reply = cluster.nodes[at].put(put, cluster.request(at)).await.unwrap();
    assert_eq!(reply.outcome, PutOutcome::Applied);
    for id in 1..=3 {
        cluster.net.reopen(&member(id).peer_addr);
    }
}

async fn words(cluster: &Cluster, at: usize) -> Vec<String> {
    let explain = Explain { namespace: Namespace(0), key: key("dove") };
    cluster.nodes[at].explain(explain, cluster.request(at)).await.unwrap().words
}

/// Compares until all of the others could be compared with: how many keys differed.
async fn repair(cluster: &Cluster, at: usize, partition: PartitionId) -> Vec<u64> {
    loop {
        let reply = cluster.nodes[at].repair(Repair { partition }, cluster.request(at)).await.unwrap();
        assert_eq!(reply.trouble, None);
        if reply.compared.iter().all(|compared| compared.ended == Ended::Done) {
            return reply.compared.iter().map(|compared| compared.keys).collect();
        }
        let failed =
            |compared: &Compared| matches!(&compared.ended, Ended::Failed(why) if why.contains("down"));
        assert!(reply.compared.iter().any(failed), "{reply:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn roots(cluster: &Cluster, partition: PartitionId) -> Vec<u64> {
    let mut roots = Vec::new();
    for node in &cluster.nodes {
        let reply = node.trees(Trees { partition: Some(partition) }).await.unwrap();
        assert_eq!(reply.trees.len(), 1);
        roots.push(reply.trees[0].root);
    }
    roots
}

#[tokio::test]
async fn a_repair_that_finds_no_difference_leaves_all_primaries_equal() {
    let cluster = start(3).await;
    put_alone(&cluster, 0, "grey").await;
    put_alone(&cluster, 1, "white").await;
    let partition = cluster.nodes[0].descriptor().partitions.partition_of(Namespace(0), &key("dove"));
    let before = roots(&cluster, partition).await;
    assert_eq!(before[2], 0, "the third node has nothing");
    assert!(before[0] != before[1], "the others have what they were told");

    // What the second had, the first gets only with the second look.
    let mut rounds = Vec::new();
    while rounds.last().is_none_or(|keys: &Vec<u64>| keys.iter().sum::<u64>() > 0) {
        rounds.push(repair(&cluster, 2, partition).await);
        assert!(rounds.len() < 5, "{rounds:?}");
    }
    assert!(rounds.len() > 1, "{rounds:?}");
    let after = roots(&cluster, partition).await;
    assert!(after[0] != 0 && after.iter().all(|root| *root == after[0]), "{after:x?} after {rounds:?}");
    let words = words(&cluster, 2).await;
    assert!(
        words[1].starts_with("siblings: two writes (by n") && words[1].ends_with("neither saw the other"),
        "{words:?}"
    );
    assert!(words[1].contains("by n1") && words[1].contains("by n2"), "{words:?}");
    assert_eq!(words[2], "all 3 replicas agree", "{words:?}");
}

#[tokio::test]
async fn an_explanation_says_of_each_replica_what_it_lacks() {
    let cluster = start(3).await;
    put_alone(&cluster, 0, "grey").await;
    put_alone(&cluster, 1, "white").await;
    let told = loop {
        let told = words(&cluster, 2).await;
        if told.iter().filter(|words| words.contains("is behind")).count() == 3 {
            break told;
        }
        // They are left alone for a moment after they could not be reached.
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let of = |node: &str| told.iter().find(|words| words.starts_with(node)).unwrap();
    assert!(
        of("n1 is").contains("lacks the write by n2") && of("n1 is").contains("n2 has noted"),
        "{told:?}"
    );
    assert!(
        of("n2 is").contains("lacks the write by n1") && of("n2 is").contains("n1 has noted"),
        "{told:?}"
    );
    assert!(
        of("n3 is").contains("has no copy of the key: n1 and n2 have noted that it lacks the record"),
        "{told:?}"
    );
    assert!(!told.iter().any(|words| words.contains("agree")), "{told:?}");
}

#[tokio::test]
async fn partitions_that_a_node_does_not_hold_are_refused() {
    let cluster = start(4).await;
    let layout = cluster.nodes[0].layout();
    let elsewhere =
        layout.q().partitions().find(|partition| !layout.is_primary(*partition, NodeId(1))).unwrap();
    let none = PartitionId(PARTITIONS);
    for (partition, code) in [(elsewhere, RefusalCode::WrongLayout), (none, RefusalCode::BadRequest)] {
        let refused = cluster.nodes[0].repair(Repair { partition }, cluster.request(0)).await.unwrap_err();
        assert_eq!((refused.code, refused.layouts.is_empty()), (code, code == RefusalCode::BadRequest));
        let refused = cluster.nodes[0].trees(Trees { partition: Some(partition) }).await.unwrap_err();
        assert_eq!(refused.code, code);
    }
    let all = cluster.nodes[0].trees(Trees { partition: None }).await.unwrap();
    assert_eq!(all.trees.len(), layout.partitions_of(NodeId(1)).count());
}

#[tokio::test]
async fn a_client_looks_and_repairs_over_the_binary_protocol() {
    let cluster = start(3).await;
    let config = ClientConfig::new([member(1).client_addr]);
    let (net, clock) = (std::sync::Arc::new(cluster.net.clone()), cluster.clock.clone());
    let client = Client::new(net, clock, [9; 32], config);
    client.put(&key("dove"), "grey", &ringdove::client::WriteOptions::default()).await.unwrap();
    assert_eq!(client.get(&key("dove"), &ReadOptions::default()).await.unwrap().values.len(), 1);
    let told = client.explain(Namespace(0), &key("dove"), None).await.unwrap();
    assert_eq!((told.members.len(), told.words[0].contains("one value")), (3, true), "{:?}", told.words);
    let addr = member(2).client_addr;
    let reply = client.repair(&addr, told.partition, None).await.unwrap();
    assert!(reply.compared.iter().all(|compared| compared.ended == Ended::Done), "{reply:?}");
    assert_eq!(client.trees(&addr, None, None).await.unwrap().trees.len(), PARTITIONS as usize);
    let refused = client.repair(&addr, PartitionId(PARTITIONS), None).await;
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn a_partition_that_waits_to_refill_for_a_primary_that_is_down_is_read_once() {
    let cluster = start_refilling().await;
    let (node, partition) = (&cluster.nodes[0], PartitionId(3));
    let refilled = || node.metrics().partitions_refilled.get();
    cluster.net.close(&member(3).peer_addr);
    let q = node.descriptor().partitions;
    let keys = (0..).map(|n| key(&format!("key{n}")));
    for key in keys.filter(|key| q.partition_of(Namespace(0), key) == partition).take(5) {
        let quorum = Quorum { w: Some(2), ..Quorum::default() };
        let put = Put { quorum, ..Put::new(key, write_id(), "grey") };
        let reply = node.put(put, cluster.request(0)).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
    }
    for round in 1..=4 {
        let reply = node.repair(Repair { partition }, cluster.request(0)).await.unwrap();
        let failed = reply.compared.iter().filter(|compared| compared.ended != Ended::Done);
        assert_eq!(failed.map(|compared| compared.other).collect::<Vec<_>>(), [NodeId(3)], "round {round}");
        assert_eq!((node.metrics().scrubbed.get(), refilled()), (5, 0), "round {round}");
    }
    cluster.net.reopen(&member(3).peer_addr);
    repair(&cluster, 0, partition).await;
    assert_eq!((node.metrics().scrubbed.get(), refilled()), (5, 1), "the reading stood");
    repair(&cluster, 0, partition).await;
    assert_eq!((node.metrics().scrubbed.get(), refilled()), (5, 1));
}

/// Only another node's gossip counts, and of that only an answer to what this node has asked.
#[tokio::test]
async fn made_up_heartbeats_of_a_node_stop_it_at_neither_port() {
    let fast =
        |_, config: &mut ringdove::node::NodeConfig| config.detector.interval = Duration::from_millis(50);
    let cluster = Cluster::start_with(3, fast).await;
    let me = cluster.nodes[0].id();
    let (client, peer) = (cluster.link(0, Spoken::default()).await, cluster.peer_link(0).await);
    let clock = cluster.clock.as_ref();
    let heartbeat = |generation, count| Gossip { heard: vec![(me, Heartbeat { generation, count })] };
    for generation in [3, 4, 5, 1000, 1001, 1 << 40, (1 << 40) + 1, 1 << 62, u64::MAX - 1, u64::MAX] {
        let told = heartbeat(generation, 1 << 50);
        let refused = client.call::<GossipReply>(clock, &told, cluster.peer_head(), cluster.deadline()).await;
        let refused = refused.expect_err("the client port takes no gossip");
        assert!(
            matches!(&refused, CallError::Refused(refusal) if refusal.code == RefusalCode::UnknownOperation),
            "{refused:?}"
        );
        peer.call::<GossipReply>(clock, &told, cluster.peer_head(), cluster.deadline()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!cluster.nodes[0].status().stopping);
    let put = Put {
        quorum: Quorum { w: Some(3), ..Quorum::default() },
        ..Put::new(key("dove"), write_id(), "grey")
    };
    assert_eq!(cluster.nodes[0].put(put, cluster.request(0)).await.unwrap().outcome, PutOutcome::Applied);
}
