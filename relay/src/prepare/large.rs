//! Large messages: of each no more than a few chunks are in memory, whatever its size.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dkim_signer::BodyHasher;
use mail_core::{MessageId, header};
use queue::{EnvelopeRecord, Queue, ReadError, StateRecord};
use tokio::sync::oneshot;

use super::worker::{AS_SENT, Worker, head};
use super::{Job, Loaded, PrepareError, Prepared, Preparer};
use crate::seven_bit::{self, Stays};

/// What follows [`Prepared::body`] of a large message: chunks in the queue.
#[derive(Clone, Debug)]
pub struct Rest {
    id: MessageId,
    /// Of each chunk, the first, which is at hand, too.
    sums: Arc<[u32]>,
    bytes: u64,
}

impl Rest {
    /// Octets.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Chunk `number` of them, from 0; `None` behind the last. Blocks.
    fn read(&self, queue: &Queue, number: u32) -> Result<Option<Bytes>, ReadError> {
        // The first one of all is at hand.
        let number = number.saturating_add(1);
        match self.sums.get(number as usize) {
            Some(&sum) => queue.body_chunk(self.id, number, sum).map(Some),
            None => Ok(None),
        }
    }

    fn each(&self, queue: &Queue, mut take: impl FnMut(&[u8])) -> Result<(), ReadError> {
        let mut number = 0;
        while let Some(chunk) = self.read(queue, number)? {
            take(&chunk);
            number += 1;
        }
        Ok(())
    }
}

/// Reads a [`Rest`] off the reactor.
#[derive(Clone)]
pub struct Reader {
    preparer: Preparer,
    rest: Rest,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rest.fmt(f)
    }
}

impl Reader {
    /// Octets there are to read.
    pub fn bytes(&self) -> u64 {
        self.rest.bytes
    }

    /// Chunk `number`, from 0, verified; `None` behind the last. Waits as [`Preparer::prepare`] does.
    pub async fn chunk(&self, number: u32) -> Result<Option<Bytes>, PrepareError> {
        match &self.preparer.jobs {
            None => Ok(self.rest.read(&self.preparer.worker.queue, number)?),
            Some(jobs) => {
                let (answer, answered) = oneshot::channel();
                let rest = self.rest.clone();
                let job = Job::Chunk { rest, number, answer };
                jobs.send(job).await.map_err(|_| PrepareError::Stopping)?;
                Ok(answered.await.map_err(|_| PrepareError::Stopping)??)
            }
        }
    }
}

impl Preparer {
    /// To send what follows a message's first chunk.
    pub fn reader(&self, rest: Rest) -> Reader {
        Reader {
            preparer: self.clone(),
            rest,
        }
    }
}

impl Loaded {
    /// It is more than one chunk: preparing it takes longer than that of others.
    pub(super) fn is_large(&self) -> bool {
        matches!(self, Self::Record(_, envelope) if envelope.chunks.len() > 1)
    }
}

impl Worker {
    pub(super) fn chunk(&self, rest: &Rest, number: u32) -> Result<Option<Bytes>, ReadError> {
        rest.read(&self.queue, number)
    }

    /// As `ready` does it for others. All of the message is read once, so that nothing of a damaged one is sent.
    pub(super) fn ready_large(
        &self,
        (id, envelope): (MessageId, Box<EnvelopeRecord>),
        state: Option<StateRecord>,
        now: mail_core::Timestamp,
    ) -> Result<Prepared, PrepareError> {
        let first_sum = envelope.chunks.first().copied().unwrap_or_default();
        let first = self.queue.body_chunk(id, 0, first_sum)?;
        let rest = Rest {
            id,
            sums: envelope.chunks.as_slice().into(),
            bytes: envelope.body_bytes.saturating_sub(first.len() as u64),
        };
        let prefix = envelope.prefix.clone();
        let (headers, begin) = header::split(&first);
        let mut is_ascii = prefix.is_ascii() && first.is_ascii();
        let mut was_read = false;
        let kept = state.as_ref().and_then(|state| state.signature.as_ref());
        let signature = self.signature(id, &[&prefix, headers], AS_SENT, kept, now, || {
            let mut hasher = BodyHasher::default();
            hasher.update(begin);
            was_read = true;
            rest.each(&self.queue, |chunk| {
                is_ascii &= chunk.is_ascii();
                hasher.update(chunk);
            })?;
            Ok(hasher.finish())
        })?;
        if !was_read {
            rest.each(&self.queue, |chunk| is_ascii &= chunk.is_ascii())?;
        }
        Ok(Prepared {
            eight_bit: !is_ascii,
            utf8_header: envelope.smtputf8 && !headers.is_ascii(),
            head: head(signature.as_ref(), &prefix),
            body: first,
            rest: Some(rest),
            message: Loaded::Record(id, envelope),
            state,
            signature,
            room: None,
        })
    }

    /// The message in 7-bit, where it is not too large for that.
    pub(super) fn convert_large(&self, first: &[u8], rest: &Rest) -> Result<Vec<u8>, NotConverted> {
        let bytes = first.len() as u64 + rest.bytes;
        if bytes > seven_bit::MAX_CONVERTED as u64 {
            return Err(Stays::Large.into());
        }
        let mut whole = BytesMut::with_capacity(usize::try_from(bytes).unwrap_or(0));
        whole.extend_from_slice(first);
        rest.each(&self.queue, |chunk| whole.extend_from_slice(chunk))?;
        Ok(seven_bit::convert(&whole)?)
    }
}

/// What a large message takes in 7-bit at the most, in KiB; `None` where it won't be converted.
pub(super) fn converted_kib(prepared: &Prepared) -> Option<u32> {
    let bytes = prepared.body.len() as u64 + prepared.rest.as_ref()?.bytes;
    // Base64 makes 78 octets of 57; quoted-printable up to two of one, where all lines end in blanks.
    let most = bytes.div_ceil(512);
    u32::try_from(most)
        .ok()
        .filter(|_| bytes <= seven_bit::MAX_CONVERTED as u64)
}

/// Why a message stays as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotConverted {
    #[error(transparent)]
    Stays(#[from] Stays),
    #[error(transparent)]
    Read(#[from] ReadError),
}

#[cfg(test)]
pub(crate) mod tests;
