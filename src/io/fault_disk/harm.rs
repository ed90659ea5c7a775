//! What is done to a disk from outside: faults armed, set and taken back, the end of a process, rollback, wipe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::content::{Layer, What};
use super::fault::{Chance, Fault, FaultCounts, FaultKind, Hit, Ledger, Rates};
use super::image::{Image, SECTOR, clean};
use super::names::{Dir, Entry, Inode, ROOT, Spot};
use super::node::Astray;

/// A fault that waits for its operation.
#[derive(Clone)]
struct Armed {
    kind: FaultKind,
    path: PathBuf,
    left: u32,
    astray: Option<(PathBuf, u64)>,
}

/// What is wrong with the disk, and where the machine will crash.
#[derive(Clone, Default)]
pub(super) struct Faults {
    pub(super) ledger: Ledger,
    armed: Vec<Armed>,
    pub(super) chance: Option<Chance>,
    pub(super) capacity: Option<u64>,
    slow: BTreeMap<PathBuf, (Duration, Hit)>,
    stalled: BTreeMap<PathBuf, Hit>,
    pub(super) boundaries: u64,
    pub(super) crash_at: Option<u64>,
    pub(super) off: bool,
}

impl Image {
    /// Arms a fault; the kinds that happen at once happen, or do not when there is no such file or place.
    pub fn arm(&mut self, fault: Fault) {
        let mut wait = |kind, path: PathBuf, nth: u32, astray| {
            self.faults.armed.push(Armed { kind, path: clean(&path), left: nth.max(1), astray });
        };
        match fault {
            Fault::SyncError { path, nth } => wait(FaultKind::SyncError, path, nth, None),
            Fault::SyncLie { path, nth } => wait(FaultKind::SyncLie, path, nth, None),
            Fault::ReadError { path, nth } => wait(FaultKind::ReadError, path, nth, None),
            Fault::ShortRead { path, nth } => wait(FaultKind::ShortRead, path, nth, None),
            Fault::MisdirectedWrite { path, nth, to, offset } => {
                wait(FaultKind::MisdirectedWrite, path, nth, Some((to, offset)));
            }
            Fault::BadSector { path, offset } => {
                self.at_rest(&path, |layer, ledger| {
                    let at = usize::try_from(offset).ok().filter(|at| *at < layer.len())?;
                    let sector = at / SECTOR * SECTOR;
                    let hit = ledger.fire(FaultKind::ReadError);
                    layer.mark(sector, sector + SECTOR, hit, What::Unreadable);
                    Some(())
                });
            }
            Fault::BitFlip { path, offset, bit } => {
                self.at_rest(&path, |layer, ledger| {
                    let at = usize::try_from(offset).ok().filter(|at| *at < layer.len())?;
                    flip(layer, at, bit, ledger);
                    Some(())
                });
            }
            Fault::Truncate { path, len } => {
                self.at_rest(&path, |layer, ledger| {
                    let len = usize::try_from(len).ok().filter(|len| *len < layer.len())?;
                    let before = layer.content.clone();
                    layer.set_len(len);
                    let hit = ledger.fire(FaultKind::Truncate);
                    layer.mark(len, before.len(), hit, What::Meant(before.clone()));
                    layer.mark_len(hit, before.len());
                    Some(())
                });
            }
        }
    }

    /// The file that a name leads to, looked at from outside: sees no fault.
    fn inode_of(&self, path: &Path) -> Option<Inode> {
        let mut at = Entry::Dir(ROOT);
        for part in clean(path).components() {
            let Entry::Dir(dir) = at else { return None };
            at = *self.dirs[&dir].present.get(&*part.as_os_str().to_string_lossy())?;
        }
        match at {
            Entry::File(inode) => Some(inode),
            Entry::Dir(_) => None,
        }
    }

    /// Changes the medium under a file, and evicts its clean pages, so that the change can be seen.
    fn at_rest(&mut self, path: &Path, change: impl FnOnce(&mut Layer, &mut Ledger) -> Option<()>) {
        let Some(inode) = self.inode_of(path) else { return };
        let node = self.nodes.get_mut(&inode).expect("a file with a name stays");
        let len = node.medium.len();
        if change(&mut node.medium, &mut self.faults.ledger).is_some() {
            let shorter = node.medium.len() < len;
            node.evict(if shorter { 0 } else { node.cache.len() });
        }
    }

    /// Takes back what was armed and has not happened yet.
    pub fn disarm(&mut self) {
        self.faults.armed.clear();
    }

    /// Faults by chance from now on, drawn from `random`.
    pub fn set_rates(&mut self, rates: Rates, random: Xoshiro256PlusPlus) {
        self.faults.chance = (rates != Rates::default()).then_some(Chance { rates, random });
    }

    /// Bytes that all files may have together; a write beyond fails with `StorageFull`.
    pub fn set_capacity(&mut self, capacity: Option<u64>) {
        self.faults.capacity = capacity;
    }

    /// Operations on the path take longer by `delay`; zero ends it. Whoever owns the time carries it out.
    pub fn slow(&mut self, path: &Path, delay: Duration) {
        self.faults.slow.remove(&clean(path));
        if !delay.is_zero() {
            let hit = self.faults.ledger.fire(FaultKind::Slow);
            self.faults.slow.insert(clean(path), (delay, hit));
        }
    }

    /// How much longer an operation on the path takes, and takes it as done.
    pub fn delay_of(&mut self, path: &Path) -> Duration {
        if self.faults.slow.is_empty() {
            return Duration::ZERO;
        }
        let path = clean(path);
        let mut longest = Duration::ZERO;
        for (_, (delay, hit)) in self.faults.slow.iter().filter(|(slow, _)| path.starts_with(slow)) {
            self.faults.ledger.saw(*hit);
            longest = longest.max(*delay);
        }
        longest
    }

    /// Operations on the path wait until it is released. Whoever carries them out asks [`Image::is_stalled`].
    pub fn stall(&mut self, path: &Path) {
        let hit = self.faults.ledger.fire(FaultKind::Stall);
        self.faults.stalled.insert(clean(path), hit);
    }

    /// Whether an operation on the path must wait, and takes it as waiting.
    pub fn is_stalled(&mut self, path: &Path) -> bool {
        if self.faults.stalled.is_empty() {
            return false;
        }
        let path = clean(path);
        let mut stalled = false;
        for (_, hit) in self.faults.stalled.iter().filter(|(at, _)| path.starts_with(at)) {
            self.faults.ledger.saw(*hit);
            stalled = true;
        }
        stalled
    }

    /// Ends a stall that was set with the same path.
    pub fn release(&mut self, path: &Path) {
        self.faults.stalled.remove(&clean(path));
    }

    /// Drops the clean pages of a file: the next read comes from the medium.
    pub fn evict(&mut self, path: &Path) {
        if let Some(inode) = self.inode_of(path) {
            self.evict_file(inode);
        }
    }

    /// What took place so far.
    pub fn counts(&self) -> &FaultCounts {
        &self.faults.ledger.counts
    }

    /// Operations so far that changed the disk or made a change durable: each one between two boundaries.
    pub fn boundaries(&self) -> u64 {
        self.faults.boundaries
    }

    /// The machine goes off instead of carrying out the operation behind `boundary` (0: the first one of the
    /// disk's history). From then on everything fails, until a power loss switches it on again.
    pub fn crash_at(&mut self, boundary: u64) {
        self.faults.crash_at = Some(boundary);
    }

    /// Whether a crash point was reached.
    pub fn is_machine_off(&self) -> bool {
        self.faults.off
    }

    /// The process has died, the machine has not: its locks and handles are gone, nothing else.
    pub fn process_death(&mut self) {
        self.life += 1;
        self.locks.clear();
        for node in self.nodes.values_mut() {
            node.handles = 0;
        }
        self.collect();
    }

    /// The process's handles, locks and crash point are gone, and what no name leads to; the machine is on.
    pub(super) fn switch_on(&mut self) {
        self.faults.off = false;
        self.faults.crash_at = None;
        // A directory that goes takes what it names away at the next turn.
        loop {
            let before = self.dirs.len() + self.nodes.len();
            self.process_death();
            if self.dirs.len() + self.nodes.len() == before {
                break;
            }
        }
        self.name_marks.retain(|(dir, _), _| self.dirs.contains_key(dir));
        // Names have changed under the files.
        let mut below = vec![(PathBuf::new(), ROOT)];
        while let Some((path, dir)) = below.pop() {
            for (name, entry) in self.dirs[&dir].present.iter() {
                match entry {
                    Entry::Dir(dir) => below.push((path.join(name), *dir)),
                    Entry::File(inode) => {
                        let node = self.nodes.get_mut(inode).expect("a file with a name stays");
                        node.path = path.join(name).into();
                        node.unlinked = false;
                    }
                }
            }
        }
    }

    pub(super) fn ledger(&mut self) -> &mut Ledger {
        &mut self.faults.ledger
    }

    pub(super) fn mark_name(&mut self, spot: Spot, hit: Hit, meant: Option<Entry>) {
        self.name_marks.entry(spot).or_default().push((hit, meant));
    }

    /// The process dies, and the disk is empty.
    pub fn wipe(&mut self) {
        let hit = self.faults.ledger.fire(FaultKind::Wipe);
        let was = std::mem::take(&mut self.dirs.get_mut(&ROOT).expect("there is a root").present);
        self.dirs = BTreeMap::from([(ROOT, Dir::default())]);
        self.nodes.clear();
        self.names.clear();
        self.names_given_up.clear();
        self.name_marks.clear();
        for (name, entry) in was.iter() {
            self.mark_name((ROOT, name.clone()), hit, Some(*entry));
        }
        self.switch_on();
    }

    /// The machine loses its power, and the disk is what `older`, an earlier clone of this image, had durable.
    pub fn rollback(&mut self, older: &Image) {
        let hit = self.faults.ledger.fire(FaultKind::Rollback);
        let was = std::mem::take(self);
        *self = older.clone();
        self.names.clear();
        self.names_given_up.clear();
        self.name_marks.clear();
        for node in self.nodes.values_mut() {
            node.unsynced.clear();
            node.given_up.clear();
            node.cache = node.medium.clone();
        }
        for dir in self.dirs.values_mut() {
            dir.present = dir.durable.clone();
        }
        (self.next, self.life, self.faults) = (was.next.max(self.next), was.life, was.faults);
        // Files keep their numbers, so what differs can be told one by one.
        for (inode, dir) in &was.dirs {
            let Some(now) = self.dirs.get(inode).map(|dir| dir.present.clone()) else { continue };
            let names: BTreeSet<&String> = dir.present.keys().chain(now.keys()).collect();
            for name in names.into_iter().filter(|name| dir.present.get(*name) != now.get(*name)) {
                self.mark_name((*inode, name.clone()), hit, dir.present.get(name).copied());
            }
        }
        for (inode, node) in &was.nodes {
            if let Some(now) = self.nodes.get_mut(inode) {
                let end = node.cache.len().max(now.medium.len());
                now.medium.mark(0, end, hit, What::Meant(node.cache.content.clone()));
                now.medium.mark_len(hit, node.cache.len());
                now.cache = now.medium.clone();
            }
        }
        self.switch_on();
    }

    /// Whether a fault that is armed or by chance hits this operation.
    pub(super) fn fires(
        &mut self,
        kind: FaultKind,
        rate: impl FnOnce(&Rates) -> f64,
        path: &Path,
    ) -> Option<Hit> {
        let armed = self.count_down(kind, path).is_some();
        let by_chance = self.faults.chance.as_mut().is_some_and(|chance| chance.happens(rate));
        (armed || by_chance).then(|| self.faults.ledger.fire(kind))
    }

    /// Counts the operation on all armed faults of the kind; gives the one whose turn it is.
    fn count_down(&mut self, kind: FaultKind, path: &Path) -> Option<Armed> {
        let mut due = None;
        self.faults.armed.retain_mut(|armed| {
            if armed.kind != kind || !path.starts_with(&armed.path) {
                return true;
            }
            armed.left -= 1;
            if armed.left == 0 {
                due.get_or_insert(armed.clone());
            }
            armed.left > 0
        });
        due
    }

    pub(super) fn goes_astray(&mut self, path: &Path) -> Option<Astray> {
        let armed = self.count_down(FaultKind::MisdirectedWrite, path).and_then(|armed| armed.astray);
        let (to, at) = if let Some((to, offset)) = armed {
            (self.inode_of(&to)?, usize::try_from(offset).ok()?)
        } else {
            let chance = self.faults.chance.as_mut()?;
            if !chance.happens(|rates| rates.misdirected_write) {
                return None;
            }
            let (to, node) = self.nodes.iter().nth(chance.random.random_range(0..self.nodes.len()))?;
            let sectors = node.medium.len().div_ceil(SECTOR);
            (*to, SECTOR * chance.random.random_range(0..sectors.max(1)))
        };
        Some(Astray { to, at, hit: self.faults.ledger.fire(FaultKind::MisdirectedWrite) })
    }

    /// By chance a bit of the file flips.
    pub(super) fn rot(&mut self, inode: Inode) {
        let Some(chance) = &mut self.faults.chance else { return };
        let node = self.nodes.get_mut(&inode).expect("the caller has it open");
        if node.medium.len() > 0 && chance.happens(|rates| rates.bit_flip) {
            let at = chance.random.random_range(0..node.medium.len());
            let bit = chance.random.random_range(0..8);
            flip(&mut node.medium, at, bit, &mut self.faults.ledger);
            node.evict(node.cache.len());
        }
    }
}

fn flip(layer: &mut Layer, at: usize, bit: u8, ledger: &mut Ledger) {
    let meant = layer.content.clone();
    let byte = meant.read(at, at + 1)[0] ^ (1 << (bit % 8));
    layer.write(at, &[byte]);
    layer.mark(at, at + 1, ledger.fire(FaultKind::BitFlip), What::Meant(meant));
}
