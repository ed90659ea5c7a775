//! A cluster of `ringdove serve` processes that a test kills, pauses and starts again, one by one.
//!
//! Each is tied to this process by its standard input and is a process group of its own: it ends when this one does,
//! however that ends, and also while it is paused, because the system sends SIGHUP and SIGCONT to a stopped group
//! whose parent has gone. Only processes that were started here are ever signalled, each by its own handle.
//!
//! Peers reach a node at the address that the layout advertises, and it listens elsewhere when `Addresses` says so: then
//! whoever listens at the advertised address, such as a proxy, stands on the wire.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rand::Rng;
use ringdove::dynamo::cluster::ClusterDescriptor;
use ringdove::dynamo::layout::{Layout, Member};
use ringdove::dynamo::ring::PartitionCount;
use ringdove::io::{Disk, RealClock, RealDisk};
use ringdove::node::found;
use ringdove::storage::directory::{FORMAT, NodeMeta};
use ringdove::types::{Incarnation, NodeId};
use rustix::process::{Pid, Signal, kill_process};

/// A node that is not ready after this long never will be.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A node that was told to stop has stopped by then.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// Where a node is reached.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    /// By clients.
    pub(crate) client: String,
    /// By peers, as the layout says.
    pub(crate) peer: String,
    /// Where it listens for peers: `peer`, unless something stands between.
    pub(crate) listen_peer: String,
}

/// One node.
pub(crate) struct NodeProcess {
    pub(crate) id: NodeId,
    pub(crate) addrs: Addresses,
    dir: PathBuf,
    settings: Vec<String>,
    child: Option<Child>,
    is_paused: bool,
}

/// What the nodes agreed on, and their processes.
pub(crate) struct Cluster {
    pub(crate) descriptor: ClusterDescriptor,
    pub(crate) layout: Layout,
    pub(crate) nodes: Vec<NodeProcess>,
}

impl Cluster {
    /// Makes the directories of a new cluster in `dir`, N = 3, and starts its nodes with these settings.
    pub(crate) async fn start(
        dir: &Path,
        partitions: u32,
        addrs: Vec<Addresses>,
        settings: &[&str],
        chance: &mut impl Rng,
    ) -> Cluster {
        let partitions = PartitionCount::new(partitions).expect("a count that the ring takes");
        let mut random = [0; 64];
        chance.fill_bytes(&mut random);
        let descriptor = ClusterDescriptor::new(partitions, 3, &random);
        let member = |(at, addrs): (usize, &Addresses)| Member {
            id: NodeId(at as u64 + 1),
            peer_addr: addrs.peer.clone(),
            client_addr: addrs.client.clone(),
            zone: String::new(),
            capacity: 1,
        };
        let members = addrs.iter().enumerate().map(member).collect();
        let layout = Layout::first(partitions, 3, members).expect("a sound layout");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new().expect("threads"));
        let mut nodes = Vec::new();
        for (member, addrs) in layout.members().iter().zip(addrs) {
            let dir = dir.join(member.id.to_string());
            let (descriptor, layouts) = (descriptor.clone(), vec![layout.clone()]);
            let meta = NodeMeta { format: FORMAT, node: member.id, descriptor, layouts };
            let incarnation = Incarnation(chance.next_u64());
            let founded = found(disk.clone(), Arc::new(RealClock::new()), &dir, &meta, incarnation);
            founded.await.expect("a directory can be made");
            let settings = settings.iter().map(|&word| word.to_owned()).collect();
            nodes.push(NodeProcess { id: member.id, addrs, dir, settings, child: None, is_paused: false });
        }
        nodes.iter_mut().for_each(NodeProcess::start);
        Cluster { descriptor, layout, nodes }
    }

    /// The addresses for clients.
    pub(crate) fn client_addrs(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.addrs.client.clone()).collect()
    }
}

impl NodeProcess {
    /// Starts it, unless it runs, and waits until it is ready. What it logs is added to a file beside its directory.
    pub(crate) fn start(&mut self) {
        if self.child.is_some() {
            return;
        }
        let log = self.dir.with_extension("log");
        let log = OpenOptions::new().create(true).append(true).open(log).expect("the log can be written");
        let mut command = ringdove();
        command.args(["serve", "--supervised", "--listen-peer", &self.addrs.listen_peer, "--dir"]);
        command.arg(&self.dir).args(&self.settings).process_group(0);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        // From here on it is ours to end, whatever comes.
        self.child = Some(child);
        let (ready, is_ready) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.starts_with("ready") {
                    let _ = ready.send(());
                }
            }
        });
        match is_ready.recv_timeout(READY_WITHIN) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => panic!("{} is not ready within {READY_WITHIN:?}", self.id),
            Err(RecvTimeoutError::Disconnected) => panic!("{} ended before it was ready", self.id),
        }
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is ours");
            child.wait().expect("it can be waited for");
        }
        self.is_paused = false;
    }

    /// Tells it to stop, and waits until it has.
    pub(crate) fn stop(&mut self) {
        self.resume();
        self.signal(Signal::TERM);
        let Some(mut child) = self.child.take() else { return };
        for _ in 0..STOPS_WITHIN.as_millis() / 10 {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                assert!(status.success(), "{} stopped with {status}", self.id);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("{} does not stop", self.id);
    }

    /// Lets it do nothing, and keep its connections.
    pub(crate) fn pause(&mut self) {
        self.signal(Signal::STOP);
        self.is_paused = self.child.is_some();
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self) {
        if std::mem::take(&mut self.is_paused) {
            self.signal(Signal::CONT);
        }
    }

    /// Whether there is a process, and it is not paused.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some() && !self.is_paused
    }

    /// The process ended by itself: its status.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().expect("it can be waited for")?;
        Some(status.to_string())
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // Not waited for yet, so the id is still its own.
            kill_process(Pid::from_child(child), signal).expect("it is ours");
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The command that was built for this test, without the settings of whoever runs it.
fn ringdove() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringdove"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("RINGDOVE_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
pub(crate) fn output(args: &[&str]) -> Output {
    ringdove().args(args).output().expect("the binary starts")
}

/// A port that nobody listens on, and none of those from which systems take the ports of outgoing connections.
pub(crate) fn free_addr(chance: &mut impl Rng) -> String {
    for _ in 0..1000 {
        let addr = format!("127.0.0.1:{}", 10_000 + chance.next_u32() % 20_000);
        if TcpListener::bind(&addr).is_ok() {
            return addr;
        }
    }
    panic!("no free port between 10000 and 30000");
}
