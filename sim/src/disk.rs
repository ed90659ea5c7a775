//! SimDisk: a host's file system under the simulator. The state, with its faults, is the node's own
//! [`fault_disk`](ringdove::io::fault_disk); this adds time, lives, and the outcomes of a power loss, drawn from
//! the host's stream.
//!
//! An operation starts when the method is called, not when its future is polled, and takes a small random time
//! of its own; it is carried out at the end of that time, also when the asker has gone, as the real disk's
//! threads do. So two operations in flight at once may be carried out in either order. A sync makes durable what was *complete*
//! when it was called. What came while it was under way stays unsynced: a power loss keeps it or loses it, by chance.
//!
//! When a life ends, operations in flight are not carried out, and a handle of it answers `BrokenPipe` for ever.
//! A stalled operation waits at the end of its time, in order, and is carried out when its path is released.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use ringdove::io::disk::DirLock;
use ringdove::io::fault_disk::{FileId, Image, LockId, LossOdds};
use ringdove::io::{BoxFuture, Disk, File};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use crate::seed::Stream;
use crate::timers::Timers;
use crate::trace::Trace;
use crate::world::Life;

/// How long operations take: shortest and longest, evenly drawn.
#[derive(Debug, Clone)]
pub struct DiskTimes {
    /// Reads, writes, names.
    pub short: (Duration, Duration),
    /// Both kinds of sync.
    pub sync: (Duration, Duration),
}

impl Default for DiskTimes {
    fn default() -> DiskTimes {
        DiskTimes {
            short: (Duration::from_micros(5), Duration::from_micros(100)),
            sync: (Duration::from_micros(200), Duration::from_millis(4)),
        }
    }
}

/// The event that a write was made while another one is not synced yet.
pub const TWO_UNSYNCED: &str = "disk-two-unsynced";

type Stalled = Box<dyn FnOnce() + Send>;

/// What became of a disk's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskChange<'a> {
    /// A file was synced.
    Synced(&'a Path),
    /// A directory was synced.
    DirSynced(&'a Path),
    /// A name was removed.
    Removed(&'a Path),
    /// A file was given this length.
    Cut(&'a Path, u64),
    /// All of it is another one: emptied, or as it was before.
    Replaced,
    /// Bytes of it changed at rest.
    Harmed,
    /// The power was lost: what was synced stands, and of the rest what chance has left.
    PowerLoss,
}

/// Watches the disks, from outside the hosts.
pub trait DiskWatch: Send + Sync {
    /// Told after each change, with the disk as it is now. Must not touch the disk.
    fn changed(&self, host: &str, now: Duration, change: DiskChange<'_>, image: &Image);
}

/// What a host's disk is, over all its lives. Clones share it.
#[derive(Clone)]
pub(crate) struct Drive {
    image: Arc<Mutex<Image>>,
    /// Operations that wait for the end of a stall, in order.
    stalled: Arc<Mutex<Vec<Stalled>>>,
    chance: Arc<Mutex<Stream>>,
    times: DiskTimes,
    timers: Timers,
    trace: Trace,
    host: Arc<str>,
    watch: Option<Arc<dyn DiskWatch>>,
    /// What files are called now that were renamed since they were opened.
    renamed: Arc<Mutex<BTreeMap<PathBuf, PathBuf>>>,
}

impl Drive {
    pub(crate) fn new(
        host: &str,
        watch: Option<Arc<dyn DiskWatch>>,
        chance: Stream,
        times: DiskTimes,
        timers: Timers,
        trace: Trace,
    ) -> Drive {
        Drive {
            host: host.into(),
            watch,
            renamed: Arc::default(),
            image: Arc::default(),
            stalled: Arc::default(),
            chance: Arc::new(Mutex::new(chance)),
            times,
            timers,
            trace,
        }
    }

    pub(crate) fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chance(&self) -> MutexGuard<'_, Stream> {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stalled(&self) -> MutexGuard<'_, Vec<Stalled>> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, change: DiskChange<'_>, image: &Image) {
        if let Some(watch) = &self.watch {
            watch.changed(&self.host, self.timers.now(), change, image);
        }
    }

    fn renamed(&self) -> MutexGuard<'_, BTreeMap<PathBuf, PathBuf>> {
        self.renamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time_of(&self, (low, high): (Duration, Duration)) -> Duration {
        self.chance().random_range(low..=high)
    }

    /// The host's process has died, the host has not.
    pub(crate) fn process_death(&self) {
        self.image().process_death();
        self.drop_stalled();
    }

    /// The host has lost its power: what was synced stands, the rest is as chance has it. Gives how many
    /// unsynced events were at stake.
    pub(crate) fn power_loss(&self) -> usize {
        let mut image = self.image();
        let at_stake = image.unsynced();
        image.power_loss(&mut *self.chance(), LossOdds::default());
        self.changed(DiskChange::PowerLoss, &image);
        drop(image);
        self.drop_stalled();
        at_stake
    }

    /// Does something to the disk at rest. `harm` says whether all of it is another one now.
    pub(crate) fn harm(&self, harm: impl FnOnce(&mut Image) -> bool) {
        let mut image = self.image();
        let change = if harm(&mut image) { DiskChange::Replaced } else { DiskChange::Harmed };
        self.changed(change, &image);
    }

    fn drop_stalled(&self) {
        // Taken first: what is dropped may lock the image.
        let stalled = std::mem::take(&mut *self.stalled());
        drop(stalled);
    }

    /// Ends a stall that was set with the same path, and carries out what waited for it.
    pub(crate) fn release(&self, path: &Path) {
        self.image().release(path);
        let stalled = std::mem::take(&mut *self.stalled());
        for carry_out in stalled {
            carry_out();
        }
    }

    /// Carries `work` out now, or when `path` is no longer stalled.
    fn when_released(&self, path: PathBuf, work: Stalled) {
        let is_stalled = self.image().is_stalled(&path);
        if is_stalled {
            let drive = self.clone();
            self.stalled().push(Box::new(move || drive.when_released(path, work)));
        } else {
            work();
        }
    }
}

/// The disk of one life of one host.
#[derive(Clone)]
pub struct SimDisk {
    drive: Drive,
    life: Life,
}

fn gone() -> io::Error {
    io::Error::new(ErrorKind::BrokenPipe, "the host's life that opened this disk is over")
}

impl SimDisk {
    pub(crate) fn new(drive: Drive, life: Life) -> SimDisk {
        SimDisk { drive, life }
    }

    /// Carries `work` out after a time drawn from `range`, if this life is still on then. `held` is let go
    /// after it, without the lock on the image, which the end of a handle takes.
    fn run<T: Send + 'static>(
        &self,
        range: (Duration, Duration),
        name: &'static str,
        path: &Path,
        what: String,
        held: Option<Arc<Open>>,
        work: impl FnOnce(&mut Image) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        if !self.life.is_on() {
            return Box::pin(async { Err(gone()) });
        }
        let (answer, answered) = oneshot::channel();
        let (disk, path) = (self.clone(), path.to_owned());
        let slow = self.drive.image().delay_of(&path);
        self.drive.timers.after(self.drive.time_of(range) + slow, move || {
            let drive = disk.drive.clone();
            let shown = path.clone();
            let carry_out = move || {
                if !disk.life.is_on() {
                    return;
                }
                let result = work(&mut disk.drive.image());
                let outcome = match &result {
                    Ok(_) => "ok".to_owned(),
                    Err(error) => format!("{:?}", error.kind()),
                };
                disk.drive.trace.record(
                    disk.drive.timers.now(),
                    disk.life.host(),
                    name,
                    format_args!("{} {what} {outcome}", shown.display()),
                );
                // The asker may have gone; the work is done all the same. What nobody takes is dropped here,
                // and a file's handle then locks the image, which is free again.
                let _ = answer.send(result);
                drop(held);
            };
            drive.when_released(path, Box::new(carry_out));
        });
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn short<T: Send + 'static>(
        &self,
        name: &'static str,
        path: &Path,
        what: String,
        work: impl FnOnce(&mut Image, &Path) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        let owned = path.to_owned();
        self.run(self.drive.times.short, name, path, what, None, move |image| work(image, &owned))
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        self.short("disk-mkdir", dir, String::new(), Image::create_dir_all)
    }

    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
        let disk = self.clone();
        self.short("disk-open", path, format!("create={create}"), move |image, path| {
            let id = image.open(path, create)?;
            disk.drive.renamed().remove(path);
            Ok(Arc::new(SimFile(Arc::new(Open { disk, id, path: path.to_owned() }))) as Arc<dyn File>)
        })
    }

    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
        self.short("disk-list", dir, String::new(), Image::list)
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>> {
        let (target, drive) = (to.to_owned(), self.drive.clone());
        self.short("disk-rename", from, to.display().to_string(), move |image, from| {
            image.rename(from, &target)?;
            drive.renamed().insert(from.to_owned(), target);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>> {
        let drive = self.drive.clone();
        self.short("disk-remove", path, String::new(), move |image, path| {
            image.remove(path)?;
            drive.changed(DiskChange::Removed(path), image);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        let (owned, drive) = (dir.to_owned(), self.drive.clone());
        let called = drive.image().so_far();
        self.run(self.drive.times.sync, "disk-sync-dir", dir, String::new(), None, move |image| {
            image.sync_dir_of(&owned, called)?;
            drive.changed(DiskChange::DirSynced(&owned), image);
            Ok(())
        })
    }

    fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
        let disk = self.clone();
        self.short("disk-lock", path, String::new(), move |image, path| {
            let id = image.lock(path)?;
            Ok(Box::new(SimLock { disk, id }) as Box<dyn DirLock>)
        })
    }
}

/// A lock that is held. One of an earlier life is gone already; the image knows it by its number.
struct SimLock {
    disk: SimDisk,
    id: LockId,
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.drive.image().unlock(self.id);
    }
}

struct Open {
    disk: SimDisk,
    id: FileId,
    path: PathBuf,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.disk.drive.image().close(self.id);
    }
}

/// An open file; operations in flight hold it open.
struct SimFile(Arc<Open>);

impl SimFile {
    fn run<T: Send + 'static>(
        &self,
        range: (Duration, Duration),
        name: &'static str,
        what: String,
        work: impl FnOnce(&mut Image, FileId) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        let Open { disk, id, .. } = &*self.0;
        let id = *id;
        disk.run(range, name, &self.path(), what, Some(self.0.clone()), move |image| work(image, id))
    }

    /// What the file is called now.
    fn path(&self) -> PathBuf {
        let opened = &self.0.path;
        self.0.disk.drive.renamed().get(opened).unwrap_or(opened).clone()
    }

    fn short<T: Send + 'static>(
        &self,
        name: &'static str,
        what: String,
        work: impl FnOnce(&mut Image, FileId) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        self.run(self.0.disk.drive.times.short, name, what, work)
    }
}

impl File for SimFile {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        self.short("disk-size", String::new(), Image::size)
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        self.short("disk-read", format!("{offset}+{len}"), move |image, id| image.read_at(id, offset, len))
    }

    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        let what = format!("{offset}+{} {:016x}", bytes.len(), xxh3_64(&bytes));
        let (disk, path) = (self.0.disk.clone(), self.path());
        self.short("disk-write", what, move |image, id| {
            image.write_at(id, offset, bytes)?;
            let unsynced = image.unsynced_writes();
            if unsynced > 1 {
                // An event to lose the power at: the earlier write may be lost and this one kept.
                let drive = &disk.drive;
                drive.trace.record(drive.timers.now(), disk.life.host(), TWO_UNSYNCED, path.display());
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
        let (drive, path) = (self.0.disk.drive.clone(), self.path());
        self.short("disk-set-len", len.to_string(), move |image, id| {
            image.set_len(id, len)?;
            drive.changed(DiskChange::Cut(&path, len), image);
            Ok(())
        })
    }

    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        let (drive, path) = (self.0.disk.drive.clone(), self.path());
        let called = drive.image().so_far();
        self.run(drive.times.sync, "disk-sync", String::new(), move |image, id| {
            image.sync_data_of(id, called)?;
            drive.changed(DiskChange::Synced(&path), image);
            Ok(())
        })
    }
}
