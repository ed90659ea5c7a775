use std::path::Path;
use std::time::Duration;

use super::*;
use crate::dynamo::version::{ActorMint, Caps, Content, Overwrite, Write};
use crate::io::{BoxFuture, RealDisk};
use crate::types::{Wall, WriteId};

fn slot(key: &str) -> Slot {
    let key = Key::new(key.as_bytes().to_vec()).unwrap();
    Slot { table: Table::Data, partition: PartitionId(3), namespace: Namespace(0), key }
}

async fn open(dir: &Path) -> (Store, Recovery) {
    Store::open(&RealDisk::new().unwrap(), dir, Incarnation(1)).await.unwrap()
}

/// Puts a value over what is there; its position.
async fn put(store: &Store, key: &str, value: &str) -> Result<LogPosition, StorageError> {
    let write = Write {
        write_id: WriteId(1),
        content: Content::Value(value.as_bytes().to_vec().into()),
        meta: None,
        expires_at: None,
    };
    let mut mint = ActorMint::new(Incarnation(9));
    let updated = store
        .update(&slot(key), |entry| {
            entry.copy.put(&mut mint, Overwrite::Current, write, Wall(1), &Caps::default()).unwrap();
            (Change::Write, ())
        })
        .await?;
    Ok(updated.1)
}

async fn get(store: &Store, key: &str) -> Option<String> {
    let entry = store.read(&slot(key)).await.unwrap()?;
    let [sibling] = entry.copy.record.siblings() else { panic!("one sibling") };
    let Content::Value(value) = &sibling.content else { panic!("a value") };
    Some(String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test]
async fn entries_are_there_after_reopening_and_the_newest_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first) = open(dir.path()).await;
    assert_eq!((first.records, first.starts), (0, 0));
    for n in 0..200 {
        put(&store, &format!("key{}", n % 50), &format!("value{n}")).await.unwrap();
    }
    assert_eq!(get(&store, "key7").await.as_deref(), Some("value157"));
    store.close().await.unwrap();
    drop(store);

    let (store, second) = open(dir.path()).await;
    assert_eq!((second.records, second.cut, second.starts), (200, 0, 1));
    assert_eq!(store.len(Table::Data), 50);
    assert_eq!(get(&store, "key7").await.as_deref(), Some("value157"));
    assert_eq!(get(&store, "nothing").await, None);
}

#[tokio::test]
async fn a_guest_and_the_nodes_own_copy_of_a_key_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    put(&store, "key", "own").await.unwrap();
    let guest = Slot { table: Table::Guest, ..slot("key") };
    assert_eq!(store.read(&guest).await.unwrap(), None);
    let keep = |entry: &mut Entry| {
        entry.add_targets(&[NodeId(3), NodeId(2), NodeId(3)]);
        (Change::Write, ())
    };
    store.update(&guest, keep).await.unwrap();
    assert_eq!(store.read(&guest).await.unwrap().unwrap().targets, [NodeId(2), NodeId(3)]);
    assert_eq!((store.len(Table::Data), store.len(Table::Guest)), (1, 1));
    assert!(!store.is_empty(Table::Guest));
}

#[tokio::test]
async fn updates_of_one_key_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let mut tasks = Vec::new();
    for n in 0..100u64 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let add = |entry: &mut Entry| {
                entry.add_targets(&[NodeId(n)]);
                (Change::Write, ())
            };
            let (_, position) = store.update(&slot("key"), add).await.unwrap();
            store.wait_synced(position).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.read(&slot("key")).await.unwrap().unwrap().targets.len(), 100);
}

#[tokio::test]
async fn whatever_a_torn_tail_leaves_is_cut_and_what_stands_before_it_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOG_NAME);
    let (store, _) = open(dir.path()).await;
    put(&store, "a", "first").await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let (store, _) = open(dir.path()).await;
    put(&store, "a", "second").await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let longer = std::fs::read(&path).unwrap();

    // Cut anywhere in the second part, and once more with garbage where the lost bytes stood.
    for cut in whole.len()..longer.len() {
        for garbage in [false, true] {
            let mut torn = longer[..cut].to_vec();
            if garbage {
                torn.resize(longer.len(), 0xa5);
            }
            std::fs::write(&path, &torn).unwrap();
            let (store, recovery) = open(dir.path()).await;
            assert_eq!(get(&store, "a").await.as_deref(), Some("first"), "cut at {cut}");
            assert_eq!(recovery.bytes + recovery.cut, torn.len() as u64);
            // What is written now must be found again: the cut is real.
            put(&store, "b", "third").await.unwrap();
            store.close().await.unwrap();
            drop(store);
            let (store, again) = open(dir.path()).await;
            assert_eq!(again.cut, 0);
            assert_eq!(get(&store, "b").await.as_deref(), Some("third"));
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_entry_is_corrupt_and_not_absent() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    put(&store, "key", "value").await.unwrap();
    let position = put(&store, "other", "other value").await.unwrap();
    store.wait_synced(position).await.unwrap();
    let path = dir.path().join(LOG_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|window| window == b"value").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(store.read(&slot("key")).await, Err(StorageError::Corrupt(_))));
    let refused = put(&store, "key", "new").await;
    assert!(matches!(refused, Err(StorageError::Corrupt(_))), "a put on it would be a put on an absent one");
    assert_eq!(get(&store, "other").await.as_deref(), Some("other value"));
}

#[tokio::test]
async fn a_directory_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _) = open(dir.path()).await;
    let second = Store::open(&RealDisk::new().unwrap(), dir.path(), Incarnation(2)).await;
    assert!(matches!(second.err(), Some(StorageError::InUse(_))));
}

/// A file whose syncs fail, or wait for a permit.
struct Syncs {
    file: Arc<dyn File>,
    permits: Arc<tokio::sync::Semaphore>,
    fail: bool,
}

impl File for Syncs {
    fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
        self.file.size()
    }
    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        self.file.read_at(offset, len)
    }
    fn write_at(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, io::Result<()>> {
        self.file.write_at(offset, bytes)
    }
    fn set_len(&self, len: u64) -> BoxFuture<'static, io::Result<()>> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
        let (file, permits, fail) = (self.file.clone(), self.permits.clone(), self.fail);
        Box::pin(async move {
            permits.acquire().await.unwrap().forget();
            if fail { Err(io::Error::other("the disk is on fire")) } else { file.sync_data().await }
        })
    }
}

/// A store whose file is exchanged for one whose syncs can be held back or fail.
async fn open_with_syncs(dir: &Path, fail: bool) -> (Store, Arc<tokio::sync::Semaphore>) {
    let (mut inner, _) = Store::prepare(&RealDisk::new().unwrap(), dir, Incarnation(1)).await.unwrap();
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    inner.file = Arc::new(Syncs { file: inner.file, permits: permits.clone(), fail });
    (Store::start(inner), permits)
}

#[tokio::test]
async fn a_read_waits_until_what_it_returns_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (store, permits) = open_with_syncs(dir.path(), false).await;
    put(&store, "key", "value").await.unwrap();
    let read = get(&store, "key");
    tokio::pin!(read);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut read).await;
    assert!(early.is_err(), "the read answered before the sync");
    permits.add_permits(1);
    assert_eq!(read.await.as_deref(), Some("value"));
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (store, permits) = open_with_syncs(dir.path(), true).await;
    let position = put(&store, "key", "value").await.unwrap();
    permits.add_permits(100);
    assert!(matches!(store.wait_synced(position).await, Err(StorageError::Latched(_))));
    assert_eq!(store.failed().await, "the disk is on fire");
    assert!(matches!(put(&store, "other", "value").await, Err(StorageError::Latched(_))));
    assert!(matches!(store.read(&slot("key")).await, Err(StorageError::Latched(_))));
    assert!(matches!(store.close().await, Err(StorageError::Latched(_))));
}
