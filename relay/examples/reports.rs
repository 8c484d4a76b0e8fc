//! Writes sample reports into a folder, for readers that are not ours (`tests/dsn/run.sh`).

use std::path::PathBuf;
use std::time::Duration;

use mail_core::{DsnOptions, EnhancedCode, MessageId, Recipient, Reply, ReversePath, Timestamp};
use relay::report::{Cause, Notice, Original, ReportSettings, Told, compose};
use relay::shaping::Shaping;

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn expired(last: &str) -> Cause {
    Cause::Expired {
        last: Some(last.into()),
        held_by: None,
    }
}

fn notice(mailbox: &str, told: Told) -> Notice {
    // As the relay has it: what was said, or what went wrong in its own words.
    let said = match &told {
        Told::Failed(Cause::Refused(reply)) => Some(reply.to_string()),
        Told::Failed(Cause::Undeliverable(code, why)) => Some(format!("550 {code} {why}")),
        Told::Failed(Cause::Expired { last, .. }) => last.clone(),
        Told::Delayed(last, _) => Some(last.clone()),
        Told::Relayed(_) => None,
    };
    let class = said.map(|said| Shaping::shipped().class(&said, None).name.clone());
    Notice {
        to: Recipient::new(mailbox.parse().expect("an address")),
        told,
        remote: Some("mx.example.org".into()),
        last_attempt: Some(NOW),
        class,
    }
}

fn failure(mailbox: &str, cause: Cause) -> Notice {
    notice(mailbox, Told::Failed(cause))
}

fn refused(text: &str) -> Cause {
    let mut reply = Reply::plain(550, "").with_text(text);
    reply.enhanced = Some(EnhancedCode(5, 1, 1));
    Cause::Refused(reply)
}

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("a folder to write to"));
    std::fs::create_dir_all(&folder).expect("a folder that can be made");
    let plain = "From: app@example.com\r\nTo: bob@example.org\r\nMessage-ID: <1@example.com>\r\nSubject: Hello\r\n\r\nhello\r\n.\r\n";
    let large = format!("{plain}{}", "0123456789\r\n".repeat(10_000));
    let many_fields = format!("{}{plain}", "X-Filler: 0123456789\r\n".repeat(5_000));
    let eight_bit = "From: app@example.com\r\nSubject: Gr\u{fc}\u{df}e \r\n\r\nsch\u{f6}n\r\n";
    let forged = "no\n\n--=_report\nContent-Type: text/html\nX-Evil: 1\r\r\n.\r\n\u{0}\u{fc}\u{2028}x";
    let unknown = || vec![failure("bob@example.org", refused("no such user"))];
    let later = Told::Delayed(
        "450 4.2.1 come back later".into(),
        NOW + Duration::from_secs(86_400),
    );
    let handed_on = Told::Relayed("250 2.6.0 queued".into());
    let named = Notice {
        to: Recipient {
            orcpt: Some("rfc822;Bob+2BNews@Old.example".into()),
            ..Recipient::new("bob@example.org".parse().expect("an address"))
        },
        ..failure("bob@example.org", refused("no such user"))
    };
    let beyond_ascii = || {
        vec![Notice {
            to: Recipient {
                orcpt: Some("utf-8;j\u{fc}rgen@example.org".into()),
                ..Recipient::new("j\u{fc}rgen@example.org".parse().expect("an address"))
            },
            ..failure("bob@example.org", refused("no such user"))
        }]
    };
    let samples = [
        ("beyond-ascii", eight_bit, beyond_ascii()),
        ("global", eight_bit, beyond_ascii()),
        ("delayed", plain, vec![notice("bob@example.org", later)]),
        ("relayed", plain, vec![notice("bob@example.org", handed_on)]),
        ("named", plain, vec![named]),
        ("plain", plain, unknown()),
        ("eight-bit", eight_bit, unknown()),
        ("large", &large, unknown()),
        ("many-fields", &many_fields, unknown()),
        ("no-message", "", unknown()),
        ("forged", plain, vec![failure("bob@example.org", refused(forged))]),
        (
            "long-reply",
            plain,
            vec![failure("bob@example.org", refused(&"go away ".repeat(300)))],
        ),
        (
            "several",
            plain,
            vec![
                failure("bob@example.org", refused("no\nsuch\nuser")),
                failure("\"a b\"@example.org", expired("450 4.2.0 greylisted")),
                failure("carol@example.org", expired("connection refused")),
                failure(
                    "dave@example.org",
                    Cause::Undeliverable(
                        EnhancedCode(5, 1, 10),
                        "the domain takes no mail (null MX)".into(),
                    ),
                ),
            ],
        ),
    ];
    let settings = ReportSettings {
        hostname: "relay.example.net".parse().expect("a domain"),
        reporting_domain: "example.net".parse().expect("a domain"),
        max_report_bytes: 20_000,
        expire_after: Duration::from_secs(86_400),
        delay_after: Duration::from_secs(14_400),
    };
    for (name, body, notices) in &samples {
        let sender = if *name == "global" {
            "j\u{f6}@example.com"
        } else {
            "app@example.com"
        };
        let sender = ReversePath::Mailbox(sender.parse().expect("an address"));
        let original = Original {
            transfer: Default::default(),
            held_until: None,
            id: MessageId::from_bytes([1; 16]),
            received_at: NOW - Duration::from_secs(5 * 86_400),
            tenant: &"acme".into(),
            stream: &"transactional".into(),
            reverse_path: &sender,
            dsn: &DsnOptions {
                ret: None,
                envid: Some("QQ+2B314159".into()),
            },
            prefix: b"Received: from app by relay.example.net; Tue, 14 Nov 2023 22:13:20 +0000\r\n",
            body: body.as_bytes(),
            rest_bytes: 0,
        };
        let report = compose(&original, notices, &settings, NOW, MessageId::from_bytes([2; 16]))
            .expect("a sender who wants one");
        std::fs::write(folder.join(format!("{name}.eml")), report).expect("a file that can be written");
    }
}
