//! The REST gateway: `/kv/{key}` over HTTP.
//!
//! ```text
//!   GET    /kv/{key}?r=&strict=    200 the value, raw, with its type │ 300 all siblings, JSON │ 404
//!   PUT    /kv/{key}?w=&strict=    204 written │ 200 written, and siblings stand beside it, JSON
//!   DELETE /kv/{key}?r=&w=&strict= 204
//! ```
//! `x-ringdove-context` carries the context token: in every answer of a GET, and in a PUT or DELETE to say what
//! it overwrites. Without it a PUT overwrites what its coordinator holds, a DELETE what a read at R sees.
//! Errors are JSON `{"error": …, "message": …}`; an unknown outcome is 504 and says `"outcome": "unknown"`.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::json;

use crate::dynamo::version::Meta;
use crate::net::message::{Context, Get, Put, PutOutcome, Quorum, Refusal, RefusalCode, Replicas, Version};
use crate::node::metrics::Door;
use crate::node::{Node, Request};
use crate::types::{Key, TraceId};

const CONTEXT: HeaderName = HeaderName::from_static("x-ringdove-context");
const REPLICAS: HeaderName = HeaderName::from_static("x-ringdove-replicas");

/// Serves HTTP on `listener` until the node stops.
///
/// # Errors
/// When the listening socket is lost.
pub async fn serve_rest(node: Node, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    let stop = node.stopping();
    let limit = DefaultBodyLimit::max(node.config().value_len_max + 1);
    let routes = Router::new()
        .route("/kv/{key}", get(read).put(write).delete(remove))
        .fallback(async || error(StatusCode::NOT_FOUND, "not-found", "there is only /kv/{key} here"))
        .layer(limit)
        .with_state(node);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            stop.wait_for(|stop| stop.then_some(())).await;
        })
        .await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    r: Option<u8>,
    w: Option<u8>,
    #[serde(default)]
    strict: bool,
    timeout_ms: Option<u64>,
}

/// An answer that ends a request early. Boxed: it is large and rare.
struct Refused(Box<Response>);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, axum::Json(json!({ "error": code, "message": message }))).into_response()
}

fn refused(refusal: &Refusal) -> Refused {
    use RefusalCode as Code;
    let (status, code) = match refusal.code {
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
    };
    let mut response = error(status, code, &refusal.message);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Refused(Box::new(response))
}

/// What every operation needs: the key, the quorum, the time it has.
struct Asked {
    key: Key,
    quorum: Quorum,
    request: Request,
}

fn asked(
    node: &Node,
    key: String,
    options: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
) -> Result<Asked, Refused> {
    let bad = |message: String| refused(&Refusal::new(RefusalCode::BadRequest, message));
    let Query(options) = options.map_err(|rejection| bad(rejection.body_text()))?;
    let key = Key::new(key.into_bytes()).map_err(|error| bad(error.to_string()))?;
    let quorum = Quorum { r: options.r, w: options.w, strict: options.strict };
    let timeout = options.timeout_ms.map(Duration::from_millis);
    let request =
        node.request(Door::Rest, timeout, TraceId::default()).map_err(|refusal| refused(&refusal))?;
    Ok(Asked { key, quorum, request })
}

fn context_of(headers: &HeaderMap, otherwise: Context) -> Result<Context, Refused> {
    let Some(token) = headers.get(CONTEXT) else { return Ok(otherwise) };
    let token = URL_SAFE_NO_PAD.decode(token.as_bytes()).map_err(|_| {
        let message = "the context header is not base64url: send it back as it was read";
        refused(&Refusal::new(RefusalCode::BadToken, message))
    })?;
    Ok(Context::Token(token.into()))
}

fn header_text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

fn replicas_header(replicas: &Replicas) -> HeaderValue {
    let (primaries, fallbacks) = (replicas.primaries.len(), replicas.fallbacks.len());
    header_text(&format!("asked={} primaries={primaries} fallbacks={fallbacks}", replicas.asked))
}

fn version_json(version: &Version) -> serde_json::Value {
    let content_type = version.meta.as_ref().and_then(|meta| meta.content_type.as_deref());
    let mut value = json!({
        "write_id": version.write_id.to_string(),
        "written_at_ms": version.written_at.0,
        "content_type": content_type,
    });
    match std::str::from_utf8(&version.value) {
        Ok(text) => value["value"] = json!(text),
        Err(_) => value["value_base64"] = json!(STANDARD.encode(&version.value)),
    }
    value
}

async fn read(
    State(node): State<Node>,
    Path(key): Path<String>,
    options: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    let Asked { key, quorum, request } = asked(&node, key, options)?;
    let get = Get { quorum, ..Get::new(key) };
    let reply = node.get(get, request).await.map_err(|refusal| refused(&refusal))?;
    let mut response = match reply.values.as_slice() {
        [] => error(StatusCode::NOT_FOUND, "not-found", "the key has no value"),
        [version] => {
            let content_type = version.meta.as_ref().and_then(|meta| meta.content_type.clone());
            let content_type = content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
            let content_type = (header::CONTENT_TYPE, header_text(&content_type));
            (StatusCode::OK, [content_type], version.value.clone()).into_response()
        }
        siblings => {
            let siblings: Vec<_> = siblings.iter().map(version_json).collect();
            (StatusCode::MULTIPLE_CHOICES, axum::Json(json!({ "siblings": siblings }))).into_response()
        }
    };
    response.headers_mut().insert(CONTEXT, header_text(&URL_SAFE_NO_PAD.encode(&reply.context)));
    response.headers_mut().insert(REPLICAS, replicas_header(&reply.replicas));
    Ok(response)
}

async fn write(
    State(node): State<Node>,
    Path(key): Path<String>,
    options: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, Refused> {
    let asked = asked(&node, key, options)?;
    let value = body.map_err(|rejection| {
        let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            RefusalCode::TooLarge
        } else {
            RefusalCode::BadRequest
        };
        refused(&Refusal::new(code, rejection.body_text()))
    })?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|text| text.to_str().ok());
    let meta = content_type.map(|content_type| {
        Box::new(Meta { content_type: Some(content_type.to_owned()), ..Meta::default() })
    });
    let context = context_of(&headers, Context::Current)?;
    carry_out(&node, asked, Some(value), meta, context).await
}

async fn remove(
    State(node): State<Node>,
    Path(key): Path<String>,
    options: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let asked = asked(&node, key, options)?;
    let context = context_of(&headers, Context::Read)?;
    carry_out(&node, asked, None, None, context).await
}

async fn carry_out(
    node: &Node,
    asked: Asked,
    value: Option<Bytes>,
    meta: Option<Box<Meta>>,
    context: Context,
) -> Result<Response, Refused> {
    let Asked { key, quorum, request } = asked;
    let put = Put { value, meta, context, quorum, ..Put::new(key, node.write_id(), Bytes::new()) };
    let reply = node.put(put, request).await.map_err(|refusal| refused(&refusal))?;
    let mut response = match &reply.outcome {
        PutOutcome::Applied if reply.siblings.is_empty() => StatusCode::NO_CONTENT.into_response(),
        PutOutcome::Applied => {
            let siblings: Vec<_> = reply.siblings.iter().map(version_json).collect();
            (StatusCode::OK, axum::Json(json!({ "siblings": siblings }))).into_response()
        }
        PutOutcome::Unknown { have, need, reason } => {
            let message = format!("{have} of {need} replicas are known to have it: {reason}");
            let body = json!({ "error": "unknown-outcome", "outcome": "unknown", "message": message });
            (StatusCode::GATEWAY_TIMEOUT, axum::Json(body)).into_response()
        }
    };
    if !reply.context.is_empty() {
        response.headers_mut().insert(CONTEXT, header_text(&URL_SAFE_NO_PAD.encode(&reply.context)));
    }
    response.headers_mut().insert(REPLICAS, replicas_header(&reply.replicas));
    Ok(response)
}
