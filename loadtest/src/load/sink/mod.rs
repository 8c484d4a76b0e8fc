//! An SMTP server of many domains that takes mail at next to no cost, behaves as it is told, and remembers what came.
//!
//! Each thread has a runtime and listeners of its own; the kernel spreads connections over them. Domains are `d0.SUFFIX` and so
//! on, each with an address of its own in 127.78.0.0/16 and records in a name server beside, so that a relay finds them as it would
//! find anybody.

pub(crate) mod command;
mod manner;
mod session;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) use manner::{Behaviour, Manner, Rule, Span};

use anyhow::{Context as _, ensure};
use lab::{DnsServer, Zone};
use parking_lot::RwLock;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::letters::Spread;
use super::record::{Arrival, Rows, Zero};
use session::Session;

/// The first domain's address; another net than the lab's.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 78, 0, 1);
/// Silence after which a connection is closed.
const PATIENCE: Duration = Duration::from_secs(300);
/// Connections that a listener has waiting.
const BACKLOG: u32 = 1024;
/// Ports tried until one is free on all addresses.
const PORT_TRIES: usize = 16;

/// Said to connections too many.
const TOO_MANY: &[u8] = b"421 4.7.0 too many connections\r\n";

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
