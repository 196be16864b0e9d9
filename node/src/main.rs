//! The binary: hidden roles first, then the command line.

fn main() -> std::process::ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = smartnode::runtime::supervisor::dispatch(&args) {
        return std::process::ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    smartnode::cli::main(smartnode::node::daemon::run)
}
