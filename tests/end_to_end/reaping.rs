//! What was deleted is forgotten by all nodes once they agree, and not before.

use std::time::Duration;

use serde_json::Value;

use crate::program::{Program, command, output, said};
use crate::support::{send_signal, until};

fn json(args: &[&str]) -> Value {
    serde_json::from_slice(&output(args).stdout).expect("JSON, whether or not all nodes answer")
}

#[test]
fn a_key_that_was_deleted_costs_nothing_once_every_member_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings.toml");
    std::fs::write(
        &settings,
        "reap_interval = \"200ms\"\nreap_grace = \"1ms\"\nanti_entropy_interval = \"2s\"\n",
    )
    .unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let mut program = Program::start(command(&[
        "cluster",
        "--nodes",
        "4",
        "--port",
        "0",
        "--dir",
        data,
        "--config",
        settings.to_str().unwrap(),
    ]));
    let nodes: Vec<(u32, String)> = (1..=4)
        .map(|id| {
            let line = program.wait_for(&format!("n{id}  pid "));
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[2].parse().unwrap(), words[4].to_owned())
        })
        .collect();
    program.wait_for("Ctrl-C");
    let addr = nodes[0].1.as_str();
    let keys_held = || -> u64 {
        let status = json(&["status", "--addr", addr, "--json"]);
        status["nodes"].as_array().unwrap().iter().filter_map(|node| node["data_keys"].as_u64()).sum()
    };
    let (code, words) = said(&["reap", "--addr", addr]);
    assert_eq!(code, Some(0));
    assert!(words.contains("no round yet"), "{words}");

    // One member does not vote: nothing goes, however long ago it was deleted.
    let silent = &nodes[3];
    for n in 0..12 {
        let key = format!("dove-{n}");
        assert_eq!(said(&["put", "--addr", addr, "-w", "3", &key, "grey"]).0, Some(0));
    }
    send_signal(silent.0, "STOP");
    for n in 0..12 {
        assert_eq!(said(&["delete", "--addr", addr, &format!("dove-{n}")]).0, Some(0));
    }
    until("the silent node is taken for down", || {
        let told = json(&["reap", "--addr", addr, "--json"]);
        told["nodes"][0]["away"].as_array().is_some_and(|away| away == &["n4"])
    });
    std::thread::sleep(Duration::from_secs(1));
    let told = json(&["reap", "--addr", addr, "--json"]);
    let agreed: u64 =
        told["nodes"].as_array().unwrap().iter().filter_map(|node| node["agreed"].as_u64()).sum();
    assert_eq!(agreed, 0, "{told}");
    let (code, words) = said(&["reap", "--addr", addr]);
    assert!(code != Some(0) && words.contains("WAITS FOR") && words.contains("n4"), "{words}");
    send_signal(silent.0, "CONT");

    until("all members agree, and nothing is held any more", || keys_held() == 0);
    for (_, addr) in &nodes {
        let got = said(&["get", "--addr", addr, "-r", "3", "dove-3"]);
        assert_ne!(got.0, Some(0), "it is gone: {}", got.1);
    }
    let (code, words) = said(&["reap", "--addr", addr]);
    assert!(code == Some(0) && words.contains("LED BY") && words.contains("nobody"), "{words}");
    // And is a key like any other from then on.
    assert_eq!(said(&["put", "--addr", addr, "dove-3", "white"]).0, Some(0));
    assert_eq!(output(&["get", "--addr", &nodes[2].1, "-r", "3", "dove-3"]).stdout, b"white");
    assert_eq!(program.stop().0, Some(0));
}
