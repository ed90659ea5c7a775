//! The hashes of docs/PROTOCOL.md: every one is computed anew, and their canonical forms are written here a second time,
//! from the page alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::vectors::{PAGE, on_the_page, section, shown_as};
use crate::dynamo::layout::Layout;
use crate::dynamo::ring::{PartitionCount, key_hash};
use crate::dynamo::version::{Content, Dot, Meta, Record, Sibling, Token, TokenSecret};
use crate::types::{ActorId, ClusterId, Incarnation, Key, Namespace, PartitionId, Wall, WriteId};

/// The layout of the page.
pub(super) fn layout() -> Arc<Layout> {
    crate::net::fuzzing::some_layouts().swap_remove(0)
}

fn meta() -> Meta {
    let pairs = [("a".to_owned(), "b".to_owned())].into();
    Meta { content_type: Some("text/plain".to_owned()), pairs }
}

/// The record of the page.
pub(super) fn record() -> Record {
    let actor = ActorId { incarnation: Incarnation(0x1122), epoch: 2 };
    let value = Sibling {
        dot: Dot { actor, counter: 299 },
        write_id: WriteId(7),
        content: Content::Value(Bytes::from_static(b"coo")),
        meta: Some(Box::new(meta())),
        expires_at: Some(Wall(1_700_000_060_000)),
        written_at: Wall(1_700_000_000_000),
    };
    let tombstone = Sibling {
        dot: Dot { actor, counter: 300 },
        write_id: WriteId(8),
        content: Content::Tombstone,
        meta: None,
        expires_at: None,
        written_at: Wall(1_700_000_000_001),
    };
    let context = [tombstone.dot].into_iter().collect();
    Record::from_parts(context, vec![value, tombstone]).expect("a sound record")
}

#[derive(Default)]
struct Form(Vec<u8>);

impl Form {
    fn int(&mut self, value: impl Into<u128>, bytes: usize) {
        self.0.extend_from_slice(&value.into().to_le_bytes()[..bytes]);
    }

    fn text(&mut self, text: &str, len_bytes: usize) {
        self.int(text.len() as u128, len_bytes);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn dot(&mut self, dot: Dot) {
        self.int(dot.actor.incarnation.0, 8);
        self.int(dot.actor.epoch, 8);
        self.int(dot.counter, 8);
    }
}

fn canonical_layout() -> Vec<u8> {
    let layout = layout();
    let mut form = Form(b"ringdove layout 1".to_vec());
    form.int(layout.reference().version, 8);
    form.int(layout.parent().map_or(0, |parent| parent.hash), 8);
    form.int(layout.q().get(), 4);
    form.int(layout.n(), 4);
    form.int(layout.members().len() as u128, 4);
    for member in layout.members() {
        form.int(member.id.0, 8);
        form.int(member.capacity, 4);
        form.text(&member.peer_addr, 4);
        form.text(&member.client_addr, 4);
        form.text(&member.zone, 4);
    }
    for primary in (0..layout.q().get()).flat_map(|p| layout.primaries(PartitionId(p))) {
        let index = layout.members().iter().position(|member| member.id == *primary);
        form.int(index.expect("a primary is a member") as u128, 2);
    }
    form.0
}

fn canonical_meta() -> Vec<u8> {
    let meta = meta();
    let mut form = Form::default();
    form.text(meta.content_type.as_deref().expect("it has a type"), 8);
    for (name, value) in &meta.pairs {
        form.text(name, 8);
        form.text(value, 8);
    }
    form.0
}

fn canonical_record() -> Vec<u8> {
    let record = record();
    let mut form = Form::default();
    form.int(record.context().len() as u128, 4);
    for (actor, counter) in record.context().entries() {
        form.dot(Dot { actor, counter });
    }
    let (value, tombstone) = (&record.siblings()[0], &record.siblings()[1]);
    form.dot(value.dot);
    form.int(value.write_id.0, 16);
    form.int(2_u8 + 4, 1);
    form.int(1_700_000_060_000_u64, 8);
    form.int(1_700_000_000_000_u64, 8);
    form.int(xxh3_64(b"coo"), 8);
    form.int(3_u8, 8);
    form.int(xxh3_64(&canonical_meta()), 8);
    form.dot(tombstone.dot);
    form.int(tombstone.write_id.0, 16);
    form.int(1_u8, 1);
    form.int(0_u8, 8);
    form.int(1_700_000_000_001_u64, 8);
    [0_u8; 3].into_iter().for_each(|nothing| form.int(nothing, 8));
    form.0
}

/// Every row of a name and a hash, `0x…`, of the section.
fn on_the_page_by_name() -> BTreeMap<String, String> {
    let section = section("Hashes");
    let rows = section.lines().filter_map(|line| {
        let (name, hash) = line.strip_prefix("| ")?.strip_suffix("` |")?.rsplit_once(" | `")?;
        hash.starts_with("0x").then(|| (name.to_owned(), hash.to_owned()))
    });
    rows.collect()
}

#[test]
fn the_protocol_page_gives_every_hash_as_it_is_computed() {
    let key = |bytes: Vec<u8>| Key::new(bytes).expect("a key");
    let user = || key(b"user:1001".to_vec());
    let ring = |namespace, key: Key| key_hash(Namespace(namespace), &key);
    let computed = [
        ("namespace 0, key `a`", ring(0, key(b"a".to_vec()))),
        ("namespace 0, key `user:1001`", ring(0, user())),
        ("namespace 7, key `user:1001`", ring(7, user())),
        ("namespace 4294967295, key `user:1001`", ring(u32::MAX, user())),
        (
            "namespace 0, key of the 1,000 bytes 0, 1, … 255, 0, 1, …",
            ring(0, key((0..=255).cycle().take(1000).collect())),
        ),
        ("namespace 0, key of 65,536 bytes 0xff", ring(0, key(vec![0xff; 65_536]))),
        ("the layout", layout().reference().hash),
        ("the record", record().version_hash()),
        ("its first sibling's meta", xxh3_64(&canonical_meta())),
        ("a record that was never written", Record::new().version_hash()),
    ];
    let computed: BTreeMap<String, String> =
        computed.into_iter().map(|(name, hash)| (name.to_owned(), format!("{hash:#018x}"))).collect();
    assert_eq!(on_the_page_by_name(), computed);
    for (q, partition) in [(256, 120), (8, 3)] {
        let q = PartitionCount::new(q).expect("a power of two");
        assert_eq!(q.partition_of(Namespace(0), &user()), PartitionId(partition));
    }
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn the_protocol_page_gives_the_bytes_that_are_hashed() {
    assert_eq!(xxh3_64(&canonical_layout()), layout().reference().hash);
    assert_eq!(xxh3_64(&canonical_record()), record().version_hash());
    assert_eq!(xxh3_64(&[0; 4]), Record::new().version_hash());
    let dove = Key::new(&b"dove"[..]).expect("a key");
    let secret = TokenSecret([7; 32]);
    let token = Token { secret: &secret, cluster: ClusterId(5), namespace: Namespace(0), key: &dove };
    let token = token.seal(record().context()).expect("it is short");
    let mut page = on_the_page("Hashes");
    let mut wrong = String::new();
    for (name, bytes) in [
        ("canonical form of the layout", canonical_layout()),
        ("canonical form of the record", canonical_record()),
        ("canonical form of its first sibling's meta", canonical_meta()),
        ("token", token),
    ] {
        if page.remove(name).unwrap_or_default() != bytes {
            wrong.push_str(&shown_as(name, &bytes));
        }
    }
    assert!(wrong.is_empty(), "docs/PROTOCOL.md must show, under these names:\n\n{wrong}");
    assert!(page.is_empty(), "vectors that nobody checks: {:?}", page.keys());
}

#[test]
fn the_protocol_page_sends_nobody_to_the_source() {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    for pointer in ["src/", ".rs", "source", "the code"] {
        assert!(!page.contains(pointer), "the page must say it itself, not point to `{pointer}`");
    }
}
