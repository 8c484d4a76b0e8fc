//! The process: from settings to a relay that runs, and to one that has stopped.
//!
//! One current-thread runtime a core, each with listeners and a shard of its own. Committer and signers are threads beside,
//! and the HTTP door has a small runtime of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use admin_api::socket::{AdminSocket, SocketName};
use anyhow::Context as _;
use prometheus::Registry;
use queue::{Options, Queue};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use crate::config::Settings;
use crate::config::settings::{Listener, ListenerKind};
use crate::control::QueueControl;
use crate::credentials::Credentials;
use crate::delivery::client_tls::ClientTls;
use crate::delivery::courier::{self, Parts};
use crate::delivery::exchange::{self, Doors, Seat};
use crate::delivery::resolver::RealNet;
use crate::health::{self, Health};
use crate::prepare::{self, Preparer};
use crate::routing::Routing;
use crate::submission::front::Front;
use crate::submission::listener::{self, Bound};
use crate::world::{Clock, Random};
use crate::{delivery, submission};

/// A relay that runs.
pub struct Running {
    /// Where clients come in: kind, as in the configuration, and address.
    pub listeners: Vec<(&'static str, SocketAddr)>,
    /// Where metrics and health are.
    pub metrics: Option<SocketAddr>,
    /// The admin API's Unix socket.
    pub admin: Option<PathBuf>,
    _admin_name: Option<SocketName>,
    queue: Queue,
    health: Arc<Health>,
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    doors: Runtime,
    drain_timeout: Duration,
}

/// What each worker's thread is given.
struct Worker {
    front: Arc<Front>,
    bound: Vec<Bound>,
    doors: Doors,
    stop: watch::Receiver<bool>,
    seat: Seat,
    delivery: Delivery,
}

/// What delivering takes.
#[derive(Clone)]
struct Delivery {
    preparer: Preparer,
    tls: Arc<ClientTls>,
    metrics: delivery::metrics::Metrics,
}

/// Starts a relay; it takes mail when this returns.
pub fn start(settings: Settings) -> anyhow::Result<Running> {
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
    let mut bound: Vec<Vec<Bound>> = (0..cores).map(|_| Vec::new()).collect();
    for listener in &settings.listeners {
        let (address, sockets) = listener::bind(listener, cores)?;
        addresses.push((word(listener), address));
        for (worker, socket) in bound.iter_mut().zip(sockets) {
            worker.push(socket);
        }
    }
    let metrics = settings.metrics.map(health::bind).transpose()?;
    let metrics_address = metrics
        .as_ref()
        .map(std::net::TcpListener::local_addr)
        .transpose()?;
    let options = Options {
        min_free_bytes: settings.store.min_free_bytes,
        commit_patience: settings.store.commit_patience,
    };
    let queue = Queue::open(&settings.store.path, &options)
        .with_context(|| format!("the queue in {}", settings.store.path.display()))?;
    let doors = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("http")
        .enable_all()
        .build()?;
    // After the store, whose lock keeps a second process out, and in whose folder it is by default.
    let admin = {
        let _entered = doors.enter();
        let bind = |path: &PathBuf| AdminSocket::bind(path).context("the admin API's socket");
        settings.admin_socket.as_ref().map(bind).transpose()?
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
        routing.safe_mode_notice(),
    )?);
    let (doors_to_shards, seats) = exchange::open(cores);
    let (stop, stopped) = watch::channel(false);
    let delivery = Delivery {
        preparer,
        tls,
        metrics: delivery::metrics::Metrics::new(&registry)?,
    };
    let mut workers = Vec::with_capacity(cores);
    for ((number, bound), seat) in bound.into_iter().enumerate().zip(seats) {
        let worker = Worker {
            front: front.clone(),
            bound,
            doors: doors_to_shards.clone(),
            stop: stopped.clone(),
            seat,
            delivery: delivery.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("worker-{number}"));
        workers.push(thread.spawn(move || worker.run())?);
    }
    if let Some(listener) = metrics {
        doors.spawn(health::serve(listener, health.clone()));
    }
    let admin_name = admin.map(|AdminSocket { listener, name }| {
        let control = Arc::new(QueueControl::new(queue.clone(), doors_to_shards.clone(), clock));
        doors.spawn(admin_api::server::serve_socket(
            listener,
            admin_api::router(control),
        ));
        name
    });
    let drain_timeout = settings.drain_timeout;
    for (kind, address) in &addresses {
        tracing::info!(kind, %address, "listening");
    }
    Ok(Running {
        listeners: addresses,
        metrics: metrics_address,
        admin: settings.admin_socket.clone(),
        _admin_name: admin_name,
        queue,
        health,
        stop,
        workers,
        doors,
        drain_timeout,
    })
}

fn word(listener: &Listener) -> &'static str {
    match listener.kind {
        ListenerKind::Submission(_) => "submission",
        ListenerKind::Submissions(_) => "submissions",
        ListenerKind::Trusted { .. } => "trusted",
    }
}

impl Running {
    /// The durable queue.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The runtime that HTTP doors run on.
    pub fn doors(&self) -> &Runtime {
        &self.doors
    }

    /// Stops accepting, lets what is on the wire finish within the drain timeout, and closes the queue. False if something
    /// was still under way when the time was up: it is in the queue, and was perhaps delivered.
    pub fn stop(self) -> bool {
        tracing::info!("draining");
        self.health.drain();
        // Every worker listens.
        let _ = self.stop.send(true);
        let until = Instant::now() + self.drain_timeout;
        while Instant::now() < until && !self.workers.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let quiet = self.workers.iter().all(JoinHandle::is_finished);
        self.queue.close();
        // Threads that outlive this hold the store too. Whichever let go of it last would run RocksDB's destructor while the
        // process runs those of its globals, and free twice; so nobody is last. All is on disk.
        std::mem::forget(self.queue.clone());
        self.doors.shutdown_background();
        if quiet {
            tracing::info!("stopped");
        } else {
            tracing::warn!("stopped with work under way: it is in the queue");
        }
        quiet
    }
}

impl Worker {
    fn run(self) {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "a worker could not start"),
        };
        LocalSet::new().block_on(&runtime, self.serve());
    }

    async fn serve(self) {
        let random = Random::system();
        let mut tasks = JoinSet::new();
        for bound in self.bound {
            let (front, random) = (self.front.clone(), random.clone());
            let (doors, stop) = (self.doors.clone(), self.stop.clone());
            tasks.spawn_local(async move {
                if let Err(error) = listener::run(bound, front, random, doors, stop).await {
                    tracing::error!(%error, "a listener failed");
                }
            });
        }
        let (delivery, seat, front, stop) = (self.delivery, self.seat, self.front, self.stop);
        tasks.spawn_local(async move {
            if let Err(error) = deliver(delivery, seat, &front, random, stop).await {
                tracing::error!(error = format!("{error:#}"), "delivery could not start");
            }
        });
        while tasks.join_next().await.is_some() {}
    }
}

async fn deliver(
    delivery: Delivery,
    seat: Seat,
    front: &Front,
    random: Random,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let settings = front.settings.clone();
    let parts = Parts {
        net: RealNet::new(&settings.dns, settings.delivery.timeouts.dns)?,
        settings,
        routing: front.routing.clone(),
        queue: front.queue.clone(),
        preparer: delivery.preparer,
        tls: delivery.tls,
        metrics: delivery.metrics,
        clock: front.clock,
        random,
    };
    courier::run(parts, seat, stop).await;
    Ok(())
}
