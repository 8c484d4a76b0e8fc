//! How much may wait: never exceeded, whatever comes side by side; told once; mail is taken again when there is room.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{FIRST, block_on, end, message, settle};
use proptest::prelude::*;
use queue::store::MemoryStore;
use queue::{CommitError, Fate, Limit, Limits, NewMessage, Options, Queue, Status, UnitKey};

fn limits(messages: u64, bytes: u64, share: f64) -> Limits {
    Limits {
        messages,
        bytes,
        shares: [("small".into(), share)].into(),
    }
}

fn of(tenant: &str, number: u64, domains: &[&str], bytes: usize) -> Arc<NewMessage> {
    let mut message = (*message(number, domains, &vec![b'x'; bytes])).clone();
    message.tenant = tenant.into();
    message.prefix = bytes::Bytes::new();
    message.into()
}

/// What waits by the store's own totals: all, and the small tenant's.
fn waits(queue: &Queue) -> [(u64, u64); 2] {
    let mut sums = [(0, 0); 2];
    for totals in queue.totals().unwrap() {
        for (sum, counts) in sums.iter_mut().zip([true, totals.tenant == "small"]) {
            if counts {
                *sum = (sum.0 + totals.total.count, sum.1 + totals.total.bytes);
            }
        }
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_waits_never_exceeds_a_limit(
        sizes in proptest::collection::vec((0usize..300, any::<bool>(), 1usize..4), 1..200),
        most in (1u64..60, 1u64..8_000),
        share in 0.05f64..1.0,
        ends in any::<u64>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let limits = limits(most.0, most.1, share);
        let options = Options { min_free_bytes: 0, commit_patience: Duration::from_secs(60), limits: limits.clone() };
        let queue = Queue::open(folder.path(), &options).unwrap();
        // All at once, on several threads; some of what was taken leaves at once.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build().unwrap();
        let accepts = sizes.iter().enumerate().map(|(number, &(bytes, is_small, domains))| {
            let queue = queue.clone();
            let domains: Vec<_> = (0..domains).map(|number| format!("d{number}.test")).collect();
            runtime.spawn(async move {
                let domains: Vec<_> = domains.iter().map(String::as_str).collect();
                let tenant = if is_small { "small" } else { "large" };
                let accepted = queue.accept(of(tenant, number as u64, &domains, bytes)).await;
                let within = waits(&queue);
                match accepted {
                    Ok(accepted) if ends >> (number % 64) & 1 == 1 => {
                        for unit in accepted.units {
                            settle(&queue, end(unit, Fate::Delivered)).await.unwrap();
                        }
                    }
                    Ok(_) => {}
                    Err(error) => assert!(matches!(error, CommitError::Over(_)), "{error}"),
                }
                within
            })
        });
        let accepts: Vec<_> = accepts.collect();
        for accept in accepts {
            let [all, small] = runtime.block_on(accept).unwrap();
            prop_assert!(all.0 <= limits.messages && all.1 <= limits.bytes, "{all:?} of {limits:?}");
            let share = |of: u64| (of as f64 * share) as u64;
            prop_assert!(small.0 <= share(limits.messages) && small.1 <= share(limits.bytes), "{small:?} of {limits:?}");
        }
        let before = waits(&queue);
        queue.close();
        drop(queue);
        // A restart counts the same: what did not fit does not fit, and what is left is as large as it was.
        let queue = Queue::open(folder.path(), &options).unwrap();
        prop_assert_eq!(waits(&queue), before);
        for number in 1_000..1_000 + most.0 + 1 {
            let left = before[0].0 + number - 1_000;
            let accepted = runtime.block_on(queue.accept(of("large", number, &["d.test"], 0)));
            prop_assert_eq!(accepted.is_ok(), left < most.0, "{:?}", accepted);
        }
        queue.close();
    }
}

fn refused(queue: &Queue, message: Arc<NewMessage>) -> Limit {
    match block_on(queue.accept(message)) {
        Err(CommitError::Over(limit)) => limit,
        other => panic!("{other:?}"),
    }
}

fn units(queue: &Queue) -> Vec<UnitKey> {
    let queues = queue.queues(None, 99).unwrap();
    let due = |(id, _)| queue.due(id, FIRST, 999).unwrap().0;
    queues.into_iter().flat_map(due).collect()
}

#[test]
fn a_full_queue_takes_mail_again_when_some_has_left() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    queue.set_limits(limits(100, u64::MAX, 1.0));
    for number in 0..99 {
        block_on(queue.accept(of("large", number, &["d.test"], 9))).unwrap();
    }
    assert_eq!((queue.status(), queue.used()), (Status::Healthy, 0.99));
    // Of two domains one too many; of one, the last.
    let limit = Limit::Messages {
        used: 101,
        limit: 100,
    };
    assert_eq!(refused(&queue, of("large", 200, &["d.test", "e.test"], 9)), limit);
    assert_eq!(queue.status(), Status::Over(limit.clone()));
    // It stays so down to 95: clients that come back should not all come for one place.
    let all = units(&queue);
    for (ended, unit) in all[..4].iter().enumerate() {
        assert_eq!(queue.status(), Status::Over(limit.clone()), "{ended}");
        refused(&queue, of("large", 201, &["d.test"], 9));
        block_on(settle(&queue, end(*unit, Fate::Delivered))).unwrap();
    }
    assert_eq!(queue.status(), Status::Healthy);
    block_on(queue.accept(of("large", 202, &["d.test"], 9))).unwrap();
    // Limits are changed while it runs.
    queue.set_limits(limits(10, u64::MAX, 1.0));
    assert_eq!(
        refused(&queue, of("large", 203, &["d.test"], 9)),
        Limit::Messages { used: 97, limit: 10 }
    );
    queue.set_limits(Limits::NONE);
    assert_eq!((queue.status(), queue.used()), (Status::Healthy, 0.0));
    block_on(queue.accept(of("large", 204, &["d.test"], 9))).unwrap();
}

#[test]
fn a_large_message_that_does_not_fit_keeps_no_small_one_out() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    queue.set_limits(limits(u64::MAX, 1_000, 1.0));
    block_on(queue.accept(of("large", 0, &["d.test"], 500))).unwrap();
    let limit = Limit::Bytes {
        used: 1_100,
        limit: 1_000,
    };
    assert_eq!(refused(&queue, of("large", 1, &["d.test"], 600)), limit);
    assert_eq!(queue.status(), Status::Healthy);
    assert_eq!(queue.over_limit(&"large".into(), 600), Some(limit));
    assert_eq!(queue.over_limit(&"large".into(), 500), None);
    block_on(queue.accept(of("large", 2, &["d.test"], 500))).unwrap();
}

#[test]
fn a_tenant_at_its_share_is_refused_alone() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    queue.set_limits(limits(100, u64::MAX, 0.1));
    for number in 0..10 {
        block_on(queue.accept(of("small", number, &["d.test"], 9))).unwrap();
    }
    let Limit::Tenant { tenant, what } = refused(&queue, of("small", 10, &["d.test"], 9)) else {
        panic!("of all");
    };
    assert_eq!(
        (&*tenant, *what),
        ("small", Limit::Messages { used: 11, limit: 10 })
    );
    assert_eq!(queue.status(), Status::Healthy);
    block_on(queue.accept(of("large", 11, &["d.test"], 9))).unwrap();
    let unit = units(&queue)[0];
    block_on(settle(&queue, end(unit, Fate::Delivered))).unwrap();
    block_on(queue.accept(of("small", 12, &["d.test"], 9))).unwrap();
}
