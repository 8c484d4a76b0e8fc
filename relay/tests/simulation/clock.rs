//! A clock that was ahead, and is put right while the relay is down: what was written meanwhile holds nothing up.

use admin_api::operate::{Retry, Selector};
use admin_api::{Caller, Control as _};

use super::*;

const DAYS: Duration = Duration::from_secs(3 * 86_400);

/// What there is of a destination while the clock is ahead, and whether its mail gets that far.
fn held_up_by(what: &str) -> Rc<World> {
    let mut world = match what {
        "a reply" => world(hosts(&[(1, 1)]), &[Host::Takes, Host::Rcpt("450 4.2.1 later")]),
        _ => world(hosts(&[(1, 1)]), &[Host::Takes, Host::Dead]),
    };
    if what == "the DNS" {
        world.mx.remove("to.test");
    }
    Rc::new(world)
}

/// Mail is put off by a clock that is `ahead`; then the relay runs by the right one, with a sound destination.
fn put_right(what: &str, ahead: Duration, then: impl AsyncFnOnce(&Running)) -> (Rc<World>, Queue) {
    let (before, store) = (held_up_by(what), MemoryStore::new());
    live(&before, &store, START + ahead, "", async |relay| {
        relay.take_in(&["a@to.test", "b@to.test"]).await;
        sleep(5 * MINUTE).await;
    });
    assert!(before.taken.borrow().is_empty(), "{what}");
    let after = Rc::new(world(hosts(&[(1, 1)]), &[]));
    let queue = live(&after, &store, START, "", async |relay| then(relay).await);
    (after, queue)
}

#[test]
fn no_mail_waits_for_the_days_that_a_clock_was_ahead() {
    for what in ["a reply", "a dead host", "the DNS"] {
        let (world, queue) = put_right(what, DAYS, async |_| sleep(MINUTE).await);
        assert_eq!(world.taken.borrow().len(), 2, "{what}: tried at once");
        assert!(is_empty(&queue), "{what}");
    }
}

/// By less than a suspended queue sleeps, but by more than any mail waits: ten minutes.
#[test]
fn no_mail_waits_for_the_hour_that_a_clock_was_ahead() {
    for what in ["a reply", "a dead host", "the DNS"] {
        let (world, queue) = put_right(what, 60 * MINUTE, async |_| sleep(MINUTE).await);
        assert_eq!(world.taken.borrow().len(), 2, "{what}: tried at once");
        assert!(is_empty(&queue), "{what}");
    }
}

/// What is past its deadline after a start is left an hour to be tried in, and does not hammer at its host in it.
#[test]
fn what_is_overdue_is_tried_by_the_schedule_and_then_returned() {
    // A rate, so that time goes on whatever is tried.
    let rate = "[delivery.limits]\nmessages_per_second = 1\n";
    let (store, world) = (MemoryStore::new(), held_up_by("a reply"));
    live(&world, &store, START, rate, async |relay| {
        relay.take_in(&["a@to.test"]).await;
        sleep(5 * MINUTE).await;
    });
    let tried = |queue: &Queue| {
        let deferred = |kind: &EventKind| *kind == EventKind::Deferred;
        kinds(queue).into_iter().filter(deferred).count()
    };
    let queue = live(&world, &store, START + DAYS, rate, async |relay| {
        let before = tried(&relay.queue);
        assert_eq!(before, 3);
        sleep(MINUTE).await;
        assert_eq!(tried(&relay.queue) - before, 1, "at once");
        sleep(49 * MINUTE).await;
        // After 8 minutes, and then after 10 each.
        assert!(tried(&relay.queue) - before <= 6, "{}", tried(&relay.queue));
        sleep(20 * MINUTE).await;
    });
    assert!(kinds(&queue).contains(&EventKind::Expired));
    assert!(is_empty(&queue));
}

#[test]
fn more_than_a_page_of_such_mail_comes_back_by_and_by() {
    let (before, store) = (held_up_by("the DNS"), MemoryStore::new());
    let recipients: Vec<String> = (0..700).map(|number| format!("r@n{number}.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    live(&before, &store, START + DAYS, "", async |relay| {
        relay.take_in(&recipients).await;
        sleep(MINUTE).await;
    });
    let queue = live(&before, &store, START, "", async |relay| {
        sleep(MINUTE).await;
        let holds = relay.queue.holds(1_000).unwrap();
        let now = holds.iter().filter(|(_, hold)| hold.since < START + DAYS);
        assert_eq!(now.count(), 700, "each was looked up anew");
    });
    assert_eq!(units(&queue), 700);
}

#[test]
fn an_operator_may_retry_what_a_clock_ahead_has_tried() {
    // So little ahead that the schedule would allow for it.
    let (world, queue) = put_right("a reply", 3 * MINUTE, async |relay| {
        sleep(Duration::from_secs(2)).await;
        let retry = Retry {
            selector: Selector {
                all: true,
                ..Selector::default()
            },
            after: None,
        };
        let progress = relay.control.retry(retry, Caller("uid 0".into())).await.unwrap();
        assert_eq!(progress.done, 2);
        sleep(MINUTE / 2).await;
    });
    assert_eq!(world.taken.borrow().len(), 2);
    assert!(is_empty(&queue));
}

#[test]
fn what_is_overdue_is_returned_though_the_relay_starts_again_and_again() {
    let (world, store) = (held_up_by("a dead host"), MemoryStore::new());
    live(&world, &store, START, "", async |relay| {
        relay.take_in(&["a@to.test"]).await;
        sleep(MINUTE).await;
    });
    let away = START + DAYS;
    let told = [0, 15, 30, 45, 60].map(|from| {
        live(&world, &store, away + MINUTE * from, "", async |_| {
            sleep(14 * MINUTE).await;
        });
        reports(&world)
    });
    assert_eq!(told, [0, 0, 0, 0, 1]);
}
