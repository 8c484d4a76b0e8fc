use admin_api::operate::{Delete, Deletion, MessagesQuery, Resume, Suspend};
use admin_api::{Caller, Control as _};
use bytes::Bytes;
use mail_core::{MessageId, Recipient};
use proptest::prelude::*;
use queue::store::{Batch, Family, MemoryStore, Store as _};
use queue::{Accepted, Again, NewMessage, Settle, StillOpen};

use super::*;
use crate::control::tests::{START, message};
use crate::delivery::exchange;
use crate::world::Clock;

/// Half an hour after [`START`], when the messages came in.
const NOW: Timestamp = Timestamp(START.0 + 1_800_000);

fn world(store: MemoryStore) -> (Queue, QueueControl) {
    let queue = Queue::in_memory(store).unwrap();
    let (doors, _) = exchange::open(1);
    let control = QueueControl::new(queue.clone(), doors, Clock::anchored(NOW));
    (queue, control)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(future)
}

fn id(number: u64, created: Timestamp) -> MessageId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    MessageId::new(created, &random)
}

/// One that came in so many seconds after [`START`], for these of a domain.
fn mail(number: u64, came: u64, sender: &str, domain: &str, locals: &[&str]) -> NewMessage {
    let created = START + Duration::from_secs(came);
    let mut one = message(id(number, created), &[domain], Bytes::from_static(b"x\r\n"));
    one.reverse_path = match sender {
        "" => ReversePath::Null,
        sender => ReversePath::Mailbox(sender.parse().unwrap()),
    };
    let recipient = |local: &&str| Recipient::new(format!("{local}@{domain}").parse().unwrap());
    one.units[0].recipients = locals.iter().map(recipient).collect();
    one
}

async fn accept(queue: &Queue, one: NewMessage) -> Accepted {
    queue.accept(Arc::new(one)).await.unwrap()
}

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

fn query(selector: &Selector) -> MessagesQuery {
    let selector = selector.clone();
    MessagesQuery {
        tenant: selector.tenant,
        stream: selector.stream,
        domain: selector.domain,
        queue: selector.queue,
        sender: selector.sender,
        recipient: selector.recipient,
        tag: selector.tag,
        older_than_seconds: selector.older_than_seconds,
        ..MessagesQuery::default()
    }
}

/// All that a list finds, in pages of these lengths, again and again.
async fn listed(control: &QueueControl, selector: &Selector, limits: &[usize]) -> Vec<String> {
    let (mut query, mut found) = (query(selector), Vec::new());
    for &limit in limits.iter().cycle() {
        query.limit = Some(limit);
        let page = control.messages(query).await.unwrap();
        assert!(page.messages.len() <= limit);
        assert!(page.looked < 2 * PER_ANSWER as u64, "{}", page.looked);
        found.extend(page.messages.into_iter().map(|message| message.id));
        if page.next.is_none() {
            break;
        }
        query = MessagesQuery {
            after: page.next,
            ..self::query(selector)
        };
    }
    found
}

/// All pages of a preview added up, and how many there were.
async fn previewed(control: &QueueControl, selector: &Selector) -> (Preview, usize) {
    let (mut all, mut pages, mut after) = (Preview::default(), 0, None);
    loop {
        let page = preview_after(control, selector, after).await;
        assert_eq!(page.token.is_some(), page.next.is_none(), "with the last alone");
        pages += 1;
        all.queues += page.queues;
        all.messages += page.messages;
        all.bytes += page.bytes;
        all.shared += page.shared;
        all.looked += page.looked;
        all.token = page.token;
        after = page.next;
        if after.is_none() {
            return (all, pages);
        }
    }
}

async fn preview_after(control: &QueueControl, selector: &Selector, after: Option<String>) -> Preview {
    let delete = Delete {
        selector: selector.clone(),
        tell: None,
        token: None,
        after,
    };
    match control.delete(delete, Caller("uid 7".into())).await.unwrap() {
        Deletion::Preview(preview) => preview,
        Deletion::Progress(_) => panic!("deleted without a token"),
    }
}

/// A message of the model: when it came in, its sender, domain, recipients, tag, and after how long it is due.
type Made = (u64, usize, usize, usize, bool, u64);

const SENDERS: [&str; 4] = ["", "news@shop.test", "bills@shop.test", "news@other.test"];
const LOCALS: [&[&str]; 3] = [&["a"], &["b"], &["a", "b"]];

fn selectors() -> impl Strategy<Value = Selector> {
    let sender = prop::option::of(prop::sample::select(vec![
        "<>",
        "news@shop.test",
        "@shop.test",
        "<news@other.test>",
    ]));
    let recipient = prop::option::of((prop::bool::ANY, 0..6_usize));
    let (tag, age) = (prop::bool::weighted(0.2), prop::option::of(1..1_900_u64));
    (sender, recipient, tag, age).prop_filter_map("something", |(sender, recipient, tag, age)| {
        let selector = Selector {
            sender: sender.map(str::to_owned),
            recipient: recipient.map(|(a, domain)| format!("{}@D{domain}.test", if a { "a" } else { "b" })),
            tag: tag.then(|| "june".to_owned()),
            older_than_seconds: age,
            ..Selector::default()
        };
        (selector != Selector::default()).then_some(selector)
    })
}

fn is_meant(selector: &Selector, &(came, sender, domain, locals, tag, _): &Made) -> bool {
    let sender_is = |meant: &String| match meant.as_str() {
        "<>" => sender == 0,
        "@shop.test" => sender == 1 || sender == 2,
        meant => meant.trim_matches(['<', '>']) == SENDERS[sender],
    };
    let is_recipient = |meant: &String| {
        LOCALS[locals]
            .iter()
            .any(|local| format!("{local}@D{domain}.test") == *meant)
    };
    let is_old = |age: u64| (START + Duration::from_secs(came)).0 + age * 1_000 <= NOW.0;
    selector.sender.as_ref().is_none_or(sender_is)
        && selector.recipient.as_ref().is_none_or(is_recipient)
        && (selector.tag.is_none() || tag)
        && selector.older_than_seconds.is_none_or(is_old)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a model: each once, in order of queue and due time, whatever the pages are.
    #[test]
    fn a_scan_finds_just_what_is_meant_and_goes_on_exactly(
        made in prop::collection::vec((0..1_800_u64, 0..4_usize, 0..6_usize, 0..3_usize, any::<bool>(), 0..50_u64), 0..250),
        selector in selectors(),
        limits in prop::collection::vec(1..40_usize, 1..5),
    ) {
        block_on(async {
            let (queue, control) = world(MemoryStore::new());
            let mut units = Vec::new();
            for (number, one) in (0..).zip(&made) {
                let &(came, sender, domain, locals, tag, due) = one;
                let mut mail = mail(number, came, SENDERS[sender], &format!("d{domain}.test"), LOCALS[locals]);
                mail.tag = tag.then(|| "june".into());
                mail.units[0].due = START + Duration::from_secs(due);
                units.push((accept(&queue, mail).await.units[0], *one));
            }
            units.sort_by_key(|(unit, _)| (unit.queue, unit.due, unit.id));
            units.retain(|(_, one)| is_meant(&selector, one));
            let expected: Vec<_> = units.iter().map(|(unit, _)| unit.id.to_string()).collect();
            assert_eq!(listed(&control, &selector, &limits).await, expected);
            // What is counted is what would be deleted: nothing in which others wait too.
            let is_shared = |one: &Made| selector.recipient.is_some() && one.3 == 2;
            let shared = units.iter().filter(|(_, one)| is_shared(one)).count();
            units.retain(|(_, one)| !is_shared(one));
            let (preview, _) = previewed(&control, &selector).await;
            let messages = units.len();
            units.dedup_by_key(|(unit, _)| unit.queue);
            let expected = (units.len() as u64, messages as u64, 3 * messages as u64, shared as u64);
            assert_eq!((preview.queues, preview.messages, preview.bytes, preview.shared), expected);
        });
    }
}

/// 20 messages in each of 40 queues: none, or the last one, of this sender.
async fn many(queue: &Queue, last: &str) {
    for number in 0..800 {
        let sender = if number == 799 { last } else { "news@shop.test" };
        let domain = format!("d{}.test", number % 40);
        accept(queue, mail(number, 0, sender, &domain, &["a"])).await;
    }
}

#[test]
fn an_answer_reads_so_much_and_no_more_and_says_where_to_go_on() {
    block_on(async {
        let store = MemoryStore::counting();
        let (queue, control) = world(store.clone());
        many(&queue, "one@shop.test").await;
        let (mut query, mut found, mut answers) = (query(&of_sender("one@shop.test")), 0, 0);
        store.reads();
        loop {
            let page = control.messages(query.clone()).await.unwrap();
            let reads = store.reads();
            // Of each unit its key and its envelope; of each page, its queues.
            assert!(reads <= 4 * 2 * PER_ANSWER as u64, "{reads}");
            (found, answers) = (found + page.messages.len(), answers + 1);
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        assert_eq!(found, 1);
        assert!((5..=9).contains(&answers), "{answers}");
        let (preview, pages) = previewed(&control, &of_sender("one@shop.test")).await;
        assert_eq!((preview.messages, preview.looked), (1, 800));
        assert!((5..=9).contains(&pages), "{pages}");
    });
}

#[test]
fn a_recipients_domain_narrows_a_scan_to_its_queues() {
    block_on(async {
        let store = MemoryStore::counting();
        let (queue, control) = world(store.clone());
        many(&queue, "").await;
        for selector in [of_recipient("a@D7.test"), of_recipient("@d7.TEST")] {
            store.reads();
            assert_eq!(listed(&control, &selector, &[20]).await.len(), 20, "{selector:?}");
            let reads = store.reads();
            assert!(reads < 600, "{reads}");
        }
        let (preview, pages) = previewed(&control, &of_recipient("a@d7.test")).await;
        assert_eq!((preview.messages, preview.looked, pages), (20, 20, 1));
        let (preview, pages) = previewed(&control, &of_recipient("@d7.test")).await;
        assert_eq!(
            (preview.messages, preview.looked, pages),
            (20, 0, 1),
            "by the index"
        );
    });
}

/// By its age alone.
#[test]
fn an_age_is_told_by_the_id() {
    block_on(async {
        let store = MemoryStore::counting();
        let (queue, control) = world(store.clone());
        many(&queue, "").await;
        let selector = Selector {
            older_than_seconds: Some(1_801),
            ..Selector::default()
        };
        store.reads();
        let page = control.messages(query(&selector)).await.unwrap();
        assert_eq!(page.messages, []);
        let reads = store.reads();
        assert!(reads <= 3 * page.looked, "{reads} for {}", page.looked);
    });
}

#[test]
fn a_preview_is_of_the_moment_of_its_first_page() {
    block_on(async {
        let (queue, control) = world(MemoryStore::new());
        many(&queue, "").await;
        let selector = of_sender("@shop.test");
        let first = preview_after(&control, &selector, None).await;
        assert!(first.next.is_some() && first.token.is_none(), "{first:?}");
        tokio::time::sleep(Duration::from_secs(10)).await;
        for number in 0..40 {
            let domain = format!("d{number}.test");
            let came = 1_805;
            accept(
                &queue,
                mail(1_000 + number, came, "news@shop.test", &domain, &["a"]),
            )
            .await;
        }
        let (mut messages, mut queues, mut next) = (first.messages, first.queues, first.next);
        let mut token = None;
        while next.is_some() {
            let page = preview_after(&control, &selector, next).await;
            (messages, queues) = (messages + page.messages, queues + page.queues);
            (next, token) = (page.next, page.token);
        }
        assert_eq!((messages, queues), (799, 40));
        let begun = u64::from_str_radix(token.unwrap().split('-').next().unwrap(), 16);
        assert_eq!(begun, Ok(NOW.0));
        // One of a moment to come is nobody's.
        let delete = Delete {
            selector,
            tell: None,
            token: None,
            after: Some(format!("{}:1.0.{}.0", u64::MAX, id(0, START))),
        };
        let refused = control.delete(delete, Caller("uid 7".into())).await;
        assert!(matches!(refused, Err(ControlError::Wrong(_))), "{refused:?}");
    });
}

/// Only who still waits is a recipient.
#[test]
fn a_recipient_that_has_ended_is_none() {
    block_on(async {
        let (queue, control) = world(MemoryStore::new());
        let accepted = accept(&queue, mail(1, 0, "news@shop.test", "d.test", &["a", "b"])).await;
        let shared = async |name: &str| {
            let found = listed(&control, &of_recipient(name), &[9]).await.len();
            let (preview, _) = previewed(&control, &of_recipient(name)).await;
            (found, preview.messages, preview.shared)
        };
        assert_eq!(shared("a@d.test").await, (1, 0, 1));
        assert_eq!(
            shared("A@d.test").await,
            (0, 0, 0),
            "a local part is as it was written"
        );
        let end = |local: &str| queue::End {
            mailbox: format!("{local}@d.test").parse().unwrap(),
            fate: queue::Fate::Delivered,
            reply: "250 ok".into(),
        };
        let settle = Settle {
            unit: accepted.units[0],
            at: NOW,
            attempt: 1,
            hop: None,
            ends: vec![end("a")],
            again: Some(Again {
                due: NOW,
                attempts: 1,
                in_doubt: 0,
                doubtful: false,
                others: Vec::new(),
                open: vec![StillOpen {
                    recipient: 1,
                    mailbox: "b@d.test".parse().unwrap(),
                    reply: "450 later".into(),
                }],
                signature: None,
                delay_told: None,
            }),
            reports: Vec::new(),
        };
        queue.settle(settle).await.unwrap().await.unwrap();
        assert_eq!(shared("a@d.test").await, (0, 0, 0));
        assert_eq!(shared("b@d.test").await, (1, 1, 0));
    });
}

#[test]
fn what_is_damaged_is_passed_by() {
    block_on(async {
        let store = MemoryStore::new();
        let (queue, control) = world(store.clone());
        let mut ids = Vec::new();
        for number in 0..3 {
            ids.push(
                accept(&queue, mail(number, number, "news@shop.test", "d.test", &["a"]))
                    .await
                    .id,
            );
        }
        let key = ids[1].as_bytes();
        let mut record = store.get(Family::Envelope, key).unwrap().unwrap().to_vec();
        *record.last_mut().unwrap() ^= 4;
        let mut batch = Batch::default();
        batch.put(Family::Envelope, key, record);
        store.write(&batch, true).unwrap();
        let sound = [ids[0].to_string(), ids[2].to_string()];
        for selector in [of_sender("@shop.test"), of_recipient("a@d.test")] {
            assert_eq!(listed(&control, &selector, &[9]).await, sound);
            assert_eq!(previewed(&control, &selector).await.0.messages, 2);
        }
    });
}

#[test]
fn what_makes_no_sense_is_told() {
    block_on(async {
        let (_, control) = world(MemoryStore::new());
        let wrong = |selector: Selector| Target::new(&selector).err().map(|error| error.to_string());
        for text in [
            "",
            "a",
            "@",
            "a@",
            "a b@c.test",
            "a@b@c.test",
            "a\0@c.test",
            "<a@c.test",
            "@c.test>",
        ] {
            for selector in [of_sender(text), of_recipient(text)] {
                let told = wrong(selector).unwrap();
                assert!(
                    told.contains("is neither an address nor @ and a domain"),
                    "{told}"
                );
            }
        }
        let told = wrong(of_recipient("<>")).unwrap();
        assert!(told.contains("never the null path"), "{told}");
        let elsewhere = Selector {
            domain: Some("b.test".into()),
            ..of_recipient("a@c.test")
        };
        assert!(wrong(elsewhere).unwrap().contains("another domain"));
        for tag in ["", "a\0b"] {
            let selector = Selector {
                tag: Some(tag.into()),
                ..Selector::default()
            };
            assert!(wrong(selector).unwrap().contains("empty, or holds NUL"));
        }
        for seconds in [0, MAX_SECONDS + 1, u64::MAX] {
            let selector = Selector {
                older_than_seconds: Some(seconds),
                ..Selector::default()
            };
            assert!(wrong(selector).unwrap().contains("older_than_seconds is 1 to"));
        }
        let all = Selector {
            all: true,
            ..of_sender("<>")
        };
        assert!(wrong(all).is_some());
        let of_message = Selector {
            message: Some(id(1, START).to_string()),
            ..of_sender("<>")
        };
        assert!(wrong(of_message).unwrap().contains("a message is named alone"));
        // Queues are set to wait.
        for selector in [of_sender("<>"), of_recipient("a@c.test"), of_recipient("@c.test")] {
            let suspend = Suspend {
                selector: selector.clone(),
                until: None,
                for_seconds: None,
                reason: "a test".into(),
            };
            let by = || Caller("uid 7".into());
            let suspended = control.suspend(suspend, by()).await.unwrap_err().to_string();
            assert_eq!(suspended, "queues are suspended, not messages");
            let resumed = control
                .resume(Resume { selector }, by())
                .await
                .unwrap_err()
                .to_string();
            assert_eq!(resumed, "queues are resumed, not messages");
        }
    });
}

#[test]
fn a_target_says_what_it_is() {
    let selector = Selector {
        tenant: Some("shop".into()),
        sender: Some("<>".into()),
        recipient: Some("a@C.test".into()),
        tag: Some("june".into()),
        older_than_seconds: Some(60),
        ..Selector::default()
    };
    let said = |selector: &Selector| Target::new(selector).unwrap().to_string();
    assert_eq!(
        said(&selector),
        "tenant shop, domain c.test, sender <>, recipient a@c.test, tag june, older than 60 s"
    );
    assert_eq!(said(&of_sender("@A.test")), "sender @a.test");
}
