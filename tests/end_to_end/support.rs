//! A cluster of real processes for end-to-end tests.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ringdove::client::{Client, ClientConfig};
use ringdove::io::{RealClock, TcpNet};

/// One node's process, as `ringdove cluster` announces it.
#[derive(Debug, Clone)]
pub(crate) struct NodeProcess {
    pub(crate) pid: u32,
    pub(crate) client_addr: String,
    pub(crate) rest_addr: String,
}

/// `ringdove cluster` on free ports. Dropping it stops it.
pub(crate) struct Cluster {
    child: Child,
    pub(crate) nodes: Vec<NodeProcess>,
}

impl Cluster {
    /// Starts it with its data in `dir` and waits until it is ready.
    pub(crate) fn start(dir: &Path) -> Cluster {
        Cluster::start_with(dir, None)
    }

    /// The same with a settings file.
    pub(crate) fn start_with(dir: &Path, settings: Option<&Path>) -> Cluster {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringdove"));
        command.args(["cluster", "--port", "0", "--dir"]).arg(dir);
        if let Some(settings) = settings {
            command.arg("--config").arg(settings);
        }
        let mut child = command
            .env("RINGDOVE_LOG", "ringdove=warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut nodes = Vec::new();
        for line in lines.by_ref() {
            let line = line.expect("text");
            if line.starts_with("Ctrl-C") {
                break;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, "pid", pid, "client", client_addr, "REST", rest] = words[..] {
                nodes.push(NodeProcess {
                    pid: pid.parse().expect("a process id"),
                    client_addr: client_addr.to_owned(),
                    rest_addr: rest.trim_start_matches("http://").to_owned(),
                });
            }
        }
        assert_eq!(nodes.len(), 3, "three nodes announce themselves");
        // Whatever it prints later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Cluster { child, nodes }
    }

    /// Stops one node for good: a node that is told to stop, unlike one that is killed, is not started again.
    pub(crate) fn stop_node(&self, node: &NodeProcess) {
        send_signal(node.pid, "TERM");
        let is_there = || {
            let asked =
                Command::new("kill").arg("-0").arg(node.pid.to_string()).stderr(Stdio::null()).status();
            asked.expect("`kill` runs").success()
        };
        for _ in 0..6000 {
            if !is_there() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("process {} does not stop", node.pid);
    }

    /// Ends it with this signal and waits; its exit code.
    pub(crate) fn stop(mut self, signal: &str) -> Option<i32> {
        send_signal(self.child.id(), signal);
        self.child.wait().expect("it can be waited for").code()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            send_signal(self.child.id(), "TERM");
            let _ = self.child.wait();
        }
    }
}

/// Says something that is to be seen although the test passes: what a test prints is captured, this is not.
pub(crate) fn note(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Sends a signal to a process that the test started.
pub(crate) fn send_signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    assert!(sent.expect("`kill` runs").success(), "no process {pid} to send {signal} to");
}

/// A client of these nodes.
pub(crate) fn client(addrs: &[&str]) -> Client {
    // Two clients of one process must not have one seed: it names their writes.
    static CLIENTS: AtomicU8 = AtomicU8::new(0);
    let seed = [CLIENTS.fetch_add(1, Ordering::SeqCst); 32];
    let config =
        ClientConfig { timeout: Duration::from_secs(30), ..ClientConfig::new(addrs.iter().copied()) };
    Client::new(Arc::new(TcpNet), Arc::new(RealClock::new()), seed, config)
}

/// Waits until something holds.
///
/// # Panics
/// When it does not within a minute.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}
