//! One mail transaction.

use std::fmt::Write as _;

use super::{Extensions, Stage};
use crate::smtp::command::{date_time, utf8_as_ascii};
use crate::{
    BodyType, By, DsnOptions, Hold, Mailbox, Notify, Priority, Recipient, Reply, Ret, ReversePath, WhenLate,
};

/// Octets set aside for a command; most need no more.
const LINE: usize = 64;

/// What a transaction carries.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// MAIL FROM.
    pub reverse_path: &'a ReversePath,
    /// RCPT TO, with what was asked of reports on each; at least one.
    pub recipients: &'a [Recipient],
    /// What was asked of all reports. Peers that do not offer DSN are told nothing of it.
    pub dsn: &'a DsnOptions,
    /// What the client declared.
    pub body_type: BodyType,
    /// Some octet is above 127, whatever was declared.
    pub eight_bit: bool,
    /// Its client said SMTPUTF8, and some octet of its header is above 127.
    pub utf8_header: bool,
    /// Octets without dot-stuffing (RFC 1870 §6).
    pub size: u64,
    /// The time that is left for it (RFC 2852).
    pub by: Option<By>,
    /// How urgent it is (RFC 6710). Peers that do not offer MT-PRIORITY are told nothing of it.
    pub priority: Option<Priority>,
    /// How long the peer, which is a submission server, is to hold it (RFC 4865). A relay passes no hold on: it holds itself.
    pub hold: Option<Hold>,
}

/// RET and ENVID as they came (RFC 3461 §5.2.1).
fn mail_wishes(dsn: &DsnOptions) -> String {
    let mut wishes = String::new();
    match dsn.ret {
        Some(Ret::Full) => wishes.push_str(" RET=FULL"),
        Some(Ret::Headers) => wishes.push_str(" RET=HDRS"),
        None => {}
    }
    if let Some(envid) = &dsn.envid {
        wishes.push_str(" ENVID=");
        wishes.push_str(envid);
    }
    wishes
}

/// NOTIFY as it came (RFC 3461 §5.2.1). With DELAY where the time in which its sender wanted to hear of a delay is not over, and the
/// peer is not told of it (RFC 2852 §4.1.4.2): from here on only the peer can say that it is late.
fn notify(asked: Option<Notify>, by: Option<By>, offers: &Extensions) -> Option<Notify> {
    let is_untold = |by: By| by.late == WhenLate::Notify && by.seconds > 0 && offers.deliver_by.is_none();
    match asked {
        Some(Notify::On { success, failure, .. }) if by.is_some_and(is_untold) => Some(Notify::On {
            success,
            failure,
            delay: true,
        }),
        None if by.is_some_and(is_untold) => Some(Notify::On {
            success: false,
            failure: true,
            delay: true,
        }),
        asked => asked,
    }
}

/// NOTIFY, and ORCPT as it came (RFC 3461 §5.2.1); without SMTPUTF8 what is beyond ASCII in its 7-bit form (RFC 6533 §3).
fn rcpt_wishes(recipient: &Recipient, notify: Option<Notify>, smtputf8: bool) -> String {
    let mut wishes = String::new();
    match notify {
        Some(Notify::Never) => wishes.push_str(" NOTIFY=NEVER"),
        Some(Notify::On {
            success,
            failure,
            delay,
        }) => {
            let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
            let asked: Vec<_> = words
                .into_iter()
                .filter(|word| word.0)
                .map(|word| word.1)
                .collect();
            wishes.push_str(" NOTIFY=");
            wishes.push_str(&asked.join(","));
        }
        None => {}
    }
    if let Some(orcpt) = &recipient.orcpt {
        wishes.push_str(" ORCPT=");
        if smtputf8 {
            wishes.push_str(orcpt);
        } else {
            wishes.push_str(&utf8_as_ascii(orcpt));
        }
    }
    wishes
}

/// What became of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientResult {
    /// 2yz to the message.
    Delivered(Reply),
    /// 5yz.
    Refused(Reply, Stage),
    /// The peer lacks what the message needs; nothing was sent. The words are ours.
    Unfit(Reply),
    /// 4yz, or whatever else says nothing for good.
    Deferred(String, Stage),
    /// The final dot was sent, and its reply never came (RFC 1047).
    InDoubt(String),
}

/// What the shell does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionAction {
    /// Writes this, then goes on with [`Transaction::advance`].
    Write(Vec<u8>),
    /// Reads one reply and gives it to [`Transaction::reply`].
    Read(Stage),
    /// Writes the message, dot-stuffed, with the final dot; calls [`Transaction::body_sent`] once the last octet is out.
    /// A reply that comes before that goes to [`Transaction::reply`], and the rest of the message is not written.
    WriteBody,
    /// It is over.
    Done {
        /// The connection can take another transaction.
        usable: bool,
    },
}

/// One mail transaction (RFC 5321 §3.3), with two cursors: commands written, and commands answered.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The lines of all commands.
    lines: String,
    commands: Vec<Command>,
    written: usize,
    answered: usize,
    results: Vec<Option<RecipientResult>>,
    pipelining: bool,
    data: Data,
    /// A reply or a lost connection after which nothing more is said here.
    over: bool,
    usable: bool,
}

#[derive(Clone, Debug)]
struct Command {
    /// Where its line ends in [`Transaction::lines`].
    end: usize,
    stage: Stage,
    recipient: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    /// DATA has not been answered.
    NotYet,
    /// 354, and the message, or a lone dot, is to be written.
    GoAhead,
    /// The final dot is out.
    Sent,
    /// Nothing was, or is to be, written.
    None,
}

impl Transaction {
    /// Plans a transaction with a peer of these extensions.
    pub fn new(message: &Message<'_>, offers: &Extensions) -> Self {
        let mut transaction = Self {
            lines: String::with_capacity(LINE * (2 + message.recipients.len())),
            commands: Vec::with_capacity(2 + message.recipients.len()),
            written: 0,
            answered: 0,
            results: vec![None; message.recipients.len()],
            pipelining: offers.pipelining,
            data: Data::NotYet,
            over: false,
            usable: true,
        };
        if !offers.smtputf8 {
            transaction.leave_out_utf8(message.recipients);
        }
        if let Some(reply) = refusal_of_ours(message, offers) {
            transaction.fill(&RecipientResult::Unfit(reply));
        }
        if transaction.anyone() {
            transaction.plan(message, offers);
        } else {
            transaction.over = true;
        }
        transaction
    }

    /// Without SMTPUTF8 no address has other octets than ASCII's (RFC 6531 §3.2); the other recipients get the message.
    fn leave_out_utf8(&mut self, recipients: &[Recipient]) {
        for (result, recipient) in self.results.iter_mut().zip(recipients) {
            if result.is_none() && !recipient.mailbox.is_ascii() {
                *result = Some(RecipientResult::Unfit(needs_smtputf8("the recipient's address")));
            }
        }
    }

    fn plan(&mut self, message: &Message<'_>, offers: &Extensions) {
        // Nothing written into a string fails.
        let _ = write!(self.lines, "MAIL FROM:<{}>", message.reverse_path);
        if offers.size.is_some() {
            let _ = write!(self.lines, " SIZE={}", message.size);
        }
        if offers.eight_bit_mime && (message.eight_bit || message.body_type == BodyType::EightBitMime) {
            self.lines.push_str(" BODY=8BITMIME");
        }
        let smtputf8 = offers.smtputf8 && message.needs_smtputf8();
        if smtputf8 {
            self.lines.push_str(" SMTPUTF8");
        }
        if offers.dsn {
            self.lines.push_str(&mail_wishes(message.dsn));
        }
        if let Some(by) = message.by.filter(|_| offers.deliver_by.is_some()) {
            let _ = write!(self.lines, " BY={by}");
        }
        if let Some(priority) = message.priority.filter(|_| offers.mt_priority) {
            let _ = write!(self.lines, " MT-PRIORITY={priority}");
        }
        match message.hold {
            Some(Hold::For(span)) => {
                let _ = write!(self.lines, " HOLDFOR={}", span.as_secs());
            }
            Some(Hold::Until(at)) => {
                let _ = write!(self.lines, " HOLDUNTIL={}", date_time(at));
            }
            None => {}
        }
        self.end_command(Stage::Mail, 0);
        for (number, recipient) in message.recipients.iter().enumerate() {
            if self.results[number].is_some() {
                continue;
            }
            let _ = write!(self.lines, "RCPT TO:<{}>", recipient.mailbox);
            if offers.dsn {
                let notify = notify(recipient.notify, message.by, offers);
                self.lines.push_str(&rcpt_wishes(recipient, notify, smtputf8));
            }
            self.end_command(Stage::Rcpt, number);
        }
        self.lines.push_str("DATA");
        self.end_command(Stage::Data, 0);
    }

    fn end_command(&mut self, stage: Stage, recipient: usize) {
        self.lines.push_str("\r\n");
        self.commands.push(Command {
            end: self.lines.len(),
            stage,
            recipient,
        });
    }

    /// What comes next.
    pub fn advance(&mut self) -> TransactionAction {
        if self.over {
            return TransactionAction::Done { usable: self.usable };
        }
        if self.answered == self.written && self.data == Data::NotYet {
            let line = self.write_commands();
            if !line.is_empty() {
                return TransactionAction::Write(line);
            }
        }
        if self.answered < self.written {
            return TransactionAction::Read(self.commands[self.answered].stage);
        }
        match self.data {
            Data::GoAhead if self.anyone() => TransactionAction::WriteBody,
            // Nobody is left to send to: a lone dot ends it (RFC 2920 §3.1).
            Data::GoAhead => {
                self.data = Data::Sent;
                TransactionAction::Write(b".\r\n".to_vec())
            }
            Data::Sent => TransactionAction::Read(Stage::FinalDot),
            // Refused before DATA: RSET leaves the connection clean.
            Data::None | Data::NotYet => self.reset(),
        }
    }

    /// All at once to a peer that takes it, else one; nothing more once it is of no use.
    fn write_commands(&mut self) -> Vec<u8> {
        let begin = self.end_of(self.written);
        while self.written < self.commands.len() {
            if self.answered == self.written && self.answered > 0 && !self.anyone() {
                self.data = Data::None;
                break;
            }
            self.written += 1;
            if !self.pipelining {
                break;
            }
        }
        self.lines.as_bytes()[begin..self.end_of(self.written)].to_vec()
    }

    /// Where the first so many commands end.
    fn end_of(&self, commands: usize) -> usize {
        let last = commands.checked_sub(1).and_then(|last| self.commands.get(last));
        last.map_or(0, |command| command.end)
    }

    fn reset(&mut self) -> TransactionAction {
        self.data = Data::None;
        self.commands.truncate(self.written);
        self.lines.truncate(self.end_of(self.written));
        self.lines.push_str("RSET");
        self.end_command(Stage::Rset, 0);
        self.written += 1;
        TransactionAction::Write(b"RSET\r\n".to_vec())
    }

    /// Some recipient has been accepted, or may be yet.
    fn anyone(&self) -> bool {
        self.results.iter().any(Option::is_none)
    }

    /// The message is what comes next, and none of it has been written.
    pub fn is_at_body(&self) -> bool {
        self.data == Data::GoAhead && self.anyone()
    }

    /// The final dot is out: from here on the peer may have the message.
    pub fn body_sent(&mut self) {
        self.data = Data::Sent;
    }

    /// A reply has come.
    pub fn reply(&mut self, reply: Reply) {
        if reply.code == 421 {
            return self.closing(&reply);
        }
        if self.answered == self.written {
            return self.final_reply(reply);
        }
        let Command { stage, recipient, .. } = self.commands[self.answered];
        self.answered += 1;
        match (stage, reply.code / 100) {
            (Stage::Mail | Stage::Rcpt, 2) => {}
            // Only DATA has such an answer: the peer counts differently.
            (stage @ (Stage::Mail | Stage::Rcpt), 3) | (stage @ Stage::Data, 2) => {
                self.out_of_step(&deferred(&reply, stage));
            }
            (Stage::Mail, _) => self.fill(&refused(reply, Stage::Mail)),
            (Stage::Rcpt, _) => {
                let result = if self.is_too_many(&reply, recipient) {
                    deferred(&reply, Stage::Rcpt)
                } else {
                    refused(reply, Stage::Rcpt)
                };
                self.results[recipient].get_or_insert(result);
            }
            // By its class, as all others (RFC 5321 §4.3.2).
            (Stage::Data, 3) => self.data = Data::GoAhead,
            (Stage::Data, 4 | 5) => {
                self.fill(&refused(reply, Stage::Data));
                self.data = Data::None;
            }
            (Stage::Rset, 2) => self.over = true,
            (stage, _) => {
                self.fill(&deferred(&reply, stage));
                self.lose();
            }
        }
    }

    /// 552 for too many recipients means 452 (RFC 5321 §4.5.3.1.10). A full mailbox says 552 too, with 5.2.2; where there is
    /// no enhanced code, only one that follows an accepted recipient can mean their number.
    fn is_too_many(&self, reply: &Reply, recipient: usize) -> bool {
        reply.code == 552
            && match reply.enhanced {
                Some(code) => (code.1, code.2) == (5, 3),
                None => self.results.iter().take(recipient).any(Option::is_none),
            }
    }

    /// The reply to the message. One that comes before the final dot ends the connection too: the rest of the message would
    /// be taken for commands.
    fn final_reply(&mut self, reply: Reply) {
        let whole = self.data == Data::Sent;
        self.usable &= whole;
        match reply.code / 100 {
            2 if whole => self.fill(&RecipientResult::Delivered(reply)),
            4 | 5 => self.fill(&refused(reply, Stage::FinalDot)),
            2 | 3 if !whole => self.out_of_step(&deferred(&reply, Stage::FinalDot)),
            _ => {
                self.fill(&deferred(&reply, Stage::FinalDot));
                self.usable = false;
            }
        }
        self.over = true;
    }

    /// 421 at any point: the peer hangs up. It says nothing for good, and is a reply: nothing is in doubt.
    fn closing(&mut self, reply: &Reply) {
        let stage = self.stage();
        self.fill(&deferred(reply, stage));
        self.lose();
    }

    /// What was answered to which command nobody knows: a recipient refused for good may have been another one.
    fn out_of_step(&mut self, result: &RecipientResult) {
        for refused in self.results.iter_mut().flatten() {
            if let RecipientResult::Refused(reply, stage) = refused {
                *refused = deferred(reply, *stage);
            }
        }
        self.fill(result);
        self.lose();
    }

    /// A reply has come that no command is waiting for.
    pub fn unasked(&mut self, why: &str) {
        let stage = self.stage();
        let result = RecipientResult::Deferred(format!("{why} at {}", stage.name()), stage);
        self.out_of_step(&result);
    }

    /// The connection broke, fell silent for too long, or sent what is no reply.
    pub fn lost(&mut self, why: &str) {
        // Once the final dot may be out, the peer may have the message.
        let result = match self.data {
            Data::Sent if self.anyone() => RecipientResult::InDoubt(format!("{why} after the final dot")),
            _ => RecipientResult::Deferred(format!("{why} at {}", self.stage().name()), self.stage()),
        };
        self.fill(&result);
        self.lose();
    }

    fn lose(&mut self) {
        self.over = true;
        self.usable = false;
    }

    fn stage(&self) -> Stage {
        match self.data {
            Data::GoAhead | Data::Sent => Stage::FinalDot,
            Data::NotYet | Data::None => self
                .commands
                .get(self.answered)
                .map_or(Stage::Data, |command| command.stage),
        }
    }

    /// Gives every recipient that has no result yet this one.
    fn fill(&mut self, result: &RecipientResult) {
        for open in self.results.iter_mut().filter(|result| result.is_none()) {
            *open = Some(result.clone());
        }
    }

    /// What became of each recipient, in order. Whoever has no result was not sent to.
    pub fn results(self) -> Vec<RecipientResult> {
        let unsent = || RecipientResult::Deferred("the transaction was given up".into(), Stage::Mail);
        self.results
            .into_iter()
            .map(|result| result.unwrap_or_else(unsent))
            .collect()
    }
}

impl Message<'_> {
    /// RFC 6531 §3.4: said only where something needs it, so that other mail goes to hosts that do not know it.
    fn needs_smtputf8(&self) -> bool {
        let mut recipients = self.recipients.iter();
        self.utf8_header
            || !is_ascii(self.reverse_path)
            || recipients.any(|recipient| !recipient.mailbox.is_ascii())
    }
}

fn is_ascii(path: &ReversePath) -> bool {
    path.mailbox().is_none_or(Mailbox::is_ascii)
}

/// RFC 6531 §3.2.
fn needs_smtputf8(what: &str) -> Reply {
    let text = format!("{what} needs SMTPUTF8, and the host does not offer it");
    Reply::new(553, 6, 7, "").with_text(text)
}

/// What the peer lacks for this message, found before a word is said.
fn refusal_of_ours(message: &Message<'_>, offers: &Extensions) -> Option<Reply> {
    if let Some(Some(most)) = offers.size
        && message.size > most
    {
        let text = format!("the message has {} octets, the host takes {most}", message.size);
        return Some(Reply::new(552, 3, 4, "").with_text(text));
    }
    if let Some(reply) = message.by.and_then(|by| is_late(by, offers)) {
        return Some(reply);
    }
    if let Some(reply) = message.hold.and_then(|hold| is_not_held(hold, offers)) {
        return Some(reply);
    }
    if !offers.smtputf8 && !is_ascii(message.reverse_path) {
        return Some(needs_smtputf8("the sender's address"));
    }
    if !offers.smtputf8 && message.utf8_header {
        // RFC 6531's registration: 5.6.9, where the header is what can't be sent.
        return Some(Reply::new(
            554,
            6,
            9,
            "the message's header needs SMTPUTF8, and the host does not offer it",
        ));
    }
    if message.eight_bit && !offers.eight_bit_mime {
        return Some(Reply::new(
            554,
            6,
            3,
            "the message is 8-bit, and the host takes 7-bit only",
        ));
    }
    None
}

/// RFC 4865 §4.1: a hold is asked only of a server that offers it, and within what the server says.
fn is_not_held(hold: Hold, offers: &Extensions) -> Option<Reply> {
    let Some(most) = offers.future_release else {
        let text = "the message is to be held, and the host does not offer FUTURERELEASE";
        return Some(Reply::new(554, 5, 4, text));
    };
    if most.allows(hold) {
        return None;
    }
    let bound = match hold {
        Hold::For(_) => format!("for {} s at the most", most.interval.as_secs()),
        Hold::Until(_) => format!("until {} at the latest", date_time(most.until)),
    };
    Some(Reply::new(554, 5, 4, "").with_text(format!("the host holds mail {bound}")))
}

/// RFC 2852 §4.1.4.1: what is to be returned if it is late goes to no host that does not promise to do so in the time that is left.
fn is_late(by: By, offers: &Extensions) -> Option<Reply> {
    let late = |text: String| Some(Reply::new(554, 4, 7, "").with_text(text));
    match offers.deliver_by {
        _ if by.late == WhenLate::Notify => None,
        _ if by.seconds <= 0 => late("the time in which the message was to be delivered is over".into()),
        None => late("the message is to be delivered in time, and the host does not offer DELIVERBY".into()),
        Some(least) if i64::from(by.seconds) < i64::from(least) => late(format!(
            "the message is to be delivered in {} s, and the host needs {least} s",
            by.seconds
        )),
        Some(_) => None,
    }
}

/// 5yz is for good; everything else that is no success is not (RFC 5321 §4.2.1).
fn refused(reply: Reply, stage: Stage) -> RecipientResult {
    if reply.is_permanent() {
        RecipientResult::Refused(reply, stage)
    } else {
        deferred(&reply, stage)
    }
}

fn deferred(reply: &Reply, stage: Stage) -> RecipientResult {
    RecipientResult::Deferred(reply.to_string(), stage)
}

#[cfg(test)]
mod tests;
