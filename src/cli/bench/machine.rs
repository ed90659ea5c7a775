//! What a load costs the machine: processor time and memory of processes, and how long a sync takes.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinHandle;

/// Ticks of the processor times in /proc, which Linux gives to programs at this rate on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) rss_bytes: u64,
}

/// What `/proc` says of a process; `self` for this one. None where there is no such process or no /proc.
#[allow(clippy::disallowed_methods, clippy::cast_precision_loss)] // not node code
pub(super) fn usage_of(process: &str) -> Option<Usage> {
    let stat = std::fs::read(format!("/proc/{process}/stat")).ok()?;
    let status = std::fs::read(format!("/proc/{process}/status")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in brackets may hold anything; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let cpu_seconds = (ticks(11)? + ticks(12)?) as f64 / TICKS_PER_SECOND;
    let status = String::from_utf8_lossy(&status);
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = rss.trim().trim_end_matches(" kB").parse().ok()?;
    Some(Usage { cpu_seconds, rss_bytes: kib * 1024 })
}

/// Measures syncs of a small file until it is told to stop.
pub(super) struct SyncProbe {
    /// Dropped to stop it.
    go_on: Sender<()>,
    probing: JoinHandle<Option<Histogram<u64>>>,
}

/// Between two syncs of the probe: rare enough not to be the load that it measures.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of each write: a page.
const PROBE_BYTES: usize = 4096;
const PROBE_NAME: &str = "ringdove-bench-sync-probe";

#[allow(clippy::disallowed_methods)] // not node code: it measures this machine
impl SyncProbe {
    pub(super) fn start(dir: &Path) -> std::io::Result<SyncProbe> {
        let path = dir.join(PROBE_NAME);
        let mut file = std::fs::File::create(&path)?;
        let (go_on, stopped) = channel::<()>();
        let probing = tokio::task::spawn_blocking(move || {
            let mut syncs = super::load::histogram();
            let mut probe = || -> std::io::Result<()> {
                loop {
                    file.write_all(&[0xd0; PROBE_BYTES])?;
                    let begin = Instant::now();
                    file.sync_data()?;
                    syncs.saturating_record(micros(begin.elapsed()));
                    if stopped.recv_timeout(PROBE_PAUSE) != Err(RecvTimeoutError::Timeout) {
                        return Ok(());
                    }
                }
            };
            let probed = probe();
            let _ = std::fs::remove_file(path);
            probed.ok().map(|()| syncs)
        });
        Ok(SyncProbe { go_on, probing })
    }

    /// The times in microseconds; none when the disk failed it.
    pub(super) async fn end(self) -> Option<Histogram<u64>> {
        drop(self.go_on);
        self.probing.await.ok().flatten()
    }
}

/// Whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
