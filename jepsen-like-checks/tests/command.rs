//! `ringdove-check` as people and scripts meet it: exit codes, the table, JSON, the page, the curve.

#![allow(clippy::disallowed_methods)] // a test that runs a command on files

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

struct Run {
    code: i32,
    out: String,
    err: String,
}

/// Runs the command in a folder of its own with these files.
fn run(files: &[(&str, &str)], arguments: &[&str]) -> (Run, TempDir) {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    (command(folder.path(), arguments, ""), folder)
}

fn command(folder: &Path, arguments: &[&str], input: &str) -> Run {
    let mut child = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_ringdove-check")))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A put that was acknowledged, and then a final state with or without it.
fn kept(there: bool) -> String {
    let shown = if there { r#"{"id":"w3"}"# } else { "" };
    [
        r#"{"type":"invoke","process":0,"f":"put","key":"k","id":"w3"}"#,
        r#"{"type":"ok","process":0,"f":"put","id":"w3","copies":2}"#,
        r#"{"type":"invoke","process":1,"f":"final","key":"k"}"#,
        &format!(r#"{{"type":"ok","process":1,"f":"final","value":[{shown}]}}"#),
    ]
    .join("\n")
}

const REGISTER: &str = "{:process 0, :type :invoke, :f :write, :value 1}
{:process 1, :type :invoke, :f :write, :value 1}
{:process 0, :type :ok, :f :write, :value 1}
{:process 1, :type :ok, :f :write, :value 1}
{:process 0, :type :invoke, :f :read, :value nil}
{:process 0, :type :ok, :f :read, :value 1}
";

#[test]
fn the_exit_code_says_what_was_found() {
    let (good, bad) = (kept(true), kept(false));
    let codes = [
        (vec![("a.jsonl", good.as_str())], 0),
        (vec![("a.jsonl", good.as_str()), ("b.jsonl", bad.as_str())], 1),
        (vec![("a.jsonl", good.as_str()), ("b.jsonl", "")], 2),
        (vec![("a.jsonl", bad.as_str()), ("b.jsonl", "{")], 3),
    ];
    for (files, code) in codes {
        let names: Vec<&str> = files.iter().map(|file| file.0).collect();
        let (run, _folder) = run(&files, &names);
        assert_eq!(run.code, code, "{names:?}: {}{}", run.out, run.err);
    }
    assert_eq!(run(&[], &["missing.jsonl"]).0.code, 3);
    assert_eq!(run(&[], &["--model", "stack", "a"]).0.code, 3);
    assert_eq!(run(&[], &["--help"]).0.code, 0);
}

#[test]
fn a_lost_write_is_told_in_words_and_as_json() {
    let bad = kept(false);
    let (said, folder) = run(&[("a.jsonl", &bad)], &["a.jsonl"]);
    assert!(
        said.out.contains("w3 (put by process 0 at index 0) was acknowledged at index 1"),
        "{}",
        said.out
    );
    assert!(said.out.contains("1 invalid"), "{}", said.out);
    let json = command(folder.path(), &["--json", "a.jsonl"], "");
    let report: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let durability = &report["checks"]["durability"];
    assert_eq!(durability["verdict"], "invalid");
    assert_eq!(durability["witness"]["operations"][0]["id"], "w3");
    assert_eq!(durability["witness"]["operations"][0]["complete"], 1);
    assert!(report["measured"]["staleness"].is_object(), "{report}");
}

#[test]
fn a_place_is_told_for_bad_input_and_the_other_files_are_judged() {
    let good = kept(true);
    let (run, _folder) =
        run(&[("a.jsonl", &good), ("b.jsonl", "\n{\"type\":\"ok\",}\n")], &["b.jsonl", "a.jsonl"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("b.jsonl: line 2, column"), "{}", run.err);
    assert!(run.out.contains("a.jsonl"), "{}", run.out);
}

#[test]
fn a_budget_that_runs_out_is_unknown_and_never_valid() {
    let (searched, folder) = run(&[("r.edn", REGISTER)], &["--model", "register", "r.edn"]);
    assert_eq!(searched.code, 0, "{}", searched.out);
    let cut = command(folder.path(), &["--model", "register", "--steps", "1", "r.edn"], "");
    assert_eq!(cut.code, 2, "{}", cut.out);
    let good = kept(true);
    let (memory, _folder) = run(&[("a.jsonl", &good)], &["--check", "frontier", "--memory", "0", "a.jsonl"]);
    assert_eq!(memory.code, 2, "{}", memory.out);
    assert!(memory.out.contains("more memory than the budget"), "{}", memory.out);
}

#[test]
fn a_check_that_judged_nothing_is_unknown_if_it_was_asked_for() {
    let good = kept(true);
    let (run, _folder) = run(&[("a.jsonl", &good)], &["--check", "counter", "a.jsonl"]);
    assert_eq!(run.code, 2, "{}", run.out);
}

#[test]
fn the_standard_input_is_read_in_the_format_that_is_named() {
    let folder = TempDir::new().unwrap();
    let run = command(folder.path(), &["--model", "register", "--format", "edn", "-"], REGISTER);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let run = command(folder.path(), &["--model", "register", "-"], REGISTER);
    assert_eq!(run.code, 3, "EDN is no JSON");
}

#[test]
fn the_page_and_the_curve_are_written_for_one_file() {
    let mut history = kept(false);
    history += "\n{\"type\":\"invoke\",\"process\":2,\"f\":\"get\",\"key\":\"k\",\"time\":5000}";
    history += "\n{\"type\":\"ok\",\"process\":2,\"f\":\"get\",\"value\":[{\"id\":\"w3\"}],\"time\":6000}";
    let arguments = ["--timeline", "out.html", "--visibility", "out.csv", "a.jsonl"];
    let (run, folder) = run(&[("a.jsonl", &history)], &arguments);
    assert_eq!(run.code, 1, "{}", run.out);
    let page = fs::read_to_string(folder.path().join("out.html")).unwrap();
    assert!(page.contains("put w3 of k") && page.contains("\"witnesses\":[{"), "{page}");
    let curve = fs::read_to_string(folder.path().join("out.csv")).unwrap();
    assert!(curve.starts_with("t_us,reads,visible,share\n"), "{curve}");
    let two = command(folder.path(), &["--timeline", "out.html", "a.jsonl", "a.jsonl"], "");
    assert_eq!(two.code, 3);
}
