//! Data in and out at the command line: `scan`, `import` and `export` as processes, with what they leave behind.

use std::path::Path;

use serde_json::Value;

use crate::program::{Program, free_addr, output, said};

/// A cluster of one node, and the address that the commands are given.
struct One {
    _node: Program,
    addr: String,
    dir: tempfile::TempDir,
}

impl One {
    fn start() -> One {
        let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
        let data = dir.path().join("n1").to_str().unwrap().to_owned();
        assert_eq!(said(&["init", "--dir", &data, "--new-cluster", "--client-addr", &addr]).0, Some(0));
        One { _node: Program::serve(&data, &[]), addr, dir }
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        output(&[&args[..1], &["--addr", &self.addr], &args[1..]].concat())
    }

    /// Exit code and standard output.
    fn told(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.run(args);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    fn put(&self, args: &[&str]) {
        let (code, words) = self.told(&[&["put"], args].concat());
        assert_eq!(code, Some(0), "{args:?}: {words}");
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn no_file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(path)).unwrap()
}

#[test]
fn a_scan_lists_a_range_in_order_with_siblings_under_their_key() {
    let one = One::start();
    for (key, value) in [("dove/1", "grey"), ("dove/2", "white"), ("dove/3", "brown"), ("wren", "small")] {
        one.put(&[key, value]);
    }
    one.put(&["--new-sibling", "dove/2", "mottled"]);
    assert_eq!(
        one.told(&["scan", "--prefix", "dove/", "--keys-only"]),
        (Some(0), "dove/1\ndove/2\ndove/3\n".to_owned())
    );
    let (code, words) = one.told(&["scan", "--keys-only", "--reverse", "--limit", "2"]);
    assert_eq!((code, words.as_str()), (Some(0), "wren\ndove/3\n"));
    assert_eq!(
        one.told(&["scan", "--from", "dove/2", "--to", "wren", "--after", "dove/2", "--keys-only"]).1,
        "dove/3\n"
    );
    let table = one.run(&["scan", "--prefix", "dove/"]);
    let shown = String::from_utf8(table.stdout).unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines.len() == 5 && lines[0].starts_with("KEY") && lines[3].starts_with("  and"), "{shown}");
    assert!(String::from_utf8(table.stderr).unwrap().contains("3 keys"));
    let (_, json) = one.told(&["scan", "--prefix", "dove/2", "--json"]);
    let line: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(line["values"].as_array().unwrap().len(), 2);
    assert!(line["context"].is_string());
    let (code, words) = said(&["scan", "--addr", &one.addr, "--from", "b", "--to", "a"]);
    assert!(code == Some(2) && words.contains("--from stands behind --to"), "{words}");
    assert_eq!(one.told(&["scan", "--prefix", "nothing"]), (Some(0), String::new()));
}

#[test]
fn an_import_of_tab_separated_lines_counts_each_outcome_and_keeps_what_it_rejects() {
    let one = One::start();
    let lines = "dove\tgrey\nno tab\nwren\tsmall\\tand brown\ntoo\tmany\ttabs\n";
    let file = one.file("birds.tsv", lines);
    let rejects = one.no_file("rejects.tsv");
    let (code, json) = one.told(&["import", &file, "--rejects", &rejects, "--json"]);
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(code, Some(1), "{told}");
    assert_eq!((&told["lines"], &told["written"]), (&4.into(), &2.into()), "{told}");
    assert_eq!(told["not_written"]["malformed"], 2, "{told}");
    assert_eq!(text(&rejects), "no tab\ntoo\tmany\ttabs\n");
    assert_eq!(one.run(&["get", "wren"]).stdout, b"small\tand brown");

    // A condition that does not hold is an outcome of its own, and the line is kept.
    let again = one.file("again.tsv", "dove\twhite\nowl\twhite\n");
    let second = one.no_file("second.tsv");
    let (code, json) = one.told(&["import", &again, "--if-absent", "--rejects", &second, "--json"]);
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &told["not_written"]["conflict"], &told["written"]), (Some(1), &1.into(), &1.into()));
    assert_eq!(text(&second), "dove\twhite\n");

    let good = one.file("good.tsv", "swan\twhite\n");
    assert_eq!(one.told(&["import", &good]).0, Some(0));
    let absent = said(&["import", &good, "--addr", "127.0.0.1:1", "--timeout", "300ms"]);
    assert_eq!(absent.0, Some(5), "{}", absent.1);
    assert_eq!(said(&["import", &one.no_file("nowhere.tsv"), "--addr", &one.addr]).0, Some(2));
}

#[test]
fn rejects_never_overwrite_a_file_unasked_and_never_the_one_that_is_read() {
    let one = One::start();
    let lines = "dove\tgrey\nno tab\n";
    let file = one.file("birds.tsv", lines);
    let kept = one.file("kept.tsv", "mine\n");
    let import =
        |more: &[&str]| said(&[&["import", "--addr", one.addr.as_str(), file.as_str()], more].concat());
    let (code, words) = import(&["--rejects", &kept]);
    assert!(code == Some(2) && words.contains("exists; --force replaces it"), "{words}");
    let link = one.no_file("link.tsv");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for same in [&file, &link] {
        for force in [&["--rejects", same][..], &["--rejects", same, "--force"]] {
            let (code, words) = import(force);
            assert_eq!(code, Some(2), "{words}");
            assert_eq!(text(&file), lines, "what is read is whole");
        }
    }
    assert_eq!(text(&kept), "mine\n");
    assert_eq!(said(&["get", "--addr", &one.addr, "dove"]).0, Some(3), "nothing was written");
    assert_eq!(import(&["--rejects", &kept, "--force"]).0, Some(1));
    assert_eq!(text(&kept), "no tab\n");
}

#[test]
fn an_export_of_json_lines_keeps_siblings_and_reads_back_equal() {
    let one = One::start();
    one.put(&["dove", "grey"]);
    one.put(&["--new-sibling", "dove", "white"]);
    one.put(&["--content-type", "text/plain", "--meta", "by=me", "wren", "small"]);
    let file = one.no_file("birds.jsonl");
    let (code, words) = said(&["export", "--addr", &one.addr, &file]);
    assert!(code == Some(0) && words.contains("2 keys") && words.contains("1 with siblings"), "{words}");
    let exported: Vec<Value> = text(&file).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let values = |line: &Value| {
        let siblings = line["siblings"].as_array().unwrap().iter();
        let mut values: Vec<String> = siblings.map(|one| one["value"].as_str().unwrap().to_owned()).collect();
        values.sort();
        values
    };
    assert_eq!(
        (exported[0]["key"].as_str(), values(&exported[0])),
        (Some("dove"), vec!["grey".to_owned(), "white".to_owned()])
    );
    assert_eq!((&exported[1]["value"], &exported[1]["meta"]["by"]), (&"small".into(), &"me".into()));

    let (code, words) = said(&["export", "--addr", &one.addr, &file]);
    assert!(code == Some(2) && words.contains("--force"), "{words}");
    // Tab-separated lines have one value each: what has several is left out, and the exit code says so.
    let (code, words) = said(&["export", "--addr", &one.addr, "--format", "tsv"]);
    assert!(code == Some(4) && words.contains("wren\tsmall") && !words.contains("grey"), "{words}");

    let other = One::start();
    assert_eq!(other.told(&["import", &file]).0, Some(0));
    let again = other.no_file("again.jsonl");
    let (code, words) = said(&["export", "--addr", &other.addr, &again]);
    assert_eq!(code, Some(0), "{words}");
    let back: Vec<Value> = text(&again).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values(&back[0]), values(&exported[0]));
    assert_eq!(back[1], exported[1]);
}
