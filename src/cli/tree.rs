//! `ringdove tree`: what each primary of a partition holds, by the roots of their Merkle trees.
//!
//! A root is one hash over all keys of the partition and their versions, tombstones included, so equal roots are equal copies.
//! They are not read at one moment: while a partition is written to, what differs may be on its way.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::connect::{Connect, failed, usage};
use super::look::STATUS_PATIENCE;
use super::units::{grouped, table};
use super::{DONE, NOT_NOW, complain, say};
use crate::client::ClientError;
use crate::dynamo::layout::LayoutHistory;
use crate::dynamo::preference::PreferenceList;
use crate::net::message::TreeView;
use crate::types::{NodeId, PartitionId};

/// Partitions that are shown unless all are asked for.
const SHOWN_MAX: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
    /// The partition; when left out, all are counted and those that differ are shown.
    partition: Option<u32>,
    /// Show every partition.
    #[arg(long, conflicts_with = "partition")]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What the primaries of a partition hold.
struct Compared {
    partition: PartitionId,
    trees: Vec<(NodeId, Option<TreeView>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Equal,
    Differ,
    /// Not every primary told; those that did hold the same.
    Unknown,
}

impl Compared {
    fn verdict(&self) -> Verdict {
        let mut told = self.trees.iter().filter_map(|(_, tree)| Some(tree.as_ref()?.root));
        let first = told.next();
        if told.any(|root| Some(root) != first) {
            return Verdict::Differ;
        }
        if self.trees.iter().any(|(_, tree)| tree.is_none()) { Verdict::Unknown } else { Verdict::Equal }
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Equal => "equal",
            Verdict::Differ => "differ",
            Verdict::Unknown => "not known",
        }
    }
}

pub(super) async fn run(args: Args) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

type Trees = BTreeMap<PartitionId, TreeView>;

async fn try_run(args: Args) -> Result<u8, u8> {
    let client = args.connect.client_with(|config| config.tries = 1)?;
    let layouts = client.layouts().await.map_err(|error| failed(&error, args.json))?;
    let history = LayoutHistory::try_from(layouts).map_err(|error| usage(&error.to_string()))?;
    let q = history.current().q();
    let asked = args.partition.map(|number| super::repair::partition(number, q.get())).transpose()?;
    let patience = Some(STATUS_PATIENCE.min(args.connect.timeout));
    let ask = |(node, addr): (NodeId, String)| {
        let client = client.clone();
        async move { (node, client.trees(&addr, asked, patience).await) }
    };
    let holds =
        |node| asked.is_none_or(|partition| PreferenceList::new(&history, partition).is_primary(node));
    let members: Vec<(NodeId, String)> =
        client.members().into_iter().filter(|(node, _)| holds(*node)).collect();
    let count_asked = members.len();
    let answers = join_all(members.into_iter().map(ask)).await;
    let mut told: BTreeMap<NodeId, Trees> = BTreeMap::new();
    let mut silent: Vec<(NodeId, ClientError)> = Vec::new();
    for (node, answer) in answers {
        match answer {
            Ok(reply) => {
                let trees = reply.trees.into_iter().map(|tree| (tree.partition, tree));
                told.insert(node, trees.collect());
            }
            Err(error) => silent.push((node, error)),
        }
    }
    let mut of = |partition: PartitionId| {
        let primaries = PreferenceList::new(&history, partition);
        let mut tree = |node| (node, told.get_mut(&node).and_then(|trees| trees.remove(&partition)));
        Compared { partition, trees: primaries.primaries().map(&mut tree).collect() }
    };
    let compared: Vec<Compared> = match asked {
        Some(partition) => vec![of(partition)],
        None => q.partitions().map(of).collect(),
    };
    let is_shown =
        |compared: &&Compared| args.all || args.partition.is_some() || compared.verdict() == Verdict::Differ;
    let shown: Vec<&Compared> = compared.iter().filter(is_shown).collect();
    let count = |verdict| compared.iter().filter(|compared| compared.verdict() == verdict).count();
    let counts = [Verdict::Equal, Verdict::Differ, Verdict::Unknown].map(|verdict| (verdict, count(verdict)));
    if args.json {
        let mut object = json!({
            "partitions": compared.len(),
            "shown": shown.iter().map(|compared| compared_json(compared)).collect::<Vec<_>>(),
            "silent": silent.iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>(),
        });
        for (verdict, count) in counts {
            object[verdict.word().replace(' ', "_")] = json!(count);
        }
        say(&object.to_string());
    } else {
        show(&compared, &shown, counts, &args);
    }
    for (node, error) in &silent {
        complain(&format!("{node}: {error}"));
    }
    if !silent.is_empty() {
        complain(&format!("{} of {count_asked} nodes do not answer", silent.len()));
        return Ok(NOT_NOW);
    }
    Ok(DONE)
}

fn show(compared: &[Compared], shown: &[&Compared], counts: [(Verdict, usize); 3], args: &Args) {
    if args.partition.is_none() {
        let all = compared.len();
        let words = counts.into_iter().filter(|(_, count)| *count > 0).map(|(verdict, count)| {
            let many = if count == all { "all".to_owned() } else { grouped(count as u64) };
            let places = if verdict == Verdict::Equal { " on all their primaries" } else { "" };
            format!("{many} {}{places}", verdict.word())
        });
        say(&format!("{} partitions: {}", grouped(all as u64), words.collect::<Vec<_>>().join(", ")));
        let mut refilling: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (node, tree) in compared.iter().flat_map(|compared| &compared.trees) {
            if tree.as_ref().is_some_and(|tree| !tree.refilled) {
                *refilling.entry(*node).or_default() += 1;
            }
        }
        for (node, count) in refilling {
            say(&format!("{node} refills {} of its partitions", grouped(count)));
        }
    }
    let most = if args.all { usize::MAX } else { SHOWN_MAX };
    let rows: Vec<Vec<String>> = shown.iter().take(most).flat_map(|compared| rows(compared)).collect();
    if !rows.is_empty() {
        let heading = [
            "PARTITION",
            "PRIMARIES",
            "HELD BY",
            "ROOT",
            ">KEYS",
            ">LEAVES",
            "REFILLED",
            ">FENCE",
            ">COMMITTED",
        ];
        say(&table(&heading, &rows));
    }
    if shown.len() > most {
        say(&format!("{} more differ: --all shows them", grouped((shown.len() - most) as u64)));
    }
    if shown.iter().any(|compared| compared.verdict() == Verdict::Differ) {
        say(
            "what differs is made equal within anti_entropy_interval, or by `ringdove repair` now; while keys are being",
        );
        say("written it may also just be on its way");
    }
}

fn rows(compared: &Compared) -> impl Iterator<Item = Vec<String>> {
    compared.trees.iter().enumerate().map(|(place, (node, tree))| {
        // Said once for all its rows.
        let (partition, verdict) = match place {
            0 => (compared.partition.0.to_string(), compared.verdict().word().to_owned()),
            _ => (String::new(), String::new()),
        };
        let mut row = vec![partition, verdict, node.to_string()];
        match tree {
            None => row.push("no answer".to_owned()),
            Some(tree) => row.extend([
                format!("{:016x}", tree.root),
                grouped(tree.keys),
                grouped(1 << tree.bits.min(63)),
                if tree.refilled { "yes" } else { "no" }.to_owned(),
                grouped(tree.fence),
                grouped(tree.committed),
            ]),
        }
        row
    })
}

fn compared_json(compared: &Compared) -> Value {
    let tree = |(node, tree): &(NodeId, Option<TreeView>)| match tree {
        None => json!({ "node": node.to_string(), "answered": false }),
        Some(tree) => json!({
            "node": node.to_string(),
            "answered": true,
            "root": format!("{:016x}", tree.root),
            "keys": tree.keys,
            "leaves": 1_u64 << tree.bits.min(63),
            "refilled": tree.refilled,
            "fence": tree.fence,
            "committed": tree.committed,
        }),
    };
    json!({
        "partition": compared.partition.0,
        "primaries": compared.trees.iter().map(tree).collect::<Vec<_>>(),
        "verdict": compared.verdict().word(),
    })
}
