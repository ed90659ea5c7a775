//! What is kept for a node that does not answer goes to it when it does.

use serde_json::Value;

use crate::program::{Program, command, output, said};
use crate::support::{send_signal, until};

/// The node that does not answer for a while.
const AWAY: u64 = 5;

fn hints(addr: &str) -> Value {
    let told = output(&["hints", "--addr", addr, "--json"]);
    serde_json::from_slice(&told.stdout).expect("JSON, whether or not all nodes answer")
}

#[test]
fn what_was_kept_for_a_silent_node_goes_to_it_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let mut program = Program::start(command(&["cluster", "--nodes", "5", "--port", "0", "--dir", dir]));
    let nodes: Vec<(u32, String)> = (1..=5)
        .map(|id| {
            let line = program.wait_for(&format!("n{id}  pid "));
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[2].parse().unwrap(), words[4].to_owned())
        })
        .collect();
    program.wait_for("Ctrl-C");
    let addr = nodes[0].1.as_str();
    assert_eq!(said(&["hints", "--addr", addr]), (Some(0), "nothing is kept for others\n".to_owned()));

    let away = nodes[4].0;
    send_signal(away, "STOP");
    let keys: Vec<String> = (0..12).map(|n| format!("dove-{n}")).collect();
    for key in &keys {
        let put = said(&["put", "--addr", addr, "-w", "3", key, "grey"]);
        assert_eq!(put.0, Some(0), "three nodes hold it, whoever is away: {}", put.1);
    }
    let kept = hints(addr);
    let total = kept["total"].as_u64().unwrap();
    assert!(total > 0, "of twelve keys some are the silent node's: {kept}");
    let targets =
        || kept["nodes"].as_array().unwrap().iter().flat_map(|node| node["targets"].as_array()).flatten();
    for target in targets() {
        assert_eq!(target["target"], format!("n{AWAY}"), "{kept}");
        assert!(target["bytes"].as_u64() > target["count"].as_u64(), "{kept}");
    }
    let (code, words) = said(&["hints", "--addr", addr]);
    assert!(words.contains(&format!("{total} records in all")) || words.contains("WHY"), "{words}");
    assert_ne!(code, Some(0), "one node did not answer, and that is told");

    until("the silent node is taken for down", || {
        let status = output(&["status", "--addr", addr, "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let peers = status["nodes"][0]["peers"].as_array().expect("what n1 takes the others for");
        let of =
            |id: u64| peers.iter().find(|peer| peer["node"] == format!("n{id}")).map(|peer| &peer["state"]);
        of(AWAY).is_some_and(|state| state != "up") && of(2).is_some_and(|state| state == "up")
    });
    send_signal(away, "CONT");
    until("all of it is handed over", || hints(addr)["total"] == 0);
    for key in &keys {
        let got = output(&["get", "--addr", &nodes[4].1, "-r", "3", "--strict", key]);
        assert_eq!(got.stdout, b"grey", "{key}");
    }
    assert_eq!(program.stop().0, Some(0));
}
