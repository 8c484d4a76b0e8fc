//! Stores of every released format are opened for ever.
//!
//! A fixture is a store's contents as text: family, key and value in hexadecimal, a line each. `v1.txt` holds one message
//! put off at one domain and fresh at another, one that ended, and a destination at rest; `v2.txt` also a route group, a
//! suspension, an upload cut short, and at two other domains units that are set aside; `v3.txt` the same, with a priority and a time
//! named by the client; `v4.txt` the same, each queue's low-water mark naming a message.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{FIRST, START, block_on, defer, end, hex, load, message, settle, unhex};
use mail_core::{DeliverBy, Priority, TransferOptions, WhenLate};
use queue::rocks::RocksStore;
use queue::store::{Family, MemoryStore};
use queue::{
    Aside, AsideCause, Closed, EventKind, Exported, Fate, HoldRecord, HoldScope, NewMessage, Queue,
    RouteGroup, Selector, SuspensionRecord,
};

const V1: &str = include_str!("fixtures/v1.txt");
const V2: &str = include_str!("fixtures/v2.txt");
const V3: &str = include_str!("fixtures/v3.txt");
const V4: &str = include_str!("fixtures/v4.txt");

/// How the fixtures were made, each by the program of its time.
fn fill(store: &MemoryStore) {
    block_on(async {
        let queue = Queue::in_memory(store.clone()).unwrap();
        let first = message(1, &["ok.test", "second.test"], b"Subject: one\r\n\r\nhello\r\n");
        let first = NewMessage {
            transfer: transfer(),
            ..(*first).clone()
        };
        let waits = queue.accept(Arc::new(first)).await.unwrap();
        settle(&queue, defer(waits.units[0], START + Duration::from_secs(60)))
            .await
            .unwrap();
        queue.route_groups(&["discard a reason"]).unwrap();
        let over = queue
            .accept(message(2, &["ok.test"], b"Subject: two\r\n\r\nhello\r\n"))
            .await
            .unwrap();
        settle(&queue, end(over.units[0], Fate::Delivered)).await.unwrap();
        let scope = HoldScope::Domain("second.test".parse().unwrap());
        let until = START + Duration::from_secs(30);
        queue.hold(
            scope,
            HoldRecord {
                since: START,
                until,
                failures: 1,
                cause: "4.4.3 SERVFAIL".into(),
            },
        );
        queue.suspend(suspension()).await.unwrap();
        for (number, domain) in [(4, "damaged.test"), (5, "parked.test")] {
            let unit = queue
                .accept(message(number, &[domain], b"Subject: x\r\n"))
                .await
                .unwrap()
                .units[0];
            let aside = match number {
                4 => Aside::damaged(&queue.missing(&unit).unwrap().unwrap(), START),
                _ => Aside::parked("it panicked", START),
            };
            queue.set_aside(unit, aside).await.unwrap();
        }
        // One that was coming in when the program ended.
        let mut upload = queue.upload(message(3, &["ok.test"], b"").id);
        for chunk in [&b"second chunk\r\n"[..], b"third chunk\r\n"] {
            upload.write(Bytes::from_static(chunk)).await.unwrap();
        }
        std::mem::forget(upload);
    });
}

fn transfer() -> TransferOptions {
    TransferOptions {
        priority: Some(Priority::try_from(-4).unwrap()),
        by: Some(DeliverBy {
            at: START + Duration::from_secs(600),
            late: WhenLate::Notify,
            trace: true,
        }),
    }
}

fn suspension() -> SuspensionRecord {
    SuspensionRecord {
        selector: Selector {
            tenant: Some("acme".into()),
            domain: Some("second.test".parse().unwrap()),
            ..Selector::default()
        },
        since: START,
        until: Some(START + Duration::from_secs(3_600)),
        reason: "their maintenance".into(),
        by: "uid 0".into(),
    }
}

fn look(queue: &Queue, asked: TransferOptions) {
    let mut queues = queue.queues(None, 9).unwrap();
    queues.truncate(2);
    let told: Vec<_> = queues
        .iter()
        .map(|(_, record)| (record.name.domain.as_str(), record.count))
        .collect();
    assert_eq!(told, [("ok.test", 1), ("second.test", 1)]);
    let (units, more) = queue.due(queues[0].0, FIRST, 9).unwrap();
    assert!(!more && units.len() == 1);
    let message = queue.message(units[0].id).unwrap().unwrap();
    assert_eq!(message.units.len(), 2);
    assert_eq!(message.envelope.transfer, asked);
    assert_eq!(message.units[0].state.as_ref().unwrap().attempts, 1);
    assert_eq!(
        &queue.body(message.id, &message.envelope).unwrap()[..],
        b"Subject: one\r\n\r\nhello\r\n"
    );
    let held = queue
        .held(&HoldScope::Domain("second.test".parse().unwrap()))
        .unwrap()
        .unwrap();
    assert_eq!(held.cause, "4.4.3 SERVFAIL");
    let kinds: Vec<_> = queue
        .events(0, 99)
        .unwrap()
        .into_iter()
        .map(|(_, event)| event.kind)
        .collect();
    let expected = [
        EventKind::Accepted,
        EventKind::Deferred,
        EventKind::Accepted,
        EventKind::Delivered,
        EventKind::Deferred,
    ];
    assert_eq!(kinds[..expected.len()], expected);
}

#[test]
fn every_version_reads_in_both_stores_and_can_be_worked_on() {
    for (fixture, asked) in [
        (V1, TransferOptions::default()),
        (V2, TransferOptions::default()),
        (V3, transfer()),
        (V4, transfer()),
    ] {
        reads(fixture, asked);
    }
    let store = MemoryStore::new();
    load(&store, V2);
    let queue = Queue::in_memory(store).unwrap();
    assert_eq!(queue.suspensions(9).unwrap(), [suspension()]);
    let names = queue.route_group_names().unwrap();
    assert_eq!(names, [(RouteGroup(1), "discard a reason".to_owned())]);
    let (aside, _) = queue.set_aside_units(None, 9).unwrap();
    let causes: Vec<_> = aside.iter().map(|aside| aside.record.cause).collect();
    assert_eq!(causes, [AsideCause::Damaged, AsideCause::Parked]);
}

fn reads(fixture: &str, asked: TransferOptions) {
    let store = MemoryStore::new();
    load(&store, fixture);
    let queue = Queue::in_memory(store.clone()).unwrap();
    assert!(!store.families().contains(&Family::Upload), "uploads are swept");
    look(&queue, asked);
    block_on(async {
        for (id, _) in queue.queues(None, 9).unwrap() {
            for unit in queue.due(id, FIRST, 9).unwrap().0 {
                settle(&queue, end(unit, Fate::Delivered)).await.unwrap();
            }
        }
        for aside in queue.set_aside_units(None, 9).unwrap().0 {
            settle(&queue, end(aside.unit, Fate::Deleted)).await.unwrap();
        }
    });
    assert!(
        queue
            .queues(None, 9)
            .unwrap()
            .iter()
            .all(|(_, record)| record.count == 0)
    );
    assert!(!store.families().contains(&Family::Body));

    let folder = tempfile::tempdir().unwrap();
    load(
        &RocksStore::open(&folder.path().join("store"), true).unwrap(),
        fixture,
    );
    let options = queue::Options {
        min_free_bytes: 0,
        commit_patience: Duration::from_secs(60),
        limits: queue::Limits::NONE,
    };
    let queue = Queue::open(folder.path(), &options).unwrap();
    look(&queue, asked);
    queue.close();
}

/// Today's format is the fixture's, octet for octet: a change of layout needs a new version and a new fixture.
#[test]
fn what_is_written_today_is_version_4() {
    let store = MemoryStore::new();
    fill(&store);
    let lines = |text: &str| {
        text.lines()
            .filter(|line| !line.starts_with("meta 73746f7265 "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut written = String::new();
    for (family, key, value) in store.contents() {
        let _ = writeln!(written, "{} {} {}", family.name(), hex(&key), hex(&value));
    }
    if let Some(path) = std::env::var_os("POSTRIDER_WRITE_FIXTURE") {
        std::fs::write(path, &written).unwrap();
    }
    assert_eq!(lines(&written), lines(V4));
}

const OPTIONS: queue::Options = queue::Options {
    min_free_bytes: 0,
    commit_patience: Duration::from_secs(60),
    limits: queue::Limits::NONE,
};

/// A stream of every released version, with records of every version, is taken in for ever: these were made of `v2.txt` and `v3.txt`.
/// POSTRIDER_WRITE_STREAM names a file to write today's to.
#[test]
fn a_stream_of_version_1_is_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    load(&RocksStore::open(&folder.path().join("store"), true).unwrap(), V3);
    let closed = Closed::open(folder.path(), false).unwrap();
    let mut today = Vec::new();
    let header = ([1; 16], "0.1.0", START);
    let exported = closed.export(&mut today, header, &mut |_| {}).unwrap();
    drop(closed);
    if let Some(path) = std::env::var_os("POSTRIDER_WRITE_STREAM") {
        std::fs::write(path, format!("{}\n", hex(&today))).unwrap();
    }
    let older = unhex(include_str!("fixtures/stream-1.txt").trim_end());
    let fixture = unhex(include_str!("fixtures/stream-1-records-3.txt").trim_end());
    assert!(today == fixture, "what is written today is another version");
    taken_in(&older, &exported, TransferOptions::default());
    taken_in(&fixture, &exported, transfer());
}

fn taken_in(stream: &[u8], exported: &Exported, asked: TransferOptions) {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    let imported = block_on(queue.import(stream, START, false, &mut |_| {})).unwrap();
    assert_eq!(imported.counts, exported.counts);
    assert_eq!(
        (imported.messages, imported.units, imported.suspensions),
        (3, 4, 1)
    );
    let aside = queue.set_aside_units(None, 9).unwrap().0;
    let causes: Vec<_> = aside.iter().map(|aside| aside.record.cause).collect();
    assert_eq!(causes.len(), 2, "{causes:?}");
    let (mut waiting, mut deferred) = (0, 0);
    for (id, _) in queue.queues(None, 9).unwrap() {
        for unit in queue.due(id, FIRST, 9).unwrap().0 {
            let message = queue.message(unit.id).unwrap().unwrap();
            assert_eq!(
                queue.body(unit.id, &message.envelope).unwrap(),
                &b"Subject: one\r\n\r\nhello\r\n"[..]
            );
            assert_eq!(message.envelope.transfer, asked);
            deferred += u32::from(unit.due == START + Duration::from_secs(60));
            waiting += 1;
        }
    }
    assert_eq!((waiting, deferred), (2, 1));
    // Told of at the time that the client named.
    let late = |now| queue.late(now, None, 9, |_| true).unwrap().0.len();
    let named = if asked.by.is_some() { 2 } else { 0 };
    let at = START + Duration::from_secs(600);
    assert_eq!((late(at - Duration::from_secs(2)), late(at)), (0, named));
    queue.close();
}
