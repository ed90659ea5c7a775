//! The vectors of docs/PROTOCOL.md, parsed from the page and checked both ways: what is written must not change under
//! the same version, and what stands on the page must be read.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::dynamo::reaping::Fences;
use crate::dynamo::version::{Dot, Meta};
use crate::types::{
    ActorId, ClusterId, Incarnation, Key, LayoutRef, NodeId, RequestId, TraceId, Wall, WriteId,
};

pub(super) const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PROTOCOL.md");

/// A section of the page.
pub(super) fn section(title: &str) -> String {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let title = format!("\n## {title}\n");
    let section = page.split_once(&title).expect("the page has this section").1;
    section.split_once("\n## ").map_or(section, |(section, _)| section).to_owned()
}

/// Name and bytes of every vector of a section: a line `*name*` and a fenced block of hex digits behind it.
pub(super) fn on_the_page(title: &str) -> BTreeMap<String, Vec<u8>> {
    let section = section(title);
    // A block that says what it is, as ```text, is none of hex digits.
    let (mut vectors, mut is_text) = (BTreeMap::new(), false);
    let section = section.lines().filter(|line| {
        let was_text = is_text;
        is_text = if is_text { *line != "```" } else { line.starts_with("```") && *line != "```" };
        !was_text && !is_text
    });
    let (mut name, mut inside) = (None, false);
    for line in section {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            let name: &String = name.as_ref().expect("a block has a name");
            let bytes: &mut Vec<u8> = vectors.entry(name.clone()).or_default();
            let digits = line.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            bytes.extend(digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex digits")));
        } else if let Some(rest) = line.strip_prefix('*') {
            name = rest.split_once('*').map(|(name, _)| name.to_owned());
        }
    }
    vectors
}

fn head(version: u8) -> FrameHead {
    FrameHead { version, request_id: RequestId(1), remaining_ms: 5000, ..FrameHead::default() }
}

/// The head of an answer of a node with layout 3.
fn answer(version: u8) -> FrameHead {
    let layout = LayoutRef { version: 3, hash: 0x0123_4567_89ab_cdef };
    FrameHead { remaining_ms: 0, layout, trace_id: TraceId([0xab; 16]), ..head(version) }
}

/// A vector as the page must show it.
pub(super) fn shown_as(name: &str, bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines: Vec<String> = hex.chunks(60).map(|line| line.concat()).collect();
    format!("*{name}*\n\n```\n{}\n```\n\n", lines.join("\n"))
}

struct Checked {
    page: BTreeMap<String, Vec<u8>>,
    wrong: String,
}

impl Checked {
    fn check<M: Message + PartialEq>(&mut self, name: &str, message: &M, head: FrameHead) {
        let written = message.to_frame(head).unwrap().encode();
        let shown = self.page.remove(name).unwrap_or_default();
        let read = Frame::decode(&shown.clone().into()).ok().and_then(|frame| {
            let same_head = FrameHead { kind: frame.head.kind, ..head } == frame.head;
            M::from_frame(&frame).ok().filter(|_| same_head)
        });
        if shown != written || read.as_ref() != Some(message) {
            self.wrong.push_str(&shown_as(name, &written));
        }
    }
}

#[test]
fn the_protocol_page_shows_what_is_written_and_what_it_shows_is_read() {
    let mut checked = Checked { page: on_the_page("Vectors"), wrong: String::new() };
    let key = Key::new(&b"dove"[..]).unwrap();
    let put = || Put { durability: Some(Durability::Sync), ..Put::new(key.clone(), WriteId(7), &b"coo"[..]) };
    let get = Get { quorum: Quorum { r: Some(2), w: None, strict: false }, ..Get::new(key.clone()) };
    let dot = Dot { actor: ActorId { incarnation: Incarnation(0x1122), epoch: 2 }, counter: 300 };
    let version = Version {
        write_id: WriteId(7),
        dot,
        value: Bytes::from_static(b"coo"),
        meta: None,
        expires_at: None,
        written_at: Wall(1_700_000_000_000),
    };
    let replicas = Replicas {
        asked: 3,
        primaries: vec![NodeId(1), NodeId(3)],
        fallbacks: Vec::new(),
        layout: LayoutRef { version: 3, hash: 0x0123_4567_89ab_cdef },
    };
    let old_hello = Spoken { version_min: 1, version_max: 1, features: 0 };
    checked.check("hello, version 1 alone", &crate::net::link::hello(old_hello, None, None), head(1));
    let node = crate::net::link::hello(Spoken::default(), Some(ClusterId(5)), Some(NodeId(2)));
    checked.check("hello, a node of versions 1 to 2", &node, head(1));
    let welcome = Welcome {
        version: 2,
        features: 1,
        auth: AuthMethod::None,
        cluster: ClusterId(5),
        node: NodeId(1),
        layout: replicas.layout,
    };
    checked.check("welcome", &welcome, answer(1));
    let refusal = Refusal::new(RefusalCode::BadRequest, "r=0");
    checked.check("refusal, version 1", &refusal, answer(1));
    let shed =
        Refusal::new(RefusalCode::Overloaded, "busy").with_retry_after(std::time::Duration::from_millis(100));
    checked.check("refusal, version 2", &shed, answer(2));
    checked.check("get, version 1", &get, head(1));
    checked.check("get, version 2", &get, head(2));
    checked.check("put, version 1", &put(), head(1));
    checked.check("put, version 2", &put(), head(2));
    let meta = Meta {
        content_type: Some("text/plain".to_owned()),
        pairs: [("a".to_owned(), "b".to_owned())].into(),
    };
    let full = Put {
        meta: Some(Box::new(meta)),
        expiry: Expiry::After(60_000),
        condition: Condition::Match(Bytes::from_static(b"token")),
        quorum: Quorum { r: Some(2), w: Some(3), strict: true },
        durability: Some(Durability::Interval(100)),
        return_record: true,
        ..put()
    };
    checked.check("put with every option, version 2", &full, head(2));
    let delete = Put { durability: None, ..Put::delete(key.clone(), WriteId(8)) };
    checked.check("delete, version 2", &delete, head(2));
    let reply = GetReply {
        values: vec![version.clone()],
        hidden: vec![Hidden { write_id: WriteId(6), dot, why: HiddenWhy::Tombstone }],
        tombstones: 1,
        expired: 0,
        context: Bytes::from_static(b"token"),
        replicas: replicas.clone(),
    };
    checked.check("get reply, version 2", &reply, answer(2));
    let reply = PutReply {
        outcome: PutOutcome::Applied,
        dot: Some(dot),
        overwrote: vec![WriteId(6)],
        siblings: Vec::new(),
        written: None,
        context: Bytes::from_static(b"token"),
        replicas,
    };
    checked.check("put reply, version 2", &reply, answer(2));
    let outcome = PutOutcome::Unknown { have: 1, need: 2, reason: "time ran out".to_owned() };
    let unknown = PutReply { outcome, dot: None, overwrote: Vec::new(), context: Bytes::new(), ..reply };
    checked.check("put reply, unknown outcome, version 2", &unknown, answer(2));
    checked.check("multi-get, version 2", &MultiGet { gets: vec![get] }, head(2));
    checked.check("multi-put, version 2", &MultiPut { puts: vec![delete] }, head(2));
    let scan = Scan { after: Some(key.clone()), order: Order::Descending, limit: 10, ..Scan::prefix(b"do") };
    checked.check("scan, version 2", &scan, head(2));
    let item = ScanItem { key: key.clone(), values: vec![version], context: Bytes::from_static(b"token") };
    let missing = vec![crate::types::PartitionId(9)];
    let page = ScanReply {
        items: vec![item],
        more: true,
        cursor: Some(key.clone()),
        missing,
        layout: welcome.layout,
    };
    checked.check("scan reply, version 2", &page, answer(2));
    checked.check("status, version 2", &Status, head(2));
    let partition = crate::types::PartitionId(9);
    checked.check("repair, version 2", &Repair { partition }, head(2));
    let namespace = crate::types::Namespace(0);
    checked.check("explain, version 2", &Explain { namespace, key: key.clone() }, head(2));
    let told = InspectReply {
        incarnations: vec![Incarnation(0x1122)],
        data: CopyView::Held(HeldCopy {
            version_hash: super::hashes::record().version_hash(),
            context: vec![(dot.actor, 300)],
            context_len: 1,
            siblings: vec![SiblingView {
                dot,
                write_id: WriteId(7),
                value_len: Some(3),
                written_at: Wall(1_700_000_000_000),
                expires_at: None,
            }],
            siblings_len: 1,
            owed_to: vec![NodeId(2)],
        }),
        guest: CopyView::Absent,
        refilled: true,
        fence: 2,
        committed: 1,
        bits: 4,
        leaf: 9,
        leaf_hash: 0x0123_4567_89ab_cdef,
    };
    checked.check("inspect, version 2", &Inspect { namespace, key: key.clone() }, head(2));
    checked.check("inspect reply, version 2", &told, answer(2));
    let (state, why) = (PeerState::Down(PeerDown::Silent), "no answer".to_owned());
    let first = MemberView {
        node: NodeId(1),
        is_primary: true,
        zone: String::new(),
        state: PeerState::Up,
        heard_ms_ago: 0,
        told: Ok(told),
    };
    let second = MemberView {
        node: NodeId(2),
        zone: "b".to_owned(),
        state,
        heard_ms_ago: 9000,
        told: Err(why),
        ..first.clone()
    };
    let reply = ExplainReply {
        partition,
        layout: welcome.layout,
        asked: NodeId(1),
        now: Wall(1_700_000_000_000),
        members: vec![first, second],
        words: vec!["the only replica was read".to_owned()],
    };
    checked.check("explain reply, version 2", &reply, answer(2));
    checked.check("trees, version 2", &Trees { partition: Some(partition) }, head(2));
    let (refilled, root) = (true, 0x0123_4567_89ab_cdef);
    let tree = TreeView { partition, root, bits: 4, keys: 300, refilled, fence: 2, committed: 1 };
    checked.check("trees reply, version 2", &TreesReply { trees: vec![tree] }, answer(2));
    let done = Compared { other: NodeId(2), keys: 1, bytes: 300, ended: Ended::Done };
    let down = Compared { ended: Ended::Failed("it is down".to_owned()), ..Compared::not_yet(NodeId(3)) };
    let reply = RepairReply { compared: vec![done, down], trouble: None };
    checked.check("repair reply, version 2", &reply, answer(2));
    let fetch = Fetch { namespace: Default::default(), key, unless: Some(0x0123_4567_89ab_cdef) };
    checked.check("fetch, version 1", &Fetch { unless: None, ..fetch.clone() }, head(1));
    checked.check("fetch, version 2", &fetch, head(2));
    let same = FetchReply { record: None, refilling: false, fences: Fences { raised: 9, committed: 8 } };
    checked.check("fetch reply, version 2", &same, answer(2));
    let layouts = LayoutReply { active: vec![super::hashes::layout()] };
    checked.check("layout reply, version 2", &layouts, answer(2));
    let reply = FetchReply { record: Some(super::hashes::record()), ..same };
    checked.check("fetch reply with a record, version 2", &reply, answer(2));
    assert!(checked.wrong.is_empty(), "docs/PROTOCOL.md must show, under these names:\n\n{}", checked.wrong);
    assert!(checked.page.is_empty(), "vectors that nobody checks: {:?}", checked.page.keys());
}
