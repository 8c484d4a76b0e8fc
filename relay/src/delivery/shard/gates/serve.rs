//! What waits at a gate is let through when there is room.

use mail_core::Timestamp;

use super::{GateId, OWN_AGAIN, SOON, Waiter, What, again};
use crate::delivery::limits::Grant;
use crate::delivery::limits::budget::{Asked, RESERVED};
use crate::delivery::shard::{Shard, Standing};
use crate::delivery::turn::Turn;

/// So many that were let through only to wait at another gate are enough for one look.
const MOST_MOVED: usize = 16;

/// Why no more of those that wait is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// None is left, or none for whom anything is kept.
    Done,
    /// There is nothing to send a message with.
    ByMessage,
    /// There is no connection for it.
    ByConnection,
    /// Whatever there was is used up.
    Used,
}

impl Shard {
    /// Lets through what there is room for, in turns: first what is kept for streams.
    pub(in crate::delivery::shard) fn serve(&mut self, gate: GateId, now: Timestamp) {
        let settings = self.settings.clone();
        let mut own = false;
        for stream in settings.streams.reserved() {
            for what in [What::Message, What::Connection] {
                own |= self.serve_those_for((gate, what), Some(&stream.name), now) == Stopped::ByMessage;
            }
        }
        self.serve_those_for((gate, What::Message), None, now);
        let connection = self.serve_those_for((gate, What::Connection), None, now);
        if settings.streams.any_reserved()
            && let Some(at) = self.gates.get_mut(gate)
        {
            at.waiting.iter_mut().for_each(|waiting| waiting.bar(|_| false));
        }
        // Whatever nobody waits for any more is the next shard's.
        let index = self.place.index();
        if let Some(at) = self.gates.get(gate) {
            let [message, connections] = at.waiting.each_ref().map(|waiting| !waiting.is_empty());
            let wants = [own, message || connection == Stopped::ByMessage, connections];
            let next = at.budget.lock().leave(index, wants, now);
            self.tell_of_room(gate, next.map(|next| next.filter(|&shard| shard != index)), now);
        }
    }

    /// `of`: what is kept for that stream alone.
    fn serve_those_for(&mut self, (gate, what): (GateId, What), of: Option<&str>, now: Timestamp) -> Stopped {
        let any_kept = self.settings.streams.any_reserved();
        let mut moved = 0;
        // Each that waits is served once at the least before the next look at the clock.
        let most = self
            .gates
            .get(gate)
            .map_or(0, |gate| gate.waiting[what as usize].len());
        for _ in 0..most {
            let waiting = self.gates.get(gate).map(|at| &at.waiting[what as usize]);
            let front = match of {
                Some(stream) => waiting.and_then(|waiting| waiting.front_of(stream)),
                None => waiting.and_then(Turn::front),
            };
            let Some(waiter) = front else { break };
            let (id, lane) = waiter;
            // Who is refused keeps its place: a large message is not passed by small ones for ever.
            match self.refuses((gate, what), waiter, of.is_some(), now) {
                None => {}
                // Others may have more than what is left beside what is kept.
                Some((Stopped::ByMessage, Grant::NotBefore { held_by, .. }))
                    if held_by == RESERVED && what == What::Message =>
                {
                    let stream = self.active.get(&id).map(|active| active.name.stream.clone());
                    if let (Some(stream), Some(at)) = (stream, self.gates.get_mut(gate)) {
                        at.waiting[what as usize].bar_one(&stream);
                        continue;
                    }
                    return Stopped::ByMessage;
                }
                // It is for messages that it waits, then, and not in front of those that have some.
                Some((Stopped::ByMessage, refused))
                    if any_kept && what == What::Connection && of.is_none() =>
                {
                    self.leave_gate(lane);
                    self.wait_at((gate, What::Message), waiter, true, again(&refused, now), now);
                    self.pump(lane, now);
                    continue;
                }
                Some((stopped, _)) => return stopped,
            }
            let at = &mut self.gates[gate];
            if of.is_none() {
                at.waiting[what as usize].take_front();
            }
            if let Some(active) = self.active.get(&id) {
                at.leave(waiter, &active.name);
            }
            if let Some(at) = self.lanes.get_mut(lane)
                && at
                    .waits_at
                    .is_some_and(|(at, _, front)| (at, front) == (gate, id))
            {
                at.waits_at = None;
            }
            let stands = self
                .active
                .get_mut(&id)
                .into_iter()
                .flat_map(|active| &mut active.stands);
            for stand in stands.filter(|stand| stand.lane == lane && stand.at == Standing::Gate(gate)) {
                stand.at = Standing::Out;
            }
            self.stand_in_turn(id, lane);
            if !self.pump_through(lane, gate, now) {
                if self.waits_here((gate, what), waiter) {
                    return Stopped::Used;
                }
                moved += usize::from(self.stands_at_a_gate(waiter));
                if moved > MOST_MOVED {
                    self.wake_gate_by(gate, now + SOON, now);
                    return Stopped::Used;
                }
            }
            self.pump(lane, now);
        }
        Stopped::Done
    }

    /// Whether there is nothing yet for who waits, or for `own` mail nothing of its stream's own part. Then the gate wakes in time.
    fn refuses(
        &mut self,
        (gate, what): (GateId, What),
        waiter: Waiter,
        own: bool,
        now: Timestamp,
    ) -> Option<(Stopped, Grant)> {
        let ((id, lane), index) = (waiter, self.place.index());
        let has_none = || self.lanes.get(lane).is_some_and(|lane| lane.idle.is_empty());
        let needs_connection = what == What::Connection && has_none();
        let name = self.active.get(&id).map(|active| active.name.clone());
        let asked = Asked {
            stream: name.as_ref().map_or("", |name| &name.stream),
            bytes: self.bytes_of_first(id, [gate].iter()),
        };
        let claim = self.claim(lane, id);
        let at = &self.gates[gate];
        let mut budget = at.budget.lock();
        let refused = if own && !budget.is_own(&asked, now) {
            let (at, held_by) = (now + OWN_AGAIN, RESERVED);
            Some((Stopped::Done, Grant::NotBefore { at, held_by }))
        } else if let Some(refused) = budget.refuses(index, &asked, now) {
            Some((Stopped::ByMessage, refused))
        } else if needs_connection {
            let refused = budget.refuses_a_connection(index, claim, now);
            refused.map(|refused| (Stopped::ByConnection, refused))
        } else {
            None
        };
        self.place.ledger().hear(&at.scope, &mut budget);
        drop(budget);
        if let Some((stopped, refused)) = &refused {
            if matches!(
                (stopped, refused),
                (Stopped::ByConnection, Grant::WhenFreed { .. })
            ) {
                self.make_room_at(gate, lane, now);
            }
            self.wake_gate_by(gate, again(refused, now), now);
        }
        refused
    }

    fn stands_at_a_gate(&self, waiter: Waiter) -> bool {
        let (id, lane) = waiter;
        self.active.get(&id).is_some_and(|active| {
            let stands = &mut active.stands.iter();
            stands.any(|stand| stand.lane == lane && matches!(stand.at, Standing::Gate(_)))
        })
    }

    fn waits_here(&self, (gate, what): (GateId, What), waiter: Waiter) -> bool {
        let (id, lane) = waiter;
        let by_lane = self.lanes.get(lane).and_then(|lane| lane.waits_at);
        let by_queue = self.active.get(&id).is_some_and(|active| {
            active
                .stands
                .iter()
                .any(|stand| stand.lane == lane && stand.at == Standing::Gate(gate))
        });
        // Lanes wait for connections, never queues by themselves.
        (what == What::Message && by_queue)
            || by_lane.is_some_and(|(at, for_what, _)| (at, for_what) == (gate, what))
    }
}
