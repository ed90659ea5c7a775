//! Answers: errors with their codes and words, and the headers that answers carry.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::net::message::{Refusal, RefusalCode, Replicas};

/// The context token, both ways.
pub(super) const CONTEXT: HeaderName = HeaderName::from_static("ringdove-context");
/// The operation's id: of a write, both ways; of a read, the value's.
pub(super) const WRITE_ID: HeaderName = HeaderName::from_static("ringdove-write-id");
/// Live values; more than one are siblings.
pub(super) const SIBLINGS: HeaderName = HeaderName::from_static("ringdove-siblings");
/// Siblings that are not shown.
pub(super) const HIDDEN: HeaderName = HeaderName::from_static("ringdove-hidden");
/// When the value was written.
pub(super) const WRITTEN_AT: HeaderName = HeaderName::from_static("ringdove-written-at");
/// When it expires.
pub(super) const EXPIRES_AT: HeaderName = HeaderName::from_static("ringdove-expires-at");
/// Bytes of the value.
pub(super) const SIZE: HeaderName = HeaderName::from_static("ringdove-size");
/// How often the key was asked for on this node.
pub(super) const HITS: HeaderName = HeaderName::from_static("ringdove-hits");
/// When last.
pub(super) const LAST_ACCESS: HeaderName = HeaderName::from_static("ringdove-last-access");
const REPLICAS: HeaderName = HeaderName::from_static("ringdove-replicas");
const ERROR: HeaderName = HeaderName::from_static("ringdove-error");

/// What ends a request early: nothing was applied.
pub(super) struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<u32>,
}

impl Refused {
    /// The same, with words before its own.
    pub(super) fn prefixed(self, words: &str) -> Refused {
        Refused { message: format!("{words}{}", self.message), ..self }
    }

    /// As JSON: of a request, or of one operation of a batch.
    pub(super) fn json(&self) -> Value {
        let mut object = json!({ "error": self.code, "message": self.message, "applied": "no" });
        if let Some(seconds) = self.retry_after {
            object["retry_after"] = json!(seconds);
        }
        object
    }

    /// Its status.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.json());
        name_error(&mut response, self.code);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        let (status, code) = status_of(refusal.code);
        // Whole seconds, at least one; none of what does not pass by itself.
        let passes = status == StatusCode::SERVICE_UNAVAILABLE;
        let retry_after = passes.then(|| refusal.retry_after_ms.unwrap_or(0).div_ceil(1000).max(1));
        Refused { status, code, message: refusal.message, retry_after }
    }
}

/// The request must be changed.
pub(super) fn bad(message: impl Into<String>) -> Refused {
    Refusal::new(RefusalCode::BadRequest, message).into()
}

/// An error that is no refusal of the node. Nothing was applied.
pub(super) fn error(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refused {
    Refused { status, code, message: message.into(), retry_after: None }
}

/// Also in a header: the answer to a HEAD has no body.
pub(super) fn name_error(response: &mut Response, code: &str) {
    response.headers_mut().insert(ERROR, header_text(code));
}

/// The status that a refusal has, and its name.
pub(super) fn status_of(code: RefusalCode) -> (StatusCode, &'static str) {
    use RefusalCode as Code;
    match code {
        Code::BadRequest => (StatusCode::BAD_REQUEST, "bad-request"),
        Code::BadToken => (StatusCode::BAD_REQUEST, "bad-context"),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        Code::TooManySiblings => (StatusCode::CONFLICT, "too-many-siblings"),
        Code::TooFewReplicas => (StatusCode::SERVICE_UNAVAILABLE, "too-few-replicas"),
        Code::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk-full"),
        Code::UnknownOperation => (StatusCode::NOT_IMPLEMENTED, "unknown-operation"),
        Code::Corrupt => (StatusCode::SERVICE_UNAVAILABLE, "corrupt"),
        Code::Conflict => (StatusCode::PRECONDITION_FAILED, "conflict"),
        Code::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
        Code::Unavailable
        | Code::WrongLayout
        | Code::WrongCluster
        | Code::HintsFull
        | Code::UnsupportedVersion
        | Code::UnsupportedAuth => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    }
}

/// A write of which it is not known whether W replicas hold it, as JSON. `n` is the cluster's N.
pub(super) fn unknown_json(have: u32, need: u32, reason: &str, n: u32) -> Map<String, Value> {
    // Where another node coordinated it, this one may not have been told how many it needs.
    let need = if need == 0 { n / 2 + 1 } else { need };
    let message = format!(
        "the write may have happened, or may still: {have} of {need} replicas are known to hold it ({reason}). Read \
         the key, or send the write again with this write id: readers then see it once"
    );
    let fields = [
        ("error", json!("unknown-outcome")),
        ("message", json!(message)),
        ("applied", json!("unknown")),
        ("acks", json!(have)),
        ("needed", json!(need)),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// An answer in JSON that is small. It ends its line, for who reads it on a terminal.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Response {
    let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    (status, [json], format!("{body}\n")).into_response()
}

/// A header's value; empty when the text cannot be one.
pub(super) fn header_text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// A token as it goes over HTTP.
pub(super) fn token_text(token: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(token)
}

/// A token that came over HTTP.
pub(super) fn token_of(text: &str) -> Result<bytes::Bytes, Refused> {
    let token = URL_SAFE_NO_PAD.decode(text).map_err(|_| {
        let message = "the context is not base64url: send it back exactly as it was read";
        Refusal::new(RefusalCode::BadToken, message)
    })?;
    Ok(token.into())
}

/// Puts the context into an answer's headers; as entity tag too, for `If-Match`.
pub(super) fn insert_context(headers: &mut HeaderMap, token: &[u8]) {
    let text = token_text(token);
    headers.insert(header::ETAG, header_text(&format!("\"{text}\"")));
    headers.insert(CONTEXT, header_text(&text));
}

/// Puts who answered into an answer's headers.
pub(super) fn insert_replicas(headers: &mut HeaderMap, replicas: &Replicas) {
    let (primaries, fallbacks) = (replicas.primaries.len(), replicas.fallbacks.len());
    let text = format!("asked={} primaries={primaries} fallbacks={fallbacks}", replicas.asked);
    headers.insert(REPLICAS, header_text(&text));
}
