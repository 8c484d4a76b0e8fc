//! Floods and proofs, driving the relay from without.

mod crash;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Drives a relay from without: what it promises is compared with what arrives.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill the relay with SIGKILL at random moments under load, start it again, and account for every message.
    Crash(crash::Options),
}

fn main() -> ExitCode {
    // There is one provider in the binary; a second call would change nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Command::Crash(options) = Cli::parse().command;
    match crash::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: ERROR: {error:#}");
            ExitCode::from(2)
        }
    }
}
