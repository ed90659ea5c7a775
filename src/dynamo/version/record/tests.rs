//! The laws of records as properties, over records that can arise, and over broken ones that must not.
//!
//! A record *arises* when it is taken from a random execution of puts and merges over three copies, each with a
//! mint of its own. A *collision* is a record whose sibling was altered under the same dot, which only a broken
//! invariant can produce; merge keeps all of it and says so.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::dynamo::version::{ActorMint, LocalCopy};
use crate::net::codec;
use crate::types::Incarnation;

const NO_CAPS: Caps = Caps { siblings_max: usize::MAX, record_bytes_max: usize::MAX };

/// One step of a random execution over three copies.
#[derive(Debug, Clone)]
enum Step {
    Put { at: usize, over: u8, now: u64, content: Content, expires_at: Option<Wall>, meta: bool },
    Merge { from: usize, to: usize },
    Read { at: usize },
    Renew { at: usize },
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        3 => vec(any::<u8>(), 0..4).prop_map(|bytes| Content::Value(Bytes::from(bytes))),
        1 => Just(Content::Tombstone),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let put = (0..3_usize, 0..3_u8, 0..50_u64, content(), proptest::option::of((0..50_u64).prop_map(Wall)))
        .prop_flat_map(|(at, over, now, content, expires_at)| {
            any::<bool>().prop_map(move |meta| Step::Put {
                at,
                over,
                now,
                content: content.clone(),
                expires_at,
                meta,
            })
        });
    prop_oneof![
        6 => put,
        3 => (0..3_usize, 0..3_usize).prop_map(|(from, to)| Step::Merge { from, to }),
        2 => (0..3_usize).prop_map(|at| Step::Read { at }),
        1 => (0..3_usize).prop_map(|at| Step::Renew { at }),
    ]
}

fn meta() -> Option<Box<Meta>> {
    Some(Box::new(Meta {
        content_type: Some("text/plain".into()),
        pairs: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
    }))
}

/// All records that one execution passes through, the empty one first.
fn execution() -> impl Strategy<Value = Vec<Record>> {
    vec(step(), 1..24).prop_map(|steps| {
        let mut copies: [LocalCopy; 3] = Default::default();
        let mut mints = [1, 2, 3].map(|node| ActorMint::new(Incarnation(node * 0x1111)));
        let mut token = VersionVector::new();
        let mut records = vec![Record::new()];
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put { at, over, now, content, expires_at, meta: with_meta } => {
                    let over =
                        [Overwrite::Nothing, Overwrite::Seen(&token), Overwrite::Current][usize::from(over)];
                    let meta = if with_meta { meta() } else { None };
                    // Few ids, so that some operation becomes two siblings.
                    let write = Write { write_id: WriteId(number as u128 % 7), content, meta, expires_at };
                    copies[at].put(&mut mints[at], over, write, Wall(now), &NO_CAPS).unwrap();
                    records.push(copies[at].record.clone());
                }
                Step::Merge { from, to } => {
                    let other = copies[from].record.clone();
                    assert!(copies[to].merge(&mints[to], &other).merged.collisions.is_empty());
                    records.push(copies[to].record.clone());
                }
                Step::Read { at } => token = copies[at].record.context().clone(),
                Step::Renew { at } => mints[at].renew(Incarnation(0x9_0000 + number as u64)),
            }
        }
        records
    })
}

/// Three records of one execution, some of them with an altered sibling.
fn three(collisions: bool) -> impl Strategy<Value = [Record; 3]> {
    (execution(), any::<[Index; 3]>(), any::<[(bool, Index, u8); 3]>()).prop_map(
        move |(records, picks, alters)| {
            let mut picked = picks.map(|pick| pick.get(&records).clone());
            if collisions {
                for (record, (alter, which, with)) in picked.iter_mut().zip(alters) {
                    if alter && !record.siblings.is_empty() {
                        let at = which.index(record.siblings.len());
                        record.siblings[at].content = Content::Value(Bytes::from(vec![with % 2; 9]));
                        record.siblings.sort();
                    }
                }
            }
            picked
        },
    )
}

fn merged(left: &Record, right: &Record) -> Record {
    let mut both = left.clone();
    both.merge(right);
    both
}

/// Merge by its definition, dot by dot: a sibling stays if both have its dot, or the other has not seen it.
fn merged_by_definition(left: &Record, right: &Record) -> Record {
    let has = |record: &Record, dot| record.siblings.iter().any(|sibling| sibling.dot == dot);
    let kept = |own: &Record, other: &Record| -> Vec<Sibling> {
        let stays = |sibling: &&Sibling| has(other, sibling.dot) || !other.context.covers(sibling.dot);
        own.siblings.iter().filter(stays).cloned().collect()
    };
    let siblings: BTreeSet<Sibling> = kept(left, right).into_iter().chain(kept(right, left)).collect();
    let mut context = left.context.clone();
    context.join(&right.context);
    Record::from_parts(context, siblings.into_iter().collect()).unwrap()
}

fn check_laws([a, b, c]: &[Record; 3]) {
    assert_eq!(merged(a, b), merged(b, a), "commutative");
    assert_eq!(merged(&merged(a, b), c), merged(a, &merged(b, c)), "associative");
    assert_eq!(merged(a, a), *a, "idempotent");
    assert_eq!(merged(&merged(a, b), b), merged(a, b), "absorbing");
    assert_eq!(merged(a, b), merged_by_definition(a, b));
    assert_eq!(merged(a, b).version_hash(), merged(b, a).version_hash());
    let mut own = a.clone();
    assert_eq!(own.merge(b).changed, own != *a, "changed tells whether it changed");
    let sound = Record::from_parts(own.context.clone(), own.siblings.clone());
    assert_eq!(sound.as_ref(), Ok(&own), "the result is a record");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn merge_is_commutative_associative_and_idempotent(records in three(false)) {
        check_laws(&records);
    }

    #[test]
    fn merge_keeps_its_laws_when_dots_collide(records in three(true)) {
        check_laws(&records);
    }

    #[test]
    fn records_that_arise_never_collide([a, b, _] in three(false)) {
        prop_assert_eq!(a.clone().merge(&b).collisions, Vec::new());
    }

    #[test]
    fn equal_dots_with_different_contents_are_both_kept_and_reported([a, b, _] in three(true)) {
        let both = merged(&a, &b);
        let reported = a.clone().merge(&b).collisions;
        let twice: BTreeSet<Dot> = both
            .siblings
            .windows(2)
            .filter(|pair| pair[0].dot == pair[1].dot)
            .map(|pair| pair[0].dot)
            .collect();
        let shared = twice.into_iter().filter(|dot| {
            [&a, &b].iter().all(|record| record.siblings.iter().any(|sibling| sibling.dot == *dot))
        });
        // Merging a record with itself is no news, whatever it holds.
        let expected: Vec<Dot> = if a == b { Vec::new() } else { shared.collect() };
        prop_assert_eq!(reported, expected);
    }

    #[test]
    fn a_put_drops_what_it_covers_keeps_the_rest_and_reaches_every_peer(
        [own, peer, read] in three(false), over in 0..3_u8, now in 0..80_u64,
    ) {
        let over = [Overwrite::Nothing, Overwrite::Seen(read.context()), Overwrite::Current][usize::from(over)];
        let mut copy = LocalCopy::of(own.clone());
        let mut mint = ActorMint::new(Incarnation(0xF));
        let done = copy.put(&mut mint, over, write(500), Wall(now), &NO_CAPS).unwrap();
        let covered = |sibling: &&Sibling| match over {
            Overwrite::Nothing => false,
            Overwrite::Seen(context) => context.covers(sibling.dot),
            Overwrite::Current => true,
        };
        let (gone, kept): (Vec<&Sibling>, Vec<&Sibling>) = own.siblings.iter().partition(covered);
        prop_assert_eq!(done.overwrote, gone.iter().map(|sibling| sibling.write_id).collect::<Vec<_>>());
        let new = copy.record.siblings.iter().find(|sibling| sibling.dot == done.dot).unwrap();
        prop_assert!(!own.context.covers(done.dot), "a new dot");
        prop_assert_eq!(copy.record.siblings.len(), kept.len() + 1);
        prop_assert!(kept.iter().all(|sibling| copy.record.siblings.contains(sibling)));
        // written_at: the clock, or just after the latest that it overwrites.
        let after = gone.iter().map(|sibling| sibling.written_at.0 + 1).max().unwrap_or(0);
        prop_assert_eq!(new.written_at, Wall(now.max(after)));
        prop_assert!(gone.iter().all(|sibling| sibling.written_at < new.written_at));
        // Whoever merges it has the new value and nothing that it overwrote.
        let there = merged(&peer, &copy.record);
        prop_assert!(there.siblings.contains(new));
        prop_assert!(gone.iter().all(|sibling| !there.siblings.contains(sibling)));
    }

    #[test]
    fn the_version_hash_is_equal_exactly_when_the_record_is([a, b, c] in three(true)) {
        for (left, right) in [(&a, &b), (&b, &c), (&a, &c)] {
            prop_assert_eq!(left.version_hash() == right.version_hash(), left == right);
        }
    }

    #[test]
    fn a_view_counts_every_sibling_once([record, _, _] in three(false), now in 0..60_u64) {
        let view = record.view(Wall(now));
        let dead = |sibling: &&Sibling| sibling.content == Content::Tombstone;
        let expired = |sibling: &&Sibling| sibling.expires_at.is_some_and(|at| at.0 <= now);
        prop_assert_eq!(view.tombstones, record.siblings.iter().filter(dead).count());
        prop_assert_eq!(view.expired, record.siblings.iter().filter(|s| !dead(s) && expired(s)).count());
        let live = record.siblings.iter().filter(|s| !dead(s) && !expired(s));
        for sibling in live {
            let shown = view.values.iter().filter(|shown| shown.is_same_write(sibling));
            prop_assert_eq!(shown.count(), 1);
        }
        prop_assert!(view.values.is_sorted_by_key(|sibling| sibling.dot));
    }

    #[test]
    fn a_record_survives_its_encoding([record, _, _] in three(true)) {
        let mut bytes = Vec::new();
        codec::encode_into(&record, &mut bytes).unwrap();
        prop_assert_eq!(codec::decode::<Record>(&bytes), Ok(record));
    }
}

fn actor(number: u64) -> ActorId {
    ActorId { incarnation: Incarnation(number), epoch: 1 }
}

fn dot(number: u64, counter: u64) -> Dot {
    Dot { actor: actor(number), counter }
}

fn write(id: u128) -> Write {
    Write {
        write_id: WriteId(id),
        content: Content::Value(Bytes::from_static(b"v")),
        meta: None,
        expires_at: None,
    }
}

fn sibling(dot: Dot, id: u128) -> Sibling {
    Sibling {
        dot,
        write_id: WriteId(id),
        content: Content::Value(Bytes::from_static(b"v")),
        meta: None,
        expires_at: None,
        written_at: Wall(10),
    }
}

fn record(siblings: Vec<Sibling>) -> Record {
    let context = siblings.iter().map(|sibling| sibling.dot).collect();
    Record::from_parts(context, siblings).unwrap()
}

#[test]
fn two_clients_through_one_node_become_siblings() {
    // Where Dynamo's plain clocks with server entries overwrite one of them unseen (Preguiça 2010, §2).
    let mut copy = Record::new();
    copy.put(Overwrite::Nothing, actor(1), write(1), Wall(1), &NO_CAPS).unwrap();
    let read = copy.context().clone();
    copy.put(Overwrite::Seen(&read), actor(1), write(2), Wall(2), &NO_CAPS).unwrap();
    copy.put(Overwrite::Seen(&read), actor(1), write(3), Wall(3), &NO_CAPS).unwrap();
    let ids: Vec<u128> = copy.siblings().iter().map(|sibling| sibling.write_id.0).collect();
    assert_eq!(ids, [2, 3]);
}

#[test]
fn a_dot_below_a_covering_context_is_never_made() {
    let context: VersionVector = [dot(1, 5)].into_iter().collect();
    let put = std::panic::catch_unwind(|| {
        Record::new().put(Overwrite::Seen(&context), actor(1), write(1), Wall(1), &NO_CAPS)
    });
    assert!(put.is_err(), "the caller has to end the actor first");
}

#[test]
fn the_sibling_cap_holds_in_put_exactly_and_never_in_merge() {
    let caps = Caps { siblings_max: 3, ..NO_CAPS };
    let mut own = Record::new();
    for id in 0..3 {
        own.put(Overwrite::Nothing, actor(1), write(id), Wall(1), &caps).unwrap();
    }
    let before = own.clone();
    let refused = own.put(Overwrite::Nothing, actor(1), write(9), Wall(1), &caps);
    assert_eq!(refused, Err(PutError::TooManySiblings { siblings: 4, max: 3 }));
    assert_eq!(own, before, "a refused put changes nothing");

    let mut other = Record::new();
    for id in 10..13 {
        other.put(Overwrite::Nothing, actor(2), write(id), Wall(1), &caps).unwrap();
    }
    own.merge(&other);
    assert_eq!(own.siblings().len(), 6, "merge never refuses");
    // A token that covers some of them leads back below the cap step by step; one that covers none does not.
    let some: VersionVector = [dot(1, 1)].into_iter().collect();
    assert!(own.put(Overwrite::Nothing, actor(1), write(19), Wall(1), &caps).is_err());
    assert!(own.put(Overwrite::Seen(&some), actor(1), write(19), Wall(1), &caps).is_ok());
    assert_eq!(own.siblings().len(), 6);
    let small = Caps { record_bytes_max: own.size_bytes() - 100, ..NO_CAPS };
    assert!(own.clone().put(Overwrite::Seen(other.context()), actor(1), write(20), Wall(1), &small).is_ok());
    let seen = own.context().clone();
    assert!(own.put(Overwrite::Seen(&seen), actor(1), write(20), Wall(1), &caps).is_ok(), "the way out");
    assert_eq!(own.siblings().len(), 1);
}

#[test]
fn the_size_cap_is_the_size_that_the_record_would_have() {
    let larger = || Write { content: Content::Value(vec![0; 500].into()), ..write(2) };
    let other: VersionVector = [dot(1, 1), dot(7, 7), dot(8, 8)].into_iter().collect();
    for over in [Overwrite::Nothing, Overwrite::Current, Overwrite::Seen(&other)] {
        let mut own = Record::new();
        own.put(Overwrite::Nothing, actor(1), write(1), Wall(1), &NO_CAPS).unwrap();
        for maker in [1, 2] {
            let mut after = own.clone();
            after.put(over, actor(maker), larger(), Wall(1), &NO_CAPS).unwrap();
            let bytes = after.size_bytes();
            let caps = |record_bytes_max| Caps { record_bytes_max, ..NO_CAPS };
            let mut tight = own.clone();
            let refused = tight.put(over, actor(maker), larger(), Wall(1), &caps(bytes - 1));
            assert_eq!(refused, Err(PutError::RecordTooLarge { bytes, max: bytes - 1 }), "{over:?}");
            assert_eq!(tight, own, "a refused put changes nothing");
            assert!(tight.put(over, actor(maker), larger(), Wall(1), &caps(bytes)).is_ok(), "{over:?}");
        }
    }
}

#[test]
fn written_at_ends_at_the_latest_moment_that_can_be_named() {
    let mut own = record(vec![Sibling { written_at: Wall::MAX, ..sibling(dot(1, 1), 1) }]);
    own.put(Overwrite::Current, actor(1), write(2), Wall(1), &NO_CAPS).unwrap();
    assert_eq!(own.siblings()[0].written_at, Wall::MAX);
}

#[test]
fn newest_is_by_written_at_then_dot_dead_and_expired_included() {
    assert_eq!(Record::new().newest(), None);
    let at = |number, wall| Sibling { written_at: Wall(wall), ..sibling(dot(number, 1), u128::from(number)) };
    let newest = |siblings: &[Sibling]| record(siblings.to_vec()).newest().unwrap().dot;
    assert_eq!(newest(&[at(1, 30), at(2, 20)]), dot(1, 1));
    assert_eq!(newest(&[at(1, 20), at(2, 20)]), dot(2, 1), "the larger dot breaks the tie on every node");
    let dead = Sibling { content: Content::Tombstone, ..at(2, 40) };
    let expired = Sibling { expires_at: Some(Wall(0)), ..at(3, 50) };
    assert_eq!(newest(&[at(1, 30), dead.clone()]), dot(2, 1));
    assert_eq!(newest(&[at(1, 30), dead, expired]), dot(3, 1));
}

#[test]
fn a_value_is_gone_from_the_moment_of_its_expiry_and_only_in_the_view() {
    let record = record(vec![Sibling { expires_at: Some(Wall(100)), ..sibling(dot(1, 1), 1) }]);
    let hash = record.version_hash();
    assert_eq!(record.view(Wall(99)).values.len(), 1);
    for now in [100, 101, u64::MAX] {
        let view = record.view(Wall(now));
        assert_eq!((view.values.len(), view.expired, view.tombstones), (0, 1, 0));
    }
    assert_eq!(record.version_hash(), hash);
}

#[test]
fn one_operation_that_became_two_siblings_is_shown_once() {
    let record = record(vec![sibling(dot(1, 1), 7), sibling(dot(2, 1), 7), sibling(dot(3, 1), 8)]);
    let shown: Vec<Dot> = record.view(Wall(0)).values.iter().map(|sibling| sibling.dot).collect();
    assert_eq!(shown, [dot(1, 1), dot(3, 1)]);
}

#[test]
fn a_write_id_used_for_two_values_hides_neither() {
    let other = Sibling { content: Content::Value(Bytes::from_static(b"other")), ..sibling(dot(2, 1), 7) };
    let record = record(vec![sibling(dot(1, 1), 7), other]);
    assert_eq!(record.view(Wall(0)).values.len(), 2);
}

/// A record with everything in it. Its hash below is part of the format.
fn full() -> Record {
    let meta = Meta {
        content_type: Some("application/json".into()),
        pairs: BTreeMap::from([("user".to_owned(), "4711".to_owned())]),
    };
    let siblings = vec![
        Sibling { expires_at: Some(Wall(1_700_000_000_000)), ..sibling(dot(1, 2), 0x11) },
        Sibling { content: Content::Tombstone, written_at: Wall(12), ..sibling(dot(2, 1), 0x22) },
        Sibling {
            content: Content::Value(Bytes::from_static(b"value")),
            meta: Some(Box::new(meta)),
            ..sibling(
                Dot { actor: ActorId { incarnation: Incarnation(u64::MAX), epoch: 9 }, counter: 3 },
                0x33,
            )
        },
    ];
    let context = siblings.iter().map(|sibling| sibling.dot).chain([dot(3, 8)]).collect();
    Record::from_parts(context, siblings).unwrap()
}

#[test]
fn the_canonical_form_of_the_version_hash_is_fixed() {
    // Replicas of mixed versions compare these. A change here is a change of the wire format.
    assert_eq!(Record::new().version_hash(), 5_238_470_482_016_868_669);
    assert_eq!(record(vec![sibling(dot(1, 1), 1)]).version_hash(), 18_279_312_463_859_003_792);
    assert_eq!(full().version_hash(), 6_155_398_594_260_347_285);
}

#[test]
fn the_canonical_form_is_what_its_docs_say() {
    let mut form = Vec::new();
    let words = |form: &mut Vec<u8>, words: &[u64]| {
        form.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    form.extend(4_u32.to_le_bytes());
    words(&mut form, &[1, 1, 2, 2, 1, 1, 3, 1, 8, u64::MAX, 9, 3]);
    words(&mut form, &[1, 1, 2, 0x11, 0]);
    form.push(2);
    words(&mut form, &[1_700_000_000_000, 10, xxh3_64(b"v"), 1, 0]);
    words(&mut form, &[2, 1, 1, 0x22, 0]);
    form.push(1);
    words(&mut form, &[0, 12, 0, 0, 0]);
    words(&mut form, &[u64::MAX, 9, 3, 0x33, 0]);
    form.push(4);
    let mut meta = Vec::new();
    for text in ["application/json", "user", "4711"] {
        words(&mut meta, &[text.len() as u64]);
        meta.extend_from_slice(text.as_bytes());
    }
    words(&mut form, &[0, 10, xxh3_64(b"value"), 5, xxh3_64(&meta)]);
    assert_eq!(full().version_hash(), xxh3_64(&form));
}

#[test]
fn every_field_counts_in_the_version_hash() {
    let full = full();
    let mut hashes = BTreeSet::from([full.version_hash()]);
    let mut add = |context: &VersionVector, change: &dyn Fn(&mut Vec<Sibling>)| {
        let mut siblings = full.siblings.clone();
        change(&mut siblings);
        let changed = Record { context: context.clone(), siblings };
        assert!(hashes.insert(changed.version_hash()), "{changed:?}");
    };
    let mut wider = full.context.clone();
    wider.include(dot(3, 9));
    add(&wider, &|_| {});
    let same = &full.context;
    add(same, &|siblings| siblings.truncate(2));
    add(same, &|siblings| siblings[0].dot.counter = 1);
    add(same, &|siblings| siblings[0].write_id = WriteId(0x12));
    add(same, &|siblings| siblings[0].content = Content::Value(Bytes::from_static(b"w")));
    add(same, &|siblings| siblings[0].content = Content::Value(Bytes::new()));
    add(same, &|siblings| siblings[0].content = Content::Tombstone);
    add(same, &|siblings| siblings[0].expires_at = None);
    add(same, &|siblings| siblings[0].expires_at = Some(Wall(0)));
    add(same, &|siblings| siblings[0].expires_at = Some(Wall::MAX));
    add(same, &|siblings| siblings[0].written_at = Wall(11));
    add(same, &|siblings| siblings[0].meta = Some(Box::default()));
    add(same, &|siblings| siblings[2].meta = None);
    add(same, &|siblings| siblings[2].meta.as_mut().unwrap().content_type = None);
    add(same, &|siblings| siblings[2].meta.as_mut().unwrap().content_type = Some(String::new()));
    add(same, &|siblings| siblings[2].meta.as_mut().unwrap().pairs.clear());
    // A border between name and value that moves is another pair.
    add(same, &|siblings| {
        siblings[2].meta.as_mut().unwrap().pairs = BTreeMap::from([("user4".to_owned(), "711".to_owned())]);
    });
}

/// The fields of a record, without its promise.
#[derive(serde::Serialize)]
struct Parts {
    context: Vec<(ActorId, u64)>,
    siblings: Vec<Sibling>,
}

fn decode(context: &[Dot], siblings: Vec<Sibling>) -> Result<Record, String> {
    let parts = Parts { context: context.iter().map(|dot| (dot.actor, dot.counter)).collect(), siblings };
    let mut bytes = Vec::new();
    codec::encode_into(&parts, &mut bytes).unwrap();
    codec::decode(&bytes).map_err(|why| why.to_string())
}

#[test]
fn decoding_refuses_what_is_not_a_record() {
    let (one, two) = (sibling(dot(1, 1), 1), sibling(dot(2, 1), 2));
    let context = [dot(1, 3), dot(2, 1)];
    assert!(decode(&context, vec![one.clone(), two.clone()]).is_ok());
    let refused = |context: &[Dot], siblings: Vec<Sibling>, why: &str| {
        let error = decode(context, siblings).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused(&context, vec![two.clone(), one.clone()], "out of order");
    refused(&context, vec![one.clone(), one.clone()], "out of order");
    refused(&context, vec![sibling(dot(1, 0), 1)], "zero or not covered");
    refused(&context, vec![sibling(dot(1, 4), 1)], "zero or not covered");
    refused(&context, vec![sibling(dot(3, 1), 1)], "zero or not covered");
    refused(&[], vec![one.clone()], "zero or not covered");
    refused(&[dot(2, 1), dot(1, 3)], Vec::new(), "not a version vector");
    refused(&[dot(1, 3), dot(1, 3)], Vec::new(), "not a version vector");
    refused(&[dot(1, 0)], Vec::new(), "not a version vector");
    // Two contents under one dot are a broken invariant somewhere, but data: they are kept until they are reported.
    let twice = Sibling { write_id: WriteId(9), ..one.clone() };
    assert!(decode(&context, vec![one, twice]).is_ok());
}
