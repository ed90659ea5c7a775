//! ringdove: a leaderless, always-writable key-value store in the line of Amazon's Dynamo (DeCandia et al.,
//! SOSP 2007). This page is the map of the code.
//!
//! ```text
//!      REST clients ──HTTP──┐        ┌── TCP binary clients      operator's shell
//!                           ▼        ▼                                 │
//!  edge               gateway      server  ◀── client ◀── cli ◀────────┘
//!                           └───┬────┘
//!  shell        node:  coordinator · replica                   (tasks, timers, one task a request)
//!                               │ event, now           ▲ actions
//!                               ▼                      │
//!  PURE CORE    dynamo: version · ring · layout · preference · quorum · get/put machines · merkle
//!                                               (no async, no clock, no randomness, no I/O)
//!               storage: what a node keeps, over Disk          net: frames, messages, links, over Net
//!  ───────────────────────────────────────────────────────────────────────────────────────────────
//!  effects      by value: Net · Disk · Clock · seed            by cfg: tasks only (tokio ⇄ madsim-tokio)
//! ```
//!
//! # Code map
//!
//! | module | what it is | what is absent from it |
//! |---|---|---|
//! | [`types`] | ids, keys, the two kinds of time | everything else |
//! | [`sync`] | a value to wait on, without chance | everything else |
//! | [`measure`] | counters and histograms | names, clocks |
//! | [`observe`] | points, facts and planted mistakes for the simulator; nothing in production | any effect on what a node does |
//! | [`dynamo`] | the paper as pure code; its own page maps §4.1–4.8 to files | tokio, clocks, randomness, I/O, hash-map order |
//! | [`io`] | the seams `Net`, `Disk`, `Clock` and their real implementations | anything of ours; it knows no key, node or frame |
//! | [`storage`] | one entry a key, durable when it says so | the network, quorums, wall clocks |
//! | [`net`] | envelope, codec, messages, links | routing, retries |
//! | [`node`] | the shell that carries the machines out | decisions: those are the machines' |
//! | [`server`] | the client port | HTTP |
//! | `gateway` | REST, health and metrics, production only | the binary protocol |
//! | [`client`] | reads and writes over the binary API | anything a node does |
//! | [`config`] | what an operator can set, production only | what a cluster agreed on |
//! | [`cli`] | the command line, production only | anything another program could want |
//!
//! Imports point one way: `types` ← `dynamo` ← `storage`, `net` ← `node` ← `server`, `gateway`. `io` imports nothing of
//! ours; `storage`, `net`, `node` and `client` use it; `storage` takes codec and envelope from `net`, because the
//! disk's records stand in the same envelope as the wire's frames. `tests/sources.rs` holds this and the list of
//! banned calls over the sources.
//!
//! # Invariants
//!
//! 1. A node makes a dot only on top of a local copy that contains every dot it ever made under that actor
//!    ([`dynamo::version`]).
//! 2. One operation makes at most one dot; *not applied* is answered only while there is none ([`dynamo::put`]).
//! 3. No reply reveals state that a crash can take back: acks and reads wait for the log position they depend
//!    on ([`storage`]).
//! 4. After a failed write or sync nothing is acknowledged any more ([`storage`]).
//! 5. Everything that comes from outside is bounded before it is allocated and refused with a typed error
//!    ([`net`]).
//!
//! # One source, two builds
//!
//! Node code takes network, disk, clock and seed by value, so `cfg` chooses nothing but the executor: `tokio` is
//! tokio, or under `--cfg madsim` madsim's deterministic one with the same API. The edges that only production
//! has are compiled out here and nowhere else. `cargo sim` builds the second; both live side by side in one
//! target folder.
//!
//! # Glossary
//!
//! One word for one idea. *Coordinator*: the node that carries a request out. *Replica*: a node's copy of a
//! record, and the node as its holder. *Primary*: one of the N owners of a partition under a layout; *fallback*:
//! any other member. *Preference list*: primaries, then fallbacks, in the order to ask. *Partition*: a range of
//! the hash space (a broken network is a *netsplit*). *N, R, W*: replicas a key has, answers a read needs, durable
//! copies a write needs. *Sloppy quorum*: one that counts fallbacks; *strict*: one that does not. *Guest record*:
//! one that a fallback keeps for the primaries it names. *Hinted handoff*: delivery of guests; *transfer*: of
//! ownership. *Dot*: one write event. *Version vector*: a set of dots without gaps. *Context*: the version vector
//! of all that a record has seen. *Sibling*: one of the concurrent values of a key. *Tombstone*: a deletion kept.
//! *Layout*: who owns which partition, versioned. *Fence*, *refilled*: see anti-entropy and reaping in the design.
//! *Nemesis*, *fault plan*, *history*, *outcome*: the simulator's and the checkers'.

// First: its macros are known to what stands below it.
#[macro_use]
pub mod observe;

pub mod client;
pub mod dynamo;
pub mod io;
pub mod measure;
pub mod net;
pub mod node;
pub mod server;
pub mod storage;
pub mod sync;
pub mod types;

#[cfg(not(madsim))]
pub mod cli;
#[cfg(not(madsim))]
pub mod config;
#[cfg(not(madsim))]
pub mod gateway;

/// The command line is not part of the simulation's build.
#[cfg(madsim)]
pub mod cli {
    /// Says so.
    pub fn main() -> std::process::ExitCode {
        eprintln!("ringdove: this binary was built for the simulator; build it without --cfg madsim");
        std::process::ExitCode::FAILURE
    }
}
