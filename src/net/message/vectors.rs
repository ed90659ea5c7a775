//! The vectors of docs/PROTOCOL.md, parsed from the page and checked both ways: what is written must not change under
//! the same version, and what stands on the page must be read.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::dynamo::layout::Member;
use crate::dynamo::reaping::{Against, KeyVote};
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

pub(super) fn head(version: u8) -> FrameHead {
    FrameHead { version, request_id: RequestId(1), remaining_ms: 5000, ..FrameHead::default() }
}

/// The head of an answer of a node with layout 3.
pub(super) fn answer(version: u8) -> FrameHead {
    let layout = LayoutRef { version: 3, hash: 0x0123_4567_89ab_cdef };
    FrameHead { remaining_ms: 0, layout, trace_id: TraceId([0xab; 16]), ..head(version) }
}

/// A vector as the page must show it.
pub(super) fn shown_as(name: &str, bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines: Vec<String> = hex.chunks(60).map(|line| line.concat()).collect();
    format!("*{name}*\n\n```\n{}\n```\n\n", lines.join("\n"))
}

/// The vectors of a section, and which of them are not what they should be.
pub(super) struct Checked {
    page: BTreeMap<String, Vec<u8>>,
    wrong: String,
}

impl Checked {
    pub(super) fn new(section: &str) -> Checked {
        Checked { page: on_the_page(section), wrong: String::new() }
    }

    pub(super) fn check<M: Message + PartialEq>(&mut self, name: &str, message: &M, head: FrameHead) {
        let frame = message.to_frame(head).unwrap();
        self.check_frame(name, &frame, |body| M::decode(head.version, body).as_ref() == Ok(message));
    }

    /// That the page shows this frame, and that the body of what it shows is read as it is meant.
    pub(super) fn check_frame(&mut self, name: &str, frame: &Frame, is_meant: impl Fn(&[u8]) -> bool) {
        let written = frame.encode();
        let shown = self.page.remove(name).unwrap_or_default();
        let read = Frame::decode(&shown.clone().into()).ok();
        if shown != written || !read.is_some_and(|read| read.head == frame.head && is_meant(&read.body)) {
            self.wrong.push_str(&shown_as(name, &written));
        }
    }

    pub(super) fn done(self) {
        let wrong = self.wrong;
        assert!(wrong.is_empty(), "docs/PROTOCOL.md must show, under these names:\n\n{wrong}");
        assert!(self.page.is_empty(), "vectors that nobody checks: {:?}", self.page.keys());
    }
}

#[test]
fn the_protocol_page_shows_what_is_written_and_what_it_shows_is_read() {
    let mut checked = Checked::new("Vectors");
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
    let item =
        ScanItem { key: key.clone(), values: vec![version.clone()], context: Bytes::from_static(b"token") };
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
    let layouts = LayoutReply { active: vec![super::hashes::layout()] };
    checked.check("layout reply, version 2", &layouts, answer(2));
    more_of_clients(&mut checked, version, dot);
    checked.done();
}

/// What the page shows besides: batches, and what is asked of a node about itself.
fn more_of_clients(checked: &mut Checked, version: Version, dot: Dot) {
    let layout = LayoutRef { version: 3, hash: 0x0123_4567_89ab_cdef };
    let nowhere = Dot { actor: ActorId { incarnation: Incarnation(0), epoch: 0 }, counter: 0 };
    let replicas = Replicas {
        asked: 3,
        primaries: vec![NodeId(1)],
        fallbacks: vec![NodeId(4)],
        layout: LayoutRef::default(),
    };
    // Without what that version has no words for.
    let old = Version { dot: nowhere, ..version.clone() };
    let read = GetReply {
        values: vec![old.clone()],
        hidden: Vec::new(),
        tombstones: 1,
        expired: 0,
        context: Bytes::from_static(b"token"),
        replicas: replicas.clone(),
    };
    checked.check("get reply, version 1", &read, answer(1));
    let written = PutReply {
        outcome: PutOutcome::Applied,
        dot: None,
        overwrote: vec![WriteId(6)],
        siblings: vec![old],
        written: None,
        context: Bytes::from_static(b"token"),
        replicas: replicas.clone(),
    };
    checked.check("put reply, version 1", &written, answer(1));
    let refusal = || Refusal::new(RefusalCode::TooLarge, "ask again");
    let replicas = Replicas { layout, ..replicas };
    let read = GetReply { values: vec![version.clone()], replicas: replicas.clone(), ..read };
    checked.check(
        "multi-get reply, version 2",
        &MultiGetReply { replies: vec![Ok(read), Err(refusal())] },
        answer(2),
    );
    let written =
        PutReply { dot: Some(dot), siblings: Vec::new(), written: Some(version), replicas, ..written };
    checked.check(
        "multi-put reply, version 2",
        &MultiPutReply { replies: vec![Ok(written), Err(refusal())] },
        answer(2),
    );
    checked.check("get layout, version 2", &GetLayout, head(2));
    checked.check("ping, version 2", &Ping, head(2));
    checked.check("pong, version 2", &Pong, answer(2));
    let peer = |node: u64, state: PeerState| PeerView {
        node: NodeId(node),
        state,
        phi_thousandths: 300,
        heard_ms_ago: 900,
    };
    let status = StatusReply {
        node: NodeId(1),
        cluster: ClusterId(5),
        program: "0.1.0".to_owned(),
        uptime_ms: 70_000,
        stopping: false,
        layout,
        peers_down: vec![NodeId(2)],
        peers: vec![peer(2, PeerState::Down(PeerDown::Silent)), peer(3, PeerState::Up)],
        partitions: 8,
        partitions_refilled: 7,
        data_keys: 300,
        guest_keys: 2,
        log_bytes: 100_000,
        live_bytes: 90_000,
        damaged_records: 0,
        in_flight: 1,
    };
    checked.check("status reply, version 2", &status, answer(2));
    checked.check("hints, version 2", &Hints, head(2));
    let kept = |target: u64, why: HintWhy| HintsFor {
        target: NodeId(target),
        count: 3,
        bytes: 300,
        age_ms: 900,
        why,
    };
    let targets = vec![kept(2, HintWhy::Down), kept(3, HintWhy::Failed("no answer".to_owned()))];
    let hints = HintsReply { targets, guests_max: 1_000_000, age_warn_ms: 86_400_000 };
    checked.check("hints reply, version 2", &hints, answer(2));
    checked.check("reaping, version 2", &Reaping, head(2));
    let against = vec![(NodeId(2), Against::Silent, 4), (NodeId(3), Against::Key(KeyVote::TooSoon), 1)];
    let partition = crate::types::PartitionId(9);
    let round = ReapRound { partition, fence: 9, ago_ms: 900, keys: 5, agreed: 0, against: against.clone() };
    let reaping = ReapingReply {
        reapable: 5,
        grace_ms: 3_600_000,
        away: vec![NodeId(2)],
        rounds: 7,
        keys: 300,
        agreed: 290,
        against,
        last: vec![round],
    };
    checked.check("reaping reply, version 2", &reaping, answer(2));
    let member = Member {
        id: NodeId(4),
        peer_addr: "127.0.0.1:4".to_owned(),
        client_addr: "127.0.0.1:104".to_owned(),
        zone: "b".to_owned(),
        capacity: 1,
    };
    let change = ChangeMembers { add: vec![member], remove: vec![NodeId(1)], apply: true };
    checked.check("change members, version 2", &change, head(2));
    let layout = super::hashes::layout();
    let changed = ChangeMembersReply { layout, moves: 5, applied: true };
    checked.check("change members reply, version 2", &changed, answer(2));
}
