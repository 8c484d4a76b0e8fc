//! The lab's HTTP door: what the mailboxes hold, for people and tests.
//!
//! It has no token, so it listens on loopback and speaks only to who calls it by a loopback name: a page of the web that has
//! its own name point here (DNS rebinding) is refused by its Host, and scripts of other sites by their Origin.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::mailbox::{Entry, Mailboxes};
use crate::script::Peers;

pub(crate) struct HttpDoor {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl HttpDoor {
    pub(crate) async fn start(
        address: SocketAddr,
        mailboxes: Arc<Mailboxes>,
        peers: Arc<Peers>,
    ) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            let why = "the lab's HTTP door has no lock; it listens on loopback addresses only";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = router(mailboxes, peers);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the lab's HTTP door closed");
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for HttpDoor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(mailboxes: Arc<Mailboxes>, peers: Arc<Peers>) -> Router {
    Router::new()
        .route("/lab/mailboxes", get(list))
        .route("/lab/mailboxes/{address}", get(entries))
        .route("/lab/mailboxes/{address}/{n}", get(raw))
        .route("/lab/peers", get(async move || Json(peers.all())))
        .fallback(async || {
            problem(
                StatusCode::NOT_FOUND,
                "nothing of that name; see /lab/mailboxes and /lab/peers",
            )
        })
        .method_not_allowed_fallback(async || problem(StatusCode::METHOD_NOT_ALLOWED, "GET only"))
        .layer(middleware::from_fn(only_from_here))
        .with_state(mailboxes)
}

#[derive(Serialize)]
struct Listed {
    address: String,
    messages: usize,
    bytes: u64,
}

async fn list(State(mailboxes): State<Arc<Mailboxes>>) -> Response {
    let all = mailboxes.list().into_iter();
    let all: Vec<_> = all
        .map(|(address, messages, bytes)| Listed {
            address,
            messages,
            bytes,
        })
        .collect();
    Json(all).into_response()
}

#[derive(Serialize)]
struct Numbered<'a> {
    n: usize,
    #[serde(flatten)]
    entry: &'a Entry,
}

async fn entries(State(mailboxes): State<Arc<Mailboxes>>, Path(address): Path<String>) -> Response {
    match mailboxes.entries(&address) {
        Some(entries) => {
            let all: Vec<_> = entries
                .iter()
                .enumerate()
                .map(|(n, entry)| Numbered { n, entry })
                .collect();
            Json(all).into_response()
        }
        None => problem(StatusCode::NOT_FOUND, "no mail for that address"),
    }
}

async fn raw(
    State(mailboxes): State<Arc<Mailboxes>>,
    Path((address, n)): Path<(String, String)>,
) -> Response {
    let Ok(n) = n.parse() else {
        return problem(StatusCode::NOT_FOUND, "messages are numbered from 0");
    };
    let read = tokio::task::spawn_blocking(move || mailboxes.raw(&address, n)).await;
    match read.map_err(io::Error::other).flatten() {
        Ok(Some(octets)) => {
            let plain = [
                (header::CONTENT_TYPE, "message/rfc822"),
                // Mail is made by strangers: no browser is to see a page in it.
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::CONTENT_SECURITY_POLICY, "sandbox"),
            ];
            (plain, octets).into_response()
        }
        Ok(None) => problem(
            StatusCode::NOT_FOUND,
            "no message of that number, or its octets were not kept",
        ),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn problem(status: StatusCode, why: &str) -> Response {
    (status, Json(serde_json::json!({ "error": why }))).into_response()
}

async fn only_from_here(request: Request, next: Next) -> Response {
    if is_local(request.headers(), request.uri()) {
        next.run(request).await
    } else {
        problem(
            StatusCode::FORBIDDEN,
            "call the lab by a loopback name or address",
        )
    }
}

fn is_local(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name| {
        headers
            .get_all(name)
            .iter()
            .map(|value: &axum::http::HeaderValue| value.to_str())
    };
    let hosts: Vec<_> = text(header::HOST).collect();
    let host_is_local = match hosts[..] {
        [Ok(host)] => is_loopback(host),
        _ => false,
    };
    let origin_is_local = |origin: &str| {
        let host = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        host.is_some_and(is_loopback)
    };
    host_is_local
        && uri
            .authority()
            .is_none_or(|authority| is_loopback(authority.as_str()))
        && text(header::ORIGIN).all(|origin| origin.is_ok_and(origin_is_local))
}

/// `localhost`, a loopback address, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()) => host,
        _ => authority,
    };
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_loopback_from_the_rest() {
        for here in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8025",
            "127.9.9.9",
            "[::1]:1",
            "[::1]",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in [
            "",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io:80",
            "10.0.0.1",
            "[::2]:1",
        ] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }
}
