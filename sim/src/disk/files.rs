//! The files of one host, with what was *written* kept apart from what is *durable*. Plain state: no async, no
//! clock, no chance, no madsim.
//!
//! - Bytes: a file has its present contents and its durable ones. `sync_data` copies the range that changed.
//! - Names: a directory has its present entries and its durable ones. `sync_dir` copies them. A rename changes
//!   the present entries alone, so after a power loss the old name is back; across two directories either,
//!   both or none may be durable.
//! - [`Files::power_loss`] makes durable what is present: everything else is gone.
//!
//! It is the kindest disk that may be: an unsynced byte is always lost and never half written, a synced one
//! always kept, no call fails and space does not end. The disk with faults comes as a module of the node's own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

/// Names one file's contents for as long as a name or an open handle leads to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(FileId),
    Dir,
}

#[derive(Default)]
struct Dir {
    present: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Contents {
    present: Vec<u8>,
    durable: Vec<u8>,
    /// First and one-past-last byte that may differ between the two.
    changed: Option<(usize, usize)>,
    handles: u32,
}

impl Contents {
    fn touch(&mut self, from: usize, to: usize) {
        let (low, high) = self.changed.unwrap_or((from, to));
        self.changed = Some((low.min(from), high.max(to)));
    }

    fn sync(&mut self) {
        self.durable.resize(self.present.len(), 0);
        if let Some((from, to)) = self.changed.take() {
            let to = to.min(self.present.len());
            if from < to {
                self.durable[from..to].copy_from_slice(&self.present[from..to]);
            }
        }
    }
}

/// A file system in memory. Paths are taken from the root, with or without a leading `/`.
pub struct Files {
    dirs: BTreeMap<PathBuf, Dir>,
    contents: BTreeMap<FileId, Contents>,
    locks: BTreeSet<PathBuf>,
    next_id: u64,
}

impl Default for Files {
    fn default() -> Files {
        Files::new()
    }
}

/// The path without root and dots; the root itself is the empty path.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Directory and name of a file's path.
fn split(path: &Path) -> io::Result<(PathBuf, String)> {
    let path = clean(path);
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => Ok((dir.to_owned(), name.to_string_lossy().into_owned())),
        _ => Err(ErrorKind::IsADirectory.into()),
    }
}

/// A length or position as an index; what memory cannot hold is a full disk.
fn index(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| ErrorKind::StorageFull.into())
}

impl Files {
    /// An empty file system.
    pub fn new() -> Files {
        let dirs = BTreeMap::from([(PathBuf::new(), Dir::default())]);
        Files { dirs, contents: BTreeMap::new(), locks: BTreeSet::new(), next_id: 0 }
    }

    fn dir(&mut self, dir: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(dir).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn open_file(&mut self, id: FileId) -> &mut Contents {
        self.contents.get_mut(&id).expect("a file with an open handle keeps its contents")
    }

    /// See `io::Disk::create_dir_all`.
    pub fn create_dir_all(&mut self, dir: &Path) -> io::Result<()> {
        let mut at = PathBuf::new();
        for part in clean(dir).components() {
            let name = part.as_os_str().to_string_lossy().into_owned();
            match self.dir(&at)?.present.insert(name.clone(), Entry::Dir) {
                Some(file @ Entry::File(_)) => {
                    self.dir(&at)?.present.insert(name, file);
                    return Err(ErrorKind::AlreadyExists.into());
                }
                Some(Entry::Dir) | None => {}
            }
            at.push(name);
            self.dirs.entry(at.clone()).or_default();
        }
        Ok(())
    }

    /// See `io::Disk::open`. Each open is to be given back with [`Files::close`].
    pub fn open(&mut self, path: &Path, create: bool) -> io::Result<FileId> {
        let (dir, name) = split(path)?;
        let next = FileId(self.next_id);
        let dir = self.dir(&dir)?;
        let id = match dir.present.get(&name) {
            Some(Entry::File(id)) => *id,
            Some(Entry::Dir) => return Err(ErrorKind::IsADirectory.into()),
            None if create => {
                dir.present.insert(name, Entry::File(next));
                self.next_id += 1;
                self.contents.insert(next, Contents::default());
                next
            }
            None => return Err(ErrorKind::NotFound.into()),
        };
        self.open_file(id).handles += 1;
        Ok(id)
    }

    /// Gives one open handle back.
    pub fn close(&mut self, id: FileId) {
        if let Some(file) = self.contents.get_mut(&id) {
            file.handles = file.handles.saturating_sub(1);
            if file.handles == 0 {
                self.collect();
            }
        }
    }

    /// Frees what neither a name, present or durable, nor a handle leads to.
    fn collect(&mut self) {
        let named: BTreeSet<FileId> = self
            .dirs
            .values()
            .flat_map(|dir| dir.present.values().chain(dir.durable.values()))
            .filter_map(|entry| match entry {
                Entry::File(id) => Some(*id),
                Entry::Dir => None,
            })
            .collect();
        self.contents.retain(|id, file| file.handles > 0 || named.contains(id));
    }

    /// See `io::Disk::list`.
    pub fn list(&mut self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = self.dir(&clean(dir))?;
        Ok(dir
            .present
            .iter()
            .filter(|(_, entry)| matches!(entry, Entry::File(_)))
            .map(|(name, _)| name.clone())
            .collect())
    }

    /// See `io::Disk::rename`. Only files.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = split(from)?;
        let (to_dir, to_name) = split(to)?;
        if self.dir(&to_dir)?.present.get(&to_name) == Some(&Entry::Dir) {
            return Err(ErrorKind::IsADirectory.into());
        }
        let source = self.dir(&from_dir)?;
        match source.present.get(&from_name) {
            Some(entry @ Entry::File(_)) => {
                let entry = *entry;
                source.present.remove(&from_name);
                self.dir(&to_dir)?.present.insert(to_name, entry);
                self.collect();
                Ok(())
            }
            Some(Entry::Dir) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// See `io::Disk::remove`.
    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let dir = self.dir(&dir)?;
        match dir.present.get(&name) {
            Some(Entry::File(_)) => {
                dir.present.remove(&name);
                self.collect();
                Ok(())
            }
            Some(Entry::Dir) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// See `io::Disk::sync_dir`.
    pub fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        let dir = self.dir(&clean(dir))?;
        dir.durable = dir.present.clone();
        self.collect();
        Ok(())
    }

    /// See `io::Disk::lock`; true when it was free.
    pub fn lock(&mut self, path: &Path) -> bool {
        self.locks.insert(clean(path))
    }

    /// Gives a lock back.
    pub fn unlock(&mut self, path: &Path) {
        self.locks.remove(&clean(path));
    }

    /// See `io::File::size`.
    pub fn size(&mut self, id: FileId) -> u64 {
        self.open_file(id).present.len() as u64
    }

    /// See `io::File::read_at`.
    pub fn read_at(&mut self, id: FileId, offset: u64, len: usize) -> io::Result<Bytes> {
        let from = index(offset)?;
        let bytes = from.checked_add(len).and_then(|to| self.open_file(id).present.get(from..to));
        bytes.map(Bytes::copy_from_slice).ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    /// See `io::File::write_at`.
    pub fn write_at(&mut self, id: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let from = index(offset)?;
        let to = from.checked_add(bytes.len()).ok_or(ErrorKind::StorageFull)?;
        let file = self.open_file(id);
        let before = file.present.len();
        if to > before {
            file.present.resize(to, 0);
        }
        file.present[from..to].copy_from_slice(bytes);
        file.touch(from.min(before), to);
        Ok(())
    }

    /// See `io::File::set_len`.
    pub fn set_len(&mut self, id: FileId, len: u64) -> io::Result<()> {
        let len = index(len)?;
        let file = self.open_file(id);
        let before = file.present.len();
        file.present.resize(len, 0);
        file.touch(before.min(len), before.max(len));
        Ok(())
    }

    /// See `io::File::sync_data`.
    pub fn sync_data(&mut self, id: FileId) {
        self.open_file(id).sync();
    }

    /// The host's process has died, the host itself has not: its locks and handles are gone, nothing else.
    pub fn process_death(&mut self) {
        self.locks.clear();
        for file in self.contents.values_mut() {
            file.handles = 0;
        }
        self.collect();
    }

    /// Only what is durable is left; locks and handles are gone.
    pub fn power_loss(&mut self) {
        self.process_death();
        for dir in self.dirs.values_mut() {
            dir.present = dir.durable.clone();
        }
        // A directory whose own name was not durable takes everything below it away.
        let mut kept = BTreeSet::from([PathBuf::new()]);
        for (path, dir) in &self.dirs {
            if kept.contains(path) {
                for (name, entry) in &dir.present {
                    if *entry == Entry::Dir {
                        kept.insert(path.join(name));
                    }
                }
            }
        }
        self.dirs.retain(|path, _| kept.contains(path));
        for file in self.contents.values_mut() {
            file.present = file.durable.clone();
            file.changed = None;
        }
        self.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &mut Files, path: &str, bytes: &[u8]) -> FileId {
        let id = files.open(Path::new(path), true).unwrap();
        files.write_at(id, 0, bytes).unwrap();
        id
    }

    fn read(files: &mut Files, path: &str) -> io::Result<Bytes> {
        let id = files.open(Path::new(path), false)?;
        let len = files.size(id);
        let bytes = files.read_at(id, 0, usize::try_from(len).unwrap());
        files.close(id);
        bytes
    }

    #[test]
    fn a_power_loss_keeps_synced_bytes_and_drops_the_others() {
        let mut files = Files::new();
        let id = written(&mut files, "a", b"synced");
        files.sync_data(id);
        files.sync_dir(Path::new("/")).unwrap();
        files.write_at(id, 6, b" and not").unwrap();
        files.write_at(id, 0, b"S").unwrap();
        assert_eq!(read(&mut files, "a").unwrap(), "Synced and not");
        files.power_loss();
        assert_eq!(read(&mut files, "/a").unwrap(), "synced");
    }

    #[test]
    fn one_sync_makes_all_writes_before_it_durable_wherever_they_are() {
        let mut files = Files::new();
        let id = written(&mut files, "a", b"0123456789");
        files.sync_data(id);
        files.sync_dir(Path::new("/")).unwrap();
        files.write_at(id, 8, b"y").unwrap();
        files.write_at(id, 1, b"x").unwrap();
        files.sync_data(id);
        files.power_loss();
        assert_eq!(read(&mut files, "a").unwrap(), "0x234567y9");
    }

    #[test]
    fn a_power_loss_undoes_an_unsynced_cut_and_keeps_a_synced_one() {
        let mut files = Files::new();
        let id = written(&mut files, "a", b"abcdef");
        files.sync_data(id);
        files.sync_dir(Path::new("/")).unwrap();
        files.set_len(id, 2).unwrap();
        files.write_at(id, 4, b"x").unwrap();
        assert_eq!(read(&mut files, "a").unwrap(), &b"ab\0\0x"[..]);
        files.power_loss();
        assert_eq!(read(&mut files, "a").unwrap(), "abcdef");
        let id = files.open(Path::new("a"), false).unwrap();
        files.set_len(id, 2).unwrap();
        files.set_len(id, 3).unwrap();
        files.sync_data(id);
        files.power_loss();
        assert_eq!(read(&mut files, "a").unwrap(), &b"ab\0"[..]);
    }

    #[test]
    fn a_name_is_durable_only_after_its_directory_was_synced() {
        let mut files = Files::new();
        files.create_dir_all(Path::new("/data/log")).unwrap();
        let id = written(&mut files, "/data/log/1", b"x");
        files.sync_data(id);
        files.power_loss();
        assert_eq!(files.list(Path::new("/data/log")).unwrap_err().kind(), ErrorKind::NotFound);

        files.create_dir_all(Path::new("/data/log")).unwrap();
        files.sync_dir(Path::new("/")).unwrap();
        files.sync_dir(Path::new("/data")).unwrap();
        let id = written(&mut files, "/data/log/1", b"x");
        files.sync_data(id);
        files.power_loss();
        assert!(files.list(Path::new("/data/log")).unwrap().is_empty());

        let id = written(&mut files, "/data/log/1", b"x");
        files.sync_data(id);
        files.sync_dir(Path::new("/data/log")).unwrap();
        files.power_loss();
        assert_eq!(read(&mut files, "/data/log/1").unwrap(), "x");
    }

    #[test]
    fn a_rename_or_removal_without_a_directory_sync_is_undone_by_a_power_loss() {
        let mut files = Files::new();
        let (old, new) = (Path::new("old"), Path::new("new"));
        let id = written(&mut files, "old", b"x");
        files.sync_data(id);
        files.sync_dir(Path::new("/")).unwrap();
        files.rename(old, new).unwrap();
        files.power_loss();
        assert_eq!(files.list(Path::new("/")).unwrap(), ["old"]);
        files.rename(old, new).unwrap();
        files.sync_dir(Path::new("/")).unwrap();
        files.remove(new).unwrap();
        files.power_loss();
        assert_eq!(read(&mut files, "new").unwrap(), "x");
    }

    #[test]
    fn a_removed_file_lives_on_for_its_handles_and_is_freed_after() {
        let mut files = Files::new();
        let id = written(&mut files, "a", b"x");
        files.remove(Path::new("a")).unwrap();
        assert_eq!(files.read_at(id, 0, 1).unwrap(), "x");
        files.close(id);
        assert!(files.contents.is_empty());
    }
}
