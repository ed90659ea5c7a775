//! The forms that messages had in version 1, to and from those of today.
//!
//! Frozen: a field added here would change what older nodes read.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Condition, Context, Durability, Expiry, PutOutcome, Quorum, RefusalCode, Resolve, unspeakable};
use crate::dynamo::reaping::Fences;
use crate::dynamo::version::{Dot, Meta, Record};
use crate::net::codec::CodecError;
use crate::types::{ActorId, Incarnation, Key, LayoutRef, Namespace, NodeId, Wall, WriteId};

#[derive(Serialize, Deserialize)]
pub(super) struct Refusal {
    code: RefusalCode,
    message: String,
}

impl TryFrom<&super::Refusal> for Refusal {
    type Error = CodecError;
    fn try_from(now: &super::Refusal) -> Result<Refusal, CodecError> {
        Ok(Refusal { code: nearest(now.code), message: now.message.clone() })
    }
}

impl From<Refusal> for super::Refusal {
    fn from(old: Refusal) -> super::Refusal {
        // A code that this version has not is read as it would have been written.
        super::Refusal::new(nearest(old.code), old.message)
    }
}

/// What both newer codes ask the caller to do is nearest to these.
fn nearest(code: RefusalCode) -> RefusalCode {
    match code {
        RefusalCode::Overloaded => RefusalCode::Unavailable,
        RefusalCode::Conflict => RefusalCode::BadRequest,
        code => code,
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Get {
    namespace: Namespace,
    key: Key,
    quorum: Quorum,
}

impl TryFrom<&super::Get> for Get {
    type Error = CodecError;
    fn try_from(now: &super::Get) -> Result<Get, CodecError> {
        if now.resolve != Resolve::Siblings {
            return Err(unspeakable(1, "resolve option"));
        }
        Ok(Get { namespace: now.namespace, key: now.key.clone(), quorum: now.quorum })
    }
}

impl From<Get> for super::Get {
    fn from(old: Get) -> super::Get {
        super::Get { namespace: old.namespace, quorum: old.quorum, ..super::Get::new(old.key) }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Version {
    write_id: WriteId,
    value: Bytes,
    meta: Option<Box<Meta>>,
    expires_at: Option<Wall>,
    written_at: Wall,
}

impl From<&super::Version> for Version {
    fn from(now: &super::Version) -> Version {
        Version {
            write_id: now.write_id,
            value: now.value.clone(),
            meta: now.meta.clone(),
            expires_at: now.expires_at,
            written_at: now.written_at,
        }
    }
}

impl From<Version> for super::Version {
    fn from(old: Version) -> super::Version {
        let actor = ActorId { incarnation: Incarnation(0), epoch: 0 };
        super::Version {
            write_id: old.write_id,
            dot: Dot { actor, counter: 0 },
            value: old.value,
            meta: old.meta,
            expires_at: old.expires_at,
            written_at: old.written_at,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Replicas {
    asked: u32,
    primaries: Vec<NodeId>,
    fallbacks: Vec<NodeId>,
}

impl From<&super::Replicas> for Replicas {
    fn from(now: &super::Replicas) -> Replicas {
        Replicas { asked: now.asked, primaries: now.primaries.clone(), fallbacks: now.fallbacks.clone() }
    }
}

impl From<Replicas> for super::Replicas {
    fn from(old: Replicas) -> super::Replicas {
        super::Replicas {
            asked: old.asked,
            primaries: old.primaries,
            fallbacks: old.fallbacks,
            layout: LayoutRef::default(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct GetReply {
    values: Vec<Version>,
    tombstones: u32,
    expired: u32,
    context: Bytes,
    replicas: Replicas,
}

impl TryFrom<&super::GetReply> for GetReply {
    type Error = CodecError;
    fn try_from(now: &super::GetReply) -> Result<GetReply, CodecError> {
        Ok(GetReply {
            values: now.values.iter().map(Version::from).collect(),
            tombstones: now.tombstones,
            expired: now.expired,
            context: now.context.clone(),
            replicas: Replicas::from(&now.replicas),
        })
    }
}

impl From<GetReply> for super::GetReply {
    fn from(old: GetReply) -> super::GetReply {
        super::GetReply {
            values: old.values.into_iter().map(super::Version::from).collect(),
            hidden: Vec::new(),
            tombstones: old.tombstones,
            expired: old.expired,
            context: old.context,
            replicas: old.replicas.into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Put {
    namespace: Namespace,
    key: Key,
    write_id: WriteId,
    value: Option<Bytes>,
    meta: Option<Box<Meta>>,
    expires_at: Option<Wall>,
    context: Context,
    quorum: Quorum,
    forwarded: bool,
}

impl TryFrom<&super::Put> for Put {
    type Error = CodecError;
    fn try_from(now: &super::Put) -> Result<Put, CodecError> {
        if now.condition != Condition::None {
            return Err(unspeakable(1, "conditional write"));
        }
        if matches!(now.durability, Some(Durability::Interval(_))) {
            return Err(unspeakable(1, "durability option"));
        }
        if now.return_record {
            return Err(unspeakable(1, "return option"));
        }
        let expires_at = match now.expiry {
            Expiry::Never => None,
            Expiry::At(at) => Some(at),
            Expiry::After(_) => return Err(unspeakable(1, "time to live")),
        };
        Ok(Put {
            namespace: now.namespace,
            key: now.key.clone(),
            write_id: now.write_id,
            value: now.value.clone(),
            meta: now.meta.clone(),
            expires_at,
            context: now.context.clone(),
            quorum: now.quorum,
            forwarded: now.forwarded,
        })
    }
}

impl From<Put> for super::Put {
    fn from(old: Put) -> super::Put {
        super::Put {
            namespace: old.namespace,
            key: old.key,
            write_id: old.write_id,
            value: old.value,
            meta: old.meta,
            expiry: old.expires_at.map_or(Expiry::Never, Expiry::At),
            context: old.context,
            condition: Condition::None,
            quorum: old.quorum,
            // All there was.
            durability: Some(Durability::Sync),
            return_record: false,
            forwarded: old.forwarded,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct PutReply {
    outcome: PutOutcome,
    overwrote: Vec<WriteId>,
    siblings: Vec<Version>,
    context: Bytes,
    replicas: Replicas,
}

impl TryFrom<&super::PutReply> for PutReply {
    type Error = CodecError;
    fn try_from(now: &super::PutReply) -> Result<PutReply, CodecError> {
        Ok(PutReply {
            outcome: now.outcome.clone(),
            overwrote: now.overwrote.clone(),
            siblings: now.siblings.iter().map(Version::from).collect(),
            context: now.context.clone(),
            replicas: Replicas::from(&now.replicas),
        })
    }
}

impl From<PutReply> for super::PutReply {
    fn from(old: PutReply) -> super::PutReply {
        super::PutReply {
            outcome: old.outcome,
            dot: None,
            overwrote: old.overwrote,
            siblings: old.siblings.into_iter().map(super::Version::from).collect(),
            written: None,
            context: old.context,
            replicas: old.replicas.into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Store {
    namespace: Namespace,
    key: Key,
    record: Record,
    guest_of: Vec<NodeId>,
}

impl TryFrom<&super::Store> for Store {
    type Error = CodecError;
    fn try_from(now: &super::Store) -> Result<Store, CodecError> {
        // No node of that version has ever voted, so that all fences are zero wherever one is a member.
        let super::Store { namespace, key, record, guest_of, durability: _, fences: _ } = now;
        Ok(Store {
            namespace: *namespace,
            key: key.clone(),
            record: record.clone(),
            guest_of: guest_of.clone(),
        })
    }
}

impl From<Store> for super::Store {
    fn from(old: Store) -> super::Store {
        super::Store {
            namespace: old.namespace,
            key: old.key,
            record: old.record,
            guest_of: old.guest_of,
            durability: Durability::Sync,
            fences: Fences::default(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoreReply;

impl TryFrom<&super::StoreReply> for StoreReply {
    type Error = CodecError;
    fn try_from(now: &super::StoreReply) -> Result<StoreReply, CodecError> {
        match now {
            super::StoreReply::Kept => Ok(StoreReply),
            super::StoreReply::Fenced(_) => Err(unspeakable(1, "fence")),
        }
    }
}

impl From<StoreReply> for super::StoreReply {
    fn from(StoreReply: StoreReply) -> super::StoreReply {
        super::StoreReply::Kept
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Fetch {
    namespace: Namespace,
    key: Key,
}

impl TryFrom<&super::Fetch> for Fetch {
    type Error = CodecError;
    fn try_from(now: &super::Fetch) -> Result<Fetch, CodecError> {
        // A copy that need not be sent may be.
        Ok(Fetch { namespace: now.namespace, key: now.key.clone() })
    }
}

impl From<Fetch> for super::Fetch {
    fn from(old: Fetch) -> super::Fetch {
        super::Fetch { namespace: old.namespace, key: old.key, unless: None }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct FetchReply {
    record: Record,
    refilling: bool,
}

impl TryFrom<&super::FetchReply> for FetchReply {
    type Error = CodecError;
    fn try_from(now: &super::FetchReply) -> Result<FetchReply, CodecError> {
        let record = now.record.clone().ok_or_else(|| unspeakable(1, "answer without the copy"))?;
        Ok(FetchReply { record, refilling: now.refilling })
    }
}

impl From<FetchReply> for super::FetchReply {
    fn from(old: FetchReply) -> super::FetchReply {
        let (record, fences) = (Some(old.record), Fences::default());
        super::FetchReply { record, refilling: old.refilling, fences }
    }
}
