//! Taking in a stream of [`crate::stream`].

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use mail_core::{MessageId, Timestamp};

use crate::committer::{Request, read};
use crate::names::{QueueName, RouteGroup};
use crate::records::{EnvelopeRecord, ImportRecord, StateRecord, SuspensionRecord};
use crate::store::Family;
use crate::stream::{
    Counts, ExportedMessage, ExportedQueue, ExportedSuspension, ExportedUnit, Header, Kind, LOST_WAY,
    LeftOut, Reader, StreamError,
};
use crate::upload::Uploaded;
use crate::{CommitError, GroupError, Queue, ReadError, keys};

/// A batch ends at so many messages, or so many octets of bodies.
const AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 4 << 20;

/// What was taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Messages taken in now.
    pub messages: u64,
    /// Their units.
    pub units: u64,
    /// Messages that an earlier run took in, whatever has become of them since.
    pub before: u64,
    /// Messages whose id is in the store already.
    pub already_there: u64,
    /// Suspensions.
    pub suspensions: u64,
    /// What the stream's counts say, its end being there.
    pub counts: Counts,
}

/// Why a stream was not taken in whole. What came before the error is in the store; taken in again, it is passed over.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The store does not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store takes no more.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Ways have no numbers.
    #[error(transparent)]
    Groups(#[from] GroupError),
}

/// A message to be put into the store as it was in another.
#[derive(Debug)]
pub(crate) struct Importing {
    pub(crate) id: MessageId,
    pub(crate) envelope: EnvelopeRecord,
    pub(crate) units: Vec<(ExportedUnit, QueueName, Option<StateRecord>)>,
    /// Its first chunk, if it has any.
    pub(crate) first: Option<Bytes>,
    pub(crate) rest: Option<Uploaded>,
}

/// Messages for one batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) messages: Vec<Importing>,
    /// When, for the journal.
    pub(crate) at: Timestamp,
    /// The stream's key, and how far this gets.
    pub(crate) mark: (Vec<u8>, u64),
}

struct Import<'a> {
    queue: &'a Queue,
    groups: HashMap<String, RouteGroup>,
    batch: Batch,
    bytes: usize,
    done: Imported,
}

impl Queue {
    /// Takes in what [`crate::Closed::export`] wrote, a chunk of a body at a time: ids, attempts, due times, deadlines and
    /// suspensions stay as they were. Nothing else may use the queue. A stream that was taken in half is gone on with from
    /// there; a message whose id is in the store is passed over. Mail whose way was lost with its store waits, or goes by MX if
    /// `lost_by_mx`. `tell` hears of what its exporter left out.
    pub async fn import(
        &self,
        input: impl Read,
        now: Timestamp,
        lost_by_mx: bool,
        tell: &mut dyn FnMut(&LeftOut),
    ) -> Result<Imported, ImportError> {
        let mut reader = Reader::begin(input)?;
        let (Kind::Header, header) = reader.next()? else {
            return Err(reader.damaged("no header").into());
        };
        let header: Header = reader.decode(&header)?;
        let key = keys::import(&header.stream);
        let before = read::<ImportRecord>(&*self.store, Family::Meta, &key)?;
        let mut import = Import {
            queue: self,
            groups: lost_by_mx
                .then(|| (LOST_WAY.to_owned(), RouteGroup(0)))
                .into_iter()
                .collect(),
            batch: Batch {
                mark: (key, 0),
                at: now,
                messages: Vec::new(),
            },
            bytes: 0,
            done: Imported::default(),
        };
        let result = import
            .all(&mut reader, before.map_or(0, |record| record.messages), tell)
            .await;
        // What was whole before a stream broke stays.
        import.flush().await?;
        result.map(|()| import.done)
    }
}

impl Import<'_> {
    async fn all(
        &mut self,
        reader: &mut Reader<impl Read>,
        before: u64,
        tell: &mut dyn FnMut(&LeftOut),
    ) -> Result<(), ImportError> {
        loop {
            let (kind, payload) = reader.next()?;
            match kind {
                Kind::Suspension => {
                    self.suspension(reader.decode(&payload)?, reader).await?;
                }
                Kind::Message => {
                    let message: ExportedMessage = reader.decode(&payload)?;
                    let envelope: EnvelopeRecord = reader.decode(&message.envelope)?;
                    if reader.messages < before {
                        pass(reader, &envelope)?;
                        self.done.before += 1;
                    } else if self.has(message.id)? {
                        pass(reader, &envelope)?;
                        self.done.already_there += 1;
                    } else {
                        self.message(message, envelope, reader).await?;
                    }
                    reader.messages += 1;
                    self.batch.mark.1 = reader.messages.max(before);
                    if self.batch.messages.len() >= AT_ONCE || self.bytes >= BYTES_AT_ONCE {
                        self.flush().await?;
                    }
                }
                Kind::LeftOut => tell(&reader.decode(&payload)?),
                Kind::End => {
                    let counts: Counts = reader.decode(&payload)?;
                    if counts.messages != reader.messages {
                        return Err(reader.damaged("its counts are others").into());
                    }
                    self.done.counts = counts;
                    return Ok(());
                }
                Kind::Header | Kind::Body => return Err(reader.damaged("a frame out of place").into()),
            }
        }
    }

    fn has(&self, id: MessageId) -> Result<bool, ReadError> {
        match self.queue.envelope(id) {
            Ok(None) => Ok(self.batch.messages.iter().any(|message| message.id == id)),
            Ok(Some(_)) | Err(ReadError::Damaged { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn suspension(
        &mut self,
        suspension: ExportedSuspension,
        reader: &Reader<impl Read>,
    ) -> Result<(), ImportError> {
        let mut record: SuspensionRecord = reader.decode(&suspension.record)?;
        if let Some(queue) = suspension.queue {
            // The number is another here: named by all that makes it, but for its way.
            let name = self.name(queue)?;
            record.selector.queue = None;
            record.selector.tenant = Some(name.tenant);
            record.selector.stream = Some(name.stream);
            record.selector.domain = Some(name.domain);
        }
        self.queue.suspend(record).await?;
        self.done.suspensions += 1;
        Ok(())
    }

    async fn message(
        &mut self,
        message: ExportedMessage,
        envelope: EnvelopeRecord,
        reader: &mut Reader<impl Read>,
    ) -> Result<(), ImportError> {
        let mut units = Vec::with_capacity(message.units.len());
        for unit in message.units {
            let there = envelope.units.len() > usize::from(unit.number);
            if !there {
                return Err(reader.damaged("a unit that its envelope does not know").into());
            }
            let state = unit
                .state
                .as_ref()
                .map(|state| reader.decode(state))
                .transpose()?;
            let name = self.name(unit.queue.clone())?;
            units.push((unit, name, state));
        }
        let mut first = None;
        let mut upload = self.queue.upload(message.id);
        for (number, sum) in envelope.chunks.iter().enumerate() {
            let (Kind::Body, chunk) = reader.next()? else {
                return Err(reader.damaged("a chunk is missing").into());
            };
            if crc32c::crc32c(&chunk) != *sum || chunk.len() > keys::CHUNK {
                return Err(reader.damaged("a chunk is another message's").into());
            }
            if number == 0 {
                self.bytes += chunk.len();
                first = Some(chunk);
            } else {
                upload.write(chunk).await?;
            }
        }
        self.done.messages += 1;
        self.done.units += units.len() as u64;
        self.batch.messages.push(Importing {
            id: message.id,
            units,
            first,
            rest: (envelope.chunks.len() > 1).then(|| upload.finish()),
            envelope,
        });
        Ok(())
    }

    /// The queue's name with this store's number for its way.
    fn name(&mut self, queue: ExportedQueue) -> Result<QueueName, ImportError> {
        let group = match queue.group {
            None => RouteGroup(0),
            Some(name) => match self.groups.get(&name) {
                Some(group) => *group,
                None => {
                    let numbers = self.queue.route_groups(&[&name])?;
                    let group = numbers.first().copied().unwrap_or_default();
                    self.groups.insert(name, group);
                    group
                }
            },
        };
        Ok(QueueName {
            route_group: group,
            ..queue.name
        })
    }

    async fn flush(&mut self) -> Result<(), ImportError> {
        self.queue.intake.takes_mail()?;
        let next = Batch {
            messages: Vec::new(),
            at: self.batch.at,
            mark: (self.batch.mark.0.clone(), self.batch.mark.1),
        };
        let batch = std::mem::replace(&mut self.batch, next);
        self.bytes = 0;
        if batch.mark.1 > 0 {
            let batch = Arc::new(batch);
            self.queue
                .intake
                .ask(|reply| Request::Import { batch, reply })
                .await?;
        }
        Ok(())
    }
}

/// Reads past a message's body.
fn pass(reader: &mut Reader<impl Read>, envelope: &EnvelopeRecord) -> Result<(), ImportError> {
    for _ in &envelope.chunks {
        let (Kind::Body, _) = reader.next()? else {
            return Err(reader.damaged("a chunk is missing").into());
        };
    }
    Ok(())
}
