//! The delivery side on a made-up Internet and a virtual clock: the real shard, lanes, connections and queue records, with
//! DNS, peers, time and chance in the test's hand. No test here takes longer than its computing.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use dkim_signer::Signer;
use faulty::{Fault, Phase};
use mail_core::{BodyType, Domain, DsnOptions, MessageId, Notify, Recipient, ReversePath, Timestamp};
use queue::store::MemoryStore;
use queue::{EventKind, NewMessage, Origin, Queue, RouteGroup};
use relay::config::{self, Settings};
use relay::control::QueueControl;
use relay::delivery::client_tls::ClientTls;
use relay::delivery::courier::{self, Parts};
use relay::delivery::exchange::{self, Doors};
use relay::delivery::metrics::Metrics;
use relay::metrics::Registry;
use relay::prepare::{self, Preparer};
use relay::routing::{Routing, Sender};
use relay::world::{Clock, ConnectError, DnsError, LocalEnd, MxAnswer, MxHost, Net, Random};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

#[path = "simulation/adapt.rs"]
mod adapt;
#[path = "simulation/classes.rs"]
mod classes;
#[path = "simulation/clock.rs"]
mod clock;
#[path = "simulation/damage.rs"]
mod damage;
#[path = "simulation/deadlines.rs"]
mod deadlines;
#[path = "simulation/faulty.rs"]
mod faulty;
#[path = "simulation/hammer.rs"]
mod hammer;
#[path = "simulation/holes.rs"]
mod holes;
#[path = "simulation/lists.rs"]
mod lists;
#[path = "simulation/names.rs"]
mod names;
#[path = "simulation/operator.rs"]
mod operator;
#[path = "simulation/poison.rs"]
mod poison;
#[path = "simulation/resets.rs"]
mod resets;
#[path = "simulation/scan.rs"]
mod scan;
#[path = "simulation/streams.rs"]
mod streams;

/// More than there are sites in most tests, so that queues are lent.
const SHARDS: usize = 3;

const START: Timestamp = Timestamp(1_700_000_000_000);

/// All worlds', which is made once: it reads the system's certificate authorities. No handshake here comes to its end, so no world learns
/// of another by it.
static TLS: LazyLock<Arc<ClientTls>> = LazyLock::new(|| Arc::new(ClientTls::new(None).unwrap()));

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Host {
    /// Takes everything.
    Takes,
    /// Nothing listens.
    Dead,
    /// Greets with this.
    Greets(&'static str),
    /// Takes connections and says nothing.
    Silent,
    /// Takes the message, and hangs up instead of saying so, the first time.
    HangsUpAfterDot,
    /// Says this to RCPT.
    Rcpt(&'static str),
    /// Takes everything, but thinks for a minute about the final dot.
    Slow,
    /// Says this to RCPT, so long after it was asked.
    RcptAfter(Duration, &'static str),
    /// The relay panics when it connects.
    Panics,
    /// From this long after the start on it bears so many conversations at once, and says 421 to the others at the next word. It takes
    /// five seconds for each message.
    Crowded(Duration, usize),
    /// Greets with this until so long after the start, and takes everything then.
    GreetsUntil(Duration, &'static str),
    /// Greets nobody before so long after the start, and takes everything then.
    GreetsFrom(Duration),
    /// Nothing listens until so long after the start.
    DeadUntil(Duration),
    /// Greets who comes from 192.0.2 and this with these words.
    Blocks(u8, &'static str),
    /// Connections are never answered.
    BlackHole,
    /// Says this to RCPT of addresses that begin so.
    Picky(&'static str, &'static str),
    /// Something goes wrong at one place of each conversation that begins within so long after the start.
    Faulty(Fault, Phase, Duration),
    /// Of conversations that begin within so long after the start, so many in a hundred are reset somewhere.
    Shaky(usize, Duration),
    /// Tells of LIMITS: so many recipients a transaction, so many transactions a connection. It says these words to addresses that begin
    /// so.
    Few(usize, usize, (&'static str, &'static str)),
    /// Says 421 after each message.
    Leaves,
}

/// A message as a host has it: when, where, and for whom.
type Taken = (Instant, usize, Vec<String>);

#[derive(Clone)]
struct SimNet(Rc<World>);

#[derive(Default)]
struct World {
    mx: HashMap<String, MxAnswer>,
    /// From this long after the start on, all of `d*.test` is here.
    moves: Option<(Duration, MxAnswer)>,
    begun: Cell<Option<Instant>>,
    /// The host `hN.test` has the address 10.0.0.N.
    hosts: Vec<Host>,
    taken: RefCell<Vec<Taken>>,
    connections: RefCell<Vec<usize>>,
    connected: RefCell<Vec<(Instant, usize)>>,
    came_from: RefCell<Vec<(Option<IpAddr>, usize)>>,
    open: Cell<usize>,
    most_open: Cell<usize>,
    doubted: RefCell<bool>,
    /// By host, conversations that it bears.
    borne: RefCell<HashMap<usize, usize>>,
    /// When somebody was told 421.
    too_many: RefCell<Vec<Instant>>,
    /// What name servers say instead of `mx`, by domain, the time since the start, and how often it was asked for before.
    names: Option<names::Says>,
    /// From this long after the start to that long, no host has an address.
    no_address: Option<(Duration, Duration)>,
    /// The domains that the name servers were asked for, and how long after the start.
    questions: RefCell<Vec<(Duration, String)>>,
    /// By host, connections and tries of connections: now, and at most.
    slots: RefCell<HashMap<usize, (usize, usize)>>,
    chance: Option<Random>,
}

impl World {
    fn since_begin(&self) -> Duration {
        self.begun.get().map(|begun| begun.elapsed()).unwrap_or_default()
    }

    /// Whether it is too much for the host that one more speaks to it, or goes on.
    fn is_crowded(&self, number: usize, own: usize) -> bool {
        let Host::Crowded(from, most) = self.hosts[number] else {
            return false;
        };
        let borne = self.borne.borrow().get(&number).copied().unwrap_or(0);
        let crowded = self.since_begin() >= from && borne + 1 - own > most;
        if crowded {
            self.too_many.borrow_mut().push(Instant::now());
        }
        crowded
    }
}

impl Net for SimNet {
    type Stream = poison::Wire;

    async fn mx(&self, domain: &Domain) -> Result<MxAnswer, DnsError> {
        let unknown = || DnsError {
            question: format!("{domain} MX"),
            cause: "SERVFAIL".into(),
        };
        let begun = self.0.begun.get().unwrap_or_else(Instant::now);
        self.0.begun.set(Some(begun));
        if let Some(says) = &self.0.names {
            return names::answer(&self.0, says, domain).await;
        }
        if let Some((after, answer)) = &self.0.moves
            && domain.as_str().starts_with('d')
            && begun.elapsed() >= *after
        {
            return Ok(answer.clone());
        }
        self.0.mx.get(domain.as_str()).cloned().ok_or_else(unknown)
    }

    async fn addresses(&self, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        let number = host
            .as_str()
            .trim_start_matches('h')
            .split('.')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let since = self.0.since_begin();
        if let Some((from, to)) = self.0.no_address
            && (from..to).contains(&since)
        {
            return Ok(Vec::new());
        }
        Ok(vec![Ipv4Addr::new(10, 0, 0, number).into()])
    }

    async fn connect(&self, from: LocalEnd<'_>, to: SocketAddr) -> Result<poison::Wire, ConnectError> {
        let IpAddr::V4(address) = to.ip() else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let number = usize::from(address.octets()[3]);
        self.0.connections.borrow_mut().push(number);
        self.0.connected.borrow_mut().push((Instant::now(), number));
        let from = from.address;
        self.0.came_from.borrow_mut().push((from, number));
        let slot = faulty::Slot::taken(&self.0, number);
        match self.0.hosts[number] {
            Host::Faulty(Fault::Silence, Phase::Connect, until) if self.0.since_begin() < until => {
                sleep(Duration::from_secs(86_400)).await;
            }
            Host::Dead => return Err(io::ErrorKind::ConnectionRefused.into()),
            Host::DeadUntil(then) if self.0.since_begin() < then => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Host::BlackHole => sleep(Duration::from_secs(86_400)).await,
            _ => {}
        }
        assert!(
            self.0.hosts[number] != Host::Panics,
            "a mistake, made for the test"
        );
        let (ours, theirs) = duplex(faulty::width(&self.0.hosts[number]));
        let world = self.0.clone();
        // How a conversation ends is seen on the other side.
        drop(spawn_local(async move {
            world.open.update(|open| open + 1);
            world.most_open.set(world.most_open.get().max(world.open.get()));
            adapt::converse(&world, number, theirs, from).await;
            world.open.update(|open| open - 1);
        }));
        Ok(poison::Wire(ours, slot))
    }

    fn is_here(&self, _: IpAddr) -> bool {
        false
    }
}

async fn converse(world: &World, number: usize, stream: DuplexStream) -> io::Result<()> {
    let host = world.hosts[number];
    let mut peer = BufReader::new(stream);
    if let Some(fault) = faulty::of(world, host) {
        return faulty::converse(world, number, peer, fault).await;
    }
    if host == Host::Silent {
        sleep(Duration::from_secs(86_400)).await;
    }
    if let Host::GreetsFrom(then) = host {
        sleep(then.saturating_sub(world.since_begin())).await;
    }
    let greeting = match host {
        Host::Greets(words) => words,
        Host::GreetsUntil(then, words) if world.since_begin() < then => words,
        _ => "220 hello",
    };
    say(&mut peer, greeting).await?;
    let mut to = Vec::new();
    loop {
        let mut line = String::new();
        if peer.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        match line.get(..4).unwrap_or_default() {
            "MAIL" if world.is_crowded(number, 1) => return adapt::too_many(&mut peer).await,
            "EHLO" => {
                say(&mut peer, "250-hN\r\n250-PIPELINING").await?;
                if let Host::Few(recipients, messages, _) = host {
                    let limits = format!("250-LIMITS RCPTMAX={recipients} MAILMAX={messages}");
                    say(&mut peer, &limits).await?;
                }
                say(&mut peer, "250 8BITMIME").await?;
            }
            "RCPT" => match host {
                Host::Rcpt(words) => say(&mut peer, words).await?,
                Host::RcptAfter(wait, words) => {
                    sleep(wait).await;
                    say(&mut peer, words).await?;
                }
                Host::Picky(begin, words) | Host::Few(_, _, (begin, words))
                    if line.contains(&format!("<{begin}")) =>
                {
                    say(&mut peer, words).await?
                }
                _ => {
                    to.push(
                        line.trim()
                            .trim_start_matches("RCPT TO:<")
                            .trim_end_matches('>')
                            .to_owned(),
                    );
                    say(&mut peer, "250 ok").await?;
                }
            },
            "DATA" => {
                say(&mut peer, "354 go").await?;
                while line != ".\r\n" {
                    line.clear();
                    if peer.read_line(&mut line).await? == 0 {
                        return Ok(());
                    }
                }
                match host {
                    Host::Slow => sleep(MINUTE).await,
                    Host::Crowded(..) => sleep(Duration::from_secs(5)).await,
                    _ => {}
                }
                if !to.is_empty() {
                    world
                        .taken
                        .borrow_mut()
                        .push((Instant::now(), number, std::mem::take(&mut to)));
                }
                if host == Host::HangsUpAfterDot && !world.doubted.replace(true) {
                    return Ok(());
                }
                say(&mut peer, "250 kept").await?;
                if host == Host::Leaves {
                    return say(&mut peer, "421 4.3.2 come again").await;
                }
            }
            "QUIT" => return say(&mut peer, "221 bye").await,
            _ => say(&mut peer, "250 ok").await?,
        }
    }
}

async fn say(peer: &mut BufReader<DuplexStream>, words: &str) -> io::Result<()> {
    peer.get_mut().write_all(format!("{words}\r\n").as_bytes()).await
}

fn hosts(preferences: &[(u16, usize)]) -> MxAnswer {
    let host = |&(preference, number)| MxHost {
        preference,
        host: format!("h{number}.test").parse().unwrap(),
    };
    MxAnswer::Hosts(preferences.iter().map(host).collect())
}

fn settings(delivery: &str) -> Arc<Settings> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\nexpire_after = \"1h\"\n[tenants.t]\nsenders = [\"*\"]\n\
         [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
         [delivery.retry]\nfirst = \"1m\"\ncap = \"10m\"\njitter = 0.0\n{delivery}"
    );
    std::fs::write(&path, text).unwrap();
    Arc::new(config::load(&path).unwrap())
}

/// Runs the delivery side over `world` with one message for each of `recipients`, for `span` of virtual time.
fn deliver(world: World, delivery: &str, recipients: &[&str], span: Duration) -> (Rc<World>, Queue) {
    let (world, store) = (Rc::new(world), MemoryStore::new());
    let queue = live(&world, &store, START, delivery, async |relay| {
        relay.take_in(recipients).await;
        sleep(span).await;
    });
    (world, queue)
}

/// A delivery side at work.
struct Running {
    control: QueueControl,
    world: Rc<World>,
    queue: Queue,
    doors: Doors,
    routing: Arc<Routing>,
    taken_in: Cell<u16>,
    since: Timestamp,
}

impl Running {
    /// A message for each.
    async fn take_in(&self, recipients: &[&str]) {
        self.take_in_as(("t", "transactional"), recipients).await;
    }

    /// As [`Self::take_in`], of this tenant and stream.
    async fn take_in_as(&self, of: (&str, &str), recipients: &[&str]) {
        for recipient in recipients {
            self.take_in_one(of, &[recipient]).await;
        }
    }

    /// One message for all of them.
    async fn take_in_one(&self, (tenant, stream): (&str, &str), recipients: &[&str]) {
        let number = self.taken_in.get();
        self.taken_in.set(number + 1);
        let message = NewMessage {
            tenant: tenant.into(),
            stream: stream.into(),
            ..message_to(number, recipients, &self.routing, self.since)
        };
        let message = Arc::new(message);
        let kept = self.queue.accept(message).await.unwrap();
        self.doors.tell(&kept.units, None).await;
    }
}

/// Runs the delivery side on what `store` holds, from `begin` on, for as long as something is done with it.
fn live(
    world: &Rc<World>,
    store: &MemoryStore,
    begin: Timestamp,
    delivery: &str,
    during: impl AsyncFnOnce(&Running),
) -> Queue {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let (net, of_courier, settings) = (SimNet(world.clone()), queue.clone(), settings(delivery));
    LocalSet::new().block_on(&runtime, async move {
        let clock = Clock::anchored(begin);
        let registry = Registry::new();
        let signer = Arc::new(Signer::default());
        let preparer = Preparer::inline(
            of_courier.clone(),
            signer,
            prepare::Metrics::new(&registry).unwrap(),
        );
        let tls = TLS.clone();
        let (metrics, random) = (Metrics::new(&registry).unwrap(), Random::seeded(7));
        let routing = Arc::new(Routing::open(settings.clone(), &of_courier).unwrap());
        let (doors, seats) = exchange::open(SHARDS);
        let (stop, stopped) = watch::channel(false);
        let rates = Arc::<relay::submission::rates::Rates>::default();
        let run = |seat| {
            let parts = Parts {
                net: net.clone(),
                preparer: preparer.clone(),
                tls: tls.clone(),
                metrics: metrics.clone(),
                rates: rates.clone(),
                clock,
                random: random.clone(),
                queue: of_courier.clone(),
                settings: settings.clone(),
                routing: routing.clone(),
            };
            spawn_local(courier::run(parts, seat, stopped.clone()))
        };
        let shards: Vec<_> = seats.into_iter().map(run).collect();
        let relay = Running {
            control: QueueControl::new(of_courier.clone(), doors.clone(), clock)
                .with_settings(move || settings.clone()),
            world: net.0.clone(),
            queue: of_courier,
            doors,
            routing,
            taken_in: Cell::default(),
            since: begin,
        };
        during(&relay).await;
        stop.send(true).unwrap();
        for shard in shards {
            shard.await.unwrap();
        }
    });
    queue
}

fn message(number: u16, recipient: &str, routing: &Routing, now: Timestamp) -> NewMessage {
    message_to(number, &[recipient], routing, now)
}

/// Placed by the rules; what is for `lost.test` goes by a way that is not configured.
fn message_to(number: u16, recipients: &[&str], routing: &Routing, now: Timestamp) -> NewMessage {
    let recipient = |address: &&str| {
        let mut recipient = Recipient::new(address.parse().unwrap());
        // Of these the sender wants to hear of delays, too.
        recipient.notify = (recipient.mailbox.local() == "tell").then_some(Notify::On {
            success: false,
            failure: true,
            delay: true,
        });
        recipient
    };
    let recipients: Vec<_> = recipients.iter().map(recipient).collect();
    let reverse_path = ReversePath::Mailbox("sender@back.test".parse().unwrap());
    let mut random = [0; 10];
    random[8..].copy_from_slice(&number.to_be_bytes());
    let sender = Sender {
        tenant: "t",
        stream: Some("transactional"),
        reverse_path: &reverse_path,
    };
    let mut units = routing.place(sender, &recipients).due(now);
    for unit in units
        .iter_mut()
        .filter(|unit| unit.domain.as_str() == "lost.test")
    {
        unit.route_group = RouteGroup(77);
    }
    NewMessage {
        id: MessageId::new(now, &random),
        received_at: now,
        expires_at: now + Duration::from_secs(3_600),
        tenant: "t".into(),
        stream: "transactional".into(),
        reverse_path,
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        transfer: Default::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::from_static(b"Received: by relay.test\r\n"),
        body: Bytes::from_static(b"From: sender@back.test\r\nSubject: hi\r\n\r\nhello\r\n"),
        rest: None,
        origin: Origin::default(),
        cause: None,
        units,
    }
}

/// A world whose `to.test` has these hosts, and whose reports come back to a host of their own, number 9.
fn world(answer: MxAnswer, first_hosts: &[Host]) -> World {
    let mut all = vec![Host::Takes; 10];
    all[..first_hosts.len()].copy_from_slice(first_hosts);
    let mx = HashMap::from([
        ("to.test".to_owned(), answer),
        ("back.test".to_owned(), hosts(&[(1, 9)])),
    ]);
    World {
        mx,
        hosts: all,
        ..World::default()
    }
}

fn kinds(queue: &Queue) -> Vec<EventKind> {
    queue
        .events(0, 99_999)
        .unwrap()
        .into_iter()
        .map(|(_, event)| event.kind)
        .collect()
}

fn is_empty(queue: &Queue) -> bool {
    queue
        .queues(None, 99)
        .unwrap()
        .iter()
        .all(|(_, record)| record.count == 0)
}

fn units(queue: &Queue) -> u64 {
    queue
        .queues(None, 1_000)
        .unwrap()
        .iter()
        .map(|(_, queue)| queue.count)
        .sum()
}

fn reports(world: &World) -> usize {
    world
        .taken
        .borrow()
        .iter()
        .filter(|(_, host, _)| *host == 9)
        .count()
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_dead_host_leaves_the_mail_to_the_next_one() {
    for first in [
        Host::Dead,
        Host::Greets("554 not here"),
        Host::Greets("421 busy"),
        Host::Silent,
    ] {
        let world = world(hosts(&[(10, 0), (20, 1)]), &[first, Host::Takes]);
        let (world, queue) = deliver(world, "", &["a@to.test"], 8 * MINUTE);
        let taken: Vec<_> = world
            .taken
            .borrow()
            .iter()
            .map(|(_, host, to)| (*host, to.clone()))
            .collect();
        assert_eq!(taken, [(1, vec!["a@to.test".to_owned()])], "{first:?}");
        assert_eq!(
            kinds(&queue),
            [EventKind::Accepted, EventKind::Delivered],
            "{first:?}"
        );
        assert!(is_empty(&queue));
    }
}

#[test]
fn every_host_refusing_for_good_is_a_bounce_and_one_refusing_for_now_is_not() {
    let all = world(
        hosts(&[(10, 0), (20, 1)]),
        &[Host::Greets("554 no"), Host::Greets("550 no")],
    );
    let (all, queue) = deliver(all, "", &["a@to.test"], MINUTE);
    assert_eq!(reports(&all), 1);
    assert_eq!(kinds(&queue)[..2], [EventKind::Accepted, EventKind::Bounced]);
    let one = world(
        hosts(&[(10, 0), (20, 1)]),
        &[Host::Greets("554 no"), Host::Greets("421 busy")],
    );
    let (one, queue) = deliver(one, "", &["a@to.test"], MINUTE / 2);
    assert_eq!(reports(&one), 0);
    assert!(!kinds(&queue).contains(&EventKind::Bounced));
}

#[test]
fn no_such_domain_and_null_mx_bounce_without_a_connection() {
    for answer in [MxAnswer::NoDomain, MxAnswer::Null] {
        let (world, queue) = deliver(world(answer, &[]), "", &["a@to.test"], MINUTE);
        assert_eq!(*world.connections.borrow(), [9], "only the report goes out");
        assert_eq!(reports(&world), 1);
        assert!(is_empty(&queue));
    }
}

#[test]
fn a_name_server_that_fails_touches_no_message() {
    let (world, queue) = deliver(World::default(), "", &["a@to.test", "b@to.test"], 30 * MINUTE);
    assert!(world.connections.borrow().is_empty());
    // One event for each time the destination was found at rest, none of a message's own.
    let own = queue
        .events(0, 99)
        .unwrap()
        .into_iter()
        .filter(|(_, event)| event.id.is_some())
        .count();
    assert_eq!(own, 2, "accepted, twice");
    assert!(
        queue
            .message(MessageId::new(START, &[0; 10]))
            .unwrap()
            .unwrap()
            .units[0]
            .state
            .is_none()
    );
}

#[test]
fn a_reply_lost_after_the_dot_is_in_doubt_and_tried_again() {
    let world = world(hosts(&[(10, 0)]), &[Host::HangsUpAfterDot]);
    let (world, queue) = deliver(world, "", &["a@to.test"], 5 * MINUTE);
    assert_eq!(
        world.taken.borrow().len(),
        2,
        "the copy that could not be told from none"
    );
    assert_eq!(
        kinds(&queue)
            .iter()
            .filter(|&&kind| kind == EventKind::InDoubt)
            .count(),
        1
    );
    assert_eq!(kinds(&queue).last(), Some(&EventKind::Delivered));
    assert!(is_empty(&queue));
}

#[test]
fn what_is_put_off_again_and_again_expires_with_a_report() {
    for host in [Host::Rcpt("450 4.2.1 later"), Host::Dead] {
        let world = world(hosts(&[(10, 0)]), &[host]);
        let (world, queue) = deliver(world, "", &["a@to.test"], 70 * MINUTE);
        assert!(
            kinds(&queue).contains(&EventKind::Expired),
            "{host:?}: {:?}",
            kinds(&queue)
        );
        let events = queue.events(0, 99).unwrap();
        let mut expired = events
            .iter()
            .filter(|(_, event)| event.kind == EventKind::Expired);
        let late = expired.next().unwrap().1.at.since(START + 60 * MINUTE);
        assert!(
            late < Duration::from_secs(5),
            "{host:?}: {late:?} after its deadline"
        );
        assert_eq!(reports(&world), 1, "{host:?}");
        assert!(is_empty(&queue), "{host:?}");
        let tries = world
            .connections
            .borrow()
            .iter()
            .filter(|&&number| number == 0)
            .count();
        // 1, 2, 4, 8 and then every 10 minutes: no storm.
        assert!((5..=12).contains(&tries), "{host:?}: {tries} tries");
    }
}

#[test]
fn a_rate_is_kept_to() {
    let recipients: Vec<String> = (0..30).map(|number| format!("r{number}@to.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let limits = "[delivery.limits]\nmessages_per_second = 2\nconnections = 5\n";
    let (world, queue) = deliver(
        world(hosts(&[(10, 0)]), &[Host::Takes]),
        limits,
        &recipients,
        MINUTE,
    );
    let taken = world.taken.borrow();
    assert_eq!(taken.len(), 30);
    for pair in taken.windows(2) {
        let gap = pair[1].0 - pair[0].0;
        assert!(gap >= Duration::from_millis(499), "{gap:?} between two messages");
    }
    assert!(
        taken[29].0 - taken[0].0 <= Duration::from_millis(14_600),
        "tokens were left unspent"
    );
    assert!(is_empty(&queue));
}

/// What was let through by and by does not go out all at once.
#[test]
fn a_rate_is_kept_to_where_all_connections_come_about_at_one_moment() {
    let recipients: Vec<String> = (0..30).map(|number| format!("r{number}@to.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    for limits in [
        "[delivery.limits]\nmessages_per_second = 1\nconnections = 20\n",
        "[[limit]]\nsite = \"*\"\nmessages_per_second = 1\n[delivery.limits]\nconnections = 20\n",
    ] {
        let host = Host::GreetsFrom(Duration::from_secs(20));
        let (world, queue) = deliver(world(hosts(&[(10, 0)]), &[host]), limits, &recipients, 2 * MINUTE);
        let taken = world.taken.borrow();
        assert_eq!(taken.len(), 30);
        for pair in taken.windows(2) {
            let gap = pair[1].0 - pair[0].0;
            assert!(gap >= Duration::from_millis(980), "{gap:?} between two messages");
        }
        assert!(is_empty(&queue));
    }
}

/// Forty domains whose mail one host takes.
fn hosted(host: Host) -> World {
    let mut world = world(hosts(&[(10, 0)]), &[host]);
    for number in 0..40 {
        world.mx.insert(format!("d{number}.test"), hosts(&[(10, 0)]));
    }
    world
}

#[test]
fn a_sites_limits_hold_however_many_domains_and_shards_there_are() {
    let recipients: Vec<String> = (0..40).map(|number| format!("r@d{number}.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let limits = "[delivery.limits]\nmessages_per_second = 2\nconnections = 1\n";
    let (world, queue) = deliver(hosted(Host::Takes), limits, &recipients, MINUTE);
    assert!(is_empty(&queue));
    let taken = world.taken.borrow();
    assert_eq!(taken.len(), 40, "each once");
    for pair in taken.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= Duration::from_millis(499));
    }
    assert_eq!(
        world.connections.borrow().len(),
        1,
        "one connection for all of them"
    );
}

#[test]
fn connections_are_counted_over_all_shards() {
    let mut world = world(hosts(&[(10, 0)]), &[]);
    for number in 0..9 {
        world.mx.insert(format!("d{number}.test"), hosts(&[(10, number)]));
    }
    let recipients: Vec<String> = (0..36)
        .map(|number| format!("r{number}@d{}.test", number % 9))
        .collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let (world, queue) = deliver(world, "[delivery]\nmax_connections = 2\n", &recipients, MINUTE);
    assert!(is_empty(&queue));
    assert_eq!(world.taken.borrow().len(), 36, "each once");
    assert_eq!(world.most_open.get(), 2);
}

#[test]
fn what_expires_while_another_shard_has_it_ends_once() {
    let recipients: Vec<String> = (0..40).map(|number| format!("r@d{number}.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let (world, queue) = deliver(
        hosted(Host::Rcpt("450 4.2.1 later")),
        "",
        &recipients,
        70 * MINUTE,
    );
    assert!(is_empty(&queue));
    let expired = kinds(&queue)
        .into_iter()
        .filter(|&kind| kind == EventKind::Expired);
    assert_eq!(expired.count(), 40);
    assert_eq!(reports(&world), 40);
}

/// CASES row 36: also where nothing can be tried, and whichever shard has the queue. Once, and nothing is put off by it.
#[test]
fn a_delay_is_told_of_whatever_keeps_the_mail() {
    let recipients: Vec<String> = (0..40).map(|number| format!("tell@d{number}.test")).collect();
    let mut recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    recipients.push("silent@to.test");
    let notice = "[delivery]\ndelay_notice_after = \"20m\"\n";
    for host in [Host::Dead, Host::Rcpt("450 4.2.1 later")] {
        let (world, queue) = deliver(hosted(host), notice, &recipients, 19 * MINUTE);
        assert_eq!(reports(&world), 0, "{host:?}: too early");
        assert_eq!(units(&queue), 41, "{host:?}");
        let (world, queue) = deliver(hosted(host), notice, &recipients, 40 * MINUTE);
        assert_eq!(reports(&world), 40, "{host:?}");
        assert_eq!(units(&queue), 41, "{host:?}: all still wait");
        let (world, queue) = deliver(hosted(host), notice, &recipients, 80 * MINUTE);
        assert_eq!(reports(&world), 40 + 41, "{host:?}: each once, then the failures");
        assert!(is_empty(&queue), "{host:?}");
    }
}

#[test]
fn a_queue_goes_with_its_domain_to_another_site() {
    let recipients: Vec<String> = (0..40).map(|number| format!("r@d{number}.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let mut world = hosted(Host::Rcpt("450 4.2.1 later"));
    world.moves = Some((10 * MINUTE, hosts(&[(10, 1)])));
    let (world, queue) = deliver(world, "", &recipients, 40 * MINUTE);
    assert!(is_empty(&queue));
    let taken = world.taken.borrow();
    assert_eq!(taken.len(), 40, "each once");
    assert!(taken.iter().all(|(_, host, _)| *host == 1));
}

#[test]
fn what_a_rule_discards_ends_without_a_connection_or_a_report() {
    let rules = "[[route]]\nto = [\"to.test\"]\nnext_hop = \"discard\"\nreason = \"test domain\"\n";
    let (world, queue) = deliver(world(hosts(&[(1, 1)]), &[]), rules, &["x@to.test"], MINUTE);
    assert_eq!(kinds(&queue), [EventKind::Accepted, EventKind::Discarded]);
    let events = queue.events(0, 9).unwrap();
    assert_eq!(events[1].1.reply, "test domain");
    assert_eq!(world.connections.borrow().len(), 0);
    assert!(is_empty(&queue));
}

#[test]
fn reports_go_by_the_rules_too() {
    let rules = "[[route]]\nfrom = [\"<>\"]\nnext_hop = \"discard\"\nreason = \"no reports\"\n";
    let refuses = world(
        hosts(&[(1, 1)]),
        &[Host::Takes, Host::Rcpt("550 5.1.1 no such user")],
    );
    let (world, queue) = deliver(refuses, rules, &["x@to.test"], MINUTE);
    assert_eq!(reports(&world), 0);
    assert!(kinds(&queue).contains(&EventKind::Discarded));
    assert!(is_empty(&queue));
}

#[test]
fn mail_whose_next_hop_is_gone_from_the_configuration_waits_and_goes_no_other_way() {
    let mut world = world(hosts(&[(1, 1)]), &[]);
    world.mx.insert("lost.test".to_owned(), hosts(&[(1, 1)]));
    let (world, queue) = deliver(world, "", &["x@lost.test", "x@to.test"], 30 * MINUTE);
    let (_, hold) = queue.holds(9).unwrap().remove(0);
    assert!(
        hold.cause.contains("route group 77 is not configured any more"),
        "{}",
        hold.cause
    );
    assert_eq!(world.taken.borrow().len(), 1, "only the other one");
    assert!(!is_empty(&queue));
}

#[test]
fn and_expires_with_a_report_that_says_so() {
    let (world, queue) = deliver(world(hosts(&[(1, 1)]), &[]), "", &["x@lost.test"], 70 * MINUTE);
    assert!(kinds(&queue).contains(&EventKind::Expired));
    assert_eq!(reports(&world), 1);
    assert!(is_empty(&queue));
}

/// Two hosts under one name, h3 before h4, and all of `to.test` through them.
const SMART: &str = "[[route]]\nto = [\"to.test\", \"*.to.test\"]\nnext_hop = \"out\"\n[[smart_host]]\nname = \"out\"\n\
    hosts = [{ host = \"h3.test\" }, { address = \"10.0.0.4\", priority = 5 }]\n";

#[test]
fn a_smart_host_takes_what_rules_send_it_and_its_second_steps_in() {
    let mut all = world(hosts(&[(1, 1)]), &[]);
    all.mx.insert("other.test".to_owned(), hosts(&[(1, 1)]));
    let (world, queue) = deliver(
        all,
        SMART,
        &["x@to.test", "y@sub.to.test", "z@other.test"],
        MINUTE,
    );
    let mut taken: Vec<_> = world
        .taken
        .borrow()
        .iter()
        .map(|(_, host, to)| (*host, to.join(" ")))
        .collect();
    taken.sort();
    let expected = [(1, "z@other.test"), (3, "x@to.test"), (3, "y@sub.to.test")];
    assert_eq!(taken, expected.map(|(host, to)| (host, to.to_owned())));
    assert!(is_empty(&queue));

    let mut all = world_of_smart(Host::Dead, Host::Takes);
    all.mx.remove("to.test");
    let (world, queue) = deliver(all, SMART, &["x@to.test"], MINUTE);
    assert_eq!(
        world.taken.borrow()[0].1,
        4,
        "and the DNS was not asked where to.test is"
    );
    assert!(is_empty(&queue));
}

fn world_of_smart(third: Host, fourth: Host) -> World {
    world(
        hosts(&[(1, 1)]),
        &[Host::Takes, Host::Takes, Host::Takes, third, fourth],
    )
}

#[test]
fn a_smart_host_that_does_not_want_us_bounces_nothing() {
    for (words, code) in [("554 5.7.1 you are blocked", "554"), ("421 busy", "421")] {
        let refuses = world_of_smart(Host::Greets(words), Host::Greets(words));
        let (world, queue) = deliver(refuses, SMART, &["x@to.test"], 30 * MINUTE);
        assert_eq!(world.taken.borrow().len(), 0);
        assert!(!kinds(&queue).contains(&EventKind::Bounced));
        let (_, hold) = queue.holds(9).unwrap().remove(0);
        assert!(hold.cause.contains(code), "{}", hold.cause);
        assert!(!is_empty(&queue));
    }
}

#[test]
fn a_smart_host_that_asks_for_a_login_rests_and_what_it_says_of_recipients_counts() {
    let asks = Host::Rcpt("530 5.7.0 authentication required");
    let (_, queue) = deliver(world_of_smart(asks, asks), SMART, &["x@to.test"], 3 * MINUTE);
    let (_, hold) = queue.holds(9).unwrap().remove(0);
    assert!(
        hold.cause.starts_with("4.7.0 ") && hold.cause.contains("530 5.7.0"),
        "{}",
        hold.cause
    );
    assert!(!kinds(&queue).contains(&EventKind::Bounced));

    let unknown = Host::Rcpt("550 5.1.1 no such user");
    let (world, queue) = deliver(world_of_smart(unknown, unknown), SMART, &["x@to.test"], MINUTE);
    assert!(kinds(&queue).contains(&EventKind::Bounced));
    assert_eq!(reports(&world), 1);
}

#[test]
fn a_smart_hosts_limits_hold_whatever_goes_through_it() {
    let limits = format!("{SMART}[smart_host.limits]\nconnections = 2\nmessages_per_second = 1\n");
    let recipients: Vec<_> = (0..20).map(|number| format!("x@d{number}.to.test")).collect();
    let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
    let (world, _) = deliver(
        world_of_smart(Host::Takes, Host::Takes),
        &limits,
        &recipients,
        MINUTE,
    );
    assert!(world.most_open.get() <= 2, "{}", world.most_open.get());
    let times: Vec<_> = world.taken.borrow().iter().map(|(at, ..)| *at).collect();
    assert_eq!(times.len(), 20);
    assert!(times[19] - times[0] >= Duration::from_secs(18));
}

/// CASES row 18: ourselves, told by address.
#[test]
fn ourselves_under_another_name_is_a_loop_and_never_connected_to() {
    let own = "[delivery]\nown_addresses = [\"10.0.0.2\"]\n";
    let hosts = hosts(&[(10, 2), (20, 1)]);
    let (world, queue) = deliver(world(hosts, &[]), own, &["x@to.test"], MINUTE);
    assert_eq!(*world.connections.borrow(), [9], "only the report's");
    assert!(kinds(&queue).contains(&EventKind::Bounced));
    let events = queue.events(0, 99).unwrap();
    assert!(events.iter().any(|(_, event)| event.reply.contains("5.4.6")));
    assert!(is_empty(&queue));
}
