//! Every check against a plain reference: all small histories, and many random ones, half of them changed from valid.
//!
//! `RINGDOVE_CHECKS=nightly` takes one operation more and a million random histories for each check.

mod common;

use std::collections::BTreeMap;

use common::make::{Every, PLAIN, Profile, Random, make, mutate, valid};
use common::reference::{self, Answer};
use common::{End, Small};
use jepsen_like_checks::history::History;
use jepsen_like_checks::linearizability::{self, Model};
use jepsen_like_checks::{
    Options, Verdict, causal, convergence, counter, durability, frontier, monotonic_writes, read_your_writes,
    regular, resurrection, set, set_full, staleness, thin_air, writes_follow_reads,
};

type Check = fn(&History, &Options) -> Verdict;
type Reference = fn(&History, &Options) -> Answer;

/// A check, its reference, and the histories to compare them on.
struct Case {
    name: &'static str,
    check: Check,
    reference: Reference,
    profile: Profile,
    /// Operations of the largest histories that are tried exhaustively: in CI, and nightly.
    exhaustive: (usize, usize),
    /// Whether [`valid`] histories must be valid for it.
    holds: bool,
}

const OK: &[End] = &[End::Ok];
const KNOWN: &[End] = &[End::Ok, End::Fail];
const ENDS: &[End] = &[End::Ok, End::Fail, End::Info];

fn frontier_check(history: &History, options: &Options) -> Verdict {
    frontier::check(history, options).verdict
}

fn set_full_check(history: &History, options: &Options) -> Verdict {
    set_full::check(history, options).verdict
}

fn by_model(history: &History, model: Model, options: &Options) -> Verdict {
    let found = linearizability::check(history, model, options);
    let searched = linearizability::check_by_search(history, model, options);
    assert_eq!(found.word(), searched.word(), "sorting and searching differ");
    found
}

fn causal_levels(history: &History, options: &Options) -> Verdict {
    let report = causal::check(history, options);
    let levels = [report.cc, report.ccv, report.cm].map(|verdict| verdict.word());
    encode(levels)
}

fn encode(levels: [&'static str; 3]) -> Verdict {
    // Three verdicts in one, for the comparison.
    Verdict::Unknown { reason: levels.join(" ") }
}

fn missed(history: &History, options: &Options) -> Verdict {
    let report = staleness::measure(history, options);
    let missed: u64 = report.missed.iter().map(|(n, gets)| n * gets).sum();
    Verdict::Unknown { reason: format!("{missed} {:?}", report.monotonic) }
}

/// What the verdict is compared by.
fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Unknown { reason } if reason != Verdict::NOTHING_JUDGED => reason.clone(),
        verdict => verdict.word().to_owned(),
    }
}

fn expected(case: &Case, history: &History, options: &Options) -> String {
    match case.name {
        "causal" => {
            // A read of a value that nobody wrote leaves it to nobody; without reads nothing is judged.
            let any = history.ops.iter().any(|op| op.is_read());
            let levels = reference::causal(history);
            levels
                .map(|holds| {
                    if !any {
                        "unknown"
                    } else if holds {
                        "valid"
                    } else {
                        "invalid"
                    }
                })
                .join(" ")
        }
        "staleness" => {
            let (missed, monotonic) = reference::staleness(history, options);
            format!("{missed} {monotonic:?}")
        }
        _ => match (case.reference)(history, options) {
            None => "unknown",
            Some(true) => "valid",
            Some(false) => "invalid",
        }
        .to_owned(),
    }
}

trait IsRead {
    fn is_read(&self) -> bool;
}

impl IsRead for jepsen_like_checks::history::Op {
    fn is_read(&self) -> bool {
        use jepsen_like_checks::history::{F, Outcome};
        matches!(self.f, F::Get | F::Read) && self.outcome == Outcome::Ok
    }
}

/// For the cases whose answer is not yes or no.
fn none(_: &History, _: &Options) -> Answer {
    None
}

fn cases() -> Vec<Case> {
    let case = |name, check: Check, reference: Reference, profile: Profile, exhaustive, holds| Case {
        name,
        check,
        reference,
        profile,
        exhaustive,
        holds,
    };
    let all = Profile { fs: &["put", "delete", "get"], current: true, ends: ENDS, ..PLAIN };
    let registers = Profile { values: 2, fs: &["read", "write"], ends: ENDS, contexts: false, ..PLAIN };
    vec![
        case(
            "thin-air",
            thin_air::check,
            reference::thin_air,
            Profile { thin: true, contexts: false, ends: ENDS, ..PLAIN },
            (4, 5),
            true,
        ),
        case(
            "frontier",
            frontier_check,
            reference::frontier,
            Profile { claims: true, quorums: false, thin: true, mortal: true, ..all },
            (2, 3),
            true,
        ),
        case(
            "frontier-truth",
            frontier_check,
            reference::frontier,
            Profile { ends: OK, ..PLAIN },
            (4, 5),
            true,
        ),
        case(
            "frontier-claims",
            frontier_check,
            reference::frontier,
            Profile { claims: true, ..all },
            (3, 4),
            true,
        ),
        case(
            "durability",
            durability::check,
            reference::durability,
            Profile { fs: &["put", "delete", "final", "get", "lost"], copies: true, mortal: true, ..all },
            (2, 3),
            false,
        ),
        case(
            "durability-truth",
            durability::check,
            reference::durability,
            Profile { fs: &["put", "final"], ..PLAIN },
            (4, 5),
            true,
        ),
        case(
            "convergence",
            convergence::check,
            reference::convergence,
            Profile { fs: &["put", "final"], dead: true, contexts: false, ends: OK, ..PLAIN },
            (4, 4),
            false,
        ),
        case(
            "resurrection",
            resurrection::check,
            reference::resurrection,
            Profile {
                fs: &["put", "delete", "get", "final", "lost"],
                quorums: true,
                claims: true,
                mortal: true,
                dead: true,
                ..all
            },
            (2, 3),
            false,
        ),
        case(
            "resurrection-truth",
            resurrection::check,
            reference::resurrection,
            Profile { fs: &["put", "delete", "final"], ends: OK, ..PLAIN },
            (4, 4),
            true,
        ),
        case(
            "regular",
            regular::check,
            reference::regular,
            Profile { fs: &["put", "delete", "get", "lost"], quorums: true, mortal: true, ..all },
            (2, 3),
            false,
        ),
        case(
            "regular-truth",
            regular::check,
            reference::regular,
            Profile { quorums: true, ..PLAIN },
            (4, 5),
            true,
        ),
        case(
            "read-your-writes",
            read_your_writes::check,
            reference::read_your_writes,
            Profile { quorums: true, ..PLAIN },
            (4, 5),
            true,
        ),
        case("monotonic-writes", monotonic_writes::check, reference::monotonic_writes, PLAIN, (4, 5), true),
        case(
            "writes-follow-reads",
            writes_follow_reads::check,
            reference::writes_follow_reads,
            PLAIN,
            (4, 5),
            true,
        ),
        case("staleness", missed, none, Profile { ends: KNOWN, ..all }, (3, 3), false),
        case(
            "set",
            set::check,
            reference::set,
            Profile { fs: &["add", "read"], values: 4, ends: ENDS, contexts: false, ..PLAIN },
            (4, 5),
            true,
        ),
        case(
            "set-full",
            set_full_check,
            reference::set_full,
            Profile { fs: &["add", "read"], values: 4, ends: ENDS, contexts: false, ..PLAIN },
            (4, 5),
            true,
        ),
        case(
            "counter",
            counter::check,
            reference::counter,
            Profile { fs: &["add", "read"], values: 3, dead: true, ends: ENDS, contexts: false, ..PLAIN },
            (4, 5),
            true,
        ),
        case(
            "register",
            |h, o| by_model(h, Model::Register, o),
            reference::linearizable,
            registers,
            (4, 5),
            true,
        ),
        case(
            "cas-register",
            |h, o| by_model(h, Model::CasRegister, o),
            reference::linearizable,
            Profile { fs: &["read", "write", "cas"], ..registers },
            (4, 4),
            true,
        ),
        case(
            "key-value",
            |h, o| by_model(h, Model::KeyValue, o),
            reference::linearizable,
            Profile { fs: &["get", "put"], keys: 2, ..registers },
            (3, 4),
            true,
        ),
        case(
            "kv-append",
            |h, o| by_model(h, Model::KvAppend, o),
            reference::linearizable,
            Profile { fs: &["get", "put", "append"], keys: 2, ..registers },
            (3, 4),
            false,
        ),
        case(
            "causal",
            causal_levels,
            none,
            Profile { fs: &["get", "put"], keys: 2, ends: &[End::Ok], ..registers },
            (3, 4),
            false,
        ),
        case(
            "causal-siblings",
            |h, o| causal::check(h, o).cc,
            reference::causal_siblings,
            Profile { keys: 2, ends: ENDS, ..PLAIN },
            (3, 4),
            true,
        ),
    ]
}

fn options() -> Options {
    Options { clock_skew_ms: 7, ..Options::default() }
}

/// Compares check and reference on one history.
fn agree(case: &Case, small: &Small) -> Result<String, String> {
    let history = small.history();
    let found = word(&(case.check)(&history, &options()));
    let expected = expected(case, &history, &options());
    if found == expected {
        Ok(found)
    } else {
        let verdict = (case.check)(&history, &options());
        Err(format!("{}: found {found}, expected {expected}: {verdict}\n{}", case.name, small.show()))
    }
}

#[allow(clippy::disallowed_methods)] // a test's setting
fn nightly() -> bool {
    std::env::var("RINGDOVE_CHECKS").is_ok_and(|setting| setting == "nightly")
}

fn count(counts: &mut BTreeMap<String, u64>, word: String) {
    let word = if word.chars().next().is_some_and(|first| first.is_ascii_digit()) {
        "measured".to_owned()
    } else {
        word
    };
    *counts.entry(word).or_default() += 1;
}

#[test]
fn every_check_agrees_with_its_reference_on_all_small_histories() {
    all_small_histories(|name| name != "cas-register" && name != "counter");
}

#[test]
fn cas_and_counter_agree_with_their_references_on_all_small_histories() {
    all_small_histories(|name| name == "cas-register" || name == "counter");
}

fn all_small_histories(of: impl Fn(&str) -> bool) {
    let mut total = 0;
    for case in cases().into_iter().filter(|case| of(case.name)) {
        let mut counts = BTreeMap::new();
        let largest = if nightly() { case.exhaustive.1 } else { case.exhaustive.0 };
        for ops in 1..=largest {
            // Here an operation of unknown outcome is one that never ends: its process is one of the two.
            let ends = match case.name {
                "cas-register" => OK,
                "counter" | "resurrection-truth" | "register" => KNOWN,
                _ => case.profile.ends,
            };
            let across = ["key-value", "kv-append", "causal", "causal-siblings"].contains(&case.name);
            let profile = Profile { ends, keys: if across { 2 } else { 1 }, ..case.profile };
            let mut every = Every::default();
            while every.advance() {
                let small = make(&profile, ops, 2, false, &mut every);
                count(&mut counts, agree(&case, &small).unwrap_or_else(|error| panic!("{error}")));
            }
        }
        println!("{:20} up to {largest} operations: {counts:?}", case.name);
        total += counts.values().sum::<u64>();
        assert!(
            counts.len() > 1 || case.name == "staleness",
            "{}: all histories are judged alike",
            case.name
        );
    }
    println!("{total} histories");
}

fn random_history(case: &Case, random: &mut Random, seed: u64) -> Small {
    use common::make::Choose;
    let ops = if case.name == "causal" { 4 + random.choose(2) } else { 6 + random.choose(7) };
    if seed.is_multiple_of(2) {
        return make(&case.profile, ops, 3, true, random);
    }
    let mut small = valid(&case.profile, ops, random);
    if case.holds {
        let history = small.history();
        let verdict = (case.check)(&history, &options());
        assert!(!matches!(verdict, Verdict::Invalid { .. }), "{}: {verdict}\n{}", case.name, small.show());
    }
    for _ in 0..random.choose(3) {
        let before = small.clone();
        mutate(&mut small, random);
        // The patterns of causality are defined for values that are written once.
        let written: Vec<_> =
            small.ops.iter().filter(|op| op.f == "put").map(|op| (op.key, op.value)).collect();
        let distinct: std::collections::BTreeSet<_> = written.iter().collect();
        if case.name == "causal"
            && (distinct.len() < written.len() || written.iter().any(|put| put.1 < Some(0)))
        {
            small = before;
        }
    }
    small
}

#[test]
fn every_check_agrees_with_its_reference_on_random_histories() {
    let cases = cases();
    let each = if nightly() { 1_000_000 } else { 1_050_000 / cases.len() as u64 };
    for case in &cases {
        let each = if case.name == "causal" { each / 20 } else { each };
        let mut counts = BTreeMap::new();
        for seed in 0..each {
            let mut random = Random::new(seed);
            let small = random_history(case, &mut random, seed);
            count(&mut counts, agree(case, &small).unwrap_or_else(|error| panic!("seed {seed}: {error}")));
        }
        println!("{:20} {each} random histories: {counts:?}", case.name);
    }
}

/// A history of registers, one operation after the other: (process, f, key, value), with -1 for nil.
fn registers(ops: &[(i64, &'static str, u8, i64)]) -> History {
    let mut small = Small::default();
    for (at, (process, f, key, value)) in ops.iter().enumerate() {
        let mut op = common::Spec::new(*process, f);
        (op.key, op.value) = (Some(*key), Some(*value));
        small.ops.push(op);
        small.order.extend([at, at]);
    }
    small.history()
}

#[test]
fn the_three_levels_of_causality_differ_where_the_paper_says() {
    let words = |history: &History| word(&causal_levels(history, &options()));
    // Each process sees its own write first and then the other's: no one order of the two suits both.
    let crossed = registers(&[(0, "put", 0, 1), (1, "put", 0, 2), (0, "get", 0, 2), (1, "get", 0, 1)]);
    assert_eq!(words(&crossed), "valid invalid valid");
    assert_eq!(reference::causal(&crossed), [true, false, true]);
    // Reading y and its own x orders the other's x before its own; then the other's z should have been seen too.
    let late = registers(&[
        (0, "put", 2, 1),
        (0, "put", 0, 1),
        (0, "put", 1, 1),
        (1, "put", 0, 2),
        (1, "get", 2, -1),
        (1, "get", 1, 1),
        (1, "get", 0, 2),
    ]);
    assert_eq!(words(&late), "valid valid invalid");
    let stale = registers(&[(0, "put", 0, 1), (0, "put", 0, 2), (1, "get", 0, 2), (1, "get", 0, 1)]);
    assert_eq!(words(&stale), "invalid invalid invalid");
    assert_eq!(reference::causal(&stale), [false; 3]);
}

#[test]
fn a_check_that_lacked_one_of_its_conditions_would_be_caught() {
    let cases = cases();
    for (name, rule) in reference::RULES {
        let case = cases.iter().find(|case| case.name == *name).unwrap();
        let caught = (0..200_000_u64).find(|seed| {
            let mut random = Random::new(*seed);
            let small = random_history(case, &mut random, *seed);
            reference::without(rule, || agree(case, &small).is_err())
        });
        let seed = caught.unwrap_or_else(|| panic!("{name}: nobody notices that `{rule}` is gone"));
        println!("{name:20} without `{rule}`: caught at history {seed}");
    }
}
