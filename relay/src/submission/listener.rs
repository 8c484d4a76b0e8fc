//! Listening sockets, and the loop that takes connections in.

use std::cell::OnceCell;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mail_core::Reply;
use rustls::ServerConfig;
use socket2::{Domain as SocketDomain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::config::settings::{Listener, ListenerKind};
use crate::config::streams;
use crate::delivery::exchange::Doors;
use crate::world::Random;

use super::front::Front;
use super::proxy_protocol::{self, Found};
use super::session::{Service, Shell, auth};

/// Connections that the system keeps while we are busy.
const BACKLOG: i32 = 1_024;

/// After the system had no descriptor left for a connection; those at hand go on meanwhile.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a proxy may take to say whose connection it passes on. Its header is ready before it connects.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);

const FULL: Reply = Reply::new(421, 3, 2, "too many connections; come back later");

/// What holds on a listener, as one configuration has it.
#[derive(Clone)]
pub struct Terms {
    /// What all listeners share.
    pub front: Arc<Front>,
    /// Kind, proxies.
    pub listener: Listener,
    /// The certificate, where there is one.
    pub tls: Option<Arc<ServerConfig>>,
}

/// A listener at work, as its worker holds it. Without it the listener closes, and its sessions end before their next message.
pub type Held = watch::Sender<Terms>;

/// What decides about a connection before there is a session.
struct Gate {
    service: Rc<Service>,
    /// Who has to begin with a PROXY header.
    proxies: Vec<IpNet>,
    /// Room for clients that are told why they are turned away.
    away: Arc<Semaphore>,
}

/// Clients that are turned away with words, at once on a listener's worker; the next ones are hung up on without. Each holds a
/// descriptor for as long as it takes to write a line, or not to.
const AWAY: usize = 16;

/// The certificate that a listener shows.
pub fn certificate(listener: &Listener) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let tls = match &listener.kind {
        ListenerKind::Submission(files) | ListenerKind::Submissions(files) => Some(files),
        ListenerKind::Trusted { tls, .. } => tls.as_ref(),
    };
    tls.map(crate::tls::server_config).transpose()
}

/// Binds an address once for each of `workers`; the system spreads connections over them (SO_REUSEPORT). The first one says
/// where, if the system chooses the port.
pub fn bind(address: SocketAddr, workers: usize) -> anyhow::Result<(SocketAddr, Vec<StdListener>)> {
    let mut address = address;
    let mut bound = Vec::with_capacity(workers);
    for _ in 0..workers {
        let context = |error: io::Error| anyhow::anyhow!("can't listen on {address}: {error}");
        let socket = open(address).map_err(context)?;
        address = socket.local_addr().map_err(context)?;
        bound.push(socket);
    }
    Ok((address, bound))
}

fn open(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(
        SocketDomain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes connections in until `stop`, or until nobody holds the terms any more; each session is a local task. New terms hold
/// for new connections at once, and for the others from their next message on. Returns when all sessions have ended.
pub async fn run(
    socket: StdListener,
    mut terms: watch::Receiver<Terms>,
    random: Random,
    doors: Doors,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let stopping = stop.clone();
    let make = |terms: &Terms| Gate::new(terms, random.clone(), doors.clone(), stopping.clone());
    let mut gate = make(&terms.borrow_and_update());
    let mut sessions = tokio::task::JoinSet::new();
    while !*stop.borrow() {
        let taken = tokio::select! {
            biased;
            _ = stop.changed() => break,
            renewed = terms.changed() => {
                if renewed.is_err() {
                    break;
                }
                let renewed = make(&terms.borrow_and_update());
                gate.service.renew(Some(renewed.service.clone()));
                gate = renewed;
                continue;
            }
            taken = listener.accept() => taken,
            Some(_) = sessions.join_next(), if !sessions.is_empty() => continue,
        };
        match taken {
            Ok((stream, peer)) => take(&gate, stream, peer, &mut sessions),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no more connections can be taken in for now");
                sleep(PAUSE).await;
            }
        }
    }
    if !*stop.borrow() {
        // Taken away: whoever the system has let in already is served, to be told so.
        let socket = listener.into_std()?;
        while let Ok((stream, peer)) = socket.accept() {
            stream.set_nonblocking(true)?;
            take(&gate, TcpStream::from_std(stream)?, peer, &mut sessions);
        }
        gate.service.renew(None);
    } else {
        drop(listener);
    }
    while sessions.join_next().await.is_some() {}
    Ok(())
}

pub(super) fn service(
    listener: &Listener,
    tls: Option<Arc<ServerConfig>>,
    front: &Arc<Front>,
    random: Random,
    doors: Doors,
    stop: watch::Receiver<bool>,
) -> Service {
    let (settings, kind) = (&front.settings, &listener.kind);
    let (implicit_tls, tenant, auth) = match kind {
        ListenerKind::Submission(_) => (false, None, auth()),
        ListenerKind::Submissions(_) => (true, None, auth()),
        ListenerKind::Trusted { tenant, .. } => {
            (false, Some(tenant.clone()), mail_core::smtp::server::Auth::None)
        }
    };
    // What EHLO tells (RFC 1870, RFC 9422): a tenant's own limits, where it is known by then.
    let rules = tenant.as_ref().and_then(|name: &Arc<str>| front.tenant(name));
    let most = &settings.submission;
    let own_bytes = rules.and_then(|tenant| tenant.max_message_bytes);
    let own_recipients = rules.and_then(|tenant| tenant.max_recipients);
    let config = mail_core::smtp::server::Config {
        hostname: settings.hostname.to_string(),
        postmaster: settings.postmaster.clone(),
        max_message_bytes: own_bytes.unwrap_or(u64::MAX).min(most.max_message_bytes),
        max_recipients: own_recipients.unwrap_or(usize::MAX).min(most.max_recipients),
        max_errors: settings.submission.max_errors,
        starttls: tls.is_some() && !implicit_tls,
        auth,
        pipelining: true,
        eight_bit_mime: true,
        smtputf8: true,
        chunking: true,
        dsn: true,
        deliver_by: true,
        mt_priority: true,
        enhanced_codes: true,
        command_timeout: settings.submission.command_timeout,
        data_timeout: settings.submission.data_timeout,
    };
    Service {
        front: front.clone(),
        config: Arc::new(config),
        tls,
        implicit_tls,
        tenant,
        stream_is_said: listener.stream.is_some(),
        stream: listener.stream.clone().unwrap_or_else(|| streams::DEFAULT.into()),
        random,
        doors,
        stop,
        networks: match kind {
            ListenerKind::Trusted { networks, .. } => Some(networks.clone()),
            ListenerKind::Submission(_) | ListenerKind::Submissions(_) => None,
        },
        xclient: listener.xclient.clone(),
        next: OnceCell::new(),
    }
}

fn take(gate: &Rc<Gate>, stream: TcpStream, peer: SocketAddr, sessions: &mut tokio::task::JoinSet<()>) {
    let peer = peer.ip().to_canonical();
    if !has(&gate.proxies, peer) {
        gate.admit(stream, peer, sessions);
        return;
    }
    // Whose connection it is shows later; until then they are bounded all together.
    if sessions.len() >= gate.service.front.settings.submission.max_connections {
        gate.count("full");
        tracing::warn!(proxy = %peer, "turned away: too many connections");
        gate.turn_away(stream, FULL);
        return;
    }
    let gate = gate.clone();
    sessions.spawn_local(async move {
        let mut stream = stream;
        let header = timeout(HEADER_PATIENCE, proxy_header(&mut stream));
        match header.await.unwrap_or(Err("no PROXY header in time")) {
            Ok(client) => {
                let client = client.map_or(peer, |client| client.ip().to_canonical());
                let mut session = tokio::task::JoinSet::new();
                gate.admit(stream, client, &mut session);
                while session.join_next().await.is_some() {}
            }
            Err(why) => {
                gate.count("proxy");
                tracing::warn!(proxy = %peer, why, "closed");
            }
        }
    });
}

/// Reads a PROXY header and nothing beyond it.
async fn proxy_header(stream: &mut TcpStream) -> Result<Option<SocketAddr>, &'static str> {
    let mut octets = Vec::new();
    loop {
        match proxy_protocol::read(&octets) {
            Found::Client(client) => return Ok(client),
            Found::Bad(why) => return Err(why),
            Found::More(count) => {
                let at = octets.len();
                octets.resize(at + count, 0);
                let read = stream.read_exact(&mut octets[at..]).await;
                read.map_err(|_| "the connection ended within the PROXY header")?;
            }
        }
    }
}

pub(super) fn has(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

impl Gate {
    fn new(terms: &Terms, random: Random, doors: Doors, stop: watch::Receiver<bool>) -> Rc<Self> {
        let Terms { front, listener, tls } = terms;
        Rc::new(Self {
            service: Rc::new(service(listener, tls.clone(), front, random, doors, stop)),
            proxies: listener.proxies.clone(),
            away: Arc::new(Semaphore::new(AWAY)),
        })
    }

    fn turn_away(&self, stream: TcpStream, reply: Reply) {
        if let Ok(room) = self.away.clone().try_acquire_owned() {
            drop(spawn_local(async move {
                turn_away(stream, reply).await;
                drop(room);
            }));
        }
    }

    fn count(&self, result: &str) {
        let metrics = &self.service.front.metrics;
        metrics.connections.with_label_values(&[result]).inc();
    }

    /// Begins the session of a client whose address is known, or turns it away.
    fn admit(&self, stream: TcpStream, client: IpAddr, sessions: &mut tokio::task::JoinSet<()>) {
        if !self.service.admits(client) {
            self.count("foreign");
            tracing::info!(%client, "turned away: not of a trusted network");
            let words = Reply::new(554, 7, 1, "this server is not for you");
            self.turn_away(stream, words);
            return;
        }
        match self.service.front.enter(client) {
            Ok(entered) => {
                self.count("served");
                // Replies are small, and written whole.
                let _ = stream.set_nodelay(true);
                sessions.spawn_local(Shell::new(self.service.clone(), entered, client, stream).run());
            }
            Err(reply) => {
                self.count("full");
                tracing::warn!(%client, %reply, "turned away");
                self.turn_away(stream, reply);
            }
        }
    }
}

async fn turn_away(mut stream: TcpStream, reply: Reply) {
    let mut words = Vec::new();
    reply.write_to(&mut words);
    // Whether the client hears it is its own affair.
    let _ = timeout(Duration::from_secs(2), stream.write_all(&words)).await;
}

/// Errors of accept(2) that say nothing about the next connection.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn header(sent: &[u8]) -> (Result<Option<SocketAddr>, &'static str>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut theirs, _) = listener.accept().await.unwrap();
        ours.write_all(sent).await.unwrap();
        ours.shutdown().await.unwrap();
        let found = proxy_header(&mut theirs).await;
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        (found, rest)
    }

    /// CASES §3: PROXY spoof.
    #[tokio::test]
    async fn a_listed_peer_needs_a_header_and_nothing_behind_it_is_taken() {
        let (found, rest) = header(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 587\r\n\x16\x03\x01").await;
        assert_eq!(found, Ok(Some("192.0.2.1:1234".parse().unwrap())));
        assert_eq!(rest, b"\x16\x03\x01");
        let (found, _) = header(b"EHLO c.test\r\n").await;
        assert_eq!(found, Err("no PROXY header"));
        let (found, _) = header(b"PROXY TCP4 192.0.2.1").await;
        assert_eq!(found, Err("the connection ended within the PROXY header"));
        let (found, _) = header(b"").await;
        assert!(found.is_err());
    }
}
