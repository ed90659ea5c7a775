//! The scenario that `cargo sim run` plays: three nodes of the product and two clients over links with random
//! delays, one link between nodes cut for a while, one node without power for a while.
//!
//! ```text
//!   c1, c2 ── gets, and puts blind or with the context of a get ──▶ n1 n2 n3
//!   200–1,200 ms   n1 ✕ n2        600 ms   n3 loses its power, is back at 900 ms
//!   all healed ──▶ every key read at R=3 ──▶ durability check
//! ```
//!
//! What a client knows of its writes is the truth that the check goes by: a write's past is what the read
//! returned whose context it carried.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jepsen_like_checks::build::Builder;
use jepsen_like_checks::event::{After, Event, Kind, Payload, Sibling};
use jepsen_like_checks::value::Value;
use jepsen_like_checks::{Verdict, durability};
use rand::{Rng, RngExt};
use ringdove::client::{Client, ClientConfig, ClientError, ReadOptions, WriteOptions};
use ringdove::dynamo::cluster::ClusterDescriptor;
use ringdove::dynamo::layout::{Layout, Member};
use ringdove::dynamo::ring::PartitionCount;
use ringdove::io::Io;
use ringdove::net::message::Context;
use ringdove::node::{Node, NodeConfig, NodeError, found};
use ringdove::server::serve_clients;
use ringdove::storage::directory::{self, FORMAT, NodeMeta};
use ringdove::types::{Incarnation, Key, NodeId, WriteId};

use crate::run::{Panicked, simulate};
use crate::seed;
use crate::trace::Trace;
use crate::world::{Host, Running, Settings, Start, World};

/// What to change about a run besides its seed.
#[derive(Default)]
pub struct Options {
    /// Print every event as a line.
    pub log: bool,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The hash over all events: equal for equal runs.
    pub trace_hash: u64,
    /// How many events there were.
    pub events: u64,
    /// How the clients fared.
    pub operations: Operations,
    /// Simulated time at the end.
    pub simulated: Duration,
    /// What the durability check says.
    pub verdict: Verdict,
}

/// Operations by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Operations {
    /// Reads that were answered.
    pub read: u32,
    /// Writes that were acknowledged.
    pub written: u32,
    /// Operations that did not happen: refused, or nobody reachable.
    pub refused: u32,
    /// Writes that may or may not have happened.
    pub unknown: u32,
}

/// Plays the scenario.
///
/// # Errors
/// When anything panicked. The trace up to there is printed if `log` is set.
pub fn run(seed: u64, options: &Options) -> Result<Report, Panicked> {
    let trace = if options.log { Trace::with_log(io::stdout()) } else { Trace::new() };
    let (history, simulated, verdict) = simulate(seed, Settings::default(), trace.clone(), play)?;
    let operations = history.operations;
    Ok(Report { trace_hash: trace.hash(), events: trace.events(), operations, simulated, verdict })
}

const NODES: u64 = 3;
const CLIENTS: [&str; 2] = ["c1", "c2"];
const KEYS: u32 = 12;
const OPERATIONS: u32 = 150;
const DIR: &str = "/data";

/// What the clients did, shared by them.
#[derive(Debug, Default)]
struct History {
    builder: Builder,
    /// Events so far; the index of the next.
    events: u64,
    processes: i64,
    keys: BTreeSet<Key>,
    operations: Operations,
}

impl History {
    /// Writes an event down and returns its index.
    fn push(&mut self, event: &Event<'_>) -> u64 {
        self.builder.push(event).expect("clients that follow the rules of histories");
        self.events += 1;
        self.events - 1
    }

    /// A process that has done nothing yet. A client goes on as a new one after an unknown outcome.
    fn process(&mut self) -> i64 {
        self.processes += 1;
        self.processes
    }
}

/// An event about a key.
fn event<'a>(kind: Kind, process: i64, f: &'a str, key: &Key) -> Event<'a> {
    Event { key: Some(Value::Str(key.to_string().into())), ..Event::new(kind, process, f) }
}

/// What a read returned.
fn siblings(ids: impl IntoIterator<Item = WriteId>) -> Payload<'static> {
    let sibling = |id: WriteId| Sibling { id: format!("{:032x}", id.0).into(), ..Sibling::default() };
    Payload::Siblings(ids.into_iter().map(sibling).collect())
}

type Shared = Arc<Mutex<History>>;

fn name_of(node: NodeId) -> String {
    node.to_string()
}

fn client_addr(node: NodeId) -> String {
    format!("{node}:7000")
}

fn layout() -> Layout {
    let members = (1..=NODES).map(NodeId).map(|id| Member {
        id,
        peer_addr: format!("{id}:7100"),
        client_addr: client_addr(id),
        zone: String::new(),
        capacity: 1,
    });
    let partitions = PartitionCount::new(8).expect("8 is a power of two");
    Layout::first(partitions, 3, members.collect()).expect("three sound members")
}

async fn play(world: World) -> (History, Duration, Verdict) {
    let mut random = [0; 64];
    seed::stream(world.seed(), "cluster").fill_bytes(&mut random);
    let descriptor = ClusterDescriptor::new(PartitionCount::new(8).expect("a power of two"), 3, &random);
    let start_node = |node: NodeId| {
        let layouts = vec![layout()];
        let meta = NodeMeta { format: FORMAT, node, descriptor: descriptor.clone(), layouts };
        world.host(&name_of(node)).start(move |io, start| run_node(io, start, meta))
    };
    let nodes: Vec<Running<_>> = (1..=NODES).map(|id| start_node(NodeId(id))).collect();
    world.sleep(Duration::from_millis(50)).await;

    let history = Shared::default();
    let clients: Vec<Running<()>> = CLIENTS
        .iter()
        .map(|name| {
            let (world, history) = (world.clone(), history.clone());
            world.host(name).start(move |io, start| run_client(world, io, start, name, history))
        })
        .collect();

    world.sleep(Duration::from_millis(200)).await;
    world.net().cut_both("n1", "n2");
    world.sleep(Duration::from_millis(400)).await;
    let failing: Host = world.host("n3");
    failing.power_loss().await;
    world.sleep(Duration::from_millis(300)).await;
    let restarted = start_node(NodeId(3));
    world.sleep(Duration::from_millis(300)).await;
    world.net().heal_all();
    for client in clients {
        client.output().await.expect("clients are not killed");
    }

    // What is down for a peer is tried again within its back-off; then all replicas must answer.
    world.sleep(Duration::from_secs(5)).await;
    let (reader_world, reader_history) = (world.clone(), history.clone());
    let reader =
        world.host("reader").start(move |io, start| final_reads(reader_world, io, start, reader_history));
    reader.output().await.expect("the reader is not killed");
    let simulated = world.now();
    drop((nodes, restarted));
    let mut history = std::mem::take(&mut *lock(&history));
    let judged = std::mem::take(&mut history.builder).finish();
    let verdict = durability::check(&judged, &jepsen_like_checks::Options::default());
    (history, simulated, verdict)
}

/// One life of one node: the product's shell as production runs it.
async fn run_node(io: Io, start: Start, meta: NodeMeta) -> Result<(), NodeError> {
    let dir = Path::new(DIR);
    if directory::read(io.disk.as_ref(), dir).await?.is_none() {
        let incarnation = Incarnation(seed::stream(start.seed, "founding").next_u64());
        found(io.disk.clone(), io.clock.clone(), dir, &meta, incarnation).await?;
    }
    let mut bits = [0; 32];
    seed::stream(start.seed, "node").fill_bytes(&mut bits);
    let listen = async |addr: String| {
        let refused = |error: io::Error| NodeError::Listen { addr: addr.clone(), reason: error.to_string() };
        io.net.listen(&addr).await.map_err(refused)
    };
    let (node, _) = Node::open(NodeConfig::new(PathBuf::from(DIR)), io.clone(), bits).await?;
    let layout = node.layout();
    let member = layout.member(node.id()).ok_or(NodeError::NotAMember(node.id()))?;
    let peer_port = listen(member.peer_addr.clone()).await?;
    let client_port = listen(member.client_addr.clone()).await?;
    node.run(peer_port, serve_clients(node.clone(), client_port)).await
}

fn lock(history: &Shared) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

fn client(io: &Io, start: Start, first: u64, timeout: Duration) -> Client {
    let addrs = (0..NODES).map(|turn| client_addr(NodeId((first + turn) % NODES + 1)));
    let mut bits = [0; 32];
    seed::stream(start.seed, "client").fill_bytes(&mut bits);
    let config = ClientConfig { timeout, ..ClientConfig::new(addrs) };
    Client::new(io.net.clone(), io.clock.clone(), bits, config)
}

fn key(number: u32) -> Key {
    Key::new(format!("key{number}").into_bytes()).expect("a short key")
}

/// Reads and writes at random and writes down what it did.
async fn run_client(world: World, io: Io, start: Start, name: &'static str, history: Shared) {
    let mut chance = seed::stream(start.seed, "operations");
    let client = client(&io, start, chance.random_range(0..NODES), Duration::from_millis(1500));
    // What the last read of each key returned: its context, and the index of its completion.
    let mut seen: BTreeMap<Key, (Bytes, u64)> = BTreeMap::new();
    let mut process = lock(&history).process();
    for _ in 0..OPERATIONS {
        let pause = Duration::from_micros(chance.random_range(0..20_000));
        io.clock.sleep_until(io.clock.mono() + pause).await;
        let key = key(chance.random_range(0..KEYS));
        if chance.random_bool(0.5) {
            lock(&history).push(&event(Kind::Invoke, process, "get", &key));
            match client.get(&key, &ReadOptions { r: Some(2), ..ReadOptions::default() }).await {
                Ok(reply) => {
                    let ids: Vec<WriteId> = reply.values.iter().map(|version| version.write_id).collect();
                    world.record(name, "read", format!("{key} {ids:?}"));
                    let mut history = lock(&history);
                    let value = Some(siblings(ids));
                    let index = history.push(&Event { value, ..event(Kind::Ok, process, "get", &key) });
                    history.operations.read += 1;
                    seen.insert(key, (reply.context, index));
                }
                Err(error) => {
                    world.record(name, "not-read", format!("{key} {error}"));
                    let mut history = lock(&history);
                    history.push(&event(Kind::Fail, process, "get", &key));
                    history.operations.refused += 1;
                }
            }
            continue;
        }
        let write_id = WriteId(chance.random());
        let value: Vec<u8> = vec![chance.random(); chance.random_range(0..400)];
        let (context, after) = match seen.get(&key) {
            Some((token, index)) if chance.random_bool(0.8) => (Context::Token(token.clone()), Some(*index)),
            _ => (Context::Nothing, None),
        };
        world.record(name, "write", format!("{key} {write_id:?} after {after:?}"));
        {
            let mut history = lock(&history);
            history.keys.insert(key.clone());
            let id = Some(format!("{:032x}", write_id.0).into());
            let after = after.map(After::Index);
            history.push(&Event { id, after, ..event(Kind::Invoke, process, "put", &key) });
        }
        let options = WriteOptions {
            w: Some(2),
            context: Some(context),
            write_id: Some(write_id),
            ..WriteOptions::default()
        };
        let outcome = client.put(&key, value, &options).await;
        let mut history = lock(&history);
        let (kind, count) = match &outcome {
            Ok(_) => (Kind::Ok, &mut history.operations.written),
            Err(ClientError::Unknown(_)) => (Kind::Info, &mut history.operations.unknown),
            Err(_) => (Kind::Fail, &mut history.operations.refused),
        };
        *count += 1;
        history.push(&event(kind, process, "put", &key));
        if kind == Kind::Info {
            process = history.process();
        }
        match outcome {
            Ok(_) => world.record(name, "written", format!("{write_id:?}")),
            Err(error) => world.record(name, "not-written", format!("{write_id:?} {error}")),
        }
    }
}

/// Reads every key from all replicas.
async fn final_reads(world: World, io: Io, start: Start, history: Shared) {
    let client = client(&io, start, 0, Duration::from_secs(20));
    let (keys, process) = {
        let mut history = lock(&history);
        (history.keys.clone(), history.process())
    };
    for key in keys {
        lock(&history).push(&event(Kind::Invoke, process, "final", &key));
        let options = ReadOptions { r: Some(3), strict: true, ..ReadOptions::default() };
        let read = client.get(&key, &options).await;
        let read = read.unwrap_or_else(|error| panic!("{key} cannot be read after all is healed: {error}"));
        let ids: BTreeSet<WriteId> = read.values.iter().map(|version| version.write_id).collect();
        world.record("reader", "final", format!("{key} {ids:?}"));
        let value = Some(siblings(ids));
        lock(&history).push(&Event { value, ..event(Kind::Ok, process, "final", &key) });
    }
}
