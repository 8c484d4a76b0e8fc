//! `postrider config effective`: what holds for a destination, and why.

use std::fmt::Write as _;

use anyhow::Context as _;
use mail_core::Domain;
use serde_json::json;

use crate::config::Settings;
use crate::config::routes::NextHop;
use crate::delivery::resolver::RealNet;
use crate::delivery::route::Route;
use crate::shaping::explain::{Explained, From, explain};
use crate::world::{MxHost, Net as _};

use super::output::{columns, plain, print, print_json};
use super::queue::block_on;
use super::{ConfigFile, Failure};

/// `postrider config effective`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  postrider config effective gmail.com\n  \
    postrider config effective example.org --mx mx1.example.net mx2.example.net\n\n\
    Limits are of a lane: all domains with the same MX hosts together. docs/shaping.md tells what goes before what.")]
pub(super) struct Effective {
    /// The destination's domain.
    domain: Domain,
    /// Its MX hosts; unless given, the DNS is asked, by the name servers of the configuration.
    #[arg(long, value_name = "HOST", num_args = 1..)]
    mx: Vec<Domain>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(command: &Effective) -> Result<(), Failure> {
    let settings = command.config.load()?;
    let route = if command.mx.is_empty() {
        block_on(ask(&command.domain, &settings))??
    } else {
        let host = |host: &Domain| MxHost {
            preference: 0,
            host: host.clone(),
        };
        Route::Hosts(command.mx.iter().map(host).collect())
    };
    let hosts: Vec<_> = match &route {
        Route::Hosts(hosts) => hosts.iter().map(|mx| mx.host.clone()).collect(),
        Route::Refused(reply) => {
            return Err(anyhow::anyhow!("no mail goes there: {reply}").into());
        }
        // The DNS knows neither.
        Route::SmartHost(_) | Route::Discarded(_) => Vec::new(),
    };
    let found = explain(&command.domain, &hosts, &settings);
    if command.json {
        return Ok(print_json(&as_json(&command.domain, &hosts, &route, &found))?);
    }
    Ok(print(&as_text(&command.domain, &hosts, &found))?)
}

async fn ask(domain: &Domain, settings: &Settings) -> anyhow::Result<Route> {
    let patience = settings.delivery.timeouts.dns;
    let net = RealNet::new(&settings.dns, patience)?;
    let answer = tokio::time::timeout(patience * 4, net.mx(domain))
        .await
        .context("the name servers do not answer")
        .and_then(|answer| answer.map_err(anyhow::Error::from))
        .context("the MX hosts are not known; say which with --mx")?;
    let names = [settings.hostname.clone(), settings.delivery.ehlo.clone()];
    Ok(Route::from_answer(domain, answer, &names))
}

fn next_hop(hop: &NextHop) -> String {
    match hop {
        NextHop::Mx => "its MX hosts".to_owned(),
        NextHop::SmartHost(name) => format!("smart host {name}"),
        NextHop::Refuse(reason) => format!("nowhere, refused: {reason}"),
        NextHop::Discard(reason) => format!("nowhere, discarded: {reason}"),
    }
}

fn as_text(domain: &Domain, hosts: &[Domain], found: &Explained<'_>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {}", plain(&value));
    };
    line("Domain", domain.to_string());
    let hosts: Vec<_> = hosts.iter().map(Domain::as_str).collect();
    line("MX hosts", hosts.join(", "));
    line(
        "Provider",
        match found.provider {
            Some(provider) if provider.title == provider.name => provider.name.to_string(),
            Some(provider) => format!("{} ({})", provider.name, provider.title),
            None => "none that is known".to_owned(),
        },
    );
    let rule = found.destination.as_deref();
    line(
        "Destination",
        rule.map_or("no rule of its own".to_owned(), |rule| {
            format!("the rule for {rule}")
        }),
    );
    let mut rows = vec![["KEY", "VALUE", "FROM"].map(String::from)];
    rows.extend(
        found
            .values
            .iter()
            .map(|value| [value.key.to_owned(), value.value.clone(), value.from.to_string()]),
    );
    let _ = write!(text, "\n{}", columns(&rows));
    for (number, hop) in &found.routes {
        let _ = writeln!(
            text,
            "\nroute[{number}] may send some of its mail to {}.",
            next_hop(hop)
        );
    }
    text
}

fn as_json(domain: &Domain, hosts: &[Domain], route: &Route, found: &Explained<'_>) -> serde_json::Value {
    let from = |from: &From<'_>| match from {
        From::Written(key, at) => json!({
            "kind": "configuration", "file": at.file, "line": at.line, "column": at.column, "key": key,
        }),
        From::Shipped(provider, source) => json!({
            "kind": "shipped", "provider": *provider.name, "source": *source.url, "seen": *source.seen,
            "by": source.by.name(),
        }),
        From::Default => json!({ "kind": "default" }),
    };
    let values: Vec<_> = found
        .values
        .iter()
        .map(|value| json!({ "key": value.key, "value": value.value, "from": from(&value.from) }))
        .collect();
    let routes: Vec<_> = found
        .routes
        .iter()
        .map(|(number, hop)| json!({ "route": number, "next_hop": next_hop(hop) }))
        .collect();
    json!({
        "domain": domain.as_str(),
        "hosts": hosts.iter().map(Domain::as_str).collect::<Vec<_>>(),
        "site": route.site(),
        "provider": found.provider.map(|provider| json!({ "name": *provider.name, "title": *provider.title })),
        "destination": found.destination,
        "values": values,
        "routes": routes,
    })
}
