//! Torn and flipped write-ahead logs. CASES: torn / short WAL tail; flipped byte. A store opens with all that was acknowledged
//! before its mark, or is refused with what to do; what it serves is right.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{block_on, copy, message};
use queue::{OpenError, Options, Queue};

const OPTIONS: Options = Options {
    min_free_bytes: 0,
    commit_patience: Duration::from_secs(60),
    limits: queue::Limits::NONE,
};

/// Messages acknowledged, each in a group of its own.
const MESSAGES: u64 = 8;

/// A store that was closed, its mark set, with all of its mail in the log.
fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    block_on(async {
        for number in 0..MESSAGES {
            queue
                .accept(message(number, &["ok.test"], &body(number)))
                .await
                .unwrap();
        }
    });
    queue.close();
    folder
}

fn body(number: u64) -> Vec<u8> {
    format!("Subject: {number}\r\n\r\n{}\r\n", "hello ".repeat(50)).into_bytes()
}

/// The newest log that holds anything.
fn log(folder: &Path) -> PathBuf {
    let mut logs: Vec<_> = fs::read_dir(folder.join("store"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension().is_some_and(|is| is == "log") && fs::metadata(path).unwrap().len() > 0
        })
        .collect();
    logs.sort();
    logs.pop().unwrap()
}

/// How many messages are there; each that is has its own body.
fn served(queue: &Queue) -> u64 {
    let there = |number| {
        let id = message(number, &["ok.test"], b"").id;
        let Some(envelope) = queue.envelope(id).unwrap() else {
            return false;
        };
        assert_eq!(
            queue.body(id, &envelope).unwrap(),
            body(number),
            "a wrong body is served"
        );
        true
    };
    (0..MESSAGES).filter(|number| there(*number)).count() as u64
}

/// Opens a copy whose log was broken by `breaks`: how many messages it serves, or that it is refused.
fn opened(whole: &Path, what: &str, breaks: impl FnOnce(&Path)) -> Option<u64> {
    let folder = copy(whole);
    breaks(&log(folder.path()));
    match Queue::open(folder.path(), &OPTIONS) {
        Ok(queue) => {
            let served = served(&queue);
            queue.close();
            Some(served)
        }
        Err(OpenError::OlderThanMark { store, mark }) => {
            assert!(store < mark, "{what}");
            None
        }
        // All of it is gone.
        Err(OpenError::NotItsMark { mark }) => {
            assert_eq!(mark, MESSAGES, "{what}");
            None
        }
        // RocksDB itself refuses.
        Err(OpenError::Store(error)) => {
            assert!(error.to_string().contains("Corruption"), "{what}: {error}");
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn a_log_cut_short_opens_whole_or_is_refused() {
    let whole = filled();
    let length = fs::metadata(log(whole.path())).unwrap().len();
    let mut refused = 0;
    let cuts = (0..64).chain((64..length).step_by(usize::try_from(length / 40).unwrap().max(1)));
    for cut in cuts.chain([length]) {
        let served = opened(whole.path(), &format!("{cut} octets less"), |log| {
            let file = fs::OpenOptions::new().write(true).open(log).unwrap();
            file.set_len(length - cut).unwrap();
        });
        match served {
            Some(served) => assert_eq!(served, MESSAGES, "{cut} octets less"),
            None => refused += 1,
        }
    }
    assert!(
        refused > 40,
        "{refused}: acknowledged mail was cut off, and that was not told"
    );
}

#[test]
fn a_flipped_byte_in_the_log_opens_whole_or_is_refused() {
    let whole = filled();
    let length = usize::try_from(fs::metadata(log(whole.path())).unwrap().len()).unwrap();
    let mut refused = 0;
    let places = (0..length)
        .step_by((length / 60).max(1))
        .chain(length.saturating_sub(30)..length);
    for place in places {
        let served = opened(whole.path(), &format!("octet {place}"), |log| {
            let mut octets = fs::read(log).unwrap();
            octets[place] ^= 0x40;
            fs::write(log, octets).unwrap();
        });
        match served {
            Some(served) => assert_eq!(served, MESSAGES, "octet {place}"),
            None => refused += 1,
        }
    }
    assert!(refused > 30, "{refused}");
}

/// What docs/durability.md says can't be told: the log is cut behind the mark. What is left is right all the same.
#[test]
fn a_log_cut_behind_its_mark_opens_with_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    block_on(async {
        for number in 0..MESSAGES {
            queue
                .accept(message(number, &["ok.test"], &body(number)))
                .await
                .unwrap();
        }
    });
    let left = copy(folder.path());
    queue.close();
    // As if none of it were older than a second.
    fs::remove_file(left.path().join("mark")).unwrap();
    let length = fs::metadata(log(left.path())).unwrap().len();
    let mut least = MESSAGES;
    for cut in (0..length).step_by(usize::try_from(length / 20).unwrap()) {
        let served = opened(left.path(), &format!("{cut} octets less"), |log| {
            let file = fs::OpenOptions::new().write(true).open(log).unwrap();
            file.set_len(length - cut).unwrap();
        });
        least = least.min(served.unwrap());
    }
    assert!(least < 3);
}
