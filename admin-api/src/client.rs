//! A client for the API on its Unix socket, for the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header;
use hyper_util::rt::TokioIo;
use mail_core::MessageId;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::types::{HoldList, MessageView, Problem, QueueList, QueuesQuery};

/// A question in all, from connect to the last octet.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Octets of an answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("no answer at {}: {cause}; is the relay running, and may this user reach it?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
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
    /// Not the JSON it should be.
    #[error("an answer that this version does not know: {0}")]
    Answer(String),
}

/// Where the API is.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The API on this Unix socket.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
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
        self.get(&path).await
    }

    /// Destinations that rest.
    pub async fn holds(&self) -> Result<HoldList, ClientError> {
        self.get("/v1/holds").await
    }

    /// What became of a message.
    pub async fn message(&self, id: MessageId) -> Result<MessageView, ClientError> {
        self.get(&format!("/v1/messages/{id}")).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (status, body) = tokio::time::timeout(TIMEOUT, self.ask(path))
            .await
            .map_err(|_| ClientError::Timeout)??;
        let unknown = |error: serde_json::Error| ClientError::Answer(error.to_string());
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(unknown);
        }
        Err(ClientError::Refused(
            serde_json::from_slice(&body).map_err(unknown)?,
        ))
    }

    async fn ask(&self, path: &str) -> Result<(hyper::StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|cause| ClientError::Connect {
                path: self.socket.clone(),
                cause,
            })?;
        let broke = |error: hyper::Error| ClientError::Http(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broke)?;
        let request = hyper::Request::get(path)
            .header(header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| ClientError::Http(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broke)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await;
            let body = body.map_err(|error| ClientError::Http(error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
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
