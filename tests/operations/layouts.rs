//! A new layout version reaches a cluster under load.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringdove::dynamo::layout::{Layout, Member};
use ringdove::net::envelope::{Frame, FrameHead};
use ringdove::net::message::{
    Get, GetLayout, GetReply, LayoutReply, Message, Put, PutOutcome, Quorum, RefusalCode, Spoken,
};
use ringdove::storage::directory;
use ringdove::types::{Key, LayoutRef};

use crate::support::{Cluster, key, member, write_id};

/// The layout that follows, with other capacities, so that primaries change.
fn next(layout: &Layout) -> Vec<Arc<Layout>> {
    let members = layout.members().iter().map(|member| Member {
        capacity: if member.id.0 == 5 { 10 } else { 5 + u32::try_from(member.id.0).unwrap() },
        ..member.clone()
    });
    let next = layout.next(members.collect()).unwrap();
    vec![Arc::new(next), Arc::new(layout.clone())]
}

fn current(cluster: &Cluster) -> Vec<LayoutRef> {
    cluster.nodes.iter().map(|node| node.layout().reference()).collect()
}

/// Writes until it is told to stop; the keys.
async fn write(cluster: Arc<Cluster>, writer: usize, stop: Arc<AtomicBool>) -> Vec<Key> {
    let mut keys = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let key = key(&format!("{writer}/{}", keys.len()));
        let at = (writer + keys.len()) % cluster.nodes.len();
        let quorum = Quorum { r: None, w: Some(2), strict: true };
        let put = Put { quorum, ..Put::new(key.clone(), write_id(), "grey") };
        let reply = cluster.nodes[at].put(put, cluster.request(at)).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied, "{key} by node {at}");
        keys.push(key);
        tokio::task::yield_now().await;
    }
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_layout_reaches_every_node_under_load_and_nothing_is_lost() {
    let cluster = Arc::new(Cluster::start(5).await);
    let first = cluster.nodes[0].layout();
    let layouts = next(&first);
    let moved = first
        .q()
        .partitions()
        .filter(|partition| first.primaries(*partition) != layouts[0].primaries(*partition))
        .count();
    assert!(moved > 0, "the test needs a layout that moves something");

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..4).map(|writer| tokio::spawn(write(cluster.clone(), writer, stop.clone()))).collect();
    let written = || cluster.nodes.iter().map(|node| node.status().data_keys).sum::<u64>();
    // A writer that has failed would be waited for in vain.
    let until = async |reached: &dyn Fn() -> bool| {
        while !reached() {
            assert!(!writers.iter().any(|writer| writer.is_finished()), "a write was not applied");
            tokio::task::yield_now().await;
        }
    };
    until(&|| written() > 300).await;
    cluster.nodes[2].adopt_layouts(layouts.clone()).await.unwrap();
    let second = layouts[0].reference();
    until(&|| current(&cluster).iter().all(|layout| *layout == second)).await;
    let before = written();
    until(&|| written() > before + 300).await;
    stop.store(true, Ordering::SeqCst);
    let mut keys = Vec::new();
    for writer in writers {
        keys.extend(writer.await.unwrap());
    }
    for (at, key) in keys.iter().enumerate() {
        let at = at % cluster.nodes.len();
        let quorum = Quorum { r: Some(2), w: None, strict: true };
        let reply = cluster.nodes[at].get(Get { quorum, ..Get::new(key.clone()) }, cluster.request(at)).await;
        assert_eq!(reply.unwrap().values.len(), 1, "{key}");
    }
    // It was written down before it was gone by.
    for (node, disk) in cluster.nodes.iter().zip(&cluster.disks) {
        let meta = directory::read(disk.as_ref(), Path::new("/data")).await.unwrap().unwrap();
        assert_eq!(meta.node, node.id());
        let on_disk: Vec<LayoutRef> = meta.layouts.iter().map(|layout| layout.reference()).collect();
        assert_eq!(on_disk, [second, first.reference()]);
    }
}

#[tokio::test]
async fn a_client_with_an_old_layout_is_served_and_told_of_the_new_one() {
    let cluster = Cluster::start(5).await;
    let old = cluster.nodes[0].layout().reference();
    let layouts = next(&cluster.nodes[0].layout());
    let link = cluster.link(0, Spoken::default()).await;
    assert_eq!(link.welcome().layout, old);
    cluster.nodes[0].adopt_layouts(layouts.clone()).await.unwrap();

    let head = FrameHead { version: link.welcome().version, layout: old, ..FrameHead::default() };
    let get = Get::new(key("dove")).to_frame(head).unwrap();
    let answer: Frame = link.exchange(cluster.clock.as_ref(), get, cluster.deadline()).await.unwrap();
    assert_eq!(answer.head.layout, layouts[0].reference());
    assert!(GetReply::from_frame(&answer).is_ok());
    let reply: LayoutReply =
        link.call(cluster.clock.as_ref(), &GetLayout, head, cluster.deadline()).await.unwrap();
    assert_eq!(reply.active, layouts);
}

#[tokio::test]
async fn of_two_layouts_made_at_once_the_same_one_wins_on_every_node() {
    let cluster = Cluster::start(5).await;
    let first = cluster.nodes[0].layout();
    let one = next(&first);
    let other = {
        let members = (1..=5).map(|id| Member { capacity: if id == 1 { 9 } else { 5 }, ..member(id) });
        vec![Arc::new(first.next(members.collect()).unwrap()), Arc::new(Layout::clone(&first))]
    };
    cluster.nodes[0].adopt_layouts(one.clone()).await.unwrap();
    cluster.nodes[1].adopt_layouts(other.clone()).await.unwrap();
    let winner = one[0].reference().max_by_hash(other[0].reference());
    let put = async |number: usize| {
        let quorum = Quorum { w: Some(3), ..Quorum::default() };
        let put = Put { quorum, ..Put::new(key(&format!("{number}")), write_id(), "grey") };
        cluster.nodes[number % 5].put(put, cluster.request(number % 5)).await.unwrap().outcome
    };
    // A write that began under the one that lost may meet nodes that are no primaries any more: then nobody knows.
    for number in 0..50 {
        put(number).await;
    }
    assert_eq!(current(&cluster), vec![winner; 5]);
    for number in 50..100 {
        assert_eq!(put(number).await, PutOutcome::Applied);
    }
}

trait MaxByHash {
    fn max_by_hash(self, other: LayoutRef) -> LayoutRef;
}

impl MaxByHash for LayoutRef {
    fn max_by_hash(self, other: LayoutRef) -> LayoutRef {
        if self.hash > other.hash { self } else { other }
    }
}

#[tokio::test]
async fn a_layout_of_another_shape_or_without_a_history_is_refused() {
    let cluster = Cluster::start(5).await;
    let node = &cluster.nodes[0];
    let before = node.layout().reference();
    let partitions = ringdove::dynamo::ring::PartitionCount::new(32).unwrap();
    let other = Layout::first(partitions, 3, (1..=5).map(member).collect()).unwrap();
    assert!(node.adopt_layouts(vec![Arc::new(other)]).await.is_err());
    assert!(node.adopt_layouts(Vec::new()).await.is_err());
    assert_eq!(node.layout().reference(), before);
    // A peer that hands in garbage is refused, too.
    let link = cluster.peer_link(0).await;
    let offer = ringdove::net::message::OfferLayouts { active: Vec::new() };
    let clock = cluster.clock.as_ref();
    let refused = link
        .call::<ringdove::net::message::OfferLayoutsReply>(
            clock,
            &offer,
            FrameHead::default(),
            cluster.deadline(),
        )
        .await;
    let Err(ringdove::net::link::CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, RefusalCode::WrongLayout);
}
