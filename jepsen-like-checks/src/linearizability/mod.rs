//! Linearizability: all operations in one order that respects real time and the rules of the object.
//!
//! Definition. There is a sequence of all `ok` operations and some of those whose outcome is unknown, such that an
//! operation which ended before another began comes before it, and each returned what the model says. A `fail`ed
//! operation did not happen; a failed cas says nothing about the value it found.
//! Precondition: every operation is one of the model's. Judged: operations that ended `ok`.
//!
//! Sources. Wing and Gong, Testing and verifying concurrent objects (1993); Lowe, Testing for linearizability
//! (2017) for the cache of states; Horn and Kroening, Faster linearizability checking via P-compositionality
//! (2015): each key is judged alone. Registers whose values are all different take the way of [`unique`]
//! (Gibbons and Korach, Testing shared memories, 1997), which sorts and is done.
//! Cost: exponential in the number of operations that are open at the same time, at worst; [`crate::Options`] bounds
//! steps and memory, and past either the verdict is unknown.

mod models;
mod search;
mod shrink;
pub mod unique;

use crate::history::{F, History, NONE, Op, Outcome, flag};
use crate::pasts::Options;
use crate::verdict::{Findings, Verdict, Witness};

use models::{Call, Step};
use search::Found;

/// What the operations mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// `read` and `write`, at first nil.
    Register,
    /// The same with `cas [old new]`.
    CasRegister,
    /// `get` and `put` on keys, each at first nil.
    KeyValue,
    /// `get`, `put` and `append` of strings on keys, each at first empty.
    KvAppend,
}

impl Model {
    /// All models.
    pub const ALL: [Model; 4] = [Model::Register, Model::CasRegister, Model::KeyValue, Model::KvAppend];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Model::Register => "register",
            Model::CasRegister => "cas-register",
            Model::KeyValue => "key-value",
            Model::KvAppend => "kv-append",
        }
    }

    fn has(self, f: F) -> bool {
        match self {
            Model::Register => matches!(f, F::Read | F::Write),
            Model::CasRegister => matches!(f, F::Read | F::Write | F::Cas),
            Model::KeyValue => matches!(f, F::Get | F::Put),
            Model::KvAppend => matches!(f, F::Get | F::Put | F::Append),
        }
    }
}

/// Judges a history by a model.
pub fn check(history: &History, model: Model, options: &Options) -> Verdict {
    check_keys(history, model, options, true)
}

/// The same without the short way for unique values, so that the two can be compared.
pub fn check_by_search(history: &History, model: Model, options: &Options) -> Verdict {
    check_keys(history, model, options, false)
}

fn check_keys(history: &History, model: Model, options: &Options, may_sort: bool) -> Verdict {
    let mut findings = Findings::default();
    let mut steps = options.steps;
    let mut machine = models::Machine::new(history, model);
    for (_, ops) in history.by_key().iter() {
        let calls = match calls(history, model, ops, &mut machine) {
            Ok(calls) => calls,
            Err(reason) => {
                findings.ran_out(reason);
                continue;
            }
        };
        findings.judged += calls.iter().filter(|call| call.complete != NONE).count() as u64;
        if may_sort
            && model != Model::KvAppend
            && let Some(answer) = unique::judge(history, &calls, machine.initial())
        {
            if let Some(witness) = answer {
                let end = witness.ops.iter().map(|at| history.ops[*at as usize].complete).max().unwrap_or(0);
                findings.violation(end, || witness);
            }
            continue;
        }
        match search::search(&calls, &mut machine, &mut steps, options.memory) {
            Found::Order => {}
            Found::RanOut(what) => {
                findings.ran_out(format!("the search for an order ran out of its budget of {what}"));
            }
            Found::None(stuck) => {
                let end = calls[stuck.call as usize].complete;
                findings.violation(end, || explain(history, model, &calls, &stuck, &mut machine, options));
            }
        }
    }
    findings.verdict()
}

/// The operations of a key as the model sees them, by invocation; without those that say nothing.
fn calls(
    history: &History,
    model: Model,
    ops: &[u32],
    machine: &mut models::Machine<'_>,
) -> Result<Vec<Call>, String> {
    let mut calls = Vec::with_capacity(ops.len());
    for at in ops {
        let op = &history.ops[*at as usize];
        if !model.has(op.f) {
            return Err(format!("{} is not one of the model {}", history.say(*at), model.name()));
        }
        if op.outcome == Outcome::Fail {
            continue;
        }
        let pure = matches!(op.f, F::Read | F::Get);
        if pure && (op.outcome == Outcome::Info || op.value == NONE) {
            if op.outcome == Outcome::Ok && op.has(flag::SIBLINGS) && !history.returned(op).is_empty() {
                return Err(format!("{} returned siblings, not one value", history.say(*at)));
            }
            // What it would have returned is unknown: it can stand anywhere.
            continue;
        }
        let complete = if op.outcome == Outcome::Ok { op.complete } else { NONE };
        let step = step(op, machine).ok_or_else(|| format!("{} has no value", history.say(*at)))?;
        calls.push(Call { op: *at, invoke: op.invoke, complete, step });
    }
    Ok(calls)
}

fn step(op: &Op, machine: &mut models::Machine<'_>) -> Option<Step> {
    if op.value == NONE {
        return None;
    }
    Some(match op.f {
        F::Read | F::Get => Step::Read(machine.state_of(op.value)),
        F::Write | F::Put => Step::Write(machine.state_of(op.value)),
        F::Cas if op.value2 != NONE => Step::Cas(machine.state_of(op.value), machine.state_of(op.value2)),
        F::Append => Step::Append(op.value),
        _ => return None,
    })
}

fn explain(
    history: &History,
    model: Model,
    calls: &[Call],
    stuck: &search::Stuck,
    machine: &mut models::Machine<'_>,
    options: &Options,
) -> Witness {
    let call = &calls[stuck.call as usize];
    let possible: Vec<String> = stuck.states.iter().map(|state| machine.show(*state)).collect();
    let what = match call.step {
        Step::Read(state) => format!("returned {}", machine.show(state)),
        Step::Cas(old, new) => format!("set {} where {} was", machine.show(new), machine.show(old)),
        Step::Write(state) => format!("wrote {}", machine.show(state)),
        Step::Append(value) => format!("appended {}", history.values.name(value)),
    };
    let kept = shrink::shrink(calls, stuck, model, machine, options);
    let ops: Vec<u32> = kept.iter().map(|call| call.op).collect();
    Witness {
        text: format!(
            "no order of the operations on key {} up to index {} explains them: {} {what}; in every order of those \
             before it the value was one of {}{}; {} operations are enough to show it",
            history.keys.name(history.ops[call.op as usize].key),
            history.index(call.complete),
            history.say(call.op),
            possible.join(", "),
            if stuck.more { ", …" } else { "" },
            ops.len()
        ),
        ops,
    }
}
