//! Sessions that submit as fast as they are answered, until told to stop or cut off.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::message::{Message, Plan, SENDER, as_data};

/// The longest wait for one reply. A relay that is slower than this on an idle machine is a finding of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client waits that was told to come back.
const LATER: Duration = Duration::from_millis(50);
/// The longest reply line read (RFC 5321 §4.5.3.1.5 allows 512).
const MAX_LINE: u64 = 4096;

/// How far something that is watched beside the flood has come, asked when a 250 has been read: the operations that a disk
/// was asked for. Where nothing is watched it is 0.
pub(crate) type Position = Arc<dyn Fn() -> usize + Send + Sync>;

/// What all sessions of a round share.
pub(crate) struct Flood {
    plan: Plan,
    position: Position,
    next: AtomicU64,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// The relay may say "come back later": its disk fails now and then.
    may_refuse: bool,
    /// How often it did.
    refused: AtomicU64,
    /// Submitted up to the final dot without a reply: the relay may have them or not.
    unanswered: AtomicU64,
}

/// A message that was answered with 250.
#[derive(Clone, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) number: u64,
    /// The queue id of the reply.
    pub(crate) id: String,
    /// See [`Position`]: all that was done for it was done before.
    pub(crate) position: usize,
}

impl Flood {
    /// Messages are numbered from 0.
    pub(crate) fn new(plan: Plan, position: Position, may_refuse: bool) -> Arc<Self> {
        Arc::new(Self {
            may_refuse,
            refused: AtomicU64::new(0),
            plan,
            position,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            acknowledged: Mutex::new(Vec::new()),
            unanswered: AtomicU64::new(0),
        })
    }

    /// Starts `sessions` that submit to `relay`.
    pub(crate) fn start(self: &Arc<Self>, relay: SocketAddr, sessions: usize) -> JoinSet<anyhow::Result<()>> {
        let mut tasks = JoinSet::new();
        for _ in 0..sessions {
            self.start_one(relay, &mut tasks);
        }
        tasks
    }

    /// Starts one more.
    pub(crate) fn start_one(self: &Arc<Self>, relay: SocketAddr, among: &mut JoinSet<anyhow::Result<()>>) {
        among.spawn(self.clone().session(relay));
    }

    /// No session begins another message.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How many were answered with 250 so far.
    pub(crate) fn count(&self) -> usize {
        self.acknowledged.lock().len()
    }

    /// All that were answered with 250.
    pub(crate) fn acknowledged(&self) -> Vec<Acknowledged> {
        self.acknowledged.lock().clone()
    }

    /// How many were cut off between their final dot and its reply.
    pub(crate) fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// How many were answered with 4yz.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Submits until stopped. A broken connection ends it quietly: that is the point of the exercise. An answer that a relay
    /// in good health does not give is an error.
    async fn session(self: Arc<Self>, relay: SocketAddr) -> anyhow::Result<()> {
        let Ok(mut peer) = Peer::connect(relay).await else {
            return Ok(());
        };
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let message = self.plan.message(number);
            match self.submit(&mut peer, &message).await? {
                Answer::Kept(id) => {
                    let position = (self.position)();
                    self.acknowledged
                        .lock()
                        .push(Acknowledged { number, id, position });
                }
                Answer::Later => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(LATER).await;
                }
                Answer::Broken => return Ok(()),
            }
        }
        let _ = peer.write.write_all(b"QUIT\r\n").await;
        Ok(())
    }

    /// One transaction, pipelined (RFC 2920).
    async fn submit(&self, peer: &mut Peer, message: &Message) -> anyhow::Result<Answer> {
        let mut group = format!("MAIL FROM:<{SENDER}>\r\n");
        for recipient in &message.recipients {
            group.push_str(&format!("RCPT TO:<{recipient}>\r\n"));
        }
        group.push_str("DATA\r\n");
        if peer.write.write_all(group.as_bytes()).await.is_err() {
            return Ok(Answer::Broken);
        }
        let mut later = false;
        for stage in 0..message.recipients.len() + 2 {
            let expected = if stage == message.recipients.len() + 1 {
                354
            } else {
                250
            };
            match peer.reply().await {
                Ok((354, _)) if later => return Ok(Answer::Broken), // Not all are to have it.
                Ok((code, _)) if code == expected => {}
                Ok((400..=499, _)) if self.may_refuse => later = true,
                // What comes behind a refusal is out of order.
                Ok((503 | 554, _)) if later => {}
                Ok((code, text)) => bail!("message {}: {code} {text} at stage {stage}", message.number),
                Err(_) => return Ok(Answer::Broken),
            }
        }
        if later {
            return Ok(Answer::Later);
        }
        let data = as_data(&message.raw);
        if peer.write.write_all(&data).await.is_err() {
            return Ok(Answer::Broken); // no final dot left us whole
        }
        match peer.reply().await {
            Ok((250, text)) => {
                let id = text
                    .strip_prefix("2.0.0 queued as ")
                    .with_context(|| format!("a final reply without an id: {text}"))?;
                Ok(Answer::Kept(id.trim_end().to_owned()))
            }
            Ok((400..=499, _)) if self.may_refuse => Ok(Answer::Later),
            Ok((code, text)) => bail!("message {}: {code} {text} after the final dot", message.number),
            Err(_) => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                Ok(Answer::Broken)
            }
        }
    }
}

/// What became of a transaction.
enum Answer {
    /// With the queue id.
    Kept(String),
    /// The relay does not take it now.
    Later,
    /// The connection broke, or is of no use any more.
    Broken,
}

/// A connection to the relay.
struct Peer {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Peer {
    /// Connects and says EHLO.
    async fn connect(relay: SocketAddr) -> io::Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(relay)).await??;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let mut peer = Self {
            read: BufReader::new(read),
            write,
        };
        peer.reply().await?;
        peer.write.write_all(b"EHLO loadtest.test\r\n").await?;
        peer.reply().await?;
        Ok(peer)
    }

    /// The next reply: its code and its last line's text.
    async fn reply(&mut self) -> io::Result<(u16, String)> {
        loop {
            let mut line = String::new();
            let mut bounded = (&mut self.read).take(MAX_LINE);
            let read = bounded.read_line(&mut line);
            if timeout(PATIENCE, read).await?? == 0 || !line.ends_with('\n') {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (code, rest) = line
                .split_at_checked(3)
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            if rest.starts_with('-') {
                continue;
            }
            let code = code
                .parse()
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            return Ok((code, rest.trim().to_owned()));
        }
    }
}
