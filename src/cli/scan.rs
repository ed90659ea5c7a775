//! `ringdove scan`: the keys of a range, in order.

use std::collections::BTreeSet;
use std::io::Write;

use serde_json::json;

use super::connect::{Connect, context_json, failed};
use super::kv::{put_bytes, version_json};
use super::range::Range;
use super::units::{self, date, grouped, preview, table};
use super::{DONE, NOT_NOW, complain};
use crate::client::{Scan, ScanItem};
use crate::net::message::Order;
use crate::types::PartitionId;

/// Characters of a value that a table shows.
const PREVIEW: usize = 48;
/// Characters of a key that a table shows.
const KEY_PREVIEW: usize = 64;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    range: Range,
    /// From larger to smaller keys.
    #[arg(long)]
    reverse: bool,
    /// Most keys.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// All keys, however many there are.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Print the keys alone, one a line.
    #[arg(long)]
    keys_only: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    try_run(args).await.unwrap_or_else(|code| code)
}

async fn try_run(args: Args) -> Result<u8, u8> {
    let order = if args.reverse { Order::Descending } else { Order::Ascending };
    let scan = args.range.scan()?;
    let mut left = if args.all { u64::MAX } else { args.limit };
    let limit = u32::try_from(left).unwrap_or(u32::MAX).min(scan.limit);
    let mut pages = args.connect.client()?.scan(Scan { order, limit, keys_only: args.keys_only, ..scan });
    let mut missing: BTreeSet<PartitionId> = BTreeSet::new();
    let (mut shown, mut more) = (0_u64, false);
    let mut last = None;
    let mut out = std::io::stdout();
    while left > 0 {
        let Some(page) = pages.next_page().await.map_err(|error| failed(&error, args.json))? else {
            break;
        };
        missing.extend(page.missing);
        let count = u64::try_from(page.items.len()).unwrap_or(u64::MAX);
        more = page.more || count > left;
        let items: Vec<ScanItem> =
            page.items.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)).collect();
        let text = printed(&items, &args, shown == 0);
        if !text.is_empty() && writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
            // Nobody reads on (`| head`): nothing to fail about.
            return Ok(DONE);
        }
        shown += u64::try_from(items.len()).unwrap_or(u64::MAX);
        left = left.saturating_sub(count);
        if let Some(item) = items.last() {
            last = Some(item.key.clone());
        }
    }
    if !args.json && !args.keys_only {
        let behind = match last.filter(|_| more) {
            Some(key) => format!("; more behind {key}: --after it, or --all"),
            None => String::new(),
        };
        complain(&format!("{} key{}{behind}", grouped(shown), if shown == 1 { "" } else { "s" }));
    }
    if missing.is_empty() {
        return Ok(DONE);
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    complain(&format!("incomplete: {} could not be read and were passed over", names.join(", ")));
    Ok(NOT_NOW)
}

fn printed(items: &[ScanItem], args: &Args, first: bool) -> String {
    if args.json {
        let line = |item: &ScanItem| {
            let mut object = json!({});
            put_bytes(&mut object, "key", item.key.as_bytes());
            if !args.keys_only {
                object["values"] = item.values.iter().map(version_json).collect();
                object["context"] = context_json(&item.context);
            }
            object.to_string()
        };
        return items.iter().map(line).collect::<Vec<_>>().join("\n");
    }
    if args.keys_only {
        let line = |item: &ScanItem| match std::str::from_utf8(item.key.as_bytes()) {
            Ok(text) => units::escaped(text),
            Err(_) => item.key.to_string(),
        };
        return items.iter().map(line).collect::<Vec<_>>().join("\n");
    }
    let mut rows = Vec::new();
    for item in items {
        for (place, version) in item.values.iter().enumerate() {
            // Siblings stand under their key.
            let key = match place {
                0 => preview(item.key.as_bytes(), KEY_PREVIEW),
                _ => "  and".to_owned(),
            };
            let size = units::bytes(u64::try_from(version.value.len()).unwrap_or(u64::MAX));
            rows.push(vec![key, size, date(version.written_at), preview(&version.value, PREVIEW)]);
        }
    }
    let table = table(&["KEY", ">SIZE", "WRITTEN", "VALUE"], &rows);
    if first || rows.is_empty() {
        return if rows.is_empty() { String::new() } else { table };
    }
    // The heading stands once.
    table.split_once('\n').map_or(table.clone(), |(_, rows)| rows.to_owned())
}
