//! `ringdove cluster`: a whole cluster on this machine, one real process a node.
//!
//! The processes are tied to this one by their standard input: when it ends, for whatever reason, they stop.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::{DONE, FAILED, complain, say};
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::{Layout, Member};
use crate::dynamo::ring::PartitionCount;
use crate::io::{RealClock, RealDisk};
use crate::node::found;
use crate::storage::directory::{self, FORMAT, NodeMeta};
use crate::types::{Incarnation, NodeId};

/// How long a node may take to become ready, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    nodes: u16,
    /// Where the nodes keep their data; made when it is not there, used again when it is.
    #[arg(long, default_value = "ringdove-data")]
    dir: PathBuf,
    /// Replicas of each key (N); at most the number of nodes. Fixed when the cluster is made.
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Partitions of the ring (Q), a power of two from 8 to 65536. Fixed when the cluster is made.
    #[arg(long, default_value_t = 256)]
    partitions: u32,
    /// First client port; peers listen from 100 above, REST from 1000 above. 0 takes free ports.
    #[arg(long, default_value_t = 7001)]
    port: u16,
    /// What the nodes log on standard error, as `tracing` filter directives.
    #[arg(long, env = "RINGDOVE_LOG", default_value = "ringdove=warn")]
    log: String,
}

struct Running {
    id: NodeId,
    client_addr: String,
    rest_addr: String,
    child: Child,
    /// Passes the node's standard output on; ends with it.
    output: JoinHandle<()>,
}

pub(super) async fn run(args: Args) -> u8 {
    let nodes = match prepare(&args).await {
        Ok(nodes) => nodes,
        Err(message) => {
            complain(&message);
            return FAILED;
        }
    };
    let mut running = Vec::new();
    let mut code = DONE;
    for (dir, member, rest_addr) in nodes {
        match start(&dir, &member, rest_addr, &args.log).await {
            Ok(node) => running.push(node),
            Err(message) => {
                complain(&message);
                code = FAILED;
                break;
            }
        }
    }
    if code == DONE {
        announce(&args, &running);
        watch(&mut running).await;
        say("stopping …");
    }
    stop(running).await;
    code
}

fn announce(args: &Args, running: &[Running]) {
    for node in running {
        let pid = node.child.id().unwrap_or(0);
        let (id, client, rest) = (node.id, &node.client_addr, &node.rest_addr);
        say(&format!("{id}  pid {pid}  client {client}  REST http://{rest}"));
    }
    let (first, dir) = (&running[0], args.dir.display());
    say(&format!("\n{} nodes are ready; their data is in {dir}. Try:", running.len()));
    say(&format!(
        "  curl -X PUT --data 'coo' http://{0}/kv/dove && curl http://{0}/kv/dove",
        first.rest_addr
    ));
    // As it was called: `cargo run` leaves the program in the target folder.
    let program = std::env::args().next().unwrap_or_else(|| "ringdove".to_owned());
    say(&format!("  {program} put --addr {} dove coo", first.client_addr));
    say(&format!("  {program} get --addr {} dove", first.client_addr));
    say("Ctrl-C stops them all.");
}

/// Makes the data directories of a new cluster, or reads those of an old one.
async fn prepare(args: &Args) -> Result<Vec<(PathBuf, Member, String)>, String> {
    let disk = RealDisk::new().map_err(|error| format!("cannot start: {error}"))?;
    let dir_of = |id: u64| args.dir.join(format!("n{id}"));
    let first = directory::read(&disk, &dir_of(1)).await.map_err(|error| error.to_string())?;
    let layout = match first {
        Some(meta) => {
            let layout = meta.layouts.into_iter().next().ok_or("the first node knows no layout")?;
            if layout.members().len() != usize::from(args.nodes) {
                let (dir, had) = (args.dir.display(), layout.members().len());
                return Err(format!(
                    "{dir} holds a cluster of {had} nodes: start it with --nodes {had}, or choose another --dir"
                ));
            }
            layout
        }
        None => make(args, &disk, dir_of).await?,
    };
    let mut nodes = Vec::new();
    for member in layout.members() {
        for addr in [&member.client_addr, &member.peer_addr] {
            check_free(addr)?;
        }
        let rest_addr = match args.port {
            0 => free_addr()?,
            _ => rest_addr_of(member),
        };
        check_free(&rest_addr)?;
        nodes.push((dir_of(member.id.0), member.clone(), rest_addr));
    }
    Ok(nodes)
}

async fn make(args: &Args, disk: &RealDisk, dir_of: impl Fn(u64) -> PathBuf) -> Result<Layout, String> {
    let mut random = [0; 64];
    let filled = rand::rngs::SysRng.try_fill_bytes(&mut random);
    filled.map_err(|error| format!("the system gives no random bytes: {error}"))?;
    let mut members = Vec::new();
    for n in 0..args.nodes {
        let (client_addr, peer_addr) = match args.port {
            0 => (free_addr()?, free_addr()?),
            port => {
                let at = |above: u16| match port.checked_add(above + n) {
                    Some(port) => Ok(format!("127.0.0.1:{port}")),
                    None => Err(format!("--port {port} leaves no room for {} nodes", args.nodes)),
                };
                at(1000)?;
                (at(0)?, at(100)?)
            }
        };
        let id = NodeId(u64::from(n) + 1);
        members.push(Member { id, peer_addr, client_addr, zone: String::new(), capacity: 1 });
    }
    let partitions = PartitionCount::new(args.partitions).map_err(|error| error.to_string())?;
    let replicas = args.replicas.min(u32::from(args.nodes));
    let layout = Layout::first(partitions, replicas, members).map_err(|error| error.to_string())?;
    let descriptor = ClusterDescriptor::new(partitions, replicas, &random);
    // The first node's directory comes last: it says that all of them are made.
    for member in layout.members().iter().rev() {
        let meta = NodeMeta {
            format: FORMAT,
            node: member.id,
            descriptor: descriptor.clone(),
            layouts: vec![layout.clone()],
        };
        let (disk, clock) = (Arc::new(disk.clone()), Arc::new(RealClock::new()));
        let incarnation = Incarnation(rand::rngs::SysRng.try_next_u64().map_err(|error| error.to_string())?);
        let founded = found(disk, clock, &dir_of(member.id.0), &meta, incarnation).await;
        founded.map_err(|error| error.to_string())?;
    }
    Ok(layout)
}

/// The REST port stands 1000 above the client port; it is no business of the other nodes.
fn rest_addr_of(member: &Member) -> String {
    let port = member.client_addr.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let port = port.and_then(|port| port.checked_add(1000)).unwrap_or(0);
    format!("127.0.0.1:{port}")
}

/// A free port below the range from which systems take the ports of outgoing connections: one of that range
/// may be taken between this look and the node's start.
fn free_addr() -> Result<String, String> {
    const TRIES: usize = 200;
    for _ in 0..TRIES {
        let mut random = [0; 2];
        let filled = rand::rngs::SysRng.try_fill_bytes(&mut random);
        filled.map_err(|error| format!("the system gives no random bytes: {error}"))?;
        let addr = format!("127.0.0.1:{}", 10_000 + u16::from_le_bytes(random) % 20_000);
        if TcpListener::bind(&addr).is_ok() {
            return Ok(addr);
        }
    }
    Err(format!("no free port found in {TRIES} tries between 10000 and 30000: give one with --port"))
}

fn check_free(addr: &str) -> Result<(), String> {
    match TcpListener::bind(addr) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "{addr} cannot be used ({error}): is another cluster running? Stop it, or start this one with \
             another --port and --dir"
        )),
    }
}

async fn start(dir: &Path, member: &Member, rest_addr: String, log: &str) -> Result<Running, String> {
    let id = member.id;
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut child = Command::new(program)
        .arg("serve")
        .arg("--dir")
        .arg(dir)
        .args(["--listen-client", &member.client_addr, "--listen-peer", &member.peer_addr])
        .args(["--listen-rest", &rest_addr, "--log", log, "--supervised"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start {id}: {error}"))?;
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("ready") {
                return true;
            }
        }
        false
    };
    #[allow(clippy::disallowed_methods)] // not node code: a command that waits for a process
    let ready = tokio::time::timeout(PATIENCE, ready).await.unwrap_or(false);
    if !ready {
        let dir = dir.display();
        return Err(format!("{id} did not become ready; its messages are above, its data in {dir}"));
    }
    let output = tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            say(&line);
        }
    });
    Ok(Running { id, client_addr: member.client_addr.clone(), rest_addr, child, output })
}

/// Waits for Ctrl-C or SIGTERM, and says when a node ends by itself.
async fn watch(running: &mut [Running]) {
    let mut terminate = signal(SignalKind::terminate()).ok();
    let mut told = vec![false; running.len()];
    loop {
        let terminated = async {
            match &mut terminate {
                Some(terminate) => terminate.recv().await,
                None => std::future::pending().await,
            }
        };
        #[allow(clippy::disallowed_methods)] // not node code: a command that looks after processes
        let pause = tokio::time::sleep(Duration::from_millis(200));
        select! {
            biased;
            _ = tokio::signal::ctrl_c() => return,
            _ = terminated => return,
            () = pause => {}
        }
        for (node, told) in running.iter_mut().zip(&mut told) {
            if let (false, Ok(Some(status))) = (*told, node.child.try_wait()) {
                *told = true;
                complain(&format!("{} has ended ({status}); the others go on", node.id));
            }
        }
        if told.iter().all(|told| *told) {
            complain("no node is left");
            return;
        }
    }
}

async fn stop(mut running: Vec<Running>) {
    for node in &mut running {
        drop(node.child.stdin.take());
    }
    for mut node in running {
        #[allow(clippy::disallowed_methods)] // not node code: a command that waits for a process
        let ended = tokio::time::timeout(PATIENCE, node.child.wait()).await;
        if ended.is_err() {
            complain(&format!("{} does not stop; it is killed. Acknowledged writes are safe.", node.id));
            let _ = node.child.kill().await;
        }
        let _ = node.output.await;
    }
}
