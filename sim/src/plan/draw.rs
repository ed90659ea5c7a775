//! The faults of a seed: which kinds, how many, when, on whom. All of it is drawn before the run begins.

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use ringdove::observe::POINTS;

use super::{
    Action, DiskFault, Entry, GrayClass, LOAD_AT, Load, LoadKind, Trigger, Why, client_name, node_name,
};
use crate::disk::TWO_UNSYNCED;
use crate::net::fault::{FrameKind, NetFault};
use crate::scenario::Scenario;
use crate::seed::{self, Stream};
use crate::settings::{NodeSettings, RunSettings};
use crate::tcp::Weather;

mod cuts;
mod destruction;
mod directed;

/// What a seed's plan may choose from.
const SWARM: [Kind; 39] = [
    Kind::Gray,
    Kind::Misread,
    Kind::Minority,
    Kind::Mute,
    Kind::CrashAtTwoWrites,
    Kind::Reconfigure,
    Kind::Burst,
    Kind::SmallStall,
    Kind::SlowFrames,
    Kind::PowerLoss,
    Kind::PowerLossOfAll,
    Kind::Kill,
    Kind::Restart,
    Kind::RollingRestart,
    Kind::CrashLoop,
    Kind::CrashInRecovery,
    Kind::CrashAtPoint,
    Kind::CrashAtSync,
    Kind::Pause,
    Kind::SlowProcessor,
    Kind::Cut,
    Kind::Split,
    Kind::Isolate,
    Kind::Bridge,
    Kind::Ring,
    Kind::Swizzle,
    Kind::Flap,
    Kind::Reset,
    Kind::HalfOpen,
    Kind::ReplyLost,
    Kind::Corrupt,
    Kind::Loss,
    Kind::SlowLink,
    Kind::Bandwidth,
    Kind::Hold,
    Kind::LargeStall,
    Kind::Disk,
    Kind::SlowDisk,
    Kind::Clocks,
];

/// What it may choose from where the product's `TcpNet` runs on madsim's network.
const TCP: [Kind; 24] = [
    Kind::Weather,
    Kind::Gray,
    Kind::Misread,
    Kind::Minority,
    Kind::PowerLoss,
    Kind::PowerLossOfAll,
    Kind::Kill,
    Kind::Restart,
    Kind::RollingRestart,
    Kind::CrashLoop,
    Kind::CrashInRecovery,
    Kind::CrashAtSync,
    Kind::Pause,
    Kind::SlowProcessor,
    Kind::Cut,
    Kind::Split,
    Kind::Isolate,
    Kind::Bridge,
    Kind::Ring,
    Kind::Swizzle,
    Kind::Flap,
    Kind::Disk,
    Kind::SlowDisk,
    Kind::Clocks,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Weather,
    Gray,
    Misread,
    Minority,
    CrashAtTwoWrites,
    Mute,
    Reconfigure,
    Burst,
    SmallStall,
    SlowFrames,
    PowerLoss,
    PowerLossOfAll,
    Kill,
    Restart,
    RollingRestart,
    CrashLoop,
    CrashInRecovery,
    CrashAtPoint,
    CrashAtSync,
    Pause,
    SlowProcessor,
    Cut,
    Split,
    Isolate,
    Bridge,
    Ring,
    Swizzle,
    Flap,
    Reset,
    HalfOpen,
    ReplyLost,
    Corrupt,
    Loss,
    SlowLink,
    Bandwidth,
    Hold,
    LargeStall,
    Disk,
    SlowDisk,
    Clocks,
}

/// The entries of a seed's plan, in order of time; those that wait for an event first.
pub(super) fn entries(scenario: Scenario, run_seed: u64, settings: &RunSettings) -> Vec<Entry> {
    let nodes: Vec<String> = (1..=settings.nodes).map(node_name).collect();
    let clients = (1..=settings.clients).map(client_name);
    let begin = u64::try_from(LOAD_AT.as_millis()).unwrap_or(0);
    let span = u64::try_from(settings.span().as_millis()).unwrap_or(u64::MAX);
    let mut draw = Draw {
        chance: seed::stream(run_seed, "plan"),
        entries: Vec::new(),
        hosts: nodes.iter().cloned().chain(clients).collect(),
        nodes,
        begin,
        end: begin.saturating_add(span).clamp(2_000, 60_000),
    };
    match scenario {
        Scenario::Swarm | Scenario::Tcp | Scenario::Defaults => draw.all(settings),
        Scenario::Destroy => draw.rounds_of_destruction(settings),
        Scenario::Away => draw.nodes_away(settings),
        Scenario::Held => draw.frames_held(settings),
        Scenario::Backup => draw.backups_restored(settings),
        Scenario::Wiped => draw.disks_wiped(settings),
        Scenario::Rolling => draw.rolling_restarts(settings),
        Scenario::Members => draw.members_moved(settings),
    }
    draw.entries.sort_by_key(|entry| entry.at_ms);
    draw.entries
}

struct Draw {
    chance: Stream,
    entries: Vec<Entry>,
    nodes: Vec<String>,
    hosts: Vec<String>,
    begin: u64,
    end: u64,
}

type Links = Vec<(String, String)>;

impl Draw {
    fn all(&mut self, settings: &RunSettings) {
        // One seed in twenty has no faults, a third has few of them.
        if self.chance.random_ratio(1, 20) {
            return;
        }
        let few = self.chance.random_ratio(1, 3);
        let mut kinds = if settings.tcp { TCP.to_vec() } else { SWARM.to_vec() };
        kinds.shuffle(&mut self.chance);
        let many =
            if few { self.chance.random_range(1..=2) } else { self.chance.random_range(3..=kinds.len()) };
        kinds.truncate(many);
        let rounds = if few { self.chance.random_range(1..=5) } else { self.chance.random_range(6..=28) };
        for _ in 0..rounds {
            let kind = *kinds.choose(&mut self.chance).expect("at least one");
            let at = self.chance.random_range(self.begin..self.end);
            self.one(kind, at, settings);
        }
        if settings.may_change_members() && self.chance.random_ratio(1, 2) {
            let at = self.chance.random_range(self.begin..self.end);
            self.member_away(at, settings);
        }
    }

    fn put(&mut self, at_ms: u64, action: Action) {
        self.put_as(at_ms, None, action);
    }

    /// As a part of something.
    fn put_as(&mut self, at_ms: u64, why: impl Into<Option<Why>>, action: Action) {
        self.entries.push(Entry { at_ms: Some(at_ms), when: None, why: why.into(), action });
    }

    fn when(&mut self, node: &str, event: &str, count: u64, why: Why, action: Action) {
        let when = Some(Trigger { node: node.to_owned(), event: event.to_owned(), count });
        self.entries.push(Entry { at_ms: None, when, why: Some(why), action });
    }

    fn node(&mut self) -> String {
        self.nodes.choose(&mut self.chance).expect("a cluster has nodes").clone()
    }

    fn span(&mut self, low: u64, high: u64) -> u64 {
        self.chance.random_range(low..=high)
    }

    fn small(&mut self, low: u32, high: u32) -> u32 {
        self.chance.random_range(low..=high)
    }

    fn one(&mut self, kind: Kind, at: u64, settings: &RunSettings) {
        match kind {
            Kind::PowerLoss
            | Kind::PowerLossOfAll
            | Kind::Kill
            | Kind::Restart
            | Kind::RollingRestart
            | Kind::CrashLoop
            | Kind::Pause
            | Kind::SlowProcessor => self.process(kind, at),
            Kind::Reconfigure => self.reconfigure(at),
            Kind::Gray => self.gray(at),
            Kind::Burst => self.burst(at),
            Kind::CrashInRecovery | Kind::CrashAtPoint | Kind::CrashAtSync | Kind::CrashAtTwoWrites => {
                self.crash_at_an_event(kind, at);
            }
            Kind::Cut
            | Kind::Split
            | Kind::Minority
            | Kind::Mute
            | Kind::Isolate
            | Kind::Bridge
            | Kind::Ring
            | Kind::Swizzle
            | Kind::Flap => {
                self.cuts(kind, at);
            }
            Kind::Reset
            | Kind::HalfOpen
            | Kind::ReplyLost
            | Kind::Corrupt
            | Kind::Loss
            | Kind::SlowLink
            | Kind::Bandwidth
            | Kind::Hold
            | Kind::SmallStall
            | Kind::SlowFrames
            | Kind::LargeStall => self.link(kind, at),
            Kind::Disk | Kind::SlowDisk | Kind::Misread => self.disk(kind, at),
            Kind::Clocks => self.clocks(at, settings),
            Kind::Weather => self.weather(at, settings),
        }
    }

    fn process(&mut self, kind: Kind, at: u64) {
        let node = self.node();
        match kind {
            Kind::PowerLossOfAll => {
                self.put(at, Action::PowerLossOfAll);
                for node in self.nodes.clone() {
                    let down = self.span(1, 1_500);
                    self.put(at + down, Action::Start { node });
                }
            }
            Kind::Kill => {
                let down = self.span(1, 3_000);
                self.put(at, Action::Kill { node: node.clone() });
                self.put(at + down, Action::Start { node });
            }
            Kind::Restart => {
                let down = self.span(10, 3_000);
                self.put(at, Action::Stop { node: node.clone() });
                self.put(at + down, Action::Start { node });
            }
            Kind::RollingRestart => {
                let mut at = at;
                for node in self.nodes.clone() {
                    let (down, pause) = (self.span(10, 500), self.span(50, 500));
                    self.put_as(at, Why::RollingRestart, Action::Stop { node: node.clone() });
                    self.put(at + down, Action::Start { node });
                    at += down + pause;
                }
            }
            Kind::CrashLoop => {
                let mut at = at;
                for _ in 0..self.span(2, 6) {
                    // Short enough to fall into the recovery of the crash before.
                    let (down, up) = (self.span(1, 50), self.span(1, 120));
                    self.put_as(
                        at,
                        Why::CrashLoop,
                        Action::PowerLoss { node: node.clone(), back_after_ms: None },
                    );
                    self.put(at + down, Action::Start { node: node.clone() });
                    at += down + up;
                }
                self.put(at + 500, Action::Start { node });
            }
            Kind::Pause => {
                // Seldom long enough for everybody to have given it up.
                let long = if self.chance.random_ratio(1, 10) {
                    self.span(10_000, 90_000)
                } else {
                    self.span(10, 4_000)
                };
                self.put(at, Action::Pause { node: node.clone() });
                self.put(at + long, Action::Resume { node });
            }
            Kind::SlowProcessor => {
                // It runs for a part of each period alone.
                let (period, off) = (self.span(10, 60), self.span(20, 90));
                for turn in 0..self.span(10, 60) {
                    let at = at + turn * period;
                    self.put_as(at, Why::SlowProcessor, Action::Pause { node: node.clone() });
                    self.put(at + (period * off / 100).max(1), Action::Resume { node: node.clone() });
                }
            }
            _ => {
                let down = self.span(1, 3_000);
                self.put(at, Action::PowerLoss { node: node.clone(), back_after_ms: None });
                self.put(at + down, Action::Start { node });
            }
        }
    }

    fn crash_at_an_event(&mut self, kind: Kind, at: u64) {
        let node = self.node();
        let back = self.span(1, 3_000);
        let lost = Action::PowerLoss { node: node.clone(), back_after_ms: Some(back) };
        match kind {
            Kind::CrashInRecovery => {
                // Its first recovery is that of an empty disk; the second follows this crash.
                let of_recovery = ["recovery-examined", "recovery-segment-named", "recovery-tail-cut"];
                let point = *of_recovery.choose(&mut self.chance).expect("some");
                let count = self.span(2, 4);
                self.put(at, Action::PowerLoss { node: node.clone(), back_after_ms: Some(20) });
                self.when(&node, &format!("point:{point}"), count, Why::CrashInRecovery, lost);
            }
            Kind::CrashAtTwoWrites => {
                // Several, on all nodes: a power loss leaves the later of two writes alone only now and then.
                for node in self.nodes.clone() {
                    for count in [1, self.span(2, 8), self.span(9, 40)] {
                        let back_after_ms = Some(self.span(1, 500));
                        let lost = Action::PowerLoss { node: node.clone(), back_after_ms };
                        self.when(&node, TWO_UNSYNCED, count, Why::CrashAtTwoWrites, lost);
                    }
                }
            }
            Kind::CrashAtPoint => {
                let point = *POINTS.choose(&mut self.chance).expect("some");
                let count = self.span(1, 200);
                self.when(&node, &format!("point:{point}"), count, Why::CrashAtPoint, lost);
            }
            _ => {
                let count = self.span(1, 400);
                self.when(&node, "disk-sync", count, Why::CrashAtSync, lost);
            }
        }
    }

    /// Two hosts, one of them at least a node: clients have nothing to say to each other.
    fn pair(&mut self) -> (String, String) {
        let node = self.node();
        let others: Vec<String> = self.hosts.iter().filter(|host| **host != node).cloned().collect();
        let other = others.choose(&mut self.chance).expect("a run has clients").clone();
        if self.chance.random_bool(0.5) { (node, other) } else { (other, node) }
    }

    /// Puts a fault of a link and, where it lasts, what mends it.
    fn put_fault(&mut self, at: u64, long: u64, fault: NetFault) {
        let mended = fault.mended();
        self.put(at, Action::Net { fault });
        if let Some(fault) = mended {
            self.put(at + long, Action::Net { fault });
        }
    }

    fn link(&mut self, kind: Kind, at: u64) {
        let (mut from, mut to) = self.pair();
        // Nodes answer, and each other too.
        if kind == Kind::ReplyLost && !self.nodes.contains(&from) {
            (from, to) = (to, from);
        }
        let (back_from, back_to) = (to.clone(), from.clone());
        let long = self.span(50, 5_000);
        let nth = self.small(1, 30);
        // What lasts is in both directions half of the time.
        let fault = |this: &mut Draw, from: String, to: String| match kind {
            Kind::Reset => NetFault::Reset { from, to },
            Kind::HalfOpen => NetFault::HalfOpen { from, to },
            Kind::ReplyLost => NetFault::ReplyLost { from, to, nth },
            Kind::Corrupt => NetFault::Corrupt { from, to, nth },
            Kind::Loss => NetFault::Loss { from, to, percent: this.small(1, 40) },
            Kind::SlowLink => NetFault::Slow { from, to, ms: this.span(5, 800) },
            Kind::Bandwidth => NetFault::Bandwidth { from, to, kib_s: this.span(1, 200) },
            Kind::Hold => NetFault::Hold { from, to },
            Kind::SmallStall => NetFault::SmallStall { from, to },
            Kind::SlowFrames => {
                let frames = *FrameKind::ALL.choose(&mut this.chance).expect("some");
                NetFault::SlowFrames { from, to, frames, ms: this.span(5, 1_000) }
            }
            _ => NetFault::LargeStall { from, to },
        };
        let first = fault(self, from, to);
        // A held connection may be held for minutes: what it carries then is from another time.
        let long = if kind == Kind::Hold && self.chance.random_ratio(1, 4) { long * 12 } else { long };
        let both = first.mended().is_some() && self.chance.random_bool(0.5);
        self.put_fault(at, long, first);
        if both {
            let second = fault(self, back_from, back_to);
            self.put_fault(at, long, second);
        }
    }

    /// One class of requests waits at a node, and the other is carried out.
    fn gray(&mut self, at: u64) {
        let node = self.node();
        let waits = if self.chance.random_bool(0.7) { GrayClass::Data } else { GrayClass::Heartbeats };
        // Long enough, now and then, for a detector that hears no heartbeats.
        let long =
            if self.chance.random_bool(0.5) { self.span(100, 2_000) } else { self.span(2_000, 12_000) };
        self.put(at, Action::Gray { node: node.clone(), waits });
        self.put(at + long, Action::GrayEnd { node });
    }

    fn disk(&mut self, kind: Kind, at: u64) {
        let node = self.node();
        let nth = self.small(1, 20);
        let of_disk = |node: &String, fault| Action::Disk { node: node.clone(), fault };
        if kind == Kind::SlowDisk {
            let long = self.span(100, 3_000);
            let (begin, end) = if self.chance.random_bool(0.5) {
                (DiskFault::Stall, DiskFault::Release)
            } else {
                (DiskFault::Slow { ms: self.span(5, 200) }, DiskFault::Slow { ms: 0 })
            };
            self.put(at, of_disk(&node, begin));
            self.put(at + long, of_disk(&node, end));
            return;
        }
        if kind == Kind::Misread {
            let long = self.span(200, 6_000);
            let (evict, fail, short) = (self.small(0, 1_000), self.small(0, 15), self.small(0, 15));
            let misread = DiskFault::Misread { evict, fail, short, seed: self.chance.random() };
            self.put(at, of_disk(&node, misread));
            self.put(at + long, of_disk(&node, DiskFault::ReadWell));
            return;
        }
        match self.span(0, 3) {
            0 => {
                self.put(at, of_disk(&node, DiskFault::SyncError { nth }));
                // What it gave up is missed once the power is gone.
                if self.chance.random_bool(0.5) {
                    let later = self.span(100, 3_000);
                    self.put(at + later, Action::PowerLoss { node: node.clone(), back_after_ms: None });
                    self.put(at + later + 50, Action::Start { node });
                }
            }
            1 => self.put(at, of_disk(&node, DiskFault::ReadError { nth })),
            2 => self.put(at, of_disk(&node, DiskFault::ShortRead { nth })),
            _ => {
                let long = self.span(50, 2_000);
                self.put(at, of_disk(&node, DiskFault::Full));
                self.put(at + long, of_disk(&node, DiskFault::NotFull));
            }
        }
    }

    /// Other sizes of the store and other times from the next start on, which comes soon.
    fn reconfigure(&mut self, at: u64) {
        let node = self.node();
        let mut at = at;
        for _ in 0..self.span(1, 3) {
            let one = |this: &mut Draw, of: &[u64]| {
                let drawn = *of.choose(&mut this.chance).expect("a choice of something");
                this.chance.random_bool(0.6).then_some(drawn)
            };
            let store = NodeSettings {
                segment_bytes: one(self, &[4 * 1024, 8 * 1024, 64 * 1024, 1024 * 1024]),
                snapshot_bytes_min: one(self, &[4 * 1024, 32 * 1024, 1024 * 1024]),
                dead_percent_max: one(self, &[5, 30, 101]).and_then(|percent| u32::try_from(percent).ok()),
                cache_bytes: one(self, &[0, 4 * 1024, 1024 * 1024]),
                hint_after_ms: one(self, &[20, 100, 300]),
                phi_tenths: one(self, &[20, 38, 80]).and_then(|tenths| u32::try_from(tenths).ok()),
                anti_entropy_ms: one(self, &[1_000, 5_000, 10_000]),
                handoff_ms: one(self, &[100, 1_000, 5_000]),
            };
            self.put(at, Action::Reconfigure { node: node.clone(), store });
            let down = self.span(20, 800);
            let stop = if self.chance.random_bool(0.5) {
                Action::Stop { node: node.clone() }
            } else {
                Action::PowerLoss { node: node.clone(), back_after_ms: None }
            };
            self.put(at, stop);
            self.put(at + down, Action::Start { node: node.clone() });
            at += down + self.span(200, 3_000);
        }
    }

    fn burst(&mut self, at: u64) {
        let (kind, clients, operations, value_len_max) = match self.span(0, 3) {
            0 => (LoadKind::Crowd, self.small(5, 25), self.small(3, 15), 400),
            1 => (LoadKind::HotKey, self.small(3, 12), self.small(5, 20), 100),
            2 => (LoadKind::HugeValues, self.small(1, 3), self.small(2, 6), self.small(20_000, 300_000)),
            _ => (LoadKind::Siblings, self.small(2, 8), self.small(5, 20), 50),
        };
        self.put(at, Action::Burst { load: Load { kind, clients, operations, value_len_max } });
    }

    /// All links are worse for a while.
    fn weather(&mut self, at: u64, settings: &RunSettings) {
        let (loss_percent, longest, long) =
            (self.small(0, 20), self.span(1_000, 80_000), self.span(100, 5_000));
        let latency_us = (self.span(100, longest), longest);
        self.put(at, Action::Weather { weather: Weather { loss_percent, latency_us } });
        let calm = Weather { loss_percent: 0, latency_us: settings.delay_us };
        self.put(at + long, Action::Weather { weather: calm });
    }

    fn clocks(&mut self, at: u64, settings: &RunSettings) {
        let (node, max) = (self.node(), settings.skew_ms_max);
        let skew = |this: &mut Draw| if max == 0 { 0 } else { this.chance.random_range(-max..=max) };
        // A jump, or a clock that goes to and fro.
        let turns = if self.chance.random_bool(0.5) { 1 } else { self.span(5, 30) };
        let why = if turns == 1 { Why::Jump } else { Why::Strobe };
        for turn in 0..turns {
            let ms = skew(self);
            self.put_as(at + turn * 50, why, Action::WallSkew { node: node.clone(), ms });
        }
        let ppm = self.chance.random_range(-50_000..=50_000);
        self.put(at, Action::MonoDrift { node, ppm });
    }
}
