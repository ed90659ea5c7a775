//! What the clients of a run did and saw: written to a file as it comes, and built up for the checks.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use jepsen_like_checks::build::Builder;
use jepsen_like_checks::event::{Dot as ClaimedDot, Event, Kind, Payload, Process, Sibling};
use jepsen_like_checks::formats::{Source, json};
use jepsen_like_checks::history::History;
use jepsen_like_checks::value::Value;
use ringdove::dynamo::version::{Content, Dot, Record, VersionVector};
use ringdove::net::message::{GetReply, HiddenWhy, Version};
use ringdove::types::{ActorId, Key, WriteId};

/// The events of a run so far. Clones share it.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Mutex<Inner>>);

struct Inner {
    builder: Builder,
    file: BufWriter<File>,
    path: PathBuf,
    began: Instant,
    index_next: u64,
    process_next: i64,
}

impl Recorder {
    /// An empty history, kept at `path`.
    pub(crate) fn new(path: &Path) -> Recorder {
        let file = BufWriter::new(File::create(path).expect("the history can be written"));
        let inner = Inner {
            builder: Builder::new(),
            file,
            path: path.to_owned(),
            began: Instant::now(),
            index_next: 0,
            process_next: 0,
        };
        Recorder(Arc::new(Mutex::new(inner)))
    }

    /// A process that has done nothing yet. A client goes on as a new one after an unknown outcome.
    pub(crate) fn process(&self) -> i64 {
        let mut inner = self.0.lock().unwrap();
        inner.process_next += 1;
        inner.process_next
    }

    /// Writes an event down and returns its index. The order of these calls is the real time of the checks: an
    /// invocation stands here before anything is sent, a completion after its answer came.
    pub(crate) fn push(&self, event: Event<'static>) -> u64 {
        let inner = &mut *self.0.lock().unwrap();
        let index = inner.index_next;
        inner.index_next += 1;
        let time = i64::try_from(inner.began.elapsed().as_nanos()).ok();
        let event = Event { index: Some(index), time, ..event };
        inner.builder.push(&event).expect("clients follow the rules of histories");
        json::write(&mut inner.file, &event).expect("the history can be written");
        index
    }

    /// The history, for the checks, and where it stands. Nothing may be added afterwards.
    pub(crate) fn finish(&self) -> (History, PathBuf) {
        let inner = &mut *self.0.lock().unwrap();
        inner.file.flush().expect("the history can be written");
        (inner.builder.finish(), inner.path.clone())
    }
}

/// The history of a file, every event as `change` leaves it.
pub(crate) fn reread(path: &Path, mut change: impl FnMut(&mut Event<'_>)) -> History {
    let mut reader = json::Reader::new(BufReader::new(File::open(path).expect("the history is there")));
    let mut builder = Builder::new();
    while let Some((_, mut event)) = reader.next().expect("it was written here") {
        change(&mut event);
        builder.push(&event).expect("the events can follow each other");
    }
    builder.finish()
}

/// An event about a key.
pub(crate) fn event(kind: Kind, process: i64, f: &'static str, key: &Key) -> Event<'static> {
    Event { key: Some(Value::Str(key.to_string().into())), ..Event::new(kind, process, f) }
}

/// A remark of the nemesis.
pub(crate) fn remark(f: &'static str, value: String) -> Event<'static> {
    let value = Some(Payload::Value(Value::Str(value.into())));
    Event { process: Process::Named("nemesis".into()), value, ..Event::new(Kind::Info, 0, f) }
}

/// A write's name in histories.
pub(crate) fn id_of(write: WriteId) -> String {
    format!("{:032x}", write.0)
}

fn actor_of(actor: ActorId) -> String {
    format!("{:016x}.{}", actor.incarnation.0, actor.epoch)
}

/// A dot as a claim.
pub(crate) fn claimed(dot: Dot) -> ClaimedDot<'static> {
    ClaimedDot { actor: actor_of(dot.actor).into(), counter: dot.counter }
}

/// A context as a claim.
pub(crate) fn covers(context: &VersionVector) -> Vec<(std::borrow::Cow<'static, str>, u64)> {
    context.entries().map(|(actor, counter)| (actor_of(actor).into(), counter)).collect()
}

/// What a read returned.
pub(crate) fn siblings_of(reply: &GetReply) -> Payload<'static> {
    let shown = |version: &Version| Sibling {
        id: id_of(version.write_id).into(),
        dot: Some(claimed(version.dot)),
        ..Sibling::default()
    };
    let mut all: Vec<Sibling<'static>> = reply.values.iter().map(shown).collect();
    for hidden in reply.hidden.iter().filter(|hidden| hidden.why != HiddenWhy::SameWrite) {
        let dead = matches!(hidden.why, HiddenWhy::Tombstone | HiddenWhy::Expired);
        let (id, dot) = (id_of(hidden.write_id).into(), Some(claimed(hidden.dot)));
        all.push(Sibling { id, dot, hidden: true, dead, ..Sibling::default() });
    }
    Payload::Siblings(all)
}

/// What one replica holds. Nothing in these histories expires.
pub(crate) fn siblings_in(record: &Record) -> Payload<'static> {
    let siblings = record.siblings().iter().map(|sibling| {
        let dead = sibling.content == Content::Tombstone;
        let (id, dot) = (id_of(sibling.write_id).into(), Some(claimed(sibling.dot)));
        Sibling { id, dot, dead, hidden: dead, ..Sibling::default() }
    });
    Payload::Siblings(siblings.collect())
}
