//! `[[limit]]`: what a site, a provider, a tenant, a source, or two of them together may use.

mod rules;

use std::str::FromStr;
use std::sync::Arc;

use crate::shaping::providers::HostPattern;

use super::check::{CONNECTIONS, MESSAGES_PER_CONNECTION, MESSAGES_PER_SECOND, RECIPIENTS_PER_TRANSACTION};
use super::egress::{DEFAULT_SOURCE, Source};
use super::section::{Check, Section, Spot};

use rules::Part;
pub use rules::{LimitRules, Mail, OfLanes, Says, SiteLimits, Together};

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

    /// Of both, key by key, what allows less.
    fn least(&self, other: &Self) -> Self {
        let number = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        let rate = |one: Option<f64>, other: Option<f64>| one.into_iter().chain(other).reduce(f64::min);
        Self {
            connections: number(self.connections, other.connections),
            connections_per_second: rate(self.connections_per_second, other.connections_per_second),
            messages_per_second: rate(self.messages_per_second, other.messages_per_second),
            messages_per_minute: number(self.messages_per_minute, other.messages_per_minute),
            messages_per_hour: number(self.messages_per_hour, other.messages_per_hour),
            messages_per_day: number(self.messages_per_day, other.messages_per_day),
            bytes_in_flight: number(self.bytes_in_flight, other.bytes_in_flight),
            messages_per_connection: number(self.messages_per_connection, other.messages_per_connection),
            recipients_per_transaction: number(
                self.recipients_per_transaction,
                other.recipients_per_transaction,
            ),
        }
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

/// Reads all `[[limit]]` tables.
pub(super) fn limits(
    check: &Check<'_>,
    top: &mut Section<'_>,
    is_provider: impl Fn(&str) -> bool,
    is_tenant: impl Fn(&str) -> bool,
    sources: &[Arc<Source>],
) -> LimitRules {
    let mut rules = LimitRules::new(sources);
    let is_source = |name: &str| name == DEFAULT_SOURCE || sources.iter().any(|source| *source.name == *name);
    for (number, mut section) in top.sections("limit").into_iter().enumerate() {
        let said = AXES.iter().filter(|axis| section.has(axis)).count();
        let limits_something = KEYS.iter().any(|key| section.has(key));
        let site = section.parsed::<SitePart>("site");
        let site = match site {
            None => Part::All,
            Some(Spot { value, .. }) => match value.0 {
                None => Part::Each,
                Some(host) => rules.site(&host),
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
    use mail_core::Timestamp;
    use queue::Scope;

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
                ("source default".to_owned(), Some(1), None),
                ("tenant a, provider google".to_owned(), Some(9), Some(2.0)),
            ]
        );
        let other = mail(&rules, "aspmx.l.google.com", Some("google"), "b");
        assert_eq!(
            of(&rules, &other)[3],
            ("tenant b, provider google".to_owned(), Some(5), Some(2.0))
        );
        let big = mail(&rules, "mx1.big.test", None, "a");
        assert_eq!(
            of(&rules, &big),
            [
                ("site mx1.big.test".to_owned(), Some(3), None),
                ("source default".to_owned(), Some(1), None)
            ],
            "nobody's hosts"
        );
    }

    /// A site of several hosts fits all rules of any of them.
    #[test]
    fn of_rules_for_several_hosts_of_a_site_the_stricter_holds() {
        let rules = rules(
            "[[limit]]\nsite = \"*\"\nmessages_per_second = 100\n\
             [[limit]]\nsite = \"mx2.b.test\"\nconnections = 3\nmessages_per_second = 8\n\
             [[limit]]\nsite = \"mx1.a.test\"\nconnections = 5\nmessages_per_second = 7\n",
        );
        for hosts in [["mx1.a.test", "mx2.b.test"], ["mx2.b.test", "mx1.a.test"]] {
            let hosts = hosts.map(|host| host.parse().unwrap());
            let scope = Scope {
                site: Some("s".into()),
                ..Scope::default()
            };
            let mail = rules.mail(scope, &hosts);
            assert_eq!(of(&rules, &mail), [("site s".to_owned(), Some(3), Some(7.0))]);
        }
    }

    #[test]
    fn without_rules_nothing_is_limited() {
        let rules = rules("");
        assert!(rules.is_empty());
        assert_eq!(of(&rules, &mail(&rules, "mx.a.test", None, "a")), []);
    }
}
