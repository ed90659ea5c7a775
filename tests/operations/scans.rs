//! Scans over all partitions, against what was written.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::{Content, Dot, Sibling};
use ringdove::net::message::{
    Commit, CommitReply, Context, Fetch, FetchMany, FetchManyReply, FetchReply, MultiPut, Order, Put,
    PutOutcome, ReapKey, RefusalCode, Scan, ScanKeys, ScanKeysReply, ScanReply, Vote, VoteReply,
};
use ringdove::types::{Key, Namespace, NodeId};

use crate::support::{Cluster, PARTITIONS, key, member, until, write_id};

type Model = BTreeMap<Key, Bytes>;

/// 300 keys, every third deleted again.
async fn filled(cluster: &Cluster) -> Model {
    let mut model = Model::new();
    let name = |number: u32| key(&format!("{}/{number:03}", ["a", "b", "c"][number as usize % 3]));
    let put = |number: u32| Put::new(name(number), write_id(), format!("value{number}"));
    let all = async |puts: Vec<Put>| {
        let reply = cluster.nodes[0].multi_put(MultiPut { puts }, cluster.request(0)).await.unwrap();
        assert!(reply.replies.iter().all(|reply| reply.as_ref().unwrap().outcome == PutOutcome::Applied));
    };
    // On all replicas, so that any of them has them.
    let everywhere = |mut put: Put| {
        put.quorum.w = Some(3);
        put
    };
    all((0..300).map(put).map(everywhere).collect()).await;
    for number in 0..300 {
        model.insert(name(number), format!("value{number}").into());
    }
    let deleted = (0..300).step_by(3).map(|number| Put::delete(name(number), write_id()));
    all(deleted.map(everywhere).collect()).await;
    (0..300).step_by(3).for_each(|number| drop(model.remove(&name(number))));
    model
}

/// All pages of a scan, each asked of the next node.
async fn pages(cluster: &Cluster, mut scan: Scan) -> Vec<ScanReply> {
    let mut pages: Vec<ScanReply> = Vec::new();
    for turn in 0..1000 {
        let at = turn % cluster.nodes.len();
        let page = cluster.nodes[at].scan(scan.clone(), cluster.request(at)).await.unwrap();
        assert!(page.items.len() <= scan.limit as usize);
        scan.after.clone_from(&page.cursor);
        let is_last = !page.more;
        pages.push(page);
        if is_last {
            return pages;
        }
    }
    panic!("a scan without end");
}

fn found(pages: &[ScanReply]) -> Vec<(Key, Bytes)> {
    let items = pages.iter().flat_map(|page| &page.items);
    items.map(|item| (item.key.clone(), item.values[0].value.clone())).collect()
}

#[tokio::test]
async fn a_scan_returns_every_live_key_once_in_order_in_both_directions() {
    let cluster = Cluster::start(5).await;
    let model = filled(&cluster).await;
    let up: Vec<(Key, Bytes)> = model.clone().into_iter().collect();
    let down: Vec<(Key, Bytes)> = model.into_iter().rev().collect();
    for limit in [1, 7, 100, 1000] {
        for (order, expected) in [(Order::Ascending, &up), (Order::Descending, &down)] {
            let read = pages(&cluster, Scan { limit, order, ..Scan::all() }).await;
            assert_eq!(&found(&read), expected, "limit {limit}, {order:?}");
            assert!(read.iter().all(|page| page.missing.is_empty()));
        }
    }
}

#[tokio::test]
async fn a_prefix_and_a_range_hold_what_lies_inside_and_nothing_else() {
    let cluster = Cluster::start(4).await;
    let model = filled(&cluster).await;
    let inside = |holds: &dyn Fn(&[u8]) -> bool| -> Vec<(Key, Bytes)> {
        model.clone().into_iter().filter(|(key, _)| holds(key.as_bytes())).collect()
    };
    for (order, limit) in [(Order::Ascending, 9), (Order::Descending, 9), (Order::Ascending, 1000)] {
        let turned = |mut keys: Vec<(Key, Bytes)>| {
            if order == Order::Descending {
                keys.reverse();
            }
            keys
        };
        let read = pages(&cluster, Scan { order, limit, ..Scan::prefix(b"b/") }).await;
        assert_eq!(found(&read), turned(inside(&|key| key.starts_with(b"b/"))));
        let (from, to) = (Bytes::from_static(b"b/100"), Bytes::from_static(b"c/050"));
        let read = pages(&cluster, Scan { order, limit, from, to, ..Scan::all() }).await;
        assert_eq!(found(&read), turned(inside(&|key| (&b"b/100"[..]..&b"c/050"[..]).contains(&key))));
    }
    let keys = pages(&cluster, Scan { keys_only: true, ..Scan::prefix(b"c/") }).await;
    let keys = found(&keys);
    assert!(keys.len() > 10 && keys.iter().all(|(_, value)| value.is_empty()));
}

#[tokio::test]
async fn a_scan_of_more_replicas_merges_what_they_hold_and_its_context_overwrites_it() {
    let cluster = Cluster::start(3).await;
    for value in ["one", "two"] {
        let reply =
            cluster.nodes[0].put(Put::new(key("dove"), write_id(), value), cluster.request(0)).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
    }
    let page = cluster.nodes[1].scan(Scan { r: Some(3), ..Scan::all() }, cluster.request(1)).await.unwrap();
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].values.len(), 2);
    let context = Context::Token(page.items[0].context.clone());
    let put = Put { context, ..Put::new(key("dove"), write_id(), "both") };
    let reply = cluster.nodes[2].put(put, cluster.request(2)).await.unwrap();
    assert_eq!(reply.overwrote.len(), 2);
}

#[tokio::test]
async fn a_page_does_not_pass_what_it_cannot_read_unless_it_is_told_to() {
    // Node 5 holds nothing of its own; of the others any two hold some partition alone.
    let cluster = Cluster::start(5).await;
    let model = filled(&cluster).await;
    for (id, node) in (1..).zip(&cluster.nodes).filter(|(id, _)| (2..=4).contains(id)) {
        cluster.net.close(&member(id).peer_addr);
        node.stop();
    }
    let layout = cluster.nodes[0].layout();
    let gone = [NodeId(2), NodeId(3), NodeId(4)];
    let lost: Vec<_> = layout
        .q()
        .partitions()
        .filter(|partition| layout.primaries(*partition).iter().all(|node| gone.contains(node)))
        .collect();
    assert!(!lost.is_empty(), "the test needs a partition that only the three hold");

    // Links that stood are noticed as broken by the first page or two.
    let mut page = None;
    for _ in 0..20 {
        let answered = cluster.nodes[0].scan(Scan::all(), cluster.request(0)).await;
        page = answered.ok().filter(|page| page.missing == lost).or(page);
        if page.is_some() {
            break;
        }
    }
    let page = page.expect("the pages name what is lost");
    assert_eq!((page.items.len(), page.more, page.cursor), (0, true, None));

    let partial = Scan { partial: true, limit: 1000, ..Scan::all() };
    let page = cluster.nodes[0].scan(partial, cluster.request(0)).await.unwrap();
    let there = |key: &Key| !lost.contains(&layout.q().partition_of(Default::default(), key));
    let expected: Vec<(Key, Bytes)> = model.into_iter().filter(|(key, _)| there(key)).collect();
    assert_eq!((found(std::slice::from_ref(&page)), page.missing), (expected, lost));
}

/// Of a partition with one primary gone two of three still answer: what they hold is less than was asked for.
#[tokio::test]
async fn a_partial_page_shows_nothing_that_fewer_than_r_could_read() {
    let mut cluster = Cluster::start(5).await;
    let model = filled(&cluster).await;
    cluster.net.close(&member(5).peer_addr);
    // Pages are asked of the others alone: the one that is gone still has its own copies.
    cluster.nodes.pop().unwrap().stop();
    let layout = cluster.nodes[0].layout();
    let lost: Vec<_> =
        layout.q().partitions().filter(|partition| layout.is_primary(*partition, NodeId(5))).collect();
    assert!((1..PARTITIONS as usize).contains(&lost.len()), "{lost:?}");
    let there = |key: &Key| !lost.contains(&layout.q().partition_of(Default::default(), key));
    let up: Vec<(Key, Bytes)> = model.into_iter().filter(|(key, _)| there(key)).collect();
    let down: Vec<(Key, Bytes)> = up.iter().rev().cloned().collect();
    // Links that stood are noticed as broken by the first page or two.
    let mut noticed = 0;
    while cluster.nodes[0].scan(Scan { r: Some(3), ..Scan::all() }, cluster.request(0)).await.unwrap().missing
        != lost
    {
        noticed += 1;
        assert!(noticed < 20, "the pages name what is lost");
    }
    for (limit, order, expected) in [
        (1000, Order::Ascending, &up),
        (7, Order::Ascending, &up),
        (1, Order::Descending, &down),
        (100, Order::Descending, &down),
    ] {
        let scan = Scan { partial: true, r: Some(3), limit, order, ..Scan::all() };
        let read = pages(&cluster, scan).await;
        assert_eq!(&found(&read), expected, "limit {limit}, {order:?}");
        assert!(read.iter().all(|page| page.missing == lost), "limit {limit}, {order:?}");
    }
    // Fewer are enough for who asks for fewer.
    let page = cluster.nodes[0]
        .scan(Scan { partial: true, r: Some(2), limit: 1000, ..Scan::all() }, cluster.request(0));
    assert_eq!(page.await.unwrap().missing, []);
}

#[tokio::test]
async fn a_page_costs_one_list_of_its_length_from_each_node_however_many_partitions_there_are() {
    let cluster = Cluster::start(3).await;
    filled(&cluster).await;
    // What a peer answers for all its partitions together.
    let link = cluster.peer_link(0).await;
    let head = cluster.peer_head();
    let keys = ScanKeys {
        namespace: Default::default(),
        from: Bytes::new(),
        to: Bytes::new(),
        order: Order::Ascending,
        after: None,
        limit: 10,
        partitions: (0..PARTITIONS).map(ringdove::types::PartitionId).collect(),
    };
    let clock = cluster.clock.as_ref();
    let list: ScanKeysReply = link.call(clock, &keys, head, cluster.deadline()).await.unwrap();
    assert_eq!((list.keys.len(), list.more, list.unready.len()), (10, true, 0));
    let fetch =
        FetchMany { namespace: keys.namespace, keys: list.keys.into_iter().map(|held| held.key).collect() };
    let records: FetchManyReply = link.call(clock, &fetch, head, cluster.deadline()).await.unwrap();
    assert!(records.records.len() == 10 && records.records.iter().all(|record| record.is_ok()));
    // A partition that is none is not answered for.
    let none = ScanKeys { partitions: vec![ringdove::types::PartitionId(u32::MAX)], ..keys };
    let list: ScanKeysReply = link.call(clock, &none, head, cluster.deadline()).await.unwrap();
    assert_eq!(list.unready.len(), 1);
}

/// A round that two of three nodes have gone through takes siblings of a key away: all of these values.
async fn forget(cluster: &Cluster, name: &str, values: &[&str]) {
    let (clock, head) = (cluster.clock.as_ref(), cluster.peer_head());
    let partition = PartitionCount::new(PARTITIONS).unwrap().partition_of(Namespace::default(), &key(name));
    // All votes come before the first commit: who hears of a round that is committed without it gives up what it holds.
    let mut voters = Vec::new();
    for at in [1, 2] {
        let link = cluster.peer_link(at).await;
        let fetch = Fetch { namespace: Namespace::default(), key: key(name), unless: None };
        let held: FetchReply = link.call(clock, &fetch, head, cluster.deadline()).await.unwrap();
        let record = held.record.unwrap();
        let is_gone = |sibling: &&Sibling| {
            values.iter().any(|value| sibling.content == Content::Value(Bytes::from(value.to_string())))
        };
        let drop: Vec<Dot> = record.siblings().iter().filter(is_gone).map(|sibling| sibling.dot).collect();
        assert_eq!(drop.len(), values.len());
        let version_hash = record.version_hash();
        let reap = ReapKey { namespace: fetch.namespace, key: fetch.key, version_hash, drop };
        let vote = Vote { partition, fence: 1, keys: vec![reap.clone()] };
        // It votes once it has asked the others whether its disk is the one that voted last.
        until(async || {
            let voted: VoteReply = link.call(clock, &vote, head, cluster.deadline()).await.unwrap();
            voted.fences.raised == 1
        })
        .await;
        voters.push((link, reap));
    }
    for (link, reap) in voters {
        let commit = Commit { partition, fence: 1, keys: vec![reap] };
        let done: CommitReply = link.call(clock, &commit, head, cluster.deadline()).await.unwrap();
        assert_eq!(done.reaped, 1);
    }
}

#[tokio::test]
async fn a_page_shows_nothing_beside_copies_that_have_let_it_go() {
    let cluster =
        Cluster::start_with(3, |_, config| config.anti_entropy_interval = Duration::from_secs(3600)).await;
    for (name, value) in [("dove", "old"), ("dove", "new"), ("crow", "gone")] {
        let mut put = Put::new(key(name), write_id(), value);
        put.quorum.w = Some(3);
        let reply = cluster.nodes[1].put(put, cluster.request(1)).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
    }
    forget(&cluster, "dove", &["old"]).await;
    forget(&cluster, "crow", &["gone"]).await;
    // The first node has not voted, with the disk that it has; it gives up what it holds as soon as it hears of the round.
    until(async || {
        let scan = Scan { r: Some(2), ..Scan::all() };
        let page = cluster.nodes[0].scan(scan, cluster.request(0)).await.unwrap();
        let shown: Vec<&Bytes> =
            page.items.iter().flat_map(|item| &item.values).map(|version| &version.value).collect();
        assert!(shown.iter().all(|value| *value == "new"), "{shown:?}");
        shown.len() == 1 && page.missing.is_empty() && !page.more
    })
    .await;
}

#[tokio::test]
async fn a_scan_that_makes_no_sense_is_refused() {
    let cluster = Cluster::start(3).await;
    for scan in [
        Scan { limit: 0, ..Scan::all() },
        Scan { limit: 1001, ..Scan::all() },
        Scan { r: Some(0), ..Scan::all() },
        Scan { r: Some(4), ..Scan::all() },
    ] {
        let refused = cluster.nodes[0].scan(scan, cluster.request(0)).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::BadRequest);
    }
}
