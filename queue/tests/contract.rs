//! What every store does alike: the model and RocksDB pass the same suite, and random operations leave equal contents.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use proptest::prelude::*;
use queue::rocks::RocksStore;
use queue::store::{Batch, Family, MemoryStore, Store};

fn both(check: impl Fn(&dyn Store)) {
    check(&MemoryStore::new());
    let folder = tempfile::tempdir().unwrap();
    check(&RocksStore::open(folder.path(), true).unwrap());
}

fn put(store: &dyn Store, family: Family, pairs: &[(&[u8], &[u8])]) {
    let mut batch = Batch::default();
    for (key, value) in pairs {
        batch.put(family, key, value.to_vec());
    }
    store.write(&batch, true).unwrap();
}

fn scan(store: &dyn Store, family: Family, from: &[u8], to: &[u8], limit: usize) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    store
        .scan(family, from, to, &mut |key, _| {
            keys.push(key.to_vec());
            keys.len() < limit
        })
        .unwrap();
    keys
}

#[test]
fn families_are_apart() {
    both(|store| {
        for (number, family) in Family::ALL.into_iter().enumerate() {
            put(store, family, &[(b"key", &[number as u8])]);
        }
        for (number, family) in Family::ALL.into_iter().enumerate() {
            assert_eq!(store.get(family, b"key").unwrap(), Some(vec![number as u8]));
            assert_eq!(store.get(family, b"other").unwrap(), None);
        }
    });
}

#[test]
fn later_writes_of_a_batch_win() {
    both(|store| {
        let mut batch = Batch::default();
        batch.put(Family::Due, b"a", b"1".to_vec());
        batch.delete(Family::Due, b"a");
        batch.delete(Family::Due, b"b");
        batch.put(Family::Due, b"b", b"2".to_vec());
        store.write(&batch, true).unwrap();
        assert_eq!(store.get(Family::Due, b"a").unwrap(), None);
        assert_eq!(store.get(Family::Due, b"b").unwrap(), Some(b"2".to_vec()));
    });
}

#[test]
fn a_range_goes_whole_and_before_the_batchs_own_writes() {
    both(|store| {
        let keys: Vec<[u8; 1]> = (0..9).map(|number| [number]).collect();
        let pairs: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &b"1"[..])).collect();
        put(store, Family::Event, &pairs);
        put(store, Family::Due, &pairs);
        let mut batch = Batch::default();
        batch.put(Family::Event, &[3], b"2".to_vec());
        batch.delete_range(Family::Event, &[1], &[6]);
        assert!(!batch.is_empty());
        store.write(&batch, true).unwrap();
        store.reclaim(Family::Event, &[1], &[3]).unwrap();
        let left = scan(store, Family::Event, &[], &[9], 99);
        assert_eq!(left, [[0], [3], [6], [7], [8]]);
        assert_eq!(store.get(Family::Event, &[3]).unwrap(), Some(b"2".to_vec()));
        assert_eq!(scan(store, Family::Due, &[], &[9], 99).len(), 9);
    });
}

#[test]
fn scans_go_in_octet_order_within_their_bounds() {
    both(|store| {
        put(
            store,
            Family::Due,
            &[(&[0xff], b""), (&[0x7f], b""), (&[0x80], b""), (&[0x7f, 0], b"")],
        );
        assert_eq!(
            scan(store, Family::Due, &[0x7f], &[0xff], 9),
            [vec![0x7f], vec![0x7f, 0], vec![0x80]]
        );
        assert_eq!(
            scan(store, Family::Due, &[], &[0xff, 0xff], 2),
            [vec![0x7f], vec![0x7f, 0]]
        );
        assert_eq!(
            scan(store, Family::Due, &[0xff], &[0x7f], 9),
            Vec::<Vec<u8>>::new()
        );
        assert_eq!(
            store.last(Family::Due, &[], &[0xff]).unwrap().map(|(key, _)| key),
            Some(vec![0x80])
        );
        assert_eq!(store.last(Family::Event, &[], &[0xff]).unwrap(), None);
    });
}

#[test]
fn a_store_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _open = RocksStore::open(folder.path(), true).unwrap();
    let Err(refused) = RocksStore::open(folder.path(), true) else {
        panic!("opened twice")
    };
    assert!(
        refused.to_string().contains("in use by another process"),
        "{refused}"
    );
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
    let store = MemoryStore::new();
    put(&store, Family::Due, &[(b"kept", b"1"), (b"changed", b"1")]);
    let mut batch = Batch::default();
    batch.put(Family::Due, b"changed", b"2".to_vec());
    batch.put(Family::Due, b"new", b"3".to_vec());
    batch.delete_range(Family::Due, b"k", b"l");
    store.write(&batch, false).unwrap();
    assert_eq!(store.get(Family::Due, b"kept").unwrap(), None);
    let left = store.cut_power(0);
    assert_eq!(left.get(Family::Due, b"kept").unwrap(), Some(b"1".to_vec()));
    assert_eq!(left.get(Family::Due, b"changed").unwrap(), Some(b"1".to_vec()));
    assert_eq!(left.get(Family::Due, b"new").unwrap(), None);
    // Of two that were not synced, the first was written already.
    let mut next = Batch::default();
    next.put(Family::Due, b"changed", b"4".to_vec());
    store.write(&next, false).unwrap();
    assert_eq!(store.unsynced(), 2);
    let left = store.cut_power(1);
    assert_eq!(left.get(Family::Due, b"kept").unwrap(), None);
    assert_eq!(left.get(Family::Due, b"changed").unwrap(), Some(b"2".to_vec()));
    assert_eq!(left.get(Family::Due, b"new").unwrap(), Some(b"3".to_vec()));
    store.sync().unwrap();
    assert_eq!(
        (store.unsynced(), store.cut_power(0).contents()),
        (0, store.contents())
    );
}

#[derive(Clone, Debug)]
enum Step {
    Range(usize, u8, u8),
    Put(usize, u8, Vec<u8>),
    Delete(usize, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let family = 0..Family::ALL.len();
    prop_oneof![
        8 => (family.clone(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..64)).prop_map(|(family, key, value)| Step::Put(family, key, value)),
        4 => (family.clone(), any::<u8>()).prop_map(|(family, key)| Step::Delete(family, key)),
        1 => (family, any::<u8>(), any::<u8>()).prop_map(|(family, from, to)| Step::Range(family, from, to)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_leave_equal_contents(steps in proptest::collection::vec(step(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let model = MemoryStore::new();
        let mut rocks = Some(RocksStore::open(folder.path(), true).unwrap());
        for step in steps {
            let mut batch = Batch::default();
            match step {
                Step::Put(family, key, value) => batch.put(Family::ALL[family], &[key], value),
                Step::Delete(family, key) => batch.delete(Family::ALL[family], &[key]),
                Step::Range(family, from, to) => {
                    let (from, to) = (from.min(to), from.max(to));
                    batch.delete_range(Family::ALL[family], &[from], &[to]);
                    batch.put(Family::ALL[family], &[from, 1], vec![to]);
                }
                Step::Reopen => {
                    drop(rocks.take());
                    rocks = Some(RocksStore::open(folder.path(), true).unwrap());
                }
            }
            model.write(&batch, true).unwrap();
            rocks.as_ref().unwrap().write(&batch, true).unwrap();
        }
        let mut found = Vec::new();
        for family in Family::ALL {
            rocks.as_ref().unwrap().scan(family, &[], &[0xff, 0xff], &mut |key, value| {
                found.push((family, key.to_vec(), value.to_vec()));
                true
            }).unwrap();
        }
        prop_assert_eq!(found, model.contents());
    }
}
