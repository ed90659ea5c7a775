//! Each test feeds events and compares what the machine wants done; the last one feeds everything in any order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::preference::PreferenceList;
use super::*;

fn n(id: u64) -> NodeId {
    NodeId(id)
}

fn five() -> PreferenceList {
    PreferenceList::for_test(&[&[1, 2, 3]], &[4, 5])
}

fn three() -> PreferenceList {
    PreferenceList::for_test(&[&[1, 2, 3]], &[])
}

fn request(w: usize, strict: bool) -> PutRequest {
    let deadline = Mono::default() + Duration::from_secs(5);
    PutRequest { w, strict, hint_after: Duration::from_millis(300), deadline }
}

fn start(
    w: usize,
    strict: bool,
    at: u64,
    list: &PreferenceList,
    down: &[u64],
) -> (PutMachine, Vec<PutAction>) {
    let down: Vec<NodeId> = down.iter().map(|id| n(*id)).collect();
    PutMachine::new(request(w, strict), n(at), list, &down, Mono::default()).unwrap()
}

fn failed(from: u64) -> PutEvent {
    PutEvent::Failed { from: n(from), why: ReplicaFailure::Unreachable }
}

fn applied(actions: &[PutAction]) -> bool {
    actions.iter().any(|action| matches!(action, PutAction::Answer(PutOutcome::Applied(_))))
}

fn unknown(actions: &[PutAction]) -> Option<(usize, bool)> {
    actions.iter().find_map(|action| match action {
        PutAction::Answer(PutOutcome::Unknown { have, timed_out, .. }) => Some((*have, *timed_out)),
        _ => None,
    })
}

/// The bad order: W old owners have acked what a new one was compared too early to have, and the old layout retires.
#[test]
fn w_counts_in_the_layouts_that_are_active_when_the_put_is_answered() {
    let (old, both) = (three(), PreferenceList::for_test(&[&[1, 4, 5], &[1, 2, 3]], &[2, 3]));
    let new = PreferenceList::for_test(&[&[1, 4, 5]], &[2, 3]);
    let (mut machine, _) = start(2, false, 1, &old, &[]);
    machine.on_event(PutEvent::Applied);
    machine.on_event(PutEvent::LocalDurable);
    assert_eq!(machine.on_layout(&both), [PutAction::Replicate(n(4)), PutAction::Replicate(n(5))]);
    assert!(!applied(&machine.on_event(PutEvent::Ack(n(2)))), "two hold it, of the new owners only one");
    assert!(applied(&machine.clone().on_event(PutEvent::Ack(n(5)))));
    // The old layout retires: the acks of those that only it names are worth nothing any more.
    assert_eq!(machine.on_layout(&new), []);
    assert!(!applied(&machine.on_event(PutEvent::Ack(n(3)))));
    assert!(applied(&machine.on_event(PutEvent::Ack(n(4)))));
    assert_eq!(machine.on_event(PutEvent::Ack(n(5))), [PutAction::Finished]);
}

#[test]
fn a_put_that_has_what_a_new_layout_asks_for_is_answered_at_once() {
    let both = PreferenceList::for_test(&[&[1, 2, 4], &[1, 2, 3]], &[3]);
    let (mut machine, _) = start(3, false, 1, &three(), &[]);
    machine.on_event(PutEvent::Applied);
    machine.on_event(PutEvent::LocalDurable);
    machine.on_event(PutEvent::Ack(n(2)));
    // Only the new layout is left: 1 and 2 hold it, 4 is asked, 3 is silent.
    let new = PreferenceList::for_test(&[&[1, 2, 4]], &[3]);
    assert_eq!(machine.on_layout(&both), [PutAction::Replicate(n(4))]);
    assert_eq!(machine.on_layout(&new), []);
    assert!(applied(&machine.on_event(PutEvent::Ack(n(4)))));
}

#[test]
fn a_put_applies_locally_first_and_replicates_once_the_dot_exists() {
    let (mut machine, actions) = start(2, false, 2, &five(), &[]);
    assert_eq!(
        actions,
        [
            PutAction::StartDeadline(Mono::default() + Duration::from_secs(5)),
            PutAction::ApplyLocally { guest: false, targets: vec![] },
        ]
    );
    assert_eq!(
        machine.on_event(PutEvent::Applied),
        [
            PutAction::Replicate(n(1)),
            PutAction::Replicate(n(3)),
            PutAction::StartHintTimer(Mono::default() + Duration::from_millis(300)),
        ]
    );
}

#[test]
fn it_answers_when_w_nodes_hold_it_durably_and_goes_on_until_all_do() {
    let (mut machine, _) = start(2, false, 1, &five(), &[]);
    machine.on_event(PutEvent::Applied);
    assert_eq!(machine.on_event(PutEvent::Ack(n(2))), []);
    let actions = machine.on_event(PutEvent::LocalDurable);
    assert!(applied(&actions));
    assert!(!actions.contains(&PutAction::Finished));
    assert_eq!(machine.on_event(PutEvent::Ack(n(3))), [PutAction::Finished]);
}

#[test]
fn w_may_be_met_without_the_coordinators_own_disk() {
    let (mut machine, _) = start(2, false, 1, &five(), &[]);
    machine.on_event(PutEvent::Applied);
    machine.on_event(PutEvent::LocalFailed);
    machine.on_event(PutEvent::Ack(n(2)));
    assert!(applied(&machine.on_event(PutEvent::Ack(n(3)))));
}

#[test]
fn a_put_that_made_no_dot_is_not_applied() {
    let (mut machine, _) = start(2, false, 1, &five(), &[]);
    let actions = machine.on_event(PutEvent::Refused);
    assert_eq!(actions, [PutAction::Answer(PutOutcome::NotApplied), PutAction::Finished]);
}

#[test]
fn after_the_dot_every_failure_is_unknown() {
    let (mut machine, _) = start(2, true, 1, &five(), &[]);
    machine.on_event(PutEvent::Applied);
    machine.on_event(PutEvent::LocalDurable);
    machine.on_event(failed(2));
    let actions = machine.on_event(failed(3));
    assert_eq!(unknown(&actions), Some((1, false)));
    assert_eq!(actions.last(), Some(&PutAction::Finished));
}

#[test]
fn the_deadline_before_the_dot_is_unknown_too() {
    // The shell is still making the dot; it may reach the disk after the client has gone.
    let (mut machine, _) = start(2, false, 1, &five(), &[]);
    let actions = machine.on_event(PutEvent::Deadline);
    assert_eq!(unknown(&actions), Some((0, true)));
    assert_eq!(machine.on_event(PutEvent::Applied), []);
}

#[test]
fn a_primary_that_is_down_is_stood_in_for_at_once() {
    let (mut machine, _) = start(2, false, 1, &five(), &[2]);
    let actions = machine.on_event(PutEvent::Applied);
    assert!(actions.contains(&PutAction::StoreGuest { node: n(4), target: n(2) }));
    assert!(actions.contains(&PutAction::Replicate(n(3))));
    assert!(!actions.contains(&PutAction::Replicate(n(2))));
    machine.on_event(PutEvent::LocalDurable);
    assert!(applied(&machine.on_event(PutEvent::Ack(n(4)))));
}

#[test]
fn a_silent_primary_is_stood_in_for_after_the_hint_delay_and_still_counts() {
    let (mut machine, _) = start(3, false, 1, &five(), &[]);
    machine.on_event(PutEvent::Applied);
    machine.on_event(PutEvent::LocalDurable);
    machine.on_event(PutEvent::Ack(n(2)));
    assert_eq!(machine.on_event(PutEvent::HintTimer), [PutAction::StoreGuest { node: n(4), target: n(3) }]);
    assert_eq!(machine.on_event(PutEvent::HintTimer), []);
    assert!(applied(&machine.on_event(PutEvent::Ack(n(3)))));
    assert_eq!(machine.on_event(PutEvent::Ack(n(4))), [PutAction::Finished]);
}

#[test]
fn a_fallback_that_fails_is_followed_by_the_next_and_then_by_a_note() {
    let (mut machine, _) = start(2, false, 1, &five(), &[]);
    machine.on_event(PutEvent::Applied);
    assert_eq!(machine.on_event(failed(2)), [PutAction::StoreGuest { node: n(4), target: n(2) }]);
    assert_eq!(machine.on_event(failed(4)), [PutAction::StoreGuest { node: n(5), target: n(2) }]);
    assert_eq!(machine.on_event(failed(5)), [PutAction::NoteTarget(n(2))]);
}

#[test]
fn without_fallbacks_the_target_is_noted_and_adds_no_ack() {
    let (mut machine, actions) = start(2, false, 1, &three(), &[3]);
    assert!(actions.contains(&PutAction::ApplyLocally { guest: false, targets: vec![n(3)] }));
    assert!(!machine.on_event(PutEvent::Applied).iter().any(|a| matches!(a, PutAction::NoteTarget(_))));
    machine.on_event(PutEvent::LocalDurable);
    let actions = machine.on_event(failed(2));
    assert!(actions.contains(&PutAction::NoteTarget(n(2))));
    assert_eq!(unknown(&actions), Some((1, false)));
}

#[test]
fn strict_uses_no_fallback_and_counts_none() {
    let (mut machine, _) = start(2, true, 1, &five(), &[2]);
    let actions = machine.on_event(PutEvent::Applied);
    assert_eq!(actions, [PutAction::Replicate(n(3))]);
    machine.on_event(PutEvent::LocalDurable);
    assert_eq!(machine.on_event(PutEvent::HintTimer), []);
    assert!(applied(&machine.on_event(PutEvent::Ack(n(3)))));
}

#[test]
fn a_fallback_coordinates_as_a_guest_for_all_primaries() {
    let (mut machine, actions) = start(1, false, 4, &five(), &[1, 2, 3, 5]);
    assert!(actions.contains(&PutAction::ApplyLocally { guest: true, targets: vec![n(1), n(2), n(3)] }));
    // It is noted here for all of them already, so nothing more is noted.
    assert_eq!(machine.on_event(PutEvent::Applied), []);
    let actions = machine.on_event(PutEvent::LocalDurable);
    let PutAction::Answer(PutOutcome::Applied(report)) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!((report.primaries.as_slice(), report.fallbacks.as_slice()), (&[][..], &[n(4)][..]));
    assert_eq!(actions[1], PutAction::Finished);
}

#[test]
fn a_put_that_cannot_succeed_is_not_started() {
    let new = |w, strict, at, down: &[u64]| {
        let down: Vec<NodeId> = down.iter().map(|id| n(*id)).collect();
        PutMachine::new(request(w, strict), n(at), &three(), &down, Mono::default()).map(|_| ())
    };
    let too_few = PutNotStarted::TooFewCandidates { have: 1, need: 2 };
    assert_eq!(new(2, false, 1, &[2, 3]), Err(too_few));
    assert_eq!(new(1, false, 1, &[2, 3]), Ok(()));
    assert_eq!(new(1, false, 9, &[]), Err(PutNotStarted::NotACoordinator));
    let five = five();
    let strict_fallback = PutMachine::new(request(1, true), n(4), &five, &[], Mono::default()).map(|_| ());
    assert_eq!(strict_fallback, Err(PutNotStarted::NotACoordinator));
}

#[test]
fn w_is_needed_in_every_active_layout() {
    // Moving from {1,2,3} to {3,4,5}. Two old owners are enough for the old layout alone.
    let list = PreferenceList::for_test(&[&[3, 4, 5], &[1, 2, 3]], &[6]);
    let (mut machine, _) = start(2, false, 1, &list, &[]);
    machine.on_event(PutEvent::Applied);
    assert_eq!(machine.on_event(PutEvent::LocalDurable), []);
    assert_eq!(machine.on_event(PutEvent::Ack(n(2))), []);
    assert_eq!(machine.on_event(PutEvent::Ack(n(4))), []);
    assert!(applied(&machine.on_event(PutEvent::Ack(n(3)))));
}

#[test]
fn a_guest_counts_only_where_its_target_is_a_primary() {
    let list = PreferenceList::for_test(&[&[3, 4, 5], &[1, 2, 3]], &[6]);
    let (mut machine, _) = start(1, false, 1, &list, &[]);
    machine.on_event(PutEvent::Applied);
    machine.on_event(failed(2));
    machine.on_event(PutEvent::LocalDurable);
    // 6 stands in for 2, an old owner: the new layout still has nobody.
    assert!(!applied(&machine.on_event(PutEvent::Ack(n(6)))));
    assert!(applied(&machine.on_event(PutEvent::Ack(n(5)))));
}

fn any_event() -> impl Strategy<Value = PutEvent> {
    prop_oneof![
        3 => Just(PutEvent::Applied),
        1 => Just(PutEvent::Refused),
        2 => Just(PutEvent::LocalDurable),
        1 => Just(PutEvent::LocalFailed),
        6 => (0u64..7).prop_map(|from| PutEvent::Ack(n(from))),
        5 => (0u64..7).prop_map(failed),
        2 => Just(PutEvent::HintTimer),
    ]
}

/// How many of `holders` can each stand for a primary of its own, by trying every way.
fn copies(holders: &[(NodeId, Vec<NodeId>)], taken: &BTreeSet<NodeId>) -> usize {
    let Some(((_, targets), rest)) = holders.split_first() else { return 0 };
    let stand = |target: &NodeId| {
        let mut taken = taken.clone();
        if taken.insert(*target) { 1 + copies(rest, &taken) } else { 0 }
    };
    targets.iter().map(stand).max().unwrap_or(0).max(copies(rest, taken))
}

proptest! {
    #[test]
    fn any_events_in_any_order_give_one_answer_that_the_acks_bear_out(
        w in 1usize..4,
        strict in any::<bool>(),
        at in 1u64..6,
        small in any::<bool>(),
        down in proptest::collection::vec(1u64..6, 0..4),
        events in proptest::collection::vec(any_event(), 0..24),
    ) {
        let list = if small { three() } else { five() };
        let down: Vec<NodeId> = down.into_iter().filter(|id| *id != at).map(NodeId).collect();
        let started = PutMachine::new(request(w, strict), n(at), &list, &down, Mono::default());
        let Ok((mut machine, actions)) = started else { return Ok(()) };
        let applies = actions.iter().any(|action| matches!(action, PutAction::ApplyLocally { .. }));
        prop_assert!(applies);
        let (mut answers, mut dot, mut finished) = (0, false, false);
        let (mut local, mut refused) = (None, false);
        let own = if at <= 3 { vec![n(at)] } else { vec![n(1), n(2), n(3)] };
        let mut sent: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        let mut holders: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for event in events.into_iter().chain([PutEvent::Deadline, PutEvent::HintTimer]) {
            // The shell's side of the contract: nothing is sent, durable or failed before the dot exists.
            let local_event = matches!(event, PutEvent::LocalDurable | PutEvent::LocalFailed);
            if local_event && (!dot || local.is_some()) || (refused && !finished) {
                continue;
            }
            match event {
                PutEvent::Applied => dot |= !refused,
                PutEvent::Refused => refused |= !dot,
                PutEvent::LocalDurable => {
                    local = Some(true);
                    holders.insert(n(at), own.clone());
                }
                PutEvent::LocalFailed => local = Some(false),
                PutEvent::Ack(from) => {
                    if let Some(targets) = sent.get(&from) {
                        holders.insert(from, targets.clone());
                    }
                }
                _ => {}
            }
            let holding: Vec<(NodeId, Vec<NodeId>)> = holders.clone().into_iter().collect();
            let durable = copies(&holding, &BTreeSet::new());
            let actions = machine.on_event(event);
            prop_assert!(!finished || actions.is_empty());
            for action in &actions {
                match action {
                    PutAction::Replicate(node) => {
                        prop_assert!(node.0 <= 3 && sent.insert(*node, vec![*node]).is_none());
                    }
                    PutAction::StoreGuest { node, target } => {
                        prop_assert!(!strict && node.0 > 3 && target.0 <= 3);
                        prop_assert!(sent.insert(*node, vec![*target]).is_none(), "a node gets one copy");
                    }
                    PutAction::Answer(outcome) => {
                        answers += 1;
                        match outcome {
                            PutOutcome::Applied(_) => prop_assert!(durable >= w),
                            PutOutcome::NotApplied => prop_assert!(!dot),
                            PutOutcome::Unknown { .. } => prop_assert!(durable < w),
                        }
                    }
                    PutAction::Finished => finished = true,
                    _ => {}
                }
            }
        }
        prop_assert!(answers == 1 && finished);
    }
}
