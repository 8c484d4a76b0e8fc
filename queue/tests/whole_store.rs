//! A whole store as a program left it, RocksDB's own files and the mark too, is opened for ever: by what RocksDB is told of families, logs,
//! tables and blobs today, and not only by what reads a record.
//!
//! `fixtures/store-N` is the folder that a program of format N made by [`fill`], without the files that RocksDB makes anew and does
//! not read. A new format gets a new one: `cargo test -p queue --test whole_store -- --ignored`; those that are there stay.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{FIRST, START, block_on, copy, defer, end, message, settle};
use mail_core::{MessageId, Notify};
use queue::rocks::RocksStore;
use queue::store::{Batch, Family, Store};
use queue::{
    AdjustmentKey, AdjustmentRecord, Aside, AsideCause, BY_REPLY, Closed, Counts, CountsRecord, EventKind,
    FORMAT_VERSION, Fate, HoldRecord, HoldScope, NewMessage, OpenError, Options, Queue, Scope, Selector,
    SuspensionRecord,
};

const OPTIONS: Options = Options {
    min_free_bytes: 0,
    commit_patience: Duration::from_secs(60),
    limits: queue::Limits::NONE,
};

const SECOND: Duration = Duration::from_secs(1);

/// The oldest format of which there is a whole store.
const OLDEST: u16 = 3;

/// Where the store of a format is, or is to be.
fn fixture(format: u16) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/store-{format}"))
}

/// Chunks of the large message. Each is more than goes to a table: they are in blob files.
fn chunks() -> [Bytes; 3] {
    [b'a', b'b', b'c'].map(|letter| Bytes::from([&[letter; 70][..], b"\r\n"].concat().repeat(80)))
}

fn numbered(number: u64) -> MessageId {
    message(number, &["ok.test"], b"").id
}

fn body(number: u64) -> Vec<u8> {
    format!("Subject: {number}\r\n\r\nhello\r\n").into_bytes()
}

fn suspension() -> SuspensionRecord {
    SuspensionRecord {
        selector: Selector {
            tenant: Some("acme".into()),
            domain: Some("suspended.test".parse().unwrap()),
            ..Selector::default()
        },
        since: START,
        until: Some(START + SECOND * 3_600),
        reason: "their maintenance".into(),
        by: "uid 0".into(),
    }
}

fn hold() -> HoldRecord {
    HoldRecord {
        since: START,
        until: START + SECOND * 30,
        failures: 1,
        cause: "4.4.3 SERVFAIL".into(),
    }
}

fn of_domain(domain: &str) -> HoldScope {
    HoldScope::Domain(domain.parse().unwrap())
}

fn adjustment() -> AdjustmentRecord {
    let scope = Scope {
        site: Some("mx1.ok.test".into()),
        ..Scope::default()
    };
    AdjustmentRecord {
        key: AdjustmentKey::learned(scope, None),
        since: START,
        changed: START,
        until: Some(START + SECOND * 86_400),
        connections: Some(45),
        rate: Some(12.5),
        refused: None,
        cause: "421 4.7.0 too many connections".into(),
        host: Some("mx1.ok.test".into()),
        class: Some("policy".into()),
        by: BY_REPLY.into(),
    }
}

fn counts() -> Vec<(Scope, Option<CountsRecord>)> {
    let scope = Scope {
        provider: Some("google".into()),
        ..Scope::default()
    };
    let day = Counts {
        newest: 19_675,
        parts: vec![2_000_000],
    };
    let record = CountsRecord {
        at: START,
        minute: None,
        hour: None,
        day: Some(day),
    };
    vec![(scope, Some(record))]
}

/// Two lives of a program, and damage between them: what the first left has become tables, what the second left is in the log.
fn fill(folder: &Path) {
    block_on(async {
        let queue = Queue::open(folder, &OPTIONS).unwrap();
        let group = queue.route_groups(&["smart host a"]).unwrap()[0];
        let units = accept(&queue, 1, &["ok.test", "second.test"]).await;
        settle(&queue, defer(units[0], START + SECOND * 60))
            .await
            .unwrap();
        let mut upload = queue.upload(numbered(2));
        let [first, more @ ..] = chunks();
        for chunk in more {
            upload.write(chunk).await.unwrap();
        }
        let mut large = NewMessage {
            rest: Some(upload.finish()),
            ..(*message(2, &["large.test"], &first)).clone()
        };
        large.units[0].route_group = group;
        queue.accept(Arc::new(large)).await.unwrap();
        accept(&queue, 3, &["damaged.test"]).await;
        let parked = accept(&queue, 4, &["parked.test"]).await[0];
        let aside = Aside::parked("it panicked", START);
        queue.set_aside(parked, aside).await.unwrap();
        let over = accept(&queue, 5, &["ok.test"]).await[0];
        settle(&queue, end(over, Fate::Delivered)).await.unwrap();
        accept(&queue, 6, &["suspended.test"]).await;
        queue.suspend(suspension()).await.unwrap();
        queue.hold(of_domain("second.test"), hold());
        queue.hold(of_domain("third.test"), hold());
        queue.adjust_synced(adjustment()).await.unwrap();
        queue.keep_counts(counts()).await.unwrap();
        queue.close();
    });
    {
        let store = RocksStore::open(&folder.join("store"), true).unwrap();
        flip(&store, Family::Body, numbered(3).as_bytes());
        flip(&store, Family::Hold, b"dthird");
    }
    block_on(async {
        let queue = Queue::open(folder, &OPTIONS).unwrap();
        let envelope = queue.envelope(numbered(3)).unwrap().unwrap();
        let error = queue.body(numbered(3), &envelope).unwrap_err();
        let unit = queue.message(numbered(3)).unwrap().unwrap().units[0].key;
        let aside = Aside::damaged(&error, START);
        queue.set_aside(unit, aside).await.unwrap();
        assert_eq!(queue.holds(9).unwrap().len(), 1);
        accept(&queue, 7, &["ok.test"]).await;
        // One that was coming in when the program ended.
        let mut upload = queue.upload(numbered(8));
        upload.write(Bytes::from_static(b"a chunk\r\n")).await.unwrap();
        std::mem::forget(upload);
        accept(&queue, 9, &["ok.test"]).await;
        queue.close();
    });
}

/// A small message whose senders want to hear of a delay.
async fn accept(queue: &Queue, number: u64, domains: &[&str]) -> Vec<queue::UnitKey> {
    let mut message = (*message(number, domains, &body(number))).clone();
    message.units[0].recipients[0].notify = Some(Notify::On {
        success: false,
        failure: true,
        delay: true,
    });
    queue.accept(Arc::new(message)).await.unwrap().units
}

/// Flips a bit of the one record whose key begins so.
fn flip(store: &RocksStore, family: Family, prefix: &[u8]) {
    let mut found = Vec::new();
    let end = [prefix, &[0xff; 8]].concat();
    store
        .scan(family, prefix, &end, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            true
        })
        .unwrap();
    let [(key, value)] = &mut found[..] else {
        panic!("{found:?}");
    };
    *value.last_mut().unwrap() ^= 1;
    let mut batch = Batch::default();
    batch.put_copy(family, key, value);
    store.write(&batch, true).unwrap();
}

fn logs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("store")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|is| is == "log"))
        .collect()
}

/// All that [`fill`] has written, but for what a program sweeps when it starts.
fn holds_all(queue: &Queue) {
    let waiting: BTreeMap<_, _> = queue
        .queues(None, 99)
        .unwrap()
        .into_iter()
        .map(|(id, record)| {
            let name = record.name.domain.to_string();
            (name, (id, record.count, record.aside))
        })
        .collect();
    let told: Vec<_> = waiting
        .iter()
        .map(|(name, (_, count, aside))| (name.as_str(), *count, *aside))
        .collect();
    assert_eq!(
        told,
        [
            ("damaged.test", 1, 1),
            ("large.test", 1, 0),
            ("ok.test", 3, 0),
            ("parked.test", 1, 1),
            ("second.test", 1, 0),
            ("suspended.test", 1, 0),
        ]
    );
    // In the order they are due; the first has been put off behind the others.
    let (units, _) = queue.due(waiting["ok.test"].0, FIRST, 9).unwrap();
    let ids: Vec<_> = units.iter().map(|unit| unit.id).collect();
    assert_eq!(ids, [7, 9, 1].map(numbered));
    assert_eq!(units[2].due, START + SECOND * 60);
    for number in [1, 4, 6, 7, 9] {
        let found = queue.message(numbered(number)).unwrap().unwrap();
        assert_eq!(queue.body(found.id, &found.envelope).unwrap(), body(number));
    }
    let first = queue.message(numbered(1)).unwrap().unwrap();
    assert_eq!(first.units.len(), 2);
    assert_eq!(first.units[0].state.as_ref().unwrap().attempts, 1);
    let large = queue.message(numbered(2)).unwrap().unwrap();
    assert_eq!(large.envelope.chunks.len(), 3);
    assert_eq!(queue.body(large.id, &large.envelope).unwrap(), chunks().concat());
    let names = queue.route_group_names().unwrap();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].1, "smart host a");
    assert!(queue.envelope(numbered(5)).unwrap().is_none());

    let damaged = queue.envelope(numbered(3)).unwrap().unwrap();
    assert!(queue.body(numbered(3), &damaged).unwrap_err().is_damage());
    let aside = queue.set_aside_units(None, 9).unwrap().0;
    let causes: Vec<_> = aside
        .iter()
        .map(|aside| (aside.unit.id, aside.record.cause))
        .collect();
    let expected = [
        (numbered(3), AsideCause::Damaged),
        (numbered(4), AsideCause::Parked),
    ];
    assert_eq!(causes, expected);
    let moved = queue.set_aside_records(None, 9).unwrap();
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].family, Family::Hold);

    assert_eq!(queue.suspensions(9).unwrap(), [suspension()]);
    assert_eq!(queue.held(&of_domain("second.test")).unwrap(), Some(hold()));
    let adjustments = queue.adjustments(None, 9).unwrap();
    assert_eq!(adjustments.len(), 1);
    assert_eq!(adjustments[0].1, adjustment());
    assert_eq!(queue.counts(None, 9).unwrap(), counts());
    let late = queue.delayed(START + SECOND * 60, None, 9, |_| true).unwrap().0;
    assert!(late.len() > 3, "{late:?}");
    let kinds: Vec<_> = queue.history(numbered(1)).unwrap().into_iter().collect();
    let kinds: Vec<_> = kinds.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Accepted, EventKind::Deferred]);
}

#[test]
fn every_format_is_opened_with_all_it_holds_and_worked_on() {
    for format in OLDEST..=FORMAT_VERSION {
        let made = fixture(format);
        assert!(
            made.exists(),
            "format {format} has none: it is made as told at the head"
        );
        let folder = copy(&made);
        assert!(!logs(folder.path()).is_empty(), "some of it is in the log");
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        holds_all(&queue);
        block_on(accept(&queue, 10, &["ok.test"]));
        queue.close();
        drop(queue);
        // It is today's now, and whole but for the body that was damaged.
        let mut problems = Vec::new();
        let verified = Closed::open(folder.path(), true)
            .unwrap()
            .verify(&mut |problem| problems.push((problem.family, problem.what)))
            .unwrap();
        let families: Vec<_> = problems.iter().map(|(family, _)| *family).collect();
        assert_eq!(families, [Family::Aside, Family::Body], "{problems:?}");
        let empty: Vec<_> = verified
            .families
            .iter()
            .filter(|family| family.records == 0)
            .collect();
        let empty: Vec<_> = empty.iter().map(|family| family.family).collect();
        // Uploads are swept; the others have no records yet.
        let unused = [Family::Upload, Family::Idempotency, Family::Suppression];
        assert_eq!(empty, unused);
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        block_on(async {
            for number in [1, 2, 3, 4, 6, 7, 9, 10] {
                for unit in queue.message(numbered(number)).unwrap().unwrap().units {
                    settle(&queue, end(unit.key, Fate::Delivered)).await.unwrap();
                }
            }
        });
        let left = queue.queues(None, 99).unwrap();
        assert!(left.iter().all(|(_, record)| record.count == 0), "{left:?}");
        queue.close();
    }
}

/// The mark of each format is read: mail that was acknowledged is missing, and it is told.
#[test]
fn a_store_of_any_format_without_its_log_is_refused() {
    for format in OLDEST..=FORMAT_VERSION {
        let folder = copy(&fixture(format));
        for log in logs(folder.path()) {
            fs::remove_file(log).unwrap();
        }
        match Queue::open(folder.path(), &OPTIONS) {
            Err(OpenError::OlderThanMark { store, mark }) => {
                assert!(store > 0 && store < mark, "{store}, {mark}")
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("opened with mail missing"),
        }
    }
}

#[test]
#[ignore = "makes the fixture, once for each format"]
fn the_store_of_todays_format_is_written() {
    let to = fixture(FORMAT_VERSION);
    assert!(!to.exists(), "there is one already, which stays as it is");
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let made = folder.path().join("store");
    fs::create_dir_all(to.join("store")).unwrap();
    fs::copy(folder.path().join("mark"), to.join("mark")).unwrap();
    for entry in fs::read_dir(made).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !["LOG", "LOCK", "OPTIONS"]
            .iter()
            .any(|anew| name.starts_with(anew))
        {
            fs::copy(entry.path(), to.join("store").join(name)).unwrap();
        }
    }
}
