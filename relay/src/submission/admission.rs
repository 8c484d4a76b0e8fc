//! Who may send what: the rules a message meets before it is kept (RFC 6409 §6.1).

use mail_core::header;
use mail_core::{Reply, ReversePath};

use crate::config::settings::Tenant;

use super::front::may_use;

const NOT_YOURS: Reply = Reply::new(550, 7, 1, "this sender address is not yours to use");

/// Whether MAIL's address is one of the tenant's. The null path is: programs report, too.
pub(super) fn sender(tenant: &Tenant, from: &ReversePath) -> Option<Reply> {
    from.mailbox()
        .filter(|from| !may_use(tenant, from))
        .map(|_| NOT_YOURS)
}

/// Whether the message goes in circles: it has more than `most` Received fields (RFC 5321 §6.3).
pub(super) fn looping(message: &[u8], most: usize) -> Option<Reply> {
    let (headers, _) = header::split(message);
    let received = header::fields(headers).filter(|field| field.is("Received"));
    (received.count() > most).then(|| {
        Reply::new(554, 4, 6, "").with_text(format!(
            "the message has passed more than {most} hosts: a mail loop"
        ))
    })
}

/// Whether the message's header can be sent on in the tenant's name.
pub(super) fn content(tenant: &Tenant, message: &[u8]) -> Option<Reply> {
    if message
        .first()
        .is_some_and(|&octet| octet == b' ' || octet == b'\t')
    {
        // It would continue the last field we put above it.
        return Some(Reply::new(
            550,
            6,
            0,
            "the message begins with a continuation line",
        ));
    }
    if !super::stamp::begins_with_field(message) {
        return None;
    }
    let (headers, _) = header::split(message);
    // RFC 5322 §3.6. Two readers would take different ones, and many hosts refuse such a message.
    for name in ["Date", "Message-ID", "Sender"] {
        if header::fields(headers).filter(|field| field.is(name)).count() > 1 {
            let text = format!("the message has more than one {name}");
            return Some(Reply::new(550, 6, 0, "").with_text(text));
        }
    }
    let mut authors = header::fields(headers).filter(|field| field.is("From"));
    let from = authors.next();
    if authors.next().is_some() {
        return Some(Reply::new(550, 6, 0, "the message has more than one From"));
    }
    let sender = header::fields(headers).find(|field| field.is("Sender"));
    // Mail programs show both: "SENDER on behalf of FROM".
    [("From", from), ("Sender", sender)]
        .into_iter()
        .find_map(|(name, field)| not_theirs(tenant, name, field?))
}

/// Whether a field names others than the tenant's own addresses.
fn not_theirs(tenant: &Tenant, name: &str, field: header::Field<'_>) -> Option<Reply> {
    match header::addresses(field.value()) {
        Ok(addresses) if addresses.iter().all(|address| may_use(tenant, address)) => None,
        Ok(_) => Some(NOT_YOURS.with_text(format!("the message's {name} is not yours to use"))),
        Err(error) => {
            Some(Reply::new(550, 6, 0, "").with_text(format!("the message's {name} can't be read: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(senders: &[&str]) -> Tenant {
        let senders = senders.iter().map(|pattern| pattern.parse().unwrap()).collect();
        Tenant {
            senders,
            max_message_bytes: None,
            max_recipients: None,
            max_connections: None,
            rates: Default::default(),
            header_fields: Vec::new(),
            archive: None,
            queue_share: None,
        }
    }

    fn code(reply: Option<Reply>) -> String {
        reply.map_or("ok".into(), |reply| reply.to_string()[..9].to_owned())
    }

    #[test]
    fn senders_are_the_tenants_own() {
        let tenant = tenant(&["a.test", "*.b.test", "News@c.test"]);
        for (from, verdict) in [
            ("x@a.test", "ok"),
            ("x@sub.a.test", "550 5.7.1"),
            ("x@sub.b.test", "ok"),
            ("x@b.test", "550 5.7.1"),
            ("news@c.test", "ok"),
            ("other@c.test", "550 5.7.1"),
        ] {
            assert_eq!(
                code(sender(&tenant, &ReversePath::Mailbox(from.parse().unwrap()))),
                verdict,
                "{from}"
            );
        }
        assert_eq!(code(sender(&tenant, &ReversePath::Null)), "ok");
    }

    #[test]
    fn one_from_that_is_theirs() {
        let tenant = tenant(&["a.test"]);
        for (message, verdict) in [
            ("From: Ada <ada@a.test>\r\n\r\n", "ok"),
            ("Subject: none\r\n\r\nFrom: evil@x.test\r\n", "ok"),
            ("no header at all\r\n", "ok"),
            ("From: evil@x.test\r\n\r\n", "550 5.7.1"),
            ("From: ada@a.test, evil@x.test\r\n\r\n", "550 5.7.1"),
            ("From: ada@a.test\r\nfrom: ada@a.test\r\n\r\n", "550 5.6.0"),
            ("From: <<<\r\n\r\n", "550 5.6.0"),
            ("From: ada@a.test\r\nSender: app@a.test\r\n\r\n", "ok"),
            ("From: ada@a.test\r\nSender: ceo@x.test\r\n\r\n", "550 5.7.1"),
            ("Sender: ceo@x.test\r\n\r\n", "550 5.7.1"),
            ("From: ceo@x.test: ada@a.test;\r\n\r\n", "550 5.6.0"),
            ("From: ada@a.test\r\nDate: x\r\nDATE: y\r\n\r\n", "550 5.6.0"),
            (
                "From: ada@a.test\r\nMessage-ID: <x>\r\nMessage-Id: <y>\r\n\r\n",
                "550 5.6.0",
            ),
            (
                "From: ada@a.test\r\nDate: x\r\nTo: b@c.test\r\nTo: d@e.test\r\n\r\n",
                "ok",
            ),
            (" continued\r\nFrom: ada@a.test\r\n\r\n", "550 5.6.0"),
        ] {
            assert_eq!(code(content(&tenant, message.as_bytes())), verdict, "{message:?}");
        }
    }

    /// CASES row 19.
    #[test]
    fn a_message_that_goes_in_circles_is_stopped() {
        for (count, verdict) in [(0, "ok"), (99, "ok"), (100, "ok"), (101, "554 5.4.6")] {
            let mut message = "Received: by a.test;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\n".repeat(count);
            message.push_str("From: ada@a.test\r\n\r\nReceived: by body.test\r\n");
            assert_eq!(code(looping(message.as_bytes(), 100)), verdict, "{count}");
        }
    }
}
