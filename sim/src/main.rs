//! The `sim` command: replays a seed.

use std::process::ExitCode;

#[cfg(madsim)]
mod command {
    use std::io::Write;
    use std::process::ExitCode;

    use clap::{Parser, Subcommand};
    use jepsen_like_checks::Verdict;
    use sim::scenario::{self, Options};

    /// Deterministic simulation of a ringdove cluster.
    #[derive(Parser)]
    #[command(name = "cargo sim", version)]
    struct Args {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Subcommand)]
    enum Command {
        /// Play one seed; the last line is the hash of everything that happened.
        Run {
            /// The seed, from which everything follows.
            #[arg(long)]
            seed: u64,
            /// Print every event.
            #[arg(long)]
            log: bool,
        },
    }

    /// Prints a line. A reader that has seen enough (a closed pipe) is nothing to fail about.
    fn say(line: &str) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    pub(crate) fn main() -> ExitCode {
        let Args { command: Command::Run { seed, log } } = Args::parse();
        match scenario::run(seed, &Options { log }) {
            Ok(report) => {
                let operations = report.operations;
                say(&format!(
                    "seed {seed}: {} read, {} written, {} refused, {} unknown; {} events in {:.3} s simulated",
                    operations.read,
                    operations.written,
                    operations.refused,
                    operations.unknown,
                    report.events,
                    report.simulated.as_secs_f64()
                ));
                let valid = match &report.verdict {
                    Verdict::Valid { judged } => {
                        say(&format!("durability: valid, {judged} acknowledged writes judged"));
                        true
                    }
                    Verdict::Invalid { witness, .. } => {
                        say(&format!("durability: INVALID: {witness}"));
                        say(&format!("replay it with: cargo sim run --seed {seed} --log"));
                        false
                    }
                    Verdict::Unknown { reason } => {
                        say(&format!("durability: unknown, {reason}"));
                        false
                    }
                };
                say(&format!("trace hash: {:016x}", report.trace_hash));
                if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(panicked) => {
                eprintln!("seed {seed} failed: {}", panicked.message);
                eprintln!("replay it with: cargo sim run --seed {seed} --log");
                ExitCode::FAILURE
            }
        }
    }
}

/// Compiled without the simulator: starts the build that has it, with the same arguments.
#[cfg(not(madsim))]
mod command {
    use std::process::ExitCode;

    use sim::relaunch;

    pub(crate) fn main() -> ExitCode {
        if relaunch::was_relaunched() {
            eprintln!(
                "sim: compiled without `--cfg madsim` although it was asked for; is there a wrapper around rustc?"
            );
            return ExitCode::FAILURE;
        }
        let status = relaunch::cargo("run")
            .args(["--quiet", "--release", "--bin", "sim", "--"])
            .args(std::env::args_os().skip(1))
            .status();
        match status {
            Ok(status) => match status.code().map(u8::try_from) {
                Some(Ok(code)) => ExitCode::from(code),
                _ => ExitCode::FAILURE,
            },
            Err(error) => {
                eprintln!("sim: cannot start cargo: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

fn main() -> ExitCode {
    command::main()
}
