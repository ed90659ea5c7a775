//! Two processes under one node id: a data directory that was copied and is served beside the original.

use std::path::Path;

use crate::program::{Program, command, free_addr, said};

const GOSSIP: (&str, &str) = ("RINGDOVE_GOSSIP_INTERVAL", "100ms");

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// `ringdove cluster` on this directory, when it is ready, and the client address of its first node.
fn cluster(dir: &Path) -> (Program, String) {
    let mut start = command(&["cluster", "--port", "0", "--dir", &text(dir)]);
    start.env(GOSSIP.0, GOSSIP.1);
    let mut program = Program::start(start);
    let line = program.wait_for("n1  pid ");
    let addr = line.split_whitespace().nth(4).unwrap().to_owned();
    program.wait_for("Ctrl-C");
    (program, addr)
}

/// `ringdove serve` on this directory, at addresses of its own; its client address.
fn serve(dir: &Path) -> (Program, String) {
    let (client, peer) = (free_addr(), free_addr());
    let mut start =
        command(&["serve", "--dir", &text(dir), "--listen-client", &client, "--listen-peer", &peer]);
    start.env(GOSSIP.0, GOSSIP.1);
    let mut program = Program::start(start);
    program.wait_for("ready");
    (program, client)
}

/// What a process says that stops for a higher double.
fn ends_as_double(mut process: Program, dir: &Path) {
    process.wait_for("another process runs as n1");
    let (code, words) = process.end();
    assert_eq!(code, Some(10), "{words}");
    for told in ["another process runs as n1", "kept in", "stop the other", &text(dir)] {
        assert!(words.contains(told), "{told:?} is missing:\n{words}");
    }
}

#[test]
fn a_copy_beside_the_original_stops_by_itself_and_the_original_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let (data, copy) = (parent.path().join("cluster"), parent.path().join("copy"));
    let (first, addr) = cluster(&data);
    assert_eq!(said(&["put", "--addr", &addr, "-w", "3", "dove", "grey"]).0, Some(0));
    assert_eq!(first.stop().0, Some(0));
    copy_dir(&data.join("n1"), &copy);
    // One start ahead of the copy. Of two that have started as often and at the same moment either may be the higher.
    assert_eq!(cluster(&data).0.stop().0, Some(0));
    let (original, addr) = cluster(&data);
    ends_as_double(serve(&copy).0, &copy);
    // As many starts, and more, are lower still: the original has answered.
    for _ in 0..3 {
        ends_as_double(serve(&copy).0, &copy);
    }
    assert_eq!(said(&["put", "--addr", &addr, "-w", "3", "dove", "white"]), (Some(0), String::new()));
    let (code, words) = original.stop();
    assert_eq!(code, Some(0));
    assert!(!words.contains("stays down") && !words.contains("has ended"), "{words}");
}

#[test]
fn a_node_that_is_the_lower_of_two_is_not_started_again_by_the_cluster_command() {
    let parent = tempfile::tempdir().unwrap();
    let (data, copy) = (parent.path().join("cluster"), parent.path().join("copy"));
    assert_eq!(cluster(&data).0.stop().0, Some(0));
    copy_dir(&data.join("n1"), &copy);
    // Alone it hears of nobody, and has more starts behind it then.
    for _ in 0..3 {
        assert_eq!(serve(&copy).0.stop().0, Some(0));
    }
    let (mut original, addr) = cluster(&data);
    assert_eq!(said(&["put", "--addr", &addr, "-w", "3", "dove", "grey"]).0, Some(0));
    let (copy, copy_addr) = serve(&copy);
    let line = original.wait_for("n1 stays down");
    assert!(line.contains("another process runs as n1") && line.contains("keep one of the two"), "{line}");
    assert_eq!(said(&["status", "--addr", &copy_addr]).0, Some(9), "n1 is gone from its own address");
    assert_eq!(
        said(&["put", "--addr", &copy_addr, "-w", "2", "dove", "white"]).0,
        Some(0),
        "the copy goes on"
    );
    let (code, words) = original.stop();
    assert_eq!(code, Some(0));
    assert!(!words.contains("n1 has ended") && !words.contains("n1 is back"), "{words}");
    assert_eq!(copy.stop().0, Some(0));
}
