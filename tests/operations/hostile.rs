//! Bad input on a real port: a typed error or the end of that one connection, and the node goes on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringdove::io::{Clock, Listener, Net, Stream, TcpNet};
use ringdove::net::envelope::{FRAME_LEN_MAX, Frame, FrameHead, seal};
use ringdove::net::link::{CallError, Link, hello};
use ringdove::net::message::{
    ChangeMembers, Context, Get, GetReply, Hello, Message, Ping, Pong, Put, PutOutcome, PutReply, Quorum,
    Refusal, RefusalCode, Scan, Spoken, Status, VERSION, Welcome,
};
use ringdove::net::parts::PART_LEN;
use ringdove::node::NodeConfig;
use ringdove::server::serve_clients;
use ringdove::types::{KEY_LEN_MAX, RequestId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Cluster, key, write_id};

/// Three nodes, the first of which has a real port.
struct Port {
    cluster: Cluster,
    addr: String,
}

impl Port {
    async fn open(settings: impl Fn(&mut NodeConfig)) -> Port {
        let cluster = Cluster::start_with(3, |_, config| settings(config)).await;
        let listener: Box<dyn Listener> = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr();
        tokio::spawn(serve_clients(cluster.nodes[0].clone(), listener));
        Port { cluster, addr }
    }

    async fn raw(&self) -> TcpStream {
        TcpStream::connect(&self.addr).await.unwrap()
    }

    /// A connection past its handshake, frame by frame.
    async fn shaken(&self) -> TcpStream {
        let mut stream = self.raw().await;
        let hello = hello(Spoken::default(), None, None);
        let frame = hello.to_frame(FrameHead { version: 1, ..FrameHead::default() }).unwrap();
        stream.write_all(&frame.encode()).await.unwrap();
        let welcome = Welcome::from_frame(&read(&mut stream).await.unwrap()).unwrap();
        assert_eq!(welcome.version, VERSION);
        stream
    }

    async fn link(&self) -> Link {
        let clock: Arc<dyn Clock> = self.cluster.clock.clone();
        let hello = hello(Spoken::default(), None, None);
        Link::open(&TcpNet, &clock, &self.addr, &hello, self.cluster.deadline()).await.unwrap()
    }

    async fn call<A: Message>(&self, link: &Link, message: &impl Message) -> Result<A, CallError> {
        let clock = self.cluster.clock.as_ref();
        link.call(clock, message, FrameHead::default(), self.cluster.deadline()).await
    }

    /// The code with which a message is refused.
    async fn refused(&self, link: &Link, message: &impl Message) -> RefusalCode {
        match self.call::<Pong>(link, message).await {
            Err(CallError::Refused(refusal)) => refusal.code,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// The node serves whoever comes next.
    async fn is_up(&self) {
        let link = self.link().await;
        let put = Put::new(key("dove"), write_id(), "grey");
        let reply: PutReply = self.call(&link, &put).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
    }
}

fn head() -> FrameHead {
    FrameHead { version: VERSION, request_id: RequestId(1), remaining_ms: 5000, ..FrameHead::default() }
}

async fn read(stream: &mut TcpStream) -> io::Result<Frame> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut frame = prefix.to_vec();
    frame.resize(4 + u32::from_le_bytes(prefix) as usize, 0);
    stream.read_exact(&mut frame[4..]).await?;
    Frame::decode(&frame.into()).map_err(io::Error::other)
}

/// Waits for the other side to end the connection; nothing may come before.
async fn is_ended(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _reset_is_an_end_too = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "an answer: {rest:?}");
}

/// An answer to a frame, as a refusal's code.
async fn code_of(stream: &mut TcpStream, frame: &[u8]) -> RefusalCode {
    stream.write_all(frame).await.unwrap();
    Refusal::from_frame(&read(stream).await.unwrap()).unwrap().code
}

fn soon(config: &mut NodeConfig) {
    config.limits.handshake = Duration::from_millis(50);
    config.limits.stall_after = Duration::from_millis(50);
}

#[tokio::test]
async fn what_is_no_handshake_costs_the_connection() {
    let port = Port::open(soon).await;
    let wrong_magic = Hello { magic: *b"HTTP", ..hello(Spoken::default(), None, None) };
    let wrong_magic = wrong_magic.to_frame(FrameHead { version: 1, ..head() }).unwrap().encode();
    let ping = Ping.to_frame(head()).unwrap().encode();
    let four_gib = u32::MAX.to_le_bytes();
    let garbage: Vec<u8> = (0..9000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let long = (1_u32 << 20).to_le_bytes();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &wrong_magic, &ping, &four_gib, &garbage, &[0; 64], &long] {
        let mut stream = port.raw().await;
        let _ = stream.write_all(bytes).await;
        is_ended(stream).await;
    }
    // Half a handshake, and none at all, and then silence.
    for bytes in [&ping[..30], &ping[..1], &[]] {
        let mut stream = port.raw().await;
        stream.write_all(bytes).await.unwrap();
        is_ended(stream).await;
    }
    port.is_up().await;
}

#[tokio::test]
async fn garbage_after_the_handshake_costs_the_connection() {
    let port = Port::open(soon).await;
    let ping = Ping.to_frame(head()).unwrap().encode();
    let mut damaged = ping.to_vec();
    damaged[20] ^= 1;
    let too_long = u32::try_from(FRAME_LEN_MAX).unwrap().to_le_bytes();
    for bytes in [&u32::MAX.to_le_bytes()[..], &too_long, &damaged, &[0; 100], &ping[..59], &ping[..2]] {
        let mut stream = port.shaken().await;
        let _ = stream.write_all(bytes).await;
        is_ended(stream).await;
    }
    port.is_up().await;
}

#[tokio::test]
async fn a_caller_of_another_version_or_cluster_is_told_so() {
    let port = Port::open(|_| {}).await;
    let future = Spoken { version_min: 9, version_max: 12, features: u64::MAX };
    let other = hello(Spoken::default(), Some(ringdove::types::ClusterId(1)), None);
    for (hello, code) in [
        (hello(future, None, None), RefusalCode::UnsupportedVersion),
        (other, RefusalCode::WrongCluster),
        (Hello { auth: Vec::new(), ..hello(Spoken::default(), None, None) }, RefusalCode::UnsupportedAuth),
    ] {
        let mut stream = port.raw().await;
        let frame = hello.to_frame(FrameHead { version: 1, ..head() }).unwrap();
        assert_eq!(code_of(&mut stream, &frame.encode()).await, code);
        is_ended(stream).await;
    }
    port.is_up().await;
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_and_the_connection_goes_on() {
    let port = Port::open(|config| config.value_len_max = 100_000).await;
    let link = port.link().await;
    let (dove, wren) = (key("dove"), key("wren"));
    let put = || Put::new(dove.clone(), write_id(), "grey");
    let get = |r| Get { quorum: Quorum { r: Some(r), ..Quorum::default() }, ..Get::new(dove.clone()) };
    for r in [0, 4, 255] {
        assert_eq!(port.refused(&link, &get(r)).await, RefusalCode::BadRequest);
    }
    let large = Put { value: Some(vec![0; 100_001].into()), ..put() };
    assert_eq!(port.refused(&link, &large).await, RefusalCode::TooLarge);
    let fits = Put { value: Some(vec![0; 100_000].into()), ..put() };
    port.call::<PutReply>(&link, &fits).await.unwrap();

    let reply: GetReply = port.call(&link, &Get::new(wren)).await.unwrap();
    let with = |token: Bytes| Put { context: Context::Token(token), ..put() };
    assert_eq!(port.refused(&link, &with(reply.context)).await, RefusalCode::BadToken, "of another key");
    let own: GetReply = port.call(&link, &Get::new(dove.clone())).await.unwrap();
    let mut damaged = own.context.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(port.refused(&link, &with(damaged.into())).await, RefusalCode::BadToken);
    assert_eq!(port.refused(&link, &with(Bytes::new())).await, RefusalCode::BadToken);
    port.call::<PutReply>(&link, &with(own.context)).await.unwrap();

    let mut stream = port.shaken().await;
    let unknown = Frame { head: FrameHead { kind: 0x0177, ..head() }, body: Bytes::new() };
    assert_eq!(code_of(&mut stream, &unknown.encode()).await, RefusalCode::UnknownOperation);
    // What nodes say to each other is not for clients.
    let store = Frame { head: FrameHead { kind: 0x0202, ..head() }, body: Bytes::new() };
    assert_eq!(code_of(&mut stream, &store.encode()).await, RefusalCode::UnknownOperation);
    let future = Frame { head: FrameHead { version: 77, ..head() }, ..unknown };
    assert_eq!(code_of(&mut stream, &future.encode()).await, RefusalCode::UnsupportedVersion);
    let short = Frame { head: FrameHead { kind: Get::KIND, ..head() }, body: Bytes::from_static(&[0]) };
    assert_eq!(code_of(&mut stream, &short.encode()).await, RefusalCode::BadRequest);
    let late = put().to_frame(FrameHead { remaining_ms: 0, ..head() }).unwrap();
    assert_eq!(code_of(&mut stream, &late.encode()).await, RefusalCode::BadRequest, "no time left");
    let patient = put().to_frame(FrameHead { remaining_ms: 60_001, ..head() }).unwrap();
    assert_eq!(code_of(&mut stream, &patient.encode()).await, RefusalCode::BadRequest, "above timeout_max");
    let backwards = Scan { from: Bytes::from_static(b"b"), to: Bytes::from_static(b"a"), ..Scan::all() };
    assert_eq!(port.refused(&link, &backwards).await, RefusalCode::BadRequest);
    let version = port.cluster.nodes[0].layout().reference();
    let nobody = ChangeMembers { add: Vec::new(), remove: Vec::new(), apply: true };
    assert_eq!(port.refused(&link, &nobody).await, RefusalCode::BadRequest);
    assert_eq!(port.cluster.nodes[0].layout().reference(), version, "no layout follows");
    let mut critical = Status.to_frame(head()).unwrap().encode().to_vec();
    critical.extend_from_slice(&[1, 0x80, 0, 0, 0, 0]);
    seal(&mut critical, 0);
    stream.write_all(&critical).await.unwrap();
    is_ended(stream).await;
}

#[tokio::test]
async fn a_key_over_64_kib_is_refused() {
    let port = Port::open(|_| {}).await;
    let mut stream = port.shaken().await;
    // The type makes no such key, so the body of a Get with one is written by hand: namespace, length, key, the rest.
    let with = |len: usize| {
        let mut body = vec![0, 252];
        body.extend_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
        body.extend(std::iter::repeat_n(b'k', len));
        body.extend_from_slice(&[0, 0, 0, 0]);
        Frame { head: FrameHead { kind: Get::KIND, ..head() }, body: body.into() }.encode()
    };
    assert_eq!(code_of(&mut stream, &with(KEY_LEN_MAX + 1)).await, RefusalCode::TooLarge);
    stream.write_all(&with(KEY_LEN_MAX)).await.unwrap();
    assert!(GetReply::from_frame(&read(&mut stream).await.unwrap()).is_ok());
}

#[tokio::test]
async fn large_records_come_and_go_in_parts_and_small_requests_pass_between_them() {
    let port = Port::open(|_| {}).await;
    let link = port.link().await;
    let value: Bytes = (0..5_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    assert!(value.len() > 10 * PART_LEN);
    let quorum = Quorum { r: Some(3), w: Some(3), strict: true };
    let put = Put { quorum, ..Put::new(key("dove"), write_id(), value.clone()) };
    let (reply, ping) = tokio::join!(port.call::<PutReply>(&link, &put), port.call::<Pong>(&link, &Ping));
    assert_eq!((reply.unwrap().outcome, ping), (PutOutcome::Applied, Ok(Pong)));
    let get = Get { quorum, ..Get::new(key("dove")) };
    let reply: GetReply = port.call(&link, &get).await.unwrap();
    assert!(reply.values[0].value == value);
}

#[tokio::test]
async fn large_requests_without_room_are_refused_before_they_are_carried_out() {
    let port = Port::open(|config| config.limits.request_bytes_max = 3_000_000).await;
    let link = port.link().await;
    let put = |len: usize| Put::new(key("dove"), write_id(), vec![7; len]);
    assert_eq!(port.refused(&link, &put(4_000_000)).await, RefusalCode::Overloaded);
    // As one frame, which a client without parts sends, it is the same.
    let mut stream = port.shaken().await;
    let whole = put(4_000_000).to_frame(head()).unwrap().encode();
    assert_eq!(code_of(&mut stream, &whole).await, RefusalCode::Overloaded);
    let ping = Ping.to_frame(head()).unwrap().encode();
    stream.write_all(&ping).await.unwrap();
    assert_eq!(Pong::from_frame(&read(&mut stream).await.unwrap()), Ok(Pong));
    let reply: PutReply = port.call(&link, &put(2_000_000)).await.unwrap();
    assert_eq!(reply.outcome, PutOutcome::Applied);
    let reply: GetReply = port.call(&link, &Get::new(key("dove"))).await.unwrap();
    assert_eq!(reply.values.len(), 1, "what was refused was not written");
}

#[tokio::test]
async fn who_asks_for_much_and_reads_nothing_is_disconnected() {
    let port = Port::open(|config| {
        soon(config);
        config.limits.answer_bytes_max = 4_000_000;
    })
    .await;
    let link = port.link().await;
    let put = Put::new(key("dove"), write_id(), vec![7; 1_000_000]);
    port.call::<PutReply>(&link, &put).await.unwrap();
    let mut stream = port.shaken().await;
    let get = Get::new(key("dove"));
    // Two hundred megabytes, were the node to keep them; until it ends the connection under the asker.
    for id in 1..=200 {
        let get = get.to_frame(FrameHead { request_id: RequestId(id), ..head() }).unwrap();
        if stream.write_all(&get.encode()).await.is_err() {
            break;
        }
    }
    let ping = Ping.to_frame(head()).unwrap().encode();
    while stream.write_all(&ping).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // Bounds what was kept, also by the system.
    let mut kept = Vec::new();
    let _reset_is_an_end_too = stream.read_to_end(&mut kept).await;
    assert!(kept.len() < 50_000_000, "{} bytes were kept for who did not read", kept.len());
    port.is_up().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_those_that_stand_go_on() {
    let port = Port::open(|config| config.limits.connections_max = 50).await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(port.shaken().await);
    }
    let clock: Arc<dyn Clock> = port.cluster.clock.clone();
    let hello = hello(Spoken::default(), None, None);
    let more = Link::open(&TcpNet, &clock, &port.addr, &hello, port.cluster.deadline()).await;
    let Err(ringdove::net::link::OpenError::Refused { refusal, .. }) = more else { panic!("it was taken") };
    assert_eq!(refusal.code, RefusalCode::Unavailable);
    for stream in &mut idle {
        let ping = Ping.to_frame(head()).unwrap().encode();
        stream.write_all(&ping).await.unwrap();
        assert_eq!(Pong::from_frame(&read(stream).await.unwrap()), Ok(Pong));
    }
}

#[tokio::test]
async fn a_node_that_stops_answers_what_is_in_flight_and_takes_no_more() {
    let port = Port::open(|_| {}).await;
    let mut stream = port.shaken().await;
    let mut ids = Vec::new();
    for id in 1..=50 {
        let put = Put::new(key(&format!("{id}")), write_id(), "grey");
        let frame = put.to_frame(FrameHead { request_id: RequestId(id), ..head() }).unwrap();
        stream.write_all(&frame.encode()).await.unwrap();
    }
    // The first answer says that requests are in flight.
    ids.push(read(&mut stream).await.unwrap().head.request_id.0);
    port.cluster.nodes[0].stop();
    while let Ok(frame) = read(&mut stream).await {
        let reply = PutReply::from_frame(&frame).unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
        ids.push(frame.head.request_id.0);
    }
    ids.sort_unstable();
    assert!(!ids.is_empty() && ids.windows(2).all(|pair| pair[0] < pair[1]), "each once: {ids:?}");
    let refused = TcpNet.connect(&port.addr).await.map(|Stream { peer_addr, .. }| peer_addr);
    assert!(refused.is_err(), "{refused:?}");
}
