//! One operation, tried until it is answered: which node, how long, and what may be tried again.
//!
//! | what a try came to | a read | a write |
//! |---|---|---|
//! | answered | done | done |
//! | refused for good | done | done |
//! | refused, and it passes (overload, too few replicas, …) | another node | another node: nothing was applied |
//! | not a byte left | another node | another node |
//! | no answer | another node | **unknown**, never sent again |
//!
//! After *no answer*, a refusal that passes, or a write that was answered with *unknown*, other nodes are asked before that one for a
//! while (`pool`).
//!
//! When no node is left to try, or an overloaded one asks for time, the operation pauses, each time twice as long and
//! shortened at random, and starts over with the first. A try of a read gets half of the time that is left, so that a
//! silent node does not use up all of it; the only try of a write that may have arrived gets all.

use std::sync::Arc;
use std::time::Duration;

use super::error::passes;
use super::pool::Failed;
use super::routes::{Addr, Need, Target};
use super::{ClientError, Inner};
use crate::dynamo::layout::Layout;
use crate::net::envelope::FrameHead;
use crate::net::message::{GetLayout, LayoutReply, Message, Refusal, RefusalCode};
use crate::types::{Mono, TraceId};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A read's try is not given less than this while there is that much.
const TRY_MIN: Duration = Duration::from_millis(100);
/// After a layout could not be had, operations go on without for this long.
const LAYOUT_PAUSE: Duration = Duration::from_secs(1);

/// Whether an operation may change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// What a try came to.
pub(super) enum Tried<A> {
    Answered(A),
    Refused(Refusal),
    NotSent(String),
    /// A node of another cluster is there: nothing was sent.
    OtherCluster(String),
    NoAnswer(String),
    Unspeakable(String),
}

/// When an operation must be over, and what it is followed by.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) deadline: Mono,
    pub(super) trace_id: TraceId,
}

/// Where an operation stands between its tries.
pub(super) struct Tries {
    left: u32,
    pause: Duration,
    /// Nodes that this operation has no use for until it has paused.
    pub(super) avoid: Vec<Addr>,
    /// What the last try came to.
    pub(super) last: ClientError,
}

impl Tries {
    pub(super) fn new(tries: u32) -> Tries {
        let last = ClientError::Unreachable("there was no time to try".to_owned());
        Tries { left: tries.max(1), pause: PAUSE_MIN, avoid: Vec::new(), last }
    }

    /// Counts a try; false when there is none left.
    pub(super) fn another(&mut self) -> bool {
        let another = self.left > 0;
        self.left = self.left.saturating_sub(1);
        another
    }
}

impl Inner {
    pub(super) fn asked(&self, timeout: Option<Duration>, trace_id: TraceId) -> Asked {
        let trace_id = if trace_id == TraceId::default() { self.pool.trace_id() } else { trace_id };
        Asked { deadline: self.pool.now() + timeout.unwrap_or(self.config.timeout), trace_id }
    }

    /// Carries out one operation.
    pub(super) async fn run<A: Message>(
        &self,
        kind: Kind,
        target: Target<'_>,
        request: &impl Message,
        asked: Asked,
    ) -> Result<A, ClientError> {
        self.run_told(kind, target, request, asked).await.map(|(answer, _)| answer)
    }

    /// The same, and who has answered.
    pub(super) async fn run_told<A: Message>(
        &self,
        kind: Kind,
        target: Target<'_>,
        request: &impl Message,
        asked: Asked,
    ) -> Result<(A, Addr), ClientError> {
        if self.config.addrs.is_empty() {
            return Err(ClientError::Invalid("the client has no address to go to".to_owned()));
        }
        let _room = self.room(asked).await?;
        if !matches!(target, Target::Node(_)) {
            self.see_to_layout(asked).await;
        }
        let mut tries = Tries::new(self.config.tries);
        while tries.another() {
            let candidates = self.routes.candidates(target);
            let Some(addr) = self.pool.pick(&candidates, &tries.avoid) else {
                if let Some(unreached) = self.pool.unreached(&candidates)
                    && tries.avoid.is_empty()
                {
                    tries.last = unreached;
                }
                self.pause(&mut tries, asked).await?;
                continue;
            };
            let limit = self.limit(kind, asked);
            tries.last = match self.try_at(addr, request, asked, limit).await {
                Tried::Answered(answer) => return Ok((answer, addr.clone())),
                Tried::Unspeakable(reason) => return Err(ClientError::Invalid(reason)),
                Tried::Refused(refusal) if passes(refusal.code) => {
                    self.refused_for_now(addr, &refusal, &mut tries, asked).await?
                }
                Tried::Refused(refusal) => return Err(ClientError::Refused(refusal)),
                Tried::NoAnswer(reason) if kind == Kind::Write => return Err(ClientError::Unknown(reason)),
                Tried::NotSent(reason) | Tried::NoAnswer(reason) => {
                    tries.avoid.push(addr.clone());
                    ClientError::Unreachable(reason)
                }
                Tried::OtherCluster(reason) => {
                    tries.avoid.push(addr.clone());
                    // As long as another node may answer it is no reason to give up.
                    self.pool.unreached(&candidates).unwrap_or(ClientError::Unreachable(reason))
                }
            };
        }
        Err(tries.last)
    }

    /// What a refusal that passes means for the tries that are left.
    pub(super) async fn refused_for_now(
        &self,
        addr: &Addr,
        refusal: &Refusal,
        tries: &mut Tries,
        asked: Asked,
    ) -> Result<ClientError, ClientError> {
        let refused = ClientError::Refused(refusal.clone());
        if refusal.code != RefusalCode::WrongLayout {
            self.pool.doubt(addr);
        }
        match refusal.code {
            // The same node again, and the right one this time.
            RefusalCode::WrongLayout => {
                self.adopt(refusal.layouts.clone());
            }
            RefusalCode::Overloaded => {
                tries.last = refused.clone();
                tries.avoid.push(addr.clone());
                let after = Duration::from_millis(refusal.retry_after_ms.unwrap_or(0).into());
                // An overloaded cluster is not helped by a client that goes on to its next node at once.
                let pause = self.pool.jittered(after.clamp(PAUSE_MIN, PAUSE_MAX));
                self.sleep(pause, tries, asked).await?;
            }
            _ => tries.avoid.push(addr.clone()),
        }
        Ok(refused)
    }

    /// Waits before all nodes are tried again.
    ///
    /// # Errors
    /// What the last try came to, when no time would be left.
    pub(super) async fn pause(&self, tries: &mut Tries, asked: Asked) -> Result<(), ClientError> {
        let pause = self.pool.jittered(tries.pause);
        tries.pause = (tries.pause * 2).min(PAUSE_MAX);
        tries.avoid.clear();
        self.sleep(pause, tries, asked).await
    }

    async fn sleep(&self, pause: Duration, tries: &Tries, asked: Asked) -> Result<(), ClientError> {
        let until = self.pool.now() + pause;
        if until >= asked.deadline || tries.left == 0 {
            return Err(tries.last.clone());
        }
        self.pool.sleep_until(until).await;
        Ok(())
    }

    /// When a try that begins now is given up.
    pub(super) fn limit(&self, kind: Kind, asked: Asked) -> Mono {
        let now = self.pool.now();
        match kind {
            Kind::Write => asked.deadline,
            Kind::Read => (now + (asked.deadline.since(now) / 2).max(TRY_MIN)).min(asked.deadline),
        }
    }

    /// One try at one node.
    pub(super) async fn try_at<A: Message>(
        &self,
        addr: &Addr,
        request: &impl Message,
        asked: Asked,
        limit: Mono,
    ) -> Tried<A> {
        let head =
            FrameHead { layout: self.routes.reference(), trace_id: asked.trace_id, ..FrameHead::default() };
        let frame = match self.pool.exchange(addr, |head| request.to_frame(head), head, limit).await {
            Ok(frame) => frame,
            Err(Failed::Unspeakable(reason)) => return Tried::Unspeakable(reason),
            Err(Failed::NotSent(reason)) => return Tried::NotSent(reason),
            Err(Failed::OtherCluster(reason)) => return Tried::OtherCluster(reason),
            Err(Failed::NoAnswer(reason)) => return Tried::NoAnswer(reason),
        };
        self.routes.hear(frame.head.layout);
        let malformed = |error| Tried::NoAnswer(format!("{addr}: unreadable answer: {error}"));
        if frame.head.kind == Refusal::KIND {
            return Refusal::from_frame(&frame).map_or_else(malformed, Tried::Refused);
        }
        A::from_frame(&frame).map_or_else(malformed, Tried::Answered)
    }

    /// Room among the operations on their way.
    pub(super) async fn room(&self, asked: Asked) -> Result<tokio::sync::SemaphorePermit<'_>, ClientError> {
        if let Ok(room) = self.room.try_acquire() {
            return Ok(room);
        }
        tokio::select! {
            biased;
            room = self.room.acquire() => room.map_err(|_| ClientError::Invalid("closed".to_owned())),
            () = self.pool.sleep_until(asked.deadline) => Err(ClientError::Unreachable(format!(
                "{} operations are on their way and none has ended in time", self.config.in_flight_max
            ))),
        }
    }

    /// Asks for the layout when none is known, or a newer one was heard of. One operation does, at most once a second
    /// in vain; without a layout all goes through the configured addresses.
    pub(super) async fn see_to_layout(&self, asked: Asked) {
        let _asking = match self.routes.needs_layout() {
            Need::Nothing => return,
            Need::First => self.asking.lock().await,
            Need::Newer => match self.asking.try_lock() {
                Ok(asking) => asking,
                Err(_) => return,
            },
        };
        if self.routes.needs_layout() == Need::Nothing || self.pool.now() < self.layout_not_before.get() {
            return;
        }
        let addrs = self.routes.all();
        let mut avoid = Vec::new();
        while let Some(addr) = self.pool.pick(&addrs, &avoid) {
            let limit = self.limit(Kind::Read, asked);
            if let Tried::Answered(LayoutReply { active }) = self.try_at(addr, &GetLayout, asked, limit).await
            {
                self.adopt(active);
                // A node that is itself behind may have answered.
                if self.routes.needs_layout() == Need::Nothing {
                    return;
                }
            }
            avoid.push(addr.clone());
        }
        self.layout_not_before.set(self.pool.now() + LAYOUT_PAUSE);
    }

    pub(super) fn adopt(&self, active: Vec<Arc<Layout>>) {
        self.routes.adopt(active);
        self.pool.keep(&self.routes.all());
    }
}
