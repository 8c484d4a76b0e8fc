//! `postrider queue` and `postrider message`: what the running relay says through its admin API.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use admin_api::client::Client;
use admin_api::operate::{Suspension, WaitsFor};
use admin_api::{Hold, HoldList, MessageView, QueueList, QueueSummary, QueuesQuery, Time};
use clap::Subcommand;
use mail_core::MessageId;
use serde::Serialize;

use super::damaged::{self, DamagedCommand};
use super::operate;
use super::output::{columns, plain, print, print_json, size};
use super::store::{self, StoreFolder};
use super::which::{Mail, Names, Which};
use super::{ConfigFile, Failure};
use crate::delivery::client_tls::ClientTls;

/// Queues asked for at a time.
const PAGE: usize = 500;

#[derive(Subcommand)]
pub(super) enum QueueCommand {
    /// List the queues that hold mail: who sends, where to, how much, when it is tried next, what holds it up.
    #[command(
        after_help = "Example:\n  postrider queue list --json | jq '.queues[] | select(.messages > 1000) | .domain'"
    )]
    List {
        #[command(flatten)]
        names: Names,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Queues without mail too.
        #[arg(long)]
        all: bool,
        /// At most so many.
        #[arg(long, default_value_t = 10_000)]
        limit: usize,
        #[command(flatten)]
        api: Api,
    },
    /// Show one queue: how much waits, since when, and what holds it up.
    Show {
        /// Its number, as `queue list` shows it.
        id: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Set queues to wait, those too that come to be later. Mail expires all the same.
    #[command(
        after_help = "Example:\n  postrider queue suspend --domain example.com --for 2h --reason 'their maintenance'"
    )]
    Suspend {
        #[command(flatten)]
        which: Which,
        /// For how long, such as 30m or 2h; unless given, until resumed.
        #[arg(long = "for", value_name = "TIME", value_parser = super::send::span)]
        span: Option<std::time::Duration>,
        /// Why: shown to whoever asks, and in reports on mail that expires meanwhile.
        #[arg(long)]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// End a suspension, named as it was suspended.
    Resume {
        #[command(flatten)]
        which: Which,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Try mail at once, whatever its destination rests for.
    Retry {
        #[command(flatten)]
        which: Mail,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// List what is set aside: messages that are damaged in the store, or that the relay can't work on; and damaged records.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Nobody tries what is set aside; it expires as any other mail. docs/queues.md tells what to do."
    )]
    Damaged {
        #[command(subcommand)]
        command: Option<DamagedCommand>,
        /// At most so many messages.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Delete mail that waits. Shows how much it is, and deletes with --yes alone. No sender is told, unless --tell.
    #[command(after_help = "By --recipient a message stays that others wait for too.\n\n\
        Example:\n  postrider queue delete --sender @shop.example --older-than 2h")]
    Delete {
        #[command(flatten)]
        which: Mail,
        /// Delete it.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        tell: operate::Tell,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Read all of a store that no relay has open, and tell what in it does not verify. Changes nothing.
    #[command(after_help = "Exit code 1 where something is wrong. docs/durability.md tells what to do then.")]
    Verify {
        #[command(flatten)]
        store: StoreFolder,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write all mail of a store that no relay has open, with its state, as a stream for `queue import`. Changes nothing.
    #[command(
        after_help = "Exit code 1 where something could not be read and is not in the stream; it is told line by line.\n\n\
        Example, out of a damaged store into a new one:\n  \
        postrider queue export --salvage | postrider queue import --store /var/lib/postrider-new"
    )]
    Export {
        #[command(flatten)]
        store: StoreFolder,
        /// The stream's file, which must not be there yet; unless given, standard output.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Go on behind what does not read, and take what is there of a store that lost its end.
        #[arg(long)]
        salvage: bool,
        /// Print what was done as JSON: to standard error where the stream goes to standard output.
        #[arg(long)]
        json: bool,
    },
    /// Take mail of `queue export` into a store that no relay has open, as it was: IDs, attempts, due times, deadlines.
    #[command(
        after_help = "A message that is there already is passed over; a stream that was taken in half is gone on with. Run it as \
        the user the relay runs as."
    )]
    Import {
        /// The stream; unless given, standard input.
        #[arg(value_name = "FILE")]
        stream: Option<PathBuf>,
        #[command(flatten)]
        store: StoreFolder,
        /// Mail whose smart host nobody can tell, its record being damaged, goes by MX; unless given, it waits.
        #[arg(long)]
        lost_by_mx: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum MessageCommand {
    /// Show a message: each recipient's state, attempts and last reply, and what happened so far.
    #[command(
        after_help = "The ID is the one of the reply to the client, `250 2.0.0 queued as ID`.\n\n\
        Example:\n  postrider message show 019a2b3c4d5e7f8091a2b3c4d5e6f708"
    )]
    Show {
        /// Its ID.
        id: MessageId,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// List messages that wait, by queue and due time: all of them, or those for which all that is given holds.
    #[command(after_help = "Example:\n  postrider message list --recipient someone@example.com")]
    List {
        #[command(flatten)]
        which: Mail,
        /// At most so many.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Print a message in the queue, as it goes out but for its signature. Who read it is noted in the relay's log.
    Raw {
        /// Its ID.
        id: MessageId,
        #[command(flatten)]
        api: Api,
    },
    /// Try a message at once, whatever its destinations rest for.
    Retry {
        /// Its ID.
        id: MessageId,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Delete a message that waits. Shows what it is, and deletes with --yes alone. Its sender isn't told, unless --tell.
    Delete {
        /// Its ID.
        id: MessageId,
        /// Delete it.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        tell: operate::Tell,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
}

/// Which relay is asked.
#[derive(clap::Args)]
pub(super) struct Api {
    /// The admin API: unix:PATH, or http://HOST:PORT or https://HOST:PORT with a token in POSTRIDER_TOKEN; unless given, the
    /// configuration says where it is.
    #[arg(long, value_name = "unix:PATH or URL", env = "POSTRIDER_ADMIN")]
    admin: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Api {
    pub(super) fn config(&self) -> &ConfigFile {
        &self.config
    }

    pub(super) fn client(&self) -> Result<Client, Failure> {
        let Some(text) = &self.admin else {
            let (settings, mistakes) = self.config.look()?;
            let settings = settings.ok_or_else(|| Failure::Usage(mistakes.to_string()))?;
            let none = "the configuration names no admin.socket";
            let socket = settings.admin.socket.ok_or_else(|| Failure::Usage(none.into()))?;
            return Ok(Client::new(&socket));
        };
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Client::new(Path::new(path)));
        }
        // Not an option: everyone on the machine can read a command line.
        let token = std::env::var("POSTRIDER_TOKEN")
            .ok()
            .filter(|token| !token.is_empty());
        let tls = ClientTls::new(None)?.verified();
        Client::at(text, token, tls).map_err(|why| {
            Failure::Usage(format!(
                "{text:?} {why}; write unix:PATH, http://HOST:PORT or https://HOST:PORT"
            ))
        })
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

/// What `queue list --json` prints.
#[derive(Serialize)]
struct Listing {
    #[serde(flatten)]
    list: QueueList,
    holds: Vec<Hold>,
    /// Whether there are more of them.
    more_holds: bool,
    suspensions: Vec<Suspension>,
}

pub(super) fn queue(command: QueueCommand) -> Result<(), Failure> {
    let (names, json, all, limit, api) = match command {
        QueueCommand::List {
            names,
            json,
            all,
            limit,
            api,
        } => (names, json, all, limit, api),
        QueueCommand::Show { id, json, api } => return operate::show_queue(id, json, &api),
        QueueCommand::Suspend {
            which,
            span,
            reason,
            json,
            api,
        } => return operate::suspend(&which, span, reason, json, &api),
        QueueCommand::Resume { which, json, api } => return operate::resume(&which, json, &api),
        QueueCommand::Retry { which, json, api } => return operate::retry_mail(&which, json, &api),
        QueueCommand::Damaged {
            command,
            limit,
            json,
            api,
        } => return damaged::damaged(command, limit, json, &api),
        QueueCommand::Verify { store, json } => return store::verify(&store, json),
        QueueCommand::Export {
            store,
            output,
            salvage,
            json,
        } => return store::export(&store, output.as_deref(), salvage, json),
        QueueCommand::Import {
            stream,
            store,
            lost_by_mx,
            json,
        } => return store::import(&store, stream.as_deref(), lost_by_mx, json),
        QueueCommand::Delete {
            which,
            yes,
            tell,
            json,
            api,
        } => return operate::delete_mail(&which, yes, tell, json, &api),
    };
    let client = api.client()?;
    let listing = block_on(async {
        let mut list = QueueList::default();
        let mut query = QueuesQuery {
            tenant: names.tenant,
            stream: names.stream,
            domain: names.domain,
            empty: all,
            ..QueuesQuery::default()
        };
        while list.queues.len() < limit {
            query.after = list.next;
            query.limit = Some(PAGE.min(limit - list.queues.len()));
            let page = client.queues(&query).await?;
            list.queues.extend(page.queues);
            list.next = page.next;
            if list.next.is_none() {
                break;
            }
        }
        let HoldList { holds, more } = client.holds().await?;
        let suspensions = client.suspensions().await?.suspensions;
        Ok::<_, admin_api::client::ClientError>(Listing {
            list,
            holds,
            more_holds: more,
            suspensions,
        })
    })??;
    if json {
        return Ok(print_json(&listing)?);
    }
    Ok(print(&show_queues(&listing))?)
}

/// What keeps a queue's mail here, in a few words; nothing where it only waits for its time or its turn.
fn held_by(queue: &QueueSummary) -> String {
    if let Some(suspension) = &queue.suspension {
        return format!(
            "suspended {}",
            operate::until(suspension.until, &suspension.reason)
        );
    }
    if let Some(hold) = &queue.hold {
        return operate::until(Some(hold.until), &hold.cause);
    }
    let held = queue.waits.as_ref().filter(|waits| match waits.what {
        WaitsFor::Adjustment
        | WaitsFor::Rest
        | WaitsFor::Limit
        | WaitsFor::Reserved
        | WaitsFor::Connection => true,
        WaitsFor::Underway | WaitsFor::Resume | WaitsFor::Turn => waits.fallback.is_some(),
    });
    held.map(operate::waits).unwrap_or_default()
}

fn show_queues(
    Listing {
        list,
        holds,
        more_holds,
        suspensions,
    }: &Listing,
) -> String {
    let mut text = String::new();
    if list.queues.is_empty() {
        text.push_str("No mail waits.\n");
    } else {
        let mut rows = vec![
            [
                "QUEUE", "TENANT", "STREAM", "DOMAIN", "MESSAGES", "SIZE", "OLDEST", "NEXT DUE", "HELD BY",
            ]
            .map(String::from),
        ];
        for queue in &list.queues {
            rows.push([
                queue.id.to_string(),
                queue.tenant.clone(),
                queue.stream.clone(),
                queue.domain.clone(),
                queue.messages.to_string(),
                size(queue.bytes),
                time(queue.oldest),
                time(queue.next_due),
                held_by(queue),
            ]);
        }
        text.push_str(&columns(&rows));
        if list.next.is_some() {
            text.push_str("There are more: see --limit.\n");
        }
    }
    if !holds.is_empty() {
        text.push_str("\nDestinations that rest as a whole:\n");
        let mut rows = vec![["DOMAIN OR SITE", "UNTIL", "FAILURES", "CAUSE"].map(String::from)];
        rows.extend(holds.iter().map(|hold| {
            [
                hold.name.clone(),
                time(Some(hold.until)),
                hold.failures.to_string(),
                hold.cause.clone(),
            ]
        }));
        text.push_str(&columns(&rows));
    }
    if *more_holds {
        text.push_str("More destinations rest than are listed here.\n");
    }
    if !suspensions.is_empty() {
        let _ = write!(text, "\n{}", operate::show_suspensions(suspensions));
    }
    text
}

pub(super) fn show_queue(queue: &QueueSummary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<11} {}", plain(&value));
        }
    };
    line("Queue", Some(queue.id.to_string()));
    line(
        "Tenant",
        Some(format!("{}, stream {}", queue.tenant, queue.stream)),
    );
    line("Domain", Some(queue.domain.clone()));
    line(
        "Waits",
        Some(format!("{} messages, {}", queue.messages, size(queue.bytes))),
    );
    let aside = Some(queue.set_aside).filter(|&aside| aside > 0);
    line("Set aside", aside.map(|aside| format!("{aside} of them")));
    line("Oldest", queue.oldest.map(|time| time.to_string()));
    line("Next due", queue.next_due.map(|time| time.to_string()));
    let suspension = queue.suspension.as_ref();
    line(
        "Suspended",
        suspension.map(|suspension| {
            operate::until(
                suspension.until,
                &format!("{} ({})", suspension.reason, suspension.by),
            )
        }),
    );
    let hold = queue.hold.as_ref();
    line(
        "Rests",
        hold.map(|hold| operate::until(Some(hold.until), &hold.cause)),
    );
    line("Waits for", queue.waits.as_ref().map(operate::waits));
    text
}

pub(super) fn message(command: MessageCommand) -> Result<(), Failure> {
    let (id, json, api) = match command {
        MessageCommand::Show { id, json, api } => (id, json, api),
        MessageCommand::List {
            which,
            limit,
            json,
            api,
        } => return operate::list(&which, limit, json, &api),
        MessageCommand::Raw { id, api } => return operate::raw(id, &api),
        MessageCommand::Retry { id, json, api } => return operate::retry_message(id, json, &api),
        MessageCommand::Delete {
            id,
            yes,
            tell,
            json,
            api,
        } => return operate::delete_message(id, yes, tell, json, &api),
    };
    let client = api.client()?;
    let message = block_on(client.message(id))??;
    if json {
        return Ok(print_json(&message)?);
    }
    Ok(print(&show_message(&message))?)
}

fn show_message(message: &MessageView) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<11} {}", plain(&value));
        }
    };
    line("Message", Some(message.id.clone()));
    line(
        "State",
        Some(if message.queued { "in the queue" } else { "ended" }.into()),
    );
    let sender = message.sender.as_ref();
    line("Sender", sender.map(|sender| format!("<{sender}>")));
    let tenant = message.tenant.as_ref().zip(message.stream.as_ref());
    line(
        "Tenant",
        tenant.map(|(tenant, stream)| format!("{tenant}, stream {stream}")),
    );
    line("Tag", message.tag.clone());
    for (number, (key, value)) in message.metadata.iter().enumerate() {
        let name = if number == 0 { "Metadata" } else { "" };
        line(name, Some(format!("{key} = {value}")));
    }
    line("Size", message.bytes.map(size));
    line("Received", Some(message.received_at.to_string()));
    let client = message.client.as_ref().map(|client| {
        let protocol = message.protocol.as_deref().unwrap_or_default();
        let credential = message.credential.as_ref().map(|name| format!(" as {name}"));
        format!("from {client} with {protocol}{}", credential.unwrap_or_default())
    });
    line("", client);
    line("Held until", message.held_until.map(|time| time.to_string()));
    line("Expires", message.expires_at.map(|time| time.to_string()));
    line("Reports on", message.cause.clone());
    let mut rows = vec![
        [
            "RECIPIENT",
            "STATE",
            "ATTEMPTS",
            "NEXT DUE",
            "WAITS FOR",
            "HOST",
            "CLASS",
            "LAST REPLY",
        ]
        .map(String::from),
    ];
    rows.extend(message.recipients.iter().map(|recipient| {
        let doubts = match recipient.in_doubt {
            0 => String::new(),
            doubts => format!(" ({doubts} in doubt)"),
        };
        [
            recipient.recipient.clone(),
            recipient.state.to_string(),
            format!("{}{doubts}", recipient.attempts),
            time(recipient.next_due),
            recipient.waits.as_ref().map(operate::waits).unwrap_or_default(),
            recipient.host.clone().unwrap_or_default(),
            recipient.class.clone().unwrap_or_default(),
            recipient.last_reply.clone().unwrap_or_default(),
        ]
    }));
    let _ = write!(text, "\n{}", columns(&rows));
    let mut rows = vec![["TIME", "EVENT", "RECIPIENTS", "SOURCE", "CLASS", "REPLY"].map(String::from)];
    rows.extend(message.events.iter().map(|event| {
        let recipients = match event.recipients.as_slice() {
            [first, _, ..] => format!("{first} and {} more", event.recipients.len() - 1),
            one => one.concat(),
        };
        [
            event.at.to_string(),
            event.kind.clone(),
            recipients,
            event.source.clone().unwrap_or_default(),
            event.class.clone().unwrap_or_default(),
            event.reply.clone(),
        ]
    }));
    if !message.events.is_empty() {
        let _ = write!(text, "\n{}", columns(&rows));
    }
    text
}

pub(super) fn time(time: Option<Time>) -> String {
    time.map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use admin_api::Control;
    use queue::store::MemoryStore;

    use super::*;
    use crate::control::QueueControl;
    use crate::control::tests::accept;

    #[tokio::test]
    async fn shows_what_the_relay_knows() {
        let queue = queue::Queue::in_memory(MemoryStore::new()).unwrap();
        let control = Arc::new({
            let (doors, _) = crate::delivery::exchange::open(1);
            QueueControl::new(queue.clone(), doors, crate::world::Clock::system())
        });
        let listing = |list| Listing {
            list,
            holds: Vec::new(),
            more_holds: false,
            suspensions: Vec::new(),
        };
        let list = control.queues(QueuesQuery::default()).await.unwrap();
        assert_eq!(show_queues(&listing(list)), "No mail waits.\n");
        let accepted = accept(&queue, 1, &["a.test"]).await;
        let list = control.queues(QueuesQuery::default()).await.unwrap();
        let mut listing = listing(list);
        listing.holds.push(Hold {
            scope: "lane".into(),
            name: "mx.dead.test".into(),
            since: Time(mail_core::Timestamp(0)),
            until: Time(mail_core::Timestamp(60_000)),
            failures: 3,
            cause: "connection refused".into(),
            class: None,
        });
        assert_eq!(
            show_queues(&listing),
            "QUEUE  TENANT  STREAM         DOMAIN  MESSAGES  SIZE  OLDEST                    NEXT DUE                  HELD BY\n\
             1      acme    transactional  a.test  1         17 B  2023-11-14T22:13:20.000Z  2023-11-14T22:13:20.000Z\n\
             \nDestinations that rest as a whole:\n\
             DOMAIN OR SITE  UNTIL                     FAILURES  CAUSE\n\
             mx.dead.test    1970-01-01T00:01:00.000Z  3         connection refused\n"
        );
        listing.more_holds = true;
        assert!(show_queues(&listing).ends_with("refused\nMore destinations rest than are listed here.\n"));
        let view = control.message(accepted.id).await.unwrap().unwrap();
        let text = show_message(&view);
        for line in [
            "State       in the queue\n",
            "Sender      <from@acme.test>\n",
            "\none@a.test  queued  0         2023-11-14T22:13:20.000Z\n",
            "accepted  one@a.test and 1 more\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
