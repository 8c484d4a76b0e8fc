//! The command line. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod credential;
mod dkim;
mod run;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Settings};

pub(crate) use run::{log, told_to_stop};

/// An outbound mail relay: takes mail from applications, keeps it on disk, signs it, and delivers it.
#[derive(Parser)]
#[command(name = "postrider", version, propagate_version = true)]
#[command(
    after_help = "Begin with docs/postrider.example.toml; `postrider check FILE` tells every mistake in a configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay until SIGTERM or SIGINT.
    Run {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Check a configuration and tell every mistake with its place.
    Check {
        /// The configuration.
        #[arg(default_value = DEFAULT_CONFIG)]
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run the relay in a small Internet of its own on loopback: DNS, mail servers, mailboxes. No root, no configuration.
    Lab(crate::lab::Options),
    /// Keep the credentials by which clients log in.
    #[command(subcommand)]
    Credential(credential::Command),
    /// Make DKIM keys, and print the DNS records of those configured.
    #[command(subcommand)]
    Dkim(dkim::Command),
}

/// Where the configuration is unless told otherwise.
const DEFAULT_CONFIG: &str = "/etc/postrider/postrider.toml";

/// Which configuration.
#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration.
    #[arg(long = "config", value_name = "FILE", env = "POSTRIDER_CONFIG", default_value = DEFAULT_CONFIG)]
    path: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> Result<Settings, Failure> {
        load(&self.path)
    }
}

/// Why a command did not do what it should.
enum Failure {
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Exit code 2.
    Usage(String),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn load(path: &Path) -> Result<Settings, Failure> {
    if !path.exists() {
        return Err(Failure::Usage(format!(
            "there is no configuration {}; write one after docs/postrider.example.toml, or name one with --config",
            path.display()
        )));
    }
    config::load(path).map_err(|mistakes| Failure::Usage(mistakes.to_string()))
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    // With two providers in a binary rustls would panic; there is one, and it is said which.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let done = match Cli::parse().command {
        Command::Run { config } => config.load().and_then(run::run),
        Command::Check { file, json } => check(&file, json),
        Command::Lab(options) => match crate::lab::main(&options) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error.into()),
        },
        Command::Credential(command) => credential::run(command),
        Command::Dkim(command) => dkim::run(command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            eprintln!("postrider: {error:#}");
            ExitCode::FAILURE
        }
        Err(Failure::Usage(text)) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}

fn check(file: &Path, json: bool) -> Result<(), Failure> {
    match load(file) {
        Ok(_) if json => println!("{}", serde_json::json!({ "ok": true, "mistakes": [] })),
        Ok(_) => println!("{}: no mistakes", file.display()),
        Err(Failure::Usage(text)) if json => {
            println!(
                "{}",
                serde_json::json!({ "ok": false, "mistakes": text.lines().collect::<Vec<_>>() })
            );
            return Err(Failure::Usage(String::new()));
        }
        Err(failure) => return Err(failure),
    }
    Ok(())
}
