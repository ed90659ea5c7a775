//! What a read sends to fallbacks that stand in for primaries that are down.

use std::time::Duration;

use bytes::Bytes;
use ringdove::dynamo::layout::LayoutHistory;
use ringdove::dynamo::preference::PreferenceList;
use ringdove::dynamo::reaping::Fences;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::{ActorMint, Caps, Content, LocalCopy, Overwrite, Record, Write};
use ringdove::net::message::{Durability, Fetch, FetchReply, Get, PeerState, Quorum, Store, StoreReply};
use ringdove::types::{Incarnation, Namespace, NodeId, Wall};

use crate::support::{Cluster, PARTITIONS, key, member, until, write_id};

/// Five nodes, of which one primary of the key takes no connections from the start.
struct Away {
    cluster: Cluster,
    name: &'static str,
    /// Two primaries that are up, and the one that is not.
    primaries: [usize; 3],
    /// The first of them stands in.
    fallbacks: [usize; 2],
}

impl Away {
    async fn start(name: &'static str, guests_max: u64) -> Away {
        let cluster = Cluster::start_with(5, |_, config| {
            config.guests_max = guests_max;
            config.handoff_interval = Duration::from_millis(100);
            config.anti_entropy_interval = Duration::from_secs(3600);
        })
        .await;
        let partition =
            PartitionCount::new(PARTITIONS).unwrap().partition_of(Namespace::default(), &key(name));
        let list = PreferenceList::new(&LayoutHistory::new(cluster.nodes[0].layout()), partition);
        let at = |node: NodeId| usize::try_from(node.0).unwrap() - 1;
        let primaries: Vec<usize> = list.primaries().map(at).collect();
        let fallbacks: Vec<usize> = list.fallbacks().map(at).collect();
        let (primaries, fallbacks) = (primaries.try_into().unwrap(), fallbacks.try_into().unwrap());
        let away = Away { cluster, name, primaries, fallbacks };
        away.cluster.net.close(&member(away.primaries[2] as u64 + 1).peer_addr);
        let down = member(away.primaries[2] as u64 + 1).id;
        let reader = &away.cluster.nodes[away.primaries[0]];
        until(async || {
            // The first call to it that needs a connection shows it.
            away.read(1).await;
            reader.views().iter().any(|peer| peer.node == down && peer.state != PeerState::Up)
        })
        .await;
        away
    }

    /// A node is sent a record that nobody else has.
    async fn store(&self, at: usize, incarnation: u64, guest_of: Vec<NodeId>, fences: Fences) {
        let mut copy = LocalCopy::default();
        let mut mint = ActorMint::new(Incarnation(incarnation));
        let content = Content::Value(Bytes::from(incarnation.to_string()));
        let write = Write { write_id: write_id(), content, meta: None, expires_at: None };
        copy.put(&mut mint, Overwrite::Nothing, write, Wall(1), &Caps::default()).unwrap();
        let (namespace, durability) = (Namespace::default(), Durability::Sync);
        let store =
            Store { namespace, key: key(self.name), record: copy.record, guest_of, durability, fences };
        let (link, clock) = (self.cluster.peer_link(at).await, self.cluster.clock.as_ref());
        let reply: StoreReply =
            link.call(clock, &store, self.cluster.peer_head(), self.cluster.deadline()).await.unwrap();
        assert_eq!(reply, StoreReply::Kept);
    }

    /// What a node holds, in order.
    async fn held(&self, at: usize) -> Vec<Bytes> {
        let fetch = Fetch { namespace: Namespace::default(), key: key(self.name), unless: None };
        let (link, clock) = (self.cluster.peer_link(at).await, self.cluster.clock.as_ref());
        let reply: FetchReply =
            link.call(clock, &fetch, self.cluster.peer_head(), self.cluster.deadline()).await.unwrap();
        values(&reply.record.unwrap())
    }

    /// Reads at the first primary, from two replicas or from three.
    async fn read(&self, r: u8) -> usize {
        let get = Get { quorum: Quorum { r: Some(r), ..Quorum::default() }, ..Get::new(key(self.name)) };
        let at = self.primaries[0];
        self.cluster.nodes[at].get(get, self.cluster.request(at)).await.unwrap().values.len()
    }

    /// Guests sent after reads, and repairs that failed.
    fn counted(&self) -> (u64, u64) {
        let metrics = self.cluster.nodes[self.primaries[0]].metrics();
        (metrics.guests_repaired.get(), metrics.read_repairs_failed.get())
    }
}

fn values(record: &Record) -> Vec<Bytes> {
    let mut values: Vec<Bytes> = record
        .siblings()
        .iter()
        .filter_map(|sibling| match &sibling.content {
            Content::Value(value) => Some(value.clone()),
            Content::Tombstone => None,
        })
        .collect();
    values.sort();
    values
}

#[tokio::test]
async fn a_stand_in_that_has_nothing_or_too_little_is_sent_what_a_read_found() {
    let away = Away::start("dove", 1000).await;
    let [_, other, gone] = away.primaries;
    away.store(other, 71, Vec::new(), Fences::default()).await;
    assert_eq!(away.read(3).await, 1);
    let stand_in = away.fallbacks[0];
    until(async || away.held(stand_in).await == ["71"]).await;
    assert_eq!(away.held(away.fallbacks[1]).await, [""; 0], "one stands in for one");
    assert_eq!(away.counted(), (1, 0));

    away.store(other, 72, Vec::new(), Fences::default()).await;
    assert_eq!(away.read(3).await, 2);
    until(async || away.held(stand_in).await == ["71", "72"]).await;
    assert_eq!(away.read(3).await, 2);
    assert_eq!(away.counted(), (2, 0), "what is up to date is sent nothing");

    // It was kept for the one that was away.
    away.cluster.net.reopen(&member(gone as u64 + 1).peer_addr);
    until(async || away.held(gone).await == ["71", "72"]).await;
    until(async || away.held(stand_in).await.is_empty()).await;
}

#[tokio::test]
async fn a_stand_in_that_keeps_no_more_holds_up_no_read() {
    let away = Away::start("dove", 0).await;
    away.store(away.primaries[1], 71, Vec::new(), Fences::default()).await;
    assert_eq!(away.read(3).await, 1);
    until(async || away.counted() == (1, 1)).await;
    assert_eq!(away.held(away.fallbacks[0]).await, [""; 0]);
}

#[tokio::test]
async fn a_stand_in_that_has_voted_since_refuses_what_was_read_before() {
    let away = Away::start("dove", 1000).await;
    let [.., gone] = away.primaries;
    let stand_in = away.fallbacks[0];
    let fences = Fences { raised: 5, committed: 0 };
    away.store(stand_in, 70, vec![member(gone as u64 + 1).id], fences).await;
    away.store(away.primaries[1], 71, Vec::new(), Fences::default()).await;
    assert_eq!(away.read(3).await, 2);
    until(async || away.counted().0 == 1 && away.counted().1 > 0).await;
    assert_eq!(away.held(stand_in).await, ["70"]);
}
