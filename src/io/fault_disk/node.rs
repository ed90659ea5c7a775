//! One file: what is on the medium, what the page cache shows, and the writes that stand between them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::content::{Layer, PAGE, What};
use super::fault::Hit;
use super::names::Inode;

#[derive(Clone)]
pub(super) enum Event {
    Write {
        at: usize,
        bytes: Bytes,
        /// Where the bytes really go.
        astray: Option<Astray>,
    },
    SetLen(usize),
}

#[derive(Clone)]
pub(super) struct Astray {
    pub(super) to: Inode,
    pub(super) at: usize,
    pub(super) hit: Hit,
}

/// A write, or change of length, that is not durable.
#[derive(Clone)]
pub(super) struct Unsynced {
    /// Orders all unsynced events of the disk.
    pub(super) seq: u64,
    pub(super) event: Event,
    /// The sync that vouched for it and lied.
    pub(super) lied: Option<Hit>,
}

impl Unsynced {
    pub(super) fn is_astray(&self) -> bool {
        matches!(self.event, Event::Write { astray: Some(_), .. })
    }

    /// Up to where it changes the file.
    pub(super) fn end(&self) -> usize {
        match &self.event {
            Event::Write { at, bytes, .. } => at + bytes.len(),
            Event::SetLen(_) => usize::MAX,
        }
    }
}

/// A range that a failed sync gave up: readable, clean, and not on the medium.
#[derive(Clone)]
pub(super) struct GivenUp {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) hit: Hit,
}

#[derive(Clone)]
pub(super) struct Node {
    /// The last name it had, for faults that are armed by path.
    pub(super) path: Arc<Path>,
    pub(super) medium: Layer,
    pub(super) cache: Layer,
    pub(super) unsynced: Vec<Unsynced>,
    pub(super) given_up: Vec<GivenUp>,
    pub(super) handles: u32,
    /// Neither a present name nor a rename leads to it.
    pub(super) unlinked: bool,
}

impl Node {
    /// Takes out, in order, the unsynced events of before `seq`.
    pub(super) fn called_for(&mut self, seq: u64) -> Vec<Unsynced> {
        let newer = self.unsynced.partition_point(|unsynced| unsynced.seq < seq);
        let rest = self.unsynced.split_off(newer);
        std::mem::replace(&mut self.unsynced, rest)
    }

    /// A write to a page with bytes that a failed sync gave up makes the whole page dirty, and the next sync
    /// writes those bytes along. Widens the write to whole pages where that is so.
    pub(super) fn redirty(&mut self, at: usize, bytes: Bytes) -> (usize, Bytes) {
        let (from, to) = (at / PAGE * PAGE, (at + bytes.len()).div_ceil(PAGE) * PAGE);
        if !self.given_up.iter().any(|gone| gone.from < to && from < gone.to) {
            return (at, bytes);
        }
        let cut = std::mem::take(&mut self.given_up).into_iter().flat_map(|gone| {
            let before = GivenUp { to: gone.to.min(from), ..gone };
            let behind = GivenUp { from: gone.from.max(to), ..gone };
            [before, behind]
        });
        self.given_up = cut.filter(|gone| gone.from < gone.to).collect();
        (from, self.cache.content.read(from, to).into())
    }

    /// Drops the clean pages: what they showed and the medium does not have is gone. The file stays at least
    /// `len` long: the kernel keeps lengths elsewhere.
    pub(super) fn evict(&mut self, len: usize) {
        let before = std::mem::replace(&mut self.cache, self.medium.clone());
        for unsynced in &self.unsynced {
            match &unsynced.event {
                Event::Write { at, bytes, .. } => self.cache.write(*at, bytes),
                Event::SetLen(len) => self.cache.set_len(*len),
            }
        }
        for gone in std::mem::take(&mut self.given_up) {
            let meant = What::Meant(before.content.clone());
            self.cache.mark(gone.from, gone.to, gone.hit, meant.clone());
            self.medium.mark(gone.from, gone.to, gone.hit, meant);
        }
        if self.cache.len() < len {
            Arc::make_mut(&mut self.cache.content).set_len(len);
        }
    }
}
