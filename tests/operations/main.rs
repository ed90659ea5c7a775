//! The operations of a node, on clusters of nodes in this process: over a network in memory where the test is about
//! what nodes say and do, over loopback TCP where it is about bytes.

#![allow(clippy::disallowed_methods)] // tests may wait and listen

mod batches;
mod client;
mod concurrency;
mod damaged_guests;
mod guest_repair;
mod hostile;
mod layouts;
mod look;
mod ports;
mod scans;
mod single_key;
mod support;
mod versions;
