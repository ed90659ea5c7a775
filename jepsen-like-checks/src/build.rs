//! From events to a history: pairs invocations with completions and gives every distinct thing its number.
//!
//! Rules (Jepsen's): a client does one thing at a time and nothing after an `info`; an operation without an end,
//! or with an `info`, is open for ever; a completion without a value has its invocation's. Processes that are not
//! integers are bound by none of this: what they say stands alone, except that a completion that follows their own
//! invocation is taken as its end, so that histories whose clients have names can be judged too.
//!
//! What is refused, is refused with the place where it stands: a history that cannot be is judged by nobody.

use crate::event::{After, Dot, Event, EventError, Kind, Payload, Process};
use crate::history::{CURRENT, Entry, Extra, F, History, Indexes, Mark, NONE, Op, Outcome, flag, number};
use crate::value::Value;

type Result<T> = std::result::Result<T, EventError>;

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// This operation.
    Busy(u32),
    /// Its last operation ended with `info`.
    Gone,
}

/// Builds a history event by event.
#[derive(Debug, Default)]
pub struct Builder {
    history: History,
    doing: Vec<Doing>,
    /// By position: the operation that completed there.
    completed: Vec<u32>,
    last_index: Option<u64>,
    text: String,
    entries: Vec<Entry>,
    pairs: Vec<(u32, u64)>,
    any_time: bool,
    /// The numbers of clients whose own number is small.
    clients: Vec<u32>,
}

/// Histories of fewer operations keep what they hold in vain.
const LARGE: usize = 1 << 10;

/// Clients below this are found without their name.
const SMALL_CLIENTS: usize = 1 << 16;

impl Builder {
    /// An empty history.
    pub fn new() -> Self {
        Builder::default()
    }

    /// The history of the events so far. The builder has none then.
    pub fn finish(&mut self) -> History {
        let mut history = std::mem::take(&mut self.history);
        if !self.any_time {
            history.times.clear();
        }
        history.writes.resize(history.ids.len(), NONE);
        // A vector that grew by doubling holds up to half of it in vain.
        if history.ops.len() >= LARGE {
            history.ops.shrink_to_fit();
            history.times.shrink_to_fit();
            history.writes.shrink_to_fit();
            history.extras.shrink();
        }
        for list in [&mut self.completed, &mut self.clients] {
            list.clear();
        }
        self.doing.clear();
        self.last_index = None;
        self.any_time = false;
        history
    }

    /// Takes the memory of a history that is no longer needed. For whoever judges many small ones.
    ///
    /// # Panics
    /// If events were pushed since the last [`Builder::finish`].
    pub fn reuse(&mut self, mut history: History) {
        assert!(self.history.events == 0, "a history is being built");
        history.clear();
        self.history = history;
    }

    fn value(&mut self, value: &Value<'_>) -> u32 {
        self.text.clear();
        value.write_edn(&mut self.text);
        self.history.values.intern(&self.text)
    }

    fn id(&mut self, id: &str) -> Result<u32> {
        let id = self.history.ids.intern(id);
        if id > Entry::ID_MAX { Err(EventError::TooMany(Entry::ID_MAX, "ids")) } else { Ok(id) }
    }

    fn dot(&mut self, dot: Option<&Dot<'_>>) -> u32 {
        let Some(dot) = dot else { return NONE };
        let actor = self.history.actors.intern(&dot.actor);
        self.history.dots.intern(&[(actor, dot.counter)])
    }

    fn process(&mut self, process: &Process<'_>) -> u32 {
        self.text.clear();
        let small = match process {
            Process::Client(client) => {
                let small = usize::try_from(*client).ok().filter(|small| *small < SMALL_CLIENTS);
                if let Some(known) =
                    small.and_then(|small| self.clients.get(small)).filter(|known| **known != NONE)
                {
                    return *known;
                }
                self.text.push_str(&client.to_string());
                small
            }
            Process::Named(name) => {
                self.text.push(':');
                self.text.push_str(name);
                None
            }
        };
        let number = self.history.processes.intern(&self.text);
        if let Some(small) = small {
            if self.clients.len() <= small {
                self.clients.resize(small + 1, NONE);
            }
            self.clients[small] = number;
        }
        number
    }

    /// Gives the event its position and index.
    fn place(&mut self, event: &Event<'_>) -> Result<u32> {
        let position = self.history.events;
        if position >= CURRENT {
            return Err(EventError::TooMany(CURRENT, "events"));
        }
        // Lists share one store of entries, which 32 bits count as well.
        if self.history.lists.items() > (CURRENT / 2) as usize {
            return Err(EventError::TooMany(CURRENT / 2, "siblings"));
        }
        let expected = self.last_index.map_or(0, |last| last + 1);
        let index = event.index.unwrap_or(expected);
        if let Some(last) = self.last_index.filter(|last| index <= *last) {
            return Err(EventError::IndexOrder { index, last });
        }
        if index == u64::MAX {
            return Err(EventError::Field { field: "index", expected: "smaller" });
        }
        match &mut self.history.indexes {
            Indexes::Dense(base) if position == 0 => *base = index,
            Indexes::Dense(_) if index == expected => {}
            Indexes::Dense(base) => {
                let mut indexes: Vec<u64> = (0..u64::from(position)).map(|at| *base + at).collect();
                indexes.push(index);
                self.history.indexes = Indexes::Listed(indexes);
            }
            Indexes::Listed(indexes) => indexes.push(index),
        }
        self.last_index = Some(index);
        self.history.events += 1;
        self.completed.push(NONE);
        Ok(position)
    }

    /// Takes the next event.
    ///
    /// # Errors
    /// It cannot follow those before. The history must then be thrown away.
    pub fn push(&mut self, event: &Event<'_>) -> Result<()> {
        let position = self.place(event)?;
        let process = self.process(&event.process);
        if self.doing.len() <= process as usize {
            self.doing.push(Doing::Nothing);
        }
        let client = matches!(event.process, Process::Client(_));
        let who = |builder: &Self| builder.history.processes.name(process).to_owned();
        match (event.kind, self.doing[process as usize]) {
            (Kind::Invoke, Doing::Busy(_)) if client => Err(EventError::Busy(who(self))),
            (Kind::Invoke, Doing::Gone) if client => Err(EventError::Crashed(who(self))),
            (Kind::Invoke, _) => self.begin(event, position, process),
            (_, Doing::Busy(op)) => self.end(event, position, process, op),
            (Kind::Info, _) if client => {
                // A remark of a client that does nothing: kept, and it is still gone if it was.
                self.mark(event, position, process);
                Ok(())
            }
            _ if client => Err(EventError::NotInvoked(who(self))),
            _ => {
                self.mark(event, position, process);
                Ok(())
            }
        }
    }

    fn mark(&mut self, event: &Event<'_>, position: u32, process: u32) {
        let mut value = String::new();
        let (mut node, mut disk) = (NONE, true);
        if let Some(Payload::Value(said)) = &event.value {
            said.write_edn(&mut value);
            if let Value::Map(entries) = said {
                for (key, said) in entries {
                    match (key.name(), said.name()) {
                        (Some("node"), Some(name)) => node = self.history.nodes.intern(name),
                        (Some("what"), Some(what)) => disk = what == "disk",
                        _ => {}
                    }
                }
            }
        }
        self.history.marks.push(Mark { position, process, f: event.f.to_string(), value, node, disk });
    }

    fn begin(&mut self, event: &Event<'_>, position: u32, process: u32) -> Result<()> {
        let key = match &event.key {
            Some(key) => {
                self.text.clear();
                key.write_edn(&mut self.text);
                self.history.keys.intern(&self.text)
            }
            None => self.history.keys.intern("nil"),
        };
        let op = number(self.history.ops.len());
        let mut it = Op {
            invoke: position,
            complete: NONE,
            process,
            key,
            id: NONE,
            after: NONE,
            list: NONE,
            saw: NONE,
            covers: NONE,
            dot: NONE,
            value: NONE,
            value2: NONE,
            layout: NONE,
            extra: NONE,
            f: F::of(&event.f),
            outcome: Outcome::Info,
            flags: 0,
            r: 0,
            w: 0,
            n: 0,
            copies: 0,
        };
        if it.f == F::Other {
            it.value2 = self.history.other.intern(&event.f);
        }
        if let Some(id) = &event.id {
            it.id = self.id(id)?;
            let at = it.id as usize;
            if self.history.writes.len() <= at {
                self.history.writes.resize(at + 1, NONE);
            }
            if self.history.writes[at] != NONE {
                return Err(EventError::DuplicateId(id.to_string()));
            }
            self.history.writes[at] = op;
        }
        self.after(event, &mut it, position)?;
        self.common(event, &mut it)?;
        self.history.ops.push(it);
        self.history.times.push((event.time.unwrap_or(i64::MIN), i64::MIN));
        self.any_time |= event.time.is_some();
        self.doing[process as usize] = Doing::Busy(op);
        Ok(())
    }

    fn after(&mut self, event: &Event<'_>, it: &mut Op, position: u32) -> Result<()> {
        match event.after {
            None => {}
            Some(After::Current) => it.after = CURRENT,
            Some(After::Index(index)) => {
                let at = self.history.indexes.position(index, self.history.events);
                let at = at.filter(|at| *at < position).ok_or(EventError::AfterLater(index))?;
                // The context of what is no completion, or of one that failed, is no context: blind.
                it.after = self.completed[at as usize];
            }
        }
        Ok(())
    }

    /// What an invocation and a completion may both say. The completion knows better.
    fn common(&mut self, event: &Event<'_>, it: &mut Op) -> Result<()> {
        if let Some(strict) = event.strict {
            it.flags = it.flags & !flag::STRICT | if strict { flag::STRICT } else { 0 };
        }
        if let Some(durable) = &event.durable {
            it.flags = it.flags & !flag::SYNC | if durable == "sync" { flag::SYNC } else { 0 };
        }
        it.r = event.r.unwrap_or(it.r);
        it.w = event.w.unwrap_or(it.w);
        it.n = event.n.unwrap_or(it.n);
        it.copies = event.copies.unwrap_or(it.copies);
        if let Some(layout) = event.layout {
            it.layout = self.history.layouts.intern(&[layout]);
            it.flags |= flag::LAYOUT;
        }
        if event.ttl.is_some() || event.expires_at.is_some() || event.clock.is_some() || event.node.is_some()
        {
            let node = event.node.as_ref().map(|node| self.history.nodes.intern(node));
            let known = self.history.extras.get(it.extra);
            let extra = Extra {
                ttl: event.ttl.or(known.ttl),
                expires_at: event.expires_at.or(known.expires_at),
                clock: event.clock.or(known.clock),
                node: node.or(known.node),
            };
            it.extra = self.history.extras.set(it.extra, extra);
        }
        if let Some(payload) = &event.value {
            self.payload(payload, it)?;
        }
        Ok(())
    }

    fn payload(&mut self, payload: &Payload<'_>, it: &mut Op) -> Result<()> {
        self.entries.clear();
        match payload {
            Payload::Siblings(siblings) => {
                for sibling in siblings {
                    let id = self.id(&sibling.id)?;
                    let dot = self.dot(sibling.dot.as_ref());
                    self.entries.push(Entry::new(id, dot, sibling.hidden, sibling.dead));
                }
                it.list = self.history.lists.intern(&self.entries);
                it.flags |= flag::SIBLINGS;
            }
            Payload::Value(value) => {
                let members = value.members();
                match (it.f, members) {
                    (F::Cas, Some([old, new])) => {
                        let (old, new) = (self.value(old), self.value(new));
                        (it.value, it.value2) = (old, new);
                    }
                    (F::Get | F::Final | F::Put | F::Delete, Some([])) => {
                        it.list = self.history.lists.intern(&[]);
                        it.flags |= flag::SIBLINGS;
                    }
                    (F::Read, Some(members)) => {
                        for member in members {
                            let element = self.value(member);
                            if element > Entry::ID_MAX {
                                return Err(EventError::TooMany(Entry::ID_MAX, "values"));
                            }
                            self.entries.push(Entry::new(element, NONE, false, false));
                        }
                        it.list = self.history.lists.intern(&self.entries);
                        it.flags |= flag::ELEMENTS;
                        it.value = self.value(value);
                    }
                    _ => it.value = self.value(value),
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, event: &Event<'_>, position: u32, process: u32, op: u32) -> Result<()> {
        let mut it = self.history.ops[op as usize];
        let begun = if it.f == F::Other { self.history.other.name(it.value2) } else { it.f.name() };
        if begun != event.f {
            if matches!(event.process, Process::Named(_)) {
                self.mark(event, position, process);
                return Ok(());
            }
            return Err(EventError::OtherOperation {
                process: self.history.processes.name(process).to_owned(),
                begun: begun.to_owned(),
                completed: event.f.to_string(),
            });
        }
        if let Some(id) = &event.id {
            let id = self.id(id)?;
            if it.id != NONE && it.id != id {
                return Err(EventError::Differs("id"));
            }
        }
        if let Some(key) = &event.key {
            self.text.clear();
            key.write_edn(&mut self.text);
            if self.history.keys.get(&self.text) != Some(it.key) {
                return Err(EventError::Differs("key"));
            }
        }
        it.outcome = match event.kind {
            Kind::Ok => Outcome::Ok,
            Kind::Fail => Outcome::Fail,
            Kind::Info | Kind::Invoke => Outcome::Info,
        };
        if it.outcome == Outcome::Info {
            self.doing[process as usize] = Doing::Gone;
        } else {
            it.complete = position;
            self.doing[process as usize] = Doing::Nothing;
        }
        if it.outcome == Outcome::Ok {
            if let Some(Payload::Value(Value::Nil)) = &event.value
                && matches!(it.f, F::Get | F::Final)
            {
                // Nothing was found: an answer, and of a store of siblings the empty set of them.
                it.list = self.history.lists.intern(&[]);
                it.flags |= flag::SIBLINGS;
            }
            self.common(event, &mut it)?;
            if let Some(saw) = &event.saw {
                self.entries.clear();
                for id in saw {
                    let id = self.id(id)?;
                    self.entries.push(Entry::new(id, NONE, false, false));
                }
                it.saw = self.history.lists.intern(&self.entries);
                it.flags |= flag::SAW;
            }
            if let Some(covers) = &event.covers {
                self.pairs.clear();
                for (actor, counter) in covers {
                    let actor = self.history.actors.intern(actor);
                    self.pairs.push((actor, *counter));
                }
                self.pairs.sort_unstable();
                if self.pairs.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                    return Err(EventError::Field {
                        field: "covers",
                        expected: "a map with each actor once",
                    });
                }
                // Nothing seen of an actor is the same as no word of it.
                self.pairs.retain(|(_, counter)| *counter > 0);
                it.covers = self.history.contexts.intern(&self.pairs);
            }
            self.completed[position as usize] = op;
        }
        if event.dot.is_some() && it.outcome != Outcome::Fail {
            it.dot = self.dot(event.dot.as_ref());
        }
        if let Some(time) = event.time {
            self.history.times[op as usize].1 = time;
            self.any_time = true;
        }
        self.history.ops[op as usize] = it;
        Ok(())
    }
}
