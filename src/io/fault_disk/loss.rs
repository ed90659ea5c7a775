//! What a power loss leaves: for each unsynced event its fate, chosen or drawn.
//!
//! Writes are independent of each other, sector by sector: any may be on the medium without any other. That is
//! harsher than one page cache (which cannot keep the second write to a sector without the first) and covers
//! other kernels, direct writes and caches of disks. Names keep one order: what happened to a name, or to the
//! names of one file, is kept up to some change and lost from there on; other names are independent. So a
//! rename shows the old file or the new one, never none.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::{Rng, RngExt};

use super::content::{Content, What};
use super::fault::{FaultKind, Hit};
use super::image::{Image, SECTOR};
use super::names::{Inode, NameChange, Ties};
use super::node::{Event, Unsynced};

/// How often a drawn power loss takes each shape. Weights, relative to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossOdds {
    /// Everything unsynced is lost.
    pub all_lost: u32,
    /// Everything unsynced was on its way and is kept.
    pub all_kept: u32,
    /// Events are kept up to some point in time; the one at that point may be torn.
    pub prefix: u32,
    /// Events are lost up to some point in time, and what came later is kept: it overtook them.
    pub suffix: u32,
    /// Each event on its own is kept, lost, torn, or leaves the file's length without its bytes.
    pub mixed: u32,
}

impl Default for LossOdds {
    fn default() -> LossOdds {
        LossOdds { all_lost: 1, all_kept: 1, prefix: 2, suffix: 1, mixed: 4 }
    }
}

/// What becomes of one unsynced event.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    /// Of the sectors that a write touches, those are kept for which there is `true`.
    Torn {
        sector: usize,
        kept: Vec<bool>,
    },
    /// The file got as long as the write makes it, with zeros; the bytes are lost.
    Length,
}

/// An unsynced event and where it stands.
enum Doubtful {
    Write(Inode, Unsynced),
    Name(NameChange),
}

impl Doubtful {
    fn seq(&self) -> u64 {
        match self {
            Doubtful::Write(_, unsynced) => unsynced.seq,
            Doubtful::Name(change) => change.seq,
        }
    }
}

/// Sectors that a write touches.
fn sectors(unsynced: &Unsynced, sector: usize) -> usize {
    match &unsynced.event {
        Event::Write { at, bytes, .. } if !bytes.is_empty() => {
            (at + bytes.len()).div_ceil(sector) - at / sector
        }
        _ => 1,
    }
}

fn torn(unsynced: &Unsynced, random: &mut impl Rng) -> Fate {
    let sector = if random.random_bool(0.5) { SECTOR } else { 8 * SECTOR };
    let count = sectors(unsynced, sector);
    // A beginning, an end, or any.
    let split = random.random_range(0..=count);
    let kept = match random.random_range(0..3) {
        0 => (0..count).map(|n| n < split).collect(),
        1 => (0..count).map(|n| n >= split).collect(),
        _ => (0..count).map(|_| random.random_bool(0.5)).collect(),
    };
    Fate::Torn { sector, kept }
}

impl Image {
    /// Unsynced writes: where there are two, a power loss may take the first and leave the second.
    pub fn unsynced_writes(&self) -> usize {
        let is_write = |unsynced: &&Unsynced| matches!(unsynced.event, Event::Write { .. });
        self.nodes.values().map(|node| node.unsynced.iter().filter(is_write).count()).sum()
    }

    /// Unsynced events: writes, changes of a length, changes of a name.
    pub fn unsynced(&self) -> usize {
        self.names.len() + self.nodes.values().map(|node| node.unsynced.len()).sum::<usize>()
    }

    /// The machine loses its power and is switched on again: handles and locks are gone, what was synced
    /// stands, what was not has a fate drawn from `random`.
    pub fn power_loss(&mut self, random: &mut impl Rng, odds: LossOdds) {
        let count = self.unsynced();
        let shapes = [odds.all_lost, odds.all_kept, odds.prefix, odds.suffix, odds.mixed];
        let mut turn = random.random_range(0..shapes.iter().sum::<u32>().max(1));
        let shape = shapes.iter().position(|weight| {
            let chosen = turn < *weight;
            turn = turn.saturating_sub(*weight);
            chosen
        });
        match shape {
            None | Some(0) => self.settle(|_, _| Fate::Lost),
            Some(1) => self.settle(|_, _| Fate::Kept),
            Some(2) => {
                let point = random.random_range(0..=count);
                self.settle(|n, unsynced| match unsynced {
                    _ if n < point => Fate::Kept,
                    Some(unsynced) if n == point => torn(unsynced, random),
                    _ => Fate::Lost,
                });
            }
            Some(3) => {
                let point = random.random_range(0..=count);
                self.settle(|n, _| if n < point { Fate::Lost } else { Fate::Kept });
            }
            Some(_) => self.settle(|_, unsynced| match (random.random_range(0..8), unsynced) {
                (0..3, _) => Fate::Kept,
                (3..6, _) | (_, None) => Fate::Lost,
                (6, Some(unsynced)) => torn(unsynced, random),
                (_, Some(_)) => Fate::Length,
            }),
        }
    }

    /// A power loss that takes everything that was not synced.
    pub fn lose_unsynced(&mut self) {
        self.settle(|_, _| Fate::Lost);
    }

    /// A power loss in which everything unsynced had just reached the medium.
    pub fn keep_unsynced(&mut self) {
        self.settle(|_, _| Fate::Kept);
    }

    /// A power loss that keeps the unsynced events for which `keep` says so; they are numbered from 0 to
    /// [`unsynced`](Image::unsynced) in the order in which they were made. For trying all subsets, or all
    /// prefixes.
    pub fn keep_only(&mut self, mut keep: impl FnMut(usize) -> bool) {
        self.settle(|n, _| if keep(n) { Fate::Kept } else { Fate::Lost });
    }

    /// Lets each unsynced event, in order, have its fate; only writes (and changes of a length) are handed in.
    fn settle(&mut self, mut fate: impl FnMut(usize, Option<&Unsynced>) -> Fate) {
        let mut doubtful: Vec<Doubtful> =
            std::mem::take(&mut self.names).into_iter().map(Doubtful::Name).collect();
        let mut before = BTreeMap::new();
        for (inode, node) in &mut self.nodes {
            let events = std::mem::take(&mut node.unsynced);
            doubtful.extend(events.into_iter().map(|unsynced| Doubtful::Write(*inode, unsynced)));
            before.insert(*inode, (node.cache.content.clone(), node.medium.content.clone()));
        }
        doubtful.sort_by_key(Doubtful::seq);

        let mut lost_names = Ties::default();
        let mut lost = Vec::new();
        let mut missing = Vec::new();
        let mut overtaken = false;
        for (n, event) in doubtful.into_iter().enumerate() {
            match event {
                Doubtful::Name(change) => {
                    let kept = fate(n, None) == Fate::Kept;
                    if kept && !lost_names.hold(&change) {
                        self.make_durable(&change);
                    } else {
                        lost_names.bind(&change);
                        let hit = change.lied.unwrap_or_else(|| self.ledger().fire(FaultKind::LostName));
                        lost.push((change, hit));
                    }
                }
                Doubtful::Write(inode, unsynced) => {
                    let (cache, medium) = &before[&inode];
                    let fate = match fate(n, Some(&unsynced)) {
                        Fate::Torn { .. } if unsynced.is_astray() => Fate::Lost,
                        fate => fate,
                    };
                    let any_kept = match &fate {
                        Fate::Kept => true,
                        Fate::Torn { kept, .. } => kept.contains(&true),
                        Fate::Lost | Fate::Length => false,
                    };
                    let hit = self.settle_write(inode, &unsynced, &fate, cache);
                    if overtaken && any_kept {
                        self.mark_overtaking(inode, &unsynced, medium.clone());
                    }
                    if let Some(hit) = hit {
                        missing.push((inode, hit, unsynced.end()));
                        overtaken = true;
                    }
                }
            }
        }

        let given_up = std::mem::take(&mut self.names_given_up);
        for (change, hit) in lost.into_iter().chain(given_up) {
            for spot in change.spots().cloned() {
                let meant = self.dirs.get(&spot.0).and_then(|dir| dir.present.get(&spot.1).copied());
                self.mark_name(spot, hit, meant);
            }
        }
        for (inode, node) in &mut self.nodes {
            let (cache, _) = &before[inode];
            for gone in std::mem::take(&mut node.given_up) {
                node.medium.mark(gone.from, gone.to, gone.hit, What::Meant(cache.clone()));
                missing.push((*inode, gone.hit, gone.to));
            }
        }
        for (inode, hit, end) in missing {
            if let Some(node) = self.nodes.get_mut(&inode)
                && end > node.medium.len()
            {
                node.medium.mark_len(hit, before[&inode].0.len());
            }
        }
        for node in self.nodes.values_mut() {
            node.cache = node.medium.clone();
        }
        for dir in self.dirs.values_mut() {
            dir.present = dir.durable.clone();
        }
        self.switch_on();
    }

    /// Brings to the medium what its fate leaves of a write. Gives the fault if anything is missing; `meant` is
    /// what the file showed before.
    fn settle_write(
        &mut self,
        inode: Inode,
        unsynced: &Unsynced,
        fate: &Fate,
        meant: &Arc<Content>,
    ) -> Option<Hit> {
        let kind = match fate {
            Fate::Kept => {
                self.apply(inode, &unsynced.event);
                return None;
            }
            Fate::Torn { kept, .. } if !kept.contains(&false) => {
                self.apply(inode, &unsynced.event);
                return None;
            }
            Fate::Torn { kept, .. } if kept.contains(&true) => FaultKind::TornWrite,
            Fate::Torn { .. } | Fate::Lost | Fate::Length => FaultKind::LostWrite,
        };
        let hit = unsynced.lied.unwrap_or_else(|| self.ledger().fire(kind));
        let node = self.nodes.get_mut(&inode)?;
        match &unsynced.event {
            Event::SetLen(len) => {
                let end = node.medium.len().max(*len).max(meant.len());
                node.medium.mark((*len).min(node.medium.len()), end, hit, What::Meant(meant.clone()));
            }
            Event::Write { at, bytes, astray } => {
                let end = at + bytes.len();
                if let (Fate::Torn { sector, kept }, None) = (fate, astray) {
                    let first = at / sector;
                    for n in (0..kept.len()).filter(|n| kept[*n]) {
                        let from = (first + n) * sector;
                        let (from, to) = (from.max(*at), (from + sector).min(end));
                        node.medium.write(from, &bytes[from - at..to - at]);
                    }
                }
                if *fate == Fate::Length && node.medium.len() < end {
                    node.medium.set_len(end);
                }
                node.medium.mark(*at, end, hit, What::Meant(meant.clone()));
            }
        }
        Some(hit)
    }

    /// A write outlived an earlier one that was lost. Without that it would read as the medium did before.
    fn mark_overtaking(&mut self, inode: Inode, unsynced: &Unsynced, before: Arc<Content>) {
        let hit = self.ledger().fire(FaultKind::ReorderedWrite);
        if let (Event::Write { at, bytes, .. }, Some(node)) = (&unsynced.event, self.nodes.get_mut(&inode)) {
            node.medium.mark(*at, at + bytes.len(), hit, What::Meant(before));
        }
    }
}
