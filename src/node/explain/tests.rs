//! What is said about a key, by what the members told.

use std::time::Duration;

use bytes::Bytes;

use super::held;
use super::words::{Waits, words};
use crate::dynamo::version::{Caps, Content, Overwrite, Record, Write};
use crate::net::message::{
    CopyView, ExplainReply, HeldCopy, InspectReply, MemberView, PeerDown, PeerState, TOLD_MAX,
};
use crate::types::{ActorId, Incarnation, LayoutRef, NodeId, PartitionId, Wall, WriteId};

const NOW: Wall = Wall(1_000_000);
const WAITS: Waits = Waits { handoff: Duration::from_secs(1), anti_entropy: Duration::from_secs(30) };

/// Node n writes under incarnation n.
fn put(
    record: &mut Record,
    node: u64,
    over: Overwrite<'_>,
    write: u128,
    at: u64,
    value: Option<&'static str>,
) {
    let actor = ActorId { incarnation: Incarnation(node), epoch: 1 };
    let content =
        value.map_or(Content::Tombstone, |value| Content::Value(Bytes::from_static(value.as_bytes())));
    let write = Write { write_id: WriteId(write), content, meta: None, expires_at: None };
    record.put(over, actor, write, Wall(at), &Caps::default()).unwrap();
}

/// One value by n1, twelve seconds ago.
fn grey() -> Record {
    let mut record = Record::new();
    put(&mut record, 1, Overwrite::Nothing, 1, NOW.0 - 12_000, Some("grey"));
    record
}

/// The same, overwritten by n2 three seconds ago.
fn white() -> Record {
    let mut record = grey();
    put(&mut record, 2, Overwrite::Current, 2, NOW.0 - 3_000, Some("white"));
    record
}

fn copy(record: &Record) -> CopyView {
    if record.is_empty() { CopyView::Absent } else { CopyView::Held(held(record, record.version_hash())) }
}

fn kept(record: &Record, targets: &[u64]) -> CopyView {
    let owed_to = targets.iter().copied().map(NodeId).collect();
    CopyView::Held(HeldCopy { owed_to, ..held(record, record.version_hash()) })
}

fn told(node: u64, data: CopyView, guest: CopyView) -> InspectReply {
    let incarnations = vec![Incarnation(node)];
    InspectReply {
        incarnations,
        data,
        guest,
        refilled: true,
        fence: 0,
        committed: 0,
        bits: 0,
        leaf: 0,
        leaf_hash: 7,
    }
}

/// Primaries n1, n2, n3 and the fallback n4, all up and without a copy.
fn members() -> ExplainReply {
    let member = |node: u64| MemberView {
        node: NodeId(node),
        is_primary: node <= 3,
        zone: String::new(),
        state: PeerState::Up,
        heard_ms_ago: 100,
        told: Ok(told(node, CopyView::Absent, CopyView::Absent)),
    };
    ExplainReply {
        partition: PartitionId(7),
        layout: LayoutRef::default(),
        asked: NodeId(1),
        now: NOW,
        members: (1..=4).map(member).collect(),
        words: Vec::new(),
    }
}

/// The same with these copies at the primaries.
fn with(data: [&Record; 3]) -> ExplainReply {
    let mut reply = members();
    for (member, record) in reply.members.iter_mut().zip(data) {
        member.told.as_mut().unwrap().data = copy(record);
    }
    reply
}

fn told_by(reply: &mut ExplainReply, node: u64) -> &mut InspectReply {
    let member = reply.members.iter_mut().find(|member| member.node == NodeId(node)).unwrap();
    member.told.as_mut().unwrap()
}

fn down(reply: &mut ExplainReply, node: u64) {
    let member = reply.members.iter_mut().find(|member| member.node == NodeId(node)).unwrap();
    member.state = PeerState::Down(PeerDown::Silent);
    member.heard_ms_ago = 15_000;
    member.told = Err("it did not answer in time".to_owned());
}

/// Asserts that exactly these sentences are said, each with these words in it.
fn says(reply: &ExplainReply, expected: &[&str]) {
    let said = words(reply, WAITS);
    let fits =
        said.len() == expected.len() && said.iter().zip(expected).all(|(said, part)| said.contains(part));
    assert!(fits, "said:\n{}\nexpected:\n{}", said.join("\n"), expected.join("\n"));
}

#[test]
fn replicas_that_hold_the_same_agree() {
    let record = grey();
    says(
        &with([&record, &record, &record]),
        &["the key has one value, written by n1, 12 s ago", "all 3 replicas agree"],
    );
}

#[test]
fn a_key_that_is_nowhere_was_never_written_or_is_gone() {
    says(&members(), &["no replica holds anything under this key: it was never", "all 3 replicas agree"]);
    let mut reply = members();
    down(&mut reply, 3);
    let expected = [
        "no replica that can be read holds anything",
        "the 2 of 3 replicas that could be read agree",
        "n3 is down, last heard 15 s ago: what it holds is not known; what it lacks it gets by comparing",
    ];
    says(&reply, &expected);
}

#[test]
fn siblings_of_two_nodes_did_not_see_each_other() {
    let mut record = grey();
    let mut other = Record::new();
    put(&mut other, 2, Overwrite::Nothing, 2, NOW.0 - 3_000, Some("white"));
    record.merge(&other);
    let expected = [
        "the key has 2 values, siblings of each other",
        "siblings: two writes (by n1, 12 s ago; by n2, 3 s ago): neither saw the other",
        "all 3 replicas agree",
    ];
    says(&with([&record, &record, &record]), &expected);
}

#[test]
fn siblings_of_one_node_were_written_without_the_others_context() {
    let mut record = grey();
    put(&mut record, 1, Overwrite::Nothing, 2, NOW.0 - 3_000, Some("white"));
    let expected = [
        "2 values",
        "siblings: two writes (by n1, 12 s ago; by n1, 3 s ago): both through one node",
        "agree",
    ];
    says(&with([&record, &record, &record]), &expected);
}

#[test]
fn siblings_of_one_write_were_sent_twice() {
    let mut record = grey();
    let mut again = Record::new();
    put(&mut again, 2, Overwrite::Nothing, 1, NOW.0 - 12_000, Some("grey"));
    record.merge(&again);
    let expected = ["one value", "two siblings are one write that was sent more than once", "agree"];
    says(&with([&record, &record, &record]), &expected);
}

#[test]
fn a_deletion_beside_a_write_is_named() {
    let mut record = grey();
    let mut other = Record::new();
    put(&mut other, 3, Overwrite::Nothing, 2, NOW.0 - 3_000, None);
    record.merge(&other);
    let expected = [
        "the key has one value, written by n1, 12 s ago",
        "siblings: two writes (by n1, 12 s ago; deletion by n3, 3 s ago): neither saw the other; what is deleted",
        "all 3 replicas agree",
    ];
    says(&with([&record, &record, &record]), &expected);
}

#[test]
fn a_writer_of_which_no_node_knows_has_restarted() {
    let mut record = Record::new();
    put(&mut record, 99, Overwrite::Nothing, 1, NOW.0 - 200_000, Some("grey"));
    let expected =
        ["one value, written by a node that has restarted since, 3 min ago", "all 3 replicas agree"];
    let mut reply = with([&record, &record, &record]);
    says(&reply, &expected);
    down(&mut reply, 3);
    says(
        &reply,
        &["written by a node that does not answer or has restarted since", "the 2 of 3", "n3 is down"],
    );
}

#[test]
fn a_tombstone_waits_for_reaping() {
    let mut record = grey();
    put(&mut record, 2, Overwrite::Current, 2, NOW.0 - 3_000, None);
    let expected = [
        "the key is deleted, by n2, 3 s ago: the tombstone reads as absent; it stays until every member agrees",
    ];
    says(&with([&record, &record, &record]), &[expected[0], "all 3 replicas agree"]);
}

#[test]
fn what_has_expired_reads_as_absent_and_what_will_says_when() {
    let mut record = Record::new();
    let actor = ActorId { incarnation: Incarnation(1), epoch: 1 };
    let content = Content::Value(Bytes::from_static(b"grey"));
    let expires_at = Some(Wall(NOW.0 - 5_000));
    let write = Write { write_id: WriteId(1), content, meta: None, expires_at };
    record.put(Overwrite::Nothing, actor, write, Wall(NOW.0 - 9_000), &Caps::default()).unwrap();
    let mut reply = with([&record, &record, &record]);
    let expired = "the value, written by n1, 9 s ago, expired 5 s ago: it reads as absent; it stays until";
    says(&reply, &[expired, "all 3 replicas agree"]);
    reply.now = Wall(NOW.0 - 8_000);
    says(&reply, &["one value, written by n1, 1 s ago; it expires in 3 s", "all 3 replicas agree"]);
}

#[test]
fn a_replica_that_is_down_has_a_guest_waiting() {
    let record = white();
    let mut reply = with([&record, &record, &record]);
    down(&mut reply, 3);
    told_by(&mut reply, 4).guest = kept(&record, &[3]);
    let expected = [
        "one value, written by n2, 3 s ago",
        "the 2 of 3 replicas that could be read agree",
        "n3 is down, last heard 15 s ago: what it holds is not known; n4 keeps a guest for it, which is handed over",
    ];
    says(&reply, &expected);
}

#[test]
fn a_replica_that_is_back_waits_for_its_guest() {
    let mut reply = with([&white(), &white(), &grey()]);
    told_by(&mut reply, 4).guest = kept(&white(), &[3]);
    let behind = "n3 is behind, it lacks the write by n2, 3 s ago: n4 keeps a guest for it, which is handed over \
                  within 1 s";
    says(&reply, &["one value", behind]);
    // Where no fallback was left, the coordinator knows who lacks it.
    let mut reply = with([&white(), &white(), &Record::new()]);
    told_by(&mut reply, 1).data = kept(&white(), &[3]);
    says(
        &reply,
        &["one value", "n3 is behind, it has no copy of the key: n1 has noted that it lacks the record"],
    );
}

#[test]
fn guests_alone_hold_what_all_primaries_lack() {
    let mut reply = members();
    told_by(&mut reply, 4).guest = kept(&grey(), &[1, 2, 3]);
    let expected =
        ["one value, written by n1", "n1 is behind", "n2 is behind", "n3 is behind, it has no copy"];
    says(&reply, &expected);
}

#[test]
fn a_guest_whose_target_has_it_goes() {
    let mut reply = with([&white(), &white(), &white()]);
    told_by(&mut reply, 4).guest = kept(&white(), &[3]);
    let expected = [
        "one value",
        "all 3 replicas agree",
        "n4 still keeps a guest for n3, who has it already: it goes within 1 s",
    ];
    says(&reply, &expected);
}

#[test]
fn a_replica_that_refills_says_so_whether_it_is_behind_or_not() {
    let mut reply = with([&white(), &Record::new(), &white()]);
    told_by(&mut reply, 2).refilled = false;
    says(
        &reply,
        &["one value", "n2 is behind, it has no copy of the key: it refills partition 7, and has it when"],
    );
    let mut reply = with([&white(), &white(), &white()]);
    told_by(&mut reply, 2).refilled = false;
    let expected =
        ["one value", "all 3 replicas agree", "n2 has what the others have, but it refills partition 7"];
    says(&reply, &expected);
}

#[test]
fn a_damaged_copy_is_written_over() {
    let mut reply = with([&white(), &white(), &white()]);
    told_by(&mut reply, 2).data = CopyView::Unreadable("a checksum is wrong".to_owned());
    let expected = [
        "one value",
        "the 2 of 3 replicas that could be read agree",
        "n2: its copy is damaged (a checksum is wrong): it is never served, and is written over from the other \
         replicas within 30 s",
    ];
    says(&reply, &expected);
}

#[test]
fn a_replica_that_nobody_knows_to_be_behind_is_found_by_comparing() {
    let expected =
        ["one value", "n3 is behind, it lacks the write by n2, 3 s ago: a comparison brings it within 30 s"];
    says(&with([&white(), &white(), &grey()]), &expected);
}

#[test]
fn a_replica_that_kept_what_was_overwritten_is_behind_too() {
    let mut both = grey();
    put(&mut both, 2, Overwrite::Nothing, 2, NOW.0 - 5_000, Some("white"));
    let mut merged = both.clone();
    let seen = merged.context().clone();
    put(&mut merged, 3, Overwrite::Seen(&seen), 3, NOW.0 - 1_000, None);
    says(
        &with([&merged, &merged, &both]),
        &["deleted, by n3, 1 s ago", "n3 is behind, it lacks the deletion by n3, 1 s ago"],
    );
}

#[test]
fn another_key_of_the_leaf_may_differ() {
    let mut reply = with([&grey(), &grey(), &grey()]);
    told_by(&mut reply, 2).leaf_hash = 8;
    says(&reply, &["one value", "all 3 replicas agree", "another key of the same Merkle leaf differs"]);
}

#[test]
fn a_record_that_is_not_told_whole_is_not_judged() {
    let mut record = Record::new();
    for write in 0..=TOLD_MAX as u128 {
        let caps = Caps { siblings_max: 1000, ..Caps::default() };
        let actor = ActorId { incarnation: Incarnation(1), epoch: 1 };
        let content = Content::Value(Bytes::new());
        let write = Write { write_id: WriteId(write), content, meta: None, expires_at: None };
        record.put(Overwrite::Nothing, actor, write, NOW, &caps).unwrap();
    }
    says(&with([&record, &record, &record]), &["too large to be told whole", "all 3 replicas agree"]);
    says(
        &with([&record, &record, &grey()]),
        &["too large to be told whole", "n3 is behind, it holds another version"],
    );
}
