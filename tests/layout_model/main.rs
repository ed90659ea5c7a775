//! Searches layout changes for executions in which an acknowledged write is lost or missed by a strict read.
//!
//! Real code under search: the layouts and their histories, the preference list, the put machine and the tally, the version
//! module. Around it one partition with one key and six nodes of which some are members at a time: layouts made by any
//! member, two at once if it comes to that, and learned late; strict puts and reads of meeting R and W; records that arrive
//! late or never, and are merged some time after the layout of the message was looked at; disks that sync when they like; crashes
//! between any two steps; members that are removed because they are down, or only taken for it. What nodes do by themselves
//! (`node::anti_entropy`, `node::transfer`, `node::layouts`) is written here once more, in its shortest form. Checked:
//!
//! - a strict read shows every write that was acknowledged before it began;
//!
//! and once everything heals: one layout is left, its primaries hold the same: every acknowledged write, and whatever was on a disk
//! at any time; nobody else holds anything.
//!
//! Each rule left out must break one of these: in a search, or in a history of its own where that is too rare for one.
//! `RINGDOVE_MODEL_RUNS` asks for more runs.

mod tasks;
mod world;

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use world::{Counts, Event, NODES, PUTS_MAX, Rules, Task, World};

/// Random runs under the rules of production.
const RUNS: u64 = 20_000;
/// Runs within which a weaker rule must be found out.
const WEAK_RUNS: u64 = 100_000;

/// Events drawn until one can happen.
const DRAWS: usize = 30;

#[expect(clippy::disallowed_methods, reason = "a test has no caller that could pass the setting")]
fn runs() -> u64 {
    match std::env::var("RINGDOVE_MODEL_RUNS") {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("RINGDOVE_MODEL_RUNS must be a number, not {text:?}"))
        }
        Err(_) => RUNS,
    }
}

/// How often each kind of event is drawn, in the order of [`draw`]: each run has weights of its own, so that in some a thing happens
/// all the time and in others hardly ever (swarm testing).
fn weights(rng: &mut ChaCha8Rng) -> WeightedIndex<u32> {
    const USUAL: [u32; 20] = [3, 3, 8, 3, 8, 10, 1, 10, 30, 25, 12, 10, 10, 12, 8, 3, 4, 10, 2, 4];
    let weights = USUAL.map(|usual| usual * [1, 4, 16][rng.random_range(0..3)]);
    WeightedIndex::new(weights).expect("none is zero")
}

fn draw(rng: &mut ChaCha8Rng, weights: &WeightedIndex<u32>) -> Event {
    let node = rng.random_range(0..NODES);
    let other = rng.random_range(0..NODES);
    match weights.sample(rng) {
        0 => Event::Back { node, at: rng.random_range(0..8) },
        1 if rng.random_bool(0.3) => {
            Event::Members { node, members: (0..NODES).filter(|_| rng.random_bool(0.5)).collect() }
        }
        1 => {
            let add = rng.random_bool(0.6).then(|| rng.random_range(0..NODES));
            let remove = rng.random_bool(0.6).then(|| rng.random_range(0..NODES));
            Event::Change { node, add, remove }
        }
        2 => Event::Learn { node, from: other, dies: rng.random_bool(0.1) },
        3 => Event::Doubt { node },
        4 => Event::Put { node },
        5 => Event::Apply { put: rng.random_range(0..PUTS_MAX) },
        6 => Event::Deadline { put: rng.random_range(0..PUTS_MAX) },
        7 => Event::Read { node },
        8 => Event::Deliver { at: rng.random_range(0..64) },
        9 => Event::Finish { node, at: rng.random_range(0..8) },
        10 => Event::Sync { node },
        11 => Event::Compare { node },
        12 => Event::Retire { node },
        13 => Event::LetGo { node },
        14 => {
            let task = [Task::Compare, Task::Retire, Task::LetGo][rng.random_range(0..3)];
            Event::Whole { node, task }
        }
        15 => Event::LearnAll { from: node },
        16 => Event::Quiet,
        17 if rng.random_bool(0.3) => Event::Crash { node },
        17 => Event::Start { node },
        18 => Event::Lose { at: rng.random_range(0..64) },
        _ => Event::Suspect { node, other },
    }
}

/// One run; why it is wrong, if it is.
fn run(seed: u64, rules: Rules, counts: &mut Counts) -> Result<(), String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::new(seed, rng.random(), rules);
    let weights = weights(&mut rng);
    let mut events = Vec::new();
    let words = |events: &[Event], why: String| {
        let lines: Vec<String> = events.iter().map(|event| format!("  {event:?}")).collect();
        format!("run {seed}: {why}, after\n{}", lines.join("\n"))
    };
    for _ in 0..rng.random_range(40..160) {
        // Most of what is drawn is nothing that could happen now.
        let drawn = (0..DRAWS).map(|_| draw(&mut rng, &weights)).find(|event| world.apply(event));
        events.extend(drawn);
        world.check().map_err(|why| words(&events, why))?;
    }
    let ended = world.end();
    counts.add(&world.counts);
    ended.map_err(|why| words(&events, format!("{why}, in the end")))
}

#[test]
fn no_acknowledged_write_is_lost_or_missed_while_members_come_and_go() {
    let mut counts = Counts::default();
    for seed in 0..runs() {
        run(seed, Rules::production(), &mut counts).unwrap_or_else(|why| panic!("{why}"));
    }
    println!("{} runs, {counts:?}", runs());
    for (what, count) in [
        ("writes acknowledged", counts.acked),
        ("reads answered", counts.read),
        ("partitions gained", counts.moved),
        ("partitions refilled", counts.refilled),
        ("layouts retired", counts.retired),
        ("partitions let go", counts.let_go),
        ("crashes that took something back", counts.taken_back),
    ] {
        assert!(count > runs() / 10, "hardly any {what}: {count}");
    }
}

#[test]
fn a_search_finds_every_rule_that_is_left_out() {
    let all = Rules::production();
    let weaker = [
        ("W counts in the layouts that a put began with", Rules { on_layout: false, ..all }),
        ("a new primary counts as refilled", Rules { unmark: false, ..all }),
        ("the layout is durable before the mark is gone", Rules { unmark_first: false, ..all }),
        ("a layout retires unasked", Rules { ask_first: false, ..all }),
        ("members that are down are not waited for", Rules { wait_for_members: false, ..all }),
        ("a partition is let go under other layouts", Rules { epoch_of_letting_go: false, ..all }),
    ];
    let mut unnoticed = Vec::new();
    for (name, rules) in weaker {
        let found = (0..WEAK_RUNS)
            .find_map(|seed| run(seed, rules, &mut Counts::default()).err().map(|why| (seed, why)));
        match found {
            Some((seed, why)) => println!("{name}: found by run {seed}\n{why}"),
            None => unnoticed.push(name),
        }
    }
    assert!(unnoticed.is_empty(), "nobody noticed that {unnoticed:?}");
}

/// N = 2, so many members, R = W = 2; nodes die.
const TWO: u64 = 0b1000_0000;
/// The same with N = 3.
const THREE: u64 = TWO | 1;
/// N = 2, R = 1 and W = 2; a node that loses power starts at once.
const READ_ONE: u64 = TWO | 0b1010;
/// The same with R = 2 and W = 1.
const WRITE_ONE: u64 = TWO | 0b1110;

/// Plays a history too rare for the search: right under the rules of production, and wrong without the one that it is about.
fn needs(weaker: Rules, shape: u64, events: &[Event]) {
    let play = |rules, all_happen: bool| {
        let mut world = World::new(0, shape, rules);
        for (at, event) in events.iter().enumerate() {
            let happens = world.apply(event);
            assert!(happens || !all_happen, "{at}: {event:?} cannot happen");
            world.check()?;
        }
        world.end()
    };
    assert_eq!(play(Rules::production(), false), Ok(()));
    println!("{}", play(weaker, true).expect_err("the rule is not needed here"));
}

fn members(node: usize, members: &[usize]) -> Event {
    Event::Members { node, members: members.to_vec() }
}

fn learn(nodes: &[usize], from: usize) -> impl Iterator<Item = Event> {
    nodes.iter().map(move |node| Event::Learn { node: *node, from, dies: false })
}

fn whole(nodes: &[usize], task: Task) -> impl Iterator<Item = Event> {
    nodes.iter().map(move |node| Event::Whole { node: *node, task })
}

fn suspect(nodes: &[usize], other: usize) -> impl Iterator<Item = Event> {
    nodes.iter().map(move |node| Event::Suspect { node: *node, other })
}

/// A coordinator that leaves and is taken for gone still goes by the old layout. Two old primaries have looked at its message
/// under that layout, are compared under the new one, and merge what the new primaries will never be asked to have.
#[test]
fn a_copy_is_merged_under_the_layout_that_it_came_under() {
    let mut events = vec![Event::Put { node: 2 }, Event::Apply { put: 0 }];
    events.extend([Event::Deliver { at: 0 }, Event::Deliver { at: 0 }, members(0, &[3, 4, 5])]);
    events.extend(learn(&[1, 3, 4, 5], 0));
    events.extend(suspect(&[0, 1, 3, 4, 5], 2));
    events.extend(whole(&[3, 4, 5], Task::Compare));
    events.extend(whole(&[3, 4, 5], Task::Retire));
    events.extend([Event::Finish { node: 0, at: 0 }, Event::Finish { node: 1, at: 0 }]);
    events.extend([Event::Sync { node: 0 }, Event::Sync { node: 1 }, Event::Sync { node: 2 }, Event::Quiet]);
    needs(Rules { same_layout: false, ..Rules::production() }, THREE, &events);
}

/// A former primary has handed over what it held. A write comes in that only it will have, and goes with the rest.
#[test]
fn nothing_comes_into_a_partition_that_has_moved() {
    let mut events = vec![Event::Put { node: 0 }, Event::Apply { put: 0 }, Event::Quiet, members(0, &[2, 3])];
    events.extend(learn(&[1, 2, 3], 0));
    events.extend(whole(&[2, 3], Task::Compare));
    // To the new primaries it is lost.
    events.extend([
        Event::Put { node: 0 },
        Event::Apply { put: 1 },
        Event::Lose { at: 0 },
        Event::Lose { at: 0 },
    ]);
    events.extend([Event::Deliver { at: 0 }, Event::Whole { node: 1, task: Task::Retire }]);
    events.extend((0..5).map(|_| Event::LetGo { node: 1 }));
    events.extend([Event::Finish { node: 1, at: 0 }, Event::Sync { node: 1 }, Event::LetGo { node: 1 }]);
    events.push(Event::Crash { node: 0 });
    needs(Rules { has_moved: false, ..Rules::production() }, READ_ONE, &events);
}

/// A comparison has been with everybody. Before it ends, the node is no primary, lets go what it has, and is one again.
#[test]
fn a_comparison_counts_under_the_layouts_that_it_was_made_under() {
    let mut events =
        vec![Event::Put { node: 0 }, Event::Apply { put: 0 }, Event::Quiet, Event::Doubt { node: 0 }];
    events.extend((0..3).map(|_| Event::Compare { node: 0 }));
    events.push(members(1, &[1, 2]));
    events.extend(learn(&[0, 2, 3], 1));
    events.extend(whole(&[0], Task::Retire).chain(whole(&[2], Task::Compare)));
    events.extend(whole(&[0, 1, 2], Task::Retire));
    events.extend(whole(&[0], Task::LetGo));
    events.push(members(1, &[0, 3]));
    events.extend(learn(&[0, 2, 3], 1));
    events.push(Event::Compare { node: 0 });
    events.extend(whole(&[3], Task::Compare));
    events.extend(whole(&[0], Task::Retire));
    needs(Rules { epoch_of_comparison: false, ..Rules::production() }, READ_ONE, &events);
}

/// A new primary takes all old ones for down.
#[test]
fn a_new_primary_is_refilled_once_it_was_compared_with_as_many_as_a_write_needs() {
    let mut events = vec![Event::Put { node: 0 }, Event::Apply { put: 0 }, Event::Quiet, members(0, &[2, 3])];
    events.extend(learn(&[1, 2, 3], 0));
    events.extend(suspect(&[2, 3], 0).chain(suspect(&[2, 3], 1)));
    events.extend(whole(&[2, 3], Task::Compare).chain(whole(&[2, 3], Task::Retire)));
    needs(Rules { enough: false, ..Rules::production() }, TWO, &events);
}

/// A primary meets damage after it has said that nothing is left, and before it hears that the old layout has retired: who is
/// a primary under that one alone answers no comparison any more.
#[test]
fn what_has_retired_anywhere_has_retired() {
    let mut events = vec![members(0, &[0, 2])];
    events.extend(learn(&[1, 2], 0));
    events.extend(whole(&[2], Task::Compare).chain(whole(&[1, 2], Task::Retire)));
    events.push(Event::Doubt { node: 0 });
    needs(Rules { hear_retired: false, ..Rules::production() }, READ_ONE, &events);
}

/// Each new primary has got a write a moment before it is asked for it, and not yet on its disk.
#[test]
fn a_partition_is_let_go_once_it_is_on_the_disks_of_the_others() {
    let mut events = vec![members(0, &[2, 3])];
    events.extend(learn(&[1, 2, 3], 0));
    events.extend(whole(&[2, 3], Task::Compare));
    events.extend([
        Event::Put { node: 0 },
        Event::Apply { put: 0 },
        Event::Sync { node: 0 },
        Event::Lose { at: 2 },
    ]);
    events.extend([Event::Deliver { at: 0 }, Event::Deliver { at: 0 }]);
    events.extend([Event::Whole { node: 0, task: Task::Retire }, Event::LetGo { node: 0 }]);
    for node in [2, 3] {
        events.extend([Event::LetGo { node: 0 }, Event::Finish { node, at: 0 }]);
        events.extend([Event::LetGo { node: 0 }, Event::LetGo { node: 0 }]);
    }
    events.extend([Event::LetGo { node: 0 }, Event::Crash { node: 2 }, Event::Crash { node: 3 }]);
    needs(Rules { root_of: false, ..Rules::production() }, READ_ONE, &events);
}

/// The one replica that has a write is asked for it under the old layout, and looks for it after it has let it go.
#[test]
fn a_read_is_answered_under_the_layout_that_it_began_under() {
    let mut events = vec![Event::Put { node: 0 }, Event::Apply { put: 0 }, Event::Lose { at: 0 }];
    events.extend([Event::Sync { node: 0 }, Event::Read { node: 1 }, Event::Deliver { at: 0 }]);
    events.push(members(0, &[2, 3]));
    events.extend(learn(&[1, 2, 3], 0));
    events.extend(whole(&[2, 3], Task::Compare).chain(whole(&[0, 1, 2, 3], Task::Retire)));
    events.extend(whole(&[0], Task::LetGo));
    events.extend([Event::Finish { node: 0, at: 0 }, Event::Quiet]);
    needs(Rules { reads_again: false, ..Rules::production() }, WRITE_ONE, &events);
}
