//! Get, put, delete and their options.

use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use ringdove::dynamo::version::{ActorMint, Caps, Content, LocalCopy, Meta, Overwrite, Record, Write};
use ringdove::net::message::{
    Condition, Context, Durability, Expiry, Fetch, FetchReply, Get, HiddenWhy, PeerDown, PeerState, Put,
    PutOutcome, PutReply, Quorum, Refusal, RefusalCode, Resolve, Store, StoreReply,
};
use ringdove::node::metrics::{Door, Operation, Outcome};
use ringdove::types::{Incarnation, Key, TraceId, Wall, WriteId};

use crate::support::{Cluster, key, until, write_id};

fn put_of(name: &str, value: &'static str) -> Put {
    Put::new(key(name), write_id(), value)
}

async fn applied(cluster: &Cluster, at: usize, put: Put) -> PutReply {
    let reply = cluster.nodes[at].put(put, cluster.request(at)).await.unwrap();
    assert_eq!(reply.outcome, PutOutcome::Applied);
    reply
}

async fn refused(cluster: &Cluster, put: Put) -> RefusalCode {
    cluster.nodes[0].put(put, cluster.request(0)).await.unwrap_err().code
}

/// Reads from all replicas.
fn get_of(key: Key) -> Get {
    Get { quorum: Quorum { r: Some(3), w: None, strict: false }, ..Get::new(key) }
}

async fn values(cluster: &Cluster, at: usize, get: Get) -> Vec<Bytes> {
    let reply = cluster.nodes[at].get(get, cluster.request(at)).await.unwrap();
    reply.values.into_iter().map(|version| version.value).collect()
}

#[tokio::test]
async fn a_write_if_absent_is_made_once_and_again_after_a_deletion() {
    let cluster = Cluster::start(4).await;
    let if_absent = || Put { condition: Condition::Absent, ..put_of("dove", "grey") };
    applied(&cluster, 0, if_absent()).await;
    for at in 0..4 {
        let again = cluster.nodes[at].put(if_absent(), cluster.request(at)).await;
        assert_eq!(again.unwrap_err().code, RefusalCode::Conflict, "by node {at}");
    }
    assert_eq!(values(&cluster, 1, get_of(key("dove"))).await, ["grey"]);
    applied(&cluster, 1, Put::delete(key("dove"), write_id())).await;
    applied(&cluster, 2, if_absent()).await;
}

#[tokio::test]
async fn a_write_if_match_overwrites_what_was_read_and_nothing_else() {
    let cluster = Cluster::start(4).await;
    applied(&cluster, 0, put_of("dove", "grey")).await;
    let token = cluster.nodes[1].get(get_of(key("dove")), cluster.request(1)).await.unwrap().context;
    let if_match = |value| Put { condition: Condition::Match(token.clone()), ..put_of("dove", value) };
    let written = applied(&cluster, 2, if_match("white")).await;
    assert_eq!(written.overwrote.len(), 1);
    assert_eq!(refused(&cluster, if_match("brown")).await, RefusalCode::Conflict);
    assert_eq!(values(&cluster, 3, get_of(key("dove"))).await, ["white"]);

    let delete = Put { context: Context::Nothing, value: None, ..if_match("") };
    assert_eq!(refused(&cluster, delete).await, RefusalCode::Conflict, "a deletion may have a condition too");
    let newest = Put { condition: Condition::Match(written.context), ..put_of("dove", "mottled") };
    applied(&cluster, 0, newest).await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let cluster = Cluster::start(3).await;
    let put = || put_of("dove", "grey");
    let w = |w| Quorum { w: Some(w), ..Quorum::default() };
    let meta = |bytes: usize| {
        let pairs = [("name".to_owned(), "x".repeat(bytes - 4))].into();
        Some(Box::new(Meta { content_type: None, pairs }))
    };
    let bad = [
        Put { quorum: w(0), ..put() },
        Put { quorum: w(4), ..put() },
        Put { expiry: Expiry::After(0), ..put() },
        Put { value: None, expiry: Expiry::After(5), ..put() },
        Put { durability: Some(Durability::Interval(0)), ..put() },
        Put { durability: Some(Durability::Interval(60_001)), ..put() },
        Put { context: Context::Read, ..put() },
        Put { context: Context::Current, condition: Condition::Absent, ..put() },
        Put { value: None, condition: Condition::Absent, ..put() },
        Put { condition: Condition::Absent, quorum: Quorum { r: Some(9), ..Quorum::default() }, ..put() },
    ];
    for put in bad {
        assert_eq!(refused(&cluster, put.clone()).await, RefusalCode::BadRequest, "{put:?}");
    }
    assert_eq!(refused(&cluster, Put { meta: meta(4097), ..put() }).await, RefusalCode::TooLarge);
    let damaged = Put { condition: Condition::Match(Bytes::from_static(b"?")), ..put() };
    assert_eq!(refused(&cluster, damaged).await, RefusalCode::BadToken);
    assert!(values(&cluster, 0, get_of(key("dove"))).await.is_empty());
    applied(&cluster, 0, Put { meta: meta(4096), ..put() }).await;
}

#[tokio::test]
async fn a_value_is_there_for_its_time_to_live_and_is_then_named_as_expired() {
    let cluster = Cluster::start(3).await;
    let put = Put { expiry: Expiry::After(60_000), return_record: true, ..put_of("dove", "grey") };
    let written = applied(&cluster, 0, put).await.written.expect("it was asked for");
    assert_eq!(written.expires_at.unwrap().0 - written.written_at.0, 60_000);
    cluster.clock.move_wall(Duration::from_secs(59));
    assert_eq!(values(&cluster, 1, get_of(key("dove"))).await, ["grey"]);
    cluster.clock.move_wall(Duration::from_secs(1));
    let reply = cluster.nodes[2].get(get_of(key("dove")), cluster.request(2)).await.unwrap();
    assert_eq!((reply.values.len(), reply.expired), (0, 1));
    assert_eq!(reply.hidden[0].why, HiddenWhy::Expired);
    // What has expired counts as absent.
    applied(&cluster, 1, Put { condition: Condition::Absent, ..put_of("dove", "white") }).await;
}

#[tokio::test]
async fn the_last_write_wins_only_for_who_asks_for_it() {
    let cluster = Cluster::start(3).await;
    applied(&cluster, 0, put_of("dove", "first")).await;
    cluster.clock.move_wall(Duration::from_secs(1));
    let beside = applied(&cluster, 0, put_of("dove", "second")).await;
    assert_eq!(beside.siblings.len(), 1, "a context comes with every sibling that it covers");
    let lww = || Get { resolve: Resolve::Lww, ..get_of(key("dove")) };
    assert_eq!(values(&cluster, 1, lww()).await, ["second"]);
    assert_eq!(values(&cluster, 1, get_of(key("dove"))).await.len(), 2);
    let reply = cluster.nodes[2].get(lww(), cluster.request(2)).await.unwrap();
    assert_eq!(reply.hidden.iter().map(|hidden| hidden.why).collect::<Vec<_>>(), [HiddenWhy::Older]);
    let both = Put { context: Context::Token(reply.context), ..put_of("dove", "third") };
    assert_eq!(applied(&cluster, 1, both).await.overwrote.len(), 2);
}

#[tokio::test]
async fn a_write_from_memory_is_acknowledged_and_read_before_its_interval_is_over() {
    let cluster = Cluster::start(4).await;
    let put = Put {
        durability: Some(Durability::Interval(60_000)),
        quorum: Quorum { w: Some(3), ..Quorum::default() },
        ..put_of("dove", "grey")
    };
    // The test's limit is below the interval: who waited for the disk's timer would not answer.
    applied(&cluster, 0, put).await;
    assert_eq!(values(&cluster, 3, get_of(key("dove"))).await, ["grey"]);
}

#[tokio::test]
async fn a_reply_holds_what_was_asked_for_and_says_who_answered() {
    let cluster = Cluster::start(4).await;
    let plain = applied(&cluster, 0, put_of("dove", "grey")).await;
    assert_eq!(plain.written, None);
    assert!(plain.dot.is_some() && !plain.context.is_empty());
    assert!(plain.replicas.primaries.len() >= 2);
    assert_eq!(plain.replicas.layout, cluster.nodes[0].layout().reference());
    let put = Put { return_record: true, context: Context::Current, ..put_of("dove", "white") };
    let id = put.write_id;
    let full = applied(&cluster, 0, put).await;
    let written = full.written.unwrap();
    assert_eq!((written.write_id, written.value, Some(written.dot)), (id, "white".into(), full.dot));
}

#[tokio::test]
async fn a_request_without_time_or_room_is_refused_and_counted() {
    let cluster = Cluster::start_with(3, |id, config| config.in_flight_max = usize::from(id != 1)).await;
    let node = &cluster.nodes[0];
    let code = |refused: Refusal| refused.code;
    let zero = node.request(Door::Rest, Some(Duration::ZERO), TraceId::default());
    assert_eq!(zero.map(|_| ()).map_err(code), Err(RefusalCode::BadRequest));
    let refused = node.put(put_of("dove", "grey"), cluster.request(0)).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Overloaded);
    assert!(refused.retry_after_ms.is_some());
    assert_eq!(node.metrics().shed_in_flight.get(), 1);
    assert_eq!(node.metrics().requests(Operation::Put, Door::Rest, Outcome::Shed).count(), 1);
    assert_eq!(node.metrics().in_flight(), 0);

    // Its asker has stopped waiting: no dot is made for it.
    let mut late = cluster.request(1);
    late.deadline = late.received;
    let refused = cluster.nodes[1].put(put_of("dove", "grey"), late).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Overloaded);
    assert_eq!(cluster.nodes[1].metrics().shed_late.get(), 1);
    assert!(values(&cluster, 1, Get::new(key("dove"))).await.is_empty());
}

#[tokio::test]
async fn a_request_that_would_wait_longer_than_it_has_is_refused_before_it_begins() {
    let cluster = Cluster::start(3).await;
    let node = &cluster.nodes[0];
    let get = || node.get(Get::new(key("dove")), cluster.request(0));
    // In progress, and nobody goes on with them.
    let mut slow: Vec<_> = (0..64).map(|_| Box::pin(get())).collect();
    for get in &mut slow {
        assert!(std::future::poll_fn(|context| Poll::Ready(get.as_mut().poll(context).is_pending())).await);
    }
    assert_eq!(node.metrics().in_flight(), 64);
    // Beside them at most a hundred are done a second.
    for _ in 0..30 {
        get().await.unwrap();
        cluster.clock.move_mono(Duration::from_millis(10));
    }
    let within =
        |ms: u64| node.request(Door::Rest, Some(Duration::from_millis(ms)), TraceId::default()).unwrap();
    let refused = node.put(put_of("dove", "grey"), within(500)).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Overloaded);
    assert!(refused.retry_after_ms.is_some_and(|ms| ms > 500));
    assert_eq!((node.metrics().shed_wait.get(), node.metrics().in_flight()), (1, 64));
    // Nothing was done; who has the time is served; and when there is room everybody is.
    assert!(node.get(Get::new(key("dove")), within(60_000)).await.unwrap().values.is_empty());
    drop(slow);
    assert_eq!(node.put(put_of("dove", "grey"), within(500)).await.unwrap().outcome, PutOutcome::Applied);
}

#[tokio::test]
async fn one_write_id_that_came_twice_is_one_value() {
    let cluster = Cluster::start(3).await;
    let put = Put::new(key("dove"), WriteId(42), "grey");
    applied(&cluster, 0, put.clone()).await;
    applied(&cluster, 1, put).await;
    assert_eq!(values(&cluster, 2, get_of(key("dove"))).await, ["grey"]);
}

#[tokio::test]
async fn a_replica_that_holds_the_same_sends_nothing_and_any_other_state_is_sent_whole() {
    let cluster = Cluster::start(3).await;
    let all = Quorum { w: Some(3), ..Quorum::default() };
    let put = |value| Put { context: Context::Current, quorum: all, ..put_of("dove", value) };
    applied(&cluster, 0, put("grey")).await;
    let link = cluster.peer_link(0).await;
    let fetch = async |name: &str, unless: Option<u64>| -> Option<Record> {
        let fetch = Fetch { namespace: Default::default(), key: key(name), unless };
        let (clock, head) = (cluster.clock.as_ref(), cluster.peer_head());
        let reply: FetchReply = link.call(clock, &fetch, head, cluster.deadline()).await.unwrap();
        reply.record
    };
    let grey = fetch("dove", None).await.unwrap();
    let hash = Some(grey.version_hash());
    assert_eq!(fetch("dove", hash).await, None);
    assert_eq!(fetch("dove", Some(1)).await, Some(grey));
    assert_eq!(fetch("stork", hash).await, Some(Record::new()));
    applied(&cluster, 0, put("white")).await;
    let white = fetch("dove", hash).await.unwrap();
    assert_eq!(fetch("dove", Some(white.version_hash())).await, None);
}

#[tokio::test]
async fn replicas_that_agree_look_at_no_record_and_those_behind_are_repaired() {
    let cluster = Cluster::start(3).await;
    let all = Quorum { r: Some(3), w: Some(3), strict: true };
    applied(&cluster, 0, Put { quorum: all, ..put_of("dove", "grey") }).await;
    let looks = |at: usize| {
        let stats = cluster.nodes[at].storage_stats();
        stats.cache_hits + stats.cache_misses
    };
    let before = [looks(0), looks(1), looks(2)];
    let get = Get { quorum: all, ..get_of(key("dove")) };
    assert_eq!(values(&cluster, 0, get.clone()).await, ["grey"]);
    assert_eq!([looks(0), looks(1), looks(2)], [before[0] + 1, before[1], before[2]]);

    // Node 2 alone has a later write: the reader's own copy and the one that is the same are both behind.
    let link = cluster.peer_link(1).await;
    let mut later = LocalCopy::default();
    let write =
        Write { write_id: write_id(), content: Content::Value("white".into()), meta: None, expires_at: None };
    let mut mint = ActorMint::new(Incarnation(77));
    later.put(&mut mint, Overwrite::Nothing, write, Wall(1), &Caps::default()).unwrap();
    let store = Store {
        namespace: Default::default(),
        key: key("dove"),
        record: later.record,
        guest_of: Vec::new(),
        durability: Durability::Sync,
        fences: Default::default(),
    };
    let clock = cluster.clock.as_ref();
    let _: StoreReply = link.call(clock, &store, cluster.peer_head(), cluster.deadline()).await.unwrap();
    let mut siblings = values(&cluster, 0, get).await;
    siblings.sort();
    assert_eq!(siblings, ["grey", "white"]);
    assert_eq!(cluster.nodes[0].metrics().read_repairs.get(), 2);
}

#[tokio::test]
async fn a_write_is_not_refused_because_nodes_that_answer_are_taken_for_down() {
    // Only the first node counts heartbeats, and soon hears none: the others beat once in weeks.
    let cluster = Cluster::start_with(3, |id, config| {
        let soon = Duration::from_millis(10);
        config.detector.interval = if id == 1 { soon } else { Duration::from_secs(1_000_000) };
        config.detector.stall_after = Duration::from_secs(3600);
    })
    .await;
    let are_down = || {
        let views = cluster.nodes[0].views();
        views.len() == 2 && views.iter().all(|peer| peer.state == PeerState::Down(PeerDown::Silent))
    };
    until(async || are_down()).await;
    let reply = applied(&cluster, 0, Put::new(key("dove"), write_id(), "coo")).await;
    assert!(reply.replicas.primaries.len() >= 2 && are_down());
    assert_eq!(values(&cluster, 0, Get::new(key("dove"))).await, ["coo"]);
}

#[tokio::test]
async fn nodes_that_were_not_there_a_moment_ago_are_asked_where_there_is_no_choice() {
    let cluster = Cluster::start_with(3, |_, config| {
        // Nobody dials by itself, and who was found down is left alone for as long as it lasts.
        config.detector.interval = Duration::from_secs(1_000_000);
    })
    .await;
    let others = ["n2:peer", "n3:peer"];
    others.iter().for_each(|addr| cluster.net.close(addr));
    let put = |value: &'static str| Put::new(key("dove"), write_id(), value);
    let reply = cluster.nodes[0].put(put("grey"), cluster.request(0)).await.unwrap();
    assert!(matches!(reply.outcome, PutOutcome::Unknown { .. }), "{:?}", reply.outcome);
    for _ in 0..20 {
        // However often: those that are away are known to be before anything is written.
        let refused = cluster.nodes[0].put(put("white"), cluster.request(0)).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::TooFewReplicas);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    others.iter().for_each(|addr| cluster.net.reopen(addr));
    // As long as an outcome counts as fresh.
    tokio::time::sleep(Duration::from_millis(11)).await;
    assert!(applied(&cluster, 0, put("black")).await.replicas.primaries.len() >= 2);
}
