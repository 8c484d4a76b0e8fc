use std::time::Duration;

use mail_core::MessageId;
use queue::store::MemoryStore;
use queue::{Accepted, AdjustmentKey, AdjustmentRecord, Queue, Scope, Selector};

use super::*;
use crate::control::tests::accept;
use crate::delivery::exchange::{self, Accepted as Told, Ordered, Place, Seat};
use crate::delivery::shard::fleet::{Answer, Fleet};
use crate::delivery::shard::{Ending, MAX_ACTIVE, MAX_ENDINGS, Settled};
use crate::routing::Routing;
use crate::world::Random;

const START: Timestamp = Timestamp(1_700_000_000_000);

/// A shard over a queue with one message to more destinations than there is memory for.
async fn crowded() -> (Queue, Accepted, Shard) {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let domains: Vec<String> = (0..2 * MAX_ACTIVE)
        .map(|number| format!("d{number}.test"))
        .collect();
    let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
    let kept = accept(&queue, 1, &domains).await;
    let shard = shard(&queue);
    (queue, kept, shard)
}

/// A configuration that says this, and no more than has to be there.
pub(crate) fn settings(more: &str) -> Arc<crate::config::Settings> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n\
         [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n{more}"
    );
    std::fs::write(&path, text).unwrap();
    Arc::new(crate::config::load(&path).unwrap())
}

pub(crate) fn shard(queue: &Queue) -> Shard {
    shard_of(queue, "")
}

/// The same by a configuration.
pub(crate) fn shard_of(queue: &Queue, text: &str) -> Shard {
    let settings = settings(text);
    let routing = Arc::new(Routing::open(settings.clone(), queue).unwrap());
    let delivery = Arc::new(settings.delivery.clone());
    Shard::new(
        queue.clone(),
        Place::alone(),
        delivery,
        routing,
        Random::seeded(1),
        START,
    )
}

/// What the order comes to the shard as.
async fn ordered(unit: UnitKey, what: Ordered) -> (Word, Seat) {
    let (doors, mut seats) = exchange::open(1);
    let mut seat = seats.remove(0);
    let asked = async move { doors.order(&[unit], &what).await };
    drop(tokio::spawn(asked));
    let word = seat.words.recv().await.unwrap();
    (word, seat)
}

#[tokio::test]
async fn an_order_is_carried_out_though_memory_is_full_of_other_queues() {
    let (queue, kept, mut shard) = crowded().await;
    shard.tick(START);
    assert_eq!(shard.load().1, MAX_ACTIVE);
    let outside = kept
        .units
        .iter()
        .find(|unit| !shard.active.contains_key(&unit.queue));
    let unit = *outside.unwrap();
    let what = Ordered::Retry {
        by: "uid 0".into(),
        due: START,
    };
    let (word, _seat) = ordered(unit, what).await;
    shard.take_effects();
    shard.hear(word, START);
    let effects = shard.take_effects();
    assert!(matches!(effects[..], [Effect::Order(_)]), "{effects:?}");
    queue.retry(unit, START, "uid 0").await.unwrap();
    shard.settled(&unit, Settled::Due(START), START);
    assert_eq!(shard.load().1, MAX_ACTIVE, "and nothing stays");
}

/// The store does not say whether a unit is there that it has just told of.
#[tokio::test]
async fn what_can_not_be_seen_when_it_comes_is_not_lost_from_sight() {
    let store = MemoryStore::new();
    let queue = Queue::in_memory(store.clone()).unwrap();
    let first = accept(&queue, 1, &["a.test"]).await.units[0];
    let mut shard = shard(&queue);
    shard.tick(START);
    let claim = |shard: &mut Shard| {
        let active = shard.active.get_mut(&first.queue)?;
        let (claimed, _) = active.agenda.claim(START)?;
        Some((claimed.1, claimed.2))
    };
    assert_eq!(claim(&mut shard), Some((first.id, first.unit)));
    let second = accept(&queue, 2, &["a.test"]).await.units;
    store.fail_reads(1);
    shard.hear(Word::Accepted(Told::stored(second.clone())), START);
    assert_eq!(claim(&mut shard), Some((second[0].id, second[0].unit)));
    // Settled, and told of late: it must not be sent again.
    for unit in [first, second[0]] {
        queue
            .settle(super::super::scan::tests::expired(unit))
            .await
            .unwrap()
            .await
            .unwrap();
        shard.settled(&unit, Settled::Gone, START);
    }
    store.fail_reads(1);
    shard.hear(Word::Accepted(Told::stored(second)), START);
    assert_eq!(claim(&mut shard), None);
}

/// Promise 9.
#[tokio::test]
async fn what_waits_outside_of_memory_expires_though_memory_is_full() {
    let (_, _, mut shard) = crowded().await;
    shard.tick(START);
    assert_eq!(shard.load().1, MAX_ACTIVE);
    shard.take_effects();
    shard.tick(START + Duration::from_secs(3_601));
    let expired = shard
        .take_effects()
        .iter()
        .filter(|effect| {
            matches!(
                effect,
                Effect::End {
                    ending: Ending::Expired(_),
                    ..
                }
            )
        })
        .count();
    assert_eq!(expired, MAX_ENDINGS, "more than there are queues in memory");
}

#[tokio::test]
async fn mail_for_a_suspended_queue_costs_no_memory() {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let mut shard = shard(&queue);
    let record = SuspensionRecord {
        selector: Selector::default(),
        since: START,
        until: None,
        reason: "a test".into(),
        by: "uid 0".into(),
    };
    shard.hear(Word::Suspensions([record].into()), START);
    for number in 1..4 {
        let kept = accept(&queue, number, &["a.test"]).await;
        shard.hear(Word::Accepted(Told::stored(kept.units)), START);
        assert_eq!(shard.load().1, 0);
    }
    // Nothing is looked up before it may go.
    assert!(shard.take_effects().is_empty());
    shard.hear(Word::Suspensions([].into()), START);
    assert_eq!(shard.load().1, 1);
    let effects = shard.take_effects();
    assert!(matches!(effects[..], [Effect::Resolve(_)]), "{effects:?}");
}

/// An operator's suspension of all mail of `t`.
pub(in crate::delivery::shard) fn adjustment(until: Option<Timestamp>, now: Timestamp) -> AdjustmentRecord {
    AdjustmentRecord {
        key: AdjustmentKey::suspended(Scope {
            tenant: Some("t".into()),
            ..Scope::default()
        }),
        since: now,
        changed: now,
        until,
        connections: None,
        rate: None,
        refused: None,
        cause: "a test".into(),
        host: None,
        class: None,
        by: "uid 7".into(),
    }
}

/// What queues wait for, by their numbers.
fn waits(fleet: &mut Fleet) -> Vec<Option<Waits>> {
    let first = |id| {
        let from = (Timestamp(0), MessageId::LEAST, 0);
        fleet.queue.due(id, from, 1).unwrap().0.first().copied()
    };
    let queues = fleet.queue.queues(None, 99).unwrap().into_iter();
    let firsts: Arc<[_]> = queues.map(|(id, _)| first(id)).collect();
    let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
    for shard in &mut fleet.shards {
        shard.hear(Word::WhyAll(firsts.clone(), say.clone()), fleet.now);
    }
    let mut all = vec![None; firsts.len()];
    while let Ok((number, why)) = said.try_recv() {
        all[number] = Some(why.waits);
    }
    all
}

#[tokio::test]
async fn a_queue_tells_what_those_wait_for_that_are_not_on_the_wire() {
    // What is on the wire is all that was read of one; nothing else is in the other; nothing is on the wire of the third.
    let config = "[delivery.limits]\nconnections = 128\n";
    let mut fleet = Fleet::new(1, config);
    for (count, domain) in [(200, "a.test"), (2, "b.test"), (1, "c.test")] {
        fleet.accept(count, "t", "transactional", domain, 10).await;
    }
    let mut fleet = fleet.restarted(config);
    fleet.unknown.insert("c.test".into());
    fleet.takes = Duration::from_secs(3_600);
    fleet.run(Duration::from_secs(2)).await;
    assert_eq!(fleet.count(|sent| sent.domain == "a.test"), 128);
    let all = waits(&mut fleet);
    assert_eq!(all[..2], [Some(Waits::Connection), Some(Waits::Underway)]);
    assert!(matches!(all[2], Some(Waits::Rests { .. })), "{all:?}");
}

#[tokio::test]
async fn what_is_kept_for_other_streams_is_told() {
    let reserved = "[[stream]]\nname = \"transactional\"\nreserved = 0.5\n";
    for (more, sent, expected) in [
        ("[delivery.limits]\nconnections = 4\n", 2, "its connections"),
        (
            "[[limit]]\nsite = \"*\"\nmessages_per_hour = 8\n",
            4,
            "the limits of site mx.a.test",
        ),
    ] {
        let mut fleet = Fleet::new(1, &format!("{reserved}{more}"));
        fleet.takes = Duration::from_secs(600);
        fleet.accept(9, "t", "bulk", "a.test", 10).await;
        fleet.run(Duration::from_secs(60)).await;
        assert_eq!(fleet.sent.len(), sent, "{more}");
        let rest_of = expected.to_owned();
        assert_eq!(waits(&mut fleet), [Some(Waits::Reserved { rest_of })], "{more}");
    }
}

/// A due time is no answer where nothing goes at that time either.
#[tokio::test]
async fn a_suspension_that_outlasts_a_due_time_is_told_of_before_it() {
    let mut fleet = Fleet::new(1, "[delivery.limits]\nconnections = 1\n");
    let mut number = 0;
    fleet.peer = Some(Box::new(move |_, _| {
        number += 1;
        match number {
            1 => Answer::Takes(Duration::from_secs(1)),
            2 => Answer::Refuses("450 4.2.1 later"),
            _ => Answer::Takes(Duration::from_secs(3_600)),
        }
    }));
    fleet.accept(3, "t", "transactional", "a.test", 10).await;
    fleet.run(Duration::from_secs(10)).await;
    assert_eq!(
        waits(&mut fleet),
        [Some(Waits::Underway)],
        "and one has its own time"
    );
    let now = fleet.now;
    for (until, expected) in [
        (None, true),
        (Some(now + Duration::from_secs(60)), false),
        (Some(now + Duration::from_secs(900)), true),
    ] {
        let record = Arc::new(adjustment(until, now));
        fleet.shards[0].hear(Word::Adjusted(record), now);
        let cause = "suspended by uid 7: a test".to_owned();
        let adjusted = Waits::Adjusted { until, cause };
        let told = if expected { adjusted } else { Waits::Underway };
        assert_eq!(waits(&mut fleet), [Some(told)], "{until:?}");
    }
}

#[tokio::test]
async fn all_that_waits_for_a_lane_goes_as_soon_as_an_operator_has_had_it_tried() {
    let one = "[delivery.limits]\nconnections = 1\n";
    let mut fleet = Fleet::new(2, &format!("[delivery.retry]\nfirst = \"20s\"\n{one}"));
    fleet.peer = Some(Box::new(|_, _| Answer::Refuses("554 5.3.2 no")));
    for domain in ["a.test", "b.test", "c.test"] {
        fleet.hosts.insert(domain.into(), vec!["mx.test".into()]);
        fleet.accept(1, "t", "transactional", domain, 10).await;
    }
    fleet.run(Duration::from_secs(4)).await;
    assert_eq!((fleet.refused.len(), fleet.sent.len()), (1, 0));
    fleet.peer = None;
    let (id, _) = fleet.queue.queues(None, 1).unwrap().remove(0);
    let (heard, _done) = tokio::sync::mpsc::unbounded_channel();
    let home = usize::try_from(id.0 % 2).unwrap();
    fleet.shards[home].hear(Word::Hurry(id, heard), fleet.now);
    fleet.run(Duration::from_secs(2)).await;
    assert_eq!(fleet.sent.len(), 3, "none waits for the end that the rest had");
}

#[tokio::test]
async fn all_that_waits_for_a_smart_host_goes_as_soon_as_a_reload_has_mended_it() {
    let host = |port: u16| {
        format!(
            "[[smart_host]]\nname = \"out\"\nhosts = [{{ address = \"::1\", port = {port} }}]\n\
             [smart_host.limits]\nconnections = 1\n\
             [[route]]\nnext_hop = \"out\"\n"
        )
    };
    let text = |port| format!("[delivery.retry]\nfirst = \"20s\"\n{}", host(port));
    let mut fleet = Fleet::new(2, &text(25));
    fleet.peer = Some(Box::new(|_, _| Answer::Refuses("554 5.3.2 no")));
    let group = fleet.queue.route_groups(&["smart host out"]).unwrap()[0];
    for domain in ["a.test", "b.test", "c.test"] {
        let whose = ("t", "transactional");
        fleet.accept_by(group, (1, 10), whose, domain).await;
    }
    fleet.run(Duration::from_secs(4)).await;
    assert_eq!((fleet.refused.len(), fleet.sent.len()), (1, 0));
    fleet.peer = None;
    fleet.renew(&text(26));
    fleet.run(Duration::from_secs(2)).await;
    assert_eq!(fleet.sent.len(), 3, "none waits for the end that the rest had");
}
