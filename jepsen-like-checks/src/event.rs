//! One event of a history, as it stands in a file: an invocation or what came of it.
//!
//! The model is Jepsen's: `invoke`, then `ok` (it happened), `fail` (it did not), or `info` (nobody knows). Every
//! field that the checks know has a place here; the rest is kept in `extra`, so that reading and writing a
//! history loses nothing.

use std::borrow::Cow;

use thiserror::Error;

use crate::value::Value;

/// What an event says about its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It begins.
    Invoke,
    /// It happened.
    Ok,
    /// It did not happen, and never will.
    Fail,
    /// It may have happened, may still happen, or may never. Of a process that is no client: a remark.
    Info,
}

impl Kind {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Invoke => "invoke",
            Kind::Ok => "ok",
            Kind::Fail => "fail",
            Kind::Info => "info",
        }
    }

    /// The kind of this name.
    pub fn of(name: &str) -> Option<Kind> {
        [Kind::Invoke, Kind::Ok, Kind::Fail, Kind::Info].into_iter().find(|kind| kind.name() == name)
    }
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process<'a> {
    /// A client: one operation at a time, and none after an `info`.
    Client(i64),
    /// Anything else, such as the nemesis. The rules for clients do not bind it.
    Named(Cow<'a, str>),
}

/// The event that a store claims made a value: the nth write of an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dot<'a> {
    /// Whose.
    pub actor: Cow<'a, str>,
    /// Counted from 1.
    pub counter: u64,
}

/// One of the concurrent values that a read returned.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sibling<'a> {
    /// The id of the write that made it.
    pub id: Cow<'a, str>,
    /// The value itself.
    pub value: Option<Value<'a>>,
    /// The store's claim about it.
    pub dot: Option<Dot<'a>>,
    /// Held by the record and not returned as a value, because `resolve = lww` chose another.
    pub hidden: bool,
    /// A tombstone.
    pub dead: bool,
    /// Keys that the checks do not know.
    pub extra: Vec<(Cow<'a, str>, Value<'a>)>,
}

/// The `value` of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload<'a> {
    /// Any value.
    Value(Value<'a>),
    /// A set of siblings: at least one map with an `id`.
    Siblings(Vec<Sibling<'a>>),
}

/// Whose context a write passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// That of the completion with this index.
    Index(u64),
    /// What the coordinator held at that moment.
    Current,
}

/// One event. Absent fields are `None` or empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// What it says.
    pub kind: Kind,
    /// Who did it.
    pub process: Process<'a>,
    /// The operation's name: `get`, `put`, `delete`, `final`, `read`, `write`, `cas`, `append`, `add`, or another.
    pub f: Cow<'a, str>,
    /// The key, where there are several.
    pub key: Option<Value<'a>>,
    /// What was written or returned.
    pub value: Option<Payload<'a>>,
    /// The id of a write, unique in the history.
    pub id: Option<Cow<'a, str>>,
    /// Whose context a write passed; absent: none.
    pub after: Option<After>,
    /// The ids that a write without a token of its own overwrote.
    pub saw: Option<Vec<Cow<'a, str>>>,
    /// The dot that the store says it gave the write.
    pub dot: Option<Dot<'a>>,
    /// The writes that the store says it had seen: for each actor, all up to this counter.
    pub covers: Option<Vec<(Cow<'a, str>, u64)>>,
    /// The answering node's wall clock in milliseconds, between these two, while it judged expiries.
    pub clock: Option<(i64, i64)>,
    /// Replicas that a read asked for.
    pub r: Option<u8>,
    /// Replicas that a write asked for.
    pub w: Option<u8>,
    /// Replicas of the key.
    pub n: Option<u8>,
    /// Whether only the key's own replicas counted.
    pub strict: Option<bool>,
    /// How many replicas held the write durably when it was acknowledged.
    pub copies: Option<u8>,
    /// How durable: `sync`, or another word.
    pub durable: Option<Cow<'a, str>>,
    /// The layout under which it was done.
    pub layout: Option<u64>,
    /// Time to live in milliseconds.
    pub ttl: Option<u64>,
    /// The wall-clock millisecond at which the write expires, where the store says it.
    pub expires_at: Option<i64>,
    /// The replica whose state a `final` shows.
    pub node: Option<Cow<'a, str>>,
    /// The place in the whole history; absent: one more than the last.
    pub index: Option<u64>,
    /// Nanoseconds since the start.
    pub time: Option<i64>,
    /// Keys that the checks do not know, kept.
    pub extra: Vec<(Cow<'a, str>, Value<'a>)>,
}

impl<'a> Event<'a> {
    /// An event with nothing but its kind, client and operation.
    pub fn new(kind: Kind, process: i64, f: impl Into<Cow<'a, str>>) -> Self {
        Event {
            kind,
            process: Process::Client(process),
            f: f.into(),
            key: None,
            value: None,
            id: None,
            after: None,
            saw: None,
            dot: None,
            covers: None,
            clock: None,
            r: None,
            w: None,
            n: None,
            strict: None,
            copies: None,
            durable: None,
            layout: None,
            ttl: None,
            expires_at: None,
            node: None,
            index: None,
            time: None,
            extra: Vec::new(),
        }
    }
}

/// Why an input is no history. Nothing of it may be judged then.
#[derive(Debug, Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct InputError {
    /// Counted from 1.
    pub line: u64,
    /// In bytes from the line's start, counted from 1.
    pub column: u64,
    /// What is wrong there.
    pub kind: InputErrorKind,
}

/// What is wrong with an input.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InputErrorKind {
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// One event is larger than the reader takes.
    #[error("an event of more than {limit} bytes")]
    TooLong {
        /// The reader's limit.
        limit: usize,
    },
    /// Brackets stand too deep in each other.
    #[error("nested more than {limit} deep")]
    TooDeep {
        /// The reader's limit.
        limit: usize,
    },
    /// Not the format.
    #[error("{0}")]
    Syntax(String),
    /// The format, but no event, or not one that can follow those before.
    #[error("{0}")]
    Event(#[from] EventError),
}

/// Why an event cannot stand where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EventError {
    /// An event is a map with at least `type`, `process` and `f`.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A field that holds something else than its kind.
    #[error("`{field}` must be {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// Indexes must rise.
    #[error("index {index} comes after index {last}")]
    IndexOrder {
        /// This event's.
        index: u64,
        /// The one before.
        last: u64,
    },
    /// A client does one thing at a time.
    #[error("process {0} begins an operation while its last one is open")]
    Busy(String),
    /// A client whose operation's outcome is unknown does nothing more.
    #[error("process {0} begins an operation after one that ended with info")]
    Crashed(String),
    /// Nothing to complete.
    #[error("process {0} completes an operation that it did not begin")]
    NotInvoked(String),
    /// A completion of another operation than the open one.
    #[error("process {process} began `{begun}` and completes `{completed}`")]
    OtherOperation {
        /// Whose.
        process: String,
        /// The open operation's name.
        begun: String,
        /// The completion's.
        completed: String,
    },
    /// An id names one write.
    #[error("write id {0} was used before")]
    DuplicateId(String),
    /// A completion that names another write or key than its invocation.
    #[error("`{0}` differs from the invocation's")]
    Differs(&'static str),
    /// A context can only come from before.
    #[error("`after` names index {0}, which is no earlier event")]
    AfterLater(u64),
    /// More than the model can hold.
    #[error("more than {0} {1}")]
    TooMany(u32, &'static str),
}
