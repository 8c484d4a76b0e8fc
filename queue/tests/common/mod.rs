//! Messages for the tests.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "of tests; they are outside of test functions")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mail_core::{BodyType, DsnOptions, MessageId, Recipient, ReversePath, Timestamp};
use queue::store::{Batch, Family, Store};
use queue::{
    Again, End, Fate, NewMessage, NewUnit, Origin, Queue, RouteGroup, Settle, Settled, StillOpen, UnitKey,
};

pub const START: Timestamp = Timestamp(1_700_000_000_000);

/// A message with one recipient at each of `domains`.
pub fn message(number: u64, domains: &[&str], body: &[u8]) -> Arc<NewMessage> {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let received_at = START + Duration::from_millis(number);
    let unit = |domain: &&str| NewUnit {
        route_group: RouteGroup(0),
        domain: domain.parse().unwrap(),
        due: received_at,
        recipients: vec![Recipient::new(format!("to@{domain}").parse().unwrap())],
    };
    Arc::new(NewMessage {
        id: MessageId::new(received_at, &random),
        received_at,
        expires_at: received_at + Duration::from_secs(3600),
        tenant: "acme".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Mailbox("from@acme.test".parse().unwrap()),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        transfer: Default::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::from_static(b"Received: by relay.test\r\n"),
        body: Bytes::copy_from_slice(body),
        rest: None,
        origin: Origin::default(),
        cause: None,
        units: domains.iter().map(unit).collect(),
    })
}

/// A settle that ends the unit.
pub fn end(unit: UnitKey, fate: Fate) -> Settle {
    Settle {
        unit,
        at: unit.due,
        attempt: 1,
        hop: None,
        ends: vec![End {
            mailbox: "to@ok.test".parse().unwrap(),
            fate,
            reply: "250 2.0.0 ok".into(),
        }],
        again: None,
        reports: Vec::new(),
    }
}

/// A settle that puts the unit off until `due`.
pub fn defer(unit: UnitKey, due: Timestamp) -> Settle {
    let open = StillOpen {
        recipient: 0,
        mailbox: "to@ok.test".parse().unwrap(),
        reply: "450 4.2.0 later".into(),
    };
    let again = Again {
        due,
        attempts: 1,
        in_doubt: 0,
        doubtful: false,
        open: vec![open],
        others: Vec::new(),
        signature: None,
        delay_told: None,
    };
    Settle {
        ends: Vec::new(),
        again: Some(again),
        ..end(unit, Fate::Delivered)
    }
}

/// Settles and waits for the disk.
pub async fn settle(queue: &Queue, settle: Settle) -> Result<Settled, queue::CommitError> {
    queue.settle(settle).await?.await
}

/// The first place there is.
pub const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::LEAST, 0);

/// The only runtime a test needs.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

/// A folder with all that is in it.
pub fn copy(from: &Path) -> tempfile::TempDir {
    fn tree(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                tree(&entry.path(), &to);
            } else if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    tree(from, to.path());
    to
}

pub fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Writes a fixture: family, key and value in hexadecimal, a line each.
pub fn load(store: &dyn Store, fixture: &str) {
    let mut batch = Batch::default();
    for line in fixture.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let family = Family::ALL
            .into_iter()
            .find(|family| family.name() == name)
            .unwrap();
        batch.put(
            family,
            &unhex(words.next().unwrap()),
            unhex(words.next().unwrap_or_default()),
        );
    }
    store.write(&batch, true).unwrap();
}
