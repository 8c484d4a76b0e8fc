//! Plays one conversation. Time is the runtime's, so that a paused clock drives it.

use std::fmt;
use std::io;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::parse::MAX_DELAY;
use super::{Drip, Pattern, Section, Step, What};

/// Octets of a line that is read.
const MAX_LINE: usize = 64 << 10;
/// Octets of messages kept of one connection; the rest is read and dropped.
const MAX_KEPT: usize = 64 << 20;
/// Lines of the record of one connection, and characters of each; the rest is dropped.
const MAX_RECORD: usize = 10_000;
const MAX_RECORD_LINE: usize = 1_000;
/// Octets asked of the connection at once.
const READ: usize = 16 << 10;

/// What was said on a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Lines `C: …` and `S: …`, and `…` for what the peer did otherwise; messages are left out.
    pub lines: Vec<String>,
    /// Messages, without dot-stuffing and final dot.
    pub messages: Vec<Vec<u8>>,
    kept: usize,
}

impl Record {
    fn add(&mut self, who: &str, octets: &[u8]) {
        if self.lines.len() < MAX_RECORD {
            let octets = &octets[..octets.len().min(MAX_RECORD_LINE)];
            self.lines.push(format!("{who}{}", octets.escape_ascii()));
        }
    }
}

/// How a conversation ended. `line`: of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say all")]
pub enum Ending {
    /// The script was played to its end, and the peer hung up.
    Done,
    /// The script says to reset the connection; whoever has the socket does.
    Reset,
    /// The client hung up.
    Left { line: usize },
    /// The client said something else.
    Unexpected {
        line: usize,
        expected: String,
        heard: String,
    },
    /// TLS failed, or the connection broke.
    Broken { line: usize, why: String },
    /// It took longer than an hour.
    Late,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("played to its end"),
            Self::Reset => f.write_str("reset"),
            Self::Left { line } => write!(f, "line {line}: the client hung up"),
            Self::Unexpected {
                line,
                expected,
                heard,
            } => {
                write!(
                    f,
                    "line {line}: the client should have said {expected:?}, and said {heard:?}"
                )
            }
            Self::Broken { line, why } => write!(f, "line {line}: {why}"),
            Self::Late => f.write_str("it took longer than an hour"),
        }
    }
}

/// Plays a section as the server of one connection, and hangs up. `record` has what was said, even if this is dropped.
pub async fn play<S>(section: &Section, stream: S, tls: Option<&TlsAcceptor>, record: &mut Record) -> Ending
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut player = Player {
        wire: Wire::Clear(stream),
        input: BytesMut::new(),
        tls,
        drip: None,
        record,
    };
    let Ok(ending) = timeout(MAX_DELAY, player.all(&section.steps)).await else {
        return Ending::Late;
    };
    if ending != Ending::Reset {
        // Whoever does not read is not waited for.
        let _ = timeout(MAX_DELAY, player.wire.shutdown()).await;
    }
    ending
}

struct Player<'a, S> {
    wire: Wire<S>,
    input: BytesMut,
    tls: Option<&'a TlsAcceptor>,
    drip: Option<Drip>,
    record: &'a mut Record,
}

/// Why a step was not done.
enum Stop {
    End(Ending),
    Left,
    Unexpected(String, Vec<u8>),
    Io(io::Error),
    Tls(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A list of steps that is being played.
struct Frame<'a> {
    steps: &'a [Step],
    next: usize,
    /// How often it is to be played after this; `None`: for ever.
    again: Option<u32>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Player<'_, S> {
    async fn all(&mut self, steps: &[Step]) -> Ending {
        let mut frames = vec![Frame {
            steps,
            next: 0,
            again: Some(0),
        }];
        while let Some(frame) = frames.last_mut() {
            let Some(step) = frame.steps.get(frame.next) else {
                match &mut frame.again {
                    Some(0) => drop(frames.pop()),
                    again => {
                        *again = again.map(|times| times - 1);
                        frame.next = 0;
                        // Repeating what never waits is not to keep others waiting.
                        yield_now().await;
                    }
                }
                continue;
            };
            frame.next += 1;
            if let What::Repeat(times, steps) = &step.what {
                frames.push(Frame {
                    steps,
                    next: 0,
                    again: times.map(|times| times.saturating_sub(1)),
                });
                continue;
            }
            let line = step.line;
            match self.perform(&step.what).await {
                Ok(()) => {}
                Err(Stop::End(ending)) => return ending,
                Err(Stop::Left) => return Ending::Left { line },
                Err(Stop::Unexpected(expected, heard)) => {
                    let heard = heard.escape_ascii().to_string();
                    return Ending::Unexpected {
                        line,
                        expected,
                        heard,
                    };
                }
                Err(Stop::Io(error)) => {
                    let why = error.to_string();
                    return Ending::Broken { line, why };
                }
                Err(Stop::Tls(why)) => return Ending::Broken { line, why },
            }
        }
        Ending::Done
    }

    async fn perform(&mut self, what: &What) -> Result<(), Stop> {
        match what {
            What::Say(octets) => self.say(octets).await?,
            What::Hear(pattern) => {
                let line = self.line().await?;
                self.record.add("C: ", &line);
                if !pattern.fits(&line) {
                    return Err(Stop::Unexpected(pattern.to_string(), line));
                }
            }
            What::HearUntil(pattern) => self.hear_until(pattern).await?,
            What::Take(octets) => {
                let mut left = *octets;
                while left > 0 {
                    if self.input.is_empty() {
                        self.fill().await?;
                    }
                    let some = left.min(self.input.len());
                    self.input.advance(some);
                    left -= some;
                }
                self.note(&format!("took {octets} octets"));
            }
            What::Delay(time) => sleep(*time).await,
            What::Drip(drip) => self.drip = *drip,
            What::StartTls => self.start_tls().await?,
            What::CloseNotify => {
                self.wire.close_notify().await?;
                self.note("ended TLS");
            }
            What::Silence => {
                self.note("fell silent");
                loop {
                    self.input.clear();
                    self.fill().await?;
                }
            }
            What::Stall => {
                self.note("stalled");
                std::future::pending().await
            }
            What::Close => return Err(Stop::End(Ending::Done)),
            What::Reset => return Err(Stop::End(Ending::Reset)),
            // Its steps are played by `all`.
            What::Repeat(..) => {}
        }
        Ok(())
    }

    fn note(&mut self, what: &str) {
        self.record.add("… ", what.as_bytes());
        if let Some(line) = self.record.lines.last_mut()
            && line.starts_with('…')
        {
            *line = format!("… {what}");
        }
    }

    async fn say(&mut self, octets: &[u8]) -> Result<(), Stop> {
        self.record
            .add("S: ", octets.strip_suffix(b"\r\n").unwrap_or(octets));
        match self.drip {
            None => self.wire.write(octets).await?,
            Some(Drip {
                octets: at_once,
                every,
            }) => {
                for some in octets.chunks(at_once) {
                    self.wire.write(some).await?;
                    sleep(every).await;
                }
            }
        }
        Ok(())
    }

    async fn hear_until(&mut self, pattern: &Pattern) -> Result<(), Stop> {
        let is_message = pattern.is_final_dot();
        let mut message = Vec::new();
        loop {
            let line = self.line().await?;
            if pattern.fits(&line) {
                if is_message {
                    self.record.messages.push(message);
                    self.note("took a message");
                } else {
                    self.record.add("C: ", &line);
                }
                return Ok(());
            }
            if is_message {
                let line = line.strip_prefix(b".").unwrap_or(&line);
                if self.record.kept + line.len() + 2 <= MAX_KEPT {
                    self.record.kept += line.len() + 2;
                    message.extend_from_slice(line);
                    message.extend_from_slice(b"\r\n");
                }
            } else {
                self.record.add("C: ", &line);
            }
        }
    }

    /// The next line, without its CRLF.
    async fn line(&mut self) -> Result<Vec<u8>, Stop> {
        let mut looked_at = 0;
        loop {
            if let Some(end) = self.input[looked_at..].windows(2).position(|two| two == b"\r\n") {
                let line = self.input.split_to(looked_at + end).to_vec();
                self.input.advance(2);
                return Ok(line);
            }
            if self.input.len() > MAX_LINE {
                let begin = self.input[..100].to_vec();
                return Err(Stop::Unexpected("a line of at most 64 KiB".into(), begin));
            }
            looked_at = self.input.len().saturating_sub(1);
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Stop> {
        self.input.reserve(READ);
        match self.wire.read(&mut self.input).await? {
            0 => Err(Stop::Left),
            _ => Ok(()),
        }
    }

    async fn start_tls(&mut self) -> Result<(), Stop> {
        let Some(tls) = self.tls else {
            return Err(Stop::Tls("there is no certificate for TLS here".into()));
        };
        if !self.input.is_empty() {
            let early = self.input.split().to_vec();
            return Err(Stop::Unexpected("a TLS handshake".into(), early));
        }
        let Wire::Clear(stream) = std::mem::replace(&mut self.wire, Wire::Gone) else {
            return Err(Stop::Tls("TLS within TLS".into()));
        };
        match tls.accept(stream).await {
            Ok(stream) => {
                self.wire = Wire::Tls(Box::new(stream));
                self.note("TLS");
                Ok(())
            }
            Err(error) => Err(Stop::Tls(format!("TLS: {error}"))),
        }
    }
}

enum Wire<S> {
    Clear(S),
    Tls(Box<TlsStream<S>>),
    /// A handshake failed.
    Gone,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn read(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.read_buf(input).await,
            Self::Tls(stream) => stream.read_buf(input).await,
            Self::Gone => Ok(0),
        }
    }

    async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        match self {
            Self::Clear(stream) => {
                stream.write_all(octets).await?;
                stream.flush().await
            }
            Self::Tls(stream) => {
                stream.write_all(octets).await?;
                stream.flush().await
            }
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Says close_notify, and leaves TLS.
    async fn close_notify(&mut self) -> io::Result<()> {
        match std::mem::replace(self, Self::Gone) {
            Self::Tls(stream) => {
                let (mut stream, mut session) = stream.into_inner();
                session.send_close_notify();
                let mut octets = Vec::new();
                while session.wants_write() {
                    session.write_tls(&mut octets)?;
                }
                stream.write_all(&octets).await?;
                stream.flush().await?;
                *self = Self::Clear(stream);
                Ok(())
            }
            other => {
                *self = other;
                Err(io::Error::other("close_notify without TLS"))
            }
        }
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(stream) => stream.shutdown().await,
            Self::Tls(stream) => stream.shutdown().await,
            Self::Gone => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::super::Script;
    use super::*;

    /// The client writes all at once and reads to the end; what it read, how it ended, and how long it took.
    async fn run(script: &str, client: &[u8]) -> (String, Ending, Record, Duration) {
        let script: Script = script.parse().unwrap();
        let begun = Instant::now();
        let (ours, theirs) = duplex(1 << 20);
        let mut record = Record::default();
        let section = script.connection(1).unwrap();
        let ours = async {
            let (mut reader, mut writer) = tokio::io::split(ours);
            let mut heard = Vec::new();
            writer.write_all(client).await.unwrap();
            writer.shutdown().await.unwrap();
            reader.read_to_end(&mut heard).await.unwrap();
            String::from_utf8(heard).unwrap()
        };
        let (ending, heard) = tokio::join!(play(section, theirs, None, &mut record), ours);
        (heard, ending, record, begun.elapsed())
    }

    const MESSAGE: &str =
        "S: 220 hi\nC: EHLO *\nS: 250 mx\nC: DATA\nS: 354 go\nC: ...\nC: .\nS: 250 kept\nC: QUIT\n";

    #[tokio::test(start_paused = true)]
    async fn plays_a_conversation() {
        let client = b"EHLO me\r\nDATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n";
        let (heard, ending, record, took) = run(MESSAGE, client).await;
        assert_eq!(heard, "220 hi\r\n250 mx\r\n354 go\r\n250 kept\r\n");
        assert_eq!((ending, took), (Ending::Done, Duration::ZERO));
        assert_eq!(record.messages, [b"Subject: x\r\n\r\n.dot\r\n".to_vec()]);
        assert_eq!(
            record.lines.join("|"),
            "S: 220 hi|C: EHLO me|S: 250 mx|C: DATA|S: 354 go|… took a message|S: 250 kept|C: QUIT"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tells_what_a_client_did_otherwise() {
        let ending = run(MESSAGE, b"HELO me\r\n").await.1;
        assert_eq!(
            ending.to_string(),
            r#"line 2: the client should have said "EHLO *", and said "HELO me""#
        );
        assert_eq!(run(MESSAGE, b"EHLO me\r\nDA").await.1, Ending::Left { line: 4 });
        let endless = vec![b'x'; 100_000];
        assert!(matches!(
            run(MESSAGE, &endless).await.1,
            Ending::Unexpected { line: 2, .. }
        ));
        assert!(matches!(
            run("starttls", b"").await.1,
            Ending::Broken { line: 1, .. }
        ));
        assert!(matches!(
            run("close_notify", b"").await.1,
            Ending::Broken { line: 1, .. }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_time() {
        let (heard, _, _, took) =
            run("delay 2s\ndrip 2 bytes every 10ms\nS: 250\ndrip off\nS: 250", b"").await;
        assert_eq!(
            (heard.as_str(), took),
            ("250\r\n250\r\n", Duration::from_millis(2_030))
        );
        let (_, ending, _, took) = run("stall", b"").await;
        assert_eq!((ending, took), (Ending::Late, MAX_DELAY));
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_takes_and_ends() {
        let (heard, ending, ..) = run("repeat 2\nC: *\nrepeat 2\nS: x\nend\nend", b"a\r\nb\r\n").await;
        assert_eq!((heard.as_str(), ending), ("x\r\nx\r\nx\r\nx\r\n", Ending::Done));
        let (heard, ending, ..) = run("repeat\nC: NOOP\nS: 250\nend", b"NOOP\r\nNOOP\r\n").await;
        assert_eq!(
            (heard.as_str(), ending),
            ("250\r\n250\r\n", Ending::Left { line: 2 })
        );
        assert_eq!(run("take 4 bytes\nC: b", b"a\r\n.b\r\n").await.1, Ending::Done);
        assert_eq!(run("silence", b"a\r\n").await.1, Ending::Left { line: 1 });
        assert_eq!(run("reset", b"").await.1, Ending::Reset);
        assert_eq!(run("raw: 220\nclose", b"").await.0, "220");
    }
}
