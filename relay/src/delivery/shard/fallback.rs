//! Queues whose first way is closed, and that have a fallback: they go by it, and back.
//!
//! A queue is asked about its way when its domain was looked up, when a lane of it rests, and once its detour is over. It moves to the
//! fallback only while all lanes of its first way rest, and back only when one of them no longer does, so it moves twice for each
//! rest at the most. Of several fallbacks it goes by the first that does not rest; it moves on while it is on its way only if that one
//! rests as well and another does not. What is on the wire is settled where it is.

use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use queue::{HoldScope, QueueId};

use crate::config::egress::Pool;
use crate::config::settings::DeliverySettings;
use crate::config::smart_hosts::SmartHost;
use crate::delivery::detour::{Closed, Detour, is_silence};
use crate::delivery::lane::{Hosts, LaneKey, Plan, Rest};
use crate::delivery::route::Route;
use crate::world::log_time;

use super::{Direction, Effect, MAX_RESTING, Shard};

impl Shard {
    /// The smart hosts that take a queue's mail while its first way is closed, in their order.
    pub(in crate::delivery) fn fallbacks_of(&self, id: QueueId) -> Vec<Arc<SmartHost>> {
        let Some(active) = self.active.get(&id) else {
            return Vec::new();
        };
        match self.routing.way(active.name.route_group) {
            Direction::Mx(means) | Direction::SmartHost(_, means) => means.fallbacks,
            Direction::Discard(_) | Direction::Missing(_) => Vec::new(),
        }
    }

    /// The first of them that does not rest; where all do, the one whose rest ends first.
    fn open_fallback(&self, id: QueueId, now: Timestamp) -> Option<(Arc<SmartHost>, Option<Timestamp>)> {
        let mut hosts = self.fallbacks_of(id);
        if hosts.len() <= 1 {
            return hosts.pop().map(|host| (host, None));
        }
        let mut first = None;
        for host in hosts {
            let Some(until) = self.rests_at(id, &host, now) else {
                return Some((host, None));
            };
            if first.as_ref().is_none_or(|(_, before)| until < *before) {
                first = Some((host, until));
            }
        }
        first.map(|(host, until)| (host, Some(until)))
    }

    /// Until when nothing of a queue goes by a smart host, from none of its sources; `None`: something may go now.
    fn rests_at(&self, id: QueueId, host: &Arc<SmartHost>, now: Timestamp) -> Option<Timestamp> {
        let name = &self.active.get(&id)?.name;
        let pool = self.pool_of(name).ok()?;
        let route = Route::SmartHost(host.clone());
        let mut first = None;
        for key in lane_keys(&route, &name.domain, pool.as_deref(), &self.settings) {
            if key
                .source
                .as_ref()
                .is_some_and(|source| self.is_failing(source, now))
            {
                continue;
            }
            let until = self.lane_rests(&key, &name.tenant, now)?;
            first = Some(first.map_or(until, |first: Timestamp| first.min(until)));
        }
        first
    }

    /// Until when a lane, which may be another shard's, takes nothing of a tenant's mail.
    fn lane_rests(&self, key: &LaneKey, tenant: &Arc<str>, now: Timestamp) -> Option<Timestamp> {
        if let Some(lane) = self.lane_of.get(key).and_then(|lane| self.lanes.get(lane)) {
            let of_tenant = lane.adapt.held_of(tenant, now).map(|held| held.until);
            return lane.resting(now).max(of_tenant);
        }
        if self.is_suspended(&key.mail(None), tenant, now) {
            return Some(Timestamp::MAX);
        }
        let rest = self.rest(&HoldScope::Lane(key.scope()), now)?;
        Some(rest.until).filter(|&until| until > now)
    }

    /// By whom a queue goes round its first way, if that is closed.
    pub(super) fn detour(
        &self,
        id: QueueId,
        first: &Route,
        now: Timestamp,
    ) -> Option<(Arc<SmartHost>, Detour)> {
        if self.fallbacks_of(id).is_empty() {
            return None;
        }
        let name = &self.active.get(&id)?.name;
        let pool = self.pool_of(name).ok()?;
        let keys = lane_keys(first, &name.domain, pool.as_deref(), &self.settings);
        // From a source that does not serve, the fallback can't be reached either.
        let serves = |key: &LaneKey| key.source.as_ref().is_none_or(|name| !self.is_failing(name, now));
        let rests = keys
            .into_iter()
            .filter(serves)
            .map(|key| self.closed_for(&key, first, &name.tenant, now));
        let closed = Closed::of(rests, self.settings.fallback_after, now)?;
        self.go_round(id, closed, now)
    }

    /// By whom a queue goes round a first way that is closed.
    fn go_round(&self, id: QueueId, closed: Closed, now: Timestamp) -> Option<(Arc<SmartHost>, Detour)> {
        let (host, _) = self.open_fallback(id, now)?;
        let by = host.name.clone();
        Some((host, Detour { by, closed }))
    }

    /// What a lane of the first way rests for, where that is a reason to go round it. Its owner knows; others know what the store says.
    fn closed_for(&self, key: &LaneKey, first: &Route, tenant: &Arc<str>, now: Timestamp) -> Option<Rest> {
        let (rest, suspended) = match self.lane_of.get(key).and_then(|lane| self.lanes.get(lane)) {
            Some(lane) => {
                let adapt = &lane.adapt;
                let suspended = adapt.held(now).is_some() || adapt.held_of(tenant, now).is_some();
                (lane.rest.clone(), suspended)
            }
            None => {
                let lane = key.mail(first.shares_with(&self.settings).map(|provider| &**provider));
                let rest = self.rest(&HoldScope::Lane(key.scope()), now);
                (rest, self.is_suspended(&lane, tenant, now))
            }
        };
        // That a smart host of ours wants nothing from us is for us to mend, and no reason to keep mail.
        let counts = |rest: &Rest| matches!(first, Route::SmartHost(_)) || is_silence(&rest.cause);
        rest.filter(|rest| !suspended && counts(rest))
    }

    /// A lane of the queue rests. If all do, it goes by its fallback; false where it has none, or it stays.
    pub(super) fn goes_round(&mut self, id: QueueId, now: Timestamp) -> bool {
        let Some(active) = self.active.get(&id) else {
            return false;
        };
        if active.leaves_for.is_some() || self.draining {
            return false;
        }
        let next = match &active.detour {
            Some(detour) => self.next_fallback(id, detour, now),
            None => self.first_way(id).and_then(|first| self.detour(id, &first, now)),
        };
        let Some((host, detour)) = next else {
            return false;
        };
        self.put(id, &Route::SmartHost(host), Some(detour), now);
        // Nothing is sent in the midst of something else.
        self.set_queue_timer(id, now);
        true
    }

    /// Another fallback that takes a queue's mail, where the one that it goes by rests.
    fn next_fallback(
        &self,
        id: QueueId,
        detour: &Detour,
        now: Timestamp,
    ) -> Option<(Arc<SmartHost>, Detour)> {
        let hosts = self.fallbacks_of(id);
        let present = hosts.iter().find(|host| host.name == detour.by)?;
        self.rests_at(id, present, now)?;
        let (host, rests) = self.open_fallback(id, now)?;
        let (by, closed) = (host.name.clone(), detour.closed.clone());
        (rests.is_none() && by != detour.by).then_some((host, Detour { by, closed }))
    }

    /// The same where nobody knows its lanes, since its domain rests. One whose lanes are known stays with them.
    pub(super) fn goes_round_domain(&mut self, id: QueueId, rest: Option<Rest>, now: Timestamp) -> bool {
        let Some(active) = self.active.get(&id) else {
            return false;
        };
        if self.draining || (active.detour.is_none() && !active.stands.is_empty()) {
            return false;
        }
        let closed = Closed::of([rest], self.settings.fallback_after, now);
        let Some((host, detour)) = closed.and_then(|closed| self.go_round(id, closed, now)) else {
            return false;
        };
        self.put(id, &Route::SmartHost(host), Some(detour), now);
        self.set_queue_timer(id, now);
        true
    }

    /// A queue that goes by its fallback looks for its first way again in time, whatever its lane waits for.
    pub(super) fn wait_for_first_way(&mut self, id: QueueId, now: Timestamp) {
        let active = self.active.get(&id).filter(|active| active.detour.is_some());
        if let Some(confirm) = active.map(|active| active.confirm).filter(|at| *at > now) {
            self.set_queue_timer(id, confirm);
        }
    }

    /// At the next look at it.
    pub(in crate::delivery) fn look_for_first_way(&mut self, id: QueueId) {
        if let Some(active) = self.active.get_mut(&id) {
            active.confirm = Timestamp(0);
            self.set_queue_timer(id, Timestamp(0));
        }
    }

    /// The route whose lanes the queue stands at.
    fn first_way(&self, id: QueueId) -> Option<Route> {
        let stand = self.active.get(&id)?.stands.first()?;
        match &*self.lanes.get(stand.lane)?.plan {
            Plan::Hosts { hosts, .. } => Some(match hosts {
                Hosts::Mx(hosts) => Route::Hosts(hosts.clone()),
                Hosts::Chosen(host) => Route::SmartHost(host.clone()),
            }),
            Plan::End(_) => None,
        }
    }

    /// Notes whether the queue goes by its fallback now, and tells of it: once for each rest, since a queue that is empty leaves memory
    /// and comes back.
    pub(in crate::delivery) fn set_detour(&mut self, id: QueueId, detour: Option<Detour>) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut active.detour, detour);
        let domain = &active.name.domain;
        match (&before, &active.detour) {
            (before, Some(detour)) if before.as_ref().is_none_or(|before| before.by != detour.by) => {
                let is_same =
                    |told: &Detour| (&told.by, told.closed.until) == (&detour.by, detour.closed.until);
                if self.told_of.get(&id).is_some_and(is_same) {
                    return;
                }
                if self.told_of.len() < MAX_RESTING {
                    self.told_of.insert(id, detour.clone());
                }
                let (host, Closed { until, cause }) = (&detour.by, &detour.closed);
                tracing::warn!(%domain, queue = id.0, smart_host = &**host, cause = &**cause, until = %log_time(*until), "goes by its fallback");
                self.effects.push(Effect::Fallback(host.clone()));
            }
            (Some(_), None) => {
                self.told_of.remove(&id);
                tracing::info!(%domain, queue = id.0, "goes its first way again");
            }
            _ => {}
        }
    }

    /// Those that are over.
    pub(super) fn forget_detours(&mut self, now: Timestamp) {
        // Once in a while.
        if (now.0 / 1_000).is_multiple_of(64) {
            self.told_of.retain(|_, detour| detour.closed.until > now);
        }
    }

    /// In words, of a queue that goes by its fallback.
    pub(super) fn told_of_detour(&self, id: QueueId) -> Option<String> {
        let Detour { by, closed } = self.active.get(&id)?.detour.as_ref()?;
        Some(format!("smart host {by}, since {}", closed.cause))
    }
}

/// The lanes of a route: one for each source of the pool. None of what ends without a connection.
fn lane_keys(
    route: &Route,
    domain: &Domain,
    pool: Option<&Pool>,
    settings: &DeliverySettings,
) -> Vec<LaneKey> {
    if !matches!(route, Route::Hosts(_) | Route::SmartHost(_)) {
        return Vec::new();
    }
    let (site, rule): (Arc<str>, _) = (route.site().into(), route.rule_name(domain, settings));
    let key = |source| LaneKey {
        site: site.clone(),
        rule: rule.clone(),
        source,
    };
    match pool {
        None => vec![key(None)],
        Some(pool) => {
            let names = pool.members.iter().map(|member| &member.source.name);
            names.map(|name| key(Some(name.clone()))).collect()
        }
    }
}

#[cfg(test)]
mod tests;
