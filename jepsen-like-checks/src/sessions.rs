//! What monotonic writes and writes-follow-reads have in common: pairs of writes that a session put in order, and
//! reads that show both.
//!
//! A session orders s before t if t's writer knew s in the way that the guarantee names and said so with the
//! context it passed. A read that returns t, or a write that saw t, must not return s any more. Writes that passed
//! no context are siblings of everything, whoever made them: no order, nothing to judge.

use crate::bits;
use crate::history::{F, History, NONE, Outcome, number};
use crate::pasts::{Key, Options};
use crate::verdict::{Findings, Verdict, Witness};

/// How the writer of t knew s.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knew {
    /// It had written s.
    Writing,
    /// It had read s, and passed that read's context.
    Reading,
}

/// Judges every read against the pairs that sessions made.
pub(crate) fn check(history: &History, options: &Options, knew: Knew, say: &str) -> Verdict {
    let mut findings = Findings::default();
    let mut key = Key::new(history, options);
    let (mut rows, mut returned) = (Vec::new(), Vec::new());
    // Where each process has its set of acknowledged writes of this key.
    let mut place = vec![NONE; history.processes.len()];
    let mut own: Vec<Vec<u64>> = Vec::new();
    for (number_of_key, ops) in history.by_key().iter() {
        if let Err(reason) = key.load(number_of_key, ops) {
            findings.ran_out(reason);
            continue;
        }
        own.clear();
        // A process's place is that of its first write of this key; those of the last key are no longer true.
        for at in &key.writes {
            place[history.ops[*at as usize].process as usize] = NONE;
        }
        for (write, at) in key.writes.iter().enumerate() {
            let op = &history.ops[*at as usize];
            let place = &mut place[op.process as usize];
            if *place == NONE {
                *place = number(own.len());
                own.push(key.none());
            }
            if op.outcome == Outcome::Ok {
                bits::set(&mut own[*place as usize], number(write));
            }
        }
        rows.clear();
        rows.resize(key.writes.len() * key.words, 0);
        let before = |row: &mut [u64], t: u32| {
            let op = key.op(t);
            match knew {
                // A process does one thing at a time: what it began earlier had ended.
                Knew::Writing => {
                    let mine = &own[place[op.process as usize] as usize];
                    for (at, row) in row.iter_mut().enumerate().take(t as usize / 64 + 1) {
                        let earlier = if at == t as usize / 64 { (1 << (t % 64)) - 1 } else { u64::MAX };
                        *row |= key.past(t)[at] & mine[at] & earlier;
                    }
                }
                Knew::Reading => {
                    let Some(context) = history.ops.get(op.after as usize) else { return };
                    let read = matches!(context.f, F::Get | F::Final);
                    if read && context.process == op.process && context.key == op.key {
                        for seen in key.returned(context) {
                            bits::set(row, seen);
                            bits::join(row, key.past(seen));
                        }
                    }
                }
            }
        };
        key.close(&mut rows, |_, _| {}, before);
        for at in &key.reads {
            let read = &history.ops[*at as usize];
            returned.clear();
            returned.extend(key.returned(read));
            for t in &returned {
                let row = &rows[*t as usize * key.words..][..key.words];
                if row.iter().all(|word| *word == 0) {
                    continue;
                }
                findings.judged += 1;
                for s in returned.iter().filter(|s| bits::has(row, **s)) {
                    let (s, t) = (key.writes[*s as usize], key.writes[*t as usize]);
                    findings.violation(read.complete, || Witness {
                        text: format!(
                            "{} returned {} beside {}, {say}",
                            history.say(*at),
                            history.say(s),
                            history.say(t)
                        ),
                        ops: vec![s, t, *at],
                    });
                }
            }
        }
    }
    findings.verdict()
}
