//! Providers: who runs a mail host, told by its name, and what they ask of those who send to them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Domain;
use serde::Deserialize;

use crate::by_domain::ByDomain;
use crate::config::settings::{DestinationLimits, OwnLimits};

use super::classes::{ClassId, Classes};
use super::pattern::{CodePattern, TextPattern};

/// Who runs some mail hosts.
#[derive(Clone, Debug)]
pub struct Provider {
    /// As the configuration and logs call it.
    pub name: Arc<str>,
    /// For people.
    pub title: Arc<str>,
    /// Its hosts.
    pub mx: Vec<HostPattern>,
    /// Where those are from, if anybody says so.
    pub mx_source: Option<Arc<str>>,
    /// What is shipped of its limits, in force as long as they are stricter than the defaults.
    pub limits: Vec<Limit>,
    /// The configuration switches those off.
    pub without_shipped: bool,
    /// What the configuration says of its limits.
    pub own: OwnLimits,
    /// The number of the `[[provider]]` that says it.
    pub written: Option<usize>,
    /// What its replies mean.
    pub replies: Vec<ReplyRule>,
}

/// A limit, with its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// Of what.
    pub key: LimitKey,
    /// How much.
    pub value: f64,
    /// Of what mail together.
    pub across: Across,
    /// Who says so.
    pub source: Source,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Across {
    /// Each lane's.
    #[default]
    Lane,
    /// Each lane's, and that of all lanes to the provider from one source.
    Provider,
}

/// The keys of `[delivery.limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the keys' own names")]
pub enum LimitKey {
    Connections,
    MessagesPerSecond,
    MessagesPerConnection,
    RecipientsPerTransaction,
}

impl LimitKey {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Connections,
        Self::MessagesPerSecond,
        Self::MessagesPerConnection,
        Self::RecipientsPerTransaction,
    ];

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::MessagesPerSecond => "messages_per_second",
            Self::MessagesPerConnection => "messages_per_connection",
            Self::RecipientsPerTransaction => "recipients_per_transaction",
        }
    }
}

/// A page that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its address.
    pub url: Arc<str>,
    /// The day of its version, or of looking it up.
    pub seen: Arc<str>,
    /// The provider itself, other relays, or a third party.
    pub by: By,
}

/// Whose word it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum By {
    /// The provider's own.
    #[serde(rename = "provider")]
    Provider,
    /// Of other relays, which go by it.
    #[serde(rename = "community")]
    Community,
    /// Somebody else's.
    #[serde(rename = "third party")]
    ThirdParty,
}

impl By {
    /// As the table writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Community => "community",
            Self::ThirdParty => "third party",
        }
    }
}

/// What some words of a provider mean.
#[derive(Clone, Debug)]
pub struct ReplyRule {
    /// One of these; empty: any.
    pub codes: Vec<CodePattern>,
    /// One of these.
    pub text: Vec<TextPattern>,
    /// What it means.
    pub class: ClassId,
    /// What it asks for.
    pub advice: Option<Advice>,
    /// Who says so.
    pub source: Source,
}

/// What a reply asks for; [`crate::delivery::adapt`] acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Fewer messages, or connections, at once.
    SlowDown,
    /// Nothing at all for a time.
    Suspend {
        /// Of which mail.
        reach: Reach,
        /// For how long.
        time: Duration,
        /// Not before there were several.
        after: Option<After>,
        /// The configuration says so, not the shipped table: it holds though the lane works otherwise.
        ruled: bool,
    },
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlowDown => f.write_str("less at once"),
            Self::Suspend {
                reach, time, after, ..
            } => {
                let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
                match (minutes, seconds) {
                    (0, seconds) => write!(f, "{seconds} seconds of nothing")?,
                    (minutes, 0) => write!(f, "{minutes} minutes of nothing")?,
                    (minutes, seconds) => write!(f, "{minutes} minutes {seconds} seconds of nothing")?,
                }
                if *reach != Reach::Lane {
                    write!(f, " for the {}", reach.word())?;
                }
                after.map_or(Ok(()), |after| write!(f, ", {after}"))
            }
        }
    }
}

/// How many replies of a kind a lane has to hear, and within what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// So many.
    pub replies: u32,
    /// Within any such time.
    pub within: Duration,
    /// What tells the kind from others that one lane may hear.
    pub kind: u32,
}

/// Where kinds of the shipped table begin, those of each provider by themselves; below are the configuration's.
pub const SHIPPED_KINDS: u32 = 1_000_000;

/// The most that may be waited for: each of them is remembered.
const MOST_REPLIES: u32 = 100;

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (replies, seconds) = (self.replies, self.within.as_secs());
        match seconds % 60 {
            0 => write!(f, "after {replies} within {} minutes", seconds / 60),
            _ => write!(f, "after {replies} within {seconds} seconds"),
        }
    }
}

impl FromStr for After {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = "says how many replies do it; write such as \"5 in 1h\"";
        let (replies, within) = text.split_once(" in ").ok_or(wrong)?;
        let replies: u32 = replies.parse().map_err(|_| wrong)?;
        if !(2..=MOST_REPLIES).contains(&replies) {
            return Err(format!("is not within 2 and {MOST_REPLIES} replies"));
        }
        let within = crate::config::parse_duration(within)?;
        if !SUSPENDED.contains(&within) {
            return Err("is not within 1s and 1d".into());
        }
        Ok(Self {
            replies,
            within,
            kind: 0,
        })
    }
}

/// Which mail a suspension is about, as seen from the lane whose reply it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To this site, from this source.
    Lane,
    /// To this site, from whatever source.
    Site,
    /// To the provider's hosts; where nobody is known to run them, to this site.
    Provider,
    /// From this source to the provider's hosts, or to this site.
    Source,
    /// Of this tenant to the provider's hosts, or to this site.
    Tenant,
}

impl Reach {
    /// As the configuration writes them.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("lane", Self::Lane),
        ("site", Self::Site),
        ("provider", Self::Provider),
        ("source", Self::Source),
        ("tenant", Self::Tenant),
    ];

    /// As the configuration writes it.
    pub fn word(self) -> &'static str {
        let mut words = Self::WORDS.into_iter();
        words
            .find(|(_, reach)| *reach == self)
            .map_or("", |(word, _)| word)
    }
}

impl FromStr for Reach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = Self::WORDS.into_iter();
        let found = words.find(|(word, _)| *word == text);
        let all = Self::WORDS.map(|(word, _)| format!("\"{word}\"")).join(", ");
        found
            .map(|(_, reach)| reach)
            .ok_or_else(|| format!("is none of {all}"))
    }
}

/// How long a rule, or a reply, may suspend mail for.
pub const SUSPENDED: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);

/// `mx.example.net`, or `*.example.net` for all below.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// The host; with `below`, what its name ends in.
    pub domain: Domain,
    /// Written with `*.`
    pub below: bool,
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.below { "*." } else { "" };
        write!(f, "{star}{}", self.domain)
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, below) = text
            .strip_prefix("*.")
            .map_or((text, false), |parent| (parent, true));
        if name.contains('*') {
            return Err("a host is written whole, or as \"*.example.net\" for all below a name".into());
        }
        if below && !name.contains('.') {
            return Err("is a whole top-level domain".into());
        }
        let domain = name
            .parse()
            .map_err(|error: mail_core::BadDomain| error.to_string())?;
        Ok(Self { domain, below })
    }
}

impl Provider {
    /// One that the configuration makes.
    pub fn new(name: Arc<str>) -> Self {
        Self {
            title: name.clone(),
            name,
            mx: Vec::new(),
            mx_source: None,
            limits: Vec::new(),
            without_shipped: false,
            own: OwnLimits::default(),
            written: None,
            replies: Vec::new(),
        }
    }

    /// The shipped limit of this key, if it counts.
    pub fn limit(&self, key: LimitKey) -> Option<&Limit> {
        let mut limits = self.limits.iter().filter(|_| !self.without_shipped);
        limits.find(|limit| limit.key == key)
    }

    /// What is shipped of the connections that all lanes to its hosts may have from one source. Who says anything of its connections
    /// says it in place of this.
    pub fn connections_together(&self) -> Option<&Limit> {
        let shipped = self.limit(LimitKey::Connections);
        shipped.filter(|limit| limit.across == Across::Provider && self.own.connections.is_none())
    }

    /// The limits of a lane to its hosts that no destination's rule speaks of. What the configuration says of the provider holds;
    /// what is shipped makes the defaults stricter, never wider.
    pub fn limits(&self, defaults: &DestinationLimits) -> DestinationLimits {
        let at_most = |key| self.limit(key).map_or(f64::INFINITY, |limit| limit.value);
        let stricter = |default: f64, key| default.min(at_most(key));
        let shipped = DestinationLimits {
            connections: stricter(defaults.connections as f64, LimitKey::Connections) as usize,
            messages_per_second: Some(stricter(
                defaults.messages_per_second.unwrap_or(f64::INFINITY),
                LimitKey::MessagesPerSecond,
            ))
            .filter(|rate| rate.is_finite()),
            messages_per_connection: stricter(
                f64::from(defaults.messages_per_connection),
                LimitKey::MessagesPerConnection,
            ) as u32,
            recipients_per_transaction: stricter(
                defaults.recipients_per_transaction as f64,
                LimitKey::RecipientsPerTransaction,
            ) as usize,
        };
        self.own.over(&shipped)
    }
}

/// All providers, found by the name of a host.
#[derive(Clone)]
pub struct Providers {
    all: Vec<Arc<Provider>>,
    by_host: ByDomain,
}

impl Providers {
    /// Of two that have the same pattern, the last one counts.
    pub fn new(all: Vec<Provider>) -> Self {
        let mut by_host = ByDomain::default();
        for (number, provider) in all.iter().enumerate() {
            for pattern in &provider.mx {
                by_host.insert(&pattern.domain, pattern.below, number);
            }
        }
        Self {
            all: all.into_iter().map(Arc::new).collect(),
            by_host,
        }
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Provider>] {
        &self.all
    }

    /// Who runs a host, in lower case and without a final dot: an exact name before the longest parent.
    pub fn of_host(&self, host: &str) -> Option<&Arc<Provider>> {
        self.by_host.find(host).and_then(|number| self.all.get(number))
    }

    /// Whose figures a lane to a site goes by: of whoever has most of its hosts that are somebody's, the first in the table among equals. A
    /// backup host at somebody else's makes no difference.
    pub fn of_site<'a>(&self, hosts: impl IntoIterator<Item = &'a Domain>) -> Option<&Arc<Provider>> {
        // Hosts of one site are at one provider's, nearly always.
        let mut counts: Vec<(usize, usize)> = Vec::new();
        for number in hosts
            .into_iter()
            .filter_map(|host| self.by_host.find(host.as_str()))
        {
            match counts.iter_mut().find(|(known, _)| *known == number) {
                Some((_, count)) => *count += 1,
                None => counts.push((number, 1)),
            }
        }
        let most = counts
            .iter()
            .max_by_key(|&&(number, count)| (count, std::cmp::Reverse(number)));
        most.and_then(|&(number, _)| self.all.get(number))
    }

    /// Who runs all hosts of a site. Such sites alone share something with the provider's others: everybody may name a provider's host
    /// beside his own, and have his own hold what is shared, or say what suspends it.
    pub fn of_whole_site<'a>(&self, hosts: impl IntoIterator<Item = &'a Domain>) -> Option<&Arc<Provider>> {
        let mut all = hosts.into_iter().map(|host| self.by_host.find(host.as_str()));
        let first = all.next()?;
        all.all(|other| other == first)
            .then(|| self.all.get(first?))
            .flatten()
    }
}

impl fmt::Debug for Providers {
    /// The index says nothing more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.fmt(f)
    }
}

/// Reads the text of `providers.toml`.
pub(super) fn read(text: &str, classes: &Classes) -> Result<Vec<Provider>, String> {
    let raw: RawProviders = toml::from_str(text).map_err(|error| error.to_string())?;
    raw.provider.into_iter().map(|raw| raw.checked(classes)).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProviders {
    provider: Vec<RawProvider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProvider {
    name: String,
    title: String,
    mx: Vec<String>,
    mx_source: Option<String>,
    #[serde(default)]
    unsourced: bool,
    #[serde(default)]
    limit: Vec<RawLimit>,
    #[serde(default)]
    reply: Vec<RawReply>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimit {
    key: LimitKey,
    value: f64,
    #[serde(default)]
    across: Across,
    source: String,
    seen: String,
    by: By,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReply {
    #[serde(default)]
    codes: Vec<String>,
    text: Vec<String>,
    class: String,
    suspend: Option<String>,
    #[serde(rename = "for")]
    time: Option<String>,
    /// Short for `suspend = "lane"`.
    rest: Option<String>,
    after: Option<String>,
    #[serde(default)]
    slow_down: bool,
    source: String,
    seen: String,
    by: By,
}

impl RawProvider {
    fn checked(self, classes: &Classes) -> Result<Provider, String> {
        let name = self.name;
        let wrong = |why: String| format!("{name}: {why}");
        if self.unsourced != self.limit.is_empty() {
            return Err(wrong(
                "unsourced = true stands where there is no limit, and nowhere else".into(),
            ));
        }
        let limit = |raw: RawLimit| {
            if !raw.value.is_finite() || raw.value <= 0.0 {
                return Err(format!("{} is no limit", raw.value));
            }
            if raw.across == Across::Provider && raw.key != LimitKey::Connections {
                return Err("of what goes across a provider only connections are known".to_owned());
            }
            Ok(Limit {
                key: raw.key,
                value: raw.value,
                across: raw.across,
                source: source(raw.source, raw.seen, raw.by)?,
            })
        };
        let all = |texts: Vec<String>| {
            texts
                .iter()
                .map(|text| text.parse())
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Provider {
            title: self.title.into(),
            mx: all(self.mx).map_err(wrong)?,
            mx_source: self.mx_source.map(Arc::from),
            limits: self
                .limit
                .into_iter()
                .map(limit)
                .collect::<Result<_, _>>()
                .map_err(wrong)?,
            replies: (SHIPPED_KINDS..)
                .zip(self.reply)
                .map(|(kind, reply)| reply.checked(kind, classes))
                .collect::<Result<_, _>>()
                .map_err(wrong)?,
            ..Provider::new(name.as_str().into())
        })
    }
}

impl RawReply {
    fn advice(&self, kind: u32) -> Result<Option<Advice>, String> {
        let (reach, time) = match (&self.suspend, &self.time, &self.rest) {
            (None, None, None) if self.after.is_some() => return Err("after goes with a rest".into()),
            (None, None, None) => return Ok(self.slow_down.then_some(Advice::SlowDown)),
            (None, None, Some(time)) => (Reach::Lane, time),
            (Some(word), Some(time), None) => (word.parse().map_err(|why| format!("suspend {why}"))?, time),
            _ => return Err("suspend goes with for, or rest stands alone".into()),
        };
        if self.slow_down {
            return Err("a rest and slow_down are one or the other".into());
        }
        let time = crate::config::parse_duration(time)?;
        if !SUSPENDED.contains(&time) {
            return Err(format!("{time:?} is no time to be suspended for"));
        }
        let after = self.after.as_deref().map(After::from_str).transpose()?;
        Ok(Some(Advice::Suspend {
            reach,
            time,
            after: after.map(|after| After { kind, ..after }),
            ruled: false,
        }))
    }

    fn checked(self, kind: u32, classes: &Classes) -> Result<ReplyRule, String> {
        let advice = self.advice(kind)?;
        if self.text.is_empty() {
            return Err("a reply is known by its text".into());
        }
        Ok(ReplyRule {
            codes: self
                .codes
                .iter()
                .map(|code| code.parse())
                .collect::<Result<_, &str>>()?,
            text: self
                .text
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, String>>()?,
            class: classes.known(&self.class)?,
            advice,
            source: source(self.source, self.seen, self.by)?,
        })
    }
}

fn source(url: String, seen: String, by: By) -> Result<Source, String> {
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err(format!("\"{url}\" is no address of a page"));
    }
    seen.parse::<jiff::civil::Date>()
        .map_err(|error| format!("\"{seen}\": {error}"))?;
    let (url, seen) = (url.into(), seen.into());
    Ok(Source { url, seen, by })
}

#[cfg(test)]
mod tests;
