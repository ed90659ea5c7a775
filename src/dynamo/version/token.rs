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
        // Before the MAC, which costs time by length: nobody makes this node hash what cannot be a token.
        let count = usize::from(u16::from_le_bytes([sealed[29], sealed[30]]));
        if sealed.len() != HEAD_LEN + count * ENTRY_LEN {
            return Err(TokenError::Damaged);
        }
        // Constant time: blake3's Hash compares so; ours is cut to 16 bytes, so compare by xor.
        let differing = self.mac(sealed).iter().zip(mac).fold(0, |sum, (a, b)| sum | (a ^ b));
        if differing != 0 {
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::dynamo::version::Dot;

    const SECRET: TokenSecret = TokenSecret([7; 32]);

    fn with<T>(act: impl FnOnce(Token<'_>) -> T) -> T {
        let key = Key::new("user:4711").unwrap();
        act(Token { secret: &SECRET, cluster: ClusterId(0xC1), namespace: Namespace(2), key: &key })
    }

    fn context() -> VersionVector {
        let dot = |incarnation, epoch, counter| Dot {
            actor: ActorId { incarnation: Incarnation(incarnation), epoch },
            counter,
        };
        [dot(1, 1, 3), dot(1, 2, u64::MAX), dot(u64::MAX, 9, 1)].into_iter().collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_a_token_are_fixed() {
        // Clients keep tokens across upgrades of the cluster; a change here needs another version byte.
        let token = with(|token| token.seal(&context()).unwrap());
        let expected = [
            "01",                                               // version
            "c1000000000000000000000000000000",                 // cluster
            "02000000",                                         // namespace
            "e202291adc2f7c46",                                 // XXH3-64 of the key
            "0300",                                             // entries
            "010000000000000001000000000000000300000000000000", // incarnation, epoch, counter
            "01000000000000000200000000000000ffffffffffffffff",
            "ffffffffffffffff09000000000000000100000000000000",
            "be9e74487df2faba19cae72c34cd2338", // MAC
        ];
        assert_eq!(hex(&token), expected.concat());
    }

    #[test]
    fn a_token_opens_to_what_was_sealed() {
        with(|token| {
            for context in [VersionVector::new(), context()] {
                assert_eq!(token.open(&token.seal(&context).unwrap()), Ok(context));
            }
        });
    }

    #[test]
    fn every_altered_bit_and_every_cut_is_an_error() {
        with(|token| {
            let sealed = token.seal(&context()).unwrap();
            for at in 0..sealed.len() {
                for flip in 1..=u8::MAX {
                    let mut altered = sealed.clone();
                    altered[at] ^= flip;
                    let expected = match at {
                        0 => TokenError::UnknownVersion(VERSION ^ flip),
                        1..17 => TokenError::OtherCluster,
                        17..29 => TokenError::OtherKey,
                        _ => TokenError::Damaged,
                    };
                    assert_eq!(token.open(&altered), Err(expected), "byte {at}");
                }
                assert_eq!(token.open(&sealed[..at]), Err(TokenError::Damaged), "cut to {at}");
            }
            for more in [vec![0], vec![0; ENTRY_LEN], sealed.clone()] {
                let longer = [sealed.clone(), more].concat();
                assert_eq!(token.open(&longer), Err(TokenError::Damaged));
            }
        });
    }

    #[test]
    fn a_token_is_good_for_its_own_cluster_namespace_and_key_alone() {
        let sealed = with(|token| token.seal(&context()).unwrap());
        let other_key = Key::new("user:4712").unwrap();
        let other_secret = TokenSecret([8; 32]);
        with(|token| {
            assert_eq!(Token { key: &other_key, ..token }.open(&sealed), Err(TokenError::OtherKey));
            assert_eq!(Token { namespace: Namespace(3), ..token }.open(&sealed), Err(TokenError::OtherKey));
            let elsewhere = Token { cluster: ClusterId(0xC2), ..token };
            assert_eq!(elsewhere.open(&sealed), Err(TokenError::OtherCluster));
            assert_eq!(Token { secret: &other_secret, ..token }.open(&sealed), Err(TokenError::Damaged));
        });
    }

    #[test]
    fn keys_with_equal_hashes_do_not_share_tokens() {
        // The MAC takes in the key's bytes: forging the key hash alone does not move a token to another key.
        let other_key = Key::new("user:4712").unwrap();
        with(|token| {
            let other = Token { key: &other_key, ..token };
            let mut moved = token.seal(&context()).unwrap();
            moved[21..29].copy_from_slice(&xxh3_64(other_key.as_bytes()).to_le_bytes());
            assert_eq!(other.open(&moved), Err(TokenError::Damaged));
        });
    }

    #[test]
    fn a_context_of_65535_entries_is_the_largest_that_fits() {
        let entries = |count: u64| -> VersionVector {
            let actor = |epoch| ActorId { incarnation: Incarnation(1), epoch };
            VersionVector::try_from((0..count).map(|epoch| (actor(epoch), 1)).collect::<Vec<_>>()).unwrap()
        };
        with(|token| {
            let largest = token.seal(&entries(65_535)).unwrap();
            assert_eq!(largest.len(), TOKEN_LEN_MAX);
            assert_eq!(token.open(&largest), Ok(entries(65_535)));
            assert_eq!(token.seal(&entries(65_536)), Err(TokenError::TooManyEntries(65_536)));
        });
    }

    #[test]
    fn a_sealed_vector_that_is_none_is_refused() {
        // Only the holder of the secret could make it; still no way around the vector's own rules.
        with(|token| {
            let mut sealed = token.seal(&context()).unwrap();
            sealed.truncate(sealed.len() - MAC_LEN);
            sealed[HEAD_LEN + 16..HEAD_LEN + ENTRY_LEN].fill(0); // a counter of zero
            let mac = token.mac(&sealed);
            sealed.extend_from_slice(&mac);
            assert_eq!(token.open(&sealed), Err(TokenError::Damaged));
        });
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert_eq!(format!("{SECRET:?}"), "TokenSecret(…)");
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(bytes in vec(any::<u8>(), 0..200), keep in 0..120_usize) {
            with(|token| {
                prop_assert!(token.open(&bytes).is_err());
                // The start of a real token, so that garbage gets past the first checks.
                let sealed = token.seal(&context()).unwrap();
                let mixed: Vec<u8> = sealed.iter().take(keep).chain(&bytes).copied().collect();
                prop_assert!(token.open(&mixed).is_err() || mixed == sealed);
                Ok(())
            })?;
        }
    }
}
