//! Lanes that wait for what all of them share: a connection, or room for an ending.

use std::collections::HashMap;

use mail_core::Timestamp;
use queue::QueueName;

use super::gates::is_long_enough;
use super::{Effect, LaneId, MAX_ENDINGS, Shard};
use crate::delivery::exchange::Word;
use crate::delivery::lane::ConnectionId;
use crate::delivery::turn::Turn;

/// What a lane waits for, beside its own limits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// It has none.
    Connection = 0,
    Ending = 1,
}

/// Lanes by turns, each once, for the mail that is next in it.
#[derive(Default)]
pub(in crate::delivery) struct Starved {
    turn: Turn<LaneId>,
    waiting: HashMap<LaneId, (QueueName, u32)>,
}

impl Starved {
    /// Whether it is new. One that waits for mail of less weight takes the better place.
    fn push(&mut self, lane: LaneId, name: &QueueName, weight: u32) -> bool {
        let before = self.waiting.get(&lane);
        if before.is_some_and(|(_, known)| *known >= weight) {
            return false;
        }
        let is_new = !self.remove(lane);
        self.turn.push(lane, name, weight);
        self.waiting.insert(lane, (name.clone(), weight));
        is_new
    }

    /// Whether it was there.
    fn remove(&mut self, lane: LaneId) -> bool {
        let before = self.waiting.remove(&lane);
        if let Some((name, _)) = &before {
            self.turn.remove(lane, name);
        }
        before.is_some()
    }

    /// The lane whose turn it is has it.
    fn pop(&mut self) -> Option<LaneId> {
        let lane = self.turn.front()?;
        self.turn.take_front();
        self.waiting.remove(&lane);
        Some(lane)
    }

    /// The weight of the one whose turn it is.
    fn front_weight(&self) -> Option<u32> {
        let lane = self.turn.front()?;
        self.waiting.get(&lane).map(|&(_, weight)| weight)
    }

    /// By other weights from here on.
    pub(in crate::delivery) fn reweigh(&mut self, weight: impl Fn(&str) -> u32) {
        self.turn.reweigh(&weight);
        for (name, known) in self.waiting.values_mut() {
            *known = weight(&name.stream);
        }
    }
}

impl Shard {
    /// A lane waits for its turn, for the mail that is next in it.
    pub(super) fn starve(&mut self, what: For, lane: LaneId) {
        let next = self.lanes.get(lane).and_then(|at| at.turn.front());
        let Some(active) = next.and_then(|id| self.active.get(&id)) else {
            return;
        };
        let weight = self.settings.streams.weight(&active.name.stream);
        let is_new = self.starved[what as usize].push(lane, &active.name, weight);
        if is_new && what == For::Connection {
            self.place.slots().hungers(self.place.index());
        }
    }

    /// It does not any more.
    pub(super) fn is_fed(&mut self, what: For, lane: LaneId) {
        let waited = self.starved[what as usize].remove(lane);
        self.no_longer_hungry(what, waited);
    }

    fn no_longer_hungry(&self, what: For, waited: bool) {
        if waited && what == For::Connection {
            self.place.slots().hungers_no_more(self.place.index());
        }
    }

    /// Whether a lane may have one more connection of those of all shards: what is free is for those first that have none.
    pub(super) fn has_slot(&self, lane: LaneId) -> bool {
        let slots = self.place.slots();
        let free = slots.free(self.settings.max_connections);
        let has_none = self.lanes.get(lane).is_some_and(|at| at.open == 0);
        if self.fed == Some(lane) && has_none {
            return free > 0;
        }
        let itself = self.starved[For::Connection as usize].waiting.contains_key(&lane);
        free > slots.hungry() - usize::from(itself).min(slots.hungry())
    }

    /// Lanes that wait for room, as long as there is some: however many wait, what came free is not offered to all.
    pub(super) fn feed_starved(&mut self, now: Timestamp) {
        for _ in 0..self.starved[For::Ending as usize].waiting.len() {
            if self.endings >= MAX_ENDINGS || !self.feed_next(For::Ending, now) {
                break;
            }
        }
        for _ in 0..self.starved[For::Connection as usize].waiting.len() {
            if self.place.slots().free(self.settings.max_connections) == 0 {
                self.make_room(now);
                break;
            }
            self.feed_next(For::Connection, now);
        }
    }

    /// False where none waits.
    fn feed_next(&mut self, what: For, now: Timestamp) -> bool {
        let Some(lane) = self.starved[what as usize].pop() else {
            return false;
        };
        self.no_longer_hungry(what, true);
        self.fed = Some(lane);
        self.pump(lane, now);
        self.fed = None;
        true
    }

    /// A slot is free: for a lane that waits, here or at another shard.
    pub(super) fn pass_slot_on(&mut self, now: Timestamp) {
        match self.place.slots().next_hungry() {
            Some(shard) if shard != self.place.index() => {
                self.place.slots().promise();
                self.tell(shard, Word::Slot);
            }
            _ => self.take_slot(now),
        }
    }

    /// Another shard has left a slot to this one.
    pub(super) fn slot_is_free(&mut self, now: Timestamp) {
        self.place.slots().promise_kept();
        self.take_slot(now);
    }

    /// For the first lane that still has a use for it.
    fn take_slot(&mut self, now: Timestamp) {
        let open = self.connections;
        for _ in 0..self.starved[For::Connection as usize].waiting.len() {
            let is_free = self.place.slots().free(self.settings.max_connections) > 0;
            if self.connections != open || !is_free || !self.feed_next(For::Connection, now) {
                break;
            }
        }
    }

    /// Whether a connection that is free now is to make room for a lane that has none: at once where its own has others or the one that
    /// waits has mail of more weight, and else when it has served for long enough. As many are closed as there are such lanes.
    pub(super) fn is_for_the_hungry(
        &mut self,
        lane: LaneId,
        connection: ConnectionId,
        now: Timestamp,
    ) -> bool {
        if !self.place.slots().more_are_hungry(self.settings.max_connections) {
            return false;
        }
        let front = self.starved[For::Connection as usize].front_weight();
        let own = self.next_turn(lane, now).map(|id| self.weight_of(id));
        let Some(at) = self.lanes.get_mut(lane) else {
            return false;
        };
        let counted = !at.gates.is_empty();
        let long_enough = at.service_of(connection).is_none_or(|service| {
            service.messages += u32::from(!counted);
            is_long_enough(service, now)
        });
        long_enough
            || at.open - at.closing.len() > 1
            || own.is_none_or(|own| front.is_some_and(|front| front > own))
    }

    /// Has a connection closed, and knows meanwhile that there will be one less.
    pub(super) fn close(&mut self, lane: LaneId, connection: ConnectionId) {
        if let Some(at) = self.lanes.get_mut(lane)
            && at.closing.insert(connection)
        {
            self.place.slots().closes();
            self.closes_at_gates(lane);
        }
        self.effects.push(Effect::Close(connection));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fleet::{Fleet, Sent};

    const SECOND: Duration = Duration::from_secs(1);
    const STREAMS: &str = "[[stream]]\nname = \"urgent\"\nweight = 10\n";

    fn to(domain: &str) -> impl Fn(&Sent) -> bool {
        move |sent| sent.domain == domain
    }

    /// Two destinations have all connections and mail for hours; a third has one message.
    #[tokio::test]
    async fn a_lane_without_a_connection_gets_one_of_those_that_have_several() {
        for shards in [1, 2, 5] {
            let mut fleet = Fleet::new(shards, "[delivery]\nmax_connections = 4\n");
            for domain in ["a.test", "b.test"] {
                fleet.accept(4_000, "t", "bulk", domain, 10).await;
            }
            fleet.run(SECOND).await;
            assert_eq!(fleet.open.len(), 4);
            for domain in ["c.test", "d.test"] {
                fleet.accept(1, "t", "bulk", domain, 10).await;
            }
            fleet.run(SECOND).await;
            assert_eq!(
                [fleet.count(to("c.test")), fleet.count(to("d.test"))],
                [1, 1],
                "{shards}"
            );
            fleet.run(10 * SECOND).await;
            assert_eq!(fleet.open.len(), 4, "none is left unused");
        }
    }

    /// More destinations than connections: all have their turns, and mail of more weight the next one.
    #[tokio::test]
    async fn more_destinations_than_connections_take_turns() {
        let mut fleet = Fleet::new(2, &format!("{STREAMS}[delivery]\nmax_connections = 4\n"));
        fleet.closing_takes = Duration::from_millis(100);
        let domains: Vec<_> = (0..40).map(|number| format!("d{number}.test")).collect();
        for domain in &domains {
            fleet.accept(400, "t", "bulk", domain, 10).await;
        }
        fleet.run(30 * SECOND).await;
        let counts: Vec<_> = domains.iter().map(|domain| fleet.count(to(domain))).collect();
        assert!(counts.iter().all(|&count| count > 4), "{counts:?}");
        fleet.accept(1, "t", "urgent", "c.test", 10).await;
        fleet.run(3 * SECOND).await;
        assert_eq!(fleet.count(to("c.test")), 1);
        assert!(fleet.open.len() <= 4);
    }

    /// A QUIT takes its time, in which others of the lane come free.
    #[tokio::test]
    async fn no_more_connections_are_closed_than_are_too_many() {
        let limit = |most: u32| format!("[[limit]]\nsite = \"mx.a.test\"\nconnections = {most}\n");
        let lane = |most: u32| format!("[delivery.limits]\nconnections = {most}\n");
        for text in [&limit as &dyn Fn(u32) -> String, &lane] {
            let mut fleet = Fleet::new(1, &text(20));
            fleet.closing_takes = Duration::from_millis(500);
            fleet.accept(2_000, "t", "bulk", "a.test", 10).await;
            fleet.run(2 * SECOND).await;
            assert_eq!(fleet.open.len(), 20);
            fleet.renew(&text(17));
            for _ in 0..30 {
                fleet.run(SECOND / 10).await;
                assert!(fleet.open.len() >= 17, "{}", fleet.open.len());
            }
            assert_eq!(fleet.open.len(), 17);
        }
    }
}
