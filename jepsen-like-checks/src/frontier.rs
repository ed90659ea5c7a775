//! Frontier: a read returns the causally maximal writes among those that its replicas had seen.
//!
//! Definition, for a read that returned R (values, hidden siblings and tombstones):
//! - (a) [thin air](crate::thin_air);
//! - (b) no s in R lies in past(t) of a t in R: nothing that was overwritten is returned beside what overwrote it;
//! - (c) where the read makes claims (`covers`): every put whose dot is in `covers` is in R, or is accounted for
//!   ([`crate::pasts`]) by the writes whose dots `covers` holds, and by R. Nothing concurrent is dropped;
//! - (d) one dot never names two ids of a key, nor one id two dots.
//!
//! Claims decide what was seen, truth alone justifies an absence. Dots of writes whose outcome is unknown are
//! learned from the reads that returned them. A deletion need not be returned: its tombstone may be reaped; and it
//! counts whether or not `covers` holds its dot, since a context that was cut after reaping no longer does.
//! A failed write is never missed: that it has a dot at all is thin air.
//!
//! Precondition: none; (c) and (d) only where there are claims. Judged: returned ids for (a), ordered pairs of
//! them for (b), pairs (read, covered put) for (c), pairs (id, dot) for (d). Without claims the verdict says so.
//! Source: Preguiça, Baquero, Almeida, Fonte, Gonçalves, dotted version vectors (2010, 2012).
//! Cost: the pasts of each key, and for each read words of W bits for each id and each actor.

use crate::bits;
use crate::history::{F, History, NONE, Op, Outcome, flag, number};
use crate::pasts::{Key, Options};
use crate::thin_air;
use crate::verdict::{Findings, Verdict, Witness};

/// What was judged, in a verdict's company.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// Reads that made claims. If none did, nothing was judged of (c).
    pub claiming_reads: u64,
}

/// Judges every read.
pub fn check(history: &History, options: &Options) -> Report {
    let mut findings = Findings::default();
    let mut claiming_reads = 0;
    let mut key = Key::new(history, options);
    let mut claims = Claims::default();
    let (mut returned, mut reached, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (number, ops) in history.by_key().iter() {
        if let Err(reason) = key.load(number, ops) {
            findings.ran_out(reason);
            continue;
        }
        claims.learn(&key, ops, &mut findings);
        for at in &key.reads {
            let read = &history.ops[*at as usize];
            thin_air::judge(history, *at, read, &mut findings);
            key.observe(read, &mut returned, &mut reached);
            overwritten(&key, *at, read, &returned, &mut findings);
            if read.covers == NONE {
                continue;
            }
            claiming_reads += 1;
            claims.evaluate(&key, read.covers);
            missing.clear();
            for (word, puts) in claims.held.iter().zip(&claims.puts) {
                missing.push(word & puts);
            }
            findings.judged += bits::count(&missing);
            bits::join(&mut reached, &claims.overwritten);
            for ((missing, returned), reached) in missing.iter_mut().zip(&returned).zip(&reached) {
                *missing &= !(returned | reached);
            }
            for write in bits::ones(&missing) {
                let clock = history.extra(read).clock;
                if !key.accounted(write, &reached, &claims.held, read.complete, clock) {
                    findings.violation(read.complete, || dropped(&key, *at, write));
                }
            }
        }
    }
    Report { verdict: findings.verdict(), claiming_reads }
}

/// Condition (b).
fn overwritten(key: &Key<'_>, at: u32, read: &Op, returned: &[u64], findings: &mut Findings) {
    let members = bits::count(returned);
    findings.judged += members * members.saturating_sub(1);
    for t in bits::ones(returned) {
        for s in bits::ones(returned).filter(|s| bits::has(key.past(t), *s)) {
            findings.violation(read.complete, || {
                let (s, t) = (key.writes[s as usize], key.writes[t as usize]);
                let history = key.history;
                Witness {
                    text: format!(
                        "{} returned {} beside {}, whose writer had seen it",
                        history.say(at),
                        history.say(s),
                        history.say(t)
                    ),
                    ops: vec![s, t, at],
                }
            });
        }
    }
}

fn dropped(key: &Key<'_>, at: u32, write: u32) -> Witness {
    let history = key.history;
    let write = key.writes[write as usize];
    Witness {
        text: format!(
            "{} claims to have seen {} and did not return it; no write that saw it is among those it returned \
             or claims, nor any deletion",
            history.say(at),
            history.say(write)
        ),
        ops: vec![write, at],
    }
}

/// What a key's dots tell about its contexts.
#[derive(Default)]
struct Claims {
    /// (actor, counter, id, who said it).
    said: Vec<(u32, u64, u32, u32)>,
    /// (actor, counter, number of the write), by actor and counter.
    dots: Vec<(u32, u64, u32)>,
    /// For each dot: the writes up to it of its actor, and what they had seen.
    prefixes: Vec<u64>,
    /// Puts that did not fail.
    puts: Vec<u64>,
    /// The context that was evaluated last, and what it holds and what those had seen.
    context: u32,
    held: Vec<u64>,
    overwritten: Vec<u64>,
}

impl Claims {
    /// Learns the dots of a key and judges (d).
    fn learn(&mut self, key: &Key<'_>, ops: &[u32], findings: &mut Findings) {
        let history = key.history;
        self.context = NONE;
        self.said.clear();
        let mut last_list = NONE;
        for at in ops {
            let op = &history.ops[*at as usize];
            if op.is_write()
                && let Some((actor, counter)) = history.dot(op.dot)
            {
                self.said.push((actor, counter, op.id, *at));
            }
            if op.has(flag::SIBLINGS) && op.outcome == Outcome::Ok && op.list != last_list {
                last_list = op.list;
                for entry in history.returned(op) {
                    if let Some((actor, counter)) = history.dot(entry.dot) {
                        self.said.push((actor, counter, entry.id(), *at));
                    }
                }
            }
        }
        // One dot, two ids.
        self.said.sort_unstable();
        self.said.dedup_by_key(|said| (said.0, said.1, said.2));
        findings.judged += self.said.len() as u64;
        let name = |actor: u32, counter: u64| format!("({}, {counter})", history.actors.name(actor));
        for pair in self.said.windows(2) {
            let [(actor, counter, one, by), (actor2, counter2, two, by2)] = [pair[0], pair[1]];
            if (actor, counter) == (actor2, counter2) {
                findings.violation(last_of(history, by, by2), || Witness {
                    text: format!(
                        "dot {} names {} by {} and {} by {}",
                        name(actor, counter),
                        history.ids.name(one),
                        history.say(by),
                        history.ids.name(two),
                        history.say(by2)
                    ),
                    ops: vec![by, by2],
                });
            }
        }
        self.dots.clear();
        for (actor, counter, id, _) in &self.said {
            let write = key.number(*id).filter(|write| key.op(*write).outcome != Outcome::Fail);
            self.dots.extend(write.map(|write| (*actor, *counter, write)));
        }
        // One id, two dots.
        self.said.sort_unstable_by_key(|said| (said.2, said.0, said.1));
        for pair in self.said.windows(2) {
            let [(actor, counter, id, by), (actor2, counter2, id2, by2)] = [pair[0], pair[1]];
            if id == id2 {
                findings.violation(last_of(history, by, by2), || Witness {
                    text: format!(
                        "{} has dot {} by {} and dot {} by {}",
                        history.ids.name(id),
                        name(actor, counter),
                        history.say(by),
                        name(actor2, counter2),
                        history.say(by2)
                    ),
                    ops: vec![by, by2],
                });
            }
        }
        self.puts.clear();
        self.puts.resize(key.words, 0);
        for write in 0..number(key.writes.len()) {
            let op = key.op(write);
            if op.f == F::Put && op.outcome != Outcome::Fail {
                bits::set(&mut self.puts, write);
            }
        }
        self.prefixes.clear();
        for at in 0..self.dots.len() {
            let (actor, _, write) = self.dots[at];
            let row = self.prefixes.len();
            if at > 0 && self.dots[at - 1].0 == actor {
                self.prefixes.extend_from_within(row - 2 * key.words..);
            } else {
                self.prefixes.resize(row + 2 * key.words, 0);
            }
            let (held, overwritten) = self.prefixes[row..].split_at_mut(key.words);
            bits::set(held, write);
            bits::join(overwritten, key.past(write));
        }
    }

    /// Finds what a context holds.
    fn evaluate(&mut self, key: &Key<'_>, context: u32) {
        if self.context == context {
            return;
        }
        self.context = context;
        for bits in [&mut self.held, &mut self.overwritten] {
            bits.clear();
            bits.resize(key.words, 0);
        }
        for (actor, counter) in key.history.contexts.get(context) {
            let end = self.dots.partition_point(|dot| (dot.0, dot.1) <= (*actor, *counter));
            if end == 0 || self.dots[end - 1].0 != *actor {
                continue;
            }
            let row = &self.prefixes[(end - 1) * 2 * key.words..end * 2 * key.words];
            bits::join(&mut self.held, &row[..key.words]);
            bits::join(&mut self.overwritten, &row[key.words..]);
        }
    }
}

/// Where the later of two operations ends.
fn last_of(history: &History, one: u32, two: u32) -> u32 {
    history.ops[one as usize].complete.max(history.ops[two as usize].complete)
}
