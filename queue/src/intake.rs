//! The way to the committer: bounded, withdrawable while one waits, and shut as soon as the store fails.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::committer::{Committer, Request, chunk_sums};
use crate::mark::Mark;
use crate::message::{Accepted, NewMessage, Settle, Settled};
use crate::store::Store;
use crate::{CommitError, OpenError, Options};

/// Requests that wait for the committer, some 300 octets each beside their bodies. Full means that the disk is the slow part:
/// accepts wait up to `commit_patience` and are withdrawn, settles wait.
const WAITING: usize = 4_096;

/// Octets of bodies that wait for the committer.
const WAITING_BYTES: usize = 256 << 20;

/// A group ends at so many requests, or so many octets of bodies.
const GROUP: usize = 512;
const GROUP_BYTES: usize = 8 << 20;

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
    /// Writes fail. Nothing is taken, nothing recorded.
    Failing(String),
}

/// See the module.
pub(crate) struct Intake {
    way: Way,
    shared: Arc<Shared>,
    patience: Duration,
    bytes: Arc<Semaphore>,
}

enum Way {
    Thread {
        requests: Mutex<Option<mpsc::Sender<Entry>>>,
        threads: Mutex<Vec<JoinHandle<()>>>,
    },
    Inline(Mutex<Committer>),
}

struct Shared {
    status: RwLock<Status>,
    /// The last group synced.
    synced: AtomicU64,
    stop: Mutex<bool>,
    stopped: Condvar,
}

/// A request in the intake, its share of [`WAITING_BYTES`], and whether it is still wanted.
struct Entry {
    request: Request,
    room: Option<OwnedSemaphorePermit>,
    ticket: Option<Arc<Ticket>>,
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
        mark: Mark,
        free_bytes: Box<dyn Fn() -> u64 + Send>,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let committer = Committer::new(store)?;
        let shared = Arc::new(Shared::new(committer.group()));
        shared.look_at_space(free_bytes(), options.min_free_bytes);
        let (requests, waiting) = mpsc::channel(WAITING);
        let bytes = Arc::new(Semaphore::new(WAITING_BYTES));
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
            spawned.map_err(|cause| OpenError::Io {
                path: format!("thread {name}"),
                cause,
            })
        };
        let (of_committer, of_keeper, min_free) = (shared.clone(), shared.clone(), options.min_free_bytes);
        let threads = vec![
            spawn(
                "committer",
                Box::new(move || run(committer, waiting, &of_committer)),
            )?,
            spawn(
                "mark",
                Box::new(move || keep(mark, &*free_bytes, min_free, &of_keeper)),
            )?,
        ];
        Ok(Self {
            way: Way::Thread {
                requests: Mutex::new(Some(requests)),
                threads: Mutex::new(threads),
            },
            shared,
            patience: options.commit_patience,
            bytes,
        })
    }

    pub(crate) fn inline(store: Arc<dyn Store>) -> Result<Self, OpenError> {
        let committer = Committer::new(store)?;
        Ok(Self {
            shared: Arc::new(Shared::new(committer.group())),
            way: Way::Inline(Mutex::new(committer)),
            patience: Duration::MAX,
            bytes: Arc::new(Semaphore::new(WAITING_BYTES)),
        })
    }

    pub(crate) async fn accept(&self, message: Arc<NewMessage>) -> Result<Accepted, CommitError> {
        if message.units.is_empty() || message.units.len() >= usize::from(u16::MAX) {
            return Err(CommitError::Units);
        }
        match self.status() {
            Status::Healthy => {}
            Status::Full { .. } => return Err(CommitError::Full),
            Status::Failing(why) => return Err(CommitError::Failing(why)),
        }
        let bytes = message.body.len().min(WAITING_BYTES);
        let chunks = chunk_sums(&message.body);
        let (reply, mut answer) = oneshot::channel();
        let ticket = Arc::new(Ticket::default());
        let request = Request::Accept {
            message,
            chunks,
            reply,
        };
        #[cfg(feature = "sabotage")]
        if sabotaged("ack-before-commit") {
            return self.accept_unkept(request).await;
        }
        let entered = async {
            // The number fits, see WAITING_BYTES.
            let room = self
                .bytes
                .clone()
                .acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX))
                .await;
            let room = Some(room.map_err(|_| stopped())?);
            self.send(Entry {
                request,
                room,
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
        self.send(Entry {
            request,
            room: None,
            ticket: None,
        })
        .await?;
        Ok(Accepted {
            id,
            units: Vec::new(),
        })
    }

    pub(crate) async fn settle(
        &self,
        #[allow(unused_mut)] mut settle: Settle,
    ) -> Result<Pending, CommitError> {
        #[cfg(feature = "sabotage")]
        if sabotaged("lose-reports") {
            settle.reports.clear();
        }
        if let Status::Failing(why) = self.status() {
            return Err(CommitError::Failing(why));
        }
        let (reply, answer) = oneshot::channel();
        let request = Request::Settle {
            settle: Box::new(settle),
            reply,
        };
        self.send(Entry {
            request,
            room: None,
            ticket: None,
        })
        .await?;
        Ok(Pending(answer))
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
        let done = committer.lock().commit([entry.request]);
        self.shared.note(&done, 0);
        done
    }

    /// A request nobody waits for; dropped when there is no room.
    pub(crate) fn tell(&self, request: Request) {
        let entry = Entry {
            request,
            room: None,
            ticket: None,
        };
        match &self.way {
            Way::Thread { requests, .. } => {
                if let Some(sender) = &*requests.lock()
                    && sender.try_send(entry).is_err()
                {
                    tracing::debug!("the committer is busy: a note on a queue was dropped");
                }
            }
            Way::Inline(committer) => {
                if let Err(error) = self.commit_inline(committer, entry) {
                    tracing::error!(%error, "a note on a queue was lost");
                }
            }
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.shared.status.read().clone()
    }

    pub(crate) fn close(&self) {
        if let Way::Thread { requests, threads } = &self.way {
            *requests.lock() = None;
            let threads = std::mem::take(&mut *threads.lock());
            for (number, thread) in threads.into_iter().enumerate() {
                if thread.join().is_err() {
                    tracing::error!("a thread of the queue panicked");
                }
                if number == 0 {
                    // The committer is through: the keeper sets the last mark.
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
            synced: AtomicU64::new(group),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
        }
    }

    fn note(&self, done: &Result<(), CommitError>, group: u64) {
        match done {
            Ok(()) => self.synced.store(group, Ordering::Release),
            Err(error) => {
                tracing::error!(%error, "the queue stops: nothing is accepted, nothing new is sent");
                *self.status.write() = Status::Failing(error.to_string());
            }
        }
    }

    fn look_at_space(&self, free: u64, min_free: u64) {
        let mut status = self.status.write();
        match (&*status, free < min_free) {
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
            (Status::Healthy, false) | (Status::Full { .. }, true) | (Status::Failing(_), _) => {}
        }
    }
}

/// The committer's thread: takes what waits as one group, writes it, and so on until all senders are gone. After a failure
/// it takes nothing more; whoever waits is told by the closed channel.
fn run(mut committer: Committer, mut waiting: mpsc::Receiver<Entry>, shared: &Shared) {
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
                bytes += entry.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
                group.push(entry.request);
            }
            next = if group.len() < GROUP && bytes < GROUP_BYTES {
                waiting.try_recv().ok()
            } else {
                None
            };
        }
        #[cfg(feature = "sabotage")]
        if sabotaged("ack-before-commit") {
            std::thread::sleep(Duration::from_millis(200));
        }
        let done = committer.commit(group);
        shared.note(&done, committer.group());
        if done.is_err() {
            return;
        }
    }
}

/// Sets the mark and looks at free space about once a second, and a last time at the end.
fn keep(mut mark: Mark, free_bytes: &dyn Fn() -> u64, min_free: u64, shared: &Shared) {
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
        shared.look_at_space(free_bytes(), min_free);
    }
}

#[cfg(feature = "sabotage")]
fn sabotaged(switch: &str) -> bool {
    std::env::var("POSTRIDER_SABOTAGE").is_ok_and(|switches| switches.split(',').any(|on| on == switch))
}
