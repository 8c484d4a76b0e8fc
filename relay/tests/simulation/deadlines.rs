//! Units that are on the wire when their time is up.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// What came of a message to this host: when it ended by its deadline, and all that was noted after that.
fn after_deadline(host: Host) -> (Rc<World>, Vec<(EventKind, Duration, String)>) {
    let (world, store) = (Rc::new(world(hosts(&[(10, 0)]), &[host])), MemoryStore::new());
    let queue = live(&world, &store, START, "", async |relay| {
        // At no moment at which a scan begins at the beginning.
        sleep(7 * SECOND).await;
        relay.take_in(&["a@to.test"]).await;
        sleep(80 * MINUTE).await;
    });
    assert!(is_empty(&queue), "{host:?}");
    let events = queue.events(0, 99).unwrap().into_iter().map(|(_, event)| event);
    let late = |event: &queue::Event| event.at.since(START + 60 * MINUTE);
    let after = events
        .filter(|event| event.at > START + 60 * MINUTE && event.id.is_some())
        .filter(|event| event.kind != EventKind::Accepted && event.kind != EventKind::Delivered);
    let after = after.map(|event| (event.kind, late(&event), event.reply.clone()));
    (world, after.collect())
}

/// Attempts take two minutes, and one begins less than a minute before.
#[test]
fn what_is_put_off_after_its_deadline_ends_by_that() {
    let silent = Host::Faulty(Fault::Silence, Phase::Data, 80 * MINUTE);
    for (host, said) in [
        (
            Host::RcptAfter(122 * SECOND, "450 4.2.1 later"),
            "450 4.2.1 later",
        ),
        (silent, "silence for too long"),
    ] {
        let (world, after) = after_deadline(host);
        let [(kind, late, reply)] = &after[..] else {
            panic!("{host:?}: {after:?}");
        };
        assert_eq!(
            *kind,
            EventKind::Expired,
            "{host:?}: and it was not put off first"
        );
        let connected = world.connected.borrow();
        let last = connected.iter().rfind(|(_, number)| *number == 0).unwrap().0;
        // The first question to the DNS came with the message.
        let begun = last.duration_since(world.begun.get().unwrap()) + 7 * SECOND;
        assert!(begun < 60 * MINUTE, "{host:?}: it was on the wire: {begun:?}");
        let came_back = begun + 125 * SECOND - 60 * MINUTE;
        assert!(*late <= came_back, "{host:?}: {late:?}, {came_back:?}");
        assert!(reply.contains(said), "{host:?}: {reply}");
        assert_eq!(reports(&world), 1, "{host:?}");
    }
}

/// It is recorded as that first.
#[test]
fn what_is_in_doubt_after_its_deadline_ends_at_once() {
    let (world, after) = after_deadline(Host::Faulty(Fault::Silence, Phase::Dot, 80 * MINUTE));
    let kinds: Vec<_> = after.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [EventKind::InDoubt, EventKind::Expired], "{after:?}");
    assert!(after[1].1 - after[0].1 < 2 * SECOND, "{after:?}");
    assert_eq!(reports(&world), 1);
}
