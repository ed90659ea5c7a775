//! What each disk holds for certain: for every slot the last record whose bytes a power loss cannot take.
//!
//! Read from the disks' media alone, by checksums (`ringdove::storage::evidence`); the engine is not asked. What it finds on
//! the way is told to a [`Finder`]: a record that does not climb, a segment that went with the only copy of something.
//!
//! What was synced before a power loss is what a node must still have after it. Unsynced bytes that outlive one are no
//! promise: a node that starts copies what is whole of them into a segment of its own, and is held to that once it is synced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ringdove::io::fault_disk::Image;
use ringdove::storage::evidence::{self, Found};
use ringdove::storage::{Entry, Slot};

/// Where nodes keep their data.
pub const DIR: &str = "/data";

/// What stands on the medium, by slot: the last whole record of each.
fn whole(dir: &Path, image: &Image) -> (BTreeMap<u64, u64>, BTreeMap<Slot, Held>) {
    let (mut read, mut whole) = (BTreeMap::new(), BTreeMap::<Slot, Held>::new());
    for name in image.names_on_medium(dir) {
        let Some(id) = evidence::segment_of(&name) else { continue };
        let bytes = image.on_medium(&dir.join(&name), 0).unwrap_or_default();
        let (found, behind) = evidence::records(id, &bytes[..bytes.len().min(evidence::HEAD_LEN)], 0, &bytes);
        read.insert(id, behind);
        for Found { offset, slot, entry } in found {
            let held = Held { at: (id, offset), entry, rotten: false, older: None };
            if whole.get(&slot).is_none_or(|before| before.at < held.at) {
                whole.insert(slot, held);
            }
        }
    }
    (read, whole)
}

struct Held {
    /// Segment and offset: the order of the log.
    at: (u64, u64),
    entry: Option<Entry>,
    /// It held a record here, and that was damaged at rest.
    rotten: bool,
    /// Then the last one before it that is whole, and where. A node whose snapshot does not name the damaged one goes on with this.
    older: Option<((u64, u64), Entry)>,
}

/// What one disk holds.
#[derive(Default)]
pub struct Holdings {
    /// How far each segment was read.
    read: BTreeMap<u64, u64>,
    /// Segments of before a power loss: read no further.
    past: BTreeSet<u64>,
    held: BTreeMap<Slot, Held>,
}

/// Hears of what was found on a disk.
pub trait Finder {
    /// One more record of a slot is durable.
    fn found(&mut self, slot: &Slot, entry: &Entry);
    /// By a sync the slot's last durable record is another one than before it.
    fn moved(&mut self, slot: &Slot, before: Option<&Entry>, now: Option<&Entry>);
    /// A segment was removed that held the last record of a slot.
    fn removed(&mut self, slot: &Slot, entry: &Entry);
}

fn segment_at(path: &Path) -> Option<u64> {
    evidence::segment_of(path.file_name()?.to_str()?)
}

impl Holdings {
    /// What the disk holds in a slot.
    pub fn get(&self, slot: &Slot) -> Option<&Entry> {
        self.held.get(slot)?.entry.as_ref()
    }

    /// What a node that starts from the disk may find in a slot: what it holds for certain, or, where that is damaged, what
    /// stands before it and is whole.
    pub fn whole(&self, slot: &Slot) -> Option<&Entry> {
        let held = self.held.get(slot)?;
        held.entry.as_ref().or(held.older.as_ref().map(|(_, entry)| entry))
    }

    /// All that it holds, in order of slots.
    pub fn iter(&self) -> impl Iterator<Item = (&Slot, &Entry)> {
        self.held.iter().filter_map(|(slot, held)| Some((slot, held.entry.as_ref()?)))
    }

    /// A file was synced, or its name.
    pub fn synced(&mut self, path: &Path, image: &Image, finder: &mut impl Finder) {
        let Some(id) = segment_at(path).filter(|id| !self.past.contains(id)) else { return };
        let from = self.read.get(&id).copied().unwrap_or(0);
        let Some(bytes) = image.on_medium(path, from) else { return };
        let head = if from == 0 { bytes.clone() } else { image.on_medium(path, 0).unwrap_or_default() };
        let (found, behind) =
            evidence::records(id, &head[..head.len().min(evidence::HEAD_LEN)], from, &bytes);
        self.read.insert(id, behind);
        // What became durable at one moment counts as a whole: a node that starts copies old and new records of a slot.
        let mut last: BTreeMap<Slot, Held> = BTreeMap::new();
        for Found { offset, slot, entry } in found {
            if let Some(entry) = &entry {
                finder.found(&slot, entry);
            }
            last.insert(slot, Held { at: (id, offset), entry, rotten: false, older: None });
        }
        for (slot, now) in last {
            let before = self.held.get(&slot);
            if before.is_none_or(|before| before.at < now.at) {
                finder.moved(&slot, before.and_then(|held| held.entry.as_ref()), now.entry.as_ref());
                self.held.insert(slot, now);
            }
        }
    }

    /// A directory was synced: names in it may have become durable.
    pub fn dir_synced(&mut self, dir: &Path, image: &Image, finder: &mut impl Finder) {
        for name in image.names_on_medium(dir) {
            let path = dir.join(&name);
            if segment_at(&path).is_some_and(|id| !self.read.contains_key(&id)) {
                self.synced(&path, image, finder);
            }
        }
    }

    /// A file lost its end; with a length of 0, its name too.
    pub fn cut(&mut self, path: &Path, len: u64, finder: &mut impl Finder) {
        let Some(id) = segment_at(path) else { return };
        match (len, self.read.get_mut(&id)) {
            (0, _) => {
                // Its number may be given out again, when it held nothing.
                self.read.remove(&id);
                self.past.remove(&id);
            }
            (_, Some(read)) => *read = len.min(*read),
            (_, None) => {}
        }
        self.held.retain(|slot, held| {
            held.older.take_if(|(at, _)| at.0 == id && at.1 >= len);
            if held.at.0 != id || held.at.1 < len {
                return true;
            }
            if let Some(entry) = &held.entry {
                finder.removed(slot, entry);
            }
            false
        });
    }

    /// It is another disk now: what counts is what stands on that.
    pub fn replaced(&mut self, dir: &Path, image: &Image) {
        let (read, held) = whole(dir, image);
        *self = Holdings { past: read.keys().copied().collect(), read, held };
    }

    /// The power was lost, and a sync had lied or a write gone astray before: what the node takes for proven, and does not
    /// write again, is on the medium or is not, and only the medium tells.
    pub fn power_lost_after_harm(&mut self, dir: &Path, image: &Image) {
        let (read, mut now) = whole(dir, image);
        for (slot, mut before) in std::mem::take(&mut self.held).into_iter().filter(|(_, held)| held.rotten) {
            let older = now.get(&slot).filter(|now| now.at < before.at);
            if older.is_some() || !now.contains_key(&slot) {
                let is_older = before.older.is_some();
                before.older = older.and_then(|now| Some((now.at, now.entry.clone()?))).filter(|_| is_older);
                now.insert(slot, before);
            }
        }
        *self = Holdings { past: read.keys().copied().collect(), read, held: now };
    }

    /// Bytes changed at rest: what cannot be read any more it holds no more. A record whose removal cannot be read is none again: the node
    /// knows of the removal by its snapshot, or, without that, that there is a hole, and what it takes for there it asks others about.
    pub fn harmed(&mut self, dir: &Path, image: &Image) {
        let (_, now) = whole(dir, image);
        for (slot, held) in &mut self.held {
            let was_removed = held.entry.is_none();
            let is_there = now.get(slot).is_some_and(|now| now.at == held.at);
            let has_come_back = was_removed && now.get(slot).is_some_and(|now| now.at < held.at);
            if !was_removed && !is_there || has_come_back {
                let older = now.get(slot).filter(|now| !was_removed && now.at < held.at);
                held.older = older.and_then(|now| Some((now.at, now.entry.clone()?)));
                held.entry = None;
                held.rotten = true;
            }
        }
    }

    /// The power was lost.
    pub fn power_lost(&mut self, dir: &Path, image: &Image) {
        self.past.extend(image.names_on_medium(dir).iter().filter_map(|name| evidence::segment_of(name)));
    }
}
