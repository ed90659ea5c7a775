//! `ringdove init`: makes a data directory, and with the first one of a cluster the cluster.
//!
//! ```text
//!   --new-cluster   descriptor from the system's random bytes, layout 1 over the members that are named
//!   --join ADDR     descriptor and layouts of a running node; the member has never held anything
//!   --replace ADDR  the same for a member whose directory is lost
//! ```
//! A cluster of several nodes is made by hand like this: `--new-cluster --members …` on one of them names them all,
//! that node is started, and every other one joins it. Members that have not joined are down for the rest, no more.
//!
//! A client port is asked who the cluster is and who its members are; the descriptor, which holds the cluster's
//! secrets, comes over the peer port that the layout names. A node that runs refuses to be made a second time.
//!
//! A member that joins has never acknowledged anything, so it has lost nothing: as long as the cluster has its first
//! layout, its partitions count as refilled from the start, and what was written before it came it misses like a
//! node that was down. A member that is replaced may have acknowledged everything: its partitions are *not refilled*.
//! Only the operator knows which of the two it is.
//!
//! Deliberately absent: adding members to the layout, which `ringdove layout add` does; then they join.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{DONE, FAILED, PEER_PORT_ABOVE, USAGE, complain, os_random, say};
use crate::config::StorageKind;
use crate::config::value::parse_address;
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::{Layout, Member};
use crate::dynamo::ring::PartitionCount;
use crate::io::{Clock, Disk, RealClock, RealDisk, TcpNet};
use crate::net::envelope::FrameHead;
use crate::net::link::{Link, OpenError, hello};
use crate::net::message::{GetLayout, Join, JoinReply, LayoutReply, Spoken};
use crate::node::found;
use crate::storage::directory::{self, FORMAT, NodeMeta};
use crate::types::{ClusterId, Incarnation, Mono, NodeId};

/// How long a running node is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the member that is to be made is listened for: it should not answer.
const LISTEN_FOR: Duration = Duration::from_secs(1);

/// The note in a directory for storage in memory that no node has run on it yet.
pub(super) const UNUSED_NAME: &str = "unused";

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["new_cluster", "join", "replace"])))]
pub(super) struct Args {
    /// The data directory to make: a new or an empty one.
    #[arg(long, env = "RINGDOVE_DIR")]
    dir: PathBuf,
    /// Make a new cluster, and the directory of its first node.
    #[arg(long)]
    new_cluster: bool,
    /// Make the directory of a member that has never run; a node with this client address tells the rest.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    join: Option<String>,
    /// Make an empty directory for a member that has lost its own; a node with this client address tells the rest.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    replace: Option<String>,
    /// Where `serve` will keep its data; a directory for storage in memory holds who the node is.
    #[arg(long, env = "RINGDOVE_STORAGE", default_value = "log", value_parser = ["log", "memory"])]
    storage: String,
    /// Which member this node is: a number from 1, the same that it has in --members. [--new-cluster: 1]
    #[arg(long, env = "RINGDOVE_NODE_ID", value_parser = parse_id)]
    node_id: Option<NodeId>,
    /// Replicas of each key (N), for ever. [default: 3, or as many as there are members]
    #[arg(long, conflicts_with_all = ["join", "replace"])]
    replicas: Option<u32>,
    /// Partitions of the ring (Q), for ever: a power of two from 8 to 65536. [default: 256]
    #[arg(long, conflicts_with_all = ["join", "replace"])]
    partitions: Option<u32>,
    /// All members of the new cluster, as ID=HOST:PORT (the client port; peers 100 above), separated by commas.
    /// More is said with slashes: ID=HOST:PORT/peer=HOST:PORT/zone=NAME/capacity=NUMBER.
    #[arg(long, value_delimiter = ',', value_parser = parse_member, conflicts_with_all = ["join", "replace"])]
    members: Vec<Member>,
    /// Where clients reach the only member of the new cluster. [default: 127.0.0.1:7001]
    #[arg(long, value_parser = parse_address, conflicts_with_all = ["join", "replace", "members"])]
    client_addr: Option<String>,
    /// Where peers reach it. [default: 100 above the client port]
    #[arg(long, value_parser = parse_address, conflicts_with_all = ["join", "replace", "members"])]
    peer_addr: Option<String>,
    /// What fails together with it: a rack, a room.
    #[arg(long, conflicts_with_all = ["join", "replace", "members"])]
    zone: Option<String>,
    /// Its share of the data relative to others, above 0. [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["join", "replace", "members"])]
    capacity: Option<u32>,
}

pub(super) fn parse_id(text: &str) -> Result<NodeId, String> {
    match text.strip_prefix('n').unwrap_or(text).parse() {
        Ok(0) | Err(_) => Err("a node's id is a number from 1".to_owned()),
        Ok(id) => Ok(NodeId(id)),
    }
}

/// `ID=HOST:PORT`, then attributes behind slashes.
pub(super) fn parse_member(text: &str) -> Result<Member, String> {
    let (id, rest) = text.split_once('=').ok_or("a member is ID=HOST:PORT, like 1=db1:7001")?;
    let mut parts = rest.split('/');
    let client_addr = advertised(parts.next().unwrap_or_default())?;
    let mut member =
        Member { id: parse_id(id)?, peer_addr: String::new(), client_addr, zone: String::new(), capacity: 1 };
    for part in parts {
        match part.split_once('=') {
            Some(("peer", addr)) => member.peer_addr = advertised(addr)?,
            Some(("zone", zone)) => zone.clone_into(&mut member.zone),
            Some(("capacity", number)) => {
                member.capacity =
                    number.parse().map_err(|_| format!("{number:?} is no capacity: give a number"))?;
            }
            _ => {
                return Err(format!(
                    "{part:?} is not known: give peer=HOST:PORT, zone=NAME or capacity=NUMBER"
                ));
            }
        }
    }
    if member.peer_addr.is_empty() {
        member.peer_addr = peer_addr_of(&member.client_addr)?;
    }
    Ok(member)
}

/// An address that others can use.
fn advertised(addr: &str) -> Result<String, String> {
    let addr = parse_address(addr)?;
    if addr.starts_with("0.0.0.0:") || addr.starts_with("[::]:") {
        return Err(format!(
            "{addr} is no address by which others reach a node: name one that is, and set listen_client and \
             listen_peer when it shall listen on all"
        ));
    }
    Ok(addr)
}

fn peer_addr_of(client_addr: &str) -> Result<String, String> {
    let (host, port) = client_addr.rsplit_once(':').ok_or("an address has a port")?;
    let port = port.parse::<u16>().ok().and_then(|port| port.checked_add(PEER_PORT_ABOVE));
    let port = port
        .ok_or_else(|| format!("no port stands {PEER_PORT_ABOVE} above {client_addr}: name the peer port"))?;
    Ok(format!("{host}:{port}"))
}

pub(super) async fn run(args: Args) -> u8 {
    let made = match (&args.join, &args.replace) {
        (Some(addr), _) => from_node(&args, addr).await,
        (_, Some(addr)) => from_node(&args, addr).await,
        _ => new_cluster(&args).await,
    };
    match made {
        Ok(words) => {
            say(&words);
            DONE
        }
        Err(Wrong::Usage(message)) => {
            complain(&message);
            USAGE
        }
        Err(Wrong::Failed(message)) => {
            complain(&message);
            FAILED
        }
    }
}

enum Wrong {
    /// The command line makes no sense.
    Usage(String),
    /// It does, and could not be done. Nothing was made.
    Failed(String),
}

impl<E: std::error::Error> From<E> for Wrong {
    fn from(error: E) -> Wrong {
        Wrong::Failed(error.to_string())
    }
}

async fn new_cluster(args: &Args) -> Result<String, Wrong> {
    let members = members(args).map_err(Wrong::Usage)?;
    let id = args.node_id.unwrap_or(NodeId(1));
    let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
    let replicas = args.replicas.unwrap_or(count.min(3));
    let usage = |error: &dyn std::error::Error| Wrong::Usage(error.to_string());
    let partitions = PartitionCount::new(args.partitions.unwrap_or(256)).map_err(|error| usage(&error))?;
    let layout = Layout::first(partitions, replicas, members).map_err(|error| usage(&error))?;
    let Some(me) = layout.member(id) else {
        return Err(Wrong::Usage(format!("{id} is not among the members ({}): {HOW_ID}", names(&layout))));
    };
    let random = os_random().map_err(Wrong::Failed)?;
    let descriptor = ClusterDescriptor::new(partitions, replicas, &random);
    let cluster = descriptor.cluster;
    let meta = NodeMeta { format: FORMAT, node: id, descriptor, layouts: vec![layout.clone()] };
    make(args, &meta, Past::Nothing).await?;

    let mut words =
        format!("made cluster {cluster}: {count} member(s), N={replicas}, Q={}\n", partitions.get());
    if replicas < 3 {
        let _ =
            writeln!(words, "N={replicas} is for ever: name three members where data must outlive a disk");
    }
    let _ = writeln!(words, "{id} is in {0}; start it:\n  ringdove serve --dir {0}", args.dir.display());
    for other in layout.members().iter().filter(|other| other.id != id) {
        let (other, addr) = (other.id.0, &me.client_addr);
        let _ = writeln!(words, "then, on the machine of n{other}:");
        let _ = writeln!(
            words,
            "  ringdove init --dir DIR --join {addr} --node-id {other} && ringdove serve --dir DIR"
        );
    }
    Ok(words.trim_end().to_owned())
}

const HOW_ID: &str = "say which one this node is with --node-id";

/// The members of a new cluster.
fn members(args: &Args) -> Result<Vec<Member>, String> {
    if args.members.is_empty() {
        let client_addr = match &args.client_addr {
            Some(addr) => advertised(addr)?,
            None => "127.0.0.1:7001".to_owned(),
        };
        let peer_addr = match &args.peer_addr {
            Some(addr) => advertised(addr)?,
            None => peer_addr_of(&client_addr)?,
        };
        let zone = args.zone.clone().unwrap_or_default();
        let id = args.node_id.unwrap_or(NodeId(1));
        return Ok(vec![Member { id, peer_addr, client_addr, zone, capacity: args.capacity.unwrap_or(1) }]);
    }
    let mut seen = BTreeSet::new();
    for addr in args.members.iter().flat_map(|member| [&member.client_addr, &member.peer_addr]) {
        if !seen.insert(addr) {
            return Err(format!(
                "{addr} is named twice: every member needs a client and a peer address of its own"
            ));
        }
    }
    Ok(args.members.clone())
}

fn names(layout: &Layout) -> String {
    let named = layout.members().iter().map(|member| format!("{} at {}", member.id, member.client_addr));
    named.collect::<Vec<_>>().join(", ")
}

/// Makes the directory of a member from what a running node says.
async fn from_node(args: &Args, addr: &str) -> Result<String, Wrong> {
    // Before a node is asked for anything; looked at again under the lock.
    let disk = RealDisk::new().map_err(|error| Wrong::Failed(error.to_string()))?;
    check_free(&disk, &args.dir).await?;

    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let link = open(&clock, addr, None, None, PATIENCE).await.map_err(|error| {
        Wrong::Failed(format!("{error}. Give the client address of a node of the cluster that is running"))
    })?;
    let (cluster, teller) = (link.welcome().cluster, link.welcome().node);
    let deadline = Mono::from_origin(clock.mono() + PATIENCE);
    let told: LayoutReply = link
        .call(clock.as_ref(), &GetLayout, FrameHead::default(), deadline)
        .await
        .map_err(|error| Wrong::Failed(format!("{addr} does not tell its layout: {error}")))?;
    let Some(layout) = told.active.first() else {
        return Err(Wrong::Failed(format!("{addr} knows no layout: ask another node")));
    };
    let Some(id) = args.node_id else {
        return Err(Wrong::Usage(format!("the members are {}: {HOW_ID}", names(layout))));
    };
    let Some(member) = told.active.iter().find_map(|layout| layout.member(id)) else {
        return Err(Wrong::Failed(format!(
            "{id} is not a member of cluster {cluster}, whose members are {}: {HOW_ID}. To add it, name it with \
             `ringdove layout add {}=HOST:PORT --yes` first",
            names(layout),
            id.0
        )));
    };
    if open(&clock, &member.client_addr, None, Some(cluster), LISTEN_FOR)
        .await
        .is_ok_and(|link| link.welcome().node == id)
    {
        return Err(Wrong::Failed(format!(
            "{id} is running at {}: two processes must never be one node. Stop it first, and use its own directory \
             if that is not lost",
            member.client_addr
        )));
    }

    let told_by = layout.member(teller).map_or(addr, |teller| teller.peer_addr.as_str());
    let peer = open(&clock, told_by, Some(id), Some(cluster), PATIENCE).await?;
    let head = FrameHead { layout: layout.reference(), ..FrameHead::default() };
    let deadline = Mono::from_origin(clock.mono() + PATIENCE);
    let reply: JoinReply =
        peer.call(clock.as_ref(), &Join { node: id }, head, deadline).await.map_err(|error| {
            Wrong::Failed(format!("{told_by} does not tell what its cluster agreed on: {error}"))
        })?;
    reply.descriptor.check()?;
    if reply.descriptor.cluster != cluster {
        let other = reply.descriptor.cluster;
        return Err(Wrong::Failed(format!("{told_by} speaks for cluster {other}, {addr} for {cluster}")));
    }
    let founding = reply.active.iter().all(|layout| layout.reference().version == 1);
    let past = if args.join.is_some() && founding { Past::Nothing } else { Past::Unknown };
    let meta = NodeMeta { format: FORMAT, node: id, descriptor: reply.descriptor, layouts: reply.active };
    make(args, &meta, past).await?;

    let dir = args.dir.display();
    let mut words = format!("{id} of cluster {cluster} is in {dir}, with nothing in it");
    if args.replace.is_some() {
        words.push_str(
            ".\nWhat it held is on the other replicas. Its partitions are not refilled: once it runs it gets them from there, \
             and counts in no strict read until it has (`ringdove status`)",
        );
    }
    let _ = write!(words, "; start it:\n  ringdove serve --dir {dir}");
    Ok(words)
}

async fn open(
    clock: &Arc<dyn Clock>,
    addr: &str,
    node: Option<NodeId>,
    cluster: Option<ClusterId>,
    patience: Duration,
) -> Result<Link, OpenError> {
    let deadline = Mono::from_origin(clock.mono() + patience);
    Link::open(&TcpNet, clock, addr, &hello(Spoken::default(), cluster, node), deadline).await
}

/// What a member may have held before its directory is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// Nothing, ever: its partitions count as refilled.
    Nothing,
    /// Anything: they do not.
    Unknown,
}

/// Makes the directory, unless something is in it. Durable on return.
async fn make(args: &Args, meta: &NodeMeta, past: Past) -> Result<(), Wrong> {
    let disk = RealDisk::new().map_err(|error| Wrong::Failed(error.to_string()))?;
    check_free(&disk, &args.dir).await?;
    let in_memory = args.storage == StorageKind::Memory.name();
    let storage = if in_memory { StorageKind::Memory } else { StorageKind::Log };
    write_directory(&disk, &args.dir, meta, storage, past).await.map_err(Wrong::Failed)
}

/// Makes a directory of a member, for storage of this kind; never in the place of one that is there. For storage in memory it holds who the node is, and
/// until the first start a note if that one shall count as refilled.
pub(super) async fn write_directory(
    disk: &RealDisk,
    dir: &Path,
    meta: &NodeMeta,
    storage: StorageKind,
    past: Past,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{} cannot be made: {error}", dir.display());
    check_no_node(disk, dir).await?;
    disk.create_dir_all(dir).await.map_err(failed)?;
    match (storage, past) {
        (StorageKind::Log, Past::Nothing) => {
            let incarnation = Incarnation(u64::from_le_bytes(os_random()?));
            let (disk, clock) = (Arc::new(disk.clone()), Arc::new(RealClock::new()));
            return found(disk, clock, dir, meta, incarnation).await.map_err(|error| error.to_string());
        }
        (StorageKind::Memory, Past::Nothing) => {
            let note = disk.open(&dir.join(UNUSED_NAME), true).await.map_err(failed)?;
            note.sync_data().await.map_err(failed)?;
        }
        (_, Past::Unknown) => {}
    }
    // Last, and it syncs the directory.
    directory::write(disk, dir, meta).await.map_err(|error| error.to_string())
}

/// That the directory is no node's: what such a one holds may be acknowledged.
async fn check_no_node(disk: &RealDisk, dir: &Path) -> Result<(), String> {
    let Some(meta) = directory::read(disk, dir).await.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let (shown, node, cluster) = (dir.display(), meta.node, meta.descriptor.cluster);
    Err(format!(
        "{shown} is the directory of {node} of cluster {cluster} already, and stays as it is: choose another --dir, or \
         start this one with `ringdove serve --dir {shown}`"
    ))
}

/// Whether the directory is absent or empty. What an earlier `init` that was cut short left does not count.
async fn check_free(disk: &RealDisk, dir: &Path) -> Result<(), Wrong> {
    let shown = dir.display();
    let there = match disk.list(dir).await {
        Ok(there) => there,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Wrong::Failed(format!("{shown} cannot be a data directory: {error}"))),
    };
    check_no_node(disk, dir).await.map_err(Wrong::Failed)?;
    match there.iter().find(|name| !["LOCK", "node.meta.new"].contains(&name.as_str())) {
        None => Ok(()),
        Some(first) => Err(Wrong::Failed(format!(
            "{shown} is not empty (it holds {first}): choose a new or an empty directory"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_read_as_it_is_written() {
        let member = parse_member("2=db2:7001").unwrap();
        assert_eq!(
            (member.id, member.client_addr.as_str(), member.peer_addr.as_str()),
            (NodeId(2), "db2:7001", "db2:7101")
        );
        assert_eq!((member.zone.as_str(), member.capacity), ("", 1));
        let member = parse_member("n3=[::1]:7001/zone=b/capacity=4/peer=[::2]:9").unwrap();
        assert_eq!(
            (member.id, member.client_addr.as_str(), member.peer_addr.as_str()),
            (NodeId(3), "[::1]:7001", "[::2]:9")
        );
        assert_eq!((member.zone.as_str(), member.capacity), ("b", 4));
    }

    #[tokio::test]
    async fn a_directory_of_a_node_is_never_written_over() {
        let parent = tempfile::tempdir().unwrap();
        let (disk, dir) = (RealDisk::new().unwrap(), parent.path().join("n1"));
        let (q, member) = (PartitionCount::new(8).unwrap(), parse_member("1=db1:7001").unwrap());
        let layout = Layout::first(q, 1, vec![member]).unwrap();
        let meta = |random| {
            let (node, descriptor) = (NodeId(1), ClusterDescriptor::new(q, 1, &[random; 64]));
            NodeMeta { format: FORMAT, node, descriptor, layouts: vec![layout.clone()] }
        };
        write_directory(&disk, &dir, &meta(1), StorageKind::Log, Past::Nothing).await.unwrap();
        for (storage, past) in [
            (StorageKind::Log, Past::Nothing),
            (StorageKind::Memory, Past::Nothing),
            (StorageKind::Log, Past::Unknown),
        ] {
            let written = write_directory(&disk, &dir, &meta(2), storage, past).await;
            assert!(written.is_err_and(|words| words.contains("stays as it is")), "{storage:?} {past:?}");
        }
        assert_eq!(directory::read(&disk, &dir).await.unwrap(), Some(meta(1)));
    }

    #[test]
    fn a_member_that_makes_no_sense_is_refused_with_what_would() {
        for (text, words) in [
            ("db2:7001", "ID=HOST:PORT"),
            ("0=db2:7001", "number from 1"),
            ("2=db2", "has no port"),
            ("2=0.0.0.0:7001", "listen_client"),
            ("2=db2:65500", "name the peer port"),
            ("2=db2:7001/rack=3", "zone=NAME"),
            ("2=db2:7001/capacity=much", "is no capacity"),
        ] {
            let error = parse_member(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
