//! `cargo sim sweep`: many seeds in worker processes, with a bar, a budget, shards, and a file to go on from.

use std::collections::{BTreeMap, VecDeque};
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
use sim::report::{Failure, Report};
use sim::scenario::Scenario;
use xxhash_rust::xxh3::xxh3_64;

use super::jobs::Place;
use super::twice::{Compared, compare};
use super::worker::{Answer, Job};
use super::{BROKEN, Stop, WRONG, because, of, say};

mod sum;

use sum::Sum;

/// Sets of flags that belong together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// 200 seeds, each twice.
    Ci,
    /// 5,000 seeds of the swarm and 500 of each other scenario, one in ten twice; what a scenario is to meet and did not fails it.
    Nightly,
}

#[derive(Flags)]
pub(crate) struct Args {
    /// First and last+1 seed, as `0..500`.
    #[arg(long, value_parser = seeds, required_unless_present = "tier")]
    seeds: Option<Range<u64>>,
    /// What the seeds are drawn for: `swarm`, `tcp`, `destroy`, `away`, `held`, `backup`, `wiped`, `rolling`, `members`, `defaults`.
    #[arg(long)]
    scenario: Option<Scenario>,
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
    #[arg(long, value_parser = super::canary, conflicts_with_all = ["resume", "tier", "twice"])]
    canary: Option<ringdove::observe::Canary>,
    /// Fail when a fault, a check or a probe that the scenario is to meet never did anything (`sim::catalogue`).
    #[arg(long, visible_alias = "strict-probes")]
    strict: bool,
    /// Have each run depend on its process, to see that comparing two runs finds it.
    #[arg(long, hide = true)]
    plant_divergence: bool,
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
    Seed(Scenario, u64),
}

impl Item {
    /// The line that plays it again, with what else it takes for the failure to show.
    fn again(&self, failures: &[Failure], canary: Option<&str>) -> String {
        let mut line = match self {
            Item::Seed(scenario, seed) => format!("cargo sim run{} --seed {seed}", of(*scenario)),
            Item::Plan(path) => format!("cargo sim run --plan {}", path.display()),
        };
        if failures.iter().any(|failure| failure.by == DETERMINISM) {
            line += " --twice";
        }
        if let Some(canary) = canary {
            line += &format!(" --canary {canary}");
        }
        line
    }

    fn name(&self) -> String {
        match self {
            Item::Seed(Scenario::Swarm, seed) => format!("seed {seed}"),
            Item::Seed(scenario, seed) => format!("seed {seed} of {scenario}"),
            Item::Plan(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
}

/// Something to play, and whether it is played once more elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    item: Item,
    twice: bool,
}

/// Who says that two runs of one seed differ.
const DETERMINISM: &str = "determinism";

/// One line of the file to go on from.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    item: Item,
    report: Report,
    cpu: Duration,
    /// Whether it was played once more elsewhere, and compared.
    twice: bool,
}

/// The first line of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// A hash of the program: what another build did says nothing of this one.
    build: String,
}

fn header() -> Result<Header, Stop> {
    let program =
        std::env::current_exe().and_then(fs::read).map_err(because(BROKEN, "this program's own file"))?;
    Ok(Header { build: format!("{:016x}", xxh3_64(&program)) })
}

/// Reads what is done already and opens the file for more.
fn resume(path: &Path) -> Result<(Vec<Done>, File), Stop> {
    let header = header()?;
    let mut done = Vec::new();
    let open = |options: &mut OpenOptions| options.open(path).map_err(because(WRONG, path.display()));
    let found = path.exists();
    if found {
        let mut lines = BufReader::new(open(OpenOptions::new().read(true))?).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        if serde_json::from_str::<Header>(&first).ok().as_ref() != Some(&header) {
            let why = "was written by another build of the simulator, and its results do not count for this one; name another file";
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

/// The plans of the corpus. They are the first that a mistake of old fails: without them a sweep is not what it seems.
fn corpus(dir: &Path) -> Result<Vec<Item>, Stop> {
    let mut plans = Vec::new();
    for entry in fs::read_dir(dir).map_err(because(WRONG, format_args!("the corpus {}", dir.display())))? {
        let path = entry.map_err(because(WRONG, dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            plans.push(Item::Plan(path));
        }
    }
    plans.sort();
    Ok(plans)
}

struct Work {
    tasks: Mutex<VecDeque<Task>>,
    until: Option<Instant>,
    limit: Duration,
    canary: Option<String>,
    plant_divergence: bool,
}

enum News {
    Played(Task, Box<Answer>),
    Broken(Stop),
}

impl Work {
    fn next(&self) -> Option<Task> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn stop(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn play(&self, here: &mut Place, elsewhere: &mut Place, task: &Task) -> Result<Answer, Stop> {
        let (seed, scenario, plan) = match &task.item {
            Item::Seed(scenario, seed) => (Some(*seed), *scenario, None),
            Item::Plan(path) => (None, Scenario::Swarm, Some(path.clone())),
        };
        let job = Job {
            seed,
            scenario,
            plan: plan.clone(),
            canary: self.canary.clone(),
            plant_divergence: self.plant_divergence,
            log: None,
        };
        let number = seed.unwrap_or(0);
        let mut answer = here.play(number, &job)?;
        if !task.twice {
            return Ok(answer);
        }
        let second = elsewhere.play(number, &job)?;
        if second.report != answer.report {
            let how = match compare(&job, self.limit)? {
                Compared::Differ(how) => how,
                Compared::Same(_) => "and a third and a fourth run do not".to_owned(),
            };
            let what = format!("two runs differ; {how}");
            answer.report.failures.insert(0, Failure { by: DETERMINISM.to_owned(), what });
        }
        Ok(answer)
    }

    fn work(&self, news: &Sender<News>) {
        let mut here = Place::new(self.limit);
        let mut elsewhere = match Place::elsewhere(self.limit) {
            Ok(elsewhere) => elsewhere,
            Err(stop) => return drop(news.send(News::Broken(stop))),
        };
        while let Some(task) = self.next() {
            let played = match self.play(&mut here, &mut elsewhere, &task) {
                Ok(answer) => News::Played(task, Box::new(answer)),
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
        let (Task { item, twice }, answer) = match played {
            News::Played(task, answer) => (task, answer),
            News::Broken(stop) => {
                work.stop();
                return Err(stop);
            }
        };
        let Answer { report, cpu, .. } = *answer;
        let done = Done { item, report, cpu, twice };
        sum.add(&done, work.canary.as_deref());
        let Done { item, report, .. } = &done;
        if let Some(failure) = report.failures.first() {
            let line = format!(
                "FAILED {}: {}: {}\n       replay with: {}",
                item.name(),
                failure.by,
                failure.what,
                item.again(&report.failures, work.canary.as_deref())
            );
            bar.suspend(|| say(line));
            if work.canary.is_some() {
                work.stop();
            }
        }
        if let Some(file) = file {
            let line = serde_json::to_string(&done).expect("a report is JSON");
            writeln!(file, "{line}").map_err(because(WRONG, "the file to go on from"))?;
        }
        bar.inc(1);
        bar.set_message(format!("{:.0} s simulated, {} failed", sum.simulated().as_secs_f64(), sum.failed()));
        // Where there is no terminal, a line now and then shows that it goes on.
        if !terminal && told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            eprintln!("{} runs in {} s, {} failed", sum.runs(), begin.elapsed().as_secs(), sum.failed());
        }
    }
    Ok(())
}

/// Seeds of each other scenario in the nightly tier.
const OTHERS: u64 = 500;

/// What there is to play: the corpus first, then seeds, of which every `twice`th of this part is played twice.
fn tasks(args: &Args, corpus: Vec<Item>, twice: Option<u64>) -> VecDeque<Task> {
    let is_nightly = args.tier == Some(Tier::Nightly);
    let swarm = match args.tier {
        None => 0..0,
        Some(Tier::Ci) => 0..200,
        Some(Tier::Nightly) => 0..5_000,
    };
    let seeds = args.seeds.clone().unwrap_or(swarm);
    let others = seeds.start..seeds.end.min(seeds.start.saturating_add(OTHERS));
    let mut played: Vec<(Scenario, Range<u64>)> = vec![(args.scenario.unwrap_or_default(), seeds)];
    if is_nightly && args.scenario.is_none() {
        let beside = Scenario::ALL.into_iter().filter(|scenario| *scenario != Scenario::Swarm);
        played.extend(beside.map(|scenario| (scenario, others.clone())));
    }
    let (part, of) = args.shard;
    let seeds = played.into_iter().flat_map(|(scenario, seeds)| {
        let mine = seeds.filter(move |seed| seed % of == part - 1);
        mine.enumerate().map(move |(place, seed)| {
            // By the place in this part: by the seed, a part of four with one in ten twice had none or too many.
            let twice = twice.is_some_and(|one_in| (place as u64).is_multiple_of(one_in));
            Task { item: Item::Seed(scenario, seed), twice }
        })
    });
    let corpus = corpus.into_iter().map(|item| Task { item, twice: twice.is_some() });
    corpus.chain(seeds).collect()
}

/// Of what was done before, what counts for these tasks: the last word on each, and twice where that is asked for.
fn counted(done: Vec<Done>, tasks: &VecDeque<Task>) -> BTreeMap<Item, Done> {
    let asked: BTreeMap<&Item, bool> = tasks.iter().map(|task| (&task.item, task.twice)).collect();
    let mut counted = BTreeMap::new();
    for done in done {
        if asked.get(&done.item).is_some_and(|twice| done.twice || !twice) {
            counted.insert(done.item.clone(), done);
        }
    }
    counted
}

pub(crate) fn run(args: &Args) -> Result<u8, Stop> {
    let twice = match args.tier {
        None => args.twice,
        Some(Tier::Ci) => args.twice.or(Some(1)),
        Some(Tier::Nightly) => args.twice.or(Some(10)),
    };
    let is_swarm = args.scenario.unwrap_or_default() == Scenario::Swarm;
    let plans = if args.canary.is_none() && is_swarm { corpus(&args.corpus)? } else { Vec::new() };
    let mut tasks = tasks(args, plans, twice);
    let mut sum = Sum::default();
    let mut file = None;
    if let Some(path) = &args.resume {
        let (done, opened) = resume(path)?;
        file = Some(opened);
        let before = counted(done, &tasks);
        before.values().for_each(|done| sum.add(done, None));
        tasks.retain(|task| !before.contains_key(&task.item));
        say(format!("{} runs were done before, {} are left", before.len(), tasks.len()));
    }
    let jobs =
        args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |jobs| jobs.get() as u64));
    let begin = Instant::now();
    let bar = bar(tasks.len() as u64);
    let work = Work {
        tasks: Mutex::new(tasks),
        until: args.budget.map(|budget| begin + budget),
        limit: args.limit,
        canary: args.canary.map(|canary| canary.name().to_owned()),
        plant_divergence: args.plant_divergence,
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
    let left = work.tasks.lock().unwrap_or_else(PoisonError::into_inner).len();
    if let Some(path) = &args.json {
        fs::write(path, sum.json()).map_err(because(WRONG, path.display()))?;
    }
    if let Some(path) = &args.junit {
        fs::write(path, sum.junit()).map_err(because(WRONG, path.display()))?;
    }
    let is_strict = args.strict || args.tier == Some(Tier::Nightly);
    Ok(sum.report(begin.elapsed(), left, is_strict))
}

#[cfg(test)]
mod tests {
    use sim::report::Tally;

    use super::super::FAILED;
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

    fn args(line: &str) -> Args {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        let words = std::iter::once("sweep").chain(line.split(' '));
        <Command as clap::Parser>::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).args
    }

    fn seeds_of(tasks: &VecDeque<Task>, twice: bool) -> Vec<u64> {
        let of = |task: &Task| match task.item {
            Item::Seed(_, seed) => (task.twice == twice).then_some(seed),
            Item::Plan(_) => None,
        };
        tasks.iter().filter_map(of).collect()
    }

    #[test]
    fn one_in_n_is_counted_within_each_shard() {
        let mut all = Vec::new();
        for part in 1..=4 {
            let args = args(&format!("--seeds 0..40 --shard {part}/4 --twice 2"));
            let tasks = tasks(&args, Vec::new(), args.twice);
            assert_eq!((seeds_of(&tasks, true).len(), seeds_of(&tasks, false).len()), (5, 5), "{part}/4");
            all.extend(seeds_of(&tasks, true));
            all.extend(seeds_of(&tasks, false));
        }
        all.sort_unstable();
        assert_eq!(all, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn the_nightly_tier_plays_every_scenario() {
        let args = args("--tier nightly");
        let tasks = tasks(&args, vec![Item::Plan(PathBuf::from("old.json"))], Some(10));
        let count = |of: Scenario| {
            tasks.iter().filter(|task| matches!(task.item, Item::Seed(scenario, _) if scenario == of)).count()
        };
        for scenario in Scenario::ALL {
            assert_eq!(count(scenario), if scenario == Scenario::Swarm { 5_000 } else { 500 }, "{scenario}");
        }
        assert_eq!(tasks.iter().filter(|task| task.twice).count(), 1 + 500 + 9 * 50);
        assert!(matches!(tasks[0].item, Item::Plan(_)));
    }

    fn done(seed: u64, twice: bool, failed: bool) -> Done {
        let failure = Failure { by: "frontier".to_owned(), what: String::new() };
        let failures = if failed { vec![failure] } else { Vec::new() };
        let report = Report { seed, trace_hash: String::new(), failures, tally: Tally::default() };
        Done { item: Item::Seed(Scenario::Swarm, seed), report, cpu: Duration::ZERO, twice }
    }

    #[test]
    fn what_was_done_once_does_not_count_where_twice_is_asked_for() {
        let args = args("--seeds 0..4 --twice 2");
        let tasks = tasks(&args, Vec::new(), args.twice);
        let before =
            vec![done(0, false, false), done(1, false, false), done(2, true, true), done(9, true, true)];
        let counted = counted(before, &tasks);
        let seeds: Vec<u64> = counted.values().map(|done| done.report.seed).collect();
        assert_eq!(seeds, [1, 2], "0 was to be twice, and 9 is none of these");
        let mut sum = Sum::default();
        counted.values().for_each(|done| sum.add(done, None));
        assert_eq!(sum.report(Duration::ZERO, 2, false), FAILED);
        assert_eq!(sum.twice, 1);
    }

    #[test]
    fn a_line_that_replays_has_what_it_takes() {
        let seed = Item::Seed(Scenario::Members, 7);
        let failure = |by: &str| vec![Failure { by: by.to_owned(), what: String::new() }];
        assert_eq!(seed.again(&failure("frontier"), None), "cargo sim run --scenario members --seed 7");
        assert_eq!(
            seed.again(&failure("determinism"), None),
            "cargo sim run --scenario members --seed 7 --twice"
        );
        assert_eq!(
            Item::Seed(Scenario::Swarm, 7).again(&failure("frontier"), Some("actor-kept")),
            "cargo sim run --seed 7 --canary actor-kept"
        );
    }
}
