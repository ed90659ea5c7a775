//! `cargo sim sweep`: many seeds in worker processes, with a bar, a budget, shards, and a file to go on from.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args as Flags, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use sim::plan::names;
use sim::report::{Failure, Report, Tally};
use sim::scenario::Scenario;
use xxhash_rust::xxh3::xxh3_64;

use super::jobs::Place;
use super::twice::{Compared, compare};
use super::worker::{Answer, Job};
use super::{BROKEN, DIFFERS, FAILED, Stop, WRONG, because, of, say, summary};

/// Sets of flags that belong together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// 200 seeds, each twice.
    Ci,
    /// 5,000 seeds, one in ten twice; a probe or fault that never did anything fails it.
    Nightly,
}

#[derive(Flags)]
pub(crate) struct Args {
    /// First and last+1 seed, as `0..500`.
    #[arg(long, value_parser = seeds, required_unless_present = "tier")]
    seeds: Option<Range<u64>>,
    /// What the seeds are drawn for: `swarm`, `tcp`, `destroy`, `away`, `held`, `backup`, `wiped`, `rolling`, `members`.
    #[arg(long, default_value = "swarm")]
    scenario: Scenario,
    /// A set of flags; others given beside it win.
    #[arg(long)]
    tier: Option<Tier>,
    /// Worker processes at a time; as many as there are processors.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: Option<u64>,
    /// Begin no run after so long, as `10m`.
    #[arg(long, value_parser = duration)]
    budget: Option<Duration>,
    /// The part of the seeds to play, as `1/4`.
    #[arg(long, value_parser = shard, default_value = "1/1")]
    shard: (u64, u64),
    /// Play one seed in so many once more, in a fresh process elsewhere, and compare every event.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    twice: Option<u64>,
    /// Write down here what is done, and go on from it when it is there.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Write a JUnit report.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write counts and failures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Plans that failed once and are played first.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))]
    corpus: PathBuf,
    /// Have all nodes make a known mistake, and end at the first run that finds it.
    #[arg(long, value_parser = super::canary, conflicts_with_all = ["resume", "tier"])]
    canary: Option<ringdove::observe::Canary>,
    /// Fail when a probe or a fault that is not pending never did anything.
    #[arg(long)]
    strict_probes: bool,
    /// Real time that one run may take, as `2m`.
    #[arg(long, value_parser = duration, default_value = "2m")]
    limit: Duration,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is no range of seeds; write for example 0..500");
    let (low, high) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.replace('_', "").parse::<u64>().map_err(|_| wrong());
    let range = number(low)?..number(high)?;
    if range.is_empty() { Err(format!("{text:?} is empty")) } else { Ok(range) }
}

fn shard(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("{text:?} is no shard; write for example 1/4");
    let (part, of) = text.split_once('/').ok_or_else(wrong)?;
    let (part, of) = (part.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
    if (1..=of).contains(&part) { Ok((part, of)) } else { Err(wrong()) }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write for example 90s, 10m or 2h");
    let unit = [("h", 3600), ("m", 60), ("s", 1)].into_iter().find(|(unit, _)| text.ends_with(unit));
    let (unit, seconds) = unit.ok_or_else(wrong)?;
    let number: u64 = text.strip_suffix(unit).ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// What is played.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Item {
    Plan(PathBuf),
    Seed(u64),
}

impl Item {
    fn again(&self, scenario: Scenario) -> String {
        match self {
            Item::Seed(seed) => format!("cargo sim run{} --seed {seed}", of(scenario)),
            Item::Plan(path) => format!("cargo sim run --plan {}", path.display()),
        }
    }

    fn name(&self) -> String {
        match self {
            Item::Seed(seed) => format!("seed {seed}"),
            Item::Plan(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
}

/// One line of the file to go on from.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    item: Item,
    report: Report,
    cpu: Duration,
}

/// The first line of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// A hash of the program: what another build did says nothing of this one.
    build: String,
    /// What the seeds were drawn for.
    scenario: String,
}

fn header(scenario: Scenario) -> Result<Header, Stop> {
    let program =
        std::env::current_exe().and_then(fs::read).map_err(because(BROKEN, "this program's own file"))?;
    Ok(Header { build: format!("{:016x}", xxh3_64(&program)), scenario: scenario.to_string() })
}

/// Reads what is done already and opens the file for more.
fn resume(path: &Path, scenario: Scenario) -> Result<(Vec<Done>, File), Stop> {
    let header = header(scenario)?;
    let mut done = Vec::new();
    let open = |options: &mut OpenOptions| options.open(path).map_err(because(WRONG, path.display()));
    let found = path.exists();
    if found {
        let mut lines = BufReader::new(open(OpenOptions::new().read(true))?).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        if serde_json::from_str::<Header>(&first).ok().as_ref() != Some(&header) {
            let why = "was written by another build of the simulator or for another scenario, and its results do not count for this one; name another file";
            return Err(Stop(WRONG, format!("{} {why}", path.display())));
        }
        // A last line that was cut off by a crash is played again.
        done.extend(lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()));
    }
    let mut file = open(OpenOptions::new().append(true).create(true))?;
    if !found {
        let line = serde_json::to_string(&header).expect("a header is JSON");
        writeln!(file, "{line}").map_err(because(WRONG, path.display()))?;
    }
    Ok((done, file))
}

fn corpus(dir: &Path) -> Result<Vec<Item>, Stop> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut plans = Vec::new();
    for entry in entries {
        let path = entry.map_err(because(WRONG, dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            plans.push(Item::Plan(path));
        }
    }
    plans.sort();
    Ok(plans)
}

/// What a sweep adds up to.
#[derive(Default, Serialize)]
struct Sum {
    tally: Tally,
    failures: Vec<Failed>,
    twice: u64,
    #[serde(skip)]
    scenario: Scenario,
    #[serde(skip)]
    cpu: Vec<Duration>,
    #[serde(skip)]
    names: Vec<(String, Option<String>, Duration)>,
}

#[derive(Clone, Serialize)]
struct Failed {
    name: String,
    failures: Vec<Failure>,
    replay: String,
}

impl Sum {
    fn add(&mut self, item: &Item, report: &Report, cpu: Duration) {
        self.tally.add(&report.tally);
        self.cpu.push(cpu);
        let why = report.failures.first().map(|failure| format!("{}: {}", failure.by, failure.what));
        self.names.push((item.name(), why, cpu));
        if !report.failures.is_empty() {
            self.failures.push(Failed {
                name: item.name(),
                failures: report.failures.clone(),
                replay: item.again(self.scenario),
            });
        }
    }
}

struct Work {
    items: Mutex<VecDeque<Item>>,
    until: Option<Instant>,
    limit: Duration,
    twice: Option<u64>,
    canary: Option<String>,
    scenario: Scenario,
}

enum News {
    Played(Item, Box<Answer>, bool),
    Broken(Stop),
}

impl Work {
    fn next(&self) -> Option<Item> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        self.items.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn stop(&self) {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn play(
        &self,
        here: &mut Place,
        elsewhere: Option<&mut Place>,
        item: &Item,
    ) -> Result<(Answer, bool), Stop> {
        let (seed, plan) = match item {
            Item::Seed(seed) => (Some(*seed), None),
            Item::Plan(path) => (None, Some(path.clone())),
        };
        let scenario = Some(self.scenario.to_string());
        let job = Job { seed, scenario, plan: plan.clone(), canary: self.canary.clone(), log: None };
        let number = seed.unwrap_or(0);
        let mut answer = here.play(number, &job)?;
        let again = elsewhere.filter(|_| self.twice.is_some_and(|one_in| number % one_in == 0));
        let Some(elsewhere) = again else { return Ok((answer, false)) };
        let second = elsewhere.play(number, &job)?;
        if second.report != answer.report {
            let how = match compare(self.scenario, number, plan.as_deref(), self.limit)? {
                Compared::Differ(how) => how,
                Compared::Same(_) => "and a third and a fourth run do not".to_owned(),
            };
            answer
                .report
                .failures
                .insert(0, Failure { by: "determinism".to_owned(), what: format!("two runs differ; {how}") });
        }
        Ok((answer, true))
    }

    fn work(&self, news: &Sender<News>) {
        let mut here = Place::new(self.limit);
        let mut elsewhere = match self.twice.map(|_| Place::elsewhere(self.limit)).transpose() {
            Ok(elsewhere) => elsewhere,
            Err(stop) => return drop(news.send(News::Broken(stop))),
        };
        while let Some(item) = self.next() {
            let played = match self.play(&mut here, elsewhere.as_mut(), &item) {
                Ok((answer, twice)) => News::Played(item, Box::new(answer), twice),
                Err(stop) => News::Broken(stop),
            };
            if news.send(played).is_err() {
                return;
            }
        }
    }
}

fn bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} runs, {per_sec}, {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(500));
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

fn collect(
    sum: &mut Sum,
    news: &Receiver<News>,
    work: &Work,
    file: &mut Option<File>,
    bar: &ProgressBar,
) -> Result<(), Stop> {
    let terminal = std::io::stderr().is_terminal();
    let begin = Instant::now();
    let mut told = begin;
    for played in news {
        let (item, answer, twice) = match played {
            News::Played(item, answer, twice) => (item, answer, twice),
            News::Broken(stop) => {
                work.stop();
                return Err(stop);
            }
        };
        let Answer { report, cpu, .. } = *answer;
        sum.add(&item, &report, cpu);
        sum.twice += u64::from(twice);
        if let Some(failure) = report.failures.first() {
            let line = format!(
                "FAILED {}: {}: {}\n       replay with: {}",
                item.name(),
                failure.by,
                failure.what,
                item.again(work.scenario)
            );
            bar.suspend(|| say(line));
            if work.canary.is_some() {
                work.stop();
            }
        }
        if let Some(file) = file {
            let line = serde_json::to_string(&Done { item, report, cpu }).expect("a report is JSON");
            writeln!(file, "{line}").map_err(because(WRONG, "the file to go on from"))?;
        }
        bar.inc(1);
        bar.set_message(format!(
            "{:.0} s simulated, {} failed",
            sum.tally.simulated.as_secs_f64(),
            sum.failures.len()
        ));
        // Where there is no terminal, a line now and then shows that it goes on.
        if !terminal && told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            eprintln!(
                "{} runs in {} s, {} failed",
                sum.tally.runs,
                begin.elapsed().as_secs(),
                sum.failures.len()
            );
        }
    }
    Ok(())
}

pub(crate) fn run(args: &Args) -> Result<u8, Stop> {
    let (seeds, twice, strict) = match args.tier {
        None => (args.seeds.clone().unwrap_or(0..0), args.twice, args.strict_probes),
        Some(Tier::Ci) => {
            (args.seeds.clone().unwrap_or(0..200), Some(args.twice.unwrap_or(1)), args.strict_probes)
        }
        Some(Tier::Nightly) => (args.seeds.clone().unwrap_or(0..5_000), Some(args.twice.unwrap_or(10)), true),
    };
    let mut items: VecDeque<Item> = if args.canary.is_none() && args.scenario == Scenario::Swarm {
        corpus(&args.corpus)?.into()
    } else {
        VecDeque::new()
    };
    let (part, of) = args.shard;
    items.extend(seeds.filter(|seed| seed % of == part - 1).map(Item::Seed));
    let mut sum = Sum { scenario: args.scenario, ..Sum::default() };
    let mut file = None;
    if let Some(path) = &args.resume {
        let (done, opened) = resume(path, args.scenario)?;
        file = Some(opened);
        let before: BTreeSet<Item> = done.iter().map(|done| done.item.clone()).collect();
        done.iter().for_each(|done| sum.add(&done.item, &done.report, done.cpu));
        items.retain(|item| !before.contains(item));
        say(format!("{} runs were done before, {} are left", before.len(), items.len()));
    }
    let jobs =
        args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |jobs| jobs.get() as u64));
    let begin = Instant::now();
    let bar = bar(items.len() as u64);
    let work = Work {
        items: Mutex::new(items),
        until: args.budget.map(|budget| begin + budget),
        limit: args.limit,
        twice,
        canary: args.canary.map(|canary| canary.name().to_owned()),
        scenario: args.scenario,
    };
    let result = std::thread::scope(|threads| {
        let (news, heard) = channel();
        for _ in 0..jobs {
            let (work, news) = (&work, news.clone());
            threads.spawn(move || work.work(&news));
        }
        drop(news);
        collect(&mut sum, &heard, &work, &mut file, &bar)
    });
    bar.finish_and_clear();
    result?;
    let left = work.items.lock().unwrap_or_else(PoisonError::into_inner).len();
    report(args, &sum, begin.elapsed(), left, strict)
}

/// What a sweep counted, with every fault that its seeds draw: one that never came about is missing otherwise.
fn expected(scenario: Scenario, counted: &Tally) -> Tally {
    let mut tally = counted.clone();
    names(scenario).iter().for_each(|name| tally.fault(name, 0, 0));
    tally
}

/// Faults and probes that did nothing over the whole sweep.
fn idle(tally: &Tally) -> Vec<String> {
    let waits = |name: &String| summary::ELSEWHERE.contains(&name.as_str());
    let faults = tally.faults.iter().filter(|(name, [_, effective])| *effective == 0 && !waits(name));
    let probes = tally.probes.iter().filter(|(name, hits)| **hits == 0 && !waits(name));
    let faults = faults.map(|(name, _)| format!("fault {name}"));
    faults.chain(probes.map(|(name, _)| format!("probe {name}"))).collect()
}

fn report(args: &Args, sum: &Sum, took: Duration, left: usize, strict: bool) -> Result<u8, Stop> {
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(sum).expect("a sum is JSON");
        fs::write(path, text + "\n").map_err(because(WRONG, path.display()))?;
    }
    if let Some(path) = &args.junit {
        fs::write(path, junit(sum)).map_err(because(WRONG, path.display()))?;
    }
    let mut cpu = sum.cpu.clone();
    cpu.sort();
    let at =
        |percent: usize| cpu.get((cpu.len().saturating_sub(1)) * percent / 100).copied().unwrap_or_default();
    let _ = write!(std::io::stdout(), "{}", summary::screen(None, &sum.tally));
    say(format!(
        "{} runs, {} of them twice, {:.0} s; CPU for a run: median {:.2} s, p99 {:.2} s",
        sum.tally.runs,
        sum.twice,
        took.as_secs_f64(),
        at(50).as_secs_f64(),
        at(99).as_secs_f64()
    ));
    if left > 0 {
        say(format!("{left} runs are left undone; the same command with --resume goes on"));
    }
    let mut by: BTreeMap<&str, u64> = BTreeMap::new();
    for failure in sum.failures.iter().flat_map(|failed| failed.failures.first()) {
        *by.entry(&failure.by).or_default() += 1;
    }
    for failed in &sum.failures {
        let first = failed.failures.first().map(|failure| failure.by.as_str()).unwrap_or_default();
        say(format!("FAILED {} ({first}): {}", failed.name, failed.replay));
    }
    if !sum.failures.is_empty() {
        let by: Vec<String> = by.iter().map(|(by, count)| format!("{by} {count}")).collect();
        say(format!("{} runs failed: {}", sum.failures.len(), by.join(", ")));
        return Ok(if by.iter().any(|by| by.starts_with("determinism")) { DIFFERS } else { FAILED });
    }
    if sum.tally.knows_too_little() {
        say(
            "too little is known: more writes than may be had an unknown outcome although their clients were not cut off",
        );
        return Ok(FAILED);
    }
    let idle = if strict { idle(&expected(args.scenario, &sum.tally)) } else { Vec::new() };
    if !idle.is_empty() {
        say(format!("never did anything over the whole sweep: {}", idle.join(", ")));
        return Ok(FAILED);
    }
    say("clean");
    Ok(0)
}

fn junit(sum: &Sum) -> String {
    let escape = |text: &str| {
        let mut safe = String::new();
        for c in text.chars() {
            match c {
                '&' => safe.push_str("&amp;"),
                '<' => safe.push_str("&lt;"),
                '>' => safe.push_str("&gt;"),
                '"' => safe.push_str("&quot;"),
                c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
                c => safe.push(c),
            }
        }
        safe
    };
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    text += &format!(
        "<testsuite name=\"sim\" tests=\"{}\" failures=\"{}\">\n",
        sum.names.len(),
        sum.failures.len()
    );
    for (name, why, cpu) in &sum.names {
        text += &format!(
            "  <testcase classname=\"sim\" name=\"{}\" time=\"{:.3}\"",
            escape(name),
            cpu.as_secs_f64()
        );
        match why {
            None => text += "/>\n",
            Some(why) => text += &format!(">\n    <failure message=\"{}\"/>\n  </testcase>\n", escape(why)),
        }
    }
    text + "</testsuite>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_shards_and_times_are_read_and_nonsense_is_refused() {
        assert_eq!(seeds("0..500"), Ok(0..500));
        assert_eq!(seeds("10_000..20_000"), Ok(10_000..20_000));
        assert_eq!(shard("2/4"), Ok((2, 4)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for wrong in ["", "5", "5..5", "6..5", "a..b", "-1..3"] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0/4", "5/4", "1", "1/0", "a/b"] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "10", "m", "1.5h", "-1s", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
