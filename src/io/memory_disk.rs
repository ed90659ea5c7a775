//! A disk in memory: `storage = "memory"`, and the tests that need no faults.
//!
//! It keeps the contract of the seam except for durability: everything is gone with the value and its clones.
//! Calls are carried out when they are made and never wait, so [`File::read_now`] always can. Bytes are kept in
//! one vector a file; a file that is removed is freed with its last handle. No faults: `fault_disk` has those.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;

use super::{BoxFuture, DirLock, Disk, File};

#[derive(Default)]
struct Files {
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Arc<Contents>>,
    locks: BTreeSet<PathBuf>,
}

type Contents = RwLock<Vec<u8>>;

/// Files in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<Files>>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn done<T: Send + 'static>(result: io::Result<T>) -> BoxFuture<'static, io::Result<T>> {
    Box::pin(std::future::ready(result))
}

/// A length or position as an index; what memory cannot hold is a full disk.
fn index(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| ErrorKind::StorageFull.into())
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        let mut files = self.files();
        for dir in dir.ancestors() {
            files.dirs.insert(dir.to_owned());
        }
        done(Ok(()))
    }

    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
        let mut files = self.files();
        let contents = match files.files.get(path) {
            Some(contents) => contents.clone(),
            None if create && path.parent().is_some_and(|dir| files.dirs.contains(dir)) => {
                files.files.entry(path.to_owned()).or_default().clone()
            }
            None => return done(Err(ErrorKind::NotFound.into())),
        };
        done(Ok(Arc::new(MemoryFile(contents)) as Arc<dyn File>))
    }

    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
        let files = self.files();
        if !files.dirs.contains(dir) {
            return done(Err(ErrorKind::NotFound.into()));
        }
        let inside = files.files.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        done(Ok(names.collect()))
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>> {
        let mut files = self.files();
        done(match files.files.remove(from) {
            Some(contents) => {
                files.files.insert(to.to_owned(), contents);
                Ok(())
            }
            None => Err(ErrorKind::NotFound.into()),
        })
    }

    fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>> {
        let removed = self.files().files.remove(path);
        done(removed.map(|_| ()).ok_or_else(|| ErrorKind::NotFound.into()))
    }

    fn sync_dir(&self, _dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        done(Ok(()))
    }

    fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
        done(if self.files().locks.insert(path.to_owned()) {
            Ok(Box::new(MemoryLock { disk: self.clone(), path: path.to_owned() }) as Box<dyn DirLock>)
        } else {
            Err(ErrorKind::WouldBlock.into())
        })
    }
}

struct MemoryLock {
    disk: MemoryDisk,
    path: PathBuf,
}

impl DirLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.disk.files().locks.remove(&self.path);
    }
}

struct MemoryFile(Arc<Contents>);

impl MemoryFile {
    fn copy(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let contents = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(offset).ok()?;
        buffer.copy_from_slice(contents.get(from..from.checked_add(buffer.len())?)?);
        Some(())
    }

    fn change<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> io::Result<T>) -> io::Result<T> {
        work(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl File for MemoryFile {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        done(Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        let mut bytes = vec![0; len];
        let copied = self.copy(offset, &mut bytes);
        done(copied.map(|()| bytes.into()).ok_or_else(|| ErrorKind::UnexpectedEof.into()))
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.copy(offset, buffer).is_some()
    }

    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        done(self.change(|contents| {
            let from = index(offset)?;
            let end = index(offset.saturating_add(bytes.len() as u64))?;
            if contents.len() < end {
                contents.resize(end, 0);
            }
            contents[from..end].copy_from_slice(&bytes);
            Ok(())
        }))
    }

    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
        done(self.change(|contents| {
            contents.resize(index(len)?, 0);
            Ok(())
        }))
    }

    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        done(Ok(()))
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_keep_the_seams_contract() {
        let disk = MemoryDisk::new();
        let (dir, path) = (Path::new("/data/n1"), Path::new("/data/n1/a"));
        assert_eq!(disk.open(path, true).await.err().unwrap().kind(), ErrorKind::NotFound);
        disk.create_dir_all(dir).await.unwrap();
        assert_eq!(disk.open(path, false).await.err().unwrap().kind(), ErrorKind::NotFound);
        let file = disk.open(path, true).await.unwrap();
        file.write_at(2, Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(file.read_at(0, 5).await.unwrap(), &b"\0\0abc"[..]);
        assert_eq!(file.read_at(3, 3).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        disk.rename(path, &dir.join("b")).await.unwrap();
        assert_eq!(disk.list(dir).await.unwrap(), ["b"]);
        disk.remove(&dir.join("b")).await.unwrap();
        assert_eq!(file.size().await.unwrap(), 5, "open handles go on working");
        file.set_len(3).await.unwrap();
        assert_eq!(file.read_at(0, 3).await.unwrap(), &b"\0\0a"[..]);
        let lock = disk.lock(&dir.join("LOCK")).await.unwrap();
        assert_eq!(disk.lock(&dir.join("LOCK")).await.err().unwrap().kind(), ErrorKind::WouldBlock);
        drop(lock);
        disk.lock(&dir.join("LOCK")).await.unwrap();
    }
}
