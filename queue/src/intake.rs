//! The way to the committer: bounded, withdrawable while one waits, and shut as long as the store fails.

pub(crate) mod mend;
pub(crate) mod space;
mod sync;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use mend::Heal;
use space::Space;
use sync::{Stopped, Syncer};

use crate::aside::DamageCounts;
use crate::committer::{Committer, Failed, Reply, Request, chunk_sums};
use crate::corruption::Corruption;
use crate::mark::Mark;
use crate::memory::within_memory;
use crate::message::{Accepted, NewMessage, Settle, Settled};
use crate::sabotage;
use crate::store::Store;
use crate::unsynced::Unsynced;
use crate::upload::{Abandoned, Leftover};
use crate::usage::{Amount, Limit, Reserved, Usage};
use crate::{CommitError, OpenError, Options};

/// Requests that wait for the committer. Full means that the disk is the slow part: accepts wait up to `commit_patience` and are
/// withdrawn, settles wait.
const WAITING: usize = 4_096;

/// What may wait of mail to be taken in, by its weight. Ends have a quarter as much beside it, so that what a peer was told does not
/// stand behind mail that waits for room. Less where memory is limited.
const WAITING_BYTES: usize = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// A group ends at so many requests, or so many octets.
const GROUP: usize = 512;
const GROUP_BYTES: usize = if cfg!(test) { 256 << 10 } else { 8 << 20 };

/// How often the mark is set and free space asked for.
const KEEPER_EVERY: Duration = Duration::from_secs(1);

/// Whether the queue takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Healthy,
    /// Too little free space; outcomes are still recorded.
    Full {
        /// Octets free.
        free: u64,
    },
    /// Writes fail. Nothing is taken, nothing new is begun; what peers have been told is recorded once writing works again.
    Failing(String),
    /// RocksDB has found a file of the store's damaged. Nothing is accepted, now or after a restart; what reads is delivered.
    Corrupt(String),
    /// As much waits as may. Nothing is accepted until less does.
    Over(Limit),
}

/// See the module.
pub(crate) struct Intake {
    way: Way,
    shared: Arc<Shared>,
    corruption: Arc<Corruption>,
    usage: Arc<Usage>,
    patience: Duration,
    coming: Room,
    ends: Room,
}

/// Octets that may wait.
struct Room {
    free: Arc<Semaphore>,
    most: usize,
}

impl Room {
    fn new(most: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            most,
        }
    }

    /// Room for a request, which has all of it where it is larger. Waits until there is: the committer takes what is in the intake,
    /// and gives its room back, whatever else waits.
    async fn take(&self, request: &Request) -> Result<OwnedSemaphorePermit, CommitError> {
        let weight = u32::try_from(request.weight().min(self.most)).unwrap_or(u32::MAX);
        let taken = self.free.clone().acquire_many_owned(weight).await;
        taken.map_err(|_| stopped())
    }
}

enum Way {
    Thread {
        requests: Mutex<Option<mpsc::Sender<Entry>>>,
        threads: Mutex<Vec<JoinHandle<()>>>,
    },
    Inline(Box<Mutex<Committer>>),
}

struct Shared {
    status: RwLock<Status>,
    /// Whether the status is [`Status::Failing`].
    failing: AtomicBool,
    /// How often the store was brought back after a failure. Uploads begun before that are void.
    reopened: AtomicU64,
    /// The last group synced.
    synced: AtomicU64,
    /// Octets free when space was looked at last, and the watermark.
    space: (AtomicU64, AtomicU64),
    /// Written, and not synced yet.
    unsynced: Unsynced,
    /// Uploads to be deleted by the next group.
    abandoned: Mutex<Vec<Abandoned>>,
    stop: Mutex<bool>,
    stopped: Condvar,
}

/// A request in the intake, its room there, and whether it is still wanted.
struct Entry {
    request: Request,
    room: Option<OwnedSemaphorePermit>,
    ticket: Option<Arc<Ticket>>,
}

impl Entry {
    /// What nobody takes back, and that is small, or alone.
    fn of(request: Request) -> Self {
        Self {
            request,
            room: None,
            ticket: None,
        }
    }
}

/// Decides between the committer taking a request into a group and the client taking it back: whoever comes first.
#[derive(Default)]
struct Ticket(AtomicU8);

impl Ticket {
    const WAITING: u8 = 0;
    const TAKEN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn claim(&self, as_what: u8) -> bool {
        self.0
            .compare_exchange(Self::WAITING, as_what, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// Waits until a settle is on disk.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Settled, CommitError>>);

impl Future for Pending {
    type Output = Result<Settled, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err(stopped())))
    }
}

fn stopped() -> CommitError {
    CommitError::Failing("the committer has stopped".into())
}

impl Intake {
    pub(crate) fn threaded(
        store: Arc<dyn Store>,
        damage: Arc<DamageCounts>,
        mark: Mark,
        space: Space,
        heal: Box<dyn Heal>,
        corruption: Arc<Corruption>,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let usage = Arc::<Usage>::default();
        usage.limit(options.limits.clone());
        let committer = Committer::new(store.clone(), damage, usage.clone())?;
        let shared = Arc::new(Shared::new(committer.group()));
        shared.look_at_space(&space);
        let (requests, waiting) = mpsc::channel(WAITING);
        let waiting_bytes = within_memory(WAITING_BYTES);
        let (syncer, handed, disk) = sync::way(store, shared.clone());
        let wake = requests.downgrade();
        let spawn = |name: &'static str, body: Box<dyn FnOnce() + Send>| {
            let body = move || {
                let _ends = EndOnPanic(name);
                body();
            };
            let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
            spawned.map_err(|cause| OpenError::Io {
                path: format!("thread {name}"),
                cause,
            })
        };
        let (of_committer, of_keeper) = (shared.clone(), shared.clone());
        let threads = vec![
            spawn(
                "committer",
                Box::new(move || {
                    if run(committer, waiting, heal, &syncer, &of_committer).is_err() {
                        of_committer.fails(&CommitError::Failing("nothing is synced any more".into()));
                    }
                }),
            )?,
            spawn("sync", Box::new(move || sync::run(&disk, &handed, &wake)))?,
            spawn("mark", Box::new(move || keep(mark, &space, &of_keeper)))?,
        ];
        Ok(Self {
            way: Way::Thread {
                requests: Mutex::new(Some(requests)),
                threads: Mutex::new(threads),
            },
            shared,
            corruption,
            usage,
            patience: match sabotage::is_on("no-patience") {
                true => Duration::MAX,
                false => options.commit_patience,
            },
            coming: Room::new(waiting_bytes),
            ends: Room::new(waiting_bytes / 4),
        })
    }

    pub(crate) fn inline(store: Arc<dyn Store>, damage: Arc<DamageCounts>) -> Result<Self, OpenError> {
        let usage = Arc::<Usage>::default();
        let committer = Committer::new(store, damage, usage.clone())?;
        Ok(Self {
            shared: Arc::new(Shared::new(committer.group())),
            way: Way::Inline(Box::new(Mutex::new(committer))),
            corruption: Arc::default(),
            usage,
            patience: Duration::MAX,
            coming: Room::new(WAITING_BYTES),
            ends: Room::new(WAITING_BYTES / 4),
        })
    }

    pub(crate) async fn accept(&self, message: Arc<NewMessage>) -> Result<Accepted, CommitError> {
        if !message.has_sound_units() {
            return Err(CommitError::Units);
        }
        if message.rest.as_ref().is_some_and(|rest| rest.id() != message.id) {
            return Err(CommitError::OtherUpload);
        }
        self.takes_mail()?;
        let reserved = self.reserve(&message)?;
        let chunks = chunk_sums(&message);
        let (reply, answer) = oneshot::channel();
        let request = Request::Accept {
            message,
            chunks,
            reserved: Some(reserved),
            reply,
        };
        #[cfg(feature = "sabotage")]
        if sabotage::is_on("ack-before-commit") {
            return self.accept_unkept(request).await;
        }
        self.enter(request, answer).await
    }

    /// Writes a chunk of a message to come. Answered once it is in the store, synced or not.
    pub(crate) async fn chunk(
        &self,
        of: Arc<Leftover>,
        number: u32,
        octets: Bytes,
    ) -> Result<(), CommitError> {
        self.takes_mail()?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Chunk {
            of,
            number,
            octets,
            reply,
        };
        self.enter(request, answer).await
    }

    /// Has an upload deleted, at once or with the next group.
    pub(crate) fn abandon(&self, abandoned: Abandoned) {
        self.shared.abandoned.lock().push(abandoned);
        match &self.way {
            Way::Thread { .. } => {
                self.tell(Request::Nudge);
            }
            // Where it is locked, whoever holds it may be the one who drops the upload.
            Way::Inline(committer) => {
                if let Some(mut committer) = committer.try_lock() {
                    let done = committer.commit(self.shared.take_abandoned());
                    let _ = self.note_inline(done, committer.group());
                }
            }
        }
    }

    /// Room for a message as it will be counted.
    fn reserve(&self, message: &NewMessage) -> Result<Reserved, CommitError> {
        let messages = message.units.len() as u64;
        let amount = Amount {
            messages,
            bytes: message.bytes().saturating_mul(messages),
        };
        self.usage
            .reserve(&message.tenant, amount)
            .map_err(CommitError::Over)
    }

    pub(crate) fn is_inline(&self) -> bool {
        matches!(self.way, Way::Inline(_))
    }

    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    pub(crate) fn takes_mail(&self) -> Result<(), CommitError> {
        match self.status() {
            Status::Healthy => Ok(()),
            Status::Full { .. } => Err(CommitError::Full),
            Status::Over(limit) => Err(CommitError::Over(limit)),
            Status::Failing(why) | Status::Corrupt(why) => Err(CommitError::Failing(why)),
        }
    }

    /// Hands a request to the committer and waits for its answer; takes it back when it has not come into a group within
    /// `commit_patience`.
    async fn enter<T>(
        &self,
        request: Request,
        mut answer: oneshot::Receiver<Result<T, CommitError>>,
    ) -> Result<T, CommitError> {
        let ticket = Arc::new(Ticket::default());
        let entered = async {
            let room = self.coming.take(&request).await?;
            self.send(Entry {
                request,
                room: Some(room),
                ticket: Some(ticket.clone()),
            })
            .await?;
            Ok((&mut answer).await)
        };
        let answered = match tokio::time::timeout(self.patience, entered).await {
            Ok(answered) => answered?,
            Err(_) if ticket.claim(Ticket::WITHDRAWN) => return Err(CommitError::Withdrawn),
            // In a group: only the disk can tell now.
            Err(_) => answer.await,
        };
        answered.unwrap_or_else(|_| Err(stopped()))
    }

    /// Breaks promise 1 on purpose: answers before anything is written.
    #[cfg(feature = "sabotage")]
    async fn accept_unkept(&self, request: Request) -> Result<Accepted, CommitError> {
        let Request::Accept { message, .. } = &request else {
            return Err(stopped());
        };
        let id = message.id;
        self.send(Entry::of(request)).await?;
        Ok(Accepted {
            id,
            units: Vec::new(),
        })
    }

    pub(crate) async fn settle(&self, mut settle: Settle) -> Result<Pending, CommitError> {
        if sabotage::is_on("lose-reports") {
            settle.reports.clear();
        }
        if !settle.reports.iter().all(|report| report.has_sound_units()) {
            return Err(CommitError::Units);
        }
        let (reply, answer) = oneshot::channel();
        let request = Request::Settle {
            settle: Box::new(settle),
            reply,
        };
        let room = self.ends.take(&request).await?;
        self.send(Entry {
            request,
            room: Some(room),
            ticket: None,
        })
        .await?;
        Ok(Pending(answer))
    }

    /// A request of an operator, answered once it is on disk. Waits for room.
    pub(crate) async fn ask(&self, make: impl FnOnce(Reply<()>) -> Request) -> Result<(), CommitError> {
        if let Status::Failing(why) = self.status() {
            return Err(CommitError::Failing(why));
        }
        let (reply, answer) = oneshot::channel();
        self.send(Entry::of(make(reply))).await?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// A request nobody is answered for. Waits for room.
    pub(crate) async fn say(&self, request: Request) -> Result<(), CommitError> {
        self.send(Entry::of(request)).await
    }

    async fn send(&self, entry: Entry) -> Result<(), CommitError> {
        match &self.way {
            Way::Thread { requests, .. } => {
                let sender = requests.lock().clone().ok_or_else(stopped)?;
                sender.send(entry).await.map_err(|_| stopped())
            }
            Way::Inline(committer) => self.commit_inline(committer, entry),
        }
    }

    fn commit_inline(&self, committer: &Mutex<Committer>, entry: Entry) -> Result<(), CommitError> {
        drop(entry.room);
        if let Some(ticket) = &entry.ticket {
            ticket.claim(Ticket::TAKEN);
        }
        let mut committer = committer.lock();
        let done = committer.commit(self.shared.take_abandoned().chain([entry.request]));
        self.note_inline(done, committer.group())
    }

    /// A simulation's store is brought back by a start of its own.
    fn note_inline(&self, done: Result<(), Box<Failed>>, group: u64) -> Result<(), CommitError> {
        match done {
            Ok(()) => {
                self.shared.synced.store(group, Ordering::Release);
                Ok(())
            }
            Err(failed) => {
                let error = failed.error.clone();
                self.shared.fails(&error);
                failed.give_up();
                Err(error)
            }
        }
    }

    /// A request nobody waits for; dropped when there is no room. Whether it was taken.
    pub(crate) fn tell(&self, request: Request) -> bool {
        let entry = Entry::of(request);
        match &self.way {
            Way::Thread { requests, .. } => {
                let taken = requests
                    .lock()
                    .as_ref()
                    .is_some_and(|sender| sender.try_send(entry).is_ok());
                if !taken {
                    tracing::debug!("the committer is busy: a note on a queue was dropped");
                }
                taken
            }
            Way::Inline(committer) => {
                let done = self.commit_inline(committer, entry);
                if let Err(error) = &done {
                    tracing::error!(%error, "a note on a queue was lost");
                }
                done.is_ok()
            }
        }
    }

    pub(crate) fn status(&self) -> Status {
        match (&*self.shared.status.read(), self.corruption.found()) {
            (failing @ Status::Failing(_), _) => failing.clone(),
            (_, Some(found)) => Status::Corrupt(found.to_owned()),
            (Status::Healthy, None) => self.usage.full().map_or(Status::Healthy, Status::Over),
            (status, None) => status.clone(),
        }
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Acquire)
    }

    pub(crate) fn reopened(&self) -> u64 {
        self.shared.reopened.load(Ordering::Acquire)
    }

    pub(crate) fn unsynced(&self) -> &Unsynced {
        &self.shared.unsynced
    }

    pub(crate) fn synced(&self) -> u64 {
        self.shared.synced.load(Ordering::Acquire)
    }

    pub(crate) fn space(&self) -> (u64, u64) {
        let (free, min_free) = &self.shared.space;
        (free.load(Ordering::Relaxed), min_free.load(Ordering::Relaxed))
    }

    pub(crate) fn close(&self) {
        if let Way::Thread { requests, threads } = &self.way {
            *requests.lock() = None;
            let threads = std::mem::take(&mut *threads.lock());
            for (number, thread) in threads.into_iter().enumerate() {
                // It does not outlive a panic, see `EndOnPanic`.
                let _ = thread.join();
                if number == 1 {
                    // The committer and its syncs are through: the keeper sets the last mark.
                    *self.shared.stop.lock() = true;
                    self.shared.stopped.notify_all();
                }
            }
        }
    }
}

impl Shared {
    fn new(group: u64) -> Self {
        Self {
            status: RwLock::new(Status::Healthy),
            failing: AtomicBool::new(false),
            reopened: AtomicU64::new(0),
            synced: AtomicU64::new(group),
            space: <(AtomicU64, AtomicU64)>::default(),
            unsynced: Unsynced::default(),
            abandoned: Mutex::default(),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
        }
    }

    fn take_abandoned(&self) -> impl Iterator<Item = Request> + use<> {
        let abandoned = std::mem::take(&mut *self.abandoned.lock());
        abandoned.into_iter().map(Request::Abandon)
    }

    fn fails(&self, error: &CommitError) {
        *self.status.write() = Status::Failing(error.to_string());
        if !self.failing.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "the queue stops: nothing is accepted, nothing new is sent");
        }
    }

    fn works_again(&self) {
        self.reopened.fetch_add(1, Ordering::AcqRel);
        // It may have failed for want of space, and the keeper looks in a while only.
        *self.status.write() = match self.is_full() {
            true => Status::Full {
                free: self.space.0.load(Ordering::Relaxed),
            },
            false => Status::Healthy,
        };
        self.failing.store(false, Ordering::Release);
    }

    /// By the keeper's last look.
    fn is_full(&self) -> bool {
        let (free, min_free) = &self.space;
        free.load(Ordering::Relaxed) < min_free.load(Ordering::Relaxed) && !sabotage::is_on("no-watermark")
    }

    fn look_at_space(&self, space: &Space) {
        let (free, min_free) = (space.look(), space.min_free);
        self.space.0.store(free, Ordering::Relaxed);
        self.space.1.store(min_free, Ordering::Relaxed);
        let is_full = self.is_full();
        let mut status = self.status.write();
        match (&*status, is_full) {
            (Status::Healthy, true) => {
                tracing::warn!(
                    free,
                    min_free,
                    "too little free space: nothing is accepted, deliveries go on"
                );
                *status = Status::Full { free };
            }
            (Status::Full { .. }, false) => {
                tracing::info!(free, "enough free space again");
                *status = Status::Healthy;
            }
            (Status::Full { .. }, true) => *status = Status::Full { free },
            (Status::Healthy, false) | (Status::Failing(_) | Status::Corrupt(_) | Status::Over(_), _) => {}
        }
    }
}

/// Ends the process when one of the queue's threads panics. Without it nothing would be written, synced or marked any more, and nobody would
/// bring it back; all that was acknowledged is on disk, and whoever watches the process starts it anew.
struct EndOnPanic(&'static str);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                thread = self.0,
                "a thread of the queue panicked: the relay ends, to be started anew"
            );
            std::process::abort();
        }
    }
}

/// The committer's thread: takes what waits as one group, writes it, has it synced, and so on until all senders are gone. After a
/// failure it takes nothing more until the store is back.
fn run(
    mut committer: Committer,
    mut waiting: mpsc::Receiver<Entry>,
    mut heal: Box<dyn Heal>,
    syncer: &Syncer,
    shared: &Shared,
) -> Result<(), Stopped> {
    while let Some(first) = waiting.blocking_recv() {
        let mut group = Vec::with_capacity(GROUP);
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(entry) = next {
            if entry
                .ticket
                .as_ref()
                .is_none_or(|ticket| ticket.claim(Ticket::TAKEN))
            {
                bytes += entry.request.weight();
                group.extend(mend::unless_void(entry.request, shared));
            }
            next = if group.len() < GROUP && bytes < GROUP_BYTES {
                waiting.try_recv().ok()
            } else {
                None
            };
        }
        // Of whatever wrote them, nothing is on its way any more.
        group.extend(shared.take_abandoned());
        if sabotage::is_on("ack-before-commit") {
            std::thread::sleep(Duration::from_millis(200));
        }
        let failed = match committer.write_ahead(group, &shared.unsynced) {
            Ok(written) => syncer.sync(written, !waiting.is_empty()).map(|()| None)?,
            Err(failed) => Some(failed),
        };
        if let Some(failed) = syncer.failed(&mut committer, failed)?
            && !mend::mend(&mut committer, failed, &mut waiting, &mut *heal, shared)
        {
            return Ok(());
        }
    }
    syncer.wait()?;
    if let Some(failed) = syncer.failed(&mut committer, None)? {
        mend::mend(&mut committer, failed, &mut waiting, &mut *heal, shared);
    }
    Ok(())
}

/// Sets the mark and looks at free space about once a second, and a last time at the end.
fn keep(mut mark: Mark, space: &Space, shared: &Shared) {
    let mut stop = shared.stop.lock();
    loop {
        if !*stop {
            shared.stopped.wait_for(&mut stop, KEEPER_EVERY);
        }
        if let Err(error) = mark.set(shared.synced.load(Ordering::Acquire)) {
            tracing::error!(%error, "the mark can't be written");
        }
        if *stop {
            return;
        }
        shared.look_at_space(space);
    }
}

#[cfg(test)]
pub(crate) mod tests;
