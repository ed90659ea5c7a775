//! Values that have records in them, and the salt that keeps a start from taking these for its own.

use super::*;
use crate::storage::format::{SEGMENT_HEAD_LEN, Salted, SegmentHead, append_entry, seed_of};

fn salt_in(disk: &TestDisk, path: &Path) -> u64 {
    let id = segment::id_of(path.file_name().unwrap().to_str().unwrap()).unwrap();
    SegmentHead::decode(&disk.contents(path), id).unwrap().0.salt
}

/// Puts a value of any bytes.
async fn put_bytes(store: &Store, key: &str, value: &[u8]) {
    let change = |entry: &mut Entry| {
        let content = Content::Value(value.to_vec().into());
        let write = Write { write_id: WriteId(1), content, meta: None, expires_at: None };
        let mut mint = ActorMint::new(Incarnation(9));
        entry.copy.put(&mut mint, Overwrite::Current, write, Wall(1), &Caps::default()).unwrap();
        (Change::Write, ())
    };
    let (_, position) = store.update(&slot(key), Durability::Sync, change).await.unwrap();
    store.wait_synced(position).await.unwrap();
}

/// A client writes `value` under a key of his own; then the disk damages the record that the value is in, and the node
/// starts anew. What `target` is then, where the value stood, and the salt that it stood behind.
async fn attacked(value: &[u8]) -> (Option<String>, u64, u64) {
    let disk = TestDisk::new();
    let (store, _) = open(&disk).await;
    put_durable(&store, "target", "original").await;
    put_bytes(&store, "bait", value).await;
    put_durable(&store, "proof", "behind").await;
    let path = segment_paths(&disk).remove(0);
    let mut bytes = disk.contents(&path);
    let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
    // In the middle of what stands before the value: the record is not whole any more.
    bytes[at - 30] ^= 1;
    disk.set_contents(&path, bytes);
    let (store, recovery) = open(&disk.after(Loss::All)).await;
    assert_eq!(recovery.corrupt, 1, "the damage was met: {recovery:?}");
    assert_eq!(get(&store, "bait").await, None);
    assert_eq!(get(&store, "proof").await.as_deref(), Some("behind"));
    (get(&store, "target").await, at as u64, salt_in(&disk, &path))
}

#[tokio::test]
async fn a_record_in_a_value_is_not_taken_for_one_without_the_salt_known() {
    let mut entry = Entry::default();
    set(&mut entry, "crafted");
    let crafted = |seed: u32| {
        let mut bytes = Vec::new();
        append_entry(&mut bytes, seed, &slot("target"), &entry).unwrap();
        bytes
    };
    // Where such a value comes to stand a client may well find out: positions are no secret.
    let (target, at, salt) = attacked(&crafted(0)).await;
    assert_eq!(target.as_deref(), Some("original"));
    for guessed in [Salted::plain(1), Salted { id: 1, salt: 1 }, Salted { id: 1, salt: salt ^ 1 }] {
        let (target, there, again) = attacked(&crafted(seed_of(guessed, at))).await;
        assert_eq!((there, again), (at, salt), "the attack is aimed at the right place");
        assert_eq!(target.as_deref(), Some("original"));
    }
    // Who knows the salt gets through: it is what holds him off.
    let (target, ..) = attacked(&crafted(seed_of(Salted { id: 1, salt }, at))).await;
    assert_eq!(target.as_deref(), Some("crafted"));
}

#[tokio::test]
async fn each_segment_of_each_start_has_a_salt_of_its_own() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 600, ..quiet() };
    for start in 0..3 {
        let (shared, clock): (Arc<dyn Disk>, _) = (Arc::new(disk.clone()), Arc::new(RealClock::new()));
        let salts = SaltSeed(start);
        let opened = Store::open(shared, clock, Path::new(DIR), Incarnation(1), salts, config.clone());
        let (store, _) = opened.await.unwrap();
        for n in 0..9 {
            put_durable(&store, &format!("key{start}{n}"), "value").await;
        }
        store.close().await.unwrap();
    }
    let paths = segment_paths(&disk);
    let salts: std::collections::BTreeSet<u64> = paths.iter().map(|path| salt_in(&disk, path)).collect();
    assert!(salts.len() == paths.len() && paths.len() > 6 && !salts.contains(&0), "{salts:?}");
}

#[tokio::test]
async fn a_segment_whose_heads_are_both_lost_is_corruption_whichever_it_is() {
    let disk = TestDisk::new();
    let config = StoreConfig { segment_bytes: 600, ..quiet() };
    let (store, _) = open_with(&disk, config.clone()).await.unwrap();
    for n in 0..20 {
        put_durable(&store, &format!("key{n}"), "value").await;
    }
    for path in segment_paths(&disk) {
        let image = disk.after(Loss::Nothing);
        let mut bytes = image.contents(&path);
        bytes[..SEGMENT_HEAD_LEN].fill(0);
        image.set_contents(&path, bytes);
        let (store, recovery) = open_with(&image, config.clone()).await.unwrap();
        assert_eq!((recovery.corrupt, recovery.suspects.len()), (1, 8), "{path:?}: {recovery:?}");
        let there = contents(&store).len();
        assert!((10..20).contains(&there), "{path:?}: {there} entries");
        put_durable(&store, "more", "value").await;
        let (store, _) = open_with(&image.after(Loss::All), config.clone()).await.unwrap();
        assert_eq!(
            (contents(&store).len(), get(&store, "more").await.as_deref()),
            (there + 1, Some("value"))
        );
    }
}

#[tokio::test]
async fn the_head_of_a_segment_is_synced_before_anything_follows_it() {
    let disk = TestDisk::new();
    let (store, _) = open_with(&disk, StoreConfig { segment_bytes: 600, ..quiet() }).await.unwrap();
    for n in 0..9 {
        put_durable(&store, &format!("key{n}"), "value").await;
    }
    let log = disk.log();
    let path = segment_paths(&disk).remove(1);
    let name = path.file_name().unwrap().to_str().unwrap();
    let of: Vec<&str> = log.iter().filter_map(|done| done.strip_suffix(name)).take(4).collect();
    assert_eq!(of, ["write ", "sync ", "write ", "sync "]);
}
