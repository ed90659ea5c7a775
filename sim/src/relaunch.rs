//! Starts the build of this crate that has `cfg(madsim)` from one that has not.
//!
//! `cargo sim` and `cargo sim-test` set the cfg by `--config`; a `RUSTFLAGS` in the environment takes the place
//! of all such settings, and the crate is then compiled without the simulator. So is it by `cargo run -p sim`.
//! This puts the cfg where it counts: behind the flags in the environment if there are any, else where the
//! aliases put it, so that both share one build.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Set for the build that is started here: if that one still lacks the cfg, it must not start another.
pub const GUARD: &str = "RINGDOVE_SIM_RELAUNCHED";

/// As in `.cargo/config.toml`.
pub const CONFIG: &str = "target.'cfg(all())'.rustflags=['--cfg','madsim']";

/// `cargo <subcommand> --package sim` for the build with the cfg; add what follows `--package sim`.
pub fn cargo(subcommand: &str) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let member =
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let mut command = Command::new(cargo);
    command
        .arg(subcommand)
        .arg("--manifest-path")
        .arg(PathBuf::from(member).join("Cargo.toml"))
        .args(["--package", "sim"])
        .env(GUARD, "1");
    if let Some(mut flags) = env::var_os("CARGO_ENCODED_RUSTFLAGS") {
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push("--cfg\x1fmadsim");
        command.env("CARGO_ENCODED_RUSTFLAGS", flags);
    } else if let Some(mut flags) = env::var_os("RUSTFLAGS") {
        flags.push(" --cfg madsim");
        command.env("RUSTFLAGS", flags);
    } else {
        command.args(["--config", CONFIG]);
    }
    command
}

/// True in a build that was itself started by [`cargo`]: something takes the cfg away again.
pub fn was_relaunched() -> bool {
    env::var_os(GUARD).is_some()
}
