//! Carries out requests: builds the machine, turns its actions into calls and the results into events.
//!
//! One task owns one request. Its pending calls and timers are futures of that same task, so when the machine
//! says `Finished` all of them go at once, and nothing of a request outlives it. The client's answer leaves
//! through a channel as soon as the machine gives it; the task goes on for repair and for the replicas that
//! are still to have their copy.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;

use super::replica::{Applied, Over, failure_of, storage_refusal};
use super::{Inner, Node, Request};
use crate::dynamo::get::{
    GetAction, GetDone, GetEvent, GetMachine, GetRequest, GetShortfall, ReplicaFailure, ReplicaReport,
};
use crate::dynamo::put::{PutAction, PutEvent, PutMachine, PutNotStarted, PutOutcome, PutRequest};
use crate::dynamo::version::record::META_BYTES_MAX;
use crate::dynamo::version::{Content, PutDone, Record, Token, VersionVector, Write};
use crate::io::BoxFuture;
use crate::net::link::CallError;
use crate::net::message::{
    Context, Fetch, FetchReply, Get, GetReply, Put, PutOutcome as Outcome, PutReply, Quorum, Refusal,
    RefusalCode, Replicas, Store, StoreReply, Version,
};
use crate::storage::{StorageError, Table};
use crate::types::{Key, Mono, Namespace, NodeId};

impl Node {
    /// Reads a key.
    ///
    /// # Errors
    /// When the request makes no sense, or fewer than R replicas answered. Nothing was changed.
    pub async fn get(&self, get: Get, request: Request) -> Result<GetReply, Refusal> {
        let done = self.read(get.namespace, &get.key, get.quorum, request).await?;
        let view = done.record.view(self.inner.wall());
        Ok(GetReply {
            values: view.values.into_iter().map(version_of).collect(),
            tombstones: u32::try_from(view.tombstones).unwrap_or(u32::MAX),
            expired: u32::try_from(view.expired).unwrap_or(u32::MAX),
            context: self.seal(get.namespace, &get.key, done.record.context())?,
            replicas: replicas_of(&done.replicas),
        })
    }

    /// Writes or deletes a key: coordinates it, or passes it on to a primary.
    ///
    /// # Errors
    /// When no dot was made, anywhere: the write did not happen. Whatever else goes wrong is a reply that says
    /// *unknown*.
    pub async fn put(&self, put: Put, request: Request) -> Result<PutReply, Refusal> {
        let inner = &self.inner;
        self.check(&put)?;
        let list = inner.preference(put.namespace, &put.key);
        let down = inner.peers.down();
        if !list.is_primary(inner.id) && !put.forwarded {
            let primaries = list.primaries().filter(|node| !down.contains(node));
            for primary in primaries.collect::<Vec<_>>() {
                if let Some(forwarded) = self.forward(primary, &put, request).await {
                    return forwarded;
                }
            }
            // No primary took a byte of it: this node may coordinate it itself, as a fallback.
        }
        let over = self.over(&put, request).await?;
        let w = self.quorum_size("w", put.quorum.w)?;
        let machine_request = PutRequest {
            w,
            strict: put.quorum.strict,
            hint_after: inner.config.hint_after,
            deadline: request.deadline,
        };
        let down = inner.peers.down();
        let (machine, actions) = PutMachine::new(machine_request, inner.id, &list, &down, inner.now())
            .map_err(|error| match error {
                PutNotStarted::TooFewCandidates { .. } => {
                    Refusal::new(RefusalCode::TooFewReplicas, format!("{error}; nothing was written"))
                }
                PutNotStarted::NotACoordinator => {
                    let message = "no primary of the key is reachable; nothing was written";
                    Refusal::new(RefusalCode::TooFewReplicas, message)
                }
            })?;

        let (namespace, key, write_id) = (put.namespace, put.key.clone(), put.write_id);
        // Kept for the case that this node's copy turns out damaged; values are shared, not copied.
        let elsewhere = (!put.forwarded).then(|| put.clone());
        let content = put.value.map_or(Content::Tombstone, Content::Value);
        let write = Write { write_id, content, meta: put.meta, expires_at: put.expires_at };
        let (answer, answered) = oneshot::channel();
        let driver = PutDriver {
            node: inner.clone(),
            namespace,
            key: key.clone(),
            request,
            write: Some((over, write)),
            applied: None,
            local_durable: false,
            refusal: None,
            answer: Some(answer),
        };
        tokio::spawn(driver.drive(machine, actions));
        // The driver always answers; if it panicked, what happened is not known.
        let (mut outcome, applied) = answered.await.unwrap_or_else(|_| {
            let unknown = PutOutcome::Unknown {
                have: 0,
                need: w,
                timed_out: false,
                replicas: ReplicaReport::default(),
            };
            (Ok(unknown), None)
        });
        if let Some(put) = elsewhere
            && matches!(&outcome, Err(refusal) if refusal.code == RefusalCode::Corrupt)
        {
            // No dot was made here, and a record that cannot be read is not an absent one.
            for primary in list.primaries().filter(|node| *node != inner.id) {
                match self.forward(primary, &put, request).await {
                    Some(Err(refusal)) if refusal.code == RefusalCode::Corrupt => outcome = Err(refusal),
                    Some(forwarded) => return forwarded,
                    None => {}
                }
            }
        }
        self.put_reply(namespace, &key, write_id, outcome?, applied)
    }

    /// Reads a key's record at R, and repairs who is behind.
    async fn read(
        &self,
        namespace: Namespace,
        key: &Key,
        quorum: Quorum,
        request: Request,
    ) -> Result<GetDone, Refusal> {
        let inner = &self.inner;
        let r = self.quorum_size("r", quorum.r)?;
        let list = inner.preference(namespace, key);
        let machine_request = GetRequest {
            r,
            strict: quorum.strict,
            hedge_after: inner.config.hedge_after,
            deadline: request.deadline,
        };
        let (machine, actions) = GetMachine::new(machine_request, &list, &inner.peers.down(), inner.now());
        let (answer, answered) = oneshot::channel();
        let driver =
            GetDriver { node: inner.clone(), namespace, key: key.clone(), request, answer: Some(answer) };
        tokio::spawn(driver.drive(machine, actions));
        let answered = answered.await.map_err(|_| {
            Refusal::new(RefusalCode::Unavailable, "the read was given up inside the node; try again")
        })?;
        answered.map_err(|short| {
            let why = if short.timed_out { "in time" } else { "at all" };
            let message = format!(
                "{} of the {} replicas that the read needs answered {why}{}",
                short.have,
                short.need,
                failures(&short.replicas)
            );
            Refusal::new(RefusalCode::TooFewReplicas, message)
        })
    }

    /// Passes a put on to a primary; none when not a byte of it was sent.
    async fn forward(
        &self,
        primary: NodeId,
        put: &Put,
        request: Request,
    ) -> Option<Result<PutReply, Refusal>> {
        let inner = &self.inner;
        let addr = inner.peer_addr(primary)?;
        let forwarded = Put { forwarded: true, ..put.clone() };
        let head = inner.head(request);
        match inner.peers.call(primary, &addr, &forwarded, head, request.deadline).await {
            Ok(reply) => Some(Ok(reply)),
            Err(CallError::Refused(refusal)) => Some(Err(refusal)),
            Err(CallError::NotSent(_)) => None,
            Err(CallError::MaybeDelivered(reason)) => {
                let need = put.quorum.w.map_or(0, u32::from);
                Some(Ok(PutReply {
                    outcome: Outcome::Unknown { have: 0, need, reason: format!("{primary}: {reason}") },
                    overwrote: Vec::new(),
                    siblings: Vec::new(),
                    context: Bytes::new(),
                    replicas: Replicas::default(),
                }))
            }
        }
    }

    fn check(&self, put: &Put) -> Result<(), Refusal> {
        let max = self.inner.config.value_len_max;
        let too_large = |message: String| Err(Refusal::new(RefusalCode::TooLarge, message));
        match &put.value {
            Some(value) if value.len() > max => {
                return too_large(format!("the value has {} bytes, at most {max} are taken", value.len()));
            }
            None if put.expires_at.is_some() => {
                return Err(Refusal::new(RefusalCode::BadRequest, "a deletion cannot expire"));
            }
            _ => {}
        }
        match put.meta.as_ref().map(|meta| meta.size_bytes()) {
            Some(bytes) if bytes > META_BYTES_MAX => {
                too_large(format!("the metadata has {bytes} bytes, at most {META_BYTES_MAX} are taken"))
            }
            _ => self.quorum_size("w", put.quorum.w).map(|_| ()),
        }
    }

    /// What the put overwrites; a delete without a token reads first.
    async fn over(&self, put: &Put, request: Request) -> Result<Over, Refusal> {
        match &put.context {
            Context::Nothing => Ok(Over::Nothing),
            Context::Current => Ok(Over::Current),
            Context::Token(token) => self.unseal(put.namespace, &put.key, token).map(Over::Seen),
            Context::Read if put.value.is_some() => {
                Err(Refusal::new(RefusalCode::BadRequest, "only a deletion may read what it overwrites"))
            }
            Context::Read => {
                let read = self.read(put.namespace, &put.key, put.quorum, request).await?;
                Ok(Over::Seen(read.record.context().clone()))
            }
        }
    }

    /// A quorum's size: what was asked for, or a majority of N.
    fn quorum_size(&self, name: &str, asked: Option<u8>) -> Result<usize, Refusal> {
        let n = self.inner.descriptor.replicas as usize;
        match asked.map(usize::from) {
            None => Ok(n / 2 + 1),
            Some(asked) if (1..=n).contains(&asked) => Ok(asked),
            Some(asked) => {
                let message =
                    format!("{name}={asked}: this cluster keeps {n} replicas, so {name} is 1 to {n}");
                Err(Refusal::new(RefusalCode::BadRequest, message))
            }
        }
    }

    fn token<'a>(&'a self, namespace: Namespace, key: &'a Key) -> Token<'a> {
        let descriptor = &self.inner.descriptor;
        Token { secret: &descriptor.token_secret, cluster: descriptor.cluster, namespace, key }
    }

    fn seal(&self, namespace: Namespace, key: &Key, context: &VersionVector) -> Result<Bytes, Refusal> {
        let sealed = self.token(namespace, key).seal(context);
        sealed.map(Bytes::from).map_err(|error| Refusal::new(RefusalCode::TooLarge, error.to_string()))
    }

    fn unseal(&self, namespace: Namespace, key: &Key, token: &[u8]) -> Result<VersionVector, Refusal> {
        let opened = self.token(namespace, key).open(token);
        opened.map_err(|error| Refusal::new(RefusalCode::BadToken, error.to_string()))
    }

    fn put_reply(
        &self,
        namespace: Namespace,
        key: &Key,
        write_id: crate::types::WriteId,
        outcome: PutOutcome,
        applied: Option<(Record, PutDone)>,
    ) -> Result<PutReply, Refusal> {
        let (outcome, report) = match outcome {
            PutOutcome::Applied(report) => (Outcome::Applied, report),
            PutOutcome::NotApplied => {
                return Err(Refusal::new(RefusalCode::Unavailable, "nothing was written; try again"));
            }
            PutOutcome::Unknown { have, need, timed_out, replicas } => {
                let why = if timed_out { "time ran out" } else { "too many replicas failed" };
                let count = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
                let reason = format!("{why}{}", failures(&replicas));
                (Outcome::Unknown { have: count(have), need: count(need), reason }, replicas)
            }
        };
        let mut reply = PutReply {
            outcome,
            overwrote: Vec::new(),
            siblings: Vec::new(),
            context: Bytes::new(),
            replicas: replicas_of(&report),
        };
        if let Some((record, done)) = applied {
            // A context alone would cover siblings that the client never saw, so it comes with all of them.
            let view = record.view(self.inner.wall());
            let others = view.values.into_iter().filter(|sibling| sibling.write_id != write_id);
            reply.siblings = others.map(version_of).collect();
            reply.context = self.seal(namespace, key, record.context()).unwrap_or_default();
            reply.overwrote = done.overwrote;
        }
        Ok(reply)
    }
}

fn version_of(sibling: &crate::dynamo::version::Sibling) -> Version {
    let value = match &sibling.content {
        Content::Value(bytes) => bytes.clone(),
        Content::Tombstone => Bytes::new(),
    };
    Version {
        write_id: sibling.write_id,
        value,
        meta: sibling.meta.clone(),
        expires_at: sibling.expires_at,
        written_at: sibling.written_at,
    }
}

fn replicas_of(report: &ReplicaReport) -> Replicas {
    Replicas {
        asked: u32::try_from(report.asked).unwrap_or(u32::MAX),
        primaries: report.primaries.clone(),
        fallbacks: report.fallbacks.clone(),
    }
}

/// Who failed and how, in words, to go behind a sentence.
fn failures(report: &ReplicaReport) -> String {
    let mut words = String::new();
    for (node, why) in &report.failed {
        let why = match why {
            ReplicaFailure::Unreachable => "is not reachable",
            ReplicaFailure::Corrupt => "has a damaged copy",
            ReplicaFailure::Unavailable => "is not available",
            ReplicaFailure::WrongLayout => "goes by another layout",
            ReplicaFailure::HintsFull => "keeps no more guest records",
        };
        words.push_str(&format!("; {node} {why}"));
    }
    words
}

/// The failure that a call's error is to the machine.
fn failure(error: &CallError) -> ReplicaFailure {
    match error {
        CallError::Refused(refusal) => failure_of(refusal.code),
        CallError::NotSent(_) | CallError::MaybeDelivered(_) => ReplicaFailure::Unreachable,
    }
}

impl Inner {
    /// Asks a node, which may be this one, for its copy.
    async fn fetch(
        &self,
        node: NodeId,
        namespace: Namespace,
        key: &Key,
        request: Request,
    ) -> Result<(Record, bool), ReplicaFailure> {
        if node == self.id {
            return match self.fetch_own(namespace, key).await {
                Ok(record) => Ok((record, false)),
                Err(StorageError::Corrupt(_)) => Err(ReplicaFailure::Corrupt),
                Err(_) => Err(ReplicaFailure::Unavailable),
            };
        }
        let addr = self.peer_addr(node).ok_or(ReplicaFailure::Unreachable)?;
        let fetch = Fetch { namespace, key: key.clone() };
        let answer = self.peers.call(node, &addr, &fetch, self.head(request), request.deadline).await;
        let reply: FetchReply = answer.map_err(|error| failure(&error))?;
        Ok((reply.record, reply.refilling))
    }

    /// Has a node, which may be this one, keep a record; durable on return.
    async fn store(
        &self,
        node: NodeId,
        namespace: Namespace,
        key: &Key,
        record: &Record,
        guest_of: Vec<NodeId>,
        request: Request,
    ) -> Result<(), ReplicaFailure> {
        if node == self.id {
            let slot = self.slot(Table::Data, namespace, key);
            let stored = self.store_own(&slot, &[], record).await;
            return stored.map_err(|error| failure_of(storage_refusal(&error).code));
        }
        let addr = self.peer_addr(node).ok_or(ReplicaFailure::Unreachable)?;
        let store = Store { namespace, key: key.clone(), record: record.clone(), guest_of };
        let answer = self.peers.call(node, &addr, &store, self.head(request), request.deadline).await;
        answer.map(|StoreReply| ()).map_err(|error| failure(&error))
    }

    fn at(self: &Arc<Self>, moment: Mono) -> BoxFuture<'static, ()> {
        self.io.clock.sleep_until(moment.since_origin())
    }
}

struct GetDriver {
    node: Arc<Inner>,
    namespace: Namespace,
    key: Key,
    request: Request,
    answer: Option<oneshot::Sender<Result<GetDone, GetShortfall>>>,
}

impl GetDriver {
    async fn drive(mut self, mut machine: GetMachine, mut actions: Vec<GetAction>) {
        let mut pending: FuturesUnordered<BoxFuture<'static, GetEvent>> = FuturesUnordered::new();
        loop {
            for action in actions {
                match action {
                    GetAction::Ask(node) => pending.push(self.ask(node)),
                    GetAction::StartHedgeTimer(at) => {
                        let timer = self.node.at(at);
                        pending.push(Box::pin(async move {
                            timer.await;
                            GetEvent::HedgeTimer
                        }));
                    }
                    GetAction::StartDeadline(at) => {
                        let timer = self.node.at(at);
                        pending.push(Box::pin(async move {
                            timer.await;
                            GetEvent::Deadline
                        }));
                    }
                    GetAction::Answer(answer) => {
                        if let Some(asker) = self.answer.take() {
                            let _ = asker.send(answer);
                        }
                    }
                    GetAction::Repair { node, record } => self.repair(node, record),
                    GetAction::Finished => return,
                }
            }
            let Some(event) = pending.next().await else { return };
            actions = machine.on_event(event);
        }
    }

    fn ask(&self, node: NodeId) -> BoxFuture<'static, GetEvent> {
        let (inner, namespace, key, request) =
            (self.node.clone(), self.namespace, self.key.clone(), self.request);
        Box::pin(async move {
            match inner.fetch(node, namespace, &key, request).await {
                Ok((record, refilling)) => GetEvent::Reply { from: node, record, refilling },
                Err(why) => GetEvent::Failed { from: node, why },
            }
        })
    }

    /// Nobody waits for a repair, so it has a task and a deadline of its own.
    fn repair(&self, node: NodeId, record: Record) {
        let (inner, namespace, key) = (self.node.clone(), self.namespace, self.key.clone());
        let deadline = inner.now() + inner.config.timeout;
        let request = Request { deadline, trace_id: self.request.trace_id };
        tokio::spawn(async move {
            let stored = inner.store(node, namespace, &key, &record, Vec::new(), request).await;
            tracing::debug!(%key, %node, ok = stored.is_ok(), "read repair");
        });
    }
}

/// What the answer of a put needs besides its outcome.
type PutAnswer = (Result<PutOutcome, Refusal>, Option<(Record, PutDone)>);

struct PutDriver {
    node: Arc<Inner>,
    namespace: Namespace,
    key: Key,
    request: Request,
    write: Option<(Over, Write)>,
    applied: Option<(Table, Record, PutDone)>,
    local_durable: bool,
    refusal: Option<Refusal>,
    answer: Option<oneshot::Sender<PutAnswer>>,
}

/// What comes back to the driver: an event for the machine, or the result of the local put, which it keeps.
enum PutResult {
    Event(PutEvent),
    Local(Table, Result<Applied, Refusal>),
}

impl PutDriver {
    async fn drive(mut self, mut machine: PutMachine, mut actions: Vec<PutAction>) {
        let mut pending: FuturesUnordered<BoxFuture<'static, PutResult>> = FuturesUnordered::new();
        loop {
            for action in actions {
                match action {
                    PutAction::ApplyLocally { guest, targets } => {
                        if let Some(local) = self.apply(guest, targets) {
                            pending.push(local);
                        }
                    }
                    PutAction::Replicate(node) => pending.push(self.send(node, Vec::new())),
                    PutAction::StoreGuest { node, target } => pending.push(self.send(node, vec![target])),
                    PutAction::NoteTarget(target) => self.note(target),
                    PutAction::StartHintTimer(at) => {
                        let timer = self.node.at(at);
                        pending.push(Box::pin(async move {
                            timer.await;
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
                    self.applied = Some((table, applied.record, applied.done));
                    PutEvent::Applied
                }
                PutResult::Local(_, Err(refusal)) => {
                    self.refusal = Some(refusal);
                    PutEvent::Refused
                }
            };
            actions = machine.on_event(event);
        }
    }

    fn apply(&mut self, guest: bool, targets: Vec<NodeId>) -> Option<BoxFuture<'static, PutResult>> {
        let (over, write) = self.write.take()?;
        let table = if guest { Table::Guest } else { Table::Data };
        let (inner, slot) = (self.node.clone(), self.node.slot(table, self.namespace, &self.key));
        Some(Box::pin(
            async move { PutResult::Local(table, inner.put_own(&slot, &targets, over, write).await) },
        ))
    }

    fn wait_durable(&self, position: crate::storage::LogPosition) -> BoxFuture<'static, PutResult> {
        let inner = self.node.clone();
        Box::pin(async move {
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
        let (inner, namespace, key, request) =
            (self.node.clone(), self.namespace, self.key.clone(), self.request);
        let record = self.applied.as_ref().map(|(_, record, _)| record.clone()).unwrap_or_default();
        Box::pin(async move {
            let stored = inner.store(node, namespace, &key, &record, guest_of, request).await;
            PutResult::Event(match stored {
                Ok(()) => PutEvent::Ack(node),
                Err(why) => PutEvent::Failed { from: node, why },
            })
        })
    }

    fn note(&self, target: NodeId) {
        let Some((table, ..)) = self.applied else { return };
        let (inner, slot) = (self.node.clone(), self.node.slot(table, self.namespace, &self.key));
        tokio::spawn(async move {
            if let Err(error) = inner.note_target(&slot, target).await {
                tracing::warn!(key = %slot.key, %target, %error, "cannot note who lacks the record");
            }
        });
    }

    fn answer(&mut self, outcome: PutOutcome) {
        let Some(asker) = self.answer.take() else { return };
        let outcome = match (outcome, self.refusal.take()) {
            (PutOutcome::NotApplied, Some(refusal)) => Err(refusal),
            (outcome, _) => Ok(outcome),
        };
        // What stands beside the write in this node's copy went to the replicas with it, so whoever has acked
        // holds that too. Without W acks only this node's own disk vouches for it (P6).
        let vouched = self.local_durable || matches!(outcome, Ok(PutOutcome::Applied(_)));
        let applied = self.applied.as_ref().filter(|_| vouched);
        let applied = applied.map(|(_, record, done)| (record.clone(), done.clone()));
        let _ = asker.send((outcome, applied));
    }
}
