//! Transactions with peers that answer as told.

use super::super::{Mechanisms, reply};
use super::*;
use crate::MaxHold;

/// Plays `peer`, a reply for each line of ours, and returns what we wrote and what became of the recipients. A reply of
/// `-` is a lost connection.
fn play(message: &Message<'_>, offers: &Extensions, peer: &[&str]) -> (String, Vec<RecipientResult>, bool) {
    let mut transaction = Transaction::new(message, offers);
    let (mut wrote, mut peer) = (String::new(), peer.iter());
    loop {
        match transaction.advance() {
            TransactionAction::Write(line) => {
                wrote.push_str(&String::from_utf8(line).unwrap().replace("\r\n", "|"))
            }
            TransactionAction::WriteBody => {
                wrote.push_str("BODY|");
                transaction.body_sent();
            }
            TransactionAction::Read(_) => match *peer.next().expect("a reply too few") {
                "-" => transaction.lost("the connection was lost"),
                line => transaction.reply(reply(line)),
            },
            TransactionAction::Done { usable } => {
                assert_eq!(peer.next(), None, "a reply too many");
                return (wrote, transaction.results(), usable);
            }
        }
    }
}

struct Fixture {
    from: ReversePath,
    to: Vec<Recipient>,
    dsn: DsnOptions,
}

impl Fixture {
    fn new(recipients: usize) -> Self {
        let to = (0..recipients)
            .map(|number| Recipient::new(format!("r{number}@ok.test").parse().unwrap()))
            .collect();
        Self {
            dsn: DsnOptions::default(),
            from: ReversePath::Mailbox("s@a.test".parse().unwrap()),
            to,
        }
    }

    fn message(&self) -> Message<'_> {
        Message {
            reverse_path: &self.from,
            recipients: &self.to,
            dsn: &self.dsn,
            body_type: BodyType::SevenBit,
            eight_bit: false,
            utf8_header: false,
            size: 100,
            by: None,
            priority: None,
            hold: None,
        }
    }
}

const PIPELINING: Extensions = Extensions {
    pipelining: true,
    eight_bit_mime: false,
    smtputf8: false,
    size: None,
    deliver_by: None,
    mt_priority: false,
    future_release: None,
    dsn: false,
    starttls: false,
    auth: Mechanisms {
        scram_sha_256: false,
        plain: false,
        login: false,
    },
    rcpt_max: None,
    mail_max: None,
    rcpt_domain_max: None,
};
const NOTHING: Extensions = Extensions {
    pipelining: false,
    ..PIPELINING
};

fn word(result: &RecipientResult) -> &'static str {
    match result {
        RecipientResult::Delivered(_) => "delivered",
        RecipientResult::Refused(..) => "refused",
        RecipientResult::Unfit(_) => "unfit",
        RecipientResult::Deferred(..) => "deferred",
        RecipientResult::InDoubt(_) => "in doubt",
    }
}

#[test]
fn every_reply_at_every_stage() {
    let two = Fixture::new(2);
    // Replies to MAIL, RCPT, RCPT, DATA, the message (or the lone dot), RSET; what becomes of both; usable afterwards.
    for (peer, results, usable) in [
        (
            &["250 a", "250 a", "250 a", "354 go", "250 done"][..],
            ["delivered", "delivered"],
            true,
        ),
        (
            &["250 a", "550 no", "250 a", "354 go", "250 done"],
            ["refused", "delivered"],
            true,
        ),
        (
            &["250 a", "450 no", "250 a", "354 go", "250 done"],
            ["deferred", "delivered"],
            true,
        ),
        (
            &["250 a", "552 5.5.3 too many", "250 a", "354 go", "250 done"],
            ["deferred", "delivered"],
            true,
        ),
        (
            &["250 a", "552 5.2.2 full", "250 a", "354 go", "250 done"],
            ["refused", "delivered"],
            true,
        ),
        // Without an enhanced code only the order tells too many recipients from a full mailbox.
        (
            &["250 a", "552 no", "250 a", "354 go", "250 done"],
            ["refused", "delivered"],
            true,
        ),
        (
            &["250 a", "250 a", "552 no", "354 go", "250 done"],
            ["delivered", "deferred"],
            true,
        ),
        (
            &["250 a", "550 no", "250 a", "354 go", "550 spam"],
            ["refused", "refused"],
            true,
        ),
        (
            &["250 a", "250 a", "250 a", "354 go", "450 later"],
            ["deferred", "deferred"],
            true,
        ),
        (
            &["250 a", "250 a", "250 a", "354 go", "421 bye"],
            ["deferred", "deferred"],
            false,
        ),
        (
            &["250 a", "250 a", "250 a", "354 go", "354 what"],
            ["deferred", "deferred"],
            false,
        ),
        (
            &["250 a", "250 a", "250 a", "354 go", "-"],
            ["in doubt", "in doubt"],
            false,
        ),
        (
            &["250 a", "550 no", "250 a", "354 go", "-"],
            ["refused", "in doubt"],
            false,
        ),
        (&["250 a", "250 a", "250 a", "-"], ["deferred", "deferred"], false),
        (
            &["250 a", "250 a", "250 a", "550 no", "250 reset"],
            ["refused", "refused"],
            true,
        ),
        (
            &["250 a", "250 a", "250 a", "451 no", "250 reset"],
            ["deferred", "deferred"],
            true,
        ),
        (
            &["250 a", "250 a", "250 a", "366 go", "250 done"],
            ["delivered", "delivered"],
            true,
        ),
        (
            &["250 a", "250 a", "250 a", "250 what"],
            ["deferred", "deferred"],
            false,
        ),
        // The peer counts differently: which recipient was refused nobody knows.
        (
            &["250 a", "550 no", "250 a", "250 what"],
            ["deferred", "deferred"],
            false,
        ),
        (&["250 a", "550 no", "354 go"], ["deferred", "deferred"], false),
        (&["354 go"], ["deferred", "deferred"], false),
        (
            &["250 a", "550 no", "550 no", "503 no", "250 reset"],
            ["refused", "refused"],
            true,
        ),
        // 354 though nobody was accepted: a lone dot, and whatever is said of it changes nothing.
        (
            &["250 a", "550 no", "450 no", "354 go", "250 done"],
            ["refused", "deferred"],
            true,
        ),
        (
            &["250 a", "550 no", "550 no", "354 go", "-"],
            ["refused", "refused"],
            false,
        ),
        (
            &["550 no", "503 no", "503 no", "503 no", "250 reset"],
            ["refused", "refused"],
            true,
        ),
        (
            &["451 no", "503 no", "503 no", "503 no", "421 bye"],
            ["deferred", "deferred"],
            false,
        ),
        (&["421 bye"], ["deferred", "deferred"], false),
        (&["250 a", "421 bye"], ["deferred", "deferred"], false),
        (&["250 a", "550 no", "421 bye"], ["refused", "deferred"], false),
        (&["-"], ["deferred", "deferred"], false),
    ] {
        let (_, found, found_usable) = play(&two.message(), &PIPELINING, peer);
        assert_eq!(found.iter().map(word).collect::<Vec<_>>(), results, "{peer:?}");
        assert_eq!(found_usable, usable, "{peer:?}");
    }
}

#[test]
fn pipelined_commands_go_in_one_write() {
    let two = Fixture::new(2);
    let (wrote, ..) = play(
        &two.message(),
        &PIPELINING,
        &["250 a", "250 a", "250 a", "354 go", "250 done"],
    );
    assert_eq!(
        wrote,
        "MAIL FROM:<s@a.test>|RCPT TO:<r0@ok.test>|RCPT TO:<r1@ok.test>|DATA|BODY|"
    );
}

/// CASES row 34.
#[test]
fn wishes_on_reports_go_to_peers_that_take_them_as_they_came() {
    let mut one = Fixture::new(1);
    one.dsn = DsnOptions {
        ret: Some(Ret::Headers),
        envid: Some("a+2Bb".into()),
    };
    one.to[0].notify = Some(Notify::On {
        success: true,
        failure: false,
        delay: true,
    });
    one.to[0].orcpt = Some("rfc822;Bob+2Bx@Old.test".into());
    let replies = ["250 a", "250 a", "354 go", "250 done"];
    let dsn = Extensions {
        dsn: true,
        ..PIPELINING
    };
    assert_eq!(
        play(&one.message(), &dsn, &replies).0,
        "MAIL FROM:<s@a.test> RET=HDRS ENVID=a+2Bb|\
         RCPT TO:<r0@ok.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+2Bx@Old.test|DATA|BODY|"
    );
    assert_eq!(
        play(&one.message(), &PIPELINING, &replies).0,
        "MAIL FROM:<s@a.test>|RCPT TO:<r0@ok.test>|DATA|BODY|"
    );
}

#[test]
fn without_pipelining_nothing_is_said_in_vain() {
    let two = Fixture::new(2);
    let (wrote, results, usable) = play(&two.message(), &NOTHING, &["550 no", "250 reset"]);
    assert_eq!((wrote.as_str(), usable), ("MAIL FROM:<s@a.test>|RSET|", true));
    assert_eq!(
        results.iter().map(word).collect::<Vec<_>>(),
        ["refused", "refused"]
    );
    let (wrote, ..) = play(
        &two.message(),
        &NOTHING,
        &["250 a", "550 no", "550 no", "250 reset"],
    );
    assert_eq!(
        wrote,
        "MAIL FROM:<s@a.test>|RCPT TO:<r0@ok.test>|RCPT TO:<r1@ok.test>|RSET|"
    );
}

#[test]
fn what_the_peer_lacks_is_found_before_a_word_is_said() {
    let one = Fixture::new(1);
    let eight_bit = Message {
        eight_bit: true,
        ..one.message()
    };
    let small = Extensions {
        size: Some(Some(99)),
        ..PIPELINING
    };
    for (message, offers, code) in [
        (one.message(), small, "552 5.3.4"),
        (eight_bit, PIPELINING, "554 5.6.3"),
    ] {
        let (wrote, results, usable) = play(&message, &offers, &[]);
        assert_eq!((wrote.as_str(), usable), ("", true));
        assert!(matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().starts_with(code)));
    }
    let unlimited = Extensions {
        size: Some(None),
        eight_bit_mime: true,
        ..PIPELINING
    };
    let (wrote, ..) = play(&eight_bit, &unlimited, &["250 a", "250 a", "354 go", "250 done"]);
    assert!(
        wrote.starts_with("MAIL FROM:<s@a.test> SIZE=100 BODY=8BITMIME|"),
        "{wrote}"
    );
}

const UTF8: Extensions = Extensions {
    eight_bit_mime: true,
    smtputf8: true,
    dsn: true,
    ..PIPELINING
};

/// CASES row 32.
#[test]
fn an_address_beyond_ascii_is_never_mangled() {
    let mut two = Fixture::new(2);
    two.to[0] = Recipient {
        orcpt: Some("utf-8;jos\u{e9}@ok.test".into()),
        ..Recipient::new("jos\u{e9}@ok.test".parse().unwrap())
    };
    let answers = ["250 a", "250 a", "354 go", "250 done"];
    // The host does not take it; the other recipient gets the message all the same.
    let (wrote, results, usable) = play(&two.message(), &PIPELINING, &answers);
    assert_eq!(
        (wrote.as_str(), usable),
        ("MAIL FROM:<s@a.test>|RCPT TO:<r1@ok.test>|DATA|BODY|", true)
    );
    assert!(
        matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().starts_with("553 5.6.7"))
    );
    assert_eq!(word(&results[1]), "delivered");
    let answers = ["250 a", "250 a", "250 a", "354 go", "250 done"];
    let (wrote, results, _) = play(&two.message(), &UTF8, &answers);
    assert_eq!(
        wrote,
        "MAIL FROM:<s@a.test> SMTPUTF8|RCPT TO:<jos\u{e9}@ok.test> ORCPT=utf-8;jos\u{e9}@ok.test|\
         RCPT TO:<r1@ok.test>|DATA|BODY|"
    );
    assert_eq!(word(&results[0]), "delivered");
}

#[test]
fn smtputf8_is_said_where_something_needs_it() {
    let mut one = Fixture::new(1);
    let answers = ["250 a", "250 a", "354 go", "250 done"];
    let said = |fixture: &Fixture, utf8_header| {
        let message = Message {
            utf8_header,
            ..fixture.message()
        };
        play(&message, &UTF8, &answers).0.contains("SMTPUTF8")
    };
    assert!(!said(&one, false) && said(&one, true));
    // The name of the recipient as the sender knew it is no reason: it has a form in ASCII.
    one.to[0].orcpt = Some("utf-8;jos\u{e9}@ok.test".into());
    assert!(!said(&one, false));
    let (wrote, ..) = play(&one.message(), &UTF8, &answers);
    assert!(wrote.contains("ORCPT=utf-8;jos\\x{E9}@ok.test|"), "{wrote}");
    let sender = Fixture {
        from: ReversePath::Mailbox("jos\u{e9}@a.test".parse().unwrap()),
        ..Fixture::new(1)
    };
    let header = Message {
        utf8_header: true,
        ..one.message()
    };
    for (message, code) in [(header, "554 5.6.9"), (sender.message(), "553 5.6.7")] {
        let (wrote, results, _) = play(&message, &PIPELINING, &[]);
        assert_eq!(wrote, "");
        assert!(matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().starts_with(code)));
    }
}

/// RFC 2852 §4.1.4, RFC 6710 §4.2, §4.3.
#[test]
fn time_and_priority_go_to_peers_that_take_them() {
    let one = Fixture::new(1);
    let answers = ["250 a", "250 a", "354 go", "250 done"];
    let offering = |least| Extensions {
        deliver_by: least,
        mt_priority: true,
        ..PIPELINING
    };
    let message = |seconds, late| Message {
        by: Some(By {
            seconds,
            late,
            trace: late == WhenLate::Notify,
        }),
        priority: Some(Priority::try_from(-4).unwrap()),
        ..one.message()
    };
    for (seconds, late, least, said) in [
        (600, WhenLate::Return, Some(0), " BY=600;R MT-PRIORITY=-4|"),
        (600, WhenLate::Return, Some(600), " BY=600;R MT-PRIORITY=-4|"),
        (-3, WhenLate::Notify, Some(600), " BY=-3;NT MT-PRIORITY=-4|"),
        (600, WhenLate::Notify, None, " MT-PRIORITY=-4|"),
    ] {
        let (wrote, results, _) = play(&message(seconds, late), &offering(least), &answers);
        assert!(
            wrote.starts_with(&format!("MAIL FROM:<s@a.test>{said}")),
            "{wrote}"
        );
        assert_eq!(word(&results[0]), "delivered");
    }
    // Silent of it elsewhere.
    let (wrote, ..) = play(&message(600, WhenLate::Notify), &PIPELINING, &answers);
    assert!(wrote.starts_with("MAIL FROM:<s@a.test>|"), "{wrote}");
    // Returned rather than sent where nobody keeps the time.
    for (seconds, least, offers) in [
        (600, None, PIPELINING),
        (599, Some(600), offering(Some(600))),
        (0, Some(0), offering(Some(0))),
    ] {
        let (wrote, results, _) = play(&message(seconds, WhenLate::Return), &offers, &[]);
        assert_eq!(wrote, "", "{seconds} of {least:?}");
        assert!(
            matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().starts_with("554 5.4.7")),
            "{results:?}"
        );
    }
}

/// RFC 2852 §4.1.4.2.
#[test]
fn a_peer_that_keeps_no_time_is_to_tell_of_delays() {
    let on = |success, failure, delay| {
        Some(Notify::On {
            success,
            failure,
            delay,
        })
    };
    let answers = ["250 a", "250 a", "354 go", "250 done"];
    let (n, r) = (WhenLate::Notify, WhenLate::Return);
    for (seconds, late, keeps_time, notify, said) in [
        (600, n, None, None, " NOTIFY=FAILURE,DELAY"),
        (600, n, None, on(true, false, false), " NOTIFY=SUCCESS,DELAY"),
        (600, n, None, on(false, false, true), " NOTIFY=DELAY"),
        (600, n, None, Some(Notify::Never), " NOTIFY=NEVER"),
        // Its sender has heard that it is late, and the peer will tell by itself, or it is returned.
        (0, n, None, None, ""),
        (-1, n, None, on(false, true, false), " NOTIFY=FAILURE"),
        (600, n, Some(0), None, ""),
        (600, r, Some(0), on(false, true, false), " NOTIFY=FAILURE"),
    ] {
        let mut one = Fixture::new(1);
        one.to[0].notify = notify;
        let message = Message {
            by: Some(By {
                seconds,
                late,
                trace: false,
            }),
            ..one.message()
        };
        let offers = Extensions {
            dsn: true,
            deliver_by: keeps_time,
            ..PIPELINING
        };
        let (wrote, ..) = play(&message, &offers, &answers);
        assert!(
            wrote.contains(&format!("RCPT TO:<r0@ok.test>{said}|")),
            "{seconds} {late:?} {notify:?}: {wrote}"
        );
    }
}

#[test]
fn a_hold_is_asked_of_a_server_that_offers_it() {
    let one = Fixture::new(1);
    let offers = Extensions {
        future_release: Some(MaxHold {
            interval: std::time::Duration::from_secs(90),
            until: crate::Timestamp(1_700_000_000_000),
        }),
        ..PIPELINING
    };
    let answers = ["250 a", "250 a", "354 go", "250 done"];
    for (hold, said) in [
        (Hold::For(std::time::Duration::from_secs(90)), " HOLDFOR=90|"),
        (
            Hold::Until(crate::Timestamp(1_700_000_000_000)),
            " HOLDUNTIL=2023-11-14T22:13:20Z|",
        ),
    ] {
        let message = Message {
            hold: Some(hold),
            ..one.message()
        };
        let (wrote, ..) = play(&message, &offers, &answers);
        assert!(
            wrote.starts_with(&format!("MAIL FROM:<s@a.test>{said}")),
            "{wrote}"
        );
        let (wrote, results, _) = play(&message, &PIPELINING, &[]);
        assert_eq!((wrote.as_str(), word(&results[0])), ("", "unfit"));
    }
    // RFC 4865 §4.1: no longer than the server says.
    for (hold, why) in [
        (
            Hold::For(std::time::Duration::from_secs(91)),
            "for 90 s at the most",
        ),
        (
            Hold::Until(crate::Timestamp(1_700_000_000_001)),
            "until 2023-11-14T22:13:20Z at the latest",
        ),
    ] {
        let message = Message {
            hold: Some(hold),
            ..one.message()
        };
        let (wrote, results, _) = play(&message, &offers, &[]);
        assert_eq!(wrote, "");
        assert!(
            matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().ends_with(why)),
            "{results:?}"
        );
    }
    assert!(!play(&one.message(), &offers, &answers).0.contains("HOLD"));
}

#[test]
fn the_null_path_stays_null() {
    let one = Fixture {
        from: ReversePath::Null,
        ..Fixture::new(1)
    };
    let (wrote, ..) = play(
        &one.message(),
        &PIPELINING,
        &["250 a", "250 a", "354 go", "250 done"],
    );
    assert!(wrote.starts_with("MAIL FROM:<>|"));
}

#[test]
fn an_early_reply_ends_the_connection() {
    let one = Fixture::new(1);
    for (line, expected) in [
        ("552 too big", "refused"),
        ("250 what", "deferred"),
        ("450 no", "deferred"),
    ] {
        let mut transaction = Transaction::new(&one.message(), &PIPELINING);
        transaction.advance();
        for line in ["250 a", "250 a", "354 go", line] {
            transaction.reply(reply(line));
        }
        assert_eq!(transaction.advance(), TransactionAction::Done { usable: false });
        assert_eq!(word(&transaction.results()[0]), expected, "{line}");
    }
}
