//! What happened, as a rolling 64-bit hash and, on demand, as one line an event.
//!
//! Two runs did the same if and only if (up to a collision) their hashes are equal: the hash covers simulated
//! time, host, kind and text of every event, in order. It lives outside the runtime, so that it can still be
//! read after a panic has ended the run.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Columns of the log for the host and the kind of an event; longer names push what follows.
const HOST: usize = 8;
const KIND: usize = 14;
/// The kinds of events that hosts have, points of node code aside, for triggers of a fault plan.
pub const EVENTS: [&str; 48] = [
    "start",
    "exit",
    "kill",
    "power-loss",
    "unsynced",
    "pause",
    "resume",
    "net-listen",
    "net-connect",
    "net-syn",
    "net-syn-ack",
    "net-refuse",
    "net-data",
    "net-fin",
    "net-reset",
    "reply-lost",
    "cut",
    "heal",
    "mend",
    "reset",
    "half-open",
    "loss",
    "slow-link",
    "bandwidth",
    "corrupt",
    "hold",
    "large-stall",
    "small-stall",
    "slow-frames",
    "disk-mkdir",
    "disk-open",
    "disk-list",
    "disk-rename",
    "disk-remove",
    "disk-sync-dir",
    "disk-lock",
    "disk-size",
    "disk-read",
    "disk-write",
    "disk-set-len",
    "disk-sync",
    "disk-two-unsynced",
    "read",
    "not-read",
    "put",
    "delete",
    "written",
    "not-written",
];

/// Waits for the nth event of a kind.
struct Armed {
    node: String,
    kind: String,
    left: u64,
    id: usize,
}

/// A handle to one run's trace; clones share it.
#[derive(Clone, Default)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
    struck: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    armed: Vec<Armed>,
    due: Vec<usize>,
    hash: u64,
    events: u64,
    line: String,
    log: Option<Box<dyn Write + Send>>,
}

impl Trace {
    /// A trace that keeps the hash alone.
    pub fn new() -> Trace {
        Trace::default()
    }

    /// A trace that also writes each event as a line. The hash is the same as without.
    pub fn with_log(log: impl Write + Send + 'static) -> Trace {
        let inner = Arc::new(Mutex::new(Inner { log: Some(Box::new(log)), ..Inner::default() }));
        Trace { inner, struck: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one event. `payload` must not hang on addresses, task ids or anything else that differs from run to
    /// run.
    pub fn record(&self, time: Duration, node: &str, kind: &str, payload: impl fmt::Display) {
        let inner = &mut *self.lock();
        inner.line.clear();
        let (s, ns) = (time.as_secs(), time.subsec_nanos());
        // Writing into a String cannot fail.
        let _ = write!(inner.line, "{s}.{ns:09} {node} {kind} {payload}");
        inner.hash = xxh3_64_with_seed(inner.line.as_bytes(), inner.hash);
        inner.events += 1;
        if let Some(log) = &mut inner.log {
            // Aligned for people; the hash goes by the line without the padding. A log that cannot be written (a closed pipe)
            // must not change the run.
            let _ = writeln!(log, "{s:>5}.{ns:09} {node:<HOST$} {kind:<KIND$} {payload}");
        }
        if !inner.armed.is_empty() {
            inner.strike(node, kind);
            if !inner.due.is_empty() {
                self.struck.notify_one();
            }
        }
    }

    /// Has `id` come due at the `count`th event of this kind of this node from now on.
    pub fn arm(&self, node: &str, kind: &str, count: u64, id: usize) {
        let armed = Armed { node: node.to_owned(), kind: kind.to_owned(), left: count.max(1), id };
        self.lock().armed.push(armed);
    }

    /// Nothing armed comes due any more.
    pub fn disarm(&self) {
        let inner = &mut *self.lock();
        inner.armed.clear();
        inner.due.clear();
    }

    /// What has come due since the last call.
    pub fn due(&self) -> Vec<usize> {
        std::mem::take(&mut self.lock().due)
    }

    /// Returns when something has come due.
    pub async fn struck(&self) {
        self.struck.notified().await;
    }

    /// Adds a line to the log alone, if there is one: something that follows from the events and helps to read them.
    pub fn note(&self, time: Duration, node: &str, kind: &str, payload: impl FnOnce() -> String) {
        let inner = &mut *self.lock();
        if let Some(log) = &mut inner.log {
            let (s, ns) = (time.as_secs(), time.subsec_nanos());
            let _ = writeln!(log, "{s:>5}.{ns:09} {node:<HOST$} ({kind} {})", payload());
        }
    }

    /// The hash over all events so far.
    pub fn hash(&self) -> u64 {
        self.lock().hash
    }

    /// How many events there were so far.
    pub fn events(&self) -> u64 {
        self.lock().events
    }
}

impl Inner {
    fn strike(&mut self, node: &str, kind: &str) {
        let due = &mut self.due;
        self.armed.retain_mut(|armed| {
            if armed.node != node || armed.kind != kind {
                return true;
            }
            armed.left -= 1;
            if armed.left == 0 {
                due.push(armed.id);
            }
            armed.left > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(events: &[(u64, &str, &str, &str)]) -> u64 {
        let trace = Trace::new();
        for (time, node, kind, payload) in events {
            trace.record(Duration::from_nanos(*time), node, kind, payload);
        }
        trace.hash()
    }

    #[test]
    fn the_hash_covers_time_node_kind_payload_and_order() {
        let a = (1, "n1", "send", "x");
        let b = (2, "n2", "read", "y");
        let base = hash_of(&[a, b]);
        assert_eq!(base, hash_of(&[a, b]));
        for other in [
            [b, a],
            [(2, "n1", "send", "x"), b],
            [(1, "n2", "send", "x"), b],
            [(1, "n1", "read", "x"), b],
            [(1, "n1", "send", "z"), b],
        ] {
            assert_ne!(base, hash_of(&other));
        }
    }

    #[test]
    fn the_log_is_aligned() {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let trace = Trace::with_log(log.clone());
        trace.record(Duration::from_millis(1), "n1", "send", "first");
        trace.record(Duration::from_secs(100), "refiller", "disk-sync", "second");
        trace.note(Duration::from_secs(100), "n1", "durable", || "third".to_owned());
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let column = |word: &str| text.lines().find_map(|line| line.find(word)).unwrap();
        assert_eq!(column("first"), column("second"), "{text}");
        assert_eq!(column("send"), column("(durable"), "{text}");
    }

    #[test]
    fn a_log_changes_no_hash() {
        let logged = Trace::with_log(std::io::sink());
        logged.record(Duration::from_nanos(1), "n1", "send", "x");
        assert_eq!(logged.hash(), hash_of(&[(1, "n1", "send", "x")]));
        assert_eq!(logged.events(), 1);
    }
}
