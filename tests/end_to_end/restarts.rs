//! Nodes that end by themselves: killed processes under `ringdove cluster`, and disks that take no more writes.

use std::process::Command;

use crate::program::{Program, command, free_addr, output, said};
use crate::support::send_signal;

/// `ringdove cluster`, with what it says.
struct Cluster {
    program: Program,
    /// Process id and client address of each node.
    nodes: Vec<(u32, String)>,
    _dir: tempfile::TempDir,
}

fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let mut program =
        Program::start(command(&["cluster", "--port", "0", "--dir", dir.path().to_str().unwrap()]));
    let nodes = (1..=3).map(|id| {
        let line = program.wait_for(&format!("n{id}  pid "));
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[2].parse().unwrap(), words[4].to_owned())
    });
    let nodes = nodes.collect();
    program.wait_for("Ctrl-C");
    Cluster { program, nodes, _dir: dir }
}

#[test]
fn a_killed_node_comes_back_with_all_that_it_acknowledged() {
    let mut cluster = cluster();
    let addr = cluster.nodes[1].1.clone();
    assert_eq!(said(&["put", "--addr", &addr, "-w", "3", "dove", "grey"]), (Some(0), String::new()));
    send_signal(cluster.nodes[1].0, "KILL");
    let line = cluster.program.wait_for("n2 has ended");
    assert!(line.contains("SIGKILL") && line.contains("starts again in 1 s"), "{line}");
    cluster.program.wait_for("n2 is back: pid");
    assert_eq!(output(&["get", "--addr", &addr, "-r", "1", "dove"]).stdout, b"grey");
    let (code, words) = cluster.program.stop();
    assert_eq!(code, Some(0), "{words}");
}

#[test]
fn a_node_that_ends_three_times_stays_down_and_the_others_go_on() {
    let mut cluster = cluster();
    let mut pid = cluster.nodes[2].0;
    for _ in 0..2 {
        send_signal(pid, "KILL");
        let line = cluster.program.wait_for("n3 is back: pid");
        pid = line.rsplit(' ').next().unwrap().parse().unwrap();
    }
    send_signal(pid, "KILL");
    let line = cluster.program.wait_for("stays down");
    assert!(line.contains("3 times within 10 minutes") && line.contains("the others go on"), "{line}");
    let addr = cluster.nodes[0].1.as_str();
    // The first write may be the one that finds out; then it is unknown, and the next one goes past it.
    let put = || said(&["put", "--addr", addr, "-w", "2", "dove", "grey"]);
    assert!(put().0 == Some(0) || put().0 == Some(0));
    assert_eq!(cluster.program.stop().0, Some(0));
}

#[test]
fn a_node_that_somebody_stops_is_left_alone_and_without_nodes_the_command_ends() {
    let mut cluster = cluster();
    for (at, (pid, _)) in cluster.nodes.iter().enumerate() {
        send_signal(*pid, "TERM");
        cluster.program.wait_for(&format!("n{} was told to stop", at + 1));
    }
    let (code, words) = cluster.program.end();
    assert_eq!(code, Some(1));
    assert!(words.contains("no node is left") && !words.contains("is back"), "{words}");
}

/// A file of this node can grow to some megabytes; a write beyond that fails as on a broken disk, and latches the
/// store. Every start begins a new file.
#[test]
fn a_node_whose_disk_refuses_writes_is_opened_again_and_after_three_times_stays_down() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("n1").to_str().unwrap().to_owned();
    let addr = free_addr();
    assert_eq!(said(&["init", "--dir", &dir, "--new-cluster", "--client-addr", &addr]).0, Some(0));
    let mut limited = Command::new("sh");
    let serve = command(&["serve", "--dir", &dir]);
    // An ignored signal stays ignored in what is executed: the write then fails instead of ending the process.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "sh"]);
    limited.arg(serve.get_program()).args(serve.get_args());
    let mut node = Program::start(limited);
    node.wait_for("ready");

    let value = "v".repeat(100_000);
    let mut acknowledged: Vec<String> = Vec::new();
    for life in 1..=3 {
        for at in 0.. {
            let key = format!("life {life}, key {at}");
            let (code, words) = said(&["put", "--addr", &addr, &key, &value]);
            match code {
                Some(0) => acknowledged.push(key),
                // Unknown, or refused because the store is closed to writes: never "done".
                Some(1 | 6) => break,
                other => panic!("{other:?}: {words}"),
            }
            assert!(at < 1000, "the limit of the file is never felt");
        }
        if life < 3 {
            node.wait_for("it starts again after a pause");
            node.wait_for("ready");
            for key in &acknowledged {
                assert!(output(&["get", "--addr", &addr, key]).stdout == value.as_bytes(), "{key} is lost");
            }
        }
    }
    assert!(acknowledged.len() > 3);
    let (code, words) = node.end();
    assert_eq!(code, Some(1));
    assert!(words.contains("3 times within 10 minutes and stays down"), "{words}");

    let _node = Program::serve(&dir, &[]);
    for key in &acknowledged {
        assert!(output(&["get", "--addr", &addr, key]).stdout == value.as_bytes(), "{key} is lost");
    }
}
