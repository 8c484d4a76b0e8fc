//! What is sent next: a lane pulls a unit when there are a connection and a token for it.

use mail_core::Timestamp;
use queue::{QueueId, UnitKey};

use crate::delivery::agenda::place;
use crate::delivery::lane::{ConnectionId, Lane, Plan};
use crate::delivery::limits::Grant;

use super::failing::Trial;
use super::gates::{GateId, Pass};
use super::starved::For;
use super::{Active, Effect, Job, LaneId, MAX_ENDINGS, READ_AGAIN, Shard, Standing};

impl Shard {
    /// A connection has sent its job and is ready for another.
    pub fn connection_free(&mut self, lane: LaneId, connection: ConnectionId, now: Timestamp) {
        let too_many = self.lanes.get(lane).is_some_and(Lane::has_too_many);
        let one_less = self.draining || connection <= self.outdated || too_many;
        if one_less
            || self.is_anothers_turn(lane, connection, now)
            || self.is_for_the_hungry(lane, connection, now)
        {
            return self.close(lane, connection);
        }
        self.keep_idle(lane, connection, now);
        self.pump(lane, now);
    }

    /// A connection is gone, idle or not.
    pub fn connection_closed(&mut self, lane: LaneId, connection: ConnectionId, now: Timestamp) {
        self.connections -= 1;
        let was_closing = self
            .lanes
            .get_mut(lane)
            .is_some_and(|at| at.closing.remove(&connection));
        self.place.slots().give_back(was_closing);
        self.forget_idle(lane, connection);
        self.handed_on(connection);
        self.source_serves(lane, connection, now);
        if let Some(at) = self.lanes.get_mut(lane) {
            at.open -= 1;
            at.end_service(connection);
            at.adapt.closed(connection);
        }
        self.settle_pace(lane, now);
        self.connection_given_back(lane, was_closing, now);
        self.pass_slot_on(now);
        self.pump(lane, now);
        self.forget_lane(lane);
    }

    /// An [`Effect::End`] is done; its claim is reported by [`Shard::settled`] apart from this.
    pub fn ended(&mut self, lane: Option<LaneId>, now: Timestamp) {
        self.endings -= 1;
        if let Some(lane) = lane {
            self.pump(lane, now);
        }
        self.feed_starved(now);
        self.go_on_ending(now);
    }

    /// Sends what can be sent through a lane now: a unit is claimed only when a connection and a token are there.
    pub(in crate::delivery) fn pump(&mut self, lane: LaneId, now: Timestamp) {
        self.pump_for(lane, None, now);
    }

    /// The same until something went through a gate whose turn it is for. False where nothing did.
    pub(super) fn pump_through(&mut self, lane: LaneId, gate: GateId, now: Timestamp) -> bool {
        self.pump_for(lane, Some(gate), now)
    }

    fn pump_for(&mut self, lane: LaneId, serving: Option<GateId>, now: Timestamp) -> bool {
        while !self.draining && self.lanes.contains(lane) {
            // What became of it could not be recorded.
            if self.queue.is_failing() {
                self.set_lane_timer(lane, now + READ_AGAIN);
                return false;
            }
            self.settle_pace(lane, now);
            if let Some(until) = self.lanes[lane].resting(now) {
                self.rest_lane(lane, until, now);
                return false;
            }
            // Nearly always so, when a unit of a busy lane is settled: whose turn it is can wait.
            if self.lanes[lane].is_busy() {
                return false;
            }
            self.bar_streams(lane);
            let Some(id) = self.next_turn(lane, now) else {
                self.leave_gate(lane);
                return false;
            };
            if !self.has_room(lane, now) {
                return false;
            }
            if let Some(at) = self.lanes[lane].adapt.wait(now) {
                self.set_lane_timer(lane, at);
                return false;
            }
            if let Grant::NotBefore { at, .. } = self.lanes[lane].limiter.reserve(now) {
                self.set_lane_timer(lane, at);
                return false;
            }
            let taken = match self.pass(lane, id, serving, now) {
                (Pass::Through, taken) => taken,
                (Pass::Lane, _) => {
                    self.lanes[lane].limiter.refund(now, now);
                    return false;
                }
                (Pass::Queue, _) => {
                    self.lanes[lane].limiter.refund(now, now);
                    continue;
                }
            };
            // It is due, whatever its key says: see `first_due`.
            let first = |active: &mut Active| active.agenda.claim(Timestamp::MAX);
            match self.active.get_mut(&id).and_then(first) {
                Some((place, message)) => {
                    let (due, message_id, unit) = place;
                    let job = Job {
                        unit: UnitKey {
                            queue: id,
                            due,
                            id: message_id,
                            unit,
                        },
                        message,
                        recipients: self.recipients_of(lane, id),
                    };
                    self.lanes[lane].turn.served();
                    let through = taken
                        .as_ref()
                        .is_some_and(|taken| serving.is_some_and(|gate| taken.is_of(gate)));
                    self.goes_out(lane, job.unit, taken, now);
                    self.charge(lane, id);
                    self.send(lane, job, now);
                    if through {
                        return true;
                    }
                }
                None => {
                    self.lanes[lane].limiter.refund(now, now);
                    if let Some(taken) = taken {
                        self.refund(&taken, now);
                        if self.lanes[lane].idle.is_empty() {
                            self.connection_refunded(lane, now);
                        }
                    }
                }
            }
        }
        false
    }

    /// A unit of the queue goes from the lane's source.
    fn charge(&mut self, lane: LaneId, id: QueueId) {
        let pool = self.active.get(&id).and_then(|active| active.pool.as_ref());
        let source = self.lanes.get(lane).and_then(|lane| lane.key.source.as_ref());
        if let (Some(pool), Some(source)) = (pool, source) {
            self.shares.served(pool, source);
        }
    }

    /// Streams that would take what is reserved for others have no turn.
    fn bar_streams(&mut self, lane: LaneId) {
        let streams = &self.settings.streams;
        if let Some(at) = self.lanes.get_mut(lane)
            && (streams.any_reserved() || !at.busy.is_empty())
        {
            let mut turn = std::mem::take(&mut at.turn);
            turn.bar(|stream| !at.may_send(stream, streams));
            at.turn = turn;
        }
    }

    /// The queue whose turn it is. Queues with nothing due leave the turn.
    pub(super) fn next_turn(&mut self, lane: LaneId, now: Timestamp) -> Option<QueueId> {
        loop {
            let id = self.lanes.get(lane)?.turn.front()?;
            self.fill(id, now);
            let active = self.active.get(&id);
            let due = active.and_then(|active| self.first_due(id, active, now));
            if due.is_some_and(|due| due <= now) && !self.holds_tenant(lane, id, now) {
                return Some(id);
            }
            self.lanes[lane].turn.drop_front();
            if let Some(active) = self.active.get_mut(&id) {
                for stand in active.stands.iter_mut().filter(|stand| stand.lane == lane) {
                    stand.at = Standing::Out;
                }
                self.look_at(id, now);
            }
        }
    }

    /// Whether a unit could be sent through the lane at once.
    pub(super) fn has_room(&mut self, lane: LaneId, now: Timestamp) -> bool {
        let at = &self.lanes[lane];
        if matches!(*at.plan, Plan::End(_)) {
            if self.endings >= MAX_ENDINGS {
                self.starve(For::Ending, lane);
            }
            return self.endings < MAX_ENDINGS;
        }
        if !at.idle.is_empty() {
            return true;
        }
        if !at.may_open(now) {
            let again = at.adapt.settles_at().unwrap_or(at.opens_at());
            if again > now {
                self.set_lane_timer(lane, again);
            }
            return false;
        }
        if let Some(again) = self.waits_for_trial(lane, now) {
            self.set_lane_timer(lane, again);
            return false;
        }
        if self.has_slot(lane) {
            return true;
        }
        self.wait_for_connection(lane, now);
        false
    }

    /// There is no connection for a job after all: what was taken for it is given back.
    fn not_sent(&mut self, lane: LaneId, job: &Job, now: Timestamp) {
        self.came_back(&job.unit, false, now);
        self.connection_refunded(lane, now);
        if let Some(active) = self.active.get_mut(&job.unit.queue) {
            active.agenda.unclaim(place(&job.unit));
        }
    }

    pub(super) fn send(&mut self, lane: LaneId, job: Job, now: Timestamp) {
        if let Some(connection) = self.take_idle(lane) {
            let at = &mut self.lanes[lane];
            at.adapt.begins(at.open, now);
            return self.effects.push(Effect::Send { connection, job });
        }
        let at = &mut self.lanes[lane];
        if let Plan::End(ending) = &*at.plan {
            let ending = ending.clone();
            self.endings += 1;
            return self.effects.push(Effect::End {
                lane: Some(lane),
                job,
                ending,
            });
        }
        let trial = self.begin_trial(lane, now);
        if trial == Trial::Taken || !self.place.slots().take(self.settings.max_connections) {
            // Another shard was faster.
            self.not_sent(lane, &job, now);
            return match trial {
                Trial::Taken => self.set_lane_timer(lane, now),
                Trial::Begun(source) => {
                    self.place.trials().end(&source);
                    self.wait_for_connection(lane, now);
                }
                Trial::NotNeeded => self.wait_for_connection(lane, now),
            };
        }
        self.is_fed(For::Connection, lane);
        self.connections += 1;
        self.last_connection += 1;
        let connection = ConnectionId(self.last_connection);
        if let Trial::Begun(source) = trial {
            self.trials.insert(source, connection);
        }
        let at = &mut self.lanes[lane];
        at.open += 1;
        if !at.gates.is_empty() || self.place.slots().hungry() > 0 {
            at.begin_service(connection, now);
        }
        at.adapt.connecting(connection);
        at.adapt.begins(at.open, now);
        self.effects.push(Effect::Connect {
            lane,
            connection,
            plan: at.plan.clone(),
            job,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use queue::HoldScope;
    use queue::store::MemoryStore;

    use crate::delivery::shard::fleet::Fleet;

    /// Over a connection that is open, or a new one.
    #[tokio::test]
    async fn nothing_new_is_sent_while_the_store_fails() {
        let store = MemoryStore::new();
        let mut fleet = Fleet::on(store.clone(), 1, "", 1);
        fleet.accept(1, "t", "bulk", "known.test", 10).await;
        fleet.run(Duration::from_secs(1)).await;
        assert_eq!(fleet.sent.len(), 1);
        for domain in ["known.test", "new.test"] {
            fleet.accept(2, "t", "bulk", domain, 10).await;
        }
        store.set_failing(true);
        fleet.queue.lift(HoldScope::Domain("none.test".parse().unwrap()));
        assert!(fleet.queue.is_failing());
        fleet.run(Duration::from_secs(60)).await;
        assert_eq!(fleet.sent.len(), 1);
    }
}
