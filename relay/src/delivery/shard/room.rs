//! Who has room in memory: whoever comes first, and where there is none left, whoever has less than others.
//!
//! Queues that wait for their turn, or for a limit that opens tomorrow, stay in memory, and one tenant's may be all there is room for. Then
//! who has fewer takes room from who has most, as queues of a router do (McKenney, "Stochastic Fairness Queueing", INFOCOM 1990), until they
//! have as many.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{QueueId, QueueName};

use super::{MAX_ACTIVE, MAX_ENDINGS, Rests, SCAN_EVERY, SCAN_PAGE, Shard};

/// Pages of the catalogue that are looked through at a time for queues of those who have less than others.
const PAGES: usize = 4;

/// A queue that left for another's comes back after this long, if there is room.
const AGAIN: Duration = Duration::from_secs(10);

/// Whose queues are in memory: tenant and stream.
type Whose = (Arc<str>, Arc<str>);

/// The queues in memory by whose they are, and how far the catalogue was looked through for others.
#[derive(Default)]
pub(super) struct Rooms {
    of: HashMap<Whose, BTreeSet<QueueId>>,
    /// Who has how many, in that order.
    counts: BTreeSet<(usize, Whose)>,
    after: Option<(Timestamp, QueueId)>,
}

impl Rooms {
    fn whose(name: &QueueName) -> Whose {
        (name.tenant.clone(), name.stream.clone())
    }

    pub(super) fn enter(&mut self, id: QueueId, name: &QueueName) {
        self.change(Self::whose(name), |queues| queues.insert(id));
    }

    pub(super) fn leave(&mut self, id: QueueId, name: &QueueName) {
        self.change(Self::whose(name), |queues| queues.remove(&id));
    }

    fn change(&mut self, whose: Whose, how: impl FnOnce(&mut BTreeSet<QueueId>) -> bool) {
        let queues = self.of.entry(whose.clone()).or_default();
        let before = queues.len();
        how(queues);
        let after = queues.len();
        if after == 0 {
            self.of.remove(&whose);
        }
        let of_before = (before, whose);
        self.counts.remove(&of_before);
        if after > 0 {
            self.counts.insert((after, of_before.1));
        }
    }

    /// Whether anybody has more than one, so that there may be somebody to take room from.
    fn any_has_several(&self) -> bool {
        self.counts.last().is_some_and(|(most, _)| *most > 1)
    }

    /// The queues of who has most, where that is more than who wants one more would have with it.
    fn of_most(&self, name: &QueueName) -> Option<&BTreeSet<QueueId>> {
        let has = self.of.get(&Self::whose(name)).map_or(0, BTreeSet::len);
        let (most, whose) = self.counts.last()?;
        self.of.get(whose).filter(|_| *most > has + 1)
    }
}

impl Shard {
    /// Queues that this shard may have in memory.
    pub(super) fn most(&self) -> usize {
        MAX_ACTIVE / self.place.count()
    }

    pub(super) fn has_memory(&self) -> bool {
        self.active.len() - self.lingering.len() < self.most()
    }

    /// Whether room for one more may be had of others, whoever wants it.
    pub(super) fn may_take_room(&self) -> bool {
        self.rooms.any_has_several()
    }

    /// Makes room for one more of these where others have more, their newest queues first. False where they do not.
    pub(super) fn take_room(&mut self, name: &QueueName, now: Timestamp) -> bool {
        // For more than one where ends and orders have brought in queues beside.
        for _ in 0..=MAX_ENDINGS {
            if self.has_memory() {
                break;
            }
            let may_leave = |id: &&QueueId| {
                let active = self.active.get(id);
                active.is_some_and(|active| active.agenda.claims() == 0 && !active.hurry)
            };
            let of_most = self.rooms.of_most(name);
            let Some(victim) = of_most.and_then(|queues| queues.iter().rev().find(may_leave).copied()) else {
                return false;
            };
            self.unload(victim, Some(Rests::Until(now + AGAIN)), now);
        }
        self.has_memory()
    }

    /// Where there is no memory, looks on in the catalogue for queues that others make room for. What has just come in had it at once: these
    /// are those that have been here before.
    pub(super) fn wake_others(&mut self, now: Timestamp) {
        for _ in 0..PAGES {
            if self.has_memory() {
                return;
            }
            let after = self.rooms.after;
            let Some(page) = self.read(now, |queue| queue.waking(after, now + SCAN_EVERY, SCAN_PAGE)) else {
                return;
            };
            for &(_, id) in &page {
                if self.is_mine(id) && !self.active.contains_key(&id) && self.activate(id, now) {
                    self.look_at(id, now);
                }
            }
            self.rooms.after = page.last().copied().filter(|_| page.len() == SCAN_PAGE);
            if self.rooms.after.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::shard::fleet::{Answer, Fleet, Sent};

    const SECOND: Duration = Duration::from_secs(1);
    const SHARDS: usize = 2;

    /// Tenants whose limits leave each a message an hour, with more queues than there is memory for.
    async fn full(tenants: &[&str]) -> Fleet {
        let limit = |tenant: &&str| {
            format!(
                "[tenants.{tenant}]\nsenders = [\"*\"]\n[[limit]]\ntenant = \"{tenant}\"\nmessages_per_hour = 1\n"
            )
        };
        let mut fleet = Fleet::new(SHARDS, &tenants.iter().map(limit).collect::<String>());
        for tenant in tenants {
            for number in 0..2 * MAX_ACTIVE {
                fleet
                    .accept(1, tenant, "bulk", &format!("{tenant}{number}.test"), 10)
                    .await;
            }
        }
        fleet.run(2 * SECOND).await;
        fleet
    }

    fn to_small(sent: &Sent) -> bool {
        sent.domain == "small.test"
    }

    #[tokio::test]
    async fn queues_that_wait_for_their_limit_leave_room_for_who_comes_next() {
        for tenants in [&["a"][..], &["a", "b", "c", "d"]] {
            let mut fleet = full(tenants).await;
            fleet.accept(1, "small", "bulk", "small.test", 10).await;
            fleet.run(SECOND).await;
            assert_eq!(fleet.count(to_small), 1, "{tenants:?}");
            for shard in &fleet.shards {
                let active = shard.load().1;
                assert!(active <= shard.most(), "{active}");
            }
        }
    }

    #[tokio::test]
    async fn who_has_been_here_before_comes_back_though_memory_is_full() {
        let mut fleet = full(&["a"]).await;
        let mut first = true;
        fleet.peer = Some(Box::new(move |sent, _| {
            match to_small(sent) && std::mem::take(&mut first) {
                true => Answer::Refuses("421 4.3.2 later"),
                false => Answer::Takes(Duration::from_millis(50)),
            }
        }));
        fleet.accept(1, "small", "bulk", "small.test", 10).await;
        fleet.run(SECOND).await;
        assert_eq!(fleet.refused.len(), 1);
        fleet.run(1_800 * SECOND).await;
        assert_eq!(fleet.count(to_small), 1);
    }

    /// Ends and orders bring in queues though memory is full.
    #[tokio::test]
    async fn who_comes_while_more_are_in_than_may_be_stays_all_the_same() {
        let mut fleet = full(&["a"]).await;
        let now = fleet.now;
        for shard in &mut fleet.shards {
            let all: Vec<_> = shard.queue.queues(None, 999).unwrap();
            let out = all
                .into_iter()
                .map(|(id, _)| id)
                .filter(|id| !shard.active.contains_key(id));
            for id in out.take(5).collect::<Vec<_>>() {
                assert!(shard.activate_anyway(id, now));
            }
        }
        fleet.accept(1, "small", "bulk", "small.test", 10).await;
        fleet.run(SECOND).await;
        assert_eq!(fleet.count(to_small), 1);
    }
}
