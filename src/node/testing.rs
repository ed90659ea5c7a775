//! A node on a disk in memory, for the tests of its parts.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::{Node, NodeConfig, found};
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::layout::{Layout, Member};
use crate::dynamo::ring::PartitionCount;
use crate::dynamo::version::{ActorMint, Caps, Content, LocalCopy, Overwrite, Record, Write};
use crate::io::{Io, MemoryDisk, Net, RealClock, TcpNet};
use crate::storage::directory::{FORMAT, NodeMeta};
use crate::types::{Incarnation, NodeId, Wall, WriteId};

/// A node of a cluster of three that runs nothing yet.
pub(super) async fn open(settings: impl Fn(&mut NodeConfig)) -> Node {
    open_on(Arc::new(TcpNet), settings).await
}

/// The same, on this network.
pub(super) async fn open_on(net: Arc<dyn Net>, settings: impl Fn(&mut NodeConfig)) -> Node {
    let partitions = PartitionCount::new(16).unwrap();
    let member = |id| Member {
        id: NodeId(id),
        peer_addr: format!("n{id}:1"),
        client_addr: format!("n{id}:2"),
        zone: String::new(),
        capacity: 1,
    };
    let layout = Layout::first(partitions, 3, (1..=3).map(member).collect()).unwrap();
    let descriptor = ClusterDescriptor::new(partitions, 3, &[7; 64]);
    let meta = NodeMeta { format: FORMAT, node: NodeId(1), descriptor, layouts: vec![layout] };
    let clock = Arc::new(RealClock::new());
    let io = Io { net, disk: Arc::new(MemoryDisk::new()), clock: clock.clone() };
    let dir = PathBuf::from("/data");
    found(io.disk.clone(), clock, &dir, &meta, Incarnation(1)).await.unwrap();
    let mut config = NodeConfig::new(dir);
    settings(&mut config);
    Node::open(config, io, [1; 32]).await.unwrap().0
}

/// A record with one value, as the start of another node wrote it.
pub(super) fn written(incarnation: u64, at: Wall) -> Record {
    let (mut copy, mut mint) = (LocalCopy::default(), ActorMint::new(Incarnation(incarnation)));
    let content = Content::Value(Bytes::from_static(b"grey"));
    let write = Write { write_id: WriteId(incarnation.into()), content, meta: None, expires_at: None };
    copy.put(&mut mint, Overwrite::Nothing, write, at, &Caps::default()).unwrap();
    copy.record
}
