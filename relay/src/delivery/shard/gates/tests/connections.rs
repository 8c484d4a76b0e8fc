//! Connections that several lanes share.

use super::*;
use crate::config::settings::TlsLevel;
use crate::delivery::lane::Plan;

#[tokio::test]
async fn a_providers_connections_hold_for_all_its_sites_and_are_handed_on() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nconnections = 5\n");
    let mut fleet = Fleet::new(2, &limit);
    for domain in google(&mut fleet, 20) {
        fleet.accept(20, "t", "bulk", &domain, 10).await;
    }
    fleet.accept(50, "t", "bulk", "elsewhere.test", 10).await;
    fleet.run(30 * SECOND).await;
    let of_google = |sent: &Sent| sent.domain != "elsewhere.test";
    assert_eq!(fleet.most_at_once(of_google), 5);
    assert_eq!(fleet.count(every), 450, "all of it has gone");
    let last = fleet
        .sent
        .iter()
        .filter(|sent| of_google(sent))
        .map(|sent| sent.at)
        .max();
    let took = last.unwrap().since(START);
    // 400 messages of 100 ms over five connections take 8 s at the least.
    assert!(took <= 12 * SECOND, "{took:?}");
}

#[tokio::test]
async fn new_connections_a_second_hold() {
    let limits = "[[limit]]\nsite = \"mx.a.test\"\nconnections_per_second = 2\n";
    let mut fleet = Fleet::new(1, limits);
    fleet.accept(500, "t", "bulk", "a.test", 10).await;
    fleet.accept(20, "t", "bulk", "b.test", 10).await;
    fleet.run(4 * SECOND).await;
    let opened = |domain: &'static str| move |sent: &Sent| sent.opened && sent.domain == domain;
    assert!(
        (7..=8).contains(&fleet.count(opened("a.test"))),
        "{}",
        fleet.count(opened("a.test"))
    );
    assert!(fleet.count(opened("b.test")) > 8, "not another site's");
    assert!(
        fleet.count(|sent| sent.domain == "a.test") > 100,
        "those that are open go on"
    );
}

/// The last of three sites waited for ever while the others' connections were idle.
#[tokio::test]
async fn idle_connections_make_room_for_another_site() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nconnections = 5\n");
    let mut fleet = Fleet::new(2, &limit);
    for (domain, count) in google(&mut fleet, 3).iter().zip([37, 38, 1]) {
        fleet.accept(count, "t", "bulk", domain, 10).await;
    }
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(every), 76);
}

#[tokio::test]
async fn a_limit_that_comes_with_a_reload_counts_what_is_open() {
    let mut fleet = Fleet::new(1, "");
    fleet.accept(400, "t", "bulk", "a.test", 10).await;
    fleet.run(SECOND).await;
    assert_eq!(fleet.open.len(), 20);
    fleet.renew("[[limit]]\nsite = \"*\"\nconnections = 4\n");
    fleet.run(SECOND).await;
    assert_eq!(fleet.open.len(), 4);
    fleet.renew("");
    fleet.run(SECOND).await;
    assert_eq!(fleet.open.len(), 20);
}

/// What is shipped as a provider's is not each lane's alone. Whoever says anything of it says it in place of this.
#[tokio::test]
async fn a_shipped_limit_of_connections_is_for_all_sites_of_the_provider_from_one_source() {
    for (more, most) in [
        ("", 5),
        (TWO_SOURCES, 10),
        (
            "[[provider]]\nname = \"google\"\n[provider.limits]\nconnections = 4\n",
            48,
        ),
        ("[[limit]]\nprovider = \"google\"\nconnections = 12\n", 12),
        (
            "[[limit]]\nprovider = \"google\"\nmessages_per_second = 1_000\n",
            5,
        ),
        (
            "[[limit]]\nprovider = \"*\"\nsource = \"*\"\nconnections = 12\n",
            5,
        ),
        (
            "[[limit]]\nprovider = \"*\"\nsource = \"*\"\nconnections = 3\n",
            3,
        ),
        (
            "[[limit]]\nprovider = \"google\"\nsource = \"default\"\nconnections = 7\n",
            7,
        ),
        (
            "[[destination]]\ndomain = \"d0.test\"\n[destination.limits]\nconnections = 6\n",
            11,
        ),
        // What one destination has beside it takes nothing from the others, though a rule is for all of them.
        (
            "[[limit]]\nprovider = \"*\"\nsource = \"*\"\nmessages_per_hour = 10_000\n\
             [[destination]]\ndomain = \"d11.test\"\n[destination.limits]\nconnections = 6\n",
            11,
        ),
        (
            "[[source]]\nname = \"new\"\naddresses = [\"127.0.0.9\"]\n\
             [source.warm_up]\nstart = \"2023-11-12\"\nfirst = 10_000\ndays = 20\n\
             [[pool]]\nname = \"all\"\nsources = [\"new\"]\n[delivery]\npool = \"all\"\n\
             [[destination]]\ndomain = \"d11.test\"\n[destination.limits]\nconnections = 6\n",
            11,
        ),
    ] {
        let mut fleet = Fleet::new(2, more);
        for domain in google(&mut fleet, 12) {
            fleet.accept(30, "t", "bulk", &domain, 10).await;
        }
        fleet.run(30 * SECOND).await;
        assert_eq!(fleet.most_at_once(every), most, "{more}");
        assert_eq!(fleet.count(every), 360, "{more}");
    }
}

/// Each shard hears of a rule by itself: until the last has, what is open counts for all.
#[tokio::test]
async fn a_rule_that_comes_with_a_reload_loosens_nothing_that_is_shipped() {
    let mut fleet = Fleet::new(2, "");
    for domain in google(&mut fleet, 12) {
        fleet.accept(100, "t", "bulk", &domain, 10).await;
    }
    fleet.run(2 * SECOND).await;
    let rule = "[[limit]]\nprovider = \"*\"\nsource = \"*\"\nmessages_per_hour = 10_000\n";
    fleet.renew_by_and_by(rule, SECOND).await;
    fleet.renew_by_and_by("", SECOND).await;
    assert_eq!(fleet.most_at_once(every), 5);
}

/// A destination that differs in TLS alone has connections of its own, and not a limit.
#[tokio::test]
async fn siblings_share_limits() {
    let strict = "[[destination]]\ndomain = \"b.test\"\ntls = \"required\"\n";
    let own = "[destination.limits]\nconnections = 3\n";
    let wider = "[destination.limits]\nconnections = 9\n";
    let faster = "[destination.limits]\nmessages_per_second = 40\n";
    for (limit, more, connections, second) in [
        ("connections = 4", "", 4, 100),
        // Narrower than the site's it is within it; wider it is beside it.
        ("connections = 4", own, 4, 100),
        ("connections = 4", wider, 13, 130),
        ("messages_per_second = 30", "", 20, 30),
        ("messages_per_second = 30", own, 20, 30),
        ("messages_per_second = 30", wider, 20, 30),
        ("messages_per_second = 30", faster, 40, 70),
    ] {
        let mut fleet = Fleet::new(2, &format!("[delivery.limits]\n{limit}\n{strict}{more}"));
        for domain in ["a.test", "b.test"] {
            fleet.hosts.insert(domain.into(), vec!["mx.both.test".into()]);
        }
        fleet.accept(100, "t", "bulk", "a.test", 10).await;
        fleet.run(SECOND).await;
        // Mail to the one is on its way when the other's lane is made.
        fleet.accept(100, "t", "bulk", "b.test", 10).await;
        fleet.run(30 * SECOND).await;
        assert!(fleet.most_at_once(every) <= connections, "{limit} {more}");
        assert!(fleet.most_within(SECOND, every) <= second + 2, "{limit} {more}");
        assert_eq!(fleet.count(every), 200, "{limit} {more}");
        let last = fleet.sent.iter().filter(|sent| sent.domain == "b.test");
        let last = last.map(|sent| sent.at.since(START)).max().unwrap();
        assert!(last < 9 * SECOND, "both get their part: {last:?}");
    }
}

/// Of three that differ in TLS alone none has another's connections, each has its part of them, and it is told how each goes.
#[tokio::test]
async fn connections_are_handed_on_among_three_siblings() {
    let rules = "[[destination]]\ndomain = \"b.test\"\ntls = \"required\"\n[[destination]]\ndomain = \"c.test\"\ntls = \"off\"\n";
    for connections in [1, 2] {
        let limit = format!("[delivery.limits]\nconnections = {connections}\n");
        let mut fleet = Fleet::new(2, &format!("{limit}{rules}"));
        let domains = ["a.test", "b.test", "c.test"];
        for domain in domains {
            fleet.hosts.insert(domain.into(), vec!["mx.all.test".into()]);
            fleet.accept(1_000, "t", "bulk", domain, 10).await;
            fleet.run(SECOND).await;
        }
        let begun = fleet.now;
        fleet.run(60 * SECOND).await;
        assert_eq!(fleet.most_at_once(every), connections);
        let sent = domains.map(|domain| fleet.count(|sent| sent.domain == domain && sent.at >= begun));
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!(least * 3 >= most * 2, "{connections}: {sent:?}");
        let mut of_connection = std::collections::BTreeMap::new();
        for sent in &fleet.sent {
            let of = of_connection.entry(sent.connection).or_insert(&sent.domain);
            assert_eq!(**of, sent.domain, "over a connection of another's terms");
        }
        let lanes = fleet.shards.iter().flat_map(|shard| &shard.lanes);
        let mut levels: Vec<_> = lanes
            .filter_map(|(_, lane)| match &*lane.plan {
                Plan::Hosts { terms, .. } => Some((lane.key.rule.as_deref(), terms.tls)),
                Plan::End(_) => None,
            })
            .collect();
        levels.sort_by_key(|(rule, _)| *rule);
        let expected = [
            (None, TlsLevel::Opportunistic),
            (Some("b.test"), TlsLevel::Required),
            (Some("c.test"), TlsLevel::Off),
        ];
        assert_eq!(levels, expected);
    }
}

/// What one of three has beside the others is not theirs, whichever comes last.
#[tokio::test]
async fn a_sibling_that_has_more_leaves_the_others_what_they_have_together() {
    let rules = "[[destination]]\ndomain = \"c.test\"\ntls = \"required\"\n\
                 [[destination]]\ndomain = \"v.test\"\n[destination.limits]\nmessages_per_second = 40\n";
    for order in [["a.test", "c.test", "v.test"], ["v.test", "c.test", "a.test"]] {
        let limit = "[delivery.limits]\nmessages_per_second = 30\n";
        let mut fleet = Fleet::new(2, &format!("{limit}{rules}"));
        for domain in order {
            fleet.hosts.insert(domain.into(), vec!["mx.all.test".into()]);
        }
        for domain in order {
            fleet.accept(400, "t", "bulk", domain, 10).await;
            fleet.run(SECOND).await;
        }
        fleet.run(5 * SECOND).await;
        let together = fleet.most_within(SECOND, |sent| sent.domain != "v.test");
        assert!((29..=32).contains(&together), "{together} of {order:?}");
        let beside = fleet.most_within(SECOND, |sent| sent.domain == "v.test");
        assert!((39..=42).contains(&beside), "{beside} of {order:?}");
    }
}

#[tokio::test]
async fn limits_of_sources_are_about_mail_from_no_pool_too() {
    for source in ["*", "default"] {
        let mut fleet = Fleet::new(2, &format!("[[limit]]\nsource = \"{source}\"\nconnections = 3\n"));
        for number in 0..4 {
            fleet
                .accept(20, "t", "bulk", &format!("d{number}.test"), 10)
                .await;
        }
        fleet.run(20 * SECOND).await;
        assert_eq!(
            (fleet.most_at_once(every), fleet.count(every)),
            (3, 80),
            "{source}"
        );
    }
}

/// It leaves the gate that it waited at, and nobody would ask for it.
#[tokio::test]
async fn a_lane_whose_first_sibling_comes_asks_again() {
    let strict = "[[destination]]\ndomain = \"b.test\"\ntls = \"required\"\n";
    let mut fleet = Fleet::new(1, strict);
    fleet.takes = 5 * SECOND;
    for (domain, host) in [
        ("gmail.test", "mx1.google.com"),
        ("a.test", "mx2.google.com"),
        ("b.test", "mx2.google.com"),
    ] {
        fleet.hosts.insert(domain.into(), vec![host.into()]);
    }
    fleet.accept(20, "t", "bulk", "gmail.test", 10).await;
    fleet.run(SECOND).await;
    fleet.accept(1, "t", "bulk", "a.test", 10).await;
    fleet.run(SECOND / 2).await;
    fleet.accept(1, "t", "bulk", "b.test", 10).await;
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(every), 22);
}

/// Who goes on by a connection that it has is not served in another's place: the line was turned with each of its messages.
#[tokio::test]
async fn who_has_a_connection_does_not_turn_the_line_of_those_without() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nconnections = 2\n");
    let mut fleet = Fleet::new(1, &limit);
    let domains = google(&mut fleet, 6);
    fleet.peer = Some(Box::new(|sent, _| match sent.domain.as_str() {
        "d0.test" => Answer::Takes(SECOND / 10),
        _ => Answer::Takes(20 * SECOND),
    }));
    fleet.accept(1, "t", "bulk", "d5.test", 10).await;
    fleet.run(SECOND / 2).await;
    fleet.accept(200, "t", "bulk", "d0.test", 10).await;
    for domain in &domains[1..5] {
        fleet.run(SECOND / 10).await;
        fleet.accept(1, "t", "bulk", domain, 10).await;
    }
    fleet.run(100 * SECOND).await;
    let mut order: Vec<_> = fleet.sent.iter().map(|sent| sent.domain.as_str()).collect();
    order.retain(|domain| *domain != "d0.test");
    assert_eq!(order, ["d5.test", "d1.test", "d2.test", "d3.test", "d4.test"]);
}

/// What opening a connection cost is not for one message alone.
#[tokio::test]
async fn a_connection_that_is_shared_is_handed_on_after_some_messages() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nconnections = 5\n");
    let mut fleet = Fleet::new(2, &limit);
    fleet.takes = 3 * SECOND / 2;
    for domain in google(&mut fleet, 20) {
        fleet.accept(20, "t", "bulk", &domain, 10).await;
    }
    fleet.run(400 * SECOND).await;
    let (all, opened) = (fleet.count(every), fleet.count(|sent| sent.opened));
    assert_eq!(all, 400);
    assert!(opened <= all / 3, "{opened} connections for {all} messages");
}

/// One password that waits does not have the connections of all newsletters closed.
#[tokio::test]
async fn mail_of_more_weight_is_handed_one_connection() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nconnections = 5\n");
    let mut fleet = Fleet::new(1, &limit);
    let domains = google(&mut fleet, 12);
    fleet.accept(200, "t", "bulk", &domains[0], 10).await;
    fleet.run(SECOND / 4).await;
    for domain in &domains[1..11] {
        fleet.accept(20, "t", "bulk", domain, 10).await;
    }
    fleet.accept(1, "t", "transactional", &domains[11], 10).await;
    fleet.run(SECOND / 2).await;
    let opened: Vec<_> = fleet.sent.iter().filter(|sent| sent.opened).collect();
    assert_eq!(opened[5].stream, "transactional");
    // Its own is another's once it has nothing left.
    assert_eq!(opened.len(), 7, "{opened:?}");
}

/// Mail of more weight has its part of what is shared, and not all of it, though it asks for more connections all the time.
#[tokio::test]
async fn mail_of_less_weight_gets_a_connection_too() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nconnections = 2\n");
    let mut fleet = Fleet::new(1, &limit);
    let domains = google(&mut fleet, 2);
    fleet.accept(2_000, "t", "transactional", &domains[0], 10).await;
    fleet.run(SECOND).await;
    fleet.accept(400, "t", "bulk", &domains[1], 10).await;
    fleet.run(60 * SECOND).await;
    let bulk = fleet.count(|sent| sent.stream == "bulk");
    let all = fleet.sent.len();
    // One of eleven by weight; handing connections over takes its part.
    assert!(bulk * 30 >= all && bulk * 4 <= all, "{bulk} of {all}");
    assert!(all >= 900, "{all}");
}

/// Whoever came first, in whichever shards they are, and whatever goes through them.
#[tokio::test]
async fn sites_of_a_provider_share_its_connections_alike() {
    let digest = "[[stream]]\nname = \"digest\"\nweight = 3\n";
    for (streams, takes) in [
        (&["bulk"][..], 100),
        (&["bulk", "digest"], 100),
        (&["bulk", "digest"], 1),
        (&["bulk"], 1),
    ] {
        let mut fleet = Fleet::new(2, digest);
        fleet.takes = takes * SECOND;
        // Two in one shard, and one in the other.
        let domains: Vec<_> = google(&mut fleet, 4)
            .into_iter()
            .filter(|domain| domain != "d2.test")
            .collect();
        for domain in &domains {
            for stream in streams {
                fleet.accept(1_000, "t", stream, domain, 10).await;
            }
        }
        for _ in 0..17 {
            for domain in &domains {
                fleet.accept(1, "t", "transactional", domain, 10).await;
            }
            fleet.run(6 * fleet.takes).await;
        }
        let shard = |domain: &String| {
            let first = fleet.sent.iter().find(|sent| sent.domain == *domain);
            first.unwrap().connection.0
        };
        let shards: Vec<_> = domains.iter().map(shard).collect();
        assert_eq!(shards, [0, 0, 1]);
        let mut sent: Vec<_> = domains
            .iter()
            .map(|domain| fleet.count(|sent| sent.domain == *domain))
            .collect();
        sent.sort_unstable();
        // Five connections for three; of shards that wait one comes after the other.
        assert!(sent[0] * 3 >= sent[2] * 2, "{streams:?} {takes}: {sent:?}");
        let opened = fleet.count(|sent| sent.opened);
        assert!(
            takes == 100 || opened * 3 <= fleet.sent.len(),
            "{opened} of {}",
            fleet.sent.len()
        );
    }
}
