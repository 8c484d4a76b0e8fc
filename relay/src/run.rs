//! The process: from settings to a relay that runs, and to one that has stopped.
//!
//! One current-thread runtime a core, each with listeners and a shard of its own. Committer and signers are threads beside,
//! and the HTTP door has a small runtime of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::metrics::{Metric, Registry};
use admin_api::access::Access;
use admin_api::server::Certificate;
use admin_api::socket::{AdminSocket, SocketName};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use queue::Queue;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};

use crate::config::Settings;
use crate::config::settings::{Listener, ListenerKind};
use crate::control::QueueControl;
use crate::control::manage::Manager;
use crate::credentials::Credentials;
use crate::delivery::client_tls::ClientTls;
use crate::delivery::exchange;
use crate::delivery::limits::ledger::Ledger;
use crate::delivery::resolver::RealNet;
use crate::health::{self, Health};
use crate::prepare::{self, Preparer};
use crate::reload::{self, Reloader, Served};
use crate::routing::Routing;
use crate::submission::front::Front;
use crate::submission::listener;
use crate::tokens::TokenFile;
use crate::worker::{Change, Delivery, Worker};
use crate::world::Clock;
use crate::{delivery, submission};

/// How often the oldest of the journal is forgotten.
const JOURNAL_EVERY: Duration = Duration::from_secs(600);

/// A relay that runs.
pub struct Running {
    /// Where clients come in: kind, as in the configuration, and address.
    pub listeners: Vec<(&'static str, SocketAddr)>,
    /// Where metrics and health are.
    pub metrics: Option<SocketAddr>,
    /// The admin API's Unix socket.
    pub admin: Option<PathBuf>,
    /// Where the admin API listens over TCP.
    pub admin_http: Option<SocketAddr>,
    _admin_name: Option<SocketName>,
    queue: Queue,
    health: Arc<Health>,
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    doors: Runtime,
    reloader: Arc<Reloader>,
    ledger: Ledger,
    clock: Clock,
}

/// How long the last write of what limits have counted may take.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// Starts a relay; it takes mail when this returns.
pub fn start(mut settings: Settings) -> anyhow::Result<Running> {
    crate::descriptors::fit(&mut settings);
    crate::memory::fit(&mut settings);
    let settings = Arc::new(settings);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let registry = Registry::new();
    let _ = registry.register(Box::new(
        prometheus::process_collector::ProcessCollector::for_self(),
    ));
    let credentials = settings
        .credentials_file
        .as_deref()
        .map(Credentials::open)
        .transpose()?;
    let signer = prepare::load_keys(&settings.dkim).map_err(|bad| {
        anyhow::anyhow!(
            "{}",
            bad.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        )
    })?;
    let tls = Arc::new(ClientTls::new(settings.delivery.ca_file.as_deref())?);
    // Ports before the store: a relay that can't listen leaves no trace.
    let mut addresses = Vec::new();
    let mut served = Vec::new();
    let mut sockets = Vec::new();
    for (key, listener) in reload::keys(&settings.listeners) {
        let tls = listener::certificate(listener)?;
        let (address, bound) = listener::bind(listener.address, cores)?;
        addresses.push((word(listener), address));
        sockets.push(bound);
        served.push(Served {
            key,
            address,
            listener: listener.clone(),
            tls,
        });
    }
    let metrics = settings.metrics.map(health::bind).transpose()?;
    let metrics_address = metrics
        .as_ref()
        .map(std::net::TcpListener::local_addr)
        .transpose()?;
    let admin_http = settings.admin.http.clone();
    let admin_socket = admin_http
        .as_ref()
        .map(|http| health::bind(http.address))
        .transpose()?;
    let admin_certificate = match admin_http.as_ref().and_then(|http| http.tls.as_ref()) {
        Some(files) => Some(Arc::new(ArcSwap::new(crate::tls::http_config(files)?))),
        None => None,
    };
    let doors = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("http")
        .enable_all()
        .build()?;
    {
        let _entered = doors.enter();
        // Each worker makes its own. One without, as where /etc/resolv.conf names no server yet, would take mail and deliver none.
        RealNet::new(&settings.dns, settings.delivery.timeouts.dns)
            .context("the DNS can't be asked: neither dns.servers nor /etc/resolv.conf names a server")?;
    }
    let queue = Queue::open(&settings.store.path, &settings.queue_options())
        .with_context(|| format!("the queue in {}", settings.store.path.display()))?;
    let mut opened = Opened(Some(queue.clone()));
    // After the store, whose lock keeps a second process out, and in whose folder it is by default.
    let admin = {
        let _entered = doors.enter();
        let bind = |path: &PathBuf| AdminSocket::bind(path).context("the admin API's socket");
        settings.admin.socket.as_ref().map(bind).transpose()?
    };
    let clock = Clock::system();
    let routing = Arc::new(Routing::open(settings.clone(), &queue).context("the routes")?);
    if let Some(notice) = routing.safe_mode_notice() {
        tracing::warn!("{notice}");
    }
    let front = Arc::new(Front::new(
        settings.clone(),
        credentials,
        routing.clone(),
        queue.clone(),
        submission::metrics::Metrics::new(&registry)?,
        clock,
    ));
    let preparer = Preparer::threaded(
        queue.clone(),
        Arc::new(signer),
        prepare::Metrics::new(&registry)?,
        cores,
    )?;
    let health = Arc::new(Health::new(
        registry.clone(),
        queue.clone(),
        clock,
        routing.safe_mode_notice(),
    )?);
    let (doors_to_shards, seats) = exchange::open(cores);
    let ledger = doors_to_shards.ledger().clone();
    let (stop, stopped) = watch::channel(false);
    let delivery = Delivery {
        front: front.clone(),
        preparer: preparer.clone(),
        tls: tls.clone(),
        metrics: delivery::metrics::Metrics::new(&registry)?,
    };
    let mut workers = Vec::with_capacity(cores);
    let mut told = Vec::with_capacity(cores);
    for (number, seat) in seats.into_iter().enumerate() {
        let (tell, changes) = mpsc::unbounded_channel();
        let listener =
            |(served, sockets): (&Served, &mut Vec<_>)| (served.key, served.terms(&front), sockets.pop());
        // Its listeners; the receiver is at hand.
        let _ = tell.send(Change {
            listeners: served.iter().zip(&mut sockets).map(listener).collect(),
            delivery: None,
            done: None,
        });
        let worker = Worker {
            changes,
            doors: doors_to_shards.clone(),
            stop: stopped.clone(),
            seat,
            delivery: delivery.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("worker-{number}"));
        workers.push(thread.spawn(move || worker.run())?);
        told.push(tell);
    }
    let reloader = Arc::new(Reloader::new(reload::Parts {
        front,
        tls,
        listeners: served,
        workers: told,
        preparer,
        admin_certificate: admin_certificate.clone(),
        health: health.clone(),
        metrics: reload::Metrics::new(&registry)?,
    }));
    doors.spawn(look_at_files(reloader.clone()));
    let retired = prometheus::IntCounter::new(
        "postrider_journal_retired_total",
        "Entries of the journal that were forgotten, being old or too many.",
    )?;
    registry.register(Box::new(retired.clone()))?;
    doors.spawn(keep_journal(reloader.clone(), queue.clone(), clock, retired));
    if let Some(listener) = metrics {
        doors.spawn(health::serve(listener, health.clone()));
    }
    let in_force = reloader.clone();
    let control =
        QueueControl::new(queue.clone(), doors_to_shards, clock).with_settings(move || in_force.settings());
    let control = Arc::new(control);
    let manager = Arc::new(Manager::new(reloader.clone(), health.clone(), queue.clone()));
    let routes = admin_api::router(control)
        .merge(admin_api::manage::router(manager))
        .merge(admin_api::openapi::router());
    let admin_name = admin.map(|AdminSocket { listener, name }| {
        doors.spawn(admin_api::server::serve_socket(listener, routes.clone()));
        name
    });
    let admin_http = match (admin_http, admin_socket) {
        (Some(http), Some(socket)) => {
            let address = socket.local_addr()?;
            let access = Access {
                tokens: Arc::new(TokenFile::open(&http.tokens, &registry)?),
                hosts: http.hosts,
            };
            let certificate: Option<Certificate> = match admin_certificate {
                Some(certificate) => Some(Arc::new(move || certificate.load_full())),
                None => None,
            };
            doors.spawn(serve_admin(socket, certificate, access, routes));
            Some(address)
        }
        _ => None,
    };
    for (kind, address) in &addresses {
        tracing::info!(kind, %address, "listening");
    }
    opened.0 = None;
    Ok(Running {
        listeners: addresses,
        metrics: metrics_address,
        admin: settings.admin.socket.clone(),
        admin_http,
        _admin_name: admin_name,
        queue,
        health,
        stop,
        workers,
        doors,
        reloader,
        ledger,
        clock,
    })
}

/// The queue of a relay that is being started: closed where that fails.
struct Opened(Option<Queue>);

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            close_for_good(&queue);
        }
    }
}

/// Threads that outlive this hold the store too. Whichever let go of it last would run RocksDB's destructor while the process
/// runs those of its globals, and free twice; so nobody is last. All is on disk.
fn close_for_good(queue: &Queue) {
    queue.close();
    std::mem::forget(queue.clone());
}

async fn serve_admin(
    socket: std::net::TcpListener,
    certificate: Option<Certificate>,
    access: Access,
    routes: axum::Router,
) {
    match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => admin_api::server::serve_tcp(listener, certificate, access, routes).await,
        Err(error) => tracing::error!(%error, "the admin API can't be served over TCP"),
    }
}

/// Has the oldest of the journal forgotten.
async fn keep_journal(reloader: Arc<Reloader>, queue: Queue, clock: Clock, retired: prometheus::IntCounter) {
    loop {
        tokio::time::sleep(JOURNAL_EVERY).await;
        let (keep, queue) = (reloader.settings().store.journal, queue.clone());
        let now = clock.now();
        match tokio::task::spawn_blocking(move || queue.retire_events(keep, now)).await {
            Ok(Ok(count)) => retired.inc_by(count),
            Ok(Err(error)) => tracing::error!(%error, "the journal can't be shortened"),
            Err(error) => tracing::error!(%error, "the journal can't be shortened"),
        }
    }
}

/// Certificates, keys and passwords, by content.
async fn look_at_files(reloader: Arc<Reloader>) {
    loop {
        tokio::time::sleep(reload::LOOK_EVERY).await;
        let reloader = reloader.clone();
        // It tells of its own mistakes.
        let _ = tokio::task::spawn_blocking(move || reloader.look()).await;
    }
}

fn word(listener: &Listener) -> &'static str {
    match listener.kind {
        ListenerKind::Submission(_) => "submission",
        ListenerKind::Submissions(_) => "submissions",
        ListenerKind::Trusted { .. } => "trusted",
    }
}

impl Running {
    /// What every metric is, those without a series yet too.
    pub fn every_metric(&self) -> BTreeMap<String, Metric> {
        self.health.metrics()
    }

    /// The durable queue.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Gives it another configuration.
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// The runtime that HTTP doors run on.
    pub fn doors(&self) -> &Runtime {
        &self.doors
    }

    /// What limits have counted ahead of use is given back: the next start goes on from what was used.
    fn settle_limits(&self) {
        let (ledger, queue, now) = (self.ledger.clone(), self.queue.clone(), self.clock.now());
        let (say, settled) = std::sync::mpsc::channel();
        self.doors.spawn(async move {
            let _ = say.send(ledger.settle(&queue, now).await);
        });
        match settled.recv_timeout(SETTLED_WITHIN) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "limits count a little more than was used from here on")
            }
            Err(_) => {
                tracing::warn!("limits count a little more than was used from here on: the store is slow")
            }
        }
    }

    /// Stops accepting, lets what is on the wire finish within the drain timeout, and closes the queue. False if something
    /// was still under way when the time was up: it is in the queue, and was perhaps delivered.
    pub fn stop(self) -> bool {
        tracing::info!("draining");
        self.health.drain();
        // Every worker listens.
        let _ = self.stop.send(true);
        let until = Instant::now() + self.reloader.settings().drain_timeout;
        while Instant::now() < until && !self.workers.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let quiet = self.workers.iter().all(JoinHandle::is_finished);
        if quiet {
            self.settle_limits();
        }
        close_for_good(&self.queue);
        self.doors.shutdown_background();
        if quiet {
            tracing::info!("stopped");
        } else {
            tracing::warn!("stopped with work under way: it is in the queue");
        }
        quiet
    }
}
