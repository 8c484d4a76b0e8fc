//! `postrider lab --demo`: a dozen messages, and what became of each, looked at from three sides: the relay's journal, the
//! receivers' mailboxes with their verdicts, and the queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lab::{Entry, Mailboxes};
use mail_core::smtp::client::RecipientResult;
use mail_core::smtp::command::Secret;
use mail_core::{MessageId, Recipient, ReversePath};
use queue::{Event, EventKind, Queue};
use rustls_pki_types::ServerName;
use tokio::time::sleep;

use crate::mail_client::{Client, Security, Server, queue_id};

use super::Laboratory;
use super::judge::{Arrival, Fate, is_report, problem, signed, word};
use super::messages::{self, Expected, Planned};
use super::table::table;

/// All has ended long before on any machine that is worth running it on.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Events read at a time.
const PAGE: usize = 1_000;
/// Characters of a reply that the table shows.
const REPLY: usize = 60;

/// Runs it, and prints. True: all went as it should.
pub(super) async fn run(laboratory: &Laboratory) -> anyhow::Result<bool> {
    let queue = laboratory.relay.queue();
    let sender = &laboratory.access.sender;
    let earlier_reports = reports(&laboratory.lab.mailboxes, &sender.to_string()).len();
    let now = jiff::Timestamp::now();
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_string(&now)?;
    let messages = messages::all(sender, &now.as_millisecond().to_string(), &date)?;

    let submission = laboratory
        .listener("submission")
        .context("no submission listener")?;
    println!(
        "A dozen messages by STARTTLS and AUTH to {submission}, on to mail servers found through {}:\n",
        laboratory.lab.dns
    );
    let started = Instant::now();
    let (messages, ids) = submit(laboratory, messages).await?;
    let handed_over = started.elapsed();

    let mut journal = Journal::default();
    let in_time = loop {
        journal.read_on(queue)?;
        if is_over(queue, &journal, &messages, &ids)? {
            break true;
        }
        if started.elapsed() > PATIENCE {
            break false;
        }
        sleep(LOOK_EVERY).await;
    };

    let mut wrong = Vec::new();
    if !in_time {
        wrong.push(format!("not all had ended after {} s", PATIENCE.as_secs()));
    }
    let mailboxes = &laboratory.lab.mailboxes;
    let mut rows = Vec::new();
    for (message, id) in messages.iter().zip(&ids) {
        let is_queued = queue
            .message(*id)?
            .is_some_and(|message| !message.units.is_empty());
        for (at, (recipient, expected)) in message.recipients.iter().enumerate() {
            let recipient = recipient.to_string();
            let fate = journal.fate(*id, &recipient);
            let arrivals = arrivals(mailboxes, &recipient, &message.raw)?;
            let problem = problem(*expected, &fate, is_queued, &arrivals, message).err();
            rows.push(row(
                if at == 0 { message.title } else { "" },
                &recipient,
                &fate,
                &arrivals,
                problem.is_none(),
            ));
            wrong.extend(problem.map(|problem| format!("{}, {recipient}: {problem}", message.title)));
        }
    }
    println!("{}", table(HEAD, &rows, REPLY));

    let mut reports = reports(mailboxes, &sender.to_string()).split_off(earlier_reports);
    match (reports.pop(), reports.len()) {
        (Some((n, entry)), 0) => {
            let raw = mailboxes
                .raw(&sender.to_string(), n)?
                .context("the report's octets")?;
            println!("The failure report, as {sender} has it:\n");
            println!("{}", String::from_utf8_lossy(&raw).replace('\r', ""));
            if let Err(problem) = signed(&entry).and_then(|()| is_report(&raw, "nobody@reject.test", "5.1.1"))
            {
                wrong.push(format!("the failure report: {problem}"));
            }
        }
        (None, _) => wrong.push("no failure report came to the sender".into()),
        (Some(_), more) => wrong.push(format!(
            "{} failure reports came to the sender, not one",
            more + 1
        )),
    }

    if wrong.is_empty() {
        println!(
            "{} messages to {} recipients, kept within {:.1} s, all ended as they should within {:.1} s: signed with RSA and\n\
             Ed25519, verified by their receivers, unchanged below the added fields. One was reported as failed, one came twice\n\
             because its first reply was lost; the one for dead.test waits in the queue.",
            messages.len(),
            rows.len(),
            handed_over.as_secs_f64(),
            started.elapsed().as_secs_f64(),
        );
    } else {
        println!("Not as it should be:");
        wrong.iter().for_each(|problem| println!("  {problem}"));
    }
    Ok(wrong.is_empty())
}

/// Hands all over on one connection; returns the ids that the relay answered.
async fn submit(
    laboratory: &Laboratory,
    messages: Vec<Planned>,
) -> anyhow::Result<(Vec<Planned>, Vec<MessageId>)> {
    let access = &laboratory.access;
    let submission = laboratory
        .listener("submission")
        .context("no submission listener")?;
    let (ca, sender) = (laboratory.lab.ca.file().to_owned(), access.sender.clone());
    let (username, password) = (access.username, access.password.clone());
    let handed_over = tokio::task::spawn_blocking(move || {
        let server = Server {
            addresses: vec![submission],
            name: ServerName::IpAddress(submission.ip().into()),
            security: Security::StartTls,
            ca: Some(&ca),
            login: Some((username.to_owned(), Secret::new(password.as_bytes().to_vec()))),
        };
        let mut client = Client::open(&server, "demo.sender.test".parse()?)?;
        let from = ReversePath::Mailbox(sender);
        let mut ids = Vec::with_capacity(messages.len());
        for message in &messages {
            let recipients: Vec<_> = message
                .recipients
                .iter()
                .map(|(to, _)| Recipient::new(to.clone()))
                .collect();
            let results = client
                .send(&from, &recipients, &message.raw, None)
                .context(message.title)?;
            ids.push(id_of(&results).context(message.title)?);
        }
        anyhow::Ok((messages, ids))
    });
    handed_over.await?
}

/// The id of a message that was taken for all its recipients.
fn id_of(results: &[RecipientResult]) -> anyhow::Result<MessageId> {
    let mut id = None;
    for result in results {
        match result {
            RecipientResult::Delivered(reply) => {
                id = Some(queue_id(reply).with_context(|| format!("no queue id in {reply}"))?);
            }
            other => bail!("{other:?}"),
        }
    }
    id.context("a message for nobody")
}

/// Whether nothing more will happen but tries for a host that is not there.
fn is_over(
    queue: &Queue,
    journal: &Journal,
    messages: &[Planned],
    ids: &[MessageId],
) -> anyhow::Result<bool> {
    for (message, id) in messages.iter().zip(ids) {
        for (recipient, expected) in &message.recipients {
            let fate = journal.fate(*id, &recipient.to_string());
            let is_there = match expected {
                Expected::Delivered | Expected::InClear | Expected::Twice | Expected::Bounced => {
                    fate.ended.is_some()
                }
                Expected::Waiting => fate.rests.is_some(),
            };
            if !is_there {
                return Ok(false);
            }
        }
    }
    // The report too has left the queue, and anything that should not be there.
    let waiting = messages.iter().flat_map(|message| &message.recipients);
    let waiting: Vec<_> = waiting
        .filter(|(_, expected)| *expected == Expected::Waiting)
        .collect();
    let queues = queue.queues(None, PAGE)?;
    Ok(queues.iter().all(|(_, queue)| {
        queue.count == 0
            || waiting
                .iter()
                .any(|(recipient, _)| *recipient.domain() == queue.name.domain)
    }))
}

/// What the relay wrote down.
#[derive(Default)]
struct Journal {
    next: u64,
    accepted: HashMap<MessageId, Event>,
    by_recipient: HashMap<(MessageId, String), Vec<Event>>,
    /// Destinations that rest as a whole.
    rests: Vec<Event>,
}

impl Journal {
    fn read_on(&mut self, queue: &Queue) -> anyhow::Result<()> {
        loop {
            let page = queue.events(self.next, PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            self.next = last + 1;
            for (_, event) in page {
                match (event.id, event.kind) {
                    (Some(id), EventKind::Accepted) => {
                        self.accepted.insert(id, event);
                    }
                    (Some(id), _) => {
                        for recipient in &event.recipients {
                            let of = self.by_recipient.entry((id, recipient.clone())).or_default();
                            of.push(event.clone());
                        }
                    }
                    (None, EventKind::Deferred) => self.rests.push(event),
                    (None, _) => {}
                }
            }
        }
    }

    fn fate(&self, id: MessageId, recipient: &str) -> Fate<'_> {
        let events = self
            .by_recipient
            .get(&(id, recipient.to_owned()))
            .map_or(&[][..], Vec::as_slice);
        let is_end = |event: &&Event| !matches!(event.kind, EventKind::Deferred | EventKind::InDoubt);
        let ended = events.iter().find(is_end);
        let accepted = self.accepted.get(&id);
        let domain = recipient.rsplit_once('@').map_or("", |(_, domain)| domain);
        // It may rest since an earlier run.
        let rests = self.rests.iter().rev().find(|event| event.reply.contains(domain));
        Fate {
            ended,
            rests: rests.filter(|_| ended.is_none()),
            attempts: events.iter().map(|event| event.attempt).max().unwrap_or(0),
            after: ended
                .zip(accepted)
                .map(|(end, accepted)| end.at.since(accepted.at)),
        }
    }
}

fn arrivals(mailboxes: &Mailboxes, address: &str, sent: &[u8]) -> anyhow::Result<Vec<Arrival>> {
    let mut found = Vec::new();
    for (n, entry) in mailboxes
        .entries(address)
        .unwrap_or_default()
        .into_iter()
        .enumerate()
    {
        let mut raw = mailboxes.raw(address, n)?.unwrap_or_default();
        if raw.ends_with(sent) {
            raw.truncate(raw.len() - sent.len());
            found.push(Arrival { entry, added: raw });
        }
    }
    Ok(found)
}

/// The sender's failure reports, with their numbers.
fn reports(mailboxes: &Mailboxes, sender: &str) -> Vec<(usize, Arc<Entry>)> {
    let all = mailboxes
        .entries(sender)
        .unwrap_or_default()
        .into_iter()
        .enumerate();
    all.filter(|(_, entry)| entry.mail_from.is_empty()).collect()
}

const HEAD: [&str; 11] = [
    "",
    "message",
    "recipient",
    "became",
    "tries",
    "after",
    "DKIM",
    "SPF",
    "DMARC",
    "TLS",
    "reply",
];

fn row(title: &str, recipient: &str, fate: &Fate<'_>, arrivals: &[Arrival], is_right: bool) -> [String; 11] {
    let became = match (fate.ended, fate.rests) {
        (Some(event), _) => word(event.kind),
        (None, Some(_)) => "waits",
        (None, None) => "?",
    };
    let reply = match (fate.ended, fate.rests) {
        (Some(event), _) => event.reply.as_str(),
        // Its destination's name comes first.
        (None, Some(event)) => event.reply.split_once(": ").map_or("", |(_, cause)| cause),
        (None, None) => "",
    };
    let verdicts = arrivals
        .first()
        .and_then(|arrival| arrival.entry.verdicts.as_ref());
    let dkim = verdicts.map(|verdicts| {
        let results = verdicts.dkim.iter().map(|verdict| verdict.result.to_string());
        results.collect::<Vec<_>>().join(" ")
    });
    let tls = arrivals.first().map(|arrival| match &arrival.entry.tls {
        // As in "TLSv1_3 TLS13_AES_256_GCM_SHA384".
        Some(tls) => tls
            .split(' ')
            .next()
            .unwrap_or_default()
            .trim_start_matches("TLSv")
            .replace('_', "."),
        None => "none".into(),
    });
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    [
        if is_right { "✓" } else { "✗" }.into(),
        title.into(),
        recipient.into(),
        became.into(),
        if fate.attempts > 0 {
            fate.attempts.to_string()
        } else {
            String::new()
        },
        or_dash(fate.after.map(|after| format!("{:.2} s", after.as_secs_f64()))),
        or_dash(dkim),
        or_dash(verdicts.map(|verdicts| verdicts.spf.result.to_string())),
        or_dash(verdicts.map(|verdicts| verdicts.dmarc.result.to_string())),
        or_dash(tls),
        reply.replace(['\r', '\n'], " "),
    ]
}
