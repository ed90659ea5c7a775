//! The objects: states as numbers, and what an operation makes of one.

use hashbrown::HashTable;
use rustc_hash::FxHasher;
use std::hash::Hasher;

use crate::history::{History, NONE, number};
use crate::linearizability::Model;

/// What an operation does. States stand for values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Returned this; changes nothing.
    Read(u32),
    /// Sets this.
    Write(u32),
    /// Found the first, sets the second.
    Cas(u32, u32),
    /// Appends this value (of the history's).
    Append(u32),
}

/// One operation of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) op: u32,
    pub(crate) invoke: u32,
    /// [`NONE`]: it may happen at any time after its invocation, or never.
    pub(crate) complete: u32,
    pub(crate) step: Step,
}

/// Gives values their states and steps from one to the next.
pub(crate) struct Machine<'h> {
    history: &'h History,
    model: Model,
    /// Of strings: contents by state. Registers have the value's number as their state.
    contents: Vec<Box<str>>,
    by_content: HashTable<u32>,
    /// (state, appended value) → state.
    appended: HashTable<(u32, u32, u32)>,
    bytes: usize,
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

fn hash_pair(state: u32, value: u32) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write_u64(u64::from(state) << 32 | u64::from(value));
    hasher.finish()
}

/// A value's text without the quotes of a string: what is appended. Escapes stay, which changes no comparison.
fn content(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

impl<'h> Machine<'h> {
    pub(crate) fn new(history: &'h History, model: Model) -> Self {
        let mut machine = Machine {
            history,
            model,
            contents: Vec::new(),
            by_content: HashTable::new(),
            appended: HashTable::new(),
            bytes: 0,
        };
        if model == Model::KvAppend {
            machine.intern(String::new());
        }
        machine
    }

    fn intern(&mut self, content: String) -> u32 {
        let hashed = hash(content.as_bytes());
        let Machine { contents, by_content, .. } = self;
        if let Some(known) = by_content.find(hashed, |at| *contents[*at as usize] == *content) {
            return *known;
        }
        let new = number(contents.len());
        self.bytes += content.len() + 32;
        contents.push(content.into());
        by_content.insert_unique(hashed, new, |at| hash(contents[*at as usize].as_bytes()));
        new
    }

    /// The state before anything was written.
    pub(crate) fn initial(&self) -> u32 {
        match self.model {
            Model::KvAppend => 0,
            _ => self.history.values.get("nil").unwrap_or(NONE),
        }
    }

    /// Bytes of what was seen so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The state in which a read returns this value.
    pub(crate) fn state_of(&mut self, value: u32) -> u32 {
        if self.model != Model::KvAppend {
            return value;
        }
        let text = self.history.values.name(value);
        self.intern(if text == "nil" { String::new() } else { content(text).to_owned() })
    }

    /// The state after a step, if it can be made.
    pub(crate) fn step(&mut self, state: u32, step: Step) -> Option<u32> {
        match step {
            Step::Read(returned) => (returned == state).then_some(state),
            Step::Write(new) => Some(new),
            Step::Cas(old, new) => (old == state).then_some(new),
            Step::Append(value) => Some(self.append(state, value)),
        }
    }

    fn append(&mut self, state: u32, value: u32) -> u32 {
        let hashed = hash_pair(state, value);
        if let Some(known) = self.appended.find(hashed, |known| (known.0, known.1) == (state, value)) {
            return known.2;
        }
        let tail = content(self.history.values.name(value));
        let before = &self.contents[state as usize];
        let mut content = String::with_capacity(before.len() + tail.len());
        content.push_str(before);
        content.push_str(tail);
        let after = self.intern(content);
        self.appended.insert_unique(hashed, (state, value, after), |known| hash_pair(known.0, known.1));
        self.bytes += 16;
        after
    }

    /// Whether appending to a state gives a beginning of another.
    pub(crate) fn leads_to(&self, state: u32, value: u32, later: u32) -> bool {
        let tail = content(self.history.values.name(value));
        let rest = self.contents[later as usize].strip_prefix(&*self.contents[state as usize]);
        rest.is_some_and(|rest| rest.starts_with(tail))
    }

    /// A state in words.
    pub(crate) fn show(&self, state: u32) -> String {
        let text = match self.model {
            Model::KvAppend => format!("\"{}\"", self.contents[state as usize]),
            _ if state == NONE => "nil".to_owned(),
            _ => self.history.values.name(state).to_owned(),
        };
        if text.chars().count() <= 60 {
            return text;
        }
        let end: String = text.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
        format!("…{end}")
    }
}
