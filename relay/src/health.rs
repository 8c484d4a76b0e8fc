//! `/metrics`, `/healthz` and `/readyz`, on an address of their own.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::metrics::{Metric, Registry};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use prometheus::{IntGauge, IntGaugeVec, Opts, TextEncoder};
use queue::{Queue, Status};

use crate::metrics::QueueSeries;
use crate::world::Clock;

/// What readiness goes by.
pub struct Health {
    registry: Registry,
    queue: Queue,
    series: QueueSeries,
    clock: Clock,
    stopping: AtomicBool,
    draining: AtomicBool,
    accepting: IntGauge,
    /// What readiness says beside: mail does not go where it is addressed.
    notice: Mutex<Option<String>>,
    safe_mode: IntGauge,
}

impl Health {
    /// Registers the series of its own on `registry`. `notice`: what safe mode does, where it is on.
    pub fn new(
        registry: Registry,
        queue: Queue,
        clock: Clock,
        notice: Option<String>,
    ) -> prometheus::Result<Self> {
        let accepting = IntGauge::new(
            "postrider_accepting",
            "1 while mail is accepted, 0 while the disk is full or failing or the relay drains. Alert on 0.",
        )?;
        registry.register(Box::new(accepting.clone()))?;
        let safe_mode = IntGauge::new(
            "postrider_safe_mode",
            "1 where safe mode keeps mail from its recipients. Alert on 1 in production, and on 0 in staging.",
        )?;
        safe_mode.set(i64::from(notice.is_some()));
        registry.register(Box::new(safe_mode.clone()))?;
        let build = Opts::new(
            "postrider_build_info",
            "1, with the version as a label. Alert when versions differ for long.",
        );
        let build = IntGaugeVec::new(build, &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        Ok(Self {
            series: QueueSeries::new(&registry, queue.clone())?,
            registry,
            queue,
            clock,
            stopping: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            accepting,
            notice: Mutex::new(notice),
            safe_mode,
        })
    }

    /// What safe mode does from here on, where it is on.
    pub fn set_notice(&self, notice: Option<String>) {
        self.safe_mode.set(i64::from(notice.is_some()));
        *self.notice.lock() = notice;
    }

    /// Mail is accepted no longer, for good: the relay stops.
    pub fn drain(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// An operator drains the relay, or no longer does.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// What every metric is, those without a series yet too.
    pub fn metrics(&self) -> BTreeMap<String, Metric> {
        self.registry.metrics()
    }

    /// All series as Prometheus reads them. Blocks.
    fn text(&self) -> Result<String, String> {
        self.accepting.set(i64::from(self.obstacle().is_none()));
        if let Err(error) = self.series.refresh(Instant::now(), self.clock.now()) {
            // What was read before is better than nothing.
            tracing::warn!(%error, "the queue's series could not be read");
        }
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.map_err(|error| error.to_string())
    }

    /// Why no mail is accepted, if none is.
    fn obstacle(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) || self.stopping.load(Ordering::Relaxed) {
            return Some("draining".into());
        }
        match self.queue.status() {
            Status::Healthy => None,
            Status::Full { free } => Some(format!("disk full: {free} bytes free")),
            Status::Failing(why) => Some(format!("store failing: {why}")),
            Status::Over(limit) => Some(format!("queue full: {limit}")),
            Status::Corrupt(what) => Some(format!("store damaged: {what}")),
        }
    }
}

/// Binds the address; port 0 lets the system choose.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound =
        TcpListener::bind(address).map_err(|error| anyhow::anyhow!("can't listen on {address}: {error}"))?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

/// Serves until its runtime ends.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => admin_api::server::serve(listener, routes(health)).await,
        Err(error) => tracing::error!(%error, "metrics and health can't be served"),
    }
}

fn routes(health: Arc<Health>) -> Router {
    Router::new()
        // About the process alone: to start it anew makes no disk larger.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn readyz(State(health): State<Arc<Health>>) -> Response {
    match health.obstacle() {
        None => match &*health.notice.lock() {
            None => "ready\n".into_response(),
            Some(notice) => format!("ready, in {notice}\n").into_response(),
        },
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    // Reads the store.
    let text = tokio::task::spawn_blocking(move || health.text()).await;
    match text.map_err(|error| error.to_string()).and_then(|text| text) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use queue::store::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn tells_of_the_process_the_queue_and_the_drain() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        let health = Arc::new(Health::new(Registry::new(), queue, Clock::system(), None).unwrap());
        let ready = readyz(State(health.clone())).await;
        assert_eq!(ready.status(), StatusCode::OK);
        health.drain();
        let ready = readyz(State(health.clone())).await;
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
        let text = health.text().unwrap();
        for line in [
            "postrider_accepting 0\n",
            "postrider_queues 0\n",
            "postrider_build_info{version=\"",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
