//! Groups that wait for their sync, with the model behind.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc as gate;
use std::task::Poll;

use mail_core::{MessageId, Timestamp};
use parking_lot::Mutex;

use super::super::mend::Heal;
use super::super::tests::{PATIENCE, message};
use super::super::{Intake, Space, Status};
use super::*;
use crate::mark::Mark;
use crate::store::{Batch, Family, KeyValue, MemoryStore, StoreError};
use crate::{Accepted, End, EventKind, Fate, OpenError, Options, Queue, QueueId, Settle, UnitKey};

/// Before all of a queue's units.
const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::from_bytes([0; 16]), 0);

/// Says when a write or a sync begins, and goes on, or fails to sync, when told to.
struct Gated {
    store: MemoryStore,
    writes: gate::Sender<()>,
    go_on: Mutex<gate::Receiver<()>>,
    syncs: gate::Sender<()>,
    go: Mutex<gate::Receiver<bool>>,
}

impl Store for Gated {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        self.writes.send(()).unwrap();
        self.go_on.lock().recv().unwrap();
        self.store.write(batch, sync)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.syncs.send(()).unwrap();
        match self.go.lock().recv().unwrap() {
            true => self.store.sync(),
            false => Err(StoreError("Input/output error".into())),
        }
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
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

/// Takes out what nobody was told of, once it is let.
struct Healing {
    store: MemoryStore,
    may: Arc<AtomicBool>,
}

impl Heal for Healing {
    fn heal(&mut self, _: u64, unanswered: &[MessageId]) -> Result<usize, OpenError> {
        if !self.may.load(Ordering::SeqCst) {
            return Err(StoreError("not yet".into()).into());
        }
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        Ok(Committer::new(store, Arc::default(), Arc::default())?.take_out(unanswered)?)
    }

    fn first_wait(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

struct World {
    queue: Queue,
    store: MemoryStore,
    writes: gate::Receiver<()>,
    go_on: gate::Sender<()>,
    syncs: gate::Receiver<()>,
    go: gate::Sender<bool>,
    may: Arc<AtomicBool>,
    _folder: tempfile::TempDir,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    let (tell_writes, writes) = gate::channel();
    let (tell_syncs, syncs) = gate::channel();
    let (go_on, may_go_on) = gate::channel();
    let (go, told) = gate::channel();
    let gated: Arc<dyn Store> = Arc::new(Gated {
        store: store.clone(),
        writes: tell_writes,
        go_on: Mutex::new(may_go_on),
        syncs: tell_syncs,
        go: Mutex::new(told),
    });
    let may = Arc::new(AtomicBool::new(false));
    let heal = Healing {
        store: store.clone(),
        may: may.clone(),
    };
    let options = Options {
        min_free_bytes: 0,
        commit_patience: PATIENCE,
        limits: crate::Limits::NONE,
    };
    let mark = Mark::open(&folder.path().join("mark"), [7; 16]).unwrap();
    let space = Space::new(Box::new(|| u64::MAX), 0, None);
    let intake = Intake::threaded(
        gated.clone(),
        Arc::default(),
        mark,
        space,
        Box::new(heal),
        Arc::default(),
        &options,
    )
    .unwrap();
    World {
        queue: Queue {
            store: gated,
            intake: Arc::new(intake),
            groups: Arc::default(),
            damage: Arc::default(),
        },
        store,
        writes,
        go_on,
        syncs,
        go,
        may,
        _folder: folder,
    }
}

type Accepting<'a> = Pin<Box<dyn Future<Output = Result<Accepted, CommitError>> + 'a>>;

impl World {
    /// A message on its way: in the intake, if the committer has something to do.
    async fn begin(&self, number: u8) -> Accepting<'_> {
        let mut accepting: Accepting<'_> = Box::pin(self.queue.accept(message(number)));
        let accepted = std::future::poll_fn(|context| Poll::Ready(accepting.as_mut().poll(context))).await;
        assert!(accepted.is_pending());
        accepting
    }

    fn a_write_begins(&self) {
        self.writes.recv_timeout(PATIENCE).unwrap();
    }

    fn let_write(&self) {
        self.go_on.send(()).unwrap();
    }

    fn a_sync_begins(&self) {
        self.syncs.recv_timeout(PATIENCE).unwrap();
    }

    fn let_sync(&self, well: bool) {
        self.go.send(well).unwrap();
    }

    /// Has all that comes written and synced.
    async fn accept(&self, number: u8) -> Accepted {
        let accepting = self.begin(number).await;
        self.a_write_begins();
        self.let_write();
        self.a_sync_begins();
        self.let_sync(true);
        accepting.await.unwrap()
    }

    fn due(&self) -> Vec<u8> {
        let (page, _) = self.queue.due(QueueId(1), FIRST, 9).unwrap();
        page.iter().map(|unit| unit.id.as_bytes()[0]).collect()
    }

    /// What a power cut would leave of these.
    fn on_disk(&self, numbers: &[u8]) -> Vec<bool> {
        let left = self.store.cut_power();
        let is_there = |number: &u8| left.get(Family::Envelope, &[*number; 16]).unwrap().is_some();
        numbers.iter().map(is_there).collect()
    }
}

fn delivered(unit: UnitKey) -> Settle {
    Settle {
        unit,
        at: Timestamp(5),
        attempt: 1,
        hop: None,
        ends: vec![End {
            mailbox: "a@ok.test".parse().unwrap(),
            fate: Fate::Delivered,
            reply: "250 ok".into(),
        }],
        again: None,
        reports: Vec::new(),
    }
}

#[tokio::test]
async fn a_group_is_written_while_the_one_before_is_synced_and_seen_by_nobody() {
    let world = world();
    let first = world.begin(1).await;
    world.a_write_begins();
    // One more waits when the first is written.
    let second = world.begin(2).await;
    world.let_write();
    world.a_sync_begins();
    world.a_write_begins();
    world.let_write();
    // The third's write tells that the second's is through, as soon as the disk has taken the first.
    let third = world.begin(3).await;
    assert_eq!(world.on_disk(&[1, 2]), [false, false]);
    assert_eq!(world.due(), [0; 0], "neither may go out");
    let overdue = world.queue.expired(Timestamp(99_000), None, 9, |_| true);
    assert_eq!(overdue.unwrap().0, []);
    world.let_sync(true);
    assert!(first.await.is_ok());
    world.a_sync_begins();
    world.a_write_begins();
    assert!(world.store.get(Family::Envelope, &[2; 16]).unwrap().is_some());
    assert_eq!(world.on_disk(&[1]), [true]);
    assert_eq!((world.due(), world.queue.groups()), (vec![1], 1));
    world.let_sync(true);
    assert!(second.await.is_ok());
    assert_eq!(world.on_disk(&[1, 2]), [true, true]);
    assert_eq!((world.due(), world.queue.groups()), (vec![1, 2], 2));
    world.let_write();
    world.a_sync_begins();
    world.let_sync(true);
    assert!(third.await.is_ok());
    world.queue.close();
}

#[tokio::test]
async fn a_failed_sync_takes_the_groups_behind_it_along() {
    let world = world();
    let unit = world.accept(1).await.units[0];
    // An end in the group whose sync fails, a message in the one behind it, and one that comes later.
    let settled = world.queue.settle(delivered(unit)).await.unwrap();
    world.a_write_begins();
    let second = world.begin(2).await;
    world.let_write();
    world.a_sync_begins();
    world.a_write_begins();
    let third = world.begin(3).await;
    world.let_write();
    world.let_sync(false);
    for refused in [second.await, third.await] {
        assert!(matches!(refused, Err(CommitError::Failing(_))), "{refused:?}");
    }
    assert!(matches!(world.queue.status(), Status::Failing(_)));
    assert!(world.store.get(Family::Envelope, &[2; 16]).unwrap().is_some());
    assert_eq!(world.due(), [0; 0], "hidden until it is taken out");
    world.may.store(true, Ordering::SeqCst);
    // Of what the peer was told nothing is to be written again: the store, a model, kept it after all.
    assert_eq!(settled.await.unwrap().unit, None);
    let until = std::time::Instant::now() + PATIENCE;
    while world.queue.is_failing() {
        assert!(std::time::Instant::now() < until);
        std::thread::yield_now();
    }
    assert_eq!(world.on_disk(&[1, 2, 3]), [false; 3]);
    let events = world.queue.events(0, 9).unwrap();
    let kinds: Vec<_> = events.into_iter().map(|(_, event)| event.kind).collect();
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!([count(EventKind::Delivered), count(EventKind::Cancelled)], [1, 1]);
    // And it goes on, with the one that was refused too.
    world.accept(2).await;
    assert_eq!(world.due(), [2]);
    world.queue.close();
}

#[tokio::test]
async fn a_stop_waits_for_the_last_sync_and_says_where_it_fails() {
    for well in [true, false] {
        let world = world();
        let last = world.begin(1).await;
        world.a_write_begins();
        let queue = world.queue.clone();
        let closed = std::thread::spawn(move || queue.close());
        world.let_write();
        world.a_sync_begins();
        world.let_sync(well);
        assert_eq!(last.await.is_ok(), well);
        closed.join().unwrap();
        assert_eq!(world.queue.groups(), u64::from(well));
        assert_eq!(world.on_disk(&[1]), [well]);
    }
}
