//! Which rule is in force for a domain, and where each value of it is from: what `postrider config effective` tells.

use std::fmt;

use mail_core::Domain;

use crate::config::Problem;
use crate::config::settings::{AddressFamily, Settings, TlsLevel};
use crate::delivery::lane::Rule;

use super::Advice;
use super::pattern::{CodePattern, TextPattern};
use super::providers::{LimitKey, Provider, Source};

/// The rule for mail to a domain over some hosts.
#[derive(Debug)]
pub struct Explained<'a> {
    /// Whose figures hold, if any of the hosts is known.
    pub provider: Option<&'a Provider>,
    /// It runs all of the hosts, so that what lanes to it share holds too.
    pub is_whole: bool,
    /// The destination's rule, as it is written.
    pub destination: Option<String>,
    /// Each key, in the order of the example configuration.
    pub values: Vec<Value<'a>>,
    /// Replies that ask for something, in the order in which they are looked for.
    pub replies: Vec<Asks<'a>>,
}

/// What some replies ask for.
#[derive(Debug)]
pub struct Asks<'a> {
    /// Their codes and texts.
    pub said: String,
    /// What follows.
    pub advice: Advice,
    /// Where it is from.
    pub from: From<'a>,
}

/// A key and its value.
#[derive(Debug)]
pub struct Value<'a> {
    /// As the configuration calls it.
    pub key: &'static str,
    /// As the configuration writes it.
    pub value: String,
    /// Where it is from.
    pub from: From<'a>,
}

/// Where a value is from.
#[derive(Debug)]
pub enum From<'a> {
    /// It is written in the configuration: this key, there.
    Written(String, &'a Problem),
    /// It is shipped with the relay, for this provider.
    Shipped(&'a Provider, &'a Source),
    /// Nobody says anything else.
    Default,
}

impl fmt::Display for From<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(key, at) => write!(f, "{}:{}:{}: {key}", at.file.display(), at.line, at.column),
            Self::Shipped(provider, source) => {
                let (by, seen, url) = (source.by.name(), &source.seen, &source.url);
                write!(f, "shipped for {}: {by}, {seen}, {url}", provider.name)
            }
            Self::Default => f.write_str("default"),
        }
    }
}

/// What is in force for mail to `domain` over `hosts`.
pub fn explain<'a>(domain: &Domain, hosts: &[Domain], settings: &'a Settings) -> Explained<'a> {
    let delivery = &settings.delivery;
    let provider = delivery.shaping.providers.of_site(hosts).map(|found| &**found);
    let number = delivery.destinations.of(domain);
    let rule = Rule::of(domain, provider, delivery);
    let mut values = vec![
        Value {
            key: "tls",
            value: format!("\"{}\"", tls(rule.tls)),
            from: written(settings, number, "tls"),
        },
        Value {
            key: "address_family",
            value: format!("\"{}\"", family(rule.family)),
            from: written(settings, number, "address_family"),
        },
    ];
    values.extend(LimitKey::ALL.map(|key| Value {
        key: key.name(),
        value: match key {
            LimitKey::Connections => rule.limits.connections.to_string(),
            LimitKey::MessagesPerSecond => match rule.limits.messages_per_second {
                Some(rate) => format!("{rate:?}"),
                None => "unlimited".to_owned(),
            },
            LimitKey::MessagesPerConnection => rule.limits.messages_per_connection.to_string(),
            LimitKey::RecipientsPerTransaction => rule.limits.recipients_per_transaction.to_string(),
        },
        from: limit(settings, number, provider, key),
    }));
    Explained {
        provider,
        is_whole: delivery.shaping.providers.of_whole_site(hosts).is_some(),
        destination: rule.name.map(|name| name.to_string()),
        values,
        replies: replies(settings, provider),
    }
}

/// Rules of the configuration go before what is shipped.
fn replies<'a>(settings: &'a Settings, provider: Option<&'a Provider>) -> Vec<Asks<'a>> {
    let own = settings.delivery.shaping.classes.rules().iter().enumerate();
    let is_meant = |name: &Option<std::sync::Arc<str>>| {
        name.as_ref()
            .is_none_or(|name| provider.is_some_and(|provider| provider.name == *name))
    };
    let own = own.filter(|(_, rule)| is_meant(&rule.provider));
    let own = own.filter_map(|(number, rule)| {
        let key = match rule.advice? {
            Advice::SlowDown => format!("bounce_rule[{number}].slow_down"),
            Advice::Suspend { .. } => format!("bounce_rule[{number}].suspend"),
        };
        let place = settings.effective.place(&key);
        Some(Asks {
            said: said(&rule.codes, &rule.text),
            advice: rule.advice?,
            from: place.map_or(From::Default, |at| From::Written(key, at)),
        })
    });
    let shipped = provider.into_iter().flat_map(|provider| {
        let asks = |reply: &'a super::providers::ReplyRule| {
            Some(Asks {
                said: said(&reply.codes, &reply.text),
                advice: reply.advice?,
                from: From::Shipped(provider, &reply.source),
            })
        };
        provider.replies.iter().filter_map(asks)
    });
    own.chain(shipped).collect()
}

fn said(codes: &[CodePattern], text: &[TextPattern]) -> String {
    let codes = codes.iter().map(CodePattern::to_string);
    let texts = text.iter().map(|text| format!("\"{text}\""));
    codes.chain(texts).collect::<Vec<_>>().join(", ")
}

/// The same steps as [`Rule::of`] takes; a test sees that they lead to the same.
fn limit<'a>(
    settings: &'a Settings,
    destination: Option<usize>,
    provider: Option<&'a Provider>,
    key: LimitKey,
) -> From<'a> {
    let place = |key: String| {
        let at = settings.effective.place(&key)?;
        Some(From::Written(key, at))
    };
    let name = key.name();
    let of_destination = || place(format!("destination[{}].limits.{name}", destination?));
    let of_provider = || place(format!("provider[{}].limits.{name}", provider?.written?));
    let shipped = || {
        let provider = provider?;
        let limit = provider.limit(key)?;
        let defaults = &settings.delivery.limits;
        let default = match key {
            LimitKey::Connections => defaults.connections as f64,
            LimitKey::MessagesPerSecond => defaults.messages_per_second.unwrap_or(f64::INFINITY),
            LimitKey::MessagesPerConnection => f64::from(defaults.messages_per_connection),
            LimitKey::RecipientsPerTransaction => defaults.recipients_per_transaction as f64,
        };
        (limit.value < default).then_some(From::Shipped(provider, &limit.source))
    };
    of_destination()
        .or_else(of_provider)
        .or_else(shipped)
        .or_else(|| place(format!("delivery.limits.{name}")))
        .unwrap_or(From::Default)
}

impl<'a> From<'a> {
    /// What the configuration writes under a key; the default where that is not there.
    pub fn key(settings: &'a Settings, key: String) -> Self {
        match settings.effective.place(&key) {
            Some(at) => Self::Written(key, at),
            None => Self::Default,
        }
    }
}

fn written<'a>(settings: &'a Settings, destination: Option<usize>, key: &str) -> From<'a> {
    let place = |key: String| {
        let at = settings.effective.place(&key)?;
        Some(From::Written(key, at))
    };
    destination
        .and_then(|number| place(format!("destination[{number}].{key}")))
        .or_else(|| place(format!("delivery.{key}")))
        .unwrap_or(From::Default)
}

fn tls(level: TlsLevel) -> &'static str {
    match level {
        TlsLevel::Opportunistic => "opportunistic",
        TlsLevel::Required => "required",
        TlsLevel::Off => "off",
    }
}

fn family(family: AddressFamily) -> &'static str {
    match family {
        AddressFamily::Any => "any",
        AddressFamily::Ipv4 => "ipv4",
        AddressFamily::Ipv6 => "ipv6",
        AddressFamily::PreferIpv4 => "prefer-ipv4",
        AddressFamily::PreferIpv6 => "prefer-ipv6",
    }
}

#[cfg(test)]
mod tests;
