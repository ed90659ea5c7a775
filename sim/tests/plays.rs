//! Whole runs: a plan is carried out as it stands, the same seed gives the same run, and known mistakes are found.
#![cfg(madsim)]

use std::io::Write;
use std::sync::{Arc, Mutex};

use ringdove::observe::{Canary, POINTS, SITES};
use sim::net::fault::NetFault;
use sim::plan::{Action, DiskFault, Entry, GrayClass, Plan, Trigger, Why, names};
use sim::play::{Options, play};
use sim::report::Report;
use sim::scenario::Scenario;
use sim::settings::Mix;
use sim::trace::EVENTS;

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
    let entry = |at_ms, when| Entry { at_ms, when, why: None, action: Action::HealNet };
    assert!(refused(&|plan| plan.version = 99).contains("version 99"));
    assert!(refused(&|plan| plan.settings.replicas = 9).contains("replicas"));
    assert!(refused(&|plan| plan.settings.partitions = 9).contains("partitions"));
    assert!(refused(&|plan| plan.entries.push(entry(None, None))).contains("entry 0"));
    assert!(refused(&|plan| plan.settings.buggify.push("nowhere".to_owned())).contains("buggify"));
    let unknown = serde_json::to_string(&quiet(1)).unwrap().replace("\"nodes\"", "\"noodles\"");
    assert!(serde_json::from_str::<Plan>(&unknown).unwrap_err().to_string().contains("noodles"));
}

#[test]
fn what_a_plan_says_and_nobody_would_heed_is_refused() {
    let mut plan = quiet(1);
    let cut = NetFault::Cut { from: "n1".to_owned(), to: "c1".to_owned() };
    let actions = [
        Action::Net { fault: cut },
        Action::PowerLoss { node: "n2".to_owned(), back_after_ms: Some(7) },
        Action::Disk { node: "n3".to_owned(), fault: DiskFault::Slow { ms: 3 } },
    ];
    for action in actions {
        plan.entries.push(Entry { at_ms: Some(5), when: None, why: Some(Why::OneWay), action });
    }
    let text = serde_json::to_string(&plan).unwrap();
    let read = |text: &str| serde_json::from_str::<Plan>(text).map_err(|error| error.to_string());
    assert_eq!(read(&text).unwrap(), plan);
    for (right, wrong) in [
        ("\"back_after_ms\":7", "\"back_after\":7"),
        ("\"do\":\"net\"", "\"do\":\"net\",\"until_ms\":9"),
        ("\"from\":\"n1\"", "\"from\":\"n1\",\"both\":true"),
        ("\"ms\":3", "\"ms\":3,\"us\":3"),
        ("\"why\":\"one-way\"", "\"why\":\"one-weigh\""),
    ] {
        assert!(text.contains(right), "{text}");
        let why = read(&text.replacen(right, wrong, 1)).unwrap_err();
        assert!(why.contains("unknown"), "{wrong}: {why}");
    }
    for (right, wrong) in [("\"n2\"", "\"n9\""), ("\"c1\"", "\"c7\"")] {
        let read = read(&text.replacen(right, wrong, 1)).unwrap();
        assert!(read.check().unwrap_err().contains("there is no"), "{wrong}");
    }
    for (node, event) in [("n9", "disk-sync"), ("n1", "disk.synced"), ("n1", "point:nowhere")] {
        let when = Some(Trigger { node: node.to_owned(), event: event.to_owned(), count: 1 });
        let mut plan = quiet(1);
        plan.entries.push(Entry { at_ms: None, when, why: None, action: Action::PowerLossOfAll });
        assert!(plan.check().unwrap_err().contains("there is no"), "{node} {event}");
    }
}

#[test]
fn every_event_of_a_host_is_one_that_a_plan_may_name() {
    for seed in 0..6 {
        let (_, log) = log_of(&Plan::draw(seed));
        for line in log {
            let mut words = line.split(' ').skip(1);
            let (Some(host), Some(kind)) = (words.next(), words.next()) else { continue };
            let of_host = host.len() == 2 && host.starts_with(['n', 'c']);
            let is_known = kind.starts_with("point:") || kind.starts_with('(') || EVENTS.contains(&kind);
            assert!(!of_host || is_known || ["changed", "whole"].contains(&kind), "{line}");
        }
    }
}

#[test]
fn settings_are_drawn_from_what_the_swarm_is_to_cover() {
    let (mut nodes, mut mixed) = (std::collections::BTreeSet::new(), 0);
    for seed in 0..600 {
        let settings = Plan::draw(seed).settings;
        nodes.insert(settings.nodes);
        mixed += u32::from(settings.mixed);
        let operations = settings.operations * settings.clients;
        assert!((1_990..=5_000).contains(&operations), "seed {seed}: {operations}");
        let seconds = settings.span().as_secs_f64();
        assert!((19.9..40.1).contains(&seconds), "seed {seed}: {seconds}");
    }
    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6, 7, 9]);
    assert!(mixed > 100, "{mixed}");
}

/// Data waits at one node whose heartbeats are answered, and the reverse.
#[test]
fn a_gray_node_answers_one_class_of_requests_and_not_the_other() {
    for (waits, name) in
        [(GrayClass::Data, "gray-data-waits"), (GrayClass::Heartbeats, "gray-heartbeats-wait")]
    {
        let mut plan = quiet(16);
        plan.settings.gossip_ms = 200;
        let calm = run(&plan);
        let gray = Action::Gray { node: "n1".to_owned(), waits };
        plan.entries.push(Entry { at_ms: Some(300), when: None, why: None, action: gray });
        let end = Action::GrayEnd { node: "n1".to_owned() };
        plan.entries.push(Entry { at_ms: Some(4_000), when: None, why: None, action: end });
        let report = run(&plan);
        assert_eq!(report.failures, []);
        assert_eq!(report.tally.faults[name], [1, 1]);
        let slower = report.tally.simulated > calm.tally.simulated;
        assert!(slower || waits == GrayClass::Heartbeats, "{:?}", report.tally);
    }
}

#[test]
fn a_changed_byte_costs_the_connection_that_it_came_over() {
    let mut plan = quiet(17);
    for (at, from, to) in [(300, "c1", "n1"), (300, "c2", "n2"), (400, "n1", "n2"), (400, "n2", "n3")] {
        let fault = NetFault::Corrupt { from: from.to_owned(), to: to.to_owned(), nth: 3 };
        let action = Action::Net { fault };
        plan.entries.push(Entry { at_ms: Some(at), when: None, why: None, action });
    }
    let report = run(&plan);
    assert_eq!(report.failures, []);
    assert_eq!(report.tally.faults["corrupt"][0], 4);
    assert!(report.tally.faults["corrupt"][1] >= 2, "{:?}", report.tally.faults);
}

#[test]
fn what_is_a_part_of_something_is_counted_under_its_name_too() {
    let mut plan = quiet(18);
    let cut = |from: &str, to: &str| NetFault::Cut { from: from.to_owned(), to: to.to_owned() };
    for (at, why, action) in [
        (300, Why::Isolate, Action::Net { fault: cut("n1", "n2") }),
        (300, Why::Isolate, Action::Net { fault: cut("n2", "n1") }),
        (600, Why::CrashLoop, Action::PowerLoss { node: "n3".to_owned(), back_after_ms: Some(50) }),
        (700, Why::Strobe, Action::WallSkew { node: "n2".to_owned(), ms: 1 }),
    ] {
        plan.entries.push(Entry { at_ms: Some(at), when: None, why: Some(why), action });
    }
    plan.settings.skew_ms_max = 5;
    let report = run(&plan);
    assert_eq!(report.failures, []);
    let faults = report.tally.faults;
    assert_eq!((faults["isolate"][0], faults["crash-loop"], faults["strobe"]), (2, [1, 1], [1, 1]));
    assert!(faults["isolate"][1] > 0 && faults["cut"] == faults["isolate"], "{faults:?}");
    assert!(names(Scenario::Swarm).contains(&"strobe".to_owned()));
}

/// Nothing is excused where nothing can have been lost.
#[test]
fn only_what_may_have_been_lost_is_written_down_as_lost() {
    let lost = |entries: &[(u64, Action)]| {
        let mut plan = quiet(19);
        plan.entries = entries
            .iter()
            .map(|(at, action)| Entry { at_ms: Some(*at), when: None, why: None, action: action.clone() })
            .collect();
        let options = Options { keep_history: true, ..Options::default() };
        let played = play(&plan, options).unwrap();
        assert_eq!(played.report.failures, []);
        let mut json = Vec::new();
        played.history.write(&mut json, &mut Vec::new()).unwrap();
        String::from_utf8(json).unwrap().matches("\"lost\"").count()
    };
    let node = || "n1".to_owned();
    let power_loss = || Action::PowerLoss { node: node(), back_after_ms: Some(100) };
    assert_eq!(lost(&[(400, Action::Kill { node: node() }), (600, Action::Start { node: node() })]), 0);
    assert_eq!(lost(&[(400, Action::Stop { node: node() }), (2_000, power_loss())]), 0);
    assert_eq!(lost(&[(400, power_loss())]), 1);
}

/// The invariants look at the disks, and the executor's generator is drawn from, each simulated second until the end.
#[test]
fn each_second_is_looked_at_also_while_disks_are_refilled_and_read_for_the_last_time() {
    let plan = Plan::draw_for(Scenario::Destroy, 3);
    let (report, log) = log_of(&plan);
    assert_eq!(report.failures, []);
    let drawn = log.iter().filter(|line| is(line, "sim", "draw"));
    let at: Vec<f64> = drawn.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    for pair in at.windows(2) {
        assert!(pair[1] - pair[0] < 1.5, "nobody looked between {pair:?}");
    }
    assert!(at.len() > 10, "{at:?}");
    assert!(log.iter().any(|line| is(line, "nemesis", "converged")), "it converges on the way");
}

#[test]
fn a_late_entry_leaves_everything_before_it_as_it_was() {
    let plan = Plan::draw(3);
    let (_, before) = log_of(&plan);
    let late = 10_000;
    let mut edited = plan;
    edited.entries.push(Entry { at_ms: Some(late), when: None, why: None, action: Action::PowerLossOfAll });
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
    let (_, before) = log_of(&quiet(11));
    // No entry fires after the heal.
    let healed = before.iter().position(|line| is(line, "nemesis", "heal")).expect("it heals");
    let syncs = count(&before[..healed], "n2", "disk-sync");
    assert!(syncs > 20, "{syncs}");
    for at in [1, 17, syncs] {
        let mut plan = quiet(11);
        let when = Trigger { node: "n2".to_owned(), event: "disk-sync".to_owned(), count: at };
        let action = Action::PowerLoss { node: "n2".to_owned(), back_after_ms: None };
        plan.entries.push(Entry { at_ms: None, when: Some(when), why: None, action });
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
        why: None,
        action: Action::Kill { node: "n1".to_owned() },
    });
    plan.entries.push(Entry {
        at_ms: Some(900),
        when: None,
        why: None,
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
            plan.entries.push(Entry { at_ms: None, when: Some(when), why: None, action });
            plan.entries.push(Entry {
                at_ms: Some(700),
                when: None,
                why: None,
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
        plan.entries.push(Entry { at_ms: Some(250), when: None, why: None, action });
        // What the failed sync gave up is gone from the disk, though not from the page cache.
        plan.entries.push(Entry {
            at_ms: Some(2_000),
            when: None,
            why: None,
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
    plan.entries.push(Entry { at_ms: Some(1_500), when: None, why: None, action });
    let cut = NetFault::Cut { from: "n1".to_owned(), to: "n2".to_owned() };
    plan.entries.push(Entry { at_ms: Some(300), when: None, why: None, action: Action::Net { fault: cut } });
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
        plan.entries.push(Entry { at_ms: Some(250), when: None, why: None, action: Action::Net { fault } });
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
