use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

/// A member in its `starts`-th start.
fn of(me: NodeId, starts: u64) -> Membership {
    let mut membership = Membership::new(me, starts);
    membership.set_members([A, B, C]);
    membership
}

fn beat(generation: u64, count: u64) -> Heartbeat {
    Heartbeat { generation, count }
}

/// Tells a node this; the members of whom it is news.
fn tell(to: &mut Membership, heard: &[(NodeId, Heartbeat)]) -> Vec<NodeId> {
    to.hear(heard, || 1000).news
}

/// Tells node A this of itself; its heartbeat then.
fn own(a: &mut Membership, generation: u64, count: u64) -> Heartbeat {
    assert_eq!(tell(a, &[(A, beat(generation, count))]), []);
    a.own
}

/// One exchange, begun by `from`.
fn gossip(from: &mut Membership, to: &mut Membership, rng: &mut Xoshiro256PlusPlus) {
    let said = from.heard();
    let answer = to.newer_than(&said);
    to.hear(&said, || rng.next_u32());
    from.hear(&answer, || rng.next_u32());
}

#[test]
fn one_exchange_brings_both_up_to_date_and_tells_of_whom_it_was_news() {
    let (mut a, mut b) = (of(A, 1), of(B, 1));
    tell(&mut b, &[(C, beat(3, 9))]);
    tell(&mut a, &[(C, beat(3, 4))]);
    a.beat();
    b.beat();
    let said = a.heard();
    let answer = b.newer_than(&said);
    assert_eq!(tell(&mut b, &said), [A], "of C it knows more");
    assert_eq!(tell(&mut a, &answer), [B, C]);
    assert_eq!(a.heard(), b.heard());
    assert_eq!(tell(&mut a, &answer), [], "what is known is no news");
}

#[test]
fn what_comes_late_or_of_strangers_is_nothing() {
    let mut a = of(A, 1);
    let late = [(B, beat(1, 7))];
    assert_eq!(tell(&mut a, &[(B, beat(2, 0))]), [B]);
    assert_eq!(tell(&mut a, &late), [], "B has begun anew since");
    assert_eq!(tell(&mut a, &[(NodeId(9), beat(1, 1))]), []);
    a.set_members([C]);
    assert_eq!(a.heard(), [(A, beat(3, 0))]);
}

/// The bad order: a node starts from an older copy of its disk and counts from a generation that others have passed.
#[test]
fn a_node_goes_above_what_others_remember_of_it() {
    let (mut restored, mut b) = (of(A, 2), of(B, 1));
    tell(&mut b, &[(A, beat(11, 100))]);
    restored.beat();
    let said = restored.heard();
    assert_eq!(tell(&mut b, &said), [], "nobody would hear it");
    let remembered = b.newer_than(&said);
    tell(&mut restored, &remembered);
    restored.beat();
    assert_eq!(tell(&mut b, &restored.heard()), [A]);
    for _ in 0..=ANSWER_WITHIN {
        restored.beat();
        assert!(!restored.hear(&remembered, || 7).is_double, "nobody lives there");
    }
    assert!(!restored.own.is_challenge(), "it asks no longer");
    assert_eq!(tell(&mut b, &restored.heard()), [A], "and goes on from above");
}

#[test]
fn what_a_node_said_itself_makes_it_neither_rise_nor_stop() {
    let mut a = of(A, 3);
    a.beat();
    let before = a.heard();
    a.beat();
    assert_eq!(own(&mut a, 7, 1), beat(7, 2));
    assert_eq!(own(&mut a, 7, 2), beat(7, 2));
    assert_eq!(own(&mut a, 5, 900), beat(7, 2), "of an earlier start");
    assert!(!a.hear(&before, || 1).is_double);
}

#[test]
fn the_lower_asks_and_stops_when_it_is_answered_and_the_higher_answers_and_goes_on() {
    let (mut lower, mut higher) = (of(A, 2), of(A, 5));
    higher.beat();
    let challenge = own(&mut lower, 11, 1);
    assert_eq!(challenge, beat(2012, 0));
    assert_eq!(own(&mut higher, 2012, 0), beat(2013, 0));
    assert!(!higher.is_double);
    assert!(lower.hear(&[(A, beat(2013, 0))], || 5).is_double);
    lower.beat();
    assert!(lower.hear(&[(A, beat(5001, 0))], || 5).is_double, "it stays so");
    assert_eq!(lower.own, beat(2012, 1), "and says nothing more that the other would have to answer");
    // Whatever is left of the lower one on the way.
    assert_eq!(own(&mut higher, 2012, 1), beat(2013, 0));
}

/// The bad order: others remember different heartbeats of an earlier life, and tell one after the other.
#[test]
fn memories_that_come_one_by_one_ever_higher_stop_nobody() {
    let mut restored = of(A, 1);
    for (generation, count) in [(11, 5), (11, 90), (5001, 3), (5002, 8), (9001, 0), (20_002, 1), (20_003, 4)]
    {
        restored.beat();
        assert!(!restored.hear(&[(A, beat(generation, count))], || 400).is_double, "{generation}");
        assert!(restored.own > beat(generation, count));
    }
}

#[test]
fn garbage_stops_nobody_and_is_not_remembered() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut a = of(A, 2);
    for _ in 0..100_000 {
        let generation = rng.next_u64() >> rng.random_range(0..64);
        let garbage = [(A, beat(generation, rng.next_u64())), (B, beat(generation | 1 << 63, 1))];
        let heard = a.hear(&garbage, || rng.next_u32());
        assert_eq!(heard, Heard::default());
        if rng.random_bool(0.1) {
            a.beat();
        }
    }
    assert_eq!(a.heard().len(), 1, "nothing of B");
}

/// Two processes of A, and what others make of it: losses, and messages that come later, in any order. B remembers
/// earlier lives.
#[test]
fn of_two_processes_that_live_the_lower_stops_and_the_other_goes_on() {
    for seed in 0..2000 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (mut b, mut c) = (of(B, 1), of(C, 1));
        tell(&mut b, &[(A, beat(rng.random_range(0..12), 40))]);
        let starts = (rng.random_range(1..5), rng.random_range(1..5));
        let mut twins = [of(A, starts.0), of(A, starts.1)];
        // One has run for long and asks nothing any more.
        let old = rng.random_range(0..2);
        for _ in 0..200 {
            twins[old].beat();
            gossip(&mut twins[old], &mut c, &mut rng);
            gossip(&mut c, &mut b, &mut rng);
        }
        let settled = twins[old].own;
        let is_lower_the_new_one = twins[1 - old].own < settled;
        let mut stopped = [false; 2];
        let mut late: Vec<(usize, Vec<(NodeId, Heartbeat)>)> = Vec::new();
        for _ in 0..40 {
            for twin in 0..2 {
                if stopped[twin] {
                    continue;
                }
                twins[twin].beat();
                let other = if rng.random_bool(0.5) { &mut b } else { &mut c };
                match rng.random_range(0..4) {
                    0 => {}
                    1 => late.push((twin, other.newer_than(&twins[twin].heard()))),
                    _ => gossip(&mut twins[twin], other, &mut rng),
                }
                if !late.is_empty() && rng.random_bool(0.5) {
                    let (to, heard) = late.swap_remove(rng.random_range(0..late.len()));
                    twins[to].hear(&heard, || rng.next_u32());
                }
                stopped[twin] |= twins[twin].is_double;
            }
            gossip(&mut b, &mut c, &mut rng);
        }
        assert_eq!(stopped.iter().filter(|stopped| **stopped).count(), 1, "seed {seed}");
        let expected = if is_lower_the_new_one { 1 - old } else { old };
        assert!(stopped[expected], "seed {seed}: {starts:?}");
    }
}

/// The same without the second process: everything that was ever said of A comes again, in any order.
#[test]
fn a_life_among_the_messages_of_earlier_ones_is_never_ended_by_them() {
    for seed in 0..500 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut said: Vec<Heartbeat> = Vec::new();
        for _ in 0..6 {
            let mut a = of(A, rng.random_range(1..9));
            for _ in 0..rng.random_range(1..100) {
                a.beat();
                said.push(a.own);
                let told = said[rng.random_range(0..said.len())];
                assert!(!a.hear(&[(A, told)], || rng.next_u32()).is_double, "seed {seed}");
            }
        }
    }
}

#[test]
fn two_that_were_cut_off_from_each_other_for_long_are_one_again() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let (mut original, mut copy, mut b) = (of(A, 5), of(A, 2), of(B, 1));
    original.beat();
    gossip(&mut original, &mut b, &mut rng);
    for _ in 0..3 * ANSWER_WITHIN {
        original.beat();
        copy.beat();
        gossip(&mut copy, &mut b, &mut rng);
    }
    assert!(!copy.is_double && copy.own > original.own, "it went above what b remembered");
    for _ in 0..5 {
        gossip(&mut original, &mut b, &mut rng);
        gossip(&mut copy, &mut b, &mut rng);
    }
    assert!(original.is_double && !copy.is_double);
}
