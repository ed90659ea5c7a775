//! The offline check: what it says of sound directories, of each kind of damage, and beside what a start and the reads
//! after it would say; and that it changes nothing.

use std::collections::BTreeMap;

use super::power::{Truth, disk_of, empty, flipped_directory, meta, run, start};
use super::*;
use crate::io::fault_disk::{Fault, FaultDisk, Image};
use crate::net::envelope;
use crate::storage::check::{Concerned, Damage, Report, What, check};
use crate::storage::format::{GROUP_HEAD_LEN, GroupHead, SEGMENT_HEAD_LEN, Salted, SegmentHead, seed_of};
use crate::storage::inspect::{Figures, Progress, figures};

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

pub(super) fn names(image: &Image) -> Vec<String> {
    image.clone().list(Path::new(DIR)).unwrap()
}

pub(super) fn bytes_of(image: &Image, name: &str) -> Vec<u8> {
    let mut image = image.clone();
    let id = image.open(&path(name), false).unwrap();
    let size = usize::try_from(image.size(id).unwrap()).unwrap();
    image.read_at(id, 0, size).unwrap().to_vec()
}

/// Replaces a file, durably.
pub(super) fn set_bytes(image: &mut Image, name: &str, bytes: &[u8]) {
    let id = image.open(&path(name), true).unwrap();
    image.set_len(id, 0).unwrap();
    image.write_at(id, 0, bytes.to_vec().into()).unwrap();
    image.sync_data(id).unwrap();
    image.close(id);
    image.sync_dir(Path::new(DIR)).unwrap();
}

fn remove_file(image: &mut Image, name: &str) {
    image.remove(&path(name)).unwrap();
    image.sync_dir(Path::new(DIR)).unwrap();
}

fn segments(image: &Image) -> Vec<String> {
    names(image).into_iter().filter(|name| name.ends_with(".log")).collect()
}

fn everything(image: &Image) -> BTreeMap<String, Vec<u8>> {
    names(image).into_iter().map(|name| (name.clone(), bytes_of(image, &name))).collect()
}

/// Looks, and sees to it that nothing was changed, not even for a moment.
fn looked<T>(image: &Image, look: impl AsyncFnOnce(&Arc<dyn Disk>) -> T) -> T {
    let disk = FaultDisk::new(image.clone());
    let before = everything(image);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let told = run(look(&shared));
    let after = disk.image();
    assert_eq!(after.boundaries(), image.boundaries(), "an operation that changes");
    assert_eq!(after.unsynced(), image.unsynced());
    assert!(everything(&after) == before, "a byte or a name has changed");
    told
}

pub(super) fn checked(image: &Image) -> Result<Report, StorageError> {
    looked(image, async |disk| check(disk, Path::new(DIR), &Arc::new(Progress::default())).await)
}

fn report(image: &Image) -> Report {
    checked(image).unwrap()
}

fn figures_of(image: &Image) -> Result<Figures, StorageError> {
    looked(image, async |disk| figures(disk, Path::new(DIR), &Arc::new(Progress::default())).await)
}

/// What a start says, and each read after it.
fn opened(image: &Image, truth: &Truth) -> Result<(Recovery, Vec<Slot>, Stats), String> {
    let disk = disk_of(image.clone());
    run(async {
        let read = directory::read(&disk.0, Path::new(DIR)).await;
        read.map_err(|error| error.to_string())?.ok_or("no node.meta")?;
        let config = StoreConfig { cache_bytes: 0, ..quiet() };
        let (store, recovery) = start(&disk, config).await.map_err(|error| error.to_string())?;
        let stats = store.stats();
        let mut corrupt = Vec::new();
        for slot in truth.slots.keys() {
            if store.read(slot).await.is_err() {
                corrupt.push(slot.clone());
            }
        }
        Ok((recovery, corrupt, stats))
    })
}

#[test]
fn sound_directories_are_sound_and_what_a_crash_left_is_told() {
    let (image, truth) = flipped_directory(true);
    let clean = report(&image);
    assert!(clean.is_sound() && clean.tail.is_none() && clean.leftovers.is_empty(), "{clean:?}");
    let figures = clean.figures.unwrap();
    assert!(figures.clean && figures.snapshot.is_some() && figures.starts == 1, "{figures:?}");
    assert_eq!(u64::try_from(segments(&image).len()).unwrap(), clean.segments);

    let (killed, _) = flipped_directory(false);
    let killed = report(&killed);
    assert!(killed.is_sound(), "{killed:?}");
    assert!(killed.tail.is_some_and(|tail| tail.unproven_records > 0 && tail.torn_bytes == 0));

    // After a start has tidied up there is nothing left to tell.
    let disk = disk_of(image);
    run(async {
        let (store, _) = start(&disk, quiet()).await.unwrap();
        assert!(!truth.slots.is_empty());
        store.close().await.unwrap();
    });
    let again = report(&disk.0.image());
    assert!(again.is_sound() && again.tail.is_none(), "{again:?}");
}

#[test]
fn a_torn_tail_is_sound_wherever_it_is_torn() {
    let (image, _) = flipped_directory(false);
    let newest = segments(&image).pop().unwrap();
    let whole = bytes_of(&image, &newest);
    let mut torn = 0;
    for cut in 0..whole.len() {
        let mut image = image.clone();
        set_bytes(&mut image, &newest, &whole[..cut]);
        let report = report(&image);
        // Everything before its last group is proven by that group's head; without that, nothing is.
        assert!(report.is_sound(), "cut at {cut}: {report:?}");
        torn += u64::from(report.tail.is_some_and(|tail| tail.torn_bytes > 0));
    }
    assert!(torn > 40, "{torn}");
}

#[test]
fn figures_are_those_of_the_store() {
    for clean in [false, true] {
        let (image, truth) = flipped_directory(clean);
        let told = figures_of(&image).unwrap();
        assert_eq!((told.node, told.partitions, told.replicas, told.format), (1, 8, 3, directory::FORMAT));
        assert_eq!(told.cluster, meta().descriptor.cluster.to_string());
        let (recovery, corrupt, stats) = opened(&image, &truth).unwrap();
        assert!(corrupt.is_empty());
        assert_eq!((told.data_keys, told.guest_keys), (stats.data_keys, stats.guest_keys));
        assert_eq!((told.clean, told.unproven_records), (recovery.clean, recovery.rewritten));
        assert_eq!(told.targets, [NodeId(3)]);
        let owed = truth.slots.values().filter_map(|history| history.values.last()?.as_ref());
        assert_eq!(told.owed_keys, owed.filter(|entry| !entry.targets.is_empty()).count() as u64);
        assert_eq!(told.live_bytes + told.dead_bytes, told.log_bytes);
        let sizes: u64 = segments(&image).iter().map(|name| bytes_of(&image, name).len() as u64).sum();
        assert_eq!((told.log_bytes, told.damage, told.torn_bytes), (sizes, 0, 0));
        // The store has written a start since, and moved what nothing proved.
        assert!(stats.live_bytes.abs_diff(told.live_bytes) < 200, "{stats:?} {told:?}");
        let snapshot = told.snapshot.unwrap();
        assert_eq!(snapshot.bytes, bytes_of(&image, "index.snap").len() as u64);
        assert!(snapshot.log_bytes_since > 0 && snapshot.log_bytes_since < told.log_bytes);
    }
}

/// Where the first damage lies.
fn first(report: &Report) -> &Damage {
    assert!(!report.is_sound());
    &report.damage[0]
}

#[test]
fn a_flip_in_a_segment_is_told_with_its_place_and_its_partition() {
    let (image, truth) = flipped_directory(true);
    // The newest record of a key, in the part that the snapshot stands for, and behind it.
    let mut behind = 0;
    for (slot, history) in &truth.slots {
        let Some(Some(entry)) = history.values.last() else { continue };
        let value = value_of(entry);
        let (name, at) = segments(&image)
            .into_iter()
            .find_map(|name| {
                let bytes = bytes_of(&image, &name);
                let at = bytes.windows(value.len()).position(|part| part == value.as_bytes())?;
                Some((name, at as u64))
            })
            .unwrap();
        let mut image = image.clone();
        image.arm(Fault::BitFlip { path: path(&name), offset: at, bit: 3 });
        let found = report(&image);
        let damage = first(&found);
        assert_eq!(damage.file, name);
        assert!(damage.from < at && at < damage.to && damage.to - damage.from < 300, "{damage:?}");
        assert_eq!(damage.what, What::Unreadable);
        let Concerned::These(partitions) = &damage.partitions else { panic!("{damage:?}") };
        assert!(partitions.contains(&slot.partition) && partitions.len() < 4);
        // A record that a replay did not find is no entry any more, one that the snapshot knows of is lost.
        assert_eq!(damage.entries, found.entries_lost);
        assert!(found.entries_lost <= 1 && found.damage.len() == 1, "{found:?}");
        behind += found.entries_lost;
    }
    assert!(behind > 0);
}

#[test]
fn damaged_files_that_count_as_a_whole_are_told() {
    let (image, _) = flipped_directory(true);
    for name in ["index.snap", "node.meta"] {
        let len = bytes_of(&image, name).len() as u64;
        for offset in 0..len {
            let mut image = image.clone();
            image.arm(Fault::BitFlip { path: path(name), offset, bit: 5 });
            let found = report(&image);
            assert_eq!(found.damage.len(), 1, "byte {offset}: {found:?}");
            let damage = first(&found);
            assert_eq!((damage.file.as_str(), damage.from, damage.to), (name, 0, len));
            assert!(matches!(damage.what, What::Refused(_)), "{damage:?}");
            assert_eq!(found.figures.is_none(), name == "node.meta");
        }
    }
    let mut bare = image.clone();
    remove_file(&mut bare, "node.meta");
    let found = report(&bare);
    assert!(!found.is_sound() && found.incomplete && found.records > 10, "{found:?}");
    // Without what it says of itself the log is read all the same.
    let oldest = segments(&bare).remove(0);
    let offset = bytes_of(&bare, &oldest).len() as u64 - 20;
    bare.arm(Fault::BitFlip { path: path(&oldest), offset, bit: 0 });
    assert!(report(&bare).damage.iter().any(|damage| damage.file == oldest));
    // The mark is worth nothing when it is not whole, and nothing is lost by it.
    let mut image = image;
    image.arm(Fault::BitFlip { path: path("clean"), offset: 9, bit: 0 });
    let found = report(&image);
    assert!(found.is_sound() && found.tail.unwrap().torn_mark);
}

#[test]
fn a_truncated_segment_is_told() {
    let (image, _) = flipped_directory(true);
    for name in segments(&image) {
        let whole = bytes_of(&image, &name);
        for cut in
            [0, 7, SEGMENT_HEAD_LEN, SEGMENT_HEAD_LEN + GROUP_HEAD_LEN, whole.len() / 2, whole.len() - 1]
        {
            let mut image = image.clone();
            image.arm(Fault::Truncate { path: path(&name), len: cut as u64 });
            let found = report(&image);
            assert!(!found.is_sound(), "{name} cut at {cut}: {found:?}");
            if found.leftovers == [name.clone()] {
                // Without a group it is no segment: what the mark knows of is missing behind the one before it.
                assert!(cut < SEGMENT_HEAD_LEN + GROUP_HEAD_LEN && first(&found).what == What::Truncated);
                continue;
            }
            let damage = found.damage.iter().find(|damage| damage.to >= whole.len() as u64);
            assert!(damage.is_some_and(|damage| damage.from <= cut as u64), "{name} at {cut}: {found:?}");
        }
    }
}

#[test]
fn a_segment_that_is_gone_is_told_when_the_snapshot_needs_it() {
    let (image, truth) = flipped_directory(true);
    let names = segments(&image);
    assert!(names.len() > 3);
    let mut needed = 0;
    for name in &names {
        let mut image = image.clone();
        remove_file(&mut image, name);
        let found = report(&image);
        let (recovery, corrupt, _) = opened(&image, &truth).unwrap();
        assert_eq!(found.is_sound(), recovery.corrupt == 0 && corrupt.is_empty(), "{name}: {found:?}");
        assert_eq!(found.entries_lost, corrupt.len() as u64, "{name}: {found:?}, {corrupt:?}");
        if let Some(gone) = found.damage.iter().find(|damage| damage.what == What::Gone) {
            needed += gone.entries;
        } else if name != &names[0] && name != &names[names.len() - 1] {
            assert_eq!(found.gaps, 1, "{name}: nothing else tells");
        }
    }
    assert!(needed > 1);
}

#[test]
fn a_write_that_went_astray_is_told_at_both_ends() {
    let disk = disk_of(empty());
    run(async {
        directory::write(&disk.0, Path::new(DIR), &meta()).await.unwrap();
        let (store, _) = start(&disk, quiet()).await.unwrap();
        put_durable(&store, "a", &"x".repeat(2000)).await;
        put_durable(&store, "between", "whole").await;
        let segment = segments(&disk.0.image()).pop().unwrap();
        disk.0.arm(Fault::MisdirectedWrite { path: path(&segment), nth: 1, to: path(&segment), offset: 512 });
        put_durable(&store, "b", "astray").await;
        put_durable(&store, "c", "behind").await;
        store.close().await.unwrap();
    });
    let mut image = disk.0.image();
    image.lose_unsynced();
    let found = report(&image);
    let [there, here] = &found.damage[..] else { panic!("{found:?}") };
    assert!(there.from < 512 && there.to > 512 && here.from > there.to, "{found:?}");
}

#[test]
fn a_bad_sector_is_damage_and_not_the_end_of_the_check() {
    let (image, _) = flipped_directory(true);
    for name in names(&image).into_iter().filter(|name| name != "LOCK" && name != "clean") {
        let mut image = image.clone();
        image.arm(Fault::BadSector { path: path(&name), offset: 100 });
        let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(image));
        let found = run(check(&disk, Path::new(DIR), &Arc::default())).unwrap();
        assert!(!found.is_sound(), "{name}");
        assert!(found.damage.iter().any(|damage| damage.file == name || damage.file.is_empty()), "{found:?}");
    }
}

#[test]
fn a_directory_in_use_or_none_or_of_another_build_is_refused() {
    let disk = FaultDisk::new(empty());
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let progress = Arc::new(Progress::default());
    let bad = |result: Result<Report, StorageError>, words: &str| {
        let Err(StorageError::BadDirectory(message)) = result else { panic!("{result:?}") };
        assert!(message.contains(words), "{message}");
    };
    bad(run(check(&shared, Path::new("/nowhere"), &progress)), "it is not there");
    bad(run(check(&shared, Path::new(DIR), &progress)), "neither node.meta nor a segment");
    assert!(names(&disk.image()).is_empty(), "not even a lock file is made");

    let dir = Path::new(DIR);
    run(async {
        directory::write(&disk, dir, &meta()).await.unwrap();
        assert!(check(&shared, dir, &progress).await.unwrap().is_sound(), "nothing was written yet");
        let lock = disk.lock(&dir.join("LOCK")).await.unwrap();
        assert!(matches!(check(&shared, dir, &progress).await, Err(StorageError::InUse(_))));
        assert!(matches!(figures(&shared, dir, &progress).await, Err(StorageError::InUse(_))));
        drop(lock);
        assert!(check(&shared, dir, &progress).await.unwrap().is_sound());
        // The lock was given back.
        drop(disk.lock(&dir.join("LOCK")).await.unwrap());

        // As an older build wrote it, with less behind the number.
        let mut bytes = Vec::new();
        let kind = crate::storage::format::KIND_META;
        crate::storage::format::append_record(
            &mut bytes,
            seed_of(Salted::plain(0), 0),
            kind,
            &(1_u32, 7_u64),
        )
        .unwrap();
        set_bytes(&mut disk.control(), "node.meta", &bytes);
        let other = check(&shared, dir, &progress).await;
        assert!(matches!(other, Err(StorageError::OtherFormat { found: 1, .. })), "{other:?}");
    });
}

#[test]
fn a_node_that_starts_during_the_check_of_a_directory_without_a_lock_file_is_noticed() {
    let (image, _) = flipped_directory(true);
    let mut image = image;
    remove_file(&mut image, "LOCK");
    assert!(report(&image).is_sound());
    assert!(!names(&image).contains(&"LOCK".to_owned()));
    // The check waits at the snapshot while a node starts.
    let disk = FaultDisk::new(image);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    run(async {
        disk.stall(&path("index.snap"));
        let checking = tokio::spawn(async move { check(&shared, Path::new(DIR), &Arc::default()).await });
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let _lock = disk.lock(&path("LOCK")).await.unwrap();
        disk.release(&path("index.snap"));
        let told = checking.await.unwrap();
        assert!(matches!(told, Err(StorageError::InUse(_))), "{told:?}");
    });
}

/// The property: the check finds damage exactly when a start, or a read after it, does; and besides where nobody needs
/// what was hit, which neither a start nor a read looks at.
#[test]
fn after_any_flip_the_check_says_what_a_start_and_the_reads_say() {
    let (mut both, mut neither, mut unneeded) = (0, 0, 0);
    for clean in [false, true] {
        let (image, truth) = flipped_directory(clean);
        for name in names(&image) {
            for offset in 0..bytes_of(&image, &name).len() as u64 {
                let mut image = image.clone();
                let bit = u8::try_from(offset * 5 % 8).unwrap();
                image.arm(Fault::BitFlip { path: path(&name), offset, bit });
                let when = format!("bit {bit} of byte {offset} of {name}, clean {clean}");
                let found = report(&image);
                let said = match opened(&image, &truth) {
                    Err(_) => true,
                    Ok((recovery, corrupt, _)) => {
                        assert!(
                            !recovery.maybe_rotten
                                || found.tail.as_ref().is_some_and(|tail| tail.maybe_rotten),
                            "{when}"
                        );
                        assert_eq!(found.entries_lost, corrupt.len() as u64, "{when}: {found:?}");
                        recovery.corrupt > 0 || recovery.snapshot_refused.is_some() || !corrupt.is_empty()
                    }
                };
                match (said, found.is_sound()) {
                    (true, false) => both += 1,
                    (false, true) => neither += 1,
                    (false, false) => {
                        unneeded += 1;
                        assert!(found.damage.iter().all(|damage| damage.entries == 0), "{when}: {found:?}");
                        assert!(found.damage.iter().all(|damage| damage.file == name), "{when}: {found:?}");
                    }
                    (true, true) => {
                        panic!("{when}: a start or a read meets damage that the check does not see")
                    }
                }
            }
        }
    }
    println!("{both} flips seen by both, {neither} by neither, {unneeded} by the check alone");
    assert!(both > 1000 && unneeded > 100);
}

/// Snapshots whose checksums are right and whose contents are not: what software that errs would write.
#[test]
fn a_snapshot_that_lies_is_caught_by_the_log() {
    let disk = disk_of(flipped_directory(true).0);
    run(async {
        let (store, _) = start(&disk, quiet()).await.unwrap();
        store.snapshot().await.unwrap();
        store.close().await.unwrap();
    });
    let image = disk.0.image();
    let whole = bytes_of(&image, "index.snap");
    let (mut told, mut offset) = (Vec::new(), 0);
    while offset < whole.len() {
        let len = 4 + u32::from_le_bytes(whole[offset..offset + 4].try_into().unwrap()) as usize;
        for at in offset + envelope::PREFIX_LEN..offset + len {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            envelope::seal(&mut bytes[offset..offset + len], seed_of(Salted::plain(u64::MAX), offset as u64));
            let mut image = image.clone();
            set_bytes(&mut image, "index.snap", &bytes);
            let found = report(&image);
            told.extend(found.damage.into_iter().map(|damage| damage.what.to_string()));
        }
        offset += len;
    }
    for words in [
        "its Merkle leaves are not those of its entries",
        "its checksum is wrong",
        "its version hash is another",
        "another key stands there",
        "it is kept for other nodes",
        "something is owed that is not there",
        "the state of a partition",
        "it points behind what it says is synced",
        "it is of another cluster",
    ] {
        let count = told.iter().filter(|told| told.contains(words)).count();
        assert!(count > 0, "no lie is told as {words:?}");
    }
}

/// Records whose checksums are right and whose contents are not.
#[test]
fn groups_that_lie_and_keys_of_other_partitions_are_told() {
    let disk = disk_of(empty());
    run(async {
        directory::write(&disk.0, Path::new(DIR), &meta()).await.unwrap();
        let (store, _) = start(&disk, quiet()).await.unwrap();
        put_durable(&store, "a", "1").await;
        put_durable(&store, "b", "2").await;
        store.close().await.unwrap();
    });
    let image = disk.0.image();
    assert!(report(&image).is_sound());
    let name = segments(&image).remove(0);
    let whole = bytes_of(&image, &name);
    let at = SEGMENT_HEAD_LEN;
    let of = SegmentHead::decode(&whole, 1).unwrap().0.salted();
    let head = GroupHead::read(&whole[at..at + GROUP_HEAD_LEN]).unwrap();
    for (head, words) in [
        (GroupHead { records: head.records + 1, ..head }, "does not have the records"),
        (GroupHead { len: head.len - 1, ..head }, "does not have the records"),
        (GroupHead { position: head.position + 1, ..head }, "at a position that it does not name"),
        (GroupHead { synced: head.position + 1, ..head }, "at a position that it does not name"),
    ] {
        let (mut image, mut bytes) = (image.clone(), whole.clone());
        head.write(&mut bytes[at..], seed_of(of, at as u64));
        set_bytes(&mut image, &name, &bytes);
        let found = report(&image);
        assert!(first(&found).what.to_string().contains(words), "{found:?}");
        assert_eq!(found.entries_lost, 0);
    }

    let disk = disk_of(image);
    run(async {
        let (store, _) = start(&disk, quiet()).await.unwrap();
        let right = slot("c");
        let elsewhere = Slot { partition: PartitionId((right.partition.0 + 1) % 8), ..right };
        let write = |entry: &mut Entry| {
            set(entry, "3");
            (Change::Write, ())
        };
        let (_, position) = store.update(&elsewhere, Durability::Sync, write).await.unwrap();
        store.wait_synced(position).await.unwrap();
        store.close().await.unwrap();
    });
    let found = report(&disk.0.image());
    assert!(first(&found).what.to_string().contains("its key is of another partition"), "{found:?}");
}
