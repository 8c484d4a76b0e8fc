//! What a destination rests for: a lane whose hosts can't be spoken to, a domain that the DNS says nothing of.

use std::collections::BTreeMap;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{HoldRecord, HoldScope, QueueId};

use crate::delivery::adapt::Held;
use crate::delivery::exchange::Word;
use crate::delivery::lane::{Lane, Rest};
use crate::world::log_time;

use super::{CLOCKS_DIFFER, HORIZON, LONGEST_REST, LaneId, MAX_RESTING, Rests, Shard, Stand, Standing};

/// A rest is forgotten when it has been over for the longest wait and so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(86_400);

/// Holds looked through in one scan.
const SWEEP_PAGE: usize = 256;

/// From the end of them to the beginning again.
const SWEEPS_EVERY: Duration = Duration::from_secs(3_600);

/// How far the holds were looked through, and when to go on.
#[derive(Default)]
pub(super) struct Sweep {
    after: Option<HoldScope>,
    at: Timestamp,
    /// How far they were looked through for what reloads have ended; `None`: to the end.
    mended: Option<HoldScope>,
    /// When those that left memory are looked through.
    resting_at: Timestamp,
}

/// Queues that left memory for a rest, and when. Each comes back within [`LONGEST_REST`] by itself.
pub(super) type Resting = BTreeMap<QueueId, Timestamp>;

impl Sweep {
    /// A clock that was ahead may have put it off.
    fn waits(&self, now: Timestamp) -> bool {
        now < self.at && self.at <= now + SWEEPS_EVERY
    }
}

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
            self.note_resting(id, scope, now);
            // Whichever ends brings it back.
            for (scope, held) in others {
                self.note_resting(id, &scope, now);
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

    fn note_resting(&mut self, id: QueueId, scope: &HoldScope, now: Timestamp) {
        let known = self.resting.get_mut(scope).and_then(|queues| queues.get_mut(&id));
        if let Some(since) = known {
            *since = now;
        } else if self.resting_count < MAX_RESTING {
            let queues = self.resting.entry(scope.clone()).or_default();
            queues.insert(id, now);
            self.resting_count += 1;
        }
    }

    /// Drops queues that have come back by the catalogue meanwhile, or have gone: their rest need not wake them. Which shard they came back
    /// at, and whether they ever did, does not matter so.
    fn forget_resting(&mut self, now: Timestamp) {
        if now < self.sweep.resting_at && self.sweep.resting_at <= now + LONGEST_REST {
            return;
        }
        self.sweep.resting_at = now + LONGEST_REST;
        self.resting.retain(|_, queues| {
            queues.retain(|_, since| now < *since + LONGEST_REST * 2);
            !queues.is_empty()
        });
        self.resting_count = self.resting.values().map(BTreeMap::len).sum();
        let resting = &self.resting;
        self.held_scopes.retain(|scope, _| resting.contains_key(scope));
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
        // One that begins later than now was written while the clock was ahead: what its end is worth, nobody knows.
        let stands = |hold: &HoldRecord| {
            let is_sound = hold.since <= now + CLOCKS_DIFFER && !self.is_forgotten(hold, now);
            is_sound && !self.mended.ends(scope, hold)
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

    /// Whether it says nothing more of the destination: had there been mail for it, it would have been tried since.
    fn is_forgotten(&self, hold: &HoldRecord, now: Timestamp) -> bool {
        hold.until + self.backoff.longest() + FORGOTTEN_AFTER < now
    }

    /// Drops what is forgotten of rests, in the store a page at a time: a success deletes its own, but a destination that nobody writes to
    /// any more has none.
    pub(super) fn forget_rests(&mut self, now: Timestamp) {
        self.forget_resting(now);
        if !self.place.is_first() || self.sweep.waits(now) {
            return;
        }
        let after = self.sweep.after.take();
        let page = match self.queue.holds_after(after.as_ref(), SWEEP_PAGE) {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(%error, "holds can't be read");
                Vec::new()
            }
        };
        (self.sweep.after, self.sweep.at) = match page.last().filter(|_| page.len() == SWEEP_PAGE) {
            Some((last, _)) => (Some(last.clone()), now),
            None => (None, now + SWEEPS_EVERY),
        };
        for (scope, hold) in page {
            if self.is_forgotten(&hold, now) {
                self.queue.lift(scope);
            }
        }
    }

    /// A reload has ended rests: from here on [`Shard::delete_mended`] looks for them, at one shard for all.
    pub(in crate::delivery) fn sweep_mended(&mut self) {
        if self.place.is_first() {
            // Only lanes' can be.
            self.sweep.mended = Some(HoldScope::Lane(String::new()));
            self.delete_mended();
        }
    }

    /// Deletes the next page of what reloads have ended: nobody obeys it, but the store's are listed and counted.
    pub(super) fn delete_mended(&mut self) {
        let Some(after) = self.sweep.mended.take() else {
            return;
        };
        match self.queue.holds_after(Some(&after), SWEEP_PAGE) {
            Ok(page) => {
                let last = page.last().filter(|_| page.len() == SWEEP_PAGE);
                self.sweep.mended = last.map(|(scope, _)| scope.clone());
                for (scope, hold) in page {
                    if self.mended.ends(&scope, &hold) {
                        self.queue.lift(scope);
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "holds can't be read");
                self.sweep.mended = Some(after);
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
        for id in woken.into_keys() {
            match self.place.home_elsewhere(id) {
                Some(home) => self.tell(home, Word::Wake(id)),
                None => self.wake(id, now),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::{Fleet, START};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn domain(number: usize) -> HoldScope {
        HoldScope::Domain(format!("d{number}.test").parse().unwrap())
    }

    /// Mail for a destination that nobody wrote to since then begins with the first wait, and the store does not keep what is of no use.
    #[tokio::test]
    async fn what_a_destination_rested_for_long_ago_is_forgotten() {
        let mut fleet = Fleet::new(2, "");
        const OLD: usize = 3 * SWEEP_PAGE;
        let over = |ago: Duration| HoldRecord {
            since: START,
            until: Timestamp(START.0 - u64::try_from(ago.as_millis()).unwrap()),
            failures: 40,
            cause: "4.4.3 SERVFAIL".into(),
        };
        for number in 0..OLD {
            fleet.queue.hold(domain(number), over(400 * DAY));
        }
        let recent = HoldScope::Lane("mx.recent.test".into());
        fleet.queue.hold(recent.clone(), over(DAY / 2));
        assert_eq!(fleet.shards[1].rest(&domain(7), START), None);
        assert_eq!(fleet.shards[1].rest(&recent, START).unwrap().failures, 40);
        fleet.run(Duration::from_secs(10)).await;
        let left = fleet.queue.holds(9).unwrap().into_iter();
        assert_eq!(left.map(|(scope, _)| scope).collect::<Vec<_>>(), [recent]);
        fleet.run(2 * DAY).await;
        assert_eq!(fleet.queue.holds(9).unwrap(), []);
    }

    /// However many others rest beside, and though it has no lane: what rests for a source that is another now does so no longer.
    #[tokio::test]
    async fn what_a_reload_has_mended_is_ended_behind_any_number_of_others() {
        const OTHERS: usize = 10_001;
        let source = |address: &str| format!("[[source]]\nname = \"s\"\naddresses = [\"{address}\"]\n");
        let mut fleet = Fleet::new(2, &source("192.0.2.1"));
        let rests = HoldRecord {
            since: START,
            until: START + DAY,
            failures: 1,
            cause: "4.4.1 no answer".into(),
        };
        let other = |number: usize| HoldScope::Lane(format!("mx{number:05}.test"));
        let mended = |number: usize| HoldScope::Lane(format!("y{number:05}.test source s"));
        for number in 0..OTHERS {
            fleet.queue.hold(other(number), rests.clone());
        }
        for number in 0..3 * SWEEP_PAGE {
            fleet.queue.hold(mended(number), rests.clone());
        }
        let obeyed = |fleet: &Fleet, scope: &HoldScope| {
            let rests = fleet
                .shards
                .iter()
                .map(|shard| shard.rest(scope, fleet.now).is_some());
            let mut rests = rests.collect::<Vec<_>>();
            rests.dedup();
            rests
        };
        assert_eq!(obeyed(&fleet, &mended(7)), [true]);
        fleet.renew(&source("192.0.2.9"));
        assert_eq!(obeyed(&fleet, &mended(7)), [false], "from then on");
        fleet.run(Duration::from_secs(10)).await;
        // The next reload changes nothing.
        fleet.renew(&source("192.0.2.9"));
        assert_eq!(obeyed(&fleet, &mended(7)), [false]);
        assert_eq!(obeyed(&fleet, &other(7)), [true]);
        fleet.run(Duration::from_secs(60)).await;
        let left = fleet.queue.holds(2 * OTHERS).unwrap().into_iter();
        assert!(left.map(|(scope, _)| scope).eq((0..OTHERS).map(other)));
        // What it rests for anew is obeyed.
        let since = fleet.now;
        fleet.queue.hold(mended(7), HoldRecord { since, ..rests });
        assert_eq!(obeyed(&fleet, &mended(7)), [true]);
    }

    /// Queues that came back otherwise, or have gone, take none of the room for those that are to come back with their destination.
    #[tokio::test]
    async fn who_rests_no_longer_is_not_waited_for() {
        let mut fleet = Fleet::new(2, "");
        for number in 0..20 {
            let domain = format!("d{number}.test");
            fleet.unknown.insert(domain.clone());
            fleet.accept(1, "t", "bulk", &domain, 10).await;
        }
        let noted = |fleet: &Fleet| {
            let sum = |count: fn(&Shard) -> usize| fleet.shards.iter().map(count).sum::<usize>();
            assert_eq!(
                sum(|shard| shard.resting_count),
                sum(|shard| shard.resting.values().map(Resting::len).sum())
            );
            sum(|shard| shard.resting_count)
        };
        for number in 1_000..1_100 {
            fleet.shards[1].note_resting(QueueId(number), &domain(0), START);
        }
        assert_eq!(noted(&fleet), 100);
        fleet.run(30 * Duration::from_secs(60)).await;
        assert_eq!(noted(&fleet), 20, "those that still wait are known");
    }
}
