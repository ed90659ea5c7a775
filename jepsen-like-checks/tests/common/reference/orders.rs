//! Orders of operations: linearizability and the causal levels, by trying all of them.

use super::*;

/// The whole object at once: every key's value.
type State = Vec<(u32, String)>;

fn read_state(state: &State, key: u32) -> String {
    state.iter().find(|(known, _)| *known == key).map_or("nil".to_owned(), |(_, value)| value.clone())
}

fn write_state(state: &State, key: u32, value: String) -> State {
    let mut state: State = state.iter().filter(|(known, _)| *known != key).cloned().collect();
    state.push((key, value));
    state
}

fn apply(history: &History, op: &Op, state: &State) -> Option<State> {
    let value = |value: u32| history.values.name(value).to_owned();
    let now = read_state(state, op.key);
    match op.f {
        F::Read | F::Get => {
            let read = value(op.value);
            (now == read || (now == "nil" && read == "\"\"")).then(|| state.clone())
        }
        F::Write | F::Put => Some(write_state(state, op.key, value(op.value))),
        F::Cas => (now == value(op.value)).then(|| write_state(state, op.key, value(op.value2))),
        F::Append => {
            let before = if now == "nil" { "\"\"".to_owned() } else { now };
            Some(write_state(state, op.key, format!("{before}{}", value(op.value)).replace("\"\"", "")))
        }
        _ => None,
    }
}

/// Linearizability by trying every order.
pub fn linearizable(history: &History, _: &Options) -> Answer {
    let pure = |op: &Op| matches!(op.f, F::Read | F::Get);
    let ops: Vec<&Op> = history
        .ops
        .iter()
        .filter(|op| !(failed(op) || pure(op) && op.outcome == Outcome::Info))
        .filter(|op| op.outcome == Outcome::Ok || rule("linearizable: unknown may happen"))
        .collect();
    if !ops.iter().any(|op| op.outcome == Outcome::Ok) {
        return None;
    }
    fn go(history: &History, ops: &[&Op], done: &mut Vec<bool>, state: &State) -> bool {
        if ops.iter().zip(done.iter()).all(|(op, done)| *done || op.outcome != Outcome::Ok) {
            return true;
        }
        for at in 0..ops.len() {
            let waits = |other: usize| {
                !done[other]
                    && ops[other].outcome == Outcome::Ok
                    && ops[other].complete < ops[at].invoke
                    && rule("linearizable: real time")
            };
            if done[at] || (0..ops.len()).any(waits) {
                continue;
            }
            if let Some(next) = apply(history, ops[at], state) {
                done[at] = true;
                if go(history, ops, done, &next) {
                    return true;
                }
                done[at] = false;
            }
        }
        false
    }
    Some(go(history, &ops, &mut vec![false; ops.len()], &State::new()))
}

/// What is before what.
type Pairs = Vec<(usize, usize)>;

/// The operations that causality is about, and what must be before what in every causal order that explains them. None when a value was read that nobody wrote.
fn causal_base(history: &History) -> (Vec<&Op>, Option<Pairs>) {
    let ops: Vec<&Op> = history
        .ops
        .iter()
        .filter(|op| match op.f {
            F::Get => op.outcome == Outcome::Ok,
            _ => !failed(op),
        })
        .collect();
    let n = ops.len();
    let po = |(a, b): &(usize, usize)| ops[*a].process == ops[*b].process && a < b;
    let mut base: Vec<(usize, usize)> = (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(po).collect();
    // Values are written once: what was read has its writer before it in every order that explains the read.
    let reads = (0..n).filter(|at| ops[*at].f == F::Get && !nil(history, ops[*at]));
    for read in reads.filter(|_| rule("causal: reads (CC)")) {
        let wrote = |op: &&Op| op.f != F::Get && (op.key, op.value) == (ops[read].key, ops[read].value);
        let Some(writer) = ops.iter().position(wrote) else { return (ops, None) };
        base.push((writer, read));
    }
    (ops, Some(base))
}

/// CC, CCv and CM: by their definitions where there are few operations, else by the least causal order.
pub fn causal(history: &History) -> [bool; 3] {
    let few = causal_base(history).0.len() < ORDER_MAX;
    if few { causal_by_all_orders(history) } else { causal_by_least_order(history) }
}

/// CC, CCv and CM by the least causal order alone: program order and who read whom, closed. A larger order explains no
/// more: it puts more into each past and leaves fewer orders of it. Sequences are searched, not conditions on pairs.
pub fn causal_by_least_order(history: &History) -> [bool; 3] {
    let (ops, base) = causal_base(history);
    let Some(base) = base else { return [false; 3] };
    let n = ops.len();
    // The past of each operation, as a set of bits.
    let mut past = vec![0_u32; n];
    for _ in 0..n {
        for (a, b) in &base {
            past[*b] |= past[*a] | 1 << a;
        }
    }
    if (0..n).any(|at| past[at] >> at & 1 == 1) {
        return [false; 3];
    }
    let holds = |set: u32, at: usize| set >> at & 1 == 1;
    // Whether some order of `set` explains those of its reads that count.
    let explained = |set: u32, counts: u32| {
        let mut seen = BTreeSet::new();
        let mut open = vec![(0_u32, [NONE; 2])];
        while let Some((done, state)) = open.pop() {
            if done == set {
                return true;
            }
            if !seen.insert((done, state)) {
                continue;
            }
            for at in (0..n).filter(|at| holds(set & !done, *at) && past[*at] & set & !done == 0) {
                let (op, mut next) = (ops[at], state);
                let now = &mut next[op.key as usize];
                if op.f != F::Get {
                    *now = op.value;
                } else if holds(counts, at) && op.value != *now && !(*now == NONE && nil(history, op)) {
                    continue;
                }
                open.push((done | 1 << at, next));
            }
        }
        false
    };
    let cc_rule = rule("causal: reads (CC)");
    let own = |o: usize| if cc_rule { 1_u32 << o } else { 0 };
    let earlier = |o: usize| {
        let before = (0..o).filter(|at| ops[*at].process == ops[o].process);
        let before = before.filter(|_| rule("causal: earlier reads (CM)"));
        before.fold(1_u32 << o, |set, at| set | 1 << at)
    };
    let cc = (0..n).all(|o| explained(past[o] | 1 << o, own(o)));
    let cm = (0..n).all(|o| explained(past[o] | 1 << o, earlier(o)));
    // One order for all: a write comes behind no other that a read with both in its past has returned.
    let overtakes = |done: u32, write: usize| {
        (0..n).filter(|read| cc_rule && ops[*read].f == F::Get && holds(past[*read], write)).any(|read| {
            let (read, write) = (ops[read], ops[write]);
            let returned = |at: usize| holds(done, at) && ops[at].f != F::Get && ops[at].value == read.value;
            read.key == write.key
                && read.value != write.value
                && (nil(history, read) || (0..n).any(|at| ops[at].key == read.key && returned(at)))
        })
    };
    let (mut seen, mut open, mut ccv) = (BTreeSet::new(), vec![0_u32], false);
    while let Some(done) = open.pop() {
        ccv |= done.count_ones() as usize == n;
        for at in (0..n).filter(|at| !holds(done, *at) && past[*at] & !done == 0) {
            let next = done | 1 << at;
            if (ops[at].f == F::Get || !overtakes(done, at)) && seen.insert(next) {
                open.push(next);
            }
        }
    }
    [cc, ccv || (cc && !rule("causal: one order for all (CCv)")), cm]
}

/// CC, CCv and CM by their definitions: some causal order, and for each operation some order of its past that
/// explains it (its own reads alone for CC; its process's for CM; one order for all for CCv).
pub fn causal_by_all_orders(history: &History) -> [bool; 3] {
    let (ops, base) = causal_base(history);
    let Some(base) = base else { return [false; 3] };
    let n = ops.len();
    let po = |a: usize, b: usize| ops[a].process == ops[b].process && a < b;
    let mut answer = [false; 3];
    let program = base.iter().fold(0_u64, |program, (a, b)| program | 1 << (a * ORDER_MAX + b));
    for relation in partial_orders(n).iter().filter(|relation| *relation & program == program) {
        let before = |a: usize, b: usize| relation >> (a * ORDER_MAX + b) & 1 == 1;
        // Whether the past of `o` in this order explains the reads that count.
        let explains = |o: usize, order: &[usize], counts: &dyn Fn(usize) -> bool| {
            let mut state = [NONE; 2];
            for at in order.iter().filter(|at| **at == o || before(**at, o)) {
                let (op, now) = (ops[*at], &mut state[ops[*at].key as usize]);
                if op.f != F::Get {
                    *now = op.value;
                } else if counts(*at) && op.value != *now && !(*now == NONE && nil(history, op)) {
                    return false;
                }
            }
            true
        };
        let own = |o: usize| move |at: usize| at == o && rule("causal: reads (CC)");
        let earlier =
            |o: usize| move |at: usize| at == o || (po(at, o) && rule("causal: earlier reads (CM)"));
        // For each operation, whether some order explains it at each level.
        let (mut cc, mut cm) = (vec![false; n], vec![false; n]);
        let mut ccv = false;
        linear(n, &before, &mut Vec::new(), &mut |order| {
            for o in 0..n {
                cc[o] = cc[o] || explains(o, order, &own(o));
                cm[o] = cm[o] || explains(o, order, &earlier(o));
            }
            ccv = ccv || (0..n).all(|o| explains(o, order, &own(o)));
        });
        let each = cc.iter().all(|explained| *explained);
        answer[0] |= each;
        answer[1] |= ccv || (each && !rule("causal: one order for all (CCv)"));
        answer[2] |= cm.iter().all(|explained| *explained);
        if answer == [true; 3] {
            break;
        }
    }
    answer
}

fn nil(history: &History, op: &Op) -> bool {
    history.values.name(op.value) == "nil"
}

/// Every order of all things that keeps `before`.
fn linear(
    n: usize,
    before: &dyn Fn(usize, usize) -> bool,
    order: &mut Vec<usize>,
    each: &mut dyn FnMut(&[usize]),
) {
    if order.len() == n {
        each(order);
        return;
    }
    for next in (0..n).filter(|next| !order.contains(next)).collect::<Vec<_>>() {
        if (0..n).all(|other| !before(other, next) || order.contains(&other)) {
            order.push(next);
            linear(n, before, order, each);
            order.pop();
        }
    }
}

/// The largest number of things that [`partial_orders`] orders.
const ORDER_MAX: usize = 6;

/// Every strict partial order of `n` things: bit `a * ORDER_MAX + b` is a before b.
fn partial_orders(n: usize) -> Rc<Vec<u64>> {
    thread_local! {
        static KNOWN: RefCell<BTreeMap<usize, Rc<Vec<u64>>>> = const { RefCell::new(BTreeMap::new()) };
    }
    assert!(n <= ORDER_MAX);
    if n == 0 {
        return Rc::new(vec![0]);
    }
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&n).cloned()) {
        return known;
    }
    // One thing more: before some, behind some, and what follows from that must be there already.
    let (new, mut all) = (n - 1, Vec::new());
    for smaller in partial_orders(new).iter() {
        for (behind, front) in (0_u32..1 << new).flat_map(|a| (0_u32..1 << new).map(move |b| (a, b))) {
            let mut relation = *smaller;
            for at in 0..new {
                relation |= u64::from(behind >> at & 1) << (new * ORDER_MAX + at);
                relation |= u64::from(front >> at & 1) << (at * ORDER_MAX + new);
            }
            let before = |a: usize, b: usize| relation >> (a * ORDER_MAX + b) & 1 == 1;
            let pairs = (0..n).flat_map(|a| (0..n).map(move |b| (a, b)));
            let strict = pairs
                .filter(|(a, b)| before(*a, *b))
                .all(|(a, b)| !before(b, a) && (0..n).all(|c| !before(b, c) || before(a, c)));
            if strict {
                all.push(relation);
            }
        }
    }
    let all = Rc::new(all);
    KNOWN.with_borrow_mut(|known| known.insert(n, all.clone()));
    all
}

#[test]
fn there_are_as_many_partial_orders_as_is_known() {
    let counts: Vec<usize> = (0..=5).map(|n| partial_orders(n).len()).collect();
    assert_eq!(counts, [1, 1, 3, 19, 219, 4231]);
}

/// Causality of siblings, by a closure over pairs.
pub fn causal_siblings(history: &History, options: &Options) -> Answer {
    let ops = &history.ops;
    let counts = |op: &Op| (op.is_write() && !failed(op)) || (op.f == F::Get && op.is_sibling_read());
    let mut co: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (b, op) in ops.iter().enumerate().filter(|(_, op)| counts(op)) {
        for (a, other) in ops.iter().enumerate().filter(|(_, op)| counts(op)) {
            let po = other.process == op.process && a < b;
            let rf = op.f == F::Get
                && ids(history, op.list)
                    .iter()
                    .any(|id| history.writer(*id) == Some(u32::try_from(a).unwrap()));
            let context = op.f != F::Get && op.after as usize == a && rule("causal: contexts");
            if po || rf || context {
                co.insert((a, b));
            }
        }
    }
    loop {
        let more: Vec<(usize, usize)> = co
            .iter()
            .flat_map(|(a, b)| co.iter().filter(move |(c, _)| c == b).map(move |(_, d)| (*a, *d)))
            .collect();
        let before = co.len();
        co.extend(more);
        if co.len() == before {
            break;
        }
    }
    if co.iter().any(|(a, b)| a == b) {
        return Some(false);
    }
    let mut all = All::default();
    for (at, read) in reads(history).filter(|(_, read)| read.f == F::Get) {
        all.judge(true);
        for id in ids(history, read.list) {
            let right = history.writer(id).is_some_and(|writer| {
                let write = &ops[writer as usize];
                write.key == read.key && !failed(write) && write.invoke < read.complete
            });
            all.judge(right);
        }
        let shown = returned(history, read);
        for (write, op) in ops.iter().enumerate() {
            if op.is_write()
                && op.f == F::Put
                && op.key == read.key
                && !failed(op)
                && co.contains(&(write, at))
            {
                let right = shown.contains(&write)
                    || accounted(history, write, &shown, read.complete, clock(history, read), options);
                all.judge(right);
            }
        }
    }
    all.answer()
}
