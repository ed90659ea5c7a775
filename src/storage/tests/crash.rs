//! Stops the machine at every change of the disk in a busy run (groups, rotations, snapshots, compactions, restarts), loses
//! what was not synced, and starts again: what was acknowledged is there, nothing that never was is, and no crash
//! looks like corruption. The start is stopped too.

use std::collections::BTreeMap;

use super::*;

/// For each key the values given to it in order (none: removed), and how many of these, at least, must survive.
#[derive(Default, Clone)]
struct Truth {
    keys: BTreeMap<String, (Vec<Option<String>>, usize)>,
}

impl Truth {
    fn tried(&mut self, key: &str, value: Option<String>) -> usize {
        let (values, _) = self.keys.entry(key.to_owned()).or_default();
        values.push(value);
        values.len()
    }

    fn acknowledged(&mut self, key: &str, upto: usize) {
        let (_, least) = self.keys.get_mut(key).unwrap();
        *least = upto.max(*least);
    }

    /// What is there now is what counts from now on.
    async fn check(&mut self, store: &Store, when: &str) {
        for (key, (values, least)) in &mut self.keys {
            let found = try_get(store, key).await.unwrap_or_else(|error| panic!("{when}: {key}: {error}"));
            let first = least.checked_sub(1);
            let nothing_yet = *least == 0 && found.is_none();
            let at = values.iter().skip(first.unwrap_or(0)).position(|value| *value == found);
            assert!(nothing_yet || at.is_some(), "{when}: {key} is {found:?}, of {values:?} from {least} on");
            *values = vec![found];
            *least = 1;
        }
    }
}

/// A busy run until the disk stops.
async fn run(disk: &TestDisk, truth: &mut Truth) -> Result<(), StorageError> {
    for life in 0..3 {
        let (store, recovery) = open_with(disk, tiny()).await?;
        assert_eq!(recovery.corrupt, 0, "{recovery:?}");
        for n in 0..40 {
            let key = format!("key{}", n * 5 % 7);
            let value = (n % 6 != 5).then(|| format!("{life}.{n}:{}", "x".repeat(n * 13 % 150)));
            let count = truth.tried(&key, value.clone());
            let position = match &value {
                Some(value) if n % 4 == 3 => {
                    put_with(&store, &key, value, Durability::Interval(Duration::from_secs(9))).await?
                }
                Some(value) => put(&store, &key, value).await?,
                None => remove(&store, &key).await?,
            };
            // Some wait together.
            if n % 3 == 0 {
                store.wait_synced(position).await?;
                truth.acknowledged(&key, count);
            }
        }
        store.close().await?;
        for (values, least) in truth.keys.values_mut() {
            *least = values.len();
        }
    }
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Stops behind so many changes, loses, starts again (stopping that too, behind `again`), and checks.
fn crash_at(change: u64, loss: Loss, again: Option<u64>) -> bool {
    let disk = TestDisk::new();
    let mut truth = Truth::default();
    disk.stop_after(change);
    let finished = runtime().block_on(async { run(&disk, &mut truth).await.is_ok() });
    let when = format!("stopped at {change}, {loss:?}, again {again:?}");
    let mut image = disk.after(loss);
    if let Some(again) = again {
        image.stop_after(again);
        runtime().block_on(async { drop(open_with(&image, tiny()).await) });
        image = image.after(loss);
    }
    runtime().block_on(async {
        let (store, recovery) =
            open_with(&image, tiny()).await.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(recovery.corrupt, 0, "{when}: {recovery:?}");
        truth.check(&store, &when).await;
        // And it works.
        put_durable(&store, "new", "value").await;
        let (store, recovery) = open_with(&image.after(Loss::All), quiet()).await.unwrap();
        assert_eq!(recovery.corrupt, 0, "{when}, then: {recovery:?}");
        assert_eq!(get(&store, "new").await.as_deref(), Some("value"), "{when}");
        truth.check(&store, &format!("{when}, then")).await;
    });
    finished
}

#[test]
fn a_crash_at_any_change_loses_nothing_that_was_acknowledged() {
    let mut change = 0;
    loop {
        let losses = [Loss::All, Loss::Nothing, Loss::Some(change), Loss::Some(change + 1_000_000)];
        let mut finished = true;
        for loss in losses {
            finished &= crash_at(change, loss, None);
        }
        if finished {
            break;
        }
        change += 1;
    }
    assert!(change > 200, "{change} changes are too few to show anything");
}

#[test]
fn a_crash_while_starting_after_a_crash_loses_nothing_either() {
    for change in (30..220).step_by(9) {
        for again in 0..12 {
            for loss in [Loss::All, Loss::Nothing, Loss::Some(change * 31 + again)] {
                crash_at(change, loss, Some(again));
            }
        }
    }
}
