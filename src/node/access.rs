//! How often keys are asked for on this node, and when last: in memory alone, off unless `track_access` is set.
//!
//! Counted is every read, write and deletion of one key that a client asks of this node, alone or in a batch, however
//! it ends; scans are not, and neither is what other nodes ask. It is kept for the keys that are asked for most
//! (S3-FIFO), 65,536 of them at about 100 bytes each: a key that was pushed out begins again at zero. A key is known
//! by a 128-bit hash, so its length costs nothing.

use std::convert::Infallible;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::types::{Key, Namespace, Wall};

const KEYS_MAX: usize = 65_536;
/// A fixed number: the machine's cores must not be seen in a simulation.
const SHARDS: usize = 8;

/// How often a key was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// How often, since this node has kept count of the key.
    pub hits: u64,
    /// When last, by this node's clock.
    pub last: Wall,
}

#[derive(Default)]
struct Counted {
    hits: AtomicU64,
    last: AtomicU64,
}

/// The keys are hashes already; never seeded at random, for the order of eviction can be seen.
#[derive(Default)]
struct FixedHasher(u64);

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }
}

/// The counters of one node.
pub(super) struct AccessLog {
    keys: Cache<u128, Arc<Counted>, UnitWeighter, BuildHasherDefault<FixedHasher>>,
}

fn id_of(namespace: Namespace, key: &Key) -> u128 {
    xxh3_128_with_seed(key.as_bytes(), namespace.0.into())
}

impl AccessLog {
    pub(super) fn new() -> AccessLog {
        AccessLog::with_room(KEYS_MAX)
    }

    fn with_room(keys_max: usize) -> AccessLog {
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(keys_max).weight_capacity(keys_max as u64).shards(SHARDS);
        let options = options.build().expect("both capacities are given");
        let hasher = BuildHasherDefault::default();
        AccessLog { keys: Cache::with_options(options, UnitWeighter, hasher, DefaultLifecycle::default()) }
    }

    /// Counts one more.
    pub(super) fn touch(&self, namespace: Namespace, key: &Key, now: Wall) {
        let counted =
            self.keys.get_or_insert_with(&id_of(namespace, key), || Ok::<_, Infallible>(Arc::default()));
        let Ok(counted) = counted;
        counted.hits.fetch_add(1, Ordering::Relaxed);
        counted.last.fetch_max(now.0, Ordering::Relaxed);
    }

    /// What was counted; none when the key was not asked for, or pushed out since.
    pub(super) fn of(&self, namespace: Namespace, key: &Key) -> Option<Access> {
        let counted = self.keys.get(&id_of(namespace, key))?;
        let last = Wall(counted.last.load(Ordering::Relaxed));
        Some(Access { hits: counted.hits.load(Ordering::Relaxed), last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn hits_and_the_last_access_are_kept_for_each_key_and_namespace() {
        let log = AccessLog::new();
        assert_eq!(log.of(Namespace(0), &key("dove")), None);
        log.touch(Namespace(0), &key("dove"), Wall(7));
        log.touch(Namespace(0), &key("dove"), Wall(5));
        assert_eq!(log.of(Namespace(0), &key("dove")), Some(Access { hits: 2, last: Wall(7) }));
        assert_eq!(log.of(Namespace(1), &key("dove")), None);
        assert_eq!(log.of(Namespace(0), &key("wren")), None);
    }

    #[test]
    fn a_million_keys_take_no_more_room_than_what_was_given() {
        let log = AccessLog::with_room(1_000);
        for n in 0..1_000_000 {
            log.touch(Namespace(0), &key(&n.to_string()), Wall(n));
        }
        assert!(log.keys.len() <= 1_000, "{} keys", log.keys.len());
        assert!(log.keys.len() >= 900);
    }
}
