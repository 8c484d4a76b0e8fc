//! Which way a queue's mail goes: its domain is looked up, and the queue put on the lane of its site, here or at the shard that owns it.

use std::rc::Rc;
use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use queue::{HoldRecord, HoldScope, QueueId};

use crate::delivery::exchange::Word;
use crate::delivery::lane::{Lane, LaneKey};
use crate::delivery::route::Route;
use crate::world::{DnsError, log_time};

use super::{
    Direction, Effect, LONGEST_REST, LaneId, MAX_LOOKUPS, SITE_DOUBT, SITE_TTL, Shard, Timer, Way,
    not_configured,
};

impl Shard {
    /// What the DNS said of a domain asked for by [`Effect::Resolve`].
    pub fn resolved(&mut self, domain: &Domain, answer: Result<Route, DnsError>, now: Timestamp) {
        self.lookups_running -= 1;
        let queues = self.lookups.remove(domain).unwrap_or_default().queues;
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
                    self.hold_back(id, &scope, until, now);
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
            Direction::Mx => {}
            Direction::SmartHost(host) => return self.route_at_once(id, &Route::SmartHost(host), now),
            Direction::Discard(reason) => return self.route_at_once(id, &Route::Discarded(reason), now),
            Direction::Missing(name) => return self.wait_for_way(id, &name, now),
        }
        let Some(active) = self.active.get(&id) else {
            return;
        };
        let scope = HoldScope::Domain(domain.clone());
        if active.way == Way::Unknown
            && let Some(rest) = self.rest(&scope, now).filter(|rest| rest.until > now)
        {
            return self.hold_back(id, &scope, rest.until, now);
        }
        let known = self.lookups.contains_key(&domain);
        let lookup = self.lookups.entry(domain.clone()).or_default();
        if !lookup.queues.contains(&id) {
            lookup.queues.push(id);
        }
        if !known {
            self.lookups_waiting.push_back(domain);
            self.next_lookup();
        }
    }

    /// Takes a way that the DNS has no say in.
    pub(super) fn route_at_once(&mut self, id: QueueId, route: &Route, now: Timestamp) {
        let was_known = self
            .active
            .get(&id)
            .is_some_and(|active| active.way != Way::Unknown);
        self.route(id, route, now);
        if !was_known {
            self.look_at(id, now);
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
        if let Some(active) = self.active.get_mut(&id)
            && let Way::Lane(before) = std::mem::replace(&mut active.way, Way::Unknown)
        {
            active.in_turn = false;
            self.leave_lane(id, before);
        }
        self.hold_back(id, &scope, until, now);
    }

    pub(super) fn next_lookup(&mut self) {
        while self.lookups_running < MAX_LOOKUPS
            && let Some(domain) = self.lookups_waiting.pop_front()
        {
            self.lookups_running += 1;
            self.effects.push(Effect::Resolve(domain));
        }
    }

    /// Puts a queue on the lane its route names. A site other than the one in use is believed when a second answer says so.
    pub(super) fn route(&mut self, id: QueueId, route: &Route, now: Timestamp) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let site: Arc<str> = route.site().into();
        if let Way::Lane(current) = active.way
            && self.lanes.get(current).is_some_and(|lane| lane.key.site != site)
            && active.rumour.as_ref() != Some(&site)
        {
            active.rumour = Some(site);
            active.confirm = now + SITE_DOUBT;
            return;
        }
        active.rumour = None;
        if let Some(owner) = self.place.owner_elsewhere(route) {
            active.leaves_for = Some((owner, route.clone()));
            active.in_turn = false;
            if let Way::Lane(before) = std::mem::replace(&mut active.way, Way::Unknown) {
                self.leave_lane(id, before);
            }
            return self.leave(id, now);
        }
        let domain = active.name.domain.clone();
        let lane = self.lane(&domain, site, route, now);
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut active.way, Way::Lane(lane));
        if before != Way::Lane(lane) {
            active.in_turn = false;
            self.lanes[lane].queues += 1;
            if let Way::Lane(before) = before {
                self.leave_lane(id, before);
            }
        }
        self.hurry_lane(id, lane, now);
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
        let Some((owner, route)) = active.leaves_for.take() else {
            return;
        };
        let hurry = active.hurry;
        self.unload(id, None, now);
        // From another home, which looks for the site itself.
        if self.place.home_elsewhere(id).is_none() {
            self.lent.insert(id, owner);
            self.tell(owner, Word::Lent(id, route, hurry));
        }
    }

    pub(super) fn lane(&mut self, domain: &Domain, site: Arc<str>, route: &Route, now: Timestamp) -> LaneId {
        let key = LaneKey {
            site,
            rule: route.rule_name(domain, &self.settings),
        };
        let known = self.lane_of.get(&key).copied();
        let provider = match known {
            Some(lane) => self.lanes[lane].provider.clone(),
            None => route.provider(&self.settings).cloned(),
        };
        let rule = route.rule(domain, provider.as_deref(), &self.settings);
        let plan = route.plan(&rule);
        if let Some(lane) = known {
            // Preferences may have changed though the hosts did not.
            self.lanes[lane].plan = Rc::new(plan);
            self.lanes[lane].renew(&rule, now);
            return lane;
        }
        let rest = self.rest(&HoldScope::Lane(key.scope()), now);
        let mut lane = Lane::new(key.clone(), plan, &rule, rest, now);
        lane.provider = provider;
        let lane = self.lanes.insert(lane);
        self.lane_of.insert(key, lane);
        lane
    }

    pub(in crate::delivery) fn leave_lane(&mut self, id: QueueId, lane: LaneId) {
        if let Some(at) = self.lanes.get_mut(lane) {
            at.queues -= 1;
            at.turn.remove(id);
        }
        self.forget_lane(lane);
    }

    /// A lane without queues and connections leaves memory: its rest is in the store, its bucket begins empty anew.
    pub(super) fn forget_lane(&mut self, lane: LaneId) {
        if self.lanes.get(lane).is_some_and(Lane::is_unused) {
            let gone = self.lanes.remove(lane);
            self.lane_of.remove(&gone.key);
            if let Some(at) = gone.timer {
                self.timers.remove(&(at, Timer::Lane(lane)));
            }
            // A number is given again: what it waited for is no other lane's.
            for starved in &mut self.starved {
                starved.waiting.remove(&lane);
            }
        }
    }
}
