//! `/kv/{key}`: reads, writes and deletions of one key.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{
    EXPIRES_AT, HIDDEN, HITS, LAST_ACCESS, Refused, SIBLINGS, SIZE, WRITE_ID, WRITTEN_AT, bad, header_text,
    insert_context, insert_replicas, json_response, name_error, unknown_json,
};
use super::json::{Stored, Written, moment, record_json, ttl, version_json};
use super::params::{Params, content_type, key_of, precondition, trace_id, wants_json, write_id};
use super::{App, Gateway};
use crate::dynamo::version::Meta;
use crate::net::message::{Context, Expiry, Get, GetReply, HiddenWhy, Put, PutOutcome, PutReply, Version};
use crate::node::metrics::Door;
use crate::types::{Key, WriteId};

const READ_PARAMS: &[&str] = &["r", "strict", "resolve", "timeout"];
const WRITE_PARAMS: &[&str] = &["r", "w", "strict", "ttl", "timeout", "durability", "context"];
const DELETE_PARAMS: &[&str] = &["r", "w", "strict", "timeout", "durability"];

/// A key with a bare slash in it.
pub(super) async fn slash() -> Refused {
    bad("a slash within a key is written %2F")
}

/// GET and HEAD.
pub(super) async fn read(
    State(gateway): App,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let node = &gateway.node;
    let key = key_of(&uri)?;
    let params = Params::of(&uri, "GET /kv/{key}", READ_PARAMS)?;
    let get = Get { quorum: params.quorum(node)?, resolve: params.resolve()?, ..Get::new(key.clone()) };
    let request = node.request(Door::Rest, params.duration("timeout")?, trace_id(&headers))?;
    let is_head = method == Method::HEAD;
    let namespace = get.namespace;
    let reply = if is_head { node.look(get, request).await? } else { node.get(get, request).await? };

    let as_json = wants_json(&headers);
    let mut response = match reply.values.as_slice() {
        [] => missing(&reply),
        [version] if !as_json => {
            let content_type = version.meta.as_ref().and_then(|meta| meta.content_type.as_deref());
            let content_type = content_type.and_then(|text| HeaderValue::from_str(text).ok());
            let content_type = content_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
            let body = gateway.hold(version.value.clone())?;
            (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        values => {
            let status = if values.len() == 1 { StatusCode::OK } else { StatusCode::MULTIPLE_CHOICES };
            let mut object = record_json(key.as_bytes(), values, &reply.context, false);
            if !reply.hidden.is_empty() {
                object.insert("hidden".to_owned(), hidden_json(&reply));
            }
            gateway.large_json(status, &Value::Object(object))?
        }
    };
    let headers = response.headers_mut();
    insert_context(headers, &reply.context);
    insert_replicas(headers, &reply.replicas);
    describe(headers, &reply);
    // A type that a client chose must not be guessed away by a browser.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    if let Some(access) = node.access(namespace, &key).filter(|_| is_head) {
        headers.insert(HITS, access.hits.into());
        headers.insert(LAST_ACCESS, header_text(&moment(access.last)));
    }
    Ok(response)
}

fn missing(reply: &GetReply) -> Response {
    let why = match (reply.tombstones, reply.expired) {
        (0, 0) => "the key has no value",
        (0, _) => "the key has no value: it has expired",
        (_, 0) => "the key has no value: it was deleted",
        _ => "the key has no value: it was deleted and has expired",
    };
    let body = json!({ "error": "not-found", "message": why, "applied": "no" });
    let mut response = json_response(StatusCode::NOT_FOUND, &body);
    name_error(&mut response, "not-found");
    response
}

fn hidden_json(reply: &GetReply) -> Value {
    let why = |why| match why {
        HiddenWhy::Tombstone => "deleted",
        HiddenWhy::Expired => "expired",
        HiddenWhy::Older => "older",
        HiddenWhy::SameWrite => "same-write",
    };
    let hidden = reply.hidden.iter();
    hidden.map(|hidden| json!({ "write_id": hidden.write_id.to_string(), "why": why(hidden.why) })).collect()
}

/// What is known of the values, in headers. Of several: the newest write, the earliest end, all bytes together.
fn describe(headers: &mut HeaderMap, reply: &GetReply) {
    let values = &reply.values;
    headers.insert(SIBLINGS, values.len().into());
    let hidden = reply.hidden.iter().filter(|hidden| hidden.why == HiddenWhy::Older).count();
    if hidden > 0 {
        headers.insert(HIDDEN, hidden.into());
    }
    let Some(newest) = values.iter().max_by_key(|version| version.written_at) else { return };
    headers.insert(WRITTEN_AT, header_text(&moment(newest.written_at)));
    if let Some(first) = values.iter().filter_map(|version| version.expires_at).min() {
        headers.insert(EXPIRES_AT, header_text(&moment(first)));
    }
    headers.insert(SIZE, values.iter().map(|version| version.value.len()).sum::<usize>().into());
    if let [version] = values.as_slice() {
        headers.insert(WRITE_ID, header_text(&version.write_id.to_string()));
    }
}

/// PUT.
pub(super) async fn write(
    State(gateway): App,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let mut body = Some(body);
    let answer = write_body(&gateway, &uri, &headers, &mut body).await;
    gateway.answered(answer, body, &headers).await
}

async fn write_body(
    gateway: &Gateway,
    uri: &Uri,
    headers: &HeaderMap,
    body: &mut Option<Body>,
) -> Result<Response, Refused> {
    // All that can be judged without the body is judged before it.
    let node = &gateway.node;
    let key = key_of(uri)?;
    let params = Params::of(uri, "PUT /kv/{key}", WRITE_PARAMS)?;
    let otherwise = match params.text("context")? {
        None | Some("current") => Context::Current,
        Some("none") => Context::Nothing,
        Some(text) => {
            return Err(bad(format!(
                "context={text}: it is current (overwrite what the node holds) or none (become a sibling); a token goes \
                 into the header Ringdove-Context"
            )));
        }
    };
    let (context, condition) = precondition(headers, &Method::PUT, otherwise.clone())?;
    if params.text("context")?.is_some() && context != otherwise {
        return Err(bad("a header says what the write goes by, and context= too: give one of them"));
    }
    let content_type = content_type(headers)?;
    let is_json = content_type.is_some_and(|text| {
        text.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("application/json"))
    });
    let query_ttl = params.text("ttl")?.map(ttl).transpose()?;
    let put = Put {
        context,
        condition,
        quorum: params.quorum(node)?,
        durability: params.durability()?,
        ..Put::new(key, write_id(headers, node)?, Bytes::new())
    };
    let timeout = params.duration("timeout")?;

    let value_max = node.config().value_len_max;
    let (limit, what) =
        if is_json { (json_limit(value_max), "the JSON body") } else { (value_max, "the value") };
    let held = gateway.read_body(body, headers, limit, what).await?;
    let Stored { value, meta, expiry } = if is_json {
        Written::parse(&held.bytes)?.stored()?
    } else {
        let meta = content_type.map(|content_type| {
            Box::new(Meta { content_type: Some(content_type.to_owned()), ..Meta::default() })
        });
        Stored { value: held.bytes.clone(), meta, expiry: None }
    };
    let expiry = match (expiry, query_ttl) {
        (Some(_), Some(_)) => return Err(bad("ttl stands in the query and in the body: give it once")),
        (one, other) => one.or(other).unwrap_or(Expiry::Never),
    };
    // A request's time runs from here: how long a body took is its sender's matter, within limits of its own.
    let request = node.request(Door::Rest, timeout, trace_id(headers))?;
    let (key, write_id) = (put.key.clone(), put.write_id);
    let reply = node.put(Put { value: Some(value), meta, expiry, ..put }, request).await?;
    // The bytes are the storage's and the network's by now, bounded there.
    drop(held);
    Ok(gateway.wrote(&key, write_id, &reply))
}

/// Most bytes of a body in JSON: base64 has four for three, and text may be escaped.
pub(super) fn json_limit(value_max: usize) -> usize {
    value_max.saturating_mul(2).saturating_add(64 * 1024)
}

/// DELETE.
pub(super) async fn remove(State(gateway): App, uri: Uri, headers: HeaderMap) -> Result<Response, Refused> {
    let node = &gateway.node;
    let key = key_of(&uri)?;
    let params = Params::of(&uri, "DELETE /kv/{key}", DELETE_PARAMS)?;
    let (context, condition) = precondition(&headers, &Method::DELETE, Context::Read)?;
    let put = Put {
        context,
        condition,
        quorum: params.quorum(node)?,
        durability: params.durability()?,
        ..Put::delete(key.clone(), write_id(&headers, node)?)
    };
    let write_id = put.write_id;
    let request = node.request(Door::Rest, params.duration("timeout")?, trace_id(&headers))?;
    let reply = node.put(put, request).await?;
    Ok(gateway.wrote(&key, write_id, &reply))
}

/// What became of a write, as status and JSON. Its context comes with every sibling that it covers, whatever the
/// outcome: a context alone would let its holder overwrite values that it never saw.
pub(super) fn outcome_json(reply: &PutReply, key: &Key, write_id: WriteId, n: u32) -> (StatusCode, Value) {
    let mut object = record_json(key.as_bytes(), &[], &reply.context, false);
    object.insert("write_id".to_owned(), json!(write_id.to_string()));
    if !reply.siblings.is_empty() {
        object.insert("siblings".to_owned(), siblings_json(&reply.siblings));
    }
    let status = match &reply.outcome {
        PutOutcome::Applied if reply.siblings.is_empty() => StatusCode::NO_CONTENT,
        PutOutcome::Applied => StatusCode::OK,
        PutOutcome::Unknown { have, need, reason } => {
            object.extend(unknown_json(*have, *need, reason, n));
            StatusCode::GATEWAY_TIMEOUT
        }
    };
    (status, Value::Object(object))
}

fn siblings_json(siblings: &[Version]) -> Value {
    siblings.iter().map(|version| Value::Object(version_json(version, false))).collect()
}

impl Gateway {
    /// The answer to a write. Never refuses: it has happened, or may have.
    fn wrote(&self, key: &Key, write_id: WriteId, reply: &PutReply) -> Response {
        let (status, object) = outcome_json(reply, key, write_id, self.node.descriptor().replicas);
        let mut response = match status {
            StatusCode::NO_CONTENT => status.into_response(),
            _ => json_response(status, &object),
        };
        if status == StatusCode::GATEWAY_TIMEOUT {
            name_error(&mut response, "unknown-outcome");
        }
        let headers = response.headers_mut();
        headers.insert(WRITE_ID, header_text(&write_id.to_string()));
        if !reply.context.is_empty() {
            insert_context(headers, &reply.context);
        }
        insert_replicas(headers, &reply.replicas);
        response
    }

    /// An answer in JSON that may be large. For reads.
    ///
    /// # Errors
    /// When too much is held.
    pub(super) fn large_json(&self, status: StatusCode, body: &Value) -> Result<Response, Refused> {
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = self.hold(Bytes::from(format!("{body}\n")))?;
        Ok((status, [json], body).into_response())
    }
}
