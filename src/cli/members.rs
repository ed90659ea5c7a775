//! `ringdove layout add | remove`: shows which layout would follow when members come or go, and puts it in force with `--yes`.
//!
//! Whichever node is asked makes the layout and goes by it; the others learn it from each other within seconds. While data moves both
//! layouts are active, reads and writes go on, and `ringdove layout` shows the older one.

use std::fmt::Write;

use serde_json::json;

use super::connect::{Connect, failed};
use super::init::{parse_id, parse_member};
use super::look::name_of;
use super::{DONE, say};
use crate::client::{Client, ClientError};
use crate::dynamo::layout::{Layout, Member};
use crate::net::message::{ChangeMembers, ChangeMembersReply};
use crate::types::NodeId;

/// What is to change.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Change {
    /// Add members: nodes that have never run, or that were removed.
    Add(Add),
    /// Remove members. One that runs gives away what it holds first; of one that is gone for good, what it alone held is lost.
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    #[command(flatten)]
    how: How,
    /// Who comes, as ID=HOST:PORT (the client port; peers 100 above), and with slashes /peer=HOST:PORT /zone=NAME
    /// /capacity=NUMBER.
    #[arg(required = true, value_parser = parse_member, value_name = "ID=HOST:PORT")]
    members: Vec<Member>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    #[command(flatten)]
    how: How,
    /// Who goes.
    #[arg(required = true, value_parser = parse_id, value_name = "ID")]
    members: Vec<NodeId>,
}

#[derive(Debug, clap::Args)]
struct How {
    #[command(flatten)]
    connect: Connect,
    /// Put it in force. Without it, it is only shown what would be.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(change: Change) -> u8 {
    let (how, add, remove) = match change {
        Change::Add(Add { how, members }) => (how, members, Vec::new()),
        Change::Remove(Remove { how, members }) => (how, Vec::new(), members),
    };
    let asked = ChangeMembers { add, remove, apply: how.yes };
    try_run(&how, &asked).await.unwrap_or_else(|code| code)
}

async fn try_run(how: &How, asked: &ChangeMembers) -> Result<u8, u8> {
    let client = how.connect.client_with(|config| config.tries = 1)?;
    let before = client.layouts().await.map_err(|error| failed(&error, how.json))?[0].clone();
    let reply = ask(&client, how, asked).await.map_err(|error| failed(&error, how.json))?;
    if how.json {
        say(&json(asked, &reply).to_string());
    } else {
        say(&words(asked, &before, &reply));
    }
    Ok(DONE)
}

/// Asks one node after the other, until one answers.
async fn ask(client: &Client, how: &How, asked: &ChangeMembers) -> Result<ChangeMembersReply, ClientError> {
    let mut last = None;
    for addr in client.members().into_values() {
        match client.change_members(&addr, asked, Some(how.connect.timeout)).await {
            // It did not happen there; another node may.
            Err(error @ ClientError::Unreachable(_)) => last = Some(error),
            answer => return answer,
        }
    }
    Err(last.unwrap_or_else(|| ClientError::Unreachable("the layout names no member".to_owned())))
}

fn json(asked: &ChangeMembers, reply: &ChangeMembersReply) -> serde_json::Value {
    let members = reply.layout.members().iter();
    json!({
        "applied": reply.applied,
        "version": reply.layout.reference().version,
        "moves": reply.moves,
        "added": asked.add.iter().map(|member| member.id.to_string()).collect::<Vec<_>>(),
        "removed": asked.remove.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "members": members.map(|member| member.id.to_string()).collect::<Vec<_>>(),
    })
}

fn words(asked: &ChangeMembers, before: &Layout, reply: &ChangeMembersReply) -> String {
    let layout = &reply.layout;
    let replicas = u64::from(layout.n()) * u64::from(layout.q().get());
    let mut told = format!(
        "layout {} {} {}: {} instead of {} members, {} of {replicas} replicas of partitions move\n",
        name_of(layout.reference()),
        if reply.applied { "follows" } else { "would follow" },
        name_of(before.reference()),
        layout.members().len(),
        before.members().len(),
        reply.moves,
    );
    if !reply.applied {
        told.push_str("nothing has changed: --yes puts it in force");
        return told;
    }
    told.push_str(
        "the other nodes learn it from each other; `ringdove layout` shows the older one until all has moved",
    );
    for member in &asked.add {
        let (id, join) = (member.id, &before.members()[0].client_addr);
        let _ = write!(
            told,
            "\nif {id} has no data directory yet, on its machine:\n  ringdove init --dir DIR --join {join} --node-id {}",
            id.0
        );
        let _ = write!(told, " && ringdove serve --dir DIR");
    }
    for id in &asked.remove {
        let _ = write!(told, "\nlet {id} run until its `ringdove status` shows no data keys, then stop it");
    }
    told
}
