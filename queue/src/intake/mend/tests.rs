//! A store that fails and is brought back, with the model behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};

use bytes::Bytes;
use mail_core::Timestamp;

use super::super::Status;
use super::super::tests::{Hooked, PATIENCE, message, threaded};
use super::*;
use crate::store::{Family, MemoryStore, Store, StoreError};
use crate::{Accepted, Again, End, EventKind, Fate, Queue, Settle, UnitKey, sweep};

/// Never brings it back.
pub(in crate::intake) struct NoHealing;

impl Heal for NoHealing {
    fn heal(&mut self, _: u64, _: &[MessageId]) -> Result<usize, OpenError> {
        Err(StoreError("it stays away".into()).into())
    }
}

const WORKS: u8 = 0;
/// Nothing is written.
const REFUSES: u8 = 1;
/// All is written, and an error told: as when the sync fails.
const LIES: u8 = 2;
/// What is due can't be read.
const UNREAD: u8 = 3;

/// Brings it back once it is let.
pub(in crate::intake) struct Healing {
    pub(in crate::intake) store: MemoryStore,
    pub(in crate::intake) mood: Arc<AtomicU8>,
    pub(in crate::intake) may: Arc<AtomicBool>,
}

impl Heal for Healing {
    fn heal(&mut self, _: u64, unanswered: &[MessageId]) -> Result<usize, OpenError> {
        if !self.may.load(Ordering::SeqCst) {
            return Err(StoreError("not yet".into()).into());
        }
        self.mood.store(WORKS, Ordering::SeqCst);
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let taken_out =
            Committer::new(store.clone(), Arc::default(), Arc::default())?.take_out(unanswered)?;
        sweep(&*store)?;
        Ok(taken_out)
    }

    fn first_wait(&self) -> Duration {
        Duration::ZERO
    }
}

struct World {
    queue: Queue,
    store: MemoryStore,
    mood: Arc<AtomicU8>,
    /// What is due can't be read, however often the store is opened anew.
    unread: Arc<AtomicBool>,
    may: Arc<AtomicBool>,
    _folder: tempfile::TempDir,
}

fn world() -> World {
    let store = MemoryStore::new();
    let (mood, may) = (Arc::new(AtomicU8::new(WORKS)), Arc::new(AtomicBool::new(false)));
    let unread = Arc::new(AtomicBool::new(false));
    let (of_write, of_sync) = (mood.clone(), mood.clone());
    let (of_get, stays) = (mood.clone(), unread.clone());
    let failed = || Err(StoreError("Input/output error".into()));
    let moody = Hooked {
        store: store.clone(),
        write: Box::new(move |store, batch, sync| {
            let mood = of_write.load(Ordering::SeqCst);
            if mood != REFUSES {
                store.write(batch, sync)?;
            }
            if mood == WORKS || mood == UNREAD {
                Ok(())
            } else {
                failed()
            }
        }),
        sync: Box::new(move |store| match of_sync.load(Ordering::SeqCst) {
            WORKS | UNREAD => store.sync(),
            _ => failed(),
        }),
        get: Box::new(move |family| {
            let is_unread = of_get.load(Ordering::SeqCst) == UNREAD || stays.load(Ordering::SeqCst);
            if family == Family::Due && is_unread {
                failed()
            } else {
                Ok(())
            }
        }),
    };
    let heal = Healing {
        store: store.clone(),
        mood: mood.clone(),
        may: may.clone(),
    };
    let (queue, folder) = threaded(moody, heal);
    World {
        queue,
        store,
        mood,
        unread,
        may,
        _folder: folder,
    }
}

impl World {
    fn is_kept(&self, number: u8) -> bool {
        self.store.get(Family::Envelope, &[number; 16]).unwrap().is_some()
    }

    fn events(&self) -> Vec<(EventKind, Option<MessageId>)> {
        let events = self.queue.events(0, 100).unwrap();
        events
            .into_iter()
            .map(|(_, event)| (event.kind, event.id))
            .collect()
    }

    async fn accept(&self, number: u8) -> Accepted {
        self.queue.accept(message(number)).await.unwrap()
    }

    /// As soon as the committer is through with mending.
    fn healed(&self) {
        self.may.store(true, Ordering::SeqCst);
        let until = Instant::now() + PATIENCE;
        while self.queue.is_failing() {
            assert!(Instant::now() < until, "{:?}", self.queue.status());
            std::thread::yield_now();
        }
        assert_eq!(self.queue.status(), Status::Healthy);
    }
}

pub(in crate::intake) fn delivered(unit: UnitKey) -> Settle {
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

fn id(number: u8) -> MessageId {
    MessageId::from_bytes([number; 16])
}

#[tokio::test]
async fn what_peers_were_told_is_recorded_once_the_store_is_back() {
    for mood in [REFUSES, LIES] {
        let world = world();
        let [one, two] = [world.accept(1).await, world.accept(2).await];
        world.mood.store(mood, Ordering::SeqCst);
        // The first is in the group that fails, the second comes while it fails.
        let first = world.queue.settle(delivered(one.units[0])).await.unwrap();
        let refused = world.queue.accept(message(3)).await;
        assert!(matches!(refused, Err(CommitError::Failing(_))), "{refused:?}");
        assert!(matches!(world.queue.status(), Status::Failing(_)));
        let second = world.queue.settle(delivered(two.units[0])).await.unwrap();
        world.healed();
        for settled in [first.await, second.await] {
            assert_eq!(settled.unwrap().unit, None, "mood {mood}");
        }
        assert_eq!([1, 2, 3].map(|number| world.is_kept(number)), [false; 3]);
        let delivered = |of| {
            let of = (EventKind::Delivered, Some(id(of)));
            world.events().into_iter().filter(|event| *event == of).count()
        };
        assert_eq!([delivered(1), delivered(2)], [1, 1], "each once, mood {mood}");
        world.accept(4).await;
        assert_eq!(world.queue.reopened(), 1);
        world.queue.close();
    }
}

/// The record's own reads fail, before anything is written. Its peer was told all the same.
#[tokio::test]
async fn what_a_peer_was_told_is_recorded_though_the_first_read_for_it_failed() {
    let world = world();
    let unit = world.accept(1).await.units[0];
    world.mood.store(UNREAD, Ordering::SeqCst);
    let settled = world.queue.settle(delivered(unit)).await.unwrap();
    world.healed();
    assert_eq!(settled.await.unwrap().unit, None);
    assert!(!world.is_kept(1));
    world.queue.close();
}

/// One place of the disk that never reads again does not keep the store away from all others.
#[tokio::test]
async fn an_outcome_whose_records_never_read_is_told_as_damaged_and_others_go_on() {
    let world = world();
    let unit = world.accept(1).await.units[0];
    world.unread.store(true, Ordering::SeqCst);
    world.may.store(true, Ordering::SeqCst);
    let settled = world.queue.settle(delivered(unit)).await.unwrap();
    let told = settled.await;
    assert!(matches!(told, Err(CommitError::Damaged(_))), "{told:?}");
    world.healed();
    assert!(world.is_kept(1));
    world.accept(2).await;
    world.queue.close();
}

#[tokio::test]
async fn what_nobody_was_told_of_is_taken_out() {
    let world = world();
    world.accept(1).await;
    world.mood.store(LIES, Ordering::SeqCst);
    let refused = world.queue.accept(message(2)).await;
    assert!(matches!(refused, Err(CommitError::Failing(_))), "{refused:?}");
    assert!(world.is_kept(2), "the test's own store wrote it all the same");
    world.healed();
    assert_eq!([1, 2].map(|number| world.is_kept(number)), [true, false]);
    assert_eq!(world.events().last(), Some(&(EventKind::Cancelled, Some(id(2)))));
    let info = world.queue.info(crate::QueueId(1)).unwrap().unwrap();
    assert_eq!((info.count, info.bytes), (1, 5));
    // It may come again: its client was told to come back.
    world.accept(2).await;
    world.queue.close();
}

#[tokio::test]
async fn a_deferral_that_was_written_after_all_is_told_as_such() {
    for mood in [REFUSES, LIES] {
        let world = world();
        let unit = world.accept(1).await.units[0];
        world.mood.store(mood, Ordering::SeqCst);
        let again = Again {
            due: Timestamp(900),
            attempts: 1,
            in_doubt: 0,
            doubtful: false,
            open: Vec::new(),
            others: Vec::new(),
            signature: None,
            delay_told: None,
        };
        let settle = Settle {
            ends: Vec::new(),
            again: Some(again),
            ..delivered(unit)
        };
        let pending = world.queue.settle(settle).await.unwrap();
        world.may.store(true, Ordering::SeqCst);
        let moved = pending.await.unwrap().unit.unwrap();
        assert_eq!(moved.due, Timestamp(900));
        assert!(world.queue.is_due(&moved).unwrap() && !world.queue.is_due(&unit).unwrap());
        world.queue.close();
    }
}

/// The unit stays where it is, so it can't tell whether its sender was told.
#[tokio::test]
async fn a_delay_that_was_told_of_after_all_is_told_of_once() {
    for mood in [REFUSES, LIES] {
        let world = world();
        let unit = world.accept(1).await.units[0];
        world.mood.store(mood, Ordering::SeqCst);
        let again = Again {
            due: unit.due,
            attempts: 0,
            in_doubt: 0,
            doubtful: false,
            open: Vec::new(),
            others: Vec::new(),
            signature: None,
            delay_told: Some(Timestamp(5)),
        };
        let settle = Settle {
            ends: Vec::new(),
            again: Some(again),
            reports: vec![message(9)],
            ..delivered(unit)
        };
        let pending = world.queue.settle(settle).await.unwrap();
        world.may.store(true, Ordering::SeqCst);
        let settled = pending.await.unwrap();
        assert_eq!(settled.unit, Some(unit));
        assert_eq!(settled.reports[0].id, id(9));
        let info = world.queue.info(unit.queue).unwrap().unwrap();
        assert_eq!(
            (info.count, info.bytes),
            (2, 10),
            "the report counts once, mood {mood}"
        );
        let accepted = (EventKind::Accepted, Some(id(9)));
        let told = world.events().into_iter().filter(|event| *event == accepted);
        assert_eq!(told.count(), 1, "mood {mood}");
        world.queue.close();
    }
}

#[tokio::test]
async fn an_upload_does_not_outlive_a_failure() {
    let world = world();
    let mut upload = world.queue.upload(id(1));
    upload.write(Bytes::from_static(b"rest")).await.unwrap();
    world.mood.store(REFUSES, Ordering::SeqCst);
    assert!(world.queue.accept(message(2)).await.is_err());
    world.healed();
    assert!(matches!(
        upload.write(Bytes::from_static(b"more")).await,
        Err(CommitError::Failing(_))
    ));
    let mut first = Arc::unwrap_or_clone(message(1));
    first.rest = Some(upload.finish());
    let refused = world.queue.accept(Arc::new(first)).await;
    assert!(matches!(refused, Err(CommitError::Failing(_))), "{refused:?}");
    assert!(!world.is_kept(1));
    world.queue.close();
}

#[tokio::test]
async fn a_stop_while_it_fails_tells_those_who_wait() {
    let world = world();
    let unit = world.accept(1).await.units[0];
    world.mood.store(REFUSES, Ordering::SeqCst);
    let pending = world.queue.settle(delivered(unit)).await.unwrap();
    let queue = world.queue.clone();
    let closed = std::thread::spawn(move || queue.close());
    assert!(matches!(pending.await, Err(CommitError::Failing(_))));
    closed.join().unwrap();
    assert!(world.is_kept(1), "it is sent again after the restart: in doubt");
}
