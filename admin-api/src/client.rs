//! A client for the API, for the command line.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header;
use hyper_util::rt::TokioIo;
use mail_core::MessageId;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::adjust::{
    Adjustment, AdjustmentKind, AdjustmentList, AdjustmentsQuery, EndAdjustment, Ended, SetAdjustment,
};
use crate::aside::{AsideList, AsideQuery};
use crate::limits::LimitList;
use crate::manage::{ConfigView, DrainState, Reloaded};
use crate::operate::{
    Delete, Deletion, MessageList, MessagesQuery, Progress, Resume, Retry, Suspend, Suspension,
    SuspensionList,
};
use crate::types::{HoldList, MessageView, Problem, QueueList, QueueSummary, QueuesQuery};

/// A message's octets in all; whoever serves them ends the connection after as long.
const RAW_TIMEOUT: Duration = Duration::from_secs(600);

/// Another question in all, from connect to the last octet.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Octets of an answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("no answer at {place}: {cause}; is the relay running, and may this user reach it?")]
    Connect {
        /// The socket, or host and port.
        place: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The connection broke, or HTTP did.
    #[error("the connection broke: {0}")]
    Http(String),
    /// It took too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The relay says no.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// What was read could not be written on.
    #[error("{0}")]
    Output(io::Error),
    /// Not the JSON it should be.
    #[error("an answer that this version does not know: {0}")]
    Answer(String),
}

/// Where the API is.
#[derive(Clone)]
pub struct Client {
    place: Place,
    token: Option<String>,
}

#[derive(Clone)]
enum Place {
    Socket(PathBuf),
    Tcp {
        /// Host and port, as in a URL.
        authority: String,
        /// The host alone, and how to speak TLS to it.
        tls: Option<(ServerName<'static>, TlsConnector)>,
    },
}

/// Why something is no URL of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Not one at all.
    #[error("is no admin API")]
    Url,
    /// The token would go over the network in clear.
    #[error("is on another machine, and a token does not go there in clear")]
    Clear,
}

impl Client {
    /// The API on this Unix socket.
    pub fn new(socket: &Path) -> Self {
        Self {
            place: Place::Socket(socket.to_owned()),
            token: None,
        }
    }

    /// The API at this URL, by this token. `tls` is for `https`.
    pub fn at(url: &str, token: Option<String>, tls: TlsConnector) -> Result<Self, BadUrl> {
        let (authority, is_tls) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err(BadUrl::Url),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let uri: hyper::Uri = format!("http://{authority}").parse().map_err(|_| BadUrl::Url)?;
        if uri.path() != "/" || uri.query().is_some() || authority.contains('@') {
            return Err(BadUrl::Url);
        }
        let host = uri.host().ok_or(BadUrl::Url)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let is_here =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !is_tls && !is_here && token.is_some() {
            return Err(BadUrl::Clear);
        }
        let name = || ServerName::try_from(host.clone()).map_err(|_| BadUrl::Url);
        let tls = is_tls.then(|| name().map(|name| (name, tls))).transpose()?;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Ok(Self {
            place: Place::Tcp {
                authority: format!("{host}:{port}"),
                tls,
            },
            token,
        })
    }

    /// A page of queues.
    pub async fn queues(&self, query: &QueuesQuery) -> Result<QueueList, ClientError> {
        let mut path = format!("/v1/queues?empty={}", query.empty);
        if let Some(after) = query.after {
            path.push_str(&format!("&after={after}"));
        }
        if let Some(limit) = query.limit {
            path.push_str(&format!("&limit={limit}"));
        }
        for (key, value) in [
            ("tenant", &query.tenant),
            ("stream", &query.stream),
            ("domain", &query.domain),
        ] {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", escaped(value)));
            }
        }
        self.get(&path).await
    }

    /// Destinations that rest.
    pub async fn holds(&self) -> Result<HoldList, ClientError> {
        self.get("/v1/holds").await
    }

    /// Limits in use.
    pub async fn limits(&self) -> Result<LimitList, ClientError> {
        self.get("/v1/limits").await
    }

    /// What became of a message.
    pub async fn message(&self, id: MessageId) -> Result<MessageView, ClientError> {
        self.get(&format!("/v1/messages/{id}")).await
    }

    /// One queue.
    pub async fn queue(&self, id: u64) -> Result<QueueSummary, ClientError> {
        self.get(&format!("/v1/queues/{id}")).await
    }

    /// A page of messages that wait.
    pub async fn messages(&self, query: &MessagesQuery) -> Result<MessageList, ClientError> {
        let mut path = format!("/v1/messages?limit={}", query.limit.unwrap_or(100));
        for (key, value) in [
            ("tenant", query.tenant.clone()),
            ("stream", query.stream.clone()),
            ("domain", query.domain.clone()),
            ("queue", query.queue.map(|queue| queue.to_string())),
            ("sender", query.sender.clone()),
            ("recipient", query.recipient.clone()),
            ("tag", query.tag.clone()),
            (
                "older_than_seconds",
                query.older_than_seconds.map(|seconds| seconds.to_string()),
            ),
            ("after", query.after.clone()),
        ] {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", escaped(&value)));
            }
        }
        self.get(&path).await
    }

    /// Writes a message as it goes out, without its signature, to `out`: part by part, whatever its size.
    pub async fn raw(&self, id: MessageId, out: &mut impl io::Write) -> Result<(), ClientError> {
        let path = format!("/v1/messages/{id}/raw");
        let write = async |response: hyper::Response<Incoming>| {
            if !response.status().is_success() {
                return Err(ClientError::Refused(
                    serde_json::from_slice(&whole(response).await?).map_err(unknown)?,
                ));
            }
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| ClientError::Http(error.to_string()))?;
                if let Ok(octets) = frame.into_data() {
                    out.write_all(&octets).map_err(ClientError::Output)?;
                }
            }
            out.flush().map_err(ClientError::Output)
        };
        let ask = self.ask(hyper::Method::GET, &path, Bytes::new(), write);
        tokio::time::timeout(RAW_TIMEOUT, ask)
            .await
            .map_err(|_| ClientError::Timeout)?
    }

    /// A page of what is set aside.
    pub async fn aside(&self, query: &AsideQuery) -> Result<AsideList, ClientError> {
        let mut path = format!("/v1/aside?limit={}", query.limit.unwrap_or(100));
        if let Some(after) = &query.after {
            path.push_str(&format!("&after={}", escaped(after)));
        }
        self.get(&path).await
    }

    /// What is set to wait.
    pub async fn suspensions(&self) -> Result<SuspensionList, ClientError> {
        self.get("/v1/suspensions").await
    }

    /// A page of what replies have taught, and operators have set beside.
    pub async fn adjustments(&self, query: &AdjustmentsQuery) -> Result<AdjustmentList, ClientError> {
        let mut path = format!("/v1/adjustments?limit={}", query.limit.unwrap_or(100));
        let kind = query.kind.map(|kind| match kind {
            AdjustmentKind::Suspended => "suspended".to_owned(),
            AdjustmentKind::Slower => "slower".to_owned(),
        });
        for (name, value) in [
            ("kind", &kind),
            ("site", &query.site),
            ("provider", &query.provider),
            ("tenant", &query.tenant),
            ("source", &query.source),
            ("after", &query.after),
        ] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", escaped(value)));
            }
        }
        self.get(&path).await
    }

    /// Makes an adjustment.
    pub async fn adjust(&self, set: &SetAdjustment) -> Result<Adjustment, ClientError> {
        self.post("/v1/adjustments", set).await
    }

    /// Ends adjustments.
    pub async fn end_adjustment(&self, end: &EndAdjustment) -> Result<Ended, ClientError> {
        self.post("/v1/adjustments/end", end).await
    }

    /// Sets queues to wait.
    pub async fn suspend(&self, suspend: &Suspend) -> Result<Suspension, ClientError> {
        self.post("/v1/suspensions", suspend).await
    }

    /// Ends a suspension.
    pub async fn resume(&self, resume: &Resume) -> Result<(), ClientError> {
        let body = json(resume)?;
        self.exchange(hyper::Method::POST, "/v1/suspensions/resume", body)
            .await
            .map(drop)
    }

    /// Has mail tried at once.
    pub async fn retry(&self, retry: &Retry) -> Result<Progress, ClientError> {
        self.post("/v1/retry", retry).await
    }

    /// Previews a deletion, or deletes.
    pub async fn delete(&self, delete: &Delete) -> Result<Deletion, ClientError> {
        self.post("/v1/delete", delete).await
    }

    /// Reads the configuration anew.
    pub async fn reload(&self) -> Result<Reloaded, ClientError> {
        self.post("/v1/reload", &()).await
    }

    /// The configuration in force.
    pub async fn config(&self) -> Result<ConfigView, ClientError> {
        self.get("/v1/config").await
    }

    /// Whether mail is taken, and what is left.
    pub async fn drain_state(&self) -> Result<DrainState, ClientError> {
        self.get("/v1/drain").await
    }

    /// Takes no more mail, or takes it again.
    pub async fn drain(&self, draining: bool) -> Result<DrainState, ClientError> {
        let path = if draining { "/v1/drain" } else { "/v1/drain/end" };
        self.post(path, &()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.exchange(hyper::Method::GET, path, Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(unknown)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = self.exchange(hyper::Method::POST, path, json(body)?).await?;
        serde_json::from_slice(&body).map_err(unknown)
    }

    async fn exchange(&self, method: hyper::Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let read =
            async |response: hyper::Response<Incoming>| Ok((response.status(), whole(response).await?));
        let (status, body) = tokio::time::timeout(TIMEOUT, self.ask(method, path, body, read))
            .await
            .map_err(|_| ClientError::Timeout)??;
        if status.is_success() {
            return Ok(body);
        }
        Err(ClientError::Refused(
            serde_json::from_slice(&body).map_err(unknown)?,
        ))
    }

    /// A connection, and what it calls the host.
    async fn connect(&self) -> Result<(Box<dyn Duplex>, &str), ClientError> {
        let failed = |place: String| move |cause| ClientError::Connect { place, cause };
        match &self.place {
            Place::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(failed(path.display().to_string()))?;
                Ok((Box::new(stream), "localhost"))
            }
            Place::Tcp { authority, tls } => {
                let failed = || failed(authority.clone());
                let stream = TcpStream::connect(authority).await.map_err(failed())?;
                let stream: Box<dyn Duplex> = match tls {
                    None => Box::new(stream),
                    Some((name, tls)) => Box::new(tls.connect(name.clone(), stream).await.map_err(failed())?),
                };
                Ok((stream, authority))
            }
        }
    }

    async fn ask<T>(
        &self,
        method: hyper::Method,
        path: &str,
        body: Bytes,
        read: impl AsyncFnOnce(hyper::Response<Incoming>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let (stream, host) = self.connect().await?;
        let broke = |error: hyper::Error| ClientError::Http(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broke)?;
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ClientError::Http(error.to_string()))?;
        let exchange = async { read(sender.send_request(request).await.map_err(broke)?).await };
        // The connection's future moves the octets and ends with the exchange.
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            result = &mut exchange => return result,
            ended = connection => ended.map_err(broke)?,
        }
        exchange.await
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

async fn whole(response: hyper::Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| ClientError::Http(error.to_string()))?;
    Ok(body.to_bytes())
}

fn unknown(error: serde_json::Error) -> ClientError {
    ClientError::Answer(error.to_string())
}

fn json(value: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| ClientError::Http(error.to_string()))
}

/// For a query's value (RFC 3986 §2.1).
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|octet| match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(octet).to_string()
            }
            _ => format!("%{octet:02X}"),
        })
        .collect()
}
