//! The `ringdove` command; everything is in [`ringdove::cli`].

fn main() -> std::process::ExitCode {
    ringdove::cli::main()
}
