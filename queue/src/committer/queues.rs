//! Queues as a group changes them: their numbers, their records, and when the first of each is due.

use std::collections::hash_map::Entry;

use mail_core::{MessageId, Timestamp};

use super::{Committer, Group, anew, get, read};
use crate::ReadError;
use crate::index;
use crate::keys;
use crate::message::{NewMessage, NewUnit};
use crate::names::{QueueId, QueueName, UnitKey};
use crate::records::{QueueRecord, unseal};
use crate::store::{Batch, Family, Store};

/// Deletions at a queue's head after which its low-water mark is moved on. Finding the new one passes as many tombstones.
pub(super) const DELETIONS_BEFORE_SEEK: u32 = 1_024;

/// The low-water mark of a queue in which nothing waits.
pub(super) const NOTHING_WAITS: (Timestamp, MessageId) = (Timestamp::MAX, MessageId::LEAST);

pub(super) struct CachedQueue {
    pub(super) record: QueueRecord,
    /// Units and octets that the totals count for it.
    pub(super) counted: (u64, u64),
    pub(super) deletions: u32,
    pub(super) touched: bool,
}

impl CachedQueue {
    /// As the store has it.
    fn new(record: QueueRecord, counted: (u64, u64), deletions: u32) -> Self {
        Self {
            record,
            counted,
            deletions,
            touched: false,
        }
    }

    /// A unit waits in it from now on.
    pub(super) fn waits(&mut self, unit: &UnitKey) {
        self.record.low_water = self.record.low_water.min((unit.due, unit.id));
    }
}

impl Committer {
    /// Moves a queue's catalogue key to its first due time, or to `until` if that is later.
    pub(super) fn rest(
        &mut self,
        group: &mut Group,
        id: QueueId,
        until: Option<Timestamp>,
    ) -> Result<(), ReadError> {
        // What this group does to the queue is not in the store yet. What it adds has lowered the key already; what it takes
        // away makes the first due time told here too early: a lower bound still, but none to be moved up to.
        let may_raise = !self.touched.contains(&id);
        let queue = self.cached(group, id)?;
        let (mark, wake) = (queue.record.low_water, queue.record.wake);
        let first = match first_due(&*self.store, id, mark) {
            Ok(first) => first.map(|(due, _)| due),
            // It may have units behind what does not read.
            Err(ReadError::Damaged { .. }) => Some(mark.0),
            Err(error) => return Err(error),
        };
        let (Some(first), Some(wake)) = (first, wake) else {
            return Ok(());
        };
        let to = first.max(until.unwrap_or(first));
        if to < wake || (to > wake && may_raise) {
            group.batch.delete(Family::Queues, &keys::catalogue(wake, id));
            group
                .batch
                .put_copy(Family::Queues, &keys::catalogue(to, id), &[]);
            self.queue_mut(group, id)?.record.wake = Some(to);
        }
        Ok(())
    }

    pub(super) fn queue_number(
        &mut self,
        group: &mut Group,
        message: &NewMessage,
        unit: &NewUnit,
    ) -> Result<QueueId, ReadError> {
        let name = QueueName {
            tenant: message.tenant.clone(),
            stream: message.stream.clone(),
            route_group: unit.route_group,
            domain: unit.domain.clone(),
        };
        self.number(group, name)
    }

    pub(super) fn number(&mut self, group: &mut Group, name: QueueName) -> Result<QueueId, ReadError> {
        if let Some(&id) = self.numbers.get(&name) {
            return Ok(id);
        }
        let key = keys::directory(&name);
        let id = match get(&*self.store, Family::Queues, &key)? {
            Some(octets) => match unseal(&octets) {
                Ok(number) => Some(QueueId(u64::from_be_bytes(number))),
                Err(_) => self.mend_directory(group, &name, &key)?,
            },
            None => None,
        };
        let id = match id {
            Some(id) => id,
            None => {
                let id = QueueId(self.counters.next_queue);
                self.counters.next_queue += 1;
                group.batch.put_sealed(Family::Queues, &key, &id.0.to_be_bytes());
                index::add(&mut group.batch, id, &name);
                let record = QueueRecord {
                    name: name.clone(),
                    count: 0,
                    bytes: 0,
                    low_water: NOTHING_WAITS,
                    wake: None,
                    aside: 0,
                };
                let mut queue = CachedQueue::new(record, (0, 0), 0);
                queue.touched = true;
                self.queues.insert(id, queue);
                self.touched.push(id);
                id
            }
        };
        self.numbers.insert(name, id);
        Ok(id)
    }

    /// The queue's record, to be written with the group.
    pub(super) fn queue_mut(
        &mut self,
        group: &mut Group,
        id: QueueId,
    ) -> Result<&mut CachedQueue, ReadError> {
        let (queue, touched) = self.cached_and_touched(group, id)?;
        if !std::mem::replace(&mut queue.touched, true) {
            touched.push(id);
        }
        Ok(queue)
    }

    /// The queue's record as it is.
    pub(super) fn cached(&mut self, group: &mut Group, id: QueueId) -> Result<&mut CachedQueue, ReadError> {
        Ok(self.cached_and_touched(group, id)?.0)
    }

    pub(super) fn cached_and_touched(
        &mut self,
        group: &mut Group,
        id: QueueId,
    ) -> Result<(&mut CachedQueue, &mut Vec<QueueId>), ReadError> {
        let queue = match self.queues.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let record: QueueRecord = match read(&*self.store, Family::Queues, &keys::record(id)) {
                    Ok(Some(record)) => record,
                    Ok(None) => return Err(ReadError::damaged("queues", &keys::record(id), "absent")),
                    Err(damage @ ReadError::Damaged { .. }) => {
                        self.damage.met(&damage);
                        // What the totals count for it is not known: the next start counts all anew.
                        group.batch.delete(Family::Meta, keys::INDEX);
                        anew::queue(&*self.store, &mut group.batch, id, damage)?
                    }
                    Err(error) => return Err(error),
                };
                let counted = (record.count, record.bytes);
                // As if some had gone before: the mark moves on by and by, though queues are forgotten and read again.
                let deletions = (self.counters.group % u64::from(DELETIONS_BEFORE_SEEK)) as u32;
                entry.insert(CachedQueue::new(record, counted, deletions))
            }
        };
        Ok((queue, &mut self.touched))
    }
}

/// When the first unit of a queue from the mark on is due, and whose it is.
pub(super) fn first_due(
    store: &dyn Store,
    queue: QueueId,
    (due, id): (Timestamp, MessageId),
) -> Result<Option<(Timestamp, MessageId)>, ReadError> {
    let from = keys::due(&UnitKey {
        queue,
        due,
        id,
        unit: 0,
    });
    let mut first = None;
    store.scan(Family::Due, &from, &keys::due_end(queue), &mut |key, _| {
        first = keys::parse_due(key);
        false
    })?;
    Ok(first.map(|unit| (unit.due, unit.id)))
}

/// When the first of the units that a batch adds to a queue is due, and whose it is.
pub(super) fn added_due(batch: &Batch, queue: QueueId) -> Option<(Timestamp, MessageId)> {
    let added = batch
        .writes()
        .filter(|write| write.family == Family::Due && write.value.is_some());
    added
        .filter_map(|write| keys::parse_due(write.key))
        .filter(|unit| unit.queue == queue)
        .map(|unit| (unit.due, unit.id))
        .min()
}

/// Takes a queue out of the catalogue where nothing in it waits for a time: it is empty, or all of it is set aside.
pub(super) fn sleep_if_nothing_waits(group: &mut Group, queue: &mut CachedQueue, id: QueueId) {
    if queue.record.count > queue.record.aside {
        return;
    }
    queue.record.low_water = NOTHING_WAITS;
    queue.deletions = 0;
    if let Some(wake) = queue.record.wake.take() {
        group.batch.delete(Family::Queues, &keys::catalogue(wake, id));
    }
}

pub(super) fn lower_wake(group: &mut Group, queue: &mut CachedQueue, id: QueueId, due: Timestamp) {
    match queue.record.wake {
        Some(wake) if wake <= due => return,
        Some(wake) => group.batch.delete(Family::Queues, &keys::catalogue(wake, id)),
        None => {}
    }
    group
        .batch
        .put_copy(Family::Queues, &keys::catalogue(due, id), &[]);
    queue.record.wake = Some(due);
}
