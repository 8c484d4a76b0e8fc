//! A lane: one site from one source, the unit of connections, tokens and back-off.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mail_core::{Domain, Timestamp};
use queue::{QueueId, Scope};

use crate::config::egress::DEFAULT_SOURCE;
use crate::config::limits::SiteLimits;
use crate::config::settings::{AddressFamily, DeliverySettings, Destination, DestinationLimits, TlsLevel};
use crate::config::smart_hosts::SmartHost;
use crate::config::streams::Streams;
use crate::shaping::providers::Provider;
use crate::world::MxHost;

use super::adapt::{Adapt, Limits};
use super::connection::open::Terms;
use super::limits::limiter::Limiter;
use super::shard::gates::{GateId, What};
use super::shard::{Ending, Said};
use super::turn::Turn;

/// What tells lanes apart. Two destination rules never share a lane, so that a rule's limits and TLS level hold for all
/// that is sent through it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The site: the set of MX hosts, as text.
    pub site: Arc<str>,
    /// Which destination rule applies, as it is written; `None`: the defaults.
    pub rule: Option<Rc<str>>,
    /// The name of the source that it sends from; `None`: whatever `delivery.source` says.
    pub source: Option<Arc<str>>,
}

impl LaneKey {
    /// The name under which the lane's hold is kept in the store. A hold that no longer finds its lane, since the rule has gone,
    /// is merely forgotten.
    pub fn scope(&self) -> String {
        let mut name = self.site.to_string();
        // Neither a rule nor a source has a blank in its name.
        for (what, part) in [("rule", self.rule.as_deref()), ("source", self.source.as_deref())] {
            if let Some(part) = part {
                name.extend([" ", what, " ", part]);
            }
        }
        name
    }

    /// What limits and adjustments may be about, but for the tenant, of mail to hosts of this provider alone. Mail of no pool has a source, too.
    pub fn mail(&self, provider: Option<&Provider>) -> Scope {
        let source = self.source.clone();
        Scope {
            site: Some(self.site.clone()),
            provider: provider.map(|provider| provider.name.clone()),
            tenant: None,
            source: Some(source.unwrap_or_else(|| DEFAULT_SOURCE.into())),
        }
    }

    /// The site and the source that a lane's name says.
    pub fn site_and_source(name: &str) -> (&str, Option<&str>) {
        let (rest, source) = match name.rsplit_once(" source ") {
            Some((rest, source)) => (rest, Some(source)),
            None => (name, None),
        };
        (rest.rsplit_once(" rule ").map_or(rest, |(site, _)| site), source)
    }
}

/// The part of the settings that applies to a destination domain and its hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// As it is written, such as `*.example.com`; `None`: the defaults.
    pub name: Option<Rc<str>>,
    /// How much TLS.
    pub tls: TlsLevel,
    /// Which of a host's addresses.
    pub family: AddressFamily,
    /// The lane's limits.
    pub limits: DestinationLimits,
    /// What it has together with the other lanes to the site: nothing where the destination's rule gives it more of anything. Then it has its
    /// own, beside theirs.
    pub of_site: SiteLimits,
    /// Connections that all lanes to the provider's hosts alone have together, of each source.
    pub to_provider: Option<u64>,
}

impl Rule {
    /// What holds for mail to `domain` that goes by this provider's figures. A destination's rule goes before what is known of the
    /// provider, and that before the defaults, key by key.
    pub fn of(domain: &Domain, provider: Option<&Provider>, settings: &DeliverySettings) -> Self {
        Self::numbered(settings.destinations.of(domain), provider, settings)
    }

    /// The name of the rule for `domain`.
    pub fn name_of(domain: &Domain, settings: &DeliverySettings) -> Option<Rc<str>> {
        let rule = settings.destinations.of(domain)?;
        settings.destinations.all().get(rule).map(Self::name)
    }

    /// The rule of this name, if it is still there.
    pub fn named(
        name: Option<&str>,
        provider: Option<&Provider>,
        settings: &DeliverySettings,
    ) -> Option<Self> {
        let Some(name) = name else {
            return Some(Self::numbered(None, provider, settings));
        };
        let mut rules = settings.destinations.all().iter();
        let number = rules.position(|rule| *Self::name(rule) == *name)?;
        Some(Self::numbered(Some(number), provider, settings))
    }

    fn numbered(number: Option<usize>, provider: Option<&Provider>, settings: &DeliverySettings) -> Self {
        let limits = match provider {
            Some(provider) => provider.limits(&settings.limits),
            None => settings.limits.clone(),
        };
        let together = provider.and_then(Provider::connections_together);
        let together = together.map(|limit| limit.value as u64);
        match number.and_then(|number| settings.destinations.all().get(number)) {
            Some(rule) => {
                let own = rule.limits.over(&limits);
                Self {
                    name: Some(Self::name(rule)),
                    tls: rule.tls,
                    family: rule.family,
                    of_site: of_site(&limits, &own),
                    limits: own,
                    to_provider: together.filter(|_| rule.limits.connections.is_none()),
                }
            }
            None => Self {
                name: None,
                tls: settings.tls,
                family: settings.family,
                of_site: of_site(&limits, &limits),
                limits,
                to_provider: together,
            },
        }
    }

    fn name(rule: &Destination) -> Rc<str> {
        match rule.below {
            true => format!("*.{}", rule.domain).into(),
            false => rule.domain.as_str().into(),
        }
    }
}

/// A site's limits, where they hold for a lane that has limits of its own: not where it may have more of anything, since what lanes
/// have together is the same for all of them.
fn of_site(site: &DestinationLimits, own: &DestinationLimits) -> SiteLimits {
    let is_faster = match (own.messages_per_second, site.messages_per_second) {
        (Some(own), Some(site)) => own > site,
        (None, Some(_)) => true,
        (_, None) => false,
    };
    match is_faster || own.connections > site.connections {
        true => SiteLimits::default(),
        false => SiteLimits {
            connections: Some(site.connections as u64),
            messages_per_second: site.messages_per_second,
        },
    }
}

/// How a lane's mail goes out.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Over SMTP to these hosts, not yet put in order.
    Hosts {
        /// Which.
        hosts: Hosts,
        /// On what terms.
        terms: Terms,
        /// RCPTs a transaction.
        recipients_per_transaction: usize,
        /// Messages before the connection is closed.
        messages_per_connection: u32,
    },
    /// Not at all: every unit ends in this way.
    End(Ending),
}

impl Plan {
    /// The hosts that the DNS names; none of a smart host's.
    pub fn mx_hosts(&self) -> impl Iterator<Item = &Domain> {
        let hosts = match self {
            Self::Hosts {
                hosts: Hosts::Mx(hosts),
                ..
            } => hosts.as_slice(),
            Self::Hosts { .. } | Self::End(_) => &[],
        };
        hosts.iter().map(|mx| &mx.host)
    }

    /// Goes with no more messages a connection and recipients a transaction than this.
    pub fn cap(&mut self, messages: Option<u64>, recipients: Option<u64>) {
        if let Self::Hosts {
            recipients_per_transaction,
            messages_per_connection,
            ..
        } = self
        {
            let most = |value: Option<u64>| value.unwrap_or(u64::MAX);
            let messages = u32::try_from(most(messages)).unwrap_or(u32::MAX);
            let recipients = usize::try_from(most(recipients)).unwrap_or(usize::MAX);
            *messages_per_connection = messages.min(*messages_per_connection);
            *recipients_per_transaction = recipients.min(*recipients_per_transaction);
        }
    }
}

/// Hosts of a lane, not yet put in order.
#[derive(Clone, Debug)]
pub enum Hosts {
    /// From the MX records, ourselves removed; the domain itself where it has none.
    Mx(Vec<MxHost>),
    /// A group of our own choosing.
    Chosen(Arc<SmartHost>),
}

/// A connection of this shard, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A connection that waits for its next job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Idle {
    /// Since when.
    pub since: Timestamp,
    /// Which.
    pub connection: ConnectionId,
}

/// How long a connection has served its lane.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Which.
    pub connection: ConnectionId,
    /// It came about, or is being opened since then.
    pub since: Timestamp,
    /// Messages that have gone over it, or were tried.
    pub messages: u32,
}

impl Service {
    /// It begins now.
    pub fn new(connection: ConnectionId, now: Timestamp) -> Self {
        Self {
            connection,
            since: now,
            messages: 0,
        }
    }
}

/// Why a lane rests, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Failures in a row.
    pub failures: u32,
    /// Nothing before this moment.
    pub until: Timestamp,
    /// What went wrong last.
    pub cause: String,
}

/// What limits one tenant's mail in a lane beside the lane's own limits.
#[derive(Clone, Debug)]
pub struct OfTenant {
    /// As the shard numbers them.
    pub gates: Rc<[GateId]>,
    /// RCPTs a transaction.
    pub recipients: Option<usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Lane {
    /// What tells it apart.
    pub key: LaneKey,
    /// The how manyth it is of its shard: its slot is given again when it has gone, this is not.
    pub number: u64,
    /// How its mail goes out.
    pub plan: Rc<Plan>,
    /// Whose figures it goes by. It is a matter of the site alone, so it is found once.
    pub provider: Option<Arc<Provider>>,
    /// Who runs all of its hosts, and so with whose other lanes it shares limits and adjustments.
    pub shares_with: Option<Arc<Provider>>,
    /// Messages a second.
    pub limiter: Limiter,
    /// What limits it beside others, as the shard numbers it.
    pub gates: Rc<[GateId]>,
    /// The same for the mail of one tenant, as far as it was asked for; by name.
    pub tenants: Vec<(Arc<str>, OfTenant)>,
    /// The gate it waits at, for which queue.
    pub waits_at: Option<(GateId, What, QueueId)>,
    /// Connections at once, as configured.
    pub max_connections: usize,
    /// Messages a second, as configured.
    pub rate: Option<f64>,
    /// See [`Rule::of_site`].
    pub of_site: SiteLimits,
    /// See [`Rule::to_provider`].
    pub to_provider: Option<u64>,
    /// What replies have taught it, and how it goes lately.
    pub adapt: Adapt,
    /// Queues with units due, in the order of their turns.
    pub turn: Turn,
    /// Active queues whose mail goes this way.
    pub queues: usize,
    /// Connections that wait for a unit, the one used last at the end.
    pub idle: Vec<Idle>,
    /// All connections, idle ones too.
    pub open: usize,
    /// Those that are being closed.
    pub closing: BTreeSet<ConnectionId>,
    /// Messages on the wire by stream, where some stream has a part of its own.
    pub busy: BTreeMap<Arc<str>, usize>,
    /// How long each has served it, where it passes gates.
    pub service: Vec<Service>,
    /// Set by failures to connect, cleared by the first transaction that gets through.
    pub rest: Option<Rest>,
    /// Queues that wait in memory for the end of its rest; some may have gone on since.
    pub held_back: BTreeSet<QueueId>,
    /// A further connection came to nothing while others work: none is opened before this moment.
    no_more_before: Timestamp,
    /// A further connection was refused with the time for which it is.
    no_more: NoMore,
    /// That is more than the store knows.
    no_more_unsaved: bool,
    /// The moment its timer stands at.
    pub timer: Option<Timestamp>,
    /// What made it slower last.
    pub said: Option<Said>,
    /// Since when its pace is another than the store knows.
    pub unsaved: Option<Timestamp>,
    /// When its pace was written last.
    pub saved: Option<Timestamp>,
}

/// How many connections a host bears, as it said when it refused one more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoMore {
    /// Until then.
    pub before: Timestamp,
    /// So many worked.
    pub than: usize,
}

impl Lane {
    /// A lane without connections. `rest` comes from the store.
    pub fn new(key: LaneKey, plan: Plan, rule: &Rule, rest: Option<Rest>, now: Timestamp) -> Self {
        Self {
            provider: None,
            shares_with: None,
            number: 0,
            key,
            plan: Rc::new(plan),
            limiter: Limiter::new(rule.limits.messages_per_second, now),
            gates: Rc::default(),
            tenants: Vec::new(),
            waits_at: None,
            max_connections: rule.limits.connections,
            rate: rule.limits.messages_per_second,
            of_site: rule.of_site,
            to_provider: rule.to_provider,
            adapt: Adapt::new(now),
            turn: Turn::default(),
            queues: 0,
            idle: Vec::new(),
            open: 0,
            closing: BTreeSet::new(),
            busy: BTreeMap::new(),
            service: Vec::new(),
            rest,
            held_back: BTreeSet::new(),
            no_more_before: Timestamp(0),
            no_more: NoMore::default(),
            no_more_unsaved: false,
            timer: None,
            said: None,
            unsaved: None,
            saved: None,
        }
    }

    /// Goes by other limits from here on.
    pub fn renew(&mut self, rule: &Rule, now: Timestamp) {
        self.limiter.set_rate(rule.limits.messages_per_second, now);
        self.max_connections = rule.limits.connections;
        self.rate = rule.limits.messages_per_second;
        (self.of_site, self.to_provider) = (rule.of_site, rule.to_provider);
        self.adapt.apply(self.configured(), now);
    }

    /// What limits and adjustments may be about, but for the tenant.
    pub fn scope(&self) -> Scope {
        self.key.mail(self.shares_with.as_deref())
    }

    /// What limits the mail of one tenant: its place where nobody has asked for it yet.
    pub fn of_tenant(&self, tenant: &str) -> Result<&OfTenant, usize> {
        let at = self
            .tenants
            .binary_search_by(|(known, _)| (**known).cmp(tenant))?;
        Ok(&self.tenants[at].1)
    }

    /// Whether mail of a stream may be sent beside what is on the wire, so that others keep their part.
    pub fn may_send(&self, stream: &str, streams: &Streams) -> bool {
        let most = self.adapt.most(self.configured());
        let busy = |name: &str| self.busy.get(name).copied().unwrap_or(0);
        streams.may_take(stream, busy, self.busy.values().sum(), most)
    }

    /// What it may do by its configuration.
    pub fn configured(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            rate: self.rate,
        }
    }

    /// Whether all connections that it may have are open and have a job.
    pub fn is_busy(&self) -> bool {
        self.idle.is_empty() && self.open >= self.adapt.most(self.configured()).max(1)
    }

    /// Whether a connection that has no job is one too many.
    pub fn has_too_many(&self) -> bool {
        self.adapt
            .too_many(self.open - self.closing.len(), self.configured())
    }

    /// Until when it rests, if it does, or is suspended.
    pub fn resting(&self, now: Timestamp) -> Option<Timestamp> {
        let rest = self.rest.as_ref().map(|rest| rest.until);
        let held = self.adapt.held(now).map(|held| held.until);
        rest.max(held).filter(|&until| until > now)
    }

    /// Whether one more connection may be opened: after a failure one alone tries whether the site works again. Where further ones
    /// are not to be tried yet, a first one is: if it fails, the lane rests or is suspended, and that is told.
    pub fn may_open(&self, now: Timestamp) -> bool {
        let may = self.adapt.may_open(self.open, self.configured());
        may && (self.open == 0 || (self.rest.is_none() && now >= self.opens_at()))
    }

    /// When a further connection may be opened, as far as failures of such say.
    pub fn opens_at(&self) -> Timestamp {
        match self.open < self.no_more.than {
            true => self.no_more_before,
            false => self.no_more_before.max(self.no_more.before),
        }
    }

    /// As many as are configured may be tried again at once.
    pub fn allow_more(&mut self) {
        (self.no_more_before, self.no_more) = (Timestamp(0), NoMore::default());
        self.no_more_unsaved = false;
    }

    /// A further connection was refused, while so many work: until then there are no more than those.
    pub fn refuse_more(&mut self, working: usize, until: Timestamp, now: Timestamp) {
        let before = self.no_more;
        let still = before.before > now;
        self.no_more = NoMore {
            before: until.max(before.before),
            than: if still { working.min(before.than) } else { working },
        };
        // A burst of refusals is written once, and a time that moves with each of them not for each millisecond.
        self.no_more_unsaved |= !still
            || self.no_more.than != before.than
            || self.no_more.before >= before.before + Duration::from_secs(1);
    }

    /// Goes by what the store knows of that, unless it has heard of more since.
    pub fn know_no_more(&mut self, known: Option<NoMore>) {
        if !self.no_more_unsaved {
            self.no_more = known.unwrap_or_default();
        }
    }

    /// What the store is to know of that.
    pub fn take_unsaved_no_more(&mut self) -> Option<NoMore> {
        std::mem::take(&mut self.no_more_unsaved).then_some(self.no_more)
    }

    /// Whether there is something.
    pub fn has_unsaved_no_more(&self) -> bool {
        self.no_more_unsaved
    }

    /// Notes that no connection came about. True if the lane rests now, by its own account; false if other connections
    /// work, so that only further ones wait.
    pub fn failed(&mut self, cause: &str, wait: impl FnOnce(u32) -> Duration, now: Timestamp) -> bool {
        if self.resting(now).is_some() {
            return false;
        }
        if self.open > 0 {
            self.no_more_before = now + wait(1);
            return false;
        }
        let failures = self.rest.as_ref().map_or(0, |rest| rest.failures) + 1;
        self.rest = Some(Rest {
            failures,
            until: now + wait(failures),
            cause: cause.to_owned(),
        });
        true
    }

    /// How long a connection has served it, where that is noted.
    pub fn service_of(&mut self, connection: ConnectionId) -> Option<&mut Service> {
        let at = self.find_service(connection).ok()?;
        self.service.get_mut(at)
    }

    /// A connection serves it from now on, whatever it did before.
    pub fn begin_service(&mut self, connection: ConnectionId, now: Timestamp) {
        let fresh = Service::new(connection, now);
        match self.find_service(connection) {
            Ok(at) => self.service[at] = fresh,
            Err(at) => self.service.insert(at, fresh),
        }
    }

    /// It is gone.
    pub fn end_service(&mut self, connection: ConnectionId) {
        if let Ok(at) = self.find_service(connection) {
            self.service.remove(at);
        }
    }

    /// They are in the order of their numbers, and so nearly always come at the end.
    fn find_service(&self, connection: ConnectionId) -> Result<usize, usize> {
        self.service
            .binary_search_by_key(&connection, |service| service.connection)
    }

    /// Nothing holds the lane in memory.
    pub fn is_unused(&self) -> bool {
        self.queues == 0 && self.open == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Destinations, OwnLimits};

    fn limits(connections: usize) -> DestinationLimits {
        DestinationLimits {
            connections,
            messages_per_second: None,
            messages_per_connection: 10,
            recipients_per_transaction: 100,
        }
    }

    fn lane() -> Lane {
        let rule = Rule {
            name: None,
            tls: TlsLevel::Off,
            family: AddressFamily::Any,
            limits: limits(3),
            of_site: SiteLimits::default(),
            to_provider: None,
        };
        let key = LaneKey {
            site: "mx.example".into(),
            rule: None,
            source: None,
        };
        Lane::new(
            key,
            Plan::End(Ending::Refused(mail_core::Reply::new(550, 1, 2, "no"))),
            &rule,
            None,
            Timestamp(0),
        )
    }

    /// Holds are kept by it: those of a relay without sources have to be found again.
    #[test]
    fn a_lanes_name_says_what_tells_it_apart() {
        let name = |rule: Option<&str>, source: Option<&str>| {
            let key = LaneKey {
                site: "a.test,b.test".into(),
                rule: rule.map(Rc::from),
                source: source.map(Arc::from),
            };
            let name = key.scope();
            assert_eq!(LaneKey::site_and_source(&name), ("a.test,b.test", source));
            name
        };
        assert_eq!(name(None, None), "a.test,b.test");
        assert_eq!(name(Some("*.x.test"), None), "a.test,b.test rule *.x.test");
        assert_eq!(name(None, Some("out1")), "a.test,b.test source out1");
        assert_eq!(
            name(Some("x.test"), Some("out1")),
            "a.test,b.test rule x.test source out1"
        );
    }

    #[test]
    fn the_longest_rule_wins() {
        let rule = |domain: &str, below| Destination {
            domain: domain.parse().unwrap(),
            below,
            tls: TlsLevel::Required,
            family: AddressFamily::Any,
            limits: OwnLimits::default(),
        };
        let rules = Destinations::new(vec![
            rule("example.com", true),
            rule("mail.example.com", true),
            rule("a.mail.example.com", false),
        ]);
        for (domain, number) in [
            ("example.com", None),
            ("x.example.com", Some(0)),
            ("mail.example.com", Some(0)),
            ("b.mail.example.com", Some(1)),
            ("a.mail.example.com", Some(2)),
            ("example.org", None),
        ] {
            assert_eq!(rules.of(&domain.parse().unwrap()), number, "{domain}");
        }
    }

    #[test]
    fn after_a_failure_one_connection_tries_alone() {
        let mut lane = lane();
        let wait = |failures: u32| Duration::from_millis(10 * u64::from(failures));
        assert!(lane.failed("refused", wait, Timestamp(100)));
        assert_eq!(lane.resting(Timestamp(105)), Some(Timestamp(110)));
        assert!(
            !lane.failed("refused", wait, Timestamp(105)),
            "one failure, one rest"
        );
        assert_eq!(lane.resting(Timestamp(110)), None);
        assert!(lane.may_open(Timestamp(110)));
        lane.open = 1;
        assert!(!lane.may_open(Timestamp(110)));
        lane.open = 0;
        assert!(lane.failed("refused", wait, Timestamp(110)));
        assert_eq!(
            lane.resting(Timestamp(111)),
            Some(Timestamp(130)),
            "the second wait is longer"
        );
    }

    #[test]
    fn a_refused_further_connection_does_not_stop_those_that_work() {
        let mut lane = lane();
        lane.open = 2;
        assert!(!lane.failed("421 too many", |_| Duration::from_millis(10), Timestamp(100)));
        assert_eq!(lane.resting(Timestamp(100)), None);
        assert!(!lane.may_open(Timestamp(105)));
        assert!(lane.may_open(Timestamp(110)));
    }

    /// A time-out in between is of its own, short wait.
    #[test]
    fn a_host_that_refuses_more_for_hours_keeps_those_that_worked() {
        let hours = Timestamp(7_200_000);
        let mut lane = lane();
        lane.open = 2;
        lane.refuse_more(2, hours, Timestamp(100));
        assert!(!lane.may_open(Timestamp(200)));
        lane.open = 1;
        assert!(lane.may_open(Timestamp(200)));
        assert!(!lane.failed("timed out", |_| Duration::from_millis(10), Timestamp(300)));
        assert!(!lane.may_open(Timestamp(305)));
        assert!(lane.may_open(Timestamp(310)));
        lane.open = 2;
        assert!(!lane.may_open(Timestamp(310)));
        assert!(lane.may_open(hours));
    }
}
