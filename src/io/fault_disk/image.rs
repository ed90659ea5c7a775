//! The state of a disk and of the kernel above it, as plain methods: no async, no clock, no lock.
//!
//! A file has two layers, the **medium** and the **page cache** that shows it; between them stands the ordered
//! list of its unsynced writes. Names are alike: each directory has its present entries and its durable ones,
//! and between them stands one ordered list of unsynced changes of names, for the whole disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;

use super::content::{Layer, What};
use super::fault::{FaultKind, Hit};
use super::harm::Faults;
use super::names::{Dir, Entries, Entry, Inode, NameChange, ROOT, Spot, Ties};
use super::node::{Event, GivenUp, Node, Unsynced};

/// A sector: what a disk writes whole or not at all, at the least.
pub(super) const SECTOR: usize = 512;

/// Where a file may end: what is longer is `FileTooLarge`. Bounds the table of its pages.
const LEN_MAX: usize = 1 << 36;

/// Unsynced writes of one file, or changes of names, after which the kernel writes the older half back by
/// itself.
const UNSYNCED_MAX: usize = 16_384;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// The machine is off, or was off since the handle was made.
#[derive(Debug, thiserror::Error)]
#[error("the machine is off, or was since this was opened")]
struct MachineOff;

pub(super) fn off() -> io::Error {
    io::Error::new(ErrorKind::BrokenPipe, MachineOff)
}

/// Whether an operation failed because the machine is off (a crash point was reached), or because its handle
/// is from before a power loss or the death of its process.
pub fn is_off(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<MachineOff>())
}

/// An open file, for the methods of [`Image`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    inode: Inode,
    life: u64,
}

/// A moment in a disk's history: what a sync covers is what had happened when it was called ([`Image::so_far`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SoFar(u64);

/// A lock that is held, for [`Image::unlock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockId(u64);

/// A disk with its faults, and the kernel above it. Paths are taken from the root, with or without a leading
/// `/`. A clone costs a few pointers a file and shares all bytes with the original: taking one at a crash
/// point and trying thousands of outcomes on clones of it is what it is made for.
///
/// The methods named as those of [`io::Disk`](crate::io::Disk) and [`io::File`](crate::io::File) do what those
/// say, at once; besides their errors they fail with one that [`is_off`] knows, and as the faults want.
#[derive(Clone)]
pub struct Image {
    pub(super) nodes: BTreeMap<Inode, Node>,
    pub(super) dirs: BTreeMap<Inode, Dir>,
    pub(super) names: Vec<NameChange>,
    pub(super) names_given_up: Vec<(NameChange, Hit)>,
    /// Names that a fault has changed, each with the entry that would be there without it.
    pub(super) name_marks: BTreeMap<Spot, Vec<(Hit, Option<Entry>)>>,
    pub(super) locks: BTreeMap<PathBuf, LockId>,
    /// Numbers inodes, events and locks; never goes back.
    pub(super) next: u64,
    /// Power losses and deaths of the process so far.
    pub(super) life: u64,
    pub(super) faults: Faults,
}

impl Default for Image {
    fn default() -> Image {
        Image::new()
    }
}

/// The path without root and dots; the root itself is the empty path.
pub(super) fn clean(path: &Path) -> PathBuf {
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

/// A range of a file as indices.
fn range(offset: u64, len: usize) -> io::Result<(usize, usize)> {
    let from = usize::try_from(offset).ok();
    let to = from.and_then(|from| from.checked_add(len)).filter(|to| *to <= LEN_MAX);
    from.zip(to).ok_or_else(|| ErrorKind::FileTooLarge.into())
}

impl Image {
    /// An empty disk without faults.
    pub fn new() -> Image {
        Image {
            nodes: BTreeMap::new(),
            dirs: BTreeMap::from([(ROOT, Dir::default())]),
            names: Vec::new(),
            names_given_up: Vec::new(),
            name_marks: BTreeMap::new(),
            locks: BTreeMap::new(),
            next: ROOT + 1,
            life: 0,
            faults: Faults::default(),
        }
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn check_on(&self) -> io::Result<()> {
        if self.faults.off { Err(off()) } else { Ok(()) }
    }

    /// Passes a boundary: the disk is about to change. The machine may go off instead.
    fn boundary(&mut self) -> io::Result<()> {
        self.check_on()?;
        if self.faults.crash_at == Some(self.faults.boundaries) {
            self.faults.off = true;
            return Err(off());
        }
        self.faults.boundaries += 1;
        Ok(())
    }

    /// The file of a handle of this life.
    fn node(&mut self, id: FileId) -> io::Result<&mut Node> {
        if self.faults.off || id.life != self.life {
            return Err(off());
        }
        // A closed handle of a removed file: nobody can see what is done by it.
        self.nodes.get_mut(&id.inode).ok_or_else(off)
    }

    /// The entry that a look at a name finds; counts the faults that the look sees.
    fn look_up(&mut self, dir: Inode, name: &str) -> Option<Entry> {
        let found = self.dirs[&dir].present.get(name).copied();
        if !self.name_marks.is_empty()
            && let Some(marks) = self.name_marks.remove(&(dir, name.to_owned()))
        {
            for (hit, meant) in marks {
                if meant != found {
                    self.faults.ledger.saw(hit);
                }
            }
        }
        found
    }

    fn dir(&mut self, path: &Path) -> io::Result<Inode> {
        let mut at = ROOT;
        for part in clean(path).components() {
            match self.look_up(at, &part.as_os_str().to_string_lossy()) {
                Some(Entry::Dir(dir)) => at = dir,
                Some(Entry::File(_)) => return Err(ErrorKind::NotADirectory.into()),
                None => return Err(ErrorKind::NotFound.into()),
            }
        }
        Ok(at)
    }

    /// Directory and name of a path.
    fn spot(&mut self, path: &Path) -> io::Result<Spot> {
        let path = clean(path);
        match (path.parent(), path.file_name()) {
            (Some(dir), Some(name)) => Ok((self.dir(dir)?, name.to_string_lossy().into_owned())),
            _ => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn entries(&mut self, dir: Inode) -> &mut Entries {
        let dir = self.dirs.get_mut(&dir).expect("a directory stays while a name leads to it");
        Arc::make_mut(&mut dir.present)
    }

    /// Changes names, visibly and not durably.
    fn change_name(&mut self, from: Option<Spot>, to: Option<Spot>, entry: Entry) {
        if let Some((dir, name)) = &from {
            self.entries(*dir).remove(name);
        }
        if let Some((dir, name)) = &to
            && let Some(Entry::File(replaced)) = self.entries(*dir).insert(name.clone(), entry)
            && let Some(node) = self.nodes.get_mut(&replaced)
        {
            node.unlinked = true;
        }
        if let Some(node) = self.nodes.get_mut(&entry.inode()) {
            node.unlinked = to.is_none();
        }
        let seq = self.number();
        let change = NameChange { seq, from, to, entry, lied: None };
        for spot in change.spots() {
            self.name_marks.remove(spot);
        }
        self.names.push(change);
        if self.names.len() > UNSYNCED_MAX {
            let due: Vec<NameChange> = self.names.drain(..UNSYNCED_MAX / 2).collect();
            for change in &due {
                self.make_durable(change);
            }
        }
    }

    /// Frees what neither a name, present, durable or on its way, nor a handle leads to.
    pub(super) fn collect(&mut self) {
        let named: BTreeSet<Inode> = self
            .dirs
            .values()
            .flat_map(|dir| dir.present.values().chain(dir.durable.values()))
            .chain(self.names.iter().map(|change| &change.entry))
            .map(|entry| entry.inode())
            .collect();
        self.nodes.retain(|inode, node| node.handles > 0 || named.contains(inode));
        self.dirs.retain(|inode, _| *inode == ROOT || named.contains(inode));
    }

    /// See `io::Disk::create_dir_all`.
    pub fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        self.check_on()?;
        let mut at = ROOT;
        for part in clean(path).components() {
            let name = part.as_os_str().to_string_lossy().into_owned();
            at = match self.look_up(at, &name) {
                Some(Entry::Dir(dir)) => dir,
                Some(Entry::File(_)) => return Err(ErrorKind::AlreadyExists.into()),
                None => {
                    self.boundary()?;
                    let made = self.number();
                    self.dirs.insert(made, Dir::default());
                    self.change_name(None, Some((at, name)), Entry::Dir(made));
                    made
                }
            };
        }
        Ok(())
    }

    /// See `io::Disk::open`. Each open is to be given back with [`Image::close`].
    pub fn open(&mut self, path: &Path, create: bool) -> io::Result<FileId> {
        self.check_on()?;
        let (dir, name) = self.spot(path)?;
        let inode = match self.look_up(dir, &name) {
            Some(Entry::File(inode)) => inode,
            Some(Entry::Dir(_)) => return Err(ErrorKind::IsADirectory.into()),
            None if create => {
                self.boundary()?;
                let made = self.number();
                let node = Node {
                    path: clean(path).into(),
                    medium: Layer::default(),
                    cache: Layer::default(),
                    unsynced: Vec::new(),
                    given_up: Vec::new(),
                    handles: 0,
                    unlinked: false,
                };
                self.nodes.insert(made, node);
                self.change_name(None, Some((dir, name)), Entry::File(made));
                made
            }
            None => return Err(ErrorKind::NotFound.into()),
        };
        let id = FileId { inode, life: self.life };
        self.node(id)?.handles += 1;
        Ok(id)
    }

    /// Gives one open handle back; one of an earlier life is gone already.
    pub fn close(&mut self, id: FileId) {
        if id.life != self.life {
            return;
        }
        let node = self.nodes.get_mut(&id.inode).expect("a file with an open handle stays");
        node.handles = node.handles.checked_sub(1).expect("each open is closed once");
        if node.handles == 0 && node.unlinked {
            self.collect();
        }
    }

    /// See `io::Disk::list`.
    pub fn list(&mut self, path: &Path) -> io::Result<Vec<String>> {
        self.check_on()?;
        let dir = self.dir(path)?;
        if !self.name_marks.is_empty() {
            let from = (dir, String::new());
            let marked: Vec<String> = self
                .name_marks
                .range(from..(dir + 1, String::new()))
                .map(|(spot, _)| spot.1.clone())
                .collect();
            for name in marked {
                self.look_up(dir, &name);
            }
        }
        let files = self.dirs[&dir].present.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        Ok(files.map(|(name, _)| name.clone()).collect())
    }

    /// See `io::Disk::rename`. Only files.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.boundary()?;
        let (source, target) = (self.spot(from)?, self.spot(to)?);
        let entry = match self.look_up(source.0, &source.1) {
            Some(Entry::File(inode)) => Entry::File(inode),
            Some(Entry::Dir(_)) => return Err(ErrorKind::IsADirectory.into()),
            None => return Err(ErrorKind::NotFound.into()),
        };
        match self.look_up(target.0, &target.1) {
            Some(Entry::Dir(_)) => return Err(ErrorKind::IsADirectory.into()),
            Some(there) if there == entry => return Ok(()),
            _ => {}
        }
        self.change_name(Some(source), Some(target), entry);
        if let Some(node) = self.nodes.get_mut(&entry.inode()) {
            node.path = clean(to).into();
        }
        Ok(())
    }

    /// See `io::Disk::remove`.
    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.boundary()?;
        let spot = self.spot(path)?;
        match self.look_up(spot.0, &spot.1) {
            Some(entry @ Entry::File(_)) => {
                self.change_name(Some(spot), None, entry);
                Ok(())
            }
            Some(Entry::Dir(_)) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// This moment, for a sync that is called now and carried out later.
    pub fn so_far(&self) -> SoFar {
        SoFar(self.next)
    }

    /// See `io::Disk::sync_dir`. A rename between two directories is one step, durable with the sync of
    /// either, as in a journal.
    pub fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.sync_dir_of(path, self.so_far())
    }

    /// The same for a sync that was called at `called`: changes of names since then stay unsynced.
    pub fn sync_dir_of(&mut self, path: &Path, called: SoFar) -> io::Result<()> {
        self.boundary()?;
        let dir = self.dir(path)?;
        let path = clean(path);
        let of_dir = |change: &NameChange| change.seq < called.0 && change.spots().any(|(at, _)| *at == dir);
        if let Some(hit) = self.fires(FaultKind::SyncError, |rates| rates.sync_error, &path) {
            let all = std::mem::take(&mut self.names).into_iter();
            let (given_up, left): (Vec<NameChange>, Vec<NameChange>) = all.partition(of_dir);
            self.names = left;
            self.names_given_up.extend(given_up.into_iter().map(|change| (change, hit)));
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Some(hit) = self.fires(FaultKind::SyncLie, |rates| rates.sync_lie, &path) {
            for change in self.names.iter_mut().filter(|change| of_dir(change)) {
                change.lied.get_or_insert(hit);
            }
            return Ok(());
        }
        // What these changes hang on becomes durable with them.
        let mut ties = Ties::default();
        let (mut due, mut left) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.names).into_iter().rev() {
            if of_dir(&change) || ties.hold(&change) {
                ties.bind(&change);
                due.push(change);
            } else {
                left.push(change);
            }
        }
        left.reverse();
        self.names = left;
        for change in due.iter().rev() {
            self.make_durable(change);
        }
        if !due.is_empty() {
            self.collect();
        }
        Ok(())
    }

    pub(super) fn make_durable(&mut self, change: &NameChange) {
        if let Some((dir, name)) = &change.from
            && let Some(dir) = self.dirs.get_mut(dir)
            && dir.durable.contains_key(name)
        {
            Arc::make_mut(&mut dir.durable).remove(name);
        }
        if let Some((dir, name)) = &change.to
            && let Some(dir) = self.dirs.get_mut(dir)
        {
            Arc::make_mut(&mut dir.durable).insert(name.clone(), change.entry);
        }
    }

    /// See `io::Disk::lock`; makes the lock file.
    pub fn lock(&mut self, path: &Path) -> io::Result<LockId> {
        let file = self.open(path, true)?;
        self.close(file);
        let path = clean(path);
        if self.locks.contains_key(&path) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let id = LockId(self.number());
        self.locks.insert(path, id);
        Ok(id)
    }

    /// Gives a lock back; one of an earlier life is gone already.
    pub fn unlock(&mut self, id: LockId) {
        self.locks.retain(|_, held| *held != id);
    }

    /// See `io::File::size`.
    pub fn size(&mut self, id: FileId) -> io::Result<u64> {
        self.node(id)?;
        let node = self.nodes.get_mut(&id.inode).expect("just found");
        node.cache.see_len(&mut self.faults.ledger);
        Ok(node.cache.len() as u64)
    }

    /// See `io::File::read_at`.
    pub fn read_at(&mut self, id: FileId, offset: u64, len: usize) -> io::Result<Bytes> {
        let path = self.node(id)?.path.clone();
        let (from, to) = range(offset, len)?;
        if self.faults.chance.as_mut().is_some_and(|chance| chance.happens(|rates| rates.evict)) {
            self.evict_file(id.inode);
        }
        if let Some(hit) = self.fires(FaultKind::ReadError, |rates| rates.read_error, &path) {
            self.faults.ledger.saw(hit);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Some(hit) = self.fires(FaultKind::ShortRead, |rates| rates.short_read, &path) {
            self.faults.ledger.saw(hit);
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let node = self.nodes.get_mut(&id.inode).expect("just found");
        if !node.cache.see(from, to, &mut self.faults.ledger) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if to > node.cache.len() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(node.cache.content.read(from, to).into())
    }

    /// See `io::File::write_at`. On a full disk the part that fits is written.
    pub fn write_at(&mut self, id: FileId, offset: u64, bytes: Bytes) -> io::Result<()> {
        let path = self.node(id)?.path.clone();
        let (at, _) = range(offset, bytes.len())?;
        self.boundary()?;
        let fits = self.room(id.inode, at, bytes.len());
        let full = fits < bytes.len();
        if full {
            self.faults.ledger.fire_seen(FaultKind::NoSpace);
        }
        let bytes = if full { bytes.slice(..fits) } else { bytes };
        if !bytes.is_empty() {
            let astray = self.goes_astray(&path);
            let seq = self.number();
            let node = self.node(id)?;
            node.cache.write(at, &bytes);
            let (at, bytes) = node.redirty(at, bytes);
            node.unsynced.push(Unsynced { seq, event: Event::Write { at, bytes, astray }, lied: None });
            self.write_back(id.inode);
        }
        if full { Err(io::Error::from_raw_os_error(ENOSPC)) } else { Ok(()) }
    }

    /// How many of the bytes of a write have room on the disk.
    fn room(&self, inode: Inode, at: usize, len: usize) -> usize {
        let Some(capacity) = self.faults.capacity else { return len };
        let used: usize =
            self.nodes.values().filter(|n| !n.unlinked || n.handles > 0).map(|n| n.cache.len()).sum();
        let free = usize::try_from(capacity).unwrap_or(usize::MAX).saturating_sub(used);
        let there = self.nodes[&inode].cache.len();
        // Up to its end the file has its room; a gap before the write is to be filled too.
        if at + len <= there { len } else { there.saturating_add(free).saturating_sub(at).min(len) }
    }

    /// See `io::File::set_len`. Lengthening takes no room.
    pub fn set_len(&mut self, id: FileId, len: u64) -> io::Result<()> {
        self.node(id)?;
        let (len, _) = range(len, 0)?;
        self.boundary()?;
        let seq = self.number();
        let node = self.node(id)?;
        node.cache.set_len(len);
        node.given_up.retain(|gone| gone.from < len);
        node.unsynced.push(Unsynced { seq, event: Event::SetLen(len), lied: None });
        self.write_back(id.inode);
        Ok(())
    }

    /// See `io::File::sync_data`.
    pub fn sync_data(&mut self, id: FileId) -> io::Result<()> {
        self.sync_data_of(id, self.so_far())
    }

    /// The same for a sync that was called at `called`: what was written since then stays unsynced.
    pub fn sync_data_of(&mut self, id: FileId, called: SoFar) -> io::Result<()> {
        let path = self.node(id)?.path.clone();
        self.boundary()?;
        if let Some(hit) = self.fires(FaultKind::SyncError, |rates| rates.sync_error, &path) {
            self.give_up(id.inode, called, hit);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Some(hit) = self.fires(FaultKind::SyncLie, |rates| rates.sync_lie, &path) {
            for unsynced in self.node(id)?.unsynced.iter_mut().filter(|unsynced| unsynced.seq < called.0) {
                unsynced.lied.get_or_insert(hit);
            }
            return Ok(());
        }
        let due = self.node(id)?.called_for(called.0);
        self.write_out(id.inode, due);
        self.rot(id.inode);
        Ok(())
    }

    /// A sync of the file has failed: its dirty pages are marked clean. By chance some were written before. A
    /// change of the length stays unsynced: it is the journal's, not the pages'.
    fn give_up(&mut self, inode: Inode, called: SoFar, hit: Hit) {
        let node = self.nodes.get_mut(&inode).expect("the caller has it open");
        let (mut written, mut left) = (Vec::new(), Vec::new());
        for unsynced in node.called_for(called.0) {
            let Event::Write { at, bytes, .. } = &unsynced.event else {
                left.push(unsynced);
                continue;
            };
            let by_chance = self.faults.chance.as_mut().filter(|chance| chance.rates.sync_error > 0.0);
            if by_chance.is_some_and(|chance| chance.random.random_bool(0.5)) {
                written.push(unsynced);
            } else {
                node.given_up.push(GivenUp { from: *at, to: at + bytes.len(), hit });
            }
        }
        // Still in order: what is newer than the call stands behind.
        node.unsynced.splice(0..0, left);
        self.write_out(inode, written);
    }

    /// Beyond some number of unsynced writes the kernel writes the older half back by itself.
    fn write_back(&mut self, inode: Inode) {
        let node = self.nodes.get_mut(&inode).expect("the caller has it open");
        if node.unsynced.len() > UNSYNCED_MAX {
            let due = node.unsynced.drain(..UNSYNCED_MAX / 2).collect();
            self.write_out(inode, due);
        }
    }

    fn write_out(&mut self, inode: Inode, due: Vec<Unsynced>) {
        let mut astray = BTreeSet::new();
        for unsynced in due {
            if let Some(to) = self.apply(inode, &unsynced.event) {
                astray.extend([inode, to]);
            }
        }
        for inode in astray {
            self.evict_file(inode);
        }
    }

    /// Brings an event to the medium. Gives the file that it went to if it went astray.
    pub(super) fn apply(&mut self, inode: Inode, event: &Event) -> Option<Inode> {
        let node = self.nodes.get_mut(&inode)?;
        let (at, bytes, astray) = match event {
            Event::SetLen(len) => {
                node.medium.set_len(*len);
                return None;
            }
            Event::Write { at, bytes, astray: None } => {
                node.medium.write(*at, bytes);
                return None;
            }
            Event::Write { at, bytes, astray: Some(astray) } => (*at, bytes, astray),
        };
        // The length is the file system's and true; the bytes are not there.
        let mut meant = node.medium.content.clone();
        Arc::make_mut(&mut meant).write(at, bytes);
        if node.medium.len() < meant.len() {
            node.medium.set_len(meant.len());
        }
        let end = at + bytes.len();
        if let Some(other) = self.nodes.get_mut(&astray.to) {
            let before = other.medium.content.clone();
            let fits = bytes.len().min(other.medium.len().saturating_sub(astray.at));
            other.medium.write(astray.at, &bytes[..fits]);
            let same = astray.to == inode;
            let meant_there = if same { meant.clone() } else { before };
            other.medium.mark(astray.at, astray.at + fits, astray.hit, What::Meant(meant_there));
        }
        let node = self.nodes.get_mut(&inode)?;
        node.medium.mark(at, end, astray.hit, What::Meant(meant));
        Some(astray.to)
    }

    pub(super) fn evict_file(&mut self, inode: Inode) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.evict(node.cache.len());
        }
    }
}
