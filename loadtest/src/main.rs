//! Floods and proofs, driving the relay from without.

mod crash;
mod flood;
mod ledger;
mod load;
mod marks;
mod message;
mod powercut;
mod receivers;
mod relay;
mod report;
mod scenario;
mod signals;

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
    /// Send mail as fast as it is taken, or at a rate, and measure how it is answered.
    Flood(load::flood::FloodOptions),
    /// Take mail for many domains, and find what is damaged, missing or there twice.
    Sink(load::sink::command::SinkOptions),
    /// Play whole runs, each with a store and processes of its own: what they cost, and a verdict on loss, damage and order.
    Scenario(scenario::Options),
    /// Play the scenarios `relay`, `accept` and `relay-dkim` through other relays too, by turns, and print how they compare.
    Compare(scenario::CompareOptions),
    /// Kill the relay with SIGKILL at random moments under load, start it again, and account for every message.
    Crash(crash::Options),
    /// Measure what is promised, and say where it falls short: a figure a line, exit code 1 if one does.
    Marks(marks::Options),
    /// Cut the power under a relay at random moments, start it on what the disk may hold then, and account for every message.
    Powercut(powercut::Options),
    /// Mount a disk that fails, fills up or is slow on command.
    Faultfs(powercut::faultfs::Options),
}

fn main() -> ExitCode {
    // There is one provider in the binary; a second call would change nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(&Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: ERROR: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// False where a promise did not hold.
fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Flood(options) => load::flood::flood(options),
        Command::Sink(options) => load::sink::command::sink(options),
        Command::Scenario(options) => scenario::run(options),
        Command::Compare(options) => scenario::compare(options),
        Command::Crash(options) => block_on(crash::run(options)),
        Command::Marks(options) => marks::run(options),
        Command::Powercut(options) => block_on(powercut::run(options)),
        Command::Faultfs(options) => block_on(powercut::faultfs::run(options)).map(|()| true),
    }
}

fn block_on<T>(proof: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(proof)
}
