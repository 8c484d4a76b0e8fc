//! Reload in a whole relay, between clients and a next hop on loopback.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use relay::reload::ReloadError;
use relay::run::{self, Running};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A next hop on IPv6 that takes everything, and tells of each connection's messages.
fn next_hop() -> (SocketAddr, mpsc::Receiver<Vec<String>>) {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, got) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let tell = tell.clone();
            std::thread::spawn(move || take(stream.unwrap(), &tell));
        }
    });
    (address, got)
}

fn take(stream: TcpStream, tell: &mpsc::Sender<Vec<String>>) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut got = Vec::new();
    let _ = out.write_all(b"220 hop\r\n");
    while let Some(line) = lines.next() {
        let reply: &[u8] = match line.get(..4).unwrap_or_default() {
            "QUIT" => return,
            "EHLO" => {
                got.push(line);
                b"250-hop\r\n250 AUTH PLAIN\r\n"
            }
            "AUTH" => {
                got.push(line);
                b"235 welcome\r\n"
            }
            "DATA" => {
                let _ = out.write_all(b"354 go\r\n");
                got.extend(lines.by_ref().take_while(|line| line != "."));
                let _ = tell.send(std::mem::take(&mut got));
                b"250 kept\r\n"
            }
            _ => {
                got.push(line);
                b"250 ok\r\n"
            }
        };
        let _ = out.write_all(reply);
    }
}

struct Relay {
    running: Option<Running>,
    folder: tempfile::TempDir,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.take().map(Running::stop);
    }
}

const LISTENER: &str = "[[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n";

impl Relay {
    fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), more);
        let settings = relay::config::load(&folder.path().join("postrider.toml")).unwrap();
        Self {
            running: Some(run::start(settings).unwrap()),
            folder,
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn reload(&self, more: &str) -> Result<Vec<String>, ReloadError> {
        write(self.folder.path(), more);
        self.running().reloader().reload().map(|done| done.changes)
    }

    fn client(&self) -> Client {
        Client::new(self.running().listeners[0].1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn write(folder: &Path, more: &str) {
    let head = "hostname = \"relay.test\"\n";
    let text = format!(
        "{head}[store]\npath = \"q\"\nmin_free = \"1MiB\"\n[tenants.t]\nsenders = [\"*\"]\n[tenants.u]\nsenders = [\"*\"]\n\
         [dns]\nservers = [\"127.0.0.1:1\"]\n{more}"
    );
    std::fs::write(folder.join("postrider.toml"), text).unwrap();
}

struct Client {
    out: TcpStream,
    input: BufReader<TcpStream>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            out: stream.try_clone().unwrap(),
            input: BufReader::new(stream),
        };
        client.reply();
        client.say("HELO client.test");
        client
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn say(&mut self, line: &str) -> String {
        self.out.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        self.reply()
    }

    fn send(&mut self, to: &str) -> String {
        assert_eq!(&self.say("MAIL FROM:<x@from.test>")[..3], "250");
        assert_eq!(&self.say(&format!("RCPT TO:<{to}>"))[..3], "250");
        assert_eq!(&self.say("DATA")[..3], "354");
        self.say("From: x@from.test\r\nSubject: hi\r\n\r\nhello\r\n.")
    }
}

fn hop(address: SocketAddr) -> String {
    format!(
        "[[smart_host]]\nname = \"hop\"\ntls = \"off\"\nhosts = [{{ address = \"[::1]\", port = {} }}]\n\
         [[route]]\nnext_hop = \"hop\"\n",
        address.port()
    )
}

/// An open session is not cut off, and goes by the new configuration from its next message on.
#[test]
fn a_session_goes_on_under_the_new_configuration() {
    let relay = Relay::start(LISTENER);
    let mut client = relay.client();
    assert_eq!(&client.say("MAIL FROM:<x@from.test>")[..3], "250");
    let refuse = "[[route]]\nto = [\"no.test\"]\nnext_hop = \"refuse\"\nreason = \"not any more\"\n";
    let changes = relay.reload(&format!("{LISTENER}{refuse}")).unwrap();
    assert!(
        changes.contains(&"route[0].reason: now \"not any more\"".to_owned()),
        "{changes:?}"
    );
    // The message that was begun ends as it began.
    assert_eq!(&client.say("RCPT TO:<y@no.test>")[..3], "250");
    assert_eq!(&client.say("RSET")[..3], "250");
    assert_eq!(&client.say("MAIL FROM:<x@from.test>")[..3], "250");
    assert_eq!(client.say("RCPT TO:<y@no.test>"), "550 5.7.1 not any more");
    assert_eq!(relay.reload(&format!("{LISTENER}{refuse}")).unwrap(), [""; 0]);
}

#[test]
fn ehlo_tells_the_limits_of_the_tenant_that_is_known() {
    let small = "[tenants.small]\nsenders = [\"*\"]\nmax_message = \"1MiB\"\nmax_recipients = 200\n";
    let listener = LISTENER.replace("tenant = \"t\"", "tenant = \"small\"");
    let relay = Relay::start(&format!("{listener}{small}"));
    let mut client = relay.client();
    let mut offers = vec![client.say("EHLO client.test")];
    while offers.last().is_some_and(|line| line.starts_with("250-")) {
        offers.push(client.reply());
    }
    assert!(offers.contains(&"250-SIZE 1048576".to_owned()), "{offers:?}");
    assert!(
        offers.contains(&"250-LIMITS RCPTMAX=200".to_owned()),
        "{offers:?}"
    );
}

#[test]
fn a_failed_reload_changes_nothing_and_tells_every_mistake() {
    let relay = Relay::start(LISTENER);
    let mut client = relay.client();
    let wrong = format!("{LISTENER}[submission]\nmax_errors = 0\nmax_recipients = 3\n");
    let told = relay.reload(&wrong).unwrap_err().to_string();
    assert!(
        told.contains(":17:14: submission.max_errors: ")
            && told.contains(":18:18: submission.max_recipients: "),
        "{told}"
    );
    // Right in itself, but not for a relay that runs.
    let fixed = format!("{LISTENER}[log]\nformat = \"json\"\n[metrics]\naddress = \"127.0.0.1:1\"\n");
    let told = relay.reload(&fixed).unwrap_err().to_string();
    assert!(
        told.contains(
            ":17:10: log.format: can't change while the relay runs; restart it, or set it back to \"text\""
        ) && told.contains(":19:11: metrics.address: can't change"),
        "{told}"
    );
    // A port that is taken: by someone who does not share it.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = LISTENER.replace(":0\"", &format!(":{}\"", taken.local_addr().unwrap().port()));
    let told = relay
        .reload(&format!("hostname2 = 1\n{LISTENER}{second}"))
        .unwrap_err();
    assert!(matches!(told, ReloadError::Mistakes(_)), "{told}");
    let told = relay.reload(&format!("{LISTENER}{second}")).unwrap_err();
    assert!(
        matches!(&told, ReloadError::Failed(why) if why.contains("can't listen on")),
        "{told}"
    );
    assert_eq!(relay.running().reloader().settings().listeners.len(), 1);
    assert_eq!(&client.say("MAIL FROM:<x@from.test>")[..3], "250");
}

#[test]
fn listeners_come_and_go() {
    let relay = Relay::start(LISTENER);
    // Its port is free a moment later.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let second = LISTENER.replace(":0\"", &format!(":{port}\""));
    relay.reload(&format!("{LISTENER}{second}")).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut client = Client::new(address);
    assert_eq!(&client.say("MAIL FROM:<x@from.test>")[..3], "250");
    assert_eq!(&client.say("RSET")[..3], "250");
    relay.reload(LISTENER).unwrap();
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < until, "it listens still");
        std::thread::yield_now();
    }
    // Its session is told at its next message.
    assert_eq!(
        client.say("MAIL FROM:<x@from.test>"),
        "421 4.3.2 this listener is no longer there"
    );
    let mut rest = String::new();
    assert_eq!(client.input.read_to_string(&mut rest).unwrap(), 0);
    assert_eq!(&relay.client().say("MAIL FROM:<x@from.test>")[..3], "250");
}

/// Promise 7: a network that is taken out of the list is served no more, though its session is open.
#[test]
fn a_session_of_a_network_no_longer_trusted_ends() {
    let relay = Relay::start(LISTENER);
    let (mut of_network, mut of_tenant) = (relay.client(), relay.client());
    relay
        .reload(&LISTENER.replace("127.0.0.1/32", "10.0.0.0/8"))
        .unwrap();
    assert_eq!(&of_network.say("MAIL FROM:<x@from.test>")[..3], "421");
    relay.reload(&LISTENER.replace("\"t\"", "\"u\"")).unwrap();
    assert_eq!(&of_tenant.say("MAIL FROM:<x@from.test>")[..3], "421");
    assert_eq!(&relay.client().say("MAIL FROM:<x@from.test>")[..3], "250");
}

/// Promise 5: what was used up stays used up.
#[test]
fn a_reload_refills_no_rate() {
    let rate = "[tenants.t.rates]\nmessages = \"2/hour burst 2\"\n";
    let relay = Relay::start(&format!("{LISTENER}{rate}"));
    let mut client = relay.client();
    for code in ["250", "250", "450"] {
        assert_eq!(&client.say("MAIL FROM:<x@from.test>")[..3], code);
        client.say("RSET");
    }
    relay
        .reload(&format!("{LISTENER}{rate}[submission]\nmax_errors = 30\n"))
        .unwrap();
    assert_eq!(&client.say("MAIL FROM:<x@from.test>")[..3], "450");
    assert_eq!(&relay.client().say("MAIL FROM:<x@from.test>")[..3], "450");
}

/// Mail that waits for a smart host which does not answer goes as soon as a reload names one that does.
#[test]
fn queued_mail_follows_its_smart_host() {
    // Nobody listens there.
    let dead = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let relay = Relay::start(&format!("{LISTENER}{}", hop(dead)));
    assert_eq!(&relay.client().send("y@there.test")[..3], "250");
    let until = Instant::now() + PATIENCE;
    while relay.running().queue().holds(10).unwrap().is_empty() {
        assert!(Instant::now() < until, "the lane does not rest");
        std::thread::yield_now();
    }
    let (address, got) = next_hop();
    let changes = relay.reload(&format!("{LISTENER}{}", hop(address))).unwrap();
    assert_eq!(
        changes,
        [format!(
            "smart_host[0].hosts[0].port: {} -> {}",
            dead.port(),
            address.port()
        )]
    );
    let first = got.recv_timeout(PATIENCE).unwrap();
    assert!(
        first.iter().any(|line| line == "RCPT TO:<y@there.test>"),
        "{first:?}"
    );
    // One that dies again and is then taken out of the configuration: its mail waits, and goes when it is back.
    relay.reload(&format!("{LISTENER}{}", hop(dead))).unwrap();
    assert_eq!(&relay.client().send("z@there.test")[..3], "250");
    relay.reload(LISTENER).unwrap();
    let until = Instant::now() + PATIENCE;
    let waits =
        |hold: &(queue::HoldScope, queue::HoldRecord)| hold.1.cause.contains("not configured any more");
    while !relay.running().queue().holds(10).unwrap().iter().any(waits) {
        assert!(Instant::now() < until, "{:?}", relay.running().queue().holds(10));
        std::thread::yield_now();
    }
    relay.reload(&format!("{LISTENER}{}", hop(address))).unwrap();
    let second = got.recv_timeout(PATIENCE).unwrap();
    assert!(
        second.iter().any(|line| line == "RCPT TO:<z@there.test>"),
        "{second:?}"
    );
}

/// Promise 5: what single connections may carry is limited for those, too, that are open.
#[test]
fn a_limit_of_connections_that_comes_with_a_reload_holds_for_open_ones() {
    let (address, got) = next_hop();
    let one = hop(address).replace("hosts = [", "limits = { connections = 1 }\nhosts = [");
    let plain = format!("{LISTENER}{one}");
    let relay = Relay::start(&plain);
    let send = |recipients: &[&str]| {
        let mut client = relay.client();
        assert_eq!(&client.say("MAIL FROM:<x@from.test>")[..3], "250");
        for to in recipients {
            assert_eq!(&client.say(&format!("RCPT TO:<{to}@there.test>"))[..3], "250");
        }
        client.say("DATA");
        assert_eq!(&client.say("Subject: hi\r\n\r\nhello\r\n.")[..3], "250");
    };
    let got = || got.recv_timeout(PATIENCE).unwrap();
    let count = |lines: &[String], verb: &str| lines.iter().filter(|line| line.starts_with(verb)).count();
    for (to, connections) in [("a", 1), ("b", 0)] {
        send(&[to]);
        assert_eq!(count(&got(), "EHLO"), connections, "{to}");
    }
    let limited = |what: &str| format!("{plain}[[limit]]\nsite = \"*\"\n{what} = 1\n");
    relay.reload(&limited("recipients_per_transaction")).unwrap();
    send(&["c", "d"]);
    for _ in 0..2 {
        assert_eq!(count(&got(), "RCPT"), 1);
    }
    relay.reload(&limited("messages_per_connection")).unwrap();
    for to in ["e", "f"] {
        send(&[to]);
        assert_eq!(count(&got(), "EHLO"), 1, "{to}");
    }
}

/// What goes over a connection is put off by the waits of its stream as it knows them. Of longer ones than there are now each would be taken
/// for a mistake of the clock, and the mail tried at once, again and again.
#[test]
fn a_streams_waits_are_those_of_a_reload_for_connections_that_are_open() {
    let (address, got) = next_hop();
    let one = hop(address).replace("hosts = [", "limits = { connections = 1 }\nhosts = [");
    let plain = format!("{LISTENER}{one}[[stream]]\nname = \"bulk\"\n");
    let relay = Relay::start(&plain);
    let connections = |to: &str| {
        assert_eq!(&relay.client().send(&format!("{to}@there.test"))[..3], "250");
        let lines = got.recv_timeout(PATIENCE).unwrap();
        lines.iter().filter(|line| line.starts_with("EHLO")).count()
    };
    assert_eq!([connections("a"), connections("b")], [1, 0]);
    relay
        .reload(&format!("{plain}[stream.retry]\ncap = \"30m\"\n"))
        .unwrap();
    assert_eq!(connections("c"), 1, "a connection of its own");
}

/// A certificate is replaced as Kubernetes does it: a symbolic link on its path names another folder.
#[test]
fn certificates_and_keys_are_read_anew_by_content() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let serials: Vec<_> = ["one", "two"].map(|name| pair(&folder.path().join(name))).into();
    let link = folder.path().join("..data");
    std::os::unix::fs::symlink("one", &link).unwrap();
    let file = |name: &str| folder.path().join("..data").join(name).display().to_string();
    let listener = format!(
        "[[listener]]\nkind = \"submissions\"\naddress = \"127.0.0.1:0\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        file("tls.crt"),
        file("tls.key")
    );
    let relay = Relay::start(&listener);
    let address = relay.running().listeners[0].1;
    assert_eq!(shown(address), serials[0]);
    relay.running().reloader().look();
    assert_eq!(shown(address), serials[0]);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("two", &link).unwrap();
    relay.running().reloader().look();
    assert_eq!(shown(address), serials[1]);
    // One that does not fit its key changes nothing, until it does.
    std::fs::copy(
        folder.path().join("one/tls.crt"),
        folder.path().join("two/tls.crt"),
    )
    .unwrap();
    relay.running().reloader().look();
    assert_eq!(shown(address), serials[1]);
    std::fs::copy(
        folder.path().join("one/tls.key"),
        folder.path().join("two/tls.key"),
    )
    .unwrap();
    relay.running().reloader().look();
    assert_eq!(shown(address), serials[0]);
    assert!(relay.path("q").exists());
}

/// A smart host's password that has changed in its file is said on new connections; the old ones are not used again.
#[test]
fn the_password_of_a_smart_host_is_read_anew_by_content() {
    let (address, got) = next_hop();
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    write_secret(&password, b"first\n");
    let login = format!(
        "user = \"u\"\npassword_file = {:?}\nallow_unverified_auth = true\n[[route]]",
        password.to_str().unwrap()
    );
    let relay = Relay::start(&format!(
        "{LISTENER}{}",
        hop(address).replace("[[route]]", &login)
    ));
    for (content, said) in [("first", "AHUAZmlyc3Q="), ("second", "AHUAc2Vjb25k")] {
        write_secret(&password, content.as_bytes());
        relay.running().reloader().look();
        assert_eq!(&relay.client().send("y@there.test")[..3], "250");
        let lines = got.recv_timeout(PATIENCE).unwrap();
        assert!(
            lines.contains(&format!("AUTH PLAIN {said}")),
            "{content}: {lines:?}"
        );
    }
}

/// A DKIM key that has changed in its file signs what goes out from then on. The two are of different algorithms, so that the
/// signature says which made it.
#[test]
fn dkim_keys_are_read_anew_by_content() {
    use dkim_signer::{Algorithm, key::generate_file};
    let (address, got) = next_hop();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.pem");
    let dkim = format!(
        "[[dkim]]\ndomain = \"from.test\"\nselector = \"s1\"\nkey = {:?}\n",
        key.to_str().unwrap()
    );
    generate_file(Algorithm::RsaSha256, &key).unwrap();
    let relay = Relay::start(&format!("{LISTENER}{}{dkim}", hop(address)));
    for (algorithm, said) in [
        (Algorithm::RsaSha256, "a=rsa-sha256"),
        (Algorithm::Ed25519Sha256, "a=ed25519-sha256"),
    ] {
        std::fs::remove_file(&key).unwrap();
        generate_file(algorithm, &key).unwrap();
        relay.running().reloader().look();
        assert_eq!(&relay.client().send("y@there.test")[..3], "250");
        let lines = got.recv_timeout(PATIENCE).unwrap();
        let signatures = lines.iter().filter(|line| line.starts_with("DKIM-Signature:"));
        let signed: Vec<_> = signatures.filter(|line| line.contains(said)).collect();
        assert_eq!(signed.len(), 1, "{said}: {lines:?}");
    }
}

/// Writes a file that only its owner can read.
fn write_secret(path: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Makes a certificate and its key in a folder, and gives the certificate.
fn pair(folder: &Path) -> Vec<u8> {
    std::fs::create_dir(folder).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["mx.test".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    write_secret(&folder.join("tls.key"), key.serialize_pem().as_bytes());
    certificate.der().to_vec()
}

/// The certificate that a listener shows.
fn shown(address: SocketAddr) -> Vec<u8> {
    let tls = relay::delivery::client_tls::ClientTls::new(None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("mx.test").unwrap();
        let stream = tls.unverified().connect(name, stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    })
}
