//! What the clients of a run did and saw: the history that the checks judge, and that `--out` writes down.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jepsen_like_checks::build::Builder;
use jepsen_like_checks::event::{Dot as ClaimedDot, Event, Kind, Process};
use jepsen_like_checks::formats::{edn, json};
use jepsen_like_checks::history::History;
use jepsen_like_checks::value::Value;
use ringdove::dynamo::version::{Dot, VersionVector};
use ringdove::types::{ActorId, Key, WriteId};

use crate::probes::PROBES;

/// The events of a run so far. Clones share it.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    builder: Builder,
    /// Kept only where they are to be written down.
    lines: Option<Vec<Event<'static>>>,
    next: u64,
    processes: i64,
    /// Operations by name and outcome.
    outcomes: BTreeMap<(&'static str, &'static str), u64>,
    probes: BTreeMap<&'static str, u64>,
    /// Writes of unknown outcome, and all that was ever read.
    unknown: BTreeSet<WriteId>,
    read: BTreeSet<WriteId>,
    elements: i64,
    /// What no store may do, in words.
    wrong: Vec<String>,
}

impl Recorder {
    /// An empty history; `keep` its events too.
    pub fn new(keep: bool) -> Recorder {
        let inner = Inner { lines: keep.then(Vec::new), ..Inner::default() };
        Recorder(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process that has done nothing yet. A client goes on as a new one after an unknown outcome.
    pub fn process(&self) -> i64 {
        let mut inner = self.lock();
        inner.processes += 1;
        inner.processes
    }

    /// Writes an event down, at simulated time `now`, and returns its index.
    ///
    /// # Panics
    /// When it cannot follow those before: a mistake of the workload.
    pub fn push(&self, now: Duration, event: Event<'static>) -> u64 {
        let inner = &mut *self.lock();
        let index = inner.next;
        inner.next += 1;
        let time = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let event = Event { index: Some(index), time: Some(time), ..event };
        inner.builder.push(&event).expect("clients follow the rules of histories");
        if let Some(lines) = &mut inner.lines {
            lines.push(event);
        }
        index
    }

    /// An element of a set that nobody has added yet.
    pub fn element(&self) -> i64 {
        let mut inner = self.lock();
        inner.elements += 1;
        inner.elements
    }

    /// Notes that a probe was hit.
    pub fn hit(&self, probe: &'static str) {
        debug_assert!(PROBES.contains(&probe), "{probe} is no probe");
        *self.lock().probes.entry(probe).or_default() += 1;
    }

    /// Notes a write that nobody knows the outcome of.
    pub fn unknown(&self, write: WriteId) {
        self.lock().unknown.insert(write);
    }

    /// Notes a write that was read.
    pub fn read(&self, write: WriteId) {
        self.lock().read.insert(write);
    }

    /// Notes what no store may do.
    pub fn wrong(&self, what: String) {
        self.lock().wrong.push(what);
    }

    /// What was noted so.
    pub fn wrongs(&self) -> Vec<String> {
        self.lock().wrong.clone()
    }

    /// Every probe with how often it was hit.
    pub fn probes(&self) -> BTreeMap<&'static str, u64> {
        let inner = self.lock();
        let mut probes: BTreeMap<&'static str, u64> = PROBES.iter().map(|name| (*name, 0)).collect();
        probes.extend(inner.probes.iter());
        let applied = inner.unknown.intersection(&inner.read).count() as u64;
        probes.insert("put unknown yet applied", applied);
        probes.insert("put unknown and not applied", inner.unknown.len() as u64 - applied);
        probes
    }

    /// Counts an operation's outcome, for the summary.
    pub fn count(&self, operation: &'static str, outcome: &'static str) {
        *self.lock().outcomes.entry((operation, outcome)).or_default() += 1;
    }

    /// Operations by name and outcome.
    pub fn outcomes(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.lock().outcomes.clone()
    }

    /// The history, for the checks. Nothing may be added afterwards.
    pub fn finish(&self) -> History {
        std::mem::take(&mut self.lock().builder).finish()
    }

    /// Writes the kept events: JSON lines, and EDN.
    ///
    /// # Errors
    /// Those of the writers.
    pub fn write(&self, json_lines: &mut impl Write, edn_lines: &mut impl Write) -> io::Result<()> {
        for event in self.lock().lines.iter().flatten() {
            json::write(json_lines, event)?;
            edn::write(edn_lines, event)?;
        }
        Ok(())
    }
}

/// An event about a key.
pub fn event(kind: Kind, process: i64, f: &'static str, key: &Key) -> Event<'static> {
    Event { key: Some(Value::Str(key.to_string().into())), ..Event::new(kind, process, f) }
}

/// A remark of the nemesis.
pub fn remark(f: &'static str, value: Value<'static>) -> Event<'static> {
    let value = Some(jepsen_like_checks::event::Payload::Value(value));
    Event { process: Process::Named("nemesis".into()), value, ..Event::new(Kind::Info, 0, f) }
}

/// A write's name in histories.
pub fn id_of(write: WriteId) -> String {
    format!("{:032x}", write.0)
}

fn actor_of(actor: ActorId) -> String {
    format!("{:016x}.{}", actor.incarnation.0, actor.epoch)
}

/// A dot as a claim.
pub fn claimed(dot: Dot) -> ClaimedDot<'static> {
    ClaimedDot { actor: actor_of(dot.actor).into(), counter: dot.counter }
}

/// A context as a claim.
pub fn covers(context: &VersionVector) -> Vec<(std::borrow::Cow<'static, str>, u64)> {
    context.entries().map(|(actor, counter)| (actor_of(actor).into(), counter)).collect()
}
