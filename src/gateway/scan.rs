//! `GET /scan`: the keys of a range with their values, page by page.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::App;
use super::answer::{Refused, bad};
use super::json::record_json;
use super::params::{Params, trace_id};
use crate::net::message::{Order, Refusal, RefusalCode, Scan};
use crate::node::metrics::Door;
use crate::types::Key;

pub(super) const PARAMS: &[&str] = &[
    "prefix",
    "start",
    "end",
    "reverse",
    "limit",
    "cursor",
    "partial",
    "keys_only",
    "r",
    "resolve",
    "timeout",
];

/// GET.
pub(super) async fn scan(State(gateway): App, uri: Uri, headers: HeaderMap) -> Result<Response, Refused> {
    let node = &gateway.node;
    let params = Params::of(&uri, "GET /scan", PARAMS)?;
    let scan = scan_of(&params)?;
    let r = params.quorum(node)?.r;
    let scan = Scan { r, resolve: params.resolve()?, ..scan };
    let (cursor, keys_only, partial) = (scan.after.clone(), scan.keys_only, scan.partial);
    let request = node.request(Door::Rest, params.duration("timeout")?, trace_id(&headers))?;
    let reply = node.scan(scan, request).await?;

    let missing: Vec<u32> = reply.missing.iter().map(|partition| partition.0).collect();
    if !missing.is_empty() && !partial && reply.items.is_empty() && reply.cursor == cursor {
        // Not a page: who went on with its cursor would go round for ever.
        let message = format!(
            "{} partitions cannot be read now, the first is {}: try again, or pass over what cannot be read with \
             partial=true",
            missing.len(),
            missing[0]
        );
        return Err(Refusal::new(RefusalCode::TooFewReplicas, message).into());
    }
    let items: Vec<Value> = reply
        .items
        .iter()
        .map(|item| Value::Object(record_json(item.key.as_bytes(), &item.values, &item.context, keys_only)))
        .collect();
    let page = json!({
        "items": items,
        "more": reply.more,
        "cursor": reply.cursor.map(|key| URL_SAFE_NO_PAD.encode(key.as_bytes())),
        "complete": missing.is_empty(),
        "missing_partitions": missing,
    });
    gateway.large_json(StatusCode::OK, &page)
}

pub(super) fn scan_of(params: &Params) -> Result<Scan, Refused> {
    let bytes = |name| params.bytes(name).map(Bytes::copy_from_slice);
    let mut scan = match (bytes("prefix"), bytes("start"), bytes("end")) {
        (Some(prefix), None, None) => Scan::prefix(&prefix),
        (None, start, end) => {
            Scan { from: start.unwrap_or_default(), to: end.unwrap_or_default(), ..Scan::all() }
        }
        _ => return Err(bad("prefix says where the range starts and ends: give it, or start and end")),
    };
    if params.flag("reverse")? {
        scan.order = Order::Descending;
    }
    if let Some(limit) = params.number("limit")? {
        scan.limit = limit;
    }
    scan.keys_only = params.flag("keys_only")?;
    scan.partial = params.flag("partial")?;
    if let Some(cursor) = params.text("cursor")? {
        let key = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| Key::new(bytes).ok());
        let key = key.ok_or_else(|| bad("the cursor is none: send back that of the page before, exactly"))?;
        scan.after = Some(key);
    }
    Ok(scan)
}
