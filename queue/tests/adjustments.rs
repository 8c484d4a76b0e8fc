//! What replies have taught, and operators have set, is kept, within a bound, and read for ever.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::time::Duration;

use common::{START, block_on, hex};
use mail_core::Timestamp;
use queue::rocks::RocksStore;
use queue::store::{Batch, Family, MemoryStore, Store};
use queue::{
    AdjustmentKey, AdjustmentRecord, BY_REPLY, Closed, EventKind, HoldRecord, HoldScope, MAX_ADJUSTMENTS,
    Queue, Refused, Scope,
};

const SECOND: Duration = Duration::from_secs(1);

/// Key and value of [`slower`], and of [`suspended`], as version 1 has them.
const VERSION_1: &str = include_str!("fixtures/adjustments-1.txt");

fn scope(site: &str) -> Scope {
    Scope {
        site: Some(site.into()),
        ..Scope::default()
    }
}

fn suspended(site: &str, changed: Timestamp) -> AdjustmentRecord {
    AdjustmentRecord {
        key: AdjustmentKey::suspended(scope(site)),
        since: START,
        changed,
        until: Some(changed + SECOND * 300),
        connections: None,
        rate: None,
        refused: None,
        cause: "421 4.7.0 try again in 5 minutes".into(),
        host: Some("mx1.a.test".into()),
        class: Some("policy".into()),
        by: BY_REPLY.into(),
    }
}

fn slower(site: &str, changed: Timestamp) -> AdjustmentRecord {
    AdjustmentRecord {
        key: AdjustmentKey::learned(scope(site), Some("*.a.test".into())),
        until: Some(changed + SECOND * 86_400),
        connections: Some(45),
        rate: Some(12.5),
        refused: Some(Refused {
            connections: Some(50),
            rate: Some(14.7),
            wait_millis: 120_000,
        }),
        ..suspended(site, changed)
    }
}

fn limited(site: &str, changed: Timestamp) -> AdjustmentRecord {
    AdjustmentRecord {
        key: AdjustmentKey::limited(scope(site)),
        until: None,
        connections: Some(3),
        by: "uid 0".into(),
        ..suspended(site, changed)
    }
}

fn kinds(queue: &Queue) -> Vec<EventKind> {
    let events = queue.events(0, 99).unwrap().into_iter();
    events.map(|(_, event)| event.kind).collect()
}

#[test]
fn what_was_written_is_read_changed_and_ended() {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let first = suspended("mx1.a.test,mx2.a.test", START);
    queue.adjust(first.clone());
    queue.adjust(slower("mx1.a.test,mx2.a.test", START));
    block_on(queue.adjust_synced(limited("mx.b.test", START))).unwrap();
    // Beside a rest, which is another thing in the same family.
    let rest = HoldRecord {
        since: START,
        until: START,
        failures: 1,
        cause: "4.4.1 no answer".into(),
    };
    queue.hold(HoldScope::Lane("mx.b.test".into()), rest);
    assert_eq!(queue.holds(9).unwrap().len(), 1);
    let queue = Queue::in_memory(store).unwrap();
    assert_eq!(queue.adjustment(&first.key).unwrap().as_ref(), Some(&first));
    let all = queue.adjustments(None, 9).unwrap();
    assert_eq!(all.len(), 3);
    let second = queue.adjustments(Some(&all[0].0), 1).unwrap();
    assert_eq!(second[..], all[1..2], "page by page");

    let longer = suspended("mx1.a.test,mx2.a.test", START + SECOND);
    queue.adjust(longer.clone());
    // Whoever knows only of the first does not end the second.
    queue.end_adjustment(first.key.clone(), START, "its end", START + SECOND);
    assert_eq!(queue.adjustment(&first.key).unwrap().as_ref(), Some(&longer));
    queue.end_adjustment(first.key.clone(), longer.changed, "its end", START + SECOND * 2);
    assert_eq!(queue.adjustment(&first.key).unwrap(), None);
    block_on(queue.end_adjustment_synced(limited("mx.b.test", START).key, "uid 0", START)).unwrap();
    assert_eq!(queue.adjustments(None, 9).unwrap().len(), 1);
    let expected = [
        EventKind::Adjusted,
        EventKind::Adjusted,
        EventKind::Adjusted,
        EventKind::Deferred,
        EventKind::Adjusted,
        EventKind::AdjustmentEnded,
        EventKind::AdjustmentEnded,
    ];
    assert_eq!(kinds(&queue), expected);
    let said = queue.events(0, 1).unwrap().remove(0).1.reply;
    assert!(
        said.contains("site mx1.a.test,mx2.a.test: suspended by a reply of mx1.a.test: 421"),
        "{said}"
    );
}

#[test]
fn what_is_written_today_is_version_1() {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let of_both = Scope {
        provider: Some("google".into()),
        tenant: Some("shop".into()),
        source: Some("out1".into()),
        ..Scope::default()
    };
    let wide = AdjustmentRecord {
        key: AdjustmentKey::suspended(of_both),
        ..suspended("", START)
    };
    let records = [slower("mx1.a.test", START), wide, limited("mx.b.test", START)];
    for record in &records {
        queue.adjust(record.clone());
    }
    let mut written = String::new();
    for (family, key, value) in store.contents() {
        if family == Family::Hold {
            written += &format!("{} {} {}\n", family.name(), hex(&key), hex(&value));
        }
    }
    if let Some(path) = std::env::var_os("POSTRIDER_WRITE_FIXTURE") {
        std::fs::write(path, &written).unwrap();
    }
    assert_eq!(written, VERSION_1);
    for (_, read) in queue.adjustments(None, 9).unwrap() {
        assert!(records.contains(&read), "{read:?}");
    }
}

/// Those whose time is over fall out first, then slower lanes, then suspensions by replies; an operator's stay.
#[test]
fn there_are_no_more_than_the_bound() {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let now = START + SECOND * 1_000;
    queue.adjust(limited("operators", START));
    queue.adjust(suspended("over", START));
    queue.adjust(slower("slow", START + SECOND));
    queue.adjust(suspended("oldest", now));
    for number in 4..MAX_ADJUSTMENTS {
        queue.adjust(suspended(&format!("s{number}"), now + SECOND));
    }
    // It counts anew after a start.
    let queue = Queue::in_memory(store).unwrap();
    let is_there = |key: &AdjustmentKey| queue.adjustment(key).unwrap().is_some();
    for (number, gone) in [
        suspended("over", START).key,
        slower("slow", START).key,
        suspended("oldest", START).key,
    ]
    .iter()
    .enumerate()
    {
        assert!(is_there(gone));
        queue.adjust(suspended(&format!("new{number}"), now + SECOND * 2));
        assert!(!is_there(gone), "{gone}");
        assert_eq!(
            queue.adjustments(None, usize::MAX).unwrap().len(),
            MAX_ADJUSTMENTS
        );
    }
    assert!(is_there(&limited("operators", START).key));
    // One that is there already takes no other's place.
    queue.adjust(suspended("s7", now + SECOND * 3));
    assert!(is_there(&suspended("s8", START).key));
}

#[test]
fn a_damaged_one_is_set_aside_and_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let options = queue::Options {
        min_free_bytes: 0,
        ..queue::Options::default()
    };
    let sound = suspended("mx.a.test", START);
    {
        let queue = Queue::open(folder.path(), &options).unwrap();
        block_on(queue.adjust_synced(sound.clone())).unwrap();
        block_on(queue.adjust_synced(suspended("mx.b.test", START))).unwrap();
        queue.close();
    }
    let verify = || {
        let mut problems = Vec::new();
        let closed = Closed::open(folder.path(), true).unwrap();
        closed
            .verify(&mut |problem| problems.push((problem.family, problem.what)))
            .unwrap();
        problems
    };
    assert_eq!(verify(), []);
    {
        let store = RocksStore::open(&folder.path().join("store"), true).unwrap();
        let mut batch = Batch::default();
        let mut key = vec![b'a', b's', 0, 0, 0];
        key.extend_from_slice(b"mx.b.test\0");
        let mut value = store.get(Family::Hold, &key).unwrap().unwrap().to_vec();
        value[5] ^= 1;
        batch.put(Family::Hold, &key, value);
        store.write(&batch, true).unwrap();
    }
    assert_eq!(verify(), [(Family::Hold, "damaged record: checksum".to_owned())]);
    let queue = Queue::open(folder.path(), &options).unwrap();
    let all = queue.adjustments(None, 9).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].1, sound);
    queue.close();
}
