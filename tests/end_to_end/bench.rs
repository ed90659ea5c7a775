//! `ringdove bench` once through, against a cluster that serves and one that does not.

use serde_json::Value;

use crate::program::{free_addr, output, said};
use crate::support::Cluster;

#[test]
fn a_bench_measures_every_operation_and_says_so_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let node = &cluster.nodes[0];
    let bench = |more: &[&str]| {
        let common =
            ["bench", "mixed", "--addr", &node.client_addr, "--keys", "200", "--clients", "8", "--json"];
        output(&[&common, more].concat())
    };
    let pid = node.pid.to_string();
    let done = bench(&["--warm-up", "100ms", "--duration", "700ms", "--pids", &pid]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let told: Value = serde_json::from_slice(&done.stdout).expect("one JSON object");
    let count = |operation: &str| told["latency_us"][operation]["count"].as_u64().unwrap();
    assert!(count("get") > 0 && count("put") > 0, "{told}");
    assert_eq!(told["operations"].as_u64(), Some(count("get") + count("put")), "{told}");
    assert_eq!((&told["failed"], &told["loop"]), (&0.into(), &"closed".into()), "{told}");
    let outcomes: u64 = told["outcomes"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(Some(outcomes), told["operations"].as_u64());
    assert!(told["processes"][1]["rss_bytes"].as_u64() > Some(0), "{told}");

    let open = bench(&["--rate", "200", "--warm-up", "0s", "--duration", "500ms", "--no-load"]);
    let told: Value = serde_json::from_slice(&open.stdout).expect("one JSON object");
    assert_eq!((open.status.code(), &told["operations"]), (Some(0), &100.into()), "{told}");
}

#[test]
fn failed_operations_have_their_times_in_the_percentiles_and_the_exit_code_tells() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    for node in &cluster.nodes[1..] {
        cluster.stop_node(node);
    }
    let node = &cluster.nodes[0].client_addr;
    let (code, words) = said(&[
        "bench",
        "put",
        "--addr",
        node,
        "--keys",
        "50",
        "--clients",
        "4",
        "--warm-up",
        "0s",
        "--duration",
        "500ms",
        "--timeout",
        "200ms",
        "-w",
        "2",
        "--json",
    ]);
    let told: Value = serde_json::from_str(words.lines().last().unwrap()).expect("one JSON object");
    assert_eq!((code, &told["operations"]), (Some(1), &0.into()), "{told}");
    let failed = told["failed"].as_u64().unwrap();
    assert!(failed > 0 && told["latency_us"]["put"]["count"].as_u64() == Some(failed), "{told}");
    let classes = told["latency_us"]["put"]["by_outcome"].as_object().unwrap();
    let counted: u64 = classes.values().map(|class| class["count"].as_u64().unwrap()).sum();
    assert_eq!(counted, failed, "{told}");
    let absent = free_addr();
    assert_eq!(said(&["bench", "put", "--addr", &absent, "--timeout", "300ms"]).0, Some(5));
}
