//! What a reload means to a shard: limits hold at once, what is on the wire finishes as it began.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{HoldRecord, HoldScope, QueueId};

use crate::config::egress::Pool;
use crate::config::settings::DeliverySettings;
use crate::routing::{Routing, Way as Direction};

use super::lane::{ConnectionId, Hosts, Lane, LaneKey, Plan, Rule};
use super::route::Route;
use super::shard::{Shard, not_configured};
use super::smart_host;

impl Shard {
    /// Goes by another configuration from here on. `reconnect`: connections made before get no further message.
    pub fn renew(
        &mut self,
        settings: Arc<DeliverySettings>,
        routing: Arc<Routing>,
        reconnect: bool,
        now: Timestamp,
    ) {
        self.backoff = super::backoff(&settings.retry);
        let before = std::mem::replace(&mut self.routing, routing);
        self.settings = settings;
        if self.draining {
            return;
        }
        if reconnect {
            self.outdated = ConnectionId(self.last_connection);
            self.close_all_idle();
        }
        self.renew_lanes(now);
        let lanes: Vec<_> = self.lanes.iter().map(|(id, _)| id).collect();
        for lane in lanes {
            // Its hosts may be another provider's now.
            self.refresh_lane(lane, now);
        }
        // None is looked at before all have left: a lane that is pumped for one sends what any other has in it.
        let queues = self.active_in_order();
        let lost: Vec<_> = queues.into_iter().filter(|id| self.has_no_way(*id)).collect();
        self.lift_mended(&before, now);
        if before.egress() != self.routing.egress() {
            self.wake_of_lanes(now);
        }
        for id in lost {
            self.look_at(id, now);
        }
        // Limits may be wider.
        let lanes: Vec<_> = self.lanes.iter().map(|(id, _)| id).collect();
        for lane in lanes {
            self.pump(lane, now);
        }
    }

    /// Limits, terms and hosts of lanes whose rule is still there.
    fn renew_lanes(&mut self, now: Timestamp) {
        for starved in &mut self.starved {
            starved.reweigh(|stream| self.settings.streams.weight(stream));
        }
        self.reweigh_names();
        for (_, lane) in &mut self.lanes {
            lane.turn.reweigh(|stream| self.settings.streams.weight(stream));
            let hosts = match &*lane.plan {
                Plan::Hosts { hosts, .. } => hosts.clone(),
                Plan::End(_) => continue,
            };
            let name = lane.key.source.as_deref();
            let source = name.map(|name| self.settings.egress.source(name));
            // Its queues find another one.
            let Some(source) = source.map_or(Some(None), |found| found.map(Some)) else {
                continue;
            };
            let (route, rule) = match hosts {
                Hosts::Mx(hosts) => {
                    let route = Route::Hosts(hosts);
                    lane.provider = route.provider(&self.settings).cloned();
                    lane.shares_with = route.shares_with(&self.settings).cloned();
                    let name = lane.key.rule.as_deref();
                    let rule = Rule::named(name, lane.provider.as_deref(), &self.settings);
                    (route, rule)
                }
                Hosts::Chosen(old) => {
                    let mut hosts = self.routing.smart_hosts().iter();
                    let Some(host) = hosts.find(|host| host.name == old.name) else {
                        continue;
                    };
                    (Route::SmartHost(host.clone()), Some(smart_host::rule(host)))
                }
            };
            if let Some(rule) = rule {
                lane.plan = Rc::new(route.plan(&rule, source));
                lane.renew(&rule, now);
            }
        }
        self.index_lanes();
        self.find_all_limits(now);
    }

    /// Whether a queue has to find its way. One whose lane no longer has its rule, its smart host or its source leaves it; one that
    /// has no lane may have waited for what is there now.
    fn has_no_way(&mut self, id: QueueId) -> bool {
        let Some(active) = self.active.get(&id) else {
            return false;
        };
        if active.stands.is_empty() {
            return true;
        }
        if active.detour.is_some() {
            return self.has_no_detour(id);
        }
        let group = active.name.route_group;
        let rule = match self.routing.way(group) {
            Direction::Mx(_) => Some(Rule::name_of(&active.name.domain, &self.settings)),
            Direction::SmartHost(..) | Direction::Discard(_) | Direction::Missing(_) => None,
        };
        let lanes: Vec<_> = self
            .lanes_of(id)
            .into_iter()
            .filter_map(|lane| self.lanes.get(lane))
            .collect();
        let ends = lanes.iter().any(|lane| matches!(*lane.plan, Plan::End(_)));
        let pool = self.pool_of(&active.name);
        let same_sources = pool
            .as_ref()
            .is_ok_and(|pool| ends || are_of(&lanes, pool.as_deref()));
        let same_rule = |lane: &&Lane| rule.as_ref().is_none_or(|rule| lane.key.rule == *rule);
        if same_sources && lanes.iter().all(same_rule) {
            // With the weights of now.
            if let (Ok(pool), false, Some(active)) = (pool, ends, self.active.get_mut(&id)) {
                active.pool = pool;
            }
            return false;
        }
        if let Some(active) = self.active.get_mut(&id) {
            active.rumour = None;
        }
        self.leave_lanes(id);
        true
    }

    /// The same of one that goes by its fallback. Its first way may be open now, so it looks for it in any case.
    fn has_no_detour(&mut self, id: QueueId) -> bool {
        let lanes: Vec<_> = self
            .lanes_of(id)
            .into_iter()
            .filter_map(|lane| self.lanes.get(lane))
            .collect();
        let hosts = self.fallbacks_of(id).into_iter();
        let sites: Vec<_> = hosts.map(|host| Route::SmartHost(host).site()).collect();
        let same_host = lanes
            .iter()
            .all(|lane| sites.iter().any(|site| **site == *lane.key.site));
        let pool = self.active.get(&id).map(|active| self.pool_of(&active.name));
        let same_sources = pool.is_some_and(|pool| pool.is_ok_and(|pool| are_of(&lanes, pool.as_deref())));
        if same_host && same_sources {
            self.look_for_first_way(id);
            return false;
        }
        self.set_detour(id, None);
        self.leave_lanes(id);
        true
    }

    /// Pools are others than they were: mail that rests with a lane may have another one now, or none.
    fn wake_of_lanes(&mut self, now: Timestamp) {
        let scopes = self
            .resting_scopes()
            .filter(|scope| matches!(scope, HoldScope::Lane(_)));
        for scope in scopes.cloned().collect::<Vec<_>>() {
            self.wake_resting(&scope, now);
        }
    }

    /// Smart hosts, pools and sources that are there again, or other than they were, need not rest for what they did before. Mail of
    /// those that are gone rests for another reason now.
    fn lift_mended(&mut self, before: &Routing, now: Timestamp) {
        self.mended.forget(now);
        let mended = Mended::between(before, &self.routing, now);
        if mended.is_empty() {
            return;
        }
        for source in mended.sources.keys() {
            self.source_changed(source, now);
        }
        let of_lane =
            |scope: &&HoldScope| matches!(scope, HoldScope::Lane(name) if mended.ended(name).is_some());
        let mut scopes: BTreeSet<HoldScope> = self.resting_scopes().filter(of_lane).cloned().collect();
        let mut lanes = Vec::new();
        for (id, lane) in &mut self.lanes {
            let name = lane.key.scope();
            if mended.ended(&name).is_some() {
                lane.rest = None;
                lanes.push(id);
                scopes.insert(HoldScope::Lane(name));
            }
        }
        for lane in lanes {
            self.end_wait(lane, now);
        }
        for scope in &scopes {
            if self.rest(scope, now).is_some() {
                self.queue.lift(scope.clone());
            }
        }
        // First of all: whoever is woken asks.
        self.mended.add(mended);
        for scope in &scopes {
            self.wake_resting(scope, now);
        }
        self.sweep_mended();
    }
}

/// Whether lanes are those of a pool's sources, in their order.
fn are_of(lanes: &[&Lane], pool: Option<&Pool>) -> bool {
    let sources = lanes.iter().map(|lane| lane.key.source.as_ref());
    match pool {
        None => sources.eq([None]),
        Some(pool) => sources.eq(pool.members.iter().map(|member| Some(&member.source.name))),
    }
}

/// What was mended is known for so long, which is many times what it takes to sweep the holds.
const KNOWN_FOR: Duration = Duration::from_secs(86_400);

/// What reloads have mended, or taken away, and when: of holds that began earlier none is obeyed.
#[derive(Default)]
pub(super) struct Mended {
    /// Smart hosts' sites.
    sites: HashMap<String, Timestamp>,
    /// Sources' names.
    sources: HashMap<Arc<str>, Timestamp>,
    /// Holds of mail whose way was not configured, and is now.
    waits: HashMap<String, Timestamp>,
}

impl Mended {
    fn between(before: &Routing, after: &Routing, now: Timestamp) -> Self {
        let sites = changed(before.smart_hosts(), after.smart_hosts(), |host| &host.name);
        let sites = sites.map(|host| Route::SmartHost(host.clone()).site());
        let (old, new) = (&before.egress().sources, &after.egress().sources);
        let sources = changed(old, new, |source| &source.name);
        let still: HashSet<_> = after.missing().collect();
        let waits = before.missing().filter(|name| !still.contains(name));
        Self {
            sites: sites.map(|site| (site, now)).collect(),
            sources: sources.map(|source| (source.name.clone(), now)).collect(),
            waits: waits.map(|name| (not_configured(name), now)).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.sites.is_empty() && self.sources.is_empty() && self.waits.is_empty()
    }

    /// A later reload has mended these.
    fn add(&mut self, more: Self) {
        self.sites.extend(more.sites);
        self.sources.extend(more.sources);
        self.waits.extend(more.waits);
    }

    /// Names that were taken away do not come again.
    fn forget(&mut self, now: Timestamp) {
        let is_known = |at: Timestamp| now < at + KNOWN_FOR;
        self.sites.retain(|_, at| is_known(*at));
        self.sources.retain(|_, at| is_known(*at));
        self.waits.retain(|_, at| is_known(*at));
    }

    /// Whether this hold was ended.
    pub(super) fn ends(&self, scope: &HoldScope, hold: &HoldRecord) -> bool {
        let HoldScope::Lane(name) = scope else {
            return false;
        };
        self.ended(name).is_some_and(|at| hold.since <= at)
    }

    /// When the hold of this name, a lane's or that of mail without a way, was ended last, if it is about any of it.
    fn ended(&self, name: &str) -> Option<Timestamp> {
        if self.is_empty() {
            return None;
        }
        let (site, source) = LaneKey::site_and_source(name);
        let of_source = source.and_then(|source| self.sources.get(source));
        let all = [self.waits.get(name), self.sites.get(site), of_source];
        all.into_iter().flatten().max().copied()
    }
}

/// Those of `after` that are new or other than before, and those of `before` that are gone.
fn changed<'a, T: PartialEq>(
    before: &'a [Arc<T>],
    after: &'a [Arc<T>],
    name: impl Fn(&T) -> &Arc<str> + 'a,
) -> impl Iterator<Item = &'a Arc<T>> {
    let old: HashMap<_, _> = before.iter().map(|one| (name(one).clone(), one)).collect();
    let new: HashSet<_> = after.iter().map(|one| name(one).clone()).collect();
    let gone: Vec<_> = before.iter().filter(|one| !new.contains(name(one))).collect();
    let other = after.iter().filter(move |one| old.get(name(one)) != Some(one));
    other.chain(gone)
}
