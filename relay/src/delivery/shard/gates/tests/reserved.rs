//! What is kept for streams.

use super::*;

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

/// Its mail leaves the line while nothing is left for it, and what may have more than that goes on.
#[tokio::test]
async fn a_stream_for_which_nothing_is_left_lets_others_go() {
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n\
                [[limit]]\nprovider = \"google\"\nconnections = 8\nmessages_per_day = 200\n";
    for shards in [1, 2] {
        let mut fleet = Fleet::new(shards, &format!("{UNSHIPPED}{more}"));
        fleet.takes = SECOND;
        let domains = google(&mut fleet, 3);
        for domain in &domains {
            fleet.accept(100, "t", "bulk", domain, 10).await;
        }
        fleet.run(60 * SECOND).await;
        assert_eq!(fleet.count(every), 150);
        for domain in &domains {
            fleet.accept(16, "t", "transactional", domain, 10).await;
        }
        // Two at once are its own part of the connections; for six it stands where the newsletters do, which have had all of their day.
        fleet.run(9 * SECOND).await;
        let resets = fleet.count(|sent| sent.stream == "transactional");
        assert_eq!(resets, 48, "{shards} shards");
    }
}

/// Connections that nobody uses at the moment are no reason to wait for whom a part is kept, wherever they are; nor does other mail get
/// that part by them.
#[tokio::test]
async fn what_is_kept_of_connections_is_there_while_all_are_open() {
    let more = "[[stream]]\nname = \"transactional\"\nreserved = 0.25\n[[limit]]\nprovider = \"google\"\nconnections = 4\n";
    for shards in [1, 2] {
        let mut fleet = Fleet::new(shards, &format!("{UNSHIPPED}{more}"));
        fleet.takes = 2 * SECOND;
        let domains = google(&mut fleet, 9);
        let mut all_open = 0;
        for number in 0..40 {
            for domain in &domains[..6] {
                fleet.accept(2, "t", "bulk", domain, 10).await;
            }
            for _ in 0..100 {
                fleet.run(SECOND / 20).await;
                if fleet.open.len() == 4 {
                    all_open += 1;
                    break;
                }
            }
            // At first by a connection of its own that is idle, then by none.
            let domain = &domains[if number < 20 { 6 } else { 6 + number % 3 }];
            let asked = fleet.now;
            fleet.accept(1, "t", "transactional", domain, 10).await;
            fleet.run(SECOND / 100).await;
            let resets = fleet.count(|sent| sent.stream == "transactional" && sent.at >= asked);
            assert_eq!(resets, 1, "{shards} shards, {number}");
            fleet.run(7 * SECOND / 2).await;
        }
        assert!(all_open > 30, "{all_open}");
        assert_eq!(fleet.most_at_once(|sent| sent.stream == "bulk"), 3);
        assert!(fleet.count(|sent| sent.stream == "bulk") > 120);
    }
}
