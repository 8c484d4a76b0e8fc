//! What replies are taken for decides whether mail is tried again, and is told wherever the reply is.

use admin_api::{Control as _, MessageView, QueuesQuery, RecipientState};

use super::*;

/// Delivers to a host that says this to RCPT, by these rules, for some minutes; tells what the API says of the message.
fn said(host: Host, rules: &str, minutes: u32) -> (MessageView, Vec<EventKind>, usize) {
    let (world, store) = (Rc::new(world(hosts(&[(10, 0)]), &[host])), MemoryStore::new());
    let mut view = None;
    let queue = live(&world, &store, START, rules, async |relay| {
        let id = message(0, "a@to.test", &relay.routing, relay.since).id;
        relay.take_in(&["a@to.test"]).await;
        sleep(minutes * MINUTE).await;
        view = relay.control.message(id).await.unwrap();
    });
    (view.unwrap(), kinds(&queue), reports(&world))
}

fn class_of(view: &MessageView) -> &str {
    view.recipients[0].class.as_deref().unwrap_or("none")
}

fn events(view: &MessageView) -> Vec<String> {
    let word = |event: &admin_api::EventView| {
        let class = event.class.as_deref().unwrap_or("none");
        format!("{} {class}", event.kind)
    };
    view.events.iter().map(word).collect()
}

#[test]
fn unless_told_otherwise_5yz_is_the_end_and_4yz_is_not() {
    let (view, _, reports) = said(Host::Rcpt("552 5.2.2 no room"), "", 5);
    assert_eq!(view.recipients[0].state, RecipientState::Bounced);
    assert_eq!(events(&view), ["accepted none", "bounced mailbox-full"]);
    assert_eq!((class_of(&view), reports), ("mailbox-full", 1));

    let (view, _, reports) = said(Host::Rcpt("450 4.1.1 not verified yet"), "", 2);
    assert_eq!(view.recipients[0].state, RecipientState::Deferred);
    assert_eq!((class_of(&view), reports), ("unknown-user", 0));
    assert!(events(&view).contains(&"deferred unknown-user".to_owned()));
}

#[test]
fn a_full_mailbox_is_tried_again_where_the_configuration_says_so() {
    let rules = "[[bounce_class]]\nname = \"mailbox-full\"\npermanent = \"retry\"\n";
    let (view, kinds, reports) = said(Host::Rcpt("552 5.2.2 no room"), rules, 70);
    let tries = kinds.iter().filter(|kind| **kind == EventKind::Deferred).count();
    assert!((5..=12).contains(&tries), "{kinds:?}");
    assert!(!kinds.contains(&EventKind::Bounced), "{kinds:?}");
    assert_eq!(view.recipients[0].state, RecipientState::Expired);
    assert_eq!(
        (class_of(&view), reports),
        ("mailbox-full", 1),
        "what was said last"
    );
    // Other 5yz are what they were.
    let (view, ..) = said(Host::Rcpt("550 5.1.1 nobody"), rules, 5);
    assert_eq!(view.recipients[0].state, RecipientState::Bounced);
}

#[test]
fn an_unknown_user_may_be_the_end_whatever_the_digit() {
    let rules = "[[bounce_class]]\nname = \"unknown-user\"\ntemporary = \"end\"\n";
    let (view, kinds, reports) = said(Host::Rcpt("450 4.1.1 nobody"), rules, 5);
    assert!(!kinds.contains(&EventKind::Deferred), "{kinds:?}");
    assert_eq!(view.recipients[0].state, RecipientState::Bounced);
    assert_eq!(view.recipients[0].last_reply.as_deref(), Some("450 4.1.1 nobody"));
    assert_eq!((class_of(&view), reports), ("unknown-user", 1));
}

#[test]
fn a_class_and_rules_of_ones_own() {
    let rules = "[[provider]]\nname = \"mine\"\nmx = [\"h0.test\"]\n[[bounce_class]]\nname = \"holiday\"\npermanent = \"retry\"\n\
         [[bounce_rule]]\nclass = \"holiday\"\ncodes = [\"550\"]\ntext = [\"closed for the * holidays\"]\nprovider = \"mine\"\n";
    let words = "550 5.7.1 Closed for the summer holidays";
    let (view, ..) = said(Host::Rcpt(words), rules, 2);
    assert_eq!(view.recipients[0].state, RecipientState::Deferred);
    assert_eq!(class_of(&view), "holiday");
    let others = rules.replace("h0.test", "h0.example");
    let (view, ..) = said(Host::Rcpt(words), &others, 2);
    assert_eq!(view.recipients[0].state, RecipientState::Bounced);
    assert_eq!(class_of(&view), "policy", "another host's words");
}

#[test]
fn a_refusal_at_the_door_goes_by_its_class_too() {
    let words = "554 5.7.1 your address is on our block list";
    let (view, ..) = said(Host::Greets(words), "", 5);
    assert_eq!(view.recipients[0].state, RecipientState::Bounced);
    assert_eq!(class_of(&view), "block");
    let rules = "[[bounce_class]]\nname = \"block\"\npermanent = \"retry\"\n";
    let (view, kinds, reports) = said(Host::Greets(words), rules, 5);
    // The destination rests as a whole; the message's own time does not move.
    assert_eq!(view.recipients[0].state, RecipientState::Queued);
    assert!(!kinds.contains(&EventKind::Bounced) && reports == 0, "{kinds:?}");
}

#[test]
fn what_a_destination_rests_for_has_a_class() {
    let (world, store) = (
        Rc::new(world(
            hosts(&[(10, 0)]),
            &[Host::Greets("421 4.7.0 too many connections from you")],
        )),
        MemoryStore::new(),
    );
    live(&world, &store, START, "", async |relay| {
        relay.take_in(&["a@to.test", "a@nowhere.test"]).await;
        sleep(MINUTE / 2).await;
        let holds = relay.control.holds().await.unwrap().holds;
        let class_of = |scope: &str| {
            let hold = holds.iter().find(|hold| hold.scope == scope).unwrap();
            hold.class.as_deref().unwrap()
        };
        assert_eq!(
            (class_of("lane"), class_of("domain")),
            ("rate", "dns"),
            "{holds:?}"
        );
        let list = relay.control.queues(QueuesQuery::default()).await.unwrap().queues;
        let queue = list.iter().find(|queue| queue.domain == "nowhere.test").unwrap();
        let one = relay.control.queue(queue.id).await.unwrap().unwrap();
        for hold in [&queue.hold, &one.hold] {
            assert_eq!(hold.as_ref().unwrap().class.as_deref(), Some("dns"));
        }
    });
}
