//! Speed and size of the checks, on one core, with the history parsed and in memory. Times are those on a
//! processor, not on the wall.
//!
//! ```text
//! cargo bench -p jepsen-like-checks                    1,000,000 operations
//! cargo bench -p jepsen-like-checks -- 10000000        as many as that
//! cargo bench -p jepsen-like-checks -- formats         one part: recorded, register, formats or checks
//! RINGDOVE_HISTORIES=… cargo bench -p jepsen-like-checks    the recorded histories too
//! ```
//!
//! Not a criterion bench: one pass over a large history is what is asked for, and its size beside it.

#![allow(clippy::disallowed_methods, clippy::cast_precision_loss)] // a program that measures time and reads files

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufReader, Cursor, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jepsen_like_checks::build::Builder;
use jepsen_like_checks::event::{After, Dot, Event, Kind, Payload, Sibling};
use jepsen_like_checks::formats::{self, edn, etcd, json};
use jepsen_like_checks::history::History;
use jepsen_like_checks::linearizability::{self, Model};
use jepsen_like_checks::value::Value;
use jepsen_like_checks::{
    Options, Verdict, durability, frontier, monotonic_writes, read_your_writes, regular, resurrection,
    thin_air, writes_follow_reads,
};

const PROCESSES: usize = 64;
const WRITES_OF_A_KEY_MAX: usize = 1000;

/// A small fast generator; the bench needs no better.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % n
    }
}

/// What a key holds: the write, its dot, and the moment until which it is shown.
#[derive(Clone, Copy)]
struct Held {
    write: usize,
    actor: usize,
    counter: u64,
    until: u64,
}

/// One key of a correct store: its siblings, and the counters of its three actors.
#[derive(Clone, Default)]
struct Record {
    siblings: Vec<Held>,
    covers: [u64; 3],
    writes: usize,
    /// The read whose context the next writer passes: its completion, and what it covers.
    read: Option<(u64, [u64; 3])>,
}

impl Record {
    fn cover(&mut self, covers: &[u64; 3]) {
        self.siblings.retain(|held| held.counter > covers[held.actor]);
    }

    fn show(&self, now: u64, dots: bool) -> Payload<'static> {
        let shown = self.siblings.iter().filter(|held| now <= held.until).map(|held| Sibling {
            id: format!("w{}", held.write).into(),
            dot: dots.then(|| Dot { actor: ACTORS[held.actor].into(), counter: held.counter }),
            ..Sibling::default()
        });
        Payload::Siblings(shown.collect())
    }
}

/// What a process is doing.
struct Open {
    key: usize,
    process: usize,
    f: &'static str,
    /// The index of its invocation. A write takes effect there, by a clock that counts events.
    at: u64,
    dot: (usize, u64),
}

const ACTORS: [&str; 3] = ["a", "b", "c"];

/// Feeds a history of a correct store to `push`: 64 processes, three siblings at most, half of it reads; of the writes
/// one in ten is a deletion and one in fifty has a time to live. Every completion has a clock.
fn generate(operations: usize, mut push: impl FnMut(&Event<'_>)) {
    let keys = (operations / 100).max(1);
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let mut records = vec![Record::default(); keys];
    let mut index = 0_u64;
    let mut open: Vec<Open> = Vec::new();
    let mut started = 0;
    let clock = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
    while started < operations || !open.is_empty() {
        if started < operations && open.len() < PROCESSES {
            // A few hot keys reach the most writes; the rest share evenly.
            let hot = dice.below(10) < 3;
            let mut key = dice.below(if hot { keys.div_ceil(50) } else { keys });
            if records[key].writes >= WRITES_OF_A_KEY_MAX {
                key = dice.below(keys);
            }
            // A writer whose context would leave three siblings reads first.
            let record = &mut records[key];
            let covers = record.read.map_or([0; 3], |(_, covers)| covers);
            let left = record.siblings.iter().filter(|held| held.counter > covers[held.actor]).count();
            let write =
                (record.writes == 0 || dice.below(2) == 0) && left < 3 && record.writes < WRITES_OF_A_KEY_MAX;
            let blind = record.siblings.len() < 3 && dice.below(10) == 0;
            let context = if blind { None } else { record.read };
            // Without a context a deletion would overwrite nobody knows what.
            let f = match (write, context) {
                (false, _) => "get",
                (true, Some(_)) if dice.below(10) == 0 => "delete",
                _ => "put",
            };
            let process =
                (0..PROCESSES).find(|process| open.iter().all(|busy| busy.process != *process)).unwrap_or(0);
            let mut event = Event::new(Kind::Invoke, i64::try_from(process).unwrap_or(0), f);
            event.key = Some(Value::Str(format!("k{key}").into()));
            (event.index, event.time) = (Some(index), Some(clock(index) * 1000));
            (event.strict, event.r, event.n, event.w) = (Some(true), Some(2), Some(3), Some(2));
            let mut dot = (0, 0);
            if write {
                event.id = Some(format!("w{started}").into());
                event.after = context.map(|(at, _)| After::Index(at));
                // It takes effect at once; then nothing that is shown later is from before it.
                record.cover(&context.map_or([0; 3], |(_, covers)| covers));
                let actor = dice.below(3);
                record.covers[actor] += 1;
                dot = (actor, record.covers[actor]);
                if f == "put" {
                    event.ttl = (dice.below(50) == 0).then(|| 50_000 + dice.below(50_000) as u64);
                    let until = event.ttl.map_or(u64::MAX, |ttl| index + ttl);
                    record.siblings.push(Held { write: started, actor, counter: dot.1, until });
                }
                record.writes += 1;
            }
            push(&event);
            open.push(Open { key, process, f, at: index, dot });
            index += 1;
            started += 1;
            continue;
        }
        let Open { key, process, f, at, dot } = open.swap_remove(dice.below(open.len()));
        let mut event = Event::new(Kind::Ok, i64::try_from(process).unwrap_or(0), f);
        (event.index, event.time) = (Some(index), Some(clock(index) * 1000));
        let record = &mut records[key];
        if f == "get" {
            event.value = Some(record.show(index, true));
            let covers = ACTORS.iter().zip(record.covers).filter(|(_, counter)| *counter > 0);
            event.covers = Some(covers.map(|(actor, counter)| ((*actor).into(), counter)).collect());
            event.clock = Some((clock(index), clock(index)));
            record.read = Some((index, record.covers));
        } else {
            (event.durable, event.copies) = (Some("sync".into()), Some(2));
            event.dot = Some(Dot { actor: ACTORS[dot.0].into(), counter: dot.1 });
            event.clock = Some((clock(at), clock(index)));
        }
        push(&event);
        index += 1;
    }
    // The final state of every key.
    for (key, record) in records.iter().enumerate() {
        let mut event = Event::new(Kind::Invoke, 0, "final");
        event.key = Some(Value::Str(format!("k{key}").into()));
        event.index = Some(index);
        push(&event);
        event.kind = Kind::Ok;
        event.clock = Some((clock(index), clock(index)));
        event.value = Some(record.show(index, false));
        event.index = Some(index + 1);
        push(&event);
        index += 2;
    }
}

/// Time that this thread has been on a processor: others use the machine too.
fn busy() -> Duration {
    let said = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = said.as_deref().and_then(|said| said.split(' ').next()).and_then(|nanos| nanos.parse().ok());
    nanos.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

fn report(what: &str, operations: usize, taken: Duration) {
    let rate = operations as f64 / taken.as_secs_f64() / 1e6;
    println!("{what:28} {:8.3} s   {rate:6.2} M operations/s", taken.as_secs_f64());
}

fn large(operations: usize) {
    let mut builder = Builder::new();
    generate(operations, |event| builder.push(event).expect("a sound history"));
    let history = builder.finish();
    let (ops, tables) = history.bytes();
    let count = history.ops.len();
    println!(
        "{count} operations: {:.1} bytes each, and {:.1} of distinct names, contexts and siblings",
        ops as f64 / count as f64,
        tables as f64 / count as f64
    );
    let options = Options::default();
    type Check = fn(&History, &Options) -> Verdict;
    let checks: [(&str, Check); 9] = [
        ("thin air", thin_air::check),
        ("frontier", |history, options| frontier::check(history, options).verdict),
        ("durability", durability::check),
        ("resurrection", resurrection::check),
        ("regular", regular::check),
        ("read your writes", read_your_writes::check),
        ("monotonic writes", monotonic_writes::check),
        ("writes follow reads", writes_follow_reads::check),
        ("causal (measured)", |history, options| jepsen_like_checks::causal::check(history, options).cc),
    ];
    for (name, check) in checks {
        if name.starts_with("causal") && count > 2_000_000 {
            continue;
        }
        let start = busy();
        let verdict = check(&history, &options);
        report(name, count, busy() - start);
        // It is a correct store, and none of them is measured on a history that has nothing for it to judge.
        assert!(matches!(verdict, Verdict::Valid { .. }), "{name}: {verdict}");
        println!("{:28} {verdict}", "");
    }
}

fn parsing(operations: usize) {
    let mut text = Vec::new();
    generate(operations, |event| json::write(&mut text, event).expect("memory"));
    let start = busy();
    let history = formats::read(&mut json::Reader::new(Cursor::new(&text))).expect("our own lines");
    report("JSON lines", history.ops.len(), busy() - start);
    println!("{:28} {:.0} bytes an operation", "", text.len() as f64 / history.ops.len() as f64);
    let mut text = Vec::new();
    generate(operations / 4, |event| edn::write(&mut text, event).expect("memory"));
    let start = busy();
    let history = formats::read(&mut edn::Reader::new(Cursor::new(&text))).expect("our own maps");
    report("EDN", history.ops.len(), busy() - start);
}

/// A register of which every write has a value of its own, written and read by turns that overlap.
fn unique(operations: usize) {
    let mut text = Vec::new();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut value, mut next) = (None::<usize>, 0);
    let mut open: Vec<(usize, Option<usize>)> = Vec::new();
    let line = |text: &mut Vec<u8>, kind: &str, process: usize, value: Option<usize>, write: bool| {
        let value = value.map_or("null".to_owned(), |value| value.to_string());
        let f = if write { "write" } else { "read" };
        writeln!(text, "{{\"type\":\"{kind}\",\"process\":{process},\"f\":\"{f}\",\"value\":{value}}}")
            .expect("memory");
    };
    let mut started = 0;
    while started < operations || !open.is_empty() {
        if started < operations && open.len() < 16 {
            let process = (0..16).find(|process| open.iter().all(|(busy, _)| busy != process)).unwrap_or(0);
            let write = dice.below(2) == 0;
            let own = write.then(|| {
                next += 1;
                next
            });
            value = own.or(value);
            line(&mut text, "invoke", process, own, write);
            open.push((process, own));
            started += 1;
            if dice.below(4) > 0 {
                continue;
            }
        }
        let (process, own) = open.swap_remove(dice.below(open.len()));
        line(&mut text, "ok", process, own.or(value), own.is_some());
    }
    let history = formats::read(&mut json::Reader::new(Cursor::new(&text))).expect("our own lines");
    let start = busy();
    let verdict = linearizability::check(&history, Model::Register, &Options::default());
    report("unique-value register", history.ops.len(), busy() - start);
    println!("{:28} {verdict}", "");
    let start = busy();
    let verdict = linearizability::check_by_search(&history, Model::Register, &Options::default());
    report("the same by searching", history.ops.len(), busy() - start);
    println!("{:28} {verdict}", "");
}

fn recorded() {
    let Some(folder) = std::env::var_os("RINGDOVE_HISTORIES").map(PathBuf::from) else {
        println!("RINGDOVE_HISTORIES is not set: no recorded histories");
        return;
    };
    let list = fs::read_to_string(folder.join("verdicts.tsv")).expect("verdicts.tsv");
    let (mut sum, mut logs, mut count, mut slowest) =
        (Duration::ZERO, 0.0, 0, (Duration::ZERO, String::new()));
    for line in list.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (path, model) =
            (folder.join(fields[0]), Model::ALL.into_iter().find(|model| model.name() == fields[1]));
        let Some(model) = model else { continue };
        let input = BufReader::new(File::open(&path).expect("a listed file"));
        let history = if path.extension().is_some_and(|extension| extension == "log") {
            formats::read(&mut etcd::Reader::new(input))
        } else {
            formats::read(&mut edn::Reader::new(input))
        }
        .expect("a history");
        // As a benchmark loop does it: again and again, and the mean.
        let (start, mut rounds) = (busy(), 0_u32);
        while rounds < 3 || (busy() - start < Duration::from_millis(100) && rounds < 10_000) {
            black_box(linearizability::check(black_box(&history), model, &Options::default()));
            rounds += 1;
        }
        let taken = (busy() - start) / rounds;
        if fields[0].starts_with("etcd/") {
            sum += taken;
            logs += taken.as_secs_f64().ln();
            count += 1;
            if taken > slowest.0 {
                slowest = (taken, fields[0].to_owned());
            }
        } else if fields[0].starts_with("kv/") {
            println!("{:28} {:8.3} ms", fields[0], taken.as_secs_f64() * 1e3);
        }
    }
    println!(
        "{count} etcd logs               {:8.3} ms, geometric mean {:.1} µs, slowest {} {:.3} ms",
        sum.as_secs_f64() * 1e3,
        (logs / f64::from(count)).exp() * 1e6,
        slowest.1,
        slowest.0.as_secs_f64() * 1e3
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let operations = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let parts: [(&str, &dyn Fn()); 4] = [
        ("recorded", &recorded),
        ("register", &|| unique(1_000_000)),
        ("formats", &|| parsing(operations.min(1_000_000))),
        ("checks", &|| large(operations)),
    ];
    let asked = |name: &str| arguments.iter().any(|argument| argument == name);
    let all = !parts.iter().any(|(name, _)| asked(name));
    for (_, run) in parts.iter().filter(|(name, _)| all || asked(name)) {
        run();
    }
}
