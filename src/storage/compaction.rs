//! Getting space back: the live records of a mostly dead segment go to the end of the log, then its file goes.
//!
//! ```text
//!   victim: dead  live  dead  removal      each live record: partition lock ── does the index still point here?
//!                  └────────┴───────────▶  append at the end, point there ── wait until the log is synced
//!                                          ── remove the file, sync the directory, forget the segment
//! ```
//! A record is moved under its partition's lock, if it is still the newest of its key; an update that comes in between
//! finds one place or the other, with the same contents. Copies go through the same appender and the same groups as
//! everything else and hurry nobody; a limit on bytes a second, which grows with the need, keeps the disk for the
//! clients.
//!
//! The order of things against crashes
//! - The file goes after its copies, and everything that overwrote or removed one of its records, are synced. A crash
//!   before finds both; what is newer wins the replay.
//! - A removed file may come back as long as its directory is not synced. Until then the segment counts as there,
//!   above all for the next rule.
//! - A **removal record** may be the only thing that keeps an older entry of its key away. It is dropped only when no
//!   older segment is there, and the snapshot on the disk (which may still list the key) is from after the removal.
//! - A victim with a record that is needed and cannot be read stays: its key must be corrupt, not absent. So does one with any
//!   damage while its removals are needed: what was there may have been the removal of a key that an older segment, or the
//!   snapshot, still lists. Kept, it tells the next replay that there is a hole; gone, the key would be back unnoticed.
//! - A segment goes only once the snapshot stands for all of the one before it. Where that one ends nobody else can tell
//!   then: cut short, it would lack records of which nothing knows. A snapshot knows of them.

use std::sync::Arc;
use std::time::Duration;

use super::StorageError;
use super::body::decode_id;
use super::engine::{Inner, lock};
use super::format::{KIND_ENTRY, KIND_REMOVE, KIND_START, KIND_STATE, PartitionSet, StateBody};
use super::index::Place;
use super::log::Need;
use super::segment::{Segment, path_of};
use super::walk::{Item, Walk};
use crate::net::codec;
use crate::types::PartitionId;

/// A victim must be at least this dead, in percent: otherwise more is written than won.
const VICTIM_DEAD_MIN: u64 = 10;
/// For each of these percent points above the limit of dead bytes the limit of bandwidth is added once more: clients
/// that write faster than compaction may read would else fill the disk.
const HURRY_STEP: u64 = 2;
/// Copied records are on their way after this time, if no other record takes them along.
const COPY_DUE: Duration = Duration::from_millis(20);
/// Bytes read between two looks at the limit, and between two turns of everybody else on this executor: what moving
/// their records takes comes on top of a client's sync. It grows with the need like the limit, up to the largest:
/// many busy clients take a millisecond a turn, and 32 KiB a turn gave back a fifth of what they wrote.
const STEP: u64 = 32 * 1024;
const STEP_MAX: u64 = 512 * 1024;

/// What is to be done next.
pub(super) enum Next {
    /// Compact this segment; the limit of bandwidth may be passed by so many times. Dead ones go at once, whatever the limits.
    Compact(Arc<Segment>, u64),
    /// Write a snapshot: too much is dead, and all of it in segments that may not go before.
    Snapshot,
}

/// What gives space back, if anything is to.
pub(super) fn next(inner: &Inner) -> Option<Next> {
    let segments = inner.segments.all();
    let synced = inner.log.synced();
    let newest = inner.log.segment().id;
    let (mut len, mut live) = (0, 0);
    let mut worst: Option<(u64, Arc<Segment>)> = None;
    let mut waiting = false;
    for (at, segment) in segments.iter().enumerate() {
        let removals = if at == 0 && removals_may_go(inner, segment) { 0 } else { segment.removals() };
        let needed = segment.live() + removals;
        len += segment.len();
        live += needed;
        let closed = segment.id < newest && segment.end() <= synced;
        if !closed || inner.is_pinned(segment) {
            continue;
        }
        let dead = segment.len().saturating_sub(needed) * 100 / segment.len().max(1);
        if inner.segments.follows_beyond(segment, inner.snapshot_from()) {
            waiting |= dead >= VICTIM_DEAD_MIN;
            continue;
        }
        if needed == 0 {
            return Some(Next::Compact(segment.clone(), 0));
        }
        if dead >= VICTIM_DEAD_MIN && worst.as_ref().is_none_or(|(most, _)| dead > *most) {
            worst = Some((dead, segment.clone()));
        }
    }
    let dead = (len - live.min(len)) * 100 / len.max(1);
    let limit = u64::from(inner.config.dead_percent_max);
    let enough = len >= inner.config.segment_bytes;
    if !enough || dead < limit {
        return None;
    }
    match worst {
        Some((_, segment)) => Some(Next::Compact(segment, (dead - limit) / HURRY_STEP)),
        None => waiting.then_some(Next::Snapshot),
    }
}

/// Whether nothing needs the removal records of the oldest segment any more.
pub(super) fn removals_may_go(inner: &Inner, segment: &Segment) -> bool {
    !inner.segments.any_older(segment.id) && segment.end() <= inner.snapshot_from()
}

/// Compacts one segment.
///
/// # Errors
/// When the disk fails, is full, or the log has latched. The segment is still there then, and nothing is lost.
pub(super) async fn compact(inner: &Inner, victim: &Arc<Segment>, hurry: u64) -> Result<(), StorageError> {
    point!("compaction-begun");
    let path = path_of(&inner.dir, victim.id);
    let was_dead = victim.is_dead();
    if !was_dead {
        let Some(file) = victim.file().cloned() else { return Ok(()) };
        let from = super::format::SEGMENT_HEAD_LEN as u64;
        let mut walk = Walk::new(file, victim.salted(), from.min(victim.len()), victim.len());
        let drop_removals = removals_may_go(inner, victim);
        let mut moving = Move { inner, victim, drop_removals, id: Vec::new() };
        let mut pace = Pace::new(inner, hurry);
        let mut group = PartitionSet::ALL;
        let mut damaged = false;
        while let Some(item) = walk.next().await.map_err(StorageError::io("read", &path))? {
            match item {
                Item::Group { head, .. } => group = head.partitions,
                Item::Bad { from, to } => {
                    damaged = true;
                    inner.note_damage(victim, from, to, &group);
                }
                Item::Record { offset, bytes, opened } => {
                    let body = &bytes[opened.body];
                    let position = victim.base + offset;
                    moving.record(position, opened.kind, body, bytes.len())?;
                    pace.after(inner, offset).await?;
                }
            }
        }
        if damaged && !drop_removals {
            tracing::error!(
                segment = victim.id,
                "kept: a removal that is needed may have stood where it is damaged"
            );
            inner.pin(victim);
            return Ok(());
        }
    }
    if victim.live() > 0 {
        tracing::error!(segment = victim.id, bytes = victim.live(), "kept: needed records cannot be read");
        inner.pin(victim);
        return Ok(());
    }
    // Not the copies alone: what made a record here dead may be gathered and not durable, and this file all that a
    // crash would leave of the key. And no more than that: a full disk must be able to give up what is dead for long.
    let end = if was_dead { victim.released() } else { inner.log.end().0 };
    inner.log.wait_synced(end).await?;
    point!("segment-dead");
    inner.disk.remove(&path).await.map_err(StorageError::io("remove", &path))?;
    point!("segment-removed");
    inner.log.sync_names().await.map_err(StorageError::io("sync", &inner.dir))?;
    inner.segments.remove(victim.base);
    inner.compacted(victim.len());
    tracing::debug!(segment = victim.id, bytes = victim.len(), "compacted");
    Ok(())
}

/// Copies what is needed of a victim.
struct Move<'a> {
    inner: &'a Inner,
    victim: &'a Segment,
    drop_removals: bool,
    /// Scratch, for index keys.
    id: Vec<u8>,
}

impl Move<'_> {
    /// Copies one record, whose body this is, to the end of the log if it is needed.
    fn record(&mut self, position: u64, kind: u16, body: &[u8], len: usize) -> Result<(), StorageError> {
        let Move { inner, victim, drop_removals, id } = self;
        let copy = |partition: PartitionId| {
            let due = inner.clock.mono() + COPY_DUE;
            let need = if kind == KIND_REMOVE { Need::Removal } else { Need::Record };
            inner
                .log
                .append(partition, need, due, |out, seed| super::format::append_raw(out, seed, kind, body))
        };
        match kind {
            KIND_ENTRY => {
                let Ok((table, number)) = decode_id(body, id) else { return Ok(()) };
                let Some(partition) = inner.partition(number) else { return Ok(()) };
                let mut partition = lock(partition);
                let index = partition.index_mut(table);
                let Some((spot, old)) = index.find(id).filter(|(_, place)| place.position == position) else {
                    return Ok(());
                };
                let (to, len) = copy(number)?;
                // What is copied was synced here: the old file stays until the copy is, so nobody has to wait.
                index.replace(spot, Place::new(to, len, old.hash, false).with_reapable(old.is_reapable()));
                victim.sub_live(old.len() as u64);
                inner.copied(len);
            }
            KIND_REMOVE => {
                let Ok((table, number)) = decode_id(body, id) else { return Ok(()) };
                let Some(partition) = inner.partition(number).filter(|_| !*drop_removals) else {
                    return Ok(());
                };
                let partition = lock(partition);
                // With an entry in the index, that entry is what replay must end with.
                if partition.index(table).get(id).is_some() {
                    return Ok(());
                }
                let (_, len) = copy(number)?;
                inner.copied(len);
            }
            KIND_STATE => {
                let Ok(StateBody { partition: number, .. }) = codec::decode(body) else { return Ok(()) };
                let Some(partition) = inner.partition(number) else { return Ok(()) };
                let mut partition = lock(partition);
                if partition.state_place != Some((position, len)) {
                    return Ok(());
                }
                let (to, len) = copy(number)?;
                partition.state_place = Some((to, len));
                victim.sub_live(len as u64);
            }
            KIND_START => {
                let mut started = lock(&inner.started);
                if started.1 != position {
                    return Ok(());
                }
                let (to, len) = copy(PartitionId(0))?;
                (started.1, started.2) = (to, len);
                victim.sub_live(len as u64);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Keeps to the limit of bytes a second.
struct Pace {
    began: Duration,
    per_second: u64,
    step: u64,
    looked: u64,
    read: u64,
}

impl Pace {
    fn new(inner: &Inner, hurry: u64) -> Pace {
        let per_second = inner.config.compaction_bytes_per_second.max(1).saturating_mul(1 + hurry);
        let step = STEP.saturating_mul(1 + hurry).min(STEP_MAX);
        Pace { began: inner.clock.mono(), per_second, step, looked: 0, read: 0 }
    }

    /// `offset` bytes of the victim are read.
    async fn after(&mut self, inner: &Inner, offset: u64) -> Result<(), StorageError> {
        if offset < self.looked + self.step {
            return Ok(());
        }
        self.read += offset - self.looked;
        self.looked = offset;
        // A full disk or a latch ends the copying; a full buffer holds it up like any other writer.
        inner.log.admit().await?;
        let nanos = u128::from(self.read) * 1_000_000_000 / u128::from(self.per_second);
        let due = self.began + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        if due > inner.clock.mono() {
            inner.clock.sleep_until(due).await;
        }
        tokio::task::yield_now().await;
        if inner.is_closing() {
            return Err(StorageError::Latched("the store was closed".to_owned()));
        }
        Ok(())
    }
}
