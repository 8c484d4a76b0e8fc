//! What concerns the relay as a whole: its configuration, reload, drain.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::{Caller, ControlError};
use crate::routes::{failed, wrong_method};
use crate::types::Problem;

/// The relay as a whole. Calls may take a moment, and must not block the runtime.
pub trait Manage: Send + Sync + 'static {
    /// Reads the configuration anew and goes by it: all of it, or nothing.
    fn reload(&self, by: Caller) -> impl Future<Output = Result<Reloaded, ControlError>> + Send;

    /// The configuration in force.
    fn config(&self) -> impl Future<Output = Result<ConfigView, ControlError>> + Send;

    /// Whether mail is taken, and what is left.
    fn drain_state(&self) -> impl Future<Output = Result<DrainState, ControlError>> + Send;

    /// Takes no more mail from here on, or takes it again. Deliveries go on.
    fn drain(
        &self,
        draining: bool,
        by: Caller,
    ) -> impl Future<Output = Result<DrainState, ControlError>> + Send;
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// A line for each key that is otherwise than before, and for each file with another content.
    pub changes: Vec<String>,
}

/// The configuration in force. No secrets are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigView {
    /// The configuration's file.
    pub file: String,
    /// As TOML that says the same, every default spelt out and marked.
    pub toml: String,
    /// Key by key.
    pub entries: Vec<ConfigEntry>,
}

/// A key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigEntry {
    /// Its path, such as `listener[0].address`.
    pub key: String,
    /// As TOML.
    pub value: String,
    /// Whether it was left to its default.
    pub default: bool,
}

/// Whether mail is taken, and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainState {
    /// No mail is taken.
    pub draining: bool,
    /// Clients' sessions that are open.
    pub sessions: u64,
    /// Messages that wait or are on the wire, each once for every destination domain.
    pub messages: u64,
}

/// All routes.
pub fn router<M: Manage>(manage: Arc<M>) -> Router {
    Router::new()
        .route("/v1/reload", post(reload::<M>))
        .route("/v1/config", get(config::<M>))
        .route("/v1/drain", get(drain_state::<M>).post(drain::<M>))
        .route("/v1/drain/end", post(end_drain::<M>))
        .method_not_allowed_fallback(wrong_method)
        .with_state(manage)
}

/// Reads the configuration anew: all of it or nothing.
#[utoipa::path(post, path = "/v1/reload", tag = "relay", responses((status = 200, description = "What has changed.", body = Reloaded), (status = 422, description = "Every mistake; nothing has changed.", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn reload<M: Manage>(
    State(manage): State<Arc<M>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Reloaded>, Response> {
    manage.reload(caller).await.map(Json).map_err(failed)
}

/// Shows the configuration in force, every default spelt out.
#[utoipa::path(get, path = "/v1/config", tag = "relay", responses((status = 200, description = "It.", body = ConfigView)))]
pub(crate) async fn config<M: Manage>(State(manage): State<Arc<M>>) -> Result<Json<ConfigView>, Response> {
    manage.config().await.map(Json).map_err(failed)
}

/// Tells whether mail is taken, and what is left.
#[utoipa::path(get, path = "/v1/drain", tag = "relay", responses((status = 200, description = "How it stands.", body = DrainState)))]
pub(crate) async fn drain_state<M: Manage>(
    State(manage): State<Arc<M>>,
) -> Result<Json<DrainState>, Response> {
    manage.drain_state().await.map(Json).map_err(failed)
}

/// Takes no more mail from here on.
#[utoipa::path(post, path = "/v1/drain", tag = "relay", responses((status = 200, description = "How it stands.", body = DrainState)))]
pub(crate) async fn drain<M: Manage>(
    State(manage): State<Arc<M>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<DrainState>, Response> {
    manage.drain(true, caller).await.map(Json).map_err(failed)
}

/// Takes mail again.
#[utoipa::path(post, path = "/v1/drain/end", tag = "relay", responses((status = 200, description = "How it stands.", body = DrainState)))]
pub(crate) async fn end_drain<M: Manage>(
    State(manage): State<Arc<M>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<DrainState>, Response> {
    manage.drain(false, caller).await.map(Json).map_err(failed)
}
