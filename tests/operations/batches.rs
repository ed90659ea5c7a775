//! Multi-get, multi-put, multi-delete.

use bytes::Bytes;
use ringdove::net::message::{
    BATCH_ITEMS_MAX, Condition, Get, MultiGet, MultiPut, Put, PutOutcome, Quorum, RefusalCode,
};
use ringdove::node::metrics::{Door, Operation, Outcome};

use crate::support::{Cluster, key, member, write_id};

fn put(number: usize) -> Put {
    Put::new(key(&format!("key{number}")), write_id(), format!("value{number}"))
}

fn gets(numbers: std::ops::Range<usize>) -> MultiGet {
    let quorum = Quorum { r: Some(3), ..Quorum::default() };
    MultiGet { gets: numbers.map(|number| Get { quorum, ..Get::new(put(number).key) }).collect() }
}

#[tokio::test]
async fn each_item_of_a_batch_has_its_own_outcome_in_its_own_place() {
    let cluster = Cluster::start(5).await;
    let mut puts: Vec<Put> = (0..200).map(put).collect();
    puts[7].quorum.w = Some(9);
    puts[11].condition = Condition::Absent;
    puts[13] = put(12);
    let reply = cluster.nodes[2].multi_put(MultiPut { puts }, cluster.request(2)).await.unwrap();
    for (at, reply) in reply.replies.iter().enumerate() {
        match (at, reply) {
            (7 | 13, Err(refusal)) => assert_eq!(refusal.code, RefusalCode::BadRequest, "{at}"),
            (_, Ok(reply)) => assert_eq!(reply.outcome, PutOutcome::Applied, "{at}"),
            (_, Err(refusal)) => panic!("{at}: {refusal:?}"),
        }
    }
    let read = cluster.nodes[4].multi_get(gets(0..200), cluster.request(4)).await.unwrap();
    for (at, reply) in read.replies.into_iter().enumerate() {
        let values: Vec<Bytes> = reply.unwrap().values.into_iter().map(|version| version.value).collect();
        let expected: Vec<Bytes> =
            if matches!(at, 7 | 13) { Vec::new() } else { vec![format!("value{at}").into()] };
        assert_eq!(values, expected, "{at}");
    }

    let puts = (0..200).map(|number| Put::delete(put(number).key, write_id())).collect();
    let deleted = cluster.nodes[0].multi_put(MultiPut { puts }, cluster.request(0)).await.unwrap();
    assert!(deleted.replies.iter().all(|reply| reply.as_ref().unwrap().outcome == PutOutcome::Applied));
    let read = cluster.nodes[1].multi_get(gets(0..200), cluster.request(1)).await.unwrap();
    assert!(read.replies.iter().all(|reply| reply.as_ref().unwrap().values.is_empty()));
}

#[tokio::test]
async fn a_batch_goes_on_to_each_primary_once_a_partition() {
    let cluster = Cluster::start(5).await;
    let puts = (0..200).map(put).collect();
    cluster.nodes[0].multi_put(MultiPut { puts }, cluster.request(0)).await.unwrap();
    let passed_on: u64 = cluster.nodes[1..]
        .iter()
        .map(|node| node.metrics().requests(Operation::MultiPut, Door::Peer, Outcome::Done).count())
        .sum();
    let partitions = u64::from(crate::support::PARTITIONS);
    assert!((1..=partitions).contains(&passed_on), "{passed_on} messages for 200 keys");
}

#[tokio::test]
async fn a_batch_that_is_too_long_is_refused_as_a_whole() {
    let cluster = Cluster::start(3).await;
    let puts = (0..=BATCH_ITEMS_MAX).map(put).collect();
    let refused = cluster.nodes[0].multi_put(MultiPut { puts }, cluster.request(0)).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::TooLarge);
    let refused =
        cluster.nodes[0].multi_get(gets(0..BATCH_ITEMS_MAX + 1), cluster.request(0)).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::TooLarge);
}

#[tokio::test]
async fn what_a_reply_has_no_room_for_is_refused_and_may_be_asked_for_again() {
    let cluster = Cluster::start(3).await;
    for number in 0..5 {
        let large = Put::new(put(number).key, write_id(), vec![0; 6 * 1024 * 1024]);
        let reply = cluster.nodes[0].put(large, cluster.request(0)).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
    }
    let mut from = 0;
    while from < 5 {
        let read = cluster.nodes[0].multi_get(gets(from..5), cluster.request(0)).await.unwrap();
        assert_eq!(read.replies.len(), 5 - from);
        let here = read.replies.iter().take_while(|reply| reply.is_ok()).count();
        assert!((1..=2).contains(&here), "{here} values of 6 MiB fit");
        let codes = read.replies[here..].iter().map(|reply| reply.as_ref().unwrap_err().code);
        assert!(codes.into_iter().all(|code| code == RefusalCode::TooLarge));
        from += here;
    }
}

#[tokio::test]
async fn a_batch_goes_past_a_node_that_cannot_be_reached() {
    let cluster = Cluster::start(5).await;
    cluster.net.close(&member(2).peer_addr);
    let puts = (0..200).map(put).collect();
    let reply = cluster.nodes[0].multi_put(MultiPut { puts }, cluster.request(0)).await.unwrap();
    for (at, reply) in reply.replies.iter().enumerate() {
        assert_eq!(reply.as_ref().unwrap().outcome, PutOutcome::Applied, "{at}");
    }
}
