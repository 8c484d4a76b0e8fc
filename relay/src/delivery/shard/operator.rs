//! What operators do to a shard's queues: suspend them, hurry them, end or move single units.

use std::collections::HashMap;
use std::sync::Arc;

use mail_core::Timestamp;
use queue::{HoldScope, Queue, QueueId, QueueName, SuspensionRecord, UnitKey};
use tokio::sync::mpsc::UnboundedSender;

use crate::delivery::adapt::Held;
use crate::delivery::agenda::place;
use crate::delivery::exchange::{Done, Order, Waits, Why, Word};
use crate::delivery::lane::Rest;

use super::rests::Resting;
use super::{Active, Effect, LaneId, Shard};

/// Those on disk.
pub(super) fn stored_suspensions(queue: &Queue, now: Timestamp) -> Arc<[SuspensionRecord]> {
    let stored = queue.suspensions(queue::MAX_SUSPENSIONS).unwrap_or_else(|error| {
        tracing::error!(%error, "suspensions can't be read: everything is suspended");
        vec![SuspensionRecord {
            selector: queue::Selector::default(),
            since: now,
            until: None,
            reason: "the suspensions could not be read".into(),
            by: "the relay".into(),
        }]
    });
    stored.into()
}

impl Shard {
    /// Of an order that came to the store as it failed, nobody could tell whoever gave it whether it is kept: once the store is back, what that
    /// holds counts here too, and not only after the next start.
    pub(super) fn suspended_as_stored(&mut self, now: Timestamp) {
        let reopened = self.queue.reopened();
        if std::mem::replace(&mut self.reopened, reopened) != reopened {
            let all = stored_suspensions(&self.queue, now);
            self.suspensions(all, now);
        }
    }

    /// Takes in all suspensions there are now. What they no longer hold is looked at; what they hold leaves its turn at
    /// once. What is on the wire finishes.
    pub(super) fn suspensions(&mut self, all: Arc<[SuspensionRecord]>, now: Timestamp) {
        let end = |record: &SuspensionRecord| record.until.unwrap_or(Timestamp::MAX);
        let outlives = |old: &SuspensionRecord| {
            let same = |new: &&SuspensionRecord| new.selector == old.selector;
            all.iter().find(same).is_some_and(|new| end(new) >= end(old))
        };
        let are_fewer = !self.suspended.iter().all(outlives);
        self.suspended = all;
        if are_fewer {
            self.scans.pass.begin_anew(now);
            for id in std::mem::take(&mut self.parked) {
                match self.place.home_elsewhere(id) {
                    Some(home) => self.tell(home, Word::Wake(id)),
                    None => self.wake(id, now),
                }
            }
        }
        for id in self.active_in_order() {
            if !self.park(id, now) {
                self.look_at(id, now);
            }
        }
    }

    /// What suspends a queue: the one that does so for longest.
    pub(super) fn suspension(
        &self,
        id: QueueId,
        name: &QueueName,
        now: Timestamp,
    ) -> Option<&SuspensionRecord> {
        queue::suspension(&self.suspended, id, name, now)
    }

    /// Says what a unit waits for, as far as it is known here.
    pub(super) fn why(&mut self, unit: &UnitKey, say: &UnboundedSender<Why>, now: Timestamp) {
        let waits = match self.active.get(&unit.queue) {
            Some(active) => self.waits(unit, active, now),
            None => self.waits_outside(unit, now),
        };
        if let Some(waits) = waits {
            // Who asked may have gone.
            let fallback = self.told_of_detour(unit.queue);
            let _ = say.send(Why { waits, fallback });
        }
    }

    /// The same of many queues, told by their first units, that are in memory or rest. Nobody is woken for it.
    pub(super) fn why_all(
        &self,
        units: &[Option<UnitKey>],
        say: &UnboundedSender<(usize, Why)>,
        now: Timestamp,
    ) {
        let mut outside = HashMap::new();
        for (number, unit) in units.iter().enumerate() {
            let Some(unit) = unit else { continue };
            match self.active.get(&unit.queue) {
                Some(active) => {
                    if let Some(waits) = self.queue_waits(unit, active, now) {
                        let fallback = self.told_of_detour(unit.queue);
                        let _ = say.send((number, Why { waits, fallback }));
                    }
                }
                None if unit.due <= now => drop(outside.insert(unit.queue, number)),
                None => {}
            }
        }
        // Whatever rests is gone through once: [`MAX_RESTING`] at the most.
        for (scope, queues) in self.resting.iter().filter(|_| !outside.is_empty()) {
            let asked: Vec<_> = queues.keys().filter_map(|queue| outside.get(queue)).collect();
            if !asked.is_empty()
                && let Some(waits) = self.rests_for(scope, now)
            {
                for &number in asked {
                    let why = Why {
                        waits: waits.clone(),
                        fallback: None,
                    };
                    let _ = say.send((number, why));
                }
            }
        }
    }

    /// Of a queue in memory whose first unit this is: what that waits for, or the next one that is not on the wire.
    fn queue_waits(&self, first: &UnitKey, active: &Active, now: Timestamp) -> Option<Waits> {
        let agenda = &active.agenda;
        if !agenda.is_claimed(place(first)) {
            return self.waits(first, active, now);
        }
        let known = agenda.first().map(|(due, id, unit)| UnitKey {
            queue: first.queue,
            due,
            id,
            unit,
        });
        let next = known.or_else(|| {
            let (unread, _) = self.queue.due(first.queue, agenda.wants()?, 1).ok()?;
            unread.first().copied()
        });
        let waits = next.and_then(|next| self.waits(&next, active, now));
        Some(waits.unwrap_or(Waits::Underway))
    }

    /// Of a queue in memory.
    fn waits(&self, unit: &UnitKey, active: &Active, now: Timestamp) -> Option<Waits> {
        if active.agenda.is_claimed(place(unit)) {
            return Some(Waits::Underway);
        }
        if let Some(record) = self.suspension(unit.queue, &active.name, now) {
            return Some(suspended(record));
        }
        if active.stands.is_empty() {
            if unit.due > now {
                return None;
            }
            let rest = self.rest(&HoldScope::Domain(active.name.domain.clone()), now);
            return Some(rest.and_then(|rest| rests(rest, now)).unwrap_or(Waits::Turn));
        }
        // Of several lanes it waits for the one that has least against it.
        let waits = active
            .stands
            .iter()
            .filter_map(|stand| self.waits_for(stand.lane, &active.name, now));
        let outlasts = |waits: &Waits| match waits {
            Waits::Adjusted { until, .. } => until.is_none_or(|until| until > unit.due),
            _ => false,
        };
        waits
            .max_by_key(Waits::rank)
            .filter(|waits| unit.due <= now || outlasts(waits))
    }

    fn waits_for(&self, id: LaneId, name: &QueueName, now: Timestamp) -> Option<Waits> {
        let (lane, tenant) = (self.lanes.get(id)?, &name.tenant);
        let held = lane.adapt.held(now).or_else(|| lane.adapt.held_of(tenant, now));
        if let Some(held) = held {
            return Some(adjusted(held));
        }
        if let Some(waits) = lane.rest.clone().and_then(|rest| rests(rest, now)) {
            return Some(waits);
        }
        if let Some((until, limit)) = lane.limiter.explain(now) {
            let limit = limit.to_owned();
            return Some(Waits::Throttled { until, limit });
        }
        if let Some(waits) = self.held_at_gate(id, name, now) {
            return Some(waits);
        }
        let may_connect = lane.may_open(now) && self.place.slots().free(self.settings.max_connections) > 0;
        Some(if lane.idle.is_empty() && !may_connect {
            Waits::Connection
        } else if !lane.may_send(&name.stream, &self.settings.streams) {
            let rest_of = "its connections".to_owned();
            Waits::Reserved { rest_of }
        } else {
            Waits::Turn
        })
    }

    /// Of a queue that isn't: its home knows of suspensions and domains, the shard that let it go of lanes.
    fn waits_outside(&mut self, unit: &UnitKey, now: Timestamp) -> Option<Waits> {
        if self.place.home_elsewhere(unit.queue).is_none() && !self.lent.contains_key(&unit.queue) {
            let name = self.queue.info(unit.queue).ok()??.name;
            if let Some(record) = self.suspension(unit.queue, &name, now) {
                return Some(suspended(record));
            }
        }
        if unit.due > now {
            return None;
        }
        let resting = |(_, queues): &(_, &Resting)| queues.contains_key(&unit.queue);
        let Some((scope, _)) = self.resting.iter().find(resting) else {
            // It sleeps for what held it before a restart. Whoever asks again is told.
            if self.place.home_elsewhere(unit.queue).is_none() {
                self.wake(unit.queue, now);
            }
            return None;
        };
        self.rests_for(scope, now)
    }

    /// What those wait for that left memory for a hold.
    fn rests_for(&self, scope: &HoldScope, now: Timestamp) -> Option<Waits> {
        let held = self.held_scopes.get(scope);
        if let Some(held) = held.filter(|held| held.until > now) {
            return Some(adjusted(held));
        }
        rests(self.rest(scope, now)?, now)
    }

    /// Lifts whatever rest is in a queue's way, now and once it has found its lane.
    pub(super) fn hurry(&mut self, id: QueueId, heard: UnboundedSender<Done>, now: Timestamp) {
        if !self.active.contains_key(&id) {
            if let Some(&owner) = self.lent.get(&id) {
                return self.tell(owner, Word::Hurry(id, heard));
            }
            if self.place.home_elsewhere(id).is_some() {
                // It went home meanwhile. Sent after it, the word could follow it round for ever.
                return;
            }
        }
        if !self.activate_anyway(id, now) {
            return;
        }
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        active.hurry = true;
        let domain = active.name.domain.clone();
        self.lift(&HoldScope::Domain(domain), now);
        if self
            .active
            .get(&id)
            .is_some_and(|active| !active.stands.is_empty())
        {
            self.hurry_lanes(id, now);
        }
        self.look_at(id, now);
    }

    /// A queue in a hurry has come to its lanes.
    pub(super) fn hurry_lanes(&mut self, id: QueueId, now: Timestamp) {
        let hurried = self.active.get(&id).is_some_and(|active| active.hurry);
        for lane in self.lanes_of(id) {
            if let (true, Some(at)) = (hurried, self.lanes.get_mut(lane))
                && let Some(rest) = &mut at.rest
            {
                // Over, but not forgotten: one connection tries, and if it fails, the next rest is longer.
                rest.until = now;
                let scope = HoldScope::Lane(at.key.scope());
                self.lift(&scope, now);
                self.end_wait(lane, now);
            }
        }
        // Not before: who comes back with the rest may want room.
        if let Some(active) = self.active.get_mut(&id) {
            active.hurry = false;
        }
    }

    /// Claims a unit and has the courier do what is ordered; one that is on the wire is left alone.
    pub(super) fn order(&mut self, order: Order, now: Timestamp) {
        let id = order.unit.queue;
        if !self.active.contains_key(&id) {
            if let Some(&owner) = self.lent.get(&id) {
                return self.tell(owner, Word::Order(order));
            }
            if self.place.home_elsewhere(id).is_some() {
                // It came home while this was on its way.
                return order.tell(Done::Busy);
            }
        }
        let claimed = !self.draining
            && self.activate_anyway(id, now)
            && self
                .active
                .get_mut(&id)
                .is_some_and(|active| active.agenda.claim_at(place(&order.unit)));
        if !claimed {
            return order.tell(Done::Busy);
        }
        self.effects.push(Effect::Order(order));
    }
}

fn suspended(record: &SuspensionRecord) -> Waits {
    Waits::Suspended {
        until: record.until,
        cause: cause(record),
    }
}

/// For operators, and for reports on what expires meanwhile.
pub(super) fn cause(record: &SuspensionRecord) -> String {
    format!("suspended by {}: {}", record.by, record.reason)
}

fn adjusted(held: &Held) -> Waits {
    Waits::Adjusted {
        until: held.ends(),
        cause: held.cause.to_string(),
    }
}

fn rests(rest: Rest, now: Timestamp) -> Option<Waits> {
    let Rest { until, cause, .. } = rest;
    (until > now).then_some(Waits::Rests { until, cause })
}

#[cfg(test)]
pub(super) mod tests;
