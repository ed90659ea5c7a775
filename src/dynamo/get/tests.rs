//! Each test feeds events and compares what the machine wants done; the last one feeds everything in any order.

use proptest::prelude::*;

use super::super::preference::PreferenceList;
use super::super::version::{ActorMint, Caps, Content, LocalCopy, Overwrite, Write};
use super::*;
use crate::types::{Incarnation, Wall, WriteId};

fn n(id: u64) -> NodeId {
    NodeId(id)
}

/// Primaries 1 to 3 and fallbacks 4 and 5 of one layout.
fn five() -> PreferenceList {
    PreferenceList::for_test(&[&[1, 2, 3]], &[4, 5])
}

fn request(r: usize, strict: bool) -> GetRequest {
    let deadline = Mono::default() + Duration::from_secs(5);
    GetRequest { r, strict, hedge_after: Duration::from_millis(200), deadline }
}

/// A record that holds the given writes as siblings.
fn record(writes: &[u128]) -> Record {
    let mut record = Record::new();
    for id in writes {
        let mut copy = LocalCopy::default();
        let mut mint = ActorMint::new(Incarnation(u64::try_from(*id).unwrap()));
        let write = Write {
            write_id: WriteId(*id),
            content: Content::Value(vec![0].into()),
            meta: None,
            expires_at: None,
        };
        copy.put(&mut mint, Overwrite::Nothing, write, Wall(1), &Caps::default()).unwrap();
        record.merge(&copy.record);
    }
    record
}

fn reply(from: u64, record: &Record) -> GetEvent {
    GetEvent::Reply { from: n(from), record: record.clone(), refilling: false }
}

fn failed(from: u64, why: ReplicaFailure) -> GetEvent {
    GetEvent::Failed { from: n(from), why }
}

fn ask(node: u64, unless: Option<u64>) -> GetAction {
    GetAction::Ask { node: n(node), unless }
}

fn same(from: u64) -> GetEvent {
    GetEvent::Same { from: n(from), refilling: false }
}

/// A read at node 2, which holds this record.
fn read_at_2(r: usize, strict: bool, record: &Record) -> (GetMachine, Vec<GetAction>) {
    let version_hash = (!record.is_empty()).then(|| record.version_hash());
    let own = OwnCopy { node: n(2), record: record.clone(), version_hash, refilling: false };
    GetMachine::new(request(r, strict), &five(), &[], Some(own), Mono::default())
}

fn asked(actions: &[GetAction]) -> Vec<u64> {
    let asked = actions.iter().filter_map(|action| match action {
        GetAction::Ask { node, .. } => Some(node.0),
        _ => None,
    });
    asked.collect()
}

fn repaired(actions: &[GetAction]) -> Vec<u64> {
    let repaired = actions.iter().filter_map(|action| match action {
        GetAction::Repair { node, .. } => Some(node.0),
        _ => None,
    });
    repaired.collect()
}

/// Who is sent what to be kept for whom.
fn kept(actions: &[GetAction]) -> Vec<(u64, u64)> {
    let kept = actions.iter().filter_map(|action| match action {
        GetAction::Repair { node, guest_of: Some(target), .. } => Some((node.0, target.0)),
        _ => None,
    });
    kept.collect()
}

fn answer(actions: &[GetAction]) -> Option<Result<GetDone, GetShortfall>> {
    actions.iter().find_map(|action| match action {
        GetAction::Answer(answer) => Some(answer.clone()),
        _ => None,
    })
}

#[test]
fn a_sloppy_read_asks_the_primaries_and_holds_fallbacks_back() {
    let (_, actions) = GetMachine::new(request(2, false), &five(), &[], None, Mono::default());
    assert_eq!(
        actions,
        [
            GetAction::StartDeadline(Mono::default() + Duration::from_secs(5)),
            ask(1, None),
            ask(2, None),
            ask(3, None),
            GetAction::StartHedgeTimer(Mono::default() + Duration::from_millis(200)),
        ]
    );
}

#[test]
fn a_sloppy_read_goes_past_nodes_that_are_down() {
    let (_, actions) = GetMachine::new(request(2, false), &five(), &[n(2)], None, Mono::default());
    assert_eq!(asked(&actions), [1, 3, 4]);
    // Where the healthy ones are too few the others are asked as well: the view may be wrong.
    let down = [n(1), n(2), n(3), n(4)];
    let (_, actions) = GetMachine::new(request(2, false), &five(), &down, None, Mono::default());
    assert_eq!(asked(&actions), [5, 1]);
}

#[test]
fn fallbacks_that_are_behind_are_sent_what_they_keep_for_primaries_that_are_down() {
    let start = |down: &[u64]| {
        let down: Vec<NodeId> = down.iter().map(|id| n(*id)).collect();
        GetMachine::new(request(1, false), &five(), &down, None, Mono::default()).0
    };
    // One is stale, the other has nothing: each keeps it for a primary of its own.
    let mut machine = start(&[1, 2]);
    assert!(answer(&machine.on_event(reply(3, &record(&[1, 2])))).is_some(), "the answer waits for nobody");
    machine.on_event(reply(4, &record(&[1])));
    let actions = machine.on_event(reply(5, &Record::new()));
    assert_eq!((kept(&actions), repaired(&actions)), (vec![(4, 1), (5, 2)], vec![4, 5]));

    // The first stand-in has it all: the other one is still that of the other primary.
    let mut machine = start(&[1, 2]);
    machine.on_event(reply(3, &record(&[1])));
    machine.on_event(reply(4, &record(&[1])));
    assert_eq!(kept(&machine.on_event(reply(5, &Record::new()))), [(5, 2)]);

    // Who does not answer, or cannot read what it keeps, stands in for nobody; stale primaries are repaired as ever.
    let mut machine = start(&[1]);
    machine.on_event(reply(2, &record(&[1, 2])));
    machine.on_event(reply(3, &record(&[1])));
    machine.on_event(failed(4, ReplicaFailure::Corrupt));
    let actions = machine.on_event(reply(5, &record(&[2])));
    assert_eq!((kept(&actions), repaired(&actions)), (vec![(5, 1)], vec![3, 5]));
}

#[test]
fn nothing_is_kept_for_primaries_that_are_up_or_have_answered() {
    // They are slow or refuse, but up.
    let (mut machine, _) = GetMachine::new(request(1, false), &five(), &[], None, Mono::default());
    machine.on_event(failed(1, ReplicaFailure::Unavailable));
    machine.on_event(failed(2, ReplicaFailure::Unreachable));
    machine.on_event(reply(3, &record(&[1])));
    machine.on_event(reply(4, &Record::new()));
    let actions = machine.on_event(reply(5, &Record::new()));
    assert_eq!((repaired(&actions), actions.last()), (vec![], Some(&GetAction::Finished)));

    // One that was thought down answers when all others have failed: it is repaired itself.
    let down = [n(1)];
    let (mut machine, _) = GetMachine::new(request(2, false), &five(), &down, None, Mono::default());
    machine.on_event(failed(2, ReplicaFailure::Unreachable));
    machine.on_event(failed(3, ReplicaFailure::Unreachable));
    machine.on_event(reply(4, &record(&[1])));
    machine.on_event(reply(5, &record(&[1, 2])));
    let actions = machine.on_event(reply(1, &Record::new()));
    assert_eq!((kept(&actions), repaired(&actions)), (vec![], vec![1]));
}

#[test]
fn a_strict_read_asks_all_primaries_and_nobody_else() {
    let (mut machine, actions) = GetMachine::new(request(2, true), &five(), &[n(2)], None, Mono::default());
    assert_eq!(asked(&actions), [1, 3, 2]);
    assert!(!actions.iter().any(|action| matches!(action, GetAction::StartHedgeTimer(_))));
    let actions = machine.on_event(failed(2, ReplicaFailure::Unreachable));
    assert_eq!(actions, []);
}

#[test]
fn it_answers_at_r_with_the_merge_and_repairs_the_stale_when_all_are_in() {
    let (old, new) = (record(&[1]), record(&[1, 2]));
    let (mut machine, _) = GetMachine::new(request(2, false), &five(), &[], None, Mono::default());
    assert_eq!(machine.on_event(reply(1, &old)), []);
    let actions = machine.on_event(reply(2, &new));
    let done = answer(&actions).unwrap().unwrap();
    assert_eq!(done.record, new);
    assert_eq!(done.replicas.primaries, [n(1), n(2)]);
    assert!(repaired(&actions).is_empty());
    let actions = machine.on_event(reply(3, &Record::new()));
    assert_eq!(repaired(&actions), [1, 3]);
    assert_eq!(actions.last(), Some(&GetAction::Finished));
}

#[test]
fn the_deadline_repairs_those_that_did_answer() {
    let (old, new) = (record(&[1]), record(&[1, 2]));
    let (mut machine, _) = GetMachine::new(request(2, false), &five(), &[], None, Mono::default());
    machine.on_event(reply(1, &old));
    machine.on_event(reply(2, &new));
    let actions = machine.on_event(GetEvent::Deadline);
    assert_eq!(repaired(&actions), [1]);
    assert_eq!(actions.last(), Some(&GetAction::Finished));
    assert_eq!(machine.on_event(reply(3, &old)), []);
}

#[test]
fn a_corrupt_replica_does_not_count_and_is_repaired() {
    let new = record(&[1]);
    let (mut machine, _) = GetMachine::new(request(2, true), &five(), &[], None, Mono::default());
    assert_eq!(machine.on_event(failed(1, ReplicaFailure::Corrupt)), []);
    assert_eq!(machine.on_event(reply(2, &new)), []);
    let actions = machine.on_event(reply(3, &new));
    assert!(answer(&actions).unwrap().is_ok());
    assert_eq!(repaired(&actions), [1]);
}

#[test]
fn a_read_below_quorum_fails_and_says_how_far_it_came() {
    let (mut machine, _) = GetMachine::new(request(2, true), &five(), &[], None, Mono::default());
    machine.on_event(reply(1, &Record::new()));
    machine.on_event(failed(2, ReplicaFailure::Unreachable));
    let actions = machine.on_event(failed(3, ReplicaFailure::Unavailable));
    let short = answer(&actions).unwrap().unwrap_err();
    assert_eq!((short.have, short.need, short.timed_out), (1, 2, false));
    assert_eq!(short.replicas.failed.len(), 2);
    assert_eq!(actions.last(), Some(&GetAction::Finished));
}

#[test]
fn a_read_below_quorum_says_that_time_ran_out_when_it_did() {
    let (mut machine, _) = GetMachine::new(request(2, true), &five(), &[], None, Mono::default());
    machine.on_event(reply(1, &record(&[1])));
    let short = answer(&machine.on_event(GetEvent::Deadline)).unwrap().unwrap_err();
    assert!(short.timed_out);
}

#[test]
fn a_failed_replica_is_replaced_by_the_next_candidate() {
    let (mut machine, _) = GetMachine::new(request(2, false), &five(), &[], None, Mono::default());
    assert_eq!(asked(&machine.on_event(failed(1, ReplicaFailure::Unreachable))), [4]);
    machine.on_event(reply(4, &Record::new()));
    let done = answer(&machine.on_event(reply(2, &Record::new()))).unwrap().unwrap();
    assert_eq!(done.replicas.fallbacks, [n(4)]);
    assert_eq!(done.replicas.primaries, [n(2)]);
}

#[test]
fn silent_replicas_are_hedged_only_while_nobody_has_been_answered() {
    let (mut machine, _) = GetMachine::new(request(2, false), &five(), &[], None, Mono::default());
    machine.on_event(reply(1, &Record::new()));
    assert_eq!(asked(&machine.clone().on_event(GetEvent::HedgeTimer)), [4, 5]);
    machine.on_event(reply(2, &Record::new()));
    assert!(asked(&machine.on_event(GetEvent::HedgeTimer)).is_empty());
}

#[test]
fn strict_needs_r_in_every_active_layout() {
    // Moving from {1,2,3} to {3,4,5}: answers of the old owners alone are not enough.
    let list = PreferenceList::for_test(&[&[3, 4, 5], &[1, 2, 3]], &[]);
    let (mut machine, _) = GetMachine::new(request(2, true), &list, &[], None, Mono::default());
    for from in [1, 2] {
        assert_eq!(machine.on_event(reply(from, &Record::new())), []);
    }
    assert_eq!(machine.on_event(reply(3, &Record::new())), []);
    assert!(answer(&machine.on_event(reply(4, &Record::new()))).unwrap().is_ok());
}

#[test]
fn a_primary_that_has_not_refilled_counts_for_sloppy_reads_alone() {
    let refilling = |from: u64| GetEvent::Reply { from: n(from), record: Record::new(), refilling: true };
    let (mut strict, _) = GetMachine::new(request(1, true), &five(), &[], None, Mono::default());
    assert_eq!(strict.on_event(refilling(1)), []);
    let (mut sloppy, _) = GetMachine::new(request(1, false), &five(), &[], None, Mono::default());
    assert!(answer(&sloppy.on_event(refilling(1))).unwrap().is_ok());
}

#[test]
fn what_nobody_asked_for_is_an_ordinary_event() {
    let (mut machine, _) = GetMachine::new(request(2, false), &five(), &[], None, Mono::default());
    assert_eq!(machine.on_event(reply(5, &record(&[9]))), []);
    machine.on_event(reply(1, &Record::new()));
    assert_eq!(machine.on_event(reply(1, &record(&[9]))), []);
    let done = answer(&machine.on_event(reply(2, &Record::new()))).unwrap().unwrap();
    assert!(done.record.is_empty());
}

#[test]
fn the_own_copy_is_the_first_answer_and_the_others_are_asked_for_another_one() {
    let held = record(&[1]);
    let hash = Some(held.version_hash());
    let (mut machine, actions) = read_at_2(2, false, &held);
    assert_eq!(
        actions,
        [
            GetAction::StartDeadline(Mono::default() + Duration::from_secs(5)),
            ask(1, hash),
            ask(3, hash),
            GetAction::StartHedgeTimer(Mono::default() + Duration::from_millis(200)),
        ]
    );
    let done = answer(&machine.on_event(same(3))).unwrap().unwrap();
    assert_eq!((done.record, done.replicas.primaries), (held, vec![n(2), n(3)]));
    assert_eq!(machine.on_event(same(1)), [GetAction::Finished]);
}

#[test]
fn at_r_1_the_own_copy_answers_and_the_others_are_still_asked() {
    let (old, new) = (record(&[1]), record(&[1, 2]));
    let (mut machine, actions) = read_at_2(1, true, &old);
    assert_eq!(answer(&actions).unwrap().unwrap().record, old);
    assert_eq!(asked(&actions), [1, 3]);
    assert_eq!(machine.on_event(same(1)), []);
    // Who said that it holds the same is as far behind as the own copy is.
    assert_eq!(repaired(&machine.on_event(reply(3, &new))), [1, 2]);
}

#[test]
fn a_node_without_a_copy_asks_for_whole_records() {
    let (mut machine, actions) = read_at_2(2, false, &Record::new());
    assert_eq!(actions[1..3], [ask(1, None), ask(3, None)]);
    // A hostile or broken peer: nobody asked it to compare.
    assert_eq!(machine.on_event(same(1)), [ask(4, None)]);
    let short = answer(&machine.clone().on_event(GetEvent::Deadline)).unwrap().unwrap_err();
    assert_eq!(short.have, 1);
    assert!(answer(&machine.on_event(reply(3, &record(&[1])))).unwrap().is_ok());
}

#[test]
fn only_a_primary_that_is_asked_anyway_answers_for_itself() {
    let own =
        |node: u64| OwnCopy { node: n(node), record: record(&[1]), version_hash: Some(7), refilling: false };
    for strict in [false, true] {
        let (_, actions) = GetMachine::new(request(2, strict), &five(), &[], Some(own(4)), Mono::default());
        assert_eq!(actions[1..4], [ask(1, None), ask(2, None), ask(3, None)]);
    }
    let (_, actions) = GetMachine::new(request(2, false), &five(), &[n(2)], Some(own(2)), Mono::default());
    assert_eq!(actions[1..4], [ask(1, None), ask(3, None), ask(4, None)]);
}

#[test]
fn the_same_said_twice_counts_once_and_one_that_has_not_refilled_not_at_all() {
    let (mut machine, _) = read_at_2(3, true, &record(&[1]));
    assert_eq!(machine.on_event(same(1)), []);
    assert_eq!(machine.on_event(same(1)), []);
    let refilling = GetEvent::Same { from: n(3), refilling: true };
    let short = answer(&machine.on_event(refilling)).unwrap().unwrap_err();
    assert_eq!((short.have, short.need), (2, 3));
}

#[test]
fn a_corrupt_replica_beside_the_same_ones_is_repaired() {
    let (mut machine, _) = read_at_2(2, false, &record(&[1]));
    assert_eq!(
        machine.on_event(failed(1, ReplicaFailure::Corrupt)),
        [ask(4, Some(record(&[1]).version_hash()))]
    );
    machine.on_event(same(4));
    assert_eq!(repaired(&machine.on_event(same(3))), [1]);
}

fn any_event() -> impl Strategy<Value = GetEvent> {
    prop_oneof![
        6 => (0u64..7, 0u128..8, any::<bool>()).prop_map(|(from, writes, refilling)| {
            let writes: Vec<u128> = (1..=3).filter(|id| writes & (1 << (id - 1)) != 0).collect();
            GetEvent::Reply { from: n(from), record: record(&writes), refilling }
        }),
        3 => (0u64..7, 0u8..3).prop_map(|(from, why)| failed(from, match why {
            0 => ReplicaFailure::Unreachable,
            1 => ReplicaFailure::Corrupt,
            _ => ReplicaFailure::Unavailable,
        })),
        1 => Just(GetEvent::HedgeTimer),
    ]
}

proptest! {
    #[test]
    fn any_events_in_any_order_give_one_answer_that_its_replicas_bear_out(
        r in 1usize..4,
        strict in any::<bool>(),
        down in proptest::collection::vec((1u64..6).prop_map(NodeId), 0..4),
        events in proptest::collection::vec(any_event(), 0..20),
    ) {
        let list = five();
        let (mut machine, mut actions) = GetMachine::new(request(r, strict), &list, &down, None, Mono::default());
        let mut waiting = asked(&actions);
        let (mut answers, mut counted, mut seen) = (0, 0, Record::new());
        let mut finished = false;
        for event in events.into_iter().chain([GetEvent::Deadline, GetEvent::HedgeTimer]) {
            if let GetEvent::Reply { from, record, refilling } = &event
                && waiting.contains(&from.0) && !finished
            {
                waiting.retain(|node| *node != from.0);
                if answers == 0 {
                    counted += usize::from(!strict || !refilling);
                    seen.merge(record);
                }
            } else if let GetEvent::Failed { from, .. } = &event {
                waiting.retain(|node| *node != from.0);
            }
            actions = machine.on_event(event);
            prop_assert!(!finished || actions.is_empty());
            for action in &actions {
                match action {
                    GetAction::Ask { node, .. } => {
                        prop_assert!(!strict || node.0 <= 3);
                        waiting.push(node.0);
                    }
                    GetAction::Answer(answer) => {
                        answers += 1;
                        prop_assert_eq!(answer.is_ok(), counted >= r);
                        if let Ok(done) = answer {
                            prop_assert_eq!(&done.record, &seen);
                        }
                    }
                    GetAction::Repair { node, guest_of, record } => {
                        prop_assert!(!record.is_empty());
                        prop_assert_eq!(guest_of.is_some(), node.0 > 3);
                        prop_assert!(guest_of.is_none_or(|target| target.0 <= 3 && down.contains(&target)));
                    }
                    GetAction::Finished => finished = true,
                    _ => {}
                }
            }
        }
        prop_assert_eq!(answers, 1);
        prop_assert!(finished);
    }

    /// What the replicas hold, who has not refilled, in which order they answer, and one in five does not.
    #[test]
    fn a_read_with_digests_gives_what_a_read_of_whole_records_gives(
        r in 1usize..4,
        strict in any::<bool>(),
        held in proptest::collection::vec((0u128..4, any::<bool>(), 0u8..5), 5),
        order in Just((1u64..6).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let record_of = |node: u64| {
            let writes = held[usize::try_from(node).unwrap() - 1].0;
            record(&(1..=2).filter(|id| writes & id != 0).collect::<Vec<_>>())
        };
        let own = record_of(2);
        let (mut digests, first) = read_at_2(r, strict, &own);
        let (mut whole, _) = GetMachine::new(request(r, strict), &five(), &[], None, Mono::default());
        let mut of_digests = first;
        let mut of_whole = whole.on_event(reply(2, &own));
        let answers = order.iter().filter(|node| **node != 2).flat_map(|node| [*node, *node]);
        for node in answers.map(Some).chain([None]) {
            let event = match node {
                None => GetEvent::Deadline,
                Some(node) => match held[usize::try_from(node).unwrap() - 1] {
                    (.., 0) => failed(node, ReplicaFailure::Corrupt),
                    (_, refilling, _) => GetEvent::Reply { from: n(node), record: record_of(node), refilling },
                },
            };
            let digest = match &event {
                GetEvent::Reply { from, record, refilling } if !own.is_empty() && *record == own => {
                    GetEvent::Same { from: *from, refilling: *refilling }
                }
                event => event.clone(),
            };
            of_whole.extend(whole.on_event(event));
            of_digests.extend(digests.on_event(digest));
        }
        prop_assert_eq!(answer(&of_digests), answer(&of_whole));
        let repairs = |actions: &[GetAction]| {
            let mut actions = actions.to_vec();
            actions.retain(|action| matches!(action, GetAction::Repair { .. }));
            actions
        };
        prop_assert_eq!(repairs(&of_digests), repairs(&of_whole));
        prop_assert_eq!(of_digests.last(), Some(&GetAction::Finished));
    }
}
