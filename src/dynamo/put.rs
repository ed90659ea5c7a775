//! The quorum write as a value: events in, actions out (Dynamo §4.5, §4.6).
//!
//! ```text
//!   new ──▶ ApplyLocally ──▶ Applied: the dot exists ──▶ Replicate to the other primaries
//!    │           │                                          │ (the local sync runs beside it)
//!    │           └─ Refused: no dot ──▶ Answer(NotApplied)  ▼
//!    └─ too few candidates: Err          acks: W nodes hold it durably ──▶ Answer(Applied)
//!                                        a primary refuses, breaks, is down or silent past the hint delay
//!                                           ──▶ StoreGuest at the next fallback, or NoteTarget here
//!                                        deadline, or W cannot be reached ──▶ Answer(Unknown)
//! ```
//!
//! One operation makes at most one dot, and `NotApplied` is said only while there is none. From the moment
//! the dot exists, whatever goes wrong is *unknown*: any node that a byte was sent to may hold it.
//!
//! - The coordinator is a primary of the key, or a fallback when no primary is reachable. A fallback keeps a
//!   *guest record* for all the primaries (a node that is not a primary never holds any other kind of copy).
//! - A primary that is not reached is stood in for by one fallback at a time. Where no fallback is left (a
//!   cluster of N nodes) the coordinator notes the target beside its own copy, which adds no ack: a node
//!   counts once.
//! - *Strict* counts primaries alone and uses no fallback.
//! - A put that was answered goes on until every replica has its copy or a stand-in, or the deadline: W says
//!   when to answer, not how many copies there should be.
//!
//! - *A layout that comes meanwhile*: W counts in each layout that is active when the put is answered, not when it began
//!   ([`PutMachine::on_layout`]). Else W old owners could hold a write that the new ones were compared too early to
//!   have, and reads would miss it once the old layout has retired.
//!
//! Late and doubled acks and stale timers are ordinary events. Absent: clocks, retries, and the record itself
//! (the shell holds it between `ApplyLocally` and the sends).

use std::collections::VecDeque;
use std::time::Duration;

use super::get::{ReplicaFailure, ReplicaReport};
use super::preference::{PreferenceList, Role};
use super::quorum::Tally;
use crate::types::{Mono, NodeId};

/// What a write asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutRequest {
    /// Nodes that must hold it durably, 1 to N.
    pub w: usize,
    /// Only primaries count.
    pub strict: bool,
    /// How long a primary may be silent before a fallback stands in.
    pub hint_after: Duration,
    /// When the caller gets whatever there is.
    pub deadline: Mono,
}

/// Why a put was not started. No dot was made; it may be sent again, elsewhere or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PutNotStarted {
    /// Fewer nodes are reachable than must hold it.
    #[error("only {have} of the {need} replicas that the write needs can be reached")]
    TooFewCandidates {
        /// Reachable candidates that could count, in the active layout that is worst off.
        have: usize,
        /// The W asked for.
        need: usize,
    },
    /// The node may not coordinate this put: it is not a primary and the put is strict, or it is no member.
    #[error("this node is not a replica that may coordinate the write")]
    NotACoordinator,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutEvent {
    /// The dot is made; its append is under way.
    Applied,
    /// No dot was made, and none will be; the shell knows why.
    Refused,
    /// The local append is durable.
    LocalDurable,
    /// The local append failed after the dot was made.
    LocalFailed,
    /// A replica or a fallback holds the record durably.
    Ack(NodeId),
    /// A replica or a fallback will not answer any more, or refused.
    Failed {
        /// Who.
        from: NodeId,
        /// Why.
        why: ReplicaFailure,
    },
    /// The hint timer rang.
    HintTimer,
    /// The deadline has come.
    Deadline,
}

/// What the shell must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutAction {
    /// Make the dot on this node's copy and append it, durably.
    ApplyLocally {
        /// Whether this node keeps it as a guest record (it is no primary) or as data.
        guest: bool,
        /// Guest: the primaries it is for. Data: primaries known to be unreachable, with no fallback left.
        targets: Vec<NodeId>,
    },
    /// Send the record to a primary.
    Replicate(NodeId),
    /// Send the record to a fallback, to be kept for `target`.
    StoreGuest {
        /// The fallback.
        node: NodeId,
        /// The primary it stands in for.
        target: NodeId,
    },
    /// Note beside the coordinator's own copy that `target` does not have it.
    NoteTarget(NodeId),
    /// Deliver `HintTimer` at this moment.
    StartHintTimer(Mono),
    /// Deliver `Deadline` at this moment.
    StartDeadline(Mono),
    /// Tell the client. Comes exactly once.
    Answer(PutOutcome),
    /// Forget the machine.
    Finished,
}

/// How a put ended, as far as this coordinator knows (promise P7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutOutcome {
    /// W nodes hold it durably.
    Applied(ReplicaReport),
    /// No dot was made. It may be sent again.
    NotApplied,
    /// The dot exists; whether W nodes hold it is not known. It may or may not be read later, and must not be
    /// taken for failed.
    Unknown {
        /// Nodes known to hold it durably, in the active layout that is worst off.
        have: usize,
        /// The W asked for.
        need: usize,
        /// Whether time ran out while replicas were silent; otherwise too many refused or broke.
        timed_out: bool,
        /// How the replicas did.
        replicas: ReplicaReport,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Waiting,
    Acked,
    Failed(ReplicaFailure),
}

/// A copy that was sent out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    node: NodeId,
    /// The primary it counts for: the node itself, or the one it stands in for.
    target: NodeId,
    reply: Reply,
}

/// The machine. Feed it every event until it says `Finished`.
#[derive(Debug, Clone)]
pub struct PutMachine {
    request: PutRequest,
    coordinator: NodeId,
    /// The primaries that the coordinator's own copy counts for.
    own_targets: Vec<NodeId>,
    others: Vec<NodeId>,
    down: Vec<NodeId>,
    fallbacks: VecDeque<NodeId>,
    hint_at: Mono,
    sent: Vec<Sent>,
    /// Primaries that are noted beside the coordinator's own copy.
    noted: Vec<NodeId>,
    tally: Tally,
    local: Reply,
    applied: bool,
    answered: bool,
    finished: bool,
    acked_order: Vec<NodeId>,
}

impl PutMachine {
    /// Starts a write of one key of `list`'s partition, coordinated by `coordinator`. `down` are the nodes
    /// believed unreachable.
    ///
    /// # Errors
    /// When it cannot succeed; nothing was done.
    pub fn new(
        request: PutRequest,
        coordinator: NodeId,
        list: &PreferenceList,
        down: &[NodeId],
        now: Mono,
    ) -> Result<(PutMachine, Vec<PutAction>), PutNotStarted> {
        let primaries: Vec<NodeId> = nodes(list, Role::Primary);
        let is_primary = primaries.contains(&coordinator);
        let is_fallback = nodes(list, Role::Fallback).contains(&coordinator);
        if !(is_primary || is_fallback && !request.strict) {
            return Err(PutNotStarted::NotACoordinator);
        }
        let fallbacks: VecDeque<NodeId> = if request.strict {
            VecDeque::new()
        } else {
            let reachable = |node: &NodeId| *node != coordinator && !down.contains(node);
            nodes(list, Role::Fallback).into_iter().filter(reachable).collect()
        };
        let others: Vec<NodeId> = primaries.iter().copied().filter(|node| *node != coordinator).collect();
        let own_targets = if is_primary { vec![coordinator] } else { primaries.clone() };

        let tally = Tally::new(&list.layouts, request.w);
        let mut best = tally.clone();
        best.count_for(coordinator, &own_targets);
        for node in others.iter().filter(|node| !down.contains(node)) {
            best.count_primary(*node);
        }
        // A fallback stands in for one primary that is not reached, so it helps where that one counts.
        let unreached = others.iter().filter(|node| down.contains(node));
        for (fallback, target) in fallbacks.iter().zip(unreached) {
            best.count_for(*fallback, &[*target]);
        }
        if !best.is_met() {
            return Err(PutNotStarted::TooFewCandidates { have: best.have(), need: request.w });
        }

        let unreached: Vec<NodeId> = others.iter().copied().filter(|node| down.contains(node)).collect();
        // The first of them will have stand-ins; the rest is noted in the same append as the record.
        let targets: Vec<NodeId> =
            if is_primary { unreached.into_iter().skip(fallbacks.len()).collect() } else { primaries };
        let deadline = request.deadline;
        let machine = PutMachine {
            hint_at: now + request.hint_after,
            request,
            coordinator,
            own_targets,
            others,
            down: down.to_vec(),
            fallbacks,
            sent: Vec::new(),
            noted: targets.clone(),
            tally,
            local: Reply::Waiting,
            applied: false,
            answered: false,
            finished: false,
            acked_order: Vec::new(),
        };
        let apply = PutAction::ApplyLocally { guest: !is_primary, targets };
        Ok((machine, vec![PutAction::StartDeadline(deadline), apply]))
    }

    /// Takes one event and says what to do.
    pub fn on_event(&mut self, event: PutEvent) -> Vec<PutAction> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match event {
            PutEvent::Applied if !self.applied => {
                self.applied = true;
                self.send_out(&mut actions);
            }
            PutEvent::Refused if !self.applied => {
                self.finished = true;
                if !self.answered {
                    self.answered = true;
                    actions.push(PutAction::Answer(PutOutcome::NotApplied));
                }
                actions.push(PutAction::Finished);
                return actions;
            }
            PutEvent::LocalDurable if self.local == Reply::Waiting => {
                self.local = Reply::Acked;
                self.acked_order.push(self.coordinator);
                let targets = self.own_targets.clone();
                self.tally.count_for(self.coordinator, &targets);
            }
            PutEvent::LocalFailed if self.local == Reply::Waiting => {
                self.local = Reply::Failed(ReplicaFailure::Unavailable);
            }
            PutEvent::Ack(from) => {
                for sent in self.sent.iter_mut().filter(|sent| sent.node == from) {
                    if sent.reply != Reply::Acked {
                        sent.reply = Reply::Acked;
                        self.tally.count_for(from, &[sent.target]);
                        if !self.acked_order.contains(&from) {
                            self.acked_order.push(from);
                        }
                    }
                }
            }
            PutEvent::Failed { from, why } => {
                let failed = self.sent.iter_mut().filter(|sent| sent.node == from);
                let mut orphans = Vec::new();
                for sent in failed.filter(|sent| sent.reply == Reply::Waiting) {
                    sent.reply = Reply::Failed(why);
                    orphans.push(sent.target);
                }
                for target in orphans {
                    self.stand_in(target, &mut actions);
                }
            }
            PutEvent::HintTimer => {
                let silent = |sent: &&Sent| sent.node == sent.target && sent.reply == Reply::Waiting;
                let silent: Vec<NodeId> = self.sent.iter().filter(silent).map(|sent| sent.target).collect();
                for target in silent {
                    self.stand_in(target, &mut actions);
                }
            }
            PutEvent::Deadline => {
                self.conclude(true, &mut actions);
                return actions;
            }
            PutEvent::Applied | PutEvent::Refused | PutEvent::LocalDurable | PutEvent::LocalFailed => {}
        }
        self.conclude(false, &mut actions);
        actions
    }

    /// Goes by another list of the same partition from now on: who holds the write counts by it, and primaries that are new get
    /// their copy. The shell calls this before it delivers what came in under the new layouts.
    pub fn on_layout(&mut self, list: &PreferenceList) -> Vec<PutAction> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        let primaries = nodes(list, Role::Primary);
        // A fallback's own copy stays what it was: kept for those that it was made for, and counted for them.
        if primaries.contains(&self.coordinator) && !self.own_targets.contains(&self.coordinator) {
            self.own_targets.push(self.coordinator);
        }
        self.fallbacks.retain(|node| list.role(*node) == Some(Role::Fallback));
        let is_known = |node: &NodeId| *node == self.coordinator || self.others.contains(node);
        let joined: Vec<NodeId> = primaries.into_iter().filter(|node| !is_known(node)).collect();
        self.others.extend(&joined);
        let mut tally = Tally::new(&list.layouts, self.request.w);
        if self.local == Reply::Acked {
            tally.count_for(self.coordinator, &self.own_targets);
        }
        for sent in self.sent.iter().filter(|sent| sent.reply == Reply::Acked) {
            tally.count_for(sent.node, &[sent.target]);
        }
        self.tally = tally;
        if self.applied {
            self.send_to(&joined, &mut actions);
        }
        self.conclude(false, &mut actions);
        actions
    }

    fn send_out(&mut self, actions: &mut Vec<PutAction>) {
        self.send_to(&self.others.clone(), actions);
        if self.sent.iter().any(|sent| sent.node == sent.target) && !self.request.strict {
            actions.push(PutAction::StartHintTimer(self.hint_at));
        }
    }

    fn send_to(&mut self, primaries: &[NodeId], actions: &mut Vec<PutAction>) {
        for &node in primaries {
            if self.down.contains(&node) {
                self.stand_in(node, actions);
            } else {
                self.sent.push(Sent { node, target: node, reply: Reply::Waiting });
                actions.push(PutAction::Replicate(node));
            }
        }
    }

    /// Finds somebody to keep the record for a primary that was not reached.
    fn stand_in(&mut self, target: NodeId, actions: &mut Vec<PutAction>) {
        let has_stand_in = self.sent.iter().any(|sent| {
            sent.target == target && sent.node != target && !matches!(sent.reply, Reply::Failed(_))
        });
        if self.request.strict || has_stand_in {
            return;
        }
        if let Some(node) = self.fallbacks.pop_front() {
            self.sent.push(Sent { node, target, reply: Reply::Waiting });
            actions.push(PutAction::StoreGuest { node, target });
        } else if !self.noted.contains(&target) {
            self.noted.push(target);
            actions.push(PutAction::NoteTarget(target));
        }
    }

    /// Answers once W is met or cannot be met any more; ends when nobody is waited for, or `now_or_never`.
    fn conclude(&mut self, now_or_never: bool, actions: &mut Vec<PutAction>) {
        let waiting = self.sent.iter().any(|sent| sent.reply == Reply::Waiting);
        let settled = self.applied && !waiting && self.local != Reply::Waiting;
        if !self.answered {
            if self.tally.is_met() {
                self.answered = true;
                actions.push(PutAction::Answer(PutOutcome::Applied(self.report())));
            } else if now_or_never || settled {
                // Before `Applied` the shell may still be making the dot, so even then it is not "not applied".
                self.answered = true;
                actions.push(PutAction::Answer(PutOutcome::Unknown {
                    have: self.tally.have(),
                    need: self.tally.need(),
                    timed_out: !settled,
                    replicas: self.report(),
                }));
            }
        }
        if now_or_never || settled {
            self.finished = true;
            actions.push(PutAction::Finished);
        }
    }

    fn report(&self) -> ReplicaReport {
        let own_role_is_primary = self.own_targets == [self.coordinator];
        let mut report = ReplicaReport { asked: 1 + self.sent.len(), ..ReplicaReport::default() };
        for node in &self.acked_order {
            let primary = self.others.contains(node) || (*node == self.coordinator && own_role_is_primary);
            if primary {
                report.primaries.push(*node);
            } else {
                report.fallbacks.push(*node);
            }
        }
        if let Reply::Failed(why) = self.local {
            report.failed.push((self.coordinator, why));
        }
        for sent in &self.sent {
            if let Reply::Failed(why) = sent.reply {
                report.failed.push((sent.node, why));
            }
        }
        report
    }
}

fn nodes(list: &PreferenceList, role: Role) -> Vec<NodeId> {
    list.candidates
        .iter()
        .filter(|candidate| candidate.role == role)
        .map(|candidate| candidate.node)
        .collect()
}

#[cfg(test)]
mod tests;
