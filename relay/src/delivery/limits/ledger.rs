//! All budgets, found by their scope; shared by all shards.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use parking_lot::Mutex;
use queue::{CommitError, CountsRecord, Queue, Scope};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout_at};

use super::budget::{Budget, Counted, Keep, Used};
use crate::config::limits::ScopeLimits;
use crate::config::streams::Streams;
use crate::world::Clock;

/// Budgets whose counts go into one write, or are read at once to be looked through.
const AT_ONCE: usize = 1_000;

/// Budgets in memory beside those in use, some 2 KiB each.
const MOST: usize = 20_000;

/// Counts are written at most this often.
const EVERY: Duration = Duration::from_millis(5);

/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Counts older than this count no more: longer than a day, and the part of it that is counted too much.
const FORGOTTEN: Duration = Duration::from_secs(25 * 3_600);

/// All that stands on disk is looked through this often for such counts, memory holds them or not.
const SWEEPS_EVERY: Duration = Duration::from_secs(3_600);

/// Between two pages of that: it is read on a shard's thread.
const NEXT_PAGE: Duration = Duration::from_millis(100);

/// Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    budgets: Mutex<HashMap<Scope, Arc<Mutex<Budget>>>>,
    /// Whose counts on disk are over, until they are deleted. Its lock is taken while that of the budgets is held.
    gone: Mutex<BTreeSet<Scope>>,
    /// Whose counts are to be written; each is here once.
    wanting: Mutex<VecDeque<Scope>>,
    wanted: Notify,
}

/// What is to be written of one budget, which stays in memory meanwhile.
#[derive(Debug)]
pub struct Wanted {
    /// Whose it is.
    pub scope: Scope,
    budget: Arc<Mutex<Budget>>,
    /// What.
    pub keep: Keep,
}

/// How far what stands on disk is looked through.
#[derive(Debug)]
struct Sweep {
    /// When the next page is.
    at: Timestamp,
    /// What it comes after.
    after: Option<Scope>,
}

impl Ledger {
    /// The budget of a scope, with these limits, and what of them is some streams' own, from here on. Where there is none it goes on from what the queue has kept of it.
    pub fn budget(
        &self,
        scope: &Scope,
        (limits, streams): (&ScopeLimits, &Streams),
        queue: &Queue,
        now: Timestamp,
    ) -> Arc<Mutex<Budget>> {
        let mut all = self.0.budgets.lock();
        if let Some(known) = all.get(scope) {
            let mut budget = known.lock();
            budget.renew(limits, now);
            budget.reserve(streams);
            drop(budget);
            return known.clone();
        }
        // One that is over may say on disk that it is not, since more stands there than was used.
        let is_over = self.0.gone.lock().remove(scope);
        let kept = match is_over {
            true => Ok(None),
            false => queue.counts_of(scope),
        };
        let counted = match kept {
            Ok(None) => Counted::Nothing,
            Ok(Some(record)) => Counted::Known(record),
            Err(error) => {
                tracing::error!(%scope, %error, "what was sent can't be read: taken for as much as is allowed");
                Counted::Unknown
            }
        };
        let mut fresh = Budget::new(limits.clone(), scope.tenant.is_some(), counted, now);
        fresh.reserve(streams);
        // Mail is about to come.
        fresh.look_ahead(now);
        let fresh = Arc::new(Mutex::new(fresh));
        all.insert(scope.clone(), fresh.clone());
        drop(all);
        self.hear(scope, &mut fresh.lock());
        fresh
    }

    /// The budget of a scope, if there is one.
    pub fn find(&self, scope: &Scope) -> Option<Arc<Mutex<Budget>>> {
        self.0.budgets.lock().get(scope).cloned()
    }

    /// Forgets budgets that nobody holds and that count nothing any more; where there are very many, those too whose counts stand on
    /// disk: what is there is a little ahead of what was used.
    pub fn tidy(&self, now: Timestamp) {
        let mut all = self.0.budgets.lock();
        let too_many = all.len() > MOST;
        let mut gone = self.0.gone.lock();
        all.retain(|scope, budget| {
            if Arc::strong_count(budget) > 1 {
                return true;
            }
            let mut budget = budget.lock();
            if budget.is_idle(now) {
                gone.extend(budget.is_kept().then(|| scope.clone()));
                return false;
            }
            !(too_many && budget.is_on_disk())
        });
        if !gone.is_empty() {
            self.0.wanted.notify_one();
        }
    }

    /// What is used of each, by scope.
    pub fn used(&self, now: Timestamp) -> Vec<(Scope, Used)> {
        let all = self.0.budgets.lock();
        let used = |(scope, budget): (&Scope, &Arc<Mutex<Budget>>)| (scope.clone(), budget.lock().used(now));
        let mut used: Vec<_> = all.iter().map(used).collect();
        used.sort_by(|one, other| one.0.cmp(&other.0));
        used
    }

    /// Has the counts of a scope's budget written, if it wants that.
    pub fn hear(&self, scope: &Scope, budget: &mut Budget) {
        if budget.wants_keeping() {
            self.0.wanting.lock().push_back(scope.clone());
            self.0.wanted.notify_one();
        }
    }

    /// Keeps what windows have counted on disk, for as long as it is polled: one of it for all shards. `tell`: this shard may go on
    /// at this scope.
    pub async fn keep(&self, queue: &Queue, clock: Clock, tell: impl Fn(usize, Scope)) {
        let mut sweep = Sweep {
            at: clock.now(),
            after: None,
        };
        loop {
            // Either is a reason to look.
            let _ = timeout_at(clock.instant(sweep.at), self.0.wanted.notified()).await;
            loop {
                self.sweep(queue, &mut sweep, clock.now());
                let gone = self.gone();
                let wanted = self.wanted(clock.now());
                if wanted.is_empty() && gone.is_empty() {
                    break;
                }
                match queue.keep_counts(in_order(&gone, &wanted)).await {
                    Ok(()) => {
                        self.deleted(&gone);
                        for (shard, scope) in self.kept(&wanted, clock.now()) {
                            tell(shard, scope);
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "what limits have counted can't be written: their mail waits");
                        let scopes = wanted.into_iter().map(|wanted| wanted.scope);
                        self.0.wanting.lock().extend(scopes);
                        sleep(AGAIN).await;
                    }
                }
                sleep(EVERY).await;
            }
        }
    }

    /// Whose counts are to be deleted, up to as many as go into one write. Who has come back meanwhile has them written anew.
    pub fn gone(&self) -> Vec<Scope> {
        self.0.gone.lock().iter().take(AT_ONCE).cloned().collect()
    }

    /// They are.
    pub fn deleted(&self, gone: &[Scope]) {
        let mut all = self.0.gone.lock();
        for scope in gone {
            all.remove(scope);
        }
    }

    /// What is to be written, of some budgets; of none only where there is none.
    pub fn wanted(&self, now: Timestamp) -> Vec<Wanted> {
        let mut all = Vec::new();
        while all.len() < AT_ONCE
            && let Some(scope) = self.next_wanting()
        {
            let budget = self.find(&scope);
            let keep = budget.as_ref().and_then(|budget| budget.lock().to_keep(now));
            if let (Some(budget), Some(keep)) = (budget, keep) {
                all.push(Wanted { scope, budget, keep });
            }
        }
        all
    }

    /// Its lock is held for no longer than this.
    fn next_wanting(&self) -> Option<Scope> {
        self.0.wanting.lock().pop_front()
    }

    /// It is on disk. Which shards are first in the lines of what was held up by that.
    pub fn kept(&self, written: &[Wanted], now: Timestamp) -> Vec<(usize, Scope)> {
        let mut told = Vec::new();
        for Wanted { scope, budget, keep } in written {
            let mut budget = budget.lock();
            let shards = budget.kept(keep, now);
            self.hear(scope, &mut budget);
            told.extend(shards.into_iter().flatten().map(|shard| (shard, scope.clone())));
        }
        told
    }

    /// Nothing goes out any more: has what was used on disk, in place of what is ahead of use, and nothing that is over.
    pub async fn settle(&self, queue: &Queue, now: Timestamp) -> Result<(), CommitError> {
        let used: Vec<_> = {
            let all = self.0.budgets.lock();
            let used = |(scope, budget): (&Scope, &Arc<Mutex<Budget>>)| {
                Some((scope.clone(), Some(budget.lock().used_up(now)?)))
            };
            // None of them is in memory. What counts comes first: a stop does not wait for ever.
            let gone = self.0.gone.lock();
            let deleted = gone.iter().map(|scope| (scope.clone(), None));
            all.iter().filter_map(used).chain(deleted).collect()
        };
        for some in used.chunks(AT_ONCE) {
            queue.keep_counts(some.to_vec()).await?;
        }
        Ok(())
    }

    /// Has a page of what stands on disk looked through, if it is time, and what of it is too old deleted. What memory holds is not
    /// among that: it is as [`Self::tidy`] says.
    fn sweep(&self, queue: &Queue, sweep: &mut Sweep, now: Timestamp) {
        // Where nothing can be deleted there is no use in finding more of it.
        if now < sweep.at || !self.0.gone.lock().is_empty() {
            return;
        }
        let page = queue
            .counts(sweep.after.as_ref(), AT_ONCE)
            .unwrap_or_else(|error| {
                tracing::error!(%error, "counts can't be read");
                Vec::new()
            });
        let more = page.len() == AT_ONCE;
        (sweep.at, sweep.after) = match page.last().filter(|_| more) {
            Some((last, _)) => (now + NEXT_PAGE, Some(last.clone())),
            None => (now + SWEEPS_EVERY, None),
        };
        let is_old = |record: &CountsRecord| record.at + FORGOTTEN < now;
        let old = page.into_iter().filter_map(|(scope, record)| {
            let is_old = record.as_ref().is_some_and(is_old);
            is_old.then_some(scope)
        });
        // Whoever has come back is not among them: what it counts is of this page, or is written after it by this same task.
        let all = self.0.budgets.lock();
        let old = old.filter(|scope| !all.contains_key(scope));
        self.0.gone.lock().extend(old);
    }
}

/// What is to be written of both. One that is gone may have come since, and is among those that are wanted then: the last holds.
pub fn in_order(gone: &[Scope], wanted: &[Wanted]) -> Vec<(Scope, Option<CountsRecord>)> {
    let gone = gone.iter().map(|scope| (scope.clone(), None));
    let kept = |wanted: &Wanted| (wanted.scope.clone(), Some(wanted.keep.record.clone()));
    gone.chain(wanted.iter().map(kept)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use queue::store::MemoryStore;

    use super::super::Grant;
    use super::super::budget::Asked;
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    /// Each waited for a lock that the other had, and all shards for both.
    #[test]
    fn budgets_are_made_while_counts_are_taken_to_the_disk() {
        let ledger = Ledger::default();
        let (say, said) = mpsc::channel();
        let makes = {
            let (ledger, say) = (ledger.clone(), say.clone());
            move || {
                let queue = Queue::in_memory(MemoryStore::new()).unwrap();
                let settings = crate::delivery::shard::test_settings("");
                let limits = ScopeLimits {
                    messages_per_hour: Some(10),
                    ..ScopeLimits::default()
                };
                for number in 0..20_000 {
                    let scope = Scope {
                        site: Some(number.to_string().into()),
                        ..Scope::default()
                    };
                    ledger.budget(&scope, (&limits, &settings.delivery.streams), &queue, NOW);
                }
                say.send(()).unwrap();
            }
        };
        let writes = move || {
            let mut written = 0;
            while written < 20_000 {
                let wanted = ledger.wanted(NOW);
                written += wanted.len();
                ledger.kept(&wanted, NOW);
            }
            say.send(()).unwrap();
        };
        let (makes, writes) = (thread::spawn(makes), thread::spawn(writes));
        for _ in 0..2 {
            said.recv_timeout(Duration::from_secs(60)).expect("both go on");
        }
        makes.join().unwrap();
        writes.join().unwrap();
    }

    /// A message that did not go was counted on disk, with one ahead; its scope comes back before that is deleted.
    #[tokio::test]
    async fn counts_that_are_over_hold_nobody_up_until_they_are_deleted() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let settings = crate::delivery::shard::test_settings("");
        let limits = ScopeLimits {
            messages_per_hour: Some(2),
            ..ScopeLimits::default()
        };
        let scope = Scope {
            tenant: Some("t".into()),
            ..Scope::default()
        };
        let ledger = Ledger::default();
        let write = async || {
            let (gone, wanted) = (ledger.gone(), ledger.wanted(NOW));
            queue.keep_counts(in_order(&gone, &wanted)).await.unwrap();
            ledger.deleted(&gone);
            ledger.kept(&wanted, NOW);
        };
        let budget = || ledger.budget(&scope, (&limits, &settings.delivery.streams), &queue, NOW);
        let asked = Asked {
            stream: "bulk",
            bytes: 0,
        };
        let refused = budget();
        write().await;
        assert_eq!(refused.lock().message(0, &asked, NOW), Grant::Granted);
        ledger.hear(&scope, &mut refused.lock());
        write().await;
        refused.lock().refund("bulk", 0, NOW, NOW);
        drop(refused);
        ledger.tidy(NOW);
        assert_eq!(ledger.used(NOW), []);

        let back = budget();
        for _ in 0..2 {
            write().await;
            assert_eq!(back.lock().message(0, &asked, NOW), Grant::Granted);
            ledger.hear(&scope, &mut back.lock());
        }
        write().await;
        assert_ne!(back.lock().message(0, &asked, NOW), Grant::Granted);
        let record = queue.counts_of(&scope).unwrap();
        let hour = record.expect("it is not deleted after it is written").hour;
        assert!(hour.unwrap().parts.iter().sum::<u64>() >= 2);
    }

    /// What memory had no room for was over long before the next start, and stood on disk till then.
    #[tokio::test(start_paused = true)]
    async fn counts_that_are_over_are_forgotten_while_the_relay_runs() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let settings = crate::delivery::shard::test_settings("");
        let limits = ScopeLimits {
            messages_per_hour: Some(10),
            ..ScopeLimits::default()
        };
        let scope = |number: usize| Scope {
            tenant: Some(format!("{number:05}").into()),
            ..Scope::default()
        };
        let record = |at| CountsRecord {
            at,
            minute: None,
            hour: None,
            day: None,
        };
        let hour = Duration::from_secs(3_600);
        let old = record(NOW - 24 * hour);
        let mut kept: Vec<_> = (0..2 * AT_ONCE + 10)
            .map(|number| (scope(number), Some(old.clone())))
            .collect();
        let (young, held) = (kept.len() - 3, 7);
        kept[young].1 = Some(record(NOW));
        queue.keep_counts(kept.clone()).await.unwrap();
        let ledger = Ledger::default();
        // Idle: its record is as old as the others, but whoever holds it may use it at any time.
        let _held = ledger.budget(&scope(held), (&limits, &settings.delivery.streams), &queue, NOW);
        ledger.0.wanting.lock().clear();

        let all = || queue.counts(None, usize::MAX).unwrap();
        let keeping = ledger.keep(&queue, Clock::anchored(NOW), |_, _| {});
        tokio::pin!(keeping);
        let mut pass = async |time| {
            assert!(tokio::time::timeout(time, &mut keeping).await.is_err());
            all().into_iter().map(|(scope, _)| scope).collect::<Vec<_>>()
        };
        assert_eq!(pass(hour / 2).await.len(), kept.len(), "not one is over");
        assert_eq!(pass(2 * hour).await, [scope(held), scope(young)]);
    }

    /// The next life would read what counts ahead of use, and keep the first mail waiting for it.
    #[tokio::test]
    async fn counts_that_are_over_at_a_stop_are_deleted_with_it() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let record = CountsRecord {
            at: NOW,
            minute: None,
            hour: None,
            day: None,
        };
        let scope = Scope::default();
        queue
            .keep_counts(vec![(scope.clone(), Some(record))])
            .await
            .unwrap();
        let ledger = Ledger::default();
        ledger.0.gone.lock().insert(scope.clone());
        ledger.settle(&queue, NOW).await.unwrap();
        assert_eq!(queue.counts_of(&scope).unwrap(), None);
    }

    /// Mail to a scope that nobody has used for its span comes just as its counts are deleted.
    #[tokio::test]
    async fn counts_that_are_deleted_and_made_anew_in_one_write_stay() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let settings = crate::delivery::shard::test_settings("");
        let limits = ScopeLimits {
            messages_per_hour: Some(10),
            ..ScopeLimits::default()
        };
        let scope = Scope {
            tenant: Some("t".into()),
            ..Scope::default()
        };
        let ledger = Ledger::default();
        let budget = |now| ledger.budget(&scope, (&limits, &settings.delivery.streams), &queue, now);
        let asked = Asked {
            stream: "bulk",
            bytes: 0,
        };
        drop(budget(NOW));
        let wanted = ledger.wanted(NOW);
        queue.keep_counts(in_order(&[], &wanted)).await.unwrap();
        ledger.kept(&wanted, NOW);
        drop(wanted);

        let later = NOW + Duration::from_secs(2 * 3_600);
        ledger.tidy(later);
        let gone = ledger.gone();
        assert_eq!(gone, std::slice::from_ref(&scope));
        let budget = budget(later);
        let wanted = ledger.wanted(later);
        queue.keep_counts(in_order(&gone, &wanted)).await.unwrap();
        ledger.kept(&wanted, later);
        assert_eq!(budget.lock().message(0, &asked, later), Grant::Granted);
        let record = queue
            .counts_of(&scope)
            .unwrap()
            .expect("what is used stands on disk");
        assert_eq!(record.at, later);
        assert_eq!(record.hour.unwrap().parts.iter().sum::<u64>(), 1);
    }

    /// Memory has room for no more, and mail to one of them comes again while its minute is full.
    #[tokio::test]
    async fn a_full_minute_that_comes_back_from_disk_tells_when_it_goes_on() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let settings = crate::delivery::shard::test_settings("");
        let limits = ScopeLimits {
            messages_per_minute: Some(60),
            ..ScopeLimits::default()
        };
        let scope = |number: usize| Scope {
            site: Some(number.to_string().into()),
            ..Scope::default()
        };
        let ledger = Ledger::default();
        let budget =
            |number, now| ledger.budget(&scope(number), (&limits, &settings.delivery.streams), &queue, now);
        let asked = Asked {
            stream: "bulk",
            bytes: 0,
        };
        let send = async |budget: &Mutex<Budget>, now| {
            let mut sent = 0;
            loop {
                let grant = budget.lock().message(0, &asked, now);
                match grant {
                    Grant::NotBefore { at, held_by } if held_by != "counting" => {
                        assert!(at > now, "{at:?} at {now:?}");
                        return sent;
                    }
                    Grant::Granted => {
                        budget.lock().sent("bulk", 0, now);
                        sent += 1;
                    }
                    _ => {}
                }
                ledger.hear(&scope(0), &mut budget.lock());
                let wanted = ledger.wanted(now);
                queue.keep_counts(in_order(&[], &wanted)).await.unwrap();
                ledger.kept(&wanted, now);
                // Two a second, so that something is over in each.
                if sent == 2 {
                    return sent;
                }
            }
        };
        let at = |second: u64| NOW + Duration::from_secs(second);
        let first = budget(0, NOW);
        for second in 0..75 {
            send(&first, at(second)).await;
        }
        drop(first);
        for number in 1..=MOST {
            drop(budget(number, at(75)));
        }
        while !ledger.wanted(at(75)).is_empty() {}
        ledger.tidy(at(75));
        assert!(ledger.find(&scope(0)).is_none());
        let back = budget(0, at(75));
        let mut sent = 0;
        for second in 75..150 {
            sent += send(&back, at(second)).await;
        }
        assert!(sent >= 60, "{sent}");
    }
}
