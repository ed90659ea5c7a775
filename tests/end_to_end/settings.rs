//! Settings of real processes: what `ringdove config` and `serve` say of good and of bad ones, and what those do that
//! can be seen from outside.

use crate::program::{Program, command, free_addr, output, said};

/// Makes the directory of a cluster of one node; its client address.
fn one_node(dir: &str) -> String {
    let addr = free_addr();
    let (code, words) = said(&["init", "--dir", dir, "--new-cluster", "--client-addr", &addr]);
    assert_eq!(code, Some(0), "{words}");
    addr
}

#[test]
fn config_tells_where_each_setting_comes_from() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("dove.toml").to_str().unwrap().to_owned();
    std::fs::write(&file, "# times\ntimeout = \"4s\"\nhint_after = \"100ms\"\n").unwrap();
    let mut config = command(&["config", "--config", &file, "--storage", "memory"]);
    let output = config.env("RINGDOVE_HINT_AFTER", "150ms").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let printed = String::from_utf8(output.stdout).unwrap();
    let line = |name: &str| {
        let found = printed.lines().find(|line| line.starts_with(name)).expect(name);
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("timeout ="), format!("timeout = \"4s\" # {file}:2"));
    assert_eq!(line("hint_after ="), "hint_after = \"150ms\" # RINGDOVE_HINT_AFTER");
    assert_eq!(line("storage ="), "storage = \"memory\" # --storage");
    assert_eq!(line("hedge_after ="), "hedge_after = \"200ms\" # default");
    // What it prints is a file.
    std::fs::write(&file, &printed).unwrap();
    let again = said(&["config", "--config", &file]);
    assert_eq!(again.0, Some(0), "{}", again.1);
    assert!(again.1.contains("hint_after = \"150ms\""));
}

#[test]
fn every_command_names_a_wrong_setting_and_starts_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("n1").to_str().unwrap().to_owned();
    one_node(&dir);
    let file = parent.path().join("dove.toml").to_str().unwrap().to_owned();
    std::fs::write(&file, "timeout = \"3d\"\nhint_aftr = \"1s\"\n").unwrap();
    let clusters = parent.path().join("cluster").to_str().unwrap().to_owned();
    for args in [
        &["config", "--config", &file][..],
        &["serve", "--dir", &dir, "--config", &file],
        &["cluster", "--dir", &clusters, "--port", "0", "--config", &file],
    ] {
        let (code, words) = said(args);
        assert_eq!(code, Some(2), "{words}");
        assert!(words.contains(&format!("{file}:1: timeout: \"3d\" is no time")), "{words}");
        assert!(words.contains("from 10ms to 1h"), "{words}");
        assert!(words.contains(&format!("{file}:2: hint_aftr is no setting: did you mean hint_after?")));
    }
    assert!(!std::path::Path::new(&clusters).exists());
    let (code, words) = said(&["serve"]);
    assert!(code == Some(2) && words.contains("--dir DIR"), "{words}");
    let (code, words) = said(&["serve", "--dir", parent.path().to_str().unwrap()]);
    assert!(code == Some(1) && words.contains("ringdove init"), "{words}");
    let near = command(&["config"]).env("RINGDOVE_TIEMOUT", "1s").output().unwrap();
    assert!(String::from_utf8(near.stderr).unwrap().contains("did you mean RINGDOVE_TIMEOUT?"));
}

#[test]
fn a_node_in_memory_says_so_and_forgets() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("n1").to_str().unwrap().to_owned();
    let addr = free_addr();
    let init = ["init", "--dir", &dir, "--new-cluster", "--client-addr", &addr, "--storage", "memory"];
    assert_eq!(said(&init).0, Some(0));
    let unused = parent.path().join("n1/unused");
    assert!(unused.exists());
    let serve = || {
        let mut node = Program::start(command(&["serve", "--dir", &dir, "--storage", "memory"]));
        // On two streams, whose lines come in any order.
        node.wait_for_all(&["storage = \"memory\": nothing that is written here survives", "WARN", "ready"]);
        node
    };
    let node = serve();
    assert!(!unused.exists(), "only the first start has lost nothing");
    assert_eq!(said(&["put", "--addr", &addr, "dove", "grey"]).0, Some(0));
    assert_eq!(output(&["get", "--addr", &addr, "dove"]).stdout, b"grey");
    // The lock is the real directory's.
    let (code, words) = said(&["serve", "--dir", &dir, "--storage", "memory"]);
    assert!(code == Some(1) && words.contains("in use by another process"), "{words}");
    assert_eq!(node.stop().0, Some(0));
    let node = serve();
    assert_eq!(said(&["get", "--addr", &addr, "dove"]).0, Some(3), "it is gone");
    assert_eq!(node.stop().0, Some(0));

    let node = Program::serve(&dir, &[]);
    assert_eq!(node.stop().0, Some(0));
    let (code, words) = said(&["serve", "--dir", &dir, "--storage", "memory"]);
    assert!(code == Some(1) && words.contains("would not see"), "{words}");
}

#[test]
fn logs_are_objects_a_line_when_asked_for() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("n1").to_str().unwrap().to_owned();
    one_node(&dir);
    let node = Program::serve(&dir, &["--log-format", "json"]);
    let (code, words) = node.stop();
    assert_eq!(code, Some(0));
    let lines = words.lines().filter(|line| !line.starts_with("ready"));
    let levels: Vec<String> = lines
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect(line);
            line["level"].as_str().expect("a level").to_owned()
        })
        .collect();
    assert!(levels.len() > 2 && levels.contains(&"INFO".to_owned()), "{levels:?}");
}

#[test]
fn the_limit_of_open_files_is_raised() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("n1").to_str().unwrap().to_owned();
    one_node(&dir);
    let serve = command(&["serve", "--dir", &dir]);
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -Sn 64; ulimit -Hn 300; exec \"$@\"", "sh"]);
    limited.arg(serve.get_program()).args(serve.get_args());
    let mut node = Program::start(limited);
    let line = node.wait_for("limit of open files");
    assert!(line.contains("64") && line.contains("300"), "{line}");
    let line = node.wait_for("connections_max cannot be reached");
    assert!(line.contains("11000"), "{line}");
    node.wait_for("ready");
    assert_eq!(node.stop().0, Some(0));
}

#[test]
fn a_node_listens_where_it_is_told_and_says_why_it_cannot() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("n1").to_str().unwrap().to_owned();
    let (code, words) = said(&["init", "--dir", &dir, "--new-cluster", "--client-addr", "192.0.2.1:7001"]);
    assert_eq!(code, Some(0), "{words}");
    let (code, words) = said(&["serve", "--dir", &dir]);
    assert!(
        code == Some(1) && words.contains("192.0.2.1:7101") && words.contains("set listen_peer"),
        "{words}"
    );
    let (client, peer, rest) = (free_addr(), free_addr(), free_addr());
    let listen = ["--listen-client", &client, "--listen-peer", &peer, "--listen-rest", &rest];
    let _node = Program::serve(&dir, &listen);
    assert_eq!(said(&["put", "--addr", &client, "dove", "grey"]).0, Some(0));

    let other = parent.path().join("n2").to_str().unwrap().to_owned();
    one_node(&other);
    let (code, words) = said(&["serve", "--dir", &other, "--listen-rest", &rest]);
    assert!(code == Some(1) && words.contains(&rest) && words.contains("another process listens"), "{words}");
}
