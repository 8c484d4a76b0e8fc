//! Destinations that swallow what is sent to them: they hold their own slots, and nobody else's (CASES 2, black holes and trickles).

use super::faulty::{books, most_slots};
use super::*;

/// What the relay makes of a destination that is so for twelve minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// It rests, and each message is sent once.
    Rests,
    /// The same, but the host may have had the message.
    Doubts,
    /// Its mail goes.
    Goes,
    /// It rests, and goes on to: it has no TLS afterwards either.
    Waits,
}

const SLOTS: usize = 4;

/// Four slots each, and two for the others together.
const NARROW: &str = "[delivery]\nmax_connections = 6\n[delivery.limits]\nconnections = 4\n";

const UNTIL: Duration = Duration::from_secs(12 * 60);

fn beside_a_hole(fault: Fault, phase: Phase, config: &str, made: Made) {
    let what = format!("{fault:?} at {phase:?}, {config}");
    let mut swallows = world(hosts(&[(10, 0)]), &[Host::Faulty(fault, phase, UNTIL)]);
    for number in 1..=2 {
        swallows
            .mx
            .insert(format!("d{number}.test"), hosts(&[(10, number)]));
    }
    let (world, store) = (Rc::new(swallows), MemoryStore::new());
    let lost: Vec<String> = (0..20).map(|number| format!("r{number}@to.test")).collect();
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    let rested = Cell::new(false);
    let config = format!("{NARROW}{config}");
    let queue = live(&world, &store, START, &config, async |relay| {
        relay.take_in(&lost).await;
        for minute in 0..30 {
            let others: Vec<_> = (1..=2)
                .map(|number| format!("m{minute}@d{number}.test"))
                .collect();
            let others: Vec<_> = others.iter().map(String::as_str).collect();
            let before = Instant::now();
            relay.take_in(&others).await;
            sleep(MINUTE).await;
            let taken = world.taken.borrow();
            for other in others {
                let found = taken.iter().find(|(.., to)| to == &[other]);
                let (at, ..) = found.unwrap_or_else(|| panic!("{what}: {other} does not go"));
                let took = *at - before;
                assert!(took <= Duration::from_secs(1), "{what}: {other} took {took:?}");
            }
            rested.set(rested.get() || is_held(&relay.queue));
        }
    });
    assert!(most_slots(&world, 0) <= SLOTS, "{what}");
    assert_eq!(rested.get(), made != Made::Goes, "{what}: it rests");
    let left = if made == Made::Waits { lost.len() } else { 0 };
    assert_eq!(units(&queue), left as u64, "{what}");
    if made == Made::Waits {
        return;
    }
    let books = books(&world, &queue);
    for recipient in lost {
        let (taken, in_doubt) = books.get(recipient).copied().unwrap_or_default();
        assert!(taken >= 1, "{what}: {recipient} is lost");
        assert!(taken <= 1 + in_doubt, "{what}: {recipient} is doubled");
        assert!(made == Made::Doubts || taken == 1, "{what}: {recipient}");
    }
    let doubled = books.values().any(|(taken, _)| *taken > 1);
    assert_eq!(doubled, made == Made::Doubts, "{what}");
    let bad = [EventKind::Bounced, EventKind::Expired];
    assert!(!kinds(&queue).iter().any(|kind| bad.contains(kind)), "{what}");
}

fn is_held(queue: &Queue) -> bool {
    let holds = queue.holds(99).unwrap();
    holds
        .iter()
        .any(|(scope, _)| matches!(scope, queue::HoldScope::Lane(lane) if &**lane == "h0.test" || lane.starts_with("h0.test rule")))
}

const REQUIRED: &str =
    "[[destination]]\ndomain = \"to.test\"\ntls = \"required\"\n[destination.limits]\nconnections = 4\n";

#[test]
fn a_black_hole_in_any_phase_holds_its_own_slots_alone() {
    for (phase, config, made) in [
        (Phase::Connect, "", Made::Rests),
        (Phase::Greeting, "", Made::Rests),
        (Phase::Ehlo, "", Made::Rests),
        // In clear it goes.
        (Phase::Handshake, "", Made::Goes),
        (Phase::Handshake, REQUIRED, Made::Waits),
        (Phase::Mail, "", Made::Rests),
        (Phase::Rcpt, "", Made::Rests),
        (Phase::Data, "", Made::Rests),
        (Phase::Body, "", Made::Rests),
        (Phase::Dot, "", Made::Doubts),
        (Phase::Quit, "", Made::Goes),
    ] {
        beside_a_hole(Fault::Silence, phase, config, made);
    }
}

/// Each octet comes in time, the reply never.
#[test]
fn a_reply_that_drips_without_end_in_any_phase_holds_its_own_slots_alone() {
    for (phase, config, made) in [
        (Phase::Greeting, "", Made::Rests),
        (Phase::Ehlo, "", Made::Rests),
        (Phase::Handshake, REQUIRED, Made::Waits),
        (Phase::Mail, "", Made::Rests),
        (Phase::Rcpt, "", Made::Rests),
        (Phase::Data, "", Made::Rests),
        (Phase::Body, "", Made::Rests),
        (Phase::Dot, "", Made::Doubts),
        (Phase::Quit, "", Made::Goes),
    ] {
        beside_a_hole(Fault::Drips, phase, config, made);
    }
}

/// Anybody may name a provider's host beside hosts of his own that swallow what is sent to them. What lanes to the provider share is not his.
#[test]
fn domains_that_name_a_providers_host_beside_a_hole_hold_nothing_of_the_providers() {
    let mut world = world(hosts(&[(10, 0)]), &[]);
    world.hosts.resize(30, Host::Silent);
    let mut foreign = Vec::new();
    for number in 10..30 {
        world
            .mx
            .insert(format!("d{number}.test"), hosts(&[(10, number), (20, 0)]));
        foreign.push(format!("r@d{number}.test"));
    }
    let (world, store) = (Rc::new(world), MemoryStore::new());
    let config = "[[provider]]\nname = \"big\"\nmx = [\"h0.test\"]\n\
                  [[limit]]\nprovider = \"big\"\nconnections = 2\nmessages_per_minute = 20\n";
    live(&world, &store, START, config, async |relay| {
        let foreign: Vec<_> = foreign.iter().map(String::as_str).collect();
        relay.take_in(&foreign).await;
        sleep(Duration::from_secs(2)).await;
        relay.take_in(&["a@to.test"]).await;
        sleep(Duration::from_secs(2)).await;
        let taken = world.taken.borrow();
        assert!(taken.iter().any(|(.., to)| to == &["a@to.test"]), "{taken:?}");
    });
}
