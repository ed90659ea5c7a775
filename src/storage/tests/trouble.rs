//! Disks that fail, fill up or do not answer; marks that lie.

use futures_util::FutureExt;

use super::*;
use crate::io::fault_disk::Fault;
use crate::io::{BoxFuture, Clock};

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "old", "value").await;
    disk.disk.arm(Fault::SyncError { path: Path::new(DIR).to_owned(), nth: 1 });
    let position = put(&store, "key", "value").await.unwrap();
    assert!(matches!(store.wait_synced(position).await, Err(StorageError::Latched(_))));
    assert!(store.failed().await.contains("os error 5"), "what the system said");
    // The next sync would succeed without having written the pages.
    let writes = disk.log().len();
    assert!(matches!(put(&store, "other", "value").await, Err(StorageError::Latched(_))));
    assert!(matches!(try_get(&store, "key").await, Err(StorageError::Latched(_))));
    assert!(matches!(store.holds(&slot("key"), hash_of(&store, "key")).await, Err(StorageError::Latched(_))));
    assert_eq!(get(&store, "old").await.as_deref(), Some("value"), "what was durable is served");
    assert_eq!(store.holds(&slot("old"), hash_of(&store, "old")).await, Ok(true));
    assert!(matches!(store.close().await, Err(StorageError::Latched(_))));
    let after = disk.log().split_off(writes);
    assert!(!after.iter().any(|done| done.starts_with("write") || done.starts_with("sync")), "{after:?}");
    let (store, recovery) = open(&disk.after(Loss::All)).await;
    assert_eq!((recovery.clean, recovery.corrupt), (false, 0));
    assert_eq!(get(&store, "key").await, None);
}

/// The bad order: a snapshot is given its name, the sync of the directory fails; a segment that was made meanwhile is in the
/// same directory, the next sync of it succeeds without its name, and what it holds is acknowledged.
#[tokio::test]
async fn a_failed_sync_of_names_is_everybodys_trouble() {
    let disk = TestDisk::new();
    let (store, _) = open_with(&disk, quiet()).await.unwrap();
    put_durable(&store, "old", "value").await;
    // The first sync is that of the snapshot's own bytes, the second that of its name.
    disk.disk.arm(Fault::SyncError { path: Path::new(DIR).to_owned(), nth: 2 });
    let written = store.inner.write_snapshot().await;
    assert!(matches!(written, Err(StorageError::Io { .. })), "{written:?}");
    until("the log is latched", || store.inner.log.check().is_err()).await;
    assert!(store.failed().await.contains("os error 5"), "what the system said");
    assert!(matches!(put(&store, "key", "value").await, Err(StorageError::Latched(_))));
    assert!(store.inner.log.sync_names().await.is_err(), "the next sync would succeed");
    assert_eq!(get(&store, "old").await.as_deref(), Some("value"), "what was durable is served");
    assert!(matches!(store.close().await, Err(StorageError::Latched(_))));
}

/// The bad order: one read of a segment's head fails, the segment counts as damaged, nothing of it is needed, compaction
/// removes the file.
#[tokio::test]
async fn a_head_that_cannot_be_read_is_read_again_and_never_taken_for_damage() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "key", "value").await;
    store.close().await.unwrap();
    let segment = segment_paths(&disk)[0].clone();
    for (nth, opens) in [(&[1][..], true), (&[1, 2], false)] {
        let disk = disk.after(Loss::All);
        for nth in nth {
            disk.disk.arm(Fault::ReadError { path: segment.clone(), nth: *nth });
        }
        match open_with(&disk, config()).await {
            Ok((store, recovery)) => {
                assert!(opens, "a disk that cannot be read is no empty one");
                assert_eq!((recovery.corrupt, get(&store, "key").await.as_deref()), (0, Some("value")));
            }
            Err(error) => assert!(!opens && error.to_string().contains("read"), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_goes_on_when_there_is_space() {
    for config in [quiet(), tiny()] {
        let disk = TestDisk::new();
        let (store, _) = open_with(&disk, config.clone()).await.unwrap();
        put_durable(&store, "old", "value").await;
        disk.set_full(true);
        let position = put(&store, "key", &"value".repeat(400)).await.unwrap();
        assert_eq!(store.wait_synced(position).await, Err(StorageError::DiskFull));
        let called = std::sync::atomic::AtomicBool::new(false);
        let other = slot("other");
        let refused = store.update(&other, Durability::Sync, |_| {
            called.store(true, std::sync::atomic::Ordering::Relaxed);
            (Change::Write, ())
        });
        assert_eq!(refused.await.err(), Some(StorageError::DiskFull));
        assert!(!called.into_inner(), "no dot may be made for a refused update");
        assert_eq!(get(&store, "old").await.as_deref(), Some("value"));
        assert_eq!(try_get(&store, "key").await, Err(StorageError::DiskFull), "it may still be lost");

        disk.set_full(false);
        // The group is written again by itself.
        for _ in 0..100 {
            if store.wait_synced(position).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(get(&store, "key").await.map(|value| value.len()), Some(2000));
        put_durable(&store, "other", "new").await;
        let (store, recovery) = open_with(&disk.after(Loss::All), config).await.unwrap();
        assert_eq!(recovery.corrupt, 0);
        assert_eq!(get(&store, "key").await.map(|value| value.len()), Some(2000));
        assert_eq!(get(&store, "other").await.as_deref(), Some("new"));
    }
}

/// A clock that stands until it is set.
#[derive(Default, Clone)]
struct StillClock(Arc<std::sync::Mutex<Duration>>);

impl Clock for StillClock {
    fn mono(&self) -> Duration {
        *self.0.lock().unwrap()
    }
    fn wall(&self) -> Duration {
        self.mono()
    }
    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            while clock.mono() < deadline {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    }
}

#[tokio::test]
async fn a_sync_that_takes_too_long_makes_updates_fail_until_it_returns() {
    let (held, permits) = TestDisk::new().with_permits(1);
    let clock = Arc::new(StillClock::default());
    let opened =
        Store::open(Arc::new(held), clock.clone(), Path::new(DIR), Incarnation(1), SaltSeed(1), quiet())
            .await
            .unwrap();
    let (store, _) = opened;
    let position = put(&store, "key", "value").await.unwrap();
    tokio::task::yield_now().await;
    *clock.0.lock().unwrap() = Duration::from_secs(9);
    put(&store, "key", "value").await.unwrap();
    *clock.0.lock().unwrap() = Duration::from_secs(11);
    assert!(matches!(put(&store, "key", "value").await, Err(StorageError::Stalled(_))));
    // Those that wait already are told too.
    assert!(matches!(store.wait_synced(position).await, Err(StorageError::Stalled(_))));
    assert!(matches!(try_get(&store, "key").await, Err(StorageError::Stalled(_))));
    permits.add_permits(9);
    until("the disk answers again", || store.writable().is_ok()).await;
    store.wait_synced(position).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    put(&store, "key", "value").await.unwrap();
}

#[tokio::test]
async fn who_has_stopped_waiting_for_a_disk_that_hangs_is_forgotten() {
    let (held, permits) = TestDisk::new().with_permits(1);
    let (store, _) = open(&held).await;
    let position = put(&store, "key", "value").await.unwrap();
    for _ in 0..5_000 {
        assert!(store.wait_synced(position).now_or_never().is_none());
    }
    let waiting = store.inner.log.waiting();
    assert!(waiting < 100, "{waiting} are listed, and nobody waits");
    permits.add_permits(9);
    store.wait_synced(position).await.unwrap();
}

/// The bad order: what the node knows of itself is replaced, the sync of its name fails and gives up that of a new segment
/// too; the next sync succeeds without it, and what the segment holds is acknowledged.
#[tokio::test]
async fn a_failed_sync_of_what_the_directory_says_of_itself_is_everybodys_trouble() {
    for nth in [1, 2] {
        let disk = TestDisk::new();
        let (store, _) = open(&disk).await;
        put_durable(&store, "old", "value").await;
        store.write_meta(&power::meta()).await.unwrap();
        // The first sync is that of the file, the second that of its name.
        disk.disk.arm(Fault::SyncError { path: Path::new(DIR).to_owned(), nth });
        assert!(store.write_meta(&power::meta()).await.is_err());
        assert!(matches!(put(&store, "key", "value").await, Err(StorageError::Latched(_))), "sync {nth}");
        assert_eq!(get(&store, "old").await.as_deref(), Some("value"));
    }
}

/// The disk that writes and syncs in one go, as the real one does, tells which of the two has failed.
#[tokio::test]
async fn a_failed_half_of_a_write_with_its_sync_is_told_from_the_other() {
    let mut image = crate::io::fault_disk::Image::new();
    image.create_dir_all(Path::new(DIR)).unwrap();
    let disk = crate::io::fault_disk::FaultDisk::new(image);
    let (dir, incarnation) = (Path::new(DIR), Incarnation(1));
    let clock = Arc::new(RealClock::new());
    let opened = Store::open(Arc::new(disk.clone()), clock, dir, incarnation, SaltSeed(1), quiet());
    let (store, _) = opened.await.unwrap();
    disk.control().set_capacity(Some(0));
    let position = put(&store, "key", &"value".repeat(2_000)).await.unwrap();
    assert_eq!(store.wait_synced(position).await, Err(StorageError::DiskFull));
    disk.control().set_capacity(None);
    until("there is space again", || store.writable().is_ok()).await;
    store.wait_synced(position).await.unwrap();
    disk.arm(Fault::SyncError { path: Path::new(DIR).to_owned(), nth: 1 });
    let position = put(&store, "key", "value").await.unwrap();
    assert!(matches!(store.wait_synced(position).await, Err(StorageError::Latched(_))));
}

/// Keys may have 64 KiB, and a record of the snapshot has a limit.
#[tokio::test]
async fn many_long_keys_that_are_owed_fit_into_a_snapshot() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    let long = |n: u32| format!("{n:08}").repeat(8_191);
    let of_one = |key: &String| slot(key).partition == PartitionId(0);
    let keys: Vec<String> = (0..).map(long).filter(of_one).take(700).collect();
    let mut end = LogPosition(0);
    for key in &keys {
        let owed = |entry: &mut Entry| {
            set(entry, "value");
            entry.targets.push(NodeId(2));
            (Change::Write, ())
        };
        end = store.update(&slot(key), Durability::Sync, owed).await.unwrap().1;
    }
    store.wait_synced(end).await.unwrap();
    store.snapshot().await.unwrap();
    store.close().await.unwrap();
    let (again, recovery) = open(&disk.after(Loss::All)).await;
    assert!(recovery.snapshot && recovery.snapshot_refused.is_none(), "{recovery:?}");
    assert_eq!(roots(&again), roots(&store));
}

#[tokio::test]
async fn no_byte_of_a_group_is_written_before_the_sync_of_the_one_before_returned() {
    let disk = TestDisk::new();
    let (held, permits) = disk.with_permits(1);
    let (store, _) = open(&held).await;
    put(&store, "a", "1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let writes = || disk.log().iter().filter(|done| done.starts_with("write")).count();
    let before = writes();
    for n in 0..20 {
        put(&store, &format!("b{n}"), "2").await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(writes(), before);
    let groups = store.stats().groups;
    permits.add_permits(2);
    let position = put(&store, "c", "3").await.unwrap();
    store.wait_synced(position).await.unwrap();
    assert_eq!(store.stats().groups, groups + 2, "all that waited went in one group");
}

#[tokio::test]
async fn the_clean_mark_is_written_last_and_its_removal_is_synced_before_anything_is_written() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "key", "value").await;
    store.close().await.unwrap();
    let log = disk.log();
    let changes: Vec<&String> = log.iter().filter(|done| !done.starts_with("read")).collect();
    let last: Vec<&str> =
        changes[changes.len() - 3..].iter().map(|done| done.split(' ').next().unwrap()).collect();
    assert_eq!(last, ["write", "sync", "sync-dir"], "{changes:?}");

    let after = disk.after(Loss::Nothing);
    let (_store, recovery) = open(&after).await;
    assert!(recovery.clean && recovery.rewritten == 0);
    let log = after.log();
    let removed = log.iter().position(|done| done == "remove clean").unwrap();
    assert!(log[removed + 1].starts_with("sync-dir"));
    assert!(!log[..removed].iter().any(|done| done.starts_with("write")), "{log:?}");
}

#[tokio::test]
async fn a_stale_clean_mark_proves_no_more_than_it_says() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "key", "1").await;
    store.close().await.unwrap();
    let mark = disk.contents(&Path::new(DIR).join("clean"));
    let (store, _) = open(&disk).await;
    put_durable(&store, "key", "2").await;
    // Somebody restored the mark alone.
    let image = disk.after(Loss::Nothing);
    image.set_contents(&Path::new(DIR).join("clean"), mark.clone());
    let (again, recovery) = open(&image).await;
    assert!(!recovery.clean);
    assert_eq!((recovery.rewritten, recovery.corrupt), (1, 0));
    assert_eq!(get(&again, "key").await.as_deref(), Some("2"));
    drop(store);

    // A mark that knows of more than there is: durable bytes are gone, and nobody knows whose they were.
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "key", "1").await;
    store.close().await.unwrap();
    let image = disk.after(Loss::Nothing);
    let path = segment_paths(&image).remove(0);
    let mut bytes = image.contents(&path);
    bytes.pop();
    image.set_contents(&path, bytes);
    let (_, recovery) = open(&image).await;
    assert!(recovery.corrupt > 0 && !recovery.clean, "{recovery:?}");
    assert_eq!(recovery.suspects.len(), 8);
}

/// The failure may come while a group is under way: neither is that group announced, nor the failure forgotten with it.
#[tokio::test]
async fn a_failed_sync_of_names_latches_also_while_a_group_is_written() {
    let disk = TestDisk::new();
    let (held, permits) = disk.with_permits(2);
    let segment = Arc::new(segment::Segment::new(1, 0, 7));
    let segments = Arc::new(segment::Segments::default());
    segments.insert(segment.clone());
    let position = format::SEGMENT_HEAD_LEN as u64;
    let start = log::Start { segment, position, salts: SaltSeed(1) };
    let stall_max = Duration::from_secs(10);
    let limits = log::Limits { segment_bytes: 1 << 20, gathered_bytes: 1 << 20, stall_max };
    let clock = Arc::new(RealClock::new());
    let log = Arc::new(log::Log::new(Arc::new(held), clock, DIR.into(), limits, segments, start));
    let run = tokio::spawn({
        let log = log.clone();
        async move { log.run().await }
    });
    let append = || {
        let removal = |out: &mut Vec<u8>, seed| format::append_removal(out, seed, &slot("key"));
        let (position, len) =
            log.append(PartitionId(0), log::Need::Removal, Duration::ZERO, removal).unwrap();
        position + len as u64
    };
    let first = append();
    log.wait_synced(first).await.unwrap();
    let second = append();
    let written = || disk.log().iter().filter(|done| done.starts_with("write")).count() == 3;
    until("the second group is written", written).await;
    disk.disk.control().arm(crate::io::fault_disk::Fault::SyncError { path: DIR.into(), nth: 1 });
    assert!(log.sync_names().await.is_err());
    permits.add_permits(9);
    until("the log is latched", || log.check().is_err()).await;
    run.await.unwrap();
    assert!(matches!(log.check(), Err(StorageError::Latched(_))));
    assert!(matches!(log.wait_synced(second).await, Err(StorageError::Latched(_))));
    assert!(log.synced() < second);
}

#[tokio::test]
async fn a_snapshot_counts_only_after_all_that_it_points_at_is_synced() {
    let disk = TestDisk::new();
    let (held, permits) = disk.with_permits(1);
    let (store, _) = open(&held).await;
    put(&store, "key", "value").await.unwrap();
    let snapshot = store.snapshot();
    tokio::pin!(snapshot);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut snapshot).await.is_err());
    assert!(!disk.names().contains(&"index.snap".to_owned()));
    permits.add_permits(1);
    snapshot.await.unwrap();
    let (store, recovery) = open(&disk.after(Loss::All)).await;
    assert!(recovery.snapshot && recovery.corrupt == 0 && recovery.rewritten == 0, "{recovery:?}");
    assert_eq!(get(&store, "key").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn a_read_that_fails_once_costs_no_copy_and_one_that_keeps_failing_is_damage() {
    use crate::io::fault_disk::{FaultDisk, Image};
    let mut image = Image::new();
    image.create_dir_all(Path::new(DIR)).unwrap();
    let disk = FaultDisk::new(image);
    let config = StoreConfig { cache_bytes: 0, ..quiet() };
    let (store, _) = Store::open(
        Arc::new(disk.clone()),
        Arc::new(RealClock::new()),
        Path::new(DIR),
        Incarnation(1),
        SaltSeed(1),
        config,
    )
    .await
    .unwrap();
    put_durable(&store, "key", "value").await;
    let path = Path::new(DIR).join("0000000001.log");
    let fail = |nth| disk.arm(Fault::ReadError { path: path.clone(), nth });
    fail(1);
    assert_eq!(get(&store, "key").await.as_deref(), Some("value"));
    assert!(store.stats().damaged.is_empty());
    (1..=3).for_each(fail);
    assert!(matches!(try_get(&store, "key").await, Err(StorageError::Corrupt(_))));
    assert_eq!(store.stats().damaged.values().sum::<u64>(), 1);
}

#[tokio::test]
async fn a_directory_of_another_format_is_told_from_a_damaged_one_whatever_its_rest_looks_like() {
    let disk = crate::io::MemoryDisk::new();
    disk.create_dir_all(Path::new(DIR)).await.unwrap();
    let file = disk.open(&Path::new(DIR).join("node.meta"), true).await.unwrap();
    for (kind, known) in [(format::KIND_META, true), (format::KIND_CLEAN, false)] {
        let mut bytes = Vec::new();
        format::append_record(&mut bytes, format::seed_of(format::Salted::plain(0), 0), kind, &(1_u32, 7_u8))
            .unwrap();
        file.set_len(0).await.unwrap();
        file.write_at(0, bytes.into()).await.unwrap();
        let read = directory::read(&disk, Path::new(DIR)).await;
        match read.err().unwrap() {
            StorageError::OtherFormat { found, .. } => assert!(known && found == 1),
            StorageError::BadDirectory(message) => assert!(!known && message.contains("damaged")),
            error => panic!("{error}"),
        }
    }
}
