//! The JSON shapes: a value, a key with its values, times; and what a write may say in JSON.
//!
//! ```text
//!   one value       {"key": "dove", "context": "…", "value": "grey", "size": 4, "written_at": "…", "write_id": "…", …}
//!   several values  {"key": "dove", "context": "…", "siblings": [{"value": …}, {"value": …}]}
//!   none            {"key": "dove", "context": "…"}
//! ```
//! Bytes that are UTF-8 stand as text, others under the same name with `_base64` behind it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::answer::{Refused, bad, token_text};
use super::params::{duration, millis};
use crate::dynamo::version::Meta;
use crate::dynamo::version::record::META_BYTES_MAX;
use crate::net::message::{BATCH_ITEMS_MAX, Expiry, Version};
use crate::types::Wall;

/// A moment in UTC, as RFC 3339 with milliseconds.
pub(super) fn moment(at: Wall) -> String {
    let (days, ms) = (at.0 / 86_400_000, at.0 % 86_400_000);
    let (year, month, day) = date(days);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, milli) = (ms / 1000 % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Year, month and day so many days after 1970-01-01, by the Gregorian calendar. Eras of 400 years have 146,097 days;
/// years are taken to begin in March, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + later, month, day)
}

/// Enters bytes under a name.
pub(super) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), json!(text)),
        Err(_) => object.insert(format!("{name}_base64"), json!(STANDARD.encode(bytes))),
    };
}

/// One value. `keys_only`: what is known of it without its bytes.
pub(super) fn version_json(version: &Version, keys_only: bool) -> Map<String, Value> {
    let mut object = Map::new();
    if !keys_only {
        insert_bytes(&mut object, "value", &version.value);
        object.insert("size".to_owned(), json!(version.value.len()));
    }
    if let Some(meta) = &version.meta {
        if let Some(content_type) = &meta.content_type {
            object.insert("content_type".to_owned(), json!(content_type));
        }
        if !meta.pairs.is_empty() {
            object.insert("meta".to_owned(), json!(meta.pairs));
        }
    }
    object.insert("written_at".to_owned(), json!(moment(version.written_at)));
    if let Some(expires_at) = version.expires_at {
        object.insert("expires_at".to_owned(), json!(moment(expires_at)));
    }
    object.insert("write_id".to_owned(), json!(version.write_id.to_string()));
    object
}

/// A key with its live values and the context that covers them.
pub(super) fn record_json(
    key: &[u8],
    values: &[Version],
    context: &[u8],
    keys_only: bool,
) -> Map<String, Value> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key);
    if !context.is_empty() {
        object.insert("context".to_owned(), json!(token_text(context)));
    }
    match values {
        [] => {}
        [version] => object.extend(version_json(version, keys_only)),
        siblings => {
            let siblings = siblings.iter().map(|version| Value::Object(version_json(version, keys_only)));
            object.insert("siblings".to_owned(), siblings.collect());
        }
    }
    object
}

/// A value as a client writes it in JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    value: Option<String>,
    value_base64: Option<String>,
    ttl: Option<String>,
    content_type: Option<String>,
    #[serde(default)]
    meta: Pairs,
}

/// What a write stores.
pub(super) struct Stored {
    pub(super) value: Bytes,
    pub(super) meta: Option<Box<Meta>>,
    pub(super) expiry: Option<Expiry>,
}

impl Written {
    /// Reads a body.
    pub(super) fn parse(body: &[u8]) -> Result<Written, Refused> {
        serde_json::from_slice(body).map_err(|error| {
            bad(format!(
                "the JSON body: {error}. It is an object with value (text) or value_base64, and maybe ttl, content_type \
                 and meta; to store JSON itself, send it under another Content-Type, or as the text of value"
            ))
        })
    }

    pub(super) fn of(
        value: Option<String>,
        value_base64: Option<String>,
        ttl: Option<String>,
        content_type: Option<String>,
        meta: Pairs,
    ) -> Written {
        Written { value, value_base64, ttl, content_type, meta }
    }

    /// What it asks to be stored. The type of what is not said is text for text.
    pub(super) fn stored(self) -> Result<Stored, Refused> {
        let (value, natural) = match (self.value, self.value_base64) {
            (Some(text), None) => (Bytes::from(text), "text/plain; charset=utf-8"),
            (None, Some(text)) => {
                let bytes = STANDARD.decode(text.as_bytes());
                let bytes = bytes.map_err(|error| bad(format!("value_base64 is not base64: {error}")))?;
                (Bytes::from(bytes), "application/octet-stream")
            }
            (None, None) => return Err(bad("there is neither value nor value_base64: give one of them")),
            (Some(_), Some(_)) => return Err(bad("there are value and value_base64: give one of them")),
        };
        let content_type = self.content_type.unwrap_or_else(|| natural.to_owned());
        let meta = Meta { content_type: Some(content_type), pairs: self.meta.0 };
        Ok(Stored { value, meta: Some(Box::new(meta)), expiry: self.ttl.as_deref().map(ttl).transpose()? })
    }
}

/// A time to live.
pub(super) fn ttl(text: &str) -> Result<Expiry, Refused> {
    Ok(Expiry::After(millis(duration("ttl", text)?)))
}

/// Names and values of a client's own, bounded while they are read.
#[derive(Debug, Default)]
pub(super) struct Pairs(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let (mut pairs, mut bytes) = (BTreeMap::new(), 0);
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    bytes += name.len() + value.len();
                    if bytes > META_BYTES_MAX {
                        let message = format!("meta has more than {META_BYTES_MAX} bytes");
                        return Err(A::Error::custom(message));
                    }
                    pairs.insert(name, value);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

/// The items of a batch. Those beyond the most that a batch may have are counted and not kept.
#[derive(Debug)]
pub(super) struct Items<T> {
    pub(super) kept: Vec<T>,
    pub(super) count: usize,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Items<T>, D::Error> {
        struct ItemsVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ItemsVisitor<T> {
            type Value = Items<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of operations")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Items<T>, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < BATCH_ITEMS_MAX {
                    match items.next_element()? {
                        Some(item) => kept.push(item),
                        None => return Ok(Items { count: kept.len(), kept }),
                    }
                }
                let mut count = kept.len();
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Items { kept, count })
            }
        }
        deserializer.deserialize_seq(ItemsVisitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_in_utc() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_007, "2024-12-31T23:59:59.007Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(moment(Wall(ms)), text);
        }
        assert!(moment(Wall::MAX).ends_with('Z'), "the latest moment has a name too");
    }

    #[test]
    fn what_is_not_text_stands_as_base64() {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", "dové".as_bytes());
        insert_bytes(&mut object, "value", b"\xff\x00");
        assert_eq!(Value::Object(object), json!({"key": "dové", "value_base64": "/wA="}));
    }

    #[test]
    fn items_beyond_the_limit_are_counted_and_not_kept() {
        let text = format!("[{}1]", "1,".repeat(BATCH_ITEMS_MAX + 4));
        let items: Items<u8> = serde_json::from_str(&text).unwrap();
        assert_eq!((items.kept.len(), items.count), (BATCH_ITEMS_MAX, BATCH_ITEMS_MAX + 5));
        let items: Items<u8> = serde_json::from_str("[1,2]").unwrap();
        assert_eq!((items.kept, items.count), (vec![1, 2], 2));
    }

    #[test]
    fn meta_is_bounded_while_it_is_read() {
        let long = format!(r#"{{"a": "{}"}}"#, "x".repeat(META_BYTES_MAX));
        assert!(serde_json::from_str::<Pairs>(&long).is_err());
        assert_eq!(serde_json::from_str::<Pairs>(r#"{"a": "b"}"#).unwrap().0.len(), 1);
        assert!(serde_json::from_str::<Pairs>(r#"{"a": 1}"#).is_err());
    }
}
