//! Versions: which writes a record holds, which it has overwritten, and how two copies become one.
//!
//! Source: dotted version vectors with server-side actors (Preguiça, Baquero, Almeida, Fonte, Gonçalves:
//! *Dotted Version Vectors*, 2010; *Brief Announcement: Efficient Causality Tracking in Distributed Storage
//! Systems with DVVs*, PODC 2012), in the form with one causal context for the whole record (DVVSet). Dynamo
//! §4.4 has the plain vector clock that this replaces: with client entries clocks grow without bound, with
//! plain server entries two clients that write through one server overwrite each other unseen.
//!
//! ```text
//!   Record                              put(token {a:2}) at actor b, dot (b,1)
//!   ┌─────────────────────────────┐     ┌──────────────────────────────────┐
//!   │ context  {a:3}              │     │ context  {a:3, b:1}              │
//!   │ siblings (a,2) "x"          │ ──▶ │ siblings (a,3) "y"   not covered │
//!   │          (a,3) "y"          │     │          (b,1) "z"   the new one │
//!   └─────────────────────────────┘     └──────────────────────────────────┘
//! ```
//!
//! Invariants
//! 1. Every sibling's dot is covered by its record's context.
//! 2. One dot names one write, for ever, over all nodes and restarts.
//! 3. *A node makes a dot only on top of a local copy that contains every dot it ever made under that actor.*
//!
//! The third is the one that is easy to lose. An entry `{F: 9}` claims *all* dots of F up to 9; a node that
//! has forgotten some of its own dots and goes on counting makes claims about writes that it never saw, and
//! the next merge erases them. So an actor belongs to **one local copy of one record** ([`ActorId`],
//! [`actor`]): it ends when the copy goes away for whatever reason, at every restart, and when a local append
//! fails after its dot has left the node. `tests/causal_model.rs` searches all small executions of this rule
//! against plain causal histories, and shows that the two obvious weaker rules lose acknowledged writes.
//!
//! Deliberately absent: clocks (`now` is an argument where expiry is judged), randomness (incarnations and
//! write ids come from the caller), pruning of contexts by size or age (it would break invariant 3 of some
//! other copy; contexts shrink only under a reaping vote), and any refusal by merge: caps are the
//! coordinator's business, before the dot is made.
//!
//! [`ActorId`]: crate::types::ActorId

pub mod actor;
pub mod record;
pub mod token;
pub mod vector;

pub use actor::{ActorMint, LocalCopy, LocalHeader, LocalMerged, LocalPutError};
pub use record::{Caps, Content, Merged, Meta, Overwrite, PutDone, PutError, Record, Sibling, View, Write};
pub use token::{Token, TokenError, TokenSecret};
pub use vector::{Dot, VersionVector};
