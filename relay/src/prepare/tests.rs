use dkim_signer::key::generate;
use dkim_signer::sign::DomainKey;
use dkim_signer::{Algorithm, PrivateKey};
use mail_core::BodyType;
use queue::store::{Batch, Family, MemoryStore, Store};
use queue::{Again, End, NewUnit, Origin, RouteGroup, Settle, StillOpen};

use super::*;
use crate::config::settings::DkimKey;
use crate::metrics::Registry;

pub(crate) const NOW: Timestamp = Timestamp(1_700_000_000_000);

pub(crate) fn message(body: &str) -> Arc<NewMessage> {
    let unit = |domain: &str, names: &[&str]| NewUnit {
        route_group: RouteGroup(0),
        domain: domain.parse().unwrap(),
        due: NOW,
        recipients: names
            .iter()
            .map(|name| Recipient::new(format!("{name}@{domain}").parse().unwrap()))
            .collect(),
    };
    Arc::new(NewMessage {
        id: MessageId::new(NOW, &[7; 10]),
        received_at: NOW,
        expires_at: Timestamp(NOW.0 + 1_000_000),
        tenant: "acme".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Mailbox("app@example.com".parse().unwrap()),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        transfer: Default::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::from_static(b"Received: by relay.test\r\n"),
        body: Bytes::copy_from_slice(body.as_bytes()),
        rest: None,
        origin: Origin::default(),
        cause: None,
        units: vec![unit("ok.test", &["a"]), unit("second.test", &["b", "c"])],
    })
}

fn key(selector: &str, algorithm: Algorithm) -> DomainKey {
    DomainKey {
        domain: "example.com".parse().unwrap(),
        selector: selector.parse().unwrap(),
        key: Arc::new(PrivateKey::from_pem(generate(algorithm).unwrap().as_bytes()).unwrap()),
    }
}

pub(crate) struct World {
    pub(crate) store: MemoryStore,
    pub(crate) queue: Queue,
    pub(crate) metrics: Metrics,
    pub(crate) key: DomainKey,
}

impl World {
    pub(crate) fn new() -> Self {
        let store = MemoryStore::new();
        Self {
            queue: Queue::in_memory(store.clone()).unwrap(),
            store,
            metrics: Metrics::new(&Registry::new()).unwrap(),
            key: key("e1", Algorithm::Ed25519Sha256),
        }
    }

    pub(crate) fn preparer(&self, keys: &[&DomainKey]) -> Preparer {
        let signer = Signer::new(keys.iter().map(|&key| key.clone())).unwrap();
        Preparer::inline(self.queue.clone(), Arc::new(signer), self.metrics.clone())
    }

    fn count(&self, algorithm: &str, result: &str) -> u64 {
        self.metrics
            .signatures
            .with_label_values(&[algorithm, result])
            .get()
    }
}

pub(crate) const PLAIN: &str = "From: Shop <shop@mail.example.com>\r\nSubject: x\r\n\r\nhello\r\n";

#[tokio::test]
async fn from_memory_and_from_the_queue_it_is_the_same() {
    let world = World::new();
    let preparer = world.preparer(&[&world.key]);
    let message = message(PLAIN);
    let units = world.queue.accept(message.clone()).await.unwrap().units;
    let memory = preparer
        .prepare(units[0], Some(message.clone()), NOW)
        .await
        .unwrap();
    let record = preparer.prepare(units[1], None, NOW).await.unwrap();
    assert_eq!(memory.head, record.head);
    assert_eq!(memory.body, record.body);
    assert_eq!(record.body, message.body);
    assert!(
        memory
            .head
            .starts_with(b"DKIM-Signature: v=1; a=ed25519-sha256; ")
    );
    assert!(memory.head.ends_with(b"\r\nReceived: by relay.test\r\n"));
    assert_eq!(record.message.recipients(1), message.units[1].recipients);
    assert_eq!(record.message.recipients(9), []);
    assert_eq!(record.original().id, message.id);
    assert_eq!(record.original().body, &message.body[..]);
    assert!(!memory.eight_bit);
    assert_eq!(world.count("ed25519-sha256", "made"), 2);
}

#[tokio::test]
async fn a_kept_signature_is_used_until_a_key_changes() {
    let world = World::new();
    let message = message(PLAIN);
    let unit = world.queue.accept(message).await.unwrap().units[0];
    let first = world
        .preparer(&[&world.key])
        .prepare(unit, None, NOW)
        .await
        .unwrap();
    let settle = Settle {
        unit,
        at: NOW,
        attempt: 1,
        hop: None,
        ends: Vec::<End>::new(),
        again: Some(Again {
            due: Timestamp(NOW.0 + 60_000),
            attempts: 1,
            in_doubt: 0,
            doubtful: false,
            open: vec![StillOpen {
                recipient: 0,
                mailbox: "a@ok.test".parse().unwrap(),
                reply: "450 later".into(),
            }],
            others: Vec::new(),
            signature: first.signature.clone(),
            delay_told: None,
        }),
        reports: Vec::new(),
    };
    let settled = world.queue.settle(settle).await.unwrap().await.unwrap();
    let unit = settled.unit.unwrap();
    let later = Timestamp(NOW.0 + 60_000);
    let second = world
        .preparer(&[&world.key])
        .prepare(unit, None, later)
        .await
        .unwrap();
    assert_eq!(second.head, first.head);
    assert_eq!(second.state.unwrap().attempts, 1);
    assert_eq!(world.count("ed25519-sha256", "kept"), 1);

    let replaced = key("e1", Algorithm::Ed25519Sha256);
    let third = world
        .preparer(&[&replaced])
        .prepare(unit, None, later)
        .await
        .unwrap();
    assert_ne!(third.head, first.head);
}

#[tokio::test]
async fn what_no_key_signs_goes_as_it_is() {
    let world = World::new();
    let preparer = world.preparer(&[&world.key]);
    let two = "From: a@example.com\r\nFrom: b@example.com\r\n\r\n";
    for body in [
        "From: a@other.test\r\n\r\n",
        "From: broken\r\n\r\n",
        "Subject: x\r\n\r\n",
        two,
        "",
    ] {
        let message = message(body);
        let unit = UnitKey {
            queue: queue::QueueId(1),
            due: NOW,
            id: message.id,
            unit: 0,
        };
        let prepared = preparer.prepare(unit, Some(message.clone()), NOW).await.unwrap();
        assert_eq!(prepared.head, message.prefix, "{body:?}");
        assert!(prepared.signature.is_none());
    }
    assert_eq!(world.count("none", "unsigned"), 5);
}

/// CASES rows 29, 48: signed after it was converted.
#[tokio::test]
async fn what_is_converted_is_signed_anew() {
    let world = World::new();
    let preparer = world.preparer(&[&key("one", Algorithm::Ed25519Sha256)]);
    let message = message("From: app@example.com\r\n\r\nA text with one \u{fc} in it\r\n");
    let unit = world.queue.accept(message.clone()).await.unwrap().units[0];
    let sent = preparer.prepare(unit, None, NOW).await.unwrap();
    assert!(sent.eight_bit);
    let converted = preparer.seven_bit(unit.id, sent.clone(), NOW).await.unwrap();
    assert!(!converted.eight_bit && converted.body.is_ascii() && converted.head.is_ascii());
    let (first, second) = (sent.signature.unwrap(), converted.signature.unwrap());
    assert_ne!(first.fields, second.fields);
    assert!(first.made_with.starts_with("as sent ") && second.made_with.starts_with("7-bit "));
    // What can't be converted stays as it was.
    let message = self::message("From: app@example.com\r\nSubject: \u{fc}\r\n\r\n");
    let sent = preparer.prepare(unit, Some(message), NOW).await.unwrap();
    let same = preparer.seven_bit(unit.id, sent.clone(), NOW).await.unwrap();
    assert!(same.eight_bit && same.body == sent.body);
}

#[tokio::test]
async fn octets_decide_what_is_eight_bit() {
    let world = World::new();
    let preparer = world.preparer(&[]);
    let message = message("Subject: x\r\n\r\ngr\u{fc}n\r\n");
    let unit = world.queue.accept(message.clone()).await.unwrap().units[0];
    assert!(preparer.prepare(unit, None, NOW).await.unwrap().eight_bit);
}

#[tokio::test]
async fn damage_and_absence_are_told_apart() {
    let world = World::new();
    let preparer = world.preparer(&[&world.key]);
    let message = message(PLAIN);
    let unit = world.queue.accept(message.clone()).await.unwrap().units[0];
    let mut batch = Batch::default();
    batch.put(
        Family::Body,
        &queue::keys::body(message.id, 0),
        Bytes::from_static(b"other"),
    );
    world.store.write(&batch, true).unwrap();
    assert!(matches!(
        preparer.prepare(unit, None, NOW).await,
        Err(PrepareError::Read(ReadError::Damaged { .. }))
    ));
    let gone = UnitKey {
        id: MessageId::from_bytes([9; 16]),
        ..unit
    };
    assert!(matches!(
        preparer.prepare(gone, None, NOW).await,
        Err(PrepareError::Gone)
    ));
}

#[tokio::test]
async fn threads_answer_all_and_end_with_their_handle() {
    let world = World::new();
    let message = message(PLAIN);
    let unit = world.queue.accept(message.clone()).await.unwrap().units[0];
    let signer = Arc::new(Signer::new([world.key.clone()]).unwrap());
    let preparer = Preparer::threaded(world.queue.clone(), signer.clone(), world.metrics.clone(), 2).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 * WAITING_JOBS {
        let preparer = preparer.clone();
        tasks.spawn(async move { preparer.prepare(unit, None, NOW).await.is_ok() });
    }
    assert!(tasks.join_all().await.into_iter().all(|good| good));
    drop(preparer);
    while Arc::strong_count(&signer) > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn all_mistakes_in_keys_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.pem");
    dkim_signer::key::generate_file(Algorithm::Ed25519Sha256, &file).unwrap();
    let configured = |selector: &str, file: &std::path::Path| DkimKey {
        domain: "example.com".parse().unwrap(),
        selector: selector.into(),
        file: file.to_owned(),
    };
    assert_eq!(load_keys(&[configured("s1", &file)]).unwrap().keys().count(), 1);
    let wrong = load_keys(&[
        configured("s 1", &file),
        configured("s2", &folder.path().join("none")),
        configured("s3", &file),
        configured("s4", &file),
    ])
    .unwrap_err();
    let told: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3);
    assert!(told[0].starts_with("dkim: example.com: \"s 1\": a selector is"));
    assert!(told[1].contains("No such file"));
    assert_eq!(
        told[2],
        "dkim: example.com has two ed25519-sha256 keys, s3 and s4"
    );
}
