//! Which gates a lane has: found when it is made, when limits change, and day by day for sources that are new.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use mail_core::Timestamp;
use parking_lot::Mutex;
use queue::{QueueId, Scope, UnitKey};

use super::{Gate, GateId, LaneRef, Share, Taken};
use crate::config::limits::{OfLanes, SiteLimits, Together};
use crate::config::warm_up::day;
use crate::delivery::agenda::place;
use crate::delivery::lane::{Lane, OfTenant, Plan};
use crate::delivery::limits::budget::{Asked, Budget};
use crate::delivery::shard::{LaneId, Shard, Standing, Timer};

impl Shard {
    /// What limits a lane beside its own rule: the gates it has, but for those of tenants, and what single connections and transactions
    /// may carry. Found anew where limits may have changed; open connections count at once.
    pub(in crate::delivery) fn find_limits(&mut self, lane: LaneId, now: Timestamp) {
        self.find_limits_of(&[lane], now);
    }

    /// The same of several: what waits is gone through once for all of them.
    fn find_limits_of(&mut self, lanes: &[LaneId], now: Timestamp) {
        let before: Vec<_> = lanes.iter().map(|&lane| self.find_gates(lane, now)).collect();
        let has_others = |(lane, before): &(&LaneId, &Rc<[GateId]>)| {
            let at = self.lanes.get(**lane);
            !before.is_empty() && at.is_some_and(|at| at.gates != **before)
        };
        let changed = lanes.iter().zip(&before).filter(has_others);
        let changed: BTreeSet<_> = changed.map(|(&lane, _)| lane).collect();
        if !changed.is_empty() {
            self.leave_gates(|lane| changed.contains(&lane));
        }
        for gates in before {
            self.release_gates(&gates);
        }
    }

    /// The same of a lane that is new, and of the one that it shares the site's limits with from now on.
    pub(in crate::delivery::shard) fn find_limits_of_family(&mut self, lane: LaneId, now: Timestamp) {
        let family: Vec<_> = match self.lanes.get(lane) {
            Some(at) => self.lane_of.family(&at.key).collect(),
            None => return,
        };
        self.find_limits(lane, now);
        // Where there are more they have long been told of as one.
        let shares = |other: &&LaneId| self.shares(**other);
        if family.iter().filter(shares).count() == 2 {
            for other in family.into_iter().filter(|&other| other != lane) {
                self.find_limits(other, now);
                // It may have waited at a gate that it has left.
                self.set_lane_timer(other, now);
            }
        }
    }

    /// The configuration is another one: of all lanes.
    pub(in crate::delivery) fn find_all_limits(&mut self, now: Timestamp) {
        // What waits looks for its gate again: tenants have others, perhaps.
        self.leave_gates(|_| true);
        let lanes: Vec<_> = self.lanes.iter().map(|(id, _)| id).collect();
        for lane in lanes {
            let before = self.find_gates(lane, now);
            self.release_gates(&before);
            let of_tenants = std::mem::take(&mut self.lanes[lane].tenants);
            for (_, of) in of_tenants {
                self.release_gates(&of.gates);
            }
        }
        self.adopt_messages(now);
    }

    /// Finds a lane's gates, but for those of tenants. Gives those that it had, which are to be released. Who waits at one that stays
    /// asks again.
    fn find_gates(&mut self, lane: LaneId, now: Timestamp) -> Rc<[GateId]> {
        self.cap_transfers(lane, now);
        let fresh = self.gates_of(lane, None, now);
        let Some(at) = self.lanes.get_mut(lane) else {
            return fresh;
        };
        let (open, closing) = (at.open as u64, at.closing.len() as u64);
        let before = std::mem::replace(&mut at.gates, fresh.clone());
        for &gate in fresh.iter() {
            match before.contains(&gate) {
                true => self.set_gate_timer(gate, now),
                false => self.gates[gate].budget.lock().adopt(open, closing),
            }
        }
        for &gate in before.iter() {
            if !fresh.contains(&gate) {
                self.gates[gate].budget.lock().disown(open, closing);
            }
        }
        before
    }

    /// What is on the wire counts where a limit is new to it, until it comes back.
    fn adopt_messages(&mut self, now: Timestamp) {
        for id in self.active_in_order() {
            let Some(active) = self.active.get(&id) else {
                continue;
            };
            let claimed: Vec<_> = active.agenda.claimed().collect();
            let Some(usual) = active.stands.first().map(|stand| stand.lane) else {
                continue;
            };
            let stream = active.name.stream.clone();
            for (due, message, number) in claimed {
                let unit = UnitKey {
                    queue: id,
                    due,
                    id: message,
                    unit: number,
                };
                if self.unknown.contains(&unit) {
                    continue;
                }
                let active = self.active.get(&id);
                let known = active.and_then(|active| active.known_on_wire(place(&unit)));
                let lane = known.map_or(Some(usual), |out| out.lane.find(&self.lanes));
                let Some(lane) = lane else {
                    continue;
                };
                let Some(of_lane) = self.lanes.get(lane).map(|lane| lane.gates.clone()) else {
                    continue;
                };
                let of_tenant = self.tenant_gates(lane, id, now).unwrap_or_default();
                let gates = of_tenant.iter().chain(of_lane.iter());
                self.adopt_message((unit, lane), &stream, gates, now);
            }
        }
    }

    fn adopt_message<'a>(
        &mut self,
        (unit, lane): (UnitKey, LaneId),
        stream: &Arc<str>,
        gates: impl Iterator<Item = &'a GateId> + Clone,
        now: Timestamp,
    ) {
        let counts_bytes = |gate: &GateId| self.gates[*gate].budget.lock().counts_bytes();
        let bytes = match gates.clone().any(counts_bytes) {
            true => self.queue.unit_bytes(&unit).ok().flatten().unwrap_or(0),
            false => 0,
        };
        let Some(active) = self.active.get_mut(&unit.queue) else {
            return;
        };
        let known = active.find_on_wire(place(&unit)).ok();
        let known = known.and_then(|at| active.on_wire[at].taken.take());
        let mut taken = known.unwrap_or_else(|| Taken {
            shares: Vec::new(),
            stream: stream.clone(),
            bytes,
            at: now,
        });
        for &gate in gates {
            let mut budget = self.gates[gate].budget.lock();
            if let Some(share) = taken.shares.iter_mut().find(|share| share.gate == gate) {
                budget.adopt_bytes(bytes.saturating_sub(share.bytes));
                share.bytes = share.bytes.max(bytes);
                continue;
            }
            budget.adopt_message(&Asked { stream, bytes });
            drop(budget);
            taken.shares.push(Share {
                gate,
                bytes,
                since: None,
                own: false,
            });
            self.gates[gate].used_by += 1;
        }
        if !taken.shares.is_empty()
            && let Some(active) = self.active.get_mut(&unit.queue)
        {
            let lane = LaneRef::to(lane, &self.lanes);
            active.note_on_wire(place(&unit), lane).taken = Some(taken);
        }
    }

    /// Whether a lane has something together with others to its site.
    fn shares(&self, lane: LaneId) -> bool {
        self.lanes
            .get(lane)
            .is_some_and(|lane| lane.of_site != SiteLimits::default())
    }

    /// What a lane has together with others though no rule says so. A rate of which some streams have a part of their own is told of
    /// as if others had it, too: a budget keeps such parts.
    fn together(&self, lane: &Lane) -> Together {
        let has_siblings = || {
            self.lane_of
                .family(&lane.key)
                .filter(|&other| self.shares(other))
                .nth(1)
                .is_some()
        };
        let keeps_parts = lane.rate.is_some() && self.settings.streams.any_reserved();
        let is_sites = lane.of_site.messages_per_second == lane.rate;
        let site = lane.key.site.clone();
        let with_siblings = (lane.of_site != SiteLimits::default()
            && ((keeps_parts && is_sites) || has_siblings()))
        .then(|| OfLanes {
            site: site.clone(),
            limits: lane.of_site,
        });
        let own = (keeps_parts && !is_sites).then(|| OfLanes {
            site: match &lane.key.rule {
                Some(rule) => format!("{site} rule {rule}").into(),
                None => site,
            },
            limits: SiteLimits {
                connections: None,
                messages_per_second: lane.rate,
            },
        });
        Together {
            to_provider: lane.to_provider,
            to_site: with_siblings.into_iter().chain(own).collect(),
        }
    }

    /// Connections and transactions of a lane whose plan is new carry no more than limits say.
    pub(in crate::delivery::shard) fn cap_transfers(&mut self, lane: LaneId, now: Timestamp) {
        let scopes = &self.settings.scopes;
        if let Some(at) = self.lanes.get_mut(lane).filter(|_| !scopes.is_empty()) {
            let mail = scopes.mail(at.scope(), at.plan.mx_hosts());
            let (messages, recipients) = scopes.transfers(&mail, now);
            if messages.is_some() || recipients.is_some() {
                Rc::make_mut(&mut at.plan).cap(messages, recipients);
            }
        }
    }

    /// Sources that are new may send more, or are warm, from this day on.
    pub(in crate::delivery::shard) fn warm_up(&mut self, now: Timestamp) {
        if std::mem::replace(&mut self.today, day(now)) == day(now) || self.settings.scopes.is_empty() {
            return;
        }
        let settings = self.settings.clone();
        let is_warming = |lane: &Lane| {
            let source = lane.key.source.as_ref();
            source.is_some_and(|source| settings.scopes.is_warming(source))
        };
        let warming = self.lanes.iter().filter(|(_, lane)| is_warming(lane));
        let warming: Vec<_> = warming.map(|(id, _)| id).collect();
        self.find_limits_of(&warming, now);
        for lane in warming {
            self.pump(lane, now);
        }
    }

    /// A lane leaves memory, with no connection open.
    pub(in crate::delivery::shard) fn forget_gates(&mut self, gates: impl IntoIterator<Item = Rc<[GateId]>>) {
        for gates in gates {
            self.release_gates(&gates);
        }
    }

    /// Finds the gates of a lane, or of one tenant's mail in it, each with one more user.
    pub(super) fn gates_of(
        &mut self,
        lane: LaneId,
        tenant: Option<&Arc<str>>,
        now: Timestamp,
    ) -> Rc<[GateId]> {
        let settings = self.settings.clone();
        let Some(at) = self.lanes.get(lane) else {
            return Rc::default();
        };
        let together = self.together(at);
        let is_limited = !settings.scopes.is_empty() || together != Together::default();
        if !is_limited || matches!(*at.plan, Plan::End(_)) {
            return Rc::default();
        }
        let scope = Scope {
            tenant: tenant.cloned(),
            ..at.scope()
        };
        let mail = settings.scopes.mail(scope, at.plan.mx_hosts()).with(together);
        let limits = settings.scopes.of(&mail, tenant.is_some(), now);
        let shared = limits.into_iter().filter(|(_, limits)| limits.is_shared());
        shared
            .map(|(scope, limits)| {
                let budget =
                    self.place
                        .ledger()
                        .budget(&scope, (&limits, &settings.streams), &self.queue, now);
                self.gate(scope, budget)
            })
            .collect()
    }

    pub(super) fn gate(&mut self, scope: Scope, budget: Arc<Mutex<Budget>>) -> GateId {
        let gate = match self.gate_of.get(&scope) {
            Some(&known) => known,
            None => {
                let scope = Rc::new(scope);
                let fresh = self.gates.insert(Gate {
                    scope: scope.clone(),
                    budget,
                    waiting: Default::default(),
                    handing_on: 0,
                    used_by: 0,
                    timer: None,
                });
                self.gate_of.insert(scope, fresh);
                fresh
            }
        };
        self.gates[gate].used_by += 1;
        gate
    }

    pub(super) fn release_gates(&mut self, gates: &[GateId]) {
        for &gate in gates {
            self.gates[gate].used_by -= 1;
            if self.gates[gate].used_by == 0 {
                let gone = self.gates.remove(gate);
                self.gate_of.remove(&gone.scope);
                if let Some(at) = gone.timer {
                    self.timers.remove(&(at, Timer::Gate(gate)));
                }
            }
        }
    }

    /// Of the tenant of a queue; `None`: no limit is about tenants.
    pub(super) fn tenant_gates(&mut self, lane: LaneId, id: QueueId, now: Timestamp) -> Option<Rc<[GateId]>> {
        if !self.settings.scopes.are_of_tenants() {
            return None;
        }
        let tenant = &self.active.get(&id)?.name.tenant;
        let at = match self.lanes.get(lane)?.of_tenant(tenant) {
            Ok(known) => return Some(known.gates.clone()),
            Err(at) => at,
        };
        let tenant = tenant.clone();
        let gates = self.gates_of(lane, Some(&tenant), now);
        let recipients = self.recipients_of_tenant(lane, &tenant, now);
        let of = OfTenant {
            gates: gates.clone(),
            recipients,
        };
        self.lanes[lane].tenants.insert(at, (tenant, of));
        Some(gates)
    }

    fn recipients_of_tenant(&self, lane: LaneId, tenant: &Arc<str>, now: Timestamp) -> Option<usize> {
        let at = self.lanes.get(lane)?;
        let scope = Scope {
            tenant: Some(tenant.clone()),
            ..at.scope()
        };
        let scopes = &self.settings.scopes;
        let most = scopes.recipients_of_tenant(&scopes.mail(scope, at.plan.mx_hosts()), now)?;
        Some(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// RCPTs a transaction of a queue's mail in a lane, as limits about its tenant have it; the lane's own are in its plan.
    pub(in crate::delivery::shard) fn recipients_of(&self, lane: LaneId, id: QueueId) -> Option<usize> {
        if !self.settings.scopes.are_of_tenants() {
            return None;
        }
        let tenant = &self.active.get(&id)?.name.tenant;
        self.lanes.get(lane)?.of_tenant(tenant).ok()?.recipients
    }

    /// Nothing of these lanes waits at any gate: their queues stand in their turns again.
    fn leave_gates(&mut self, of: impl Fn(LaneId) -> bool) {
        let lanes: Vec<_> = self.lanes.iter().map(|(id, _)| id).filter(|&id| of(id)).collect();
        for lane in lanes {
            self.leave_gate(lane);
        }
        for id in self.active_in_order() {
            let Some(active) = self.active.get_mut(&id) else {
                continue;
            };
            let mut left = false;
            for stand in active.stands.iter_mut().filter(|stand| of(stand.lane)) {
                if let Standing::Gate(gate) = stand.at {
                    stand.at = Standing::Out;
                    if let Some(gate) = self.gates.get_mut(gate) {
                        gate.leave((id, stand.lane), &active.name);
                    }
                    left = true;
                }
            }
            if left {
                self.set_queue_timer(id, Timestamp(0));
            }
        }
    }
}
