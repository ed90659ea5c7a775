//! Every fault, check, invariant and probe: what of the product it needs, and in which scenarios a sweep must have met it.
//!
//! A simulator that silently leaves out what the product cannot do yet shows less than it seems to. So each name stands here
//! with the capability that it needs; what is not there is printed as `pending` under every summary. And a fault that never
//! fired, or a check that never judged, shows nothing: a strict sweep of a scenario demands each name that stands here for it,
//! also one that its runs never so much as mentioned.

use ringdove::io::fault_disk::FaultKind;
use ringdove::observe::{POINTS, SITES};

use crate::plan::names;
use crate::probes::PROBES;
use crate::report::Tally;
use crate::scenario::Scenario::{
    self, Away, Backup, Defaults, Destroy, Held, Members, Rolling, Swarm, Tcp, Wiped,
};

/// A mechanism of the product that faults and checks rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Heartbeats, and who is down by them.
    Detector,
    /// Guest records, and their handoff.
    Guests,
    /// Primaries that compare what they hold.
    AntiEntropy,
    /// A partition that knows that it lacks something, and when it has everything again.
    Refill,
    /// All records read from time to time in search of damage.
    Scrub,
    /// Fences, votes, and what goes by them.
    Reaping,
    /// Members that come and go.
    LayoutChange,
}

impl Capability {
    /// All of them.
    pub const ALL: [Capability; 7] = [
        Capability::Detector,
        Capability::Guests,
        Capability::AntiEntropy,
        Capability::Refill,
        Capability::Scrub,
        Capability::Reaping,
        Capability::LayoutChange,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Capability::Detector => "detector",
            Capability::Guests => "guests",
            Capability::AntiEntropy => "anti-entropy",
            Capability::Refill => "refill",
            Capability::Scrub => "scrub",
            Capability::Reaping => "reaping",
            Capability::LayoutChange => "layout change",
        }
    }

    /// Whether the product has it.
    pub fn is_present(self) -> bool {
        match self {
            Capability::Detector
            | Capability::Guests
            | Capability::AntiEntropy
            | Capability::Refill
            | Capability::Scrub
            | Capability::Reaping
            | Capability::LayoutChange => true,
        }
    }
}

/// What a name is the name of, and so which count of a tally it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// Something done to the cluster: must have been effective.
    Fault,
    /// Something judged, over the history or always: must have judged something.
    Check,
    /// Something to be met.
    Probe,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Of what.
    pub sort: Sort,
    /// As it stands in tallies.
    pub name: String,
    /// Without these it shows nothing.
    pub needs: &'static [Capability],
    /// The scenarios in which a strict sweep must meet it.
    pub demanded: &'static [Scenario],
}

const SIM_NET: &[Scenario] = &[Swarm];
const BOTH_NETS: &[Scenario] = &[Swarm, Tcp];
const EVERYWHERE: &[Scenario] = &[Swarm, Tcp, Destroy, Away, Held, Backup, Wiped, Rolling, Members, Defaults];

use Capability::{AntiEntropy, Detector, Guests, LayoutChange, Reaping, Refill, Scrub};

/// Faults but those of the disk, by the names under which they are counted.
const FAULTS: &[(&str, &[Capability], &[Scenario])] = &[
    ("power-loss", &[], EVERYWHERE),
    ("power-loss-of-all", &[], BOTH_NETS),
    ("kill", &[], BOTH_NETS),
    ("stop", &[], EVERYWHERE),
    ("pause", &[Detector], BOTH_NETS),
    ("reconfigure", &[], SIM_NET),
    ("wall-skew", &[], BOTH_NETS),
    ("mono-drift", &[], BOTH_NETS),
    ("cut", &[Detector], EVERYWHERE),
    ("reset", &[], SIM_NET),
    ("half-open", &[Detector], SIM_NET),
    ("loss", &[], SIM_NET),
    ("slow-link", &[], SIM_NET),
    ("bandwidth", &[], SIM_NET),
    ("corrupt", &[], SIM_NET),
    ("reply-lost", &[], SIM_NET),
    ("hold", &[Reaping], &[Swarm, Held]),
    ("large-stall", &[Detector], SIM_NET),
    ("small-stall", &[Detector], SIM_NET),
    ("slow-frames", &[], SIM_NET),
    ("unacknowledged", &[], SIM_NET),
    ("weather", &[], &[Tcp]),
    ("burst", &[], SIM_NET),
    ("hot-key", &[], SIM_NET),
    ("huge-values", &[], SIM_NET),
    ("many-siblings", &[], SIM_NET),
    ("remove", &[LayoutChange], &[Swarm, Members]),
    ("add", &[LayoutChange], &[Swarm, Members]),
    ("converge", &[AntiEntropy], &[Destroy, Backup, Wiped]),
];

/// Checks over the history, and always.
const CHECKS: &[(&str, &[Capability], &[Scenario])] = &[
    ("acknowledgements", &[], EVERYWHERE),
    ("durable records", &[], EVERYWHERE),
    ("copies shown", &[], EVERYWHERE),
    ("dots made", &[], EVERYWHERE),
    ("values", &[], EVERYWHERE),
    ("bounds", &[], EVERYWHERE),
    ("guests that went", &[Guests], &[Swarm, Tcp, Away, Held, Rolling]),
    ("copies let go", &[LayoutChange], &[Members]),
    ("copies reaped", &[Reaping], &[Swarm, Tcp, Away, Held, Backup, Rolling, Members]),
    ("thin-air", &[], EVERYWHERE),
    ("frontier", &[], EVERYWHERE),
    ("durability", &[], EVERYWHERE),
    ("convergence", &[AntiEntropy, Guests, Refill], EVERYWHERE),
    ("resurrection", &[Reaping], EVERYWHERE),
    ("regular", &[Refill], &[Swarm, Tcp, Destroy, Away, Held, Backup, Wiped, Members, Defaults]),
    ("read-your-writes", &[Refill], &[Swarm, Tcp, Destroy, Away, Held, Backup, Wiped, Members, Defaults]),
    ("monotonic-writes", &[], EVERYWHERE),
    ("writes-follow-reads", &[], EVERYWHERE),
    ("set", &[], &[Swarm, Tcp, Destroy, Backup, Wiped]),
    ("set-full", &[], &[Swarm, Tcp, Destroy, Backup, Wiped]),
    ("counter", &[], &[Swarm, Tcp, Destroy, Backup, Wiped]),
];

/// Probes that the swarm cannot hit, or not often enough to be demanded of it.
const NOT_IN_SWARM: &[(&str, &[Scenario])] = &[
    ("point copies-given-up", &[Destroy, Backup]),
    ("point damaged-copy-replaced", &[Destroy]),
    ("a damaged directory was given up and the member replaced", &[]),
    ("point damaged-guest-settled", &[]),
    // Only a second process under a node's id gets ahead of it, and the simulator starts none.
    ("point incarnation-renewed", &[]),
    ("messages over madsim's network", &[Tcp]),
];

/// And those that are demanded of another scenario beside it.
const ALSO_IN: &[(&str, &[Scenario])] = &[
    ("point partition-refilled", &[Swarm, Destroy, Backup, Wiped]),
    ("point record-fenced", &[Swarm, Away, Held]),
    ("point reap-committed", &[Swarm, Tcp, Away, Held, Backup, Rolling, Members]),
    ("point guest-struck", &[Swarm, Tcp, Away, Held, Rolling]),
    ("point layout-retired", &[Swarm, Members]),
    ("point partition-let-go", &[Swarm, Members]),
];

fn disk(kind: FaultKind) -> (&'static [Capability], &'static [Scenario]) {
    match kind {
        FaultKind::Wipe => (&[Refill], &[Destroy, Wiped]),
        FaultKind::Rollback => (&[Refill, Reaping], &[Destroy, Backup]),
        FaultKind::BitFlip => (&[Refill, Scrub], &[Destroy]),
        FaultKind::Truncate | FaultKind::MisdirectedWrite | FaultKind::SyncLie => (&[Refill], &[Destroy]),
        FaultKind::LostWrite | FaultKind::LostName => (&[], BOTH_NETS),
        FaultKind::TornWrite | FaultKind::ReorderedWrite => (&[], SIM_NET),
        FaultKind::SyncError
        | FaultKind::ReadError
        | FaultKind::NoSpace
        | FaultKind::Slow
        | FaultKind::Stall
        | FaultKind::ShortRead => (&[], SIM_NET),
    }
}

fn probe(name: String) -> Row {
    let found = NOT_IN_SWARM.iter().chain(ALSO_IN).find(|(of, _)| *of == name);
    let demanded = found.map_or(SIM_NET, |(_, demanded)| demanded);
    let needs: &[Capability] = match name.as_str() {
        "point guest-sent" | "point guest-struck" | "point handoff-acked" | "point handoff-sent" => &[Guests],
        "point exchange-differs" | "point exchange-repaired" => &[AntiEntropy],
        "point partition-refilled" => &[Refill],
        "point layout-adopted" | "point layout-retired" | "point partition-let-go" => &[LayoutChange],
        "point reap-agreed" | "point reap-committed" | "point reap-voted" | "point vote-raised" => &[Reaping],
        _ => &[],
    };
    Row { sort: Sort::Probe, name, needs, demanded }
}

/// The name under which a kind of the disk's faults is counted.
pub fn disk_name(kind: FaultKind) -> String {
    format!("disk {kind:?}")
}

/// All of them.
pub fn rows() -> Vec<Row> {
    let of = |sort| {
        move |(name, needs, demanded): &(&str, &'static [_], &'static [_])| Row {
            sort,
            name: (*name).to_owned(),
            needs,
            demanded,
        }
    };
    let disks = FaultKind::ALL.map(|kind| {
        let (needs, demanded) = disk(kind);
        Row { sort: Sort::Fault, name: disk_name(kind), needs, demanded }
    });
    let probes = PROBES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(["messages over madsim's network".to_owned()])
        .chain(POINTS.iter().map(|point| format!("point {point}")))
        .chain(SITES.iter().map(|site| format!("site {site}")));
    // What the swarm's seeds draw under other names: demanded of the swarm.
    let named = |name: &String| FAULTS.iter().any(|(of, ..)| of == name) || name.starts_with("disk ");
    let others = names(Swarm).into_iter().filter(|name| !named(name));
    let others = others.map(|name| Row { sort: Sort::Fault, name, needs: &[], demanded: SIM_NET });
    FAULTS
        .iter()
        .map(of(Sort::Fault))
        .chain(others)
        .chain(disks)
        .chain(CHECKS.iter().map(of(Sort::Check)))
        .chain(probes.map(probe))
        .collect()
}

/// What waits for something that the product does not have: the name, and the first capability that is missing.
pub fn pending() -> Vec<(String, Capability)> {
    let missing = |row: Row| {
        let needs = row.needs.iter().copied().find(|needs| !needs.is_present())?;
        Some((row.name, needs))
    };
    rows().into_iter().filter_map(missing).collect()
}

/// What a strict sweep of a scenario had to meet and did not, and what it counted that has no row here; in words.
pub fn unmet(scenario: Scenario, tally: &Tally) -> Vec<String> {
    let rows = rows();
    let count = |row: &Row| match row.sort {
        Sort::Fault => tally.faults.get(&row.name).map_or(0, |[_, effective]| *effective),
        Sort::Check => tally.judged.get(&row.name).copied().unwrap_or(0),
        Sort::Probe => tally.probes.get(&row.name).copied().unwrap_or(0),
    };
    let words = |sort| match sort {
        Sort::Fault => "fault",
        Sort::Check => "check",
        Sort::Probe => "probe",
    };
    let is_pending = |row: &Row| row.needs.iter().any(|needs| !needs.is_present());
    let demanded = rows.iter().filter(|row| row.demanded.contains(&scenario) && !is_pending(row));
    let mut unmet: Vec<String> = demanded
        .filter(|row| count(row) == 0)
        .map(|row| format!("{} {} never did anything", words(row.sort), row.name))
        .collect();
    let counted = (tally.faults.keys().map(|name| (Sort::Fault, name)))
        .chain(tally.judged.keys().map(|name| (Sort::Check, name)))
        .chain(tally.probes.keys().map(|name| (Sort::Probe, name)));
    for (sort, name) in counted {
        if !rows.iter().any(|row| row.sort == sort && row.name == *name) {
            unmet.push(format!("{} {name} has no row in the catalogue", words(sort)));
        }
    }
    unmet
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jepsen_like_checks::checks::NAMES;

    use super::*;
    use crate::plan::{Action, Plan};

    fn full(scenario: Scenario) -> Tally {
        let mut tally = Tally::default();
        for row in rows().into_iter().filter(|row| row.demanded.contains(&scenario)) {
            match row.sort {
                Sort::Fault => tally.fault(&row.name, 1, 1),
                Sort::Check => drop(tally.judged.insert(row.name, 1)),
                Sort::Probe => tally.probe(&row.name, 1),
            }
        }
        tally
    }

    #[test]
    fn every_name_has_one_row() {
        let rows = rows();
        let names: BTreeSet<_> = rows.iter().map(|row| (row.sort, &row.name)).collect();
        assert_eq!(names.len(), rows.len());
        for name in NAMES {
            assert!(names.contains(&(Sort::Check, &name.to_owned())), "{name}");
        }
        let known = |name: &str| names.contains(&(Sort::Fault, &name.to_owned()));
        let ends = ["start", "resume", "heal-net", "keep-image", "gray-end"];
        for scenario in Scenario::ALL {
            for action in (0..150).flat_map(|seed| Plan::draw_for(scenario, seed).entries).map(|e| e.action) {
                let name = match &action {
                    Action::Net { fault } if fault.is_an_end() => continue,
                    Action::Net { fault } => fault.name(),
                    // Counted by the disk itself, under its own names.
                    Action::Disk { .. } | Action::Destroy { .. } => continue,
                    other => other.name(),
                };
                assert!(known(name) || ends.contains(&name), "{name} of {scenario} has no row");
            }
        }
        for (name, _) in NOT_IN_SWARM.iter().chain(ALSO_IN) {
            assert!(rows.iter().any(|row| row.name == *name), "{name} is the name of nothing");
        }
    }

    #[test]
    fn what_never_fired_is_missed_also_where_nobody_mentioned_it() {
        for scenario in Scenario::ALL {
            assert_eq!(unmet(scenario, &full(scenario)), [] as [String; 0], "{scenario}");
        }
        let mut tally = full(Swarm);
        tally.faults.remove("hold");
        tally.faults.insert("reset".to_owned(), [7, 0]);
        tally.judged.remove("regular");
        tally.probe("a new probe", 3);
        let unmet = unmet(Swarm, &tally);
        assert_eq!(unmet.len(), 4, "{unmet:?}");
        for (line, has) in unmet.iter().zip(["fault reset", "fault hold", "check regular", "no row"]) {
            assert!(line.contains(has), "{unmet:?}");
        }
    }

    #[test]
    fn each_destruction_of_disks_is_demanded_of_the_scenario_that_destroys() {
        let unmet = unmet(Destroy, &Tally::default());
        for kind in ["Wipe", "Rollback", "Truncate", "BitFlip", "MisdirectedWrite", "SyncLie"] {
            assert!(unmet.iter().any(|line| line.contains(kind)), "{kind}: {unmet:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_pending() {
        let missing: BTreeSet<_> = Capability::ALL.into_iter().filter(|of| !of.is_present()).collect();
        assert_eq!(pending().is_empty(), missing.is_empty());
    }

    /// The manual shows what stands here.
    #[test]
    fn the_manual_has_the_table_of_capabilities() {
        let manual = include_str!("../../docs/SIMULATION.md");
        for capability in Capability::ALL {
            let of = |sort| {
                let names =
                    rows().into_iter().filter(|row| row.sort == sort && row.needs.contains(&capability));
                let names: Vec<String> = names.map(|row| row.name).collect();
                names.join(", ")
            };
            let present = if capability.is_present() { "yes" } else { "no" };
            let line =
                format!("| {} | {present} | {} | {} |", capability.name(), of(Sort::Fault), of(Sort::Check));
            assert!(manual.contains(&line), "docs/SIMULATION.md lacks this line:\n{line}");
        }
    }
}
