//! Which limits a lane has: tests of the whole way from the configuration and the MX hosts.

use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use queue::Queue;
use queue::store::MemoryStore;

use super::operator::tests::{settings, shard};
use super::{LaneId, Plan, Shard};
use crate::config::settings::DestinationLimits;
use crate::delivery::route::Route;
use crate::world::MxHost;

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn hosts(names: &[&str]) -> Route {
    let host = |(preference, name): (u16, &&str)| MxHost {
        preference,
        host: name.parse().unwrap(),
    };
    Route::Hosts((0..).zip(names).map(host).collect())
}

fn google() -> Route {
    hosts(&["aspmx.l.google.com", "alt1.aspmx.l.google.com"])
}

fn lane(shard: &mut Shard, domain: &str, route: &Route) -> LaneId {
    let domain: Domain = domain.parse().unwrap();
    shard.lane(&domain, Arc::from(route.site()), route, None, NOW)
}

/// What the lane goes by. The rate is in its limiter, which does not tell it.
fn limits(shard: &Shard, lane: LaneId) -> (usize, u32, usize) {
    let lane = &shard.lanes[lane];
    match *lane.plan {
        Plan::Hosts {
            recipients_per_transaction,
            messages_per_connection,
            ..
        } => (
            lane.max_connections,
            messages_per_connection,
            recipients_per_transaction,
        ),
        Plan::End(_) => panic!("{:?}", lane.plan),
    }
}

fn renewed(shard: &mut Shard, more: &str) {
    let delivery = Arc::new(settings(more).delivery.clone());
    shard.renew(delivery, shard.routing.clone(), false, NOW);
}

#[test]
fn a_providers_limits_hold_for_domains_that_it_hosts() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let mut shard = shard(&queue);
    let hosted = lane(&mut shard, "hosted.test", &google());
    assert_eq!(limits(&shard, hosted), (5, 50, 100));
    assert_eq!(
        lane(&mut shard, "too.test", &google()),
        hosted,
        "one site, one lane"
    );
    let own = lane(&mut shard, "own.test", &hosts(&["mx.own.test"]));
    assert_eq!(limits(&shard, own), (20, 1_000, 100));
    let DestinationLimits { connections, .. } = settings("").delivery.limits;
    assert_eq!(connections, 20, "the defaults are what they were");
}

/// `[[destination]]`, then `[[provider]]`, then what is shipped, then `[delivery.limits]`; each key by itself.
#[test]
fn who_says_what_of_a_limit() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let mut shard = shard(&queue);
    let hosted = lane(&mut shard, "hosted.test", &google());
    for (more, expected) in [
        (
            "[delivery.limits]\nconnections = 3\nrecipients_per_transaction = 7\n",
            (3, 50, 7),
        ),
        (
            "[delivery.limits]\nconnections = 90\nmessages_per_connection = 20\n",
            (5, 20, 100),
        ),
        (
            "[[provider]]\nname = \"google\"\n[provider.limits]\nconnections = 90\n",
            (90, 50, 100),
        ),
        (
            "[[provider]]\nname = \"google\"\nshipped_limits = false\n",
            (20, 1_000, 100),
        ),
        ("[delivery]\nshipped_limits = false\n", (20, 1_000, 100)),
        (
            "[delivery]\nshipped_limits = false\n[[provider]]\nname = \"google\"\nshipped_limits = true\n",
            (5, 50, 100),
        ),
        (
            "[[provider]]\nname = \"mine\"\nmx = [\"*.google.com\"]\n[provider.limits]\nmessages_per_connection = 4\n",
            (20, 4, 100),
        ),
        (
            "[[limit]]\nprovider = \"google\"\nmessages_per_connection = 30\nrecipients_per_transaction = 500\n\
             [[limit]]\nsite = \"*\"\nmessages_per_connection = 40\nrecipients_per_transaction = 12\n",
            (5, 30, 12),
        ),
        ("", (5, 50, 100)),
    ] {
        renewed(&mut shard, more);
        assert_eq!(limits(&shard, hosted), expected, "{more}");
    }
    renewed(
        &mut shard,
        "[[destination]]\ndomain = \"ruled.test\"\n[destination.limits]\nconnections = 9\n\
         [[provider]]\nname = \"google\"\n[provider.limits]\nconnections = 8\nmessages_per_connection = 77\n",
    );
    assert!(shard.gates.is_empty(), "none of these limits is shared");
    let ruled = lane(&mut shard, "ruled.test", &google());
    assert_ne!(ruled, hosted, "a rule has a lane of its own");
    assert_eq!(limits(&shard, ruled), (9, 77, 100));
    assert_eq!(limits(&shard, hosted), (8, 77, 100));
}

#[test]
fn a_rate_that_is_shipped_holds() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let mut shard = shard(&queue);
    let lane = lane(&mut shard, "yahoo.co.jp", &hosts(&["mx1.mail.yahoo.co.jp"]));
    let limiter = &mut shard.lanes[lane].limiter;
    let at = |millis: u64| Timestamp(NOW.0 + millis);
    let granted = (0..10_000_u64).filter(|&millis| {
        matches!(
            limiter.reserve(at(millis)),
            crate::delivery::limits::Grant::Granted
        )
    });
    let granted = granted.count();
    assert!((90..=101).contains(&granted), "{granted} of 10 a second in 10 s");
}
