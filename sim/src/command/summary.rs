//! What a person sees of a run or of many: one screen.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sim::report::{Tally, UNKNOWN_PERCENT_MAX};
use sim::settings::RunSettings;

/// Faults and checks that wait for something that the product does not have yet.
const PENDING: &str = "nothing";

/// Probes and faults that only another scenario can bring about: that they did nothing fails no sweep.
pub(crate) const ELSEWHERE: [&str; 13] = [
    "point copies-given-up",
    "a read answered by fewer primaries than asked",
    "point damaged-copy-replaced",
    "point damaged-guest-settled",
    "point incarnation-renewed",
    "point guest-turned-data",
    "disk BitFlip",
    "disk MisdirectedWrite",
    "disk Rollback",
    "disk SyncLie",
    "disk Truncate",
    "disk Wipe",
    "a damaged directory was given up and the member replaced",
];

fn cluster(settings: &RunSettings) -> String {
    format!(
        "{} nodes, N={} R={} W={}{}, Q={}, {}, {} clients × {} operations on {} keys",
        settings.nodes,
        settings.replicas,
        settings.r,
        settings.w,
        if settings.strict { " strict" } else { "" },
        settings.partitions,
        if settings.interval_ms == 0 {
            "sync".to_owned()
        } else {
            format!("interval:{}ms", settings.interval_ms)
        },
        settings.clients,
        settings.operations,
        settings.keys
    )
}

/// Words with a space between, in lines of at most this many characters, each begun with a name's room.
fn lines(title: &str, words: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    let mut line = format!("{title:<12}");
    let mut empty = true;
    for word in words {
        if !empty && line.chars().count() + 2 + word.chars().count() > 118 {
            let _ = writeln!(text, "{line},");
            line = " ".repeat(12);
            empty = true;
        }
        if !empty {
            line.push_str(", ");
        }
        line.push_str(&word);
        empty = false;
    }
    if empty {
        line.push_str("none");
    }
    text + &line + "\n"
}

fn counts(counts: &BTreeMap<String, u64>) -> impl Iterator<Item = String> {
    counts.iter().map(|(name, count)| format!("{name} {count}"))
}

/// The screen for one run, or for many (`settings` none).
pub(crate) fn screen(settings: Option<&RunSettings>, tally: &Tally) -> String {
    let mut text = String::new();
    if let Some(settings) = settings {
        let _ = writeln!(text, "{:<12}{}", "cluster", cluster(settings));
    }
    let _ = writeln!(
        text,
        "{:<12}{:.1} s simulated, {} events, {} starts of nodes",
        "run",
        tally.simulated.as_secs_f64(),
        tally.events,
        tally.starts
    );
    let faults = tally.faults.iter().filter(|(_, [fired, effective])| fired + effective > 0);
    text += &lines("faults", faults.map(|(name, [fired, effective])| format!("{name} {fired}/{effective}")));
    text += &lines("operations", counts(&tally.operations));
    let (writes, unknown, cut_off) = tally.unknown();
    let percent = |count: u64| count as f64 * 100.0 / writes.saturating_sub(cut_off).max(1) as f64;
    text += &lines(
        "unknown",
        [format!(
            "{unknown} of {} writes ({:.1}%, at most {UNKNOWN_PERCENT_MAX}%), and {cut_off} of clients that were cut off",
            writes - cut_off,
            percent(unknown)
        )],
    );
    let pending = |name: &String| ELSEWHERE.contains(&name.as_str());
    let (hit, missed): (Vec<_>, Vec<_>) = tally
        .probes
        .iter()
        .filter(|(name, hits)| **hits > 0 || !pending(name))
        .partition(|(_, hits)| **hits > 0);
    text += &lines("probes", hit.iter().map(|(name, hits)| format!("{name} {hits}")));
    if settings.is_none() {
        text += &lines("never hit", missed.iter().map(|(name, _)| (*name).clone()));
    }
    text += &lines("judged", counts(&tally.judged));
    let waiting = tally.probes.iter().filter(|(name, hits)| **hits == 0 && pending(name));
    text += &lines("waiting", waiting.map(|(name, _)| (*name).clone()));
    text += &lines("pending", [PENDING.to_owned()]);
    text
}
