//! The lines of `ringdove import` and `export`: a key with its values, as JSON or tab-separated.
//!
//! ```text
//!   JSON   {"key":"dove","value":"grey","content_type":"text/plain","meta":{"by":"me"},"ttl":"10m"}
//!          {"key_base64":"/w==","value_base64":"AAE=","expires_at_ms":1795420800000}
//!          {"key":"wren","siblings":[{"value":"brown"},{"value":"grey"}]}
//!   TSV    dove⇥grey            in a field: \t \n \r \\ escaped; `base64:` before what is no text,
//!          base64:/w==⇥base64:AAE=                       and before text that begins so itself
//! ```
//! What `export` writes `import` reads back equal: bytes, type, pairs, expiry and siblings. Write ids, contexts and
//! times of writing are the cluster's own and stay behind. TSV has key and value alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::units;
use crate::client::Version;
use crate::dynamo::version::Meta;
use crate::net::message::Expiry;
use crate::types::{Key, Wall};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// A JSON object a line.
    Jsonl,
    /// Key, tab, value.
    Tsv,
}

impl Format {
    /// The one that a file's name says, if it says any.
    pub(super) fn of_name(name: &str) -> Option<Format> {
        let ending = name.rsplit('.').next().filter(|ending| *ending != name)?;
        match ending {
            "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
            "tsv" => Some(Format::Tsv),
            _ => None,
        }
    }
}

/// A key with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// At least one.
    pub(super) values: Vec<Held>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) value: Bytes,
    pub(super) meta: Option<Meta>,
    pub(super) expiry: Expiry,
}

impl Held {
    pub(super) fn of(version: &Version) -> Held {
        Held {
            value: version.value.clone(),
            meta: version.meta.as_deref().cloned(),
            expiry: version.expires_at.map_or(Expiry::Never, Expiry::At),
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    siblings: Option<Vec<Line>>,
}

/// Text, or what it is in base64.
fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(units::base64_text(bytes))),
    }
}

fn one_of(name: &str, text: Option<String>, encoded: Option<String>) -> Result<Option<Vec<u8>>, String> {
    match (text, encoded) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_base64 are both given")),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(encoded)) => {
            let bytes = units::base64(&encoded);
            bytes.map(Some).map_err(|error| format!("{name}_base64 is no base64: {error}"))
        }
        (None, None) => Ok(None),
    }
}

impl Line {
    fn of(held: &Held) -> Line {
        let (value, value_base64) = text_or_base64(&held.value);
        let meta = held.meta.clone().unwrap_or_default();
        let (ttl, expires_at_ms) = match held.expiry {
            Expiry::Never => (None, None),
            Expiry::At(at) => (None, Some(at.0)),
            Expiry::After(ms) => (Some(format!("{ms}ms")), None),
        };
        let content_type = meta.content_type;
        Line { value, value_base64, content_type, meta: meta.pairs, ttl, expires_at_ms, ..Line::default() }
    }

    fn held(self) -> Result<Held, String> {
        let value = one_of("value", self.value, self.value_base64)?;
        let value = value.ok_or("it has no value (\"value\" or \"value_base64\")")?;
        let expiry = match (self.ttl, self.expires_at_ms) {
            (Some(_), Some(_)) => return Err("ttl and expires_at_ms are both given".to_owned()),
            (Some(ttl), None) => {
                let ttl = units::positive(&ttl).map_err(|error| format!("ttl: {error}"))?;
                Expiry::After(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            }
            (None, Some(at)) => Expiry::At(Wall(at)),
            (None, None) => Expiry::Never,
        };
        let meta = Meta { content_type: self.content_type, pairs: self.meta };
        let meta = (meta != Meta::default()).then_some(meta);
        Ok(Held { value: value.into(), meta, expiry })
    }
}

impl Entry {
    /// The entry of a line, without its end.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn read(line: &[u8], format: Format) -> Result<Entry, String> {
        match format {
            Format::Jsonl => Entry::read_json(line),
            Format::Tsv => Entry::read_tsv(line),
        }
    }

    fn read_json(line: &[u8]) -> Result<Entry, String> {
        let mut line: Line = serde_json::from_slice(line).map_err(|error| {
            // It names a line of its own, which is always the first.
            let text = error.to_string();
            format!("no record: {}", text.replace(" at line 1 column", " at column"))
        })?;
        let key = one_of("key", line.key.take(), line.key_base64.take())?;
        let key = key.ok_or("it has no key (\"key\" or \"key_base64\")")?;
        let key = Key::new(key).map_err(|error| error.to_string())?;
        let values = match line.siblings.take() {
            None => vec![line.held()?],
            Some(_) if line.value.is_some() || line.value_base64.is_some() => {
                return Err("value and siblings are both given".to_owned());
            }
            Some(siblings) if siblings.is_empty() => return Err("siblings is empty".to_owned()),
            Some(siblings) => {
                let nested =
                    |line: &Line| line.key.is_some() || line.key_base64.is_some() || line.siblings.is_some();
                if siblings.iter().any(nested) {
                    return Err("a sibling has no key and no siblings of its own".to_owned());
                }
                siblings.into_iter().map(Line::held).collect::<Result<_, _>>()?
            }
        };
        Ok(Entry { key, values })
    }

    fn read_tsv(line: &[u8]) -> Result<Entry, String> {
        let mut fields = line.split(|byte| *byte == b'\t');
        let (Some(key), Some(value), None) = (fields.next(), fields.next(), fields.next()) else {
            return Err(
                "a line is a key, one tab, and a value (a tab inside a field is written \\t)".to_owned()
            );
        };
        let key = field(key).map_err(|error| format!("key: {error}"))?;
        let key = Key::new(key).map_err(|error| error.to_string())?;
        let value = field(value).map_err(|error| format!("value: {error}"))?;
        Ok(Entry { key, values: vec![Held { value: value.into(), meta: None, expiry: Expiry::Never }] })
    }

    /// The line of an entry, with its end. None when the format cannot say it: TSV has no siblings.
    pub(super) fn line(&self, format: Format) -> Option<Vec<u8>> {
        let mut line = match (format, self.values.as_slice()) {
            (Format::Jsonl, values) => {
                let (key, key_base64) = text_or_base64(self.key.as_bytes());
                let line = match values {
                    [held] => Line::of(held),
                    siblings => {
                        Line { siblings: Some(siblings.iter().map(Line::of).collect()), ..Line::default() }
                    }
                };
                serde_json::to_vec(&Line { key, key_base64, ..line }).ok()?
            }
            (Format::Tsv, [held]) => {
                let mut line = tsv_field(self.key.as_bytes());
                line.push(b'\t');
                line.extend_from_slice(&tsv_field(&held.value));
                line
            }
            (Format::Tsv, _) => return None,
        };
        line.push(b'\n');
        Some(line)
    }
}

const BASE64: &str = "base64:";

fn field(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "no UTF-8; write base64: and its base64".to_owned())?;
    if let Some(encoded) = text.strip_prefix(BASE64) {
        return units::base64(encoded).map_err(|error| format!("no base64: {error}"));
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        plain.push(match byte {
            b'\\' => match rest.next() {
                Some(b't') => b'\t',
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b'\\') => b'\\',
                _ => return Err("a backslash stands before t, n, r or another backslash".to_owned()),
            },
            byte => byte,
        });
    }
    Ok(plain)
}

fn tsv_field(bytes: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with(BASE64) => {
            let mut field = Vec::with_capacity(bytes.len());
            for byte in text.bytes() {
                match byte {
                    b'\t' => field.extend_from_slice(b"\\t"),
                    b'\n' => field.extend_from_slice(b"\\n"),
                    b'\r' => field.extend_from_slice(b"\\r"),
                    b'\\' => field.extend_from_slice(b"\\\\"),
                    byte => field.push(byte),
                }
            }
            field
        }
        _ => format!("{BASE64}{}", units::base64_text(bytes)).into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str, format: Format) -> Result<Entry, String> {
        Entry::read(line.as_bytes(), format)
    }

    fn held() -> impl Strategy<Value = Held> {
        let value = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            "(base64:)?[a-z\t\n\r\\\\\"ü]{0,20}".prop_map(String::into_bytes)
        ];
        let meta = proptest::option::of("[a-z/]{1,9}").prop_map(|content_type| {
            content_type.map(|content_type| Meta { content_type: Some(content_type), ..Meta::default() })
        });
        let expiry = prop_oneof![Just(Expiry::Never), any::<u64>().prop_map(|at| Expiry::At(Wall(at)))];
        (value, meta, expiry).prop_map(|(value, meta, expiry)| Held { value: value.into(), meta, expiry })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let key = proptest::collection::vec(any::<u8>(), 1..30).prop_map(|key| Key::new(key).unwrap());
        (key, proptest::collection::vec(held(), 1..4)).prop_map(|(key, values)| Entry { key, values })
    }

    proptest! {
        #[test]
        fn json_lines_read_back_equal(entry in entry()) {
            let line = entry.line(Format::Jsonl).unwrap();
            let (end, line) = line.split_last().unwrap();
            prop_assert_eq!(*end, b'\n');
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(Entry::read(line, Format::Jsonl), Ok(entry));
        }

        #[test]
        fn tsv_lines_read_back_equal_where_there_is_one_value(entry in entry()) {
            let Some(line) = entry.line(Format::Tsv) else {
                prop_assert!(entry.values.len() > 1);
                return Ok(());
            };
            let line = &line[..line.len() - 1];
            prop_assert!(!line.contains(&b'\n'));
            let read = Entry::read(line, Format::Tsv).unwrap();
            prop_assert_eq!((&read.key, &read.values[0].value), (&entry.key, &entry.values[0].value));
        }

        #[test]
        fn no_line_makes_the_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Entry::read(&line, Format::Jsonl);
            let _ = Entry::read(&line, Format::Tsv);
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let cases = [
            ("{", "column"),
            ("{\"key\":\"a\"}", "no value"),
            ("{\"value\":\"a\"}", "no key"),
            ("{\"key\":\"\",\"value\":\"a\"}", "at least one byte"),
            ("{\"key\":\"a\",\"value\":\"b\",\"colour\":1}", "colour"),
            ("{\"key\":\"a\",\"value\":\"b\",\"value_base64\":\"\"}", "both"),
            ("{\"key\":\"a\",\"value_base64\":\"!\"}", "base64"),
            ("{\"key\":\"a\",\"value\":\"b\",\"ttl\":\"5\"}", "5s"),
            ("{\"key\":\"a\",\"siblings\":[]}", "empty"),
            ("{\"key\":\"a\",\"value\":\"b\",\"siblings\":[]}", "both"),
            ("{\"key\":\"a\",\"value\":7}", "string"),
        ];
        for (line, words) in cases {
            let error = read(line, Format::Jsonl).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
        for (line, words) in [("a", "tab"), ("a\tb\tc", "tab"), ("\tb", "byte"), ("a\t\\x", "backslash")] {
            let error = read(line, Format::Tsv).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn a_file_name_says_its_format() {
        assert_eq!(Format::of_name("a/b.tsv"), Some(Format::Tsv));
        assert_eq!(Format::of_name("b.jsonl"), Some(Format::Jsonl));
        assert_eq!(Format::of_name("tsv"), None);
        assert_eq!(Format::of_name("b.gz"), None);
    }
}
