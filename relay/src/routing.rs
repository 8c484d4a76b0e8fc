//! Which way each recipient's mail goes: the rules of the configuration, in order, and what safe mode does with them.
//!
//! What goes another way than by MX is in queues of a route group of its own. A group's number is given to the name of what
//! it stands for (`discard …`) once, in the store, and outlives the configuration: a queue whose group is no longer
//! configured never goes another way by itself. What was to be discarded still is; see [`Way`].

pub mod explain;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use mail_core::smtp::command::utf8_as_ascii;
use mail_core::{Domain, Mailbox, Notify, Recipient, Reply, ReversePath, Timestamp};
use queue::{GroupError, NewMessage, NewUnit, Queue, RouteGroup};

use crate::config::Settings;
use crate::config::egress::{Egress, Pool};
use crate::config::routes::{NextHop, RouteRule, SafeMode};
use crate::config::smart_hosts::SmartHost;

/// What is discarded in safe mode.
const SAFE_MODE: &str = "safe mode";

/// Before the reason in a group's name.
const DISCARD: &str = "discard ";

/// Before the smart host's name in a group's name.
const SMART_HOST: &str = "smart host ";

/// Before the pool's name in a group's name.
const POOL: &str = "pool ";

/// Between a smart host's name and a pool's. Neither has a blank.
const SMART_HOST_POOL: &str = " pool ";

/// What goes by MX, from no pool of its own; only with a fallback has it a group of its own.
const MX: &str = "mx";

/// Before the fallbacks' names at the end of a group's name, which have neither a blank nor a comma.
const FALLBACK: &str = " fallback";

/// Between fallbacks' names.
const NEXT_FALLBACK: &str = ",";

/// What a route group stands for now. Mail that no rule gave a pool goes from the default one, which is looked up when it is
/// needed: it may be another one than when the mail came.
#[derive(Clone, Debug)]
pub enum Way {
    /// The destination's own MX hosts.
    Mx(Means),
    /// This smart host.
    SmartHost(Arc<SmartHost>, Means),
    /// None: it ends as discarded, for this reason.
    Discard(Arc<str>),
    /// What the name stands for is not configured any more: the mail waits until it is again, or expires.
    Missing(Arc<str>),
}

/// What mail goes from, and by what while its first way is closed.
#[derive(Clone, Debug, Default)]
pub struct Means {
    /// `None`: whatever `delivery.source` says.
    pub pool: Option<Arc<Pool>>,
    /// Take the mail while no host of the first way can be spoken to: the first of them that can be.
    pub fallbacks: Vec<Arc<SmartHost>>,
}

/// Where a message's recipients are put.
#[derive(Debug, PartialEq, Eq)]
pub struct Placed {
    /// One for each domain and way.
    pub units: Vec<Placing>,
    /// A header field to go on top: whom the mail was for, where safe mode redirects it.
    pub field: String,
}

/// A unit to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Placing {
    /// By which way.
    pub group: RouteGroup,
    /// Where to.
    pub domain: Domain,
    /// Each mailbox once.
    pub recipients: Vec<Recipient>,
}

/// Whose mail it is that is to be routed.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Of which tenant.
    pub tenant: &'a str,
    /// In which of its streams; `None` where that can't be known yet.
    pub stream: Option<&'a str>,
    /// MAIL's address.
    pub reverse_path: &'a ReversePath,
}

/// See the module.
#[derive(Debug)]
pub struct Routing {
    settings: Arc<Settings>,
    numbers: HashMap<String, RouteGroup>,
    ways: HashMap<RouteGroup, Way>,
}

impl Routing {
    /// Gives all ways of the configuration their numbers. Writes to the store where one is new.
    pub fn open(settings: Arc<Settings>, queue: &Queue) -> Result<Self, GroupError> {
        let routing = &settings.routing;
        let of_rules = routing.rules.iter().filter_map(group_name);
        let smart_hosts = routing
            .smart_hosts
            .iter()
            .map(|host| smart_host_name(&host.name, None));
        let safe_mode = routing.safe_mode.as_ref().map(|_| discard_name(SAFE_MODE));
        let names: Vec<String> = of_rules.chain(smart_hosts).chain(safe_mode).collect();
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let numbers = queue.route_groups(&wanted)?;
        let numbers = names.into_iter().zip(numbers).collect();
        let known = queue.route_group_names()?.into_iter();
        let ways = known
            .map(|(group, name)| (group, way(&name, &settings)))
            .collect();
        Ok(Self {
            settings,
            numbers,
            ways,
        })
    }

    /// What a queue's group stands for.
    pub fn way(&self, group: RouteGroup) -> Way {
        if group == RouteGroup::default() {
            return Way::Mx(Means {
                pool: self.egress().default_pool.clone(),
                fallbacks: Vec::new(),
            });
        }
        let unknown = || Way::Missing(format!("route group {}", group.0).into());
        self.ways.get(&group).cloned().unwrap_or_else(unknown)
    }

    /// Names of groups whose way is not configured any more.
    pub fn missing(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ways.values().filter_map(|way| match way {
            Way::Missing(name) => Some(name),
            Way::Mx(_) | Way::SmartHost(..) | Way::Discard(_) => None,
        })
    }

    /// What rules may name.
    pub fn smart_hosts(&self) -> &[Arc<SmartHost>] {
        &self.settings.routing.smart_hosts
    }

    /// What mail is sent from.
    pub fn egress(&self) -> &Egress {
        &self.settings.delivery.egress
    }

    /// Whether a rule refuses the recipient. Without a stream, only what holds for all of them.
    pub fn refusal(&self, sender: Sender<'_>, to: &Mailbox) -> Option<Reply> {
        match &self.rule(sender, to)?.next_hop {
            NextHop::Refuse(reason) => Some(Reply::new(550, 7, 1, "").with_text(reason.to_string())),
            NextHop::Mx | NextHop::SmartHost(_) | NextHop::Discard(_) => None,
        }
    }

    /// Puts a message's recipients into units: in the order in which they were named, each mailbox once.
    pub fn place(&self, sender: Sender<'_>, recipients: &[Recipient]) -> Placed {
        let mut placed = Placed {
            units: Vec::new(),
            field: String::new(),
        };
        let mut place: HashMap<(RouteGroup, Domain), usize> = HashMap::new();
        let mut seen = HashSet::new();
        let archive = self.archive(sender, recipients);
        let mut redirected = Vec::new();
        for recipient in recipients.iter().chain(&archive) {
            let (recipient, group) = match self.safe_mode() {
                Some(safe) if !safe.only_to.iter().any(|only| only.fits(&recipient.mailbox)) => {
                    match &safe.redirect_all {
                        Some(to) => {
                            redirected.push(&recipient.mailbox);
                            // What was asked of reports holds for the box, too: NEVER above all.
                            let mailbox = to.clone();
                            (
                                Recipient {
                                    mailbox,
                                    ..recipient.clone()
                                },
                                None,
                            )
                        }
                        None => (recipient.clone(), Some(self.number(&discard_name(SAFE_MODE)))),
                    }
                }
                _ => (recipient.clone(), None),
            };
            if !seen.insert(recipient.mailbox.clone()) {
                continue;
            }
            let group = group.unwrap_or_else(|| self.group(sender, &recipient.mailbox));
            let domain = recipient.mailbox.domain().clone();
            let number = *place.entry((group, domain.clone())).or_insert_with(|| {
                placed.units.push(Placing {
                    group,
                    domain,
                    recipients: Vec::new(),
                });
                placed.units.len() - 1
            });
            placed.units[number].recipients.push(recipient);
        }
        placed.field = original_to(&redirected);
        placed
    }

    /// As [`Self::place`], for a report of ours. What a rule refuses is discarded.
    pub fn placed(&self, mut report: NewMessage, now: Timestamp) -> NewMessage {
        let recipients: Vec<_> = report
            .units
            .iter()
            .flat_map(|unit| unit.recipients.iter().cloned())
            .collect();
        let tenant = report.tenant.clone();
        let sender = Sender {
            tenant: &tenant,
            stream: Some(&report.stream.clone()),
            reverse_path: &ReversePath::Null,
        };
        let placed = self.place(sender, &recipients);
        if !placed.field.is_empty() {
            report.prefix = [placed.field.as_bytes(), &report.prefix].concat().into();
        }
        report.units = placed.due(now);
        report
    }

    /// What readiness and the log say of safe mode, where it is on.
    pub fn safe_mode_notice(&self) -> Option<String> {
        let safe = self.safe_mode()?;
        Some(match &safe.redirect_all {
            Some(to) => format!("safe mode: mail goes to {to} instead of its recipients"),
            None => "safe mode: mail is discarded instead of sent".to_owned(),
        })
    }

    fn safe_mode(&self) -> Option<&SafeMode> {
        self.settings.routing.safe_mode.as_ref()
    }

    /// The copy for the tenant's archive, of whose fate nobody is told. Reports are not archived.
    fn archive(&self, sender: Sender<'_>, recipients: &[Recipient]) -> Option<Recipient> {
        sender.reverse_path.mailbox()?;
        let archive = self.settings.tenants.get(sender.tenant)?.archive.as_ref()?;
        let is_there = recipients.iter().any(|recipient| recipient.mailbox == *archive);
        (!is_there).then(|| Recipient {
            notify: Some(Notify::Never),
            ..Recipient::new(archive.clone())
        })
    }

    fn group(&self, sender: Sender<'_>, to: &Mailbox) -> RouteGroup {
        let name = self.rule(sender, to).and_then(group_name);
        name.map_or_else(RouteGroup::default, |name| self.number(&name))
    }

    /// All names were given numbers at the start.
    fn number(&self, name: &str) -> RouteGroup {
        self.numbers.get(name).copied().unwrap_or_default()
    }

    /// The first rule that fits; `None` where none does, or it can't be told yet.
    fn rule(&self, sender: Sender<'_>, to: &Mailbox) -> Option<&RouteRule> {
        for rule in &self.settings.routing.rules {
            if !fits(rule, sender, to) {
                continue;
            }
            if sender.stream.is_none() && !rule.streams.is_empty() {
                return None;
            }
            return Some(rule);
        }
        None
    }
}

impl Placed {
    /// The units, due at this time: at once, or when they are released.
    pub fn due(self, at: Timestamp) -> Vec<NewUnit> {
        let unit = |unit: Placing| NewUnit {
            route_group: unit.group,
            domain: unit.domain,
            due: at,
            recipients: unit.recipients,
        };
        self.units.into_iter().map(unit).collect()
    }

    /// The field, above what else we add.
    pub fn above(&self, prefix: Bytes) -> Bytes {
        if self.field.is_empty() {
            return prefix;
        }
        [self.field.as_bytes(), &prefix].concat().into()
    }
}

fn discard_name(reason: &str) -> String {
    format!("{DISCARD}{reason}")
}

fn smart_host_name(name: &str, pool: Option<&str>) -> String {
    match pool {
        None => format!("{SMART_HOST}{name}"),
        Some(pool) => format!("{SMART_HOST}{name}{SMART_HOST_POOL}{pool}"),
    }
}

/// The name of the group that a rule's mail is in; `None`: that of all mail.
fn group_name(rule: &RouteRule) -> Option<String> {
    let first = match &rule.next_hop {
        NextHop::Mx => rule.pool.as_ref().map(|pool| format!("{POOL}{pool}")),
        NextHop::SmartHost(name) => Some(smart_host_name(name, rule.pool.as_deref())),
        // A report can't be refused: it is discarded for the same reason.
        NextHop::Discard(reason) | NextHop::Refuse(reason) => return Some(discard_name(reason)),
    };
    if rule.fallbacks.is_empty() {
        return first;
    }
    let fallbacks = rule.fallbacks.join(NEXT_FALLBACK);
    Some(format!(
        "{}{FALLBACK} {fallbacks}",
        first.as_deref().unwrap_or(MX)
    ))
}

/// What a group of this name stands for.
fn way(name: &str, settings: &Settings) -> Way {
    if let Some(reason) = name.strip_prefix(DISCARD) {
        return Way::Discard(reason.into());
    }
    let (first, names) = split_fallbacks(name);
    let mut fallbacks = Vec::new();
    for fallback in names.iter().flat_map(|names| names.split(NEXT_FALLBACK)) {
        match smart_host(fallback, settings) {
            Some(found) => fallbacks.push(found),
            // Mail of its group goes without: a fallback is a help, not what the mail was meant for.
            None => tracing::info!(
                way = first,
                smart_host = fallback,
                "fallback not configured any more: mail goes without it"
            ),
        }
    }
    first_way(first, fallbacks, settings).unwrap_or_else(|| Way::Missing(name.into()))
}

/// A group's name without its fallbacks, and theirs.
fn split_fallbacks(name: &str) -> (&str, Option<&str>) {
    let split = name
        .rsplit_once(' ')
        .and_then(|(rest, fallback)| Some((rest.strip_suffix(FALLBACK)?, Some(fallback))));
    split.unwrap_or((name, None))
}

/// `None` where its smart host or its pool is not configured any more.
fn first_way(name: &str, fallbacks: Vec<Arc<SmartHost>>, settings: &Settings) -> Option<Way> {
    let egress = &settings.delivery.egress;
    let default = || egress.default_pool.clone();
    if name == MX {
        let pool = default();
        return Some(Way::Mx(Means { pool, fallbacks }));
    }
    if let Some(pool) = name.strip_prefix(POOL) {
        let pool = Some(egress.pool(pool)?.clone());
        return Some(Way::Mx(Means { pool, fallbacks }));
    }
    let (host, pool) = match name.strip_prefix(SMART_HOST)?.split_once(SMART_HOST_POOL) {
        Some((host, pool)) => (host, Some(egress.pool(pool)?.clone())),
        None => (name.strip_prefix(SMART_HOST)?, default()),
    };
    Some(Way::SmartHost(
        smart_host(host, settings)?,
        Means { pool, fallbacks },
    ))
}

fn smart_host(name: &str, settings: &Settings) -> Option<Arc<SmartHost>> {
    let mut hosts = settings.routing.smart_hosts.iter();
    hosts.find(|known| *known.name == *name).cloned()
}

/// Whether all of a rule's lists fit. A stream that is not known yet may.
fn fits(rule: &RouteRule, sender: Sender<'_>, to: &Mailbox) -> bool {
    let is_one = |names: &[Arc<str>], name: &str| names.is_empty() || names.iter().any(|own| **own == *name);
    (rule.to.is_empty() || rule.to.iter().any(|pattern| pattern.fits(to)))
        && (rule.from.is_empty() || rule.from.iter().any(|pattern| pattern.fits(sender.reverse_path)))
        && is_one(&rule.tenants, sender.tenant)
        && sender.stream.is_none_or(|stream| is_one(&rule.streams, stream))
}

/// `Postrider-Original-To`, one address a line; empty where nobody was redirected.
fn original_to(redirected: &[&Mailbox]) -> String {
    if redirected.is_empty() {
        return String::new();
    }
    // The header field must go anywhere.
    let address = |mailbox: &&Mailbox| format!("<{}>", utf8_as_ascii(&mailbox.to_string()));
    let addresses: Vec<_> = redirected.iter().map(address).collect();
    format!("Postrider-Original-To: {}\r\n", addresses.join(",\r\n\t"))
}

#[cfg(test)]
mod tests {
    use mail_core::Notify;
    use queue::store::MemoryStore;

    use super::*;

    const PLAIN: &str = "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.a]\nsenders = [\"*\"]\n[tenants.b]\n\
        senders = [\"*\"]\n[[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\n\
        tenant = \"a\"\n";

    fn routing_of(text: &str, queue: &Queue) -> Routing {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postrider.toml");
        std::fs::write(&path, text).unwrap();
        Routing::open(Arc::new(crate::config::load(&path).unwrap()), queue).unwrap()
    }

    fn routing(more: &str) -> Routing {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        routing_of(&format!("{PLAIN}{more}"), &queue)
    }

    fn to(addresses: &[&str]) -> Vec<Recipient> {
        addresses
            .iter()
            .map(|to| Recipient::new(to.parse().unwrap()))
            .collect()
    }

    /// What becomes of mail from `x@from.test`, for each recipient: group's way and the recipients in it.
    fn ways(routing: &Routing, tenant: &str, stream: &str, recipients: &[&str]) -> Vec<String> {
        let path = ReversePath::Mailbox("x@from.test".parse().unwrap());
        let sender = Sender {
            tenant,
            stream: Some(stream),
            reverse_path: &path,
        };
        let placed = routing.place(sender, &to(recipients));
        let by = |means: Means| {
            let pool = means.pool.map(|pool| format!(" from {}", pool.name));
            let fallbacks = means.fallbacks.iter().map(|host| format!(" or {}", host.name));
            pool.into_iter().chain(fallbacks).collect::<String>()
        };
        let unit = |unit: &Placing| {
            let who: Vec<_> = unit.recipients.iter().map(|to| to.mailbox.to_string()).collect();
            let way = match routing.way(unit.group) {
                Way::Mx(means) => format!("mx{}", by(means)),
                Way::SmartHost(host, means) => format!("{}{}", host.name, by(means)),
                Way::Discard(reason) => format!("discard {reason}"),
                Way::Missing(name) => format!("missing {name}"),
            };
            format!("{way}: {}", who.join(" "))
        };
        placed.units.iter().map(unit).collect()
    }

    fn refusal(routing: &Routing, stream: Option<&str>, from: &str, to: &str) -> String {
        let path = match from {
            "" => ReversePath::Null,
            from => ReversePath::Mailbox(from.parse().unwrap()),
        };
        let sender = Sender {
            tenant: "a",
            stream,
            reverse_path: &path,
        };
        let reply = routing.refusal(sender, &to.parse().unwrap());
        reply.map_or("ok".into(), |reply| reply.to_string())
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let routing = routing(
            "[[route]]\nto = [\"vip@gone.test\"]\nnext_hop = \"mx\"\n\
             [[route]]\nto = [\"gone.test\", \"*.gone.test\"]\nnext_hop = \"discard\"\nreason = \"gone\"\n\
             [[route]]\ntenants = [\"b\"]\nstreams = [\"bulk\"]\nnext_hop = \"discard\"\nreason = \"no bulk\"\n",
        );
        let all = [
            "vip@gone.test",
            "x@gone.test",
            "x@sub.gone.test",
            "y@gone.test",
            "x@ok.test",
        ];
        assert_eq!(
            ways(&routing, "a", "bulk", &all),
            [
                "mx: vip@gone.test",
                "discard gone: x@gone.test y@gone.test",
                "discard gone: x@sub.gone.test",
                "mx: x@ok.test"
            ]
        );
        assert_eq!(
            ways(&routing, "b", "bulk", &["x@ok.test"]),
            ["discard no bulk: x@ok.test"]
        );
        assert_eq!(ways(&routing, "b", "other", &["x@ok.test"]), ["mx: x@ok.test"]);
    }

    #[test]
    fn a_unit_for_each_domain_and_each_mailbox_once() {
        let all = ["a@x.test", "b@y.test", "c@x.test", "a@x.test"];
        assert_eq!(
            ways(&routing(""), "a", "s", &all),
            ["mx: a@x.test c@x.test", "mx: b@y.test"]
        );
    }

    #[test]
    fn refusals_wait_for_what_they_depend_on() {
        let routing = routing(
            "[[route]]\nfrom = [\"<>\"]\nto = [\"own.test\"]\nnext_hop = \"refuse\"\nreason = \"no reports\"\n\
             [[route]]\nto = [\"bulk.test\"]\nstreams = [\"bulk\"]\nnext_hop = \"refuse\"\nreason = \"no bulk\"\n\
             [[route]]\nto = [\"bulk.test\", \"never.test\"]\nfrom = [\"from.test\"]\nnext_hop = \"refuse\"\nreason = \"never\"\n",
        );
        let no_bulk = "550 5.7.1 no bulk";
        for (stream, from, to, verdict) in [
            (None, "", "x@own.test", "550 5.7.1 no reports"),
            (None, "x@from.test", "x@own.test", "ok"),
            (None, "x@from.test", "x@never.test", "550 5.7.1 never"),
            (None, "x@other.test", "x@never.test", "ok"),
            // Either of two rules may fit: which one, the stream decides.
            (None, "x@from.test", "x@bulk.test", "ok"),
            (Some("bulk"), "x@from.test", "x@bulk.test", no_bulk),
            (Some("other"), "x@from.test", "x@bulk.test", "550 5.7.1 never"),
        ] {
            assert_eq!(
                refusal(&routing, stream, from, to),
                verdict,
                "{stream:?} {from} {to}"
            );
        }
    }

    #[test]
    fn what_was_to_be_discarded_is_though_its_rule_is_gone() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let rule = "[[route]]\nto = [\"x.test\"]\nnext_hop = \"discard\"\nreason = \"gone\"\n";
        let before = routing_of(&format!("{PLAIN}{rule}"), &queue);
        let group = before.number("discard gone");
        assert_ne!(group, RouteGroup::default());
        let after = routing_of(PLAIN, &queue);
        assert!(matches!(after.way(group), Way::Discard(reason) if &*reason == "gone"));
        assert!(matches!(after.way(RouteGroup(999)), Way::Missing(_)));
        assert!(
            matches!(after.way(RouteGroup(0)), Way::Mx(Means { pool: None, fallbacks }) if fallbacks.is_empty())
        );
    }

    #[test]
    fn a_smart_hosts_mail_is_its_own_as_long_as_it_is_there() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let smart = "[[smart_host]]\nname = \"out\"\nhosts = [{ address = \"[::1]\" }]\n[[route]]\nto = [\"x.test\"]\n\
             next_hop = \"out\"\n";
        let before = routing_of(&format!("{PLAIN}{smart}"), &queue);
        assert_eq!(
            ways(&before, "a", "s", &["a@x.test", "a@y.test"]),
            ["out: a@x.test", "mx: a@y.test"]
        );
        let group = before.number("smart host out");
        let gone = routing_of(PLAIN, &queue);
        assert!(matches!(gone.way(group), Way::Missing(name) if &*name == "smart host out"));
        let again = routing_of(&format!("{PLAIN}{smart}"), &queue);
        assert!(
            matches!(again.way(group), Way::SmartHost(host, Means { pool: None, .. }) if &*host.name == "out")
        );
    }

    const POOLS: &str = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n[[source]]\nname = \"s2\"\n\
        addresses = [\"192.0.2.2\"]\n[[pool]]\nname = \"bulk\"\nsources = [\"s1\"]\n[[pool]]\nname = \"fast\"\nsources = [\"s2\"]\n";

    #[test]
    fn a_rule_gives_mail_a_pool_and_the_rest_has_the_default() {
        let rules = "[[smart_host]]\nname = \"out\"\nhosts = [{ address = \"::1\" }]\n\
             [[route]]\nstreams = [\"bulk\"]\nto = [\"x.test\"]\nnext_hop = \"out\"\npool = \"bulk\"\n\
             [[route]]\nstreams = [\"bulk\"]\nnext_hop = \"mx\"\npool = \"bulk\"\n\
             [[route]]\nto = [\"x.test\"]\nnext_hop = \"out\"\n";
        let to = ["a@x.test", "a@y.test"];
        let routing = |more: &str| routing(&format!("{more}{POOLS}{rules}"));
        let default = routing("[delivery]\npool = \"fast\"\n");
        assert_eq!(
            ways(&default, "a", "bulk", &to),
            ["out from bulk: a@x.test", "mx from bulk: a@y.test"]
        );
        assert_eq!(
            ways(&default, "a", "transactional", &to),
            ["out from fast: a@x.test", "mx from fast: a@y.test"]
        );
        assert_eq!(
            ways(&routing(""), "a", "transactional", &to),
            ["out: a@x.test", "mx: a@y.test"]
        );
    }

    #[test]
    fn mail_of_a_pool_that_is_gone_waits_for_it() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let smart = "[[smart_host]]\nname = \"out\"\nhosts = [{ address = \"::1\" }]\n";
        let rules = "[[route]]\nto = [\"x.test\"]\nnext_hop = \"out\"\npool = \"bulk\"\n\
             [[route]]\nnext_hop = \"mx\"\npool = \"bulk\"\n";
        let before = routing_of(&format!("{PLAIN}{POOLS}{smart}{rules}"), &queue);
        let groups = ["pool bulk", "smart host out pool bulk"].map(|name| before.number(name));
        assert!(groups.iter().all(|group| *group != RouteGroup::default()));
        assert_eq!(before.missing().count(), 0);
        let pools = POOLS.replace("\"bulk\"", "\"other\"");
        let gone = routing_of(&format!("{PLAIN}{pools}{smart}"), &queue);
        assert!(
            groups
                .iter()
                .all(|group| matches!(gone.way(*group), Way::Missing(_)))
        );
        assert_eq!(gone.missing().count(), 2);
        // The smart host alone would not do either: it is not known to go from there.
        let no_host = routing_of(&format!("{PLAIN}{POOLS}"), &queue);
        assert!(
            matches!(no_host.way(groups[0]), Way::Mx(Means { pool: Some(pool), .. }) if &*pool.name == "bulk")
        );
        assert!(matches!(no_host.way(groups[1]), Way::Missing(name) if &*name == "smart host out pool bulk"));
        let again = routing_of(&format!("{PLAIN}{POOLS}{smart}"), &queue);
        assert!(
            matches!(again.way(groups[1]), Way::SmartHost(_, Means { pool: Some(pool), .. }) if &*pool.name == "bulk")
        );
    }

    /// Names of smart hosts and pools that are words of a group's name.
    #[test]
    fn a_fallback_is_part_of_the_way_and_may_go_alone() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let host =
            |name: &str| format!("[[smart_host]]\nname = \"{name}\"\nhosts = [{{ address = \"::1\" }}]\n");
        let pools = POOLS.replace("\"bulk\"", "\"fallback\"");
        let (fallback, other) = (host("fallback"), host("pool"));
        let rule = |to: &str, hop: &str, more: &str| {
            format!("[[route]]\nto = [\"{to}\"]\nnext_hop = \"{hop}\"\n{more}")
        };
        let rules = [
            rule("a.test", "mx", "fallback = \"pool\"\n"),
            rule("b.test", "mx", "pool = \"fallback\"\nfallback = \"pool\"\n"),
            rule("c.test", "fallback", "fallback = \"pool\"\n"),
            rule("d.test", "fallback", "pool = \"fallback\"\nfallback = \"pool\"\n"),
            rule("e.test", "fallback", "pool = \"fallback\"\n"),
        ]
        .concat();
        let with = format!("{PLAIN}{pools}{fallback}{other}{rules}");
        let to = ["x@a.test", "x@b.test", "x@c.test", "x@d.test", "x@e.test"];
        let before = routing_of(&with, &queue);
        assert_eq!(
            ways(&before, "a", "s", &to),
            [
                "mx or pool: x@a.test",
                "mx from fallback or pool: x@b.test",
                "fallback or pool: x@c.test",
                "fallback from fallback or pool: x@d.test",
                "fallback from fallback: x@e.test"
            ]
        );
        let gone = routing_of(&format!("{PLAIN}{pools}{fallback}"), &queue);
        let missing: Vec<_> = gone.missing().map(|name| &**name).collect();
        assert_eq!(missing, ["smart host pool"], "mail goes its first way");
        let group = before.number("smart host fallback pool fallback fallback pool");
        assert_ne!(group, RouteGroup::default());
        assert!(
            matches!(gone.way(group), Way::SmartHost(host, Means { fallbacks, .. })
                if &*host.name == "fallback" && fallbacks.is_empty())
        );
    }

    #[test]
    fn of_several_fallbacks_those_that_are_there_are_in_their_order() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let host =
            |name: &str| format!("[[smart_host]]\nname = \"{name}\"\nhosts = [{{ address = \"::1\" }}]\n");
        let (b, a) = (host("b"), host("a"));
        let rule = "[[route]]\nnext_hop = \"mx\"\nfallback = [\"b\", \"a\"]\n";
        let before = routing_of(&format!("{PLAIN}{a}{b}{rule}"), &queue);
        assert_eq!(ways(&before, "a", "s", &["x@a.test"]), ["mx or b or a: x@a.test"]);
        let group = before.number("mx fallback b,a");
        assert_ne!(group, RouteGroup::default());
        let gone = routing_of(&format!("{PLAIN}{a}"), &queue);
        let Way::Mx(Means { fallbacks, .. }) = gone.way(group) else {
            panic!("{:?}", gone.way(group));
        };
        assert_eq!(
            fallbacks.iter().map(|host| &*host.name).collect::<Vec<_>>(),
            ["a"]
        );
    }

    #[test]
    fn safe_mode_lets_few_through_and_keeps_whom_the_rest_was_for() {
        let discards = routing("[safe_mode]\nonly_to = [\"team@own.test\"]\n");
        assert_eq!(
            ways(&discards, "a", "s", &["team@own.test", "real@person.test"]),
            ["mx: team@own.test", "discard safe mode: real@person.test"]
        );
        let redirects = routing(
            "[safe_mode]\nonly_to = [\"own.test\"]\nredirect_all = \"box@own.test\"\n\
             [[route]]\nto = [\"person.test\"]\nnext_hop = \"refuse\"\nreason = \"no\"\n",
        );
        let all = ["one@person.test", "x@own.test", "two@person.test"];
        assert_eq!(ways(&redirects, "a", "s", &all), ["mx: box@own.test x@own.test"]);
        assert_eq!(
            refusal(&redirects, Some("s"), "x@from.test", "one@person.test"),
            "550 5.7.1 no"
        );
        let path = ReversePath::Mailbox("x@from.test".parse().unwrap());
        let sender = Sender {
            tenant: "a",
            stream: Some("s"),
            reverse_path: &path,
        };
        let placed = redirects.place(sender, &to(&all));
        assert_eq!(
            placed.above(Bytes::from_static(b"Received: x\r\n")),
            "Postrider-Original-To: <one@person.test>,\r\n\t<two@person.test>\r\nReceived: x\r\n"
        );
        let report = Recipient {
            notify: Some(Notify::Never),
            ..Recipient::new("jos\u{e9}@person.test".parse().unwrap())
        };
        let placed = redirects.place(sender, &[report]);
        assert_eq!(placed.units[0].recipients[0].notify, Some(Notify::Never));
        assert_eq!(
            placed.field,
            "Postrider-Original-To: <jos\\x{E9}@person.test>\r\n"
        );
        assert!(redirects.safe_mode_notice().unwrap().contains("box@own.test"));
        assert_eq!(routing("").safe_mode_notice(), None);
    }

    #[test]
    fn an_archive_gets_a_copy_that_nobody_hears_of() {
        let text = PLAIN.replace("[tenants.a]\n", "[tenants.a]\narchive = \"all@archive.test\"\n");
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let routing = routing_of(&text, &queue);
        assert_eq!(
            ways(&routing, "a", "s", &["x@ok.test"]),
            ["mx: x@ok.test", "mx: all@archive.test"]
        );
        assert_eq!(
            ways(&routing, "a", "s", &["all@archive.test"]),
            ["mx: all@archive.test"]
        );
        assert_eq!(ways(&routing, "b", "s", &["x@ok.test"]), ["mx: x@ok.test"]);
        let sender = Sender {
            tenant: "a",
            stream: Some("s"),
            reverse_path: &ReversePath::Null,
        };
        assert_eq!(
            routing.place(sender, &to(&["x@ok.test"])).units.len(),
            1,
            "no reports"
        );
        let path = ReversePath::Mailbox("x@from.test".parse().unwrap());
        let sender = Sender {
            reverse_path: &path,
            ..sender
        };
        let placed = routing.place(sender, &to(&["x@ok.test"]));
        assert_eq!(placed.units[1].recipients[0].notify, Some(Notify::Never));
    }
}
