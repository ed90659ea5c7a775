//! What is said: one struct a kind, and the table of kinds.
//!
//! A frame's kind names its body. Kinds below 0x0100 are the connection's own, 0x01xx is said by clients to any
//! node, 0x02xx by nodes to each other; an answer's kind is its request's with the highest bit set. Numbers are
//! never used again for something else.
//!
//! | file | what it holds |
//! |---|---|
//! | `handshake` | Hello, Welcome, Refusal, and the parts of a large message |
//! | `options` | what a request may ask for besides its key: quorum, context, condition, expiry, … |
//! | `client` | the operations: get, put and delete, batches, scan, layout, ping, status |
//! | `peer` | what nodes ask of each other |
//! | `look` | what is asked by who looks into a cluster |
//! | `bounded` | lists that are refused at the first item too many |
//! | `v1` | the forms of version 1, where they differ |
//!
//! # Versions
//!
//! The structs are those of the newest version, [`VERSION`]. A node reads and writes the one before it too: a
//! message that looked different then has its old form in `v1`, and the frame's version says which one its body
//! is. What the old form cannot say is not said: such a request is refused before anything is sent
//! ([`CodecError::Unencodable`]), and what an old answer leaves out is filled with what it meant then. Hello,
//! Welcome and a Refusal in their place have the form of version 1 for ever, because no version is agreed on yet.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, CodecError};
use super::envelope::{Frame, FrameHead};

mod bounded;
mod client;
mod handshake;
#[cfg(test)]
mod hashes;
mod look;
mod options;
mod peer;
#[cfg(test)]
mod peer_vectors;
#[cfg(test)]
mod tests;
mod v1;
#[cfg(test)]
mod vectors;

pub use client::{
    BATCH_ITEMS_MAX, ChangeMembers, ChangeMembersReply, Get, GetLayout, GetReply, Hidden, HiddenWhy, HintWhy,
    Hints, HintsFor, HintsReply, LayoutReply, MultiGet, MultiGetReply, MultiPut, MultiPutReply, PeerDown,
    PeerState, PeerView, Ping, Pong, Put, PutOutcome, PutReply, REAP_AGAINST_MAX, REAP_ROUNDS_MAX, ReapRound,
    Reaping, ReapingReply, Replicas, SCAN_ITEMS_MAX, Scan, ScanItem, ScanReply, Status, StatusReply, Version,
};
pub use handshake::{AuthMethod, FEATURES, Hello, MAGIC, Refusal, RefusalCode, Spoken, Welcome};
pub use look::{
    Compared, CopyView, Ended, Explain, ExplainReply, HeldCopy, Inspect, InspectReply, MemberView, Repair,
    RepairReply, SiblingView, TOLD_MAX, TreeView, Trees, TreesReply, WORDS_MAX,
};
pub use options::{Condition, Context, Durability, Expiry, INTERVAL_MS_MAX, Order, Quorum, Resolve};
pub use peer::{
    AskFences, AskFencesReply, AskTransfers, AskTransfersReply, Commit, CommitReply, DROPPED_MAX, Fetch,
    FetchMany, FetchManyReply, FetchReply, Gossip, GossipReply, HeldEntry, HeldKey, Join, JoinReply,
    LISTED_MAX, LeafKeys, LeafKeysReply, OfferLayouts, OfferLayoutsReply, ReapKey, ScanKeys, ScanKeysReply,
    Store, StoreReply, TreeHashes, TreeHashesReply, Vote, VoteReply,
};

/// The newest protocol version, which this build speaks wherever the other side does.
pub const VERSION: u8 = 2;
/// The oldest that it speaks.
pub const VERSION_MIN: u8 = 1;
/// The version in which handshakes are written, whatever is agreed on in them.
pub const HANDSHAKE_VERSION: u8 = 1;

/// A body with its kind.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The frame kind that carries it.
    const KIND: u16;
    /// The first protocol version that has it.
    const SINCE: u8;

    /// Appends the body in the form of this version.
    ///
    /// # Errors
    /// When that version cannot say it.
    fn encode(&self, version: u8, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads a body in the form of this version.
    ///
    /// # Errors
    /// When it is malformed.
    fn decode(version: u8, body: &[u8]) -> Result<Self, CodecError>;

    /// The message as a frame in the version that `head` names.
    ///
    /// # Errors
    /// When it is longer than a body may be, or that version cannot say it.
    fn to_frame(&self, head: FrameHead) -> Result<Frame, CodecError> {
        if head.version < Self::SINCE {
            return Err(unspeakable(head.version, kind_name(Self::KIND)));
        }
        let mut body = Vec::new();
        self.encode(head.version, &mut body)?;
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
        Self::decode(frame.head.version, &frame.body)
    }
}

/// What a version has no words for.
fn unspeakable(version: u8, what: &str) -> CodecError {
    CodecError::Unencodable(format!("the other side speaks protocol version {version}, which has no {what}"))
}

macro_rules! messages {
    ($($since:literal $kind:literal $name:ident $(was $old:ty)?;)*) => {
        $(impl Message for $name {
            const KIND: u16 = $kind;
            const SINCE: u8 = $since;

            fn encode(&self, version: u8, out: &mut Vec<u8>) -> Result<(), CodecError> {
                $(if version < 2 {
                    return codec::encode_into(&<$old>::try_from(self)?, out);
                })?
                let _ = version;
                codec::encode_into(self, out)
            }

            fn decode(version: u8, body: &[u8]) -> Result<$name, CodecError> {
                $(if version < 2 {
                    return codec::decode::<$old>(body).map($name::from);
                })?
                let _ = version;
                codec::decode(body)
            }
        })*

        /// Reads a body of any kind and writes it again, for the fuzz targets: the bytes that were written, none when the
        /// body was refused.
        ///
        /// # Panics
        /// When what was read cannot be written under the same version, or reads back as something else.
        pub(super) fn written_again(kind: u16, version: u8, body: &[u8]) -> Option<Vec<u8>> {
            match kind {
                $($kind => {
                    let message = <$name as Message>::decode(version, body).ok()?;
                    let mut again = Vec::new();
                    message.encode(version, &mut again).expect("what was read can be written");
                    let back = <$name as Message>::decode(version, &again);
                    assert!(back.as_ref() == Ok(&message), "{message:?} reads back as {back:?}");
                    Some(again)
                })*
                _ => None,
            }
        }

        /// Every kind with the first version that has it and the name of its body.
        pub const KINDS: &[(u16, u8, &str)] = &[$(($kind, $since, stringify!($name)),)*];
    };
}

messages! {
    1 0x0001 Hello;
    1 0x8001 Welcome;
    1 0x8002 Refusal was v1::Refusal;
    1 0x0101 Get was v1::Get;
    1 0x8101 GetReply was v1::GetReply;
    1 0x0102 Put was v1::Put;
    1 0x8102 PutReply was v1::PutReply;
    1 0x0103 GetLayout;
    1 0x8103 LayoutReply;
    1 0x0104 Ping;
    1 0x8104 Pong;
    2 0x0105 MultiGet;
    2 0x8105 MultiGetReply;
    2 0x0106 MultiPut;
    2 0x8106 MultiPutReply;
    2 0x0107 Scan;
    2 0x8107 ScanReply;
    2 0x0108 Status;
    2 0x8108 StatusReply;
    2 0x0109 Hints;
    2 0x8109 HintsReply;
    2 0x010a Repair;
    2 0x810a RepairReply;
    2 0x010b Trees;
    2 0x810b TreesReply;
    2 0x010c Explain;
    2 0x810c ExplainReply;
    2 0x010d Reaping;
    2 0x810d ReapingReply;
    2 0x010e ChangeMembers;
    2 0x810e ChangeMembersReply;
    1 0x0201 Fetch was v1::Fetch;
    1 0x8201 FetchReply was v1::FetchReply;
    1 0x0202 Store was v1::Store;
    1 0x8202 StoreReply was v1::StoreReply;
    2 0x0203 ScanKeys;
    2 0x8203 ScanKeysReply;
    2 0x0204 FetchMany;
    2 0x8204 FetchManyReply;
    2 0x0205 OfferLayouts;
    2 0x8205 OfferLayoutsReply;
    2 0x0208 Gossip;
    2 0x8208 GossipReply;
    2 0x0206 TreeHashes;
    2 0x8206 TreeHashesReply;
    2 0x0207 LeafKeys;
    2 0x8207 LeafKeysReply;
    2 0x0209 Vote;
    2 0x8209 VoteReply;
    2 0x020a Commit;
    2 0x820a CommitReply;
    2 0x020b AskFences;
    2 0x820b AskFencesReply;
    2 0x020c AskTransfers;
    2 0x820c AskTransfersReply;
    2 0x0210 Join;
    2 0x8210 JoinReply;
    2 0x0211 Inspect;
    2 0x8211 InspectReply;
}

/// The name of a kind, for log lines.
pub fn kind_name(kind: u16) -> &'static str {
    KINDS.iter().find(|(known, ..)| *known == kind).map_or("unknown", |(_, _, name)| name)
}

/// Whether a version has a message of this kind.
pub fn is_spoken(kind: u16, version: u8) -> bool {
    KINDS.iter().any(|(known, since, _)| *known == kind && *since <= version)
}

/// Whether a request of this kind changes nothing, so that it may be refused even after it was carried out.
pub fn is_read(kind: u16) -> bool {
    [Get::KIND, MultiGet::KIND, Scan::KIND, GetLayout::KIND, Ping::KIND, Status::KIND, Hints::KIND]
        .contains(&kind)
        || [Trees::KIND, Explain::KIND, Inspect::KIND].contains(&kind)
        || [Fetch::KIND, FetchMany::KIND, ScanKeys::KIND, TreeHashes::KIND, LeafKeys::KIND].contains(&kind)
        || [AskFences::KIND, AskTransfers::KIND, Reaping::KIND].contains(&kind)
}
