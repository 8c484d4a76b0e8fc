//! What operators ask of the committer.

use mail_core::Timestamp;

use super::{Committer, Group, lower_wake, read};
use crate::ReadError;
use crate::keys;
use crate::names::UnitKey;
use crate::records::{DueRecord, EnvelopeRecord, Event, EventKind, StateRecord, SuspensionRecord, Waiting};
use crate::store::Family;
use crate::suspension::Selector;

impl Committer {
    pub(super) fn suspend(&mut self, group: &mut Group, record: &SuspensionRecord) {
        group
            .batch
            .put_record(Family::Suspension, &record.selector.key(), record);
        let until = record
            .until
            .map_or(String::new(), |until| format!(" until {} ms", until.0));
        let reply = format!("{}{until} by {}: {}", record.selector, record.by, record.reason);
        let event = of_queues(EventKind::Suspended, record.since, reply);
        self.journal(group, &event);
    }

    pub(super) fn resume(&mut self, group: &mut Group, selector: &Selector, by: &str, at: Timestamp) {
        group.batch.delete(Family::Suspension, &selector.key());
        let event = of_queues(EventKind::Resumed, at, format!("{selector} by {by}"));
        self.journal(group, &event);
    }

    /// False where the claim is void.
    pub(super) fn retry(
        &mut self,
        group: &mut Group,
        unit: UnitKey,
        due: Timestamp,
        by: &str,
    ) -> Result<bool, ReadError> {
        let Some((record, aside)) = self.standing(group, &unit)? else {
            return Ok(false);
        };
        // All that can be damaged is read before anything is written.
        let key = unit.id.as_bytes();
        let envelope: EnvelopeRecord = read(&*self.store, Family::Envelope, key)?
            .ok_or_else(|| ReadError::damaged("envelope", key, "absent"))?;
        let state: Option<StateRecord> = read(&*self.store, Family::State, &keys::state(unit.id, unit.unit))?;
        let name = self.queue_mut(group, unit.queue)?.record.name.clone();
        let recipients = envelope
            .units
            .get(usize::from(unit.unit))
            .map_or(&[][..], |unit| &unit.recipients);
        // One that was never tried has its time in the envelope alone, which does not change.
        let state = state.unwrap_or_else(|| StateRecord {
            open: (0..)
                .zip(recipients)
                .map(|(recipient, _)| Waiting {
                    recipient,
                    reply: String::new(),
                })
                .collect(),
            ..StateRecord::default()
        });
        let open = state
            .open
            .iter()
            .filter_map(|open| recipients.get(usize::from(open.recipient)))
            .map(|recipient| recipient.mailbox.to_string())
            .collect();
        let kind = match aside {
            Some(_) => EventKind::Restored,
            None => EventKind::Retried,
        };
        let event = Event {
            id: Some(unit.id),
            queue: Some(name),
            unit: unit.unit,
            recipients: open,
            ..of_queues(kind, due, format!("by {by}"))
        };
        let moved = UnitKey { due, ..unit };
        group.gone.insert(unit);
        group.batch.delete(Family::Due, &keys::due(&unit));
        let state = StateRecord { due, ..state };
        group
            .batch
            .put_record(Family::State, &keys::state(unit.id, unit.unit), &state);
        let record = DueRecord {
            tried: true,
            ..record
        };
        if aside.is_some() {
            self.restore(group, &moved, &record)?;
        } else {
            group.batch.put_record(Family::Due, &keys::due(&moved), &record);
            group.gone.remove(&moved);
            let queue = self.queue_mut(group, unit.queue)?;
            queue.deletions += 1;
            queue.waits(&moved);
            lower_wake(group, queue, unit.queue, due);
        }
        self.journal(group, &event);
        Ok(true)
    }
}

pub(super) fn of_queues(kind: EventKind, at: Timestamp, reply: String) -> Event {
    Event {
        at,
        kind,
        id: None,
        queue: None,
        unit: 0,
        recipients: Vec::new(),
        attempt: 0,
        hop: None,
        reply,
        tag: None,
        metadata: Vec::new(),
    }
}
