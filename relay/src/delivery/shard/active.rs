//! Queues in memory: they come, are read on in the due index, and leave.

use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{Queue, QueueId, QueueName, ReadError, UnitKey};

use super::{Active, HORIZON, LONGEST_REST, READ_AGAIN, Rests, Shard, Stand, Timer};
use crate::config::settings::MAX_HOLD;
use crate::delivery::agenda::{Agenda, PAGE, place};
use crate::delivery::courier::Kept;

impl Shard {
    /// Whether a queue is this shard's to bring into memory by itself.
    pub(super) fn is_mine(&self, id: QueueId) -> bool {
        self.place.home_elsewhere(id).is_none() && !self.lent.contains_key(&id)
    }

    /// Brings a queue into memory. False where it is not there, or there is no room.
    pub(super) fn activate(&mut self, id: QueueId, now: Timestamp) -> bool {
        if self.active.contains_key(&id) || self.has_memory() {
            return self.activate_anyway(id, now);
        }
        if self.draining || !self.may_take_room() {
            return false;
        }
        let info = self.read(now, |queue| queue.info(id)).flatten();
        let info = info.filter(|info| self.take_room(&info.name, now));
        info.map(|info| self.enter(id, info.name, now)).is_some()
    }

    /// The same where there is no room too: for an end or an order, of which there are few at once. [`Self::look_at`] sends
    /// the queue away again.
    pub(super) fn activate_anyway(&mut self, id: QueueId, now: Timestamp) -> bool {
        if self.active.contains_key(&id) {
            return true;
        }
        if self.draining {
            return false;
        }
        let Some(info) = self.read(now, |queue| queue.info(id)).flatten() else {
            return false;
        };
        self.enter(id, info.name, now);
        true
    }

    fn enter(&mut self, id: QueueId, mut name: QueueName, now: Timestamp) {
        self.make_memory(now);
        self.rooms.enter(id, &name);
        match self.stream_names.get(&name.stream) {
            Some(known) => name.stream = known.clone(),
            None => drop(self.stream_names.insert(name.stream.clone())),
        }
        let fresh = Active {
            name,
            agenda: Agenda::default(),
            on_wire: Vec::new(),
            stands: Vec::new(),
            pool: None,
            confirm: now,
            rumour: None,
            detour: None,
            leaves_for: None,
            hurry: false,
            ends: None,
            timer: None,
            held: self.held_back.remove(&id),
            empty_since: None,
        };
        self.active.insert(id, fresh);
        self.parked.remove(&id);
    }

    /// Reads from the store. A failure is logged, and the catalogue asked again later.
    pub(super) fn read<T>(
        &mut self,
        now: Timestamp,
        what: impl FnOnce(&Queue) -> Result<T, ReadError>,
    ) -> Option<T> {
        match what(&self.queue) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::error!(%error, "the store does not answer");
                self.scans.forget();
                self.timers.insert((now + READ_AGAIN, Timer::Scan));
                None
            }
        }
    }

    /// Notes a unit that came into the store, or moved there. It may have been seen by a read of the index before it is
    /// told of here, worked on and settled, so the store is asked whether it is still there. Where it does not answer, the window
    /// ends there: noted unseen, it might be sent again; left out, nobody would look for it.
    pub(super) fn note(&mut self, unit: &UnitKey, message: Option<&Arc<Kept>>, now: Timestamp) {
        let Some(active) = self.active.get_mut(&unit.queue) else {
            return;
        };
        // Read from the index already, and not claimed yet: it is there.
        if active.agenda.attach(place(unit), message) || !active.agenda.is_new(place(unit)) {
            return;
        }
        let is_due = self.read(now, |queue| queue.is_due(unit));
        let Some(active) = self.active.get_mut(&unit.queue) else {
            return;
        };
        match is_due {
            Some(true) => active.agenda.note(place(unit), message.cloned()),
            Some(false) => {}
            None => active.agenda.forget_from(place(unit)),
        }
    }

    /// Decides what a queue does next: read on, wait, leave memory, find its lane, take its turn.
    pub(in crate::delivery) fn look_at(&mut self, id: QueueId, now: Timestamp) {
        if self.draining {
            return;
        }
        self.fill(id, now);
        let Some(active) = self.active.get(&id) else {
            return;
        };
        if active.agenda.is_empty() {
            return self.linger(id, now);
        }
        self.stir(id);
        let Some(active) = self.active.get(&id) else {
            return;
        };
        match self.first_due(id, active, now) {
            None if active.agenda.claims() > 0 => {}
            // The store did not answer; the catalogue brings the queue back.
            None => self.unload(id, None, now),
            Some(due) if due > now + HORIZON && active.agenda.claims() == 0 => {
                self.unload(id, Some(Rests::UntilDue), now)
            }
            Some(due) if due > now => self.set_queue_timer(id, due),
            // One too many. It is due, so the catalogue brings it back once there is room.
            Some(_)
                if active.stands.is_empty()
                    && active.agenda.claims() == 0
                    && self.active.len() > self.most() =>
            {
                self.unload(id, Some(Rests::UntilDue), now)
            }
            Some(_) => self.go_ahead(id, now),
        }
    }

    /// When the first unit of a queue is due. The store may tell of times that no wait of ours reaches: the clock was ahead when
    /// they were written, and has been put right before the relay started. Such a unit is due now, unless its client has it held
    /// until then.
    pub(super) fn first_due(&self, id: QueueId, active: &Active, now: Timestamp) -> Option<Timestamp> {
        let due = active.agenda.earliest()?;
        if due <= now {
            return Some(due);
        }
        let stream = self.settings.streams.get(&active.name.stream);
        let retry = stream.map_or(&self.settings.retry, |stream| &stream.retry);
        let clamped = crate::delivery::backoff(retry).clamp(due, now);
        let is_held = clamped < due && due <= now + MAX_HOLD && self.is_held(id, active);
        Some(if is_held { due } else { clamped })
    }

    /// Whether the first unit of a queue is held by its client's wish. Asked of the store, and only where a due time is far off: a
    /// queue that has nothing nearer leaves memory at once.
    fn is_held(&self, queue: QueueId, active: &Active) -> bool {
        active.agenda.first().is_some_and(|(due, id, unit)| {
            let unit = UnitKey { queue, due, id, unit };
            self.queue.held_until(&unit).is_ok_and(|held| held.is_some())
        })
    }

    /// The longest wait that a schedule sets, of all streams.
    pub(super) fn longest_wait(&self) -> Duration {
        let streams = self.settings.streams.all().iter().map(|stream| &stream.retry);
        let all = streams.chain([&self.settings.retry]);
        let longest = all.map(|retry| crate::delivery::backoff(retry).longest()).max();
        longest.unwrap_or_default()
    }

    /// How much later than now a queue may be to wake: the longest wait of all, or longer than any rest.
    pub(super) fn longest_sleep(&self) -> Duration {
        self.longest_wait().max(LONGEST_REST * 2)
    }

    /// Reads on in the due index where the window runs low.
    pub(super) fn fill(&mut self, id: QueueId, now: Timestamp) {
        while let Some(active) = self.active.get(&id)
            && active.agenda.earliest().is_none_or(|due| due > now)
            && let Some(from) = active.agenda.wants()
        {
            let Some((page, more)) = self.read(now, |queue| queue.due(id, from, PAGE)) else {
                return;
            };
            if let Some(active) = self.active.get_mut(&id) {
                active.agenda.load(page.iter().map(place), more);
            }
            if !more {
                return;
            }
        }
    }

    /// Something is due: to the lane with it.
    pub(super) fn go_ahead(&mut self, id: QueueId, now: Timestamp) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if active.leaves_for.is_some() {
            return self.leave(id, now);
        }
        if self.park(id, now) {
            return;
        }
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let confirm = active.confirm;
        let only = match active.stands[..] {
            [] => return self.look_up(id, now),
            // Nearly always; nothing is allocated for it.
            [Stand { lane, .. }] => Some(lane),
            _ => None,
        };
        if self.hold_tenant_back(id, now) {
            return;
        }
        let several = only.map_or_else(|| self.lanes_of(id), |_| Vec::new());
        for &lane in several.iter().chain(&only) {
            if !self.holds_tenant(lane, id, now) {
                self.stand_in_turn(id, lane);
            }
        }
        if now >= confirm {
            self.look_up(id, now);
        }
        self.wait_for_first_way(id, now);
        let several = only.map_or_else(|| self.lanes_in_order(id, now), |_| Vec::new());
        for &lane in several.iter().chain(&only) {
            self.pump(lane, now);
        }
    }

    /// Takes a queue out of memory. `rest`: it is in the catalogue, and wakes at its first due time, or later if it is told.
    pub(super) fn unload(&mut self, id: QueueId, rest: Option<Rests>, now: Timestamp) {
        self.stir(id);
        self.leave_lanes(id);
        let Some(active) = self.active.remove(&id) else {
            return;
        };
        self.rooms.leave(id, &active.name);
        if let Some(at) = active.timer {
            self.timers.remove(&(at, Timer::Queue(id)));
        }
        self.names.leave(id, &active.name);
        match rest {
            // Not earlier than now: a scan begins where the last one ended.
            Some(Rests::UntilDue) => self.queue.rest(id, Some(now)),
            Some(Rests::Until(until)) => self.queue.rest(id, Some(until)),
            None => {}
        }
        self.give_back(id, active.held.filter(|_| rest.is_some()));
    }

    /// All queues in memory, by number.
    pub(in crate::delivery) fn active_in_order(&self) -> Vec<QueueId> {
        let mut active: Vec<_> = self.active.keys().copied().collect();
        active.sort_unstable();
        active
    }
}
