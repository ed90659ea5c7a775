//! The words that every layer shares: ids, keys, values and the two kinds of time, each a type of its own.
//!
//! Nothing here knows the network, the disk or a protocol. A bare `u64` never crosses a module border: a node
//! id cannot be passed where a counter is meant, and the time that may jump ([`Wall`]) never meets the time
//! that may only drift ([`Mono`]).

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Longest key, in bytes. A longer one is refused at the edge (`KeyError::TooLong`).
pub const KEY_LEN_MAX: usize = 64 * 1024;

/// Why bytes cannot be a key. No state changed; the caller must send another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key has no bytes.
    #[error("a key needs at least one byte")]
    Empty,
    /// The key is longer than [`KEY_LEN_MAX`].
    #[error("the key has {len} bytes, at most {KEY_LEN_MAX} are allowed")]
    TooLong {
        /// Bytes that were given.
        len: usize,
    },
}

/// A key: 1 to [`KEY_LEN_MAX`] arbitrary bytes, ordered bytewise. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Key(Bytes);

impl Key {
    /// Checks the length and takes the bytes as a key.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Key, KeyError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        if bytes.len() > KEY_LEN_MAX {
            return Err(KeyError::TooLong { len: bytes.len() });
        }
        Ok(Key(bytes))
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Bytes> for Key {
    type Error = KeyError;
    fn try_from(bytes: Bytes) -> Result<Key, KeyError> {
        Key::new(bytes)
    }
}

impl From<Key> for Bytes {
    fn from(key: Key) -> Bytes {
        key.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Keyspace within a cluster. Reserved: everything is in namespace 0 today, but it already takes part in the
/// ring hash, the disk key, the token and the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Namespace(pub u32);

/// A member of the cluster. Chosen once, kept in its data directory, never reused for another machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// 64 random bits minted at every start of a node and durable before its first dot leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One local copy of one record on one node, for as long as that copy lives: the unit that counts events in a
/// version vector. Not a node and not a client; `dynamo/version` tells why.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActorId {
    /// The start of the node under which the actor was minted.
    pub incarnation: Incarnation,
    /// The node's counter at the first put that it coordinated on that copy.
    pub epoch: u64,
}

impl fmt::Debug for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.incarnation, self.epoch)
    }
}

/// A range of the ring's hash space, `0..Q`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId(pub u32);

impl fmt::Debug for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// Identifies one put or delete from end to end. Chosen at random by whoever starts it, so that readers can
/// fold a write that became two siblings and checkers can follow it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WriteId(pub u128);

impl fmt::Debug for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{:032x}", self.0)
    }
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Names a cluster for ever; made at random by `init --new-cluster`. Compared in every handshake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Pairs an answer with its request on one connection. Unique among the requests in flight there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// Follows one client request through all nodes. Zero: none yet; the client library or the first node mints one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TraceId(pub [u8; 16]);

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Names one layout: its version and the hash of its contents. Two layouts with one version and different
/// hashes are in conflict; `dynamo/layout` has the rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayoutRef {
    /// Counts up by one with each layout; 0 means "knows no layout yet".
    pub version: u64,
    /// XXH3-64 of the layout's canonical form.
    pub hash: u64,
}

/// Time that never jumps: since an origin of its own on each node and start. May drift by a few percent.
/// For timers, deadlines and the failure detector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mono(Duration);

impl Mono {
    /// The moment this long after the origin.
    pub const fn from_origin(since: Duration) -> Mono {
        Mono(since)
    }

    /// How long after the origin this moment is.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// From `earlier` to this moment; zero when `earlier` is later.
    pub const fn since(self, earlier: Mono) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, after: Duration) -> Mono {
        Mono(self.0.saturating_add(after))
    }
}

impl Sub<Duration> for Mono {
    type Output = Mono;
    fn sub(self, before: Duration) -> Mono {
        Mono(self.0.saturating_sub(before))
    }
}

/// Wall-clock time in milliseconds since the Unix epoch (UTC). May be wrong and may jump: for expiry,
/// `written_at` and log lines only.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Wall(pub u64);

impl Wall {
    /// The latest moment that can be named.
    pub const MAX: Wall = Wall(u64::MAX);

    /// From a duration since the epoch, cut to whole milliseconds.
    pub fn from_epoch(since: Duration) -> Wall {
        Wall(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// This moment plus `after`, at most [`Wall::MAX`].
    pub fn plus(self, after: Duration) -> Wall {
        Wall(self.0.saturating_add(Wall::from_epoch(after).0))
    }
}

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_byte_to_64_kib() {
        assert_eq!(Key::new(Bytes::new()), Err(KeyError::Empty));
        assert!(Key::new(vec![0; KEY_LEN_MAX]).is_ok());
        assert_eq!(Key::new(vec![0; KEY_LEN_MAX + 1]), Err(KeyError::TooLong { len: KEY_LEN_MAX + 1 }));
    }

    #[test]
    fn mono_time_never_goes_below_its_origin() {
        let early = Mono::from_origin(Duration::from_secs(1));
        let late = Mono::from_origin(Duration::from_secs(3));
        assert_eq!(late.since(early), Duration::from_secs(2));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(5), Mono::default());
    }
}
