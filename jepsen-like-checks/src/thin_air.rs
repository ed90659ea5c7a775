//! Thin air: a read returns only what somebody had begun to write.
//!
//! Definition. No returned id was invoked after the read completed, belongs to a failed write, to a write of
//! another key, or to none.
//! Precondition: none. Judged: pairs (read, returned id).
//! Source: the weakest condition on any register; G1a of Adya's thesis (1999) for the failed ones.
//! Cost: linear in what was returned.

use crate::history::{History, NONE, Op, Outcome};
use crate::pasts::Options;
use crate::verdict::{Findings, Verdict, Witness};

/// Judges every id that a read returned.
pub fn check(history: &History, _: &Options) -> Verdict {
    let mut findings = Findings::default();
    for (at, op) in history.ops.iter().enumerate().filter(|(_, op)| op.is_sibling_read()) {
        judge(history, crate::history::number(at), op, &mut findings);
    }
    findings.verdict()
}

/// Judges one read.
pub(crate) fn judge(history: &History, at: u32, read: &Op, findings: &mut Findings) {
    for entry in history.returned(read) {
        findings.judged += 1;
        let id = entry.id();
        let writer = history.writer(id);
        let write = writer.map(|writer| &history.ops[writer as usize]);
        let wrong = match write {
            None => "nobody ever invoked it".to_owned(),
            Some(write) if write.key != read.key => {
                format!("it was written to key {}", history.keys.name(write.key))
            }
            Some(write) if write.outcome == Outcome::Fail => {
                format!("its write failed at index {}", history.index(write.complete))
            }
            Some(write) if write.invoke > read.complete => {
                format!("it was invoked only at index {}", history.index(write.invoke))
            }
            Some(_) => continue,
        };
        findings.violation(read.complete, || Witness {
            text: format!("{} returned {}, and {wrong}", history.say(at), history.ids.name(id)),
            ops: std::iter::once(at).chain(writer).filter(|op| *op != NONE).collect(),
        });
    }
}
