//! The sending side of SMTP as values: greeting and extensions ([`Hello`]), then one mail transaction after another
//! ([`Transaction`]). The shell writes what they say and tells them what was answered.

use std::time::Duration;

mod sasl;

use sasl::{Exchange, Turn};
pub use sasl::{Login, Mechanisms, ScramProof, ScramTask};

use crate::smtp::command::{Secret, utf8_as_ascii};
use crate::{BodyType, Domain, DsnOptions, Mailbox, Notify, Recipient, Reply, Ret, ReversePath};

/// What is being waited for; its longest wait is the shell's to choose (RFC 5321 §4.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the commands' own names")]
pub enum Stage {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    FinalDot,
    Rset,
    Quit,
}

impl Stage {
    /// The word for it in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greeting => "the connection",
            Self::Ehlo => "EHLO",
            Self::Helo => "HELO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::FinalDot => "the message",
            Self::Rset => "RSET",
            Self::Quit => "QUIT",
        }
    }

    /// RFC 5321 §4.5.3.2: what a client should bear at the least.
    pub fn least_patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Data => 120,
            Self::FinalDot => 600,
            _ => 300,
        })
    }
}

/// What a peer offered at EHLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 1870; `Some(None)` offers it without a limit.
    pub size: Option<Option<u64>>,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 4954.
    pub auth: Mechanisms,
    /// RFC 9422: recipients a transaction.
    pub rcpt_max: Option<usize>,
    /// RFC 9422: transactions a connection.
    pub mail_max: Option<u32>,
}

impl Extensions {
    /// Reads the lines of a reply to EHLO, the first of which is the peer's name.
    pub fn parse(reply: &Reply) -> Self {
        let mut offers = Self::default();
        for line in reply.text.split('\n').skip(1) {
            let mut words = line.split_ascii_whitespace();
            let Some(keyword) = words.next() else { continue };
            match keyword.to_ascii_uppercase().as_str() {
                "PIPELINING" => offers.pipelining = true,
                "8BITMIME" => offers.eight_bit_mime = true,
                "SMTPUTF8" => offers.smtputf8 = true,
                "STARTTLS" => offers.starttls = true,
                "DSN" => offers.dsn = true,
                "AUTH" => words.for_each(|mechanism| offers.auth.note(mechanism)),
                // 0, like nothing at all or what is no number, is no limit (RFC 1870 §4).
                "SIZE" => {
                    offers.size = Some(
                        words
                            .next()
                            .and_then(|size| size.parse().ok())
                            .filter(|&size| size > 0),
                    )
                }
                "LIMITS" => words.for_each(|limit| offers.obey(limit)),
                _ => {}
            }
        }
        offers
    }

    fn obey(&mut self, limit: &str) {
        let Some((name, value)) = limit.split_once('=') else {
            return;
        };
        match name.to_ascii_uppercase().as_str() {
            "RCPTMAX" => self.rcpt_max = value.parse().ok().filter(|&most| most > 0),
            "MAILMAX" => self.mail_max = value.parse().ok().filter(|&most| most > 0),
            _ => {}
        }
    }
}

/// How much TLS is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsWish {
    /// None.
    Never,
    /// If the peer offers it.
    IfOffered,
    /// Nothing is sent without.
    Required,
}

/// From the greeting to the moment mail can be sent.
#[derive(Clone, Debug)]
pub struct Hello {
    name: Domain,
    wish: TlsWish,
    encrypted: bool,
    login: Option<Login>,
    exchange: Option<Exchange>,
    state: HelloState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HelloState {
    Greeting,
    Ehlo,
    Helo,
    StartTls(Extensions),
    Auth(Extensions),
}

/// What the shell does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloAction {
    /// Writes this, then reads one reply.
    Say(String, Stage),
    /// Writes this, of which nobody must learn, then reads one reply.
    SaySecret(Secret),
    /// Computes this with the password, then [`Hello::proven`].
    Prove(ScramTask),
    /// Negotiates TLS, having thrown away whatever else was read: it came in clear (RFC 3207 §4). Then [`Hello::encrypted`].
    StartTls,
    /// Mail can be sent.
    Ready(Extensions),
    /// No mail can be sent here.
    Failed(Refusal),
}

/// A peer refused to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In answer to what.
    pub stage: Stage,
    /// With these words; ours where STARTTLS was required and not offered.
    pub reply: Reply,
}

impl Hello {
    /// A new connection, whose greeting is to be read first. `encrypted`: TLS is up already.
    pub fn new(name: Domain, wish: TlsWish, encrypted: bool) -> Self {
        Self {
            name,
            wish,
            encrypted,
            login: None,
            exchange: None,
            state: HelloState::Greeting,
        }
    }

    /// Logs in before it is ready, or fails.
    pub fn with_login(self, login: Login) -> Self {
        Self {
            login: Some(login),
            ..self
        }
    }

    /// What is being waited for.
    pub fn stage(&self) -> Stage {
        match self.state {
            HelloState::Greeting => Stage::Greeting,
            HelloState::Ehlo => Stage::Ehlo,
            HelloState::Helo => Stage::Helo,
            HelloState::StartTls(_) => Stage::StartTls,
            HelloState::Auth(_) => Stage::Auth,
        }
    }

    /// TLS is up: everything learnt before is forgotten.
    pub fn encrypted(mut self) -> (Self, HelloAction) {
        self.encrypted = true;
        self.ehlo()
    }

    /// A reply has come.
    pub fn step(self, reply: Reply) -> (Self, HelloAction) {
        match (self.state, reply.code / 100) {
            (HelloState::Greeting, 2) => self.ehlo(),
            (HelloState::Ehlo, 2) => {
                let offers = Extensions::parse(&reply);
                self.settle_tls(offers)
            }
            // A peer of the old kind; not one that is busy (RFC 5321 §4.1.1.1).
            (HelloState::Ehlo, 5) => self.helo(),
            (HelloState::Helo, 2) => self.settle_tls(Extensions::default()),
            (HelloState::StartTls(_), 2) => (self, HelloAction::StartTls),
            (HelloState::StartTls(offers), 4 | 5) if reply.code != 421 && self.wish == TlsWish::IfOffered => {
                self.log_in(offers)
            }
            (HelloState::Auth(offers), _) => {
                self.go_on(offers, |exchange, login| exchange.step(reply, login))
            }
            _ => self.fail(reply),
        }
    }

    /// The shell has computed what [`HelloAction::Prove`] asked for.
    pub fn proven(self, proof: &ScramProof) -> (Self, HelloAction) {
        match self.state {
            HelloState::Auth(offers) => self.go_on(offers, |exchange, _| exchange.proven(proof)),
            _ => self.fail(Reply::new(454, 7, 0, "a proof that nothing asked for")),
        }
    }

    fn fail(self, reply: Reply) -> (Self, HelloAction) {
        let stage = self.stage();
        (self, HelloAction::Failed(Refusal { stage, reply }))
    }

    /// TLS is as wished: what is left is to say who we are, where that is asked for.
    fn log_in(mut self, offers: Extensions) -> (Self, HelloAction) {
        let Some(login) = &self.login else {
            return (self, HelloAction::Ready(offers));
        };
        self.state = HelloState::Auth(offers);
        if login.only_encrypted && !self.encrypted {
            return self.fail(Reply::new(
                454,
                7,
                0,
                "no password is sent in clear, and there is no TLS",
            ));
        }
        let Some((exchange, line)) = Exchange::begin(login, offers.auth) else {
            let reply = Reply::new(
                454,
                7,
                0,
                "the host offers none of SCRAM-SHA-256, PLAIN and LOGIN",
            );
            return self.fail(reply);
        };
        self.exchange = Some(exchange);
        (self, HelloAction::SaySecret(line))
    }

    fn go_on(
        mut self,
        offers: Extensions,
        step: impl FnOnce(Exchange, &Login) -> (Exchange, Turn),
    ) -> (Self, HelloAction) {
        let (Some(exchange), Some(login)) = (self.exchange.take(), &self.login) else {
            return self.fail(Reply::new(454, 7, 0, "no login was begun"));
        };
        let (exchange, turn) = step(exchange, login);
        self.exchange = Some(exchange);
        match turn {
            Turn::Say(line) => (self, HelloAction::SaySecret(line)),
            Turn::Work(task) => (self, HelloAction::Prove(task)),
            Turn::Done => (self, HelloAction::Ready(offers)),
            Turn::Failed(reply) => self.fail(reply),
        }
    }

    fn ehlo(mut self) -> (Self, HelloAction) {
        self.state = HelloState::Ehlo;
        let line = format!("EHLO {}\r\n", self.name);
        (self, HelloAction::Say(line, Stage::Ehlo))
    }

    fn helo(mut self) -> (Self, HelloAction) {
        self.state = HelloState::Helo;
        let line = format!("HELO {}\r\n", self.name);
        (self, HelloAction::Say(line, Stage::Helo))
    }

    fn settle_tls(mut self, offers: Extensions) -> (Self, HelloAction) {
        if self.encrypted || self.wish == TlsWish::Never {
            return self.log_in(offers);
        }
        if offers.starttls {
            self.state = HelloState::StartTls(offers);
            return (self, HelloAction::Say("STARTTLS\r\n".into(), Stage::StartTls));
        }
        if self.wish == TlsWish::IfOffered {
            return self.log_in(offers);
        }
        self.fail(Reply::new(
            450,
            7,
            10,
            "TLS is required, and the host does not offer it",
        ))
    }
}

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

/// NOTIFY and ORCPT as they came (RFC 3461 §5.2.1); without SMTPUTF8 what is beyond ASCII in its 7-bit form (RFC 6533 §3).
fn rcpt_wishes(recipient: &Recipient, smtputf8: bool) -> String {
    let mut wishes = String::new();
    match recipient.notify {
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
    line: String,
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
            commands: Vec::new(),
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
        let mut mail = format!("MAIL FROM:<{}>", message.reverse_path);
        if offers.size.is_some() {
            mail.push_str(&format!(" SIZE={}", message.size));
        }
        if offers.eight_bit_mime && (message.eight_bit || message.body_type == BodyType::EightBitMime) {
            mail.push_str(" BODY=8BITMIME");
        }
        let smtputf8 = offers.smtputf8 && message.needs_smtputf8();
        if smtputf8 {
            mail.push_str(" SMTPUTF8");
        }
        if offers.dsn {
            mail.push_str(&mail_wishes(message.dsn));
        }
        self.command(mail, Stage::Mail, 0);
        for (number, recipient) in message.recipients.iter().enumerate() {
            if self.results[number].is_some() {
                continue;
            }
            let mut rcpt = format!("RCPT TO:<{}>", recipient.mailbox);
            if offers.dsn {
                rcpt.push_str(&rcpt_wishes(recipient, smtputf8));
            }
            self.command(rcpt, Stage::Rcpt, number);
        }
        self.command("DATA".into(), Stage::Data, 0);
    }

    fn command(&mut self, mut line: String, stage: Stage, recipient: usize) {
        line.push_str("\r\n");
        self.commands.push(Command {
            line,
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
        let mut line = Vec::new();
        while let Some(command) = self.commands.get(self.written) {
            if self.answered == self.written && self.answered > 0 && !self.anyone() {
                self.data = Data::None;
                break;
            }
            line.extend_from_slice(command.line.as_bytes());
            self.written += 1;
            if !self.pipelining {
                break;
            }
        }
        line
    }

    fn reset(&mut self) -> TransactionAction {
        self.data = Data::None;
        self.commands.truncate(self.written);
        self.command("RSET".into(), Stage::Rset, 0);
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
            (Stage::Mail, _) => self.fill(&refused(reply, Stage::Mail)),
            (Stage::Rcpt, _) => {
                let result = if self.is_too_many(&reply, recipient) {
                    deferred(&reply, Stage::Rcpt)
                } else {
                    refused(reply, Stage::Rcpt)
                };
                self.results[recipient].get_or_insert(result);
            }
            (Stage::Data, 3) if reply.code == 354 => self.data = Data::GoAhead,
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
mod tests {
    use super::*;
    use crate::smtp::reply_reader::ReplyReader;

    /// Plays `peer`, a reply for each line of ours, and returns what we wrote and what became of the recipients. A reply of
    /// `-` is a lost connection.
    fn play(
        message: &Message<'_>,
        offers: &Extensions,
        peer: &[&str],
    ) -> (String, Vec<RecipientResult>, bool) {
        let mut transaction = Transaction::new(message, offers);
        let (mut wrote, mut peer) = (String::new(), peer.iter());
        loop {
            match transaction.advance() {
                TransactionAction::Write(line) => {
                    wrote.push_str(&String::from_utf8(line).unwrap().replace("\r\n", "|"))
                }
                TransactionAction::WriteBody => {
                    wrote.push_str("BODY|");
                    transaction.body_sent();
                }
                TransactionAction::Read(_) => match *peer.next().expect("a reply too few") {
                    "-" => transaction.lost("the connection was lost"),
                    line => transaction.reply(reply(line)),
                },
                TransactionAction::Done { usable } => {
                    assert_eq!(peer.next(), None, "a reply too many");
                    return (wrote, transaction.results(), usable);
                }
            }
        }
    }

    fn reply(line: &str) -> Reply {
        ReplyReader::default()
            .read(format!("{line}\r\n").as_bytes())
            .1
            .unwrap()
            .unwrap()
    }

    struct Fixture {
        from: ReversePath,
        to: Vec<Recipient>,
        dsn: DsnOptions,
    }

    impl Fixture {
        fn new(recipients: usize) -> Self {
            let to = (0..recipients)
                .map(|number| Recipient::new(format!("r{number}@ok.test").parse().unwrap()))
                .collect();
            Self {
                dsn: DsnOptions::default(),
                from: ReversePath::Mailbox("s@a.test".parse().unwrap()),
                to,
            }
        }

        fn message(&self) -> Message<'_> {
            Message {
                reverse_path: &self.from,
                recipients: &self.to,
                dsn: &self.dsn,
                body_type: BodyType::SevenBit,
                eight_bit: false,
                utf8_header: false,
                size: 100,
            }
        }
    }

    const PIPELINING: Extensions = Extensions {
        pipelining: true,
        eight_bit_mime: false,
        smtputf8: false,
        size: None,
        dsn: false,
        starttls: false,
        auth: Mechanisms {
            scram_sha_256: false,
            plain: false,
            login: false,
        },
        rcpt_max: None,
        mail_max: None,
    };
    const NOTHING: Extensions = Extensions {
        pipelining: false,
        ..PIPELINING
    };

    fn word(result: &RecipientResult) -> &'static str {
        match result {
            RecipientResult::Delivered(_) => "delivered",
            RecipientResult::Refused(..) => "refused",
            RecipientResult::Unfit(_) => "unfit",
            RecipientResult::Deferred(..) => "deferred",
            RecipientResult::InDoubt(_) => "in doubt",
        }
    }

    #[test]
    fn every_reply_at_every_stage() {
        let two = Fixture::new(2);
        // Replies to MAIL, RCPT, RCPT, DATA, the message (or the lone dot), RSET; what becomes of both; usable afterwards.
        for (peer, results, usable) in [
            (
                &["250 a", "250 a", "250 a", "354 go", "250 done"][..],
                ["delivered", "delivered"],
                true,
            ),
            (
                &["250 a", "550 no", "250 a", "354 go", "250 done"],
                ["refused", "delivered"],
                true,
            ),
            (
                &["250 a", "450 no", "250 a", "354 go", "250 done"],
                ["deferred", "delivered"],
                true,
            ),
            (
                &["250 a", "552 5.5.3 too many", "250 a", "354 go", "250 done"],
                ["deferred", "delivered"],
                true,
            ),
            (
                &["250 a", "552 5.2.2 full", "250 a", "354 go", "250 done"],
                ["refused", "delivered"],
                true,
            ),
            // Without an enhanced code only the order tells too many recipients from a full mailbox.
            (
                &["250 a", "552 no", "250 a", "354 go", "250 done"],
                ["refused", "delivered"],
                true,
            ),
            (
                &["250 a", "250 a", "552 no", "354 go", "250 done"],
                ["delivered", "deferred"],
                true,
            ),
            (
                &["250 a", "550 no", "250 a", "354 go", "550 spam"],
                ["refused", "refused"],
                true,
            ),
            (
                &["250 a", "250 a", "250 a", "354 go", "450 later"],
                ["deferred", "deferred"],
                true,
            ),
            (
                &["250 a", "250 a", "250 a", "354 go", "421 bye"],
                ["deferred", "deferred"],
                false,
            ),
            (
                &["250 a", "250 a", "250 a", "354 go", "354 what"],
                ["deferred", "deferred"],
                false,
            ),
            (
                &["250 a", "250 a", "250 a", "354 go", "-"],
                ["in doubt", "in doubt"],
                false,
            ),
            (
                &["250 a", "550 no", "250 a", "354 go", "-"],
                ["refused", "in doubt"],
                false,
            ),
            (&["250 a", "250 a", "250 a", "-"], ["deferred", "deferred"], false),
            (
                &["250 a", "250 a", "250 a", "550 no", "250 reset"],
                ["refused", "refused"],
                true,
            ),
            (
                &["250 a", "250 a", "250 a", "451 no", "250 reset"],
                ["deferred", "deferred"],
                true,
            ),
            (
                &["250 a", "250 a", "250 a", "250 what"],
                ["deferred", "deferred"],
                false,
            ),
            (
                &["250 a", "550 no", "550 no", "503 no", "250 reset"],
                ["refused", "refused"],
                true,
            ),
            // 354 though nobody was accepted: a lone dot, and whatever is said of it changes nothing.
            (
                &["250 a", "550 no", "450 no", "354 go", "250 done"],
                ["refused", "deferred"],
                true,
            ),
            (
                &["250 a", "550 no", "550 no", "354 go", "-"],
                ["refused", "refused"],
                false,
            ),
            (
                &["550 no", "503 no", "503 no", "503 no", "250 reset"],
                ["refused", "refused"],
                true,
            ),
            (
                &["451 no", "503 no", "503 no", "503 no", "421 bye"],
                ["deferred", "deferred"],
                false,
            ),
            (&["421 bye"], ["deferred", "deferred"], false),
            (&["250 a", "421 bye"], ["deferred", "deferred"], false),
            (&["250 a", "550 no", "421 bye"], ["refused", "deferred"], false),
            (&["-"], ["deferred", "deferred"], false),
        ] {
            let (_, found, found_usable) = play(&two.message(), &PIPELINING, peer);
            assert_eq!(found.iter().map(word).collect::<Vec<_>>(), results, "{peer:?}");
            assert_eq!(found_usable, usable, "{peer:?}");
        }
    }

    #[test]
    fn pipelined_commands_go_in_one_write() {
        let two = Fixture::new(2);
        let (wrote, ..) = play(
            &two.message(),
            &PIPELINING,
            &["250 a", "250 a", "250 a", "354 go", "250 done"],
        );
        assert_eq!(
            wrote,
            "MAIL FROM:<s@a.test>|RCPT TO:<r0@ok.test>|RCPT TO:<r1@ok.test>|DATA|BODY|"
        );
    }

    /// CASES row 34.
    #[test]
    fn wishes_on_reports_go_to_peers_that_take_them_as_they_came() {
        let mut one = Fixture::new(1);
        one.dsn = DsnOptions {
            ret: Some(Ret::Headers),
            envid: Some("a+2Bb".into()),
        };
        one.to[0].notify = Some(Notify::On {
            success: true,
            failure: false,
            delay: true,
        });
        one.to[0].orcpt = Some("rfc822;Bob+2Bx@Old.test".into());
        let replies = ["250 a", "250 a", "354 go", "250 done"];
        let dsn = Extensions {
            dsn: true,
            ..PIPELINING
        };
        assert_eq!(
            play(&one.message(), &dsn, &replies).0,
            "MAIL FROM:<s@a.test> RET=HDRS ENVID=a+2Bb|\
             RCPT TO:<r0@ok.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+2Bx@Old.test|DATA|BODY|"
        );
        assert_eq!(
            play(&one.message(), &PIPELINING, &replies).0,
            "MAIL FROM:<s@a.test>|RCPT TO:<r0@ok.test>|DATA|BODY|"
        );
    }

    #[test]
    fn without_pipelining_nothing_is_said_in_vain() {
        let two = Fixture::new(2);
        let (wrote, results, usable) = play(&two.message(), &NOTHING, &["550 no", "250 reset"]);
        assert_eq!((wrote.as_str(), usable), ("MAIL FROM:<s@a.test>|RSET|", true));
        assert_eq!(
            results.iter().map(word).collect::<Vec<_>>(),
            ["refused", "refused"]
        );
        let (wrote, ..) = play(
            &two.message(),
            &NOTHING,
            &["250 a", "550 no", "550 no", "250 reset"],
        );
        assert_eq!(
            wrote,
            "MAIL FROM:<s@a.test>|RCPT TO:<r0@ok.test>|RCPT TO:<r1@ok.test>|RSET|"
        );
    }

    #[test]
    fn what_the_peer_lacks_is_found_before_a_word_is_said() {
        let one = Fixture::new(1);
        let eight_bit = Message {
            eight_bit: true,
            ..one.message()
        };
        let small = Extensions {
            size: Some(Some(99)),
            ..PIPELINING
        };
        for (message, offers, code) in [
            (one.message(), small, "552 5.3.4"),
            (eight_bit, PIPELINING, "554 5.6.3"),
        ] {
            let (wrote, results, usable) = play(&message, &offers, &[]);
            assert_eq!((wrote.as_str(), usable), ("", true));
            assert!(
                matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().starts_with(code))
            );
        }
        let unlimited = Extensions {
            size: Some(None),
            eight_bit_mime: true,
            ..PIPELINING
        };
        let (wrote, ..) = play(&eight_bit, &unlimited, &["250 a", "250 a", "354 go", "250 done"]);
        assert!(
            wrote.starts_with("MAIL FROM:<s@a.test> SIZE=100 BODY=8BITMIME|"),
            "{wrote}"
        );
    }

    const UTF8: Extensions = Extensions {
        eight_bit_mime: true,
        smtputf8: true,
        dsn: true,
        ..PIPELINING
    };

    /// CASES row 32.
    #[test]
    fn an_address_beyond_ascii_is_never_mangled() {
        let mut two = Fixture::new(2);
        two.to[0] = Recipient {
            orcpt: Some("utf-8;jos\u{e9}@ok.test".into()),
            ..Recipient::new("jos\u{e9}@ok.test".parse().unwrap())
        };
        let answers = ["250 a", "250 a", "354 go", "250 done"];
        // The host does not take it; the other recipient gets the message all the same.
        let (wrote, results, usable) = play(&two.message(), &PIPELINING, &answers);
        assert_eq!(
            (wrote.as_str(), usable),
            ("MAIL FROM:<s@a.test>|RCPT TO:<r1@ok.test>|DATA|BODY|", true)
        );
        assert!(
            matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().starts_with("553 5.6.7"))
        );
        assert_eq!(word(&results[1]), "delivered");
        let answers = ["250 a", "250 a", "250 a", "354 go", "250 done"];
        let (wrote, results, _) = play(&two.message(), &UTF8, &answers);
        assert_eq!(
            wrote,
            "MAIL FROM:<s@a.test> SMTPUTF8|RCPT TO:<jos\u{e9}@ok.test> ORCPT=utf-8;jos\u{e9}@ok.test|\
             RCPT TO:<r1@ok.test>|DATA|BODY|"
        );
        assert_eq!(word(&results[0]), "delivered");
    }

    #[test]
    fn smtputf8_is_said_where_something_needs_it() {
        let mut one = Fixture::new(1);
        let answers = ["250 a", "250 a", "354 go", "250 done"];
        let said = |fixture: &Fixture, utf8_header| {
            let message = Message {
                utf8_header,
                ..fixture.message()
            };
            play(&message, &UTF8, &answers).0.contains("SMTPUTF8")
        };
        assert!(!said(&one, false) && said(&one, true));
        // The name of the recipient as the sender knew it is no reason: it has a form in ASCII.
        one.to[0].orcpt = Some("utf-8;jos\u{e9}@ok.test".into());
        assert!(!said(&one, false));
        let (wrote, ..) = play(&one.message(), &UTF8, &answers);
        assert!(wrote.contains("ORCPT=utf-8;jos\\x{E9}@ok.test|"), "{wrote}");
        let sender = Fixture {
            from: ReversePath::Mailbox("jos\u{e9}@a.test".parse().unwrap()),
            ..Fixture::new(1)
        };
        let header = Message {
            utf8_header: true,
            ..one.message()
        };
        for (message, code) in [(header, "554 5.6.9"), (sender.message(), "553 5.6.7")] {
            let (wrote, results, _) = play(&message, &PIPELINING, &[]);
            assert_eq!(wrote, "");
            assert!(
                matches!(&results[0], RecipientResult::Unfit(reply) if reply.to_string().starts_with(code))
            );
        }
    }

    #[test]
    fn the_null_path_stays_null() {
        let one = Fixture {
            from: ReversePath::Null,
            ..Fixture::new(1)
        };
        let (wrote, ..) = play(
            &one.message(),
            &PIPELINING,
            &["250 a", "250 a", "354 go", "250 done"],
        );
        assert!(wrote.starts_with("MAIL FROM:<>|"));
    }

    #[test]
    fn an_early_reply_ends_the_connection() {
        let one = Fixture::new(1);
        for (line, expected) in [
            ("552 too big", "refused"),
            ("250 what", "deferred"),
            ("450 no", "deferred"),
        ] {
            let mut transaction = Transaction::new(&one.message(), &PIPELINING);
            transaction.advance();
            for line in ["250 a", "250 a", "354 go", line] {
                transaction.reply(reply(line));
            }
            assert_eq!(transaction.advance(), TransactionAction::Done { usable: false });
            assert_eq!(word(&transaction.results()[0]), expected, "{line}");
        }
    }

    fn hello(wish: TlsWish) -> Hello {
        Hello::new("relay.test".parse().unwrap(), wish, false)
    }

    fn say(line: &str, stage: Stage) -> HelloAction {
        HelloAction::Say(format!("{line}\r\n"), stage)
    }

    #[test]
    fn old_peers_are_greeted_in_the_old_way_and_busy_ones_are_left() {
        let (session, action) = hello(TlsWish::IfOffered).step(reply("220 hi"));
        assert_eq!(action, say("EHLO relay.test", Stage::Ehlo));
        let (_, action) = session.clone().step(reply("502 what"));
        assert_eq!(action, say("HELO relay.test", Stage::Helo));
        for line in ["421 busy", "451 later"] {
            assert!(
                matches!(session.clone().step(reply(line)).1, HelloAction::Failed(_)),
                "{line}"
            );
        }
        let (_, action) = session
            .clone()
            .step(reply("502 what"))
            .0
            .step(reply("250-mx\r\n250 PIPELINING"));
        assert_eq!(
            action,
            HelloAction::Ready(Extensions::default()),
            "HELO has no extensions"
        );
        assert!(matches!(
            hello(TlsWish::Never).step(reply("554 no")).1,
            HelloAction::Failed(_)
        ));
    }

    #[test]
    fn tls_is_as_wished() {
        let greeted = |wish| hello(wish).step(reply("220 hi")).0;
        let offer =
            reply("250-mx\r\n250-SIZE 0\r\n250-starttls\r\n250-LIMITS RCPTMAX=3 X MAILMAX=0\r\n250 8BITMIME");
        let plain = reply("250 mx");
        assert!(matches!(
            greeted(TlsWish::Never).step(offer.clone()).1,
            HelloAction::Ready(_)
        ));
        assert!(matches!(
            greeted(TlsWish::IfOffered).step(plain.clone()).1,
            HelloAction::Ready(_)
        ));
        let (_, action) = greeted(TlsWish::Required).step(plain);
        assert!(matches!(action, HelloAction::Failed(refusal) if refusal.reply.code == 450));
        let (session, action) = greeted(TlsWish::IfOffered).step(offer.clone());
        assert_eq!(action, say("STARTTLS", Stage::StartTls));
        assert_eq!(session.clone().step(reply("220 go")).1, HelloAction::StartTls);
        assert!(matches!(
            session.clone().step(reply("454 not now")).1,
            HelloAction::Ready(_)
        ));
        assert!(matches!(
            session.clone().step(reply("421 bye")).1,
            HelloAction::Failed(_)
        ));
        let (required, _) = greeted(TlsWish::Required).step(offer.clone());
        assert!(matches!(
            required.step(reply("454 not now")).1,
            HelloAction::Failed(_)
        ));
        // All that was learnt in clear is asked again.
        let (session, action) = session.step(reply("220 go")).0.encrypted();
        assert_eq!(action, say("EHLO relay.test", Stage::Ehlo));
        let expected = Extensions {
            starttls: true,
            eight_bit_mime: true,
            size: Some(None),
            rcpt_max: Some(3),
            ..Extensions::default()
        };
        assert_eq!(session.step(offer).1, HelloAction::Ready(expected));
    }

    #[test]
    fn a_password_is_said_under_tls_only_and_before_anything_else() {
        let login = |only_encrypted| Login {
            user: "ada".into(),
            password: Secret::new(b"secret".to_vec()),
            nonce: "n".into(),
            only_encrypted,
        };
        let greeted = |wish, login| hello(wish).with_login(login).step(reply("220 hi")).0;
        let offer = reply("250-mx\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN X-ODD");
        let failure = |action| match action {
            HelloAction::Failed(Refusal { stage, reply }) => format!("{} {reply}", stage.name()),
            other => panic!("{other:?}"),
        };
        // In clear: not a word, where it must not be.
        let (_, action) = greeted(TlsWish::Never, login(true)).step(offer.clone());
        assert!(failure(action).starts_with("AUTH 454 4.7.0 no password is sent in clear"));
        let (_, action) = greeted(TlsWish::IfOffered, login(true)).step(reply("250 mx"));
        assert!(failure(action).starts_with("AUTH 454 4.7.0 no password is sent in clear"));
        let (_, action) = greeted(TlsWish::Never, login(false)).step(offer.clone());
        assert!(matches!(action, HelloAction::SaySecret(_)));
        // Under TLS, after the EHLO there.
        let (session, action) = greeted(TlsWish::Required, login(true)).step(offer.clone());
        assert_eq!(action, say("STARTTLS", Stage::StartTls));
        let session = session.step(reply("220 go")).0.encrypted().0;
        let (session, action) = session.step(offer);
        let HelloAction::SaySecret(line) = action else {
            panic!("{action:?}")
        };
        assert!(line.expose().starts_with(b"AUTH PLAIN "));
        assert_eq!(session.stage(), Stage::Auth);
        assert!(matches!(
            session.clone().step(reply("235 2.7.0 in")).1,
            HelloAction::Ready(_)
        ));
        for line in ["535 5.7.8 wrong", "454 4.7.0 later", "530 5.7.0 no", "421 bye"] {
            let action = session.clone().step(reply(line)).1;
            assert_eq!(failure(action), format!("AUTH {line}"));
        }
        // Nothing on offer that is known here.
        let (_, action) = greeted(TlsWish::Never, login(false)).step(reply("250-mx\r\n250 AUTH GSSAPI"));
        assert!(failure(action).contains("offers none of"));
    }
}
