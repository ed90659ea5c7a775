//! Debian's packages through three real processes and three doors, one process killed half way.
//!
//! ```text
//!   apt-cache dumpavail ──▶ name → stanza, some 60,000; without apt, the sources that cargo has unpacked
//!     every third record   the Rust client       32 at once, W = 2
//!                          curl                  one process, kept alive, REST ?w=2
//!                          `ringdove import`     JSON lines on its standard input, W = 2
//!   half of the client's written ──▶ kill -9 n2, and the rest goes on
//!   restart ──▶ every record read back equal, R = 2, by `ringdove export`, by curl and by the client
//! ```
//! The nodes are started by hand and not by `ringdove cluster`, because the test says when one comes back.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ringdove::client::{Action, Client, ReadOptions, WriteOptions};
use ringdove::net::message::Context;
use ringdove::types::{Key, WriteId};

use crate::support::{Cluster, NodeProcess, client};

/// Records that are used: what takes some fifteen seconds on two busy cores.
const RECORDS: usize = 20_000;
const RECORDS_MIN: usize = 6_000;
const TASKS: usize = 32;

type Records = Vec<(String, String)>;

/// Package name → stanza, spread over the whole list.
fn packages() -> Option<Records> {
    let output = Command::new("apt-cache").arg("dumpavail").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut records = BTreeMap::new();
    for stanza in text.split("\n\n") {
        let name = stanza.lines().find_map(|line| line.strip_prefix("Package: "));
        if let Some(name) = name {
            records.entry(name.to_owned()).or_insert_with(|| stanza.to_owned());
        }
    }
    let every = (records.len() / RECORDS).max(1);
    (records.len() >= RECORDS_MIN).then(|| records.into_iter().step_by(every).take(RECORDS).collect())
}

/// Path → text of the sources that cargo has unpacked.
fn sources() -> Records {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let root = home.expect("a home directory").join("registry/src");
    let mut records = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                dirs.push(path);
            } else if records.len() < RECORDS_MIN
                && std::fs::metadata(&path).is_ok_and(|meta| meta.len() < 64 * 1024)
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                let name = path.strip_prefix(&root).expect("below the root").display().to_string();
                records.push((name, text));
            }
        }
    }
    records
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
async fn put(client: &Client, name: &str, stanza: &str, id: u128) -> usize {
    let key = Key::new(name.as_bytes().to_vec()).unwrap();
    let options = WriteOptions {
        w: Some(2),
        context: Some(Context::Current),
        write_id: Some(WriteId(id)),
        ..WriteOptions::default()
    };
    for tries in 0..50 {
        let Err(error) = client.put(&key, stanza.to_owned(), &options).await else { return tries };
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

fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Puts records through REST; those that were not acknowledged go again, to the other nodes.
fn put_by_curl(records: &[&(String, String)], dir: &Path, nodes: &[NodeProcess]) {
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
        let config = left.iter().map(request).collect::<Vec<_>>().join("next\nsilent\nshow-error\n");
        let answers = curl(&config);
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

fn json_lines(records: &[&(String, String)]) -> String {
    let text = |text: &str| {
        let escape = |c: char| match c {
            '"' | '\\' => format!("\\{c}"),
            c if c < ' ' => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        };
        text.chars().map(escape).collect::<String>()
    };
    let line = |(name, stanza): &&(String, String)| {
        format!("{{\"key\":\"{}\",\"value\":\"{}\"}}\n", text(name), text(stanza))
    };
    records.iter().map(line).collect()
}

fn ringdove(addrs: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringdove"));
    command.args(args).env("RINGDOVE_ADDR", addrs);
    command
}

/// Imports records and gives what the command said.
fn import(addrs: &str, records: &[&(String, String)]) -> String {
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
fn exported(addrs: &str) -> BTreeMap<String, String> {
    let output = ringdove(addrs, &["export", "--format", "tsv", "-r", "2"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plain = |field: &str| {
        let marked = field.replace("\\\\", "\u{0}");
        marked.replace("\\t", "\t").replace("\\n", "\n").replace("\\r", "\r").replace('\u{0}', "\\")
    };
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_package_reads_back_equal_after_a_node_was_killed_half_way() {
    let dir = tempfile::tempdir().unwrap();
    let records = Arc::new(packages().unwrap_or_else(sources));
    assert!(records.len() >= RECORDS_MIN / 2, "{} records", records.len());
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
    println!(
        "{} records by three doors in {:.1} s, n2 killed after {:.1} s; {} writes of the client sent again; import: {said}",
        records.len(),
        started.elapsed().as_secs_f64(),
        killed_after.as_secs_f64(),
        again.load(Ordering::SeqCst),
    );

    serving[1] = Some(Serving::start(dir.path(), 1, &nodes[1]));
    let started = Instant::now();
    let export_addrs = all_addrs.clone();
    let exported = tokio::task::spawn_blocking(move || exported(&export_addrs)).await.unwrap();
    let expected: BTreeMap<String, String> = records.iter().cloned().collect();
    let differ = |(name, stanza): &(&String, &String)| exported.get(*name) != Some(*stanza);
    let wrong: Vec<&String> = expected.iter().filter(differ).map(|(name, _)| name).take(5).collect();
    assert!(wrong.is_empty(), "not exported as written: {wrong:?}");
    assert_eq!(exported.len(), expected.len());

    let keys: Vec<Key> =
        records.iter().map(|(name, _)| Key::new(name.clone().into_bytes()).unwrap()).collect();
    let options = ReadOptions { r: Some(2), ..ReadOptions::default() };
    for (reply, (name, stanza)) in client.multi_get(&keys, &options).await.into_iter().zip(records.iter()) {
        let reply = reply.unwrap_or_else(|error| panic!("{name}: {error}"));
        let values: Vec<&[u8]> = reply.values.iter().map(|version| &version.value[..]).collect();
        assert_eq!(values, [stanza.as_bytes()], "{name}");
    }
    // The node that was away answers for what it missed, too.
    let away = &nodes[1].rest_addr;
    for (name, stanza) in records.iter().step_by(records.len() / 200) {
        let url = format!("url = \"http://{away}/kv/{}?r=2\"\n", escaped(name));
        assert_eq!(curl(&url), *stanza, "{name}");
    }
    println!("read all back equal in {:.1} s", started.elapsed().as_secs_f64());
}
