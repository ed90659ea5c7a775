//! `ringdove status` and `ringdove layout`: what a cluster is made of, and how its nodes are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::connect::{Connect, failed};
use super::members;
use super::units::{self, grouped, span, table};
use super::{DONE, NOT_NOW, complain, say};
use crate::client::{Client, ClientError};
use crate::dynamo::layout::{Layout, LayoutHistory};
use crate::dynamo::preference::PreferenceList;
use crate::gateway::state_word;
use crate::net::message::{PeerState, PeerView, StatusReply};
use crate::types::{Key, LayoutRef, Namespace, NodeId, PartitionId};

/// How long a node may take to say how it is.
pub(super) const STATUS_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) connect: Connect,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct LayoutArgs {
    #[command(subcommand)]
    change: Option<members::Change>,
    #[command(flatten)]
    connect: Connect,
    /// Show who holds this key.
    #[arg(long)]
    key: Option<String>,
    /// Show who holds each partition.
    #[arg(long)]
    partitions: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A layout's version with as much of its hash as people compare.
pub(super) fn name_of(layout: LayoutRef) -> String {
    format!("{} ({:08x})", layout.version, layout.hash >> 32)
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What every member answers to a question of its own; each is asked once.
///
/// # Errors
/// With the exit code when no member can be asked who the others are; that was said.
pub(super) async fn ask_all<R, F>(
    args: &StatusArgs,
    ask: impl Fn(Client, String, Duration) -> F,
) -> Result<Vec<(NodeId, Result<R, ClientError>)>, u8>
where
    F: Future<Output = Result<R, ClientError>>,
{
    let client = args.connect.client_with(|config| config.tries = 1)?;
    client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let patience = STATUS_PATIENCE.min(args.connect.timeout);
    let asking = client.members().into_iter().map(|(node, addr)| {
        let asking = ask(client.clone(), addr, patience);
        async move { (node, asking.await) }
    });
    Ok(join_all(asking).await)
}

pub(super) async fn status(args: StatusArgs) -> u8 {
    try_status(args).await.unwrap_or_else(|code| code)
}

type Asked = (NodeId, String, Result<StatusReply, ClientError>);

async fn try_status(args: StatusArgs) -> Result<u8, u8> {
    let client = args.connect.client_with(|config| config.tries = 1)?;
    let layouts = client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let patience = Some(STATUS_PATIENCE.min(args.connect.timeout));
    let ask = |(node, addr): (NodeId, String)| {
        let client = client.clone();
        async move {
            let status = client.status(&addr, patience).await;
            (node, addr, status)
        }
    };
    let mut asked: Vec<Asked> = join_all(client.members().into_iter().map(ask)).await;
    // A node that was removed is asked at the address that is given: it may hold something still.
    let is_known = |addr: &String| asked.iter().any(|(_, known, _)| known == addr);
    let others: Vec<String> = args.connect.addr.iter().filter(|addr| !is_known(addr)).cloned().collect();
    for addr in others {
        if let Ok(status) = client.status(&addr, patience).await
            && asked.iter().all(|(node, ..)| *node != status.node)
        {
            asked.push((status.node, addr, Ok(status)));
        }
    }
    let silent = asked.iter().filter(|(.., status)| status.is_err()).count();
    if args.json {
        let active: Vec<u64> = layouts.iter().map(|layout| layout.reference().version).collect();
        let cluster = asked.iter().find_map(|(.., status)| status.as_ref().ok()).map(|status| status.cluster);
        let told = json!({
            "cluster": cluster.map(|cluster| cluster.to_string()),
            "layouts": active,
            "replicas": layouts[0].n(),
            "partitions": layouts[0].q().get(),
            "nodes": asked.iter().map(node_json).collect::<Vec<_>>(),
        });
        say(&told.to_string());
    } else {
        show_status(&layouts, &asked);
    }
    if silent > 0 {
        complain(&format!("{silent} of {} nodes do not answer", asked.len()));
        return Ok(NOT_NOW);
    }
    Ok(DONE)
}

fn show_status(layouts: &[Arc<Layout>], asked: &[Asked]) {
    let layout = &layouts[0];
    if let Some(status) = asked.iter().find_map(|(.., status)| status.as_ref().ok()) {
        let members = layout.members().len();
        say(&format!("cluster {}, layout {}", status.cluster, name_of(layout.reference())));
        say(&format!("{members} members, N = {}, {} partitions\n", layout.n(), layout.q().get()));
    }
    if layouts.len() > 1 {
        say(&format!("{} layouts are active: data is moving\n", layouts.len()));
    }
    let mut damaged = 0;
    let mut versions: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    let row = |(node, addr, status): &Asked| {
        let mut row = vec![node.to_string(), addr.clone()];
        match status {
            Err(_) => row.push("no answer".to_owned()),
            Ok(status) => {
                let state = match (status.stopping, status.partitions_refilled < status.partitions) {
                    (true, _) => "stopping",
                    _ if layouts.iter().all(|layout| layout.member(*node).is_none()) => "removed",
                    (false, true) => "refilling",
                    (false, false) => "up",
                };
                let down = status.peers.iter().filter(|peer| peer.state != PeerState::Up).map(seen);
                let down: Vec<String> = down.collect();
                let down = if down.is_empty() { "-".to_owned() } else { down.join(", ") };
                row.extend([
                    state.to_owned(),
                    span(Duration::from_millis(status.uptime_ms)),
                    grouped(status.data_keys),
                    grouped(status.guest_keys),
                    units::bytes(status.log_bytes),
                    units::bytes(status.live_bytes),
                    format!("{}/{}", status.partitions_refilled, status.partitions),
                    grouped(status.in_flight),
                    down,
                ]);
            }
        }
        row
    };
    let rows: Vec<Vec<String>> = asked.iter().map(row).collect();
    let heading = [
        "NODE",
        "CLIENT PORT",
        "STATE",
        ">UP FOR",
        ">KEYS",
        ">GUESTS",
        ">LOG",
        ">LIVE",
        ">REFILLED",
        ">BUSY",
        "SEES DOWN",
    ];
    say(&table(&heading, &rows));
    show_views(asked);
    for (node, _, status) in asked {
        match status {
            Err(error) => complain(&format!("{node}: {error}")),
            Ok(status) => {
                damaged += status.damaged_records;
                versions.entry(&status.program).or_default().push(*node);
                if status.layout != layout.reference() {
                    complain(&format!("{node} goes by layout {}", name_of(status.layout)));
                }
            }
        }
    }
    if damaged > 0 {
        complain(&format!(
            "{damaged} damaged record(s) found since the nodes' starts: primaries repair theirs from each other as they compare; \
             those kept for other nodes go once all primaries of their keys were asked (`ringdove hints`)"
        ));
    }
    if versions.len() > 1 {
        let each = versions.iter().map(|(version, nodes)| format!("{version} on {}", names(nodes)));
        complain(&format!("several versions of the program: {}", each.collect::<Vec<_>>().join(", ")));
    }
}

/// Nodes whose views of each other are shown as a square.
const SQUARE_MAX: usize = 8;

/// What each node takes every other for, with its suspicion (phi) and how long ago it was heard.
fn show_views(asked: &[Asked]) {
    let views = || {
        let told = asked.iter().filter_map(|(node, _, status)| Some((node, status.as_ref().ok()?)));
        told.map(|(node, status)| (node.to_string(), &status.peers)).filter(|(_, peers)| !peers.is_empty())
    };
    let heard = |peer: &PeerView| span(Duration::from_millis(peer.heard_ms_ago));
    let phi = |peer: &PeerView| format!("{:.1}", f64::from(peer.phi_thousandths) / 1000.0);
    let seen: BTreeSet<NodeId> = views().flat_map(|(_, peers)| peers).map(|peer| peer.node).collect();
    if seen.is_empty() {
        return;
    }
    say("\nwhat each node takes the others for: state, suspicion (phi), last heartbeat");
    if seen.len() > SQUARE_MAX {
        let row = |node: &String, peer: &PeerView| {
            vec![
                node.clone(),
                peer.node.to_string(),
                state_word(peer.state).to_owned(),
                phi(peer),
                heard(peer),
            ]
        };
        let rows: Vec<Vec<String>> =
            views().flat_map(|(node, peers)| peers.iter().map(move |peer| row(&node, peer))).collect();
        say(&table(&["NODE", "SEES", "STATE", ">PHI", ">HEARD"], &rows));
        return;
    }
    let cell = |peers: &[PeerView], seen: &NodeId| match peers.iter().find(|peer| peer.node == *seen) {
        Some(peer) => format!("{}, {}, {}", state_word(peer.state), phi(peer), heard(peer)),
        None => "-".to_owned(),
    };
    let row = |(node, peers): (String, &Vec<PeerView>)| {
        std::iter::once(node).chain(seen.iter().map(|seen| cell(peers, seen))).collect()
    };
    let rows: Vec<Vec<String>> = views().map(row).collect();
    let names: Vec<String> = seen.iter().map(ToString::to_string).collect();
    let heading: Vec<&str> = std::iter::once("NODE").chain(names.iter().map(String::as_str)).collect();
    say(&table(&heading, &rows));
}

/// What a node takes another for, with its suspicion and how long ago it was heard.
fn seen(peer: &PeerView) -> String {
    let (phi, heard) =
        (f64::from(peer.phi_thousandths) / 1000.0, span(Duration::from_millis(peer.heard_ms_ago)));
    format!("{} ({}, phi {phi:.1}, heard {heard} ago)", peer.node, state_word(peer.state))
}

fn peer_json(peer: &PeerView) -> Value {
    json!({
        "node": peer.node.to_string(),
        "state": state_word(peer.state),
        "phi": f64::from(peer.phi_thousandths) / 1000.0,
        "heard_ms_ago": peer.heard_ms_ago,
    })
}

fn node_json((node, addr, status): &Asked) -> Value {
    match status {
        Err(error) => json!({
            "node": node.to_string(), "client_addr": addr, "up": false, "message": error.to_string(),
        }),
        Ok(status) => json!({
            "node": node.to_string(),
            "client_addr": addr,
            "up": true,
            "stopping": status.stopping,
            "program": status.program,
            "uptime_ms": status.uptime_ms,
            "layout": { "version": status.layout.version, "hash": format!("{:016x}", status.layout.hash) },
            "peers": status.peers.iter().map(peer_json).collect::<Vec<_>>(),
            "peers_down": status.peers_down.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "partitions": status.partitions,
            "partitions_refilled": status.partitions_refilled,
            "data_keys": status.data_keys,
            "guest_keys": status.guest_keys,
            "log_bytes": status.log_bytes,
            "live_bytes": status.live_bytes,
            "damaged_records": status.damaged_records,
            "in_flight": status.in_flight,
        }),
    }
}

pub(super) async fn layout(args: LayoutArgs) -> u8 {
    if let Some(change) = args.change {
        return members::run(change).await;
    }
    try_layout(args).await.unwrap_or_else(|code| code)
}

async fn try_layout(args: LayoutArgs) -> Result<u8, u8> {
    let key = match &args.key {
        None => None,
        Some(key) => {
            let key = Key::new(key.clone().into_bytes());
            Some(key.map_err(|error| super::connect::usage(&format!("--key: {error}")))?)
        }
    };
    let client = args.connect.client()?;
    let layouts = client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let layout = &layouts[0];
    // What the client holds was checked when it was taken.
    let history = LayoutHistory::try_from(layouts.clone())
        .map_err(|error| super::connect::usage(&error.to_string()))?;
    let list = |partition: PartitionId| PreferenceList::new(&history, partition);
    let key = key.map(|key| (layout.q().partition_of(Namespace::default(), &key), key));
    if args.json {
        say(&layout_json(&layouts, key.as_ref().map(|(partition, key)| (list(*partition), key)), &args)
            .to_string());
        return Ok(DONE);
    }
    if let Some((partition, key)) = &key {
        let list = list(*partition);
        let node = |node: NodeId| {
            let addr = layout.member(node).map_or("no member any more", |member| &member.client_addr);
            vec![node.to_string(), addr.to_owned()]
        };
        say(&format!("{key} is in partition {partition} of {}", layout.q().get()));
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (place, primary) in list.primaries().enumerate() {
            let role = if place == 0 { "primary, asked first" } else { "primary" };
            rows.push([vec![role.to_owned()], node(primary)].concat());
        }
        for fallback in list.fallbacks() {
            rows.push([vec!["fallback".to_owned()], node(fallback)].concat());
        }
        say(&table(&["ROLE", "NODE", "CLIENT PORT"], &rows));
        return Ok(DONE);
    }
    say(&format!(
        "layout {}, N = {}, {} partitions\n",
        name_of(layout.reference()),
        layout.n(),
        layout.q().get()
    ));
    let row = |member: &crate::dynamo::layout::Member| {
        let zone = if member.zone.is_empty() { "-".to_owned() } else { member.zone.clone() };
        vec![
            member.id.to_string(),
            zone,
            member.capacity.to_string(),
            layout.partitions_of(member.id).count().to_string(),
            member.client_addr.clone(),
            member.peer_addr.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = layout.members().iter().map(row).collect();
    say(&table(&["NODE", "ZONE", ">CAPACITY", ">PARTITIONS", "CLIENT PORT", "PEER PORT"], &rows));
    for older in &layouts[1..] {
        say(&format!("\nlayout {} is active still: its data is on the move", name_of(older.reference())));
    }
    if args.partitions {
        let primaries = |partition: PartitionId| list(partition).primaries().collect::<Vec<_>>();
        let row = |partition: PartitionId| vec![partition.to_string(), names(&primaries(partition))];
        let rows: Vec<Vec<String>> = layout.q().partitions().map(row).collect();
        say(&format!("\n{}", table(&["PARTITION", "PRIMARIES"], &rows)));
    }
    Ok(DONE)
}

fn layout_json(layouts: &[Arc<Layout>], key: Option<(PreferenceList, &Key)>, args: &LayoutArgs) -> Value {
    let layout = &layouts[0];
    let ids =
        |nodes: &mut dyn Iterator<Item = NodeId>| nodes.map(|node| node.to_string()).collect::<Vec<_>>();
    let member = |member: &crate::dynamo::layout::Member| {
        json!({
            "node": member.id.to_string(),
            "zone": member.zone,
            "capacity": member.capacity,
            "partitions": layout.partitions_of(member.id).count(),
            "client_addr": member.client_addr,
            "peer_addr": member.peer_addr,
        })
    };
    let mut told = json!({
        "version": layout.reference().version,
        "hash": format!("{:016x}", layout.reference().hash),
        "replicas": layout.n(),
        "partitions": layout.q().get(),
        "active": layouts.iter().map(|layout| layout.reference().version).collect::<Vec<_>>(),
        "members": layout.members().iter().map(member).collect::<Vec<_>>(),
    });
    if let Some((list, _)) = key {
        told["key"] = json!({
            "partition": list.partition.0,
            "primaries": ids(&mut list.primaries()),
            "fallbacks": ids(&mut list.fallbacks()),
        });
    }
    if args.partitions {
        let primaries =
            layout.q().partitions().map(|partition| ids(&mut layout.primaries(partition).iter().copied()));
        told["primaries"] = primaries.collect();
    }
    told
}
