//! The API's description (OpenAPI 3.1), made of the routes and types themselves. Served at `/openapi.json`, and committed as
//! docs/openapi.json.

use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use utoipa::OpenApi as _;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, ResponseBuilder};

use crate::access::Role;
use crate::types::Problem;
use crate::{manage, routes};

/// Where it is served.
pub const PATH: &str = "/openapi.json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Postrider's admin API",
        description = "For operators: queues, messages, the relay as a whole. Over the Unix socket, whose permissions are the guard, all is \
            allowed; over TCP a token says who asks, and its role what it may do (`x-role`: viewer, operator, admin; each may do what the \
            one before may). Errors are problem details (RFC 9457).",
    ),
    tags(
        (name = "queues", description = "What waits, and for what."),
        (name = "messages", description = "Single messages."),
        (name = "relay", description = "The relay as a whole."),
    ),
    paths(
        routes::queues,
        routes::queue,
        routes::holds,
        routes::limits,
        routes::messages,
        routes::message,
        routes::raw,
        routes::aside,
        routes::adjustments,
        routes::adjust,
        routes::end_adjustment,
        routes::suspensions,
        routes::suspend,
        routes::resume,
        routes::retry,
        routes::delete,
        manage::reload,
        manage::config,
        manage::drain_state,
        manage::drain,
        manage::end_drain,
    ),
    components(schemas(Problem)),
)]
struct Api;

/// The description.
pub fn description() -> OpenApi {
    let mut api = Api::openapi();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let bearer = bearer.description(Some(
        "A token, as `postrider token add` makes it. Not over the Unix socket.",
    ));
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(bearer.build()));
    let problem = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    let problem = ResponseBuilder::new()
        .description("What is wrong (RFC 9457).")
        .content("application/problem+json", problem)
        .build();
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in [(Method::GET, &mut item.get), (Method::POST, &mut item.post)] {
            if let Some(operation) = operation {
                complete(operation, Role::needed(&method, path));
                operation
                    .responses
                    .responses
                    .insert("default".to_owned(), problem.clone().into());
            }
        }
    }
    api
}

/// What holds for all operations alike. The role is the one that is asked for when a request comes.
fn complete(operation: &mut Operation, role: Role) {
    let no_scopes: [&str; 0] = [];
    operation.security = Some(vec![SecurityRequirement::new("token", no_scopes)]);
    let extensions = [("x-role".to_owned(), json!(role.word()))];
    operation.extensions = Some(Extensions::from_iter(extensions));
}

/// Serves it.
pub fn router() -> Router {
    Router::new().route(PATH, get(serve))
}

async fn serve() -> Response {
    ([(header::CACHE_CONTROL, "no-cache")], Json(description())).into_response()
}
