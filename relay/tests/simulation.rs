//! The delivery side on a made-up Internet and a virtual clock: the real shard, lanes, connections and queue records, with
//! DNS, peers, time and chance in the test's hand. No test here takes longer than its computing.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use dkim_signer::Signer;
use faulty::{Fault, Phase};
use internet::{Host, SimNet, World, hosted, hosts, say, world};
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
use relay::world::{Clock, DnsError, MxAnswer, Random};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
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
#[path = "simulation/internet.rs"]
mod internet;
#[path = "simulation/limits.rs"]
mod limits;
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
#[path = "simulation/smart_hosts.rs"]
mod smart_hosts;
#[path = "simulation/streams.rs"]
mod streams;

/// More than there are sites in most tests, so that queues are lent.
const SHARDS: usize = 3;

const START: Timestamp = Timestamp(1_700_000_000_000);

/// All worlds', which is made once: it reads the system's certificate authorities. No handshake here comes to its end, so no world learns
/// of another by it.
static TLS: LazyLock<Arc<ClientTls>> = LazyLock::new(|| Arc::new(ClientTls::new(None).unwrap()));

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
