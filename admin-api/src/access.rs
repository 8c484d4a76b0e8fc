//! Who may do what: roles, tokens, and what a browser may not be led to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::control::Caller;
use crate::routes::problem;

/// What a caller may do; each role may do what the one before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads what is there, but no messages.
    Viewer,
    /// Changes queues, drains, reloads.
    Operator,
    /// Reads messages.
    Admin,
}

impl Role {
    /// As the tokens file writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// What a request asks for. Whatever is not known to need less changes something.
    pub(crate) fn needed(method: &Method, path: &str) -> Self {
        match *method {
            Method::GET | Method::HEAD if path.ends_with("/raw") => Self::Admin,
            Method::GET | Method::HEAD => Self::Viewer,
            _ => Self::Operator,
        }
    }
}

/// The tokens that open the API.
pub trait Tokens: Send + Sync + 'static {
    /// Whose token this is. May block for a moment.
    fn find(&self, token: &str) -> Option<(Caller, Role)>;

    /// Counts a wrong one from this address, and says how long its answer is held back.
    fn failed(&self, address: IpAddr) -> Duration;
}

/// Who may come in over TCP.
#[derive(Clone)]
pub struct Access {
    /// By their tokens.
    pub tokens: Arc<dyn Tokens>,
    /// Names under which browsers may know the API, in lower case; addresses and `localhost` always.
    pub hosts: Arc<[String]>,
}

/// Where a caller is, over TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub IpAddr);

/// Lets a request over TCP through that names one of our hosts, comes of no foreign page, and has a token.
pub(crate) async fn over_tcp(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    if let Err(why) = of_our_own(request.headers(), &access.hosts) {
        return problem(StatusCode::FORBIDDEN, why);
    }
    let found = match bearer(request.headers()) {
        None => None,
        Some(token) => {
            let (tokens, token) = (access.tokens.clone(), token.to_owned());
            let found = tokio::task::spawn_blocking(move || tokens.find(&token)).await;
            match found {
                Ok(Some(found)) => Some(found),
                Ok(None) | Err(_) => {
                    if let Some(Peer(address)) = request.extensions().get::<Peer>().copied() {
                        let wait = access.tokens.failed(address);
                        tracing::warn!(client = %address, wait_ms = wait.as_millis() as u64, "admin: wrong token");
                        tokio::time::sleep(wait).await;
                    }
                    None
                }
            }
        }
    };
    let Some((caller, role)) = found else {
        let mut answer = problem(
            StatusCode::UNAUTHORIZED,
            "a token is needed: Authorization: Bearer TOKEN; `postrider token add` makes one",
        );
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return answer;
    };
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(role);
    next.run(request).await
}

/// Lets a request through whose role suffices, and notes in the log what changes something.
pub(crate) async fn by_role(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let caller = request.extensions().get::<Caller>().cloned();
    let role = request.extensions().get::<Role>().copied();
    let who = caller.map_or_else(|| "unknown".into(), |caller| caller.0);
    let needed = Role::needed(&method, &path);
    let mut answer = if role.is_some_and(|role| role >= needed) {
        next.run(request).await
    } else {
        let text = format!("this needs the role {}", needed.word());
        problem(StatusCode::FORBIDDEN, &text)
    };
    if needed > Role::Viewer {
        let (status, role) = (answer.status().as_u16(), role.map_or("none", Role::word));
        tracing::info!(who = %who, role, %method, path, status, "admin: request");
    }
    answer = as_problem(answer).await;
    // No page may show the API within itself, nor keep what it said.
    for (name, value) in [
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        answer
            .headers_mut()
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    answer
}

/// What a library refuses, it refuses in plain text: all errors go out as problem details.
async fn as_problem(answer: Response) -> Response {
    const LONGEST: usize = 4_096;
    let status = answer.status();
    let is_problem = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/problem+json");
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return answer;
    }
    let text = axum::body::to_bytes(answer.into_body(), LONGEST)
        .await
        .unwrap_or_default();
    problem(status, &String::from_utf8_lossy(&text))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A page elsewhere that a browser shows could send requests here: under a name of its own that leads to our address (DNS
/// rebinding), or across sites.
fn of_our_own(headers: &HeaderMap, hosts: &[String]) -> Result<(), &'static str> {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let host = text(header::HOST)
        .ok_or("a Host field is needed")?
        .to_ascii_lowercase();
    if headers.get_all(header::HOST).iter().count() != 1 || !is_ours(&host, hosts) {
        return Err("this Host is not ours; admin.hosts names those that are");
    }
    if let Some(origin) = text(header::ORIGIN) {
        let origin = origin.to_ascii_lowercase();
        let authority = ["http://", "https://"]
            .iter()
            .find_map(|scheme| origin.strip_prefix(scheme));
        if authority != Some(host.as_str()) {
            return Err("requests of foreign pages are refused");
        }
    }
    let site = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err("requests of foreign pages are refused");
    }
    Ok(())
}

fn is_ours(authority: &str, hosts: &[String]) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|octet| octet.is_ascii_digit());
    let name = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if port.is_empty() || port.strip_prefix(':').is_some_and(is_port) => address,
        Some(_) => return false,
        None => match authority.rsplit_once(':') {
            Some((name, port)) if is_port(port) => name,
            Some(_) => return false,
            None => authority,
        },
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok() || hosts.iter().any(|host| host == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CASES §3: DNS rebinding, CSRF.
    #[test]
    fn foreign_hosts_and_origins_are_told_apart() {
        let hosts = ["mail.example.com".to_owned()];
        for (fields, ours) in [
            ("host: 127.0.0.1:8081", true),
            ("host: [::1]:8081", true),
            ("host: LOCALHOST", true),
            ("host: mail.example.com:8081", true),
            ("host: mail.example.com.evil.test", false),
            ("host: evil.test:8081", false),
            ("host: 127.0.0.1:x", false),
            ("host: [::1]x", false),
            ("", false),
            ("host: localhost\nhost: localhost", false),
            ("host: localhost:1\norigin: http://localhost:1", true),
            ("host: localhost:1\norigin: http://localhost:2", false),
            ("host: localhost\norigin: null", false),
            ("host: localhost\norigin: https://evil.test", false),
            ("host: localhost\nsec-fetch-site: cross-site", false),
            ("host: localhost\nsec-fetch-site: same-origin", true),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields.lines().filter_map(|line| line.split_once(": ")) {
                let name = header::HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.append(name, value.parse().unwrap());
            }
            assert_eq!(of_our_own(&headers, &hosts).is_ok(), ours, "{fields:?}");
        }
    }

    #[test]
    fn what_is_not_known_to_read_needs_an_operator() {
        assert_eq!(Role::needed(&Method::GET, "/v1/queues"), Role::Viewer);
        assert_eq!(Role::needed(&Method::GET, "/v1/messages/1/raw"), Role::Admin);
        assert_eq!(Role::needed(&Method::POST, "/v1/retry"), Role::Operator);
        assert_eq!(Role::needed(&Method::DELETE, "/v1/new"), Role::Operator);
        assert!(Role::Admin > Role::Operator && Role::Operator > Role::Viewer);
    }
}
