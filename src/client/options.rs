//! How a client behaves, and what an operation may ask for besides its key.

use std::time::Duration;

use bytes::Bytes;

use crate::dynamo::version::Meta;
use crate::net::message::{Condition, Context, Durability, Expiry, Get, Put, Quorum, Resolve, Spoken};
use crate::types::{ClusterId, Key, TraceId, WriteId};

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Client ports (`host:port`) through which it finds the cluster. One that answers is enough; the layout names
    /// the others. They stay in use as the last resort.
    pub addrs: Vec<String>,
    /// The cluster that is meant. Left out: that of the first node that answers, for the client's life.
    pub cluster: Option<ClusterId>,
    /// Time for an operation that does not say, tries and pauses included. Default 5 s.
    pub timeout: Duration,
    /// Most connections to one node; a second is opened only when the first is busy. Default 2.
    pub connections_per_node: usize,
    /// Operations on their way at once; further ones wait, and their time runs. Default 1,024.
    pub in_flight_max: usize,
    /// Most tries of one operation, pauses included; at least 1. A write is tried again only while nothing was
    /// applied. Default 8, which with the pauses between them is some 3 s.
    pub tries: u32,
    /// Most rounds of an [`update`](super::Client::update). Default 8.
    pub update_tries: u32,
    /// Protocol versions that it offers. Default: all that this build has.
    pub spoken: Spoken,
}

impl ClientConfig {
    /// The defaults, for these nodes.
    pub fn new<A: Into<String>>(addrs: impl IntoIterator<Item = A>) -> ClientConfig {
        ClientConfig {
            addrs: addrs.into_iter().map(Into::into).collect(),
            cluster: None,
            timeout: Duration::from_secs(5),
            connections_per_node: 2,
            in_flight_max: 1024,
            tries: 8,
            update_tries: 8,
            spoken: Spoken::default(),
        }
    }
}

/// What a read may ask for. The default is the cluster's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Replicas that must answer, 1 to N; left out: a majority.
    pub r: Option<u8>,
    /// Count primaries alone.
    pub strict: bool,
    /// All concurrent values, or the one written last.
    pub resolve: Resolve,
    /// Time for the whole operation; left out: that of the configuration.
    pub timeout: Option<Duration>,
    /// Follows the operation through the nodes; zero: one of its own.
    pub trace_id: TraceId,
}

/// What a write or deletion may ask for. The default is the cluster's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Replicas that must hold it, 1 to N; left out: a majority.
    pub w: Option<u8>,
    /// Replicas that must answer where a write reads first (conditions, deletions without a context).
    pub r: Option<u8>,
    /// Count primaries alone.
    pub strict: bool,
    /// When a replica counts; left out: the node's default, which is when its disk has it.
    pub durability: Option<Durability>,
    /// What it overwrites. Left out: a write nothing, it becomes a sibling of what is there; a deletion what a read
    /// at R sees.
    pub context: Option<Context>,
    /// What must hold for it to be made; leave `context` out then.
    pub condition: Condition,
    /// When the value stops to be there.
    pub expiry: Expiry,
    /// Kept with the value.
    pub meta: Option<Meta>,
    /// Ask for the value as it was stored.
    pub return_record: bool,
    /// Names the operation; left out: 128 random bits. Give the same one to say the same write a second time.
    pub write_id: Option<WriteId>,
    /// Time for the whole operation; left out: that of the configuration.
    pub timeout: Option<Duration>,
    /// Follows the operation through the nodes; zero: one of its own.
    pub trace_id: TraceId,
}

impl ReadOptions {
    pub(super) fn get(&self, key: &Key) -> Get {
        let quorum = Quorum { r: self.r, w: None, strict: self.strict };
        Get { quorum, resolve: self.resolve, ..Get::new(key.clone()) }
    }
}

impl WriteOptions {
    /// Overwrites what the reader of this token saw.
    pub fn replacing(context: &Bytes) -> WriteOptions {
        WriteOptions { context: Some(Context::Token(context.clone())), ..WriteOptions::default() }
    }

    /// A write of `value`, or a deletion when there is none.
    pub(super) fn put(&self, key: &Key, value: Option<Bytes>, write_id: WriteId) -> Put {
        let default = if value.is_none() && self.condition == Condition::None {
            Context::Read
        } else {
            Context::Nothing
        };
        Put {
            value,
            meta: self.meta.clone().map(Box::new),
            expiry: self.expiry,
            context: self.context.clone().unwrap_or(default),
            condition: self.condition.clone(),
            quorum: Quorum { r: self.r, w: self.w, strict: self.strict },
            durability: self.durability,
            return_record: self.return_record,
            ..Put::new(key.clone(), write_id, Bytes::new())
        }
    }
}
