//! Carries a fault plan out: one task, which sleeps to the next entry and, in short steps, tends the nodes.
//!
//! Everything that it does stands in the trace and, where it may have cost somebody what was acknowledged, in the history.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jepsen_like_checks::value::Value;
use ringdove::io::fault_disk::{Fault, Image};

use crate::budget::Budget;
use crate::cluster::Cluster;
use crate::history::{Recorder, remark};
use crate::invariants::Watch;
use crate::net::fault::{Counts, NetFault};
use crate::plan::{Action, DiskFault, Entry};
use crate::world::{Host, World};

mod burst;
mod destroy;
mod members;

/// How often the operator looks at his nodes, and the invariants at the disks.
const STEP: Duration = Duration::from_millis(100);
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
        }
    }

    /// What was done to hosts and clocks, and how often it did something.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether no entries are left and no client that came in a burst.
    pub fn is_done(&self) -> bool {
        self.next.is_none() && !self.bursts.iter().any(Host::is_running)
    }

    /// Goes on until the next step: carries out what is due, tends the nodes, waits a little.
    pub async fn step(&mut self, cluster: &mut Cluster) {
        for id in self.world.trace().due() {
            let action = self.at_events[id].action.clone();
            self.act(action, cluster).await;
        }
        while let Some(entry) = self.next.take_if(|entry| at(entry) <= self.world.now()) {
            self.next = self.entries.next();
            self.act(entry.action, cluster).await;
        }
        let now = self.world.now();
        let (due, later) = std::mem::take(&mut self.back).into_iter().partition(|(at, _)| *at <= now);
        self.back = later;
        let due: Vec<(Duration, String)> = due;
        for (_, node) in due {
            self.act(Action::Start { node }, cluster).await;
        }
        cluster.tend();
        self.watch.members(|host| cluster.is_member(host));
        self.replace_damaged(cluster);
        let now = self.world.now();
        if now >= self.looked + LOOK {
            self.looked = now;
            self.watch.tick(now);
            // Two runs that differ in a draw of the executor's generator differ here within a second.
            self.world.record("sim", "draw", madsim::rand::random::<u64>());
        }
        let moments = self.back.iter().map(|(at, _)| *at).chain(self.next.as_ref().map(at));
        let wake = moments.fold(now + STEP, Duration::min);
        tokio::select! {
            biased;
            () = self.world.trace().struck() => {}
            () = self.world.timers().sleep_until(wake) => {}
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

    /// Carries one action out.
    pub async fn act(&mut self, action: Action, cluster: &mut Cluster) {
        if let Some((name, does)) = self.does_something(&action, cluster) {
            let (fired, effective) = self.counts.entry(name).or_default();
            *fired += 1;
            *effective += u64::from(does);
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
                self.lost(&node);
                if let Some(host) = cluster.host(&node).cloned() {
                    host.power_loss().await;
                }
                if let Some(after) = back_after_ms {
                    self.back.push((self.world.now() + Duration::from_millis(after), node));
                }
            }
            Action::PowerLossOfAll => {
                let hosts: Vec<(String, Host)> =
                    cluster.hosts().map(|(name, host)| (name.to_owned(), host.clone())).collect();
                for (name, _) in &hosts {
                    cluster.down(name);
                    self.lost(name);
                }
                Host::power_loss_of(hosts.iter().map(|(_, host)| host)).await;
            }
            Action::Kill { node } => {
                cluster.down(&node);
                self.lost(&node);
                if let Some(host) = cluster.host(&node).cloned() {
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
            Action::Net { fault } => self.net(&fault),
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
                    host.clock().set_wall_skew_ms(ms);
                }
            }
            Action::MonoDrift { node, ppm } => {
                if let Some(host) = cluster.host(&node) {
                    host.clock().set_mono_drift_ppm(ppm);
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
            Action::Converge | Action::Burst { .. } => true,
            Action::Remove { node } => cluster.is_member(node),
            Action::Add { node } => !cluster.is_member(node),
            // A start under them is what counts.
            Action::Reconfigure { .. } => false,
            Action::Start { .. }
            | Action::KeepImage { .. }
            | Action::Destroy { .. }
            | Action::Resume { .. }
            | Action::Net { .. }
            | Action::Weather { .. }
            | Action::HealNet
            | Action::Disk { .. } => return None,
        };
        Some((action.name(), does))
    }

    fn net(&self, fault: &NetFault) {
        match (self.world.tcp(), fault) {
            (None, fault) => self.world.net().apply(fault),
            (Some(tcp), NetFault::Cut { from, to }) => tcp.cut(from, to),
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
            host.with_disk(|image| {
                image.disarm();
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
    }
}
