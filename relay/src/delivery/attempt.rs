//! One attempt at one unit over one connection: as many transactions as its recipients need, and limits allow.
//!
//! What limits leave over is the attempt's next part, over this connection or another: none of its recipients is asked about twice in
//! one attempt, so that it comes to an end.

use bytes::Bytes;
use mail_core::smtp::client::{Message, RecipientResult, Stage};
use mail_core::{BodyType, DsnOptions, EnhancedCode, Recipient, ReversePath, Timestamp, TransferOptions};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::prepare::Reader;
use crate::report::Cause;

use super::connection::Connection;
use super::settle::{Outcome, Verdict};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// What the client declared.
    pub body_type: BodyType,
    /// Header fields of ours: signatures, Received and what was missing.
    pub head: Bytes,
    /// The message as the client sent it, or the beginning of it where there is a `rest`.
    pub body: Bytes,
    /// What follows `body` of a large message.
    pub rest: Option<Reader>,
    /// Some octet is above 127.
    pub eight_bit: bool,
    /// The client said SMTPUTF8, and some octet of the header is above 127.
    pub utf8_header: bool,
    /// What was asked of reports.
    pub dsn: DsnOptions,
    /// What was asked of the way it takes.
    pub transfer: TransferOptions,
    /// At least one.
    pub recipients: Vec<OpenRecipient>,
}

/// A recipient that has not ended.
#[derive(Clone, Debug)]
pub struct OpenRecipient {
    /// Its index in the unit.
    pub index: u16,
    /// Who, and what was asked of reports.
    pub to: Recipient,
    /// What was said of it last.
    pub last_reply: Option<String>,
}

impl Load {
    /// Takes out those that the attempt has tried before, as long as there are others: what was said of those is not known any more, or
    /// nothing was.
    pub fn take_tried(&mut self) -> Vec<OpenRecipient> {
        let is_tried = |open: &OpenRecipient| open.last_reply.is_some();
        // Mostly nobody.
        if self.recipients.iter().all(is_tried) || !self.recipients.iter().any(is_tried) {
            return Vec::new();
        }
        let (tried, untried) = std::mem::take(&mut self.recipients)
            .into_iter()
            .partition(is_tried);
        self.recipients = untried;
        tried
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Attempt {
    /// One for each recipient that was to be asked about.
    pub outcomes: Vec<Outcome>,
    /// Of each outcome, the stage at which it was decided.
    pub stages: Vec<Stage>,
    /// Those whose turn did not come.
    pub untried: Vec<OpenRecipient>,
    /// Why not, if any are.
    pub cut: Option<Cut>,
    /// Transactions that were begun.
    pub transactions: u32,
    /// Those of them in which the host took the message.
    pub through: u32,
    /// The host took part: whatever was refused was refused for the unit's own sake.
    pub works: bool,
    /// The connection had gone before a word was said: nothing was attempted, and another connection may do at once.
    pub stale: bool,
}

/// What kept an attempt from a further transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The connection is of no more use, or has had as many as the peer takes over one.
    Connection,
    /// There was time for a whole transaction.
    Time,
    /// A limit of ours.
    Limit,
}

impl Cut {
    /// What is said of those whose turn did not come.
    fn why(self) -> &'static str {
        match self {
            Self::Connection => "the connection ended before this recipient's turn",
            Self::Time => "this host's time was up before this recipient's turn",
            Self::Limit => "a limit was reached before this recipient's turn",
        }
    }
}

impl Attempt {
    /// Whether it goes on with those whose turn did not come as soon as it may: some recipient has ended, or it is we who stopped. Where
    /// it does not, a host that takes nothing is not asked for each of them.
    pub fn goes_on(&self) -> bool {
        let is_end = |outcome: &Outcome| !matches!(outcome.verdict, Verdict::Later | Verdict::InDoubt);
        self.cut == Some(Cut::Limit) || self.outcomes.iter().any(is_end)
    }

    /// Gives up those whose turn did not come: they are the first of the next attempt.
    pub fn give_up(&mut self, host: &str) {
        let Some(cut) = self.cut.take() else { return };
        let untried = std::mem::take(&mut self.untried);
        let given_up = |open| {
            outcome(
                host,
                open,
                RecipientResult::Deferred(cut.why().into(), Stage::Rcpt),
            )
        };
        self.stages
            .splice(0..0, std::iter::repeat_n(Stage::Rcpt, untried.len()));
        self.outcomes.splice(0..0, untried.iter().map(given_up));
    }
}

/// Sends the load to its recipients. Those that a host found too many for one transaction get the next one at once, as
/// long as each takes some (RFC 5321 §4.5.3.1.10). No transaction is begun once there was time for a whole one: a peer that takes
/// few recipients at a time, and its time for each, would hold the unit for days.
/// `may_go_on`: whether limits allow one more transaction, of which it is told how many there were.
/// `now` tells the peer how much time is left, where there is a time.
pub async fn run<S>(
    connection: &mut Connection<S>,
    load: &Load,
    recipients_per_transaction: usize,
    mut may_go_on: impl AsyncFnMut(u32) -> bool,
    now: Timestamp,
) -> Attempt
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let most = recipients_per_transaction
        .min(connection.rcpt_max().unwrap_or(usize::MAX))
        .max(1);
    let mut waiting: Vec<&OpenRecipient> = load.recipients.iter().collect();
    let mut attempt = Attempt {
        outcomes: Vec::with_capacity(waiting.len()),
        stages: Vec::with_capacity(waiting.len()),
        ..Attempt::default()
    };
    let until = Instant::now() + connection.longest_transaction();
    while !waiting.is_empty() {
        if attempt.transactions > 0 {
            attempt.cut = if !connection.is_usable() {
                Some(Cut::Connection)
            } else if Instant::now() >= until {
                Some(Cut::Time)
            } else if !may_go_on(attempt.transactions).await {
                Some(Cut::Limit)
            } else {
                None
            };
            if attempt.cut.is_some() {
                attempt.untried = waiting.into_iter().cloned().collect();
                break;
            }
        }
        let these: Vec<_> = waiting.drain(..most.min(waiting.len())).collect();
        let results = transact(connection, load, &these, now).await;
        if connection.is_stale() && attempt.outcomes.is_empty() {
            attempt.stale = true;
            return attempt;
        }
        attempt.transactions += 1;
        attempt.works |= connection.is_usable() || results.iter().any(is_final);
        let some_taken = results
            .iter()
            .any(|result| matches!(result, RecipientResult::Delivered(_)));
        attempt.through += u32::from(some_taken);
        for (open, result) in these.into_iter().zip(results) {
            if some_taken && connection.is_usable() && is_too_many(&result) {
                waiting.push(open);
            } else {
                attempt.stages.push(stage(&result));
                attempt.outcomes.push(outcome(connection.host(), open, result));
            }
        }
    }
    attempt
}

async fn transact<S>(
    connection: &mut Connection<S>,
    load: &Load,
    to: &[&OpenRecipient],
    now: Timestamp,
) -> Vec<RecipientResult>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let recipients: Vec<_> = to.iter().map(|open| open.to.clone()).collect();
    let message = Message {
        reverse_path: &load.reverse_path,
        recipients: &recipients,
        dsn: &load.dsn,
        body_type: load.body_type,
        eight_bit: load.eight_bit,
        utf8_header: load.utf8_header,
        size: (load.head.len() + load.body.len()) as u64 + load.rest.as_ref().map_or(0, Reader::bytes),
        by: load.transfer.by.map(|by| by.left(now)),
        // RFC 6710 §4.2: 0, too, is said to those who ask.
        priority: Some(load.transfer.priority.unwrap_or_default()),
        hold: None,
    };
    let rest = load.rest.as_ref();
    connection.send(&message, &[&load.head, &load.body], rest).await
}

fn stage(result: &RecipientResult) -> Stage {
    match result {
        RecipientResult::Refused(_, stage) | RecipientResult::Deferred(_, stage) => *stage,
        // Before anything was said.
        RecipientResult::Unfit(_) => Stage::Mail,
        RecipientResult::Delivered(_) | RecipientResult::InDoubt(_) => Stage::FinalDot,
    }
}

fn is_final(result: &RecipientResult) -> bool {
    matches!(
        result,
        RecipientResult::Delivered(_) | RecipientResult::Refused(..)
    )
}

fn is_too_many(result: &RecipientResult) -> bool {
    matches!(result, RecipientResult::Deferred(reply, Stage::Rcpt) if reply.starts_with("452") || reply.starts_with("552"))
}

fn outcome(host: &str, open: &OpenRecipient, result: RecipientResult) -> Outcome {
    let (verdict, reply) = match result {
        RecipientResult::Delivered(reply) => (Verdict::Delivered, reply.to_string()),
        RecipientResult::Refused(reply, _) => {
            let words = reply.to_string();
            (Verdict::Failed(Cause::Refused(reply)), words)
        }
        RecipientResult::Unfit(reply) => {
            let words = reply.to_string();
            let code = reply.enhanced.unwrap_or(EnhancedCode(5, 0, 0));
            (
                Verdict::Failed(Cause::Undeliverable(code, reply.text.into_owned())),
                words,
            )
        }
        RecipientResult::Deferred(words, _) => (Verdict::Later, words),
        RecipientResult::InDoubt(words) => (Verdict::InDoubt, words),
    };
    Outcome {
        recipient: open.index,
        mailbox: open.to.mailbox.clone(),
        verdict,
        reply,
        host: Some(host.to_owned()),
        class: None,
    }
}
