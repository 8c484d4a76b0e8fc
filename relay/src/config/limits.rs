//! `[[limit]]`: what a site, a provider, a tenant, a source, or two of them together may use.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use queue::Scope;

use crate::by_domain::ByDomain;
use crate::shaping::providers::HostPattern;

use super::check::{CONNECTIONS, MESSAGES_PER_CONNECTION, MESSAGES_PER_SECOND, RECIPIENTS_PER_TRANSACTION};
use super::egress::Source;
use super::section::{Check, Section, Spot};
use super::warm_up::WarmUp;

/// Tables there may be.
const MOST: usize = 10_000;

/// Of what a rule is, or may be.
const AXES: [&str; 4] = ["site", "provider", "tenant", "source"];

/// What may be limited.
const KEYS: [&str; 9] = [
    "connections",
    "connections_per_second",
    "messages_per_second",
    "messages_per_minute",
    "messages_per_hour",
    "messages_per_day",
    "bytes_in_flight",
    "messages_per_connection",
    "recipients_per_transaction",
];

/// What a scope may use. What is `None` is not limited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScopeLimits {
    /// Connections at once.
    pub connections: Option<u64>,
    /// New connections a second.
    pub connections_per_second: Option<f64>,
    /// Messages a second.
    pub messages_per_second: Option<f64>,
    /// Messages within any minute.
    pub messages_per_minute: Option<u64>,
    /// Messages within any hour.
    pub messages_per_hour: Option<u64>,
    /// Messages within any 24 hours.
    pub messages_per_day: Option<u64>,
    /// Octets of the messages that are being sent; one message may always go.
    pub bytes_in_flight: Option<u64>,
    /// Messages before a connection is closed.
    pub messages_per_connection: Option<u64>,
    /// RCPTs a transaction.
    pub recipients_per_transaction: Option<u64>,
}

impl ScopeLimits {
    /// Of a minute, an hour, a day.
    pub fn windows(&self) -> [Option<u64>; 3] {
        [
            self.messages_per_minute,
            self.messages_per_hour,
            self.messages_per_day,
        ]
    }

    /// These, and `others` where they say nothing.
    fn over(&self, others: &Self) -> Self {
        Self {
            connections: self.connections.or(others.connections),
            connections_per_second: self.connections_per_second.or(others.connections_per_second),
            messages_per_second: self.messages_per_second.or(others.messages_per_second),
            messages_per_minute: self.messages_per_minute.or(others.messages_per_minute),
            messages_per_hour: self.messages_per_hour.or(others.messages_per_hour),
            messages_per_day: self.messages_per_day.or(others.messages_per_day),
            bytes_in_flight: self.bytes_in_flight.or(others.bytes_in_flight),
            messages_per_connection: self.messages_per_connection.or(others.messages_per_connection),
            recipients_per_transaction: self
                .recipients_per_transaction
                .or(others.recipients_per_transaction),
        }
    }

    /// Whether anything of it is used up by some of the mail, so that less is left for other.
    pub fn is_shared(&self) -> bool {
        let alone = Self {
            messages_per_connection: self.messages_per_connection,
            recipients_per_transaction: self.recipients_per_transaction,
            ..Self::default()
        };
        *self != alone
    }

    /// Each that is set, with its key.
    pub fn each(&self) -> Vec<(&'static str, String)> {
        let number = |value: Option<u64>| value.map(|value| value.to_string());
        let rate = |value: Option<f64>| value.map(|value| value.to_string());
        let all = [
            ("connections", number(self.connections)),
            ("connections_per_second", rate(self.connections_per_second)),
            ("messages_per_second", rate(self.messages_per_second)),
            ("messages_per_minute", number(self.messages_per_minute)),
            ("messages_per_hour", number(self.messages_per_hour)),
            ("messages_per_day", number(self.messages_per_day)),
            ("bytes_in_flight", number(self.bytes_in_flight)),
            ("messages_per_connection", number(self.messages_per_connection)),
            (
                "recipients_per_transaction",
                number(self.recipients_per_transaction),
            ),
        ];
        all.into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }
}

/// One part of what a rule is about, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The rule says nothing of it: all together.
    All,
    /// `"*"`: each by itself.
    Each,
    /// This one.
    Only(Arc<str>),
}

/// What a rule is about: site, provider, tenant, source.
type Key = [Part; 4];

/// Which parts are said.
type Axes = [bool; 4];

/// A `[[limit]]` table.
#[derive(Clone, Debug)]
struct Table {
    number: usize,
    limits: ScopeLimits,
}

/// All `[[limit]]` tables, found by a few look-ups however many there are.
#[derive(Clone, Debug, Default)]
pub struct LimitRules {
    rules: BTreeMap<Key, Table>,
    /// Whether any is of single connections or transactions.
    of_transfers: bool,
    /// The parts that rules name, without repetition: at most ten.
    axes: Vec<Axes>,
    sites: Vec<Arc<str>>,
    /// Sources that are new, with the numbers of their tables.
    warming: BTreeMap<Arc<str>, (usize, WarmUp)>,
    by_host: ByDomain,
}

/// Whose mail is limited: as [`Scope`], with what rules call the site.
#[derive(Clone, Debug)]
pub struct Mail {
    /// Its parts.
    pub scope: Scope,
    /// The pattern of a rule that one of the site's hosts fits.
    site: Option<Arc<str>>,
}

impl LimitRules {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.warming.is_empty()
    }

    /// Whether a source is new, so that its limits change from day to day.
    pub fn is_warming(&self, source: &str) -> bool {
        self.warming.contains_key(source)
    }

    /// What rules may be about, of mail of this scope to these hosts.
    pub fn mail<'a>(&self, scope: Scope, hosts: impl IntoIterator<Item = &'a Domain>) -> Mail {
        let mut found = hosts
            .into_iter()
            .filter_map(|host| self.by_host.find(host.as_str()));
        let site = if self.sites.is_empty() { None } else { found.next() };
        Mail {
            scope,
            site: site.and_then(|number| self.sites.get(number)).cloned(),
        }
    }

    /// The scopes whose limits hold for mail, each with them. `of_tenant`: those that are about its tenant, or those that are not.
    /// Of two rules about the same parts, the one that names more of them holds, key by key.
    pub fn of(&self, mail: &Mail, of_tenant: bool, now: Timestamp) -> Vec<(Scope, ScopeLimits)> {
        let mut all = Vec::new();
        for axes in self.axes.iter().filter(|axes| axes[2] == of_tenant) {
            let Some(scope) = narrowed(&mail.scope, *axes) else {
                continue;
            };
            let mut limits = ScopeLimits::default();
            for key in keys(mail, *axes) {
                if let Some(table) = self.rules.get(&key) {
                    limits = limits.over(&table.limits);
                }
            }
            if limits != ScopeLimits::default() {
                all.push((scope, limits));
            }
        }
        if !of_tenant {
            self.warm_up(mail, now, &mut all);
        }
        all
    }

    /// What a source that is new may send to one provider, or to a site that is nobody's, today.
    fn warm_up(&self, mail: &Mail, now: Timestamp, all: &mut Vec<(Scope, ScopeLimits)>) {
        let source = mail.scope.source.as_ref();
        let Some(volume) = source.and_then(|source| self.warming.get(source)?.1.volume(now)) else {
            return;
        };
        let to_provider = mail.scope.provider.is_some();
        let Some(scope) = narrowed(&mail.scope, [!to_provider, to_provider, false, true]) else {
            return;
        };
        let today = Some(volume);
        match all.iter_mut().find(|(known, _)| *known == scope) {
            Some((_, limits)) => {
                limits.messages_per_day = limits.messages_per_day.min(today).or(today);
            }
            None => {
                let limits = ScopeLimits {
                    messages_per_day: today,
                    ..ScopeLimits::default()
                };
                all.push((scope, limits));
            }
        }
    }

    /// Each limit that holds for mail, with its scope, its key and its value, and the key under which the configuration says it.
    pub fn explain(&self, mail: &Mail, now: Timestamp) -> Vec<(Scope, &'static str, String, String)> {
        let of_scope = |(scope, limits): (Scope, ScopeLimits)| {
            let axes = [&scope.site, &scope.provider, &scope.tenant, &scope.source];
            let keys = keys(mail, axes.map(Option::is_some));
            let told = |(key, value): (&'static str, String)| {
                let says = |table: &&Table| table.limits.each().contains(&(key, value.clone()));
                let table = keys.iter().find_map(|key| self.rules.get(key).filter(says));
                let written = match table {
                    Some(table) => format!("limit[{}].{key}", table.number),
                    // Nothing else gives limits.
                    None => format!("source[{}].warm_up.first", self.warming_number(&scope)),
                };
                (scope.clone(), key, value, written)
            };
            limits.each().into_iter().map(told).collect::<Vec<_>>()
        };
        let all = [self.of(mail, false, now), self.of(mail, true, now)];
        all.into_iter().flatten().flat_map(of_scope).collect()
    }

    fn warming_number(&self, scope: &Scope) -> usize {
        let source = scope.source.as_ref();
        let warming = source.and_then(|source| self.warming.get(source));
        warming.map_or(0, |(number, _)| *number)
    }

    /// The fewest messages a connection and recipients a transaction that limits have for mail, whoever its tenant is.
    pub fn transfers(&self, mail: &Mail, now: Timestamp) -> (Option<u64>, Option<u64>) {
        if !self.of_transfers {
            return (None, None);
        }
        let all = self.of(mail, false, now);
        let messages = all
            .iter()
            .filter_map(|(_, limits)| limits.messages_per_connection);
        let recipients = all
            .iter()
            .filter_map(|(_, limits)| limits.recipients_per_transaction);
        (messages.min(), recipients.min())
    }

    fn add(&mut self, number: usize, key: Key, limits: ScopeLimits) -> bool {
        let axes = key.each_ref().map(|part| *part != Part::All);
        if !self.axes.contains(&axes) {
            self.axes.push(axes);
        }
        self.of_transfers |=
            limits.messages_per_connection.is_some() || limits.recipients_per_transaction.is_some();
        self.rules.insert(key, Table { number, limits }).is_none()
    }
}

/// The scope's parts that are said; `None` where the mail has none of one: nobody's hosts, no source.
fn narrowed(scope: &Scope, [site, provider, tenant, source]: Axes) -> Option<Scope> {
    let part = |said: bool, of: &Option<Arc<str>>| match (said, of) {
        (true, None) => None,
        (true, Some(name)) => Some(Some(name.clone())),
        (false, _) => Some(None),
    };
    Some(Scope {
        site: part(site, &scope.site)?,
        provider: part(provider, &scope.provider)?,
        tenant: part(tenant, &scope.tenant)?,
        source: part(source, &scope.source)?,
    })
}

/// The rules that may be about the mail, those that name most first.
fn keys(mail: &Mail, axes: Axes) -> Vec<Key> {
    let scope = &mail.scope;
    let names = [&mail.site, &scope.provider, &scope.tenant, &scope.source];
    let mut keys: Vec<Key> = vec![[const { Part::All }; 4]];
    for (number, (said, name)) in axes.into_iter().zip(names).enumerate() {
        if !said {
            continue;
        }
        let named = name.iter().map(|name| Part::Only(name.clone()));
        let parts: Vec<_> = named.chain([Part::Each]).collect();
        let with = |key: &Key, part: &Part| {
            let mut key = key.clone();
            key[number] = part.clone();
            key
        };
        keys = parts
            .iter()
            .flat_map(|part| keys.iter().map(move |key| with(key, part)))
            .collect();
    }
    keys.sort_by_key(|key| key.iter().filter(|part| **part == Part::Each).count());
    keys
}

/// Reads all `[[limit]]` tables.
pub(super) fn limits(
    check: &Check<'_>,
    top: &mut Section<'_>,
    is_provider: impl Fn(&str) -> bool,
    is_tenant: impl Fn(&str) -> bool,
    sources: &[Arc<Source>],
) -> LimitRules {
    let warm_up = |(number, source): (usize, &Arc<Source>)| {
        Some((source.name.clone(), (number, source.warm_up.clone()?)))
    };
    let mut rules = LimitRules {
        warming: sources.iter().enumerate().filter_map(warm_up).collect(),
        ..LimitRules::default()
    };
    let is_source = |name: &str| sources.iter().any(|source| *source.name == *name);
    let mut by_host = ByDomain::default();
    for (number, mut section) in top.sections("limit").into_iter().enumerate() {
        let said = AXES.iter().filter(|axis| section.has(axis)).count();
        let limits_something = KEYS.iter().any(|key| section.has(key));
        let site = section.parsed::<SitePart>("site");
        if let Some(Spot {
            value: SitePart(Some(host)),
            ..
        }) = &site
        {
            let name: Arc<str> = host.to_string().into();
            let at = match rules.sites.iter().position(|known| *known == name) {
                Some(at) => at,
                None => {
                    rules.sites.push(name);
                    rules.sites.len() - 1
                }
            };
            by_host.insert(&host.domain, host.below, at);
        }
        let site = match site {
            None => Part::All,
            Some(Spot { value, .. }) => match value.0 {
                None => Part::Each,
                Some(host) => Part::Only(host.to_string().into()),
            },
        };
        let provider = part(check, &mut section, "provider", &is_provider, |name| {
            format!("there is no provider \"{name}\"; docs/shaping.md lists those that are shipped")
        });
        let tenant = part(check, &mut section, "tenant", &is_tenant, |name| {
            format!("there is no tenant \"{name}\"; it would be a [tenants.{name}] table")
        });
        let source = part(check, &mut section, "source", is_source, |name| {
            format!("there is no source \"{name}\"; it would be a [[source]] with name = \"{name}\"")
        });
        let key = [site, provider, tenant, source];
        let limits = scope_limits(&mut section);
        if !(1..=2).contains(&said) {
            let axes = AXES.join(", ");
            let text =
                format!("is about {said} of {axes}: name one or two of them, \"*\" for each by itself");
            section.problem("", text);
        }
        if !limits_something {
            section.problem(
                "",
                "limits nothing: set connections, messages_per_second or another of its keys",
            );
        }
        let of_connections = [
            ("connections_per_second", limits.connections_per_second.is_some()),
            (
                "messages_per_connection",
                limits.messages_per_connection.is_some(),
            ),
            (
                "recipients_per_transaction",
                limits.recipients_per_transaction.is_some(),
            ),
        ];
        for (name, is_set) in of_connections {
            if key[2] != Part::All && is_set {
                section.problem(name, "is not for tenants: a connection serves all of them");
            }
        }
        if number == MOST {
            section.problem("", format!("is one too many: there may be {MOST} at the most"));
        }
        let is_right = limits != ScopeLimits::default() && key.iter().any(|part| *part != Part::All);
        if is_right && !rules.add(number, key, limits) {
            section.problem("", "is about the same as another [[limit]] before it");
        }
        section.end();
    }
    rules.by_host = by_host;
    rules
}

fn scope_limits(section: &mut Section<'_>) -> ScopeLimits {
    const MESSAGES: std::ops::RangeInclusive<u64> = 1..=1_000_000_000;
    ScopeLimits {
        connections: section.optional_integer("connections", CONNECTIONS),
        connections_per_second: section.number("connections_per_second", MESSAGES_PER_SECOND),
        messages_per_second: section.number("messages_per_second", MESSAGES_PER_SECOND),
        messages_per_minute: section.optional_integer("messages_per_minute", MESSAGES),
        messages_per_hour: section.optional_integer("messages_per_hour", MESSAGES),
        messages_per_day: section.optional_integer("messages_per_day", MESSAGES),
        bytes_in_flight: section.size("bytes_in_flight", 1_024..=1 << 50),
        messages_per_connection: section.optional_integer("messages_per_connection", MESSAGES_PER_CONNECTION),
        recipients_per_transaction: section
            .optional_integer("recipients_per_transaction", RECIPIENTS_PER_TRANSACTION),
    }
}

fn part(
    check: &Check<'_>,
    section: &mut Section<'_>,
    axis: &'static str,
    is_known: impl Fn(&str) -> bool,
    unknown: impl Fn(&str) -> String,
) -> Part {
    let Some(spot) = section.string(axis) else {
        return Part::All;
    };
    if spot.value == "*" {
        return Part::Each;
    }
    if !is_known(&spot.value) {
        check.problem(spot.at, &spot.key, unknown(&spot.value));
    }
    Part::Only(spot.value.into())
}

/// A host, or `"*"`.
struct SitePart(Option<HostPattern>);

impl FromStr for SitePart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(Self(None)),
            text => text.parse().map(Some).map(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    const PLAIN: &str = "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.a]\nsenders = [\"*\"]\n[tenants.b]\n\
        senders = [\"*\"]\n[[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\n\
        tenant = \"a\"\n";

    fn rules(more: &str) -> LimitRules {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postrider.toml");
        std::fs::write(&path, format!("{PLAIN}{more}")).unwrap();
        crate::config::load(&path).unwrap().delivery.scopes
    }

    fn mail(rules: &LimitRules, host: &str, provider: Option<&str>, tenant: &str) -> Mail {
        let scope = Scope {
            site: Some(host.into()),
            provider: provider.map(Arc::from),
            tenant: Some(tenant.into()),
            source: None,
        };
        rules.mail(scope, [&host.parse().unwrap()])
    }

    fn of(rules: &LimitRules, mail: &Mail) -> Vec<(String, Option<u64>, Option<f64>)> {
        let all = [rules.of(mail, false, NOW), rules.of(mail, true, NOW)].concat();
        let told = |(scope, limits): (Scope, ScopeLimits)| {
            (scope.to_string(), limits.connections, limits.messages_per_second)
        };
        all.into_iter().map(told).collect()
    }

    #[test]
    fn the_rule_that_names_more_holds_key_by_key() {
        let rules = rules(
            "[[limit]]\nprovider = \"google\"\ntenant = \"*\"\nconnections = 5\nmessages_per_second = 2\n\
             [[limit]]\nprovider = \"google\"\ntenant = \"a\"\nconnections = 9\n\
             [[limit]]\nprovider = \"*\"\nconnections = 50\n\
             [[limit]]\nsite = \"*.big.test\"\nconnections = 3\n[[limit]]\nsite = \"*\"\nconnections = 4\n\
             [[limit]]\nsource = \"*\"\nconnections = 1\n",
        );
        let google = mail(&rules, "aspmx.l.google.com", Some("google"), "a");
        assert_eq!(
            of(&rules, &google),
            [
                ("provider google".to_owned(), Some(50), None),
                ("site aspmx.l.google.com".to_owned(), Some(4), None),
                ("tenant a, provider google".to_owned(), Some(9), Some(2.0)),
            ]
        );
        let other = mail(&rules, "aspmx.l.google.com", Some("google"), "b");
        assert_eq!(
            of(&rules, &other)[2],
            ("tenant b, provider google".to_owned(), Some(5), Some(2.0))
        );
        let big = mail(&rules, "mx1.big.test", None, "a");
        assert_eq!(
            of(&rules, &big),
            [("site mx1.big.test".to_owned(), Some(3), None)],
            "nobody's hosts, no source"
        );
    }

    #[test]
    fn without_rules_nothing_is_limited() {
        let rules = rules("");
        assert!(rules.is_empty());
        assert_eq!(of(&rules, &mail(&rules, "mx.a.test", None, "a")), []);
    }
}
