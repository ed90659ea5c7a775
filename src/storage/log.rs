//! The end of the log: records gather in memory, and one appender writes them, group by group.
//!
//! ```text
//!   append ──▶ gathered ──take──▶ writing ── write_at, fdatasync ──▶ synced: waiters go on
//!              (positions                    meanwhile the next
//!               are final)                   group gathers
//! ```
//! A record has its position, and its checksum over it, from the moment when it is gathered; until it is synced it
//! is read from memory. A group lies within one segment; when a segment is full the next group begins another, whose
//! name is synced before the group counts as synced.
//!
//! Invariants
//! - No byte of a group is written before the fdatasync of the group before it returned. So after a crash at most the
//!   last group is in doubt, and each group's head proves all that stands before it.
//! - A segment's head is synced before its first group is written: without the salt in it nothing can be read, so a
//!   file that goes on behind a head that cannot be read is rot and not a torn tail.
//! - A failed write or sync *latches*: no position is announced as synced any more, and the file is not touched
//!   again. fsync may fail once, drop the pages and succeed the next time; only a restart, which reads what is really
//!   there, may go on (fsyncgate, 2018).
//! - A full disk does not latch while nothing was synced wrongly: a write that ends with `StorageFull` is written
//!   again, the same bytes at the same place, until it succeeds. Waiters are told at once; what becomes of their
//!   records is unknown to them.
//! - A write or sync that takes longer than the limit is *stalled*: until it ends, waiters are told so, and nothing is
//!   appended. A disk that hangs must not hang its node's clients, nor pile them up.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::select;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};

use super::format::{GROUP_HEAD_LEN, GroupHead, PartitionSet, SEGMENT_HEAD_LEN, SegmentHead};
use super::segment::{Segment, Segments, path_of, salt_of};
use super::{SaltSeed, StorageError};
use crate::io::{Clock, Disk, File, Unwritten};
use crate::measure::Histogram;
use crate::net::codec::CodecError;
use crate::sync::Watched;
use crate::types::PartitionId;

/// Only segments that are read can lack a salt.
const SALTED: &str = "the log has made its own segments";
/// Most bytes that may gather, whatever the settings say: a group's length is a u32.
const GATHERED_MAX: usize = 1 << 30;
/// How long a full disk is left alone before the next try.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// How far the log is durable, and what keeps it from going on.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    pub(super) synced: u64,
    pub(super) trouble: Option<Trouble>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No space; goes away when there is some.
    Full,
    /// A write or sync has been under way for longer than the limit; goes away when it ends.
    Stalled(Duration),
    /// A write or sync failed; never goes away.
    Failed(String),
}

impl Trouble {
    pub(super) fn error(&self) -> StorageError {
        match self {
            Trouble::Full => StorageError::DiskFull,
            Trouble::Stalled(pending) => StorageError::Stalled(*pending),
            Trouble::Failed(reason) => StorageError::Latched(reason.clone()),
        }
    }
}

/// A run of the log's bytes.
#[derive(Default)]
struct Run {
    start: u64,
    bytes: Bytes,
}

struct State {
    /// The segment that the gathered group goes to.
    segment: Arc<Segment>,
    /// Position of the gathered group's head.
    start: u64,
    /// Begins with room for the head, once there is a record.
    gathered: Vec<u8>,
    records: u32,
    partitions: PartitionSet,
    /// By the clock's `mono`: when the gathered group must be on its way. Zero is now.
    due: Duration,
    /// Not yet synced, in the appender's hands.
    writing: Run,
    /// Behind the last record. Not `start` when nothing is gathered: the head of a segment may be in between.
    end: u64,
    /// Whom to wake when what is being written is synced, and when what has gathered is. Waking everybody after each
    /// group would cost a thousand clients ten wakes for each write.
    waiting_written: Vec<oneshot::Sender<()>>,
    waiting_gathered: Vec<oneshot::Sender<()>>,
    closing: bool,
}

/// A group that is sealed.
struct Group {
    segment: Arc<Segment>,
    start: u64,
    bytes: Bytes,
    /// Synced before it.
    synced: u64,
}

/// What a record is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Until another takes its place.
    Record,
    /// A removal: for as long as an older segment may hold what it removed.
    Removal,
}

/// Where a new log goes on.
pub(super) struct Start {
    pub(super) segment: Arc<Segment>,
    /// Everything before is synced; the next group stands here.
    pub(super) position: u64,
    /// For the salts of the segments to come.
    pub(super) salts: SaltSeed,
}

/// Bounds of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) segment_bytes: u64,
    pub(super) gathered_bytes: usize,
    pub(super) stall_max: Duration,
}

/// Counts since the start.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) groups: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// How long writing a group and syncing it took, of those that succeeded.
    pub(super) sync_time: Histogram,
}

impl Default for Counters {
    fn default() -> Counters {
        let sync_time = Histogram::of_latency();
        Counters { groups: AtomicU64::default(), bytes: AtomicU64::default(), sync_time }
    }
}

pub(super) struct Log {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: PathBuf,
    limits: Limits,
    segments: Arc<Segments>,
    salts: SaltSeed,
    state: Mutex<State>,
    work: Notify,
    progress: Watched<Progress>,
    /// Whether there is trouble, for a glance.
    troubled: AtomicBool,
    /// The same as in `progress`, for a glance.
    synced: AtomicU64,
    /// When the write that is under way began, in nanoseconds of `mono` plus one; 0 when there is none.
    pending_since: AtomicU64,
    /// One sync of the directory at a time, and whoever waits for the next hears how the last one went.
    names: AsyncMutex<()>,
    pub(super) counters: Counters,
    /// Told after each group.
    pub(super) maintenance: Notify,
}

impl State {
    /// Forgets those that wait no more, before the lists are full: a disk that hangs does not make them grow with every request
    /// that has given up.
    fn drop_who_left(&mut self) {
        for waiting in [&mut self.waiting_written, &mut self.waiting_gathered] {
            if waiting.len() == waiting.capacity() {
                waiting.retain(|waiting| !waiting.is_closed());
            }
        }
    }
}

/// The next group begins with room for its head.
fn begin(state: &mut State) {
    if state.gathered.is_empty() {
        state.gathered.resize(GROUP_HEAD_LEN, 0);
        state.due = Duration::MAX;
    }
}

impl Log {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        dir: PathBuf,
        limits: Limits,
        segments: Arc<Segments>,
        start: Start,
    ) -> Log {
        let state = State {
            segment: start.segment,
            start: start.position,
            gathered: Vec::new(),
            records: 0,
            partitions: PartitionSet::default(),
            due: Duration::MAX,
            writing: Run::default(),
            end: start.position,
            waiting_written: Vec::new(),
            waiting_gathered: Vec::new(),
            closing: false,
        };
        Log {
            disk,
            clock,
            dir,
            limits,
            segments,
            salts: start.salts,
            state: Mutex::new(state),
            work: Notify::new(),
            progress: Watched::new(Progress { synced: start.position, trouble: None }),
            troubled: AtomicBool::new(false),
            synced: AtomicU64::new(start.position),
            pending_since: AtomicU64::new(0),
            names: AsyncMutex::new(()),
            counters: Counters::default(),
            maintenance: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything before this position is durable.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// The position behind the last record, and where a replay may begin that is to meet all records from now on.
    pub(super) fn end(&self) -> (u64, u64) {
        let state = self.state();
        (state.end, state.start)
    }

    /// The segment that is being written.
    pub(super) fn segment(&self) -> Arc<Segment> {
        self.state().segment.clone()
    }

    /// Waits until there is room for a record, and says whether one may be appended at all. To be asked before a
    /// change is made.
    pub(super) async fn admit(&self) -> Result<(), StorageError> {
        self.check()?;
        if self.gathered() <= self.limits.gathered_bytes {
            return Ok(());
        }
        while self.gathered() > self.limits.gathered_bytes {
            self.check()?;
            // Room comes with a group that was written. The lock of the gathered bytes stands before the one of
            // `progress` in the lock order, so the wait looks at `progress` alone.
            let before = self.progress.get().synced;
            if self.gathered() <= self.limits.gathered_bytes {
                break;
            }
            let moved = |now: &Progress| (now.synced > before || now.trouble.is_some()).then_some(());
            self.progress.wait_for(moved).await;
        }
        self.check()
    }

    pub(super) fn gathered(&self) -> usize {
        self.state().gathered.len()
    }

    /// Whether a record may be appended now.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        if self.troubled.load(Ordering::Acquire)
            && let Some(trouble) = &self.progress.get().trouble
        {
            return Err(trouble.error());
        }
        let since = self.pending_since.load(Ordering::Relaxed);
        if since > 0 {
            let pending = self.clock.mono().saturating_sub(Duration::from_nanos(since - 1));
            if pending > self.limits.stall_max {
                return Err(StorageError::Stalled(pending));
            }
        }
        Ok(())
    }

    /// Gathers a record that `write` appends, given the seed of its place. It is on its way at `due` (of `mono`) at
    /// the latest; `Duration::ZERO` is at once. Gives the record's position and length. Its segment counts it as `need`
    /// says before anybody can see it as closed: a segment of which nothing is counted may go. (Counted by the caller, a
    /// thread that was put to sleep in between left a segment that looked dead with a record that it had just taken.)
    ///
    /// # Errors
    /// When `write` refuses, or the store is closed. Nothing was gathered.
    pub(super) fn append(
        &self,
        partition: PartitionId,
        need: Need,
        due: Duration,
        write: impl FnOnce(&mut Vec<u8>, u32) -> Result<usize, CodecError>,
    ) -> Result<(u64, usize), StorageError> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.closing {
            return Err(StorageError::Latched("the store was closed".to_owned()));
        }
        if state.gathered.len() > GATHERED_MAX {
            return Err(StorageError::Stalled(Duration::ZERO));
        }
        begin(state);
        let position = state.start + state.gathered.len() as u64;
        let seed = state.segment.seed(position).expect(SALTED);
        let len = match write(&mut state.gathered, seed) {
            Ok(len) => len,
            Err(error) => {
                if state.records == 0 {
                    state.gathered.clear();
                }
                return Err(error.into());
            }
        };
        state.end = position + len as u64;
        state.records += 1;
        state.partitions.insert(partition);
        let sooner = due < state.due;
        state.due = state.due.min(due);
        match need {
            Need::Record => state.segment.add_live(len as u64),
            Need::Removal => state.segment.add_removal(len as u64),
        }
        drop(guard);
        if sooner {
            self.work.notify_one();
        }
        Ok((position, len))
    }

    /// The bytes of a record that is not synced yet; none when it is.
    pub(super) fn unsynced(&self, position: u64, len: usize) -> Option<Bytes> {
        let state = self.state();
        let within = |start: u64, held: usize| {
            let from = usize::try_from(position.checked_sub(start)?).ok()?;
            (from + len <= held).then_some(from..from + len)
        };
        if let Some(range) = within(state.start, state.gathered.len()) {
            return Some(Bytes::copy_from_slice(&state.gathered[range]));
        }
        within(state.writing.start, state.writing.bytes.len()).map(|range| state.writing.bytes.slice(range))
    }

    /// Waits until everything before the position is durable; a group that could wait is sent on its way.
    pub(super) async fn wait_synced(&self, position: u64) -> Result<(), StorageError> {
        if self.synced() >= position {
            return Ok(());
        }
        loop {
            let woken = {
                let mut state = self.state();
                // Looked at under the lock under which the appender takes its lists: no wake is missed.
                let now = self.progress.get();
                if now.synced >= position {
                    return Ok(());
                }
                if let Some(trouble) = &now.trouble {
                    return Err(trouble.error());
                }
                let (wake, woken) = oneshot::channel();
                state.drop_who_left();
                if position > state.start && !state.gathered.is_empty() {
                    state.waiting_gathered.push(wake);
                    if state.due > Duration::ZERO {
                        state.due = Duration::ZERO;
                        self.work.notify_one();
                    }
                } else {
                    state.waiting_written.push(wake);
                }
                woken
            };
            // A sender that is dropped is a wake too.
            let _ = woken.await;
        }
    }

    /// How many are listed as waiting.
    #[cfg(all(test, not(madsim)))]
    pub(super) fn waiting(&self) -> usize {
        let state = self.state();
        state.waiting_written.len() + state.waiting_gathered.len()
    }

    /// Wakes who waits for what was written; with `all`, everybody.
    fn wake(&self, all: bool) {
        let mut state = self.state();
        let written = std::mem::take(&mut state.waiting_written);
        let gathered = if all { std::mem::take(&mut state.waiting_gathered) } else { Vec::new() };
        drop(state);
        for waiting in written.into_iter().chain(gathered) {
            let _ = waiting.send(());
        }
    }

    /// Waits until a write or sync has failed.
    pub(super) async fn failed(&self) -> String {
        let failed = |now: &Progress| match &now.trouble {
            Some(Trouble::Failed(reason)) => Some(reason.clone()),
            _ => None,
        };
        self.progress.wait_for(failed).await
    }

    /// Takes no more records; the appender ends when all are written. Gives the end of the log.
    pub(super) fn close(&self) -> u64 {
        let mut state = self.state();
        state.closing = true;
        let end = state.end;
        drop(state);
        self.work.notify_one();
        end
    }

    /// The one task that writes. Ends after [`Log::close`], or when it has latched.
    pub(super) async fn run(&self) {
        while let Some(group) = self.next_group().await {
            if self.sound().is_err() {
                return; // by a sync of names that somebody else asked for
            }
            loop {
                let began = self.clock.mono();
                self.pending_since.store(nanos(began), Ordering::Relaxed);
                let written = self.write_in_time(&group, began).await;
                self.pending_since.store(0, Ordering::Relaxed);
                match written {
                    Ok(()) => {
                        let took = self.clock.mono().saturating_sub(began);
                        self.counters.sync_time.enter_time(took);
                        break;
                    }
                    Err(Failure::Full) => {
                        point!("disk-full");
                        if !self.stays_full().await {
                            return;
                        }
                    }
                    Err(Failure::Latch(error)) => {
                        self.latch(&error);
                        return;
                    }
                }
            }
            if !self.done(&group) {
                return;
            }
        }
    }

    /// Writes a group, and says so when that takes longer than it may.
    async fn write_in_time(&self, group: &Group, began: Duration) -> Result<(), Failure> {
        let mut write = std::pin::pin!(self.write(group));
        select! {
            biased;
            written = &mut write => return written,
            () = self.clock.sleep_until(began + self.limits.stall_max) => {}
        }
        let pending = self.limits.stall_max;
        tracing::error!(dir = %self.dir.display(), ?pending, "the disk does not answer: writes are refused until it does");
        self.trouble(Trouble::Stalled(pending));
        write.await
    }

    /// Waits for the next group to be due and seals it; none when the log is closed.
    async fn next_group(&self) -> Option<Group> {
        loop {
            let due = {
                let mut state = self.state();
                if state.gathered.is_empty() {
                    if state.closing {
                        return None;
                    }
                    Duration::MAX
                } else {
                    let full = state.gathered.len() > self.limits.gathered_bytes / 2;
                    let due = state.due;
                    let early = buggify!("group-early");
                    if full || state.closing || due.is_zero() || due <= self.clock.mono() || early {
                        return Some(self.seal(&mut state));
                    }
                    due
                }
            };
            if due == Duration::MAX {
                self.work.notified().await;
            } else {
                select! {
                    biased;
                    () = self.work.notified() => {}
                    () = self.clock.sleep_until(due) => {}
                }
            }
        }
    }

    fn seal(&self, state: &mut State) -> Group {
        let capacity = state.gathered.len();
        let mut gathered = std::mem::replace(&mut state.gathered, Vec::with_capacity(capacity));
        let start = state.start;
        let head = GroupHead {
            position: start,
            synced: self.synced(),
            len: u32::try_from(gathered.len() - GROUP_HEAD_LEN).expect("checked: a group is below 4 GiB"),
            records: std::mem::take(&mut state.records),
            partitions: std::mem::take(&mut state.partitions),
        };
        head.write(&mut gathered, state.segment.seed(start).expect(SALTED));
        let bytes = Bytes::from(gathered);
        let segment = state.segment.clone();
        let end = start + bytes.len() as u64;
        state.writing = Run { start, bytes: bytes.clone() };
        let gathered = std::mem::take(&mut state.waiting_gathered);
        state.waiting_written.extend(gathered);
        state.start = end;
        // What goes to the file will have this length; nobody reads it from there before it is synced.
        segment.set_len(end - segment.base);
        if end - segment.base >= self.limits.segment_bytes {
            let id = segment.id + 1;
            let next = Arc::new(Segment::new(id, end, salt_of(self.salts, id)));
            next.set_len(SEGMENT_HEAD_LEN as u64);
            self.segments.insert(next.clone());
            state.segment = next;
            state.start = end + SEGMENT_HEAD_LEN as u64;
        }
        Group { segment, start, bytes, synced: head.synced }
    }

    /// An error once a write or sync has failed.
    pub(super) fn sound(&self) -> Result<(), StorageError> {
        match self.progress.get().trouble {
            Some(trouble @ Trouble::Failed(_)) => Err(trouble.error()),
            _ => Ok(()),
        }
    }

    /// Nothing more is announced as durable.
    pub(super) fn latch(&self, error: &io::Error) {
        point!("log-latched");
        tracing::error!(dir = %self.dir.display(), %error, "the log cannot be written");
        self.progress.modify(|now| {
            now.trouble = Some(Trouble::Failed(error.to_string()));
            self.troubled.store(true, Ordering::Release);
            true
        });
        self.wake(true);
    }

    /// Makes the names in the directory durable, for everybody who has changed one.
    ///
    /// A sync that fails gives up the names of all, also that of a new segment, and the next one succeeds without them: so
    /// a failure latches, whoever asked. (Found by the simulator, seed 248: the failure was a snapshot's, and what was
    /// written to a segment made at that moment was acknowledged and gone with the power.)
    pub(super) async fn sync_names(&self) -> io::Result<()> {
        let _alone = self.names.lock().await;
        if let Err(latched) = self.sound() {
            return Err(io::Error::other(latched.to_string()));
        }
        point!("names-to-sync");
        let synced = self.disk.sync_dir(&self.dir).await;
        if let Err(error) = &synced {
            self.latch(error);
        }
        synced
    }

    async fn write(&self, group: &Group) -> Result<(), Failure> {
        let segment = &group.segment;
        let offset = group.start - segment.base;
        let first = offset == SEGMENT_HEAD_LEN as u64;
        let file = match segment.file() {
            Some(file) => file.clone(),
            None => self.disk.open(&path_of(&self.dir, segment.id), true).await?,
        };
        if first {
            point!("segment-begun");
            // Synced before anything that cannot be read without it.
            let (id, base, synced) = (segment.id, segment.base, group.synced);
            let head = SegmentHead { id, base, synced, salt: segment.salt.expect(SALTED), before: id - 1 };
            write_and_sync(file.as_ref(), 0, &head.encode().into()).await?;
        }
        write_and_sync(file.as_ref(), offset, &group.bytes).await?;
        if first {
            self.sync_names().await.map_err(Failure::Latch)?;
        }
        segment.set_file(file);
        Ok(())
    }

    /// Announces a group that was written and synced; `false` when somebody else has latched the log meanwhile.
    fn done(&self, group: &Group) -> bool {
        let end = group.start + group.bytes.len() as u64;
        let mut latched = false;
        self.progress.modify(|now| {
            latched = matches!(now.trouble, Some(Trouble::Failed(_)));
            if !latched {
                *now = Progress { synced: end, trouble: None };
                self.synced.store(end, Ordering::Release);
                self.troubled.store(false, Ordering::Release);
            }
            !latched
        });
        if latched {
            return false;
        }
        point!("group-durable");
        self.state().writing = Run::default();
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(group.bytes.len() as u64, Ordering::Relaxed);
        self.wake(false);
        self.maintenance.notify_one();
        true
    }

    /// Tells everybody of trouble that passes; whether it is new.
    fn trouble(&self, trouble: Trouble) -> bool {
        let mut new = false;
        self.progress.modify(|now| {
            let failed = matches!(now.trouble, Some(Trouble::Failed(_)));
            new = !failed && now.trouble.as_ref() != Some(&trouble);
            if new {
                now.trouble = Some(trouble);
                self.troubled.store(true, Ordering::Release);
            }
            new
        });
        self.wake(true);
        new
    }

    /// Says that the disk is full, and waits a little. `false` when the log is closed meanwhile.
    async fn stays_full(&self) -> bool {
        if self.trouble(Trouble::Full) {
            tracing::error!(dir = %self.dir.display(), "the disk is full: writes are refused, reads go on");
        }
        let until = self.clock.mono() + FULL_PAUSE;
        loop {
            if self.state().closing {
                return false;
            }
            select! {
                biased;
                () = self.clock.sleep_until(until) => return true,
                () = self.work.notified() => {}
            }
        }
    }
}

async fn write_and_sync(file: &dyn File, offset: u64, bytes: &Bytes) -> Result<(), Failure> {
    // A failed sync latches also when the disk is full: what of the file is lost then, nobody knows.
    match file.write_and_sync(offset, bytes) {
        Some(both) => Ok(both.await?),
        None => {
            file.write_at(offset, bytes.clone()).await?;
            file.sync_data().await.map_err(Failure::Latch)
        }
    }
}

enum Failure {
    /// Try again later.
    Full,
    /// Never again.
    Latch(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::Full,
            _ => Failure::Latch(error),
        }
    }
}

impl From<Unwritten> for Failure {
    fn from(error: Unwritten) -> Failure {
        match error {
            Unwritten::Write(error) => error.into(),
            Unwritten::Sync(error) => Failure::Latch(error),
        }
    }
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX - 1) + 1
}
