//! `cargo sim run`: one seed or one plan.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args as Flags;
use ringdove::observe::Canary;
use sim::plan::Plan;
use sim::play::{Options, Played, play};
use sim::report::Report;
use sim::scenario::Scenario;

use super::twice::{Compared, compare};
use super::worker::Job;
use super::{DIFFERS, FAILED, Stop, WRONG, because, of, plan_of, say, summary, worker};

#[derive(Flags)]
pub(crate) struct Args {
    /// The seed, from which everything follows.
    #[arg(long, required_unless_present = "plan", conflicts_with = "plan")]
    seed: Option<u64>,
    /// What the seed is drawn for: `swarm`, `tcp`, `destroy`, `away`, `held`, `backup`, `wiped`, `rolling`, `members`, `defaults`.
    #[arg(long, default_value = "swarm", conflicts_with = "plan")]
    scenario: Scenario,
    /// A plan: settings and faults, as `cargo sim plan` prints them.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print every event: time, host, kind, payload.
    #[arg(long)]
    log: bool,
    /// Play it once after other seeds and once in a fresh process elsewhere, and compare every event.
    #[arg(long, conflicts_with_all = ["log", "out", "canary"])]
    twice: bool,
    /// Write plan, history (JSON lines and EDN), events and summary into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Have all nodes make a known mistake, to see the checks find it.
    #[arg(long, value_parser = super::canary)]
    canary: Option<Canary>,
}

/// For how long a run may go on when it is played twice.
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) fn run(args: &Args) -> Result<u8, Stop> {
    let (plan, mut again) = match (&args.plan, args.seed) {
        (Some(path), _) => (plan_of(path)?, format!("cargo sim run --plan {}", path.display())),
        (None, Some(seed)) => {
            (Plan::draw_for(args.scenario, seed), format!("cargo sim run{} --seed {seed}", of(args.scenario)))
        }
        (None, None) => return Err(Stop(WRONG, "give --seed or --plan".to_owned())),
    };
    if let Some(canary) = args.canary {
        again += &format!(" --canary {}", canary.name());
    }
    if args.twice {
        let job = Job {
            seed: args.seed,
            scenario: args.scenario,
            plan: args.plan.clone(),
            canary: None,
            plant_divergence: false,
            log: None,
        };
        return match compare(&job, LIMIT)? {
            Compared::Same(answer) => {
                say("twice the same, in a process after other seeds and in a fresh one elsewhere");
                show(&plan, &answer.report, &again)
            }
            Compared::Differ(how) => {
                say(format!("two runs of seed {} differ; {how}", plan.seed));
                Ok(DIFFERS)
            }
        };
    }
    if let Some(out) = &args.out {
        fs::create_dir_all(out).map_err(because(WRONG, out.display()))?;
    }
    worker::keep_panics();
    let events = match &args.out {
        Some(out) => Some(Shared::new(create(&out.join("events.log"))?)),
        None => None,
    };
    let to_screen = args.log.then(|| Box::new(BufWriter::new(io::stdout())) as Box<dyn Write + Send>);
    let log = match (to_screen, &events) {
        (Some(screen), Some(file)) => {
            Some(Box::new(Both(screen, Box::new(file.clone()))) as Box<dyn Write + Send>)
        }
        (Some(screen), None) => Some(screen),
        (None, Some(file)) => Some(Box::new(file.clone()) as Box<dyn Write + Send>),
        (None, None) => None,
    };
    let options =
        Options { log, keep_history: args.out.is_some(), canary: args.canary, ..Options::default() };
    let mut played = play(&plan, options).map_err(|why| Stop(WRONG, why))?;
    worker::locate_panic(&mut played.report);
    if let (Some(out), Some(events)) = (&args.out, events) {
        events.flush().map_err(because(WRONG, "events.log"))?;
        leave(out, &plan, &played, args.canary)?;
        say(format!(
            "written to {}: plan.json, events.log, history.jsonl, history.edn, summary.json, summary.txt",
            out.display()
        ));
    }
    show(&plan, &played.report, &again)
}

fn show(plan: &Plan, report: &Report, again: &str) -> Result<u8, Stop> {
    let _ = write!(io::stdout(), "{}", text_of(plan, report, again));
    Ok(if report.failures.is_empty() { 0 } else { FAILED })
}

fn text_of(plan: &Plan, report: &Report, again: &str) -> String {
    let mut text = format!("seed {}\n", report.seed);
    text += &summary::screen(Some(&plan.settings), &report.tally);
    for failure in &report.failures {
        text += &format!("FAILED      {}: {}\n", failure.by, failure.what);
    }
    text += &match report.failures.len() {
        0 => "verdict     clean\n".to_owned(),
        many => format!("verdict     {many} failures; look into them with `{again} --out DIR`\n"),
    };
    text += &format!("replay      {again} --log\n");
    text + &format!("trace hash: {}\n", report.trace_hash)
}

fn create(path: &Path) -> Result<BufWriter<File>, Stop> {
    let file = File::create(path).map_err(because(WRONG, path.display()))?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}

/// Writes down all but the events.
fn leave(out: &Path, plan: &Plan, played: &Played, canary: Option<Canary>) -> Result<(), Stop> {
    let report = &played.report;
    let pretty = |value: serde_json::Result<String>| value.expect("our own types are JSON") + "\n";
    let canary = canary.map_or(String::new(), |canary| format!(" --canary {}", canary.name()));
    let again = format!("cargo sim run --plan {}{canary}", out.join("plan.json").display());
    for (name, text) in [
        ("plan.json", pretty(serde_json::to_string_pretty(plan))),
        ("summary.json", pretty(serde_json::to_string_pretty(report))),
        ("summary.txt", text_of(plan, report, &again)),
    ] {
        let path = out.join(name);
        fs::write(&path, text).map_err(because(WRONG, path.display()))?;
    }
    let (mut json, mut edn) = (create(&out.join("history.jsonl"))?, create(&out.join("history.edn"))?);
    played.history.write(&mut json, &mut edn).map_err(because(WRONG, "the history"))?;
    json.flush().and_then(|()| edn.flush()).map_err(because(WRONG, "the history"))
}

/// A file that the run writes and this thread flushes.
#[derive(Clone)]
struct Shared(Arc<Mutex<BufWriter<File>>>);

impl Shared {
    fn new(file: BufWriter<File>) -> Shared {
        Shared(Arc::new(Mutex::new(file)))
    }

    fn flush(&self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Shared::flush(self)
    }
}

/// Writes everything twice.
struct Both(Box<dyn Write + Send>, Box<dyn Write + Send>);

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.1.flush()
    }
}
