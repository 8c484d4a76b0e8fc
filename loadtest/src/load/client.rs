//! The sessions of a load: as fast as they are answered, or at a rate.
//!
//! At a rate, each message has a moment at which it is meant to begin, whether or not a session is free then, and its latency counts
//! from there: what a stalled relay keeps others from sending is measured too (no coordinated omission).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::alarm::Alarm;
use super::letters::Letters;
use super::record::{Rows, Sent, Zero};
use super::wire::{PATIENCE, Peer, Reply, Stream};

/// Before a session that could not connect tries again.
const AGAIN: Duration = Duration::from_millis(50);
/// Failed connections in a row after which a session gives up.
const TRIES: u32 = 200;

/// Sessions of a closed loop that wait for their first greeting at once: all begin in the same moment. Who finds a listener's queue full
/// (OpenSMTPD's takes 5) and is answered by a SYN cookie has, on Linux, a connection that the listener never hears of, and waits for ever.
const GREETED_AT_ONCE: usize = 4;

/// How often a session that waits for a message's moment looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tls {
    /// Not at all.
    Off,
    /// By STARTTLS.
    Starttls,
    /// From the start.
    Implicit,
}

/// How messages are transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transfer {
    /// Command by command.
    Lockstep,
    /// MAIL, RCPT and DATA in one write (RFC 2920), where it is offered.
    Pipelined,
    /// MAIL, RCPT, BDAT and the message in one write (RFC 3030).
    Bdat,
}

/// Where to, and how.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Tls,
    pub(crate) connector: TlsConnector,
    /// The name that its certificate is held against.
    pub(crate) name: ServerName<'static>,
    /// User and password.
    pub(crate) login: Option<(String, String)>,
    pub(crate) transfer: Transfer,
}

impl Target {
    /// In clear, without a login.
    pub(crate) fn plain(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self {
            address,
            tls: Tls::Off,
            connector: connector()?,
            name: ServerName::IpAddress(address.ip().into()),
            login: None,
            transfer: Transfer::Pipelined,
        })
    }
}

/// A session that has nothing more to say, and stays open while this is there.
pub(crate) enum Held {
    Plain {
        _peer: Peer<TcpStream>,
    },
    Tls {
        _peer: Box<Peer<tokio_rustls::client::TlsStream<TcpStream>>>,
    },
}

impl Target {
    /// Opens one: EHLO after whatever TLS there is, and a transaction that is begun and given up.
    pub(crate) async fn hold(&self) -> anyhow::Result<Held> {
        let stream = timeout(PATIENCE, TcpStream::connect(self.address)).await??;
        let mut peer = Peer::new(stream);
        peer.reply().await?;
        if self.tls == Tls::Off {
            begin_and_give_up(&mut peer).await?;
            return Ok(Held::Plain { _peer: peer });
        }
        peer.say("EHLO load.test").await?;
        let ready = peer.say("STARTTLS").await?;
        ensure!(ready.code == 220, "STARTTLS: {}", ready.text);
        let handshake = self.connector.connect(self.name.clone(), peer.into_inner());
        let mut peer = Peer::new(timeout(PATIENCE, handshake).await??);
        begin_and_give_up(&mut peer).await?;
        Ok(Held::Tls { _peer: peer.into() })
    }
}

async fn begin_and_give_up<S: Stream>(peer: &mut Peer<S>) -> anyhow::Result<()> {
    for line in [
        "EHLO load.test",
        "MAIL FROM:<load@sender.test>",
        "RCPT TO:<u0@d0.load.test>",
        "RSET",
    ] {
        let reply = peer.say(line).await?;
        ensure!(reply.code == 250, "{line}: {}", reply.text);
    }
    Ok(())
}

/// For TLS that proves nothing: a load measures, and often meets certificates made for the day.
fn connector() -> anyhow::Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let any = Arc::new(AnyCertificate(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(any)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// How much, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) sessions: usize,
    pub(crate) beat: Beat,
    /// The load ends after so many, or after the time.
    pub(crate) messages: u32,
    pub(crate) time: Option<Duration>,
    /// After so many a session says QUIT, and connects anew.
    pub(crate) per_session: u32,
}

/// When messages are meant to begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Beat {
    /// As soon as a session is free.
    AsAnswered,
    /// So many a second, all sessions together, evenly.
    Rate(f64),
    /// So many at once, again and again.
    Bursts { of: u32, every: Duration },
}

impl Beat {
    /// Of the message of this number, since the load's begin; `None`: now.
    fn of(self, ticket: u32) -> Option<Duration> {
        match self {
            Self::AsAnswered => None,
            Self::Rate(rate) => Some(Duration::from_secs_f64(f64::from(ticket) / rate)),
            Self::Bursts { of, every } => Some(every * (ticket / of)),
        }
    }
}

/// A load under way.
pub(crate) struct Load {
    letters: Arc<Letters>,
    target: Target,
    pace: Pace,
    zero: Zero,
    /// When it began, since the run's zero.
    began: Duration,
    /// Its messages' numbers begin here.
    first: u32,
    next: AtomicU32,
    stop: AtomicBool,
    greetings: Semaphore,
    pub(crate) sent: Rows<Sent>,
    pub(crate) octets: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) recipients_refused: AtomicU64,
    /// Sessions that broke off.
    pub(crate) broken: AtomicU64,
}

impl Load {
    /// Of messages that are numbered from `first`.
    pub(crate) fn new(
        letters: Arc<Letters>,
        target: Target,
        pace: Pace,
        zero: Zero,
        first: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            letters,
            target,
            pace,
            zero,
            began: zero.elapsed(),
            first,
            next: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            greetings: Semaphore::new(GREETED_AT_ONCE),
            sent: Rows::default(),
            octets: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            recipients_refused: AtomicU64::new(0),
            broken: AtomicU64::new(0),
        })
    }

    /// When it began, since the run's zero.
    pub(crate) fn began(&self) -> Duration {
        self.began
    }

    /// The numbers of its messages.
    pub(crate) fn numbers(&self) -> std::ops::Range<u32> {
        self.first..self.first.saturating_add(self.pace.messages)
    }

    /// No session begins another message.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Runs to its end. Where a session gives up, no other begins another message, and what they have begun is answered first.
    pub(crate) async fn run(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut sessions = JoinSet::new();
        for _ in 0..self.pace.sessions {
            sessions.spawn(Arc::clone(self).session());
        }
        let mut first = Ok(());
        while let Some(ended) = sessions.join_next().await {
            if let Err(error) = ended? {
                self.stop();
                first = first.and(Err(error));
            }
        }
        first
    }

    /// The next message's number, and when it is meant to begin.
    fn ticket(&self) -> Option<(u32, Duration)> {
        if self.stop.load(Ordering::Relaxed) || self.next.load(Ordering::Relaxed) >= self.pace.messages {
            return None;
        }
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let meant = match self.pace.beat.of(ticket) {
            Some(since) => self.began + since,
            None => self.zero.elapsed(),
        };
        let in_time = self
            .pace
            .time
            .is_none_or(|time| meant.saturating_sub(self.began) < time);
        (in_time && ticket < self.pace.messages).then_some((self.first + ticket, meant))
    }

    /// Connects as often as it takes. What it has a ticket for it sends, or records as not answered.
    async fn session(self: Arc<Self>) -> anyhow::Result<()> {
        let mut tries = 0;
        let mut turn = match self.pace.beat {
            Beat::AsAnswered => self.greetings.acquire().await.ok(),
            // A message that has its moment does not wait for other sessions.
            Beat::Rate(_) | Beat::Bursts { .. } => None,
        };
        while let Some(ticket) = self.ticket() {
            let mut ticket = Some(ticket);
            loop {
                match self.visit(&mut ticket, &mut turn).await {
                    Ok(()) => tries = 0,
                    Err(Trouble::Wrong(error)) => {
                        self.unanswered(ticket);
                        return Err(error);
                    }
                    Err(Trouble::Broken(error)) => {
                        // Who is not greeted keeps nobody else from it.
                        turn = None;
                        self.broken.fetch_add(1, Ordering::Relaxed);
                        tries += 1;
                        if tries >= TRIES || self.stop.load(Ordering::Relaxed) {
                            self.unanswered(ticket);
                        }
                        if tries >= TRIES {
                            return Err(error).context(format!("{TRIES} connections in a row failed"));
                        }
                        sleep(AGAIN).await;
                    }
                }
                if ticket.is_none() || self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// A message that no connection was there for, if it was its moment.
    fn unanswered(&self, ticket: Option<(u32, Duration)>) {
        let now = self.zero.elapsed();
        if let Some((number, meant)) = ticket.filter(|(_, meant)| *meant <= now) {
            self.sent.push(Sent {
                number,
                domain: 0,
                recipients: 0,
                code: 0,
                meant,
                begun: meant,
                written: now,
                answered: now,
            });
        }
    }

    /// Until a message is meant to begin; false where no more are to.
    async fn until(&self, alarm: &Alarm, meant: Duration) -> io::Result<bool> {
        while let Some(early) = meant.checked_sub(self.zero.elapsed()) {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            alarm.wait(early.min(LOOK_EVERY)).await?;
        }
        Ok(true)
    }

    /// A connection, from its begin to its end; its `turn` to be greeted is over with the greeting.
    async fn visit(
        &self,
        ticket: &mut Option<(u32, Duration)>,
        turn: &mut Option<SemaphorePermit<'_>>,
    ) -> Result<(), Trouble> {
        let Target {
            address,
            tls,
            connector,
            name,
            ..
        } = &self.target;
        let stream = timeout(PATIENCE, TcpStream::connect(address))
            .await
            .map_err(io::Error::from)??;
        stream.set_nodelay(true)?;
        let handshake = |stream| async move {
            let handshake = connector.connect(name.clone(), stream);
            timeout(PATIENCE, handshake).await.map_err(io::Error::from)?
        };
        match tls {
            Tls::Off => {
                let mut peer = Peer::new(stream);
                expect(peer.reply().await?, 220)?;
                drop(turn.take());
                self.transactions(peer, ticket).await
            }
            Tls::Starttls => {
                let mut peer = Peer::new(stream);
                expect(peer.reply().await?, 220)?;
                drop(turn.take());
                expect(peer.say("EHLO load.test").await?, 250)?;
                expect(peer.say("STARTTLS").await?, 220)?;
                let peer = Peer::new(handshake(peer.into_inner()).await?);
                self.transactions(peer, ticket).await
            }
            Tls::Implicit => {
                let mut peer = Peer::new(handshake(stream).await?);
                expect(peer.reply().await?, 220)?;
                drop(turn.take());
                self.transactions(peer, ticket).await
            }
        }
    }

    /// From EHLO on.
    async fn transactions<S: Stream>(
        &self,
        mut peer: Peer<S>,
        ticket: &mut Option<(u32, Duration)>,
    ) -> Result<(), Trouble> {
        let offers = expect(peer.say("EHLO load.test").await?, 250)?
            .text
            .to_ascii_uppercase();
        let transfer = match self.target.transfer {
            Transfer::Pipelined if !offers.contains("PIPELINING") => Transfer::Lockstep,
            Transfer::Bdat if !offers.contains("CHUNKING") => {
                return Err(Trouble::Wrong(anyhow::anyhow!("BDAT is not offered")));
            }
            transfer => transfer,
        };
        if let Some((user, password)) = &self.target.login {
            let initial = base64::engine::general_purpose::STANDARD.encode(format!("\0{user}\0{password}"));
            let reply = peer.say(&format!("AUTH PLAIN {initial}")).await?;
            if reply.code != 235 {
                return Err(Trouble::Wrong(anyhow::anyhow!("AUTH PLAIN: {}", reply.text)));
            }
        }
        let alarm = match self.pace.beat {
            Beat::AsAnswered => None,
            Beat::Rate(_) | Beat::Bursts { .. } => Some(Alarm::new()?),
        };
        for _ in 0..self.pace.per_session {
            let Some((number, meant)) = ticket.take().or_else(|| self.ticket()) else {
                break;
            };
            if let Some(alarm) = &alarm
                && !self.until(alarm, meant).await?
            {
                break;
            }
            let mut sent = Sent {
                number,
                domain: 0,
                recipients: 0,
                code: 0,
                meant,
                begun: self.zero.elapsed(),
                written: Duration::ZERO,
                answered: Duration::ZERO,
            };
            let done = self.transaction(&mut peer, &mut sent, transfer).await;
            sent.answered = self.zero.elapsed();
            if sent.is_accepted() {
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
            self.sent.push(sent);
            done?;
        }
        // The end of a session that has said all it had to.
        let _ = peer.write(&[b"QUIT\r\n"]).await;
        let _ = peer.code().await;
        Ok(())
    }

    async fn transaction<S: Stream>(
        &self,
        peer: &mut Peer<S>,
        sent: &mut Sent,
        transfer: Transfer,
    ) -> Result<(), Trouble> {
        let letter = self.letters.letter(sent.number);
        sent.domain = letter.domain;
        // A hundred at the most.
        sent.recipients = letter.recipients.len() as u8;
        let mail = format!("MAIL FROM:<{}>\r\n", self.letters.sender());
        let rcpts: Vec<String> = letter
            .recipients
            .iter()
            .map(|recipient| format!("RCPT TO:<{recipient}>\r\n"))
            .collect();
        self.octets.fetch_add(letter.octets() as u64, Ordering::Relaxed);
        if transfer == Transfer::Bdat {
            let bdat = format!("BDAT {} LAST\r\n", letter.octets());
            let mut all = vec![mail.as_bytes()];
            all.extend(rcpts.iter().map(String::as_bytes));
            all.push(bdat.as_bytes());
            all.extend(self.letters.raw(&letter));
            peer.write(&all).await?;
            sent.written = self.zero.elapsed();
            let mut heard = Heard::default();
            for _ in 0..=rcpts.len() {
                heard.hear(peer.code().await?);
            }
            let end = peer.code().await?;
            return self.done(peer, sent, &heard, end).await;
        }
        let mut commands = vec![mail.as_bytes()];
        commands.extend(rcpts.iter().map(String::as_bytes));
        if transfer == Transfer::Pipelined {
            let all: Vec<&[u8]> = commands.iter().copied().chain([&b"DATA\r\n"[..]]).collect();
            peer.write(&all).await?;
        }
        let mut heard = Heard::default();
        for command in commands {
            if transfer == Transfer::Lockstep {
                peer.write(&[command]).await?;
            }
            heard.hear(peer.code().await?);
        }
        if transfer == Transfer::Lockstep {
            if heard.taken == 0 {
                sent.written = self.zero.elapsed();
                return self.done(peer, sent, &heard, 0).await;
            }
            peer.write(&[b"DATA\r\n"]).await?;
        }
        let mut end = peer.code().await?;
        if end == 354 {
            // Where nobody was taken and DATA was all the same, there is nothing to send.
            let data: Vec<&[u8]> = match heard.taken {
                0 => vec![b".\r\n"],
                _ => self.letters.data(&letter).collect(),
            };
            peer.write(&data).await?;
            sent.written = self.zero.elapsed();
            end = peer.code().await?;
        } else {
            sent.written = self.zero.elapsed();
        }
        self.done(peer, sent, &heard, end).await
    }

    /// Where any recipient was taken, the reply to the end is the message's.
    async fn done<S: Stream>(
        &self,
        peer: &mut Peer<S>,
        sent: &mut Sent,
        heard: &Heard,
        end: u16,
    ) -> Result<(), Trouble> {
        self.recipients_refused
            .fetch_add(heard.recipients_refused, Ordering::Relaxed);
        sent.code = match heard.taken {
            0 => heard.refused.unwrap_or(end),
            _ => end,
        };
        self.after(peer, sent.code).await
    }

    /// After a refusal the next transaction needs a clean start.
    async fn after<S: Stream>(&self, peer: &mut Peer<S>, code: u16) -> Result<(), Trouble> {
        match code {
            200..300 => Ok(()),
            421 => Err(io::Error::other("421").into()),
            _ => expect(peer.say("RSET").await?, 250).map(drop),
        }
    }
}

/// What MAIL and each RCPT were answered.
#[derive(Debug, Default)]
struct Heard {
    commands: u32,
    /// The first refusal.
    refused: Option<u16>,
    recipients_refused: u64,
    /// Recipients that may get the message.
    taken: u32,
}

impl Heard {
    /// The next answer, MAIL's first.
    fn hear(&mut self, code: u16) {
        let is_rcpt = self.commands > 0;
        self.commands += 1;
        match ((200..300).contains(&code), is_rcpt) {
            (true, true) => self.taken += 1,
            (true, false) => {}
            (false, _) => {
                self.refused = self.refused.or(Some(code));
                self.recipients_refused += u64::from(is_rcpt);
            }
        }
    }
}

/// Why a session ended early.
enum Trouble {
    /// The connection broke, or was refused; another may do better.
    Broken(anyhow::Error),
    /// So will every other.
    Wrong(anyhow::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.into())
    }
}

fn expect(reply: Reply, code: u16) -> Result<Reply, Trouble> {
    if reply.code == code {
        Ok(reply)
    } else {
        Err(Trouble::Broken(anyhow::anyhow!(
            "{} instead of {code}",
            reply.text
        )))
    }
}

/// Checks what was asked for.
pub(crate) fn check(pace: &Pace) -> anyhow::Result<()> {
    ensure!((1..=10_000).contains(&pace.sessions), "from 1 to 10000 sessions");
    ensure!(pace.per_session > 0, "at least one message a session");
    ensure!(
        (1..=super::record::MAX_MESSAGES).contains(&pace.messages),
        "from 1 to {} messages",
        super::record::MAX_MESSAGES
    );
    match pace.beat {
        // Slower ones have moments that no clock reaches.
        Beat::Rate(rate) if !(rate.is_finite() && rate >= 1e-3) => bail!("a rate is 0.001 a second or more"),
        Beat::Bursts { of: 0, .. } => bail!("a burst is of one message at least"),
        Beat::Bursts { every, .. } if every > Duration::from_secs(86_400) => {
            bail!("a burst a day at the least")
        }
        _ => Ok(()),
    }
}
