//! The intake by itself, with the model behind.

use std::sync::mpsc as gate;

use mail_core::{BodyType, DsnOptions, MessageId, ReversePath, Timestamp};

use super::*;
use crate::store::{Batch, Family, KeyValue, MemoryStore, StoreError};
use crate::{NewUnit, Origin, Queue, RouteGroup};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

type OnWrite = dyn Fn(&MemoryStore, &Batch, bool) -> Result<(), StoreError> + Send + Sync;
type OnSync = dyn Fn(&MemoryStore) -> Result<(), StoreError> + Send + Sync;
type OnGet = dyn Fn(Family) -> Result<(), StoreError> + Send + Sync;

/// The model, with a test's own way of writing and syncing.
pub(super) struct Hooked {
    pub(super) store: MemoryStore,
    pub(super) write: Box<OnWrite>,
    pub(super) sync: Box<OnSync>,
    /// Before a value is read.
    pub(super) get: Box<OnGet>,
}

impl Store for Hooked {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        (self.write)(&self.store, batch, sync)
    }

    fn sync(&self) -> Result<(), StoreError> {
        (self.sync)(&self.store)
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        (self.get)(family)?;
        self.store.get(family, key)
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.store.scan(family, from, to, each)
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        self.store.last(family, from, to)
    }
}

/// A queue whose committer is a thread. Its mark is in the folder.
pub(super) fn threaded(store: Hooked, heal: impl Heal + 'static) -> (Queue, tempfile::TempDir) {
    threaded_in(store, heal, Space::new(Box::new(|| u64::MAX), 0, None))
}

fn threaded_in(store: Hooked, heal: impl Heal + 'static, space: Space) -> (Queue, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mark = Mark::open(&folder.path().join("mark"), [7; 16]).unwrap();
    let options = Options {
        min_free_bytes: 0,
        commit_patience: PATIENCE,
        limits: crate::Limits::NONE,
    };
    let store: Arc<dyn Store> = Arc::new(store);
    let intake = Intake::threaded(
        store.clone(),
        Arc::default(),
        mark,
        space,
        Box::new(heal),
        Arc::default(),
        &options,
    )
    .unwrap();
    let queue = Queue {
        store,
        intake: Arc::new(intake),
        groups: Arc::default(),
        damage: Arc::default(),
    };
    (queue, folder)
}

/// A queue, its model, where it tells of a write, and what lets the write happen; a write panics when there is no one to
/// tell it.
fn gated() -> (Queue, MemoryStore, gate::Receiver<()>, gate::SyncSender<()>) {
    let (tell, entered) = gate::sync_channel(9);
    let (let_go, go) = gate::sync_channel(9);
    let go = Mutex::new(go);
    let store = MemoryStore::new();
    let behind = Hooked {
        store: store.clone(),
        write: Box::new(move |store, batch, sync| {
            tell.send(()).unwrap();
            go.lock().recv().unwrap();
            store.write(batch, sync)
        }),
        sync: Box::new(MemoryStore::sync),
        get: Box::new(|_| Ok(())),
    };
    let (queue, _) = threaded(behind, mend::tests::NoHealing);
    (queue, store, entered, let_go)
}

pub(crate) fn message(number: u8) -> Arc<NewMessage> {
    Arc::new(NewMessage {
        id: MessageId::from_bytes([number; 16]),
        received_at: Timestamp(1),
        expires_at: Timestamp(2),
        tenant: "acme".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Null,
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        transfer: Default::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::new(),
        body: Bytes::from_static(b"hello"),
        rest: None,
        origin: Origin::default(),
        cause: None,
        units: vec![NewUnit {
            route_group: RouteGroup(0),
            domain: "ok.test".parse().unwrap(),
            due: Timestamp(1),
            recipients: Vec::new(),
        }],
    })
}

fn is_kept(store: &MemoryStore, number: u8) -> bool {
    store.get(Family::Envelope, &[number; 16]).unwrap().is_some()
}

async fn poll_once<T>(future: &mut Pin<Box<impl Future<Output = T>>>) -> Option<T> {
    std::future::poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_gets_it_back_unless_it_is_in_a_group() {
    let (queue, store, entered, let_go) = gated();
    let mut first = Box::pin(queue.accept(message(1)));
    assert!(poll_once(&mut first).await.is_none());
    entered.recv().unwrap();
    // The first is in a group, the second waits behind it. Both run out of patience.
    assert_eq!(queue.accept(message(2)).await, Err(CommitError::Withdrawn));
    assert!(poll_once(&mut first).await.is_none(), "only the disk can tell");
    let_go.send(()).unwrap();
    assert!(first.await.is_ok());
    // The third's group finds the second withdrawn.
    let mut third = Box::pin(queue.accept(message(3)));
    assert!(poll_once(&mut third).await.is_none());
    entered.recv().unwrap();
    let_go.send(()).unwrap();
    assert!(third.await.is_ok());
    assert_eq!(
        [1, 2, 3].map(|number| is_kept(&store, number)),
        [true, false, true]
    );
    queue.close();
}

/// With hardly a body, and so many octets of recipients.
pub(crate) fn message_to_many(number: u8, octets: usize) -> Arc<NewMessage> {
    let mut message = NewMessage::clone(&message(number));
    let mailbox: mail_core::Mailbox = format!("{}@ok.test", "x".repeat(56)).parse().unwrap();
    // In the envelope, and in the journal.
    message.units[0].recipients = vec![mail_core::Recipient::new(mailbox); octets / (2 * 64)];
    Arc::new(message)
}

/// A queue whose writes wait until they are let go, and the octets that each of them had.
fn held() -> (Queue, Arc<Mutex<Vec<usize>>>, gate::Sender<()>) {
    let (let_go, go) = gate::channel::<()>();
    let (go, sizes) = (Mutex::new(go), Arc::<Mutex<Vec<usize>>>::default());
    let seen = sizes.clone();
    let store = Hooked {
        store: MemoryStore::new(),
        write: Box::new(move |store, batch, sync| {
            seen.lock().push(batch.size());
            // None is held any more once nobody can let it go.
            let _ = go.lock().recv();
            store.write(batch, sync)
        }),
        sync: Box::new(MemoryStore::sync),
        get: Box::new(|_| Ok(())),
    };
    let (queue, _) = threaded(store, mend::tests::NoHealing);
    (queue, sizes, let_go)
}

#[tokio::test]
async fn a_group_is_bounded_in_all_its_octets() {
    let (queue, sizes, let_go) = held();
    let each = GROUP_BYTES / 4;
    let mut all: Vec<_> = (0..12)
        .map(|number| Box::pin(queue.accept(message_to_many(number, each))))
        .collect();
    for accepting in &mut all {
        assert!(poll_once(accepting).await.is_none());
    }
    drop(let_go);
    for accepting in all {
        accepting.await.unwrap();
    }
    queue.close();
    let sizes = sizes.lock();
    let largest = *sizes.iter().max().unwrap();
    assert!(largest < GROUP_BYTES + 2 * each, "{sizes:?}");
    assert!(
        largest > GROUP_BYTES / 2,
        "{sizes:?}: and no smaller than it may be"
    );
}

#[tokio::test]
async fn so_is_what_waits_and_ends_do_not_wait_for_mail() {
    let (queue, sizes, let_go) = held();
    let Way::Thread { requests, .. } = &queue.intake.way else {
        panic!("it is threaded");
    };
    let sender = requests.lock().clone().unwrap();
    let mut first = Box::pin(queue.accept(message(0)));
    assert!(poll_once(&mut first).await.is_none());
    while sizes.lock().is_empty() {
        // The committer is about to write it.
        std::thread::yield_now();
    }
    let mut others: Vec<_> = (1..9)
        .map(|number| Box::pin(queue.accept(message_to_many(number, WAITING_BYTES / 4))))
        .collect();
    for accepting in &mut others {
        assert!(poll_once(accepting).await.is_none());
    }
    assert_eq!(WAITING - sender.capacity(), 3, "there is no room for a fourth");
    let settle = |number| {
        let mut settle = mend::tests::delivered(crate::UnitKey {
            queue: crate::QueueId(1),
            due: Timestamp(1),
            id: MessageId::from_bytes([number; 16]),
            unit: 0,
        });
        settle.reports = vec![message_to_many(number + 100, WAITING_BYTES / 12)];
        settle
    };
    let mut ends: Vec<_> = (1..4)
        .map(|number| Box::pin(queue.settle(settle(number))))
        .collect();
    let mut recorded = Vec::new();
    for end in &mut ends {
        recorded.extend(poll_once(end).await);
    }
    assert_eq!(recorded.len(), 2, "of these a quarter as much may wait");
    assert_eq!(WAITING - sender.capacity(), 5);
    drop((sender, let_go));
    recorded.push(ends.remove(2).await);
    for end in recorded {
        end.unwrap().await.unwrap();
    }
    first.await.unwrap();
    for accepting in others {
        accepting.await.unwrap();
    }
    queue.close();
}

/// In a process of its own, since it ends that.
#[test]
fn a_thread_that_panics_ends_the_process() {
    if let Ok(thread) = std::env::var(PANICS) {
        return panics_in(&thread);
    }
    for thread in ["committer", "sync", "mark"] {
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "intake::tests::a_thread_that_panics_ends_the_process"])
            .env(PANICS, thread)
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        // SIGABRT.
        assert_eq!(signal, Some(6), "{thread}: {ended:?}");
    }
}

const PANICS: &str = "TEST_PANICS";

fn panics_in(thread: &str) {
    let mine = |which: &'static str| {
        let is_meant = thread == which;
        move || {
            let here = std::thread::current().name() == Some(which);
            assert!(!is_meant || !here, "a mistake, made for the test");
        }
    };
    let (in_write, in_sync, in_look) = (mine("committer"), mine("sync"), mine("mark"));
    let (let_go, go) = gate::channel::<()>();
    let (tell, entered) = gate::channel();
    let go = Mutex::new(go);
    let store = Hooked {
        store: MemoryStore::new(),
        write: Box::new(move |store, batch, sync| {
            let _ = tell.send(());
            // Once the second waits, which has this one's sync done by the other thread.
            let _ = go.lock().recv();
            in_write();
            store.write(batch, sync)
        }),
        sync: Box::new(move |store| {
            in_sync();
            store.sync()
        }),
        get: Box::new(|_| Ok(())),
    };
    let free = move || {
        in_look();
        u64::MAX
    };
    let space = Space::new(Box::new(free), 0, None);
    let (queue, _folder) = threaded_in(store, mend::tests::NoHealing, space);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut both = [1, 2].map(|number| Box::pin(queue.accept(message(number))));
        for (number, accepting) in both.iter_mut().enumerate() {
            assert!(poll_once(accepting).await.is_none());
            if number == 0 {
                entered.recv_timeout(PATIENCE).unwrap();
            }
        }
        drop(let_go);
        for accepting in both {
            let _ = accepting.await;
        }
    });
    // It may still be unwinding, or not have looked yet.
    for _ in 0..1_000 {
        queue.intake.shared.stopped.notify_all();
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
