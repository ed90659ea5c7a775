//! What comes from sockets: the bodies of those fuzz targets, on arbitrary bytes and on mutated messages. Nothing
//! panics, what was read reads back as it is written, and nothing takes memory out of proportion to the bytes.
//!
//! `RINGDOVE_FUZZ_RUNS=1000000 cargo test --release --test fuzzing messages -- --nocapture` goes on for longer.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::Path;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringdove::dynamo::reaping::{Against, Fences, KeyVote};
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::{Dot, Meta, Record, Sibling, Token, TokenSecret, VersionVector};
use ringdove::gateway::fuzzing as rest;
use ringdove::net::codec;
use ringdove::net::envelope::{Frame, FrameHead};
use ringdove::net::fuzzing as net;
use ringdove::net::message::*;
use ringdove::storage::fuzzing;
use ringdove::types::{ActorId, ClusterId, LayoutRef, RequestId};

use ringdove::dynamo::layout::{Layout, Member};
use ringdove::dynamo::version::Content;
use ringdove::types::{Incarnation, Key, Namespace, NodeId, PartitionId, Wall, WriteId};

use super::{counting, mutate};

/// Most bytes that reading may take: for each byte, and whatever comes. What costs most is a layout's assignment, of
/// which a byte becomes a node's id three times over while the layout is checked, hashed, compared and written again.
const WIRE_EACH: usize = 100;
const WIRE_LEAST: usize = 2 * 1024 * 1024;
/// Mutated inputs of one run for each target, unless `RINGDOVE_FUZZ_RUNS` asks for more.
const WIRE_RUNS: u64 = 4_000;

/// What a target makes of an input: how much of it came through.
type Target = fn(&[u8]) -> usize;

const TARGETS: [(&str, Target); 10] = [
    ("frames", net::frames),
    ("parts", net::parts),
    ("handshake", |input| net::handshake(input).into()),
    ("client_messages", |input| net::client(input).into()),
    ("peer_messages", |input| net::peer(input).into()),
    ("layouts", |input| net::layouts(input).into()),
    ("token", |input| net::token(input).into()),
    ("rest_value", |input| rest::value(input).into()),
    ("rest_batch", rest::batch),
    ("rest_headers", rest::headers),
];

fn run(name: &str, target: Target, input: &[u8], told: &str) -> usize {
    let (through, peak) = counting::peak(|| target(input));
    let most = WIRE_LEAST + WIRE_EACH * input.len();
    assert!(peak <= most, "{name}, {told}: {peak} bytes of memory for {} bytes, at most {most}", input.len());
    through
}

fn body<M: Message>(message: &M, version: u8) -> Vec<u8> {
    let mut body = Vec::new();
    message.encode(version, &mut body).unwrap();
    body
}

fn key() -> Key {
    Key::new(&b"dove"[..]).unwrap()
}

fn dot(counter: u64) -> Dot {
    Dot { actor: ActorId { incarnation: Incarnation(0x1122), epoch: 2 }, counter }
}

fn meta() -> Option<Box<Meta>> {
    let pairs = [("a".to_owned(), "b".to_owned())].into();
    Some(Box::new(Meta { content_type: Some("text/plain".to_owned()), pairs }))
}

fn record() -> Record {
    let sibling = |counter, content| Sibling {
        dot: dot(counter),
        write_id: WriteId(counter.into()),
        content,
        meta: meta(),
        expires_at: Some(Wall(9)),
        written_at: Wall(8),
    };
    let context: VersionVector = [dot(300)].into_iter().collect();
    let value = Content::Value(Bytes::from_static(b"coo"));
    Record::from_parts(context, vec![sibling(1, value), sibling(300, Content::Tombstone)]).unwrap()
}

/// A body of every kind, in every version that has it.
fn bodies() -> Vec<(u16, u8, Vec<u8>)> {
    let mut all: Vec<(u16, u8, Vec<u8>)> = Vec::new();
    fn enter<M: Message>(all: &mut Vec<(u16, u8, Vec<u8>)>, message: &M) {
        for version in M::SINCE..=VERSION {
            let mut body = Vec::new();
            if message.encode(version, &mut body).is_ok() {
                all.push((M::KIND, version, body));
            }
        }
    }
    let layout = LayoutRef { version: 3, hash: 7 };
    let layouts: Vec<_> = net::some_layouts().into_iter().rev().collect();
    let hello = ringdove::net::link::hello(Spoken::default(), Some(ClusterId(5)), Some(NodeId(2)));
    enter(&mut all, &hello);
    let (cluster, node) = (ClusterId(5), NodeId(1));
    enter(&mut all, &Welcome { version: 2, features: 1, auth: AuthMethod::None, cluster, node, layout });
    let refusal = Refusal::new(RefusalCode::BadRequest, "no");
    enter(&mut all, &refusal);
    let wrong = Refusal { layouts: layouts.clone(), ..Refusal::new(RefusalCode::WrongLayout, "another") };
    enter(&mut all, &wrong);
    let get = Get { quorum: Quorum { r: Some(2), w: None, strict: false }, ..Get::new(key()) };
    enter(&mut all, &get);
    let version = Version {
        write_id: WriteId(7),
        dot: dot(300),
        value: Bytes::from_static(b"coo"),
        meta: meta(),
        expires_at: None,
        written_at: Wall(1_700_000_000_000),
    };
    let replicas = Replicas { asked: 3, primaries: vec![NodeId(1)], fallbacks: vec![NodeId(3)], layout };
    let got = GetReply {
        values: vec![version.clone()],
        hidden: vec![Hidden { write_id: WriteId(6), dot: dot(1), why: HiddenWhy::Expired }],
        tombstones: 1,
        expired: 0,
        context: Bytes::from_static(b"token"),
        replicas: replicas.clone(),
    };
    enter(&mut all, &got);
    let simple = Put { durability: Some(Durability::Sync), ..Put::new(key(), WriteId(7), &b"coo"[..]) };
    enter(&mut all, &simple);
    let full = Put {
        meta: meta(),
        expiry: Expiry::After(60_000),
        condition: Condition::Match(Bytes::from_static(b"token")),
        durability: Some(Durability::Interval(100)),
        return_record: true,
        ..simple.clone()
    };
    enter(&mut all, &full);
    let put = PutReply {
        outcome: PutOutcome::Unknown { have: 1, need: 2, reason: "time ran out".to_owned() },
        dot: Some(dot(2)),
        overwrote: vec![WriteId(6)],
        siblings: vec![version.clone()],
        written: Some(version.clone()),
        context: Bytes::new(),
        replicas,
    };
    enter(&mut all, &put);
    enter(&mut all, &GetLayout);
    enter(&mut all, &LayoutReply { active: layouts.clone() });
    enter(&mut all, &Ping);
    enter(&mut all, &Pong);
    enter(&mut all, &MultiGet { gets: vec![get.clone(), get] });
    enter(&mut all, &MultiGetReply { replies: vec![Ok(got), Err(refusal.clone())] });
    enter(&mut all, &MultiPut { puts: vec![simple, full] });
    enter(&mut all, &MultiPutReply { replies: vec![Ok(put), Err(refusal)] });
    enter(&mut all, &Scan { after: Some(key()), r: Some(1), ..Scan::prefix(b"do") });
    let item = ScanItem { key: key(), values: vec![version], context: Bytes::from_static(b"token") };
    let missing = vec![PartitionId(3)];
    enter(&mut all, &ScanReply { items: vec![item], more: true, cursor: Some(key()), missing, layout });
    enter(&mut all, &Status);
    let status = StatusReply {
        node,
        cluster,
        program: "0.1.0".to_owned(),
        uptime_ms: 5,
        stopping: false,
        layout,
        peers_down: vec![NodeId(2)],
        peers: vec![PeerView {
            node: NodeId(2),
            state: PeerState::Down(PeerDown::Silent),
            phi_thousandths: 4_100,
            heard_ms_ago: 9_000,
        }],
        partitions: 8,
        partitions_refilled: 8,
        data_keys: 300,
        guest_keys: 1,
        log_bytes: 70_000,
        live_bytes: 7,
        damaged_records: 0,
        in_flight: 2,
    };
    enter(&mut all, &status);
    enter(&mut all, &Explain { namespace: Namespace(0), key: key() });
    let sibling = SiblingView {
        dot: dot(300),
        write_id: WriteId(7),
        value_len: Some(3),
        written_at: Wall(8),
        expires_at: Some(Wall(9)),
    };
    let held = HeldCopy {
        version_hash: 5,
        context: vec![(dot(300).actor, 300)],
        context_len: 1,
        siblings: vec![sibling],
        siblings_len: 1,
        owed_to: vec![NodeId(3)],
    };
    let inspected = InspectReply {
        incarnations: vec![Incarnation(0x1122)],
        data: CopyView::Held(held),
        guest: CopyView::Unreadable("damaged".to_owned()),
        refilled: true,
        fence: 1,
        committed: 1,
        bits: 4,
        leaf: 3,
        leaf_hash: 77,
    };
    enter(&mut all, &Inspect { namespace: Namespace(0), key: key() });
    enter(&mut all, &inspected);
    let member = |told| MemberView {
        node,
        is_primary: true,
        zone: "a".to_owned(),
        state: PeerState::Down(PeerDown::Silent),
        heard_ms_ago: 9_000,
        told,
    };
    let explained = ExplainReply {
        partition: PartitionId(3),
        layout,
        asked: node,
        now: Wall(10),
        members: vec![member(Ok(inspected)), member(Err("no answer".to_owned()))],
        words: vec!["all 3 replicas agree".to_owned()],
    };
    enter(&mut all, &explained);
    enter(&mut all, &Trees { partition: Some(PartitionId(3)) });
    let tree = TreeView {
        partition: PartitionId(3),
        root: 77,
        bits: 4,
        keys: 300,
        refilled: true,
        fence: 2,
        committed: 1,
    };
    enter(&mut all, &TreesReply { trees: vec![tree, tree] });
    enter(&mut all, &Repair { partition: PartitionId(3) });
    let failed = Compared { ended: Ended::Failed("it is down".to_owned()), ..Compared::not_yet(node) };
    let compared = vec![failed, Compared { keys: 3, bytes: 300, ended: Ended::Done, other: node }];
    enter(&mut all, &RepairReply { compared, trouble: Some("damaged".to_owned()) });
    let namespace = Namespace(0);
    enter(&mut all, &Fetch { namespace, key: key(), unless: Some(9) });
    let fences = Fences { raised: 300, committed: 299 };
    enter(&mut all, &FetchReply { record: Some(record()), refilling: true, fences });
    let guest_of = vec![NodeId(1), NodeId(2)];
    let durability = Durability::Interval(5);
    enter(&mut all, &Store { namespace, key: key(), record: record(), guest_of, durability, fences });
    enter(&mut all, &StoreReply::Fenced(fences));
    let partition = PartitionId(7);
    let drop = record().siblings().iter().map(|sibling| sibling.dot).collect();
    let keys = vec![ReapKey { namespace, key: key(), version_hash: record().version_hash(), drop }];
    enter(&mut all, &Vote { partition, fence: 300, keys: keys.clone() });
    enter(&mut all, &VoteReply { fences, votes: vec![KeyVote::Yes, KeyVote::Guest] });
    enter(&mut all, &Commit { partition, fence: 300, keys });
    enter(&mut all, &CommitReply { reaped: 1 });
    enter(&mut all, &AskFences { node });
    enter(&mut all, &AskFencesReply { fences: vec![(partition, fences, 7)] });
    enter(&mut all, &TreeHashes { partition, level: 1, indices: vec![0, 1], fences });
    enter(&mut all, &TreeHashesReply { bits: 4, hashes: vec![1, 2], fences });
    enter(&mut all, &Reaping);
    let against = vec![(NodeId(2), Against::Key(KeyVote::Differs), 3), (NodeId(3), Against::Silent, 1)];
    let round = ReapRound { partition, fence: 300, ago_ms: 5, keys: 4, agreed: 1, against: against.clone() };
    let away = vec![NodeId(3)];
    let (rounds, last) = (1, vec![round]);
    enter(
        &mut all,
        &ReapingReply { reapable: 9, grace_ms: 1, away, rounds, keys: 4, agreed: 1, against, last },
    );
    let scan = ScanKeys {
        namespace,
        from: Bytes::new(),
        to: Bytes::from_static(b"x"),
        order: Order::Descending,
        after: None,
        limit: 10,
        partitions: vec![PartitionId(0), PartitionId(7)],
    };
    enter(&mut all, &scan);
    let held = HeldKey { key: key(), version_hash: record().version_hash(), bytes: 40 };
    let (at, fences) = (PartitionId(1), Fences { raised: 3, committed: 2 });
    enter(
        &mut all,
        &ScanKeysReply { keys: vec![held], more: false, unready: vec![at], fences: vec![(at, fences)] },
    );
    enter(&mut all, &FetchMany { namespace, keys: vec![key()] });
    enter(&mut all, &FetchManyReply { records: vec![Ok((record(), fences)), Err(RefusalCode::Corrupt)] });
    enter(&mut all, &OfferLayouts { active: layouts.clone() });
    enter(&mut all, &OfferLayoutsReply { active: layouts.clone() });
    enter(&mut all, &Join { node });
    let active = layouts.iter().map(|layout| (**layout).clone()).collect();
    enter(&mut all, &JoinReply { descriptor: fuzzing::descriptor(), active });
    all
}

/// Valid inputs of each target.
fn inputs() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let mut inputs: BTreeMap<&'static str, Vec<Vec<u8>>> = BTreeMap::new();
    let mut enter = |target, input: Vec<u8>| inputs.entry(target).or_default().push(input);
    let mut stream = vec![1, 4];
    for (kind, version, body) in bodies() {
        let of = |groups: fn(u16) -> bool| KINDS.iter().map(|kind| kind.0).filter(move |kind| groups(*kind));
        let (target, groups): (_, fn(u16) -> bool) = match kind & 0x7f00 {
            0 => ("handshake", |kind| kind & 0x7f00 == 0),
            0x0100 => ("client_messages", |kind| kind & 0x7f00 == 0x0100),
            _ => ("peer_messages", |kind| kind & 0x7f00 == 0x0200),
        };
        let index = u8::try_from(of(groups).position(|other| other == kind).unwrap()).unwrap();
        enter(target, [&[index, version - VERSION_MIN][..], &body].concat());
        let head = FrameHead { kind, version, request_id: RequestId(1), ..FrameHead::default() };
        stream.extend_from_slice(&Frame { head, body: body.into() }.encode());
    }
    enter("frames", stream);
    // Two large messages: one in parts, and one for which there is no room.
    let large = |len: usize| {
        let head = FrameHead { kind: 0x0102, version: 2, ..FrameHead::default() };
        Frame { head, body: vec![7; len].into() }.encode()
    };
    enter("frames", [&[3, 200][..], &large(70_000), &large(200_000), &large(3)].concat());
    let part = |total: u32, len: usize| {
        let mut body = Vec::new();
        codec::encode_into(&(0x0102_u16, total, Bytes::from(vec![7; len])), &mut body).unwrap();
        let head = FrameHead { kind: 3, version: 2, request_id: RequestId(9), ..FrameHead::default() };
        Frame { head, body: body.into() }.encode()
    };
    enter("frames", [&[3, 9][..], &part(500, 200), &large(3), &part(500, 300)].concat());
    let step = |id: u8, total: u16, len: u16| {
        let ([t0, t1], [l0, l1]) = (total.to_le_bytes(), len.to_le_bytes());
        vec![id, 2, t0, t1, l0, l1, id]
    };
    let two = [step(1, 30, 10), step(2, 5, 5), step(1, 30, 20), step(2, 7, 6), step(2, 7, 1)];
    enter("parts", two.concat());
    let full = (0..5).flat_map(|id| step(id, 60_000, 30_000)).chain(step(1, 60_000, 30_000));
    enter("parts", full.collect());
    let layouts = net::some_layouts();
    for active in [&layouts[..1], &layouts[..2], &layouts[1..], &layouts[..], &layouts[2..]] {
        let active = active.iter().rev().cloned().collect();
        enter("layouts", body(&OfferLayouts { active }, VERSION));
    }
    let other = layouts[0].next(layouts[0].members()[1..].to_vec()).unwrap();
    enter("layouts", body(&OfferLayouts { active: vec![other.into(), layouts[0].clone()] }, VERSION));
    let dove = key();
    let secret = TokenSecret([7; 32]);
    let token = Token { secret: &secret, cluster: ClusterId(5), namespace: Namespace(0), key: &dove };
    let second = Dot { actor: ActorId { incarnation: Incarnation(9), epoch: 1 }, counter: 1 };
    for context in
        [VersionVector::new(), [dot(3)].into_iter().collect(), [dot(3), second].into_iter().collect()]
    {
        enter("token", [&[1][..], &token.seal(&context).unwrap()].concat());
    }
    for text in [
        r#"{"value": "coo"}"#,
        r#"{"value_base64": "AAH/", "ttl": "10m", "content_type": "a/b", "meta": {"a": "b", "c": ""}}"#,
        r#"{"value": "é\u00e9\ud83d\ude00", "ttl": "7d"}"#,
    ] {
        enter("rest_value", text.as_bytes().to_vec());
    }
    for text in [
        r#"{"operations": [{"op": "get", "key": "a"}, {"op": "get", "key_base64": "/w=="}]}"#,
        r#"{"operations": [{"op": "put", "key": "a", "value": "x", "ttl": "1s", "if_absent": true},
            {"op": "delete", "key": "b", "context": "AAAA"}, {"op": "delete", "key": "c",
            "write_id": "000102030405060708090a0b0c0d0e0f", "if_match": "_-8"}]}"#,
    ] {
        enter("rest_batch", text.as_bytes().to_vec());
    }
    for text in [
        "\x00AAAA\n\x0300-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n\x05text/plain",
        "\x01\"AAAA\"\n\x04text/html, application/json;q=0.5",
        "\x02*\n\x06000102030405060708090a0b0c0d0e0f",
    ] {
        enter("rest_headers", text.as_bytes().to_vec());
    }
    inputs
}

#[test]
fn mutated_messages_are_read_or_refused_within_bounds() {
    let runs = std::env::var("RINGDOVE_FUZZ_RUNS").map_or(WIRE_RUNS, |runs| runs.parse().unwrap());
    let first = std::env::var("RINGDOVE_FUZZ_SEED").map_or(0, |seed| seed.parse().unwrap());
    let inputs = inputs();
    for (name, target) in TARGETS {
        let valid = &inputs[name];
        for (n, input) in valid.iter().enumerate() {
            assert!(run(name, target, input, "whole") > 0, "{name}: the valid input {n} is refused");
        }
        let (mut failed, mut through) = (Vec::new(), 0_u64);
        for seed in first..first + runs {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut input = valid[random.random_range(0..valid.len())].clone();
            mutate(&mut input, valid, &mut random);
            let told = format!("RINGDOVE_FUZZ_SEED={seed} RINGDOVE_FUZZ_RUNS=1");
            match catch_unwind(|| run(name, target, &input, &told)) {
                Ok(came) => through += u64::from(came > 0),
                Err(_) => {
                    eprintln!("{name} at {told}");
                    failed.push(seed);
                }
            }
            if failed.len() == 20 {
                break;
            }
        }
        assert!(failed.is_empty(), "{name}: seeds {failed:?}");
        println!("{name}: {through} of {runs} mutated inputs came through");
        // Enough of them come far.
        assert!(through >= runs / 100, "{name}: {through} of {runs} came through");
    }
}

/// The adversary sends as many of the smallest items as a message holds: each takes some bytes on the wire and some
/// hundreds in memory, and room was reserved for the bytes alone.
#[test]
fn lists_of_the_smallest_items_take_no_more_than_their_bytes_warrant() {
    let refusal = body(&Refusal::new(RefusalCode::BadRequest, ""), VERSION);
    let get = body(&Get::new(Key::new(&b"k"[..]).unwrap()), VERSION);
    let put = body(&Put::delete(Key::new(&b"k"[..]).unwrap(), WriteId(0)), VERSION);
    let err = [&[1][..], &refusal].concat();
    let lists: [(u16, &[u8]); 7] = [
        (MultiGet::KIND, &get),
        (MultiGetReply::KIND, &err),
        (MultiPut::KIND, &put),
        (MultiPutReply::KIND, &err),
        (FetchManyReply::KIND, &[1, 0]),
        (ScanKeysReply::KIND, &[1, b'k', 0, 0]),
        (LayoutReply::KIND, &[1, 0]),
    ];
    for (kind, item) in lists {
        let count: u32 = 1 << 18;
        let mut long = vec![252];
        long.extend_from_slice(&count.to_le_bytes());
        long.extend_from_slice(&item.repeat(count as usize));
        let head = FrameHead { kind, version: VERSION, ..FrameHead::default() };
        let frame = Frame { head, body: long.into() };
        let (refused, peak) = counting::peak(|| match kind {
            MultiGet::KIND => MultiGet::from_frame(&frame).is_err(),
            MultiGetReply::KIND => MultiGetReply::from_frame(&frame).is_err(),
            MultiPut::KIND => MultiPut::from_frame(&frame).is_err(),
            MultiPutReply::KIND => MultiPutReply::from_frame(&frame).is_err(),
            FetchManyReply::KIND => FetchManyReply::from_frame(&frame).is_err(),
            ScanKeysReply::KIND => ScanKeysReply::from_frame(&frame).is_err(),
            _ => LayoutReply::from_frame(&frame).is_err(),
        });
        assert!(refused && peak < WIRE_LEAST, "{kind:#06x}: {peak} bytes of memory");
    }
}

/// What has no bound of items but that of a body, for a peer of the largest cluster may send it: a byte each.
#[test]
fn the_largest_layout_takes_what_its_bytes_warrant() {
    let members: Vec<Member> = (1..=20)
        .map(|id| Member {
            id: NodeId(id),
            peer_addr: String::new(),
            client_addr: String::new(),
            zone: String::new(),
            capacity: 1,
        })
        .collect();
    let layout = Layout::first(PartitionCount::new(4096).unwrap(), 3, members).unwrap();
    let input = body(&OfferLayouts { active: vec![layout.into()] }, VERSION);
    assert_eq!(run("layouts", |input| net::layouts(input).into(), &input, "large"), 1);
}

/// Valid inputs for the fuzzers to begin from, in `fuzz/corpus`.
#[test]
#[ignore = "writes files"]
fn a_corpus_of_messages_is_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, inputs) in inputs() {
        std::fs::create_dir_all(root.join(target)).unwrap();
        for (n, input) in inputs.iter().enumerate() {
            std::fs::write(root.join(target).join(n.to_string()), input).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_from_a_socket_are_refused_within_bounds(input in vec(any::<u8>(), 0..600)) {
        for (name, target) in TARGETS {
            run(name, target, &input, "arbitrary");
        }
    }

    #[test]
    fn arbitrary_parts_hold_no_more_than_there_is_room_for(
        steps in vec((0..4_u8, 0..2_u8, 0..40_u16, 0..20_u16), 0..40), scale in 1..1500_u16,
    ) {
        let steps = steps.iter().flat_map(|(id, kind, total, len)| {
            let ([t0, t1], [l0, l1]) = ((total * scale / 2).to_le_bytes(), (len * scale / 2).to_le_bytes());
            [*id, *kind, t0, t1, l0, l1, *id]
        });
        let input: Vec<u8> = steps.collect();
        // What is put together here is larger than what says so.
        net::parts(&input);
    }

    #[test]
    fn arbitrary_paths_and_queries_are_refused_or_read(
        path in "(/kv/|/scan\\?)?[a-z%0-9=&+_.]{0,40}", rest in vec(any::<u8>(), 0..20),
    ) {
        rest::query(path.as_bytes());
        rest::query(&rest);
        run("rest_query", |input| rest::query(input).into(), &[path.as_bytes(), &rest].concat(), "arbitrary");
    }

    #[test]
    fn arbitrary_headers_are_refused_or_read(
        lines in vec((0_u8..7, "[ -~]{0,12}|(W/)?\"?[A-Za-z0-9_-]{0,12}\"?|\\*|00-[0-9a-f]{31,33}-[0-9a-f]{4}"), 0..6),
        rest in vec(any::<u8>(), 0..20),
    ) {
        let lines: Vec<String> = lines.iter().map(|(which, value)| format!("{}{value}", char::from(*which))).collect();
        let lines = lines.join("\n");
        run("rest_headers", rest::headers, lines.as_bytes(), "arbitrary");
        run("rest_headers", rest::headers, &[lines.as_bytes(), &rest].concat(), "arbitrary");
    }
}
