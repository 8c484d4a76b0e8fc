//! `postrider dkim`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use dkim_signer::{Algorithm, Selector};
use mail_core::Domain;
use serde_json::Value;

use crate::dkim_cli;

use super::output::{print, print_json};
use super::{ConfigFile, Failure};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a key, and print what to add to the configuration and the DNS.
    Keygen {
        /// Whose mail it signs.
        domain: Domain,
        /// The key's name in the DNS.
        #[arg(long, default_value = "s1")]
        selector: Selector,
        /// RSA is known to all verifiers; Ed25519 signs ten times faster. A domain can have one of each.
        #[arg(long, value_enum, default_value_t = Kind::Rsa)]
        algorithm: Kind,
        /// Where to write it [default: DOMAIN.SELECTOR.pem].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the DNS records of a domain's keys, ready to paste.
    Dns {
        /// Whose.
        domain: Domain,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// Kinds of keys.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Kind {
    /// RSA of 2048 bits.
    Rsa,
    /// Ed25519 (RFC 8463).
    Ed25519,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Keygen {
            domain,
            selector,
            algorithm,
            out,
            json,
        } => {
            let algorithm = match algorithm {
                Kind::Rsa => Algorithm::RsaSha256,
                Kind::Ed25519 => Algorithm::Ed25519Sha256,
            };
            let out = out.unwrap_or_else(|| format!("{domain}.{selector}.pem").into());
            let made = dkim_cli::keygen(&domain, &selector, algorithm, &out)?;
            show(json, || made.json(), || made.text())
        }
        Command::Dns { domain, json, config } => {
            let settings = config.load()?;
            let records =
                dkim_cli::records(&settings.dkim, &settings.hostname, &domain).map_err(|wrong| {
                    let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
                    Failure::Usage(wrong.join("\n"))
                })?;
            show(json, || records.json(&domain), || records.text(&domain))
        }
    }
}

fn show(as_json: bool, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if as_json {
        print_json(&json())?;
    } else {
        print(&text())?;
    }
    Ok(())
}
