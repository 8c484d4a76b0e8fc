//! Limits: rates and connections, over all domains and shards of a site.

use super::*;

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
