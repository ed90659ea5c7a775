use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::version::VersionVector;
use super::*;
use crate::types::{ActorId, Incarnation, WriteId};

const GRACE: Duration = Duration::from_millis(100);

fn dot(actor: u64, counter: u64) -> Dot {
    Dot { actor: ActorId { incarnation: Incarnation(actor), epoch: 1 }, counter }
}

fn sibling(dot: Dot, content: Content, expires_at: Option<u64>) -> Sibling {
    let write_id = WriteId(u128::from(dot.counter) << 64 | u128::from(dot.actor.incarnation.0));
    Sibling { dot, write_id, content, meta: None, expires_at: expires_at.map(Wall), written_at: Wall(1000) }
}

fn value(dot: Dot) -> Sibling {
    sibling(dot, Content::Value(Bytes::from_static(b"v")), None)
}

fn tombstone(dot: Dot) -> Sibling {
    sibling(dot, Content::Tombstone, None)
}

fn record(context: &[Dot], siblings: &[Sibling]) -> Record {
    Record::from_parts(context.iter().copied().collect::<VersionVector>(), siblings.to_vec()).unwrap()
}

#[test]
fn a_record_comes_in_unless_it_was_read_before_a_round_that_was_voted_in() {
    let at = |raised, committed| Fences { raised, committed };
    assert_eq!(at(0, 0).admit(at(0, 0)), Admission::Take);
    assert_eq!(at(3, 2).admit(at(3, 0)), Admission::Take);
    // The sender has voted already, this node has not yet.
    assert_eq!(at(3, 2).admit(at(4, 3)), Admission::Take);
    assert_eq!(at(4, 3).admit(at(3, 3)), Admission::Refuse);
    // A round that all have voted in, this node's disk not.
    assert_eq!(at(3, 2).admit(at(4, 4)), Admission::CatchUp);
    assert_eq!(at(3, 2).admit(at(2, 4)), Admission::CatchUp);
}

#[test]
fn copies_from_before_and_behind_a_round_do_not_stand_beside_each_other() {
    let at = |raised, committed| Fences { raised, committed };
    let joint = |copies: &[(Fences, bool)]| {
        let mut joint = Joint::default();
        copies.iter().for_each(|(fences, has_vote)| joint.join(*fences, *has_vote));
        joint
    };
    assert!(Joint::default().is_sound() && joint(&[(at(0, 0), true), (at(0, 0), false)]).is_sound());
    // One has voted, the other not yet.
    assert!(joint(&[(at(3, 3), true), (at(4, 3), true)]).is_sound());
    assert!(!joint(&[(at(3, 3), true), (at(4, 4), true)]).is_sound());
    assert!(!joint(&[(at(4, 4), true), (at(3, 3), true)]).is_sound());
    // Nobody waits for the vote of this one.
    assert!(!joint(&[(at(3, 3), false), (at(4, 3), true)]).is_sound());
    assert!(joint(&[(at(4, 3), false), (at(3, 3), true)]).is_sound());
    assert_eq!(joint(&[(at(3, 3), true), (at(4, 2), true)]).fences(), at(3, 3));
    // Who holds nothing may have let it go.
    let mut absent = joint(&[(at(3, 3), true)]);
    absent.hear(at(4, 3));
    assert!(absent.is_sound());
    absent.hear(at(4, 4));
    assert!(!absent.is_sound());
}

#[test]
fn what_has_passed_longer_than_the_grace_ago_may_go() {
    let gone = record(&[dot(1, 3)], &[tombstone(dot(1, 3))]);
    assert_eq!(reapable(&gone, Wall(1099), GRACE), None);
    assert_eq!(reapable(&gone, Wall(1100), GRACE), Some(vec![dot(1, 3)]));
    assert_eq!(gone.reaped(&[dot(1, 3)]), Record::new());

    let expired = sibling(dot(1, 1), Content::Value(Bytes::new()), Some(2000));
    let both = record(&[dot(1, 1), dot(2, 4)], &[expired, value(dot(2, 4))]);
    assert_eq!(reapable(&both, Wall(2099), GRACE), None);
    assert_eq!(reapable(&both, Wall(2100), GRACE), Some(vec![dot(1, 1)]));
    assert_eq!(both.reaped(&[dot(1, 1)]), record(&[dot(2, 4)], &[value(dot(2, 4))]));

    let plain = record(&[dot(2, 4)], &[value(dot(2, 4))]);
    assert_eq!(reapable(&plain, Wall(u64::MAX), GRACE), None);
}

#[test]
fn a_context_is_cut_once_its_siblings_are_old() {
    let long = record(&[dot(1, 7), dot(2, 4), dot(3, 9)], &[value(dot(2, 4))]);
    assert_eq!(reapable(&long, Wall(1099), GRACE), None);
    assert_eq!(reapable(&long, Wall(1100), GRACE), Some(Vec::new()));
    let cut = long.reaped(&[]);
    assert_eq!(cut, record(&[dot(2, 4)], &[value(dot(2, 4))]));
    assert!(!cut.is_reapable() && long.is_reapable());
    // A copy that was not cut yet meets one that was, and one that was written to meanwhile.
    let mut merged = cut.clone();
    merged.merge(&long);
    assert_eq!(merged, long);
    let later = record(&[dot(2, 4), dot(5, 1)], &[value(dot(5, 1))]);
    let mut merged = long.clone();
    merged.merge(&later);
    assert_eq!(merged.siblings(), [value(dot(5, 1))]);
}

#[test]
fn a_primary_agrees_to_what_it_would_do_itself() {
    let held = record(&[dot(1, 3), dot(2, 1)], &[tombstone(dot(1, 3)), value(dot(2, 1))]);
    let hash = held.version_hash();
    let at = |drop: &[Dot], now| vote(&held, hash, drop, Wall(now), GRACE);
    assert_eq!(at(&[dot(1, 3)], 1100), KeyVote::Yes);
    assert_eq!(at(&[dot(1, 3)], 1099), KeyVote::TooSoon);
    // A value is never let go, whatever the leader says.
    assert_eq!(at(&[dot(1, 3), dot(2, 1)], 9999), KeyVote::TooSoon);
    assert_eq!(vote(&held, hash ^ 1, &[dot(1, 3)], Wall(9999), GRACE), KeyVote::Differs);
    assert_eq!(vote(&Record::new(), Record::new().version_hash(), &[], Wall(9999), GRACE), KeyVote::Differs);
}

#[test]
fn a_key_goes_when_every_member_agrees() {
    let [a, b, c] = [1, 2, 3].map(NodeId);
    let mut ballot = Ballot::new(3, [a, b, c]);
    ballot.votes(a, &[KeyVote::Yes; 3]);
    ballot.votes(b, &[KeyVote::Yes, KeyVote::Guest, KeyVote::Yes]);
    assert!(ballot.agreed().is_empty(), "one is missing");
    ballot.votes(c, &[KeyVote::Yes, KeyVote::Yes, KeyVote::Differs]);
    assert_eq!(ballot.agreed(), [0]);
    let against: Vec<_> = ballot.against().iter().collect();
    assert_eq!(
        against,
        [(&(b, Against::Key(KeyVote::Guest)), &1), (&(c, Against::Key(KeyVote::Differs)), &1)]
    );

    let mut ballot = Ballot::new(2, [a, b]);
    ballot.votes(a, &[KeyVote::Yes]);
    ballot.votes(b, &[KeyVote::Yes; 2]);
    ballot.votes(a, &[KeyVote::Yes; 2]);
    assert!(ballot.agreed().is_empty(), "an answer of another length agrees to nothing");

    let mut ballot = Ballot::new(1, [a, b]);
    ballot.refused(b, Against::Silent);
    ballot.votes(b, &[KeyVote::Yes]);
    ballot.votes(a, &[KeyVote::Yes]);
    assert!(ballot.agreed().is_empty());
    assert_eq!(ballot.against()[&(b, Against::Silent)], 1);
}

#[test]
fn of_a_copy_that_is_given_up_the_own_writes_of_this_start_stay() {
    // Actor 9 is of this start. It wrote on top of a value that the disk had from before, and beside one.
    let copy = record(
        &[dot(1, 7), dot(2, 4), dot(9, 2)],
        &[value(dot(1, 5)), tombstone(dot(2, 4)), value(dot(9, 2))],
    );
    let ours = |dot: Dot| dot.actor.incarnation == Incarnation(9);
    let left = copy.only(ours, &BTreeSet::new());
    // What it had overwritten below the lost siblings it still has.
    assert_eq!(left, record(&[dot(1, 4), dot(2, 3), dot(9, 2)], &[value(dot(9, 2))]));
    assert_eq!(copy.only(|_| false, &BTreeSet::new()), Record::new());
}

/// What is left of a copy must be a record whichever siblings stay: one whose context does not cover its siblings cannot be read
/// from the disk again. (Found by the simulator: members 21.)
#[test]
fn what_is_left_of_a_copy_is_a_record_whichever_siblings_stay() {
    let dots = [dot(1, 3), dot(1, 5), dot(1, 7), dot(2, 2), dot(2, 4)];
    let copy = record(&[dot(1, 8), dot(2, 4), dot(3, 1)], &dots.map(value));
    for kept in 0..1_u32 << dots.len() {
        let stays = |dot: Dot| dots.iter().zip(0..).any(|(other, at)| *other == dot && kept >> at & 1 == 1);
        let left = copy.only(stays, &BTreeSet::new());
        let again = Record::from_parts(left.context().clone(), left.siblings().to_vec());
        assert_eq!(again, Ok(left.clone()), "kept {kept:b}");
        for lost in dots.iter().filter(|dot| !left.siblings().iter().any(|sibling| sibling.dot == **dot)) {
            assert!(!left.context().covers(*lost), "kept {kept:b}: {lost:?} may be alive elsewhere");
        }
        assert!(left.siblings().iter().all(|sibling| stays(sibling.dot)));
    }
    assert_eq!(copy.only(|_| true, &BTreeSet::new()), copy);
}

/// The bad order: a write of before, which reached nobody, overwrote one that is alive elsewhere. With the write goes its claim.
#[test]
fn what_is_given_up_takes_along_what_it_claims_to_have_overwritten() {
    let copy = record(&[dot(1, 3), dot(2, 2), dot(9, 1)], &[value(dot(1, 3)), value(dot(9, 1))]);
    let alive: BTreeSet<Dot> = [dot(2, 2)].into();
    let left = copy.only(|dot| dot.actor.incarnation == Incarnation(9), &alive);
    assert_eq!(left, record(&[dot(1, 2), dot(2, 1), dot(9, 1)], &[value(dot(9, 1))]));
    assert_eq!(copy.only(|_| true, &alive), copy, "where nothing goes, all claims stand");
}

#[test]
fn of_two_fences_the_higher_of_each_number_counts() {
    let (raised, committed) = (Fences { raised: 6, committed: 0 }, Fences { raised: 5, committed: 5 });
    for joined in [raised.join(committed), committed.join(raised)] {
        assert_eq!(joined, Fences { raised: 6, committed: 5 });
    }
}
