//! Records that do not verify: never delivered, set aside, expired with a report; brought back or dropped by an operator.

use admin_api::aside::{AsideList, AsideQuery};
use admin_api::operate::{Delete, Deletion, Retry, Selector};
use admin_api::{Caller, Control as _, RecipientState};
use queue::store::{Batch, Family, Store};

use super::*;

/// Flips a bit in each record of a family whose key begins like this; again, and it is whole.
fn flip(store: &MemoryStore, family: Family, prefix: &[u8]) {
    let mut batch = Batch::default();
    for (_, key, mut value) in store
        .contents()
        .into_iter()
        .filter(|(of, key, _)| *of == family && key.starts_with(prefix))
    {
        *value.last_mut().unwrap() ^= 4;
        batch.put(family, &key, value);
    }
    assert!(!batch.is_empty());
    store.write(&batch, true).unwrap();
}

/// Two messages for hosts that are down for a while; then the first one's record in `family` is damaged, and they are up.
fn damaged(family: Family, then: impl AsyncFnOnce(&Running, &MemoryStore, MessageId)) -> (Rc<World>, Queue) {
    damaged_under(family, "", then)
}

/// The same, with these limits once they are up.
fn damaged_under(
    family: Family,
    limits: &str,
    then: impl AsyncFnOnce(&Running, &MemoryStore, MessageId),
) -> (Rc<World>, Queue) {
    let (down, store) = (
        Rc::new(world(hosts(&[(1, 1)]), &[Host::Takes, Host::Rcpt("450 later")])),
        MemoryStore::new(),
    );
    live(&down, &store, START, "", async |relay| {
        relay.take_in(&["tell@to.test", "x@to.test"]).await;
        sleep(MINUTE / 2).await;
    });
    let id = store
        .contents()
        .into_iter()
        .find_map(|(family, key, _)| {
            (family == Family::Envelope).then(|| MessageId::from_bytes(key.try_into().unwrap()))
        })
        .unwrap();
    flip(&store, family, id.as_bytes());
    let up = Rc::new(world(hosts(&[(1, 1)]), &[]));
    let queue = live(&up, &store, START + MINUTE, limits, async |relay| {
        then(relay, &store, id).await
    });
    (up, queue)
}

fn delivered(world: &World) -> Vec<String> {
    let taken = world.taken.borrow();
    taken.iter().flat_map(|(_, _, to)| to.clone()).collect()
}

async fn listed(relay: &Running) -> AsideList {
    relay.control.aside(AsideQuery::default()).await.unwrap()
}

fn where_set_aside(id: MessageId) -> Selector {
    Selector {
        message: Some(id.to_string()),
        set_aside: true,
        ..Selector::default()
    }
}

#[test]
fn what_is_set_aside_is_no_message_of_its_limits() {
    let limits = "[[limit]]\nsite = \"*\"\nmessages_per_minute = 1\n";
    damaged_under(Family::Body, limits, async |relay, _, _| {
        sleep(MINUTE / 2).await;
        assert_eq!(listed(relay).await.messages.len(), 1);
        assert_eq!(delivered(&relay.world), ["x@to.test"]);
    });
}

/// Promises 9 and 10.
#[test]
fn what_is_damaged_is_set_aside_and_expires_and_all_else_goes() {
    for family in [Family::Body, Family::Envelope, Family::State] {
        let (world, queue) = damaged(family, async |relay, _, id| {
            sleep(10 * MINUTE).await;
            assert_eq!(delivered(&relay.world), ["x@to.test"], "{family:?}");
            let list = listed(relay).await;
            assert_eq!(list.messages.len(), 1);
            let message = &list.messages[0];
            assert_eq!(
                (&message.id, message.cause),
                (&id.to_string(), RecipientState::Damaged)
            );
            assert!(message.why.contains(family.name()), "{}", message.why);
            let view = relay.control.message(id).await.unwrap().unwrap();
            assert!(view.queued);
            let recipient = &view.recipients[0];
            assert_eq!(
                (recipient.recipient.as_str(), recipient.state),
                ("tell@to.test", RecipientState::Damaged)
            );
            assert_eq!(recipient.last_reply.as_ref(), Some(&message.why));
            assert_eq!(units(&relay.queue), 1, "it counts");
            sleep(60 * MINUTE).await;
            assert!(listed(relay).await.messages.is_empty());
        });
        let kinds = kinds(&queue);
        let count = |kind| kinds.iter().filter(|of| **of == kind).count();
        assert_eq!(
            (count(EventKind::Damaged), count(EventKind::Expired)),
            (1, 1),
            "{family:?}: {kinds:?}"
        );
        // Its sender is told, unless there is nothing that says who that was.
        let told = if family == Family::Envelope { 0 } else { 1 };
        let reports = delivered(&world)
            .iter()
            .filter(|to| *to == "sender@back.test")
            .count();
        assert_eq!(reports, told, "{family:?}");
        assert!(is_empty(&queue), "{family:?}");
    }
}

#[test]
fn what_verifies_again_goes_when_an_operator_says_so() {
    for family in [Family::Body, Family::Envelope] {
        damaged(family, async |relay, store, id| {
            sleep(MINUTE).await;
            let retry = || async {
                let selector = where_set_aside(id);
                let by = Caller("uid 7".into());
                relay
                    .control
                    .retry(
                        Retry {
                            selector,
                            after: None,
                        },
                        by,
                    )
                    .await
                    .unwrap()
            };
            let progress = retry().await;
            // What says who it is for has to read before it is moved; a body is read when it is sent.
            let (done, failed) = if family == Family::Body { (1, 0) } else { (0, 1) };
            assert_eq!((progress.done, progress.failed), (done, failed));
            sleep(MINUTE).await;
            assert_eq!(listed(relay).await.messages.len(), 1, "set aside again");
            flip(store, family, id.as_bytes());
            assert_eq!(retry().await.done, 1);
            sleep(Duration::from_secs(1)).await;
            assert_eq!(
                delivered(&relay.world),
                ["x@to.test", "tell@to.test"],
                "{family:?}"
            );
            assert!(listed(relay).await.messages.is_empty());
            assert!(is_empty(&relay.queue));
        });
    }
}

#[test]
fn what_is_damaged_can_be_dropped() {
    for family in [Family::Body, Family::Envelope, Family::State] {
        let (world, queue) = damaged(family, async |relay, _, id| {
            sleep(MINUTE).await;
            let mut delete = Delete {
                selector: where_set_aside(id),
                tell: None,
                token: None,
                after: None,
            };
            let ask = async |delete: &Delete| {
                let by = Caller("uid 7".into());
                relay.control.delete(delete.clone(), by).await.unwrap()
            };
            let Deletion::Preview(preview) = ask(&delete).await else {
                panic!("no preview");
            };
            assert_eq!(preview.messages, 1);
            delete.token = preview.token;
            let Deletion::Progress(progress) = ask(&delete).await else {
                panic!("a second preview");
            };
            assert_eq!((progress.done, progress.failed), (1, 0), "{family:?}");
            assert!(is_empty(&relay.queue));
        });
        let events = queue.events(0, 999).unwrap();
        let (_, deleted) = events
            .iter()
            .find(|(_, event)| event.kind == EventKind::Deleted)
            .unwrap();
        assert_eq!(deleted.recipients, ["tell@to.test"], "{family:?}");
        assert_eq!(delivered(&world), ["x@to.test"]);
    }
}
