//! EDN: the text form of Clojure's data, in which Jepsen stores histories.
//!
//! Events are maps: one a line, or all of them in one vector or list; comments (`;`, `#_ form`), tagged values and
//! keys that we do not know are read, and the last two kept. A record's tag before a map (`#jepsen.history.Op{…}`)
//! says nothing more. The crates for EDN that we found read a whole string at once and do not bound nesting, so
//! this reader is our own: it takes an event at a time from a stream and parses that with a bounded stack.
//!
//! Two steps: [`Reader`] cuts the stream into the texts of single forms, minding strings, characters and comments
//! only; `Parser` makes a value of such a text.

use std::borrow::Cow;
use std::io::{BufRead, Write};

use crate::event::{After, Event, InputError, InputErrorKind, Payload, Process, Sibling};
use crate::formats::{DEPTH_MAX, EVENT_BYTES_MAX, Place, Source, fields};
use crate::value::{Value, write_string};

/// Reads events from EDN.
pub struct Reader<R> {
    input: R,
    line: u64,
    column: u64,
    form: Vec<u8>,
    /// The bracket that ends the sequence around the events, once its beginning has been read.
    closes: Option<u8>,
    /// The outer sequence has ended.
    ended: bool,
}

/// Where the cutting stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Comment,
    String,
    /// Behind a backslash in a string.
    Escape,
    /// Behind a backslash elsewhere: the next byte is a character's.
    Character,
}

fn blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b','
}

impl<R: BufRead> Reader<R> {
    /// A reader of `input`.
    pub fn new(input: R) -> Self {
        Reader { input, line: 1, column: 1, form: Vec::new(), closes: None, ended: false }
    }

    fn error(&self, kind: InputErrorKind) -> InputError {
        InputError { line: self.line, column: self.column, kind }
    }

    fn syntax(&self, what: &str) -> InputError {
        self.error(InputErrorKind::Syntax(what.to_owned()))
    }

    fn peek(&mut self) -> Result<Option<u8>, InputError> {
        loop {
            match self.input.fill_buf() {
                Ok(bytes) => return Ok(bytes.first().copied()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let (line, column) = (self.line, self.column);
                    return Err(InputError { line, column, kind: error.into() });
                }
            }
        }
    }

    fn bump(&mut self, byte: u8) {
        self.input.consume(1);
        if byte == b'\n' {
            (self.line, self.column) = (self.line + 1, 1);
        } else {
            self.column += 1;
        }
    }

    /// Skips what separates forms.
    fn skip(&mut self) -> Result<Option<u8>, InputError> {
        let mut comment = false;
        while let Some(byte) = self.peek()? {
            match byte {
                b'\n' => comment = false,
                _ if comment || blank(byte) => {}
                b';' => comment = true,
                byte => return Ok(Some(byte)),
            }
            self.bump(byte);
        }
        Ok(None)
    }

    /// Cuts the next form out of the stream into `form`, up to the bracket that closes it: a map, with the tag and
    /// the discarded forms before it.
    fn cut(&mut self) -> Result<(), InputError> {
        self.form.clear();
        let (mut state, mut depth) = (State::Plain, 0_usize);
        // Whether the open brackets belong to a form that `#_` discards, and so do not end the event.
        let (mut discarded, mut hash) = (false, false);
        loop {
            let Some(byte) = self.peek()? else { return Err(self.syntax("the input ends inside of a form")) };
            if depth == 0 && state == State::Plain && matches!(byte, b')' | b']' | b'}') {
                return Err(self.syntax("a closing bracket without an opening one"));
            }
            if self.form.len() == EVENT_BYTES_MAX {
                return Err(self.error(InputErrorKind::TooLong { limit: EVENT_BYTES_MAX }));
            }
            self.bump(byte);
            self.form.push(byte);
            let was = std::mem::replace(&mut state, State::Plain);
            state = match (was, byte) {
                (State::Comment, b'\n') => State::Plain,
                (State::Comment, _) => State::Comment,
                (State::String, b'\\') => State::Escape,
                (State::String, b'"') => State::Plain,
                (State::String | State::Escape, _) => State::String,
                (State::Character, _) => State::Plain,
                (State::Plain, b';') => State::Comment,
                (State::Plain, b'"') => State::String,
                (State::Plain, b'\\') => State::Character,
                (State::Plain, _) => State::Plain,
            };
            // The byte behind a backslash, or that ends a string or comment, opens and closes nothing.
            if was != State::Plain || state != State::Plain {
                hash = false;
                continue;
            }
            match byte {
                b'{' | b'[' | b'(' => {
                    depth += 1;
                    // The parser would find out too, after all has been read.
                    if depth > DEPTH_MAX {
                        return Err(self.error(InputErrorKind::TooDeep { limit: DEPTH_MAX }));
                    }
                }
                b'}' | b']' | b')' => {
                    depth -= 1;
                    if depth == 0 && !discarded {
                        return Ok(());
                    }
                    discarded = discarded && depth > 0;
                }
                b'_' if hash && depth == 0 => discarded = true,
                _ => {}
            }
            hash = byte == b'#';
        }
    }
}

impl<R: BufRead> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<(Place, Event<'_>)>, InputError> {
        loop {
            let Some(byte) = self.skip()? else {
                return if self.closes.is_some() && !self.ended {
                    Err(self.syntax("the input ends inside of the sequence of events"))
                } else {
                    Ok(None)
                };
            };
            if self.ended {
                return Err(self.syntax("something behind the sequence of events"));
            }
            match (byte, self.closes) {
                (b'[' | b'(', None) => {
                    self.closes = Some(if byte == b'[' { b']' } else { b')' });
                    self.bump(byte);
                }
                (b']' | b')', Some(closes)) if byte == closes => {
                    self.ended = true;
                    self.bump(byte);
                }
                _ => break,
            }
        }
        let place = Place { line: self.line, column: self.column };
        self.cut()?;
        let at = |column_in_form: usize, kind: InputErrorKind| {
            let before = &self.form[..column_in_form.saturating_sub(1).min(self.form.len())];
            let lines = before.iter().filter(|byte| **byte == b'\n').count() as u64;
            let tail = before.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
            let column = if lines == 0 { place.column + tail } else { tail + 1 };
            InputError { line: place.line + lines, column, kind }
        };
        let text = std::str::from_utf8(&self.form)
            .map_err(|error| at(error.valid_up_to() + 1, InputErrorKind::Syntax("not UTF-8".to_owned())))?;
        let mut value = one(text).map_err(|(column, kind)| at(column, kind))?;
        while let Value::Tagged(_, inner) = value {
            value = *inner;
        }
        let Value::Map(entries) = value else {
            return Err(at(1, InputErrorKind::Syntax("expected an event: a map".to_owned())));
        };
        let event = fields::event(entries).map_err(|error| at(1, error.into()))?;
        Ok(Some((place, event)))
    }
}

/// The value of a text that holds exactly one form. An error says at which byte, from 1.
pub(crate) fn one(text: &str) -> Result<Value<'_>, (usize, InputErrorKind)> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.skip(0)?;
    if parser.at < text.len() {
        return Err(parser.syntax("something behind the value"));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

type Parsed<T> = Result<T, (usize, InputErrorKind)>;

/// The value that closes a sequence.
enum Item<'a> {
    Value(Value<'a>),
    Close,
}

impl<'a> Parser<'a> {
    fn syntax(&self, what: &str) -> (usize, InputErrorKind) {
        (self.at + 1, InputErrorKind::Syntax(what.to_owned()))
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skips blanks, comments and discarded forms.
    fn skip(&mut self, depth: usize) -> Parsed<()> {
        while let Some(byte) = self.byte() {
            if blank(byte) {
                self.at += 1;
            } else if byte == b';' {
                self.at = self.text[self.at..].find('\n').map_or(self.text.len(), |end| self.at + end);
            } else if self.text[self.at..].starts_with("#_") {
                self.at += 2;
                self.deeper(depth)?;
                self.value(depth + 1)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn deeper(&self, depth: usize) -> Parsed<()> {
        if depth < DEPTH_MAX {
            Ok(())
        } else {
            Err((self.at + 1, InputErrorKind::TooDeep { limit: DEPTH_MAX }))
        }
    }

    fn item(&mut self, depth: usize, close: u8) -> Parsed<Item<'a>> {
        self.skip(depth)?;
        match self.byte() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(Item::Close)
            }
            _ => self.value(depth).map(Item::Value),
        }
    }

    fn sequence(&mut self, depth: usize, close: u8) -> Parsed<Vec<Value<'a>>> {
        self.deeper(depth)?;
        let mut values = Vec::new();
        while let Item::Value(value) = self.item(depth + 1, close)? {
            values.push(value);
        }
        Ok(values)
    }

    fn value(&mut self, depth: usize) -> Parsed<Value<'a>> {
        self.skip(depth)?;
        let Some(byte) = self.byte() else {
            return Err(self.syntax("the input ends where a value should be"));
        };
        match byte {
            b'[' | b'(' | b'{' => {
                self.at += 1;
                match byte {
                    b'[' => self.sequence(depth, b']').map(Value::Vector),
                    b'(' => self.sequence(depth, b')').map(Value::List),
                    _ => self.map(depth),
                }
            }
            b']' | b')' | b'}' => Err(self.syntax("a closing bracket where a value should be")),
            b'"' => self.string().map(Value::Str),
            b'\\' => self.character().map(Value::Char),
            b'#' => self.dispatch(depth),
            b':' => {
                self.at += 1;
                let word = self.word();
                if word.is_empty() {
                    Err(self.syntax("a keyword without a name"))
                } else {
                    Ok(Value::Keyword(Cow::Borrowed(word)))
                }
            }
            _ => self.atom(),
        }
    }

    fn map(&mut self, depth: usize) -> Parsed<Value<'a>> {
        let members = self.sequence(depth, b'}')?;
        if members.len() % 2 == 1 {
            return Err(self.syntax("a map with a key that has no value"));
        }
        let mut members = members.into_iter();
        let mut entries = Vec::with_capacity(members.len() / 2);
        while let (Some(key), Some(value)) = (members.next(), members.next()) {
            entries.push((key, value));
        }
        Ok(Value::Map(entries))
    }

    fn dispatch(&mut self, depth: usize) -> Parsed<Value<'a>> {
        self.at += 1;
        match self.byte() {
            Some(b'{') => {
                self.at += 1;
                self.sequence(depth, b'}').map(Value::Set)
            }
            // Jepsen's nemesis prints a set of nodes like this; it is no EDN, yet it means a sequence.
            Some(b'[') => {
                self.at += 1;
                self.sequence(depth, b']').map(Value::Set)
            }
            Some(b'#') => Err(self.syntax("NaN and infinities cannot be judged")),
            _ => {
                let tag = self.word();
                if tag.is_empty() {
                    return Err(self.syntax("a # without a tag"));
                }
                self.deeper(depth)?;
                Ok(Value::Tagged(Cow::Borrowed(tag), Box::new(self.value(depth + 1)?)))
            }
        }
    }

    /// The text up to what ends a symbol.
    fn word(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let ends =
            |byte: u8| blank(byte) || matches!(byte, b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'"' | b';');
        let length = rest.bytes().position(ends).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn atom(&mut self) -> Parsed<Value<'a>> {
        let at = self.at;
        let word = self.word();
        match word {
            "nil" => return Ok(Value::Nil),
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            _ => {}
        }
        let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
        if !digits.starts_with(|char: char| char.is_ascii_digit()) {
            return Ok(Value::Symbol(Cow::Borrowed(word)));
        }
        let wrong = |parser: &Self| {
            let mut error = parser.syntax("not a number");
            error.0 = at + 1;
            error
        };
        if let Ok(int) = word.parse::<i64>() {
            return Ok(Value::Int(int));
        }
        let plain = word.strip_suffix(['N', 'M']).unwrap_or(word);
        let whole = digits.strip_suffix('N').unwrap_or(digits);
        if whole.bytes().all(|byte| byte.is_ascii_digit()) {
            // More than 64 bits, or marked as arbitrary in precision.
            return Ok(Value::Digits(Cow::Borrowed(word)));
        }
        let float_like = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
        match plain.parse::<f64>() {
            Ok(_) if !plain.bytes().all(float_like) => Err(wrong(self)),
            Ok(float) if word.ends_with('M') && float.is_finite() => Ok(Value::Digits(Cow::Borrowed(word))),
            Ok(float) if float.is_finite() && plain.len() == word.len() => Ok(Value::Float(float)),
            _ => Err(wrong(self)),
        }
    }

    fn string(&mut self) -> Parsed<Cow<'a, str>> {
        self.at += 1;
        let rest = &self.text[self.at..];
        let Some(end) = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\')) else {
            return Err(self.syntax("a string without an end"));
        };
        if rest.as_bytes()[end] == b'"' {
            self.at += end + 1;
            return Ok(Cow::Borrowed(&rest[..end]));
        }
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(end) = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\')) else {
                return Err(self.syntax("a string without an end"));
            };
            text.push_str(&rest[..end]);
            self.at += end + 1;
            if rest.as_bytes()[end] == b'"' {
                return Ok(Cow::Owned(text));
            }
            match self.byte() {
                Some(b'n') => text.push('\n'),
                Some(b't') => text.push('\t'),
                Some(b'r') => text.push('\r'),
                Some(b'b') => text.push('\u{8}'),
                Some(b'f') => text.push('\u{c}'),
                Some(b'"') => text.push('"'),
                Some(b'\\') => text.push('\\'),
                Some(b'u') => {
                    text.push(self.hex(self.at + 1)?);
                    self.at += 4;
                }
                _ => return Err(self.syntax("an escape that EDN does not have")),
            }
            self.at += 1;
        }
    }

    /// The character whose four hexadecimal digits stand there.
    fn hex(&self, at: usize) -> Parsed<char> {
        let digits = self.text.get(at..at + 4).filter(|digits| digits.bytes().all(|d| d.is_ascii_hexdigit()));
        digits
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .and_then(char::from_u32)
            .ok_or_else(|| self.syntax("not four hexadecimal digits of a character"))
    }

    fn character(&mut self) -> Parsed<char> {
        self.at += 1;
        let Some(first) = self.text[self.at..].chars().next() else {
            return Err(self.syntax("a character without an end"));
        };
        let start = self.at;
        self.at += first.len_utf8();
        let word = {
            self.word();
            &self.text[start..self.at]
        };
        match word {
            "newline" => Ok('\n'),
            "return" => Ok('\r'),
            "space" => Ok(' '),
            "tab" => Ok('\t'),
            word if word.len() == first.len_utf8() => Ok(first),
            word if first == 'u' && word.len() == 5 => self.hex(start + 1),
            _ => Err(self.syntax("no such character")),
        }
    }
}

/// Writes one event as a map on a line of its own.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, event: &Event<'_>) -> std::io::Result<()> {
    let mut text = String::new();
    let mut put = |name: &str, write: &dyn Fn(&mut String)| {
        text.push_str(if text.is_empty() { "{" } else { ", " });
        word(&mut text, name);
        text.push(' ');
        write(&mut text);
    };
    let number = |number: &dyn std::fmt::Display| number.to_string();
    match &event.process {
        Process::Client(client) => put("process", &|out| out.push_str(&number(client))),
        Process::Named(name) => put("process", &|out| word(out, name)),
    }
    put("type", &|out| word(out, event.kind.name()));
    put("f", &|out| word(out, &event.f));
    if let Some(key) = &event.key {
        put("key", &|out| key.write_edn(out));
    }
    match &event.value {
        Some(Payload::Value(value)) => put("value", &|out| value.write_edn(out)),
        Some(Payload::Siblings(siblings)) => put("value", &|out| {
            out.push('[');
            for (at, sibling) in siblings.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                write_sibling(out, sibling);
            }
            out.push(']');
        }),
        None => {}
    }
    if let Some(id) = &event.id {
        put("id", &|out| write_string(out, id));
    }
    match event.after {
        Some(After::Index(index)) => put("after", &|out| out.push_str(&number(&index))),
        Some(After::Current) => put("after", &|out| out.push_str(":current")),
        None => {}
    }
    if let Some(saw) = &event.saw {
        put("saw", &|out| {
            let ids = saw.iter().map(|id| Value::Str(Cow::Borrowed(id))).collect();
            Value::Vector(ids).write_edn(out);
        });
    }
    if let Some(dot) = &event.dot {
        put("dot", &|out| {
            out.push('[');
            write_string(out, &dot.actor);
            out.push_str(&format!(" {}]", dot.counter));
        });
    }
    if let Some(covers) = &event.covers {
        put("covers", &|out| {
            out.push('{');
            for (at, (actor, counter)) in covers.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_string(out, actor);
                out.push_str(&format!(" {counter}"));
            }
            out.push('}');
        });
    }
    if let Some((lo, hi)) = event.clock {
        put("clock", &|out| out.push_str(&format!("[{lo} {hi}]")));
    }
    let numbers = [
        ("r", event.r.map(i128::from)),
        ("w", event.w.map(i128::from)),
        ("n", event.n.map(i128::from)),
        ("copies", event.copies.map(i128::from)),
        ("layout", event.layout.map(i128::from)),
        ("ttl", event.ttl.map(i128::from)),
        ("expires_at", event.expires_at.map(i128::from)),
        ("index", event.index.map(i128::from)),
        ("time", event.time.map(i128::from)),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            put(name, &|out| out.push_str(&number(&value)));
        }
    }
    if let Some(strict) = event.strict {
        put("strict", &|out| out.push_str(if strict { "true" } else { "false" }));
    }
    if let Some(durable) = &event.durable {
        put("durable", &|out| word(out, durable));
    }
    if let Some(node) = &event.node {
        put("node", &|out| write_string(out, node));
    }
    for (name, value) in &event.extra {
        put(name, &|out| value.write_edn(out));
    }
    text.push_str("}\n");
    out.write_all(text.as_bytes())
}

/// A name: a keyword where it can be one.
fn word(out: &mut String, name: &str) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.is_empty() && name.bytes().all(plain) {
        out.push(':');
        out.push_str(name);
    } else {
        write_string(out, name);
    }
}

fn write_sibling(out: &mut String, sibling: &Sibling<'_>) {
    out.push_str("{:id ");
    write_string(out, &sibling.id);
    if let Some(value) = &sibling.value {
        out.push_str(", :v ");
        value.write_edn(out);
    }
    if let Some(dot) = &sibling.dot {
        out.push_str(", :dot [");
        write_string(out, &dot.actor);
        out.push_str(&format!(" {}]", dot.counter));
    }
    out.push_str(if sibling.hidden { ", :hidden true" } else { "" });
    out.push_str(if sibling.dead { ", :dead true" } else { "" });
    for (name, value) in &sibling.extra {
        out.push_str(", ");
        word(out, name);
        out.push(' ');
        value.write_edn(out);
    }
    out.push('}');
}
