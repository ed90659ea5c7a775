//! The ordinary `cargo test` runs the simulated tests too, and fails if they fail or if none ran; so does
//! `cargo sim-test` where a `RUSTFLAGS` in the environment has taken the cfg away.
#![cfg(not(madsim))]

use std::process::{Command, Output};

use sim::relaunch;

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The sum of `N passed` over all lines of the harness.
fn passed(output: &str) -> u32 {
    output
        .lines()
        .filter(|line| line.starts_with("test result:"))
        .filter_map(|line| {
            line.split(' ').collect::<Vec<_>>().windows(2).find(|w| w[1] == "passed;")?[0].parse::<u32>().ok()
        })
        .sum()
}

#[test]
fn passed_tests_are_counted() {
    let output = "test result: ok. 12 passed; 0 failed; 0 ignored\nx\ntest result: ok. 3 passed; 0 failed";
    assert_eq!(passed(output), 15);
    assert_eq!(passed("test result: ok. 0 passed; 0 failed"), 0);
    assert_eq!(passed(""), 0);
}

/// What is started below is what a person types.
#[test]
fn the_aliases_set_the_same_cfg() {
    let aliases = include_str!("../../.cargo/config.toml");
    for alias in ["sim = ", "sim-test = "] {
        let line = aliases.lines().find(|line| line.starts_with(alias)).unwrap();
        assert!(line.contains(relaunch::CONFIG), "{line}");
    }
}

#[test]
fn the_simulated_tests_run_and_pass() {
    assert!(!relaunch::was_relaunched(), "the build that was to have `--cfg madsim` has it not");
    let output = relaunch::cargo("test").output().unwrap();
    let text = text_of(&output);
    assert!(output.status.success(), "{text}");
    assert!(passed(&text) > 0, "no simulated test ran\n{text}");
}

/// What `sim run` prints last, from a process of its own.
fn trace_hash(seed: u32) -> String {
    // The program for `cargo test`'s profile: a release build would take a minute more.
    let run = format!("run --quiet --profile dev --bin sim -- run --seed {seed}");
    let mut words = run.split(' ');
    let output = relaunch::cargo(words.next().unwrap()).args(words).output().unwrap();
    let text = text_of(&output);
    assert!(output.status.success(), "{text}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let hash = stdout.lines().last().unwrap().strip_prefix("trace hash: ").unwrap().to_owned();
    assert!(hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{text}");
    hash
}

#[test]
fn two_processes_print_the_same_hash_for_a_seed_and_another_for_another() {
    let seven = trace_hash(7);
    assert_eq!(seven, trace_hash(7));
    assert_ne!(seven, trace_hash(8));
}

/// The packages that an ordinary build of `ringdove` and of this crate holds, on any target.
fn production_graph() -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--no-dedupe"])
        .args(["--package", "ringdove", "--package", "sim", "--package", "jepsen-like-checks"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_production_graph_has_no_madsim() {
    let graph = production_graph();
    let has = |name: &str| graph.lines().any(|line| line.split(' ').next() == Some(name));
    assert!(has("ringdove") && has("sim") && has("tokio"), "{graph}");
    for line in graph.lines() {
        assert!(!line.starts_with("madsim"), "{line} is in the production graph");
    }
}
