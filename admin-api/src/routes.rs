//! The routes under `/v1`.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use mail_core::MessageId;

use crate::control::{Control, ControlError};
use crate::types::{HoldList, MessageView, Problem, QueueList, QueuesQuery};

/// Queues in one answer at the most; some 400 octets each.
pub const MAX_PAGE: usize = 1_000;

/// All routes.
pub fn router<C: Control>(control: Arc<C>) -> Router {
    Router::new()
        .route("/v1/queues", get(queues::<C>))
        .route("/v1/holds", get(holds::<C>))
        .route("/v1/messages/{id}", get(message::<C>))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "there is nothing here; the API begins at /v1/queues",
            )
        })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "only GET works here")
        })
        .with_state(control)
}

async fn queues<C: Control>(
    State(control): State<Arc<C>>,
    query: Result<Query<QueuesQuery>, QueryRejection>,
) -> Result<Json<QueueList>, Response> {
    let Query(query) = query.map_err(|rejection| problem(StatusCode::BAD_REQUEST, &rejection.body_text()))?;
    if query.limit.is_some_and(|limit| !(1..=MAX_PAGE).contains(&limit)) {
        let detail = format!("limit is 1 to {MAX_PAGE}");
        return Err(problem(StatusCode::BAD_REQUEST, &detail));
    }
    control.queues(query).await.map(Json).map_err(failed)
}

async fn holds<C: Control>(State(control): State<Arc<C>>) -> Result<Json<HoldList>, Response> {
    control.holds().await.map(Json).map_err(failed)
}

async fn message<C: Control>(
    State(control): State<Arc<C>>,
    Path(id): Path<String>,
) -> Result<Json<MessageView>, Response> {
    let id: MessageId = id
        .parse()
        .map_err(|error: mail_core::BadMessageId| problem(StatusCode::BAD_REQUEST, &error.to_string()))?;
    match control.message(id).await.map_err(failed)? {
        Some(message) => Ok(Json(message)),
        None => Err(problem(
            StatusCode::NOT_FOUND,
            "no such message, neither in the queue nor in the journal",
        )),
    }
}

fn failed(error: ControlError) -> Response {
    let status = match error {
        ControlError::Store(_) | ControlError::Busy => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(status, &error.to_string())
}

/// An error as problem details.
pub(crate) fn problem(status: StatusCode, detail: &str) -> Response {
    let body = Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
    };
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        Json(body).into_response().into_body(),
    )
        .into_response()
}
