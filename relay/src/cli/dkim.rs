//! `postrider dkim`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use dkim_signer::{Algorithm, Selector};
use mail_core::Domain;

use crate::dkim_cli;

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
    },
    /// Print the DNS records of a domain's keys, ready to paste.
    Dns {
        /// Whose.
        domain: Domain,
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
    let text = match command {
        Command::Keygen {
            domain,
            selector,
            algorithm,
            out,
        } => {
            let algorithm = match algorithm {
                Kind::Rsa => Algorithm::RsaSha256,
                Kind::Ed25519 => Algorithm::Ed25519Sha256,
            };
            let out = out.unwrap_or_else(|| format!("{domain}.{selector}.pem").into());
            dkim_cli::keygen(&domain, &selector, algorithm, &out)?
        }
        Command::Dns { domain, config } => dkim_cli::dns(&config.load()?, &domain).map_err(|wrong| {
            Failure::Usage(
                wrong
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("\n"),
            )
        })?,
    };
    Ok(super::output::print(&text)?)
}
