//! End to end: real node processes on loopback, as a user starts them.

// Tests may use clocks, files and threads; the bans are for node code.
#![cfg(not(madsim))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod bench;
mod clusters;
mod directories;
mod doors;
mod doubles;
mod exports;
mod handoff;
mod idle;
mod import_files;
mod look;
mod membership;
mod memory;
mod packages;
mod program;
mod reaping;
mod restarts;
mod settings;
mod storage;
mod support;
mod traces;
