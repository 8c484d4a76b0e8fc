//! A small HTTP/1 server with bounds, for listeners that operators and probes reach.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::serve::Listener;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::access::{self, Access, Peer, Role};
use crate::control::Caller;
use crate::routes::problem;

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// Octets of a request's line and header.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Octets of a request's body.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// From the first octet of a request, or from the end of the one before, to the end of its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// A request from its header to its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection in all: one that only takes octets slowly ends some time.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);

/// The certificate to show, asked for at each connection.
pub type Certificate = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Serves until the future is dropped, anyone. Whatever a client sends, it ends that client's connection at the most.
pub async fn serve<L: Listener>(listener: L, router: Router)
where
    L::Addr: Send,
{
    serve_each(listener, |stream, _| {
        std::future::ready(Ok((stream, router.clone())))
    })
    .await;
}

/// Serves a Unix socket; callers are known by their uid, and may do everything: the socket's permissions are its guard.
pub async fn serve_socket(listener: UnixListener, router: Router) {
    let router = router.layer(from_fn(access::by_role));
    serve_each(listener, |stream: UnixStream, _| {
        let caller = match stream.peer_cred() {
            Ok(peer) => Caller(format!("uid {}", peer.uid()).into()),
            Err(_) => Caller("an unknown user".into()),
        };
        let router = router
            .clone()
            .layer(Extension(caller))
            .layer(Extension(Role::Admin));
        async move { Ok((stream, router)) }
    })
    .await;
}

/// Serves over TCP, those who have a token; over TLS where there is a certificate.
pub async fn serve_tcp(
    listener: TcpListener,
    certificate: Option<Certificate>,
    access: Access,
    router: Router,
) {
    let router = router
        .layer(from_fn(access::by_role))
        .layer(from_fn_with_state(access, access::over_tcp));
    serve_each(listener, |stream: TcpStream, peer: SocketAddr| {
        let router = router.clone().layer(Extension(Peer(peer.ip().to_canonical())));
        let certificate = certificate.clone();
        async move {
            let stream: Box<dyn Duplex> = match certificate {
                None => Box::new(stream),
                Some(certificate) => Box::new(TlsAcceptor::from(certificate()).accept(stream).await?),
            };
            Ok((stream, router))
        }
    })
    .await;
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// `enter` makes a connection ready, and says which routes it has.
async fn serve_each<L, S, F>(mut listener: L, enter: impl Fn(L::Io, L::Addr) -> F)
where
    L: Listener,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = io::Result<(S, Router)>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropping the set ends the connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = listener.accept().await;
        let entering = tokio::time::timeout(HEADER_TIMEOUT, enter(stream, peer));
        connections.spawn(async move {
            let (stream, router) = match entering.await {
                Ok(Ok(entered)) => entered,
                Ok(Err(error)) => return tracing::debug!(%error, "HTTP connection"),
                Err(_) => return tracing::debug!("HTTP connection took too long"),
            };
            let router = router
                .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
                .layer(from_fn(answer_in_time));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES);
            let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "HTTP connection"),
                Err(_) => tracing::debug!("HTTP connection took too long"),
            }
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer_in_time(request: Request, next: Next) -> axum::response::Response {
    match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "the answer took too long"),
    }
}
