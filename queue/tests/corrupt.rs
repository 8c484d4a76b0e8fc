//! What RocksDB itself finds damaged: nothing is accepted any more, what reads goes on.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{FIRST, START, block_on, defer, end, message, settle};
use mail_core::Timestamp;
use queue::rocks::RocksStore;
use queue::store::Family;
use queue::{Aside, Closed, CommitError, Fate, OpenError, Options, Queue, RouteGroup, Status};

const MESSAGES: u64 = 40;

const OPTIONS: Options = Options {
    min_free_bytes: 0,
    commit_patience: Duration::from_secs(60),
    limits: queue::Limits::NONE,
};

/// A closed queue whose messages are in tables and blob files.
fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    for number in 0..MESSAGES {
        let body = format!("Subject: {number}\r\n\r\n{}", "hello ".repeat(1_000));
        block_on(queue.accept(message(number, &["d.test"], body.as_bytes()))).unwrap();
    }
    queue.close();
    drop(queue);
    // Recovery makes tables of the log.
    Queue::open(folder.path(), &OPTIONS).unwrap().close();
    folder
}

fn files(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("store")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|is| is == kind))
        .collect()
}

fn flip(path: &Path, place: usize) {
    let mut octets = fs::read(path).unwrap();
    octets[place] ^= 0x10;
    fs::write(path, octets).unwrap();
}

#[test]
fn nothing_is_accepted_by_a_store_that_was_found_damaged_and_what_reads_goes_on() {
    let folder = filled();
    let blobs = files(folder.path(), "blob");
    let [blob] = &blobs[..] else { panic!("{blobs:?}") };
    flip(blob, fs::metadata(blob).unwrap().len() as usize / 2);
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    // Nobody has looked yet.
    assert_eq!(queue.status(), Status::Healthy);
    let (id, _) = queue.queues(None, 9).unwrap()[0];
    let units = queue.due(id, FIRST, 999).unwrap().0;
    assert_eq!(units.len() as u64, MESSAGES);
    let mut damaged = 0;
    for unit in &units {
        let envelope = queue.message(unit.id).unwrap().unwrap().envelope;
        match queue.body(unit.id, &envelope) {
            Ok(_) => drop(block_on(settle(&queue, end(*unit, Fate::Delivered))).unwrap()),
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 1);
    let refused = |queue: &Queue| {
        let accepted = block_on(queue.accept(message(99, &["d.test"], b"new")));
        assert!(matches!(accepted, Err(CommitError::Failing(_))), "{accepted:?}");
        let Status::Corrupt(found) = queue.status() else {
            panic!("{:?}", queue.status());
        };
        assert!(found.starts_with("Corruption: "), "{found}");
    };
    refused(&queue);
    queue.close();
    drop(queue);
    // It is still known after a restart, though nothing has been read yet, and outcomes are still recorded.
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    refused(&queue);
    let left = queue.due(id, FIRST, 999).unwrap().0;
    assert_eq!(left.len(), 1);
    block_on(settle(&queue, end(left[0], Fate::Bounced))).unwrap();
    assert_eq!(queue.due(id, FIRST, 999).unwrap().0, []);
    queue.close();
    drop(queue);
    // Whoever deletes the file has looked into it.
    fs::remove_file(folder.path().join("corrupt")).unwrap();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    block_on(queue.accept(message(99, &["d.test"], b"new"))).unwrap();
    queue.close();
}

/// What is read of each message, and what became of it.
fn end_all(queue: &Queue) -> (u64, u64) {
    let (mut delivered, mut aside) = (0, 0);
    let (id, _) = queue.queues(None, 9).unwrap()[0];
    for unit in queue.due(id, FIRST, 999).unwrap().0 {
        let read = queue.message(unit.id).and_then(|message| {
            let envelope = message.unwrap().envelope;
            queue.body(unit.id, &envelope)
        });
        match read {
            Ok(_) => {
                block_on(settle(queue, end(unit, Fate::Delivered))).unwrap();
                delivered += 1;
            }
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                block_on(queue.set_aside(unit, Aside::damaged(&error, START))).unwrap();
                aside += 1;
            }
        }
    }
    assert_eq!(queue.due(id, FIRST, 999).unwrap().0, []);
    (delivered, aside)
}

fn is_corrupt(queue: &Queue, what: &str) {
    let accepted = block_on(queue.accept(message(99, &["d.test"], b"new")));
    assert!(matches!(accepted, Err(CommitError::Failing(_))), "{accepted:?}");
    let Status::Corrupt(found) = queue.status() else {
        panic!("{:?}", queue.status());
    };
    assert!(found.contains(what), "{found}");
}

/// Files that go while the relay runs. What was not read yet is set aside, all else goes on.
#[test]
fn a_file_that_goes_while_it_is_open_keeps_nobody_else() {
    let folder = filled();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    block_on(queue.accept(message(98, &["d.test"], b"it is in no file of bodies"))).unwrap();
    for blob in files(folder.path(), "blob") {
        fs::remove_file(blob).unwrap();
    }
    assert_eq!(end_all(&queue), (1, MESSAGES));
    is_corrupt(&queue, ".blob: No such file or directory");
    queue.close();
    drop(queue);
    // It opens again, and knows of it.
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    is_corrupt(&queue, ".blob: No such file or directory");
    assert_eq!(queue.set_aside_units(None, 999).unwrap().0.len() as u64, MESSAGES);
    queue.close();
    drop(queue);
    let closed = Closed::open(folder.path(), true).unwrap();
    let exported = closed.export(Vec::new(), ([1; 16], "1.0", START), &mut |_| {});
    assert_eq!(exported.unwrap().counts.messages, 0);
}

#[test]
fn a_store_that_does_not_open_for_its_damage_is_told_with_what_to_do() {
    let folder = filled();
    let tables = files(folder.path(), "sst");
    for table in &tables {
        fs::remove_file(table).unwrap();
    }
    let Err(error) = Queue::open(folder.path(), &OPTIONS) else {
        panic!("it opened");
    };
    assert!(matches!(error, OpenError::Store(_)));
    let text = error.to_string();
    assert!(
        text.contains("Corruption: ") && text.contains("queue export --salvage"),
        "{text}"
    );
    // And that works, for as little as there is.
    let closed = Closed::open(folder.path(), true).unwrap();
    let exported = closed.export(Vec::new(), ([1; 16], "1.0", START), &mut |_| {});
    assert_eq!(exported.unwrap().counts.messages, 0);
}

/// Messages of [`many`]: half of them wait in one queue, put off once, and each other in one of its own.
const MANY: u64 = 400;

/// A closed queue whose tables have several blocks in each of these families.
fn many() -> tempfile::TempDir {
    many_and(|_| ())
}

/// The same with what `more` puts there.
fn many_and(more: impl Fn(&Queue)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    block_on(async {
        for number in 0..MANY {
            let own = number % 2 == 1;
            let domain = if own {
                format!("d{number}.test")
            } else {
                "d.test".to_owned()
            };
            let units = queue
                .accept(message(number, &[&domain], b"hello"))
                .await
                .unwrap()
                .units;
            if !own {
                let due = START + Duration::from_secs(60 + number);
                settle(&queue, defer(units[0], due)).await.unwrap();
            }
        }
    });
    more(&queue);
    queue.close();
    drop(queue);
    // Recovery makes tables of the log.
    drop(RocksStore::open(&folder.path().join("store"), true).unwrap());
    folder
}

/// Flips a bit in a block of the family's only table, at so many percent of it.
fn flip_block(folder: &Path, family: Family, percent: usize) {
    // A table says whose it is: the end of `rocksdb.column.family.name`, and the name.
    let name = format!("name{}", family.name()).into_bytes();
    let is_its = |path: &PathBuf| {
        let octets = fs::read(path).unwrap();
        octets.windows(name.len()).any(|found| found == name)
    };
    let tables: Vec<_> = files(folder, "sst").into_iter().filter(is_its).collect();
    let [table] = &tables[..] else {
        panic!("{family:?}: {tables:?}")
    };
    flip(table, fs::metadata(table).unwrap().len() as usize * percent / 100);
}

/// One bad block of a table, whatever is in it: what does not read is set aside, or ends when its time is up, and all else is served;
/// nobody waits for it, and the store is never taken for one that fails.
#[test]
fn a_bad_block_of_any_family_keeps_nobody_else() {
    let whole = many();
    for family in [
        Family::Envelope,
        Family::State,
        Family::Due,
        Family::Deadline,
        Family::Queues,
    ] {
        let mut found = 0;
        for percent in [8, 60] {
            let folder = common::copy(whole.path());
            flip_block(folder.path(), family, percent);
            let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
            let met = block_on(serve(&queue));
            match queue.status() {
                // Nobody has read there: it is behind the records.
                Status::Healthy => assert_eq!(met.delivered, MANY, "{family:?}"),
                Status::Corrupt(why) => {
                    assert!(why.contains("block checksum mismatch"), "{family:?}: {why}");
                    found += 1;
                }
                other => panic!("{family:?}, at {percent} %: {other:?}, {met:?}"),
            }
            let Met {
                delivered,
                aside,
                expired,
            } = met;
            assert_eq!(
                delivered + aside + expired,
                MANY,
                "{family:?}, at {percent} %: {met:?}"
            );
            // A block holds some tens of records.
            assert!(delivered > MANY / 2, "{family:?}, at {percent} %: {met:?}");
            queue.close();
        }
        assert!(found > 0, "{family:?}");
    }
}

/// What a start reads itself: the totals of what waits, bodies that had not come in whole, and the names of ways. A way whose number can't be
/// told waits, and no other gets its number.
#[test]
fn a_bad_block_of_what_a_start_reads_keeps_no_relay_from_starting() {
    const WAYS: u16 = 900;
    let names: Vec<String> = (0..WAYS).map(|number| format!("way {number}")).collect();
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    let whole = many_and(|queue| {
        let numbers = queue.route_groups(&known).unwrap();
        assert_eq!(numbers.last(), Some(&RouteGroup(WAYS)));
        for number in 0..200 {
            let mut upload = queue.upload(message(10_000 + number, &["d.test"], b"").id);
            block_on(upload.write(b"a part of it".to_vec().into())).unwrap();
            // As when the relay is killed.
            std::mem::forget(upload);
        }
    });
    let (mut at_start, mut at_ways) = (0, 0);
    for (family, step) in [(Family::Queues, 3), (Family::Upload, 40)] {
        for percent in (2..95).step_by(step) {
            let folder = common::copy(whole.path());
            flip_block(folder.path(), family, percent);
            let queue = match Queue::open(folder.path(), &OPTIONS) {
                Ok(queue) => queue,
                // RocksDB does not open a table whose index or filter is damaged.
                Err(error) if !error.to_string().contains("block_type = Data") => continue,
                Err(error) => panic!("{family:?}, at {percent} %: {error}"),
            };
            let is_met = queue.status() != Status::Healthy;
            let whole = queue.route_group_names().unwrap().len() == known.len();
            let wanted: Vec<&str> = known.iter().copied().chain(["one more"]).collect();
            let numbers = queue.route_groups(&wanted).unwrap();
            let new = numbers.last().unwrap().0;
            assert_eq!(new, if whole { WAYS + 1 } else { u16::MAX }, "at {percent} %");
            for (number, given) in (1..).zip(&numbers[..known.len()]) {
                assert!(
                    given.0 == number || given.0 == u16::MAX && !whole,
                    "{given:?} at {percent} %"
                );
            }
            at_ways += usize::from(!whole);
            if is_met {
                at_start += 1;
                let met = block_on(serve(&queue));
                assert_eq!(
                    met.delivered + met.aside + met.expired,
                    MANY,
                    "{family:?}, at {percent} %: {met:?}"
                );
                assert!(met.delivered > MANY / 2, "{family:?}, at {percent} %: {met:?}");
            }
            queue.close();
        }
        assert!(at_start > 0, "{family:?}");
    }
    assert!(at_ways > 0);
}

/// How many messages ended how.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    delivered: u64,
    aside: u64,
    expired: u64,
}

/// Goes through all queues as a relay and its operator do: what is due is delivered, or set aside where it does not read; what is left ends when its
/// time is up.
async fn serve(queue: &Queue) -> Met {
    let mut met = Met::default();
    let woken = queue.waking(None, Timestamp::MAX, 9_999).unwrap();
    let mut known: BTreeSet<_> = woken.into_iter().map(|(_, id)| id).collect();
    // Those whose place in the catalogue does not read are found by an operator who has them retried.
    known.extend(queue.queues(None, 9_999).unwrap().into_iter().map(|(id, _)| id));
    for id in known {
        for unit in queue.due(id, FIRST, 9_999).unwrap().0 {
            let read = queue.message(unit.id).and_then(|message| {
                let message = message.unwrap();
                assert!(message.units.iter().any(|found| found.key == unit));
                queue.state(unit.id, unit.unit)?;
                queue.body(unit.id, &message.envelope)
            });
            let is_aside = match read {
                Ok(_) => settle(queue, end(unit, Fate::Delivered)).await.map(|_| false),
                Err(error) => {
                    assert!(error.is_damage(), "{error}");
                    queue
                        .set_aside(unit, Aside::damaged(&error, START))
                        .await
                        .map(|()| true)
                }
            };
            match is_aside {
                Ok(true) => met.aside += 1,
                Ok(false) => met.delivered += 1,
                // Its queue's record does not read, nor can it be made anew: it is left until its time is up.
                Err(CommitError::Damaged(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    queue
        .ending(Timestamp(0), START + Duration::from_secs(7_200), 9_999)
        .unwrap();
    let mut after = None;
    loop {
        let (units, next) = queue.expired(Timestamp::MAX, after, 50, |_| true).unwrap();
        for unit in units {
            if queue.aside(&unit).unwrap().is_none() {
                settle(queue, end(unit, Fate::Expired)).await.unwrap();
                met.expired += 1;
            }
        }
        after = next;
        if after.is_none() {
            return met;
        }
    }
}
