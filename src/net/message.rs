//! What is said: one struct a kind, and the table of kinds.
//!
//! A frame's kind names its body. Kinds below 0x0100 are the handshake's, 0x01xx is said by clients to any
//! node, 0x02xx by nodes to each other; an answer's kind is its request's with the highest bit set. Numbers are
//! never used again for something else.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::envelope::{Frame, FrameHead};
use crate::dynamo::layout::Layout;
use crate::dynamo::version::{Meta, Record};
use crate::types::{ClusterId, Key, LayoutRef, Namespace, NodeId, Wall, WriteId};

/// First bytes of a connection's first body: `RDOV`.
pub const MAGIC: [u8; 4] = *b"RDOV";

/// A body with its kind.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The frame kind that carries it.
    const KIND: u16;

    /// The message as a frame.
    ///
    /// # Errors
    /// When it is longer than a body may be.
    fn to_frame(&self, head: FrameHead) -> Result<Frame, CodecError> {
        let mut body = Vec::new();
        codec::encode_into(self, &mut body)?;
        if body.len() > codec::BODY_LEN_MAX {
            return Err(CodecError::Unencodable(format!("{} bytes are more than a frame holds", body.len())));
        }
        Ok(Frame { head: FrameHead { kind: Self::KIND, ..head }, body: body.into() })
    }

    /// The message that a frame carries.
    ///
    /// # Errors
    /// When the frame is of another kind or its body is malformed.
    fn from_frame(frame: &Frame) -> Result<Self, CodecError> {
        if frame.head.kind != Self::KIND {
            let (got, want) = (frame.head.kind, Self::KIND);
            return Err(CodecError::Malformed(format!("kind {got:#06x} where {want:#06x} is meant")));
        }
        codec::decode(&frame.body)
    }
}

macro_rules! messages {
    ($($kind:literal $name:ident;)*) => {
        $(impl Message for $name { const KIND: u16 = $kind; })*

        /// Every kind with the name of its body, for log lines.
        pub const KINDS: &[(u16, &str)] = &[$(($kind, stringify!($name)),)*];
    };
}

messages! {
    0x0001 Hello;
    0x8001 Welcome;
    0x8002 Refusal;
    0x0101 Get;
    0x8101 GetReply;
    0x0102 Put;
    0x8102 PutReply;
    0x0103 GetLayout;
    0x8103 LayoutReply;
    0x0104 Ping;
    0x8104 Pong;
    0x0201 Fetch;
    0x8201 FetchReply;
    0x0202 Store;
    0x8202 StoreReply;
}

/// The name of a kind, for log lines.
pub fn kind_name(kind: u16) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("unknown", |(_, name)| name)
}

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
    /// Feature bits that the caller would use; none yet.
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
    /// The version that both go on with.
    pub version: u8,
    /// The feature bits that both go on with.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The request is malformed or its values make no sense. Fix it.
    BadRequest,
    /// The operation is not known to this node. Ask another version of it.
    UnknownOperation,
    /// No common protocol version.
    UnsupportedVersion,
    /// No common way to prove who one is.
    UnsupportedAuth,
    /// The caller means another cluster.
    WrongCluster,
    /// The caller goes by another layout; it fetches the layout and goes on with it.
    WrongLayout,
    /// Key, value or metadata are too large.
    TooLarge,
    /// The context token is damaged, of another key or of another cluster.
    BadToken,
    /// The key has too many concurrent values. Read it and write back with its context.
    TooManySiblings,
    /// Too few replicas are reachable or answered. Nothing was changed; try again.
    TooFewReplicas,
    /// The node is busy, stopping, or its disk is stalled. Nothing was changed; try again later.
    Unavailable,
    /// The disk is full. Nothing was changed.
    DiskFull,
    /// This node holds a copy that it cannot read.
    Corrupt,
    /// No more guest records are taken here.
    HintsFull,
}

/// A request, or a whole connection, was refused; what was asked for did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what happened and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with these words.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

/// What a request wants of the quorum; what is left out is the node's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Answers (reads) needed, 1 to N.
    pub r: Option<u8>,
    /// Durable copies (writes) needed, 1 to N.
    pub w: Option<u8>,
    /// Count primaries alone.
    pub strict: bool,
}

/// Reads a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Keyspace; 0.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// Quorum wanted.
    pub quorum: Quorum,
}

/// One value of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The operation that wrote it.
    pub write_id: WriteId,
    /// Its bytes.
    pub value: Bytes,
    /// What its writer said about it.
    pub meta: Option<Box<Meta>>,
    /// When it expires.
    pub expires_at: Option<Wall>,
    /// When it was written, by its coordinator's clock.
    pub written_at: Wall,
}

/// How the replicas did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// Nodes asked.
    pub asked: u32,
    /// Primaries that answered (reads) or hold it durably (writes).
    pub primaries: Vec<NodeId>,
    /// Fallbacks that did.
    pub fallbacks: Vec<NodeId>,
}

/// All concurrent values of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetReply {
    /// The live values; none when the key does not exist.
    pub values: Vec<Version>,
    /// Tombstones among the siblings.
    pub tombstones: u32,
    /// Expired siblings.
    pub expired: u32,
    /// Covers everything returned here, and what it overwrote. Give it to the put that replaces these values.
    pub context: Bytes,
    /// Who answered.
    pub replicas: Replicas,
}

/// What a write says it overwrites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Context {
    /// Nothing: a new sibling.
    Nothing,
    /// What the reader of this token had seen.
    Token(Bytes),
    /// Whatever the coordinator holds.
    Current,
    /// Deletes only: read first, at R, and delete what that read saw.
    Read,
}

/// Writes or deletes a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Keyspace; 0.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// The operation's id, 128 random bits. The same id sent twice is one write to its readers.
    pub write_id: WriteId,
    /// The value; none deletes.
    pub value: Option<Bytes>,
    /// Kept with the value.
    pub meta: Option<Box<Meta>>,
    /// When it expires.
    pub expires_at: Option<Wall>,
    /// What it overwrites.
    pub context: Context,
    /// Quorum wanted.
    pub quorum: Quorum,
    /// Set by a node that passes the request on, so that nobody passes it on again.
    pub forwarded: bool,
}

/// How a write ended; a write that did not happen is answered with a [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutOutcome {
    /// W replicas hold it durably.
    Applied,
    /// It exists somewhere; whether W replicas hold it is not known. It must not be taken for failed.
    Unknown {
        /// Replicas known to hold it.
        have: u32,
        /// Replicas needed.
        need: u32,
        /// For people.
        reason: String,
    },
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutReply {
    /// Applied or unknown.
    pub outcome: PutOutcome,
    /// The operations whose values it overwrote at the coordinator.
    pub overwrote: Vec<WriteId>,
    /// Every other live value that stands beside it now.
    pub siblings: Vec<Version>,
    /// Covers the write and every sibling named here; empty when the coordinator cannot say.
    pub context: Bytes,
    /// Who holds it.
    pub replicas: Replicas,
}

/// Asks for the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLayout;

/// The layouts that are active at the node, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayoutReply {
    /// Newest first.
    pub active: Vec<Layout>,
}

/// Asks for a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping;

/// Gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong;

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
}

/// The record is durable there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReply;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_has_two_meanings_and_answers_mirror_requests() {
        let mut kinds: Vec<u16> = KINDS.iter().map(|(kind, _)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), KINDS.len());
        for (kind, name) in KINDS.iter().filter(|(kind, _)| kind & 0x8000 == 0) {
            assert!(kinds.contains(&(kind | 0x8000)), "{name} has no answer");
        }
    }

    /// The vectors of docs/PROTOCOL.md: what is written must not change under the same version.
    #[test]
    fn frames_have_the_bytes_that_the_protocol_page_shows() {
        let head = FrameHead {
            version: 1,
            request_id: crate::types::RequestId(1),
            remaining_ms: 5000,
            ..FrameHead::default()
        };
        let hex = |frame: Frame| {
            frame.encode().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join("")
        };
        let hello = crate::net::link::hello(None, None);
        let get = Get {
            namespace: Namespace(0),
            key: Key::new(&b"dove"[..]).unwrap(),
            quorum: Quorum { r: Some(2), w: None, strict: false },
        };
        let put = Put {
            namespace: Namespace(0),
            key: Key::new(&b"dove"[..]).unwrap(),
            write_id: WriteId(7),
            value: Some(Bytes::from_static(b"coo")),
            meta: None,
            expires_at: None,
            context: Context::Nothing,
            quorum: Quorum::default(),
            forwarded: false,
        };
        let page = include_str!("../../docs/PROTOCOL.md");
        for frame in [hello.to_frame(head), get.to_frame(head), put.to_frame(head)] {
            let frame = hex(frame.unwrap());
            assert!(page.contains(&frame), "docs/PROTOCOL.md does not show {frame}");
        }
    }

    #[test]
    fn a_message_is_read_only_as_its_own_kind() {
        let ping = Ping.to_frame(FrameHead::default()).unwrap();
        assert_eq!(Ping::from_frame(&ping), Ok(Ping));
        assert!(Pong::from_frame(&ping).is_err());
    }
}
