//! The command line: run nodes, set them up, read and write keys, move data in and out, look at a cluster, load it.
//!
//! Results go to standard output, everything else to standard error. The exit code tells outcome classes apart:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | not done: refused for good, or a node cannot run |
//! | 2 | wrong usage; nothing was asked for |
//! | 3 | no such key |
//! | 4 | several concurrent values |
//! | 5 | no node reachable, nothing happened |
//! | 6 | outcome of a write unknown |
//! | 7 | no data directory that can be looked at |
//! | 8 | the condition of a write does not hold, nothing happened |
//! | 9 | not now (too few replicas, overload, disk full), nothing happened |
//! | 10 | the node runs elsewhere too, and this process was the lower one and stopped |

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rand::TryRng;

mod bench;
mod cluster;
mod config;
mod connect;
mod explain;
mod export;
mod hints;
mod import;
mod init;
mod kv;
mod look;
mod members;
mod range;
mod reap;
mod records;
mod repair;
mod restart;
mod scan;
mod serve;
mod storage;
mod tree;
mod units;

/// Done.
const DONE: u8 = 0;
/// Not done.
const FAILED: u8 = 1;
/// Wrong usage: the command line or a setting makes no sense.
const USAGE: u8 = 2;
/// No such key.
const NOT_FOUND: u8 = 3;
/// Several concurrent values.
const SIBLINGS: u8 = 4;
/// No node reachable; nothing happened.
const UNREACHABLE: u8 = 5;
/// The outcome of a write is unknown.
const UNKNOWN: u8 = 6;
/// The condition of a write does not hold; nothing happened.
const CONFLICT: u8 = 8;
/// Refused in a way that passes; nothing happened.
const NOT_NOW: u8 = 9;
/// The node runs elsewhere too; this process stopped.
const DOUBLE: u8 = 10;

/// The peer port stands this much above the client port where nothing else is said.
const PEER_PORT_ABOVE: u16 = 100;

/// A leaderless, eventually consistent key-value store.
#[derive(Debug, Parser)]
#[command(name = "ringdove", version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine: one process a node, until Ctrl-C.
    Cluster(cluster::Args),
    /// Make a data directory: of a new cluster, of a member that joins, or of one that lost its own.
    Init(init::Args),
    /// Run one node on an existing data directory.
    Serve(serve::Args),
    /// Print the settings that `serve` would run with, and where each comes from.
    Config(config::Args),
    /// Print the value of a key.
    Get(kv::GetArgs),
    /// Write a key.
    Put(kv::PutArgs),
    /// Delete a key.
    Delete(kv::DeleteArgs),
    /// List the keys of a range, in order.
    Scan(scan::Args),
    /// Write the lines of a file: JSON, or key and value with a tab between.
    Import(import::Args),
    /// Write keys and values into such a file.
    Export(export::Args),
    /// Show how the nodes are.
    Status(look::StatusArgs),
    /// Show what each node keeps for others, and why it still does.
    Hints(look::StatusArgs),
    /// Show what becomes of deleted and expired values, and who is against forgetting them.
    Reap(look::StatusArgs),
    /// Show who the members are, and who holds a key.
    Layout(look::LayoutArgs),
    /// Show all there is of a key on every node, and say why.
    Explain(explain::Args),
    /// Show whether the primaries of each partition hold the same.
    Tree(tree::Args),
    /// Compare partitions on all their primaries now, and make equal what differs.
    Repair(repair::Args),
    /// Load the cluster and measure.
    Bench(bench::Args),
    /// Look at the data directory of a node that is not running; changes nothing.
    Storage(storage::Args),
}

/// Parses the arguments of the process and carries them out.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(async {
        match args.command {
            Command::Cluster(args) => cluster::run(args).await,
            Command::Init(args) => init::run(args).await,
            Command::Serve(args) => serve::run(args).await,
            Command::Config(args) => config::run(&args),
            Command::Get(args) => kv::get(args).await,
            Command::Put(args) => kv::put(args).await,
            Command::Delete(args) => kv::delete(args).await,
            Command::Scan(args) => scan::run(args).await,
            Command::Import(args) => import::run(args).await,
            Command::Export(args) => export::run(args).await,
            Command::Status(args) => look::status(args).await,
            Command::Hints(args) => hints::run(args).await,
            Command::Reap(args) => reap::run(args).await,
            Command::Layout(args) => look::layout(args).await,
            Command::Explain(args) => explain::run(args).await,
            Command::Tree(args) => tree::run(args).await,
            Command::Repair(args) => repair::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Storage(args) => storage::run(args).await,
        }
    });
    // A read of standard input may still hang in a thread of the runtime; nobody needs it any more.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Says something on standard error. A closed standard error is nothing to fail about.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "ringdove: {message}");
}

/// Prints a line on standard output, at once. A closed standard output is nothing to fail about.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Random bytes of the operating system: for secrets and for the seed of a node.
fn os_random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    match rand::rngs::SysRng.try_fill_bytes(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(format!("the system gives no random bytes: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_of_all_commands_fit_together() {
        super::Args::command().debug_assert();
    }
}
