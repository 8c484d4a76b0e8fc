//! Reports, as they are written.

use mail_core::{DeliverBy, Priority, WhenLate};

use super::*;

const DSN: DsnOptions = DsnOptions {
    ret: None,
    envid: None,
};
const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn settings() -> ReportSettings {
    ReportSettings {
        hostname: "relay.example.net".parse().unwrap(),
        reporting_domain: "example.net".parse().unwrap(),
        max_report_bytes: 20_000,
        expire_after: Duration::from_secs(86_400),
        delay_after: Duration::from_secs(14_400),
    }
}

fn refused(mailbox: &str, code: u16, enhanced: Option<EnhancedCode>, text: &str) -> Notice {
    let mut reply = Reply::plain(code, "").with_text(text);
    reply.enhanced = enhanced;
    Notice {
        to: Recipient::new(mailbox.parse().unwrap()),
        told: Told::Failed(Cause::Refused(reply)),
        remote: Some("mx.example.org".into()),
        last_attempt: Some(NOW),
        class: None,
    }
}

fn composed(prefix: &[u8], body: &[u8], notices: &[Notice], settings: &ReportSettings) -> String {
    let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
    let original = Original {
        held_until: None,
        id: MessageId::from_bytes([1; 16]),
        received_at: NOW - Duration::from_secs(5 * 86_400),
        tenant: &"acme".into(),
        stream: &"transactional".into(),
        reverse_path: &sender,
        dsn: &DSN,
        transfer: Default::default(),
        prefix,
        body,
        rest_bytes: 0,
    };
    let report = compose(&original, notices, settings, NOW, MessageId::from_bytes([2; 16])).unwrap();
    let text = String::from_utf8(report).unwrap();
    assert!(is_clean(text.as_bytes()), "{text}");
    text
}

const UNKNOWN: Option<EnhancedCode> = Some(EnhancedCode(5, 1, 1));

fn plain(body: &[u8]) -> String {
    composed(
        b"Received: x\r\n",
        body,
        &[refused("bob@example.org", 550, UNKNOWN, "no such user")],
        &settings(),
    )
}

#[test]
fn a_report_is_as_rfc_3464_has_it() {
    let boundary = "=_report_02020202020202020202020202020202";
    let expected = format!(
        "From: Mail Delivery System <MAILER-DAEMON@example.net>\r\n\
         To: app@example.com\r\n\
         Subject: Undelivered mail returned to sender\r\n\
         Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n\
         Message-ID: <02020202020202020202020202020202@relay.example.net>\r\n\
         In-Reply-To: <1@example.com>\r\nReferences: <1@example.com>\r\n\
         Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"{boundary}\"\r\n\r\n\
         This is a report in MIME format.\r\n\r\n\
         --{boundary}\r\n\
         Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
         This is the mail system at relay.example.net.\r\n\r\n\
         Your message could not be delivered to the recipient below.\r\nIt will not be tried again.\r\n\r\n\
         <bob@example.org>\r\n    the mail server mx.example.org said: 550 5.1.1 no such user\r\n\r\n\
         The message came in at Thu, 09 Nov 2023 22:13:20 +0000\r\n\
         and is known here as 01010101010101010101010101010101.\r\n\
         Below are the details for mail programs, and what you sent.\r\n\r\n\
         --{boundary}\r\n\
         Content-Type: message/delivery-status\r\n\r\n\
         Reporting-MTA: dns; relay.example.net\r\n\
         X-Postrider-Message: 01010101010101010101010101010101\r\n\
         Arrival-Date: Thu, 09 Nov 2023 22:13:20 +0000\r\n\r\n\
         Final-Recipient: rfc822; bob@example.org\r\nAction: failed\r\nStatus: 5.1.1\r\n\
         Remote-MTA: dns; mx.example.org\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n\
         Last-Attempt-Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n\r\n\
         --{boundary}\r\nContent-Type: message/rfc822\r\n\r\n\
         Received: x\r\nMessage-ID: <1@example.com>\r\nSubject: x\r\n\r\nhello\r\n\
         \r\n--{boundary}--\r\n"
    );
    assert_eq!(
        plain(b"Message-ID: <1@example.com>\r\nSubject: x\r\n\r\nhello\r\n"),
        expected
    );
}

#[test]
fn what_a_reply_was_taken_for_is_told_of_its_recipient() {
    let mut notices = [
        refused("bob@example.org", 552, Some(EnhancedCode(5, 2, 2)), "no room"),
        refused("eve@example.org", 550, UNKNOWN, "no such user"),
    ];
    notices[0].class = Some("mailbox-full".into());
    let text = composed(b"", b"A: 1\r\n\r\n", &notices, &settings());
    let recipients: Vec<_> = text.split("Final-Recipient: ").skip(1).collect();
    assert!(
        recipients[0].contains("\r\nX-Postrider-Class: mailbox-full\r\n\r\n"),
        "{text}"
    );
    assert!(!recipients[1].contains("X-Postrider-Class"), "{text}");
}

/// RFC 4865 §5.1.2.
#[test]
fn a_report_on_mail_that_was_held_counts_from_its_release() {
    let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
    let original = Original {
        id: MessageId::from_bytes([1; 16]),
        received_at: NOW - Duration::from_secs(9 * 86_400),
        held_until: Some(NOW - Duration::from_secs(5 * 86_400)),
        tenant: &"acme".into(),
        stream: &"transactional".into(),
        reverse_path: &sender,
        dsn: &DSN,
        transfer: Default::default(),
        prefix: b"",
        body: b"A: 1\r\n\r\n",
        rest_bytes: 0,
    };
    let notice = Notice {
        told: Told::Failed(expired(None)),
        ..refused("bob@example.org", 550, UNKNOWN, "no")
    };
    let report = compose(
        &original,
        &[notice],
        &settings(),
        NOW,
        MessageId::from_bytes([2; 16]),
    )
    .unwrap();
    let text = String::from_utf8(report).unwrap();
    assert!(text.contains("not delivered within 5 days"), "{text}");
    assert!(
        text.contains("\r\nFuture-Release-Request: until;2023-11-09T22:13:20Z\r\n"),
        "{text}"
    );
}

fn expired(last: Option<&str>) -> Cause {
    Cause::Expired {
        last: last.map(Into::into),
        held_by: None,
    }
}

/// RFC 2852 §4.1.3, §5.
#[test]
fn a_report_says_that_the_time_which_was_named_is_over() {
    let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
    let failed = || Told::Failed(expired(Some("450 4.2.1 later")));
    let delayed = || Told::Delayed("450 4.2.1 later".into(), NOW + Duration::from_secs(60));
    let refused_by_peer = || Told::Failed(Cause::Refused(Reply::new(550, 1, 1, "no")));
    for (told, late, ago, status) in [
        (failed(), WhenLate::Return, true, "5.4.7"),
        (delayed(), WhenLate::Notify, true, "4.4.7"),
        // Nothing to do with the time.
        (failed(), WhenLate::Notify, true, "4.4.7"),
        (refused_by_peer(), WhenLate::Return, true, "5.1.1"),
        (failed(), WhenLate::Return, false, "4.4.7"),
        (delayed(), WhenLate::Notify, false, "4.2.1"),
    ] {
        let at = if ago { NOW } else { NOW + Duration::from_secs(1) };
        let original = Original {
            id: MessageId::from_bytes([1; 16]),
            received_at: NOW - Duration::from_secs(600),
            held_until: None,
            tenant: &"acme".into(),
            stream: &"transactional".into(),
            reverse_path: &sender,
            dsn: &DSN,
            transfer: TransferOptions {
                priority: Some(Priority::try_from(-4).unwrap()),
                by: Some(DeliverBy {
                    at,
                    late,
                    trace: false,
                }),
            },
            prefix: b"",
            body: b"A: 1\r\n\r\n",
            rest_bytes: 0,
        };
        let notice = Notice {
            told,
            ..refused("bob@example.org", 550, UNKNOWN, "no")
        };
        let id = MessageId::from_bytes([2; 16]);
        let report = super::report(&original, &[notice], &settings(), NOW, id).unwrap();
        assert_eq!(report.transfer.priority, original.transfer.priority);
        assert_eq!(report.transfer.by, None);
        let text = String::from_utf8(report.body.to_vec()).unwrap();
        assert!(
            text.contains(&format!("\r\nStatus: {status}\r\n")),
            "{late:?}: {text}"
        );
        let line = format!("\r\nDeliver-By-Date: {}\r\n", date(at));
        assert!(text.contains(&line), "{text}");
    }
}

#[test]
fn nobody_is_told_of_a_report_that_failed() {
    let original = Original {
        held_until: None,
        id: MessageId::from_bytes([1; 16]),
        received_at: NOW,
        tenant: &"acme".into(),
        stream: &"transactional".into(),
        reverse_path: &ReversePath::Null,
        dsn: &DSN,
        transfer: Default::default(),
        prefix: b"",
        body: b"",
        rest_bytes: 0,
    };
    let notices = [refused("bob@example.org", 550, UNKNOWN, "no")];
    let id = MessageId::from_bytes([2; 16]);
    assert_eq!(compose(&original, &notices, &settings(), NOW, id), None);
    let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
    let original = Original {
        held_until: None,
        reverse_path: &sender,
        ..original
    };
    assert_eq!(compose(&original, &[], &settings(), NOW, id), None);

    let report = super::report(&original, &notices, &settings(), NOW, id).unwrap();
    assert_eq!(report.reverse_path, ReversePath::Null);
    assert_eq!((&*report.tenant, &*report.stream), ("acme", "transactional"));
    assert_eq!(report.cause, Some(original.id));
    assert_eq!(
        report.units[0].recipients[0].mailbox.to_string(),
        "app@example.com"
    );
    assert_eq!(report.units[0].domain.as_str(), "example.com");
    // A report on the report: nobody to tell.
    let again = Original::from_new(&report);
    assert!(super::report(&again, &notices, &settings(), NOW, id).is_none());
}

#[test]
fn status_has_the_class_of_what_happened() {
    let status = |code, enhanced| refused("a@x.test", code, enhanced, "").told.status().to_string();
    assert_eq!(status(550, UNKNOWN), "5.1.1");
    assert_eq!(status(550, None), "5.0.0");
    assert_eq!(status(550, Some(EnhancedCode(2, 1, 5))), "5.0.0");
    assert_eq!(status(554, Some(EnhancedCode(4, 7, 1))), "5.0.0");
    let ours = Cause::Undeliverable(EnhancedCode(5, 6, 3), "needs 8BITMIME".into());
    assert_eq!(ours.status().to_string(), "5.6.3");
    assert_eq!(expired(None).status().to_string(), "4.4.7");
}

#[test]
fn a_peers_words_stay_words() {
    let evil = "no\n\n--=_report_x\nX-Evil: 1\r\r\n.\u{0}\u{85}\u{2028}\u{1b}[31m \u{fc}ber";
    let mut notice = refused("bob@example.org", 550, None, evil);
    notice.remote = Some("mx.test\r\nX-Evil: 2".into());
    let text = composed(b"", b"A: 1\r\n\r\n", &[notice], &settings());
    assert!(
        text.contains("Diagnostic-Code: smtp; 550 no --=_report_x X-Evil: 1 . [31m ?ber\r\n"),
        "{text}"
    );
    assert!(text.contains("Remote-MTA: dns; mx.testX-Evil:2\r\n"), "{text}");
    assert!(!text.contains("\r\nX-Evil"));
}

#[test]
fn long_words_of_a_peer_are_folded_and_cut() {
    let long = format!("{} {}", "blah ".repeat(60), "x".repeat(5_000));
    let text = composed(
        b"",
        b"A: 1\r\n\r\n",
        &[refused("bob@example.org", 550, UNKNOWN, &long)],
        &settings(),
    );
    assert!(text.split("\r\n").all(|line| line.len() <= MAX_REPLY_CHARS + 10));
    assert!(text.contains("Diagnostic-Code: smtp; 550 5.1.1 blah blah"));
    assert!(text.contains("blah\r\n blah"));
    assert!(text.contains("xxx...\r\n"));
    assert!(text.len() < 4_000);
}

#[test]
fn what_expired_says_for_how_long_and_why() {
    let notice = |cause: Cause| Notice {
        to: Recipient::new("bob@example.org".parse().unwrap()),
        told: Told::Failed(cause),
        remote: None,
        last_attempt: None,
        class: None,
    };
    let text = composed(
        b"",
        b"A: 1\r\n\r\n",
        &[
            notice(expired(None)),
            notice(expired(Some("450 4.2.0 greylisted"))),
            notice(expired(Some("connection refused"))),
            notice(Cause::Expired {
                last: Some("450 4.2.0 greylisted".into()),
                held_by: Some("suspended by alice: their move".into()),
            }),
        ],
        &settings(),
    );
    assert!(text.contains("to the recipients below"));
    assert_eq!(text.matches("Status: 4.4.7\r\n").count(), 4);
    assert_eq!(text.matches("Diagnostic-Code").count(), 2);
    let held = "said: 450 4.2.0\r\n    greylisted; since then: suspended by alice: their move\r\n";
    assert!(text.contains(held), "{text}");
    assert!(text.contains("Diagnostic-Code: smtp; 450 4.2.0 greylisted\r\n"));
    assert!(text.contains("    not delivered within 5 days; last time: connection refused\r\n"));
}

#[test]
fn no_eight_bit_leaves() {
    let text = plain("Subject: Gr\u{fc}\u{df}e = x \r\nX-A: 1\r\n\r\nsch\u{f6}n\r\n".as_bytes());
    assert!(
        text.contains(
            "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
         Received: x\r\nSubject: Gr=C3=BC=C3=9Fe =3D x=20\r\nX-A: 1\r\n\r\n--="
        ),
        "{text}"
    );
    // A clean header over a body that is not goes as it is; so with control characters and long lines.
    for body in ["sch\u{f6}n", "nul\u{0}", "bare\rcr", "bare\nlf", &"x".repeat(999)] {
        let text = plain(format!("Subject: x\r\n\r\n{body}\r\n").as_bytes());
        assert!(text.contains("text/rfc822-headers\r\nContent-Transfer-Encoding: 7bit\r\n\r\nReceived: x\r\nSubject: x\r\n\r\n--="), "{text}");
    }
    let text = plain("Message-ID: <\u{fc}@x>\r\n\r\n".as_bytes());
    assert!(!text.contains("In-Reply-To"));
}

#[test]
fn size_is_capped_at_whole_fields() {
    let mut settings = settings();
    let notices = [refused("bob@example.org", 550, UNKNOWN, "no")];
    let fields = (0..500)
        .map(|n| format!("X-{n}: {}\r\n", "y".repeat(60)))
        .collect::<String>();
    for (body, kind) in [
        (format!("{fields}\r\nbody\r\n"), "7bit"),
        (format!("{fields}\r\n{}", "body\r\n".repeat(10_000)), "7bit"),
        (
            format!("X-\u{e4}: 1\r\nX: \u{e4}\r\n{fields}\r\n"),
            "quoted-printable",
        ),
    ] {
        for cap in [0, 1_500, 3_000, 20_000] {
            settings.max_report_bytes = cap;
            let text = composed(b"", body.as_bytes(), &notices, &settings);
            assert!(text.len() <= cap.max(1_700), "{cap}: {}", text.len());
            assert!(cap < 3_000 || text.len() > cap - 100, "{cap}: {}", text.len());
            let (_, part) = text.split_once("text/rfc822-headers\r\n").unwrap();
            let (encoding, headers) = part.split_once("\r\n\r\n").unwrap();
            assert!(encoding.ends_with(kind), "{encoding}");
            let headers = headers.rsplit_once("\r\n--=_").unwrap().0;
            assert!(
                headers.is_empty() || headers.ends_with("y\r\n") || headers.ends_with("E4\r\n"),
                "{headers}"
            );
        }
    }
}

/// RFC 3461 §6, RFC 3464: what the sender asked for and said is given back, and each kind says what it is.
#[test]
fn reports_of_each_kind_give_back_what_the_sender_said() {
    let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
    let asked = |ret| DsnOptions {
        ret,
        envid: Some("QQ+2B314".into()),
    };
    let to = Recipient {
        notify: None,
        orcpt: Some("rfc822;Bob+2Bx@Old.example".into()),
        mailbox: "bob@example.org".parse().unwrap(),
    };
    let until = NOW + Duration::from_secs(3_600);
    let failed = Told::Failed(Cause::Refused(Reply::new(550, 1, 1, "no")));
    let delayed = Told::Delayed("450 4.2.1 later".into(), until);
    let relayed = Told::Relayed("250 2.6.0 ok".into());
    for (told, ret, action, status, third) in [
        (failed.clone(), None, "failed", "5.1.1", "message/rfc822"),
        (
            failed.clone(),
            Some(Ret::Full),
            "failed",
            "5.1.1",
            "message/rfc822",
        ),
        (
            failed,
            Some(Ret::Headers),
            "failed",
            "5.1.1",
            "text/rfc822-headers",
        ),
        (
            delayed,
            Some(Ret::Full),
            "delayed",
            "4.2.1",
            "text/rfc822-headers",
        ),
        (relayed, None, "relayed", "2.6.0", "text/rfc822-headers"),
    ] {
        let kind = told.kind();
        let original = Original {
            held_until: None,
            id: MessageId::from_bytes([1; 16]),
            received_at: NOW - Duration::from_secs(86_400),
            tenant: &"acme".into(),
            stream: &"transactional".into(),
            reverse_path: &sender,
            dsn: &asked(ret),
            transfer: Default::default(),
            prefix: b"",
            body: b"Subject: x\r\n\r\nhello\r\n",
            rest_bytes: 0,
        };
        let notice = Notice {
            to: to.clone(),
            told,
            remote: Some("mx.example.org".into()),
            last_attempt: Some(NOW),
            class: None,
        };
        let id = MessageId::from_bytes([2; 16]);
        let message = super::report(&original, &[notice], &settings(), NOW, id).unwrap();
        assert_eq!(message.units[0].recipients[0].notify, Some(Notify::Never));
        let text = String::from_utf8(message.body.to_vec()).unwrap();
        for line in [
            "Original-Envelope-Id: QQ+314",
            "Original-Recipient: rfc822; Bob+x@Old.example",
            "Final-Recipient: rfc822; bob@example.org",
            &format!("Action: {action}"),
            &format!("Status: {status}"),
            &format!("Content-Type: {third}"),
            &format!("Subject: {}", kind.subject()),
        ] {
            assert!(text.contains(&format!("\r\n{line}\r\n")), "{line} in {text}");
        }
        assert_eq!(text.contains("Will-Retry-Until: "), kind == Kind::Delayed);
        assert_eq!(text.contains("hello"), third == "message/rfc822");
    }
}

fn told_to(sender: &str, body: &[u8], mailbox: &str, orcpt: &str) -> NewMessage {
    let sender = ReversePath::Mailbox(sender.parse().unwrap());
    let original = Original {
        held_until: None,
        id: MessageId::from_bytes([1; 16]),
        received_at: NOW,
        tenant: &"acme".into(),
        stream: &"transactional".into(),
        reverse_path: &sender,
        dsn: &DSN,
        transfer: Default::default(),
        prefix: b"Received: x\r\n",
        body,
        rest_bytes: 0,
    };
    let mut notice = refused(mailbox, 550, UNKNOWN, "no such user");
    notice.to.orcpt = Some(orcpt.into());
    report(
        &original,
        &[notice],
        &settings(),
        NOW,
        MessageId::from_bytes([2; 16]),
    )
    .unwrap()
}

/// CASES row 33: a sender in ASCII gets a report that any host takes, with nothing mangled.
#[test]
fn addresses_beyond_ascii_have_a_form_in_seven_bits() {
    let body = "Subject: Gr\u{fc}\u{df}e\r\n\r\nhello\r\n".as_bytes();
    let orcpt = "utf-8;j\u{fc}rgen@example.org";
    let report = told_to("app@example.com", body, "j\u{fc}rgen@example.org", orcpt);
    let text = String::from_utf8(report.body.to_vec()).unwrap();
    assert!(is_clean(text.as_bytes()) && !report.smtputf8, "{text}");
    for line in [
        "Content-Type: message/delivery-status\r\n",
        "Original-Recipient: utf-8; j\\x{FC}rgen@example.org\r\n",
        "Final-Recipient: utf-8; j\\x{FC}rgen@example.org\r\n",
        "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

/// CASES row 33 (RFC 6533): a sender beyond ASCII gets a report in UTF-8, by SMTPUTF8.
#[test]
fn a_sender_beyond_ascii_gets_a_global_report() {
    let body = "Subject: Gr\u{fc}\u{df}e\r\n\r\nhello\r\n".as_bytes();
    let orcpt = "utf-8;j\u{fc}rgen@example.org";
    let report = told_to("jos\u{e9}@example.com", body, "j\u{fc}rgen@example.org", orcpt);
    let text = String::from_utf8(report.body.to_vec()).unwrap();
    assert!(report.smtputf8 && report.body_type == BodyType::EightBitMime);
    for line in [
        "To: jos\u{e9}@example.com\r\n",
        "MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\nContent-Type: multipart/report; report-type=delivery-status;",
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n",
        "<j\u{fc}rgen@example.org>\r\n",
        "Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n",
        "Original-Recipient: utf-8; j\u{fc}rgen@example.org\r\n",
        "Final-Recipient: utf-8; j\u{fc}rgen@example.org\r\n",
        "Content-Type: message/global\r\nContent-Transfer-Encoding: 8bit\r\n\r\nReceived: x\r\nSubject: Gr\u{fc}\u{df}e\r\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // What is not UTF-8 is not made to look so.
    let latin = b"Subject: Gr\xfc\xdfe\r\n\r\nhello\r\n";
    let report = told_to(
        "jos\u{e9}@example.com",
        latin,
        "a@example.org",
        "rfc822;a@example.org",
    );
    let text = String::from_utf8(report.body.to_vec()).unwrap();
    assert!(text.contains("Subject: Gr=FC=DFe\r\n"), "{text}");
}

/// CASES row 35: size-capped, and nobody left out.
#[test]
fn too_many_recipients_for_one_report_get_several() {
    let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
    let original = Original {
        held_until: None,
        id: MessageId::from_bytes([1; 16]),
        received_at: NOW,
        tenant: &"acme".into(),
        stream: &"transactional".into(),
        reverse_path: &sender,
        dsn: &DSN,
        transfer: Default::default(),
        prefix: b"Received: x\r\n",
        body: b"Subject: x\r\n\r\nhello\r\n",
        rest_bytes: 0,
    };
    let notices: Vec<_> = (0..1_000)
        .map(|number| refused(&format!("r{number}@example.org"), 550, UNKNOWN, "no such user"))
        .collect();
    let next = std::cell::Cell::new(0_u8);
    let id = || {
        next.set(next.get() + 1);
        MessageId::from_bytes([next.get(); 16])
    };
    let made = super::reports(&original, &notices, &settings(), NOW, &id);
    assert!((10..40).contains(&made.len()), "{}", made.len());
    let texts: Vec<_> = made
        .iter()
        .map(|report| String::from_utf8(report.body.to_vec()).unwrap())
        .collect();
    assert!(texts.iter().all(|text| text.len() <= settings().max_report_bytes));
    for number in 0..1_000 {
        let line = format!("Final-Recipient: rfc822; r{number}@example.org\r\n");
        assert_eq!(
            texts.iter().filter(|text| text.contains(&line)).count(),
            1,
            "{line}"
        );
    }
    assert_eq!(
        super::reports(&original, &notices[..3], &settings(), NOW, &id).len(),
        1
    );
    assert!(super::reports(&original, &[], &settings(), NOW, &id).is_empty());
}
