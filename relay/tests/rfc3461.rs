//! The example of RFC 3461 §10: Alice writes to six people at four places, and is told what she asked to be told.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lab::script::Ending;
use mail_core::{BodyType, DsnOptions, MessageId, Notify, Recipient, Ret, ReversePath};
use queue::{NewMessage, NewUnit, Origin, RouteGroup};

mod common;

use common::{START, live};

/// §10.2: Example.COM knows DSN, takes Bob, and will report on him itself.
const EXAMPLE_COM: &str = "\
S: 220 Example.COM SMTP server here
C: EHLO relay.test
S: 250-Example.COM
S: 250-DSN
S: 250 PIPELINING
C: MAIL FROM:<Alice@example.org> RET=HDRS ENVID=QQ314159
C: RCPT TO:<Bob@example.com> NOTIFY=SUCCESS ORCPT=rfc822;Bob@Example.COM
C: DATA
S: 250 sender ok
S: 250 recipient ok
S: 354 send message
C: ...
C: .
S: 250 message received
C: QUIT
S: 221 goodbye
";

/// §10.3: Ivory.EDU does not know DSN; nothing is said of it.
const IVORY_EDU: &str = "\
S: 220 Ivory.EDU here
C: EHLO relay.test
S: 250 Ivory.EDU
C: MAIL FROM:<Alice@example.org>
S: 250 sender ok
C: RCPT TO:<Carol@ivory.edu>
S: 250 recipient ok
C: RCPT TO:<Dana@ivory.edu>
S: 250 recipient ok
C: DATA
S: 354 send message
C: ...
C: .
S: 250 message received
C: QUIT
S: 221 goodbye
";

/// §10.4: Bombs.AF.MIL knows DSN, and has no mailbox for Eric.
const BOMBS_AF_MIL: &str = "\
S: 220 Bombs.AF.MIL reporting for duty
C: EHLO relay.test
S: 250-Bombs.AF.MIL
S: 250 DSN
C: MAIL FROM:<Alice@example.org> RET=HDRS ENVID=QQ314159
S: 250 sender ok
C: RCPT TO:<Eric@bombs.af.mil> NOTIFY=FAILURE ORCPT=rfc822;Eric@Bombs.AF.MIL
S: 550 5.1.1 no such user here
C: RCPT TO:<Fred@bombs.af.mil> NOTIFY=NEVER
S: 250 recipient ok
C: DATA
S: 354 send message
C: ...
C: .
S: 250 message received
C: QUIT
S: 221 goodbye
";

/// Alice's own host takes the reports, which nobody may report on (§6.1).
const EXAMPLE_ORG: &str = "\
S: 220 Example.ORG
C: EHLO relay.test
S: 250-Example.ORG
S: 250 DSN
C: MAIL FROM:<>
S: 250 sender ok
C: RCPT TO:<Alice@example.org> NOTIFY=NEVER
S: 250 recipient ok
C: DATA
S: 354 send message
C: ...
C: .
S: 250 message received
C: QUIT
S: 221 goodbye
";

fn recipient(address: &str, notify: Notify) -> Recipient {
    let (local, domain) = address.split_once('@').unwrap();
    Recipient {
        mailbox: format!("{local}@{domain}").parse().unwrap(),
        notify: Some(notify),
        orcpt: (notify != Notify::Never).then(|| format!("rfc822;{address}").into()),
    }
}

fn wish(success: bool, failure: bool) -> Notify {
    Notify::On {
        success,
        failure,
        delay: false,
    }
}

/// §10.1, as it was submitted.
fn submission() -> Arc<NewMessage> {
    let to = [
        recipient("Bob@Example.COM", wish(true, false)),
        recipient("Carol@Ivory.EDU", wish(false, true)),
        recipient("Dana@Ivory.EDU", wish(true, true)),
        recipient("Eric@Bombs.AF.MIL", wish(false, true)),
        recipient("Fred@Bombs.AF.MIL", Notify::Never),
        recipient("George@Tax-ME.GOV", wish(false, true)),
    ];
    let unit = |recipients: &[Recipient]| NewUnit {
        route_group: RouteGroup(0),
        domain: recipients[0].mailbox.domain().clone(),
        due: START,
        recipients: recipients.to_vec(),
    };
    Arc::new(NewMessage {
        id: MessageId::new(START, &[1; 10]),
        received_at: START,
        expires_at: START + Duration::from_secs(86_400),
        tenant: "t".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Mailbox("Alice@example.org".parse().unwrap()),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        transfer: Default::default(),
        dsn: DsnOptions {
            ret: Some(Ret::Headers),
            envid: Some("QQ314159".into()),
        },
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::from_static(b"Received: by relay.test\r\n"),
        body: Bytes::from_static(b"From: Alice@example.org\r\nSubject: lunch\r\n\r\nWhere?\r\n"),
        origin: Origin::default(),
        cause: None,
        rest: None,
        units: vec![unit(&to[..1]), unit(&to[1..3]), unit(&to[3..5]), unit(&to[5..])],
    })
}

#[test]
fn alice_is_told_what_she_asked_for() {
    let scripted = |text: &str| vec![Some(text.parse().unwrap())];
    let life = live(
        &[
            ("example.com", scripted(EXAMPLE_COM)),
            ("ivory.edu", scripted(IVORY_EDU)),
            ("bombs.af.mil", scripted(BOMBS_AF_MIL)),
            ("example.org", scripted(EXAMPLE_ORG)),
            ("tax-me.gov", vec![None]),
        ],
        "[delivery.limits]\nmessages_per_connection = 1\n",
        submission(),
        Duration::from_secs(2 * 86_400),
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
    // Each conversation took place.
    assert_eq!(life.played.len(), 4, "{:?}", life.played.keys());
    let reports: Vec<String> = life.played["example.org"]
        .iter()
        .flat_map(|(_, record)| &record.messages)
        .map(|message| String::from_utf8(message.clone()).unwrap())
        .collect();
    let about = |address: &str| {
        let line = format!("Original-Recipient: rfc822; {address}\r\n");
        let found: Vec<_> = reports.iter().filter(|report| report.contains(&line)).collect();
        match found.as_slice() {
            [one] => one.as_str(),
            other => panic!("{} reports on {address}", other.len()),
        }
    };
    // §10.7: Dana's host has it, and will say nothing more.
    let dana = about("Dana@Ivory.EDU");
    assert!(dana.contains("Action: relayed\r\nStatus: 2.0.0\r\n"), "{dana}");
    // §10.8: Eric has no mailbox.
    let eric = about("Eric@Bombs.AF.MIL");
    assert!(eric.contains("Action: failed\r\nStatus: 5.1.1\r\n"), "{eric}");
    assert!(
        eric.contains("Diagnostic-Code: smtp; 550 5.1.1 no such user here\r\n"),
        "{eric}"
    );
    // §10.9: George's host was never there.
    let george = about("George@Tax-ME.GOV");
    assert!(george.contains("Action: failed\r\nStatus: 4.4.7\r\n"), "{george}");
    for report in &reports {
        assert!(
            report.contains("\r\nOriginal-Envelope-Id: QQ314159\r\n"),
            "{report}"
        );
        // RET=HDRS
        assert!(
            report.contains("Subject: lunch\r\n") && !report.contains("Where?"),
            "{report}"
        );
    }
    // Nothing is said of Bob (his host reports), Carol (nothing failed) and Fred (NEVER).
    assert_eq!(reports.len(), 3, "{reports:#?}");
    assert!(
        life.connections["tax-me.gov"][0] > 1,
        "George's host was tried again"
    );
    let waiting: u64 = life
        .queue
        .queues(None, 100)
        .unwrap()
        .iter()
        .map(|(_, queue)| queue.count)
        .sum();
    assert_eq!(waiting, 0, "all has ended");
}
