//! The `ringdove-check` command: judges histories in files.

#![allow(clippy::disallowed_methods)] // a command that reads files and has an exit code of its own

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use jepsen_like_checks::checks::{Check, MEASURED, NAMES};
use jepsen_like_checks::event::InputError;
use jepsen_like_checks::formats::{self, edn, etcd, json};
use jepsen_like_checks::history::History;
use jepsen_like_checks::linearizability::Model;
use jepsen_like_checks::{Options, Verdict, causal, staleness, timeline};
use serde_json::json;

/// Judges histories of stores: what clients did and saw, as JSON lines, EDN or a log of Jepsen's etcd test.
///
/// Exit code: 0 all valid, 1 something is invalid, 2 something is unknown, 3 bad input.
#[derive(Parser)]
#[command(name = "ringdove-check", version)]
struct Args {
    /// The histories; `-` is the standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Judge linearizability by this model: register, cas-register, key-value, kv-append.
    #[arg(long, value_parser = model)]
    model: Option<Model>,
    /// Judge these checks alone, e.g. `frontier,durability`, `causal`. Default without a model: all that find
    /// something to judge.
    #[arg(long, value_delimiter = ',', value_parser = check)]
    check: Vec<Check>,
    /// The format; by default what the file's name says.
    #[arg(long)]
    format: Option<Format>,
    /// Print verdicts as JSON, one object a file.
    #[arg(long)]
    json: bool,
    /// Draw the history as a page for a browser; one file alone.
    #[arg(long, value_name = "OUT.html")]
    timeline: Option<PathBuf>,
    /// Write the visibility curve; one file alone.
    #[arg(long, value_name = "OUT.csv")]
    visibility: Option<PathBuf>,
    /// How far the nodes' wall clocks may be apart, in milliseconds.
    #[arg(long, default_value_t = Options::default().clock_skew_ms)]
    clock_skew: i64,
    /// Steps that a search may take for a file.
    #[arg(long, default_value_t = Options::default().steps)]
    steps: u64,
    /// Megabytes that a check may use beside the history.
    #[arg(long, default_value_t = 1024)]
    memory: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// One JSON object a line.
    Json,
    /// EDN maps.
    Edn,
    /// Jepsen's etcd log.
    Etcd,
}

fn model(name: &str) -> Result<Model, String> {
    Model::ALL
        .into_iter()
        .find(|model| model.name() == name)
        .ok_or_else(|| format!("one of {}", Model::ALL.map(Model::name).join(", ")))
}

fn check(name: &str) -> Result<Check, String> {
    Check::of(name).ok_or_else(|| {
        let models = Model::ALL.map(Model::name);
        format!(
            "one of {}",
            NAMES.iter().chain(&MEASURED).chain(&models).copied().collect::<Vec<_>>().join(", ")
        )
    })
}

fn read(path: &Path, format: Option<Format>) -> Result<History, InputError> {
    let open = || -> io::Result<Box<dyn Read>> {
        if path == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(File::open(path)?)) }
    };
    let input = open().map_err(|error| InputError { line: 1, column: 1, kind: error.into() })?;
    let input = BufReader::with_capacity(1 << 18, input);
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let format = format.unwrap_or(match extension {
        "edn" | "txt" => Format::Edn,
        "log" => Format::Etcd,
        _ => Format::Json,
    });
    match format {
        Format::Json => formats::read(&mut json::Reader::new(input)),
        Format::Edn => formats::read(&mut edn::Reader::new(input)),
        Format::Etcd => formats::read(&mut etcd::Reader::new(input)),
    }
}

/// A bar on a terminal, gone when it is done.
struct Progress {
    shown: bool,
    total: usize,
}

impl Progress {
    fn at(&self, done: usize, name: &Path) {
        if self.shown {
            let full = done * 30 / self.total.max(1);
            let bar: String = (0..30).map(|at| if at < full { '█' } else { '░' }).collect();
            eprint!("\r\x1b[K{bar} {done}/{} {}", self.total, name.display());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

struct Row {
    file: String,
    check: &'static str,
    verdict: Verdict,
    note: Option<String>,
}

/// Prints a line. A reader that has seen enough (a closed pipe) is nothing to fail about.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(3) } else { ExitCode::SUCCESS };
        }
    };
    let alone = args.timeline.is_some() || args.visibility.is_some();
    if alone && args.files.len() != 1 {
        eprintln!("ringdove-check: --timeline and --visibility take one file");
        return ExitCode::from(3);
    }
    let options = Options {
        clock_skew_ms: args.clock_skew,
        memory: args.memory.saturating_mul(1 << 20),
        steps: args.steps,
    };
    let asked: Vec<Check> =
        args.model.map(Check::Model).into_iter().chain(args.check.iter().copied()).collect();
    let checks = if asked.is_empty() { NAMES.map(Check::Named).to_vec() } else { asked.clone() };
    let mut rows: Vec<Row> = Vec::new();
    let mut bad_input = false;
    let progress = Progress { shown: io::stderr().is_terminal(), total: args.files.len() };
    for (done, path) in args.files.iter().enumerate() {
        progress.at(done, path);
        let history = match read(path, args.format) {
            Ok(history) => history,
            Err(error) => {
                eprintln!("{}{}: {error}", if progress.shown { "\r\x1b[K" } else { "" }, path.display());
                bad_input = true;
                continue;
            }
        };
        let start = rows.len();
        for check in &checks {
            let (verdict, note) = check.run(&history, &options);
            // Of all checks, only those that found something to judge say something about this history.
            let silent = asked.is_empty()
                && matches!(&verdict, Verdict::Unknown { reason } if reason == Verdict::NOTHING_JUDGED);
            if !silent {
                rows.push(Row { file: path.display().to_string(), check: check.name(), verdict, note });
            }
        }
        if rows.len() == start {
            let verdict = Verdict::Unknown { reason: Verdict::NOTHING_JUDGED.to_owned() };
            rows.push(Row { file: path.display().to_string(), check: "all", verdict, note: None });
        }
        let measured = asked.is_empty().then(|| measure(&history, &options));
        if args.json {
            say(&report(&history, path, &rows[start..], measured.as_ref()).to_string());
        } else if let Some((staleness, causal)) =
            measured.filter(|(staleness, _)| !staleness.missed.is_empty())
        {
            let gets: u64 = staleness.missed.values().sum();
            let fresh = staleness.missed.get(&0).copied().unwrap_or(0);
            say(&format!(
                "{}: measured: {fresh} of {gets} gets missed no acknowledged put; monotonic reads {}; causal {}",
                path.display(),
                staleness.monotonic_reads().word(),
                causal.cc.word()
            ));
        }
        if let Err(error) = draw(&args, &history, path, &rows[start..], &options) {
            eprintln!("ringdove-check: {error}");
            return ExitCode::from(3);
        }
    }
    drop(progress);
    if !args.json {
        table(&rows);
    }
    let any = |word: &str| rows.iter().any(|row| row.verdict.word() == word);
    ExitCode::from(match () {
        () if bad_input => 3,
        () if any("invalid") => 1,
        () if any("unknown") || rows.is_empty() => 2,
        () => 0,
    })
}

fn measure(history: &History, options: &Options) -> (staleness::Report, causal::Report) {
    (staleness::measure(history, options), causal::check(history, options))
}

fn draw(args: &Args, history: &History, path: &Path, rows: &[Row], options: &Options) -> Result<(), String> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    if let Some(out) = &args.timeline {
        let verdicts: Vec<_> = rows.iter().map(|row| (row.check, row.verdict.clone())).collect();
        write(out, timeline::html(history, &path.display().to_string(), &verdicts))?;
    }
    if let Some(out) = &args.visibility {
        write(out, staleness::measure(history, options).csv())?;
    }
    Ok(())
}

fn report(
    history: &History,
    path: &Path,
    rows: &[Row],
    measured: Option<&(staleness::Report, causal::Report)>,
) -> serde_json::Value {
    let mut checks = serde_json::Map::new();
    for row in rows {
        let mut verdict = row.verdict.to_json(history);
        if let (Some(note), Some(verdict)) = (&row.note, verdict.as_object_mut()) {
            verdict.insert("note".to_owned(), json!(note));
        }
        checks.insert(row.check.to_owned(), verdict);
    }
    let mut report =
        json!({ "file": path.display().to_string(), "operations": history.ops.len(), "checks": checks });
    if let (Some((staleness, causal)), Some(report)) = (measured, report.as_object_mut()) {
        let levels = [("cc", &causal.cc), ("ccv", &causal.ccv), ("cm", &causal.cm)];
        let levels: serde_json::Map<_, _> =
            levels.into_iter().map(|(name, verdict)| (name.to_owned(), verdict.to_json(history))).collect();
        report.insert("measured".to_owned(), json!({ "staleness": staleness.to_json(), "causal": levels }));
    }
    report
}

fn table(rows: &[Row]) {
    let width = |of: fn(&Row) -> &str, least: usize| {
        rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0).max(least)
    };
    let (file, check) = (width(|row| &row.file, 4), width(|row| row.check, 5));
    say(&format!("{:file$}  {:check$}  verdict  {:>12}", "file", "check", "judged"));
    for row in rows {
        let judged = row.verdict.judged();
        let note = match (&row.verdict, &row.note) {
            (Verdict::Unknown { reason }, _) => reason.clone(),
            (_, Some(note)) => note.clone(),
            _ => String::new(),
        };
        let line = format!(
            "{:file$}  {:check$}  {:7}  {judged:>12}  {note}",
            row.file,
            row.check,
            row.verdict.word()
        );
        say(line.trim_end());
    }
    for row in rows {
        if let Verdict::Invalid { witness, violations, .. } = &row.verdict {
            say(&format!("\n{}: {}: {}", row.file, row.check, witness));
            if *violations > 1 {
                say(&format!("  and {} more", violations - 1));
            }
        }
    }
    let count = |word: &str| rows.iter().filter(|row| row.verdict.word() == word).count();
    say(&format!("\n{} valid, {} invalid, {} unknown", count("valid"), count("invalid"), count("unknown")));
}
