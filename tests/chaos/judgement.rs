//! The end of a run: the nodes agree and keep nothing for each other, what they hold is read, the history is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jepsen_like_checks::checks::{Check, NAMES};
use jepsen_like_checks::event::{Event, Kind, Payload, Sibling};
use jepsen_like_checks::history::History;
use jepsen_like_checks::{Options, Verdict};
use ringdove::client::{Client, ReadOptions};
use ringdove::dynamo::version::Record;
use ringdove::io::{Clock, RealClock, TcpNet};
use ringdove::net::envelope::FrameHead;
use ringdove::net::link::{Link, hello};
use ringdove::net::message::{Fetch, FetchReply, Spoken};
use ringdove::types::{Key, Mono, Namespace, NodeId};

use crate::history::{Recorder, covers, event, reread, siblings_in, siblings_of};
use crate::processes::{Cluster, NodeProcess};
use crate::workload::context_of;

/// Whoever asks a node on behalf of the judgement: no member.
const JUDGE: NodeId = NodeId(u64::MAX);
/// Nodes that have not come to rest by then never will.
const AT_REST_WITHIN: Duration = Duration::from_secs(120);
const ASKED_WITHIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(250);

/// Checks that must have judged something, or the run shows nothing.
const MUST_JUDGE: [&str; 5] = ["thin-air", "frontier", "durability", "convergence", "regular"];
/// Checks of other kinds of histories.
const NOT_OURS: [&str; 3] = ["set", "set-full", "counter"];

/// Waits until nobody keeps anything for anybody and all primaries of each key hold the same; how long that took.
pub(crate) async fn at_rest(cluster: &Cluster, client: &Client, keys: &BTreeSet<Key>) -> Duration {
    let began = Instant::now();
    loop {
        let mut left = kept(cluster);
        if left.is_none() {
            left = apart(cluster, keys).await;
        }
        let Some(left) = left else { return began.elapsed() };
        assert!(began.elapsed() < AT_REST_WITHIN, "not at rest within {AT_REST_WITHIN:?}: {left}");
        // A client that goes on asking is part of the world.
        let _ = client.layouts().await;
        tokio::time::sleep(LOOK).await;
    }
}

/// What `ringdove hints` says is kept for others, if anything.
fn kept(cluster: &Cluster) -> Option<String> {
    let told = crate::processes::output(&["hints", "--addr", &cluster.client_addrs().join(","), "--json"]);
    let hints: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON, whoever answers");
    let all_answered = told.status.success();
    (!all_answered || hints["total"] != 0).then(|| hints.to_string())
}

/// A key of which primaries hold different records, if there is one.
async fn apart(cluster: &Cluster, keys: &BTreeSet<Key>) -> Option<String> {
    let held = held(cluster, keys).await;
    held.iter().find_map(|(key, copies)| {
        let differ = copies.windows(2).any(|pair| pair[0].1 != pair[1].1);
        differ.then(|| {
            let copies = copies.iter().map(|(node, record)| format!("{node} {:?}", record.context()));
            format!("{key}: {}", copies.collect::<Vec<_>>().join(", "))
        })
    })
}

/// What each primary itself holds of each key.
async fn held(cluster: &Cluster, keys: &BTreeSet<Key>) -> BTreeMap<Key, Vec<(NodeId, Record)>> {
    let mut held: BTreeMap<Key, Vec<(NodeId, Record)>> = BTreeMap::new();
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let deadline = || Mono::from_origin(clock.mono()) + ASKED_WITHIN;
    let head = FrameHead { layout: cluster.layout.reference(), ..FrameHead::default() };
    for NodeProcess { id, addrs, .. } in &cluster.nodes {
        let hello = hello(Spoken::default(), Some(cluster.descriptor.cluster), Some(JUDGE));
        let link = Link::open(&TcpNet, &clock, &addrs.listen_peer, &hello, deadline()).await;
        let link = link.expect("it takes connections");
        for key in keys {
            let partition = cluster.layout.q().partition_of(Namespace::default(), key);
            if !cluster.layout.is_primary(partition, *id) {
                continue;
            }
            let fetch = Fetch { namespace: Namespace::default(), key: key.clone(), unless: None };
            let reply = link.call::<FetchReply>(clock.as_ref(), &fetch, head, deadline()).await;
            let record = reply.expect("it answers").record.expect("asked for without a condition");
            held.entry(key.clone()).or_default().push((*id, record));
        }
    }
    held
}

/// Reads the final state of each key, from all replicas together and from each by itself.
pub(crate) async fn read_all(cluster: &Cluster, client: &Client, keys: &BTreeSet<Key>, history: &Recorder) {
    let options = ReadOptions {
        r: Some(3),
        strict: true,
        timeout: Some(Duration::from_secs(30)),
        ..ReadOptions::default()
    };
    for key in keys {
        let process = history.process();
        let invoke = event(Kind::Invoke, process, "final", key);
        history.push(Event { r: Some(3), n: Some(3), strict: Some(true), ..invoke });
        let reply = client.get(key, &options).await.expect("all replicas are there");
        let context = context_of(&cluster.descriptor, key, &reply.context);
        history.push(Event {
            value: Some(siblings_of(&reply)),
            covers: Some(covers(&context)),
            ..event(Kind::Ok, process, "final", key)
        });
    }
    for (key, copies) in held(cluster, keys).await {
        for (id, record) in copies {
            let (process, node) = (history.process(), Some(id.to_string().into()));
            history.push(Event { node: node.clone(), ..event(Kind::Invoke, process, "final", &key) });
            let (value, covers) = (Some(siblings_in(&record)), Some(covers(record.context())));
            let done = event(Kind::Ok, process, "final", &key);
            history.push(Event { value, covers, node, ..done });
        }
    }
}

/// The verdict of each check, and what is wrong with them.
pub(crate) fn judge(history: &History) -> (BTreeMap<&'static str, Verdict>, Vec<String>) {
    let ours = NAMES.into_iter().filter(|name| !NOT_OURS.contains(name));
    let verdicts: BTreeMap<&'static str, Verdict> = ours
        .map(|name| {
            let check = Check::of(name).expect("a name of the checks");
            (name, check.run(history, &Options::default()).0)
        })
        .collect();
    let wrong = |(name, verdict): (&&str, &Verdict)| match verdict {
        Verdict::Valid { .. } => None,
        Verdict::Unknown { .. } if !MUST_JUDGE.contains(name) => None,
        verdict => Some(format!("{name}: {verdict}")),
    };
    let wrong = verdicts.iter().filter_map(wrong).collect();
    (verdicts, wrong)
}

/// The history at `path` as it would be if a write in the final state, acknowledged, were in it nowhere: which write, and
/// the history. None when there is no such write.
pub(crate) fn without_a_write(path: &Path) -> Option<(String, History)> {
    let (mut acknowledged, mut writes, mut lost) = (BTreeSet::new(), BTreeMap::new(), None);
    reread(path, |event| match (&*event.f, event.kind, &event.value) {
        ("put", Kind::Invoke, _) => {
            let id = event.id.as_ref().expect("each write has one").to_string();
            writes.insert(format!("{:?}", event.process), id);
        }
        ("put", Kind::Ok, _) => {
            acknowledged.extend(writes.remove(&format!("{:?}", event.process)));
        }
        ("final", Kind::Ok, Some(Payload::Siblings(siblings))) => {
            let is_acknowledged = |sibling: &&Sibling<'_>| acknowledged.contains(&*sibling.id);
            let here = siblings.iter().filter(|sibling| !sibling.dead).find(is_acknowledged);
            lost = lost.take().or(here.map(|sibling| sibling.id.to_string()));
        }
        _ => {}
    });
    let lost = lost?;
    let history = reread(path, |event| {
        if event.f == "final"
            && let Some(Payload::Siblings(siblings)) = &mut event.value
        {
            siblings.retain(|sibling| sibling.id != lost);
        }
    });
    Some((lost, history))
}
