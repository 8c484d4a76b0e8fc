//! A connection's commands and messages, and what is answered.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use mail_core::smtp::data::Decoder;
use rand::Rng as _;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::{Behaviour, PATIENCE, Shared, TOO_MANY};
use crate::load::letters::{Seal, first_mailbox, seal};
use crate::load::record::{Arrival, OTHERS, micros};
use crate::load::wire::Stream;

/// Octets read at once.
const READ: usize = 64 << 10;
/// The longest command line.
const MAX_LINE: usize = 4 << 10;
/// Messages of more octets are refused.
const MAX_MESSAGE: u64 = 128 << 20;

/// Of one connection, up to STARTTLS or from there on.
pub(super) struct Session<'a> {
    shared: &'a Shared,
    rng: &'a mut SmallRng,
    /// The domain whose address was connected to.
    host: u32,
    offers_tls: bool,
    is_tls: bool,
    out: Vec<u8>,
    has_sender: bool,
    /// The number of each recipient that was taken; `None`: no load's.
    recipients: Vec<Option<u32>>,
    /// The last recipient's domain.
    domain: u32,
    size: Option<u64>,
    chunks: Vec<u8>,
    /// When its last MAIL was read, since the run's zero.
    begun: Duration,
    /// When the last octets were read, since the run's zero.
    read_at: Duration,
}

enum Next {
    Command,
    Data,
    /// So many octets, the last of the message or not.
    Chunk(usize, bool),
    Tls,
    Quit,
}

impl<'a> Session<'a> {
    pub(super) fn new(shared: &'a Shared, rng: &'a mut SmallRng, host: u32, is_tls: bool) -> Self {
        Self {
            shared,
            rng,
            host,
            offers_tls: shared.manner.read().tls && !is_tls,
            is_tls,
            out: Vec::new(),
            has_sender: false,
            recipients: Vec::new(),
            domain: 0,
            size: None,
            chunks: Vec::new(),
            begun: Duration::ZERO,
            read_at: shared.zero.elapsed(),
        }
    }

    fn behaviour(&self, domain: u32) -> Behaviour {
        let manner = Arc::clone(&self.shared.manner.read());
        manner.at(domain, self.shared.started.elapsed())
    }

    /// To its end, or to STARTTLS: then the connection comes back.
    pub(super) async fn run<S: Stream>(mut self, mut stream: S, greets: bool) -> io::Result<Option<S>> {
        let mut input = BytesMut::with_capacity(READ);
        if greets {
            self.out.extend_from_slice(b"220 mx.load.test ESMTP\r\n");
        }
        loop {
            // All that is there is answered by one write.
            let Some(end) = memchr::memchr(b'\n', &input) else {
                if input.len() > MAX_LINE {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.read(&mut stream, &mut input).await?;
                continue;
            };
            let line = input.split_to(end + 1);
            match self.command(line.trim_ascii_end()) {
                Next::Command => {}
                Next::Data => {
                    let mut decoder = Decoder::new(MAX_MESSAGE, self.size);
                    loop {
                        let taken = decoder.decode(&input);
                        input.advance(taken);
                        if decoder.is_at_end() {
                            break;
                        }
                        self.read(&mut stream, &mut input).await?;
                    }
                    match decoder.finish() {
                        Ok(data) => self.take(&mut stream, &data.octets).await?,
                        Err(fault) => {
                            let reply = format!("554 5.6.0 {fault}\r\n");
                            self.out.extend_from_slice(reply.as_bytes());
                        }
                    }
                    self.reset();
                }
                Next::Chunk(octets, last) => {
                    let mut left = octets;
                    while left > 0 {
                        if input.is_empty() {
                            self.read(&mut stream, &mut input).await?;
                        }
                        let taken = left.min(input.len());
                        self.chunks.extend_from_slice(&input.split_to(taken));
                        left -= taken;
                    }
                    if self.recipients.is_empty() {
                        self.out.extend_from_slice(b"503 5.5.1 no recipient\r\n");
                    } else if last {
                        let message = std::mem::take(&mut self.chunks);
                        self.take(&mut stream, &message).await?;
                        self.reset();
                    } else {
                        self.out.extend_from_slice(b"250 2.0.0 go on\r\n");
                    }
                }
                Next::Tls => {
                    self.flush(&mut stream).await?;
                    return Ok(Some(stream));
                }
                Next::Quit => {
                    self.flush(&mut stream).await?;
                    return Ok(None);
                }
            }
        }
    }

    async fn read<S: Stream>(&mut self, stream: &mut S, input: &mut BytesMut) -> io::Result<()> {
        self.flush(stream).await?;
        input.reserve(READ);
        match timeout(PATIENCE, stream.read_buf(input)).await?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {
                self.read_at = self.shared.zero.elapsed();
                Ok(())
            }
        }
    }

    async fn flush<S: Stream>(&mut self, stream: &mut S) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let round_trip = self.behaviour(self.host).round_trip;
        if !round_trip.is_zero() {
            sleep(round_trip).await;
        }
        timeout(PATIENCE, stream.write_all(&self.out)).await??;
        self.out.clear();
        timeout(PATIENCE, stream.flush()).await?
    }

    fn reset(&mut self) {
        self.has_sender = false;
        self.recipients.clear();
        self.size = None;
        self.chunks.clear();
    }

    fn command(&mut self, line: &[u8]) -> Next {
        let verb = line.split(|octet| *octet == b' ').next().unwrap_or_default();
        let (reply, next): (&[u8], Next) = match verb.to_ascii_uppercase().as_slice() {
            b"EHLO" | b"HELO" => {
                self.reset();
                self.out
                    .extend_from_slice(b"250-mx.load.test\r\n250-PIPELINING\r\n250-SIZE\r\n");
                if self.offers_tls {
                    self.out.extend_from_slice(b"250-STARTTLS\r\n");
                }
                (
                    b"250-CHUNKING\r\n250-ENHANCEDSTATUSCODES\r\n250-SMTPUTF8\r\n250 8BITMIME\r\n",
                    Next::Command,
                )
            }
            b"STARTTLS" if self.offers_tls => (b"220 2.0.0 go ahead\r\n", Next::Tls),
            b"MAIL" if self.is_crowded() => (TOO_MANY, Next::Quit),
            b"MAIL" => {
                self.reset();
                self.has_sender = true;
                self.begun = self.shared.zero.elapsed();
                let text = String::from_utf8_lossy(line).to_ascii_uppercase();
                self.size = text
                    .split(' ')
                    .find_map(|word| word.strip_prefix("SIZE=")?.parse().ok());
                (b"250 2.1.0 OK\r\n", Next::Command)
            }
            b"RCPT" if self.has_sender => (self.recipient(line), Next::Command),
            b"DATA" if !self.recipients.is_empty() => (b"354 go ahead\r\n", Next::Data),
            b"BDAT" => {
                let text = String::from_utf8_lossy(line).to_ascii_uppercase();
                let mut words = text.split(' ').skip(1);
                let octets = words.next().and_then(|word| word.parse().ok());
                match octets.filter(|octets| *octets as u64 <= MAX_MESSAGE) {
                    Some(octets) => (b"", Next::Chunk(octets, words.next() == Some("LAST"))),
                    None => (b"501 5.5.4 BDAT takes a number\r\n", Next::Quit),
                }
            }
            b"RSET" => {
                self.reset();
                (b"250 2.0.0 OK\r\n", Next::Command)
            }
            b"NOOP" => (b"250 2.0.0 OK\r\n", Next::Command),
            b"QUIT" => (b"221 2.0.0 bye\r\n", Next::Quit),
            b"RCPT" | b"DATA" => (b"503 5.5.1 not now\r\n", Next::Command),
            _ => (b"500 5.5.1 not known\r\n", Next::Command),
        };
        self.out.extend_from_slice(reply);
        next
    }

    /// More connections are open than may be: this one goes.
    fn is_crowded(&self) -> bool {
        let counts = &self.shared.counts;
        let crowded = counts.open.load(Ordering::Relaxed) > self.shared.most_connections();
        if crowded {
            counts.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        crowded
    }

    fn recipient(&mut self, line: &[u8]) -> &'static [u8] {
        let domain = domain_of(line);
        let Behaviour { defer, refuse, .. } = self.behaviour(domain);
        if defer + refuse > 0.0 {
            let at: f64 = self.rng.random();
            if at < defer {
                self.shared.counts.deferred.fetch_add(1, Ordering::Relaxed);
                return b"451 4.3.0 come again\r\n";
            }
            if at < defer + refuse {
                self.shared.counts.refused.fetch_add(1, Ordering::Relaxed);
                return b"550 5.1.1 nobody\r\n";
            }
        }
        self.recipients.push(mailbox_of(line));
        self.domain = domain;
        b"250 2.1.5 OK\r\n"
    }

    /// After the delay, a message for several recipients counts once.
    async fn take<S: Stream>(&mut self, stream: &mut S, message: &[u8]) -> io::Result<()> {
        let (run, number, intact) = match seal(message) {
            Seal::Intact { run, number } => (run, number, true),
            Seal::Damaged { run, number } => (run, number, false),
            Seal::None => {
                self.shared.counts.unsealed.fetch_add(1, Ordering::Relaxed);
                self.out.extend_from_slice(b"250 2.0.0 taken\r\n");
                return Ok(());
            }
        };
        let delay = self.behaviour(self.domain).delay.draw(self.rng);
        if !delay.is_zero() {
            self.flush(stream).await?;
            sleep(delay).await;
        }
        let counts = &self.shared.counts;
        counts.octets.fetch_add(message.len() as u64, Ordering::Relaxed);
        if is_signed(message) {
            counts.signed.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_tls {
            counts.under_tls.fetch_add(1, Ordering::Relaxed);
        }
        let at = self.shared.zero.elapsed();
        counts.arrivals.push(Arrival {
            run,
            number,
            domain: self.domain,
            recipients: recipients(number, &self.recipients),
            intact,
            at,
            transaction_us: micros(at.saturating_sub(self.begun)),
            // A message is taken before anything after it is read.
            own_us: micros(at.saturating_sub(self.read_at)),
        });
        self.out.extend_from_slice(b"250 2.0.0 taken\r\n");
        Ok(())
    }
}

/// Whether the fields that were put on top have a signature among them.
fn is_signed(message: &[u8]) -> bool {
    let mut fields = message.split(|octet| *octet == b'\n');
    fields
        .by_ref()
        .take_while(|line| !line.starts_with(b"X-Load:"))
        .any(|line| line.starts_with(b"DKIM-Signature:"))
}

/// The number in `<u5@d17.SUFFIX>`.
fn mailbox_of(line: &[u8]) -> Option<u32> {
    let begin = memchr::memmem::find(line, b"<u")? + 2;
    let end = begin + memchr::memmem::find(&line[begin..], b"@d")?;
    std::str::from_utf8(&line[begin..end]).ok()?.parse().ok()
}

/// As [`Arrival::recipients`] has them.
fn recipients(number: u32, mailboxes: &[Option<u32>]) -> u128 {
    mailboxes.iter().fold(0, |all, mailbox| {
        let which = mailbox.and_then(|mailbox| mailbox.checked_sub(first_mailbox(number)));
        all | which
            .filter(|which| *which < 127)
            .map_or(OTHERS, |which| 1 << which)
    })
}

/// The number in `…@d17.SUFFIX`; of other domains all that have none are one.
fn domain_of(line: &[u8]) -> u32 {
    let digits = memchr::memmem::find(line, b"@d").map(|at| &line[at + 2..]);
    digits
        .unwrap_or_default()
        .iter()
        .take_while(|octet| octet.is_ascii_digit())
        .take(9)
        .fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_told_apart() {
        let to = |line: &str| mailbox_of(line.as_bytes());
        assert_eq!(to("RCPT TO:<u70@d3.load.test>"), Some(70));
        assert_eq!(to("RCPT TO:<postmaster@d3.load.test>"), None);
        // Message 66 begins with mailbox 2.
        assert_eq!(recipients(66, &[Some(2), Some(101)]), 1 | 1 << 99);
        assert_eq!(recipients(66, &[Some(1), None]), OTHERS);
    }
}
