//! Which `[[limit]]` tables are about some mail, and what lanes have together beside them.

use std::collections::BTreeMap;
use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use queue::Scope;

use crate::by_domain::ByDomain;
use crate::config::egress::{DEFAULT_SOURCE, Source};
use crate::config::warm_up::WarmUp;
use crate::shaping::providers::HostPattern;

use super::ScopeLimits;

/// One part of what a rule is about, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The rule says nothing of it: all together.
    All,
    /// `"*"`: each by itself.
    Each,
    /// This one.
    Only(Arc<str>),
}

/// What a scope of which lanes have something together is called by: no rule is about it.
const IN_ALL: &str = " in all";

/// What a rule is about: site, provider, tenant, source.
pub(super) type Key = [Part; 4];

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
    /// The same of tenants: whether any is of their transactions.
    of_tenants_transfers: bool,
    /// Whether any is of octets in flight.
    of_bytes: bool,
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
    /// The patterns of rules that some of the site's hosts fit.
    sites: Vec<Arc<str>>,
    together: Together,
}

/// What several lanes have together though no `[[limit]]` says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Together {
    /// Connections from one source to the provider's hosts. A `[[limit]]` that names the provider says it in place of this.
    pub to_provider: Option<u64>,
    /// From one source to the site: what its lanes have to be told of as one, and what one of them has to keep parts of.
    pub to_site: Vec<OfLanes>,
}

/// What some lanes to a site have together.
#[derive(Clone, Debug, PartialEq)]
pub struct OfLanes {
    /// What the limits call the site.
    pub site: Arc<str>,
    /// How much.
    pub limits: SiteLimits,
}

/// Limits of a site from one source, as far as a lane comes under them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SiteLimits {
    /// Connections at once.
    pub connections: Option<u64>,
    /// Messages a second.
    pub messages_per_second: Option<f64>,
}

/// Where a limit is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// This key of the configuration.
    Key(String),
    /// What is shipped for the provider.
    Shipped,
}

impl Mail {
    /// Beside what rules say.
    pub fn with(self, together: Together) -> Self {
        Self { together, ..self }
    }
}

impl LimitRules {
    /// None yet, but what `sources` that are new may send.
    pub(super) fn new(sources: &[Arc<Source>]) -> Self {
        let warm_up = |(number, source): (usize, &Arc<Source>)| {
            Some((source.name.clone(), (number, source.warm_up.clone()?)))
        };
        Self {
            warming: sources.iter().enumerate().filter_map(warm_up).collect(),
            ..Self::default()
        }
    }

    /// The sites that a pattern is about.
    pub(super) fn site(&mut self, host: &HostPattern) -> Part {
        let name: Arc<str> = host.to_string().into();
        let known = self.sites.iter().position(|known| *known == name);
        let at = known.unwrap_or_else(|| {
            self.sites.push(name.clone());
            self.sites.len() - 1
        });
        self.by_host.insert(&host.domain, host.below, at);
        Part::Only(name)
    }

    /// Whether any is about tenants.
    pub fn are_of_tenants(&self) -> bool {
        self.axes.iter().any(|axes| axes[2])
    }

    /// Whether any has to know how large messages are.
    pub fn count_bytes(&self) -> bool {
        self.of_bytes
    }

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
        let mut found: Vec<_> = match self.sites.is_empty() {
            true => Vec::new(),
            false => {
                let found = |host: &Domain| self.by_host.find(host.as_str());
                hosts.into_iter().filter_map(found).collect()
            }
        };
        found.sort_unstable();
        found.dedup();
        let named = |number: usize| self.sites.get(number).cloned();
        let source = scope.source.unwrap_or_else(|| DEFAULT_SOURCE.into());
        Mail {
            scope: Scope {
                source: Some(source),
                ..scope
            },
            together: Together::default(),
            sites: found.into_iter().filter_map(named).collect(),
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
            // Hosts of a site may fit several rules that name as much: the stricter holds.
            for alike in keys(mail, *axes).chunk_by(|one, other| wide(one) == wide(other)) {
                let tables = alike.iter().filter_map(|key| self.rules.get(key));
                let strictest = tables.fold(ScopeLimits::default(), |all, table| all.least(&table.limits));
                limits = limits.over(&strictest);
            }
            if limits != ScopeLimits::default() {
                all.push((scope, limits));
            }
        }
        if !of_tenant {
            self.warm_up(mail, now, &mut all);
            self.together(mail, &mut all);
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
        let today = ScopeLimits {
            messages_per_day: Some(volume),
            ..ScopeLimits::default()
        };
        tighten(all, scope, &today);
    }

    /// What lanes have together though no rule says so, apart from rules of the same scope: lanes that have more, and so nothing of it, come
    /// under such a rule too, and would take it from the others.
    fn together(&self, mail: &Mail, all: &mut Vec<(Scope, ScopeLimits)>) {
        let Together { to_provider, to_site } = &mail.together;
        if let Some(connections) = to_provider.filter(|_| !self.limits_connections_to(&mail.scope))
            && let Some(scope) = narrowed(&mail.scope, [false, true, false, true])
        {
            let shipped = ScopeLimits {
                connections: Some(connections),
                ..ScopeLimits::default()
            };
            let provider = scope.provider.as_ref().map(in_all);
            all.push((Scope { provider, ..scope }, shipped));
        }
        let Some(scope) = narrowed(&mail.scope, [true, false, false, true]) else {
            return;
        };
        for of in to_site {
            let site = Some(in_all(&of.site));
            let limits = ScopeLimits {
                connections: of.limits.connections,
                messages_per_second: of.limits.messages_per_second,
                ..ScopeLimits::default()
            };
            let scope = Scope {
                site,
                ..scope.clone()
            };
            all.push((scope, limits));
        }
    }

    /// Whether a rule that names the provider says how many connections it gets, in all or from the source.
    fn limits_connections_to(&self, scope: &Scope) -> bool {
        let (Some(provider), Some(source)) = (&scope.provider, &scope.source) else {
            return false;
        };
        let sources = [Part::All, Part::Each, Part::Only(source.clone())];
        sources.into_iter().any(|source| {
            let table = self
                .rules
                .get(&[Part::All, Part::Only(provider.clone()), Part::All, source]);
            table.is_some_and(|table| table.limits.connections.is_some())
        })
    }

    /// Each limit that holds for mail, with its scope, its key and its value, and who says it.
    pub fn explain(&self, mail: &Mail, now: Timestamp) -> Vec<(Scope, &'static str, String, Says)> {
        let of_scope = |(scope, limits): (Scope, ScopeLimits)| {
            let axes = [&scope.site, &scope.provider, &scope.tenant, &scope.source];
            let is_shipped = axes.iter().copied().flatten().any(|part| part.ends_with(IN_ALL));
            let keys = match is_shipped {
                true => Vec::new(),
                false => keys(mail, axes.map(Option::is_some)),
            };
            let told = |(key, value): (&'static str, String)| {
                let says = |table: &&Table| table.limits.each().contains(&(key, value.clone()));
                let table = keys.iter().find_map(|key| self.rules.get(key).filter(says));
                let says = match table {
                    Some(table) => Says::Key(format!("limit[{}].{key}", table.number)),
                    None if key == "messages_per_day" => {
                        Says::Key(format!("source[{}].warm_up.first", self.warming_number(&scope)))
                    }
                    None => Says::Shipped,
                };
                (scope.clone(), key, value, says)
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

    /// The fewest recipients a transaction that limits about its tenant have for mail.
    pub fn recipients_of_tenant(&self, mail: &Mail, now: Timestamp) -> Option<u64> {
        if !self.of_tenants_transfers {
            return None;
        }
        let all = self.of(mail, true, now);
        all.iter()
            .filter_map(|(_, limits)| limits.recipients_per_transaction)
            .min()
    }

    /// False: there is one about the same already.
    pub(super) fn add(&mut self, number: usize, key: Key, limits: ScopeLimits) -> bool {
        let axes = key.each_ref().map(|part| *part != Part::All);
        if !self.axes.contains(&axes) {
            self.axes.push(axes);
        }
        let of_transfers =
            limits.messages_per_connection.is_some() || limits.recipients_per_transaction.is_some();
        self.of_transfers |= of_transfers;
        self.of_tenants_transfers |= of_transfers && key[2] != Part::All;
        self.of_bytes |= limits.bytes_in_flight.is_some();
        self.rules.insert(key, Table { number, limits }).is_none()
    }
}

/// What a part of a scope is called of which lanes have something together.
fn in_all(part: &Arc<str>) -> Arc<str> {
    format!("{part}{IN_ALL}").into()
}

fn tighten(all: &mut Vec<(Scope, ScopeLimits)>, scope: Scope, limits: &ScopeLimits) {
    match all.iter_mut().find(|(known, _)| *known == scope) {
        Some((_, known)) => *known = known.least(limits),
        None => all.push((scope, limits.clone())),
    }
}

/// The scope's parts that are said; `None` where the mail has none of one: nobody's hosts.
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
    let [provider, tenant, source] =
        [&scope.provider, &scope.tenant, &scope.source].map(|name| name.as_slice());
    let mut keys: Vec<Key> = vec![[const { Part::All }; 4]];
    for (number, (said, names)) in axes
        .into_iter()
        .zip([&mail.sites[..], provider, tenant, source])
        .enumerate()
    {
        if !said {
            continue;
        }
        let named = names.iter().map(|name| Part::Only(name.clone()));
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
    keys.sort_by_key(wide);
    keys
}

/// Of how many parts it is about each.
fn wide(key: &Key) -> usize {
    key.iter().filter(|part| **part == Part::Each).count()
}
