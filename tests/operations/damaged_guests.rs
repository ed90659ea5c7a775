//! Records kept for another node that rot on the disk of the one that keeps them.

use std::path::Path;
use std::time::Duration;

use ringdove::dynamo::layout::LayoutHistory;
use ringdove::dynamo::preference::PreferenceList;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::net::message::{Durability, Get, HintWhy, Put, PutOutcome, Quorum};
use ringdove::types::{Namespace, NodeId};

use crate::support::{Cluster, PARTITIONS, key, member, until, write_id};

/// Four nodes, of which one primary of `dove` was away when it was written, and the fallback keeps it, damaged.
struct Rotten {
    cluster: Cluster,
    /// Two primaries that have it, and the one that was away.
    primaries: [usize; 3],
    keeper: usize,
}

impl Rotten {
    async fn start(scrub_interval: Duration) -> Rotten {
        let cluster = Cluster::start_with(4, |_, config| {
            config.store.cache_bytes = 0;
            config.handoff_interval = Duration::from_millis(50);
            config.anti_entropy_interval = Duration::from_millis(200);
            config.scrub_interval = scrub_interval;
        })
        .await;
        let partition =
            PartitionCount::new(PARTITIONS).unwrap().partition_of(Namespace::default(), &key("dove"));
        let list = PreferenceList::new(&LayoutHistory::new(cluster.nodes[0].layout()), partition);
        let at = |node: NodeId| usize::try_from(node.0).unwrap() - 1;
        let primaries: Vec<usize> = list.primaries().map(at).collect();
        let rotten = Rotten {
            primaries: primaries.try_into().unwrap(),
            keeper: at(list.fallbacks().next().unwrap()),
            cluster,
        };
        rotten.close(rotten.primaries[2]);
        let value = "a value that nothing else on the disk looks like";
        let put = Put {
            quorum: Quorum { w: Some(3), ..Quorum::default() },
            durability: Some(Durability::Sync),
            ..Put::new(key("dove"), write_id(), value)
        };
        let first = rotten.primaries[0];
        let reply = rotten.cluster.nodes[first].put(put, rotten.cluster.request(first)).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
        assert_eq!(rotten.kept(), 1, "the fallback keeps it");
        rotten.flip(value.as_bytes()).await;
        rotten
    }

    /// No connection to it is taken any more.
    fn close(&self, at: usize) {
        self.cluster.net.close(&member(at as u64 + 1).peer_addr);
    }

    fn reopen(&self, at: usize) {
        self.cluster.net.reopen(&member(at as u64 + 1).peer_addr);
    }

    /// Flips a bit of the value on the disk of the node that keeps it.
    async fn flip(&self, value: &[u8]) {
        let (disk, dir) = (&self.cluster.disks[self.keeper], Path::new("/data"));
        let mut flipped = 0;
        for name in disk.list(dir).await.unwrap() {
            let file = disk.open(&dir.join(name), false).await.unwrap();
            let len = usize::try_from(file.size().await.unwrap()).unwrap();
            let bytes = file.read_at(0, len).await.unwrap();
            for at in (0..len).filter(|at| bytes[*at..].starts_with(value)) {
                file.write_at(at as u64, vec![bytes[at] ^ 4].into()).await.unwrap();
                flipped += 1;
            }
        }
        assert_eq!(flipped, 1, "copies on the keeper's disk");
    }

    /// Records that the fallback keeps.
    fn kept(&self) -> u64 {
        self.cluster.nodes[self.keeper].hints().targets.iter().map(|hints| hints.count).sum()
    }

    fn why(&self) -> Vec<HintWhy> {
        self.cluster.nodes[self.keeper].hints().targets.into_iter().map(|hints| hints.why).collect()
    }

    /// How many values the node that was away has itself.
    async fn held_by_target(&self) -> usize {
        let at = self.primaries[2];
        let get = Get { quorum: Quorum { r: Some(1), ..Quorum::default() }, ..Get::new(key("dove")) };
        self.cluster.nodes[at].get(get, self.cluster.request(at)).await.map_or(0, |reply| reply.values.len())
    }
}

#[tokio::test]
async fn a_guest_that_cannot_be_read_goes_once_all_primaries_have_what_any_of_them_has() {
    let rotten = Rotten::start(Duration::from_secs(3600)).await;
    let [_, other, target] = rotten.primaries;
    // The target is back, and another primary cannot be asked: it may have what nobody else has.
    rotten.close(other);
    rotten.reopen(target);
    until(async || rotten.why() == [HintWhy::Damaged(1)]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(rotten.kept(), 1);
    rotten.reopen(other);
    until(async || rotten.kept() == 0).await;
    assert_eq!(rotten.cluster.nodes[rotten.keeper].metrics().guests_lost.get(), 1);
    assert_eq!(rotten.held_by_target().await, 1);
}

#[tokio::test]
async fn a_scrub_finds_a_guest_that_cannot_be_read_while_its_target_is_away() {
    let rotten = Rotten::start(Duration::from_millis(200)).await;
    until(async || rotten.why() == [HintWhy::Damaged(1)]).await;
    assert_eq!(rotten.kept(), 1, "its target has not got it yet");
    rotten.reopen(rotten.primaries[2]);
    until(async || rotten.kept() == 0).await;
}
