//! Arguments in and figures out: durations, addresses, tokens, sizes, dates, tables.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;

use crate::net::message::{Durability, INTERVAL_MS_MAX};
use crate::types::Wall;

/// A duration: a number and its unit, `250ms`, `5s`, `10m`, `2h`, `30d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "" => return Err(format!("what unit? Write {text}ms, {text}s, {text}m, {text}h or {text}d")),
        _ => return Err(format!("{unit:?} is no unit of time: ms, s, m, h or d")),
    };
    let number: f64 = number.parse().map_err(|_| "write a number and a unit, like 300ms or 5s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| format!("{text} is too long"))
}

/// A duration above zero.
pub(super) fn positive(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_millis(1) {
        return Err("at least 1ms".to_owned());
    }
    Ok(duration)
}

/// A duration that a node waits for. What it gives at the most, `timeout_max`, it says itself.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = positive(text)?;
    if timeout > Duration::from_secs(3600) {
        return Err("no node gives a request more than 1h".to_owned());
    }
    Ok(timeout)
}

/// A number of replicas. How many there are the node says.
pub(super) fn replicas(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(0) | Err(_) => {
            Err("a number from 1 to N, the replicas of each key (`ringdove layout` shows N)".to_owned())
        }
        Ok(replicas) => Ok(replicas),
    }
}

/// `sync` or `interval:TIME`.
pub(super) fn durability(text: &str) -> Result<Durability, String> {
    if text == "sync" {
        return Ok(Durability::Sync);
    }
    let Some(interval) = text.strip_prefix("interval:") else {
        return Err("write sync, or interval and a time, like interval:100ms".to_owned());
    };
    let ms = positive(interval)?.as_millis();
    match u32::try_from(ms) {
        Ok(ms) if ms <= INTERVAL_MS_MAX => Ok(Durability::Interval(ms)),
        _ => Err(format!("an interval is {} s at most", INTERVAL_MS_MAX / 1000)),
    }
}

/// `host:port`.
pub(super) fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.contains("://") {
        return Err(format!(
            "{text} is a URL: this is the binary API, whose port the node prints as \"client\"; write host:port"
        ));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(text.to_owned()),
            _ => Err(format!("{port:?} is no port: 1 to 65535")),
        },
        _ => Err(format!("{text:?} has no port: write host:port, like 127.0.0.1:7001")),
    }
}

/// A context token as `ringdove get` and REST print it.
pub(super) fn token(text: &str) -> Result<Bytes, String> {
    let not = || "this is no context token: give it as `ringdove get --context` printed it".to_owned();
    let bytes = URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| not())?;
    if bytes.is_empty() { Err(not()) } else { Ok(bytes.into()) }
}

pub(super) fn token_text(token: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(token)
}

/// Base64 with or without padding.
pub(super) fn base64(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim_end_matches('=');
    STANDARD_NO_PAD.decode(text).map_err(|error| error.to_string())
}

pub(super) fn base64_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// 12345 as `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a unit.
#[allow(clippy::cast_precision_loss)] // for people
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A stretch of time in its two largest units.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A moment as RFC 3339 in UTC, to the millisecond.
pub(super) fn date(wall: Wall) -> String {
    let (seconds, ms) = (wall.0 / 1000, wall.0 % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since the first of March of the year 0, whose years end with the leap day; eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second % 3600 / 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Text of at most `max` characters, with what a terminal must not see escaped.
pub(super) fn preview(bytes: &[u8], max: usize) -> String {
    // Escaping never makes it shorter, and a character has at most four bytes.
    let head = &bytes[..bytes.len().min(max * 4)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => escaped(text),
        // Cut inside its last character.
        Err(error) if error.error_len().is_none() && head.len() < bytes.len() => {
            escaped(&String::from_utf8_lossy(&head[..error.valid_up_to()]))
        }
        Err(_) => head.escape_ascii().to_string(),
    };
    if head.len() == bytes.len() && text.chars().count() <= max {
        return text;
    }
    let mut cut: String = text.chars().take(max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Text without control characters.
pub(super) fn escaped(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Rows under a heading, columns as wide as they need; a heading that begins with `>` stands right.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let right: Vec<bool> = heading.iter().map(|name| name.starts_with('>')).collect();
    let names: Vec<String> = heading.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&names]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
            let cell = match right {
                true => format!("{cell:>width$}  "),
                false => format!("{cell:<width$}  "),
            };
            line.push_str(&cell);
        }
        line.trim_end().to_owned()
    };
    std::iter::once(&names).chain(rows).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert!(duration("5").unwrap_err().contains("5s"));
        for wrong in ["", "s", "5 s", "five", "-5s", "1e9s", "1.2.3s", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(timeout("0ms").is_err() && timeout("61m").is_err() && timeout("1h").is_ok());
    }

    #[test]
    fn durability_is_sync_or_an_interval_that_nodes_take() {
        assert_eq!(durability("sync"), Ok(Durability::Sync));
        assert_eq!(durability("interval:100ms"), Ok(Durability::Interval(100)));
        for wrong in ["", "interval", "interval:", "interval:0ms", "interval:61s", "async"] {
            assert!(durability(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_host_and_port() {
        assert_eq!(address(" [::1]:7001 "), Ok("[::1]:7001".to_owned()));
        assert!(address("http://127.0.0.1:8001").unwrap_err().contains("client"));
        for wrong in ["", "localhost", ":7001", "localhost:0", "localhost:99999", "localhost:http"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (1_795_420_800_000, "2026-11-23T08:00:00.000Z"),
        ];
        for (ms, text) in cases {
            assert_eq!(date(Wall(ms)), text);
        }
    }

    #[test]
    fn a_preview_shows_no_control_character_and_no_half_one() {
        assert_eq!(preview(b"a\x1b[31m\n", 20), "a\\u{1b}[31m\\n");
        assert_eq!(preview("dove".as_bytes(), 4), "dove");
        assert_eq!(preview("doves".as_bytes(), 4), "dov…");
        assert_eq!(preview(&[0xff, 0xfe], 20), "\\xff\\xfe");
        assert_eq!(preview("ü".repeat(50).as_bytes(), 3), "üü…");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["n1".to_owned(), "7".to_owned()], vec!["n10".to_owned(), "1,234".to_owned()]];
        assert_eq!(table(&["NODE", ">KEYS"], &rows), "NODE   KEYS\nn1        7\nn10   1,234");
    }
}
