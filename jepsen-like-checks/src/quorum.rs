//! The precondition under which a read must see a write: both asked enough of the same replicas.
//!
//! A write p and a read g meet it if p was acknowledged before g was invoked, both were strict, under the same
//! layout, with the same n known to at least one of them and r + w > n, p was durable before it was acknowledged
//! (`sync`), and no disk was lost between p's invocation and g's end. `final` reads do not count: they have checks
//! of their own.
//!
//! `sweep` finds for each read the puts that meet it with that read and were not seen.

use crate::bits;
use crate::durability::Losses;
use crate::history::{F, History, NONE, Op, Outcome, flag};
use crate::pasts::{Key, Options};
use crate::verdict::Findings;

/// Whether a write and a read meet the precondition.
pub(crate) fn meets(write: &Op, read: &Op, losses: &Losses) -> bool {
    qualifies(write)
        && read.f == F::Get
        && write.ended_before(read.invoke)
        && read.has(flag::STRICT)
        && (write.layout, write.n) == (read.layout, read.n)
        && read.r > 0
        && u16::from(read.r) + u16::from(write.w) > u16::from(read.n)
        && losses.last_disk_before(read.complete).is_none_or(|lost| lost < write.invoke)
}

/// What of the precondition hangs on the write alone.
fn qualifies(write: &Op) -> bool {
    write.outcome == Outcome::Ok
        && write.has(flag::STRICT)
        && write.has(flag::SYNC)
        && write.n > 0
        && write.w > 0
}

/// Puts that a read treats alike.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Class {
    layout: u32,
    n: u8,
    w: u8,
    /// Whose, where only a client's own writes count.
    process: u32,
}

/// Which puts a read must see.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Everybody's.
    All,
    /// Those of the read's own process.
    Own,
}

/// Judges each read of a history against the puts that meet the precondition with it; calls `missed` for each that
/// was neither returned nor is accounted for.
pub(crate) fn sweep(
    history: &History,
    options: &Options,
    of: Of,
    findings: &mut Findings,
    mut missed: impl FnMut(&mut Findings, &Key<'_>, u32, u32),
) {
    let losses = Losses::of(history);
    let mut key = Key::new(history, options);
    let (mut returned, mut reached, mut due) = (Vec::new(), Vec::new(), Vec::new());
    let mut acknowledged: Vec<u32> = Vec::new();
    let mut classes: Vec<(Class, Vec<u64>)> = Vec::new();
    for (number, ops) in history.by_key().iter() {
        if !ops.iter().any(|at| judgeable(&history.ops[*at as usize])) {
            continue;
        }
        if let Err(reason) = key.load(number, ops) {
            findings.ran_out(reason);
            continue;
        }
        acknowledged.clear();
        acknowledged.extend((0..crate::history::number(key.writes.len())).filter(|write| {
            let op = key.op(*write);
            op.f == F::Put && qualifies(op)
        }));
        acknowledged.sort_by_key(|write| key.op(*write).complete);
        classes.clear();
        let mut next = 0;
        for at in &key.reads {
            let read = &history.ops[*at as usize];
            while let Some(write) =
                acknowledged.get(next).filter(|write| key.op(**write).complete < read.invoke)
            {
                let op = key.op(*write);
                let process = if of == Of::Own { op.process } else { NONE };
                let class = Class { layout: op.layout, n: op.n, w: op.w, process };
                let known = classes.iter().position(|(known, _)| *known == class).unwrap_or_else(|| {
                    classes.push((class, key.none()));
                    classes.len() - 1
                });
                bits::set(&mut classes[known].1, *write);
                next += 1;
            }
            if !judgeable(read) {
                continue;
            }
            due.clear();
            due.resize(key.words, 0);
            for (class, acknowledged) in &classes {
                let process = if of == Of::Own { read.process } else { NONE };
                let enough = u16::from(read.r) + u16::from(class.w) > u16::from(read.n);
                if (class.layout, class.n, class.process) == (read.layout, read.n, process) && enough {
                    bits::join(&mut due, acknowledged);
                }
            }
            if let Some(lost) = losses.last_disk_before(read.complete) {
                let safe = key.writes.partition_point(|write| history.ops[*write as usize].invoke < lost);
                due[..safe / 64].fill(0);
                if let Some(word) = due.get_mut(safe / 64) {
                    *word &= u64::MAX << (safe % 64);
                }
            }
            findings.judged += bits::count(&due);
            key.observe(read, &mut returned, &mut reached);
            for (due, reached) in due.iter_mut().zip(&reached) {
                *due &= !reached;
            }
            for write in bits::ones(&due) {
                let clock = history.extra(read).clock;
                if !key.accounted(write, &reached, &returned, read.complete, clock) {
                    missed(findings, &key, write, *at);
                }
            }
        }
    }
}

fn judgeable(read: &Op) -> bool {
    read.f == F::Get && read.is_sibling_read() && read.has(flag::STRICT) && read.r > 0
}
