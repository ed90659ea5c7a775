//! A `ringdove` command that runs while a test goes on, and what it says meanwhile.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::support::send_signal;

/// A program that has not said what a test waits for after this long never will.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// The command that was built for this test, without the settings of whoever runs it.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringdove"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("RINGDOVE_")) {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

/// Runs a command to its end.
pub(crate) fn output(args: &[&str]) -> Output {
    command(args).output().expect("the binary starts")
}

/// Runs a command to its end: exit code, and standard output and error in one text.
pub(crate) fn said(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = output(args);
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

/// A program in the background. Dropping it stops it.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    pub(crate) fn start(mut command: Command) -> Program {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let (sender, lines) = channel();
        pass_on(child.stdout.take().expect("piped"), sender.clone());
        pass_on(child.stderr.take().expect("piped"), sender);
        Program { child, lines, seen: Vec::new() }
    }

    /// `ringdove serve` on this directory, when it is ready.
    pub(crate) fn serve(dir: &str, args: &[&str]) -> Program {
        let mut program = Program::start(command(&[&["serve", "--dir", dir], args].concat()));
        program.wait_for("ready");
        program
    }

    /// The next line with these words, on standard output or error.
    pub(crate) fn wait_for(&mut self, words: &str) -> String {
        loop {
            let line = self.next_line(words);
            if line.contains(words) {
                return line;
            }
        }
    }

    /// A line with these words that it has said, or the next one.
    pub(crate) fn told(&mut self, words: &str) -> String {
        let line = self.seen.iter().find(|line| line.contains(words)).cloned();
        line.unwrap_or_else(|| self.wait_for(words))
    }

    /// Whether a line with these words was among those that were waited through.
    pub(crate) fn has_told(&self, words: &str) -> bool {
        self.seen.iter().any(|line| line.contains(words))
    }

    /// Waits until each of these words has stood in a line.
    pub(crate) fn wait_for_all(&mut self, words: &[&str]) {
        let mut missing = words.to_vec();
        while let Some(first) = missing.first() {
            let line = self.next_line(first);
            missing.retain(|words| !line.contains(words));
        }
    }

    fn next_line(&mut self, awaited: &str) -> String {
        match self.lines.recv_timeout(HANGS_AFTER) {
            Ok(line) => {
                self.seen.push(line.clone());
                line
            }
            Err(_) => panic!("{awaited:?} was never said, but this was:\n{}", self.seen.join("\n")),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Waits for its end: exit code and everything that it said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        self.seen.extend(self.lines.iter());
        (self.child.wait().expect("it can be waited for").code(), self.seen.join("\n"))
    }

    pub(crate) fn stop(self) -> (Option<i32>, String) {
        self.signal("TERM");
        self.end()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("TERM");
            let _ = self.child.wait();
        }
    }
}

fn pass_on(from: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

/// A port that nobody listens on, and none of those from which systems take the ports of outgoing connections.
pub(crate) fn free_addr() -> String {
    let mut number = u64::from(std::process::id());
    for _ in 0..1000 {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        number = (number ^ u64::try_from(nanos % 1_000_000_007).unwrap()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let addr = format!("127.0.0.1:{}", 10_000 + (number >> 40) % 20_000);
        if TcpListener::bind(&addr).is_ok() {
            return addr;
        }
    }
    panic!("no free port between 10000 and 30000");
}
