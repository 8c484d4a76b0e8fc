//! Reports to senders (RFC 3464 in RFC 6522's multipart/report, marked by RFC 3834).
//!
//! A report is 7-bit throughout, whatever the original and the peers' replies hold, so that it can go anywhere; only where
//! the sender's own address is beyond ASCII, so that it goes by SMTPUTF8 anyway, has it the forms of RFC 6533. The third
//! part is the original as we send it (with our fields, without signatures) where that is clean 7-bit and fits under
//! `max_report_bytes`; else its header fields, quoted-printable where they are not clean (RFC 6522 §4), as many whole
//! fields as fit. The cap never cuts a recipient's entry: where there are too many for one report, there are several.

pub(crate) mod text;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mail_core::header;
use mail_core::smtp::command::{date_time, decode_xtext, utf8_as_ascii};
use mail_core::{
    BodyType, Domain, DsnOptions, EnhancedCode, Mailbox, MessageId, Notify, Recipient, Reply, Ret,
    ReversePath, Timestamp, TransferOptions,
};
use queue::{EnvelopeRecord, NewMessage, NewUnit, Origin, RouteGroup, Uploaded};

use crate::config::Settings;
pub use text::MAX_REPLY_CHARS;
use text::{clean, date, host_name, is_clean, is_clean_utf8, span, wrap, write_quoted_printable};

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
    /// Until when its client had it held, where it did.
    pub held_until: Option<Timestamp>,
    /// Who sent it.
    pub tenant: &'a Arc<str>,
    /// In which of their streams; the report goes out in the same.
    pub stream: &'a Arc<str>,
    /// Whom the report goes to; no report for the null path.
    pub reverse_path: &'a ReversePath,
    /// What the sender asked of reports.
    pub dsn: &'a DsnOptions,
    /// What the sender asked of the way it takes; the report goes as urgently.
    pub transfer: TransferOptions,
    /// Header fields we add on top.
    pub prefix: &'a [u8],
    /// As the client sent it. Of one larger than `max_report_bytes` the header is enough.
    pub body: &'a [u8],
    /// Octets that follow `body`, where that is not all of it.
    pub rest_bytes: u64,
}

impl<'a> Original<'a> {
    /// One that is still in memory.
    pub fn from_new(message: &'a NewMessage) -> Self {
        Self {
            id: message.id,
            received_at: message.received_at,
            held_until: message.held_until(),
            tenant: &message.tenant,
            stream: &message.stream,
            reverse_path: &message.reverse_path,
            dsn: &message.dsn,
            transfer: message.transfer,
            prefix: &message.prefix,
            body: &message.body,
            rest_bytes: message.rest.as_ref().map_or(0, Uploaded::bytes),
        }
    }

    /// One that was read from the queue.
    pub fn from_record(id: MessageId, envelope: &'a EnvelopeRecord, body: &'a [u8]) -> Self {
        Self {
            id,
            received_at: envelope.received_at,
            held_until: envelope.held_until(),
            tenant: &envelope.tenant,
            stream: &envelope.stream,
            reverse_path: &envelope.reverse_path,
            dsn: &envelope.dsn,
            transfer: envelope.transfer,
            prefix: &envelope.prefix,
            body,
            rest_bytes: envelope.body_bytes.saturating_sub(body.len() as u64),
        }
    }
}

impl Original<'_> {
    /// A recipient's Status. RFC 2852 §4.1.3: where the time is over that the client named, it says so, of what was given up by class 5.
    fn status(&self, told: &Told, now: Timestamp) -> EnhancedCode {
        let is_over = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        match told {
            Told::Failed(Cause::Expired { .. }) if is_over(self.transfer.return_at()) => {
                EnhancedCode(5, 4, 7)
            }
            Told::Delayed(..) if is_over(self.transfer.notify_at()) => EnhancedCode(4, 4, 7),
            _ => told.status(),
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
    /// What we took the reply for.
    pub class: Option<Arc<str>>,
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
    /// The peer refused for good: 5yz, or a 4yz that a rule has made the end.
    Refused(Reply),
    /// We found that it can't be delivered, as where the domain takes no mail (5.1.10): code and reason.
    Undeliverable(EnhancedCode, String),
    /// Its time was up.
    Expired {
        /// What went wrong last, as the queue keeps it. Told as a peer's words only if it begins with a 4yz or 5yz code.
        last: Option<String>,
        /// What has kept it from being tried since.
        held_by: Option<String>,
    },
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
                // A 4yz that a rule has made the end: what the peer means, and that it is for good.
                Some(EnhancedCode(4, subject, detail)) if reply.is_transient() => {
                    EnhancedCode(5, subject, detail)
                }
                // None, or of a class that belies the reply's first digit: only that digit is sure (RFC 2034 §4).
                _ => EnhancedCode(5, 0, 0),
            },
            Self::Undeliverable(EnhancedCode(_, subject, detail), _) => EnhancedCode(5, *subject, *detail),
            Self::Expired { .. } => EnhancedCode(4, 4, 7),
        }
    }

    /// The peer's own words, clean, if it said any.
    fn diagnostic(&self) -> Option<String> {
        match self {
            Self::Refused(reply) => Some(clean(&reply.to_string())),
            Self::Undeliverable(..) => None,
            Self::Expired { last, .. } => last.as_deref().filter(|last| is_reply(last)).map(clean),
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

/// The notices, which are of one kind, in as few reports as `max_report_bytes` allows: one that would be larger is made
/// again for each half of them, down to a recipient each. `id` names the next report. None where [`report`] makes none.
pub fn reports(
    original: &Original<'_>,
    notices: &[Notice],
    settings: &ReportSettings,
    now: Timestamp,
    id: &impl Fn() -> MessageId,
) -> Vec<NewMessage> {
    let Some(whole) = (!notices.is_empty())
        .then(|| report(original, notices, settings, now, id()))
        .flatten()
    else {
        return Vec::new();
    };
    if notices.len() == 1 || whole.body.len() <= settings.max_report_bytes {
        return vec![whole];
    }
    let (front, back) = notices.split_at(notices.len() / 2);
    let mut halves = reports(original, front, settings, now, id);
    halves.extend(reports(original, back, settings, now, id));
    halves
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
    let form = Form::of(sender);
    Some(NewMessage {
        id,
        received_at: now,
        expires_at: now + settings.expire_after,
        tenant: original.tenant.clone(),
        stream: original.stream.clone(),
        reverse_path: ReversePath::Null,
        body_type: match form {
            Form::Ascii => BodyType::SevenBit,
            Form::Global => BodyType::EightBitMime,
        },
        smtputf8: form == Form::Global,
        dsn: DsnOptions::default(),
        transfer: TransferOptions {
            // RFC 6710 §4.6: a report is as urgent as what it is about.
            priority: original.transfer.priority,
            by: None,
        },
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::new(),
        body: report.into(),
        rest: None,
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

/// What a report may be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// 7-bit: any host takes it. Addresses beyond ASCII have a form of their own there (RFC 6533 §3).
    Ascii,
    /// UTF-8, as RFC 6533 has it: for a sender whom only hosts with SMTPUTF8 can serve.
    Global,
}

impl Form {
    fn of(sender: &Mailbox) -> Self {
        if sender.is_ascii() {
            Self::Ascii
        } else {
            Self::Global
        }
    }

    /// An address, or one as ORCPT told it.
    fn address(self, address: &str) -> Cow<'_, str> {
        match self {
            Self::Ascii if !address.is_ascii() => utf8_as_ascii(address).into(),
            Self::Ascii | Self::Global => address.into(),
        }
    }

    /// The status part's type (RFC 3464 §2.1, RFC 6533 §4).
    fn status_type(self) -> &'static str {
        match self {
            Self::Ascii => "message/delivery-status",
            Self::Global => "message/global-delivery-status",
        }
    }

    /// Charset and encoding of the part for people, and of the whole.
    fn charset(self) -> (&'static str, &'static str) {
        match self {
            Self::Ascii => ("us-ascii", "7bit"),
            Self::Global => ("utf-8", "8bit"),
        }
    }
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
    let form = Form::of(sender);
    let (charset, encoding) = form.charset();
    let boundary = format!("=_report_{id}");
    let mut text = String::new();
    write_header(&mut text, original, (sender, kind), settings, now, id, &boundary);
    let _ = write!(
        text,
        "This is a report in MIME format.\r\n\r\n--{boundary}\r\n\
         Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    );
    write_explanation(&mut text, original, (kind, notices), settings, now);
    let _ = write!(
        text,
        "\r\n--{boundary}\r\nContent-Type: {}\r\n",
        form.status_type()
    );
    if form == Form::Global {
        text.push_str("Content-Transfer-Encoding: 8bit\r\n");
    }
    text.push_str("\r\n");
    write_status(&mut text, original, (form, notices), settings, now);
    let _ = write!(text, "\r\n--{boundary}\r\n");
    let end = format!("\r\n--{boundary}--\r\n");
    let mut report = text.into_bytes();
    let room = settings.max_report_bytes.saturating_sub(report.len() + end.len());
    // RFC 3461 §4.3: RET is about failures; of other reports the header is enough.
    let whole = kind == Kind::Failed && original.dsn.ret != Some(Ret::Headers);
    write_original(&mut report, original, (form, whole), room);
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
    let _ = write!(
        text,
        "From: Mail Delivery System <MAILER-DAEMON@{domain}>\r\nTo: {sender}\r\n\
         Subject: {subject}\r\nDate: {date}\r\nMessage-ID: <{id}@{host}>\r\n",
        domain = settings.reporting_domain,
        subject = kind.subject(),
        date = date(now),
        host = settings.hostname,
    );
    let encoding = match Form::of(sender) {
        Form::Ascii => "",
        Form::Global => "Content-Transfer-Encoding: 8bit\r\n",
    };
    // RFC 3834 §3.1.6
    if let Some(message_id) = message_id(original) {
        let _ = write!(text, "In-Reply-To: {message_id}\r\nReferences: {message_id}\r\n");
    }
    let _ = write!(
        text,
        "Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n{encoding}\
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
    let form = original.reverse_path.mailbox().map_or(Form::Ascii, Form::of);
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
        let address = notice.to.mailbox.to_string();
        let _ = write!(text, "\r\n<{}>\r\n", form.address(&address));
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
    let waited = now.since(original.held_until.unwrap_or(original.received_at));
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
        Told::Failed(Cause::Expired { last, held_by }) => {
            let mut text = format!("not delivered within {}", span(waited));
            if let Some(last) = last.as_deref().map(clean) {
                text += &match is_reply(&last) {
                    true => format!("; last time {host} said: {last}"),
                    false => format!("; last time: {last}"),
                };
            }
            if let Some(held_by) = held_by {
                text += &format!("; since then: {}", clean(held_by));
            }
            text
        }
    }
}

/// The part for programs: a group of fields on the message, then one on each recipient (RFC 3464 §2.1).
fn write_status(
    text: &mut String,
    original: &Original<'_>,
    (form, notices): (Form, &[Notice]),
    settings: &ReportSettings,
    now: Timestamp,
) {
    let _ = write!(
        text,
        "Reporting-MTA: dns; {}\r\nX-Postrider-Message: {}\r\nArrival-Date: {}\r\n",
        settings.hostname,
        original.id,
        date(original.received_at)
    );
    if let Some(by) = original.transfer.by {
        // RFC 2852 §5
        let _ = write!(text, "Deliver-By-Date: {}\r\n", date(by.at));
    }
    if let Some(until) = original.held_until {
        // RFC 4865 §5.1.2, which has no space there.
        let _ = write!(text, "Future-Release-Request: until;{}\r\n", date_time(until));
    }
    if let Some(envid) = &original.dsn.envid {
        // RFC 3464 §2.2.1
        let lines = wrap(&format!("Original-Envelope-Id: {}", decode_xtext(envid)), 76);
        let _ = write!(text, "{}\r\n", lines.join("\r\n "));
    }
    for notice in notices {
        text.push_str("\r\n");
        if let Some((kind, address)) = notice.to.orcpt.as_deref().and_then(|orcpt| orcpt.split_once(';')) {
            // RFC 3464 §2.3.1: only what ORCPT said.
            let address = decode_xtext(address);
            let _ = write!(text, "Original-Recipient: {kind}; {}\r\n", form.address(&address));
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
            form.address(&notice.to.mailbox.to_string()),
            notice.told.kind().action(),
            original.status(&notice.told, now)
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
        if let Some(class) = &notice.class {
            // RFC 3464 §2.4: fields of one's own begin with X-. The class has only letters that a header can have.
            let _ = write!(text, "X-Postrider-Class: {class}\r\n");
        }
        if let Told::Delayed(_, until) = &notice.told {
            let _ = write!(text, "Will-Retry-Until: {}\r\n", date(*until));
        }
    }
}

/// The third part: its header, and what fits in `room` octets of the original.
fn write_original(report: &mut Vec<u8>, original: &Original<'_>, (form, whole): (Form, bool), room: usize) {
    let parts = [original.prefix, original.body];
    let is_clean = |octets: &[u8]| match form {
        Form::Ascii => is_clean(octets),
        Form::Global => is_clean_utf8(octets),
    };
    if whole
        && original.rest_bytes == 0
        && parts.iter().map(|part| part.len()).sum::<usize>() < room.saturating_sub(80)
        && parts.iter().all(|part| is_clean(part))
    {
        // RFC 6533 §5: in UTF-8 where it has to be.
        let kind: &[u8] = if parts.iter().all(|part| part.is_ascii()) {
            b"Content-Type: message/rfc822\r\n\r\n"
        } else {
            b"Content-Type: message/global\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        };
        report.extend_from_slice(kind);
        parts.iter().for_each(|part| report.extend_from_slice(part));
        return;
    }
    let fields = || {
        [original.prefix, header::split(original.body).0]
            .into_iter()
            .flat_map(header::fields)
            .map(|field| field.raw())
    };
    let fit = fields().all(is_clean);
    let (kind, encoding) = match (fields().all(<[u8]>::is_ascii), fit) {
        (true, true) => ("text/rfc822-headers", "7bit"),
        (false, true) => ("message/global-headers", "8bit"),
        (_, false) => ("text/rfc822-headers", "quoted-printable"),
    };
    let part = format!("Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n");
    report.extend_from_slice(part.as_bytes());
    let end = report.len() + room.saturating_sub(part.len());
    for field in fields() {
        let before = report.len();
        if fit {
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
mod tests;
