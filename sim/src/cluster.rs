//! The cluster of a run: real nodes on simulated hosts, and the operator who starts them again.
//!
//! Node code never ends the process: a node that stops returns why. The operator here does what `ringdove cluster` does: a
//! node that ended by itself is started again after a second, one that the plan took down when the plan says so.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use ringdove::dynamo::cluster::ClusterDescriptor;
use ringdove::dynamo::layout::{Layout, Member};
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::Caps;
use ringdove::io::Io;
use ringdove::node::{Node, NodeConfig, NodeError, found};
use ringdove::server::serve_clients;
use ringdove::storage::StorageError;
use ringdove::storage::directory::{self, FORMAT, NodeMeta};
use ringdove::types::{Incarnation, NodeId};

use crate::holdings::DIR;
use crate::plan::node_name;
use crate::seed;
use crate::settings::{NodeSettings, RunSettings};
use crate::world::{Host, Start, World};

/// How long the operator waits before he starts a node that ended by itself.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Starts in a row that end because the disk cannot be read, after which it is given up.
const UNREAD_MAX: u32 = 10;

/// The client port of a node.
pub fn client_addr(node: NodeId) -> String {
    format!("{node}:7000")
}

/// A node as the layout has it.
pub fn member(id: NodeId) -> Member {
    Member {
        id,
        peer_addr: format!("{id}:7100"),
        client_addr: client_addr(id),
        zone: String::new(),
        capacity: 1,
    }
}

struct Seat {
    id: NodeId,
    host: Host,
    /// Whether it is to run.
    wanted: bool,
    /// When it was first seen to have ended although it is wanted.
    ended_at: Option<Duration>,
    /// What was changed of its settings, and whether no start has gone by that yet.
    store: NodeSettings,
    changed: bool,
    /// It has held data before, and its directory is lost.
    lost: bool,
    /// Why its directory cannot be used, where the last start ended so.
    damaged: Arc<Mutex<Option<String>>>,
    /// Starts in a row that ended because something could not be read, and what.
    unread: Arc<Mutex<(u32, String)>>,
    /// The node that runs, for stopping it.
    node: Arc<Mutex<Option<Node>>>,
    starts: u32,
}

/// The nodes of a run.
pub struct Cluster {
    world: World,
    settings: RunSettings,
    config: NodeConfig,
    descriptor: ClusterDescriptor,
    /// The newest layouts that a node was seen to go by, newest first.
    layouts: Vec<Arc<Layout>>,
    seats: BTreeMap<String, Seat>,
    changed_starts: u32,
}

impl Cluster {
    /// A cluster by these settings; no node runs yet.
    pub fn new(world: &World, settings: &RunSettings) -> Cluster {
        let partitions = PartitionCount::new(settings.partitions).expect("checked");
        let mut random = [0; 64];
        seed::stream(world.seed(), "cluster").fill_bytes(&mut random);
        let descriptor = ClusterDescriptor::new(partitions, settings.replicas, &random);
        let ids: Vec<NodeId> = (1..=settings.nodes).map(NodeId).collect();
        let members = ids.iter().map(|id| member(*id));
        let layout = Layout::first(partitions, settings.replicas, members.collect()).expect("sound members");
        let seats = ids.iter().map(|id| {
            let host = world.host(&node_name(id.0));
            let node = Arc::default();
            (
                node_name(id.0),
                Seat {
                    id: *id,
                    host,
                    wanted: false,
                    ended_at: None,
                    store: NodeSettings::default(),
                    changed: false,
                    lost: false,
                    damaged: Arc::default(),
                    unread: Arc::default(),
                    node,
                    starts: 0,
                },
            )
        });
        let seats = seats.collect();
        Cluster {
            world: world.clone(),
            settings: settings.clone(),
            config: config(settings),
            descriptor,
            layouts: vec![Arc::new(layout)],
            seats,
            changed_starts: 0,
        }
    }

    /// How the cluster is set up.
    pub fn settings(&self) -> &RunSettings {
        &self.settings
    }

    /// The settings with which nodes start, but for what was changed of a store.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// What the nodes agreed on.
    pub fn descriptor(&self) -> &ClusterDescriptor {
        &self.descriptor
    }

    /// Who owns what.
    pub fn layout(&self) -> &Arc<Layout> {
        self.layouts.first().expect("a cluster has a layout")
    }

    /// The id of a host's node.
    pub fn id_of(&self, name: &str) -> Option<NodeId> {
        self.seats.get(name).map(|seat| seat.id)
    }

    /// The ids of all nodes, members or not.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.seats.values().map(|seat| seat.id)
    }

    /// Whether the newest layout has a host's node.
    pub fn is_member(&self, name: &str) -> bool {
        self.id_of(name).is_some_and(|id| self.layout().member(id).is_some())
    }

    fn look_at_layouts(&mut self) {
        let version = |layouts: &[Arc<Layout>]| {
            let newest = layouts[0].reference();
            (newest.version, newest.hash, std::cmp::Reverse(layouts.len()))
        };
        for name in self.seats.keys().cloned().collect::<Vec<_>>() {
            let Some(node) = self.node(&name) else { continue };
            let active = node.layouts().active;
            if version(&active) > version(&self.layouts) {
                self.layouts = active;
            }
        }
    }

    /// The hosts of the nodes, by name.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.seats.iter().map(|(name, seat)| (name.as_str(), &seat.host))
    }

    /// The host of a node; none if no node has this name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.seats.get(name).map(|seat| &seat.host)
    }

    /// Starts a node, unless it runs.
    pub fn start(&mut self, name: &str) {
        self.look_at_layouts();
        let Some(seat) = self.seats.get_mut(name) else { return };
        seat.wanted = true;
        seat.ended_at = None;
        if seat.host.is_running() {
            // Stopped and still draining: it is started when it has ended.
            return;
        }
        seat.starts += 1;
        let meta = NodeMeta {
            format: FORMAT,
            node: seat.id,
            descriptor: self.descriptor.clone(),
            layouts: self.layouts.iter().map(|layout| Layout::clone(layout)).collect(),
        };
        let (slot, lost) = (seat.node.clone(), seat.lost);
        let mut config = self.config.clone();
        change(&mut config, &seat.store);
        self.changed_starts += u32::from(std::mem::take(&mut seat.changed));
        let (damaged, unread) = (seat.damaged.clone(), seat.unread.clone());
        let _ = seat.host.start(move |io, start| async move {
            let ended = run_node(io, start, meta, config, slot, lost).await;
            if let Err(NodeError::Storage(
                error @ (StorageError::BadDirectory(_) | StorageError::OtherFormat { .. }),
            )) = &ended
            {
                *damaged.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
            let mut unread = unread.lock().unwrap_or_else(PoisonError::into_inner);
            *unread = match &ended {
                Err(NodeError::Storage(error @ StorageError::Io { .. })) => (unread.0 + 1, error.to_string()),
                _ => (0, String::new()),
            };
            drop(unread);
            ended
        });
    }

    /// The member's disk is empty: the next start makes a new directory, as `ringdove init --replace` does.
    pub fn replace(&mut self, name: &str) {
        if let Some(seat) = self.seats.get_mut(name) {
            seat.lost = true;
            *seat.unread.lock().unwrap_or_else(PoisonError::into_inner) = (0, String::new());
        }
    }

    /// The nodes that could not start because their directory is damaged, and why; each start once.
    pub fn damaged_directories(&mut self) -> Vec<(String, String)> {
        let take = |seat: &Seat| seat.damaged.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stopped = self.seats.iter().filter(|(_, seat)| !seat.host.is_running());
        stopped.filter_map(|(name, seat)| Some((name.clone(), take(seat)?))).collect()
    }

    /// The nodes whose disks could not be read in many starts in a row, and why.
    pub fn unreadable_disks(&self) -> Vec<(String, String)> {
        let why = |seat: &Seat| {
            let (starts, why) = &*seat.unread.lock().unwrap_or_else(PoisonError::into_inner);
            (*starts >= UNREAD_MAX).then(|| why.clone())
        };
        let stopped = self.seats.iter().filter(|(_, seat)| !seat.host.is_running());
        stopped.filter_map(|(name, seat)| Some((name.clone(), why(seat)?))).collect()
    }

    /// Starts all nodes.
    pub fn start_all(&mut self) {
        for name in self.seats.keys().cloned().collect::<Vec<_>>() {
            self.start(&name);
        }
    }

    /// Stops a node as an operator does.
    pub fn stop(&mut self, name: &str) {
        let Some(seat) = self.seats.get_mut(name) else { return };
        seat.wanted = false;
        if let Some(node) = &*seat.node.lock().unwrap_or_else(PoisonError::into_inner) {
            node.stop();
        }
    }

    /// The node's host is about to be taken down: nobody starts it again until the plan does.
    pub fn down(&mut self, name: &str) {
        if let Some(seat) = self.seats.get_mut(name) {
            seat.wanted = false;
        }
    }

    /// Starts again whoever ended by himself a while ago. Returns how many nodes are wanted and do not run.
    pub fn tend(&mut self) -> usize {
        self.look_at_layouts();
        let now = self.world.now();
        let mut due = Vec::new();
        let mut missing = 0;
        for (name, seat) in &mut self.seats {
            if !seat.wanted || seat.host.is_running() {
                seat.ended_at = None;
                continue;
            }
            missing += 1;
            if now >= *seat.ended_at.get_or_insert(now) + RESTART_AFTER {
                due.push(name.clone());
            }
        }
        for name in due {
            self.start(&name);
        }
        missing
    }

    /// When the next node is started again that has ended by itself.
    pub fn next_restart(&self) -> Option<Duration> {
        self.seats.values().filter_map(|seat| Some(seat.ended_at? + RESTART_AFTER)).min()
    }

    /// From its next start on a node goes by these.
    pub fn reconfigure(&mut self, name: &str, store: NodeSettings) {
        if let Some(seat) = self.seats.get_mut(name) {
            seat.changed |= seat.store != store;
            seat.store = store;
        }
    }

    /// Starts that went by other settings than the start before.
    pub fn changed_starts(&self) -> u32 {
        self.changed_starts
    }

    /// Starts of all nodes so far.
    pub fn starts(&self) -> u32 {
        self.seats.values().map(|seat| seat.starts).sum()
    }

    /// The node that runs on a host, if one does.
    pub fn node(&self, name: &str) -> Option<Node> {
        let seat = self.seats.get(name)?;
        if !seat.host.is_running() {
            return None;
        }
        seat.node.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn config(settings: &RunSettings) -> NodeConfig {
    let mut config = NodeConfig::new(PathBuf::from(DIR));
    config.hint_after = Duration::from_millis(settings.hint_after_ms);
    config.detector.interval = Duration::from_millis(settings.gossip_ms);
    config.detector.threshold = f64::from(settings.phi_tenths) / 10.0;
    config.handoff_interval = Duration::from_millis(settings.handoff_ms);
    config.anti_entropy_interval = Duration::from_millis(settings.anti_entropy_ms);
    config.scrub_interval = Duration::from_millis(settings.scrub_ms);
    config.reap_interval = Duration::from_millis(settings.reap_ms);
    config.reap_grace = Duration::from_millis(settings.grace_ms);
    config.guests_max = settings.guests_max;
    config.hedge_after = Duration::from_millis(settings.hedge_after_ms);
    config.durability = settings.durability();
    config.caps = Caps { siblings_max: settings.siblings_max, ..Caps::default() };
    config.store.segment_bytes = settings.segment_bytes;
    config.store.snapshot_bytes_min = settings.snapshot_bytes_min;
    config.store.dead_percent_max = settings.dead_percent_max;
    config.store.cache_bytes = settings.cache_bytes;
    config
}

/// Sets what an operator has set.
fn change(config: &mut NodeConfig, store: &NodeSettings) {
    let set = |to: &mut Duration, ms: Option<u64>| *to = ms.map_or(*to, Duration::from_millis);
    set(&mut config.hint_after, store.hint_after_ms);
    set(&mut config.anti_entropy_interval, store.anti_entropy_ms);
    set(&mut config.handoff_interval, store.handoff_ms);
    if let Some(tenths) = store.phi_tenths {
        config.detector.threshold = f64::from(tenths) / 10.0;
    }
    let to = &mut config.store;
    to.segment_bytes = store.segment_bytes.unwrap_or(to.segment_bytes);
    to.snapshot_bytes_min = store.snapshot_bytes_min.unwrap_or(to.snapshot_bytes_min);
    to.dead_percent_max = store.dead_percent_max.unwrap_or(to.dead_percent_max);
    to.cache_bytes = store.cache_bytes.unwrap_or(to.cache_bytes);
}

/// One life of one node: the product's shell as production runs it.
async fn run_node(
    io: Io,
    start: Start,
    meta: NodeMeta,
    config: NodeConfig,
    slot: Arc<Mutex<Option<Node>>>,
    lost: bool,
) -> Result<(), NodeError> {
    let dir = Path::new(DIR);
    if directory::read(io.disk.as_ref(), dir).await?.is_none() {
        if lost {
            // What it held is unknown: nothing counts as refilled.
            directory::write(io.disk.as_ref(), dir, &meta).await?;
        } else {
            let incarnation = Incarnation(seed::stream(start.seed, "founding").next_u64());
            found(io.disk.clone(), io.clock.clone(), dir, &meta, incarnation).await?;
        }
    }
    let mut bits = [0; 32];
    seed::stream(start.seed, "node").fill_bytes(&mut bits);
    let listen = async |addr: String| {
        let refused = |error: io::Error| NodeError::Listen { addr: addr.clone(), reason: error.to_string() };
        io.net.listen(&addr).await.map_err(refused)
    };
    let (node, _) = Node::open(config, io.clone(), bits).await?;
    let member = member(node.id());
    let peer_port = listen(member.peer_addr).await?;
    let client_port = listen(member.client_addr).await?;
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.clone());
    let ended = node.run(peer_port, serve_clients(node.clone(), client_port)).await;
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    ended
}
