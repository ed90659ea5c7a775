//! As many siblings as there were concurrent writes: none lost, none false, whoever coordinates, however old the contexts.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::future::join_all;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use ringdove::net::message::{Context, Get, Put, PutOutcome, Quorum};
use ringdove::types::WriteId;

use crate::support::{Cluster, key, write_id};

const NODES: usize = 5;

/// What a reader was given: its context, and the writes that it has seen or that those had overwritten.
struct Seen {
    context: Context,
    past: BTreeSet<WriteId>,
}

struct Session<'a> {
    cluster: &'a Cluster,
    /// Of each write, what its writer had seen.
    pasts: BTreeMap<WriteId, BTreeSet<WriteId>>,
}

impl Session<'_> {
    fn all() -> Quorum {
        Quorum { r: Some(3), w: Some(3), strict: false }
    }

    /// The writes that no other has overwritten.
    fn concurrent(&self) -> BTreeSet<WriteId> {
        let overwritten = |id: &WriteId| self.pasts.values().any(|past| past.contains(id));
        self.pasts.keys().filter(|id| !overwritten(id)).copied().collect()
    }

    async fn read(&self, at: usize) -> Seen {
        let get = Get { quorum: Session::all(), ..Get::new(key("dove")) };
        let reply = self.cluster.nodes[at].get(get, self.cluster.request(at)).await.unwrap();
        let here: BTreeSet<WriteId> = reply.values.iter().map(|version| version.write_id).collect();
        assert_eq!(here.len(), reply.values.len(), "each once");
        assert_eq!(here, self.concurrent(), "read by node {}", at + 1);
        let older = here.iter().flat_map(|id| &self.pasts[id]).copied();
        Seen { context: Context::Token(reply.context), past: here.iter().copied().chain(older).collect() }
    }

    /// Writes by different nodes at the same moment, each with what its writer has seen.
    async fn write(&mut self, writers: Vec<(usize, &Seen)>) {
        let written = writers.into_iter().map(|(at, seen)| {
            let id = write_id();
            let put = Put {
                context: seen.context.clone(),
                quorum: Session::all(),
                ..Put::new(key("dove"), id, Bytes::from_static(b"coo"))
            };
            let (node, request, past) =
                (&self.cluster.nodes[at], self.cluster.request(at), seen.past.clone());
            async move {
                let reply = node.put(put, request).await.unwrap();
                assert_eq!(reply.outcome, PutOutcome::Applied);
                (id, past)
            }
        });
        let written = join_all(written).await;
        self.pasts.extend(written);
    }
}

fn blind() -> Seen {
    Seen { context: Context::Nothing, past: BTreeSet::new() }
}

#[tokio::test]
async fn there_are_as_many_siblings_as_writes_were_concurrent() {
    let cluster = Cluster::start_with(NODES as u64, |_, settings| settings.caps.siblings_max = 1_000).await;
    for seed in 0..4 {
        let mut session = Session { cluster: &cluster, pasts: BTreeMap::new() };
        // Whatever a run before has left is overwritten, and known to nobody.
        let get = Get { quorum: Session::all(), ..Get::new(key("dove")) };
        let left = cluster.nodes[0].get(get, cluster.request(0)).await.unwrap();
        let first = Seen { context: Context::Token(left.context), past: BTreeSet::new() };
        session.write(vec![(0, &first)]).await;
        let chance = &mut ChaCha8Rng::seed_from_u64(seed);
        let mut remembered = vec![blind(), session.read(1).await];
        let mut most = 0;
        for _ in 0..60 {
            let many = chance.random_range(1..=4);
            let writers = (0..many).map(|_| {
                (chance.random_range(0..NODES), &remembered[chance.random_range(0..remembered.len())])
            });
            let writers = writers.collect();
            session.write(writers).await;
            let seen = session.read(chance.random_range(0..NODES)).await;
            if remembered.len() > 6 {
                // Never the first: who writes blindly has seen nothing.
                remembered.remove(chance.random_range(1..remembered.len()));
            }
            remembered.push(seen);
            most = most.max(session.concurrent().len());
        }
        assert!(most > 5, "at most {most} at once, with seed {seed}");
        let all = session.read(2).await;
        session.write(vec![(3, &all)]).await;
        assert_eq!(session.concurrent().len(), 1);
        session.read(4).await;
    }
}
