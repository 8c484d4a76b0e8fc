//! `postrider queue` and `postrider message`: what the running relay says through its admin API.

use std::fmt::Write as _;
use std::path::PathBuf;

use admin_api::client::Client;
use admin_api::{Hold, HoldList, MessageView, QueueList, QueuesQuery, Time};
use clap::Subcommand;
use mail_core::MessageId;
use serde::Serialize;

use super::output::{columns, plain, print, print_json, size};
use super::{ConfigFile, Failure};

/// Queues asked for at a time.
const PAGE: usize = 500;

#[derive(Subcommand)]
pub(super) enum QueueCommand {
    /// List the queues that hold mail: who sends, where to, how much, when it is tried next, what holds it up.
    #[command(
        after_help = "Example:\n  postrider queue list --json | jq '.queues[] | select(.messages > 1000) | .domain'"
    )]
    List {
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
}

/// Which relay is asked.
#[derive(clap::Args)]
pub(super) struct Api {
    /// The admin API; unless given, the configuration says where it is.
    #[arg(long, value_name = "unix:PATH", env = "POSTRIDER_ADMIN")]
    admin: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Api {
    fn client(&self) -> Result<Client, Failure> {
        let socket = match &self.admin {
            Some(text) => match text.strip_prefix("unix:") {
                Some(path) if !path.is_empty() => PathBuf::from(path),
                _ => {
                    let text = format!("{text:?} is no admin API; write unix:PATH");
                    return Err(Failure::Usage(text));
                }
            },
            None => {
                let (settings, mistakes) = self.config.look()?;
                let settings = settings.ok_or_else(|| Failure::Usage(mistakes.to_string()))?;
                let none = "the configuration names no admin.socket";
                settings.admin_socket.ok_or_else(|| Failure::Usage(none.into()))?
            }
        };
        Ok(Client::new(&socket))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
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
}

pub(super) fn queue(command: QueueCommand) -> Result<(), Failure> {
    let QueueCommand::List {
        json,
        all,
        limit,
        api,
    } = command;
    let client = api.client()?;
    let listing = block_on(async {
        let mut list = QueueList::default();
        while list.queues.len() < limit {
            let query = QueuesQuery {
                after: list.next,
                limit: Some(PAGE.min(limit - list.queues.len())),
                empty: all,
            };
            let page = client.queues(&query).await?;
            list.queues.extend(page.queues);
            list.next = page.next;
            if list.next.is_none() {
                break;
            }
        }
        let HoldList { holds, .. } = client.holds().await?;
        Ok::<_, admin_api::client::ClientError>(Listing { list, holds })
    })??;
    if json {
        return Ok(print_json(&listing)?);
    }
    Ok(print(&show_queues(&listing))?)
}

fn show_queues(Listing { list, holds }: &Listing) -> String {
    let mut text = String::new();
    if list.queues.is_empty() {
        text.push_str("No mail waits.\n");
    } else {
        let mut rows = vec![
            [
                "TENANT", "STREAM", "DOMAIN", "MESSAGES", "SIZE", "OLDEST", "NEXT DUE", "HELD BY",
            ]
            .map(String::from),
        ];
        for queue in &list.queues {
            let held = queue.hold.as_ref();
            rows.push([
                queue.tenant.clone(),
                queue.stream.clone(),
                queue.domain.clone(),
                queue.messages.to_string(),
                size(queue.bytes),
                time(queue.oldest),
                time(queue.next_due),
                held.map(|hold| hold.cause.clone()).unwrap_or_default(),
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
    text
}

pub(super) fn message(command: MessageCommand) -> Result<(), Failure> {
    let MessageCommand::Show { id, json, api } = command;
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
    line("Size", message.bytes.map(size));
    line("Received", Some(message.received_at.to_string()));
    let client = message.client.as_ref().map(|client| {
        let protocol = message.protocol.as_deref().unwrap_or_default();
        let credential = message.credential.as_ref().map(|name| format!(" as {name}"));
        format!("from {client} with {protocol}{}", credential.unwrap_or_default())
    });
    line("", client);
    line("Expires", message.expires_at.map(|time| time.to_string()));
    line("Reports on", message.cause.clone());
    let mut rows =
        vec![["RECIPIENT", "STATE", "ATTEMPTS", "NEXT DUE", "HOST", "LAST REPLY"].map(String::from)];
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
            recipient.host.clone().unwrap_or_default(),
            recipient.last_reply.clone().unwrap_or_default(),
        ]
    }));
    let _ = write!(text, "\n{}", columns(&rows));
    let mut rows = vec![["TIME", "EVENT", "RECIPIENTS", "REPLY"].map(String::from)];
    rows.extend(message.events.iter().map(|event| {
        let recipients = match event.recipients.as_slice() {
            [first, _, ..] => format!("{first} and {} more", event.recipients.len() - 1),
            one => one.concat(),
        };
        [
            event.at.to_string(),
            event.kind.clone(),
            recipients,
            event.reply.clone(),
        ]
    }));
    if !message.events.is_empty() {
        let _ = write!(text, "\n{}", columns(&rows));
    }
    text
}

fn time(time: Option<Time>) -> String {
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
        let control = Arc::new(QueueControl::new(queue.clone()));
        let listing = |list| Listing {
            list,
            holds: Vec::new(),
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
        });
        assert_eq!(
            show_queues(&listing),
            "TENANT  STREAM         DOMAIN  MESSAGES  SIZE  OLDEST                    NEXT DUE                  HELD BY\n\
             acme    transactional  a.test  1         17 B  2023-11-14T22:13:20.000Z  2023-11-14T22:13:20.000Z\n\
             \nDestinations that rest as a whole:\n\
             DOMAIN OR SITE  UNTIL                     FAILURES  CAUSE\n\
             mx.dead.test    1970-01-01T00:01:00.000Z  3         connection refused\n"
        );
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
