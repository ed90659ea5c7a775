//! The checks with their references, and which histories they are compared on.

use std::borrow::Cow;

use jepsen_like_checks::history::History;
use jepsen_like_checks::linearizability::{self, Model};
use jepsen_like_checks::{
    Options, Verdict, causal, convergence, counter, durability, frontier, monotonic_writes, read_your_writes,
    regular, resurrection, set, set_full, staleness, thin_air, writes_follow_reads,
};

use super::End;
use super::make::{PLAIN, Profile};
use super::reference::{self, Answer};

pub type Check = fn(&History, &Options) -> Verdict;
pub type Reference = fn(&History, &Options) -> Answer;

/// A check, its reference, and the histories to compare them on.
pub struct Case {
    pub name: &'static str,
    pub check: Check,
    pub reference: Reference,
    /// What random histories are made of.
    pub profile: Profile,
    /// Whether [`valid`] histories must be valid for it.
    pub holds: bool,
}

const OK: &[End] = &[End::Ok];
const KNOWN: &[End] = &[End::Ok, End::Fail];
const ENDS: &[End] = &[End::Ok, End::Fail, End::Info];

fn frontier_check(history: &History, options: &Options) -> Verdict {
    frontier::check(history, options).verdict
}

fn set_full_check(history: &History, options: &Options) -> Verdict {
    let report = set_full::check(history, options);
    assert_eq!(report.stale, reference::stale(history), "stale elements");
    report.verdict
}

fn by_model(history: &History, model: Model, options: &Options) -> Verdict {
    let found = linearizability::check(history, model, options);
    let searched = linearizability::check_by_search(history, model, options);
    assert_eq!(found.word(), searched.word(), "sorting and searching differ");
    found
}

pub fn causal_levels(history: &History, options: &Options) -> Verdict {
    let report = causal::check(history, options);
    let levels = [report.cc, report.ccv, report.cm].map(|verdict| verdict.word());
    encode(levels)
}

pub fn encode(levels: [&'static str; 3]) -> Verdict {
    // Three verdicts in one, for the comparison.
    Verdict::Unknown { reason: levels.join(" ") }
}

fn missed(history: &History, options: &Options) -> Verdict {
    let report = staleness::measure(history, options);
    let missed: u64 = report.missed.iter().map(|(n, gets)| n * gets).sum();
    Verdict::Unknown { reason: format!("{missed} {:?}", report.monotonic) }
}

/// What the verdict is compared by.
pub fn word(verdict: &Verdict) -> Word {
    match verdict {
        Verdict::Unknown { reason } if reason != Verdict::NOTHING_JUDGED => Word::Owned(reason.clone()),
        verdict => Word::Borrowed(verdict.word()),
    }
}

pub type Word = Cow<'static, str>;

pub fn expected(case: &Case, history: &History, options: &Options) -> Word {
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
                .into()
        }
        "staleness" => {
            let (missed, monotonic) = reference::staleness(history, options);
            format!("{missed} {monotonic:?}").into()
        }
        _ => match (case.reference)(history, options) {
            None => "unknown",
            Some(true) => "valid",
            Some(false) => "invalid",
        }
        .into(),
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

pub fn cases() -> Vec<Case> {
    let case = |name, check: Check, reference: Reference, profile: Profile, holds| Case {
        name,
        check,
        reference,
        profile,
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
            true,
        ),
        case(
            "frontier",
            frontier_check,
            reference::frontier,
            Profile { claims: true, quorums: false, thin: true, mortal: true, ..all },
            true,
        ),
        case("frontier-truth", frontier_check, reference::frontier, Profile { ends: OK, ..PLAIN }, true),
        case("frontier-claims", frontier_check, reference::frontier, Profile { claims: true, ..all }, true),
        case(
            "durability",
            durability::check,
            reference::durability,
            Profile { fs: &["put", "delete", "final", "get", "lost"], copies: true, mortal: true, ..all },
            false,
        ),
        case(
            "durability-truth",
            durability::check,
            reference::durability,
            Profile { fs: &["put", "final"], ..PLAIN },
            true,
        ),
        case(
            "convergence",
            convergence::check,
            reference::convergence,
            Profile { fs: &["put", "final"], dead: true, contexts: false, ends: OK, ..PLAIN },
            false,
        ),
        case(
            "convergence-claims",
            convergence::check,
            reference::convergence,
            Profile {
                fs: &["put", "final"],
                keys: 1,
                contexts: false,
                claims: true,
                dead: true,
                covers: &[None, Some([1, 0]), Some([1, 1])],
                ends: OK,
                ..PLAIN
            },
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
            false,
        ),
        case(
            "resurrection-truth",
            resurrection::check,
            reference::resurrection,
            Profile { fs: &["put", "delete", "final"], ends: OK, ..PLAIN },
            true,
        ),
        case(
            "regular",
            regular::check,
            reference::regular,
            Profile { fs: &["put", "delete", "get", "lost"], quorums: true, mortal: true, ..all },
            false,
        ),
        case("regular-truth", regular::check, reference::regular, Profile { quorums: true, ..PLAIN }, true),
        case(
            "read-your-writes",
            read_your_writes::check,
            reference::read_your_writes,
            Profile { quorums: true, ..PLAIN },
            true,
        ),
        case("monotonic-writes", monotonic_writes::check, reference::monotonic_writes, PLAIN, true),
        case("writes-follow-reads", writes_follow_reads::check, reference::writes_follow_reads, PLAIN, true),
        case("staleness", missed, none, Profile { ends: KNOWN, ..all }, false),
        case(
            "set",
            set::check,
            reference::set,
            Profile { fs: &["add", "read"], values: 4, ends: ENDS, contexts: false, ..PLAIN },
            true,
        ),
        case(
            "set-full",
            set_full_check,
            reference::set_full,
            Profile { fs: &["add", "read"], values: 4, ends: ENDS, contexts: false, ..PLAIN },
            true,
        ),
        case(
            "counter",
            counter::check,
            reference::counter,
            Profile { fs: &["add", "read"], values: 3, dead: true, ends: ENDS, contexts: false, ..PLAIN },
            true,
        ),
        case("register", |h, o| by_model(h, Model::Register, o), reference::linearizable, registers, true),
        case(
            "cas-register",
            |h, o| by_model(h, Model::CasRegister, o),
            reference::linearizable,
            Profile { fs: &["read", "write", "cas"], ..registers },
            true,
        ),
        case(
            "key-value",
            |h, o| by_model(h, Model::KeyValue, o),
            reference::linearizable,
            Profile { fs: &["get", "put"], keys: 2, ..registers },
            true,
        ),
        case(
            "kv-append",
            |h, o| by_model(h, Model::KvAppend, o),
            reference::linearizable,
            Profile { fs: &["get", "put", "append"], keys: 2, ..registers },
            false,
        ),
        case(
            "causal",
            causal_levels,
            none,
            Profile { fs: &["get", "put"], keys: 2, ends: &[End::Ok], ..registers },
            false,
        ),
        case(
            "causal-siblings",
            |h, o| causal::check(h, o).cc,
            reference::causal_siblings,
            Profile { keys: 2, ends: ENDS, ..PLAIN },
            true,
        ),
    ]
}

/// Histories of which all are tried.
pub struct Scope {
    /// What of the check's features they have.
    pub of: &'static str,
    pub profile: Profile,
    /// Operations of the largest: in CI, and nightly.
    pub ops: (usize, usize),
}

const SEES_ALL: &[Option<[u64; 2]>] = &[Some([9, 9])];

/// The histories of which all are tried for a check: two processes, `keys` of the profile.
pub fn scopes(name: &str) -> Vec<Scope> {
    let scope = |of, profile, ci, nightly| Scope { of, profile, ops: (ci, nightly) };
    // Of one key, and here an operation of unknown outcome is one that never ends.
    let plain = Profile { keys: 1, ends: KNOWN, ..PLAIN };
    let quorums = Profile { quorums: true, ..plain };
    let three = Profile { fs: &["put", "delete", "get"], ..plain };
    let register = Profile { values: 2, contexts: false, ..plain };
    let claims = Profile { claims: true, ..plain };
    match name {
        "thin-air" => vec![scope("all", Profile { thin: true, contexts: false, ..plain }, 4, 5)],
        "frontier" => {
            let whole = Profile { claims: true, thin: true, mortal: true, current: true, ..three };
            vec![
                scope("all", whole, 2, 3),
                scope("puts, gets, unknown ids", Profile { thin: true, ..plain }, 4, 5),
                scope("puts, gets, claims", Profile { ends: OK, ..claims }, 4, 5),
                scope(
                    "puts, gets, claims given twice",
                    Profile { dots: true, contexts: false, covers: &[None], ..claims },
                    4,
                    5,
                ),
                scope("current puts, claims", Profile { current: true, covers: SEES_ALL, ..claims }, 4, 5),
                scope("expiry, claims", Profile { mortal: true, covers: SEES_ALL, ..claims }, 4, 5),
                scope(
                    "deletions, claims",
                    Profile { claims: true, ends: OK, covers: SEES_ALL, ..three },
                    4,
                    5,
                ),
            ]
        }
        "frontier-truth" => vec![scope("puts, gets", plain, 4, 5)],
        "frontier-claims" => {
            vec![scope("all but expiry", Profile { claims: true, current: true, ..three }, 3, 4)]
        }
        "durability" => {
            let whole = Profile {
                fs: &["put", "delete", "final", "get", "lost"],
                copies: true,
                mortal: true,
                current: true,
                ..plain
            };
            let puts = Profile { fs: &["put", "final"], ..plain };
            vec![
                scope("all", whole, 3, 3),
                scope(
                    "losses",
                    Profile { fs: &["put", "final", "lost"], copies: true, contexts: false, ..plain },
                    4,
                    5,
                ),
                scope("current puts", Profile { current: true, ..puts }, 4, 5),
                scope("deletions", Profile { fs: &["put", "delete", "final"], ..plain }, 4, 5),
                scope("expiry", Profile { mortal: true, ..puts }, 4, 5),
            ]
        }
        "durability-truth" => vec![scope("puts", Profile { fs: &["put", "final"], ..plain }, 4, 5)],
        "convergence" => {
            let finals = Profile { fs: &["put", "final"], dead: true, contexts: false, ends: OK, ..plain };
            vec![scope("states", finals, 4, 5)]
        }
        "convergence-claims" => {
            let finals = Profile {
                fs: &["put", "final"],
                dead: true,
                claims: true,
                contexts: false,
                ends: OK,
                covers: &[None, Some([1, 0]), Some([1, 1])],
                ..plain
            };
            vec![scope("states and claims", finals, 4, 5)]
        }
        "resurrection" => {
            let whole = Profile {
                fs: &["put", "delete", "get", "final", "lost"],
                quorums: true,
                claims: true,
                mortal: true,
                dead: true,
                current: true,
                ..plain
            };
            let finals = Profile { fs: &["put", "delete", "final"], ..plain };
            vec![
                scope("all", whole, 2, 3),
                scope(
                    "final states, losses",
                    Profile { fs: &["put", "delete", "final", "lost"], ends: OK, ..finals },
                    4,
                    5,
                ),
                scope("quorums", Profile { quorums: true, ends: OK, ..three }, 4, 5),
                scope(
                    "claims",
                    Profile {
                        claims: true,
                        ends: OK,
                        covers: &[Some([1, 0]), Some([2, 0]), Some([1, 1])],
                        ..three
                    },
                    4,
                    5,
                ),
                scope(
                    "expiry",
                    Profile { fs: &["put", "get"], mortal: true, contexts: false, ..plain },
                    4,
                    5,
                ),
                scope("tombstones", Profile { dead: true, ends: OK, ..finals }, 4, 4),
            ]
        }
        "resurrection-truth" => {
            vec![scope("final states", Profile { fs: &["put", "delete", "final"], ..plain }, 4, 5)]
        }
        "regular" => {
            let whole =
                Profile { fs: &["put", "delete", "get", "lost"], mortal: true, current: true, ..quorums };
            vec![
                scope("all", whole, 3, 4),
                scope("losses", Profile { fs: &["put", "get", "lost"], ..quorums }, 4, 5),
                scope("current puts", Profile { current: true, ..quorums }, 4, 5),
                scope("deletions", Profile { fs: &["put", "delete", "get"], ends: OK, ..quorums }, 4, 5),
                scope("expiry", Profile { mortal: true, ..quorums }, 4, 5),
            ]
        }
        "regular-truth" | "read-your-writes" => vec![scope("puts, gets, quorums", quorums, 4, 5)],
        "monotonic-writes" | "writes-follow-reads" => vec![
            scope("puts, gets", plain, 4, 5),
            scope("deletions, current puts", Profile { current: true, ..three }, 3, 4),
        ],
        "staleness" => vec![
            scope("puts, gets", plain, 4, 5),
            scope("deletions, current puts", Profile { current: true, ..three }, 3, 4),
        ],
        "set" | "set-full" => {
            let set = Profile { fs: &["add", "read"], values: 4, ..register };
            vec![scope("all", Profile { ends: ENDS, ..set }, 4, 5), scope("two processes", set, 4, 5)]
        }
        "counter" => {
            vec![scope("all", Profile { fs: &["add", "read"], values: 3, dead: true, ..register }, 4, 5)]
        }
        "register" => vec![scope("all", Profile { fs: &["read", "write"], ..register }, 4, 5)],
        "cas-register" => vec![scope("all", Profile { fs: &["read", "write", "cas"], ..register }, 4, 4)],
        "key-value" => vec![scope("all", Profile { fs: &["get", "put"], keys: 2, ..register }, 3, 4)],
        "kv-append" => {
            vec![scope("all", Profile { fs: &["get", "put", "append"], keys: 2, ..register }, 3, 4)]
        }
        "causal" => vec![scope("all", Profile { fs: &["get", "put"], keys: 2, ends: OK, ..register }, 3, 4)],
        "causal-siblings" => vec![scope("all", Profile { keys: 2, ..plain }, 3, 4)],
        name => panic!("{name} has no scope"),
    }
}
