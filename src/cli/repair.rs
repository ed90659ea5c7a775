//! `ringdove repair`: has partitions compared by their primaries now, and waits until they hold the same.
//!
//! ```text
//!   each partition ──▶ its first primary that answers: compare with all others
//!                          some key differed ──▶ once more: what one of them had, the others may have got only now
//!                          none did          ──▶ all of them hold the same
//! ```
//! A primary that has not refilled compares too, whoever else did: it counts as refilled only when it has compared itself.
//!
//! The nodes work at the same time, each at one partition after the other. A comparison that takes longer than `--timeout`
//! is asked for again and goes on where it was, as long as it gets anywhere.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::{self, select_all};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::connect::{Connect, failed, usage};
use super::export::{clock, draw_target};
use super::units::{self, grouped, span, table};
use super::{DONE, NOT_NOW, complain, say};
use crate::client::Client;
use crate::dynamo::layout::LayoutHistory;
use crate::dynamo::preference::PreferenceList;
use crate::net::message::Ended;
use crate::types::{NodeId, PartitionId};

/// Times that a partition is compared until no key differs. More are needed only while it is written to.
const ROUNDS_MAX: u32 = 5;
/// Times in a row that a comparison may run out of time without having moved anything.
const IDLE_MAX: u32 = 3;
/// Times that one partition is asked for, however much moves each time.
const ASKED_MAX: u32 = 1000;
/// Tries of one request, which pass when a node is busy with another repair.
const TRIES: u32 = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
    /// The partition; all of them when left out.
    partition: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Whom a comparison could not be made with, and why. Without a node: what is wrong with the partition itself.
type Failures = BTreeMap<Option<NodeId>, String>;

/// The primaries of a partition with their client ports, in the order to ask.
type Primaries = Vec<(NodeId, String)>;

/// What became of a partition.
#[derive(Default)]
struct Repaired {
    differences: u64,
    bytes: u64,
    failures: Failures,
    /// Keys differed even the last time.
    is_moving: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

async fn try_run(args: Args) -> Result<u8, u8> {
    let client = args.connect.client_with(|config| config.tries = TRIES)?;
    let layouts = client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let history = LayoutHistory::try_from(layouts).map_err(|error| usage(&error.to_string()))?;
    let q = history.current().q();
    let partitions: Vec<PartitionId> = match args.partition {
        Some(number) => vec![partition(number, q.get())?],
        None => q.partitions().collect(),
    };
    let addrs = client.members();
    let unrefilled = unrefilled(&client, &addrs, args.connect.timeout).await;
    let mut groups: BTreeMap<NodeId, Vec<(PartitionId, Primaries)>> = BTreeMap::new();
    for partition in &partitions {
        let list = PreferenceList::new(&history, *partition);
        let primaries: Primaries =
            list.primaries().filter_map(|node| Some((node, addrs.get(&node)?.clone()))).collect();
        let Some((first, _)) = primaries.first() else { continue };
        groups.entry(*first).or_default().push((*partition, primaries));
    }
    let bar = ProgressBar::with_draw_target(Some(partitions.len() as u64), draw_target(args.json));
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos} of {len} partitions, {eta} left  {msg}")
    {
        bar.set_style(style);
    }
    let started = clock();
    let (client, unrefilled, patience) = (&client, &unrefilled, args.connect.timeout);
    let silent: &RefCell<BTreeSet<NodeId>> = &RefCell::default();
    let works = groups.into_values().map(|group| {
        let work = stream::iter(group).then(move |(partition, primaries)| async move {
            (partition, repair(client, partition, primaries, unrefilled, silent, patience).await)
        });
        Box::pin(work)
    });
    let mut works = select_all(works);
    let mut all: BTreeMap<PartitionId, Repaired> = BTreeMap::new();
    let mut differences = 0;
    while let Some((partition, repaired)) = works.next().await {
        differences += repaired.differences;
        all.insert(partition, repaired);
        bar.inc(1);
        bar.set_message(format!("{} differences", grouped(differences)));
    }
    bar.finish_and_clear();
    tell(&all, clock().saturating_sub(started), args.json);
    Ok(if all.values().all(|repaired| repaired.failures.is_empty()) { DONE } else { NOT_NOW })
}

/// Which primaries say that their copy may lack something.
async fn unrefilled(
    client: &Client,
    addrs: &BTreeMap<NodeId, String>,
    patience: Duration,
) -> BTreeSet<(PartitionId, NodeId)> {
    let ask = |(node, addr): (&NodeId, &String)| {
        let (node, addr) = (*node, addr.clone());
        async move { (node, client.trees(&addr, None, Some(patience)).await) }
    };
    let mut unrefilled = BTreeSet::new();
    for (node, reply) in join_all(addrs.iter().map(ask)).await {
        // Who does not answer here does not when it is asked to compare.
        let trees = reply.map(|reply| reply.trees).unwrap_or_default();
        unrefilled.extend(trees.iter().filter(|tree| !tree.refilled).map(|tree| (tree.partition, node)));
    }
    unrefilled
}

/// The partition of this number.
pub(super) fn partition(number: u32, q: u32) -> Result<PartitionId, u8> {
    if number < q {
        return Ok(PartitionId(number));
    }
    Err(usage(&format!("there is no partition {number}: they are numbered 0 to {}", q - 1)))
}

/// Has a partition compared until no key differs.
async fn repair(
    client: &Client,
    partition: PartitionId,
    mut primaries: Primaries,
    unrefilled: &BTreeSet<(PartitionId, NodeId)>,
    silent: &RefCell<BTreeSet<NodeId>>,
    patience: Duration,
) -> Repaired {
    let mut repaired = Repaired::default();
    let must = |node: &NodeId| unrefilled.contains(&(partition, *node));
    // Who did not answer for another partition is asked last.
    primaries.sort_by_key(|(node, _)| (silent.borrow().contains(node), !must(node)));
    let mut settled = false;
    for (node, addr) in primaries {
        if settled && !must(&node) {
            continue;
        }
        let (mut rounds, mut idle) = (0, 0);
        for asked in 1.. {
            let reply = match client.repair(&addr, partition, Some(patience)).await {
                Ok(reply) => reply,
                Err(error) => {
                    repaired.failures.insert(Some(node), error.to_string());
                    silent.borrow_mut().insert(node);
                    break;
                }
            };
            // Whoever could not be asked was compared with all the same, or stands here with a reason.
            repaired.failures.clear();
            let (mut moved, mut late) = (0, Vec::new());
            for compared in reply.compared {
                moved += compared.keys;
                repaired.bytes += compared.bytes;
                match compared.ended {
                    Ended::Done => {}
                    Ended::Late => late.push(compared.other),
                    Ended::Failed(why) => drop(repaired.failures.insert(Some(compared.other), why)),
                }
            }
            repaired.failures.extend(reply.trouble.map(|why| (None, why)));
            repaired.differences += moved;
            idle = if moved > 0 { 0 } else { idle + 1 };
            rounds += u32::from(late.is_empty());
            repaired.is_moving = moved > 0 && rounds == ROUNDS_MAX;
            if late.is_empty() && (moved == 0 || rounds == ROUNDS_MAX) {
                settled = true;
                break;
            }
            if idle == IDLE_MAX || asked == ASKED_MAX {
                let why = "not done in time: give it more with --timeout";
                repaired.failures.extend(late.into_iter().map(|other| (Some(other), why.to_owned())));
                return repaired;
            }
        }
    }
    repaired
}

fn tell(all: &BTreeMap<PartitionId, Repaired>, took: Duration, as_json: bool) {
    let sum = |of: fn(&Repaired) -> u64| all.values().map(of).sum::<u64>();
    let (differences, bytes) = (sum(|repaired| repaired.differences), sum(|repaired| repaired.bytes));
    let moving: Vec<u32> =
        all.iter().filter(|(_, repaired)| repaired.is_moving).map(|(partition, _)| partition.0).collect();
    // What is wrong with many partitions is said once.
    let mut whys: BTreeMap<(Option<NodeId>, &str), Vec<u32>> = BTreeMap::new();
    for (partition, repaired) in all {
        for (node, why) in &repaired.failures {
            whys.entry((*node, why)).or_default().push(partition.0);
        }
    }
    if as_json {
        let failures = whys.iter().map(|((node, why), partitions)| {
            json!({ "node": node.map(|node| node.to_string()), "message": why, "partitions": partitions })
        });
        let told = json!({
            "partitions": all.len(),
            "not_compared": all.values().filter(|repaired| !repaired.failures.is_empty()).count(),
            "differences": differences,
            "bytes": bytes,
            "still_written_to": moving,
            "failures": failures.collect::<Vec<_>>(),
            "seconds": took.as_secs_f64(),
        });
        say(&told.to_string());
        return;
    }
    let partitions = match all.len() {
        1 => "1 partition".to_owned(),
        many => format!("{} partitions", grouped(many as u64)),
    };
    let found = match differences {
        0 => "no key differed".to_owned(),
        1 => format!("1 difference made equal ({})", units::bytes(bytes)),
        many => format!("{} differences made equal ({})", grouped(many), units::bytes(bytes)),
    };
    say(&format!("{partitions} compared in {}: {found}", span(took)));
    if !moving.is_empty() {
        let count = grouped(moving.len() as u64);
        say(&format!("{count} of them differed every time: they are being written to"));
    }
    if !whys.is_empty() {
        let rows: Vec<Vec<String>> = whys
            .iter()
            .map(|((node, why), partitions)| {
                let node = node.map_or("-".to_owned(), |node| node.to_string());
                vec![node, grouped(partitions.len() as u64), some(partitions), (*why).to_owned()]
            })
            .collect();
        say(&table(&["NOT COMPARED WITH", ">PARTITIONS", "WHICH", "WHY"], &rows));
        complain("what could not be compared is compared by itself when that is possible again");
    }
}

/// The first of some numbers.
fn some(numbers: &[u32]) -> String {
    const SHOWN: usize = 6;
    let mut text = numbers.iter().take(SHOWN).map(u32::to_string).collect::<Vec<_>>().join(" ");
    if numbers.len() > SHOWN {
        text.push_str(" …");
    }
    text
}
