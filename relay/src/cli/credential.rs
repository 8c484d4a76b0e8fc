//! `postrider credential`.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Subcommand;
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
        /// Take the password from standard input instead of making one.
        #[arg(long)]
        password_stdin: bool,
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
    /// Remove a credential.
    Remove {
        /// The user name.
        name: String,
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
    /// The file, and whether the tenant is known where a configuration says so.
    fn path(&self, tenant: Option<&str>) -> Result<PathBuf, Failure> {
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
            password_stdin,
            which,
        } => {
            let path = which.path(Some(&tenant))?;
            let chosen = password_stdin.then(read_password).transpose()?;
            let made = chosen.is_none();
            let password = file::add(&path, &name, &tenant, chosen)?;
            if made {
                print(&format!("{}\n", *password))?;
            }
        }
        Command::List { json, which } => {
            let entries = file::read(&which.path(None)?)?;
            let rows = entries.iter().map(|(name, (tenant, _))| (name, tenant));
            if json {
                let rows: Vec<_> = rows
                    .map(|(name, tenant)| serde_json::json!({ "name": name, "tenant": tenant }))
                    .collect();
                print_json(&rows)?;
            } else {
                let heads = ["NAME", "TENANT"].map(String::from);
                let rows = rows.map(|(name, tenant)| [name.clone(), tenant.clone()]);
                print(&columns(&std::iter::once(heads).chain(rows).collect::<Vec<_>>()))?;
            }
        }
        Command::Remove { name, which } => file::remove(&which.path(None)?, &name)?,
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
