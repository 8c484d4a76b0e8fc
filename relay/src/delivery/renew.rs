//! What a reload means to a shard: limits hold at once, what is on the wire finishes as it began.

use std::rc::Rc;
use std::sync::Arc;

use mail_core::Timestamp;
use queue::{HoldScope, QueueId};

use crate::config::settings::DeliverySettings;
use crate::config::smart_hosts::SmartHost;
use crate::routing::{Routing, Way as Direction};

use super::lane::{ConnectionId, Hosts, Plan, Rule};
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
        self.lift_mended(&before, now);
        self.renew_lanes(now);
        for id in self.active_in_order() {
            self.find_way_anew(id, now);
        }
        // Limits may be wider.
        let lanes: Vec<_> = self.lanes.iter().map(|(id, _)| id).collect();
        for lane in lanes {
            self.pump(lane, now);
        }
    }

    /// Limits, terms and hosts of lanes whose rule is still there.
    fn renew_lanes(&mut self, now: Timestamp) {
        for (_, lane) in &mut self.lanes {
            lane.turn.reweigh(|stream| self.settings.streams.weight(stream));
            let hosts = match &*lane.plan {
                Plan::Hosts { hosts, .. } => hosts.clone(),
                Plan::End(_) => continue,
            };
            let (route, rule) = match hosts {
                Hosts::Mx(hosts) => {
                    let route = Route::Hosts(hosts);
                    lane.provider = route.provider(&self.settings).cloned();
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
                lane.plan = Rc::new(route.plan(&rule));
                lane.renew(&rule, now);
            }
        }
        let lanes: Vec<_> = self.lanes.iter().map(|(id, _)| id).collect();
        for lane in lanes {
            self.find_gates(lane, now);
        }
    }

    /// A queue whose lane no longer has its rule, or its smart host, sends no more before it has found its way.
    fn find_way_anew(&mut self, id: QueueId, now: Timestamp) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let Some(lane) = active.stands.first().map(|stand| stand.lane) else {
            return;
        };
        let fits = match self.routing.way(active.name.route_group) {
            Direction::Mx => {
                let rule = Rule::name_of(&active.name.domain, &self.settings);
                self.lanes.get(lane).is_some_and(|lane| lane.key.rule == rule)
            }
            Direction::SmartHost(_) | Direction::Discard(_) => true,
            Direction::Missing(_) => false,
        };
        if !fits {
            active.rumour = None;
            self.leave_lanes(id);
            self.look_at(id, now);
        }
    }

    /// Smart hosts that are there again, or other than they were, need not rest for what they did before. Mail of those that are
    /// gone rests for another reason now.
    fn lift_mended(&mut self, before: &Routing, now: Timestamp) {
        self.lifted.clear();
        let now_there = self.routing.smart_hosts();
        let gone = |old: &&Arc<SmartHost>| !now_there.iter().any(|host| host.name == old.name);
        let gone = before.smart_hosts().iter().filter(gone);
        let other = now_there
            .iter()
            .filter(|host| !before.smart_hosts().contains(host));
        for host in other.chain(gone).cloned().collect::<Vec<_>>() {
            let scope = Route::SmartHost(host).site();
            for (_, lane) in self.lanes.iter_mut().filter(|(_, lane)| *lane.key.site == *scope) {
                lane.rest = None;
            }
            for scope in [not_configured(&scope), scope].map(HoldScope::Lane) {
                if self.rest(&scope, now).is_some() {
                    self.queue.lift(scope.clone());
                }
                // First of all: whoever is woken asks.
                self.lifted.insert(scope.clone(), now);
                self.lift(&scope, now);
            }
        }
    }
}
