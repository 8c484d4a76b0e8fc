//! Large bodies, kept as they come in: each chunk is written when it is there, and not synced by itself. The batch that makes
//! the message visible is, and covers what was written before it.
//!
//! The first chunk, with the header section, stays with the message until it is accepted. Those after it stand under an
//! `upload` key from the first of them on. An upload that is dropped takes its chunks away again; one that a crash cut short
//! is named by its key, and is swept when the store is opened.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use mail_core::MessageId;

use crate::intake::Intake;
use crate::keys;
use crate::records::{UploadRecord, decode};
use crate::store::{Batch, Family, Store, StoreError};
use crate::{CommitError, Queue};

/// Uploads swept by one batch.
const SWEPT_AT_ONCE: usize = 64;

impl Queue {
    /// Begins the upload of the message `id`. Nothing is written before its first chunk.
    pub fn upload(&self, id: MessageId) -> Upload {
        Upload {
            intake: self.intake.clone(),
            bytes: 0,
            sums: Vec::new(),
            left: Arc::new(Leftover {
                id,
                chunks: AtomicU32::new(0),
                kept: AtomicBool::new(false),
                begun_at: self.intake.reopened(),
                intake: Arc::downgrade(&self.intake),
            }),
        }
    }
}

/// A body that is coming in, but for its first chunk. What was written is deleted when it is dropped.
pub struct Upload {
    intake: Arc<Intake>,
    bytes: u64,
    sums: Vec<u32>,
    left: Arc<Leftover>,
}

impl Upload {
    /// The message it is part of.
    pub fn id(&self) -> MessageId {
        self.left.id
    }

    /// Octets written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes what comes next, best in pieces of [`keys::CHUNK`]. Waits for the committer, as an accept does, and is refused
    /// as one is: where the disk is full, where it fails, and after `commit_patience`. Then the upload is of no more use.
    pub async fn write(&mut self, mut octets: Bytes) -> Result<(), CommitError> {
        while !octets.is_empty() {
            let chunk = octets.split_to(octets.len().min(keys::CHUNK));
            // The first one is the message's own.
            let number = self.sums.len() as u32 + 1;
            self.left.chunks.store(number, Ordering::Release);
            self.sums.push(crc32c::crc32c(&chunk));
            self.bytes += chunk.len() as u64;
            self.intake.chunk(self.left.clone(), number, chunk).await?;
        }
        Ok(())
    }

    /// The whole, to be accepted with its message.
    pub fn finish(self) -> Uploaded {
        Uploaded(Arc::new(Whole {
            bytes: self.bytes,
            sums: self.sums,
            left: self.left,
        }))
    }
}

/// All of a body behind its first chunk, in the store but no message's yet. Deleted when its last clone is dropped before the
/// message is accepted.
#[derive(Clone, Debug)]
pub struct Uploaded(Arc<Whole>);

#[derive(Debug)]
struct Whole {
    bytes: u64,
    sums: Vec<u32>,
    left: Arc<Leftover>,
}

impl Uploaded {
    /// The message it is part of.
    pub fn id(&self) -> MessageId {
        self.0.left.id
    }

    /// Octets.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// How often the store had been reopened when it was begun: chunks of before are gone.
    pub(crate) fn begun_at(&self) -> u64 {
        self.0.left.begun_at
    }

    /// CRC32C of each chunk.
    pub(crate) fn sums(&self) -> &[u32] {
        &self.0.sums
    }

    /// It is a message's now, or the store failed while it became one: only the next start can tell then.
    pub(crate) fn keep(&self) {
        self.0.left.kept.store(true, Ordering::Release);
    }
}

/// What is to be deleted when the last who might write or keep it is gone.
pub(crate) struct Leftover {
    id: MessageId,
    /// The last chunk that may have been written; 0 for none.
    chunks: AtomicU32,
    kept: AtomicBool,
    /// How often the store had been reopened then.
    begun_at: u64,
    intake: Weak<Intake>,
}

impl Leftover {
    pub(crate) fn begun_at(&self) -> u64 {
        self.begun_at
    }

    pub(crate) fn id(&self) -> MessageId {
        self.id
    }
}

impl std::fmt::Debug for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leftover({})", self.id)
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let chunks = *self.chunks.get_mut();
        if chunks > 0
            && !*self.kept.get_mut()
            && let Some(intake) = self.intake.upgrade()
        {
            intake.abandon(Abandoned { id: self.id, chunks });
        }
    }
}

/// An upload that nobody goes on with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abandoned {
    id: MessageId,
    chunks: u32,
}

impl Abandoned {
    /// How many chunks there are to delete.
    pub(crate) fn chunks(&self) -> u32 {
        self.chunks
    }
}

/// Adds a chunk to a batch, and its name to the `upload` key.
pub(crate) fn put(batch: &mut Batch, id: MessageId, number: u32, chunk: Bytes) {
    let record = UploadRecord { chunks: number };
    batch.put_record(Family::Upload, id.as_bytes(), &record);
    batch.put(Family::Body, &keys::body(id, number), chunk);
}

/// Deletes all there is of an upload.
pub(crate) fn delete(batch: &mut Batch, Abandoned { id, chunks }: Abandoned) {
    for number in 1..=chunks {
        batch.delete(Family::Body, &keys::body(id, number));
    }
    batch.delete(Family::Upload, id.as_bytes());
}

/// Deletes what uploads that never ended have left, as far as it reads: what doesn't takes up space, and is in nobody's way. For a store that
/// nothing else uses yet. Returns how many there were.
pub(crate) fn sweep(store: &dyn Store) -> Result<usize, StoreError> {
    let mut swept = 0;
    loop {
        let mut found = Vec::new();
        store.scan_past(Family::Upload, &[], &[u8::MAX; 17], &mut |key, value| {
            found.push((key.to_vec(), decode::<UploadRecord>(value)));
            found.len() < SWEPT_AT_ONCE
        })?;
        if found.is_empty() {
            return Ok(swept);
        }
        swept += found.len();
        let mut batch = Batch::default();
        for (key, record) in found {
            // Whatever it is, it names no message.
            batch.delete(Family::Upload, &key);
            let Some(id) = keys::parse_upload(&key) else {
                continue;
            };
            let chunks = match record {
                Ok(record) => record.chunks,
                Err(error) => {
                    tracing::error!(%id, %error, "the record of an upload: its chunks are looked for");
                    let (from, to) = (keys::body(id, 1), keys::body(id, u32::MAX));
                    let last = match store.last(Family::Body, &from, &to) {
                        Err(error) if error.is_corruption() => None,
                        last => last?,
                    };
                    last.and_then(|(key, _)| keys::parse_body(&key))
                        .map_or(0, |(_, number)| number)
                }
            };
            delete(&mut batch, Abandoned { id, chunks });
        }
        store.write(&batch, true)?;
    }
}
