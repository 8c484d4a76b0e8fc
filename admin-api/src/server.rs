//! A small HTTP/1 server with bounds, for listeners that operators and probes reach.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::serve::Listener;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

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

/// Serves until the future is dropped. Whatever a client sends, it ends that client's connection at the most.
pub async fn serve<L: Listener>(listener: L, router: Router) {
    serve_callers(listener, router, |_| Caller("unknown".into())).await;
}

/// Serves a Unix socket; callers are known by their uid.
pub async fn serve_socket(listener: tokio::net::UnixListener, router: Router) {
    let caller = |stream: &tokio::net::UnixStream| match stream.peer_cred() {
        Ok(peer) => Caller(format!("uid {}", peer.uid()).into()),
        Err(_) => Caller("an unknown user".into()),
    };
    serve_callers(listener, router, caller).await;
}

async fn serve_callers<L: Listener>(mut listener: L, router: Router, caller: impl Fn(&L::Io) -> Caller) {
    let router = router
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn(answer_in_time));
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropping the set ends the connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let (stream, _) = listener.accept().await;
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES);
        let router = router.clone().layer(Extension(caller(&stream)));
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        connections.spawn(async move {
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
