//! The queue's series, read when they are asked for. Each other part registers its own.

mod registry;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mail_core::{MessageId, Timestamp};
use parking_lot::Mutex;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use queue::store::Family;
use queue::{
    AdjustmentKind, AsideCause, MAX_ADJUSTMENTS, MAX_SUSPENSIONS, Queue, ReadError, Selector,
    SuspensionRecord, Totals,
};

pub use registry::{Metric, Registry};

/// They are read anew no more often: a reading looks at each tenant's totals, and at queues that are suspended by domain.
const REFRESH_EVERY: Duration = Duration::from_secs(10);

/// Records of queues, or of holds, read at a time.
const PAGE: usize = 1_000;

/// Queues suspended by domain, or one by one, that are counted; further ones are not.
const MAX_SUSPENDED: usize = 20_000;

/// Tenants with series of their own; the others are `other`.
const MAX_TENANTS: usize = 200;

/// Messages set aside that are counted by cause; more are shown as so many.
const MAX_ASIDE: usize = 10_000;

/// The queue's series.
#[derive(Clone)]
pub struct QueueSeries(Arc<Inner>);

struct Inner {
    queue: Queue,
    queues: IntGauge,
    messages: IntGaugeVec,
    bytes: IntGaugeVec,
    holds: IntGauge,
    suspensions: IntGauge,
    adjustments: IntGaugeVec,
    suspended: IntGaugeVec,
    aside: IntGaugeVec,
    damaged: IntCounterVec,
    groups: IntCounter,
    reopened: IntCounter,
    journal: IntGauge,
    written: IntCounterVec,
    corrupt: IntGauge,
    used: Gauge,
    age: Gauge,
    free: IntGauge,
    min_free: IntGauge,
    /// No message is older than this one.
    oldest: Mutex<Option<MessageId>>,
    /// When they were read.
    read: Mutex<Option<Instant>>,
}

impl QueueSeries {
    /// Makes and registers the series.
    pub fn new(registry: &Registry, queue: Queue) -> prometheus::Result<Self> {
        let by_tenant = |name, help| IntGaugeVec::new(Opts::new(name, help), &["tenant"]);
        let series = Inner {
            queue,
            queues: IntGauge::new(
                "postrider_queues",
                "Queues with mail: tenant, stream and destination. Refreshed every 10 s.",
            )?,
            messages: by_tenant(
                "postrider_queue_messages",
                "Messages that wait, each once for each destination domain. Alert when it grows for longer than your mail may \
                 be late.",
            )?,
            bytes: by_tenant(
                "postrider_queue_bytes",
                "Octets of the messages that wait. Alert before it nears the store's disk.",
            )?,
            holds: IntGauge::new(
                "postrider_holds",
                "Destinations that rest as a whole, after DNS or connection failures. Alert on a jump: the network may be \
                 gone.",
            )?,
            suspensions: IntGauge::new(
                "postrider_suspensions",
                "Suspensions that operators have set and that hold now.",
            )?,
            adjustments: IntGaugeVec::new(
                Opts::new(
                    "postrider_adjustments",
                    "What replies have taught and operators have set beside, by kind: suspended (nothing goes), slower (fewer connections, or \
                     messages a second, than configured). Alert when suspended stays: `postrider adjustment list` tells why.",
                ),
                &["kind"],
            )?,
            suspended: by_tenant(
                "postrider_suspended_messages",
                "Of the messages that wait those whose queue is suspended. They expire all the same: alert when there are any for \
                 longer than you meant.",
            )?,
            aside: IntGaugeVec::new(
                Opts::new(
                    "postrider_set_aside_messages",
                    "Messages that nobody tries, each once for each destination domain, by cause: damaged in the store, or \
                     parked after mistakes of the relay's. Alert on any: `postrider queue damaged` lists them.",
                ),
                &["cause"],
            )?,
            damaged: IntCounterVec::new(
                Opts::new(
                    "postrider_damaged_records_total",
                    "Records of the store that did not verify, by family. Alert on any: the disk or the memory is failing.",
                ),
                &["family"],
            )?,
            groups: IntCounter::new(
                "postrider_store_groups_total",
                "Groups of requests committed since the store was made, each with one sync: by postrider_messages_accepted_total \
                 it tells how many messages share a sync.",
            )?,
            journal: IntGauge::new(
                "postrider_journal_entries",
                "Entries of the journal: what became of each recipient, some 200 octets each. See store.journal_entries.",
            )?,
            reopened: IntCounter::new(
                "postrider_store_reopened_total",
                "How often the store was opened anew after writes had failed. Alert on any: the disk is failing, or was full.",
            )?,
            written: IntCounterVec::new(
                Opts::new(
                    "postrider_store_written_bytes_total",
                    "Octets the store has written to its files, by kind: wal (each commit), flush (what a full memtable still held), \
                     compaction (tables put together anew). Alert when it nears what the disk can write, or is a multiple of what comes \
                     in while nothing waits.",
                ),
                &["kind"],
            )?,
            corrupt: IntGauge::new(
                "postrider_store_damaged",
                "1 where RocksDB has found a file of the store's damaged: nothing is accepted, what reads is delivered. Alert on \
                 it: docs/durability.md, Damage.",
            )?,
            used: Gauge::new(
                "postrider_queue_used_ratio",
                "How much of store.max_messages or store.max_bytes waits, whichever is nearer: 1 is full, and mail is refused \
                 (452) until it is below 0.95. 0 without limits. Alert above 0.8.",
            )?,
            age: Gauge::new(
                "postrider_oldest_message_age_seconds",
                "Since when the message has waited that has waited longest; 0 where none does. Alert when it grows while much \
                 waits and little leaves.",
            )?,
            free: IntGauge::new(
                "postrider_store_free_bytes",
                "Octets free on the store's file system. Alert before it nears postrider_store_min_free_bytes.",
            )?,
            min_free: IntGauge::new(
                "postrider_store_min_free_bytes",
                "Below this much free space nothing is accepted (452): store.min_free.",
            )?,
            oldest: Mutex::default(),
            read: Mutex::default(),
        };
        for family in Family::ALL {
            series.damaged.with_label_values(&[family.name()]);
        }
        for kind in ["wal", "flush", "compaction"] {
            series.written.with_label_values(&[kind]);
        }
        registry.register(Box::new(series.damaged.clone()))?;
        registry.register(Box::new(series.groups.clone()))?;
        registry.register(Box::new(series.written.clone()))?;
        registry.register(Box::new(series.reopened.clone()))?;
        registry.register(Box::new(series.journal.clone()))?;
        registry.register(Box::new(series.corrupt.clone()))?;
        registry.register(Box::new(series.used.clone()))?;
        registry.register(Box::new(series.age.clone()))?;
        for gauge in [
            &series.queues,
            &series.holds,
            &series.suspensions,
            &series.free,
            &series.min_free,
        ] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for vector in [
            &series.messages,
            &series.bytes,
            &series.suspended,
            &series.adjustments,
            &series.aside,
        ] {
            registry.register(Box::new(vector.clone()))?;
        }
        Ok(Self(Arc::new(series)))
    }

    /// Reads the store if the last time is long enough ago. Blocks.
    pub fn refresh(&self, now: Instant, clock: Timestamp) -> Result<(), ReadError> {
        let series = &self.0;
        let mut read = series.read.lock();
        // Counters in memory: always as they are now.
        let written = series.queue.written();
        for (kind, octets) in [
            ("wal", written.wal),
            ("flush", written.flush),
            ("compaction", written.compaction),
        ] {
            let counter = series.written.with_label_values(&[kind]);
            counter.inc_by(octets.saturating_sub(counter.get()));
        }
        if read.is_some_and(|read| now < read + REFRESH_EVERY) {
            return Ok(());
        }
        *read = Some(now);
        let corrupt = matches!(series.queue.status(), queue::Status::Corrupt(_));
        series.corrupt.set(i64::from(corrupt));
        series.used.set(series.queue.used());
        for (counter, now) in [
            (&series.groups, series.queue.groups()),
            (&series.reopened, series.queue.reopened()),
        ] {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
        let entries = series.queue.journal()?.entries();
        series.journal.set(i64::try_from(entries).unwrap_or(i64::MAX));
        let (free, min_free) = series.queue.space();
        series.free.set(i64::try_from(free).unwrap_or(i64::MAX));
        series.min_free.set(i64::try_from(min_free).unwrap_or(i64::MAX));
        let mut suspensions = series.queue.suspensions(MAX_SUSPENSIONS)?;
        suspensions.retain(|record| record.until.is_none_or(|until| until > clock));
        let (mut queues, mut tenants) = (0, BTreeMap::<String, [u64; 3]>::new());
        for totals in series
            .queue
            .totals()?
            .into_iter()
            .filter(|totals| totals.total.count > 0)
        {
            let suspended = suspensions.iter().any(|one| is_whole(&one.selector, &totals));
            queues += i64::try_from(totals.total.queues).unwrap_or(i64::MAX);
            let [messages, bytes, waits] = tenants.entry(totals.tenant).or_default();
            *messages += totals.total.count;
            *bytes += totals.total.bytes;
            *waits += if suspended { totals.total.count } else { 0 };
        }
        // Of these the queues are few: of one domain, or one alone.
        let mut seen = HashSet::new();
        for one in &suspensions {
            if one.selector.domain.is_none() && one.selector.queue.is_none() {
                continue;
            }
            let mut after = None;
            while seen.len() < MAX_SUSPENDED {
                let page = series.queue.queues_of(&one.selector, after, PAGE)?;
                for (id, record) in page.queues {
                    let counted = |other: &SuspensionRecord| {
                        let selector = &other.selector;
                        selector.domain.is_none()
                            && selector.queue.is_none()
                            && selector.selects(id, &record.name)
                    };
                    if record.count > 0
                        && !suspensions.iter().any(counted)
                        && seen.insert(id)
                        && let Some([_, _, waits]) = tenants.get_mut(&*record.name.tenant)
                    {
                        *waits += record.count;
                    }
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        series.queues.set(queues);
        series
            .age
            .set(if queues > 0 { series.age_at(clock)? } else { 0.0 });
        series.messages.reset();
        series.bytes.reset();
        series.suspended.reset();
        for (number, (tenant, [messages, bytes, suspended])) in tenants.into_iter().enumerate() {
            let label: &str = if number < MAX_TENANTS { &tenant } else { "other" };
            let add = |vector: &IntGaugeVec, more: u64| {
                let more = i64::try_from(more).unwrap_or(i64::MAX);
                vector.with_label_values(&[label]).add(more);
            };
            add(&series.messages, messages);
            add(&series.bytes, bytes);
            add(&series.suspended, suspended);
        }
        let holds = count_holds(&series.queue)?;
        let count = i64::try_from(suspensions.len()).unwrap_or(i64::MAX);
        series.suspensions.set(count);
        let mut adjustments = [("suspended", 0), ("slower", 0)];
        for (_, record) in series.queue.adjustments(None, MAX_ADJUSTMENTS)? {
            let slower = usize::from(record.key.kind != AdjustmentKind::Suspended);
            adjustments[slower].1 += i64::from(record.holds(clock));
        }
        for (label, count) in adjustments {
            series.adjustments.with_label_values(&[label]).set(count);
        }
        for (family, met) in series.queue.damage_counts() {
            let counter = series.damaged.with_label_values(&[family.name()]);
            counter.inc_by(met - counter.get().min(met));
        }
        let (aside, _) = series.queue.set_aside_units(None, MAX_ASIDE)?;
        for (cause, label) in [(AsideCause::Damaged, "damaged"), (AsideCause::Parked, "parked")] {
            let of_cause = aside.iter().filter(|aside| aside.record.cause == cause).count();
            let of_cause = i64::try_from(of_cause).unwrap_or(i64::MAX);
            series.aside.with_label_values(&[label]).set(of_cause);
        }
        series.holds.set(i64::try_from(holds).unwrap_or(i64::MAX));
        Ok(())
    }
}

impl Inner {
    /// Seconds since the oldest message came in.
    fn age_at(&self, clock: Timestamp) -> Result<f64, ReadError> {
        let mut oldest = self.oldest.lock();
        let mut found = self.queue.oldest(*oldest)?;
        if found.is_none() && oldest.is_some() {
            // Perhaps the clock went back, and later messages have earlier ids.
            found = self.queue.oldest(None)?;
        }
        let Some(found) = found else { return Ok(0.0) };
        *oldest = Some(found);
        let since = found.created();
        Ok(Duration::from_millis(clock.0.saturating_sub(since.0)).as_secs_f64())
    }
}

/// What rests, however much it is.
fn count_holds(queue: &Queue) -> Result<usize, ReadError> {
    let (mut count, mut after) = (0, None);
    loop {
        let mut page = queue.holds_after(after.as_ref(), PAGE)?;
        count += page.len();
        after = match page.pop() {
            Some((last, _)) if page.len() + 1 == PAGE => Some(last),
            _ => return Ok(count),
        };
    }
}

/// Whether a suspension is of all that these totals count.
fn is_whole(selector: &Selector, totals: &Totals) -> bool {
    selector.domain.is_none()
        && selector.queue.is_none()
        && selector
            .tenant
            .as_deref()
            .is_none_or(|tenant| tenant == totals.tenant)
        && selector
            .stream
            .as_deref()
            .is_none_or(|stream| stream == totals.stream)
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;
    use queue::store::MemoryStore;
    use queue::{HoldRecord, HoldScope};

    use super::*;
    use crate::control::tests::accept;

    #[tokio::test]
    async fn counts_what_waits_by_tenant() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        accept(&queue, 1, &["a.test", "b.test"]).await;
        let registry = Registry::new();
        let series = QueueSeries::new(&registry, queue.clone()).unwrap();
        let (start, clock) = (Instant::now(), Timestamp(1_000));
        for (domain, until) in [("a.test", None), ("b.test", Some(clock))] {
            let selector = Selector {
                domain: Some(domain.parse().unwrap()),
                ..Selector::default()
            };
            let record = SuspensionRecord {
                selector,
                since: Timestamp(0),
                until,
                reason: "a test".into(),
                by: "uid 0".into(),
            };
            queue.suspend(record).await.unwrap();
        }
        // They came in at 1,700,000,000,000 ms, and the second is looked for behind the first.
        let later = Timestamp(1_700_000_002_500);
        series.refresh(start, later).unwrap();
        assert_eq!(series.0.age.get(), 2.5);
        *series.0.read.lock() = None;
        series.refresh(start, clock).unwrap();
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "postrider_queues 2\n",
            "postrider_queue_messages{tenant=\"acme\"} 2\n",
            "postrider_store_groups_total 3\n",
            "postrider_holds 0\n",
            "postrider_suspensions 1\n",
            "postrider_set_aside_messages{cause=\"damaged\"} 0\n",
            "postrider_damaged_records_total{family=\"body\"} 0\n",
            "postrider_store_written_bytes_total{kind=\"wal\"} 0\n",
            "postrider_suspended_messages{tenant=\"acme\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        // Read anew when the time has come, and not before.
        accept(&queue, 2, &["a.test"]).await;
        let shown = || series.0.messages.with_label_values(&["acme"]).get();
        series.refresh(start + REFRESH_EVERY / 2, clock).unwrap();
        assert_eq!(shown(), 2);
        series.refresh(start + REFRESH_EVERY, clock).unwrap();
        assert_eq!(shown(), 3);
    }

    #[tokio::test]
    async fn all_that_rests_is_counted() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let series = QueueSeries::new(&Registry::new(), queue.clone()).unwrap();
        let mut start = Instant::now();
        let mut rested = 0;
        for count in [0, 1, PAGE, 10 * PAGE, 10 * PAGE + 1] {
            for number in rested..count {
                let record = HoldRecord {
                    since: Timestamp(0),
                    until: Timestamp(1_000),
                    failures: 1,
                    cause: "a test".into(),
                };
                queue.hold(HoldScope::Lane(format!("mx{number}.test")), record);
            }
            rested = count;
            start += REFRESH_EVERY;
            series.refresh(start, Timestamp(1)).unwrap();
            assert_eq!(series.0.holds.get(), count as i64);
        }
    }

    #[tokio::test]
    async fn the_oldest_is_looked_for_behind_those_that_have_left() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let (first, second) = (
            accept(&queue, 1, &["a.test"]).await.id,
            accept(&queue, 2, &["a.test"]).await.id,
        );
        let behind = MessageId::from_bytes([0xff; 16]);
        assert_eq!(queue.oldest(None).unwrap(), Some(first));
        assert_eq!(queue.oldest(Some(first)).unwrap(), Some(first));
        assert_eq!(queue.oldest(Some(second)).unwrap(), Some(second));
        assert_eq!(queue.oldest(Some(behind)).unwrap(), None);
        // A clock that went back gives messages ids before the place that was reached.
        let series = QueueSeries::new(&Registry::new(), queue).unwrap();
        *series.0.oldest.lock() = Some(behind);
        series
            .refresh(Instant::now(), first.created() + Duration::from_secs(7))
            .unwrap();
        assert_eq!(series.0.age.get(), 7.0);
        assert_eq!(*series.0.oldest.lock(), Some(first));
    }
}
