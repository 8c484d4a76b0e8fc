//! The admin API of a whole relay, over TCP with tokens (CASES §3: admin API).

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use admin_api::access::Role;
use admin_api::client::{BadUrl, Client, ClientError};
use relay::delivery::client_tls::ClientTls;
use relay::run::{self, Running};
use relay::tokens;

struct Relay {
    running: Option<Running>,
    folder: tempfile::TempDir,
    /// Viewer, operator, admin.
    tokens: [String; 3],
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.take().map(Running::stop);
    }
}

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\nhosts = [\"relay.test\"]\n";

impl Relay {
    /// With a token of each role.
    fn start(admin: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = |role: Role| {
            tokens::add(&folder.path().join("tokens.toml"), role.word(), role)
                .unwrap()
                .to_string()
        };
        let tokens = [Role::Viewer, Role::Operator, Role::Admin].map(made);
        write(folder.path(), admin, "");
        let settings = relay::config::load(&folder.path().join("postrider.toml")).unwrap();
        Self {
            running: Some(run::start(settings).unwrap()),
            folder,
            tokens,
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.running().admin_http.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The status of a request with these fields.
    fn status(&self, request: &str, fields: &str) -> u16 {
        let answer = self.ask(request, fields);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("{answer}"))
    }

    fn ask(&self, request: &str, fields: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let text = format!("{request} HTTP/1.1\r\nConnection: close\r\n{fields}Content-Length: 0\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

fn write(folder: &Path, admin: &str, more: &str) {
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\nmin_free = \"1MiB\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\n\
         kind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
         [dns]\nservers = [\"127.0.0.1:1\"]\n{admin}{more}"
    );
    std::fs::write(folder.join("postrider.toml"), text).unwrap();
}

fn tls() -> tokio_rustls::TlsConnector {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ClientTls::new(None).unwrap().unverified()
}

/// CASES §3, admin API: auth bypass, CSRF, clickjack, DNS rebinding.
#[test]
fn only_tokens_of_enough_role_and_no_foreign_page_come_in() {
    let relay = Relay::start(ADMIN);
    let [viewer, operator, admin] = relay
        .tokens
        .clone()
        .map(|token| format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n"));
    let raw = "GET /v1/messages/019a2b3c4d5e7f8091a2b3c4d5e6f708/raw";
    for (request, fields, status) in [
        ("GET /v1/queues", viewer.clone(), 200),
        (
            "GET /v1/queues",
            viewer.replace("localhost", "relay.test:99"),
            200,
        ),
        ("GET /v1/queues", viewer.replace("localhost", "evil.test"), 403),
        (
            "GET /v1/queues",
            format!("{viewer}Origin: https://evil.test\r\n"),
            403,
        ),
        (
            "GET /v1/queues",
            format!("{viewer}Origin: http://localhost\r\n"),
            200,
        ),
        (
            "POST /v1/reload",
            format!("{operator}Sec-Fetch-Site: cross-site\r\n"),
            403,
        ),
        ("GET /v1/queues", "Host: localhost\r\n".to_owned(), 401),
        ("GET /v1/nowhere", "Host: localhost\r\n".to_owned(), 401),
        ("GET /v1/queues", viewer.replace("Bearer ", "Bearer x"), 401),
        ("GET /v1/queues", viewer.replace("Bearer ", "Basic "), 401),
        ("POST /v1/reload", viewer.clone(), 403),
        ("POST /v1/drain/end", viewer.clone(), 403),
        ("POST /v1/reload", operator.clone(), 200),
        (raw, operator.clone(), 403),
        (raw, admin.clone(), 404),
        // Nothing changes by GET.
        ("GET /v1/reload", admin.clone(), 405),
        ("GET /v1/drain/end", admin.clone(), 405),
        ("GET /v1/retry", admin.clone(), 405),
        ("GET /v1/delete", admin.clone(), 405),
        ("GET /v1/suspensions/resume", admin.clone(), 405),
        ("GET /v1/nowhere", admin.clone(), 404),
    ] {
        assert_eq!(relay.status(request, &fields), status, "{request} {fields}");
    }
    let answer = relay.ask("GET /v1/config", &viewer).to_ascii_lowercase();
    for field in [
        "x-frame-options: deny",
        "frame-ancestors 'none'",
        "cache-control: no-store",
        "nosniff",
    ] {
        assert!(answer.contains(field), "{field}: {answer}");
    }
}

#[test]
fn reload_config_and_drain_over_the_api() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let relay = Relay::start(ADMIN);
    let url = format!("http://{}", relay.address());
    let token = relay.tokens[1].clone();
    let client = Client::at(&url, Some(token), tls()).unwrap();
    let config = runtime.block_on(client.config()).unwrap();
    assert!(
        config.toml.contains("\n[submission]\n") && config.toml.contains("max_errors = 20 # default"),
        "{}",
        config.toml
    );
    // What it prints says the same.
    std::fs::write(relay.path("again.toml"), &config.toml).unwrap();
    let again = relay::config::load(&relay.path("again.toml")).unwrap();
    assert_eq!(
        again
            .effective
            .changes(&relay.running().reloader().settings().effective),
        []
    );

    write(relay.folder.path(), ADMIN, "[submission]\nmax_errors = 21\n");
    let done = runtime.block_on(client.reload()).unwrap();
    assert_eq!(done.changes, ["submission.max_errors: 20 -> 21"]);
    write(
        relay.folder.path(),
        ADMIN,
        "[submission]\nmax_errors = 0\nmax_recipients = 1\n",
    );
    let Err(ClientError::Refused(problem)) = runtime.block_on(client.reload()) else {
        panic!("a wrong configuration was taken")
    };
    assert_eq!((problem.status, problem.mistakes.len()), (422, 2), "{problem:?}");

    let mut session = TcpStream::connect(relay.running().listeners[0].1).unwrap();
    session.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut greeting = [0; 4];
    session.read_exact(&mut greeting).unwrap();
    let state = runtime.block_on(client.drain(true)).unwrap();
    assert!(
        state.draining && state.messages == 0 && state.sessions == 1,
        "{state:?}"
    );
    let mut text = String::new();
    let mut turned_away = TcpStream::connect(relay.running().listeners[0].1).unwrap();
    turned_away.read_to_string(&mut text).unwrap();
    assert_eq!(text, "421 4.3.2 this server is being drained; use another\r\n");
    // The session that was open is told at its next message. A reload does not end the drain.
    write(relay.folder.path(), ADMIN, "");
    runtime.block_on(client.reload()).unwrap();
    session
        .write_all(b"HELO c.test\r\nMAIL FROM:<x@from.test>\r\n")
        .unwrap();
    text.clear();
    session.read_to_string(&mut text).unwrap();
    assert!(
        text.ends_with("421 4.3.2 this server is being drained; use another\r\n"),
        "{text}"
    );
    let state = runtime.block_on(client.drain(false)).unwrap();
    assert!(!state.draining);
    let mut served = TcpStream::connect(relay.running().listeners[0].1).unwrap();
    served.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");
}

#[test]
fn over_tls_where_there_is_a_certificate() {
    use std::os::unix::fs::PermissionsExt;
    let files = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key_file) = (files.path().join("tls.crt"), files.path().join("tls.key"));
    std::fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key_file, PermissionsExt::from_mode(0o600)).unwrap();
    let relay = Relay::start(&format!(
        "{ADMIN}certificate = \"{}\"\nkey = \"{}\"\n",
        certificate.display(),
        key_file.display()
    ));
    let token = relay.tokens[0].clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let url = format!("https://localhost:{}", relay.address().port());
    let client = Client::at(&url, Some(token.clone()), tls()).unwrap();
    assert!(runtime.block_on(client.config()).is_ok());
    let wrong = Client::at(&url, Some("postrider_x".into()), tls()).unwrap();
    assert!(
        matches!(runtime.block_on(wrong.config()), Err(ClientError::Refused(problem)) if problem.status == 401)
    );
    // In clear it does not answer, and no token goes in clear to elsewhere.
    let clear = Client::at(&url.replace("https", "http"), Some(token.clone()), tls()).unwrap();
    assert!(runtime.block_on(clear.config()).is_err());
    for (url, why) in [
        ("http://mail.example.com:8081", BadUrl::Clear),
        ("ftp://localhost", BadUrl::Url),
        ("http://user@localhost", BadUrl::Url),
        ("http://localhost/x", BadUrl::Url),
    ] {
        assert_eq!(
            Client::at(url, Some(token.clone()), tls()).err(),
            Some(why),
            "{url}"
        );
    }
}
