//! Sessions over a made-up wire, on a clock of their own: logins, deadlines, floods.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, duplex};
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use queue::store::{Family, MemoryStore};

use super::*;
use crate::config::settings::ListenerKind;
use crate::credentials::scram::client_final;
use crate::credentials::{Credentials, file};
use crate::delivery::exchange;
use crate::routing::Routing;
use crate::submission::listener::service;
use crate::submission::metrics::Metrics;
use crate::world::Clock;

mod own_fields;
mod when;
mod xclient;

/// A relay's front door in a folder of its own, with one user, `ada`.
struct Door {
    folder: tempfile::TempDir,
    front: Arc<Front>,
    store: MemoryStore,
    password: String,
    root: CertificateDer<'static>,
    stop: watch::Sender<bool>,
    _seats: Vec<exchange::Seat>,
    doors: Doors,
}

impl Door {
    fn new(submission: &str) -> Self {
        Self::with("", "", submission)
    }

    /// With lines of its own for the tenant and the listener, too.
    fn with(tenant: &str, listener: &str, submission: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["mx.test".into()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        write(&path("certificate.pem"), &certificate.pem());
        write(&path("key.pem"), &key.serialize_pem());
        let password = file::add(&path("credentials.toml"), "ada", "t", None, None).unwrap();
        let text = format!(
            "hostname = \"mx.test\"\n[store]\npath = \"queue\"\nmin_free = 0\n[tenants.t]\nsenders = [\"*\"]\n{tenant}\
             [[listener]]\nkind = \"submission\"\naddress = \"127.0.0.1:0\"\ncertificate = \"certificate.pem\"\n\
             key = \"key.pem\"\n{listener}[submission]\n{submission}\n"
        );
        write(&path("postrider.toml"), &text);
        let settings = Arc::new(crate::config::load(&path("postrider.toml")).unwrap());
        let store = MemoryStore::new();
        let queue = queue::Queue::in_memory(store.clone()).unwrap();
        let routing = Arc::new(Routing::open(settings.clone(), &queue).unwrap());
        let credentials = Credentials::open(&path("credentials.toml")).unwrap();
        let metrics = Metrics::new(&crate::metrics::Registry::new()).unwrap();
        let front = Front::new(
            settings,
            Some(credentials),
            routing,
            queue,
            metrics,
            Clock::system(),
        );
        let (doors, seats) = exchange::open(1);
        Self {
            front: Arc::new(front),
            store,
            password: password.to_string(),
            root: certificate.der().clone(),
            stop: watch::channel(false).0,
            _seats: seats,
            doors,
            folder,
        }
    }

    /// A client's end of a new session. `implicit_tls`: of a listener where TLS comes first.
    fn open(&self, implicit_tls: bool) -> DuplexStream {
        let mut listener = self.front.settings.listeners[0].clone();
        let ListenerKind::Submission(files) = listener.kind.clone() else {
            panic!("not a submission listener")
        };
        let tls = crate::tls::server_config(&files).unwrap();
        if implicit_tls {
            listener.kind = ListenerKind::Submissions(files);
        }
        let (random, stop) = (Random::seeded(1), self.stop.subscribe());
        let service = service(
            &listener,
            Some(tls),
            &self.front,
            random,
            self.doors.clone(),
            stop,
        );
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let entered = self.front.enter(client).unwrap();
        let (ours, theirs) = duplex(1 << 16);
        tokio::task::spawn_local(Shell::new(Rc::new(service), entered, client, theirs).run());
        ours
    }

    async fn secure(&self, versions: &[&'static SupportedProtocolVersion]) -> Client<Secured> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let name = "mx.test".try_into().unwrap();
        let stream = connector.connect(name, self.open(true)).await.unwrap();
        let mut client = Client(BufReader::new(stream));
        assert!(client.hear().await.starts_with("220 "));
        assert!(
            client
                .say("EHLO c.test")
                .await
                .contains("AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 ")
        );
        client
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.front.queue.close();
    }
}

type Secured = tokio_rustls::client::TlsStream<DuplexStream>;

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

struct Client<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A whole reply; nothing where the connection is at its end.
    async fn hear(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let from = reply.len();
            if self.0.read_line(&mut reply).await.unwrap_or(0) == 0 {
                return reply;
            }
            if reply.as_bytes().get(from + 3) == Some(&b' ') {
                return reply.trim_end().to_owned();
            }
        }
    }

    async fn put(&mut self, text: &str) {
        // Whether the session still listens is seen by what it says.
        let _ = self.0.get_mut().write_all(text.as_bytes()).await;
        let _ = self.0.get_mut().flush().await;
    }

    async fn say(&mut self, line: &str) -> String {
        self.put(&format!("{line}\r\n")).await;
        self.hear().await
    }

    /// The text of a challenge.
    async fn ask(&mut self, line: &str) -> String {
        let reply = self.say(line).await;
        let text = reply.strip_prefix("334 ").unwrap_or_else(|| panic!("{reply}"));
        String::from_utf8(BASE64.decode(text).unwrap()).unwrap()
    }

    /// Logs in by SCRAM; the last reply.
    async fn scram(
        &mut self,
        mechanism: &str,
        header: &str,
        bound: &[u8],
        user: &str,
        password: &str,
    ) -> String {
        let bare = format!("n={user},r=fyko+d2lbbFgONRv9qkxdawL");
        let first = BASE64.encode(format!("{header}{bare}"));
        let asked = self.ask(&format!("AUTH {mechanism} {first}")).await;
        let channel = [header.as_bytes(), bound].concat();
        let proof = client_final(password.as_bytes(), &format!("{bare},{asked}"), &asked, &channel);
        let reply = self.say(&BASE64.encode(proof)).await;
        if !reply.starts_with("334 ") {
            return reply;
        }
        self.say("").await
    }
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// CASES row 39; RFC 7677, RFC 9266, RFC 5929.
#[tokio::test(start_paused = true)]
async fn scram_with_and_without_channel_binding() {
    let door = Door::new("");
    local(async {
        for versions in [[&version::TLS13], [&version::TLS12]] {
            let is_new = versions[0] == &version::TLS13;
            let end_point = crate::submission::end_point::end_point(&door.root).unwrap();
            let mut client = door.secure(&versions).await;
            let reply = client
                .scram("SCRAM-SHA-256", "n,,", b"", "ada", &door.password)
                .await;
            assert!(reply.starts_with("235 2.7.0"), "{reply}");
            assert!(client.say("MAIL FROM:<a@c.test>").await.starts_with("250 "));

            let mut client = door.secure(&versions).await;
            let header = "p=tls-server-end-point,,";
            let reply = client
                .scram("SCRAM-SHA-256-PLUS", header, &end_point, "ada", &door.password)
                .await;
            assert!(reply.starts_with("235 2.7.0"), "{reply}");

            let mut client = door.secure(&versions).await;
            let session = client.0.get_ref().get_ref().1;
            let bound = session.export_keying_material(vec![0; 32], b"EXPORTER-Channel-Binding", None);
            let header = "p=tls-exporter,,";
            let reply = client
                .scram(
                    "SCRAM-SHA-256-PLUS",
                    header,
                    &bound.unwrap(),
                    "ada",
                    &door.password,
                )
                .await;
            // TLS 1.2 can't tell whether it is safe there.
            assert!(
                reply.starts_with(if is_new { "235 2.7.0" } else { "535 5.7.8" }),
                "{reply}"
            );

            // The key material of another connection.
            let mut client = door.secure(&versions).await;
            let reply = client
                .scram("SCRAM-SHA-256-PLUS", header, &[7; 32], "ada", &door.password)
                .await;
            assert!(reply.starts_with("535 5.7.8"), "{reply}");
        }
    })
    .await;
}

/// CASES §3: user enumeration.
#[tokio::test(start_paused = true)]
async fn unknown_users_get_the_answers_of_known_ones() {
    let door = Door::new("");
    local(async {
        let mut replies = Vec::new();
        for user in ["ada", "nobody"] {
            let mut client = door.secure(&[&version::TLS13]).await;
            let plain = BASE64.encode(format!("\0{user}\0wrong"));
            replies.push([
                client.scram("SCRAM-SHA-256", "n,,", b"", user, "wrong").await,
                client.say(&format!("AUTH PLAIN {plain}")).await,
            ]);
        }
        assert_eq!(replies[0], replies[1]);
        assert!(
            replies[0].iter().all(|reply| reply.starts_with("535 5.7.8")),
            "{replies:?}"
        );
        // The salt of an unknown one stays.
        let mut salts = Vec::new();
        for _ in 0..2 {
            let mut client = door.secure(&[&version::TLS13]).await;
            let first = BASE64.encode("n,,n=nobody,r=abc");
            let asked = client.ask(&format!("AUTH SCRAM-SHA-256 {first}")).await;
            salts.push(asked.split(',').nth(1).unwrap().to_owned());
        }
        assert_eq!(salts[0], salts[1]);
    })
    .await;
}

/// CASES row 39: fail delay, and 421 after n.
#[tokio::test(start_paused = true)]
async fn failed_logins_are_slowed_and_end_the_session() {
    let door = Door::new("");
    local(async {
        let mut client = door.secure(&[&version::TLS13]).await;
        let wrong = format!("AUTH PLAIN {}", BASE64.encode("\0ada\0wrong"));
        for (code, wait) in [
            ("535 5.7.8", 250),
            ("535", 500),
            ("535", 1_000),
            ("535", 2_000),
            ("421 4.7.0", 4_000),
        ] {
            let begun = Instant::now();
            let reply = client.say(&wrong).await;
            assert!(reply.starts_with(code), "{reply}");
            assert!(
                begun.elapsed() >= Duration::from_millis(wait),
                "{reply}: {:?}",
                begun.elapsed()
            );
        }
        assert_eq!(client.hear().await, "");
        // Another connection is slowed no less; a right password isn't.
        let mut client = door.secure(&[&version::TLS13]).await;
        let begun = Instant::now();
        let right = BASE64.encode(format!("\0ada\0{}", door.password));
        assert!(
            client
                .say(&format!("AUTH PLAIN {right}"))
                .await
                .starts_with("235 ")
        );
        assert!(begun.elapsed() < Duration::from_millis(250));
        let failed = door.front.metrics.logins.with_label_values(&["failed"]).get();
        assert_eq!(failed, 5);
    })
    .await;
}

/// Who takes a password away wants no more mail of those who have it, nor an hour of it over a session that they keep.
#[tokio::test(start_paused = true)]
async fn a_credential_that_is_removed_or_changed_ends_its_sessions() {
    let door = Door::new("");
    let credentials = door.folder.path().join("credentials.toml");
    let look = || door.front.credentials.as_ref().unwrap().look_now();
    local(async {
        let mut client = door.logged_in().await;
        for line in ["MAIL FROM:<a@c.test>", "RSET"] {
            assert!(client.say(line).await.starts_with("250 "));
        }
        // Another one comes: this one is what it was.
        file::add(&credentials, "bob", "t", None, None).unwrap();
        look();
        assert!(client.say("MAIL FROM:<a@c.test>").await.starts_with("250 "));
        // A transaction that has begun goes on.
        file::remove(&credentials, "ada").unwrap();
        let password = file::add(&credentials, "ada", "t", None, None).unwrap();
        look();
        assert!(client.say("RCPT TO:<b@d.test>").await.starts_with("250 "));
        assert!(client.say("RSET").await.starts_with("250 "));
        assert_eq!(
            client.say("MAIL FROM:<a@c.test>").await,
            "421 4.7.0 your login is no longer valid"
        );
        assert_eq!(client.hear().await, "");

        let mut client = door.logged_in_with(&password).await;
        file::remove(&credentials, "ada").unwrap();
        look();
        assert!(client.say("MAIL FROM:<a@c.test>").await.starts_with("421 4.7.0 "));
    })
    .await;
}

/// CASES row 6 and §2: silence, at each step.
#[tokio::test(start_paused = true)]
async fn silence_ends_a_session_in_its_time() {
    let door = Door::new(
        "command_timeout = \"40s\"\ndata_timeout = \"20s\"\ntls_timeout = \"10s\"\nsession_timeout = \"5m\"",
    );
    local(async {
        let within = |begun: Instant, seconds: u64| {
            let took = begun.elapsed().as_secs();
            assert!((seconds..seconds + 3).contains(&took), "{took} s");
        };
        // A command.
        let mut client = Client(BufReader::new(door.open(false)));
        client.hear().await;
        let begun = Instant::now();
        assert!(client.hear().await.starts_with("421 4.4.2"));
        within(begun, 40);
        assert_eq!(client.hear().await, "");
        // A handshake that never begins, and one that stops half way.
        for octets in [&b""[..], &[0x16, 3, 1, 2, 0, 1]] {
            let mut stream = door.open(true);
            stream.write_all(octets).await.unwrap();
            let begun = Instant::now();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            within(begun, 10);
        }
        // Message data.
        let mut client = door.secure(&[&version::TLS13]).await;
        let right = BASE64.encode(format!("\0ada\0{}", door.password));
        client.say(&format!("AUTH PLAIN {right}")).await;
        for line in ["MAIL FROM:<a@c.test>", "RCPT TO:<b@c.test>", "DATA"] {
            client.say(line).await;
        }
        client.put("Subject: half\r\n").await;
        let begun = Instant::now();
        assert!(client.hear().await.starts_with("421 4.4.2"));
        within(begun, 20);
        // An octet now and then is no silence, but the session has an end.
        let begun = Instant::now();
        let mut client = Client(BufReader::new(door.open(false)));
        client.hear().await;
        let reply = loop {
            client.put("N").await;
            if let Ok(reply) = timeout(Duration::from_secs(15), client.hear()).await {
                break reply;
            }
        };
        assert!(reply.starts_with("421 4.4.2"), "{reply}");
        within(begun, 300);
    })
    .await;
}

/// CASES row 27: whoever speaks before the greeting is no mail program, or someone else's words are among its own.
#[tokio::test(start_paused = true)]
async fn early_talkers_are_turned_away() {
    let door = Door::new("");
    local(async {
        let mut client = Client(BufReader::new(door.open(false)));
        client.put("EHLO c.test\r\nMAIL FROM:<a@c.test>\r\n").await;
        assert_eq!(client.hear().await, "554 mx.test you spoke before the greeting");
        assert_eq!(client.hear().await, "");
    })
    .await;
}

/// CASES §3: a flood of connections.
#[tokio::test]
async fn connections_beyond_the_limits_are_turned_away() {
    let door = Door::new("max_connections = 5\nmax_connections_per_address = 2");
    let address = |octet: u8| IpAddr::from([192, 0, 2, octet]);
    let enter = |octet| door.front.enter(address(octet)).map_err(|reply| reply.code);
    let mut held = vec![enter(1).ok().unwrap(), enter(1).ok().unwrap()];
    assert_eq!(enter(1).err(), Some(421));
    held.extend([
        enter(2).ok().unwrap(),
        enter(2).ok().unwrap(),
        enter(3).ok().unwrap(),
    ]);
    assert_eq!(enter(4).err(), Some(421));
    held.clear();
    assert!(enter(1).is_ok());
    for number in 0..1_000_u32 {
        let _ = door.front.enter(IpAddr::from(number.to_be_bytes()));
    }
    assert_eq!(door.front.addresses(), 0, "an address that is gone is forgotten");
}

/// CASES §3: half-open TLS takes no more than its share, and none of it for long.
#[tokio::test(start_paused = true)]
async fn handshakes_under_way_are_bounded_in_number_and_time() {
    let door = Door::new("max_handshakes = 2\ntls_timeout = \"10s\"");
    let counted = |result: &str| {
        let handshakes = &door.front.metrics.handshakes;
        handshakes.with_label_values(&[result]).get()
    };
    local(async {
        let mut clear = Client(BufReader::new(door.open(false)));
        clear.hear().await;
        clear.say("EHLO c.test").await;
        let mut half_open = [door.open(true), door.open(true)];
        tokio::task::yield_now().await;
        assert_eq!(door.front.metrics.handshaking.get(), 2);
        // A third one is closed at once, or put off where the client asks.
        let begun = Instant::now();
        let mut rest = Vec::new();
        let _ = door.open(true).read_to_end(&mut rest).await;
        assert_eq!((rest.len(), counted("full")), (0, 1));
        assert_eq!(
            clear.say("STARTTLS").await,
            "454 4.7.0 too many handshakes at once; come back later"
        );
        assert!(begun.elapsed() < Duration::from_secs(1));
        for stream in &mut half_open {
            let _ = stream.read_to_end(&mut rest).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert_eq!((counted("late"), door.front.metrics.handshaking.get()), (2, 0));
        // There is room again, and what is done takes none of it.
        let _served = [
            door.secure(&[&version::TLS13]).await,
            door.secure(&[&version::TLS13]).await,
            door.secure(&[&version::TLS13]).await,
        ];
        assert_eq!((counted("done"), door.front.metrics.handshaking.get()), (3, 0));
        assert!(clear.say("STARTTLS").await.starts_with("220 "));
        drop(clear);
    })
    .await;
}

/// Rates by tenant and address: told when to come back, and not counted as the client's errors.
#[tokio::test(start_paused = true)]
async fn what_is_over_a_rate_is_put_off() {
    let door = Door::new(
        "[tenants.t.rates]\nmessages = \"1/minute burst 2\"\ncredential_recipients = \"1/minute\"\n\
         [submission.rates]\naddress_connections = \"1/hour burst 2\"",
    );
    local(async {
        let mut client = door.secure(&[&version::TLS13]).await;
        let right = BASE64.encode(format!("\0ada\0{}", door.password));
        client.say(&format!("AUTH PLAIN {right}")).await;
        let mut codes = Vec::new();
        for line in [
            "MAIL FROM:<a@c.test>",
            "RCPT TO:<b@c.test>",
            "RCPT TO:<c@c.test>",
            "RSET",
            "MAIL FROM:<a@c.test>",
            "RSET",
        ] {
            codes.push(client.say(line).await[..9].to_owned());
        }
        assert_eq!(
            codes,
            [
                "250 2.1.0",
                "250 2.1.5",
                "450 4.7.1",
                "250 2.0.0",
                "250 2.1.0",
                "250 2.0.0"
            ]
        );
        for _ in 0..30 {
            let reply = client.say("MAIL FROM:<a@c.test>").await;
            assert_eq!(
                reply,
                "450 4.7.1 over the rate of tenant_messages; come back in 60 s"
            );
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(client.say("MAIL FROM:<a@c.test>").await.starts_with("250 "));
        let _second = door.open(false);
        let refused = door.front.enter("192.0.2.1".parse().unwrap()).err().unwrap();
        assert!(
            refused
                .to_string()
                .starts_with("421 4.7.1 over the rate of address_connections; "),
            "{refused}"
        );
        let counted = |limit| door.front.metrics.over_rate.with_label_values(&[limit]).get();
        assert_eq!(
            (counted("tenant_messages"), counted("address_connections")),
            (30, 1)
        );
    })
    .await;
}

impl Door {
    /// A client that has logged in and named whom it writes to.
    async fn with_envelope(&self) -> Client<Secured> {
        let mut client = self.secure(&[&version::TLS13]).await;
        let right = BASE64.encode(format!("\0ada\0{}", self.password));
        for line in [
            &format!("AUTH PLAIN {right}"),
            "MAIL FROM:<a@c.test> SMTPUTF8",
            "RCPT TO:<\u{fc}@c.test>",
        ] {
            let reply = client.say(line).await;
            assert!(reply.starts_with('2'), "{line}: {reply}");
        }
        client
    }

    fn kept(&self, reply: &str) -> (queue::EnvelopeRecord, bytes::Bytes) {
        let id = reply
            .strip_prefix("250 2.0.0 queued as ")
            .expect(reply)
            .parse()
            .unwrap();
        let envelope = self.front.queue.envelope(id).unwrap().unwrap();
        let body = self.front.queue.body(id, &envelope).unwrap();
        (envelope, body)
    }

    fn receiving(&self) -> u64 {
        self.front.receiving()
    }
}

/// CASES rows 22, 30, 32: chunks arrive to the octet, a line's end may be missing, and Received says UTF8SMTPSA.
#[tokio::test(start_paused = true)]
async fn chunks_are_kept_to_the_octet() {
    let door = Door::new("");
    local(async {
        let mut client = door.with_envelope().await;
        let message = "Subject: Gr\u{fc}\u{df}e\r\n\r\n.\r\n..\r\nMAIL FROM:<evil@c.test>\r\nno end";
        let (one, two) = message.split_at(29);
        let reply = client.say(&format!("BDAT {}\r\n{one}NOOP", one.len())).await;
        assert_eq!(reply, format!("250 2.0.0 {} octets received", one.len()));
        assert!(
            client.hear().await.starts_with("250 "),
            "the command behind the chunk"
        );
        assert_eq!(door.receiving(), one.len() as u64);
        let reply = client.say(&format!("BDAT {} LAST\r\n{two}NOOP", two.len())).await;
        let (envelope, body) = door.kept(&reply);
        assert_eq!(body, message);
        assert!(envelope.smtputf8);
        assert_eq!(envelope.origin.protocol, "UTF8SMTPSA");
        assert!(
            client.hear().await.starts_with("250 "),
            "the command behind the last chunk"
        );
        assert_eq!(door.receiving(), 0);
    })
    .await;
}

/// What was counted for chunks is given back when their transaction goes.
#[tokio::test(start_paused = true)]
async fn chunks_of_a_message_given_up_are_dropped() {
    let door = Door::new("");
    local(async {
        let chunk = format!("BDAT 500\r\n{}\r\n", "x".repeat(498));
        for (given_up, code) in [
            ("RSET\r\n", "250 2.0.0"),
            ("EHLO c.test\r\n", "250"),
            ("BDAT 3\r\na\nb", "550 5.6.0"),
        ] {
            let mut client = door.with_envelope().await;
            client.put(&chunk).await;
            assert!(client.hear().await.starts_with("250 2.0.0 500 octets"));
            assert_eq!(door.receiving(), 500);
            client.put(given_up).await;
            let reply = client.hear().await;
            assert!(reply.starts_with(code), "{given_up}: {reply}");
            // The reply is written before the next command is waited for.
            assert!(client.say("NOOP").await.starts_with("250 "));
            assert_eq!(door.receiving(), 0, "{given_up}");
        }
    })
    .await;
}

/// CVE-2026-45185: TLS ends in the middle of a chunk, and octets in clear follow.
#[tokio::test(start_paused = true)]
async fn the_end_of_tls_within_a_chunk_is_the_end() {
    let door = Door::new("");
    local(async {
        let mut client = door.with_envelope().await;
        client.put("BDAT 20 LAST\r\nSubject: half\r\n").await;
        let (mut wire, mut tls) = client.0.into_inner().into_inner();
        tls.send_close_notify();
        let mut alert = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut alert).unwrap();
        }
        wire.write_all(&alert).await.unwrap();
        // The session may have gone already.
        let _ = wire.write_all(b"\r\nx\r\nQUIT\r\n").await;
        let mut rest = Vec::new();
        let _ = wire.read_to_end(&mut rest).await;
        assert_eq!(door.front.metrics.accepted.get(), 0);
        assert_eq!(door.receiving(), 0);
        assert_eq!(door.front.queue.queues(None, 10).unwrap().len(), 0);
    })
    .await;
}

/// DESIGN §4: a large message is written as it comes; of its octets no more than a chunk or so is in memory, and of one that is
/// refused nothing stays.
#[tokio::test(start_paused = true)]
async fn large_messages_go_to_the_store_as_they_come() {
    let door = Door::new("max_message = \"8MiB\"\nmax_in_flight = \"8MiB\"");
    let line = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc\r\n";
    let lines = line.repeat(40_000);
    let message = format!("Subject: large\r\nFrom: a@c.test\r\n\r\n{lines}");
    local(async {
        let mut client = door.with_envelope().await;
        assert!(client.say("DATA").await.starts_with("354 "));
        for piece in message.as_bytes().chunks(100_000) {
            client.put(std::str::from_utf8(piece).unwrap()).await;
            assert!(door.receiving() <= 1_000_000, "{}", door.receiving());
        }
        let (envelope, body) = door.kept(&client.say(".").await);
        assert!(envelope.chunks.len() > 3);
        assert!(body == message, "changed");
        assert_eq!(door.receiving(), 0);

        // By BDAT, cut anywhere.
        let mut client = door.with_envelope().await;
        let pieces: Vec<_> = message.as_bytes().chunks(333_333).collect();
        let mut reply = String::new();
        for (number, piece) in pieces.iter().enumerate() {
            let last = if number + 1 == pieces.len() { " LAST" } else { "" };
            client.put(&format!("BDAT {}{last}\r\n", piece.len())).await;
            client.put(std::str::from_utf8(piece).unwrap()).await;
            reply = client.hear().await;
            assert!(door.receiving() <= 1_000_000, "{}", door.receiving());
        }
        let (_, body) = door.kept(&reply);
        assert!(body == message, "changed");

        // Refused at the end: what was written is gone.
        let mut client = door.with_envelope().await;
        client.say("DATA").await;
        client.put(&message).await;
        let reply = client.say("a bare\nnewline\r\n.").await;
        assert!(reply.starts_with("550 5.6.0"), "{reply}");
        assert_eq!(door.receiving(), 0);
        let mut client = door.with_envelope().await;
        client.say("DATA").await;
        client.put(&message.repeat(4)).await;
        assert!(client.say(".").await.starts_with("552 5.3.4"));
        assert_eq!(door.front.metrics.accepted.get(), 2);
        // And of one whose client left.
        let mut client = door.with_envelope().await;
        client.say("DATA").await;
        client.put(&message).await;
        drop(client);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(door.receiving(), 0);
    })
    .await;
    assert!(
        !door.store.families().contains(&Family::Upload),
        "nobody's chunks"
    );
}
