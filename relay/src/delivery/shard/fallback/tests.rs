use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use queue::{HoldRecord, HoldScope, RouteGroup};

use super::super::fleet::{Answer, Fleet, START, Sent};
use super::super::operator::tests::adjustment;
use crate::delivery::detour::{Closed, Detour};
use crate::delivery::exchange::{Loan, Why, Word};
use crate::delivery::route::Route;
use crate::world::Random;

const MINUTE: Duration = Duration::from_secs(60);

const HOUR: Duration = Duration::from_secs(3_600);

const OUT: &str = "[[smart_host]]\nname = \"out\"\nhosts = [{ address = \"::1\" }]\n";

const RULE: &str = "[[route]]\nnext_hop = \"mx\"\nfallback = \"out\"\n";

const RETRY: &str = "[delivery.retry]\nfirst = \"5m\"\ncap = \"1h\"\n";

const BY_OUT: &str = "smart host out";

/// Sites of which no host answers.
#[derive(Clone, Default)]
struct Down(Rc<RefCell<BTreeSet<String>>>);

impl Down {
    fn set<'a>(&self, sites: impl IntoIterator<Item = &'a str>) {
        *self.0.borrow_mut() = sites.into_iter().map(str::to_owned).collect();
    }
}

fn fleet(shards: usize, seed: u64, more: &str) -> (Fleet, Down) {
    let mut fleet = Fleet::seeded(shards, more, seed);
    fleet.closes_first = true;
    let down = Down::default();
    obeys(&mut fleet, &down);
    (fleet, down)
}

fn obeys(fleet: &mut Fleet, down: &Down) {
    let down = down.clone();
    fleet.peer = Some(Box::new(move |sent: &Sent, _| {
        match down.0.borrow().contains(&sent.site) {
            true => Answer::Silence,
            false => Answer::Takes(Duration::from_millis(100)),
        }
    }));
}

fn configured() -> String {
    format!("{RETRY}{OUT}{RULE}")
}

fn group(fleet: &Fleet, name: &str) -> RouteGroup {
    fleet.queue.route_groups(&[name]).unwrap()[0]
}

/// A message to each of so many domains, by the way with a fallback.
async fn accept(fleet: &mut Fleet, domains: usize) {
    let group = group(fleet, "mx fallback out");
    for number in 0..domains {
        let domain = format!("d{number}.test");
        fleet
            .accept_by(group, (1, 10), ("t", "transactional"), &domain)
            .await;
    }
}

fn by_out(sent: &Sent) -> bool {
    sent.site == BY_OUT
}

fn all_sites(domains: usize) -> Vec<String> {
    (0..domains).map(|number| format!("mx.d{number}.test")).collect()
}

#[tokio::test]
async fn mail_of_a_silent_destination_goes_by_its_fallback_and_back() {
    const DOMAINS: usize = 7;
    for (shards, seed) in [(1, 1), (2, 2), (3, 3), (3, 4)] {
        let (mut fleet, down) = fleet(shards, seed, &configured());
        let sites = all_sites(DOMAINS);
        down.set(sites.iter().map(String::as_str));
        let mut accepted = 0;
        // A message a minute for each.
        for _ in 0..120 {
            accept(&mut fleet, DOMAINS).await;
            accepted += DOMAINS;
            fleet.run(MINUTE).await;
        }
        assert!(fleet.sent.iter().all(by_out), "{shards} shards");
        assert!(
            fleet.sent.len() + DOMAINS >= accepted,
            "{} of {accepted}",
            fleet.sent.len()
        );
        // As many tries as a relay without a fallback makes: 3, then one for each rest.
        let (from, to) = (DOMAINS * 3, DOMAINS * 10);
        assert!(
            (from..=to).contains(&fleet.refused.len()),
            "{}",
            fleet.refused.len()
        );
        assert!(fleet.fallbacks <= DOMAINS * 10, "{}", fleet.fallbacks);

        down.set([]);
        fleet.run(2 * HOUR).await;
        let before = fleet.count(by_out);
        accept(&mut fleet, DOMAINS).await;
        accepted += DOMAINS;
        fleet.run(MINUTE).await;
        assert_eq!(fleet.sent.len(), accepted, "each once: {shards} shards");
        assert_eq!(fleet.count(by_out), before, "the first way again");
    }
}

#[tokio::test]
async fn a_backlog_moves_at_once_and_comes_back() {
    for shards in [1, 3] {
        let limits = "[smart_host.limits]\nmessages_per_second = 1\n";
        let more = format!("{RETRY}{OUT}{limits}{RULE}");
        let (mut fleet, down) = fleet(shards, 5, &more);
        down.set(["mx.d0.test"]);
        for _ in 0..2_000 {
            accept(&mut fleet, 1).await;
        }
        fleet.run(20 * MINUTE).await;
        let sent = fleet.sent.len();
        assert!(
            fleet.sent.iter().all(by_out) && (10..1_200).contains(&sent),
            "{sent}"
        );
        assert!(
            fleet.most_within(MINUTE, by_out) <= 61,
            "the smart host's limits hold"
        );
        down.set([]);
        fleet.run(2 * HOUR).await;
        assert_eq!(fleet.sent.len(), 2_000);
        assert!(fleet.count(by_out) < 2_000, "what was left went its first way");
    }
}

#[tokio::test]
async fn a_domain_that_nobody_knows_of_goes_by_its_fallback() {
    for shards in [1, 3] {
        let (mut fleet, _) = fleet(shards, 6, &configured());
        fleet.unknown.insert("d0.test".into());
        accept(&mut fleet, 2).await;
        fleet.run(MINUTE).await;
        assert_eq!(fleet.sent.len(), 1, "not before it has failed thrice");
        fleet.run(HOUR).await;
        assert_eq!((fleet.sent.len(), fleet.count(by_out)), (2, 1));
        for _ in 0..60 {
            accept(&mut fleet, 2).await;
            fleet.run(MINUTE).await;
        }
        assert_eq!((fleet.sent.len(), fleet.count(by_out)), (122, 61));
        // The other one is asked for each message.
        assert!(fleet.asked < 60 + 20, "{}", fleet.asked);
        fleet.unknown.clear();
        fleet.run(2 * HOUR).await;
        accept(&mut fleet, 2).await;
        fleet.run(MINUTE).await;
        assert_eq!((fleet.sent.len(), fleet.count(by_out)), (124, 61));
    }
}

#[tokio::test]
async fn where_the_fallback_is_down_as_well_mail_waits_for_either() {
    for (shards, first_is_up) in [(1, false), (3, false), (1, true), (3, true)] {
        let (mut fleet, down) = fleet(shards, 7, &configured());
        down.set(["mx.d0.test", BY_OUT]);
        for _ in 0..60 {
            accept(&mut fleet, 1).await;
            fleet.run(6 * MINUTE).await;
        }
        assert_eq!(fleet.sent.len(), 0);
        // Each rests by its own account.
        assert!(fleet.refused.len() < 60, "{}", fleet.refused.len());
        assert!(fleet.fallbacks < 20, "{}", fleet.fallbacks);
        down.set([if first_is_up { BY_OUT } else { "mx.d0.test" }]);
        fleet.run(3 * HOUR).await;
        let by = if first_is_up { 0 } else { 60 };
        assert_eq!((fleet.sent.len(), fleet.count(by_out)), (60, by));
    }
}

/// What a destination rests for is in the store.
#[tokio::test]
async fn after_a_restart_mail_goes_by_its_fallback_at_once() {
    for shards in [1, 3] {
        let (mut fleet, down) = fleet(shards, 8, &configured());
        down.set(["mx.d0.test"]);
        fleet.unknown.insert("d1.test".into());
        let scopes = [
            HoldScope::Lane("mx.d0.test".into()),
            HoldScope::Domain("d1.test".parse().unwrap()),
        ];
        let rests = |fleet: &Fleet| {
            let held = |scope| fleet.queue.held(scope).unwrap();
            let enough = |hold: HoldRecord| hold.failures >= 3 && hold.until > fleet.now + MINUTE;
            scopes.iter().all(|scope| held(scope).is_some_and(enough))
        };
        while !rests(&fleet) {
            assert!(fleet.now < START + 6 * HOUR);
            accept(&mut fleet, 2).await;
            fleet.run(2 * MINUTE).await;
        }
        let mut fresh = fleet.restarted(&configured());
        obeys(&mut fresh, &down);
        accept(&mut fresh, 2).await;
        fresh.run(Duration::from_secs(20)).await;
        assert_eq!(fresh.count(by_out), 2);
        assert_eq!(fresh.refused.len(), 0, "nothing was tried again");
    }
}

#[tokio::test]
async fn a_reload_that_takes_the_fallback_away_leaves_mail_its_first_way() {
    for shards in [1, 3] {
        let slow = format!("{RETRY}{OUT}[smart_host.limits]\nmessages_per_second = 0.01\n{RULE}");
        let (mut fleet, down) = fleet(shards, 9, &slow);
        down.set(["mx.d0.test"]);
        for _ in 0..50 {
            accept(&mut fleet, 1).await;
        }
        fleet.run(30 * MINUTE).await;
        let before = fleet.count(by_out);
        assert!((1..40).contains(&before), "{before}");
        fleet.renew(RETRY);
        fleet.run(2 * HOUR).await;
        assert_eq!(fleet.sent.len(), before, "the rest waits for its first way");
        fleet.renew(&format!("{RETRY}{OUT}{RULE}"));
        fleet.run(HOUR).await;
        assert_eq!(fleet.count(by_out), 50, "and goes round it when that may be");
        down.set([]);
    }
}

#[tokio::test]
async fn a_destination_that_answers_is_not_got_round() {
    for said in [
        "421 4.7.0 too much mail from you",
        "421 4.7.0 try again in 5 minutes",
        "451 4.3.0 out of disk",
    ] {
        let (mut fleet, _) = fleet(2, 10, &configured());
        fleet.peer = Some(Box::new(move |_, _| Answer::Refuses(said)));
        accept(&mut fleet, 3).await;
        fleet.run(24 * HOUR).await;
        assert_eq!((fleet.sent.len(), fleet.fallbacks), (0, 0), "{said}");
        assert!(fleet.refused.len() > 12, "{said}");
    }
}

const SOURCES: &str = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n[[source]]\nname = \"s2\"\n\
    addresses = [\"192.0.2.2\"]\n[[pool]]\nname = \"both\"\nsources = [\"s1\", \"s2\"]\n\
    [delivery]\npool = \"both\"\n";

#[tokio::test]
async fn another_source_that_gets_through_keeps_mail_on_its_first_way() {
    let more = format!("{SOURCES}{RETRY}{OUT}{RULE}");
    let (mut fleet, _) = fleet(2, 11, &more);
    let both = Rc::new(RefCell::new(false));
    let down = both.clone();
    fleet.peer = Some(Box::new(move |sent: &Sent, _| {
        let is_first = sent.source.as_deref() == Some("s1");
        match !by_out(sent) && (is_first || *down.borrow()) {
            true => Answer::Silence,
            false => Answer::Takes(Duration::from_millis(100)),
        }
    }));
    for _ in 0..60 {
        accept(&mut fleet, 2).await;
        fleet.run(2 * MINUTE).await;
    }
    assert_eq!((fleet.sent.len(), fleet.fallbacks), (120, 0));
    *both.borrow_mut() = true;
    for _ in 0..60 {
        accept(&mut fleet, 2).await;
        fleet.run(2 * MINUTE).await;
    }
    // The fallback is spoken to from both.
    let from = |name: &'static str| move |sent: &Sent| by_out(sent) && sent.source.as_deref() == Some(name);
    let (s1, s2) = (fleet.count(from("s1")), fleet.count(from("s2")));
    assert!(s1 > 30 && s2 > 30, "{s1} and {s2}");
}

#[tokio::test]
async fn a_smart_host_has_a_fallback_too() {
    let relay = "[[smart_host]]\nname = \"relay\"\nhosts = [{ address = \"::1\" }]\n\
                 [[route]]\nnext_hop = \"relay\"\nfallback = \"out\"\n";
    for shards in [1, 2, 3] {
        let (mut fleet, down) = fleet(shards, 12, &format!("{RETRY}{OUT}{relay}"));
        let group = group(&fleet, "smart host relay fallback out");
        for hour in 0..9 {
            match hour {
                2 => down.set(["smart host relay"]),
                5 => down.set([]),
                _ => {}
            }
            for minute in 0..60 {
                let domain = format!("d{}.test", minute % 5);
                fleet.accept_by(group, (1, 10), ("t", "bulk"), &domain).await;
                fleet.run(MINUTE).await;
            }
        }
        assert_eq!(fleet.sent.len(), 9 * 60);
        let first = fleet.count(|sent| sent.site == "smart host relay");
        assert!((5 * 60..7 * 60).contains(&first), "{first} by the first way");
        assert_eq!(fleet.count(by_out) + first, 9 * 60);
        assert_eq!(fleet.asked, 0);
    }
}

const NEXT: &str = "[[smart_host]]\nname = \"next\"\nhosts = [{ address = \"::1\" }]\n";

const BOTH: &str = "[[route]]\nnext_hop = \"mx\"\nfallback = [\"out\", \"next\"]\n";

/// Messages to so many domains, a minute apart for so long, by the way with both fallbacks.
async fn accept_by_both(fleet: &mut Fleet, domains: usize, minutes: usize) {
    let group = group(fleet, "mx fallback out,next");
    for _ in 0..minutes {
        for number in 0..domains {
            let domain = format!("d{number}.test");
            let whose = ("t", "transactional");
            fleet.accept_by(group, (1, 10), whose, &domain).await;
        }
        fleet.run(MINUTE).await;
    }
}

#[tokio::test]
async fn mail_goes_by_the_first_fallback_that_can_be_spoken_to() {
    let by_next = |sent: &Sent| sent.site == "smart host next";
    for (shards, seed) in [(1, 15), (2, 16), (3, 17)] {
        let more = format!("{RETRY}{OUT}{NEXT}{BOTH}");
        let (mut fleet, down) = fleet(shards, seed, &more);
        let sites = all_sites(3);
        let firsts = || sites.iter().map(String::as_str);
        down.set(firsts());
        accept_by_both(&mut fleet, 3, 60).await;
        assert_eq!((fleet.count(by_out), fleet.count(by_next)), (fleet.sent.len(), 0));
        assert!(fleet.sent.len() > 3 * 50, "{}", fleet.sent.len());
        // The first one falls silent, too.
        let (sent, by_first) = (fleet.sent.len(), fleet.count(by_out));
        down.set(firsts().chain([BY_OUT]));
        accept_by_both(&mut fleet, 3, 60).await;
        assert_eq!(fleet.count(by_out), by_first);
        assert!(
            fleet.count(by_next) > 3 * 50,
            "{shards} shards: {}",
            fleet.count(by_next)
        );
        assert!(fleet.sent.len() > sent + 3 * 50);
        // It is back before the destinations are.
        down.set(firsts());
        fleet.run(2 * HOUR).await;
        let before = fleet.count(by_next);
        accept_by_both(&mut fleet, 3, 30).await;
        assert_eq!(fleet.count(by_next), before, "{shards} shards");
        // And then they are.
        down.set([]);
        fleet.run(2 * HOUR).await;
        let before = fleet.count(|sent| by_out(sent) || by_next(sent));
        accept_by_both(&mut fleet, 3, 10).await;
        assert_eq!(fleet.count(|sent| by_out(sent) || by_next(sent)), before);
        assert_eq!(fleet.sent.len(), 3 * (60 + 60 + 30 + 10), "each once");
    }
}

/// Suspended by an operator it is passed over as well.
#[tokio::test]
async fn a_fallback_that_is_suspended_is_passed_over() {
    let (mut fleet, down) = fleet(2, 18, &format!("{RETRY}{OUT}{NEXT}{BOTH}"));
    down.set(["mx.d0.test"]);
    let scope = queue::Scope {
        site: Some(BY_OUT.into()),
        ..queue::Scope::default()
    };
    let record = queue::AdjustmentRecord {
        key: queue::AdjustmentKey::suspended(scope),
        ..adjustment(None, fleet.now)
    };
    let record = std::sync::Arc::new(record);
    let now = fleet.now;
    for shard in &mut fleet.shards {
        shard.hear(Word::Adjusted(record.clone()), now);
    }
    accept_by_both(&mut fleet, 1, 60).await;
    assert_eq!(fleet.count(by_out), 0);
    assert!(fleet.sent.len() > 50, "{}", fleet.sent.len());
}

#[tokio::test]
async fn operators_are_told_that_mail_goes_by_its_fallback() {
    let slow = format!("{RETRY}{OUT}[smart_host.limits]\nmessages_per_second = 0.001\n{RULE}");
    let (mut fleet, down) = fleet(1, 13, &slow);
    down.set(["mx.d0.test"]);
    for _ in 0..3 {
        accept(&mut fleet, 1).await;
    }
    fleet.run(20 * MINUTE).await;
    let (id, _) = fleet.queue.queues(None, 9).unwrap()[0];
    let first = (mail_core::Timestamp(0), mail_core::MessageId::LEAST, 0);
    let unit = fleet.queue.due(id, first, 1).unwrap().0[0];
    let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
    let now = fleet.now;
    fleet.shards[0].hear(Word::Why(unit, say), now);
    let Why { fallback, .. } = said.recv().await.unwrap();
    assert_eq!(fallback.unwrap(), "smart host out, since ");
}

/// Else two shards would work on it.
#[tokio::test]
async fn a_word_on_a_queue_that_was_lent_again_meanwhile_says_nothing() {
    let (mut fleet, down) = fleet(2, 14, &configured());
    accept(&mut fleet, 9).await;
    fleet.run(Duration::from_secs(1)).await;
    down.set([BY_OUT]);
    let now = fleet.now;
    let mut lent = 0;
    for (home, other) in [(0, 1), (1, 0)] {
        let queues: Vec<_> = fleet.shards[home].lent.keys().copied().collect();
        for id in queues {
            let Some(host) = fleet.shards[other].fallbacks_of(id).pop() else {
                continue;
            };
            let loan = Loan {
                detour: Some(Detour {
                    by: host.name.clone(),
                    closed: Closed {
                        until: now + HOUR,
                        cause: "4.4.1 a while ago".into(),
                    },
                }),
                route: Route::SmartHost(host),
                hurry: false,
            };
            fleet.shards[home].hear(Word::Lent(id, loan), now);
            assert!(!fleet.shards[home].active.contains_key(&id));
            lent += 1;
        }
    }
    assert!(lent > 0);
}

/// Whatever comes and goes: nothing is on two wires, nothing is sent twice (the fleet sees to that), and all of it is sent.
#[tokio::test]
async fn nothing_is_lost_or_sent_twice_whatever_is_down() {
    const DOMAINS: usize = 6;
    for seed in 0..9 {
        let random = Random::seeded(100 + seed);
        let shards = 1 + usize::try_from(seed).unwrap() % 3;
        let more = format!("{SOURCES}{RETRY}{OUT}{RULE}");
        let (mut fleet, down) = fleet(shards, seed, &more);
        // Two domains are of one site.
        for domain in ["d0.test", "d1.test"] {
            fleet.hosts.insert(domain.into(), vec!["mx.d0.test".into()]);
        }
        let peers = down.clone();
        let chance = Random::seeded(seed);
        fleet.peer = Some(Box::new(move |sent: &Sent, _| {
            match (peers.0.borrow().contains(&sent.site), chance.fraction()) {
                (true, _) => Answer::Silence,
                (false, drawn) if drawn < 0.05 => Answer::Refuses("450 4.7.1 slow down"),
                (false, drawn) => Answer::Takes(MINUTE.mul_f64(drawn * drawn)),
            }
        }));
        let mut accepted = 0;
        for _ in 0..60 {
            let sites = all_sites(DOMAINS);
            let sites = sites.iter().map(String::as_str).chain([BY_OUT]);
            down.set(sites.filter(|_| random.fraction() < 0.4));
            fleet.unknown.clear();
            if random.fraction() < 0.3 {
                fleet.unknown.insert("d5.test".into());
            }
            if random.fraction() < 0.1 {
                let hosts = vec![format!("mx.d{}.test", (random.fraction() * 6.0) as usize)];
                fleet.hosts.insert("d4.test".into(), hosts);
            }
            match random.fraction() {
                drawn if drawn < 0.05 => fleet.renew(&format!("{SOURCES}{RETRY}")),
                drawn if drawn < 0.15 => fleet.renew(&more),
                _ => {}
            }
            for _ in 0..(random.fraction() * 5.0) as usize {
                accept(&mut fleet, DOMAINS).await;
                accepted += DOMAINS;
            }
            fleet.run(HOUR.mul_f64(random.fraction() / 2.0)).await;
        }
        down.set([]);
        fleet.unknown.clear();
        fleet.run(12 * HOUR).await;
        let delivered = fleet.sent.len();
        assert_eq!(delivered, accepted, "seed {seed}");
        assert!(fleet.fallbacks > 0, "seed {seed}");
        let moves = fleet.fallbacks;
        assert!(moves < 60 * DOMAINS * 10, "seed {seed}: {moves} moves");
    }
}
