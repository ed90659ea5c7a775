//! Kinds of runs: what a seed's settings and faults are drawn for.
//!
//! The default swarm is where seeds belong that say nothing else. The others exist because what they do would spoil the
//! swarm's checks (a disk that is destroyed takes what it alone held), needs another world (the real `TcpNet`), or is about
//! one thing that has to happen many times to be worth anything.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a plan is drawn for. The plan itself then says all: playing it needs no scenario.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// All faults that the product survives, on `SimNet`.
    #[default]
    Swarm,
    /// The product's own `TcpNet` on madsim's network, with that one's faults.
    Tcp,
    /// Disks that lose what they have synced, at most W-1 between convergences.
    Destroy,
    /// Nodes away for ten times the grace of deletions and more, and back.
    Away,
    /// Messages between nodes held past rounds of reaping, and then delivered.
    Held,
    /// Directories restored from backups older than rounds of reaping.
    Backup,
    /// Every disk wiped, the next when the last has refilled.
    Wiped,
    /// Five fallbacks, and rolling restarts under writes that overwrite nothing.
    Rolling,
    /// Nodes removed from the cluster, and added again.
    Members,
    /// The swarm's faults on nodes with the product's default intervals, which must converge within 60 s.
    Defaults,
}

impl Scenario {
    /// All of them, in the order in which help names them.
    pub const ALL: [Scenario; 10] = [
        Scenario::Swarm,
        Scenario::Tcp,
        Scenario::Destroy,
        Scenario::Away,
        Scenario::Held,
        Scenario::Backup,
        Scenario::Wiped,
        Scenario::Rolling,
        Scenario::Members,
        Scenario::Defaults,
    ];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Swarm => "swarm",
            Scenario::Tcp => "tcp",
            Scenario::Destroy => "destroy",
            Scenario::Away => "away",
            Scenario::Held => "held",
            Scenario::Backup => "backup",
            Scenario::Wiped => "wiped",
            Scenario::Rolling => "rolling",
            Scenario::Members => "members",
            Scenario::Defaults => "defaults",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Scenario, String> {
        let known = || Scenario::ALL.map(Scenario::name).join(", ");
        let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
        found.ok_or_else(|| format!("there is no scenario of this name; there are: {}", known()))
    }
}
