use std::ops::Bound;

use super::*;
use crate::io::{MemoryDisk, RealDisk};

#[tokio::test]
async fn another_incarnation_is_known_to_the_next_start_once_it_is_durable() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    let position = store.note_incarnation(Incarnation(2)).await.unwrap();
    let before = disk.after(Loss::All);
    store.wait_synced(position).await.unwrap();
    for (disk, incarnation) in [(before, 1), (disk.after(Loss::All), 2)] {
        let (_store, recovery) = open(&disk).await;
        assert_eq!((recovery.incarnation, recovery.starts), (Some(Incarnation(incarnation)), 1));
    }
}

#[tokio::test]
async fn entries_are_there_after_reopening_and_the_newest_wins() {
    let disk = TestDisk::new();
    let (store, first) = open(&disk).await;
    assert_eq!((first.records, first.starts), (0, 0));
    for n in 0..200 {
        put(&store, &format!("key{}", n % 50), &format!("value{n}")).await.unwrap();
    }
    assert_eq!(get(&store, "key7").await.as_deref(), Some("value157"));
    let before = (contents(&store), roots(&store));
    store.close().await.unwrap();

    let (store, second) = open(&disk).await;
    assert_eq!((second.records, second.cut, second.starts, second.clean), (201, 0, 1, true));
    assert_eq!(store.len(Table::Data), 50);
    assert_eq!(get(&store, "key7").await.as_deref(), Some("value157"));
    assert_eq!(get(&store, "nothing").await, None);
    assert_eq!((contents(&store), roots(&store)), before);
}

#[tokio::test]
async fn the_engine_runs_on_the_real_disk_and_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let memory = MemoryDisk::new();
    memory.create_dir_all(dir.path()).await.unwrap();
    let disks: [Arc<dyn Disk>; 2] = [Arc::new(RealDisk::new().unwrap()), Arc::new(memory)];
    for disk in disks {
        let open = async || {
            let clock = Arc::new(RealClock::new());
            Store::open(disk.clone(), clock, dir.path(), Incarnation(1), SaltSeed(1), tiny()).await.unwrap()
        };
        let (store, _) = open().await;
        for n in 0..300 {
            put_durable(&store, &format!("key{}", n % 30), &format!("value{n}")).await;
        }
        assert_eq!(get(&store, "key7").await.as_deref(), Some("value277"));
        store.close().await.unwrap();
        let (store, _) = open().await;
        assert_eq!(get(&store, "key7").await.as_deref(), Some("value277"));
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_and_the_nodes_own_copy_of_a_key_are_kept_apart_and_found_by_target() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put(&store, "key", "own").await.unwrap();
    let guest = |key: &str| Slot { table: Table::Guest, ..slot(key) };
    assert_eq!(store.read(&guest("key")).await.unwrap(), None);
    for (key, targets) in [("key", [3, 2, 3]), ("a", [2, 2, 2]), ("b", [3, 4, 5])] {
        let keep = |entry: &mut Entry| {
            entry.add_targets(&targets.map(NodeId));
            (Change::Write, ())
        };
        store.update(&guest(key), Durability::Sync, keep).await.unwrap();
    }
    let owed = |store: &Store, node| {
        // One at a time, to try the cursor.
        let mut found: Vec<Owed> = Vec::new();
        while let [next] = &store.owed_to(NodeId(node), found.last(), 1)[..] {
            found.push(next.clone());
        }
        assert_eq!(found, store.owed_to(NodeId(node), None, 100));
        found.into_iter().map(|owed| owed.slot.key.to_string()).collect::<std::collections::BTreeSet<_>>()
    };
    let strike = |entry: &mut Entry| {
        entry.targets.retain(|target| *target != NodeId(3));
        (Change::Write, ())
    };
    store.update(&guest("b"), Durability::Sync, strike).await.unwrap();
    let (_, position) = store.update(&guest("a"), Durability::Sync, |_| (Change::Remove, ())).await.unwrap();
    store.wait_synced(position).await.unwrap();
    for snapshot in [false, true] {
        if snapshot {
            store.snapshot().await.unwrap();
        }
        let (store, recovery) = open(&disk.after(Loss::All)).await;
        assert_eq!(recovery.snapshot, snapshot);
        assert_eq!(store.read(&guest("key")).await.unwrap().unwrap().targets, [NodeId(2), NodeId(3)]);
        assert_eq!((store.len(Table::Data), store.len(Table::Guest)), (1, 2));
        assert_eq!(owed(&store, 2), ["key".to_owned()].into());
        assert_eq!(owed(&store, 3), ["key".to_owned()].into());
        assert_eq!(owed(&store, 4), ["b".to_owned()].into());
        assert_eq!(store.targets(), [2, 3, 4, 5].map(NodeId).into());
        // The sums are those of a count of each entry.
        for target in store.targets() {
            let owed = store.owed_to(target, None, 1000);
            let bytes = |owed: &Owed| {
                let Slot { table, partition, namespace, key } = &owed.slot;
                let at = Bound::Included((*namespace, key));
                store.scan(*table, *partition, at, Direction::Ascending, 1).keys[0].bytes as u64
            };
            let counted = (owed.len() as u64, owed.iter().map(bytes).sum());
            assert_eq!(store.owed_size(target), counted, "{target}");
        }
    }
}

#[tokio::test]
async fn updates_of_one_key_at_once_lose_nothing() {
    let (store, _) = open(&TestDisk::new()).await;
    let mut tasks = Vec::new();
    for n in 0..100u64 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let add = |entry: &mut Entry| {
                entry.add_targets(&[NodeId(n)]);
                (Change::Write, ())
            };
            let (_, position) = store.update(&slot("key"), Durability::Sync, add).await.unwrap();
            store.wait_synced(position).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.read(&slot("key")).await.unwrap().unwrap().targets.len(), 100);
}

#[tokio::test]
async fn a_directory_has_one_user() {
    let disk = TestDisk::new();
    let (_store, _) = open(&disk).await;
    assert!(matches!(open_with(&disk, quiet()).await.err(), Some(StorageError::InUse(_))));
}

#[tokio::test]
async fn a_read_waits_until_what_it_returns_is_durable() {
    let disk = TestDisk::new();
    // One for the segment of this start.
    let (held, permits) = disk.with_permits(1);
    let (store, _) = open(&held).await;
    put(&store, "key", "value").await.unwrap();
    let read = get(&store, "key");
    tokio::pin!(read);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut read).await;
    assert!(early.is_err(), "the read answered before the sync");
    permits.add_permits(1);
    assert_eq!(read.await.as_deref(), Some("value"));
    // Nothing is a reply too: it waits for the removal that it depends on.
    remove(&store, "key").await.unwrap();
    let read = get(&store, "key");
    tokio::pin!(read);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut read).await.is_err());
    permits.add_permits(1);
    assert_eq!(read.await, None);
}

#[tokio::test]
async fn an_interval_write_is_read_at_once_and_durable_in_time_or_with_the_next_sync() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    let hour = Durability::Interval(Duration::from_secs(3600));
    put_with(&store, "slow", "1", hour).await.unwrap();
    assert_eq!(get(&store, "slow").await.as_deref(), Some("1"));
    let (lost, _) = open(&disk.after(Loss::Nothing)).await;
    assert_eq!(get(&lost, "slow").await, None, "it was in memory alone");

    put_durable(&store, "other", "x").await;
    let (kept, _) = open(&disk.after(Loss::All)).await;
    assert_eq!(get(&kept, "slow").await.as_deref(), Some("1"), "it went along");

    put_with(&store, "soon", "1", Durability::Interval(Duration::from_millis(20))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (kept, _) = open(&disk.after(Loss::All)).await;
    assert_eq!(get(&kept, "soon").await.as_deref(), Some("1"), "its time had come");

    let position = put_with(&store, "hurried", "1", hour).await.unwrap();
    store.wait_synced(position).await.unwrap();
}

#[tokio::test]
async fn an_interval_write_over_a_sync_write_that_is_not_durable_does_not_reveal_it() {
    let (held, permits) = TestDisk::new().with_permits(1);
    let (store, _) = open(&held).await;
    put(&store, "key", "sync").await.unwrap();
    put_with(&store, "key", "interval", Durability::Interval(Duration::from_secs(3600))).await.unwrap();
    let read = get(&store, "key");
    tokio::pin!(read);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut read).await.is_err());
    permits.add_permits(2);
    assert_eq!(read.await.as_deref(), Some("interval"));
}

#[tokio::test]
async fn a_record_is_vouched_for_by_its_hash_once_it_is_durable_and_without_a_read() {
    let (held, permits) = TestDisk::new().with_permits(1);
    let (store, _) = open(&held).await;
    put(&store, "key", "old").await.unwrap();
    let old = hash_of(&store, "key");
    assert_eq!(store.holds(&slot("key"), old ^ 1).await, Ok(false));
    assert_eq!(store.holds(&slot("other"), old).await, Ok(false));
    let slot_of_key = slot("key");
    let holds = store.holds(&slot_of_key, old);
    tokio::pin!(holds);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut holds).await.is_err());
    // What it vouches for is what stood there when it was asked.
    put(&store, "key", "new").await.unwrap();
    permits.add_permits(9);
    assert_eq!(holds.await, Ok(true));
    assert_eq!(store.holds(&slot("key"), old).await, Ok(false));
    let stats = store.stats();
    assert_eq!(store.holds(&slot("key"), hash_of(&store, "key")).await, Ok(true));
    assert_eq!(
        (store.stats().cache_hits, store.stats().cache_misses),
        (stats.cache_hits, stats.cache_misses)
    );
    // Nobody waits for a write with an interval.
    put_with(&store, "soon", "1", Durability::Interval(Duration::from_secs(3600))).await.unwrap();
    assert_eq!(store.holds(&slot("soon"), hash_of(&store, "soon")).await, Ok(true));
}

#[tokio::test]
async fn keys_are_scanned_in_order_both_ways_with_the_last_key_as_cursor() {
    let (store, _) = open(&TestDisk::new()).await;
    let partition = PartitionId(5);
    for n in 0..500 {
        let key = Key::new(format!("{n:04}").into_bytes()).unwrap();
        let slot = Slot { table: Table::Data, partition, namespace: Namespace(2), key };
        let write = |entry: &mut Entry| {
            set(entry, "x");
            (Change::Write, ())
        };
        store.update(&slot, Durability::Sync, write).await.unwrap();
    }
    for direction in [Direction::Ascending, Direction::Descending] {
        let mut keys: Vec<Key> = Vec::new();
        loop {
            let from = keys.last().map_or(Bound::Unbounded, |last| Bound::Excluded((Namespace(2), last)));
            let page = store.scan(Table::Data, partition, from, direction, 37);
            store.wait_synced(page.position).await.unwrap();
            keys.extend(page.keys.iter().map(|scanned| scanned.key.clone()));
            if page.keys.len() < 37 {
                break;
            }
        }
        assert_eq!(keys.len(), 500);
        let ascending = keys.is_sorted();
        assert_eq!(ascending, direction == Direction::Ascending);
        keys.reverse();
        assert_eq!(keys.is_sorted(), direction == Direction::Descending);
    }
}

#[tokio::test]
async fn the_state_of_a_partition_is_durable_and_seen_by_updates() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    let partition = slot("key").partition;
    let raise = |state: &mut PartitionState| {
        state.fence += 7;
        state.refilled = true;
        (Change::Write, state.fence)
    };
    let (fence, position) = store.update_partition(partition, raise).await.unwrap();
    store.wait_synced(position).await.unwrap();
    assert_eq!(fence, 7);
    let key = slot("key");
    let seen = store.update_with_state(&key, Durability::Sync, |_, state| (Change::Keep, *state));
    assert_eq!(seen.await.unwrap().0, PartitionState { fence: 7, committed: 0, refilled: true });
    for snapshot in [false, true] {
        if snapshot {
            store.snapshot().await.unwrap();
        }
        let (again, _) = open(&disk.after(Loss::All)).await;
        assert_eq!(again.partition_state(partition).0.fence, 7);
        assert!(again.partition_state(partition).0.refilled);
    }
}

#[tokio::test]
async fn reads_from_memory_and_syncs_are_counted() {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "dove", "grey").await;
    let before = store.stats();
    assert_eq!(store.sync_time().count(), before.groups, "each group is timed once");
    get(&store, "dove").await;
    get(&store, "dove").await;
    let after = store.stats();
    assert_eq!(after.cache_misses - before.cache_misses, 1, "the first read goes to the disk");
    assert_eq!(after.cache_hits - before.cache_hits, 1, "the second does not");
    assert_eq!(after.gathered_bytes, 0);
    assert_eq!(store.writable().map_err(|error| error.to_string()), Ok(()));
}

#[tokio::test]
async fn the_cache_keeps_to_its_bytes() {
    let cache_bytes = 20_000;
    let disk = TestDisk::new();
    let (store, _) = open_with(&disk, StoreConfig { cache_bytes, ..quiet() }).await.unwrap();
    for n in 0..200 {
        put_durable(&store, &format!("key{n}"), &"x".repeat(1_000)).await;
    }
    for n in 0..200 {
        get(&store, &format!("key{n}")).await.unwrap();
        let cached = store.stats().cached_bytes;
        assert!(cached <= cache_bytes, "{cached} bytes cached, {cache_bytes} allowed");
    }
    assert!(store.stats().cached_bytes > cache_bytes / 4);
}
