//! What a port holds for its connections, and for how long.

use std::sync::Arc;
use std::time::Duration;

use ringdove::io::{BoxFuture, Clock, Net, RealClock, Stream};
use ringdove::net::envelope::{FRAME_LEN_MAX, Frame, FrameHead};
use ringdove::net::frame::{FrameReader, Incoming, ReadLimits};
use ringdove::net::link::{CallError, Link, hello};
use ringdove::net::message::{
    AuthMethod, Get, GetReply, Hello, Message, Ping, Pong, Put, PutOutcome, PutReply, Refusal, RefusalCode,
    Spoken, Welcome,
};
use ringdove::net::serve::{Limits, Load, Service, answer, serve};
use ringdove::sync::Watched;
use ringdove::types::{ClusterId, LayoutRef, Mono, NodeId, RequestId};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::support::{Cluster, MemoryNet, key, write_id};

/// A client's connection past its handshake, frame by frame. It holds 64 KiB on the way.
struct Raw {
    reader: FrameReader,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Raw {
    async fn open(net: &MemoryNet, addr: &str) -> Raw {
        let Stream { reader, writer, .. } = net.connect(addr).await.unwrap();
        let mut raw = Raw { reader: FrameReader::new(reader), writer };
        let spoken = Spoken { features: 0, ..Spoken::default() };
        raw.ask(&hello(spoken, None, None), FrameHead { version: 1, ..FrameHead::default() }).await;
        Welcome::from_frame(&raw.next().await.unwrap()).unwrap();
        raw
    }

    async fn ask(&mut self, message: &impl Message, head: FrameHead) {
        let frame = message.to_frame(head).unwrap();
        self.writer.write_all(&frame.encode()).await.unwrap();
    }

    /// The next frame; none when the other side has closed the connection.
    async fn next(&mut self) -> Option<Frame> {
        let limits = ReadLimits { len_max: FRAME_LEN_MAX, within: Duration::from_secs(20), budget: None };
        match self.reader.next(&RealClock::new(), limits).await.unwrap()? {
            Incoming::Whole(frame, _) => Some(frame),
            Incoming::NoRoom(_) => panic!("no budget was given"),
        }
    }
}

fn head(id: u64) -> FrameHead {
    FrameHead { version: 2, request_id: RequestId(id), remaining_ms: 20_000, ..FrameHead::default() }
}

#[tokio::test]
async fn answers_that_nobody_reads_cost_others_a_refusal_and_no_memory() {
    let cluster = Cluster::start_with(3, |_, config| config.limits.unread_bytes_max = 2_500_000).await;
    let link = cluster.link(0, Spoken::default()).await;
    let clock = cluster.clock.as_ref();
    let put = |name: &str, len: usize| Put::new(key(name), write_id(), vec![7; len]);
    for put in [put("large", 1_000_000), put("small", 10)] {
        let _: PutReply = link.call(clock, &put, FrameHead::default(), cluster.deadline()).await.unwrap();
    }
    let get = async |name: &str| -> Result<usize, RefusalCode> {
        let get = Get::new(key(name));
        match link.call::<GetReply>(clock, &get, FrameHead::default(), cluster.deadline()).await {
            Ok(reply) => Ok(reply.values[0].value.len()),
            Err(CallError::Refused(refusal)) => Err(refusal.code),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(get("large").await, Ok(1_000_000));

    let mut deaf = Raw::open(&cluster.net, "n1:client").await;
    let mut asked = 0;
    let refused = loop {
        asked += 1;
        assert!(asked < 100, "nothing bounds what is held");
        deaf.ask(&Get::new(key("large")), head(asked)).await;
        if let Err(refused) = get("large").await {
            break refused;
        }
    };
    assert_eq!(refused, RefusalCode::Overloaded);
    // Others go on with what is small, and writes are answered.
    assert_eq!(get("small").await, Ok(10));
    let done: PutReply =
        link.call(clock, &put("other", 10), FrameHead::default(), cluster.deadline()).await.unwrap();
    assert_eq!(done.outcome, PutOutcome::Applied);
    // It was held to the same; and what it reads makes room.
    for _ in 0..asked {
        let frame = deaf.next().await.unwrap();
        let refused = Refusal::from_frame(&frame).map(|refusal| refusal.code);
        assert!(frame.head.kind == GetReply::KIND || refused == Ok(RefusalCode::Overloaded));
    }
    while get("large").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_write_whose_answer_finds_no_room_is_never_answered_as_refused() {
    let cluster = Cluster::start_with(3, |_, config| config.limits.unread_bytes_max = 500_000).await;
    let mut raw = Raw::open(&cluster.net, "n1:client").await;
    let put = Put { return_record: true, ..Put::new(key("large"), write_id(), vec![7; 1_000_000]) };
    raw.ask(&put, head(1)).await;
    assert_eq!(raw.next().await, None, "it was applied, and that is not known to who asked");
    let get = Get::new(key("large"));
    assert_eq!(cluster.nodes[1].get(get, cluster.request(1)).await.unwrap().values.len(), 1);
}

/// Answers when it is told to.
struct Slow(Semaphore);

impl Service for Slow {
    fn greet(&self, _: &Hello, version: u8) -> Result<Welcome, Refusal> {
        let layout = LayoutRef { version: 1, hash: 1 };
        Ok(Welcome {
            version,
            features: 0,
            auth: AuthMethod::None,
            cluster: ClusterId(1),
            node: NodeId(1),
            layout,
        })
    }

    fn handle(self: Arc<Self>, request: Frame, _: Mono) -> BoxFuture<'static, Frame> {
        Box::pin(async move {
            self.0.acquire().await.unwrap().forget();
            answer(&request, &Pong)
        })
    }
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed_and_one_that_waits_for_an_answer_is_not() {
    let (net, clock) = (MemoryNet::default(), Arc::new(RealClock::new()));
    let slow = Arc::new(Slow(Semaphore::new(0)));
    let limits = Limits {
        stall_after: Duration::from_millis(20),
        idle_after: Some(Duration::from_millis(50)),
        ..Limits::default()
    };
    let port = net.listen("port").await.unwrap();
    let stop = Arc::new(Watched::new(false));
    tokio::spawn(serve(port, slow.clone(), clock.clone(), limits, Load::new(&limits), stop));

    let mut waiting = Raw::open(&net, "port").await;
    waiting.ask(&Ping, head(1)).await;
    // Two that do nothing, one after the other: the time of the first is over twice.
    for _ in 0..2 {
        let mut idle = Raw::open(&net, "port").await;
        assert_eq!(idle.next().await, None);
    }
    // It is still read from, not only answered.
    waiting.ask(&Ping, head(2)).await;
    slow.0.add_permits(2);
    let mut answered =
        [waiting.next().await, waiting.next().await].map(|frame| frame.unwrap().head.request_id);
    answered.sort();
    assert_eq!(answered, [RequestId(1), RequestId(2)]);
    assert_eq!(waiting.next().await, None, "now it has nothing to wait for");
}

#[tokio::test]
async fn who_finds_its_idle_connection_closed_knows_that_nothing_was_sent() {
    let settings = |_: u64, config: &mut ringdove::node::NodeConfig| {
        config.limits.idle_after = Some(Duration::from_millis(20));
    };
    let cluster = Cluster::start_with(3, settings).await;
    let clock: Arc<dyn Clock> = cluster.clock.clone();
    let hello = hello(Spoken::default(), None, None);
    let link = Link::open(&cluster.net, &clock, "n1:client", &hello, cluster.deadline()).await.unwrap();
    while !link.is_broken() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Nothing was sent: it may be sent again.
    let sent = link.call::<Pong>(clock.as_ref(), &Ping, FrameHead::default(), cluster.deadline()).await;
    assert!(matches!(sent, Err(CallError::NotSent(_))), "{sent:?}");
}
