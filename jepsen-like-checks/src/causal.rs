//! Causal consistency across keys, measured and never failed: the bad patterns of registers, and what they become
//! where reads return siblings.
//!
//! **Registers** (`read`/`write`, or `get`/`put` of single values, on any number of keys; every value of a key is
//! written once). Let co be the order that programs (each process's own) and reads-from make together. Patterns, as
//! in Bouajjani, Enea, Guerraoui, Hamza, On verifying causal consistency (POPL 2017):
//! - *CyclicCO*: co has a cycle;
//! - *ThinAirRead*: a value that nobody wrote;
//! - *WriteCOInitRead*: nil was read although a write of the key is before the read in co;
//! - *WriteCORead*: w1 was read although some w2 of its key stands between the two in co.
//!   None of these: the history is causally consistent (**CC**).
//! - *CyclicCF*: co with the edges "w1 before w2 if w1 is before a read of w2, same key" has a cycle. None of all
//!   five: causally convergent (**CCv**).
//! - *WriteHBInitRead*, *CyclicHB*: the same with hb, which for each process adds those edges for its own reads
//!   alone, until nothing changes. None of them nor of the first four: causal memory (**CM**).
//!
//! **Siblings.** Overwriting is what a context says, not co: two blind writes of one process are siblings. So: co
//! from programs, reads-from for every returned id, and contexts; *CyclicCO*; thin air; and *Missed*: a put of the
//! read's key is before the read in co, and was neither returned nor is accounted for ([`crate::pasts`]).
//!
//! Judged: reads. Cost: co is kept as one counter for each operation and process, n·P; *CyclicHB* needs n² bits for
//! each process. Past the memory budget the answer is that it is not known.

use std::collections::BTreeMap;

use crate::bits;
use crate::history::{F, History, NONE, Op, Outcome, flag, number};
use crate::pasts::{Key, Options};
use crate::verdict::{Findings, Verdict, Witness};

/// What was found at each level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Causal consistency; of siblings, the patterns above.
    pub cc: Verdict,
    /// Causal convergence; registers alone.
    pub ccv: Verdict,
    /// Causal memory; registers alone.
    pub cm: Verdict,
}

impl Report {
    fn unknown(reason: &str) -> Self {
        let verdict = Verdict::Unknown { reason: reason.to_owned() };
        Report { cc: verdict.clone(), ccv: verdict.clone(), cm: verdict }
    }
}

/// Judges a history, as registers or as siblings, whichever its reads are.
pub fn check(history: &History, options: &Options) -> Report {
    if history.ops.iter().any(|op| op.is_sibling_read() && (op.covers != NONE || op.value == NONE)) {
        let cc = siblings(history, options);
        let only = Verdict::Unknown { reason: "defined for registers alone".to_owned() };
        return Report { cc, ccv: only.clone(), cm: only };
    }
    registers(history, options)
}

/// co: for each operation, how many of each process's operations are before it or are it.
struct Order {
    /// Operations that count, and the node of each operation or [`NONE`].
    nodes: Vec<u32>,
    node_of: Vec<u32>,
    /// Each node's process and its place among that process's nodes, from 1.
    place: Vec<(u32, u32)>,
    processes: usize,
    clocks: Vec<u32>,
}

impl Order {
    /// The order of the operations that `counts` picks and the edges that `before` gives (operations before the
    /// given one). `Err(Some(_))`: a cycle through that operation.
    fn new(
        history: &History,
        options: &Options,
        counts: impl Fn(&Op) -> bool,
        before: impl Fn(u32, &mut Vec<u32>),
    ) -> Result<Order, Option<u32>> {
        let mut processes: BTreeMap<u32, u32> = BTreeMap::new();
        let (mut nodes, mut place, mut node_of) = (Vec::new(), Vec::new(), vec![NONE; history.ops.len()]);
        let mut last: Vec<u32> = Vec::new();
        let mut edges: Vec<(u32, u32)> = Vec::new();
        let mut counted: Vec<u32> = Vec::new();
        for (at, op) in history.ops.iter().enumerate().filter(|(_, op)| counts(op)) {
            let count = number(processes.len());
            let process = *processes.entry(op.process).or_insert(count);
            if process as usize == last.len() {
                last.push(NONE);
                counted.push(0);
            }
            let node = number(nodes.len());
            nodes.push(number(at));
            node_of[at] = node;
            counted[process as usize] += 1;
            place.push((process, counted[process as usize]));
            if last[process as usize] != NONE {
                edges.push((last[process as usize], node));
            }
            last[process as usize] = node;
        }
        let processes = processes.len();
        if nodes.len().saturating_mul(processes * 4) > options.memory {
            return Err(None);
        }
        let mut sources = Vec::new();
        for (node, at) in nodes.iter().enumerate() {
            sources.clear();
            before(*at, &mut sources);
            for source in &sources {
                let from = node_of[*source as usize];
                if from != NONE {
                    edges.push((from, number(node)));
                }
            }
        }
        let graph = Graph::new(nodes.len(), edges);
        let sorted = graph.sorted();
        if let Err(on_cycle) = sorted {
            return Err(Some(nodes[on_cycle as usize]));
        }
        let mut order = Order { clocks: vec![0; nodes.len() * processes], nodes, node_of, place, processes };
        for node in sorted.unwrap_or_default() {
            let (process, count) = order.place[node as usize];
            let own = node as usize * processes;
            order.clocks[own + process as usize] = count;
            for behind in graph.behind(node) {
                for at in 0..processes {
                    let clock = order.clocks[own + at];
                    let theirs = &mut order.clocks[*behind as usize * processes + at];
                    *theirs = clock.max(*theirs);
                }
            }
        }
        Ok(order)
    }

    fn clock(&self, node: u32) -> &[u32] {
        &self.clocks[node as usize * self.processes..][..self.processes]
    }

    /// Whether one node is strictly before another.
    fn before(&self, one: u32, two: u32) -> bool {
        let (process, count) = self.place[one as usize];
        one != two && count <= self.clock(two)[process as usize]
    }
}

/// A graph with its edges by their source.
struct Graph {
    starts: Vec<usize>,
    targets: Vec<u32>,
}

impl Graph {
    fn new(nodes: usize, mut edges: Vec<(u32, u32)>) -> Self {
        edges.sort_unstable();
        edges.dedup();
        let mut starts = vec![0; nodes + 1];
        for (from, _) in &edges {
            starts[*from as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        Graph { starts, targets: edges.into_iter().map(|(_, to)| to).collect() }
    }

    fn behind(&self, node: u32) -> &[u32] {
        &self.targets[self.starts[node as usize]..self.starts[node as usize + 1]]
    }

    /// The nodes, each behind those before it; or a node that is on, or behind, a cycle.
    fn sorted(&self) -> Result<Vec<u32>, u32> {
        let count = self.starts.len() - 1;
        let mut waits = vec![0_u32; count];
        for target in &self.targets {
            waits[*target as usize] += 1;
        }
        let mut sorted: Vec<u32> = (0..number(count)).filter(|node| waits[*node as usize] == 0).collect();
        let mut at = 0;
        while at < sorted.len() {
            for behind in self.behind(sorted[at]) {
                waits[*behind as usize] -= 1;
                if waits[*behind as usize] == 0 {
                    sorted.push(*behind);
                }
            }
            at += 1;
        }
        match (0..number(count)).find(|node| waits[*node as usize] > 0) {
            Some(stuck) if sorted.len() < count => Err(stuck),
            _ => Ok(sorted),
        }
    }
}

fn is_write(op: &Op) -> bool {
    matches!(op.f, F::Write | F::Put) && op.outcome != Outcome::Fail && op.value != NONE
}

fn is_read(op: &Op) -> bool {
    matches!(op.f, F::Read | F::Get) && op.outcome == Outcome::Ok && op.value != NONE
}

fn registers(history: &History, options: &Options) -> Report {
    // Who wrote each value of each key.
    let mut writers: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    for (at, op) in history.ops.iter().enumerate() {
        let known = matches!(op.f, F::Read | F::Get | F::Write | F::Put) && !op.has(flag::ELEMENTS);
        if !known {
            return Report::unknown("an operation that is neither a read nor a write of a register");
        }
        if is_write(op) && writers.insert((op.key, op.value), number(at)).is_some() {
            return Report::unknown("a value is written twice to a key");
        }
    }
    let initial = history.values.get("nil").unwrap_or(NONE);
    let source = |op: &Op| writers.get(&(op.key, op.value)).copied();
    let reads = history.ops.iter().filter(|op| is_read(op)).count() as u64;
    let mut findings = Findings::judging(reads);
    for (at, op) in history.ops.iter().enumerate().filter(|(_, op)| is_read(op)) {
        if op.value != initial && source(op).is_none() {
            findings.violation(op.complete, || Witness {
                text: format!("ThinAirRead: {} returned a value that nobody wrote", history.say(number(at))),
                ops: vec![number(at)],
            });
        }
    }
    let counts = |op: &Op| is_write(op) || is_read(op);
    let order = Order::new(history, options, counts, |at, before| {
        let op = &history.ops[at as usize];
        if is_read(op) {
            before.extend(source(op));
        }
    });
    let order = match order {
        Ok(order) => order,
        Err(None) => return Report::unknown("the order needs more memory than the budget"),
        Err(Some(at)) => {
            let end = history.ops[at as usize].complete;
            findings.violation(end, || Witness {
                text: format!("CyclicCO: {} is before itself, by programs and reads", history.say(at)),
                ops: vec![at],
            });
            let verdict = findings.verdict();
            return Report { cc: verdict.clone(), ccv: verdict.clone(), cm: verdict };
        }
    };
    // Writes of each (key, process) by place.
    let mut writes: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    for (node, at) in order.nodes.iter().enumerate() {
        let op = &history.ops[*at as usize];
        if is_write(op) {
            writes.entry((op.key, order.place[node].0)).or_default().push(number(node));
        }
    }
    // The last write of each process to a key before a node, the node itself not counted.
    let last_writes = |node: u32, key: u32| {
        let (writes, order) = (&writes, &order);
        (0..number(order.processes)).filter_map(move |process| {
            let all = writes.get(&(key, process))?;
            let count = all.partition_point(|write| order.before(*write, node));
            count.checked_sub(1).map(|at| all[at])
        })
    };
    let mut conflicts = Vec::new();
    for (node, at) in order.nodes.iter().enumerate() {
        let (node, op) = (number(node), &history.ops[*at as usize]);
        if !is_read(op) {
            continue;
        }
        let from = source(op).map(|writer| order.node_of[writer as usize]);
        for write in last_writes(node, op.key) {
            let write_at = order.nodes[write as usize];
            match from {
                None if op.value == initial => findings.violation(op.complete, || Witness {
                    text: format!(
                        "WriteCOInitRead: {} returned nil, and {} is before it",
                        history.say(*at),
                        history.say(write_at)
                    ),
                    ops: vec![write_at, *at],
                }),
                Some(from) if order.before(from, write) => findings.violation(op.complete, || Witness {
                    text: format!(
                        "WriteCORead: {} returned what {} wrote, and {} stands between them",
                        history.say(*at),
                        history.say(order.nodes[from as usize]),
                        history.say(write_at)
                    ),
                    ops: vec![order.nodes[from as usize], write_at, *at],
                }),
                Some(from) if from != write => conflicts.push((write, from)),
                _ => {}
            }
        }
    }
    let cc = findings.verdict();
    if matches!(cc, Verdict::Invalid { .. }) {
        return Report { cc: cc.clone(), ccv: cc.clone(), cm: cc };
    }
    let edges = po_and_rf(history, &order, &source);
    let pattern = |name: &str, at: u32| {
        let mut findings = Findings::judging(reads);
        let text = format!(
            "{name}: no order of the conflicting writes fits what was read; {} is part of it",
            history.say(at)
        );
        findings.violation(0, || Witness { text, ops: vec![at] });
        findings.verdict()
    };
    let ccv = match Graph::new(order.nodes.len(), [&edges[..], &conflicts].concat()).sorted() {
        Ok(_) => cc.clone(),
        Err(stuck) => pattern("CyclicCF", order.nodes[stuck as usize]),
    };
    let cm = match memory(history, options, &order, &edges, initial, &source) {
        Memory::Fine => cc.clone(),
        Memory::Bad(name, at) => pattern(name, at),
        Memory::TooLarge => Verdict::Unknown { reason: "hb needs more memory than the budget".to_owned() },
    };
    Report { cc, ccv, cm }
}

fn po_and_rf(history: &History, order: &Order, source: &impl Fn(&Op) -> Option<u32>) -> Vec<(u32, u32)> {
    let mut edges = Vec::new();
    let mut last = vec![NONE; order.processes];
    for (node, at) in order.nodes.iter().enumerate() {
        let node = number(node);
        let last = &mut last[order.place[node as usize].0 as usize];
        if *last != NONE {
            edges.push((*last, node));
        }
        *last = node;
        let op = &history.ops[*at as usize];
        if is_read(op)
            && let Some(writer) = source(op)
        {
            edges.push((order.node_of[writer as usize], node));
        }
    }
    edges
}

enum Memory {
    Fine,
    Bad(&'static str, u32),
    TooLarge,
}

/// Looks for the patterns of hb, process by process.
fn memory(
    history: &History,
    options: &Options,
    order: &Order,
    edges: &[(u32, u32)],
    initial: u32,
    source: &impl Fn(&Op) -> Option<u32>,
) -> Memory {
    let count = order.nodes.len();
    let words = bits::words(count);
    if count.saturating_mul(words).saturating_mul(8) > options.memory || count > 20_000 {
        return Memory::TooLarge;
    }
    for process in 0..number(order.processes) {
        let mine: Vec<u32> =
            (0..number(count)).filter(|node| order.place[*node as usize].0 == process).collect();
        let Some(last) = mine.last() else { continue };
        let in_past = |node: u32| node == *last || order.before(node, *last);
        // reach[b] holds what is before b.
        let mut edges: Vec<(u32, u32)> =
            edges.iter().copied().filter(|(a, b)| in_past(*a) && in_past(*b)).collect();
        loop {
            let graph = Graph::new(count, edges.clone());
            let sorted = match graph.sorted() {
                Ok(sorted) => sorted,
                Err(stuck) => return Memory::Bad("CyclicHB", order.nodes[stuck as usize]),
            };
            let mut reach = vec![0_u64; count * words];
            let mut row = vec![0; words];
            for node in sorted {
                row.copy_from_slice(&reach[node as usize * words..][..words]);
                bits::set(&mut row, node);
                for behind in graph.behind(node) {
                    bits::join(&mut reach[*behind as usize * words..][..words], &row);
                }
            }
            let before = edges.len();
            for read in
                mine.iter().filter(|node| is_read(&history.ops[order.nodes[**node as usize] as usize]))
            {
                let op = &history.ops[order.nodes[*read as usize] as usize];
                let from = source(op).map(|writer| order.node_of[writer as usize]);
                for other in bits::ones(&reach[*read as usize * words..][..words]) {
                    let write = &history.ops[order.nodes[other as usize] as usize];
                    if !is_write(write) || write.key != op.key || Some(other) == from {
                        continue;
                    }
                    match from {
                        None if op.value == initial => {
                            return Memory::Bad("WriteHBInitRead", order.nodes[*read as usize]);
                        }
                        Some(from) => edges.push((other, from)),
                        None => {}
                    }
                }
            }
            edges.sort_unstable();
            edges.dedup();
            if edges.len() == before {
                break;
            }
        }
    }
    Memory::Fine
}

fn siblings(history: &History, options: &Options) -> Verdict {
    let mut findings = Findings::default();
    let counts =
        |op: &Op| (op.is_write() && op.outcome != Outcome::Fail) || (op.f == F::Get && op.is_sibling_read());
    let order = Order::new(history, options, counts, |at, before| {
        let op = &history.ops[at as usize];
        if op.f == F::Get {
            before.extend(history.returned(op).iter().filter_map(|entry| history.writer(entry.id())));
        } else if history.ops.get(op.after as usize).is_some() {
            before.push(op.after);
        }
    });
    let order = match order {
        Ok(order) => order,
        Err(None) => {
            return Verdict::Unknown { reason: "the order needs more memory than the budget".to_owned() };
        }
        Err(Some(at)) => {
            findings.judged = 1;
            findings.violation(0, || Witness {
                text: format!(
                    "CyclicCO: {} is before itself, by programs, reads and contexts",
                    history.say(at)
                ),
                ops: vec![at],
            });
            return findings.verdict();
        }
    };
    let mut key = Key::new(history, options);
    let (mut returned, mut reached) = (Vec::new(), Vec::new());
    for (number_of_key, ops) in history.by_key().iter() {
        if let Err(reason) = key.load(number_of_key, ops) {
            findings.ran_out(reason);
            continue;
        }
        for at in &key.reads {
            let read = &history.ops[*at as usize];
            if read.f != F::Get {
                continue;
            }
            findings.judged += 1;
            crate::thin_air::judge(history, *at, read, &mut findings);
            key.observe(read, &mut returned, &mut reached);
            let node = order.node_of[*at as usize];
            for write in 0..number(key.writes.len()) {
                let write_at = key.writes[write as usize];
                let put = key.op(write);
                let from = order.node_of[write_at as usize];
                let due = put.f == F::Put && from != NONE && order.before(from, node);
                let clock = history.extra(read).clock;
                if due
                    && !bits::has(&reached, write)
                    && !key.accounted(write, &reached, &returned, read.complete, clock)
                {
                    findings.violation(read.complete, || Witness {
                        text: format!(
                            "Missed: {} is before {} by programs, reads and contexts, and nothing that was returned \
                             accounts for its absence",
                            history.say(write_at),
                            history.say(*at)
                        ),
                        ops: vec![write_at, *at],
                    });
                }
            }
        }
    }
    findings.verdict()
}
