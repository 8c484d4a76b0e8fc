//! Messages put into the store as they were in another.

use mail_core::Timestamp;

use super::{Committer, Group, lower_wake};
use crate::ReadError;
use crate::import::{Batch, Importing};
use crate::keys;
use crate::names::{QueueId, UnitKey};
use crate::records::{AsideRecord, DueRecord, Event, EventKind, ImportRecord};
use crate::store::Family;

impl Committer {
    /// Puts in all messages of a batch, and how far it gets.
    pub(super) fn import(&mut self, group: &mut Group, batch: &Batch) -> Result<(), ReadError> {
        // All that can be damaged is read before anything is written.
        let mut placed = Vec::with_capacity(batch.messages.len());
        for message in &batch.messages {
            let mut queues = Vec::with_capacity(message.units.len());
            for (_, name, _) in &message.units {
                let queue = self.number(group, name.clone())?;
                self.queue_mut(group, queue)?;
                queues.push(queue);
            }
            placed.push(queues);
        }
        for (message, queues) in batch.messages.iter().zip(placed) {
            self.import_one(group, message, &queues, batch.at)?;
        }
        let (key, messages) = &batch.mark;
        let record = ImportRecord { messages: *messages };
        group.batch.put_record(Family::Meta, key, &record);
        Ok(())
    }

    fn import_one(
        &mut self,
        group: &mut Group,
        message: &Importing,
        queues: &[QueueId],
        at: Timestamp,
    ) -> Result<(), ReadError> {
        let mut envelope = message.envelope.clone();
        // No queue has this number: those of units that have ended were the old store's.
        for unit in &mut envelope.units {
            unit.queue = QueueId(0);
        }
        let bytes = envelope.prefix.len() as u64 + envelope.body_bytes;
        let mut recipients = Vec::new();
        for ((unit, _, state), &queue) in message.units.iter().zip(queues) {
            let of_unit = &mut envelope.units[usize::from(unit.number)];
            of_unit.queue = queue;
            recipients.extend(
                of_unit
                    .recipients
                    .iter()
                    .map(|recipient| recipient.mailbox.to_string()),
            );
            if state.is_none() {
                of_unit.due = unit.due;
            }
            let key = UnitKey {
                queue,
                due: unit.due,
                id: message.id,
                unit: unit.number,
            };
            let due = DueRecord {
                expires_at: envelope.expires_at,
                bytes,
                chunks: envelope.chunks.len() as u32,
                alone: envelope.units.len() == 1,
                tried: state.is_some(),
            };
            if let Some(state) = state {
                group
                    .batch
                    .put_record(Family::State, &keys::state(message.id, unit.number), state);
            }
            let number = unit.number.to_be_bytes();
            let deadline = keys::deadline(envelope.expires_at, queue, message.id);
            group.batch.put_sealed(Family::Deadline, &deadline, &number);
            if unit.notice {
                let notice = keys::notice(envelope.released_at(), &envelope.transfer, queue, message.id);
                group.batch.put_sealed(Family::Notice, &notice, &number);
            }
            match &unit.aside {
                Some((since, cause, why)) => {
                    let record = AsideRecord {
                        since: *since,
                        cause: *cause,
                        why: why.clone(),
                        queue,
                        due: unit.due,
                        was: due,
                    };
                    group
                        .batch
                        .put_record(Family::Aside, &keys::aside(key.id, key.unit), &record);
                }
                None => group.batch.put_record(Family::Due, &keys::due(&key), &due),
            }
            let aside = unit.aside.is_some();
            let queue = self.queue_mut(group, queue)?;
            queue.record.count += 1;
            queue.record.bytes += bytes;
            queue.record.aside += u64::from(aside);
            if !aside {
                queue.waits(&key);
                lower_wake(group, queue, key.queue, unit.due);
            }
        }
        if envelope.units.len() > 1 {
            let open = (message.units.len() as u16).to_be_bytes();
            let key = keys::open_units(message.id);
            group.batch.put_sealed(Family::State, &key, &open);
        }
        if let Some(first) = &message.first {
            group
                .batch
                .put(Family::Body, &keys::body(message.id, 0), first.clone());
        }
        if let Some(rest) = &message.rest {
            group.batch.delete(Family::Upload, message.id.as_bytes());
            rest.keep();
        }
        let event = Event {
            at,
            kind: EventKind::Restored,
            id: Some(message.id),
            queue: None,
            unit: 0,
            recipients,
            attempt: 0,
            hop: None,
            reply: "taken over from another store".into(),
            tag: envelope.tag.clone(),
            metadata: envelope.metadata.clone(),
        };
        group
            .batch
            .put_record(Family::Envelope, message.id.as_bytes(), &envelope);
        self.journal(group, &event);
        Ok(())
    }
}
