//! The names under which the faults of a scenario are counted.

use ringdove::io::fault_disk::FaultKind;

use super::Why;
use crate::net::fault;
use crate::scenario::Scenario;

/// Faults of hosts, clocks and load that every plan of the swarm may have.
const OF_HOSTS: [&str; 17] = [
    "power-loss",
    "power-loss-of-all",
    "kill",
    "stop",
    "pause",
    "gray-data-waits",
    "gray-heartbeats-wait",
    "reconfigure",
    "burst",
    "hot-key",
    "huge-values",
    "many-siblings",
    "wall-skew",
    "mono-drift",
    "misread",
    "remove",
    "add",
];

/// Every fault that the seeds of a scenario draw, by the name under which it is counted. A sweep in which one of them never came
/// about, or never did anything, did not test what it seems to. Empty for the scenarios that are about one thing.
pub fn names(scenario: Scenario) -> Vec<String> {
    if scenario != Scenario::Swarm {
        return Vec::new();
    }
    let of_disks = FaultKind::ALL.map(|kind| format!("disk {kind:?}"));
    let others = OF_HOSTS.into_iter().chain(fault::NAMES).chain(Why::ALL.map(Why::name));
    others.map(str::to_owned).chain(of_disks).collect()
}
