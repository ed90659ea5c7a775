//! Takes the power away at every boundary of a busy run, with many outcomes of what was not synced, and kills the
//! process there; and flips the bits of a small directory.
//!
//! What is checked after a crash: the store opens; what was acknowledged is there, or what was submitted later to its
//! slot; nothing else is ever served; fences do not go back; no crash of an honest disk is called corruption; the index,
//! the Merkle leaves and the guests' targets agree with the entries; what was read outlives the next crash; and a new
//! write is taken and kept. Some outcomes crash again while the store opens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::dynamo::cluster::ClusterDescriptor;
use crate::dynamo::merkle::MerkleTree;
use crate::dynamo::ring::key_hash;
use crate::io::fault_disk::{Fault, FaultDisk, Image, LossOdds};
use crate::io::{BoxFuture, Clock};

/// Outcomes of one run over all boundaries, unless `RINGDOVE_CRASHES` asks for more.
const OUTCOMES: usize = 10_000;
/// At least so many outcomes of each boundary.
const OUTCOMES_EACH: usize = 20;
/// Turns that the housekeeper gets between some steps.
const TURNS: usize = 12;

/// Jumps to where somebody waits for, after others had a turn: a run depends on nothing but its steps. Who waits for longer
/// waits for a disk that does not answer, and all of them do.
#[derive(Default)]
struct JumpingClock(Arc<AtomicU64>);

impl Clock for JumpingClock {
    fn mono(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Duration {
        self.mono()
    }

    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        let now = self.0.clone();
        Box::pin(async move {
            if deadline >= Duration::from_nanos(now.load(Ordering::Relaxed)) + Duration::from_secs(5) {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
            now.fetch_max(u64::try_from(deadline.as_nanos()).unwrap(), Ordering::Relaxed);
        })
    }
}

fn busy() -> StoreConfig {
    StoreConfig {
        segment_bytes: 4500,
        snapshot_bytes_min: 6000,
        snapshot_factor: 1,
        dead_percent_max: 30,
        compaction_bytes_per_second: u64::MAX,
        cache_bytes: 16 * 1024,
        ..config()
    }
}

pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// A disk on which every operation gives the others a turn before it is answered.
pub(super) fn disk_of(mut image: Image) -> (FaultDisk, Arc<dyn Clock>) {
    let clock: Arc<dyn Clock> = Arc::new(JumpingClock::default());
    image.slow(Path::new(DIR), Duration::from_nanos(1));
    (FaultDisk::with_clock(image, clock.clone()), clock)
}

pub(super) async fn start(
    disk: &(FaultDisk, Arc<dyn Clock>),
    config: StoreConfig,
) -> Result<(Store, Recovery), StorageError> {
    let (disk, clock) = (Arc::new(disk.0.clone()), disk.1.clone());
    Store::open(disk, clock, Path::new(DIR), Incarnation(1), SaltSeed(1), config).await
}

pub(super) fn empty() -> Image {
    let mut image = Image::new();
    image.create_dir_all(Path::new(DIR)).unwrap();
    image.sync_dir(Path::new("/")).unwrap();
    image
}

fn guest(key: &str) -> Slot {
    Slot { table: Table::Guest, ..slot(key) }
}

fn content(entry: &mut Entry, n: u128, content: Content, targets: &[NodeId]) {
    let write = Write { write_id: WriteId(n), content, meta: None, expires_at: None };
    let mut mint = ActorMint::new(Incarnation(9));
    entry
        .copy
        .put(&mut mint, Overwrite::Current, write, Wall(u64::try_from(n).unwrap()), &Caps::default())
        .unwrap();
    entry.targets = targets.to_vec();
}

/// What a slot held in the order of submission, and from which on it may be found.
#[derive(Clone)]
pub(super) struct History<T> {
    pub(super) values: Vec<T>,
    least: usize,
}

impl<T: Default> Default for History<T> {
    fn default() -> Self {
        History { values: vec![T::default()], least: 0 }
    }
}

/// What was submitted and what was acknowledged.
#[derive(Clone, Default)]
pub(super) struct Truth {
    pub(super) slots: BTreeMap<Slot, History<Option<Entry>>>,
    /// Fence and committed fence.
    states: BTreeMap<PartitionId, History<(u64, u64)>>,
    /// Positions that are still to be waited for.
    waiting: Vec<(LogPosition, Result<Slot, PartitionId>, usize)>,
    starts: u64,
    /// Whether a start may have taken *refilled* from a partition already.
    doubted: bool,
}

impl Truth {
    fn acknowledge(&mut self, upto: Option<LogPosition>) {
        let (slots, states) = (&mut self.slots, &mut self.states);
        self.waiting.retain(|(position, of, at)| {
            if upto.is_some_and(|upto| *position > upto) {
                return true;
            }
            let least = match of {
                Ok(slot) => &mut slots.get_mut(slot).unwrap().least,
                Err(partition) => &mut states.get_mut(partition).unwrap().least,
            };
            *least = (*least).max(*at);
            false
        });
    }

    async fn submit(
        &mut self,
        store: &Store,
        slot: &Slot,
        durability: Durability,
        change: impl FnOnce(&mut Entry) -> Change,
    ) -> Result<LogPosition, StorageError> {
        let values = &mut self.slots.entry(slot.clone()).or_default().values;
        let submitted = |entry: &mut Entry| {
            let change = change(entry);
            values.push((change == Change::Write).then(|| entry.clone()));
            (change, values.len() - 1)
        };
        let (at, position) = store.update(slot, durability, submitted).await?;
        self.waiting.push((position, Ok(slot.clone()), at));
        Ok(position)
    }

    async fn raise(
        &mut self,
        store: &Store,
        partition: PartitionId,
        fence: u64,
    ) -> Result<LogPosition, StorageError> {
        let values = &mut self.states.entry(partition).or_default().values;
        let raise = |state: &mut PartitionState| {
            *state = PartitionState { fence, committed: state.fence, refilled: true };
            values.push((state.fence, state.committed));
            (Change::Write, values.len() - 1)
        };
        let (at, position) = store.update_partition(partition, raise).await?;
        self.waiting.push((position, Err(partition), at));
        Ok(position)
    }

    /// Compares; from now on what was found must stay. How many acknowledged things were looked at.
    async fn check(&mut self, store: &Store, recovery: &Recovery, when: &str) -> u64 {
        assert_eq!(recovery.corrupt, 0, "{when}: {recovery:?}");
        assert!(recovery.starts >= self.starts, "{when}: {} starts, {recovery:?}", self.starts);
        self.starts = recovery.starts + 1;
        self.waiting.clear();
        let mut checked = 0;
        let (mut there, mut owed) = (0, BTreeSet::new());
        for (slot, history) in &mut self.slots {
            let found = store.read(slot).await.unwrap_or_else(|error| panic!("{when}: {slot:?}: {error}"));
            let allowed = &history.values[history.least..];
            assert!(
                allowed.contains(&found),
                "{when}: {slot:?}: found number {:?}, acknowledged {}, of {}; {recovery:?}",
                history.values.iter().position(|value| *value == found),
                history.least,
                history.values.len()
            );
            checked += u64::from(history.least > 0);
            there += usize::from(found.is_some());
            for target in found.iter().flat_map(|entry| &entry.targets) {
                owed.insert((*target, slot.clone()));
            }
            *history = History { values: vec![None, found], least: 1 };
        }
        for (partition, history) in &mut self.states {
            let state = store.partition_state(*partition).0;
            let found = (state.fence, state.committed);
            let allowed = &history.values[history.least..];
            assert!(allowed.contains(&found), "{when}: {partition}: {state:?}, acknowledged {allowed:?}");
            let suspect = recovery.suspects.contains(partition);
            let doubted = self.doubted || suspect;
            assert!(found == (0, 0) || state.refilled || doubted, "{when}: {partition}");
            checked += u64::from(history.least > 0);
            *history = History { values: vec![(0, 0), found], least: 1 };
        }
        self.doubted |= !recovery.suspects.is_empty();
        // Nothing besides, and all views agree.
        let mut seen = 0;
        for partition in config().partitions.partitions() {
            let bits = store.with_tree(partition, MerkleTree::bits).0;
            let mut tree = MerkleTree::new(&config().merkle_key, config().partitions, bits);
            for table in [Table::Data, Table::Guest] {
                let from = std::ops::Bound::Unbounded;
                for key in store.scan(table, partition, from, Direction::Ascending, 4096).keys {
                    seen += 1;
                    if table == Table::Data {
                        let hash = key_hash(key.namespace, &key.key);
                        tree.update(key.namespace, &key.key, hash, None, Some(key.version_hash));
                    }
                }
            }
            assert_eq!(store.with_tree(partition, MerkleTree::root).0, tree.root(), "{when}: {partition}");
        }
        assert_eq!(seen, there, "{when}: keys");
        let listed = store
            .targets()
            .into_iter()
            .flat_map(|node| store.owed_to(node, None, 4096).into_iter().map(move |owed| (node, owed.slot)));
        assert_eq!(listed.collect::<BTreeSet<_>>(), owed, "{when}: targets");
        checked
    }
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// The reference run: two lives, until the disk stops.
async fn work(
    disk: &(FaultDisk, Arc<dyn Clock>),
    truth: &mut Truth,
    happened: &mut Stats,
) -> Result<(), StorageError> {
    let mut n = 0_u64;
    for life in 0..2 {
        let (store, recovery) = start(disk, busy()).await?;
        assert_eq!((recovery.corrupt, recovery.starts), (0, life));
        truth.starts = life + 1;
        if life == 1 {
            // What is there is dead at once, and what makes it so is not durable for a while.
            for number in 0..9 {
                let name = format!("key{number}");
                for slot in [slot(&name), guest(&name)] {
                    let put = |entry: &mut Entry| {
                        content(entry, 500 + number, Content::Value("burst".into()), &[]);
                        Change::Write
                    };
                    truth.submit(&store, &slot, Durability::Sync, put).await?;
                }
            }
            for number in 0..4 {
                truth.raise(&store, PartitionId(number), 50 + u64::from(number)).await?;
            }
            turns(TURNS).await;
        }
        for step in 0..42_u64 {
            n += 1;
            let key = format!("key{}", n * 5 % 9);
            let len = [20, 90, 400, 60, 1300][usize::try_from(n % 5).unwrap()];
            let value = Content::Value(format!("{n}:{}", "x".repeat(len)).into_bytes().into());
            let soon = Durability::Interval(Duration::from_millis(100));
            let targets = [NodeId(1 + n % 3), NodeId(9)];
            let position = match n % 12 {
                3 | 9 => truth.submit(&store, &slot(&key), Durability::Sync, |_| Change::Remove).await?,
                5 => {
                    let stone = |entry: &mut Entry| {
                        content(entry, n.into(), Content::Tombstone, &[]);
                        Change::Write
                    };
                    truth.submit(&store, &slot(&key), Durability::Sync, stone).await?
                }
                1 | 4 | 8 => {
                    let put = |entry: &mut Entry| {
                        content(entry, n.into(), value, &targets[..usize::try_from(1 + n % 2).unwrap()]);
                        Change::Write
                    };
                    truth.submit(&store, &guest(&key), Durability::Sync, put).await?
                }
                10 => truth.submit(&store, &guest(&key), Durability::Sync, |_| Change::Remove).await?,
                6 | 11 => {
                    truth.raise(&store, PartitionId(u32::try_from(n % 4).unwrap()), 100 * life + n).await?
                }
                kind => {
                    let put = |entry: &mut Entry| {
                        content(entry, n.into(), value, &[]);
                        Change::Write
                    };
                    let durability = if kind == 7 { soon } else { Durability::Sync };
                    truth.submit(&store, &slot(&key), durability, put).await?
                }
            };
            // Some wait together, some do not wait for a while, and some are read before they are durable.
            match step % 7 {
                0 | 3 | 4 => {
                    store.wait_synced(position).await?;
                    truth.acknowledge(Some(position));
                }
                5 => {
                    let slot = slot(&key);
                    let found = store.read(&slot).await?;
                    if let Some(history) = truth.slots.get_mut(&slot) {
                        assert_eq!(history.values.last(), Some(&found), "what was submitted last is read");
                        if n % 12 != 7 {
                            history.least = history.values.len() - 1;
                        }
                    }
                }
                _ => turns(usize::try_from(n % 4).unwrap()).await,
            }
            if step == 30 {
                store.snapshot().await?;
            }
            if step % 6 == 5 {
                turns(TURNS).await;
            }
        }
        let stats = store.stats();
        happened.snapshots += stats.snapshots;
        happened.removed_bytes += stats.removed_bytes;
        happened.copied_bytes += stats.copied_bytes;
        happened.segments = happened.segments.max(stats.segments);
        happened.groups += stats.groups;
        if life == 0 {
            store.close().await?;
            truth.acknowledge(None);
        }
    }
    Ok(())
}

/// The disk and the truth when the machine (or only the process) stopped behind so many boundaries; whether the run
/// came to its end.
fn stopped(boundary: u64, killed: bool) -> (Image, Truth, bool, Stats) {
    let mut image = empty();
    let first = image.boundaries();
    if !killed {
        image.crash_at(first + boundary);
    }
    let disk = disk_of(image);
    let (mut truth, mut happened) = (Truth::default(), Stats::default());
    let done = run(async {
        let watched = async {
            while !killed || disk.0.control().boundaries() < first + boundary {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = watched => false,
            done = work(&disk, &mut truth, &mut happened) => done.is_ok(),
        }
    });
    // The tasks of the store have ended with the runtime.
    (disk.0.image(), truth, done, happened)
}

#[derive(Default)]
struct Tally {
    outcomes: u64,
    opened: u64,
    checked: u64,
    again: u64,
}

/// Starts on what a crash left, and crashes once or twice more.
fn outcome(mut image: Image, mut truth: Truth, seed: u64, when: &str, tally: &mut Tally) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5eed);
    tally.outcomes += 1;
    if random.random_bool(0.25) {
        // Not even the start comes to its end.
        let upto = image.boundaries() + random.random_range(0..14);
        image.crash_at(upto);
        let disk = disk_of(image);
        let _ = run(start(&disk, busy()));
        image = disk.0.image();
        image.power_loss(&mut random, LossOdds::default());
        truth.doubted = true;
        tally.again += 1;
    }
    for round in 0..3 {
        let disk = disk_of(image);
        let when = format!("{when}, seed {seed}, round {round}");
        run(async {
            let (store, recovery) =
                start(&disk, busy()).await.unwrap_or_else(|error| panic!("{when}: {error}"));
            tally.opened += 1;
            tally.checked += truth.check(&store, &recovery, &when).await;
            // The first time only what was read must stay.
            if round == 1 {
                let put = |entry: &mut Entry| {
                    content(entry, 1000, Content::Value("new".into()), &[]);
                    Change::Write
                };
                let key = ["key1", "new"][random.random_range(0..2)];
                let position = truth.submit(&store, &slot(key), Durability::Sync, put).await.unwrap();
                store.wait_synced(position).await.unwrap();
                truth.acknowledge(None);
            }
            turns(random.random_range(0..20)).await;
        });
        image = disk.0.image();
        image.power_loss(&mut random, LossOdds::default());
    }
}

#[test]
fn a_power_loss_at_any_boundary_loses_nothing_that_was_acknowledged() {
    let wanted = std::env::var("RINGDOVE_CRASHES").map_or(OUTCOMES, |wanted| wanted.parse().unwrap());
    let (image, _, done, happened) = stopped(u64::MAX / 2, false);
    assert!(done, "without a crash it comes to its end");
    let boundaries = image.boundaries() - empty().boundaries();
    println!("{boundaries} boundaries; {happened:?}");
    assert!((100..=600).contains(&boundaries), "{boundaries} boundaries");
    assert!(happened.snapshots > 1 && happened.removed_bytes > 0 && happened.copied_bytes > 0);
    let each = OUTCOMES_EACH.max(wanted.div_ceil(usize::try_from(boundaries).unwrap()));
    let mut tally = Tally::default();
    for boundary in 0..=boundaries {
        let (image, truth, ..) = stopped(boundary, false);
        for n in 0..each as u64 {
            let seed = boundary << 32 | n;
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut image = image.clone();
            image.power_loss(&mut random, LossOdds::default());
            outcome(image, truth.clone(), seed, &format!("power lost at {boundary}"), &mut tally);
        }
        // The process alone: the page cache shows more than the disk has.
        let (image, truth, ..) = stopped(boundary, true);
        for n in 0..3 {
            let seed = boundary << 32 | 1 << 31 | n;
            outcome(image.clone(), truth.clone(), seed, &format!("killed at {boundary}"), &mut tally);
        }
    }
    println!(
        "{} crash outcomes at {boundaries} boundaries, {} of them stopped again in the start; {} starts opened, \
         {} acknowledged things checked",
        tally.outcomes, tally.again, tally.opened, tally.checked,
    );
    assert!(tally.outcomes >= wanted as u64);
}

/// A directory with everything in it: several segments, a snapshot, `node.meta`, the clean mark.
pub(super) fn flipped_directory(clean: bool) -> (Image, Truth) {
    let disk = disk_of(empty());
    let mut truth = Truth::default();
    run(async {
        directory::write(&disk.0, Path::new(DIR), &meta()).await.unwrap();
        let config = StoreConfig { segment_bytes: 900, ..quiet() };
        let (store, _) = start(&disk, config).await.unwrap();
        for n in 0..14_u64 {
            let put = |entry: &mut Entry| {
                let value = Content::Value(format!("{n}:{}", "y".repeat(40)).into_bytes().into());
                content(entry, n.into(), value, &[NodeId(3)][..usize::try_from(n % 2).unwrap()]);
                Change::Write
            };
            let name = format!("key{}", n % 6);
            let slot = if n % 4 == 1 { guest(&name) } else { slot(&name) };
            let position = match n {
                7 => truth.submit(&store, &slot, Durability::Sync, |_| Change::Remove).await.unwrap(),
                9 => truth.raise(&store, PartitionId(2), 77).await.unwrap(),
                _ => truth.submit(&store, &slot, Durability::Sync, put).await.unwrap(),
            };
            store.wait_synced(position).await.unwrap();
            if n == 8 {
                store.snapshot().await.unwrap();
            }
        }
        for partition in config_partitions() {
            let fill = |state: &mut PartitionState| {
                state.refilled = true;
                (Change::Write, ())
            };
            let (_, position) = store.update_partition(partition, fill).await.unwrap();
            store.wait_synced(position).await.unwrap();
        }
        // The snapshot proves what is before it; behind it one more group, which nothing proves.
        if clean {
            store.close().await.unwrap();
        }
    });
    truth.acknowledge(None);
    let mut image = disk.0.image();
    image.lose_unsynced();
    (image, truth)
}

fn config_partitions() -> impl Iterator<Item = PartitionId> {
    config().partitions.partitions()
}

pub(super) fn meta() -> directory::NodeMeta {
    let descriptor = ClusterDescriptor::new(config().partitions, 3, &[7; 64]);
    directory::NodeMeta { format: directory::FORMAT, node: NodeId(1), descriptor, layouts: Vec::new() }
}

/// What became of a flipped bit.
#[derive(Debug, Default)]
struct Flips {
    detected: u64,
    harmless: u64,
    cut: u64,
    /// Of these two, after how many an older value of a key was read.
    older: BTreeSet<String>,
}

fn flip(image: &Image, truth: &Truth, path: &Path, at: u64, bit: u8, last: bool, flips: &mut Flips) {
    let mut image = image.clone();
    image.arm(Fault::BitFlip { path: path.to_owned(), offset: at, bit });
    let disk = disk_of(image);
    let when = format!("bit {bit} of byte {at} of {}", path.display());
    run(async {
        let mut detected = match directory::read(&disk.0, Path::new(DIR)).await {
            Ok(found) => {
                assert_eq!(found.as_ref(), Some(&meta()), "{when}");
                false
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                true
            }
        };
        let config = StoreConfig { cache_bytes: 0, ..quiet() };
        let (store, recovery) = match start(&disk, config).await {
            Ok(opened) => opened,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                flips.detected += 1;
                return;
            }
        };
        detected |= recovery.corrupt > 0 || recovery.snapshot_refused.is_some();
        let cut = recovery.cut > 0 || recovery.maybe_rotten;
        assert!(!cut || last, "{when}: cut, but not of the last group: {recovery:?}");
        let mut differs = false;
        for (slot, history) in &truth.slots {
            let right = history.values.last().unwrap();
            match store.read(slot).await {
                Ok(found) if found == *right => {}
                Ok(found) => {
                    // What was proven and is missing leaves its place to what stood there before, or to nothing: then
                    // the partition says so.
                    differs = true;
                    assert!(recovery.suspects.contains(&slot.partition), "{when}: {slot:?}, {recovery:?}");
                    let older = found.is_some();
                    assert!(!older || history.values.contains(&found), "{when}: {slot:?}: {found:?}");
                    if older {
                        flips.older.insert(when.clone());
                    }
                }
                Err(StorageError::Corrupt(_)) => detected = true,
                Err(error) => panic!("{when}: {error}"),
            }
        }
        for partition in config_partitions() {
            let state = store.partition_state(partition).0;
            let fence =
                truth.states.get(&partition).map_or((0, 0), |history| *history.values.last().unwrap());
            let suspect = recovery.suspects.contains(&partition);
            assert!(suspect || (state.fence, state.committed) == fence, "{when}: {partition}: {state:?}");
            assert!(suspect != state.refilled || detected || cut, "{when}: {partition}: {state:?}");
        }
        if detected {
            flips.detected += 1;
        } else if cut {
            flips.cut += 1;
        } else {
            assert!(!differs, "{when}: nothing says so, {recovery:?}");
            flips.harmless += 1;
        }
    });
}

#[test]
fn no_flipped_bit_of_a_directory_is_ever_served() {
    for clean in [true, false] {
        let (image, truth) = flipped_directory(clean);
        let mut listing = image.clone();
        let names = listing.list(Path::new(DIR)).unwrap();
        let newest = names.iter().rfind(|name| name.ends_with(".log")).unwrap().clone();
        assert!(names.iter().any(|name| name == "clean") == clean);
        assert!(names.len() > 5, "{names:?}");
        let (mut flips, mut bytes) = (Flips::default(), 0);
        for name in &names {
            let path = Path::new(DIR).join(name);
            let id = listing.open(&path, false).unwrap();
            let size = listing.size(id).unwrap();
            bytes += size;
            for at in 0..size {
                for bit in 0..8 {
                    flip(&image, &truth, &path, at, bit, *name == newest, &mut flips);
                }
            }
        }
        println!(
            "clean {clean}: {bytes} bytes in {} files: {} detected, {} harmless, {} cut as tail; an older value was \
             served, and its partition reported, after {}",
            names.len(),
            flips.detected,
            flips.harmless,
            flips.cut,
            flips.older.len()
        );
    }
}
