//! A settings file: flat TOML, one `name = value` a setting. Every entry is known by its line, so that a wrong one can
//! be pointed at; a file with one mistake tells all of its mistakes at once.

use toml::de::{DeTable, DeValue};

use super::table::{self, SETTINGS};
use super::value::{Kind, nearest};

/// A setting of the file, its text as [`Kind::parse`] takes it.
pub(super) struct Entry {
    /// Its place in the table.
    pub(super) setting: usize,
    /// What stands there.
    pub(super) text: String,
    /// Counted from 1.
    pub(super) line: usize,
}

/// What is wrong in a line.
pub(super) struct Fault {
    /// Counted from 1.
    pub(super) line: usize,
    /// In words.
    pub(super) reason: String,
}

/// The entries of a file, and all that is wrong besides their values.
pub(super) fn read(text: &str) -> (Vec<Entry>, Vec<Fault>) {
    let line_of =
        |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut faults: Vec<Fault> = errors
        .iter()
        .map(|error| {
            let at = error.span().map_or(0, |span| span.start);
            Fault { line: line_of(at), reason: format!("not TOML: {}", error.message()) }
        })
        .collect();
    if !faults.is_empty() {
        // What the parser made of the rest is a guess; complaints about it would mislead.
        return (Vec::new(), faults);
    }
    let mut entries = Vec::new();
    for (key, value) in document.get_ref() {
        let (name, line) = (key.get_ref().as_ref(), line_of(key.span().start));
        let Some(setting) = table::find(name) else {
            faults.push(Fault { line, reason: unknown(name, value.get_ref()) });
            continue;
        };
        match scalar(SETTINGS[setting].kind, value.get_ref()) {
            Ok(text) => entries.push(Entry { setting, text, line }),
            Err(reason) => faults.push(Fault { line, reason: format!("{name}: {reason}") }),
        }
    }
    entries.sort_by_key(|entry| entry.line);
    (entries, faults)
}

fn unknown(name: &str, value: &DeValue<'_>) -> String {
    if let DeValue::Table(_) = value {
        return format!("[{name}]: settings stand at the top level, without a table");
    }
    match nearest(name, SETTINGS.iter().map(|setting| setting.name)) {
        Some(known) => format!("{name} is no setting: did you mean {known}?"),
        None => format!("{name} is no setting: `ringdove config` lists them all"),
    }
}

/// A value as text. Numbers may stand without quotes where no unit is needed.
fn scalar(kind: Kind, value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.as_ref().to_owned()),
        DeValue::Integer(number)
            if matches!(kind, Kind::Size { .. } | Kind::Count { .. } | Kind::Decimal { .. }) =>
        {
            match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Ok(number.to_string()),
                Err(_) => Err(format!("{number} is no number that fits: choose from {}", kind.range())),
            }
        }
        DeValue::Integer(number) if matches!(kind, Kind::Time { .. }) => {
            let range = kind.range();
            Err(format!(
                "{number} has no unit: give a text like \"{number}ms\" or \"{number}s\", from {range}"
            ))
        }
        DeValue::Float(number) if matches!(kind, Kind::Decimal { .. }) => Ok(number.as_str().to_owned()),
        other => {
            let wanted = match kind {
                Kind::Count { .. } | Kind::Decimal { .. } => format!("a number from {}", kind.range()),
                Kind::Choice(_) => format!("a text in quotes ({})", kind.range()),
                _ => format!("a text in quotes, {}", kind.range()),
            };
            Err(format!("{} is not possible here: give {wanted}", other.type_str()))
        }
    }
}
