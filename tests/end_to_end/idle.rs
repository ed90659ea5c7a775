//! Ten thousand connections that do nothing.

use std::sync::Arc;
use std::time::Duration;

use ringdove::io::{Clock, RealClock, TcpNet};
use ringdove::net::envelope::FrameHead;
use ringdove::net::link::{Link, hello};
use ringdove::net::message::{Ping, Pong, Put, PutOutcome, PutReply, Spoken};
use ringdove::types::{Key, Mono, WriteId};

use crate::support::{Cluster, note};

const IDLE: usize = 10_000;
/// With those, the ones that the test and other nodes have besides.
const CONNECTIONS_MAX: &str = "connections_max = 10100\n";
/// With those, the test's own, and some to spare.
const FILES_MIN: usize = 12_000;

/// Bytes that a process holds in memory.
pub(crate) fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn ten_thousand_idle_connections_keep_nobody_out_and_cost_little() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    let files = files.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok()).unwrap_or(0);
    if files < FILES_MIN {
        note(&format!(
            "SKIPPED: {files} file descriptors, ten thousand idle connections need {FILES_MIN}: raise `ulimit -n`"
        ));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings.toml");
    std::fs::write(&settings, CONNECTIONS_MAX).unwrap();
    let cluster = Cluster::start_with(&dir.path().join("data"), Some(&settings));
    let node = cluster.nodes[0].clone();
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let deadline = || Mono::from_origin(clock.mono()) + Duration::from_secs(60);
    let hello = hello(Spoken::default(), None, None);
    let before = resident(node.pid);
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(Link::open(&TcpNet, &clock, &node.client_addr, &hello, deadline()).await.unwrap());
    }
    let link = Link::open(&TcpNet, &clock, &node.client_addr, &hello, deadline()).await.unwrap();
    let head = FrameHead::default();
    for number in 0..100 {
        let key = Key::new(format!("key{number}").into_bytes()).unwrap();
        let put = Put::new(key, WriteId(number + 1), "grey");
        let reply: PutReply = link.call(clock.as_ref(), &put, head, deadline()).await.unwrap();
        assert_eq!(reply.outcome, PutOutcome::Applied);
    }
    for link in idle.iter().step_by(500) {
        assert_eq!(link.call::<Pong>(clock.as_ref(), &Ping, head, deadline()).await, Ok(Pong));
    }
    let each = resident(node.pid).saturating_sub(before) / IDLE;
    note(&format!("{each} bytes for each of {IDLE} idle connections"));
    assert!(each < 100_000, "{each} bytes for each idle connection");
}
