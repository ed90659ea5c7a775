//! The worker: a process that plays one seed after another, each on a thread and in a runtime of its own.
//!
//! ```text
//!   stdin   {"seed":7}                          one line a run
//!   stdout  {"report":{…},"cpu_ms":412,…}       one line for each, in order
//! ```
//! A panic of a run is a failure of that run and is answered like one; whoever asked then starts another worker, because
//! what a run that panicked has left behind is unknown.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sim::plan::Plan;
use sim::play::{Options, play};
use sim::report::Report;
use sim::scenario::Scenario;

use super::{BROKEN, Stop, because};

/// What a worker is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    /// The seed, whose plan is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
    /// What it is drawn for; the swarm where nothing is said.
    #[serde(default)]
    pub(crate) scenario: Scenario,
    /// Or a plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<PathBuf>,
    /// A mistake that all nodes make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) canary: Option<String>,
    /// The run is to depend on the process that plays it.
    #[serde(default)]
    pub(crate) plant_divergence: bool,
    /// Where every event goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<PathBuf>,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) report: Report,
    /// CPU time of the process for this run, checks included.
    pub(crate) cpu: Duration,
    /// Resident bytes afterwards.
    pub(crate) resident: u64,
}

/// CPU time that this process has used. madsim takes over the C library's clocks on the threads of its runs; this one asks
/// the kernel.
pub(crate) fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

static PANICKED: Mutex<Option<String>> = Mutex::new(None);

fn panicked() -> Option<String> {
    PANICKED.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Keeps what a panic said, and where, for the report.
pub(crate) fn keep_panics() {
    std::panic::set_hook(Box::new(|info| {
        let mut kept = PANICKED.lock().unwrap_or_else(PoisonError::into_inner);
        // The first one is the cause.
        kept.get_or_insert_with(|| info.to_string());
    }));
}

/// Adds where a panic happened, which only the hook is told.
pub(crate) fn locate_panic(report: &mut Report) {
    let said = panicked();
    if let (Some(said), Some(failure)) = (said, report.failures.iter_mut().find(|of| of.by == "panic")) {
        failure.what = said;
    }
}

fn carry_out(job: &Job) -> Result<Answer, Stop> {
    let before = cpu_time();
    let plan = match (&job.plan, job.seed) {
        (Some(path), _) => super::plan_of(path)?,
        (None, Some(seed)) => Plan::draw_for(job.scenario, seed),
        (None, None) => return Err(Stop(BROKEN, "a job names a seed or a plan".to_owned())),
    };
    let log = match &job.log {
        None => None,
        Some(path) => {
            let file = File::create(path).map_err(because(BROKEN, path.display()))?;
            Some(Box::new(BufWriter::with_capacity(1 << 20, file)) as Box<dyn Write + Send>)
        }
    };
    let canary = match &job.canary {
        None => None,
        Some(name) => Some(super::canary(name).map_err(|why| Stop(BROKEN, why))?),
    };
    let planted = job.plant_divergence.then(|| std::process::id().to_string());
    let report = report_of(&plan, Options { log, canary, planted, ..Options::default() })?;
    Ok(Answer { report, cpu: cpu_time().saturating_sub(before), resident: resident() })
}

fn report_of(plan: &Plan, options: Options) -> Result<Report, Stop> {
    let _ = panicked();
    let mut report = play(plan, options).map_err(|why| Stop(BROKEN, why))?.report;
    locate_panic(&mut report);
    Ok(report)
}

pub(crate) fn run() -> Result<u8, Stop> {
    keep_panics();
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.map_err(because(BROKEN, "standard input"))?;
        let job: Job =
            serde_json::from_str(&line).map_err(|error| Stop(BROKEN, format!("{line}: {error}")))?;
        let answer = serde_json::to_string(&carry_out(&job)?).expect("an answer is JSON");
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(because(BROKEN, "standard output"))?;
    }
    Ok(0)
}
