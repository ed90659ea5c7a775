//! The REST gateway over real sockets: nodes in this process, on a network and disks in memory; their gateways on
//! loopback TCP, where the test is the client, byte for byte.

#![cfg(not(madsim))]
#![allow(clippy::disallowed_methods)] // tests may wait and listen

#[allow(dead_code)] // shared with the tests of the operations, which use other parts of it
#[path = "../operations/support.rs"]
mod cluster;

mod bad_input;
mod batches;
mod explanations;
mod http;
mod keys;
mod metrics;
mod outcomes;
mod scans;
mod values;
