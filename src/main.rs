//! The `ringdove` command; everything is in [`ringdove::cli`].

/// malloc and free were a quarter of what a read cost, most of it blocks that one thread makes and another frees: what
/// the system's allocator is slowest at. A choice of the program: who uses the library keeps their own, and the
/// simulator measures nothing.
#[cfg(not(madsim))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ringdove::cli::main()
}
