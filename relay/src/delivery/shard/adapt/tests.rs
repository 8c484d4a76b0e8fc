use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mail_core::{MessageId, Timestamp};
use queue::store::MemoryStore;
use queue::{
    AdjustmentKey, AdjustmentKind, AdjustmentRecord, MAX_ADJUSTMENTS, Queue, QueueId, Scope, UnitKey,
};

use super::super::fleet::{Answer, Fleet, START, Sent};
use super::super::operator::tests::{adjustment, settings, shard, shard_of};
use super::super::{LaneId, Shard};
use super::{FORGOTTEN_AFTER, Heard};
use crate::delivery::adapt::Others;
use crate::delivery::route::Route;
use crate::routing::Routing;
use crate::shaping::Reach;
use crate::world::{MxHost, Random};

const SECOND: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_secs(60);

const TAKES: Answer = Answer::Takes(Duration::from_millis(100));

/// A fleet whose peers say this, where anything is set, instead of taking what fits.
fn fleet(
    more: &str,
    fits: impl Fn(&Sent, usize) -> bool + 'static,
) -> (Fleet, Rc<Cell<Option<&'static str>>>) {
    let mut fleet = Fleet::new(2, more);
    let says = Rc::new(Cell::new(None));
    let said = says.clone();
    fleet.peer = Some(Box::new(move |sent, open| {
        match said.get().filter(|_| fits(sent, open)) {
            Some(words) => Answer::Refuses(words),
            None => TAKES,
        }
    }));
    (fleet, says)
}

fn suspended(fleet: &Fleet) -> Vec<AdjustmentRecord> {
    let all = fleet.queue.adjustments(None, 9).unwrap().into_iter();
    let all = all.map(|(_, record)| record);
    all.filter(|record| record.key.kind == AdjustmentKind::Suspended)
        .collect()
}

/// Who bears one connection, and refuses further ones for hours, has one when there is mail, and not none.
#[tokio::test]
async fn further_connections_wait_and_a_first_one_does_not() {
    for words in [
        "421 4.7.0 too many connections, try again in 2 hours",
        "451 4.3.0 local trouble",
    ] {
        let one = "[delivery.limits]\nconnections = 1\n";
        let (mut fleet, says) = fleet(one, |sent, open| sent.opened && open > 1);
        fleet.accept(50, "t", "bulk", "d.test", 10).await;
        fleet.run(6 * SECOND).await;
        says.set(Some(words));
        fleet.renew("[delivery.limits]\nconnections = 2\n");
        fleet.accept(100, "t", "bulk", "d.test", 10).await;
        // The lane is in memory a while longer than its mail.
        fleet.run(11 * SECOND).await;
        assert!(!fleet.refused.is_empty());
        assert_eq!(fleet.sent.len(), 150, "{words}");
        fleet.close_all();
        fleet.run(SECOND / 10).await;
        fleet.accept(1, "t", "bulk", "d.test", 10).await;
        fleet.run(SECOND).await;
        assert_eq!(fleet.sent.len(), 151, "{words}");
        assert_eq!(suspended(&fleet), []);
    }
}

/// What a host says of further connections is listed with its end, and a restart does not ask before that.
#[tokio::test]
async fn a_time_for_further_connections_is_listed_and_outlasts_a_restart() {
    let text = "[delivery.limits]\nconnections = 10\n";
    let refuses = |fleet: &mut Fleet, until: Timestamp| {
        fleet.peer = Some(Box::new(move |sent, open| {
            // Not while it says so any more.
            match sent.opened && open > 3 && sent.at < until {
                true => Answer::Refuses("421 4.7.0 too many connections, try again in 10 minutes"),
                false => Answer::Takes(SECOND),
            }
        }));
    };
    let mut fleet = Fleet::new(2, "[delivery.limits]\nconnections = 3\n");
    fleet.takes = SECOND;
    fleet.accept(6_000, "t", "bulk", "d.test", 10).await;
    fleet.run(40 * SECOND).await;
    let until = fleet.now + 9 * MINUTE;
    refuses(&mut fleet, until);
    fleet.renew(text);
    fleet.run(5 * SECOND).await;
    let refused = fleet.refused.len();
    assert!((1..=7).contains(&refused), "{refused}");
    let full = |fleet: &Fleet| {
        let all = fleet.queue.adjustments(None, 9).unwrap().into_iter();
        let full = all.filter(|(_, record)| record.key.kind == AdjustmentKind::Full);
        full.map(|(_, record)| record).collect::<Vec<_>>()
    };
    let records = full(&fleet);
    let [record] = &records[..] else {
        panic!("{records:?}");
    };
    let end = record.until.unwrap();
    assert!(end > fleet.now + 9 * MINUTE && end <= fleet.now + 10 * MINUTE);
    assert_eq!((record.connections, record.rate), (Some(3), None));
    assert!(record.told().contains("try again in 10 minutes"), "{record:?}");

    let mut fleet = fleet.restarted(text);
    refuses(&mut fleet, until);
    fleet.run(8 * MINUTE).await;
    assert!(fleet.sent.len() > 600, "those that work go on");
    assert_eq!(fleet.refused, [], "none is asked for before its time");
    fleet.run(6 * MINUTE).await;
    assert_eq!(full(&fleet), []);
    assert!(fleet.open.len() > 3, "{}", fleet.open.len());
}

/// An operator who ends it has one more tried at once.
#[tokio::test]
async fn a_time_for_further_connections_ends_as_an_operator_says() {
    let one = "[delivery.limits]\nconnections = 1\n";
    let (mut fleet, says) = fleet(one, |sent, open| sent.opened && open > 1);
    fleet.accept(9_000, "t", "bulk", "d.test", 10).await;
    fleet.run(20 * SECOND).await;
    says.set(Some("421 4.7.0 too many connections, try again in 2 hours"));
    fleet.renew("[delivery.limits]\nconnections = 2\n");
    fleet.run(5 * SECOND).await;
    let refused = fleet.refused.len();
    let all = fleet.queue.adjustments(None, 9).unwrap().into_iter();
    let keys: Vec<_> = all.map(|(_, record)| record.key).collect();
    let is_full = |key: &&queue::AdjustmentKey| key.kind == AdjustmentKind::Full;
    assert!(keys.iter().any(|key| is_full(&key)), "{keys:?}");
    fleet.run(2 * MINUTE).await;
    assert_eq!(fleet.refused.len(), refused);
    let now = fleet.now;
    for key in keys {
        for shard in &mut fleet.shards {
            shard.adjustment_ended(&key, "uid 0", now);
        }
    }
    fleet.run(5 * SECOND).await;
    assert!(fleet.refused.len() > refused, "it is asked for");
}

/// It has no connection beside, so that nothing works, however well it went a moment ago.
#[tokio::test]
async fn what_is_said_to_the_only_connection_suspends() {
    let one = "[delivery.limits]\nconnections = 1\n";
    let (mut fleet, says) = fleet(one, |_, _| true);
    fleet.accept(300, "t", "bulk", "d.test", 10).await;
    fleet.run(10 * SECOND).await;
    says.set(Some("421 4.7.0 try again in 10 minutes"));
    fleet.run(10 * SECOND).await;
    // The one that is open is told, then the next at the door.
    assert!(fleet.refused.len() <= 3, "{:?}", fleet.refused);
    let records = suspended(&fleet);
    let time = |record: &AdjustmentRecord| record.until.unwrap().since(record.since);
    assert_eq!(records.iter().map(time).collect::<Vec<_>>(), [10 * MINUTE]);
}

/// A lane that works is stopped once nothing works any more, and not only when what worked in the last minute is a small part.
#[tokio::test]
async fn a_time_is_obeyed_once_nothing_gets_through() {
    let (mut fleet, says) = fleet("[delivery.limits]\nconnections = 20\n", |sent, _| !sent.opened);
    fleet.accept(9_000, "t", "bulk", "d.test", 10).await;
    fleet.run(20 * SECOND).await;
    let sent = fleet.sent.len();
    assert!(sent > 2_000, "{sent}");
    // The connections stay, and each transaction is refused.
    says.set(Some("450 4.7.1 try again in 10 minutes"));
    fleet.run(30 * SECOND).await;
    let refused = fleet.refused.len();
    assert!((10..=40).contains(&refused), "{refused} refusals");
    assert_eq!(suspended(&fleet).len(), 1);
    says.set(None);
    fleet.run(9 * MINUTE).await;
    assert!(fleet.sent.len() < sent + 40, "nothing goes for ten minutes");
    fleet.run(2 * MINUTE).await;
    assert!(fleet.sent.len() > sent + 1_000, "{}", fleet.sent.len());
}

/// What is said to mail of no pool is about that: a pool's sources go on, and the other way round.
#[tokio::test]
async fn mail_of_no_pool_has_a_source_of_its_own() {
    let sources = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n[[pool]]\nname = \"one\"\nsources = [\"s1\"]\n\
                   [[route]]\nstreams = [\"transactional\"]\nnext_hop = \"mx\"\npool = \"one\"\n";
    for (refuses_pool, suspend, own) in [
        (false, "", "default"),
        (true, "", "s1"),
        (false, "source", "default"),
    ] {
        let rule = "[[bounce_rule]]\nclass = \"block\"\ntext = [\"not from there\"]\nfor = \"10m\"\nsuspend = \"source\"\n";
        let words = if suspend.is_empty() {
            "421 4.7.0 try again in 10 minutes"
        } else {
            "421 4.7.0 not from there"
        };
        let (mut fleet, says) = fleet(&format!("{sources}{rule}"), move |sent, _| {
            sent.source.is_some() == refuses_pool
        });
        says.set(Some(words));
        let pool = fleet.queue.route_groups(&["pool one"]).unwrap()[0];
        for _ in 0..2 {
            fleet.accept(3, "t", "bulk", "d.test", 10).await;
            fleet
                .accept_by(pool, (3, 10), ("t", "transactional"), "d.test")
                .await;
            fleet.run(5 * SECOND).await;
        }
        let went = |sent: &Sent| sent.source.is_some() == refuses_pool;
        assert_eq!((fleet.count(went), fleet.sent.len()), (0, 6), "{own} {suspend}");
        let records = suspended(&fleet);
        let of: Vec<_> = records
            .iter()
            .map(|record| record.key.scope.source.as_deref())
            .collect();
        assert_eq!(of, [Some(own)], "{suspend}");
    }
    // Without sources there is nothing to tell apart.
    let (mut fleet, says) = fleet("", |_, _| true);
    says.set(Some("421 4.7.0 try again in 10 minutes"));
    fleet.accept(3, "t", "bulk", "d.test", 10).await;
    fleet.run(5 * SECOND).await;
    assert_eq!(suspended(&fleet)[0].key.scope.source, None);
}

/// A host speaks for whoever runs it: one that somebody names beside a provider's has nothing to say of the provider's mail.
#[tokio::test]
async fn who_is_suspended_is_a_matter_of_the_host_that_spoke() {
    let mixed = ["aspmx.l.google.com", "zz.foreign.test"];
    let reversed = ["aa.foreign.test", "aspmx.l.google.com"];
    for suspend in ["provider", "tenant"] {
        let rule = format!(
            "[[bounce_rule]]\nclass = \"block\"\ntext = [\"not you\"]\nfor = \"10m\"\nsuspend = \"{suspend}\"\n"
        );
        for (hosts, speaks_google) in [(mixed, false), (reversed, true)] {
            let (mut fleet, says) = fleet(&rule, |sent, _| sent.domain == "mixed.test");
            says.set(Some("421 4.7.0 not you"));
            fleet
                .hosts
                .insert("mixed.test".into(), hosts.map(String::from).into());
            fleet
                .hosts
                .insert("whole.test".into(), vec!["aspmx.l.google.com".into()]);
            fleet.accept(3, "t", "bulk", "mixed.test", 10).await;
            fleet.run(5 * SECOND).await;
            fleet.accept(3, "t", "bulk", "whole.test", 10).await;
            fleet.run(5 * SECOND).await;
            let whole = fleet.count(|sent| sent.domain == "whole.test");
            assert_eq!(whole, if speaks_google { 0 } else { 3 }, "{suspend} {hosts:?}");
            let records = suspended(&fleet);
            let of = |record: &AdjustmentRecord| {
                let scope = &record.key.scope;
                (scope.provider.is_some(), scope.site.is_some())
            };
            let mut of: Vec<_> = records.iter().map(of).collect();
            of.sort_unstable();
            let expected: &[(bool, bool)] = match speaks_google {
                true => &[(false, true), (true, false)],
                false => &[(false, true)],
            };
            assert_eq!(of, expected, "{suspend} {hosts:?}");
            // Its own lane is held in either case.
            let refused = fleet.refused.len();
            fleet.accept(3, "t", "bulk", "mixed.test", 10).await;
            fleet.run(60 * SECOND).await;
            assert_eq!(fleet.refused.len(), refused, "{suspend} {hosts:?}");
        }
    }
}

/// Those that worked come back after a lull, and no more than those.
#[tokio::test]
async fn who_refuses_further_connections_for_hours_keeps_those_that_worked() {
    let four = "[delivery.limits]\nconnections = 4\n";
    let (mut fleet, says) = fleet(four, |sent, open| sent.opened && open > 4);
    fleet.accept(300, "t", "bulk", "d.test", 10).await;
    fleet.run(6 * SECOND).await;
    says.set(Some("421 4.7.0 too many connections, try again in 2 hours"));
    fleet.renew("[delivery.limits]\nconnections = 8\n");
    fleet.accept(200, "t", "bulk", "d.test", 10).await;
    fleet.run(14 * SECOND).await;
    assert_eq!((fleet.sent.len(), fleet.refused.is_empty()), (500, false));
    fleet.close_all();
    fleet.run(SECOND).await;
    let refused = fleet.refused.len();
    fleet.sent.clear();
    fleet.accept(100, "t", "bulk", "d.test", 10).await;
    fleet.run(10 * SECOND).await;
    assert!(
        (2..=4).contains(&fleet.most_at_once(|_| true)),
        "{}",
        fleet.most_at_once(|_| true)
    );
    assert_eq!(fleet.refused.len(), refused);
}

#[tokio::test]
async fn a_pace_of_a_day_ago_ends_though_its_lane_stays_in_memory() {
    let four = "[delivery.limits]\nconnections = 4\n";
    let (mut fleet, says) = fleet(four, |sent, open| sent.opened && open > 4);
    fleet.accept(300, "t", "bulk", "d.test", 10).await;
    fleet.run(6 * SECOND).await;
    says.set(Some("421 4.7.0 too many connections"));
    fleet.renew("[delivery.limits]\nconnections = 8\n");
    fleet.accept(100, "t", "bulk", "d.test", 10).await;
    fleet.run(6 * SECOND).await;
    let paces = |fleet: &Fleet| {
        let lanes = fleet.shards.iter().flat_map(|shard| &shard.lanes);
        lanes.filter(|(_, lane)| lane.adapt.pace().is_some()).count()
    };
    let kept = |fleet: &Fleet| fleet.queue.adjustments(None, 9).unwrap().len();
    assert_eq!((paces(&fleet), kept(&fleet)), (1, 1));
    // Its connections are open all the while.
    fleet.run(FORGOTTEN_AFTER + MINUTE).await;
    assert_eq!((paces(&fleet), kept(&fleet)), (0, 0));
}

#[tokio::test]
async fn a_suspension_that_the_committer_had_no_room_for_is_written_later() {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let mut shard = shard(&queue);
    let record = adjustment(Some(START + MINUTE), START);
    store.set_failing(true);
    shard.stands(record, START);
    store.set_failing(false);
    assert!(queue.adjustments(None, 9).unwrap().is_empty());
    shard.look_after_adjustments(START + SECOND);
    assert_eq!(queue.adjustments(None, 9).unwrap().len(), 1);
}

/// What is kept says after a restart what held before it.
#[tokio::test]
async fn of_too_many_suspensions_memory_and_store_drop_the_same() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let mut shard = shard(&queue);
    let of = |number: usize, changed: Timestamp, until: Duration| {
        let mut record = adjustment(Some(changed + until), changed);
        record.by = match number.is_multiple_of(2) {
            true => queue::BY_REPLY.to_owned(),
            false => "uid 7".to_owned(),
        };
        record.key.scope.site = Some(format!("mx{number:05}.test").into());
        record
    };
    // Those that came first end last; some come at the same moment, and one is over by the time there are too many.
    for number in 0..MAX_ADJUSTMENTS {
        let secs = u32::try_from(number / 3).unwrap();
        let until = match number {
            5_001 => MINUTE,
            _ => 10 * 3_600 * SECOND - 2 * secs * SECOND,
        };
        shard.stands(of(number, START + secs * SECOND, until), START);
    }
    let now = START + 4_000 * SECOND;
    for number in 0..9 {
        shard.stands(of(MAX_ADJUSTMENTS + number, now, MINUTE), now);
    }
    let stored = queue.adjustments(None, usize::MAX).unwrap().into_iter();
    let stored: Vec<_> = stored.map(|(_, record)| record.key).collect();
    assert_eq!(stored.len(), MAX_ADJUSTMENTS);
    let only_stored: Vec<_> = stored
        .iter()
        .filter(|key| shard.adjustments.get(key).is_none())
        .map(|key| key.to_string())
        .collect();
    assert_eq!(only_stored, Vec::<String>::new());
    assert_eq!(shard.adjustments.count, MAX_ADJUSTMENTS);
}

fn route(host: &str) -> Route {
    Route::Hosts(vec![MxHost {
        preference: 10,
        host: host.parse().unwrap(),
    }])
}

/// A lane to this host, for mail to this domain.
fn lane_to(shard: &mut Shard, host: &str, domain: &str, source: Option<&str>) -> LaneId {
    let settings = shard.settings.clone();
    let source = source.map(|name| settings.egress.source(name).unwrap());
    let (domain, route) = (domain.parse().unwrap(), route(host));
    shard.lane(&domain, route.site().into(), &route, source, START)
}

/// Mail to any number of other destinations makes a reply no dearer.
#[tokio::test]
async fn an_adjustment_looks_at_no_other_lanes() {
    const LANES: usize = 10_000;
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let mut shard = shard_of(&queue, "[[provider]]\nname = \"p\"\nmx = [\"*.p.test\"]\n");
    let host = |number: usize| match number {
        0..20 => format!("mx{number}.p.test"),
        _ => format!("mx{number}.test"),
    };
    let lanes: Vec<_> = (0..LANES)
        .map(|number| lane_to(&mut shard, &host(number), "d.test", None))
        .collect();
    let looked_at = |shard: &mut Shard| std::mem::take(&mut shard.looked_at);
    assert_eq!(looked_at(&mut shard), 0);

    // Each of a thousand is told to go for some time, and comes back.
    for &lane in &lanes[1_000..2_000] {
        let heard = Heard {
            others: Others::Suspend {
                reach: Reach::Site,
                time: MINUTE,
                after: None,
                ruled: true,
            },
            begun: START,
            door: None,
            unit: UnitKey {
                queue: QueueId(1),
                due: START,
                id: MessageId::LEAST,
                unit: 0,
            },
            said: "421 4.7.0 try again in a minute".into(),
            host: "mx.test".into(),
            class: "rate".into(),
        };
        shard.heard(lane, &heard, START);
        assert!(shard.lanes[lane].resting(START).is_some());
    }
    assert_eq!(looked_at(&mut shard), 1_000);
    shard.look_after_adjustments(START + 24 * 60 * MINUTE);
    assert_eq!(looked_at(&mut shard), 1_000, "when it is over");

    let scope = |site: Option<usize>, provider: Option<&str>| Scope {
        site: site.map(|number| route(&host(number)).site().into()),
        provider: provider.map(Arc::from),
        source: Some("default".into()),
        ..Scope::default()
    };
    for (scope, lanes) in [
        (scope(Some(5_000), None), 1),
        (scope(None, Some("p")), 20),
        (scope(Some(3), Some("p")), 1),
        (scope(None, Some("q")), 0),
        (scope(Some(LANES), None), 0),
    ] {
        let mut record = adjustment(Some(START + MINUTE), START);
        record.key.scope = scope.clone();
        shard.stands(record.clone(), START);
        assert_eq!(looked_at(&mut shard), lanes, "{scope}");
        shard.adjustment_ended(&record.key, "a test", START);
        assert_eq!(
            looked_at(&mut shard),
            2 * lanes,
            "{scope}: those that go on, and their queues"
        );
        shard.adjustment_ended(&AdjustmentKey::learned(scope.clone(), None), "a test", START);
        assert_eq!(looked_at(&mut shard), lanes, "{scope}: paces");
    }
}

/// Whatever lanes come and go, and whoever's their hosts are after a reload: those that a scope is about are found.
#[tokio::test]
async fn all_lanes_that_a_scope_is_about_are_found() {
    let sources = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n\
                   [[source]]\nname = \"s2\"\naddresses = [\"192.0.2.2\"]\n\
                   [[destination]]\ndomain = \"ruled.test\"\n[destination.limits]\nconnections = 3\n";
    let provider = |name: &str, hosts: &str| format!("[[provider]]\nname = \"{name}\"\nmx = [{hosts}]\n");
    let texts = [
        sources.to_owned(),
        format!("{sources}{}", provider("p", "\"mx0.test\", \"mx1.test\"")),
        format!(
            "{sources}{}{}",
            provider("q", "\"mx0.test\""),
            provider("p", "\"mx2.test\"")
        ),
    ];
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let configured = texts.map(|text| {
        let settings = settings(&text);
        let routing = Arc::new(Routing::open(settings.clone(), &queue).unwrap());
        (Arc::new(settings.delivery.clone()), routing)
    });
    let hosts = ["mx0.test", "mx1.test", "mx2.test", "mx3.test"];
    let one_of = |names: &[&str]| {
        let names = names.iter().map(|name| Some(Arc::<str>::from(*name)));
        names.chain([None]).collect::<Vec<_>>()
    };
    let sites = hosts.map(|host| route(host).site());
    let sites = one_of(&[&sites[0], &sites[1], &sites[2], &sites[3], "none.test"]);
    let mut scopes = Vec::new();
    for site in &sites {
        for provider in one_of(&["p", "q"]) {
            for source in one_of(&["s1", "s2", "default", "s3"]) {
                for tenant in one_of(&["t"]) {
                    let (site, provider, source) = (site.clone(), provider.clone(), source.clone());
                    scopes.push(Scope {
                        site,
                        provider,
                        tenant,
                        source,
                    });
                }
            }
        }
    }
    let (mut shard, random) = (shard_of(&queue, sources), Random::seeded(1));
    let draw = |most: usize| (random.fraction() * most as f64) as usize;
    let mut found = 0;
    for _ in 0..300 {
        match draw(10) {
            0 => {
                let (settings, routing) = configured[draw(3)].clone();
                shard.renew(settings, routing, false, START);
            }
            1..4 if !shard.lanes.is_empty() => {
                let gone = shard.lanes.iter().nth(draw(shard.lanes.len())).unwrap().0;
                shard.forget_lane(gone);
            }
            _ => {
                let domain = ["d.test", "ruled.test"][draw(2)];
                let source = [None, Some("s1"), Some("s2")][draw(3)];
                lane_to(&mut shard, hosts[draw(4)], domain, source);
            }
        }
        for scope in &scopes {
            let whoever = Scope {
                tenant: None,
                ..scope.clone()
            };
            let meant = shard
                .lanes
                .iter()
                .filter(|(_, lane)| whoever.covers(&lane.scope()));
            let meant: Vec<_> = meant.map(|(id, _)| id).collect();
            assert_eq!(shard.lanes_about(scope), meant, "{scope}");
            found += meant.len();
        }
    }
    assert!(found > 10_000 && shard.lanes.len() > 5, "{found}");
}
