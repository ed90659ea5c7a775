//! What `ringdove cluster` starts: the nodes whose directories there are, or those of a new cluster.
//!
//! ```text
//!   no n1, n2, … under --dir ─▶ mark `founding` ─▶ make all directories ─▶ mark gone ─▶ run all
//!   some there, no mark      ─▶ run these; name each member that has none, and what to do about it
//!   some there, and the mark ─▶ no node has run yet: make the missing ones of the same cluster, mark gone, run all
//! ```
//! A cluster that is there is never founded again, whichever directories are gone: an empty directory in the place of one that
//! held acknowledged writes would count as refilled, and strict reads would miss them. Only the operator knows whether a
//! directory is lost for good.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::super::init::{Past, write_directory};
use super::super::{PEER_PORT_ABOVE, os_random};
use super::{Args, Plan};
use crate::config::StorageKind;
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::{Layout, Member};
use crate::dynamo::ring::PartitionCount;
use crate::io::{Disk, RealDisk};
use crate::storage::directory::{self, FORMAT, NodeMeta};
use crate::types::NodeId;

/// The REST port stands this much above the client port.
const REST_PORT_ABOVE: u16 = 1000;
/// Where nothing else is said.
const NODES: u16 = 3;
const REPLICAS: u32 = 3;
const PARTITIONS: u32 = 256;
const PORT: u16 = 7001;
/// Stands under --dir while a cluster is made there: no node of it has run.
const FOUNDING_NAME: &str = "founding";

/// What is started, and what is not.
pub(super) struct Prepared {
    pub(super) plans: Vec<Plan>,
    /// Members that have no directory here.
    pub(super) absent: Vec<Absent>,
    /// What else is to be said.
    pub(super) notes: Vec<String>,
}

/// A member without a directory.
pub(super) struct Absent {
    pub(super) id: NodeId,
    pub(super) dir: PathBuf,
    /// Not a member of the oldest layout that is active: it has not come yet, and has lost nothing.
    pub(super) is_new: bool,
}

impl Absent {
    /// What to do about it, once a node runs at this address.
    pub(super) fn advice(&self, running: &str) -> String {
        let (id, dir) = (self.id, self.dir.display());
        let init = |how: &str| format!("ringdove init --{how} {running} --node-id {} --dir {dir}", self.id.0);
        if self.is_new {
            let init = init("join");
            format!(
                "{id} is a new member and has no {dir} yet: `{init}` makes it; then start this cluster again"
            )
        } else {
            let init = init("replace");
            format!(
                "{dir} is missing, so {id} does not run; the others go on. Put it back, or, if it is lost for good, \
                 `{init}` makes an empty one; then start this cluster again"
            )
        }
    }
}

/// Finds the data directories of a cluster, or makes those of a new one.
pub(super) async fn prepare(args: &Args, storage: StorageKind) -> Result<Prepared, String> {
    let disk = RealDisk::new().map_err(|error| format!("cannot start: {error}"))?;
    let there = directories(&args.dir)?;
    let is_cut_short = is_marked(&args.dir);
    let metas = if there.is_empty() {
        make(args, &disk, storage).await?
    } else {
        let metas = read(&disk, &there).await?;
        match metas.values().next() {
            Some(meta) if is_cut_short => end_founding(args, &disk, storage, meta.clone()).await?,
            None if is_cut_short => make(args, &disk, storage).await?,
            _ => metas,
        }
    };
    let metas = metas.into_values().collect::<Vec<_>>();
    plan(args, &metas)
}

/// The nodes that have something under `dir`, with what that is.
#[allow(clippy::disallowed_methods)] // not node code: directories, which a `Disk` does not list
fn directories(dir: &Path) -> Result<BTreeMap<NodeId, PathBuf>, String> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(format!("{} cannot be read: {error}", dir.display())),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("{} cannot be read: {error}", dir.display()))?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix('n')?.parse().ok());
        if let Some(id) = id {
            found.insert(NodeId(id), entry.path());
        }
    }
    Ok(found)
}

#[allow(clippy::disallowed_methods)] // not node code
fn is_marked(dir: &Path) -> bool {
    dir.join(FOUNDING_NAME).exists()
}

/// What these directories say of themselves; those that are none are left out. All are of one cluster.
async fn read(
    disk: &RealDisk,
    there: &BTreeMap<NodeId, PathBuf>,
) -> Result<BTreeMap<NodeId, NodeMeta>, String> {
    let mut metas: BTreeMap<NodeId, NodeMeta> = BTreeMap::new();
    for (id, dir) in there {
        let Some(meta) = directory::read(disk, dir).await.map_err(|error| error.to_string())? else {
            continue;
        };
        let shown = dir.display();
        if meta.node != *id {
            let node = meta.node;
            return Err(format!("{shown} is the directory of {node}: give each node its own back"));
        }
        if let Some((other, first)) = metas.first_key_value()
            && first.descriptor.cluster != meta.descriptor.cluster
        {
            let (ours, theirs) = (first.descriptor.cluster, meta.descriptor.cluster);
            return Err(format!(
                "{shown} is of cluster {theirs}, {other} beside it of cluster {ours}: keep the directories of one"
            ));
        }
        metas.insert(*id, meta);
    }
    Ok(metas)
}

/// Makes a new cluster.
async fn make(
    args: &Args,
    disk: &RealDisk,
    storage: StorageKind,
) -> Result<BTreeMap<NodeId, NodeMeta>, String> {
    let random = os_random()?;
    let nodes = args.nodes.unwrap_or(NODES);
    let mut members = Vec::new();
    for n in 0..nodes {
        let (client_addr, peer_addr) = match args.port.unwrap_or(PORT) {
            0 => (free_addr()?, free_addr()?),
            port => {
                let at = |above: u16| match port.checked_add(above + n) {
                    Some(port) => Ok(format!("127.0.0.1:{port}")),
                    None => Err(format!("--port {port} leaves no room for {nodes} nodes")),
                };
                at(REST_PORT_ABOVE)?;
                (at(0)?, at(PEER_PORT_ABOVE)?)
            }
        };
        let id = NodeId(u64::from(n) + 1);
        members.push(Member { id, peer_addr, client_addr, zone: String::new(), capacity: 1 });
    }
    let partitions = PartitionCount::new(args.partitions.unwrap_or(PARTITIONS));
    let partitions = partitions.map_err(|error| error.to_string())?;
    let replicas = args.replicas.unwrap_or(REPLICAS.min(u32::from(nodes)));
    let layout = Layout::first(partitions, replicas, members).map_err(|error| error.to_string())?;
    let descriptor = ClusterDescriptor::new(partitions, replicas, &random);
    let meta = NodeMeta { format: FORMAT, node: NodeId(1), descriptor, layouts: vec![layout] };
    mark(disk, &args.dir).await.map_err(|error| format!("{} cannot be made: {error}", args.dir.display()))?;
    end_founding(args, disk, storage, meta).await
}

/// Makes the directories that a cluster lacks of which no node has run yet.
async fn end_founding(
    args: &Args,
    disk: &RealDisk,
    storage: StorageKind,
    like: NodeMeta,
) -> Result<BTreeMap<NodeId, NodeMeta>, String> {
    let layout = like.layouts.first().ok_or("the cluster that was being made knows no layout")?;
    let mut metas = BTreeMap::new();
    for member in layout.members() {
        let dir = dir_of(args, member.id);
        let meta = NodeMeta { node: member.id, ..like.clone() };
        if directory::read(disk, &dir).await.map_err(|error| error.to_string())?.is_none() {
            write_directory(disk, &dir, &meta, storage, Past::Nothing).await?;
        }
        metas.insert(member.id, meta);
    }
    let unmarked = async {
        disk.remove(&args.dir.join(FOUNDING_NAME)).await?;
        disk.sync_dir(&args.dir).await
    };
    unmarked.await.map_err(|error| format!("{} cannot be made: {error}", args.dir.display()))?;
    Ok(metas)
}

/// Puts the mark into the directory. Durable on return.
async fn mark(disk: &RealDisk, dir: &Path) -> std::io::Result<()> {
    disk.create_dir_all(dir).await?;
    disk.open(&dir.join(FOUNDING_NAME), true).await?.sync_data().await?;
    disk.sync_dir(dir).await
}

fn dir_of(args: &Args, id: NodeId) -> PathBuf {
    args.dir.join(format!("n{}", id.0))
}

/// Which of the members run here, and how.
fn plan(args: &Args, metas: &[NodeMeta]) -> Result<Prepared, String> {
    let shown = args.dir.display();
    // Who was down when members changed knows older layouts alone.
    let newest = metas.iter().max_by_key(|meta| meta.layouts.first().map(Layout::reference));
    let newest = newest.ok_or_else(|| {
        format!(
            "{shown} holds directories of nodes in which nothing is: move them away, or choose another --dir"
        )
    })?;
    let (Some(layout), Some(oldest)) = (newest.layouts.first(), newest.layouts.last()) else {
        return Err(format!("the nodes in {shown} know no layout"));
    };
    fits(args, layout)?;
    let mut prepared = Prepared { plans: Vec::new(), absent: Vec::new(), notes: Vec::new() };
    let members: BTreeMap<NodeId, &Member> =
        newest.layouts.iter().rev().flat_map(Layout::members).map(|member| (member.id, member)).collect();
    let here: BTreeSet<NodeId> = metas.iter().map(|meta| meta.node).collect();
    for (id, member) in &members {
        let dir = dir_of(args, *id);
        if !here.contains(id) {
            let is_new = oldest.member(*id).is_none();
            prepared.absent.push(Absent { id: *id, dir, is_new });
            continue;
        }
        for addr in [&member.client_addr, &member.peer_addr] {
            is_free(addr)?;
        }
        let rest_addr = match args.port {
            Some(0) => free_addr()?,
            _ => rest_addr_of(member),
        };
        is_free(&rest_addr)?;
        prepared.plans.push(Plan {
            id: *id,
            dir,
            client_addr: member.client_addr.clone(),
            peer_addr: member.peer_addr.clone(),
            rest_addr,
            log: args.log.clone(),
            config: args.config.clone(),
        });
    }
    for id in here.iter().filter(|id| !members.contains_key(id)) {
        let dir = dir_of(args, *id);
        prepared.notes.push(format!(
            "{id} is no member any more and does not run. `ringdove serve --dir {}` has it give away what it still holds",
            dir.display()
        ));
    }
    Ok(prepared)
}

/// Whether the cluster is what the flags say.
fn fits(args: &Args, layout: &Layout) -> Result<(), String> {
    let first = layout.members().first().and_then(|member| port_of(&member.client_addr));
    let asked = [
        ("nodes", args.nodes.map(u32::from), u32::try_from(layout.members().len()).ok()),
        ("replicas", args.replicas, Some(layout.n())),
        ("partitions", args.partitions, Some(layout.q().get())),
        ("port", args.port.filter(|port| *port != 0).map(u32::from), first.map(u32::from)),
    ];
    for (flag, asked, had) in asked {
        if let (Some(asked), Some(had)) = (asked, had)
            && asked != had
        {
            let dir = args.dir.display();
            return Err(format!(
                "{dir} holds a cluster with --{flag} {had}, not {asked}: leave --{flag} out, or choose another --dir"
            ));
        }
    }
    Ok(())
}

fn port_of(addr: &str) -> Option<u16> {
    addr.rsplit(':').next()?.parse().ok()
}

/// The REST port is no business of the other nodes, so the layout does not know it.
fn rest_addr_of(member: &Member) -> String {
    let port = port_of(&member.client_addr).and_then(|port| port.checked_add(REST_PORT_ABOVE)).unwrap_or(0);
    format!("127.0.0.1:{port}")
}

/// A free port below the range from which systems take the ports of outgoing connections: one of that range
/// may be taken between this look and the node's start.
fn free_addr() -> Result<String, String> {
    const TRIES: usize = 200;
    for _ in 0..TRIES {
        let addr = format!("127.0.0.1:{}", 10_000 + u16::from_le_bytes(os_random()?) % 20_000);
        if TcpListener::bind(&addr).is_ok() {
            return Ok(addr);
        }
    }
    Err(format!("no free port found in {TRIES} tries between 10000 and 30000: give one with --port"))
}

fn is_free(addr: &str) -> Result<(), String> {
    match TcpListener::bind(addr) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "{addr} cannot be used ({error}): is another cluster running? Stop it, or start this one with \
             another --port and --dir"
        )),
    }
}
