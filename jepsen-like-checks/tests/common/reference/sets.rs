//! Sets and counters.

use super::*;

fn elements(history: &History, op: &Op) -> Vec<u32> {
    ids(history, op.list)
}

/// Judges each key alone.
fn per_key(history: &History, judge: impl Fn(u32) -> Answer) -> Answer {
    let mut all = All::default();
    for key in 0..u32::try_from(history.keys.len()).unwrap() {
        if let Some(answer) = judge(key) {
            all.judge(answer);
        }
    }
    all.answer()
}

fn set_reads(history: &History, key: u32) -> Vec<&Op> {
    let reads = history.ops.iter().filter(|op| op.key == key && op.f == F::Read && op.outcome == Outcome::Ok);
    reads.filter(|op| op.has(flag::ELEMENTS)).collect()
}

pub fn set(history: &History, _: &Options) -> Answer {
    per_key(history, |key| set_of(history, key))
}

fn set_of(history: &History, key: u32) -> Answer {
    let mut all = All::default();
    let reads = set_reads(history, key);
    let last = reads.iter().max_by_key(|op| op.complete)?;
    let there = elements(history, last);
    let adds: Vec<&Op> = history.ops.iter().filter(|op| op.key == key && op.f == F::Add).collect();
    for add in &adds {
        if add.outcome == Outcome::Ok && add.complete < last.invoke {
            all.judge(there.contains(&add.value) || !rule("set: lost"));
        }
    }
    for element in there {
        let may = |add: &&&Op| add.value == element && !failed(add) && add.invoke < last.complete;
        all.judge(adds.iter().any(|add| may(&add)) || !rule("set: unexpected"));
    }
    all.answer()
}

pub fn set_full(history: &History, _: &Options) -> Answer {
    per_key(history, |key| set_full_of(history, key))
}

/// Elements that some read lacked that could tell, and that are in the last one.
pub fn stale(history: &History) -> u64 {
    let mut stale = 0;
    for key in 0..u32::try_from(history.keys.len()).unwrap() {
        let reads = set_reads(history, key);
        let ops: Vec<&Op> = history.ops.iter().filter(|op| op.key == key).collect();
        let adds = ops.iter().filter(|op| op.f == F::Add && !failed(op)).map(|op| op.value);
        let seen = reads.iter().flat_map(|read| elements(history, read));
        for element in adds.chain(seen).collect::<BTreeSet<u32>>() {
            let has = |op: &Op| elements(history, op).contains(&element);
            let tells = |op: &&&Op| match op.f {
                F::Add => op.value == element && op.outcome == Outcome::Ok,
                _ => reads.iter().any(|read| read.invoke == op.invoke) && has(op),
            };
            let Some(known) = ops.iter().filter(tells).map(|op| op.complete).min() else { continue };
            let later: Vec<&&Op> = reads.iter().filter(|read| read.invoke > known).collect();
            let last = later.iter().max_by_key(|read| read.invoke);
            stale += u64::from(last.is_some_and(|last| has(last)) && later.iter().any(|read| !has(read)));
        }
    }
    stale
}

fn set_full_of(history: &History, key: u32) -> Answer {
    let mut all = All::default();
    let reads = set_reads(history, key);
    let adds: Vec<&Op> =
        history.ops.iter().filter(|op| op.key == key && op.f == F::Add && !failed(op)).collect();
    for read in &reads {
        let has = elements(history, read);
        for element in &has {
            let added = adds.iter().any(|add| add.value == *element && add.invoke < read.complete);
            all.judge(added && has.iter().filter(|other| *other == element).count() == 1);
        }
    }
    let mut universe: BTreeSet<u32> = adds.iter().map(|add| add.value).collect();
    universe.extend(reads.iter().flat_map(|read| elements(history, read)));
    for element in universe {
        let by_add = adds.iter().filter(|add| add.value == element && add.outcome == Outcome::Ok);
        let with: Vec<&&Op> =
            reads.iter().filter(|read| elements(history, read).contains(&element)).collect();
        let known = by_add.map(|add| add.complete).chain(with.iter().map(|read| read.complete)).min();
        let Some(known) = known else { continue };
        let later: Vec<&&Op> = reads.iter().filter(|read| read.invoke > known).collect();
        let Some(last) = later.iter().max_by_key(|read| read.invoke) else { continue };
        // It is lost if the last read of all that could tell lacks it.
        all.judge(elements(history, last).contains(&element) || !rule("set-full: last read"));
    }
    all.answer()
}

pub fn counter(history: &History, _: &Options) -> Answer {
    per_key(history, |key| counter_of(history, key))
}

fn counter_of(history: &History, key: u32) -> Answer {
    let mut all = All::default();
    let int = |op: &Op| history.values.name(op.value).parse::<i64>().unwrap();
    for read in history
        .ops
        .iter()
        .filter(|op| op.key == key && op.f == F::Read && op.outcome == Outcome::Ok && op.value != NONE)
    {
        let (mut low, mut high) = (0, 0);
        for add in history.ops.iter().filter(|op| op.key == key && op.f == F::Add && !failed(op)) {
            let must = add.outcome == Outcome::Ok && add.complete < read.invoke;
            let may = add.invoke < read.complete;
            let value = int(add);
            let negative = value < 0 && rule("counter: negative adds");
            low += if must || (may && negative) { value } else { 0 };
            high += if must || (may && value > 0) { value } else { 0 };
        }
        all.judge((low <= int(read) || !rule("counter: lower bound")) && int(read) <= high);
    }
    all.answer()
}
