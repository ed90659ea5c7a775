//! Members come and go while clients write: nothing is lost, and who goes ends up with nothing.

use serde_json::Value;

use crate::program::{Program, command, free_addr, output, said};
use crate::support::until;

fn json(args: &[&str]) -> Value {
    serde_json::from_slice(&output(args).stdout).expect("JSON")
}

/// The versions of the layouts that are active at the node, and who is a member.
fn layout(addr: &str) -> (usize, Vec<String>) {
    let told = json(&["layout", "--addr", addr, "--json"]);
    let members = told["members"].as_array().unwrap().iter();
    let names = members.map(|member| member["node"].as_str().unwrap().to_owned()).collect();
    (told["active"].as_array().unwrap().len(), names)
}

fn status_of(node: &str, addr: &str) -> Value {
    let told = json(&["status", "--addr", addr, "--json"]);
    let nodes = told["nodes"].as_array().unwrap();
    nodes.iter().find(|told| told["node"] == node).unwrap_or_else(|| panic!("{told}")).clone()
}

#[test]
fn a_member_comes_another_goes_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let inside = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let settings = inside("settings.toml");
    std::fs::write(&settings, "anti_entropy_interval = \"2s\"\ngossip_interval = \"200ms\"\n").unwrap();
    let mut program = Program::start(command(&[
        "cluster",
        "--port",
        "0",
        "--dir",
        &inside("three"),
        "--config",
        &settings,
    ]));
    let addrs: Vec<String> = (1..=3)
        .map(|id| {
            let line = program.wait_for(&format!("n{id}  pid "));
            line.split_whitespace().nth(4).unwrap().to_owned()
        })
        .collect();
    program.wait_for("Ctrl-C");
    let at = addrs[0].as_str();
    let mut written = 0;
    let mut write = |many: usize| {
        for n in written..written + many {
            let (code, words) =
                said(&["put", "--addr", at, "-w", "2", &format!("dove-{n}"), &format!("coo {n}")]);
            assert_eq!(code, Some(0), "{words}");
        }
        written += many;
        written
    };
    let all_there = |many: usize| {
        for n in 0..many {
            let got = output(&["get", "--addr", at, "-r", "3", "--strict", &format!("dove-{n}")]);
            assert_eq!(got.stdout, format!("coo {n}").as_bytes(), "dove-{n}: {got:?}");
        }
    };
    write(20);

    // Shown first, and wrong things refused: nothing changes.
    let (client, peer) = (free_addr(), free_addr());
    let fourth = format!("4={client}/peer={peer}");
    let (code, words) = said(&["layout", "add", "--addr", at, &fourth]);
    assert!(code == Some(0) && words.contains("would follow") && words.contains("--yes"), "{words}");
    let (code, words) = said(&["layout", "add", "--addr", at, "--yes", &format!("3={client}")]);
    assert!(code != Some(0) && words.contains("listed twice"), "{words}");
    let (code, words) = said(&["layout", "remove", "--addr", at, "--yes", "9"]);
    assert!(code != Some(0) && words.contains("n9 is not a member"), "{words}");
    let (code, words) = said(&["layout", "remove", "--addr", at, "--yes", "2"]);
    assert!(code != Some(0) && words.contains("N is 3"), "{words}");
    assert_eq!(layout(at).1, ["n1", "n2", "n3"]);

    let (code, words) = said(&["layout", "add", "--addr", at, "--yes", &fourth]);
    assert!(code == Some(0) && words.contains("--join"), "{words}");
    let d4 = inside("n4");
    let (code, words) = said(&["init", "--dir", &d4, "--join", at, "--node-id", "4"]);
    assert_eq!(code, Some(0), "{words}");
    let n4 = Program::serve(&d4, &["--config", &settings]);
    let many = write(20);
    until("all has moved to the fourth node", || layout(at).0 == 1 && layout(&client).0 == 1);
    let status = status_of("n4", at);
    assert_eq!(status["partitions"], status["partitions_refilled"]);
    assert!(status["data_keys"].as_u64() > Some(0), "{status}");
    all_there(many);

    // One goes: it gives away what it has.
    let told = json(&["layout", "--addr", at, "--json"]);
    let n2 = told["members"].as_array().unwrap().iter().find(|member| member["node"] == "n2").unwrap();
    let peer = n2["peer_addr"].as_str().unwrap().to_owned();
    let (code, words) = said(&["layout", "remove", "--addr", at, "--yes", "n2"]);
    assert!(code == Some(0) && words.contains("let n2 run"), "{words}");
    let many = write(20);
    until("the second node has given away all that it had", || {
        layout(at).0 == 1 && status_of("n2", &addrs[1])["data_keys"] == 0
    });
    assert_eq!(layout(at).1, ["n1", "n3", "n4"]);
    let (_, words) = said(&["status", "--addr", &addrs[1]]);
    assert!(words.contains("removed"), "{words}");
    all_there(many);

    // And comes back.
    let (code, words) =
        said(&["layout", "add", "--addr", at, "--yes", &format!("2={}/peer={peer}", addrs[1])]);
    assert_eq!(code, Some(0), "{words}");
    let many = write(20);
    until("all has moved", || layout(at).0 == 1 && status_of("n2", at)["data_keys"].as_u64() > Some(0));
    all_there(many);
    assert_eq!(n4.stop().0, Some(0));
    assert_eq!(program.stop().0, Some(0));
}
