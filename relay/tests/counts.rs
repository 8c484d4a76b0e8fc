//! What a message costs that does not hang on the machine: syncs, batches, allocations, copies of its body.
//!
//! A listener and the delivery side run on one thread, with the committer and the preparer inline, on RocksDB; a scripted client
//! and a scripted next hop share the thread, uncounted. So each message takes the very same steps, and each count is compared
//! with its mark in `counts/marks.toml`, which says how to measure anew. Of all messages of a run the median counts: now and
//! then a table grows or a timer ends.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dkim_signer::sign::{DomainKey, Signer};
use dkim_signer::{Algorithm, PrivateKey, key::generate};
use mail_core::Domain;
use queue::Queue;
use queue::store::{Batch, Family};
use relay::config;
use relay::delivery::client_tls::ClientTls;
use relay::delivery::courier::{self, Parts};
use relay::delivery::exchange;
use relay::metrics::Registry;
use relay::prepare::{self, Preparer};
use relay::routing::Routing;
use relay::submission::front::Front;
use relay::submission::listener::{self, Terms};
use relay::world::{Clock, ConnectError, DnsError, LocalEnd, MxAnswer, MxHost, Net, Random};
use relay::{delivery, logging, submission};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::timeout;
use tracing_subscriber::layer::SubscriberExt as _;

use allocator::{Uncounted, asked, uncounted};
use store::CountingStore;

#[path = "counts/allocator.rs"]
mod allocator;
#[path = "counts/store.rs"]
mod store;

/// Messages before any is counted, and those that are.
const WARM_UP: usize = 20;
const COUNTED: usize = 60;

/// Generous: a busy machine is no fault of the relay's.
const PATIENCE: Duration = Duration::from_secs(60);

const MARKS: &str = include_str!("counts/marks.toml");

/// Of these the most of any message counts, of others the median: now and then something is looked up anew, or grows.
const EACH: [&str; 6] = [
    "batch-octets",
    "batches",
    "body-sized-allocations",
    "copied-octets",
    "keys-written",
    "syncs",
];

/// One message's counts, by their names in the marks.
type Counts = BTreeMap<&'static str, u64>;

#[derive(Clone, Copy)]
struct Run {
    name: &'static str,
    body_bytes: usize,
    signed: bool,
    /// Transferred by BDAT (RFC 3030), not DATA.
    chunked: bool,
}

#[test]
fn a_message_costs_no_more_than_its_marks() {
    // As the program logs, but for where to.
    let log = tracing_subscriber::fmt::layer()
        .with_writer(io::sink)
        .with_target(false)
        .json()
        .flatten_event(true);
    let filter = logging::filter(logging::USUAL).unwrap();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(log)).unwrap();
    let run = |name, body_bytes| Run {
        name,
        body_bytes,
        signed: false,
        chunked: false,
    };
    let runs = [
        run("10KiB", 10 << 10),
        run("100KiB", 100 << 10),
        Run {
            signed: true,
            ..run("10KiB-ed25519", 10 << 10)
        },
        Run {
            chunked: true,
            ..run("100KiB-bdat", 100 << 10)
        },
        run("400KiB", 400 << 10),
    ];
    let marks: BTreeMap<String, BTreeMap<String, u64>> = toml::from_str(MARKS).unwrap();
    let (mut table, mut risen) = (String::new(), String::new());
    for run in runs {
        // A thread's counts are its own, and its runtime's.
        let counted = std::thread::spawn(move || measure(run)).join().unwrap();
        writeln!(table, "[{}]", run.name).unwrap();
        for (what, count) in counted {
            writeln!(table, "{what} = {count}").unwrap();
            // What has no mark may not be at all.
            let mark = marks
                .get(run.name)
                .and_then(|of| of.get(what))
                .copied()
                .unwrap_or(0);
            if count > mark {
                writeln!(
                    risen,
                    "{}: {what} is {count} for each message; its mark is {mark}",
                    run.name
                )
                .unwrap();
            } else if count < mark {
                println!("{}: {what} is {count}, its mark {mark} can be lowered", run.name);
            }
        }
    }
    println!("{table}");
    assert!(
        risen.is_empty(),
        "a message costs more than it did (relay/tests/counts/marks.toml says what to do):\n{risen}"
    );
}

/// What the marks of copies rest on: one more is one more.
#[test]
fn a_copy_of_a_body_is_counted() {
    let body = message(10 << 10);
    std::thread::spawn(move || {
        allocator::body_bytes(10 << 10);
        allocator::count();
        let before = asked();
        let copies = [body.to_vec(), body[..100].to_vec(), uncounted(|| body.to_vec())];
        let after = asked();
        drop(copies);
        assert_eq!(after.of_body_size - before.of_body_size, 1);
        assert_eq!(after.times - before.times, 2);
        // So is one by growing, and one into a batch, which has had its room for long.
        let mut grown = body.clone();
        let before = asked();
        grown.reserve_exact(1);
        assert_eq!(asked().moved - before.moved, body.len() as u64);
        let mut batch = Batch::default();
        batch.put(Family::Body, b"key", body.clone());
        let shared = batch.copied();
        batch.put_copy(Family::Body, b"key", &body);
        assert_eq!((shared, batch.copied() - shared), (3, body.len() + 3));
    })
    .join()
    .unwrap();
}

fn measure(run: Run) -> Counts {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    std::fs::write(
        &path,
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"from.test\"]\n\
         [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
         [delivery]\ntls = \"off\"\n",
    )
    .unwrap();
    let settings = Arc::new(config::load(&path).unwrap_or_else(|mistakes| panic!("{mistakes}")));
    let store = CountingStore::open(&folder.path().join("store"));
    let queue = Queue::inline(Arc::new(store.clone())).unwrap();
    let signer = Signer::new(run.signed.then(signing_key)).unwrap();
    allocator::body_bytes(run.body_bytes);
    allocator::count();
    let counts = LocalSet::new().block_on(&runtime, async {
        let next_hop = NextHop::listen().await;
        let parts = Parts {
            net: OneHost(next_hop.address),
            preparer: Preparer::inline(
                queue.clone(),
                Arc::new(signer),
                prepare::Metrics::new(&Registry::new()).unwrap(),
            ),
            tls: Arc::new(ClientTls::new(None).unwrap()),
            metrics: delivery::metrics::Metrics::new(&Registry::new()).unwrap(),
            rates: Arc::default(),
            clock: Clock::system(),
            random: Random::seeded(7),
            routing: Arc::new(Routing::open(settings.clone(), &queue).unwrap()),
            queue: queue.clone(),
            settings: settings.clone(),
        };
        let front = Arc::new(Front::new(
            settings.clone(),
            None,
            parts.routing.clone(),
            queue.clone(),
            submission::metrics::Metrics::new(&Registry::new()).unwrap(),
            parts.clock,
        ));
        let (doors, mut seats) = exchange::open(1);
        let (stop, stopped) = watch::channel(false);
        let (address, mut sockets) = listener::bind(settings.listeners[0].address, 1).unwrap();
        let terms = Terms {
            front,
            listener: settings.listeners[0].clone(),
            tls: None,
        };
        let (_held, terms) = watch::channel(terms);
        let listening = listener::run(
            sockets.pop().unwrap(),
            terms,
            Random::seeded(8),
            doors,
            stopped.clone(),
        );
        let listening = spawn_local(listening);
        let delivering = spawn_local(courier::run(parts, seats.pop().unwrap(), stopped));
        let counts = Uncounted::new(drive(run, address, &store, &next_hop.taken)).await;
        stop.send(true).unwrap();
        listening.await.unwrap().unwrap();
        delivering.await.unwrap();
        counts
    });
    queue.close();
    counts
}

fn signing_key() -> DomainKey {
    DomainKey {
        domain: "from.test".parse().unwrap(),
        selector: "s1".parse().unwrap(),
        key: Arc::new(PrivateKey::from_pem(generate(Algorithm::Ed25519Sha256).unwrap().as_bytes()).unwrap()),
    }
}

/// Sends one message after another, each when the one before has been delivered and settled; the medians of what they cost.
async fn drive(run: Run, address: SocketAddr, store: &CountingStore, taken: &Notify) -> Counts {
    let mut client = Client(TcpStream::connect(address).await.unwrap());
    client.0.set_nodelay(true).unwrap();
    client.replies(1).await;
    client.0.write_all(b"EHLO app.from.test\r\n").await.unwrap();
    client.replies(1).await;
    let message = message(run.body_bytes);
    let mut all: Vec<Counts> = Vec::new();
    let print_sites = std::env::var_os("COUNTS_SITES").is_some_and(|name| name == run.name);
    for number in 0..WARM_UP + COUNTED {
        let (before, told) = (asked(), store.told());
        let last = number + 1 == WARM_UP + COUNTED;
        allocator::note_sites(print_sites && last);
        let envelope = "MAIL FROM:<a@from.test>\r\nRCPT TO:<b@to.test>\r\n";
        if run.chunked {
            let text = &message[..message.len() - b".\r\n".len()];
            let commands = format!("{envelope}BDAT {} LAST\r\n", text.len());
            client.0.write_all(commands.as_bytes()).await.unwrap();
            client.0.write_all(text).await.unwrap();
            client.replies(3).await;
        } else {
            let commands = format!("{envelope}DATA\r\n");
            client.0.write_all(commands.as_bytes()).await.unwrap();
            client.replies(3).await;
            client.0.write_all(&message).await.unwrap();
            client.replies(1).await;
        }
        timeout(PATIENCE, taken.notified()).await.unwrap();
        timeout(PATIENCE, store.synced(told.syncs + 2)).await.unwrap();
        // What follows the settle.
        for _ in 0..20 {
            yield_now().await;
        }
        let (after, now) = (asked(), store.told());
        if number >= WARM_UP {
            all.push(Counts::from([
                ("allocations", after.times - before.times),
                ("allocated-octets", after.octets - before.octets),
                ("body-sized-allocations", after.of_body_size - before.of_body_size),
                ("moved-octets", after.moved - before.moved),
                ("batches", now.batches - told.batches),
                ("syncs", now.syncs - told.syncs),
                ("batch-octets", now.octets - told.octets),
                ("copied-octets", now.copied - told.copied),
                ("keys-written", now.writes - told.writes),
                ("store-reads", now.reads - told.reads),
            ]));
        }
    }
    for site in allocator::sites() {
        println!("{site}");
    }
    let told = |what| {
        let mut counts: Vec<u64> = all.iter().map(|counts| counts[what]).collect();
        counts.sort_unstable();
        let at = if EACH.contains(&what) {
            counts.len() - 1
        } else {
            counts.len() / 2
        };
        counts[at]
    };
    let names = all[0].keys().copied();
    names.map(|what| (what, told(what))).collect()
}

/// With the final dot.
fn message(body_bytes: usize) -> Vec<u8> {
    let header = "From: App <a@from.test>\r\nTo: b@to.test\r\nSubject: counted\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n\
                  Message-ID: <1@from.test>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n";
    let line = "A line of a message as it is sent many times a day, 72 octets of it.  \r\n";
    let mut text = header.to_owned();
    while text.len() < body_bytes {
        text.push_str(line);
    }
    text.push_str(".\r\n");
    text.into_bytes()
}

struct Client(TcpStream);

impl Client {
    /// Reads so many replies, none of them a refusal.
    async fn replies(&mut self, count: usize) {
        let mut said = Vec::new();
        let last_line = |line: &&[u8]| matches!(line, [b'2' | b'3', _, _, b' ', .., b'\r']);
        while said.split(|&octet| octet == b'\n').filter(last_line).count() < count {
            let read = timeout(PATIENCE, self.0.read_buf(&mut said)).await;
            assert!(
                read.unwrap().unwrap() > 0,
                "hung up after {}",
                said.escape_ascii()
            );
            let refused = said.starts_with(b"4") || said.starts_with(b"5");
            assert!(!refused, "{}", said.escape_ascii());
        }
    }
}

/// Takes what comes, one connection after another.
struct NextHop {
    address: SocketAddr,
    taken: Arc<Notify>,
}

impl NextHop {
    async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(Notify::new());
        let told = taken.clone();
        drop(spawn_local(Uncounted::new(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                // A client that hangs up has what it wanted.
                let _ = serve(stream, &told).await;
            }
        })));
        Self { address, taken }
    }
}

async fn serve(mut stream: TcpStream, taken: &Notify) -> io::Result<()> {
    stream.write_all(b"220 to.test\r\n").await?;
    let (mut input, mut within) = (Vec::new(), false);
    loop {
        let end: &[u8] = if within { b"\r\n.\r\n" } else { b"\r\n" };
        let Some(at) = memchr::memmem::find(&input, end) else {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let line: Vec<u8> = input.drain(..at + end.len()).collect();
        let answer: &[u8] = match &line[..4] {
            _ if within => b"250 2.0.0 kept\r\n",
            b"EHLO" => b"250-to.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
            b"DATA" => b"354 go\r\n",
            b"QUIT" => b"221 bye\r\n",
            _ => b"250 2.1.0 ok\r\n",
        };
        stream.write_all(answer).await?;
        if std::mem::replace(&mut within, line.starts_with(b"DATA")) {
            taken.notify_one();
        }
    }
}

/// An Internet in which every domain has one host.
#[derive(Clone)]
struct OneHost(SocketAddr);

impl Net for OneHost {
    type Stream = TcpStream;

    async fn mx(&self, domain: &Domain) -> Result<MxAnswer, DnsError> {
        let host = uncounted(|| format!("mx.{domain}").parse().unwrap());
        Ok(MxAnswer::Hosts(vec![MxHost { preference: 10, host }]))
    }

    async fn addresses(&self, _: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }

    async fn connect(&self, _: LocalEnd<'_>, _: SocketAddr) -> Result<TcpStream, ConnectError> {
        let stream = TcpStream::connect(self.0).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn is_here(&self, _: IpAddr) -> bool {
        false
    }
}
