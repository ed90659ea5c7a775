//! `ringdove cluster` on data directories that are not all there.

use std::path::Path;

use ringdove::io::RealDisk;
use ringdove::storage::directory;
use ringdove::types::ClusterId;

use crate::program::{Program, command, free_addr, output, said};
use crate::support::until;

const KEYS: usize = 100;

/// `ringdove cluster` on this directory, when it is ready.
fn cluster(dir: &str) -> Program {
    let mut program = Program::start(command(&["cluster", "--port", "0", "--dir", dir]));
    program.wait_for("Ctrl-C");
    program
}

/// The client address of a node that was announced.
fn addr(program: &mut Program, node: &str) -> String {
    program.told(&format!("{node}  pid ")).split_whitespace().nth(4).unwrap().to_owned()
}

/// To which cluster the directory belongs.
fn cluster_of(dir: &Path) -> ClusterId {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let meta = runtime.block_on(async { directory::read(&RealDisk::new().unwrap(), dir).await.unwrap() });
    meta.expect("a data directory").descriptor.cluster
}

/// The command that a line names, without the program.
fn told_command(line: &str) -> Vec<String> {
    let command =
        line.split_once("ringdove ").and_then(|(_, rest)| rest.split('`').next()).expect("a command");
    command.split_whitespace().map(str::to_owned).collect()
}

fn all_there(addr: &str, r: &str) {
    for n in 0..KEYS {
        let got = output(&["get", "--addr", addr, "-r", r, "--strict", &format!("dove-{n}")]);
        assert_eq!(got.stdout, format!("coo {n}").as_bytes(), "dove-{n}: {got:?}");
    }
}

#[test]
fn a_lost_directory_is_named_and_the_cluster_is_never_founded_anew() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let dir = data.to_str().unwrap();
    let mut first = cluster(dir);
    let (n1, n3) = (addr(&mut first, "n1"), first.told("n3  pid "));
    crate::support::send_signal(n3.split_whitespace().nth(2).unwrap().parse().unwrap(), "TERM");
    first.told("n3 was told to stop");
    for n in 0..KEYS {
        let put = || said(&["put", "--addr", &n1, "-w", "2", &format!("dove-{n}"), &format!("coo {n}")]);
        // The first may find out that a node is gone, and not know what became of it.
        let (code, words) = put();
        assert!(code == Some(0) || put().0 == Some(0), "{words}");
    }
    assert_eq!(first.stop().0, Some(0));
    let before = cluster_of(&data.join("n2"));
    std::fs::rename(data.join("n1"), parent.path().join("lost")).unwrap();

    let mut second = cluster(dir);
    assert!(!data.join("n1").exists(), "nobody makes it without being told to");
    assert_eq!([cluster_of(&data.join("n2")), cluster_of(&data.join("n3"))], [before; 2]);
    let line = second.told("--replace");
    assert!(line.contains("n1") && line.contains(data.join("n1").to_str().unwrap()), "{line}");
    let n2 = addr(&mut second, "n2");
    let command = told_command(&line);
    let (code, words) = said(&command.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{command:?}: {words}");
    assert_eq!(second.stop().0, Some(0));

    let mut third = cluster(dir);
    assert_eq!(addr(&mut third, "n2"), n2);
    assert_eq!(cluster_of(&data.join("n1")), before);
    let n1 = addr(&mut third, "n1");
    // As soon as it has got its copies it counts again; nothing that was acknowledged is missing then.
    until("n1 has refilled", || {
        said(&["get", "--addr", &n1, "-r", "3", "--strict", "--timeout", "2s", "dove-0"]).0 == Some(0)
    });
    all_there(&n1, "2");
    assert_eq!(third.stop().0, Some(0));
}

#[test]
fn a_member_without_a_directory_keeps_nobody_down() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data").to_str().unwrap().to_owned();
    let mut first = cluster(&dir);
    let n1 = addr(&mut first, "n1");
    let fourth = format!("4={}/peer={}", free_addr(), free_addr());
    let (code, words) = said(&["layout", "add", "--addr", &n1, "--yes", &fourth]);
    assert_eq!(code, Some(0), "{words}");
    assert_eq!(first.stop().0, Some(0));

    let mut second = cluster(&dir);
    let line = second.told("--join");
    assert!(line.contains("n4") && line.contains(&n1), "{line}");
    let command = told_command(&line);
    let (code, words) = said(&command.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{command:?}: {words}");
    assert_eq!(second.stop().0, Some(0));
    let mut third = cluster(&dir);
    addr(&mut third, "n4");
    assert_eq!(third.stop().0, Some(0));
}

#[test]
fn a_node_that_cannot_start_keeps_nobody_down() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data").to_str().unwrap().to_owned();
    assert_eq!(cluster(&dir).stop().0, Some(0));
    // Another process has the second node's directory.
    let (client, peer) = (free_addr(), free_addr());
    let n2 = format!("{dir}/n2");
    let other = Program::serve(&n2, &["--listen-client", &client, "--listen-peer", &peer]);
    let mut second = cluster(&dir);
    let n1 = addr(&mut second, "n1");
    assert!(!second.has_told("n2  pid"));
    second.told("n2 has ended");
    // It is tried again, and not for ever.
    assert_eq!(other.stop().0, Some(0));
    assert_eq!(said(&["put", "--addr", &n1, "-w", "2", "dove", "grey"]).0, Some(0));
    second.told("n2 is back");
    assert_eq!(second.stop().0, Some(0));
}

#[test]
fn a_founding_that_was_cut_short_is_ended_and_not_begun_again() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let dir = data.to_str().unwrap();
    assert_eq!(cluster(dir).stop().0, Some(0));
    // As a crash would leave it between the second directory and the first.
    std::fs::remove_dir_all(data.join("n1")).unwrap();
    std::fs::write(data.join("founding"), "").unwrap();
    let before = cluster_of(&data.join("n2"));
    let mut second = cluster(dir);
    assert_eq!(cluster_of(&data.join("n1")), before);
    addr(&mut second, "n1");
    assert!(!data.join("founding").exists());
    assert_eq!(second.stop().0, Some(0));
}

#[test]
fn what_a_cluster_was_not_made_with_is_refused_and_not_passed_over() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data").to_str().unwrap().to_owned();
    assert_eq!(cluster(&dir).stop().0, Some(0));
    for (flag, value) in [("--nodes", "4"), ("--replicas", "2"), ("--partitions", "64"), ("--port", "7001")] {
        let (code, words) = said(&["cluster", "--dir", &dir, flag, value]);
        assert!(code == Some(1) && words.contains(flag), "{flag} {value}: {code:?} {words}");
    }
    let new = parent.path().join("new").to_str().unwrap().to_owned();
    let (code, words) = said(&["cluster", "--dir", &new, "--port", "0", "--nodes", "2", "--replicas", "3"]);
    assert!(code == Some(1) && words.contains("N is 3"), "{code:?} {words}");
    assert!(!Path::new(&new).exists());
}
