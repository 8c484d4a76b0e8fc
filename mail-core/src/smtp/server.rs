//! The server's side of an SMTP session, as a value (RFC 5321 §4.1.4).
//!
//! The shell owns socket, time and policy. It feeds what it learns to [`Session::step`] and does what the action says:
//!
//! ```text
//! Say            write the reply; then the next input: a line from the inbox, or silence for longer than patience()
//! Ask            decide, then Input::Answer
//! ReceiveData    write the 354, fill a data::Decoder up to its end, then Input::Data
//! ReceiveChunk   fill a chunk::Chunks with as many octets, then Input::Chunk
//! StartTls       write the 220 and flush; handshake; then Input::TlsStarted
//! Close, Hangup  write the reply, flush, close
//! ```
//!
//! Replies need not be flushed while the inbox holds more lines: a group of pipelined commands gets its replies in one
//! write (RFC 2920 §3.2).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::smtp::command::xclient;
use crate::smtp::command::{self, Chunk, Command, ForwardPath, Hello, MailFrom, RcptTo, Secret, Xclient};
use crate::smtp::data::DataFault;
use crate::{BodyType, DsnOptions, Envelope, Mailbox, MaxHold, Recipient, Reply};

mod chunking;
mod sasl;

pub use chunking::Fate;
pub use sasl::Scram;
use sasl::{Exchange, Turn};

/// What a server is and offers; the same for all sessions of a listener.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name in greeting and EHLO.
    pub hostname: String,
    /// Whose `<postmaster>` is (RFC 5321 §4.5.1).
    pub postmaster: Mailbox,
    /// SIZE in octets; 0: no limit (RFC 1870 §4).
    pub max_message_bytes: u64,
    /// Recipients of one transaction; more are told 452 4.5.3 (RFC 5321 §4.5.3.1.10).
    pub max_recipients: usize,
    /// Bad replies a client may cause, refused recipients not counted, until a message of its is kept; the next one is 421
    /// 4.7.0, and the end.
    pub max_errors: u32,
    /// STARTTLS is offered in clear.
    pub starttls: bool,
    /// Whether clients log in.
    pub auth: Auth,
    /// Offer PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// Offer 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// Offer SMTPUTF8 (RFC 6531): whoever does has to pass on what is beyond ASCII, or to say that it can't.
    pub smtputf8: bool,
    /// Offer CHUNKING (RFC 3030). BINARYMIME is not: whoever took it would have to rewrite nearly every message for the
    /// next hop, which the client can do better.
    pub chunking: bool,
    /// Offer DSN (RFC 3461): whoever does has to honour it, or pass it on.
    pub dsn: bool,
    /// Offer DELIVERBY (RFC 2852), without a least time: whoever does has to keep the time, or to pass it on.
    pub deliver_by: bool,
    /// Offer MT-PRIORITY (RFC 6710), without naming a profile.
    pub mt_priority: bool,
    /// Offer ENHANCEDSTATUSCODES (RFC 2034); else replies go without them.
    pub enhanced_codes: bool,
    /// Silence while a command is awaited (RFC 5321 §4.5.3.2.7).
    pub command_timeout: Duration,
    /// Silence within message data.
    pub data_timeout: Duration,
}

/// Whether clients log in (RFC 4954). Mechanisms are SCRAM-SHA-256-PLUS, SCRAM-SHA-256, PLAIN and LOGIN, under TLS only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// AUTH is not known here.
    None,
    /// Nothing is accepted before AUTH (RFC 6409 §4.3).
    Required,
}

/// What the shell learned.
pub enum Input<'a> {
    /// The client is there, and TLS up where it comes first.
    Connected,
    /// The client spoke when it had to be silent: before the greeting, or between STARTTLS and the handshake.
    EarlyTalk,
    /// A line without its CRLF: see [`crate::smtp::inbox::Inbox`].
    Line(&'a [u8]),
    /// A line was longer than any may be.
    LineTooLong,
    /// Message data was read to its end.
    Data(Result<(), DataFault>),
    /// A chunk was read to its end: what is wrong with the message so far, or with all of it where the chunk was the last.
    Chunk(Result<(), DataFault>),
    /// The answer to [`Action::Ask`]. 2yz: go on; all others: don't, and tell the client so.
    Answer(Reply),
    /// The handshake behind [`Action::StartTls`] succeeded. Where it fails, the shell closes.
    TlsStarted,
    /// Silence for longer than [`Session::patience`].
    Timeout,
    /// The server is going down. To be given where [`Session::is_between_transactions`].
    Shutdown,
    /// A decision of the shell's to end this now with these words, such as a limit on connections.
    Close(Reply),
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the reply and go on reading lines.
    Say(Reply),
    /// Go on reading lines.
    Listen,
    /// Decide; the next input is the answer.
    Ask(Question),
    /// Write the reply, then read message data. Its limit is [`Config::max_message_bytes`] or less.
    ReceiveData(Reply),
    /// Read as many octets, whatever they are, and do with them as told. The message's limit is
    /// [`Config::max_message_bytes`] or less. Nothing is said before.
    ReceiveChunk(Chunk, Fate),
    /// Write the reply, flush, then the TLS handshake.
    StartTls(Reply),
    /// Write the reply, flush, close.
    Close(Reply),
    /// Close without a word.
    Hangup,
}

/// A matter of policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// May this sender open a transaction? [`Reply::positive`] replies: [`replies::SENDER_OK`].
    Mail(MailFrom),
    /// May this recipient be added? See [`Session::envelope`]; [`replies::RECIPIENT_OK`].
    Rcpt(Recipient),
    /// May data follow? Any 2yz; the client is then told 354.
    Data,
    /// Is the message, whose data the shell has at hand, kept? 2yz only when it is durable.
    Message(Envelope),
    /// Is this the password? [`replies::LOGGED_IN`] or [`replies::BAD_LOGIN`].
    Login {
        /// As sent; UTF-8, not prepared (RFC 4616 §2).
        user: String,
        /// As sent.
        password: Secret,
    },
    /// What to say to this message of SCRAM (RFC 5802 §5), which was base64? [`replies::challenge`] goes on, and
    /// [`replies::LOGGED_IN`] ends it; the server's last message is a challenge too, answered by an empty one (RFC 4954 §4).
    Scram {
        /// Which.
        mechanism: Scram,
        /// A new exchange: what came before counts no more.
        first: bool,
        /// Decoded.
        message: Secret,
    },
    /// May the session be that of this client from here on? Any 2yz; the client is then greeted anew.
    Xclient(Xclient),
    /// Can TLS start? Any 2yz, or 454 4.7.0 (RFC 3207 §4). With octets left in the inbox the input is `EarlyTalk`.
    StartTls,
}

/// Replies for shells.
pub mod replies {
    use crate::Reply;

    /// To MAIL.
    pub const SENDER_OK: Reply = Reply::new(250, 1, 0, "sender ok");
    /// To RCPT.
    pub const RECIPIENT_OK: Reply = Reply::new(250, 1, 5, "recipient ok");
    /// Answers [`super::Question::Data`] and [`super::Question::StartTls`]; not seen by the client.
    pub const GO: Reply = Reply::new(250, 0, 0, "go");
    /// To AUTH (RFC 4954 §6).
    pub const LOGGED_IN: Reply = Reply::new(235, 7, 0, "logged in");
    /// To AUTH, whatever was wrong.
    pub const BAD_LOGIN: Reply = Reply::new(535, 7, 8, "user or password wrong");
    /// Answers [`super::Question::Scram`]: 334 with a message in base64 (RFC 4954 §4).
    pub fn challenge(message: &[u8]) -> Reply {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(message);
        Reply::plain(334, "").with_text(text)
    }

    /// To RCPT beyond a limit: the client sends the rest in another transaction (RFC 5321 §4.5.3.1.10).
    pub const TOO_MANY_RECIPIENTS: Reply = Reply::new(452, 5, 3, "too many recipients");
    /// To MAIL and to data over a limit (RFC 1870 §6).
    pub const TOO_BIG: Reply = Reply::new(552, 3, 4, "message too big");
    /// The queue holds all it may.
    pub const TOO_MUCH_WAITS: Reply = Reply::new(452, 3, 1, "too much mail waits; come back later");
}

/// Commands a client may say without a message kept (CASES §3, floods): many times what a pool's NOOPs and a list of
/// recipients beyond the limit come to, and far below what would load us. The next one is 421 4.7.0.
const MAX_COMMANDS_WITHOUT_MAIL: u32 = 5_000;

/// One session.
#[derive(Clone, Debug)]
pub struct Session {
    config: Arc<Config>,
    hello: Option<Hello>,
    tls: bool,
    logged_in: bool,
    /// The peer may say for whom it speaks.
    xclient: bool,
    /// FUTURERELEASE is offered, up to this.
    hold: Option<MaxHold>,
    /// Since the last message kept.
    errors: u32,
    /// Since the last message kept; accepted recipients and chunks don't count, they have limits of their own.
    commands: u32,
    /// The last command was a BDAT that was refused: those pipelined behind it are no errors of their own.
    chunk_refused: bool,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Before the greeting.
    Silent,
    /// Between transactions.
    Ready,
    Open(Transaction),
    Receiving(Transaction),
    Chunk(chunking::Reading),
    Sasl(Exchange),
    Asked(Asked),
    Handshake,
    Over,
}

/// What the shell is asked, with what its answer decides.
#[derive(Clone, Debug)]
enum Asked {
    Mail(MailFrom),
    Rcpt(Transaction, Recipient),
    Data(Transaction),
    Message,
    Login,
    Scram(Scram),
    Xclient(Xclient),
    StartTls,
}

/// A mail transaction: dropped whole by RSET, EHLO, STARTTLS.
#[derive(Clone, Debug)]
struct Transaction {
    envelope: Envelope,
    declared_bytes: Option<u64>,
    /// Some RCPT was refused.
    refused: bool,
    /// BDAT has begun: neither RCPT nor DATA any more.
    chunked: bool,
}

impl Session {
    /// A session whose client has not been greeted. `tls`: it began with a handshake (RFC 8314 §3.3).
    pub fn new(config: Arc<Config>, tls: bool) -> Self {
        Self {
            config,
            hello: None,
            tls,
            logged_in: false,
            xclient: false,
            hold: None,
            errors: 0,
            commands: 0,
            chunk_refused: false,
            state: State::Silent,
        }
    }

    /// The same for a peer that may say by XCLIENT for whom it speaks; all others are told 550.
    pub fn with_xclient(mut self, allowed: bool) -> Self {
        self.xclient = allowed;
        self
    }

    /// The same, offering to hold mail for as long as this (RFC 4865), if at all.
    pub fn with_hold(mut self, most: Option<MaxHold>) -> Self {
        self.hold = most;
        self
    }

    /// Takes one input to the next session and the one action it causes. Never fails: what does not fit ends the session.
    pub fn step(mut self, input: Input<'_>) -> (Self, Action) {
        let state = std::mem::replace(&mut self.state, State::Over);
        let action = self.decide(state, input);
        if matches!(action, Action::Close(_) | Action::Hangup) {
            self.state = State::Over;
        }
        (self, action)
    }

    /// Whether [`Action::Close`] or [`Action::Hangup`] was given.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The longest silence to bear now.
    pub fn patience(&self) -> Duration {
        match self.state {
            State::Receiving(_) | State::Chunk(_) => self.config.data_timeout,
            _ => self.config.command_timeout,
        }
    }

    /// Whether ending the session now breaks off nothing: the moment for [`Input::Shutdown`].
    pub fn is_between_transactions(&self) -> bool {
        matches!(self.state, State::Silent | State::Ready | State::Sasl(_))
    }

    /// What the client calls itself.
    pub fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// Whether TLS protects the session.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether AUTH succeeded.
    pub fn is_logged_in(&self) -> bool {
        self.logged_in
    }

    /// The transaction so far, while one is open.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.transaction().map(|transaction| &transaction.envelope)
    }

    /// The size the client declared at MAIL, in octets (RFC 1870 §4), while a transaction is open.
    pub fn declared_bytes(&self) -> Option<u64> {
        self.transaction()
            .and_then(|transaction| transaction.declared_bytes)
    }

    /// Whether chunks were taken that are part of a message: where not, the shell has none to keep.
    pub fn is_chunking(&self) -> bool {
        self.transaction().is_some_and(|tx| tx.chunked)
    }

    fn transaction(&self) -> Option<&Transaction> {
        match &self.state {
            State::Chunk(reading) => reading.transaction(),
            State::Open(tx) | State::Receiving(tx) | State::Asked(Asked::Rcpt(tx, _) | Asked::Data(tx)) => {
                Some(tx)
            }
            _ => None,
        }
    }

    fn decide(&mut self, state: State, input: Input<'_>) -> Action {
        match (state, input) {
            (State::Over, _) => Action::Hangup,
            (_, Input::Close(reply)) => self.close(reply),
            (_, Input::Timeout) => {
                self.close(Reply::new(421, 4, 2, "").with_text(self.named("silent for too long")))
            }
            (_, Input::Shutdown) => self.close(Reply::new(421, 3, 2, "").with_text(self.named("going down"))),
            (State::Silent, Input::Connected) => {
                self.state = State::Ready;
                Action::Say(self.greeting())
            }
            // RFC 5321 §4.3.1: the client waits for the greeting. Those that don't are not mail programs.
            (State::Silent, Input::EarlyTalk) => {
                self.close(Reply::plain(554, "").with_text(self.named("you spoke before the greeting")))
            }
            // RFC 3207 §4.2: what came in clear behind STARTTLS may be someone else's.
            (State::Asked(Asked::StartTls), Input::EarlyTalk) => {
                self.close(Reply::new(554, 5, 1, "STARTTLS ends a group of commands"))
            }
            (State::Ready, Input::Line(line)) => self.command(None, line),
            (State::Open(tx), Input::Line(line)) => self.command(Some(tx), line),
            (State::Ready, Input::LineTooLong) => self.stay(None, command::too_long()),
            (State::Open(tx), Input::LineTooLong) => self.stay(Some(tx), command::too_long()),
            (State::Sasl(exchange), Input::Line(line)) => self.sasl(exchange.answer(line)),
            (State::Sasl(_), Input::LineTooLong) => self.stay(None, Reply::new(500, 5, 6, "line too long")),
            (State::Receiving(tx), Input::Data(Ok(()))) => {
                self.ask(Asked::Message, Question::Message(tx.envelope))
            }
            (State::Receiving(_), Input::Data(Err(fault))) => self.stay(None, fault.reply()),
            (State::Chunk(reading), Input::Chunk(result)) => self.chunk_read(reading, result),
            (State::Asked(asked), Input::Answer(reply)) => self.answered(asked, reply),
            (State::Handshake, Input::TlsStarted) => {
                // RFC 3207 §4.2: all that was known before is forgotten; the client says EHLO again.
                self.hello = None;
                self.logged_in = false;
                self.tls = true;
                self.state = State::Ready;
                Action::Listen
            }
            // The shell's error, not the client's: ended rather than guessed at.
            (_, _) => self.close(Reply::new(421, 3, 0, "internal error")),
        }
    }

    fn command(&mut self, open: Option<Transaction>, line: &[u8]) -> Action {
        self.commands += 1;
        if self.commands > MAX_COMMANDS_WITHOUT_MAIL {
            return self.close(Reply::new(421, 7, 0, "").with_text(self.named("too many commands")));
        }
        let command = match (command::parse(line), open.is_some()) {
            (Ok(command), _) => command,
            (Err(reply), true) if command::is_rcpt(line) => return self.stay_uncounted(open, reply),
            (Err(reply), _) => return self.stay(open, reply),
        };
        if !matches!(command, Command::Bdat(_)) {
            self.chunk_refused = false;
        }
        match command {
            Command::Hello(hello) => {
                // RFC 5321 §4.1.4: as RSET.
                let reply = self.hello_reply(&hello);
                self.hello = Some(hello);
                self.stay(None, reply)
            }
            Command::Mail(from) => match self.mail_refused(open.is_some(), &from) {
                Some(reply) => self.stay(open, reply),
                None => self.ask(Asked::Mail(from.clone()), Question::Mail(from)),
            },
            Command::Rcpt(to) => self.rcpt(open, to),
            Command::Data => match open {
                None => self.stay(None, out_of_order("MAIL and RCPT come first")),
                Some(tx) if tx.chunked => self.stay(Some(tx), out_of_order("BDAT has begun")),
                Some(tx) if tx.envelope.recipients.is_empty() && tx.refused => {
                    // RFC 2920 §3.1: DATA was sent before the client knew that no recipient was left.
                    self.stay(Some(tx), Reply::new(554, 5, 1, "no valid recipients"))
                }
                Some(tx) if tx.envelope.recipients.is_empty() => {
                    self.stay(Some(tx), out_of_order("RCPT comes first"))
                }
                Some(tx) => self.ask(Asked::Data(tx), Question::Data),
            },
            Command::Bdat(chunk) => self.bdat(open, chunk),
            Command::Rset => self.stay(None, Reply::new(250, 0, 0, "ok")),
            Command::Noop => self.stay(open, Reply::new(250, 0, 0, "ok")),
            // RFC 5321 §3.5.3, §7.3: neither yes nor no.
            Command::Vrfy => self.stay(open, Reply::new(252, 0, 0, "send mail and see")),
            Command::Expn => self.stay(open, Reply::new(502, 5, 1, "not implemented")),
            Command::Help => self.stay(open, Reply::new(214, 0, 0, "see RFC 5321")),
            Command::Quit => self.close(Reply::new(221, 0, 0, "").with_text(self.named("bye"))),
            // Postfix's XCLIENT_README: 550, 503, 501 in this order, so that a stranger learns nothing of what it said.
            Command::Xclient(_) if !self.xclient => {
                self.stay(open, Reply::new(550, 7, 1, "you may not speak for others"))
            }
            Command::Xclient(_) if open.is_some() => self.stay(open, out_of_order("a transaction is open")),
            Command::Xclient(Err(reply)) => self.stay(None, reply),
            Command::Xclient(Ok(client)) => {
                self.ask(Asked::Xclient(client.clone()), Question::Xclient(client))
            }
            Command::StartTls => match self.starttls_refused() {
                Some(reply) => self.stay(open, reply),
                None => self.ask(Asked::StartTls, Question::StartTls),
            },
            Command::Auth { mechanism, initial } => match self.auth_refused(open.is_some()) {
                Some(reply) => self.stay(open, reply),
                None => match Exchange::start(&mechanism) {
                    Some(exchange) => self.sasl(exchange.begin(initial)),
                    None => self.stay(None, Reply::new(504, 5, 4, "mechanism not known")),
                },
            },
            Command::Foreign => self.close(Reply::new(554, 5, 1, "this is SMTP")),
        }
    }

    fn hello_reply(&self, hello: &Hello) -> Reply {
        let Config { hostname, .. } = &*self.config;
        let mut text = hostname.clone();
        if hello.esmtp {
            let offers = [
                (self.config.pipelining, "PIPELINING"),
                (self.config.eight_bit_mime, "8BITMIME"),
                (self.config.smtputf8, "SMTPUTF8"),
                (self.config.chunking, "CHUNKING"),
                (self.config.enhanced_codes, "ENHANCEDSTATUSCODES"),
                (self.config.dsn, "DSN"),
                (self.config.deliver_by, "DELIVERBY"),
                (self.config.mt_priority, "MT-PRIORITY"),
                (self.xclient, xclient::OFFER),
                (self.config.starttls && !self.tls, "STARTTLS"),
                (self.config.auth != Auth::None && self.tls, sasl::OFFER),
            ];
            text.push_str(&format!("\nSIZE {}", self.config.max_message_bytes));
            // RFC 9422 §4.2.
            text.push_str(&format!("\nLIMITS RCPTMAX={}", self.config.max_recipients));
            if let Some(most) = &self.hold {
                let until = command::date_time(most.until);
                text.push_str(&format!("\nFUTURERELEASE {} {until}", most.interval.as_secs()));
            }
            for (_, keyword) in offers.into_iter().filter(|(offered, _)| *offered) {
                text.push('\n');
                text.push_str(keyword);
            }
        }
        Reply::plain(250, "").with_text(text)
    }

    fn greeting(&self) -> Reply {
        Reply::plain(220, "").with_text(self.named("ESMTP Postrider"))
    }

    fn mail_refused(&self, open: bool, from: &MailFrom) -> Option<Reply> {
        if self.hello.is_none() {
            return Some(out_of_order("EHLO comes first"));
        }
        if self.config.auth == Auth::Required && !self.logged_in {
            let text = if self.tls {
                "log in first"
            } else {
                "STARTTLS and log in first"
            };
            return Some(Reply::new(530, 7, 0, text));
        }
        if open {
            return Some(out_of_order("a transaction is open"));
        }
        let unoffered_body = from.body.is_some() && !self.config.eight_bit_mime;
        let unoffered_dsn = from.dsn != DsnOptions::default() && !self.config.dsn;
        let unoffered_utf8 = from.smtputf8 && !self.config.smtputf8;
        let unoffered_hold = from.hold.is_some() && self.hold.is_none();
        let unoffered_by = from.by.is_some() && !self.config.deliver_by;
        let unoffered_priority = from.priority.is_some() && !self.config.mt_priority;
        if unoffered_body
            || unoffered_dsn
            || unoffered_utf8
            || unoffered_hold
            || unoffered_by
            || unoffered_priority
        {
            return Some(command::unknown_parameter());
        }
        if let (Some(hold), Some(most)) = (from.hold, &self.hold)
            && !most.allows(hold)
        {
            // RFC 4865 §4.2: a value beyond what EHLO told is no good value.
            let text = format!(
                "mail is held for {} s at the most, and until {}",
                most.interval.as_secs(),
                command::date_time(most.until)
            );
            return Some(Reply::new(501, 5, 4, "").with_text(text));
        }
        let limit = self.config.max_message_bytes;
        from.size
            .filter(|&size| limit != 0 && size > limit)
            .map(|_| replies::TOO_BIG)
    }

    fn rcpt(&mut self, open: Option<Transaction>, to: RcptTo) -> Action {
        let Some(tx) = open else {
            return self.stay(None, out_of_order("MAIL comes first"));
        };
        if tx.chunked {
            return self.stay(Some(tx), out_of_order("BDAT has begun"));
        }
        if to.utf8 && !tx.envelope.smtputf8 {
            return self.stay(Some(tx), command::needs_smtputf8());
        }
        if tx.envelope.recipients.len() >= self.config.max_recipients {
            return self.stay(Some(tx), replies::TOO_MANY_RECIPIENTS);
        }
        if !self.config.dsn && (to.notify.is_some() || to.orcpt.is_some()) {
            return self.stay(Some(tx), command::unknown_parameter());
        }
        let mailbox = match to.path {
            ForwardPath::Postmaster => self.config.postmaster.clone(),
            ForwardPath::Mailbox(mailbox) => mailbox,
        };
        let recipient = Recipient {
            mailbox,
            notify: to.notify,
            orcpt: to.orcpt,
        };
        self.ask(Asked::Rcpt(tx, recipient.clone()), Question::Rcpt(recipient))
    }

    fn starttls_refused(&self) -> Option<Reply> {
        if self.tls {
            Some(out_of_order("TLS is active"))
        } else if !self.config.starttls {
            Some(Reply::new(502, 5, 1, "not implemented"))
        } else if self.hello.is_none() {
            Some(out_of_order("EHLO comes first"))
        } else {
            None
        }
    }

    fn auth_refused(&self, open: bool) -> Option<Reply> {
        if self.config.auth == Auth::None {
            Some(Reply::new(502, 5, 1, "not implemented"))
        } else if self.hello.is_none() {
            Some(out_of_order("EHLO comes first"))
        } else if !self.tls {
            Some(Reply::new(538, 7, 11, "STARTTLS comes first")) // RFC 4954 §6
        } else if self.logged_in {
            Some(out_of_order("you are logged in"))
        } else if open {
            Some(out_of_order("AUTH stands outside of transactions"))
        } else {
            None
        }
    }

    fn sasl(&mut self, turn: Turn) -> Action {
        match turn {
            Turn::Challenge(challenge, exchange) => {
                self.state = State::Sasl(exchange);
                Action::Say(Reply::plain(334, challenge))
            }
            Turn::Login { user, password } => self.ask(Asked::Login, Question::Login { user, password }),
            Turn::Scram {
                mechanism,
                first,
                message,
            } => self.ask(
                Asked::Scram(mechanism),
                Question::Scram {
                    mechanism,
                    first,
                    message,
                },
            ),
            Turn::Failed(reply) => self.stay(None, reply),
        }
    }

    fn answered(&mut self, asked: Asked, reply: Reply) -> Action {
        let yes = reply.is_positive();
        match asked {
            Asked::Mail(from) if yes => {
                let tx = Transaction {
                    envelope: Envelope {
                        reverse_path: from.reverse_path,
                        body: from.body.unwrap_or(BodyType::SevenBit),
                        smtputf8: from.smtputf8,
                        dsn: from.dsn,
                        hold: from.hold,
                        by: from.by,
                        priority: from.priority,
                        recipients: Vec::new(),
                    },
                    declared_bytes: from.size,
                    refused: false,
                    chunked: false,
                };
                self.stay(Some(tx), reply)
            }
            Asked::Rcpt(mut tx, recipient) => {
                if yes {
                    self.commands -= 1;
                    tx.envelope.recipients.push(recipient);
                } else {
                    tx.refused = true;
                }
                self.stay_uncounted(Some(tx), reply)
            }
            Asked::Data(tx) if yes => {
                self.state = State::Receiving(tx);
                Action::ReceiveData(Reply::plain(354, "end with a line of one dot"))
            }
            Asked::StartTls if yes => {
                self.state = State::Handshake;
                Action::StartTls(Reply::new(220, 0, 0, "go ahead"))
            }
            Asked::Message if yes => {
                self.commands = 0;
                self.errors = 0;
                self.stay(None, reply)
            }
            Asked::Scram(mechanism) if reply.code == 334 => {
                self.state = State::Sasl(Exchange::Scram(mechanism));
                Action::Say(reply)
            }
            Asked::Xclient(client) if yes => {
                // As if this client had just connected, with TLS as it is.
                self.logged_in = matches!(client.login, Some(Some(_)));
                // Once: proxies pass on what comes next as the client says it, and it may not say to be another.
                self.xclient = false;
                let esmtp = client.esmtp.unwrap_or(true);
                let hello = client.helo.flatten();
                self.hello = hello.map(|name| Hello { name, esmtp });
                self.errors = 0;
                self.stay(None, self.greeting())
            }
            Asked::Login | Asked::Scram(_) => {
                self.logged_in = yes;
                self.stay(None, reply)
            }
            // A refused DATA leaves nothing to go on with (RFC 5321 §4.1.1.4); a refused STARTTLS drops the transaction too.
            Asked::Mail(_) | Asked::Data(_) | Asked::Message | Asked::StartTls | Asked::Xclient(_) => {
                self.stay(None, reply)
            }
        }
    }

    fn ask(&mut self, asked: Asked, question: Question) -> Action {
        self.state = State::Asked(asked);
        Action::Ask(question)
    }

    /// Says `reply`, and goes on with the open transaction or with none. A 421 of the shell's closes.
    fn stay(&mut self, open: Option<Transaction>, reply: Reply) -> Action {
        if reply.code == 421 {
            return self.close(reply); // RFC 5321 §3.8
        }
        if counts(&reply) {
            self.errors += 1;
            if self.errors > self.config.max_errors {
                return self.close(Reply::new(421, 7, 0, "").with_text(self.named("too many errors")));
            }
        }
        self.stay_uncounted(open, reply)
    }

    /// The same for a refused recipient, which is no error of the session's: a list may hold many addresses of no use, and
    /// the others have to get their mail. The number of commands bounds them.
    fn stay_uncounted(&mut self, open: Option<Transaction>, reply: Reply) -> Action {
        if reply.code == 421 {
            return self.close(reply);
        }
        self.state = match open {
            Some(tx) => State::Open(tx),
            None => State::Ready,
        };
        Action::Say(self.dressed(reply))
    }

    fn close(&mut self, reply: Reply) -> Action {
        Action::Close(self.dressed(reply))
    }

    /// `hostname text`: replies that greet or close name the host (RFC 5321 §4.2.2).
    fn named(&self, text: &str) -> String {
        format!("{} {text}", self.config.hostname)
    }

    fn dressed(&self, mut reply: Reply) -> Reply {
        if !self.config.enhanced_codes {
            reply.enhanced = None;
        }
        reply
    }
}

fn out_of_order(text: &'static str) -> Reply {
    Reply::new(503, 5, 1, text)
}

/// Whether a reply tells of an error of the client's: not of ours (x.3.z, RFC 3463 §3.4), nor of a rate
/// (4.7.1), nor of recipients to be sent in
/// another transaction.
fn counts(reply: &Reply) -> bool {
    let ours = reply.is_transient()
        && reply
            .enhanced
            .is_some_and(|code| code.1 == 3 || (code.1, code.2) == (7, 1));
    reply.code >= 400 && !ours && *reply != replies::TOO_MANY_RECIPIENTS
}

impl fmt::Debug for Input<'_> {
    /// Without what the line says: it may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("Connected"),
            Self::EarlyTalk => f.write_str("EarlyTalk"),
            Self::Line(line) => write!(f, "Line({} octets)", line.len()),
            Self::LineTooLong => f.write_str("LineTooLong"),
            Self::Data(result) => write!(f, "Data({result:?})"),
            Self::Chunk(result) => write!(f, "Chunk({result:?})"),
            Self::Answer(reply) => write!(f, "Answer({reply})"),
            Self::TlsStarted => f.write_str("TlsStarted"),
            Self::Timeout => f.write_str("Timeout"),
            Self::Shutdown => f.write_str("Shutdown"),
            Self::Close(reply) => write!(f, "Close({reply})"),
        }
    }
}
