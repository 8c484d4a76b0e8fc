//! Damage: a flipped bit in a record of any family, and what becomes of it. CASES: torn WAL tail, flipped byte.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::time::Duration;

use common::{FIRST, START, block_on, defer, end, message, settle};
use mail_core::{MessageId, Timestamp};
use queue::store::{Batch, Family, MemoryStore, Store};
use queue::{
    Accepted, Aside, AsideCause, EventKind, Fate, HoldRecord, HoldScope, Queue, ReadError, Selector,
    SuspensionRecord, UnitKey,
};

const LATE: Timestamp = Timestamp(START.0 + 86_400_000);

/// Flips the last octet's lowest bit in the first record of `family` whose key begins with `prefix`.
fn flip(store: &MemoryStore, family: Family, prefix: &[u8]) {
    let (_, key, mut value) = store
        .contents()
        .into_iter()
        .find(|(of, key, _)| *of == family && key.starts_with(prefix))
        .unwrap();
    *value.last_mut().unwrap() ^= 1;
    let mut batch = Batch::default();
    batch.put(family, &key, value);
    store.write(&batch, true).unwrap();
}

/// Two messages, the first to two domains, once deferred at the first of these. A restart forgets what memory knew.
fn filled() -> (MemoryStore, Queue, Vec<UnitKey>) {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let units = block_on(async {
        let mut units = accept(&queue, 1, &["ok.test", "second.test"]).await.units;
        let later = defer(units[0], START + Duration::from_secs(60));
        units[0] = settle(&queue, later).await.unwrap().unit.unwrap();
        units.extend(accept(&queue, 2, &["ok.test"]).await.units);
        units
    });
    (store.clone(), Queue::in_memory(store).unwrap(), units)
}

async fn accept(queue: &Queue, number: u64, domains: &[&str]) -> Accepted {
    queue
        .accept(message(number, domains, b"Subject: x\r\n\r\nx\r\n"))
        .await
        .unwrap()
}

fn counted(queue: &Queue, family: Family) -> u64 {
    queue.damage_counts().find(|(of, _)| *of == family).unwrap().1
}

fn kinds(queue: &Queue, id: MessageId) -> Vec<EventKind> {
    let history = queue.history(id).unwrap();
    history.into_iter().map(|event| event.kind).collect()
}

/// What of the queue remains once all units have ended.
fn ends_clean(store: &MemoryStore, queue: &Queue, units: &[UnitKey]) {
    block_on(async {
        for unit in units {
            settle(queue, end(*unit, Fate::Deleted)).await.unwrap();
        }
    });
    let left = store.families();
    for family in [Family::Body, Family::Envelope, Family::State, Family::Due] {
        assert!(!left.contains(&family), "{family:?} left behind");
    }
    for (_, record) in queue.queues(None, 10).unwrap() {
        assert_eq!((record.count, record.aside, record.wake), (0, 0, None));
    }
}

#[test]
fn what_is_set_aside_is_not_tried_and_counts_and_expires_as_any_other() {
    let (store, queue, units) = filled();
    block_on(async {
        for (unit, aside) in [
            (units[0], Aside::parked("it panicked", START)),
            (units[2], Aside::parked("so did this", START)),
        ] {
            queue.set_aside(unit, aside).await.unwrap();
        }
        assert_eq!(queue.due(units[0].queue, FIRST, 9).unwrap(), (Vec::new(), false));
        let info = queue.info(units[0].queue).unwrap().unwrap();
        assert_eq!((info.count, info.aside, info.wake), (2, 2, None));
        let (found, more) = queue.set_aside_units(None, 1).unwrap();
        assert!(more);
        let record = &found[0].record;
        assert_eq!(
            (record.cause, record.why.as_str()),
            (AsideCause::Parked, "it panicked")
        );
        let after = (found[0].unit.id, found[0].unit.unit);
        assert_eq!(queue.set_aside_units(Some(after), 9).unwrap().0[0].unit, units[2]);
        let shown = queue.message(units[0].id).unwrap().unwrap();
        let told: Vec<_> = shown
            .units
            .iter()
            .map(|unit| (unit.key, unit.aside.is_some()))
            .collect();
        assert_eq!(told, [(units[0], true), (units[1], false)]);
        let mut overdue = queue.expired(LATE, None, 9, |_| true).unwrap().0;
        overdue.sort();
        assert_eq!(overdue, [units[2], units[0], units[1]]);
        // Once more changes nothing; a void claim is told.
        queue
            .set_aside(units[0], Aside::parked("again", START))
            .await
            .unwrap();
        assert_eq!(queue.aside(&units[0]).unwrap().unwrap().why, "it panicked");
        let void = UnitKey {
            due: LATE,
            ..units[1]
        };
        assert!(queue.set_aside(void, Aside::parked("no", START)).await.is_err());
        // A notice of delay leaves it where it is; an operator brings it back.
        let told = settle(&queue, defer(units[0], units[0].due)).await.unwrap();
        assert_eq!(
            (told.unit, queue.is_due(&units[0]).unwrap()),
            (Some(units[0]), false)
        );
        queue.retry(units[0], units[0].due, "uid 0").await.unwrap();
        assert_eq!(queue.due(units[0].queue, FIRST, 9).unwrap().0, [units[0]]);
        let info = queue.info(units[0].queue).unwrap().unwrap();
        assert_eq!((info.count, info.aside, info.wake), (2, 1, Some(units[0].due)));
    });
    assert_eq!(
        kinds(&queue, units[0].id),
        [
            EventKind::Accepted,
            EventKind::Deferred,
            EventKind::Parked,
            EventKind::Deferred,
            EventKind::Restored
        ]
    );
    ends_clean(&store, &queue, &units);
}

/// A unit whose own records are damaged: never served, set aside, found when its time is up, ended with what is known.
#[test]
fn a_flipped_bit_in_what_a_unit_is_made_of_sets_that_unit_aside() {
    for family in [Family::Body, Family::Envelope, Family::State] {
        let (store, queue, units) = filled();
        let unit = units[0];
        let key = match family {
            Family::State => queue::keys::state(unit.id, unit.unit).to_vec(),
            _ => unit.id.as_bytes().to_vec(),
        };
        flip(&store, family, &key);
        let error = match family {
            Family::State => queue.state(unit.id, unit.unit).unwrap_err(),
            _ => match queue.envelope(unit.id) {
                Ok(envelope) => queue.body(unit.id, &envelope.unwrap()).unwrap_err(),
                Err(error) => error,
            },
        };
        assert!(matches!(&error, ReadError::Damaged { family: named, .. } if *named == family.name()));
        block_on(async {
            queue
                .set_aside(unit, Aside::damaged(&error, START))
                .await
                .unwrap();
        });
        assert_eq!(counted(&queue, family), 1);
        assert_eq!(
            queue.due(unit.queue, FIRST, 9).unwrap().0,
            [units[2]],
            "the other one goes on"
        );
        let found = queue.set_aside_of(unit.id).unwrap();
        assert_eq!(
            (found.len(), found[0].unit, found[0].record.cause),
            (1, unit, AsideCause::Damaged)
        );
        assert!(found[0].record.why.contains(family.name()));
        assert!(
            queue.expired(LATE, None, 9, |_| true).unwrap().0.contains(&unit),
            "{family:?}"
        );
        let recipients = queue.known_recipients(&unit).unwrap();
        assert_eq!(recipients.len(), 1, "{family:?}");
        assert_eq!(recipients[0].to_string(), "to@ok.test");
        assert!(kinds(&queue, unit.id).contains(&EventKind::Damaged));
        ends_clean(&store, &queue, &units);
    }
}

/// What says again what others say is made anew: nothing is set aside, nothing is missing.
#[test]
fn a_flipped_bit_in_an_index_is_mended() {
    let record = [b"r", &1u64.to_be_bytes()[..]].concat();
    for (family, key) in [
        (Family::Due, Vec::new()),
        (Family::Deadline, Vec::new()),
        (Family::Queues, record),
        (Family::Queues, b"dacme\0transactional\0\0\0ok.test".to_vec()),
        // The number of open units.
        (
            Family::State,
            queue::keys::open_units(message(1, &["x.test"], b"").id).to_vec(),
        ),
    ] {
        let (store, queue, units) = filled();
        // The low-water mark and the wake are lower bounds; made anew, they are what they could be.
        let counts = |queue: &Queue| {
            let queues = queue.queues(None, 9).unwrap();
            let count = queues
                .iter()
                .map(|(_, record)| (record.count, record.bytes, record.aside));
            count.collect::<Vec<_>>()
        };
        let whole = counts(&queue);
        flip(&store, family, &key);
        drop(queue);
        let queue = Queue::in_memory(store.clone()).unwrap();
        let mut overdue = queue.expired(LATE, None, 9, |_| true).unwrap().0;
        overdue.sort();
        assert_eq!(overdue, [units[2], units[0], units[1]], "{family:?}");
        // The first look notices.
        counts(&queue);
        assert_eq!(counts(&queue), whole, "{family:?}");
        let info = queue.info(units[0].queue).unwrap().unwrap();
        assert!(info.wake.unwrap() <= units[2].due && info.low_water <= (units[2].due, units[2].id));
        let again = block_on(accept(&queue, 3, &["ok.test"])).units;
        assert_eq!(again[0].queue, units[0].queue, "{family:?}");
        let woken = queue.waking(None, Timestamp::MAX, 9).unwrap();
        assert_eq!(woken.len(), 2, "{family:?}: {woken:?}");
        ends_clean(&store, &queue, &[units, again].concat());
    }
}

#[test]
fn a_flipped_bit_in_the_journal_or_a_hold_moves_the_record_out_of_the_way() {
    let (store, queue, units) = filled();
    let scope = HoldScope::Domain("ok.test".parse().unwrap());
    let record = HoldRecord {
        since: START,
        until: LATE,
        failures: 1,
        cause: "4.4.3 SERVFAIL".into(),
    };
    queue.hold(scope, record);
    for (number, family) in [(1, Family::Event), (2, Family::Hold)] {
        flip(&store, family, &[]);
        let before = store
            .contents()
            .into_iter()
            .find(|(of, ..)| *of == family)
            .unwrap();
        let _ = queue.events(0, 99).unwrap();
        let _ = queue.holds(99).unwrap();
        assert_eq!(counted(&queue, family), 1);
        let aside = queue.set_aside_records(None, 9).unwrap();
        assert_eq!(aside.len(), number);
        let moved = aside.iter().find(|aside| aside.family == family).unwrap();
        assert_eq!((&moved.key, &moved.record.octets[..]), (&before.1, &before.2[..]));
        let is_there = |(of, key, _): &(Family, Vec<u8>, Vec<u8>)| *of == family && *key == before.1;
        assert!(!store.contents().iter().any(is_there));
    }
    // Gone through in pages.
    let first = &queue.set_aside_records(None, 1).unwrap()[0];
    let rest = queue
        .set_aside_records(Some((first.family, &first.key)), 9)
        .unwrap();
    assert_eq!(
        (first.family, rest.len(), rest[0].family),
        (Family::Event, 1, Family::Hold)
    );
    ends_clean(&store, &queue, &units);
}

/// What an operator wanted to wait does not go because a bit flipped.
#[test]
fn a_flipped_bit_in_a_suspension_suspends_for_longer() {
    let (store, queue, _) = filled();
    let selector = Selector {
        tenant: Some("acme".into()),
        domain: Some("ok.test".parse().unwrap()),
        ..Selector::default()
    };
    let record = SuspensionRecord {
        selector: selector.clone(),
        since: START,
        until: Some(LATE),
        reason: "their maintenance".into(),
        by: "uid 0".into(),
    };
    block_on(queue.suspend(record)).unwrap();
    flip(&store, Family::Suspension, &[]);
    let read = queue.suspensions(9).unwrap();
    assert_eq!((&read[0].selector, read[0].until), (&selector, None));
    assert!(read[0].reason.contains("damaged"), "{}", read[0].reason);
    block_on(queue.resume(selector, "uid 0", START)).unwrap();
    assert!(queue.suspensions(9).unwrap().is_empty());
}

/// Two damages at once: what can be told is told, and the unit still ends.
#[test]
fn a_unit_of_which_nothing_reads_ends_all_the_same() {
    let (store, queue, units) = filled();
    let (id, unit) = (units[2].id, units[2]);
    flip(&store, Family::Envelope, id.as_bytes());
    flip(&store, Family::Due, &queue::keys::due(&unit));
    flip(&store, Family::Body, id.as_bytes());
    let error = queue.envelope(id).unwrap_err();
    block_on(queue.set_aside(unit, Aside::damaged(&error, START))).unwrap();
    flip(&store, Family::Aside, b"u");
    // Neither its own record nor the envelope tells its queue: it is not listed, but it is not lost either.
    assert_eq!(
        queue.known_recipients(&unit).unwrap()[0].to_string(),
        "to@ok.test"
    );
    ends_clean(&store, &queue, &units);
}
