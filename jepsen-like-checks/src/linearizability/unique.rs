//! Linearizability of registers whose values are all different, by sorting.
//!
//! A value's **cluster** is its write and the reads that returned it; all of them stand together in any order. Let f
//! be the first moment at which one of them has ended, and s the last at which one begins. If f < s the value must
//! hold from f to s: a *forward zone* [f, s]. Else any moment in the *backward zone* [s, f] will do for all of them.
//! There is an order if and only if no read returned a value before its write began, no two forward zones overlap,
//! and no backward zone lies inside of a forward one.
//!
//! A write of unknown outcome that nobody read is left out: it may never have happened. One that was read has no
//! end of its own. The initial value has a write that ended before everything.
//! Source: Gibbons and Korach, Testing shared memories (SIAM J. Comput., 1997), theorem 4.2. Cost: one sort.

use crate::history::{History, NONE, number};
use crate::linearizability::models::{Call, Step};
use crate::verdict::Witness;

/// What is known of a value.
#[derive(Clone, Copy)]
struct Cluster {
    value: u32,
    /// The write, if it was met.
    write: u32,
    begun: i64,
    /// The first end, and whose; the last beginning, and whose.
    first_end: (i64, u32),
    last_begin: (i64, u32),
    reads: u32,
}

/// Judges the calls of one key: the counterexample, or `Some(None)` if there is an order. `None` if two writes write
/// the same value, or there is a cas: then this is not the way.
pub(crate) fn judge(history: &History, calls: &[Call], initial: u32) -> Option<Option<Witness>> {
    if calls.iter().any(|call| !matches!(call.step, Step::Read(_) | Step::Write(_))) {
        return None;
    }
    // Values by number, small and dense for this key.
    let mut values: Vec<u32> = calls.iter().map(value_of).collect();
    values.push(initial);
    values.sort_unstable();
    values.dedup();
    let mut clusters: Vec<Cluster> = values
        .iter()
        .map(|value| Cluster {
            value: *value,
            write: NONE,
            begun: i64::MAX,
            first_end: (i64::MAX, NONE),
            last_begin: (-1, NONE),
            reads: 0,
        })
        .collect();
    for call in calls {
        let place = values.binary_search(&value_of(call)).ok()?;
        let cluster = &mut clusters[place];
        if let Step::Write(value) = call.step {
            if cluster.write != NONE || value == initial {
                return None;
            }
            cluster.write = call.op;
            cluster.begun = i64::from(call.invoke);
        } else {
            cluster.reads += 1;
        }
        let end = if call.complete == NONE { i64::MAX } else { i64::from(call.complete) };
        cluster.first_end = cluster.first_end.min((end, call.op));
        cluster.last_begin = cluster.last_begin.max((i64::from(call.invoke), call.op));
    }
    let name = |value: u32| if value == NONE { "nil" } else { history.values.name(value) };
    let witness = |text: String, ops: &[u32]| {
        let mut ops: Vec<u32> = ops.iter().copied().filter(|op| *op != NONE).collect();
        ops.sort_unstable();
        ops.dedup();
        Some(Some(Witness { text, ops }))
    };
    if let Ok(place) = values.binary_search(&initial) {
        let cluster = &mut clusters[place];
        cluster.begun = -1;
        cluster.first_end = (-1, NONE);
    }
    for cluster in &clusters {
        if cluster.first_end.0 < cluster.begun && cluster.first_end.1 != NONE {
            let (what, read) = (name(cluster.value), cluster.first_end.1);
            let why = if cluster.write == NONE { "nobody wrote" } else { "nobody had begun to write" };
            let text = format!("{} returned {what}, which {why}", history.say(read));
            return witness(text, &[read, cluster.write]);
        }
    }
    // Zones in use, by where they begin. An initial value that nobody read ends before all.
    let in_use = |cluster: &&Cluster| {
        let open_unread = cluster.reads == 0 && cluster.first_end.0 == i64::MAX;
        !open_unread && (cluster.write != NONE || cluster.reads > 0)
    };
    let mut forward: Vec<&Cluster> =
        clusters.iter().filter(in_use).filter(|c| c.first_end.0 < c.last_begin.0).collect();
    forward.sort_unstable_by_key(|cluster| cluster.first_end.0);
    for pair in forward.windows(2) {
        let [one, two] = [pair[0], pair[1]];
        if two.first_end.0 < one.last_begin.0 {
            let text = format!(
                "{} must hold until {}, and {} had to hold before that, after {} and before {}",
                name(one.value),
                history.say(one.last_begin.1),
                name(two.value),
                history.say(two.first_end.1),
                history.say(two.last_begin.1)
            );
            let ends = [one.first_end.1, one.last_begin.1, two.first_end.1, two.last_begin.1];
            return witness(text, &[&ends[..], &[one.write, two.write]].concat());
        }
    }
    for cluster in clusters.iter().filter(in_use).filter(|c| c.first_end.0 >= c.last_begin.0) {
        let before = forward.partition_point(|zone| zone.first_end.0 < cluster.last_begin.0);
        let Some(zone) = before.checked_sub(1).map(|at| forward[at]) else { continue };
        if cluster.first_end.0 < zone.last_begin.0 {
            let text = format!(
                "{} must hold from index {} until {}, and {} had to hold in between",
                name(zone.value),
                if zone.first_end.0 < 0 {
                    0
                } else {
                    history.index(number(usize::try_from(zone.first_end.0).ok()?))
                },
                history.say(zone.last_begin.1),
                name(cluster.value)
            );
            let ends = [zone.first_end.1, zone.last_begin.1, cluster.first_end.1, cluster.last_begin.1];
            return witness(text, &[&ends[..], &[zone.write, cluster.write]].concat());
        }
    }
    Some(None)
}

fn value_of(call: &Call) -> u32 {
    match call.step {
        Step::Read(value) | Step::Write(value) | Step::Cas(value, _) | Step::Append(value) => value,
    }
}
