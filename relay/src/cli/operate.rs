//! What `postrider queue` and `postrider message` change.

use std::time::Duration;

use admin_api::Time;
use admin_api::client::{Client, ClientError};
use admin_api::operate::{
    Delete, Deletion, MessagesQuery, Preview, Progress, Resume, Retry, Selector, Suspend, Suspension,
    WaitingMessage, Waits, WaitsFor,
};
use mail_core::MessageId;

use super::output::{columns, print, print_json, size};
use super::queue::{Api, block_on, time};
use super::which::{Mail, Which};
use super::{Failure, queue};

/// Messages asked for at a time.
const PAGE: usize = 100;

fn one(id: MessageId) -> Selector {
    Selector {
        message: Some(id.to_string()),
        ..Selector::default()
    }
}

pub(super) fn suspend(
    which: &Which,
    span: Option<Duration>,
    reason: String,
    json: bool,
    api: &Api,
) -> Result<(), Failure> {
    let suspend = suspension_of(which, span, reason)?;
    let suspension = block_on(api.client()?.suspend(&suspend))??;
    if json {
        return Ok(print_json(&suspension)?);
    }
    let until = suspension
        .until
        .map_or("until it is resumed".into(), |until| format!("until {until}"));
    Ok(print(&format!("suspended {until}\n"))?)
}

fn suspension_of(which: &Which, span: Option<Duration>, reason: String) -> Result<Suspend, Failure> {
    Ok(Suspend {
        selector: which.selector()?,
        until: None,
        for_seconds: span.map(seconds),
        reason,
    })
}

/// A length as the API takes it, rounded up. The relay counts from its own now: its clock may differ from ours.
pub(super) fn seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

pub(super) fn resume(which: &Which, json: bool, api: &Api) -> Result<(), Failure> {
    let resume = Resume {
        selector: which.selector()?,
    };
    block_on(api.client()?.resume(&resume))??;
    if json {
        return Ok(print_json(&serde_json::json!({ "resumed": resume.selector }))?);
    }
    Ok(print("resumed\n")?)
}

pub(super) fn retry_mail(which: &Mail, json: bool, api: &Api) -> Result<(), Failure> {
    retry(which.selector()?, json, api)
}

pub(super) fn retry_message(id: MessageId, json: bool, api: &Api) -> Result<(), Failure> {
    retry(one(id), json, api)
}

fn retry(selector: Selector, json: bool, api: &Api) -> Result<(), Failure> {
    retry_each(vec![selector], json, api)
}

/// Where they are set aside.
pub(super) fn retry_aside(ids: &[MessageId], json: bool, api: &Api) -> Result<(), Failure> {
    retry_each(ids.iter().map(|id| aside(*id)).collect(), json, api)
}

fn aside(id: MessageId) -> Selector {
    Selector {
        set_aside: true,
        ..one(id)
    }
}

fn retry_each(selectors: Vec<Selector>, json: bool, api: &Api) -> Result<(), Failure> {
    let client = api.client()?;
    let (mut all, mut far) = (Progress::default(), Far::default());
    for selector in selectors {
        let mut retry = Retry {
            selector,
            after: None,
        };
        loop {
            let progress = block_on(client.retry(&retry))??;
            far.went(progress.looked);
            retry.after = add(&mut all, progress);
            if retry.after.is_none() {
                break;
            }
        }
    }
    if json {
        print_json(&all)?;
    } else {
        let text =
            "due now, beside those that were due already; what their destinations rested for is lifted";
        print(&format!("{} {text}{}\n", all.done, left_alone(&all)))?;
    }
    outcome(&all)
}

/// Who is told of a deletion.
#[derive(clap::Args)]
pub(super) struct Tell {
    /// Send a report to each sender, with this reason. Senders that asked for no reports get none.
    #[arg(long, value_name = "REASON")]
    tell: Option<String>,
}

pub(super) fn delete_mail(which: &Mail, yes: bool, tell: Tell, json: bool, api: &Api) -> Result<(), Failure> {
    delete(which.selector()?, yes, tell, json, api)
}

pub(super) fn delete_message(
    id: MessageId,
    yes: bool,
    tell: Tell,
    json: bool,
    api: &Api,
) -> Result<(), Failure> {
    delete(one(id), yes, tell, json, api)
}

fn delete(selector: Selector, yes: bool, tell: Tell, json: bool, api: &Api) -> Result<(), Failure> {
    let client = api.client()?;
    let mut delete = Delete {
        selector,
        tell: tell.tell,
        token: None,
        after: None,
    };
    let preview = preview(&client, &mut delete)?;
    if !yes {
        if json {
            return Ok(print_json(&preview)?);
        }
        let text = would_delete(&preview);
        let told = if delete.tell.is_some() {
            "senders will be told"
        } else {
            "no sender will be told"
        };
        return Ok(print(&format!(
            "{text}\nNothing is deleted yet, and {told}: add --yes to delete.\n"
        ))?);
    }
    delete.token = preview.token;
    let mut all = Progress::default();
    delete_previewed(&client, delete, &mut all)?;
    deleted(&all, json)
}

/// What would be deleted: all pages of it.
fn preview(client: &Client, delete: &mut Delete) -> Result<Preview, Failure> {
    let (mut all, mut far) = (Preview::default(), Far::default());
    loop {
        let Deletion::Preview(page) = block_on(client.delete(delete))?? else {
            return Err(anyhow::anyhow!("the relay deleted without being told to").into());
        };
        far.went(page.looked);
        all.queues += page.queues;
        all.messages += page.messages;
        all.bytes += page.bytes;
        all.shared += page.shared;
        all.looked += page.looked;
        all.token = page.token;
        delete.after = page.next;
        if delete.after.is_none() {
            return Ok(all);
        }
    }
}

/// Tells whoever waits how far a long way has come.
#[derive(Default)]
struct Far {
    looked: u64,
}

impl Far {
    fn went(&mut self, looked: u64) {
        if let Some(text) = self.next(looked) {
            eprintln!("{text}");
        }
    }

    /// A line for each [`Far::STEP`], of a page that takes it there.
    fn next(&mut self, looked: u64) -> Option<String> {
        let before = self.looked / Self::STEP;
        self.looked += looked;
        let is_far = self.looked / Self::STEP > before;
        is_far.then(|| format!("{} messages looked at so far", self.looked))
    }

    const STEP: u64 = 100_000;
}

/// Where they are set aside. No sender is told.
pub(super) fn delete_aside(ids: &[MessageId], json: bool, api: &Api) -> Result<(), Failure> {
    let client = api.client()?;
    let mut all = Progress::default();
    for &id in ids {
        let mut delete = Delete {
            selector: aside(id),
            tell: None,
            token: None,
            after: None,
        };
        delete.token = preview(&client, &mut delete)?.token;
        delete_previewed(&client, delete, &mut all)?;
    }
    deleted(&all, json)
}

fn delete_previewed(client: &Client, mut delete: Delete, all: &mut Progress) -> Result<(), Failure> {
    let mut far = Far::default();
    loop {
        match block_on(client.delete(&delete))?? {
            Deletion::Progress(progress) => {
                far.went(progress.looked);
                delete.after = add(all, progress);
            }
            Deletion::Preview(_) => {
                return Err(anyhow::anyhow!("the relay did not take its own token").into());
            }
        }
        if delete.after.is_none() {
            return Ok(());
        }
    }
}

fn deleted(all: &Progress, json: bool) -> Result<(), Failure> {
    if json {
        print_json(all)?;
    } else {
        print(&format!("{} deleted{}\n", all.done, left_alone(all)))?;
    }
    outcome(all)
}

fn would_delete(preview: &Preview) -> String {
    let text = format!(
        "{} in {}, {}",
        counted(preview.messages, "message"),
        counted(preview.queues, "queue"),
        size(preview.bytes)
    );
    text + &stays(preview.shared)
}

/// Of those left alone because others wait in them too.
fn stays(shared: u64) -> String {
    if shared == 0 {
        return String::new();
    }
    let others = "for which others wait too: `message list` with the same options shows them, `message delete` ends one for all";
    format!("; left alone: {} {others}", counted(shared, "message"))
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn add(all: &mut Progress, more: Progress) -> Option<String> {
    all.done += more.done;
    all.busy += more.busy;
    all.failed += more.failed;
    all.shared += more.shared;
    all.looked += more.looked;
    more.next
}

fn left_alone(all: &Progress) -> String {
    let mut text = String::new();
    if all.busy > 0 {
        text.push_str(&format!("; {} left alone, being on the wire", all.busy));
    }
    if all.failed > 0 {
        text.push_str(&format!("; {} failed, see the log", all.failed));
    }
    text + &stays(all.shared)
}

fn outcome(all: &Progress) -> Result<(), Failure> {
    if all.failed > 0 {
        return Err(anyhow::anyhow!("{} could not be dealt with", all.failed).into());
    }
    Ok(())
}

pub(super) fn list(which: &Mail, limit: usize, json: bool, api: &Api) -> Result<(), Failure> {
    let client = api.client()?;
    let named = which.named();
    let mut query = MessagesQuery {
        tenant: named.tenant,
        stream: named.stream,
        domain: named.domain,
        queue: named.queue,
        sender: named.sender,
        recipient: named.recipient,
        tag: named.tag,
        older_than_seconds: named.older_than_seconds,
        ..MessagesQuery::default()
    };
    let (mut messages, mut far) = (Vec::new(), Far::default());
    let next = loop {
        query.limit = Some(PAGE.min(limit - messages.len()));
        let page = block_on(client.messages(&query))??;
        messages.extend(page.messages);
        far.went(page.looked);
        query.after = page.next;
        if query.after.is_none() || messages.len() >= limit {
            break query.after;
        }
    };
    if json {
        return Ok(print_json(
            &serde_json::json!({ "messages": messages, "next": next }),
        )?);
    }
    let mut text = show_messages(&messages);
    if next.is_some() {
        text.push_str("There are more: see --limit.\n");
    }
    Ok(print(&text)?)
}

fn show_messages(messages: &[WaitingMessage]) -> String {
    if messages.is_empty() {
        return "No mail waits.\n".into();
    }
    let heads = [
        "ID",
        "TENANT",
        "STREAM",
        "SENDER",
        "RECIPIENTS",
        "SIZE",
        "ATTEMPTS",
        "NEXT DUE",
        "LAST REPLY",
    ];
    let mut rows = vec![heads.map(String::from)];
    rows.extend(messages.iter().map(|message| {
        let first = message.recipients.first();
        let recipients = match message.recipients.len() {
            0 | 1 => first.map(|first| first.recipient.clone()).unwrap_or_default(),
            more => format!("{} and {} more", message.recipients[0].recipient, more - 1),
        };
        [
            message.id.clone(),
            message.tenant.clone(),
            message.stream.clone(),
            format!("<{}>", message.sender),
            recipients,
            size(message.bytes),
            first.map_or(0, |first| first.attempts).to_string(),
            time(first.and_then(|first| first.next_due)),
            first
                .and_then(|first| first.last_reply.clone())
                .unwrap_or_default(),
        ]
    }));
    columns(&rows)
}

/// The octets as they are, to standard output.
pub(super) fn raw(id: MessageId, api: &Api) -> Result<(), Failure> {
    match block_on(api.client()?.raw(id, &mut std::io::stdout().lock()))? {
        Err(ClientError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

pub(super) fn show_queue(id: u64, json: bool, api: &Api) -> Result<(), Failure> {
    let queue = block_on(api.client()?.queue(id))??;
    if json {
        return Ok(print_json(&queue)?);
    }
    Ok(print(&queue::show_queue(&queue))?)
}

/// Of those that hold now.
pub(super) fn show_suspensions(suspensions: &[Suspension]) -> String {
    let mut rows = vec![["SUSPENDED", "SINCE", "UNTIL", "BY", "REASON"].map(String::from)];
    rows.extend(suspensions.iter().map(|suspension| {
        [
            words(&suspension.selector),
            suspension.since.to_string(),
            suspension
                .until
                .map_or("resumed".into(), |until| until.to_string()),
            suspension.by.clone(),
            suspension.reason.clone(),
        ]
    }));
    columns(&rows)
}

/// What something is held for: by whom or what, and until when.
pub(super) fn until(until: Option<Time>, cause: &str) -> String {
    match until {
        Some(until) => format!("until {until}: {cause}"),
        None => format!("until resumed: {cause}"),
    }
}

/// What mail waits for, in a few words.
pub(super) fn waits(waits: &Waits) -> String {
    let cause = waits.cause.as_deref().unwrap_or_default();
    let of_limit = |until: Time| format!("the limit {cause}, until {until}");
    let mut words = match waits.what {
        WaitsFor::Underway => "nothing: it is underway".into(),
        WaitsFor::Resume | WaitsFor::Rest => until(waits.until, cause),
        WaitsFor::Adjustment => match waits.until {
            Some(until) => format!("until {until}: {cause}"),
            None => format!("until it is ended: {cause}"),
        },
        WaitsFor::Limit => waits.until.map(of_limit).unwrap_or_default(),
        WaitsFor::Reserved => format!("its stream's part: the rest of {cause} is kept for other streams"),
        WaitsFor::Connection => "a connection: all there may be are taken".into(),
        WaitsFor::Turn => "the DNS, or its turn".into(),
    };
    if let Some(fallback) = &waits.fallback {
        words.push_str(&format!("; goes by its fallback, {fallback}"));
    }
    words
}

fn words(selector: &Selector) -> String {
    let mut words = Vec::new();
    for (name, value) in [
        ("tenant", &selector.tenant),
        ("stream", &selector.stream),
        ("domain", &selector.domain),
    ] {
        if let Some(value) = value {
            words.push(format!("{name} {value}"));
        }
    }
    words.extend(selector.queue.map(|queue| format!("queue {queue}")));
    if words.is_empty() {
        return "everything".into();
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::queue::QueueCommand;
    use super::super::{Cli, Command};
    use super::*;

    fn parsed(span: &str) -> Result<Command, clap::Error> {
        let words = [
            "postrider",
            "queue",
            "suspend",
            "--all",
            "--reason",
            "a test",
            "--for",
            span,
        ];
        Cli::try_parse_from(words).map(|cli| cli.command)
    }

    /// The relay's clock may differ from the command's.
    #[test]
    fn how_long_a_suspension_lasts_is_sent_and_no_moment() {
        for (span, expected) in [("2h", 7_200), ("1s", 1), ("1m1ms", 61)] {
            let Ok(Command::Queue(QueueCommand::Suspend {
                which,
                span: Some(span),
                reason,
                ..
            })) = parsed(span)
            else {
                panic!("{span}");
            };
            let Ok(sent) = suspension_of(&which, Some(span), reason) else {
                panic!("{span:?}");
            };
            assert_eq!((sent.until, sent.for_seconds), (None, Some(expected)), "{span:?}");
        }
        for wrong in ["0s", "999ms", "-2h", "2"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_long_way_is_told_of_now_and_then() {
        let mut far = Far::default();
        let told: Vec<_> = (0..25).filter_map(|_| far.next(10_000)).collect();
        let expected = [
            "100000 messages looked at so far",
            "200000 messages looked at so far",
        ];
        assert_eq!(told, expected);
    }
}
