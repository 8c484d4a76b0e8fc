//! `/metrics`, `/healthz` and `/readyz`, on an address of their own.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder, IntGauge, Registry, TextEncoder};
use queue::{Queue, Status};

/// What readiness goes by.
pub struct Health {
    registry: Registry,
    queue: Queue,
    draining: AtomicBool,
    accepting: IntGauge,
}

impl Health {
    /// Registers the series of its own on `registry`.
    pub fn new(registry: Registry, queue: Queue) -> prometheus::Result<Self> {
        let accepting = IntGauge::new(
            "postrider_accepting",
            "1 while mail is accepted, 0 while the disk is full or failing or the relay drains. Alert on 0.",
        )?;
        registry.register(Box::new(accepting.clone()))?;
        Ok(Self {
            registry,
            queue,
            draining: AtomicBool::new(false),
            accepting,
        })
    }

    /// Mail is accepted no longer.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Why no mail is accepted, if none is.
    fn obstacle(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("draining".into());
        }
        match self.queue.status() {
            Status::Healthy => None,
            Status::Full { free } => Some(format!("disk full: {free} bytes free")),
            Status::Failing(why) => Some(format!("store failing: {why}")),
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
pub async fn serve(listener: TcpListener, health: Arc<Health>) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(tokio::net::TcpListener::from_std(listener)?, routes).await
}

async fn readyz(State(health): State<Arc<Health>>) -> Response {
    match health.obstacle() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    health.accepting.set(i64::from(health.obstacle().is_none()));
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&health.registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
