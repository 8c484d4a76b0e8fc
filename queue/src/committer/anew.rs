//! Records that say again what others say are made anew from those when they do not verify.

use std::collections::HashSet;

use mail_core::MessageId;

use super::queues::NOTHING_WAITS;
use super::{Committer, Group, read};
use crate::ReadError;
use crate::keys;
use crate::names::{QueueId, QueueName, UnitKey};
use crate::records::{AsideRecord, DueRecord, EnvelopeRecord, QueueRecord, StateRecord, decode, unseal};
use crate::store::{Batch, Family, Store};

impl Committer {
    /// The number that a queue had whose entry in the directory does not verify; `None` where no queue has its name: it gets
    /// another then.
    pub(super) fn mend_directory(
        &self,
        group: &mut Group,
        name: &QueueName,
        key: &[u8],
    ) -> Result<Option<QueueId>, ReadError> {
        let damage = ReadError::damaged("queues", key, "checksum");
        self.damage.met(&damage);
        let mut found = None;
        let (from, to) = (keys::record(QueueId(0)), keys::record(QueueId(u64::MAX)));
        self.store
            .scan_past(Family::Queues, &from, &to, &mut |key, value| {
                if decode::<QueueRecord>(value).is_ok_and(|record| record.name == *name) {
                    found = keys::number(&key[1..]).map(QueueId);
                }
                found.is_none()
            })?;
        tracing::error!(error = %damage, queue = found.map(|id| id.0), "a queue's entry in the directory is made anew");
        if let Some(id) = found {
            group.batch.put_sealed(Family::Queues, key, &id.0.to_be_bytes());
        }
        Ok(found)
    }
}

/// A queue's record: its name by the directory, its counts by what is in it. Its key in the catalogue is written anew. Reads
/// all of the queue, once.
pub(super) fn queue(
    store: &dyn Store,
    batch: &mut Batch,
    id: QueueId,
    damage: ReadError,
) -> Result<QueueRecord, ReadError> {
    let mut name = None;
    store.scan_past(Family::Queues, b"d", b"e", &mut |key, value| {
        if unseal(value).is_ok_and(|number| u64::from_be_bytes(number) == id.0) {
            name = keys::parse_directory(key);
        }
        name.is_none()
    })?;
    let name = name.ok_or(damage.clone())?;
    let mut record = QueueRecord {
        name,
        count: 0,
        bytes: 0,
        low_water: NOTHING_WAITS,
        wake: None,
        aside: 0,
    };
    let from = id.0.to_be_bytes();
    store.scan_past(Family::Due, &from, &keys::due_end(id), &mut |key, value| {
        record.count += 1;
        record.bytes += decode::<DueRecord>(value).map_or(0, |due| due.bytes);
        if let (NOTHING_WAITS, Some(first)) = (record.low_water, keys::parse_due(key)) {
            record.low_water = (first.due, first.id);
        }
        true
    })?;
    store.scan_past(Family::Aside, b"u", &keys::aside_end(), &mut |_, value| {
        if let Some(aside) = decode::<AsideRecord>(value)
            .ok()
            .filter(|aside| aside.queue == id)
        {
            record.count += 1;
            record.aside += 1;
            record.bytes += aside.was.bytes;
        }
        true
    })?;
    store.scan_past(Family::Queues, b"c", b"d", &mut |key, _| {
        if keys::parse_catalogue(key).is_some_and(|(_, of)| of == id) {
            batch.delete(Family::Queues, key);
        }
        true
    })?;
    if record.low_water < NOTHING_WAITS {
        let (wake, _) = record.low_water;
        record.wake = Some(wake);
        batch.put_copy(Family::Queues, &keys::catalogue(wake, id), &[]);
    }
    tracing::error!(error = %damage, queue = %id, count = record.count, "a queue's record is made anew");
    Ok(record)
}

/// How many units of a message have not ended: those that wait, or are set aside.
pub(super) fn open_units(
    store: &dyn Store,
    gone: &HashSet<UnitKey>,
    id: MessageId,
    damage: ReadError,
) -> Result<u16, ReadError> {
    let Some(envelope) = read::<EnvelopeRecord>(store, Family::Envelope, id.as_bytes())? else {
        return Err(damage);
    };
    let mut open = 0;
    for (number, unit) in (0..u16::MAX).zip(&envelope.units) {
        let due = match read::<StateRecord>(store, Family::State, &keys::state(id, number)) {
            Ok(state) => state.map_or(unit.due, |state| state.due),
            // It waits, or it would have no state. Counted though it has ended, its message's body outlives it.
            Err(ReadError::Damaged { .. }) => {
                open += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let key = UnitKey {
            queue: unit.queue,
            due,
            id,
            unit: number,
        };
        let waits = store.get(Family::Due, &keys::due(&key))?.is_some();
        let aside = store.get(Family::Aside, &keys::aside(id, number))?.is_some();
        if (waits || aside) && !gone.contains(&key) {
            open += 1;
        }
    }
    tracing::error!(%id, error = %damage, open, "a message's open units are counted anew");
    Ok(open)
}
