//! `postrider adjustment`: what replies have taught the running relay, and what operators set beside.

use std::time::Duration;

use admin_api::adjust::{Adjustment, AdjustmentKind, AdjustmentsQuery, EndAdjustment, Scope, SetAdjustment};
use clap::{Subcommand, ValueEnum};

use super::output::{columns, named, print, print_json};
use super::queue::{Api, block_on};
use super::{Failure, operate};

/// Adjustments asked for at a time.
const PAGE: usize = 500;

#[derive(Subcommand)]
pub(super) enum AdjustmentCommand {
    /// List what is suspended or goes slower because of a reply, or because an operator has set it: since when, until when, why.
    #[command(after_help = "Example:\n  postrider adjustment list --kind suspended --provider google")]
    List {
        #[command(flatten)]
        scope: Names,
        /// Of this kind alone.
        #[arg(long)]
        kind: Option<Kind>,
        /// At most so many.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Suspend mail on its way, or have the lanes of a site go slower, in place of what they have learned.
    #[command(
        after_help = "Examples:\n  postrider adjustment set --provider google --suspend --for 30m --reason 'they asked us to'\n  \
        postrider adjustment set --site mx1.example.net,mx2.example.net --connections 2 --reason 'their old machine'"
    )]
    Set {
        #[command(flatten)]
        scope: Names,
        /// Nothing goes.
        #[arg(long, conflicts_with_all = ["connections", "rate"])]
        suspend: bool,
        /// Connections at once, at the most, of each lane of the site.
        #[arg(long, value_name = "NUMBER")]
        connections: Option<u32>,
        /// Messages a second, at the most, of each lane of the site.
        #[arg(long, value_name = "NUMBER")]
        rate: Option<f64>,
        /// For how long, such as 30m or 2h; unless given, until ended.
        #[arg(long = "for", value_name = "TIME", value_parser = super::send::span)]
        span: Option<Duration>,
        /// Why: shown to whoever asks, and in reports on mail that expires meanwhile.
        #[arg(long)]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// End adjustments, named as they are listed. What was learned is forgotten, and what was suspended goes at once.
    End {
        #[command(flatten)]
        scope: Names,
        /// Those of this kind alone.
        #[arg(long)]
        kind: Option<Kind>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
}

/// Which mail. All that is given has to hold.
#[derive(clap::Args)]
pub(super) struct Names {
    /// To this site: its MX hosts, sorted, with commas between, as `adjustment list` and `config effective` show it.
    #[arg(long)]
    site: Option<String>,
    /// To hosts that this provider runs.
    #[arg(long)]
    provider: Option<String>,
    /// Of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// From this source.
    #[arg(long)]
    source: Option<String>,
}

/// What kind of thing an adjustment is.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Kind {
    /// Nothing goes.
    Suspended,
    /// Lanes go slower than they are configured to.
    Slower,
}

impl From<Kind> for AdjustmentKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Suspended => Self::Suspended,
            Kind::Slower => Self::Slower,
        }
    }
}

impl Names {
    fn scope(self) -> Scope {
        Scope {
            site: self.site,
            provider: self.provider,
            tenant: self.tenant,
            source: self.source,
        }
    }
}

pub(super) fn run(command: AdjustmentCommand) -> Result<(), Failure> {
    match command {
        AdjustmentCommand::List {
            scope,
            kind,
            limit,
            json,
            api,
        } => list(scope.scope(), kind, limit, json, &api),
        AdjustmentCommand::Set {
            scope,
            suspend,
            connections,
            rate,
            span,
            reason,
            json,
            api,
        } => {
            let set = SetAdjustment {
                scope: scope.scope(),
                suspend,
                connections,
                messages_per_second: rate,
                until: None,
                for_seconds: span.map(operate::seconds),
                reason,
            };
            let adjustment = block_on(api.client()?.adjust(&set))??;
            if json {
                return Ok(print_json(&adjustment)?);
            }
            let until = until(&adjustment);
            Ok(print(&format!("{}, until {until}\n", effect(&adjustment)))?)
        }
        AdjustmentCommand::End {
            scope,
            kind,
            json,
            api,
        } => {
            let end = EndAdjustment {
                scope: scope.scope(),
                kind: kind.map(AdjustmentKind::from),
            };
            let ended = block_on(api.client()?.end_adjustment(&end))??;
            if json {
                return Ok(print_json(&ended)?);
            }
            Ok(print(&format!("{} ended\n", ended.ended))?)
        }
    }
}

fn list(scope: Scope, kind: Option<Kind>, limit: usize, json: bool, api: &Api) -> Result<(), Failure> {
    let client = api.client()?;
    let mut query = AdjustmentsQuery {
        kind: kind.map(AdjustmentKind::from),
        site: scope.site,
        provider: scope.provider,
        tenant: scope.tenant,
        source: scope.source,
        after: None,
        limit: None,
    };
    let mut adjustments = Vec::new();
    let next = loop {
        query.limit = Some(PAGE.min(limit - adjustments.len()).max(1));
        let page = block_on(client.adjustments(&query))??;
        adjustments.extend(page.adjustments);
        query.after = page.next;
        if query.after.is_none() || adjustments.len() >= limit {
            break query.after;
        }
    };
    if json {
        let all = serde_json::json!({ "adjustments": adjustments, "next": next });
        return Ok(print_json(&all)?);
    }
    let mut text = show(&adjustments);
    if next.is_some() {
        text.push_str("There are more: see --limit.\n");
    }
    Ok(print(&text)?)
}

/// A table of them.
fn show(adjustments: &[Adjustment]) -> String {
    if adjustments.is_empty() {
        return "Nothing is adjusted: every lane goes by its configuration.\n".into();
    }
    let heads = ["WHAT", "SCOPE", "SINCE", "UNTIL", "BY", "CLASS", "HOST", "CAUSE"];
    let mut rows = vec![heads.map(String::from)];
    rows.extend(adjustments.iter().map(|adjustment| {
        [
            effect(adjustment),
            words(adjustment),
            adjustment.since.to_string(),
            until(adjustment),
            adjustment.by.clone(),
            adjustment.class.clone().unwrap_or_default(),
            adjustment.host.clone().unwrap_or_default(),
            adjustment.cause.clone(),
        ]
    }));
    columns(&rows)
}

fn until(adjustment: &Adjustment) -> String {
    adjustment.until.map_or("ended".into(), |until| until.to_string())
}

fn effect(adjustment: &Adjustment) -> String {
    if adjustment.kind == AdjustmentKind::Suspended {
        return "suspended".into();
    }
    let connections = adjustment.connections.map(|most| format!("{most} connections"));
    let rate = adjustment
        .messages_per_second
        .map(|rate| format!("{rate:.2} messages/s"));
    let parts: Vec<_> = [connections, rate].into_iter().flatten().collect();
    parts.join(", ")
}

fn words(adjustment: &Adjustment) -> String {
    let Scope {
        site,
        provider,
        tenant,
        source,
    } = &adjustment.scope;
    let parts = [
        ("tenant", tenant),
        ("source", source),
        ("provider", provider),
        ("site", site),
        ("destination", &adjustment.destination),
    ];
    named(parts)
}

#[cfg(test)]
mod tests {
    use admin_api::Time;
    use mail_core::Timestamp;

    use super::*;

    #[test]
    fn what_is_adjusted_is_told_on_a_line() {
        let time = Time(Timestamp(1_700_000_000_000));
        let mut adjustment = Adjustment {
            kind: AdjustmentKind::Slower,
            scope: Scope {
                site: Some("mx.a.test".into()),
                source: Some("out1".into()),
                ..Scope::default()
            },
            destination: None,
            since: time,
            changed: time,
            until: None,
            connections: Some(45),
            messages_per_second: Some(0.85),
            cause: "421 too many\r".into(),
            host: Some("mx.a.test".into()),
            class: Some("rate".into()),
            by: "reply".into(),
        };
        let lines = show(std::slice::from_ref(&adjustment));
        let line = lines.lines().nth(1).unwrap();
        for part in [
            "45 connections, 0.85 messages/s",
            "source out1, site mx.a.test",
            "ended",
            "421 too many\u{fffd}",
        ] {
            assert!(line.contains(part), "{line}");
        }
        adjustment.kind = AdjustmentKind::Suspended;
        assert_eq!(effect(&adjustment), "suspended");
        assert!(show(&[]).starts_with("Nothing"));
    }
}
