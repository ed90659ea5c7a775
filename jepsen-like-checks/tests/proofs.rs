//! Every check against a plain reference: all small histories, and many random ones, half of them changed from valid.
//!
//! **All** is up to renaming: two processes, one key (two for the checks across keys). An operation of unknown outcome
//! is one that never ends and keeps its process. Where all features of a check together make more histories than a
//! machine tries in a night, the whole is taken with fewer operations and beside it slices, each with some of the
//! features and the full number of operations. [`scopes`] tells which; the test prints how many each has.
//!
//! *Sorted*: where there are more than twenty million, of histories that differ only in the order of two invocations
//! or of two completions with nothing in between, one stands for both. CI has none of that size, so all orders of
//! four operations are tried.
//!
//! `RINGDOVE_CHECKS=nightly` takes one operation more and a million random histories for each check;
//! `RINGDOVE_CHECK=regular,set` proves these checks alone.

mod common;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::cases::{Case, Scope, Word, cases, causal_levels, expected, scopes, word};
use common::make::{Choose, Every, Profile, Random, make, mutate, valid};
use common::reference;
use common::{Small, recycle};
use jepsen_like_checks::history::History;
use jepsen_like_checks::{Options, Verdict};

fn options() -> Options {
    Options { clock_skew_ms: 7, ..Options::default() }
}

/// Compares check and reference on one history.
fn agree(case: &Case, small: &Small) -> Result<Word, String> {
    let history = small.history();
    let found = word(&(case.check)(&history, &options()));
    let expected = expected(case, &history, &options());
    if found == expected {
        recycle(history);
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

/// The checks to prove: those that `RINGDOVE_CHECK` names, or all.
#[allow(clippy::disallowed_methods)] // a test's setting
fn asked() -> Vec<Case> {
    let mut cases = cases();
    if let Ok(names) = std::env::var("RINGDOVE_CHECK") {
        cases.retain(|case| names.split(',').any(|name| name == case.name));
        assert!(!cases.is_empty(), "no check is called {names}");
    }
    cases
}

fn count(counts: &mut Counts, word: Word) {
    let measured = word.starts_with(|first: char| first.is_ascii_digit());
    let word = if measured { Word::Borrowed("measured") } else { word };
    *counts.entry(word).or_default() += 1;
}

type Counts = BTreeMap<Word, u64>;

/// Leaves nothing to do for the others once one has found something.
struct StopAll<'a>(&'a AtomicUsize);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(usize::MAX / 2, Ordering::Relaxed);
        }
    }
}

/// Does every piece of work once, on two threads if there are two processors.
fn share<W: Sync>(work: &[W], run: impl Fn(&W) -> Counts + Sync) -> Vec<Counts> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![Counts::new(); work.len()]);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(2);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _stop = StopAll(&next);
                while let Some((at, piece)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, work.get(at)?)))
                {
                    let counts = run(piece);
                    done.lock().unwrap()[at] = counts;
                }
            });
        }
    });
    done.into_inner().unwrap()
}

/// How many histories a scope has, by the sizes of random branches (Knuth, 1975).
fn estimate(scope: &Scope, ops: usize) -> f64 {
    struct Probe(Random, f64);
    impl Choose for Probe {
        fn choose(&mut self, n: usize) -> usize {
            self.1 *= f64::from(u32::try_from(n).unwrap());
            self.0.choose(n)
        }
    }
    let probes = 20_000;
    let size = |seed| {
        let mut probe = Probe(Random::new(seed), 1.0);
        make(&scope.profile, ops, 2, false, &mut probe);
        probe.1
    };
    (0..probes).map(size).sum::<f64>() / f64::from(u32::try_from(probes).unwrap())
}

#[test]
fn every_check_agrees_with_its_reference_on_all_small_histories() {
    struct Piece {
        line: usize,
        case: usize,
        ops: usize,
        profile: Profile,
        part: Every,
    }
    const PARTS: usize = 4;
    // Met by the nightly tier alone. No check whose verdict hangs on the order of invocations or of completions has
    // as many.
    const SORTED_ABOVE: f64 = 2e7;
    let cases = asked();
    let mut lines: Vec<(&str, Scope, usize)> = Vec::new();
    let mut work: Vec<Piece> = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        for scope in scopes(case.name) {
            let largest = if nightly() { scope.ops.1 } else { scope.ops.0 };
            for ops in 1..=largest {
                let sorted = estimate(&scope, ops) > SORTED_ABOVE;
                let profile = Profile { sorted, ..scope.profile };
                let parts = Every::split(PARTS, |every| {
                    make(&profile, ops, 2, false, every);
                });
                let piece = |part| Piece { line: lines.len(), case: at, ops, profile, part };
                work.extend(parts.into_iter().map(piece));
            }
            lines.push((case.name, scope, largest));
        }
    }
    let done = share(&work, |piece| {
        let case = &cases[piece.case];
        let (mut every, mut counts) = (piece.part.clone(), Counts::new());
        while every.advance() {
            let small = make(&piece.profile, piece.ops, 2, false, &mut every);
            count(&mut counts, agree(case, &small).unwrap_or_else(|error| panic!("{error}")));
        }
        counts
    });
    let mut found = vec![Counts::new(); lines.len()];
    for (piece, counts) in work.iter().zip(done) {
        for (word, of) in counts {
            *found[piece.line].entry(word).or_default() += of;
        }
    }
    let mut total = 0;
    for ((name, scope, largest), counts) in lines.iter().zip(&found) {
        total += counts.values().sum::<u64>();
        let sorted = if estimate(scope, *largest) > SORTED_ABOVE { " (sorted)" } else { "" };
        println!("{name:20} up to {largest} operations{sorted}, {}: {counts:?}", scope.of);
        if *largest < 4 {
            println!("{:20} with 4 there would be about {:.1e}", "", estimate(scope, 4));
        }
    }
    println!("{total} histories");
    for case in &cases {
        let mut words: Vec<&Word> = Vec::new();
        for (_, counts) in lines.iter().zip(&found).filter(|(line, _)| line.0 == case.name) {
            words.extend(counts.keys());
        }
        words.sort();
        words.dedup();
        assert!(words.len() > 1 || case.name == "staleness", "{}: all are judged alike", case.name);
    }
}

fn random_history(case: &Case, random: &mut Random, seed: u64) -> Small {
    use common::make::Choose;
    let ops = 6 + random.choose(7);
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
    const PIECE: u64 = 1_000;
    let cases = asked();
    let each = if nightly() { 1_000_000 } else { 1_040_000 / cases.len() as u64 / PIECE * PIECE + PIECE };
    let work: Vec<(usize, u64)> =
        (0..cases.len()).flat_map(|at| (0..each / PIECE).map(move |piece| (at, piece * PIECE))).collect();
    let done = share(&work, |(at, start)| {
        let mut counts = Counts::new();
        for seed in *start..start + PIECE {
            let mut random = Random::new(seed);
            let small = random_history(&cases[*at], &mut random, seed);
            let word = agree(&cases[*at], &small).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            count(&mut counts, word);
        }
        counts
    });
    let mut total = 0;
    for (at, case) in cases.iter().enumerate() {
        let mut counts = Counts::new();
        for (_, found) in work.iter().zip(&done).filter(|((of, _), _)| *of == at) {
            for (word, of) in found {
                *counts.entry(word.clone()).or_default() += of;
            }
        }
        let each: u64 = counts.values().sum();
        total += each;
        println!("{:20} {each} random histories: {counts:?}", case.name);
    }
    println!("{total} histories");
}

/// The reference for many operations against the one that follows the definition to the letter.
#[test]
fn the_least_causal_order_decides_as_all_of_them_do() {
    let cases = cases();
    let case = cases.iter().find(|case| case.name == "causal").expect("the case of causality");
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..20_000 {
        let mut random = Random::new(seed);
        let history = make(&case.profile, 3 + random.choose(3), 3, true, &mut random).history();
        let levels = reference::causal_by_all_orders(&history);
        assert_eq!(reference::causal_by_least_order(&history), levels, "seed {seed}");
        *seen.entry(levels).or_insert(0) += 1;
    }
    println!("{seen:?}");
    assert!(seen.contains_key(&[false; 3]) && seen.contains_key(&[true; 3]) && seen.len() > 2);
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
