//! A cluster of nodes in this process, on a network and disks in memory, with a wall clock that tests may set.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringdove::dynamo::cluster::ClusterDescriptor;
use ringdove::dynamo::layout::{Layout, Member};
use ringdove::dynamo::ring::PartitionCount;
use ringdove::io::{BoxFuture, Clock, Disk, Io, Listener, MemoryDisk, Net, RealClock, Stream};
use ringdove::net::envelope::FrameHead;
use ringdove::net::link::{Link, hello};
use ringdove::net::message::Spoken;
use ringdove::node::metrics::Door;
use ringdove::node::{Node, NodeConfig, Request, found};
use ringdove::server::serve_clients;
use ringdove::storage::directory::{self, FORMAT, NodeMeta};
use ringdove::types::{Incarnation, Key, Mono, NodeId, TraceId, WriteId};
use tokio::sync::mpsc;

/// A network without wires.
#[derive(Clone, Default)]
pub(crate) struct MemoryNet(Arc<Mutex<Addresses>>);

#[derive(Default)]
struct Addresses {
    listeners: BTreeMap<String, mpsc::UnboundedSender<Stream>>,
    closed: BTreeSet<String>,
}

struct MemoryListener(String, mpsc::UnboundedReceiver<Stream>);

impl MemoryNet {
    /// New connections to this address are refused.
    pub(crate) fn close(&self, addr: &str) {
        self.0.lock().unwrap().closed.insert(addr.to_owned());
    }

    /// And taken again.
    pub(crate) fn reopen(&self, addr: &str) {
        self.0.lock().unwrap().closed.remove(addr);
    }
}

impl Net for MemoryNet {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().unwrap().listeners.insert(addr.to_owned(), sender);
        let listener: Box<dyn Listener> = Box::new(MemoryListener(addr.to_owned(), receiver));
        Box::pin(async move { Ok(listener) })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let stream = |half: tokio::io::DuplexStream| {
            let (reader, writer) = tokio::io::split(half);
            Stream { reader: Box::new(reader), writer: Box::new(writer), peer_addr: addr.to_owned() }
        };
        let state = self.0.lock().unwrap();
        let open = state.listeners.get(addr).filter(|_| !state.closed.contains(addr));
        let sent = open.is_some_and(|listener| listener.send(stream(far)).is_ok());
        let connected = if sent { Ok(stream(near)) } else { Err(io::ErrorKind::ConnectionRefused.into()) };
        Box::pin(async move { connected })
    }
}

impl Listener for MemoryListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async { self.1.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into()) })
    }

    fn local_addr(&self) -> String {
        self.0.clone()
    }
}

/// The real clock, moved by what the test says.
pub(crate) struct TestClock {
    real: RealClock,
    ahead_ms: AtomicU64,
    mono_ahead_ms: AtomicU64,
}

impl TestClock {
    pub(crate) fn move_wall(&self, by: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// Lets this time pass at once; timers that are set already ring at their old moment.
    pub(crate) fn move_mono(&self, by: Duration) {
        self.mono_ahead_ms.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn mono_ahead(&self) -> Duration {
        Duration::from_millis(self.mono_ahead_ms.load(Ordering::SeqCst))
    }
}

impl Clock for TestClock {
    fn mono(&self) -> Duration {
        self.real.mono() + self.mono_ahead()
    }

    fn wall(&self) -> Duration {
        self.real.wall() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }

    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        self.real.sleep_until(deadline.saturating_sub(self.mono_ahead()))
    }
}

/// Nodes that run until the cluster is dropped with its runtime.
pub(crate) struct Cluster {
    pub(crate) net: MemoryNet,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) disks: Vec<Arc<dyn Disk>>,
}

pub(crate) fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        peer_addr: format!("n{id}:peer"),
        client_addr: format!("n{id}:client"),
        zone: String::new(),
        capacity: 1,
    }
}

pub(crate) const PARTITIONS: u32 = 16;

impl Cluster {
    /// `count` nodes, N = 3, each with its settings changed by `settings`.
    pub(crate) async fn start_with(count: u64, settings: impl Fn(u64, &mut NodeConfig)) -> Cluster {
        Cluster::start_on(count, settings, |_| Arc::new(MemoryDisk::new())).await
    }

    /// The same, each node on the disk that `disk` gives it.
    pub(crate) async fn start_on(
        count: u64,
        settings: impl Fn(u64, &mut NodeConfig),
        disk: impl Fn(u64) -> Arc<dyn Disk>,
    ) -> Cluster {
        Cluster::start_after(count, settings, disk, |_| false).await
    }

    /// The same; nodes that `lost` their disk have to refill.
    pub(crate) async fn start_after(
        count: u64,
        settings: impl Fn(u64, &mut NodeConfig),
        disk: impl Fn(u64) -> Arc<dyn Disk>,
        lost: impl Fn(u64) -> bool,
    ) -> Cluster {
        let partitions = PartitionCount::new(PARTITIONS).unwrap();
        let descriptor = ClusterDescriptor::new(partitions, 3, &[7; 64]);
        let layout = Layout::first(partitions, 3, (1..=count).map(member).collect()).unwrap();
        let net = MemoryNet::default();
        let clock = Arc::new(TestClock {
            real: RealClock::new(),
            ahead_ms: AtomicU64::new(0),
            mono_ahead_ms: AtomicU64::new(0),
        });
        let (mut nodes, mut disks) = (Vec::new(), Vec::<Arc<dyn Disk>>::new());
        for id in 1..=count {
            let io = Io { net: Arc::new(net.clone()), disk: disk(id), clock: clock.clone() };
            let dir = PathBuf::from("/data");
            let meta = NodeMeta {
                format: FORMAT,
                node: NodeId(id),
                descriptor: descriptor.clone(),
                layouts: vec![layout.clone()],
            };
            if lost(id) {
                directory::write(io.disk.as_ref(), &dir, &meta).await.unwrap();
            } else {
                found(io.disk.clone(), clock.clone(), &dir, &meta, Incarnation(id)).await.unwrap();
            }
            let mut config = NodeConfig::new(dir);
            settings(id, &mut config);
            let seed = [u8::try_from(id).unwrap(); 32];
            let (node, _) = Node::open(config, io.clone(), seed).await.unwrap();
            let peer_port = net.listen(&member(id).peer_addr).await.unwrap();
            let client_port = net.listen(&member(id).client_addr).await.unwrap();
            let running = node.clone();
            tokio::spawn(async move {
                running.run(peer_port, serve_clients(running.clone(), client_port)).await.unwrap();
            });
            nodes.push(node);
            disks.push(io.disk);
        }
        Cluster { net, clock, nodes, disks }
    }

    pub(crate) async fn start(count: u64) -> Cluster {
        Cluster::start_with(count, |_, _| {}).await
    }

    /// A request of five seconds at node `at`.
    pub(crate) fn request(&self, at: usize) -> Request {
        self.nodes[at].request(Door::Rest, None, TraceId::default()).unwrap()
    }

    /// A client's connection to node `at`.
    pub(crate) async fn link(&self, at: usize, spoken: Spoken) -> Link {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let addr = member(at as u64 + 1).client_addr;
        Link::open(&self.net, &clock, &addr, &hello(spoken, None, None), self.deadline()).await.unwrap()
    }

    /// A connection to the peer port of node `at`, as another node would open it.
    pub(crate) async fn peer_link(&self, at: usize) -> Link {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let addr = member(at as u64 + 1).peer_addr;
        let cluster = self.nodes[at].descriptor().cluster;
        let hello = hello(Spoken::default(), Some(cluster), Some(NodeId(99)));
        Link::open(&self.net, &clock, &addr, &hello, self.deadline()).await.unwrap()
    }

    /// What a peer's messages begin with.
    pub(crate) fn peer_head(&self) -> FrameHead {
        FrameHead { layout: self.nodes[0].layout().reference(), ..FrameHead::default() }
    }

    /// Five seconds from now.
    pub(crate) fn deadline(&self) -> Mono {
        Mono::from_origin(self.clock.mono()) + Duration::from_secs(5)
    }
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name.as_bytes().to_vec()).unwrap()
}

/// Waits until something holds, ten seconds at most.
pub(crate) async fn until(holds: impl AsyncFn() -> bool) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come about within ten seconds");
}

/// An id that no other call returns.
pub(crate) fn write_id() -> WriteId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    WriteId(NEXT.fetch_add(1, Ordering::SeqCst).into())
}
