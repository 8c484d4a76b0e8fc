//! Reports to senders (RFC 3464 in RFC 6522's multipart/report, marked by RFC 3834).
//!
//! A report is 7-bit throughout, whatever the original and the peers' replies hold, so that it can go anywhere. The third
//! part is the original as we send it (with our fields, without signatures) where that is clean 7-bit and fits under
//! `max_report_bytes`; else its header fields, quoted-printable where they are not clean (RFC 6522 §4), as many whole
//! fields as fit. The cap never cuts a recipient's entry: a report is about the recipients of one destination, so their
//! number is bounded already.

pub(crate) mod text;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mail_core::header;
use mail_core::smtp::command::decode_xtext;
use mail_core::{
    BodyType, Domain, DsnOptions, EnhancedCode, Mailbox, MessageId, Notify, Recipient, Reply, Ret,
    ReversePath, Timestamp,
};
use queue::{EnvelopeRecord, NewMessage, NewUnit, Origin, RouteGroup};

use crate::config::Settings;
pub use text::MAX_REPLY_CHARS;
use text::{clean, date, host_name, is_clean, printable, span, wrap, write_quoted_printable};

/// How reports are made.
#[derive(Clone, Debug)]
pub struct ReportSettings {
    /// Reporting-MTA, and the domain of the report's Message-ID.
    pub hostname: Domain,
    /// Reports come from MAILER-DAEMON here, and are signed with this domain's key.
    pub reporting_domain: Domain,
    /// Octets of a report at which no more of the original is quoted.
    pub max_report_bytes: usize,
    /// How long the report itself may stay in the queue.
    pub expire_after: Duration,
    /// A message that is this old is delayed.
    pub delay_after: Duration,
}

impl ReportSettings {
    /// As the configuration has it: reports come from the relay's own host name.
    pub fn new(settings: &Settings) -> Self {
        Self {
            hostname: settings.hostname.clone(),
            reporting_domain: settings.hostname.clone(),
            max_report_bytes: settings.delivery.max_report_bytes,
            expire_after: settings.store.expire_after,
            delay_after: settings.delivery.delay_notice_after,
        }
    }
}

/// What a report says of the message it is about.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// Its name.
    pub id: MessageId,
    /// When it came in.
    pub received_at: Timestamp,
    /// Who sent it.
    pub tenant: &'a Arc<str>,
    /// In which of their streams; the report goes out in the same.
    pub stream: &'a Arc<str>,
    /// Whom the report goes to; no report for the null path.
    pub reverse_path: &'a ReversePath,
    /// What the sender asked of reports.
    pub dsn: &'a DsnOptions,
    /// Header fields we add on top.
    pub prefix: &'a [u8],
    /// As the client sent it. Of one larger than `max_report_bytes` the header is enough.
    pub body: &'a [u8],
}

impl<'a> Original<'a> {
    /// One that is still in memory.
    pub fn from_new(message: &'a NewMessage) -> Self {
        Self {
            id: message.id,
            received_at: message.received_at,
            tenant: &message.tenant,
            stream: &message.stream,
            reverse_path: &message.reverse_path,
            dsn: &message.dsn,
            prefix: &message.prefix,
            body: &message.body,
        }
    }

    /// One that was read from the queue.
    pub fn from_record(id: MessageId, envelope: &'a EnvelopeRecord, body: &'a [u8]) -> Self {
        Self {
            id,
            received_at: envelope.received_at,
            tenant: &envelope.tenant,
            stream: &envelope.stream,
            reverse_path: &envelope.reverse_path,
            dsn: &envelope.dsn,
            prefix: &envelope.prefix,
            body,
        }
    }
}

/// What a report says of a recipient.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Who, and what the sender called them.
    pub to: Recipient,
    /// What, and why.
    pub told: Told,
    /// The MX host tried last, where there was one.
    pub remote: Option<String>,
    /// When that was.
    pub last_attempt: Option<Timestamp>,
}

/// What became of a recipient that its sender is told of.
#[derive(Clone, Debug)]
pub enum Told {
    /// It will not get the message.
    Failed(Cause),
    /// It is tried again, until then; what went wrong last.
    Delayed(String, Timestamp),
    /// The next hop has it, with these words, and will not report on it (RFC 3461 §5.2.2).
    Relayed(String),
}

impl Told {
    /// What kind of report tells of it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Failed(_) => Kind::Failed,
            Self::Delayed(..) => Kind::Delayed,
            Self::Relayed(_) => Kind::Relayed,
        }
    }

    /// The recipient's Status (RFC 3464 §2.3.4).
    pub fn status(&self) -> EnhancedCode {
        match self {
            Self::Failed(cause) => cause.status(),
            Self::Delayed(last, _) => status_of(last, 4),
            Self::Relayed(said) => status_of(said, 2),
        }
    }

    /// The peer's own words, clean, if it said any.
    fn diagnostic(&self) -> Option<String> {
        match self {
            Self::Failed(cause) => cause.diagnostic(),
            Self::Delayed(last, _) => Some(last).filter(|last| is_reply(last)).map(|last| clean(last)),
            Self::Relayed(said) => Some(clean(said)),
        }
    }
}

/// Why a recipient will not get the message.
#[derive(Clone, Debug)]
pub enum Cause {
    /// The peer refused for good (5yz).
    Refused(Reply),
    /// We found that it can't be delivered, as where the domain takes no mail (5.1.10): code and reason.
    Undeliverable(EnhancedCode, String),
    /// Its time was up; what went wrong last, as the queue keeps it. Told as a peer's words only if it begins with a 4yz or
    /// 5yz code.
    Expired(Option<String>),
}

/// What a report is about; all its notices are of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Given up.
    Failed,
    /// Tried again.
    Delayed,
    /// Handed to a host that does not report.
    Relayed,
}

impl Kind {
    /// The Action field (RFC 3464 §2.3.3).
    pub fn action(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed => "delayed",
            Self::Relayed => "relayed",
        }
    }

    fn subject(self) -> &'static str {
        match self {
            Self::Failed => "Undelivered mail returned to sender",
            Self::Delayed => "Delayed mail, still being tried",
            Self::Relayed => "Mail handed on",
        }
    }

    /// Completes "Your message" in front of the list of recipients.
    fn sentence(self, whom: &str) -> String {
        match self {
            Self::Failed => {
                format!("could not be delivered to the {whom} below.\r\nIt will not be tried again.")
            }
            Self::Delayed => format!(
                "has not been delivered to the {whom} below yet.\r\nIt is still being tried; you need not send it again."
            ),
            Self::Relayed => format!(
                "was handed to the mail server of the {whom} below,\r\nwhich does not report what becomes of it."
            ),
        }
    }
}

impl Cause {
    /// The recipient's Status (RFC 3464 §2.3.4): class 5 where refused, and 4.4.7 where time was up, since RFC 3463 §3.5
    /// and common practice tell by class 4 that the address itself may be good.
    pub fn status(&self) -> EnhancedCode {
        match self {
            Self::Refused(reply) => match reply.enhanced {
                Some(code @ EnhancedCode(5, _, _)) => code,
                // None, or of a class that belies the reply's first digit: only that digit is sure (RFC 2034 §4).
                _ => EnhancedCode(5, 0, 0),
            },
            Self::Undeliverable(EnhancedCode(_, subject, detail), _) => EnhancedCode(5, *subject, *detail),
            Self::Expired(_) => EnhancedCode(4, 4, 7),
        }
    }

    /// The peer's own words, clean, if it said any.
    fn diagnostic(&self) -> Option<String> {
        match self {
            Self::Refused(reply) => Some(clean(&reply.to_string())),
            Self::Undeliverable(..) => None,
            Self::Expired(last) => last.as_deref().filter(|last| is_reply(last)).map(clean),
        }
    }
}

/// The enhanced code of a reply kept as text, where it has one of this class; else the class alone.
fn status_of(reply: &str, class: u8) -> EnhancedCode {
    let code = reply.split(' ').nth(1).and_then(|word| {
        let mut numbers = word.split('.').map(str::parse::<u16>);
        match (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()) {
            (Ok(first), Ok(subject), Ok(detail), None) if first == u16::from(class) => {
                Some(EnhancedCode(class, subject, detail))
            }
            _ => None,
        }
    });
    code.unwrap_or(EnhancedCode(class, 0, 0))
}

/// Whether a text begins as a negative reply does.
fn is_reply(text: &str) -> bool {
    matches!(
        text.as_bytes(),
        [b'4' | b'5', b'0'..=b'9', b'0'..=b'9'] | [b'4' | b'5', b'0'..=b'9', b'0'..=b'9', b' ', ..]
    )
}

/// The report as a message for the queue: from the null path, in the original's tenant and stream, naming it as its cause,
/// to be committed in the batch of the ends it reports so that none is lost and none invented. `None` where [`compose`] makes none.
pub fn report(
    original: &Original<'_>,
    notices: &[Notice],
    settings: &ReportSettings,
    now: Timestamp,
    id: MessageId,
) -> Option<NewMessage> {
    let sender = original.reverse_path.mailbox()?;
    let report = compose(original, notices, settings, now, id)?;
    Some(NewMessage {
        id,
        received_at: now,
        expires_at: now + settings.expire_after,
        tenant: original.tenant.clone(),
        stream: original.stream.clone(),
        reverse_path: ReversePath::Null,
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::new(),
        body: report.into(),
        origin: Origin {
            helo: settings.hostname.to_string(),
            protocol: "report".to_owned(),
            ..Origin::default()
        },
        cause: Some(original.id),
        units: vec![NewUnit {
            route_group: RouteGroup::default(),
            domain: sender.domain().clone(),
            due: now,
            recipients: vec![Recipient {
                // RFC 3461 §6.1: nobody reports on a report.
                notify: Some(Notify::Never),
                ..Recipient::new(sender.clone())
            }],
        }],
    })
}

/// The report as bytes, to be sent from the null path; `None` where nobody wants one: the original came from the null path
/// itself (RFC 5321 §4.5.5), or nothing failed. `id` names the report; it is random, and its boundary is made of it, so
/// that neither the original nor a reply can hold that.
pub fn compose(
    original: &Original<'_>,
    notices: &[Notice],
    settings: &ReportSettings,
    now: Timestamp,
    id: MessageId,
) -> Option<Vec<u8>> {
    let sender = original.reverse_path.mailbox()?;
    let kind = notices.first()?.told.kind();
    let boundary = format!("=_report_{id}");
    let mut text = String::new();
    write_header(&mut text, original, (sender, kind), settings, now, id, &boundary);
    let _ = write!(
        text,
        "This is a report in MIME format.\r\n\r\n--{boundary}\r\n\
         Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\n"
    );
    write_explanation(&mut text, original, (kind, notices), settings, now);
    let _ = write!(
        text,
        "\r\n--{boundary}\r\nContent-Type: message/delivery-status\r\n\r\n"
    );
    write_status(&mut text, original, notices, settings);
    let _ = write!(text, "\r\n--{boundary}\r\n");
    let end = format!("\r\n--{boundary}--\r\n");
    let mut report = text.into_bytes();
    let room = settings.max_report_bytes.saturating_sub(report.len() + end.len());
    // RFC 3461 §4.3: RET is about failures; of other reports the header is enough.
    let whole = kind == Kind::Failed && original.dsn.ret != Some(Ret::Headers);
    write_original(&mut report, original, whole, room);
    report.extend_from_slice(end.as_bytes());
    Some(report)
}

fn write_header(
    text: &mut String,
    original: &Original<'_>,
    (sender, kind): (&Mailbox, Kind),
    settings: &ReportSettings,
    now: Timestamp,
    id: MessageId,
    boundary: &str,
) {
    let to = if sender.is_ascii() {
        sender.to_string()
    } else {
        // An address that a 7-bit header can't hold. The envelope has it.
        "undisclosed-recipients:;".to_owned()
    };
    let _ = write!(
        text,
        "From: Mail Delivery System <MAILER-DAEMON@{domain}>\r\nTo: {to}\r\n\
         Subject: {subject}\r\nDate: {date}\r\nMessage-ID: <{id}@{host}>\r\n",
        domain = settings.reporting_domain,
        subject = kind.subject(),
        date = date(now),
        host = settings.hostname,
    );
    // RFC 3834 §3.1.6
    if let Some(message_id) = message_id(original) {
        let _ = write!(text, "In-Reply-To: {message_id}\r\nReferences: {message_id}\r\n");
    }
    let _ = write!(
        text,
        "Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"{boundary}\"\r\n\r\n"
    );
}

/// The original's Message-ID if it is one that can stand in our header.
fn message_id(original: &Original<'_>) -> Option<String> {
    let field = [original.prefix, header::split(original.body).0]
        .into_iter()
        .flat_map(header::fields)
        .find(|field| field.is("Message-ID"))?;
    let id = std::str::from_utf8(field.value().trim_ascii()).ok()?;
    let inner = id.strip_prefix('<')?.strip_suffix('>')?;
    let good = inner.len() <= 250
        && inner
            .bytes()
            .all(|c| c.is_ascii_graphic() && c != b'<' && c != b'>');
    good.then(|| id.to_owned())
}

/// The part for people.
fn write_explanation(
    text: &mut String,
    original: &Original<'_>,
    (kind, notices): (Kind, &[Notice]),
    settings: &ReportSettings,
    now: Timestamp,
) {
    let whom = if notices.len() == 1 {
        "recipient"
    } else {
        "recipients"
    };
    let _ = write!(
        text,
        "This is the mail system at {}.\r\n\r\n\
         Your message {}\r\n",
        settings.hostname,
        kind.sentence(whom)
    );
    for notice in notices {
        let _ = write!(text, "\r\n<{}>\r\n", printable(&notice.to.mailbox));
        for line in wrap(&reason(notice, original, now), 72) {
            let _ = write!(text, "    {line}\r\n");
        }
    }
    let _ = write!(
        text,
        "\r\nThe message came in at {}\r\nand is known here as {}.\r\n\
         Below are the details for mail programs, and what you sent.\r\n",
        date(original.received_at),
        original.id,
    );
}

fn reason(notice: &Notice, original: &Original<'_>, now: Timestamp) -> String {
    let host = notice.remote.as_deref().map_or_else(
        || "the mail server".to_owned(),
        |host| format!("the mail server {}", host_name(host)),
    );
    match &notice.told {
        Told::Failed(Cause::Refused(reply)) => format!("{host} said: {}", clean(&reply.to_string())),
        Told::Failed(Cause::Undeliverable(_, why)) => clean(why),
        Told::Delayed(last, until) => {
            let last = clean(last);
            let said = if is_reply(&last) {
                format!("{host} said: {last}")
            } else {
                last
            };
            format!("{said}; tried again until {}", date(*until))
        }
        Told::Relayed(said) => format!("{host} said: {}", clean(said)),
        Told::Failed(Cause::Expired(None)) => {
            format!("not delivered within {}", span(now.since(original.received_at)))
        }
        Told::Failed(Cause::Expired(Some(last))) => {
            let span = span(now.since(original.received_at));
            let last = clean(last);
            if is_reply(&last) {
                format!("not delivered within {span}; last time {host} said: {last}")
            } else {
                format!("not delivered within {span}; last time: {last}")
            }
        }
    }
}

/// The part for programs: a group of fields on the message, then one on each recipient (RFC 3464 §2.1).
fn write_status(text: &mut String, original: &Original<'_>, notices: &[Notice], settings: &ReportSettings) {
    let _ = write!(
        text,
        "Reporting-MTA: dns; {}\r\nX-Postrider-Message: {}\r\nArrival-Date: {}\r\n",
        settings.hostname,
        original.id,
        date(original.received_at)
    );
    if let Some(envid) = &original.dsn.envid {
        // RFC 3464 §2.2.1
        let lines = wrap(&format!("Original-Envelope-Id: {}", decode_xtext(envid)), 76);
        let _ = write!(text, "{}\r\n", lines.join("\r\n "));
    }
    for notice in notices {
        text.push_str("\r\n");
        if let Some((kind, address)) = notice.to.orcpt.as_deref().and_then(|orcpt| orcpt.split_once(';')) {
            // RFC 3464 §2.3.1: only what ORCPT said.
            let _ = write!(text, "Original-Recipient: {kind}; {}\r\n", decode_xtext(address));
        }
        // RFC 6533 §3 has a form in 7-bit for addresses that are not.
        let kind = if notice.to.mailbox.is_ascii() {
            "rfc822"
        } else {
            "utf-8"
        };
        let _ = write!(
            text,
            "Final-Recipient: {kind}; {}\r\nAction: {}\r\nStatus: {}\r\n",
            printable(&notice.to.mailbox),
            notice.told.kind().action(),
            notice.told.status()
        );
        if let Some(remote) = &notice.remote {
            let _ = write!(text, "Remote-MTA: dns; {}\r\n", host_name(remote));
        }
        if let Some(said) = notice.told.diagnostic() {
            let lines = wrap(&format!("Diagnostic-Code: smtp; {said}"), 76);
            let _ = write!(text, "{}\r\n", lines.join("\r\n "));
        }
        if let Some(at) = notice.last_attempt {
            let _ = write!(text, "Last-Attempt-Date: {}\r\n", date(at));
        }
        if let Told::Delayed(_, until) = &notice.told {
            let _ = write!(text, "Will-Retry-Until: {}\r\n", date(*until));
        }
    }
}

/// The third part: its header, and what fits in `room` octets of the original.
fn write_original(report: &mut Vec<u8>, original: &Original<'_>, whole: bool, room: usize) {
    let parts = [original.prefix, original.body];
    if whole
        && parts.iter().map(|part| part.len()).sum::<usize>() < room.saturating_sub(80)
        && parts.iter().all(|part| is_clean(part))
    {
        report.extend_from_slice(b"Content-Type: message/rfc822\r\n\r\n");
        parts.iter().for_each(|part| report.extend_from_slice(part));
        return;
    }
    let fields = || {
        [original.prefix, header::split(original.body).0]
            .into_iter()
            .flat_map(header::fields)
            .map(|field| field.raw())
    };
    let is_clean = fields().all(is_clean);
    let encoding = if is_clean { "7bit" } else { "quoted-printable" };
    let part = format!("Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n");
    report.extend_from_slice(part.as_bytes());
    let end = report.len() + room.saturating_sub(part.len());
    for field in fields() {
        let before = report.len();
        if is_clean {
            report.extend_from_slice(field);
        } else {
            write_quoted_printable(report, field);
        }
        if !field.ends_with(b"\r\n") {
            report.extend_from_slice(b"\r\n");
        }
        if report.len() > end {
            report.truncate(before);
            break;
        }
    }
}

#[cfg(test)]
mod tests {
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
        }
    }

    fn composed(prefix: &[u8], body: &[u8], notices: &[Notice], settings: &ReportSettings) -> String {
        let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
        let original = Original {
            id: MessageId::from_bytes([1; 16]),
            received_at: NOW - Duration::from_secs(5 * 86_400),
            tenant: &"acme".into(),
            stream: &"transactional".into(),
            reverse_path: &sender,
            dsn: &DSN,
            prefix,
            body,
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
    fn nobody_is_told_of_a_report_that_failed() {
        let original = Original {
            id: MessageId::from_bytes([1; 16]),
            received_at: NOW,
            tenant: &"acme".into(),
            stream: &"transactional".into(),
            reverse_path: &ReversePath::Null,
            dsn: &DSN,
            prefix: b"",
            body: b"",
        };
        let notices = [refused("bob@example.org", 550, UNKNOWN, "no")];
        let id = MessageId::from_bytes([2; 16]);
        assert_eq!(compose(&original, &notices, &settings(), NOW, id), None);
        let sender = ReversePath::Mailbox("app@example.com".parse().unwrap());
        let original = Original {
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
        assert_eq!(Cause::Expired(None).status().to_string(), "4.4.7");
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
        let expired = |last: Option<&str>| Notice {
            to: Recipient::new("bob@example.org".parse().unwrap()),
            told: Told::Failed(Cause::Expired(last.map(Into::into))),
            remote: None,
            last_attempt: None,
        };
        let text = composed(
            b"",
            b"A: 1\r\n\r\n",
            &[
                expired(None),
                expired(Some("450 4.2.0 greylisted")),
                expired(Some("connection refused")),
            ],
            &settings(),
        );
        assert!(text.contains("to the recipients below"));
        assert_eq!(text.matches("Status: 4.4.7\r\n").count(), 3);
        assert_eq!(text.matches("Diagnostic-Code").count(), 1);
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
                id: MessageId::from_bytes([1; 16]),
                received_at: NOW - Duration::from_secs(86_400),
                tenant: &"acme".into(),
                stream: &"transactional".into(),
                reverse_path: &sender,
                dsn: &asked(ret),
                prefix: b"",
                body: b"Subject: x\r\n\r\nhello\r\n",
            };
            let notice = Notice {
                to: to.clone(),
                told,
                remote: Some("mx.example.org".into()),
                last_attempt: Some(NOW),
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
}
