//! What the fuzz targets do with what a client may send over HTTP, as far as it is read here and not by hyper. Not part of
//! the library's interface: `fuzz/` and `tests/fuzzing` run the same bodies.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::answer::{CONTEXT, WRITE_ID, token_of, token_text};
use super::batch::{Batch, Kind};
use super::json::Written;
use super::params::{
    Params, content_type, decoded, duration, key_of, precondition, trace_id, wants_json, write_id_of,
};
use super::scan::{self, scan_of};
use crate::net::message::{BATCH_ITEMS_MAX, Condition, Context, Expiry, Quorum};
use crate::types::{TraceId, WriteId};

/// The JSON body of a PUT. Whether it says what is to be stored.
///
/// # Panics
/// When what was read does not read back as it is written.
pub fn value(input: &[u8]) -> bool {
    let Some(stored) = Written::parse(input).ok().and_then(|written| written.stored().ok()) else {
        return false;
    };
    let meta = stored.meta.as_ref().expect("what is stored has a type");
    let mut again = json!({
        "value_base64": STANDARD.encode(&stored.value),
        "content_type": meta.content_type,
        "meta": meta.pairs,
    });
    if let Some(Expiry::After(ms)) = stored.expiry {
        again["ttl"] = json!(format!("{ms}ms"));
    }
    let again = serde_json::to_vec(&again).expect("it has a JSON form");
    let again = Written::parse(&again).ok().and_then(|written| written.stored().ok());
    let again = again.expect("what was read can be said");
    assert_eq!((&again.value, &again.meta, again.expiry), (&stored.value, &stored.meta, stored.expiry));
    true
}

/// The body of a batch. How many of its operations could be carried out.
///
/// # Panics
/// When more is kept than a batch may have.
pub fn batch(input: &[u8]) -> usize {
    let Ok(Batch { operations }) = serde_json::from_slice::<Batch>(input) else { return 0 };
    assert!(operations.kept.len() <= BATCH_ITEMS_MAX.min(operations.count));
    let sound = operations.kept.into_iter().filter_map(|mut operation| {
        let is_stray = operation.stray().is_some();
        let fits = match operation.op {
            Kind::Get => operation.key().is_ok(),
            _ => operation.put(WriteId(1), Quorum::default(), None).is_ok(),
        };
        (fits && !is_stray).then_some(())
    });
    sound.count()
}

/// A path with its query. Whether it is one.
///
/// # Panics
/// When bytes do not survive their percent-encoding.
pub fn query(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let encoded: String = input.iter().map(|byte| format!("%{byte:02X}")).collect();
    assert!(decoded(&encoded, true).as_deref() == Ok(input), "any bytes can be said");
    let _ = (duration("ttl", text).is_ok(), write_id_of(text).is_ok(), token_of(text).is_ok());
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let key = key_of(&uri);
    if let Ok(key) = &key {
        let path: String = key.as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
        let again = format!("/kv/{path}").parse::<Uri>().ok().and_then(|uri| key_of(&uri).ok());
        // A path that is too long for hyper was none of its own either.
        assert!(again.is_none_or(|again| again == *key));
    }
    let Ok(params) = Params::of(&uri, "GET /scan", scan::PARAMS) else { return key.is_ok() };
    let options =
        params.resolve().is_ok() && params.durability().is_ok() && params.duration("timeout").is_ok();
    key.is_ok() || (options && scan_of(&params).is_ok())
}

/// Lines of headers: the first byte of each says which one, the rest is its value. How many of those that are read say
/// something.
///
/// # Panics
/// When what was read does not read back as it is written.
pub fn headers(input: &[u8]) -> usize {
    let names: [HeaderName; 7] = [
        CONTEXT,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        HeaderName::from_static("traceparent"),
        header::ACCEPT,
        header::CONTENT_TYPE,
        WRITE_ID,
    ];
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(32) {
        let Some((which, value)) = line.split_first() else { continue };
        // What cannot be a value hyper does not let through.
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        headers.append(names[usize::from(*which) % names.len()].clone(), value);
    }
    let mut said =
        usize::from(wants_json(&headers)) + usize::from(matches!(content_type(&headers), Ok(Some(_))));
    let trace = trace_id(&headers);
    if trace != TraceId::default() {
        let again =
            HeaderValue::from_str(&format!("00-{trace:?}-00f067aa0ba902b7-01")).expect("it is plain text");
        assert_eq!(trace_id(&[(names[3].clone(), again)].into_iter().collect()), trace);
        said += 1;
    }
    for method in [Method::PUT, Method::DELETE] {
        let Ok((context, condition)) = precondition(&headers, &method, Context::Current) else { continue };
        let written = match (&context, &condition) {
            (Context::Token(token), Condition::None) => Some((CONTEXT, token_text(token))),
            (Context::Nothing, Condition::Match(token)) => {
                Some((header::IF_MATCH, format!("\"{}\"", token_text(token))))
            }
            (Context::Nothing, Condition::Absent) => Some((header::IF_NONE_MATCH, "*".to_owned())),
            (Context::Current, Condition::None) => None,
            read => panic!("no header says {read:?}"),
        };
        let Some((name, text)) = written else { continue };
        let again = HeaderValue::from_str(&text).expect("it is plain text");
        let again = precondition(&[(name, again)].into_iter().collect(), &method, Context::Current).ok();
        assert!(again == Some((context, condition)), "{text:?} reads back as {again:?}");
        said += 1;
    }
    said
}
