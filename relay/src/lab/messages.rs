//! What the demo sends.

use std::fmt::Write as _;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_core::Mailbox;

/// How it should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// In the mailbox.
    Delivered,
    /// In the mailbox, without TLS: the host has none that works.
    InClear,
    /// Twice in the mailbox: the first time, the host hung up instead of saying so.
    Twice,
    /// Refused for good, and reported to the sender.
    Bounced,
    /// In the queue: nothing listens there.
    Waiting,
}

/// A message of the demo.
pub(super) struct Planned {
    /// A few words for the table.
    pub(super) title: &'static str,
    pub(super) recipients: Vec<(Mailbox, Expected)>,
    /// As handed over: header and body.
    pub(super) raw: Vec<u8>,
}

/// Octets of the big one.
const BIG: usize = 4 << 20;

/// The messages. `run` makes them differ from those of another run; `date` is a Date field's value.
pub(super) fn all(sender: &Mailbox, run: &str, date: &str) -> anyhow::Result<Vec<Planned>> {
    let mut plan = Plan {
        sender,
        run,
        date,
        messages: Vec::new(),
    };
    use Expected::{Bounced, Delivered, InClear, Twice, Waiting};

    // Without Date and Message-ID: the relay adds both.
    let bare =
        format!("From: {sender}\r\nTo: alice@ok.test\r\nSubject: First mail ({run})\r\n\r\nHello Alice.\r\n");
    plan.raw("plain text", &[("alice@ok.test", Delivered)], bare.into_bytes())?;

    let utf8 =
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n";
    let body = "Grüße aus Köln, смотри: ☕ für 3 €.\r\n";
    plan.add(
        "8-bit text",
        &[("bob@second.test", Delivered)],
        "8-bit",
        utf8,
        body,
    )?;

    let encoded = format!("=?UTF-8?B?{}?=", BASE64.encode("Rechnung für März — 42 €"));
    plan.add(
        "UTF-8 subject",
        &[("carol@ok.test", Delivered)],
        &encoded,
        "",
        "The subject has it all.\r\n",
    )?;

    let kinds = "MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=\"either\"\r\n";
    let body = "--either\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nYour code is 123456.\r\n\
                --either\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>Your code is <b>123456</b>.</p>\r\n--either--\r\n";
    plan.add(
        "HTML and text",
        &[("dave@second.test", Delivered)],
        "Your code",
        kinds,
        body,
    )?;

    let kinds = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"parts\"\r\n";
    let body = format!(
        "--parts\r\nContent-Type: text/plain\r\n\r\nThe file is attached.\r\n\
         --parts\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=\"all-octets.bin\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}--parts--\r\n",
        base64_lines(&(0..=255).cycle().take(20_000).collect::<Vec<u8>>())
    );
    plan.add(
        "attachment",
        &[("erin@ok.test", Delivered)],
        "A file",
        kinds,
        &body,
    )?;

    let many: Vec<String> = (1..=30)
        .map(|n| {
            format!(
                "user{n:02}@{}",
                ["ok.test", "second.test", "greylist.test"][n % 3]
            )
        })
        .collect();
    let many: Vec<_> = many.iter().map(|to| (to.as_str(), Delivered)).collect();
    plan.add(
        "30 recipients",
        &many,
        "To all of you",
        "",
        "One message, three domains.\r\n",
    )?;

    let some = [
        ("nobody@reject.test", Bounced),
        ("somebody@reject.test", Delivered),
    ];
    plan.add(
        "an unknown user",
        &some,
        "Who are you",
        "",
        "One of you does not exist.\r\n",
    )?;

    plan.add(
        "greylisted",
        &[("grace@greylist.test", Delivered)],
        "Patience",
        "",
        "At the second try.\r\n",
    )?;

    let mut dots = String::new();
    for count in 0..70 {
        let _ = write!(dots, "{}\r\n{}.x\r\n", ".".repeat(count), ".".repeat(count));
    }
    plan.add(
        "lines of dots",
        &[("heidi@ok.test", Delivered)],
        "Dots",
        "",
        &dots,
    )?;

    plan.add(
        "an empty body",
        &[("mia@ok.test", Delivered)],
        "Nothing to say",
        "",
        "",
    )?;

    // RFC 5322 §2.1.1: 998 and the CRLF are the most.
    let long = format!("{}\r\n", "0123456789".repeat(100).split_at(998).0).repeat(20);
    plan.add(
        "lines of 998",
        &[("ivan@second.test", Delivered)],
        "Long lines",
        "",
        &long,
    )?;

    let list = format!(
        "List-Unsubscribe: <mailto:leave@{domain}?subject=leave>,\r\n <https://www.{domain}/leave?u=1>\r\n\
         List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n",
        domain = sender.domain()
    );
    plan.add(
        "List-Unsubscribe",
        &[("judy@ok.test", Delivered)],
        "The news",
        &list,
        "No news.\r\n",
    )?;

    let octets: Vec<u8> = (0..BIG as u64)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let kinds = "MIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n";
    plan.add(
        "a big one",
        &[("kim@second.test", Delivered)],
        "Five megabytes",
        kinds,
        &base64_lines(&octets),
    )?;

    let broken = [("nora@plain.test", InClear), ("olga@broken-tls.test", InClear)];
    plan.add(
        "no TLS, broken TLS",
        &broken,
        "In clear",
        "",
        "TLS where it works.\r\n",
    )?;

    plan.add(
        "a slow host",
        &[("paul@slow.test", Delivered)],
        "No haste",
        "",
        "Three seconds for a reply.\r\n",
    )?;

    plan.add(
        "a lost reply",
        &[("quinn@drop-after-dot.test", Twice)],
        "Did you get it",
        "",
        "Better twice than never.\r\n",
    )?;

    plan.add(
        "nobody listens",
        &[("lee@dead.test", Waiting)],
        "Are you there",
        "",
        "It will be tried again.\r\n",
    )?;
    Ok(plan.messages)
}

struct Plan<'a> {
    sender: &'a Mailbox,
    run: &'a str,
    date: &'a str,
    messages: Vec<Planned>,
}

impl Plan<'_> {
    /// With the fields that every message should have, and `more`, whole fields.
    fn add(
        &mut self,
        title: &'static str,
        recipients: &[(&str, Expected)],
        subject: &str,
        more: &str,
        body: &str,
    ) -> anyhow::Result<()> {
        let Self {
            sender,
            run,
            date,
            messages,
        } = self;
        let to = match recipients {
            [(one, _)] => format!("<{one}>"),
            _ => "undisclosed-recipients:;".to_owned(),
        };
        let raw = format!(
            "From: Demo <{sender}>\r\nTo: {to}\r\nSubject: {subject}\r\nDate: {date}\r\n\
             Message-ID: <{}.{run}@{}>\r\n{more}\r\n{body}",
            messages.len(),
            sender.domain(),
        );
        self.raw(title, recipients, raw.into_bytes())
    }

    fn raw(
        &mut self,
        title: &'static str,
        recipients: &[(&str, Expected)],
        raw: Vec<u8>,
    ) -> anyhow::Result<()> {
        let proven = |(to, expected): &(&str, Expected)| {
            let mailbox = to.parse().with_context(|| (*to).to_owned())?;
            anyhow::Ok((mailbox, *expected))
        };
        let recipients = recipients.iter().map(proven).collect::<anyhow::Result<_>>()?;
        self.messages.push(Planned {
            title,
            recipients,
            raw,
        });
        Ok(())
    }
}

/// RFC 2045 §6.8: lines of 76.
fn base64_lines(octets: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len() * 4 / 3 + octets.len() / 25);
    for line in octets.chunks(57) {
        BASE64.encode_string(line, &mut text);
        text.push_str("\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dozen_messages_that_any_server_takes() {
        let sender = "app@sender.test".parse().unwrap();
        let messages = all(&sender, "run", "Mon, 23 Nov 2026 12:00:00 +0000").unwrap();
        assert!(messages.len() >= 12);
        for Planned {
            title,
            raw,
            recipients,
        } in &messages
        {
            assert!(raw.ends_with(b"\r\n"), "{title}");
            for line in raw.split(|&octet| octet == b'\n').filter(|line| !line.is_empty()) {
                let line = line.strip_suffix(b"\r").unwrap();
                assert!(line.len() <= 998 && !line.contains(&b'\r'), "{title}");
            }
            let (head, _) = mail_core::header::split(raw);
            assert!(head.is_ascii(), "{title}");
            let fields = mail_core::header::fields(head);
            assert_eq!(fields.filter(|field| field.is("From")).count(), 1, "{title}");
            assert!(!recipients.is_empty());
        }
        let longest = messages
            .iter()
            .flat_map(|m| m.raw.split(|&octet| octet == b'\n'))
            .map(<[u8]>::len);
        assert_eq!(longest.max(), Some(999));
        assert!(messages.iter().any(|message| message.raw.len() > 5_000_000));
        assert!(messages.iter().any(|message| !message.raw.is_ascii()));
        let count = |expected| {
            messages
                .iter()
                .flat_map(|m| &m.recipients)
                .filter(|(_, e)| *e == expected)
                .count()
        };
        assert_eq!((count(Expected::Bounced), count(Expected::Waiting)), (1, 1));
    }
}
