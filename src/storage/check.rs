//! Verifies a data directory that no node runs on: every byte that counts is read, nothing is changed.
//!
//! ```text
//!   node.meta ─▶ recovery's own look: proofs, corruption or torn tail, the index as a start would have it
//!                     │
//!   every segment ─▶ walk: each record's checksum, body, partition ── is it the one that the index points at? ── tick off
//!                     │
//!   what was not ticked off is read on its own, and named; leaves are made again from the entries and compared
//! ```
//! *Damage* is what recovery calls corruption, and besides it: the same in the part of the log that a start does not read
//! because the snapshot stands for it, a snapshot or `node.meta` that does not count, an entry of the index without its
//! record, and views that disagree. Damage to records that nothing needs any more is damage too: the disk forgot them.
//! A torn tail, a torn mark, half-made files and what a start would cut are what crashes leave, and sound.
//!
//! What it cannot see: a segment file that is gone, when neither the snapshot nor the mark knows of it (compaction
//! removes files too, and keeps no list: [`Report::gaps`]); a directory that is an older one as a whole; a flip in the
//! last group when nothing proves that it was ever whole ([`Tail::maybe_rotten`] says so where it can).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::directory::{self, NodeMeta};
use super::engine::decode;
use super::format::{
    GROUP_HEAD_LEN, GroupHead, KIND_ENTRY, KIND_REMOVE, KIND_STATE, PartitionSet, SEGMENT_HEAD_LEN,
};
use super::index::{Place, index_key, split_key};
use super::inspect::{Figures, Look, Progress, shape_of};
use super::recovery::{Examined, Found, entry_of, is_leftover, removed_of, state_of};
use super::segment::{Segments, path_of};
use super::walk::{Item, Walk};
use super::{Slot, StorageError, TABLES, Table, snapshot};
use crate::dynamo::merkle::MerkleTree;
use crate::dynamo::ring::{PartitionCount, key_hash};
use crate::io::Disk;
use crate::types::PartitionId;

/// Damaged stretches that are listed; more are counted.
const DAMAGE_MAX: usize = 10_000;

/// What was found. `damage` is empty when the directory is sound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What `storage stats` says; none when the directory does not tell whose it is.
    pub figures: Option<Figures>,
    /// Segments read.
    pub segments: u64,
    /// Whole records in them.
    pub records: u64,
    /// Bytes read, those read twice counted twice.
    pub bytes: u64,
    /// Damage by file and place.
    pub damage: Vec<Damage>,
    /// Damaged stretches besides, which are not listed.
    pub damage_unlisted: u64,
    /// Entries, of the node's own and guests, that cannot be read.
    pub entries_lost: u64,
    /// Whether something could not be looked at because of the damage.
    pub incomplete: bool,
    /// What a crash left at the end of the log.
    pub tail: Option<Tail>,
    /// Stretches of the log whose segments are not there: compacted, as far as anybody can know.
    pub gaps: u64,
    /// Files that a crash left and the next start removes.
    pub leftovers: Vec<String>,
}

impl Report {
    /// Whether there is no damage. A torn tail is none.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.damage_unlisted == 0 && !self.incomplete
    }
}

/// One damaged stretch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file's name in the directory.
    pub file: String,
    /// Bytes of the file; of files that are gone, positions in the log.
    pub from: u64,
    /// Behind the last of them.
    pub to: u64,
    /// What is wrong there.
    pub what: What,
    /// Partitions whose records it may have been.
    pub partitions: Concerned,
    /// Entries whose newest record stood there.
    pub entries: u64,
}

/// What is wrong with a stretch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It was durable, and no whole record stands there.
    Unreadable,
    /// The file ends before it.
    Truncated,
    /// No segment that is there holds these positions, and entries are said to stand there.
    Gone,
    /// Its checksum is right and what it says cannot be.
    Malformed(String),
    /// Whole records stand there, and what the index says of them is something else.
    Disagrees(String),
    /// The whole file does not count.
    Refused(String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Unreadable => f.write_str("cannot be read as it was written"),
            What::Truncated => f.write_str("is missing, the file is too short"),
            What::Gone => f.write_str("is in no segment that is there"),
            What::Malformed(why) => write!(f, "makes no sense: {why}"),
            What::Disagrees(why) => write!(f, "does not agree with the index: {why}"),
            What::Refused(why) => write!(f, "does not count: {why}"),
        }
    }
}

/// Partitions. Above Q = 256 a damaged group names too many, never too few.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Concerned {
    /// Any of them.
    All,
    /// These, sorted; none when no entry is concerned.
    These(Vec<PartitionId>),
}

/// What a crash left at the end of the log, or may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tail {
    /// Bytes that the next start cuts; never acknowledged, as far as anybody can know.
    pub torn_bytes: u64,
    /// Bytes behind the end of older segments, which an interrupted start was to cut.
    pub surplus_bytes: u64,
    /// Whole records that nothing proves to be on the disk; the next start writes them again.
    pub unproven_records: u64,
    /// The last group is there in full length and damaged: torn, or rotten since. The next start takes its partitions as
    /// incomplete.
    pub maybe_rotten: bool,
    /// The clean-shutdown mark is there and not whole.
    pub torn_mark: bool,
}

/// Verifies a directory. Reads all of it, the end of the log twice.
///
/// # Errors
/// `BadDirectory` when it is no data directory or of another format, `InUse` when a node runs on it, `Io` when the disk
/// cannot list it. Damage is no error. Nothing was changed.
pub async fn check(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    progress: &Arc<Progress>,
) -> Result<Report, StorageError> {
    let look = Look::begin(disk, dir, progress).await?;
    let mut checking = Checking::default();
    let meta = match directory::read(look.disk.as_ref(), dir).await {
        Ok(Some(meta)) => Some(meta),
        Ok(None) => {
            checking.whole(directory::NAME, 0, What::Refused("it is missing".to_owned()));
            None
        }
        Err(StorageError::BadDirectory(why)) => {
            checking.whole(directory::NAME, look.size(directory::NAME).await?, What::Refused(why));
            None
        }
        Err(error @ StorageError::OtherFormat { .. }) => return Err(error),
        Err(error) => {
            checking.whole(directory::NAME, 0, What::Refused(error.to_string()));
            None
        }
    };
    checking.report.incomplete = meta.is_none();
    match Box::pin(look.examine(meta.as_ref())).await {
        Ok((mut examined, segments)) => {
            checking.directory(&look, meta.as_ref(), &mut examined, &segments).await?;
        }
        // Neither would a node start.
        Err(error) => {
            checking.report.incomplete = true;
            checking.whole("", 0, What::Refused(error.to_string()));
        }
    }
    checking.report.leftovers.extend(look.names.iter().filter(|name| is_leftover(name)).cloned());
    checking.report.bytes = progress.read();
    look.end().await?;
    Ok(checking.finish(shape_of(meta.as_ref()).partitions))
}

/// A damaged stretch while more is learned of it.
struct Stretch {
    to: u64,
    what: What,
    partitions: PartitionSet,
    entries: u64,
}

#[derive(Default)]
struct Checking {
    report: Report,
    /// By segment and offset.
    stretches: BTreeMap<(u64, u64), Stretch>,
    /// Of files that are gone: by the first position.
    gone: BTreeMap<u64, Stretch>,
}

/// What of a partition was seen in the log as the index has it.
#[derive(Default, Clone)]
struct Seen {
    data: usize,
    guests: usize,
    state: bool,
}

impl Checking {
    /// A file that does not count.
    fn whole(&mut self, file: &str, size: u64, what: What) {
        let (file, partitions) = (file.to_owned(), Concerned::These(Vec::new()));
        self.report.damage.push(Damage { file, from: 0, to: size, what, partitions, entries: 0 });
    }

    fn stretch(&mut self, id: u64, from: u64, to: u64, what: What, partitions: PartitionSet) {
        // Recovery begins in the middle of a segment: what stands on both sides is one stretch.
        if let Some((_, before)) = self.stretches.range_mut((id, 0)..=(id, from)).next_back()
            && before.to >= from
            && before.what == what
        {
            before.to = before.to.max(to);
            before.partitions.join(&partitions);
        } else if self.stretches.len() < DAMAGE_MAX {
            let stretch = Stretch { to, what, partitions, entries: 0 };
            let stretch = self.stretches.entry((id, from)).or_insert(stretch);
            stretch.to = stretch.to.max(to);
        } else {
            self.report.damage_unlisted += 1;
        }
    }

    async fn directory(
        &mut self,
        look: &Look<'_>,
        meta: Option<&NodeMeta>,
        examined: &mut Examined,
        segments: &Segments,
    ) -> Result<(), StorageError> {
        let size_of =
            |id: u64| examined.found.iter().find(|found| found.id == id).map_or(0, |found| found.size);
        for corrupted in &examined.replay.corrupted {
            let size = size_of(corrupted.id);
            let what = if corrupted.from >= size { What::Truncated } else { What::Unreadable };
            self.stretch(corrupted.id, corrupted.from, corrupted.to, what, corrupted.partitions);
        }
        let refused = examined.replay.report.snapshot_refused.clone();
        if let Some(why) = refused.filter(|_| meta.is_some()) {
            self.whole(snapshot::NAME, look.size(snapshot::NAME).await?, What::Refused(why));
        }
        let void = examined.void.iter().filter_map(|path| path.file_name());
        self.report.leftovers.extend(void.map(|name| name.to_string_lossy().into_owned()));
        self.tail(look, examined).await?;
        self.report.segments = examined.found.len() as u64;
        look.progress.left(examined.found.iter().map(|found| found.limit.min(found.size)).sum());
        let mut seen = vec![Seen::default(); examined.replay.partitions.len()];
        for found in &examined.found {
            self.segment(found, meta, examined, &mut seen).await;
        }
        let Some(meta) = meta else { return Ok(()) };
        self.entries(examined, segments, &seen).await;
        self.views(examined);
        self.report.figures = Some(Figures::of(meta, examined, segments));
        Ok(())
    }

    async fn tail(&mut self, look: &Look<'_>, examined: &Examined) -> Result<(), StorageError> {
        let report = &examined.replay.report;
        let surplus = |found: &Found| found.size.saturating_sub(found.limit);
        let mark = look.names.iter().any(|name| name == directory::CLEAN_NAME);
        let tail = Tail {
            torn_bytes: report.cut,
            surplus_bytes: examined.found.iter().map(surplus).sum(),
            unproven_records: report.rewritten,
            maybe_rotten: report.maybe_rotten,
            torn_mark: mark && directory::read_clean(look.disk.as_ref(), look.dir).await?.is_none(),
        };
        let anything = tail.maybe_rotten || tail.torn_mark;
        let bytes = tail.torn_bytes + tail.surplus_bytes + tail.unproven_records;
        self.report.tail = (anything || bytes > 0).then_some(tail);
        let mut behind = 0;
        for found in &examined.found {
            self.report.gaps += u64::from(found.base > behind && behind > 0);
            behind = found.base + found.limit;
        }
        Ok(())
    }

    /// Reads one segment from front to back.
    async fn segment(
        &mut self,
        found: &Found,
        meta: Option<&NodeMeta>,
        examined: &Examined,
        seen: &mut [Seen],
    ) {
        let id = found.id;
        // Before this offset recovery has not looked, and everything was durable.
        let below = examined.from.saturating_sub(found.base).min(found.limit);
        let there = found.limit.min(found.size);
        let head = there.min(SEGMENT_HEAD_LEN as u64);
        if found.damaged_head && below >= found.limit && head > 0 {
            self.stretch(id, 0, head, What::Unreadable, PartitionSet::default());
        }
        if found.limit > found.size && below >= found.limit {
            self.stretch(id, found.size, found.limit, What::Truncated, PartitionSet::ALL);
        }
        let mut walk =
            Walk::new(found.file.clone(), found.salted(), (SEGMENT_HEAD_LEN as u64).min(there), there);
        let mut group: Option<Group> = None;
        loop {
            let item = match walk.next().await {
                Ok(Some(item)) => item,
                Ok(None) => break,
                Err(error) => {
                    self.report.incomplete = true;
                    let file = path_of(Path::new(""), id).display().to_string();
                    self.whole(&file, there, What::Refused(error.to_string()));
                    break;
                }
            };
            match item {
                Item::Group { offset, head } => {
                    if let Some(wrong) = group.as_ref().and_then(|group| group.wrong(offset)) {
                        self.stretch(
                            id,
                            group.as_ref().map_or(0, |group| group.offset),
                            offset,
                            wrong,
                            PartitionSet::ALL,
                        );
                    }
                    if head.position != found.base + offset || head.synced > head.position {
                        let wrong =
                            What::Malformed("a group stands at a position that it does not name".to_owned());
                        self.stretch(id, offset, offset + GROUP_HEAD_LEN as u64, wrong, head.partitions);
                    }
                    group = Some(Group { offset, head, records: 0, whole: true });
                }
                Item::Record { offset, bytes, opened } => {
                    self.report.records += 1;
                    if let Some(group) = &mut group {
                        group.records += 1;
                    }
                    let (position, len) = (found.base + offset, bytes.len());
                    let body = bytes.slice(opened.body);
                    if let Err(wrong) = record(opened.kind, &body, (position, len), meta, examined, seen)
                        && (offset < below || wrong != UNREADABLE)
                    {
                        let partitions =
                            group.as_ref().map_or(PartitionSet::ALL, |group| group.head.partitions);
                        let wrong = What::Malformed(wrong.to_owned());
                        self.stretch(id, offset, offset + len as u64, wrong, partitions);
                    }
                }
                Item::Bad { from, to } => {
                    let inside = group.as_ref().filter(|group| to <= group.end());
                    let partitions = inside.map_or(PartitionSet::ALL, |group| group.head.partitions);
                    if from < below {
                        self.stretch(id, from, to.min(below), What::Unreadable, partitions);
                    }
                    if let Some(group) = &mut group {
                        group.whole = false;
                    }
                }
            }
        }
    }

    /// Reads on their own the entries and states that were not seen where the index says they are.
    async fn entries(&mut self, examined: &Examined, segments: &Segments, seen: &[Seen]) {
        for ((number, partition), seen) in (0..).map(PartitionId).zip(&examined.replay.partitions).zip(seen) {
            for table in TABLES {
                let index = partition.index(table);
                let found = if table == Table::Data { seen.data } else { seen.guests };
                if found == index.len() {
                    continue;
                }
                for leaf in index.share() {
                    for (id, place) in leaf.iter() {
                        let wrong = match split_key(id) {
                            None => Some("it is no key".to_owned()),
                            Some((namespace, key)) => {
                                let slot = Slot { table, partition: number, namespace, key };
                                entry(segments, &slot, place, partition.targets_of(table, id)).await.err()
                            }
                        };
                        if let Some(wrong) = wrong {
                            self.report.entries_lost += 1;
                            self.lost(examined, number, place.position, place.len(), wrong, 1);
                        }
                    }
                }
            }
            if let Some((position, len)) = partition.state_place.filter(|_| !seen.state) {
                self.lost(examined, number, position, len, "the state of a partition".to_owned(), 0);
            }
        }
    }

    /// What the index points at cannot be read there.
    fn lost(
        &mut self,
        examined: &Examined,
        partition: PartitionId,
        position: u64,
        len: usize,
        wrong: String,
        entries: u64,
    ) {
        let mut partitions = PartitionSet::default();
        partitions.insert(partition);
        let holds = |found: &&Found| (found.base..found.base + found.limit).contains(&position);
        let Some(found) = examined.found.iter().rfind(holds) else {
            // By the gap that they are in.
            let behind = examined.found.iter().take_while(|found| found.base <= position).last();
            let from = behind.map_or(0, |found| found.base + found.limit);
            let end = position + len as u64;
            let what = What::Gone;
            let gone = self.gone.entry(from).or_insert(Stretch { to: end, what, partitions, entries: 0 });
            gone.to = gone.to.max(end);
            gone.partitions.join(&partitions);
            gone.entries += entries;
            return;
        };
        let from = position - found.base;
        let to = from + len as u64;
        let before = self.stretches.range_mut((found.id, 0)..(found.id, to)).next_back();
        if let Some((_, stretch)) = before.filter(|(_, stretch)| stretch.to > from) {
            stretch.entries += entries;
            return;
        }
        let what = What::Disagrees(wrong);
        if self.stretches.len() < DAMAGE_MAX {
            self.stretches.insert((found.id, from), Stretch { to, what, partitions, entries });
        } else {
            self.report.damage_unlisted += 1;
        }
    }

    /// Whether the other views of the entries agree with them.
    fn views(&mut self, examined: &Examined) {
        for (number, partition) in (0..).map(PartitionId).zip(&examined.replay.partitions) {
            let mut tree = MerkleTree::new(
                &partition.shape().merkle_key,
                partition.shape().partitions,
                partition.tree().bits(),
            );
            for leaf in partition.index(Table::Data).share() {
                for (id, place) in leaf.iter() {
                    if let Some((namespace, key)) = split_key(id) {
                        tree.update(namespace, &key, key_hash(namespace, &key), None, Some(place.hash));
                    }
                }
            }
            let mut wrong = Vec::new();
            if tree.leaves() != partition.tree().leaves() {
                wrong.push("its Merkle leaves are not those of its entries");
            }
            if partition.owed().any(|(table, id, _)| partition.index(table).get(id).is_none()) {
                wrong.push("something is owed that is not there");
            }
            for wrong in wrong {
                let what = What::Disagrees(wrong.to_owned());
                let (file, partitions) = (snapshot::NAME.to_owned(), Concerned::These(vec![number]));
                let size = examined.snapshot_bytes;
                self.report.damage.push(Damage { file, from: 0, to: size, what, partitions, entries: 0 });
            }
        }
    }

    fn finish(self, partitions: PartitionCount) -> Report {
        let concerned = |set: &PartitionSet| {
            let these: Vec<PartitionId> = partitions.partitions().filter(|id| set.contains(*id)).collect();
            if these.len() == partitions.get() as usize { Concerned::All } else { Concerned::These(these) }
        };
        let damage = |file: String, from: u64, stretch: Stretch| Damage {
            file,
            from,
            to: stretch.to,
            what: stretch.what,
            partitions: concerned(&stretch.partitions),
            entries: stretch.entries,
        };
        let mut report = self.report;
        let ids: Vec<u64> = self.stretches.keys().map(|(id, _)| *id).collect();
        debug_assert!(ids.is_sorted());
        for ((id, from), stretch) in self.stretches {
            let file = path_of(Path::new(""), id).display().to_string();
            report.damage.push(damage(file, from, stretch));
        }
        for (from, stretch) in self.gone {
            report.damage.push(damage("(a segment that is gone)".to_owned(), from, stretch));
        }
        report
    }
}

/// A group while its records go by.
struct Group {
    offset: u64,
    head: GroupHead,
    records: u32,
    /// Whether nothing of it was damaged so far.
    whole: bool,
}

impl Group {
    fn end(&self) -> u64 {
        self.offset + GROUP_HEAD_LEN as u64 + u64::from(self.head.len)
    }

    /// What is wrong with a group behind which the next one stands at `next`.
    fn wrong(&self, next: u64) -> Option<What> {
        let complete = self.end() == next && self.records == self.head.records;
        let what = || What::Malformed("a group does not have the records that its head says".to_owned());
        (self.whole && !complete).then(what)
    }
}

const UNREADABLE: &str = "its contents cannot be read";

/// Looks at one whole record, and ticks off what the index has of it.
fn record(
    kind: u16,
    body: &Bytes,
    at: (u64, usize),
    meta: Option<&NodeMeta>,
    examined: &Examined,
    seen: &mut [Seen],
) -> Result<(), &'static str> {
    let of = |id: PartitionId| usize::try_from(id.0).ok().filter(|at| *at < seen.len());
    let in_place = |slot: &Slot| {
        let right = meta.is_none_or(|meta| {
            meta.descriptor.partitions.partition_of(slot.namespace, &slot.key) == slot.partition
        });
        if right { Ok(()) } else { Err("its key is of another partition") }
    };
    match kind {
        KIND_ENTRY => {
            let (slot, entry) = entry_of(body).ok_or(UNREADABLE)?;
            let number = of(slot.partition).ok_or(UNREADABLE)?;
            let partition = &examined.replay.partitions[number];
            let id = index_key(slot.namespace, &slot.key);
            let hash = entry.copy.record.version_hash();
            let place = Place::new(at.0, at.1, hash, false);
            if partition.index(slot.table).get(&id) == Some(place)
                && partition.targets_of(slot.table, &id) == entry.targets
            {
                let seen = &mut seen[number];
                *(if slot.table == Table::Data { &mut seen.data } else { &mut seen.guests }) += 1;
            }
            in_place(&slot)
        }
        KIND_REMOVE => {
            let slot = removed_of(body).ok_or(UNREADABLE)?;
            of(slot.partition).ok_or(UNREADABLE)?;
            in_place(&slot)
        }
        KIND_STATE => {
            let body = state_of(body).ok_or(UNREADABLE)?;
            let number = of(body.partition).ok_or(UNREADABLE)?;
            let partition = &examined.replay.partitions[number];
            if partition.state_place == Some(at) && partition.state == body.state {
                seen[number].state = true;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether the record of an entry stands where the index says, as it says.
async fn entry(
    segments: &Segments,
    slot: &Slot,
    place: Place,
    targets: &[crate::types::NodeId],
) -> Result<(), String> {
    let segment = segments.find(place.position).ok_or("its segment is gone")?;
    let file = segment.file().ok_or("its segment is gone")?;
    let read = file.read_at(place.position - segment.base, place.len()).await;
    let bytes = read.map_err(|error| error.to_string())?;
    let entry = decode(slot, place, &segment, &bytes)?;
    if entry.copy.record.version_hash() != place.hash {
        return Err("its version hash is another".to_owned());
    }
    if entry.targets != targets {
        return Err("it is kept for other nodes".to_owned());
    }
    Ok(())
}
