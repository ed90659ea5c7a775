//! Values of settings as people write them: "300ms", "64MiB", "127.0.0.1:7001".
//!
//! Both ways: text to value with a reason when it is none, value to text that reads back as itself.

use std::fmt;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::net::message::{Durability, INTERVAL_MS_MAX};

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A time with its unit, both ends of the range included.
    Time {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// A number of bytes, with a unit or without.
    Size {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A whole number.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A number with at most one decimal place, as tenths.
    Decimal {
        /// Smallest, in tenths.
        min: u64,
        /// Largest, in tenths.
        max: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `sync`, or `interval:` and a time.
    Durability,
    /// `host:port`.
    Address,
    /// A path.
    Path,
    /// `tracing` filter directives.
    Filter,
}

/// A value of a [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A time.
    Time(Duration),
    /// A size in bytes, a count, or tenths.
    Number(u64),
    /// Everything else.
    Text(String),
}

const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIMES: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];

impl Kind {
    /// Reads a value.
    ///
    /// # Errors
    /// Why it is none, and what would be one.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let value = match self {
            Kind::Time { .. } => Value::Time(parse_time(text).map_err(|why| self.with_range(&why))?),
            Kind::Size { .. } => Value::Number(parse_size(text).map_err(|why| self.with_range(&why))?),
            Kind::Count { .. } => Value::Number(text.replace('_', "").parse().map_err(|_| {
                let range = self.range();
                format!("{text:?} is no whole number: give one from {range}")
            })?),
            Kind::Decimal { .. } => Value::Number(parse_tenths(text).ok_or_else(|| {
                let range = self.range();
                format!("{text:?} is no number with at most one decimal place: give one from {range}")
            })?),
            Kind::Choice(words) => {
                if !words.contains(&text) {
                    return Err(format!("{text:?} is not possible: choose {}", words.join(" or ")));
                }
                Value::Text(text.to_owned())
            }
            Kind::Durability => Value::Text(parse_durability(text)?),
            Kind::Address => Value::Text(parse_address(text)?),
            Kind::Path if text.is_empty() => return Err("the path is empty".to_owned()),
            Kind::Path => Value::Text(text.to_owned()),
            Kind::Filter => Value::Text(parse_filter(text)?),
        };
        let inside = match (self, &value) {
            (Kind::Time { min, max }, Value::Time(time)) => (min..=max).contains(time),
            (
                Kind::Size { min, max } | Kind::Count { min, max } | Kind::Decimal { min, max },
                Value::Number(number),
            ) => (min..=max).contains(number),
            _ => true,
        };
        if inside {
            Ok(value)
        } else {
            Err(format!("{} is out of range: choose from {}", self.text(&value), self.range()))
        }
    }

    /// The value as [`Kind::parse`] reads it.
    pub fn text(self, value: &Value) -> String {
        match (self, value) {
            (_, Value::Time(time)) => {
                let ms = time.as_millis();
                let fits = |unit: &&(&str, u64)| ms > 0 && ms.is_multiple_of(unit.1.into());
                let (unit, one) = TIMES.iter().find(fits).unwrap_or(&("s", 1000));
                format!("{}{unit}", ms / u128::from(*one))
            }
            (Kind::Size { .. }, Value::Number(bytes)) => {
                let (unit, one) =
                    SIZES.iter().find(|(_, one)| *bytes > 0 && bytes % one == 0).unwrap_or(&("B", 1));
                format!("{}{unit}", bytes / one)
            }
            (Kind::Decimal { .. }, Value::Number(tenths)) => format!("{}.{}", tenths / 10, tenths % 10),
            (_, Value::Number(number)) => number.to_string(),
            (_, Value::Text(text)) => text.clone(),
        }
    }

    /// The value as TOML.
    pub fn toml(self, value: &Value) -> String {
        match (self, value) {
            (Kind::Count { .. } | Kind::Decimal { .. }, Value::Number(_)) => self.text(value),
            _ => quoted(&self.text(value)),
        }
    }

    fn with_range(self, why: &str) -> String {
        format!("{why}, from {}", self.range())
    }

    /// What is possible, in words.
    pub fn range(self) -> String {
        match self {
            Kind::Time { min, max } => {
                format!("{} to {}", self.text(&Value::Time(min)), self.text(&Value::Time(max)))
            }
            Kind::Size { min, max } | Kind::Count { min, max } | Kind::Decimal { min, max } => {
                format!("{} to {}", self.text(&Value::Number(min)), self.text(&Value::Number(max)))
            }
            Kind::Choice(words) => words.join(", "),
            Kind::Durability => {
                format!("sync, interval:1ms to interval:{}", INTERVAL.text(&Value::Time(INTERVAL_MAX)))
            }
            Kind::Address => "host:port".to_owned(),
            Kind::Path => "a path".to_owned(),
            Kind::Filter => "`tracing` directives".to_owned(),
        }
    }
}

/// What is given where: the placeholder in help texts.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Time { .. } => "TIME",
            Kind::Size { .. } => "SIZE",
            Kind::Count { .. } | Kind::Decimal { .. } => "NUMBER",
            Kind::Choice(_) | Kind::Durability => "WORD",
            Kind::Address => "HOST:PORT",
            Kind::Path => "PATH",
            Kind::Filter => "FILTER",
        })
    }
}

/// A whole number and the unit behind it.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let number = text[..digits].replace('_', "").parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

fn parse_tenths(text: &str) -> Option<u64> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, tenth) = text.split_once('.').unwrap_or((text, "0"));
    if !digits(whole) || !digits(tenth) || tenth.len() != 1 {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(10)?.checked_add(tenth.parse().ok()?)
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: give a whole number with ms, s, m or h, like 300ms or 10s");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    if unit.is_empty() && number == 0 {
        return Ok(Duration::ZERO);
    }
    let (_, one) = TIMES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    number.checked_mul(*one).map(Duration::from_millis).ok_or_else(|| format!("{text} is far too long"))
}

fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no size: give whole bytes, or a whole number with KiB, MiB, GiB or TiB, like 64MiB"
        )
    };
    let (number, unit) = split(text).ok_or_else(wrong)?;
    if unit.is_empty() {
        return Ok(number);
    }
    let named = |(name, _): &&(&str, u64)| name.eq_ignore_ascii_case(unit);
    let (_, one) = SIZES.iter().find(named).ok_or_else(wrong)?;
    number.checked_mul(*one).ok_or_else(|| format!("{text} is far too much"))
}

const INTERVAL_MAX: Duration = Duration::from_millis(INTERVAL_MS_MAX as u64);
const INTERVAL: Kind = Kind::Time { min: Duration::from_millis(1), max: INTERVAL_MAX };

fn parse_durability(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        None if text == "sync" => Ok(text.to_owned()),
        Some(("interval", time)) => INTERVAL.parse(time).map(|_| text.to_owned()),
        _ => Err(format!("{text:?} is not possible: give sync, or interval and a time, like interval:100ms")),
    }
}

/// What [`Kind::Durability`] says.
pub(super) fn durability_of(text: &str) -> Durability {
    let time = text.strip_prefix("interval:").and_then(|time| parse_time(time.trim()).ok());
    let ms = time.and_then(|time| u32::try_from(time.as_millis()).ok());
    ms.map_or(Durability::Sync, Durability::Interval)
}

/// The reverse of [`durability_of`].
pub(super) fn durability_text(durability: Durability) -> String {
    match durability {
        Durability::Sync => "sync".to_owned(),
        Durability::Interval(ms) => {
            format!("interval:{}", INTERVAL.text(&Value::Time(Duration::from_millis(ms.into()))))
        }
    }
}

/// Checks `host:port`; an IPv6 address stands in brackets.
///
/// # Errors
/// What is wrong with it.
pub fn parse_address(text: &str) -> Result<String, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} has no port: give host:port, like 127.0.0.1:7001"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bracketed {
        Some(inside) if inside.parse::<std::net::Ipv6Addr>().is_err() => {
            return Err(format!("{inside:?} in brackets is no IPv6 address"));
        }
        None if host.contains(':') => {
            return Err(format!(
                "{text:?} has several colons: put an IPv6 address into brackets, [::1]:7001"
            ));
        }
        None if host.is_empty() => {
            return Err(format!(
                "{text:?} has no host: give host:port, or 0.0.0.0{text} for every interface"
            ));
        }
        None if host.chars().any(|c| c.is_whitespace() || c == '/') => {
            return Err(format!("{text:?} is no address: give host:port alone, like 127.0.0.1:7001"));
        }
        _ => {}
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(text.to_owned()),
        _ => Err(format!("{port:?} is no port: give one from 1 to 65535")),
    }
}

fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map_err(|error| format!("{text:?} is no filter ({error}): try ringdove=info or ringdove=debug"))?;
    // A bare word is a target, so that a mistyped level is taken and logs nothing.
    for word in text.split(',').map(str::trim).filter(|word| !word.contains('=')) {
        let known = LEVELS.contains(&word.to_ascii_lowercase().as_str());
        if let (false, Some(level)) = (known, nearest(word, LEVELS)) {
            return Err(format!("{word:?} is no level: did you mean {level}?"));
        }
    }
    Ok(text.to_owned())
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The word that differs least from `text`, if that is little.
pub fn nearest<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LEN_MAX: usize = 64;
    let text = text.trim_start_matches('-').to_ascii_lowercase().replace('-', "_");
    if text.len() > LEN_MAX {
        return None;
    }
    let ranked = words.into_iter().map(|word| (distance(&text, word), word));
    let (far, word) = ranked.min()?;
    (far <= 1 + text.len() / 5).then_some(word)
}

/// Letters to insert, remove or replace, two neighbours that changed places counting as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
