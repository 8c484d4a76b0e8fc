//! What operators do, on the made-up Internet: queues suspended, resumed, retried and deleted; messages looked at.

use admin_api::operate::{Delete, Deletion, MessagesQuery, Resume, Retry, Selector, Suspend};
use admin_api::{Caller, Control as _, ControlError, RecipientState, Time};

use super::*;

fn me() -> Caller {
    Caller("uid 7".into())
}

fn of_tenant() -> Selector {
    Selector {
        tenant: Some("t".into()),
        ..Selector::default()
    }
}

fn suspended(until: Option<Timestamp>) -> SuspensionRecord {
    SuspensionRecord {
        selector: queue::Selector {
            tenant: Some("t".into()),
            ..queue::Selector::default()
        },
        since: START,
        until,
        reason: "a test".into(),
        by: "uid 7".into(),
    }
}

#[test]
fn what_is_suspended_waits_over_a_restart_and_goes_when_resumed() {
    let world = world(hosts(&[(1, 1)]), &[]);
    let (world, queue) = operate(
        world,
        "",
        &["x@to.test"],
        Some(suspended(None)),
        async |control, world| {
            sleep(20 * MINUTE).await;
            assert_eq!(world.connections.borrow().len(), 0);
            let list = control.messages(MessagesQuery::default()).await.unwrap();
            let id = list.messages[0].id.parse().unwrap();
            let view = control.message(id).await.unwrap().unwrap();
            assert_eq!(view.recipients[0].state, RecipientState::Waiting);
            let why = view.recipients[0].last_reply.as_deref();
            assert_eq!(why, Some("suspended by uid 7: a test"));
            let other = Resume {
                selector: Selector {
                    domain: Some("to.test".into()),
                    ..Selector::default()
                },
            };
            assert!(matches!(
                control.resume(other, me()).await,
                Err(ControlError::Absent(_))
            ));
            let selector = of_tenant();
            control.resume(Resume { selector }, me()).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            assert_eq!(world.taken.borrow().len(), 1, "at once");
        },
    );
    assert_eq!(
        kinds(&queue),
        [
            EventKind::Suspended,
            EventKind::Accepted,
            EventKind::Resumed,
            EventKind::Delivered
        ]
    );
    assert_eq!(world.taken.borrow().len(), 1);
    assert!(is_empty(&queue));
}

#[test]
fn a_suspension_stops_retries_at_once_and_ends_by_itself() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    operate(
        world,
        "",
        &["r@d1.test", "r@d2.test"],
        None,
        async |control, world| {
            sleep(Duration::from_secs(30)).await;
            let tried = world.connections.borrow().len();
            assert!(tried > 0);
            let suspend = Suspend {
                selector: of_tenant(),
                until: Some(Time(START + 20 * MINUTE)),
                reason: "a test".into(),
            };
            control.suspend(suspend, me()).await.unwrap();
            sleep(15 * MINUTE).await;
            assert_eq!(world.connections.borrow().len(), tried);
            let list = control.queues(admin_api::QueuesQuery::default()).await.unwrap();
            assert!(list.queues.iter().all(|queue| queue.suspension.is_some()));
            sleep(10 * MINUTE).await;
            assert!(world.connections.borrow().len() > tried);
            assert_eq!(control.suspensions().await.unwrap().suspensions, []);
        },
    );
}

#[test]
fn what_is_suspended_expires_all_the_same() {
    let world = world(hosts(&[(1, 1)]), &[]);
    let (_, queue) = operate(world, "", &["x@to.test"], Some(suspended(None)), async |_, _| {
        sleep(70 * MINUTE).await
    });
    let events = queue.events(0, 99).unwrap();
    let (_, expired) = events
        .iter()
        .find(|(_, event)| event.kind == EventKind::Expired)
        .unwrap();
    assert!(
        expired.reply.contains("suspended by uid 7: a test"),
        "{}",
        expired.reply
    );
}

#[test]
fn a_retry_is_made_at_once_whatever_the_destination_rests_for() {
    let hosts = world(hosts(&[(1, 1), (2, 2)]), &[Host::Takes, Host::Dead, Host::Dead]);
    operate(hosts, "", &["x@to.test"], None, async |control, world| {
        sleep(9 * MINUTE).await;
        let tried = world.connections.borrow().len();
        let list = control.messages(MessagesQuery::default()).await.unwrap();
        let id = list.messages[0].id.parse().unwrap();
        let view = control.message(id).await.unwrap().unwrap();
        assert_eq!(view.recipients[0].state, RecipientState::Waiting, "{view:?}");
        let selector = Selector {
            message: Some(list.messages[0].id.clone()),
            ..Selector::default()
        };
        let retry = Retry {
            selector,
            after: None,
        };
        control.retry(retry, me()).await.unwrap();
        sleep(Duration::from_secs(2)).await;
        assert!(world.connections.borrow().len() > tried);
    });
}

#[test]
fn a_retry_of_what_a_reply_put_off_is_made_at_once() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let (_, queue) = operate(
        world,
        "",
        &["r@d1.test", "r@d2.test", "r@d3.test"],
        None,
        async |control, _| {
            // Tried after 0, 1 and 3 minutes, and the next time after 7.
            sleep(4 * MINUTE).await;
            let retry = Retry {
                selector: of_tenant(),
                after: None,
            };
            let progress = control.retry(retry, me()).await.unwrap();
            assert_eq!((progress.done, progress.next), (3, None));
            sleep(Duration::from_secs(5)).await;
            let list = control.messages(MessagesQuery::default()).await.unwrap();
            assert_eq!(list.messages.len(), 3);
            for message in list.messages {
                assert_eq!(message.recipients[0].attempts, 4, "{message:?}");
            }
        },
    );
    let retried = kinds(&queue)
        .into_iter()
        .filter(|kind| *kind == EventKind::Retried);
    assert_eq!(retried.count(), 3);
}

#[test]
fn what_is_deleted_was_previewed_and_ends_without_a_report() {
    let recipients: Vec<String> = (0..40).map(|number| format!("r@d{number}.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let (world, queue) = operate(world, "", &recipients, None, async |control, _| {
        sleep(2 * MINUTE).await;
        let mut delete = Delete {
            selector: of_tenant(),
            token: None,
            after: None,
        };
        let Deletion::Preview(preview) = control.delete(delete.clone(), me()).await.unwrap() else {
            panic!("deleted without a token");
        };
        assert_eq!((preview.queues, preview.messages), (40, 40));
        delete.token = Some("0000".into());
        assert!(matches!(
            control.delete(delete.clone(), me()).await,
            Err(ControlError::Conflict(_))
        ));
        // A preview of something else is none of this.
        delete.token = Some(preview.token);
        let other = Delete {
            selector: Selector {
                all: true,
                ..Selector::default()
            },
            ..delete.clone()
        };
        assert!(control.delete(other, me()).await.is_err());
        let Deletion::Progress(progress) = control.delete(delete, me()).await.unwrap() else {
            panic!("a preview, though there was a token");
        };
        assert_eq!((progress.done, progress.busy, progress.next), (40, 0, None));
        sleep(MINUTE).await;
    });
    let events = queue.events(0, 999).unwrap();
    let deleted = events
        .iter()
        .filter(|(_, event)| event.kind == EventKind::Deleted && event.reply == "deleted by uid 7");
    assert_eq!(deleted.count(), 40);
    assert_eq!(reports(&world), 0);
    assert!(is_empty(&queue));
}
