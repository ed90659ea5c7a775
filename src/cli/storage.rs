//! `ringdove storage check` and `ringdove storage stats`: looks at the data directory of a node that is not running.
//! Nothing in it is changed. Results go to standard output, a bar (or, without a terminal, a line now and then) to
//! standard error.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::select;

use super::{DONE, FAILED, complain, say};
use crate::io::{Clock, Disk, RealClock, RealDisk};
use crate::storage::StorageError;
use crate::storage::check::{Concerned, Damage, Report, What, check};
use crate::storage::inspect::{Figures, Progress, figures};

/// The directory cannot be looked at: it is none, in use, of another format, or the disk does not answer.
const UNCHECKED: u8 = 7;
/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// How often a line tells how far it is.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Partitions that are named one by one.
const NAMED_MAX: usize = 12;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify a data directory: every record, the snapshot, what they say of each other. Exit code 0 when it is
    /// sound, 1 when there is damage, 7 when it cannot be looked at.
    Check(Dir),
    /// Print figures of a data directory: keys, live and dead bytes, segments, snapshot.
    Stats(Dir),
}

#[derive(Debug, clap::Args)]
struct Dir {
    /// The node's data directory. No node may be running on it.
    dir: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    let disk: Arc<dyn Disk> = match RealDisk::new() {
        Ok(disk) => Arc::new(disk),
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return FAILED;
        }
    };
    let progress = Arc::new(Progress::default());
    match args.command {
        Command::Check(Dir { dir, json }) => {
            let report = match watched(&progress, check(&disk, &dir, &progress)).await {
                Ok(report) => report,
                Err(error) => return refused(&error),
            };
            if json {
                let mut object = json!(report);
                object["sound"] = report.is_sound().into();
                say(&object.to_string());
            } else {
                tell(&dir, &report);
            }
            if report.is_sound() { DONE } else { FAILED }
        }
        Command::Stats(Dir { dir, json }) => {
            let figures = match watched(&progress, figures(&disk, &dir, &progress)).await {
                Ok(figures) => figures,
                Err(error) => return refused(&error),
            };
            let age = snapshot_age(&dir);
            if json {
                let mut object = json!(figures);
                object["snapshot"]["age_seconds"] = json!(age.map(|age| age.as_secs()));
                if figures.snapshot.is_none() {
                    object["snapshot"] = serde_json::Value::Null;
                }
                say(&object.to_string());
            } else {
                table(&figures, age);
            }
            DONE
        }
    }
}

fn refused(error: &StorageError) -> u8 {
    complain(&error.to_string());
    UNCHECKED
}

/// Waits for the work and shows how far it is.
async fn watched<T>(progress: &Progress, work: impl Future<Output = T>) -> T {
    let clock = RealClock::new();
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:40} {percent:>3}%  {bytes} of {total_bytes}, {eta}");
        ProgressBar::new(0).with_style(style.expect("the names are those of the library"))
    });
    let mut work = std::pin::pin!(work);
    let tick = if bar.is_some() { TICK } else { LINE_EVERY };
    let told = loop {
        let next = clock.mono() + tick;
        select! {
            biased;
            told = &mut work => break told,
            () = clock.sleep_until(next) => {}
        }
        let (read, total) = (progress.read(), progress.total());
        match &bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(read);
            }
            None => {
                complain(&format!("{} of {} read", bytes(read), bytes(total)));
            }
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    told
}

/// How long ago the index snapshot was written, by the file's time: the seam of the engine has none.
fn snapshot_age(dir: &Path) -> Option<Duration> {
    let written = std::fs::metadata(dir.join("index.snap")).ok()?.modified().ok()?;
    Some(written.elapsed().unwrap_or_default())
}

fn tell(dir: &Path, report: &Report) {
    for damage in &report.damage {
        say(&line(damage));
    }
    if report.damage_unlisted > 0 {
        say(&format!("and {} more", count(report.damage_unlisted, "damaged stretch")));
    }
    let whose = report.figures.as_ref().map_or_else(
        || "nobody's".to_owned(),
        |of| format!("n{}'s, {}, {}", of.node, count(of.data_keys, "key"), count(of.guest_keys, "guest")),
    );
    let (segments, records) = (count(report.segments, "segment"), count(report.records, "whole record"));
    say(&format!("{}: {whose}; {segments}, {records}", dir.display()));
    if let Some(tail) = &report.tail {
        let mut left = Vec::new();
        if tail.torn_bytes > 0 {
            left.push(format!(
                "a torn tail of {}, which the next start cuts",
                count(tail.torn_bytes, "byte")
            ));
        }
        if tail.surplus_bytes > 0 {
            left.push(format!("{} that an interrupted start was to cut", count(tail.surplus_bytes, "byte")));
        }
        if tail.unproven_records > 0 {
            left.push(format!(
                "{} that nothing proves to be on the disk, for the next start to write again",
                count(tail.unproven_records, "record")
            ));
        }
        if tail.torn_mark {
            left.push("a torn clean-shutdown mark, which counts for nothing".to_owned());
        }
        if !left.is_empty() {
            say(&format!("left by a crash: {}", left.join("; ")));
        }
        if tail.maybe_rotten {
            say(
                "the last write is there in full length and damaged: torn by a crash, or rotten since. The next start takes \
                 its partitions as incomplete",
            );
        }
    }
    if !report.leftovers.is_empty() {
        say(&format!("left by a crash: {}", report.leftovers.join(", ")));
    }
    if report.gaps > 0 {
        let gaps = count(report.gaps, "gap");
        say(&format!("{gaps} between segments, where compaction has removed some"));
    }
    if report.is_sound() {
        say("sound");
        return;
    }
    let stretches = count(report.damage.len() as u64 + report.damage_unlisted, "stretch");
    let lost = number(report.entries_lost);
    let incomplete = if report.incomplete { "; not everything could be looked at" } else { "" };
    say(&format!("DAMAGED: {stretches}, entries that cannot be read: {lost}{incomplete}"));
}

fn line(damage: &Damage) -> String {
    let file = if damage.file.is_empty() { "the directory" } else { &damage.file };
    let unit = if damage.what == What::Gone { "positions" } else { "bytes" };
    let place =
        if damage.to > 0 { format!(", {unit} {} to {}", damage.from, damage.to) } else { String::new() };
    let partitions = match &damage.partitions {
        Concerned::All => "; may concern any partition".to_owned(),
        Concerned::These(these) if these.is_empty() => String::new(),
        Concerned::These(these) => {
            let named: Vec<String> = these.iter().take(NAMED_MAX).map(|id| id.0.to_string()).collect();
            let more = these.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("; may concern partition {}{more}", named.join(", "))
        }
    };
    let entries = match damage.entries {
        0 => String::new(),
        lost => format!("; entries lost: {}", number(lost)),
    };
    format!("{file}{place}: {}{partitions}{entries}", damage.what)
}

fn table(figures: &Figures, snapshot_age: Option<Duration>) {
    let row = |name: &str, value: String| say(&format!("{name:<18} {value}"));
    row("node", format!("n{} of cluster {}", figures.node, figures.cluster));
    row("format", figures.format.to_string());
    row(
        "ring",
        format!("{} partitions, {} replicas each", number(figures.partitions.into()), figures.replicas),
    );
    let stop = if figures.clean { "stopped cleanly" } else { "not stopped cleanly" };
    row("starts", format!("{}, {stop}", number(figures.starts)));
    row("keys", number(figures.data_keys));
    row("guest keys", number(figures.guest_keys));
    let targets: Vec<String> = figures.targets.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let targets = if targets.is_empty() { String::new() } else { format!(", for {}", targets.join(", ")) };
    row("owed to others", format!("{}{targets}", number(figures.owed_keys)));
    row("segments", format!("{}, {}", number(figures.segments), bytes(figures.log_bytes)));
    let share = |part: u64| part * 100 / figures.log_bytes.max(1);
    row("live", format!("{}, {}%", bytes(figures.live_bytes), share(figures.live_bytes)));
    row("dead", format!("{}, {}%", bytes(figures.dead_bytes), share(figures.dead_bytes)));
    row("index in memory", bytes(figures.index_bytes));
    let snapshot = match (&figures.snapshot, &figures.snapshot_refused) {
        (_, Some(why)) => format!("does not count: {why}"),
        (None, None) => "none".to_owned(),
        (Some(snapshot), None) => {
            let age = snapshot_age.map_or_else(String::new, |age| format!(", {} old", time(age)));
            format!("{}{age}, {} of log since", bytes(snapshot.bytes), bytes(snapshot.log_bytes_since))
        }
    };
    row("snapshot", snapshot);
    if figures.unproven_records > 0 || figures.torn_bytes > 0 {
        let (records, torn) = (count(figures.unproven_records, "record"), bytes(figures.torn_bytes));
        row("left by a crash", format!("{records} to write again, {torn} to cut"));
    }
    if figures.damage > 0 {
        row("damage", format!("{}: see `ringdove storage check`", number(figures.damage)));
    }
}

/// 1 key, 2 keys.
fn count(many: u64, what: &str) -> String {
    let ending = match what {
        _ if many == 1 => "",
        "stretch" | "damaged stretch" => "es",
        _ => "s",
    };
    format!("{} {what}{ending}", number(many))
}

/// 12,345,678.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// 1.5 MiB.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    // Tenths of a unit, without floating point.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// 3 h.
fn time(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        let numbers = [0, 999, 1_000, 1_234_567].map(number);
        assert_eq!(numbers, ["0", "999", "1,000", "1,234,567"]);
        let sizes = [0, 1_023, 1_024, 1_536, 1 << 20, (1 << 30) - 1, u64::MAX].map(bytes);
        assert_eq!(
            sizes,
            ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1023.9 MiB", "16383.9 PiB"]
        );
        let times = [0, 119, 120, 7_200, 172_800].map(|seconds| time(Duration::from_secs(seconds)));
        assert_eq!(times, ["0 s", "119 s", "2 min", "2 h", "2 days"]);
    }
}
