//! `ringdove export`: the keys of a range into a file.
//!
//! It is no snapshot: keys written while it runs are in it or not. The file appears under its name when it is whole.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::connect::{Connect, failed, usage};
use super::range::Range;
use super::records::{Entry, Format, Held};
use super::units::{self, grouped};
use super::{DONE, FAILED, NOT_NOW, SIBLINGS, complain, say};
use crate::client::Scan;

/// Keys of a page: their values must have room in one answer.
const PAGE: u32 = 200;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    range: Range,
    /// Where to; `-` is standard output.
    #[arg(default_value = "-")]
    file: String,
    /// How lines are written; by the file's ending, JSON when it says nothing.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
    /// Print the counts as JSON (on standard error when the lines go to standard output).
    #[arg(long)]
    json: bool,
}

#[derive(Default)]
struct Counts {
    keys: u64,
    bytes: u64,
    siblings: u64,
    left_out: u64,
    missing: usize,
}

pub(super) async fn run(args: Args) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

/// Where lines go, and under which name they shall be found.
struct Target {
    out: BufWriter<Box<dyn Write + Send>>,
    /// Written first, and renamed to the second when whole.
    names: Option<(PathBuf, PathBuf)>,
}

#[allow(clippy::disallowed_methods)] // not node code: the user's own file
fn open(file: &str, force: bool) -> Result<Target, u8> {
    if file == "-" {
        return Ok(Target { out: BufWriter::new(Box::new(std::io::stdout())), names: None });
    }
    let name = Path::new(file);
    if name.exists() && !force {
        return Err(usage(&format!("{file} exists; --force replaces it")));
    }
    let mut part = name.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let out = std::fs::File::create(&part);
    let out = out.map_err(|error| usage(&format!("cannot write {}: {error}", part.display())))?;
    Ok(Target { out: BufWriter::new(Box::new(out)), names: Some((part, name.to_owned())) })
}

async fn try_run(args: Args) -> Result<u8, u8> {
    let format = args.format.or_else(|| Format::of_name(&args.file)).unwrap_or(Format::Jsonl);
    let scan = args.range.scan()?;
    let client = args.connect.client()?;
    // Before a file is made: an unreachable cluster leaves none behind.
    client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let mut target = open(&args.file, args.force)?;
    let lost = |error: std::io::Error| {
        complain(&format!("cannot write {}: {error}", args.file));
        FAILED
    };
    let bar = ProgressBar::with_draw_target(None, draw_target(args.json || target.names.is_none()));
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {human_pos} keys, {per_sec}, {elapsed}  {wide_msg}")
    {
        bar.set_style(style);
    }
    let mut pages = client.scan(Scan { limit: PAGE, ..scan });
    let mut counts = Counts::default();
    let started = clock();
    loop {
        let page = pages.next_page().await.map_err(|error| {
            bar.abandon();
            if let Some((part, _)) = &target.names {
                complain(&format!("what was written so far is in {}", part.display()));
            }
            failed(&error, args.json)
        })?;
        let Some(page) = page else { break };
        counts.missing += page.missing.len();
        for item in &page.items {
            let entry = Entry { key: item.key.clone(), values: item.values.iter().map(Held::of).collect() };
            let Some(line) = entry.line(format) else {
                counts.left_out += 1;
                if counts.left_out <= 10 {
                    bar.suspend(|| {
                        complain(&format!("{} has siblings, which TSV cannot say: left out", item.key));
                    });
                }
                continue;
            };
            target.out.write_all(&line).map_err(lost)?;
            counts.keys += 1;
            counts.bytes += u64::try_from(line.len()).unwrap_or(u64::MAX);
            counts.siblings += u64::from(entry.values.len() > 1);
        }
        bar.set_position(counts.keys);
    }
    bar.finish_and_clear();
    target.out.flush().map_err(lost)?;
    drop(target.out);
    #[allow(clippy::disallowed_methods)] // not node code: the user's own file
    if let Some((part, name)) = &target.names {
        std::fs::rename(part, name).map_err(lost)?;
    }
    tell(&args, &counts, clock().saturating_sub(started));
    Ok(match counts {
        Counts { missing: 1.., .. } => NOT_NOW,
        Counts { left_out: 1.., .. } => SIBLINGS,
        _ => DONE,
    })
}

fn tell(args: &Args, counts: &Counts, took: Duration) {
    let Counts { keys, bytes, siblings, left_out, missing } = counts;
    if args.json {
        let told = json!({
            "keys": keys, "bytes": bytes, "with_siblings": siblings, "left_out": left_out,
            "partitions_missing": missing, "seconds": took.as_secs_f64(),
        });
        if args.file == "-" {
            complain(&told.to_string());
        } else {
            say(&told.to_string());
        }
        return;
    }
    let noun = if *keys == 1 { "key" } else { "keys" };
    let mut text = format!("{} {noun}, {}, in {}", grouped(*keys), units::bytes(*bytes), units::span(took));
    if *siblings > 0 {
        text.push_str(&format!("; {} with siblings", grouped(*siblings)));
    }
    if *left_out > 0 {
        text.push_str(&format!(
            "; {} left out for their siblings: export JSON lines, or choose with --resolve lww",
            grouped(*left_out)
        ));
    }
    if *missing > 0 {
        text.push_str("; incomplete: some partitions could not be read");
    }
    complain(&text);
}

/// Standard error when it is a terminal and nothing else claims it.
pub(super) fn draw_target(quiet: bool) -> ProgressDrawTarget {
    if quiet || !std::io::stderr().is_terminal() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    }
}

/// Time that never jumps, since some moment before.
pub(super) fn clock() -> Duration {
    static CLOCK: std::sync::OnceLock<crate::io::RealClock> = std::sync::OnceLock::new();
    crate::io::Clock::mono(CLOCK.get_or_init(crate::io::RealClock::new))
}
