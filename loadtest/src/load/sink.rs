//! An SMTP server of many domains that takes mail at next to no cost, behaves as it is told, and remembers what came.
//!
//! Each thread has a runtime and listeners of its own; the kernel spreads connections over them. Domains are `d0.SUFFIX` and so
//! on, each with an address of its own in 127.78.0.0/16 and records in a name server beside, so that a relay finds them as it would
//! find anybody.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use lab::{DnsServer, Zone};
use mail_core::smtp::data::Decoder;
use parking_lot::RwLock;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::letters::{Seal, Spread, first_mailbox, seal};
use super::record::{Arrival, OTHERS, Rows, Zero};
use super::wire::Stream;

/// The first domain's address; another net than the lab's.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 78, 0, 1);
/// Silence after which a connection is closed.
const PATIENCE: Duration = Duration::from_secs(300);
/// Octets read at once.
const READ: usize = 64 << 10;
/// The longest command line.
const MAX_LINE: usize = 4 << 10;
/// Messages of more octets are refused.
const MAX_MESSAGE: u64 = 128 << 20;
/// Connections that a listener has waiting.
const BACKLOG: u32 = 1024;
/// Ports tried until one is free on all addresses.
const PORT_TRIES: usize = 16;

/// Said to connections too many.
const TOO_MANY: &[u8] = b"421 4.7.0 too many connections\r\n";

/// How a sink behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manner {
    /// Where no rule says otherwise.
    pub(crate) usual: Behaviour,
    /// Each changes what those before it have said, where and while it applies.
    pub(crate) script: Vec<Rule>,
    /// Offers STARTTLS.
    pub(crate) tls: bool,
    /// Connections at once, to all domains together. A further one is told 421 instead of being greeted; where there are more already,
    /// those that begin a message are told so until no more are left.
    pub(crate) most_connections: Option<u64>,
}

impl Manner {
    /// Whether it can be so where there are so many domains: whatever rules apply together.
    pub(crate) fn check(&self, domains: usize) -> anyhow::Result<()> {
        self.usual.check()?;
        for rule in &self.script {
            let last = rule.domains.end();
            ensure!(
                (*last as usize) < domains,
                "--script {rule}: there is no domain {last}, they are 0 to {}",
                domains - 1
            );
        }
        // Wherever rules meet, one of them begins a domain and one of them a time.
        for rule in &self.script {
            let domain = *rule.domains.start();
            for at in self.script.iter().map(|rule| rule.from) {
                let behaviour = self.at(domain, at).check();
                behaviour.with_context(|| {
                    format!(
                        "--script: domain {domain}, {} s after the start",
                        at.as_secs_f64()
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Towards a domain, so long after the sink's start.
    fn at(&self, domain: u32, since: Duration) -> Behaviour {
        let rules = self.script.iter().filter(|rule| rule.applies(domain, since));
        rules.fold(self.usual, |behaviour, rule| Behaviour {
            delay: rule.delay.unwrap_or(behaviour.delay),
            round_trip: rule.round_trip.unwrap_or(behaviour.round_trip),
            defer: rule.defer.unwrap_or(behaviour.defer),
            refuse: rule.refuse.unwrap_or(behaviour.refuse),
        })
    }
}

/// What a domain does with mail.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Behaviour {
    /// Before the reply to the final dot.
    pub(crate) delay: Span,
    /// Before anything is written: a round trip to somewhere far.
    pub(crate) round_trip: Duration,
    /// The shares of recipients that are answered 451 and 550.
    pub(crate) defer: f64,
    pub(crate) refuse: f64,
}

impl Behaviour {
    /// Shares are from 0 to 1, and no more than 1 together.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Self { defer, refuse, .. } = self;
        for (key, share) in [("defer", defer), ("refuse", refuse)] {
            ensure!(
                (0.0..=1.0).contains(share),
                "{key}: a share is from 0 to 1, not {share}"
            );
        }
        ensure!(
            defer + refuse <= 1.0,
            "defer, {defer}, and refuse, {refuse}, are more than 1 together"
        );
        Ok(())
    }
}

/// A time, drawn evenly between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    least: Duration,
    most: Duration,
}

impl Span {
    /// Always this.
    pub(crate) fn just(time: Duration) -> Self {
        Self {
            least: time,
            most: time,
        }
    }

    fn draw(self, rng: &mut SmallRng) -> Duration {
        match self.most > self.least {
            true => rng.random_range(self.least..=self.most),
            false => self.least,
        }
    }
}

impl FromStr for Span {
    type Err = anyhow::Error;

    /// Milliseconds, `5`, or between two, `5-50`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        let (least, most) = (millis(least)?, millis(most)?);
        ensure!(least <= most, "{text:?}: the shorter time comes first");
        Ok(Self { least, most })
    }
}

/// For some domains and some time: what is otherwise than usual.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    domains: RangeInclusive<u32>,
    from: Duration,
    until: Duration,
    delay: Option<Span>,
    round_trip: Option<Duration>,
    defer: Option<f64>,
    refuse: Option<f64>,
    /// As it was written.
    text: String,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.text)
    }
}

impl Rule {
    fn applies(&self, domain: u32, since: Duration) -> bool {
        self.domains.contains(&domain) && (self.from..self.until).contains(&since)
    }
}

impl FromStr for Rule {
    type Err = anyhow::Error;

    /// `0:delay=5000` or `1-99:defer=0.1,from=10,until=20`: numbers of domains; milliseconds for `delay` (or between two, `5-50`) and
    /// `round-trip`, shares for `defer` and `refuse`, seconds for `from` and `until`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (domains, rest) = text
            .split_once(':')
            .with_context(|| format!("{text:?}: domains, a colon, and what they do"))?;
        let (first, last) = domains.split_once('-').unwrap_or((domains, domains));
        let domain = |text: &str| {
            let number = text.trim().parse::<u32>();
            number.with_context(|| format!("{text:?} is no number of a domain, such as 7 or 10-19"))
        };
        let domains = domain(first)?..=domain(last)?;
        ensure!(
            !domains.is_empty(),
            "domains {first}-{last}: the lower number comes first"
        );
        let mut rule = Self {
            domains,
            from: Duration::ZERO,
            until: Duration::MAX,
            delay: None,
            round_trip: None,
            defer: None,
            refuse: None,
            text: text.to_owned(),
        };
        for pair in rest.split(',') {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("{pair:?} is no key=value"))?;
            rule.set(key.trim(), value.trim())
                .with_context(|| pair.to_owned())?;
        }
        ensure!(
            rule.from < rule.until,
            "from, {} s, is not before until, {} s",
            rule.from.as_secs_f64(),
            rule.until.as_secs_f64()
        );
        rule.shares().check()?;
        Ok(rule)
    }
}

impl Rule {
    fn set(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        let number = || {
            let number = value.parse::<f64>();
            number.with_context(|| format!("{value:?} is no number"))
        };
        let seconds = || {
            let seconds = Duration::try_from_secs_f64(number()?);
            seconds.with_context(|| format!("{value:?} is no number of seconds"))
        };
        match key {
            "delay" => self.delay = Some(value.parse()?),
            "round-trip" => self.round_trip = Some(millis(value)?),
            "defer" => self.defer = Some(number()?),
            "refuse" => self.refuse = Some(number()?),
            "from" => self.from = seconds()?,
            "until" => self.until = seconds()?,
            other => bail!("{other:?}: there are delay, round-trip, defer, refuse, from and until"),
        }
        Ok(())
    }

    fn shares(&self) -> Behaviour {
        Behaviour {
            defer: self.defer.unwrap_or(0.0),
            refuse: self.refuse.unwrap_or(0.0),
            ..Behaviour::default()
        }
    }
}

fn millis(text: &str) -> anyhow::Result<Duration> {
    let number = text.trim().parse();
    Ok(Duration::from_millis(number.with_context(|| {
        format!("{text:?} is no number of milliseconds")
    })?))
}

/// What has come.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) arrivals: Rows<Arrival>,
    pub(crate) octets: AtomicU64,
    pub(crate) connections: AtomicU64,
    /// Connections that were greeted and have not ended, and those that were told 421.
    pub(crate) open: AtomicU64,
    pub(crate) turned_away: AtomicU64,
    pub(crate) handshakes: AtomicU64,
    pub(crate) deferred: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Messages with a DKIM-Signature field on top of the seal, and messages that came over TLS.
    pub(crate) signed: AtomicU64,
    pub(crate) under_tls: AtomicU64,
    /// Messages without a seal: nothing can be said of them.
    pub(crate) unsealed: AtomicU64,
}

/// A running sink; stops when dropped.
pub(crate) struct Sink {
    /// One port, on the address of each domain.
    pub(crate) port: u16,
    pub(crate) dns: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    manner: RwLock<Arc<Manner>>,
    counts: Arc<Counts>,
    zero: Zero,
    started: Instant,
    acceptor: TlsAcceptor,
    /// A thread's own draws begin here.
    seed: AtomicU64,
}

impl Shared {
    fn most_connections(&self) -> u64 {
        self.manner.read().most_connections.unwrap_or(u64::MAX)
    }
}

impl Sink {
    /// For the domains of `spread`, with a certificate of the moment. When it returns, all sockets are open.
    pub(crate) fn start(manner: Manner, spread: &Spread, threads: usize, zero: Zero) -> anyhow::Result<Self> {
        ensure!((1..=64).contains(&threads), "from 1 to 64 threads");
        let folder = tempfile::tempdir()?;
        let ca = lab::Ca::create(&folder.path().join("ca.pem"))?;
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::<Counts>::default();
        let shared = Arc::new(Shared {
            manner: RwLock::new(Arc::new(manner)),
            counts: Arc::clone(&counts),
            zero,
            started: Instant::now(),
            acceptor: ca.issue(&["mx.load.test"])?.server_config().into(),
            seed: AtomicU64::new(1),
        });
        let zone = zone(spread)?;
        let mut sink = Self {
            port: 0,
            dns: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            counts,
            shared: Arc::clone(&shared),
            stop,
            threads: Vec::new(),
        };
        let runtimes = (0..threads)
            .map(|_| tokio::runtime::Builder::new_current_thread().enable_all().build())
            .collect::<io::Result<Vec<_>>>()?;
        let mut port = 0;
        let mut all = Vec::new();
        for runtime in &runtimes {
            let listeners = runtime.block_on(async { bind(spread.domains(), port) })?;
            port = listeners.first().context("no domain")?.local_addr()?.port();
            all.push(listeners);
        }
        sink.port = port;
        let mut dns = None;
        for (runtime, listeners) in runtimes.into_iter().zip(all) {
            let server = match &dns {
                None => {
                    let server = runtime.block_on(DnsServer::start(sink.dns, zone.clone()))?;
                    dns = Some(server.address);
                    Some(server)
                }
                Some(_) => None,
            };
            let (shared, mut stopped) = (Arc::clone(&shared), stopped.clone());
            let thread = std::thread::Builder::new().name("sink".into()).spawn(move || {
                runtime.block_on(async move {
                    for (host, listener) in (0..).zip(listeners) {
                        tokio::spawn(listen(listener, host, Arc::clone(&shared)));
                    }
                    // An error: nobody is there to stop it any more.
                    let _ = stopped.wait_for(|stop| *stop).await;
                    drop(server);
                });
            })?;
            sink.threads.push(thread);
        }
        sink.dns = dns.context("no name server")?;
        Ok(sink)
    }

    /// Behaves otherwise from here on; a delay already begun goes on.
    pub(crate) fn behave(&self, manner: Manner) {
        *self.shared.manner.write() = Arc::new(manner);
    }

    /// All that has come and is kept.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.counts.arrivals.all()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Where the domain of this number is.
pub(crate) fn address(domain: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + u32::try_from(domain).unwrap_or(0))
}

fn zone(spread: &Spread) -> anyhow::Result<Zone> {
    let zone = Zone::default();
    for domain in 0..spread.domains() {
        let name = spread.name(domain);
        let host = format!("mx.{name}");
        zone.mx(&name, 10, &host)?;
        zone.address(&host, IpAddr::V4(address(domain)))?;
    }
    Ok(zone)
}

/// Listeners on all addresses with one port, which others may share.
fn bind(domains: usize, port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut last = None;
    for _ in 0..if port == 0 { PORT_TRIES } else { 1 } {
        let mut port = port;
        let bound: io::Result<Vec<_>> = (0..domains)
            .map(|domain| {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseport(true)?;
                socket.set_reuseaddr(true)?;
                socket.bind((address(domain), port).into())?;
                port = socket.local_addr()?.port();
                socket.listen(BACKLOG)
            })
            .collect();
        match bound {
            Ok(listeners) => return Ok(listeners),
            Err(error) => last = Some(error),
        }
    }
    let last = last.map_or_else(|| anyhow::anyhow!("no port"), Into::into);
    Err(last.context(format!("listening on {domains} addresses from {FIRST} on")))
}

async fn listen(listener: TcpListener, host: u32, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                shared.counts.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(connection(stream, host, Arc::clone(&shared)));
            }
            // Out of descriptors, or a peer that left again.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A connection among those that are open.
struct Open<'a>(&'a Counts);

impl<'a> Open<'a> {
    /// `None` where there are as many as there may be.
    fn take(shared: &'a Shared) -> Option<Self> {
        let most = shared.most_connections();
        let one_more = |open| (open < most).then_some(open + 1);
        let counts = &*shared.counts;
        let taken = counts
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if taken.is_err() {
            counts.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        taken.ok().map(|_| Self(counts))
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(mut stream: TcpStream, host: u32, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let Some(_open) = Open::take(&shared) else {
        let _ = timeout(PATIENCE, stream.write_all(TOO_MANY)).await;
        return;
    };
    let seed = shared.seed.fetch_add(1, Ordering::Relaxed);
    let mut rng = SmallRng::seed_from_u64(seed);
    // A connection that ends otherwise than by QUIT is the peer's business.
    let session = Session::new(&shared, &mut rng, host, false);
    if let Ok(Some(stream)) = session.run(stream, true).await {
        let handshake = timeout(PATIENCE, shared.acceptor.accept(stream));
        if let Ok(Ok(stream)) = handshake.await {
            shared.counts.handshakes.fetch_add(1, Ordering::Relaxed);
            let session = Session::new(&shared, &mut rng, host, true);
            let _ = session.run(stream, false).await;
        }
    }
}

struct Session<'a> {
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
    fn new(shared: &'a Shared, rng: &'a mut SmallRng, host: u32, is_tls: bool) -> Self {
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
        }
    }

    fn behaviour(&self, domain: u32) -> Behaviour {
        let manner = Arc::clone(&self.shared.manner.read());
        manner.at(domain, self.shared.started.elapsed())
    }

    /// To its end, or to STARTTLS: then the connection comes back.
    async fn run<S: Stream>(mut self, mut stream: S, greets: bool) -> io::Result<Option<S>> {
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
            _ => Ok(()),
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
        counts.arrivals.push(Arrival {
            run,
            number,
            domain: self.domain,
            recipients: recipients(number, &self.recipients),
            intact,
            at: self.shared.zero.elapsed(),
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

    #[test]
    fn rules_change_what_they_name_where_and_while_they_apply() {
        let manner = Manner {
            usual: Behaviour {
                delay: Span::just(Duration::from_millis(1)),
                defer: 0.1,
                ..Behaviour::default()
            },
            script: ["1-3:delay=5-50,refuse=0.2", "2:defer=0.5,from=10,until=20.5"]
                .map(|rule| rule.parse().unwrap())
                .to_vec(),
            ..Manner::default()
        };
        let secs = Duration::from_secs_f64;
        assert_eq!(manner.at(0, secs(15.0)), manner.usual);
        let one = manner.at(1, secs(15.0));
        assert_eq!((one.defer, one.refuse), (0.1, 0.2));
        assert_eq!(one.delay, "5-50".parse().unwrap());
        for (at, defer) in [(9.0, 0.1), (10.0, 0.5), (20.0, 0.5), (20.5, 0.1)] {
            assert_eq!(manner.at(2, secs(at)).defer, defer, "{at}");
        }
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..100 {
            let drawn = one.delay.draw(&mut rng);
            assert!((Duration::from_millis(5)..=Duration::from_millis(50)).contains(&drawn));
        }
        for (wrong, said) in [
            ("", "domains, a colon, and what they do"),
            ("0", "domains, a colon, and what they do"),
            ("a:delay=1", "\"a\" is no number of a domain"),
            ("9-5:delay=1", "domains 9-5: the lower number comes first"),
            ("0:delay", "\"delay\" is no key=value"),
            ("0:delay=x", "delay=x: \"x\" is no number of milliseconds"),
            ("0:delay=9-5", "the shorter time comes first"),
            ("0:defer=x", "defer=x: \"x\" is no number"),
            ("0:defer=2", "defer: a share is from 0 to 1, not 2"),
            ("0:refuse=-0.1", "refuse: a share is from 0 to 1, not -0.1"),
            ("0:defer=NaN", "defer: a share is from 0 to 1"),
            (
                "0:defer=0.6,refuse=0.6",
                "defer, 0.6, and refuse, 0.6, are more than 1 together",
            ),
            ("0:from=-1", "from=-1: \"-1\" is no number of seconds"),
            (
                "0:delay=1,from=20,until=10",
                "from, 20 s, is not before until, 10 s",
            ),
            ("0:delay=1,until=0", "from, 0 s, is not before until, 0 s"),
            ("0:shout=1", "\"shout\": there are delay, round-trip"),
        ] {
            let error = format!("{:#}", wrong.parse::<Rule>().unwrap_err());
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn rules_are_held_against_the_domains_and_one_another() {
        let manner = |defer, script: &[&str]| Manner {
            usual: Behaviour {
                defer,
                ..Behaviour::default()
            },
            script: script.iter().map(|rule| rule.parse().unwrap()).collect(),
            ..Manner::default()
        };
        let apart = ["0-5:defer=0.6,until=20", "0-9:refuse=0.6,from=20"];
        manner(0.1, &apart).check(10).unwrap();
        for (manner, said) in [
            (manner(1.5, &[]), "defer: a share is from 0 to 1, not 1.5"),
            (
                manner(0.0, &["1-10:delay=5"]),
                "--script 1-10:delay=5: there is no domain 10, they are 0 to 9",
            ),
            (
                manner(0.5, &["3:refuse=0.6"]),
                "--script: domain 3, 0 s after the start: defer, 0.5, and refuse, 0.6, are more than 1 together",
            ),
            (
                manner(0.0, &["0-5:defer=0.6,until=20", "3-9:refuse=0.6,from=19"]),
                "--script: domain 3, 19 s after the start: defer, 0.6, and refuse, 0.6, are more than 1 together",
            ),
        ] {
            let error = format!("{:#}", manner.check(10).unwrap_err());
            assert_eq!(error, said);
        }
    }
}
