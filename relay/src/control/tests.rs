//! The whole of it over a queue in memory, and messages that other modules' tests take in.

use admin_api::adjust::Scope;
use admin_api::{RecipientState, RecipientView, Time};
use bytes::Bytes;
use mail_core::{BodyType, DsnOptions, Mailbox, Recipient, ReversePath, Timestamp};
use queue::store::MemoryStore;
use queue::{Accepted, Again, End, Fate, Hop, NewMessage, NewUnit, Origin, RouteGroup, Settle, StillOpen};

use super::*;
use crate::delivery::exchange;

pub(crate) const START: Timestamp = Timestamp(1_700_000_000_000);

/// Two recipients at each of the domains.
pub(crate) async fn accept(queue: &Queue, number: u8, domains: &[&str]) -> Accepted {
    let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
    accept_body(queue, MessageId::new(START, &[number; 10]), domains, body).await
}

/// The same where they are more than 256.
pub(crate) async fn accept_one(queue: &Queue, number: u64, domains: &[&str]) -> Accepted {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
    accept_body(queue, MessageId::new(START, &random), domains, body).await
}

/// The same to one domain by a way of its own.
pub(crate) async fn accept_routed(queue: &Queue, number: u8, group: RouteGroup, domain: &str) -> Accepted {
    let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
    let mut message = message(MessageId::new(START, &[number; 10]), &[domain], body);
    for unit in &mut message.units {
        unit.route_group = group;
    }
    queue.accept(Arc::new(message)).await.unwrap()
}

/// One that its client has held.
pub(crate) async fn accept_held(queue: &Queue, number: u8, domain: &str, until: Timestamp) -> Accepted {
    let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
    let mut message = message(MessageId::new(START, &[number; 10]), &[domain], body);
    message.expires_at = until + Duration::from_secs(3_600);
    message.units[0].due = until;
    queue.accept(Arc::new(message)).await.unwrap()
}

/// One that lasts.
pub(crate) async fn accept_until(
    queue: &Queue,
    number: u64,
    domain: &str,
    expires_at: Timestamp,
) -> Accepted {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let body = Bytes::from_static(b"Subject: x\r\n\r\nx\r\n");
    let mut message = message(MessageId::new(START, &random), &[domain], body);
    message.expires_at = expires_at;
    queue.accept(Arc::new(message)).await.unwrap()
}

async fn accept_body(queue: &Queue, id: MessageId, domains: &[&str], body: Bytes) -> Accepted {
    queue.accept(Arc::new(message(id, domains, body))).await.unwrap()
}

pub(crate) fn message(id: MessageId, domains: &[&str], body: Bytes) -> NewMessage {
    NewMessage {
        id,
        received_at: START,
        expires_at: START + Duration::from_secs(3_600),
        tenant: "acme".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Mailbox("from@acme.test".parse().unwrap()),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        transfer: Default::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::new(),
        body,
        rest: None,
        origin: Origin::default(),
        cause: None,
        units: domains
            .iter()
            .map(|domain| NewUnit {
                route_group: RouteGroup(0),
                domain: domain.parse().unwrap(),
                due: START,
                recipients: ["one", "two"]
                    .map(|local| Recipient::new(format!("{local}@{domain}").parse().unwrap()))
                    .into(),
            })
            .collect(),
    }
}

/// Ours stands at 2023, and whoever asks has another one.
#[tokio::test]
async fn what_an_operator_sets_for_a_while_ends_by_the_relays_own_clock() {
    let (_, control) = control();
    let suspend = |until, for_seconds| Suspend {
        selector: Selector {
            all: true,
            ..Selector::default()
        },
        until,
        for_seconds,
        reason: "a test".into(),
    };
    let adjust = |until, for_seconds| SetAdjustment {
        scope: Scope {
            site: Some("mx.a.test".into()),
            ..Scope::default()
        },
        suspend: true,
        until,
        for_seconds,
        reason: "a test".into(),
        ..SetAdjustment::default()
    };
    let by = || Caller("uid 7".into());
    let two_hours = Duration::from_secs(7_200);
    let moment = Some(Time(START + two_hours));
    for (until, for_seconds) in [(None, Some(7_200)), (moment, None), (None, None)] {
        let set = control.suspend(suspend(until, for_seconds), by()).await.unwrap();
        let adjusted = control.adjust(adjust(until, for_seconds), by()).await.unwrap();
        for (since, end) in [(set.since, set.until), (adjusted.since, adjusted.until)] {
            let expected = for_seconds.map(|_| Time(since.0 + two_hours)).or(until);
            assert_eq!(end, expected);
            assert!((START..START + two_hours).contains(&since.0), "{since}");
        }
    }
    for (until, for_seconds, part) in [
        (moment, Some(7_200), "not both"),
        (None, Some(0), "for_seconds is 1 to 315360000"),
        (None, Some(315_360_001), "for_seconds is 1 to 315360000"),
        (None, Some(u64::MAX), "for_seconds is 1 to 315360000"),
        (Some(Time(START)), None, "past"),
    ] {
        let set = control
            .suspend(suspend(until, for_seconds), by())
            .await
            .map(|_| ());
        let adjusted = control.adjust(adjust(until, for_seconds), by()).await.map(|_| ());
        for done in [set, adjusted] {
            let Err(ControlError::Wrong(text)) = done else {
                panic!("{until:?}, {for_seconds:?}: {done:?}");
            };
            assert!(text.contains(part), "{text}");
        }
    }
}

/// RFC 4865: until when is told, as long as it is.
#[tokio::test]
async fn a_message_tells_until_when_it_is_held() {
    let (queue, control) = control();
    let until = START + Duration::from_secs(4 * 86_400);
    let held = accept_held(&queue, 1, "held.test", until).await;
    let view = control.message(held.id).await.unwrap().unwrap();
    assert_eq!(view.held_until, Some(Time(until)));
    assert_eq!(view.recipients[0].next_due, Some(Time(until)));
    queue.retry(held.units[0], START, "uid 0").await.unwrap();
    let view = control.message(held.id).await.unwrap().unwrap();
    assert_eq!(
        (view.held_until, view.recipients[0].next_due),
        (None, Some(Time(START)))
    );
    let plain = accept(&queue, 2, &["a.test"]).await;
    let view = control.message(plain.id).await.unwrap().unwrap();
    assert_eq!(view.held_until, None);
}

pub(crate) fn control() -> (Queue, QueueControl) {
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let (doors, _) = exchange::open(1);
    let clock = Clock::anchored(START);
    (queue.clone(), QueueControl::new(queue, doors, clock))
}

#[tokio::test]
async fn a_message_is_read_part_by_part() {
    let (queue, control) = control();
    let octets: Vec<u8> = (0..1_500_000_u32).map(|at| (at % 251) as u8).collect();
    let large = accept_body(
        &queue,
        MessageId::new(START, &[1; 10]),
        &["a.test"],
        octets.clone().into(),
    )
    .await;
    let me = || Caller("uid 7".into());
    let mut raw = control.raw(large.id, me()).await.unwrap().unwrap();
    assert_eq!(raw.bytes, 1_500_000);
    let mut read = Vec::new();
    while let Some(part) = raw.parts.recv().await {
        let part = part.unwrap();
        assert!(part.len() < 1_100_000, "{}", part.len());
        read.extend_from_slice(&part);
    }
    assert!(read == octets);
    let absent = control.raw(MessageId::new(START, &[2; 10]), me()).await.unwrap();
    assert!(absent.is_none());
}

/// A message may have 100,000 recipients.
#[tokio::test]
async fn a_page_of_messages_ends_where_it_names_many_recipients() {
    let (queue, control) = control();
    for number in 0..10 {
        accept(&queue, number, &["a.test", "b.test"]).await;
    }
    let mut query = MessagesQuery::default();
    let mut seen = Vec::new();
    loop {
        let page = control.messages(query.clone()).await.unwrap();
        let named: usize = page.messages.iter().map(|message| message.recipients.len()).sum();
        assert!(named <= 6, "two of each: {named}");
        seen.extend(
            page.messages
                .into_iter()
                .map(|message| (message.id, message.domain)),
        );
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 20, "each once");
}

#[tokio::test]
async fn a_message_is_shown_from_its_first_moment_past_its_end() {
    let (queue, control) = control();
    let accepted = accept(&queue, 1, &["a.test"]).await;
    let id = accepted.id;
    let states = |view: &MessageView| {
        let of_one = |view: &RecipientView| (view.state, view.attempts, view.last_reply.clone());
        view.recipients.iter().map(of_one).collect::<Vec<_>>()
    };
    let view = control.message(id).await.unwrap().unwrap();
    assert!(view.queued && view.sender.as_deref() == Some("from@acme.test"));
    assert_eq!(states(&view), vec![(RecipientState::Queued, 0, None); 2]);
    assert_eq!(view.recipients[0].next_due, Some(Time(START)));

    // One is delivered, the other put off, then bounced.
    let who = |local: &str| format!("{local}@a.test").parse::<Mailbox>().unwrap();
    let end = |local, fate, reply: &str| End {
        mailbox: who(local),
        fate,
        reply: reply.into(),
    };
    let due = START + Duration::from_secs(300);
    let hop = Hop {
        host: "mx.a.test".into(),
        address: "192.0.2.1:25".into(),
        source: "out1".into(),
        ..Hop::default()
    };
    let settle = Settle {
        unit: accepted.units[0],
        at: START + Duration::from_secs(1),
        attempt: 1,
        hop: Some(hop),
        ends: vec![end("one", Fate::Delivered, "250 2.0.0 ok")],
        again: Some(Again {
            due,
            attempts: 1,
            in_doubt: 0,
            doubtful: false,
            open: vec![StillOpen {
                recipient: 1,
                mailbox: who("two"),
                reply: "450 4.2.0 later".into(),
            }],
            others: Vec::new(),
            signature: None,
            delay_told: None,
        }),
        reports: Vec::new(),
    };
    let settled = queue.settle(settle.clone()).await.unwrap().await.unwrap();
    let view = control.message(id).await.unwrap().unwrap();
    assert_eq!(
        states(&view),
        [
            (RecipientState::Delivered, 1, Some("250 2.0.0 ok".into())),
            (RecipientState::Deferred, 1, Some("450 4.2.0 later".into()))
        ]
    );
    assert_eq!(
        view.recipients[0].host.as_deref(),
        Some("mx.a.test [192.0.2.1:25]")
    );
    let sources: Vec<_> = view.events.iter().map(|event| event.source.as_deref()).collect();
    assert_eq!(sources[0], None);
    assert!(
        sources[1..].iter().all(|source| *source == Some("out1")),
        "{sources:?}"
    );
    assert_eq!(
        (view.recipients[0].next_due, view.recipients[1].next_due),
        (None, Some(Time(due)))
    );

    let last = Settle {
        unit: settled.unit.unwrap(),
        attempt: 2,
        ends: vec![end("two", Fate::Bounced, "550 5.1.1 unknown")],
        again: None,
        ..settle
    };
    queue.settle(last).await.unwrap().await.unwrap();
    let view = control.message(id).await.unwrap().unwrap();
    assert!(!view.queued);
    assert_eq!(
        states(&view),
        [
            (RecipientState::Delivered, 1, Some("250 2.0.0 ok".into())),
            (RecipientState::Bounced, 2, Some("550 5.1.1 unknown".into()))
        ]
    );
    let kinds: Vec<_> = view.events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["accepted", "delivered", "deferred", "bounced"]);
    assert_eq!(view.tenant.as_deref(), Some("acme"));

    let nobody = MessageId::new(START, &[9; 10]);
    assert_eq!(control.message(nobody).await, Ok(None));
}
