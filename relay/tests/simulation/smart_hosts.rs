//! Smart hosts: which mail goes through them, and what their refusals mean.

use super::*;

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
