//! The scenarios beside the default swarm: what each is for takes place, and the checks hold and can fail.
#![cfg(madsim)]

use std::collections::BTreeMap;

use ringdove::observe::Canary;
use sim::net::fault::NetFault;
use sim::plan::{Action, Destruction, Entry, Plan};
use sim::play::{Options, play};
use sim::report::{Report, Tally};
use sim::scenario::Scenario;
use sim::settings::Mix;
use sim::tcp::Weather;

fn run(plan: &Plan) -> Report {
    play(plan, Options::default()).unwrap().report
}

fn at(ms: u64, action: Action) -> Entry {
    Entry { at_ms: Some(ms), when: None, why: None, action }
}

/// Three nodes, two clients, no faults.
fn quiet(scenario: Scenario, seed: u64) -> Plan {
    let mut plan = Plan::draw_for(scenario, seed);
    let settings = &mut plan.settings;
    (settings.nodes, settings.replicas, settings.r, settings.w) = (3, 3, 2, 2);
    (settings.clients, settings.operations, settings.keys) = (2, 60, 5);
    (settings.interval_ms, settings.own_quorums, settings.pause_us) = (0, false, 20_000);
    settings.siblings_max = 100;
    (settings.sync_us, settings.delay_us, settings.timeout_ms) = ((200, 4_000), (100, 2_000), 1_500);
    settings.mix = Mix { get: 4, put: 4, blind: 1, current: 1, delete: 1, ..Mix::default() };
    settings.buggify.clear();
    plan.entries.clear();
    plan
}

#[test]
fn the_real_net_carries_whole_runs_and_every_one_is_the_same_twice() {
    let (mut messages, mut cuts) = (0, 0);
    for seed in 0..25 {
        let plan = Plan::draw_for(Scenario::Tcp, seed);
        let report = run(&plan);
        assert_eq!(report.failures, [], "cargo sim run --scenario tcp --seed {seed}");
        assert_eq!(run(&plan), report, "seed {seed}");
        messages += report.tally.probes["messages over madsim's network"];
        cuts += report.tally.faults.get("cut").map_or(0, |count| count[1]);
    }
    assert!(messages > 100_000 && cuts > 100, "{messages} messages, {cuts} cuts");
}

#[test]
fn on_the_real_net_cuts_and_weather_are_felt() {
    let calm = run(&quiet(Scenario::Tcp, 1));
    assert_eq!(calm.failures, []);
    assert_eq!(calm.tally.with_outcome("fail") + calm.tally.with_outcome("unknown"), 0);
    let cut = |from: &str, to: &str| {
        at(200, Action::Net { fault: NetFault::Cut { from: from.to_owned(), to: to.to_owned() } })
    };
    // Nobody reaches anybody else: only with both others cut off can n1 not find W=2.
    let mut plan = quiet(Scenario::Tcp, 1);
    let ends = [("n1", "n2"), ("n2", "n3"), ("n3", "n1")];
    plan.entries = ends.iter().flat_map(|(a, b)| [cut(a, b), cut(b, a)]).collect();
    let apart = run(&plan);
    assert_eq!(apart.failures, [], "what was refused or unknown breaks no promise");
    assert!(apart.tally.with_outcome("ok") < calm.tally.with_outcome("ok") / 2, "{:?}", apart.tally);
    assert_eq!(apart.tally.faults["cut"], [6, 6]);
    let mut plan = quiet(Scenario::Tcp, 1);
    let weather = Weather { loss_percent: 30, latency_us: (20_000, 60_000) };
    plan.entries = vec![at(200, Action::Weather { weather })];
    let stormy = run(&plan);
    assert_eq!(stormy.failures, []);
    assert!(stormy.tally.simulated > calm.tally.simulated, "{:?}", stormy.tally);
}

#[test]
fn a_mistake_of_the_nodes_is_found_on_the_real_net_too() {
    for canary in Canary::ALL {
        let finds = |seed: &u64| {
            let options = Options { canary: Some(canary), ..Options::default() };
            let played = play(&Plan::draw_for(Scenario::Tcp, *seed), options);
            played.is_ok_and(|played| !played.report.failures.is_empty())
        };
        assert!((0..200).any(|seed| finds(&seed)), "nobody noticed {}", canary.name());
    }
}

#[test]
fn a_plan_asks_each_network_only_for_what_it_can_do() {
    let slow = Action::Net { fault: NetFault::Slow { from: "n1".to_owned(), to: "n2".to_owned(), ms: 5 } };
    let weather = Action::Weather { weather: Weather { loss_percent: 1, latency_us: (1, 2) } };
    for (scenario, action) in [(Scenario::Tcp, slow), (Scenario::Swarm, weather)] {
        let mut plan = quiet(scenario, 1);
        plan.check().unwrap();
        plan.entries.push(at(1, action));
        assert!(plan.check().unwrap_err().contains("entry 0"), "{scenario}");
    }
}

fn destroy(node: &str, how: Destruction) -> Action {
    Action::Destroy { node: node.to_owned(), how, back_after_ms: 300 }
}

/// Three nodes, W=2, reads of all three.
fn to_destroy(seed: u64) -> Plan {
    let mut plan = quiet(Scenario::Destroy, seed);
    (plan.settings.r, plan.settings.w, plan.settings.operations) = (3, 2, 120);
    plan
}

#[test]
fn whatever_is_destroyed_within_the_budget_nothing_acknowledged_is_missing() {
    let mut faults: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for seed in 0..24 {
        let report = run(&Plan::draw_for(Scenario::Destroy, seed));
        assert_eq!(report.failures, [], "cargo sim run --scenario destroy --seed {seed}");
        for (name, [fired, effective]) in report.tally.faults {
            let of_all = faults.entry(name).or_default();
            (of_all[0], of_all[1]) = (of_all[0] + fired, of_all[1] + effective);
        }
    }
    for kind in ["Wipe", "Rollback", "Truncate", "BitFlip", "MisdirectedWrite", "SyncLie"] {
        let [fired, effective] = faults[&format!("disk {kind}")];
        assert!(fired >= 5 && effective >= 3, "{kind}: {effective} of {fired}");
    }
    assert!(faults["converge"][1] > 24, "{faults:?}");
}

#[test]
fn a_plan_that_destroys_more_than_the_budget_fails_and_the_disk_is_spared() {
    let wipe = |ms, node| at(ms, destroy(node, Destruction::Wipe));
    let mut plan = to_destroy(1);
    plan.entries = vec![wipe(500, "n1"), wipe(900, "n2")];
    let report = run(&plan);
    assert_eq!(report.failures.len(), 1, "{report:?}");
    assert!(
        report.failures[0].what.contains("the disk of n2 too, beside n1: more than W-1 = 1"),
        "{report:?}"
    );
    assert_eq!(report.tally.faults["disk Wipe"][0], 1);
    // After a convergence it may.
    plan.entries.insert(1, at(800, Action::Converge));
    let report = run(&plan);
    assert_eq!(report.failures, []);
    assert_eq!(report.tally.faults["disk Wipe"], [2, 2]);
}

/// What the budget excuses is no more than it says: without it the same loss is seen by the invariant that counts disks.
#[test]
fn two_of_three_disks_wiped_at_once_lose_writes_and_the_checks_see_it() {
    let mut plan = to_destroy(2);
    // The guard counts by W: this claims three copies of each write and asks for one.
    plan.settings.w = 3;
    plan.settings.own_quorums = true;
    // What is acknowledged with the third cut off is on the first two alone.
    for node in ["n1", "n2"] {
        let fault = NetFault::Cut { from: node.to_owned(), to: "n3".to_owned() };
        plan.entries.push(at(250, Action::Net { fault }));
        plan.entries.push(at(700, destroy(node, Destruction::Wipe)));
    }
    let seen = (2..40).any(|seed| {
        plan.seed = seed;
        let failures = run(&plan).failures;
        assert!(!failures.iter().any(|failure| failure.what.contains("W-1")), "{failures:?}");
        failures.iter().any(|failure| failure.what.contains("no disk holds the acknowledged write"))
    });
    assert!(seen, "nobody missed what was only on the wiped disks");
}

/// Each scenario that is about one thing: some seeds are clean, and that thing takes place.
#[test]
fn the_scenarios_that_are_about_one_thing_bring_it_about() {
    for (scenario, fault) in [
        (Scenario::Away, None),
        (Scenario::Held, Some("hold")),
        (Scenario::Backup, Some("disk Rollback")),
        (Scenario::Wiped, Some("disk Wipe")),
        (Scenario::Rolling, Some("rolling-restart")),
        (Scenario::Members, Some("remove")),
    ] {
        let mut sum = Tally::default();
        for seed in 0..2 {
            let report = run(&Plan::draw_for(scenario, seed));
            assert_eq!(report.failures, [], "cargo sim run --scenario {scenario} --seed {seed}");
            sum.add(&report.tally);
        }
        if let Some(fault) = fault {
            assert!(sum.faults.get(fault).is_some_and(|count| count[1] > 0), "{scenario}: {:?}", sum.faults);
        }
        assert!(sum.operations.get("delete ok").is_some_and(|count| *count > 0), "{scenario}");
    }
}

#[test]
fn over_some_seeds_of_the_swarm_each_of_its_rarer_faults_does_something() {
    let mut sum = Tally::default();
    for seed in 0..60 {
        let report = run(&Plan::draw(seed));
        assert_eq!(report.failures, [], "cargo sim run --seed {seed}");
        sum.add(&report.tally);
    }
    assert!(!sum.knows_too_little(), "{:?}", sum.unknown());
    for name in [
        "disk ReorderedWrite",
        "reconfigure",
        "burst",
        "hot-key",
        "huge-values",
        "many-siblings",
        "slow-frames",
        "small-stall",
        "unacknowledged",
        "gray-data-waits",
        "misread",
        "ring",
        "swizzle",
    ] {
        let count = sum.faults.get(name);
        assert!(count.is_some_and(|count| count[1] > 0), "{name}: {count:?}");
    }
}
