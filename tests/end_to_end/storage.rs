//! `ringdove storage`: what it says of real directories, and the exit codes by which a script tells them apart.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Cluster, send_signal};

fn storage(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringdove")).arg("storage").args(args).arg(dir).output().unwrap()
}

/// The exit code, and all that was said.
fn check(dir: &Path) -> (Option<i32>, String) {
    let output = storage(&["check"], dir);
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

fn json(args: &[&str], dir: &Path) -> Value {
    serde_json::from_slice(&storage(args, dir).stdout).expect("one JSON object")
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

fn put(cluster: &Cluster, key: &str, value: &str) {
    let mut put = Command::new(env!("CARGO_BIN_EXE_ringdove"));
    let put = put.args(["put", "-w", "3", key, value]).env("RINGDOVE_ADDR", &cluster.nodes[0].client_addr);
    assert_eq!(put.status().unwrap().code(), Some(0));
}

#[test]
fn a_data_directory_is_verified_offline_and_never_changed() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(root.path());
    let dir = root.path().join("n1");
    for n in 0..20 {
        put(&cluster, &format!("key{n}"), &format!("a dove with number {n}"));
    }
    let (code, said) = check(&dir);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains("is in use by another process"), "{said}");
    assert_eq!(storage(&["stats"], &dir).status.code(), Some(7));

    // Killed: what it wrote last may not be on the disk.
    send_signal(cluster.nodes[0].pid, "KILL");
    cluster.stop("TERM");
    let before = files(&dir);
    let (code, said) = check(&dir);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("left by a crash: ") && said.ends_with("sound\n"), "{said}");
    let told = json(&["check", "--json"], &dir);
    assert_eq!((&told["sound"], &told["figures"]["data_keys"]), (&Value::Bool(true), &20.into()));
    assert!(told["tail"]["unproven_records"].as_u64().unwrap() > 0, "{told}");

    // Stopped as it should be.
    let (code, said) = check(&root.path().join("n2"));
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("crash") && said.contains("n2's, 20 keys, 0 guests"), "{said}");

    let stats = String::from_utf8(storage(&["stats"], &dir).stdout).unwrap();
    for words in ["n1 of cluster ", "256 partitions, 3 replicas", "keys               20", "segments", "dead"]
    {
        assert!(stats.contains(words), "{words}: {stats}");
    }
    let figures = json(&["stats", "--json"], &dir);
    assert_eq!(
        (&figures["node"], &figures["data_keys"], &figures["clean"]),
        (&1.into(), &20.into(), &false.into())
    );
    assert!(figures["live_bytes"].as_u64().unwrap() > 20 * 20, "{figures}");
    assert!(files(&dir) == before, "a look changes nothing");

    // One bit of one value.
    let value = |bytes: &[u8]| bytes.windows(20).position(|part| part == b"a dove with number 7");
    let logs = before.iter().filter(|(name, _)| name.ends_with(".log"));
    let (name, bytes, at) =
        logs.filter_map(|(name, bytes)| Some((name, bytes, value(bytes)?))).next().unwrap();
    let mut rotten = bytes.clone();
    rotten[at] ^= 4;
    std::fs::write(dir.join(name), rotten).unwrap();
    let (code, said) = check(&dir);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("{name}, bytes ")) && said.contains("may concern partition "), "{said}");
    assert!(said.contains("DAMAGED: 1 stretch, "), "{said}");
    let told = json(&["check", "--json"], &dir);
    let damage = &told["damage"][0];
    let (from, to) = (damage["from"].as_u64().unwrap(), damage["to"].as_u64().unwrap());
    assert!((from..to).contains(&(at as u64)) && damage["what"] == "unreadable", "{told}");

    for none in [root.path().to_owned(), root.path().join("nowhere"), dir.join(name)] {
        let (code, said) = check(&none);
        assert_eq!(code, Some(7), "{said}");
        assert!(said.contains("is no data directory"), "{said}");
    }
    assert_eq!(storage(&["check", "--colour"], &dir).status.code(), Some(2));
}
