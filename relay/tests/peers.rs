//! The odd peers of `lab/peers`, played to the delivery side on a virtual clock: what becomes of each recipient at the first
//! attempt, and what the peers saw. The scripts themselves are strict: what the relay says otherwise than they expect fails.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lab::Script;
use lab::script::{Ending, Record};
use mail_core::{BodyType, DsnOptions, Mailbox, MessageId, Recipient, ReversePath};
use queue::{EventKind, NewMessage, NewUnit, Origin, RouteGroup};

mod common;

use common::{START, live};

/// Longer than any attempt, shorter than the wait for the second.
const SPAN: Duration = Duration::from_secs(3_000);

/// What becomes of a recipient at the first attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Delivered,
    Bounced,
    /// Tried again later, by a reply of its own.
    Deferred,
    /// Tried again later, and it may be there already.
    InDoubt,
    /// Its destination as a whole rests; no attempt counts.
    Rests,
}
use Fate::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../lab/peers")
}

fn script(name: &str) -> Script {
    Script::load(&folder().join(format!("{name}.smtp"))).unwrap_or_else(|error| panic!("{error}"))
}

const PREFIX: &[u8] = b"Received: by relay.test\r\n";

fn message(recipients: usize, body: &[u8]) -> Arc<NewMessage> {
    let recipients: Vec<_> = (0..recipients)
        .map(|number| {
            Recipient::new(Mailbox::new(&format!("r{number}"), "to.test".parse().unwrap()).unwrap())
        })
        .collect();
    Arc::new(NewMessage {
        id: MessageId::new(START, &[1; 10]),
        received_at: START,
        expires_at: START + Duration::from_secs(86_400),
        tenant: "t".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Mailbox("sender@back.test".parse().unwrap()),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        transfer: Default::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::from_static(PREFIX),
        body: Bytes::copy_from_slice(body),
        rest: None,
        origin: Origin::default(),
        cause: None,
        units: vec![NewUnit {
            route_group: RouteGroup(0),
            domain: "to.test".parse().unwrap(),
            due: START,
            recipients,
        }],
    })
}

/// What came of it.
struct Outcome {
    /// Of each recipient, with the reply or cause.
    fates: Vec<(Fate, String)>,
    played: Vec<(Ending, Record)>,
    /// To each host.
    connections: Vec<u64>,
}

/// One message, played to these hosts, for as long as one attempt can take.
fn deliver(hosts: &[&str], recipients: usize, body: &[u8]) -> Outcome {
    let hosts: Vec<_> = hosts.iter().map(|name| Some(script(name))).collect();
    let retry = "[delivery.retry]\nfirst = \"2h\"\ncap = \"2h\"\njitter = 0.0\n";
    // Reports don't arrive; they are not what is looked at.
    let mut life = live(&[("to.test", hosts)], retry, message(recipients, body), SPAN);
    let queue = life.queue;
    let events = queue.events(0, 1_000).unwrap();
    let fate = |number: usize| {
        let name = format!("r{number}@to.test");
        let mut found = None;
        for (_, event) in &events {
            let fate = match event.kind {
                EventKind::Delivered => Delivered,
                EventKind::Bounced => Bounced,
                EventKind::Deferred if event.id.is_none() => Rests,
                EventKind::Deferred => Deferred,
                EventKind::InDoubt => InDoubt,
                _ => continue,
            };
            // There is one destination but the reports', which go nowhere.
            let concerns = fate == Rests || event.recipients.contains(&name);
            if concerns {
                // A destination may rest because of what became of its recipients; what became of them says more.
                assert!(
                    found.is_none() || fate == Rests,
                    "two fates of {name}: {events:?}"
                );
                found.get_or_insert((fate, event.reply.clone()));
            }
        }
        found.unwrap_or_else(|| panic!("nothing became of {name}: {events:?}"))
    };
    let fates = (0..recipients).map(fate).collect();
    Outcome {
        fates,
        played: life.played.remove("to.test").unwrap_or_default(),
        connections: life.connections.remove("to.test").unwrap_or_default(),
    }
}

const BODY: &[u8] = b"From: sender@back.test\r\nSubject: hi\r\n\r\nhello\r\n.\r\n..\r\n";

/// Script, what becomes of each recipient, and a part of the reply or cause that is told; the connections made.
const CASES: &[(&str, &[Fate], &str, u64)] = &[
    ("takes", &[Delivered], "250", 1),
    ("takes-step-by-step", &[Delivered], "250", 1),
    ("one-octet-at-a-time", &[Delivered], "250", 1),
    ("drips-for-ever", &[Rests], "silence", 1),
    ("hundred-line-replies", &[Delivered], "250", 1),
    ("endless-reply", &[Rests], "endless", 1),
    ("mixed-codes-after-the-dot", &[InDoubt], "250 and 550", 1),
    ("mixed-codes-to-rcpt", &[Deferred], "550 and 250", 1),
    ("four-digit-reply", &[Deferred], "2500", 1),
    ("empty-reply", &[Deferred], "malformed", 1),
    ("alphabetic-greeting", &[Rests], "hello", 1),
    ("class-6-to-rcpt", &[Deferred], "650", 1),
    ("class-9-after-the-dot", &[InDoubt], "950", 1),
    ("unknown-codes", &[Delivered], "266", 1),
    ("unknown-5yz", &[Bounced], "577", 1),
    ("no-text", &[Delivered], "250", 1),
    ("no-final-line-end", &[Delivered], "250", 1),
    ("bare-line-feeds", &[Delivered], "250", 1),
    ("short-enhanced-code", &[Bounced], "550", 1),
    ("short-enhanced-codes-on-two-lines", &[Bounced], "550", 1),
    (
        "enhanced-code-of-another-class",
        &[Bounced, Delivered],
        "no such user",
        1,
    ),
    ("partly-refused", &[Delivered, Bounced, Deferred], "450 4.2.1", 1),
    ("too-many-recipients", &[Delivered; 3], "250", 1),
    ("refused-after-the-dot", &[Bounced, Bounced], "554 5.7.1", 1),
    ("put-off-after-the-dot", &[Deferred], "451 4.3.0", 1),
    ("data-refused", &[Bounced], "554 5.7.1", 1),
    ("go-ahead-without-recipients", &[Bounced], "550 5.1.1", 1),
    ("busy-greeting", &[Rests], "421", 1),
    ("busy-at-ehlo", &[Rests], "421", 1),
    ("busy-at-mail", &[Deferred], "421", 1),
    ("busy-at-rcpt", &[Deferred], "421", 1),
    ("busy-at-data", &[Deferred], "421", 1),
    ("busy-after-the-dot", &[Deferred], "421", 1),
    ("busy-for-the-second-recipient", &[Deferred, Deferred], "421", 1),
    ("closes-before-greeting", &[Rests], "lost", 1),
    ("closes-at-ehlo", &[Rests], "lost", 1),
    ("closes-after-ehlo", &[Deferred], "lost", 1),
    ("closes-at-mail", &[Deferred], "lost", 1),
    ("closes-at-rcpt", &[Deferred], "lost", 1),
    ("closes-at-data", &[Deferred], "lost", 1),
    ("closes-after-the-dot", &[InDoubt], "after the final dot", 1),
    ("resets-after-the-dot", &[InDoubt], "after the final dot", 1),
    ("silent-before-greeting", &[Rests], "silence", 1),
    ("silent-at-ehlo", &[Rests], "silence", 1),
    ("silent-at-mail", &[Deferred], "silence", 1),
    ("silent-at-rcpt", &[Deferred], "silence", 1),
    ("silent-at-data", &[Deferred], "silence", 1),
    ("silent-after-the-dot", &[InDoubt], "silence", 1),
    ("helo-only", &[Delivered], "250", 1),
    ("size-garbage", &[Delivered], "250", 1),
    ("size-zero", &[Delivered], "250", 1),
    ("size-small", &[Bounced], "5.3.4", 1),
    ("limits-rcptmax-3", &[Delivered; 7], "250", 1),
    ("limits-garbage", &[Delivered; 2], "250", 1),
    ("limits-under-tls", &[Delivered; 3], "250", 1),
    ("keeps-time", &[Delivered], "250", 1),
    ("limits-mailmax-1", &[Delivered; 3], "250", 2),
    ("starttls", &[Delivered], "250", 1),
    ("starttls-injected-replies", &[Delivered], "250", 1),
    ("extra-reply-before-starttls", &[Rests], "out of turn", 1),
    ("starttls-refused-for-now", &[Delivered], "250", 1),
    ("broken-tls", &[Delivered], "250", 2),
    ("silent-in-handshake", &[Delivered], "250", 2),
    ("closes-at-starttls", &[Delivered], "250", 2),
    ("silent-at-starttls", &[Delivered], "250", 2),
    ("leaves-tls", &[InDoubt], "after the final dot", 1),
    ("tls-from-the-start", &[Rests], "", 1),
];

#[test]
fn what_becomes_of_each_recipient() {
    let mut wrong = Vec::new();
    for &(name, expected, told, connections) in CASES {
        let outcome = deliver(&[name], expected.len(), BODY);
        let fates: Vec<_> = outcome.fates.iter().map(|(fate, _)| *fate).collect();
        let is_told = outcome.fates.iter().any(|(_, reply)| reply.contains(told));
        if fates != expected || !is_told || outcome.connections != [connections] {
            wrong.push(format!(
                "{name}: expected {expected:?} {told:?} {connections}, found {:?} {:?}",
                outcome.fates, outcome.connections
            ));
        }
        for (ending, record) in &outcome.played {
            if matches!(ending, Ending::Unexpected { .. }) {
                wrong.push(format!("{name}: {ending}; {:?}", record.lines));
            }
            for message in &record.messages {
                if *message != [PREFIX, BODY].concat() && !message.is_empty() {
                    wrong.push(format!(
                        "{name}: the message arrived as {}",
                        message.escape_ascii()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_refusing_host_leaves_the_mail_to_the_next_and_all_must_refuse_for_a_bounce() {
    let outcome = deliver(&["refuses-greeting", "takes"], 1, BODY);
    assert_eq!((outcome.fates[0].0, outcome.connections), (Delivered, vec![1, 1]));
    let outcome = deliver(&["refuses-greeting", "refuses-greeting"], 1, BODY);
    assert_eq!((outcome.fates[0].0, outcome.connections), (Bounced, vec![1, 1]));
    assert!(outcome.fates[0].1.contains("554 5.7.1"), "{:?}", outcome.fates);
    for for_now in [
        "busy-greeting",
        "closes-before-greeting",
        "silent-before-greeting",
    ] {
        let outcome = deliver(&["refuses-greeting", for_now], 1, BODY);
        assert_eq!(
            (outcome.fates[0].0, outcome.connections),
            (Rests, vec![1, 1]),
            "{for_now}"
        );
    }
}

/// Peers that need a message longer than what is on its way at once.
const LONG: &[&str] = &[
    "answers-within-the-message",
    "closes-within-the-message",
    "resets-within-the-message",
    "silent-within-the-message",
];

#[test]
fn a_message_that_is_not_read_to_its_end() {
    let body = [
        &b"Subject: long\r\n\r\n"[..],
        &b"0123456789abcde\r\n".repeat(10_000),
    ]
    .concat();
    let outcome = deliver(&["answers-within-the-message"], 1, &body);
    assert_eq!((outcome.fates[0].0, outcome.connections), (Bounced, vec![1]));
    assert!(outcome.fates[0].1.contains("552 5.3.4"), "{:?}", outcome.fates);
    // Its end was never sent: nothing is in doubt.
    for name in LONG
        .iter()
        .filter(|name| name.ends_with("-within-the-message") && !name.starts_with("answers"))
    {
        let outcome = deliver(&[name], 1, &body);
        assert_eq!(
            (outcome.fates[0].0, outcome.connections),
            (Deferred, vec![1]),
            "{name}"
        );
    }
}

/// Rows 2 and 3: what arrives is what was handed over, whatever falls on the edge of a buffer.
#[test]
fn dots_and_long_lines_across_buffer_edges() {
    let head = b"Subject: x\r\n\r\n";
    for edge in [4_095, 4_096, 8_191, 8_192, 16_384] {
        for shift in 0..4 {
            let before = edge - PREFIX.len() - head.len() - shift;
            let line = [&vec![b'x'; 98][..], b"\r\n"].concat();
            let filled = [line.repeat(before / 100), vec![b'y'; before % 100]].concat();
            let body = [&head[..], &filled, b"\r\n.\r\n..\r\n...x\r\n"].concat();
            let outcome = deliver(&["takes"], 1, &body);
            assert_eq!(outcome.fates[0].0, Delivered);
            assert!(
                outcome.played[0].1.messages == [[PREFIX, &body].concat()],
                "changed, {edge} {shift}"
            );
        }
    }
    for length in [998, 999, 1_000, 1_001] {
        let body = [&head[..], &vec![b'.'; length], b"\r\nend\r\n"].concat();
        let outcome = deliver(&["takes-step-by-step"], 1, &body);
        assert!(
            outcome.played[0].1.messages == [[PREFIX, &body].concat()],
            "changed, {length}"
        );
    }
}

#[test]
fn every_script_has_its_case() {
    let elsewhere = ["refuses-greeting", "greylists"]
        .into_iter()
        .chain(LONG.iter().copied());
    let named: BTreeSet<_> = CASES
        .iter()
        .map(|case| case.0)
        .chain(elsewhere)
        .map(str::to_owned)
        .collect();
    let files = std::fs::read_dir(folder()).unwrap();
    let there: BTreeSet<_> = files
        .map(|file| {
            file.unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(named, there);
}
