//! Deterministic simulation: the node's own code on a network, a disk and a clock that obey a seed.
//!
//! ```text
//!   Plan (settings, faults) ──▶ play ──▶ Cluster, Sessions, Nemesis, Watch (invariants) ──▶ history ──▶ checks ──▶ Report
//!
//!   run::simulate(seed) ── one fresh OS thread, one madsim runtime
//!        │
//!        ▼
//!      World ── Host "n1" ── Io { SimNet, SimDisk, SimClock } ──▶ node code, unchanged
//!        │      Host "n2" …                │
//!        │                                 ▼
//!        │                       Timers: one heap, one driver task
//!        └────────▶ Trace: a hash over (time, host, event), kept outside the runtime
//! ```
//!
//! madsim supplies the executor, the simulated time and the life cycle of nodes, no more. Its network, file
//! system and clock are not used: they are too kind (DESIGN §9); one scenario runs the product's `TcpNet` on its network (`tcp`). Each source of chance has a seeded stream of
//! its own (`seed`), so that more traffic on one link moves no delay on another and no disk operation.
//!
//! Invariants: nothing here reads a real clock, the system's entropy or the order of a hash map; every handle
//! that a host's program holds carries the life under which it was made, and does nothing once that life is
//! over; destructors never call into madsim.
//!
//! All of it is compiled under `cfg(madsim)` alone. An ordinary build of this crate holds only `relaunch`,
//! which starts the build that has the cfg.

#[cfg(not(madsim))]
pub mod relaunch;

#[cfg(madsim)]
pub mod budget;
#[cfg(madsim)]
pub mod catalogue;
#[cfg(madsim)]
pub mod clock;
#[cfg(madsim)]
pub mod cluster;
#[cfg(madsim)]
pub mod disk;
#[cfg(madsim)]
mod gray;
#[cfg(madsim)]
pub mod history;
#[cfg(madsim)]
pub mod holdings;
#[cfg(madsim)]
pub mod invariants;
#[cfg(madsim)]
pub mod nemesis;
#[cfg(madsim)]
pub mod net;
#[cfg(madsim)]
pub mod plan;
#[cfg(madsim)]
pub mod play;
#[cfg(madsim)]
pub mod probes;
#[cfg(madsim)]
pub mod report;
#[cfg(madsim)]
pub mod run;
#[cfg(madsim)]
pub mod scenario;
#[cfg(madsim)]
pub mod seed;
#[cfg(madsim)]
pub mod settings;
#[cfg(madsim)]
pub mod tcp;
#[cfg(madsim)]
pub mod timers;
#[cfg(madsim)]
pub mod trace;
#[cfg(madsim)]
pub mod workload;
#[cfg(madsim)]
pub mod world;
