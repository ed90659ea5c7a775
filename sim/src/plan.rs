//! The fault plan of a run, as data: what happens to which host, and when.
//!
//! ```json
//! { "version": 1, "seed": 7, "settings": { "nodes": 3, … },
//!   "entries": [ { "at_ms": 812, "do": "power-loss", "node": "n2" },
//!                { "at_ms": 1430, "do": "start", "node": "n2" },
//!                { "when": { "node": "n2", "event": "disk-sync", "count": 17 }, "do": "kill", "node": "n2" } ] }
//! ```
//! A plan is drawn from the seed before the run and draws nothing while it runs: editing one entry moves no other, and a
//! late entry leaves everything before it as it was. An entry fires at a time since the beginning of the run, or at an
//! event: the nth time from the beginning of the run that the trace has `event` of `node`. `why` names what the entry is a part
//! of, for the counts alone.
//!
//! What a plan says and nobody would heed is refused: an unknown field, node, event or name.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::net::fault::{Lasting, NetFault};
use crate::scenario::Scenario;
use crate::settings::{NodeSettings, RunSettings};
use crate::tcp::Weather;

mod destruction;
mod draw;
mod load;
mod names;
mod strict;
mod why;

pub use destruction::Destruction;
pub use load::{Load, LoadKind};
pub use names::names;
pub use why::Why;

/// The version of the form.
pub const VERSION: u32 = 1;

/// Settings and faults of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// Where all other chance comes from: delays, disks, clients.
    pub seed: u64,
    /// Everything but the faults.
    pub settings: RunSettings,
    /// What happens, in any order.
    pub entries: Vec<Entry>,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the beginning of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// Or an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Trigger>,
    /// What it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// What.
    #[serde(flatten)]
    pub action: Action,
}

/// The nth event of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// The host.
    pub node: String,
    /// The kind, as it stands in the trace; a point of node code is `point:` and its name.
    pub event: String,
    /// Which one, from 1.
    pub count: u64,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    /// The host loses its power; what was not synced is as chance has it.
    PowerLoss {
        /// The host.
        node: String,
        /// The operator starts the node again after so long; otherwise when another entry says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        back_after_ms: Option<u64>,
    },
    /// All nodes lose their power at one moment.
    PowerLossOfAll,
    /// The process ends as by `kill -9`.
    Kill {
        /// The host.
        node: String,
    },
    /// The operator stops the node: it drains and closes.
    Stop {
        /// The host.
        node: String,
    },
    /// The operator starts the node, if it is not running.
    Start {
        /// The host.
        node: String,
    },
    /// The host's tasks stand still; its kernel goes on.
    Pause {
        /// The host.
        node: String,
    },
    /// They go on.
    Resume {
        /// The host.
        node: String,
    },
    /// Whole requests of one class wait at the host before its node looks at them, in all connections; those of the other class
    /// pass: a gray failure.
    Gray {
        /// The host.
        node: String,
        /// Which wait.
        waits: GrayClass,
    },
    /// The oldest such failure of the host ends.
    GrayEnd {
        /// The host.
        node: String,
    },
    /// Something on the network.
    Net {
        /// What.
        fault: NetFault,
    },
    /// All links are like this, where the product's `TcpNet` runs on madsim's network.
    Weather {
        /// How.
        weather: Weather,
    },
    /// All links are as they were.
    HealNet,
    /// Something on a host's disk.
    Disk {
        /// The host.
        node: String,
        /// What.
        fault: DiskFault,
    },
    /// A disk loses what it has synced, or part of it. At most W-1 distinct disks between convergences.
    Destroy {
        /// The host.
        node: String,
        /// How.
        #[serde(flatten)]
        how: Destruction,
        /// Where the power goes with it: the operator starts the node again after so long.
        #[serde(default)]
        back_after_ms: u64,
    },
    /// The operator changes the node's settings; they hold from its next start on.
    Reconfigure {
        /// The host.
        node: String,
        /// What of it.
        store: NodeSettings,
    },
    /// More clients for a moment, which do nothing but this.
    Burst {
        /// What.
        #[serde(flatten)]
        load: Load,
    },
    /// What the disk is now is kept, for a rollback.
    KeepImage {
        /// The host.
        node: String,
    },
    /// An operator takes a node out of the cluster, which may be down.
    Remove {
        /// The host.
        node: String,
    },
    /// An operator adds a node that is no member, with the disk that it has.
    Add {
        /// The host.
        node: String,
    },
    /// Everything is made whole, and every key read from all replicas until each acknowledged write is on W disks again.
    Converge,
    /// The host's wall clock is off by so much from now on.
    WallSkew {
        /// The host.
        node: String,
        /// Milliseconds ahead; negative: behind.
        ms: i64,
    },
    /// The host's monotonic clock runs so much too fast from now on.
    MonoDrift {
        /// The host.
        node: String,
        /// Parts per million; negative: slow.
        ppm: i32,
    },
}

impl Action {
    /// Its name in summaries.
    pub fn name(&self) -> &'static str {
        match self {
            Action::PowerLoss { .. } => "power-loss",
            Action::PowerLossOfAll => "power-loss-of-all",
            Action::Kill { .. } => "kill",
            Action::Stop { .. } => "stop",
            Action::Start { .. } => "start",
            Action::Pause { .. } => "pause",
            Action::Resume { .. } => "resume",
            Action::Gray { waits: GrayClass::Data, .. } => "gray-data-waits",
            Action::Gray { waits: GrayClass::Heartbeats, .. } => "gray-heartbeats-wait",
            Action::GrayEnd { .. } => "gray-end",
            Action::Net { .. } => "net",
            Action::Weather { .. } => "weather",
            Action::HealNet => "heal-net",
            Action::Disk { fault, .. } => fault.name(),
            Action::Destroy { how, .. } => how.name(),
            Action::Reconfigure { .. } => "reconfigure",
            Action::Burst { load } => load.name(),
            Action::KeepImage { .. } => "keep-image",
            Action::Remove { .. } => "remove",
            Action::Add { .. } => "add",
            Action::Converge => "converge",
            Action::WallSkew { .. } => "wall-skew",
            Action::MonoDrift { .. } => "mono-drift",
        }
    }
}

/// The two classes of requests that a gray failure tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrayClass {
    /// Everything that is no heartbeat.
    Data,
    /// Gossip and pings.
    Heartbeats,
}

/// What may happen to a disk. `nth` counts operations of that kind from then on, over the whole disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DiskFault {
    /// The nth sync fails; what it was for is not written, and later syncs succeed.
    SyncError {
        /// Which one.
        nth: u32,
    },
    /// The nth read fails once.
    ReadError {
        /// Which one.
        nth: u32,
    },
    /// The nth read comes back short.
    ShortRead {
        /// Which one.
        nth: u32,
    },
    /// Every operation takes so much longer; 0 ends it.
    Slow {
        /// By how much.
        ms: u64,
    },
    /// Nothing is answered until the release.
    Stall,
    /// Ends a stall.
    Release,
    /// Writes fail for want of space.
    Full,
    /// There is space again.
    NotFull,
    /// From now on reads go wrong by chance, drawn from a stream of its own: pages are evicted before, or the read fails, or comes
    /// back short.
    Misread {
        /// Reads of a thousand before which the file's clean pages are evicted.
        evict: u32,
        /// Reads of a thousand that fail.
        fail: u32,
        /// Reads of a thousand that come back short.
        short: u32,
        /// Of the stream.
        seed: u64,
    },
    /// They do no longer.
    ReadWell,
}

impl DiskFault {
    /// Its name in summaries.
    pub fn name(&self) -> &'static str {
        match self {
            DiskFault::SyncError { .. } => "sync-error",
            DiskFault::ReadError { .. } => "read-error",
            DiskFault::ShortRead { .. } => "short-read",
            DiskFault::Slow { .. } => "slow-disk",
            DiskFault::Stall => "stall",
            DiskFault::Release => "release",
            DiskFault::Full => "disk-full",
            DiskFault::NotFull => "disk-not-full",
            DiskFault::Misread { .. } => "misread",
            DiskFault::ReadWell => "read-well",
        }
    }
}

/// The host of a node.
pub fn node_name(number: u64) -> String {
    format!("n{number}")
}

/// The host of a client.
pub fn client_name(number: u32) -> String {
    format!("c{number}")
}

/// When clients begin: the cluster has started by then.
pub const LOAD_AT: Duration = Duration::from_millis(200);

impl Plan {
    /// The plan of a seed of the default swarm.
    pub fn draw(run_seed: u64) -> Plan {
        Plan::of(run_seed, RunSettings::draw(run_seed))
    }

    /// The plan of a seed of a scenario.
    pub fn draw_for(scenario: Scenario, run_seed: u64) -> Plan {
        let settings = RunSettings::draw_for(scenario, run_seed);
        let entries = draw::entries(scenario, run_seed, &settings);
        Plan { version: VERSION, seed: run_seed, settings, entries }
    }

    /// The faults of a seed for a cluster with these settings.
    pub fn of(run_seed: u64, settings: RunSettings) -> Plan {
        let scenario = if settings.destroys { Scenario::Destroy } else { Scenario::Swarm };
        let entries = draw::entries(scenario, run_seed, &settings);
        Plan { version: VERSION, seed: run_seed, settings, entries }
    }

    /// Why this plan cannot be carried out, if it cannot.
    ///
    /// # Errors
    /// With the reason, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {}: this build knows version {VERSION}", self.version));
        }
        self.settings.check()?;
        for (number, entry) in self.entries.iter().enumerate() {
            if entry.at_ms.is_some() == entry.when.is_some() {
                return Err(format!("entry {number}: give either `at_ms` or `when`"));
            }
            self.check_names(entry).map_err(|why| format!("entry {number}: {why}"))?;
            let on_simnet_alone = match &entry.action {
                Action::Net { fault: NetFault::Cut { .. } | NetFault::Heal { .. } } => false,
                Action::Net { fault: NetFault::Mend { what, .. } } => *what != Lasting::Cut,
                Action::Net { .. } => true,
                Action::Weather { .. } => false,
                _ => continue,
            };
            if self.settings.tcp && on_simnet_alone {
                return Err(format!(
                    "entry {number}: where `tcp` is set the network knows cuts, heals and weather"
                ));
            }
            if !self.settings.tcp && matches!(entry.action, Action::Weather { .. }) {
                return Err(format!("entry {number}: there is weather only where `tcp` is set"));
            }
        }
        Ok(())
    }

    /// The last moment at which an entry fires by time.
    pub fn end(&self) -> Duration {
        Duration::from_millis(self.entries.iter().filter_map(|entry| entry.at_ms).max().unwrap_or(0))
    }

    /// How many entries there are of each kind of action.
    pub fn actions(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for entry in &self.entries {
            *counts.entry(entry.action.name()).or_default() += 1;
        }
        counts
    }
}
