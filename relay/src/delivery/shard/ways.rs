//! Which way a queue's mail goes: its domain is looked up, and the queue put on the lane of its site, here or at the shard that owns it.

use std::rc::Rc;
use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use queue::{HoldRecord, HoldScope, QueueId, QueueName};
use rustc_hash::FxHashMap;

use crate::config::egress::{Pool, Source};
use crate::delivery::detour::Detour;
use crate::delivery::exchange::{Loan, Word};
use crate::delivery::lane::{Lane, LaneKey, Rest};
use crate::delivery::route::Route;
use crate::world::{DnsError, log_time};

use super::names::Asks;
use super::starved::For;
use super::{
    Direction, Effect, LONGEST_REST, LaneId, SITE_DOUBT, SITE_TTL, Shard, Stand, Standing, Timer,
    not_configured,
};

impl Shard {
    /// What the DNS said of a domain asked for by [`Effect::Resolve`].
    pub fn resolved(&mut self, domain: &Domain, answer: Result<Route, DnsError>, now: Timestamp) {
        let queues = self.names.answered(domain);
        self.next_lookup();
        match answer {
            Ok(route) => {
                self.lift(&HoldScope::Domain(domain.clone()), now);
                for id in queues {
                    self.route(id, &route, now);
                    self.look_at(id, now);
                }
            }
            Err(error) => {
                let scope = HoldScope::Domain(domain.clone());
                let failures = self.rest(&scope, now).map_or(0, |rest| rest.failures) + 1;
                let until = now + self.wait(failures);
                tracing::warn!(%domain, %error, failures, until = %log_time(until), "deferred: destination not found");
                let cause = format!("4.4.3 {error}");
                let rest = Rest {
                    failures,
                    until,
                    cause: cause.clone(),
                };
                self.queue.hold(
                    scope.clone(),
                    HoldRecord {
                        since: now,
                        until,
                        failures,
                        cause,
                    },
                );
                for id in queues {
                    if !self.goes_round_domain(id, Some(rest.clone()), now) {
                        self.hold_back(id, &scope, until, now);
                    }
                }
            }
        }
    }

    pub(super) fn look_up(&mut self, id: QueueId, now: Timestamp) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let domain = active.name.domain.clone();
        active.confirm = now + SITE_TTL;
        match self.routing.way(active.name.route_group) {
            Direction::Mx(_) => {}
            Direction::SmartHost(host, _) => return self.route_at_once(id, &Route::SmartHost(host), now),
            Direction::Discard(reason) => return self.route_at_once(id, &Route::Discarded(reason), now),
            Direction::Missing(name) => return self.wait_for_way(id, &name, now),
        }
        let Some(active) = self.active.get(&id) else {
            return;
        };
        let scope = HoldScope::Domain(domain.clone());
        let mut asks = match active.stands[..] {
            [] => Asks::First,
            [..] => Asks::Again,
        };
        if (active.stands.is_empty() || active.detour.is_some())
            && let Some(rest) = self.rest(&scope, now)
        {
            asks = Asks::Again;
            let until = rest.until;
            if until > now {
                if self.goes_round_domain(id, Some(rest), now) {
                    return;
                }
                if self.lanes_of(id).is_empty() {
                    return self.hold_back(id, &scope, until, now);
                }
            }
        }
        let Some(active) = self.active.get(&id) else {
            return;
        };
        let weight = self.settings.streams.weight(&active.name.stream);
        self.names.ask(id, &active.name, asks, weight);
        self.next_lookup();
    }

    /// Takes a way that the DNS has no say in.
    pub(super) fn route_at_once(&mut self, id: QueueId, route: &Route, now: Timestamp) {
        let before = self.lanes_of(id);
        self.route(id, route, now);
        if before.is_empty() {
            self.look_at(id, now);
        } else if self.lanes_of(id) != before {
            self.set_queue_timer(id, now);
        }
    }

    /// The queue's next hop is no longer configured. It waits: whatever another way may be, this mail was not meant for it.
    pub(super) fn wait_for_way(&mut self, id: QueueId, name: &str, now: Timestamp) {
        let scope = HoldScope::Lane(not_configured(name));
        let until = match self.rest(&scope, now).filter(|rest| rest.until > now) {
            Some(rest) => rest.until,
            None => {
                let until = now + LONGEST_REST;
                let cause = format!(
                    "4.3.5 {name} is not configured any more: the mail waits until it is, or expires"
                );
                tracing::error!(
                    next_hop = name,
                    until = %log_time(until),
                    "deferred: next hop not configured"
                );
                let record = HoldRecord {
                    since: now,
                    until,
                    failures: 1,
                    cause,
                };
                self.queue.hold(scope.clone(), record);
                until
            }
        };
        if let Some(active) = self.active.get_mut(&id) {
            active.detour = None;
        }
        self.leave_lanes(id);
        self.hold_back(id, &scope, until, now);
    }

    pub(super) fn next_lookup(&mut self) {
        let active = &self.active;
        let name_of = |id| active.get(&id).map(|active| &active.name);
        while let Some(domain) = self.names.start(name_of) {
            self.effects.push(Effect::Resolve(domain));
        }
    }

    /// Streams have other weights from here on.
    pub(in crate::delivery) fn reweigh_names(&mut self) {
        self.names.reweigh(|stream| self.settings.streams.weight(stream));
    }

    /// The pool that a queue's mail is sent from, as it is for its tenant and stream; `None`: what `delivery.source` says. The name of its
    /// way, where that is not configured any more.
    pub(in crate::delivery) fn pool_of(&self, name: &QueueName) -> Result<Option<Arc<Pool>>, Arc<str>> {
        let pool = match self.routing.way(name.route_group) {
            Direction::Mx(means) | Direction::SmartHost(_, means) => means.pool,
            Direction::Discard(_) => None,
            Direction::Missing(name) => return Err(name),
        };
        let for_mail = |pool: &Arc<Pool>| {
            let pool = pool.for_mail(Some(&name.tenant), Some(&name.stream));
            pool.clone()
        };
        Ok(pool.as_ref().map(for_mail))
    }

    /// Puts a queue on its first way, or on its fallback while that is closed. A site other than the one in use is believed when a
    /// second answer says so.
    pub(super) fn route(&mut self, id: QueueId, first: &Route, now: Timestamp) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let site: Arc<str> = first.site().into();
        if active.detour.is_none()
            && let Some(stand) = active.stands.first()
            && self
                .lanes
                .get(stand.lane)
                .is_some_and(|lane| lane.key.site != site)
            && active.rumour.as_ref() != Some(&site)
        {
            active.rumour = Some(site);
            active.confirm = now + SITE_DOUBT;
            return;
        }
        match self.detour(id, first, now) {
            Some((host, detour)) => self.put(id, &Route::SmartHost(host), Some(detour), now),
            None => self.put(id, first, None, now),
        }
    }

    /// Puts a queue on the lanes of a route's site, one for each source of its pool. `detour`: the route is its fallback, for this
    /// reason.
    pub(super) fn put(&mut self, id: QueueId, route: &Route, detour: Option<Detour>, now: Timestamp) {
        let Some(active) = self.active.get(&id) else {
            return;
        };
        // It may have gone while the DNS was asked.
        let pool = match self.pool_of(&active.name) {
            Ok(pool) => pool,
            Err(name) => return self.wait_for_way(id, &name, now),
        };
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        (active.rumour, active.held) = (None, None);
        if let Some(owner) = self.place.owner_elsewhere(route) {
            active.leaves_for = Some(Box::new((owner, route.clone(), detour)));
            // Whoever takes it tells of a detour that begins.
            self.set_detour(id, None);
            self.leave_lanes(id);
            return self.leave(id, now);
        }
        if let Some(detour) = &detour {
            active.confirm = detour.closed.until.min(now + SITE_TTL);
        }
        let site: Arc<str> = route.site().into();
        self.set_detour(id, detour);
        let Some(active) = self.active.get(&id) else {
            return;
        };
        let domain = active.name.domain.clone();
        let sources = match &pool {
            // What ends without a connection is sent from nowhere.
            Some(pool) if matches!(route, Route::Hosts(_) | Route::SmartHost(_)) => {
                pool.members.iter().map(|member| Some(&member.source)).collect()
            }
            _ => vec![None],
        };
        let lanes: Vec<_> = sources
            .into_iter()
            .map(|source| self.lane(&domain, site.clone(), route, source, now))
            .collect();
        if let Some(active) = self.active.get_mut(&id) {
            active.pool = pool;
        }
        if self.lanes_of(id) != lanes {
            // The new ones first, so that one that stays is not forgotten in between.
            for &lane in &lanes {
                self.lanes[lane].queues += 1;
            }
            self.leave_lanes(id);
            let stand = |lane| Stand {
                lane,
                at: Standing::Out,
            };
            if let Some(active) = self.active.get_mut(&id) {
                active.stands = lanes.into_iter().map(stand).collect();
            }
        }
        self.hurry_lanes(id, now);
    }

    /// Lends the queue to its site's owner, or sends it home, once nothing of it is claimed here: so no unit can be claimed
    /// by two.
    pub(super) fn leave(&mut self, id: QueueId, now: Timestamp) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if active.agenda.claims() > 0 {
            return;
        }
        let Some(leaves_for) = active.leaves_for.take() else {
            return;
        };
        let (owner, route, detour) = *leaves_for;
        let loan = Loan {
            route,
            detour,
            hurry: active.hurry,
        };
        self.unload(id, None, now);
        match self.place.home_elsewhere(id) {
            None => {
                self.lent.insert(id, owner);
                self.tell(owner, Word::Lent(id, loan));
            }
            // By way of its home, which alone knows who has it.
            Some(home) => self.tell(home, Word::Lent(id, loan)),
        }
    }

    /// The lane of a site from this source, made where there is none.
    pub(super) fn lane(
        &mut self,
        domain: &Domain,
        site: Arc<str>,
        route: &Route,
        source: Option<&Arc<Source>>,
        now: Timestamp,
    ) -> LaneId {
        let key = LaneKey {
            site,
            rule: route.rule_name(domain, &self.settings),
            source: source.map(|source| source.name.clone()),
        };
        let known = self.lane_of.get(&key);
        let provider = match known {
            Some(lane) => self.lanes[lane].provider.clone(),
            None => route.provider(&self.settings).cloned(),
        };
        let rule = route.rule(domain, provider.as_deref(), &self.settings);
        let plan = route.plan(&rule, source);
        if let Some(lane) = known {
            // Preferences may have changed though the hosts did not.
            self.lanes[lane].plan = Rc::new(plan);
            self.lanes[lane].renew(&rule, now);
            self.cap_transfers(lane, now);
            return lane;
        }
        let rest = self.rest(&HoldScope::Lane(key.scope()), now);
        let mut lane = Lane::new(key, plan, &rule, rest, now);
        lane.provider = provider;
        lane.shares_with = route.shares_with(&self.settings).cloned();
        self.made_lanes += 1;
        lane.number = self.made_lanes;
        let lane = self.lanes.insert(lane);
        self.lane_of.insert(lane, &self.lanes[lane]);
        self.find_limits_of_family(lane, now);
        self.remember_lane(lane, now);
        lane
    }

    /// The lanes that may take a queue's mail.
    pub(in crate::delivery) fn lanes_of(&self, id: QueueId) -> Vec<LaneId> {
        let stands = self.active.get(&id).map(|active| active.stands.as_slice());
        stands
            .unwrap_or_default()
            .iter()
            .map(|stand| stand.lane)
            .collect()
    }

    /// The same, in the order in which their sources are to be asked: whose turn it is by weight first; and before that those that have a
    /// connection for it already, unless that source has had more than its part for a while.
    pub(super) fn lanes_in_order(&self, id: QueueId, now: Timestamp) -> Vec<LaneId> {
        let mut lanes = self.lanes_of(id);
        if lanes.len() > 1
            && let Some(pool) = self.active.get(&id).and_then(|active| active.pool.as_ref())
        {
            let order = self.shares.order(pool);
            let order = order.iter().enumerate();
            let order: FxHashMap<&str, usize> = order.map(|(place, name)| (&**name, place)).collect();
            let all = lanes.iter().filter_map(|lane| self.lanes.get(*lane));
            let able = all.filter(|lane| lane.resting(now).is_none() && lane.waits_at.is_none());
            let able: Vec<_> = able.filter_map(|lane| lane.key.source.as_ref()).collect();
            let may_go_on = self.shares.may_go_on(pool, able);
            let place = |lane: &LaneId| {
                let lane = self.lanes.get(*lane);
                let source = lane.and_then(|lane| lane.key.source.as_deref());
                let is_connected = lane.is_some_and(|lane| !lane.idle.is_empty());
                let goes_on = is_connected && source.is_some_and(&may_go_on);
                (!goes_on, source.and_then(|source| order.get(source)).copied())
            };
            lanes.sort_by_cached_key(place);
        }
        lanes
    }

    /// Takes its place in the turn of one of its lanes, where it stands nowhere there.
    pub(super) fn stand_in_turn(&mut self, id: QueueId, lane: LaneId) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if let Some(stand) = active.stands.iter_mut().find(|stand| stand.lane == lane)
            && stand.at == Standing::Out
            && let Some(at) = self.lanes.get_mut(lane)
        {
            stand.at = Standing::Turn;
            let weight = self.settings.streams.weight(&active.name.stream);
            at.turn.push(id, &active.name, weight);
            if active.ends.is_some() {
                at.turn.hasten(id, &active.name, active.ends);
            }
        }
    }

    /// Stands for its turn nowhere any more.
    pub(super) fn leave_turns(&mut self, id: QueueId) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        for stand in &mut active.stands {
            match std::mem::replace(&mut stand.at, Standing::Out) {
                Standing::Out => {}
                Standing::Turn => {
                    if let Some(lane) = self.lanes.get_mut(stand.lane) {
                        lane.turn.remove(id, &active.name);
                    }
                }
                Standing::Gate(gate) => {
                    if let Some(gate) = self.gates.get_mut(gate) {
                        gate.leave((id, stand.lane), &active.name);
                    }
                }
            }
        }
        for lane in self.lanes_of(id) {
            if self
                .lanes
                .get(lane)
                .is_some_and(|lane| lane.waits_at.is_some_and(|(.., front)| front == id))
            {
                self.leave_gate(lane);
                // Another queue of the lane may have to wait in its place.
                self.set_lane_timer(lane, Timestamp(0));
            }
        }
    }

    /// Has no way any more.
    pub(in crate::delivery) fn leave_lanes(&mut self, id: QueueId) {
        self.leave_turns(id);
        let stands = self
            .active
            .get_mut(&id)
            .map(|active| std::mem::take(&mut active.stands));
        for Stand { lane, .. } in stands.unwrap_or_default() {
            if let Some(at) = self.lanes.get_mut(lane) {
                at.queues -= 1;
            }
            self.forget_lane(lane);
        }
    }

    /// A lane without queues and connections leaves memory: its rest is in the store, its bucket begins empty anew.
    pub(super) fn forget_lane(&mut self, lane: LaneId) {
        if self.lanes.get(lane).is_some_and(Lane::is_unused) {
            self.leave_gate(lane);
            self.save_pace(lane);
            let gone = self.lanes.remove(lane);
            self.lane_of.remove(lane, &gone);
            let of_tenants = gone.tenants.into_iter().map(|(_, of)| of.gates);
            self.forget_gates(of_tenants.chain([gone.gates]));
            if let Some(at) = gone.timer {
                self.timers.remove(&(at, Timer::Lane(lane)));
            }
            // And what it waited for is no other lane's.
            self.is_fed(For::Connection, lane);
            self.is_fed(For::Ending, lane);
        }
    }
}
