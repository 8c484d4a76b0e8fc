//! `postrider credential`.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;
use zeroize::Zeroizing;

use crate::credentials::file;

use super::output::{columns, print, print_json};
use super::{ConfigFile, Failure};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Add a credential, and print its password: it is kept nowhere. A running relay knows it within a second.
    #[command(after_help = "Examples:\n  postrider credential add app --tenant shop\n  \
        pass show mail/app | postrider credential add app --tenant shop --password-stdin")]
    Add {
        /// The user name.
        name: String,
        /// For whom it speaks.
        #[arg(long)]
        tenant: String,
        /// In which of the tenant's streams its mail is, unless a listed header field says. Else the listener's, or "transactional".
        #[arg(long)]
        stream: Option<String>,
        /// Take the password from standard input instead of making one.
        #[arg(long)]
        password_stdin: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        which: Which,
    },
    /// List the names, with their tenants.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Remove a credential. Sessions that are logged in by it end before their next message, a second later at most.
    Remove {
        /// The user name.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        which: Which,
    },
}

/// Which file.
#[derive(clap::Args)]
pub(super) struct Which {
    /// The credentials file; unless given, the configuration says which.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Which {
    /// The file, if tenant and stream are known where a configuration says so.
    fn path(&self, tenant: Option<&str>, stream: Option<&str>) -> Result<PathBuf, Failure> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        // Mistakes elsewhere do not hinder: perhaps this command is to mend one.
        let (settings, mistakes) = self.config.look()?;
        let settings = settings.ok_or_else(|| Failure::Usage(mistakes.to_string()))?;
        if let Some(tenant) = tenant.filter(|tenant| !settings.tenants.contains_key(*tenant)) {
            let text = format!(
                "there is no tenant {tenant:?}; it would be a table [tenants.{tenant}] in the configuration"
            );
            return Err(Failure::Usage(text));
        }
        let streams = &settings.delivery.streams;
        if let Some(text) = stream.and_then(|stream| streams.unknown(stream)) {
            return Err(Failure::Usage(text));
        }
        let unset = "the configuration names no credentials file: credentials = \"credentials.toml\"";
        settings
            .credentials_file
            .ok_or_else(|| Failure::Usage(unset.into()))
    }
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Add {
            name,
            tenant,
            stream,
            password_stdin,
            json,
            which,
        } => {
            let path = which.path(Some(&tenant), stream.as_deref())?;
            let chosen = password_stdin.then(read_password).transpose()?;
            let made = chosen.is_none();
            let password = file::add(&path, &name, &tenant, stream.as_deref(), chosen)?;
            let told = made.then_some(password.as_str());
            if json {
                print_json(
                    &json!({ "name": name, "tenant": tenant, "stream": stream, "password": told, "file": path }),
                )?;
            } else if let Some(password) = told {
                print(&format!("{password}\n"))?;
            }
        }
        Command::List { json, which } => {
            let entries = file::read(&which.path(None, None)?)?;
            if json {
                let rows: Vec<_> = entries
                    .iter()
                    .map(|(name, entry)| {
                        json!({ "name": name, "tenant": entry.tenant, "stream": entry.stream })
                    })
                    .collect();
                print_json(&rows)?;
            } else {
                let heads = ["NAME", "TENANT", "STREAM"].map(String::from);
                let rows = entries.iter().map(|(name, entry)| {
                    let stream = entry.stream.clone().unwrap_or_default();
                    [name.clone(), entry.tenant.clone(), stream]
                });
                print(&columns(&std::iter::once(heads).chain(rows).collect::<Vec<_>>()))?;
            }
        }
        Command::Remove { name, json, which } => {
            let path = which.path(None, None)?;
            file::remove(&path, &name)?;
            if json {
                print_json(&json!({ "name": name, "removed": true, "file": path }))?;
            }
        }
    }
    Ok(())
}

fn read_password() -> Result<Zeroizing<String>, Failure> {
    let mut password = Zeroizing::new(String::new());
    std::io::stdin().take(4_096).read_to_string(&mut password)?;
    let end = password.trim_end_matches(['\r', '\n']).len();
    password.truncate(end);
    Ok(password)
}
