//! What an operator can set, and where each setting was set.
//!
//! ```text
//!   flags ─▶ environment ─▶ file ─▶ defaults        the first that says something wins;
//!                                                   what a later one says is checked all the same
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`table`] | every setting: name, range, meaning, place in the structs that the node takes |
//! | [`value`] | times, sizes, addresses as people write them |
//! | `file` | TOML, with the line of each entry |
//!
//! Invariants
//! - A wrong setting is an error, wherever it stands and whether or not another one wins over it: a file with a mistake
//!   is mended when it is read first, not on the day when a variable goes away.
//! - All mistakes are told at once, each with its place, its reason and what would be right.
//! - What `ringdove config` prints is a file that sets the same.
//!
//! Absent: reading files and the environment (that is `cli`), settings that change while a node runs, and what a
//! cluster agreed on for ever or by its layout: N, Q, members and their advertised addresses. Compiled out under the
//! simulator: nobody sets anything there but by value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::gateway::GatewayConfig;
use crate::node::NodeConfig;

mod file;
pub mod table;
pub mod value;

use table::SETTINGS;

/// Where a node keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageKind {
    /// In the log of its data directory.
    Log,
    /// The same engine on a disk in memory: for tests, and for caches whose loss costs nothing.
    Memory,
}

impl StorageKind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            StorageKind::Log => "log",
            StorageKind::Memory => "memory",
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// An object a line.
    Json,
}

impl LogFormat {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Pretty => "pretty",
            LogFormat::Json => "json",
        }
    }
}

/// All settings of a node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data directory; a node needs one.
    pub dir: Option<PathBuf>,
    /// Where its data is kept.
    pub storage: StorageKind,
    /// Client port, when it is not the advertised one.
    pub listen_client: Option<String>,
    /// Peer port, when it is not the advertised one.
    pub listen_peer: Option<String>,
    /// REST gateway; none without it.
    pub listen_rest: Option<String>,
    /// `tracing` filter directives.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What the node takes; its `dir` is filled in from `dir` here.
    pub node: NodeConfig,
    /// What the REST gateway takes; its `drain` is the node's.
    pub gateway: GatewayConfig,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            dir: None,
            storage: StorageKind::Log,
            listen_client: None,
            listen_peer: None,
            listen_rest: None,
            log: "ringdove=info".to_owned(),
            log_format: LogFormat::Pretty,
            node: NodeConfig::new(PathBuf::new()),
            gateway: GatewayConfig::default(),
        }
    }
}

/// Where a setting was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    Default,
    /// In the file, at this line.
    File {
        /// The file's name as it was given.
        name: String,
        /// Counted from 1.
        line: usize,
    },
    /// By this variable.
    Env(String),
    /// By this flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { name, line } => write!(f, "{name}:{line}"),
            Source::Env(name) | Source::Flag(name) => f.write_str(name),
        }
    }
}

/// A setting that cannot be, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was set.
    pub source: Source,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.reason)
    }
}

/// What was said where, unread.
pub struct Layers<'a> {
    /// The settings file: its name and its text.
    pub file: Option<(&'a str, &'a str)>,
    /// The environment. A variable that is empty counts as not set.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The flags that were given, by the name of the setting.
    pub flags: &'a BTreeMap<&'static str, String>,
}

/// The settings that are in force.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The settings.
    pub settings: Settings,
    /// Where each was set, in the order of [`SETTINGS`].
    sources: Vec<Source>,
}

/// Reads all layers.
///
/// # Errors
/// Every setting that cannot be, in the order of the layers: file, environment, flags, and then what does not fit
/// together.
pub fn load(layers: &Layers<'_>) -> Result<Effective, Vec<Problem>> {
    let mut effective =
        Effective { settings: Settings::default(), sources: vec![Source::Default; SETTINGS.len()] };
    let mut problems = Vec::new();
    if let Some((name, text)) = layers.file {
        let source = |line| Source::File { name: name.to_owned(), line };
        let (entries, faults) = file::read(text);
        let faults = faults.into_iter();
        problems.extend(faults.map(|fault| Problem { source: source(fault.line), reason: fault.reason }));
        for entry in entries {
            effective.set(entry.setting, &entry.text, source(entry.line), &mut problems);
        }
        problems.sort_by_key(|problem| match problem.source {
            Source::File { line, .. } => line,
            _ => 0,
        });
    }
    for (at, setting) in SETTINGS.iter().enumerate() {
        let name = setting.env();
        let Some(text) = (layers.env)(&name).filter(|text| !text.is_empty()) else { continue };
        match text.into_string() {
            Ok(text) => effective.set(at, &text, Source::Env(name), &mut problems),
            Err(text) => {
                let reason = format!("{} is not UTF-8", text.display());
                problems.push(Problem { source: Source::Env(name), reason });
            }
        }
    }
    for (at, setting) in SETTINGS.iter().enumerate() {
        if let Some(text) = layers.flags.get(setting.name) {
            effective.set(at, text, Source::Flag(setting.flag()), &mut problems);
        }
    }
    if problems.is_empty() {
        effective.check(&mut problems);
    }
    if problems.is_empty() { Ok(effective) } else { Err(problems) }
}

impl Effective {
    fn set(&mut self, at: usize, text: &str, source: Source, problems: &mut Vec<Problem>) {
        let setting = &SETTINGS[at];
        match setting.kind.parse(text) {
            Ok(value) => {
                setting.set(&mut self.settings, value);
                self.sources[at] = source;
            }
            Err(reason) => problems.push(Problem { source, reason: format!("{}: {reason}", setting.name) }),
        }
    }

    /// What is possible alone and not together.
    fn check(&self, problems: &mut Vec<Problem>) {
        const ROOM: usize = 1 << 20;
        let (node, gateway) = (&self.settings.node, &self.settings.gateway);
        let rules = [
            (node.timeout <= node.timeout_max, "timeout", "at most", "timeout_max"),
            (node.hint_after < node.timeout, "hint_after", "below", "timeout"),
            (node.hedge_after < node.timeout, "hedge_after", "below", "timeout"),
            (node.value_len_max < node.caps.record_bytes_max, "value_len_max", "below", "record_bytes_max"),
            (
                node.limits.idle_after.is_none_or(|idle| node.limits.stall_after <= idle),
                "connection_stall_max",
                "at most",
                "connection_idle_max",
            ),
            (gateway.stall_after <= gateway.body_time_max, "rest_stall_max", "at most", "rest_body_time_max"),
            (
                node.caps.record_bytes_max + ROOM <= node.limits.frame_len_max,
                "record_bytes_max",
                "at least 1MiB below",
                "frame_len_max",
            ),
        ];
        for (_, name, relation, other) in rules.into_iter().filter(|(holds, ..)| !holds) {
            let (value, source) = self.shown(name);
            let (other_value, other_source) = self.shown(other);
            let reason = format!(
                "{name} is {value} and must be {relation} {other}, which is {other_value} ({other_source})"
            );
            problems.push(Problem { source, reason });
        }
    }

    fn shown(&self, name: &str) -> (String, Source) {
        let at = table::find(name).expect("a setting of the table");
        let value = SETTINGS[at].get(&self.settings);
        (value.map_or_else(String::new, |value| SETTINGS[at].kind.text(&value)), self.sources[at].clone())
    }

    /// Where the setting of this name was set.
    pub fn source(&self, name: &str) -> &Source {
        &self.sources[table::find(name).expect("a setting of the table")]
    }

    /// The settings as a file that sets the same; where each comes from stands behind it.
    pub fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        for (setting, source) in SETTINGS.iter().zip(&self.sources) {
            lines.push(match setting.get(&self.settings) {
                Some(value) => {
                    (format!("{} = {}", setting.name, setting.kind.toml(&value)), source.to_string())
                }
                None => (format!("# {} is not set", setting.name), setting.unset.to_owned()),
            });
        }
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(48);
        lines.iter().map(|(line, source)| format!("{line:width$}  # {source}\n")).collect()
    }
}

#[cfg(test)]
mod tests;
