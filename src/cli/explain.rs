//! `ringdove explain`: all there is of a key on every member, and in words why it is so.

use std::collections::BTreeMap;
use std::time::Duration;

use super::connect::{Connect, KeyArg, failed};
use super::units::{date, grouped, span, table};
use super::{DONE, NOT_NOW, complain, say};
use crate::gateway::{explain_json, state_word};
use crate::net::message::{CopyView, ExplainReply, HeldCopy, MemberView, PeerState};
use crate::types::{ActorId, Namespace, NodeId};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    key: KeyArg,
    /// Keyspace.
    #[arg(long, default_value_t = 0)]
    namespace: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

async fn try_run(args: Args) -> Result<u8, u8> {
    let (key, namespace) = (args.key.key()?, Namespace(args.namespace));
    let client = args.connect.client()?;
    let told = client.explain(namespace, &key, None).await.map_err(|error| failed(&error, args.json))?;
    if args.json {
        say(&explain_json(namespace, &key, &told).to_string());
    } else {
        say(&format!("{key}, in partition {}, as {} found it\n", told.partition.0, told.asked));
        for words in &told.words {
            say(&format!("* {words}"));
        }
        say(&format!("\n{}", members(&told)));
        for (version, held) in versions(&told) {
            say(&format!("\n{}", version_text(&told, version, &held)));
        }
    }
    let silent = told.members.iter().filter(|member| member.told.is_err()).count();
    for member in &told.members {
        if let Err(why) = &member.told {
            complain(&format!("{}: {why}", member.node));
        }
    }
    if silent > 0 {
        complain(&format!("{silent} of {} nodes do not answer", told.members.len()));
        return Ok(NOT_NOW);
    }
    Ok(DONE)
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn members(told: &ExplainReply) -> String {
    let has_zones = told.members.iter().any(|member| !member.zone.is_empty());
    let row = |member: &MemberView| {
        let role = if member.is_primary { "primary" } else { "fallback" };
        let state = match member.state {
            PeerState::Up => "up".to_owned(),
            state if member.heard_ms_ago == u64::MAX => state_word(state).to_owned(),
            state => {
                let heard = span(Duration::from_millis(member.heard_ms_ago));
                format!("{}, heard {heard} ago", state_word(state))
            }
        };
        let mut row = vec![member.node.to_string(), role.to_owned()];
        if has_zones {
            row.push(if member.zone.is_empty() { "-" } else { &member.zone }.to_owned());
        }
        row.push(state);
        match &member.told {
            Err(_) => row.push("no answer".to_owned()),
            Ok(reply) => {
                let copies = [copy(&reply.data, ""), copy(&reply.guest, "guest ")];
                let copies: Vec<String> = copies.into_iter().flatten().collect();
                row.push(if copies.is_empty() { "-".to_owned() } else { copies.join(", ") });
                // A fallback has no tree of the partition.
                if member.is_primary {
                    row.extend([
                        if reply.refilled { "yes" } else { "no" }.to_owned(),
                        grouped(reply.fence),
                        grouped(reply.committed),
                        format!("{} of {}", grouped(reply.leaf.into()), grouped(1 << reply.bits.min(63))),
                        format!("{:016x}", reply.leaf_hash),
                    ]);
                }
            }
        }
        row
    };
    let rows: Vec<Vec<String>> = told.members.iter().map(row).collect();
    let mut heading = vec!["NODE", "ROLE"];
    if has_zones {
        heading.push("ZONE");
    }
    heading.extend(["STATE", "COPY", "REFILLED", ">FENCE", ">COMMITTED", "LEAF", "LEAF HASH"]);
    table(&heading, &rows)
}

/// A copy in a few words; none when there is none.
fn copy(copy: &CopyView, kind: &str) -> Option<String> {
    match copy {
        CopyView::Absent => None,
        CopyView::Unreadable(_) => Some(format!("{kind}damaged")),
        CopyView::Held(held) => {
            let what = match held.siblings_len {
                1 => String::new(),
                many => format!(" ({many} siblings)"),
            };
            let kept = match (held.owed_to.as_slice(), kind.is_empty()) {
                ([], _) => String::new(),
                (nodes, true) => format!(", {} lacks it", names(nodes)),
                (nodes, false) => format!(" for {}", names(nodes)),
            };
            Some(format!("{kind}{:016x}{what}{kept}", held.version_hash))
        }
    }
}

/// Every version once, with its holders, in the order of the members.
fn versions(told: &ExplainReply) -> Vec<(&HeldCopy, Vec<String>)> {
    let mut places: BTreeMap<u64, usize> = BTreeMap::new();
    let mut versions: Vec<(&HeldCopy, Vec<String>)> = Vec::new();
    for member in &told.members {
        let Ok(reply) = &member.told else { continue };
        for (copy, kind) in [(&reply.data, ""), (&reply.guest, " (guest)")] {
            let CopyView::Held(held) = copy else { continue };
            let place = *places.entry(held.version_hash).or_insert(versions.len());
            if place == versions.len() {
                versions.push((held, Vec::new()));
            }
            versions[place].1.push(format!("{}{kind}", member.node));
        }
    }
    versions
}

fn version_text(told: &ExplainReply, version: &HeldCopy, holders: &[String]) -> String {
    let actor =
        |actor: ActorId, counter: u64| format!("{:08x}.{}:{counter}", actor.incarnation.0 >> 32, actor.epoch);
    let writer = |actor| told.writer_of(actor).map_or("?".to_owned(), |node| node.to_string());
    let rows: Vec<Vec<String>> = version
        .siblings
        .iter()
        .map(|sibling| {
            let expires = sibling.expires_at.map_or("never".to_owned(), |at| match at <= told.now {
                true => format!("{} (has)", date(at)),
                false => date(at),
            });
            vec![
                actor(sibling.dot.actor, sibling.dot.counter),
                writer(sibling.dot.actor),
                sibling.write_id.to_string(),
                sibling.value_len.map_or("tombstone".to_owned(), |len| format!("{} B", grouped(len))),
                date(sibling.written_at),
                expires,
            ]
        })
        .collect();
    let entries = version.context.iter().map(|(id, counter)| actor(*id, *counter));
    let mut context = entries.collect::<Vec<_>>().join(" ");
    let more = |len: u32, told: usize| (len as usize).saturating_sub(told);
    let unsaid = more(version.context_len, version.context.len());
    if unsaid > 0 {
        context.push_str(&format!(" and {} more", grouped(unsaid as u64)));
    }
    let mut text = format!("version {:016x}, on {}\n", version.version_hash, holders.join(", "));
    text.push_str(&table(&["DOT", "BY", "WRITE ID", ">SIZE", "WRITTEN", "EXPIRES"], &rows));
    let unsaid = more(version.siblings_len, version.siblings.len());
    if unsaid > 0 {
        text.push_str(&format!("\nand {} more", grouped(unsaid as u64)));
    }
    text.push_str(&format!("\nhas seen {context}"));
    text
}
