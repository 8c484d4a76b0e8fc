//! What the threads do: a message is read, signed, and put in 7-bit where it has to be.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use dkim_signer::sign::{DomainKey, SignError, Signer, sign_hashed};
use dkim_signer::{Algorithm, Digest, body_hash};
use mail_core::header::{self, BadAddressList};
use mail_core::{Domain, MessageId, Timestamp};
use parking_lot::Mutex;
use queue::{NewMessage, Queue, ReadError, Signature, UnitKey};
use tokio::sync::mpsc;

use super::{Job, Loaded, Metrics, PrepareError, Prepared};
use crate::seven_bit;

/// Messages in memory up to this size are prepared where they are asked for, unless an RSA key signs them. Looking for 8-bit
/// octets, hashing and an Ed25519 signature take some 60 µs at this size; two changes of thread under load take as long.
const AT_ONCE: usize = 64 << 10;

pub(super) struct Worker {
    pub(super) queue: Queue,
    pub(super) signer: ArcSwap<Signer>,
    metrics: Metrics,
}

impl Worker {
    pub(super) fn new(queue: Queue, signer: Arc<Signer>, metrics: Metrics) -> Self {
        Self {
            queue,
            signer: ArcSwap::new(signer),
            metrics,
        }
    }

    /// Whether a message is at hand, small, and signed by no RSA key.
    pub(super) fn is_soon_done(&self, message: &NewMessage) -> bool {
        if message.rest.is_some() || message.body.len() > AT_ONCE {
            return false;
        }
        let signer = self.signer.load();
        let is_quick = |key: &DomainKey| key.key.algorithm() == Algorithm::Ed25519Sha256;
        signer.keys().all(is_quick)
            || from_domain(header::split(&message.body).0)
                .is_ok_and(|domain| signer.keys_for(&domain).iter().all(is_quick))
    }

    pub(super) fn run(&self, waiting: &Mutex<mpsc::Receiver<Job>>, large: &std::sync::mpsc::Sender<Job>) {
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
    pub(super) fn work(&self, job: Job) {
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

    pub(super) fn prepare_safely(
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
    pub(super) fn seven_bit_safely(&self, id: MessageId, prepared: Prepared, now: Timestamp) -> Prepared {
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
    pub(super) fn signature(
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
pub(super) const AS_SENT: &str = "as sent";
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
pub(super) fn head(signature: Option<&Signature>, prefix: &Bytes) -> Bytes {
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
