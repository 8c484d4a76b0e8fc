//! `postrider queue damaged`: what is set aside, tried again or dropped.

use admin_api::aside::{AsideList, AsideQuery};
use admin_api::client::{Client, ClientError};
use clap::Subcommand;
use mail_core::MessageId;
use std::fmt::Write as _;

use super::Failure;
use super::operate;
use super::output::{columns, print, print_json, size};
use super::queue::{Api, block_on};

/// Messages asked for at a time.
const PAGE: usize = 500;

#[derive(Subcommand)]
pub(super) enum DamagedCommand {
    /// Try messages again: what still does not verify is set aside again.
    Retry {
        #[command(flatten)]
        which: Ids,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Delete messages that are set aside. Shows how many, and deletes with --yes alone. No sender is told.
    Drop {
        #[command(flatten)]
        which: Ids,
        /// Delete them.
        #[arg(long)]
        yes: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
}

/// Which messages that are set aside.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Ids {
    /// Their IDs.
    #[arg(value_name = "ID")]
    ids: Vec<MessageId>,
    /// All of them.
    #[arg(long)]
    all: bool,
}

pub(super) fn damaged(
    command: Option<DamagedCommand>,
    limit: usize,
    json: bool,
    api: &Api,
) -> Result<(), Failure> {
    match command {
        None => {
            let list = block_on(list(&api.client()?, limit))??;
            if json {
                return Ok(print_json(&list)?);
            }
            Ok(print(&show(&list))?)
        }
        Some(DamagedCommand::Retry { which, json, api }) => {
            let ids = which.ids(&api)?;
            operate::retry_aside(&ids, json, &api)
        }
        Some(DamagedCommand::Drop {
            which,
            yes,
            json,
            api,
        }) => {
            let ids = which.ids(&api)?;
            if yes || ids.is_empty() {
                return operate::delete_aside(&ids, json, &api);
            }
            if json {
                return Ok(print_json(&serde_json::json!({ "messages": ids.len() }))?);
            }
            let count = ids.len();
            Ok(print(&format!(
                "{count} set aside would be deleted\nNothing is deleted yet, and no sender will be told: add --yes to delete.\n"
            ))?)
        }
    }
}

impl Ids {
    /// Those named that are set aside, or all that are.
    fn ids(&self, api: &Api) -> Result<Vec<MessageId>, Failure> {
        let list = block_on(list(&api.client()?, usize::MAX))??;
        let mut aside: Vec<MessageId> = Vec::new();
        for message in &list.messages {
            aside.extend(message.id.parse::<MessageId>().ok());
        }
        aside.dedup();
        if self.all {
            return Ok(aside);
        }
        if let Some(other) = self.ids.iter().find(|id| !aside.contains(id)) {
            return Err(
                anyhow::anyhow!("{other} is not set aside; `postrider message` works with it").into(),
            );
        }
        Ok(self.ids.clone())
    }
}

async fn list(client: &Client, limit: usize) -> Result<AsideList, ClientError> {
    let mut all = AsideList::default();
    let mut query = AsideQuery::default();
    while all.messages.len() < limit {
        query.after = all.next.take();
        query.limit = Some(PAGE.min(limit - all.messages.len()));
        let page = client.aside(&query).await?;
        all.messages.extend(page.messages);
        all.records.extend(page.records);
        all.next = page.next;
        if all.next.is_none() {
            break;
        }
    }
    Ok(all)
}

fn show(list: &AsideList) -> String {
    if list.messages.is_empty() && list.records.is_empty() {
        return "Nothing is set aside.\n".into();
    }
    let mut text = String::new();
    if !list.messages.is_empty() {
        let heads = [
            "MESSAGE", "QUEUE", "TENANT", "DOMAIN", "CAUSE", "SINCE", "EXPIRES", "WHY",
        ];
        let mut rows = vec![heads.map(String::from)];
        rows.extend(list.messages.iter().map(|message| {
            [
                message.id.clone(),
                message.queue.to_string(),
                message.tenant.clone().unwrap_or_default(),
                message.domain.clone().unwrap_or_default(),
                message.cause.to_string(),
                message.since.to_string(),
                message.expires_at.to_string(),
                message.why.clone(),
            ]
        }));
        text.push_str(&columns(&rows));
        if list.next.is_some() {
            text.push_str("There are more: see --limit.\n");
        }
    }
    if !list.records.is_empty() {
        let _ = writeln!(text, "\nRecords that no message depends on:");
        let mut rows = vec![["FAMILY", "KEY", "SIZE", "SINCE", "WHAT"].map(String::from)];
        rows.extend(list.records.iter().map(|record| {
            [
                record.family.clone(),
                record.key.clone(),
                size(record.bytes as u64),
                record.since.to_string(),
                record.what.clone(),
            ]
        }));
        text.push_str(&columns(&rows));
    }
    text
}
