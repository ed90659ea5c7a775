//! A disk in memory with everything that may go wrong with one. Plain code: no runtime, no real clock, no
//! chance but the generators that are passed in.
//!
//! ```text
//!   FaultDisk (io::Disk) ──▶ Image ── names: present ── unsynced changes ── durable
//!     stalls, delays           │                                                         power_loss(rng)
//!                              └───── files: page cache ── unsynced writes ── medium   ─────────────────▶ Image
//! ```
//!
//! What is synced and what is not is kept apart for each file and each name. [`Image`] is the state, with
//! synchronous methods; a clone of it shares all bytes, so that thousands of outcomes of one crash can be
//! tried. [`FaultDisk`] makes it an [`io::Disk`](crate::io::Disk).
//!
//! Faults
//! - With the power: unsynced writes lost, torn at sectors of 512 or 4,096 bytes, overtaken by later ones;
//!   unsynced names lost. See [`Image::power_loss`], and `loss.rs` for what is possible.
//! - Armed for one operation, or drawn by [`Rates`]: sync error, lying sync, read error, short read, misdirected
//!   write, bit flip. See [`Fault`].
//! - Set until they are taken back: a full disk, slow and stalled operations.
//! - At once: bad sector, truncated file, rollback of the whole disk, wipe, death of the process.
//! - At a place: the machine goes off at a given boundary ([`Image::crash_at`]).
//!
//! Each is counted as *fired* when it happens to the disk, and as *effective* when an operation returned
//! something else because of it ([`FaultKind`] says for each when that is). Ranges that a fault has changed keep
//! what they would hold without it, and a read compares: so a fault without consequence is never called
//! effective, and one that was written over before anybody looked neither.
//!
//! Invariants
//! - What a sync that told the truth covered outlives every power loss, whatever becomes of later writes to
//!   the same place; only faults at rest, misdirected writes, rollback and wipe touch it.
//! - The page cache shows what was written until an eviction or a power loss; where a page is clean an eviction
//!   may come with any fault at rest.
//! - The same calls with the same generators give the same bytes, errors and counts.
//!
//! The sources for what disks and kernels do: Pillai and others, "All File Systems Are Not Created Equal"
//! (OSDI 2014), for crashes; Rebello and others, "Can Applications Recover from fsync Failures?" (ATC 2020), for
//! failed syncs; Bairavasundaram and others, "An Analysis of Data Corruption in the Storage Stack" (FAST 2008).
//!
//! Not here: renames of directories, removing directories, hard links, two names for one file; a crash in the
//! middle of a sync of which a part is durable (the crash before it covers that: unsynced writes may be kept).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use tokio::sync::oneshot;

use super::{BoxFuture, Clock, DirLock, Disk, File, Unwritten};

mod content;
mod fault;
mod harm;
mod image;
mod loss;
mod medium;
mod names;
mod node;

pub use fault::{Count, Fault, FaultCounts, FaultKind, Rates};
pub use image::{FileId, Image, LockId, SoFar, is_off};
pub use loss::LossOdds;

/// An operation that waits for the end of a stall. It locks the image itself.
struct Held {
    path: PathBuf,
    job: Box<dyn FnOnce(&Shared) + Send>,
}

struct Shared {
    image: Mutex<Image>,
    /// In the order in which they came. Bounded by its callers: each waits for its answer.
    held: Mutex<Vec<Held>>,
    clock: Option<Arc<dyn Clock>>,
}

impl Shared {
    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A faulty disk as one process sees it. Clones share the disk and the process. After a power loss or the
/// process's death every handle fails with an error that [`is_off`] knows, and so does this value;
/// [`FaultDisk::boot`] gives the next process's.
///
/// An operation is carried out when its method is called, also when the future is dropped; while its path is
/// stalled it waits, and is carried out at the release. A slow one is carried out at the call and answered
/// late. A sync covers what had been carried out when it was called.
#[derive(Clone)]
pub struct FaultDisk {
    shared: Arc<Shared>,
    life: u64,
}

impl FaultDisk {
    /// A disk that holds `image`, with no process's handles or locks.
    pub fn new(image: Image) -> FaultDisk {
        FaultDisk::start(image, None)
    }

    /// The same, with the time for slow operations; without a clock they are not slow.
    pub fn with_clock(image: Image, clock: Arc<dyn Clock>) -> FaultDisk {
        FaultDisk::start(image, Some(clock))
    }

    fn start(mut image: Image, clock: Option<Arc<dyn Clock>>) -> FaultDisk {
        image.process_death();
        let life = image.life();
        let shared = Shared { image: Mutex::new(image), held: Mutex::default(), clock };
        FaultDisk { shared: Arc::new(shared), life }
    }

    /// The state: to arm faults, to look at counts, to end the process. Nothing else goes on while the guard
    /// is held.
    pub fn control(&self) -> MutexGuard<'_, Image> {
        self.shared.image()
    }

    /// A copy of the state, which shares all bytes with it.
    pub fn image(&self) -> Image {
        self.shared.image().clone()
    }

    /// Arms a fault: see [`Image::arm`].
    pub fn arm(&self, fault: Fault) {
        self.shared.image().arm(fault);
    }

    /// What took place so far.
    pub fn counts(&self) -> FaultCounts {
        self.shared.image().counts().clone()
    }

    /// Takes the power away: see [`Image::power_loss`]. What waits for a release is never carried out.
    pub fn power_loss(&self, random: &mut impl Rng, odds: LossOdds) {
        self.shared.image().power_loss(random, odds);
        self.drop_held();
    }

    /// The disk for the next process, after a power loss, rollback, wipe or death of the one before.
    pub fn boot(&self) -> FaultDisk {
        self.drop_held();
        FaultDisk { shared: self.shared.clone(), life: self.shared.image().life() }
    }

    fn drop_held(&self) {
        let held = std::mem::take(&mut *self.shared.held());
        drop(held);
    }

    /// Operations on the path, a file or directory with all below it, wait until it is released.
    pub fn stall(&self, path: &Path) {
        self.shared.image().stall(path);
    }

    /// Ends a stall that was set with the same path. What waited for it is carried out, in order.
    pub fn release(&self, path: &Path) {
        self.shared.image().release(path);
        let held = std::mem::take(&mut *self.shared.held());
        for held in held {
            // Another stall may hold it still.
            if self.shared.image().is_stalled(&held.path) {
                self.shared.held().push(held);
            } else {
                (held.job)(&self.shared);
            }
        }
    }

    fn run<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce(&mut Image) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        let life = self.life;
        let work =
            move |image: &mut Image| if image.life() == life { work(image) } else { Err(image::off()) };
        let mut image = self.shared.image();
        if image.life() == life && image.is_stalled(path) {
            drop(image);
            let (answer, answered) = oneshot::channel();
            let job = Box::new(move |shared: &Shared| {
                let result = work(&mut shared.image());
                // Without the lock: what nobody takes is dropped here, and a handle's end locks the image.
                let _ = answer.send(result);
            });
            self.shared.held().push(Held { path: path.to_owned(), job });
            return Box::pin(async move { answered.await.unwrap_or_else(|_| Err(image::off())) });
        }
        let result = work(&mut image);
        let Some(clock) = self.shared.clock.clone() else {
            return Box::pin(std::future::ready(result));
        };
        let delay = image.delay_of(path);
        drop(image);
        Box::pin(async move {
            if delay > Duration::ZERO {
                clock.sleep_until(clock.mono() + delay).await;
            }
            result
        })
    }
}

impl Disk for FaultDisk {
    fn create_dir_all(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        let path = dir.to_owned();
        self.run(dir, move |image| image.create_dir_all(&path))
    }

    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
        let (disk, path_owned) = (self.clone(), path.to_owned());
        self.run(path, move |image| {
            let id = image.open(&path_owned, create)?;
            Ok(Arc::new(Open { disk, id, path: path_owned }) as Arc<dyn File>)
        })
    }

    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
        let path = dir.to_owned();
        self.run(dir, move |image| image.list(&path))
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>> {
        let (source, target) = (from.to_owned(), to.to_owned());
        self.run(from, move |image| image.rename(&source, &target))
    }

    fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>> {
        let owned = path.to_owned();
        self.run(path, move |image| image.remove(&owned))
    }

    fn sync_dir(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        let (path, called) = (dir.to_owned(), self.shared.image().so_far());
        self.run(dir, move |image| image.sync_dir_of(&path, called))
    }

    fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
        let (disk, owned) = (self.clone(), path.to_owned());
        self.run(path, move |image| {
            let id = image.lock(&owned)?;
            Ok(Box::new(HeldLock { disk, id }) as Box<dyn DirLock>)
        })
    }
}

struct HeldLock {
    disk: FaultDisk,
    id: LockId,
}

impl DirLock for HeldLock {}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.disk.shared.image().unlock(self.id);
    }
}

/// An open file. The path is the one that it was opened by, for stalls and delays.
struct Open {
    disk: FaultDisk,
    id: FileId,
    path: PathBuf,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.disk.shared.image().close(self.id);
    }
}

impl File for Open {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        let id = self.id;
        self.disk.run(&self.path, move |image| image.size(id))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        let id = self.id;
        self.disk.run(&self.path, move |image| image.read_at(id, offset, len))
    }

    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        let id = self.id;
        self.disk.run(&self.path, move |image| image.write_at(id, offset, bytes))
    }

    fn write_and_sync(
        &self,
        offset: u64,
        bytes: &Bytes,
    ) -> Option<BoxFuture<'static, Result<(), Unwritten>>> {
        let written = self.write_at(offset, bytes.clone());
        let (disk, path, id) = (self.disk.clone(), self.path.clone(), self.id);
        Some(Box::pin(async move {
            written.await.map_err(Unwritten::Write)?;
            disk.run(&path, move |image| image.sync_data(id)).await.map_err(Unwritten::Sync)
        }))
    }

    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
        let id = self.id;
        self.disk.run(&self.path, move |image| image.set_len(id, len))
    }

    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        let (id, called) = (self.id, self.disk.shared.image().so_far());
        self.disk.run(&self.path, move |image| image.sync_data_of(id, called))
    }
}

#[cfg(test)]
mod tests;
