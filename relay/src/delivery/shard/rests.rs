//! What a destination rests for: a lane whose hosts can't be spoken to, a domain that the DNS says nothing of.

use std::time::Duration;

use mail_core::Timestamp;
use queue::{HoldRecord, HoldScope, QueueId};

use crate::delivery::adapt::Held;
use crate::delivery::exchange::Word;
use crate::delivery::lane::{Lane, Rest};
use crate::world::log_time;

use super::{CLOCKS_DIFFER, HORIZON, LONGEST_REST, LaneId, MAX_RESTING, Rests, Shard, Stand, Standing};

impl Shard {
    /// No host of the lane could be spoken to, for a reason that says nothing about the unit: the lane rests, its units
    /// stay as they are. The connection is reported closed apart from this.
    /// `taught`: a reply said why, and [`Shard::heard`] has dealt with what that means for further connections.
    pub fn lane_failed(&mut self, lane: LaneId, cause: &str, taught: bool, now: Timestamp) {
        let (backoff, random) = (self.backoff.clone(), self.random.clone());
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        if taught && at.open > 1 {
            return;
        }
        // The failed connection itself is still counted.
        at.open -= 1;
        let rests = at.failed(cause, |failures| backoff.delay(failures, random.fraction()), now);
        at.open += 1;
        if let (true, Some(rest)) = (rests, &at.rest) {
            let until = rest.until;
            tracing::warn!(site = %at.key.scope(), cause, failures = rest.failures, until = %log_time(until), "deferred: destination rests");
            let record = HoldRecord {
                since: now,
                until,
                failures: rest.failures,
                cause: cause.to_owned(),
            };
            let scope = HoldScope::Lane(at.key.scope());
            at.held_back.clear();
            self.queue.hold(scope.clone(), record);
            for id in at.turn.queues() {
                self.hold_back(id, &scope, until, now);
            }
        }
    }

    /// A transaction got through to a host of the lane, whatever it answered.
    pub fn lane_works(&mut self, lane: LaneId, now: Timestamp) {
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let (tried, rested) = (at.adapt.host_works(now), at.rest.take().is_some());
        at.held_back.clear();
        if tried || rested {
            tracing::info!(site = %at.key.scope(), "destination works again");
            let scope = HoldScope::Lane(at.key.scope());
            self.lift(&scope, now);
            self.pump(lane, now);
        }
    }

    /// The lane's rest has ended before its time: queues that wait for it in memory are looked at now.
    pub(in crate::delivery) fn end_wait(&mut self, lane: LaneId, now: Timestamp) {
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        for id in std::mem::take(&mut at.held_back) {
            let waits = |stand: &Stand| stand.lane == lane && stand.at == Standing::Out;
            let active = self.active.get(&id);
            if active.is_some_and(|active| active.stands.iter().any(waits)) {
                self.set_queue_timer(id, now);
            }
        }
    }

    /// What queues that left memory rest for.
    pub(in crate::delivery) fn resting_scopes(&self) -> impl Iterator<Item = &HoldScope> {
        self.resting.keys()
    }

    pub(super) fn wait(&self, failures: u32) -> Duration {
        self.backoff.delay(failures, self.random.fraction())
    }

    /// Nothing of the queue goes before `until`, since its destination rests: it waits in memory if that is soon.
    pub(super) fn hold_back(&mut self, id: QueueId, scope: &HoldScope, until: Timestamp, now: Timestamp) {
        if self.goes_round(id, now) {
            return;
        }
        let Some(active) = self.active.get(&id) else {
            return;
        };
        // All fallbacks rest as well: whichever ends first.
        let first_way = active.detour.as_ref().map(|detour| detour.closed.until);
        let tenant = &active.name.tenant;
        let stands = active.stands.iter();
        let lanes = stands.filter_map(|stand| self.lanes.get(stand.lane));
        let end = |lane: &Lane| {
            let held = lane.adapt.held_of(tenant, now);
            lane.resting(now).max(held.map(|held| held.until))
        };
        let first_end = lanes.map(end).min();
        // Another of its lanes may take it meanwhile.
        let all_wait = first_end != Some(None);
        let until = first_end.flatten().map_or(until, |first| first.min(until));
        let may_leave = active.agenda.claims() == 0 && all_wait;
        if may_leave && first_way.is_some_and(|until| until <= now) {
            return self.unload(id, Some(Rests::UntilDue), now);
        }
        let until = first_way
            .filter(|&first| first > now)
            .map_or(until, |first| first.min(until));
        if until > now + HORIZON && may_leave {
            self.note_cause(id, scope, until, now);
            let others = self.rests_of_lanes(id, scope, now);
            self.unload(id, Some(Rests::Until(until.min(now + LONGEST_REST))), now);
            self.note_resting(id, scope);
            // Whichever ends brings it back.
            for (scope, held) in others {
                self.note_resting(id, &scope);
                self.note_held(scope, held);
            }
        } else {
            for lane in self.lanes_of(id) {
                if let Some(at) = self.lanes.get_mut(lane).filter(|at| at.rest.is_some()) {
                    at.held_back.insert(id);
                }
            }
            // One that does not end by itself is looked at again as well.
            self.set_queue_timer(id, until.min(now + LONGEST_REST));
        }
    }

    /// What its lanes rest for beside this, and what they are suspended by.
    fn rests_of_lanes(&self, id: QueueId, but: &HoldScope, now: Timestamp) -> Vec<(HoldScope, Option<Held>)> {
        let lanes = self.lanes_of(id);
        let lanes = lanes.into_iter().filter_map(|lane| self.lanes.get(lane));
        let rest = |lane: &Lane| {
            let scope = HoldScope::Lane(lane.key.scope());
            (scope, lane.adapt.held(now).cloned())
        };
        lanes.map(rest).filter(|(scope, _)| scope != but).collect()
    }

    fn note_resting(&mut self, id: QueueId, scope: &HoldScope) {
        if self.resting_count < MAX_RESTING && self.resting.entry(scope.clone()).or_default().insert(id) {
            self.resting_count += 1;
        }
    }

    /// Nobody knows its lanes once it has left memory: what holds it is kept for the reports on what expires meanwhile.
    fn note_cause(&mut self, id: QueueId, scope: &HoldScope, until: Timestamp, now: Timestamp) {
        let cause = self.cause(id, now);
        let cause = cause.or_else(|| Some(self.rest(scope, now)?.cause.into()));
        let held = cause.map(|cause| Held {
            since: now,
            until,
            cause,
        });
        if let Some(active) = self.active.get_mut(&id) {
            active.held = held;
        }
    }

    /// A resting lane: its queues leave memory if it is for long, and wait otherwise.
    pub(super) fn rest_lane(&mut self, lane: LaneId, until: Timestamp, now: Timestamp) {
        self.leave_gate(lane);
        let waiting = std::mem::take(&mut self.lanes[lane].turn).queues();
        for &id in &waiting {
            let stands = self
                .active
                .get_mut(&id)
                .into_iter()
                .flat_map(|active| &mut active.stands);
            for stand in stands.filter(|stand| stand.lane == lane) {
                stand.at = Standing::Out;
            }
        }
        let scope = HoldScope::Lane(self.lanes[lane].key.scope());
        // The lane goes with the last of them.
        let held = self.lanes[lane].adapt.held(now).cloned();
        for id in waiting {
            self.hold_back(id, &scope, until, now);
        }
        self.note_held(scope, held);
    }

    /// What those wait for that left memory, where it is no rest that the store tells of.
    pub(super) fn note_held(&mut self, scope: HoldScope, held: Option<Held>) {
        if let Some(held) = held.filter(|_| self.resting.contains_key(&scope)) {
            self.held_scopes.insert(scope, held);
        }
    }

    pub(in crate::delivery) fn rest(&self, scope: &HoldScope, now: Timestamp) -> Option<Rest> {
        let lifted = self.lifted.get(scope);
        // One that begins later than now was written while the clock was ahead: what its end is worth, nobody knows.
        let stands = |hold: &HoldRecord| {
            lifted.is_none_or(|&lifted| hold.since > lifted) && hold.since <= now + CLOCKS_DIFFER
        };
        match self.queue.held(scope) {
            Ok(hold) => hold.filter(stands).map(|hold| Rest {
                failures: hold.failures,
                until: hold.until,
                cause: hold.cause,
            }),
            Err(error) => {
                tracing::error!(%error, "a hold cannot be read");
                None
            }
        }
    }

    /// Ends a rest: all that waited for it is due as it was before.
    pub(in crate::delivery) fn lift(&mut self, scope: &HoldScope, now: Timestamp) {
        if self.rest(scope, now).is_some() {
            self.queue.lift(scope.clone());
        }
        self.wake_resting(scope, now);
    }

    /// Has the queues that left memory for a rest look for their way, whether it is over or not.
    pub(in crate::delivery) fn wake_resting(&mut self, scope: &HoldScope, now: Timestamp) {
        self.held_scopes.remove(scope);
        let woken = self.resting.remove(scope).unwrap_or_default();
        self.resting_count -= woken.len();
        for id in woken {
            match self.place.home_elsewhere(id) {
                Some(home) => self.tell(home, Word::Wake(id)),
                None => self.wake(id, now),
            }
        }
    }
}
