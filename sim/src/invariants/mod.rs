//! What must hold at every moment of a run, whatever the clients see.
//!
//! | | file | rule |
//! |---|---|---|
//! | (a) | `dots` | no dot is made twice, over all starts of all nodes |
//! | (b) | `acks` | at each acknowledgement of a `sync` write W distinct disks hold it, or a successor, for certain |
//! | (c) | `climbs` | what a disk holds of a key only grows: merge(old, new) = new |
//! | (d) | `covered` | every acknowledged `sync` write is held by some disk, or a successor of it is |
//! | (e) | `shown` | what a node shows of a key is on its disk for certain |
//! | (f) | `guests` | what is kept for another node goes only once that node's disk has it |
//! | (f) | `letting_go` | what a node is no primary of any more goes only once each primary's disk has it |
//! | (g) | `bounded` | queues, machines and connections stay within the settings, and come to nothing in the end |
//! | (h) | `forgetting` | what a vote lets go, no disk could bring back; what (c) and (d) then no longer ask for |
//!
//! Excuses: (b) counts a destroyed disk as holding until the next convergence. What (c), (e), (f) and (h) say of a disk that was
//! ever destroyed, (h) of a node that was ever removed or added, and (c) and (f) of a partition whose copies a host gave up, is excused
//! for the rest of the run.
//!
//! The [`Watch`] sees the disks (`holdings`) and what nodes state (`ringdove::observe`), and collects violations. A
//! violation does not end the run: what follows from it is worth seeing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::io::fault_disk::{FaultKind, Image};
use ringdove::observe::{Canary, Fact, Observer};
use ringdove::storage::{Entry, Slot, Table};
use ringdove::types::{Key, Namespace, WriteId};

use crate::disk::{DiskChange, DiskWatch};
use crate::holdings::{DIR, Finder, Holdings};
use crate::seed;
use crate::settings::SyncKeys;
use crate::trace::Trace;
use crate::world::World;

mod acks;
pub mod bounded;
mod climbs;
mod covered;
mod dots;
mod forgetting;
mod guests;
mod letting_go;
mod shown;

/// Violations that are kept; more say nothing new.
const KEPT: usize = 20;

#[derive(Default)]
struct State {
    partitions: Option<PartitionCount>,
    disks: BTreeMap<String, Holdings>,
    dots: dots::Dots,
    covered: covered::Covered,
    forgetting: forgetting::Forgetting,
    violations: Vec<String>,
    count: u64,
    /// When something was last heard of.
    now: Duration,
    trace: Trace,
    judged: BTreeMap<&'static str, u64>,
    points: BTreeMap<&'static str, u64>,
    sites: BTreeMap<&'static str, u64>,
    /// By host and probe: since when its node is in the middle of what the probe is about.
    at_work: BTreeMap<(String, &'static str), Duration>,
    /// Hosts whose nodes were removed from the cluster or added to it: they may have missed votes.
    ever_moved: BTreeSet<String>,
    letting_go: letting_go::LettingGo,
    /// Disks destroyed since the last convergence, and ever.
    destroyed: BTreeSet<String>,
    ever_destroyed: BTreeSet<String>,
}

/// Watches one run. Clones share what they saw.
#[derive(Clone, Default)]
pub struct Watch {
    state: Arc<Mutex<State>>,
    trace: Trace,
    /// The keys of which every write is `sync`.
    sync: SyncKeys,
    canary: Option<Canary>,
}

/// What a watch saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Broken rules, the first ones in words.
    pub violations: Vec<String>,
    /// How many there were.
    pub count: u64,
    /// What was judged, and how often.
    pub judged: BTreeMap<&'static str, u64>,
    /// How often each point of node code was reached.
    pub points: BTreeMap<&'static str, u64>,
    /// How often the unusual way was taken at each site.
    pub sites: BTreeMap<&'static str, u64>,
}

impl Watch {
    /// A watch over a cluster of so many partitions, whose nodes make the mistake `canary`. `sync`: the keys of which every write is.
    pub fn new(partitions: PartitionCount, trace: &Trace, sync: SyncKeys, canary: Option<Canary>) -> Watch {
        let state = State { partitions: Some(partitions), trace: trace.clone(), ..State::default() };
        Watch { state: Arc::new(Mutex::new(state)), trace: trace.clone(), sync, canary }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The observer of this thread's nodes, which take an unusual way at these sites now and then.
    pub fn observer(&self, world: &World, sites: &[String]) -> Rc<dyn Observer> {
        let chance = RefCell::new(seed::stream(world.seed(), "buggify"));
        Rc::new(Observing { watch: self.clone(), world: world.clone(), sites: sites.to_vec(), chance })
    }

    /// Judges what is judged from time to time. `now` is for the words.
    pub fn tick(&self, now: Duration) {
        let state = &mut *self.lock();
        state.now = now;
        for what in state.covered.missing(&state.disks) {
            state.violation(&what);
        }
    }

    /// A disk is about to be destroyed: until the next convergence it counts as holding what was acknowledged meanwhile,
    /// and what its node shows is not held against its disk any more.
    pub fn destroyed(&self, host: &str) {
        let mut state = self.lock();
        state.destroyed.insert(host.to_owned());
        state.ever_destroyed.insert(host.to_owned());
    }

    /// A node is about to be removed from the cluster or added to it: it may lack what the others have agreed to forget.
    pub fn moves(&self, host: &str) {
        self.lock().ever_moved.insert(host.to_owned());
    }

    /// Whether a disk was destroyed at some time.
    pub fn any_destroyed(&self) -> bool {
        !self.lock().ever_destroyed.is_empty()
    }

    /// Every acknowledged write is on enough disks again, and every node has refilled as far as it knows: no disk counts as holding
    /// what it lacks any more. The other excuses stay: a node that was rolled back may learn only later that it has missed a vote.
    pub fn converged(&self) {
        self.lock().destroyed.clear();
    }

    /// Every write that became a dot on any node.
    pub fn written(&self) -> BTreeSet<WriteId> {
        self.lock().dots.writes()
    }

    /// Records on the disk that holds most.
    pub fn records_max(&self) -> usize {
        self.lock().disks.values().map(|disk| disk.iter().count()).max().unwrap_or(0)
    }

    /// What fewer than `w` disks hold of all that was acknowledged, in words.
    pub fn on_fewer_than(&self, w: usize) -> Vec<String> {
        let state = self.lock();
        state.covered.on_fewer_than(&state.disks, w)
    }

    /// What every disk holds of a key's data, by host; nothing where it holds none. Of a record that is damaged at rest the one before
    /// it that is whole: a node that goes on with that one has it, and one that knows better writes it anew.
    pub fn held(&self, namespace: Namespace, key: &Key) -> BTreeMap<String, Entry> {
        let state = self.lock();
        let Some(slot) = state.slot(Table::Data, namespace, key) else { return BTreeMap::new() };
        let held =
            state.disks.iter().filter_map(|(host, disk)| Some((host.clone(), disk.whole(&slot)?.clone())));
        held.collect()
    }

    /// Guest records that are on the disks.
    pub fn guests(&self) -> usize {
        let state = self.lock();
        state.disks.values().flat_map(Holdings::iter).filter(|(slot, _)| slot.table == Table::Guest).count()
    }

    /// The power of a host is lost while its node runs: the probes that this hits, by what the node is in the middle of.
    pub fn power_lost(&self, host: &str, now: Duration) -> Vec<&'static str> {
        let at_work = std::mem::take(&mut self.lock().at_work);
        let (here, elsewhere) = at_work.into_iter().partition(|((of, _), _)| of == host);
        self.lock().at_work = elsewhere;
        let here: BTreeMap<(String, &str), Duration> = here;
        let lasts = here.into_iter().filter(|(_, since)| now <= *since + WORK_MAX);
        lasts.map(|((_, probe), _)| probe).collect()
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        let state = self.lock();
        Seen {
            violations: state.violations.clone(),
            count: state.count,
            judged: state.judged.clone(),
            points: state.points.clone(),
            sites: state.sites.clone(),
        }
    }
}

impl State {
    fn judged(&mut self, what: &'static str) {
        *self.judged.entry(what).or_default() += 1;
    }

    fn violation(&mut self, what: &str) {
        self.count += 1;
        let what = format!("{:.6} s: {what}", self.now.as_secs_f64());
        self.trace.note(self.now, "sim", "violation", || what.clone());
        if self.violations.len() < KEPT && !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }

    fn slot(&self, table: Table, namespace: Namespace, key: &Key) -> Option<Slot> {
        let partition = self.partitions?.partition_of(namespace, key);
        Some(Slot { table, partition, namespace, key: key.clone() })
    }
}

/// What is found while one disk is read.
struct Reading<'a> {
    host: &'a str,
    now: Duration,
    trace: &'a Trace,
    /// All others.
    disks: &'a BTreeMap<String, Holdings>,
    dots: &'a mut dots::Dots,
    forgetting: &'a forgetting::Forgetting,
    letting_go: &'a letting_go::LettingGo,
    records: u64,
    let_go: u64,
    guests_gone: u64,
    wrong: Vec<String>,
    /// Disks that were destroyed since the last convergence: they may hold less than before.
    destroyed: &'a BTreeSet<String>,
}

impl Finder for Reading<'_> {
    fn found(&mut self, slot: &Slot, entry: &Entry) {
        self.records += 1;
        self.trace.note(self.now, self.host, "durable", || {
            let record = &entry.copy.record;
            let siblings: Vec<String> = record
                .siblings()
                .iter()
                .map(|sibling| format!("{:032x} {:?}", sibling.write_id.0, sibling.dot))
                .collect();
            format!(
                "{:?} {} context {:?} siblings {}",
                slot.table,
                slot.key,
                record.context(),
                siblings.join(", ")
            )
        });
        self.wrong.extend(self.dots.learn(self.host, slot, entry));
    }

    fn moved(&mut self, slot: &Slot, before: Option<&Entry>, now: Option<&Entry>) {
        let Some(before) = before else { return };
        let gone = self.forgetting.gone(slot.namespace, &slot.key);
        if now.is_none()
            && !self.forgetting.allows(self.host, slot, before, now)
            && let Some(judged) =
                self.letting_go.judge(self.disks, self.destroyed, self.host, slot, before, gone)
        {
            self.let_go += 1;
            self.wrong.extend(judged);
            return;
        }
        let excused =
            self.destroyed.contains(self.host) || self.forgetting.allows(self.host, slot, before, now);
        if !excused {
            self.wrong.extend(climbs::judge(self.host, slot, before, now));
        }
        let (letting_go, forgetting) = (self.letting_go, self.forgetting);
        let has_let_go = |target: &str| {
            letting_go.has_let_go(target, slot.partition) || forgetting.has_given_up(target, slot.partition)
        };
        let wrong = guests::judge(self.disks, self.destroyed, has_let_go, self.host, slot, before, now, gone);
        let excused = self.forgetting.has_given_up(self.host, slot.partition)
            || self.letting_go.has_other_keepers(self.host, slot);
        if !excused {
            let is_struck = before.targets.iter().any(|of| now.is_none_or(|now| !now.targets.contains(of)));
            self.guests_gone += u64::from(is_struck);
            self.wrong.extend(wrong);
        }
    }

    fn removed(&mut self, slot: &Slot, entry: &Entry) {
        if !self.destroyed.contains(self.host) {
            self.wrong.push(climbs::removed(self.host, slot, entry));
        }
    }
}

impl DiskWatch for Watch {
    fn changed(&self, host: &str, now: Duration, change: DiskChange<'_>, image: &Image) {
        let state = &mut *self.lock();
        state.now = now;
        let mut holdings = state.disks.remove(host).unwrap_or_default();
        let mut reading = Reading {
            host,
            now,
            trace: &self.trace,
            disks: &state.disks,
            dots: &mut state.dots,
            forgetting: &state.forgetting,
            letting_go: &state.letting_go,
            records: 0,
            let_go: 0,
            guests_gone: 0,
            wrong: Vec::new(),
            destroyed: &state.ever_destroyed,
        };
        match change {
            DiskChange::Synced(path) => holdings.synced(path, image, &mut reading),
            DiskChange::DirSynced(dir) if dir == Path::new(DIR) => {
                holdings.dir_synced(dir, image, &mut reading);
            }
            DiskChange::DirSynced(_) => {}
            DiskChange::Removed(path) => holdings.cut(path, 0, &mut reading),
            DiskChange::Cut(path, len) => holdings.cut(path, len, &mut reading),
            DiskChange::PowerLoss if state.destroyed.contains(host) => {
                holdings.power_lost_after_harm(Path::new(DIR), image);
            }
            DiskChange::PowerLoss => holdings.power_lost(Path::new(DIR), image),
            DiskChange::Replaced => holdings.replaced(Path::new(DIR), image),
            DiskChange::Harmed => holdings.harmed(Path::new(DIR), image),
        }
        // A write that goes astray does so at a later sync, or with the power.
        let astray = image.counts().of(FaultKind::MisdirectedWrite).fired > 0;
        if astray && state.destroyed.contains(host) {
            holdings.harmed(Path::new(DIR), image);
        }
        let Reading { records, let_go, guests_gone, wrong, .. } = reading;
        for (what, count) in
            [("durable records", records), ("copies let go", let_go), ("guests that went", guests_gone)]
        {
            *state.judged.entry(what).or_default() += count;
        }
        state.disks.insert(host.to_owned(), holdings);
        for what in wrong {
            state.violation(&what);
        }
    }
}

/// The watch in its place in a run.
struct Observing {
    watch: Watch,
    world: World,
    sites: Vec<String>,
    chance: RefCell<seed::Stream>,
}

/// Compaction of a segment, a snapshot and a recovery take no longer. One that failed is over by then too.
const WORK_MAX: Duration = Duration::from_secs(1);
/// An active site is taken once in so many times.
const BUGGIFY_ONE_IN: u32 = 10;

impl Observer for Observing {
    fn point(&self, name: &'static str) {
        *self.watch.lock().points.entry(name).or_default() += 1;
        if let Some(host) = self.world.running_host() {
            let (state, now) = (&mut *self.watch.lock(), self.world.now());
            let mut works = |probe, begins: bool| {
                let of = (host.clone(), probe);
                match begins {
                    true => drop(state.at_work.insert(of, now)),
                    false => drop(state.at_work.remove(&of)),
                }
            };
            match name {
                "compaction-begun" => works("power lost during compaction", true),
                "snapshot-begun" => works("power lost during a snapshot", true),
                "recovery-examined" => works("power lost during recovery", true),
                "segment-removed" => works("power lost during compaction", false),
                "snapshot-named" => works("power lost during a snapshot", false),
                "node-serving" => works("power lost during recovery", false),
                _ => {}
            }
            self.world.record(&host, &format!("point:{name}"), "");
        }
    }

    fn buggify(&self, site: &'static str) -> bool {
        let is_active = self.sites.iter().any(|active| active == site);
        let taken = is_active && self.chance.borrow_mut().random_ratio(1, BUGGIFY_ONE_IN);
        if taken {
            *self.watch.lock().sites.entry(site).or_default() += 1;
        }
        taken
    }

    fn fact(&self, fact: &Fact<'_>) {
        let state = &mut *self.watch.lock();
        state.now = self.world.now();
        match *fact {
            Fact::Made { node, slot, dot, record } => {
                state.judged("dots made");
                if let Some(what) = state.dots.made(node, slot, dot, record) {
                    state.violation(&what);
                }
            }
            Fact::Acked { sync: false, .. } => {}
            // What is to be on a disk only after an interval may be shown before.
            Fact::Shown { slot, .. } if !self.watch.sync.has(&slot.key) => {}
            Fact::Shown { node, slot, record } => {
                if state.ever_destroyed.contains(&node.to_string()) {
                    return;
                }
                state.judged("copies shown");
                let gone = state.forgetting.gone(slot.namespace, &slot.key);
                if let Some(what) = shown::judge(&state.disks, node, slot, record, gone) {
                    state.violation(&what);
                }
            }
            Fact::Reaped { node, slot, before, after } => {
                let excused = state.ever_destroyed.union(&state.ever_moved).cloned().collect();
                let wrong = state.forgetting.reaped(&state.disks, &excused, (node, slot), before, after);
                state.judged("copies reaped");
                if let Some(gone) = state.forgetting.gone(slot.namespace, &slot.key) {
                    state.covered.forgotten(slot, gone);
                }
                for what in wrong {
                    state.violation(&what);
                }
            }
            Fact::GivenUp { node, partition } => {
                state.forgetting.gave_up(node, partition);
                let host = node.to_string();
                if !state.ever_destroyed.contains(&host) && !state.ever_moved.contains(&host) {
                    state.violation(&format!(
                        "{node} gives up {partition}, and nothing ever happened to its disk"
                    ));
                }
            }
            Fact::LetGo { node, partition, primaries } => {
                state.letting_go.lets_go(node, partition, primaries);
            }
            Fact::Gained { node, partition } => state.letting_go.gained(node, partition),
            Fact::Retargeted { node, slot, .. } | Fact::TurnedIntoData { node, slot } => {
                state.letting_go.goes_on_elsewhere(node, slot);
            }
            Fact::Acked { coordinator, namespace, key, write_id, dot, w, sync: true } => {
                state.judged("acknowledgements");
                let slots = [Table::Data, Table::Guest].map(|table| state.slot(table, namespace, key));
                if state.forgetting.may_be_gone(namespace, key, dot) {
                    return;
                }
                let on = acks::holders(&state.disks, &slots, dot);
                let excused = state.destroyed.iter().filter(|host| !on.contains(&host.as_str())).count();
                if on.len() + excused < w {
                    state.violation(&acks::say(coordinator, key, write_id, dot, w, &on));
                }
                state.covered.acked(slots, write_id, dot);
            }
        }
    }

    fn canary(&self, canary: Canary) -> bool {
        self.watch.canary == Some(canary)
    }

    fn withheld(&self, kind: u16) -> bool {
        self.world.withholds(kind)
    }
}
