//! When a message is to go (RFC 4865), in what time (RFC 2852), and how urgently (RFC 6710), and how much a peer takes (RFC 9422):
//! played to peers on a virtual clock.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lab::script::Ending;
use mail_core::{
    BodyType, By, DsnOptions, MessageId, Notify, Priority, Recipient, ReversePath, TransferOptions, WhenLate,
};
use queue::{EventKind, NewMessage, NewUnit, Origin, RouteGroup};

mod common;

use common::{Life, START, live};

const HOUR: Duration = Duration::from_secs(3_600);

/// A peer that offers this, is told that behind MAIL's address, and answers so to RCPT.
fn peer(offers: &str, told: &str, rcpt: &str) -> String {
    let start = format!(
        "S: 220 mx.test\nC: EHLO relay.test\nS: 250-mx.test\n{offers}S: 250 8BITMIME\n\
         C: MAIL FROM:<sender@back.test>{told}\nS: 250 ok\nC: RCPT TO:<to@to.test>\nS: {rcpt}\n"
    );
    if rcpt.starts_with('2') {
        format!("{start}C: DATA\nS: 354 go on\nC: ...\nC: .\nS: 250 kept\nC: QUIT\nS: 221 bye\n")
    } else {
        format!("{start}C: RSET\nS: 250 ok\nC: QUIT\nS: 221 bye\n")
    }
}

/// Takes reports.
const BACK: &str = "\
S: 220 back.test
C: EHLO *
S: 250-back.test
S: 250 MT-PRIORITY
C: MAIL FROM:<>*
S: 250 ok
C: RCPT TO:<sender@back.test>
S: 250 ok
C: DATA
S: 354 go on
C: ...
C: .
S: 250 kept
C: QUIT
S: 221 bye
";

fn by(seconds: i32, late: WhenLate, trace: bool) -> TransferOptions {
    let by = By { seconds, late, trace };
    TransferOptions {
        by: Some(by.from(START)),
        priority: None,
    }
}

fn message(held: Duration, notify: Option<Notify>, transfer: TransferOptions) -> NewMessage {
    let due = START + held;
    NewMessage {
        id: MessageId::new(START, &[1; 10]),
        received_at: START,
        expires_at: transfer.return_at().unwrap_or(due + 24 * HOUR),
        tenant: "t".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Mailbox("sender@back.test".parse().unwrap()),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        transfer,
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::from_static(b"Received: by relay.test\r\n"),
        body: Bytes::from_static(b"From: sender@back.test\r\nSubject: hi\r\n\r\nhello\r\n"),
        rest: None,
        origin: Origin::default(),
        cause: None,
        units: vec![NewUnit {
            route_group: RouteGroup(0),
            domain: "to.test".parse().unwrap(),
            due,
            recipients: vec![Recipient {
                notify,
                ..Recipient::new("to@to.test".parse().unwrap())
            }],
        }],
    }
}

/// The message, played to these conversations of one host, the last of them as often as it comes to that.
fn play(conversations: &[String], message: NewMessage, span: Duration) -> Life {
    let mut script = String::new();
    for (number, conversation) in (1..).zip(conversations) {
        let last = if number == conversations.len() { ".." } else { "" };
        script.push_str(&format!("connection {number}{last}\n{conversation}"));
    }
    let scripted = |text: &str| vec![Some(text.parse().unwrap())];
    let config = "[delivery.retry]\nfirst = \"2h\"\ncap = \"2h\"\njitter = 0.0\n\
                  [delivery.limits]\nmessages_per_connection = 1\n";
    let life = live(
        &[("to.test", scripted(&script)), ("back.test", scripted(BACK))],
        config,
        Arc::new(message),
        span,
    );
    for (domain, played) in &life.played {
        for (ending, record) in played {
            assert!(
                !matches!(ending, Ending::Unexpected { .. }),
                "{domain}: {ending}; {:?}",
                record.lines
            );
        }
    }
    life
}

/// What happened to the recipient, and how many seconds after the start.
fn fates(life: &Life) -> Vec<(EventKind, u64)> {
    let events = life.queue.events(0, 1_000).unwrap();
    let ours = events
        .iter()
        .filter(|(_, event)| event.recipients == ["to@to.test"] && event.kind != EventKind::Accepted);
    ours.map(|(_, event)| (event.kind, event.at.since(START).as_secs()))
        .collect()
}

/// The reports, each with when it was made.
fn reports(life: &Life) -> Vec<(String, u64)> {
    let events = life.queue.events(0, 1_000).unwrap();
    let made = events
        .iter()
        .filter(|(_, event)| event.kind == EventKind::Accepted && event.recipients == ["sender@back.test"])
        .map(|(_, event)| event.at.since(START).as_secs());
    let played = life
        .played
        .get("back.test")
        .map(Vec::as_slice)
        .unwrap_or_default();
    let messages = played.iter().flat_map(|(_, record)| &record.messages);
    let texts: Vec<_> = messages
        .map(|message| String::from_utf8(message.clone()).unwrap())
        .collect();
    let made: Vec<_> = made.collect();
    assert_eq!(texts.len(), made.len(), "each arrived");
    texts.into_iter().zip(made).collect()
}

#[test]
fn what_is_held_goes_when_it_is_released_and_no_delay_is_told_of_before() {
    let told = Some(Notify::On {
        success: false,
        failure: true,
        delay: true,
    });
    let held = message(72 * HOUR, told, TransferOptions::default());
    let life = play(&[peer("", "", "250 ok")], held, 74 * HOUR);
    let [(EventKind::Delivered, at)] = fates(&life)[..] else {
        panic!("{:?}", fates(&life))
    };
    assert!((0..10).contains(&(at - 72 * 3_600)), "{at}");
    assert_eq!(reports(&life).len(), 0);
    assert_eq!(life.connections["to.test"], [1], "nobody came before");
}

#[test]
fn what_is_to_be_returned_goes_to_nobody_who_does_not_keep_the_time() {
    let mail = |seconds| message(Duration::ZERO, None, by(seconds, WhenLate::Return, false));
    let silent = "S: 220 mx.test\nC: EHLO *\nS: 250 mx.test\nC: QUIT\nS: 221 bye\n".to_owned();
    let slow = silent.replace("250 mx.test", "250-mx.test\nS: 250 DELIVERBY 900");
    for conversation in [silent, slow] {
        let life = play(&[conversation], mail(600), HOUR);
        assert!(
            matches!(fates(&life)[..], [(EventKind::Bounced, 0..5)]),
            "{:?}",
            fates(&life)
        );
        let [(report, _)] = &reports(&life)[..] else {
            panic!()
        };
        assert!(report.contains("Action: failed\r\nStatus: 5.4.7\r\n"), "{report}");
        assert!(
            report.contains("DELIVERBY\r\n") || report.contains("needs 900 s"),
            "{report}"
        );
        assert!(report.contains("\r\nDeliver-By-Date: "), "{report}");
    }
    let life = play(
        &[peer("S: 250-DELIVERBY 600,X\n", " BY=*;R", "250 ok")],
        mail(900),
        HOUR,
    );
    assert!(matches!(fates(&life)[..], [(EventKind::Delivered, 0..5)]));
    assert_eq!(reports(&life).len(), 0);
}

/// The schedule would try again after two hours.
#[test]
fn what_is_late_is_returned_in_time_and_tried_once_more_before() {
    let busy = peer("S: 250-DELIVERBY\n", " BY=*;R", "450 4.2.1 later");
    let mail = message(Duration::ZERO, None, by(600, WhenLate::Return, false));
    let life = play(&[busy], mail, HOUR);
    let fates = fates(&life);
    assert!(
        matches!(
            fates[..],
            [
                (EventKind::Deferred, 0..5),
                (EventKind::Deferred, 535..545),
                ..,
                (EventKind::Expired, 600..605)
            ]
        ),
        "{fates:?}"
    );
    assert!(fates.len() <= 6, "{fates:?}");
    let [(report, at)] = &reports(&life)[..] else {
        panic!()
    };
    assert!((600..605).contains(at), "{at}");
    assert!(report.contains("Action: failed\r\nStatus: 5.4.7\r\n"), "{report}");
}

#[test]
fn who_named_a_time_is_told_then_and_the_mail_goes_on() {
    let mail = |notify| message(Duration::ZERO, notify, by(600, WhenLate::Notify, false));
    let offering = |told: &str, rcpt: &str| peer("S: 250-DELIVERBY\n", told, rcpt);
    let later = [
        offering(" BY=*;N", "450 4.2.1 later"),
        // Two hours later the time is over, and the next hop hears by how much.
        offering(" BY=-6*;N", "250 ok"),
    ];
    let life = play(&later, mail(None), 3 * HOUR);
    assert!(
        matches!(
            fates(&life)[..],
            [
                (EventKind::Deferred, 0..5),
                // By the notice: no attempt.
                (EventKind::Deferred, 600..603),
                (EventKind::Delivered, 7_200..7_210)
            ]
        ),
        "{:?}",
        fates(&life)
    );
    let [(report, at)] = &reports(&life)[..] else {
        panic!("{:?}", reports(&life))
    };
    assert!((600..603).contains(at), "long before delay_notice_after: {at}");
    assert!(
        report.contains("Action: delayed\r\nStatus: 4.4.7\r\n"),
        "{report}"
    );
    // Whose host is not told of the time is told that; who wants to hear nothing is not.
    let plain = peer("", "", "250 ok");
    let life = play(std::slice::from_ref(&plain), mail(None), HOUR);
    let [(report, _)] = &reports(&life)[..] else {
        panic!()
    };
    assert!(report.contains("Action: relayed\r\n"), "{report}");
    let life = play(&[plain], mail(Some(Notify::Never)), HOUR);
    assert_eq!(reports(&life).len(), 0);
    let life = play(&later[..1], mail(Some(Notify::Never)), HOUR);
    assert_eq!(reports(&life).len(), 0);
}

#[test]
fn a_trace_tells_of_each_host_on_the_way() {
    let mail = message(Duration::ZERO, None, by(600, WhenLate::Return, true));
    let life = play(&[peer("S: 250-DELIVERBY\n", " BY=*;RT", "250 ok")], mail, HOUR);
    let [(report, _)] = &reports(&life)[..] else {
        panic!()
    };
    assert!(report.contains("Action: relayed\r\n"), "{report}");
}

#[test]
fn a_priority_is_passed_on_and_reports_have_it_too() {
    let transfer = TransferOptions {
        priority: Some(Priority::try_from(-4).unwrap()),
        by: None,
    };
    let mail = || message(Duration::ZERO, None, transfer);
    let offering = peer("S: 250-MT-PRIORITY MIXER\n", " MT-PRIORITY=-4", "250 ok");
    for conversation in [offering, peer("", "", "250 ok")] {
        let life = play(&[conversation], mail(), HOUR);
        assert!(matches!(fates(&life)[..], [(EventKind::Delivered, _)]));
    }
    // RFC 6710 §4.2: of mail whose client said nothing, too.
    let offering = peer("S: 250-MT-PRIORITY\n", " MT-PRIORITY=0", "250 ok");
    let life = play(
        &[offering],
        message(Duration::ZERO, None, TransferOptions::default()),
        HOUR,
    );
    assert!(matches!(fates(&life)[..], [(EventKind::Delivered, _)]));
    let refusing = peer("", "", "550 5.1.1 no such user");
    let life = play(&[refusing], mail(), HOUR);
    let (_, record) = &life.played["back.test"][0];
    assert!(
        record
            .lines
            .iter()
            .any(|line| line.starts_with("C: MAIL FROM:<>") && line.contains("MT-PRIORITY=-4")),
        "{:?}",
        record.lines
    );
}

/// RFC 9422 §4.3: domains that share their hosts share connections, too, and those have room for one domain each.
#[test]
fn a_peer_gets_no_more_domains_a_connection_than_it_takes() {
    let transaction = |domain: &str| {
        format!(
            "C: MAIL FROM:<sender@back.test>\nS: 250 ok\nC: RCPT TO:<*@{domain}>\nS: 250 ok\nC: DATA\nS: 354 go on\nC: ...\n\
             C: .\nS: 250 kept\n"
        )
    };
    let conversation = |transactions: String| {
        format!(
            "S: 220 mx.test\nC: EHLO relay.test\nS: 250-mx.test\nS: 250 LIMITS RCPTDOMAINMAX=1\n{transactions}C: QUIT\nS: 221 bye\n"
        )
    };
    let script = format!(
        "connection 1\n{}connection 2\n{}",
        conversation(transaction("to.test").repeat(2)),
        conversation(transaction("b.to.test")),
    );
    let mut mail = message(Duration::ZERO, None, TransferOptions::default());
    let mut other = mail.units[0].clone();
    mail.units[0]
        .recipients
        .push(Recipient::new("second@to.test".parse().unwrap()));
    other.domain = "b.to.test".parse().unwrap();
    other.recipients = vec![Recipient::new("to@b.to.test".parse().unwrap())];
    mail.units.push(other);
    let life = live(
        &[("to.test", vec![Some(script.parse().unwrap())])],
        "[delivery.limits]\nconnections = 1\nrecipients_per_transaction = 1\n",
        Arc::new(mail),
        Duration::from_secs(30),
    );
    let endings: Vec<_> = life.played["to.test"].iter().map(|(ending, _)| ending).collect();
    assert!(
        endings
            .iter()
            .all(|ending| !matches!(ending, Ending::Unexpected { .. })),
        "{endings:?}"
    );
    assert_eq!(life.connections["to.test"], [2]);
    let events = life.queue.events(0, 1_000).unwrap();
    let delivered = events
        .iter()
        .filter(|(_, event)| event.kind == EventKind::Delivered)
        .map(|(_, event)| event.recipients.len());
    assert_eq!(delivered.sum::<usize>(), 3);
}
