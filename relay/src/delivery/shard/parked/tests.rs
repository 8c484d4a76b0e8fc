use std::sync::Arc;
use std::time::Duration;

use queue::store::{Family, MemoryStore};
use queue::{Queue, Selector, SuspensionRecord};

use super::super::operator::tests::shard;
use super::super::scan::tests::suspended;
use super::*;
use crate::control::tests::accept_until;

const START: Timestamp = Timestamp(1_700_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

fn until(until: Option<Timestamp>) -> SuspensionRecord {
    SuspensionRecord { until, ..suspended() }
}

/// A message that lasts for long to each of so many domains, all of them suspended.
async fn parked(count: u64, record: SuspensionRecord) -> (MemoryStore, Queue) {
    let store = MemoryStore::counting();
    store.record();
    let queue = Queue::in_memory(store.clone()).unwrap();
    for number in 0..count {
        accept_until(&queue, number, &format!("d{number}.test"), START + DAY * 90).await;
    }
    queue.suspend(record).await.unwrap();
    (store, queue)
}

/// Lets the shard look at its timers, the first time at `from`. What of the store it read, and what of queues it wrote.
fn look(
    shard: &mut Shard,
    store: &MemoryStore,
    from: Timestamp,
    times: u32,
    every: Duration,
) -> (u64, usize) {
    store.compact();
    store.reads();
    store.recorded();
    for time in 0..times {
        shard.tick(from + every * time);
        shard.take_effects();
    }
    let recorded = store.recorded();
    let written = recorded.iter().flat_map(|recorded| recorded.batch.writes());
    let of_queues = written.filter(|write| write.family == Family::Queues).count();
    (store.reads(), of_queues)
}

#[tokio::test]
async fn suspended_queues_cost_nothing_for_days() {
    for record in [until(None), until(Some(START + DAY * 30))] {
        let costs = [40, 400].map(|count| (count, record.clone()));
        let mut told = Vec::new();
        for (count, record) in costs {
            let (store, queue) = parked(count, record).await;
            let mut shard = shard(&queue);
            // Each is looked at once, and gone through once.
            look(&mut shard, &store, START, 60, SECOND);
            assert_eq!(shard.load().1, 0);
            let days = look(&mut shard, &store, START + SECOND * 60, 5 * 1_440, SECOND * 60);
            assert_eq!(days.1, 0, "nothing is written");
            told.push(days.0);
        }
        assert_eq!(told[0], told[1], "as for a tenth of them");
    }
}

/// They sleep for ever, where no mail waits for more than ten minutes.
#[tokio::test]
async fn after_a_start_each_is_read_once_and_left() {
    let (store, queue) = parked(40, until(None)).await;
    look(&mut shard(&queue), &store, START, 60, SECOND);
    let mut again = shard(&queue);
    let costs =
        [60, 720, 1_320].map(|seconds| look(&mut again, &store, START + SECOND * seconds, 60, SECOND));
    assert!(costs[0].0 >= costs[1].0 + 40, "{costs:?}");
    assert_eq!(costs[1], costs[2], "{costs:?}");
    assert_eq!(costs.map(|(_, written)| written), [0; 3]);
    assert_eq!(again.load().1, 0);
}

#[tokio::test]
async fn what_is_over_is_found_when_it_ends() {
    // It may be set anew meanwhile, for longer or not for as long.
    for (first, then, ends) in [(1, None, 1), (1, Some(2), 2), (9, Some(2), 2)] {
        let end = |days: u32| START + DAY * days;
        let (store, queue) = parked(40, until(Some(end(first)))).await;
        let mut shard = shard(&queue);
        look(&mut shard, &store, START, 60, SECOND);
        if let Some(then) = then {
            let record = until(Some(end(then)));
            queue.suspend(record.clone()).await.unwrap();
            shard.suspensions(Arc::new([record]), START + SECOND * 60);
        }
        look(&mut shard, &store, START + SECOND * 61, 60, SECOND);
        assert_eq!(shard.load().1, 0);
        look(&mut shard, &store, end(ends) - SECOND * 30, 30, SECOND);
        assert_eq!(shard.load().1, 0, "{first} {then:?}");
        look(&mut shard, &store, end(ends), 2, SECOND);
        assert_eq!(shard.load().1, 40, "{first} {then:?}");
    }
}

/// Whoever resumed it was to wake them.
#[tokio::test]
async fn what_is_resumed_is_found_though_nobody_wakes_it() {
    let (store, queue) = parked(40, until(None)).await;
    let mut first = shard(&queue);
    look(&mut first, &store, START, 60, SECOND);
    queue
        .resume(Selector::default(), "uid 0", START + SECOND * 60)
        .await
        .unwrap();
    // More than are remembered.
    first.parked.clear();
    first.suspensions(Arc::new([]), START + SECOND * 60);
    look(&mut first, &store, START + SECOND * 60, 5, SECOND);
    assert_eq!(first.load().1, 40);
}

#[tokio::test]
async fn so_it_is_after_a_crash_in_between() {
    let (store, queue) = parked(40, until(None)).await;
    look(&mut shard(&queue), &store, START, 60, SECOND);
    queue
        .resume(Selector::default(), "uid 0", START + SECOND * 60)
        .await
        .unwrap();
    let mut second = shard(&queue);
    look(&mut second, &store, START + SECOND * 61, 5, SECOND);
    assert_eq!(second.load().1, 40);
}

/// The committer was slow, and the shard has gone through what is parked before.
#[tokio::test]
async fn what_was_on_its_way_to_be_parked_is_found_later() {
    let (store, queue) = parked(0, until(None)).await;
    let mut shard = shard(&queue);
    shard.suspensions(Arc::new([]), START);
    look(&mut shard, &store, START, 5, SECOND);
    for number in 0..40 {
        let kept = accept_until(&queue, number, &format!("d{number}.test"), START + DAY * 90).await;
        queue.rest(kept.units[0].queue, Some(wake(None)));
    }
    look(&mut shard, &store, START + SECOND * 5, 500, SECOND);
    assert_eq!(shard.load().1, 0);
    look(&mut shard, &store, START + FAR_EVERY, 5, SECOND);
    assert_eq!(shard.load().1, 40);
}
