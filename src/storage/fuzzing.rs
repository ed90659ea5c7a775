//! What the fuzz targets do with the bytes that they are given. Not part of the library's interface: `fuzz/` and
//! `tests/fuzzing.rs` run the same bodies.
//!
//! The input is a file of a data directory. The offline check looks at it, a start recovers it, all that the index then
//! holds is read, and a second start must find what the first one left. Nothing may panic, and nothing may take memory out
//! of proportion to the files (`tests/fuzzing.rs` counts). What stands behind a checksum would be out of a fuzzer's reach,
//! so the first byte of an input chooses whether the checksums are made right.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt;

use super::check::check;
use super::directory::{self, FORMAT, NodeMeta};
use super::engine::decode;
use super::format::{
    GROUP_HEAD_LEN, GroupHead, PartitionSet, SEGMENT_HEAD_LEN, Salted, SegmentHead, seed_of,
};
use super::index::split_key;
use super::inspect::shape_of;
use super::recovery::{Recovered, recover};
use super::segment::{POSITION_MAX, path_of};
use super::{PartitionState, SaltSeed, Slot, StorageError, TABLES, Table, snapshot};
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::ring::PartitionCount;
use crate::io::{Disk, MemoryDisk};
use crate::net::envelope::{self, PREFIX_LEN};
use crate::types::{Incarnation, NodeId, PartitionId};

const DIR: &str = "/fuzz";
/// In the first byte: make the checksums right.
const RESEAL: u8 = 1;
/// In the first byte of a segment: another one stands behind it, so all of it is proven.
const FOLLOWED: u8 = 2;
/// In the first byte of a segment: a whole head is put before the rest, without which nothing of it can be read.
const HEADED: u8 = 4;

/// A data directory.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What became of a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether a store would open.
    pub opened: bool,
    /// Whether it would begin from a snapshot, and the check finds no damage.
    pub clean_snapshot: bool,
    /// Entries in its index.
    pub entries: u64,
    /// Of these, those that could be read.
    pub read: u64,
}

/// The descriptor of the directories here.
pub fn descriptor() -> ClusterDescriptor {
    ClusterDescriptor::new(PartitionCount::new(8).expect("a power of two"), 3, &[7; 64])
}

/// The input as `node.meta`.
pub fn node_meta(input: &[u8]) -> Outcome {
    let Some((flags, bytes)) = input.split_first() else { return Outcome::default() };
    let mut bytes = bytes.to_vec();
    if flags & RESEAL != 0 {
        reseal(&mut bytes, 0, 1);
    }
    run(&[(directory::NAME.to_owned(), bytes)].into())
}

/// The input as the only segment, or one with another behind it.
pub fn segment(input: &[u8]) -> Outcome {
    let Some((flags, bytes)) = input.split_first() else { return Outcome::default() };
    let mut bytes = bytes.to_vec();
    if flags & HEADED != 0 {
        let head = SegmentHead { id: 1, base: 0, synced: 0, salt: 1, before: 0 };
        bytes.splice(..0, head.encode());
    }
    if flags & RESEAL != 0 {
        reseal(&mut bytes, 1, usize::MAX);
    }
    let mut files = around();
    if flags & FOLLOWED != 0 {
        let position = bytes.len() as u64;
        let head = SegmentHead { id: 2, base: position, synced: position, salt: 2, before: 1 };
        let (of, mut next) = (head.salted(), head.encode());
        next.resize(SEGMENT_HEAD_LEN + GROUP_HEAD_LEN, 0);
        let (position, synced) = (position + SEGMENT_HEAD_LEN as u64, position);
        let partitions = PartitionSet::default();
        let head = GroupHead { position, synced, len: 0, records: 0, partitions };
        head.write(&mut next[SEGMENT_HEAD_LEN..], seed_of(of, SEGMENT_HEAD_LEN as u64));
        files.insert(name_of(2), next);
    }
    files.insert(name_of(1), bytes);
    run(&files)
}

/// The input as the snapshot of a directory without segments.
pub fn snapshot(input: &[u8]) -> Outcome {
    let Some((flags, bytes)) = input.split_first() else { return Outcome::default() };
    let mut bytes = bytes.to_vec();
    if flags & RESEAL != 0 {
        reseal(&mut bytes, u64::MAX, usize::MAX);
    }
    let mut files = around();
    files.insert(snapshot::NAME.to_owned(), bytes);
    run(&files)
}

/// Makes the checksums of up to `count` records right, as far as their lengths lead. `id` is the segment's; the largest
/// there is for a snapshot. Its salt is what the file says by the time the head is right.
pub fn reseal(bytes: &mut [u8], id: u64, count: usize) {
    let mut offset = 0;
    let segment = id != 0 && id != u64::MAX;
    for _ in 0..count {
        let Some(prefix) = bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>()) else { return };
        let Ok(len) = envelope::message_len(*prefix, PREFIX_LEN, bytes.len() - offset) else { return };
        let in_head = !segment || offset < SEGMENT_HEAD_LEN;
        let head = if in_head { None } else { SegmentHead::decode(bytes, id) };
        let of = head.map_or(Salted::plain(id), |(head, _)| head.salted());
        let seed = seed_of(of, if id == 0 { 0 } else { offset as u64 });
        envelope::seal(&mut bytes[offset..offset + len], seed);
        offset += len;
    }
}

fn name_of(id: u64) -> String {
    path_of(Path::new(""), id).display().to_string()
}

fn around() -> Files {
    let meta = NodeMeta { format: FORMAT, node: NodeId(1), descriptor: descriptor(), layouts: Vec::new() };
    let disk = MemoryDisk::new();
    at_once(directory::write(&disk, Path::new(DIR), &meta)).expect("a disk in memory does not fail");
    files_of(&disk)
}

/// A disk in memory never waits, so no executor is needed.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a disk in memory answers at once")
}

fn disk_of(files: &Files) -> MemoryDisk {
    let disk = MemoryDisk::new();
    at_once(async {
        disk.create_dir_all(Path::new(DIR)).await?;
        for (name, bytes) in files {
            let file = disk.open(&Path::new(DIR).join(name), true).await?;
            file.write_at(0, bytes.clone().into()).await?;
        }
        std::io::Result::Ok(())
    })
    .expect("a disk in memory does not fail");
    disk
}

fn files_of(disk: &MemoryDisk) -> Files {
    at_once(async {
        let mut files = Files::new();
        for name in disk.list(Path::new(DIR)).await? {
            let file = disk.open(&Path::new(DIR).join(&name), false).await?;
            let len = usize::try_from(file.size().await?).expect("it is in memory");
            files.insert(name, file.read_at(0, len).await?.to_vec());
        }
        std::io::Result::Ok(files)
    })
    .expect("a disk in memory does not fail")
}

/// All that a store would hold.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    entries: Vec<(PartitionId, Table, Vec<u8>, u64)>,
    states: Vec<PartitionState>,
    roots: Vec<u64>,
}

fn contents(recovered: &Recovered) -> Contents {
    let mut entries = Vec::new();
    for (number, partition) in (0..).map(PartitionId).zip(&recovered.partitions) {
        for table in TABLES {
            for leaf in partition.index(table).share() {
                entries.extend(leaf.iter().map(|(id, place)| (number, table, id.to_vec(), place.hash)));
            }
        }
    }
    let states = recovered.partitions.iter().map(|partition| partition.state).collect();
    let roots = recovered.partitions.iter().map(|partition| partition.tree().root()).collect();
    Contents { entries, states, roots }
}

/// Looks at a directory, starts on it, reads everything, and starts again.
///
/// # Panics
/// When something is wrong with the engine.
pub fn run(files: &Files) -> Outcome {
    let disk = disk_of(files);
    let dir = Path::new(DIR);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let looked = at_once(check(&shared, dir, &Arc::default()));
    assert!(files_of(&disk) == *files, "the check has changed something");
    let Ok(Some(meta)) = at_once(directory::read(&disk, dir)) else { return Outcome::default() };
    let shape = shape_of(Some(&meta));
    let start = || at_once(recover(&disk, dir, shape, Incarnation(1), SaltSeed(1)));
    let first = match start() {
        Ok(first) => first,
        Err(StorageError::BadDirectory(_)) => return Outcome::default(),
        Err(error) => panic!("a disk in memory does not fail: {error}"),
    };
    let looked = looked.expect("what can be started on can be looked at");
    // One way only: the check sees more.
    assert!(!looked.is_sound() || first.report.corrupt == 0, "{looked:?}, {:?}", first.report);

    let report = &first.report;
    let clean = report.snapshot && looked.is_sound();
    let mut outcome = Outcome { opened: true, clean_snapshot: clean, ..Outcome::default() };
    for (number, partition) in (0..).map(PartitionId).zip(&first.partitions) {
        for table in TABLES {
            for leaf in partition.index(table).share() {
                for (id, place) in leaf.iter() {
                    outcome.entries += 1;
                    let Some(segment) = first.segments.find(place.position) else { continue };
                    let (namespace, key) = split_key(id).expect("an index key");
                    let offset = place.position - segment.base;
                    let inside = offset + place.len() as u64 <= segment.len();
                    let Some(file) = segment.file().filter(|_| inside) else { continue };
                    let Ok(bytes) = at_once(file.read_at(offset, place.len())) else { continue };
                    let slot = Slot { table, partition: number, namespace, key };
                    outcome.read += u64::from(decode(&slot, place, &segment, &bytes).is_ok());
                }
            }
        }
    }
    let left = contents(&first);
    let again = match start() {
        Ok(again) => again,
        // At the very end of all positions the first start may have taken the last ones.
        Err(StorageError::BadDirectory(_)) if first.start.position > POSITION_MAX => return outcome,
        Err(error) => panic!("a start leaves what can be started on: {error}"),
    };
    assert_eq!(contents(&again), left, "{:?}, then {:?}", first.report, again.report);
    assert_eq!((again.report.cut, again.report.maybe_rotten), (0, false), "{:?}", first.report);
    outcome
}
