//! The disk seam: files read and written at positions, with *synced* and *not synced* kept apart; and the
//! operating system's files as its real implementation.
//!
//! The contract is what POSIX gives and no more. Written bytes are visible to reads at once and durable only
//! after [`File::sync_data`]; a new, renamed or removed name is durable only after [`Disk::sync_dir`] of its
//! directory. After a failed sync the unsynced bytes may be lost although they still read back, and a later
//! sync may succeed without writing them: callers must latch, not retry.
//!
//! The real implementation owns a few threads (nothing else in the node may): system calls that block run
//! there and answer over a channel, so it works on any executor.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::BoxFuture;

/// A file system as a store sees it. Paths are absolute or relative to the process.
pub trait Disk: Send + Sync + 'static {
    /// Makes the directory and its parents. Durable after `sync_dir` of each parent.
    fn create_dir_all(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>>;

    /// Opens a file for reading and writing; makes it when `create` is set and it is not there.
    ///
    /// # Errors
    /// `NotFound` when it is not there and `create` is not set.
    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>>;

    /// The names of the files (not directories) in a directory, sorted.
    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>>;

    /// Renames within one file system, replacing the target. Atomic; durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>>;

    /// Removes a file's name. Durable after `sync_dir`; open handles go on working.
    fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>>;

    /// Makes the names in this directory durable.
    fn sync_dir(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>>;

    /// Takes the exclusive lock of a data directory by its lock file, held until the guard is dropped or the
    /// process ends.
    ///
    /// # Errors
    /// `WouldBlock` when another process (or node of the simulation) holds it.
    fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>>;
}

/// Holds a directory's lock; dropping it gives the lock back.
pub trait DirLock: Send + Sync + 'static {}

/// An open file. Positions are bytes from its start.
pub trait File: Send + Sync + 'static {
    /// The file's length in bytes.
    fn size(&self) -> BoxFuture<'static, io::Result<u64>>;

    /// Reads exactly `len` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>>;

    /// Fills `buffer` from `offset` if that can be done at once: nothing waits for the disk or for another
    /// thread. `false` says "cannot, use [`File::read_at`]", and so does every file that does not say otherwise;
    /// what stands in the buffer then means nothing. Errors are left to `read_at`.
    fn read_now(&self, _offset: u64, _buffer: &mut [u8]) -> bool {
        false
    }

    /// Writes all of `bytes` at `offset`, lengthening the file if needed. On an error a part may be written.
    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>>;

    /// [`File::write_at`] and then [`File::sync_data`], for a file that can do both in one go. None from every file that
    /// does not say otherwise: nothing was done then, and the two are to be called.
    fn write_and_sync(
        &self,
        _offset: u64,
        _bytes: &Bytes,
    ) -> Option<BoxFuture<'static, Result<(), Unwritten>>> {
        None
    }

    /// Cuts or lengthens (with zeros) the file. Durable after `sync_data`.
    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>>;

    /// Makes everything written before this call durable (fdatasync).
    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>>;
}

/// Which half of [`File::write_and_sync`] failed.
#[derive(Debug)]
pub enum Unwritten {
    /// The write. A part may be written; nothing was synced.
    Write(io::Error),
    /// The sync: what of the file is lost, nobody knows.
    Sync(io::Error),
}

/// Threads of a [`RealDisk`] for everything but reads: enough to have a sync, a write and what opens files in the kernel
/// at once.
const THREADS: usize = 4;
/// Threads for reads that the page cache cannot answer. A disk gives most when it is asked for many things at once, and
/// reads must not wait behind syncs.
const READERS: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Jobs waiting for a thread. Bounded by its callers: each waits for its answer.
#[derive(Default)]
struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    wake: Condvar,
}

impl Queue {
    fn push(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).0.push_back(job);
        self.wake.notify_one();
    }

    fn work(&self) {
        loop {
            let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let job = loop {
                if let Some(job) = jobs.0.pop_front() {
                    break job;
                }
                if jobs.1 {
                    return;
                }
                jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            };
            drop(jobs);
            job();
        }
    }
}

/// Ends the threads once the disk and every file of it are gone.
struct Pool {
    queue: Arc<Queue>,
    reads: Arc<Queue>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        for queue in [&self.queue, &self.reads] {
            queue.jobs.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
            queue.wake.notify_all();
        }
    }
}

impl Pool {
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        Pool::run_on(&self.queue, |error| error, work)
    }

    /// As `run`, where reads wait for each other alone.
    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        Pool::run_on(&self.reads, |error| error, work)
    }

    /// `ended` makes the error of a work that no thread is there for.
    fn run_on<T: Send + 'static, E: Send + 'static>(
        queue: &Queue,
        ended: fn(io::Error) -> E,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, E>> {
        let (answer, answered) = oneshot::channel();
        queue.push(Box::new(move || {
            // The asker may have gone; the work is done all the same.
            let _ = answer.send(work());
        }));
        Box::pin(async move {
            answered.await.unwrap_or_else(|_| Err(ended(io::Error::other("the disk's threads have ended"))))
        })
    }
}

/// The operating system's files.
#[derive(Clone)]
pub struct RealDisk {
    pool: Arc<Pool>,
}

impl RealDisk {
    /// Starts the disk's threads; they end when it and its files are dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    #[allow(clippy::disallowed_methods)] // the one owner of threads in the node
    pub fn new() -> io::Result<RealDisk> {
        let pool = Arc::new(Pool { queue: Arc::default(), reads: Arc::default() });
        for (queue, name, threads) in [(&pool.queue, "disk", THREADS), (&pool.reads, "read", READERS)] {
            for n in 0..threads {
                let queue = queue.clone();
                std::thread::Builder::new().name(format!("{name}-{n}")).spawn(move || queue.work())?;
            }
        }
        Ok(RealDisk { pool })
    }
}

struct RealFile {
    file: Arc<std::fs::File>,
    pool: Arc<Pool>,
}

struct RealLock {
    /// The system gives the lock back when this is closed, also when the process is killed.
    _file: std::fs::File,
}

impl DirLock for RealLock {}

#[allow(clippy::disallowed_methods, clippy::disallowed_types)] // the seam that the bans on std::fs point to
mod calls {
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt;

    impl Disk for RealDisk {
        fn create_dir_all(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
            let dir = dir.to_owned();
            self.pool.run(move || fs::create_dir_all(dir))
        }

        fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
            let path = path.to_owned();
            let pool = self.pool.clone();
            self.pool.run(move || {
                let file = fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(create)
                    .truncate(false)
                    .open(path)?;
                Ok(Arc::new(RealFile { file: Arc::new(file), pool }) as Arc<dyn File>)
            })
        }

        fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
            let dir = dir.to_owned();
            self.pool.run(move || {
                let mut names = Vec::new();
                for entry in fs::read_dir(dir)? {
                    let entry = entry?;
                    if entry.file_type()?.is_file() {
                        names.push(entry.file_name().to_string_lossy().into_owned());
                    }
                }
                names.sort();
                Ok(names)
            })
        }

        fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>> {
            let (from, to) = (from.to_owned(), to.to_owned());
            self.pool.run(move || fs::rename(from, to))
        }

        fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>> {
            let path = path.to_owned();
            self.pool.run(move || fs::remove_file(path))
        }

        fn sync_dir(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
            let dir = dir.to_owned();
            self.pool.run(move || fs::File::open(dir)?.sync_all())
        }

        fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
            let path = path.to_owned();
            self.pool.run(move || {
                let file =
                    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
                match file.try_lock() {
                    Ok(()) => Ok(Box::new(RealLock { _file: file }) as Box<dyn DirLock>),
                    Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
                    Err(fs::TryLockError::Error(error)) => Err(error),
                }
            })
        }
    }

    impl File for RealFile {
        fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
            let file = self.file.clone();
            self.pool.run(move || Ok(file.metadata()?.len()))
        }

        fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
            let file = self.file.clone();
            self.pool.read(move || {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes.into())
            })
        }

        #[cfg(target_os = "linux")]
        fn read_now(&self, offset: u64, buffer: &mut [u8]) -> bool {
            use rustix::io::{ReadWriteFlags, preadv2};
            let wanted = buffer.len();
            let mut parts = [io::IoSliceMut::new(buffer)];
            // NOWAIT: what is not in the page cache ends the read early, and a file system that knows no such
            // read (tmpfs) refuses it. Both mean the same here.
            let read = preadv2(&*self.file, &mut parts, offset, ReadWriteFlags::NOWAIT);
            read.is_ok_and(|read| read == wanted)
        }

        fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
            let file = self.file.clone();
            self.pool.run(move || file.write_all_at(&bytes, offset))
        }

        fn write_and_sync(
            &self,
            offset: u64,
            bytes: &Bytes,
        ) -> Option<BoxFuture<'static, Result<(), Unwritten>>> {
            let (file, bytes) = (self.file.clone(), bytes.clone());
            Some(Pool::run_on(&self.pool.queue, Unwritten::Sync, move || {
                file.write_all_at(&bytes, offset).map_err(Unwritten::Write)?;
                file.sync_data().map_err(Unwritten::Sync)
            }))
        }

        fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
            let file = self.file.clone();
            self.pool.run(move || file.set_len(len))
        }

        fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
            let file = self.file.clone();
            self.pool.run(move || file.sync_data())
        }
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_real_file_reads_back_what_was_written_and_ends_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new().unwrap();
        let path = dir.path().join("a");
        assert_eq!(disk.open(&path, false).await.err().unwrap().kind(), io::ErrorKind::NotFound);
        let file = disk.open(&path, true).await.unwrap();
        file.write_at(3, Bytes::from_static(b"abc")).await.unwrap();
        file.sync_data().await.unwrap();
        disk.sync_dir(dir.path()).await.unwrap();
        assert_eq!(file.size().await.unwrap(), 6);
        assert_eq!(&file.read_at(0, 6).await.unwrap()[..], b"\0\0\0abc");
        assert_eq!(file.read_at(4, 3).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(disk.list(dir.path()).await.unwrap(), ["a"]);
        // At once or not at all, never something else; behind the end never.
        let mut buffer = [9; 6];
        assert!(!file.read_now(0, &mut buffer) || &buffer == b"\0\0\0abc");
        assert!(!file.read_now(4, &mut buffer));
        // ext4 and XFS answer from the page cache, where this stands.
        let kind = rustix::fs::statfs(dir.path()).unwrap().f_type;
        if [0xef53, 0x5846_5342].contains(&kind) {
            let mut buffer = [9; 6];
            assert!(file.read_now(0, &mut buffer) && &buffer == b"\0\0\0abc", "on {kind:#x}");
        }
    }

    #[tokio::test]
    async fn reads_do_not_wait_behind_syncs_that_hang() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new().unwrap();
        let file = disk.open(&dir.path().join("a"), true).await.unwrap();
        file.write_at(0, Bytes::from_static(b"abc")).await.unwrap();
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let hanging: Vec<_> = (0..THREADS)
            .map(|_| {
                let hang = hang.clone();
                disk.pool.run(move || hang.lock().unwrap().recv().map_err(io::Error::other))
            })
            .collect();
        assert_eq!(&file.read_at(0, 3).await.unwrap()[..], b"abc");
        (0..THREADS).for_each(|_| release.send(()).unwrap());
        for one in hanging {
            one.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_directory_is_locked_once_until_the_guard_goes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new().unwrap();
        let path = dir.path().join("LOCK");
        let guard = disk.lock(&path).await.unwrap();
        assert_eq!(disk.lock(&path).await.err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(guard);
        disk.lock(&path).await.unwrap();
    }
}
