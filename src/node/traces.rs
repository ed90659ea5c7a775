//! Trace ids: one for each request of a client, through the logs of all nodes that it reaches.
//!
//! ```text
//!   client, traceparent ──▶ the id it gave      ┐  span "request" at the node it asked
//!   none given          ──▶ minted at the door  ┘  frames to replicas and coordinators carry it ──▶ span "peer" there
//! ```
//! Spans are of level debug and told when they end. What an operator must hear of without that, a write of unknown outcome and
//! too few replicas, is a warning with the id; when it never ends only some a second are, and the rest is left to metrics.

use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};

use super::metrics::{Door, Operation, Outcome};
use super::{Inner, Request, lock};
use crate::types::{Mono, TraceId};

/// Warnings in one [`WINDOW`]; further ones are told at level debug.
const WARNINGS_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// Where ids come from, and how many warnings went out lately.
#[derive(Debug)]
pub(super) struct Traces {
    chance: Mutex<ChaCha8Rng>,
    warned: Mutex<(Mono, u32)>,
}

impl Traces {
    /// Of a node's seed, a stream of its own: minting an id moves no other random number.
    pub(super) fn new(seed: [u8; 32]) -> Traces {
        let mut chance = ChaCha8Rng::from_seed(seed);
        chance.set_stream(2);
        Traces { chance: Mutex::new(chance), warned: Mutex::default() }
    }

    /// The id of a request that came by `door` with this one.
    pub(super) fn of(&self, door: Door, given: TraceId) -> TraceId {
        // Another node passes on what its client gave, or what it minted itself.
        if given != TraceId::default() || door == Door::Peer {
            return given;
        }
        let mut id = [0; 16];
        lock(&self.chance).fill_bytes(&mut id);
        TraceId(id)
    }

    /// Whether one more warning may go out.
    fn may_warn(&self, now: Mono) -> bool {
        let mut warned = lock(&self.warned);
        if now.since(warned.0) >= WINDOW {
            *warned = (now, 0);
        }
        warned.1 += 1;
        warned.1 <= WARNINGS_MAX
    }
}

impl Inner {
    /// Tells of a request whose outcome is unknown, or that too few replicas answered.
    pub(super) fn tell_of_doubt(&self, operation: Operation, request: Request, outcome: Outcome, why: &str) {
        let (operation, door, trace) = (operation.name(), request.door.name(), request.trace_id);
        let what = match outcome {
            Outcome::Unknown => "the outcome of a write is unknown",
            _ => "too few replicas",
        };
        if self.traces.may_warn(self.now()) {
            tracing::warn!(node = %self.id, operation, door, ?trace, why, "{what}");
        } else {
            tracing::debug!(node = %self.id, operation, door, ?trace, why, "{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_id_it_came_with_or_one_of_its_own() {
        let traces = Traces::new([7; 32]);
        let given = TraceId([9; 16]);
        assert_eq!(traces.of(Door::Rest, given), given);
        assert_eq!(traces.of(Door::Peer, TraceId::default()), TraceId::default());
        let first = traces.of(Door::Rest, TraceId::default());
        let second = traces.of(Door::Binary, TraceId::default());
        assert!(first != second && ![first, second].contains(&TraceId::default()));
        assert_eq!(Traces::new([7; 32]).of(Door::Rest, TraceId::default()), first, "by the seed alone");
    }

    #[test]
    fn warnings_are_some_a_second() {
        let traces = Traces::new([7; 32]);
        let at = |ms: u64| Mono::from_origin(Duration::from_millis(ms));
        let warned = (0..100).filter(|ms| traces.may_warn(at(5000 + ms))).count();
        assert_eq!(warned, WARNINGS_MAX as usize);
        assert!(!traces.may_warn(at(5999)) && traces.may_warn(at(6000)));
    }
}
