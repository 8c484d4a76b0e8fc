//! The command line. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod adjustment;
mod credential;
mod damaged;
mod dkim;
mod effective;
mod limits;
mod manage;
mod operate;
mod output;
mod queue;
mod run;
mod send;
mod store;
mod which;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use admin_api::client::ClientError;
use clap::{Parser, Subcommand};

use crate::config::{self, Mistakes, Settings};

pub(crate) use run::told_to_stop;

/// An outbound mail relay: takes mail from applications, keeps it on disk, signs it, and delivers it.
#[derive(Parser)]
#[command(name = "postrider", version, propagate_version = true)]
#[command(
    after_help = "Begin with a configuration: postrider check --example > postrider.toml. `postrider check FILE` tells every \
        mistake in it.\n\nExit codes: 0 done, 1 failed, 2 wrong usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay until SIGTERM or SIGINT. SIGHUP reloads its configuration.
    Run {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Check a configuration and tell every mistake with its place.
    Check {
        /// The configuration.
        #[arg(env = "POSTRIDER_CONFIG", default_value = DEFAULT_CONFIG)]
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print a configuration to begin with: every key with its meaning and default.
        #[arg(long)]
        example: bool,
    },
    /// Run the relay in a small Internet of its own on loopback: DNS, mail servers, mailboxes. No root, no configuration.
    Lab(crate::lab::Options),
    /// Send a message, from a file or standard input, by SMTP.
    Send(send::Send),
    /// See the queues of the running relay; suspend, resume, retry and delete them.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// See messages and what became of them; retry and delete single ones.
    #[command(subcommand)]
    Message(queue::MessageCommand),
    /// See what is used of the limits of sites, providers, tenants and sources.
    #[command(subcommand)]
    Limit(limits::LimitCommand),
    /// See what replies have taught the running relay: what is suspended or goes slower; set and end such adjustments.
    #[command(subcommand)]
    Adjustment(adjustment::AdjustmentCommand),
    /// Keep the credentials by which clients log in.
    #[command(subcommand)]
    Credential(credential::Command),
    /// Have the running relay read its configuration anew: all of it, or nothing and every mistake told.
    Reload(manage::Reload),
    /// Have the running relay take no more mail, and wait until what it has is delivered.
    Drain(manage::Drain),
    /// See the configuration.
    #[command(subcommand)]
    Config(manage::ConfigCommand),
    /// Keep the tokens that open the admin API over TCP.
    #[command(subcommand)]
    Token(manage::TokenCommand),
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
        exists(&self.path)?;
        config::load(&self.path).map_err(mistaken)
    }

    /// See [`config::load_here`].
    fn load_here(&self) -> Result<Settings, Failure> {
        exists(&self.path)?;
        config::load_here(&self.path).map_err(mistaken)
    }

    /// See [`config::look`].
    fn look(&self) -> Result<(Option<Settings>, Mistakes), Failure> {
        exists(&self.path)?;
        Ok(config::look(&self.path))
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
        let error = error.into();
        match error.downcast_ref::<ClientError>() {
            // What was asked makes no sense to the relay.
            Some(ClientError::Refused(problem)) if problem.status == 400 => Self::Usage(format!("{error:#}")),
            _ => Self::Failed(error),
        }
    }
}

fn exists(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "there is no configuration {}; begin with what `postrider check --example` prints, or name another with --config \
         FILE or POSTRIDER_CONFIG",
        path.display()
    )))
}

fn mistaken(mistakes: Mistakes) -> Failure {
    Failure::Usage(mistakes.to_string())
}

/// All commands and their options.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    // With two providers in a binary rustls would panic; there is one, and it is said which.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let done = match Cli::parse().command {
        Command::Run { config } => config.load_here().and_then(run::run),
        Command::Lab(options) => match crate::lab::main(&options) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error.into()),
        },
        Command::Check { example: true, .. } => output::print(EXAMPLE).map_err(Failure::from),
        Command::Check { file, json, .. } => check(&file, json),
        Command::Send(command) => send::run(command),
        Command::Queue(command) => queue::queue(command),
        Command::Message(command) => queue::message(command),
        Command::Adjustment(command) => adjustment::run(command),
        Command::Credential(command) => credential::run(command),
        Command::Reload(command) => manage::reload(&command),
        Command::Drain(command) => manage::drain(&command),
        Command::Config(command) => manage::config(command),
        Command::Token(command) => manage::token(command),
        Command::Limit(command) => limits::limit(command),
        Command::Dkim(command) => dkim::run(command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            eprintln!("postrider: {error:#}");
            ExitCode::FAILURE
        }
        Err(Failure::Usage(text)) => {
            if !text.is_empty() {
                eprintln!("{text}");
            }
            ExitCode::from(2)
        }
    }
}

/// Every key with its meaning and default.
const EXAMPLE: &str = include_str!("../../../docs/postrider.example.toml");

fn check(file: &Path, json: bool) -> Result<(), Failure> {
    exists(file)?;
    let mistakes = match config::load_here(file) {
        Ok(_) if json => {
            return Ok(output::print_json(
                &serde_json::json!({ "ok": true, "mistakes": [] }),
            )?);
        }
        Ok(_) => return Ok(output::print(&format!("{}: no mistakes\n", file.display()))?),
        Err(mistakes) => mistakes,
    };
    if !json {
        return Err(Failure::Usage(mistakes.to_string()));
    }
    let list: Vec<_> = mistakes
        .0
        .iter()
        .map(|problem| {
            serde_json::json!({
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
                "key": problem.key,
                "text": problem.text,
            })
        })
        .collect();
    output::print_json(&serde_json::json!({ "ok": false, "mistakes": list }))?;
    Err(Failure::Usage(String::new()))
}

#[cfg(test)]
mod tests {
    use admin_api::Problem;
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn what_makes_no_sense_to_the_relay_is_wrong_usage() {
        for (status, is_usage) in [(400, true), (404, false), (409, false), (503, false)] {
            let problem = Problem {
                kind: "about:blank".into(),
                title: String::new(),
                status,
                detail: "no such provider".into(),
                mistakes: Vec::new(),
            };
            let failure = Failure::from(ClientError::Refused(problem));
            let told = matches!(&failure, Failure::Usage(text) if text == "no such provider");
            assert_eq!(told, is_usage, "{status}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
