//! What a killed node costs those who go on asking, and how fast what was kept for it is handed over. Real processes,
//! no proxy: `cargo bench --bench failover`, with the names of the parts that are wanted: `kill`, `handoff`; without, both.
//!
//! - **kill**: three nodes, 64 clients in a closed loop of puts; after ten seconds one node is ended as by `kill -9`. What was
//!   in flight at it ends unknown and is counted apart; an error of any other node, or unknown for any other
//!   reason, is one too many. p99 is over the puts that begin in the ten seconds before the kill and after it.
//! - **handoff**: three nodes, then five; one is stopped, 100,000 keys of 512 bytes are put of which it is a primary, it is
//!   started again, and the time runs from its being ready until nobody keeps anything for it. Meanwhile, and before all
//!   of it, 500 operations a second by the clock, half gets and half puts, whose p99 is compared.

#![cfg_attr(not(madsim), allow(clippy::disallowed_methods, clippy::disallowed_types))] // a bench works on real processes and takes real time

#[cfg(not(madsim))]
#[path = "../../tests/chaos/processes.rs"]
#[allow(dead_code)] // the tests use more of it
mod processes;

#[cfg(not(madsim))]
mod real;

#[cfg(not(madsim))]
fn main() {
    real::main();
}

#[cfg(madsim)]
fn main() {}
