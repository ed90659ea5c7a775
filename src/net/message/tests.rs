use bytes::Bytes;

use super::*;
use crate::dynamo::reaping::Fences;
use crate::dynamo::version::Record;
use crate::types::{Key, Namespace, Wall, WriteId};

#[test]
fn no_kind_has_two_meanings_and_answers_mirror_requests() {
    let mut kinds: Vec<u16> = KINDS.iter().map(|(kind, ..)| *kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), KINDS.len());
    for (kind, since, name) in KINDS.iter().filter(|(kind, ..)| kind & 0x8000 == 0) {
        assert!(is_spoken(kind | 0x8000, *since), "{name} has no answer");
        assert!((1..=VERSION).contains(since));
    }
}

#[test]
fn a_message_is_read_only_as_its_own_kind() {
    let head = FrameHead { version: VERSION, ..FrameHead::default() };
    let ping = Ping.to_frame(head).unwrap();
    assert_eq!(Ping::from_frame(&ping), Ok(Ping));
    assert!(Pong::from_frame(&ping).is_err());
}

fn head(version: u8) -> FrameHead {
    FrameHead { version, ..FrameHead::default() }
}

fn put() -> Put {
    let key = Key::new(&b"dove"[..]).unwrap();
    Put { durability: Some(Durability::Sync), ..Put::new(key, WriteId(7), &b"coo"[..]) }
}

fn there_and_back<M: Message>(message: &M, version: u8) -> M {
    M::from_frame(&message.to_frame(head(version)).unwrap()).unwrap()
}

#[test]
fn what_version_1_can_say_means_the_same_in_both_versions() {
    let puts = [
        put(),
        Put { expiry: Expiry::At(Wall(9)), context: Context::Current, ..put() },
        Put { value: None, context: Context::Read, ..put() },
    ];
    for put in puts {
        for version in VERSION_MIN..=VERSION {
            assert_eq!(there_and_back(&put, version), put, "version {version}");
        }
    }
    let old = put().to_frame(head(1)).unwrap();
    let new = put().to_frame(head(2)).unwrap();
    assert_ne!(old.body, new.body, "the forms differ, so the version must be looked at");
    assert!(Put::from_frame(&Frame { head: FrameHead { version: 1, ..new.head }, ..new }).is_err());
}

#[test]
fn what_version_1_cannot_say_is_not_sent() {
    let puts = [
        Put { condition: Condition::Absent, ..put() },
        Put { condition: Condition::Match(Bytes::new()), ..put() },
        Put { expiry: Expiry::After(1), ..put() },
        Put { durability: Some(Durability::Interval(1)), ..put() },
        Put { return_record: true, ..put() },
    ];
    for put in puts {
        assert!(matches!(put.to_frame(head(1)), Err(CodecError::Unencodable(_))), "{put:?}");
        assert_eq!(there_and_back(&put, 2), put);
    }
    let lww = Get { resolve: Resolve::Lww, ..Get::new(put().key) };
    assert!(lww.to_frame(head(1)).is_err());
    assert!(MultiGet::default().to_frame(head(1)).is_err());
    assert!(Scan::all().to_frame(head(1)).is_err());
    let explain = Explain { namespace: Namespace(0), key: put().key };
    assert!(explain.to_frame(head(1)).is_err());
    assert!(Repair { partition: crate::types::PartitionId(0) }.to_frame(head(1)).is_err());
}

#[test]
fn a_copy_that_need_not_be_sent_is_sent_under_version_1() {
    let fetch = Fetch { namespace: Namespace(0), key: put().key, unless: Some(7) };
    assert_eq!(there_and_back(&fetch, 1), Fetch { unless: None, ..fetch.clone() });
    assert_eq!(there_and_back(&fetch, 2), fetch);
    let fences = Fences::default();
    let whole = FetchReply { record: Some(Record::new()), refilling: true, fences };
    assert_eq!((there_and_back(&whole, 1), there_and_back(&whole, 2)), (whole.clone(), whole));
    let none = FetchReply { record: None, refilling: false, fences: Fences { raised: 7, committed: 6 } };
    assert!(none.to_frame(head(1)).is_err());
    assert_eq!(there_and_back(&none, 2), none);
}

#[test]
fn version_1_has_no_fences() {
    assert_eq!(there_and_back(&StoreReply::Kept, 1), StoreReply::Kept);
    let fenced = StoreReply::Fenced(Fences { raised: 7, committed: 6 });
    assert_eq!(there_and_back(&fenced, 2), fenced);
    assert!(fenced.to_frame(head(1)).is_err());
}

#[test]
fn a_refusal_that_version_1_does_not_know_arrives_as_its_nearest() {
    let overloaded =
        Refusal::new(RefusalCode::Overloaded, "busy").with_retry_after(std::time::Duration::from_secs(1));
    assert_eq!(there_and_back(&overloaded, 1), Refusal::new(RefusalCode::Unavailable, "busy"));
    assert_eq!(there_and_back(&overloaded, 2), overloaded);
}

#[test]
fn both_sides_agree_on_the_newest_version_that_both_speak() {
    let spoken = |version_min, version_max| Spoken { version_min, version_max, features: 0 };
    let common = |ours: Spoken, theirs: Spoken| ours.common(&crate::net::link::hello(theirs, None, None));
    assert_eq!(common(spoken(1, 2), spoken(1, 2)), Some(2));
    assert_eq!(common(spoken(1, 2), spoken(1, 1)), Some(1));
    assert_eq!(common(spoken(1, 1), spoken(1, 9)), Some(1));
    assert_eq!(common(spoken(2, 3), spoken(1, 1)), None);
    assert_eq!(common(spoken(1, 2), spoken(3, 4)), None);
    assert_eq!(common(spoken(1, 2), spoken(2, 1)), None, "a range that is none");
}

#[test]
fn a_prefix_is_the_range_of_all_keys_that_begin_with_it() {
    let range = |prefix: &[u8]| {
        let scan = Scan::prefix(prefix);
        (scan.from.to_vec(), scan.to.to_vec())
    };
    assert_eq!(range(b"ab"), (b"ab".to_vec(), b"ac".to_vec()));
    assert_eq!(range(b"a\xff\xff"), (b"a\xff\xff".to_vec(), b"b".to_vec()));
    assert_eq!(range(b"\xff"), (b"\xff".to_vec(), Vec::new()));
    assert_eq!(range(b""), (Vec::new(), Vec::new()));
}
