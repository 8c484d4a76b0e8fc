//! The header fields we add on top; what the client wrote stays as it is (RFC 5321 §4.4, RFC 6409 §8).

use std::fmt::Write as _;
use std::net::IpAddr;

use bytes::Bytes;
use mail_core::header;
use mail_core::{Domain, Envelope, MessageId, Timestamp};

use crate::report::text::date;

/// Octets set aside for our fields; most need no more.
const ROOM: usize = 384;

/// How a message came in.
pub(super) struct Arrival<'a> {
    /// Its name.
    pub(super) id: MessageId,
    /// When.
    pub(super) now: Timestamp,
    /// Us.
    pub(super) hostname: &'a Domain,
    /// The client's address.
    pub(super) client: IpAddr,
    /// What it called itself.
    pub(super) helo: &'a str,
    /// RFC 3848's word.
    pub(super) protocol: &'static str,
    /// TLS version and cipher suite.
    pub(super) tls: Option<&'a str>,
}

/// Received, and Date and Message-ID where they are absent.
pub(super) fn prefix(arrival: &Arrival<'_>, envelope: &Envelope, message: &[u8]) -> Bytes {
    let mut text = received(arrival, envelope);
    let headed = begins_with_field(message);
    let (headers, _) = header::split(message);
    let has = |name: &str| headed && header::fields(headers).any(|field| field.is(name));
    // Nothing written into a string fails.
    if !has("Date") {
        let _ = write!(text, "Date: {}\r\n", date(arrival.now));
    }
    if !has("Message-ID") {
        let _ = write!(text, "Message-ID: <{}@{}>\r\n", arrival.id, arrival.hostname);
    }
    if !headed && !message.starts_with(b"\r\n") {
        // The message has no header: without an empty line its text would become part of ours.
        text.push_str("\r\n");
    }
    text.into()
}

fn received(arrival: &Arrival<'_>, envelope: &Envelope) -> String {
    let Arrival {
        id,
        hostname,
        client,
        protocol,
        ..
    } = arrival;
    let safe = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    let helo = if !arrival.helo.is_empty() && arrival.helo.chars().all(safe) {
        arrival.helo
    } else {
        "unknown"
    };
    // RFC 5321 §4.1.3.
    let (client, tag) = match client.to_canonical() {
        v4 @ IpAddr::V4(_) => (v4, ""),
        v6 @ IpAddr::V6(_) => (v6, "IPv6:"),
    };
    let mut text = String::with_capacity(ROOM);
    // Nothing written into a string fails.
    let _ = write!(text, "Received: from {helo} ([{tag}{client}])");
    if let Some(tls) = arrival.tls {
        let _ = write!(text, "\r\n\t({tls})");
    }
    let _ = write!(text, "\r\n\tby {hostname} with {protocol} id {id}");
    // With more than one recipient, `for` would tell each of the others (RFC 5321 §7.2).
    if let [one] = envelope.recipients.as_slice()
        && one.mailbox.is_ascii()
    {
        let _ = write!(text, "\r\n\tfor <{}>", one.mailbox);
    }
    if let Some(priority) = envelope.priority {
        // RFC 6710 §4.1.
        let _ = write!(text, "\r\n\tPRIORITY {priority}");
    }
    let _ = write!(text, ";\r\n\t{}\r\n", date(arrival.now));
    text
}

/// Whether the message begins with a header field (RFC 5322 §2.2).
pub(super) fn begins_with_field(message: &[u8]) -> bool {
    let end = message
        .iter()
        .position(|&octet| !(33..=126).contains(&octet) || octet == b':')
        .unwrap_or(0);
    let rest = message[end..].trim_ascii_start();
    end > 0 && rest.first() == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use mail_core::{BodyType, DsnOptions, Priority, Recipient, ReversePath};

    fn stamped(message: &[u8], recipients: usize) -> String {
        stamped_as(message, recipients, None)
    }

    fn stamped_as(message: &[u8], recipients: usize, priority: Option<Priority>) -> String {
        let arrival = Arrival {
            id: MessageId::from_bytes([7; 16]),
            now: Timestamp(1_700_000_000_000),
            hostname: &"relay.test".parse().unwrap(),
            client: "::ffff:192.0.2.1".parse().unwrap(),
            helo: "c.test",
            protocol: "ESMTPSA",
            tls: Some("TLSv1_3"),
        };
        let recipient = |number| Recipient::new(format!("r{number}@ok.test").parse().unwrap());
        let envelope = Envelope {
            reverse_path: ReversePath::Null,
            body: BodyType::SevenBit,
            smtputf8: false,
            dsn: DsnOptions::default(),
            hold: None,
            by: None,
            priority,
            recipients: (0..recipients).map(recipient).collect(),
        };
        String::from_utf8(prefix(&arrival, &envelope, message).to_vec()).unwrap()
    }

    #[test]
    fn says_where_a_message_came_from() {
        let id = "07".repeat(16);
        assert_eq!(
            stamped(b"Date: x\r\nmessage-id: <y>\r\n\r\nhello\r\n", 1),
            format!(
                "Received: from c.test ([192.0.2.1])\r\n\t(TLSv1_3)\r\n\tby relay.test with ESMTPSA id {id}\r\n\t\
                 for <r0@ok.test>;\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
            )
        );
    }

    /// RFC 6710 §7.
    #[test]
    fn says_how_urgent_its_client_called_it() {
        for (priority, said) in [(-4, "PRIORITY -4;"), (0, "PRIORITY 0;")] {
            let text = stamped_as(b"Date: x\r\n\r\n", 2, Priority::try_from(priority).ok());
            assert!(
                text.contains(&format!(" id {}\r\n\t{said}\r\n\t", "07".repeat(16))),
                "{text}"
            );
        }
        assert!(!stamped(b"Date: x\r\n\r\n", 1).contains("PRIORITY"));
    }

    #[test]
    fn names_nobody_among_several() {
        assert!(!stamped(b"Date: x\r\n\r\n", 2).contains(" for "));
    }

    #[test]
    fn adds_only_what_is_absent() {
        let bare = stamped(b"Subject: hi\r\n\r\nDate: in the body\r\n", 1);
        assert!(
            bare.contains("\r\nDate: Tue, 14 Nov 2023") && bare.contains("\r\nMessage-ID: <0707"),
            "{bare}"
        );
        assert!(!bare.ends_with("\r\n\r\n"));
        assert!(!stamped(b"DATE: x\r\nMessage-ID : y\r\n\r\n", 1).contains("Message-ID: <0707"));
    }

    #[test]
    fn a_message_without_header_is_parted_from_ours() {
        assert!(stamped(b"hello there: you\r\n", 1).ends_with("\r\n\r\n"));
        assert!(stamped(b"", 1).ends_with("\r\n\r\n"));
        assert!(!stamped(b"\r\nhello\r\n", 1).ends_with("\r\n\r\n"));
    }
}
