//! `ringdove serve`: one node on an existing data directory, until Ctrl-C, SIGTERM, or (for a node of
//! `ringdove cluster`) the end of standard input.
//!
//! ```text
//!   open ── recovers, writes and syncs the record of this start ──▶ listen ──▶ "ready" ──▶ serve ──▶ stop
//!    ▲                                                                           │ a write or sync failed
//!    └──────────── pause, as `restart` says ◀── close, give the directory free ◀─┘
//! ```
//!
//! A node whose storage latched is opened anew in the same process. What is ready has made a durable write: opening a
//! store writes and syncs a record of the start, so a disk that takes no writes never gets as far as "ready".
//! A node that finds another process under its id, and itself the lower one, is not opened again: the two would meet again.
//! A node that never came up is not tried again: what is wrong then (an address, a directory) does not pass by
//! itself. Under `ringdove cluster` nothing is tried here: the command that started the process does that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};

use super::config::{Flags, load, start_logging};
use super::init::UNUSED_NAME;
use super::restart::{FAILURES_MAX, Restarts, Verdict, WINDOW};
use super::{DONE, DOUBLE, FAILED, USAGE, complain, os_random, say};
use crate::config::{Settings, StorageKind};
use crate::gateway::{GatewayConfig, serve_rest};
use crate::io::{Clock, DirLock, Disk, Io, MemoryDisk, Net, RealClock, RealDisk, TcpNet};
use crate::node::{Node, NodeConfig, NodeError, found};
use crate::server::serve_clients;
use crate::storage::{StorageError, directory};
use crate::sync::Watched;
use crate::types::{Incarnation, Mono};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Started by `ringdove cluster`: stop when standard input ends, so that a node never outlives the command, and
    /// end with the first failure, because the command starts the node again.
    #[arg(long, hide = true)]
    supervised: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    let settings = match load(&args.flags) {
        Ok(effective) => effective.settings,
        Err(code) => return code,
    };
    let Some(dir) = settings.dir.clone() else {
        complain("no data directory: give --dir DIR, RINGDOVE_DIR, or dir in the settings file");
        return USAGE;
    };
    if let Err(reason) = start_logging(&settings) {
        complain(&format!("cannot log: {reason}"));
        return FAILED;
    }
    let ports = ("connections_max", settings.node.limits.connections_max);
    let rest =
        settings.listen_rest.as_ref().map(|_| ("rest_connections_max", settings.gateway.connections_max));
    raise_file_limit(rest.filter(|rest| rest.1 > ports.1).unwrap_or(ports));

    let stop = Arc::new(Watched::new(false));
    let stopper = stop.clone();
    tokio::spawn(async move {
        wait_for_stop(args.supervised).await;
        stopper.set(true);
    });
    let served = async {
        let host = Host::new(settings, dir).await.map_err(|error| (FAILED, error.to_string()))?;
        let clock = host.io.clock.clone();
        let restarts = (!args.supervised).then(Restarts::default);
        keep(clock.as_ref(), &stop, restarts, async || host.serve(&stop).await).await
    };
    match served.await {
        Ok(()) => DONE,
        Err((code, message)) => {
            complain(&message);
            code
        }
    }
}

/// What outlives a node that is started again.
struct Host {
    settings: Settings,
    dir: PathBuf,
    io: Io,
    /// Held for a node in memory, whose store locks nothing real.
    _lock: Option<Box<dyn DirLock>>,
}

/// Why a node is not up.
struct Down {
    error: NodeError,
    /// Whether it had been.
    served: bool,
}

impl From<NodeError> for Down {
    fn from(error: NodeError) -> Down {
        Down { error, served: false }
    }
}

impl Host {
    async fn new(settings: Settings, dir: PathBuf) -> Result<Host, NodeError> {
        let real = RealDisk::new().map_err(|error| listen_error("the disk's threads", "", &error))?;
        let (disk, lock): (Arc<dyn Disk>, _) = match settings.storage {
            StorageKind::Log => (Arc::new(real), None),
            StorageKind::Memory => {
                let (disk, lock) = in_memory(&real, &dir).await?;
                (Arc::new(disk), Some(lock))
            }
        };
        let io = Io { net: Arc::new(TcpNet), disk, clock: Arc::new(RealClock::new()) };
        Ok(Host { settings, dir, io, _lock: lock })
    }

    /// Runs the node once, until it is to stop or fails.
    async fn serve(&self, stop: &Arc<Watched<bool>>) -> Result<(), Down> {
        let seed = random()?;
        let config = NodeConfig { dir: self.dir.clone(), ..self.settings.node.clone() };
        let limits = config.limits;
        let (node, recovery) = Box::pin(Node::open(config, self.io.clone(), seed)).await?;
        tracing::info!(
            node = %node.id(),
            records = recovery.records,
            bytes = recovery.bytes,
            cut = recovery.cut,
            starts = recovery.starts,
            "recovered"
        );

        let layouts = node.layouts().active;
        let member = layouts.iter().find_map(|layout| layout.member(node.id()));
        let settings = &self.settings;
        let no_member = || NodeError::NotAMember(node.id());
        let peer_addr = settings.listen_peer.as_ref().or(member.map(|member| &member.peer_addr));
        let peer_addr = peer_addr.ok_or_else(no_member)?;
        let client_addr = settings.listen_client.as_ref().or(member.map(|member| &member.client_addr));
        let client_addr = client_addr.ok_or_else(no_member)?;
        let listen = async |addr: &str, setting: &str| {
            TcpNet.listen(addr).await.map_err(|error| listen_error(addr, setting, &error))
        };
        let peer_port = listen(peer_addr, "listen_peer").await?;
        let client_port = listen(client_addr, "listen_client").await?;
        #[allow(clippy::disallowed_methods)] // the gateway is production only and takes tokio's own listener
        let rest = match &settings.listen_rest {
            None => None,
            Some(addr) => {
                let bound = tokio::net::TcpListener::bind(addr).await;
                Some(bound.map_err(|error| listen_error(addr, "listen_rest", &error))?)
            }
        };

        let (stopping, stopped) = (stop.clone(), node.clone());
        let stopper = tokio::spawn(async move {
            stopping.wait_for(|stop| stop.then_some(())).await;
            stopped.stop();
        });
        let rest_addr = settings.listen_rest.as_ref().map(|addr| format!(", REST http://{addr}"));
        say(&format!(
            "ready: {} of cluster {}, clients {client_addr}, peers {peer_addr}{}",
            node.id(),
            node.descriptor().cluster,
            rest_addr.unwrap_or_default()
        ));
        let clients = serve_clients(node.clone(), client_port);
        let gateway = async {
            if let Some(listener) = rest {
                let config = GatewayConfig { drain: limits.drain, ..settings.gateway };
                serve_rest(node.clone(), listener, config).await;
            }
        };
        let served = async {
            tokio::join!(clients, gateway);
        };
        let ended = node.run(peer_port, served).await;
        stopper.abort();
        ended.map_err(|error| Down { error, served: true })?;
        tracing::info!(node = %node.id(), "stopped");
        Ok(())
    }
}

/// Runs a node again and again, as `restarts` allows; without one, once.
///
/// # Errors
/// The exit code, why the node stays down, and what to do.
async fn keep(
    clock: &dyn Clock,
    stop: &Watched<bool>,
    mut restarts: Option<Restarts>,
    mut serve: impl AsyncFnMut() -> Result<(), Down>,
) -> Result<(), (u8, String)> {
    let mut was_up = false;
    loop {
        let Err(down) = serve().await else { return Ok(()) };
        was_up |= down.served;
        if matches!(down.error, NodeError::Double { .. }) {
            return Err((DOUBLE, down.error.to_string()));
        }
        let Some(restarts) = restarts.as_mut().filter(|_| was_up && !stop.get()) else {
            return Err((FAILED, down.error.to_string()));
        };
        match restarts.failed(Mono::from_origin(clock.mono())) {
            Verdict::StayDown => {
                let minutes = WINDOW.as_secs() / 60;
                let message = format!(
                    "{}; the node has failed {FAILURES_MAX} times within {minutes} minutes and stays down. \
                     Acknowledged writes are safe. Look at the disk and the log, then start it again",
                    down.error
                );
                return Err((FAILED, message));
            }
            Verdict::Again(pause) => {
                tracing::error!(error = %down.error, ?pause, "the node failed; it starts again after a pause");
                select! {
                    biased;
                    () = stop.wait_for(|stop| stop.then_some(())) => return Ok(()),
                    () = clock.sleep_until(clock.mono() + pause) => {}
                }
            }
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], NodeError> {
    let addr = "the system's random source".to_owned();
    os_random().map_err(|reason| NodeError::Listen { addr, reason })
}

/// A disk in memory that knows whose node it is, and the lock of the real directory.
async fn in_memory(real: &RealDisk, dir: &Path) -> Result<(MemoryDisk, Box<dyn DirLock>), NodeError> {
    let shown = dir.display();
    let meta = directory::read(real, dir).await?;
    let meta = meta.ok_or_else(|| NodeError::NotInitialised(shown.to_string()))?;
    let lock = directory::lock(real, dir).await?;
    let incarnation = Incarnation(u64::from_le_bytes(random()?));
    let failed =
        |error: std::io::Error| StorageError::BadDirectory(format!("{shown} cannot be read: {error}"));
    if real.list(dir).await.map_err(failed)?.iter().any(|name| name.ends_with(".log")) {
        return Err(NodeError::Storage(StorageError::BadDirectory(format!(
            "{shown} holds data that storage = \"memory\" would not see: start it with storage = \"log\", or make \
             another directory with `ringdove init --storage memory`"
        ))));
    }
    let memory = MemoryDisk::new();
    match real.remove(&dir.join(UNUSED_NAME)).await {
        Ok(()) => {
            // Durable before anything is served: no second start may count as the first.
            real.sync_dir(dir).await.map_err(failed)?;
            let clock = Arc::new(RealClock::new());
            found(Arc::new(memory.clone()), clock, dir, &meta, incarnation).await?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            directory::write(&memory, dir, &meta).await?;
        }
        Err(error) => return Err(failed(error).into()),
    }
    complain("storage = \"memory\": nothing that is written here survives the end of this process");
    tracing::warn!(node = %meta.node, "data is kept in memory alone: nothing survives the end of this process");
    Ok((memory, lock))
}

/// Lets the process open as many files as the system allows it; each connection and each segment takes one.
/// `connections` is the larger of their bounds, by its setting.
fn raise_file_limit((setting, connections): (&str, usize)) {
    let limit = getrlimit(Resource::Nofile);
    let shown = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let raised = Rlimit { current: limit.maximum, ..limit };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::warn!(%error, limit = shown(limit.current), "the limit of open files cannot be raised");
            limit.current
        }
    };
    tracing::info!(from = shown(limit.current), to = shown(now), "limit of open files");
    // Segments, the doors and the runtime take some besides.
    let wanted = connections as u64 + 1000;
    if now.is_some_and(|now| now < wanted) {
        tracing::warn!(
            limit = shown(now),
            connections,
            "{setting} cannot be reached: raise the hard limit of open files (ulimit -Hn) above {wanted}"
        );
    }
}

fn listen_error(addr: &str, setting: &str, error: &std::io::Error) -> NodeError {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; another process listens there: stop it, or choose another address".to_owned()
        }
        std::io::ErrorKind::AddrNotAvailable => {
            format!("; it is no address of this machine: set {setting} to one, or to 0.0.0.0 with the port")
        }
        _ => String::new(),
    };
    NodeError::Listen { addr: addr.to_owned(), reason: format!("{error}{hint}") }
}

/// Waits for a reason to stop.
async fn wait_for_stop(with_stdin: bool) {
    let mut terminate = signal(SignalKind::terminate()).ok();
    let terminated = async {
        match &mut terminate {
            Some(terminate) => terminate.recv().await,
            None => std::future::pending().await,
        }
    };
    let stdin_ended = async {
        if !with_stdin {
            std::future::pending::<()>().await;
        }
        let mut ignored = [0; 64];
        let mut stdin = tokio::io::stdin();
        while stdin.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
    };
    select! {
        biased;
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
        () = stdin_ended => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::io::BoxFuture;
    use crate::types::NodeId;

    /// Time passes only while somebody sleeps, and then at once.
    struct Jumping(Mutex<Duration>);

    impl Clock for Jumping {
        fn mono(&self) -> Duration {
            *self.0.lock().unwrap()
        }
        fn wall(&self) -> Duration {
            self.mono()
        }
        fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
            let mut now = self.0.lock().unwrap();
            *now = deadline.max(*now);
            Box::pin(std::future::ready(()))
        }
    }

    fn down(served: bool) -> Down {
        Down { error: StorageError::Latched("no space on the moon".to_owned()).into(), served }
    }

    /// Runs a node whose starts end like this; how many were made, and the end.
    async fn kept(restarts: bool, ends: Vec<Result<(), Down>>) -> (usize, Result<(), (u8, String)>) {
        let clock = Jumping(Mutex::default());
        let stop = Watched::new(false);
        let (mut starts, mut ends) = (0, ends.into_iter());
        let restarts = restarts.then(Restarts::default);
        let ended = keep(&clock, &stop, restarts, async || {
            starts += 1;
            ends.next().expect("no further start")
        });
        let ended = ended.await;
        (starts, ended)
    }

    #[tokio::test]
    async fn a_node_that_latched_is_started_again_and_stays_down_the_third_time() {
        assert_eq!(kept(true, vec![Err(down(true)), Ok(())]).await, (2, Ok(())));
        let (starts, ended) = kept(true, vec![Err(down(true)), Err(down(true)), Err(down(true))]).await;
        assert_eq!(starts, 3);
        let (code, message) = ended.unwrap_err();
        assert_eq!(code, FAILED);
        assert!(message.contains("no space on the moon") && message.contains("stays down"), "{message}");
    }

    #[tokio::test]
    async fn a_node_that_fails_to_open_after_a_latch_is_tried_again() {
        assert_eq!(kept(true, vec![Err(down(true)), Err(down(false)), Ok(())]).await, (3, Ok(())));
    }

    #[tokio::test]
    async fn a_node_that_found_a_higher_double_is_not_started_again() {
        let error = NodeError::Double { node: NodeId(7), dir: "some/where".to_owned() };
        let (starts, ended) = kept(true, vec![Err(Down { error, served: true })]).await;
        assert_eq!(starts, 1);
        let (code, message) = ended.unwrap_err();
        assert_eq!(code, DOUBLE);
        for told in ["another process runs as n7", "kept in some/where", "stop the other"] {
            assert!(message.contains(told), "{message}");
        }
    }

    #[tokio::test]
    async fn a_node_that_never_came_up_is_not_tried_again() {
        assert_eq!(kept(true, vec![Err(down(false))]).await.0, 1);
    }

    #[tokio::test]
    async fn a_node_of_a_cluster_leaves_starting_again_to_the_command() {
        assert_eq!(kept(false, vec![Err(down(true))]).await.0, 1);
    }

    #[tokio::test]
    async fn a_node_that_fails_while_it_stops_is_not_started_again() {
        let (clock, stop) = (Jumping(Mutex::default()), Watched::new(false));
        let mut starts = 0;
        let ended = keep(&clock, &stop, Some(Restarts::default()), async || {
            starts += 1;
            stop.set(true);
            Err(down(true))
        });
        assert!(ended.await.is_err());
        assert_eq!(starts, 1);
    }
}
