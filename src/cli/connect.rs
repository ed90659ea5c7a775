//! What all commands share that talk to a cluster: where it is, how long they wait, how errors end them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::units::{self, token_text};
use super::{CONFLICT, FAILED, NOT_NOW, UNKNOWN, UNREACHABLE, USAGE, complain, os_random, say};
use crate::client::{Action, Client, ClientConfig, ClientError, RefusalCode, WriteOptions};
use crate::io::{RealClock, TcpNet};
use crate::net::message::{Condition, Context, Durability, Expiry, Resolve};
use crate::types::Key;

/// Tries of one operation at the command line: somebody waits there.
const TRIES: u32 = 5;

/// Where the cluster is.
#[derive(Debug, clap::Args)]
pub(super) struct Connect {
    /// Client ports of nodes (host:port, separated by commas); one that answers is enough.
    #[arg(
        long,
        env = "RINGDOVE_ADDR",
        value_delimiter = ',',
        default_value = "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003",
        value_parser = units::address
    )]
    pub(super) addr: Vec<String>,
    /// Time for one operation, e.g. 300ms, 5s.
    #[arg(long, default_value = "5s", value_parser = units::timeout)]
    pub(super) timeout: Duration,
}

/// Answers of several replicas.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Reading {
    /// Replicas that must answer, 1 to N; a majority when left out.
    #[arg(short, value_parser = units::replicas)]
    pub(super) r: Option<u8>,
    /// Count the key's primaries alone, no fallbacks.
    #[arg(long)]
    pub(super) strict: bool,
}

/// How a write is made.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Writing {
    /// Replicas that must hold it, 1 to N; a majority when left out.
    #[arg(short, value_parser = units::replicas)]
    pub(super) w: Option<u8>,
    /// Count the key's primaries alone, no fallbacks.
    #[arg(long)]
    pub(super) strict: bool,
    /// When a replica counts: `sync` (on its disk) or `interval:100ms` (in its memory, on its disk within that
    /// time). The node's default when left out.
    #[arg(long, value_parser = units::durability)]
    pub(super) durability: Option<Durability>,
}

impl Writing {
    pub(super) fn options(&self) -> WriteOptions {
        WriteOptions {
            w: self.w,
            strict: self.strict,
            durability: self.durability,
            ..WriteOptions::default()
        }
    }
}

/// What a write overwrites, and on what condition.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Overwriting {
    /// Overwrite what the read that gave this context token saw.
    #[arg(long, value_name = "TOKEN", value_parser = units::token, conflicts_with = "if_match")]
    pub(super) context: Option<bytes::Bytes>,
    /// Only if nobody has written the key since the read that gave this token.
    #[arg(long, value_name = "TOKEN", value_parser = units::token)]
    pub(super) if_match: Option<bytes::Bytes>,
}

impl Overwriting {
    pub(super) fn apply(&self, options: &mut WriteOptions) {
        if let Some(token) = &self.context {
            options.context = Some(Context::Token(token.clone()));
        }
        if let Some(token) = &self.if_match {
            options.context = Some(Context::Nothing);
            options.condition = Condition::Match(token.clone());
        }
    }
}

/// Which of several values.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Which {
    /// All concurrent values.
    Siblings,
    /// The one that was written last, by the nodes' clocks.
    Lww,
}

impl From<Which> for Resolve {
    fn from(which: Which) -> Resolve {
        match which {
            Which::Siblings => Resolve::Siblings,
            Which::Lww => Resolve::Lww,
        }
    }
}

/// A key as an argument.
#[derive(Debug, clap::Args)]
pub(super) struct KeyArg {
    /// The key.
    #[arg(allow_hyphen_values = true)]
    key: String,
    /// KEY is base64, for keys that are no text.
    #[arg(long)]
    key_base64: bool,
}

impl KeyArg {
    pub(super) fn key(&self) -> Result<Key, u8> {
        let bytes = match self.key_base64 {
            true => units::base64(&self.key)
                .map_err(|reason| usage(&format!("the key is no base64: {reason}")))?,
            false => self.key.clone().into_bytes(),
        };
        Key::new(bytes).map_err(|error| usage(&error.to_string()))
    }
}

impl Connect {
    pub(super) fn client(&self) -> Result<Client, u8> {
        self.client_with(|_| {})
    }

    /// A client with its configuration changed by `change`.
    pub(super) fn client_with(&self, change: impl FnOnce(&mut ClientConfig)) -> Result<Client, u8> {
        let mut config =
            ClientConfig { timeout: self.timeout, tries: TRIES, ..ClientConfig::new(self.addr.clone()) };
        change(&mut config);
        let seed = os_random().map_err(|message| {
            complain(&message);
            FAILED
        })?;
        Ok(Client::new(Arc::new(TcpNet), Arc::new(RealClock::new()), seed, config))
    }
}

/// Says what is wrong with how the command was called.
pub(super) fn usage(message: &str) -> u8 {
    complain(message);
    USAGE
}

/// An expiry after this time.
pub(super) fn expiry(ttl: Option<Duration>) -> Expiry {
    let ms = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
    ttl.map_or(Expiry::Never, |ttl| Expiry::After(ms(ttl)))
}

/// The exit code that an error stands for.
pub(super) fn code_of(error: &ClientError) -> u8 {
    match error {
        ClientError::Invalid(_) => USAGE,
        ClientError::Refused(refusal) if refusal.code == RefusalCode::Conflict => CONFLICT,
        ClientError::Refused(_) if matches!(error.action(), Action::TryAgain(_)) => NOT_NOW,
        ClientError::Refused(_) => FAILED,
        ClientError::Unreachable(_) => UNREACHABLE,
        ClientError::Unknown(_) => UNKNOWN,
    }
}

/// The word that an outcome goes by in counts and in JSON.
pub(super) fn outcome_of(error: &ClientError) -> &'static str {
    match error {
        ClientError::Invalid(_) => "invalid",
        ClientError::Refused(refusal) if refusal.code == RefusalCode::Conflict => "conflict",
        ClientError::Refused(_) if matches!(error.action(), Action::TryAgain(_)) => "not-now",
        ClientError::Refused(_) => "refused",
        ClientError::Unreachable(_) => "unreachable",
        ClientError::Unknown(_) => "unknown",
    }
}

/// Tells an error, in words or as JSON, and gives its exit code.
pub(super) fn failed(error: &ClientError, as_json: bool) -> u8 {
    if as_json {
        let mut told = json!({ "outcome": outcome_of(error), "message": error.to_string() });
        if let ClientError::Refused(refusal) = error {
            told["code"] = json!(format!("{:?}", refusal.code));
            if let Some(ms) = refusal.retry_after_ms {
                told["retry_after_ms"] = json!(ms);
            }
        }
        say(&told.to_string());
        return code_of(error);
    }
    let advice = match error {
        ClientError::Refused(refusal) if refusal.code == RefusalCode::TooManySiblings => {
            "; `ringdove get --context` and `put --context` put one in their place"
        }
        ClientError::Refused(_) | ClientError::Invalid(_) => "",
        ClientError::Unreachable(_) => {
            "; is the cluster running (`ringdove cluster`), and is --addr a client port of it?"
        }
        ClientError::Unknown(_) => {
            "; it may be there now, later, or never: read the key before you write again"
        }
    };
    complain(&format!("{error}{advice}"));
    code_of(error)
}

/// A context token as text; none when there is no token.
pub(super) fn context_json(context: &[u8]) -> serde_json::Value {
    if context.is_empty() { serde_json::Value::Null } else { json!(token_text(context)) }
}
