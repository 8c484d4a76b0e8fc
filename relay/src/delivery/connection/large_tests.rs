//! Large messages over scripted connections, read from the queue as they are sent.

use bytes::Bytes;
use mail_core::smtp::client::{Message, RecipientResult};
use mail_core::{BodyType, DsnOptions, Recipient, ReversePath};
use queue::store::{Batch, Family, Store};

use super::open::Terms;
use super::tests::{Lab, paused, script, word};
use crate::config::settings::{AddressFamily, TlsLevel};
use crate::prepare::large::tests::accepted;
use crate::prepare::tests::{NOW, World};
use crate::prepare::{Prepared, Preparer};

const UP_TO_DATA: [&str; 9] = [
    "S 220 hi",
    "C EHLO relay.test",
    "R 250-mx|250 PIPELINING|",
    "C MAIL",
    "C RCPT",
    "C DATA",
    "S 250 a",
    "S 250 b",
    "S 354 go",
];

struct Sent {
    result: &'static str,
    told: String,
    heard: String,
    usable: bool,
}

async fn send(peer: &[&str], preparer: &Preparer, prepared: &Prepared) -> Sent {
    let lab = Lab::with(&[&script(&[&UP_TO_DATA, peer])], 64, "mx1.test");
    let terms = Terms::of_mx(TlsLevel::Off, AddressFamily::Any);
    let mut connection = lab.open_on(1, &terms).await.unwrap();
    let reader = preparer.reader(prepared.rest.clone().unwrap());
    let reverse_path = ReversePath::Mailbox("s@a.test".parse().unwrap());
    let message = Message {
        reverse_path: &reverse_path,
        recipients: &[Recipient::new("r@ok.test".parse().unwrap())],
        dsn: &DsnOptions::default(),
        body_type: BodyType::SevenBit,
        eight_bit: false,
        utf8_header: false,
        size: prepared.body.len() as u64 + reader.bytes(),
        by: None,
        priority: None,
        hold: None,
    };
    let parts: [&[u8]; 2] = [b"X: y\r\n", &prepared.body];
    let result = connection.send(&message, &parts, Some(&reader)).await.remove(0);
    let usable = connection.is_usable();
    Sent {
        result: word(&result),
        told: match result {
            RecipientResult::Deferred(told, _) | RecipientResult::InDoubt(told) => told,
            _ => String::new(),
        },
        heard: lab.heard(),
        usable,
    }
}

#[test]
fn a_large_message_arrives_byte_for_byte_wherever_it_is_cut() {
    const TEXT: &str = "A: b\r\n\r\n.dot\r\n..\r\n.\r\nend";
    paused(async {
        for first in 8..TEXT.len() - 1 {
            for second in (first + 1..TEXT.len()).take(3) {
                let world = World::new();
                let units = accepted(&world, TEXT.as_bytes(), &[first, second]).await;
                let preparer = world.preparer(&[]);
                let prepared = preparer.prepare(units[0], None, NOW).await.unwrap();
                let sent = send(&["BODY", "S 250 kept"], &preparer, &prepared).await;
                assert_eq!((sent.result, sent.usable), ("delivered", true));
                let body = " X: y|A: b||..dot|...|..|end";
                assert!(sent.heard.ends_with(body), "{} at {first}, {second}", sent.heard);
            }
        }
    });
}

#[test]
fn a_chunk_that_is_damaged_meanwhile_ends_the_connection_before_the_final_dot() {
    const TEXT: &str = "A: b\r\n\r\nsecond\r\nthird\r\n";
    paused(async {
        let world = World::new();
        let units = accepted(&world, TEXT.as_bytes(), &[8, 16]).await;
        let preparer = world.preparer(&[]);
        let prepared = preparer.prepare(units[0], None, NOW).await.unwrap();
        let mut batch = Batch::default();
        let key = queue::keys::body(units[0].id, 2);
        batch.put(Family::Body, &key, Bytes::from_static(b"other\r\n"));
        world.store.write(&batch, true).unwrap();
        let sent = send(&["BODY", "S 250 kept"], &preparer, &prepared).await;
        assert_eq!((sent.result, sent.usable), ("deferred", false));
        assert!(sent.told.contains("given up in the middle"), "{}", sent.told);
        assert!(!sent.heard.contains("third") && !sent.heard.contains("other"));
    });
}

#[test]
fn a_peer_that_answers_in_the_middle_of_a_large_message() {
    paused(async {
        let text = format!("A: b\r\n\r\n{}", "0123456789abcdef\r\n".repeat(10_000));
        let world = World::new();
        let cuts: Vec<_> = (1..60).map(|number| number * 3_000).collect();
        let units = accepted(&world, text.as_bytes(), &cuts).await;
        let preparer = world.preparer(&[]);
        let prepared = preparer.prepare(units[0], None, NOW).await.unwrap();
        for (peer, expected) in [
            (&["TAKE 70000", "S 552 5.3.4 too big"][..], "refused"),
            (&["TAKE 70000", "S 552 5.3.4 too big", "SILENT"], "refused"),
            (&["TAKE 70000", "S 421 bye"], "deferred"),
            (&["TAKE 70000"], "deferred"),
            (&["TAKE 70000", "SILENT"], "deferred"),
            (&["BODY"], "in doubt"),
            (&["BODY", "S 250 kept"], "delivered"),
        ] {
            let sent = send(peer, &preparer, &prepared).await;
            assert_eq!(sent.result, expected, "{peer:?}: {}", sent.told);
        }
    });
}
