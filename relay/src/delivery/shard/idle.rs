//! Connections that wait for their next job, and who may have them closed.

use std::time::Duration;

use mail_core::Timestamp;

use super::starved::For;
use super::{LaneId, Shard};
use crate::delivery::exchange::Word;
use crate::delivery::lane::{ConnectionId, Idle};

/// A lane that has a connection takes none away from others that was in use within this time. Where as many destinations are busy
/// as there may be connections, each would otherwise close another's to open its second, and that one be opened anew at once.
const IN_USE: Duration = Duration::from_secs(1);

impl Shard {
    /// A connection of this lane has no job.
    pub(super) fn keep_idle(&mut self, lane: LaneId, connection: ConnectionId, now: Timestamp) {
        if let Some(at) = self.lanes.get_mut(lane) {
            let idle = Idle {
                since: now,
                connection,
            };
            at.idle.push(idle);
            self.idle.insert((idle, lane));
        }
    }

    /// The lane's connection that was in use last.
    pub(super) fn take_idle(&mut self, lane: LaneId) -> Option<ConnectionId> {
        let idle = self.lanes.get_mut(lane)?.idle.pop()?;
        self.idle.remove(&(idle, lane));
        Some(idle.connection)
    }

    /// It is gone, if it was idle.
    pub(super) fn forget_idle(&mut self, lane: LaneId, connection: ConnectionId) {
        if let Some(at) = self.lanes.get_mut(lane)
            && let Some(number) = at.idle.iter().position(|idle| idle.connection == connection)
        {
            let idle = at.idle.remove(number);
            self.idle.remove(&(idle, lane));
        }
    }

    /// Closes all that are idle.
    pub(in crate::delivery) fn close_all_idle(&mut self) {
        while self.close_an_idle_one(Duration::ZERO, Timestamp::MAX) {}
    }

    /// All connections are taken: the one that has been idle for longest makes room, and this lane is asked again when it is closed.
    pub(super) fn wait_for_connection(&mut self, lane: LaneId, now: Timestamp) {
        let Some(at) = self.lanes.get(lane) else {
            return;
        };
        if at.open > 0 {
            // Its own comes free again. Other shards are asked once in a while, not with each message.
            let asked = at.timer.is_some();
            if !self.close_an_idle_one(IN_USE, now) && !asked {
                self.set_lane_timer(lane, now + IN_USE);
                self.ask_for_room(IN_USE);
            }
            return;
        }
        self.starve(For::Connection, lane);
        self.make_room(now);
    }

    /// Has an idle connection closed, here or elsewhere.
    pub(super) fn make_room(&mut self, now: Timestamp) {
        if !self.close_an_idle_one(Duration::ZERO, now) {
            self.ask_for_room(Duration::ZERO);
        }
    }

    fn ask_for_room(&mut self, idle_for: Duration) {
        for shard in self.place.others() {
            self.tell(shard, Word::MakeRoom(idle_for));
        }
    }

    /// False where none has been idle for so long.
    pub(super) fn close_an_idle_one(&mut self, idle_for: Duration, now: Timestamp) -> bool {
        let Some(&(idle, lane)) = self.idle.first().filter(|(idle, _)| idle.since + idle_for <= now) else {
            return false;
        };
        self.close_idle_one(idle, lane);
        true
    }

    pub(super) fn close_idle_one(&mut self, idle: Idle, lane: LaneId) {
        self.forget_idle(lane, idle.connection);
        // Whatever its lane holds, it is not looked at again.
        self.idle.remove(&(idle, lane));
        self.close(lane, idle.connection);
    }

    /// How long connections of others have been idle that this lane may have closed.
    pub(super) fn patience_of(&self, lane: LaneId) -> Duration {
        let has_one = self.lanes.get(lane).is_some_and(|lane| lane.open > 0);
        if has_one { IN_USE } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use queue::Queue;
    use queue::store::MemoryStore;

    use super::super::Effect;
    use super::super::operator::tests::shard;
    use super::*;
    use crate::delivery::lane::{Lane, LaneKey, Plan, Rule};
    use crate::delivery::shard::Ending;

    const START: Timestamp = Timestamp(1_700_000_000_000);

    /// A lane with so many connections, the first of which is idle since `idle`.
    fn lane(shard: &mut Shard, site: &str, open: u64, idle: Option<Timestamp>) -> LaneId {
        let settings = shard.settings.clone();
        let rule = Rule::of(&"d.test".parse().unwrap(), None, &settings);
        let key = LaneKey {
            site: Arc::from(site),
            rule: None,
            source: None,
        };
        let plan = Plan::End(Ending::Discarded("a test".into()));
        let id = shard.lanes.insert(Lane::new(key, plan, &rule, None, START));
        for _ in 0..open {
            shard.place.slots().take(100);
            shard.lanes[id].open += 1;
            shard.last_connection += 1;
        }
        if let Some(since) = idle {
            shard.keep_idle(id, ConnectionId(shard.last_connection), since);
        }
        id
    }

    fn closed(shard: &mut Shard) -> Vec<u64> {
        let effects = shard.take_effects().into_iter();
        let closed = effects.filter_map(|effect| match effect {
            Effect::Close(connection) => Some(connection.0),
            _ => None,
        });
        closed.collect()
    }

    #[test]
    fn who_has_a_connection_takes_none_that_was_in_use_just_now() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let mut shard = shard(&queue);
        lane(&mut shard, "late", 1, Some(START + Duration::from_millis(900)));
        lane(&mut shard, "early", 1, Some(START));
        let busy = lane(&mut shard, "busy", 1, None);
        let none = lane(&mut shard, "none", 0, None);
        let now = START + Duration::from_millis(950);
        shard.wait_for_connection(busy, now);
        assert_eq!(closed(&mut shard), [0_u64; 0]);
        assert!(shard.lanes[busy].timer.is_some(), "it asks again");
        shard.wait_for_connection(busy, START + Duration::from_secs(1));
        assert_eq!(closed(&mut shard), [2], "the one that has been idle for longest");
        // A lane without any takes what there is.
        shard.wait_for_connection(none, now);
        assert_eq!(closed(&mut shard), [1]);
        shard.wait_for_connection(none, now);
        assert_eq!(closed(&mut shard), [0_u64; 0]);
    }

    #[test]
    fn what_is_taken_or_gone_is_idle_no_more() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let mut shard = shard(&queue);
        let one = lane(&mut shard, "one", 1, Some(START));
        let two = lane(&mut shard, "two", 1, Some(START));
        assert_eq!(shard.take_idle(one), Some(ConnectionId(1)));
        assert_eq!(shard.take_idle(one), None);
        shard.forget_idle(two, ConnectionId(2));
        assert!(shard.idle.is_empty() && shard.lanes[two].idle.is_empty());
        shard.keep_idle(one, ConnectionId(1), START);
        shard.keep_idle(two, ConnectionId(2), START);
        shard.close_all_idle();
        assert_eq!(closed(&mut shard), [1, 2]);
        assert!(shard.lanes.iter().all(|(_, lane)| lane.idle.is_empty()));
    }
}
