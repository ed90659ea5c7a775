//! The lines of which most histories are made, read in one pass.
//!
//! Takes an object with fields that the checks know, each once and of its usual kind: text without escapes, integers of up to 18
//! digits, siblings. Of anything else it says nothing, and the reader for all of JSON
//! takes the line from its start. So this knows no errors: what is wrong, and where, is said by the other alone.
//!
//! Invariant: what this reads, the other reads as the same event. A property in the reader's tests holds it to that.

use std::borrow::Cow;

use crate::event::{After, Dot, Event, Kind, Payload, Process, Sibling};
use crate::value::Value;

/// The event of a line; `None`: the line must be read by the reader for all of JSON.
pub(super) fn event(text: &str) -> Option<Event<'_>> {
    let mut scan = Scan { text, at: 0 };
    let mut event = Event::new(Kind::Info, 0, "");
    let mut seen = 0_u32;
    scan.take(b'{')?;
    loop {
        let name = scan.text()?;
        scan.take(b':')?;
        let bit = match name {
            "type" => {
                event.kind = Kind::of(scan.text()?)?;
                0
            }
            "process" => {
                event.process = match scan.peek()? {
                    b'"' => Process::Named(scan.name()?),
                    _ => Process::Client(scan.int()?),
                };
                1
            }
            "f" => {
                event.f = scan.name()?;
                2
            }
            "key" => {
                event.key = Some(scan.scalar()?);
                3
            }
            "value" => {
                event.value = Some(scan.payload()?);
                4
            }
            "id" => {
                event.id = Some(scan.name()?);
                5
            }
            "after" => {
                event.after = match scan.peek()? {
                    b'"' => (scan.text()? == "current").then_some(After::Current),
                    _ => scan.natural()?.map(After::Index),
                };
                event.after?;
                6
            }
            "saw" => {
                event.saw = Some(scan.names()?);
                7
            }
            "dot" => {
                event.dot = Some(scan.dot()?);
                8
            }
            "covers" => {
                event.covers = Some(scan.covers()?);
                9
            }
            "clock" => {
                scan.take(b'[')?;
                let lo = scan.int()?;
                scan.take(b',')?;
                let hi = scan.int()?;
                scan.take(b']')?;
                event.clock = (lo <= hi).then_some((lo, hi));
                event.clock?;
                10
            }
            "r" => {
                event.r = scan.small()?;
                11
            }
            "w" => {
                event.w = scan.small()?;
                12
            }
            "n" => {
                event.n = scan.small()?;
                13
            }
            "strict" => {
                event.strict = Some(scan.flag()?);
                14
            }
            "copies" => {
                event.copies = scan.small()?;
                15
            }
            "durable" => {
                event.durable = Some(scan.name()?);
                16
            }
            "layout" => {
                event.layout = scan.natural()?;
                17
            }
            "ttl" => {
                event.ttl = scan.natural()?;
                18
            }
            "node" => {
                event.node = Some(scan.name()?);
                20
            }
            "index" => {
                event.index = scan.natural()?;
                21
            }
            "time" => {
                event.time = Some(scan.int()?);
                22
            }
            _ => return None,
        };
        if seen & 1 << bit != 0 {
            return None;
        }
        seen |= 1 << bit;
        match scan.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    scan.skip();
    // Type, process and f are what every event has.
    (scan.at == text.len() && seen & 0b111 == 0b111).then_some(event)
}

/// A place in a line.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn skip(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.text.as_bytes().get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte that is no blank, without taking it.
    fn peek(&mut self) -> Option<u8> {
        self.skip();
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// A word of JSON's own: `null`, `true`, `false`.
    fn word(&mut self, word: &str) -> bool {
        self.skip();
        let found = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        self.at += if found { word.len() } else { 0 };
        found
    }

    /// A string without escapes.
    fn text(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let start = self.at;
        loop {
            match *self.text.as_bytes().get(self.at)? {
                b'"' => break,
                b'\\' | 0..0x20 => return None,
                _ => self.at += 1,
            }
        }
        let text = self.text.get(start..self.at);
        self.at += 1;
        text
    }

    fn name(&mut self) -> Option<Cow<'a, str>> {
        self.text().map(Cow::Borrowed)
    }

    fn int(&mut self) -> Option<i64> {
        const DIGITS_MAX: usize = 18;
        let negative = self.peek()? == b'-';
        self.at += usize::from(negative);
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut int = 0_i64;
        while let Some(digit @ b'0'..=b'9') = bytes.get(self.at) {
            if self.at - start == DIGITS_MAX {
                return None;
            }
            int = int * 10 + i64::from(digit - b'0');
            self.at += 1;
        }
        // No digit; a zero before others, or a negative one; a fraction or an exponent.
        let digits = self.at - start;
        let odd = digits == 0 || (bytes[start] == b'0' && (digits > 1 || negative));
        if odd || matches!(bytes.get(self.at), Some(b'.' | b'e' | b'E')) {
            return None;
        }
        Some(if negative { -int } else { int })
    }

    /// A natural number, or `null` for none.
    fn natural(&mut self) -> Option<Option<u64>> {
        if self.peek()? == b'n' {
            self.word("null").then_some(None)
        } else {
            Some(Some(u64::try_from(self.int()?).ok()?))
        }
    }

    fn small(&mut self) -> Option<Option<u8>> {
        match self.natural()? {
            Some(natural) => Some(Some(u8::try_from(natural).ok()?)),
            None => Some(None),
        }
    }

    fn flag(&mut self) -> Option<bool> {
        if self.word("true") { Some(true) } else { self.word("false").then_some(false) }
    }

    fn scalar(&mut self) -> Option<Value<'a>> {
        match self.peek()? {
            b'"' => self.name().map(Value::Str),
            b'n' => self.word("null").then_some(Value::Nil),
            _ => self.int().map(Value::Int),
        }
    }

    fn payload(&mut self) -> Option<Payload<'a>> {
        if self.peek()? != b'[' {
            return self.scalar().map(Payload::Value);
        }
        self.at += 1;
        if self.peek()? == b']' {
            self.at += 1;
            return Some(Payload::Value(Value::Vector(Vec::new())));
        }
        let mut siblings = Vec::new();
        loop {
            siblings.push(self.sibling()?);
            match self.next()? {
                b',' => {}
                b']' => return Some(Payload::Siblings(siblings)),
                _ => return None,
            }
        }
    }

    fn sibling(&mut self) -> Option<Sibling<'a>> {
        self.take(b'{')?;
        let (mut sibling, mut has_id) = (Sibling::default(), false);
        loop {
            let name = self.text()?;
            self.take(b':')?;
            // What is given twice is for the other reader to judge, and so is a map without an id.
            match name {
                "id" if !has_id => (sibling.id, has_id) = (self.name()?, true),
                "dot" if sibling.dot.is_none() => sibling.dot = Some(self.dot()?),
                "v" if sibling.value.is_none() => sibling.value = Some(self.scalar()?),
                "hidden" if !sibling.hidden => sibling.hidden = self.flag()?,
                "dead" if !sibling.dead => sibling.dead = self.flag()?,
                _ => return None,
            }
            match self.next()? {
                b',' => {}
                b'}' => return has_id.then_some(sibling),
                _ => return None,
            }
        }
    }

    fn dot(&mut self) -> Option<Dot<'a>> {
        self.take(b'[')?;
        let actor = self.name()?;
        self.take(b',')?;
        let counter = u64::try_from(self.int()?).ok()?;
        self.take(b']')?;
        Some(Dot { actor, counter })
    }

    fn names(&mut self) -> Option<Vec<Cow<'a, str>>> {
        self.take(b'[')?;
        let mut names = Vec::new();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(names);
        }
        loop {
            names.push(self.name()?);
            match self.next()? {
                b',' => {}
                b']' => return Some(names),
                _ => return None,
            }
        }
    }

    fn covers(&mut self) -> Option<Vec<(Cow<'a, str>, u64)>> {
        self.take(b'{')?;
        let mut covers = Vec::new();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(covers);
        }
        loop {
            let actor = self.name()?;
            self.take(b':')?;
            covers.push((actor, u64::try_from(self.int()?).ok()?));
            match self.next()? {
                b',' => {}
                b'}' => return Some(covers),
                _ => return None,
            }
        }
    }
}
