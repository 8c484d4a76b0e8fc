//! Streams and tenants share a lane: who has a backlog delays only what is like it (promise 8).

use super::*;

/// Two connections, so that the limits are felt and the order of turns is the order of arrival but for a message.
const NARROW: &str = "[delivery.limits]\nmessages_per_second = 100\nconnections = 2\n";

/// So many messages, over forty domains whose mail one host takes.
fn newsletter(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("n{number}@d{}.test", number % 40))
        .collect()
}

fn as_words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// What was taken, by the first letter of its recipient.
fn letters(world: &World) -> String {
    let taken = world.taken.borrow();
    taken
        .iter()
        .filter_map(|(_, _, to)| to[0].chars().next())
        .collect()
}

/// Has a backlog of bulk mail under way for five seconds, then hands `others` over, and gives back the letters of what was
/// taken from then on.
fn beside_a_backlog(streams: &str, who: (&'static str, &'static str), others: &[&str]) -> String {
    let (world, store) = (Rc::new(hosted(Host::Takes)), MemoryStore::new());
    let config = format!("{NARROW}{streams}");
    let before = Cell::new(0);
    let queue = live(&world, &store, START, &config, async |relay| {
        relay
            .take_in_as(("t", "bulk"), &as_words(&newsletter(1_500)))
            .await;
        sleep(Duration::from_secs(5)).await;
        before.set(letters(&relay.world).len());
        relay.take_in_as(who, others).await;
        sleep(MINUTE).await;
    });
    assert!(is_empty(&queue));
    let all = letters(&world);
    assert_eq!(all.len(), 1_500 + others.len());
    assert!((400..1_000).contains(&before.get()), "{}", before.get());
    all[before.get()..].to_owned()
}

#[test]
fn a_transactional_message_passes_a_backlog_of_bulk() {
    let after = beside_a_backlog("", ("t", "transactional"), &["t@d7.test"]);
    let at = after.find('t').unwrap();
    // One message may be on each connection, and one have its token.
    assert!(at <= 4, "{at} newsletters went before it");
}

#[test]
fn weights_are_the_shares_of_a_lane_and_nobody_starves() {
    let others: Vec<_> = (0..300)
        .map(|number| format!("t{number}@d{}.test", number % 3))
        .collect();
    let after = beside_a_backlog("", ("t", "transactional"), &as_words(&others));
    let bulk = after[..250].matches('n').count();
    // The weights are 10 and 1: 23 of 250, and those that were on their way.
    assert!((20..=30).contains(&bulk), "{bulk} newsletters among 250 messages");
    // Equal weights share equally, however many queues either has.
    let equal = "[[stream]]\nname = \"bulk\"\nweight = 10\n";
    let after = beside_a_backlog(equal, ("t", "transactional"), &as_words(&others));
    let bulk = after[..250].matches('n').count();
    assert!((120..=135).contains(&bulk), "{bulk}");
}

#[test]
fn a_stream_of_the_operators_own_has_its_weight() {
    let own = "[[stream]]\nname = \"invoices\"\nweight = 3\n";
    let others: Vec<_> = (0..300).map(|number| format!("i{number}@d5.test")).collect();
    let after = beside_a_backlog(own, ("t", "invoices"), &as_words(&others));
    let bulk = after[..200].matches('n').count();
    assert!((48..=56).contains(&bulk), "{bulk}");
}

#[test]
fn a_tenants_backlog_does_not_delay_another_in_the_same_stream() {
    let others: Vec<_> = (0..100).map(|number| format!("o{number}@d9.test")).collect();
    let after = beside_a_backlog("", ("other", "bulk"), &as_words(&others));
    let own = after[..100].matches('o').count();
    assert!((44..=52).contains(&own), "{own} of a hundred");
}

#[test]
fn a_stream_has_a_schedule_of_its_own() {
    let slow = "[[stream]]\nname = \"bulk\"\n[stream.retry]\nfirst = \"5m\"\nfactor = 1.0\ncap = \"5m\"\n";
    let tries = |stream: &'static str| {
        let world = Rc::new(world(
            hosts(&[(10, 0)]),
            &[Host::Rcpt("450 4.2.1 come back later")],
        ));
        let queue = live(&world, &MemoryStore::new(), START, slow, async |relay| {
            relay.take_in_as(("t", stream), &["a@to.test"]).await;
            sleep(16 * MINUTE).await;
        });
        let kinds = kinds(&queue);
        kinds.iter().filter(|kind| **kind == EventKind::Deferred).count()
    };
    // 0, 5, 10, 15 minutes; and 0, 1, 3, 7, 15.
    assert_eq!((tries("bulk"), tries("transactional")), (4, 5));
}

/// CASES §3: backscatter. Of mail under one sender's name only so many failures are told, and all of them are recorded.
#[test]
fn reports_to_one_domain_have_a_rate() {
    let config = "[delivery]\nreports_per_domain = \"60/hour burst 5\"\n";
    let (world, queue) = deliver(
        world(hosts(&[(10, 0)]), &[Host::Rcpt("550 5.1.1 unknown")]),
        config,
        &["a@to.test"; 20],
        MINUTE / 2,
    );
    let bounced = kinds(&queue)
        .into_iter()
        .filter(|kind| *kind == EventKind::Bounced);
    assert_eq!(bounced.count(), 20);
    assert_eq!(reports(&world), 5);
    assert!(is_empty(&queue));
}
