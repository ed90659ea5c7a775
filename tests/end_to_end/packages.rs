//! Debian's packages through three real processes and three doors, one process killed half way.
//!
//! ```text
//!   apt-cache dumpavail ──▶ name → stanza, some 60,000; without apt, at least 10,000 of the sources that cargo has unpacked
//!     every third record   the Rust client       32 at once, W = 2
//!                          curl                  four processes, kept alive, REST ?w=2
//!                          `ringdove import`     JSON lines on its standard input, W = 2
//!   half of the client's written ──▶ kill -9 n2, and the rest goes on
//!   restart ──▶ every record read back equal, R = 2, by `ringdove export` and by the client; by curl every tenth,
//!               from the node that was away
//! ```
//! The nodes are started by hand and not by `ringdove cluster`, because the test says when one comes back.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringdove::client::{Action, Client, ReadOptions, WriteOptions};
use ringdove::net::message::Context;
use ringdove::types::{Key, WriteId};
use serde_json::json;

use crate::import_files::Corpus;
use crate::support::{Cluster, NodeProcess, client, note};

/// Fewer are no corpus.
const RECORDS_MIN: usize = 10_000;
/// Of so many records curl reads back one.
const SAMPLE: usize = 10;
/// Processes of curl at a time.
const CURLS: usize = 4;
const TASKS: usize = 32;

/// Name → bytes.
type Record = (String, Vec<u8>);

/// Package name → stanza.
fn packages() -> Option<Vec<Record>> {
    let output = Command::new("apt-cache").arg("dumpavail").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut records = BTreeMap::new();
    for stanza in text.split("\n\n") {
        let name = stanza.lines().find_map(|line| line.strip_prefix("Package: "));
        if let Some(name) = name {
            records.entry(name.to_owned()).or_insert_with(|| stanza.as_bytes().to_vec());
        }
    }
    (records.len() >= RECORDS_MIN).then(|| records.into_iter().collect())
}

/// Path → bytes of the sources that cargo has unpacked.
fn sources() -> Vec<Record> {
    let corpus = Corpus::collect();
    let name = |at: usize| String::from_utf8(corpus.key(at).as_bytes().to_vec()).expect("a path of text");
    (0..corpus.files.len()).map(|at| (name(at), corpus.value(at).to_vec())).collect()
}

/// A node as `ringdove serve`, tied to this process by its standard input.
struct Serving {
    child: Child,
}

impl Serving {
    fn start(dir: &Path, at: usize, node: &NodeProcess) -> Serving {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringdove"))
            .args([
                "serve",
                "--supervised",
                "--log",
                "ringdove=error",
                "--listen-rest",
                &node.rest_addr,
                "--dir",
            ])
            .arg(dir.join(format!("n{}", at + 1)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("ready"));
        assert!(ready, "node {} does not become ready", at + 1);
        std::thread::spawn(move || lines.for_each(drop));
        Serving { child }
    }

    fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it can be waited for");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Writes one record until it is acknowledged, and says how often that was not known at once.
async fn put(client: &Client, name: &str, stanza: &[u8], id: u128) -> usize {
    let key = Key::new(name.as_bytes().to_vec()).unwrap();
    let options = WriteOptions {
        w: Some(2),
        context: Some(Context::Current),
        write_id: Some(WriteId(id)),
        ..WriteOptions::default()
    };
    for tries in 0..50 {
        let Err(error) = client.put(&key, stanza.to_vec(), &options).await else { return tries };
        // The same id again where nobody can say: if both came to be, readers fold them into one.
        assert!(matches!(error.action(), Action::FindOut | Action::TryAgain(_)), "{name}: {error}");
    }
    panic!("{name} was not acknowledged in 50 tries");
}

/// A curl configuration that asks for each of these in one process, with kept connections.
fn curl(config: &str) -> String {
    let mut child = Command::new("curl")
        .args(["--silent", "--show-error", "--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl starts");
    let mut stdin = child.stdin.take().unwrap();
    let config = config.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(config.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    assert!(output.status.success(), "curl: {:?}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// What some curls, side by side, print for these requests.
fn curls(requests: &[String]) -> String {
    let share = requests.len().div_ceil(CURLS).max(1);
    std::thread::scope(|scope| {
        let ask = |part: &[String]| curl(&part.join("next\nsilent\nshow-error\n"));
        let parts: Vec<_> = requests.chunks(share).map(|part| scope.spawn(move || ask(part))).collect();
        parts.into_iter().map(|part| part.join().expect("curl does not panic")).collect()
    })
}

fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Puts records through REST; those that were not acknowledged go again, to the other nodes.
fn put_by_curl(records: &[&Record], dir: &Path, nodes: &[NodeProcess]) {
    let file = |at: usize| dir.join(format!("stanza{at}"));
    for (at, (_, stanza)) in records.iter().enumerate() {
        std::fs::write(file(at), stanza).unwrap();
    }
    let mut left: Vec<usize> = (0..records.len()).collect();
    for turn in 0..5 {
        let rest = &nodes[[0, 2][turn % 2]].rest_addr;
        let request = |at: &usize| {
            let (name, path) = (escaped(&records[*at].0), file(*at));
            format!(
                "url = \"http://{rest}/kv/{name}?w=2\"\nupload-file = \"{}\"\noutput = /dev/null\n\
                 write-out = \"{at} %{{http_code}}\\n\"\nheader = \"Content-Type: text/plain\"\n",
                path.display()
            )
        };
        let answers = curls(&left.iter().map(request).collect::<Vec<_>>());
        let acknowledged: Vec<usize> = answers
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, code)| matches!(*code, "200" | "204"))
            .map(|(at, _)| at.parse().unwrap())
            .collect();
        left.retain(|at| !acknowledged.contains(at));
        if left.is_empty() {
            return;
        }
    }
    panic!("{} records were not acknowledged in five turns", left.len());
}

/// Lines for `ringdove import`; what is no text goes in base64.
fn json_lines(records: &[&Record]) -> String {
    let line = |(name, bytes): &&Record| {
        let value = match std::str::from_utf8(bytes) {
            Ok(text) => json!({ "key": name, "value": text }),
            Err(_) => json!({ "key": name, "value_base64": STANDARD.encode(bytes) }),
        };
        format!("{value}\n")
    };
    records.iter().map(line).collect()
}

fn ringdove(addrs: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringdove"));
    command.args(args).env("RINGDOVE_ADDR", addrs);
    command
}

/// Imports records and gives what the command said.
fn import(addrs: &str, records: &[&Record]) -> String {
    let mut child = ringdove(addrs, &["import", "-", "-w", "2", "--retries", "20", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(json_lines(records).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

/// All keys and values that `ringdove export` gives, as TSV.
fn exported(addrs: &str) -> BTreeMap<String, Vec<u8>> {
    let output = ringdove(addrs, &["export", "--format", "tsv", "-r", "2"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let fields = text.split_terminator('\n').map(|line| line.split_once('\t').unwrap());
    fields.map(|(key, value)| (String::from_utf8(plain(key)).unwrap(), plain(value))).collect()
}

/// The bytes of a field.
fn plain(field: &str) -> Vec<u8> {
    if let Some(encoded) = field.strip_prefix("base64:") {
        return STANDARD.decode(encoded).unwrap();
    }
    let (mut bytes, mut rest) = (Vec::new(), field.bytes());
    while let Some(byte) = rest.next() {
        let escaped = (byte == b'\\').then(|| rest.next().expect("something is escaped"));
        bytes.push(match escaped {
            None | Some(b'\\') => byte,
            Some(b't') => b'\t',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(other) => panic!("\\{} is no escape", char::from(other)),
        });
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn every_package_reads_back_equal_after_a_node_was_killed_half_way() {
    let dir = tempfile::tempdir().unwrap();
    let (records, corpus) = match packages() {
        Some(packages) => (packages, "packages of `apt-cache dumpavail`"),
        None => (
            sources(),
            "source files that cargo has unpacked (`apt-cache dumpavail` has no list: `apt-get update`)",
        ),
    };
    note(&format!("three doors: {} {corpus}", records.len()));
    assert!(records.len() >= RECORDS_MIN, "{} {corpus}", records.len());
    let records = Arc::new(records);
    let cluster = Cluster::start(dir.path());
    let nodes = cluster.nodes.clone();
    assert_eq!(cluster.stop("TERM"), Some(0));
    let mut serving: Vec<Option<Serving>> =
        nodes.iter().enumerate().map(|(at, node)| Some(Serving::start(dir.path(), at, node))).collect();
    let addrs: Vec<&str> = nodes.iter().map(|node| node.client_addr.as_str()).collect();
    let all_addrs = addrs.join(",");
    let client = Arc::new(client(&addrs));

    let door = |which: usize| records.iter().skip(which).step_by(3).cloned().collect::<Vec<_>>();
    let (by_client, by_curl, by_command) = (Arc::new(door(0)), door(1), door(2));
    let started = Instant::now();
    let begun = Arc::new(AtomicUsize::new(0));
    let again = Arc::new(AtomicUsize::new(0));
    let (half, half_reached) = (by_client.len() / 2, Arc::new(tokio::sync::Notify::new()));
    let writers: Vec<_> = (0..TASKS)
        .map(|_| {
            let (client, records, begun) = (client.clone(), by_client.clone(), begun.clone());
            let (half_reached, again) = (half_reached.clone(), again.clone());
            tokio::spawn(async move {
                loop {
                    let at = begun.fetch_add(1, Ordering::SeqCst);
                    let Some((name, stanza)) = records.get(at) else { return };
                    if at == half {
                        half_reached.notify_one();
                    }
                    let tries = put(&client, name, stanza, at as u128 + 1).await;
                    again.fetch_add(tries, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let stanzas = tempfile::tempdir().unwrap();
    let (rest_nodes, path) = (nodes.clone(), stanzas.path().to_owned());
    let curling = tokio::task::spawn_blocking(move || {
        put_by_curl(&by_curl.iter().collect::<Vec<_>>(), &path, &rest_nodes);
    });
    let command_addrs = all_addrs.clone();
    let importing =
        tokio::task::spawn_blocking(move || import(&command_addrs, &by_command.iter().collect::<Vec<_>>()));

    half_reached.notified().await;
    serving[1].take().unwrap().kill();
    let killed_after = started.elapsed();
    for writer in writers {
        writer.await.expect("no record fails");
    }
    curling.await.expect("curl's records are all acknowledged");
    let said = importing.await.expect("the command's records are all acknowledged");
    note(&format!(
        "{} records by three doors in {:.1} s, n2 killed after {:.1} s; {} writes of the client sent again; import: {said}",
        records.len(),
        started.elapsed().as_secs_f64(),
        killed_after.as_secs_f64(),
        again.load(Ordering::SeqCst),
    ));

    serving[1] = Some(Serving::start(dir.path(), 1, &nodes[1]));
    let started = Instant::now();
    let export_addrs = all_addrs.clone();
    let exported = tokio::task::spawn_blocking(move || exported(&export_addrs)).await.unwrap();
    let expected: BTreeMap<String, Vec<u8>> = records.iter().cloned().collect();
    let differ = |(name, stanza): &(&String, &Vec<u8>)| exported.get(*name) != Some(*stanza);
    let wrong: Vec<&String> = expected.iter().filter(differ).map(|(name, _)| name).take(5).collect();
    assert!(wrong.is_empty(), "not exported as written: {wrong:?}");
    assert_eq!(exported.len(), expected.len());

    let keys: Vec<Key> =
        records.iter().map(|(name, _)| Key::new(name.clone().into_bytes()).unwrap()).collect();
    let options = ReadOptions { r: Some(2), ..ReadOptions::default() };
    for (reply, (name, stanza)) in client.multi_get(&keys, &options).await.into_iter().zip(records.iter()) {
        let reply = reply.unwrap_or_else(|error| panic!("{name}: {error}"));
        let values: Vec<&[u8]> = reply.values.iter().map(|version| &version.value[..]).collect();
        assert!(values == [&stanza[..]], "{name}");
    }
    // The node that was away answers for what it missed, too.
    let away = &nodes[1].rest_addr;
    let sample: Vec<&Record> = records.iter().step_by(SAMPLE).collect();
    let file = |at: usize| stanzas.path().join(format!("read{at}"));
    let request = |(at, record): (usize, &&Record)| {
        let path = file(at);
        format!("url = \"http://{away}/kv/{}?r=2\"\noutput = \"{}\"\n", escaped(&record.0), path.display())
    };
    curls(&sample.iter().enumerate().map(request).collect::<Vec<_>>());
    for (at, (name, stanza)) in sample.iter().enumerate() {
        assert!(std::fs::read(file(at)).unwrap() == *stanza, "{name}");
    }
    let took = started.elapsed().as_secs_f64();
    note(&format!(
        "all read back equal in {took:.1} s; by curl one in {SAMPLE}, by the command and the client each"
    ));
}
