//! Checkers for histories of stores that answer with siblings. Knows nothing of any one store: it judges what
//! clients did and saw.
//!
//! *Truth* is what clients did: a write's past is what its writer had read. *Claims* (dots, covers) are what a store
//! says about itself. Claims decide what was seen; only truth justifies an absence. That keeps the checks polynomial,
//! and keeps them from trusting the very clocks they judge.
//!
//! ```text
//!   JSON lines · EDN · etcd logs ──formats──▶ Event ──build──▶ History ──▶ one file a check ──▶ Verdict
//! ```
//!
//! | check | of | precondition |
//! |---|---|---|
//! | [`thin_air`], [`frontier`] | reads that return siblings | none; claims where they are made |
//! | [`durability`], [`convergence`] | `final` reads | a final read; two named nodes |
//! | [`resurrection`] | deletions, times to live | a final read, a quorum, or a claim |
//! | [`regular`], [`read_your_writes`] | puts and gets | quorums that meet ([`quorum`]) |
//! | [`monotonic_writes`], [`writes_follow_reads`] | writes with contexts | a session that made the pair |
//! | [`set`], [`set_full`], [`counter`] | `add` and `read` | a read |
//! | [`linearizability`] | registers, cas-registers, key-value, kv-append | all operations are the model's |
//! | [`staleness`], [`causal`] | measured, failed only if asked for | |
//!
//! # The history
//!
//! Events are `invoke`, then `ok` (it happened), `fail` (it did not) or `info` (nobody knows). The keys of an event that
//! the checks know:
//!
//! | key | of | meaning |
//! |---|---|---|
//! | `type`, `process`, `f` | all | an integer process is a client; any other, such as `nemesis`, is bound by no rule |
//! | `key`, `value` | all | `value` of a get or `final`: `[{"id", "v", "dot", "hidden", "dead"}, …]`, or one value |
//! | `id` | put, delete | unique in the history; a write without one is not judged by the checks of siblings |
//! | `after` | put, delete | the index of the completion whose context was passed; `"current"`; absent: none |
//! | `saw` | their completion | the ids that a `current` put, or a delete without a context, overwrote |
//! | `dot`, `covers` | completions | claims: `["a", 6]`, `{"a": 6, "b": 2}`; dots are unique within a key |
//! | `strict`, `r`, `w`, `n`, `durable`, `layout` | either | what [`quorum`] asks |
//! | `copies` | a put's completion | on how many nodes it was durable |
//! | `ttl`, `expires_at`, `clock` | | milliseconds; `clock` is `[lo, hi]` of the node that answered, also of the put |
//! | `node` | `final` | whose state it is; absent: the merged one |
//! | `index`, `time` | all | rising; nanoseconds |
//!
//! `{"type":"info","process":"nemesis","f":"lost","value":{"node":"n2","what":"disk"}}` says that a node lost what it had;
//! any other `what` than `disk`: only what was not synced.
//!
//! Deliberately absent: clocks, threads, files. Time is the order of events.

mod bits;
pub mod build;
pub mod causal;
pub mod checks;
pub mod convergence;
pub mod counter;
pub mod durability;
pub mod event;
pub mod formats;
pub mod frontier;
pub mod history;
pub mod linearizability;
pub mod monotonic_writes;
pub mod pasts;
pub mod quorum;
pub mod read_your_writes;
pub mod regular;
pub mod resurrection;
mod sessions;
pub mod set;
pub mod set_full;
pub mod staleness;
pub mod thin_air;
pub mod timeline;
pub mod value;
pub mod verdict;
pub mod writes_follow_reads;

pub use pasts::Options;
pub use verdict::{Verdict, Witness};
