//! Whether what became of the demo's messages is what should have.

use std::sync::Arc;
use std::time::Duration;

use lab::{Entry, Outcome};
use mail_core::header;
use queue::{Event, EventKind};

use super::messages::{Expected, Planned};

/// What the relay's journal says of a recipient.
pub(super) struct Fate<'a> {
    /// The event that ended it.
    pub(super) ended: Option<&'a Event>,
    /// Else, why its destination rests.
    pub(super) rests: Option<&'a Event>,
    pub(super) attempts: u32,
    /// From the acceptance to the end.
    pub(super) after: Option<Duration>,
}

/// A message in a mailbox.
pub(super) struct Arrival {
    pub(super) entry: Arc<Entry>,
    /// What stands above the octets that were handed over.
    pub(super) added: Vec<u8>,
}

/// What is not as it should be.
pub(super) fn problem(
    expected: Expected,
    fate: &Fate<'_>,
    is_queued: bool,
    arrivals: &[Arrival],
    message: &Planned,
) -> Result<(), String> {
    let ended = fate.ended.map(|event| event.kind);
    if ended.is_none() && !is_queued {
        return Err("it has neither ended, nor is it in the queue".into());
    }
    match (expected, ended) {
        (Expected::Delivered | Expected::InClear | Expected::Twice, Some(EventKind::Delivered)) => {}
        (Expected::Bounced, Some(EventKind::Bounced)) | (Expected::Waiting, None) => {
            return match arrivals {
                [] => Ok(()),
                _ => Err("it arrived".into()),
            };
        }
        (_, None) => return Err("it has not ended".into()),
        (_, Some(kind)) => return Err(format!("it ended as {}", word(kind))),
    }
    let copies = if expected == Expected::Twice { 2 } else { 1 };
    if arrivals.len() != copies {
        return Err(format!("{} unchanged copies arrived", arrivals.len()));
    }
    for arrival in arrivals {
        only_fields_were_added(&arrival.added, &message.raw)?;
        signed(&arrival.entry)?;
        match (&arrival.entry.tls, expected) {
            (None, Expected::InClear) | (Some(_), Expected::Delivered | Expected::Twice) => {}
            (None, _) => return Err("it came in clear".into()),
            (Some(_), _) => return Err("it came through TLS".into()),
        }
    }
    Ok(())
}

/// Below the added fields are the client's own octets; what is above is whole header fields, and no others than promised.
fn only_fields_were_added(added: &[u8], sent: &[u8]) -> Result<(), String> {
    let mut octets = 0;
    for field in header::fields(added) {
        octets += field.raw().len();
        let given = |name: &str| header::fields(header::split(sent).0).any(|field| field.is(name));
        let is_promised = field.is("DKIM-Signature")
            || field.is("Received")
            || ["Date", "Message-ID"]
                .iter()
                .any(|name| field.is(name) && !given(name));
        if !is_promised {
            return Err(format!(
                "a field was added: {}",
                String::from_utf8_lossy(field.name())
            ));
        }
    }
    if octets == added.len() && octets > 0 {
        Ok(())
    } else {
        Err("what was added is not header fields alone".into())
    }
}

/// The receiver found SPF, both signatures and DMARC right.
pub(super) fn signed(entry: &Entry) -> Result<(), String> {
    let verdicts = entry.verdicts.as_ref().ok_or("its receiver did not verify it")?;
    if verdicts.spf.result != Outcome::Pass {
        return Err(format!("SPF {}", verdicts.spf.result));
    }
    for algorithm in ALGORITHMS {
        let of = verdicts
            .dkim
            .iter()
            .find(|verdict| verdict.algorithm == algorithm);
        match of {
            Some(verdict) if verdict.result == Outcome::Pass => {}
            Some(verdict) => return Err(format!("DKIM {algorithm} {}", verdict.result)),
            None => return Err(format!("no DKIM {algorithm}")),
        }
    }
    match verdicts.dmarc.result {
        Outcome::Pass => Ok(()),
        other => Err(format!("DMARC {other}")),
    }
}

const ALGORITHMS: [&str; 2] = ["rsa-sha256", "ed25519-sha256"];

/// RFC 3464 and RFC 6522: three parts, of which the second says who failed and how.
pub(super) fn is_report(raw: &[u8], recipient: &str, status: &str) -> Result<(), String> {
    let text = String::from_utf8_lossy(raw);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no body")?;
    let head = head.replace("\r\n\t", " ").replace("\r\n ", " ");
    let kind = head
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("content-type:"))
        .ok_or("no type")?;
    let lower = kind.to_ascii_lowercase();
    if !lower.contains("multipart/report") || !lower.contains("report-type=delivery-status") {
        return Err(format!("its type is {kind}"));
    }
    let (_, boundary) = kind.split_once("boundary=").ok_or("no boundary")?;
    let boundary = boundary
        .trim_start_matches('"')
        .split(['"', ';'])
        .next()
        .unwrap_or_default();
    let (inside, _) = body
        .split_once(&format!("--{boundary}--"))
        .ok_or("its last part does not end")?;
    let divider = format!("--{boundary}\r\n");
    let mut parts = inside.split(&divider).skip(1);
    let [Some(_), Some(machine), Some(original), None] =
        [parts.next(), parts.next(), parts.next(), parts.next()]
    else {
        return Err("it has not three parts".into());
    };
    let has = |part: &str, line: &str| part.to_ascii_lowercase().contains(&line.to_ascii_lowercase());
    for (part, line) in [
        (machine, "Content-Type: message/delivery-status".to_owned()),
        (machine, format!("Final-Recipient: rfc822;{recipient}")),
        (machine, "Action: failed".into()),
        (machine, format!("Status: {status}")),
        (original, "Subject: ".into()),
    ] {
        if !has(&part.replace("rfc822; ", "rfc822;"), &line) {
            return Err(format!("it does not say {line}"));
        }
    }
    if has(original, "content-type: message/rfc822") || has(original, "content-type: text/rfc822-headers") {
        Ok(())
    } else {
        Err("it does not bring the original back".into())
    }
}

/// As the journal has it.
pub(super) fn word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Accepted => "accepted",
        EventKind::Delivered => "delivered",
        EventKind::Deferred => "deferred",
        EventKind::Bounced => "bounced",
        EventKind::Expired => "expired",
        EventKind::Cancelled => "cancelled",
        EventKind::Deleted => "deleted",
        EventKind::Suppressed => "suppressed",
        EventKind::InDoubt => "in doubt",
        EventKind::Complained => "complained",
        EventKind::Unsubscribed => "unsubscribed",
        EventKind::Parked => "parked",
        EventKind::Damaged => "damaged",
        EventKind::Restored => "restored",
        EventKind::Suspended => "suspended",
        EventKind::Resumed => "resumed",
        EventKind::Retried => "retried",
        EventKind::Adjusted => "adjusted",
        EventKind::AdjustmentEnded => "adjustment ended",
        EventKind::HandedOver => "handed over",
        EventKind::Discarded => "discarded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_promised_fields_may_be_added() {
        let sent = b"From: a@sender.test\r\nDate: today\r\n\r\nx\r\n";
        let added = |added: &str| only_fields_were_added(added.as_bytes(), sent);
        assert_eq!(
            added("DKIM-Signature: a\r\n\tb\r\nReceived: c\r\nMessage-ID: <d>\r\n"),
            Ok(())
        );
        for wrong in [
            "",
            "Date: now\r\n",
            "X-Other: x\r\n",
            "Received: c\r\njunk\r\n",
            "Received: c\r\n\r\n",
        ] {
            assert!(added(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_seen() {
        let sent = Planned {
            title: "",
            recipients: Vec::new(),
            raw: b"From: a@sender.test\r\n\r\nx\r\n".to_vec(),
        };
        let end = |kind| Event {
            at: mail_core::Timestamp(1),
            kind,
            id: None,
            queue: None,
            unit: 0,
            recipients: Vec::new(),
            attempt: 1,
            hop: None,
            reply: String::new(),
            tag: None,
            metadata: Vec::new(),
        };
        let (delivered, bounced) = (end(EventKind::Delivered), end(EventKind::Bounced));
        let verdict = |algorithm: &str| lab::DkimVerdict {
            result: Outcome::Pass,
            domain: "sender.test".into(),
            selector: "s".into(),
            algorithm: algorithm.into(),
            why: None,
        };
        let entry = Entry {
            mail_from: String::new(),
            rcpt_to: Vec::new(),
            client: std::net::Ipv4Addr::LOCALHOST.into(),
            helo: String::new(),
            tls: Some("TLSv1_3".into()),
            time: String::new(),
            time_ms: 0,
            size: 0,
            sha256: String::new(),
            subject: None,
            verdicts: Some(lab::Verdicts {
                spf: lab::SpfVerdict {
                    result: Outcome::Pass,
                    domain: String::new(),
                },
                dkim: ALGORITHMS.map(verdict).to_vec(),
                dmarc: lab::DmarcVerdict {
                    result: Outcome::Pass,
                    ..lab::DmarcVerdict::default()
                },
            }),
        };
        let arrival = |entry: &Entry| Arrival {
            entry: entry.clone().into(),
            added: b"Received: x\r\n".to_vec(),
        };
        let look = |expected, ended, is_queued, arrivals: &[Arrival]| {
            let fate = Fate {
                ended,
                rests: None,
                attempts: 1,
                after: None,
            };
            problem(expected, &fate, is_queued, arrivals, &sent)
        };
        let right = || arrival(&entry);
        assert_eq!(
            look(Expected::Delivered, Some(&delivered), false, &[right()]),
            Ok(())
        );
        assert_eq!(look(Expected::Bounced, Some(&bounced), false, &[]), Ok(()));
        assert_eq!(
            look(Expected::Twice, Some(&delivered), false, &[right(), right()]),
            Ok(())
        );
        let mut in_clear = entry.clone();
        in_clear.tls = None;
        assert_eq!(
            look(Expected::InClear, Some(&delivered), false, &[arrival(&in_clear)]),
            Ok(())
        );
        assert_eq!(look(Expected::Waiting, None, true, &[]), Ok(()));

        let mut wrong = vec![
            look(Expected::Delivered, Some(&delivered), false, &[]),
            look(Expected::Delivered, Some(&delivered), false, &[right(), right()]),
            look(Expected::Delivered, Some(&bounced), false, &[]),
            look(Expected::Delivered, None, true, &[right()]),
            look(Expected::Bounced, Some(&bounced), false, &[right()]),
            look(Expected::Waiting, None, false, &[]),
            look(Expected::Waiting, Some(&bounced), true, &[]),
            look(Expected::InClear, Some(&delivered), false, &[right()]),
            look(Expected::Twice, Some(&delivered), false, &[right()]),
        ];
        let spoils: [fn(&mut Entry); 6] = [
            |entry| entry.verdicts.as_mut().unwrap().dmarc.result = Outcome::Fail,
            |entry| entry.tls = None,
            |entry| entry.verdicts = None,
            |entry| entry.verdicts.as_mut().unwrap().spf.result = Outcome::SoftFail,
            |entry| entry.verdicts.as_mut().unwrap().dkim[1].result = Outcome::Neutral,
            |entry| drop(entry.verdicts.as_mut().unwrap().dkim.remove(0)),
        ];
        for spoil in spoils {
            let mut entry = entry.clone();
            spoil(&mut entry);
            wrong.push(look(
                Expected::Delivered,
                Some(&delivered),
                false,
                &[arrival(&entry)],
            ));
        }
        for (number, problem) in wrong.iter().enumerate() {
            assert!(problem.is_err(), "{number}");
        }
    }

    #[test]
    fn a_report_has_its_parts() {
        let report = "From: MAILER-DAEMON@relay.test\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n \
            boundary=\"b\"\r\n\r\nFor people.\r\n--b\r\nContent-Type: text/plain\r\n\r\nIt failed.\r\n\
            --b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; relay.test\r\n\r\n\
            Final-Recipient: rfc822; nobody@reject.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\
            --b\r\nContent-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\ny\r\n--b--\r\n";
        let look = |text: String| is_report(text.as_bytes(), "nobody@reject.test", "5.1.1");
        assert_eq!(look(report.into()), Ok(()));
        for (from, to) in [
            ("report-type=delivery-status", "report-type=other"),
            ("--b--", ""),
            (
                "--b\r\nContent-Type: message/rfc822",
                "Content-Type: message/rfc822",
            ),
            ("message/rfc822", "text/plain"),
            ("Action: failed", "Action: delayed"),
            ("5.1.1", "5.0.0"),
            ("nobody", "somebody"),
        ] {
            assert!(look(report.replace(from, to)).is_err(), "{to}");
        }
    }
}
