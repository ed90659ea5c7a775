//! Searches the version module's rule for executions that lose, invent or revive a write.
//!
//! Real code under search: `LocalCopy`, `ActorMint`, `Record`. Around it the smallest world in which versions go
//! wrong: four nodes (three replicas and a fallback, but each may do all that any may) that hand copies around,
//! lose what they have not synced, fail to append what has already left, and start again; two clients with
//! tokens of any age; records that arrive late, twice and at the wrong node. Beside every record stands the
//! plain truth about what it has seen (`world`), without vectors. Checked after every event:
//!
//! - **no false overwriting**: a write that a record has seen is among its siblings, or in the past of one;
//! - **no false concurrency**: no sibling stands beside a write that has it in its past;
//! - **no acknowledged write lost**: what one disk has once held synced, some disk holds for ever, itself or by
//!   a successor. Disks survive here, so this is stronger than any W;
//! - **one dot names one write**, over all nodes and incarnations, those of lost writes included;
//! - the context names exactly the dots of what the record has seen (production rule only), and a put reports
//!   exactly the writes that it overwrote.
//!
//! What is lost without a violation: a put that no disk had synced when its node crashed, or whose append
//! failed and whose message never arrived.
//!
//! Three weaker rules run through the same search, and it must find the write that they lose.
//!
//! Not in the model: lost or rotten disks, reaping (removal of whole records and cutting of contexts), caps,
//! time. `RINGDOVE_MODEL_EVENTS` raises the depth of the exhaustive search for a nightly run (one more event is
//! some fifteen times the time and memory); `RINGDOVE_MODEL_RUNS` the number of random runs.

mod exhaustive;
mod policy;
mod random;
mod world;

use exhaustive::{Names, events, search};
use policy::{JumpAhead, PerCopy, PerStart, PerStartCountingInTheCopy};
use world::{Event, Policy, tell};

/// Events of the exhaustive search.
const EVENTS: usize = 7;
/// Random runs.
const RUNS: u64 = 100_000;

#[expect(clippy::disallowed_methods, reason = "a test has no caller that could pass the setting")]
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
        Err(_) => default,
    }
}

#[test]
fn no_small_execution_loses_invents_or_revives_a_write() {
    let depth = usize::try_from(setting("RINGDOVE_MODEL_EVENTS", EVENTS as u64)).unwrap();
    let report = search::<PerCopy>(depth, &events(), Names::Folded);
    for (at, level) in report.levels.iter().enumerate() {
        println!(
            "{} events: {} executions; {} transitions from {} distinct states",
            at + 1,
            level.executions,
            level.transitions,
            level.states_before
        );
    }
    if let Some((path, why)) = report.violation {
        panic!("{why}\n{}", tell::<PerCopy>(&path.events(), 0));
    }
    let executions: u128 = report.levels.iter().map(|level| level.executions).sum();
    println!("no violation in {executions} executions of up to {depth} events");
    assert!(report.levels.last().is_some_and(|level| level.executions > 0), "nothing was searched");
}

#[test]
fn folding_names_loses_no_execution() {
    let executions = |names| -> Vec<u128> {
        let report = search::<PerCopy>(5, &events(), names);
        report.levels.iter().map(|level| level.executions).collect()
    };
    assert_eq!(executions(Names::Folded), executions(Names::Kept));
}

#[test]
fn no_long_random_execution_loses_invents_or_revives_a_write() {
    let runs = setting("RINGDOVE_MODEL_RUNS", RUNS);
    let (events, violation) = random_runs::<PerCopy>(runs);
    println!("{runs} random runs of {:?} events, {events} in all", random::LENGTHS);
    if let Some(found) = violation {
        let told = tell::<PerCopy>(&found.events, random::salt(found.seed));
        panic!("seed {}: {}\n{told}", found.seed, found.why);
    }
    assert!(events >= runs * *random::LENGTHS.start() as u64, "the runs are shorter than they say");
}

fn random_runs<P: Policy>(runs: u64) -> (u64, Option<random::Violation>) {
    let mut events = 0;
    for seed in 0..runs {
        match random::run::<P>(seed) {
            Ok(length) => events += length as u64,
            Err(violation) => return (events, Some(violation)),
        }
    }
    (events, None)
}

/// The weaker rule must fail in the same search, with fewer kinds of events; returns how.
fn shortest_violation<P: Policy>(events_max: usize, without: impl Fn(&Event) -> bool) -> String {
    let mut events = events();
    events.retain(|event| !without(event));
    let report = search::<P>(events_max, &events, Names::Kept);
    let (path, why) =
        report.violation.expect("the search is blind: it finds nothing wrong with a wrong rule");
    let told = tell::<P>(&path.events(), 0);
    println!("{why}, after {} events, the fewest possible:\n{told}", path.events().len());
    let (_, random) = random_runs::<P>(1_000);
    assert!(random.is_some(), "the random runs are blind: they find nothing wrong with a wrong rule");
    why
}

/// A failing append breaks all the weaker rules at once; the traces shall show copies and restarts.
fn a_failing_append(event: &Event) -> bool {
    matches!(event, Event::FailedPut { .. })
}

#[test]
fn an_actor_per_start_of_a_node_overwrites_what_it_never_saw() {
    let why = shortest_violation::<PerStart>(5, a_failing_append);
    assert!(why.starts_with("false overwriting"), "{why}");
}

#[test]
fn an_actor_per_start_that_counts_in_the_copy_makes_a_dot_twice() {
    let why = shortest_violation::<PerStartCountingInTheCopy>(5, a_failing_append);
    assert!(why.starts_with("one dot names two writes"), "{why}");
}

#[test]
fn a_counter_that_jumps_ahead_at_a_restart_overwrites_what_it_never_saw() {
    let why = shortest_violation::<JumpAhead>(6, |event| {
        a_failing_append(event) || matches!(event, Event::HandOff { .. })
    });
    assert!(why.starts_with("false overwriting"), "{why}");
}
