//! Clusters made by hand, and clusters that meet.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringdove::dynamo::merkle::MerkleKey;
use ringdove::io::{Clock, Net, RealClock, RealDisk, TcpNet};
use ringdove::net::envelope::FrameHead;
use ringdove::net::frame::{FrameReader, Incoming, ReadLimits};
use ringdove::net::link::{Link, OpenError, hello};
use ringdove::net::message::{AuthMethod, Message, RefusalCode, Spoken, Welcome};
use ringdove::storage::{SaltSeed, Store, StoreConfig, directory};
use ringdove::types::{ClusterId, Incarnation, LayoutRef, Mono, NodeId};
use tokio::io::AsyncWriteExt;

use crate::program::{Program, free_addr, output, said};

fn inside(parent: &tempfile::TempDir, name: &str) -> String {
    parent.path().join(name).to_str().unwrap().to_owned()
}

/// Members 1, 2, … at these client addresses, with peer addresses of their own.
fn members(addrs: &[&str]) -> String {
    let members = addrs.iter().enumerate();
    let members = members.map(|(at, addr)| format!("{}={addr}/peer={}", at + 1, free_addr()));
    members.collect::<Vec<_>>().join(",")
}

/// How many partitions of a directory that is not in use count as refilled.
fn refilled(dir: &str) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (disk, dir) = (RealDisk::new().unwrap(), Path::new(dir));
        let descriptor = directory::read(&disk, dir).await.unwrap().expect("a data directory").descriptor;
        let config = StoreConfig::new(descriptor.partitions, MerkleKey(descriptor.merkle_key));
        let clock = Arc::new(RealClock::new());
        let (store, _) =
            Store::open(Arc::new(disk), clock, dir, Incarnation(1), SaltSeed(1), config).await.unwrap();
        let partitions = descriptor.partitions.partitions();
        let refilled = partitions.filter(|partition| store.partition_state(*partition).0.refilled).count();
        store.close().await.unwrap();
        refilled
    })
}

/// Whether the node at this address lacks something, as far as it knows.
fn is_refilling(addr: &str) -> bool {
    let status: serde_json::Value =
        serde_json::from_slice(&output(&["status", "--addr", addr, "--json"]).stdout).expect("JSON");
    let nodes = status["nodes"].as_array().expect("a list of nodes");
    nodes.iter().any(|node| node["partitions_refilled"] != node["partitions"])
}

#[test]
fn members_join_one_by_one_and_a_lost_directory_is_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let (first, second) = (free_addr(), free_addr());
    let (n1, n2) = (inside(&parent, "n1"), inside(&parent, "n2"));
    let list = members(&[&first, &second]);
    let (code, words) = said(&["init", "--dir", &n1, "--new-cluster", "--members", &list]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains(&format!("--join {first} --node-id 2")), "{words}");
    let wrong = |args: &[&str], code: i32, hint: &str| {
        let told = said(args);
        assert!(told.0 == Some(code) && told.1.contains(hint), "{args:?}: {told:?}");
    };
    let join = |id: &str| said(&["init", "--dir", &n2, "--join", &first, "--node-id", id]);
    wrong(&["init", "--dir", &n2, "--join", &first, "--node-id", "2"], 1, "that is running");

    let node1 = Program::serve(&n1, &[]);
    wrong(&["init", "--dir", &n2, "--join", &first], 2, "the members are n1 at");
    wrong(&["init", "--dir", &n2, "--join", &first, "--node-id", "3"], 1, "n3 is not a member of cluster");
    wrong(&["init", "--dir", &n2, "--join", &first, "--node-id", "1"], 1, "n1 is running at");
    wrong(
        &["init", "--dir", &n1, "--join", &first, "--node-id", "2"],
        1,
        "is the directory of n1 of cluster",
    );
    let peer = list.split(['=', ',']).nth(2).unwrap();
    wrong(&["init", "--dir", &n2, "--join", peer, "--node-id", "2"], 1, "clients use the client port");
    assert!(!std::path::Path::new(&n2).exists(), "nothing was made");

    assert_eq!(join("2").0, Some(0));
    assert_eq!(refilled(&n2), 256, "who never held anything has lost nothing");
    let node2 = Program::serve(&n2, &[]);
    assert_eq!(said(&["put", "--addr", &first, "-w", "2", "dove", "grey"]).0, Some(0));
    assert_eq!(output(&["get", "--addr", &second, "-r", "2", "dove"]).stdout, b"grey");
    wrong(
        &["init", "--dir", &inside(&parent, "x"), "--replace", &first, "--node-id", "2"],
        1,
        "n2 is running at",
    );

    // The second node's disk is lost.
    assert_eq!(node2.stop().0, Some(0));
    std::fs::remove_dir_all(&n2).unwrap();
    let (code, words) = said(&["init", "--dir", &n2, "--replace", &first, "--node-id", "2"]);
    assert!(code == Some(0) && words.contains("not refilled"), "{words}");
    assert_eq!(refilled(&n2), 0);
    let node2 = Program::serve(&n2, &["--anti-entropy-interval", "500ms"]);
    // Nobody reads it: it asks for what it lacks by itself.
    let began = Instant::now();
    while is_refilling(&second) {
        assert!(began.elapsed() < Duration::from_secs(60), "not refilled within a minute");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(node1.stop().0, Some(0));
    let got = output(&["get", "--addr", &second, "-r", "1", "dove"]);
    assert_eq!(got.stdout, b"grey", "it has all of it on its own");
    assert_eq!(node2.stop().0, Some(0));
    assert_eq!(refilled(&n2), 256);
}

/// The cluster and the address of a cluster of one node that runs.
fn running(parent: &tempfile::TempDir, name: &str) -> (Program, String) {
    let (dir, addr) = (inside(parent, name), free_addr());
    assert_eq!(said(&["init", "--dir", &dir, "--new-cluster", "--client-addr", &addr]).0, Some(0));
    (Program::serve(&dir, &[]), addr)
}

async fn dial(addr: &str, cluster: Option<ClusterId>) -> Result<Link, OpenError> {
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let deadline = Mono::from_origin(clock.mono() + Duration::from_secs(30));
    Link::open(&TcpNet, &clock, addr, &hello(Spoken::default(), cluster, None), deadline).await
}

#[test]
fn nodes_of_two_clusters_refuse_each_other() {
    let parent = tempfile::tempdir().unwrap();
    let (ours, theirs) = (free_addr(), free_addr());
    let peer = free_addr();
    // Both layouts name the same address as the second member's; the other cluster's node is there.
    let list = |first: &str| format!("1={first}/peer={},2={theirs}/peer={peer}", free_addr());
    let (n1, m2) = (inside(&parent, "n1"), inside(&parent, "m2"));
    let make = |dir: &str, id: &str, list: &str| {
        said(&["init", "--dir", dir, "--new-cluster", "--node-id", id, "--members", list])
    };
    assert_eq!(make(&n1, "1", &list(&ours)).0, Some(0));
    assert_eq!(make(&m2, "2", &list(&free_addr())).0, Some(0));
    // The other one first: a node dials as soon as it runs, and tells of a node that cannot be reached once.
    let other = Program::serve(&m2, &["--log", "ringdove=debug"]);
    let mut node = Program::serve(&n1, &[]);
    let (code, words) = said(&["put", "--addr", &ours, "-w", "2", "--timeout", "2s", "dove", "grey"]);
    assert_ne!(code, Some(0), "{words}");
    let line = node.wait_for("not reachable");
    assert!(line.contains("refuses the connection: this node belongs to cluster"), "{line}");
    let (_, words) = other.stop();
    assert!(words.contains("refused: this node belongs to cluster"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_means_another_cluster_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let (_a, a) = running(&parent, "a");
    let (_b, b) = running(&parent, "b");
    let cluster = dial(&a, None).await.unwrap().welcome().cluster;
    dial(&a, Some(cluster)).await.unwrap();
    match dial(&b, Some(cluster)).await.err() {
        Some(OpenError::Refused { refusal, .. }) => assert_eq!(refusal.code, RefusalCode::WrongCluster),
        other => panic!("{other:?}"),
    }
}

/// The other side may be of a build, or in a state, that does not look.
#[tokio::test(flavor = "multi_thread")]
async fn who_dials_refuses_a_node_that_turns_out_to_be_of_another_cluster() {
    let mut listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr();
    tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        let limits = ReadLimits { len_max: 1 << 16, within: Duration::from_secs(20), budget: None };
        let hello = FrameReader::new(stream.reader).next(&RealClock::new(), limits).await.unwrap();
        let Some(Incoming::Whole(hello, _)) = hello else { panic!("no greeting") };
        let head = FrameHead { version: hello.head.version, ..FrameHead::default() };
        let welcome = Welcome {
            version: hello.head.version,
            features: 0,
            auth: AuthMethod::None,
            cluster: ClusterId(2),
            node: NodeId(1),
            layout: LayoutRef::default(),
        };
        stream.writer.write_all(&welcome.to_frame(head).unwrap().encode()).await.unwrap();
        stream.writer.flush().await.unwrap();
    });
    let refused = dial(&addr, Some(ClusterId(1))).await.err();
    assert!(matches!(refused, Some(OpenError::OtherCluster { .. })));
}
