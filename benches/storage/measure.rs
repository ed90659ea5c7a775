//! What the phases measure with: processor time and memory of this process, the disk's own pace, rows of figures.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Bytes of a record in the log, for the floors.
pub(crate) const RECORD: usize = 672;

/// User and system time of the process, all threads.
pub(crate) fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
    Duration::from_millis(ticks * 10)
}

pub(crate) fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

pub(crate) fn row(what: &str, figures: &str) {
    println!("{what:<44} {figures}");
    let _ = std::io::stdout().flush();
}

pub(crate) fn percentile(times: &mut [Duration], of_thousand: usize) -> Duration {
    times.sort_unstable();
    times
        .get((times.len() * of_thousand / 1000).min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

/// What the disk allows of appends: operations a second, and CPU for one of them.
pub(crate) fn appends(dir: &Path, group: usize, seconds: f64) -> (f64, Duration) {
    let path = dir.join("floor");
    let file = File::create(&path).expect("a file");
    let bytes = vec![7; group * RECORD];
    let (mut offset, mut groups) = (0, 0);
    let (cpu_before, began) = (cpu(), Instant::now());
    while began.elapsed().as_secs_f64() < seconds {
        file.write_all_at(&bytes, offset).expect("space");
        file.sync_data().expect("a disk");
        offset += bytes.len() as u64;
        groups += 1;
    }
    let rate = (groups * group) as f64 / began.elapsed().as_secs_f64();
    let each = (cpu() - cpu_before).div_f64((groups * group) as f64);
    std::fs::remove_file(&path).expect("it is there");
    (rate, each)
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
}

/// Takes the segments out of the page cache. Nothing of them may be unsynced: that would stay.
pub(crate) fn chill(dir: &Path) {
    for path in segments(dir) {
        let file = File::open(path).expect("a segment");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
    }
}

/// What the disk allows of `reads` reads of one record each, at random places of cold segments, so many at once: reads a
/// second. Few of the pages may be read, or the rest is not cold.
pub(crate) fn reads(dir: &Path, at_once: usize, reads: u64) -> f64 {
    chill(dir);
    let files: Vec<(File, u64)> = segments(dir)
        .iter()
        .map(|path| {
            let file = File::open(path).expect("a segment");
            let len = file.metadata().expect("a length").len();
            (file, len)
        })
        .filter(|(_, len)| *len > RECORD as u64)
        .collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..at_once as u64 {
            let files = &files;
            scope.spawn(move || {
                let mut chance = ChaCha8Rng::seed_from_u64(n);
                let mut buffer = [0; RECORD];
                for _ in 0..reads / at_once as u64 {
                    let (file, len) = &files[chance.random_range(0..files.len())];
                    let at = chance.random_range(0..len - RECORD as u64);
                    file.read_exact_at(&mut buffer, at).expect("a read");
                }
            });
        }
    });
    reads as f64 / began.elapsed().as_secs_f64()
}
