//! Holds two rules over the sources that the compiler does not: which module may import which, and which calls
//! have no place in code that must run under the simulator.
//!
//! The checker reads tokens, not text: comments and strings cannot fool it, and the inside of a macro call
//! counts like any code. It follows `use` trees, `super` and inline modules. It does not resolve names: a type
//! brought in under another name escapes it, and is left to clippy's bans (clippy.toml).

use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What each top-level module may import, as path prefixes. A module that is missing here fails the test.
const IMPORTS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("sync", &[]),
    ("measure", &[]),
    ("error", &["types"]),
    ("observe", &["types", "dynamo::version", "storage"]),
    ("dynamo", &["types", "observe"]),
    ("io", &[]),
    ("net", &["observe", "types", "sync", "dynamo", "io"]),
    ("storage", &["observe", "types", "sync", "measure", "dynamo", "io", "net::codec", "net::envelope"]),
    ("node", &["observe", "types", "sync", "measure", "dynamo", "storage", "net", "io", "error"]),
    ("server", &["observe", "node", "net", "types", "dynamo", "io", "error"]),
    ("gateway", &["node", "measure", "net", "types", "dynamo", "io", "error"]),
    // It fills in the structs that the layers below take; nothing below knows where their values come from.
    ("config", &["types", "node", "gateway", "net::codec", "net::envelope", "net::message", "error"]),
    (
        "client",
        &[
            "types",
            "observe",
            "sync",
            "net",
            "io",
            "dynamo::version",
            "dynamo::layout",
            "dynamo::preference",
            "error",
        ],
    ),
    ("cli", &["*"]),
    ("main", &["*"]),
    ("lib", &["*"]),
];

/// Modules that run under the simulator as they are.
const NODE_CODE: &[&str] = &["sync", "measure", "dynamo", "storage", "net", "node", "server", "client"];

/// What node code does not do: a name, or a path any part of which is these names in a row.
const BANNED_IN_NODE_CODE: &[&str] = &[
    "HashMap",
    "HashSet",
    "RandomState",
    "JoinSet",
    "into_split",
    "timeout_at",
    "spawn_blocking",
    "block_in_place",
    "Instant::now",
    "SystemTime::now",
    "rand::rng",
    "rand::random",
    "tokio::fs",
    "sync::watch",
];

/// What the pure core does not do besides.
const BANNED_IN_THE_CORE: &[&str] = &[
    "tokio",
    "async",
    "await",
    "time::Instant",
    "time::SystemTime",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
];

/// The file where bincode may appear.
const CODEC: &str = "src/net/codec.rs";

/// A token and where it stands.
struct Token {
    text: String,
    line: usize,
}

/// The tokens in a row, brackets included, `::` as one token, strings as `"`.
fn tokens_of(text: &str) -> Result<Vec<Token>, String> {
    fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
        for tree in stream {
            let line = tree.span().start().line;
            let mut push = |text: &str, line| tokens.push(Token { text: text.to_owned(), line });
            match tree {
                TokenTree::Group(group) => {
                    let (open, close) = match group.delimiter() {
                        Delimiter::Parenthesis => ("(", ")"),
                        Delimiter::Brace => ("{", "}"),
                        Delimiter::Bracket => ("[", "]"),
                        Delimiter::None => ("", ""),
                    };
                    push(open, line);
                    let end = group.span_close().start().line;
                    flatten(group.stream(), tokens);
                    tokens.push(Token { text: close.to_owned(), line: end });
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => match tokens.last_mut() {
                    Some(last) if last.text == ":" && last.line == line => last.text.push(':'),
                    _ => tokens.push(Token { text: ":".to_owned(), line }),
                },
                TokenTree::Punct(punct) => push(&punct.as_char().to_string(), line),
                TokenTree::Ident(ident) => push(&ident.to_string(), line),
                TokenTree::Literal(_) => push("\"", line),
            }
        }
    }
    let stream: TokenStream = text.parse().map_err(|error| format!("is not Rust: {error}"))?;
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    Ok(tokens)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The index behind the bracket that closes the one at `open`.
fn behind(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "{" | "[" => depth += 1,
            ")" | "}" | "]" => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// All paths of the tree that starts at `at`, each with its line; `prefix` is what came before.
fn expand(tokens: &[Token], at: usize, prefix: &[String], found: &mut Vec<(Vec<String>, usize)>) {
    let Some(token) = tokens.get(at) else { return };
    if token.text == "{" {
        let end = behind(tokens, at) - 1;
        let mut item = at + 1;
        let mut fresh = true;
        while item < end {
            match tokens[item].text.as_str() {
                "," => {
                    fresh = true;
                    item += 1;
                }
                _ if fresh => {
                    fresh = false;
                    expand(tokens, item, prefix, found);
                    // The names up to a group stand before it; the group is skipped whole.
                    while item < end && tokens[item].text != "," {
                        item = if tokens[item].text == "{" { behind(tokens, item) } else { item + 1 };
                    }
                }
                _ => item += 1,
            }
        }
        return;
    }
    let mut path = prefix.to_vec();
    // `a::{self}` is `a`.
    if token.text != "self" || prefix.is_empty() {
        path.push(token.text.clone());
    }
    let goes_on = tokens.get(at + 1).is_some_and(|next| next.text == "::")
        && tokens.get(at + 2).is_some_and(|next| is_name(&next.text) || next.text == "{" || next.text == "*");
    if goes_on {
        expand(tokens, at + 2, &path, found);
    } else {
        found.push((path, token.line));
    }
}

/// A stretch of code inside an inline module.
struct Inline {
    from: usize,
    to: usize,
    name: String,
    test: bool,
}

/// The inline modules, outer ones first.
fn inline_modules(tokens: &[Token]) -> Vec<Inline> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    let mut test = false;
    for at in 0..tokens.len() {
        if text(at) == "#" && text(at + 1) == "[" {
            let end = behind(tokens, at + 1);
            let attribute: Vec<&str> = (at + 2..end - 1).map(text).collect();
            test |= attribute == ["cfg", "(", "test", ")"]
                || attribute.starts_with(&["cfg", "(", "all", "(", "test"]);
        } else if text(at) == "mod" && text(at + 2) == "{" {
            let to = behind(tokens, at + 2);
            found.push(Inline { from: at + 3, to, name: text(at + 1).to_owned(), test });
            test = false;
        } else if matches!(text(at), "fn" | "struct" | "enum" | "impl" | "use" | "mod" | ";") {
            test = false;
        }
    }
    found
}

/// The module of a file in `src/`, from its path.
fn module_of(path: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    if matches!(inside, "lib" | "main") { Vec::new() } else { module }
}

fn row(path: &[String], names: &str) -> bool {
    let names: Vec<&str> = names.split("::").collect();
    path.windows(names.len()).any(|part| part.iter().zip(&names).all(|(a, b)| a == b))
}

/// What is wrong with the file at `path` (from the workspace's root, with `/`).
fn violations(path: &str, text: &str) -> Vec<String> {
    let tokens = match tokens_of(text) {
        Ok(tokens) => tokens,
        Err(error) => return vec![format!("{path} {error}")],
    };
    let mut wrong = Vec::new();
    let in_src = path.starts_with("src/");
    let in_sim = path.starts_with("sim/");
    let top = path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default();
    let rule = IMPORTS.iter().find(|(name, _)| *name == top);
    if in_src && rule.is_none() {
        wrong.push(format!(
            "{path}: no import rule for `{top}`: name it in tests/sources.rs and in the design"
        ));
    }
    if !in_src && !in_sim && !path.starts_with("jepsen-like-checks/") {
        wrong.push(format!("{path}: no rule for this place"));
    }

    let module = module_of(path);
    let inlines = inline_modules(&tokens);
    let is_test_file = path.ends_with("/tests.rs") || path.contains("/tests/");
    let is_test = |at: usize| is_test_file || inlines.iter().any(|i| i.test && (i.from..i.to).contains(&at));
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());

    // Code of the simulator's cfg, allowed in lib.rs, main.rs and for tests.
    let mut excused = Vec::new();
    for at in 0..tokens.len() {
        if matches!(text(at), "cfg" | "cfg_attr") {
            let open = if text(at + 1) == "!" { at + 2 } else { at + 1 };
            let of_a_test = text(open + 1) == "all" && text(open + 3) == "test";
            // `observe` is the seam through which the simulator sees into a node, and exists for nothing else.
            if text(open) == "(" && (of_a_test || matches!(top, "lib" | "main" | "observe")) {
                excused.push(open..behind(&tokens, open));
            }
        }
    }

    for (at, token) in tokens.iter().enumerate() {
        let line = token.line;
        let mut report = |what: String| wrong.push(format!("{path}:{line}: {what}"));
        if in_src && token.text == "madsim" && !excused.iter().any(|range| range.contains(&at)) {
            report("`madsim` outside lib.rs, main.rs, observe.rs and cfg(all(test, …))".to_owned());
        }
        if (in_src || in_sim)
            && token.text == "select"
            && text(at + 1) == "!"
            && (text(at + 3), text(at + 4)) != ("biased", ";")
        {
            report("`select!` without `biased;` draws its branch from the system's entropy".to_owned());
        }
        if !is_name(&token.text) || (at > 0 && text(at - 1) == "::") {
            continue;
        }

        let mut paths = Vec::new();
        expand(&tokens, at, &[], &mut paths);
        for (used, line) in paths {
            let shown = used.join("::");
            let mut report = |what: &str| wrong.push(format!("{path}:{line}: `{shown}` {what}"));
            if row(&used, "bincode") && (in_src || in_sim) && path != CODEC {
                report("belongs to net/codec.rs alone");
            }
            if path.starts_with("jepsen-like-checks/") && matches!(used[0].as_str(), "ringdove" | "sim") {
                report("must stay unknown to the checks");
            }
            if !in_src {
                continue;
            }
            if top != "io" && (row(&used, "thread::spawn") || row(&used, "std::thread")) {
                report("needs threads, which only io has");
            }
            if NODE_CODE.contains(&top) && BANNED_IN_NODE_CODE.iter().any(|banned| row(&used, banned)) {
                report("has no place in node code");
            }
            if top == "dynamo" {
                let random = row(&used, "rand") && !is_test(at);
                if random || BANNED_IN_THE_CORE.iter().any(|banned| row(&used, banned)) {
                    report("has no place in the pure core");
                }
            }

            // Imports of our own modules.
            let mut base = match used[0].as_str() {
                "crate" if used.len() > 1 => Vec::new(),
                "crate" if text(at + 1) == "as" => vec!["*".to_owned()],
                "super" | "self" if used.len() > 1 => {
                    let inner =
                        inlines.iter().filter(|i| (i.from..i.to).contains(&at)).map(|i| i.name.clone());
                    module.iter().cloned().chain(inner).collect()
                }
                _ => continue,
            };
            for part in used.iter().skip(usize::from(used[0] != "super")) {
                if part == "super" {
                    base.pop();
                } else {
                    base.push(part.clone());
                }
            }
            let Some((_, allowed)) = rule else { continue };
            let own = base.first().is_some_and(|first| first == top);
            // Tests of the core look at values in the form in which they travel.
            let for_tests: &[&str] = if is_test(at) { &["net::codec"] } else { &[] };
            let permitted = allowed.iter().chain(for_tests).any(|prefix| {
                *prefix == "*"
                    || prefix
                        .split("::")
                        .zip(base.iter().map(Some).chain([None].into_iter().cycle()))
                        .all(|(want, have)| have.is_some_and(|have| have == want))
            });
            if !own && !permitted {
                report("is not for this module to import");
            }
        }
    }
    wrong.dedup();
    wrong
}

fn visit(root: &Path, dir: &str, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root.join(dir)) else { return };
    for entry in entries {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("{dir}/{name}");
        if root.join(&path).is_dir() {
            visit(root, &path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

#[test]
#[allow(clippy::disallowed_methods)] // a test of files on the real disk
fn the_sources_keep_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "sim", "jepsen-like-checks"] {
        visit(root, dir, &mut files);
    }
    files.sort();
    for known in
        ["src/lib.rs", "src/types.rs", "src/io/net.rs", "sim/src/net.rs", "jepsen-like-checks/src/lib.rs"]
    {
        assert!(files.iter().any(|file| file == known), "{known} was not visited");
    }
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|file| violations(file, &fs::read_to_string(root.join(file)).unwrap()))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Fails unless exactly the texts marked `true` are violations.
fn judge(path: &str, cases: &[(bool, &str)]) {
    for (bad, text) in cases {
        let found = violations(path, text);
        assert_eq!(*bad, !found.is_empty(), "{path}: {text}\nfound: {found:?}");
    }
}

#[test]
fn imports_are_caught_in_every_form() {
    judge(
        "src/dynamo/ring.rs",
        &[
            (
                false,
                "use crate::types::{NodeId, PartitionId}; use super::layout::Layout; use self::inner::X;",
            ),
            (true, "use crate::node::Node;"),
            (true, "use crate::{types::Key, node::Node};"),
            (true, "use crate::{types::{Key, Value}, io::{self, Disk}};"),
            (true, "use super::super::io::Disk;"),
            (true, "use super::{version::Dot, super::storage};"),
            (true, "fn f() -> crate::storage::Engine { todo() }"),
            (true, "fn f() { log!(crate::net::frame::LEN) }"),
            (true, "use crate::*;"),
            (true, "use crate as ours;"),
            (false, "// crate::node::Node\n/// [`crate::node`]\nconst S: &str = \"crate::node::x\";"),
            (false, "mod tests { use super::*; use super::super::version::Dot; }"),
            (true, "mod tests { use super::super::super::io::Disk; }"),
            (false, "pub(crate) fn f() {} pub(in crate::dynamo) fn g() {}"),
        ],
    );
    judge(
        "src/types.rs",
        &[(false, "use bytes::Bytes;"), (true, "use crate::dynamo::ring;"), (true, "use super::io;")],
    );
    judge(
        "src/io/mod.rs",
        &[(false, "pub use disk::Disk; use super::io::net;"), (true, "use crate::types::Key;")],
    );
    judge(
        "src/net/frame.rs",
        &[(false, "use crate::{dynamo, io, types};"), (true, "use crate::storage::Log;")],
    );
    judge(
        "src/storage/log.rs",
        &[
            (false, "use crate::net::{codec, envelope::Head}; use crate::io::Disk;"),
            (true, "use crate::net::{codec, peer};"),
            (true, "use crate::net;"),
            (true, "use crate::node::Node;"),
        ],
    );
    judge(
        "src/node/mod.rs",
        &[
            (false, "use crate::{error, storage};"),
            (true, "use crate::server::S;"),
            (true, "use crate::config::Settings;"),
        ],
    );
    judge("src/server.rs", &[(false, "use crate::node::Node;"), (true, "use crate::storage::Log;")]);
    judge("src/gateway/mod.rs", &[(false, "use crate::node::Node;"), (true, "use crate::client::C;")]);
    judge(
        "src/client/mod.rs",
        &[
            (false, "use crate::dynamo::{version::Token, layout::Layout};"),
            (true, "use crate::dynamo::put::Put;"),
        ],
    );
    judge("src/error.rs", &[(true, "use crate::node::Node;")]);
    judge("src/config/mod.rs", &[(false, "use crate::node::NodeConfig;"), (true, "use crate::cli::serve;")]);
    judge("src/cli/mod.rs", &[(false, "use crate::gateway::serve;")]);
    judge(
        "jepsen-like-checks/src/lib.rs",
        &[(true, "use ringdove::types::Key;"), (true, "sim::run::simulate()")],
    );
    judge("src/newcomer.rs", &[(true, "")]);
    judge("elsewhere/x.rs", &[(true, "")]);
}

#[test]
fn the_cfg_of_the_simulator_stays_in_lib_and_main() {
    let cases = [
        (true, "#[cfg(madsim)] mod x;"),
        (true, "#[cfg(not(madsim))] use a::b;"),
        (true, "fn f() { if cfg!(madsim) {} }"),
        (true, "#[cfg_attr(madsim, allow(unused))] fn f() {}"),
        (true, "#[cfg(any(test, madsim))] mod x;"),
        (true, "use madsim::task;"),
        (false, "#[cfg(all(test, not(madsim)))] mod tests { }"),
        (false, "// cfg(madsim)\nconst S: &str = \"madsim\";"),
    ];
    judge("src/node/mod.rs", &cases);
    judge("src/io/net.rs", &cases);
    judge("src/lib.rs", &[(false, "#[cfg(not(madsim))] pub mod gateway;"), (true, "use madsim::task;")]);
    judge("src/main.rs", &[(false, "#[cfg(madsim)] fn main() {}")]);
    judge("src/observe.rs", &[(false, "#[cfg(madsim)] fn f() {}"), (true, "fn f() { madsim::f() }")]);
    judge("sim/src/net.rs", &[(false, "use madsim::task;")]);
}

#[test]
fn an_unbiased_select_is_caught() {
    let cases = [
        (true, "async fn f() { tokio::select! { _ = a => {} } }"),
        (true, "async fn f() { select! {} }"),
        (false, "async fn f() { tokio::select! { biased; _ = a => {} } }"),
    ];
    for path in ["src/node/mod.rs", "src/net/peer.rs", "src/storage/log.rs", "sim/src/run.rs"] {
        judge(path, &cases);
    }
}

#[test]
fn banned_calls_are_caught_in_node_code() {
    for top in NODE_CODE {
        judge(
            &format!("src/{top}/x.rs"),
            &[
                (true, "use std::collections::HashMap;"),
                (true, "use std::collections::{BTreeMap, HashSet};"),
                (true, "fn f() { std::thread::spawn(g); }"),
                (true, "use std::thread; fn f() { thread::spawn(g); }"),
                (true, "fn f() { Instant::now() }"),
                (true, "fn f() { log!(std::time::SystemTime::now()) }"),
                (true, "fn f() { rand::rng() }"),
                (true, "use tokio::task::JoinSet;"),
                (true, "fn f() { s.into_split() }"),
                (true, "fn f() { tokio::time::timeout_at(a, b) }"),
                (true, "fn f() { tokio::task::spawn_blocking(g) }"),
                (true, "use tokio::{fs, net};"),
                (false, "use std::collections::BTreeMap; // HashMap, rand::rng()"),
            ],
        );
    }
    judge("src/io/disk.rs", &[(false, "use std::thread; fn f() { thread::spawn(g); }")]);
    judge(
        "src/cli/bench.rs",
        &[(false, "use std::collections::HashMap;"), (true, "fn f() { std::thread::spawn(g); }")],
    );
}

#[test]
fn the_core_is_pure() {
    judge(
        "src/dynamo/get.rs",
        &[
            (true, "use tokio::sync::mpsc;"),
            (true, "async fn f() {}"),
            (true, "use rand::Rng;"),
            (true, "use std::time::{Duration, Instant};"),
            (true, "use std::time::SystemTime;"),
            (true, "use std::fs;"),
            (true, "use std::{fmt, net::SocketAddr};"),
            (false, "use std::time::Duration;"),
            (false, "#[cfg(test)] mod tests { use rand::Rng; }"),
            (true, "#[cfg(test)] mod tests { use tokio::sync::mpsc; }"),
            (true, "#[cfg(test)] fn f() {} mod x { use rand::Rng; }"),
        ],
    );
    judge("src/dynamo/get/tests.rs", &[(false, "use rand::Rng;")]);
    judge("src/net/peer.rs", &[(false, "async fn f() { tokio::task::yield_now().await }")]);
}

#[test]
fn bincode_stays_in_the_codec() {
    judge("src/net/codec.rs", &[(false, "use bincode::config;")]);
    judge(
        "src/storage/log.rs",
        &[(true, "use bincode::config;"), (true, "#[derive(bincode::Encode)] struct S;")],
    );
    judge("sim/src/net.rs", &[(true, "use bincode::config;")]);
}

/// The names that a macro is called with in node code, each as often as it stands there.
fn names_given_to(mac: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    visit(root, "src", &mut files);
    let mut names = Vec::new();
    for file in files.iter().filter(|file| *file != "src/observe.rs") {
        let text = fs::read_to_string(root.join(file)).unwrap();
        for call in text.split(&format!("{mac}!(\"")).skip(1) {
            names.push(call.split('"').next().unwrap().to_owned());
        }
    }
    names.sort();
    names
}

#[test]
fn every_named_place_stands_in_the_list_and_once_in_the_code() {
    assert_eq!(names_given_to("point"), ringdove::observe::POINTS);
    assert_eq!(names_given_to("buggify"), ringdove::observe::SITES);
}
