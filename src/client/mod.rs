//! The Rust client: reads and writes over the binary API.
//!
//! Takes network, clock and addresses by value like the node, so it runs under the simulator too. It keeps one
//! link to the node it talks to and goes on to the next address when that one cannot be reached.
//!
//! What is sent again and what is not: a read always; a write only while not a byte of it was sent. A write that
//! may have arrived and brought no answer is [`ClientError::Unknown`]: it may be read later, or never.
//!
//! Not yet: a pool, routing by layout, batch, scan, helpers to resolve siblings.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::io::{Clock, Net};
use crate::net::envelope::FrameHead;
use crate::net::link::{CallError, Link, OpenError, hello};
use crate::net::message::{
    Context, Get, GetReply, Message, Put, PutOutcome, PutReply, Quorum, Refusal, Spoken,
};
use crate::types::{Key, Mono, WriteId};

/// Pause before a read is tried again: where every address refuses at once, the next try would too.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Why an operation has no result, by what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The node refused: the operation did not happen. The refusal says whether to fix it or to try again.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// No node could be reached: the operation did not happen. Try again.
    #[error("no node can be reached: {0}")]
    Unreachable(String),
    /// A write was sent, and what became of it is not known: it may be there now, later, or never. Read it, or
    /// write it again with the same id.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Client ports to try, in this order.
    pub addrs: Vec<String>,
    /// Time for a whole operation. Default 5 s.
    pub timeout: Duration,
}

/// A client of one cluster. Operations may run at once; they share one link.
pub struct Client {
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    config: ClientConfig,
    link: Mutex<(usize, Option<Arc<Link>>)>,
}

/// A value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteRequest {
    /// The key.
    pub key: Key,
    /// 128 random bits that name the operation.
    pub write_id: WriteId,
    /// The value; none deletes.
    pub value: Option<Bytes>,
    /// What it overwrites.
    pub context: Context,
    /// Quorum wanted.
    pub quorum: Quorum,
}

impl Client {
    /// A client that will connect when first used.
    pub fn new(net: Arc<dyn Net>, clock: Arc<dyn Clock>, config: ClientConfig) -> Client {
        Client { net, clock, config, link: Mutex::new((0, None)) }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// `Refused` or `Unreachable`; a read changes nothing.
    pub async fn get(&self, key: &Key, quorum: Quorum) -> Result<GetReply, ClientError> {
        let deadline = self.deadline();
        let get = Get { quorum, ..Get::new(key.clone()) };
        loop {
            match self.call(&get, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(CallError::Refused(refusal)) => return Err(ClientError::Refused(refusal)),
                Err(CallError::NotSent(reason) | CallError::MaybeDelivered(reason)) => {
                    let again = self.now() + RETRY_PAUSE;
                    if again >= deadline {
                        return Err(ClientError::Unreachable(reason));
                    }
                    self.clock.sleep_until(again.since_origin()).await;
                }
            }
        }
    }

    /// Writes or deletes a key.
    ///
    /// # Errors
    /// `Refused` and `Unreachable` when it did not happen, `Unknown` when nobody can say.
    pub async fn write(&self, write: WriteRequest) -> Result<PutReply, ClientError> {
        let deadline = self.deadline();
        let put = Put {
            value: write.value,
            context: write.context,
            quorum: write.quorum,
            ..Put::new(write.key, write.write_id, Bytes::new())
        };
        let reply: PutReply = match self.call(&put, deadline).await {
            Ok(reply) => reply,
            Err(CallError::Refused(refusal)) => return Err(ClientError::Refused(refusal)),
            Err(CallError::NotSent(reason)) => return Err(ClientError::Unreachable(reason)),
            Err(CallError::MaybeDelivered(reason)) => return Err(ClientError::Unknown(reason)),
        };
        match reply.outcome {
            PutOutcome::Applied => Ok(reply),
            PutOutcome::Unknown { have, need, reason } => {
                Err(ClientError::Unknown(format!("{have} of {need} replicas have it; {reason}")))
            }
        }
    }

    fn now(&self) -> Mono {
        Mono::from_origin(self.clock.mono())
    }

    fn deadline(&self) -> Mono {
        self.now() + self.config.timeout
    }

    /// One try over the link that stands, or over the first address that takes a connection.
    async fn call<A: Message>(&self, request: &impl Message, deadline: Mono) -> Result<A, CallError> {
        let link = self.link(deadline).await.map_err(|error| CallError::NotSent(error.to_string()))?;
        let answer = link.call(self.clock.as_ref(), request, FrameHead::default(), deadline).await;
        if matches!(answer, Err(CallError::NotSent(_) | CallError::MaybeDelivered(_))) {
            let mut current = self.link.lock().unwrap_or_else(PoisonError::into_inner);
            if current.1.as_ref().is_some_and(|standing| Arc::ptr_eq(standing, &link)) {
                current.1 = None;
                current.0 += 1;
            }
        }
        answer
    }

    async fn link(&self, deadline: Mono) -> Result<Arc<Link>, OpenError> {
        let first = {
            let current = self.link.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(link) = current.1.as_ref().filter(|link| !link.is_broken()) {
                return Ok(link.clone());
            }
            current.0
        };
        let count = self.config.addrs.len();
        let mut failed = OpenError::TimedOut { addr: "no address".to_owned() };
        for turn in 0..count {
            let at = (first + turn) % count;
            let addr = &self.config.addrs[at];
            // Leave time for the other addresses: a cut link hangs until its limit.
            let left = deadline.since(self.now()) / u32::try_from(count - turn).unwrap_or(u32::MAX);
            let limit = self.now() + left;
            match Link::open(
                self.net.as_ref(),
                &self.clock,
                addr,
                &hello(Spoken::default(), None, None),
                limit,
            )
            .await
            {
                Ok(link) => {
                    let link = Arc::new(link);
                    let mut current = self.link.lock().unwrap_or_else(PoisonError::into_inner);
                    *current = (at, Some(link.clone()));
                    return Ok(link);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}
