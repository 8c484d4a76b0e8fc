//! Receiving hosts: the shell around the server session of `mail-core`.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mail_core::smtp::chunk::Chunks;
use mail_core::smtp::command::Chunk;
use mail_core::smtp::data::{self, Decoder};
use mail_core::smtp::inbox::{Inbox, Line};
use mail_core::smtp::server::{Action, Auth, Config, Fate, Input, Question, Session, replies};
use mail_core::{Domain, Envelope, Mailbox, Reply, ReversePath, Timestamp};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::behaviour::{Behaviour, Visit};
use crate::mailbox::{Delivery, Mailboxes};
use crate::verdict::Verifier;

/// SIZE of all hosts.
pub const MAX_MESSAGE_BYTES: u64 = 128 << 20;
/// RCPTs a transaction.
const MAX_RECIPIENTS: usize = 1_000;
/// Connections of all hosts at once; more are told 421.
const MAX_CONNECTIONS: usize = 2_000;
/// Message octets being received at once, all connections together; more are told 452.
const MAX_BYTES_IN_FLIGHT: u64 = 512 << 20;
/// Refusals a client may cause in one session. A relay under test that keeps its connections causes many.
const MAX_ERRORS: u32 = 10_000;

/// Silence while a command or message data is awaited (RFC 5321 §4.5.3.2.7).
const COMMAND_PATIENCE: Duration = Duration::from_secs(300);
/// A client that takes nothing.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// A TLS handshake.
const TLS_PATIENCE: Duration = Duration::from_secs(30);
/// After a failed accept: out of file handles, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A fatal alert of that name (RFC 8446 §6.2).
const HANDSHAKE_FAILURE: &[u8] = b"\x15\x03\x03\x00\x02\x02\x28";

/// Octets asked of the socket at once.
const READ: usize = 64 << 10;

/// Called with every message before its 250.
pub type Observer = Arc<dyn Fn(&Delivery) + Send + Sync>;

/// What all hosts share.
pub(crate) struct Shared {
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) verifier: Option<Verifier>,
    pub(crate) observer: Option<Observer>,
    connections: Arc<Semaphore>,
    in_flight: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        mailboxes: Arc<Mailboxes>,
        verifier: Option<Verifier>,
        observer: Option<Observer>,
    ) -> Self {
        Self {
            mailboxes,
            verifier,
            observer,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            in_flight: AtomicU64::new(0),
        }
    }
}

/// One receiving host.
pub(crate) struct Host {
    domains: HashSet<Domain>,
    behaviour: Arc<dyn Behaviour>,
    config: Arc<Config>,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
}

impl Host {
    /// A host that takes mail for `domains`.
    pub(crate) fn new(
        name: &Domain,
        postmaster: Mailbox,
        domains: HashSet<Domain>,
        behaviour: Arc<dyn Behaviour>,
        tls: Arc<ServerConfig>,
        shared: Arc<Shared>,
    ) -> Self {
        let mut config = Config {
            hostname: name.to_string(),
            postmaster,
            max_message_bytes: MAX_MESSAGE_BYTES,
            max_recipients: MAX_RECIPIENTS,
            max_errors: MAX_ERRORS,
            starttls: true,
            auth: Auth::None,
            pipelining: true,
            eight_bit_mime: true,
            // `utf8.test` does.
            smtputf8: false,
            chunking: true,
            // Nothing here makes reports.
            dsn: false,
            // Scripted peers do.
            deliver_by: false,
            mt_priority: false,
            enhanced_codes: true,
            command_timeout: COMMAND_PATIENCE,
            data_timeout: COMMAND_PATIENCE,
        };
        behaviour.offer(&mut config);
        Self {
            domains,
            behaviour,
            config: Arc::new(config),
            tls: tls.into(),
            shared,
        }
    }

    /// Serves until dropped, and then ends its sessions where they are.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        sessions.spawn(Arc::clone(&self).greet(stream, peer));
                    }
                    Err(error) => {
                        tracing::warn!(%error, host = self.config.hostname, "the lab can't accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = sessions.join_next() => {}
            }
        }
    }

    async fn greet(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Replies are written whole.
        let _ = stream.set_nodelay(true);
        let connections = Arc::clone(&self.shared.connections);
        let mut wire = Wire::new(Box::new(stream));
        let served = match connections.try_acquire() {
            Ok(_permit) => self.serve(wire, peer.ip()).await,
            Err(_) => {
                wire.say(&Reply::new(421, 3, 2, "too many connections"));
                wire.flush().await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, host = self.config.hostname, "a connection to the lab broke");
        }
    }

    async fn serve(&self, mut wire: Wire, client: IpAddr) -> io::Result<()> {
        let mut session = Session::new(Arc::clone(&self.config), false);
        let mut tls = None;
        let mut message: Option<data::Data> = None;
        let mut chunks = self.chunks();
        let mut line;
        let mut input = Input::Connected;
        loop {
            let action;
            (session, action) = session.step(input);
            input = match action {
                Action::Say(_) | Action::Listen => {
                    if let Action::Say(reply) = &action {
                        wire.say(reply);
                    }
                    line = wire.line(session.patience()).await?;
                    match &line {
                        Heard::Line(line) => Input::Line(line),
                        Heard::TooLong => Input::LineTooLong,
                        Heard::Silence => Input::Timeout,
                        Heard::End => return Ok(()),
                    }
                }
                Action::Ask(Question::StartTls) if !wire.inbox.is_empty() => Input::EarlyTalk,
                Action::Ask(question) => {
                    let helo = session.hello().map_or("", |hello| &hello.name);
                    let visitor = Visitor {
                        client,
                        helo,
                        tls: &tls,
                    };
                    match self.answer(question, &session, visitor, &mut message).await {
                        Some(reply) => Input::Answer(reply),
                        None => return timeout(WRITE_PATIENCE, wire.stream.shutdown()).await?,
                    }
                }
                Action::ReceiveData(reply) => {
                    wire.say(&reply);
                    let mut decoder = Decoder::new(self.config.max_message_bytes, session.declared_bytes());
                    if !self.receive(&mut wire, &mut decoder, session.patience()).await? {
                        return Ok(());
                    }
                    match decoder.finish() {
                        Ok(data) => {
                            message = Some(data);
                            Input::Data(Ok(()))
                        }
                        Err(fault) => Input::Data(Err(fault)),
                    }
                }
                Action::ReceiveChunk(chunk, fate) => {
                    if fate != Fate::Append {
                        chunks = self.chunks();
                    }
                    chunks.reader.begin(chunk.octets);
                    if fate == Fate::Drop {
                        chunks.reader.abandon();
                    }
                    if !chunks.fill(&mut wire, session.patience()).await? {
                        return Ok(());
                    }
                    Input::Chunk(match (chunk, fate) {
                        (_, Fate::Drop) => Ok(()),
                        (Chunk { last: true, .. }, _) => {
                            let whole = std::mem::replace(&mut chunks, self.chunks());
                            whole.reader.finish().map(|data| message = Some(data))
                        }
                        _ => chunks.reader.fault().map_or(Ok(()), Err),
                    })
                }
                Action::StartTls(reply) => {
                    wire.say(&reply);
                    wire.flush().await?;
                    if self.behaviour.breaks_tls() {
                        wire.stream.write_all(HANDSHAKE_FAILURE).await?;
                        return timeout(WRITE_PATIENCE, wire.stream.shutdown()).await?;
                    }
                    let stream = timeout(TLS_PATIENCE, self.tls.accept(wire.stream)).await??;
                    let (_, connection) = stream.get_ref();
                    tls = match (
                        connection.protocol_version(),
                        connection.negotiated_cipher_suite(),
                    ) {
                        (Some(version), Some(suite)) => Some(format!("{version:?} {:?}", suite.suite())),
                        _ => None,
                    };
                    wire = Wire::new(Box::new(stream));
                    Input::TlsStarted
                }
                Action::Close(reply) => {
                    wire.say(&reply);
                    wire.flush().await?;
                    return timeout(WRITE_PATIENCE, wire.stream.shutdown()).await?;
                }
                Action::Hangup => return Ok(()),
            };
        }
    }

    fn chunks(&self) -> Collected<'_> {
        Collected {
            reader: Chunks::new(self.config.max_message_bytes, None),
            held: Held {
                shared: &self.shared,
                bytes: 0,
            },
        }
    }

    /// Fills the decoder up to the message's end. False: the client left or fell silent.
    async fn receive(&self, wire: &mut Wire, decoder: &mut Decoder, patience: Duration) -> io::Result<bool> {
        let mut held = Held {
            shared: &self.shared,
            bytes: 0,
        };
        loop {
            wire.inbox.decode(decoder);
            if !held.set(decoder.kept() as u64) {
                decoder.abandon();
            }
            if decoder.is_at_end() {
                return Ok(true);
            }
            match wire.fill(patience).await? {
                Filled::Some => {}
                Filled::Silence | Filled::End => return Ok(false),
            }
        }
    }

    /// `None`: hang up without a word.
    async fn answer(
        &self,
        question: Question,
        session: &Session,
        visitor: Visitor<'_>,
        message: &mut Option<data::Data>,
    ) -> Option<Reply> {
        Some(match question {
            Question::Mail(from) => {
                let visit = visitor.visit(&from.reverse_path);
                self.behaviour.mail(visit).unwrap_or(replies::SENDER_OK)
            }
            Question::Rcpt(recipient) => match session.envelope() {
                Some(envelope) => self.rcpt(visitor.visit(&envelope.reverse_path), &recipient.mailbox),
                None => Reply::new(451, 3, 0, "no transaction"),
            },
            Question::Data | Question::StartTls => replies::GO,
            Question::Message(envelope) => match message.take() {
                Some(data) => return self.message(envelope, visitor, data).await,
                None => Reply::new(451, 3, 0, "no message"),
            },
            Question::Login { .. } | Question::Scram { .. } => replies::BAD_LOGIN,
            // Never allowed here.
            Question::Xclient(_) => Reply::new(550, 7, 1, "you may not speak for others"),
        })
    }

    fn rcpt(&self, visit: Visit<'_>, recipient: &Mailbox) -> Reply {
        if !self.domains.contains(recipient.domain()) {
            return Reply::new(550, 7, 1, "that domain's mail is not taken here");
        }
        if let Some(refusal) = self.behaviour.rcpt(visit, recipient) {
            return refusal;
        }
        if !self.shared.mailboxes.has_room(recipient) {
            return Reply::new(452, 2, 2, "mailbox full");
        }
        replies::RECIPIENT_OK
    }

    async fn message(&self, envelope: Envelope, visitor: Visitor<'_>, data: data::Data) -> Option<Reply> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let delay = self.behaviour.message_delay();
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let recipients: Vec<_> = envelope.recipients.iter().map(|to| to.mailbox.clone()).collect();
        let visit = visitor.visit(&envelope.reverse_path);
        if let Some(refusal) = self.behaviour.message(visit, &recipients) {
            return Some(refusal);
        }
        if !self.config.eight_bit_mime && !data.octets.is_ascii() {
            return Some(Reply::new(
                554,
                6,
                3,
                "8-bit octets, and 8BITMIME was not offered",
            ));
        }
        let hangs_up = self.behaviour.hangs_up(visit, &recipients);
        let Visitor { client, helo, tls } = visitor;
        let sender = &envelope.reverse_path;
        let verdicts = match &self.shared.verifier {
            Some(verifier) => Some(
                verifier
                    .judge(&data.octets, client, helo, sender, &self.config.hostname)
                    .await,
            ),
            None => None,
        };
        let delivery = Delivery {
            recipients,
            mail_from: envelope.reverse_path,
            client,
            helo: helo.to_owned(),
            tls: tls.clone(),
            at: Timestamp(u64::try_from(at.as_millis()).unwrap_or(u64::MAX)),
            raw: data.octets,
            verdicts,
        };
        let shared = Arc::clone(&self.shared);
        let filed = tokio::task::spawn_blocking(move || {
            shared.mailboxes.file(&delivery)?;
            if let Some(observer) = &shared.observer {
                observer(&delivery);
            }
            Ok(())
        });
        match filed.await.map_err(io::Error::other).flatten() {
            Ok(()) => (!hangs_up).then_some(Reply::new(250, 0, 0, "kept")),
            Err(error) => {
                tracing::warn!(%error, host = self.config.hostname, "the lab can't keep a message");
                Some(Reply::new(451, 3, 0, "could not be kept"))
            }
        }
    }
}

/// Who is there.
#[derive(Clone, Copy)]
struct Visitor<'a> {
    client: IpAddr,
    helo: &'a str,
    tls: &'a Option<String>,
}

impl<'a> Visitor<'a> {
    fn visit<'b>(self, sender: &'b ReversePath) -> Visit<'b>
    where
        'a: 'b,
    {
        Visit {
            client: self.client,
            helo: self.helo,
            sender,
        }
    }
}

/// Octets of a message that is being received, counted against the common bound.
struct Held<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl Held<'_> {
    /// False: there is no room for so many.
    fn set(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let before = self.shared.in_flight.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        before + more <= MAX_BYTES_IN_FLIGHT
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A message's chunks so far.
struct Collected<'a> {
    reader: Chunks,
    held: Held<'a>,
}

impl Collected<'_> {
    /// Reads the chunk to its end. False: the client left or fell silent.
    async fn fill(&mut self, wire: &mut Wire, patience: Duration) -> io::Result<bool> {
        loop {
            wire.inbox.take_chunk(&mut self.reader);
            if !self.held.set(self.reader.kept() as u64) {
                self.reader.abandon();
            }
            if self.reader.is_at_end() {
                return Ok(true);
            }
            match wire.fill(patience).await? {
                Filled::Some => {}
                Filled::Silence | Filled::End => return Ok(false),
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection with what was read and not yet used, and what was said and not yet written.
struct Wire {
    stream: Box<dyn Stream>,
    inbox: Inbox,
    outbox: Vec<u8>,
}

enum Heard {
    Line(Vec<u8>),
    TooLong,
    Silence,
    End,
}

enum Filled {
    Some,
    Silence,
    End,
}

impl Wire {
    fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            inbox: Inbox::default(),
            outbox: Vec::new(),
        }
    }

    /// Written at the next flush: replies to a group of commands go out together (RFC 2920 §3.2).
    fn say(&mut self, reply: &Reply) {
        reply.write_to(&mut self.outbox);
    }

    async fn flush(&mut self) -> io::Result<()> {
        timeout(WRITE_PATIENCE, async {
            self.stream.write_all(&self.outbox).await?;
            self.stream.flush().await
        })
        .await??;
        self.outbox.clear();
        Ok(())
    }

    async fn line(&mut self, patience: Duration) -> io::Result<Heard> {
        loop {
            match self.inbox.line() {
                Some(Line::Whole(line)) => return Ok(Heard::Line(line.to_vec())),
                Some(Line::TooLong) => return Ok(Heard::TooLong),
                None => {}
            }
            match self.fill(patience).await? {
                Filled::Some => {}
                Filled::Silence => return Ok(Heard::Silence),
                Filled::End => return Ok(Heard::End),
            }
        }
    }

    /// Writes what is due and reads something more.
    async fn fill(&mut self, patience: Duration) -> io::Result<Filled> {
        if !self.outbox.is_empty() {
            self.flush().await?;
        }
        let buffer = self.inbox.buffer();
        buffer.reserve(READ);
        match timeout(patience, self.stream.read_buf(buffer)).await {
            Err(_) => Ok(Filled::Silence),
            Ok(Ok(0)) => Ok(Filled::End),
            Ok(Ok(_)) => Ok(Filled::Some),
            Ok(Err(error)) => Err(error),
        }
    }
}
