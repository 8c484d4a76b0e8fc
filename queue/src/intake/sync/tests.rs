//! Groups that wait for their sync, with the model behind.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc as gate;

use mail_core::{MessageId, Timestamp};
use parking_lot::Mutex;

use super::super::mend::Heal;
use super::super::tests::{PATIENCE, message};
use super::super::{Intake, Space, Status};
use super::*;
use crate::mark::Mark;
use crate::store::{Batch, Family, KeyValue, MemoryStore, StoreError};
use crate::{End, EventKind, Fate, OpenError, Options, Queue, QueueId, Settle, UnitKey};

/// Before all of a queue's units.
const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::from_bytes([0; 16]), 0);

/// Says when a sync begins, and syncs or fails when told to. Says when a batch is written.
#[derive(Clone)]
struct Gated {
    store: MemoryStore,
    written: gate::Sender<()>,
    syncs: gate::Sender<()>,
    go: Arc<Mutex<gate::Receiver<bool>>>,
}

impl Store for Gated {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        self.store.write(batch, sync)?;
        let _ = self.written.send(());
        Ok(())
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
    written: gate::Receiver<()>,
    syncs: gate::Receiver<()>,
    go: gate::Sender<bool>,
    may: Arc<AtomicBool>,
    _folder: tempfile::TempDir,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    let (tell_written, written) = gate::channel();
    let (tell_syncs, syncs) = gate::channel();
    let (go, told) = gate::channel();
    let gated: Arc<dyn Store> = Arc::new(Gated {
        store: store.clone(),
        written: tell_written,
        syncs: tell_syncs,
        go: Arc::new(Mutex::new(told)),
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
        written,
        syncs,
        go,
        may,
        _folder: folder,
    }
}

impl World {
    /// Begins to accept a message; its group is written.
    fn begin(&self, number: u8) -> tokio::task::JoinHandle<Result<crate::Accepted, CommitError>> {
        let queue = self.queue.clone();
        let task = tokio::spawn(async move { queue.accept(message(number)).await });
        self.wait(&self.written);
        task
    }

    /// The other side of a gate.
    fn wait(&self, gate: &gate::Receiver<()>) {
        tokio::task::block_in_place(|| gate.recv_timeout(PATIENCE)).unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_written_while_the_one_before_is_synced_and_seen_by_nobody() {
    let world = world();
    let first = world.begin(1);
    world.wait(&world.syncs);
    let second = world.begin(2);
    // Both are in the store, neither is on disk: neither is told of, neither may go out.
    assert!(world.store.get(Family::Envelope, &[2; 16]).unwrap().is_some());
    assert_eq!(world.on_disk(&[1, 2]), [false, false]);
    assert_eq!(world.due(), [0; 0]);
    assert!(!first.is_finished() && !second.is_finished());
    let overdue = world.queue.expired(Timestamp(99_000), None, 9, |_| true).unwrap();
    assert_eq!(overdue.0, []);
    world.go.send(true).unwrap();
    assert!(first.await.unwrap().is_ok());
    assert_eq!(world.on_disk(&[1]), [true]);
    world.wait(&world.syncs);
    assert_eq!(world.due(), [1]);
    assert_eq!(world.queue.groups(), 1);
    assert!(!second.is_finished());
    world.go.send(true).unwrap();
    assert!(second.await.unwrap().is_ok());
    assert_eq!(world.due(), [1, 2]);
    assert_eq!(world.on_disk(&[1, 2]), [true, true]);
    world.queue.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_takes_the_groups_behind_it_along() {
    let world = world();
    let kept = world.begin(1);
    world.wait(&world.syncs);
    world.go.send(true).unwrap();
    let unit = kept.await.unwrap().unwrap().units[0];
    // An end and a message in the group whose sync fails, or in the next one.
    let settled = world.queue.settle(delivered(unit)).await.unwrap();
    world.wait(&world.written);
    world.wait(&world.syncs);
    let refused = world.begin(2);
    world.go.send(false).unwrap();
    let refused = refused.await.unwrap();
    assert!(matches!(refused, Err(CommitError::Failing(_))), "{refused:?}");
    assert!(matches!(world.queue.status(), Status::Failing(_)));
    assert_eq!(world.due(), [0; 0], "hidden until it is taken out");
    world.may.store(true, Ordering::SeqCst);
    // What the peer was told is recorded, by a synced write.
    assert_eq!(settled.await.unwrap().unit, None);
    let until = std::time::Instant::now() + PATIENCE;
    while world.queue.is_failing() {
        assert!(std::time::Instant::now() < until);
        std::thread::yield_now();
    }
    assert_eq!(world.on_disk(&[1, 2]), [false, false]);
    let events = world.queue.events(0, 9).unwrap();
    let kinds: Vec<_> = events.into_iter().map(|(_, event)| event.kind).collect();
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!([count(EventKind::Delivered), count(EventKind::Cancelled)], [1, 1]);
    // And it goes on, with the one that was refused too.
    let again = world.begin(2);
    world.wait(&world.syncs);
    world.go.send(true).unwrap();
    assert!(again.await.unwrap().is_ok());
    assert_eq!(world.due(), [2]);
    world.queue.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_the_last_sync() {
    let world = world();
    let last = world.begin(1);
    world.wait(&world.syncs);
    let queue = world.queue.clone();
    let closed = std::thread::spawn(move || queue.close());
    world.go.send(true).unwrap();
    assert!(last.await.unwrap().is_ok());
    closed.join().unwrap();
    assert_eq!(world.on_disk(&[1]), [true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_whose_last_sync_fails_says_so() {
    let world = world();
    let last = world.begin(1);
    world.wait(&world.syncs);
    let queue = world.queue.clone();
    let closed = std::thread::spawn(move || queue.close());
    world.go.send(false).unwrap();
    let refused = last.await.unwrap();
    assert!(matches!(refused, Err(CommitError::Failing(_))), "{refused:?}");
    closed.join().unwrap();
    assert_eq!(world.queue.groups(), 0);
}
