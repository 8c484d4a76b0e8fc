//! `postrider config effective`: what holds for a destination, and why.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use mail_core::{Domain, ReversePath};
use queue::Scope;
use serde_json::json;

use crate::config::Settings;
use crate::config::egress::{DEFAULT_SOURCE, Member, Pool, Source};
use crate::config::limits::{Says, Together};
use crate::config::routes::NextHop;
use crate::delivery::courier::own_names;
use crate::delivery::resolver::RealNet;
use crate::delivery::route::Route;
use crate::routing::explain::{Asked, Deciding, deciding, pool};
use crate::shaping::explain::{Asks, Explained, From, explain};
use crate::world::{Clock, MxHost, Net as _};

use super::output::{columns, plain, print, print_json};
use super::queue::block_on;
use super::{ConfigFile, Failure};

/// `postrider config effective`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  postrider config effective gmail.com\n  \
    postrider config effective example.org --mx mx1.example.net mx2.example.net\n  \
    postrider config effective example.org --tenant shop --stream bulk --from news@shop.example\n  \
    postrider config effective gmail.com --tenant shop --source s1\n\n\
    The limits of the first table are of a lane: all domains with the same MX hosts together, from one source. Those of [[limit]] hold \
    beside them, for all mail of what they are about. docs/shaping.md tells what goes before what, docs/egress.md of pools and \
    sources.")]
pub(super) struct Effective {
    /// The destination's domain.
    domain: Domain,
    /// Its MX hosts; unless given, the DNS is asked, by the name servers of the configuration.
    #[arg(long, value_name = "HOST", num_args = 1..)]
    mx: Vec<Domain>,
    /// Of mail of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Of mail in this stream.
    #[arg(long)]
    stream: Option<String>,
    /// Of mail from this source; unless given, of mail from any of the pool.
    #[arg(long)]
    source: Option<String>,
    /// Of mail with this MAIL FROM; `<>` for reports.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<Path>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

/// A reverse-path.
#[derive(Clone)]
struct Path(ReversePath);

impl std::str::FromStr for Path {
    type Err = mail_core::BadMailbox;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(match text {
            "<>" => ReversePath::Null,
            text => ReversePath::Mailbox(text.parse()?),
        }))
    }
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
    let asked = Asked {
        domain: &command.domain,
        tenant: known(
            &command.tenant,
            |name| settings.tenants.contains_key(name),
            "tenant",
        )?,
        stream: known(
            &command.stream,
            |name| settings.delivery.streams.get(name).is_some(),
            "stream",
        )?,
        reverse_path: command.from.as_ref().map(|path| &path.0),
    };
    let source = known(
        &command.source,
        |name| name == DEFAULT_SOURCE || settings.delivery.egress.source(name).is_some(),
        "source",
    )?;
    let way = WayOut::of(asked, &settings);
    let shared = shared(&way, source, asked, (&route, &found));
    if command.json {
        let mut json = as_json(&command.domain, &hosts, &route, &found);
        json["shared_limits"] = shared.iter().map(SharedLimit::as_json).collect();
        way.add_json(&mut json);
        return Ok(print_json(&json)?);
    }
    let mut text = as_text(&command.domain, &hosts, &found);
    if !shared.is_empty() {
        let mut rows = vec![["LIMIT OF", "KEY", "VALUE", "FROM"].map(String::from)];
        rows.extend(shared.iter().map(SharedLimit::as_row));
        let _ = write!(text, "\n{}", columns(&rows));
    }
    way.add_text(&mut text);
    Ok(print(&text)?)
}

/// What a `[[limit]]` or a warm-up allows to all mail of a scope together.
struct SharedLimit<'a> {
    scope: Scope,
    key: &'static str,
    value: String,
    from: From<'a>,
}

impl SharedLimit<'_> {
    fn as_row(&self) -> [String; 4] {
        let scope = self.scope.to_string();
        [
            scope,
            self.key.to_owned(),
            self.value.clone(),
            self.from.to_string(),
        ]
    }

    fn as_json(&self) -> serde_json::Value {
        let scope = &self.scope;
        json!({
            "site": scope.site.as_deref(),
            "provider": scope.provider.as_deref(),
            "tenant": scope.tenant.as_deref(),
            "source": scope.source.as_deref(),
            "key": self.key,
            "value": self.value,
            "from": from_json(&self.from),
        })
    }
}

/// What limits hold today, for mail of the tenant that is asked about, from this source or from any that it may go from.
fn shared<'a>(
    way: &WayOut<'a>,
    source: Option<&str>,
    asked: Asked<'_>,
    (route, found): (&Route, &Explained<'a>),
) -> Vec<SharedLimit<'a>> {
    let settings = way.settings;
    let members = way.members();
    let of_pool = members
        .iter()
        .map(|(member, ..)| Some(member.source.name.clone()));
    let sources: Vec<Option<Arc<str>>> = match source {
        Some(name) => vec![Some(name.into())],
        None if members.is_empty() => vec![None],
        None => of_pool.collect(),
    };
    let hosts = match route {
        Route::Hosts(hosts) => hosts.as_slice(),
        Route::SmartHost(_) | Route::Refused(_) | Route::Discarded(_) => &[],
    };
    let rule = route.rule(asked.domain, found.provider, &settings.delivery);
    let together = Together {
        to_provider: rule.to_provider,
        to_site: Vec::new(),
    };
    let shipped = found
        .provider
        .and_then(|provider| Some((provider, provider.connections_together()?)));
    let now = Clock::system().now();
    let mut all: Vec<SharedLimit<'a>> = Vec::new();
    for source in sources {
        let scope = Scope {
            site: Some(route.site().into()),
            provider: route
                .shares_with(&settings.delivery)
                .map(|provider| provider.name.clone()),
            tenant: asked.tenant.map(Arc::from),
            source,
        };
        let scopes = &settings.delivery.scopes;
        let mail = scopes
            .mail(scope, hosts.iter().map(|mx| &mx.host))
            .with(together.clone());
        for (scope, key, value, says) in scopes.explain(&mail, now) {
            if all.iter().any(|known| known.scope == scope && known.key == key) {
                continue;
            }
            let from = match (says, shipped) {
                (Says::Shipped, Some((provider, limit))) => From::Shipped(provider, &limit.source),
                (Says::Shipped, None) => From::Default,
                (Says::Key(key), _) => From::key(settings, key),
            };
            all.push(SharedLimit {
                scope,
                key,
                value,
                from,
            });
        }
    }
    all
}

/// A name that the configuration knows: another would be taken for one that no rule is about.
fn known<'a>(
    name: &'a Option<String>,
    is_known: impl Fn(&str) -> bool,
    what: &str,
) -> Result<Option<&'a str>, Failure> {
    match name.as_deref() {
        Some(name) if !is_known(name) => Err(Failure::Usage(format!("there is no {what} \"{name}\""))),
        name => Ok(name),
    }
}

async fn ask(domain: &Domain, settings: &Settings) -> anyhow::Result<Route> {
    let patience = settings.delivery.timeouts.dns;
    let net = RealNet::new(&settings.dns, patience)?;
    let answer = tokio::time::timeout(patience * 4, net.mx(domain))
        .await
        .context("the name servers do not answer")
        .and_then(|answer| answer.map_err(anyhow::Error::from))
        .context("the MX hosts are not known; say which with --mx")?;
    let names = own_names(settings);
    Ok(Route::from_answer(domain, answer, &names))
}

/// In the order in which they are tried; `None` where there are none.
fn smart_hosts(names: &[Arc<str>]) -> Option<String> {
    let others = names.get(1..)?.iter().map(|name| format!(", then {name}"));
    let first = names.first()?;
    Some(format!("smart host {first}{}", others.collect::<String>()))
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
    let mut provider = match found.provider {
        Some(provider) if provider.title == provider.name => provider.name.to_string(),
        Some(provider) => format!("{} ({})", provider.name, provider.title),
        None => "none that is known".to_owned(),
    };
    if found.provider.is_some() && !found.is_whole {
        provider.push_str(", which does not run all of these hosts: it shares no limits with its others");
    }
    line("Provider", provider);
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
    if !found.replies.is_empty() {
        let mut rows = vec![["REPLY", "ASKS FOR", "FROM"].map(String::from)];
        let row = |asks: &Asks<'_>| [asks.said.clone(), asks.advice.to_string(), asks.from.to_string()];
        rows.extend(found.replies.iter().map(row));
        let _ = write!(text, "\n{}", columns(&rows));
    }
    text
}

/// Which way the mail goes, and what from.
struct WayOut<'a> {
    settings: &'a Settings,
    deciding: Deciding,
    /// With where it is from.
    pool: Option<(&'a Arc<Pool>, From<'a>)>,
    /// What that is for the mail that is asked about.
    part: Option<&'a Arc<Pool>>,
}

impl<'a> WayOut<'a> {
    fn of(asked: Asked<'_>, settings: &'a Settings) -> Self {
        let deciding = deciding(asked, &settings.routing.rules);
        let pool = pool(settings, deciding.surely);
        Self {
            settings,
            part: pool
                .as_ref()
                .map(|(pool, _)| pool.for_mail(asked.tenant, asked.stream)),
            pool: pool.map(|(pool, key)| (pool, From::key(settings, key))),
            deciding,
        }
    }

    fn next_hop(&self, rule: usize) -> String {
        let rule = &self.settings.routing.rules[rule];
        let pool = rule.pool.as_ref().map(|pool| format!(", from pool {pool}"));
        let hosts = smart_hosts(&rule.fallbacks);
        let fallback = hosts.map(|hosts| format!(", by {hosts} while that is down"));
        let parts = [Some(next_hop(&rule.next_hop)), pool, fallback];
        parts.into_iter().flatten().collect()
    }

    /// What takes the mail while its first way is closed, with where that is from; and how many failures it takes.
    fn fallbacks(&self) -> Option<(&'a [Arc<str>], From<'a>, u32)> {
        let number = self.deciding.surely?;
        let rule = self.settings.routing.rules.get(number)?;
        let hosts = Some(&*rule.fallbacks).filter(|hosts| !hosts.is_empty())?;
        let key = format!("route[{number}].fallback");
        Some((
            hosts,
            From::key(self.settings, key),
            self.settings.delivery.fallback_after,
        ))
    }

    /// Its members, each with its share of the mail and where it is written.
    fn members(&self) -> Vec<(&'a Member, f64, From<'a>)> {
        let Some(pool) = self.part else {
            return Vec::new();
        };
        let all: f64 = pool.members.iter().map(|member| f64::from(member.weight)).sum();
        let sources = &self.settings.delivery.egress.sources;
        let told = |member: &'a Member| {
            let number = sources
                .iter()
                .position(|source| source.name == member.source.name);
            let key = format!("source[{}].name", number.unwrap_or_default());
            let share = f64::from(member.weight) / all;
            (member, share, From::key(self.settings, key))
        };
        pool.members.iter().map(told).collect()
    }

    /// Tenants and streams of whose mail the pool's sources have other shares than of the rest.
    fn named_in_pool(&self) -> Option<[Vec<Arc<str>>; 2]> {
        let (tenants, streams) = self.pool.as_ref()?.0.named();
        let any = !tenants.is_empty() || !streams.is_empty();
        any.then(|| [tenants, streams].map(|names| names.into_iter().collect()))
    }

    fn ehlo(&self, source: &Source) -> String {
        let ehlo = source.ehlo.as_ref().unwrap_or(&self.settings.delivery.ehlo);
        ehlo.to_string()
    }

    fn add_text(&self, text: &mut String) {
        text.push('\n');
        for rule in &self.deciding.perhaps {
            let to = self.next_hop(*rule);
            let _ = writeln!(text, "route[{rule}] may send some of its mail to {}.", plain(&to));
        }
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12} {}", plain(&value));
        };
        if self.settings.routing.safe_mode.is_some() {
            line(
                "Safe mode",
                "is on: [safe_mode] decides before any rule".to_owned(),
            );
        }
        line(
            if self.deciding.perhaps.is_empty() {
                "Goes to"
            } else {
                "Else goes to"
            },
            match self.deciding.surely {
                Some(rule) => format!(
                    "{}, by route[{rule}]",
                    next_hop(&self.settings.routing.rules[rule].next_hop)
                ),
                None => "its MX hosts: no rule says otherwise".to_owned(),
            },
        );
        if let Some((hosts, from, after)) = self.fallbacks()
            && let Some(hosts) = smart_hosts(hosts)
        {
            line(
                "Fallback",
                format!("{hosts} ({from}), after {after} failures in a row (delivery.fallback_after)"),
            );
        }
        match (&self.pool, self.settings.delivery.source) {
            (Some((pool, from)), _) => line("Pool", format!("{} ({from})", pool.name)),
            (None, Some(address)) => line(
                "Pool",
                format!("none: it is sent from delivery.source, {address}"),
            ),
            (None, None) => line("Pool", "none: the system chooses the address".to_owned()),
        }
        if let Some([tenants, streams]) = self.named_in_pool() {
            let of = |what: &str, names: &[Arc<str>]| {
                (!names.is_empty()).then(|| format!("of {what} {}", names.join(", ")))
            };
            let named = [of("tenants", &tenants), of("streams", &streams)];
            let named: Vec<_> = named.into_iter().flatten().collect();
            let text = format!(
                "mail {} has shares of its own: --tenant and --stream show them",
                named.join(" and ")
            );
            line("Shares", text);
        }
        let mut rows = vec![["SOURCE", "SHARE", "ADDRESSES", "EHLO", "BY", "FROM"].map(String::from)];
        rows.extend(self.members().into_iter().map(|(member, share, from)| {
            let source = &member.source;
            let addresses: Vec<_> = source.addresses.iter().map(ToString::to_string).collect();
            let proxy = source.proxy.as_ref().map(ToString::to_string);
            let by: Vec<_> = source
                .interface
                .as_deref()
                .map(String::from)
                .into_iter()
                .chain(proxy)
                .collect();
            [
                source.name.to_string(),
                format!("{:.0} %", share * 100.0),
                addresses.join(", "),
                self.ehlo(source),
                by.join(", "),
                from.to_string(),
            ]
        }));
        if rows.len() > 1 {
            let _ = write!(text, "\n{}", columns(&rows));
        }
    }

    fn add_json(&self, json: &mut serde_json::Value) {
        let route = |rule: &usize| json!({ "route": rule, "next_hop": self.next_hop(*rule) });
        json["routes"] = self.deciding.perhaps.iter().map(route).collect();
        json["way"] = match &self.deciding.surely {
            Some(rule) => route(rule),
            None => json!({ "route": null, "next_hop": next_hop(&NextHop::Mx) }),
        };
        json["fallback"] = match self.fallbacks() {
            Some((hosts, from, after)) => {
                let names: Vec<&str> = hosts.iter().map(|host| &**host).collect();
                json!({ "names": names, "after": after, "from": from_json(&from) })
            }
            None => serde_json::Value::Null,
        };
        json["pool"] = match &self.pool {
            Some((pool, from)) => json!({ "name": *pool.name, "from": from_json(from) }),
            None => serde_json::Value::Null,
        };
        json["own_shares"] = match self.named_in_pool() {
            Some([tenants, streams]) => {
                let names = |names: &[Arc<str>]| names.iter().map(|name| json!(**name)).collect::<Vec<_>>();
                json!({ "tenants": names(&tenants), "streams": names(&streams) })
            }
            None => serde_json::Value::Null,
        };
        let source = |(member, share, from): (&Member, f64, From<'_>)| {
            let source = &member.source;
            json!({
                "name": *source.name,
                "weight": member.weight,
                "share": share,
                "addresses": source.addresses,
                "interface": source.interface,
                "ehlo": self.ehlo(source),
                "proxy": source.proxy.as_ref().map(ToString::to_string),
                "from": from_json(&from),
            })
        };
        json["sources"] = self.members().into_iter().map(source).collect();
    }
}

fn from_json(from: &From<'_>) -> serde_json::Value {
    match from {
        From::Written(key, at) => json!({
            "kind": "configuration", "file": at.file, "line": at.line, "column": at.column, "key": key,
        }),
        From::Shipped(provider, source) => json!({
            "kind": "shipped", "provider": *provider.name, "source": *source.url, "seen": *source.seen,
            "by": source.by.name(),
        }),
        From::Default => json!({ "kind": "default" }),
    }
}

fn as_json(domain: &Domain, hosts: &[Domain], route: &Route, found: &Explained<'_>) -> serde_json::Value {
    let values: Vec<_> = found
        .values
        .iter()
        .map(|value| json!({ "key": value.key, "value": value.value, "from": from_json(&value.from) }))
        .collect();
    let replies: Vec<_> = found
        .replies
        .iter()
        .map(|asks| json!({ "said": asks.said, "asks_for": asks.advice.to_string(), "from": from_json(&asks.from) }))
        .collect();
    json!({
        "domain": domain.as_str(),
        "hosts": hosts.iter().map(Domain::as_str).collect::<Vec<_>>(),
        "site": route.site(),
        "provider": found.provider.map(|provider| json!({
            "name": *provider.name, "title": *provider.title, "all_hosts": found.is_whole,
        })),
        "destination": found.destination,
        "values": values,
        "replies": replies,
    })
}
