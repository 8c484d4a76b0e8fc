//! A client's session: the shell around mail-core's. It reads and writes within its limits, and answers what the session asks.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ipnet::IpNet;
use mail_core::smtp::chunk::Chunks;
use mail_core::smtp::command::MailFrom;
use mail_core::smtp::inbox::{Inbox, Line};
use mail_core::smtp::server::{Action, Auth, Input, Question, Session, replies};
use mail_core::{MaxHold, Priority, Recipient, Reply, ReversePath};
use rustls::ServerConfig;
use rustls::server::Acceptor;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::settings::Tenant;
use crate::credentials::Proof;
use crate::delivery::exchange::Doors;
use crate::routing::Sender;
use crate::world::Random;

use super::admission;
use super::fields::OwnField;
use super::front::{Entered, Front, Handshaking};
use super::listener::has;
use super::rates::{Limit, Who};
use large::{Large, Received};

mod keep;
mod large;
mod login;
mod receive;
mod renew;
#[cfg(test)]
mod tests;
mod xclient;

/// Octets read at a time.
const READ: usize = 64 * 1024;

/// A session that has said nothing for so long waits with room for so little: thousands may do nothing but wait.
const IDLE_AFTER: Duration = Duration::from_secs(1);
const READ_IDLE: usize = 4 * 1024;

/// How long a refused client may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the sessions of one listener share.
pub(super) struct Service {
    pub(super) front: Arc<Front>,
    pub(super) config: Arc<mail_core::smtp::server::Config>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// TLS comes first (RFC 8314 §3.3).
    pub(super) implicit_tls: bool,
    /// For whom clients speak that need not log in.
    pub(super) tenant: Option<Arc<str>>,
    /// In which stream their mail is.
    pub(super) stream: Arc<str>,
    /// The configuration says so of this listener.
    pub(super) stream_is_said: bool,
    pub(super) random: Random,
    /// To the shards.
    pub(super) doors: Doors,
    pub(super) stop: watch::Receiver<bool>,
    /// Of a trusted listener: whose mail is taken.
    pub(super) networks: Option<Vec<IpNet>>,
    /// Who may say by XCLIENT for whom it speaks.
    pub(super) xclient: Vec<IpNet>,
    /// What a reload has put in its place; within, `None` where the listener was taken away.
    pub(super) next: OnceCell<Option<Rc<Service>>>,
}

enum Wire<S> {
    Clear(S),
    Tls(Box<TlsStream<S>>),
    /// A handshake failed.
    Gone,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

impl<S: Duplex> Wire<S> {
    fn stream(&mut self) -> Option<Pin<&mut dyn Duplex>> {
        match self {
            Self::Clear(stream) => Some(Pin::new(stream)),
            Self::Tls(stream) => Some(Pin::new(stream)),
            Self::Gone => None,
        }
    }
}

/// One session.
pub(super) struct Shell<S> {
    service: Rc<Service>,
    entered: Entered,
    client: IpAddr,
    wire: Wire<S>,
    inbox: Inbox,
    out: Vec<u8>,
    line: Vec<u8>,
    data: Option<Received>,
    /// Of a message that is coming in and too large for the memory.
    large: Option<Large>,
    /// Of a message that comes by BDAT and is not whole.
    chunks: Option<Chunks>,
    /// For whom the client speaks, and by which credential.
    tenant: Option<Arc<str>>,
    credential: Option<Arc<str>>,
    proof: Option<Proof>,
    /// In which stream the credential's mail is, where it says so.
    stream: Option<Arc<str>>,
    tls: Option<String>,
    /// Our certificate on this connection.
    leaf: Option<CertificateDer<'static>>,
    /// Counted from STARTTLS on.
    handshaking: Option<Handshaking>,
    scram: Option<login::Exchange>,
    failed_logins: u32,
    deadline: Instant,
    stop: watch::Receiver<bool>,
    stopping: bool,
}

/// The connection is gone, or of no more use.
struct Lost;

/// Why reading ended without octets.
enum Quiet {
    Silence,
    Stopping,
    Lost,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    pub(super) fn new(service: Rc<Service>, entered: Entered, client: IpAddr, stream: S) -> Self {
        let deadline = Instant::now() + service.front.settings.submission.session_timeout;
        let stopping = *service.stop.borrow();
        Self {
            deadline,
            tenant: service.tenant.clone(),
            stop: service.stop.clone(),
            stopping,
            service,
            entered,
            client,
            wire: Wire::Clear(stream),
            inbox: Inbox::default(),
            out: Vec::new(),
            line: Vec::new(),
            data: None,
            large: None,
            chunks: None,
            credential: None,
            proof: None,
            stream: None,
            tls: None,
            leaf: None,
            handshaking: None,
            scram: None,
            failed_logins: 0,
        }
    }

    /// Serves the client to the end.
    pub(super) async fn run(mut self) {
        // How it ends is told where it matters; here the connection is just gone.
        let _ = self.serve().await;
        if let Some(mut stream) = self.wire.stream() {
            let _ = timeout(LAST_WORDS, stream.shutdown()).await;
        }
    }

    async fn serve(&mut self) -> Result<(), Lost> {
        if self.service.implicit_tls {
            self.start_tls().await?;
        }
        let session = Session::new(self.service.config.clone(), self.service.implicit_tls);
        let mut session = session
            .with_xclient(has(&self.service.xclient, self.client))
            .with_hold(self.max_hold());
        let mut action;
        (session, action) = session.step(match self.refusal() {
            Some(reply) => Input::Close(reply),
            None if self.has_spoken().await? => Input::EarlyTalk,
            None => Input::Connected,
        });
        loop {
            let next = match action {
                Action::Say(reply) => {
                    reply.write_to(&mut self.out);
                    self.listen(&session).await?
                }
                Action::Listen => self.listen(&session).await?,
                Action::Ask(Question::StartTls) if !self.inbox.is_empty() => Next::Input(Input::EarlyTalk),
                Action::Ask(question) => Next::Input(Input::Answer(self.answer(&session, question).await)),
                Action::ReceiveData(reply) => {
                    reply.write_to(&mut self.out);
                    self.receive(&session).await?
                }
                Action::ReceiveChunk(chunk, fate) => self.receive_chunk(&session, chunk, fate).await?,
                Action::StartTls(reply) => {
                    reply.write_to(&mut self.out);
                    self.flush().await?;
                    self.start_tls().await?;
                    Next::Input(Input::TlsStarted)
                }
                Action::Close(reply) => {
                    reply.write_to(&mut self.out);
                    return self.flush().await;
                }
                Action::Hangup => return Ok(()),
            };
            let input = match next {
                Next::Line => Input::Line(&self.line),
                Next::Input(input) => input,
            };
            (session, action) = session.step(input);
        }
    }

    /// Whether the client has said something before it was greeted (RFC 5321 §4.3.1).
    async fn has_spoken(&mut self) -> Result<bool, Lost> {
        match self.fill(Duration::ZERO, false).await {
            Ok(()) => Ok(true),
            Err(Quiet::Silence) => Ok(false),
            Err(Quiet::Stopping | Quiet::Lost) => Err(Lost),
        }
    }

    /// Whether the client is turned away at the greeting.
    fn refusal(&mut self) -> Option<Reply> {
        if *self.stop.borrow() {
            return Some(Reply::new(421, 3, 2, "going down"));
        }
        let name = self.tenant.clone()?;
        let tenant = self.service.front.tenant(&name)?;
        (!self.entered.speak_for(&name, tenant))
            .then(|| Reply::new(421, 3, 2, "too many connections of this tenant"))
    }

    /// The next line. What was said is sent only when nothing more of the client's is at hand (RFC 2920 §3.2).
    async fn listen(&mut self, session: &Session) -> Result<Next, Lost> {
        self.drop_stray_chunks(session);
        loop {
            match self.inbox.line() {
                Some(Line::Whole(line)) => {
                    self.line.clear();
                    self.line.extend_from_slice(line);
                    return Ok(Next::Line);
                }
                Some(Line::TooLong) => return Ok(Next::Input(Input::LineTooLong)),
                None => {}
            }
            self.flush().await?;
            match self
                .fill(session.patience(), session.is_between_transactions())
                .await
            {
                Ok(()) => {}
                Err(Quiet::Silence) => return Ok(Next::Input(Input::Timeout)),
                Err(Quiet::Stopping) => return Ok(Next::Input(Input::Shutdown)),
                Err(Quiet::Lost) => return Err(Lost),
            }
        }
    }

    /// Reads something. `may_stop`: the relay's going down ends the wait.
    async fn fill(&mut self, patience: Duration, may_stop: bool) -> Result<(), Quiet> {
        let now = Instant::now();
        let until = self.deadline.min(now + patience);
        let soon = until.min(now + IDLE_AFTER);
        match self.fill_until(soon, READ, may_stop).await {
            Err(Quiet::Silence) if soon < until => {
                let buffer = self.inbox.buffer();
                if buffer.is_empty() {
                    *buffer = BytesMut::new();
                }
                self.fill_until(until, READ_IDLE, may_stop).await
            }
            done => done,
        }
    }

    async fn fill_until(&mut self, until: Instant, room: usize, may_stop: bool) -> Result<(), Quiet> {
        let buffer = self.inbox.buffer();
        buffer.reserve(room);
        let Some(mut stream) = self.wire.stream() else {
            return Err(Quiet::Lost);
        };
        let read = timeout_at(until, stream.read_buf(buffer));
        if may_stop && self.stopping {
            return Err(Quiet::Stopping);
        }
        tokio::select! {
            biased;
            read = read => match read {
                Ok(Ok(0) | Err(_)) => Err(Quiet::Lost),
                Ok(Ok(_)) => Ok(()),
                Err(_) => Err(Quiet::Silence),
            },
            _ = self.stop.changed(), if may_stop => {
                self.stopping = true;
                Err(Quiet::Stopping)
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Lost> {
        if self.out.is_empty() {
            return Ok(());
        }
        let until = self
            .deadline
            .min(Instant::now() + self.service.config.command_timeout)
            + LAST_WORDS;
        let Some(mut stream) = self.wire.stream() else {
            return Err(Lost);
        };
        let written = timeout_at(until, async {
            stream.write_all(&self.out).await?;
            stream.flush().await
        });
        let done = written.await;
        self.out.clear();
        matches!(done, Ok(Ok(()))).then_some(()).ok_or(Lost)
    }

    async fn start_tls(&mut self) -> Result<(), Lost> {
        let Wire::Clear(stream) = std::mem::replace(&mut self.wire, Wire::Gone) else {
            return Err(Lost);
        };
        let Some(config) = &self.service.tls else {
            return Err(Lost);
        };
        let front = &self.service.front;
        let Some(_counted) = self.handshaking.take().or_else(|| front.begin_handshake()) else {
            tracing::warn!(client = %self.client, "turned away: too many TLS handshakes");
            return Err(Lost);
        };
        let limit = front.settings.submission.tls_timeout;
        match timeout(limit, handshake(config.clone(), stream)).await {
            Ok(Ok((stream, leaf))) => {
                front.count_handshake("done");
                self.leaf = leaf;
                let (_, session) = stream.get_ref();
                let version = session.protocol_version().map(|version| format!("{version:?}"));
                let suite = session
                    .negotiated_cipher_suite()
                    .map(|suite| format!("{:?}", suite.suite()));
                self.tls = Some(
                    [version, suite]
                        .into_iter()
                        .flatten()
                        .collect::<Vec<_>>()
                        .join(" "),
                );
                self.wire = Wire::Tls(Box::new(stream));
                Ok(())
            }
            Ok(Err(error)) => {
                front.count_handshake("failed");
                tracing::info!(client = %self.client, %error, "TLS handshake failed");
                Err(Lost)
            }
            Err(_) => {
                front.count_handshake("late");
                tracing::info!(client = %self.client, "TLS handshake not done in time");
                Err(Lost)
            }
        }
    }

    async fn answer(&mut self, session: &Session, question: Question) -> Reply {
        let reply = match question {
            Question::Login { user, password } => self.login(&user, password.expose()).await,
            Question::Scram {
                mechanism,
                first,
                message,
            } => self.scram(mechanism, first, message.expose()).await,
            Question::Mail(from) => match self.renewed() {
                Ok(()) if self.is_still_known().await => self.mail(&from),
                Ok(()) => Reply::new(421, 7, 0, "your login is no longer valid"),
                Err(reply) => reply,
            },
            Question::Rcpt(recipient) => self.rcpt(session, &recipient),
            Question::Xclient(client) => self.speak_as(client).await,
            Question::Message(envelope) => self.message(session, envelope).await,
            Question::Data => replies::GO,
            // RFC 3207 §4.
            Question::StartTls => {
                self.handshaking = self.service.front.begin_handshake();
                match self.handshaking {
                    Some(_) => replies::GO,
                    None => Reply::new(454, 7, 0, "too many handshakes at once; come back later"),
                }
            }
        };
        self.count_refusal(&reply);
        reply
    }

    fn count_refusal(&self, reply: &Reply) {
        if reply.code >= 400 {
            self.service
                .front
                .metrics
                .refused
                .with_label_values(&[&reply.code.to_string()])
                .inc();
        }
    }

    fn rules(&self) -> Option<&Tenant> {
        self.tenant
            .as_ref()
            .and_then(|name| self.service.front.tenant(name))
    }

    /// What EHLO tells of FUTURERELEASE, for the whole session.
    fn max_hold(&self) -> Option<MaxHold> {
        let front = &self.service.front;
        let most = front.settings.submission.max_hold;
        (most >= Duration::from_secs(1)).then(|| MaxHold::new(most, front.clock.now()))
    }

    fn max_message_bytes(&self) -> u64 {
        let most = self.service.config.max_message_bytes;
        self.rules()
            .and_then(|tenant| tenant.max_message_bytes)
            .map_or(most, |own| own.min(most))
    }

    fn mail(&self, from: &MailFrom) -> Reply {
        if let Some(reply) = self.service.front.readiness() {
            return reply;
        }
        let Some(tenant) = self.rules() else {
            return sabotaged_open_relay().unwrap_or(Reply::new(530, 7, 0, "log in first"));
        };
        if from.size.is_some_and(|size| size > self.max_message_bytes()) {
            return replies::TOO_BIG;
        }
        if let Some(tenant) = &self.tenant
            && self
                .service
                .front
                .queue
                .over_limit(tenant, from.size.unwrap_or(0))
                .is_some()
        {
            return replies::TOO_MUCH_WAITS;
        }
        let now = self.service.front.clock.now();
        if let (Some(hold), Some(by)) = (from.hold, from.by)
            && by.from(now).at <= hold.release(now)
        {
            return Reply::new(501, 5, 4, "the time of BY is over before the message is released");
        }
        match admission::sender(tenant, &from.reverse_path) {
            Some(reply) => {
                tracing::info!(client = %self.client, tenant = self.tenant.as_deref(), from = %from.reverse_path, %reply, "refused");
                reply
            }
            None => self.within_rates(true).unwrap_or(replies::SENDER_OK),
        }
    }

    fn rcpt(&self, session: &Session, recipient: &Recipient) -> Reply {
        let most = self
            .rules()
            .and_then(|tenant| tenant.max_recipients)
            .unwrap_or(usize::MAX);
        if session
            .envelope()
            .is_some_and(|envelope| envelope.recipients.len() >= most)
        {
            return replies::TOO_MANY_RECIPIENTS;
        }
        let refused = session.envelope().and_then(|envelope| {
            let listed = self.rules().map(|tenant| &*tenant.header_fields);
            let is_open = listed.unwrap_or_default().contains(&OwnField::Stream);
            // A field of the message may still name another.
            let stream = (!is_open).then(|| &**self.stream(envelope.priority));
            let sender = self.sender(&envelope.reverse_path, stream);
            self.service.front.routing.refusal(sender, &recipient.mailbox)
        });
        match refused {
            Some(reply) => {
                tracing::info!(client = %self.client, tenant = self.tenant.as_deref(), to = %recipient.mailbox, %reply, "refused by a route");
                reply
            }
            None => self.within_rates(false).unwrap_or(replies::RECIPIENT_OK),
        }
    }

    /// Takes a message or a recipient from the limits; if there is none left, what the client is told.
    fn within_rates(&self, message: bool) -> Option<Reply> {
        let front = &self.service.front;
        let rates = self.rules().map(|tenant| tenant.rates).unwrap_or_default();
        let tenant = self.tenant.clone().map(Who::Name);
        let credential = self.credential.clone().map(Who::Name);
        let over = if message {
            let address = Some(Who::address(self.client));
            let by_address = front.settings.submission.address_rates.messages;
            let wanted = [
                (Limit::TenantMessages, tenant, rates.messages),
                (Limit::CredentialMessages, credential, rates.credential_messages),
                (Limit::AddressMessages, address, by_address),
            ];
            front.rates.take(&wanted, Instant::now())
        } else {
            let wanted = [
                (Limit::TenantRecipients, tenant, rates.recipients),
                (
                    Limit::CredentialRecipients,
                    credential,
                    rates.credential_recipients,
                ),
            ];
            front.rates.take(&wanted, Instant::now())
        };
        let over = over.err()?;
        tracing::info!(client = %self.client, tenant = self.tenant.as_deref(), limit = over.limit.word(), "over a rate");
        Some(front.over(450, over))
    }

    /// In which stream mail of this priority is: the credential's or the listener's, unless the priority's own is lighter; where
    /// neither says one, the priority's. So a client can make its mail less urgent than it is let, and not more.
    fn stream(&self, priority: Option<Priority>) -> &Arc<str> {
        let streams = &self.service.front.settings.delivery.streams;
        let own = self.stream.as_ref().unwrap_or(&self.service.stream);
        let is_said = self.stream.is_some() || self.service.stream_is_said;
        let asked = priority.and_then(|priority| streams.of_priority(priority));
        asked
            .filter(|asked| !is_said || streams.weight(asked) < streams.weight(own))
            .unwrap_or(own)
    }

    fn sender<'a>(&'a self, reverse_path: &'a ReversePath, stream: Option<&'a str>) -> Sender<'a> {
        Sender {
            tenant: self.tenant.as_deref().unwrap_or_default(),
            stream,
            reverse_path,
        }
    }
}

/// The session's next input; a line is in [`Shell::line`].
enum Next {
    Line,
    Input(Input<'static>),
}

/// The handshake, and the certificate that we show in it.
async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: S,
) -> io::Result<(TlsStream<S>, Option<CertificateDer<'static>>)> {
    let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let shown = config.cert_resolver.resolve(begun.client_hello());
    let leaf = shown.and_then(|shown| shown.cert.first().cloned());
    Ok((begun.into_stream(config).await?, leaf))
}

/// Whether clients have to log in; never a question outside of CI's controls (docs/promises.md).
pub(super) fn auth() -> Auth {
    if sabotaged_open_relay().is_some() {
        Auth::None
    } else {
        Auth::Required
    }
}

fn sabotaged_open_relay() -> Option<Reply> {
    crate::sabotage::is_on("open-relay").then_some(replies::SENDER_OK)
}
