//! `ringdove import`: lines of a file into the store, many at once, each with an outcome of its own.
//!
//! ```text
//!   lines are read ──(16 wait)──▶ parsed ──▶ up to --in-flight writes ──▶ counted, told by line number
//! ```
//! Lines of the same key are written in their order: a line waits while an earlier one of its key is on its way.
//! What is wrong with a line, or refused, is told and does not stop the others. A write whose outcome is unknown is
//! sent again with the same id: if both came to be, readers see one. It may then overwrite what somebody else wrote
//! to the key in between, so do not import over keys that are being written; `--retries 0` never sends twice.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::connect::{Connect, Writing, failed, outcome_of, usage};
use super::export::{clock, draw_target};
use super::records::{Entry, Format};
use super::units::{self, grouped};
use super::{DONE, FAILED, UNKNOWN, UNREACHABLE, complain, say};
use crate::client::{Action, Client, ClientError, WriteOptions};
use crate::net::message::{Condition, Context, Expiry};
use crate::types::Key;

/// Longest line: a value of 8 MiB in which JSON escapes every byte, and room for its key.
const LINE_LEN_MAX: usize = 56 * 1024 * 1024;
/// Lines that were read and not yet begun.
const LINES_AHEAD: usize = 16;
/// Lines whose trouble is told one by one.
const TOLD_MAX: u64 = 100;
/// After this many lines in a row found no node, the rest is not tried.
const UNREACHABLE_MAX: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    writing: Writing,
    /// What to read; `-` is standard input.
    file: String,
    /// How lines are written; by the file's ending, JSON when it says nothing.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Only keys that have no value yet.
    #[arg(long)]
    if_absent: bool,
    /// Time to live of values whose line gives none, e.g. 30d.
    #[arg(long, value_parser = units::positive)]
    ttl: Option<Duration>,
    /// Writes on their way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: u16,
    /// How often a write is sent again, with the same id, when its outcome is unknown or it found no node.
    #[arg(long, default_value_t = 5)]
    retries: u32,
    /// Put the lines that were not written into this file, as they were.
    #[arg(long, value_name = "FILE")]
    rejects: Option<String>,
    /// Replace the file of --rejects if it is there.
    #[arg(long, requires = "rejects")]
    force: bool,
    /// Print the counts as JSON.
    #[arg(long)]
    json: bool,
}

/// A line of the file.
struct NumberedLine {
    number: u64,
    line: Result<Vec<u8>, String>,
    /// Bytes read up to its end.
    offset: u64,
}

/// What became of lines.
#[derive(Default)]
struct Counts {
    lines: u64,
    written: u64,
    with_siblings: u64,
    sent_again: u64,
    /// Not written: the word for its outcome, and how many.
    others: std::collections::BTreeMap<&'static str, u64>,
    not_tried: bool,
    value_bytes: u64,
}

struct Written {
    number: u64,
    line: Vec<u8>,
    key: Key,
    bytes: u64,
    again: u64,
    outcome: Result<bool, ClientError>,
}

pub(super) async fn run(args: Args) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

#[allow(clippy::disallowed_methods)] // not node code: the user's own files
async fn try_run(args: Args) -> Result<u8, u8> {
    let format = args.format.or_else(|| Format::of_name(&args.file)).unwrap_or(Format::Jsonl);
    let (input, total): (Box<dyn Read + Send>, Option<u64>) = if args.file == "-" {
        (Box::new(std::io::stdin()), None)
    } else {
        let opened = std::fs::File::open(&args.file).and_then(|file| Ok((file.metadata()?, file)));
        let (meta, file) = opened.map_err(|error| usage(&format!("cannot read {}: {error}", args.file)))?;
        if meta.is_dir() {
            return Err(usage(&format!("{} is a directory", args.file)));
        }
        (Box::new(file), meta.is_file().then_some(meta.len()))
    };
    let client = args.connect.client_with(|config| config.in_flight_max = usize::from(args.in_flight))?;
    client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let mut rejects = match &args.rejects {
        None => None,
        Some(name) => Some(open_rejects(name, args.force, &args.file).map_err(|message| usage(&message))?),
    };
    let bar = ProgressBar::with_draw_target(total, draw_target(args.json));
    let template = match total {
        Some(_) => "{wide_bar} {bytes} of {total_bytes}, {eta} left  {msg}",
        None => "{spinner} {bytes} in {elapsed}  {wide_msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let started = clock();
    let lines = read_lines(input);
    let mut counts = Counts::default();
    let mut unkept = None;
    let mut reject = |line: &[u8]| {
        if let Some(file) = &mut rejects
            && let Err(error) = file.write_all(&[line, b"\n"].concat())
        {
            unkept.get_or_insert(error);
        }
    };
    write_all(&args, format, &client, lines, &bar, &mut counts, &mut reject).await;
    bar.finish_and_clear();
    tell(&args, &counts, clock().saturating_sub(started));
    if let (Some(error), Some(name)) = (&unkept, &args.rejects) {
        complain(&format!("not all lines that were not written are in {name}: {error}"));
    }
    let has = |outcome: &str| counts.others.contains_key(outcome);
    Ok(match () {
        () if has("unknown") => UNKNOWN,
        () if has("unreachable") || counts.not_tried => UNREACHABLE,
        () if !counts.others.is_empty() => FAILED,
        () => DONE,
    })
}

/// The file for lines that are not written. It never takes the place of the one that is read, and of another one only when
/// that is asked for.
#[allow(clippy::disallowed_methods)] // not node code: the user's own files
fn open_rejects(name: &str, force: bool, input: &str) -> Result<File, String> {
    let input = if input == "-" { "/dev/stdin" } else { input };
    let (there, read) = (std::fs::metadata(name).ok(), std::fs::metadata(input).ok());
    let place = |meta: &Metadata| (meta.dev(), meta.ino());
    if there.is_some() && there.as_ref().map(place) == read.as_ref().map(place) {
        return Err(format!("--rejects {name} is what is read: name another file"));
    }
    let mut options = OpenOptions::new();
    options.write(true);
    match there.map(|there| there.is_file()) {
        None => options.create_new(true),
        Some(true) if force => options.truncate(true),
        Some(true) => return Err(format!("{name} exists; --force replaces it")),
        // A terminal, a pipe.
        Some(false) => &mut options,
    };
    options.open(name).map_err(|error| format!("cannot write {name}: {error}"))
}

/// Reads lines where it may block: a pipe may keep it waiting for ever.
#[allow(clippy::disallowed_methods)] // not node code
fn read_lines(input: Box<dyn Read + Send>) -> mpsc::Receiver<NumberedLine> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut input = BufReader::with_capacity(256 * 1024, input);
        let (mut number, mut offset) = (0, 0);
        loop {
            let mut line = Vec::new();
            let limit = u64::try_from(LINE_LEN_MAX).unwrap_or(u64::MAX);
            let read = input.by_ref().take(limit).read_until(b'\n', &mut line);
            number += 1;
            let line = match read {
                Ok(0) => return,
                Ok(read) => {
                    offset += u64::try_from(read).unwrap_or(0);
                    let whole = line.last() == Some(&b'\n');
                    if !whole && read == LINE_LEN_MAX {
                        offset += skip_line(&mut input).unwrap_or(0);
                        Err(format!("it is longer than {} MiB", LINE_LEN_MAX / 1024 / 1024))
                    } else {
                        while matches!(line.last(), Some(b'\n' | b'\r')) {
                            line.pop();
                        }
                        Ok(line)
                    }
                }
                Err(error) => {
                    let _ = sender.blocking_send(NumberedLine {
                        number,
                        line: Err(format!("cannot read on: {error}")),
                        offset,
                    });
                    return;
                }
            };
            if sender.blocking_send(NumberedLine { number, line, offset }).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Reads past the next newline and keeps nothing; how many bytes that were.
fn skip_line(input: &mut impl BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = input.fill_buf()?;
        let newline = buffer.iter().position(|byte| *byte == b'\n');
        let used = newline.map_or(buffer.len(), |at| at + 1);
        input.consume(used);
        skipped += u64::try_from(used).unwrap_or(0);
        if newline.is_some() || used == 0 {
            return Ok(skipped);
        }
    }
}

async fn write_all(
    args: &Args,
    format: Format,
    client: &Client,
    mut lines: mpsc::Receiver<NumberedLine>,
    bar: &ProgressBar,
    counts: &mut Counts,
    reject: &mut impl FnMut(&[u8]),
) {
    let mut busy: BTreeSet<Key> = BTreeSet::new();
    let mut work = FuturesUnordered::new();
    let mut unreachable = 0;
    let mut told = 0;
    let mut tell = |number: u64, reason: &str| {
        told += 1;
        if told <= TOLD_MAX {
            bar.suspend(|| complain(&format!("line {number}: {reason}")));
        } else if told == TOLD_MAX + 1 {
            bar.suspend(|| complain("further lines are counted, not told"));
        }
    };
    while unreachable < UNREACHABLE_MAX {
        let Some(NumberedLine { number, line, offset }) = lines.recv().await else { break };
        bar.set_position(offset);
        let entry = match &line {
            Ok(line) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Ok(line) => Entry::read(line, format),
            Err(reason) => Err(reason.clone()),
        };
        counts.lines += 1;
        let (entry, line) = match (entry, line) {
            (Ok(entry), Ok(line)) => (entry, line),
            (Err(reason), line) => {
                *counts.others.entry("malformed").or_default() += 1;
                tell(number, &reason);
                reject(&line.unwrap_or_default());
                continue;
            }
            (Ok(_), Err(_)) => continue,
        };
        while work.len() >= usize::from(args.in_flight) || busy.contains(&entry.key) {
            let Some(written) = work.next().await else { break };
            settle(written, &mut busy, counts, &mut unreachable, &mut tell, reject);
        }
        busy.insert(entry.key.clone());
        work.push(write_entry(args, client, number, line, entry));
        bar.set_message(format!("{} written", grouped(counts.written)));
    }
    counts.not_tried = unreachable >= UNREACHABLE_MAX;
    while let Some(written) = work.next().await {
        settle(written, &mut busy, counts, &mut unreachable, &mut tell, reject);
    }
}

fn settle(
    written: Written,
    busy: &mut BTreeSet<Key>,
    counts: &mut Counts,
    unreachable: &mut u32,
    tell: &mut impl FnMut(u64, &str),
    reject: &mut impl FnMut(&[u8]),
) {
    busy.remove(&written.key);
    counts.sent_again += written.again;
    match written.outcome {
        Ok(siblings) => {
            *unreachable = 0;
            counts.written += 1;
            counts.with_siblings += u64::from(siblings);
            counts.value_bytes += written.bytes;
        }
        Err(error) => {
            *unreachable = match error {
                ClientError::Unreachable(_) => *unreachable + 1,
                _ => 0,
            };
            *counts.others.entry(outcome_of(&error)).or_default() += 1;
            tell(written.number, &format!("{}: {error}", written.key));
            reject(&written.line);
        }
    }
}

/// Writes the values of a line, the first over what is there, the others beside it.
async fn write_entry(args: &Args, client: &Client, number: u64, line: Vec<u8>, entry: Entry) -> Written {
    let mut written =
        Written { number, line, key: entry.key.clone(), bytes: 0, again: 0, outcome: Ok(false) };
    let several = entry.values.len() > 1;
    for (place, held) in entry.values.into_iter().enumerate() {
        let expiry = match (held.expiry, args.ttl) {
            (Expiry::Never, Some(_)) => super::connect::expiry(args.ttl),
            (expiry, _) => expiry,
        };
        let condition = if args.if_absent && place == 0 { Condition::Absent } else { Condition::None };
        let context =
            if place == 0 && condition == Condition::None { Context::Current } else { Context::Nothing };
        let options = WriteOptions {
            context: Some(context),
            condition,
            expiry,
            meta: held.meta,
            write_id: Some(client.write_id()),
            ..args.writing.options()
        };
        written.bytes += u64::try_from(held.value.len()).unwrap_or(0);
        let mut unknown = None;
        let mut again = 0;
        written.outcome = loop {
            match client.put(&entry.key, held.value.clone(), &options).await {
                Ok(reply) => break Ok(!reply.siblings.is_empty() && !several),
                // The first try may be what stands in the way of the second.
                Err(error) if error.action() == Action::ReadAgain && unknown.is_some() => {
                    break Err(unknown.unwrap_or(error));
                }
                Err(error) => {
                    let passes = matches!(error.action(), Action::FindOut | Action::TryAgain(_));
                    if !passes || again >= args.retries {
                        break Err(unknown.unwrap_or(error));
                    }
                    if error.action() == Action::FindOut {
                        unknown = Some(error);
                    }
                    again += 1;
                    #[allow(clippy::disallowed_methods)] // not node code
                    tokio::time::sleep(RETRY_PAUSE * again).await;
                }
            }
        };
        written.again += u64::from(again);
        if written.outcome.is_err() {
            break;
        }
    }
    written
}

#[allow(clippy::cast_precision_loss)] // a rate, for people
fn tell(args: &Args, counts: &Counts, took: Duration) {
    if args.json {
        let mut told = json!({
            "lines": counts.lines,
            "written": counts.written,
            "with_siblings": counts.with_siblings,
            "sent_again": counts.sent_again,
            "stopped_early": counts.not_tried,
            "seconds": took.as_secs_f64(),
        });
        told["not_written"] = Value::from_iter(counts.others.iter().map(|(name, count)| (*name, *count)));
        say(&told.to_string());
        return;
    }
    let rate = counts.written as f64 / took.as_secs_f64().max(0.001);
    let mut rows = vec![vec!["written".to_owned(), grouped(counts.written), String::new()]];
    let mut row = |name: &str, count: u64, what: &str| {
        if count > 0 {
            rows.push(vec![name.to_owned(), grouped(count), what.to_owned()]);
        }
    };
    row("  beside others", counts.with_siblings, "siblings stand beside them: see `ringdove get`");
    row("  sent again", counts.sent_again, "with the same id");
    for (name, count) in &counts.others {
        row(name, *count, meaning(name));
    }
    let (bytes, took) = (units::bytes(counts.value_bytes), units::span(took));
    // It saturates, and is never negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rate = grouped(rate as u64);
    let lines = if counts.lines == 1 { "line" } else { "lines" };
    say(&format!("{} {lines}, {bytes} in {took} ({rate}/s)", grouped(counts.lines)));
    say(&units::table(&["OUTCOME", ">LINES", ""], &rows));
    if counts.not_tried {
        complain("no node could be reached any more: the rest of the file was not tried");
    }
    if let Some(name) = args.rejects.as_ref().filter(|_| !counts.others.is_empty()) {
        complain(&format!("the lines that were not written are in {name}"));
    }
}

fn meaning(outcome: &str) -> &'static str {
    match outcome {
        "malformed" => "no record: not sent",
        "conflict" => "the key has a value already",
        "refused" => "not written, and will not be as they are",
        "not-now" => "not written; try again",
        "unreachable" => "not written: no node answered",
        "unknown" => "may be written or not: read them",
        _ => "not written",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_numbered_and_one_that_is_too_long_does_not_hide_the_next() {
        let mut file = b"one\r\n\n".to_vec();
        file.extend(std::iter::repeat_n(b'x', LINE_LEN_MAX + 10));
        file.extend_from_slice(b"\nlast");
        let mut lines = read_lines(Box::new(std::io::Cursor::new(file)));
        let mut next = async || lines.recv().await.map(|line| (line.number, line.line));
        assert_eq!(next().await, Some((1, Ok(b"one".to_vec()))));
        assert_eq!(next().await, Some((2, Ok(Vec::new()))));
        assert!(matches!(next().await, Some((3, Err(_)))));
        assert_eq!(next().await, Some((4, Ok(b"last".to_vec()))));
        assert_eq!(next().await, None);
    }
}
