//! `ringdove get`, `put`, `delete`.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::{DONE, FAILED, NOT_FOUND, SIBLINGS, UNKNOWN, UNREACHABLE, USAGE, complain, os_random};
use crate::client::{Client, ClientConfig, ClientError, WriteRequest};
use crate::io::{RealClock, TcpNet};
use crate::net::message::{Context, Quorum};
use crate::types::{Key, WriteId};

#[derive(Debug, clap::Args)]
struct Common {
    /// Client addresses of nodes to try, separated by commas.
    #[arg(long, env = "RINGDOVE_ADDR", default_value = "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003")]
    addr: String,
    /// Count primaries alone, no fallbacks.
    #[arg(long)]
    strict: bool,
    /// Milliseconds for the whole operation.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout_ms: u64,
    /// The key.
    key: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    common: Common,
    /// Replicas that must answer; a majority when left out.
    #[arg(short, value_parser = clap::value_parser!(u8).range(1..))]
    r: Option<u8>,
    /// Also print the context token, on standard error.
    #[arg(long)]
    context: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct PutArgs {
    #[command(flatten)]
    common: Common,
    /// The value; `-` reads it from standard input.
    value: String,
    /// Replicas that must hold it durably; a majority when left out.
    #[arg(short, value_parser = clap::value_parser!(u8).range(1..))]
    w: Option<u8>,
    /// Overwrite what the read that gave this token saw; without it, whatever the coordinator holds.
    #[arg(long)]
    context: Option<String>,
    /// Overwrite nothing: the value becomes a sibling of what is there.
    #[arg(long, conflicts_with = "context")]
    new_sibling: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    common: Common,
    /// Replicas that must answer the read before the deletion; a majority when left out.
    #[arg(short, value_parser = clap::value_parser!(u8).range(1..))]
    r: Option<u8>,
    /// Replicas that must hold the deletion durably; a majority when left out.
    #[arg(short, value_parser = clap::value_parser!(u8).range(1..))]
    w: Option<u8>,
    /// Delete what the read that gave this token saw.
    #[arg(long)]
    context: Option<String>,
}

impl Common {
    fn client(&self) -> Client {
        let addrs = self.addr.split(',').map(|addr| addr.trim().to_owned()).collect();
        let config = ClientConfig { addrs, timeout: Duration::from_millis(self.timeout_ms) };
        Client::new(Arc::new(TcpNet), Arc::new(RealClock::new()), config)
    }

    fn key(&self) -> Result<Key, u8> {
        Key::new(self.key.clone().into_bytes()).map_err(|error| usage(&error.to_string()))
    }
}

fn usage(message: &str) -> u8 {
    complain(message);
    USAGE
}

fn failed(error: &ClientError) -> u8 {
    complain(&error.to_string());
    match error {
        ClientError::Refused(_) => FAILED,
        ClientError::Unreachable(_) => UNREACHABLE,
        ClientError::Unknown(_) => UNKNOWN,
    }
}

fn token(text: &str) -> Result<Context, u8> {
    match URL_SAFE_NO_PAD.decode(text) {
        Ok(token) => Ok(Context::Token(token.into())),
        Err(_) => Err(usage("the context is not a token: give it as `ringdove get --context` printed it")),
    }
}

fn write_id() -> Result<WriteId, u8> {
    match os_random() {
        Ok(bits) => Ok(WriteId(u128::from_le_bytes(bits))),
        Err(message) => {
            complain(&message);
            Err(FAILED)
        }
    }
}

pub(super) async fn get(args: GetArgs) -> u8 {
    try_get(args).await.unwrap_or_else(|code| code)
}

async fn try_get(args: GetArgs) -> Result<u8, u8> {
    let key = args.common.key()?;
    let quorum = Quorum { r: args.r, w: None, strict: args.common.strict };
    let reply = args.common.client().get(&key, quorum).await.map_err(|error| failed(&error))?;
    if args.context {
        complain(&format!("context {}", URL_SAFE_NO_PAD.encode(&reply.context)));
    }
    let mut out = std::io::stdout();
    match reply.values.as_slice() {
        [] => {
            complain(&format!("{key} has no value"));
            Ok(NOT_FOUND)
        }
        [version] => {
            let _ = out.write_all(&version.value).and_then(|()| out.flush());
            Ok(DONE)
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
            Ok(SIBLINGS)
        }
    }
}

pub(super) async fn put(args: PutArgs) -> u8 {
    try_put(args).await.unwrap_or_else(|code| code)
}

async fn try_put(args: PutArgs) -> Result<u8, u8> {
    let key = args.common.key()?;
    let value: Bytes = if args.value == "-" {
        let mut value = Vec::new();
        let read = std::io::stdin().read_to_end(&mut value);
        read.map_err(|error| usage(&format!("cannot read the value: {error}")))?;
        value.into()
    } else {
        args.value.clone().into()
    };
    let context = match &args.context {
        Some(text) => token(text)?,
        None if args.new_sibling => Context::Nothing,
        None => Context::Current,
    };
    let quorum = Quorum { r: None, w: args.w, strict: args.common.strict };
    let write = WriteRequest { key: key.clone(), write_id: write_id()?, value: Some(value), context, quorum };
    let reply = args.common.client().write(write).await.map_err(|error| failed(&error))?;
    if !reply.siblings.is_empty() {
        let others = reply.siblings.len();
        complain(&format!("{others} concurrent value(s) stand beside it; `ringdove get {key}` shows them"));
    }
    Ok(DONE)
}

pub(super) async fn delete(args: DeleteArgs) -> u8 {
    try_delete(args).await.unwrap_or_else(|code| code)
}

async fn try_delete(args: DeleteArgs) -> Result<u8, u8> {
    let key = args.common.key()?;
    let context = match &args.context {
        Some(text) => token(text)?,
        None => Context::Read,
    };
    let quorum = Quorum { r: args.r, w: args.w, strict: args.common.strict };
    let write = WriteRequest { key, write_id: write_id()?, value: None, context, quorum };
    args.common.client().write(write).await.map_err(|error| failed(&error))?;
    Ok(DONE)
}
