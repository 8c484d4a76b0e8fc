//! `postrider limit`: what is used of the limits that more than one lane shares.

use std::fmt::Write as _;

use admin_api::limits::{LimitList, LimitUse};
use clap::Subcommand;

use super::Failure;
use super::output::{columns, named, print, print_json};
use super::queue::{Api, block_on};

#[derive(Subcommand)]
pub(super) enum LimitCommand {
    /// List the limits of [[limit]] and of warm-ups that are in use, or were within their hour or day: of which site, provider, tenant
    /// or source, how much is allowed, and how much of it is used; and how far each new source is.
    #[command(
        after_help = "Example:\n  postrider limit list --json | jq '.limits[] | select(.provider == \"google\")'"
    )]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
}

pub(super) fn limit(command: LimitCommand) -> Result<(), Failure> {
    let LimitCommand::List { json, api } = command;
    let client = api.client()?;
    let list = block_on(async { client.limits().await })??;
    if json {
        return Ok(print_json(&list)?);
    }
    Ok(print(&show(&list))?)
}

fn show(list: &LimitList) -> String {
    let mut text = show_limits(list);
    if !list.warming.is_empty() {
        let mut rows = vec![["SOURCE", "DAY OF WARM-UP", "A DAY TO EACH PROVIDER"].map(String::from)];
        rows.extend(list.warming.iter().map(|source| {
            [
                source.source.clone(),
                format!("{} of {}", source.day, source.days),
                source.messages_per_day.to_string(),
            ]
        }));
        let _ = write!(text, "\n{}", columns(&rows));
    }
    text
}

fn show_limits(list: &LimitList) -> String {
    if list.limits.is_empty() {
        return "No limit of [[limit]] is in use.\n".to_owned();
    }
    let mut rows = vec![["OF", "LIMIT", "USED", "ALLOWED"].map(String::from)];
    for limit in &list.limits {
        rows.extend(limit.uses.iter().map(|of| {
            [
                scope(limit),
                of.limit.clone(),
                of.used.map_or_else(|| "-".to_owned(), |used| used.to_string()),
                of.allowed.to_string(),
            ]
        }));
    }
    let mut text = columns(&rows);
    if list.more {
        text.push_str("There are more.\n");
    }
    text
}

fn scope(limit: &LimitUse) -> String {
    let parts = [
        ("tenant", &limit.tenant),
        ("source", &limit.source),
        ("provider", &limit.provider),
        ("site", &limit.site),
    ];
    named(parts)
}

#[cfg(test)]
mod tests {
    use admin_api::limits::{Use, Warming};

    use super::*;

    #[test]
    fn each_limit_is_a_line() {
        let limit = LimitUse {
            provider: Some("google".into()),
            tenant: Some("shop".into()),
            uses: vec![
                Use {
                    limit: "messages_per_second".into(),
                    allowed: 2.5,
                    used: None,
                },
                Use {
                    limit: "messages_per_day".into(),
                    allowed: 1_000.0,
                    used: Some(12),
                },
            ],
            ..LimitUse::default()
        };
        let list = LimitList {
            limits: vec![limit],
            warming: vec![Warming {
                source: "new1".into(),
                day: 3,
                days: 20,
                messages_per_day: 112,
            }],
            ..LimitList::default()
        };
        let text = show(&list);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .filter(|word| !word.is_empty())
                    .map(str::trim)
                    .collect()
            })
            .collect();
        assert_eq!(lines[0], ["OF", "LIMIT", "USED", "ALLOWED"]);
        assert_eq!(
            lines[1],
            ["tenant shop, provider google", "messages_per_second", "-", "2.5"]
        );
        assert_eq!(
            lines[2],
            ["tenant shop, provider google", "messages_per_day", "12", "1000"]
        );
        assert_eq!(lines[5], ["new1", "3 of 20", "112"]);
    }
}
