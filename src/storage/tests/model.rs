//! Random operations, reopenings and losses against a plain map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u16),
    Interval(u8),
    Remove(u8),
    Raise(u8),
    Snapshot,
    Reopen,
    Kill,
    Compacted,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (0..12u8, 0..300u16).prop_map(|(key, len)| Step::Put(key, len)),
        3 => (0..12u8).prop_map(Step::Interval),
        6 => (0..12u8).prop_map(Step::Remove),
        3 => (0..8u8).prop_map(Step::Raise),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Reopen),
        2 => Just(Step::Kill),
        1 => Just(Step::Compacted),
    ];
    proptest::collection::vec(step, 1..120)
}

async fn check(steps: Vec<Step>) {
    let mut disk = TestDisk::new();
    let (mut store, _) = open_with(&disk, tiny()).await.unwrap();
    let mut model: BTreeMap<u8, String> = BTreeMap::new();
    let mut fences = [0u64; 8];
    for (n, step) in steps.into_iter().enumerate() {
        let last = match step {
            Step::Put(key, len) => {
                let value = format!("{n}:{}", "x".repeat(len.into()));
                let position = put(&store, &key.to_string(), &value).await.unwrap();
                model.insert(key, value);
                Some(position)
            }
            Step::Interval(key) => {
                let minute = Durability::Interval(Duration::from_secs(60));
                let position = put_with(&store, &key.to_string(), &n.to_string(), minute).await.unwrap();
                model.insert(key, n.to_string());
                Some(position)
            }
            Step::Remove(key) => {
                model.remove(&key);
                Some(remove(&store, &key.to_string()).await.unwrap())
            }
            Step::Raise(partition) => {
                fences[usize::from(partition)] = n as u64;
                let raise = |state: &mut PartitionState| {
                    state.fence = n as u64;
                    (Change::Write, ())
                };
                Some(store.update_partition(PartitionId(partition.into()), raise).await.unwrap().1)
            }
            Step::Snapshot => {
                store.snapshot().await.unwrap();
                None
            }
            Step::Reopen => {
                store.close().await.unwrap();
                let (again, recovery) = open_with(&disk, tiny()).await.unwrap();
                assert!(recovery.clean && recovery.corrupt == 0, "{recovery:?}");
                store = again;
                None
            }
            Step::Kill => {
                disk = disk.after(if n % 2 == 0 { Loss::All } else { Loss::Some(n as u64) });
                let (again, recovery) = open_with(&disk, tiny()).await.unwrap();
                assert!(recovery.corrupt == 0, "{recovery:?}");
                store = again;
                None
            }
            Step::Compacted => {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                None
            }
        };
        if let Some(position) = last {
            store.wait_synced(position).await.unwrap();
        }
        for key in 0..12 {
            assert_eq!(
                get(&store, &key.to_string()).await,
                model.get(&key).cloned(),
                "key {key} after step {n}"
            );
        }
    }
    for (partition, fence) in (0..).zip(fences) {
        assert_eq!(store.partition_state(PartitionId(partition)).0.fence, fence);
    }
    // Snapshot and tail lead to what a full replay leads to.
    let (tail, _) = open_with(&disk.after(Loss::All), quiet()).await.unwrap();
    let bare = disk.after(Loss::All);
    let _ = bare.remove(&Path::new(DIR).join("index.snap")).await;
    let (full, recovery) = open_with(&bare, quiet()).await.unwrap();
    assert!(!recovery.snapshot && recovery.corrupt == 0, "{recovery:?}");
    assert_eq!((contents(&tail), roots(&tail)), (contents(&full), roots(&full)));
    assert_eq!(contents(&tail).len(), model.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_a_map_over_reopenings_and_losses(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(steps));
    }
}
