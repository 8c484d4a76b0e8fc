//! What operators do with mail that no index knows: by sender, recipient, tag, age.

use admin_api::operate::{Delete, MessagesQuery, Selector};
use admin_api::{Control as _, ControlError, RecipientState};

use super::operator::{deletions, me, of_tenant, operate};
use super::*;

fn of_sender(sender: &str) -> Selector {
    Selector {
        sender: Some(sender.into()),
        ..Selector::default()
    }
}

fn of_recipient(recipient: &str) -> Selector {
    Selector {
        recipient: Some(recipient.into()),
        ..Selector::default()
    }
}

impl Running {
    /// Takes in so many messages for `r@d1.test` and the like.
    async fn take_in_many(&self, count: usize, domains: usize) {
        let recipients: Vec<String> = (0..count)
            .map(|number| format!("r@d{}.test", 1 + number % domains))
            .collect();
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        self.take_in(&recipients).await;
    }

    async fn take_in_from(&self, number: u16, sender: &str, recipients: &[&str]) {
        let now = self.since;
        let mut message = message(number, recipients[0], &self.routing, now);
        message.reverse_path = ReversePath::Mailbox(sender.parse().unwrap());
        let recipients = recipients.iter().map(|to| Recipient::new(to.parse().unwrap()));
        message.units[0].recipients = recipients.collect();
        let kept = self.queue.accept(Arc::new(message)).await.unwrap();
        self.doors.tell(&kept.units, None).await;
    }
}

/// Messages that wait: their first recipients, and how often each was tried.
async fn waiting(relay: &Running) -> Vec<(String, u32)> {
    let list = relay.control.messages(MessagesQuery::default()).await.unwrap();
    let first = |message: admin_api::operate::WaitingMessage| {
        let one = message.recipients.into_iter().next().unwrap();
        assert_ne!(one.state, RecipientState::Ended);
        (one.recipient, one.attempts)
    };
    list.messages.into_iter().map(first).collect()
}

#[test]
fn what_a_scan_deletes_was_previewed_and_nothing_else_goes() {
    let (world, queue) = operate(hosted(Host::Takes), "", &[], async |relay| {
        relay.suspend(of_tenant(), None).await;
        relay.take_in_many(2_500, 7).await;
        for number in 5_000..5_010 {
            relay
                .take_in_from(number, "other@back.test", &["r@d1.test"])
                .await;
        }
        let preview = relay.preview(&of_sender("sender@BACK.test")).await;
        assert_eq!((preview.queues, preview.messages), (7, 2_500));
        assert_eq!((preview.looked, preview.next), (2_510, None));
        sleep(Duration::from_secs(1)).await;
        let now = START + Duration::from_secs(1);
        let later = message(6_000, "r@d1.test", &relay.routing, now);
        let later = relay.queue.accept(Arc::new(later)).await.unwrap();
        relay.doors.tell(&later.units, None).await;
        let of_another = Delete {
            selector: of_sender("@back.test"),
            tell: None,
            token: preview.token.clone(),
            after: None,
        };
        let refused = relay.control.delete(of_another, me()).await;
        assert!(matches!(refused, Err(ControlError::Conflict(_))), "{refused:?}");
        let pages = relay
            .delete(of_sender("sender@BACK.test"), preview.token, None)
            .await;
        assert!(pages.len() >= 3, "{pages:?}");
        assert!(pages.iter().all(|page| page.done < 1_100 && page.busy == 0));
        assert_eq!(pages.iter().map(|page| page.done).sum::<u64>(), 2_500);
        relay.resume(of_tenant()).await.unwrap();
        sleep(MINUTE).await;
    });
    assert_eq!(deletions(&queue), 2_500);
    let taken = world.taken.borrow();
    assert_eq!(taken.iter().map(|(_, _, to)| to.len()).sum::<usize>(), 11);
}

/// To delete it would end the others' too.
#[test]
fn what_others_wait_for_too_is_retried_and_not_deleted() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let (_, queue) = operate(world, "", &[], async |relay| {
        let r = || of_recipient("r@d1.test");
        for (number, recipients) in [&["r@d1.test"][..], &["s@d1.test", "r@d1.test"], &["s@d1.test"]]
            .iter()
            .enumerate()
        {
            let number = u16::try_from(number).unwrap();
            relay.take_in_from(number, "sender@back.test", recipients).await;
        }
        // Tried after 0, 1 and 3 minutes, and the next time after 7.
        sleep(4 * MINUTE).await;
        let retried = relay.retry(r()).await;
        assert_eq!((retried.done, retried.shared, retried.looked), (2, 0, 3));
        sleep(Duration::from_secs(5)).await;
        let mut tried = waiting(relay).await;
        tried.sort();
        let expected = [("r@d1.test", 4), ("s@d1.test", 3), ("s@d1.test", 4)];
        assert_eq!(
            tried,
            expected.map(|(name, attempts)| (name.to_owned(), attempts))
        );
        let preview = relay.preview(&r()).await;
        assert_eq!((preview.messages, preview.shared), (1, 1));
        let pages = relay.delete(r(), preview.token, None).await;
        assert_eq!((pages[0].done, pages[0].shared, pages.len()), (1, 1, 1));
        let left: Vec<_> = waiting(relay).await.into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, ["s@d1.test", "s@d1.test"]);
    });
    assert_eq!(deletions(&queue), 1);
}

/// However many pages their mail takes.
#[test]
fn a_scan_has_the_destinations_of_what_it_finds_tried_once() {
    let mut dead = hosted(Host::Dead);
    dead.hosts = vec![Host::Dead; 3];
    for number in 1..=2 {
        dead.mx.insert(format!("d{number}.test"), hosts(&[(10, number)]));
    }
    operate(dead, "", &[], async |relay| {
        relay.take_in_many(600, 1).await;
        relay.take_in_from(5_000, "other@back.test", &["r@d2.test"]).await;
        // Tried after 0, 1, 3 and 7 minutes, and the next time after 15.
        sleep(8 * MINUTE).await;
        let tried = || {
            let connections = relay.world.connections.borrow();
            [1, 2].map(|host| connections.iter().filter(|to| **to == host).count())
        };
        let before = tried();
        let retried = relay.retry(of_sender("sender@back.test")).await;
        assert_eq!((retried.looked, retried.done), (601, 0), "they are due");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(tried(), [before[0] + 1, before[1]]);
    });
}

#[test]
fn an_age_counts_from_the_preview() {
    let world = hosted(Host::Rcpt("450 4.2.1 later"));
    let (_, queue) = operate(world, "", &["r@d1.test"], async |relay| {
        sleep(10 * MINUTE).await;
        let second = message(77, "s@d1.test", &relay.routing, START + 10 * MINUTE);
        let second = relay.queue.accept(Arc::new(second)).await.unwrap();
        relay.doors.tell(&second.units, None).await;
        let old = || Selector {
            older_than_seconds: Some(300),
            ..Selector::default()
        };
        let preview = relay.preview(&old()).await;
        assert_eq!((preview.messages, preview.looked), (1, 2));
        sleep(6 * MINUTE).await;
        let pages = relay.delete(old(), preview.token, None).await;
        assert_eq!(pages[0].done, 1);
        let left: Vec<_> = waiting(relay).await.into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, ["s@d1.test"]);
        assert_eq!(relay.preview(&old()).await.messages, 1, "old by now");
    });
    assert_eq!(deletions(&queue), 1);
}
