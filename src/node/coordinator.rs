//! Reads and writes of one key: judges the request, builds the machine, passes a put on to who may coordinate it.
//!
//! Not applied is answered only while no dot was made, here or where the put was passed on to: every check stands
//! before the machine starts, and time that is up before that is a refusal too.

use std::future::{poll_fn, ready};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::Instrument;

use super::drivers::{GetDriver, PutDriver, Read};
use super::metrics::{Judged, Operation};
use super::replica::{Fetched, Over, failure_of};
use super::reply::{Written, failures, replicas_of, unknown};
use super::{Inner, Node, Request};
use crate::dynamo::condition::{Expected, judge};
use crate::dynamo::get::{GetDone, GetMachine, GetRequest, OwnCopy, ReplicaFailure, ReplicaReport};
use crate::dynamo::preference::PreferenceList;
use crate::dynamo::put::{PutMachine, PutNotStarted, PutOutcome, PutRequest};
use crate::dynamo::reaping::{Fences, Joint};
use crate::dynamo::version::record::META_BYTES_MAX;
use crate::dynamo::version::{Content, Record, VersionVector, Write};
use crate::io::BoxFuture;
use crate::net::link::CallError;
use crate::net::message::{
    Condition, Context, Durability, Expiry, Fetch, FetchReply, Get, GetReply, INTERVAL_MS_MAX, Put, PutReply,
    Quorum, Refusal, RefusalCode, Store,
};
use crate::storage::Table;
use crate::types::{Key, LayoutRef, Mono, Namespace, NodeId, WriteId};

/// A read is made so often in all while rounds of reaping go through meanwhile.
const READS_MAX: usize = 3;

impl Node {
    /// Reads a key.
    ///
    /// # Errors
    /// When the request makes no sense, or fewer than R replicas answered. Nothing was changed.
    pub async fn get(&self, get: Get, request: Request) -> Result<GetReply, Refusal> {
        self.touch(get.namespace, &get.key, request);
        self.look(get, request).await
    }

    /// As [`Node::get`], but no access of the key.
    ///
    /// # Errors
    /// As [`Node::get`].
    pub async fn look(&self, get: Get, request: Request) -> Result<GetReply, Refusal> {
        self.watch(Operation::Get, request, Box::pin(self.get_unwatched(get, request))).await
    }

    pub(super) async fn get_unwatched(&self, get: Get, request: Request) -> Result<GetReply, Refusal> {
        let (done, layout) = self.read(get.namespace, &get.key, get.quorum, request).await?;
        let replicas = replicas_of(&done.replicas, layout);
        let live = done.record.view(self.inner.wall()).values.len();
        self.inner.metrics.siblings_per_read.enter(live as u64);
        self.get_reply(get.namespace, &get.key, &done.record, get.resolve, replicas)
    }

    /// Writes or deletes a key: coordinates it, or passes it on to a primary.
    ///
    /// # Errors
    /// When no dot was made, anywhere: the write did not happen. Whatever else goes wrong is a reply that says
    /// *unknown*.
    pub async fn put(&self, put: Put, request: Request) -> Result<PutReply, Refusal> {
        self.touch(put.namespace, &put.key, request);
        self.watch(Operation::of(&put), request, Box::pin(self.put_unwatched(put, request))).await
    }

    /// Carries out one operation if there is room for it, and counts how it went.
    pub(super) async fn watch<T: Judged>(
        &self,
        operation: Operation,
        request: Request,
        work: BoxFuture<'_, Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let inner = &self.inner;
        let admitted = inner.admit(request);
        let result = match &admitted {
            Ok(_in_flight) => {
                let span = tracing::debug_span!(
                    "request",
                    node = %inner.id,
                    operation = operation.name(),
                    door = request.door.name(),
                    trace = ?request.trace_id,
                );
                work.instrument(span).await
            }
            Err(refusal) => Err(refusal.clone()),
        };
        let outcome = result.outcome();
        if let Some(why) = result.doubt() {
            inner.tell_of_doubt(operation, request, outcome, why);
        }
        let now = inner.now();
        if admitted.is_ok() {
            drop(admitted);
            inner.done(now);
        }
        inner.metrics.requests(operation, request.door, outcome).enter_time(now.since(request.received));
        result
    }

    pub(super) async fn put_unwatched(&self, put: Put, request: Request) -> Result<PutReply, Refusal> {
        let inner = &self.inner;
        self.check(&put)?;
        let (list, layout) = inner.preference(put.namespace, &put.key);
        let down = inner.down();
        // Who cannot raise its fence cannot hand a write on either; another primary can, and this one takes it then.
        let coordinates = list.is_primary(inner.id) && !inner.is_blocked(list.partition);
        if !coordinates && !put.forwarded {
            let primaries = list.primaries().filter(|node| *node != inner.id && !down.contains(node));
            for primary in primaries.collect::<Vec<_>>() {
                if let Some(forwarded) = self.forward(primary, &put, request).await {
                    return forwarded;
                }
            }
            // No primary took a byte of it: this node may coordinate it itself, as a fallback.
        }
        if !list.is_primary(inner.id) {
            inner.takes_guest(&inner.slot(Table::Guest, put.namespace, &put.key)).await?;
        }
        let (over, seen) = self.over(&put, request).await?;
        let w = self.quorum_size("w", put.quorum.w)?;
        inner.reach(&list, w, put.quorum.strict, request.deadline).await;
        inner.in_time(request)?;
        let machine_request = PutRequest {
            w,
            strict: put.quorum.strict,
            hint_after: if buggify!("hint-early") { Duration::ZERO } else { inner.config.hint_after },
            deadline: request.deadline,
        };
        let down = inner.down();
        let begin =
            |down: &[NodeId]| PutMachine::new(machine_request.clone(), inner.id, &list, down, inner.now());
        let (machine, actions) = begin(&down)
            .or_else(|error| match error {
                // That a node was silent, or flaps, is a reason to ask others, and none to refuse: it may well answer.
                PutNotStarted::TooFewCandidates { .. } => begin(&inner.peers.down()),
                error => Err(error),
            })
            .map_err(|error| match error {
                PutNotStarted::TooFewCandidates { .. } => {
                    Refusal::new(RefusalCode::TooFewReplicas, format!("{error}; nothing was written"))
                }
                PutNotStarted::NotACoordinator => {
                    let message = "no primary of the key is reachable; nothing was written";
                    Refusal::new(RefusalCode::TooFewReplicas, message)
                }
            })?;

        let key = put.key.clone();
        let written = Written {
            namespace: put.namespace,
            key: &key,
            write_id: put.write_id,
            return_record: put.return_record,
            layout,
        };
        // Kept for the case that this node's copy turns out damaged; values are shared, not copied.
        let elsewhere = (!put.forwarded).then(|| put.clone());
        let expires_at = match put.expiry {
            Expiry::Never => None,
            Expiry::At(at) => Some(at),
            Expiry::After(ms) => Some(inner.wall().plus(Duration::from_millis(ms))),
        };
        let content = put.value.map_or(Content::Tombstone, Content::Value);
        let write = Write { write_id: put.write_id, content, meta: put.meta, expires_at };
        let durability = put.durability.unwrap_or(inner.config.durability);
        let (answer, answered) = oneshot::channel();
        let driver = PutDriver {
            node: inner.clone(),
            namespace: put.namespace,
            key: key.clone(),
            request,
            durability,
            layout,
            layouts: list.layouts.len(),
            write: Some((over, write)),
            applied: None,
            local_durable: false,
            refusal: None,
            answer: Some(answer),
        };
        let started = inner.now();
        tokio::spawn(driver.drive(machine, actions).in_current_span());
        // The driver always answers; if it panicked, what happened is not known.
        let (mut outcome, mut applied) = answered.await.unwrap_or_else(|_| {
            let unknown = PutOutcome::Unknown {
                have: 0,
                need: w,
                timed_out: false,
                replicas: ReplicaReport::default(),
            };
            (Ok(unknown), None)
        });
        if let Some((_, done)) = &mut applied {
            // What it read at other replicas it overwrites too, whether or not its own copy had it.
            let elsewhere: Vec<WriteId> =
                seen.into_iter().filter(|id| !done.overwrote.contains(id)).collect();
            done.overwrote.extend(elsewhere);
        }
        if let (Ok(PutOutcome::Applied(_)), Some((_, done))) = (&outcome, &applied) {
            fact!(Acked {
                coordinator: inner.id,
                namespace: put.namespace,
                key: &key,
                write_id: put.write_id,
                dot: done.dot,
                w,
                sync: durability == Durability::Sync,
            });
        }
        match &outcome {
            Ok(PutOutcome::Applied(_)) => {
                inner.metrics.write_quorum_wait.enter_time(inner.now().since(started));
            }
            Ok(PutOutcome::Unknown { .. }) => inner.metrics.write_shortfalls.one(),
            Ok(PutOutcome::NotApplied) | Err(_) => {}
        }
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
        self.put_reply(&written, outcome?, applied)
    }

    /// Reads a key's record at R, and repairs who is behind. Also the layout by which it was read.
    pub(super) async fn read(
        &self,
        namespace: Namespace,
        key: &Key,
        quorum: Quorum,
        request: Request,
    ) -> Result<(GetDone, LayoutRef), Refusal> {
        let inner = &self.inner;
        let r = self.quorum_size("r", quorum.r)?;
        let mut mixed = 0;
        loop {
            let (list, layout) = inner.preference(namespace, key);
            let Some(done) = self.read_by(&list, namespace, key, r, quorum.strict, request).await? else {
                mixed += 1;
                if mixed < READS_MAX {
                    continue;
                }
                let message = "rounds of reaping went through while it was read; nothing is wrong, try again";
                return Err(Refusal::new(RefusalCode::TooFewReplicas, message));
            };
            // Answers that came in under a newer layout are of nodes that need not hold what was written under that.
            if inner.layout_ref() == layout {
                return Ok((done, layout));
            }
        }
    }

    /// Reads a key's record at R by one preference list. None when a round of reaping went through meanwhile: the next time all copies
    /// are from behind it.
    async fn read_by(
        &self,
        list: &PreferenceList,
        namespace: Namespace,
        key: &Key,
        r: usize,
        strict: bool,
        request: Request,
    ) -> Result<Option<GetDone>, Refusal> {
        let inner = &self.inner;
        inner.reach(list, r, strict, request.deadline).await;
        let started = inner.now();
        let machine_request = GetRequest {
            r,
            strict,
            hedge_after: if buggify!("hedge-early") { Duration::ZERO } else { inner.config.hedge_after },
            deadline: request.deadline,
        };
        let down = inner.down();
        let (own, fetching) = self.look_at_own(list, namespace, key).await;
        let mut joint = Joint::default();
        let own = own.map(|(own, fences)| {
            joint.join(fences, inner.votes(inner.id));
            own
        });
        let (machine, actions) = GetMachine::new(machine_request, list, &down, own, started);
        let (answer, answered) = oneshot::channel();
        let driver = GetDriver {
            node: inner.clone(),
            namespace,
            key: key.clone(),
            request,
            own: fetching,
            joint,
            r,
            is_outdated: false,
            answer: Some(answer),
        };
        tokio::spawn(driver.drive(machine, actions).in_current_span());
        let answered = answered.await.map_err(|_| {
            Refusal::new(RefusalCode::Unavailable, "the read was given up inside the node; try again")
        })?;
        match answered {
            Read::Done(done) => {
                inner.metrics.read_quorum_wait.enter_time(inner.now().since(started));
                Ok(Some(done))
            }
            Read::Mixed => {
                point!("read-mixed");
                Ok(None)
            }
            Read::Short(short) => {
                inner.metrics.read_shortfalls.one();
                let why = if short.timed_out { "in time" } else { "at all" };
                let message = format!(
                    "{} of the {} replicas that the read needs answered {why}{}",
                    short.have,
                    short.need,
                    failures(&short.replicas)
                );
                Err(Refusal::new(RefusalCode::TooFewReplicas, message))
            }
        }
    }

    /// This node's own copy, if it is a primary of the key and has it at hand. Nobody waits for the disk here: what is not
    /// there at once is one replica's answer among others.
    async fn look_at_own(
        &self,
        list: &PreferenceList,
        namespace: Namespace,
        key: &Key,
    ) -> (Option<(OwnCopy, Fences)>, Option<BoxFuture<'static, Fetched>>) {
        if !list.is_primary(self.inner.id) {
            return (None, None);
        }
        let (inner, key) = (self.inner.clone(), key.clone());
        let mut fetching: BoxFuture<'static, Fetched> =
            Box::pin(async move { inner.fetch_at_hand(namespace, &key).await });
        match poll_fn(|context| Poll::Ready(fetching.as_mut().poll(context))).await {
            Poll::Ready(Ok(own)) => (Some(own), None),
            Poll::Ready(failed) => (None, Some(Box::pin(ready(failed)))),
            Poll::Pending => (None, Some(fetching)),
        }
    }

    /// Passes a put on to a primary; none when not a byte of it was sent.
    async fn forward(
        &self,
        primary: NodeId,
        put: &Put,
        request: Request,
    ) -> Option<Result<PutReply, Refusal>> {
        let inner = &self.inner;
        point!("put-forwarded");
        let forwarded = Put { forwarded: true, ..put.clone() };
        match inner.call(primary, &forwarded, request).await {
            Ok(reply) => Some(Ok(reply)),
            Err(CallError::Refused(refusal)) => Some(Err(refusal)),
            Err(CallError::NotSent(_)) => None,
            Err(CallError::MaybeDelivered(reason)) => {
                let need = put.quorum.w.map_or(0, u32::from);
                Some(Ok(unknown(0, need, format!("{primary}: {reason}"))))
            }
        }
    }

    /// Judges what can be judged without asking anybody.
    fn check(&self, put: &Put) -> Result<(), Refusal> {
        let bad = |message: String| Err(Refusal::new(RefusalCode::BadRequest, message));
        let too_large = |message: String| Err(Refusal::new(RefusalCode::TooLarge, message));
        let max = self.inner.config.value_len_max;
        match &put.value {
            Some(value) if value.len() > max => {
                return too_large(format!("the value has {} bytes, at most {max} are taken", value.len()));
            }
            None if put.expiry != Expiry::Never => return bad("a deletion cannot expire".to_owned()),
            _ => {}
        }
        if put.expiry == Expiry::After(0) {
            return bad("a time to live of 0 ms: it is at least 1 ms, or left out".to_owned());
        }
        if let Some(Durability::Interval(ms)) = put.durability
            && !(1..=INTERVAL_MS_MAX).contains(&ms)
        {
            return bad(format!("durability interval:{ms}ms: it is 1 to {INTERVAL_MS_MAX} ms"));
        }
        match &put.condition {
            Condition::None if put.context == Context::Read && put.value.is_some() => {
                return bad("only a deletion may read what it overwrites".to_owned());
            }
            Condition::Absent if put.value.is_none() => {
                return bad("a deletion of what must be absent".to_owned());
            }
            Condition::Absent | Condition::Match(_) if put.context != Context::Nothing => {
                return bad(
                    "a write under a condition overwrites what the condition saw: leave its context \
                            `nothing`"
                        .to_owned(),
                );
            }
            _ => {}
        }
        self.quorum_size("w", put.quorum.w)?;
        if put.condition != Condition::None || put.context == Context::Read {
            self.quorum_size("r", put.quorum.r)?;
        }
        match put.meta.as_ref().map(|meta| meta.size_bytes()) {
            Some(bytes) if bytes > META_BYTES_MAX => {
                too_large(format!("the metadata has {bytes} bytes, at most {META_BYTES_MAX} are taken"))
            }
            _ => Ok(()),
        }
    }

    /// What the put overwrites; one under a condition, and a delete without a token, read first. Also the operations that
    /// this read showed and that are overwritten.
    async fn over(&self, put: &Put, request: Request) -> Result<(Over, Vec<WriteId>), Refusal> {
        let expected = match (&put.condition, &put.context) {
            (Condition::Match(token), _) => Expected::Seen(self.unseal(put.namespace, &put.key, token)?),
            (Condition::Absent, _) => Expected::Absent,
            (Condition::None, Context::Nothing) => return Ok((Over::Nothing, Vec::new())),
            (Condition::None, Context::Current) => return Ok((Over::Current, Vec::new())),
            (Condition::None, Context::Token(token)) => {
                return Ok((Over::Seen(self.unseal(put.namespace, &put.key, token)?), Vec::new()));
            }
            (Condition::None, Context::Read) => {
                let (read, _) = self.read(put.namespace, &put.key, put.quorum, request).await?;
                let context = read.record.context();
                return Ok((Over::Seen(context.clone()), covered(&read.record, context)));
            }
        };
        let r = self.quorum_size("r", put.quorum.r)?.max(self.quorum_size("w", put.quorum.w)?);
        let quorum = Quorum { r: Some(u8::try_from(r).unwrap_or(u8::MAX)), ..put.quorum };
        let (read, _) = self.read(put.namespace, &put.key, quorum, request).await?;
        let over: Result<VersionVector, _> = judge(expected, &read.record, self.inner.wall());
        match over {
            Ok(context) => {
                let seen = covered(&read.record, &context);
                Ok((Over::Seen(context), seen))
            }
            Err(unmet) => {
                let message = format!("{unmet}; nothing was written: read it and decide again");
                Err(Refusal::new(RefusalCode::Conflict, message))
            }
        }
    }

    /// A quorum's size: what was asked for, or a majority of N.
    pub(super) fn quorum_size(&self, name: &str, asked: Option<u8>) -> Result<usize, Refusal> {
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
}

/// The operations whose values a context covers.
fn covered(record: &Record, context: &VersionVector) -> Vec<WriteId> {
    let covered = record.siblings().iter().filter(|sibling| context.covers(sibling.dot));
    covered.map(|sibling| sibling.write_id).collect()
}

/// The failure that a call's error is to the machine.
pub(super) fn failure(error: &CallError) -> ReplicaFailure {
    match error {
        CallError::Refused(refusal) => failure_of(refusal.code),
        CallError::NotSent(_) | CallError::MaybeDelivered(_) => ReplicaFailure::Unreachable,
    }
}

impl Inner {
    /// Asks another node for its copy; none in the answer when it is the one of version hash `unless`.
    pub(super) async fn fetch(
        &self,
        node: NodeId,
        fetch: &Fetch,
        request: Request,
    ) -> Result<FetchReply, ReplicaFailure> {
        let answer = self.call(node, fetch, request).await;
        answer.map_err(|error| failure(&error))
    }

    /// Has a primary or a fallback, which may be this node, keep a record; as durable on return as is asked for.
    pub(super) async fn store_at(
        &self,
        node: NodeId,
        store: &Store,
        request: Request,
    ) -> Result<(), ReplicaFailure> {
        if node == self.id {
            let table = if store.guest_of.is_empty() { Table::Data } else { Table::Guest };
            let slot = self.slot(table, store.namespace, &store.key);
            self.takes_guest(&slot).await.map_err(|refusal| failure_of(refusal.code))?;
            let Store { guest_of, record, durability, fences, .. } = store;
            let kept = self.store_own(&slot, guest_of, record, *durability, *fences, None).await;
            return kept.map_err(|why| failure_of(why.into_refusal().code));
        }
        match self.send(node, store, request).await {
            Ok(true) => Ok(()),
            // A later read repairs it, if it has to be.
            Ok(false) => Err(ReplicaFailure::Unavailable),
            Err(error) => Err(failure(&error)),
        }
    }

    pub(super) fn at(self: &std::sync::Arc<Self>, moment: Mono) -> BoxFuture<'static, ()> {
        self.io.clock.sleep_until(moment.since_origin())
    }
}
