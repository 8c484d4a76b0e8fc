//! Which lane mail of a pool goes through, and what a reload makes of it: tests over a shard.

use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::store::MemoryStore;
use queue::{HoldScope, Queue, QueueId};

use super::fleet::{Fleet, Sent};
use super::operator::tests::settings;
use super::{Effect, LaneId, Place, Plan, Shard};
use crate::control::tests::{accept_one, accept_routed};
use crate::delivery::lane::{ConnectionId, Idle, Rest};
use crate::delivery::route::Route;
use crate::routing::Routing;
use crate::world::{MxHost, Random};

const START: Timestamp = Timestamp(1_700_000_000_000);

const SOURCES: &str = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\nehlo = \"s1.test\"\n\
    [[source]]\nname = \"s2\"\naddresses = [\"192.0.2.2\"]\n\
    [[pool]]\nname = \"both\"\nsources = [\"s1\", \"s2\"]\n[[pool]]\nname = \"one\"\nsources = [\"s1\"]\n";

const LIMITS: &str = "[delivery.limits]\nconnections = 2\n";

const DEFAULT: &str = "[delivery]\npool = \"both\"\n";

const RULE: &str = "[[route]]\nnext_hop = \"mx\"\npool = \"one\"\n";

fn shard(queue: &Queue, more: &str) -> Shard {
    let settings = settings(more);
    let routing = Arc::new(Routing::open(settings.clone(), queue).unwrap());
    let delivery = Arc::new(settings.delivery.clone());
    let (place, random) = (Place::alone(), Random::seeded(1));
    Shard::new(queue.clone(), place, delivery, routing, random, START)
}

fn renew(shard: &mut Shard, more: &str, now: Timestamp) {
    let settings = settings(more);
    let routing = Arc::new(Routing::open(settings.clone(), &shard.queue).unwrap());
    shard.renew(Arc::new(settings.delivery.clone()), routing, false, now);
}

/// Of all domains the same hosts.
fn provider() -> Route {
    Route::Hosts(vec![MxHost {
        preference: 10,
        host: "mx.test".parse().unwrap(),
    }])
}

/// The lanes of the connections that the shard wants made, once every question to the DNS is answered.
fn connects(shard: &mut Shard, now: Timestamp) -> Vec<LaneId> {
    let mut lanes = Vec::new();
    loop {
        let effects = shard.take_effects();
        if effects.is_empty() {
            return lanes;
        }
        for effect in effects {
            match effect {
                Effect::Resolve(domain) => shard.resolved(&domain, Ok(provider()), now),
                Effect::Connect { lane, .. } => lanes.push(lane),
                _ => {}
            }
        }
    }
}

/// Each lane's name, with the queues that go through it and the address it sends from.
fn lanes(shard: &Shard) -> Vec<(String, usize, String)> {
    let told = |lane: &super::Lane| {
        let from = match &*lane.plan {
            Plan::Hosts { terms, .. } => terms
                .source
                .as_ref()
                .map(|source| source.addresses[0].to_string()),
            Plan::End(_) => None,
        };
        (lane.key.scope(), lane.queues, from.unwrap_or_default())
    };
    let mut all: Vec<_> = shard
        .lanes
        .iter()
        .map(|(_, lane)| told(lane))
        .filter(|lane| lane.1 > 0)
        .collect();
    all.sort();
    all
}

fn names(shard: &Shard) -> Vec<String> {
    lanes(shard).into_iter().map(|(name, ..)| name).collect()
}

async fn filled(more: &str) -> (Queue, Shard) {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    for number in 0..20 {
        accept_one(&queue, number, &[&format!("d{number}.test")]).await;
    }
    let mut shard = shard(&queue, more);
    shard.tick(START);
    (queue, shard)
}

#[tokio::test]
async fn two_sources_are_two_lanes_at_a_site_each_with_its_limits() {
    let (_queue, mut shard) = filled(&format!("{DEFAULT}{SOURCES}{LIMITS}")).await;
    let mut opened = connects(&mut shard, START);
    let all = lanes(&shard);
    let which: Vec<_> = all
        .iter()
        .map(|(name, _, from)| (name.as_str(), from.as_str()))
        .collect();
    assert_eq!(
        which,
        [
            ("mx.test source s1", "192.0.2.1"),
            ("mx.test source s2", "192.0.2.2")
        ]
    );
    assert!(
        all.iter().all(|lane| lane.1 == 20),
        "each takes mail of all queues: {all:?}"
    );
    opened.sort_unstable();
    opened.dedup();
    assert_eq!(opened.len(), 2);
    assert!(shard.lanes.iter().all(|(_, lane)| lane.open == 2), "two each");
}

#[tokio::test]
async fn a_source_that_rests_holds_up_no_other() {
    let (queue, mut shard) = filled(&format!("{DEFAULT}{SOURCES}{LIMITS}")).await;
    let opened = connects(&mut shard, START);
    let of_s1 = |lane: &LaneId| shard.lanes[*lane].key.source.as_deref() == Some("s1");
    let lane = opened.into_iter().find(of_s1).unwrap();
    shard.lanes[lane].open = 1;
    shard.lane_failed(lane, "4.4.0 source s1: no", false, START);
    let resting: Vec<_> = shard
        .lanes
        .iter()
        .filter(|(_, lane)| lane.rest.is_some())
        .collect();
    assert_eq!(resting.len(), 1);
    let scope = HoldScope::Lane("mx.test source s1".into());
    assert!(queue.held(&scope).unwrap().is_some());
    // Its address is another one now: it need not wait.
    let other = SOURCES.replace("192.0.2.1\"", "192.0.2.9\"");
    renew(&mut shard, &format!("{DEFAULT}{other}{LIMITS}"), START);
    assert!(shard.lanes.iter().all(|(_, lane)| lane.rest.is_none()));
    assert_eq!(lanes(&shard)[0].2, "192.0.2.9");
    assert_eq!(lanes(&shard)[1].2, "192.0.2.2");
}

#[tokio::test]
async fn the_default_pool_is_whichever_the_configuration_says_now() {
    let (_queue, mut shard) = filled(&format!("{SOURCES}{LIMITS}")).await;
    connects(&mut shard, START);
    assert_eq!(names(&shard), ["mx.test"]);
    let one = format!("[delivery]\npool = \"one\"\n{SOURCES}{LIMITS}");
    renew(&mut shard, &one, START);
    connects(&mut shard, START);
    assert_eq!(names(&shard), ["mx.test source s1"]);
    renew(&mut shard, LIMITS, START);
    connects(&mut shard, START);
    assert_eq!(names(&shard), ["mx.test"], "no rule gave the mail a pool");
}

#[tokio::test]
async fn mail_of_a_pool_that_a_reload_removes_waits_until_it_is_back() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let limit = "[delivery.limits]\nconnections = 1\n";
    let with = format!("{SOURCES}{RULE}{limit}");
    let mut shard = shard(&queue, &with);
    let group = queue.route_groups(&["pool one"]).unwrap()[0];
    // One of two queues has something on the wire.
    for (number, domain) in [(1, "d.test"), (2, "d.test"), (3, "e.test")] {
        accept_routed(&queue, number, group, domain).await;
    }
    accept_one(&queue, 4, &["f.test"]).await;
    shard.tick(START);
    assert_eq!(connects(&mut shard, START).len(), 2);
    assert_eq!(names(&shard), ["mx.test", "mx.test source s1"]);

    let without = SOURCES.replace("\"one\"", "\"other\"");
    renew(&mut shard, &format!("{without}{limit}"), START);
    assert_eq!(connects(&mut shard, START).len(), 0);
    assert_eq!(names(&shard), ["mx.test"]);
    let scope = HoldScope::Lane("pool one (not configured)".into());
    let hold = queue.held(&scope).unwrap().unwrap();
    assert!(
        hold.cause.contains("pool one is not configured any more"),
        "{hold:?}"
    );

    renew(&mut shard, &with, START);
    connects(&mut shard, START);
    assert_eq!(names(&shard), ["mx.test", "mx.test source s1"]);
    assert_eq!(lanes(&shard)[1].1, 2, "both queues");
    assert_eq!(queue.held(&scope).unwrap(), None);
}

/// The pool goes while the DNS is asked: what comes of the answer must not be sent from elsewhere.
#[tokio::test]
async fn a_pool_that_goes_while_a_site_is_looked_up() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let mut shard = shard(&queue, &format!("{SOURCES}{RULE}"));
    let group = queue.route_groups(&["pool one"]).unwrap()[0];
    accept_routed(&queue, 1, group, "d.test").await;
    shard.tick(START);
    renew(&mut shard, "", START);
    assert_eq!(connects(&mut shard, START).len(), 0);
    assert_eq!(names(&shard).len(), 0);
}

#[tokio::test]
async fn a_source_that_leaves_the_pool_leaves_its_queues_to_the_others() {
    let (_queue, mut shard) = filled(&format!("{DEFAULT}{SOURCES}{LIMITS}")).await;
    connects(&mut shard, START);
    let less = SOURCES.replace("[\"s1\", \"s2\"]", "[\"s2\"]");
    renew(&mut shard, &format!("{DEFAULT}{less}{LIMITS}"), START);
    connects(&mut shard, START);
    // Of the four that are on the wire nothing more waits.
    assert_eq!(
        lanes(&shard),
        [("mx.test source s2".to_owned(), 16, "192.0.2.2".to_owned())]
    );
}

const SECOND: Duration = Duration::from_secs(1);

fn of(source: &'static str) -> impl Fn(&Sent) -> bool {
    move |sent| sent.source.as_deref() == Some(source)
}

#[tokio::test]
async fn sources_that_can_take_mail_share_it_by_weight() {
    let weights = SOURCES.replace("[\"s1\", \"s2\"]", "[{ name = \"s1\", weight = 3 }, \"s2\"]");
    let mut fleet = Fleet::new(2, &format!("{DEFAULT}{weights}"));
    for number in 0..200 {
        fleet
            .accept(1, "t", "bulk", &format!("d{}.test", number % 7), 10)
            .await;
        fleet.run(Duration::from_millis(50)).await;
    }
    fleet.run(SECOND).await;
    // Each of the two shards keeps its own account.
    let (s1, s2) = (fleet.count(of("s1")), fleet.count(of("s2")));
    assert_eq!(s1 + s2, 200);
    assert!((148..=152).contains(&s1), "{s1} to {s2}");
}

/// A source that is one tenant's alone, and one that has a part of a stream's mail: others' goes from what is shared.
const SHARES: &str = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n\
    [[source]]\nname = \"s2\"\naddresses = [\"192.0.2.2\"]\n\
    [[source]]\nname = \"own\"\naddresses = [\"192.0.2.3\"]\n\
    [[source]]\nname = \"news\"\naddresses = [\"192.0.2.4\"]\n\
    [[pool]]\nname = \"both\"\nsources = [{ name = \"s1\", weight = 3 }, \"s2\", \
    { name = \"own\", weight = 0, tenants = { a = 12 } }, { name = \"news\", weight = 0, streams = { bulk = 4 } }]\n\
    [tenants.a]\nsenders = [\"*\"]\n[tenants.b]\nsenders = [\"*\"]\n";

/// How many of a tenant's messages in a stream went from each source.
fn parts(fleet: &Fleet, tenant: &str, stream: &str) -> [usize; 4] {
    ["s1", "s2", "own", "news"].map(|source| {
        fleet.count(|sent| {
            sent.source.as_deref() == Some(source) && (&*sent.tenant, &*sent.stream) == (tenant, stream)
        })
    })
}

#[tokio::test]
async fn tenants_and_streams_have_their_shares_of_each_source() {
    let mut fleet = Fleet::new(2, &format!("{DEFAULT}{SHARES}"));
    let mail = [
        ("a", "transactional"),
        ("a", "bulk"),
        ("b", "transactional"),
        ("b", "bulk"),
    ];
    for number in 0..160 {
        for (tenant, stream) in mail {
            let domain = format!("d{}.test", number % 7);
            fleet.accept(1, tenant, stream, &domain, 10).await;
        }
        fleet.run(Duration::from_millis(400)).await;
    }
    fleet.run(SECOND).await;
    for ((tenant, stream), expected) in mail.into_iter().zip([
        // 3 : 1 : 12, and 3 : 1 where nothing else is said; of a stream 3 : 1 : 4.
        [30, 10, 120, 0],
        [24, 8, 96, 32],
        [120, 40, 0, 0],
        [60, 20, 0, 80],
    ]) {
        let parts = parts(&fleet, tenant, stream);
        assert_eq!(parts.iter().sum::<usize>(), 160, "{tenant} {stream}: {parts:?}");
        let is_near =
            |(part, expected): (usize, usize)| part.abs_diff(expected) <= 6 && (part > 0) == (expected > 0);
        let mut both = parts.into_iter().zip(expected);
        assert!(
            both.all(is_near),
            "{tenant} {stream}: {parts:?}, not {expected:?}"
        );
    }
}

/// What has a part of its own elsewhere goes from there while the source of its own does not serve; nobody else's goes from that.
#[tokio::test]
async fn a_dedicated_source_that_fails_leaves_its_mail_to_the_shared_ones() {
    let mut fleet = Fleet::new(2, &format!("{DEFAULT}{SHARES}"));
    fleet.peer = Some(Box::new(|sent, _| match sent.source.as_deref() {
        Some("own") => super::fleet::Answer::NoSource,
        _ => super::fleet::Answer::Takes(Duration::from_millis(100)),
    }));
    for _ in 0..40 {
        fleet.accept(1, "a", "transactional", "d.test", 10).await;
        fleet.run(SECOND).await;
    }
    let [s1, s2, own, news] = parts(&fleet, "a", "transactional");
    assert_eq!((s1 + s2, own, news), (40, 0, 0));
}

/// Weights are those of now as soon as a reload says so.
#[tokio::test]
async fn other_shares_hold_at_once() {
    let mut fleet = Fleet::new(1, &format!("{DEFAULT}{SHARES}"));
    fleet.accept(1, "b", "transactional", "d.test", 10).await;
    fleet.run(SECOND).await;
    let other = SHARES.replace(
        "weight = 3 }, \"s2\"",
        "weight = 1 }, { name = \"s2\", weight = 9 }",
    );
    fleet.renew(&format!("{DEFAULT}{other}"));
    for _ in 0..100 {
        fleet.accept(1, "b", "transactional", "d.test", 10).await;
        fleet.run(SECOND / 2).await;
    }
    let [s1, s2, ..] = parts(&fleet, "b", "transactional");
    assert!((6..=16).contains(&s1) && s1 + s2 == 101, "{s1} to {s2}");
}

#[tokio::test]
async fn what_a_source_may_not_send_goes_from_the_others() {
    let limit = "[[limit]]\nsource = \"s1\"\nmessages_per_day = 30\n";
    let mut fleet = Fleet::new(2, &format!("{DEFAULT}{SOURCES}{limit}"));
    for number in 0..4 {
        fleet
            .accept(50, "t", "bulk", &format!("d{number}.test"), 10)
            .await;
    }
    fleet.run(20 * SECOND).await;
    assert_eq!((fleet.count(of("s1")), fleet.count(of("s2"))), (30, 170));
}

#[tokio::test]
async fn a_new_source_sends_more_from_day_to_day_and_the_others_what_is_over() {
    // The tests begin on 14 November 2023, at 22:13:20 UTC.
    let warm_up = "s1\"\naddresses = [\"192.0.2.1\"]\n[source.warm_up]\nstart = \"2023-11-14\"\nfirst = 20\nfactor = 2\ndays = 3\n";
    let sources = SOURCES.replace("s1\"\naddresses = [\"192.0.2.1\"]\nehlo = \"s1.test\"\n", warm_up);
    let sources = sources.replace("[\"s1\", \"s2\"]", "[{ name = \"s1\", weight = 1000 }, \"s2\"]");
    let mut fleet = Fleet::new(
        2,
        &format!("{DEFAULT}{sources}[delivery.limits]\nconnections = 1\n"),
    );
    let mut before = 0;
    let mut days = Vec::new();
    for day in 0..4 {
        // To one provider's sites, and to one of nobody's.
        for number in 0..4 {
            fleet.hosts.insert(
                format!("g{number}.test"),
                vec![format!("mx{number}.aspmx.l.google.com")],
            );
            fleet
                .accept(100, "t", "bulk", &format!("g{number}.test"), 10)
                .await;
        }
        fleet.accept(50, "t", "bulk", "own.test", 10).await;
        fleet.run(600 * SECOND).await;
        assert_eq!(
            fleet.sent.len(),
            (day + 1) * 450,
            "what is over goes from the other"
        );
        let all = fleet.count(of("s1"));
        days.push(all - before);
        before = all;
        // What was sent the day before counts no more.
        fleet.run(86_400 * SECOND + 1_200 * SECOND).await;
    }
    // To the provider, and to the other site, of whose 50 the other source sends as many.
    assert_eq!(days[..3], [20 + 20, 40 + 25, 80 + 25]);
    assert!((220..=230).contains(&days[3]), "warm: {days:?}");
}

/// One lane of a queue is limited, and the other has no connection left: nothing is sent twice, nothing is forgotten.
#[tokio::test]
async fn a_queue_of_many_lanes_is_emptied_once() {
    let limits = "[delivery.limits]\nconnections = 1\n[[limit]]\nsource = \"s2\"\nmessages_per_second = 1\n\
                  [[limit]]\ntenant = \"t\"\nmessages_per_second = 50\n";
    let mut fleet = Fleet::new(1, &format!("{DEFAULT}{SOURCES}{limits}"));
    fleet.accept(100, "t", "bulk", "a.test", 10).await;
    fleet.accept(100, "t", "bulk", "b.test", 10).await;
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.sent.len(), 200);
    assert!(fleet.most_within(10 * SECOND, of("s2")) <= 11);
    let mut queues = fleet.shards[0].active.values();
    assert!(
        queues.all(|active| active.on_wire.is_empty()),
        "all is given back"
    );
}

/// A shard with a queue whose mail goes from so many sources.
async fn with_sources(number: usize) -> (Queue, Shard, QueueId) {
    let names: Vec<_> = (0..number).map(|number| format!("\"s{number}\"")).collect();
    let mut text = format!(
        "{DEFAULT}[[pool]]\nname = \"both\"\nsources = [{}]\n",
        names.join(", ")
    );
    for (number, name) in names.iter().enumerate() {
        let address = format!("192.0.{}.{}", number / 250, number % 250 + 1);
        text += &format!("[[source]]\nname = {name}\naddresses = [\"{address}\"]\n");
    }
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    accept_one(&queue, 1, &["d.test"]).await;
    let mut shard = shard(&queue, &text);
    shard.tick(START);
    connects(&mut shard, START);
    let id = shard.active_in_order()[0];
    assert_eq!(shard.lanes_of(id).len(), number);
    (queue, shard, id)
}

/// Some lanes rest and some are connected, and sources have had more or less than their part.
fn stir(shard: &mut Shard, id: QueueId, random: &Random) {
    for (_, lane) in &mut shard.lanes {
        lane.idle.clear();
        if random.fraction() < 0.5 {
            lane.idle.push(Idle {
                since: START,
                connection: ConnectionId(1),
            });
        }
        lane.rest = (random.fraction() < 0.2).then(|| Rest {
            failures: 1,
            until: START + Duration::from_secs(60),
            cause: "a test".into(),
        });
    }
    let pool = shard.active[&id].pool.clone().unwrap();
    let favourite = (random.fraction() * pool.members.len() as f64) as usize;
    for _ in 0..(random.fraction() * 20.0) as usize {
        let other = (random.fraction() * pool.members.len() as f64) as usize;
        let member = if random.fraction() < 0.6 { favourite } else { other };
        shard.shares.served(&pool, &pool.members[member].source.name);
    }
}

/// As it says of the order: each lane by itself, against all others.
fn order_by_the_book(shard: &Shard, id: QueueId) -> Vec<LaneId> {
    let pool = shard.active[&id].pool.as_ref().unwrap();
    let order = shard.shares.order(pool);
    let lanes = shard.lanes_of(id);
    let able = lanes.iter().map(|&lane| &shard.lanes[lane]);
    let able = able.filter(|lane| lane.resting(START).is_none() && lane.waits_at.is_none());
    let able: Vec<_> = able.filter_map(|lane| lane.key.source.clone()).collect();
    let mut in_order = lanes;
    in_order.sort_by_key(|&lane| {
        let lane = &shard.lanes[lane];
        let source = lane.key.source.as_ref().unwrap();
        let goes_on = !lane.idle.is_empty() && shard.shares.may_go_on(pool, &able)(source);
        (!goes_on, order.iter().position(|name| name == source))
    });
    in_order
}

#[tokio::test]
async fn sources_are_asked_in_their_order() {
    let random = Random::seeded(1);
    let mut gone_on = 0;
    for number in [2, 3, 7, 40] {
        let (_queue, mut shard, id) = with_sources(number).await;
        for _ in 0..200 {
            stir(&mut shard, id, &random);
            let order = shard.lanes_in_order(id, START);
            assert_eq!(order, order_by_the_book(&shard, id));
            let first = |lane: &&LaneId| !shard.lanes[**lane].idle.is_empty();
            gone_on += order.iter().take_while(first).count();
        }
    }
    assert!((1_000..8_000).contains(&gone_on), "{gone_on} of some 10,400");
}

/// Each source's part is looked up a few times for a message, however many there are.
#[tokio::test]
async fn many_sources_are_put_in_order_in_little_more_than_their_number() {
    let (_queue, mut shard, id) = with_sources(1_000).await;
    stir(&mut shard, id, &Random::seeded(1));
    shard.shares.asked.set(0);
    assert_eq!(shard.lanes_in_order(id, START).len(), 1_000);
    let asked = shard.shares.asked.get();
    assert!(asked <= 3_000, "{asked}");
}
