//! Values of a history: what JSON and EDN can say, with one text form by which equal values are told.
//!
//! A history stores each distinct value once, as its text in EDN. So `"x"` in JSON and `"x"` in EDN are the same
//! value, and `:x`, `x` and `"x"` are three. Numbers too large for 64 bits keep their digits as they stand.
//! Deliberately absent: NaN and infinities. A value that does not equal itself cannot be judged; readers refuse it.

use std::borrow::Cow;
use std::fmt::Write;

/// One value. Text is borrowed from the input where it stands there unescaped.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `nil`, JSON's `null`.
    Nil,
    /// A boolean.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// A finite floating-point number.
    Float(f64),
    /// A number that is neither, as it was written: `12345678901234567890N`, `1.5M`.
    Digits(Cow<'a, str>),
    /// A string.
    Str(Cow<'a, str>),
    /// A keyword, without its colon.
    Keyword(Cow<'a, str>),
    /// A symbol.
    Symbol(Cow<'a, str>),
    /// A character.
    Char(char),
    /// `[…]`, JSON's array.
    Vector(Vec<Value<'a>>),
    /// `(…)`.
    List(Vec<Value<'a>>),
    /// `#{…}`.
    Set(Vec<Value<'a>>),
    /// `{…}`, JSON's object, in the order of the input.
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// `#tag value`, kept as it is.
    Tagged(Cow<'a, str>, Box<Value<'a>>),
}

impl Value<'_> {
    /// The text of a string, keyword or symbol: EDN histories say with keywords what JSON says with strings.
    pub fn name(&self) -> Option<&str> {
        match self {
            Value::Str(text) | Value::Keyword(text) | Value::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// The members of a vector, list or set.
    pub fn members(&self) -> Option<&[Value<'_>]> {
        match self {
            Value::Vector(members) | Value::List(members) | Value::Set(members) => Some(members),
            _ => None,
        }
    }

    /// The integer, if it is one.
    pub fn int(&self) -> Option<i64> {
        match self {
            Value::Int(int) => Some(*int),
            _ => None,
        }
    }

    /// The same value without borrowed text.
    pub fn into_owned(self) -> Value<'static> {
        fn own(text: Cow<'_, str>) -> Cow<'static, str> {
            Cow::Owned(text.into_owned())
        }
        fn all(values: Vec<Value<'_>>) -> Vec<Value<'static>> {
            values.into_iter().map(Value::into_owned).collect()
        }
        match self {
            Value::Nil => Value::Nil,
            Value::Bool(bool) => Value::Bool(bool),
            Value::Int(int) => Value::Int(int),
            Value::Float(float) => Value::Float(float),
            Value::Digits(text) => Value::Digits(own(text)),
            Value::Str(text) => Value::Str(own(text)),
            Value::Keyword(text) => Value::Keyword(own(text)),
            Value::Symbol(text) => Value::Symbol(own(text)),
            Value::Char(char) => Value::Char(char),
            Value::Vector(values) => Value::Vector(all(values)),
            Value::List(values) => Value::List(all(values)),
            Value::Set(values) => Value::Set(all(values)),
            Value::Map(entries) => {
                Value::Map(entries.into_iter().map(|(k, v)| (k.into_owned(), v.into_owned())).collect())
            }
            Value::Tagged(tag, value) => Value::Tagged(own(tag), Box::new(value.into_owned())),
        }
    }

    /// Appends the value as EDN.
    pub fn write_edn(&self, out: &mut String) {
        fn all(out: &mut String, open: &str, values: &[Value<'_>], close: char) {
            out.push_str(open);
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                value.write_edn(out);
            }
            out.push(close);
        }
        match self {
            Value::Nil => out.push_str("nil"),
            Value::Bool(bool) => out.push_str(if *bool { "true" } else { "false" }),
            Value::Int(int) => {
                let _ = write!(out, "{int}");
            }
            Value::Float(float) => {
                let _ = write!(out, "{float:?}");
            }
            Value::Digits(text) | Value::Symbol(text) => out.push_str(text),
            Value::Str(text) => write_string(out, text),
            Value::Keyword(text) => {
                out.push(':');
                out.push_str(text);
            }
            Value::Char(char) => {
                out.push('\\');
                match char {
                    '\n' => out.push_str("newline"),
                    '\r' => out.push_str("return"),
                    '\t' => out.push_str("tab"),
                    ' ' => out.push_str("space"),
                    char => out.push(*char),
                }
            }
            Value::Vector(values) => all(out, "[", values, ']'),
            Value::List(values) => all(out, "(", values, ')'),
            Value::Set(values) => all(out, "#{", values, '}'),
            Value::Map(entries) => {
                out.push('{');
                for (at, (key, value)) in entries.iter().enumerate() {
                    if at > 0 {
                        out.push_str(", ");
                    }
                    key.write_edn(out);
                    out.push(' ');
                    value.write_edn(out);
                }
                out.push('}');
            }
            Value::Tagged(tag, value) => {
                let _ = write!(out, "#{tag} ");
                value.write_edn(out);
            }
        }
    }

    /// The value as JSON. What JSON has no word for becomes the nearest that it has: keywords, symbols and
    /// characters strings, lists and sets arrays, `#tag v` the object `{"#tag": v}`.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        fn text(value: &Value<'_>) -> String {
            value.name().map_or_else(
                || {
                    let mut text = String::new();
                    value.write_edn(&mut text);
                    text
                },
                str::to_owned,
            )
        }
        match self {
            Value::Nil => Json::Null,
            Value::Bool(bool) => Json::Bool(*bool),
            Value::Int(int) => Json::from(*int),
            Value::Float(float) => Json::from(*float),
            Value::Digits(_) | Value::Str(_) | Value::Keyword(_) | Value::Symbol(_) => {
                Json::String(text(self))
            }
            Value::Char(char) => Json::String(char.to_string()),
            Value::Vector(values) | Value::List(values) | Value::Set(values) => {
                Json::Array(values.iter().map(Value::to_json).collect())
            }
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|(key, value)| (text(key), value.to_json())).collect())
            }
            Value::Tagged(tag, value) => {
                Json::Object(std::iter::once((format!("#{tag}"), value.to_json())).collect())
            }
        }
    }
}

/// Appends `text` as an EDN string.
pub(crate) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    if text.bytes().any(|byte| matches!(byte, b'"' | b'\\' | b'\n' | b'\r' | b'\t')) {
        for char in text.chars() {
            match char {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                char => out.push(char),
            }
        }
    } else {
        out.push_str(text);
    }
    out.push('"');
}
