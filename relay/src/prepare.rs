//! What a message needs before it goes on the wire, done off the reactor: it is read from the queue and signed.
//!
//! Reading blocks and an RSA signature takes half a millisecond, so plain threads do both. Their channel is bounded: where it is
//! full, whoever wants a message waits, and deliveries go no faster than signatures are made. What needs neither is done where it
//! is asked for: to hand it to a thread and back would cost more than the work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::Registry;
use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use dkim_signer::sign::{DomainKey, DuplicateKey, Selector, SignError, Signer, sign_hashed};
use dkim_signer::{Algorithm, Digest, KeyError, PrivateKey, body_hash};
use mail_core::header::{self, BadAddressList};
use mail_core::{
    BodyType, Domain, DsnOptions, MessageId, Recipient, ReversePath, Timestamp, TransferOptions,
};
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, exponential_buckets};
use queue::{EnvelopeRecord, NewMessage, Queue, ReadError, Signature, StateRecord, UnitKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::config::settings::DkimKey;
use crate::report::Original;
use crate::seven_bit;

pub(crate) mod large;

pub use large::{Reader, Rest};

/// Jobs that wait for a thread, about 100 B each. Full means that signing is the slow part: the caller waits.
pub const WAITING_JOBS: usize = 64;

/// Messages in memory up to this size are prepared where they are asked for, unless an RSA key signs them. Looking for 8-bit
/// octets, hashing and an Ed25519 signature take some 60 µs at this size; two changes of thread under load take as long.
const AT_ONCE: usize = 64 << 10;

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

/// What signing counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    signatures: IntCounterVec,
    unsigned: IntCounter,
    seconds: Histogram,
    conversions: IntCounterVec,
}

impl Metrics {
    /// Makes and registers the series.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let signatures = IntCounterVec::new(
            Opts::new(
                "postrider_dkim_signatures_total",
                "DKIM signatures by algorithm and result: made, kept (of an earlier attempt), failed. Messages that no key \
                 signs count once as algorithm none, result unsigned. Alert on any failed.",
            ),
            &["algorithm", "result"],
        )?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new(
                "postrider_dkim_seconds",
                "Signing one message with all its keys, hashing its body included, in seconds.",
            )
            .buckets(exponential_buckets(0.000_1, 2.0, 14)?),
        )?;
        let conversions = IntCounterVec::new(
            Opts::new(
                "postrider_conversions_total",
                "Attempts at 8-bit messages for hosts without 8BITMIME by result: converted to 7-bit, or impossible (the \
                 message bounces, 5.6.3).",
            ),
            &["result"],
        )?;
        registry.register(Box::new(signatures.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(conversions.clone()))?;
        Ok(Self {
            conversions,
            unsigned: signatures.with_label_values(&["none", "unsigned"]),
            signatures,
            seconds,
        })
    }

    fn count(&self, keys: &[DomainKey], result: &str) {
        for key in keys {
            self.signatures
                .with_label_values(&[key.key.algorithm().signature_tag(), result])
                .inc();
        }
    }
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

struct Worker {
    queue: Queue,
    signer: ArcSwap<Signer>,
    metrics: Metrics,
}

impl Worker {
    fn new(queue: Queue, signer: Arc<Signer>, metrics: Metrics) -> Self {
        Self {
            queue,
            signer: ArcSwap::new(signer),
            metrics,
        }
    }

    /// Whether a message is at hand, small, and signed by no RSA key.
    fn is_soon_done(&self, message: &NewMessage) -> bool {
        if message.rest.is_some() || message.body.len() > AT_ONCE {
            return false;
        }
        let signer = self.signer.load();
        let is_quick = |key: &DomainKey| key.key.algorithm() == Algorithm::Ed25519Sha256;
        signer.keys().all(is_quick)
            || from_domain(header::split(&message.body).0)
                .is_ok_and(|domain| signer.keys_for(&domain).iter().all(is_quick))
    }

    fn run(&self, waiting: &Mutex<mpsc::Receiver<Job>>, large: &std::sync::mpsc::Sender<Job>) {
        loop {
            // One thread waits for the next job, the others for its place.
            let next = waiting.lock().blocking_recv();
            let Some(job) = next else { return };
            if let Some(job) = self.sort(job) {
                // Its thread outlives this one.
                let _ = large.send(job);
            }
        }
    }

    /// Does what is soon done; gives back what concerns a large message.
    fn sort(&self, job: Job) -> Option<Job> {
        match job {
            Job::Prepare {
                unit,
                message,
                now,
                answer,
            } if !answer.is_closed() => match self.safely(unit.id, || self.load(unit.id, message)) {
                Ok(loaded) if loaded.is_large() => {
                    return Some(Job::Ready {
                        unit,
                        loaded,
                        now,
                        answer,
                    });
                }
                Ok(loaded) => {
                    let _ = answer.send(self.safely(unit.id, || self.ready(unit, loaded, now)));
                }
                Err(error) => drop(answer.send(Err(error))),
            },
            Job::SevenBit { ref prepared, .. } if prepared.rest.is_some() => return Some(job),
            job => self.work(job),
        }
        None
    }

    /// Nobody may want to know any more.
    fn work(&self, job: Job) {
        match job {
            Job::Prepare {
                unit,
                message,
                now,
                answer,
            } => {
                if !answer.is_closed() {
                    let _ = answer.send(self.prepare_safely(unit, message, now));
                }
            }
            Job::Ready {
                unit,
                loaded,
                now,
                answer,
            } => {
                if !answer.is_closed() {
                    let _ = answer.send(self.safely(unit.id, || self.ready(unit, loaded, now)));
                }
            }
            Job::SevenBit {
                id,
                prepared,
                now,
                answer,
            } => {
                if !answer.is_closed() {
                    let _ = answer.send(self.seven_bit_safely(id, *prepared, now));
                }
            }
            Job::Chunk { rest, number, answer } => {
                if !answer.is_closed() {
                    let _ = answer.send(self.chunk(&rest, number));
                }
            }
        }
    }

    fn prepare_safely(
        &self,
        unit: UnitKey,
        message: Option<Arc<NewMessage>>,
        now: Timestamp,
    ) -> Result<Prepared, PrepareError> {
        self.safely(unit.id, || self.ready(unit, self.load(unit.id, message)?, now))
    }

    /// A message that brings out a mistake of ours must not take the thread, and all other mail, with it.
    fn safely<T>(
        &self,
        id: MessageId,
        work: impl FnOnce() -> Result<T, PrepareError>,
    ) -> Result<T, PrepareError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            tracing::error!(%id, "preparing this message panicked");
            Err(PrepareError::Panicked)
        })
    }

    fn load(&self, id: MessageId, message: Option<Arc<NewMessage>>) -> Result<Loaded, PrepareError> {
        if let Some(message) = message.filter(|message| message.rest.is_none()) {
            return Ok(Loaded::Memory(message));
        }
        let envelope = self.queue.envelope(id)?.ok_or(PrepareError::Gone)?;
        Ok(Loaded::Record(id, Box::new(envelope)))
    }

    fn ready(&self, unit: UnitKey, message: Loaded, now: Timestamp) -> Result<Prepared, PrepareError> {
        let (message, body, state) = match message {
            Loaded::Record(id, envelope) if envelope.chunks.len() > 1 => {
                let state = self.queue.state(id, unit.unit)?;
                return self.ready_large((id, envelope), state, now);
            }
            Loaded::Memory(message) => {
                let body = message.body.clone();
                // It is in memory from its accept to its first claim, so nothing has become of it yet.
                (Loaded::Memory(message), body, None)
            }
            Loaded::Record(id, envelope) => {
                let body = self.queue.body(id, &envelope)?;
                let state = self.queue.state(id, unit.unit)?;
                (Loaded::Record(id, envelope), body, state)
            }
        };
        let body = sabotaged(body);
        let kept = state.as_ref().and_then(|state| state.signature.as_ref());
        let prefix = message.prefix();
        let signature = self.whole_signature(unit.id, prefix, (AS_SENT, &body), kept, now);
        let head = head(signature.as_ref(), prefix);
        Ok(Prepared {
            eight_bit: !prefix.is_ascii() || !body.is_ascii(),
            utf8_header: message.smtputf8() && !header::split(&body).0.is_ascii(),
            message,
            state,
            head,
            body,
            rest: None,
            signature,
            room: None,
        })
    }

    /// As [`Worker::prepare_safely`]; a message that brings out a mistake stays 8-bit.
    fn seven_bit_safely(&self, id: MessageId, prepared: Prepared, now: Timestamp) -> Prepared {
        let convert = || match &prepared.rest {
            Some(rest) => self.convert_large(&prepared.body, rest),
            None => Ok(seven_bit::convert(&prepared.body)?),
        };
        let converted = catch_unwind(AssertUnwindSafe(convert));
        let result = match converted {
            Ok(Ok(body)) => {
                self.metrics.conversions.with_label_values(&["converted"]).inc();
                return self.in_seven_bit(id, prepared, body.into(), now);
            }
            Ok(Err(why)) => why.to_string(),
            Err(_) => "a mistake of the relay's".to_owned(),
        };
        self.metrics.conversions.with_label_values(&["impossible"]).inc();
        tracing::info!(%id, why = result, "not converted to 7-bit");
        prepared
    }

    fn in_seven_bit(&self, id: MessageId, prepared: Prepared, body: Bytes, now: Timestamp) -> Prepared {
        let kept = prepared.state.as_ref().and_then(|state| state.signature.as_ref());
        let prefix = prepared.message.prefix().clone();
        let signature = self.whole_signature(id, &prefix, (SEVEN_BIT, &body), kept, now);
        Prepared {
            eight_bit: !prefix.is_ascii(),
            head: head(signature.as_ref(), &prefix),
            body,
            rest: None,
            signature,
            ..prepared
        }
    }

    /// The signature of a message that is at hand as a whole.
    fn whole_signature(
        &self,
        id: MessageId,
        prefix: &[u8],
        (form, message): (&str, &[u8]),
        kept: Option<&Signature>,
        now: Timestamp,
    ) -> Option<Signature> {
        let (headers, body) = header::split(message);
        let hash = || Ok(body_hash(body));
        // The hash is made without reading anything.
        self.signature(id, &[prefix, headers], form, kept, now, hash)
            .unwrap_or_default()
    }

    /// A message that can't be signed goes unsigned: whether that is good enough is for its receiver to say. `headers` are
    /// our fields, then the client's; `hash` is asked for where a signature is made. An error is that of `hash`.
    fn signature(
        &self,
        id: MessageId,
        headers: &[&[u8]; 2],
        form: &str,
        kept: Option<&Signature>,
        now: Timestamp,
        hash: impl FnOnce() -> Result<Digest, ReadError>,
    ) -> Result<Option<Signature>, ReadError> {
        let signer = self.signer.load();
        let keys = match from_domain(headers[1]) {
            Ok(domain) => signer.keys_for(&domain),
            Err(error) => {
                tracing::debug!(%id, %error, "not signed");
                &[]
            }
        };
        if keys.is_empty() {
            self.metrics.unsigned.inc();
            return Ok(None);
        }
        let made_with = made_with(form, keys);
        if let Some(kept) = kept.filter(|kept| kept.made_with == made_with) {
            self.metrics.count(keys, "kept");
            return Ok(Some(kept.clone()));
        }
        let begun = Instant::now();
        let made = sign_hashed(keys, headers, &hash()?, now);
        self.metrics.seconds.observe(begun.elapsed().as_secs_f64());
        Ok(match made {
            Ok(fields) => {
                self.metrics.count(keys, "made");
                Some(Signature {
                    made_with,
                    fields: fields.into(),
                })
            }
            Err(error) => {
                self.metrics.count(keys, "failed");
                match error {
                    SignError::Key(_) => tracing::error!(%id, %error, "not signed"),
                    SignError::NoFrom | SignError::TooManyFields => tracing::warn!(%id, %error, "not signed"),
                }
                None
            }
        })
    }
}

/// The body's forms: the client's own, and the one for hosts without 8BITMIME.
const AS_SENT: &str = "as sent";
const SEVEN_BIT: &str = "7-bit";

/// As it was; but in CI's control of promise 6 (docs/promises.md) without the blanks at the end of lines.
fn sabotaged(body: Bytes) -> Bytes {
    if !crate::sabotage::is_on("strip-blanks") {
        return body;
    }
    let mut stripped = Vec::with_capacity(body.len());
    for line in body.split_inclusive(|&octet| octet == b'\n') {
        stripped.extend_from_slice(line.trim_ascii_end());
        stripped.extend_from_slice(b"\r\n");
    }
    stripped.into()
}

/// The signatures, then the fields that we add.
fn head(signature: Option<&Signature>, prefix: &Bytes) -> Bytes {
    let Some(signature) = signature else {
        return prefix.clone();
    };
    let mut head = BytesMut::with_capacity(signature.fields.len() + prefix.len());
    head.extend_from_slice(&signature.fields);
    head.extend_from_slice(prefix);
    head.freeze()
}

/// What a kept signature was made with: the keys, and the form of the body.
fn made_with(form: &str, keys: &[DomainKey]) -> String {
    let mut text = String::from(form);
    for key in keys {
        text.push_str(&format!(
            " {}/{}/{}",
            key.domain,
            key.selector,
            key.key.fingerprint()
        ));
    }
    text
}

/// Why no key can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NoSender {
    #[error("a message has one From; this one has {0}")]
    Fields(usize),
    #[error("From: {0}")]
    Address(#[from] BadAddressList),
}

/// The domain of the first address in From, by which DMARC judges.
fn from_domain(headers: &[u8]) -> Result<Domain, NoSender> {
    let mut fields = header::fields(headers).filter(|field| field.is("From"));
    let from = fields.next().ok_or(NoSender::Fields(0))?;
    match fields.count() {
        0 => {
            let addresses = header::addresses(from.value())?;
            let first = addresses.first().ok_or(BadAddressList::None)?;
            Ok(first.domain().clone())
        }
        more => Err(NoSender::Fields(1 + more)),
    }
}

/// Why the keys of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BadKey {
    /// The selector is none.
    #[error("dkim: {domain}: {selector:?}: {cause}")]
    Selector {
        /// Whose key.
        domain: Domain,
        /// As configured.
        selector: String,
        /// What is wrong with it.
        #[source]
        cause: dkim_signer::sign::BadSelector,
    },
    /// The file holds no key that can be used, or others can read it.
    #[error("dkim: {domain}: {file}: {cause}")]
    File {
        /// Whose key.
        domain: Domain,
        /// Where it should be.
        file: String,
        /// What is wrong with it.
        #[source]
        cause: KeyError,
    },
    /// Two keys for the same purpose.
    #[error("dkim: {0}")]
    Duplicate(#[from] DuplicateKey),
}

/// Reads and parses all configured keys; of several mistakes all are told.
pub fn load_keys(keys: &[DkimKey]) -> Result<Signer, Vec<BadKey>> {
    let mut wrong = Vec::new();
    let mut loaded = Vec::new();
    for key in keys {
        match load_key(key) {
            Ok(key) => loaded.push(key),
            Err(error) => wrong.push(error),
        }
    }
    match Signer::new(loaded) {
        Ok(signer) if wrong.is_empty() => Ok(signer),
        Ok(_) => Err(wrong),
        Err(duplicate) => {
            wrong.push(duplicate.into());
            Err(wrong)
        }
    }
}

/// Reads and parses one.
pub fn load_key(key: &DkimKey) -> Result<DomainKey, BadKey> {
    let selector: Selector = key.selector.parse().map_err(|cause| BadKey::Selector {
        domain: key.domain.clone(),
        selector: key.selector.clone(),
        cause,
    })?;
    let private = PrivateKey::load(&key.file).map_err(|cause| BadKey::File {
        domain: key.domain.clone(),
        file: key.file.display().to_string(),
        cause,
    })?;
    Ok(DomainKey {
        domain: key.domain.clone(),
        selector,
        key: Arc::new(private),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use dkim_signer::Algorithm;
    use dkim_signer::key::generate;
    use mail_core::BodyType;
    use queue::store::{Batch, Family, MemoryStore, Store};
    use queue::{Again, End, NewUnit, Origin, RouteGroup, Settle, StillOpen};

    use super::*;

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
        let preparer =
            Preparer::threaded(world.queue.clone(), signer.clone(), world.metrics.clone(), 2).unwrap();
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
}
