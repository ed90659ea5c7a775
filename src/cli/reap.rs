//! `ringdove reap`: how far the nodes are with forgetting what was deleted or has expired, and who is against it.

use std::time::Duration;

use serde_json::json;

use super::look::{StatusArgs, ask_all};
use super::units::{grouped, span, table};
use super::{DONE, NOT_NOW, complain, say};
use crate::client::ClientError;
use crate::dynamo::reaping::{Against, KeyVote};
use crate::net::message::{ReapRound, ReapingReply};
use crate::types::NodeId;

pub(super) async fn run(args: StatusArgs) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

/// Why a member did not agree, for people, and as a word for programs.
fn words(why: Against) -> (&'static str, &'static str) {
    match why {
        Against::Silent => ("did not answer", "silent"),
        Against::Fence => ("took part in another round meanwhile", "fence"),
        Against::Key(KeyVote::Yes) => ("agreed", "yes"),
        Against::Key(KeyVote::Differs) => ("holds another version", "differs"),
        Against::Key(KeyVote::Guest) => ("keeps a copy for another node", "guest"),
        Against::Key(KeyVote::TooSoon) => ("by its clock it is too soon", "too-soon"),
        Against::Key(KeyVote::Unreadable) => ("cannot read its copy", "unreadable"),
    }
}

fn against_json(against: &[(NodeId, Against, u64)]) -> Vec<serde_json::Value> {
    let told = |(node, why, keys): &(NodeId, Against, u64)| {
        let (message, why) = words(*why);
        json!({ "node": node.to_string(), "why": why, "message": message, "keys": keys })
    };
    against.iter().map(told).collect()
}

fn against_words(against: &[(NodeId, Against, u64)]) -> String {
    let told = |(node, why, keys): &(NodeId, Against, u64)| {
        let keys = if *keys == 1 { "1 key".to_owned() } else { format!("{} keys", grouped(*keys)) };
        format!("{node} {} ({keys})", words(*why).0)
    };
    against.iter().map(told).collect::<Vec<_>>().join("; ")
}

fn reply_json(node: NodeId, reply: &ReapingReply) -> serde_json::Value {
    let last = reply.last.iter().map(|round| {
        json!({
            "partition": round.partition.0,
            "fence": round.fence,
            "ago_ms": round.ago_ms,
            "keys": round.keys,
            "agreed": round.agreed,
            "against": against_json(&round.against),
        })
    });
    json!({
        "node": node.to_string(),
        "reapable": reply.reapable,
        "grace_ms": reply.grace_ms,
        "away": reply.away.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rounds": reply.rounds,
        "keys": reply.keys,
        "agreed": reply.agreed,
        "against": against_json(&reply.against),
        "last": last.collect::<Vec<_>>(),
    })
}

/// Rounds shown to people, of all nodes together.
const SHOWN: usize = 10;

async fn try_run(args: StatusArgs) -> Result<u8, u8> {
    let asked: Vec<(NodeId, Result<ReapingReply, ClientError>)> =
        ask_all(&args, |client, addr, patience| async move { client.reaping(&addr, Some(patience)).await })
            .await?;
    let silent = asked.iter().filter(|(_, reply)| reply.is_err()).count();
    let told = || asked.iter().filter_map(|(node, reply)| Some((*node, reply.as_ref().ok()?)));
    if args.json {
        let nodes = asked.iter().map(|(node, reply)| match reply {
            Err(error) => json!({ "node": node.to_string(), "message": error.to_string() }),
            Ok(reply) => reply_json(*node, reply),
        });
        say(&json!({ "nodes": nodes.collect::<Vec<_>>() }).to_string());
    } else {
        show(&told().collect::<Vec<_>>());
    }
    for (node, reply) in &asked {
        if let Err(error) = reply {
            complain(&format!("{node}: {error}"));
        }
    }
    if silent > 0 {
        complain(&format!(
            "{silent} of {} nodes do not answer: nothing is reaped until they are back",
            asked.len()
        ));
        return Ok(NOT_NOW);
    }
    Ok(DONE)
}

fn show(told: &[(NodeId, &ReapingReply)]) {
    let rows: Vec<Vec<String>> = told
        .iter()
        .map(|(node, reply)| {
            let away: Vec<String> = reply.away.iter().map(ToString::to_string).collect();
            vec![
                node.to_string(),
                grouped(reply.reapable),
                grouped(reply.rounds),
                grouped(reply.keys),
                grouped(reply.agreed),
                if away.is_empty() { "nobody".to_owned() } else { away.join(" ") },
            ]
        })
        .collect();
    say(&table(&["NODE", ">MAY GO ONE DAY", ">ROUNDS LED", ">KEYS", ">AGREED", "WAITS FOR"], &rows));
    let mut last: Vec<(NodeId, &ReapRound)> =
        told.iter().flat_map(|(node, reply)| reply.last.iter().map(|round| (*node, round))).collect();
    last.sort_by_key(|(_, round)| round.ago_ms);
    if last.is_empty() {
        let grace = told.iter().map(|(_, reply)| reply.grace_ms).max().unwrap_or_default();
        let grace = span(Duration::from_millis(grace));
        return say(&format!("no round yet: nothing was deleted, or has expired, longer than {grace} ago"));
    }
    let rows: Vec<Vec<String>> = last
        .iter()
        .take(SHOWN)
        .map(|(node, round)| {
            vec![
                span(Duration::from_millis(round.ago_ms)),
                node.to_string(),
                round.partition.to_string(),
                grouped(round.fence),
                grouped(round.keys.into()),
                grouped(round.agreed.into()),
                against_words(&round.against),
            ]
        })
        .collect();
    say("");
    say(&table(&[">AGO", "LED BY", "PARTITION", ">FENCE", ">KEYS", ">AGREED", "AGAINST"], &rows));
}
