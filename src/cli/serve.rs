//! `ringdove serve`: one node on an existing data directory, until Ctrl-C, SIGTERM, or (for a node of
//! `ringdove cluster`) the end of standard input.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use rand::TryRng;
use tokio::io::AsyncReadExt;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{DONE, FAILED, complain, say};
use crate::gateway::serve_rest;
use crate::io::{Io, Net, RealClock, RealDisk, TcpNet};
use crate::node::{Node, NodeConfig, NodeError};
use crate::server::serve_clients;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node's data directory.
    #[arg(long)]
    dir: PathBuf,
    /// Address of the REST gateway; none without it.
    #[arg(long)]
    rest: Option<String>,
    /// What to log, as `tracing` filter directives.
    #[arg(long, env = "RINGDOVE_LOG", default_value = "ringdove=info")]
    log: String,
    /// Stop when standard input ends: a node then never outlives the process that started it.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    let filter = match EnvFilter::try_new(&args.log) {
        Ok(filter) => filter,
        Err(error) => {
            complain(&format!("--log {:?}: {error}; try ringdove=info or ringdove=debug", args.log));
            return 2;
        }
    };
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    match serve(args).await {
        Ok(()) => DONE,
        Err(error) => {
            complain(&error.to_string());
            FAILED
        }
    }
}

async fn serve(args: Args) -> Result<(), NodeError> {
    let disk = RealDisk::new().map_err(|error| listen_error("the disk's threads", &error))?;
    let io = Io { net: Arc::new(TcpNet), disk: Arc::new(disk), clock: Arc::new(RealClock::new()) };
    let mut seed = [0; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut seed).map_err(|error| NodeError::Listen {
        addr: "the system's random source".to_owned(),
        reason: error.to_string(),
    })?;
    let (node, recovery) = Node::open(NodeConfig::new(args.dir), io, seed).await?;
    tracing::info!(
        node = %node.id(),
        records = recovery.records,
        bytes = recovery.bytes,
        cut = recovery.cut,
        starts = recovery.starts,
        "recovered"
    );

    let layout = node.layout();
    let member = layout.member(node.id()).ok_or(NodeError::NotAMember(node.id()))?;
    let listen =
        |addr: String| async move { TcpNet.listen(&addr).await.map_err(|error| listen_error(&addr, &error)) };
    let peer_port = listen(member.peer_addr.clone()).await?;
    let client_port = listen(member.client_addr.clone()).await?;
    let rest = match &args.rest {
        None => None,
        #[allow(clippy::disallowed_methods)] // the gateway is production only and takes tokio's own listener
        Some(addr) => {
            Some(tokio::net::TcpListener::bind(addr).await.map_err(|error| listen_error(addr, &error))?)
        }
    };

    let stopper = node.clone();
    tokio::spawn(async move {
        wait_for_stop(args.stop_with_stdin).await;
        stopper.stop();
    });
    say("ready");
    let clients = serve_clients(node.clone(), client_port);
    let gateway = async {
        if let Some(listener) = rest
            && let Err(error) = serve_rest(node.clone(), listener).await
        {
            tracing::error!(%error, "the REST gateway ended");
        }
    };
    let served = async {
        tokio::join!(clients, gateway);
    };
    node.run(peer_port, served).await?;
    tracing::info!(node = %node.id(), "stopped");
    Ok(())
}

fn listen_error(addr: &str, error: &std::io::Error) -> NodeError {
    NodeError::Listen { addr: addr.to_owned(), reason: error.to_string() }
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
