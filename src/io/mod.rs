//! The seams: everything a node does to the outside world goes through [`Net`], [`Disk`] and [`Clock`].
//!
//! They are passed by value (as `Arc<dyn …>`), so that one process can hold a production node or, under the
//! simulator, many nodes each with a network, a disk and a clock of its own. Only *tasks* are chosen by cfg
//! (tokio, or madsim's tokio). Randomness is not a seam: a node takes a seed.
//!
//! The traits are deliberately narrow: what a log-structured store and a framed protocol need, no more. They
//! are `dyn`-safe at the price of one boxed future a call, which is small beside a system call.
//!
//! [`fault_disk`] is a disk in memory that may do everything to a store that a real one may: for tests, and under
//! the simulator.
//!
//! This module imports nothing of ours and knows nothing of keys, nodes or frames.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub mod clock;
pub mod disk;
pub mod fault_disk;
pub mod memory_disk;
pub mod net;

pub use clock::{Clock, RealClock};
pub use disk::{DirLock, Disk, File, RealDisk, Unwritten};
pub use memory_disk::MemoryDisk;
pub use net::{Listener, Net, Stream, TcpNet};

/// A future behind a pointer, as the seams' methods return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The three seams of one node, handed down together.
#[derive(Clone)]
pub struct Io {
    /// Connections to peers and clients.
    pub net: Arc<dyn Net>,
    /// The data directory's file system.
    pub disk: Arc<dyn Disk>,
    /// Timers and the time of day.
    pub clock: Arc<dyn Clock>,
}
