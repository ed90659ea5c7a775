//! `POST /batch`: many reads, or many writes and deletions, in one request.
//!
//! Not both: a batch has no order, so nobody could say what its reads have seen. It is no transaction either; each
//! operation has its own status, the one that it would have had alone.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Refused, bad, json_response, token_of};
use super::json::{Items, Pairs, Stored, Written, insert_bytes, record_json};
use super::kv::{json_limit, outcome_json};
use super::params::{Params, key_error, trace_id, write_id_of};
use super::{App, Gateway};
use crate::net::message::{
    BATCH_ITEMS_MAX, Condition, Context, Durability, Expiry, Get, GetReply, MultiGet, MultiPut, Put, Quorum,
    Refusal, RefusalCode,
};
use crate::node::metrics::Door;
use crate::types::{Key, WriteId};

const PARAMS: &[&str] = &["r", "w", "strict", "resolve", "timeout", "durability"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch {
    pub(super) operations: Items<Operation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Get,
    Put,
    Delete,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Operation {
    pub(super) op: Kind,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    ttl: Option<String>,
    content_type: Option<String>,
    meta: Option<Pairs>,
    context: Option<String>,
    if_match: Option<String>,
    #[serde(default)]
    if_absent: bool,
    write_id: Option<String>,
}

impl Operation {
    pub(super) fn key(&mut self) -> Result<Key, Refused> {
        let bytes = match (self.key.take(), self.key_base64.take()) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => STANDARD
                .decode(text.as_bytes())
                .map_err(|error| bad(format!("key_base64 is not base64: {error}")))?,
            _ => return Err(bad("an operation has either key or key_base64")),
        };
        Key::new(bytes).map_err(|error| key_error(&error).into())
    }

    /// The first field that this kind of operation does not take.
    pub(super) fn stray(&self) -> Option<&'static str> {
        let of_a_put = [
            ("value", self.value.is_some()),
            ("value_base64", self.value_base64.is_some()),
            ("ttl", self.ttl.is_some()),
            ("content_type", self.content_type.is_some()),
            ("meta", self.meta.is_some()),
            ("if_absent", self.if_absent),
        ];
        let of_a_write = [
            ("context", self.context.is_some()),
            ("if_match", self.if_match.is_some()),
            ("write_id", self.write_id.is_some()),
        ];
        let is_given =
            |fields: &[(&'static str, bool)]| fields.iter().find(|field| field.1).map(|field| field.0);
        match self.op {
            Kind::Put => None,
            Kind::Delete => is_given(&of_a_put),
            Kind::Get => is_given(&of_a_put).or_else(|| is_given(&of_a_write)),
        }
    }

    pub(super) fn put(
        mut self,
        new_id: WriteId,
        quorum: Quorum,
        durability: Option<Durability>,
    ) -> Result<Put, Refused> {
        let key = self.key()?;
        let otherwise = if self.op == Kind::Put { Context::Current } else { Context::Read };
        let (context, condition) = match (self.context, self.if_match, self.if_absent) {
            (None, None, false) => (otherwise, Condition::None),
            (Some(token), None, false) => (Context::Token(token_of(&token)?), Condition::None),
            (None, Some(token), false) => (Context::Nothing, Condition::Match(token_of(&token)?)),
            (None, None, true) => (Context::Nothing, Condition::Absent),
            _ => {
                return Err(bad(
                    "context, if_match and if_absent each say what the write goes by: give one of them",
                ));
            }
        };
        let write_id = self.write_id.as_deref().map_or(Ok(new_id), write_id_of)?;
        let put = Put { context, condition, quorum, durability, ..Put::delete(key, write_id) };
        if self.op == Kind::Delete {
            return Ok(put);
        }
        let meta = self.meta.unwrap_or_default();
        let written = Written::of(self.value, self.value_base64, self.ttl, self.content_type, meta);
        let Stored { value, meta, expiry } = written.stored()?;
        Ok(Put { value: Some(value), meta, expiry: expiry.unwrap_or(Expiry::Never), ..put })
    }
}

/// POST.
pub(super) async fn batch(
    State(gateway): App,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let mut body = Some(body);
    let answer = batch_of(&gateway, &uri, &headers, &mut body).await;
    gateway.answered(answer, body, &headers).await
}

async fn batch_of(
    gateway: &Gateway,
    uri: &Uri,
    headers: &HeaderMap,
    body: &mut Option<Body>,
) -> Result<Response, Refused> {
    let node = &gateway.node;
    let params = Params::of(uri, "POST /batch", PARAMS)?;
    let (quorum, resolve, durability) = (params.quorum(node)?, params.resolve()?, params.durability()?);
    let timeout = params.duration("timeout")?;
    let limit = json_limit(node.config().value_len_max);
    let held = gateway.read_body(body, headers, limit, "the batch").await?;
    let Batch { operations } = serde_json::from_slice(&held.bytes).map_err(|error| {
        bad(format!("the JSON body: {error}. It is {{\"operations\": [{{\"op\": \"put\", \"key\": …, \"value\": …}}, …]}}"))
    })?;
    if operations.count > BATCH_ITEMS_MAX {
        let count = operations.count;
        let message =
            format!("the batch has {count} operations, at most {BATCH_ITEMS_MAX} are taken: send several");
        return Err(Refusal::new(RefusalCode::TooLarge, message).into());
    }
    let operations = operations.kept;
    let gets = operations.iter().filter(|operation| operation.op == Kind::Get).count();
    if gets > 0 && gets < operations.len() {
        return Err(bad(
            "a batch has reads alone, or writes and deletions alone, for it has no order: send two",
        ));
    }
    if let Some((at, field)) =
        (0..).zip(&operations).find_map(|(at, operation)| Some((at, operation.stray()?)))
    {
        return Err(bad(format!("operation {at} has the field `{field}`, which its kind does not take")));
    }
    let wrong = |at: usize| move |refused: Refused| refused.prefixed(&format!("operation {at}: "));
    let request = |timeout| node.request(Door::Rest, timeout, trace_id(headers));
    if gets > 0 {
        let mut all = Vec::with_capacity(gets);
        for (at, mut operation) in operations.into_iter().enumerate() {
            let key = operation.key().map_err(wrong(at))?;
            all.push(Get { quorum, resolve, ..Get::new(key) });
        }
        drop(held);
        let keys: Vec<Key> = all.iter().map(|get| get.key.clone()).collect();
        let reply = node.multi_get(MultiGet { gets: all }, request(timeout)?).await?;
        let replies = keys.iter().zip(reply.replies);
        let results: Vec<Value> = replies.map(|(key, reply)| read_json(key, reply)).collect();
        return gateway.large_json(StatusCode::OK, &json!({ "results": results }));
    }
    let mut all = Vec::with_capacity(operations.len());
    for (at, operation) in operations.into_iter().enumerate() {
        all.push(operation.put(node.write_id(), quorum, durability).map_err(wrong(at))?);
    }
    let written: Vec<(Key, WriteId)> = all.iter().map(|put| (put.key.clone(), put.write_id)).collect();
    let reply = node.multi_put(MultiPut { puts: all }, request(timeout)?).await?;
    drop(held);
    let n = node.descriptor().replicas;
    let results = written.iter().zip(reply.replies).map(|((key, write_id), reply)| {
        let (status, mut object) = match reply {
            Ok(reply) => outcome_json(&reply, key, *write_id, n),
            Err(refusal) => refused_json(refusal),
        };
        finish(key, status, &mut object);
        object
    });
    let results: Vec<Value> = results.collect();
    // Not held to the budget: what has happened is told, whether there is room for it or not.
    Ok(json_response(StatusCode::OK, &json!({ "results": results })))
}

fn refused_json(refusal: Refusal) -> (StatusCode, Value) {
    let refused = Refused::from(refusal);
    (refused.status(), refused.json())
}

fn read_json(key: &Key, reply: Result<GetReply, Refusal>) -> Value {
    let (status, mut object) = match reply {
        Ok(reply) => {
            let status = match reply.values.len() {
                0 => StatusCode::NOT_FOUND,
                1 => StatusCode::OK,
                _ => StatusCode::MULTIPLE_CHOICES,
            };
            (status, Value::Object(record_json(key.as_bytes(), &reply.values, &reply.context, false)))
        }
        Err(refusal) => refused_json(refusal),
    };
    finish(key, status, &mut object);
    object
}

/// Every result has its status and its key.
fn finish(key: &Key, status: StatusCode, result: &mut Value) {
    if let Value::Object(result) = result {
        result.insert("status".to_owned(), json!(status.as_u16()));
        insert_bytes(result, "key", key.as_bytes());
    }
}
