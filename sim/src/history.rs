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
use xxhash_rust::xxh3::xxh3_64;

use crate::probes::PROBES;

/// Wrong values that are kept; more say nothing new.
const WRONG_MAX: usize = 20;

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
    /// Writes of unknown outcome that no node ever took: known in the end.
    never_applied: u64,
    /// What each write wrote: a hash of its value, nothing for a deletion.
    wrote: BTreeMap<WriteId, Option<u64>>,
    values_judged: u64,
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

    /// Notes what a write is to write; nothing for a deletion.
    pub fn wrote(&self, write: WriteId, value: Option<&[u8]>) {
        self.lock().wrote.insert(write, value.map(xxh3_64));
    }

    /// Judges a value that a client was given: it is what that write wrote. The checks go by the names of writes alone, and
    /// would take any bytes under the right name.
    pub fn judge_value(&self, key: &Key, write: WriteId, value: &[u8]) {
        let inner = &mut *self.lock();
        inner.values_judged += 1;
        let found = xxh3_64(value);
        let why = match inner.wrote.get(&write) {
            Some(Some(wrote)) if *wrote == found => return,
            Some(Some(_)) => "other bytes than it wrote",
            Some(None) => "a value, and it was a deletion",
            None => "a value, and nobody made such a write",
        };
        let what = format!("{key} was read with {} bytes of write {}: {why}", value.len(), id_of(write));
        if inner.wrong.len() < WRONG_MAX {
            inner.wrong.push(what);
        }
    }

    /// Values that were judged.
    pub fn values_judged(&self) -> u64 {
        self.lock().values_judged
    }

    /// In the end: these are the writes that any node ever took.
    pub fn never_applied(&self, written: &BTreeSet<WriteId>) {
        let inner = &mut *self.lock();
        inner.never_applied = inner.unknown.difference(written).count() as u64;
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
        probes.insert("put unknown and not applied", inner.never_applied);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_the_write_of_its_name_wrote() {
        let (history, key) = (Recorder::new(false), Key::new(b"k".to_vec()).unwrap());
        history.wrote(WriteId(1), Some(b"a value"));
        history.wrote(WriteId(2), None);
        history.judge_value(&key, WriteId(1), b"a value");
        assert_eq!(history.wrongs(), [] as [String; 0]);
        for (write, value, has) in
            [(1, "a valuE", "other bytes"), (1, "", "other bytes"), (2, "", "a deletion"), (3, "x", "nobody")]
        {
            history.judge_value(&key, WriteId(write), value.as_bytes());
            assert!(history.wrongs().last().unwrap().contains(has), "{:?}", history.wrongs());
        }
        assert_eq!((history.wrongs().len(), history.values_judged()), (4, 5));
    }

    #[test]
    fn a_write_that_was_never_read_may_have_been_applied_all_the_same() {
        let history = Recorder::new(false);
        [1, 2, 3].map(WriteId).into_iter().for_each(|write| history.unknown(write));
        history.read(WriteId(1));
        history.never_applied(&[WriteId(1), WriteId(2)].into());
        let probes = history.probes();
        assert_eq!((probes["put unknown yet applied"], probes["put unknown and not applied"]), (1, 1));
    }
}
