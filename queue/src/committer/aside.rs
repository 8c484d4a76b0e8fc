//! What is set aside: units that can't be worked on, and records that do not verify.

use super::{Committer, Group, get, lower_wake, read, sleep_if_nothing_waits};
use crate::ReadError;
use crate::aside::{Aside, Met};
use crate::keys;
use crate::names::UnitKey;
use crate::records::{
    AsideCause, AsideRecord, DamagedRecord, DueRecord, EnvelopeRecord, Event, StateRecord, decode,
};
use crate::store::{Family, StoreError};

impl Committer {
    /// Where a claim stands: what its `due` key holds, and its record where it is set aside; `None` where the claim is void.
    ///
    /// What does not read is put together from what does: a unit that could not be settled would be sent again after each
    /// restart.
    pub(super) fn standing(
        &self,
        group: &Group,
        unit: &UnitKey,
    ) -> Result<Option<(DueRecord, Option<AsideRecord>)>, ReadError> {
        if group.gone.contains(unit) {
            return Ok(None);
        }
        match read(&*self.store, Family::Due, &keys::due(unit)) {
            Ok(Some(due)) => return Ok(Some((due, None))),
            Ok(None) => {}
            Err(damage @ ReadError::Damaged { .. }) => {
                self.damage.met(&damage);
                tracing::error!(id = %unit.id, error = %damage, "put together from other records");
                return Ok(Some((self.due_again(unit)?, None)));
            }
            Err(error) => return Err(error),
        }
        match read::<AsideRecord>(&*self.store, Family::Aside, &keys::aside(unit.id, unit.unit)) {
            Ok(Some(record)) if (record.queue, record.due) == (unit.queue, unit.due) => {
                Ok(Some((record.was.clone(), Some(record))))
            }
            Ok(_) => Ok(None),
            Err(damage @ ReadError::Damaged { .. }) => {
                self.damage.met(&damage);
                let was = self.due_again(unit)?;
                let record = AsideRecord {
                    since: unit.id.created(),
                    cause: AsideCause::Damaged,
                    why: damage.to_string(),
                    queue: unit.queue,
                    due: unit.due,
                    was: was.clone(),
                };
                Ok(Some((was, Some(record))))
            }
            Err(error) => Err(error),
        }
    }

    /// What a unit's `due` key held, as far as it can be told.
    fn due_again(&self, unit: &UnitKey) -> Result<DueRecord, ReadError> {
        // Deleting a state, or a deadline, that is not there does no harm.
        let tried = true;
        match read::<EnvelopeRecord>(&*self.store, Family::Envelope, unit.id.as_bytes()) {
            Ok(Some(envelope)) => Ok(DueRecord {
                expires_at: envelope.expires_at,
                bytes: envelope.prefix.len() as u64 + envelope.body_bytes,
                chunks: envelope.chunks.len() as u32,
                alone: envelope.units.len() == 1,
                tried,
            }),
            Ok(None) | Err(ReadError::Damaged { .. }) => {
                // Where nothing tells, others may need the body.
                let alone = match get(&*self.store, Family::State, &keys::open_units(unit.id)) {
                    Ok(open) => open.is_none(),
                    Err(ReadError::Damaged { .. }) => false,
                    Err(error) => return Err(error),
                };
                let (from, to) = (keys::body(unit.id, 0), keys::body(unit.id, u32::MAX));
                let last = match self.store.last(Family::Body, &from, &to) {
                    Err(error) if error.is_corruption() => None,
                    last => last?,
                };
                Ok(DueRecord {
                    expires_at: unit.id.created(),
                    bytes: 0,
                    chunks: last
                        .and_then(|(key, _)| keys::parse_body(&key))
                        .map_or(0, |(_, number)| number + 1),
                    alone,
                    tried,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// False where the claim is void. A unit that is set aside already stays so, for the reason it was.
    pub(super) fn set_aside(
        &mut self,
        group: &mut Group,
        unit: UnitKey,
        aside: &Aside,
    ) -> Result<bool, ReadError> {
        let Some((was, before)) = self.standing(group, &unit)? else {
            return Ok(false);
        };
        if before.is_some() {
            return Ok(true);
        }
        self.damage.count(aside.family);
        // The units of a queue of which nothing reads are set aside all the same.
        let name = match self.queue_mut(group, unit.queue) {
            Ok(queue) => Some(queue.record.name.clone()),
            Err(error @ ReadError::Damaged { .. }) => {
                tracing::error!(queue = %unit.queue, %error, "a queue that can't be counted");
                None
            }
            Err(error) => return Err(error),
        };
        let recipients = self.open_recipients(&unit)?;
        group.gone.insert(unit);
        group.batch.delete(Family::Due, &keys::due(&unit));
        let record = AsideRecord {
            since: aside.at,
            cause: aside.cause,
            why: aside.why.clone(),
            queue: unit.queue,
            due: unit.due,
            was,
        };
        group
            .batch
            .put_record(Family::Aside, &keys::aside(unit.id, unit.unit), &record);
        if name.is_some() {
            let queue = self.queue_mut(group, unit.queue)?;
            queue.deletions += 1;
            queue.record.aside += 1;
            sleep_if_nothing_waits(group, queue, unit.queue);
        }
        let event = Event {
            at: aside.at,
            kind: aside.cause.event(),
            id: Some(unit.id),
            queue: name,
            unit: unit.unit,
            recipients,
            attempt: 0,
            hop: None,
            reply: aside.why.clone(),
            tag: None,
            metadata: Vec::new(),
        };
        self.journal(group, &event);
        Ok(true)
    }

    /// A unit that stays set aside, with another due time.
    pub(super) fn keep_aside(
        &mut self,
        group: &mut Group,
        moved: &UnitKey,
        was: DueRecord,
        aside: AsideRecord,
    ) {
        let record = AsideRecord {
            due: moved.due,
            was,
            ..aside
        };
        group
            .batch
            .put_record(Family::Aside, &keys::aside(moved.id, moved.unit), &record);
    }

    /// Puts a unit that was set aside among the others again, due at its new time.
    pub(super) fn restore(
        &mut self,
        group: &mut Group,
        moved: &UnitKey,
        due: &DueRecord,
    ) -> Result<(), ReadError> {
        let key = keys::aside(moved.id, moved.unit);
        group.batch.delete(Family::Aside, &key);
        group.batch.put_record(Family::Due, &keys::due(moved), due);
        let queue = self.queue_mut(group, moved.queue)?;
        queue.record.aside = queue.record.aside.saturating_sub(1);
        queue.waits(moved);
        lower_wake(group, queue, moved.queue, moved.due);
        Ok(())
    }

    /// Those that have not ended, as far as it can be told from the envelope and the state.
    fn open_recipients(&self, unit: &UnitKey) -> Result<Vec<String>, ReadError> {
        let unread = |error| match error {
            ReadError::Damaged { .. } => Ok(None),
            ReadError::Store(error) => Err(error),
        };
        let envelope = read::<EnvelopeRecord>(&*self.store, Family::Envelope, unit.id.as_bytes());
        let Some(envelope) = envelope.or_else(unread)? else {
            return Ok(Vec::new());
        };
        let state = read::<StateRecord>(&*self.store, Family::State, &keys::state(unit.id, unit.unit));
        let Ok(state) = state else {
            return Ok(Vec::new());
        };
        let recipients = envelope.units.get(usize::from(unit.unit));
        let recipients = (0..).zip(recipients.map_or(&[][..], |unit| &unit.recipients));
        let is_open = |index| {
            let of = |state: &StateRecord| state.open.iter().any(|open| open.recipient == index);
            state.as_ref().is_none_or(of)
        };
        Ok(recipients
            .filter(|(index, _)| is_open(*index))
            .map(|(_, recipient)| recipient.mailbox.to_string())
            .collect())
    }

    /// Moves a record that mail can do without out of the way of whoever reads its family, unless it verifies by now.
    pub(super) fn set_record_aside(&mut self, group: &mut Group, met: &Met) -> Result<(), StoreError> {
        let octets = match self.store.get(met.family, &met.key) {
            Ok(Some(octets)) => octets,
            Ok(None) => return Ok(()),
            // There is nothing to keep of it.
            Err(error) if error.is_corruption() => return Ok(()),
            Err(error) => return Err(error),
        };
        if decode_any(met.family, &met.key, &octets) {
            return Ok(());
        }
        self.damage.count(Some(met.family));
        group.batch.delete(met.family, &met.key);
        let record = DamagedRecord {
            since: met.at,
            what: met.what.to_owned(),
            octets: octets.into(),
        };
        let key = keys::aside_record(met.family, &met.key);
        group.batch.put_record(Family::Aside, &key, &record);
        Ok(())
    }
}

/// Whether a record of a family that mail can do without verifies.
fn decode_any(family: Family, key: &[u8], octets: &[u8]) -> bool {
    match family {
        Family::Event => decode::<Event>(octets).is_ok(),
        Family::Hold if key.first() == Some(&keys::ADJUSTMENT) => {
            decode::<crate::AdjustmentRecord>(octets).is_ok()
        }
        Family::Hold => decode::<crate::HoldRecord>(octets).is_ok(),
        // Not to be moved.
        _ => true,
    }
}
