//! Names: entries of directories, and the changes of them that are not durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fault::Hit;

/// A file or directory, whatever its name.
pub(super) type Inode = u64;

/// A name in a directory.
pub(super) type Spot = (Inode, String);

pub(super) const ROOT: Inode = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    File(Inode),
    Dir(Inode),
}

impl Entry {
    pub(super) fn inode(self) -> Inode {
        match self {
            Entry::File(inode) | Entry::Dir(inode) => inode,
        }
    }
}

pub(super) type Entries = BTreeMap<String, Entry>;

#[derive(Clone, Default)]
pub(super) struct Dir {
    pub(super) present: Arc<Entries>,
    pub(super) durable: Arc<Entries>,
}

/// A change of names that is not durable: `from` goes, `to` comes, both in one step.
#[derive(Clone)]
pub(super) struct NameChange {
    pub(super) seq: u64,
    pub(super) from: Option<Spot>,
    pub(super) to: Option<Spot>,
    pub(super) entry: Entry,
    /// The sync that vouched for it and lied.
    pub(super) lied: Option<Hit>,
}

impl NameChange {
    pub(super) fn spots(&self) -> impl Iterator<Item = &Spot> {
        self.from.iter().chain(&self.to)
    }
}

/// What other changes a change of names hangs on: those of the same names before it. A file has one name, so
/// the changes of one file are tied through its names.
#[derive(Default)]
pub(super) struct Ties(BTreeSet<Spot>);

impl Ties {
    pub(super) fn bind(&mut self, change: &NameChange) {
        self.0.extend(change.spots().cloned());
    }

    pub(super) fn hold(&self, change: &NameChange) -> bool {
        change.spots().any(|spot| self.0.contains(spot))
    }
}
