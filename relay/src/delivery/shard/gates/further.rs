//! A unit on the wire that needs more transactions than the one for which it was let through: limits count each of them.

use mail_core::Timestamp;
use queue::UnitKey;

use super::{GateId, LaneId, Waiter, What};
use crate::delivery::lane::ConnectionId;
use crate::delivery::limits::Grant;
use crate::delivery::limits::budget::Asked;
use crate::delivery::shard::Shard;

impl Shard {
    /// Whether a unit on the wire may begin one more transaction over its connection, and takes what that needs, as another message
    /// would. It stands in no line for it: where anything holds it, or others go before, what is left of it goes back to its queue.
    pub fn may_go_on(
        &mut self,
        lane: LaneId,
        connection: ConnectionId,
        unit: &UnitKey,
        now: Timestamp,
    ) -> bool {
        if self.draining || connection <= self.outdated || self.is_held_up(lane, unit, now) {
            return false;
        }
        if self.lanes[lane].limiter.reserve(now) != Grant::Granted {
            return false;
        }
        if !self.passes_further(lane, unit, now) {
            self.lanes[lane].limiter.refund(now, now);
            return false;
        }
        let at = &mut self.lanes[lane];
        at.adapt.begins(at.open, now);
        if let Some(service) = at.service_of(connection) {
            service.messages += 1;
        }
        true
    }

    /// Whether the unit would not be sent now, whatever its limits.
    fn is_held_up(&self, lane: LaneId, unit: &UnitKey, now: Timestamp) -> bool {
        let (Some(at), Some(active)) = (self.lanes.get(lane), self.active.get(&unit.queue)) else {
            return true;
        };
        self.queue.is_failing()
            || at.resting(now).is_some()
            || at.has_too_many()
            || at.adapt.wait(now).is_some()
            || self.holds_tenant(lane, unit.queue, now)
            || self.suspension(unit.queue, &active.name, now).is_some()
    }

    /// Takes it from all gates, or from none of them.
    fn passes_further(&mut self, lane: LaneId, unit: &UnitKey, now: Timestamp) -> bool {
        let of_tenant = self.tenant_gates(lane, unit.queue, now).unwrap_or_default();
        let of_lane = self.lanes[lane].gates.clone();
        let gates = || of_tenant.iter().chain(of_lane.iter()).copied();
        if gates().next().is_none() {
            return true;
        }
        let active = self.active.get(&unit.queue);
        let Some(stream) = active.map(|active| active.name.stream.clone()) else {
            return false;
        };
        let asked = Asked {
            stream: &stream,
            bytes: 0,
        };
        for (number, gate) in gates().enumerate() {
            if self.takes_further(gate, (unit.queue, lane), &asked, now) {
                continue;
            }
            for gate in gates().take(number) {
                let next = self.gates[gate].budget.lock().refund_further(&stream, now);
                self.tell_of_room(gate, next, now);
            }
            return false;
        }
        true
    }

    fn takes_further(&self, gate: GateId, waiter: Waiter, asked: &Asked<'_>, now: Timestamp) -> bool {
        let at = &self.gates[gate];
        let mut budget = at.budget.lock();
        let waiting = &at.waiting[What::Message as usize];
        let is_own = self.settings.streams.any_reserved() && budget.is_own(asked, now);
        let first = match is_own {
            true => waiting.front_of(asked.stream),
            false => waiting.front(),
        };
        let is_its_turn = first.is_none_or(|first| first == waiter);
        let takes = is_its_turn && budget.further(self.place.index(), asked, now);
        self.place.ledger().hear(&at.scope, &mut budget);
        takes
    }
}
