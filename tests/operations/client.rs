//! The Rust client: against nodes that do what the test says, where it is about what is sent and how often; against
//! real ones where it is about what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt};
use ringdove::client::{
    Action, BatchWrite, Client, ClientConfig, ClientError, ReadOptions, Refusal, RefusalCode, Scan,
    WriteOptions,
};
use ringdove::dynamo::layout::{Layout, LayoutHistory, Member};
use ringdove::dynamo::preference::PreferenceList;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::io::{Net, RealClock, Stream};
use ringdove::net::envelope::{FRAME_LEN_MAX, Frame, FrameHead};
use ringdove::net::frame::{FrameReader, Incoming, ReadLimits};
use ringdove::net::message::{
    AuthMethod, Get, GetLayout, GetReply, Hello, LayoutReply, Message, MultiPut, MultiPutReply, Put,
    PutOutcome, PutReply, Replicas, Welcome,
};
use ringdove::types::{ClusterId, Key, LayoutRef, Namespace, NodeId};
use tokio::io::AsyncWriteExt;

use crate::support::{Cluster, MemoryNet, key, member};

/// What a node does with a request.
enum Reaction {
    Applied,
    /// Says that nobody knows what became of the write.
    Unknown,
    Refuse(Refusal),
    /// Takes it and says nothing.
    Silence,
    /// Takes it and closes the connection.
    HangUp,
}

/// What a node has seen.
#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<(u16, LayoutRef)>>,
    connections: AtomicUsize,
}

impl Seen {
    fn count(&self, kind: u16) -> usize {
        self.requests.lock().unwrap().iter().filter(|(seen, _)| *seen == kind).count()
    }
}

type Script = Arc<dyn Fn(u16) -> Reaction + Send + Sync>;

/// A node at `n{id}:client` that answers handshake and layout, and everything else as `script` says.
async fn scripted(net: &MemoryNet, id: u64, layouts: Vec<Arc<Layout>>, script: Script) -> Arc<Seen> {
    scripted_of(net, id, layouts, script, ClusterId(5)).await
}

/// The same, of this cluster.
async fn scripted_of(
    net: &MemoryNet,
    id: u64,
    layouts: Vec<Arc<Layout>>,
    script: Script,
    cluster: ClusterId,
) -> Arc<Seen> {
    let mut port = net.listen(&member(id).client_addr).await.unwrap();
    let seen = Arc::new(Seen::default());
    let shared = seen.clone();
    tokio::spawn(async move {
        while let Ok(stream) = port.accept().await {
            shared.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(connection(stream, (cluster, id), layouts.clone(), script.clone(), shared.clone()));
        }
    });
    seen
}

async fn connection(
    stream: Stream,
    node: (ClusterId, u64),
    layouts: Vec<Arc<Layout>>,
    script: Script,
    seen: Arc<Seen>,
) -> Option<()> {
    let layout = layouts[0].reference();
    let limits = ReadLimits { len_max: FRAME_LEN_MAX, within: Duration::from_secs(20), budget: None };
    let Stream { reader, mut writer, .. } = stream;
    let mut reader = FrameReader::new(reader);
    loop {
        let read = reader.next(&RealClock::new(), limits).await.ok()?;
        let Some(Incoming::Whole(frame, _)) = read else { return None };
        let head = FrameHead { layout, ..frame.head };
        let kind = frame.head.kind;
        if kind != Hello::KIND {
            seen.requests.lock().unwrap().push((kind, frame.head.layout));
        }
        let answer = match kind {
            Hello::KIND => welcome(node, layout).to_frame(head),
            GetLayout::KIND => LayoutReply { active: layouts.clone() }.to_frame(head),
            kind => match script(kind) {
                Reaction::Silence => continue,
                Reaction::HangUp => return None,
                Reaction::Refuse(refusal) => refusal.to_frame(head),
                Reaction::Applied => applied(&frame, head),
                Reaction::Unknown => unknown(&frame, head),
            },
        };
        writer.write_all(&answer.unwrap().encode()).await.ok()?;
        writer.flush().await.ok()?;
    }
}

fn welcome((cluster, id): (ClusterId, u64), layout: LayoutRef) -> Welcome {
    Welcome { version: 2, features: 0, auth: AuthMethod::None, cluster, node: NodeId(id), layout }
}

fn applied(request: &Frame, head: FrameHead) -> Result<Frame, ringdove::net::codec::CodecError> {
    match request.head.kind {
        Get::KIND => GetReply {
            values: Vec::new(),
            hidden: Vec::new(),
            tombstones: 0,
            expired: 0,
            context: Bytes::from_static(b"seen"),
            replicas: Replicas::default(),
        }
        .to_frame(head),
        Put::KIND => ended(PutOutcome::Applied).to_frame(head),
        MultiPut::KIND => {
            let puts = MultiPut::from_frame(request).unwrap().puts;
            MultiPutReply { replies: puts.iter().map(|_| Ok(ended(PutOutcome::Applied))).collect() }
                .to_frame(head)
        }
        kind => panic!("the script has no answer to {kind:#06x}"),
    }
}

fn unknown(request: &Frame, head: FrameHead) -> Result<Frame, ringdove::net::codec::CodecError> {
    let reason = "as the script says".to_owned();
    let unknown = ended(PutOutcome::Unknown { have: 1, need: 2, reason });
    match request.head.kind {
        MultiPut::KIND => {
            // Of the first write of the batch alone.
            let puts = MultiPut::from_frame(request).unwrap().puts.len();
            let mut replies = vec![Ok(ended(PutOutcome::Applied)); puts];
            replies[0] = Ok(unknown);
            MultiPutReply { replies }.to_frame(head)
        }
        _ => unknown.to_frame(head),
    }
}

fn ended(outcome: PutOutcome) -> PutReply {
    PutReply {
        outcome,
        dot: None,
        overwrote: Vec::new(),
        siblings: Vec::new(),
        written: None,
        context: Bytes::new(),
        replicas: Replicas::default(),
    }
}

fn partitions() -> PartitionCount {
    PartitionCount::new(16).unwrap()
}

fn members(count: u64) -> Vec<Member> {
    (1..=count).map(member).collect()
}

fn first_layout(count: u64) -> Arc<Layout> {
    Arc::new(Layout::first(partitions(), 3, members(count)).unwrap())
}

/// The primaries of a key, first the one that clients go to.
fn primaries(layouts: &[Arc<Layout>], key: &Key) -> Vec<u64> {
    let history = LayoutHistory::try_from(layouts.to_vec()).unwrap();
    let partition = partitions().partition_of(Namespace::default(), key);
    PreferenceList::new(&history, partition).primaries().map(|node| node.0).collect()
}

/// A key whose first primary is this node.
fn key_of(layouts: &[Arc<Layout>], id: u64) -> Key {
    (0..1000).map(|n| key(&format!("key{n}"))).find(|key| primaries(layouts, key)[0] == id).unwrap()
}

fn client_with(net: &MemoryNet, addrs: &[u64], change: impl FnOnce(&mut ClientConfig)) -> Client {
    let addrs = addrs.iter().map(|id| member(*id).client_addr);
    let mut config = ClientConfig { timeout: Duration::from_secs(20), ..ClientConfig::new(addrs) };
    change(&mut config);
    Client::new(Arc::new(net.clone()), Arc::new(RealClock::new()), [9; 32], config)
}

fn client(net: &MemoryNet, addrs: &[u64]) -> Client {
    client_with(net, addrs, |_| {})
}

fn refuse(code: RefusalCode) -> Reaction {
    Reaction::Refuse(Refusal::new(code, "as the script says"))
}

/// Three scripted nodes; node 1 goes by `first`, the others apply everything.
async fn three(
    first: impl Fn(u16) -> Reaction + Send + Sync + 'static,
) -> (MemoryNet, Vec<Arc<Layout>>, Vec<Arc<Seen>>) {
    let net = MemoryNet::default();
    let layouts = vec![first_layout(3)];
    let mut seen = vec![scripted(&net, 1, layouts.clone(), Arc::new(first)).await];
    for id in 2..=3 {
        seen.push(scripted(&net, id, layouts.clone(), Arc::new(|_| Reaction::Applied)).await);
    }
    (net, layouts, seen)
}

fn writes(seen: &[Arc<Seen>]) -> Vec<usize> {
    seen.iter().map(|seen| seen.count(Put::KIND)).collect()
}

#[tokio::test]
async fn a_write_that_may_have_arrived_is_unknown_and_never_sent_again() {
    for broken in [true, false] {
        let (net, layouts, seen) =
            three(move |_| if broken { Reaction::HangUp } else { Reaction::Silence }).await;
        let client = client(&net, &[2, 3]);
        let options = WriteOptions { timeout: Some(Duration::from_millis(300)), ..WriteOptions::default() };
        let outcome = client.put(&key_of(&layouts, 1), "grey", &options).await;
        let error = outcome.expect_err("nobody answered");
        assert!(matches!(error, ClientError::Unknown(_)), "{error:?}");
        assert_eq!(error.action(), Action::FindOut);
        assert_eq!(writes(&seen), [1, 0, 0], "broken: {broken}");
    }
}

#[tokio::test]
async fn a_write_of_which_nothing_left_goes_to_another_primary() {
    let (net, layouts, seen) = three(|_| Reaction::Applied).await;
    net.close(&member(1).client_addr);
    client(&net, &[2, 3]).put(&key_of(&layouts, 1), "grey", &WriteOptions::default()).await.unwrap();
    assert_eq!(writes(&seen).iter().sum::<usize>(), 1);
    assert_eq!(writes(&seen)[0], 0);
}

#[tokio::test]
async fn a_write_refused_for_now_goes_to_another_node_and_one_refused_for_good_does_not() {
    use RefusalCode as Code;
    let for_now = [Code::Unavailable, Code::Overloaded, Code::TooFewReplicas, Code::DiskFull];
    for code in for_now {
        let (net, layouts, seen) = three(move |_| refuse(code)).await;
        client(&net, &[2]).put(&key_of(&layouts, 1), "grey", &WriteOptions::default()).await.unwrap();
        let [first, rest @ ..] = &writes(&seen)[..] else { panic!() };
        assert_eq!((*first, rest.iter().sum::<usize>()), (1, 1), "{code:?}");
    }
    for code in [Code::BadRequest, Code::Conflict, Code::TooLarge, Code::BadToken, Code::TooManySiblings] {
        let (net, layouts, seen) = three(move |_| refuse(code)).await;
        let outcome = client(&net, &[2]).put(&key_of(&layouts, 1), "grey", &WriteOptions::default()).await;
        assert!(matches!(outcome, Err(ClientError::Refused(refusal)) if refusal.code == code));
        assert_eq!(writes(&seen), [1, 0, 0], "{code:?}");
    }
}

#[tokio::test]
async fn what_every_node_refuses_for_now_ends_refused_after_a_bounded_number_of_tries() {
    let net = MemoryNet::default();
    let layouts = vec![first_layout(3)];
    let script: Script = Arc::new(|_| refuse(RefusalCode::Overloaded));
    let mut seen = Vec::new();
    for id in 1..=3 {
        seen.push(scripted(&net, id, layouts.clone(), script.clone()).await);
    }
    let client = client_with(&net, &[1], |config| config.tries = 5);
    let outcome = client.put(&key("dove"), "grey", &WriteOptions::default()).await;
    let error = outcome.expect_err("all are overloaded");
    assert!(matches!(error.action(), Action::TryAgain(_)), "{error:?}");
    assert!((3..=5).contains(&writes(&seen).iter().sum::<usize>()), "{:?}", writes(&seen));
}

#[tokio::test]
async fn who_makes_an_unknown_write_again_is_not_sent_to_the_same_node() {
    for answers in [true, false] {
        let (net, layouts, seen) =
            three(move |_| if answers { Reaction::Unknown } else { Reaction::Silence }).await;
        let client = client(&net, &[2, 3]);
        let id = Some(client.write_id());
        let timeout = Some(Duration::from_millis(200));
        let options = WriteOptions { timeout, write_id: id, ..WriteOptions::default() };
        let key = key_of(&layouts, 1);
        let first = client.put(&key, "grey", &options).await;
        assert!(matches!(first, Err(ClientError::Unknown(_))), "{first:?}");
        client.put(&key, "grey", &options).await.expect("the others are well");
        client.get(&key, &ReadOptions::default()).await.expect("the others are well");
        assert_eq!((writes(&seen)[0], seen[0].count(Get::KIND)), (1, 0), "answers: {answers}");
        // It may be well again, and is the best one for its keys.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(client.put(&key, "grey", &options).await.is_err());
        assert_eq!(writes(&seen)[0], 2, "answers: {answers}");
    }
}

#[tokio::test]
async fn one_request_finds_out_whether_a_node_in_doubt_is_back() {
    let (net, layouts, seen) = three(|_| Reaction::Silence).await;
    let client = client(&net, &[2, 3]);
    let options = WriteOptions { timeout: Some(Duration::from_millis(400)), ..WriteOptions::default() };
    let key = key_of(&layouts, 1);
    client.put(&key, "grey", &options).await.expect_err("nobody answers");
    for asked in [2, 3] {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let puts = (0..20).map(|_| client.put(&key, "grey", &options));
        let failed = futures_util::future::join_all(puts).await.into_iter().filter(Result::is_err);
        assert_eq!((failed.count(), writes(&seen)[0]), (1, asked), "all the others go past it");
    }
}

#[tokio::test]
async fn a_node_in_doubt_is_better_than_none() {
    let net = MemoryNet::default();
    let layouts = vec![first_layout(3)];
    let turn = AtomicUsize::new(0);
    let script: Script = Arc::new(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
        0 => Reaction::Unknown,
        _ => Reaction::Applied,
    });
    let seen = scripted(&net, 1, layouts.clone(), script).await;
    let client = client(&net, &[1]);
    assert!(client.put(&key("dove"), "grey", &WriteOptions::default()).await.is_err());
    client.put(&key("dove"), "grey", &WriteOptions::default()).await.expect("it is the only one");
    assert_eq!(seen.count(Put::KIND), 2);
}

#[tokio::test]
async fn a_read_goes_on_when_a_node_is_silent_or_hangs_up() {
    for broken in [true, false] {
        let (net, layouts, seen) =
            three(move |_| if broken { Reaction::HangUp } else { Reaction::Silence }).await;
        let options = ReadOptions { timeout: Some(Duration::from_millis(600)), ..ReadOptions::default() };
        client(&net, &[2, 3]).get(&key_of(&layouts, 1), &options).await.unwrap();
        let reads: Vec<usize> = seen.iter().map(|seen| seen.count(Get::KIND)).collect();
        assert_eq!((reads[0], reads.iter().sum::<usize>()), (1, 2), "broken: {broken}");
    }
}

#[tokio::test]
async fn every_key_goes_to_its_first_primary_whichever_node_was_asked_for_the_layout() {
    let net = MemoryNet::default();
    let layouts = vec![first_layout(5)];
    let mut seen = Vec::new();
    for id in 1..=5 {
        seen.push(scripted(&net, id, layouts.clone(), Arc::new(|_| Reaction::Applied)).await);
    }
    let client = client(&net, &[4]);
    let mut expected = BTreeMap::new();
    for n in 0..100 {
        let key = key(&format!("key{n}"));
        client.put(&key, "grey", &WriteOptions::default()).await.unwrap();
        *expected.entry(primaries(&layouts, &key)[0]).or_insert(0) += 1;
    }
    let got: BTreeMap<u64, usize> = (1..).zip(writes(&seen)).filter(|(_, count)| *count > 0).collect();
    assert_eq!(got, expected);
    assert!(expected.len() >= 4, "the keys are spread: {expected:?}");
    assert_eq!(seen.iter().map(|seen| seen.count(GetLayout::KIND)).sum::<usize>(), 1);
}

/// Layout 1 with members 1 to 3, and the one that follows it with 1 to 6.
fn grown() -> Vec<Arc<Layout>> {
    let first = first_layout(3);
    let second = Arc::new(first.next(members(6)).unwrap());
    vec![second, first]
}

#[tokio::test]
async fn a_client_of_an_old_layout_takes_the_new_one_from_the_refusal_and_goes_on() {
    let net = MemoryNet::default();
    let new = grown();
    let old = vec![new[1].clone()];
    let (newest, layouts) = (new[0].reference(), new.clone());
    // Nodes 1 to 3 tell the old layout when asked, and refuse what goes by it: they have changed since.
    let script: Script = Arc::new(move |_| {
        Reaction::Refuse(Refusal {
            layouts: layouts.clone(),
            ..Refusal::new(RefusalCode::WrongLayout, "another layout")
        })
    });
    for id in 1..=3 {
        scripted(&net, id, old.clone(), script.clone()).await;
    }
    let mut joined = Vec::new();
    for id in 4..=6 {
        joined.push(scripted(&net, id, new.clone(), Arc::new(|_| Reaction::Applied)).await);
    }
    let key = key_of(&new, 5);
    let client = client(&net, &[1, 2, 3]);
    client.put(&key, "grey", &WriteOptions::default()).await.unwrap();
    assert_eq!(*joined[1].requests.lock().unwrap(), [(Put::KIND, newest)]);
    assert_eq!(client.layouts().await.unwrap()[0].reference(), newest);
}

#[tokio::test]
async fn an_answer_that_names_a_newer_layout_makes_the_client_ask_for_it() {
    let net = MemoryNet::default();
    let new = grown();
    let old = vec![new[1].clone()];
    // Node 1 is behind, and the one that is asked first; the others answer under the new layout.
    scripted(&net, 1, old.clone(), Arc::new(|_| Reaction::Applied)).await;
    let mut seen = Vec::new();
    for id in 2..=6 {
        seen.push(scripted(&net, id, new.clone(), Arc::new(|_| Reaction::Applied)).await);
    }
    let client = client(&net, &[1]);
    client.put(&key_of(&old, 2), "grey", &WriteOptions::default()).await.unwrap();
    client.put(&key_of(&new, 6), "grey", &WriteOptions::default()).await.unwrap();
    assert_eq!(client.layouts().await.unwrap()[0].reference(), new[0].reference());
    assert_eq!(seen[4].count(Put::KIND), 1, "the new primary takes the second write");
}

#[tokio::test]
async fn many_requests_share_a_connection_and_never_open_more_than_allowed() {
    let net = MemoryNet::default();
    let layouts = vec![first_layout(3)];
    let mut seen = Vec::new();
    for id in 1..=3 {
        seen.push(scripted(&net, id, layouts.clone(), Arc::new(|_| Reaction::Silence)).await);
    }
    let key = key_of(&layouts, 1);
    let client = || client_with(&net, &[2], |config| config.connections_per_node = 2);
    let options = WriteOptions { timeout: Some(Duration::from_millis(1500)), ..WriteOptions::default() };
    let ask = async |client: &Client, count: usize| {
        let outcomes = join_all((0..count).map(|_| client.put(&key, "x", &options))).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(ClientError::Unknown(_)))));
        (seen[0].connections.load(Ordering::SeqCst), seen[0].count(Put::KIND))
    };
    let (few, many) = (client(), client());
    assert_eq!(ask(&few, 100).await, (1, 100));
    assert_eq!(ask(&many, 500).await, (1 + 2, 600));
    // Until then the node is in doubt, and others would be asked.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // The first connection was given up, because nothing ever came over it.
    assert_eq!(ask(&few, 1).await, (4, 601));
}

#[tokio::test]
async fn a_cluster_that_comes_back_is_found_again() {
    let (net, layouts, _) = three(|_| Reaction::Applied).await;
    let key = key_of(&layouts, 1);
    let client = client_with(&net, &[1, 2, 3], |config| config.tries = 3);
    for id in 1..=3 {
        net.close(&member(id).client_addr);
    }
    for _ in 0..2 {
        let error = client.get(&key, &ReadOptions::default()).await.unwrap_err();
        assert!(matches!(&error, ClientError::Unreachable(why) if why.contains("n1:client")), "{error:?}");
        let error = client.put(&key, "x", &WriteOptions::default()).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable(_)), "nothing was sent: {error:?}");
    }
    for id in 1..=3 {
        net.reopen(&member(id).client_addr);
    }
    let client = Client::clone(&client);
    // Left alone for at most 3 s; each failed try takes up to a few hundred milliseconds of it.
    let mut tries = 0;
    while let Err(error) = client.put(&key, "x", &WriteOptions::default()).await {
        tries += 1;
        assert!(tries < 100, "{error}");
    }
}

#[tokio::test]
async fn a_client_stays_with_its_cluster() {
    let (net, layouts, seen) = three(|_| Reaction::Applied).await;
    let client = client_with(&net, &[1], |config| {
        config.cluster = Some(ClusterId(6));
        config.tries = 2;
    });
    let error = client.put(&key_of(&layouts, 1), "x", &WriteOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("belongs to cluster"), "{error}");
    assert_eq!(code(&error), Some(RefusalCode::WrongCluster));
    assert_eq!(writes(&seen), [0, 0, 0]);
}

fn code(error: &ClientError) -> Option<RefusalCode> {
    match error {
        ClientError::Refused(refusal) => Some(refusal.code),
        _ => None,
    }
}

/// The bad order: an address is given to somebody else, whose cluster would take the write as well as any.
#[tokio::test]
async fn a_node_of_another_cluster_at_a_known_address_is_sent_nothing() {
    let net = MemoryNet::default();
    let layouts = vec![Arc::new(Layout::first(partitions(), 1, members(1)).unwrap())];
    let hang_up = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = hang_up.clone();
    let script: Script = Arc::new(move |_| match told.load(Ordering::SeqCst) {
        true => Reaction::HangUp,
        false => Reaction::Applied,
    });
    scripted(&net, 1, layouts.clone(), script).await;
    let client = client_with(&net, &[1], |config| config.tries = 3);
    let key = key("dove");
    client.put(&key, "ours", &WriteOptions::default()).await.unwrap();

    let other = scripted_of(&net, 1, layouts, Arc::new(|_| Reaction::Applied), ClusterId(6)).await;
    hang_up.store(true, Ordering::SeqCst);
    let lost = client.put(&key, "lost", &WriteOptions::default()).await.unwrap_err();
    assert!(matches!(lost, ClientError::Unknown(_)), "{lost:?}");
    for _ in 0..3 {
        let error = client.put(&key, "theirs", &WriteOptions::default()).await.unwrap_err();
        assert_eq!(
            (code(&error), error.action()),
            (Some(RefusalCode::WrongCluster), Action::Fix),
            "{error:?}"
        );
        let error = client.get(&key, &ReadOptions::default()).await.unwrap_err();
        assert_eq!(code(&error), Some(RefusalCode::WrongCluster), "{error:?}");
        let batch = client.multi_put(&[batch_write("dove", "theirs")], None).await.remove(0).unwrap_err();
        assert_eq!(code(&batch), Some(RefusalCode::WrongCluster), "{batch:?}");
    }
    assert!(other.connections.load(Ordering::SeqCst) > 0, "it was seen");
    assert_eq!(*other.requests.lock().unwrap(), [], "and told nothing");
}

/// The bad order: two first connections at once, of which neither knows a cluster yet, so neither hello names one.
#[tokio::test]
async fn addresses_of_two_clusters_are_never_both_used() {
    let net = MemoryNet::default();
    let answers = || -> Script { Arc::new(|_| refuse(RefusalCode::BadRequest)) };
    let layouts = vec![first_layout(3)];
    let seen = [
        scripted_of(&net, 1, layouts.clone(), answers(), ClusterId(5)).await,
        scripted_of(&net, 2, layouts, answers(), ClusterId(6)).await,
    ];
    let client = client_with(&net, &[1, 2], |config| config.tries = 1);
    let addrs = [1, 2].map(|id| member(id).client_addr);
    let answered = join_all(addrs.iter().map(|addr| client.status(addr, None))).await;
    let codes: BTreeSet<_> = answered.iter().map(|answer| code(answer.as_ref().unwrap_err())).collect();
    assert_eq!(codes, [RefusalCode::BadRequest, RefusalCode::WrongCluster].map(Some).into());
    let asked = seen.each_ref().map(|seen| seen.requests.lock().unwrap().len());
    assert_eq!(asked.iter().sum::<usize>(), 1, "one of them was told something: {asked:?}");
}

/// Reads and writes of keys with each kind of quorum.
async fn works(client: &Client, round: &str) {
    for n in 0..20 {
        let key = key(&format!("{round}{n}"));
        let write = WriteOptions { w: Some(1 + n % 2), strict: n % 2 == 1, ..WriteOptions::default() };
        let read = ReadOptions { r: Some(2 - n % 2), strict: n % 2 == 1, ..ReadOptions::default() };
        client.put(&key, "x", &write).await.unwrap_or_else(|error| panic!("{round} {n}: {error}"));
        let reply = client.get(&key, &read).await.unwrap_or_else(|error| panic!("{round} {n}: {error}"));
        assert_eq!(reply.values.len(), 1, "{round} {n}");
    }
}

#[tokio::test]
async fn a_client_that_has_lost_all_its_seeds_goes_on_through_the_members_it_has_learned() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster.net, &[1]);
    // It has spoken to its seed alone so far.
    assert_eq!(client.layouts().await.unwrap().len(), 1);
    cluster.net.close(&member(1).client_addr);
    cluster.net.close(&member(1).peer_addr);
    cluster.nodes[0].stop();
    works(&client, "fresh").await;

    // The members move; the two that are left say so.
    let moved = |id: u64| Member { client_addr: format!("n{id}:moved"), ..member(id) };
    let old = cluster.nodes[1].layout();
    let new = Arc::new(old.next((1..=3).map(moved).collect()).unwrap());
    for (id, node) in (2..=3).zip(&cluster.nodes[1..]) {
        let port = cluster.net.listen(&format!("n{id}:moved")).await.unwrap();
        tokio::spawn(ringdove::server::serve_clients(node.clone(), port));
        node.adopt_layouts(vec![new.clone(), old.clone()]).await.unwrap();
    }
    works(&client, "told").await;
    assert_eq!(client.layouts().await.unwrap()[0].reference(), new.reference());
    // Where they were nobody is any more.
    for id in 2..=3 {
        cluster.net.close(&member(id).client_addr);
    }
    works(&client, "moved").await;
}

#[tokio::test]
async fn an_update_that_meets_a_conflict_every_time_gives_up_after_its_tries() {
    let (net, layouts, seen) = three(|kind| match kind {
        Put::KIND => refuse(RefusalCode::Conflict),
        _ => Reaction::Applied,
    })
    .await;
    let client = client_with(&net, &[1], |config| config.update_tries = 3);
    let mut asked = 0;
    let decide = |_: &[_]| {
        asked += 1;
        "x"
    };
    let outcome = client.update(&key_of(&layouts, 1), &WriteOptions::default(), decide).await;
    assert!(matches!(outcome, Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::Conflict));
    assert_eq!((asked, seen[0].count(Get::KIND), seen[0].count(Put::KIND)), (3, 3, 3));
}

#[tokio::test]
async fn an_update_whose_write_may_have_arrived_is_not_decided_again() {
    let (net, layouts, seen) = three(|kind| match kind {
        Put::KIND => Reaction::HangUp,
        _ => Reaction::Applied,
    })
    .await;
    let mut asked = 0;
    let decide = |_: &[_]| {
        asked += 1;
        "x"
    };
    let outcome = client(&net, &[1]).update(&key_of(&layouts, 1), &WriteOptions::default(), decide).await;
    assert!(matches!(outcome, Err(ClientError::Unknown(_))));
    assert_eq!((asked, writes(&seen)), (1, vec![1, 0, 0]));
}

#[tokio::test]
async fn updates_at_the_same_time_lose_nothing_that_was_acknowledged() {
    let cluster = Cluster::start(5).await;
    let dove = key("dove");
    let client = client_with(&cluster.net, &[1, 2], |config| config.update_tries = 50);
    let add = |element: String| {
        let (client, dove) = (client.clone(), dove.clone());
        async move {
            let options = WriteOptions::default();
            let written = client.update(&dove, &options, |siblings| {
                let mut set: BTreeSet<&str> = siblings
                    .iter()
                    .flat_map(|version| std::str::from_utf8(&version.value).unwrap().split(' '))
                    .collect();
                set.insert(&element);
                set.into_iter().collect::<Vec<_>>().join(" ")
            });
            let outcome = written.await;
            (element, outcome)
        }
    };
    let mut acknowledged = BTreeSet::new();
    for round in 0..5 {
        let outcomes = join_all((0..6).map(|task| add(format!("{round}.{task}")))).await;
        for (element, outcome) in outcomes {
            match outcome {
                Ok(_) => assert!(acknowledged.insert(element)),
                Err(error) => assert_eq!(error.action(), Action::ReadAgain, "{error:?}"),
            }
        }
    }
    assert!(acknowledged.len() >= 10, "{acknowledged:?}");
    let strict = ReadOptions { r: Some(3), strict: true, ..ReadOptions::default() };
    let read = client.get(&dove, &strict).await.unwrap();
    let there: BTreeSet<String> = read
        .values
        .iter()
        .flat_map(|version| std::str::from_utf8(&version.value).unwrap().split(' ').map(str::to_owned))
        .collect();
    assert!(there.is_superset(&acknowledged), "{:?}", acknowledged.difference(&there));
}

#[tokio::test]
async fn siblings_come_with_the_context_that_replaces_them() {
    let cluster = Cluster::start(4).await;
    let client = client(&cluster.net, &[1]);
    let dove = key("dove");
    for colour in ["grey", "white"] {
        client.put(&dove, colour, &WriteOptions::default()).await.unwrap();
    }
    let read = client.get(&dove, &ReadOptions::default()).await.unwrap();
    assert_eq!(read.values.len(), 2, "a write without a context overwrites nothing");
    client.put(&dove, "both", &WriteOptions::replacing(&read.context)).await.unwrap();
    let read = client.get(&dove, &ReadOptions::default()).await.unwrap();
    assert_eq!(read.values.iter().map(|version| &version.value[..]).collect::<Vec<_>>(), [b"both"]);
    client.delete(&dove, &WriteOptions::default()).await.unwrap();
    assert_eq!(client.get(&dove, &ReadOptions::default()).await.unwrap().values, []);
}

fn batch_write(name: &str, value: &str) -> BatchWrite {
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    BatchWrite { key: key(name), value, options: WriteOptions::default() }
}

#[tokio::test]
async fn batches_are_split_by_primary_and_survive_the_loss_of_a_node() {
    let cluster = Cluster::start(5).await;
    let client = client(&cluster.net, &[1, 2, 3, 4, 5]);
    client.layouts().await.unwrap();
    cluster.net.close(&member(3).client_addr);
    let names: Vec<String> = (0..1500).map(|n| format!("key{n:04}")).collect();
    let batch: Vec<BatchWrite> = names.iter().map(|name| batch_write(name, name)).collect();
    for (write, outcome) in batch.iter().zip(client.multi_put(&batch, None).await) {
        outcome.unwrap_or_else(|error| panic!("{}: {error}", write.key));
    }
    let keys: Vec<Key> = names.iter().map(|name| key(name)).chain([key("absent")]).collect();
    let mut reads = client.multi_get(&keys, &ReadOptions::default()).await;
    assert_eq!(reads.pop().unwrap().unwrap().values, []);
    for (name, read) in names.iter().zip(reads) {
        assert_eq!(read.unwrap().values[0].value, name.as_bytes());
    }
}

#[tokio::test]
async fn a_batch_says_of_each_write_what_became_of_it() {
    let (net, layouts, seen) = three(|kind| match kind {
        MultiPut::KIND => Reaction::HangUp,
        _ => Reaction::Applied,
    })
    .await;
    let client = client_with(&net, &[1], |config| config.tries = 3);
    net.close(&member(2).client_addr);
    net.close(&member(3).client_addr);
    let dove = key_of(&layouts, 1);
    let write = |value: &str| BatchWrite { key: dove.clone(), ..batch_write("dove", value) };
    let outcomes = client.multi_put(&[write("first"), write("second")], None).await;
    assert!(matches!(outcomes[0], Err(ClientError::Unknown(_))), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(ClientError::Invalid(_))), "{outcomes:?}");
    assert_eq!(seen[0].count(MultiPut::KIND), 1, "never sent again");
    let (net, ..) = three(|_| refuse(RefusalCode::UnknownOperation)).await;
    let read = self::client(&net, &[1]).multi_get(&[dove], &ReadOptions::default()).await;
    assert!(
        matches!(&read[0], Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::UnknownOperation)
    );
}

#[tokio::test]
async fn a_node_that_did_not_know_of_one_write_of_a_batch_or_refused_it_for_now_is_asked_last_for_a_while() {
    for refuses in [false, true] {
        let (net, layouts, seen) = three(move |kind| match kind {
            MultiPut::KIND if refuses => refuse(RefusalCode::TooFewReplicas),
            MultiPut::KIND => Reaction::Unknown,
            _ => Reaction::Applied,
        })
        .await;
        let client = client(&net, &[2, 3]);
        let keys: Vec<Key> = (0..1000)
            .map(|n| key(&format!("key{n}")))
            .filter(|key| primaries(&layouts, key)[0] == 1)
            .take(3)
            .collect();
        let batch: Vec<BatchWrite> =
            keys.iter().map(|key| BatchWrite { key: key.clone(), ..batch_write("dove", "grey") }).collect();
        let unknown = client.multi_put(&batch, None).await.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!(unknown, usize::from(!refuses), "others take what was refused");
        for outcome in client.multi_put(&batch, None).await {
            outcome.expect("the others are well");
        }
        client.put(&keys[0], "grey", &WriteOptions::default()).await.expect("the others are well");
        assert_eq!((seen[0].count(MultiPut::KIND), writes(&seen)[0]), (1, 0), "refuses: {refuses}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        client.put(&keys[0], "grey", &WriteOptions::default()).await.expect("it is well");
        assert_eq!(writes(&seen)[0], 1, "refuses: {refuses}");
    }
}

#[tokio::test]
async fn a_scan_gives_every_key_once_in_order_over_as_many_pages_as_it_takes() {
    let cluster = Cluster::start(4).await;
    let client = client(&cluster.net, &[2]);
    let names: BTreeSet<String> = (0..230).map(|n| format!("dove/{:03}", n * 7 % 230)).collect();
    let batch: Vec<BatchWrite> = names.iter().map(|name| batch_write(name, "x")).collect();
    assert!(client.multi_put(&batch, None).await.iter().all(Result::is_ok));
    client.put(&key("eagle"), "x", &WriteOptions::default()).await.unwrap();
    let scan = Scan { limit: 50, ..Scan::prefix(b"dove/") };
    let items: Vec<_> = client.scan(scan.clone()).items().try_collect().await.unwrap();
    let keys: Vec<String> =
        items.iter().map(|item| String::from_utf8(item.key.as_bytes().to_vec()).unwrap()).collect();
    assert_eq!(keys, names.iter().cloned().collect::<Vec<_>>());

    // From the middle on, with the cursor of a page that somebody else has read.
    let mut pages = client.scan(scan.clone());
    let page = pages.next_page().await.unwrap().unwrap();
    assert!(!page.items.is_empty() && page.more);
    let rest = client.scan(Scan { after: page.cursor, ..scan }).items();
    assert_eq!(rest.count().await, names.len() - page.items.len());
}
