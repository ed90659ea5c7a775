//! The housekeeper: one task that writes snapshots and compacts, one thing at a time, and looks again after each commit
//! group. What fails is tried again later; what the log holds does not depend on it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::select;

use super::compaction::{self, Next};
use super::engine::{Inner, lock};
use super::{StorageError, directory, snapshot};

/// Before housekeeping that failed is tried again.
const HOUSEKEEPING_PAUSE: Duration = Duration::from_secs(1);

impl Inner {
    /// The housekeeper: looks after each group, and does one thing at a time.
    pub(super) async fn keep_house(&self) {
        while !self.is_closing() {
            self.log.maintenance.notified().await;
            while !self.is_closing() {
                let alone = self.housekeeping.lock().await;
                let due = self.log.synced() >= self.snapshot_due.load(Ordering::Relaxed);
                let done = if due || buggify!("snapshot-early") {
                    self.write_snapshot().await
                } else {
                    match compaction::next(self) {
                        Some(Next::Compact(victim, hurry)) => compaction::compact(self, &victim, hurry).await,
                        Some(Next::Snapshot) => self.write_snapshot().await,
                        None => break,
                    }
                };
                match done {
                    Ok(()) => {}
                    Err(StorageError::Latched(_)) => return,
                    Err(error) => {
                        drop(alone);
                        tracing::warn!(%error, "housekeeping failed: tried again later");
                        self.pause(HOUSEKEEPING_PAUSE).await;
                        // Then at once: on a full disk no group is written that would tell.
                    }
                }
            }
        }
    }

    /// Waits, but not for longer than the store is open.
    async fn pause(&self, pause: Duration) {
        let until = self.clock.mono() + pause;
        while !self.is_closing() {
            select! {
                biased;
                () = self.clock.sleep_until(until) => return,
                () = self.log.maintenance.notified() => {}
            }
        }
    }

    pub(super) async fn write_snapshot(&self) -> Result<(), StorageError> {
        let (body, position, len) = *lock(&self.started);
        let start = Some((body, position, len));
        let min = self.config.snapshot_bytes_min;
        // Also when it fails: not again at once.
        self.snapshot_due.store(self.log.synced() + min, Ordering::Relaxed);
        let written =
            snapshot::write(self.disk.as_ref(), &self.dir, &self.log, &self.partitions, start).await?;
        let due = written.from + min.max(written.bytes * self.config.snapshot_factor);
        self.snapshot_from.store(written.from, Ordering::Relaxed);
        self.snapshot_len.store(written.bytes, Ordering::Relaxed);
        self.snapshot_due.store(due, Ordering::Relaxed);
        self.counters.snapshots.fetch_add(1, Ordering::Relaxed);
        self.counters.snapshot_bytes.fetch_add(written.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The last things before the directory is given free: nothing else is written any more.
    pub(super) async fn leave(&self, end: u64) -> Result<(), StorageError> {
        let replayed = self.log.synced().saturating_sub(self.snapshot_from());
        if replayed > self.config.snapshot_bytes_min {
            self.write_snapshot().await?;
        }
        directory::write_clean(self.disk.as_ref(), &self.dir, end.min(self.log.synced())).await
    }
}
