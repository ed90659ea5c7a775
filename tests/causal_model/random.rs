//! Long random executions: more writes, more under way, hand-off between any nodes, incarnations that are
//! random bits, and for each run a part of the faults switched off, so that the others meet more often.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::world::{CLIENTS, Event, NODES, Over, Policy, SLOTS, World};

/// Events of one run.
pub(crate) const LENGTHS: std::ops::RangeInclusive<usize> = 12..=40;

pub(crate) struct Violation {
    pub(crate) seed: u64,
    pub(crate) events: Vec<Event>,
    pub(crate) why: String,
}

/// One run. `Ok`: how many events had an effect.
pub(crate) fn run<P: Policy>(seed: u64) -> Result<usize, Violation> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let length = rng.random_range(LENGTHS);
    let mut weights = [16, 10, 10, 4, 20, 8, 12, 12, 5, 10, 6, 8_u32];
    for fault in [3, 5, 7, 10, 11] {
        if rng.random_ratio(1, 4) {
            weights[fault] = 0;
        }
    }
    let mut world = World::new(salt(seed));
    let mut events = Vec::new();
    // Each draw that has no effect is no event; a state where hardly anything can happen ends the run.
    for _ in 0..length * 20 {
        if events.len() == length {
            break;
        }
        let event = draw(&mut rng, &weights);
        match world.apply::<P>(event) {
            Ok(false) => {}
            Ok(true) => events.push(event),
            Err(why) => {
                events.push(event);
                return Err(shrink::<P>(Violation { seed, events, why }));
            }
        }
    }
    Ok(events.len())
}

/// The salt of a run's incarnations.
pub(crate) fn salt(seed: u64) -> u64 {
    seed | 1 << 63
}

fn draw(rng: &mut ChaCha8Rng, weights: &[u32; 12]) -> Event {
    let node = rng.random_range(0..NODES);
    let other = (node + rng.random_range(1..NODES)) % NODES;
    let client = rng.random_range(0..CLIENTS);
    let slot = rng.random_range(0..SLOTS);
    let mut left = rng.random_range(0..weights.iter().sum());
    let kind = weights.iter().position(|weight| {
        let here = left < *weight;
        left = left.saturating_sub(*weight);
        here
    });
    match kind.expect("a draw below the sum") {
        0 => Event::Put { node, over: Over::Token(client) },
        1 => Event::Put { node, over: Over::Blind },
        2 => Event::Put { node, over: Over::Current },
        3 => {
            let over = [Over::Blind, Over::Current, Over::Token(client)][rng.random_range(0..3)];
            Event::FailedPut { node, over, slot }
        }
        4 => Event::Copy { from: node, to: other },
        5 => Event::Send { from: node, slot },
        6 => Event::Deliver { slot, to: node },
        7 => Event::Read { client, node },
        8 => Event::ReadTwo { client, nodes: [node, other] },
        9 => Event::Sync { node },
        10 => Event::Crash { node },
        _ => Event::HandOff { from: node, to: other },
    }
}

/// Leaves out one event after the other as long as a violation remains.
fn shrink<P: Policy>(mut violation: Violation) -> Violation {
    let mut at = 0;
    while at < violation.events.len() {
        let mut fewer = violation.events.clone();
        fewer.remove(at);
        let mut world = World::new(salt(violation.seed));
        match fewer.iter().find_map(|event| world.apply::<P>(*event).err()) {
            Some(why) => {
                violation.events = fewer;
                violation.why = why;
                at = 0;
            }
            None => at += 1,
        }
    }
    violation
}
