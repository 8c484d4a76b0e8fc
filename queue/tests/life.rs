//! A message's life in the queue: kept, claimed, put off, ended; and what is left after each kind of break.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{FIRST, START, block_on, defer, end, message, settle};
use mail_core::Timestamp;
use queue::store::{Family, MemoryStore, Store};
use queue::{
    Aside, CommitError, EventKind, Fate, HoldRecord, HoldScope, OpenError, Options, Queue, QueueId,
    ReadError, Selector, Status, SuspensionRecord, UnitKey,
};

const OPTIONS: Options = Options {
    min_free_bytes: 0,
    commit_patience: Duration::from_secs(60),
    limits: queue::Limits::NONE,
};

fn kinds(queue: &Queue) -> Vec<EventKind> {
    queue
        .events(0, 1_000)
        .unwrap()
        .into_iter()
        .map(|(_, event)| event.kind)
        .collect()
}

#[test]
fn what_is_accepted_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let body = vec![b'x'; 1_300_000];
    let kept = message(1, &["ok.test", "second.test"], &body);
    block_on(async {
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        let accepted = queue.accept(kept.clone()).await.unwrap();
        assert_eq!(accepted.units.len(), 2);
        queue.close();
        assert!(matches!(
            queue.accept(kept.clone()).await,
            Err(CommitError::Failing(_))
        ));
    });
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    let found = queue.message(kept.id).unwrap().unwrap();
    assert_eq!(found.units.len(), 2);
    assert_eq!(found.envelope.prefix, kept.prefix);
    assert_eq!(found.envelope.chunks.len(), 3);
    assert_eq!(queue.body(kept.id, &found.envelope).unwrap(), body);
    assert_eq!(
        queue
            .waking(None, START + Duration::from_secs(1), 10)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(queue.status(), Status::Healthy);
    queue.close();
}

#[test]
fn the_last_end_leaves_nothing_but_the_journal() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let accepted = queue
            .accept(message(1, &["ok.test", "second.test"], b"hello"))
            .await
            .unwrap();
        let put_off = settle(&queue, defer(accepted.units[0], START + Duration::from_secs(60)))
            .await
            .unwrap();
        let moved = put_off.unit.unwrap();
        assert_eq!(moved.due, START + Duration::from_secs(60));
        settle(&queue, end(accepted.units[1], Fate::Bounced))
            .await
            .unwrap();
        assert!(
            queue.message(accepted.id).unwrap().is_some(),
            "one unit is still open"
        );
        settle(&queue, end(moved, Fate::Delivered)).await.unwrap();
        assert_eq!(
            queue.message(accepted.id).unwrap().map(|message| message.id),
            None
        );
        let left: BTreeSet<_> = store.families();
        assert_eq!(
            left,
            BTreeSet::from([Family::Queues, Family::Event, Family::Meta])
        );
        assert_eq!(queue.waking(None, Timestamp::MAX, 10).unwrap(), []);
        assert_eq!(
            kinds(&queue),
            [
                EventKind::Accepted,
                EventKind::Deferred,
                EventKind::Bounced,
                EventKind::Delivered
            ]
        );
        assert_eq!(queue.history(accepted.id).unwrap().len(), 4);
        for (_, record) in queue.queues(None, 10).unwrap() {
            assert_eq!((record.count, record.bytes, record.wake), (0, 0, None));
        }
    });
}

#[test]
fn a_claim_is_good_once() {
    block_on(async {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let unit = queue
            .accept(message(1, &["ok.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        let moved = settle(&queue, defer(unit, START + Duration::from_secs(9)))
            .await
            .unwrap()
            .unit
            .unwrap();
        assert_eq!(
            settle(&queue, end(unit, Fate::Delivered)).await,
            Err(CommitError::Gone)
        );
        settle(&queue, end(moved, Fate::Delivered)).await.unwrap();
        assert_eq!(
            settle(&queue, end(moved, Fate::Delivered)).await,
            Err(CommitError::Gone)
        );
        assert_eq!(
            kinds(&queue)
                .iter()
                .filter(|&&kind| kind == EventKind::Delivered)
                .count(),
            1
        );
    });
}

#[test]
fn a_report_is_kept_by_the_batch_of_the_end_it_tells() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let unit = queue
            .accept(message(1, &["ok.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        let report = message(2, &["acme.test"], b"it bounced");
        let mut bounce = end(unit, Fate::Bounced);
        bounce.reports.push(report.clone());
        // A store that fails keeps neither.
        store.set_failing(true);
        assert!(matches!(
            queue.settle(bounce.clone()).await,
            Err(CommitError::Failing(_))
        ));
        let after = Queue::in_memory(store.cut_power(0)).unwrap();
        assert!(after.message(unit.id).unwrap().is_some());
        assert!(after.message(report.id).unwrap().is_none());
        let settled = settle(&after, bounce).await.unwrap();
        assert_eq!(settled.reports[0].id, report.id);
        assert!(after.message(report.id).unwrap().is_some());
        assert!(after.message(unit.id).unwrap().is_none());
    });
}

#[test]
fn after_a_failed_write_nothing_is_accepted() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        store.set_failing(true);
        assert!(matches!(
            queue.accept(message(1, &["ok.test"], b"hello")).await,
            Err(CommitError::Failing(_))
        ));
        store.set_failing(false);
        assert!(matches!(
            queue.accept(message(2, &["ok.test"], b"hello")).await,
            Err(CommitError::Failing(_))
        ));
        assert!(matches!(queue.status(), Status::Failing(_)));
    });
}

#[test]
fn too_little_space_refuses_mail_but_records_ends() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        queue.accept(message(1, &["ok.test"], b"hello")).await.unwrap();
        queue.close();
    });
    block_on(async {
        let queue = Queue::open(
            folder.path(),
            &Options {
                min_free_bytes: u64::MAX,
                ..OPTIONS
            },
        )
        .unwrap();
        assert_eq!(
            queue.accept(message(2, &["ok.test"], b"hello")).await,
            Err(CommitError::Full)
        );
        let (units, _) = queue.due(QueueId(1), FIRST, 9).unwrap();
        settle(&queue, end(units[0], Fate::Delivered)).await.unwrap();
        queue.close();
    });
}

#[test]
fn a_store_older_than_its_mark_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let copy_store = || {
        let _ = std::fs::remove_dir_all(copy.path().join("store"));
        std::fs::create_dir(copy.path().join("store")).unwrap();
        for file in std::fs::read_dir(folder.path().join("store")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.path().join("store").join(file.file_name())).unwrap();
        }
    };
    let fill = |number| {
        block_on(async {
            let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
            queue
                .accept(message(number, &["ok.test"], b"hello"))
                .await
                .unwrap();
            queue.close();
        });
    };
    fill(1);
    copy_store();
    fill(2);
    std::fs::copy(folder.path().join("mark"), copy.path().join("mark")).unwrap();
    let Err(refused) = Queue::open(copy.path(), &OPTIONS) else {
        panic!("opened with mail missing")
    };
    assert!(
        matches!(refused, OpenError::OlderThanMark { store: 1, mark: 2 }),
        "{refused}"
    );
    copy_store();
    Queue::open(copy.path(), &OPTIONS).unwrap().close();
}

#[test]
fn a_newer_format_is_refused() {
    let store = MemoryStore::new();
    Queue::in_memory(store.clone()).unwrap();
    let mut batch = queue::store::Batch::default();
    let newer = queue::FORMAT_VERSION + 1;
    batch.put(Family::Meta, b"format", newer.to_be_bytes().to_vec());
    store.write(&batch, true).unwrap();
    assert!(matches!(
        Queue::in_memory(store),
        Err(OpenError::TooNew { found }) if found == newer
    ));
}

/// An older program has to refuse the store from now on, not to take new records for damaged ones.
#[test]
fn an_older_format_becomes_ours_at_once() {
    let store = MemoryStore::new();
    Queue::in_memory(store.clone()).unwrap();
    let mut batch = queue::store::Batch::default();
    batch.put(Family::Meta, b"format", vec![0, 1]);
    store.write(&batch, true).unwrap();
    Queue::in_memory(store.clone()).unwrap();
    let format = store.get(Family::Meta, b"format").unwrap().unwrap();
    assert_eq!(format[..], queue::FORMAT_VERSION.to_be_bytes());
}

#[test]
fn a_damaged_record_is_never_served() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let unit = queue
            .accept(message(1, &["ok.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        let envelope = queue.envelope(unit.id).unwrap().unwrap();
        for family in [Family::Body, Family::Envelope, Family::Due, Family::Event] {
            let (_, key, value) = store
                .contents()
                .into_iter()
                .find(|(of, _, _)| *of == family)
                .unwrap();
            let mut damaged = value.clone();
            damaged[2] ^= 0x10;
            let write = |value: Vec<u8>| {
                let mut batch = queue::store::Batch::default();
                batch.put(family, &key, value);
                store.write(&batch, true).unwrap();
            };
            write(damaged);
            let read = match family {
                Family::Body => queue.body(unit.id, &envelope).map(drop),
                Family::Envelope => queue.envelope(unit.id).map(drop),
                // Left out of a page, which goes on.
                Family::Event => {
                    assert_eq!(queue.events(0, 9).unwrap(), []);
                    write(value);
                    continue;
                }
                // A due record is read by the committer alone, and checked there.
                _ => Err(ReadError::Damaged {
                    family: "due",
                    key: String::new(),
                    what: "".into(),
                }),
            };
            assert!(matches!(read, Err(ReadError::Damaged { .. })), "{family:?}");
            write(value);
        }
    });
}

#[test]
fn expired_units_are_found_wherever_they_stand() {
    block_on(async {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let first = queue
            .accept(message(1, &["ok.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        let second = queue
            .accept(message(2, &["ok.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        let moved = settle(&queue, defer(first, START + Duration::from_secs(7200)))
            .await
            .unwrap()
            .unit
            .unwrap();
        let over = START + Duration::from_secs(3600);
        assert_eq!(overdue(&queue, over - Duration::from_secs(1)), []);
        assert_eq!(overdue(&queue, over + Duration::from_secs(2)), [moved, second]);
        settle(&queue, end(moved, Fate::Expired)).await.unwrap();
        assert_eq!(overdue(&queue, over + Duration::from_secs(2)), [second]);
    });
}

#[test]
fn a_resting_queue_wakes_later_and_new_mail_wakes_it_sooner() {
    block_on(async {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let unit = queue
            .accept(message(1, &["ok.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        let wakes = |queue: &Queue| queue.waking(None, Timestamp::MAX, 9).unwrap();
        let later = START + Duration::from_secs(500);
        queue.rest(unit.queue, Some(later));
        assert_eq!(wakes(&queue), [(later, unit.queue)]);
        queue.accept(message(2, &["ok.test"], b"hello")).await.unwrap();
        assert_eq!(wakes(&queue), [(START + Duration::from_millis(2), unit.queue)]);
        // Without a moment, it rests until its first unit is due.
        let put_off = START + Duration::from_secs(900);
        for unit in queue.due(unit.queue, FIRST, 9).unwrap().0 {
            settle(&queue, defer(unit, put_off)).await.unwrap();
        }
        queue.rest(unit.queue, None);
        assert_eq!(wakes(&queue), [(put_off, unit.queue)]);
    });
}

#[test]
fn a_hold_is_kept_and_lifted() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let scope = HoldScope::Domain("dead.test".parse().unwrap());
        let record = HoldRecord {
            since: START,
            until: START + Duration::from_secs(60),
            failures: 2,
            cause: "SERVFAIL".into(),
        };
        queue.hold(scope.clone(), record.clone());
        let reopened = Queue::in_memory(store.cut_power(0)).unwrap();
        assert_eq!(reopened.held(&scope).unwrap(), Some(record.clone()));
        let lane = HoldScope::Lane("mx.dead.test".into());
        reopened.hold(lane.clone(), record.clone());
        assert_eq!(
            reopened.holds(9).unwrap(),
            [(scope.clone(), record.clone()), (lane, record)]
        );
        assert_eq!(reopened.holds(1).unwrap().len(), 1);
        let after = |scope: &HoldScope| reopened.holds_after(Some(scope), 9).unwrap();
        let lane = HoldScope::Lane("mx.dead.test".into());
        assert_eq!(after(&scope).len(), 1);
        assert_eq!(
            after(&HoldScope::Domain("gone.test".parse().unwrap())),
            after(&scope)
        );
        assert_eq!(after(&lane), []);
        reopened.lift(scope.clone());
        assert_eq!(reopened.held(&scope).unwrap(), None);
    });
}

/// Flips a bit in the first record of `family` whose key begins with `prefix`.
fn damage(store: &MemoryStore, family: Family, prefix: &[u8]) {
    let (_, key, mut value) = store
        .contents()
        .into_iter()
        .find(|(of, key, _)| *of == family && key.starts_with(prefix))
        .unwrap();
    value[2] ^= 0x10;
    let mut batch = queue::store::Batch::default();
    batch.put(family, &key, value);
    store.write(&batch, true).unwrap();
}

#[test]
fn a_damaged_record_stops_its_own_mail_only() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let domains = ["ok.test", "second.test"];
        let units = queue.accept(message(1, &domains, b"hello")).await.unwrap().units;
        let other = queue
            .accept(message(2, &["third.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        // The first queue's record, and what tells its name. What memory knows of them is forgotten.
        damage(&store, Family::Queues, b"r\0\0\0\0\0\0\0\x01");
        damage(&store, Family::Queues, b"dacme\0transactional\0\0\0ok.test");
        let queue = Queue::in_memory(store.clone()).unwrap();
        let before = store.contents();
        let settled = settle(&queue, end(units[0], Fate::Delivered)).await;
        assert!(matches!(settled, Err(CommitError::Damaged(_))), "{settled:?}");
        queue.rest(units[0].queue, None);
        let families = |contents: &[(Family, Vec<u8>, Vec<u8>)]| {
            let kept = contents.iter().filter(|(family, ..)| *family != Family::Meta);
            kept.cloned().collect::<Vec<_>>()
        };
        assert_eq!(
            families(&store.contents()),
            families(&before),
            "half a request was written"
        );
        assert_eq!(queue.status(), Status::Healthy);
        settle(&queue, end(other, Fate::Delivered)).await.unwrap();
        queue.accept(message(4, &["third.test"], b"hello")).await.unwrap();
        settle(&queue, end(units[1], Fate::Delivered)).await.unwrap();
        // It can be set aside, so that it is not sent again and again; and mail for its destination gets another queue.
        let error = settled.unwrap_err();
        let aside = Aside::unrecorded(&error, "to@ok.test: 250 ok", START);
        queue.set_aside(units[0], aside).await.unwrap();
        let (found, _) = queue.set_aside_units(None, 9).unwrap();
        assert_eq!(found[0].unit, units[0]);
        assert!(
            found[0].record.why.contains("to@ok.test: 250 ok"),
            "{}",
            found[0].record.why
        );
        let again = queue.accept(message(5, &["ok.test"], b"hello")).await.unwrap();
        assert_ne!(again.units[0].queue, units[0].queue);
    });
}

#[test]
fn a_damaged_due_record_is_read_from_the_envelope() {
    block_on(async {
        for domains in [&["ok.test"][..], &["ok.test", "second.test"]] {
            let store = MemoryStore::new();
            let queue = Queue::in_memory(store.clone()).unwrap();
            let units = queue.accept(message(1, domains, b"hello")).await.unwrap().units;
            damage(&store, Family::Due, &[]);
            for unit in units {
                settle(&queue, end(unit, Fate::Delivered)).await.unwrap();
            }
            let left: BTreeSet<_> = store.families();
            assert_eq!(
                left,
                BTreeSet::from([Family::Queues, Family::Event, Family::Meta])
            );
            for (_, record) in queue.queues(None, 10).unwrap() {
                assert_eq!((record.count, record.bytes, record.wake), (0, 0, None));
            }
        }
    });
}

#[test]
fn a_damaged_state_does_not_keep_others_from_expiring() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let mut units = Vec::new();
        for number in [1, 2] {
            units.extend(
                queue
                    .accept(message(number, &["ok.test"], b"hello"))
                    .await
                    .unwrap()
                    .units,
            );
        }
        settle(&queue, defer(units[0], START + Duration::from_secs(60)))
            .await
            .unwrap();
        damage(&store, Family::State, &[]);
        // It is found by looking for it, so that it expires too.
        let moved = UnitKey {
            due: START + Duration::from_secs(60),
            ..units[0]
        };
        let found = overdue(&queue, START + Duration::from_secs(7200));
        assert_eq!(found, [moved, units[1]]);
    });
}

#[test]
fn two_units_for_one_destination_are_refused() {
    block_on(async {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        for domains in [&[][..], &["ok.test", "second.test", "ok.test"]] {
            let refused = queue.accept(message(1, domains, b"hello")).await;
            assert_eq!(refused, Err(CommitError::Units));
        }
        let unit = queue
            .accept(message(1, &["ok.test"], b"hello"))
            .await
            .unwrap()
            .units[0];
        let mut bounce = end(unit, Fate::Bounced);
        bounce.reports.push(message(2, &[], b"it bounced"));
        assert_eq!(settle(&queue, bounce).await, Err(CommitError::Units));
    });
}

#[test]
fn a_folder_of_other_things_is_no_store() {
    let folder = tempfile::tempdir().unwrap();
    // What a fresh volume holds is nobody's.
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    std::fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
    match Queue::open(folder.path(), &OPTIONS) {
        Err(OpenError::NotAStore { example, .. }) => assert_eq!(example, "hosts"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        2,
        "nothing was written"
    );
    std::fs::remove_file(folder.path().join("hosts")).unwrap();
    Queue::open(folder.path(), &OPTIONS).unwrap().close();
}

#[test]
fn a_missing_store_is_not_made_anew_beside_its_mark() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not/there/yet");
    block_on(async {
        let queue = Queue::open(&path, &OPTIONS).unwrap();
        queue.accept(message(1, &["ok.test"], b"hello")).await.unwrap();
        queue.close();
    });
    let refuses = |path: &std::path::Path| match Queue::open(path, &OPTIONS) {
        Err(OpenError::NotItsMark { mark: 1 }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened with all mail missing"),
    };
    // Gone, and another one in its place.
    std::fs::rename(path.join("store"), folder.path().join("elsewhere")).unwrap();
    refuses(&path);
    assert!(!path.join("store").exists(), "an empty store was made");
    let other = folder.path().join("other");
    Queue::open(&other, &OPTIONS).unwrap().close();
    std::fs::rename(other.join("store"), path.join("store")).unwrap();
    refuses(&path);
    // Without the mark, the operator has decided.
    std::fs::remove_file(path.join("mark")).unwrap();
    Queue::open(&path, &OPTIONS).unwrap().close();
}

/// What is overdue, two at a time, as a shard reads it.
fn overdue(queue: &Queue, now: Timestamp) -> Vec<queue::UnitKey> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let (units, more) = queue.expired(now, after, 2, |_| true).unwrap();
        all.extend(units);
        if more.is_none() {
            return all;
        }
        after = more;
    }
}

/// A view for operators, or a walk through the journal, does not end at one bad record.
#[test]
fn pages_go_on_past_damage() {
    block_on(async {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        for number in 1..=5 {
            let domain = format!("d{number}.test");
            queue
                .accept(message(number, &[&domain], b"Subject: x\r\n\r\n"))
                .await
                .unwrap();
        }
        for (family, key) in [
            (Family::Queues, queue::keys::record(queue::QueueId(2)).to_vec()),
            (Family::Event, queue::keys::event(2).to_vec()),
        ] {
            let mut batch = queue::store::Batch::default();
            batch.put(family, &key, b"not a record".to_vec());
            store.write(&batch, true).unwrap();
        }
        assert_eq!(queue.queues(None, 9).unwrap().len(), 4);
        assert_eq!(queue.events(0, 9).unwrap().len(), 4);
        let last = queue.events(5, 9).unwrap()[0].1.id.unwrap();
        assert_eq!(queue.history(last).unwrap().len(), 1);
    });
}

#[test]
fn the_deadline_index_is_read_by_pages_and_by_queue() {
    block_on(async {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        for number in 1..=5 {
            queue
                .accept(message(number, &["a.test", "b.test"], b"Subject: x\r\n\r\n"))
                .await
                .unwrap();
        }
        let late = START + Duration::from_secs(86_400 * 30);
        assert_eq!(overdue(&queue, late).len(), 10);
        let (only, more) = queue
            .expired(late, None, 9, |id| id == queue::QueueId(2))
            .unwrap();
        assert_eq!((only.len(), more), (5, None));
        assert!(only.iter().all(|unit| unit.queue == queue::QueueId(2)));
    });
}

/// A queue that rested for its destination is not forgotten when that is lifted early: its key comes down again.
#[test]
fn a_rest_moves_a_queue_both_ways() {
    block_on(async {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let unit = queue
            .accept(message(1, &["ok.test"], b"Subject: x\r\n\r\n"))
            .await
            .unwrap()
            .units[0];
        let wakes = || queue.waking(None, Timestamp::MAX, 9).unwrap()[0].0;
        assert_eq!(wakes(), unit.due);
        let later = unit.due + Duration::from_secs(300);
        queue.rest(unit.queue, Some(later));
        assert_eq!(wakes(), later);
        queue.rest(unit.queue, None);
        assert_eq!(wakes(), unit.due);
    });
}

#[test]
fn a_suspension_is_there_after_reopening_and_gone_when_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let selector = Selector {
        stream: Some("bulk".into()),
        ..Selector::default()
    };
    let record = |until, reason: &str| SuspensionRecord {
        selector: selector.clone(),
        since: START,
        until,
        reason: reason.into(),
        by: "uid 0".into(),
    };
    let second = record(Some(START + Duration::from_secs(60)), "second");
    block_on(async {
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        queue.suspend(record(None, "first")).await.unwrap();
        queue.suspend(second.clone()).await.unwrap();
        queue.close();
    });
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    assert_eq!(queue.suspensions(9).unwrap(), [second], "the later one holds");
    block_on(queue.resume(selector.clone(), "uid 0", START)).unwrap();
    assert_eq!(queue.suspensions(9).unwrap(), []);
    let expected = [EventKind::Suspended, EventKind::Suspended, EventKind::Resumed];
    assert_eq!(kinds(&queue), expected);
    queue.close();
}

#[test]
fn a_retry_moves_a_unit_and_leaves_its_attempts_and_replies() {
    block_on(async {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let fresh = queue
            .accept(message(1, &["ok.test"], b"body"))
            .await
            .unwrap()
            .units[0];
        let later = START + Duration::from_secs(600);
        let settled = settle(&queue, defer(fresh, later)).await.unwrap();
        let unit = settled.unit.unwrap();
        queue.retry(unit, START, "uid 0").await.unwrap();
        let moved = queue.message(unit.id).unwrap().unwrap().units.remove(0);
        assert_eq!(moved.key.due, START);
        let state = moved.state.unwrap();
        assert_eq!(
            (state.attempts, state.open[0].reply.as_str()),
            (1, "450 4.2.0 later")
        );
        let void = queue.retry(unit, START, "uid 0").await;
        assert!(
            matches!(void, Err(CommitError::Gone)),
            "what has moved is not at its old place"
        );
        assert!(kinds(&queue).ends_with(&[EventKind::Retried]));
    });
}
