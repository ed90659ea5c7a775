//! One id follows a request through the logs of all nodes that it reaches.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::program::{Program, free_addr, said};
use crate::support::until;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

struct Two {
    nodes: [Program; 2],
    pid: u32,
    rest: String,
    _dir: tempfile::TempDir,
}

/// Two nodes, each of which holds every key, the second's process id, and the first's REST address.
fn two_nodes(log: &str) -> Two {
    let dir = tempfile::tempdir().unwrap();
    let inside = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (n1, n2, first, rest) = (inside("n1"), inside("n2"), free_addr(), free_addr());
    let members = format!("1={first}/peer={},2={}/peer={}", free_addr(), free_addr(), free_addr());
    let (code, words) =
        said(&["init", "--dir", &n1, "--new-cluster", "--members", &members, "--replicas", "2"]);
    assert_eq!(code, Some(0), "{words}");
    let one = Program::serve(&n1, &["--log", log, "--listen-rest", &rest]);
    let (code, words) = said(&["init", "--dir", &n2, "--join", &first, "--node-id", "2"]);
    assert_eq!(code, Some(0), "{words}");
    let two = Program::serve(&n2, &["--log", log]);
    let pid = two.pid();
    // The first may have dialled the second just before that listened.
    until("each answers", || said(&["get", "--addr", &first, "-r", "2", "nobody"]).0 == Some(3));
    Two { nodes: [one, two], pid, rest, _dir: dir }
}

/// The status of a PUT.
fn put(rest: &str, query: &str, header: &str) -> u16 {
    let mut stream = TcpStream::connect(rest).unwrap();
    let head = format!(
        "PUT /kv/dove?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}Content-Length: 4\r\n\r\ngrey"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_id_of_a_client_stands_in_the_logs_of_two_nodes() {
    let Two { nodes: [mut one, mut two], rest, .. } = two_nodes("ringdove=debug");
    let header = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n");
    assert_eq!(put(&rest, "w=2", &header), 204);
    let line = one.told(TRACE);
    assert!(line.contains("request") && line.contains("operation=\"put\""), "{line}");
    let line = two.told(TRACE);
    assert!(line.contains("peer") && line.contains("Store"), "{line}");
}

#[test]
fn a_request_without_an_id_is_given_one() {
    let Two { nodes: [mut one, mut two], rest, .. } = two_nodes("ringdove=debug");
    assert_eq!(put(&rest, "w=2", ""), 204);
    let line = one.told("operation=\"put\"");
    let id = line.split("trace=").nth(1).unwrap().split(|c: char| !c.is_ascii_hexdigit()).next().unwrap();
    assert!(id.len() == 32 && id != "0".repeat(32), "{line}");
    two.told(id);
}

#[test]
fn a_write_of_unknown_outcome_is_warned_of_with_its_id() {
    let Two { nodes: [mut one, two], pid, rest, .. } = two_nodes("ringdove=warn");
    // Now they know each other, and nobody is missed before the write has begun.
    assert_eq!(put(&rest, "w=2", ""), 204);
    crate::support::send_signal(pid, "STOP");
    let header = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n");
    let status = put(&rest, "w=2&timeout=500ms", &header);
    crate::support::send_signal(pid, "CONT");
    assert_eq!(status, 504);
    let line = one.told(TRACE);
    assert!(line.contains("WARN") && line.contains("unknown"), "{line}");
    drop(two);
}
