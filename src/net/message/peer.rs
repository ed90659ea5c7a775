//! What nodes ask of each other, besides passing on a put.

use serde::{Deserialize, Serialize};

use super::options::Durability;
use crate::dynamo::version::Record;
use crate::types::{Key, Namespace, NodeId};

/// A node asks another for its copy of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
}

/// A replica's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReply {
    /// Empty when it has none.
    pub record: Record,
    /// Whether it has lost data and not refilled since.
    pub refilling: bool,
}

/// A node gives another a record to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// Keyspace.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// All siblings with their context.
    pub record: Record,
    /// The primaries to keep it for; empty when the receiver is a primary itself.
    pub guest_of: Vec<NodeId>,
    /// When it is answered. Version 1 knows `Sync` alone, which is never less.
    pub durability: Durability,
}

/// The record is as durable there as was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReply;
