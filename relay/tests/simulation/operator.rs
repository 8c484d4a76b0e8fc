//! What operators do, on the made-up Internet: queues suspended, resumed, retried and deleted; messages looked at.

use admin_api::operate::{
    Delete, Deletion, MessagesQuery, Preview, Progress, Resume, Retry, Selector, Suspend, WaitsFor,
};
use admin_api::{Caller, Control as _, ControlError, MessageView, QueuesQuery, RecipientState, Time};

use super::*;

pub(super) fn me() -> Caller {
    Caller("uid 7".into())
}

pub(super) fn of_tenant() -> Selector {
    Selector {
        tenant: Some("t".into()),
        ..Selector::default()
    }
}

fn of_domain(domain: &str) -> Selector {
    Selector {
        domain: Some(domain.into()),
        ..Selector::default()
    }
}

pub(super) fn operate(
    world: World,
    delivery: &str,
    recipients: &[&str],
    operator: impl AsyncFnOnce(&Running),
) -> (Rc<World>, Queue) {
    let (world, store) = (Rc::new(world), MemoryStore::new());
    let queue = live(&world, &store, START, delivery, async |relay| {
        relay.take_in(recipients).await;
        operator(relay).await;
    });
    (world, queue)
}

impl Running {
    pub(super) async fn suspend(&self, selector: Selector, until: Option<Timestamp>) {
        let suspend = Suspend {
            selector,
            until: until.map(Time),
            for_seconds: None,
            reason: "a test".into(),
        };
        self.control.suspend(suspend, me()).await.unwrap();
    }

    pub(super) async fn resume(&self, selector: Selector) -> Result<(), ControlError> {
        self.control.resume(Resume { selector }, me()).await
    }

    pub(super) async fn retry(&self, selector: Selector) -> Progress {
        self.retry_after(selector, None).await
    }

    async fn retry_after(&self, selector: Selector, after: Option<String>) -> Progress {
        self.control.retry(Retry { selector, after }, me()).await.unwrap()
    }

    pub(super) async fn preview(&self, selector: &Selector) -> Preview {
        let delete = Delete {
            selector: selector.clone(),
            tell: None,
            token: None,
            after: None,
        };
        match self.control.delete(delete, me()).await.unwrap() {
            Deletion::Preview(preview) => preview,
            Deletion::Progress(_) => panic!("deleted without a token"),
        }
    }

    /// All pages: what was done in each.
    pub(super) async fn delete(
        &self,
        selector: Selector,
        token: Option<String>,
        tell: Option<&str>,
    ) -> Vec<Progress> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let delete = Delete {
                selector: selector.clone(),
                tell: tell.map(str::to_owned),
                token: token.clone(),
                after,
            };
            let Deletion::Progress(progress) = self.control.delete(delete, me()).await.unwrap() else {
                panic!("a preview, though there was a token");
            };
            after = progress.next.clone();
            pages.push(progress);
            if after.is_none() {
                return pages;
            }
        }
    }

    /// The only message there is.
    async fn the_message(&self) -> MessageView {
        let list = self.control.messages(MessagesQuery::default()).await.unwrap();
        let id = list.messages[0].id.parse().unwrap();
        self.control.message(id).await.unwrap().unwrap()
    }

    /// What its first recipient waits for, until when, and why.
    async fn waits(&self) -> Option<(WaitsFor, Option<Timestamp>, String)> {
        let waits = self.the_message().await.recipients[0].waits.clone()?;
        let until = waits.until.map(|until| until.0);
        Some((waits.what, until, waits.cause.unwrap_or_default()))
    }
}

pub(super) fn deletions(queue: &Queue) -> usize {
    kinds(queue)
        .iter()
        .filter(|kind| **kind == EventKind::Deleted)
        .count()
}

#[test]
fn what_is_suspended_waits_over_restarts_and_goes_when_resumed() {
    let (world, store) = (Rc::new(world(hosts(&[(1, 1)]), &[])), MemoryStore::new());
    live(&world, &store, START, "", async |relay| {
        relay.suspend(of_tenant(), None).await;
        relay.take_in(&["x@to.test"]).await;
        sleep(20 * MINUTE).await;
    });
    let queue = live(&world, &store, START + 20 * MINUTE, "", async |relay| {
        sleep(20 * MINUTE).await;
        assert_eq!(world.connections.borrow().len(), 0);
        let why = (WaitsFor::Resume, None, "suspended by uid 7: a test".to_owned());
        assert_eq!(relay.waits().await, Some(why));
        let other = relay.resume(of_domain("to.test")).await;
        assert!(matches!(other, Err(ControlError::Absent(_))), "named otherwise");
        relay.resume(of_tenant()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.taken.borrow().len(), 1, "at once");
    });
    let expected = [
        EventKind::Suspended,
        EventKind::Accepted,
        EventKind::Resumed,
        EventKind::Delivered,
    ];
    assert_eq!(kinds(&queue), expected);
    assert!(is_empty(&queue));
}

#[test]
fn a_suspension_ends_by_itself_over_a_restart_too() {
    let (world, store) = (Rc::new(world(hosts(&[(1, 1)]), &[])), MemoryStore::new());
    let until = START + 30 * MINUTE;
    live(&world, &store, START, "", async |relay| {
        relay.suspend(of_domain("to.test"), Some(until)).await;
        relay.take_in(&["x@to.test"]).await;
        sleep(10 * MINUTE).await;
    });
    live(&world, &store, START + 20 * MINUTE, "", async |relay| {
        sleep(9 * MINUTE).await;
        assert_eq!(world.taken.borrow().len(), 0);
        let list = relay.control.queues(QueuesQuery::default()).await.unwrap();
        let suspension = list.queues[0].suspension.clone().unwrap();
        assert_eq!(suspension.until, Some(Time(until)));
        assert_eq!(suspension.selector, of_domain("to.test"));
        assert_eq!(
            relay.waits().await.map(|(what, until, _)| (what, until)),
            Some((WaitsFor::Resume, Some(until)))
        );
        sleep(MINUTE + Duration::from_secs(5)).await;
        assert_eq!(world.taken.borrow().len(), 1);
        assert_eq!(relay.control.suspensions().await.unwrap().suspensions, []);
    });
}

#[test]
fn a_suspension_stops_retries_at_once_and_ends_by_itself() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    operate(world, "", &["r@d1.test", "r@d2.test"], async |relay| {
        let tried = || relay.world.connections.borrow().len();
        sleep(Duration::from_secs(30)).await;
        let before = tried();
        assert!(before > 0);
        relay.suspend(of_tenant(), Some(START + 20 * MINUTE)).await;
        sleep(15 * MINUTE).await;
        assert_eq!(tried(), before);
        sleep(10 * MINUTE).await;
        assert!(tried() > before);
    });
}

#[test]
fn what_is_suspended_stays_so_whatever_is_retried() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    operate(world, "", &["r@d1.test", "r@d2.test"], async |relay| {
        let tried = || relay.world.connections.borrow().len();
        sleep(Duration::from_secs(30)).await;
        let before = tried();
        relay.suspend(of_tenant(), None).await;
        let all = Selector {
            all: true,
            ..Selector::default()
        };
        assert_eq!(relay.retry(all).await.done, 2, "moved all the same");
        sleep(10 * MINUTE).await;
        assert_eq!(tried(), before);
        relay.resume(of_tenant()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(tried() > before, "and due at once");
    });
}

/// Promise 9.
#[test]
fn what_is_suspended_expires_all_the_same() {
    let world = world(hosts(&[(1, 1)]), &[]);
    let (_, queue) = operate(world, "", &[], async |relay| {
        relay.suspend(of_domain("to.test"), None).await;
        relay.take_in(&["x@to.test"]).await;
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
    let late = expired.at.since(START + 60 * MINUTE);
    assert!(late < Duration::from_secs(5), "{late:?} after its deadline");
    assert!(is_empty(&queue), "and its sender was told");
}

#[test]
fn a_retry_is_made_at_once_whatever_the_destination_rests_for() {
    let hosts = world(hosts(&[(1, 1), (2, 2)]), &[Host::Takes, Host::Dead, Host::Dead]);
    operate(hosts, "", &["x@to.test"], async |relay| {
        let tried = || relay.world.connections.borrow().len();
        // Tried after 0, 1, 3 and 7 minutes, and the next time after 15.
        sleep(8 * MINUTE).await;
        let before = tried();
        let (what, until, cause) = relay.waits().await.unwrap();
        assert_eq!((what, until), (WaitsFor::Rest, Some(START + 15 * MINUTE)));
        assert!(cause.contains("refused"), "{cause}");
        let selector = Selector {
            message: Some(relay.the_message().await.id),
            ..Selector::default()
        };
        relay.retry(selector).await;
        sleep(Duration::from_secs(2)).await;
        assert!(tried() > before);
        // What failed before is not forgotten.
        let (_, until, _) = relay.waits().await.unwrap();
        assert!(until > Some(START + 17 * MINUTE), "{until:?}");
    });
}

#[test]
fn a_retry_of_what_the_dns_does_not_tell_asks_again() {
    let mut unknown = world(hosts(&[(1, 1)]), &[]);
    unknown.mx.clear();
    operate(unknown, "", &["x@to.test"], async |relay| {
        sleep(2 * MINUTE + MINUTE / 2).await;
        let asked = relay.the_message().await;
        let Some(waits) = &asked.recipients[0].waits else {
            panic!("{asked:?}");
        };
        assert_eq!(waits.what, WaitsFor::Rest);
        assert_eq!(waits.until, Some(Time(START + 3 * MINUTE)));
        relay.retry(of_tenant()).await;
        sleep(Duration::from_secs(1)).await;
        let waits = relay.waits().await;
        assert!(waits.unwrap().1 > Some(START + 3 * MINUTE));
    });
}

#[test]
fn a_retry_of_what_a_reply_put_off_is_made_at_once() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let to = ["r@d1.test", "r@d2.test", "r@d3.test"];
    let (_, queue) = operate(world, "", &to, async |relay| {
        // Tried after 0, 1 and 3 minutes, and the next time after 7.
        sleep(4 * MINUTE).await;
        let progress = relay.retry(of_tenant()).await;
        assert_eq!((progress.done, progress.next), (3, None));
        sleep(Duration::from_secs(5)).await;
        let list = relay.control.messages(MessagesQuery::default()).await.unwrap();
        assert_eq!(list.messages.len(), 3);
        for message in list.messages {
            assert_eq!(message.recipients[0].attempts, 4, "{message:?}");
        }
    });
    let retried = kinds(&queue)
        .into_iter()
        .filter(|kind| *kind == EventKind::Retried);
    assert_eq!(retried.count(), 3);
}

#[test]
fn a_retry_in_pages_tries_each_once() {
    let recipients: Vec<String> = (0..1_500)
        .map(|number| format!("r{number}@d{}.test", number % 3))
        .collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let (_, queue) = operate(world, "", &recipients, async |relay| {
        sleep(MINUTE / 2).await;
        let first = relay.retry(of_tenant()).await;
        assert!(first.next.is_some() && first.done > 800, "{first:?}");
        let (mut done, mut next) = (first.done, first.next.clone());
        while next.is_some() {
            // Those are tried, and put off behind what the next page is to come by.
            sleep(Duration::from_secs(10)).await;
            let page = relay.retry_after(of_tenant(), next).await;
            done += page.done;
            next = page.next;
        }
        assert_eq!(done, 1_500);
        sleep(Duration::from_secs(10)).await;
        let nonsense = Retry {
            selector: of_tenant(),
            after: first.next.map(|next| next.replace(':', ".")),
        };
        let refused = relay.control.retry(nonsense, me()).await;
        assert!(matches!(refused, Err(ControlError::Wrong(_))));
    });
    let retried = kinds(&queue)
        .into_iter()
        .filter(|kind| *kind == EventKind::Retried);
    assert_eq!(retried.count(), 1_500);
}

#[test]
fn what_is_deleted_was_previewed_and_ends_without_a_report() {
    let recipients: Vec<String> = (0..40).map(|number| format!("r@d{number}.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let (world, queue) = operate(world, "", &recipients, async |relay| {
        sleep(2 * MINUTE).await;
        let preview = relay.preview(&of_tenant()).await;
        assert_eq!((preview.queues, preview.messages), (40, 40));
        let all = Selector {
            all: true,
            ..Selector::default()
        };
        let token = preview.token.clone().unwrap();
        let far = format!("{:x}-{}", u64::MAX, &token[token.len() - 16..]);
        // None at all, one of another selector, one of another time.
        for (selector, token) in [
            (of_tenant(), "0000"),
            (all, token.as_str()),
            (of_tenant(), far.as_str()),
        ] {
            let delete = Delete {
                selector,
                tell: None,
                token: Some(token.to_owned()),
                after: None,
            };
            let refused = relay.control.delete(delete, me()).await;
            assert!(matches!(refused, Err(ControlError::Conflict(_))), "{token}");
        }
        let pages = relay.delete(of_tenant(), preview.token, None).await;
        let page = &pages[0];
        assert_eq!((page.done, page.busy, page.failed, pages.len()), (40, 0, 0, 1));
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

#[test]
fn a_delete_takes_what_its_selector_names_and_nothing_that_came_later() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let to = ["r@d1.test", "r@d2.test", "s@d2.test"];
    let (_, queue) = operate(world, "", &to, async |relay| {
        sleep(MINUTE / 2).await;
        let preview = relay.preview(&of_domain("d2.test")).await;
        assert_eq!((preview.queues, preview.messages), (1, 2));
        sleep(Duration::from_secs(1)).await;
        let later = message(
            77,
            "t@d2.test",
            &relay.routing,
            START + MINUTE / 2 + Duration::from_secs(1),
        );
        let later = relay.queue.accept(Arc::new(later)).await.unwrap();
        relay.doors.tell(&later.units, None).await;
        let pages = relay.delete(of_domain("d2.test"), preview.token, None).await;
        assert_eq!((pages[0].done, pages.len()), (2, 1));
        let list = relay.control.messages(MessagesQuery::default()).await.unwrap();
        let left: Vec<_> = list
            .messages
            .iter()
            .map(|message| message.recipients[0].recipient.as_str())
            .collect();
        assert_eq!(left, ["r@d1.test", "t@d2.test"]);
    });
    assert_eq!(deletions(&queue), 2);
}

#[test]
fn senders_are_told_of_a_delete_where_the_operator_says_so() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let (world, queue) = operate(world, "", &["r@d1.test", "r@d2.test"], async |relay| {
        sleep(MINUTE / 2).await;
        let preview = relay.preview(&of_tenant()).await;
        let told = relay
            .delete(of_tenant(), preview.token, Some("sent by mistake"))
            .await;
        assert_eq!((told[0].done, told[0].failed), (2, 0));
        sleep(MINUTE / 2).await;
    });
    assert_eq!(deletions(&queue), 2);
    assert_eq!(reports(&world), 2);
    let events = queue.events(0, 99).unwrap();
    let deleted = events.iter().find(|(_, event)| event.kind == EventKind::Deleted);
    assert_eq!(deleted.unwrap().1.reply, "deleted by uid 7: sent by mistake");
    assert!(is_empty(&queue));
}

/// Promise 2: what the peer says of it is its end.
#[test]
fn what_is_on_the_wire_is_not_deleted() {
    let (world, queue) = operate(hosted(Host::Slow), "", &["r@d1.test"], async |relay| {
        sleep(MINUTE / 2).await;
        assert_eq!(relay.waits().await.unwrap().0, WaitsFor::Underway);
        let preview = relay.preview(&of_tenant()).await;
        assert_eq!(preview.messages, 1);
        let pages = relay.delete(of_tenant(), preview.token.clone(), None).await;
        assert_eq!((pages[0].done, pages[0].busy), (0, 1));
        sleep(MINUTE).await;
        let pages = relay.delete(of_tenant(), preview.token, None).await;
        assert_eq!((pages[0].done, pages[0].busy), (0, 0));
    });
    assert_eq!(kinds(&queue), [EventKind::Accepted, EventKind::Delivered]);
    assert_eq!(world.taken.borrow().len(), 1);
}

#[test]
fn many_are_deleted_in_pages() {
    let recipients: Vec<String> = (0..2_500)
        .map(|number| format!("r{number}@d{}.test", number % 7))
        .collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let (_, queue) = operate(hosted(Host::Takes), "", &[], async |relay| {
        relay.suspend(of_tenant(), None).await;
        relay.take_in(&recipients).await;
        let preview = relay.preview(&of_tenant()).await;
        assert_eq!((preview.queues, preview.messages), (7, 2_500));
        let pages = relay.delete(of_tenant(), preview.token, None).await;
        assert!(pages.len() >= 3, "{pages:?}");
        assert!(pages.iter().all(|page| page.done < 1_100 && page.busy == 0));
        assert_eq!(pages.iter().map(|page| page.done).sum::<u64>(), 2_500);
    });
    assert_eq!(deletions(&queue), 2_500);
    assert!(is_empty(&queue));
}

#[test]
fn throttled_mail_says_so() {
    let limits = "[delivery.limits]\nmessages_per_second = 0.01\n";
    operate(hosted(Host::Takes), limits, &["r@d1.test"], async |relay| {
        sleep(Duration::from_secs(10)).await;
        let (what, until, limit) = relay.waits().await.unwrap();
        assert_eq!((what, limit.as_str()), (WaitsFor::Limit, "messages_per_second"));
        assert_eq!(until, Some(START + Duration::from_secs(100)));
    });
}

#[test]
fn messages_are_listed_by_filter_and_page() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let recipients: Vec<String> = (0..25)
        .map(|number| format!("r{number}@d{}.test", number % 3))
        .collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    operate(world, "", &recipients, async |relay| {
        sleep(MINUTE / 2).await;
        let mut query = MessagesQuery {
            limit: Some(4),
            ..MessagesQuery::default()
        };
        for (domain, expected) in [(None, 25), (Some("d2.test"), 8), (Some("d9.test"), 0)] {
            query.domain = domain.map(str::to_owned);
            query.after = None;
            let mut seen = Vec::new();
            loop {
                let page = relay.control.messages(query.clone()).await.unwrap();
                assert!(page.messages.len() <= 4);
                for message in page.messages {
                    assert!(domain.is_none_or(|domain| domain == message.domain));
                    assert_eq!(message.recipients[0].state, RecipientState::Deferred);
                    seen.push(message.id);
                }
                query.after = page.next;
                if query.after.is_none() {
                    break;
                }
            }
            let all = seen.len();
            seen.sort();
            seen.dedup();
            assert_eq!((seen.len(), all), (expected, expected), "each once");
        }
        query.after = Some("nonsense".into());
        let refused = relay.control.messages(query).await;
        assert!(matches!(refused, Err(ControlError::Wrong(_))));
    });
}
