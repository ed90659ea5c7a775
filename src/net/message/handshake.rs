//! How a connection begins, and how a request or a whole connection is refused.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bounded::up_to;
use super::{VERSION, VERSION_MIN};
use crate::dynamo::layout::Layout;
use crate::dynamo::layout::history::ACTIVE_MAX;
use crate::net::codec::CodecError;
use crate::net::parts::FEATURE_PARTS;
use crate::types::{ClusterId, LayoutRef, NodeId};

/// The feature bits that this build has.
pub const FEATURES: u64 = FEATURE_PARTS;

/// What one side of a connection offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    /// Oldest protocol version.
    pub version_min: u8,
    /// Newest.
    pub version_max: u8,
    /// Feature bits.
    pub features: u64,
}

impl Default for Spoken {
    fn default() -> Spoken {
        Spoken { version_min: VERSION_MIN, version_max: VERSION, features: FEATURES }
    }
}

impl Spoken {
    /// The newest version that this side and the caller both speak.
    pub fn common(&self, hello: &Hello) -> Option<u8> {
        let newest = self.version_max.min(hello.version_max);
        (newest >= self.version_min.max(hello.version_min)).then_some(newest)
    }
}

/// First bytes of a connection's first body: `RDOV`.
pub const MAGIC: [u8; 4] = *b"RDOV";

/// How a connection proves who it is. A list is offered; one is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthMethod {
    /// No proof.
    None,
}

/// The first thing said on a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// Oldest protocol version that the caller speaks.
    pub version_min: u8,
    /// Newest.
    pub version_max: u8,
    /// Feature bits that the caller would use.
    pub features: u64,
    /// Methods that the caller can prove itself by.
    pub auth: Vec<AuthMethod>,
    /// The cluster that the caller means; a client may not know it yet.
    pub cluster: Option<ClusterId>,
    /// The caller, if it is a node.
    pub node: Option<NodeId>,
}

/// The handshake's good end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both go on with: the newest that both speak.
    pub version: u8,
    /// The feature bits that both go on with: those that both have.
    pub features: u64,
    /// The method that was accepted.
    pub auth: AuthMethod,
    /// The node's cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The layout that the node goes by.
    pub layout: LayoutRef,
}

/// Why something was refused. Each has its action: fix the request, ask again later, or stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The request is malformed or its values make no sense. Fix it.
    BadRequest,
    /// The operation is not known to this node, or not in the connection's version. Ask another version of it.
    UnknownOperation,
    /// No common protocol version.
    UnsupportedVersion,
    /// No common way to prove who one is.
    UnsupportedAuth,
    /// The caller means another cluster.
    WrongCluster,
    /// The caller goes by another layout; the refusal carries those of the node (since version 2).
    WrongLayout,
    /// Key, value or metadata are too large.
    TooLarge,
    /// The context token is damaged, of another key or of another cluster.
    BadToken,
    /// The key has too many concurrent values. Read it and write back with its context.
    TooManySiblings,
    /// Too few replicas are reachable or answered. Nothing was changed; try again.
    TooFewReplicas,
    /// The node is stopping, or its disk is stalled. Nothing was changed; try again, elsewhere first.
    Unavailable,
    /// The disk is full. Nothing was changed.
    DiskFull,
    /// This node holds a copy that it cannot read.
    Corrupt,
    /// No more guest records are taken here.
    HintsFull,
    /// The condition of a conditional write does not hold: nothing was changed. Read, decide again. Since
    /// version 2.
    Conflict,
    /// The node has more to do than it can do in time. Nothing was changed; try again after `retry_after`. Since
    /// version 2, before it `Unavailable`.
    Overloaded,
}

/// A request, or a whole connection, was refused; what was asked for did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what happened and what to do.
    pub message: String,
    /// Milliseconds after which it may be worth asking again; only of refusals that pass.
    pub retry_after_ms: Option<u32>,
    /// `WrongLayout` alone: the layouts that are active at the node, newest first.
    #[serde(deserialize_with = "up_to::<_, _, ACTIVE_MAX>")]
    pub layouts: Vec<Arc<Layout>>,
}

impl From<CodecError> for Refusal {
    /// What a request that cannot be read is answered.
    fn from(error: CodecError) -> Refusal {
        let code = match error {
            CodecError::TooLarge(_) => RefusalCode::TooLarge,
            _ => RefusalCode::BadRequest,
        };
        Refusal::new(code, error.to_string())
    }
}

impl Refusal {
    /// A refusal with these words.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), retry_after_ms: None, layouts: Vec::new() }
    }

    /// The same with a hint when to ask again.
    pub fn with_retry_after(self, after: Duration) -> Refusal {
        let retry_after_ms = Some(u32::try_from(after.as_millis()).unwrap_or(u32::MAX));
        Refusal { retry_after_ms, ..self }
    }
}
