//! Worker processes, seen from whoever starts them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use sim::report::{Failure, Report, Tally};

use super::worker::{Answer, Job};
use super::{BROKEN, Stop, because};

/// Runs after which a worker is replaced: what madsim leaks for each, and what a run may have left behind.
const RUNS_MAX: u32 = 200;
/// Resident bytes above which it is replaced.
const RESIDENT_MAX: u64 = 1 << 30;

/// A worker process.
struct Worker {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
    runs: u32,
}

impl Worker {
    fn start(home: Option<&Path>) -> Result<Worker, Stop> {
        let program = std::env::current_exe().map_err(because(BROKEN, "this program's own path"))?;
        let mut command = Command::new(program);
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(home) = home {
            // Another folder and another environment: nothing of either may reach a run.
            command
                .env_clear()
                .env("TZ", "Pacific/Chatham")
                .env("RUST_BACKTRACE", "1")
                .env("HOME", home)
                .current_dir(home);
        }
        let mut child = command.spawn().map_err(because(BROKEN, "a worker process"))?;
        let stdin = child.stdin.take().expect("asked for");
        let stdout = BufReader::new(child.stdout.take().expect("asked for"));
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Worker { child, stdin, answers, runs: 0 })
    }

    fn end(mut self) {
        // A worker that hangs does not see the end of its input.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One place at which runs are played, by one worker after another.
pub(crate) struct Place {
    worker: Option<Worker>,
    limit: Duration,
    home: Option<tempfile::TempDir>,
    /// A process for each run.
    fresh: bool,
}

fn failed(seed: u64, by: &str, what: String) -> Answer {
    let failures = vec![Failure { by: by.to_owned(), what }];
    let tally = Tally { runs: 1, ..Tally::default() };
    let report = Report { seed, trace_hash: String::new(), failures, tally };
    Answer { report, cpu: Duration::ZERO, resident: 0 }
}

impl Place {
    /// Workers in this folder and environment, used again for many runs. A run may take `limit` of real time.
    pub(crate) fn new(limit: Duration) -> Place {
        Place { worker: None, limit, home: None, fresh: false }
    }

    /// A process of its own for each run, in another folder, with another environment.
    ///
    /// # Errors
    /// When there is no folder for it.
    pub(crate) fn elsewhere(limit: Duration) -> Result<Place, Stop> {
        let home = tempfile::tempdir().map_err(because(BROKEN, "a temporary folder"))?;
        Ok(Place { worker: None, limit, home: Some(home), fresh: true })
    }

    /// Has one run played. Whatever becomes of the worker, there is an answer.
    ///
    /// # Errors
    /// When no worker can be started.
    pub(crate) fn play(&mut self, seed: u64, job: &Job) -> Result<Answer, Stop> {
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start(self.home.as_ref().map(tempfile::TempDir::path))?,
        };
        let line = serde_json::to_string(job).expect("a job is JSON");
        let asked = writeln!(worker.stdin, "{line}").and_then(|()| worker.stdin.flush());
        let heard = match asked {
            Ok(()) => worker.answers.recv_timeout(self.limit),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        let answer = match heard {
            Ok(line) => match serde_json::from_str::<Answer>(&line) {
                Ok(answer) => answer,
                Err(error) => failed(seed, "worker", format!("its answer cannot be read ({error}): {line}")),
            },
            Err(RecvTimeoutError::Timeout) => {
                failed(seed, "time-limit", format!("not done after {} s of real time", self.limit.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status =
                    worker.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                failed(seed, "worker", format!("its process ended without an answer: {status}"))
            }
        };
        worker.runs += 1;
        let sound =
            answer.report.failures.is_empty() && answer.resident < RESIDENT_MAX && worker.runs < RUNS_MAX;
        if sound && !self.fresh {
            self.worker = Some(worker);
        } else {
            worker.end();
        }
        Ok(answer)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.end();
        }
    }
}
