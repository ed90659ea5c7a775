//! Which keys: the range of a scan or an export.

use bytes::Bytes;

use super::connect::{Which, usage};
use super::units;
use crate::client::Scan;
use crate::net::message::SCAN_ITEMS_MAX;
use crate::types::{KEY_LEN_MAX, Key};

/// A range of keys.
#[derive(Debug, clap::Args)]
pub(super) struct Range {
    /// Only keys that begin so.
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub(super) prefix: Option<String>,
    /// First key.
    #[arg(long)]
    from: Option<String>,
    /// End before this key.
    #[arg(long)]
    to: Option<String>,
    /// Go on behind this key: the last one of an earlier scan.
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// PREFIX, FROM, TO and AFTER are base64, for keys that are no text.
    #[arg(long)]
    key_base64: bool,
    /// Replicas from which each partition is read, 1 to N.
    #[arg(short, value_parser = units::replicas)]
    r: Option<u8>,
    /// Which of several concurrent values.
    #[arg(long, value_enum, default_value = "siblings")]
    resolve: Which,
    /// Pass over what cannot be read, instead of ending there.
    #[arg(long)]
    pub(super) partial: bool,
}

impl Range {
    fn bytes(&self, name: &str, text: Option<&String>) -> Result<Bytes, u8> {
        let bytes = match text {
            None => Vec::new(),
            Some(text) if self.key_base64 => {
                units::base64(text).map_err(|error| usage(&format!("--{name} is no base64: {error}")))?
            }
            Some(text) => text.clone().into_bytes(),
        };
        if bytes.len() > KEY_LEN_MAX {
            return Err(usage(&format!("--{name} is longer than a key may be ({KEY_LEN_MAX} bytes)")));
        }
        Ok(bytes.into())
    }

    /// The scan of it.
    pub(super) fn scan(&self) -> Result<Scan, u8> {
        let base = match &self.prefix {
            Some(_) => Scan::prefix(&self.bytes("prefix", self.prefix.as_ref())?),
            None => Scan {
                from: self.bytes("from", self.from.as_ref())?,
                to: self.bytes("to", self.to.as_ref())?,
                ..Scan::all()
            },
        };
        if !base.to.is_empty() && base.from > base.to {
            return Err(usage("--from stands behind --to"));
        }
        let after = match &self.after {
            None => None,
            Some(_) => {
                let bytes = self.bytes("after", self.after.as_ref())?;
                Some(Key::new(bytes).map_err(|error| usage(&format!("--after: {error}")))?)
            }
        };
        let limit = u32::try_from(SCAN_ITEMS_MAX).unwrap_or(u32::MAX);
        let (r, resolve, partial) = (self.r, self.resolve.into(), self.partial);
        Ok(Scan { after, limit, r, resolve, partial, ..base })
    }
}
