//! What a message needs before it goes on the wire, done off the reactor: it is read from the queue and signed.
//!
//! Reading blocks and an RSA signature takes half a millisecond, so plain threads do both. Their channel is bounded: where it is
//! full, whoever wants a message waits, and deliveries go no faster than signatures are made. What needs neither is done where it
//! is asked for: to hand it to a thread and back would cost more than the work.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkim_signer::sign::Signer;
use mail_core::{BodyType, DsnOptions, MessageId, Recipient, ReversePath, Timestamp, TransferOptions};
use parking_lot::Mutex;
use queue::{EnvelopeRecord, NewMessage, Queue, ReadError, Signature, StateRecord, UnitKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::report::Original;

mod keys;
pub(crate) mod large;
mod metrics;
mod worker;

pub use keys::{BadKey, load_key, load_keys};
pub use large::{Reader, Rest};
pub use metrics::Metrics;
use worker::Worker;

/// Jobs that wait for a thread, about 100 B each. Full means that signing is the slow part: the caller waits.
pub const WAITING_JOBS: usize = 64;

/// What large messages in 7-bit take in memory, all together, in KiB: four of the largest. However many hosts take nothing else,
/// and however slowly they read, it isn't more.
const CONVERTED_KIB: usize = 256 << 10;

/// How long a large message waits for room among them; the peer is waiting, too.
const ROOM_PATIENCE: Duration = Duration::from_secs(60);

/// A message ready for the wire.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Who it is from and for.
    pub message: Loaded,
    /// What earlier attempts left; `None` before the first deferral.
    pub state: Option<StateRecord>,
    /// Goes before `body`: the signatures, on top of the whole (RFC 6376 §5.6), then the fields that we add.
    pub head: Bytes,
    /// As the client sent it, header and all; or in 7-bit, for a host that takes nothing else. Where there is a `rest`, only
    /// its first chunk.
    pub body: Bytes,
    /// What follows `body`, where the message is a large one.
    pub rest: Option<Rest>,
    /// An octet over 127 in it, whatever BODY said.
    pub eight_bit: bool,
    /// The client said SMTPUTF8, and an octet over 127 is in the header: only hosts with SMTPUTF8 take it (RFC 6531 §3.2).
    /// Without its word such a header is an old client's mistake, and goes on as it is.
    pub utf8_header: bool,
    /// The signatures in `head`, for [`queue::Again`]; `None` where no key signs for the sender.
    pub signature: Option<Signature>,
    /// Its place among the large messages in 7-bit, for as long as it is in memory.
    pub room: Option<Arc<OwnedSemaphorePermit>>,
}

/// A message as it was found.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// In memory since it was accepted.
    Memory(Arc<NewMessage>),
    /// In the queue.
    Record(MessageId, Box<EnvelopeRecord>),
}

impl Loaded {
    /// Where reports go.
    pub fn reverse_path(&self) -> &ReversePath {
        match self {
            Self::Memory(message) => &message.reverse_path,
            Self::Record(_, envelope) => &envelope.reverse_path,
        }
    }

    /// What was asked of reports.
    pub fn dsn(&self) -> &DsnOptions {
        match self {
            Self::Memory(message) => &message.dsn,
            Self::Record(_, envelope) => &envelope.dsn,
        }
    }

    /// What was asked of the way it takes.
    pub fn transfer(&self) -> TransferOptions {
        match self {
            Self::Memory(message) => message.transfer,
            Self::Record(_, envelope) => envelope.transfer,
        }
    }

    /// What the client declared at MAIL.
    pub fn body_type(&self) -> BodyType {
        match self {
            Self::Memory(message) => message.body_type,
            Self::Record(_, envelope) => envelope.body_type,
        }
    }

    /// The sender's own word for messages of a kind.
    pub fn tag(&self) -> Option<&Arc<str>> {
        match self {
            Self::Memory(message) => message.tag.as_ref(),
            Self::Record(_, envelope) => envelope.tag.as_ref(),
        }
    }

    fn smtputf8(&self) -> bool {
        match self {
            Self::Memory(message) => message.smtputf8,
            Self::Record(_, envelope) => envelope.smtputf8,
        }
    }

    /// All recipients of a unit, in order, ended ones too; empty where there is no such unit.
    pub fn recipients(&self, unit: u16) -> &[Recipient] {
        let unit = usize::from(unit);
        match self {
            Self::Memory(message) => message.units.get(unit).map(|unit| unit.recipients.as_slice()),
            Self::Record(_, envelope) => envelope.units.get(unit).map(|unit| unit.recipients.as_slice()),
        }
        .unwrap_or_default()
    }

    fn prefix(&self) -> &Bytes {
        match self {
            Self::Memory(message) => &message.prefix,
            Self::Record(_, envelope) => &envelope.prefix,
        }
    }
}

impl Prepared {
    /// What a failure report needs to know.
    pub fn original(&self) -> Original<'_> {
        match &self.message {
            Loaded::Memory(message) => Original::from_new(message),
            Loaded::Record(id, envelope) => Original::from_record(*id, envelope, &self.body),
        }
    }
}

/// Why a message can't be prepared.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PrepareError {
    /// It has ended meanwhile: the claim is void.
    #[error("the message is no longer in the queue")]
    Gone,
    /// What the queue holds of it is damaged, or the disk fails.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Our own mistake, brought out by this message.
    #[error("preparing the message failed: a mistake of the relay's, told in its log")]
    Panicked,
    /// The relay is stopping.
    #[error("the relay is stopping")]
    Stopping,
    /// So many large messages are being sent in 7-bit that there is no memory for another one.
    #[error("too many large messages are being sent in 7-bit; this one waits")]
    Crowded,
}

/// A handle on the threads; cloning shares them. They end when the last handle is gone.
#[derive(Clone)]
pub struct Preparer {
    worker: Arc<Worker>,
    /// To the threads; none where all is done on the caller's.
    jobs: Option<mpsc::Sender<Job>>,
    /// KiB that large messages in 7-bit may still take.
    converted: Arc<Semaphore>,
}

enum Job {
    Prepare {
        unit: UnitKey,
        message: Option<Arc<NewMessage>>,
        now: Timestamp,
        answer: oneshot::Sender<Result<Prepared, PrepareError>>,
    },
    /// A large message, whose envelope has been read.
    Ready {
        unit: UnitKey,
        loaded: Loaded,
        now: Timestamp,
        answer: oneshot::Sender<Result<Prepared, PrepareError>>,
    },
    SevenBit {
        id: MessageId,
        prepared: Box<Prepared>,
        now: Timestamp,
        answer: oneshot::Sender<Prepared>,
    },
    Chunk {
        rest: Rest,
        number: u32,
        answer: oneshot::Sender<Result<Option<Bytes>, ReadError>>,
    },
}

impl Preparer {
    /// Starts `threads` threads, at least one, and one for large messages, so that others do not wait for those.
    pub fn threaded(
        queue: Queue,
        signer: Arc<Signer>,
        metrics: Metrics,
        threads: usize,
    ) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(WAITING_JOBS);
        let waiting = Arc::new(Mutex::new(waiting));
        let worker = Arc::new(Worker::new(queue, signer, metrics));
        // Needs no bound of its own: each delivery connection waits for one message at the most.
        let (large, waiting_large) = std::sync::mpsc::channel();
        for number in 0..threads.max(1) {
            let (worker, waiting, large) = (worker.clone(), waiting.clone(), large.clone());
            std::thread::Builder::new()
                .name(format!("prepare-{number}"))
                .spawn(move || worker.run(&waiting, &large))?;
        }
        let of_large = worker.clone();
        std::thread::Builder::new()
            .name("prepare-large".into())
            .spawn(move || waiting_large.iter().for_each(|job| of_large.work(job)))?;
        Ok(Self {
            worker,
            jobs: Some(jobs),
            converted: Arc::new(Semaphore::new(CONVERTED_KIB)),
        })
    }

    /// Works on the caller's thread, for simulations and tests.
    pub fn inline(queue: Queue, signer: Arc<Signer>, metrics: Metrics) -> Self {
        Self {
            worker: Arc::new(Worker::new(queue, signer, metrics)),
            jobs: None,
            converted: Arc::new(Semaphore::new(CONVERTED_KIB)),
        }
    }

    /// Signs with other keys from the next message on.
    pub fn sign_with(&self, signer: Signer) {
        self.worker.signer.store(Arc::new(signer));
    }

    /// Reads the unit's message, unless it is still in memory as `message`, and what earlier attempts left of the unit, and
    /// signs it with the keys for its From (a kept signature of the same keys is used again). Waits while all threads are
    /// busy and [`WAITING_JOBS`] wait already; dropped, it is not worked on if it has not begun.
    pub async fn prepare(
        &self,
        unit: UnitKey,
        message: Option<Arc<NewMessage>>,
        now: Timestamp,
    ) -> Result<Prepared, PrepareError> {
        let at_once = message
            .as_ref()
            .is_some_and(|message| self.worker.is_soon_done(message));
        match &self.jobs {
            Some(jobs) if !at_once => {
                let (answer, answered) = oneshot::channel();
                let job = Job::Prepare {
                    unit,
                    message,
                    now,
                    answer,
                };
                jobs.send(job).await.map_err(|_| PrepareError::Stopping)?;
                answered.await.map_err(|_| PrepareError::Stopping)?
            }
            _ => self.worker.prepare_safely(unit, message, now),
        }
    }

    /// The message in 7-bit and signed as such, for a host without 8BITMIME (RFC 6152 §3); as it was where it can't be
    /// said in 7-bit. Waits as [`Preparer::prepare`] does; a large one first waits for room, and is [`PrepareError::Crowded`] if
    /// there is none for a minute.
    pub async fn seven_bit(
        &self,
        id: MessageId,
        mut prepared: Prepared,
        now: Timestamp,
    ) -> Result<Prepared, PrepareError> {
        if let Some(kib) = large::converted_kib(&prepared) {
            let room = timeout(ROOM_PATIENCE, self.converted.clone().acquire_many_owned(kib));
            let room = room.await.map_err(|_| PrepareError::Crowded)?;
            prepared.room = room.ok().map(Arc::new);
        }
        match &self.jobs {
            None => Ok(self.worker.seven_bit_safely(id, prepared, now)),
            Some(jobs) => {
                let (answer, answered) = oneshot::channel();
                let job = Job::SevenBit {
                    id,
                    prepared: Box::new(prepared),
                    now,
                    answer,
                };
                jobs.send(job).await.map_err(|_| PrepareError::Stopping)?;
                answered.await.map_err(|_| PrepareError::Stopping)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
