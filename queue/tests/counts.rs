//! What limits have counted is read for ever.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use common::{START, block_on, hex, load};
use queue::store::{Batch, Family, MemoryStore, Store};
use queue::{Counts, CountsRecord, Queue, Scope};

/// Key and value of [`kept`], as each version has them; the first knew nothing of minutes.
const VERSION_1: &str = include_str!("fixtures/counts-1.txt");
const VERSION_2: &str = include_str!("fixtures/counts-2.txt");

fn kept(minute: Option<Counts>) -> Vec<(Scope, Option<CountsRecord>)> {
    let counts = |newest, parts: &[u64]| {
        Some(Counts {
            newest,
            parts: parts.to_vec(),
        })
    };
    let of_three = Scope {
        provider: Some("google".into()),
        tenant: Some("shop".into()),
        source: Some("out1".into()),
        ..Scope::default()
    };
    let of_site = Scope {
        site: Some("mx1.a.test,mx2.a.test".into()),
        ..Scope::default()
    };
    let day = CountsRecord {
        at: START,
        minute: None,
        hour: None,
        day: counts(19_675, &[2_000_000]),
    };
    let all = CountsRecord {
        minute,
        hour: counts(472_222, &[1_000, 5, 90_000]),
        ..day.clone()
    };
    vec![(of_three, Some(day)), (of_site, Some(all))]
}

fn minute() -> Option<Counts> {
    Some(Counts {
        newest: 28_333_333,
        parts: vec![7, 300],
    })
}

#[test]
fn every_version_reads() {
    for (fixture, minute) in [(VERSION_1, None), (VERSION_2, minute())] {
        let store = MemoryStore::new();
        load(&store, fixture);
        let queue = Queue::in_memory(store).unwrap();
        assert_eq!(queue.counts(None, 9).unwrap(), kept(minute));
    }
}

#[test]
fn pages_hold_each_scope_once() {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let [(_, record), _] = kept(None).try_into().unwrap();
    let of_tenant = |name: &str| Scope {
        tenant: Some(name.into()),
        ..Scope::default()
    };
    let scopes = ["a", "b", "ba", "c", "d"].map(of_tenant);
    let all = scopes.clone().map(|scope| (scope, record.clone()));
    block_on(queue.keep_counts(all.to_vec())).unwrap();
    // A page goes on past keys that name nothing, and what is damaged is on it.
    let mut damage = Batch::default();
    damage.put(Family::Count, b"\0\0b\0\0", &b"too long a key"[..]);
    damage.put(Family::Count, b"\0\0bb", &b"too short a key"[..]);
    damage.put(Family::Count, b"\0\0c\0", &b"no record"[..]);
    store.write(&damage, true).unwrap();

    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = queue.counts(found.last().map(|(scope, _)| scope), 2).unwrap();
        pages += 1;
        assert!(page.len() <= 2, "{page:?}");
        let is_last = page.len() < 2;
        found.extend(page);
        if is_last {
            break;
        }
    }
    let mut expected = all.to_vec();
    expected[3].1 = None;
    assert_eq!((found, pages), (expected, 3));
}

#[test]
fn what_is_written_today_is_version_2() {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    block_on(queue.keep_counts(kept(minute()))).unwrap();
    let written: String = store
        .contents()
        .into_iter()
        .filter(|(family, ..)| *family == Family::Count)
        .map(|(family, key, value)| format!("{} {} {}\n", family.name(), hex(&key), hex(&value)))
        .collect();
    assert_eq!(written, VERSION_2);
}
