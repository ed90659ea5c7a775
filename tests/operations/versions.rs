//! Two protocol versions against each other, in both directions.

use ringdove::net::envelope::{Frame, FrameHead};
use ringdove::net::link::CallError;
use ringdove::net::message::{
    Condition, Get, GetReply, Message, Ping, Pong, Put, PutOutcome, PutReply, Quorum, RefusalCode, Spoken,
    Status, StatusReply, VERSION,
};
use ringdove::node::NodeConfig;

use crate::support::{Cluster, key, write_id};

fn only(version: u8) -> Spoken {
    Spoken { version_min: version, version_max: version, features: 0 }
}

fn quorum() -> Quorum {
    Quorum { r: Some(3), w: Some(3), strict: true }
}

#[tokio::test]
async fn nodes_of_two_versions_serve_each_other_and_their_clients() {
    // Nodes 1 and 2 were not upgraded yet.
    let old = |id: u64, config: &mut NodeConfig| {
        if id <= 2 {
            config.limits.spoken = only(1);
        }
    };
    let cluster = Cluster::start_with(4, old).await;
    let clock = cluster.clock.clone();
    for at in 0..4 {
        for client in [only(1), Spoken::default()] {
            let link = cluster.link(at, client).await;
            let agreed = if at < 2 { 1 } else { client.version_max };
            assert_eq!(link.welcome().version, agreed);
            for number in 0..20 {
                let put = Put::new(key(&format!("{at}/{agreed}/{number}")), write_id(), "grey");
                let get = Get { quorum: quorum(), ..Get::new(put.key.clone()) };
                let put = Put { quorum: quorum(), ..put };
                let put: PutReply =
                    link.call(clock.as_ref(), &put, FrameHead::default(), cluster.deadline()).await.unwrap();
                assert_eq!(put.outcome, PutOutcome::Applied);
                let get: GetReply =
                    link.call(clock.as_ref(), &get, FrameHead::default(), cluster.deadline()).await.unwrap();
                assert_eq!(get.values[0].value, "grey");
            }
        }
    }
}

#[tokio::test]
async fn what_the_common_version_lacks_is_refused_without_being_sent() {
    let cluster = Cluster::start_with(3, |id, config| {
        if id == 1 {
            config.limits.spoken = only(1);
        }
    })
    .await;
    let link = cluster.link(0, Spoken::default()).await;
    let put = Put { condition: Condition::Absent, ..Put::new(key("dove"), write_id(), "grey") };
    let head = FrameHead::default();
    let clock = cluster.clock.as_ref();
    let sent = link.call::<PutReply>(clock, &put, head, cluster.deadline()).await;
    assert!(matches!(sent, Err(CallError::NotSent(_))), "{sent:?}");
    // The connection is none the worse for it.
    assert_eq!(link.call::<Pong>(clock, &Ping, head, cluster.deadline()).await, Ok(Pong));
}

#[tokio::test]
async fn a_message_of_a_later_version_on_an_older_connection_is_an_unknown_operation() {
    let cluster = Cluster::start(3).await;
    let link = cluster.link(0, only(1)).await;
    let frame = Status.to_frame(FrameHead { version: 2, ..FrameHead::default() }).unwrap();
    let answer =
        link.exchange(cluster.clock.as_ref(), as_version(frame.clone(), 1), cluster.deadline()).await;
    assert_eq!(code(answer), Some(RefusalCode::UnknownOperation));
    let answer = link.exchange(cluster.clock.as_ref(), as_version(frame, 2), cluster.deadline()).await;
    assert_eq!(code(answer), Some(RefusalCode::UnsupportedVersion));

    let link = cluster.link(0, Spoken::default()).await;
    assert_eq!(link.welcome().version, VERSION);
    let status: StatusReply =
        link.call(cluster.clock.as_ref(), &Status, FrameHead::default(), cluster.deadline()).await.unwrap();
    assert_eq!(status.node, cluster.nodes[0].id());
}

fn as_version(frame: Frame, version: u8) -> Frame {
    Frame { head: FrameHead { version, ..frame.head }, ..frame }
}

fn code(answer: Result<Frame, CallError>) -> Option<RefusalCode> {
    ringdove::net::message::Refusal::from_frame(&answer.unwrap()).ok().map(|refusal| refusal.code)
}
