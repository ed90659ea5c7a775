//! Torn tails, rot, and telling them apart.

use super::*;
use crate::storage::format::{
    GROUP_HEAD_LEN, GroupHead, PartitionSet, SEGMENT_HEAD_LEN, SegmentHead, seed_of,
};

fn find(bytes: &[u8], value: &str) -> usize {
    bytes.windows(value.len()).position(|window| window == value.as_bytes()).unwrap()
}

fn flip(disk: &TestDisk, path: &Path, at: usize) {
    let mut bytes = disk.contents(path);
    bytes[at] ^= 0x10;
    disk.set_contents(path, bytes);
}

async fn refill_all(store: &Store) {
    for partition in config().partitions.partitions() {
        let fill = |state: &mut PartitionState| {
            state.refilled = true;
            (Change::Write, ())
        };
        let (_, position) = store.update_partition(partition, fill).await.unwrap();
        store.wait_synced(position).await.unwrap();
    }
}

fn not_refilled(store: &Store) -> Vec<PartitionId> {
    let all = config().partitions.partitions();
    all.filter(|id| !store.partition_state(*id).0.refilled).collect()
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_every_byte_and_what_stands_before_it_is_served() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "a", "first").await;
    let path = segment_paths(&disk).remove(0);
    let whole = disk.contents(&path).len();
    // One group of two records.
    put(&store, "a", "second").await.unwrap();
    put_durable(&store, "c", "there").await;
    let longer = disk.contents(&path);
    let second_end = find(&longer, "second") + "second".len();

    for cut in whole..longer.len() {
        for garbage in [None, Some(0), Some(0xa5)] {
            let image = disk.after(Loss::Nothing);
            let mut torn = longer[..cut].to_vec();
            if let Some(byte) = garbage {
                torn.resize(longer.len(), byte);
            }
            if torn == longer {
                // Only zeros are cut, and zeros came for them.
                continue;
            }
            image.set_contents(&path, torn.clone());
            let (store, recovery) = open(&image).await;
            // A whole record before the first bad byte stays. What the garbage hits may not differ from what was.
            let second = get(&store, "a").await.unwrap();
            assert!(second == "first" || (second == "second" && cut >= second_end), "cut at {cut}: {second}");
            assert!(cut < second_end + 40 || second == "second", "cut at {cut}");
            assert_eq!(get(&store, "c").await, None, "cut at {cut}");
            assert_eq!(recovery.corrupt, 0, "cut at {cut}: {recovery:?}");
            let head = whole..whole + GROUP_HEAD_LEN;
            let full_length = torn.get(head.clone()) == Some(&longer[head]) && torn.len() == longer.len();
            assert_eq!(recovery.maybe_rotten, full_length, "cut at {cut}, {garbage:?}");
            if full_length {
                assert!(["a", "c"].iter().all(|key| recovery.suspects.contains(&slot(key).partition)));
            }
            // What is written now must be found again: the cut is real, and done once.
            put_durable(&store, "b", "third").await;
            store.close().await.unwrap();
            let (store, again) = open(&image.after(Loss::All)).await;
            assert_eq!((again.cut, again.corrupt), (0, 0), "cut at {cut}");
            assert_eq!(get(&store, "b").await.as_deref(), Some("third"));
            assert_eq!(get(&store, "a").await, Some(second));
        }
    }
}

#[tokio::test]
async fn every_flipped_bit_is_seen_and_never_served() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    refill_all(&store).await;
    put_durable(&store, "a", "first").await;
    let path = segment_paths(&disk).remove(0);
    let before = disk.contents(&path).len();
    put(&store, "b", "wanted").await.unwrap();
    put_durable(&store, "c", "behind").await;
    let after = disk.contents(&path).len();
    put_durable(&store, "d", "proof").await;

    for at in before..after {
        let image = disk.after(Loss::Nothing);
        flip(&image, &path, at);
        let (store, recovery) = open(&image).await;
        assert_eq!(recovery.corrupt, 1, "byte {at}");
        assert_eq!(recovery.cut, 0, "byte {at}: nothing that is proven is cut");
        assert_eq!(get(&store, "a").await.as_deref(), Some("first"));
        assert_eq!(get(&store, "d").await.as_deref(), Some("proof"), "what stands behind it stays");
        let (b, c) = (get(&store, "b").await, get(&store, "c").await);
        assert!(b.is_none() || b.as_deref() == Some("wanted"), "byte {at}");
        assert!(c.is_none() || c.as_deref() == Some("behind"), "byte {at}");
        if at < before + GROUP_HEAD_LEN {
            assert!(b.is_some() && c.is_some(), "a damaged head takes no record along");
            assert_eq!(recovery.suspects.len(), 8);
        } else {
            assert!(b.is_none() != c.is_none(), "byte {at}: one of them");
            let missing = slot(if b.is_none() { "b" } else { "c" }).partition;
            assert!(recovery.suspects.contains(&missing), "byte {at}");
            assert!(recovery.suspects.len() <= 2, "the group says whose records it has");
        }
        assert_eq!(not_refilled(&store), recovery.suspects);
        // Durably so.
        let (store, _) = open(&image.after(Loss::All)).await;
        assert!(not_refilled(&store).starts_with(&recovery.suspects[..1]));
    }
}

#[tokio::test]
async fn damage_that_comes_while_the_node_runs_is_corrupt_and_not_absent() {
    for snapshot in [false, true] {
        let disk = TestDisk::new();
        let (store, _) = open_with(&disk, StoreConfig { cache_bytes: 0, ..quiet() }).await.unwrap();
        refill_all(&store).await;
        put_durable(&store, "key", "value").await;
        put_durable(&store, "other", "else").await;
        if snapshot {
            store.snapshot().await.unwrap();
        }
        let path = segment_paths(&disk).remove(0);
        flip(&disk, &path, find(&disk.contents(&path), "value"));
        let (store, recovery) =
            if snapshot { open(&disk.after(Loss::All)).await } else { (store, Recovery::default()) };
        assert_eq!(recovery.corrupt, 0, "behind the snapshot nothing is read at start");
        let hash = hash_of(&store, "key");
        assert_eq!(store.holds(&slot("key"), hash).await, Ok(true), "nobody has met it yet");
        for _ in 0..2 {
            assert!(matches!(try_get(&store, "key").await, Err(StorageError::Corrupt(_))));
            assert_eq!(store.holds(&slot("key"), hash).await, Ok(false));
        }
        let refused = put(&store, "key", "new").await;
        assert!(matches!(refused, Err(StorageError::Corrupt(_))), "it would be a put on an absent one");
        assert_eq!(get(&store, "other").await.as_deref(), Some("else"));
        let partition = slot("key").partition;
        assert_eq!(store.stats().damaged, [(partition, 1)].into());
        assert_eq!(not_refilled(&store), [partition]);
        // Repaired from elsewhere.
        let write = |entry: &mut Entry| {
            assert_eq!(*entry, Entry::default());
            set(entry, "repaired");
            (Change::Write, ())
        };
        let (_, position) = store.replace_damaged(&slot("key"), |entry, _| write(entry)).await.unwrap();
        store.wait_synced(position).await.unwrap();
        assert_eq!(get(&store, "key").await.as_deref(), Some("repaired"));
        assert_eq!(store.holds(&slot("key"), hash_of(&store, "key")).await, Ok(true));
    }
}

#[tokio::test]
async fn a_record_at_a_wrong_place_is_not_taken_for_the_right_one() {
    let disk = TestDisk::new();
    let (store, _) = open_with(&disk, StoreConfig { cache_bytes: 0, ..quiet() }).await.unwrap();
    put_durable(&store, "key", "old").await;
    put_durable(&store, "key", "new").await;
    // A misdirected write: the old record, whole, where the new one stood.
    let path = segment_paths(&disk).remove(0);
    let mut bytes = disk.contents(&path);
    let distance = find(&bytes, "new") - find(&bytes, "old");
    // Before the key: the fixed part, the flags, the partition and the key's length.
    let from = find(&bytes, "key") - 19;
    let len = 4 + u32::from_le_bytes(bytes[from..from + 4].try_into().unwrap()) as usize;
    bytes.copy_within(from..from + len, from + distance);
    disk.set_contents(&path, bytes);
    assert!(matches!(try_get(&store, "key").await, Err(StorageError::Corrupt(_))));
}

#[tokio::test]
async fn records_that_nothing_proves_are_synced_before_they_are_served() {
    let disk = TestDisk::new();
    let (held, permits) = disk.with_permits(1);
    let (store, _) = open(&held).await;
    put(&store, "key", "value").await.unwrap();
    remove(&store, "key").await.unwrap();
    put(&store, "key", "again").await.unwrap();
    until("the write", || disk.log().iter().filter(|done| done.starts_with("write")).count() > 1).await;
    drop(permits);
    // The process dies: the page cache holds what the disk does not.
    let killed = disk.after(Loss::Nothing);
    // Put the unsynced group there without its being durable: what a killed process leaves.
    let (store, recovery) = open(&killed).await;
    assert_eq!(recovery.rewritten, 1 + recovery.starts - 1 + 2);
    assert_eq!(get(&store, "key").await.as_deref(), Some("again"));
    let (store, recovery) = open(&killed.after(Loss::All)).await;
    assert_eq!(recovery.corrupt, 0);
    assert_eq!(get(&store, "key").await.as_deref(), Some("again"), "the machine died after that");
}

#[tokio::test]
async fn damaged_heads_and_missing_segments_are_reported_and_the_rest_is_served() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 600, ..quiet() };
    let (store, _) = open_with(&disk, config.clone()).await.unwrap();
    for n in 0..20 {
        put_durable(&store, &format!("key{n}"), "value").await;
    }
    let paths = segment_paths(&disk);
    assert!(paths.len() > 4);
    // A head: all records of the segment can still be read.
    for path in &paths {
        let image = disk.after(Loss::Nothing);
        flip(&image, path, SEGMENT_HEAD_LEN - 1);
        let (store, recovery) = open_with(&image, config.clone()).await.unwrap();
        assert!(recovery.corrupt == 1 || recovery.maybe_rotten, "{path:?}: {recovery:?}");
        assert_eq!(contents(&store).len(), 20);
    }
    // A file, with a snapshot that knows of it.
    store.snapshot().await.unwrap();
    let image = disk.after(Loss::All);
    let gone = image.contents(&paths[2]);
    image.remove(&paths[2]).await.unwrap();
    let (store, recovery) = open_with(&image, config.clone()).await.unwrap();
    assert!(recovery.corrupt > 0);
    let mut corrupt = 0;
    for n in 0..20 {
        match try_get(&store, &format!("key{n}")).await {
            Ok(value) => assert_eq!(value.as_deref(), Some("value")),
            Err(StorageError::Corrupt(_)) => corrupt += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(corrupt, recovery.corrupt);
    assert!(corrupt <= gone.len() as u64 / 100 + 1);
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_at_every_byte_and_the_log_read_instead() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    for n in 0..10 {
        put_durable(&store, &format!("key{n}"), "value").await;
    }
    store.snapshot().await.unwrap();
    let expected = (contents(&store), roots(&store));
    let path = Path::new(DIR).join("index.snap");
    let len = disk.contents(&path).len();
    for at in (0..len).step_by(7) {
        for cut in [false, true] {
            let image = disk.after(Loss::All);
            if cut {
                image.set_contents(&path, disk.contents(&path)[..at].to_vec());
            } else {
                flip(&image, &path, at);
            }
            let (store, recovery) = open(&image).await;
            assert!(!recovery.snapshot && recovery.snapshot_refused.is_some(), "byte {at}");
            assert_eq!((contents(&store), roots(&store)), expected);
        }
    }
}

#[tokio::test]
async fn a_log_that_could_not_go_on_is_refused_before_anything_is_written() {
    for (id, base) in [(1, segment::POSITION_MAX + 1), (1, u64::MAX), (segment::ID_MAX - 1, 0), (u64::MAX, 0)]
    {
        let disk = TestDisk::new();
        let head = SegmentHead { id, base, synced: 0, salt: 1, before: id - 1 };
        let (of, mut bytes) = (head.salted(), head.encode());
        bytes.resize(SEGMENT_HEAD_LEN + GROUP_HEAD_LEN, 0);
        let position = base.saturating_add(SEGMENT_HEAD_LEN as u64);
        let partitions = PartitionSet::default();
        let head = GroupHead { position, synced: 0, len: 0, records: 0, partitions };
        head.write(&mut bytes[SEGMENT_HEAD_LEN..], seed_of(of, SEGMENT_HEAD_LEN as u64));
        let path = segment::path_of(Path::new(DIR), id);
        disk.set_contents(&path, bytes.clone());
        let refused = open_with(&disk, quiet()).await.err();
        assert!(matches!(refused, Some(StorageError::BadDirectory(_))), "{id}, {base}: {refused:?}");
        assert_eq!((disk.contents(&path), disk.log()), (bytes, Vec::new()));
    }
}

#[tokio::test]
async fn what_is_cut_stays_cut_also_when_a_group_behind_it_proves_nothing() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "a", "first").await;
    let path = segment_paths(&disk).remove(0);
    let torn = disk.contents(&path).len();
    put_durable(&store, "b", "torn").await;
    let mut behind = Vec::new();
    for key in ["c", "d"] {
        behind.push(disk.contents(&path).len());
        put_durable(&store, key, "behind").await;
    }
    let mut bytes = disk.contents(&path);
    bytes[torn + GROUP_HEAD_LEN + 20] ^= 1;
    let of = SegmentHead::decode(&bytes, 1).unwrap().0.salted();
    for at in behind {
        // As if these groups had not waited for the ones before them: no engine writes that, and a file can say it.
        let head = GroupHead::read(&bytes[at..at + GROUP_HEAD_LEN]).unwrap();
        GroupHead { synced: 0, ..head }.write(&mut bytes[at..], seed_of(of, at as u64));
    }
    disk.set_contents(&path, bytes);
    let (store, recovery) = open(&disk.after(Loss::All)).await;
    assert_eq!((recovery.corrupt, get(&store, "b").await, get(&store, "c").await), (0, None, None));
    let image = disk.after(Loss::All);
    drop(open(&image).await);
    let (store, again) = open(&image.after(Loss::All)).await;
    assert_eq!((again.corrupt, again.cut), (0, 0), "{again:?}");
    assert_eq!(get(&store, "a").await.as_deref(), Some("first"));
}

/// Found by sim seed 10 of the scenario that destroys disks.
#[tokio::test]
async fn a_record_that_its_file_ends_in_is_not_taken_from_what_others_need() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "a", "first").await;
    put_durable(&store, "b", "second").await;
    store.snapshot().await.unwrap();
    let path = segment_paths(&disk).remove(0);
    let image = disk.after(Loss::Nothing);
    let mut bytes = image.contents(&path);
    let end = find(&bytes, "second") + 3;
    bytes.truncate(end);
    image.set_contents(&path, bytes);

    // The snapshot points at b's record, whose end is gone; then b is written anew.
    let (store, _) = open(&image).await;
    let before = store.stats().live_bytes;
    let (_, position) =
        store.replace_damaged(&slot("b"), |entry, _| (Change::Write, set(entry, "third"))).await.unwrap();
    store.wait_synced(position).await.unwrap();
    let after = store.stats().live_bytes;
    assert!(after > before && after < before + 200, "{before} bytes were needed, and then {after}");
    assert_eq!(get(&store, "a").await.as_deref(), Some("first"));
    assert_eq!(get(&store, "b").await.as_deref(), Some("third"));
}

/// The bad order: a start is killed before its second group, and the segment that it began goes; the one before it is cut
/// short at the end of a group, and nothing says that there was more.
#[tokio::test]
async fn a_segment_cut_short_before_one_that_never_was_is_told_wherever_it_is_cut() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    for n in 0..4 {
        put_durable(&store, &format!("key{n}"), "value").await;
    }
    drop(store);
    // Twice: what the first start begins holds nothing that proves it, so its records move to the second's, and it goes.
    let disk = disk.after(Loss::Nothing);
    drop(open(&disk).await);
    let disk = disk.after(Loss::Nothing);
    let (store, _) = open(&disk).await;
    put_durable(&store, "later", "value").await;
    store.close().await.unwrap();
    let disk = disk.after(Loss::All);
    let paths = segment_paths(&disk);
    let name = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    let ids: Vec<String> = paths.iter().map(name).collect();
    assert_eq!(ids, ["0000000001", "0000000003"], "there is a gap, and nothing was ever in it");
    let whole = disk.contents(&paths[0]);
    for len in 0..whole.len() {
        let disk = disk.after(Loss::All);
        disk.set_contents(&paths[0], whole[..len].to_vec());
        let (_, recovery) = open(&disk).await;
        let told = recovery.corrupt > 0 && recovery.suspects.len() == 8;
        assert!(told, "cut at {len} of {}: {recovery:?}", whole.len());
    }
}
