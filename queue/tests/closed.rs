//! Stores that are not in use: verified, written as a stream, taken in elsewhere, salvaged.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use common::{FIRST, START, block_on, defer, end, message, settle};
use mail_core::{MessageId, Notify, Timestamp};
use proptest::prelude::*;
use queue::stream::{LeftOut, StreamError};
use queue::{
    Aside, Closed, EventKind, Exported, Fate, ImportError, Imported, OpenError, Options, Queue, RouteGroup,
    Selector, SuspensionRecord, UnitKey, Verified,
};

const OPTIONS: Options = Options {
    min_free_bytes: 0,
    commit_patience: Duration::from_secs(60),
    limits: queue::Limits::NONE,
};

const LATE: Timestamp = Timestamp(START.0 + 90 * 86_400_000);

fn export(folder: &Path, salvage: bool) -> (Vec<u8>, Exported, Vec<LeftOut>) {
    let closed = Closed::open(folder, salvage).unwrap();
    let (mut out, mut left_out) = (Vec::new(), Vec::new());
    let exported = closed
        .export(&mut out, ([7; 16], "0.1.0", START), &mut |what| {
            left_out.push(what.clone())
        })
        .unwrap();
    (out, exported, left_out)
}

fn import(folder: &Path, stream: &[u8]) -> Result<Imported, ImportError> {
    let queue = Queue::open(folder, &OPTIONS).unwrap();
    let imported = block_on(queue.import(stream, LATE, true, &mut |_| {}));
    queue.close();
    imported
}

fn verify(folder: &Path) -> (Verified, Vec<String>) {
    let mut problems = Vec::new();
    let closed = Closed::open(folder, true).unwrap();
    let verified = closed
        .verify(&mut |problem| problems.push(format!("{}: {}", problem.family.name(), problem.what)))
        .unwrap();
    (verified, problems)
}

#[derive(Clone, Debug)]
enum Step {
    /// To these domains, with so long a body; large ones go by upload; telling of delays or not.
    Accept(Vec<u8>, usize, bool),
    End(usize),
    Defer(usize, u64),
    SetAside(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let domains = proptest::sample::subsequence(vec![0u8, 1, 2, 3], 1..=3);
    prop_oneof![
        4 => (domains, 0usize..3, any::<bool>()).prop_map(|(domains, size, tell)| Step::Accept(domains, size, tell)),
        2 => any::<usize>().prop_map(Step::End),
        2 => (any::<usize>(), 0u64..100_000).prop_map(|(which, wait)| Step::Defer(which, wait)),
        1 => any::<usize>().prop_map(Step::SetAside),
    ]
}

async fn live(queue: &Queue, steps: Vec<Step>) {
    let group = queue.route_groups(&["smart host a", "smart host b"]).unwrap()[1];
    let mut open: Vec<UnitKey> = Vec::new();
    for (number, step) in (0..).zip(steps) {
        match step {
            Step::Accept(domains, size, tell) => {
                let domains: Vec<_> = domains.iter().map(|domain| format!("d{domain}.test")).collect();
                let domains: Vec<_> = domains.iter().map(String::as_str).collect();
                let mut whole = (*message(number, &domains, b"")).clone();
                whole.units[0].route_group = if tell { group } else { RouteGroup(0) };
                whole.units[0].recipients[0].notify = tell.then_some(Notify::On {
                    success: false,
                    failure: true,
                    delay: true,
                });
                whole.body = vec![b'0' + (number % 10) as u8; [0, 40, 512 << 10][size]].into();
                if size == 2 {
                    let mut upload = queue.upload(whole.id);
                    upload.write(Bytes::from(vec![b'x'; 600 << 10])).await.unwrap();
                    whole.rest = Some(upload.finish());
                }
                open.extend(queue.accept(whole.into()).await.unwrap().units);
            }
            Step::End(which) if !open.is_empty() => {
                let unit = open.swap_remove(which % open.len());
                settle(queue, end(unit, Fate::Delivered)).await.unwrap();
            }
            Step::Defer(which, wait) if !open.is_empty() => {
                let which = which % open.len();
                let due = START + Duration::from_millis(wait);
                open[which] = settle(queue, defer(open[which], due))
                    .await
                    .unwrap()
                    .unit
                    .unwrap();
            }
            Step::SetAside(which) if !open.is_empty() => {
                let unit = open.swap_remove(which % open.len());
                queue
                    .set_aside(unit, Aside::parked("a test", START))
                    .await
                    .unwrap();
            }
            Step::End(_) | Step::Defer(..) | Step::SetAside(_) => {}
        }
    }
    let selector = Selector {
        tenant: Some("acme".into()),
        ..Selector::default()
    };
    let record = SuspensionRecord {
        selector,
        since: START,
        until: Some(LATE),
        reason: "a test".into(),
        by: "uid 0".into(),
    };
    queue.suspend(record).await.unwrap();
}

/// All that matters of a queue, whatever its numbers are.
fn told(queue: &Queue) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    let groups: BTreeMap<_, _> = queue.route_group_names().unwrap().into_iter().collect();
    let mut names = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (id, record) in queue.queues(None, 999).unwrap() {
        let way = groups.get(&record.name.route_group);
        let name = format!(
            "{}/{}/{way:?}/{}",
            record.name.tenant, record.name.stream, record.name.domain
        );
        if record.count > 0 {
            told.insert(format!(
                "{name}: {} {} {}",
                record.count, record.bytes, record.aside
            ));
        }
        names.insert(id, name);
        for unit in queue.due(id, FIRST, 999).unwrap().0 {
            ids.insert(unit.id);
            let wake = record.wake.unwrap();
            assert!(wake <= unit.due && record.low_water <= (unit.due, unit.id));
        }
    }
    ids.extend(
        queue
            .set_aside_units(None, 999)
            .unwrap()
            .0
            .iter()
            .map(|aside| aside.unit.id),
    );
    for id in ids {
        let message = queue.message(id).unwrap().unwrap();
        let body = queue.body(id, &message.envelope).unwrap();
        let mut envelope = message.envelope.clone();
        let mut units = Vec::new();
        for unit in &message.units {
            let name = &names[&unit.key.queue];
            let aside = unit
                .aside
                .as_ref()
                .map(|aside| (aside.since, aside.cause, &aside.why));
            units.push(format!(
                "{name} {} {:?} {:?} {aside:?}",
                unit.key.unit, unit.key.due, unit.state
            ));
        }
        for unit in &mut envelope.units {
            unit.queue = queue::QueueId(0);
        }
        told.insert(format!("{envelope:?} {} {units:?}", crc32c::crc32c(&body)));
    }
    for unit in queue.expired(LATE, None, 9_999, |_| true).unwrap().0 {
        told.insert(format!("expires: {} {}", unit.id, unit.unit));
    }
    for (_, unit) in queue.delayed(LATE, None, 9_999, |_| true).unwrap().0 {
        // Of one that has ended, the key is forgotten later.
        let open = unit.filter(|unit| queue.is_due(unit).unwrap() || queue.aside(unit).unwrap().is_some());
        told.extend(open.map(|unit| format!("tells: {} {}", unit.id, unit.unit)));
    }
    told.insert(format!("{:?}", queue.suspensions(9).unwrap()));
    told
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn what_is_exported_and_imported_is_what_it_was(steps in proptest::collection::vec(step(), 1..40)) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let queue = Queue::open(from.path(), &OPTIONS).unwrap();
        block_on(live(&queue, steps));
        let before = told(&queue);
        queue.close();
        drop(queue);
        let (verified, problems) = verify(from.path());
        prop_assert_eq!(problems, Vec::<String>::new());
        let (stream, exported, left_out) = export(from.path(), false);
        prop_assert!(exported.is_whole() && left_out.is_empty());
        prop_assert_eq!(exported.counts.messages, verified.messages);
        prop_assert_eq!(exported.counts.units, verified.units + verified.aside);
        // Numbers come in another order.
        let queue = Queue::open(to.path(), &OPTIONS).unwrap();
        queue.route_groups(&["smart host b", "smart host a"]).unwrap();
        queue.close();
        drop(queue);
        let imported = import(to.path(), &stream).unwrap();
        prop_assert_eq!(imported.messages, exported.counts.messages);
        let again = import(to.path(), &stream).unwrap();
        prop_assert_eq!((again.messages, again.before), (0, exported.counts.messages));
        let queue = Queue::open(to.path(), &OPTIONS).unwrap();
        let after = told(&queue);
        queue.close();
        drop(queue);
        prop_assert_eq!(after, before);
        prop_assert_eq!(verify(to.path()).1, Vec::<String>::new());
    }
}

/// Messages with bodies of some size, in tables where `reopened`.
fn filled(messages: u64, reopened: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    block_on(async {
        for number in 0..messages {
            let body = format!(
                "Subject: {number}\r\n\r\n{}",
                "hello ".repeat(usize::try_from(number % 7).unwrap() * 200)
            );
            let domains = [format!("d{}.test", number % 5), "other.test".to_owned()];
            let domains = domains.each_ref().map(String::as_str);
            let unit = queue
                .accept(message(number, &domains, body.as_bytes()))
                .await
                .unwrap()
                .units[0];
            if number % 3 == 0 {
                settle(&queue, defer(unit, START + Duration::from_secs(number)))
                    .await
                    .unwrap();
            }
        }
    });
    queue.close();
    drop(queue);
    if reopened {
        // Recovery makes tables of the log.
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        queue.close();
    }
    folder
}

/// A stream cut short anywhere, or with an octet flipped, is told; what was whole before is taken in, once.
#[test]
fn a_broken_stream_is_told_and_gone_on_with() {
    let from = filled(12, false);
    let (stream, ..) = export(from.path(), false);
    let to = tempfile::tempdir().unwrap();
    for cut in (0..stream.len() * 2 / 3).step_by(stream.len() / 9) {
        let error = import(to.path(), &stream[..cut]).unwrap_err();
        assert!(
            matches!(
                error,
                ImportError::Stream(StreamError::Short { .. } | StreamError::NotAStream)
            ),
            "{cut}: {error}"
        );
    }
    for place in (0..stream.len()).step_by(stream.len() / 23) {
        let mut damaged = stream.clone();
        damaged[place] ^= 1;
        let to = tempfile::tempdir().unwrap();
        let result = import(to.path(), &damaged);
        assert!(
            matches!(result, Err(ImportError::Stream(_))),
            "octet {place}: {result:?}"
        );
    }
    let rest = import(to.path(), &stream).unwrap();
    assert!(rest.before > 0 && rest.messages > 0, "{rest:?}");
    assert_eq!(rest.before + rest.messages, 12);
    // From another stream, those that are there are passed over.
    let mut other = export(from.path(), false).0;
    let (header, id) = (18 + 5 + 1, 16);
    other[header..header + id].fill(9);
    let length = u32::from_be_bytes(other[19..23].try_into().unwrap()) as usize;
    for range in [23..23 + length - 4, 18..23 + length] {
        let sum = crc32c::crc32c(&other[range.clone()]).to_le_bytes();
        other[range.end..range.end + 4].copy_from_slice(&sum);
    }
    let passed = import(to.path(), &other).unwrap();
    assert_eq!((passed.messages, passed.already_there), (0, 12));
    let queue = Queue::open(to.path(), &OPTIONS).unwrap();
    let id = message(0, &["x.test"], b"").id;
    let kinds: Vec<_> = queue
        .history(id)
        .unwrap()
        .iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds, [EventKind::Restored]);
    queue.close();
}

fn files(folder: &Path, kind: &str) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder.join("store"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|is| is == kind))
        .collect();
    files.sort();
    files
}

fn flip(path: &Path, place: usize) {
    let mut octets = fs::read(path).unwrap();
    octets[place] ^= 0x10;
    fs::write(path, octets).unwrap();
}

/// CASES: flipped bit in a table. Whatever octet it is, all that can be read is salvaged, and each message that is not there is
/// told of; nothing in it is wrong.
#[test]
fn a_flipped_octet_in_a_table_costs_what_is_in_it_and_no_more() {
    const MESSAGES: u64 = 150;
    let folder = filled(MESSAGES, true);
    let ids: BTreeSet<MessageId> = (0..MESSAGES)
        .map(|number| message(number, &["x.test"], b"").id)
        .collect();
    let whole = export(folder.path(), false).1.counts;
    assert_eq!(whole.messages, MESSAGES);
    let mut lossless = 0;
    let tables = [files(folder.path(), "sst"), files(folder.path(), "blob")].concat();
    assert!(tables.len() > 6, "{tables:?}");
    for table in &tables {
        let octets = fs::read(table).unwrap();
        // In its first blocks, and half-way.
        for place in [octets.len() / 10, octets.len() / 2] {
            flip(table, place);
            let (verified, problems) = verify(folder.path());
            assert_eq!(verified.problems() as usize, problems.len());
            let (stream, exported, left_out) = export(folder.path(), true);
            let what = format!("{} at {place} of {}", table.display(), octets.len());
            let to = tempfile::tempdir().unwrap();
            let imported = import(to.path(), &stream).unwrap();
            assert_eq!(imported.messages, exported.counts.messages, "{what}");
            let queue = Queue::open(to.path(), &OPTIONS).unwrap();
            let told: BTreeSet<_> = left_out.iter().filter_map(|left_out| left_out.id).collect();
            for id in &ids {
                match queue.message(*id).unwrap() {
                    Some(message) => drop(queue.body(*id, &message.envelope).unwrap()),
                    None => assert!(told.contains(id), "{what}: {id} is gone and not told of"),
                }
            }
            queue.close();
            assert!(
                exported.counts.messages > MESSAGES / 3,
                "{what}: {:?}",
                exported.counts
            );
            lossless += u32::from(exported.counts == whole);
            fs::write(table, &octets).unwrap();
        }
    }
    assert!(lossless > 0 && lossless < 2 * tables.len() as u32, "{lossless}");
    assert!(verify(folder.path()).1.is_empty());
}

#[test]
fn what_can_not_be_opened_is_told() {
    let none = tempfile::tempdir().unwrap();
    assert!(matches!(
        Closed::open(none.path(), false),
        Err(OpenError::NoStore { .. })
    ));
    assert!(matches!(
        Closed::open(&none.path().join("x"), true),
        Err(OpenError::NoStore { .. })
    ));
    let not = import(tempfile::tempdir().unwrap().path(), b"From: me\r\n\r\n").unwrap_err();
    assert!(
        matches!(not, ImportError::Stream(StreamError::NotAStream)),
        "{not}"
    );
    // Less than its mark: told, and read all the same.
    let folder = filled(3, false);
    let log = files(folder.path(), "log").pop().unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&log)
        .unwrap()
        .set_len(fs::metadata(&log).unwrap().len() - 40)
        .unwrap();
    let closed = Closed::open(folder.path(), false).unwrap();
    assert!(matches!(closed.behind(), Some(OpenError::OlderThanMark { .. })));
    drop(closed);
    let (_, exported, _) = export(folder.path(), false);
    assert!(exported.behind && !exported.is_whole());
}
