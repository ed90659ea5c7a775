//! Carries one machine's actions out and brings the results back as events.
//!
//! One task owns one request. Its pending calls and timers are futures of that same task, so when the machine
//! says `Finished` all of them go at once, and nothing of a request outlives it. The client's answer leaves
//! through a channel as soon as the machine gives it; the task goes on for repair and for the replicas that
//! are still to have their copy.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::coordinator::failure;
use super::fences::fences_of;
use super::replica::{Applied, Fetched, Over};
use super::{Inner, Request, lock};
use crate::dynamo::get::{GetAction, GetDone, GetEvent, GetMachine, GetShortfall, OwnCopy, ReplicaFailure};
use crate::dynamo::put::{PutAction, PutEvent, PutMachine, PutOutcome};
use crate::dynamo::reaping::{Fences, Joint};
use crate::dynamo::version::{PutDone, Record, Write};
use crate::io::BoxFuture;
use crate::net::message::{Durability, Fetch, FetchReply, Refusal, Store};
use crate::storage::Table;
use crate::types::{Key, LayoutRef, Namespace, NodeId};

/// An event with the fences of the answer that it is.
type Fenced = (GetEvent, Option<Fences>);

pub(super) struct GetDriver {
    pub(super) node: Arc<Inner>,
    pub(super) namespace: Namespace,
    pub(super) key: Key,
    pub(super) request: Request,
    /// This node's own copy, on its way.
    pub(super) own: Option<BoxFuture<'static, Fetched>>,
    /// The fences of what has come in.
    pub(super) joint: Joint,
    /// Replicas that the read needs.
    pub(super) r: usize,
    /// An answer has shown that this node's own copy is older than what was agreed to be forgotten.
    pub(super) is_outdated: bool,
    pub(super) answer: Option<oneshot::Sender<Read>>,
}

/// How a read by one preference list ended.
pub(super) enum Read {
    Done(GetDone),
    Short(GetShortfall),
    /// A round of reaping was committed while copies came in: some are from before it, some from behind it.
    Mixed,
}

impl GetDriver {
    pub(super) async fn drive(mut self, mut machine: GetMachine, mut actions: Vec<GetAction>) {
        let mut pending: FuturesUnordered<BoxFuture<'static, Fenced>> = FuturesUnordered::new();
        loop {
            for action in actions {
                match action {
                    GetAction::Ask { node, unless } => pending.push(self.ask(node, unless)),
                    GetAction::StartHedgeTimer(at) => {
                        let timer = self.node.at(at);
                        pending.push(Box::pin(async move {
                            timer.await;
                            point!("hedge-timer");
                            (GetEvent::HedgeTimer, None)
                        }));
                    }
                    GetAction::StartDeadline(at) => {
                        let timer = self.node.at(at);
                        pending.push(Box::pin(async move {
                            timer.await;
                            (GetEvent::Deadline, None)
                        }));
                    }
                    GetAction::Answer(answer) => {
                        // The own copy may be in it already.
                        let answer = match answer {
                            Ok(done) if self.is_outdated => Read::Short(GetShortfall {
                                have: 0,
                                need: self.r,
                                timed_out: false,
                                replicas: done.replicas,
                            }),
                            Ok(_) if !self.joint.is_sound() => Read::Mixed,
                            Ok(done) => Read::Done(done),
                            Err(short) => Read::Short(short),
                        };
                        if let Some(asker) = self.answer.take() {
                            let _ = asker.send(answer);
                        }
                    }
                    GetAction::Repair { node, guest_of, record } => self.repair(node, guest_of, record),
                    GetAction::Finished => return,
                }
            }
            let Some((event, fences)) = pending.next().await else { return };
            let event = self.judge(event, fences);
            actions = machine.on_event(event);
        }
    }

    fn ask(&mut self, node: NodeId, unless: Option<u64>) -> BoxFuture<'static, Fenced> {
        let (inner, namespace, key, request) =
            (self.node.clone(), self.namespace, self.key.clone(), self.request);
        if node == inner.id {
            let own = self.own.take();
            return Box::pin(async move {
                let fetched = match own {
                    Some(own) => own.await,
                    None => inner.fetch_at_hand(namespace, &key).await,
                };
                match fetched {
                    Ok((OwnCopy { record, refilling, .. }, fences)) => {
                        (GetEvent::Reply { from: node, record, refilling }, Some(fences))
                    }
                    Err(why) => (GetEvent::Failed { from: node, why }, None),
                }
            });
        }
        Box::pin(async move {
            match inner.fetch(node, &Fetch { namespace, key, unless }, request).await {
                Ok(FetchReply { record: Some(record), refilling, fences }) => {
                    (GetEvent::Reply { from: node, record, refilling }, Some(fences))
                }
                Ok(FetchReply { record: None, refilling, fences }) => {
                    (GetEvent::Same { from: node, refilling }, Some(fences))
                }
                Err(why) => (GetEvent::Failed { from: node, why }, None),
            }
        })
    }

    /// What an answer is worth by the fences that came with it: one that is older than what is known to be forgotten is none.
    fn judge(&mut self, event: GetEvent, fences: Option<Fences>) -> GetEvent {
        let Some(fences) = fences else { return event };
        let partition = self.node.descriptor.partitions.partition_of(self.namespace, &self.key);
        let own = fences_of(&self.node.store.partition_state(partition).0);
        let (GetEvent::Reply { from, .. } | GetEvent::Same { from, .. }) = event else { return event };
        if fences.raised < own.committed {
            return GetEvent::Failed { from, why: ReplicaFailure::Corrupt };
        }
        if own.raised < fences.committed {
            // It is this node that is behind.
            self.is_outdated = true;
            let inner = self.node.clone();
            tokio::spawn(async move {
                if let Err(error) = inner.catch_up(partition, fences).await {
                    tracing::warn!(%partition, %error, "outdated copies are not given up yet");
                }
            });
        }
        self.joint.join(fences, self.node.votes(from));
        event
    }

    /// Nobody waits for a repair, so it has a task and a deadline of its own.
    fn repair(&self, node: NodeId, guest_of: Option<NodeId>, record: Record) {
        let (inner, namespace, key) = (self.node.clone(), self.namespace, self.key.clone());
        let deadline = inner.now() + inner.config.timeout;
        let request = Request { deadline, ..self.request };
        let partition = inner.descriptor.partitions.partition_of(namespace, &key);
        let mut joint = self.joint;
        joint.hear(fences_of(&inner.store.partition_state(partition).0));
        let fences = joint.fences();
        inner.metrics.read_repairs.one();
        if guest_of.is_some() {
            inner.metrics.guests_repaired.one();
        }
        point!("read-repair");
        let repair = async move {
            // A repair is known durable when it is answered: the next read may stop here.
            let durability = Durability::Sync;
            let guest_of = guest_of.into_iter().collect();
            let store = Store { namespace, key: key.clone(), record, guest_of, durability, fences };
            let stored = inner.store_at(node, &store, request).await;
            if stored.is_err() {
                inner.metrics.read_repairs_failed.one();
            }
            tracing::debug!(%key, %node, ok = stored.is_ok(), "read repair");
        };
        tokio::spawn(repair.in_current_span());
    }
}

/// What the answer of a put needs besides its outcome.
pub(super) type PutAnswer = (Result<PutOutcome, Refusal>, Option<(Record, PutDone)>);

pub(super) struct PutDriver {
    pub(super) node: Arc<Inner>,
    pub(super) namespace: Namespace,
    pub(super) key: Key,
    pub(super) request: Request,
    pub(super) durability: Durability,
    /// What the machine goes by.
    pub(super) layout: LayoutRef,
    /// How many are active with it.
    pub(super) layouts: usize,
    pub(super) write: Option<(Over, Write)>,
    pub(super) applied: Option<(Table, Record, PutDone, Fences)>,
    pub(super) local_durable: bool,
    pub(super) refusal: Option<Refusal>,
    pub(super) answer: Option<oneshot::Sender<PutAnswer>>,
}

/// What comes back to the driver: an event for the machine, or the result of the local put, which it keeps.
enum PutResult {
    Event(PutEvent),
    Local(Table, Result<Applied, Refusal>),
}

impl PutDriver {
    pub(super) async fn drive(mut self, mut machine: PutMachine, actions: Vec<PutAction>) {
        let mut actions = VecDeque::from(actions);
        let mut pending: FuturesUnordered<BoxFuture<'static, PutResult>> = FuturesUnordered::new();
        loop {
            while let Some(action) = actions.pop_front() {
                match action {
                    PutAction::ApplyLocally { guest, targets } => {
                        if let Some(local) = self.apply(guest, targets) {
                            pending.push(local);
                        }
                    }
                    PutAction::Replicate(node) => {
                        point!("put-sent");
                        pending.push(self.send(node, Vec::new()));
                    }
                    PutAction::StoreGuest { node, target } => {
                        point!("guest-sent");
                        self.node.metrics.guests_sent.one();
                        pending.push(self.send(node, vec![target]));
                    }
                    PutAction::NoteTarget(target) => self.note(target),
                    PutAction::StartHintTimer(at) => {
                        let timer = self.node.at(at);
                        pending.push(Box::pin(async move {
                            timer.await;
                            point!("hint-timer");
                            PutResult::Event(PutEvent::HintTimer)
                        }));
                    }
                    PutAction::StartDeadline(at) => {
                        let timer = self.node.at(at);
                        pending.push(Box::pin(async move {
                            timer.await;
                            PutResult::Event(PutEvent::Deadline)
                        }));
                    }
                    PutAction::Answer(outcome) => self.answer(outcome),
                    PutAction::Finished => return,
                }
            }
            let Some(result) = pending.next().await else { return };
            let event = match result {
                PutResult::Event(event) => {
                    self.local_durable |= event == PutEvent::LocalDurable;
                    event
                }
                PutResult::Local(table, Ok(applied)) => {
                    let durable = self.wait_durable(applied.position);
                    pending.push(durable);
                    self.applied = Some((table, applied.record, applied.done, applied.fences));
                    PutEvent::Applied
                }
                PutResult::Local(_, Err(refusal)) => {
                    self.refusal = Some(refusal);
                    PutEvent::Refused
                }
            };
            // An answer that came under other layouts than the machine goes by counts under those.
            let (list, layout) = self.node.preference(self.namespace, &self.key);
            if layout != self.layout || list.layouts.len() != self.layouts {
                (self.layout, self.layouts) = (layout, list.layouts.len());
                actions.extend(machine.on_layout(&list));
            }
            actions.extend(machine.on_event(event));
        }
    }

    fn apply(&mut self, guest: bool, targets: Vec<NodeId>) -> Option<BoxFuture<'static, PutResult>> {
        let (over, write) = self.write.take()?;
        let table = if guest { Table::Guest } else { Table::Data };
        let (inner, slot) = (self.node.clone(), self.node.slot(table, self.namespace, &self.key));
        let durability = self.durability;
        Some(Box::pin(async move {
            PutResult::Local(table, inner.put_own(&slot, &targets, over, write, durability).await)
        }))
    }

    fn wait_durable(&self, position: crate::storage::LogPosition) -> BoxFuture<'static, PutResult> {
        let inner = self.node.clone();
        Box::pin(async move {
            if canary!(AckBeforeSync) {
                return PutResult::Event(PutEvent::LocalDurable);
            }
            PutResult::Event(match inner.store.wait_synced(position).await {
                Ok(()) => PutEvent::LocalDurable,
                Err(_) => {
                    // The dot may have left the node: no actor of this start may count on.
                    inner.mint().end_all();
                    PutEvent::LocalFailed
                }
            })
        })
    }

    fn send(&self, node: NodeId, guest_of: Vec<NodeId>) -> BoxFuture<'static, PutResult> {
        let (inner, namespace, key, request, durability) =
            (self.node.clone(), self.namespace, self.key.clone(), self.request, self.durability);
        let Some((table, record, done, fences)) = self.applied.clone() else {
            let why = ReplicaFailure::Unavailable;
            return Box::pin(std::future::ready(PutResult::Event(PutEvent::Failed { from: node, why })));
        };
        Box::pin(async move {
            let slot = inner.slot(table, namespace, &key);
            let store = Store { namespace, key, record, guest_of, durability, fences };
            let kept = match inner.send(node, &store, request).await {
                Ok(true) => Ok(true),
                // Refused for its fence, which is raised now: what this node holds by now, if that has the write.
                Ok(false) => {
                    let (guest_of, dot) = (&store.guest_of, Some(done.dot));
                    let sent = inner.send_own(node, &slot, guest_of, durability, dot, request).await;
                    sent.map(|sent| sent.is_some())
                }
                Err(error) => Err(error),
            };
            PutResult::Event(match kept {
                Ok(true) => PutEvent::Ack(node),
                Ok(false) => PutEvent::Failed { from: node, why: ReplicaFailure::Unavailable },
                Err(error) => {
                    let why = failure(&error);
                    if why == ReplicaFailure::HintsFull {
                        point!("partition-dirty");
                        lock(&inner.dirty).insert(slot.partition);
                    }
                    PutEvent::Failed { from: node, why }
                }
            })
        })
    }

    fn note(&self, target: NodeId) {
        let Some((table, ..)) = self.applied else { return };
        let (inner, slot) = (self.node.clone(), self.node.slot(table, self.namespace, &self.key));
        tokio::spawn(async move {
            point!("target-noted");
            if let Err(error) = inner.note_target(&slot, target).await {
                tracing::warn!(key = %slot.key, %target, %error, "cannot note who lacks the record");
            }
        });
    }

    fn answer(&mut self, outcome: PutOutcome) {
        let Some(asker) = self.answer.take() else { return };
        point!("put-answered");
        let outcome = match (outcome, self.refusal.take()) {
            (PutOutcome::NotApplied, Some(refusal)) => Err(refusal),
            (outcome, _) => Ok(outcome),
        };
        // What stands beside the write in this node's copy went to the replicas with it, so whoever has acked
        // holds that too. Without W acks only this node's own disk vouches for it (P6).
        let vouched = self.local_durable || matches!(outcome, Ok(PutOutcome::Applied(_)));
        let applied = self.applied.as_ref().filter(|_| vouched);
        let applied = applied.map(|(_, record, done, _)| (record.clone(), done.clone()));
        let _ = asker.send((outcome, applied));
    }
}
