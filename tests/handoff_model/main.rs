//! Searches hinted handoff by itself for executions in which an acknowledged write is lost or a target never gets its copy.
//!
//! Real code under search: the put machine with its preference list and tally, the version module, and the entry with its
//! targets. Around it one key, three primaries and two fallbacks: sloppy puts at any node under any view of who is down;
//! records and answers that arrive late, twice or never; disks that sync when they like; crashes between any two steps, after which a
//! node has what was synced and perhaps some of the rest. The order of a round (`node::handoff`) is written here once more, in its
//! shortest form. Checked after every step:
//!
//! - a write acknowledged at W is durable on W nodes, a fallback and the primary that it stands in for counted once;
//! - a target for which a guest was durable holds it durably, or is still among the targets of a durable copy;
//!
//! and once everything heals: no guest is left, nobody is owed anything, and nothing stands beside a write that has it in its past.
//!
//! Each rule left out must be found to lose one of these. `RINGDOVE_MODEL_RUNS` asks for more runs.

mod world;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use world::{Counts, Event, NODES, PRIMARIES, Rules, World};

/// Random runs under the rules of production.
const RUNS: u64 = 30_000;
/// Runs within which a weaker rule must be found out.
const WEAK_RUNS: u64 = 20_000;

#[expect(clippy::disallowed_methods, reason = "a test has no caller that could pass the setting")]
fn runs() -> u64 {
    match std::env::var("RINGDOVE_MODEL_RUNS") {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("RINGDOVE_MODEL_RUNS must be a number, not {text:?}"))
        }
        Err(_) => RUNS,
    }
}

fn draw(rng: &mut ChaCha8Rng) -> Event {
    let node = rng.random_range(0..NODES);
    let target = rng.random_range(0..PRIMARIES);
    let put = rng.random_range(0..world::PUTS_MAX);
    match rng.random_range(0..100) {
        0..=7 => {
            // Which of the others are taken for down: most often some primaries, so that guests come about.
            let down = (0..NODES).filter(|_| rng.random_bool(0.4)).collect();
            Event::Put { node, blind: rng.random_bool(0.3), w: rng.random_range(1..=PRIMARIES), down }
        }
        8..=49 => Event::Deliver { at: rng.random_range(0..64), again: rng.random_bool(0.2) },
        50..=67 => Event::Sync { node },
        68..=87 => Event::Offer { node, target },
        88..=90 => Event::Fail { put, node },
        91..=93 => Event::HintTimer { put },
        94 => Event::Deadline { put },
        _ => Event::Crash { node, kept: rng.random_range(0..8) },
    }
}

/// One run; why it is wrong, if it is.
fn run(seed: u64, rules: Rules, counts: &mut Counts) -> Result<(), String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::new(seed, rules);
    let mut events = Vec::new();
    let words = |events: &[Event], why: String| {
        let lines: Vec<String> = events.iter().map(|event| format!("  {event:?}")).collect();
        format!("run {seed}: {why}, after\n{}", lines.join("\n"))
    };
    for _ in 0..rng.random_range(40..160) {
        let event = draw(&mut rng);
        if world.apply(&event) {
            events.push(event);
        }
        world.check().map_err(|why| words(&events, why))?;
    }
    let ended = world.end();
    counts.add(&world.counts);
    ended.map_err(|why| words(&events, format!("{why}, in the end")))
}

fn is_found(name: &str, rules: Rules) {
    let found =
        (0..WEAK_RUNS).find_map(|seed| run(seed, rules, &mut Counts::default()).err().map(|why| (seed, why)));
    let (seed, why) = found.unwrap_or_else(|| panic!("nobody noticed that {name}"));
    println!("{name}: found by run {seed}\n{why}");
}

#[test]
fn no_acknowledged_write_is_lost_and_every_target_gets_its_copy() {
    let mut counts = Counts::default();
    for seed in 0..runs() {
        run(seed, Rules::production(), &mut counts).unwrap_or_else(|why| panic!("{why}"));
    }
    println!("{} runs, {counts:?}", runs());
    for (what, count) in [
        ("writes acknowledged", counts.acked),
        ("guests kept", counts.guests),
        ("targets struck off", counts.struck),
        ("guests changed between delivery and strike", counts.outrun),
        ("crashes that took something back", counts.taken_back),
    ] {
        assert!(count > runs() / 10, "hardly any {what}: {count}");
    }
}

#[test]
fn a_guest_struck_without_a_look_loses_what_was_added_meanwhile() {
    let rules = Rules { compare: false, ..Rules::production() };
    is_found("a target is struck off whatever the guest is by then", rules);
}

#[test]
fn a_target_that_confirms_before_its_sync_loses_the_copy() {
    let rules = Rules { sync_first: false, ..Rules::production() };
    is_found("a target confirms before its sync", rules);
}

#[test]
fn a_guest_dropped_at_its_first_confirmation_fails_its_other_targets() {
    let rules = Rules { strike_one: false, ..Rules::production() };
    is_found("the first confirmation drops the guest for all its targets", rules);
}
