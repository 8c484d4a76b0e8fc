//! A host of the lab that plays a script, and what was said to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mail_core::Domain;
use parking_lot::Mutex;
use serde::Serialize;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::Script;
use super::player::{Ending, Record, play};

/// Conversations remembered, of all scripted hosts together; the oldest is forgotten first.
const MAX_PLAYED: usize = 200;
/// Connections of one host at once; more are hung up on.
const MAX_CONNECTIONS: usize = 500;
/// After a failed accept: out of file handles, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A conversation with a scripted host that is over.
#[derive(Clone, Debug, Serialize)]
pub struct Played {
    /// The host.
    pub host: Domain,
    /// Of the host's connections, from 1.
    pub connection: u64,
    /// How it ended.
    pub ended: String,
    /// What was said: lines `C: …` and `S: …`.
    pub lines: Vec<String>,
}

/// The conversations of all scripted hosts, in the order in which they ended.
#[derive(Default)]
pub(crate) struct Peers(Mutex<VecDeque<Played>>);

impl Peers {
    pub(crate) fn all(&self) -> Vec<Played> {
        self.0.lock().iter().cloned().collect()
    }

    fn add(&self, played: Played) {
        let mut all = self.0.lock();
        if all.len() == MAX_PLAYED {
            all.pop_front();
        }
        all.push_back(played);
    }
}

pub(crate) struct ScriptedHost {
    pub(crate) name: Domain,
    pub(crate) script: Arc<Script>,
    pub(crate) tls: TlsAcceptor,
    pub(crate) peers: Arc<Peers>,
    pub(crate) connections: AtomicU64,
}

impl ScriptedHost {
    /// Serves until dropped, and then ends its conversations where they are.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if running.len() < MAX_CONNECTIONS => {
                        running.spawn(Arc::clone(&self).converse(stream));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, host = %self.name, "the lab can't accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = running.join_next() => {}
            }
        }
    }

    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(section) = self.script.connection(connection) else {
            return;
        };
        // What a script says in two steps may come in two packets.
        let _ = stream.set_nodelay(true);
        // A second handle, by which the socket can still be reset when the first is within TLS.
        let socket = SockRef::from(&stream).try_clone();
        let mut record = Record::default();
        let ending = play(section, stream, Some(&self.tls), &mut record).await;
        if let (Ending::Reset, Ok(socket)) = (&ending, &socket)
            && let Err(error) = socket.set_linger(Some(Duration::ZERO))
        {
            tracing::warn!(%error, host = %self.name, "a connection could not be reset");
        }
        drop(socket);
        tracing::info!(host = %self.name, connection, %ending, "a scripted conversation is over");
        self.peers.add(Played {
            host: self.name.clone(),
            connection,
            ended: ending.to_string(),
            lines: record.lines,
        });
    }
}
