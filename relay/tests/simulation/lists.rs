//! One message for very many at one destination: it takes many transactions, of which limits count each.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Of whom the peers of some tests say that they are to be tried later.
const LATER: (&str, &str) = ("later", "450 4.2.1 busy");

/// A message for a thousand recipients goes to this host for so long.
fn thousand(host: Host, delivery: &str, span: Duration) -> (Rc<World>, Queue) {
    let (world, store) = (Rc::new(world(hosts(&[(10, 0)]), &[host])), MemoryStore::new());
    let queue = live(&world, &store, START, delivery, async |relay| {
        let recipients: Vec<_> = (0..1_000).map(address).collect();
        let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
        relay.take_in_one(("t", "bulk"), &recipients).await;
        sleep(span).await;
    });
    (world, queue)
}

/// Every tenth is one of whom some peers say that he is to be tried later.
fn address(number: usize) -> String {
    match number % 10 {
        3 => format!("later{number}@to.test"),
        _ => format!("r{number}@to.test"),
    }
}

/// When each transaction ended, and for how many it was.
fn transactions(world: &World) -> Vec<(Instant, usize)> {
    let taken = world.taken.borrow();
    taken.iter().map(|(at, _, to)| (*at, to.len())).collect()
}

fn most_within(span: Duration, world: &World) -> usize {
    let all = transactions(world);
    let within = |from: usize| {
        let (begin, _) = all[from];
        all[from..].iter().filter(|(at, _)| *at - begin < span).count()
    };
    (0..all.len()).map(within).max().unwrap_or(0)
}

/// Each recipient was taken once, by the first attempt, and nothing was put off.
fn all_at_the_first_attempt(world: &World, queue: &Queue) {
    let taken: usize = transactions(world).iter().map(|(_, count)| count).sum();
    assert_eq!(taken, 1_000);
    let events = queue.events(0, 99_999).unwrap();
    let is_first = |kind| matches!(kind, EventKind::Accepted | EventKind::Delivered);
    for (_, event) in &events {
        assert!(is_first(event.kind) && event.attempt <= 1, "{event:?}");
    }
    assert!(is_empty(queue));
}

/// It was tried again later for each ten recipients, until it expired.
#[test]
fn a_peer_that_takes_ten_at_a_time_over_a_connection_gets_them_one_after_the_other() {
    let (world, queue) = thousand(Host::Few(10, 1, ("nobody", "")), "", MINUTE);
    all_at_the_first_attempt(&world, &queue);
    assert_eq!(world.connections.borrow().len(), 100);
    assert!(transactions(&world).iter().all(|(_, count)| *count == 10));
}

#[test]
fn a_peer_that_leaves_after_each_message_is_met_again() {
    let (world, queue) = thousand(Host::Leaves, "", MINUTE);
    all_at_the_first_attempt(&world, &queue);
    assert_eq!(world.connections.borrow().len(), 10);
}

/// Who is to be tried later is, with the next attempt: it waits for the others, and they not for it.
#[test]
fn of_whom_a_peer_says_later_it_is_asked_once_an_attempt() {
    let later = |queue: &Queue| {
        kinds(queue)
            .iter()
            .filter(|&&kind| kind == EventKind::Deferred)
            .count()
    };
    let (world, queue) = thousand(Host::Few(10, 1, LATER), "", MINUTE / 2);
    let taken: usize = transactions(&world).iter().map(|(_, count)| count).sum();
    assert_eq!((taken, later(&queue)), (900, 100));
    let (world, queue) = thousand(Host::Few(10, 1, LATER), "", 2 * MINUTE);
    // The first ten say that it is no use to ask for the others now.
    assert_eq!(later(&queue), 200);
    assert_eq!(world.connections.borrow().len(), 101);
    let attempts: Vec<_> = queue
        .events(0, 99_999)
        .unwrap()
        .into_iter()
        .map(|(_, event)| event.attempt)
        .collect();
    assert_eq!(attempts.iter().max(), Some(&2));
}

/// A host that takes nothing is not asked for each of them.
#[test]
fn a_peer_that_takes_none_is_left_alone() {
    let (world, queue) = thousand(Host::Few(10, 1, ("", "450 4.2.1 busy")), "", MINUTE / 2);
    assert_eq!(world.connections.borrow().len(), 1);
    let deferred = kinds(&queue)
        .into_iter()
        .filter(|&kind| kind == EventKind::Deferred);
    assert_eq!(deferred.count(), 1_000);
    // Those whose turn did not come are the first of the next attempt.
    let message = queue.message(MessageId::new(START, &[0; 10])).unwrap().unwrap();
    let open = &message.units[0].state.as_ref().unwrap().open;
    assert_eq!(
        (open.len(), open[0].recipient, open[999].recipient),
        (1_000, 10, 9)
    );
}

/// Who was tried in an attempt that goes on is not asked again in it, though its sender is told of the delay meanwhile.
#[test]
fn a_notice_of_delay_between_two_parts_has_nobody_asked_twice() {
    let limit =
        "[[limit]]\nsite = \"*\"\nmessages_per_minute = 3\n[delivery]\ndelay_notice_after = \"70s\"\n";
    let host = Host::Picky(LATER.0, LATER.1);
    let (world, store) = (Rc::new(world(hosts(&[(10, 0)]), &[host])), MemoryStore::new());
    let queue = live(&world, &store, START, limit, async |relay| {
        let recipients: Vec<_> = (0..1_000).map(address).collect();
        let mut recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
        // Its turn comes last.
        recipients[999] = "tell@to.test";
        relay.take_in_one(("t", "bulk"), &recipients).await;
        sleep(MINUTE * 7 / 2).await;
    });
    let events = queue.events(0, 99_999).unwrap();
    let of_kind = |kind| events.iter().filter(move |(_, event)| event.kind == kind);
    assert_eq!(
        of_kind(EventKind::Accepted).count(),
        2,
        "a report beside the message"
    );
    let mut deferred = HashMap::<&str, usize>::new();
    // The notice is none of its attempts.
    for (_, event) in of_kind(EventKind::Deferred).filter(|(_, event)| event.attempt > 0) {
        *deferred.entry(&event.recipients[0]).or_default() += 1;
    }
    assert_eq!((deferred.len(), deferred.values().max()), (100, Some(&1)));
}

/// Promise 5: each transaction is a message to the peer.
#[test]
fn limits_of_messages_count_transactions() {
    let lane = "[delivery.limits]\nmessages_per_second = 1\n";
    let (world, queue) = thousand(Host::Takes, lane, MINUTE / 2);
    all_at_the_first_attempt(&world, &queue);
    assert_eq!((most_within(SECOND, &world), transactions(&world).len()), (1, 10));

    let second = "[[limit]]\ntenant = \"t\"\nmessages_per_second = 2\n[[limit]]\nsite = \"*\"\nmessages_per_second = 3\n";
    let (world, queue) = thousand(Host::Takes, second, MINUTE / 2);
    all_at_the_first_attempt(&world, &queue);
    assert_eq!(most_within(SECOND, &world), 2);

    let minute = "[[limit]]\nsite = \"*\"\nmessages_per_minute = 3\n";
    let (world, queue) = thousand(Host::Takes, minute, 5 * MINUTE);
    all_at_the_first_attempt(&world, &queue);
    assert_eq!(most_within(MINUTE, &world), 3);

    let warm_up = "[[source]]\nname = \"new\"\naddresses = [\"192.0.2.1\"]\n[source.warm_up]\nstart = \"2023-11-14\"\nfirst = 4\ndays = 30\n\
                   [[pool]]\nname = \"p\"\nsources = [\"new\"]\n[delivery]\npool = \"p\"\n";
    let (world, _) = thousand(Host::Takes, warm_up, 10 * MINUTE);
    assert_eq!(transactions(&world).len(), 4, "in its first day");
}

#[test]
fn messages_a_connection_are_transactions() {
    let limit = "[delivery.limits]\nmessages_per_connection = 4\n";
    let (world, queue) = thousand(Host::Takes, limit, MINUTE);
    all_at_the_first_attempt(&world, &queue);
    assert_eq!(world.connections.borrow().len(), 3);
}

/// Without any limit of messages, all of it goes over one connection at once.
#[test]
fn what_is_not_limited_is_one_attempt() {
    let (world, queue) = thousand(Host::Takes, "", MINUTE);
    all_at_the_first_attempt(&world, &queue);
    assert_eq!(
        (world.connections.borrow().len(), transactions(&world).len()),
        (1, 10)
    );
}

/// A transaction is one message's, and so one tenant's; the fewest hold.
#[test]
fn a_tenants_transactions_are_as_small_as_its_limits_say() {
    let limits = "[tenants.u]\nsenders = [\"*\"]\n[delivery.limits]\nrecipients_per_transaction = 50\n\
                  [[limit]]\ntenant = \"t\"\nrecipients_per_transaction = 20\n\
                  [[limit]]\ntenant = \"t\"\nsite = \"*\"\nrecipients_per_transaction = 10\n";
    let (world, store) = (
        Rc::new(world(hosts(&[(10, 0)]), &[Host::Takes])),
        MemoryStore::new(),
    );
    live(&world, &store, START, limits, async |relay| {
        for tenant in ["t", "u"] {
            let recipients: Vec<_> = (0..100)
                .map(|number| format!("{tenant}{number}@to.test"))
                .collect();
            let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
            relay.take_in_one((tenant, "bulk"), &recipients).await;
        }
        sleep(MINUTE).await;
    });
    for (tenant, most) in [("t", 10), ("u", 50)] {
        let taken = world.taken.borrow();
        let of_tenant = taken.iter().filter(|(_, _, to)| to[0].starts_with(tenant));
        let counts: Vec<_> = of_tenant.map(|(_, _, to)| to.len()).collect();
        assert_eq!(counts, vec![most; 100 / most], "{tenant}");
    }
}
