//! JSON lines: one event is one object on a line of its own. Empty lines are skipped.
//!
//! Lines of the usual form are read in one pass (`plain`). All others, and all that are wrong, are read by serde:
//! names, siblings, covers without a value in between, and text without an escape is not copied; the rest goes
//! through [`Value`]. Numbers must fit 64 bits; NaN is no JSON.

mod plain;

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, Write};
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json, json};

use crate::event::{After, Dot, Event, InputError, InputErrorKind, Kind, Payload, Process, Sibling};
use crate::formats::fields::{self, Fields};
use crate::formats::lines::Lines;
use crate::formats::{DEPTH_MAX, Place, Source};
use crate::value::Value;

/// Reads events from JSON lines.
pub struct Reader<R> {
    lines: Lines<R>,
}

impl<R: BufRead> Reader<R> {
    /// A reader of `input`.
    pub fn new(input: R) -> Self {
        Reader { lines: Lines::new(input) }
    }
}

impl<R: BufRead> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<(Place, Event<'_>)>, InputError> {
        loop {
            if !self.lines.advance()? {
                return Ok(None);
            }
            if !self.lines.is_blank() {
                break;
            }
        }
        let lines = &self.lines;
        let text = lines.text()?;
        let place = Place { line: lines.number, column: 1 };
        if let Some(event) = plain::event(text) {
            debug_assert_eq!(any(text).ok().as_ref(), Some(&event), "two readings of one line: {text}");
            return Ok(Some((place, event)));
        }
        match any(text) {
            Ok(event) => Ok(Some((place, event))),
            Err(error) => {
                let said = error.to_string();
                // The place is ours to say: the parser knows only this line.
                let said = said.rsplit_once(" at line ").map_or(&*said, |(what, _)| what).to_owned();
                Err(lines.error(error.column().max(1), InputErrorKind::Syntax(said)))
            }
        }
    }
}

/// The event of a line, whatever its form.
fn any(text: &str) -> serde_json::Result<Event<'_>> {
    let mut json = serde_json::Deserializer::from_str(text);
    EventSeed.deserialize(&mut json).and_then(|event| json.end().map(|()| event))
}

/// Text that is borrowed if it can be.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_i64<E>(self, int: i64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(int.to_string()))
    }

    fn visit_u64<E>(self, int: u64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(int.to_string()))
    }
}

/// Any value, `.0` brackets deep already.
struct ValueSeed(usize);

impl ValueSeed {
    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.0 < DEPTH_MAX {
            Ok(self.0 + 1)
        } else {
            Err(E::custom(format!("nested more than {DEPTH_MAX} deep")))
        }
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Self::Value, E> {
        Ok(Value::Bool(bool))
    }

    fn visit_i64<E>(self, int: i64) -> Result<Self::Value, E> {
        Ok(Value::Int(int))
    }

    fn visit_u64<E>(self, int: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(int).map_or_else(|_| Value::Digits(Cow::Owned(int.to_string())), Value::Int))
    }

    fn visit_f64<E: serde::de::Error>(self, float: f64) -> Result<Self::Value, E> {
        if float.is_finite() {
            Ok(Value::Float(float))
        } else {
            Err(E::custom("a number that is not finite"))
        }
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Str(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Str(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let depth = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(ValueSeed(depth))? {
            values.push(value);
        }
        Ok(Value::Vector(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let depth = self.deeper()?;
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(Text)? {
            entries.push((Value::Str(key), map.next_value_seed(ValueSeed(depth))?));
        }
        Ok(Value::Map(entries))
    }
}

/// A sequence of which each element is read by a seed.
struct SeqOf<S>(fn() -> S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for SeqOf<S> {
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for SeqOf<S> {
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed((self.0)())? {
            values.push(value);
        }
        Ok(values)
    }
}

struct DotSeed;

impl<'de> DeserializeSeed<'de> for DotSeed {
    type Value = Option<Dot<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DotSeed {
    type Value = Option<Dot<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a dot [actor, counter]")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let missing = |at| A::Error::invalid_length(at, &"[actor, counter]");
        let actor = seq.next_element_seed(Text)?.ok_or_else(|| missing(0))?;
        let counter = seq.next_element_seed(PhantomData::<u64>)?.ok_or_else(|| missing(1))?;
        if seq.next_element_seed(ValueSeed(0))?.is_some() {
            return Err(missing(3));
        }
        Ok(Some(Dot { actor, counter }))
    }
}

struct CoversSeed;

impl<'de> DeserializeSeed<'de> for CoversSeed {
    type Value = Option<Vec<(Cow<'de, str>, u64)>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CoversSeed {
    type Value = Option<Vec<(Cow<'de, str>, u64)>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("covers: an object from actors to counters")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut covers = Vec::new();
        while let Some(actor) = map.next_key_seed(Text)? {
            covers.push((actor, map.next_value_seed(PhantomData::<u64>)?));
        }
        Ok(Some(covers))
    }
}

/// One element of a `value`: a sibling, or anything.
enum Element<'de> {
    Sibling(Sibling<'de>),
    Value(Value<'de>),
}

struct ElementSeed;

impl<'de> DeserializeSeed<'de> for ElementSeed {
    type Value = Element<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Element::Value(Value::Nil))
            }
            fn visit_bool<E>(self, bool: bool) -> Result<Self::Value, E> {
                Ok(Element::Value(Value::Bool(bool)))
            }
            fn visit_i64<E: serde::de::Error>(self, int: i64) -> Result<Self::Value, E> {
                ValueSeed(1).visit_i64(int).map(Element::Value)
            }
            fn visit_u64<E: serde::de::Error>(self, int: u64) -> Result<Self::Value, E> {
                ValueSeed(1).visit_u64(int).map(Element::Value)
            }
            fn visit_f64<E: serde::de::Error>(self, float: f64) -> Result<Self::Value, E> {
                ValueSeed(1).visit_f64(float).map(Element::Value)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Element::Value(Value::Str(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Element::Value(Value::Str(Cow::Owned(text.to_owned()))))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                ValueSeed(1).visit_seq(seq).map(Element::Value)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries: Vec<(Value<'de>, Value<'de>)> = Vec::new();
                while let Some(key) = map.next_key_seed(Text)? {
                    if key != "id" {
                        entries.push((Value::Str(key), map.next_value_seed(ValueSeed(2))?));
                        continue;
                    }
                    if !entries.is_empty() {
                        entries.push((Value::Str(key), map.next_value_seed(ValueSeed(2))?));
                        continue;
                    }
                    // The id comes first, as many writers have it: read the rest without values in between.
                    return sibling(map).map(Element::Sibling);
                }
                if entries.iter().any(|(key, _)| key.name() == Some("id")) {
                    return fields::sibling(entries).map(Element::Sibling).map_err(A::Error::custom);
                }
                Ok(Element::Value(Value::Map(entries)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn sibling<'de, A: MapAccess<'de>>(mut map: A) -> Result<Sibling<'de>, A::Error> {
    let mut sibling = Sibling { id: map.next_value_seed(Text)?, ..Sibling::default() };
    while let Some(key) = map.next_key_seed(Text)? {
        match &*key {
            "dot" => sibling.dot = map.next_value_seed(DotSeed)?,
            "hidden" => sibling.hidden = map.next_value_seed(PhantomData::<bool>)?,
            "dead" => sibling.dead = map.next_value_seed(PhantomData::<bool>)?,
            "v" => sibling.value = Some(map.next_value_seed(ValueSeed(2))?),
            "id" => return Err(A::Error::custom("`id` must be given once")),
            _ => sibling.extra.push((key, map.next_value_seed(ValueSeed(2))?)),
        }
    }
    Ok(sibling)
}

struct PayloadSeed;

impl<'de> DeserializeSeed<'de> for PayloadSeed {
    type Value = Payload<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Payload<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Payload::Value(Value::Nil))
            }
            fn visit_bool<E>(self, bool: bool) -> Result<Self::Value, E> {
                Ok(Payload::Value(Value::Bool(bool)))
            }
            fn visit_i64<E: serde::de::Error>(self, int: i64) -> Result<Self::Value, E> {
                ValueSeed(0).visit_i64(int).map(Payload::Value)
            }
            fn visit_u64<E: serde::de::Error>(self, int: u64) -> Result<Self::Value, E> {
                ValueSeed(0).visit_u64(int).map(Payload::Value)
            }
            fn visit_f64<E: serde::de::Error>(self, float: f64) -> Result<Self::Value, E> {
                ValueSeed(0).visit_f64(float).map(Payload::Value)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Payload::Value(Value::Str(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Payload::Value(Value::Str(Cow::Owned(text.to_owned()))))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                ValueSeed(0).visit_map(map).map(Payload::Value)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let (mut siblings, mut values) = (Vec::new(), Vec::new());
                while let Some(element) = seq.next_element_seed(ElementSeed)? {
                    match element {
                        Element::Sibling(sibling) => siblings.push(sibling),
                        Element::Value(value) => values.push(value),
                    }
                    if !siblings.is_empty() && !values.is_empty() {
                        return Err(A::Error::custom("siblings and other values in one sequence"));
                    }
                }
                if siblings.is_empty() {
                    Ok(Payload::Value(Value::Vector(values)))
                } else {
                    Ok(Payload::Siblings(siblings))
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

struct EventSeed;

impl<'de> DeserializeSeed<'de> for EventSeed {
    type Value = Event<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EventSeed {
    type Value = Event<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event: an object with type, process and f")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::new();
        while let Some(name) = map.next_key_seed(Text)? {
            fields.once(&name).map_err(A::Error::custom)?;
            match &*name {
                "type" => {
                    let kind = map.next_value_seed(Text)?;
                    let unknown = || A::Error::custom("`type` must be invoke, ok, fail or info");
                    fields.set_kind(Kind::of(&kind).ok_or_else(unknown)?);
                }
                "f" => fields.set_f(map.next_value_seed(Text)?),
                "id" => fields.set_id(map.next_value_seed(Text)?),
                "value" => fields.set_value(map.next_value_seed(PayloadSeed)?),
                "saw" => fields.set_saw(map.next_value_seed(SeqOf(|| Text))?),
                "dot" => {
                    if let Some(dot) = map.next_value_seed(DotSeed)? {
                        fields.set_dot(dot);
                    }
                }
                "covers" => {
                    if let Some(covers) = map.next_value_seed(CoversSeed)? {
                        fields.set_covers(covers);
                    }
                }
                _ => {
                    let value = map.next_value_seed(ValueSeed(1))?;
                    fields.set(name, value).map_err(A::Error::custom)?;
                }
            }
        }
        fields.finish().map_err(A::Error::custom)
    }
}

/// Writes one event as a line. What EDN alone can say becomes the nearest that JSON has ([`Value::to_json`]).
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, event: &Event<'_>) -> std::io::Result<()> {
    let mut map = Map::new();
    let mut put = |name: &str, value: Json| {
        map.insert(name.to_owned(), value);
    };
    put("type", json!(event.kind.name()));
    put(
        "process",
        match &event.process {
            Process::Client(client) => json!(client),
            Process::Named(name) => json!(name),
        },
    );
    put("f", json!(event.f));
    if let Some(key) = &event.key {
        put("key", key.to_json());
    }
    match &event.value {
        Some(Payload::Value(value)) => put("value", value.to_json()),
        Some(Payload::Siblings(siblings)) => put("value", siblings.iter().map(sibling_json).collect()),
        None => {}
    }
    if let Some(id) = &event.id {
        put("id", json!(id));
    }
    match event.after {
        Some(After::Index(index)) => put("after", json!(index)),
        Some(After::Current) => put("after", json!("current")),
        None => {}
    }
    if let Some(saw) = &event.saw {
        put("saw", json!(saw));
    }
    if let Some(dot) = &event.dot {
        put("dot", json!([dot.actor, dot.counter]));
    }
    if let Some(covers) = &event.covers {
        put("covers", Json::Object(covers.iter().map(|(actor, n)| (actor.to_string(), json!(n))).collect()));
    }
    if let Some((lo, hi)) = event.clock {
        put("clock", json!([lo, hi]));
    }
    let numbers = [
        ("r", event.r.map(i64::from)),
        ("w", event.w.map(i64::from)),
        ("n", event.n.map(i64::from)),
        ("copies", event.copies.map(i64::from)),
        ("expires_at", event.expires_at),
        ("time", event.time),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            put(name, json!(number));
        }
    }
    for (name, number) in [("layout", event.layout), ("ttl", event.ttl), ("index", event.index)] {
        if let Some(number) = number {
            put(name, json!(number));
        }
    }
    if let Some(strict) = event.strict {
        put("strict", json!(strict));
    }
    for (name, text) in [("durable", &event.durable), ("node", &event.node)] {
        if let Some(text) = text {
            put(name, json!(text));
        }
    }
    for (name, value) in &event.extra {
        put(name, value.to_json());
    }
    serde_json::to_writer(&mut *out, &map)?;
    out.write_all(b"\n")
}

fn sibling_json(sibling: &Sibling<'_>) -> Json {
    let mut map = Map::new();
    map.insert("id".to_owned(), json!(sibling.id));
    if let Some(value) = &sibling.value {
        map.insert("v".to_owned(), value.to_json());
    }
    if let Some(dot) = &sibling.dot {
        map.insert("dot".to_owned(), json!([dot.actor, dot.counter]));
    }
    for (name, flag) in [("hidden", sibling.hidden), ("dead", sibling.dead)] {
        if flag {
            map.insert(name.to_owned(), json!(true));
        }
    }
    for (name, value) in &sibling.extra {
        map.insert(name.to_string(), value.to_json());
    }
    Json::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_lines_are_read_in_one_pass() {
        let mut event = Event::new(Kind::Ok, 3, "get");
        event.key = Some(Value::Str("k".into()));
        let dot = || Some(Dot { actor: "a".into(), counter: 6 });
        event.value = Some(Payload::Siblings(vec![
            Sibling { id: "w9".into(), value: Some(Value::Int(1)), dot: dot(), ..Sibling::default() },
            Sibling { id: "w7".into(), dead: true, hidden: true, ..Sibling::default() },
        ]));
        event.covers = Some(vec![("a".into(), 6)]);
        event.clock = Some((1, 2));
        event.saw = Some(vec!["w1".into()]);
        (event.id, event.dot, event.after) = (Some("w10".into()), dot(), Some(After::Index(4)));
        (event.index, event.time, event.ttl) = (Some(12), Some(-3), Some(10));
        let mut line = Vec::new();
        write(&mut line, &event).expect("memory");
        let line = String::from_utf8(line).expect("text");
        assert_eq!(plain::event(line.trim_end()), Some(event));
    }

    #[test]
    fn what_only_the_whole_of_json_says_is_left_to_its_reader() {
        let line = |rest: &str| format!("{{\"type\":\"ok\",\"process\":1,\"f\":\"get\"{rest}}}");
        assert!(plain::event(&line("")).is_some());
        for rest in [
            ",\"key\":\"\\u0041\"",
            ",\"key\":1.5",
            ",\"key\":1e3",
            ",\"key\":01",
            ",\"key\":-0",
            ",\"key\":[1]",
            ",\"index\":1234567890123456789",
            ",\"index\":-1",
            ",\"r\":256",
            ",\"r\":1,\"r\":1",
            ",\"other\":1",
            ",\"clock\":[2,1]",
            ",\"value\":[{\"v\":1}]",
            ",\"value\":[{\"id\":\"a\",\"id\":\"b\"}]",
            ",",
            " x",
            ",\"node\":\"a\u{1}\"",
            ",\"f\":\"get\"",
        ] {
            assert_eq!(plain::event(&line(rest)), None, "{rest}");
        }
        assert_eq!(plain::event("{\"type\":\"ok\",\"process\":1}"), None, "f is missing");
    }
}
