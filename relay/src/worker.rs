//! A worker: one core's listeners and its shard, on a runtime of their own.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};

use crate::config::Settings;
use crate::config::settings::DnsSettings;
use crate::delivery;
use crate::delivery::client_tls::ClientTls;
use crate::delivery::courier::{self, Parts, Renewal};
use crate::delivery::exchange::{Doors, Seat};
use crate::delivery::resolver::RealNet;
use crate::prepare::Preparer;
use crate::routing::Routing;
use crate::submission::front::Front;
use crate::submission::listener::{self, Held, Terms};
use crate::world::Random;

/// What tells listeners apart: the address as configured, and its number among those of the same address (port 0).
pub type ListenerKey = (SocketAddr, usize);

/// What a worker is to do from here on.
#[derive(Default)]
pub struct Change {
    /// All listeners that are to be, with the sockets of new ones. Others close.
    pub listeners: Vec<(ListenerKey, Terms, Option<TcpListener>)>,
    /// For delivery, where that is concerned.
    pub delivery: Option<DeliveryChange>,
    /// Told when all of it is in force.
    pub done: Option<std::sync::mpsc::Sender<()>>,
}

/// What delivery goes by from here on.
#[derive(Clone)]
pub struct DeliveryChange {
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Which way mail goes.
    pub routing: Arc<Routing>,
    /// TLS towards next hops.
    pub tls: Arc<ClientTls>,
    /// Whether connections made before get no further message.
    pub reconnect: bool,
}

/// What a worker's thread is given.
pub struct Worker {
    /// The listeners' terms come as the first change.
    pub changes: mpsc::UnboundedReceiver<Change>,
    /// To all shards.
    pub doors: Doors,
    /// Turns true once.
    pub stop: watch::Receiver<bool>,
    /// Of its shard.
    pub seat: Seat,
    /// What delivering takes.
    pub delivery: Delivery,
}

/// What delivering takes.
#[derive(Clone)]
pub struct Delivery {
    /// What sessions share.
    pub front: Arc<Front>,
    /// Loads and signs.
    pub preparer: Preparer,
    /// TLS towards next hops.
    pub tls: Arc<ClientTls>,
    /// What is counted.
    pub metrics: delivery::metrics::Metrics,
}

impl Worker {
    /// Works until all has stopped.
    pub fn run(self) {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "a worker could not start"),
        };
        LocalSet::new().block_on(&runtime, self.serve());
    }

    async fn serve(self) {
        let Self {
            mut changes,
            doors,
            stop,
            seat,
            delivery,
        } = self;
        let random = Random::system();
        let mut dns = dns(&delivery.front.settings);
        let mut held: HashMap<ListenerKey, Held> = HashMap::new();
        let mut tasks = JoinSet::new();
        let (renew, renewals) = mpsc::unbounded_channel();
        let (delivering, stopping) = (
            deliver(delivery, seat, random.clone(), stop.clone(), renewals),
            stop.clone(),
        );
        tasks.spawn_local(async move {
            if let Err(error) = delivering.await {
                // It would take mail for ever, and deliver none.
                tracing::error!(error = format!("{error:#}"), "delivery could not start");
                std::process::abort();
            }
        });
        loop {
            let change = tokio::select! {
                ended = tasks.join_next() => match ended {
                    // Without a listener, or without delivery, it would only seem to run. All that matters is on disk.
                    Some(Err(error)) if error.is_panic() => {
                        tracing::error!(%error, "a worker panicked: the relay ends, to be started anew");
                        std::process::abort();
                    }
                    Some(_) => continue,
                    None => return,
                },
                Some(change) = changes.recv() => change,
            };
            let mut before = std::mem::take(&mut held);
            for (key, terms, socket) in change.listeners {
                match (before.remove(&key), socket) {
                    (Some(listener), _) => {
                        listener.send_replace(terms);
                        held.insert(key, listener);
                    }
                    (None, Some(socket)) => {
                        let (listener, terms) = watch::channel(terms);
                        held.insert(key, listener);
                        let (random, doors, stop) = (random.clone(), doors.clone(), stopping.clone());
                        tasks.spawn_local(async move {
                            if let Err(error) = listener::run(socket, terms, random, doors, stop).await {
                                tracing::error!(%error, "a listener failed");
                            }
                        });
                    }
                    (None, None) => {}
                }
            }
            // Those that are left over close.
            drop(before);
            if let Some(change) = change.delivery {
                let now = self::dns(&change.settings);
                let net = (now != dns).then(|| RealNet::new(&now.0, now.1));
                let net = net.transpose().unwrap_or_else(|error| {
                    tracing::error!(error = format!("{error:#}"), "the name servers stay as they were");
                    None
                });
                dns = now;
                let DeliveryChange {
                    settings,
                    routing,
                    tls,
                    reconnect,
                } = change;
                // Delivery that has ended wants to know nothing.
                let _ = renew.send(Renewal {
                    net,
                    settings,
                    routing,
                    tls,
                    reconnect,
                });
            }
            if let Some(done) = change.done {
                // Listeners and delivery, woken by what they were sent, have their turns first.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                // Whoever has waited long enough wants to know nothing.
                let _ = done.send(());
            }
        }
    }
}

/// What the network is made of; the last is what the system says, where that counts.
fn dns(settings: &Settings) -> (DnsSettings, std::time::Duration, Option<String>) {
    let of_system = settings.dns.servers.is_empty();
    let system = of_system.then(|| std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    (settings.dns.clone(), settings.delivery.timeouts.dns, system)
}

async fn deliver(
    delivery: Delivery,
    seat: Seat,
    random: Random,
    stop: watch::Receiver<bool>,
    renewals: mpsc::UnboundedReceiver<Renewal<RealNet>>,
) -> anyhow::Result<()> {
    let front = &delivery.front;
    let settings = front.settings.clone();
    let parts = Parts {
        net: RealNet::new(&settings.dns, settings.delivery.timeouts.dns)?,
        settings,
        routing: front.routing.clone(),
        queue: front.queue.clone(),
        preparer: delivery.preparer,
        tls: delivery.tls,
        metrics: delivery.metrics,
        rates: front.rates.clone(),
        clock: front.clock,
        random,
    };
    courier::run_renewed(parts, seat, stop, renewals).await;
    Ok(())
}
