//! SimDisk: a host's file system under the simulator. The state is [`files`]; this adds time and lives.
//!
//! An operation starts when the method is called, not when its future is polled, and takes a small random time
//! of its own; it is carried out at the end of that time, also when the asker has gone, as the real disk's
//! threads do. So two operations in flight at once may be carried out in either order, and a sync covers the
//! writes that were *complete* when it was called, no others for certain.
//!
//! When a life ends, operations in flight are not carried out, and a handle of it answers `BrokenPipe` for ever.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use ringdove::io::disk::DirLock;
use ringdove::io::{BoxFuture, Disk, File};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use crate::seed::Stream;
use crate::timers::Timers;
use crate::trace::Trace;
use crate::world::Life;

pub mod files;

use files::{FileId, Files};

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

/// What a host's disk is, over all its lives. Clones share it.
#[derive(Clone)]
pub(crate) struct Drive {
    files: Arc<Mutex<Files>>,
    chance: Arc<Mutex<Stream>>,
    times: DiskTimes,
    timers: Timers,
    trace: Trace,
}

impl Drive {
    pub(crate) fn new(chance: Stream, times: DiskTimes, timers: Timers, trace: Trace) -> Drive {
        Drive { files: Arc::default(), chance: Arc::new(Mutex::new(chance)), times, timers, trace }
    }

    pub(crate) fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time_of(&self, (low, high): (Duration, Duration)) -> Duration {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner).random_range(low..=high)
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
    /// after it, without the lock on the files, which the end of a handle takes.
    fn run<T: Send + 'static>(
        &self,
        range: (Duration, Duration),
        name: &'static str,
        what: String,
        held: Option<Arc<Open>>,
        work: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        if !self.life.is_on() {
            return Box::pin(async { Err(gone()) });
        }
        let (answer, answered) = oneshot::channel();
        let disk = self.clone();
        self.drive.timers.after(self.drive.time_of(range), move || {
            if !disk.life.is_on() {
                return;
            }
            let result = work(&mut disk.drive.files());
            let outcome = match &result {
                Ok(_) => "ok".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            };
            disk.drive.trace.record(
                disk.drive.timers.now(),
                disk.life.host(),
                name,
                format_args!("{what} {outcome}"),
            );
            // The asker may have gone; the work is done all the same. What nobody takes is dropped here, and
            // a file's handle then locks the files, which are free again.
            let _ = answer.send(result);
            drop(held);
        });
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn short<T: Send + 'static>(
        &self,
        name: &'static str,
        what: String,
        work: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        self.run(self.drive.times.short, name, what, None, work)
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        let dir = dir.to_owned();
        self.short("disk-mkdir", dir.display().to_string(), move |files| files.create_dir_all(&dir))
    }

    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
        let path = path.to_owned();
        let disk = self.clone();
        self.short("disk-open", format!("{} create={create}", path.display()), move |files| {
            let id = files.open(&path, create)?;
            Ok(Arc::new(SimFile(Arc::new(Open { disk, id, path }))) as Arc<dyn File>)
        })
    }

    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
        let dir = dir.to_owned();
        self.short("disk-list", dir.display().to_string(), move |files| files.list(&dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let what = format!("{} {}", from.display(), to.display());
        self.short("disk-rename", what, move |files| files.rename(&from, &to))
    }

    fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>> {
        let path = path.to_owned();
        self.short("disk-remove", path.display().to_string(), move |files| files.remove(&path))
    }

    fn sync_dir(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        let dir = dir.to_owned();
        let what = dir.display().to_string();
        self.run(self.drive.times.sync, "disk-sync-dir", what, None, move |files| files.sync_dir(&dir))
    }

    fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
        let path = path.to_owned();
        let disk = self.clone();
        self.short("disk-lock", path.display().to_string(), move |files| {
            // A lock file is a file: it is there afterwards, as with the real disk.
            let id = files.open(&path, true)?;
            files.close(id);
            if files.lock(&path) {
                Ok(Box::new(SimLock { disk, path }) as Box<dyn DirLock>)
            } else {
                Err(ErrorKind::WouldBlock.into())
            }
        })
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        // The end of a life has already given its locks back; the next life may hold this one.
        if self.disk.life.is_on() {
            self.disk.drive.files().unlock(&self.path);
        }
    }
}

struct Open {
    disk: SimDisk,
    id: FileId,
    path: PathBuf,
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.disk.life.is_on() {
            self.disk.drive.files().close(self.id);
        }
    }
}

/// An open file; operations in flight hold it open.
struct SimFile(Arc<Open>);

impl SimFile {
    fn run<T: Send + 'static>(
        &self,
        range: (Duration, Duration),
        name: &'static str,
        what: &str,
        work: impl FnOnce(&mut Files, FileId) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        let id = self.0.id;
        let what = format!("{} {what}", self.0.path.display());
        self.0.disk.run(range, name, what, Some(self.0.clone()), move |files| work(files, id))
    }
}

impl File for SimFile {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        self.run(self.0.disk.drive.times.short, "disk-size", "", |files, id| Ok(files.size(id)))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        let what = format!("{offset}+{len}");
        self.run(self.0.disk.drive.times.short, "disk-read", &what, move |files, id| {
            files.read_at(id, offset, len)
        })
    }

    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        let what = format!("{offset}+{} {:016x}", bytes.len(), xxh3_64(&bytes));
        self.run(self.0.disk.drive.times.short, "disk-write", &what, move |files, id| {
            files.write_at(id, offset, &bytes)
        })
    }

    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
        self.run(self.0.disk.drive.times.short, "disk-set-len", &len.to_string(), move |files, id| {
            files.set_len(id, len)
        })
    }

    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        self.run(self.0.disk.drive.times.sync, "disk-sync", "", |files, id| {
            files.sync_data(id);
            Ok(())
        })
    }
}
