//! Listening sockets, and the loop that takes connections in.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mail_core::Reply;
use rustls::ServerConfig;
use socket2::{Domain as SocketDomain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::config::settings::{Listener, ListenerKind};
use crate::delivery::exchange::Doors;
use crate::world::Random;

use super::front::Front;
use super::session::{Service, Shell, auth};

/// Connections that the system keeps while we are busy.
const BACKLOG: i32 = 1_024;

/// After the system had no descriptor left for a connection; those at hand go on meanwhile.
const PAUSE: Duration = Duration::from_millis(200);

/// A listener that is bound, for one worker.
pub struct Bound {
    socket: StdListener,
    kind: ListenerKind,
    tls: Option<Arc<ServerConfig>>,
}

/// Binds a listener once for each of `workers`; the system spreads connections over them (SO_REUSEPORT). The first one says
/// where, if the system chooses the port.
pub fn bind(listener: &Listener, workers: usize) -> anyhow::Result<(SocketAddr, Vec<Bound>)> {
    let tls = match &listener.kind {
        ListenerKind::Submission(files) | ListenerKind::Submissions(files) => Some(files),
        ListenerKind::Trusted { tls, .. } => tls.as_ref(),
    };
    let tls = tls.map(crate::tls::server_config).transpose()?;
    let mut address = listener.address;
    let mut bound = Vec::with_capacity(workers);
    for _ in 0..workers {
        let context = |error: io::Error| anyhow::anyhow!("can't listen on {address}: {error}");
        let socket = open(address).map_err(context)?;
        address = socket.local_addr().map_err(context)?;
        bound.push(Bound {
            socket,
            kind: listener.kind.clone(),
            tls: tls.clone(),
        });
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

/// Takes connections in until `stop`; each session is a local task. Returns when all sessions have ended.
pub async fn run(
    bound: Bound,
    front: Arc<Front>,
    random: Random,
    doors: Doors,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(bound.socket)?;
    let networks = match &bound.kind {
        ListenerKind::Trusted { networks, .. } => Some(networks.clone()),
        ListenerKind::Submission(_) | ListenerKind::Submissions(_) => None,
    };
    let service = Rc::new(service(
        &bound.kind,
        bound.tls,
        &front,
        random,
        doors,
        stop.clone(),
    ));
    let mut sessions = tokio::task::JoinSet::new();
    while !*stop.borrow() {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            _ = stop.changed() => break,
            Some(_) = sessions.join_next(), if !sessions.is_empty() => continue,
        };
        match taken {
            Ok((stream, peer)) => take(&service, networks.as_deref(), stream, peer, &mut sessions),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no more connections can be taken in for now");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    while sessions.join_next().await.is_some() {}
    Ok(())
}

pub(super) fn service(
    kind: &ListenerKind,
    tls: Option<Arc<ServerConfig>>,
    front: &Arc<Front>,
    random: Random,
    doors: Doors,
    stop: watch::Receiver<bool>,
) -> Service {
    let settings = &front.settings;
    let (implicit_tls, tenant, auth) = match kind {
        ListenerKind::Submission(_) => (false, None, auth()),
        ListenerKind::Submissions(_) => (true, None, auth()),
        ListenerKind::Trusted { tenant, .. } => {
            (false, Some(tenant.clone()), mail_core::smtp::server::Auth::None)
        }
    };
    let config = mail_core::smtp::server::Config {
        hostname: settings.hostname.to_string(),
        postmaster: settings.postmaster.clone(),
        max_message_bytes: settings.submission.max_message_bytes,
        max_recipients: settings.submission.max_recipients,
        max_errors: settings.submission.max_errors,
        starttls: tls.is_some() && !implicit_tls,
        auth,
        pipelining: true,
        eight_bit_mime: true,
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
        random,
        doors,
        stop,
    }
}

fn take(
    service: &Rc<Service>,
    networks: Option<&[IpNet]>,
    stream: TcpStream,
    peer: SocketAddr,
    sessions: &mut tokio::task::JoinSet<()>,
) {
    let client = peer.ip().to_canonical();
    let count = |result| {
        service
            .front
            .metrics
            .connections
            .with_label_values(&[result])
            .inc()
    };
    if networks.is_some_and(|networks| !networks.iter().any(|network| network.contains(&client))) {
        count("foreign");
        tracing::info!(%client, "turned away: not of a trusted network");
        drop(spawn_local(turn_away(
            stream,
            Reply::new(554, 7, 1, "this server is not for you"),
        )));
        return;
    }
    match service.front.enter(client) {
        Ok(entered) => {
            count("served");
            // Replies are small, and written whole.
            let _ = stream.set_nodelay(true);
            sessions.spawn_local(Shell::new(service.clone(), entered, client, stream).run());
        }
        Err(reply) => {
            count("full");
            tracing::warn!(%client, %reply, "turned away");
            drop(spawn_local(turn_away(stream, reply)));
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
