//! The routes under `/v1`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::body::{Bytes, Frame};
use mail_core::MessageId;
use tokio::sync::mpsc;

use crate::adjust::{Adjustment, AdjustmentList, AdjustmentsQuery, EndAdjustment, Ended, SetAdjustment};
use crate::aside::{AsideList, AsideQuery};
use crate::control::{Caller, Control, ControlError};
use crate::limits::LimitList;
use crate::operate::{
    Delete, Deletion, MessageList, MessagesQuery, Progress, Resume, Retry, Suspend, Suspension,
    SuspensionList,
};
use crate::types::{HoldList, MessageView, Problem, QueueList, QueueSummary, QueuesQuery};

/// Queues in one answer at the most; some 400 octets each.
pub const MAX_PAGE: usize = 1_000;

/// Messages in one answer at the most; fewer where they have many recipients, each of which takes some 500 octets.
pub const MAX_MESSAGES: usize = 200;

type Json400<T> = Result<Json<T>, JsonRejection>;

/// All routes.
pub fn router<C: Control>(control: Arc<C>) -> Router {
    Router::new()
        .route("/v1/queues", get(queues::<C>))
        .route("/v1/queues/{id}", get(queue::<C>))
        .route("/v1/holds", get(holds::<C>))
        .route("/v1/limits", get(limits::<C>))
        .route("/v1/messages", get(messages::<C>))
        .route("/v1/messages/{id}", get(message::<C>))
        .route("/v1/messages/{id}/raw", get(raw::<C>))
        .route("/v1/aside", get(aside::<C>))
        .route("/v1/adjustments", get(adjustments::<C>).post(adjust::<C>))
        .route("/v1/adjustments/end", post(end_adjustment::<C>))
        .route("/v1/suspensions", get(suspensions::<C>).post(suspend::<C>))
        .route("/v1/suspensions/resume", post(resume::<C>))
        .route("/v1/retry", post(retry::<C>))
        .route("/v1/delete", post(delete::<C>))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "there is nothing here; the API begins at /v1/queues",
            )
        })
        .method_not_allowed_fallback(wrong_method)
        .with_state(control)
}

pub(crate) async fn wrong_method() -> Response {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "GET reads and POST changes; here only the other one works",
    )
}

/// Lists the queues that hold mail, a page at a time.
#[utoipa::path(get, path = "/v1/queues", tag = "queues", params(QueuesQuery), responses((status = 200, description = "A page.", body = QueueList)))]
pub(crate) async fn queues<C: Control>(
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

/// Shows one queue, and what its first message waits for that is not on the wire.
#[utoipa::path(get, path = "/v1/queues/{id}", tag = "queues", params(("id" = u64, Path, description = "Its number.")), responses((status = 200, description = "It.", body = QueueSummary)))]
pub(crate) async fn queue<C: Control>(
    State(control): State<Arc<C>>,
    Path(id): Path<String>,
) -> Result<Json<QueueSummary>, Response> {
    let id = id
        .parse()
        .map_err(|_| problem(StatusCode::BAD_REQUEST, "a queue is named by its number"))?;
    match control.queue(id).await.map_err(failed)? {
        Some(queue) => Ok(Json(queue)),
        None => Err(problem(StatusCode::NOT_FOUND, "there is no queue of this number")),
    }
}

/// Lists the destinations that rest as a whole.
#[utoipa::path(get, path = "/v1/holds", tag = "queues", responses((status = 200, description = "All, up to a bound.", body = HoldList)))]
pub(crate) async fn holds<C: Control>(State(control): State<Arc<C>>) -> Result<Json<HoldList>, Response> {
    control.holds().await.map(Json).map_err(failed)
}

/// Lists the limits that more than one lane shares, with what is used of them now, and how far sources are that warm up.
#[utoipa::path(get, path = "/v1/limits", tag = "queues", responses((status = 200, description = "All, up to a bound.", body = LimitList)))]
pub(crate) async fn limits<C: Control>(State(control): State<Arc<C>>) -> Result<Json<LimitList>, Response> {
    control.limits().await.map(Json).map_err(failed)
}

/// Lists messages that wait, a page at a time.
#[utoipa::path(get, path = "/v1/messages", tag = "messages", params(MessagesQuery), responses((status = 200, description = "A page.", body = MessageList)))]
pub(crate) async fn messages<C: Control>(
    State(control): State<Arc<C>>,
    query: Result<Query<MessagesQuery>, QueryRejection>,
) -> Result<Json<MessageList>, Response> {
    let Query(query) = query.map_err(|rejection| problem(StatusCode::BAD_REQUEST, &rejection.body_text()))?;
    if query
        .limit
        .is_some_and(|limit| !(1..=MAX_MESSAGES).contains(&limit))
    {
        let detail = format!("limit is 1 to {MAX_MESSAGES}");
        return Err(problem(StatusCode::BAD_REQUEST, &detail));
    }
    control.messages(query).await.map(Json).map_err(failed)
}

/// Lists what is set aside: damaged, or parked after mistakes of the relay's.
#[utoipa::path(get, path = "/v1/aside", tag = "messages", params(AsideQuery), responses((status = 200, description = "A page.", body = AsideList)))]
pub(crate) async fn aside<C: Control>(
    State(control): State<Arc<C>>,
    query: Result<Query<AsideQuery>, QueryRejection>,
) -> Result<Json<AsideList>, Response> {
    let Query(query) = query.map_err(|rejection| problem(StatusCode::BAD_REQUEST, &rejection.body_text()))?;
    if query.limit.is_some_and(|limit| !(1..=MAX_PAGE).contains(&limit)) {
        let detail = format!("limit is 1 to {MAX_PAGE}");
        return Err(problem(StatusCode::BAD_REQUEST, &detail));
    }
    control.aside(query).await.map(Json).map_err(failed)
}

/// Shows a message: each recipient's state, and what happened.
#[utoipa::path(get, path = "/v1/messages/{id}", tag = "messages", params(("id" = String, Path, description = "The id of the 250 reply.")), responses((status = 200, description = "It.", body = MessageView)))]
pub(crate) async fn message<C: Control>(
    State(control): State<Arc<C>>,
    Path(id): Path<String>,
) -> Result<Json<MessageView>, Response> {
    match control.message(message_id(&id)?).await.map_err(failed)? {
        Some(message) => Ok(Json(message)),
        None => Err(problem(
            StatusCode::NOT_FOUND,
            "no such message, neither in the queue nor in the journal",
        )),
    }
}

/// Gives a message as it goes out, but for its signature. Who read it stands in the log.
#[utoipa::path(get, path = "/v1/messages/{id}/raw", tag = "messages", params(("id" = String, Path, description = "The id of the 250 reply.")), responses((status = 200, description = "Its octets.", content_type = "message/rfc822", body = [u8])))]
pub(crate) async fn raw<C: Control>(
    State(control): State<Arc<C>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, Response> {
    match control.raw(message_id(&id)?, caller).await.map_err(failed)? {
        Some(raw) => {
            let head = [
                (header::CONTENT_TYPE, "message/rfc822".to_owned()),
                (header::CONTENT_LENGTH, raw.bytes.to_string()),
            ];
            Ok((head, Body::new(Parts(raw.parts))).into_response())
        }
        None => Err(problem(
            StatusCode::NOT_FOUND,
            "no such message in the queue; nothing is kept of what has left it",
        )),
    }
}

/// A body that comes part by part.
struct Parts(mpsc::Receiver<Result<Bytes, ControlError>>);

impl hyper::body::Body for Parts {
    type Data = Bytes;
    type Error = ControlError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ControlError>>> {
        self.0.poll_recv(context).map(|part| Some(part?.map(Frame::data)))
    }
}

/// Lists what operators have suspended.
#[utoipa::path(get, path = "/v1/suspensions", tag = "queues", responses((status = 200, description = "All.", body = SuspensionList)))]
pub(crate) async fn suspensions<C: Control>(
    State(control): State<Arc<C>>,
) -> Result<Json<SuspensionList>, Response> {
    control.suspensions().await.map(Json).map_err(failed)
}

/// Suspends queues, those too that come to be later.
#[utoipa::path(post, path = "/v1/suspensions", tag = "queues", request_body = Suspend, responses((status = 200, description = "What holds now.", body = Suspension)))]
pub(crate) async fn suspend<C: Control>(
    State(control): State<Arc<C>>,
    Extension(caller): Extension<Caller>,
    body: Json400<Suspend>,
) -> Result<Json<Suspension>, Response> {
    control
        .suspend(asked(body)?, caller)
        .await
        .map(Json)
        .map_err(failed)
}

/// Ends a suspension, named as it was made.
#[utoipa::path(post, path = "/v1/suspensions/resume", tag = "queues", request_body = Resume, responses((status = 204, description = "Ended.")))]
pub(crate) async fn resume<C: Control>(
    State(control): State<Arc<C>>,
    Extension(caller): Extension<Caller>,
    body: Json400<Resume>,
) -> Result<StatusCode, Response> {
    control.resume(asked(body)?, caller).await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists what is suspended or goes slower because of a reply, or because an operator has set it; a page at a time.
#[utoipa::path(get, path = "/v1/adjustments", tag = "queues", params(AdjustmentsQuery), responses((status = 200, description = "A page.", body = AdjustmentList)))]
pub(crate) async fn adjustments<C: Control>(
    State(control): State<Arc<C>>,
    query: Result<Query<AdjustmentsQuery>, QueryRejection>,
) -> Result<Json<AdjustmentList>, Response> {
    let Query(query) = query.map_err(|rejection| problem(StatusCode::BAD_REQUEST, &rejection.body_text()))?;
    if query.limit.is_some_and(|limit| !(1..=MAX_PAGE).contains(&limit)) {
        let detail = format!("limit is 1 to {MAX_PAGE}");
        return Err(problem(StatusCode::BAD_REQUEST, &detail));
    }
    control.adjustments(query).await.map(Json).map_err(failed)
}

/// Suspends mail on its way, or has lanes go slower; in place of the adjustments of the same scope and kind, learned ones too.
#[utoipa::path(post, path = "/v1/adjustments", tag = "queues", request_body = SetAdjustment, responses((status = 200, description = "What holds now.", body = Adjustment)))]
pub(crate) async fn adjust<C: Control>(
    State(control): State<Arc<C>>,
    Extension(caller): Extension<Caller>,
    body: Json400<SetAdjustment>,
) -> Result<Json<Adjustment>, Response> {
    control
        .adjust(asked(body)?, caller)
        .await
        .map(Json)
        .map_err(failed)
}

/// Ends adjustments, named by their scope as it is listed.
#[utoipa::path(post, path = "/v1/adjustments/end", tag = "queues", request_body = EndAdjustment, responses((status = 200, description = "How many.", body = Ended)))]
pub(crate) async fn end_adjustment<C: Control>(
    State(control): State<Arc<C>>,
    Extension(caller): Extension<Caller>,
    body: Json400<EndAdjustment>,
) -> Result<Json<Ended>, Response> {
    control
        .end_adjustment(asked(body)?, caller)
        .await
        .map(Json)
        .map_err(failed)
}

/// Makes mail due at once, a bounded number at a time: to be asked again with `next` as `after` until there is none.
#[utoipa::path(post, path = "/v1/retry", tag = "queues", request_body = Retry, responses((status = 200, description = "How far it came.", body = Progress)))]
pub(crate) async fn retry<C: Control>(
    State(control): State<Arc<C>>,
    Extension(caller): Extension<Caller>,
    body: Json400<Retry>,
) -> Result<Json<Progress>, Response> {
    control
        .retry(asked(body)?, caller)
        .await
        .map(Json)
        .map_err(failed)
}

/// Tells what would be deleted; with the preview's token deletes it, a bounded number at a time.
#[utoipa::path(post, path = "/v1/delete", tag = "queues", request_body = Delete, responses((status = 200, description = "A preview, or how far it came.", body = Deletion)))]
pub(crate) async fn delete<C: Control>(
    State(control): State<Arc<C>>,
    Extension(caller): Extension<Caller>,
    body: Json400<Delete>,
) -> Result<Json<Deletion>, Response> {
    control
        .delete(asked(body)?, caller)
        .await
        .map(Json)
        .map_err(failed)
}

#[expect(clippy::result_large_err, reason = "an answer, made where it is given")]
fn asked<T>(body: Json400<T>) -> Result<T, Response> {
    body.map(|Json(body)| body)
        .map_err(|rejection| problem(rejection.status(), &rejection.body_text()))
}

#[expect(clippy::result_large_err, reason = "an answer, made where it is given")]
fn message_id(text: &str) -> Result<MessageId, Response> {
    text.parse()
        .map_err(|error: mail_core::BadMessageId| problem(StatusCode::BAD_REQUEST, &error.to_string()))
}

pub(crate) fn failed(error: ControlError) -> Response {
    let status = match &error {
        ControlError::Store(_) | ControlError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ControlError::Wrong(_) => StatusCode::BAD_REQUEST,
        ControlError::Absent(_) => StatusCode::NOT_FOUND,
        ControlError::Conflict(_) => StatusCode::CONFLICT,
        ControlError::Refused(mistakes) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return problem_with(status, &error.to_string(), mistakes.clone());
        }
    };
    problem(status, &error.to_string())
}

/// An error as problem details.
pub(crate) fn problem(status: StatusCode, detail: &str) -> Response {
    problem_with(status, detail, Vec::new())
}

fn problem_with(status: StatusCode, detail: &str, mistakes: Vec<String>) -> Response {
    let body = Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        mistakes,
    };
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        Json(body).into_response().into_body(),
    )
        .into_response()
}
