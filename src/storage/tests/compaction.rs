use super::*;
use crate::io::Clock;

#[tokio::test]
async fn compaction_under_concurrent_updates_loses_nothing_and_gives_space_back() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 20_000, cache_bytes: 0, ..tiny() };
    let (store, _) = open_with(&disk, config.clone()).await.unwrap();
    // Written once, so that some of what is in the way is needed.
    for n in 0..10 {
        put_durable(&store, &format!("still{n}"), "here").await;
    }
    let mut tasks = Vec::new();
    for task in 0..8u32 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for n in 0..400u32 {
                let key = format!("key{}-{}", task, n * 7 % 20);
                put_durable(&store, &key, &format!("{n}")).await;
                assert_eq!(get(&store, &key).await, Some(format!("{n}")));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    until("compaction", || store.stats().log_bytes < 100_000).await;
    let stats = store.stats();
    assert!(stats.copied_bytes > 0 && stats.removed_bytes > 100_000, "{stats:?}");
    let last = |task: u32, key: u32| (0..400).rev().find(|n| n * 7 % 20 == key).map(|n| (task, n)).unwrap().1;
    for image in [Loss::All, Loss::Nothing] {
        let (again, recovery) = open_with(&disk.after(image), config.clone()).await.unwrap();
        assert_eq!(recovery.corrupt, 0);
        for task in 0..8 {
            for key in 0..20 {
                let value = get(&again, &format!("key{task}-{key}")).await;
                assert_eq!(value, Some(last(task, key).to_string()));
            }
        }
        assert_eq!((contents(&again), roots(&again)), (contents(&store), roots(&store)));
    }
}

#[tokio::test]
async fn a_removed_key_stays_away_whatever_is_compacted() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 700, dead_percent_max: 15, ..tiny() };
    let (store, _) = open_with(&disk, StoreConfig { dead_percent_max: 101, ..config.clone() }).await.unwrap();
    // The oldest segment keeps an old entry of "gone", beside one that keeps the segment from being worth compacting.
    put_durable(&store, "gone", "1").await;
    put_durable(&store, "stays", &"x".repeat(5000)).await;
    let position = remove(&store, "gone").await.unwrap();
    store.wait_synced(position).await.unwrap();
    for n in 0..100 {
        put_durable(&store, "churn", &format!("{n}")).await;
    }
    store.close().await.unwrap();
    let mut image = disk.after(Loss::All);
    for round in 0..6 {
        let (store, recovery) = open_with(&image, config.clone()).await.unwrap();
        assert_eq!(recovery.corrupt, 0);
        for n in 0..50 {
            put_durable(&store, "churn", &format!("{n}")).await;
        }
        assert_eq!(get(&store, "gone").await, None, "round {round}");
        assert_eq!(get(&store, "stays").await.map(|value| value.len()), Some(5000));
        // Without the snapshot all that keeps it away is its removal record.
        let bare = image.after(Loss::Nothing);
        let _ = bare.remove(&Path::new(DIR).join("index.snap")).await;
        let (bare, _) = open_with(&bare, quiet()).await.unwrap();
        assert_eq!(get(&bare, "gone").await, None, "round {round}, full replay");
        assert_eq!(get(&bare, "stays").await.map(|value| value.len()), Some(5000));
        image = image.after(if round % 2 == 0 { Loss::All } else { Loss::Nothing });
    }
}

#[tokio::test]
async fn segments_of_nothing_but_removals_do_not_chase_their_own_tail() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 2000, ..tiny() };
    let (store, _) = open_with(&disk, config).await.unwrap();
    put_durable(&store, "stays", &"x".repeat(5000)).await;
    for n in 0..100 {
        put_durable(&store, &format!("key{n}"), "v").await;
        let position = remove(&store, &format!("key{n}")).await.unwrap();
        store.wait_synced(position).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = store.stats().written_bytes;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(store.stats().written_bytes, before, "idle");
}

#[tokio::test]
async fn a_victim_with_a_needed_record_that_cannot_be_read_stays() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 1000, cache_bytes: 0, ..quiet() };
    let (store, _) = open_with(&disk, config.clone()).await.unwrap();
    put_durable(&store, "key", "value").await;
    for n in 0..50 {
        put_durable(&store, "churn", &format!("{n}")).await;
    }
    store.close().await.unwrap();
    let path = segment_paths(&disk).remove(0);
    let image = disk.after(Loss::All);
    // A snapshot that knows of the key; otherwise the replay would find the damage first.
    let (store, _) = open_with(&image, config.clone()).await.unwrap();
    store.snapshot().await.unwrap();
    store.close().await.unwrap();
    let image = image.after(Loss::All);
    let mut bytes = image.contents(&path);
    let at = bytes.windows(5).position(|window| window == b"value").unwrap();
    bytes[at] ^= 1;
    image.set_contents(&path, bytes);
    let (store, _) = open_with(&image, StoreConfig { dead_percent_max: 5, ..config }).await.unwrap();
    for n in 0..50 {
        put_durable(&store, "churn", &format!("{n}")).await;
    }
    until("the damage is met", || !store.stats().damaged.is_empty()).await;
    assert!(segment_paths(&image).contains(&path));
    assert!(matches!(try_get(&store, "key").await, Err(StorageError::Corrupt(_))));
}

#[tokio::test]
async fn the_limit_on_bandwidth_is_kept() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 2_000_000, dead_percent_max: 20, ..quiet() };
    let slow = StoreConfig { compaction_bytes_per_second: 10_000_000, ..config };
    let (store, _) = open_with(&disk, slow).await.unwrap();
    let clock = RealClock::new();
    for n in 0..60 {
        put_durable(&store, &format!("key{}", n % 40), &"x".repeat(100_000)).await;
    }
    until("compaction", || store.stats().removed_bytes > 0).await;
    assert!(clock.mono() > Duration::from_millis(100), "two megabytes at ten a second");
}

async fn turns() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_record_that_only_an_unsynced_one_made_dead_outlives_a_crash() {
    let disk = TestDisk::new();
    // A segment for each group.
    let config = StoreConfig { segment_bytes: 100, ..quiet() };
    let (store, _) = open_with(&disk, config.clone()).await.unwrap();
    put_durable(&store, "key", "acknowledged").await;
    put_durable(&store, "other", "value").await;
    let image = disk.after(Loss::All);
    let (store, _) = open_with(&image, config).await.unwrap();
    // Before the housekeeper has had its first look: the segment of the old entry is dead, the new one has time.
    put_with(&store, "key", "gathered", Durability::Interval(Duration::from_secs(9999))).await.unwrap();
    let before = segment_paths(&image).len();
    turns().await;
    assert!(segment_paths(&image).len() < before, "it was compacted");
    let (store, recovery) = open(&image.after(Loss::All)).await;
    assert_eq!(recovery.corrupt, 0);
    assert!(get(&store, "key").await.is_some());
}

#[tokio::test]
async fn a_segment_of_removals_is_kept_after_a_restart_and_so_the_key_stays_away() {
    for snapshot in [false, true] {
        let disk = TestDisk::new();
        let config = StoreConfig { segment_bytes: 100, ..quiet() };
        let (store, _) = open_with(&disk, config.clone()).await.unwrap();
        put(&store, "gone", "value").await.unwrap();
        put_durable(&store, "stays", "value").await;
        let position = remove(&store, "gone").await.unwrap();
        store.wait_synced(position).await.unwrap();
        put_durable(&store, "last", "value").await;
        if snapshot {
            store.snapshot().await.unwrap();
        }
        let image = disk.after(Loss::All);
        let (store, _) = open_with(&image, config).await.unwrap();
        put_durable(&store, "last", "more").await;
        turns().await;
        assert_eq!(get(&store, "gone").await, None);
        // A snapshot may be damaged; then there is nothing but the log.
        let image = image.after(Loss::All);
        let _ = image.remove(&Path::new(DIR).join("index.snap")).await;
        let (store, _) = open(&image).await;
        assert_eq!(get(&store, "gone").await, None, "snapshot {snapshot}");
        assert_eq!(get(&store, "stays").await.as_deref(), Some("value"));
    }
}

/// The segments of a store, oldest first.
fn segments_of(store: &Store) -> Vec<Arc<segment::Segment>> {
    store.inner.segments.all()
}

/// The bad order: a snapshot lists a key, the key is removed, the removal rots, its segment is compacted and goes; the process
/// ends, and the next start has the key from the snapshot, with nothing to say that it was ever removed.
#[tokio::test]
async fn a_segment_where_a_removal_may_have_rotten_stays_and_tells_the_next_start() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 600, cache_bytes: 0, ..quiet() };
    let (store, _) = open_with(&disk, config.clone()).await.unwrap();
    put(&store, "gone", "value").await.unwrap();
    put_durable(&store, "stays", &"x".repeat(600)).await;
    store.snapshot().await.unwrap();
    let position = remove(&store, "gone").await.unwrap();
    store.wait_synced(position).await.unwrap();
    put_durable(&store, "churn", &"x".repeat(600)).await;
    put_durable(&store, "churn", &"x".repeat(600)).await;
    let victim = segments_of(&store)[1].clone();
    let path = segment::path_of(Path::new(DIR), victim.id);
    let mut bytes = disk.contents(&path);
    let at = bytes.windows(4).position(|window| window == b"gone").unwrap();
    bytes[at] ^= 1;
    disk.set_contents(&path, bytes);

    super::super::compaction::compact(&store.inner, &victim, 0).await.unwrap();
    assert_eq!(get(&store, "gone").await, None);
    assert!(segment_paths(&disk).contains(&path), "the only word of the removal is gone");
    // Not again and again.
    assert!(store.inner.is_pinned(&victim));
    let (again, recovery) = open_with(&disk.after(Loss::All), config).await.unwrap();
    assert!(recovery.corrupt > 0 && recovery.suspects.contains(&slot("gone").partition), "{recovery:?}");
    assert_eq!(again.partition_state(slot("gone").partition).0, PartitionState::default());
}

/// The bad order: a segment goes; the one before it, behind which it stood, is cut short, and nobody knows how long it was.
#[tokio::test]
async fn a_segment_goes_only_when_a_snapshot_knows_where_the_one_before_it_ends() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 1000, cache_bytes: 0, ..quiet() };
    let (store, _) = open_with(&disk, config.clone()).await.unwrap();
    put_durable(&store, "first", &"x".repeat(300)).await;
    put_durable(&store, "last", &"x".repeat(300)).await;
    for n in 0..3 {
        put_durable(&store, "churn", &format!("{n}").repeat(1000)).await;
    }
    turns().await;
    let paths = segment_paths(&disk);
    assert!(segments_of(&store)[1].is_dead(), "one is dead, and stays");
    store.snapshot().await.unwrap();
    put_durable(&store, "other", "value").await;
    turns().await;
    let left = segment_paths(&disk);
    assert!(left.contains(&paths[0]) && !left.contains(&paths[1]), "{left:?} of {paths:?}");
    store.close().await.unwrap();

    let image = disk.after(Loss::All);
    let whole = image.contents(&paths[0]);
    for snapshot in [true, false] {
        for len in (0..whole.len()).rev().step_by(3) {
            let image = image.after(Loss::All);
            image.set_contents(&paths[0], whole[..len].to_vec());
            if !snapshot {
                image.remove(&Path::new(DIR).join("index.snap")).await.unwrap();
            }
            let (store, recovery) = open_with(&image, config.clone()).await.unwrap();
            for key in ["first", "last"] {
                let partition = slot(key).partition;
                let refilled = store.partition_state(partition).0.refilled;
                let told = recovery.suspects.contains(&partition) && !refilled;
                let here = matches!(try_get(&store, key).await, Ok(Some(_)) | Err(StorageError::Corrupt(_)));
                assert!(here || told, "{len} bytes, snapshot {snapshot}: {key} is gone and {recovery:?}");
            }
        }
    }
}

/// A full disk has no room for what has gathered, and needs what is dead to go.
#[tokio::test]
async fn a_full_disk_gives_up_what_is_dead_for_long() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 100, ..quiet() };
    let (store, _) = open_with(&disk, config).await.unwrap();
    for key in ["a", "b", "c"] {
        put_durable(&store, key, "1").await;
    }
    store.snapshot().await.unwrap();
    let housekeeping = store.inner.housekeeping.lock().await;
    put_durable(&store, "b", "2").await;
    let dead = segments_of(&store).into_iter().find(|segment| segment.is_dead()).unwrap().id;
    let dead = segment::path_of(Path::new(DIR), dead);
    disk.set_full(true);
    let position = put(&store, "big", &"x".repeat(5_000)).await.unwrap();
    assert_eq!(store.wait_synced(position).await, Err(StorageError::DiskFull));
    assert!(segment_paths(&disk).contains(&dead));
    drop(housekeeping);
    until("the dead segment goes", || !segment_paths(&disk).contains(&dead)).await;
}
