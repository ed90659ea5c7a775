//! The shell: carries out what the pure machines say, over the seams that it was given.
//!
//! ```text
//!   server, gateway ──▶ coordinator ──▶ get/put machine ──actions──▶ replica (own copies) and peers
//!                            ▲                 ▲                         │
//!                            └── answer        └──────── events ─────────┘
//! ```
//!
//! A request is one task that owns its machine and its pending work; the client's answer leaves it early, the
//! repair goes on in it. Time, randomness, disk and network come in by value ([`Io`], a seed), so the same code
//! runs under the simulator. Nothing here ends the process: a node *stops*, and whoever runs it decides.
//!

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use tokio::select;
use tokio::sync::Mutex as AsyncMutex;

use crate::dynamo::cluster::{ClusterDescriptor, DescriptorError};
use crate::dynamo::detector::{Detector, DetectorConfig};
use crate::dynamo::layout::{Layout, LayoutError, LayoutHistory};
use crate::dynamo::membership::Membership;
use crate::dynamo::merkle::MerkleKey;
use crate::dynamo::preference::PreferenceList;
use crate::dynamo::ring::{PARTITIONS_MIN, PartitionCount};
use crate::dynamo::version::{ActorMint, Caps};
use crate::io::{Io, Listener};
use crate::measure::Histogram;
use crate::net::envelope::FrameHead;
use crate::net::link::hello;
use crate::net::message::{
    AuthMethod, Durability, Hello, JoinReply, LayoutReply, Refusal, RefusalCode, StatusReply, Welcome,
};
use crate::net::peers::Peers;
use crate::net::serve::{Limits, Load, serve};
use crate::storage::{Recovery, SaltSeed, StorageError, Store, StoreConfig, directory};
use crate::sync::Watched;
use crate::types::{
    Incarnation, Key, LayoutRef, Mono, Namespace, NodeId, PartitionId, TraceId, Wall, WriteId,
};

use access::AccessLog;
use anti_entropy::Scrubbed;
use fences::FenceWatch;
use handoff::Handoff;
use layouts::Layouts;
use metrics::{Door, InFlight, Metrics};
use news::News;
use pace::Pace;
use reaping::ReapLog;
use traces::Traces;
use transfer::Epoch;

mod access;
mod anti_entropy;
mod batch;
pub mod coordinator;
mod damaged;
mod drivers;
mod explain;
mod fences;
mod founding;
mod gossip;
mod handoff;
pub mod layouts;
mod listing;
mod look;
pub mod metrics;
mod news;
mod pace;
mod reaping;
mod repair;
mod replica;
mod reply;
mod scan;
#[cfg(all(test, not(madsim)))]
mod testing;
mod traces;
mod transfer;

pub use access::Access;
pub use founding::found;

/// Settings of one node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The data directory, made by `directory::write` before.
    pub dir: PathBuf,
    /// How long a request may take when its sender does not say. Default 5 s.
    pub timeout: Duration,
    /// The longest time that a request may ask for. Default 60 s.
    pub timeout_max: Duration,
    /// How long a primary may be silent before a fallback takes its copy of a write. Default 300 ms, below
    /// `timeout`.
    pub hint_after: Duration,
    /// How long a replica may be silent before the next candidate is asked too. Default 200 ms.
    pub hedge_after: Duration,
    /// Time between two rounds of handing guest records to their targets. Default 1 s.
    pub handoff_interval: Duration,
    /// Bytes of records a second that are handed to one target. Default 32 MiB.
    pub handoff_bytes_per_second: u64,
    /// Guest records that this node keeps; further ones are refused. The count is one round of handoff old, at the
    /// most. Default 1,000,000.
    pub guests_max: u64,
    /// What is kept for a node longer than this is told in the log, once, and shows in `ringdove hints`. Nothing is dropped for its
    /// age. Default 24 h.
    pub hint_age_warn: Duration,
    /// About once in this time each partition is compared with every other primary's; what that takes comes on top. Default 30 s.
    pub anti_entropy_interval: Duration,
    /// Bytes of records a second that comparing moves, or a scrub reads. Default 16 MiB.
    pub anti_entropy_bytes_per_second: u64,
    /// Within this time every record is read once, to find damage before a client does. Default 7 days.
    pub scrub_interval: Duration,
    /// Time between two rounds of reaping of a partition. Default 1 min.
    pub reap_interval: Duration,
    /// How long ago something must have been deleted or have expired to be reaped. Above the largest skew of clocks; no
    /// promise rests on it. Default 1 h.
    pub reap_grace: Duration,
    /// Heartbeats, and when their absence counts.
    pub detector: DetectorConfig,
    /// When a replica counts for a write that does not say. Default: when its disk has it.
    pub durability: Durability,
    /// Client operations at once, by all doors together; further ones are refused as overload. Default 4,096.
    pub in_flight_max: usize,
    /// Limits on a record that this node writes to.
    pub caps: Caps,
    /// Most bytes of one value. Default 8 MiB.
    pub value_len_max: usize,
    /// Whether hits and last access are counted for each key, in memory: see [`Access`]. Default: no.
    pub track_access: bool,
    /// Bounds of each port.
    pub limits: Limits,
    /// The engine's settings. Partitions and Merkle key are the cluster's, whatever stands here.
    pub store: StoreConfig,
}

impl NodeConfig {
    /// The defaults for this data directory.
    pub fn new(dir: PathBuf) -> NodeConfig {
        NodeConfig {
            dir,
            timeout: Duration::from_secs(5),
            timeout_max: Duration::from_secs(60),
            hint_after: Duration::from_millis(300),
            hedge_after: Duration::from_millis(200),
            handoff_interval: Duration::from_secs(1),
            handoff_bytes_per_second: 32 * 1024 * 1024,
            guests_max: 1_000_000,
            hint_age_warn: Duration::from_secs(24 * 3600),
            anti_entropy_interval: Duration::from_secs(30),
            anti_entropy_bytes_per_second: 16 * 1024 * 1024,
            scrub_interval: Duration::from_secs(7 * 24 * 3600),
            reap_interval: Duration::from_secs(60),
            reap_grace: Duration::from_secs(3600),
            detector: DetectorConfig::default(),
            durability: Durability::Sync,
            in_flight_max: 4096,
            caps: Caps::default(),
            value_len_max: 8 * 1024 * 1024,
            track_access: false,
            limits: Limits::default(),
            store: StoreConfig::new(
                PartitionCount::new(PARTITIONS_MIN).expect("a count that the ring takes"),
                MerkleKey([0; 16]),
            ),
        }
    }
}

/// Why a node cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory was never made one.
    #[error("{0} is not a data directory: make it one first with `ringdove init`")]
    NotInitialised(String),
    /// The data directory cannot be made.
    #[error("cannot make the data directory {dir}: {reason}")]
    NotFounded {
        /// Which.
        dir: String,
        /// The system's words.
        reason: String,
    },
    /// Storage cannot go on. Nothing acknowledged was lost by stopping.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The descriptor in the directory is from another build.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// The layouts in the directory do not fit together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The node is not a member of the layout in its own directory.
    #[error(
        "{0} is no member of its cluster's layout, which names no address for it. To have it give away what it holds, start it \
         with listen_peer and listen_client; to have it back, `ringdove layout add` it"
    )]
    NotAMember(NodeId),
    /// The layout in the directory has another Q or N than its cluster.
    #[error("the layout in the data directory does not fit its cluster: restore node.meta from a backup")]
    ForeignLayout,
    /// Another process lives under this node's id, and this one is the lower of the two. Starting it again helps only
    /// when the other one is gone.
    #[error(
        "another process runs as {node}, on a copy of this node's data directory or on what it was copied from, and has \
         the higher incarnation: this one has stopped, so that one of them is left. What this one acknowledged is kept \
         in {dir}. Find the other one and decide which of the two directories is to be {node}: to keep the other, do not \
         start this one again; to keep this one, stop the other for good and then start this one. Never run both"
    )]
    Double {
        /// Which node.
        node: NodeId,
        /// The directory of the process that stopped.
        dir: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {reason}")]
    Listen {
        /// Which.
        addr: String,
        /// The system's words.
        reason: String,
    },
}

/// One node, running. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: NodeConfig,
    pub(crate) io: Io,
    pub(crate) id: NodeId,
    pub(crate) descriptor: ClusterDescriptor,
    pub(crate) store: Store,
    pub(crate) peers: Peers,
    pub(crate) metrics: Metrics,
    pace: Mutex<Pace>,
    handoff: Handoff,
    news: News,
    /// Partitions in which a write found nobody to keep it for a primary: compared before others.
    dirty: Mutex<BTreeSet<PartitionId>>,
    /// Partitions that wait to refill and have been read through.
    scrubbed: Mutex<BTreeMap<PartitionId, Scrubbed>>,
    fence_watch: FenceWatch,
    reap_log: ReapLog,
    detector: Mutex<Detector>,
    membership: Mutex<Membership>,
    client_load: Arc<Load>,
    peer_load: Arc<Load>,
    access: Option<AccessLog>,
    started: Mono,
    layouts: Mutex<Layouts>,
    epoch: Epoch,
    letting_go: AsyncMutex<()>,
    adopting: AsyncMutex<()>,
    repairing: AsyncMutex<()>,
    mint: Mutex<ActorMint>,
    rng: Mutex<ChaCha8Rng>,
    traces: Traces,
    stop: Arc<Watched<bool>>,
    /// Another process lives under this id, and this one has to stop.
    is_double: Watched<bool>,
}

/// When a request that was turned away may come again, at the earliest and at the latest.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// What a request brings along besides its body.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// By which door it came.
    pub door: Door,
    /// When it came.
    pub received: Mono,
    /// When the asker stops waiting.
    pub deadline: Mono,
    /// Follows it through the nodes.
    pub trace_id: TraceId,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A task that panicked cannot have left these small values half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Opens the node of a data directory: recovers its store and mints its incarnation. It serves nothing yet.
    /// `seed` must differ for every start of every node.
    ///
    /// # Errors
    /// When the directory cannot be used; it is as it was.
    pub async fn open(config: NodeConfig, io: Io, seed: [u8; 32]) -> Result<(Node, Recovery), NodeError> {
        let meta = directory::read(io.disk.as_ref(), &config.dir).await?;
        let meta = meta.ok_or_else(|| NodeError::NotInitialised(config.dir.display().to_string()))?;
        meta.descriptor.check()?;
        let mut layouts = meta.layouts.into_iter().rev();
        let oldest = layouts.next().ok_or(NodeError::NotAMember(meta.node))?;
        let mut history = LayoutHistory::new(oldest);
        for layout in layouts {
            history.adopt(layout)?;
        }
        if !history.active().iter().any(|layout| layout.member(meta.node).is_some()) {
            tracing::warn!(node = %meta.node, "no active layout has this node: it gives away what it holds and takes nothing new");
        }

        let (q, n) = (meta.descriptor.partitions, meta.descriptor.replicas);
        if history.active().iter().any(|layout| layout.q() != q || layout.n() != n) {
            return Err(NodeError::ForeignLayout);
        }

        let started = Mono::from_origin(io.clock.mono());
        let mut rng = ChaCha8Rng::from_seed(seed);
        let incarnation = Incarnation(rng.next_u64());
        // A stream of its own: no peer or client ever sees a number of it.
        let mut secret = ChaCha8Rng::from_seed(seed);
        secret.set_stream(1);
        let salts = SaltSeed(secret.next_u64());
        let store_config = StoreConfig {
            partitions: meta.descriptor.partitions,
            merkle_key: MerkleKey(meta.descriptor.merkle_key),
            ..config.store.clone()
        };
        let (disk, clock) = (io.disk.clone(), io.clock.clone());
        let opened = Store::open(disk, clock, &config.dir, incarnation, salts, store_config);
        let (store, recovery) = Box::pin(opened).await?;
        let hello = hello(config.limits.spoken, Some(meta.descriptor.cluster), Some(meta.node));
        let peers = Peers::new(io.net.clone(), io.clock.clone(), hello, rng.next_u64());
        let (client_load, peer_load) = (Load::new(&config.limits), Load::new(&config.limits));
        let stall_after = config.detector.stall_after.max(config.detector.interval * 3);
        let detector = Detector::new(DetectorConfig { stall_after, ..config.detector }, started);
        let membership = Membership::new(meta.node, store.starts());
        let inner = Inner {
            access: config.track_access.then(AccessLog::new),
            config,
            io,
            id: meta.node,
            descriptor: meta.descriptor,
            store,
            peers,
            metrics: Metrics::default(),
            pace: Mutex::default(),
            handoff: Handoff::default(),
            news: News::default(),
            dirty: Mutex::default(),
            scrubbed: Mutex::default(),
            fence_watch: FenceWatch::default(),
            reap_log: ReapLog::default(),
            detector: Mutex::new(detector),
            membership: Mutex::new(membership),
            client_load,
            peer_load,
            started,
            layouts: Mutex::new(Layouts::new(history)),
            epoch: Epoch::default(),
            letting_go: AsyncMutex::new(()),
            adopting: AsyncMutex::new(()),
            repairing: AsyncMutex::new(()),
            mint: Mutex::new(ActorMint::new(incarnation)),
            rng: Mutex::new(rng),
            traces: Traces::new(seed),
            stop: Arc::new(Watched::new(false)),
            is_double: Watched::new(false),
        };
        Ok((Node { inner: Arc::new(inner) }, recovery))
    }

    /// Serves the peers and, by `clients`, everybody else, until [`Node::stop`], until storage fails, or until it finds itself the
    /// lower of two processes under its id. Then drains what is in flight and closes the store.
    ///
    /// # Errors
    /// When storage failed: the node must be started again, with a back-off. [`NodeError::Double`]: it must not.
    pub async fn run(
        &self,
        peer_port: Box<dyn Listener>,
        clients: impl Future<Output = ()> + Send,
    ) -> Result<(), NodeError> {
        point!("node-serving");
        let inner = &self.inner;
        let service = Arc::new(replica::PeerService::new(inner.clone()));
        // Peers may have nothing to ask for long, and lose what is on its way when a connection ends.
        let limits = Limits { idle_after: None, ..inner.config.limits };
        let (clock, load) = (inner.io.clock.clone(), inner.peer_load.clone());
        let peers = serve(peer_port, service, clock, limits, load, inner.stop.clone());
        let failed = async {
            let reason = inner.store.failed().await;
            inner.stop.set(true);
            reason
        };
        let served = async { tokio::join!(peers, clients) };
        let doubled = async {
            inner.is_double.wait_for(|is_double| is_double.then_some(())).await;
            inner.stop.set(true);
        };
        tokio::pin!(served, failed, doubled);
        let failure = select! {
            biased;
            reason = &mut failed => {
                served.await;
                Some(NodeError::Storage(StorageError::Latched(reason)))
            }
            () = &mut doubled => {
                served.await;
                Some(NodeError::Double { node: inner.id, dir: inner.config.dir.display().to_string() })
            }
            _ = &mut served => None,
            never = inner.gossip() => match never {},
            never = Box::pin(inner.hand_off()) => match never {},
            never = Box::pin(inner.scrub_guests()) => match never {},
            never = inner.anti_entropy() => match never {},
            never = inner.reap() => match never {},
            never = inner.transfer() => match never {},
        };
        point!("node-drained");
        inner.peers.close();
        match failure {
            Some(error) => {
                // Gives the directory free, so that the next start need not wait for the end of the process.
                let _ = inner.store.close().await;
                Err(error)
            }
            None => Ok(inner.store.close().await?),
        }
    }

    /// Tells the node to stop: no new connection is taken, what is in flight may end.
    pub fn stop(&self) {
        self.inner.stop.set(true);
    }

    /// Becomes true when the node is to stop.
    pub fn stopping(&self) -> Arc<Watched<bool>> {
        self.inner.stop.clone()
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// What its cluster agreed on.
    pub fn descriptor(&self) -> &ClusterDescriptor {
        &self.inner.descriptor
    }

    /// The node's seams.
    pub fn io(&self) -> &Io {
        &self.inner.io
    }

    /// The node's settings.
    pub fn config(&self) -> &NodeConfig {
        &self.inner.config
    }

    /// The newest layout it goes by.
    pub fn layout(&self) -> Arc<Layout> {
        lock(&self.inner.layouts).history.current().clone()
    }

    /// The layouts that are active at the node, newest first.
    pub fn layouts(&self) -> LayoutReply {
        LayoutReply { active: lock(&self.inner.layouts).history.active().to_vec() }
    }

    /// What a request that came in just now by `door`, of `remaining` (none: the default), may bring.
    ///
    /// # Errors
    /// When there is no time left, or more is asked for than is given: nothing was done.
    pub fn request(
        &self,
        door: Door,
        remaining: Option<Duration>,
        trace_id: TraceId,
    ) -> Result<Request, Refusal> {
        self.request_of(door, self.inner.now(), remaining, trace_id)
    }

    /// The same of a request that came in at `received`.
    ///
    /// # Errors
    /// As [`Node::request`].
    pub fn request_of(
        &self,
        door: Door,
        received: Mono,
        remaining: Option<Duration>,
        trace_id: TraceId,
    ) -> Result<Request, Refusal> {
        let trace_id = self.inner.traces.of(door, trace_id);
        let remaining = remaining.unwrap_or(self.inner.config.timeout);
        if remaining.is_zero() {
            let message = "the request has no time left: ask with a timeout above zero";
            return Err(Refusal::new(RefusalCode::BadRequest, message));
        }
        let max = self.inner.config.timeout_max;
        // A node whose own bound is higher may pass on what it has taken.
        if remaining > max && door != Door::Peer {
            let message = format!(
                "the request asks for {} ms, at most {} ms are given: ask with a shorter timeout",
                remaining.as_millis(),
                max.as_millis()
            );
            return Err(Refusal::new(RefusalCode::BadRequest, message));
        }
        let remaining = remaining.min(max);
        let request = Request { door, received, deadline: received + remaining, trace_id };
        self.inner.in_time(request)?;
        Ok(request)
    }

    /// How often a key was asked for on this node, if `track_access` is set.
    pub fn access(&self, namespace: Namespace, key: &Key) -> Option<Access> {
        self.inner.access.as_ref()?.of(namespace, key)
    }

    /// Counts an access by a client.
    fn touch(&self, namespace: Namespace, key: &Key, request: Request) {
        if let Some(access) = &self.inner.access
            && request.door != Door::Peer
        {
            access.touch(namespace, key, self.inner.wall());
        }
    }

    /// What it has counted since its start.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Figures of its storage. Visits every partition.
    pub fn storage_stats(&self) -> crate::storage::Stats {
        self.inner.store.stats()
    }

    /// How long the storage's writes with their syncs took.
    pub fn sync_time(&self) -> &Histogram {
        self.inner.store.sync_time()
    }

    /// Whether its storage takes writes now.
    ///
    /// # Errors
    /// Why not.
    pub fn writable(&self) -> Result<(), Refusal> {
        self.inner.store.writable().map_err(|error| replica::storage_refusal(&error))
    }

    /// The other members of the active layouts, in order.
    pub fn peers(&self) -> Vec<NodeId> {
        self.inner.others()
    }

    /// Requests in flight to a peer, and bytes that wait to be written to it.
    pub fn peer_load(&self, peer: NodeId) -> (usize, usize) {
        self.inner.peers.load(peer)
    }

    /// What the port behind a door has in hand; none for REST, which is not the node's own.
    pub fn port_load(&self, door: Door) -> Option<Arc<Load>> {
        match door {
            Door::Binary => Some(self.inner.client_load.clone()),
            Door::Peer => Some(self.inner.peer_load.clone()),
            Door::Rest => None,
        }
    }

    /// How long a request that comes now would wait; zero when the node is not busy enough to tell.
    pub fn estimated_wait(&self) -> Duration {
        lock(&self.inner.pace).wait(self.inner.metrics.in_flight()).unwrap_or_default()
    }

    /// The peers that are left out where there is a choice, in order.
    pub fn peers_down(&self) -> Vec<NodeId> {
        self.inner.down()
    }

    /// How it is now. Visits every partition.
    pub fn status(&self) -> StatusReply {
        let inner = &self.inner;
        let stats = inner.store.stats();
        let layouts = self.layouts();
        let is_ours = |partition: &PartitionId| {
            layouts.active.iter().any(|layout| layout.is_primary(*partition, inner.id))
        };
        let ours: Vec<PartitionId> = inner.descriptor.partitions.partitions().filter(is_ours).collect();
        let refilled =
            ours.iter().filter(|partition| inner.store.partition_state(**partition).0.refilled).count();
        let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
        let uptime = inner.now().since(inner.started).as_millis();
        StatusReply {
            node: inner.id,
            cluster: inner.descriptor.cluster,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            stopping: inner.stop.get(),
            layout: inner.layout_ref(),
            peers_down: inner.down(),
            peers: self.views(),
            partitions: count(ours.len()),
            partitions_refilled: count(refilled),
            data_keys: stats.data_keys,
            guest_keys: stats.guest_keys,
            log_bytes: stats.log_bytes,
            live_bytes: stats.live_bytes,
            damaged_records: stats.damaged.values().sum(),
            in_flight: inner.metrics.in_flight(),
        }
    }

    /// A new operation id, for a door whose clients give none.
    pub fn write_id(&self) -> WriteId {
        let mut bits = [0; 16];
        lock(&self.inner.rng).fill_bytes(&mut bits);
        WriteId(u128::from_le_bytes(bits))
    }

    /// Judges a greeting on behalf of a port.
    ///
    /// # Errors
    /// When the caller means another cluster.
    pub fn greet(&self, hello: &Hello, version: u8) -> Result<Welcome, Refusal> {
        self.inner.greet(hello, version)
    }
}

impl Inner {
    pub(crate) fn now(&self) -> Mono {
        Mono::from_origin(self.io.clock.mono())
    }

    pub(crate) fn wall(&self) -> Wall {
        Wall::from_epoch(self.io.clock.wall())
    }

    pub(crate) fn mint(&self) -> MutexGuard<'_, ActorMint> {
        lock(&self.mint)
    }

    /// Goes on under another incarnation, which is durable on return as at a start: a peer knew a write of ours that we
    /// do not.
    ///
    /// # Errors
    /// When it cannot be made durable. Neither can a put be then.
    pub(crate) async fn renew_incarnation(&self) -> Result<(), StorageError> {
        point!("incarnation-renewed");
        let incarnation = Incarnation(lock(&self.rng).next_u64());
        tracing::error!(
            node = %self.id,
            "a peer knows a later write of this node than its own disk has: state was lost or the directory \
             copied; going on as a new incarnation"
        );
        let position = self.store.note_incarnation(incarnation).await?;
        // Not after the sync: a double of this node may be minting under the old one. What others make under the new
        // one meanwhile stands behind this in the log.
        self.mint().renew(incarnation);
        self.store.wait_synced(position).await
    }

    pub(crate) fn layout_ref(&self) -> LayoutRef {
        lock(&self.layouts).history.current().reference()
    }

    /// Whom to ask for a key, and the layout that says so.
    pub(crate) fn preference(&self, namespace: Namespace, key: &Key) -> (Arc<PreferenceList>, LayoutRef) {
        let partition = self.descriptor.partitions.partition_of(namespace, key);
        let mut layouts = lock(&self.layouts);
        let layout = layouts.history.current().reference();
        (layouts.preference(partition), layout)
    }

    /// Whom to ask for the keys of a partition below Q.
    pub(crate) fn preference_of(&self, partition: PartitionId) -> Arc<PreferenceList> {
        lock(&self.layouts).preference(partition)
    }

    /// Takes a request in, if there is room and time for it. It is in flight until what is returned is dropped.
    fn admit(&self, request: Request) -> Result<InFlight<'_>, Refusal> {
        self.in_time(request)?;
        let in_flight = self.metrics.in_flight();
        let wait = lock(&self.pace).wait(in_flight);
        if let Some(wait) = wait.filter(|wait| request.deadline < self.now() + *wait) {
            self.metrics.shed_wait.one();
            let message = format!(
                "{in_flight} requests are in progress, this one would take {} ms, longer than it has; nothing was done: \
                 try again",
                wait.as_millis()
            );
            let retry_after = wait.clamp(RETRY_AFTER, RETRY_AFTER_MAX);
            return Err(Refusal::new(RefusalCode::Overloaded, message).with_retry_after(retry_after));
        }
        let room = if buggify!("shed") { 0 } else { self.config.in_flight_max };
        self.metrics.enter(room).ok_or_else(|| {
            self.metrics.shed_in_flight.one();
            let message = "the node has too many requests in progress; nothing was done: try again";
            Refusal::new(RefusalCode::Overloaded, message).with_retry_after(RETRY_AFTER)
        })
    }

    /// Takes note that an operation was carried out.
    fn done(&self, now: Mono) {
        lock(&self.pace).done(now, self.metrics.in_flight());
    }

    /// Refuses a request whose asker has stopped waiting: before any dot, so it did not happen.
    pub(crate) fn in_time(&self, request: Request) -> Result<(), Refusal> {
        if self.now() < request.deadline {
            return Ok(());
        }
        self.metrics.shed_late.one();
        let message = "the request's time was up before it began; nothing was done: try again";
        Err(Refusal::new(RefusalCode::Overloaded, message).with_retry_after(RETRY_AFTER))
    }

    /// What a member's new data directory needs.
    fn welcome_member(&self, joining: NodeId) -> Result<JoinReply, Refusal> {
        let refuse = |message: String| Err(Refusal::new(RefusalCode::BadRequest, message));
        if joining == self.id {
            return refuse(format!("{joining} is this node, and it is running"));
        }
        let layouts = lock(&self.layouts);
        let active: Vec<Layout> =
            layouts.history.active().iter().map(|layout| Layout::clone(layout)).collect();
        if active.iter().all(|layout| layout.member(joining).is_none()) {
            return refuse(format!("{joining} is not a member of the cluster's layout"));
        }
        Ok(JoinReply { descriptor: self.descriptor.clone(), active })
    }

    /// The other members of the active layouts, in order.
    pub(crate) fn others(&self) -> Vec<NodeId> {
        let layouts = lock(&self.layouts);
        let members = layouts.history.active().iter().flat_map(|layout| layout.members());
        let others: BTreeSet<NodeId> = members.map(|member| member.id).filter(|id| *id != self.id).collect();
        others.into_iter().collect()
    }

    /// The address of a peer, none when no active layout has it.
    pub(crate) fn peer_addr(&self, node: NodeId) -> Option<String> {
        let layouts = lock(&self.layouts);
        let member = layouts.history.active().iter().find_map(|layout| layout.member(node));
        member.map(|member| member.peer_addr.clone())
    }

    pub(crate) fn head(&self, request: Request) -> FrameHead {
        FrameHead { layout: self.layout_ref(), trace_id: request.trace_id, ..FrameHead::default() }
    }

    pub(crate) fn greet(&self, hello: &Hello, version: u8) -> Result<Welcome, Refusal> {
        let cluster = self.descriptor.cluster;
        if let Some(meant) = hello.cluster.filter(|meant| *meant != cluster) {
            let message = format!("this node belongs to cluster {cluster}, the caller means {meant}");
            return Err(Refusal::new(RefusalCode::WrongCluster, message));
        }
        if !hello.auth.contains(&AuthMethod::None) {
            let message = "this node takes connections without proof only, and the caller did not offer that";
            return Err(Refusal::new(RefusalCode::UnsupportedAuth, message));
        }
        Ok(Welcome {
            version,
            features: 0,
            auth: AuthMethod::None,
            cluster,
            node: self.id,
            layout: self.layout_ref(),
        })
    }
}
