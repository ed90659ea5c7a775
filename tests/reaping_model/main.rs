//! Searches the rules of reaping for executions in which something deleted comes back, or a write is lost.
//!
//! Real code under search: `dynamo::reaping` and the version module. Around it one key in the smallest cluster in which
//! reaping goes wrong: three primaries and a fallback that keeps guests; records, votes and commits that arrive late, twice
//! or never; restarts at any moment; at most one disk that is set back to an older state, whose copies are given up in several steps;
//! guests that a primary kept when it was none. What a node does with its fences
//! (`node::fences`, `node::reaping`) is written here once more, in its shortest form. Checked:
//!
//! - what a round took away is on no disk again, at once for disks that were never set back, and in the end for all;
//! - in the end all primaries hold the same;
//! - a write that two primaries have held is there in the end, or something that has seen it was written;
//! - where no disk was set back, nothing stands beside a write that has it in its past, on a disk or in a read, whose copies
//!   may come in at any distance of each other.
//!
//! Each rule left out must be found to lose one of these, but for the two about guests that become data while copies are given up
//! (`closed_meanwhile`, `turned_as_read`): no search so short comes upon them, and `node::fences` has their test.
//! `RINGDOVE_MODEL_RUNS` asks for more runs.

use std::collections::BTreeMap;

mod world;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use world::{Event, NODES, PRIMARIES, READS, Rules, World};

/// Random runs under the rules of production.
const RUNS: u64 = 60_000;
/// Runs within which a weaker rule must be found out.
const WEAK_RUNS: u64 = 200_000;

#[expect(clippy::disallowed_methods, reason = "a test has no caller that could pass the setting")]
fn runs() -> u64 {
    match std::env::var("RINGDOVE_MODEL_RUNS") {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("RINGDOVE_MODEL_RUNS must be a number, not {text:?}"))
        }
        Err(_) => RUNS,
    }
}

/// `stepwise`: copies are given up step by step, and primaries have guests, which hold rounds up.
fn draw(rng: &mut ChaCha8Rng, stepwise: bool) -> Event {
    let node = rng.random_range(0..NODES);
    let other = (node + rng.random_range(1..NODES)) % NODES;
    let primary = rng.random_range(0..PRIMARIES);
    // Two leaders at once refuse each other, so one of them leads most rounds.
    let leader = if rng.random_bool(0.8) { 0 } else { primary };
    match rng.random_range(0..if stepwise { 132 } else { 115 }) {
        115..=118 => Event::Slowly { node },
        119..=122 => Event::GoOn { node },
        123..=125 => Event::Keep { from: other, to: primary },
        126..=128 => Event::Read { node: primary },
        129..=131 => Event::Turn { node: primary },
        109..=114 => Event::Give { from: node, to: other },
        100..=106 => Event::Look { node, read: rng.random_range(0..READS) },
        107..=108 => Event::Answer { read: rng.random_range(0..READS) },
        0..=5 => Event::Agree,
        6..=10 => Event::Put { node, blind: rng.random_bool(0.3), delete: rng.random_bool(0.6) },
        11..=19 => Event::Send { from: node, to: other },
        20..=35 => Event::Deliver { at: rng.random_range(0..64), again: rng.random_bool(0.2) },
        36..=39 => Event::Repair { nodes: [node, other], to: primary },
        // What was read is kept for a primary that is down.
        40 => Event::Repair { nodes: [node, other], to: PRIMARIES },
        41..=47 => Event::Begin { leader },
        48..=63 => Event::VoteAll { leader },
        64..=67 => Event::AskAll { node },
        68..=80 => Event::Vote { leader, member: node },
        81..=86 => Event::Exchange { nodes: [primary, (primary + 1) % PRIMARIES] },
        87..=91 => Event::Ask { node, other },
        92..=94 => Event::Restart { node },
        95..=97 => Event::Backup { node },
        98..=99 => Event::SetBack { node },
        _ => unreachable!("nothing else is drawn"),
    }
}

/// One run; why it is wrong, if it is.
fn run(seed: u64, rules: Rules, reaped: &mut u64) -> Result<(), String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::new(seed, rules);
    let mut events = Vec::new();
    let words = |events: &[Event], why: String| {
        let lines: Vec<String> = events.iter().map(|event| format!("  {event:?}")).collect();
        format!("seed {seed}: {why}, after\n{}", lines.join("\n"))
    };
    let stepwise = rng.random_bool(0.3);
    for _ in 0..rng.random_range(40..160) {
        let event = draw(&mut rng, stepwise);
        if world.apply(event) {
            events.push(event);
        }
        world.check().map_err(|why| words(&events, why))?;
    }
    let ended = world.end();
    *reaped += world.reaped;
    ended.map_err(|why| words(&events, why))
}

#[test]
fn nothing_comes_back_and_nothing_is_lost() {
    let mut reaped = 0;
    for seed in 0..runs() {
        run(seed, Rules::production(), &mut reaped).unwrap_or_else(|why| panic!("{why}"));
    }
    println!("{} runs, {reaped} records reaped", runs());
    assert!(reaped > runs() / 10, "hardly anything was reaped: {reaped}");
}

#[test]
fn every_rule_is_needed() {
    let weaker: BTreeMap<&str, Rules> = [
        ("records are taken whatever their fence", Rules { fences: false, ..Rules::production() }),
        ("primaries alone vote", Rules { all_members: false, ..Rules::production() }),
        (
            "a fence that is there already is no reason to refuse",
            Rules { fresh_vote: false, ..Rules::production() },
        ),
        ("what was refused is sent again unread", Rules { read_again: false, ..Rules::production() }),
        ("a disk that was set back goes on", Rules { catch_up: false, ..Rules::production() }),
        ("a fence is raised by hearsay at once", Rules { settle_first: false, ..Rules::production() }),
        ("a forgotten vote is told as a commit", Rules { vote_is_no_commit: false, ..Rules::production() }),
        (
            "copies from before and behind a round are read as one",
            Rules { joint: false, ..Rules::production() },
        ),
        ("a changed record is taken away too", Rules { compare: false, ..Rules::production() }),
    ]
    .into();
    for (name, rules) in weaker {
        let found = (0..WEAK_RUNS).find_map(|seed| run(seed, rules, &mut 0).err().map(|why| (seed, why)));
        let (seed, why) = found.unwrap_or_else(|| panic!("nobody noticed that {name}"));
        println!("{name}: found by run {seed}\n{why}");
    }
}

/// Too rare for the search: what was cut reaches a fallback before the commit does, and a read that has begun before the vote takes it
/// from there.
#[test]
fn a_commit_is_known_with_the_first_record_from_behind_it() {
    let slow_read = [
        Event::Put { node: 1, blind: true, delete: false },
        Event::Agree,
        Event::Look { node: 2, read: 0 },
        Event::Put { node: 0, blind: false, delete: false },
        Event::Agree,
        Event::Begin { leader: 0 },
        Event::VoteAll { leader: 0 },
        Event::Give { from: 0, to: PRIMARIES },
        Event::Look { node: PRIMARIES, read: 0 },
        Event::Answer { read: 0 },
    ];
    for (hear_commits, is_right) in [(true, true), (false, false)] {
        let mut world = World::new(0, Rules { hear_commits, ..Rules::production() });
        for event in slow_read {
            assert!(world.check().is_ok());
            world.apply(event);
        }
        assert_eq!(world.reaped, 1);
        assert_eq!(world.check().is_ok(), is_right, "commits heard: {hear_commits}");
    }
}
