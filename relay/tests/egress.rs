//! Sources, pools and proxies in a whole relay, between a client and a next hop on loopback.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use queue::{AdjustmentKey, EventKind, HoldScope, Scope};
use relay::run::{self, Running};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpSocket;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the next hop saw of a message: whom it came from, what that said at EHLO, and for whom it was.
type Got = (IpAddr, String, String);

/// A next hop that takes everything.
fn next_hop() -> (SocketAddr, mpsc::Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, got) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let tell = tell.clone();
            // Who hangs up is seen by what is missing.
            std::thread::spawn(move || drop(take(stream.unwrap(), &tell)));
        }
    });
    (address, got)
}

fn take(stream: TcpStream, tell: &mpsc::Sender<Got>) -> io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    let (mut name, mut to) = (String::new(), String::new());
    out.write_all(b"220 hop\r\n")?;
    while let Some(line) = lines.next().transpose()? {
        let reply: &[u8] = match line.get(..4).unwrap_or_default() {
            "QUIT" => return Ok(()),
            "EHLO" => {
                name = line[5..].to_owned();
                b"250 hop\r\n"
            }
            "RCPT" => {
                to = line[9..line.len() - 1].to_owned();
                b"250 ok\r\n"
            }
            "DATA" => {
                out.write_all(b"354 go\r\n")?;
                while lines.next().transpose()?.is_some_and(|line| line != ".") {}
                let _ = tell.send((peer, name.clone(), to.clone()));
                b"250 kept\r\n"
            }
            _ => b"250 ok\r\n",
        };
        out.write_all(reply)?;
    }
    Ok(())
}

struct Relay {
    running: Option<Running>,
    folder: tempfile::TempDir,
    hop: SocketAddr,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.take().map(Running::stop);
    }
}

/// A configuration that sends everything to the next hop from the pool `p`.
fn write(folder: &Path, hop: SocketAddr, more: &str, pool: &str) {
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\nmin_free = \"1MiB\"\n[tenants.t]\nsenders = [\"*\"]\n\
         [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
         [dns]\nservers = [\"127.0.0.1:1\"]\n[metrics]\naddress = \"127.0.0.1:0\"\n[[smart_host]]\nname = \"hop\"\ntls = \"off\"\n\
         hosts = [{{ address = \"127.0.0.1\", port = {} }}]\n[[route]]\nnext_hop = \"hop\"\n{pool}\n{more}",
        hop.port()
    );
    std::fs::write(folder.join("postrider.toml"), text).unwrap();
}

const FROM_P: &str = "pool = \"p\"";

impl Relay {
    fn start(hop: SocketAddr, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), hop, more, FROM_P);
        let settings = relay::config::load_here(&folder.path().join("postrider.toml"));
        let settings = settings.unwrap_or_else(|mistakes| panic!("{mistakes}"));
        Self {
            running: Some(run::start(settings).unwrap()),
            folder,
            hop,
        }
    }

    fn reload(&self, more: &str, pool: &str) {
        write(self.folder.path(), self.hop, more, pool);
        self.running().reloader().reload().unwrap();
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn send(&self, to: &str) {
        let stream = TcpStream::connect(self.running().listeners[0].1).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut out, mut input) = (stream.try_clone().unwrap(), BufReader::new(stream));
        let to = format!("RCPT TO:<{to}>");
        for (says, hears) in [
            ("", "220"),
            ("HELO c.test", "250"),
            ("MAIL FROM:<a@s.test>", "250"),
            (&to, "250"),
            ("DATA", "354"),
            ("Subject: x\r\n\r\nx\r\n.", "250"),
        ] {
            if !says.is_empty() {
                out.write_all(format!("{says}\r\n").as_bytes()).unwrap();
            }
            let mut reply = String::new();
            input.read_line(&mut reply).unwrap();
            assert!(reply.starts_with(hears), "{says}: {reply}");
        }
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.running().metrics.unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// The cause of the hold of this name, once there is one.
    fn held(&self, name: &str) -> String {
        let scope = HoldScope::Lane(name.to_owned());
        let queue = self.running().queue();
        until(|| queue.held(&scope).unwrap().map(|hold| hold.cause))
    }

    /// Why a source is suspended, once it is.
    fn suspended(&self, source: &str) -> String {
        let queue = self.running().queue();
        let scope = Scope {
            source: Some(source.into()),
            ..Scope::default()
        };
        let key = AdjustmentKey::suspended(scope);
        until(|| queue.adjustment(&key).unwrap().map(|record| record.cause))
    }
}

fn until<T>(look: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

/// What a proxy of the tests speaks.
#[derive(Clone, Copy)]
enum Speaks {
    /// SOCKS5 with user and password, and KumoMTA's BIND.
    Socks5,
    /// SOCKS5 that lets nobody in.
    NoEntry,
    Haproxy,
}

fn proxy(speaks: Speaks) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // What fails is seen by what does not arrive.
                let _ = pass_on(client, speaks).await;
            });
        }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(serve)
    });
    address
}

async fn pass_on(mut client: tokio::net::TcpStream, speaks: Speaks) -> io::Result<()> {
    let (from, to) = match speaks {
        Speaks::NoEntry => {
            read::<3>(&mut client).await?;
            return client.write_all(&[5, 0xff]).await;
        }
        Speaks::Haproxy => {
            let header = read::<28>(&mut client).await?;
            assert_eq!(header[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
            (
                place(&[&header[16..20], &header[24..26]].concat()),
                place(&[&header[20..24], &header[26..28]].concat()),
            )
        }
        Speaks::Socks5 => {
            assert_eq!(read::<4>(&mut client).await?, [5, 2, 0, 2]);
            client.write_all(&[5, 2]).await?;
            let login = read::<12>(&mut client).await?;
            client
                .write_all(&[1, u8::from(login != *b"\x01\x03ann\x06secret")])
                .await?;
            let bind = read::<10>(&mut client).await?;
            assert_eq!(bind[..4], [5, 2, 0, 1]);
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
            let connect = read::<10>(&mut client).await?;
            assert_eq!(connect[..4], [5, 1, 0, 1]);
            (place(&bind[4..]), place(&connect[4..]))
        }
    };
    let socket = TcpSocket::new_v4()?;
    socket.bind(from)?;
    let mut target = socket.connect(to).await?;
    if matches!(speaks, Speaks::Socks5) {
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    }
    copy_bidirectional(&mut client, &mut target).await.map(drop)
}

async fn read<const N: usize>(stream: &mut tokio::net::TcpStream) -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    stream.read_exact(&mut octets).await?;
    Ok(octets)
}

fn place(octets: &[u8]) -> SocketAddr {
    let address = Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
    SocketAddr::new(address.into(), u16::from_be_bytes([octets[4], octets[5]]))
}

const TWO: &str = "[[source]]\nname = \"one\"\naddresses = [\"127.0.0.21\"]\nehlo = \"one.relay.test\"\n\
    [[source]]\nname = \"two\"\naddresses = [\"127.0.0.22\", \"::1\"]\n\
    [[pool]]\nname = \"p\"\nsources = [\"one\", \"two\"]\n";

#[test]
fn mail_of_a_pool_comes_from_its_sources_and_the_journal_says_which() {
    let (hop, got) = next_hop();
    let relay = Relay::start(hop, TWO);
    for number in 0..12 {
        relay.send(&format!("x@d{number}.test"));
    }
    let mut seen = BTreeSet::new();
    let mut from = Vec::new();
    for _ in 0..12 {
        let (address, name, to) = got.recv_timeout(PATIENCE).unwrap();
        seen.insert((address.to_string(), name));
        from.push((to, address.to_string()));
    }
    let expected = [
        ("127.0.0.21".to_owned(), "one.relay.test".to_owned()),
        ("127.0.0.22".to_owned(), "relay.test".to_owned()),
    ];
    assert_eq!(seen, BTreeSet::from(expected));
    let delivered = until(|| {
        let events = relay.running().queue().events(0, 1_000).unwrap();
        let delivered = events.into_iter().map(|(_, event)| event);
        let delivered: Vec<_> = delivered
            .filter(|event| event.kind == EventKind::Delivered)
            .collect();
        (delivered.len() == 12).then_some(delivered)
    });
    for event in delivered {
        let source = event.hop.unwrap().source;
        let address = if source == "one" {
            "127.0.0.21"
        } else {
            "127.0.0.22"
        };
        assert!(
            from.contains(&(event.recipients[0].clone(), address.to_owned())),
            "{source} {:?} {from:?}",
            event.recipients
        );
    }
    let metrics = relay.metrics();
    for source in ["one", "two"] {
        for line in [
            format!("postrider_source_connects_total{{result=\"connected\",source=\"{source}\"}}"),
            format!("postrider_source_outcomes_total{{outcome=\"delivered\",source=\"{source}\"}}"),
        ] {
            assert!(metrics.contains(&line), "{line}: {metrics}");
        }
    }
}

#[test]
fn mail_goes_through_proxies_from_the_addresses_that_they_are_told() {
    let (hop, got) = next_hop();
    let (socks, haproxy) = (proxy(Speaks::Socks5), proxy(Speaks::Haproxy));
    let source = |address: &str, proxy: &str| {
        format!("[[source]]\nname = \"far\"\naddresses = [\"{address}\"]\nproxy = \"{proxy}\"\n")
    };
    let pool = "[[pool]]\nname = \"p\"\nsources = [\"far\"]\n";
    let through_socks = format!(
        "{}proxy_bind = true\nproxy_user = \"ann\"\nproxy_password_file = \"secret\"\n{pool}",
        source("127.0.0.31", &format!("socks5://{socks}"))
    );
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let through_socks = through_socks.replace("\"secret\"", &format!("\"{}\"", secret.display()));
    let relay = Relay::start(hop, &through_socks);
    relay.send("x@a.test");
    let (from, ..) = got.recv_timeout(PATIENCE).unwrap();
    assert_eq!(from.to_string(), "127.0.0.31");

    let through_haproxy = format!("{}{pool}", source("127.0.0.32", &format!("haproxy://{haproxy}")));
    relay.reload(&through_haproxy, FROM_P);
    relay.send("x@a.test");
    let (from, ..) = got.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        from.to_string(),
        "127.0.0.32",
        "a connection made before is not used"
    );
}

#[test]
fn a_proxy_that_refuses_us_holds_its_own_source_up_and_is_named() {
    let (hop, got) = next_hop();
    let refuses = proxy(Speaks::NoEntry);
    let source = |proxy: SocketAddr| format!("[[source]]\nname = \"far\"\nproxy = \"socks5://{proxy}\"\n");
    let pool = "[[pool]]\nname = \"p\"\nsources = [\"far\"]\n";
    let relay = Relay::start(hop, &format!("{}{pool}", source(refuses)));
    relay.send("x@a.test");
    assert_eq!(
        relay.suspended("far"),
        format!("4.4.0 source far: socks5://{refuses}: it lets us in by no method that we offer")
    );
    let metrics = relay.metrics();
    let failed = "postrider_source_connects_total{result=\"source_failed\",source=\"far\"} 1";
    assert!(metrics.contains(failed), "{metrics}");
    // Without the proxy it need not wait until it is tried again.
    let direct = "[[source]]\nname = \"far\"\naddresses = [\"127.0.0.41\"]\n";
    relay.reload(&format!("{direct}{pool}"), FROM_P);
    let (from, ..) = got.recv_timeout(PATIENCE).unwrap();
    assert_eq!(from.to_string(), "127.0.0.41");
}

#[test]
fn mail_of_a_pool_that_a_reload_removes_waits_and_goes_when_it_is_back() {
    let (hop, got) = next_hop();
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Nothing listens there: the mail stays.
    let mut relay = Relay::start(dead, TWO);
    relay.send("x@a.test");
    let name = until(|| {
        let holds = relay.running().queue().holds(10).unwrap();
        holds.into_iter().find_map(|(scope, _)| match scope {
            HoldScope::Lane(name) => Some(name),
            HoldScope::Domain(_) => None,
        })
    });
    assert!(name.starts_with("smart host hop source "), "{name}");
    relay.reload(&TWO.replace("\"p\"", "\"q\""), "");
    let cause = relay.held("smart host hop pool p (not configured)");
    assert!(
        cause.contains("smart host hop pool p is not configured any more"),
        "{cause}"
    );
    relay.hop = hop;
    relay.reload(TWO, FROM_P);
    let (from, ..) = got.recv_timeout(PATIENCE).unwrap();
    assert!(["127.0.0.21", "127.0.0.22"].contains(&from.to_string().as_str()));
}
