//! What a node counts: requests with their latency, quorums, siblings, repairs, what was turned away.
//!
//! Numbers only, of atomics: whoever shows them (the gateway, as Prometheus text) gives them names. Counting never
//! waits and never allocates. Nothing here reads a clock; who measures brings the duration.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::measure::{Counter, Histogram};
use crate::net::message::{
    Condition, GetReply, MultiGetReply, MultiPutReply, Put, PutOutcome, PutReply, Refusal, RefusalCode,
    ScanReply,
};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A read of one key.
    Get,
    /// A write of one key, without condition.
    Put,
    /// A deletion of one key, without condition.
    Delete,
    /// A write or deletion under a condition.
    ConditionalPut,
    /// A batch of reads.
    MultiGet,
    /// A batch of writes.
    MultiPut,
    /// A page of a scan.
    Scan,
}

impl Operation {
    /// All of them, in order.
    pub const ALL: [Operation; 7] = [
        Operation::Get,
        Operation::Put,
        Operation::Delete,
        Operation::ConditionalPut,
        Operation::MultiGet,
        Operation::MultiPut,
        Operation::Scan,
    ];

    /// Which one a put is.
    pub fn of(put: &Put) -> Operation {
        match (&put.condition, &put.value) {
            (Condition::None, Some(_)) => Operation::Put,
            (Condition::None, None) => Operation::Delete,
            _ => Operation::ConditionalPut,
        }
    }

    /// Its name, for labels and spans.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Delete => "delete",
            Operation::ConditionalPut => "conditional-put",
            Operation::MultiGet => "multi-get",
            Operation::MultiPut => "multi-put",
            Operation::Scan => "scan",
        }
    }
}

/// What somebody looked at in a node, past its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// All there is of a key, for a client.
    Explain,
    /// What this node has of a key, for another node that explains it.
    Inspect,
    /// Its Merkle trees.
    Trees,
    /// How far it is with reaping.
    Reaping,
}

impl Look {
    /// All of them, in order.
    pub const ALL: [Look; 4] = [Look::Explain, Look::Inspect, Look::Trees, Look::Reaping];

    /// Its name, for labels.
    pub fn name(self) -> &'static str {
        match self {
            Look::Explain => "explain",
            Look::Inspect => "inspect",
            Look::Trees => "trees",
            Look::Reaping => "reaping",
        }
    }
}

/// By which door a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// The client port.
    Binary,
    /// The REST gateway.
    Rest,
    /// Another node passed it on.
    Peer,
}

impl Door {
    /// All of them, in order.
    pub const ALL: [Door; 3] = [Door::Binary, Door::Rest, Door::Peer];

    /// Its name, for labels and spans.
    pub fn name(self) -> &'static str {
        match self {
            Door::Binary => "binary",
            Door::Rest => "rest",
            Door::Peer => "peer",
        }
    }
}

/// How a request ended (promise P7: applied, not applied, or unknown; the latter two by what to do about it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Done. A read of a key that is not there is done too.
    Done,
    /// Not done: the request must be changed (bad values, token, sizes, too many siblings).
    Refused,
    /// Not done: its condition does not hold.
    Conflict,
    /// Not done: too few replicas, a full or stalled disk, another layout. It may do later.
    Unavailable,
    /// Not done: turned away, so that others are done in time.
    Shed,
    /// A write that may or may not be there.
    Unknown,
}

impl Outcome {
    /// All of them, in order.
    pub const ALL: [Outcome; 6] = [
        Outcome::Done,
        Outcome::Refused,
        Outcome::Conflict,
        Outcome::Unavailable,
        Outcome::Shed,
        Outcome::Unknown,
    ];

    /// Its name, for labels.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Conflict => "conflict",
            Outcome::Unavailable => "unavailable",
            Outcome::Shed => "shed",
            Outcome::Unknown => "unknown",
        }
    }

    pub(super) fn of_refusal(refusal: &Refusal) -> Outcome {
        match refusal.code {
            RefusalCode::Conflict => Outcome::Conflict,
            RefusalCode::Overloaded => Outcome::Shed,
            RefusalCode::TooFewReplicas
            | RefusalCode::Unavailable
            | RefusalCode::DiskFull
            | RefusalCode::Corrupt
            | RefusalCode::HintsFull
            | RefusalCode::WrongLayout => Outcome::Unavailable,
            RefusalCode::BadRequest
            | RefusalCode::UnknownOperation
            | RefusalCode::UnsupportedVersion
            | RefusalCode::UnsupportedAuth
            | RefusalCode::WrongCluster
            | RefusalCode::TooLarge
            | RefusalCode::BadToken
            | RefusalCode::TooManySiblings => Outcome::Refused,
        }
    }
}

/// An answer that can tell how its request ended.
pub(super) trait Judged {
    /// How; of a batch, the worst of its items, in the order of [`Outcome`].
    fn outcome(&self) -> Outcome {
        Outcome::Done
    }

    /// Why it is not known what became of it, or which replicas it lacked, for people.
    fn doubt(&self) -> Option<&str> {
        None
    }
}

impl Judged for GetReply {}
impl Judged for ScanReply {}

impl Judged for PutReply {
    fn outcome(&self) -> Outcome {
        match self.outcome {
            PutOutcome::Applied => Outcome::Done,
            PutOutcome::Unknown { .. } => Outcome::Unknown,
        }
    }

    fn doubt(&self) -> Option<&str> {
        match &self.outcome {
            PutOutcome::Applied => None,
            PutOutcome::Unknown { reason, .. } => Some(reason),
        }
    }
}

impl<T: Judged> Judged for Result<T, Refusal> {
    fn outcome(&self) -> Outcome {
        self.as_ref().map_or_else(Outcome::of_refusal, T::outcome)
    }

    fn doubt(&self) -> Option<&str> {
        match self {
            Ok(reply) => reply.doubt(),
            Err(refusal) if refusal.code == RefusalCode::TooFewReplicas => Some(&refusal.message),
            Err(_) => None,
        }
    }
}

impl Judged for MultiGetReply {
    fn outcome(&self) -> Outcome {
        self.replies.iter().map(Judged::outcome).max().unwrap_or(Outcome::Done)
    }

    fn doubt(&self) -> Option<&str> {
        self.replies.iter().find_map(Judged::doubt)
    }
}

impl Judged for MultiPutReply {
    fn outcome(&self) -> Outcome {
        self.replies.iter().map(Judged::outcome).max().unwrap_or(Outcome::Done)
    }

    fn doubt(&self) -> Option<&str> {
        self.replies.iter().find_map(Judged::doubt)
    }
}

/// The registry of one node.
#[derive(Debug)]
pub struct Metrics {
    requests: Vec<Histogram>,
    looks: [Counter; Look::ALL.len()],
    /// Time from a read's start until R replicas had answered, in microseconds.
    pub read_quorum_wait: Histogram,
    /// Time from a write's start until W replicas held it, in microseconds.
    pub write_quorum_wait: Histogram,
    /// Reads that fewer than R replicas answered.
    pub read_shortfalls: Counter,
    /// Writes that were started, and of which it is not known whether W replicas hold them.
    pub write_shortfalls: Counter,
    /// Live values that a read returned (or would have, without `resolve`).
    pub siblings_per_read: Histogram,
    /// Records sent to replicas that a read found behind.
    pub read_repairs: Counter,
    /// Of these, those that did not arrive.
    pub read_repairs_failed: Counter,
    /// Of the records sent after reads, those to be kept for primaries that were down.
    pub guests_repaired: Counter,
    /// Records sent to fallbacks, to be kept for primaries.
    pub guests_sent: Counter,
    /// Records kept for another node that were handed to it.
    pub guests_delivered: Counter,
    /// Of these, those that changed meanwhile and are handed over once more.
    pub guests_outrun: Counter,
    /// Guest records that could not be read, let go once every primary had what any of them held.
    pub guests_lost: Counter,
    /// Times that a round of handing over ended early.
    pub handoff_failures: Counter,
    /// Guest records refused because too many are kept.
    pub guests_refused: Counter,
    /// Partitions compared with another primary's.
    pub exchanges: Counter,
    /// Partitions that could not be compared with all.
    pub exchanges_failed: Counter,
    /// Keys that were found to differ from another primary's.
    pub exchange_keys: Counter,
    /// Records that this node took over from another primary.
    pub exchange_pulled: Counter,
    /// Records that another primary lacked something of and was given.
    pub exchange_pushed: Counter,
    /// Partitions that count as refilled again.
    pub partitions_refilled: Counter,
    /// Records read in search of damage.
    pub scrubbed: Counter,
    /// Records refused here because they were read before a round in which this node has voted.
    pub fenced_here: Counter,
    /// Records that another node refused because it has voted in a round that this node has not.
    pub fenced: Counter,
    /// Times that this node raised a partition's fence to another's.
    pub fences_raised: Counter,
    /// Copies given up because the others have agreed to forget things of which this disk knows nothing.
    pub copies_given_up: Counter,
    /// Rounds of reaping that this node has led.
    pub reap_rounds: Counter,
    /// Rounds of reaping that ended early.
    pub reap_failures: Counter,
    /// Keys that they were about.
    pub reap_keys: Counter,
    /// Of these, those that all members agreed to.
    pub reap_agreed: Counter,
    /// Rounds in which this node has voted, its own among them.
    pub reap_votes: Counter,
    /// Records of which this node has taken something away after a vote.
    pub reaped: Counter,
    /// Times that another node came to gossip.
    pub gossip: Counter,
    /// Times that this node found that it had been stalled.
    pub stalls: Counter,
    /// Requests turned away because too many are in flight.
    pub shed_in_flight: Counter,
    /// Requests turned away because their time was up before they began.
    pub shed_late: Counter,
    /// Requests turned away because so many are in flight that they would not be done in time.
    pub shed_wait: Counter,
    /// Messages that came under another layout than this node's.
    pub wrong_layouts: Counter,
    /// Layouts taken over from other nodes.
    pub layouts_adopted: Counter,
    /// Layouts retired because all had moved.
    pub layouts_retired: Counter,
    /// Partitions let go because other nodes hold them now.
    pub partitions_let_go: Counter,
    in_flight: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let series = Operation::ALL.len() * Door::ALL.len() * Outcome::ALL.len();
        Metrics {
            requests: (0..series).map(|_| Histogram::of_latency()).collect(),
            looks: Default::default(),
            read_quorum_wait: Histogram::of_latency(),
            write_quorum_wait: Histogram::of_latency(),
            read_shortfalls: Counter::default(),
            write_shortfalls: Counter::default(),
            siblings_per_read: Histogram::of_counts(),
            read_repairs: Counter::default(),
            read_repairs_failed: Counter::default(),
            guests_repaired: Counter::default(),
            guests_sent: Counter::default(),
            guests_delivered: Counter::default(),
            guests_outrun: Counter::default(),
            guests_lost: Counter::default(),
            handoff_failures: Counter::default(),
            guests_refused: Counter::default(),
            gossip: Counter::default(),
            stalls: Counter::default(),
            exchanges: Counter::default(),
            exchanges_failed: Counter::default(),
            exchange_keys: Counter::default(),
            exchange_pulled: Counter::default(),
            exchange_pushed: Counter::default(),
            partitions_refilled: Counter::default(),
            scrubbed: Counter::default(),
            fenced: Counter::default(),
            fenced_here: Counter::default(),
            fences_raised: Counter::default(),
            copies_given_up: Counter::default(),
            reap_rounds: Counter::default(),
            reap_failures: Counter::default(),
            reap_keys: Counter::default(),
            reap_agreed: Counter::default(),
            reap_votes: Counter::default(),
            reaped: Counter::default(),
            shed_in_flight: Counter::default(),
            shed_late: Counter::default(),
            shed_wait: Counter::default(),
            wrong_layouts: Counter::default(),
            layouts_adopted: Counter::default(),
            layouts_retired: Counter::default(),
            partitions_let_go: Counter::default(),
            in_flight: AtomicU64::new(0),
        }
    }
}

/// One request in flight, until it is dropped.
pub(super) struct InFlight<'a>(&'a Metrics);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Latency, in microseconds, of the requests of one kind that ended so; its count is the number of them.
    pub fn requests(&self, operation: Operation, door: Door, outcome: Outcome) -> &Histogram {
        let at =
            (operation as usize * Door::ALL.len() + door as usize) * Outcome::ALL.len() + outcome as usize;
        &self.requests[at]
    }

    /// Times that somebody came to look at this, answered or refused.
    pub fn looks(&self, look: Look) -> &Counter {
        &self.looks[look as usize]
    }

    /// Requests that are being carried out now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Takes one more request in, unless `max` are in flight.
    pub(super) fn enter(&self, max: usize) -> Option<InFlight<'_>> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let entered = InFlight(self);
        (before < max as u64).then_some(entered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_a_histogram_of_its_own() {
        let metrics = Metrics::default();
        for operation in Operation::ALL {
            for door in Door::ALL {
                for outcome in Outcome::ALL {
                    assert_eq!(metrics.requests(operation, door, outcome).count(), 0);
                    metrics.requests(operation, door, outcome).enter(1);
                }
            }
        }
    }

    #[test]
    fn a_batch_ends_as_the_worst_of_its_items() {
        let applied = || {
            let reply = super::super::reply::unknown(0, 2, String::new());
            Ok(PutReply { outcome: PutOutcome::Applied, ..reply })
        };
        let unknown = || Ok(super::super::reply::unknown(1, 2, "n2 is silent".to_owned()));
        let refused = |code| Err(Refusal::new(code, "no"));
        let batch = |replies: Vec<Result<PutReply, Refusal>>| MultiPutReply { replies };
        assert_eq!(batch(Vec::new()).outcome(), Outcome::Done);
        assert_eq!(batch(vec![applied(), applied()]).outcome(), Outcome::Done);
        let short = || refused(RefusalCode::TooFewReplicas);
        assert_eq!(
            batch(vec![refused(RefusalCode::Conflict), short(), applied()]).outcome(),
            Outcome::Unavailable
        );
        let worst = batch(vec![applied(), short(), unknown(), refused(RefusalCode::Overloaded)]);
        assert_eq!(worst.outcome(), Outcome::Unknown);
        assert!(batch(vec![applied(), unknown()]).doubt().is_some_and(|why| why == "n2 is silent"));
        let read = MultiGetReply { replies: vec![refused_get(RefusalCode::Corrupt)] };
        assert_eq!(read.outcome(), Outcome::Unavailable);
    }

    fn refused_get(code: RefusalCode) -> Result<GetReply, Refusal> {
        Err(Refusal::new(code, "no"))
    }

    #[test]
    fn what_leaves_makes_room() {
        let metrics = Metrics::default();
        let first = metrics.enter(1);
        assert!(first.is_some());
        assert!(metrics.enter(1).is_none());
        assert_eq!(metrics.in_flight(), 1, "who was turned away does not count on");
        drop(first);
        assert!(metrics.enter(1).is_some());
    }
}
