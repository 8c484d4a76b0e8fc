use std::time::Duration;

use queue::store::MemoryStore;
use queue::{Accepted, Queue, Selector};

use super::*;
use crate::control::tests::accept;
use crate::delivery::exchange::{self, Accepted as Told, Ordered, Place, Seat};
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
    let settings = settings("");
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
