//! `ringdove get`, `put`, `delete`.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::connect::{
    Connect, KeyArg, Overwriting, Reading, Which, Writing, context_json, expiry, failed, usage,
};
use super::units::{self, base64_text, date, token_text};
use super::{DONE, NOT_FOUND, SIBLINGS, complain, say};
use crate::client::{GetReply, PutReply, ReadOptions, Version, WriteOptions};
use crate::dynamo::version::Meta;
use crate::net::message::{Condition, Context, Replicas};
use crate::types::Key;

#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    key: KeyArg,
    /// Which of several concurrent values.
    #[arg(long, value_enum, default_value = "siblings")]
    resolve: Which,
    /// Also print the context token, on standard error.
    #[arg(long)]
    context: bool,
    /// Print everything that is known of it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct PutArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    writing: Writing,
    /// Replicas that must answer where a condition is looked at, if those are more than `-w`; a majority when left out.
    #[arg(short, value_parser = units::replicas)]
    r: Option<u8>,
    #[command(flatten)]
    overwriting: Overwriting,
    #[command(flatten)]
    key: KeyArg,
    /// The value; `-` reads it from standard input.
    #[arg(allow_hyphen_values = true)]
    value: String,
    /// Overwrite nothing: the value becomes a sibling of what is there.
    #[arg(long, conflicts_with_all = ["context", "if_match", "if_absent"])]
    new_sibling: bool,
    /// Only if the key has no value.
    #[arg(long, conflicts_with_all = ["context", "if_match"])]
    if_absent: bool,
    /// Time to live, e.g. 10m, 30d.
    #[arg(long, value_parser = units::positive)]
    ttl: Option<Duration>,
    /// Kept with the value, and given by REST.
    #[arg(long)]
    content_type: Option<String>,
    /// A pair that is kept with the value; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    writing: Writing,
    /// Replicas that must answer the read before the deletion; a majority when left out.
    #[arg(short, value_parser = units::replicas)]
    r: Option<u8>,
    #[command(flatten)]
    overwriting: Overwriting,
    #[command(flatten)]
    key: KeyArg,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// The bytes under `name`, or under `name_base64` when they are no text.
pub(super) fn put_bytes(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = json!(text),
        Err(_) => object[format!("{name}_base64")] = json!(base64_text(bytes)),
    }
}

/// All that is known of a value.
pub(super) fn version_json(version: &Version) -> Value {
    let mut object = json!({});
    put_bytes(&mut object, "value", &version.value);
    object["size"] = json!(version.value.len());
    object["write_id"] = json!(version.write_id.to_string());
    object["dot"] = json!(format!("{:?}.{}", version.dot.actor, version.dot.counter));
    object["written_at"] = json!(date(version.written_at));
    if let Some(at) = version.expires_at {
        object["expires_at"] = json!(date(at));
    }
    if let Some(meta) = &version.meta {
        if let Some(content_type) = &meta.content_type {
            object["content_type"] = json!(content_type);
        }
        if !meta.pairs.is_empty() {
            object["meta"] = json!(meta.pairs);
        }
    }
    object
}

fn replicas_json(replicas: &Replicas) -> Value {
    let names = |nodes: &[crate::types::NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "asked": replicas.asked,
        "primaries": names(&replicas.primaries),
        "fallbacks": names(&replicas.fallbacks),
        "layout": replicas.layout.version,
    })
}

pub(super) async fn get(args: GetArgs) -> u8 {
    try_get(args).await.unwrap_or_else(|code| code)
}

async fn try_get(args: GetArgs) -> Result<u8, u8> {
    let key = args.key.key()?;
    let options = ReadOptions {
        r: args.reading.r,
        strict: args.reading.strict,
        resolve: args.resolve.into(),
        ..ReadOptions::default()
    };
    let reply =
        args.connect.client()?.get(&key, &options).await.map_err(|error| failed(&error, args.json))?;
    let code = match reply.values.len() {
        0 => NOT_FOUND,
        1 => DONE,
        _ => SIBLINGS,
    };
    if args.json {
        say(&read_json(&key, &reply).to_string());
        return Ok(code);
    }
    if args.context {
        complain(&format!("context {}", token_text(&reply.context)));
    }
    let mut out = std::io::stdout();
    match reply.values.as_slice() {
        [] => complain(&match (reply.tombstones, reply.expired) {
            (0, 0) => format!("{key} has no value"),
            (_, 0) => format!("{key} has no value: it was deleted"),
            _ => format!("{key} has no value: it has expired"),
        }),
        [version] => {
            let _ = out.write_all(&version.value).and_then(|()| out.flush());
            if out.is_terminal() && version.value.last() != Some(&b'\n') {
                say("");
            }
        }
        versions => {
            let count = versions.len();
            complain(&format!(
                "{key} has {count} concurrent values, one a line; `put --context` with the token of \
                 `get --context` replaces them all"
            ));
            for version in versions {
                let _ = writeln!(out, "{}\t{}", version.write_id, version.value.escape_ascii());
            }
        }
    }
    Ok(code)
}

fn read_json(key: &Key, reply: &GetReply) -> Value {
    let outcome = match reply.values.len() {
        0 => "absent",
        1 => "found",
        _ => "siblings",
    };
    let mut object = json!({ "outcome": outcome });
    put_bytes(&mut object, "key", key.as_bytes());
    object["values"] = reply.values.iter().map(version_json).collect();
    let hidden = |hidden: &crate::net::message::Hidden| json!({ "write_id": hidden.write_id.to_string(), "why": format!("{:?}", hidden.why).to_lowercase() });
    object["hidden"] = reply.hidden.iter().map(hidden).collect();
    object["context"] = context_json(&reply.context);
    object["replicas"] = replicas_json(&reply.replicas);
    object
}

pub(super) async fn put(args: PutArgs) -> u8 {
    try_put(args).await.unwrap_or_else(|code| code)
}

async fn try_put(args: PutArgs) -> Result<u8, u8> {
    let key = args.key.key()?;
    let value: Bytes = if args.value == "-" {
        let mut value = Vec::new();
        let read = std::io::stdin().read_to_end(&mut value);
        read.map_err(|error| usage(&format!("cannot read the value: {error}")))?;
        value.into()
    } else {
        args.value.clone().into()
    };
    let context = if args.new_sibling { Context::Nothing } else { Context::Current };
    let mut options = WriteOptions {
        r: args.r,
        context: Some(context),
        expiry: expiry(args.ttl),
        ..args.writing.options()
    };
    args.overwriting.apply(&mut options);
    if args.if_absent {
        options.context = Some(Context::Nothing);
        options.condition = Condition::Absent;
    }
    if args.content_type.is_some() || !args.meta.is_empty() {
        let pairs = args.meta.iter().cloned().collect();
        options.meta = Some(Meta { content_type: args.content_type.clone(), pairs });
    }
    let reply = args.connect.client()?.put(&key, value, &options).await;
    let reply = reply.map_err(|error| failed(&error, args.json))?;
    told(&key, "written", &reply, args.json);
    Ok(DONE)
}

pub(super) async fn delete(args: DeleteArgs) -> u8 {
    try_delete(args).await.unwrap_or_else(|code| code)
}

async fn try_delete(args: DeleteArgs) -> Result<u8, u8> {
    let key = args.key.key()?;
    let mut options = WriteOptions { r: args.r, ..args.writing.options() };
    args.overwriting.apply(&mut options);
    let reply = args.connect.client()?.delete(&key, &options).await;
    let reply = reply.map_err(|error| failed(&error, args.json))?;
    told(&key, "deleted", &reply, args.json);
    Ok(DONE)
}

/// Tells how a write went: as JSON, or to people in a line.
fn told(key: &Key, what: &str, reply: &PutReply, as_json: bool) {
    if as_json {
        let mut object = json!({ "outcome": what });
        put_bytes(&mut object, "key", key.as_bytes());
        object["overwrote"] = reply.overwrote.iter().map(ToString::to_string).collect();
        object["siblings"] = reply.siblings.iter().map(version_json).collect();
        object["context"] = context_json(&reply.context);
        object["replicas"] = replicas_json(&reply.replicas);
        say(&object.to_string());
        return;
    }
    if std::io::stderr().is_terminal() {
        let replicas = &reply.replicas;
        let nodes = replicas.primaries.iter().map(ToString::to_string);
        let stand_ins = replicas.fallbacks.iter().map(|node| format!("{node} (stands in)"));
        let nodes: Vec<String> = nodes.chain(stand_ins).collect();
        let overwrote = match reply.overwrote.len() {
            0 => "",
            1 => "; it overwrote a value",
            _ => "; it overwrote several values",
        };
        complain(&format!("{what}; held by {}{overwrote}", nodes.join(", ")));
    }
    if !reply.siblings.is_empty() {
        let others = reply.siblings.len();
        complain(&format!("{others} concurrent value(s) stand beside it; `ringdove get {key}` shows them"));
    }
}
