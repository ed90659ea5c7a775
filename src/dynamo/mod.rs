//! The Dynamo paper, pure: G. DeCandia et al., *Dynamo: Amazon's Highly Available Key-value Store*, SOSP 2007.
//!
//! Nothing in here reads a clock, a socket, a file or a random number, and nothing depends on the order of a
//! hash map: what happens is the arguments, what follows is the return value. So the laws of the store can be
//! proved by tests that try every order of events, and the shell around it stays thin.
//!
//! # Where each section went
//!
//! | paper | here | |
//! |---|---|---|
//! | §4.1 interface | [`version::token`] | `get` returns all siblings and a context; `put` takes it back. The context is opaque, bound to cluster and key, and sealed |
//! | §4.2 partitioning | [`ring`], [`layout`] | strategy 3 of §6.2: Q equal ranges of a 64-bit hash, assigned to members by a layout. No virtual nodes, no tokens |
//! | §4.3 replication | [`layout`], [`preference`] | N primaries a partition on distinct nodes, spread over zones; then fallbacks in ring order |
//! | §4.4 versioning | [`version`] | dotted version vectors in place of vector clocks |
//! | §4.5 get and put | [`get`], [`put`], [`quorum`] | state machines; quorums per active layout |
//! | §4.6 hinted handoff | [`put`] (`StoreGuest`, `NoteTarget`) | which node keeps what for whom is decided here; `node::handoff` delivers |
//! | §4.7 anti-entropy | [`merkle`] | one tree a partition, leaves as xor of keyed hashes; `node::anti_entropy` compares and repairs |
//! | none: deletions for good | [`reaping`] | fences, and a vote of all members; the paper keeps no word on it |
//! | §4.8.1 membership | [`layout`], [`membership`] | members are added and removed by an operator, as one new layout; gossip carries heartbeats |
//! | §4.8.2, §4.8.3 failure detection | [`detector`] | phi accrual over heartbeats, and what traffic shows sooner. |
//! | §5 implementation, coordination by reads and writes | [`put`], `node::coordinator` | any node takes a request; a put is coordinated by a primary |
//!
//! # Where we deviate, and why
//!
//! - **Dotted version vectors, one actor per local copy.** Vector clocks with an entry per server lose one of two
//!   writes that go through the same server, with an entry per client they grow without bound. And an entry
//!   per *node* claims writes that a node may have forgotten ([`version`] tells the story).
//! - **No truncation of clocks by size** (§4.4 drops the oldest pair): dropping an entry brings back what it
//!   covered. Contexts shrink only by a vote of all members.
//! - **Ownership is never changed by a failure detector.** It follows layouts, which operators make; a detector
//!   only routes around.
//! - **A layout history in place of gossip about tokens** (§4.8.1): while a change is under way, quorums hold in
//!   the old and in the new layout.
//! - **The coordinator's own copy counts once it is durable**, like any other; the paper's writes count when
//!   they are in memory buffers (§6.1).
//! - **Strict quorums are offered per request**; the paper's are always sloppy.
//! - **A put that is not known to have failed is never called failed**: applied, not applied, or unknown.
//! - **Deletions are tombstones** that stay until every member has agreed; the paper does not say.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod condition;
pub mod detector;
pub mod get;
pub mod layout;
pub mod membership;
pub mod merkle;
pub mod preference;
pub mod put;
pub mod quorum;
pub mod reaping;
pub mod ring;
pub mod version;
