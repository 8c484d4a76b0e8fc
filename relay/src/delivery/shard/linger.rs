//! Queues that have become empty and stay in memory for a while.

use std::time::Duration;

use mail_core::Timestamp;
use queue::QueueId;

use super::Shard;

/// An empty queue stays for so long, as long as there is room: whoever writes to a domain often writes again, and then no record is
/// read, no site looked up, and no message read back from the store. To a thousand domains by turns that is most of a message's
/// cost (docs/performance.md).
const LINGER: Duration = Duration::from_secs(30);

impl Shard {
    /// Keeps a queue that is empty, where there is room.
    pub(super) fn linger(&mut self, id: QueueId, now: Timestamp) {
        let room = self.active.len() <= self.most();
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if !room || active.leaves_for.is_some() {
            return self.unload(id, None, now);
        }
        if active.empty_since.is_none() {
            active.empty_since = Some(now);
            self.lingering.insert((now, id));
        }
    }

    /// It is empty no more, or leaves.
    pub(super) fn stir(&mut self, id: QueueId) {
        let since = self
            .active
            .get_mut(&id)
            .and_then(|active| active.empty_since.take());
        if let Some(since) = since {
            self.lingering.remove(&(since, id));
        }
    }

    /// Those that have been empty for long enough leave memory.
    pub(super) fn forget_lingering(&mut self, now: Timestamp) {
        while let Some(&(since, id)) = self.lingering.first()
            // A clock that was set back has been ahead.
            && (since + LINGER <= now || since > now)
        {
            self.unload(id, None, now);
        }
    }

    /// Where memory is full, the queues that have been empty for longest make room.
    pub(super) fn make_memory(&mut self, now: Timestamp) {
        while self.active.len() >= self.most()
            && let Some(&(_, id)) = self.lingering.first()
        {
            self.unload(id, None, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use mail_core::MessageId;
    use queue::store::MemoryStore;
    use queue::{Queue, UnitKey};

    use super::super::operator::tests::shard;
    use super::super::scan::tests::expired;
    use super::*;
    use crate::control::tests::accept_one;
    use crate::delivery::courier::Kept;
    use crate::delivery::exchange::{Doors, Seat, Word, open};
    use crate::delivery::lane::ConnectionId;
    use crate::delivery::route::Route;
    use crate::delivery::shard::{Effect, Job, MAX_ACTIVE, Settled};
    use crate::prepare::tests::{NOW, message};
    use crate::world::MxAnswer;

    struct World {
        store: MemoryStore,
        queue: Queue,
        shard: Shard,
        doors: Doors,
        seat: Seat,
        budget: Arc<AtomicU64>,
        accepted: u8,
    }

    impl World {
        fn new() -> Self {
            let store = MemoryStore::counting();
            let queue = Queue::in_memory(store.clone()).unwrap();
            let (doors, mut seats) = open(1);
            Self {
                shard: shard(&queue),
                store,
                queue,
                doors,
                seat: seats.remove(0),
                budget: Arc::new(AtomicU64::new(1 << 20)),
                accepted: 0,
            }
        }

        /// A message to `ok.test` comes in, with what is to be done about it.
        async fn accept(&mut self) -> Vec<Effect> {
            self.accepted += 1;
            let mut of = Arc::unwrap_or_clone(message("Subject: x\r\n\r\nx\r\n"));
            of.id = MessageId::new(NOW, &[self.accepted; 10]);
            of.units.truncate(1);
            let of = Arc::new(of);
            let units = self.queue.accept(of.clone()).await.unwrap().units;
            self.store.reads();
            self.doors.tell(&units, Kept::within(&self.budget, of)).await;
            let word: Word = self.seat.words.recv().await.unwrap();
            self.shard.hear(word, NOW);
            self.shard.take_effects()
        }

        async fn deliver(&mut self, unit: &UnitKey) {
            self.queue.settle(expired(*unit)).await.unwrap().await.unwrap();
            self.shard.settled(unit, Settled::Gone, NOW);
        }
    }

    /// The first message comes in, finds its site and is delivered.
    async fn first(world: &mut World) {
        let effects = world.accept().await;
        let [Effect::Resolve(domain)] = &effects[..] else {
            panic!("{effects:?}");
        };
        let hosts = Route::from_answer(domain, MxAnswer::Implicit, &[]);
        world.shard.resolved(domain, Ok(hosts), NOW);
        let effects = world.shard.take_effects();
        let [
            Effect::Connect {
                lane,
                connection,
                job,
                ..
            },
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        // It was read from the index when its queue came to memory, and still need not be read back.
        assert!(job.message.is_some());
        let (lane, connection): (_, ConnectionId) = (*lane, *connection);
        world.deliver(&job.unit).await;
        world.shard.connection_free(lane, connection, NOW);
        assert_eq!(world.shard.load(), (1, 1), "it lingers");
    }

    #[tokio::test]
    async fn a_queue_seen_lately_costs_a_look_at_its_due_key_and_its_mail_stays_in_memory() {
        let mut world = World::new();
        first(&mut world).await;
        let effects = world.accept().await;
        let reads = world.store.reads();
        let [
            Effect::Send {
                job: Job { message: Some(_), .. },
                ..
            },
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert!(reads <= 1, "{reads} reads");
    }

    #[tokio::test]
    async fn an_empty_queue_leaves_after_a_while() {
        let mut world = World::new();
        first(&mut world).await;
        for (seconds, there) in [(1, 1), (29, 1), (31, 0)] {
            world.shard.tick(NOW + Duration::from_secs(seconds));
            assert_eq!(world.shard.load().1, there, "{seconds}");
        }
    }

    #[tokio::test]
    async fn empty_queues_are_in_nobodys_way() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let mut shard = shard(&queue);
        for number in 0..3 * MAX_ACTIVE as u64 {
            let domain = format!("d{number}.test");
            let unit = accept_one(&queue, number, &[&domain]).await.units[0];
            shard.hear(Word::Wake(unit.queue), NOW);
            assert!(
                shard.active.contains_key(&unit.queue),
                "there is room for {number}"
            );
            queue.settle(expired(unit)).await.unwrap().await.unwrap();
            shard.active.get_mut(&unit.queue).unwrap().agenda = crate::delivery::agenda::Agenda::default();
            shard.look_at(unit.queue, NOW);
            assert!(shard.load().1 <= MAX_ACTIVE);
        }
        assert_eq!(
            shard.lingering.len(),
            MAX_ACTIVE,
            "and what is left of it is used"
        );
    }
}
