//! Read, decide, write back: the way to resolve siblings, and to change a value that others change too.
//!
//! The write stands under the condition that nobody has written since the read (`if_match`), so a decision is made
//! again whenever somebody was faster. Two that judge their condition at the same moment may still both succeed;
//! their values become siblings, and the reply of the later one names the other. They are left to the next update:
//! a decision that was written is never made a second time, because one that counts would count twice.

use std::time::Duration;

use bytes::Bytes;

use super::{Client, ClientError, PutReply, ReadOptions, RefusalCode, Version, WriteOptions};
use crate::net::message::{Condition, Context};

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

impl Client {
    /// Writes what `decide` makes of the values that are there now: none, one, or several that are concurrent. It is
    /// asked again, with newer values, when somebody else has written in between, at most
    /// [`update_tries`](super::ClientConfig::update_tries) times. Of `options` the context and condition are not used.
    ///
    /// # Errors
    /// `Refused` with `Conflict` when others were faster every time. `Unknown` when the last write may have happened;
    /// then nothing more was tried.
    pub async fn update<V: Into<Bytes>>(
        &self,
        key: &crate::types::Key,
        options: &WriteOptions,
        mut decide: impl FnMut(&[Version]) -> V,
    ) -> Result<PutReply, ClientError> {
        let asked = self.inner.asked(options.timeout, options.trace_id);
        let mut pause = PAUSE_MIN;
        let mut tries = self.inner.config.update_tries.max(1);
        loop {
            let left = Some(asked.deadline.since(self.inner.pool.now()));
            let read = ReadOptions {
                r: options.r,
                strict: options.strict,
                timeout: left,
                trace_id: options.trace_id,
                ..ReadOptions::default()
            };
            let seen = self.get(key, &read).await?;
            let value = decide(&seen.values).into();
            let write = WriteOptions {
                context: Some(Context::Nothing),
                condition: Condition::Match(seen.context),
                timeout: Some(asked.deadline.since(self.inner.pool.now())),
                // A new decision is a new write, whatever name the caller gave.
                write_id: None,
                ..options.clone()
            };
            tries -= 1;
            let error = match self.write(key, Some(value), &write).await {
                Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::Conflict => {
                    ClientError::Refused(refusal)
                }
                written => return written,
            };
            let again = self.inner.pool.now() + self.inner.pool.jittered(pause);
            if tries == 0 || again >= asked.deadline {
                return Err(error);
            }
            self.inner.pool.sleep_until(again).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
