//! What replies teach: lanes go slower and faster, are suspended and go again, each by itself.

use admin_api::operate::WaitsFor;
use admin_api::{Control as _, MessageView};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A conversation, counted while the host bears it.
pub async fn converse(world: &World, number: usize, stream: DuplexStream) {
    if world.is_crowded(number, 0) {
        let mut peer = BufReader::new(stream);
        // Who has hung up needs no reply.
        let _ = too_many(&mut peer).await;
        return;
    }
    *world.borne.borrow_mut().entry(number).or_default() += 1;
    drop(super::converse(world, number, stream).await);
    *world.borne.borrow_mut().entry(number).or_default() -= 1;
}

pub async fn too_many(peer: &mut BufReader<DuplexStream>) -> io::Result<()> {
    say(peer, "421 4.7.0 too many connections from your host").await
}

fn borne(world: &World) -> usize {
    world.borne.borrow().get(&0).copied().unwrap_or(0)
}

/// So many messages to one domain.
async fn flood(relay: &Running, count: usize) {
    let recipients: Vec<_> = (0..count).map(|number| format!("r{number}@to.test")).collect();
    let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
    relay.take_in(&recipients).await;
}

/// Issue 7, Figures: after a provider starts to answer 421 above 50 connections, the lane settles within 20 % below that in 60 virtual
/// seconds and holds there.
#[test]
fn above_50_connections_the_lane_settles_below_and_holds() {
    for from in [Duration::ZERO, 30 * SECOND] {
        let crowded = world(hosts(&[(10, 0)]), &[Host::Crowded(from, 50)]);
        let (world, store) = (Rc::new(crowded), MemoryStore::new());
        let limits = "[delivery.limits]\nconnections = 200\n";
        live(&world, &store, START, limits, async |relay| {
            flood(relay, 8_000).await;
            sleep(from).await;
            let wide = borne(&world);
            assert!(from.is_zero() || wide == 200, "{wide}");
            sleep(MINUTE).await;
            let settled = world.too_many.borrow().len();
            for second in 0..600 {
                let open = borne(&world);
                assert!((40..=50).contains(&open), "{open} after {second} s, {from:?}");
                sleep(SECOND).await;
            }
            let more = world.too_many.borrow().len() - settled;
            assert!(more <= 5, "{more} refusals in ten minutes, {from:?}");
        });
    }
}

/// Four queues of one site, each with its own message, and the seconds after the start at which something connected to the site.
const FOUR: [&str; 4] = ["a@d1.test", "a@d2.test", "b@d3.test", "b@d4.test"];

fn connected(world: &World, host: usize) -> Vec<u64> {
    let connections = world.connected.borrow();
    let of = connections.iter().filter(|(_, to)| *to == host);
    let begun = world.begun.get().unwrap();
    of.map(|(at, _)| (*at - begun).as_secs()).collect()
}

fn taken_at(world: &World, host: usize) -> Vec<u64> {
    let taken = world.taken.borrow();
    let of = taken.iter().filter(|(_, number, _)| *number == host);
    let begun = world.begun.get().unwrap();
    of.map(|(at, ..)| (*at - begun).as_secs()).collect()
}

/// Whatever the messages' own retries would be.
#[test]
fn a_suspension_of_five_minutes_lasts_five_minutes() {
    for first in ["1s", "1m", "20m"] {
        let words = "421 4.7.0 not now, try again in 5 minutes";
        let host = Host::GreetsUntil(400 * SECOND, words);
        let more = format!(
            "[[stream]]\nname = \"transactional\"\n[stream.retry]\nfirst = \"{first}\"\ncap = \"30m\"\n"
        );
        let (world, queue) = deliver(hosted(host), &more, &FOUR, 12 * MINUTE);
        let at = connected(&world, 0);
        // All four at first; one that tries after the suspension, and is suspended again; then all.
        assert_eq!(at[..6], [0, 0, 0, 0, 300, 600], "{first}");
        assert_eq!(taken_at(&world, 0), [600; 4], "{first}");
        assert!(is_empty(&queue));
        // No message was touched.
        assert!(
            !kinds(&queue).contains(&EventKind::Deferred),
            "{:?}",
            kinds(&queue)
        );
    }
}

#[test]
fn what_is_said_to_rcpt_holds_the_lane_and_its_own_unit_as_long() {
    let words = "451 4.7.1 rate exceeded, please retry after 300 seconds";
    let (world, _) = deliver(hosted(Host::Rcpt(words)), "", &FOUR, 16 * MINUTE);
    let mut at = connected(&world, 0);
    at.dedup();
    assert_eq!(at, [0, 300, 600, 900]);
}

/// Greylisting is about one message; it comes again after the time that was named, and holds up nobody.
#[test]
fn greylisting_concerns_the_unit_alone() {
    let words = "451 4.7.1 Greylisted, please come back in 00:02:30";
    let picky = Host::Picky("a", words);
    let recipients = ["a@d1.test", "b@d2.test", "b@d3.test"];
    let store = MemoryStore::new();
    let world = Rc::new(hosted(picky));
    let queue = live(&world, &store, START, "", async |relay| {
        relay.take_in(&recipients).await;
        sleep(2 * MINUTE).await;
        assert_eq!(taken_at(&world, 0), [0, 0]);
        relay.take_in(&["b@d4.test"]).await;
        sleep(MINUTE).await;
        assert_eq!(taken_at(&world, 0), [0, 0, 120]);
    });
    let state = queue.state(MessageId::new(START, &[0; 10]), 0).unwrap().unwrap();
    assert_eq!(state.attempts, 2);
    assert_eq!(state.last_attempt, START + 150 * SECOND);
    assert!(!kinds(&queue).contains(&EventKind::Adjusted));
}

/// A peer that asks for a short time each time is not asked again and again.
#[test]
fn who_asks_for_a_second_each_time_is_not_hammered() {
    for words in [
        "451 4.7.1 Greylisted, try again in 1 second",
        "421 4.7.0 try again in 1 second",
    ] {
        let (world, _) = deliver(hosted(Host::Rcpt(words)), "", &["a@d1.test"], 30 * MINUTE);
        let tries = connected(&world, 0).len();
        assert!((4..=45).contains(&tries), "{words}: {tries}");
    }
}

/// It works: one of many that says so does not stop it.
#[test]
fn one_bad_reply_does_not_stop_a_lane_that_works() {
    let words = "451 4.7.0 policy says no, try again in 30 minutes";
    let mut recipients: Vec<String> = (0..60)
        .map(|number| format!("b{number}@d{}.test", number % 40))
        .collect();
    recipients[20] = "a@d7.test".into();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let slow = "[delivery.limits]\nmessages_per_second = 2\n";
    let (world, queue) = deliver(hosted(Host::Picky("a", words)), slow, &recipients, 3 * MINUTE);
    assert_eq!(taken_at(&world, 0).len(), 59);
    assert_eq!(units(&queue), 1);
    let adjustments = queue.adjustments(None, 9).unwrap();
    let [(_, record)] = &adjustments[..] else {
        panic!("{adjustments:?}");
    };
    assert_eq!(record.key.kind, queue::AdjustmentKind::Learned);
    assert_eq!((record.cause.as_str(), record.by.as_str()), (words, "reply"));
    assert_eq!(record.host.as_deref(), Some("h0.test"));
}

#[test]
fn a_suspension_outlives_a_restart_and_is_told_of() {
    let words = "421 4.7.0 not now, try again in 5 minutes";
    let (world, store) = (
        Rc::new(hosted(Host::GreetsUntil(MINUTE, words))),
        MemoryStore::new(),
    );
    live(&world, &store, START, "", async |relay| {
        relay.take_in(&FOUR).await;
        sleep(MINUTE).await;
        let why = waits(relay).await;
        assert_eq!(why.0, WaitsFor::Adjustment);
        assert_eq!(why.1, Some(START + 5 * MINUTE));
        assert!(why.2.contains(words) && why.2.contains("h0.test"), "{}", why.2);
    });
    let world = Rc::new(hosted(Host::Takes));
    live(&world, &store, START + 2 * MINUTE, "", async |relay| {
        sleep(2 * MINUTE).await;
        // They sleep since before the restart: who asks wakes them.
        assert_eq!(the_message(relay).await.recipients[0].waits, None);
        sleep(SECOND).await;
        let (what, until, cause) = waits(relay).await;
        assert_eq!((what, until), (WaitsFor::Adjustment, Some(START + 5 * MINUTE)));
        assert!(cause.contains(words), "{cause}");
        assert!(world.connections.borrow().is_empty());
        sleep(MINUTE).await;
        assert_eq!(world.taken.borrow().len(), 4);
        // The DNS was asked first when somebody asked what they wait for.
        assert_eq!(connected(&world, 0)[0], 60);
    });
    // The next start knows nothing of it any more.
    let queue = live(&world, &store, START + 10 * MINUTE, "", async |relay| {
        sleep(20 * SECOND).await;
        relay.take_in(&["z@d1.test"]).await;
        sleep(SECOND).await;
    });
    assert_eq!(queue.adjustments(None, 9).unwrap().len(), 0);
}

async fn the_message(relay: &Running) -> MessageView {
    let list = relay.control.messages(Default::default()).await.unwrap();
    let id = list.messages[0].id.parse().unwrap();
    relay.control.message(id).await.unwrap().unwrap()
}

async fn waits(relay: &Running) -> (WaitsFor, Option<Timestamp>, String) {
    let waits = the_message(relay).await.recipients[0].waits.clone().unwrap();
    (
        waits.what,
        waits.until.map(|until| until.0),
        waits.cause.unwrap_or_default(),
    )
}

/// Only that lane.
#[test]
fn who_is_blocked_at_one_site_is_not_slower_at_another() {
    let words = "421 4.7.0 blocked, try again in 20 minutes";
    let mut world = world(hosts(&[(10, 0)]), &[Host::Greets(words), Host::Takes]);
    world.mx.insert("other.test".into(), hosts(&[(10, 1)]));
    let recipients = ["a@to.test", "a@other.test", "b@other.test"];
    let (world, _) = deliver(world, "", &recipients, 10 * MINUTE);
    assert_eq!(taken_at(&world, 1), [0, 0]);
    assert_eq!(connected(&world, 0), [0]);
}

/// What a rule says may be wider, or narrower, than a lane.
#[test]
fn a_rule_suspends_a_tenant_a_site_or_a_provider() {
    let rule = |reach: &str| {
        format!(
            "[tenants.u]\nsenders = [\"*\"]\n[[provider]]\nname = \"mine\"\nmx = [\"h0.test\", \"h1.test\"]\n[[bounce_rule]]\n\
             class = \"block\"\ntext = [\"go away\"]\nsuspend = \"{reach}\"\nfor = \"10m\"\n"
        )
    };
    for (reach, expected) in [
        // Of tenant t to both sites; of u to h0, of u to h1.
        ("tenant", [0, 1, 1]),
        ("provider", [0, 0, 0]),
        ("source", [0, 0, 0]),
        ("site", [1, 0, 1]),
        ("lane", [1, 0, 1]),
    ] {
        let picky = Host::Picky("bad", "451 4.0.0 go away");
        let mut sites = world(hosts(&[(10, 0)]), &[picky, Host::Takes]);
        sites.mx.insert("other.test".into(), hosts(&[(10, 1)]));
        let (world, store) = (Rc::new(sites), MemoryStore::new());
        live(&world, &store, START, &rule(reach), async |relay| {
            // Others got through just before: a rule of ours holds all the same.
            for _ in 0..20 {
                relay.take_in(&["ok@to.test"]).await;
            }
            sleep(SECOND).await;
            relay.take_in(&["bad@to.test"]).await;
            sleep(SECOND).await;
            relay.take_in(&["ok@to.test", "t@other.test"]).await;
            relay
                .take_in_as(("u", "transactional"), &["u@to.test", "u@other.test"])
                .await;
            sleep(MINUTE).await;
            let taken = |to: &str| {
                let all = world.taken.borrow();
                all.iter().filter(|(_, _, names)| names[0] == to).count()
            };
            let found = [taken("t@other.test"), taken("u@to.test"), taken("u@other.test")];
            assert_eq!(found, expected, "{reach}");
            assert_eq!(taken("ok@to.test"), 20, "{reach}");
            sleep(10 * MINUTE).await;
            assert_eq!(taken("ok@to.test"), 21, "{reach}");
            assert_eq!(
                [taken("t@other.test"), taken("u@to.test"), taken("u@other.test")],
                [1; 3]
            );
        });
    }
}
