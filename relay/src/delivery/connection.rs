//! A connection to an MX host: the shell around the sending session of mail-core. Every wait has its limit.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use mail_core::smtp::client::{Extensions, Message, RecipientResult, Stage, Transaction, TransactionAction};
use mail_core::smtp::reply_reader::{BadReply, ReplyReader};
use mail_core::smtp::stuff::{Stuffer, stuffed};
use mail_core::{Domain, Recipient, Reply};
use queue::Hop;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::settings::ClientTimeouts;
use crate::prepare::{PrepareError, Reader};

mod answers;
pub mod open;
mod proxy;

pub use answers::Answers;

use open::Why;

/// Octets read at a time; replies are short.
const READ: usize = 4_096;

/// Slices handed to the system at once.
const SLICES: usize = 64;

/// Octets of replies that may come while commands are being written. A reply to each of the most recipients fits.
const MAX_AHEAD: usize = 256 * 1024;

/// How long a goodbye, or the last words of a peer that has hung up, may take: little depends on it.
const GOODBYE: Duration = Duration::from_secs(2);

/// Ready for mail.
pub struct Connection<S> {
    wire: Wire<S>,
    reader: ReplyReader,
    input: BytesMut,
    offers: Extensions,
    timeouts: ClientTimeouts,
    host: String,
    address: SocketAddr,
    source: String,
    tls: String,
    messages: u32,
    /// Of recipients so far, where the peer takes only so many: at most one a transaction.
    domains: BTreeSet<Domain>,
    left: bool,
    usable: bool,
    stale: bool,
}

enum Wire<S> {
    Clear(S),
    Tls(Box<TlsStream<S>>),
}

/// The connection is of no more use.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("connection lost")]
    Closed,
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error("silence for too long")]
    Silence,
    #[error("the transaction took too long")]
    TooSlow,
    /// A reply to nothing: whatever follows would be taken for the answer to something else.
    #[error("a reply out of turn")]
    OutOfTurn,
    #[error(transparent)]
    Reply(#[from] BadReply),
    /// The rest of the message can't be read: without its final dot the peer drops what it has.
    #[error("given up in the middle: {0}")]
    Rest(#[from] PrepareError),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Sends one message, all its parts and then what is read of the `rest`, to up to as many recipients as a transaction
    /// takes. One result for each recipient.
    pub async fn send(
        &mut self,
        message: &Message<'_>,
        parts: &[&[u8]],
        rest: Option<&Reader>,
    ) -> Vec<RecipientResult> {
        self.note_domains(message.recipients);
        let mut transaction = Transaction::new(message, &self.offers);
        let mut answered = false;
        let until = Instant::now() + self.timeouts.transaction;
        loop {
            let action = transaction.advance();
            // Once the final dot is out the peer may own the message: hanging up would make a duplicate.
            let bounded = !matches!(action, TransactionAction::Read(Stage::FinalDot));
            let speaks = matches!(action, TransactionAction::Write(_) | TransactionAction::WriteBody);
            if let TransactionAction::Done { usable } = action {
                self.usable = usable;
                break;
            }
            let step = async {
                match action {
                    _ if speaks && self.has_spoken() => self.hear_out_of_turn(&mut transaction).await,
                    TransactionAction::Write(line) => self.write(&line).await,
                    TransactionAction::Read(stage) => self.read_reply(stage).await.map(|reply| {
                        answered = true;
                        transaction.reply(reply);
                    }),
                    TransactionAction::WriteBody => self.write_body(&mut transaction, parts, rest).await,
                    TransactionAction::Done { .. } => Ok(()),
                }
            };
            let done = if bounded {
                timeout_at(until, step).await.unwrap_or(Err(Broken::TooSlow))
            } else {
                step.await
            };
            if let Err(broken) = done {
                let hung_up = matches!(broken, Broken::Closed | Broken::Io(_));
                self.stale = hung_up && !answered && self.messages > 0;
                match broken {
                    Broken::OutOfTurn => transaction.unasked(&broken.to_string()),
                    _ => transaction.lost(&broken.to_string()),
                }
            }
        }
        if self.usable {
            self.messages += 1;
        }
        transaction.results()
    }

    /// Whether another transaction can follow.
    pub fn is_usable(&self) -> bool {
        self.usable
            && !self.left
            && !self.has_spoken()
            && self.offers.mail_max.is_none_or(|most| self.messages < most)
    }

    /// Whether the peer takes mail for this domain, too, over one connection (RFC 9422 §4.3).
    pub fn takes(&self, domain: &Domain) -> bool {
        self.offers
            .rcpt_domain_max
            .is_none_or(|most| self.domains.len() < most || self.domains.contains(domain))
    }

    fn note_domains(&mut self, recipients: &[Recipient]) {
        if self.offers.rcpt_domain_max.is_none() {
            return;
        }
        let domains = recipients.iter().map(|to| to.mailbox.domain().clone());
        self.domains.extend(domains);
    }

    /// The peer hung up between two messages, without a word to the latter: nothing of it was sent, and its failure says
    /// nothing of the host.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Something has come that nothing asked for.
    fn has_spoken(&self) -> bool {
        !self.input.is_empty() || self.reader.is_within_reply()
    }

    /// Transactions that left the connection usable.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// How long a transaction may take.
    pub fn longest_transaction(&self) -> Duration {
        self.timeouts.transaction
    }

    /// RCPTs the peer takes a transaction, where it says (RFC 9422).
    pub fn rcpt_max(&self) -> Option<usize> {
        self.offers.rcpt_max
    }

    /// Whether the peer takes 8-bit messages (RFC 6152).
    pub fn takes_eight_bit(&self) -> bool {
        self.offers.eight_bit_mime
    }

    /// Whether the peer reports on what it takes over, as it was asked to (RFC 3461).
    pub fn reports(&self) -> bool {
        self.offers.dsn
    }

    /// Whether the peer sees to the time in which it is to deliver (RFC 2852).
    pub fn keeps_time(&self) -> bool {
        self.offers.deliver_by.is_some()
    }

    /// Nothing more goes over it but a goodbye.
    pub fn leave(&mut self) {
        self.left = true;
    }

    /// Nothing more goes over it.
    pub fn retire(&mut self) {
        self.usable = false;
    }

    /// The host's name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// For the journal; the site and the time taken are the caller's.
    pub fn hop(&self) -> Hop {
        Hop {
            site: String::new(),
            host: self.host.clone(),
            address: self.address.to_string(),
            source: self.source.clone(),
            tls: self.tls.clone(),
            millis: 0,
        }
    }

    /// Returns when the peer closes an idle connection, or says something unasked, which is goodbye as well.
    pub async fn hangs_up(&mut self) {
        if self.input.is_empty() {
            let mut octet = [0];
            // Whatever comes, or fails, ends the connection.
            let _ = self.wire.read(&mut octet).await;
        }
        self.usable = false;
    }

    /// Says goodbye, if anyone is there to hear it.
    pub async fn quit(mut self) {
        if self.usable {
            let goodbye = async {
                self.write(b"QUIT\r\n").await?;
                self.read_reply(Stage::Quit).await
            };
            // The connection goes away in any case.
            let _ = timeout(GOODBYE, goodbye).await;
        }
        let _ = timeout(GOODBYE, self.wire.shutdown()).await;
    }

    async fn start_tls(mut self, connector: &TlsConnector, name: &str) -> Result<Self, Why> {
        // What came in clear behind the reply to STARTTLS is not the peer's word (RFC 3207 §4.2).
        self.input.clear();
        self.reader = ReplyReader::default();
        let Wire::Clear(stream) = self.wire else {
            return Err(Why::Handshake("asked for twice".into()));
        };
        let name =
            ServerName::try_from(name.to_owned()).map_err(|error| Why::Handshake(error.to_string()))?;
        let shaken = timeout(self.timeouts.tls, connector.connect(name, stream)).await;
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Why::Handshake(error.to_string())),
            Err(_) => return Err(Why::Handshake("silence for too long".into())),
        };
        let (_, session) = stream.get_ref();
        self.tls = match (session.protocol_version(), session.negotiated_cipher_suite()) {
            (Some(version), Some(suite)) => format!("{version:?} {:?}", suite.suite()),
            _ => "TLS".into(),
        };
        Ok(Self {
            wire: Wire::Tls(Box::new(stream)),
            ..self
        })
    }

    async fn read_reply(&mut self, stage: Stage) -> Result<Reply, Broken> {
        let patience = patience(&self.timeouts, stage);
        timeout(patience, self.next_reply())
            .await
            .unwrap_or(Err(Broken::Silence))
    }

    async fn next_reply(&mut self) -> Result<Reply, Broken> {
        loop {
            while !self.input.is_empty() {
                let (taken, reply) = self.reader.read(&self.input);
                let _ = self.input.split_to(taken);
                if let Some(reply) = reply {
                    return Ok(reply?);
                }
            }
            self.input.reserve(READ);
            if self.wire.read_buf(&mut self.input).await? == 0 {
                return self.reader.end().map_or(Err(Broken::Closed), |reply| Ok(reply?));
            }
        }
    }

    /// A reply has come though all are answered. 421 and 221, and one that comes before a word of the message, are understood;
    /// any other means that the peer counts differently.
    async fn hear_out_of_turn(&mut self, transaction: &mut Transaction) -> Result<(), Broken> {
        let reply = self.read_reply(Stage::Rset).await?;
        match reply.code {
            221 => return Err(Broken::Closed),
            421 => {}
            _ if transaction.is_at_body() => {}
            _ => return Err(Broken::OutOfTurn),
        }
        transaction.reply(reply);
        Ok(())
    }

    async fn write_body(
        &mut self,
        transaction: &mut Transaction,
        parts: &[&[u8]],
        rest: Option<&Reader>,
    ) -> Result<(), Broken> {
        let written = match rest {
            None => self.write_slices(&stuffed(parts), Hearing::Stops).await,
            Some(rest) => self.write_large(parts, rest).await,
        };
        match written {
            Ok(Written::All) => {
                transaction.body_sent();
                self.flush().await
            }
            // The rest of the message would be taken for commands: whatever the reply, the connection ends.
            Ok(Written::Interrupted) => {
                let reply = self.read_reply(Stage::FinalDot).await?;
                transaction.reply(reply);
                Ok(())
            }
            // It may have said why before it hung up.
            Err(broken @ (Broken::Closed | Broken::Io(_))) => {
                let Ok(Ok(reply)) = timeout(GOODBYE, self.next_reply()).await else {
                    return Err(broken);
                };
                transaction.reply(reply);
                Ok(())
            }
            Err(broken) => Err(broken),
        }
    }

    /// A message of which two chunks at most are in memory: one that is written, and the next, read meanwhile.
    async fn write_large(&mut self, parts: &[&[u8]], rest: &Reader) -> Result<Written, Broken> {
        let mut stuffer = Stuffer::default();
        let mut slices = Vec::with_capacity(parts.len());
        for part in parts {
            stuffer.part(part, &mut slices);
        }
        let (mut written, mut next) = tokio::join!(self.write_slices(&slices, Hearing::Stops), rest.chunk(0));
        for number in 1.. {
            // What is wrong with our disk must not hide what the peer said.
            if written? == Written::Interrupted {
                return Ok(Written::Interrupted);
            }
            let Some(chunk) = next? else { break };
            let mut slices = Vec::new();
            stuffer.part(&chunk, &mut slices);
            (written, next) = tokio::join!(self.write_slices(&slices, Hearing::Stops), rest.chunk(number));
        }
        self.write_slices(&[stuffer.end()], Hearing::Stops).await
    }

    async fn write(&mut self, line: &[u8]) -> Result<(), Broken> {
        match self.write_slices(&[line], Hearing::GoesOn).await {
            Ok(_) => self.flush().await,
            // What it said before it hung up is read next; after that, reading fails too.
            Err(Broken::Closed | Broken::Io(_)) => Ok(()),
            Err(broken) => Err(broken),
        }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        let flushed = timeout(self.timeouts.block, self.wire.flush()).await;
        Ok(flushed.map_err(|_| Broken::Silence)??)
    }

    /// Writes all slices, each step within `timeouts.block`. What the peer says meanwhile is kept: a peer that waits for us
    /// to read before it reads on would wait for ever.
    async fn write_slices(&mut self, slices: &[&[u8]], hearing: Hearing) -> Result<Written, Broken> {
        let patience = self.timeouts.block;
        let (mut slice, mut offset) = (0, 0);
        while slice < slices.len() {
            let mut vectors = [IoSlice::new(&[]); SLICES];
            let count = SLICES.min(slices.len() - slice);
            for (number, vector) in vectors[..count].iter_mut().enumerate() {
                let part = slices[slice + number];
                *vector = IoSlice::new(if number == 0 { &part[offset..] } else { part });
            }
            let step = self.write_or_hear(&vectors[..count]);
            let Some(mut written) = timeout(patience, step).await.map_err(|_| Broken::Silence)?? else {
                match hearing {
                    Hearing::Stops => return Ok(Written::Interrupted),
                    Hearing::GoesOn if self.input.len() > MAX_AHEAD => return Err(BadReply::Endless.into()),
                    Hearing::GoesOn => continue,
                }
            };
            while written > 0 || (slice < slices.len() && offset == slices[slice].len()) {
                let rest = slices[slice].len() - offset;
                if written < rest {
                    offset += written;
                    break;
                }
                written -= rest;
                (slice, offset) = (slice + 1, 0);
            }
        }
        Ok(Written::All)
    }

    /// Writes some octets; `None` if the peer says something before it takes any. An error means that none were taken.
    async fn write_or_hear(&mut self, vectors: &[IoSlice<'_>]) -> Result<Option<usize>, Broken> {
        let input = &mut self.input;
        let wire = &mut self.wire;
        poll_fn(|context| {
            if let Poll::Ready(written) = Pin::new(&mut *wire).poll_write_vectored(context, vectors) {
                let written = written?;
                return Poll::Ready(if written == 0 {
                    Err(Broken::Closed)
                } else {
                    Ok(Some(written))
                });
            }
            // Here, since mostly all is written at once.
            let mut heard = [0; READ];
            let mut buffer = ReadBuf::new(&mut heard);
            match Pin::new(&mut *wire).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Err(Broken::Closed)),
                Poll::Ready(Ok(())) => {
                    input.extend_from_slice(buffer.filled());
                    Poll::Ready(Ok(None))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// What a reply that comes while we write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    /// It ends the writing.
    Stops,
    /// It waits for its turn.
    GoesOn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    All,
    Interrupted,
}

fn patience(timeouts: &ClientTimeouts, stage: Stage) -> Duration {
    match stage {
        Stage::Greeting => timeouts.greeting,
        Stage::Ehlo | Stage::Helo | Stage::StartTls | Stage::Auth | Stage::Rset | Stage::Quit => {
            timeouts.command
        }
        Stage::Mail => timeouts.mail,
        Stage::Rcpt => timeouts.rcpt,
        Stage::Data => timeouts.data,
        // RFC 5321 §4.5.3.2.6 grants ten minutes. Hanging up sooner makes duplicates: the peer may own the message already.
        Stage::FinalDot => timeouts.final_dot,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(context, octets),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, octets),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        vectors: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write_vectored(context, vectors),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, vectors),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod floods_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod large_tests;
#[cfg(test)]
mod smart_host_tests;
#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod tests;
