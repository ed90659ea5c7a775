//! A history as one page for a browser: operations as bars by process, the witnesses marked.
//!
//! The page is self-contained: no font, script or style from elsewhere. It draws on a canvas, so that ten thousand
//! operations are no more elements than one; what is not in view is skipped. Wheel and `+`/`-` zoom, dragging and the
//! arrows move, a click on a witness shows its operations. Time runs in events, not seconds: real time is order.

use std::fmt::Write;

use serde_json::json;

use crate::history::{F, History, NONE, Op, Outcome, flag};
use crate::verdict::Verdict;

/// The page for a history and what was found in it.
pub fn html(history: &History, title: &str, verdicts: &[(&str, Verdict)]) -> String {
    let mut rows: Vec<u32> = history.ops.iter().map(|op| op.process).collect();
    rows.sort_unstable();
    rows.dedup();
    let ops: Vec<_> = history
        .ops
        .iter()
        .map(|op| {
            let row = rows.binary_search(&op.process).unwrap_or(0);
            let complete = if op.complete == NONE { None } else { Some(op.complete) };
            let outcome = match op.outcome {
                Outcome::Ok => 0,
                Outcome::Fail => 1,
                Outcome::Info => 2,
            };
            json!([row, op.invoke, complete, outcome, label(history, op)])
        })
        .collect();
    let witnesses: Vec<_> = verdicts
        .iter()
        .filter_map(|(check, verdict)| match verdict {
            Verdict::Invalid { witness, .. } => {
                Some(json!({ "check": check, "text": witness.text, "ops": witness.ops }))
            }
            _ => None,
        })
        .collect();
    let summary: Vec<_> =
        verdicts.iter().map(|(check, verdict)| json!([check, verdict.word(), verdict.judged()])).collect();
    let names: Vec<_> = rows.iter().map(|process| history.processes.name(*process)).collect();
    let marks: Vec<_> = history
        .marks
        .iter()
        .map(|mark| json!([mark.position, format!("{} {}", mark.f, mark.value)]))
        .collect();
    let data = json!({
        "title": title, "events": history.events, "processes": names, "ops": ops, "witnesses": witnesses,
        "verdicts": summary, "marks": marks,
    });
    // Within a script element only this sequence could end it early.
    let data = data.to_string().replace("</", "<\\/");
    PAGE.replace("/*DATA*/", &data)
}

fn label(history: &History, op: &Op) -> String {
    let mut label = if op.f == F::Other { history.other.name(op.value2) } else { op.f.name() }.to_owned();
    if history.keys.name(op.key) != "nil" {
        let _ = write!(label, " {}", history.keys.name(op.key));
    }
    if op.id != NONE {
        let _ = write!(label, " {}", history.ids.name(op.id));
    }
    if op.has(flag::SIBLINGS) {
        let ids: Vec<&str> =
            history.returned(op).iter().take(8).map(|entry| history.ids.name(entry.id())).collect();
        let _ = write!(label, " → {{{}}}", ids.join(", "));
    } else if op.value != NONE {
        let value = history.values.name(op.value);
        let short: String = value.chars().take(60).collect();
        let _ = write!(label, " {short}{}", if short.len() < value.len() { "…" } else { "" });
        if op.f == F::Cas && op.value2 != NONE {
            let _ = write!(label, " → {}", history.values.name(op.value2));
        }
    }
    label
}

const PAGE: &str = include_str!("timeline.html");
