//! What a request says outside of its body: the key in its path, the parameters of its query, conditions in its headers.
//!
//! Strict on purpose: what is not understood is refused by name, never passed over. A misspelt `w` that were ignored
//! would weaken a write without a word.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, Method, Uri, header};

use super::answer::{CONTEXT, Refused, WRITE_ID, bad, token_of};
use crate::net::message::{Condition, Context, Durability, Quorum, Resolve};
use crate::node::Node;
use crate::types::{Key, TraceId, WriteId};

/// Percent-decodes; `plus` stands for a space in queries.
pub(super) fn decoded(text: &str, plus: bool) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        match first {
            b'%' => {
                let digit = |at: usize| rest.get(at).and_then(|digit| char::from(*digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                    let shown: String =
                        std::iter::once('%').chain(rest.iter().take(2).map(|b| char::from(*b))).collect();
                    return Err(format!("{shown:?} is no percent-encoded byte: write % itself as %25"));
                };
                bytes.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
                rest = &rest[2..];
            }
            b'+' if plus => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    Ok(bytes)
}

/// The key in a path `/kv/{key}`: any bytes, percent-encoded.
pub(super) fn key_of(uri: &Uri) -> Result<Key, Refused> {
    key_behind("/kv/", uri)
}

/// The key behind the beginning of a path.
pub(super) fn key_behind(prefix: &str, uri: &Uri) -> Result<Key, Refused> {
    let path = uri.path().strip_prefix(prefix).unwrap_or_default();
    let bytes = decoded(path, false).map_err(|message| bad(format!("the key: {message}")))?;
    Key::new(bytes).map_err(|error| super::answer::Refused::from(key_error(&error)))
}

/// A key that is none.
pub(super) fn key_error(error: &crate::types::KeyError) -> crate::net::message::Refusal {
    use crate::net::message::{Refusal, RefusalCode};
    let code = match error {
        crate::types::KeyError::Empty => RefusalCode::BadRequest,
        crate::types::KeyError::TooLong { .. } => RefusalCode::TooLarge,
    };
    Refusal::new(code, error.to_string())
}

/// The parameters of a query.
pub(super) struct Params(Vec<(String, Vec<u8>)>);

impl Params {
    /// Those of a request to `path`, which takes the `known` ones.
    pub(super) fn of(uri: &Uri, path: &str, known: &[&str]) -> Result<Params, Refused> {
        let mut params: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text| decoded(text, true).map_err(|message| bad(format!("the query: {message}")));
            let name = String::from_utf8_lossy(&decode(name)?).into_owned();
            if !known.contains(&name.as_str()) {
                let takes = if known.is_empty() {
                    "it takes none".to_owned()
                } else {
                    format!("it takes {}", known.join(", "))
                };
                return Err(bad(format!("`{name}` is no parameter of {path}: {takes}")));
            }
            if params.iter().any(|(other, _)| *other == name) {
                return Err(bad(format!("`{name}` is given twice: give it once")));
            }
            params.push((name, decode(value)?));
        }
        Ok(Params(params))
    }

    /// The bytes of a parameter.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_slice())
    }

    /// The text of a parameter.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Refused> {
        let text = self.bytes(name).map(std::str::from_utf8).transpose();
        text.map_err(|_| bad(format!("{name} is not UTF-8")))
    }

    /// A whole number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refused> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| bad(format!("{name}={text}: it is a whole number in a sane range")))
    }

    /// `true` or `false`; the name alone is true, its absence false.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refused> {
        match self.text(name)? {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(text) => Err(bad(format!("{name}={text}: it is true or false"))),
        }
    }

    /// A duration.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, Refused> {
        self.text(name)?.map(|text| duration(name, text)).transpose()
    }

    /// `r`, `w` and `strict`.
    pub(super) fn quorum(&self, node: &Node) -> Result<Quorum, Refused> {
        let n = node.descriptor().replicas;
        let size = |name: &str| -> Result<Option<u8>, Refused> {
            let Some(text) = self.text(name)? else { return Ok(None) };
            let size = text.parse().ok().filter(|size| (1..=n).contains(&u32::from(*size)));
            let wrong =
                || bad(format!("{name}={text}: this cluster keeps {n} replicas, so {name} is 1 to {n}"));
            size.ok_or_else(wrong).map(Some)
        };
        Ok(Quorum { r: size("r")?, w: size("w")?, strict: self.flag("strict")? })
    }

    /// `resolve`.
    pub(super) fn resolve(&self) -> Result<Resolve, Refused> {
        match self.text("resolve")? {
            None | Some("siblings") => Ok(Resolve::Siblings),
            Some("lww") => Ok(Resolve::Lww),
            Some(text) => Err(bad(format!(
                "resolve={text}: it is siblings (all of them) or lww (the last write alone)"
            ))),
        }
    }

    /// `durability`.
    pub(super) fn durability(&self) -> Result<Option<Durability>, Refused> {
        match self.text("durability")? {
            None => Ok(None),
            Some("sync") => Ok(Some(Durability::Sync)),
            Some(text) => {
                let interval = text.strip_prefix("interval:").ok_or_else(|| {
                    bad(format!(
                        "durability={text}: it is sync, or interval: with a duration, as interval:100ms"
                    ))
                })?;
                let millis = duration("durability=interval", interval)?.as_millis();
                // What is too long is refused by the node, with its bounds.
                Ok(Some(Durability::Interval(u32::try_from(millis).unwrap_or(u32::MAX))))
            }
        }
    }
}

/// A duration: a whole number with its unit.
pub(super) fn duration(name: &str, text: &str) -> Result<Duration, Refused> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms: Option<u64> = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let millis = unit_ms.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit));
    let wrong =
        || bad(format!("{name}={text}: write a whole number with its unit, as 500ms, 30s, 10m, 12h or 7d"));
    millis.map(Duration::from_millis).ok_or_else(wrong)
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A header that may stand in a request once, as text.
fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refused> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(bad(format!("the header {name} is given twice: give it once")));
    }
    let text = value.to_str().map_err(|_| bad(format!("the header {name} is not printable ASCII")))?;
    Ok(Some(text.trim()))
}

/// A body's type, as the client named it.
pub(super) fn content_type(headers: &HeaderMap) -> Result<Option<&str>, Refused> {
    once(headers, &header::CONTENT_TYPE)
}

/// What a write overwrites and under which condition it is made, by its headers; `otherwise` is what it overwrites
/// when they say nothing.
pub(super) fn precondition(
    headers: &HeaderMap,
    method: &Method,
    otherwise: Context,
) -> Result<(Context, Condition), Refused> {
    let context = once(headers, &CONTEXT)?;
    let if_match = once(headers, &header::IF_MATCH)?;
    let if_none_match = once(headers, &header::IF_NONE_MATCH)?;
    match (context, if_match, if_none_match) {
        (None, None, None) => Ok((otherwise, Condition::None)),
        (Some(token), None, None) => Ok((Context::Token(token_of(token)?), Condition::None)),
        (None, Some(tag), None) => {
            let tag = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
            if tag == "*" || tag.starts_with("W/") || tag.contains(',') {
                return Err(bad(
                    "If-Match takes one entity tag of a read, or the context of one, and nothing else",
                ));
            }
            Ok((Context::Nothing, Condition::Match(token_of(tag)?)))
        }
        (None, None, Some("*")) if method == Method::PUT => Ok((Context::Nothing, Condition::Absent)),
        (None, None, Some(_)) => Err(bad(
            "If-None-Match takes * on a PUT, which is then made only where there is no value, and nothing else",
        )),
        _ => Err(bad(
            "Ringdove-Context, If-Match and If-None-Match each say what the write goes by: give one of them",
        )),
    }
}

/// The id of a write: the client's own, so that it may send the write again, or a new one.
pub(super) fn write_id(headers: &HeaderMap, node: &Node) -> Result<WriteId, Refused> {
    once(headers, &WRITE_ID)?.map_or_else(|| Ok(node.write_id()), write_id_of)
}

/// A write's id in text.
pub(super) fn write_id_of(text: &str) -> Result<WriteId, Refused> {
    let is_hex = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let id = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
    id.map(WriteId).ok_or_else(|| bad("the write id is 32 hexadecimal digits, at random for each write"))
}

/// The trace id of a W3C `traceparent`; none when there is none. One that is malformed is passed over, as that
/// specification demands.
pub(super) fn trace_id(headers: &HeaderMap) -> TraceId {
    let text = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let id = text.and_then(|text| text.split('-').nth(1)).filter(|id| id.len() == 32 && id.is_ascii());
    let id = id.and_then(|id| u128::from_str_radix(id, 16).ok());
    id.map_or_else(TraceId::default, |id| TraceId(id.to_be_bytes()))
}

/// Whether an answer in JSON is asked for: by name, a wildcard is no wish.
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|list| list.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_json = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/json"));
        let refused = |part: &str| {
            part.split_once('=').is_some_and(|(name, weight)| {
                name.eq_ignore_ascii_case("q") && weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0)
            })
        };
        is_json && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_gives_any_byte_and_refuses_half_ones() {
        assert_eq!(decoded("a%2Fb%00%ff+", false), Ok(b"a/b\x00\xff+".to_vec()));
        assert_eq!(decoded("a+b%2B", true), Ok(b"a b+".to_vec()));
        for wrong in ["%", "%2", "a%g0", "%%41", "%+1"] {
            assert!(decoded(wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_duration_is_a_whole_number_with_its_unit() {
        let millis = |text: &str| duration("ttl", text).ok().map(|duration| duration.as_millis());
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis("30s"), Some(30_000));
        assert_eq!(millis("10m"), Some(600_000));
        assert_eq!(millis("12h"), Some(43_200_000));
        assert_eq!(millis("7d"), Some(604_800_000));
        for wrong in
            ["", "10", "m", "1.5s", "-1s", "1 s", "1w", "18446744073709551615d", "99999999999999999999s"]
        {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn json_is_sent_to_who_names_it() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_json(&headers)
        };
        assert!(wants("application/json"));
        assert!(wants("text/html, Application/JSON;q=0.5"));
        assert!(!wants("*/*"));
        assert!(!wants("application/json;q=0"));
        assert!(!wants("application/jsonx"));
    }
}
