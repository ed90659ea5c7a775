//! Carries a fault plan out: one task, which sleeps to the next entry, to the next node that is to be started, or to the next look of
//! the invariants, whichever comes first.
//!
//! Everything that it does stands in the trace and, where it may have cost somebody what was acknowledged, in the history.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jepsen_like_checks::value::Value;
use ringdove::io::fault_disk::{Fault, FaultKind, Image, Rates};

use crate::budget::Budget;
use crate::cluster::Cluster;
use crate::history::{Recorder, remark};
use crate::invariants::Watch;
use crate::net::fault::{Counts, Lasting, NetFault, effective};
use crate::plan::{Action, DiskFault, Entry, Why};
use crate::seed;
use crate::world::{Host, World};

mod burst;
mod destroy;
mod members;

use destroy::no_more;

/// How often the invariants look that are judged from time to time.
const LOOK: Duration = Duration::from_secs(1);

/// Whoever carries the plan out.
pub struct Nemesis {
    world: World,
    history: Recorder,
    watch: Watch,
    entries: std::vec::IntoIter<Entry>,
    at_events: Vec<Entry>,
    /// Nodes that are to be started again, and when.
    back: Vec<(Duration, String)>,
    next: Option<Entry>,
    looked: Duration,
    counts: Counts,
    budget: Budget,
    /// Disks as they were, for rollbacks.
    images: BTreeMap<String, Image>,
    readings: u32,
    /// Clients that came in bursts.
    bursts: Vec<Host>,
    burst_clients: u32,
    operators: u32,
    /// What bursts have done; their clients write it down.
    of_bursts: Arc<Mutex<Counts>>,
    /// Disks that are misread by chance, and how many faults had been seen on them when that began.
    misread: BTreeMap<String, u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nemesis {
    /// For these entries, which are taken in order of time, where writes are on `w` disks when they are acknowledged.
    pub fn new(world: &World, history: &Recorder, watch: &Watch, entries: Vec<Entry>, w: usize) -> Nemesis {
        let (mut entries, at_events): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| entry.when.is_none());
        entries.sort_by_key(|entry| entry.at_ms);
        for (id, trigger) in
            at_events.iter().enumerate().filter_map(|(id, entry)| Some((id, entry.when.as_ref()?)))
        {
            world.trace().arm(&trigger.node, &trigger.event, trigger.count, id);
        }
        let mut entries = entries.into_iter();
        let next = entries.next();
        Nemesis {
            world: world.clone(),
            history: history.clone(),
            watch: watch.clone(),
            entries,
            at_events,
            back: Vec::new(),
            next,
            looked: Duration::ZERO,
            counts: Counts::new(),
            budget: Budget::of(w),
            images: BTreeMap::new(),
            readings: 0,
            bursts: Vec::new(),
            burst_clients: 0,
            operators: 0,
            of_bursts: Arc::default(),
            misread: BTreeMap::new(),
        }
    }

    /// What was done to hosts, and how often it did something.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts.clone();
        for (name, (_, effective)) in &*lock(&self.of_bursts) {
            counts.entry(name).or_default().1 += effective;
        }
        counts
    }

    /// Whether no entries are left and no client that came in a burst.
    pub fn is_done(&self) -> bool {
        self.next.is_none() && !self.bursts.iter().any(Host::is_running)
    }

    /// Carries out what is due, and waits for what comes next.
    pub async fn step(&mut self, cluster: &mut Cluster) {
        self.carry_out(cluster).await;
        self.woken(cluster).await;
    }

    /// Goes on until `done` is, and gives what it gives.
    pub async fn until<T>(&mut self, cluster: &mut Cluster, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            self.carry_out(cluster).await;
            tokio::select! {
                biased;
                value = &mut done => return value,
                () = self.woken(cluster) => {}
            }
        }
    }

    /// Carries out what is due.
    pub async fn carry_out(&mut self, cluster: &mut Cluster) {
        for id in self.world.trace().due() {
            let Entry { action, why, .. } = self.at_events[id].clone();
            self.act(action, why, cluster).await;
        }
        while let Some(entry) = self.next.take_if(|entry| at(entry) <= self.world.now()) {
            self.next = self.entries.next();
            self.act(entry.action, entry.why, cluster).await;
        }
        let now = self.world.now();
        let (due, later) = std::mem::take(&mut self.back).into_iter().partition(|(at, _)| *at <= now);
        self.back = later;
        let due: Vec<(Duration, String)> = due;
        for (_, node) in due {
            self.act(Action::Start { node }, None, cluster).await;
        }
        self.tend(cluster);
    }

    /// Waits until something is due.
    pub async fn woken(&self, cluster: &Cluster) {
        let moments = self.back.iter().map(|(at, _)| *at).chain(self.next.as_ref().map(at));
        let wake = moments.fold(self.tend_at(cluster), Duration::min);
        tokio::select! {
            biased;
            () = self.world.trace().struck() => {}
            () = self.world.ended() => {}
            () = self.world.timers().sleep_until(wake) => {}
        }
    }

    /// The operator looks after his nodes, and once a second the invariants at the disks.
    fn tend(&mut self, cluster: &mut Cluster) {
        cluster.tend();
        self.replace_damaged(cluster);
        let now = self.world.now();
        if now >= self.looked + LOOK {
            self.looked = now;
            self.watch.tick(now);
            // Two runs that differ in a draw of the executor's generator differ here within a second.
            self.world.record("sim", "draw", madsim::rand::random::<u64>());
        }
    }

    /// When that is due again, unless a node ends before.
    fn tend_at(&self, cluster: &Cluster) -> Duration {
        cluster.next_restart().into_iter().fold(self.looked + LOOK, Duration::min)
    }

    /// Only that, and no entry of the plan, until `done` is.
    async fn tend_until<T>(&mut self, cluster: &mut Cluster, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            self.tend(cluster);
            let tend_at = self.tend_at(cluster);
            tokio::select! {
                biased;
                value = &mut done => return value,
                () = self.world.ended() => {}
                () = self.world.timers().sleep_until(tend_at) => {}
            }
        }
    }

    /// A host loses its power: what it had in memory or unsynced may be gone.
    fn lost_with_the_power(&self, node: &str, host: &Host) {
        if host.is_running() || host.with_disk(|image| image.unsynced()) > 0 {
            self.lost(node);
        }
    }

    /// What a node had in memory alone is gone.
    fn lost(&self, node: &str) {
        let value = Value::Map(vec![
            (Value::Str("node".into()), Value::Str(node.to_owned().into())),
            (Value::Str("what".into()), Value::Str("unsynced".into())),
        ]);
        self.history.push(self.world.now(), remark("lost", value));
    }

    /// Carries one action out, which is a part of something that is counted too.
    pub async fn act(&mut self, action: Action, why: Option<Why>, cluster: &mut Cluster) {
        if let Some((name, does)) = self.does_something(&action, cluster) {
            // The network and the clocks count what they know better.
            let of_others = matches!(action, Action::WallSkew { .. } | Action::MonoDrift { .. });
            for name in [name].into_iter().chain(why.map(Why::name)).filter(|_| !of_others) {
                let (fired, effective) = self.counts.entry(name).or_default();
                *fired += 1;
                *effective += u64::from(does);
            }
        }
        self.world.record("nemesis", action.name(), format_args!("{action:?}"));
        match action {
            Action::PowerLoss { node, back_after_ms } => {
                if cluster.host(&node).is_some_and(Host::is_running) {
                    for probe in self.watch.power_lost(&node, self.world.now()) {
                        self.history.hit(probe);
                    }
                }
                cluster.down(&node);
                if let Some(host) = cluster.host(&node).cloned() {
                    self.lost_with_the_power(&node, &host);
                    host.power_loss().await;
                }
                if let Some(after) = back_after_ms {
                    self.back.push((self.world.now() + Duration::from_millis(after), node));
                }
            }
            Action::PowerLossOfAll => {
                let hosts: Vec<(String, Host)> =
                    cluster.hosts().map(|(name, host)| (name.to_owned(), host.clone())).collect();
                for (name, host) in &hosts {
                    cluster.down(name);
                    self.lost_with_the_power(name, host);
                }
                Host::power_loss_of(hosts.iter().map(|(_, host)| host)).await;
            }
            Action::Kill { node } => {
                cluster.down(&node);
                if let Some(host) = cluster.host(&node).cloned() {
                    // The page cache stands. A write of an interval may have been in the process's memory alone.
                    if host.is_running() && cluster.settings().interval_ms > 0 {
                        self.lost(&node);
                    }
                    host.kill().await;
                }
            }
            Action::Stop { node } => cluster.stop(&node),
            Action::Start { node } => cluster.start(&node),
            Action::Pause { node } => {
                if let Some(host) = cluster.host(&node) {
                    host.pause();
                }
            }
            Action::Resume { node } => {
                if let Some(host) = cluster.host(&node) {
                    host.resume();
                }
            }
            Action::Gray { node, waits } => {
                if let Some(host) = cluster.host(&node) {
                    host.begin_gray(waits);
                }
            }
            Action::GrayEnd { node } => {
                if let Some((waits, true)) = cluster.host(&node).and_then(Host::end_gray) {
                    effective(&mut self.counts, Action::Gray { node, waits }.name());
                }
            }
            Action::Net { fault } => self.net(&fault, why),
            Action::Weather { weather } => {
                if let Some(tcp) = self.world.tcp() {
                    tcp.set_weather(weather);
                }
            }
            Action::HealNet => self.heal_net(),
            Action::Disk { node, fault } => {
                if let Some(host) = cluster.host(&node).cloned() {
                    if matches!(fault, DiskFault::SyncError { .. }) {
                        // The node will stop, and what it had not synced is gone with it.
                        self.lost(&node);
                    }
                    match fault {
                        DiskFault::Misread { .. } => {
                            self.misread.insert(node, misreads(&host));
                        }
                        DiskFault::ReadWell => self.read_well(&node, &host),
                        _ => {}
                    }
                    disk(&host, &fault);
                }
            }
            Action::Destroy { node, how, back_after_ms } => {
                self.destroy(&node, &how, back_after_ms, cluster).await;
            }
            Action::Reconfigure { node, store } => cluster.reconfigure(&node, store),
            Action::Burst { load } => self.burst(&load, cluster),
            Action::KeepImage { node } => self.keep_image(&node, cluster),
            Action::Remove { node } => self.change_members(&node, false, cluster),
            Action::Add { node } => self.change_members(&node, true, cluster),
            Action::Converge => Box::pin(self.converge(cluster)).await,
            Action::WallSkew { node, ms } => {
                if let Some(host) = cluster.host(&node) {
                    host.clock().skew_as(ms, why);
                }
            }
            Action::MonoDrift { node, ppm } => {
                if let Some(host) = cluster.host(&node) {
                    host.clock().drift_as(ppm, why);
                }
            }
        }
    }

    /// The name of an action that is counted here, and whether it does something; nothing for an end of a fault, and for
    /// what the network and the disks count themselves.
    fn does_something(&self, action: &Action, cluster: &Cluster) -> Option<(&'static str, bool)> {
        let runs = |node: &str| cluster.host(node).is_some_and(Host::is_running);
        let does = match action {
            Action::PowerLoss { node, .. }
            | Action::Kill { node }
            | Action::Stop { node }
            | Action::Pause { node } => runs(node),
            Action::PowerLossOfAll => cluster.hosts().any(|(_, host)| host.is_running()),
            Action::WallSkew { node, ms } => *ms != 0 && runs(node),
            Action::MonoDrift { node, ppm } => *ppm != 0 && runs(node),
            // madsim does not tell what it held back: that a node ran at one end must do.
            Action::Net { fault: NetFault::Cut { from, to } } if self.world.tcp().is_some() => {
                return Some(("cut", runs(from) || runs(to)));
            }
            Action::Weather { weather } if self.world.tcp().is_some_and(|tcp| !tcp.is_calm(*weather)) => {
                cluster.hosts().any(|(_, host)| host.is_running())
            }
            Action::Converge => self.budget.spent().next().is_some(),
            Action::Remove { node } => cluster.is_member(node),
            Action::Add { node } => !cluster.is_member(node),
            // A start under them is what counts.
            Action::Reconfigure { .. } => false,
            // So does what was seen of it at its end, or by its clients.
            Action::Gray { .. } | Action::Burst { .. } => false,
            Action::Disk { fault: DiskFault::Misread { .. }, .. } => false,
            Action::Start { .. }
            | Action::KeepImage { .. }
            | Action::Destroy { .. }
            | Action::Resume { .. }
            | Action::GrayEnd { .. }
            | Action::Net { .. }
            | Action::Weather { .. }
            | Action::HealNet
            | Action::Disk { .. } => return None,
        };
        Some((action.name(), does))
    }

    /// Reads of a disk go wrong by chance no longer.
    fn read_well(&mut self, node: &str, host: &Host) {
        if self.misread.remove(node).is_some_and(|before| misreads(host) > before) {
            effective(&mut self.counts, "misread");
        }
    }

    fn net(&self, fault: &NetFault, why: Option<Why>) {
        match (self.world.tcp(), fault) {
            (None, fault) => self.world.net().apply_as(fault, why),
            (Some(tcp), NetFault::Cut { from, to }) => tcp.cut(from, to),
            (Some(tcp), NetFault::Mend { from, to, what: Lasting::Cut }) => tcp.mend(from, to),
            (Some(tcp), NetFault::Heal { from, to }) => tcp.heal(from, to),
            (Some(_), fault) => unreachable!("a checked plan has no {} here", fault.name()),
        }
    }

    fn heal_net(&self) {
        match self.world.tcp() {
            Some(tcp) => tcp.heal_all(),
            None => self.world.net().heal_all(),
        }
    }

    /// Ends every fault, and has every node started.
    pub async fn heal(&mut self, cluster: &mut Cluster) {
        self.world.record("nemesis", "heal", "");
        self.world.trace().disarm();
        self.power_cycle_destroyed(cluster).await;
        self.mend(cluster);
    }

    /// Ends what lasts, takes back what has not happened yet, and has every node started.
    fn mend(&mut self, cluster: &mut Cluster) {
        self.back.clear();
        self.heal_net();
        let hosts: Vec<Host> = cluster.hosts().map(|(_, host)| host.clone()).collect();
        for host in hosts {
            self.read_well(host.name(), &host);
            while let Some((waits, passed)) = host.end_gray() {
                if passed {
                    let node = host.name().to_owned();
                    effective(&mut self.counts, Action::Gray { node, waits }.name());
                }
            }
            host.with_disk(|image| {
                no_more(image);
                image.set_capacity(None);
                image.slow(Path::new("/"), Duration::ZERO);
            });
            host.release_disk(Path::new("/"));
            host.clock().set_mono_drift_ppm(0);
            host.resume();
        }
        cluster.start_all();
    }
}

fn at(entry: &Entry) -> Duration {
    Duration::from_millis(entry.at_ms.unwrap_or(0))
}

fn disk(host: &Host, fault: &DiskFault) {
    let path = Path::new("/").to_path_buf();
    match *fault {
        DiskFault::SyncError { nth } => host.with_disk(|image| image.arm(Fault::SyncError { path, nth })),
        DiskFault::ReadError { nth } => host.with_disk(|image| image.arm(Fault::ReadError { path, nth })),
        DiskFault::ShortRead { nth } => host.with_disk(|image| image.arm(Fault::ShortRead { path, nth })),
        DiskFault::Slow { ms } => host.with_disk(|image| image.slow(&path, Duration::from_millis(ms))),
        DiskFault::Stall => host.with_disk(|image| image.stall(&path)),
        DiskFault::Release => host.release_disk(&path),
        DiskFault::Full => host.with_disk(|image| image.set_capacity(Some(0))),
        DiskFault::NotFull => host.with_disk(|image| image.set_capacity(None)),
        DiskFault::Misread { evict, fail, short, seed } => {
            let of = |permille: u32| f64::from(permille) / 1000.0;
            let rates =
                Rates { evict: of(evict), read_error: of(fail), short_read: of(short), ..Rates::default() };
            host.with_disk(|image| image.set_rates(rates, seed::stream(seed, "misread")));
        }
        DiskFault::ReadWell => {
            host.with_disk(|image| image.set_rates(Rates::default(), seed::stream(0, "none")));
        }
    }
}

/// Reads of the disk that have gone wrong.
fn misreads(host: &Host) -> u64 {
    let of = |image: &mut Image| {
        [FaultKind::ReadError, FaultKind::ShortRead].map(|kind| image.counts().of(kind).effective)
    };
    host.with_disk(of).into_iter().sum()
}
