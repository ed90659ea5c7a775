//! Whether two runs of one seed are the same: one in a process that has played others before, one in a fresh process, in
//! another folder and another environment.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use super::jobs::Place;
use super::worker::{Answer, Job};
use super::{BROKEN, Stop, because};

/// How two runs of one thing compare.
pub(crate) enum Compared {
    /// They are the same, and this came of them.
    Same(Box<Answer>),
    /// They are not: the first event that differs, in words.
    Differ(String),
}

/// Plays a seed or plan twice; the events of both are kept in a temporary folder while they are compared.
///
/// # Errors
/// When there are no processes or files for it.
pub(crate) fn compare(job: &Job, limit: Duration) -> Result<Compared, Stop> {
    let dir = tempfile::tempdir().map_err(because(BROKEN, "a temporary folder"))?;
    let logs = [dir.path().join("after-others"), dir.path().join("alone")];
    let plan = match &job.plan {
        Some(path) => Some(path.canonicalize().map_err(because(BROKEN, path.display()))?),
        None => None,
    };
    let number = job.seed.unwrap_or(0);
    let logged = |log: &Path| Job { plan: plan.clone(), log: Some(log.to_owned()), ..job.clone() };
    let mut here = Place::new(limit);
    for other in [number.wrapping_add(1), number.wrapping_add(2)] {
        here.play(other, &Job { seed: Some(other), plan: None, ..job.clone() })?;
    }
    let first = here.play(number, &logged(&logs[0]))?;
    let second = Place::elsewhere(limit)?.play(number, &logged(&logs[1]))?;
    if first.report == second.report {
        return Ok(Compared::Same(Box::new(first)));
    }
    let differ = difference(&logs[0], &logs[1])?
        .unwrap_or_else(|| "the events are the same, and what the runs report is not".to_owned());
    Ok(Compared::Differ(differ))
}

fn difference(a: &Path, b: &Path) -> Result<Option<String>, Stop> {
    let open = |path: &Path| File::open(path).map(BufReader::new).map_err(because(BROKEN, path.display()));
    let (mut a, mut b) = (open(a)?.lines(), open(b)?.lines());
    for number in 1_u64.. {
        let next = |lines: &mut std::io::Lines<BufReader<File>>| {
            lines.next().transpose().map_err(because(BROKEN, "an event log"))
        };
        let (of_a, of_b) = (next(&mut a)?, next(&mut b)?);
        if of_a == of_b {
            if of_a.is_none() {
                return Ok(None);
            }
            continue;
        }
        let show = |line: Option<String>| line.unwrap_or_else(|| "(the run had ended)".to_owned());
        return Ok(Some(format!(
            "they part at event {number}:\n  after others: {}\n  alone:        {}",
            show(of_a),
            show(of_b)
        )));
    }
    Ok(None)
}
