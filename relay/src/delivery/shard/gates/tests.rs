use std::time::Duration;

use mail_core::{MessageId, Timestamp};
use proptest::prelude::*;
use queue::QueueId;

use super::super::fleet::{Answer, Fleet, Sent};
use crate::delivery::exchange::Waits;

const SECOND: Duration = Duration::from_secs(1);

fn google(fleet: &mut Fleet, domains: usize) -> Vec<String> {
    let domains: Vec<_> = (0..domains).map(|number| format!("d{number}.test")).collect();
    for (number, domain) in domains.iter().enumerate() {
        // Sites of their own, and so lanes, in both shards.
        let host = format!("mx{number}.aspmx.l.google.com");
        fleet.hosts.insert(domain.clone(), vec![host]);
    }
    domains
}

const UNSHIPPED: &str = "[delivery]\nshipped_limits = false\n";

fn every(_: &Sent) -> bool {
    true
}

#[tokio::test]
async fn a_providers_rate_holds_for_all_its_sites_and_shards_and_is_used() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nmessages_per_second = 100\n");
    let mut fleet = Fleet::new(2, &limit);
    for domain in google(&mut fleet, 20) {
        fleet.accept(100, "t", "bulk", &domain, 10).await;
    }
    fleet.run(10 * SECOND).await;
    let sent = fleet.count(every);
    assert!((960..=1_010).contains(&sent), "{sent} of 100 a second in 10 s");
    let most = fleet.most_within(SECOND, every);
    assert!(most <= 102, "{most} in a second");
    let mut by_domain: Vec<_> = (0..20)
        .map(|number| fleet.count(|sent| sent.domain == format!("d{number}.test")))
        .collect();
    by_domain.sort_unstable();
    assert!(by_domain[0] * 2 >= by_domain[19], "shared fairly: {by_domain:?}");
}

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
    let took = last.unwrap().since(super::super::fleet::START);
    // 400 messages of 100 ms over five connections take 8 s at the least.
    assert!(took <= 12 * SECOND, "{took:?}");
}

#[tokio::test]
async fn a_password_reset_goes_before_the_newsletters_of_other_sites() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nmessages_per_second = 10\n");
    let mut fleet = Fleet::new(1, &limit);
    for domain in google(&mut fleet, 20) {
        fleet.accept(100, "t", "bulk", &domain, 10).await;
    }
    fleet.run(5 * SECOND).await;
    let asked = fleet.now;
    fleet.accept(3, "t", "transactional", "d7.test", 10).await;
    fleet.run(2 * SECOND).await;
    let resets: Vec<_> = fleet
        .sent
        .iter()
        .filter(|sent| sent.stream == "transactional")
        .map(|sent| sent.at.since(asked).as_millis())
        .collect();
    assert_eq!(resets.len(), 3, "{resets:?}");
    assert!(resets[2] <= 500, "{resets:?}");
}

#[tokio::test]
async fn a_tenants_limit_holds_up_its_own_mail_alone() {
    let limits = "[tenants.slow]\nsenders = [\"*\"]\n[[limit]]\ntenant = \"slow\"\nmessages_per_second = 2\n\
                  [[limit]]\ntenant = \"*\"\nconnections = 3\n";
    let mut fleet = Fleet::new(2, limits);
    for number in 0..4 {
        let domain = format!("d{number}.test");
        fleet.accept(100, "slow", "bulk", &domain, 10).await;
        fleet.accept(30, "t", "bulk", &domain, 10).await;
    }
    fleet.run(10 * SECOND).await;
    let slow = fleet.count(|sent| sent.tenant == "slow");
    assert!((18..=21).contains(&slow), "{slow} of 2 a second in 10 s");
    assert_eq!(fleet.count(|sent| sent.tenant == "t"), 120);
    assert!(fleet.most_at_once(|sent| sent.tenant == "t") <= 3);
}

/// Whoever was silent need not wait for its part of a minute; what was used of one is not there again after a restart.
#[tokio::test]
async fn a_minute_is_a_minute_over_restarts_and_reloads() {
    let limit = "[[limit]]\nsite = \"*\"\nmessages_per_minute = 60\n";
    let mut fleet = Fleet::new(2, limit);
    let asked = fleet.now;
    fleet.accept(3, "t", "bulk", "a.test", 10).await;
    fleet.run(SECOND).await;
    assert_eq!(fleet.count(every), 3);
    assert!(fleet.sent.iter().all(|sent| sent.at.since(asked) < SECOND / 5));
    fleet.accept(80, "t", "bulk", "b.test", 10).await;
    fleet.run(20 * SECOND).await;
    assert_eq!(fleet.count(|sent| sent.domain == "b.test"), 60);
    fleet.renew(limit);
    fleet.run(20 * SECOND).await;
    assert_eq!(fleet.count(|sent| sent.domain == "b.test"), 60, "after a reload");
    let last = fleet.sent.iter().rfind(|sent| sent.domain == "b.test");
    let begun = last.unwrap().at;
    let mut fleet = fleet.restarted(limit);
    fleet.accept(1, "t", "bulk", "c.test", 10).await;
    fleet.run(60 * SECOND).await;
    let at: Vec<_> = fleet
        .sent
        .iter()
        .map(|sent| (sent.domain.as_str(), sent.at.since(begun)))
        .collect();
    assert_eq!(at.len(), 21, "{at:?}");
    let early = |(domain, at): &&(&str, Duration)| *domain == "b.test" && *at < 50 * SECOND;
    assert_eq!(at.iter().filter(early).count(), 0, "{at:?}");
}

/// What is counted ahead of use is given back by a stop, and is a tenth at the most where there was none.
#[tokio::test]
async fn what_nobody_has_used_is_there_after_a_restart() {
    let limit = "[[limit]]\ntenant = \"t\"\nmessages_per_day = 10\n";
    let mut fleet = Fleet::new(2, limit);
    for number in 0..8 {
        fleet.accept(1, "t", "bulk", "d.test", 10).await;
        fleet.run(3 * SECOND).await;
        assert_eq!(fleet.count(every), 1, "message {number}");
        let ledger = fleet.shards[0].place.ledger().clone();
        ledger.settle(&fleet.queue, fleet.now).await.unwrap();
        fleet = fleet.restarted(limit);
    }
    // Two are left. A crash takes one with it: the last that was ahead.
    fleet.accept(1, "t", "bulk", "d.test", 10).await;
    fleet.run(3 * SECOND).await;
    assert_eq!(fleet.count(every), 1);
    let mut fleet = fleet.restarted(limit);
    fleet.accept(2, "t", "bulk", "d.test", 10).await;
    fleet.run(3 * SECOND).await;
    assert!(fleet.count(every) <= 1, "never more than ten");
}

#[tokio::test]
async fn each_of_many_queues_is_told_what_holds_it() {
    let limits =
        "[tenants.slow]\nsenders = [\"*\"]\n[[limit]]\ntenant = \"slow\"\nmessages_per_minute = 30\n";
    let mut fleet = Fleet::new(2, limits);
    fleet.peer = Some(Box::new(|sent, _| match sent.domain.as_str() {
        "down.test" => Answer::Refuses("421 4.3.2 try again in 5 minutes"),
        _ => Answer::Takes(Duration::from_millis(100)),
    }));
    fleet.accept(50, "slow", "bulk", "a.test", 10).await;
    fleet.accept(1, "t", "bulk", "b.test", 10).await;
    fleet.accept(40, "t", "bulk", "down.test", 10).await;
    fleet.run(5 * SECOND).await;
    let queues = fleet.queue.queues(None, 10).unwrap();
    let first = |(id, _): &(QueueId, _)| {
        let (first, _) = fleet
            .queue
            .due(*id, (Timestamp(0), MessageId::from_bytes([0; 16]), 0), 1)
            .unwrap();
        first.first().copied()
    };
    let firsts: Vec<_> = queues.iter().map(first).collect();
    let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
    for shard in &fleet.shards {
        shard.why_all(&firsts, &say, fleet.now);
    }
    drop(say);
    let mut told = Vec::new();
    while let Some((number, why)) = said.recv().await {
        told.push((queues[number].1.name.domain.to_string(), why.waits));
    }
    told.sort_by(|one, other| one.0.cmp(&other.0));
    let [(of_limit, limit), (of_reply, reply)] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((of_limit.as_str(), of_reply.as_str()), ("a.test", "down.test"));
    assert!(
        matches!(limit, Waits::Throttled { limit, .. } if limit.contains("messages_per_minute of tenant slow")),
        "{limit:?}"
    );
    assert!(
        matches!(reply, Waits::Adjusted { cause, .. } if cause.contains("try again in 5 minutes")),
        "{reply:?}"
    );
}

#[tokio::test]
async fn octets_in_flight_hold_and_one_that_is_larger_goes_alone() {
    let limits = "[[limit]]\nsite = \"*\"\nbytes_in_flight = \"100 KiB\"\n";
    let mut fleet = Fleet::new(1, limits);
    fleet.accept(40, "t", "bulk", "a.test", 30_000).await;
    fleet.accept(1, "t", "bulk", "b.test", 200_000).await;
    fleet.run(5 * SECOND).await;
    assert_eq!(fleet.count(every), 41);
    assert_eq!(fleet.most_at_once(|sent| sent.domain == "a.test"), 3);
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

#[tokio::test]
async fn a_day_is_a_day_and_a_reload_grants_nothing() {
    let limits = |day: u64| format!("[[limit]]\ntenant = \"t\"\nmessages_per_day = {day}\n");
    let mut fleet = Fleet::new(2, &limits(100));
    for number in 0..3 {
        fleet
            .accept(100, "t", "bulk", &format!("d{number}.test"), 10)
            .await;
    }
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(every), 100);
    fleet.renew(&limits(120));
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(every), 120);
    fleet.renew("");
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(every), 300, "without the limit all goes");
}

#[tokio::test]
async fn what_is_reserved_of_a_day_is_left_to_its_stream() {
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.1\n[[limit]]\nprovider = \"google\"\nmessages_per_day = 200\n";
    let mut fleet = Fleet::new(2, &format!("{UNSHIPPED}{more}"));
    let domains = google(&mut fleet, 6);
    for domain in &domains {
        fleet.accept(100, "t", "bulk", domain, 10).await;
    }
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(every), 180);
    let asked = fleet.now;
    for domain in &domains {
        fleet.accept(4, "t", "transactional", domain, 10).await;
    }
    fleet.run(60 * SECOND).await;
    let resets: Vec<_> = fleet
        .sent
        .iter()
        .filter(|sent| sent.stream == "transactional")
        .collect();
    assert_eq!(resets.len(), 20, "and no more than the limit");
    assert!(resets.iter().all(|sent| sent.at.since(asked) < SECOND));
    assert_eq!(fleet.count(every), 200);
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
async fn what_an_hour_has_counted_counts_after_a_restart() {
    let limits = "[[limit]]\nprovider = \"google\"\nmessages_per_hour = 1_000\n";
    let limits = &format!("{UNSHIPPED}{limits}");
    let mut fleet = Fleet::new(2, limits);
    let domains = google(&mut fleet, 10);
    for domain in &domains {
        fleet.accept(70, "t", "bulk", domain, 10).await;
    }
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(every), 700);
    let mut fleet = fleet.restarted(limits);
    for domain in &domains {
        fleet.accept(70, "t", "bulk", domain, 10).await;
    }
    fleet.run(60 * SECOND).await;
    let sent = fleet.count(every);
    // A tenth at the most was written ahead and not used.
    assert!((190..=300).contains(&sent), "{sent} of 300 that are left");
    fleet.run(3_600 * SECOND).await;
    assert_eq!(fleet.count(every), 700);
}

#[tokio::test]
async fn what_is_reserved_for_a_stream_is_free_when_it_comes() {
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n[delivery.limits]\nconnections = 8\n";
    let mut fleet = Fleet::new(1, more);
    fleet.takes = 10 * SECOND;
    fleet.accept(100, "t", "bulk", "a.test", 10).await;
    fleet.run(3 * SECOND).await;
    assert_eq!(fleet.sent.len(), 6, "two of eight are left");
    fleet.accept(3, "t", "transactional", "a.test", 10).await;
    fleet.run(SECOND).await;
    let resets = |sent: &Sent| sent.stream == "transactional";
    assert_eq!(fleet.count(resets), 2, "they go at once");
    fleet.run(60 * SECOND).await;
    assert_eq!(fleet.count(resets), 3);
    assert_eq!(fleet.most_at_once(|sent| !resets(sent)), 6);
    fleet.renew("[delivery.limits]\nconnections = 8\n");
    fleet.run(20 * SECOND).await;
    assert_eq!(
        fleet.most_at_once(|sent| !resets(sent)),
        8,
        "without it, all are everybody's"
    );
}

#[tokio::test(start_paused = true)]
async fn budgets_of_what_is_over_are_forgotten() {
    let mut fleet = Fleet::new(1, "[[limit]]\nsite = \"*\"\nmessages_per_hour = 20\n");
    for number in 0..5 {
        fleet.accept(2, "t", "bulk", &format!("d{number}.test"), 10).await;
    }
    fleet.run(60 * SECOND).await;
    let ledger = fleet.shards[0].place.ledger().clone();
    fleet.shards[0].drain();
    fleet.run(SECOND).await;
    fleet.shards.clear();
    ledger.tidy(fleet.now);
    assert_eq!(ledger.used(fleet.now).len(), 5, "an hour is not over");
    assert_eq!(fleet.queue.counts().unwrap().len(), 5);
    let later = fleet.now + 2 * 3_600 * SECOND;
    ledger.tidy(later);
    assert_eq!(ledger.used(later), []);
    let keeping = ledger.keep(&fleet.queue, crate::world::Clock::anchored(later));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), keeping)
            .await
            .is_err()
    );
    assert_eq!(fleet.queue.counts().unwrap(), []);
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

const TWO_SOURCES: &str = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n[[source]]\nname = \"s2\"\naddresses = [\"192.0.2.2\"]\n\
    [[pool]]\nname = \"both\"\nsources = [\"s1\", \"s2\"]\n[delivery]\npool = \"both\"\n";

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

/// A destination that differs in TLS alone has connections of its own, and not a limit.
#[tokio::test]
async fn siblings_share_limits() {
    let strict = "[[destination]]\ndomain = \"b.test\"\ntls = \"required\"\n";
    let own = "[destination.limits]\nconnections = 3\n";
    for (limit, more, connections, second) in [
        ("connections = 4", "", 4, 100),
        ("connections = 4", own, 7, 100),
        ("messages_per_second = 30", "", 40, 30),
        ("messages_per_second = 30", own, 23, 60),
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
        let last = last
            .map(|sent| sent.at.since(super::super::fleet::START))
            .max()
            .unwrap();
        assert!(last < 9 * SECOND, "both get their part: {last:?}");
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

/// Of each limit a stream's part is free when its mail comes, and others' mail goes on beside it.
#[tokio::test]
async fn what_is_reserved_is_a_part_of_every_limit() {
    let stream = "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n";
    let of_google = |key: &str| format!("{UNSHIPPED}{stream}[[limit]]\nprovider = \"google\"\n{key}\n");
    let of_lane = format!("{stream}[delivery.limits]\nmessages_per_second = 40\nconnections = 1\n");
    let of_rule = format!(
        "{stream}[[destination]]\ndomain = \"d0.test\"\n[destination.limits]\nmessages_per_second = 40\nconnections = 1\n"
    );
    let second = Duration::from_millis;
    for (more, domains, takes, others, own) in [
        (of_google("connections = 8"), 6, second(10_000), 6, 2),
        (of_google("bytes_in_flight = \"8 KiB\""), 6, second(10_000), 6, 2),
        (of_google("messages_per_second = 40"), 6, second(10), 30, 10),
        (of_google("messages_per_second = 2"), 6, second(10), 2, 1),
        (of_lane, 1, second(1), 30, 10),
        (of_rule, 1, second(1), 30, 10),
    ] {
        let mut fleet = Fleet::new(2, &more);
        fleet.takes = takes;
        let domains = google(&mut fleet, domains);
        for domain in &domains {
            fleet
                .accept(600 / domains.len(), "t", "bulk", domain, 1_024)
                .await;
        }
        let resets = |sent: &Sent| sent.stream == "transactional";
        let of_second = |fleet: &Fleet, what: &dyn Fn(&Sent) -> bool| {
            let lately = |sent: &Sent| what(sent) && sent.at + SECOND > fleet.now;
            fleet.count(lately)
        };
        fleet.run(5 * SECOND).await;
        let sent = match takes >= SECOND {
            true => fleet.count(every),
            false => of_second(&fleet, &every),
        };
        assert!(
            (others - 2..=others + 2).contains(&sent),
            "{sent} of {others}: {more}"
        );
        for domain in &domains {
            fleet.accept(own, "t", "transactional", domain, 1_024).await;
        }
        fleet.run(SECOND).await;
        let gone = fleet.count(resets);
        assert!(gone >= own, "{gone} of {own} at once: {more}");
        fleet.run(100 * SECOND).await;
        assert_eq!(fleet.count(resets), own * domains.len(), "{more}");
        let least = match takes >= SECOND {
            true => 10 * others,
            false => (75 * others).min(600),
        };
        assert!(fleet.count(|sent| !resets(sent)) >= least, "others go on: {more}");
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

/// Of two limits the one lets it through and the other does not: nobody asks again before its time.
#[tokio::test]
async fn who_waits_for_one_of_two_limits_does_not_spin() {
    let limits =
        "[[limit]]\nsite = \"*\"\nmessages_per_hour = 9\n[[limit]]\ntenant = \"t\"\nmessages_per_day = 28\n";
    let mut fleet = Fleet::new(1, &format!("{UNSHIPPED}{limits}"));
    for domain in google(&mut fleet, 2) {
        fleet.accept(20, "t", "bulk", &domain, 10).await;
    }
    fleet.run(60 * SECOND).await;
    let before = fleet.wakes;
    fleet.run(600 * SECOND).await;
    assert!(
        fleet.wakes - before < 1_000,
        "{} in ten minutes",
        fleet.wakes - before
    );
}

/// What is kept for a stream is no reason for one shard to have all that is left.
#[tokio::test]
async fn shards_share_what_is_left_beside_what_is_reserved() {
    let mut fleet = Fleet::new(2, "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n");
    fleet.takes = SECOND;
    let domains = google(&mut fleet, 12);
    // One that goes from either shard begins.
    fleet.accept(1_000, "t", "bulk", &domains[0], 10).await;
    fleet.run(5 * SECOND).await;
    let first = fleet.sent[0].connection.0;
    for domain in &domains[1..] {
        fleet.accept(20, "t", "bulk", domain, 10).await;
    }
    fleet.run(100 * SECOND).await;
    let elsewhere = fleet.count(|sent| sent.connection.0 != first);
    assert!(elsewhere > 100, "{elsewhere} from the other shard");
    assert!(fleet.most_at_once(every) <= 4, "one of five is kept");
}

#[tokio::test]
async fn a_large_message_is_not_passed_by_small_ones_for_ever() {
    let limit = format!("{UNSHIPPED}[[limit]]\nprovider = \"google\"\nbytes_in_flight = \"100 KiB\"\n");
    let mut fleet = Fleet::new(2, &limit);
    fleet.takes = SECOND;
    let domains = google(&mut fleet, 14);
    for domain in &domains[2..] {
        fleet.accept(100, "t", "bulk", domain, 10_240).await;
    }
    fleet.run(3 * SECOND).await;
    // Nearly all of the limit, and more than that.
    fleet.accept(1, "t", "bulk", &domains[0], 92_160).await;
    fleet.accept(1, "t", "bulk", &domains[1], 204_800).await;
    fleet.run(30 * SECOND).await;
    let large = |sent: &Sent| domains[..2].contains(&sent.domain);
    assert_eq!(fleet.count(large), 2);
    assert!(fleet.count(|sent| !large(sent)) > 150);
}

/// The part that is kept is there for each of its mail, however long other mail has waited at the same limit, and for whatever.
#[tokio::test]
async fn what_waits_for_more_than_is_left_is_in_nobodys_way() {
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.1\n\
                [[limit]]\nprovider = \"google\"\nmessages_per_second = 10\nmessages_per_day = 200\n";
    for shards in [1, 2] {
        let mut fleet = Fleet::new(shards, &format!("{UNSHIPPED}{more}"));
        fleet.takes = SECOND / 4;
        let domains = google(&mut fleet, 3);
        for domain in &domains {
            fleet.accept(80, "t", "bulk", domain, 10).await;
        }
        fleet.run(40 * SECOND).await;
        assert_eq!(fleet.count(every), 180);
        for number in 0..20 {
            fleet
                .accept(1, "t", "transactional", &domains[number % 3], 10)
                .await;
            fleet.run(2 * SECOND).await;
            let resets = fleet.count(|sent| sent.stream == "transactional");
            assert_eq!(resets, number + 1, "{shards} shards");
        }
        fleet.run(26 * 3_600 * SECOND).await;
        assert_eq!(fleet.count(every), 260, "all of it has gone: {shards} shards");
    }
}

#[tokio::test]
async fn a_large_message_goes_beside_what_is_reserved() {
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n\
                [[limit]]\nprovider = \"google\"\nbytes_in_flight = \"100 KiB\"\n";
    let mut fleet = Fleet::new(2, &format!("{UNSHIPPED}{more}"));
    fleet.takes = SECOND;
    let domains = google(&mut fleet, 14);
    for domain in &domains[1..] {
        fleet.accept(100, "t", "bulk", domain, 10_240).await;
    }
    fleet.run(3 * SECOND).await;
    fleet.accept(1, "t", "bulk", &domains[0], 61_440).await;
    fleet.run(30 * SECOND).await;
    assert_eq!(fleet.count(|sent| sent.domain == domains[0]), 1);
    assert!(fleet.count(every) > 150, "{}", fleet.count(every));
}

/// Two streams with parts: who wants more than its own has no way of its own round the others.
#[tokio::test]
async fn more_than_ones_own_part_is_shared() {
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.2\n[[stream]]\nname = \"alerts\"\nweight = 10\nreserved = 0.2\n\
                [[limit]]\nprovider = \"google\"\nconnections = 5\n";
    let mut fleet = Fleet::new(2, &format!("{UNSHIPPED}{more}"));
    fleet.takes = SECOND;
    let domains = google(&mut fleet, 12);
    fleet.accept(500, "t", "transactional", &domains[0], 10).await;
    fleet.run(5 * SECOND).await;
    let first = fleet.sent[0].connection.0;
    for domain in &domains[1..] {
        fleet.accept(20, "t", "transactional", domain, 10).await;
    }
    fleet.run(60 * SECOND).await;
    let (here, elsewhere) = (
        fleet.count(|sent| sent.connection.0 == first && sent.domain != domains[0]),
        fleet.count(|sent| sent.connection.0 != first),
    );
    assert!(here > 30 && elsewhere > 30, "{here} and {elsewhere}");
    assert_eq!(fleet.most_at_once(every), 4, "one is kept for alerts");
}

/// The gate goes with the last day, and mail waits there.
#[tokio::test]
async fn mail_that_waits_for_a_new_source_goes_when_it_is_warm() {
    // The tests begin on 14 November 2023, at 22:13:20 UTC.
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n\
                [source.warm_up]\nstart = \"2023-11-14\"\nfirst = 4\nfactor = 2\ndays = 2\n\
                [[pool]]\nname = \"one\"\nsources = [\"s1\"]\n[delivery]\npool = \"one\"\nshipped_limits = false\n";
    let mut fleet = Fleet::new(1, more);
    for domain in google(&mut fleet, 2) {
        fleet.accept(50, "t", "bulk", &domain, 10).await;
    }
    fleet.run(3_600 * SECOND).await;
    assert_eq!(fleet.count(every), 3, "three of four");
    fleet.run(2 * 86_400 * SECOND).await;
    assert_eq!(fleet.count(every), 100);
}

/// A part is there again when its own mail has gone, whatever else waits for much longer, and for a connection, too.
#[tokio::test]
async fn what_is_kept_comes_back_while_other_mail_waits() {
    let stream = "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n[[limit]]\nprovider = \"google\"\n";
    for limits in [
        "messages_per_second = 10\nmessages_per_day = 100\n",
        "connections = 4\nmessages_per_day = 100\n",
        "connections = 5\nmessages_per_hour = 100\n",
        "connections = 3\nmessages_per_hour = 100\n",
    ] {
        for shards in [1, 2] {
            let mut fleet = Fleet::new(shards, &format!("{UNSHIPPED}{stream}{limits}"));
            let domains = google(&mut fleet, 9);
            for domain in &domains {
                fleet.accept(20, "t", "bulk", domain, 10).await;
            }
            fleet.run(60 * SECOND).await;
            assert_eq!(fleet.count(every), 75, "{limits} {shards}");
            for domain in &domains[..5] {
                fleet.accept(5, "t", "transactional", domain, 10).await;
            }
            fleet.run(30 * SECOND).await;
            assert_eq!(fleet.count(every), 100, "{limits} {shards}");
        }
    }
}

/// CASES §2: a clock that was ahead.
#[tokio::test]
async fn what_was_counted_by_a_clock_that_was_ahead_holds_mail_no_longer_than_its_span() {
    let limit = "[[limit]]\nsite = \"*\"\nmessages_per_minute = 60\n";
    let mut fleet = Fleet::new(2, limit);
    let right = fleet.now;
    fleet.now = right + Duration::from_secs(3 * 86_400);
    fleet.accept(50, "t", "bulk", "a.test", 10).await;
    fleet.run(10 * SECOND).await;
    assert_eq!(fleet.count(every), 50);
    fleet.now = right + 20 * SECOND;
    let mut fleet = fleet.restarted(limit);
    fleet.accept(100, "t", "bulk", "a.test", 10).await;
    fleet.run(30 * SECOND).await;
    assert!(fleet.count(every) <= 10, "fifty of sixty are used");
    fleet.run(180 * SECOND).await;
    assert_eq!(fleet.count(every), 100);
}

#[tokio::test]
async fn a_limit_that_comes_with_a_reload_counts_what_is_on_the_wire() {
    for (before, limit) in [
        ("", "[[limit]]\ntenant = \"t\"\nconnections = 2\n"),
        ("", "[[limit]]\nsite = \"*\"\nbytes_in_flight = \"1 KiB\"\n"),
        (
            "[[limit]]\nsite = \"*\"\nconnections = 100\n",
            "[[limit]]\nsite = \"*\"\nconnections = 100\nbytes_in_flight = \"1 KiB\"\n",
        ),
    ] {
        let mut fleet = Fleet::new(2, before);
        fleet.takes = 10 * SECOND;
        fleet.accept(60, "t", "bulk", "a.test", 400).await;
        fleet.run(SECOND).await;
        assert_eq!(fleet.count(every), 20);
        fleet.renew(limit);
        fleet.run(8 * SECOND).await;
        assert_eq!(fleet.count(every), 20, "{limit}");
        fleet.run(10 * SECOND).await;
        assert_eq!(fleet.count(every), 22, "{limit}");
    }
}

/// A rule, and what has to hold of what was sent.
#[derive(Clone, Debug)]
struct Rule {
    axes: &'static str,
    key: &'static str,
    value: u64,
}

fn rule() -> impl Strategy<Value = Rule> {
    let axes = prop_oneof![
        Just("site = \"*\""),
        Just("provider = \"google\""),
        Just("tenant = \"*\""),
        Just("tenant = \"t\""),
        Just("tenant = \"*\"\nprovider = \"google\""),
        Just("site = \"*\"\ntenant = \"u\""),
        Just("source = \"*\""),
        Just(OF_A_SOURCE),
    ];
    let key = prop_oneof![
        Just("connections"),
        Just("connections_per_second"),
        Just("messages_per_second"),
        Just("messages_per_minute"),
        Just("messages_per_hour"),
        Just("messages_per_day"),
        Just("bytes_in_flight"),
    ];
    let rule = (axes, key, 1u64..40).prop_map(|(axes, key, value)| Rule { axes, key, value });
    rule.prop_filter("connections serve all tenants", |rule| {
        rule.key != "connections_per_second" || !rule.axes.contains("tenant")
    })
}

const OF_A_SOURCE: &str = "source = \"s1\"\nprovider = \"google\"";

/// Octets of each message; what may be in flight is limited by the KiB.
const SIZE: usize = 400;

/// Groups of what was sent that share one budget of the rule.
fn groups<'a>(rule: &Rule, sent: &'a [Sent]) -> Vec<Vec<&'a Sent>> {
    let mut groups: std::collections::BTreeMap<(String, String), Vec<&Sent>> = Default::default();
    for sent in sent {
        let is_google = sent.domain.starts_with('g');
        let (site, tenant) = (sent.domain.clone(), sent.tenant.clone());
        let source = sent.source.as_deref().unwrap_or_default().to_owned();
        let group = match rule.axes {
            "site = \"*\"" => Some((site, String::new())),
            "provider = \"google\"" => is_google.then(Default::default),
            "tenant = \"*\"" => Some((String::new(), tenant)),
            "tenant = \"t\"" => (tenant == "t").then(Default::default),
            "tenant = \"*\"\nprovider = \"google\"" => is_google.then_some((String::new(), tenant)),
            "source = \"*\"" => Some((source, String::new())),
            OF_A_SOURCE => (is_google && source != "s2").then(Default::default),
            _ => (tenant == "u").then_some((site, String::new())),
        };
        if let Some(group) = group {
            groups.entry(group).or_default().push(sent);
        }
    }
    groups.into_values().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Promise 5: whatever the rules and however their mail is interleaved, with a restart and a reload on the way, no limit is
    /// exceeded, in any span; what they leave room for is sent.
    #[test]
    fn no_limit_is_exceeded(
        rules in proptest::collection::vec(rule(), 1..4),
        waves in proptest::collection::vec((0usize..6, any::<bool>(), 1usize..20), 1..12),
        shards in 1usize..4,
        from_pool in any::<bool>(),
        (restart, reload) in (0usize..24, 0usize..24),
        reserved in prop_oneof![Just(0.0), Just(0.3)],
        seed in 0u64..1_000,
    ) {
        let mut rules = rules;
        rules.sort_by_key(|rule| rule.axes);
        rules.dedup_by_key(|rule| rule.axes);
        // The rule that names more holds in place of the other.
        if rules.iter().any(|rule| rule.axes == "tenant = \"t\"") {
            rules.retain(|rule| rule.axes != "tenant = \"*\"");
        }
        let table = |rule: &Rule| {
            let value = match rule.key {
                "bytes_in_flight" => format!("\"{} KiB\"", rule.value),
                _ => rule.value.to_string(),
            };
            format!("[[limit]]\n{}\n{} = {value}\n", rule.axes, rule.key)
        };
        let more: String = rules.iter().map(table).collect();
        let (sources, more) = match from_pool {
            true => (format!("{TWO_SOURCES}shipped_limits = false\n"), more),
            false => (UNSHIPPED.to_owned(), more.replace("\"s1\"", "\"default\"")),
        };
        let stream = format!("[[stream]]\nname = \"transactional\"\nreserved = {reserved}\n");
        let more = format!("{sources}[tenants.u]\nsenders = [\"*\"]\n{stream}{more}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sent = runtime.block_on(async {
            let mut fleet = Fleet::seeded(shards, &more, seed);
            for number in 0..3 {
                let host = format!("mx{number}.aspmx.l.google.com");
                fleet.hosts.insert(format!("g{number}.test"), vec![host]);
            }
            let (mut all, mut before) = (0, Vec::new());
            for (wave, (number, is_t, count)) in waves.into_iter().enumerate() {
                let domain = format!("{}{}.test", if number < 3 { "g" } else { "d" }, number % 3);
                let stream = if count % 3 == 0 { "transactional" } else { "bulk" };
                fleet.accept(count, if is_t { "t" } else { "u" }, stream, &domain, SIZE).await;
                fleet.run(Duration::from_millis(700)).await;
                all += count;
                if wave == reload {
                    fleet.renew(&more);
                }
                if wave == restart {
                    before = std::mem::take(&mut fleet.sent);
                    before.iter_mut().for_each(|sent| sent.until = sent.until.min(fleet.now));
                    fleet = fleet.restarted(&more);
                }
            }
            fleet.run(Duration::from_secs(400)).await;
            before.append(&mut fleet.sent);
            (before, all)
        });
        let (sent, all) = sent;
        let is_window = |rule: &Rule| ["minute", "hour", "day"].iter().any(|span| rule.key.ends_with(span));
        if !rules.iter().any(is_window) {
            // What was on the wire at the restart goes twice.
            prop_assert!(sent.len() >= all, "none is forgotten");
        }
        for rule in &rules {
            for group in groups(rule, &sent) {
                let value = rule.value as usize;
                let within = |span: Duration| {
                    group.iter().enumerate().map(|(first, from)| {
                        group[first..].iter().take_while(|sent| sent.at.since(from.at) < span).count()
                    }).max().unwrap_or(0)
                };
                let at_once = || {
                    let at = |at| group.iter().filter(|sent| sent.at <= at && at < sent.until).count();
                    group.iter().map(|sent| at(sent.at)).max().unwrap_or(0)
                };
                let opened = || {
                    let opened: Vec<_> = group.iter().filter(|sent| sent.opened).collect();
                    let within = |from: Timestamp| move |sent: &&&&Sent| sent.at >= from && sent.at.since(from) < SECOND;
                    opened.iter().map(|sent| opened.iter().filter(within(sent.at)).count()).max().unwrap_or(0)
                };
                let (most, bound) = match rule.key {
                    "connections" => (at_once(), value),
                    "connections_per_second" => (opened(), value + 1),
                    "bytes_in_flight" => (at_once() * SIZE, value * 1_024),
                    "messages_per_second" => (within(SECOND), value + 1),
                    "messages_per_minute" => (within(60 * SECOND), value),
                    // The whole run takes less than an hour.
                    _ => (within(3_600 * SECOND), value),
                };
                prop_assert!(most <= bound, "{most} of {rule:?} with {shards} shards");
            }
        }
    }
}
