//! `ringdove config`, and how every command that needs settings gets them: the flags of the table, `--config`, the
//! environment.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};

use super::{DONE, USAGE, complain, say};
use crate::config::table::SETTINGS;
use crate::config::value::nearest;
use crate::config::{self, Effective, Layers, LogFormat, Settings};

/// Most bytes of a settings file: some hundred times what it can need.
const FILE_LEN_MAX: u64 = 1024 * 1024;
/// Variables that are no settings of a node.
const OTHER_VARIABLES: [&str; 3] = ["RINGDOVE_ADDR", "RINGDOVE_CONFIG", "RINGDOVE_NODE_ID"];

/// A file, and a flag for every setting.
#[derive(Debug, Clone, Default)]
pub(super) struct Flags {
    /// The settings file.
    pub(super) file: Option<PathBuf>,
    /// What was given, by the name of the setting.
    pub(super) given: BTreeMap<&'static str, String>,
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        let mut flags = Flags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>("config").cloned();
        for setting in SETTINGS {
            if let Some(text) = matches.get_one::<String>(setting.name) {
                self.given.insert(setting.name, text.clone());
            }
        }
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("RINGDOVE_CONFIG")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Settings file (TOML): every setting below, with underscores for dashes.");
        SETTINGS.iter().fold(command.arg(file), |command, setting| {
            let help = format!("{} [default: {}]", setting.doc.replace('`', ""), setting.default());
            let flag = Arg::new(setting.name)
                .long(setting.name.replace('_', "-"))
                .value_name(setting.kind.to_string())
                .allow_hyphen_values(true)
                .help_heading("Settings")
                .help(help);
            command.arg(flag)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
}

/// Prints the settings that a node would run with, and where each comes from.
pub(super) fn run(args: &Args) -> u8 {
    match load(&args.flags) {
        Ok(effective) => {
            say(effective.to_toml().trim_end());
            DONE
        }
        Err(code) => code,
    }
}

/// Reads file, environment and flags. Says what is wrong, all of it.
///
/// # Errors
/// The exit code, when something is.
pub(super) fn load(flags: &Flags) -> Result<Effective, u8> {
    let text = match &flags.file {
        None => None,
        Some(path) => match read(path) {
            Ok(text) => Some((path.display().to_string(), text)),
            Err(reason) => {
                complain(&format!("{}: {reason}", path.display()));
                return Err(USAGE);
            }
        },
    };
    warn_of_unknown_variables();
    let file = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    let layers = Layers { file, env: &|name| std::env::var_os(name), flags: &flags.given };
    config::load(&layers).map_err(|problems| {
        for problem in problems {
            complain(&problem.to_string());
        }
        USAGE
    })
}

#[allow(clippy::disallowed_methods)] // not node code, and before there is a disk
fn read(path: &PathBuf) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("the settings cannot be read: {error}"))?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("the settings cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(format!("this is no settings file: it has more than {FILE_LEN_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "this is no settings file: it is not UTF-8 text".to_owned())
}

/// A variable that almost is a setting is most likely meant to be one. It is no error: others may use the prefix.
fn warn_of_unknown_variables() {
    let known: Vec<String> = SETTINGS.iter().map(crate::config::table::Setting::env).collect();
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("RINGDOVE_")) else { continue };
        if known.iter().any(|known| known == name) || OTHER_VARIABLES.contains(&name) {
            continue;
        }
        let bare = name.trim_start_matches("RINGDOVE_");
        if let Some(near) = nearest(bare, SETTINGS.iter().map(|setting| setting.name)) {
            let near = near.to_ascii_uppercase();
            complain(&format!("{name} is no setting and is ignored: did you mean RINGDOVE_{near}?"));
        }
    }
}

/// Starts logging on standard error.
///
/// # Errors
/// When the filter cannot be used; it was checked when the settings were read.
pub(super) fn start_logging(settings: &Settings) -> Result<(), String> {
    use std::io::IsTerminal;
    use tracing_subscriber::fmt::format::FmtSpan;
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log).map_err(|error| error.to_string())?;
    let ansi = settings.log_format == LogFormat::Pretty && std::io::stderr().is_terminal();
    // A span is told when it ends, with its fields and how long it took, if the filter lets its level through: so a
    // trace id finds a request on every node that it reached.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(ansi)
        .with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Pretty => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    }
    .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    #[test]
    fn every_setting_is_a_flag() {
        for setting in SETTINGS {
            let line = Line::try_parse_from(["ringdove", &setting.flag(), "x"]).unwrap();
            assert_eq!(line.flags.given.get(setting.name).map(String::as_str), Some("x"));
        }
        let unknown = Line::try_parse_from(["ringdove", "--hint-aftr", "1s"]).unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::UnknownArgument);
        assert!(unknown.to_string().contains("--hint-after"), "{unknown}");
    }
}
