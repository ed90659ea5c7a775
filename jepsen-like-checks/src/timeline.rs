//! A history as one page for a browser: operations as bars by process, the witnesses marked.
//!
//! The page is self-contained and asks the network for nothing: no font, script or style from elsewhere, and its own
//! policy forbids them. It draws on a canvas, so that ten thousand operations are no more elements than one; what is
//! not in view is skipped. A strip above shows the whole history, the part in view and where the witnesses are. A
//! click on a witness shows its operations; in a history of more than two hundred operations only those on its keys
//! are shown until asked for more. Time runs in events, not seconds: real time is order.
//!
//! **Lanes.** Each process has one. Clients that crash are replaced, so a long history has more processes than it ever
//! had clients at once; past `LANES_MAX` a process that begins takes the lane of one whose last operation has no
//! known outcome and whose client is therefore gone. That operation's bar ends there; a line below goes on, since the
//! operation itself may still take effect.

use std::collections::VecDeque;
use std::fmt::Write;

use serde_json::json;

use crate::history::{F, History, NONE, Op, Outcome, flag};
use crate::verdict::Verdict;

/// Up to so many processes, each has a lane of its own.
const LANES_MAX: usize = 40;

/// The page for a history and what was found in it.
pub fn html(history: &History, title: &str, verdicts: &[(&str, Verdict)]) -> String {
    let lanes = lanes(history);
    let ops: Vec<_> = history
        .ops
        .iter()
        .map(|op| {
            let complete = if op.complete == NONE { None } else { Some(op.complete) };
            let outcome = match op.outcome {
                Outcome::Ok => 0,
                Outcome::Fail => 1,
                Outcome::Info => 2,
            };
            let lane = lanes[op.process as usize];
            json!([lane, op.process, op.invoke, complete, outcome, op.key, label(history, op)])
        })
        .collect();
    let witnesses: Vec<_> = verdicts
        .iter()
        .filter_map(|(check, verdict)| match verdict {
            Verdict::Invalid { witness, violations, .. } => Some(
                json!({ "check": check, "text": witness.text, "ops": witness.ops, "more": violations.saturating_sub(1) }),
            ),
            _ => None,
        })
        .collect();
    let summary: Vec<_> =
        verdicts.iter().map(|(check, verdict)| json!([check, verdict.word(), verdict.judged()])).collect();
    let names = |names: &crate::history::Names| -> Vec<String> {
        (0..names.len()).map(|at| plain(names.name(crate::history::number(at))).to_owned()).collect()
    };
    let marks: Vec<_> = history
        .marks
        .iter()
        .map(|mark| json!([mark.position, format!("{} {}", mark.f, short(&mark.value))]))
        .collect();
    let data = json!({
        "title": title, "events": history.events, "processes": names(&history.processes),
        "keys": names(&history.keys), "ops": ops, "witnesses": witnesses, "verdicts": summary, "marks": marks,
    });
    // Inside strings alone: neither the end of the script element nor the start of a comment can stand in the data.
    let data = data.to_string().replace('<', "\\u003c");
    PAGE.replace("/*DATA*/", &data)
}

/// The lane of each process; [`NONE`] of those without operations.
fn lanes(history: &History) -> Vec<u32> {
    let mut last = vec![NONE; history.processes.len()];
    for (at, op) in history.ops.iter().enumerate() {
        last[op.process as usize] = crate::history::number(at);
    }
    let mut busy: Vec<u32> = (0..crate::history::number(last.len())).collect();
    busy.retain(|process| last[*process as usize] != NONE);
    // By number, as readers look for them; names at the end.
    busy.sort_by_key(|process| {
        let name = history.processes.name(*process);
        (name.parse::<i64>().unwrap_or(i64::MAX), *process)
    });
    let mut lanes = vec![NONE; last.len()];
    if busy.len() <= LANES_MAX {
        for (lane, process) in (0..).zip(busy) {
            lanes[process as usize] = lane;
        }
        return lanes;
    }
    let (mut free, mut next) = (VecDeque::new(), 0);
    for (at, op) in (0..).zip(&history.ops) {
        let lane = &mut lanes[op.process as usize];
        if *lane == NONE {
            *lane = free.pop_front().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
        }
        if op.outcome == Outcome::Info && last[op.process as usize] == at {
            free.push_back(*lane);
        }
    }
    lanes
}

/// A string without its quotes.
fn plain(edn: &str) -> &str {
    edn.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(edn)
}

/// The start of a long text.
fn short(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What tells most comes first: a bar shows the beginning.
fn label(history: &History, op: &Op) -> String {
    let mut label = if op.f == F::Other { history.other.name(op.value2) } else { op.f.name() }.to_owned();
    if op.id != NONE {
        let _ = write!(label, " {}", short(history.ids.name(op.id)));
    }
    if op.has(flag::SIBLINGS) && !op.is_write() {
        let entries = history.returned(op);
        let ids: Vec<String> = entries
            .iter()
            .take(8)
            .map(|entry| {
                let how = match (entry.dead(), entry.hidden()) {
                    (true, _) => " (dead)",
                    (_, true) => " (hidden)",
                    _ => "",
                };
                format!("{}{how}", short(history.ids.name(entry.id())))
            })
            .collect();
        let more = if entries.len() > ids.len() { ", …" } else { "" };
        let _ = write!(label, " → {{{}{more}}}", ids.join(", "));
    } else if op.value != NONE {
        let _ = write!(label, " {}", short(history.values.name(op.value)));
        if op.f == F::Cas && op.value2 != NONE {
            let _ = write!(label, " → {}", short(history.values.name(op.value2)));
        }
    }
    if history.keys.name(op.key) != "nil" {
        let _ = write!(label, " of {}", short(plain(history.keys.name(op.key))));
    }
    label
}

const PAGE: &str = include_str!("timeline.html");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{self, json};

    fn history(lines: &str) -> History {
        formats::read(&mut json::Reader::new(lines.as_bytes())).expect("a sound history")
    }

    /// A put that never ends by each of `clients`, one after the other.
    fn crashes(clients: usize) -> History {
        let mut lines = String::new();
        for client in 0..clients {
            let event = |kind| {
                format!("{{\"type\":\"{kind}\",\"process\":{client},\"f\":\"put\",\"id\":\"w{client}\"}}\n")
            };
            lines.extend([event("invoke"), event("info")]);
        }
        history(&lines)
    }

    #[test]
    fn few_processes_have_a_lane_each() {
        let lanes = lanes(&crashes(LANES_MAX));
        assert!((0..).zip(lanes).all(|(process, lane)| process == lane));
    }

    #[test]
    fn of_many_processes_those_that_crashed_leave_their_lanes_to_others() {
        assert_eq!(lanes(&crashes(LANES_MAX + 1)), vec![0; LANES_MAX + 1]);
    }

    #[test]
    fn nothing_in_a_history_ends_the_script() {
        let history = history(
            "{\"type\":\"invoke\",\"process\":0,\"f\":\"put\",\"id\":\"</script><!--<script>\",\"key\":\"<b>\"}",
        );
        let page = html(&history, "</script>", &[]);
        assert_eq!(page.matches("</script>").count(), 1, "the page's own");
        assert!(!page.contains("<!--") && !page.contains("<b>"));
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        let page = html(&crashes(1), "t", &[]);
        assert!(page.contains("default-src 'none'"));
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
