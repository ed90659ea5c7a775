//! The `sim` command: plays seeds and plans, one or many.

use std::process::ExitCode;

#[cfg(madsim)]
#[allow(clippy::disallowed_methods)]
// what is around the runs is an ordinary program: real files, clocks, threads
mod command;

/// A fifth of a run was malloc and free. Nothing in a run may hang on an address, whoever gives it out.
#[cfg(madsim)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
