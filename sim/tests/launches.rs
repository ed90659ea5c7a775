//! The ordinary `cargo test` runs the simulated tests too, and fails if they fail or if none ran; so does
//! `cargo sim-test` where a `RUSTFLAGS` in the environment has taken the cfg away.
#![cfg(not(madsim))]

use std::fs;
use std::path::PathBuf;
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

/// What `cargo sim` does with these words: its exit code, and all that it says.
fn sim(words: &str) -> (i32, String) {
    let run = format!("run --quiet --profile dev --bin sim -- {words}");
    let mut words = run.split(' ');
    let output = relaunch::cargo(words.next().unwrap()).args(words).output().unwrap();
    (output.status.code().expect("it ends by itself"), text_of(&output))
}

/// A folder of this test's own, with an empty corpus.
struct Folder(PathBuf);

impl Folder {
    #[allow(clippy::disallowed_methods)] // around the runs are ordinary files
    fn new(name: &str) -> Folder {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("corpus")).unwrap();
        Folder(folder)
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }

    #[allow(clippy::disallowed_methods)] // what a sweep has written is an ordinary file
    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    fn sweep(&self, words: &str) -> (i32, String) {
        sim(&format!("sweep --jobs 1 --corpus {} {words}", self.path("corpus")))
    }
}

#[test]
fn a_sweep_goes_on_where_it_stopped_and_reports_what_it_did() {
    let folder = Folder::new("sim-resume");
    let resumed = format!("--resume {}", folder.path("done.jsonl"));
    let (code, text) = folder.sweep(&format!("--seeds 0..2 --budget 0s {resumed}"));
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("2 runs are left undone") && !text.contains("clean"), "{text}");
    let (code, text) = folder.sweep(&format!("--seeds 0..2 {resumed}"));
    assert_eq!(code, 0, "{text}");
    // Once done is not twice done; the others are not played again.
    let reports = format!("--json {} --junit {}", folder.path("sum.json"), folder.path("junit.xml"));
    let (code, text) = folder.sweep(&format!("--seeds 0..2 --twice 2 {resumed} {reports}"));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("1 runs were done before, 1 are left") && text.contains("clean"), "{text}");
    let (code, text) = folder.sweep(&format!("--seeds 0..2 --twice 2 {resumed}"));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("2 runs were done before, 0 are left"), "{text}");
    assert!(text.contains("2 runs, 1 of them twice"), "{text}");
    let junit = folder.read("junit.xml");
    assert!(junit.contains("tests=\"2\" failures=\"0\"") && junit.contains("name=\"seed 1\""), "{junit}");
    let json = folder.read("sum.json");
    for part in ["\"by_scenario\"", "\"swarm\"", "\"failures\": []", "\"twice\": 1"] {
        assert!(json.contains(part), "{part}: {json}");
    }
}

#[test]
fn a_part_of_the_seeds_is_played_and_what_a_strict_sweep_did_not_meet_is_named() {
    let folder = Folder::new("sim-shard");
    let (code, text) = folder.sweep("--seeds 0..4 --shard 2/4 --strict");
    assert_eq!(code, 1, "one seed cannot meet everything: {text}");
    assert!(text.contains("1 runs, 0 of them twice"), "{text}");
    assert!(
        text.contains("swarm: fault hold never did anything") || text.contains("swarm: fault "),
        "{text}"
    );
    assert!(!text.contains("has no row"), "{text}");
}

#[test]
fn a_run_that_takes_too_long_is_killed_and_reported() {
    let folder = Folder::new("sim-limit");
    let (code, text) = folder.sweep("--seeds 0..2 --limit 0s");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("2 runs failed: time-limit 2"), "{text}");
    assert!(text.contains("replay with: cargo sim run --seed 1"), "{text}");
}

#[test]
fn a_divergence_is_found_located_and_has_its_own_exit_code() {
    let folder = Folder::new("sim-twice");
    let (code, text) = folder.sweep("--seeds 1..2 --twice 1 --plant-divergence");
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("they part at event") && text.contains("planted"), "{text}");
    assert!(text.contains("cargo sim run --seed 1 --twice"), "{text}");
}

#[test]
fn a_wrong_command_has_its_own_exit_code() {
    let folder = Folder::new("sim-wrong");
    let (code, text) = sim(&format!("sweep --seeds 0..1 --corpus {}", folder.path("nowhere")));
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("nowhere"), "{text}");
    assert_eq!(sim("sweep --seeds 5..5").0, 2);
    assert_eq!(sim("run --plan /nowhere/plan.json").0, 2);
}

#[test]
fn a_clean_run_says_how_to_see_it_again() {
    let (code, text) = sim("run --seed 1");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("replay      cargo sim run --seed 1 --log"), "{text}");
    assert!(text.contains("converged   "), "{text}");
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
