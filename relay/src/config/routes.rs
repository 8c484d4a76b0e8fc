//! Which way mail goes, as configured: rules, safe mode.

use std::str::FromStr;
use std::sync::Arc;

use mail_core::{Mailbox, ReversePath};

use super::egress::{Pool, known_pool};
use super::rewrites::{Rewrite, rewrites};
use super::section::{Check, Section, Spot};
use super::settings::SenderPattern;
use super::smart_hosts::SmartHost;
use super::streams::Streams;

/// Octets of a reason, which goes into replies and logs.
const MAX_REASON: usize = 200;

/// Which way mail goes.
#[derive(Clone, Debug, Default)]
pub struct RoutingSettings {
    /// What rules may name.
    pub smart_hosts: Vec<Arc<SmartHost>>,
    /// In order; the first that fits decides. Whatever none fits goes by MX.
    pub rules: Vec<RouteRule>,
    /// Sender addresses that are replaced.
    pub rewrites: Vec<Rewrite>,
    /// Set on machines that must not write to real people.
    pub safe_mode: Option<SafeMode>,
}

/// A rule. A list that is empty fits everything; one that is not fits where one of its entries does.
#[derive(Clone, Debug)]
pub struct RouteRule {
    /// Recipients.
    pub to: Vec<SenderPattern>,
    /// Reverse-paths.
    pub from: Vec<PathPattern>,
    /// Tenants, by name.
    pub tenants: Vec<Arc<str>>,
    /// Streams, by name.
    pub streams: Vec<Arc<str>>,
    /// Where what fits goes.
    pub next_hop: NextHop,
    /// The pool of sources that it goes from; `None`: the default. Only of what goes on.
    pub pool: Option<Arc<str>>,
    /// Smart hosts that take it while its next hop can't be spoken to: the first that can be. Only of what goes on.
    pub fallbacks: Vec<Arc<str>>,
}

/// An entry of a rule's `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// `"<>"`: reports, which come from nobody.
    Null,
    /// Any other form; `"*"` fits the null path too.
    Address(SenderPattern),
}

impl PathPattern {
    /// Whether a reverse-path is one of these.
    pub fn fits(&self, path: &ReversePath) -> bool {
        match (self, path.mailbox()) {
            (Self::Null, None) | (Self::Address(SenderPattern::Any), _) => true,
            (Self::Address(pattern), Some(mailbox)) => pattern.fits(mailbox),
            (Self::Null, Some(_)) | (Self::Address(_), None) => false,
        }
    }
}

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "<>" => Ok(Self::Null),
            text => text.parse().map(Self::Address),
        }
    }
}

/// Where mail goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// To the destination's own MX hosts.
    Mx,
    /// To the smart host of this name.
    SmartHost(Arc<str>),
    /// Nowhere: RCPT is refused for this reason.
    Refuse(Arc<str>),
    /// Nowhere: it is taken and thrown away, for this reason.
    Discard(Arc<str>),
}

/// What a staging machine does with mail.
#[derive(Clone, Debug)]
pub struct SafeMode {
    /// Recipients who get their mail all the same.
    pub only_to: Vec<SenderPattern>,
    /// Who gets the mail of all others; `None`: it is discarded.
    pub redirect_all: Option<Mailbox>,
}

/// What rules may name.
pub(super) struct Named<'a> {
    pub(super) smart_hosts: &'a [Arc<SmartHost>],
    pub(super) pools: &'a [Arc<Pool>],
    pub(super) is_tenant: &'a dyn Fn(&str) -> bool,
    pub(super) streams: &'a Streams,
}

/// Reads `[[route]]` and `[safe_mode]`.
pub(super) fn routing(check: &Check<'_>, top: &mut Section<'_>, named: &Named<'_>) -> RoutingSettings {
    let mut rules: Vec<RouteRule> = Vec::new();
    let mut all_taken: Option<usize> = None;
    for (number, section) in top.sections("route").into_iter().enumerate() {
        if let Some(taker) = all_taken {
            section.problem("", format!("is never reached: route[{taker}] fits everything"));
        }
        let Some(rule) = rule(check, section, named) else {
            continue;
        };
        if rule.to.iter().all(is_any)
            && rule
                .from
                .iter()
                .all(|from| matches!(from, PathPattern::Address(any) if is_any(any)))
            && rule.tenants.is_empty()
            && rule.streams.is_empty()
        {
            all_taken.get_or_insert(number);
        }
        rules.push(rule);
    }
    RoutingSettings {
        smart_hosts: named.smart_hosts.to_vec(),
        rewrites: rewrites(check, top),
        rules,
        safe_mode: safe_mode(top),
    }
}

fn is_any(pattern: &SenderPattern) -> bool {
    *pattern == SenderPattern::Any
}

fn rule(check: &Check<'_>, mut section: Section<'_>, named: &Named<'_>) -> Option<RouteRule> {
    let to = values(section.list::<SenderPattern>("to"));
    let from = values(section.list::<PathPattern>("from"));
    let tenants = section.list::<String>("tenants").unwrap_or_default();
    for spot in tenants.iter().filter(|spot| !(named.is_tenant)(&spot.value)) {
        let text = format!(
            "there is no tenant \"{0}\"; it would be a table [tenants.{0}]",
            spot.value
        );
        check.problem(spot.at, &spot.key, text);
    }
    let streams = section.list::<String>("streams").unwrap_or_default();
    for spot in &streams {
        named.streams.check(check, spot);
    }
    let name = section.string("next_hop");
    let name = section.required(
        "next_hop",
        name,
        "\"mx\", \"refuse\", \"discard\", or a smart host's name",
    );
    let reason = section.parsed::<Reason>("reason");
    let pool = section.string("pool");
    let fallback = section.list_or_one::<String>("fallback").unwrap_or_default();
    let next_hop = name.and_then(|spot| next_hop(check, &section, &spot, named.smart_hosts, reason));
    let goes_on = !matches!(next_hop, Some(NextHop::Refuse(_) | NextHop::Discard(_)));
    let pool = pool.and_then(|spot| match goes_on {
        true => known_pool(check, &spot, named.pools),
        false => {
            check.problem(spot.at, &spot.key, GOES_NOWHERE);
            None
        }
    });
    let fallbacks = fallback_hosts(check, &fallback, next_hop.as_ref(), named.smart_hosts);
    section.end();
    Some(RouteRule {
        to,
        from,
        tenants: values(Some(tenants)).into_iter().map(Arc::from).collect(),
        streams: values(Some(streams)).into_iter().map(Arc::from).collect(),
        next_hop: next_hop?,
        pool: pool.map(|pool| pool.name.clone()),
        fallbacks,
    })
}

/// What a key of mail that goes on is told at a rule whose mail does not.
const GOES_NOWHERE: &str = "is for mail that goes on; this goes nowhere";

/// Smart hosts that a rule may name to take its mail over. Their names are in that of its route group.
pub const MAX_FALLBACKS: usize = 8;

/// The names of the smart hosts that take a rule's mail while its next hop can't be spoken to.
fn fallback_hosts(
    check: &Check<'_>,
    spots: &[Spot<String>],
    next_hop: Option<&NextHop>,
    smart_hosts: &[Arc<SmartHost>],
) -> Vec<Arc<str>> {
    let mut names = Vec::new();
    for spot in spots {
        let Some(name) = fallback_host(check, spot, next_hop, smart_hosts) else {
            continue;
        };
        if names.contains(&name) {
            check.problem(spot.at, &spot.key, "is named before: it is tried once");
        } else if names.len() == MAX_FALLBACKS {
            let text = format!("is one too many: a route may have {MAX_FALLBACKS} fallbacks");
            check.problem(spot.at, &spot.key, text);
        } else {
            names.push(name);
        }
    }
    names
}

fn fallback_host(
    check: &Check<'_>,
    spot: &Spot<String>,
    next_hop: Option<&NextHop>,
    smart_hosts: &[Arc<SmartHost>],
) -> Option<Arc<str>> {
    let name = spot.value.as_str();
    let problem = match next_hop {
        Some(NextHop::Refuse(_) | NextHop::Discard(_)) => GOES_NOWHERE.to_owned(),
        Some(NextHop::SmartHost(first)) if **first == *name => {
            "is the next hop already: it can't take over from itself".to_owned()
        }
        _ => match smart_hosts.iter().find(|host| *host.name == *name) {
            Some(host) => return Some(host.name.clone()),
            None => format!("there is no smart host \"{name}\"; it would be a [[smart_host]] of that name"),
        },
    };
    check.problem(spot.at, &spot.key, problem);
    None
}

fn next_hop(
    check: &Check<'_>,
    section: &Section<'_>,
    name: &Spot<String>,
    smart_hosts: &[Arc<SmartHost>],
    reason: Option<Spot<Reason>>,
) -> Option<NextHop> {
    let word = name.value.as_str();
    let named = smart_hosts.iter().find(|host| *host.name == *word);
    let goes_on = match (word, named) {
        ("refuse" | "discard", _) => None,
        ("mx", _) => Some(NextHop::Mx),
        (_, Some(host)) => Some(NextHop::SmartHost(host.name.clone())),
        (_, None) => {
            let text = format!(
                "there is no smart host \"{word}\"; it would be a [[smart_host]] of that name. Other next hops are \"mx\", \
                 \"refuse\", \"discard\""
            );
            check.problem(name.at, &name.key, text);
            return None;
        }
    };
    if goes_on.is_some() {
        if let Some(spot) = reason {
            check.problem(
                spot.at,
                &spot.key,
                "is for \"refuse\" and \"discard\"; other mail goes on",
            );
        }
        return goes_on;
    }
    let what = "what senders, or your log, are told, such as \"no mail to our own test domains\"";
    let reason = Arc::from(section.required("reason", reason, what)?.value.0);
    Some(if word == "refuse" {
        NextHop::Refuse(reason)
    } else {
        NextHop::Discard(reason)
    })
}

fn safe_mode(top: &mut Section<'_>) -> Option<SafeMode> {
    let there = top.has("safe_mode");
    let mut section = top.section("safe_mode");
    let says_nothing = there && !section.has("only_to") && !section.has("redirect_all");
    let only_to = section.list::<SenderPattern>("only_to");
    let redirect_all = section.parsed::<Mailbox>("redirect_all");
    if says_nothing {
        section.required::<()>(
            "only_to",
            None,
            "who gets mail still, such as [\"example.com\"], or [] for nobody; or redirect_all, who gets it instead",
        );
    }
    section.end();
    there.then(|| SafeMode {
        only_to: values(only_to),
        redirect_all: redirect_all.map(|spot| spot.value),
    })
}

fn values<T>(list: Option<Vec<Spot<T>>>) -> Vec<T> {
    list.unwrap_or_default()
        .into_iter()
        .map(|spot| spot.value)
        .collect()
}

/// Goes into an SMTP reply as it is.
struct Reason(String);

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=MAX_REASON).contains(&text.len())
            && text.bytes().all(|octet| (b' '..=b'~').contains(&octet))
            && text.trim() == text;
        fits.then(|| Self(text.to_owned()))
            .ok_or_else(|| format!("a reason is a line of 1 to {MAX_REASON} printable ASCII characters"))
    }
}
