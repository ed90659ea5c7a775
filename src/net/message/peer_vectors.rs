//! The vectors of docs/PROTOCOL.md for what nodes say to each other, and that there is one of every kind.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::hashes::{layout, record};
use super::vectors::{Checked, answer, head, on_the_page};
use super::*;
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::Layout;
use crate::dynamo::membership::Heartbeat;
use crate::dynamo::reaping::{Fences, KeyVote};
use crate::dynamo::version::Dot;
use crate::net::parts::{PART, Part};
use crate::types::{ActorId, Incarnation, Key, Namespace, NodeId, PartitionId};

#[test]
fn the_protocol_page_shows_what_nodes_say_to_each_other() {
    let mut checked = Checked::new("Peer vectors");
    let namespace = Namespace(0);
    let (key, partition) = (Key::new(&b"dove"[..]).unwrap(), PartitionId(9));
    let fences = Fences { raised: 9, committed: 8 };
    let version_hash = 0x0123_4567_89ab_cdef;
    let dot = Dot { actor: ActorId { incarnation: Incarnation(0x1122), epoch: 2 }, counter: 300 };

    let fetch = Fetch { namespace, key: key.clone(), unless: Some(version_hash) };
    checked.check("fetch, version 1", &Fetch { unless: None, ..fetch.clone() }, head(1));
    checked.check("fetch, version 2", &fetch, head(2));
    let same = FetchReply { record: None, refilling: false, fences };
    checked.check("fetch reply, version 2", &same, answer(2));
    let reply = FetchReply { record: Some(record()), ..same };
    let old = FetchReply { fences: Fences::default(), ..reply.clone() };
    checked.check("fetch reply with a record, version 1", &old, answer(1));
    checked.check("fetch reply with a record, version 2", &reply, answer(2));
    let store = Store {
        namespace,
        key: key.clone(),
        record: record(),
        guest_of: vec![NodeId(2)],
        durability: Durability::Interval(100),
        fences,
    };
    let old = Store { durability: Durability::Sync, fences: Fences::default(), ..store.clone() };
    checked.check("store, version 1", &old, head(1));
    checked.check("store, version 2", &store, head(2));
    checked.check("store reply, version 1", &StoreReply::Kept, answer(1));
    checked.check("store reply, version 2", &StoreReply::Kept, answer(2));
    checked.check("store reply, fenced, version 2", &StoreReply::Fenced(fences), answer(2));

    let (from, to) = (Bytes::from_static(b"do"), Bytes::from_static(b"dp"));
    let partitions = vec![partition, PartitionId(300)];
    let scan = ScanKeys {
        namespace,
        from,
        to,
        order: Order::Ascending,
        after: Some(key.clone()),
        limit: 10,
        partitions,
    };
    checked.check("scan keys, version 2", &scan, head(2));
    let held = HeldKey { key: key.clone(), version_hash, bytes: 300 };
    let unready = vec![PartitionId(300)];
    let reply = ScanKeysReply { keys: vec![held], more: true, unready, fences: vec![(partition, fences)] };
    checked.check("scan keys reply, version 2", &reply, answer(2));
    checked.check("fetch many, version 2", &FetchMany { namespace, keys: vec![key.clone()] }, head(2));
    let records = vec![Ok((record(), fences)), Err(RefusalCode::Corrupt)];
    checked.check("fetch many reply, version 2", &FetchManyReply { records }, answer(2));

    let active = vec![layout()];
    checked.check("offer layouts, version 2", &OfferLayouts { active: active.clone() }, head(2));
    checked.check("offer layouts reply, version 2", &OfferLayoutsReply { active }, answer(2));
    let heard = vec![(NodeId(1), Heartbeat { generation: 3, count: 300 })];
    checked.check("gossip, version 2", &Gossip { heard: heard.clone() }, head(2));
    checked.check("gossip reply, version 2", &GossipReply { newer: heard }, answer(2));
    let ask = TreeHashes { partition, level: 2, indices: vec![1, 3], fences };
    checked.check("tree hashes, version 2", &ask, head(2));
    let reply = TreeHashesReply { bits: 4, hashes: vec![version_hash, 0], fences };
    checked.check("tree hashes reply, version 2", &reply, answer(2));
    let ask = LeafKeys { partition, bits: 4, leaves: vec![1, 3], after: Some((namespace, key.clone())) };
    checked.check("leaf keys, version 2", &ask, head(2));
    let held = HeldEntry { namespace, key: key.clone(), version_hash };
    checked.check("leaf keys reply, version 2", &LeafKeysReply { keys: vec![held], more: true }, answer(2));

    let keys = vec![ReapKey { namespace, key: key.clone(), version_hash, drop: vec![dot] }];
    checked.check("vote, version 2", &Vote { partition, fence: 9, keys: keys.clone() }, head(2));
    let votes = vec![KeyVote::Yes, KeyVote::TooSoon];
    checked.check("vote reply, version 2", &VoteReply { fences, votes }, answer(2));
    checked.check("commit, version 2", &Commit { partition, fence: 9, keys }, head(2));
    checked.check("commit reply, version 2", &CommitReply { reaped: 1 }, answer(2));
    checked.check("ask fences, version 2", &AskFences { node: NodeId(2) }, head(2));
    let reply = AskFencesReply { fences: vec![(partition, fences, 7)] };
    checked.check("ask fences reply, version 2", &reply, answer(2));
    checked.check("ask transfers, version 2", &AskTransfers, head(2));
    checked.check("ask transfers reply, version 2", &AskTransfersReply { left: 5, oldest: 3 }, answer(2));
    checked.check("join, version 2", &Join { node: NodeId(2) }, head(2));
    let (q, n) = (layout().q(), layout().n());
    let random = std::array::from_fn(|at| u8::try_from(at).unwrap());
    let descriptor = ClusterDescriptor::new(q, n, &random);
    let reply = JoinReply { descriptor, active: vec![Layout::clone(&layout())] };
    checked.check("join reply, version 2", &reply, answer(2));
    checked.check("inspect, version 2", &Inspect { namespace, key }, head(2));
    checked.done();
}

#[test]
fn the_protocol_page_shows_every_kind_of_message() {
    let shown = [on_the_page("Vectors"), on_the_page("Peer vectors")];
    let kinds = shown.iter().flat_map(|section| section.values()).map(|bytes| {
        let frame = Frame::decode(&bytes.clone().into()).expect("a whole frame");
        (frame.head.kind, frame.head.version)
    });
    let shown: BTreeSet<(u16, u8)> = kinds.collect();
    for (kind, _, name) in KINDS {
        // What greets has the form of version 1 for ever.
        let version = if [Hello::KIND, Welcome::KIND].contains(kind) { HANDSHAKE_VERSION } else { VERSION };
        assert!(shown.contains(&(*kind, version)), "{name} has no vector of version {version}");
        if is_changed(name) {
            assert!(shown.contains(&(*kind, VERSION_MIN)), "{name} has no vector of version {VERSION_MIN}");
        }
    }
}

/// Whether a message had another form in version 1.
fn is_changed(name: &str) -> bool {
    const CHANGED: [&str; 9] =
        ["Refusal", "Get", "GetReply", "Put", "PutReply", "Fetch", "FetchReply", "Store", "StoreReply"];
    CHANGED.contains(&name)
}

#[test]
fn the_protocol_page_shows_a_part_of_a_message() {
    let mut checked = Checked::new("Vectors of parts");
    let part = Part { kind: Put::KIND, total: 300_000, bytes: Bytes::from_static(b"\x00\x04dove") };
    let mut body = Vec::new();
    codec::encode_into(&part, &mut body).unwrap();
    let frame = Frame { head: FrameHead { kind: PART, ..head(2) }, body: body.into() };
    checked.check_frame("part, version 2", &frame, |body| codec::decode::<Part>(body).as_ref() == Ok(&part));
    let part = Part { kind: GetReply::KIND, ..part };
    let mut body = Vec::new();
    codec::encode_into(&part, &mut body).unwrap();
    let frame = Frame { head: FrameHead { kind: PART | 0x8000, ..answer(2) }, body: body.into() };
    checked.check_frame("part of an answer, version 2", &frame, |body| {
        codec::decode::<Part>(body).as_ref() == Ok(&part)
    });
    checked.done();
}
