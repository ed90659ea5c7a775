//! A small disk that knows what is durable, can stop at any operation, and fails on demand. The full set of faults is
//! `io::fault_disk`'s; this is what the engine's own tests need.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;

use crate::io::{BoxFuture, DirLock, Disk, File};

#[derive(Clone, Default)]
struct Contents {
    present: Vec<u8>,
    durable: Vec<u8>,
    /// Writes and cuts since the last sync.
    since: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    Write(usize, Bytes),
    Cut(usize),
}

#[derive(Clone)]
enum Name {
    Set(PathBuf, usize),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    names_since: Vec<Name>,
    locks: BTreeSet<PathBuf>,
    operations: u64,
    stop_at: Option<u64>,
    fail_syncs: bool,
    full: bool,
    log: Vec<String>,
}

/// What a power loss leaves of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// Nothing.
    All,
    /// Everything: the process was killed, not the machine.
    Nothing,
    /// Some of it, blocks of writes and a prefix of the names, by this seed.
    Some(u64),
}

#[derive(Clone, Default)]
pub(super) struct TestDisk {
    state: Arc<Mutex<State>>,
    /// When given, each sync of a segment takes one.
    permits: Option<Arc<Semaphore>>,
}

impl TestDisk {
    pub(super) fn new() -> TestDisk {
        TestDisk::default()
    }

    /// Syncs of segments wait for permits.
    pub(super) fn with_permits(&self, permits: usize) -> (TestDisk, Arc<Semaphore>) {
        let semaphore = Arc::new(Semaphore::new(permits));
        (TestDisk { state: self.state.clone(), permits: Some(semaphore.clone()) }, semaphore)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Every operation from this one on fails.
    pub(super) fn stop_at(&self, operation: u64) {
        self.state().stop_at = Some(operation);
    }

    pub(super) fn fail_syncs(&self, fail: bool) {
        self.state().fail_syncs = fail;
    }

    pub(super) fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// What was done, in order.
    pub(super) fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// The disk as the next start finds it.
    pub(super) fn after(&self, loss: Loss) -> TestDisk {
        let state = self.state();
        let mut after = State::default();
        let mut chance = match loss {
            Loss::Some(seed) => Some(ChaCha8Rng::seed_from_u64(seed)),
            _ => None,
        };
        for file in &state.files {
            let mut bytes = file.durable.clone();
            match (&mut chance, loss) {
                (_, Loss::Nothing) => bytes = file.present.clone(),
                (Some(chance), _) => {
                    for step in &file.since {
                        match step {
                            Step::Cut(len) if chance.random_bool(0.5) => bytes.resize(*len, 0),
                            Step::Cut(_) => {}
                            Step::Write(at, written) => {
                                for (n, block) in written.chunks(64).enumerate() {
                                    let from = at + n * 64;
                                    if chance.random_bool(0.6) {
                                        if bytes.len() < from + block.len() {
                                            bytes.resize(from + block.len(), 0);
                                        }
                                        bytes[from..from + block.len()].copy_from_slice(block);
                                    }
                                }
                            }
                        }
                    }
                }
                _ => {}
            }
            after.files.push(Contents { present: bytes.clone(), durable: bytes, since: Vec::new() });
        }
        after.names = state.durable_names.clone();
        let kept = match (&mut chance, loss) {
            (_, Loss::Nothing) => state.names_since.len(),
            (Some(chance), _) => chance.random_range(0..=state.names_since.len()),
            _ => 0,
        };
        for name in &state.names_since[..kept] {
            apply(&mut after.names, name);
        }
        after.durable_names = after.names.clone();
        TestDisk { state: Arc::new(Mutex::new(after)), permits: None }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        self.state().names.keys().map(name).collect()
    }

    pub(super) fn contents(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.files[state.names[path]].present.clone()
    }

    /// Sets what the file durably holds.
    pub(super) fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state();
        let next = state.files.len();
        let file = *state.names.entry(path.to_owned()).or_insert(next);
        state.durable_names.insert(path.to_owned(), file);
        let contents = Contents { present: bytes.clone(), durable: bytes, since: Vec::new() };
        if file == next { state.files.push(contents) } else { state.files[file] = contents }
    }

    fn run<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> String,
        writes: bool,
        work: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> BoxFuture<'static, io::Result<T>> {
        let mut state = self.state();
        let now = state.operations;
        state.operations += 1;
        let result = if state.stop_at.is_some_and(|stop| now >= stop) {
            Err(ErrorKind::BrokenPipe.into())
        } else if writes && state.full {
            Err(ErrorKind::StorageFull.into())
        } else {
            let what = what();
            state.log.push(what);
            work(&mut state)
        };
        Box::pin(std::future::ready(result))
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, name: &Name) {
    match name {
        Name::Set(path, file) => {
            names.insert(path.clone(), *file);
        }
        Name::Remove(path) => {
            names.remove(path);
        }
        Name::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

fn short(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Disk for TestDisk {
    fn create_dir_all(&self, _dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        self.run(|| "mkdir".to_owned(), false, |_| Ok(()))
    }

    fn open(&self, path: &Path, create: bool) -> BoxFuture<'static, io::Result<Arc<dyn File>>> {
        let disk = self.clone();
        self.run(
            || format!("open {}", short(path)),
            false,
            |state| {
                let file = match state.names.get(path) {
                    Some(file) => *file,
                    None if create && state.full => return Err(ErrorKind::StorageFull.into()),
                    None if create => {
                        let file = state.files.len();
                        state.files.push(Contents::default());
                        state.names.insert(path.to_owned(), file);
                        state.names_since.push(Name::Set(path.to_owned(), file));
                        file
                    }
                    None => return Err(ErrorKind::NotFound.into()),
                };
                Ok(Arc::new(TestFile { disk, file, name: short(path) }) as Arc<dyn File>)
            },
        )
    }

    fn list(&self, dir: &Path) -> BoxFuture<'static, io::Result<Vec<String>>> {
        let inside = |state: &mut State| {
            let names = state.names.keys().filter(|path| path.parent() == Some(dir));
            Ok(names.map(|path| short(path)).collect())
        };
        self.run(|| "list".to_owned(), false, inside)
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<'static, io::Result<()>> {
        let name = Name::Rename(from.to_owned(), to.to_owned());
        self.run(
            || format!("rename {}", short(to)),
            true,
            |state| {
                apply(&mut state.names, &name);
                state.names_since.push(name);
                Ok(())
            },
        )
    }

    fn remove(&self, path: &Path) -> BoxFuture<'static, io::Result<()>> {
        let name = Name::Remove(path.to_owned());
        self.run(
            || format!("remove {}", short(path)),
            false,
            |state| {
                if !state.names.contains_key(path) {
                    return Err(ErrorKind::NotFound.into());
                }
                apply(&mut state.names, &name);
                state.names_since.push(name);
                Ok(())
            },
        )
    }

    fn sync_dir(&self, _dir: &Path) -> BoxFuture<'static, io::Result<()>> {
        self.run(
            || "sync-dir".to_owned(),
            false,
            |state| {
                if state.fail_syncs {
                    return Err(io::Error::other("the disk is on fire"));
                }
                state.durable_names = state.names.clone();
                state.names_since.clear();
                Ok(())
            },
        )
    }

    fn lock(&self, path: &Path) -> BoxFuture<'static, io::Result<Box<dyn DirLock>>> {
        let (disk, path) = (self.clone(), path.to_owned());
        self.run(
            || "lock".to_owned(),
            false,
            |state| {
                if !state.locks.insert(path.clone()) {
                    return Err(ErrorKind::WouldBlock.into());
                }
                Ok(Box::new(TestLock { disk, path }) as Box<dyn DirLock>)
            },
        )
    }
}

struct TestLock {
    disk: TestDisk,
    path: PathBuf,
}

impl DirLock for TestLock {}

impl Drop for TestLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

struct TestFile {
    disk: TestDisk,
    file: usize,
    name: String,
}

impl File for TestFile {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        let file = self.file;
        self.disk.run(|| "size".to_owned(), false, |state| Ok(state.files[file].present.len() as u64))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        let (file, from) = (self.file, usize::try_from(offset).unwrap());
        self.disk.run(
            || format!("read {}", self.name),
            false,
            |state| {
                let bytes = state.files[file].present.get(from..from + len);
                bytes.map(Bytes::copy_from_slice).ok_or_else(|| ErrorKind::UnexpectedEof.into())
            },
        )
    }

    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        let (file, from) = (self.file, usize::try_from(offset).unwrap());
        self.disk.run(
            || format!("write {} {from}+{}", self.name, bytes.len()),
            true,
            |state| {
                let file = &mut state.files[file];
                if file.present.len() < from + bytes.len() {
                    file.present.resize(from + bytes.len(), 0);
                }
                file.present[from..from + bytes.len()].copy_from_slice(&bytes);
                file.since.push(Step::Write(from, bytes.clone()));
                Ok(())
            },
        )
    }

    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
        let (file, len) = (self.file, usize::try_from(len).unwrap());
        self.disk.run(
            || format!("cut {} {len}", self.name),
            false,
            |state| {
                state.files[file].present.resize(len, 0);
                state.files[file].since.push(Step::Cut(len));
                Ok(())
            },
        )
    }

    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        let (disk, file, name) = (self.disk.clone(), self.file, self.name.clone());
        Box::pin(async move {
            if let Some(permits) = disk.permits.as_ref().filter(|_| name.contains(".log")) {
                permits.acquire().await.unwrap().forget();
            }
            let synced = disk.run(
                || format!("sync {name}"),
                false,
                |state| {
                    let fail = state.fail_syncs;
                    let file = &mut state.files[file];
                    // As Linux does it: the pages are clean after a failed sync, whatever became of them.
                    file.since.clear();
                    if fail {
                        return Err(io::Error::other("the disk is on fire"));
                    }
                    file.durable = file.present.clone();
                    Ok(())
                },
            );
            synced.await
        })
    }
}
