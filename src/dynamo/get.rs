//! The quorum read as a value: events in, actions out (Dynamo §4.5; Riak's `riak_kv_get_core` is the model).
//!
//! ```text
//!   new ──▶ Ask every replica wanted ──▶ replies … R reached ──▶ Answer(merged)
//!                │        ▲                  │                      │ keeps listening
//!                │        └── next candidate │                      ▼
//!                │            when one fails │                 all in, or deadline
//!                │            or is silent   ▼                      │
//!                └────────────────────── deadline ──▶ Answer(shortfall)
//!                                                                   ▼
//!                                 Repair each stale primary and stand-in ──▶ Finished
//! ```
//!
//! - *Sloppy* (the default): asks the first N healthy nodes of the preference list, fallbacks included, and
//!   takes any R answers. *Strict*: asks primaries alone; an answer counts when its node is a primary that has
//!   refilled, and R must count in each active layout.
//! - The answer is the merge of all copies that came in before it. Later copies only feed the repair.
//! - A replica that cannot read its record says `Corrupt`. That is not "not found": it does not count, and it
//!   is repaired like a stale one.
//! - *Digests*: where the node that reads is a primary and has its own copy at hand, it is the first answer, and
//!   the others are asked with its version hash. Who holds the very same record says `Same` and sends nothing;
//!   any other state is a whole record, so merge, count and repair are those of a read of whole records (a test
//!   holds the two against each other). `Same` can only mean the copy that the machine started with: a copy that
//!   changes later is another event of another read.
//!
//! - *Guests*: for each primary that is down one fallback that has answered stands in, in the order in which a put finds
//!   stand-ins. Where it is behind, or has nothing, it is sent the merge to be kept for that primary. Of a primary that has merely
//!   not answered nothing is kept: under overload that would make work of slowness. A guest that cannot be read is left
//!   alone, because its targets are in it.
//!
//!   The bad orders: the primary has confirmed meanwhile, and the guest comes anew: it is delivered once more, and merging it changes nothing.
//!   A round of reaping has gone over the fallback meanwhile: the merge comes with the lowest fence of its replies, and is refused.
//!
//! Late replies, replies from nodes never asked, doubled replies and stale timers are ordinary events. Absent:
//! clocks (timers are actions with a moment), retries to the same node, and any judgement of expiry.

use std::time::Duration;

use super::preference::{PreferenceList, Role};
use super::quorum::Tally;
use super::version::Record;
use crate::types::{Mono, NodeId};

/// What a read asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetRequest {
    /// Answers needed, 1 to N.
    pub r: usize,
    /// Only refilled primaries count.
    pub strict: bool,
    /// How long to wait for a silent replica before the next candidate is asked too.
    pub hedge_after: Duration,
    /// When the caller gets whatever there is.
    pub deadline: Mono,
}

/// The reading node's own copy, read before anybody was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCopy {
    /// The node: a primary, or it is asked like any other.
    pub node: NodeId,
    /// What it holds; the empty record when it has none.
    pub record: Record,
    /// `Record::version_hash` of it. None when there is none: then all are asked for whole records.
    pub version_hash: Option<u64>,
    /// Whether the node has not refilled since it lost its data.
    pub refilling: bool,
}

/// Why a replica gave no copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaFailure {
    /// No connection, or it broke before the answer.
    Unreachable,
    /// It holds a copy that it cannot read.
    Corrupt,
    /// It shed the request, its disk is stalled or full, or it is stopping.
    Unavailable,
    /// It goes by another layout.
    WrongLayout,
    /// It keeps no more guest records.
    HintsFull,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetEvent {
    /// A replica sent its copy; the empty record when it has none.
    Reply {
        /// Who sent it.
        from: NodeId,
        /// Its copy.
        record: Record,
        /// Whether it has not refilled since it lost its data.
        refilling: bool,
    },
    /// A replica holds the record whose version hash it was asked with.
    Same {
        /// Who says so.
        from: NodeId,
        /// Whether it has not refilled since it lost its data.
        refilling: bool,
    },
    /// A replica gave no copy, for good.
    Failed {
        /// Who failed.
        from: NodeId,
        /// Why.
        why: ReplicaFailure,
    },
    /// The hedge timer rang.
    HedgeTimer,
    /// The deadline has come.
    Deadline,
}

/// What the shell must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetAction {
    /// Ask this node for its copy.
    Ask {
        /// Whom.
        node: NodeId,
        /// It need not send a record of this version hash.
        unless: Option<u64>,
    },
    /// Deliver `HedgeTimer` at this moment.
    StartHedgeTimer(Mono),
    /// Deliver `Deadline` at this moment.
    StartDeadline(Mono),
    /// Tell the client. Comes exactly once.
    Answer(Result<GetDone, GetShortfall>),
    /// Send this record to a replica that is behind. Nobody waits for it.
    Repair {
        /// Who is behind.
        node: NodeId,
        /// A fallback: the primary that it is to be kept for.
        guest_of: Option<NodeId>,
        /// The merge of all copies seen.
        record: Record,
    },
    /// Forget the machine.
    Finished,
}

/// A read that reached its quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetDone {
    /// The merge of the copies that answered; empty when none of them has one.
    pub record: Record,
    /// How the replicas did.
    pub replicas: ReplicaReport,
}

/// A read without a quorum. No state changed; it may be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetShortfall {
    /// Answers that counted, in the active layout that is worst off.
    pub have: usize,
    /// Answers needed.
    pub need: usize,
    /// Whether time ran out while replicas were still silent.
    pub timed_out: bool,
    /// How the replicas did.
    pub replicas: ReplicaReport,
}

/// Who was asked and how it went, for the reply to the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Nodes asked so far.
    pub asked: usize,
    /// Primaries that answered, in order.
    pub primaries: Vec<NodeId>,
    /// Fallbacks that answered, in order.
    pub fallbacks: Vec<NodeId>,
    /// Who failed, and how.
    pub failed: Vec<(NodeId, ReplicaFailure)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Replica {
    Waiting,
    Copy(Record),
    /// Holds what the own copy holds.
    Same,
    Failed(ReplicaFailure),
}

/// The machine. Feed it every event until it says `Finished`.
#[derive(Debug, Clone)]
pub struct GetMachine {
    request: GetRequest,
    /// Nodes in the order in which they would be asked.
    candidates: Vec<(NodeId, Role)>,
    /// Primaries that were believed unreachable at the start, in the order of the list.
    down: Vec<NodeId>,
    /// The first `asked` of `candidates` were asked; their answers.
    replicas: Vec<Replica>,
    order: Vec<usize>,
    /// Where the own copy stands in `replicas`, and the version hash that the others are asked with.
    own: Option<(usize, Option<u64>)>,
    tally: Tally,
    merged: Record,
    answered: bool,
    finished: bool,
}

impl GetMachine {
    /// Starts a read of one key of `list`'s partition. `down` are the nodes believed unreachable: a sloppy read
    /// goes past them, and both kinds ask them only where the others are too few. `own` is the copy of the node that
    /// reads, where it is at hand: its answer.
    pub fn new(
        request: GetRequest,
        list: &PreferenceList,
        down: &[NodeId],
        own: Option<OwnCopy>,
        now: Mono,
    ) -> (GetMachine, Vec<GetAction>) {
        let wanted = list.candidates.iter().filter(|candidate| candidate.role == Role::Primary).count();
        let eligible = list
            .candidates
            .iter()
            .filter(|candidate| !request.strict || candidate.role == Role::Primary)
            .map(|candidate| (candidate.node, candidate.role));
        let (mut candidates, last): (Vec<_>, Vec<_>) = eligible.partition(|(node, _)| !down.contains(node));
        let healthy = candidates.len();
        candidates.extend(last);

        let tally = Tally::new(&list.layouts, request.r);
        let down = list.primaries().filter(|node| down.contains(node)).collect();
        let deadline = request.deadline;
        let hedge_at = now + request.hedge_after;
        let mut machine = GetMachine {
            request,
            candidates,
            down,
            replicas: Vec::new(),
            order: Vec::new(),
            own: None,
            tally,
            merged: Record::new(),
            answered: false,
            finished: false,
        };
        let mut actions = vec![GetAction::StartDeadline(deadline)];
        // A strict read must ask all primaries, down or not: only they count, and the view may be wrong.
        let first = if machine.request.strict { wanted } else { wanted.min(healthy.max(machine.request.r)) };
        let at_hand = own.and_then(|own| {
            let asked = machine.candidates.iter().take(first);
            let at = asked.clone().position(|candidate| *candidate == (own.node, Role::Primary))?;
            Some((at, own))
        });
        machine.own = at_hand.as_ref().map(|(at, own)| (*at, own.version_hash));
        for _ in 0..first {
            machine.ask_next(&mut actions);
        }
        if let Some((at, own)) = at_hand {
            machine.enter(at, own.refilling, Some(own.record));
        }
        machine.conclude(false, &mut actions);
        if !machine.answered && machine.replicas.len() < machine.candidates.len() {
            actions.push(GetAction::StartHedgeTimer(hedge_at));
        }
        (machine, actions)
    }

    /// Takes one event and says what to do.
    pub fn on_event(&mut self, event: GetEvent) -> Vec<GetAction> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match event {
            GetEvent::Reply { from, record, refilling } => {
                let Some(at) = self.waiting(from) else { return actions };
                self.enter(at, refilling, Some(record));
            }
            GetEvent::Same { from, refilling } => {
                let Some(at) = self.waiting(from) else { return actions };
                if matches!(self.own, Some((_, Some(_)))) {
                    self.enter(at, refilling, None);
                } else {
                    // It was not asked so: what it holds is not known.
                    self.replicas[at] = Replica::Failed(ReplicaFailure::Unavailable);
                    self.ask_next(&mut actions);
                }
            }
            GetEvent::Failed { from, why } => {
                let Some(at) = self.waiting(from) else { return actions };
                self.replicas[at] = Replica::Failed(why);
                self.ask_next(&mut actions);
            }
            GetEvent::HedgeTimer => {
                let silent = self.replicas.iter().filter(|replica| **replica == Replica::Waiting).count();
                for _ in 0..if self.answered { 0 } else { silent } {
                    self.ask_next(&mut actions);
                }
            }
            GetEvent::Deadline => {
                self.conclude(true, &mut actions);
                return actions;
            }
        }
        self.conclude(false, &mut actions);
        actions
    }

    fn waiting(&self, from: NodeId) -> Option<usize> {
        let asked = &self.candidates[..self.replicas.len()];
        let at = asked.iter().position(|(node, _)| *node == from)?;
        (self.replicas[at] == Replica::Waiting).then_some(at)
    }

    /// Takes a copy, or that it is the same as the own one.
    fn enter(&mut self, at: usize, refilling: bool, copy: Option<Record>) {
        let from = self.candidates[at].0;
        if !self.request.strict {
            self.tally.count_anywhere(from);
        } else if !refilling {
            self.tally.count_primary(from);
        }
        self.replicas[at] = match copy {
            Some(record) => {
                self.merged.merge(&record);
                Replica::Copy(record)
            }
            None => Replica::Same,
        };
        self.order.push(at);
    }

    fn ask_next(&mut self, actions: &mut Vec<GetAction>) {
        let at = self.replicas.len();
        if let Some((node, _)) = self.candidates.get(at) {
            self.replicas.push(Replica::Waiting);
            match self.own {
                Some((own, _)) if own == at => {}
                own => {
                    let unless = own.and_then(|(_, version_hash)| version_hash);
                    actions.push(GetAction::Ask { node: *node, unless });
                }
            }
        }
    }

    /// Answers once the quorum is met or cannot be met any more; ends when nobody is waited for, or `now_or_never`.
    fn conclude(&mut self, now_or_never: bool, actions: &mut Vec<GetAction>) {
        let nobody_left =
            !self.replicas.contains(&Replica::Waiting) && self.replicas.len() == self.candidates.len();
        if !self.answered {
            if self.tally.is_met() {
                self.answered = true;
                let (record, replicas) = (self.merged.clone(), self.report());
                actions.push(GetAction::Answer(Ok(GetDone { record, replicas })));
            } else if now_or_never || nobody_left {
                self.answered = true;
                actions.push(GetAction::Answer(Err(GetShortfall {
                    have: self.tally.have(),
                    need: self.tally.need(),
                    timed_out: !nobody_left,
                    replicas: self.report(),
                })));
            }
        }
        if now_or_never || (self.answered && !self.replicas.contains(&Replica::Waiting)) {
            self.repair(actions);
            self.finished = true;
            actions.push(GetAction::Finished);
        }
    }

    fn repair(&self, actions: &mut Vec<GetAction>) {
        if self.merged.is_empty() {
            return;
        }
        let is_behind =
            |replica: &Replica| matches!(replica, Replica::Copy(record) if *record != self.merged);
        let own_is_behind = self.own.is_some_and(|(at, _)| is_behind(&self.replicas[at]));
        let mut unreached = self.down.iter().filter(|node| !self.has_answered(**node));
        for ((node, role), replica) in self.candidates.iter().zip(&self.replicas) {
            let behind = match replica {
                Replica::Copy(_) => is_behind(replica),
                Replica::Same => own_is_behind,
                Replica::Failed(why) => *why == ReplicaFailure::Corrupt,
                Replica::Waiting => false,
            };
            let guest_of = match role {
                Role::Primary => None,
                Role::Fallback if !matches!(replica, Replica::Copy(_) | Replica::Same) => continue,
                Role::Fallback => match unreached.next() {
                    Some(target) => Some(*target),
                    None => continue,
                },
            };
            if behind {
                actions.push(GetAction::Repair { node: *node, guest_of, record: self.merged.clone() });
            }
        }
    }

    fn has_answered(&self, node: NodeId) -> bool {
        let mut asked = self.candidates.iter().zip(&self.replicas);
        asked.any(|((asked, _), replica)| {
            *asked == node
                && !matches!(replica, Replica::Waiting | Replica::Failed(ReplicaFailure::Unreachable))
        })
    }

    fn report(&self) -> ReplicaReport {
        let mut report = ReplicaReport { asked: self.replicas.len(), ..ReplicaReport::default() };
        for at in &self.order {
            let (node, role) = self.candidates[*at];
            match role {
                Role::Primary => report.primaries.push(node),
                Role::Fallback => report.fallbacks.push(node),
            }
        }
        for ((node, _), replica) in self.candidates.iter().zip(&self.replicas) {
            if let Replica::Failed(why) = replica {
                report.failed.push((*node, *why));
            }
        }
        report
    }
}

#[cfg(test)]
mod tests;
