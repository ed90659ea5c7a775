//! `ringdove cluster`: a whole cluster on this machine, one real process a node.
//!
//! ```text
//!   prepare ── directories, free ports ──▶ spawn all ──▶ announce those that are ready ──▶ one task a node looks after it
//!                                                                                       │ its process ends, or did not start
//!                            stays down, says why ◀── third failure in ten minutes ◀────┤
//!                            started again after a pause ◀──────────────────────────────┘
//! ```
//! A node that cannot start, or has no directory, keeps no other one down (`prepare`).
//!
//! The processes are tied to this one by their standard input: when it ends, for whatever reason, they stop. They
//! are process groups of their own, so that a Ctrl-C reaches this command alone, which then stops them in order.
//!
//! A process that ended well was told to stop by somebody else, and is left alone. So is one that found another process of its
//! node, the higher of the two: started again it would only meet it again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::config::{Flags, load};
use super::restart::{FAILURES_MAX, Restarts, Verdict, WINDOW};
use super::{DONE, DOUBLE, FAILED, complain, say};
use crate::io::{Clock, RealClock};
use crate::sync::Watched;
use crate::types::{Mono, NodeId};
use prepare::{Prepared, prepare};

mod prepare;

/// How long a node may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this long a node that is not ready yet is spoken of.
const STARTS_LONG: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Number of nodes of a new cluster, 3 when left out. One that is there has its own.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=50))]
    nodes: Option<u16>,
    /// Where the nodes keep their data; made when it is not there, used again when it is.
    #[arg(long, default_value = "ringdove-data")]
    dir: PathBuf,
    /// Replicas of each key (N); at most the number of nodes; 3, or as many as there are nodes, when left out. Fixed when the
    /// cluster is made.
    #[arg(long)]
    replicas: Option<u32>,
    /// Partitions of the ring (Q), a power of two from 8 to 65536; 256 when left out. Fixed when the cluster is made.
    #[arg(long)]
    partitions: Option<u32>,
    /// First client port of a new cluster, 7001 when left out; peers listen from 100 above, REST from 1000 above. 0 takes free
    /// ports; on a cluster that is there, for REST alone.
    #[arg(long)]
    port: Option<u16>,
    /// What the nodes log on standard error, as `tracing` filter directives.
    #[arg(long, env = "RINGDOVE_LOG", default_value = "ringdove=warn")]
    log: String,
    /// Settings file of the nodes, as for `serve`; their directories, addresses and logs are set here.
    #[arg(long, value_name = "FILE", env = "RINGDOVE_CONFIG")]
    config: Option<PathBuf>,
}

/// What a node is started with.
#[derive(Debug, Clone)]
struct Plan {
    id: NodeId,
    dir: PathBuf,
    client_addr: String,
    peer_addr: String,
    rest_addr: String,
    log: String,
    config: Option<PathBuf>,
}

/// A node's process.
struct Running {
    child: Child,
    /// It runs as long as this is open. Kept apart, because waiting for a child closes what it has of its input.
    input: Option<ChildStdin>,
    /// Passes the node's standard output on; ends with it.
    output: JoinHandle<()>,
}

pub(super) async fn run(args: Args) -> u8 {
    // Looked at once here, so that a mistake is told once and not by every node.
    let mut flags = Flags { file: args.config.clone(), ..Flags::default() };
    flags.given.insert("log", args.log.clone());
    let storage = match load(&flags) {
        Ok(effective) => effective.settings.storage,
        Err(code) => return code,
    };
    let Prepared { plans, absent, notes } = match prepare(&args, storage).await {
        Ok(prepared) => prepared,
        Err(message) => {
            complain(&message);
            return FAILED;
        }
    };
    notes.iter().for_each(|note| complain(note));
    let started = join_all(plans.iter().map(start)).await;
    let mut code = DONE;
    let nodes: Vec<(Plan, Result<Running, String>)> = plans.into_iter().zip(started).collect();
    let Some(first) = nodes.iter().find_map(|(plan, started)| started.is_ok().then_some(plan)) else {
        for (plan, started) in &nodes {
            complain(started.as_ref().err().map_or("", String::as_str));
            complain(&format!("{} does not run", plan.id));
        }
        complain("no node could be started");
        return FAILED;
    };
    announce(&args, &nodes, first);
    for member in &absent {
        complain(&member.advice(&first.client_addr));
    }
    let stopping = Arc::new(Watched::new(false));
    let keepers = nodes.into_iter().map(|(plan, started)| {
        let stopping = stopping.clone();
        tokio::spawn(async move { keep(&plan, started, &stopping).await })
    });
    let all_gone = join_all(keepers.collect::<Vec<_>>());
    tokio::pin!(all_gone);
    select! {
        biased;
        () = told_to_stop() => {
            say("stopping …");
            stopping.set(true);
            all_gone.await;
        }
        _ = &mut all_gone => {
            complain("no node is left");
            code = FAILED;
        }
    }
    code
}

/// Ctrl-C or SIGTERM.
async fn told_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).ok();
    let terminated = async {
        match &mut terminate {
            Some(terminate) => terminate.recv().await,
            None => std::future::pending().await,
        }
    };
    select! {
        biased;
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

/// Looks after one node until `stopping`, or until it stays down.
async fn keep(plan: &Plan, mut started: Result<Running, String>, stopping: &Watched<bool>) {
    let (id, dir) = (plan.id, plan.dir.display());
    let clock = RealClock::new();
    let mut restarts = Restarts::default();
    loop {
        let mut how = match started {
            Err(how) => how,
            Ok(mut running) => {
                let ended = select! {
                    biased;
                    () = stopping.wait_for(|stop| stop.then_some(())) => return stop(id, running).await,
                    ended = running.child.wait() => ended,
                };
                match ended {
                    Ok(status) if status.success() => {
                        complain(&format!(
                            "{id} was told to stop and did; the others go on. To have it back, start anew"
                        ));
                        return;
                    }
                    Ok(status) if status.code() == Some(DOUBLE.into()) => {
                        complain(&format!(
                            "{id} stays down: another process runs as {id}, on a copy of {dir}. The others go on. See its \
                             message above, keep one of the two, then stop this cluster and start it again"
                        ));
                        return;
                    }
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                }
            }
        };
        let running = loop {
            let pause = match restarts.failed(Mono::from_origin(clock.mono())) {
                Verdict::Again(pause) => pause,
                Verdict::StayDown => {
                    let minutes = WINDOW.as_secs() / 60;
                    complain(&format!(
                        "{id} has ended ({how}), {FAILURES_MAX} times within {minutes} minutes, and stays down; the \
                         others go on. What it acknowledged is on its disk. See its messages above and {dir}, mend \
                         what is wrong there, then stop this cluster and start it again"
                    ));
                    return;
                }
            };
            complain(&format!(
                "{id} has ended ({how}); it starts again in {} s, the others go on",
                pause.as_secs()
            ));
            let started = async {
                clock.sleep_until(clock.mono() + pause).await;
                start(plan).await
            };
            let started = select! {
                biased;
                () = stopping.wait_for(|stop| stop.then_some(())) => return,
                started = started => started,
            };
            match started {
                Ok(running) => break running,
                Err(message) => how = message,
            }
        };
        complain(&format!("{id} is back: pid {}", running.child.id().unwrap_or(0)));
        started = Ok(running);
    }
}

fn announce(args: &Args, nodes: &[(Plan, Result<Running, String>)], first: &Plan) {
    let mut ready = 0;
    for (plan, started) in nodes {
        let Ok(running) = started else { continue };
        ready += 1;
        let pid = running.child.id().unwrap_or(0);
        let (id, client, rest) = (plan.id, &plan.client_addr, &plan.rest_addr);
        say(&format!("{id}  pid {pid}  client {client}  REST http://{rest}"));
    }
    let dir = args.dir.display();
    let are = if ready == 1 { "node is" } else { "nodes are" };
    say(&format!("\n{ready} {are} ready; the data is in {dir}. Try:"));
    say(&format!(
        "  curl -X PUT --data 'coo' http://{0}/kv/dove && curl http://{0}/kv/dove",
        first.rest_addr
    ));
    // As it was called: `cargo run` leaves the program in the target folder.
    let program = std::env::args().next().unwrap_or_else(|| "ringdove".to_owned());
    say(&format!("  {program} put --addr {} dove coo", first.client_addr));
    say(&format!("  {program} get --addr {} dove", first.client_addr));
    say("Ctrl-C stops them all.");
}

/// Starts a node's process and waits until it is ready, however long its recovery takes.
async fn start(plan: &Plan) -> Result<Running, String> {
    let id = plan.id;
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(program);
    command.arg("serve").arg("--supervised");
    if let Some(file) = &plan.config {
        command.arg("--config").arg(file);
    }
    // As flags, so that neither the file nor the environment, meant for all nodes, can say otherwise.
    let flags: [(&str, &Path); 5] = [
        ("--dir", &plan.dir),
        ("--listen-client", plan.client_addr.as_ref()),
        ("--listen-peer", plan.peer_addr.as_ref()),
        ("--listen-rest", plan.rest_addr.as_ref()),
        ("--log", plan.log.as_ref()),
    ];
    for (flag, value) in flags {
        command.arg(flag).arg(value);
    }
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start {id}: {error}"))?;
    let input = child.stdin.take();
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let is_ready = {
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("ready") {
                    return true;
                }
            }
            false
        };
        tokio::pin!(ready);
        let clock = RealClock::new();
        select! {
            biased;
            ready = &mut ready => ready,
            () = clock.sleep_until(STARTS_LONG) => {
                complain(&format!("{id} is still starting: it reads its log in {}", plan.dir.display()));
                ready.await
            }
        }
    };
    if !is_ready {
        // Its standard output has ended, so it has ended or is about to.
        drop(input);
        #[allow(clippy::disallowed_methods)] // not node code: a command that waits for a process
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        let how = ended.map_or_else(
            |_| "it hangs".to_owned(),
            |status| status.map_or_else(|e| e.to_string(), |s| s.to_string()),
        );
        let dir = plan.dir.display();
        return Err(format!("{id} did not become ready ({how}); its messages are above, its data in {dir}"));
    }
    let output = tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            say(&line);
        }
    });
    Ok(Running { child, input, output })
}

/// Stops a node's process.
async fn stop(id: NodeId, mut running: Running) {
    drop(running.input.take());
    #[allow(clippy::disallowed_methods)] // not node code: a command that waits for a process
    let ended = tokio::time::timeout(PATIENCE, running.child.wait()).await;
    if ended.is_err() {
        complain(&format!("{id} does not stop; it is killed. Acknowledged writes are safe."));
        let _ = running.child.kill().await;
    }
    let _ = running.output.await;
}
