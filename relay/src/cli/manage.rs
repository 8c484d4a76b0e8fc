//! `postrider reload`, `drain`, `config` and `token`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use admin_api::access::Role;
use admin_api::client::ClientError;
use admin_api::manage::DrainState;
use clap::{Subcommand, ValueEnum};

use crate::tokens;

use super::output::{columns, print, print_json};
use super::queue::{Api, block_on};
use super::{ConfigFile, Failure, effective};

/// How often a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `postrider reload`.
#[derive(clap::Args)]
pub(super) struct Reload {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// `postrider drain`.
#[derive(clap::Args)]
pub(super) struct Drain {
    /// Take mail again.
    #[arg(long, conflicts_with_all = ["no_wait", "timeout"])]
    end: bool,
    /// Don't wait until the queue is empty.
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
    /// Wait no longer than this many seconds; exit code 1 if mail is left then. The relay stays drained.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the configuration with every default spelt out. No secrets are in it: it names the files that hold them.
    Show {
        /// What the running relay goes by, rather than what the file says now.
        #[arg(long)]
        running: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Show which limits hold for a destination, and where each comes from: the configuration, what is shipped for its
    /// provider, or the defaults.
    Effective(effective::Effective),
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token for the admin API over TCP, and print it: it is kept nowhere. A running relay knows it within a second.
    #[command(
        after_help = "Example:\n  POSTRIDER_TOKEN=$(postrider token add ops --role operator) \\\n  \
        POSTRIDER_ADMIN=http://127.0.0.1:8081 postrider queue list"
    )]
    Add {
        /// Whose, as the log names it.
        name: String,
        /// What it opens.
        #[arg(long, value_enum)]
        role: RoleWord,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        which: WhichTokens,
    },
    /// List the names, with their roles.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        which: WhichTokens,
    },
    /// Take a token away.
    Remove {
        /// Whose.
        name: String,
        #[command(flatten)]
        which: WhichTokens,
    },
}

/// What a token opens.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum RoleWord {
    /// Reads what is there, but no messages.
    Viewer,
    /// And changes queues, drains, reloads.
    Operator,
    /// And reads messages.
    Admin,
}

/// Which file.
#[derive(clap::Args)]
pub(super) struct WhichTokens {
    /// The tokens file; unless given, the configuration says which.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

impl WhichTokens {
    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        // Mistakes elsewhere do not hinder: perhaps this command is to mend one.
        let (settings, mistakes) = self.config.look()?;
        let settings = settings.ok_or_else(|| Failure::Usage(mistakes.to_string()))?;
        let unset = "the configuration lets nobody in over TCP: set admin.address, such as \"127.0.0.1:8081\", or name a file \
                     with --file";
        let http = settings.admin.http.ok_or_else(|| Failure::Usage(unset.into()))?;
        Ok(http.tokens)
    }
}

/// Has the running relay read its configuration.
pub(super) fn reload(command: &Reload) -> Result<(), Failure> {
    let client = command.api.client()?;
    match block_on(client.reload())? {
        Ok(done) if command.json => Ok(print_json(&done)?),
        Ok(done) if done.changes.is_empty() => Ok(print("nothing has changed\n")?),
        Ok(done) => Ok(print(&format!("{}\n", done.changes.join("\n")))?),
        Err(ClientError::Refused(problem)) if !problem.mistakes.is_empty() => {
            if command.json {
                print_json(&problem)?;
                return Err(Failure::Usage(String::new()));
            }
            let mistakes = problem.mistakes.join("\n");
            Err(Failure::Usage(format!("{mistakes}\nnothing has changed")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Has the running relay take no more mail, and waits until what it has is gone.
pub(super) fn drain(command: &Drain) -> Result<(), Failure> {
    let client = command.api.client()?;
    let tell = |state: &DrainState| -> Result<(), Failure> {
        if command.json {
            return Ok(print_json(state)?);
        }
        let taken = if state.draining {
            "no mail is taken"
        } else {
            "mail is taken"
        };
        Ok(print(&format!(
            "{taken}; {} sessions are open, {} messages are left\n",
            state.sessions, state.messages
        ))?)
    };
    let mut state = block_on(client.drain(!command.end))??;
    let until = command
        .timeout
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut told = None;
    loop {
        if told != Some(state) && (!command.json || command.no_wait || command.end) {
            tell(&state)?;
        }
        told = Some(state);
        if command.end || command.no_wait || (state.messages == 0 && state.sessions == 0) {
            break;
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            if command.json {
                tell(&state)?;
            }
            return Err(anyhow::anyhow!("mail is left, and goes on being delivered; none is taken").into());
        }
        std::thread::sleep(LOOK_EVERY);
        state = block_on(client.drain_state())??;
        if !state.draining {
            return Err(anyhow::anyhow!("somebody ended the drain: mail is taken again").into());
        }
    }
    if command.json && !command.no_wait && !command.end {
        tell(&state)?;
    }
    Ok(())
}

pub(super) fn config(command: ConfigCommand) -> Result<(), Failure> {
    let (running, json, api) = match command {
        ConfigCommand::Show { running, json, api } => (running, json, api),
        ConfigCommand::Effective(command) => return effective::run(&command),
    };
    if running {
        let client = api.client()?;
        let view = block_on(client.config())??;
        if json {
            print_json(&view)?;
        } else {
            print(&view.toml)?;
        }
        return Ok(());
    }
    let settings = api.config().load()?;
    let effective = &settings.effective;
    if !json {
        return Ok(print(&effective.to_toml())?);
    }
    let entries: Vec<_> = effective
        .entries()
        .map(|(key, value, default)| serde_json::json!({ "key": key, "value": value, "default": default }))
        .collect();
    let file = effective.file().display().to_string();
    let toml = effective.to_toml();
    Ok(print_json(
        &serde_json::json!({ "file": file, "toml": toml, "entries": entries }),
    )?)
}

pub(super) fn token(command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Add {
            name,
            role,
            json,
            which,
        } => {
            let role = match role {
                RoleWord::Viewer => Role::Viewer,
                RoleWord::Operator => Role::Operator,
                RoleWord::Admin => Role::Admin,
            };
            let token = tokens::add(&which.path()?, &name, role)?;
            if json {
                print_json(&serde_json::json!({ "name": name, "role": role, "token": *token }))?;
            } else {
                print(&format!("{}\n", *token))?;
            }
        }
        TokenCommand::List { json, which } => {
            let entries = tokens::read(&which.path()?)?;
            let rows = entries.iter().map(|(name, (role, _))| (name, role.word()));
            if json {
                let rows: Vec<_> = rows
                    .map(|(name, role)| serde_json::json!({ "name": name, "role": role }))
                    .collect();
                print_json(&rows)?;
            } else {
                let heads = ["NAME", "ROLE"].map(String::from);
                let rows = rows.map(|(name, role)| [name.clone(), role.to_owned()]);
                print(&columns(&std::iter::once(heads).chain(rows).collect::<Vec<_>>()))?;
            }
        }
        TokenCommand::Remove { name, which } => tokens::remove(&which.path()?, &name)?,
    }
    Ok(())
}
