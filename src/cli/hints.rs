//! `ringdove hints`: what the nodes keep for others, and why it still waits.

use std::time::Duration;

use serde_json::json;

use super::look::{StatusArgs, ask_all};
use super::units::{self, grouped, span, table};
use super::{DONE, NOT_NOW, complain, say};
use crate::client::ClientError;
use crate::net::message::{HintWhy, HintsReply};
use crate::types::NodeId;

pub(super) async fn run(args: StatusArgs) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

/// Why, for people, and as a word for programs.
fn words(why: &HintWhy) -> (String, &'static str) {
    match why {
        HintWhy::New => ("came since the last round".to_owned(), "new"),
        HintWhy::Moving => ("on their way".to_owned(), "moving"),
        HintWhy::Down => ("the target is not reachable".to_owned(), "down"),
        HintWhy::Failed(reason) => (format!("the last round ended early: {reason}"), "failed"),
        HintWhy::Damaged(count) => (
            format!(
                "{} cannot be read any more, and go once all primaries of their keys were asked",
                grouped(*count)
            ),
            "damaged",
        ),
    }
}

async fn try_run(args: StatusArgs) -> Result<u8, u8> {
    let asked: Vec<(NodeId, Result<HintsReply, ClientError>)> =
        ask_all(&args, |client, addr, patience| async move { client.hints(&addr, Some(patience)).await })
            .await?;
    let silent = asked.iter().filter(|(_, hints)| hints.is_err()).count();
    let told = || asked.iter().filter_map(|(node, hints)| Some((node, hints.as_ref().ok()?)));
    let total: u64 = told().flat_map(|(_, hints)| &hints.targets).map(|hints| hints.count).sum();
    if args.json {
        let nodes: Vec<_> = asked
            .iter()
            .map(|(node, hints)| match hints {
                Err(error) => json!({ "node": node.to_string(), "message": error.to_string() }),
                Ok(told) => {
                    let targets = told.targets.iter().map(|hints| {
                        let (message, why) = words(&hints.why);
                        json!({
                            "target": hints.target.to_string(),
                            "count": hints.count,
                            "bytes": hints.bytes,
                            "age_ms": hints.age_ms,
                            "overdue": hints.age_ms >= told.age_warn_ms,
                            "why": why,
                            "message": message,
                        })
                    });
                    json!({
                        "node": node.to_string(),
                        "guests_max": told.guests_max,
                        "targets": targets.collect::<Vec<_>>(),
                    })
                }
            })
            .collect();
        say(&json!({ "total": total, "nodes": nodes }).to_string());
    } else if total == 0 {
        say("nothing is kept for others");
    } else {
        let rows: Vec<Vec<String>> = told()
            .flat_map(|(node, told)| told.targets.iter().map(move |hints| (node, told.age_warn_ms, hints)))
            .map(|(node, age_warn_ms, hints)| {
                let overdue = if hints.age_ms >= age_warn_ms { " (overdue)" } else { "" };
                vec![
                    node.to_string(),
                    hints.target.to_string(),
                    grouped(hints.count),
                    units::bytes(hints.bytes),
                    format!("{}{overdue}", span(Duration::from_millis(hints.age_ms))),
                    words(&hints.why).0,
                ]
            })
            .collect();
        say(&table(&["NODE", "KEEPS FOR", ">RECORDS", ">BYTES", ">SINCE", "WHY"], &rows));
        say(&format!("{} records in all", grouped(total)));
    }
    for (node, hints) in &asked {
        if let Err(error) = hints {
            complain(&format!("{node}: {error}"));
        }
    }
    if silent > 0 {
        complain(&format!("{silent} of {} nodes do not answer", asked.len()));
        return Ok(NOT_NOW);
    }
    Ok(DONE)
}
