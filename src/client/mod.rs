//! The Rust client: reads and writes over the binary API, straight to a node that holds the key.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ringdove::client::{Client, ClientConfig, ClientError, ReadOptions, WriteOptions};
//! use ringdove::io::{RealClock, TcpNet};
//! use ringdove::types::Key;
//!
//! # async fn example(seed: [u8; 32]) -> Result<(), Box<dyn std::error::Error>> {
//! let config = ClientConfig::new(["127.0.0.1:7001", "127.0.0.1:7002"]);
//! let client = Client::new(Arc::new(TcpNet), Arc::new(RealClock::new()), seed, config);
//! let key = Key::new("dove")?;
//!
//! client.put(&key, "grey", &WriteOptions::default()).await?;
//! let read = client.get(&key, &ReadOptions::default()).await?;
//! for version in &read.values {
//!     println!("{}", version.value.escape_ascii());
//! }
//!
//! // Several values are concurrent writes. What is written with the context of a read replaces all it returned.
//! if read.values.len() > 1 {
//!     client.put(&key, "grey and white", &WriteOptions::replacing(&read.context)).await?;
//! }
//!
//! // The same in one step: read, decide, write back, again when somebody else was faster.
//! let options = WriteOptions::default();
//! let resolved = client.update(&key, &options, |siblings| {
//!     let mut colours: Vec<&[u8]> = siblings.iter().map(|version| &version.value[..]).collect();
//!     colours.sort();
//!     colours.join(&b" and "[..])
//! });
//! match resolved.await {
//!     Ok(_) => {}
//!     Err(ClientError::Unknown(why)) => println!("may be written or not: {why}"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `options` | configuration; what an operation may ask for |
//! | `error` | why an operation has no result, and what to do |
//! | `routes` | the layouts known, the addresses to try for a key |
//! | `pool` | connections, many requests in flight on each; back-off |
//! | `attempts` | one operation: what is tried again, and what never |
//! | `batch` | many keys, split by who holds them |
//! | `scan` | ranges of keys, page by page |
//! | `update` | read, decide, write back |
//!
//! # Model
//!
//! Network, clock and seed come in by value, as for a node: the client runs under the simulator unchanged. It learns
//! the layout from the first node that answers, sends each operation to the first primary of its key that can be
//! reached, and asks for the layout again when an answer names a newer one. Any node takes any request, so a wrong or
//! missing layout costs a hop and never an answer.
//!
//! # Invariants
//!
//! - A write of which a byte may have left is never sent a second time. It ends [`ClientError::Unknown`].
//! - What is tried again was not applied, or is a read; tries, pauses, connections and operations on their way are
//!   bounded, and an operation is over when its time is.
//! - No order hangs on chance but the seed's.
//!
//! # Deliberately absent
//!
//! No cache, no session guarantees, no automatic resolution of siblings (a merge is the application's knowledge), no
//! view of which nodes are up beyond its own connections, no spreading of one hot key's reads over its primaries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use crate::dynamo::layout::Layout;
use crate::io::{Clock, Net};
use crate::net::message::{
    ChangeMembers, ChangeMembersReply, Explain, ExplainReply, Hints, HintsReply, Ping, Pong, Put, PutOutcome,
    Reaping, ReapingReply, Repair, RepairReply, Status, StatusReply, Trees, TreesReply,
};
use crate::sync::Watched;
use crate::types::{Key, Mono, Namespace, NodeId, PartitionId, TraceId, WriteId};

mod attempts;
mod batch;
mod error;
mod options;
mod pool;
mod routes;
mod scan;
mod update;

pub use batch::BatchWrite;
pub use error::{Action, ClientError};
pub use options::{ClientConfig, ReadOptions, WriteOptions};
pub use scan::Pages;

pub use crate::net::message::{GetReply, PutReply, Refusal, RefusalCode, Scan, ScanItem, ScanReply, Version};

use attempts::Kind;
use pool::Pool;
use routes::{Addr, Routes, Target};

/// A client of one cluster. Cheap to clone; clones share connections and bounds. Dropping the last closes them.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    pool: Pool,
    routes: Routes,
    room: Semaphore,
    /// Held by whoever asks for the layout.
    asking: AsyncMutex<()>,
    layout_not_before: Watched<Mono>,
}

impl Client {
    /// A client that will connect when first used. `seed` names its writes and spreads its pauses: it must differ
    /// from that of every other client.
    pub fn new(net: Arc<dyn Net>, clock: Arc<dyn Clock>, seed: [u8; 32], config: ClientConfig) -> Client {
        let inner = Inner {
            pool: Pool::new(net, clock, seed, &config),
            routes: Routes::new(&config.addrs),
            room: Semaphore::new(config.in_flight_max.clamp(1, Semaphore::MAX_PERMITS)),
            asking: AsyncMutex::new(()),
            layout_not_before: Watched::new(Mono::default()),
            config,
        };
        Client { inner: Arc::new(inner) }
    }

    /// Its configuration.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// A new name for a write.
    pub fn write_id(&self) -> WriteId {
        WriteId(self.inner.pool.bits())
    }

    /// Reads a key: all its concurrent values, with the context that a write needs to replace them.
    ///
    /// # Errors
    /// Never `Unknown`; a read changes nothing.
    pub async fn get(&self, key: &Key, options: &ReadOptions) -> Result<GetReply, ClientError> {
        let asked = self.inner.asked(options.timeout, options.trace_id);
        let target = Target::Key(Namespace::default(), key);
        self.inner.run(Kind::Read, target, &options.get(key), asked).await
    }

    /// Writes a key.
    ///
    /// # Errors
    /// `Unknown` when nobody can say whether it happened; by all others it did not.
    pub async fn put(
        &self,
        key: &Key,
        value: impl Into<Bytes>,
        options: &WriteOptions,
    ) -> Result<PutReply, ClientError> {
        self.write(key, Some(value.into()), options).await
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// As of [`Client::put`].
    pub async fn delete(&self, key: &Key, options: &WriteOptions) -> Result<PutReply, ClientError> {
        self.write(key, None, options).await
    }

    /// Writes a key, or deletes it when there is no value.
    ///
    /// # Errors
    /// As of [`Client::put`].
    pub async fn write(
        &self,
        key: &Key,
        value: Option<Bytes>,
        options: &WriteOptions,
    ) -> Result<PutReply, ClientError> {
        let asked = self.inner.asked(options.timeout, options.trace_id);
        let write_id = options.write_id.unwrap_or_else(|| self.write_id());
        let put: Put = options.put(key, value, write_id);
        let target = Target::Key(put.namespace, key);
        let (reply, addr) = self.inner.run_told(Kind::Write, target, &put, asked).await?;
        let outcome = written(reply);
        if outcome.is_err() {
            self.inner.pool.doubt(&addr);
        }
        outcome
    }

    /// The layouts that are active, newest first, as the client knows them.
    ///
    /// # Errors
    /// `Unreachable` when none is known and no node tells.
    pub async fn layouts(&self) -> Result<Vec<Arc<Layout>>, ClientError> {
        let asked = self.inner.asked(None, TraceId::default());
        self.inner.see_to_layout(asked).await;
        let active = self.inner.routes.active();
        if active.is_empty() {
            // Nobody answered; a request for anyone says why.
            let _: Pong = self.inner.run(Kind::Read, Target::Anyone, &Ping, asked).await?;
        }
        let active = if active.is_empty() { self.inner.routes.active() } else { active };
        if active.is_empty() {
            return Err(ClientError::Unreachable("no node tells the layout".to_owned()));
        }
        Ok(active)
    }

    /// The members of the layout with their client ports; empty when none is known.
    pub fn members(&self) -> BTreeMap<NodeId, String> {
        let members = self.inner.routes.members();
        members.into_iter().map(|(node, addr)| (node, addr.to_string())).collect()
    }

    /// How the node at this address is.
    ///
    /// # Errors
    /// `Unreachable` when it does not answer, `Invalid` when it is too old to say.
    pub async fn status(&self, addr: &str, timeout: Option<Duration>) -> Result<StatusReply, ClientError> {
        let asked = self.inner.asked(timeout, TraceId::default());
        self.inner.run(Kind::Read, Target::Node(&Addr::from(addr)), &Status, asked).await
    }

    /// For whom the node at this address keeps records.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn hints(&self, addr: &str, timeout: Option<Duration>) -> Result<HintsReply, ClientError> {
        let asked = self.inner.asked(timeout, TraceId::default());
        self.inner.run(Kind::Read, Target::Node(&Addr::from(addr)), &Hints, asked).await
    }

    /// All there is of a key on every member, and why.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn explain(
        &self,
        namespace: Namespace,
        key: &Key,
        timeout: Option<Duration>,
    ) -> Result<ExplainReply, ClientError> {
        let asked = self.inner.asked(timeout, TraceId::default());
        let explain = Explain { namespace, key: key.clone() };
        self.inner.run(Kind::Read, Target::Key(namespace, key), &explain, asked).await
    }

    /// The Merkle trees of the partitions, or of this one, of which the node at this address is a primary.
    ///
    /// # Errors
    /// As [`Client::status`]; `Refused` when it is no primary of the partition.
    pub async fn trees(
        &self,
        addr: &str,
        partition: Option<PartitionId>,
        timeout: Option<Duration>,
    ) -> Result<TreesReply, ClientError> {
        let asked = self.inner.asked(timeout, TraceId::default());
        self.inner.run(Kind::Read, Target::Node(&Addr::from(addr)), &Trees { partition }, asked).await
    }

    /// Has the node at this address, one of the partition's primaries, compare it with all others now. What the reply
    /// calls late can be asked for again: it goes on where it was.
    ///
    /// # Errors
    /// As [`Client::status`]; `Unknown` when it may be comparing still.
    pub async fn repair(
        &self,
        addr: &str,
        partition: PartitionId,
        timeout: Option<Duration>,
    ) -> Result<RepairReply, ClientError> {
        let asked = self.inner.asked(timeout, TraceId::default());
        let repair = Repair { partition };
        self.inner.run(Kind::Write, Target::Node(&Addr::from(addr)), &repair, asked).await
    }

    /// Has members added and removed, or asks what that would move.
    ///
    /// # Errors
    /// As [`Client::status`]; `Refused` with the reason when it cannot be.
    pub async fn change_members(
        &self,
        addr: &str,
        change: &ChangeMembers,
        timeout: Option<Duration>,
    ) -> Result<ChangeMembersReply, ClientError> {
        let asked = self.inner.asked(timeout, TraceId::default());
        self.inner.run(Kind::Write, Target::Node(&Addr::from(addr)), change, asked).await
    }

    /// How far the node at this address is with forgetting what was deleted or has expired.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn reaping(&self, addr: &str, timeout: Option<Duration>) -> Result<ReapingReply, ClientError> {
        let asked = self.inner.asked(timeout, TraceId::default());
        self.inner.run(Kind::Read, Target::Node(&Addr::from(addr)), &Reaping, asked).await
    }
}

/// An answer to a write that says *unknown* is no success.
fn written(reply: PutReply) -> Result<PutReply, ClientError> {
    match reply.outcome {
        PutOutcome::Applied => Ok(reply),
        PutOutcome::Unknown { have, need, reason } => {
            Err(ClientError::Unknown(format!("{have} of {need} replicas have it; {reason}")))
        }
    }
}
