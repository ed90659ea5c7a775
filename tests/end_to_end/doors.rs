//! The doors of a real cluster: REST, the command line, the binary port; what they answer to good and to bad
//! input.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::Cluster;

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn context(&self) -> &str {
        self.header("ringdove-context").expect("a context")
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// One HTTP/1.1 request on a connection of its own.
fn http(addr: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses a body by its length may close before it has read all of it.
    let _ = stream.write_all(body);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: bytes[end + 4..].to_vec() }
}

fn ringdove(cluster: &Cluster, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringdove"))
        .args(args)
        .env("RINGDOVE_ADDR", &cluster.nodes[0].client_addr)
        .output()
        .unwrap()
}

#[test]
fn rest_keeps_siblings_until_a_write_with_their_context_replaces_them() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let rest: Vec<&str> = cluster.nodes.iter().map(|node| node.rest_addr.as_str()).collect();

    let missing = http(rest[0], "GET", "/kv/dove", &[], b"");
    assert_eq!(missing.status, 404);
    assert!(!missing.context().is_empty(), "also a key that is not there has a context");

    let put = http(rest[0], "PUT", "/kv/dove", &[("content-type", "text/plain")], b"grey");
    assert_eq!(put.status, 204);
    let read = http(rest[1], "GET", "/kv/dove?r=3", &[], b"");
    assert_eq!((read.status, read.text().as_str()), (200, "grey"));
    assert_eq!(read.header("content-type"), Some("text/plain"));

    // Two writers who have both seen "grey" and not each other.
    let context = read.context();
    let first = http(rest[1], "PUT", "/kv/dove", &[("ringdove-context", context)], b"white");
    let second = http(rest[2], "PUT", "/kv/dove", &[("ringdove-context", context)], b"brown");
    assert_eq!(first.status, 204);
    assert_eq!(second.status, 200, "the second is told of its sibling: {}", second.text());
    let both = http(rest[0], "GET", "/kv/dove?r=3&strict=true", &[], b"");
    assert_eq!(both.status, 300);
    assert!(both.text().contains("white") && both.text().contains("brown") && !both.text().contains("grey"));

    let resolved = http(rest[2], "PUT", "/kv/dove", &[("ringdove-context", both.context())], b"mottled");
    assert_eq!(resolved.status, 204);
    assert_eq!(http(rest[1], "GET", "/kv/dove", &[], b"").text(), "mottled");

    assert_eq!(http(rest[0], "DELETE", "/kv/dove", &[], b"").status, 204);
    assert_eq!(http(rest[1], "GET", "/kv/dove?r=3", &[], b"").status, 404);
    // A context from before the deletion does not bring anything back.
    let late = http(rest[1], "PUT", "/kv/dove", &[("ringdove-context", read.context())], b"late");
    assert_eq!(late.status, 204);
    assert_eq!(http(rest[2], "GET", "/kv/dove?r=3", &[], b"").text(), "late");
}

#[test]
fn rest_names_what_is_wrong_with_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let rest = cluster.nodes[0].rest_addr.as_str();
    let refused = |method: &str, path: &str, headers: &[(&str, &str)], status: u16, words: &str| {
        let answer = http(rest, method, path, headers, b"x");
        let text = answer.text();
        assert_eq!(answer.status, status, "{method} {path}: {text}");
        assert!(text.contains(words), "{method} {path}: {text}");
    };
    refused("GET", "/kv/a?r=0", &[], 400, "r is 1 to 3");
    refused("PUT", "/kv/a?w=4", &[], 400, "w is 1 to 3");
    refused("GET", "/kv/a?r=many", &[], 400, "r");
    refused("GET", "/kv/a?color=red", &[], 400, "color");
    refused("GET", "/kv/a?timeout=0s", &[], 400, "no time left");
    refused("GET", "/elsewhere", &[], 404, "/kv/{key}");
    refused("PUT", "/kv/a", &[("ringdove-context", "!!")], 400, "base64url");
    refused("PUT", "/kv/a", &[("ringdove-context", "AAAA")], 400, "version 0");

    let token = http(rest, "GET", "/kv/a", &[], b"").context().to_owned();
    refused("PUT", "/kv/b", &[("ringdove-context", &token)], 400, "another key");
    let mut damaged = token.into_bytes();
    let last = damaged.len() - 4;
    damaged[last] = if damaged[last] == b'A' { b'B' } else { b'A' };
    let damaged = String::from_utf8(damaged).unwrap();
    refused("PUT", "/kv/a", &[("ringdove-context", &damaged)], 400, "damaged");

    let large = vec![0; 8 * 1024 * 1024 + 1];
    assert_eq!(http(rest, "PUT", "/kv/a", &[], &large).status, 413);
    assert_eq!(http(rest, "PUT", "/kv/a", &[], &large[1..]).status, 204);
    assert_eq!(http(rest, "GET", "/kv/a", &[], b"").body.len(), large.len() - 1);
    let long_key = format!("/kv/{}", "k".repeat(65 * 1024));
    assert!([400, 414, 431].contains(&http(rest, "GET", &long_key, &[], b"").status));

    // A key may have any bytes that UTF-8 has, also a slash and a space.
    assert_eq!(http(rest, "PUT", "/kv/a%2Fb%20c%C3%BC", &[], b"odd").status, 204);
    assert_eq!(ringdove(&cluster, &["get", "a/b cü"]).stdout, b"odd");
}

#[test]
fn the_command_line_tells_outcomes_apart_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let code = |args: &[&str]| ringdove(&cluster, args).status.code();
    assert_eq!(code(&["get", "dove"]), Some(3));
    assert_eq!(code(&["put", "dove", "grey"]), Some(0));
    assert_eq!(ringdove(&cluster, &["get", "dove"]).stdout, b"grey");
    assert_eq!(code(&["put", "dove", "white", "--new-sibling"]), Some(0));
    let both = ringdove(&cluster, &["get", "dove", "--context"]);
    assert_eq!(both.status.code(), Some(4));
    let said = String::from_utf8(both.stderr).unwrap();
    let token = said.split_whitespace().skip_while(|word| *word != "context").nth(1).unwrap();
    assert_eq!(code(&["put", "dove", "both", "--context", token]), Some(0));
    assert_eq!(ringdove(&cluster, &["get", "dove"]).stdout, b"both");
    assert_eq!(code(&["put", "eagle", "x", "--context", token]), Some(1), "a token of another key");
    assert_eq!(code(&["put", "dove", "x", "--context", "?"]), Some(2));
    assert_eq!(code(&["get", "-r", "9", "dove"]), Some(1));
    assert_eq!(code(&["get"]), Some(2));
    assert_eq!(code(&["delete", "dove"]), Some(0));
    assert_eq!(code(&["get", "dove"]), Some(3));
    assert_eq!(code(&["get", "--addr", "127.0.0.1:1", "--timeout", "300ms", "dove"]), Some(5));
}

#[test]
fn with_two_of_three_nodes_gone_a_majority_write_is_refused_and_w_1_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    for node in &cluster.nodes[1..] {
        cluster.stop_node(node);
    }
    // The first write may find out about the dead nodes; then its outcome is unknown, never "failed".
    let first = ringdove(&cluster, &["put", "dove", "grey"]).status.code();
    assert!(matches!(first, Some(9 | 6)), "{first:?}");
    let refused = ringdove(&cluster, &["put", "dove", "grey"]);
    assert_eq!(refused.status.code(), Some(9));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("nothing was written"));
    assert_eq!(ringdove(&cluster, &["put", "-w", "1", "dove", "white"]).status.code(), Some(0));
    assert_eq!(ringdove(&cluster, &["get", "-r", "1", "dove"]).stdout, b"white");
    assert_eq!(ringdove(&cluster, &["get", "-r", "2", "--timeout", "500ms", "dove"]).status.code(), Some(9));
}

#[test]
fn a_cluster_stopped_and_started_again_has_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    assert_eq!(ringdove(&cluster, &["put", "dove", "grey"]).status.code(), Some(0));
    assert_eq!(cluster.stop("TERM"), Some(0));
    let cluster = Cluster::start(dir.path());
    assert_eq!(ringdove(&cluster, &["get", "-r", "3", "dove"]).stdout, b"grey");
}

#[test]
fn garbage_on_a_binary_port_costs_its_sender_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let port = cluster.nodes[0].client_addr.as_str();
    let closed_after = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(bytes);
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "an answer to garbage: {rest:?}");
        // Closed or reset, but over: a timeout would say that the node waits for more.
        assert!(ended.is_ok() || ended.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
    };
    closed_after(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n");
    closed_after(&u32::MAX.to_le_bytes());
    closed_after(&[0; 64]);
    // Half a frame and then silence: over when the time for a handshake is.
    closed_after(&[56, 0, 0, 0, 1, 2, 3]);
    assert_eq!(ringdove(&cluster, &["put", "dove", "grey"]).status.code(), Some(0));
}

/// Flips a bit of the last place at which a node's log holds this text.
fn damage(node_dir: &std::path::Path, text: &[u8]) {
    let mut segments: Vec<_> =
        std::fs::read_dir(node_dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    for path in segments.iter().rev().filter(|path| path.extension().is_some_and(|ending| ending == "log")) {
        let mut bytes = std::fs::read(path).unwrap();
        if let Some(at) = bytes.windows(text.len()).rposition(|window| window == text) {
            bytes[at] ^= 1;
            return std::fs::write(path, bytes).unwrap();
        }
    }
    panic!("no segment of {} holds {:?}", node_dir.display(), text.escape_ascii().to_string());
}

#[test]
fn a_damaged_copy_is_no_absent_one_and_is_repaired_from_its_peers() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let first = cluster.nodes[0].rest_addr.as_str();
    assert_eq!(http(first, "PUT", "/kv/dove?w=3", &[], b"grey dove").status, 204);
    assert_eq!(http(first, "PUT", "/kv/wren?w=3", &[], b"a brown wren").status, 204);
    let context = http(first, "GET", "/kv/dove?r=3", &[], b"").context().to_owned();
    // What was read is in memory; after a restart it is read from the disk again.
    assert_eq!(cluster.stop("TERM"), Some(0));
    damage(&dir.path().join("n1"), b"grey dove");
    damage(&dir.path().join("n1"), b"a brown wren");

    let cluster = Cluster::start(dir.path());
    let rest: Vec<&str> = cluster.nodes.iter().map(|node| node.rest_addr.as_str()).collect();
    let wait_for = |status: u16, addr: &str, path: &str| {
        let done = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            http(addr, "GET", path, &[], b"").status == status
        });
        assert!(done, "{path} at {addr} never answers {status}");
    };
    // A put that the damaged node takes keeps what was there: the second value must be a successor of the
    // first, never the only write ever seen.
    let put = http(rest[0], "PUT", "/kv/dove", &[("ringdove-context", &context)], b"white dove");
    assert_eq!(put.status, 204, "{}", put.text());
    // A read of all replicas gives the right value, at the latest when the repair that it starts has come
    // through, and from then on the damaged node has it too.
    for (key, value) in [("dove", "white dove"), ("wren", "a brown wren")] {
        wait_for(200, rest[1], &format!("/kv/{key}?r=3&strict=true"));
        assert_eq!(http(rest[0], "GET", &format!("/kv/{key}?r=3"), &[], b"").text(), value);
    }
    for node in &cluster.nodes[1..] {
        cluster.stop_node(node);
    }
    for (key, value) in [("dove", "white dove"), ("wren", "a brown wren")] {
        wait_for(200, rest[0], &format!("/kv/{key}?r=1&timeout=500ms"));
        assert_eq!(http(rest[0], "GET", &format!("/kv/{key}?r=1"), &[], b"").text(), value);
    }
}
