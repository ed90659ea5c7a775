//! From a map of values to an event: which key means what, and of what kind it must be.
//!
//! Used by the EDN reader, and by the JSON reader for whatever it does not read directly.

use std::borrow::Cow;

use crate::event::{After, Dot, Event, EventError, Kind, Payload, Process, Sibling};
use crate::value::Value;

type Result<T> = std::result::Result<T, EventError>;

fn wrong<T>(field: &'static str, expected: &'static str) -> Result<T> {
    Err(EventError::Field { field, expected })
}

fn text<'a>(value: Value<'a>, field: &'static str) -> Result<Cow<'a, str>> {
    match value {
        Value::Str(text) | Value::Keyword(text) | Value::Symbol(text) | Value::Digits(text) => Ok(text),
        Value::Int(int) => Ok(Cow::Owned(int.to_string())),
        _ => wrong(field, "a name"),
    }
}

fn small(value: &Value<'_>, field: &'static str) -> Result<u8> {
    value.int().and_then(|int| u8::try_from(int).ok()).map_or_else(|| wrong(field, "a number below 256"), Ok)
}

fn natural(value: &Value<'_>, field: &'static str) -> Result<u64> {
    value.int().and_then(|int| u64::try_from(int).ok()).map_or_else(|| wrong(field, "a natural number"), Ok)
}

fn int(value: &Value<'_>, field: &'static str) -> Result<i64> {
    value.int().map_or_else(|| wrong(field, "an integer"), Ok)
}

fn flag(value: &Value<'_>, field: &'static str) -> Result<bool> {
    if let Value::Bool(flag) = value { Ok(*flag) } else { wrong(field, "true or false") }
}

fn members<'a>(value: Value<'a>) -> std::result::Result<Vec<Value<'a>>, Value<'a>> {
    match value {
        Value::Vector(members) | Value::List(members) | Value::Set(members) => Ok(members),
        value => Err(value),
    }
}

fn dot<'a>(value: Value<'a>) -> Result<Dot<'a>> {
    let expected = "[actor, counter]";
    match members(value).map(<[Value<'a>; 2]>::try_from) {
        Ok(Ok([actor, counter])) => {
            Ok(Dot { actor: text(actor, "dot")?, counter: natural(&counter, "dot")? })
        }
        _ => wrong("dot", expected),
    }
}

/// A sibling out of the entries of a map that has an `id`.
pub(crate) fn sibling<'a>(entries: Vec<(Value<'a>, Value<'a>)>) -> Result<Sibling<'a>> {
    let mut sibling = Sibling::default();
    let mut has_id = false;
    for (key, value) in entries {
        let name = text(key, "value")?;
        match (&*name, &value) {
            (_, Value::Nil) if name != "v" && name != "id" => {}
            ("id", _) => {
                sibling.id = text(value, "id")?;
                has_id = true;
            }
            ("v", _) => sibling.value = Some(value),
            ("dot", _) => sibling.dot = Some(dot(value)?),
            ("hidden", _) => sibling.hidden = flag(&value, "hidden")?,
            ("dead", _) => sibling.dead = flag(&value, "dead")?,
            _ => sibling.extra.push((name, value)),
        }
    }
    if has_id { Ok(sibling) } else { Err(EventError::Missing("id")) }
}

fn is_sibling(value: &Value<'_>) -> bool {
    let Value::Map(entries) = value else { return false };
    entries.iter().any(|(key, _)| key.name() == Some("id"))
}

/// What a `value` means: siblings if it is a sequence of maps with ids.
fn payload<'a>(value: Value<'a>) -> Result<Payload<'a>> {
    if !value.members().is_some_and(|members| !members.is_empty() && members.iter().all(is_sibling)) {
        return Ok(Payload::Value(value));
    }
    let siblings = members(value).unwrap_or_default().into_iter().map(|member| match member {
        Value::Map(entries) => sibling(entries),
        _ => wrong("value", "siblings"),
    });
    Ok(Payload::Siblings(siblings.collect::<Result<_>>()?))
}

/// Collects the fields of one event.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    event: Event<'a>,
    seen: u32,
}

/// The place of a field in the set of those seen, and its name; `None` if it is none of ours.
fn number(name: &str) -> Option<(u32, &'static str)> {
    Some(match name {
        "type" => (0, "type"),
        "process" => (1, "process"),
        "f" => (2, "f"),
        "key" => (3, "key"),
        "value" => (4, "value"),
        "id" => (5, "id"),
        "after" => (6, "after"),
        "saw" => (7, "saw"),
        "dot" => (8, "dot"),
        "covers" => (9, "covers"),
        "clock" => (10, "clock"),
        "r" => (11, "r"),
        "w" => (12, "w"),
        "n" => (13, "n"),
        "strict" => (14, "strict"),
        "copies" => (15, "copies"),
        "durable" => (16, "durable"),
        "layout" => (17, "layout"),
        "ttl" => (18, "ttl"),
        "expires_at" => (19, "expires_at"),
        "node" => (20, "node"),
        "index" => (21, "index"),
        "time" => (22, "time"),
        _ => return None,
    })
}

impl<'a> Fields<'a> {
    pub(crate) fn new() -> Self {
        Fields { event: Event::new(Kind::Info, 0, ""), seen: 0 }
    }

    fn event(&mut self) -> &mut Event<'a> {
        &mut self.event
    }

    /// Notes that a field was given; false if it is none of ours.
    pub(crate) fn once(&mut self, name: &str) -> Result<bool> {
        let Some((at, field)) = number(name) else { return Ok(false) };
        if self.seen & (1 << at) != 0 {
            return wrong(field, "given once");
        }
        self.seen |= 1 << at;
        Ok(true)
    }

    pub(crate) fn set_kind(&mut self, kind: Kind) {
        self.event.kind = kind;
    }

    pub(crate) fn set_dot(&mut self, dot: Dot<'a>) {
        self.event.dot = Some(dot);
    }

    pub(crate) fn set_saw(&mut self, saw: Vec<Cow<'a, str>>) {
        self.event.saw = Some(saw);
    }

    pub(crate) fn set_f(&mut self, f: Cow<'a, str>) {
        self.event.f = f;
    }

    pub(crate) fn set_value(&mut self, value: Payload<'a>) {
        self.event().value = Some(value);
    }

    pub(crate) fn set_id(&mut self, id: Cow<'a, str>) {
        self.event().id = Some(id);
    }

    pub(crate) fn set_covers(&mut self, covers: Vec<(Cow<'a, str>, u64)>) {
        self.event().covers = Some(covers);
    }

    /// Takes a field that [`Fields::once`] knows, or any other.
    pub(crate) fn set(&mut self, name: Cow<'a, str>, value: Value<'a>) -> Result<()> {
        if matches!(value, Value::Nil) && !matches!(&*name, "value" | "type" | "process" | "f" | "key") {
            // `"ttl": null` says that there is none. Of keys that are not ours, even that is kept.
            if number(&name).is_none() {
                self.event().extra.push((name, value));
            }
            return Ok(());
        }
        match &*name {
            "type" => match value.name().and_then(Kind::of) {
                Some(kind) => self.event.kind = kind,
                None => return wrong("type", "invoke, ok, fail or info"),
            },
            "process" => {
                self.event.process = match value {
                    Value::Int(client) => Process::Client(client),
                    Value::Str(name) | Value::Keyword(name) | Value::Symbol(name) => Process::Named(name),
                    _ => return wrong("process", "an integer or a name"),
                };
            }
            "f" => match value {
                Value::Str(f) | Value::Keyword(f) | Value::Symbol(f) => self.event.f = f,
                _ => return wrong("f", "a name"),
            },
            "key" => self.event().key = Some(value),
            "value" => self.event().value = Some(payload(value)?),
            "id" => self.event().id = Some(text(value, "id")?),
            "after" => {
                self.event().after = Some(match &value {
                    Value::Int(at) if *at >= 0 => After::Index(at.unsigned_abs()),
                    value if value.name() == Some("current") => After::Current,
                    _ => return wrong("after", "an index or \"current\""),
                });
            }
            "saw" => match members(value) {
                Ok(ids) => {
                    let ids = ids.into_iter().map(|id| text(id, "saw")).collect::<Result<_>>()?;
                    self.event().saw = Some(ids);
                }
                Err(_) => return wrong("saw", "a sequence of ids"),
            },
            "dot" => self.event().dot = Some(dot(value)?),
            "covers" => match value {
                Value::Map(entries) => {
                    let mut covers = Vec::with_capacity(entries.len());
                    for (actor, counter) in entries {
                        covers.push((text(actor, "covers")?, natural(&counter, "covers")?));
                    }
                    self.event().covers = Some(covers);
                }
                _ => return wrong("covers", "a map from actors to counters"),
            },
            "clock" => match value.members() {
                Some([Value::Int(lo), Value::Int(hi)]) if lo <= hi => self.event().clock = Some((*lo, *hi)),
                _ => return wrong("clock", "[lo, hi]"),
            },
            "r" => self.event().r = Some(small(&value, "r")?),
            "w" => self.event().w = Some(small(&value, "w")?),
            "n" => self.event().n = Some(small(&value, "n")?),
            "strict" => self.event().strict = Some(flag(&value, "strict")?),
            "copies" => self.event().copies = Some(small(&value, "copies")?),
            "durable" => self.event().durable = Some(text(value, "durable")?),
            "layout" => self.event().layout = Some(natural(&value, "layout")?),
            "ttl" => self.event().ttl = Some(natural(&value, "ttl")?),
            "expires_at" => self.event().expires_at = Some(int(&value, "expires_at")?),
            "node" => self.event().node = Some(text(value, "node")?),
            "index" => self.event().index = Some(natural(&value, "index")?),
            "time" => self.event().time = Some(int(&value, "time")?),
            _ => self.event().extra.push((name, value)),
        }
        Ok(())
    }

    /// The event, if nothing is missing.
    pub(crate) fn finish(self) -> Result<Event<'a>> {
        for (at, field) in ["type", "process", "f"].into_iter().enumerate() {
            if self.seen & (1 << at) == 0 {
                return Err(EventError::Missing(field));
            }
        }
        Ok(self.event)
    }
}

/// The event of a map.
pub(crate) fn event<'a>(entries: Vec<(Value<'a>, Value<'a>)>) -> Result<Event<'a>> {
    let mut fields = Fields::new();
    for (key, value) in entries {
        let name = match key {
            Value::Str(name) | Value::Keyword(name) | Value::Symbol(name) => name,
            _ => return wrong("event", "a map whose keys are names"),
        };
        // Jepsen's EDN writes dashes where JSON has underscores.
        let name = if name == "expires-at" { Cow::Borrowed("expires_at") } else { name };
        fields.once(&name)?;
        fields.set(name, value)?;
    }
    fields.finish()
}
