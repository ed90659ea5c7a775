//! Whole runs: a plan is carried out as it stands, the same seed gives the same run, and known mistakes are found.
#![cfg(madsim)]

use std::io::Write;
use std::sync::{Arc, Mutex};

use ringdove::observe::{Canary, POINTS, SITES};
use sim::net::fault::NetFault;
use sim::plan::{Action, DiskFault, Entry, Plan, Trigger};
use sim::play::{Options, play};
use sim::report::Report;
use sim::settings::Mix;

fn run(plan: &Plan) -> Report {
    play(plan, Options::default()).unwrap().report
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log_of(plan: &Plan) -> (Report, Vec<String>) {
    let log = Log::default();
    let options = Options { log: Some(Box::new(log.clone())), ..Options::default() };
    let report = play(plan, options).unwrap().report;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (report, text.lines().map(str::to_owned).collect())
}

/// A small run without faults.
fn quiet(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed);
    let settings = &mut plan.settings;
    (settings.nodes, settings.replicas, settings.r, settings.w) = (3, 3, 2, 2);
    (settings.clients, settings.operations, settings.keys) = (2, 40, 5);
    (settings.interval_ms, settings.own_quorums, settings.pause_us) = (0, false, 20_000);
    (settings.sync_us, settings.delay_us, settings.timeout_ms) = ((200, 4_000), (100, 2_000), 1_500);
    settings.mix = Mix { get: 4, put: 4, blind: 1, current: 1, delete: 1, ttl: 1, ..Mix::default() };
    settings.buggify.clear();
    plan.entries.clear();
    plan
}

fn is(line: &str, node: &str, kind: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    words.next() == Some(node) && words.next() == Some(kind)
}

fn count(log: &[String], node: &str, kind: &str) -> u64 {
    log.iter().filter(|line| is(line, node, kind)).count() as u64
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let seven = run(&Plan::draw(7));
    assert!(seven.tally.with_outcome("ok") > 50, "{seven:?}");
    for seed in 0..7 {
        assert_ne!(run(&Plan::draw(seed)).trace_hash, seven.trace_hash);
    }
    // After other seeds in this process, and beside another run of itself.
    let beside = std::thread::scope(|threads| {
        let runs = [(); 2].map(|()| threads.spawn(|| run(&Plan::draw(7))));
        runs.map(|run| run.join().unwrap())
    });
    assert_eq!(beside, [seven.clone(), seven]);
}

#[test]
fn a_plan_is_the_same_after_it_was_written_down() {
    for seed in 0..300 {
        let plan = Plan::draw(seed);
        plan.check().unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan, "seed {seed}");
    }
}

#[test]
fn a_plan_that_makes_no_sense_is_refused_with_the_reason() {
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut plan = quiet(1);
        change(&mut plan);
        plan.check().unwrap_err()
    };
    let entry = |at_ms, when| Entry { at_ms, when, action: Action::HealNet };
    assert!(refused(&|plan| plan.version = 99).contains("version 99"));
    assert!(refused(&|plan| plan.settings.replicas = 9).contains("replicas"));
    assert!(refused(&|plan| plan.settings.partitions = 9).contains("partitions"));
    assert!(refused(&|plan| plan.entries.push(entry(None, None))).contains("entry 0"));
    assert!(refused(&|plan| plan.settings.buggify.push("nowhere".to_owned())).contains("buggify"));
    let unknown = serde_json::to_string(&quiet(1)).unwrap().replace("\"nodes\"", "\"noodles\"");
    assert!(serde_json::from_str::<Plan>(&unknown).unwrap_err().to_string().contains("noodles"));
}

#[test]
fn a_late_entry_leaves_everything_before_it_as_it_was() {
    let plan = Plan::draw(3);
    let (_, before) = log_of(&plan);
    let late = 10_000;
    let mut edited = plan;
    edited.entries.push(Entry { at_ms: Some(late), when: None, action: Action::PowerLossOfAll });
    let (_, after) = log_of(&edited);
    let until = |log: &[String]| {
        let is_before =
            |line: &&String| line.split('.').next().unwrap().trim().parse::<u64>().unwrap() < late / 1000;
        log.iter().take_while(is_before).count()
    };
    let same = until(&before);
    assert!(same > 1_000 && before.len() > same, "{same} of {}", before.len());
    assert_eq!(same, until(&after));
    assert_eq!(before[..same], after[..same]);
    assert_ne!(before, after);
}

#[test]
fn an_entry_fires_at_its_event_and_at_no_other() {
    // Without reaping: it goes on after the heal, when no entry fires any more, and the last sync would be one of its own.
    let quiet = |seed| {
        let mut plan = quiet(seed);
        plan.settings.grace_ms = 3_600_000;
        plan
    };
    let (_, before) = log_of(&quiet(11));
    let syncs = count(&before, "n2", "disk-sync");
    assert!(syncs > 20, "{syncs}");
    for at in [1, 17, syncs] {
        let mut plan = quiet(11);
        let when = Trigger { node: "n2".to_owned(), event: "disk-sync".to_owned(), count: at };
        let action = Action::PowerLoss { node: "n2".to_owned(), back_after_ms: None };
        plan.entries.push(Entry { at_ms: None, when: Some(when), action });
        let (report, log) = log_of(&plan);
        assert_eq!(report.failures, []);
        let lost = log.iter().position(|line| is(line, "nemesis", "power-loss")).expect("it fires");
        assert_eq!(count(&log[..lost], "n2", "disk-sync"), at);
        assert_eq!(count(&log[lost..], "nemesis", "power-loss"), 1);
    }
}

#[test]
fn a_point_of_node_code_is_an_event_like_any_other() {
    let mut plan = quiet(12);
    let when = Trigger { node: "n1".to_owned(), event: "point:dot-made".to_owned(), count: 3 };
    plan.entries.push(Entry {
        at_ms: None,
        when: Some(when),
        action: Action::Kill { node: "n1".to_owned() },
    });
    plan.entries.push(Entry {
        at_ms: Some(900),
        when: None,
        action: Action::Start { node: "n1".to_owned() },
    });
    let (report, log) = log_of(&plan);
    assert_eq!(report.failures, []);
    let killed = log.iter().position(|line| is(line, "nemesis", "kill")).expect("it fires");
    assert_eq!(count(&log[..killed], "n1", "point:dot-made"), 3);
}

/// The power goes at the kth sync of a node, for every k that the run has.
#[test]
fn nothing_is_lost_whichever_sync_the_power_goes_at() {
    let plan = quiet(13);
    let (_, log) = log_of(&plan);
    let syncs = count(&log, "n1", "disk-sync") + count(&log, "n1", "disk-sync-dir");
    assert!(syncs > 30, "{syncs}");
    for kind in ["disk-sync", "disk-sync-dir"] {
        for count in 1..=count(&log, "n1", kind) {
            let mut plan = plan.clone();
            let when = Trigger { node: "n1".to_owned(), event: kind.to_owned(), count };
            let action = Action::PowerLoss { node: "n1".to_owned(), back_after_ms: None };
            plan.entries.push(Entry { at_ms: None, when: Some(when), action });
            plan.entries.push(Entry {
                at_ms: Some(700),
                when: None,
                action: Action::Start { node: "n1".to_owned() },
            });
            assert_eq!(run(&plan).failures, [], "the power went at {kind} number {count}");
        }
    }
    println!("{syncs} syncs, the power lost at each");
}

#[test]
fn a_failed_sync_stops_the_node_and_costs_nothing() {
    for nth in 1..=30 {
        let mut plan = quiet(14);
        let action = Action::Disk { node: "n3".to_owned(), fault: DiskFault::SyncError { nth } };
        plan.entries.push(Entry { at_ms: Some(250), when: None, action });
        // What the failed sync gave up is gone from the disk, though not from the page cache.
        plan.entries.push(Entry {
            at_ms: Some(2_000),
            when: None,
            action: Action::PowerLoss { node: "n3".to_owned(), back_after_ms: None },
        });
        let report = run(&plan);
        assert_eq!(report.failures, [], "the sync that fails is number {nth}");
        assert!(report.tally.starts >= 4, "{report:?}");
    }
}

/// Each known mistake is found within 200 seeds, by a run that is clean without it.
#[test]
fn every_canary_is_found() {
    for canary in Canary::ALL {
        let failures = |seed: u64| {
            let options = Options { canary: Some(canary), ..Options::default() };
            play(&Plan::draw(seed), options).unwrap().report.failures
        };
        let found = (0..200).map(|seed| (seed, failures(seed))).find(|(_, failures)| !failures.is_empty());
        let (seed, failures) = found.unwrap_or_else(|| panic!("nobody noticed {}", canary.name()));
        println!("{}: found by seed {seed}: {:?}", canary.name(), failures[0]);
        assert_eq!(run(&Plan::draw(seed)).failures, [], "seed {seed} fails without {} too", canary.name());
        assert_ne!(failures[0].by, "panic", "{failures:?}");
    }
}

#[test]
fn a_panic_is_a_failure_like_any_other_and_leaves_what_was_seen_before() {
    let mut plan = quiet(16);
    // Nobody may set a clock that stands still.
    let action = Action::MonoDrift { node: "n1".to_owned(), ppm: 600_000 };
    plan.entries.push(Entry { at_ms: Some(1_500), when: None, action });
    let cut = NetFault::Cut { from: "n1".to_owned(), to: "n2".to_owned() };
    plan.entries.push(Entry { at_ms: Some(300), when: None, action: Action::Net { fault: cut } });
    let played = play(&plan, Options { keep_history: true, ..Options::default() }).unwrap();
    let (report, mut history) = (played.report, Vec::new());
    assert_eq!(report.failures[0].by, "panic");
    assert!(report.failures[0].what.contains("drift must stay under half the speed"), "{report:?}");
    assert!(report.trace_hash != "0000000000000000" && report.tally.events > 500, "{report:?}");
    assert!(report.tally.with_outcome("ok") > 5 && report.tally.probes["point dot-made"] > 5);
    assert_eq!(report.tally.faults["cut"][0], 1, "{:?}", report.tally.faults);
    played.history.write(&mut history, &mut Vec::new()).unwrap();
    let lines = history.iter().filter(|byte| **byte == b'\n').count();
    assert!(lines > 20, "{lines}");
    assert_eq!(run(&plan), report, "also twice the same");
}

#[test]
fn convergence_that_takes_too_long_is_named_with_the_reasons() {
    let mut plan = quiet(17);
    plan.settings.converge_within_ms = Some(0);
    plan.settings.anti_entropy_ms = 10_000;
    // n3 misses what is written meanwhile, and nobody keeps it.
    plan.settings.strict = true;
    for (from, to) in [("n1", "n3"), ("n3", "n1"), ("n2", "n3"), ("n3", "n2")] {
        let fault = NetFault::Cut { from: from.to_owned(), to: to.to_owned() };
        plan.entries.push(Entry { at_ms: Some(250), when: None, action: Action::Net { fault } });
    }
    let report = run(&plan);
    let named: Vec<_> =
        report.failures.iter().filter(|failure| failure.by == "convergence-in-time").collect();
    assert!(named.iter().any(|failure| failure.what.contains("because: ")), "{report:?}");
    let convergence = report.tally.convergence.unwrap();
    assert!(convergence.taken >= convergence.within, "{convergence:?}");
}

#[test]
fn there_are_enough_points_and_every_one_is_reported() {
    assert!(POINTS.len() >= 20);
    let probes = run(&quiet(15)).tally.probes;
    for point in POINTS {
        assert!(probes.contains_key(&format!("point {point}")), "{point}");
    }
    for site in SITES {
        assert!(probes.contains_key(&format!("site {site}")), "{site}");
    }
    assert!(probes["point dot-made"] > 10 && probes["point group-durable"] > 10, "{probes:?}");
}

/// Every plan in the corpus failed once, by a mistake that was mended since.
#[test]
#[allow(clippy::disallowed_methods)] // reads files of the repository
fn the_corpus_is_clean() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
    let mut plans = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let plan: Plan = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(run(&plan).failures, [], "{}", path.display());
        plans += 1;
    }
    assert!(plans >= 17, "{plans}: no plan leaves the corpus");
}
