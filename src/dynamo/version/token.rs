//! The context token: what a client carries from a read to a write, opaque and tamper-evident.
//!
//! A context that is damaged, of another key or of another cluster would silently cover writes that its holder
//! never saw, and the put would erase them. So a token is bound to cluster and key and carries a MAC under the
//! cluster's secret; whatever does not fit is a typed error.
//!
//! ```text
//!   offset  0        1          17          21        29      31                    31+24n
//!           version  cluster id namespace   key hash  count n  n × (incarnation,      MAC
//!           u8 = 1   u128       u32         u64       u16       epoch, counter: u64)  16 bytes
//! ```
//! All little-endian. The MAC is the first 16 bytes of keyed BLAKE3 over everything before it followed by the
//! key's bytes. The key hash is only there to tell "of another key" from "damaged".

use blake3::Hasher;
use xxhash_rust::xxh3::xxh3_64;

use super::vector::VersionVector;
use crate::types::{ActorId, ClusterId, Incarnation, Key, Namespace};

const VERSION: u8 = 1;
const HEAD_LEN: usize = 31;
const ENTRY_LEN: usize = 24;
const MAC_LEN: usize = 16;
/// Longest token in bytes: a context of 65,535 entries, far above what reaping leaves.
pub const TOKEN_LEN_MAX: usize = HEAD_LEN + u16::MAX as usize * ENTRY_LEN + MAC_LEN;

/// The cluster's secret for tokens, made once with the cluster. Not printed.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TokenSecret(pub [u8; 32]);

impl std::fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

/// Why bytes are not a context for this key. No state changed; the caller reads the key again and uses the
/// context of that answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Cut short, lengthened or altered.
    #[error("the context token is damaged: read the key again and use the context of that answer")]
    Damaged,
    /// Made by a newer or unknown version of this program.
    #[error("the context token has version {0}, which this node does not know: read the key again")]
    UnknownVersion(u8),
    /// From a read of another key.
    #[error("the context token belongs to another key: use the context that was read with this key")]
    OtherKey,
    /// From another cluster.
    #[error("the context token belongs to another cluster: read the key from this cluster")]
    OtherCluster,
    /// The context has more entries than a token can carry; reaping shortens it.
    #[error("the context has {0} entries, a token carries at most 65535")]
    TooManyEntries(usize),
}

/// What a token is bound to, and the secret that seals it.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// The cluster's secret.
    pub secret: &'a TokenSecret,
    /// The cluster's id.
    pub cluster: ClusterId,
    /// The key's namespace.
    pub namespace: Namespace,
    /// The key.
    pub key: &'a Key,
}

impl Token<'_> {
    /// The context as a token for this key.
    ///
    /// # Errors
    /// `TooManyEntries` above 65,535 actors.
    pub fn seal(&self, context: &VersionVector) -> Result<Vec<u8>, TokenError> {
        let count = u16::try_from(context.len()).map_err(|_| TokenError::TooManyEntries(context.len()))?;
        let mut token = Vec::with_capacity(HEAD_LEN + context.len() * ENTRY_LEN + MAC_LEN);
        token.push(VERSION);
        token.extend_from_slice(&self.cluster.0.to_le_bytes());
        token.extend_from_slice(&self.namespace.0.to_le_bytes());
        token.extend_from_slice(&xxh3_64(self.key.as_bytes()).to_le_bytes());
        token.extend_from_slice(&count.to_le_bytes());
        for (actor, counter) in context.entries() {
            token.extend_from_slice(&actor.incarnation.0.to_le_bytes());
            token.extend_from_slice(&actor.epoch.to_le_bytes());
            token.extend_from_slice(&counter.to_le_bytes());
        }
        let mac = self.mac(&token);
        token.extend_from_slice(&mac);
        Ok(token)
    }

    /// The context that the token carries.
    ///
    /// # Errors
    /// When the token is not one that [`Token::seal`] made for this key in this cluster.
    pub fn open(&self, token: &[u8]) -> Result<VersionVector, TokenError> {
        let version = *token.first().ok_or(TokenError::Damaged)?;
        if version != VERSION {
            return Err(TokenError::UnknownVersion(version));
        }
        if token.len() < HEAD_LEN + MAC_LEN {
            return Err(TokenError::Damaged);
        }
        let (sealed, mac) = token.split_at(token.len() - MAC_LEN);
        if sealed[1..17] != self.cluster.0.to_le_bytes() {
            return Err(TokenError::OtherCluster);
        }
        let of_key = sealed[17..21] == self.namespace.0.to_le_bytes()
            && sealed[21..29] == xxh3_64(self.key.as_bytes()).to_le_bytes();
        if !of_key {
            return Err(TokenError::OtherKey);
        }
        // Constant time: blake3's Hash compares so; ours is cut to 16 bytes, so compare by xor.
        let differing = self.mac(sealed).iter().zip(mac).fold(0, |sum, (a, b)| sum | (a ^ b));
        let count = usize::from(u16::from_le_bytes([sealed[29], sealed[30]]));
        if differing != 0 || sealed.len() != HEAD_LEN + count * ENTRY_LEN {
            return Err(TokenError::Damaged);
        }
        let entries = sealed[HEAD_LEN..].chunks_exact(ENTRY_LEN).map(|entry| {
            let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
            (ActorId { incarnation: Incarnation(word(0)), epoch: word(8) }, word(16))
        });
        VersionVector::try_from(entries.collect::<Vec<_>>()).map_err(|_| TokenError::Damaged)
    }

    fn mac(&self, sealed: &[u8]) -> [u8; MAC_LEN] {
        let mut hasher = Hasher::new_keyed(&self.secret.0);
        hasher.update(sealed);
        hasher.update(self.key.as_bytes());
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_LEN]);
        mac
    }
}
