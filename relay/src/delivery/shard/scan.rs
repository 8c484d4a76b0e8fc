//! What a shard asks the store for by itself: queues that wake, units whose time is up, senders who want to hear of a delay.
//!
//! All three are indexes in order of time, whose beginnings fill with deleted keys until RocksDB compacts them. So a scan goes on
//! where the last one ended, less a margin for what comes a little out of order, and only every so often from the beginning.

use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{DeadlineKey, HoldScope, QueueId, UnitKey};

use crate::delivery::agenda::place;
use crate::delivery::exchange::Word;
use crate::delivery::parked::{FIRST, wake};

use super::{Effect, Ending, Job, MAX_ENDINGS, SCAN_EVERY, SCAN_PAGE, Shard, Timer, operator, parked};

/// A scan begins so much before the moment of the last one: an accept may have been a while on its way.
const MARGIN: Duration = Duration::from_secs(10);

/// So often a scan begins at the beginning: a note on a queue may have been lost, a unit may have been on the wire.
const WHOLE_EVERY: Duration = Duration::from_secs(15);

/// So often the catalogue's far end is looked at: a clock that was ahead is put right at a start, or shows by itself, and queues
/// whose mail is held by its clients are there, too.
pub(super) const FAR_EVERY: Duration = Duration::from_secs(600);

/// The last moment of those that are not parked.
const BEFORE_PARKED: Timestamp = Timestamp(FIRST.0 - 1);

/// How far the indexes were gone through.
#[derive(Default)]
pub(super) struct Scans {
    catalogue: Progress<(Timestamp, QueueId)>,
    /// Through what is parked, up to what is over.
    over: Progress<(Timestamp, QueueId)>,
    pub(super) pass: parked::Pass,
    /// Through its far end.
    far: Progress<(Timestamp, QueueId)>,
    /// All of that was gone through once.
    far_known: bool,
    /// There was no room for a queue that was found there since its beginning.
    far_refused: bool,
    deadlines: Progress<DeadlineKey>,
    /// What was overdue at the start was passed over so far.
    left_time: bool,
    notices: Progress<DeadlineKey>,
    late: Progress<DeadlineKey>,
}

/// Where to go on in an index.
struct Progress<K> {
    after: Option<K>,
    /// More was found than could be taken in.
    behind: bool,
    /// When the last scan from the beginning began, and the last one of all.
    whole: Option<Timestamp>,
    last: Timestamp,
}

impl<K> Default for Progress<K> {
    fn default() -> Self {
        Self {
            after: None,
            behind: false,
            whole: None,
            last: Timestamp(0),
        }
    }
}

impl<K: Copy> Progress<K> {
    /// After which key a scan begins now; `None`: at the beginning.
    fn begin(&mut self, now: Timestamp) -> Option<K> {
        let every = if self.behind {
            WHOLE_EVERY * 20
        } else {
            WHOLE_EVERY
        };
        self.begin_every(every, now)
    }

    /// The same, with this long between scans from the beginning.
    fn begin_every(&mut self, every: Duration, now: Timestamp) -> Option<K> {
        let is_over = |whole: Timestamp| now >= whole + every;
        // A clock that was set back has been ahead: what it said then is no place to go on from.
        if now < self.last || self.whole.is_none_or(is_over) {
            self.after = None;
            self.whole = Some(now);
        }
        self.last = now;
        self.after
    }

    /// All was taken in up to `end`.
    fn reached(&mut self, end: K) {
        (self.after, self.behind) = (Some(end), false);
    }

    /// There is more after `key`, or may be.
    fn stopped(&mut self, key: Option<K>) {
        (self.after, self.behind) = (key, true);
    }
}

impl Scans {
    /// The next ones begin at the beginning.
    pub(super) fn forget(&mut self) {
        *self = Self {
            far_known: self.far_known,
            pass: self.pass,
            ..Self::default()
        };
    }
}

impl Shard {
    /// Asks the catalogue for queues that wake, and the deadline index for units that expire.
    pub(super) fn scan(&mut self, now: Timestamp) {
        self.warm_up(now);
        // Once in a while.
        if self.place.is_first() && (now.0 / 1_000).is_multiple_of(30) {
            self.place.ledger().tidy(now);
        }
        self.forget_detours(now);
        if self.draining {
            return;
        }
        self.timers.retain(|(_, timer)| *timer != Timer::Scan);
        self.timers.insert((now + SCAN_EVERY, Timer::Scan));
        if self.queue.is_failing() {
            // Notes on queues are lost with its last groups.
            self.scans.pass.begin_anew(now);
            return;
        }
        self.suspended_as_stored(now);
        if self.place.is_first() {
            self.grace.note(&self.queue, now);
        }
        self.forget_lingering(now);
        self.forget_rests(now);
        self.delete_mended();
        self.look_after_adjustments(now);
        self.wake_queues(now);
        self.wake_others(now);
        self.wake_far_queues(now);
        self.go_through_parked(now);
        self.hasten(now);
        self.expire(now);
        self.tell_of_delays(now);
        // Another shard may have closed a connection.
        self.feed_starved(now);
    }

    /// Those that are due, and those whose suspension is over.
    fn wake_queues(&mut self, now: Timestamp) {
        let (soon, before) = (now + SCAN_EVERY, now - MARGIN);
        self.wake_part(|scans| &mut scans.catalogue, (Timestamp(0), soon), before, now);
        let (over, before) = (wake(Some(now)), wake(Some(before)));
        self.wake_part(|scans| &mut scans.over, (FIRST, over), before, now);
    }

    /// Wakes queues of this part of the catalogue. The next time it is gone on with from `before` on.
    fn wake_part(
        &mut self,
        progress: fn(&mut Scans) -> &mut Progress<(Timestamp, QueueId)>,
        (first, until): (Timestamp, Timestamp),
        before: Timestamp,
        now: Timestamp,
    ) {
        let mut after = progress(&mut self.scans).begin(now);
        while self.has_memory() {
            let from = after.max(Some((first, QueueId(0))));
            let Some(page) = self.read(now, |queue| queue.waking(from, until, SCAN_PAGE)) else {
                return;
            };
            let is_last = page.len() < SCAN_PAGE;
            for (wake, id) in page {
                if self.is_mine(id) && !self.active.contains_key(&id) {
                    if !self.has_memory() {
                        return progress(&mut self.scans).stopped(after);
                    }
                    if self.activate(id, now) {
                        self.look_at(id, now);
                    }
                }
                after = Some((wake, id));
            }
            if is_last {
                return progress(&mut self.scans).reached((before, QueueId(u64::MAX)));
            }
        }
        progress(&mut self.scans).stopped(after);
    }

    /// Wakes queues that are to wake later than any of them should: the clock was ahead when that was written, and has been put
    /// right before the start. Most of the time there are none but those whose mail is held, which go back to sleep, and this is one
    /// seek in a while.
    ///
    /// The first time all are woken that sleep longer than the schedule allows. Later on those that rest are left, since the clock moves at
    /// starts only.
    fn wake_far_queues(&mut self, now: Timestamp) {
        let is_first = !self.scans.far_known;
        let longest = match is_first {
            true => self.longest_wait(),
            false => self.longest_sleep(),
        };
        // However many suspended queues there are to go through, the first time comes to its end.
        let every = match is_first && self.scans.far.behind {
            true => Duration::MAX,
            false => FAR_EVERY,
        };
        let far = (now + longest, QueueId(u64::MAX));
        let last = self.scans.far.whole;
        let after = self.scans.far.begin_every(every, now);
        if !self.scans.far.behind && self.scans.far.whole == last {
            return;
        }
        let after = after.max(Some(far));
        let Some(page) = self.read(now, |queue| queue.waking(after, BEFORE_PARKED, SCAN_PAGE)) else {
            return;
        };
        for &(_, id) in &page {
            if !self.is_mine(id) {
                continue;
            }
            if self.activate(id, now) {
                self.look_at(id, now);
            }
            self.scans.far_refused |= !self.active.contains_key(&id) && !self.has_memory();
        }
        if self.scans.far.whole.is_none() {
            // A read failed: all begins anew.
            return;
        }
        match page.last() {
            Some(&last) if page.len() == SCAN_PAGE => self.scans.far.stopped(Some(last)),
            _ => {
                self.scans.far.reached(far);
                self.scans.far_known |= !std::mem::take(&mut self.scans.far_refused);
            }
        }
    }

    /// Ends as many units that are overdue as there is room for. The next scan goes on where this one ended, so that units
    /// which can't be ended now are not in the way of others.
    fn expire(&mut self, now: Timestamp) {
        let room = MAX_ENDINGS.saturating_sub(self.endings);
        if room == 0 || crate::sabotage::is_on("no-expiry") {
            return;
        }
        let held = self.grace.holds_before(now);
        if held.is_none() && std::mem::take(&mut self.scans.left_time) {
            self.scans.deadlines = Progress::default();
        }
        let (place, mut after) = (self.place.clone(), self.scans.deadlines.begin(now));
        if let Some(start) = held {
            self.scans.left_time = true;
            after = after.max(Some(DeadlineKey::before(start)));
        }
        let at_home = |queue| place.home_elsewhere(queue).is_none();
        let Some((units, more)) = self.read(now, |queue| queue.expired(now, after, room, at_home)) else {
            return;
        };
        match more {
            Some(key) => self.scans.deadlines.stopped(Some(key)),
            None => self.scans.deadlines.reached(DeadlineKey::before(now - MARGIN)),
        }
        for unit in units {
            self.find_expired(unit, now);
        }
    }

    /// Has the shard that holds the unit's queue end it. One that has just given it back says so to its home, where the return
    /// was heard by then.
    pub(super) fn find_expired(&mut self, unit: UnitKey, now: Timestamp) {
        let home = self.place.home_elsewhere(unit.queue);
        let elsewhere = home.or_else(|| self.lent.get(&unit.queue).copied());
        if self.active.contains_key(&unit.queue) {
            self.expire_unit(unit, now);
        } else if let Some(shard) = elsewhere.filter(|_| !self.draining) {
            self.tell(shard, Word::Expired(unit));
        } else if self.activate_anyway(unit.queue, now) {
            self.expire_unit(unit, now);
        }
    }

    /// Room has come free: if more is overdue, it need not wait for the next scan.
    pub(super) fn go_on_ending(&mut self, now: Timestamp) {
        // While the store fails no end is recorded, and each that begins is kept in memory until it is.
        if self.draining || self.endings > MAX_ENDINGS / 2 || self.queue.is_failing() {
            return;
        }
        if self.scans.deadlines.behind {
            self.expire(now);
        }
        if self.scans.notices.behind || self.scans.late.behind {
            self.tell_of_delays(now);
        }
    }

    /// Senders who asked for it hear of a delay, whatever keeps their mail from being tried (RFC 3461 §5.2.5). It is forgotten
    /// as soon as it is on its way: a crash in between loses the notice, and nothing else.
    fn tell_of_delays(&mut self, now: Timestamp) {
        self.tell_who_asked(now);
        self.tell_who_named_a_time(now);
    }

    fn tell_who_asked(&mut self, now: Timestamp) {
        let room = MAX_ENDINGS.saturating_sub(self.endings);
        if room == 0 {
            return;
        }
        let before = now - self.settings.delay_notice_after;
        let (place, after) = (self.place.clone(), self.scans.notices.begin(before));
        let at_home = |queue| place.home_elsewhere(queue).is_none();
        let Some((found, more)) = self.read(now, |queue| queue.delayed(before, after, room, at_home)) else {
            return;
        };
        match more {
            Some(key) => self.scans.notices.stopped(Some(key)),
            None => self.scans.notices.reached(DeadlineKey::before(before - MARGIN)),
        }
        self.tell_of(found, now);
    }

    /// RFC 2852 §4.1.3: at that time, whatever the configuration says of delays.
    fn tell_who_named_a_time(&mut self, now: Timestamp) {
        let room = MAX_ENDINGS.saturating_sub(self.endings);
        if room == 0 {
            return;
        }
        let (place, after) = (self.place.clone(), self.scans.late.begin(now));
        let at_home = |queue| place.home_elsewhere(queue).is_none();
        let Some((found, more)) = self.read(now, |queue| queue.late(now, after, room, at_home)) else {
            return;
        };
        match more {
            Some(key) => self.scans.late.stopped(Some(key)),
            None => self.scans.late.reached(DeadlineKey::named_before(now - MARGIN)),
        }
        self.tell_of(found, now);
    }

    fn tell_of(&mut self, found: Vec<(DeadlineKey, Option<UnitKey>)>, now: Timestamp) {
        let mut told = Vec::new();
        for (key, unit) in found {
            told.push(key);
            if let Some(unit) = unit {
                self.find_delayed(unit, now);
            }
        }
        self.queue.forget_notices(told);
    }

    /// Has the shard that holds the unit's queue tell of its delay. One that has just given it back says so to its home,
    /// where the return was heard by then.
    pub(super) fn find_delayed(&mut self, unit: UnitKey, now: Timestamp) {
        let home = self.place.home_elsewhere(unit.queue);
        let elsewhere = home.or_else(|| self.lent.get(&unit.queue).copied());
        if self.active.contains_key(&unit.queue) {
            self.tell_of_delay(unit, now);
        } else if let Some(shard) = elsewhere.filter(|_| !self.draining) {
            self.tell(shard, Word::Delayed(unit));
        } else if self.activate_anyway(unit.queue, now) {
            self.tell_of_delay(unit, now);
        }
    }

    /// Has a delay told of. A unit that is being worked on tells of it by its outcome.
    fn tell_of_delay(&mut self, unit: UnitKey, now: Timestamp) {
        let cause = self.cause(unit.queue, now);
        if let Some(active) = self.active.get_mut(&unit.queue)
            && active.agenda.claim_at(place(&unit))
        {
            self.endings += 1;
            let job = Job::stored(unit);
            self.effects.push(Effect::End {
                lane: None,
                job,
                ending: Ending::Delayed(cause.map(|cause| cause.to_string())),
            });
        }
    }

    /// What holds a queue now, for the report on a unit that expires unsent.
    pub(super) fn cause(&self, id: QueueId, now: Timestamp) -> Option<Arc<str>> {
        let active = self.active.get(&id)?;
        if let Some(record) = self.suspension(id, &active.name, now) {
            return Some(operator::cause(record).into());
        }
        let held_back = active.held.as_ref().filter(|held| held.until > now);
        if let Some(held) = self.held_by_adjustment(id, now).or(held_back) {
            return Some(held.cause.clone());
        }
        let by_lane = active.stands.iter().find_map(|stand| {
            let rest = self.lanes.get(stand.lane)?.rest.as_ref()?;
            Some(rest.cause.as_str().into())
        });
        let detour = active.detour.as_ref();
        let by_lane = by_lane.or_else(|| detour.map(|detour| detour.closed.cause.clone()));
        by_lane.or_else(|| {
            self.rest(&HoldScope::Domain(active.name.domain.clone()), now)
                .map(|rest| rest.cause.into())
        })
    }

    /// Ends a unit of a queue in memory whose time is up. If it is being worked on, then when it comes back.
    pub(super) fn expire_unit(&mut self, unit: UnitKey, now: Timestamp) {
        let cause = self.cause(unit.queue, now);
        let Some(active) = self.active.get_mut(&unit.queue) else {
            return;
        };
        if !active.agenda.claim_at(place(&unit)) {
            self.overdue.insert(unit);
        } else {
            self.endings += 1;
            let job = Job::stored(unit);
            self.effects.push(Effect::End {
                lane: None,
                job,
                ending: Ending::Expired(cause.map(|cause| cause.to_string())),
            });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mail_core::MessageId;
    use queue::store::MemoryStore;
    use queue::{End, Fate, Queue, Selector, Settle, SuspensionRecord};

    use super::super::operator::tests::{adjustment, shard, shard_of};
    use super::*;
    use crate::control::tests::{accept_held, accept_one};
    use crate::delivery::shard::fleet::{Answer, Fleet};
    use crate::delivery::shard::grace::Grace;
    use crate::delivery::shard::{MAX_ACTIVE, Settled};

    const START: Timestamp = Timestamp(1_700_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    /// So many messages, one to each of these domains.
    pub(in crate::delivery::shard) async fn fill(
        queue: &Queue,
        count: u64,
        domain: impl Fn(u64) -> String,
    ) -> Vec<UnitKey> {
        let mut units = Vec::new();
        for number in 0..count {
            units.extend(accept_one(queue, number, &[&domain(number)]).await.units);
        }
        units
    }

    pub(in crate::delivery::shard) fn suspended() -> SuspensionRecord {
        SuspensionRecord {
            selector: Selector::default(),
            since: START,
            until: None,
            reason: "a test".into(),
            by: "uid 0".into(),
        }
    }

    /// Reads of a shard that goes on for a minute.
    fn minute(shard: &mut Shard, store: &MemoryStore, from: Timestamp) -> u64 {
        store.reads();
        for second in 0..60 {
            shard.tick(from + SECOND * second);
            shard.take_effects();
        }
        store.reads()
    }

    #[tokio::test]
    async fn what_finds_no_room_at_the_far_end_is_looked_for_again() {
        for (others, known) in [(60, false), (10, true)] {
            let store = MemoryStore::counting();
            let queue = Queue::in_memory(store.clone()).unwrap();
            fill(&queue, others, |number| format!("d{number}.test")).await;
            accept_held(&queue, 250, "far.test", START + SECOND * 3_000).await;
            let mut shard = shard_of(&queue, "[delivery.retry]\ncap = \"10m\"\n");
            minute(&mut shard, &store, START);
            assert_eq!(shard.scans.far_known, known, "beside {others} queues");
        }
    }

    #[tokio::test]
    async fn all_that_is_overdue_ends_at_once_however_much_it_is() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let count = 10 * MAX_ENDINGS;
        fill(&queue, count as u64, |number| format!("d{}.test", number % 7)).await;
        queue.suspend(suspended()).await.unwrap();
        let mut shard = shard(&queue);
        let later = START + Duration::from_secs(40 * 86_400);
        shard.tick(later);
        let mut ended = 0;
        loop {
            let effects = shard.take_effects();
            assert!(effects.len() <= MAX_ENDINGS, "bounded at any moment");
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                let Effect::End { lane, job, ending } = effect else {
                    continue;
                };
                assert!(matches!(ending, Ending::Expired(Some(_))), "{ending:?}");
                queue.settle(expired(job.unit)).await.unwrap().await.unwrap();
                shard.settled(&job.unit, Settled::Gone, later);
                shard.ended(lane, later);
                ended += 1;
            }
        }
        assert_eq!(ended, count, "without a second scan");
    }

    /// Their ends would be kept in memory until it works again, however many there are.
    #[tokio::test]
    async fn nothing_more_is_ended_while_the_store_fails() {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let count = 3 * MAX_ENDINGS;
        fill(&queue, count as u64, |number| format!("d{}.test", number % 7)).await;
        queue.suspend(suspended()).await.unwrap();
        let mut shard = shard(&queue);
        let later = START + Duration::from_secs(40 * 86_400);
        shard.tick(later);
        store.set_failing(true);
        let mut ended = 0;
        loop {
            let effects = shard.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                let Effect::End { lane, job, .. } = effect else {
                    continue;
                };
                // It is kept, and answered when the store is back.
                assert!(queue.settle(expired(job.unit)).await.is_err());
                shard.ended(lane, later);
                ended += 1;
            }
        }
        assert!(queue.is_failing());
        assert!(ended <= MAX_ENDINGS, "{ended}");
    }

    pub(in crate::delivery::shard) fn expired(unit: UnitKey) -> Settle {
        Settle {
            unit,
            at: unit.due,
            attempt: 0,
            hop: None,
            ends: vec![End {
                mailbox: "to@d.test".parse().unwrap(),
                fate: Fate::Expired,
                reply: "4.4.7".into(),
            }],
            again: None,
            reports: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_scan_passes_what_was_deleted_once_and_not_each_second() {
        let store = MemoryStore::counting();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let units = fill(&queue, 2_000, |number| format!("d{number}.test")).await;
        for unit in units {
            queue.settle(expired(unit)).await.unwrap().await.unwrap();
        }
        let mut shard = shard(&queue);
        // Accepted at 1 s of the epoch or so, and gone: catalogue and deadlines begin with 2,000 deleted keys each.
        let reads = minute(&mut shard, &store, START + Duration::from_secs(40 * 86_400));
        assert!(reads < 5 * 2 * 2_000 + 1_000, "{reads} keys in a minute");
    }

    #[tokio::test]
    async fn what_finds_no_room_comes_as_soon_as_there_is_some() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let count = 3 * MAX_ACTIVE as u64;
        fill(&queue, count, |number| format!("d{number}.test")).await;
        let mut shard = shard(&queue);
        let mut seen = std::collections::HashSet::new();
        for second in 0..4 {
            let now = START + SECOND * second;
            shard.tick(now);
            assert!(shard.load().1 <= MAX_ACTIVE);
            let active: Vec<_> = shard.active.keys().copied().collect();
            for id in active {
                seen.insert(id);
                let (units, _) = queue.due(id, (Timestamp(0), MessageId::LEAST, 0), 9).unwrap();
                for unit in units {
                    queue.settle(expired(unit)).await.unwrap().await.unwrap();
                }
                shard.active.remove(&id);
            }
        }
        assert_eq!(seen.len() as u64, count);
    }

    /// By then the scans are past it, and would come by from the beginning only in a while.
    #[tokio::test]
    async fn what_comes_back_after_its_deadline_ends_at_once() {
        for is_moved in [false, true] {
            let queue = Queue::in_memory(MemoryStore::new()).unwrap();
            let unit = fill(&queue, 1, |_| "d.test".to_owned()).await[0];
            let mut shard = shard(&queue);
            let late = START + Duration::from_secs(40 * 86_400);
            assert!(shard.activate(unit.queue, late));
            let active = shard.active.get_mut(&unit.queue).unwrap();
            assert!(active.agenda.claim_at(place(&unit)));
            let endings = |shard: &mut Shard| {
                let ends = |effect: &Effect| matches!(effect, Effect::End { .. });
                shard.take_effects().iter().filter(|effect| ends(effect)).count()
            };
            for second in 0..59 {
                shard.tick(late + SECOND * second);
                assert_eq!(endings(&mut shard), 0, "it is on the wire");
            }
            let (now, due) = (late + SECOND * 59, late + SECOND * 600);
            let settled = match is_moved {
                true => {
                    queue.retry(unit, due, "a test").await.unwrap();
                    Settled::Due(due)
                }
                false => Settled::Untouched,
            };
            shard.settled(&unit, settled, now);
            assert_eq!(endings(&mut shard), 1, "moved: {is_moved}");
            assert!(shard.overdue.is_empty());
        }
    }

    /// Whoever holds it, and whichever shard is the home of its queue.
    #[tokio::test]
    async fn what_expires_outside_of_memory_tells_what_it_was_held_for() {
        for (suspended, cause) in [(true, "suspended by uid 7: a test"), (false, "554 5.3.2 no")] {
            let mut fleet = Fleet::new(2, "");
            fleet.peer = Some(Box::new(|_, _| Answer::Refuses("554 5.3.2 no")));
            let record = Arc::new(adjustment(None, fleet.now));
            for shard in fleet.shards.iter_mut().filter(|_| suspended) {
                shard.hear(Word::Adjusted(record.clone()), START);
            }
            for number in 0..8 {
                let domain = format!("d{number}.test");
                fleet.accept(1, "t", "transactional", &domain, 10).await;
            }
            fleet.run(SECOND * 600).await;
            let queues = fleet.queue.queues(None, 9).unwrap();
            assert_eq!(queues.len(), 8);
            for (id, _) in queues {
                let from = (Timestamp(0), MessageId::LEAST, 0);
                let unit = fleet.queue.due(id, from, 1).unwrap().0[0];
                let home = &mut fleet.shards[usize::try_from(id.0 % 2).unwrap()];
                assert!(!home.lent.contains_key(&id) && !home.active.contains_key(&id));
                assert!(home.activate_anyway(id, fleet.now));
                home.expire_unit(unit, fleet.now);
                let effects = home.take_effects();
                let [Effect::End { ending, .. }] = &effects[..] else {
                    panic!("{effects:?}");
                };
                assert_eq!(*ending, Ending::Expired(Some(cause.into())), "{id:?}");
            }
        }
    }

    /// CASES: the clock three days ahead after a start; or a relay that was away for so long.
    #[tokio::test]
    async fn what_expired_while_nobody_ran_is_left_an_hour_to_be_tried_in() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        fill(&queue, 3, |number| format!("d{number}.test")).await;
        queue.suspend(suspended()).await.unwrap();
        let start = START + Duration::from_secs(90 * 86_400);
        let mut shard = shard(&queue);
        shard.grace = Grace::begin(&queue, start);
        let mut endings = |seconds: u64| {
            shard.tick(start + SECOND * u32::try_from(seconds).unwrap());
            let effects = shard.take_effects();
            let ended = |effect: &&Effect| {
                matches!(
                    effect,
                    Effect::End {
                        ending: Ending::Expired(_),
                        ..
                    }
                )
            };
            effects.iter().filter(ended).count()
        };
        for seconds in [0, 1, 20, 600, 3_590, 3_599] {
            assert_eq!(endings(seconds), 0, "{seconds}");
        }
        assert_eq!(endings(3_600), 3);
    }

    /// Whether the shard has begun to look the domain up that the unit goes to.
    fn begins(shard: &mut Shard, now: Timestamp) -> bool {
        shard.tick(now);
        let effects = shard.take_effects();
        effects.iter().any(|effect| matches!(effect, Effect::Resolve(_)))
    }

    /// RFC 4865: what is held is no mail of a clock that was ahead, before a restart and after it.
    #[tokio::test]
    async fn what_is_held_waits_for_its_release_and_what_a_clock_ahead_wrote_does_not() {
        let days = |days: u64| START + Duration::from_secs(days * 86_400);
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let held = accept_held(&queue, 1, "held.test", days(20)).await;
        let mut first = shard(&queue);
        first.hear(
            Word::Accepted(crate::delivery::exchange::Accepted::stored(held.units)),
            START,
        );
        let mut second = shard(&queue);
        for shard in [&mut first, &mut second] {
            assert!(!begins(shard, START));
            assert_eq!(shard.load().1, 0, "it does not stay in memory");
            assert!(!begins(shard, START + FAR_EVERY + SECOND), "looked at again");
            assert!(!begins(shard, days(20) - SECOND * 2));
            assert!(begins(shard, days(20)));
        }
        // A month more than any configuration allows; and what was put off to the same day.
        let far = Queue::in_memory(MemoryStore::new()).unwrap();
        accept_held(&far, 1, "far.test", days(400)).await;
        assert!(begins(&mut shard(&far), START));
        let moved = Queue::in_memory(MemoryStore::new()).unwrap();
        let unit = accept_one(&moved, 1, &["moved.test"]).await.units[0];
        moved
            .retry(unit, days(20), "a clock that was ahead")
            .await
            .unwrap();
        assert!(begins(&mut shard(&moved), START));
    }

    #[tokio::test]
    async fn queues_of_held_mail_cost_little_while_they_wait() {
        let store = MemoryStore::counting();
        let queue = Queue::in_memory(store.clone()).unwrap();
        for number in 0..200 {
            let until = START + Duration::from_secs(20 * 86_400);
            accept_held(&queue, number, &format!("d{number}.test"), until).await;
        }
        let mut shard = shard(&queue);
        minute(&mut shard, &store, START);
        let reads = minute(&mut shard, &store, START + SECOND * 60);
        assert!(reads < 50 * 60, "{reads} in a minute");
    }

    #[tokio::test]
    async fn resumed_queues_are_woken_though_nobody_remembers_them() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        fill(&queue, 10, |number| format!("d{number}.test")).await;
        queue.suspend(suspended()).await.unwrap();
        let mut first = shard(&queue);
        first.tick(START);
        assert_eq!(first.load().1, 0);
        // After a restart no shard knows which queues it has parked.
        queue.resume(Selector::default(), "uid 0", START).await.unwrap();
        let mut second = shard(&queue);
        second.tick(START + SECOND);
        assert_eq!(second.load().1, 0, "they sleep in the catalogue");
        for (id, _) in queue.queues(None, 99).unwrap() {
            queue.wake(id, START + SECOND).await.unwrap();
        }
        second.suspensions(Arc::new([]), START + SECOND);
        second.tick(START + SECOND * 2);
        assert_eq!(second.load().1, 10);
    }
}
