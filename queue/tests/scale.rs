//! What operations read does not grow with what waits. Counted on the model: each value asked for, and each key come by, deleted
//! ones too.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{FIRST, START, block_on, end, message, settle};
use mail_core::Timestamp;
use queue::keys;
use queue::store::{Batch, Family, MemoryStore, Store};
use queue::{Fate, Queue, QueueId, Selector, TotalsRecord, UnitKey};

const TENANTS: u64 = 50;
const EACH: u64 = 40;

/// [`EACH`] queues for each of [`TENANTS`], one message in each; every tenth goes to a domain that all write to.
async fn many(queue: &Queue) {
    for number in 0..TENANTS * EACH {
        let tenant = number % TENANTS;
        let domain = match number / TENANTS {
            0 => "all.test".to_owned(),
            number => format!("d{number}.t{tenant}.test"),
        };
        let mut one = (*message(number, &[&domain], b"0123456789")).clone();
        one.tenant = format!("t{tenant}").into();
        one.stream = if number % 4 == 0 { "bulk" } else { "transactional" }.into();
        queue.accept(one.into()).await.unwrap();
    }
}

fn of_tenant(tenant: &str) -> Selector {
    Selector {
        tenant: Some(tenant.into()),
        ..Selector::default()
    }
}

#[test]
fn lists_by_tenant_stream_and_domain_read_what_they_show() {
    block_on(async {
        let store = MemoryStore::counting();
        let queue = Queue::in_memory(store.clone()).unwrap();
        many(&queue).await;
        let of_domain = Selector {
            domain: Some("all.test".parse().unwrap()),
            ..Selector::default()
        };
        let of_both = Selector {
            domain: of_domain.domain.clone(),
            ..of_tenant("t7")
        };
        let of_stream = Selector {
            stream: Some("bulk".into()),
            ..Selector::default()
        };
        for (selector, found, most) in [
            (of_tenant("t7"), EACH, 2 * EACH),
            // A name that begins another.
            (of_tenant("t"), 0, 1),
            (of_domain, TENANTS, 2 * TENANTS),
            (of_both, 1, 2 * TENANTS),
            (of_stream, TENANTS * EACH / 4, TENANTS * EACH / 2),
        ] {
            store.reads();
            let page = queue.queues_of(&selector, None, 10_000).unwrap();
            let reads = store.reads();
            assert_eq!(page.queues.len() as u64, found, "{selector}");
            assert!(reads <= most, "{selector}: {reads} for {found}");
            // The same page by page, each as long as it is shown.
            let (mut after, mut paged) = (None, Vec::new());
            loop {
                let page = queue.queues_of(&selector, after, 9).unwrap();
                assert!(store.reads() <= 2 * 9, "{selector}");
                paged.extend(page.queues);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(paged, page.queues, "{selector}");
        }
    });
}

#[test]
fn counts_read_as_many_records_as_there_are_streams() {
    block_on(async {
        let store = MemoryStore::counting();
        let queue = Queue::in_memory(store.clone()).unwrap();
        many(&queue).await;
        store.reads();
        let totals = queue.totals().unwrap();
        assert!(store.reads() <= 2 * TENANTS);
        let sum: u64 = totals.iter().map(|totals| totals.total.count).sum();
        assert_eq!(sum, TENANTS * EACH);
        let seventh: Vec<_> = totals.iter().filter(|totals| totals.tenant == "t7").collect();
        assert_eq!(
            seventh.iter().map(|totals| totals.total.queues).sum::<u64>(),
            EACH
        );
    });
}

#[test]
fn a_start_reads_no_messages_and_no_queues() {
    block_on(async {
        let store = MemoryStore::counting();
        many(&Queue::in_memory(store.clone()).unwrap()).await;
        store.reads();
        Queue::in_memory(store.clone()).unwrap();
        let reads = store.reads();
        // The totals of their streams, to see whether they verify, and to know what waits.
        assert!(reads <= 4 * TENANTS + 10, "{reads} reads");
    });
}

#[test]
fn the_next_due_is_found_past_what_has_gone_after_a_restart_too() {
    block_on(async {
        let store = MemoryStore::counting();
        let mut queue = Queue::in_memory(store.clone()).unwrap();
        let mut units: Vec<UnitKey> = Vec::new();
        for number in 0..6_000 {
            units.extend(
                queue
                    .accept(message(number, &["ok.test"], b"x"))
                    .await
                    .unwrap()
                    .units,
            );
        }
        let last = units.split_off(5_500);
        for (number, unit) in units.into_iter().enumerate() {
            settle(&queue, end(unit, Fate::Delivered)).await.unwrap();
            if number % 500 == 0 {
                // What memory has counted is forgotten with it.
                queue = Queue::in_memory(store.clone()).unwrap();
            }
        }
        let queue = Queue::in_memory(store.clone()).unwrap();
        store.reads();
        let (page, more) = queue.due(last[0].queue, FIRST, 1).unwrap();
        assert_eq!((page, more), (vec![last[0]], true));
        let reads = store.reads();
        assert!(reads <= 2_100, "{reads} keys were passed");
    });
}

/// A client names one time for a million messages, or an operator has all of them tried: the first that is left is sought past those of its
/// own moment too. Without, the committer passed all that had gone, again and again, and who waited for it did too.
#[test]
fn ends_of_units_due_at_one_moment_cost_as_much_as_of_others() {
    let costs = [false, true].map(|at_once| {
        block_on(async {
            let store = MemoryStore::counting();
            let queue = Queue::in_memory(store.clone()).unwrap();
            let mut units: Vec<UnitKey> = Vec::new();
            for number in 0..6_000 {
                let mut message = (*message(number, &["ok.test"], b"x")).clone();
                if at_once {
                    message.units[0].due = common::START + std::time::Duration::from_secs(60);
                }
                units.extend(queue.accept(std::sync::Arc::new(message)).await.unwrap().units);
            }
            store.reads();
            for unit in &units[..5_500] {
                settle(&queue, end(*unit, Fate::Delivered)).await.unwrap();
            }
            let reads = store.reads();
            let (page, _) = queue.due(units[5_500].queue, FIRST, 1).unwrap();
            assert_eq!(page, [units[5_500]]);
            reads
        })
    });
    assert!(
        costs[1] <= costs[0] + costs[0] / 20,
        "{costs:?} keys were read or passed"
    );
}

/// The same after a restart, when nothing is known but what is on disk, and each time a queue comes to memory again.
#[test]
fn the_first_of_many_due_at_one_moment_is_found_at_once_after_a_restart() {
    const UNITS: u64 = 6_000;
    block_on(async {
        let store = MemoryStore::counting();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let mut units: Vec<UnitKey> = Vec::new();
        for number in 0..UNITS {
            let mut message = (*message(number, &["ok.test"], b"x")).clone();
            message.units[0].due = START + std::time::Duration::from_secs(60);
            units.extend(queue.accept(message.into()).await.unwrap().units);
        }
        for unit in &units[..5_500] {
            settle(&queue, end(*unit, Fate::Delivered)).await.unwrap();
        }
        queue.close();
        let queue = Queue::in_memory(store.clone()).unwrap();
        store.reads();
        let (page, _) = queue.due(units[5_500].queue, FIRST, 1).unwrap();
        let reads = store.reads();
        assert_eq!(page, [units[5_500]]);
        assert!(reads < 1_100, "{reads} keys were read or passed");
    });
}

#[test]
fn a_note_that_changes_nothing_writes_nothing() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let unit = queue.accept(message(1, &["ok.test"], b"x")).await.unwrap().units[0];
        let before = store.contents();
        queue.rest(unit.queue, None);
        assert_eq!(store.contents(), before);
        // One that does is no group of its own: a power cut may take it back.
        queue.rest(unit.queue, Some(unit.due + std::time::Duration::from_secs(60)));
        assert_ne!(store.contents(), before);
        assert_eq!(store.cut_power(0).contents(), before);
    });
}

fn contents(store: &MemoryStore, first: u8) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
    let mut contents = store.contents();
    contents.retain(|(family, key, _)| *family == Family::Queues && key[0] == first);
    contents
}

/// Stores of before have no index, and a damaged total is no reason to count wrong for ever.
#[test]
fn index_and_totals_are_made_where_there_are_none() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        many(&queue).await;
        let (gone, _) = queue.due(QueueId(3), FIRST, 1).unwrap();
        settle(&queue, end(gone[0], Fate::Delivered)).await.unwrap();
        let before: Vec<_> = [b'n', b's', b'm', b't']
            .map(|first| contents(&store, first))
            .into();
        for damaged in [false, true] {
            let mut batch = Batch::default();
            if damaged {
                batch.put(
                    Family::Queues,
                    &keys::totals("t7", "bulk"),
                    Bytes::from_static(b"?"),
                );
            } else {
                batch.delete(Family::Meta, keys::INDEX);
                for (family, key, _) in before.iter().flatten() {
                    batch.delete(*family, key);
                }
            }
            store.write(&batch, true).unwrap();
            let queue = Queue::in_memory(store.clone()).unwrap();
            let after: Vec<_> = [b'n', b's', b'm', b't']
                .map(|first| contents(&store, first))
                .into();
            assert_eq!(after, before);
            assert_eq!(
                queue.queues_of(&of_tenant("t7"), None, 99).unwrap().queues.len() as u64,
                EACH
            );
        }
    });
}

#[test]
fn totals_are_those_of_the_queues_whatever_comes_and_goes() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let mut units = Vec::new();
        for number in 0..100 {
            let one = message(number, &["ok.test", "second.test"], b"0123456789");
            units.extend(queue.accept(one).await.unwrap().units);
        }
        for unit in units.iter().step_by(3) {
            settle(&queue, end(*unit, Fate::Bounced)).await.unwrap();
        }
        let mut counted = TotalsRecord::default();
        for (_, record) in queue.queues(None, 9).unwrap() {
            counted.queues += 1;
            counted.count += record.count;
            counted.bytes += record.bytes;
        }
        let totals = queue.totals().unwrap();
        assert_eq!(totals.len(), 1);
        assert_eq!((totals[0].total, &*totals[0].tenant), (counted, "acme"));
        assert_eq!(Arc::new(queue).waking(None, Timestamp::MAX, 9).unwrap().len(), 2);
        assert!(START < Timestamp::MAX);
    });
}
