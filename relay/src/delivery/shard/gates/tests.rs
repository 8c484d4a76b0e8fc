use std::time::Duration;

use mail_core::{MessageId, Timestamp};
use queue::{QueueId, UnitKey};

use crate::delivery::exchange::Waits;
use crate::delivery::lane::ConnectionId;
use crate::delivery::shard::fleet::{Answer, Fleet, START, Sent};
use crate::delivery::shard::{Active, Settled};

mod connections;
mod random;
mod reserved;

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
    assert!(fleet.sent.iter().all(|sent| sent.at == asked), "{:?}", fleet.sent);
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

/// What is counted is on disk ahead of use, for moments to come: a start under a full minute waits for each of its parts, and no longer.
#[tokio::test]
async fn a_crash_under_a_full_minute_is_followed_by_the_next_messages() {
    let limit = "[[limit]]\nsite = \"*\"\nmessages_per_minute = 60\n";
    let mut fleet = Fleet::new(2, limit);
    // As many as may go, so that the first part of the window is over at each moment, and some more that wait.
    for second in 0..90 {
        let count = if second < 20 { 2 } else { 1 };
        fleet.accept(count, "t", "bulk", "a.test", 10).await;
        fleet.run(SECOND).await;
    }
    let before = fleet.sent.clone();
    let mut fleet = fleet.restarted(limit);
    fleet.accept(60, "t", "bulk", "a.test", 10).await;
    fleet.run(60 * SECOND).await;
    let after = fleet.count(every);
    assert!((50..=60).contains(&after), "{after}");
    fleet.sent.splice(0..0, before);
    let most = fleet.most_within(60 * SECOND, every);
    assert!(most <= 60, "{most} in a minute");
}

/// Who waits for counts to be written goes once they are, however often that is.
#[tokio::test]
async fn mail_waits_for_its_counts_no_longer_than_the_disk_takes() {
    for most in [10, 60, 1_000] {
        let limit = format!("[[limit]]\nsite = \"*\"\nmessages_per_minute = {most}\n");
        let mut fleet = Fleet::new(2, &limit);
        fleet.takes = SECOND / 1_000;
        fleet.accept(1, "t", "bulk", "a.test", 10).await;
        fleet.run(30 * SECOND).await;
        let asked = fleet.now;
        fleet.accept(9, "t", "bulk", "a.test", 10).await;
        fleet.run(SECOND).await;
        let last = fleet.sent.last().unwrap().at;
        assert_eq!(fleet.count(every), 10);
        assert!(
            last.since(asked) < SECOND / 100,
            "{most}: {:?}",
            last.since(asked)
        );
    }
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
            .due(*id, (Timestamp(0), MessageId::LEAST, 0), 1)
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
    assert_eq!(fleet.queue.counts(None, 9).unwrap().len(), 5);
    let later = fleet.now + 2 * 3_600 * SECOND;
    ledger.tidy(later);
    assert_eq!(ledger.used(later), []);
    let keeping = ledger.keep(&fleet.queue, crate::world::Clock::anchored(later), |_, _| {});
    assert!(
        tokio::time::timeout(Duration::from_millis(50), keeping)
            .await
            .is_err()
    );
    assert_eq!(fleet.queue.counts(None, 9).unwrap(), []);
}

const TWO_SOURCES: &str = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n[[source]]\nname = \"s2\"\naddresses = [\"192.0.2.2\"]\n\
    [[pool]]\nname = \"both\"\nsources = [\"s1\", \"s2\"]\n[delivery]\npool = \"both\"\n";

/// The claim stays, so that nothing is sent twice; what it took of limits came back with the outcome.
#[tokio::test]
async fn an_outcome_that_was_not_recorded_takes_nothing_of_a_limit_after_a_reload() {
    let limit = "[[limit]]\ntenant = \"*\"\nconnections = 2\n";
    let mut fleet = Fleet::new(1, limit);
    fleet.takes = 3_600 * SECOND;
    fleet.accept(2, "t", "bulk", "a.test", 10).await;
    fleet.run(2 * SECOND).await;
    let units = |(&queue, active): (&QueueId, &Active)| {
        let claimed = active.agenda.claimed();
        let unit = |(due, id, unit)| UnitKey { queue, due, id, unit };
        claimed.map(unit).collect::<Vec<_>>()
    };
    let begun: Vec<_> = fleet.shards[0].active.iter().flat_map(units).collect();
    assert_eq!(begun.len(), 2);
    for unit in &begun {
        fleet.shards[0].settled(unit, Settled::Unknown, fleet.now);
    }
    fleet.renew(limit);
    fleet.accept(5, "t", "bulk", "b.test", 10).await;
    fleet.run(10 * SECOND).await;
    assert_eq!(fleet.count(|sent| sent.domain == "b.test"), 2);
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

/// Begun before there was a limit, it has used none of it, whatever becomes of it.
#[tokio::test]
async fn what_was_begun_before_a_limit_came_gives_nothing_of_it_back() {
    let before = "[[limit]]\ntenant = \"t\"\nconnections = 100\n";
    for key in ["messages_per_minute", "messages_per_hour", "messages_per_day"] {
        let mut fleet = Fleet::new(2, before);
        fleet.peer = Some(Box::new(|sent, _| match sent.domain.as_str() {
            "silent.test" => Answer::Silence,
            _ => Answer::Takes(SECOND / 10),
        }));
        fleet.accept(20, "t", "bulk", "silent.test", 10).await;
        fleet.run(SECOND).await;
        fleet.renew(&format!("{before}{key} = 60\n"));
        fleet.accept(100, "t", "bulk", "a.test", 10).await;
        fleet.run(40 * SECOND).await;
        assert!(
            fleet.most_within(40 * SECOND, every) <= 60,
            "{key}: {}",
            fleet.count(every)
        );
        assert!(fleet.count(every) >= 50, "{key}: {}", fleet.count(every));
    }
}

/// Nothing has gone: no attempt is held against the hour, whenever its budget leaves memory and comes back.
#[tokio::test]
async fn a_connection_that_is_refused_takes_nothing_of_an_hour() {
    for limit in [
        "[[limit]]\nsite = \"*\"\nmessages_per_hour = 2\n",
        "[[limit]]\ntenant = \"*\"\nmessages_per_hour = 1\n",
    ] {
        for second in [0, 13, 26] {
            let mut fleet = Fleet::new(1, limit);
            let mut refusals = 3;
            fleet.peer = Some(Box::new(move |_, _| {
                if refusals == 0 {
                    return Answer::Takes(SECOND / 10);
                }
                refusals -= 1;
                Answer::Refuses("421 4.3.2 not now")
            }));
            fleet.run(second * SECOND).await;
            fleet.accept(1, "t", "bulk", "a.test", 10).await;
            fleet.run(3_600 * SECOND).await;
            assert_eq!(fleet.count(every), 1, "begun at second {second}: {limit}");
        }
    }
}

/// Its lane went while its outcome was being recorded, and another lane has the slot.
#[tokio::test]
async fn what_is_on_the_wire_of_a_lane_that_has_gone_is_counted_in_no_other() {
    let before = "[[limit]]\nsite = \"*\"\nconnections = 100\n";
    let mut fleet = Fleet::new(1, before);
    fleet.takes = 3_600 * SECOND;
    fleet.accept(1, "t", "bulk", "a.test", 5_000).await;
    fleet.run(2 * SECOND).await;
    let (&(_, connection), _) = fleet.open.first_key_value().unwrap();
    let (id, now) = (QueueId(1), fleet.now);
    let shard = &mut fleet.shards[0];
    let (gone, _) = shard.lanes.iter().next().unwrap();
    assert_eq!(shard.active[&id].agenda.claims(), 1);
    shard.leave_lanes(id);
    shard.connection_closed(gone, ConnectionId(connection), now);
    assert!(!shard.lanes.contains(gone));
    fleet.accept(1, "t", "bulk", "b.test", 10).await;
    fleet.run(2 * SECOND).await;
    assert_eq!(&*fleet.shards[0].lanes[gone].key.site, "mx.b.test");
    // The other queue goes elsewhere by now.
    fleet.hosts.insert("a.test".into(), vec!["mx.c.test".into()]);
    fleet.accept(1, "t", "bulk", "a.test", 10).await;
    fleet.run(2 * SECOND).await;
    assert_eq!(fleet.count(every), 3);
    fleet.renew(&format!("{before}bytes_in_flight = \"1 MiB\"\n"));
    let ledger = fleet.shards[0].place.ledger();
    let used = ledger.used(fleet.now).into_iter();
    let used: Vec<_> = used
        .filter(|(scope, _)| scope.site.as_deref() == Some("mx.b.test"))
        .map(|(_, used)| used.bytes)
        .collect();
    assert_eq!(used.len(), 1);
    assert!(used[0] < 5_000, "{used:?}");
}
