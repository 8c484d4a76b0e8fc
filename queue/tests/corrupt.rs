//! What RocksDB itself finds damaged: nothing is accepted any more, what reads goes on.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{FIRST, START, block_on, end, message, settle};
use queue::{Closed, CommitError, Fate, OpenError, Options, Queue, Status};

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
