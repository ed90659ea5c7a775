//! The fault-injecting disk, as the engine's tests look at it: with a list of what was changed, in order, and with syncs
//! of segments that wait until a test lets them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use tokio::sync::Semaphore;

use super::DIR;
use crate::io::fault_disk::{FaultDisk, Image, LossOdds};
use crate::io::{BoxFuture, DirLock, Disk, File};

/// What a power loss leaves of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// Nothing.
    All,
    /// Everything. Where the machine has not gone off the process was killed, and what was not synced is not synced.
    Nothing,
    /// Some of it, by this seed.
    Some(u64),
}

#[derive(Clone)]
pub(super) struct TestDisk {
    pub(super) disk: FaultDisk,
    log: Arc<Mutex<Vec<String>>>,
    /// When given, each sync of a segment takes one.
    permits: Option<Arc<Semaphore>>,
}

impl TestDisk {
    /// An empty disk with [`DIR`] on it.
    pub(super) fn new() -> TestDisk {
        let mut image = Image::new();
        image.create_dir_all(Path::new(DIR)).unwrap();
        image.sync_dir(Path::new("/")).unwrap();
        TestDisk::of(image)
    }

    fn of(image: Image) -> TestDisk {
        TestDisk { disk: FaultDisk::new(image), log: Arc::default(), permits: None }
    }

    /// The same disk, on which syncs of segments wait for permits.
    pub(super) fn with_permits(&self, permits: usize) -> (TestDisk, Arc<Semaphore>) {
        let semaphore = Arc::new(Semaphore::new(permits));
        (TestDisk { permits: Some(semaphore.clone()), ..self.clone() }, semaphore)
    }

    /// The machine goes off after so many more changes.
    pub(super) fn stop_after(&self, changes: u64) {
        let mut image = self.disk.control();
        let upto = image.boundaries() + changes;
        image.crash_at(upto);
    }

    pub(super) fn set_full(&self, full: bool) {
        self.disk.control().set_capacity(full.then_some(0));
    }

    /// What was changed, in order.
    pub(super) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The disk as the next start finds it.
    pub(super) fn after(&self, loss: Loss) -> TestDisk {
        let mut image = self.disk.image();
        match loss {
            Loss::All => image.lose_unsynced(),
            Loss::Nothing if image.is_machine_off() => image.keep_unsynced(),
            // Where it was to stop is no matter any more.
            Loss::Nothing => image.crash_at(u64::MAX),
            Loss::Some(seed) => {
                image.power_loss(&mut Xoshiro256PlusPlus::seed_from_u64(seed), LossOdds::default());
            }
        }
        TestDisk::of(image)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.disk.image().list(Path::new(DIR)).unwrap()
    }

    pub(super) fn contents(&self, path: &Path) -> Vec<u8> {
        let mut image = self.disk.image();
        let id = image.open(path, false).unwrap();
        let len = usize::try_from(image.size(id).unwrap()).unwrap();
        image.read_at(id, 0, len).unwrap().to_vec()
    }

    /// Sets what the file durably holds.
    pub(super) fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut image = self.disk.control();
        let id = image.open(path, true).unwrap();
        image.set_len(id, 0).unwrap();
        image.write_at(id, 0, bytes.into()).unwrap();
        image.sync_data(id).unwrap();
        image.close(id);
        image.sync_dir(Path::new(DIR)).unwrap();
    }

    fn note(&self, what: &str, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.log.lock().unwrap().push(format!("{what} {name}"));
    }
}

impl Disk for TestDisk {
    fn create_dir_all(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        self.disk.create_dir_all(dir)
    }

    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
        let (open, disk, path) = (self.disk.open(path, create), self.clone(), path.to_owned());
        Box::pin(async move { Ok(Arc::new(TestFile { file: open.await?, disk, path }) as Arc<dyn File>) })
    }

    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>> {
        self.note("rename", to);
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>> {
        self.note("remove", path);
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        self.note("sync-dir", dir);
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
        self.disk.lock(path)
    }
}

struct TestFile {
    file: Arc<dyn File>,
    disk: TestDisk,
    path: PathBuf,
}

impl File for TestFile {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        self.file.size()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        self.file.read_at(offset, len)
    }

    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        self.disk.note("write", &self.path);
        self.file.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
        self.disk.note("cut", &self.path);
        self.file.set_len(len)
    }

    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        let (file, disk, path) = (self.file.clone(), self.disk.clone(), self.path.clone());
        let of_a_segment = path.to_string_lossy().contains(".log");
        Box::pin(async move {
            if let Some(permits) = disk.permits.as_ref().filter(|_| of_a_segment) {
                permits.acquire().await.unwrap().forget();
            }
            disk.note("sync", &path);
            file.sync_data().await
        })
    }
}
