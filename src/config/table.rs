//! The table of settings. Flags, environment variables, the file's keys, `ringdove config`, the help texts and the
//! table in docs/OPERATIONS.md all come from it; defaults come from the structs that the node takes.

use std::path::PathBuf;
use std::time::Duration;

use super::value::{Kind, Value, durability_of, durability_text};
use super::{LogFormat, Settings, StorageKind};
use crate::net::codec::BODY_LEN_MAX;
use crate::net::envelope::FRAME_LEN_MAX;

/// One setting.
pub struct Setting {
    /// Its key in the file. The flag is `--` with dashes for underscores, the variable `RINGDOVE_` in capitals.
    pub name: &'static str,
    /// What it takes and in which range.
    pub kind: Kind,
    /// What it means. Plain text that also stands in a Markdown table.
    pub doc: &'static str,
    /// What happens when it is not set, for a setting without a default value.
    pub unset: &'static str,
    get: fn(&Settings) -> Option<Value>,
    set: fn(&mut Settings, Value),
}

impl Setting {
    /// The flag, with its dashes.
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// The environment variable.
    pub fn env(&self) -> String {
        format!("RINGDOVE_{}", self.name.to_ascii_uppercase())
    }

    /// Its value; none when it is not set and has no default.
    pub fn get(&self, settings: &Settings) -> Option<Value> {
        (self.get)(settings)
    }

    /// Puts a value, which [`Kind::parse`] of this setting gave, where it belongs.
    pub fn set(&self, settings: &mut Settings, value: Value) {
        (self.set)(settings, value);
    }

    /// The default in words.
    pub fn default(&self) -> String {
        match self.get(&Settings::default()) {
            Some(value) => self.kind.text(&value),
            None => self.unset.to_owned(),
        }
    }
}

/// The setting of this name.
pub fn find(name: &str) -> Option<usize> {
    SETTINGS.iter().position(|setting| setting.name == name)
}

/// The table as Markdown, for docs/OPERATIONS.md.
pub fn markdown() -> String {
    let mut table = String::from("| setting | default | range | meaning |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let (name, default, range, doc) =
            (setting.name, setting.default(), setting.kind.range(), setting.doc);
        table.push_str(&format!("| `{name}` | {default} | {range} | {doc} |\n"));
    }
    table
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// A record travels in one frame together with its key.
const RECORD_MAX: u64 = BODY_LEN_MAX as u64 - MIB;

/// One row: where a setting of this type stands.
macro_rules! row {
    ($name:ident, $kind:expr, time $($field:ident).+, $doc:literal) => {
        row!(@ $name, $kind, $doc, "",
            |settings| Some(Value::Time(settings.$($field).+)),
            |settings, value| if let Value::Time(time) = value { settings.$($field).+ = time })
    };
    ($name:ident, $kind:expr, number $($field:ident).+, $doc:literal) => {
        row!(@ $name, $kind, $doc, "",
            |settings| Some(Value::Number(u64::try_from(settings.$($field).+).expect("a setting fits 64 bits"))),
            |settings, value| if let Value::Number(number) = value {
                settings.$($field).+ = number.try_into().expect("checked against a range that fits");
            })
    };
    ($name:ident, $kind:expr, decimal $($field:ident).+, $doc:literal) => {
        row!(@ $name, $kind, $doc, "",
            |settings| Some(Value::Number(tenths_of(settings.$($field).+))),
            |settings, value| if let Value::Number(tenths) = value {
                settings.$($field).+ = of_tenths(tenths);
            })
    };
    ($name:ident, $kind:expr, option $($field:ident).+, $doc:literal, $unset:literal) => {
        row!(@ $name, $kind, $doc, $unset,
            |settings| settings.$($field).+.clone().map(Value::Text),
            |settings, value| if let Value::Text(text) = value { settings.$($field).+ = Some(text) })
    };
    (@ $name:ident, $kind:expr, $doc:literal, $unset:literal, $get:expr, $set:expr) => {
        Setting { name: stringify!($name), kind: $kind, doc: $doc, unset: $unset, get: $get, set: $set }
    };
}

const fn time(min: Duration, max: Duration) -> Kind {
    Kind::Time { min, max }
}

const fn size(min: u64, max: u64) -> Kind {
    Kind::Size { min, max }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

/// `min` and `max` in tenths.
const fn decimal(min: u64, max: u64) -> Kind {
    Kind::Decimal { min, max }
}

fn tenths_of(number: f64) -> u64 {
    // Settings are small, and never negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let tenths = (number * 10.0).round() as u64;
    tenths
}

fn of_tenths(tenths: u64) -> f64 {
    f64::from(u32::try_from(tenths).expect("checked against a range that fits")) / 10.0
}

/// Every setting, in the order in which they are shown.
pub static SETTINGS: &[Setting] = &[
    row!(@ dir, Kind::Path, "The node's data directory, made by `ringdove init`.", "none, must be given",
        |settings| settings.dir.as_ref().map(|dir| Value::Text(dir.display().to_string())),
        |settings, value| if let Value::Text(dir) = value { settings.dir = Some(PathBuf::from(dir)) }),
    row!(@ storage, Kind::Choice(&["log", "memory"]),
    "Where data is kept: `log`, in the data directory; `memory`, nowhere: all is gone when the process ends.",
    "",
    |settings| Some(Value::Text(settings.storage.name().to_owned())),
    |settings, value| settings.storage = match value {
        Value::Text(word) if word == "memory" => StorageKind::Memory,
        _ => StorageKind::Log,
    }),
    row!(listen_client, Kind::Address, option listen_client,
        "Where the node listens for clients, when that is not the address that the layout advertises.",
        "as in the layout"),
    row!(listen_peer, Kind::Address, option listen_peer,
        "Where the node listens for other nodes, when that is not the address that the layout advertises.",
        "as in the layout"),
    row!(listen_rest, Kind::Address, option listen_rest, "Where the REST gateway listens.", "no gateway"),
    row!(@ log, Kind::Filter, "What is logged on standard error, like `ringdove=debug`.", "",
        |settings| Some(Value::Text(settings.log.clone())),
        |settings, value| if let Value::Text(filter) = value { settings.log = filter }),
    row!(@ log_format, Kind::Choice(&["pretty", "json"]),
    "How: `pretty`, lines for people; `json`, an object a line.", "",
    |settings| Some(Value::Text(settings.log_format.name().to_owned())),
    |settings, value| settings.log_format = match value {
        Value::Text(word) if word == "json" => LogFormat::Json,
        _ => LogFormat::Pretty,
    }),
    row!(timeout, time(MS.saturating_mul(10), HOUR), time node.timeout,
        "How long a request may take when its sender does not say."),
    row!(timeout_max, time(MS.saturating_mul(10), HOUR), time node.timeout_max,
        "The longest time that a request may ask for. At least `timeout`."),
    row!(hint_after, time(MS, MINUTE), time node.hint_after,
        "How long a primary may be silent before a fallback takes its copy of a write. Below `timeout`."),
    row!(hedge_after, time(MS, MINUTE), time node.hedge_after,
        "How long a replica may be silent in a read before the next candidate is asked too. Below `timeout`."),
    row!(gossip_interval, time(MS.saturating_mul(10), MINUTE), time node.detector.interval,
        "Time between two heartbeats of a node; the same on all. One that is not heard for some nine of them is taken for down: see `phi_threshold`."),
    row!(phi_threshold, decimal(20, 160), decimal node.detector.threshold,
        "Suspicion from which a silent node is taken for down; 3.8 is reached after some nine heartbeats that stay away, in proportion above and below. Lower: noticed sooner, wrongly more often."),
    row!(handoff_interval, time(MS.saturating_mul(10), HOUR), time node.handoff_interval,
        "Time between two rounds of handing records that are kept for other nodes to these."),
    row!(handoff_bytes_per_second, size(64 * KIB, 64 * GIB), number node.handoff_bytes_per_second,
        "Bytes of such records a second that one node is handed at the most."),
    row!(guests_max, count(0, 1_000_000_000), number node.guests_max,
        "Records that are kept for other nodes; further ones are refused, and the coordinator asks the next node."),
    row!(hint_age_warn, time(MS, HOUR.saturating_mul(24 * 365)), time node.hint_age_warn,
        "What is kept for a node longer than this is told in the log and shown in `ringdove hints`. Nothing is dropped for its age."),
    row!(anti_entropy_interval, time(MS.saturating_mul(10), HOUR.saturating_mul(24)), time node.anti_entropy_interval,
        "About once in this time each partition is compared with those of all its other primaries, and what differs is repaired."),
    row!(anti_entropy_bytes_per_second, size(64 * KIB, 64 * GIB), number node.anti_entropy_bytes_per_second,
        "Bytes of records a second that this moves, or a scrub reads."),
    row!(scrub_interval, time(MS.saturating_mul(10), HOUR.saturating_mul(24 * 365)), time node.scrub_interval,
        "About once in this time every record is read, to find damage before a client does."),
    row!(reap_interval, time(MS.saturating_mul(10), HOUR.saturating_mul(24)), time node.reap_interval,
        "Time between two votes of all members on what was deleted or has expired in a partition."),
    row!(reap_grace, time(MS, HOUR.saturating_mul(24 * 365)), time node.reap_grace,
        "How long ago something must have been deleted or have expired to be voted on. Above the largest skew of clocks; safety does not rest on it."),
    row!(@ durability, Kind::Durability,
        "When a replica counts for a write that does not say: when its disk has it (`sync`), or before, its disk following \
         within a time (`interval:100ms`).", "",
        |settings| Some(Value::Text(durability_text(settings.node.durability))),
        |settings, value| if let Value::Text(text) = value { settings.node.durability = durability_of(&text) }),
    row!(value_len_max, size(KIB, 32 * MIB), number node.value_len_max,
        "Largest value. Below `record_bytes_max`."),
    row!(record_bytes_max, size(64 * KIB, RECORD_MAX), number node.caps.record_bytes_max,
        "Largest record, all concurrent values of a key together, that a write here may leave."),
    row!(siblings_max, count(2, 1000), number node.caps.siblings_max,
        "Most concurrent values of a key that a write here may leave."),
    row!(@ track_access, Kind::Choice(&["off", "on"]),
        "Whether hits and last access of keys are counted, in memory, for clients of this node; HEAD over REST shows them.",
        "",
        |settings| Some(Value::Text(if settings.node.track_access { "on" } else { "off" }.to_owned())),
        |settings, value| if let Value::Text(word) = value { settings.node.track_access = word == "on" }),
    row!(in_flight_max, count(1, 1_000_000), number node.in_flight_max,
        "Operations of clients at once, by all ports together; further ones are refused as overload."),
    row!(connections_max, count(8, 1_000_000), number node.limits.connections_max,
        "Connections at once on the client port, and on the peer port; further ones are refused. Each takes a file descriptor."),
    row!(connection_in_flight_max, count(1, 65_536), number node.limits.in_flight_max, "Requests in flight on one connection; further ones are not read until some are answered."),
    row!(frame_len_max, size(64 * KIB, FRAME_LEN_MAX as u64), number node.limits.frame_len_max,
        "Largest frame that is read. At least 1MiB above `record_bytes_max`."),
    row!(handshake_max, time(MS.saturating_mul(100), MINUTE), time node.limits.handshake,
        "Time that a new connection has for its handshake."),
    row!(connection_stall_max, time(SECOND, HOUR), time node.limits.stall_after,
        "A connection that takes no byte of its answers for this long is closed."),
    row!(@ connection_idle_max, time(MINUTE, HOUR.saturating_mul(720)),
        "A client's connection on which nothing was asked for this long is closed. At least `connection_stall_max`.", "",
        |settings| settings.node.limits.idle_after.map(Value::Time),
        |settings, value| if let Value::Time(time) = value { settings.node.limits.idle_after = Some(time) }),
    row!(unread_bytes_max, size(MIB, TIB), number node.limits.unread_bytes_max,
        "Bytes of answers that wait for clients on one port; reads whose answers find no room are refused as overload."),
    row!(drain_max, time(Duration::ZERO, HOUR), time node.limits.drain,
        "Time that requests in flight have when the node stops."),
    row!(rest_connections_max, count(1, 1_000_000), number gateway.connections_max,
        "Connections at once of the REST gateway; further ones are answered 503. Each takes a file descriptor."),
    row!(rest_head_time_max, time(MS.saturating_mul(100), HOUR), time gateway.head_time_max,
        "A REST connection that has not sent the whole head of a request for this long is closed, also between two requests."),
    row!(rest_body_time_max, time(SECOND, HOUR), time gateway.body_time_max,
        "Time for the whole body of a REST request. At least `rest_stall_max`."),
    row!(rest_stall_max, time(MS.saturating_mul(100), HOUR), time gateway.stall_after,
        "The longest pause within a body, and the longest that a REST client may take nothing of its answer."),
    row!(rest_held_bytes_max, size(MIB, TIB), number gateway.held_bytes_max,
        "Bytes of REST requests and answers that are held at once; what finds no room is answered 503. A body in JSON takes up to twice its value."),
    row!(segment_bytes, size(16 * MIB, GIB), number node.store.segment_bytes,
        "A segment of the log that has this size is closed. One open file each."),
    row!(cache_bytes, size(0, TIB), number node.store.cache_bytes,
        "Bytes of records kept decoded in memory."),
    row!(gathered_bytes_max, size(MIB, GIB), number node.store.gathered_bytes_max,
        "Bytes of writes that wait for the disk; above, further writes wait."),
    row!(disk_stall_max, time(MS.saturating_mul(100), HOUR), time node.store.stall_max,
        "A write or sync of the disk that takes longer makes writes answer \"unavailable\"."),
    row!(snapshot_bytes_min, size(MIB, TIB), number node.store.snapshot_bytes_min,
        "The index is saved when the log has grown by this, and by `snapshot_factor` times the last one's size."),
    row!(snapshot_factor, count(1, 100), number node.store.snapshot_factor,
        "See `snapshot_bytes_min`. Larger: less written; smaller: a shorter restart after a crash."),
    row!(dead_percent_max, count(10, 90), number node.store.dead_percent_max,
        "Compaction begins when this share of the log, in percent, is dead."),
    row!(compaction_bytes_per_second, size(MIB, 64 * GIB), number node.store.compaction_bytes_per_second,
        "Bytes a second that compaction reads; more when clients write faster than that gives space back."),
];
