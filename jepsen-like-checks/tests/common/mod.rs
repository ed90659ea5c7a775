//! What the proofs share: small histories as data, ways to make them, and plain references.

#![allow(dead_code, unreachable_pub)] // each test file uses a part

pub mod cases;
pub mod make;
pub mod reference;

use std::borrow::Cow;
use std::cell::RefCell;

use jepsen_like_checks::build::Builder;
use jepsen_like_checks::event::{After, Dot, Event, Kind, Payload, Process, Sibling};
use jepsen_like_checks::history::History;
use jepsen_like_checks::value::Value;

/// Whose context a write passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Blind,
    Current,
    /// That of the operation with this number.
    Of(usize),
}

/// How an operation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Ok,
    Fail,
    Info,
    /// It does not.
    Never,
}

/// One operation of a small history. Ids are numbers of operations.
#[derive(Debug, Clone)]
pub struct Spec {
    pub process: i64,
    pub f: &'static str,
    pub key: Option<u8>,
    pub end: End,
    pub context: Context,
    pub returned: Vec<usize>,
    /// Of those returned, the ones that are shown as tombstones.
    pub dead: Vec<usize>,
    pub saw: Option<Vec<usize>>,
    pub dot: Option<(u8, u64)>,
    pub covers: Option<[u64; 2]>,
    /// What was written, compared or added; of a read what it returned (nil if `None`).
    pub value: Option<i64>,
    pub value2: i64,
    pub elements: Option<Vec<i64>>,
    /// (strict, sync, r, w, n)
    pub quorum: Option<(bool, bool, u8, u8, u8)>,
    pub layout: Option<u64>,
    pub copies: Option<u8>,
    pub ttl: Option<u64>,
    pub clock: Option<(i64, i64)>,
    pub node: Option<u8>,
    /// Of a read: added to the counters of the dots it shows.
    pub shift: u64,
}

impl Spec {
    pub fn new(process: i64, f: &'static str) -> Self {
        Spec {
            process,
            f,
            key: None,
            end: End::Ok,
            context: Context::Blind,
            returned: Vec::new(),
            dead: Vec::new(),
            saw: None,
            dot: None,
            covers: None,
            value: None,
            value2: 0,
            elements: None,
            quorum: None,
            layout: None,
            copies: None,
            ttl: None,
            clock: None,
            node: None,
            shift: 0,
        }
    }

    pub fn writes(&self) -> bool {
        matches!(self.f, "put" | "delete") && self.value.is_none()
    }
}

/// A small history: its operations and the order of their events. An operation's first event is its invocation.
#[derive(Debug, Clone, Default)]
pub struct Small {
    pub ops: Vec<Spec>,
    pub order: Vec<usize>,
}

thread_local! {
    static BUILDER: RefCell<Builder> = RefCell::default();
}

/// Gives the memory of a history to the next one.
pub fn recycle(history: History) {
    BUILDER.with_borrow_mut(|builder| builder.reuse(history));
}

fn id(op: usize) -> Cow<'static, str> {
    const IDS: [&str; 14] =
        ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8", "w9", "w10", "w11", "w12", "w13"];
    IDS.get(op).map_or_else(|| Cow::Owned(format!("w{op}")), |id| Cow::Borrowed(*id))
}

fn node(node: u8) -> Cow<'static, str> {
    const NODES: [&str; 3] = ["n0", "n1", "n2"];
    Cow::Borrowed(NODES[usize::from(node)])
}

impl Small {
    /// Gives `push` the events, in order.
    pub fn events(&self, mut push: impl FnMut(&Event<'static>)) {
        const OPS_MAX: usize = 32;
        assert!(self.ops.len() <= OPS_MAX);
        let mut invoked = [false; OPS_MAX];
        let mut completed_at: [Option<u64>; OPS_MAX] = [None; OPS_MAX];
        for (index, at) in (0_u64..).zip(&self.order) {
            let op = &self.ops[*at];
            let first = !std::mem::replace(&mut invoked[*at], true);
            if op.f == "lost" {
                let mut event = Event::new(Kind::Info, 0, "lost");
                event.process = Process::Named("nemesis".into());
                let disk = if op.end == End::Ok { "disk" } else { "unsynced" };
                let entry =
                    |key: &'static str, value: Cow<'static, str>| (Value::Str(key.into()), Value::Str(value));
                let map =
                    Value::Map(vec![entry("node", node(op.node.unwrap_or(0))), entry("what", disk.into())]);
                event.value = Some(Payload::Value(map));
                push(&event);
                continue;
            }
            let kind = match (first, op.end) {
                (true, _) => Kind::Invoke,
                (false, End::Ok) => Kind::Ok,
                (false, End::Fail) => Kind::Fail,
                (false, _) => Kind::Info,
            };
            let mut event = Event::new(kind, op.process, op.f);
            event.index = Some(index);
            event.time = Some(i64::try_from(index).unwrap() * 1000);
            event.key = op.key.map(|key| Value::Int(i64::from(key)));
            let payload = |value: Value<'static>| Some(Payload::Value(value));
            if first {
                if op.writes() {
                    event.id = Some(id(*at));
                    event.after = match op.context {
                        Context::Blind => None,
                        Context::Current => Some(After::Current),
                        Context::Of(other) => completed_at[other].map(After::Index),
                    };
                    event.ttl = op.ttl;
                }
                event.value = match (op.f, op.value) {
                    ("cas", Some(old)) => {
                        payload(Value::Vector(vec![Value::Int(old), Value::Int(op.value2)]))
                    }
                    ("write" | "put" | "add", Some(value)) => payload(Value::Int(value)),
                    ("append", Some(value)) => payload(Value::Str(format!("<{value}>").into())),
                    _ => None,
                };
                if let Some((strict, sync, r, w, n)) = op.quorum {
                    (event.strict, event.r, event.w, event.n) = (Some(strict), Some(r), Some(w), Some(n));
                    event.durable = Some(if sync { "sync" } else { "interval" }.into());
                }
                event.layout = op.layout;
                event.node = op.node.map(node);
            } else if op.end == End::Ok {
                completed_at[*at] = Some(index);
                event.clock = op.clock;
                event.copies = op.copies;
                event.dot = op.dot.map(|(actor, counter)| dot(actor, counter));
                event.saw = op.saw.as_ref().map(|saw| saw.iter().map(|at| id(*at)).collect());
                event.covers = op.covers.map(|covers| {
                    let named = [("a", covers[0]), ("b", covers[1])];
                    named.into_iter().filter(|(_, n)| *n > 0).map(|(actor, n)| (actor.into(), n)).collect()
                });
                let siblings = op.writes() || (matches!(op.f, "get" | "final") && op.value.is_none());
                event.value = match op.f {
                    "get" if op.elements.is_some() => {
                        let parts = op.elements.iter().flatten().map(|part| format!("<{part}>"));
                        payload(Value::Str(parts.collect::<String>().into()))
                    }
                    _ if op.elements.is_some() => {
                        let elements = op.elements.iter().flatten();
                        payload(Value::Vector(elements.map(|element| Value::Int(*element)).collect()))
                    }
                    _ if siblings => {
                        let siblings = op.returned.iter().map(|other| Sibling {
                            id: id(*other),
                            dot: self
                                .ops
                                .get(*other)
                                .and_then(|other| other.dot)
                                .map(|(a, c)| dot(a, c + op.shift)),
                            dead: op.dead.contains(other),
                            ..Sibling::default()
                        });
                        Some(Payload::Siblings(siblings.collect()))
                    }
                    "read" => payload(op.value.map_or(Value::Nil, Value::Int)),
                    "get" => payload(match op.value {
                        Some(value) if value >= 0 => Value::Int(value),
                        _ => Value::Nil,
                    }),
                    _ => None,
                };
            }
            push(&event);
        }
    }

    pub fn history(&self) -> History {
        BUILDER.with_borrow_mut(|builder| {
            self.events(|event| {
                builder.push(event).unwrap_or_else(|error| panic!("{error}: {self:?}"));
            });
            builder.finish()
        })
    }

    /// As lines of text, for messages.
    pub fn show(&self) -> String {
        let mut out = Vec::new();
        self.events(|event| jepsen_like_checks::formats::json::write(&mut out, event).unwrap());
        String::from_utf8(out).unwrap()
    }
}

fn dot(actor: u8, counter: u64) -> Dot<'static> {
    Dot { actor: if actor == 0 { "a" } else { "b" }.into(), counter }
}
