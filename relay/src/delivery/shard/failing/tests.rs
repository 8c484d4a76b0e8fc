use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use queue::{AdjustmentKey, BY_FAILURE, Scope};

use super::super::fleet::{Answer, Fleet, Sent};
use crate::delivery::exchange::Word;

const SECOND: Duration = Duration::from_secs(1);

const HOUR: Duration = Duration::from_secs(3_600);

const SOURCES: &str = "[[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n[[source]]\nname = \"s2\"\n\
    addresses = [\"192.0.2.2\"]\n[[pool]]\nname = \"both\"\nsources = [\"s1\", \"s2\"]\n[[pool]]\nname = \"one\"\n\
    sources = [\"s1\"]\n";

const BOTH: &str = "[delivery]\npool = \"both\"\n";

const ONE: &str = "[delivery]\npool = \"one\"\n";

/// A fleet of which s1 fails as long as is said.
fn fleet(shards: usize, pool: &str) -> (Fleet, Rc<Cell<bool>>) {
    let mut fleet = Fleet::new(shards, &format!("{pool}{SOURCES}"));
    let fails = Rc::new(Cell::new(true));
    obeys(&mut fleet, &fails);
    (fleet, fails)
}

fn obeys(fleet: &mut Fleet, fails: &Rc<Cell<bool>>) {
    let fails = fails.clone();
    fleet.peer = Some(Box::new(move |sent: &Sent, _| {
        match from_s1(sent) && fails.get() {
            true => Answer::NoSource,
            false => Answer::Takes(Duration::from_millis(100)),
        }
    }));
}

/// The same of both.
fn obey_both(fleet: &mut Fleet, s1_fails: &Rc<Cell<bool>>, s2_fails: &Rc<Cell<bool>>) {
    let (s1_fails, s2_fails) = (s1_fails.clone(), s2_fails.clone());
    fleet.peer = Some(Box::new(move |sent: &Sent, _| {
        let fails = if from_s1(sent) { &s1_fails } else { &s2_fails };
        match fails.get() {
            true => Answer::NoSource,
            false => Answer::Takes(Duration::from_millis(100)),
        }
    }));
}

fn from_s1(sent: &Sent) -> bool {
    sent.source.as_deref() == Some("s1")
}

/// Messages to a hundred sites, for as long; one a second.
async fn send(fleet: &mut Fleet, span: Duration) -> usize {
    let count = usize::try_from(span.as_secs()).unwrap();
    for number in 0..count {
        let domain = format!("d{}.test", number * 7 % 100);
        fleet.accept(1, "t", "transactional", &domain, 10).await;
        fleet.run(SECOND).await;
    }
    count
}

#[tokio::test]
async fn a_source_that_fails_leaves_the_pool_and_comes_back() {
    for shards in [1, 3] {
        let (mut fleet, fails) = fleet(shards, BOTH);
        let sent = send(&mut fleet, HOUR).await;
        assert!(fleet.sent.len() + 2 >= sent, "{} of {sent}", fleet.sent.len());
        assert_eq!(fleet.count(from_s1), 0, "all of it goes from the other");
        let late = fleet.sent.iter().filter(|sent| {
            let waited = sent.at.0 % 1_000;
            waited > 100
        });
        assert!(late.count() <= 20, "at once, but for those that tried");
        let tries = fleet.source_failures.len();
        assert!((6..=20).contains(&tries), "{tries} tries with {shards} shards");
        let standing = fleet.queue.adjustments(None, 9).unwrap();
        assert_eq!(standing.len(), 1);
        assert_eq!(
            (&*standing[0].1.by, standing[0].1.key.scope.source.as_deref()),
            (BY_FAILURE, Some("s1"))
        );

        fails.set(false);
        // Ten minutes at the most, until it is tried.
        let sent = sent + send(&mut fleet, 610 * SECOND).await;
        let before = fleet.count(from_s1);
        let sent = sent + send(&mut fleet, 600 * SECOND).await;
        fleet.run(10 * SECOND).await;
        let from_it = fleet.count(from_s1) - before;
        assert!((250..=350).contains(&from_it), "{from_it} of 600");
        assert_eq!(fleet.sent.len(), sent);
        assert_eq!(
            fleet.source_failures.len(),
            tries.max(fleet.source_failures.len() - 1)
        );
        assert_eq!(fleet.queue.adjustments(None, 9).unwrap(), []);
    }
}

/// Each time it fails anew it is left alone for half a minute first.
#[tokio::test]
async fn mail_of_no_other_source_waits_and_goes_soon_after_it_serves() {
    for shards in [1, 3] {
        let (mut fleet, fails) = fleet(shards, ONE);
        send(&mut fleet, 100 * SECOND).await;
        assert_eq!(fleet.sent.len(), 0);
        let tries = fleet.source_failures.len();
        assert!(tries <= 4, "{tries}");
        fails.set(false);
        fleet.run(130 * SECOND).await;
        assert_eq!(fleet.sent.len(), 100);
        fails.set(true);
        let tries = fleet.source_failures.len();
        fleet.accept(1, "t", "bulk", "d1.test", 10).await;
        fleet.run(20 * SECOND).await;
        assert_eq!(fleet.source_failures.len(), tries + 1);
        fails.set(false);
        fleet.run(15 * SECOND).await;
        assert_eq!(fleet.sent.len(), 101);
    }
}

/// What fails at once counts once, and those that were begun before say nothing new.
#[tokio::test]
async fn a_burst_of_failures_is_one_step() {
    let (mut fleet, _) = fleet(3, ONE);
    for number in 0..40 {
        fleet.accept(1, "t", "bulk", &format!("d{number}.test"), 10).await;
    }
    fleet.run(SECOND).await;
    let standing = fleet.queue.adjustments(None, 9).unwrap();
    let record = &standing[0].1;
    assert_eq!(record.until.unwrap().since(record.since), 30 * SECOND);
    let begun = fleet.source_failures.len();
    // The next one is of one connection, whatever waits.
    fleet.run(40 * SECOND).await;
    assert_eq!(fleet.source_failures.len(), begun + 1);
    let standing = fleet.queue.adjustments(None, 9).unwrap();
    let record = &standing[0].1;
    assert_eq!(record.until.unwrap().since(record.since), 60 * SECOND);
}

#[tokio::test]
async fn a_reload_that_mends_a_source_has_it_tried_at_once() {
    // Of a short suspension, its queues wait in memory; of a longer one, outside.
    for count in [5, 100] {
        mended_after(count).await;
    }
}

async fn mended_after(count: u64) {
    let (mut fleet, fails) = fleet(2, ONE);
    send(&mut fleet, Duration::from_secs(count)).await;
    fails.set(false);
    let mended = SOURCES.replace("192.0.2.1\"", "192.0.2.9\"");
    let until = fleet.queue.adjustments(None, 9).unwrap()[0].1.until.unwrap();
    fleet.renew(&format!("{ONE}{mended}"));
    fleet.run(10 * SECOND).await;
    assert!(fleet.now < until);
    assert_eq!(fleet.sent.len() as u64, count);
    assert_eq!(fleet.queue.adjustments(None, 9).unwrap(), []);
}

#[tokio::test]
async fn after_a_restart_a_source_is_left_alone_as_long_as_before() {
    let (mut fleet, fails) = fleet(2, ONE);
    send(&mut fleet, 100 * SECOND).await;
    let until = fleet.queue.adjustments(None, 9).unwrap()[0].1.until.unwrap();
    let mut fleet = fleet.restarted(&format!("{ONE}{SOURCES}"));
    obeys(&mut fleet, &fails);
    for number in 0..50 {
        fleet.accept(1, "t", "bulk", &format!("e{number}.test"), 10).await;
    }
    fleet.run(until.since(fleet.now) - SECOND).await;
    assert_eq!(fleet.source_failures.len(), 0);
    fleet.run(10 * SECOND).await;
    assert_eq!(fleet.source_failures.len(), 1, "one connection tries");
}

/// One is out for long, and the other for the first time: mail goes as soon as that one is tried and serves.
#[tokio::test]
async fn mail_of_a_pool_that_is_all_out_goes_from_the_first_that_is_back() {
    for shards in [1, 3] {
        let (mut fleet, s1_fails) = fleet(shards, BOTH);
        send(&mut fleet, HOUR).await;
        let s2_fails = Rc::new(Cell::new(true));
        obey_both(&mut fleet, &s1_fails, &s2_fails);
        let tries = |fleet: &Fleet, source: &str| {
            let failures = fleet.source_failures.iter();
            failures.filter(|(_, of)| of.as_deref() == Some(source)).count()
        };
        fleet.close_all();
        fleet.run(SECOND).await;
        let (before, of_s1) = (fleet.sent.len(), tries(&fleet, "s1"));
        let waiting = send(&mut fleet, 20 * SECOND).await;
        assert_eq!(fleet.sent.len(), before, "nothing goes");
        s2_fails.set(false);
        fleet.run(12 * SECOND).await;
        assert_eq!(fleet.sent.len(), before + waiting, "{shards} shards");
        assert_eq!(tries(&fleet, "s2"), 1);
        assert!(tries(&fleet, "s1") <= of_s1 + 1, "it is left alone for its time");
        assert_eq!(fleet.count(from_s1), 0);
    }
}

/// Mail waits for all of them, and comes back for whichever an operator says is well.
#[tokio::test]
async fn mail_of_a_pool_that_is_all_out_goes_from_the_one_whose_suspension_is_ended() {
    for (mended, source) in [(0, "s1"), (1, "s2")] {
        let (mut fleet, _) = fleet(2, BOTH);
        let fail = [(); 2].map(|()| Rc::new(Cell::new(true)));
        obey_both(&mut fleet, &fail[0], &fail[1]);
        send(&mut fleet, 400 * SECOND).await;
        for number in 0..40 {
            fleet.accept(1, "t", "bulk", &format!("e{number}.test"), 10).await;
        }
        fleet.run(SECOND).await;
        assert_eq!(fleet.sent.len(), 0);
        fail[mended].set(false);
        let key = AdjustmentKey::suspended(Scope {
            source: Some(source.into()),
            ..Scope::default()
        });
        for shard in &mut fleet.shards {
            shard.hear(
                Word::AdjustmentEnded(key.clone(), "an operator".into()),
                fleet.now,
            );
        }
        fleet.run(10 * SECOND).await;
        assert_eq!(fleet.sent.len(), 440, "{source}");
    }
}
