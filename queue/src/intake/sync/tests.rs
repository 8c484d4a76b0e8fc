//! Groups that wait for their sync, with the model behind.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as gate;
use std::task::Poll;

use mail_core::{MessageId, Timestamp};
use parking_lot::Mutex;

use super::super::Status;
use super::super::mend::tests::{Healing, delivered};
use super::super::tests::{Hooked, PATIENCE, message, threaded};
use super::*;
use crate::store::{Family, MemoryStore, StoreError};
use crate::{Accepted, EventKind, Queue, QueueId};

/// Before all of a queue's units.
const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::LEAST, 0);

/// Says when a write or a sync begins, and lets it go on, or a sync fail, when told to.
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
    let store = MemoryStore::new();
    let (tell_writes, writes) = gate::channel();
    let (tell_syncs, syncs) = gate::channel();
    let (go_on, may_go_on) = gate::channel();
    let (go, told) = gate::channel();
    let (may_go_on, told) = (Mutex::new(may_go_on), Mutex::new(told));
    let gated = Hooked {
        store: store.clone(),
        write: Box::new(move |store, batch, sync| {
            tell_writes.send(()).unwrap();
            may_go_on.lock().recv().unwrap();
            store.write(batch, sync)
        }),
        sync: Box::new(move |store| {
            tell_syncs.send(()).unwrap();
            match told.lock().recv().unwrap() {
                true => store.sync(),
                false => Err(StoreError("Input/output error".into())),
            }
        }),
        get: Box::new(|_| Ok(())),
    };
    let may = Arc::new(AtomicBool::new(false));
    let heal = Healing {
        store: store.clone(),
        mood: Arc::default(),
        may: may.clone(),
    };
    let (queue, folder) = threaded(gated, heal);
    World {
        queue,
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
        let left = self.store.cut_power(0);
        let is_there = |number: &u8| left.get(Family::Envelope, &[*number; 16]).unwrap().is_some();
        numbers.iter().map(is_there).collect()
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

#[test]
fn a_sync_that_begins_late_covers_what_was_written_by_then() {
    let syncs = Arc::new(AtomicUsize::new(0));
    let (fails, counted) = (Arc::new(AtomicBool::new(true)), syncs.clone());
    let store = Hooked {
        store: MemoryStore::new(),
        write: Box::new(MemoryStore::write),
        sync: Box::new({
            let fails = fails.clone();
            move |store| {
                counted.fetch_add(1, Ordering::Relaxed);
                match fails.load(Ordering::Relaxed) {
                    true => Err(StoreError("Input/output error".into())),
                    false => store.sync(),
                }
            }
        }),
        get: Box::new(|_| Ok(())),
    };
    let (_syncer, _handed, disk) = way(Arc::new(store), Arc::new(Shared::new(0)));
    let sync = |group: u64, written: u64| {
        disk.written.store(written, Ordering::Relaxed);
        (
            disk.sync(Written::unsynced(group)),
            syncs.swap(0, Ordering::Relaxed),
        )
    };
    assert_eq!(sync(1, 2), (false, 1));
    assert_eq!(sync(2, 2), (false, 0), "what failed has covered nothing");
    assert_eq!(disk.returned.lock().take().unwrap().1.len(), 2);
    fails.store(false, Ordering::Relaxed);
    assert_eq!(sync(1, 2), (true, 1));
    assert_eq!(sync(2, 3), (true, 0));
    assert_eq!(sync(3, 3), (true, 1), "it was written after that sync had begun");
    assert_eq!(disk.shared.synced.load(Ordering::Relaxed), 3);
}
