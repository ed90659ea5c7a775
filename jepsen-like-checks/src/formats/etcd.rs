//! The log that Jepsen's etcd test wrote: one event a line, in which only the last four fields say something:
//!
//! ```text
//! INFO  jepsen.util - 4  :invoke  :cas  [2 4]
//! ```
//!
//! Process, type, operation and value stand between tabs, or spaces: in some logs something has expanded them. Lines
//! that are not the test's own (another logger) are skipped. The value of a read is what it returned; `:timed-out` in
//! its place is an error's name, not a value, so it becomes the extra key `error`. The nemesis (`:nemesis`) does
//! whatever it does; clients read, write and cas.

use std::borrow::Cow;
use std::io::{self, BufRead, Write};

use crate::event::{Event, EventError, InputError, InputErrorKind, Kind, Payload, Process};
use crate::formats::lines::Lines;
use crate::formats::{Place, Source, edn};
use crate::value::Value;

/// Reads events from such a log.
pub struct Reader<R> {
    lines: Lines<R>,
}

impl<R: BufRead> Reader<R> {
    /// A reader of `input`.
    pub fn new(input: R) -> Self {
        Reader { lines: Lines::new(input) }
    }
}

/// What stands before the process.
const MARK: &str = "jepsen.util - ";

impl<R: BufRead> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<(Place, Event<'_>)>, InputError> {
        loop {
            if !self.lines.advance()? {
                return Ok(None);
            }
            if self.lines.text()?.contains(MARK) {
                break;
            }
        }
        let lines = &self.lines;
        let text = lines.text()?;
        let start = text.find(MARK).map_or(0, |at| at + MARK.len());
        let mut at = start;
        // The next field and where it stands; the value, last, may have blanks in it.
        let mut field = |last: bool| {
            let rest = &text[at..];
            let begin = at + rest.len() - rest.trim_ascii_start().len();
            let rest = text[begin..].trim_ascii_end();
            let length = if last { None } else { rest.find(|char: char| char.is_ascii_whitespace()) };
            let field = &rest[..length.unwrap_or(rest.len())];
            at = begin + field.len();
            (begin, field)
        };
        let [(process_at, process), (kind_at, kind), (f_at, f), (value_at, value)] =
            [field(false), field(false), field(false), field(true)];
        let syntax = |at: usize, what: &str| lines.error(at + 1, InputErrorKind::Syntax(what.to_owned()));
        let process = match process.strip_prefix(':').filter(|name| !name.is_empty()) {
            Some(name) => Process::Named(Cow::Borrowed(name)),
            None => Process::Client(
                process.parse().map_err(|_| syntax(process_at, "expected a process's number or keyword"))?,
            ),
        };
        let kind = kind
            .strip_prefix(':')
            .and_then(Kind::of)
            .ok_or_else(|| syntax(kind_at, "expected :invoke, :ok, :fail or :info"))?;
        let f = f
            .strip_prefix(':')
            .filter(|f| !f.is_empty())
            .ok_or_else(|| syntax(f_at, "expected a keyword"))?;
        let value = edn::one(value).map_err(|(column, kind)| lines.error(value_at + column, kind))?;
        let client = matches!(process, Process::Client(_));
        let mut event = Event::new(kind, 0, f);
        event.process = process;
        match value {
            Value::Keyword(error) => event.extra.push((Cow::Borrowed("error"), Value::Keyword(error))),
            _ if client && !matches!(f, "read" | "write" | "cas") => {
                let expected = EventError::Field { field: "f", expected: "read, write or cas" };
                return Err(lines.error(f_at + 1, expected.into()));
            }
            value => event.value = Some(Payload::Value(value)),
        }
        Ok(Some((Place { line: lines.number, column: 1 }, event)))
    }
}

/// Writes one event as a line. The format has no place for an index or a time: they are left out.
///
/// # Errors
/// Those of `out`; and `InvalidInput` for an event that a line cannot say (one with a key, an id, siblings, …).
/// Nothing of it is written then.
pub fn write(out: &mut impl Write, event: &Event<'_>) -> io::Result<()> {
    let process = match &event.process {
        Process::Client(client) => client.to_string(),
        Process::Named(name) => format!(":{name}"),
    };
    let mut value = String::new();
    match (&event.value, event.extra.first()) {
        (Some(Payload::Value(said)), _) => said.write_edn(&mut value),
        (None, Some((name, error @ Value::Keyword(_)))) if name == "error" => error.write_edn(&mut value),
        _ => {}
    }
    let line = format!("INFO  {MARK}{process}\t:{}\t:{}\t{value}\n", event.kind.name(), event.f);
    // Whatever a line cannot say is not there when it is read again.
    let said = Event { index: None, time: None, ..event.clone() };
    match Reader::new(line.as_bytes()).next() {
        Ok(Some((_, read))) if read == said => out.write_all(line.as_bytes()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "an event that a line of this log cannot say")),
    }
}
