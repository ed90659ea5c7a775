//! Staleness, measured and never failed: how much acknowledged writing the reads missed.
//!
//! Definition. A get missed a put that was acknowledged before it began if it neither returned it nor anything
//! that accounts for it ([`crate::pasts`]): the same relation as in [`crate::regular`], without any precondition.
//! The staleness of a get is the number of puts that it missed. Visibility after t: of the gets that began t after
//! the latest acknowledgement of a put of their key, the share that did not miss that put; t in powers of two of
//! a microsecond, by the history's own times.
//!
//! Monotonic reads, measured beside it: of the gets before which their process had got the key, the share that
//! missed a put which such an earlier get had returned.
//!
//! Source: Bailis, Venkataraman, Franklin, Hellerstein, Stoica, Probabilistically bounded staleness (2012), for
//! visibility; Terry et al. (1994) for monotonic reads. Cost: that of [`crate::regular`].

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::json;

use crate::bits;
use crate::history::{F, History, Outcome, number};
use crate::pasts::{Key, Options};
use crate::verdict::{Verdict, Witness};

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Gets by the number of acknowledged puts that they missed.
    pub missed: BTreeMap<u64, u64>,
    /// For each power of two of microseconds: gets that began so long after the latest acknowledgement, and those
    /// of them that did not miss it.
    pub visibility: BTreeMap<u32, (u64, u64)>,
    /// Gets before which their process had got the key, and those of them that went back.
    pub monotonic: (u64, u64),
    /// One of those that went back.
    pub first_back: Option<u32>,
    /// Why keys were left out, if some were.
    pub left_out: Option<String>,
}

impl Report {
    /// The visibility curve with a heading: `t_us,reads,visible,share`.
    pub fn csv(&self) -> String {
        let mut csv = String::from("t_us,reads,visible,share\n");
        for (power, (reads, visible)) in &self.visibility {
            #[allow(clippy::cast_precision_loss)] // a share for people to look at
            let share = *visible as f64 / *reads as f64;
            let _ = writeln!(csv, "{},{reads},{visible},{share:.6}", 1_u64 << power);
        }
        csv
    }

    /// Monotonic reads as a verdict, for those who demand them.
    pub fn monotonic_reads(&self) -> Verdict {
        let (judged, violations) = self.monotonic;
        if violations > 0 {
            let text =
                format!("{violations} gets missed a put that an earlier get of their process had returned");
            let ops = self.first_back.into_iter().collect();
            return Verdict::Invalid { judged, violations, witness: Witness { text, ops } };
        }
        match &self.left_out {
            Some(reason) => Verdict::Unknown { reason: reason.clone() },
            None if judged == 0 => Verdict::Unknown { reason: Verdict::NOTHING_JUDGED.to_owned() },
            None => Verdict::Valid { judged },
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let missed: serde_json::Map<_, _> =
            self.missed.iter().map(|(n, gets)| (n.to_string(), json!(gets))).collect();
        json!({
            "gets_by_puts_missed": missed,
            "monotonic_reads": { "judged": self.monotonic.0, "went_back": self.monotonic.1 },
            "left_out": self.left_out,
        })
    }
}

/// Measures every get.
pub fn measure(history: &History, options: &Options) -> Report {
    let mut report = Report::default();
    let mut key = Key::new(history, options);
    let (mut returned, mut reached, mut missed) = (Vec::new(), Vec::new(), Vec::new());
    for (number_of_key, ops) in history.by_key().iter() {
        if let Err(reason) = key.load(number_of_key, ops) {
            report.left_out.get_or_insert(reason);
            continue;
        }
        let is_acked_put = |write: &u32| key.op(*write).f == F::Put && key.op(*write).outcome == Outcome::Ok;
        let mut puts: Vec<u32> = (0..number(key.writes.len())).filter(is_acked_put).collect();
        puts.sort_by_key(|write| key.op(*write).complete);
        let mut acknowledged = key.none();
        // What each process has been shown so far: (end of the get, what it returned), in the order of invocation.
        let mut shown: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut next = 0;
        for at in &key.reads {
            let read = &history.ops[*at as usize];
            while let Some(put) = puts.get(next).filter(|put| key.op(**put).complete < read.invoke) {
                bits::set(&mut acknowledged, *put);
                next += 1;
            }
            if read.f != F::Get {
                continue;
            }
            key.observe(read, &mut returned, &mut reached);
            let clock = history.extra(read).clock;
            let mut count = |due: &[u64]| {
                missed.clear();
                missed.extend(due.iter().zip(&reached).map(|(due, reached)| due & !reached));
                let gone = |put: &u32| !key.accounted(*put, &reached, &returned, read.complete, clock);
                bits::ones(&missed).filter(gone).count() as u64
            };
            *report.missed.entry(count(&acknowledged)).or_default() += 1;
            if let Some(latest) = next.checked_sub(1).map(|last| puts[last]) {
                let mut one = key.none();
                bits::set(&mut one, latest);
                let visible = count(&one) == 0;
                visibility(history, key.writes[latest as usize], *at, visible, &mut report);
            }
            if let Some(before) = shown.get(&read.process) {
                report.monotonic.0 += 1;
                if count(before) > 0 {
                    report.monotonic.1 += 1;
                    report.first_back.get_or_insert(*at);
                }
            }
            let shown = shown.entry(read.process).or_insert_with(|| key.none());
            for write in bits::ones(&returned).filter(|write| key.op(*write).f == F::Put) {
                bits::set(shown, write);
            }
        }
    }
    report
}

fn visibility(history: &History, put: u32, get: u32, visible: bool, report: &mut Report) {
    let (Some((_, acked)), Some((begun, _))) =
        (history.times.get(put as usize), history.times.get(get as usize))
    else {
        return;
    };
    let Some(gap) = begun.checked_sub(*acked).and_then(|gap| u64::try_from(gap).ok()) else { return };
    if *acked == i64::MIN || *begun == i64::MIN {
        return;
    }
    // The power of two at or above the gap, in microseconds.
    let micros = gap.div_ceil(1000).max(1);
    let entry = report.visibility.entry(micros.next_power_of_two().trailing_zeros()).or_default();
    entry.0 += 1;
    entry.1 += u64::from(visible);
}
