//! Looking into a cluster: why a key is as it is, which partitions differ, and repairing them.

use std::path::Path;

use serde_json::Value;

use crate::program::{output, said};
use crate::support::{Cluster, NodeProcess, send_signal, until};

fn words_of(addr: &str, key: &str) -> (Option<i32>, Vec<String>) {
    let told = output(&["explain", "--addr", addr, "--json", key]);
    let json: Value = serde_json::from_slice(&told.stdout).expect("JSON, whether or not all nodes answer");
    let words = json["words"].as_array().expect("words").iter();
    (told.status.code(), words.map(|words| words.as_str().expect("text").to_owned()).collect())
}

fn start(dir: &Path) -> (Cluster, Vec<NodeProcess>) {
    let cluster = Cluster::start(dir);
    let nodes = cluster.nodes.clone();
    (cluster, nodes)
}

#[test]
fn an_explanation_says_who_is_down_and_what_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, nodes) = start(dir.path());
    let (addr, away) = (nodes[0].client_addr.as_str(), &nodes[2]);
    assert_eq!(said(&["put", "--addr", addr, "-w", "3", "dove", "grey"]).0, Some(0));
    let (code, words) = words_of(addr, "dove");
    assert_eq!(code, Some(0), "{words:?}");
    assert!(words[0].starts_with("the key has one value, written by n"), "{words:?}");
    assert_eq!(words[1..], ["all 3 replicas agree"], "{words:?}");

    until("each node's view of the others is shown", || {
        let (code, text) = said(&["status", "--addr", addr]);
        let rows = text.lines().filter(|line| line.matches("up, ").count() == 2 && line.contains(" -"));
        code == Some(0) && text.contains("suspicion (phi)") && rows.count() == 3
    });

    send_signal(away.pid, "STOP");
    assert_eq!(said(&["put", "--addr", addr, "-w", "2", "dove", "white"]).0, Some(0));
    let seen = |words: &[String], parts: [&str; 3]| {
        words.iter().any(|words| parts.iter().all(|part| words.contains(part)))
    };
    until("who is down is said", || {
        let (code, words) = words_of(addr, "dove");
        // Silent first; once its connection has ended, a new one is not taken either.
        let why = ["n3 is down, last heard", "n3 cannot be connected to, last heard"];
        let said = |why| seen(&words, [why, "noted that it lacks", "when it is back"]);
        code == Some(9) && why.into_iter().any(said)
    });
    let (code, text) = said(&["explain", "--addr", addr, "dove"]);
    assert_eq!(code, Some(9), "{text}");
    for part in [
        "* n3 ",
        "last heard",
        "the 2 of 3 replicas that could be read agree",
        "no answer",
        "n3 lacks it",
        "has seen",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let (code, text) = said(&["tree", "--addr", addr]);
    assert_eq!(code, Some(9), "{text}");
    assert!(text.contains("256 partitions: all not known"), "{text}");

    send_signal(away.pid, "CONT");
    until("it has what was kept for it", || {
        let (code, words) = words_of(addr, "dove");
        code == Some(0) && words.len() == 2 && words[1] == "all 3 replicas agree"
    });
    until("all trees are equal", || {
        said(&["tree", "--addr", addr])
            == (Some(0), "256 partitions: all equal on all their primaries\n".to_owned())
    });
    assert_eq!(cluster.stop("TERM"), Some(0));
}

#[test]
fn a_repair_compares_all_partitions_and_says_with_whom_it_could_not() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, nodes) = start(dir.path());
    let addr = nodes[0].client_addr.as_str();
    assert_eq!(said(&["put", "--addr", addr, "-w", "3", "dove", "grey"]).0, Some(0));
    let (code, text) = said(&["repair", "--addr", addr]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("256 partitions compared in ") && text.contains("no key differed"), "{text}");
    assert_eq!(said(&["repair", "--addr", addr, "256"]).0, Some(2));
    let (code, text) = said(&["tree", "--addr", addr, "7"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("yes")).count(), 3, "three primaries: {text}");

    cluster.stop_node(&nodes[2]);
    let told = output(&["repair", "--addr", addr, "--json", "7"]);
    assert_eq!(told.status.code(), Some(9));
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!((&told["not_compared"], &told["failures"][0]["node"]), (&1.into(), &"n3".into()), "{told}");
    assert_eq!(cluster.stop("TERM"), Some(0));
}

#[test]
fn an_explanation_tells_siblings_apart_by_who_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, nodes) = start(dir.path());
    let addr = nodes[0].client_addr.as_str();
    assert_eq!(said(&["put", "--addr", addr, "-w", "3", "dove", "grey"]).0, Some(0));
    assert_eq!(said(&["put", "--addr", addr, "-w", "3", "--new-sibling", "dove", "white"]).0, Some(0));
    let (_, words) = words_of(addr, "dove");
    assert!(words[0].contains("2 values") && words[1].contains("both through one node"), "{words:?}");
    assert_eq!(said(&["delete", "--addr", addr, "-w", "3", "dove"]).0, Some(0));
    let (_, words) = words_of(addr, "dove");
    assert!(words[0].contains("the key is deleted, by n"), "{words:?}");
    let (_, words) = words_of(addr, "wren");
    assert!(words[0].contains("it was never written"), "{words:?}");
    assert_eq!(cluster.stop("TERM"), Some(0));
}
